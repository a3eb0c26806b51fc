//! What holds the namespace of processes that containers share where the policy says so: its first process.
//!
//! Such a namespace ends with its first process, and takes all others with it. A program of a container cannot be that one,
//! since the others would end with its container. So it is a copy of the init that executes nothing and waits for its
//! own end: that of the pipe whose other side the init has, or a signal of the init's. Those in the namespace can send it
//! none. Processes whose parents ended become its children, and the kernel takes them away when they have ended.
//!
//! SECURITY: the containers see it, and one with CAP_SYS_PTRACE can get hold of it. So before the first of them can come it
//! has given up all that the init has: its root is an empty directory, its namespaces are the pod's, it has no privilege,
//! none of the init's descriptors and secrets, a control group in which devices are as for containers, and no system call
//! but those with which it waits and ends. Whoever gets hold of it gains nothing by it.

use super::cgroup::{Cgroup, Cgroups};
use super::launch::{self, At, Failure, Message, room};
use super::pod::Pod;
use super::privileges::Privileges;
use super::time::Deadline;
use super::{LAUNCH_SECONDS, REAP_SECONDS, path, rootfs, stdio, wait};
use crate::filter::{ALLOW, Instruction, KILL_PROCESS, NUMBER};
use crate::gate::action::{ActError, Group, User};
use crate::gate::fields::{CapabilitySets, Umask};
use crate::gate::settings::Settings;
use crate::linux::process::{
    NewNamespaces, close_all_but, exit, forget, ignore_ended_children, reset_signal_actions, spawn, unshare,
};
use crate::linux::{Errno, seccomp, signal};
use crate::wire::{Capabilities, Step};
use alloc::ffi::CString;
use alloc::string::String;
use core::convert::Infallible;
use core::ffi::CStr;
use core::ops::Range;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::io::{fcntl_dupfd_cloexec, read, write};
use rustix::process::{DumpableBehavior, Pid, set_dumpable_behavior, setsid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The name of its control group and its directory, which is no container's.
const NAME: &str = "holder";

/// Its user and group: those that stand for nobody.
const NOBODY: u32 = 65_534;

/// The system calls that are left to it, on top of the filter of all containers.
const CALLS: [Instruction; 6] = [
    Instruction::load(NUMBER),
    Instruction::if_equal(0, 3, 0),   // read
    Instruction::if_equal(1, 2, 0),   // write
    Instruction::if_equal(231, 1, 0), // exit_group
    Instruction::answer(KILL_PROCESS),
    Instruction::answer(ALLOW),
];

/// The first process of the namespace.
#[derive(Debug)]
pub struct Holder {
    cgroup: Cgroup,
    /// Where the namespace's processes are shown, in the guest's own filesystem.
    place: CString,
    /// `None` once it was waited for: it was killed, and all in its namespace with it.
    process: Option<(Pid, OwnedFd)>,
    /// Open as long as it is to live.
    _life: OwnedFd,
}

impl Holder {
    /// A new namespace, of the pod's other ones. `bundles` is the guest's own directory of containers, `secrets` where in
    /// memory this process has its own.
    pub fn new(
        bundles: &str,
        pod: &Pod,
        cgroups: &Cgroups,
        secrets: [Range<usize>; 2],
    ) -> Result<Self, ActError> {
        let settings = Settings::default();
        let prepare = || {
            let place = path::c_string(&[bundles, "/", NAME]).at(Step::Memory)?;
            let privileges = privileges(&settings).at(Step::Privileges)?;
            let (waits, life) = stdio::pipe().at(Step::Descriptors)?;
            Ok((place, privileges, waits, life, cgroups.make(NAME).at(Step::Cgroup)?))
        };
        let (place, privileges, waits, life, cgroup) =
            prepare().map_err(|failure: Failure| failure.into_error(true))?;
        let made = mkdirat(CWD, &*place, Mode::RWXU).at(Step::Rootfs);
        let started = made
            .map_err(|failure| failure.into_error(true))
            .and_then(|()| start(&cgroup, |report| hold(pod, &place, &privileges, &secrets, &waits, report)));
        match started {
            Ok(process) => Ok(Self { cgroup, place, process: Some(process), _life: life }),
            Err(error) => {
                let deadline = Deadline::after_seconds(REAP_SECONDS);
                let undone = error.undone && remove(&place, cgroups, &cgroup, &deadline).is_ok();
                Err(ActError { undone, ..error })
            }
        }
    }

    /// A descriptor of the process, by which others join its namespace, and where those in it are shown.
    pub fn processes(&self) -> Result<(OwnedFd, CString), Errno> {
        let (_, process) = self.process.as_ref().ok_or(Errno::SRCH)?;
        let place = self.place.to_str().map_err(|_| Errno::INVAL)?;
        Ok((fcntl_dupfd_cloexec(process, 3)?, path::c_string(&[place])?))
    }

    /// A child of this process was waited for, by number, just now: this one, perhaps.
    pub fn reaped(&mut self, pid: Pid) {
        self.process.take_if(|(number, _)| *number == pid);
    }

    /// Ends the namespace. All others that were in it have been waited for.
    pub fn end(self, cgroups: &Cgroups, deadline: &Deadline) -> Result<(), Failure> {
        self.cgroup.kill().at(Step::Cgroup)?;
        if let Some((_, process)) = self.process {
            wait(process.as_fd(), deadline).at(Step::Reap)?;
        }
        remove(&self.place, cgroups, &self.cgroup, deadline)
    }
}

/// Removes what there is of it beside the process.
fn remove(place: &CStr, cgroups: &Cgroups, cgroup: &Cgroup, deadline: &Deadline) -> Result<(), Failure> {
    rootfs::remove_mount_point(place).at(Step::Rootfs)?;
    cgroups.remove(NAME, cgroup, deadline).at(Step::Cgroup)
}

/// Starts it, or leaves no process behind. When this returns it has nothing any more that is the init's.
fn start(
    cgroup: &Cgroup,
    hold: impl FnOnce(&OwnedFd) -> Result<Infallible, Failure>,
) -> Result<(Pid, OwnedFd), ActError> {
    let undone = |failure: Failure| failure.into_error(true);
    let (reader, writer) = stdio::pipe().at(Step::Descriptors).map_err(undone)?;
    let child = || {
        let Err(failure) = hold(&writer);
        // If nobody reads it any more, nobody wants to know.
        let _ = write(&writer, &launch::encode(Message::Failed(failure)));
        exit(1)
    };
    let process =
        spawn(NewNamespaces::PROCESSES, cgroup.directory(), child).at(Step::Clone).map_err(undone)?;
    drop(writer);
    let failure = match launch::next(&reader, &Deadline::after_seconds(LAUNCH_SECONDS)) {
        Ok(Some(Message::Executing)) => return Ok(process),
        Ok(Some(Message::Failed(failure))) | Err(failure) => failure,
        Ok(_) => Failure { step: Step::Clone, errno: Errno::CHILD },
    };
    let ended =
        cgroup.kill().is_ok() && wait(process.1.as_fd(), &Deadline::after_seconds(REAP_SECONDS)).is_ok();
    Err(failure.into_error(ended))
}

/// None.
fn privileges(settings: &Settings) -> Result<Privileges<'_>, Errno> {
    let mut groups = room(1)?;
    groups.push(Group { gid: NOBODY, name: String::new() });
    let user = User { uid: NOBODY, name: String::new(), groups };
    let umask = Umask::new(0o077).map_err(|_| Errno::INVAL)?;
    let capabilities = CapabilitySets::new(Capabilities::default()).map_err(|_| Errno::INVAL)?;
    Privileges::new(&user, umask, capabilities, true, settings)
}

