//! Attestation directories: what is in them, and what a container can do at its socket.

use super::*;
use crate::attest::service::{QUESTION, SOCKET};
use crate::gate::fields::{DirectoryName, MountPoint};

/// Where the directories are in these tests.
pub const PLACE: &str = "/mnt/attestation";

/// A report that is nothing but what was asked for.
pub fn report(data: &[u8; 64]) -> Option<[u8; 1184]> {
    let mut report = [0; 1184];
    report[..64].copy_from_slice(data);
    Some(report)
}

fn mounts() -> Vec<Mount<'static>> {
    let destination = MountPoint::parse("/run/parma").unwrap();
    std::vec![Mount { source: Source::Attestation(b"policy"), destination, read_only: true }]
}

fn connect(container: &ContainerId) -> UnixStream {
    UnixStream::connect(format!("{PLACE}/{}/{SOCKET}", container.as_str())).unwrap()
}

#[test]
fn a_container_has_its_directory_and_secrets_and_cannot_change_them() {
    alone("attestation::a_container_has_its_directory_and_secrets_and_cannot_change_them", |machine| {
        let container = id('a');
        machine.rootfs(&container);
        machine
            .containers
            .endorse(Permit::for_test(Endorse { certificates: b"chain", endorsement: b"" }))
            .unwrap();
        let script = "cd /run/parma; cat security-policy-base64 host-amd-cert-base64; ls; \
            (echo x > y) 2>/dev/null || echo no; rm attest.sock 2>/dev/null || echo no; \
            grep -o ' /run/parma ro,nosuid,nodev' /proc/self/mountinfo; \
            until cat secrets/token 2>/dev/null; do sleep 0.1; done";
        let args = ["sh", "-c", script];
        let spec = Spec { uid: 1000, gids: &[1000], ..Spec::new(&args) };
        let process = machine.create_with(container, mounts(), &spec).unwrap();
        let secret = |name| DeliverSecret {
            container,
            name: DirectoryName::parse(name).unwrap(),
            content: b"the token",
        };
        machine.containers.deliver_secret(Permit::for_test(secret("token"))).unwrap();
        let again = machine.containers.deliver_secret(Permit::for_test(secret("token")));
        assert_eq!(again, Err(error(Step::Attestation, Errno::EXIST)));
        let (text, status) = machine.finish(process);
        // "policy" and "chain"; there is no endorsement.
        let files = "attest.sock\nhost-amd-cert-base64\nsecrets\nsecurity-policy-base64\n";
        assert_eq!(
            text,
            std::format!("cG9saWN5Y2hhaW4={files}no\nno\n /run/parma ro,nosuid,nodev\nthe token")
        );
        assert_eq!(status, ExitStatus::Code(0));
        machine.shutdown(container).unwrap();
        assert_eq!(fs::read_dir(PLACE).unwrap().count(), 0, "it is gone with its container");
        let late = machine.containers.deliver_secret(Permit::for_test(secret("token")));
        assert_eq!(late, Err(error(Step::Attestation, Errno::NOENT)));
    });
}

#[test]
fn t06_slow_greedy_and_talkative_containers_are_in_nobodys_way_but_their_own() {
    alone(
        "attestation::t06_slow_greedy_and_talkative_containers_are_in_nobodys_way_but_their_own",
        |machine| {
            let (hostile, honest) = (id('a'), id('b'));
            for container in [hostile, honest] {
                machine.rootfs(&container);
                machine.create_with(container, mounts(), &Spec::new(&["sleep", "1000"])).unwrap();
            }
            let open = || fs::read_dir("/proc/self/fd").unwrap().count();
            let before = open();
            // A connection that asks nothing, and one that stops in the middle, stay; of more than four the oldest go.
            let mut slow = Vec::new();
            for length in 0..20 {
                let mut connection = connect(&hostile);
                connection.write_all(&std::vec![1; length]).unwrap();
                slow.push(connection);
                while !machine.accepted_all() {}
            }
            assert!(open() - before <= slow.len() + 4, "{before} and {}", open());
            let ask = |machine: &mut Machine, container, question: &[u8]| {
                let mut connection = connect(container);
                connection.write_all(question).unwrap();
                machine.read_all(connection)
            };
            // K03: the last 16 bytes of REPORT_DATA are not the container's.
            let expected = report(&crate::attest::service::report_data(&[7; QUESTION])).unwrap();
            assert_eq!(expected[QUESTION..64], [0; 16]);
            assert!(ask(machine, &honest, &[7; QUESTION]) == expected);
            assert!(ask(machine, &hostile, &[7; QUESTION]) == expected);
            // What follows a question is nobody's business.
            let mut talkative = connect(&honest);
            talkative.write_all(&[7; 4096]).unwrap();
            talkative.set_nonblocking(true).unwrap();
            let mut first = [0; 64];
            loop {
                match talkative.read(&mut first) {
                    Ok(length) => break assert_eq!(first[..length], expected[..length]),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => machine.turn(),
                    Err(error) => panic!("{error}"),
                }
            }
            for container in [hostile, honest] {
                machine.shutdown(container).unwrap();
            }
        },
    );
}

impl Machine {
    /// Handles what has happened so far; whether that was nothing.
    fn accepted_all(&mut self) -> bool {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 16];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = epoll::wait(&self.epoll, &mut events, Some(&now)).unwrap();
        events[..count].iter().for_each(|event| self.containers.on_event(event.data.u64(), event.flags));
        count == 0
    }
}
