//! From a new process to the program it is to run.
//!
//! The child of a `spawn` is a copy of the init inside the container's namespaces. It gives up everything the init has,
//! takes on what the decision says and executes the program; at the first error it says which step failed, over a pipe
//! that closes by itself when the program starts, and ends. It never returns into the init's code and asks for next to
//! no memory.

use super::pod::Pod;
use super::privileges::Privileges;
use super::rootfs::Bind;
use super::time::Deadline;
use super::{path, rootfs, stdio, stdio::ChildEnds};
use crate::gate::action::{ActError, StartProcess};
use crate::gate::memory::{self, OutOfMemory};
use crate::gate::settings::Settings;
use crate::linux::process::{
    Command, NewNamespaces, Settled, close_all_but, exit, forget, fork_sibling, reset_signal_actions, unshare,
};
use crate::linux::{Errno, mount::add_attributes, signal};
use crate::wire::Step;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ffi::CStr;
use core::ops::Range;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fchown, openat};
use rustix::mount::MountAttrFlags;
use rustix::process::{Pid, fchdir, ioctl_tiocsctty, setsid, umask};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// Why.
    pub errno: Errno,
}

impl Failure {
    /// As the gate wants it.
    pub fn into_error(self, undone: bool) -> ActError {
        let errno = u16::try_from(self.errno.raw_os_error()).unwrap_or(0);
        ActError { step: self.step, errno, undone }
    }
}

/// Names the step of an error.
pub trait At<T> {
    /// This step.
    fn at(self, step: Step) -> Result<T, Failure>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, errno })
    }
}

/// A program and what it runs with, ready to be used in the child.
#[derive(Debug)]
pub struct Program<'a> {
    command: Command,
    working_dir: String,
    privileges: Privileges<'a>,
}

impl<'a> Program<'a> {
    /// That of this decision, in a container of these settings.
    pub fn new(process: &StartProcess<'_>, settings: &'a Settings) -> Result<Self, Failure> {
        let (args, env) = (process.args.as_slice(), process.env.as_slice());
        let name = args.first().copied().ok_or(Errno::INVAL).at(Step::Execute)?;
        Ok(Self {
            command: candidates(name, env)
                .and_then(|paths| Command::new(&paths, args, env))
                .at(Step::Execute)?,
            working_dir: memory::text(process.working_dir.as_str())
                .map_err(|OutOfMemory| Errno::NOMEM)
                .at(Step::WorkingDir)?,
            privileges: Privileges::new(
                &process.user,
                process.umask,
                process.capabilities,
                process.no_new_privileges,
                settings,
            )
            .at(Step::Privileges)?,
        })
    }
}

/// Where a program of this name may be: there, if the name has a slash; otherwise in each absolute directory of the
/// environment's own PATH.
fn candidates(name: &str, env: &[&str]) -> Result<Vec<CString>, Errno> {
    if name.contains('/') {
        let mut paths = room(1)?;
        paths.push(path::c_string(&[name])?);
        return Ok(paths);
    }
    let directories = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or("");
    // SECURITY: an empty or relative entry would mean the working directory, which the policy did not name as such.
    let directories = || directories.split(':').filter(|directory| directory.starts_with('/'));
    let mut paths = room(directories().count())?;
    for directory in directories() {
        // One that is longer than any path can be is nowhere.
        if directory.len() + name.len() < PATH_MAX {
            paths.push(path::c_string(&[directory, "/", name])?);
        }
    }
    if paths.is_empty() { Err(Errno::NOENT) } else { Ok(paths) }
}

/// Bytes of a path that the kernel takes, the NUL included.
const PATH_MAX: usize = 4096;

/// An empty list with room for this many, or `NOMEM`.
pub fn room<T>(count: usize) -> Result<Vec<T>, Errno> {
    memory::room(count).map_err(|OutOfMemory| Errno::NOMEM)
}

/// Where the child finds itself.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In new namespaces, which it is to furnish; it is to join the pod's.
    New {
        /// Its root filesystem.
        rootfs: &'a CStr,
        /// Its filesystem of terminals.
        terminals: BorrowedFd<'a>,
        /// What is mounted in it beside that.
        binds: &'a [Bind],
        /// Whether nothing can be written to the root filesystem itself.
        read_only: bool,
        /// Outside of the namespace of processes that containers share, which it is to join: its first process, and where
        /// they are shown. `None`: in a new one.
        shared: Option<(BorrowedFd<'a>, &'a CStr)>,
    },
    /// Outside of a running container, which it is to join.
    Running {
        /// The container's first process.
        init: BorrowedFd<'a>,
    },
}

