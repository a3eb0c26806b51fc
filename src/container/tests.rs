//! Real containers on the machine that runs the tests. Each test needs root and a process of its own; without root it
//! says that it was skipped. The image is the machine's own root filesystem under an overlay, so the workloads are the
//! ordinary programs of a distribution.

use super::*;
use crate::gate::action::Group;
use crate::gate::fields::{Args, CapabilitySets, Env, Umask, WorkingDir};
use crate::wire::{Capabilities, List, Stdio};
use rustix::event::epoll::{self, EventData};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{WaitOptions, wait as wait_any};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::{env, fs, println, process};

/// Docker's default capabilities.
const DOCKER: u64 = 0xa804_25fb;
/// All but CAP_SYS_RESOURCE, which root of a machine for tests may lack itself.
const ALL: u64 = ((1 << 41) - 1) & !(1 << 24);
/// Token of processes: one of them ended.
const ENDED: u64 = 1;
const BASE: &str = "/mnt";

/// Runs `body` alone in a process with a mount namespace of its own.
fn alone(test: &str, body: impl FnOnce(&mut Machine)) {
    if !rustix::process::geteuid().is_root() {
        println!("{test}: skipped, needs root");
        return;
    }
    if env::var("PARMA_ALONE").as_deref() != Ok(test) {
        let status = process::Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("container::tests::{test}"), "--nocapture", "--test-threads=1"])
            .env("PARMA_ALONE", test)
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    body(&mut Machine::new());
}

struct Machine {
    containers: Containers,
    epoll: OwnedFd,
    last: u32,
    exits: Vec<(ProcessId, ExitStatus)>,
}

/// What a process may be started with.
struct Spec<'a> {
    args: &'a [&'a str],
    env: &'a [&'a str],
    dir: &'a str,
    uid: u32,
    gids: &'a [u32],
    caps: Capabilities,
    no_new_privileges: bool,
    stdin: bool,
}

fn caps(set: u64) -> Capabilities {
    Capabilities { bounding: set, effective: set, inheritable: 0, permitted: set, ambient: 0 }
}

impl<'a> Spec<'a> {
    fn new(args: &'a [&'a str]) -> Self {
        let env = &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];
        Self {
            args,
            env,
            dir: "/",
            uid: 0,
            gids: &[0],
            caps: caps(DOCKER),
            no_new_privileges: true,
            stdin: false,
        }
    }

    fn process(&self, number: u32) -> StartProcess<'a> {
        StartProcess {
            process: ProcessId(number),
            args: Args::parse(&List::from_vec(self.args.to_vec()).unwrap()).unwrap(),
            env: Env::parse(&List::from_vec(self.env.to_vec()).unwrap()).unwrap(),
            working_dir: WorkingDir::parse(self.dir).unwrap(),
            user: User {
                uid: self.uid,
                name: String::new(),
                groups: self.gids.iter().map(|&gid| Group { gid, name: String::new() }).collect(),
            },
            umask: Umask::new(0o027).unwrap(),
            capabilities: CapabilitySets::new(self.caps).unwrap(),
            no_new_privileges: self.no_new_privileges,
            stdio: Stdio { stdin: self.stdin, stdout: true, stderr: true },
        }
    }
}

fn id(digit: char) -> ContainerId {
    ContainerId::parse(&digit.to_string().repeat(64)).unwrap()
}

