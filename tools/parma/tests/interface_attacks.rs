//! What a host could say of a container elsewhere and cannot say here, what it said before, and two hosts at once: attacks C03,
//! C04, C13, I07, I15, T04 on the real VM.

mod support;

use parma::pod::network_request;
use parma_guest::point::Point;
use parma_guest::wire::frame::{decode, encode};
use parma_guest::wire::{
    CONTROL_PORT, Capabilities, Denied, ExitStatus, Field, FromGuest, List, Mount, Network, Process, Reason,
    Refusal, Reply as Answer, Request, Resources, Rule, Source, Stdio, ToGuest, WindowSize,
};
use parma_policy::generate::GenerateOptions;
use parma_vmm::{Machine, Reply};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use support::{LONG, OUTPUT, Workload, id, joined, list, stage, strings};

fn create<'a>(container: &'a str, process: Process<'a>) -> Request<'a> {
    Request::CreateContainer { container, privileged: false, mounts: List::new(), seccomp: None, process }
}

fn mounting<'a>(container: &'a str, process: Process<'a>, source: Source<'a>) -> Request<'a> {
    let mount = Mount { source, destination: "/data", read_only: true };
    Request::CreateContainer {
        container,
        privileged: false,
        mounts: List::from_vec(vec![mount]).unwrap(),
        seccomp: None,
        process,
    }
}

/// Whether the policy, or the rule of a field, says no to a container.
fn said_no(reason: &Reason) -> bool {
    matches!(
        reason,
        Reason::Denied { point: Point::CreateContainer, how: Denied::No, .. } | Reason::Invalid { .. }
    )
}