impl Place<'_> {
    /// The namespaces that the child is made in.
    pub fn namespaces(self) -> NewNamespaces {
        match self {
            Self::New { shared: None, .. } => NewNamespaces::CONTAINER,
            Self::New { shared: Some(_), .. } => NewNamespaces::MOUNT,
            Self::Running { .. } => NewNamespaces::NONE,
        }
    }

    /// Whether others are in the namespace of processes that it is to be in.
    fn has_others(self) -> bool {
        !matches!(self, Self::New { shared: None, .. })
    }
}

/// What the child does. `report` and the ends are not among descriptors 0–2. `secrets` is where in memory the init has its
/// own.
pub fn child(
    pod: &Pod,
    place: Place<'_>,
    program: &Program<'_>,
    stdio: &ChildEnds,
    secrets: &[Range<usize>],
    report: &OwnedFd,
) -> Infallible {
    let Err(failure) = become_program(pod, place, program, stdio, secrets, report);
    // If nobody reads it any more, nobody wants to know.
    let _ = rustix::io::write(report, &encode(Message::Failed(failure)));
    exit(1)
}

fn become_program(
    pod: &Pod,
    place: Place<'_>,
    program: &Program<'_>,
    stdio: &ChildEnds,
    secrets: &[Range<usize>],
    report: &OwnedFd,
) -> Result<Infallible, Failure> {
    let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
    let [stdin, stdout, stderr, terminal] =
        [&stdio.stdin, &stdio.stdout, &stdio.stderr, &stdio.terminal].map(|fd| fd.as_ref().map(AsFd::as_fd));
    let place_fd = match place {
        Place::New { terminals, .. } => terminals,
        Place::Running { init } => init,
    };
    if let Place::New { shared, .. } = place {
        pod.join().at(Step::EnterNamespaces)?;
        if let Some((holder, _)) = shared {
            // That of this process's children, not its own.
            move_into_thread_name_spaces(holder, ThreadNameSpaceType::PROCESS_ID)
                .at(Step::EnterNamespaces)?;
        }
    }
    let kept = [Some(report.as_fd()), stdin, stdout, stderr, terminal, Some(place_fd)];
    close_all_but(kept.map(number)).at(Step::Descriptors)?;
    reset_signal_actions();
    signal::set_blocked(0).at(Step::Clone)?;
    umask(Mode::empty());
    match place {
        Place::New { rootfs, terminals, binds, shared, .. } => {
            // Only now: the root of a control group namespace is the group of the process that makes it.
            unshare(NewNamespaces::CONTROL_GROUP).at(Step::Clone)?;
            rustix::system::sethostname(pod.hostname().as_bytes()).at(Step::Clone)?;
            pod.apply_sysctls().at(Step::EnterNamespaces)?;
            let names = pod.names.as_ref().map(|names| (names.resolv_conf(), names.hosts(pod.hostname())));
            let files =
                names.as_ref().map(|(resolv_conf, hosts)| [("resolv.conf", *resolv_conf), ("hosts", hosts)]);
            let files = files.as_ref().map_or(&[][..], |files| files);
            rootfs::enter(rootfs, shared.map(|(_, place)| place), terminals, terminal, binds, files)
                .at(Step::Rootfs)?;
        }
        Place::Running { init } => {
            let all = ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::CONTROL_GROUP
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
                | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
                | ThreadNameSpaceType::NETWORK
                // That of this process's children, not its own.
                | ThreadNameSpaceType::PROCESS_ID;
            move_into_thread_name_spaces(init, all).at(Step::EnterNamespaces)?;
        }
    }
    connect([stdin, stdout, stderr], terminal, &program.privileges).at(Step::Descriptors)?;
    close_all_but([report.as_raw_fd(), number(terminal)]).at(Step::Descriptors)?;
    enter_working_dir(place, &program.working_dir).at(Step::WorkingDir)?;
    let command = program.command.settle().at(Step::Memory)?;
    program.privileges.apply().at(Step::Privileges)?;
    if place.has_others() {
        step_in(secrets, report).at(Step::Clone)?;
    }
    setsid().at(Step::Clone)?;
    if let Some(terminal) = terminal {
        ioctl_tiocsctty(terminal).at(Step::Descriptors)?;
    }
    rustix::io::write(report, &encode(Message::Executing)).at(Step::Execute)?;
    Err(Failure { step: Step::Execute, errno: run_first(&command) })
}

/// Goes on as a process inside the PID namespace that was entered; the one outside ends here.
///
/// SECURITY (CVE-2019-5736 and its kin): only now can processes of containers see this one. Whatever they may do to
/// it, it has nothing of the init's any more: no descriptor, no privilege that was not decided on, and no secret in memory.
#[allow(unsafe_code)]
fn step_in(secrets: &[Range<usize>], report: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: all that this process uses from here on is on its stack and in a settled command. It frees nothing.
    unsafe { forget(secrets) }?;
    let (reader, writer) = stdio::pipe()?;
    match fork_sibling()? {
        Some(inside) => {
            rustix::io::write(report, &encode(Message::Inside(inside)))?;
            // Not before the init knows whom to wait for and to kill.
            rustix::io::write(&writer, &[0])?;
            exit(0)
        }
        None => {
            drop(writer);
            match rustix::io::read(&reader, &mut [0u8])? {
                0 => exit(1),
                _ => Ok(()),
            }
        }
    }
}

