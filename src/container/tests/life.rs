//! How containers and processes begin and end.

use super::*;

#[test]
fn a_program_that_cannot_be_executed_leaves_nothing_behind() {
    alone("life::a_program_that_cannot_be_executed_leaves_nothing_behind", |machine| {
        let container = id('f');
        assert_eq!(machine.create(container, &Spec::new(&["sh"])), Err(error(Step::Rootfs, Errno::NOENT)));
        let rootfs = machine.rootfs(&container);
        let cases = [
            (vec!["no-such-program"], Step::Execute, Errno::NOENT),
            (vec!["/etc/passwd"], Step::Execute, Errno::ACCESS),
            (vec!["/etc"], Step::Execute, Errno::ACCESS),
            // CVE-2019-5736: this would be the init.
            (vec!["/proc/self/exe"], Step::Execute, Errno::LOOP),
        ];
        for (args, step, errno) in cases {
            assert_eq!(machine.create(container, &Spec::new(&args)), Err(error(step, errno)), "{args:?}");
        }
        fs::write(rootfs.join("srv/file"), "").unwrap();
        let spec = Spec { dir: "/srv/file", ..Spec::new(&["true"]) };
        assert_eq!(machine.create(container, &spec), Err(error(Step::WorkingDir, Errno::NOTDIR)));
        let spec = Spec { dir: "/proc/self/root", ..Spec::new(&["true"]) };
        assert_eq!(machine.create(container, &spec), Err(error(Step::WorkingDir, Errno::LOOP)));
        assert!(machine.cgroups().is_empty());
        assert!(wait_any(WaitOptions::NOHANG).is_err_and(|errno| errno == Errno::CHILD));
        let process = machine.create(container, &Spec::new(&["true"])).unwrap();
        assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
        machine.shutdown(container).unwrap();
    });
}

/// I08: the gate stops everything then.
#[test]
fn i08_a_creation_that_failed_and_could_not_be_undone_says_so() {
    alone("life::i08_a_creation_that_failed_and_could_not_be_undone_says_so", |machine| {
        let container = id('f');
        machine.rootfs(&container);
        let directory = Path::new(attestation::PLACE).join(container.as_str());
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("in-the-way"), "").unwrap();
        let failed = error(Step::Execute, Errno::NOENT);
        let create = |machine: &mut Machine| machine.create(container, &Spec::new(&["no-such-program"]));
        assert_eq!(create(machine), Err(ActError { undone: false, ..failed }));
        fs::remove_file(directory.join("in-the-way")).unwrap();
        assert_eq!(create(machine), Err(failed));
    });
}

