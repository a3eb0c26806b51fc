//! Real containers on the machine that runs the tests. Each test needs root and a process of its own; without root it
//! says that it was skipped. The image is the machine's own root filesystem under an overlay, so the workloads are the
//! ordinary programs of a distribution.

mod attestation;
mod life;
mod sealed;
mod settings;
mod shared;
mod streams;
mod terminals;
mod view;

use super::*;
use crate::attest::stream::Exporter;
use crate::gate::action::Group;
use crate::gate::fields::{Args, CapabilitySets, Env, Stdio, Umask, WorkingDir};
use crate::gate::settings::PodSettings;
use crate::wire::{self, Capabilities, WindowSize};
use rustix::event::epoll::{self, EventData};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{WaitOptions, wait as wait_any};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::string::{String, ToString};
use std::time::{SystemTime, UNIX_EPOCH};
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
    /// The root of its control groups.
    cgroup: String,
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
    terminal: Option<WindowSize>,
    output_waits: bool,
    settings: Settings,
    pod: PodSettings,
    sealed: Option<Exporter>,
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
            terminal: None,
            output_waits: false,
            settings: Settings::default(),
            pod: PodSettings::default(),
            sealed: None,
        }
    }

    fn process(&self, number: u32) -> StartProcess<'a> {
        StartProcess {
            process: ProcessId(number),
            args: Args::parse(self.args).unwrap(),
            env: Env::parse(self.env).unwrap(),
            working_dir: WorkingDir::parse(self.dir).unwrap(),
            user: User {
                uid: self.uid,
                name: String::new(),
                groups: self.gids.iter().map(|&gid| Group { gid, name: String::new() }).collect(),
            },
            umask: Umask::new(0o027).unwrap(),
            capabilities: CapabilitySets::new(self.caps).unwrap(),
            no_new_privileges: self.no_new_privileges,
            stdio: Stdio::new(wire::Stdio {
                stdin: self.stdin,
                stdout: true,
                stderr: self.terminal.is_none(),
                terminal: self.terminal,
            })
            .unwrap(),
            output_waits: self.output_waits,
            sealed: self.sealed.clone(),
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
        fs::create_dir(attestation::PLACE).unwrap();
        fs::create_dir(format!("{BASE}/cgroup")).unwrap();
        mount("cgroup2", format!("{BASE}/cgroup"), "cgroup2", MountFlags::empty(), None).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        // Tests that run at the same time share the machine's cgroup2 filesystem, so each has a root of its own in it. One
        // that is killed leaves it, and numbers of processes come again.
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let cgroup = format!("{BASE}/cgroup/parma-test-{}-{started}", process::id());
        fs::create_dir(&cgroup).unwrap();
        let available = fs::read_to_string(format!("{BASE}/cgroup/cgroup.controllers")).unwrap();
        // A machine with the old hierarchies has none here.
        let controllers = if available.contains("pids") { Places::default().controllers } else { "" };
        if !controllers.is_empty() {
            fs::write(format!("{BASE}/cgroup/cgroup.subtree_control"), controllers).unwrap();
        }
        let places = Places {
            bundles: format!("{BASE}/c"),
            cgroup: cgroup.clone(),
            controllers,
            attestation: (attestation::PLACE, attestation::report),
            secrets: [secret_range(), 0..0],
        };
        let containers = Containers::new(&epoll, places).unwrap();
        Self { containers, cgroup, epoll, last: 0, exits: Vec::new() }
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
        self.create_with(container, Vec::new(), spec)
    }

    fn create_with(
        &mut self,
        container: ContainerId,
        mounts: Vec<Mount<'_>>,
        spec: &Spec<'_>,
    ) -> Result<ProcessId, ActError> {
        let init = spec.process(self.next());
        let process = init.process;
        let permit = Permit::for_test(CreateContainer {
            container,
            scratch: container,
            mounts,
            settings: spec.settings.clone(),
            pod: spec.pod.clone(),
            init,
        });
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

    fn dump_stack(&self, process: ProcessId) -> Result<Option<u8>, ActError> {
        self.containers.dump_stack(Permit::for_test(DumpStack { process }))
    }

    fn update(&mut self, container: ContainerId, resources: wire::Resources) -> Result<(), ActError> {
        let resources = Resources::new(resources).unwrap();
        self.containers.update_container(Permit::for_test(UpdateContainer { container, resources }))
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
        let entries =
            fs::read_dir(Path::new(&self.cgroup).join("parma")).unwrap().map(|entry| entry.unwrap());
        entries
            .filter(|e| e.file_type().unwrap().is_dir())
            .map(|e| e.file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir(Path::new(&self.cgroup).join("parma"));
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// What the init would have on its heap.
static SECRET: [u8; 16] = *b"a secret of init";

/// A copy of it that a child can forget, for as long as the test runs.
fn secret_range() -> Range<usize> {
    let range = Vec::leak(SECRET.to_vec()).as_mut_ptr_range();
    range.start.expose_provenance()..range.end.addr()
}

/// A script that looks at every process that has not yet executed its program, for as long as it lives.
fn catcher(machine: &Machine) -> String {
    std::format!(
        r#"$| = 1; print "ready\n";
        while (1) {{
            for my $p (grep {{ /^\d+$/ && $_ > 1 }} map {{ s|/proc/||r }} glob "/proc/[0-9]*") {{
                next unless (readlink "/proc/$p/exe" // "") =~ /parma/;
                open my $s, "<", "/proc/$p/status" or next;
                my ($caps) = grep {{ /CapPrm/ }} <$s>;
                my $fds = join ",", sort grep {{ defined }} map {{ readlink }} glob "/proc/$p/fd/*";
                open my $m, "<:raw", "/proc/$p/mem" or next;
                sysseek $m, {}, 0; my $secret; sysread $m, $secret, 16 or next;
                next unless (readlink "/proc/$p/exe" // "") =~ /parma/;
                print "$caps$fds\n", unpack("H*", $secret), "\n";
            }}
        }}"#,
        machine.containers.secrets[0].start
    )
}

/// What takes its time until it has executed its program, because of the many places where that is not.
fn slow<'a>(args: &'a [&'a str]) -> Spec<'a> {
    static ENV: std::sync::LazyLock<String> =
        std::sync::LazyLock::new(|| std::format!("PATH={}/bin", "/nowhere:".repeat(400)));
    static ENVS: std::sync::LazyLock<[&str; 1]> = std::sync::LazyLock::new(|| [ENV.as_str()]);
    Spec { env: &*ENVS, ..Spec::new(args) }
}

/// Has a [`catcher`], whose output this is, catch processes that `start` starts, and looks whether any had something that is
/// the init's.
fn catch(mut catcher: UnixStream, machine: &mut Machine, mut start: impl FnMut(&mut Machine)) {
    let mut caught = String::new();
    catcher.set_nonblocking(true).unwrap();
    for _ in 0..500 {
        start(machine);
        let mut bytes = [0; 1 << 16];
        while let Ok(count @ 1..) = catcher.read(&mut bytes) {
            caught += str::from_utf8(&bytes[..count]).unwrap();
        }
        if caught.lines().count() > 30 {
            break;
        }
    }
    let mut lines = caught.lines().skip_while(|&line| line != "ready").skip(1);
    let mut times = 0;
    while let (Some(caps), Some(fds), Some(secret)) = (lines.next(), lines.next(), lines.next()) {
        assert_eq!(caps, "CapPrm:\t00000000a80425fb");
        // The three streams, and pipes to say that the program starts.
        assert!(fds.split(',').all(|fd| fd.starts_with("pipe:") || fd.ends_with("/null")), "{fds}");
        assert_eq!(secret, "0".repeat(32));
        times += 1;
    }
    assert!(times > 0, "never caught: {caught}");
}

fn error(step: Step, errno: Errno) -> ActError {
    Failure { step, errno }.into_error(true)
}