/// Makes the streams, or the terminal, descriptors 0, 1 and 2. Those that the host does not get are a null device.
fn connect(
    streams: [Option<BorrowedFd<'_>>; 3],
    terminal: Option<BorrowedFd<'_>>,
    privileges: &Privileges<'_>,
) -> Result<(), Errno> {
    if let Some(terminal) = terminal {
        // Its group is that of all terminals.
        fchown(terminal, Some(privileges.uid()), None)?;
        dup2_stdin(terminal)?;
        dup2_stdout(terminal)?;
        return dup2_stderr(terminal);
    }
    for pipe in streams.into_iter().flatten() {
        // So that the program can open /dev/stdout and its like again.
        fchown(pipe, Some(privileges.uid()), Some(privileges.gid()))?;
    }
    let null = rootfs::private_null()?;
    let [stdin, stdout, stderr] = streams.map(|stream| stream.unwrap_or(null.as_fd()));
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)
}

/// A new container's working directory is made if it is missing, as other runtimes do.
fn enter_working_dir(place: Place<'_>, working_dir: &str) -> Result<(), Errno> {
    let root = openat(CWD, c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let directory = match place {
        Place::New { read_only, .. } => {
            let directory = path::make_directories(root.as_fd(), working_dir)?;
            if read_only {
                // What is mounted on top of it has attributes of its own.
                add_attributes(root.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY)?;
            }
            directory
        }
        Place::Running { .. } => path::directory(root.as_fd(), &path::c_string(&[working_dir])?)?,
    };
    fchdir(directory)
}

/// Executes the first of the candidates that can be. Returns why none could.
fn run_first(command: &Settled) -> Errno {
    let mut found = Errno::NOENT;
    for path in command.paths() {
        let errno = match path::executable(path) {
            Ok(()) => command.execute(path),
            Err(errno) => errno,
        };
        match errno {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => found = errno,
            other => return other,
        }
    }
    found
}

/// What the child says. The pipe's end after `Executing` means that the program started; without it, that the child
/// died on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// All that is left to do is to execute the program, or to wait.
    Executing,
    /// It ends here.
    Failed(Failure),
    /// The process of this number goes on in the child's place. Never after another message.
    Inside(Pid),
}

/// Bytes of a message: its kind, or a step's number from 1, and the error's or process's number.
const MESSAGE: usize = 8;
const EXECUTING: u32 = 0;
const INSIDE: u32 = u32::MAX;
/// The steps of a child, by number from 1.
const STEPS: [Step; 8] = [
    Step::Descriptors,
    Step::Clone,
    Step::EnterNamespaces,
    Step::Rootfs,
    Step::WorkingDir,
    Step::Memory,
    Step::Privileges,
    Step::Execute,
];