impl Machine {
    fn new() -> Self {
        #[allow(deprecated)]
        rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        mount("tmpfs", BASE, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::create_dir(format!("{BASE}/cgroup")).unwrap();
        mount("cgroup2", format!("{BASE}/cgroup"), "cgroup2", MountFlags::empty(), None).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        // Tests that run at the same time share the machine's cgroup2 filesystem, so each has a root of its own in it.
        let cgroup = format!("{BASE}/cgroup/parma-test-{}", process::id());
        fs::create_dir(&cgroup).unwrap();
        let available = fs::read_to_string(format!("{BASE}/cgroup/cgroup.controllers")).unwrap();
        // A machine with the old hierarchies has none here.
        let controllers = if available.contains("pids") { Places::default().controllers } else { "" };
        if !controllers.is_empty() {
            fs::write(format!("{BASE}/cgroup/cgroup.subtree_control"), controllers).unwrap();
        }
        let places = Places { bundles: format!("{BASE}/c"), cgroup, controllers };
        let containers = Containers::new(&epoll, places).unwrap();
        Self { containers, epoll, last: 0, exits: Vec::new() }
    }

    /// Mounts an overlay over the machine's own root for a container, and gives its path.
    fn rootfs(&self, container: &ContainerId) -> PathBuf {
        let base = PathBuf::from(format!("{BASE}/c/{}", container.as_str()));
        for dir in ["upper", "work", "rootfs"] {
            fs::create_dir_all(base.join(dir)).unwrap();
        }
        let options = format!("lowerdir=/,upperdir={0}/upper,workdir={0}/work", base.display());
        let options = CString::new(options).unwrap();
        mount("overlay", base.join("rootfs"), "overlay", MountFlags::empty(), &*options).unwrap();
        base.join("rootfs")
    }

    fn next(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn create(&mut self, container: ContainerId, spec: &Spec<'_>) -> Result<ProcessId, ActError> {
        let init = spec.process(self.next());
        let process = init.process;
        let permit = Permit::for_test(CreateContainer { container, init });
        self.containers.create_container(permit).map(|()| self.watch(process))
    }

    fn exec(&mut self, container: ContainerId, spec: &Spec<'_>) -> Result<ProcessId, ActError> {
        let process = spec.process(self.next());
        let number = process.process;
        let permit = Permit::for_test(ExecInContainer { container, process });
        self.containers.exec_in_container(permit).map(|()| self.watch(number))
    }

    /// The init's loop has SIGCHLD for this, which the harness's other threads would take.
    fn watch(&self, process: ProcessId) -> ProcessId {
        let (_, pidfd) = self.containers.processes[&process].running.as_ref().unwrap();
        epoll::add(&self.epoll, pidfd, EventData::new_u64(ENDED), EventFlags::IN).unwrap();
        process
    }

    fn shutdown(&mut self, container: ContainerId) -> Result<(), ActError> {
        let result = self.containers.shutdown_container(Permit::for_test(ShutdownContainer { container }));
        self.exits.extend(self.containers.take_exits());
        result
    }

    fn signal(&mut self, process: ProcessId, signal: u8) -> Result<(), ActError> {
        let signal = Signal::new(signal).unwrap();
        self.containers.signal_process(Permit::for_test(SignalProcess { process, signal }))
    }

    /// The other end of an attached stream.
    fn attach(&mut self, process: ProcessId, stream: Stream) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.containers.attach(process, stream, theirs.into()).unwrap();
        ours
    }

    /// Handles one batch of events.
    fn turn(&mut self) {
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 16];
        let count = epoll::wait(&self.epoll, &mut events, None).unwrap();
        for event in &events[..count] {
            match event.data.u64() {
                ENDED => self.reap(),
                token => self.containers.on_event(token, event.flags),
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait_any(WaitOptions::NOHANG) {
            self.exits.extend(self.containers.reaped(pid, status));
        }
    }

    fn exit_of(&mut self, process: ProcessId) -> ExitStatus {
        loop {
            if let Some(&(_, status)) = self.exits.iter().find(|&&(id, _)| id == process) {
                return status;
            }
            self.turn();
        }
    }

    /// Everything that comes out of a stream, the machine being kept going meanwhile.
    fn read_all(&mut self, mut stream: UnixStream) -> Vec<u8> {
        stream.set_nonblocking(true).unwrap();
        let (mut all, mut buffer) = (Vec::new(), [0; 1 << 16]);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return all,
                Ok(count) => all.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.turn(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Standard output and error as text, and the exit.
    fn finish(&mut self, process: ProcessId) -> (String, ExitStatus) {
        let (stdout, stderr) = (self.attach(process, Stream::Stdout), self.attach(process, Stream::Stderr));
        let mut text = self.read_all(stdout);
        text.extend(self.read_all(stderr));
        (String::from_utf8(text).unwrap(), self.exit_of(process))
    }

    /// Runs a shell script in a fresh container and shuts it down.
    fn script(&mut self, container: ContainerId, script: &str, spec: Spec<'_>) -> (String, ExitStatus) {
        self.rootfs(&container);
        let process = self.create(container, &Spec { args: &["sh", "-c", script], ..spec }).unwrap();
        let result = self.finish(process);
        self.shutdown(container).unwrap();
        result
    }

    fn cgroups(&self) -> Vec<String> {
        let root = format!("{BASE}/cgroup/parma-test-{}/parma", process::id());
        let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap());
        entries
            .filter(|e| e.file_type().unwrap().is_dir())
            .map(|e| e.file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let root = format!("{BASE}/cgroup/parma-test-{}", process::id());
        let _ = fs::remove_dir(Path::new(&root).join("parma"));
        let _ = fs::remove_dir(root);
    }
}

fn error(step: Step, errno: Errno) -> ActError {
    Failure { step, errno }.into_error(true)
}

#[test]
fn a_container_sees_itself_and_nothing_else() {
    alone("a_container_sees_itself_and_nothing_else", |machine| {
        let script = "echo pid $$; hostname; umask; pwd; id -u; id -G; grep 0:: /proc/self/cgroup; \
            echo procs /proc/[0-9]*; ls /dev /dev/pts; echo; cat /sys/class/net/lo/operstate; ls /sys/class/net; \
            ls -l /proc/self/fd | grep -c -- '->'; ulimit -n; ulimit -Hn; ulimit -c; \
            grep -E 'Cap|NoNewPrivs|Seccomp:|SigBlk|SigIgn' /proc/self/status; cat /proc/self/mountinfo";
        let (text, status) =
            machine.script(id('a'), script, Spec { dir: "/srv/made/here", ..Spec::new(&[]) });
        println!("{text}");
        assert_eq!(status, ExitStatus::Code(0));
        assert!(text.starts_with("pid 1\naaaaaaaaaaaa\n0027\n/srv/made/here\n0\n0\n0::/\n"));
        assert!(text.contains("procs /proc/1\n") || text.contains("procs /proc/1 "));
        assert!(text.contains("CapEff:\t00000000a80425fb") && text.contains("CapBnd:\t00000000a80425fb"));
        assert!(text.contains("CapInh:\t0000000000000000") && text.contains("CapAmb:\t0000000000000000"));
        assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"));
        assert!(text.contains("SigBlk:\t0000000000000000") && text.contains("SigIgn:\t0000000000000000"));
        // 0, 1, 2 and the directory that ls reads.
        assert!(text.contains("\nlo\n4\n1024\n"));
        let dev = "/dev:\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n";
        assert!(text.contains(dev) && text.contains("/dev/pts:\nptmx\n"));
        let mounts: Vec<&str> = text.lines().filter(|line| line.contains(" - ")).collect();
        assert!(!mounts.iter().any(|line| line.contains(BASE) && !line.contains("lowerdir=/")));
        assert!(mounts.iter().all(|line| !line.contains("shared:") && !line.contains("master:")));
        assert!(machine.cgroups().is_empty());
    });
}

#[test]
fn what_is_masked_is_empty_and_what_is_read_only_cannot_be_written() {
    alone("what_is_masked_is_empty_and_what_is_read_only_cannot_be_written", |machine| {
        let script = "cat /proc/kcore /proc/keys /proc/timer_list /proc/kmsg; ls -A /sys/firmware /proc/scsi; \
            for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/class/net/lo/mtu /sys/fs/cgroup/pids.max \
            /sys/fs/cgroup/cgroup.procs; do (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
            mknod /tmp/mem c 1 1 && echo made mem; mknod /tmp/sda b 8 0 && echo made sda; \
            mknod /tmp/null c 1 3 || echo null not made; (: < /tmp/null) || echo null not opened; \
            echo x > /dev/null && echo y > /dev/shm/y && cat /dev/shm/y";
        let spec = Spec { caps: caps(ALL), ..Spec::new(&[]) };
        let (text, _) = machine.script(id('b'), script, spec);
        println!("{text}");
        assert!(!text.contains("wrote") && !text.contains("made mem") && !text.contains("made sda"));
        // A listed device can be made, but the root filesystem is mounted without device nodes.
        assert!(!text.contains("null not made") && text.contains("null not opened"));
        assert!(text.contains("\ny\n") || text.starts_with("y\n") || text.contains("y\nmknod"));
    });
}

#[test]
fn t03_a_container_can_make_no_vsock_socket_and_the_honest_ones_work() {
    alone("t03_a_container_can_make_no_vsock_socket_and_the_honest_ones_work", |machine| {
        let script = "perl -e 'for my $f (1, 2, 10, 40) { $! = 0; \
            print \"$f \", (socket(my $s, $f, 1, 0) ? \"ok\" : $!+0), \"\\n\" }'";
        let spec = Spec { caps: caps(ALL), ..Spec::new(&[]) };
        let (text, status) = machine.script(id('c'), script, spec);
        assert_eq!((text.as_str(), status), ("1 ok\n2 ok\n10 ok\n40 97\n", ExitStatus::Code(0)));
    });
}

#[test]
fn c06_a_process_gets_exactly_the_user_groups_and_capabilities_decided_on() {
    alone("c06_a_process_gets_exactly_the_user_groups_and_capabilities_decided_on", |machine| {
        let net_bind = 1 << 10;
        let kept = Capabilities { inheritable: net_bind, ambient: net_bind, ..caps(net_bind) };
        let script =
            "id -u; id -g; id -G; grep -E 'Cap|NoNew' /proc/self/status; echo again > /dev/stdout; touch /x";
        let spec =
            Spec { uid: 1234, gids: &[7, 8, 9], caps: kept, no_new_privileges: false, ..Spec::new(&[]) };
        let (text, _) = machine.script(id('d'), script, spec);
        let set = "0000000000000400";
        let expected = format!(
            "1234\n7\n7 8 9\nCapInh:\t{set}\nCapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\nCapAmb:\t{set}\n\
            NoNewPrivs:\t0\nagain\ntouch: cannot touch '/x': Permission denied\n"
        );
        assert_eq!(text, expected);
        let spec = Spec { uid: 1234, gids: &[7], caps: caps(DOCKER), ..Spec::new(&[]) };
        let (text, _) = machine.script(id('e'), "grep -E 'CapEff|CapPrm' /proc/self/status", spec);
        assert_eq!(text, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n");
    });
}

#[test]
fn a_program_that_cannot_be_executed_leaves_nothing_behind() {
    alone("a_program_that_cannot_be_executed_leaves_nothing_behind", |machine| {
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

#[test]
fn i16_a_mount_target_that_is_a_link_is_refused() {
    alone("i16_a_mount_target_that_is_a_link_is_refused", |machine| {
        let outside = PathBuf::from(BASE).join("outside");
        fs::create_dir(&outside).unwrap();
        for (container, name) in [('0', "proc"), ('1', "sys"), ('2', "dev")] {
            let rootfs = machine.rootfs(&id(container));
            fs::remove_dir_all(rootfs.join(name)).unwrap();
            symlink(&outside, rootfs.join(name)).unwrap();
            let result = machine.create(id(container), &Spec::new(&["true"]));
            assert_eq!(result, Err(error(Step::Rootfs, Errno::NOTDIR)), "{name}");
            fs::remove_file(rootfs.join(name)).unwrap();
            // Missing is no attack.
            let process = machine.create(id(container), &Spec::new(&["true"])).unwrap();
            assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
            machine.shutdown(id(container)).unwrap();
        }
        assert!(fs::read_dir(outside).unwrap().next().is_none());
    });
}

#[test]
fn i16_a_user_file_that_is_a_link_stays_inside_the_image() {
    alone("i16_a_user_file_that_is_a_link_stays_inside_the_image", |machine| {
        let container = id('3');
        let rootfs = machine.rootfs(&container);
        let secret = PathBuf::from(BASE).join("passwd");
        fs::write(&secret, "secret:x:5:5:::\n").unwrap();
        let passwd = rootfs.join("etc/passwd");
        let resolve = |machine: &Machine, name| {
            machine.containers.resolve_user(&container, UserSpec::parse(name).unwrap()).map(|user| user.uid)
        };
        assert_eq!(resolve(machine, "daemon"), Ok(1));
        for target in
            [secret.to_str().unwrap(), "../../../../../mnt/passwd", "/proc/1/root/mnt/passwd", "/nowhere"]
        {
            fs::remove_file(&passwd).unwrap();
            symlink(target, &passwd).unwrap();
            assert_eq!(resolve(machine, "secret"), Err(error(Step::ResolveUser, Errno::NOENT)), "{target}");
        }
        fs::remove_file(&passwd).unwrap();
        symlink("passwd.real", &passwd).unwrap();
        fs::write(rootfs.join("etc/passwd.real"), "inside:x:6:6:::\n").unwrap();
        assert_eq!(resolve(machine, "inside"), Ok(6));
        fs::remove_file(&passwd).unwrap();
        assert!(process::Command::new("mkfifo").arg(&passwd).status().unwrap().success());
        assert_eq!(resolve(machine, "inside"), Err(error(Step::ResolveUser, Errno::INVAL)));
        fs::remove_file(&passwd).unwrap();
        fs::write(&passwd, [b'\n'; (1 << 20) + 1]).unwrap();
        assert_eq!(resolve(machine, "0"), Err(error(Step::ResolveUser, Errno::FBIG)));
    });
}

#[test]
fn an_exec_joins_its_container_and_dies_with_it() {
    alone("an_exec_joins_its_container_and_dies_with_it", |machine| {
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
    alone("c11_a_signal_reaches_exactly_one_process_and_an_ended_one_is_no_error", |machine| {
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
    alone("a_shutdown_ends_everything_and_reports_every_exit", |machine| {
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

#[test]
fn input_reaches_the_process_and_its_end_too() {
    alone("input_reaches_the_process_and_its_end_too", |machine| {
        let container = id('8');
        machine.rootfs(&container);
        let spec = Spec { stdin: true, ..Spec::new(&["cat"]) };
        let process = machine.create(container, &spec).unwrap();
        let (mut stdin, stdout) =
            (machine.attach(process, Stream::Stdin), machine.attach(process, Stream::Stdout));
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let bytes = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let received = machine.read_all(stdout);
        writer.join().unwrap();
        assert!(received == sent);
        assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_a_stream_is_attached_once_and_only_if_it_was_granted() {
    alone("c12_a_stream_is_attached_once_and_only_if_it_was_granted", |machine| {
        let container = id('9');
        machine.rootfs(&container);
        let process = machine.create(container, &Spec::new(&["sh", "-c", "cat; sleep 1000"])).unwrap();
        assert_eq!(machine.containers.attachable(process, Stream::Stdin), Err(NotAttachable::Unknown));
        assert_eq!(machine.containers.attachable(ProcessId(99), Stream::Stdout), Err(NotAttachable::Unknown));
        let _stdout = machine.attach(process, Stream::Stdout);
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let again = machine.containers.attach(process, Stream::Stdout, theirs.into());
        assert_eq!(again, Err(NotAttachable::Again));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_output_after_the_exit_is_delivered_and_a_slow_reader_holds_up_nobody_else() {
    alone("c12_output_after_the_exit_is_delivered_and_a_slow_reader_holds_up_nobody_else", |machine| {
        let container = id('a');
        machine.rootfs(&container);
        let script = "head -c 2000000 /dev/zero; echo done >&2";
        let slow = machine.create(container, &Spec::new(&["sh", "-c", script])).unwrap();
        let slow_out = machine.attach(slow, Stream::Stdout);
        let quick = machine.exec(container, &Spec::new(&["sh", "-c", "echo quick; exit 4"])).unwrap();
        // Nobody reads the slow one meanwhile, and this one is attached only after its exit.
        assert_eq!(machine.exit_of(quick), ExitStatus::Code(4));
        let (text, _) = machine.finish(quick);
        assert_eq!(text, "quick\n");
        assert!(machine.exits.iter().all(|&(process, _)| process != slow));
        assert_eq!(machine.read_all(slow_out).len(), 2_000_000);
        assert_eq!(machine.exit_of(slow), ExitStatus::Code(0));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_when_the_reader_goes_away_the_process_neither_blocks_nor_dies() {
    alone("c12_when_the_reader_goes_away_the_process_neither_blocks_nor_dies", |machine| {
        let container = id('b');
        machine.rootfs(&container);
        let script = "head -c 9000000 /dev/zero && exit 6";
        let process = machine.create(container, &Spec::new(&["sh", "-c", script])).unwrap();
        let mut stdout = machine.attach(process, Stream::Stdout);
        stdout.set_nonblocking(true).unwrap();
        while stdout.read(&mut [0; 1000]).is_err() {
            machine.turn();
        }
        drop(stdout);
        assert_eq!(machine.exit_of(process), ExitStatus::Code(6));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_a_host_that_floods_input_fills_one_pipe_and_no_more() {
    alone("c12_a_host_that_floods_input_fills_one_pipe_and_no_more", |machine| {
        let container = id('c');
        machine.rootfs(&container);
        let spec = Spec { stdin: true, ..Spec::new(&["sh", "-c", "sleep 1000"]) };
        let process = machine.create(container, &spec).unwrap();
        let mut stdin = machine.attach(process, Stream::Stdin);
        stdin.set_nonblocking(true).unwrap();
        let mut sent = 0;
        // Another process's life goes on, and with it the loop; the flood stops being accepted.
        for _ in 0..20 {
            while let Ok(count) = stdin.write(&[0; 4096]) {
                sent += count;
                assert!(sent < 2_000_000);
            }
            let other = machine.exec(container, &Spec::new(&["true"])).unwrap();
            assert_eq!(machine.exit_of(other), ExitStatus::Code(0));
        }
        machine.signal(process, 9).unwrap();
        machine.exit_of(process);
        machine.shutdown(container).unwrap();
    });
}