/// C04, I15: all that a host can say. Who adds a field has to come by here, and to say how a policy decides on it: nothing here
/// is a path, an option, a device, a namespace, a hook, a kernel setting, or content of a file.
#[test]
fn c04_i15_a_host_can_say_no_more_than_this() {
    fn process(process: Process<'_>) {
        let Process {
            args: _,
            env: _,
            working_dir: _,
            user: _,
            umask: _,
            capabilities,
            no_new_privileges: _,
            stdio: Stdio { stdin: _, stdout: _, stderr: _, terminal: _ },
        } = process;
        let Capabilities { bounding: _, effective: _, inheritable: _, permitted: _, ambient: _ } =
            capabilities;
    }
    fn request(request: Request<'_>) {
        match request {
            Request::CreateContainer { container: _, privileged: _, mounts, seccomp: _, process: first } => {
                for Mount { source, destination: _, read_only: _ } in mounts.iter().copied() {
                    match source {
                        Source::Directory(_) | Source::Layer(_) | Source::Volume(_) | Source::Attestation => {
                        }
                    }
                }
                process(first);
            }
            Request::UpdateContainer { container: _, resources } => {
                let Resources { memory: _, cpu: _, processes: _, paused: _ } = resources;
            }
            Request::SetUpNetwork(network) => {
                let Network { addresses: _, routes: _, name_servers: _, search: _, mtu: _ } = network;
            }
            Request::ExecInContainer { container: _, process: further } => process(further),
            Request::ResizeTerminal { container: _, process: _, size } => {
                let WindowSize { rows: _, columns: _ } = size;
            }
            _ => {}
        }
    }
    let (container, process_of) = (id('1'), |user| Process {
        args: list(["true"]),
        env: List::new(),
        working_dir: "/",
        user,
        umask: 0o22,
        capabilities: Capabilities::default(),
        no_new_privileges: true,
        stdio: Stdio::default(),
    });
    let honest = create(&container, process_of("1000"));
    let encoded = encode(&ToGuest { sequence: 1, request: honest.clone() }).unwrap();
    request(honest);
    // A field more, in any place of the message, is another message or none; never the same with something beside it.
    let body = &encoded[4..];
    assert!(decode::<ToGuest<'_>>(body).is_ok());
    for extra in [&[0][..], &[1], b"\x05hooks", &[0xff; 8]] {
        assert!(decode::<ToGuest<'_>>(&[body, extra].concat()).is_err(), "{extra:?}");
    }
    // I15: numbers of no request, such as one to copy a file.
    for number in [64, 100, 127] {
        assert!(decode::<ToGuest<'_>>(&[&[1, number][..], &body[2..]].concat()).is_err(), "{number}");
    }
}

/// C03: privileged is a word of the policy about one entry. It changes neither what is mounted nor which capabilities there are.
#[test]
fn c03_who_may_be_privileged_gets_no_mount_device_or_capability_by_it() {
    let Some(stage) = stage() else { return };
    let look = "cut -d' ' -f5,6 /proc/self/mountinfo; ls /dev; grep Cap /proc/self/status; cat /proc/self/attr/current";
    let (plain, elevated) = (format!(": plain; {look}"), format!(": elevated; {look}"));
    let options = GenerateOptions::default;
    let elevated = stage.workload_with("busybox", &["sh", "-c", &elevated], options(), |text| {
        let more = text.replace("\"allow_elevated\": false", "\"allow_elevated\": true");
        assert_ne!(more, text);
        more
    });
    let text = elevated.container.policy().replace("\"allow_elevated\": false", "\"allow_elevated\": true");
    let plain =
        stage.workload_with("busybox", &["sh", "-c", &plain], options(), |policy| joined(&policy, &text));
    let guest = stage.start(&plain);
    let (one, two) = (id('1'), id('2'));
    guest.mount_layers(&plain);
    guest.mount_overlay(&plain, &one);
    guest.mount_overlay(&plain, &two);
    let ask = |container, workload: &Workload, mounts, capabilities: Option<Capabilities>| {
        let honest = workload.process(OUTPUT);
        let capabilities = capabilities.unwrap_or(honest.capabilities);
        let process = Process { capabilities, ..honest };
        guest.request(Request::CreateContainer {
            container,
            privileged: true,
            mounts,
            seccomp: None,
            process,
        })
    };
    let refused = |outcome: parma_vmm::Outcome| {
        let reason = outcome.expect_err("refused").0.reason;
        assert!(said_no(&reason), "{reason:?}");
    };
    let all = (1 << 41) - 1;
    let every = Capabilities { bounding: all, effective: all, permitted: all, inheritable: 0, ambient: 0 };
    refused(ask(&one, &plain, List::new(), None));
    refused(ask(&two, &elevated, List::new(), Some(every)));
    for source in [Source::Directory("shared"), Source::Layer("busybox0"), Source::Volume([0; 32])] {
        let mount = Mount { source, destination: "/data", read_only: true };
        let reason = ask(&two, &elevated, List::from_vec(vec![mount]).unwrap(), None).unwrap_err().0.reason;
        assert!(said_no(&reason) || matches!(reason, Reason::Unknown { .. }), "{source:?}: {reason:?}");
    }
    // The twins: one as it is, the other privileged; and what they find is the same.
    let process = guest.create(&plain, &one, OUTPUT);
    let (seen, _) = guest.finish(process);
    let Ok(Reply::Started(process)) = ask(&two, &elevated, List::new(), None) else { panic!("not started") };
    let (privileged, _) = guest.finish(process);
    assert!(seen.contains("/proc") && seen.contains("CapBnd"), "{seen}");
    assert_eq!(privileged.replace(&two, &one), seen);
}

/// C04: each field of a process, changed alone; then a container that was created as decided looks at what it got of those fields
/// for which there are no words, and tries to have more.
#[test]
fn c04_d8_every_field_is_as_decided_and_what_has_no_field_is_fixed() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("cpython", &["python3", "-c", FIXED], GenerateOptions::default()).of_root();
    let guest = stage.start(&workload);
    let container = id('1');
    guest.mount_layers(&workload);
    guest.mount_overlay(&workload, &container);
    let honest = || workload.process(OUTPUT);
    let capabilities = workload.container.capabilities();
    let with = |edit: &dyn Fn(&mut Capabilities)| {
        let mut capabilities = capabilities;
        edit(&mut capabilities);
        create(&container, Process { capabilities, ..honest() })
    };
    const ADMIN: u64 = 1 << 21;
    let more = strings(&["python3", "-c", FIXED, "more"]);
    let env: Vec<&str> = workload.container.env.iter().map(String::as_str).chain(["LD_PRELOAD=/x"]).collect();
    let table = [
        ("args", create(&container, workload.process_with(&more, OUTPUT))),
        ("env", create(&container, Process { env: list(env), ..honest() })),
        ("cwd", create(&container, Process { working_dir: "/proc/1", ..honest() })),
        ("user.uid", create(&container, Process { user: "1000", ..honest() })),
        ("user.gid", create(&container, Process { user: "0:1000", ..honest() })),
        ("user.umask", create(&container, Process { umask: 0, ..honest() })),
        ("noNewPrivileges", create(&container, Process { no_new_privileges: false, ..honest() })),
        ("capabilities.bounding", with(&|sets| sets.bounding |= ADMIN)),
        ("capabilities.effective", with(&|sets| sets.effective |= ADMIN)),
        ("capabilities.permitted", with(&|sets| sets.permitted |= ADMIN)),
        ("capabilities.inheritable", with(&|sets| sets.inheritable |= 1)),
        ("capabilities.ambient", with(&|sets| sets.ambient |= 1)),
        (
            "capabilities, as root of a machine has them",
            with(&|sets| {
                sets.bounding |= ADMIN;
                sets.permitted |= ADMIN;
                sets.effective |= ADMIN;
            }),
        ),
        (
            "capabilities, kept by every program",
            with(&|sets| {
                sets.inheritable |= 1;
                sets.ambient |= 1;
            }),
        ),
        ("mounts: a directory", mounting(&container, honest(), Source::Directory("shared"))),
        ("mounts: a layer", mounting(&container, honest(), Source::Layer("cpython0"))),
        (
            "privileged",
            Request::CreateContainer {
                container: &container,
                privileged: true,
                mounts: List::new(),
                seccomp: None,
                process: honest(),
            },
        ),
        (
            "seccomp",
            Request::CreateContainer {
                container: &container,
                privileged: false,
                mounts: List::new(),
                seccomp: Some([7; 32]),
                process: honest(),
            },
        ),
    ];
    for (field, request) in table {
        let reason = guest.refused(request);
        assert!(said_no(&reason), "{field}: {reason:?}");
    }
    let process = guest.create(&workload, &container, OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    let seen: BTreeMap<&str, &str> = output.lines().filter_map(|line| line.split_once(": ")).collect();
    for (field, expected) in [
        ("seccomp", "2"),
        ("noNewPrivileges", "1"),
        ("ambient", "0000000000000000"),
        ("inheritable", "0000000000000000"),
        ("uidMappings", "0 0 4294967295"),
        ("gidMappings", "0 0 4294967295"),
        ("rootfsPropagation", "[]"),
        ("cgroupsPath", "0::/"),
        ("personality", "00000000"),
        ("scheduler", "0"),
        ("domainname", "(none)"),
        ("oomScoreAdj", "EACCES"),
        ("rlimits", "ValueError"),
        ("sysctl", "EROFS"),
        ("sysctl of the machine", "EROFS"),
        ("cgroup limits", "EROFS"),
        ("namespaces made", "EPERM"),
        ("user namespaces made", "EPERM"),
        ("time namespace made", "EPERM"),
        ("namespaces joined", "EPERM"),
        ("scheduler raised", "EPERM"),
        ("nice raised", "EACCES"),
        ("hostname changed", "EPERM"),
        ("mounted", "EPERM"),
        ("unmasked", "EPERM"),
        ("made writable", "EPERM"),
        ("masked", "0 bytes, 0 names"),
    ] {
        assert_eq!(seen.get(field).copied(), Some(expected), "{field} in\n{output}");
    }
    let devices = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero";
    let seen = seen["devices"].replace("console ", "");
    assert_eq!(seen, devices, "{output}");
}

/// Prints `field: what is so`, or the error that an attempt to change it met.
const FIXED: &str = "\
import ctypes, errno, os, resource, socket
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
libc = ctypes.CDLL(None, use_errno=True)
def say(what, value): print(f'{what}: {value}')
def attempt(what, act):
    try:
        act()
        say(what, 'done')
    except OSError as error:
        say(what, errno.errorcode[error.errno])
    except ValueError:
        say(what, 'ValueError')
def read(path): return ' '.join(open(path).read().split())
def write(path, text):
    with open(path, 'w') as file:
        file.write(text)
def mount(source, target, kind, flags):
    if libc.mount(source, target, kind, flags, None):
        raise OSError(ctypes.get_errno(), '')
def join(kind):
    os.setns(os.open('/proc/1/ns/' + kind, os.O_RDONLY))
for field, name in [('seccomp', 'Seccomp'), ('noNewPrivileges', 'NoNewPrivs'), ('ambient', 'CapAmb'), ('inheritable', 'CapInh')]:
    say(field, status[name].strip())
say('uidMappings', read('/proc/self/uid_map'))
say('gidMappings', read('/proc/self/gid_map'))
mounts = [line.split(' - ')[0].split() for line in open('/proc/self/mountinfo')]
say('rootfsPropagation', [tag for words in mounts for tag in words[6:]])
say('cgroupsPath', read('/proc/self/cgroup'))
say('personality', read('/proc/self/personality'))
say('scheduler', os.sched_getscheduler(0))
say('domainname', read('/proc/sys/kernel/domainname'))
say('devices', ' '.join(sorted(os.listdir('/dev'))))
masked = [p for p in ['/proc/kcore', '/proc/keys', '/proc/timer_list', '/proc/kmsg'] if os.path.exists(p)]
say('masked', '%d bytes, %d names' % (sum(len(open(p, 'rb').read()) for p in masked), len(os.listdir('/sys/firmware'))))
attempt('oomScoreAdj', lambda: write('/proc/self/oom_score_adj', '-999'))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
attempt('rlimits', lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard + 1)))
attempt('sysctl', lambda: write('/proc/sys/net/ipv4/ip_forward', '1'))
attempt('sysctl of the machine', lambda: write('/proc/sys/kernel/panic', '0'))
attempt('cgroup limits', lambda: write('/sys/fs/cgroup/cgroup.procs', '1'))
attempt('namespaces made', lambda: os.unshare(os.CLONE_NEWNS))
attempt('user namespaces made', lambda: os.unshare(os.CLONE_NEWUSER))
attempt('time namespace made', lambda: os.unshare(0x80))
attempt('namespaces joined', lambda: [join(kind) for kind in ['mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup']])
attempt('scheduler raised', lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))
attempt('nice raised', lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
attempt('hostname changed', lambda: socket.sethostname('x'))
attempt('mounted', lambda: mount(b'none', b'/tmp', b'proc', 0))
attempt('unmasked', lambda: mount(b'/proc/1', b'/sys/firmware', None, 4096))
attempt('made writable', lambda: mount(None, b'/proc/sys', None, 32 | 4096))
";

/// C13 (hcsshim `9c0a084a2`: a host name `x\\n1.1.1.1 ip6-localhost`): nothing that the host says ends a line or a word of the
/// files that name hosts.
#[test]
fn c13_no_name_of_the_hosts_adds_a_line_to_what_names_hosts() {
    let Some(stage) = stage() else { return };
    let script = "cat /proc/sys/kernel/hostname /etc/hosts /etc/resolv.conf";
    let options = GenerateOptions { network: true, ..GenerateOptions::default() };
    let workload = stage.workload("busybox", &["sh", "-c", script], options);
    let interface = parma_vmm::Network { outbound: true, forwards: Vec::new() };
    let guest = stage.start_with_network(&workload, interface.clone());
    let mut honest = network_request(&interface);
    honest.search.push("example.com").unwrap();
    let long = "a".repeat(254);
    let domains = [
        "x\n1.1.1.1 ip6-localhost",
        "x\rnameserver 6.6.6.6",
        "a b",
        "a\tb",
        "a\0b",
        "a#b",
        "a..b",
        "é",
        "",
        &long,
    ];
    for domain in domains {
        let mut network = honest.clone();
        network.search = list([domain]);
        let reason = guest.refused(Request::SetUpNetwork(network));
        let field = Field::Network;
        assert!(
            matches!(&reason, Reason::Invalid { field: at, rule: Rule::Domain, .. } if *at == field),
            "{domain:?}: {reason:?}"
        );
    }
    // The host name is made from the container's id.
    guest.mount_layers(&workload);
    let injected = format!("{:0<64}", "x\n1.1.1.1 ip6-localhost");
    let layers = workload.overlay_layers();
    let layers = list(layers.iter().map(String::as_str));
    let reason = guest.refused(Request::MountOverlay { container: &injected, layers, scratch: None });
    assert!(matches!(reason, Reason::Invalid { rule: Rule::ContainerId, .. }), "{reason:?}");
    guest.done(Request::SetUpNetwork(honest));
    guest.mount_overlay(&workload, &id('1'));
    let process = guest.create(&workload, &id('1'), OUTPUT);
    let (output, _) = guest.finish(process);
    assert_eq!(
        output,
        "111111111111\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.2.15\t111111111111\n\
         nameserver 10.0.2.3\nsearch example.com\n"
    );
}

/// The frames of an honest host's requests, numbered from 1.
fn frames(requests: &[Request<'_>]) -> Vec<Vec<u8>> {
    (1..)
        .zip(requests)
        .map(|(sequence, request)| encode(&ToGuest { sequence, request: request.clone() }).unwrap())
        .collect()
}

/// From layers to a running container.
fn conversation<'a>(workload: &'a Workload, container: &'a str, layers: &'a [String]) -> Vec<Request<'a>> {
    let mut requests: Vec<Request<'_>> = Vec::new();
    for (layer, device) in workload.layers.iter().zip(layers.iter().rev()) {
        let (root_hash, data_blocks) = (layer.root_hash, layer.data_blocks);
        requests.push(Request::MountDevice { device, root_hash, data_blocks });
    }
    let layers = list(layers.iter().map(String::as_str));
    requests.push(Request::MountOverlay { container, layers, scratch: None });
    requests.push(create(container, workload.process(Stdio::default())));
    requests
}

