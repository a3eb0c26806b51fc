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
use super::{path, rootfs, stdio::ChildEnds};
use crate::gate::action::{ActError, StartProcess};
use crate::gate::memory::{self, OutOfMemory};
use crate::linux::process::{
    NewNamespaces, Strings, close_all_but, execute, exit, reset_signal_actions, unshare,
};
use crate::linux::{Errno, signal};
use crate::wire::Step;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ffi::CStr;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, fchown, openat};
use rustix::process::{fchdir, setsid, umask};
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
pub struct Program {
    /// Where it may be, in the order in which to try.
    paths: Vec<CString>,
    args: Strings,
    env: Strings,
    working_dir: String,
    privileges: Privileges,
}

impl Program {
    /// That of this decision.
    pub fn new(process: &StartProcess<'_>) -> Result<Self, Failure> {
        let (args, env) = (process.args.as_slice(), process.env.as_slice());
        let name = args.first().copied().ok_or(Errno::INVAL).at(Step::Execute)?;
        Ok(Self {
            paths: candidates(name, env).at(Step::Execute)?,
            args: strings(args).at(Step::Execute)?,
            env: strings(env).at(Step::Execute)?,
            working_dir: memory::text(process.working_dir.as_str())
                .map_err(|OutOfMemory| Errno::NOMEM)
                .at(Step::WorkingDir)?,
            privileges: Privileges::new(
                &process.user,
                process.umask,
                process.capabilities,
                process.no_new_privileges,
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

fn strings(strings: &[&str]) -> Result<Strings, Errno> {
    let mut own = room(strings.len())?;
    for string in strings {
        own.push(path::c_string(&[string])?);
    }
    Strings::new(own)
}

/// An empty list with room for this many, or `NOMEM`.
pub fn room<T>(count: usize) -> Result<Vec<T>, Errno> {
    memory::room(count).map_err(|OutOfMemory| Errno::NOMEM)
}

/// Where the child finds itself.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// In new namespaces, which it is to furnish, and in the pod's.
    New {
        /// Its root filesystem.
        rootfs: &'a CStr,
        /// What is mounted in it beside that.
        binds: &'a [Bind],
    },
    /// In the PID namespace of a running container, whose others it is to join.
    Running {
        /// The container's first process.
        init: BorrowedFd<'a>,
    },
}

/// What the child does. `report` and the ends are not among descriptors 0–2.
pub fn child(
    pod: &Pod,
    place: Place<'_>,
    program: &Program,
    stdio: &ChildEnds,
    report: &OwnedFd,
) -> Infallible {
    let Err(failure) = become_program(pod, place, program, stdio, report);
    // If nobody reads it any more, nobody wants to know.
    let _ = rustix::io::write(report, &encode(Message::Failed(failure)));
    exit(1)
}

fn become_program(
    pod: &Pod,
    place: Place<'_>,
    program: &Program,
    stdio: &ChildEnds,
    report: &OwnedFd,
) -> Result<Infallible, Failure> {
    let number = |fd: Option<BorrowedFd<'_>>| fd.map_or(-1, |fd| fd.as_raw_fd());
    let [stdin, stdout, stderr] =
        [&stdio.stdin, &stdio.stdout, &stdio.stderr].map(|fd| fd.as_ref().map(AsFd::as_fd));
    let init = match place {
        Place::New { .. } => None,
        Place::Running { init } => Some(init),
    };
    if let Place::New { .. } = place {
        pod.join().at(Step::EnterNamespaces)?;
    }
    // SECURITY: first of all, since a container sees a process that joins it from its first moment on.
    close_all_but([report.as_raw_fd(), number(stdin), number(stdout), number(stderr), number(init)])
        .at(Step::Descriptors)?;
    reset_signal_actions();
    signal::set_blocked(0).at(Step::Clone)?;
    umask(Mode::empty());
    match place {
        Place::New { rootfs, binds } => {
            // Only now: the root of a control group namespace is the group of the process that makes it.
            unshare(NewNamespaces::CONTROL_GROUP).at(Step::Clone)?;
            rustix::system::sethostname(pod.hostname().as_bytes()).at(Step::Clone)?;
            rootfs::enter(rootfs, binds).at(Step::Rootfs)?;
        }
        Place::Running { init } => {
            let all = ThreadNameSpaceType::MOUNT
                | ThreadNameSpaceType::CONTROL_GROUP
                | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
                | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
                | ThreadNameSpaceType::NETWORK;
            move_into_thread_name_spaces(init, all).at(Step::EnterNamespaces)?;
        }
    }
    setsid().at(Step::Clone)?;
    connect([stdin, stdout, stderr], &program.privileges).at(Step::Descriptors)?;
    enter_working_dir(place, &program.working_dir).at(Step::WorkingDir)?;
    program.privileges.apply().at(Step::Privileges)?;
    rustix::io::write(report, &encode(Message::Executing)).at(Step::Execute)?;
    Err(Failure { step: Step::Execute, errno: run_first(program) })
}

/// Makes the streams descriptors 0, 1 and 2. Those that the host does not get are a null device.
fn connect(streams: [Option<BorrowedFd<'_>>; 3], privileges: &Privileges) -> Result<(), Errno> {
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
        Place::New { .. } => path::make_directories(root.as_fd(), working_dir)?,
        Place::Running { .. } => path::directory(root.as_fd(), &path::c_string(&[working_dir])?)?,
    };
    fchdir(directory)
}

/// Executes the first of the candidates that can be. Returns why none could.
fn run_first(program: &Program) -> Errno {
    let mut found = Errno::NOENT;
    for path in &program.paths {
        let errno = match path::executable(path) {
            Ok(()) => execute(path, &program.args, &program.env),
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
enum Message {
    Executing,
    Failed(Failure),
}

/// Bytes of a message: a step's number, 0, the error number.
const MESSAGE: usize = 4;
/// Number of `Message::Executing`.
const EXECUTING: u8 = 0;
/// The steps of a child, by number from 1.
const STEPS: [Step; 7] = [
    Step::Descriptors,
    Step::Clone,
    Step::EnterNamespaces,
    Step::Rootfs,
    Step::WorkingDir,
    Step::Privileges,
    Step::Execute,
];

fn encode(message: Message) -> [u8; MESSAGE] {
    let Message::Failed(Failure { step, errno }) = message else { return [EXECUTING, 0, 0, 0] };
    let number = STEPS.iter().position(|&other| other == step).map_or(STEPS.len(), |at| at + 1);
    let [low, high] = u16::try_from(errno.raw_os_error()).unwrap_or(0).to_le_bytes();
    [u8::try_from(number).unwrap_or(u8::MAX), 0, low, high]
}

fn decode([number, _, low, high]: [u8; MESSAGE]) -> Message {
    if number == EXECUTING {
        return Message::Executing;
    }
    let step = STEPS.get(usize::from(number) - 1).copied().unwrap_or(Step::Clone);
    Message::Failed(Failure { step, errno: Errno::from_raw_os_error(u16::from_le_bytes([low, high]).into()) })
}

/// Waits until the program started, or what went wrong. The caller has closed its copy of the writing end.
pub fn outcome(report: &OwnedFd, deadline: &Deadline) -> Result<(), Failure> {
    let mut executing = false;
    loop {
        let left = deadline.left().at(Step::Execute)?;
        match poll(&mut [PollFd::new(report, PollFlags::IN)], Some(&left)) {
            Ok(0) | Err(Errno::INTR) => continue,
            other => other.at(Step::Execute)?,
        };
        let mut message = [0; MESSAGE];
        match rustix::io::read(report, &mut message) {
            Ok(0) if executing => return Ok(()),
            // It was killed: out of memory, or by its container.
            Ok(0) => return Err(Failure { step: Step::Clone, errno: Errno::CHILD }),
            Ok(_) => match decode(message) {
                Message::Executing => executing = true,
                Message::Failed(failure) => return Err(failure),
            },
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
    }
}