/// What the process does. It asks for no memory.
#[allow(unsafe_code)]
fn hold(
    pod: &Pod,
    place: &CStr,
    privileges: &Privileges<'_>,
    secrets: &[Range<usize>],
    waits: &OwnedFd,
    report: &OwnedFd,
) -> Result<Infallible, Failure> {
    pod.join().at(Step::EnterNamespaces)?;
    // For the containers: only a process of the namespace can do it. It is the only thing that it does in the init's own tree.
    rootfs::show_processes(place).at(Step::Rootfs)?;
    unshare(NewNamespaces::MOUNT).at(Step::Clone)?;
    unshare(NewNamespaces::CONTROL_GROUP).at(Step::Clone)?;
    close_all_but([waits.as_raw_fd(), report.as_raw_fd()]).at(Step::Descriptors)?;
    let streams = [dup2_stdin(waits), dup2_stdout(waits), dup2_stderr(waits)];
    streams.into_iter().collect::<Result<(), Errno>>().at(Step::Descriptors)?;
    reset_signal_actions();
    ignore_ended_children().at(Step::Clone)?;
    signal::set_blocked(0).at(Step::Clone)?;
    setsid().at(Step::Clone)?;
    rootfs::enter_nothing().at(Step::Rootfs)?;
    privileges.apply().at(Step::Privileges)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Step::Privileges)?;
    // SAFETY: all that this process uses from here on is on its stack. It frees nothing.
    unsafe { forget(secrets) }.at(Step::Memory)?;
    seccomp::install(&CALLS).at(Step::Privileges)?;
    write(report, &launch::encode(Message::Executing)).at(Step::Execute)?;
    // Nothing is ever written there; what a container does to this process may wake it nevertheless.
    while matches!(read(waits, &mut [0u8]), Ok(1..) | Err(Errno::INTR)) {}
    exit(0)
}