/// Sends these frames on a connection of their own, all at once; returns what is answered until there are as many answers, or
/// the guest hangs up.
fn say(machine: &mut Machine, frames: &[Vec<u8>]) -> Vec<Result<(), Reason>> {
    let (mut control, _) = machine.control().unwrap();
    // The guest may hang up before it has taken all of it.
    let _ = control.send_bytes(&frames.concat());
    let mut answers = Vec::new();
    while answers.len() < frames.len()
        && let Ok(Some(body)) = control.receive()
    {
        match decode::<FromGuest<'_>>(&body).unwrap() {
            FromGuest::Reply { result: Ok(Answer::Done | Answer::Started { .. }), .. } => {
                answers.push(Ok(()))
            }
            FromGuest::Reply { result: Err(Refusal { reason, .. }), .. } => answers.push(Err(reason)),
            FromGuest::Exited { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    answers
}

/// T04: what was asked for once is a new request when it is sent again, and is decided on again.
#[test]
fn t04_what_was_sent_before_does_not_happen_twice() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["sleep", "600"], GenerateOptions::default());
    let mut guest = stage.start(&workload);
    drop(guest.session);
    let (container, layers) = (id('1'), workload.overlay_layers());
    let frames = frames(&conversation(&workload, &container, &layers));
    let honest = say(&mut guest.machine, &frames);
    assert!(honest.iter().all(Result::is_ok) && honest.len() == frames.len(), "{honest:?}");
    // The whole conversation, word by word: each layer, the overlay, the container.
    let again = say(&mut guest.machine, &frames);
    let in_use = |field| Err(Reason::InUse { field });
    let mut expected = vec![in_use(Field::Device); layers.len()];
    expected.extend([in_use(Field::Container), in_use(Field::Container)]);
    assert_eq!(again, expected);
    // A part of it: the last request, the first twice, an earlier one.
    let out_of_sequence = |expected| Err(Reason::OutOfSequence { expected });
    assert_eq!(say(&mut guest.machine, &frames[frames.len() - 1..]), [out_of_sequence(1)]);
    let twice = [frames[0].clone(), frames[0].clone(), frames[1].clone()];
    assert_eq!(say(&mut guest.machine, &twice), [in_use(Field::Device), out_of_sequence(2)]);
    let back = [frames[0].clone(), frames[1].clone(), frames[0].clone()];
    assert_eq!(
        say(&mut guest.machine, &back)[2..],
        [out_of_sequence(3)],
        "an earlier number is never right again"
    );
    // A policy, too.
    let policy =
        encode(&ToGuest { sequence: 1, request: Request::SetPolicy { image: &workload.policy.image } });
    let refused = say(&mut guest.machine, &[policy.unwrap()]);
    assert!(matches!(refused[..], [Err(Reason::WrongPhase { .. })]), "{refused:?}");
    // The honest twin: a new container is another request.
    guest.session = guest.machine.session().unwrap();
    let Reply::Properties(properties) = guest.done(Request::GetProperties) else { panic!("no properties") };
    assert_eq!((properties.containers.len(), properties.processes.len()), (1, 1));
    guest.mount_overlay(&workload, &id('2'));
    guest.create(&workload, &id('2'), Stdio::default());
}