#[test]
fn an_exec_joins_its_container_and_dies_with_it() {
    alone("life::an_exec_joins_its_container_and_dies_with_it", |machine| {
        let container = id('4');
        machine.rootfs(&container);
        let nobody = machine.exec(container, &Spec::new(&["true"]));
        assert_eq!(nobody, Err(error(Step::EnterNamespaces, Errno::SRCH)));
        let script = "echo from-init > /tmp/parma-note; trap 'exit 9' TERM; while :; do sleep 1; done";
        let init = machine.create(container, &Spec::new(&["sh", "-c", script])).unwrap();
        let script = "for ns in mnt ipc uts net cgroup pid; do \
            [ $(readlink /proc/self/ns/$ns) = $(readlink /proc/1/ns/$ns) ] || echo other $ns; done; \
            hostname; grep 0:: /proc/self/cgroup; readlink /proc/self/root; ls -l /proc/self/fd | grep -c -- '->'; \
            while [ ! -s /tmp/parma-note ]; do sleep 0.1; done; cat /tmp/parma-note; kill -9 1; exit 3";
        let process =
            machine.exec(container, &Spec { dir: "/usr", ..Spec::new(&["sh", "-c", script]) }).unwrap();
        let (text, status) = machine.finish(process);
        assert_eq!((text.as_str(), status), ("444444444444\n0::/\n/\n4\nfrom-init\n", ExitStatus::Code(3)));
        let missing = machine.exec(container, &Spec { dir: "/missing", ..Spec::new(&["true"]) });
        assert_eq!(missing, Err(error(Step::WorkingDir, Errno::NOENT)));
        let missing = machine.exec(container, &Spec::new(&["no-such-program"]));
        assert_eq!(missing, Err(error(Step::Execute, Errno::NOENT)));
        let sleeper = machine.exec(container, &Spec::new(&["sleep", "1000"])).unwrap();
        machine.signal(init, 15).unwrap();
        assert_eq!(machine.exit_of(sleeper), ExitStatus::Signal(9));
        assert_eq!(machine.exit_of(init), ExitStatus::Code(9));
        let late = machine.exec(container, &Spec::new(&["true"]));
        assert_eq!(late, Err(error(Step::EnterNamespaces, Errno::SRCH)));
        // The way back out of the container's PID namespace was found: another container can be made.
        let (text, _) = machine.script(id('5'), "echo $$", Spec::new(&[]));
        assert_eq!(text, "1\n");
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c11_a_signal_reaches_exactly_one_process_and_an_ended_one_is_no_error() {
    alone("life::c11_a_signal_reaches_exactly_one_process_and_an_ended_one_is_no_error", |machine| {
        let container = id('6');
        machine.rootfs(&container);
        let init = machine.create(container, &Spec::new(&["sleep", "1000"])).unwrap();
        let one = machine.exec(container, &Spec::new(&["sleep", "1000"])).unwrap();
        let two = machine.exec(container, &Spec::new(&["sleep", "1000"])).unwrap();
        machine.signal(one, 15).unwrap();
        assert_eq!(machine.exit_of(one), ExitStatus::Signal(15));
        machine.signal(one, 9).unwrap();
        machine.signal(two, 64).unwrap();
        assert_eq!(machine.exit_of(two), ExitStatus::Signal(64));
        assert_eq!(machine.signal(ProcessId(99), 9), Err(error(Step::Signal, Errno::SRCH)));
        machine.signal(init, 9).unwrap();
        assert_eq!(machine.exit_of(init), ExitStatus::Signal(9));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn a_shutdown_ends_everything_and_reports_every_exit() {
    alone("life::a_shutdown_ends_everything_and_reports_every_exit", |machine| {
        let container = id('7');
        machine.rootfs(&container);
        let script = "(trap '' TERM; sleep 1000) & (sleep 1000 &) ; trap '' TERM INT; sleep 1000 & wait";
        let init = machine.create(container, &Spec::new(&["sh", "-c", script])).unwrap();
        let one = machine.exec(container, &Spec::new(&["sleep", "1000"])).unwrap();
        let two = machine.exec(container, &Spec::new(&["sh", "-c", "exit 5"])).unwrap();
        assert_eq!(machine.exit_of(two), ExitStatus::Code(5));
        machine.shutdown(container).unwrap();
        let killed = ExitStatus::Signal(9);
        assert_eq!(machine.exits, [(two, ExitStatus::Code(5)), (one, killed), (init, killed)]);
        assert!(machine.cgroups().is_empty());
        assert_eq!(machine.containers.attachable(init, Stream::Stdout), Err(NotAttachable::Unknown));
        machine.shutdown(container).unwrap();
    });
}

/// CVE-2019-5736, CVE-2016-9962: a process that joins a container is the runtime's own until it executes its program.
#[test]
fn a_process_that_joins_a_container_brings_nothing_that_the_container_could_take_from_it() {
    alone(
        "life::a_process_that_joins_a_container_brings_nothing_that_the_container_could_take_from_it",
        |machine| {
            let container = id('8');
            machine.rootfs(&container);
            let script = catcher(machine);
            let args = ["perl", "-e", &script];
            let init = machine.create(container, &Spec { caps: caps(ALL), ..Spec::new(&args) }).unwrap();
            let seen = machine.attach(init, Stream::Stdout);
            catch(seen, machine, |machine| {
                let process = machine.exec(container, &slow(&["true"])).unwrap();
                assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
            });
            machine.shutdown(container).unwrap();
        },
    );
}

#[test]
fn what_a_process_is_doing_is_known_while_it_runs() {
    alone("life::what_a_process_is_doing_is_known_while_it_runs", |machine| {
        let container = id('e');
        machine.rootfs(&container);
        machine.create(container, &Spec::new(&["sleep", "1000"])).unwrap();
        let ended = machine.exec(container, &Spec::new(&["true"])).unwrap();
        machine.exit_of(ended);
        assert_eq!(machine.dump_stack(ended).unwrap(), None);
        let other = machine.exec(container, &Spec::new(&["sleep", "1000"])).unwrap();
        assert!(matches!(machine.dump_stack(other), Ok(Some(b'R' | b'S' | b'D'))));
        // It stops at once, or when its processor comes to it.
        machine.signal(other, 19).unwrap();
        while machine.dump_stack(other).unwrap() != Some(b'T') {}
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn what_is_forgotten_is_a_process_that_has_ended_and_its_streams() {
    alone("life::what_is_forgotten_is_a_process_that_has_ended_and_its_streams", |machine| {
        let container = id('a');
        machine.rootfs(&container);
        let sleeper = machine.create(container, &Spec::new(&["sleep", "1000"])).unwrap();
        let ended = machine.exec(container, &Spec::new(&["true"])).unwrap();
        machine.exit_of(ended);
        for (process, is_known) in [(sleeper, true), (ended, false)] {
            machine.containers.forget(process);
            assert_eq!(machine.containers.processes.contains_key(&process), is_known);
            let theirs = UnixStream::pair().unwrap().1;
            assert_eq!(machine.containers.attach(process, Stream::Stdout, theirs.into()).is_ok(), is_known);
        }
        machine.shutdown(container).unwrap();
    });
}