/// As it travels.
pub fn encode(message: Message) -> [u8; MESSAGE] {
    let (kind, number) = match message {
        Message::Executing => (EXECUTING, 0),
        Message::Failed(Failure { step, errno }) => {
            let at = STEPS.iter().position(|&other| other == step).unwrap_or(STEPS.len());
            (u32::try_from(at + 1).unwrap_or(INSIDE - 1), errno.raw_os_error())
        }
        Message::Inside(pid) => (INSIDE, pid.as_raw_nonzero().get()),
    };
    let mut bytes = [0; MESSAGE];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn decode([a, b, c, d, number @ ..]: [u8; MESSAGE]) -> Message {
    let number = i32::from_le_bytes(number);
    let failed = |step| {
        // Nothing else than an error's number is taken for one.
        let errno =
            u16::try_from(number).map_or(Errno::PROTO, |number| Errno::from_raw_os_error(number.into()));
        Message::Failed(Failure { step, errno })
    };
    match (u32::from_le_bytes([a, b, c, d]), Pid::from_raw(number.max(0))) {
        (EXECUTING, _) => Message::Executing,
        (INSIDE, Some(pid)) => Message::Inside(pid),
        (kind, _) => {
            let step = usize::try_from(kind).ok().and_then(|kind| STEPS.get(kind.wrapping_sub(1)));
            failed(step.copied().unwrap_or(Step::Clone))
        }
    }
}

/// Waits until the program started, or what went wrong; and gives the process that went on in the child's place. The
/// caller has closed its copy of the writing end.
pub fn outcome(report: &OwnedFd, deadline: &Deadline) -> (Option<Pid>, Result<(), Failure>) {
    let mut inside = None;
    let result = listen(report, deadline, &mut inside);
    (inside, result)
}

fn listen(report: &OwnedFd, deadline: &Deadline, inside: &mut Option<Pid>) -> Result<(), Failure> {
    let mut executing = false;
    let mut first = true;
    loop {
        match next(report, deadline)? {
            None if executing => return Ok(()),
            // It was killed: out of memory, or by its container.
            None => return Err(Failure { step: Step::Clone, errno: Errno::CHILD }),
            Some(Message::Executing) => executing = true,
            Some(Message::Failed(failure)) => return Err(failure),
            Some(Message::Inside(pid)) if first => *inside = Some(pid),
            // SECURITY: the child outside says this first of all. After that the container may have got hold of the
            // pipe, and is not believed about whom to signal.
            Some(Message::Inside(_)) => return Err(Failure { step: Step::Clone, errno: Errno::PROTO }),
        }
        first = false;
    }
}

/// Waits for the next message; `None` is the pipe's end.
pub fn next(report: &OwnedFd, deadline: &Deadline) -> Result<Option<Message>, Failure> {
    loop {
        let left = deadline.left().at(Step::Execute)?;
        match poll(&mut [PollFd::new(report, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => continue,
            other => other.at(Step::Execute)?,
        };
        let mut message = [0; MESSAGE];
        match rustix::io::read(report, &mut message) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(decode(message))),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure { step: Step::Execute, errno }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str, env: &[&str]) -> Vec<String> {
        candidates(name, env).unwrap().into_iter().map(|path| path.into_string().unwrap()).collect()
    }

    #[test]
    fn a_program_is_looked_for_in_the_containers_own_path_in_order() {
        let env = ["A=PATH=/no", "PATH=/usr/local/bin:/bin", "PATHS=/no"];
        assert_eq!(paths("python3", &env), ["/usr/local/bin/python3", "/bin/python3"]);
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        assert_eq!(paths("/bin/sh", &["PATH=/usr/bin"]), ["/bin/sh"]);
        assert_eq!(paths("bin/sh", &["PATH=/usr/bin"]), ["bin/sh"]);
    }

    #[test]
    fn the_working_directory_is_never_searched() {
        assert_eq!(paths("sh", &["PATH=:.:bin:/bin:"]), ["/bin/sh"]);
        assert_eq!(candidates("sh", &["PATH="]), Err(Errno::NOENT));
        let long = |length: usize| format!("PATH=/{}", "a".repeat(length - 1));
        assert_eq!(paths("sh", &[&long(4093)])[0].len(), 4096);
        assert_eq!(candidates("sh", &[&long(4094)]), Err(Errno::NOENT));
        assert_eq!(candidates("sh", &[]), Err(Errno::NOENT));
    }

    #[test]
    fn every_step_of_a_child_arrives_as_it_was_sent() {
        assert_eq!(decode(encode(Message::Executing)), Message::Executing);
        for step in STEPS {
            for errno in [Errno::PERM, Errno::NOENT, Errno::OPNOTSUPP] {
                let message = Message::Failed(Failure { step, errno });
                assert_eq!(decode(encode(message)), message);
            }
        }
        let inside = Message::Inside(Pid::from_raw(4_194_303).unwrap());
        assert_eq!(decode(encode(inside)), inside);
    }

    /// What the init makes of these messages, and of their end.
    fn heard(messages: &[Message]) -> (Option<Pid>, Result<(), Failure>) {
        let (reader, writer) = stdio::pipe().unwrap();
        for &message in messages {
            rustix::io::write(&writer, &encode(message)).unwrap();
        }
        drop(writer);
        outcome(&reader, &Deadline::after_seconds(10))
    }

    #[test]
    fn c10_a_child_says_first_of_all_which_process_goes_on_and_is_not_believed_later() {
        let pid = |number| Pid::from_raw(number).unwrap();
        let (inside, other) = (Message::Inside(pid(5)), Message::Inside(pid(6)));
        let failed = |errno| Err(Failure { step: Step::Clone, errno });
        assert_eq!(heard(&[Message::Executing]), (None, Ok(())));
        assert_eq!(heard(&[inside, Message::Executing]), (Some(pid(5)), Ok(())));
        assert_eq!(heard(&[inside, other]), (Some(pid(5)), failed(Errno::PROTO)));
        assert_eq!(heard(&[Message::Executing, other]), (None, failed(Errno::PROTO)));
        // It was killed before it came so far.
        assert_eq!(heard(&[]), (None, failed(Errno::CHILD)));
        assert_eq!(heard(&[inside]), (Some(pid(5)), failed(Errno::CHILD)));
        let failure = Failure { step: Step::Privileges, errno: Errno::PERM };
        assert_eq!(heard(&[Message::Failed(failure)]), (None, Err(failure)));
    }
}