/// I07 (hcsshim `2e97c9bb3`): while one host has containers created, another asks for their layers to be exchanged, again and
/// again. All interleavings of two hosts' requests are in `src/gate/tests/interleavings.rs`; here are two real connections.
#[test]
fn i07_a_second_host_does_not_get_a_word_in_while_the_first_is_served() {
    let Some(stage) = stage() else { return };
    const ROUNDS: usize = 12;
    let workload = stage.workload("busybox", &["cat", "/etc/passwd"], GenerateOptions::default());
    let guest = stage.start(&workload);
    let layers = workload.overlay_layers();
    let top = &workload.layers[workload.layers.len() - 1];
    // Take a layer away, and put another in its place.
    let evil = [
        Request::UnmountDevice { device: &layers[0] },
        Request::UnmountOverlay { container: &id('1') },
        Request::MountDevice { device: &layers[1], root_hash: top.root_hash, data_blocks: top.data_blocks },
    ];
    let evil = frames(&evil).concat();
    let (done, connector) = (AtomicBool::new(false), guest.session.connector().clone());
    let tried = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut tried = 0;
            while !done.load(Ordering::Acquire) {
                let mut second = connector.connect(CONTROL_PORT).unwrap();
                second.set_read_timeout(Some(LONG)).unwrap();
                let _ = second.write_all(&evil);
                let mut answer = Vec::new();
                let _ = second.read_to_end(&mut answer);
                assert!(answer.is_empty(), "{answer:?}");
                tried += 1;
            }
            tried
        });
        for round in 1..=ROUNDS {
            let container = format!("{round:064x}");
            let process = guest.run(&workload, &container, OUTPUT);
            let (output, status) = guest.finish(process);
            assert!(output.starts_with("root:") && status == ExitStatus::Code(0), "{output}");
            guest.done(Request::ShutdownContainer { container: &container });
            guest.done(Request::UnmountOverlay { container: &container });
            for device in &layers {
                guest.done(Request::UnmountDevice { device });
            }
        }
        done.store(true, Ordering::Release);
        other.join().unwrap()
    });
    assert!(tried > ROUNDS, "{tried} times");
    // What the log says is what the first host did, and nothing else.
    let Reply::Audit(log) = guest.done(Request::ReadAudit { first: 1 }) else { panic!("no log") };
    let expected = 1 + ROUNDS * (2 * layers.len() + 4) + 1;
    assert_eq!(log.entries.len(), expected);
}
