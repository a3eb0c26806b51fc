//! Containers: their processes, what those see, and how they end.
//!
//! Everything that a container is comes from three places: the action inside a permit (what the policy decided on), the
//! container's own image, and constants of this module. `docs/containers.md` lists which field comes from where.

use crate::gate::action::{
    ActError, CreateContainer, ExecInContainer, Permit, ProcessId, ShutdownContainer, SignalProcess, User,
};
use crate::gate::fields::{ContainerId, UserSpec};
use crate::linux::Errno;
use crate::wire::{ExitStatus, Reason, Step, Stream};
use alloc::string::String;
use alloc::vec::Vec;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{Pid, WaitStatus};

/// The bit that marks an epoll token as one of [`Containers::on_event`]'s.
pub const TOKEN_BIT: u64 = 1 << 63;

/// Where containers live.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root filesystem of container *id* is mounted at `<bundles>/<id>/rootfs`.
    pub bundles: String,
    /// Where cgroup2 is mounted.
    pub cgroup: String,
    /// The controllers to use.
    pub controllers: &'static str,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            bundles: String::from("/run/gcs/c"),
            cgroup: String::from("/sys/fs/cgroup"),
            controllers: "+cpu +memory +pids +io",
        }
    }
}

/// All containers of this guest.
#[derive(Debug)]
pub struct Containers {
    places: Places,
}

impl Containers {
    /// No containers yet. Their streams will report to `epoll`.
    pub fn new(epoll: impl AsFd, places: Places) -> Result<Self, Errno> {
        let _ = epoll;
        Ok(Self { places })
    }

    /// See [`crate::gate::action::Actor::create_container`].
    pub fn create_container(&mut self, permit: Permit<CreateContainer<'_>>) -> Result<(), ActError> {
        let _ = permit;
        Err(failed(Step::Clone, Errno::NOSYS))
    }

    /// See [`crate::gate::action::Actor::exec_in_container`].
    pub fn exec_in_container(&mut self, permit: Permit<ExecInContainer<'_>>) -> Result<(), ActError> {
        let _ = permit;
        Err(failed(Step::Clone, Errno::NOSYS))
    }

    /// See [`crate::gate::action::Actor::signal_process`].
    pub fn signal_process(&mut self, permit: Permit<SignalProcess>) -> Result<(), ActError> {
        let _ = permit;
        Err(failed(Step::Signal, Errno::NOSYS))
    }

    /// See [`crate::gate::action::Actor::shutdown_container`]. The exits of the processes that it killed are
    /// [`Containers::take_exits`]' next.
    pub fn shutdown_container(&mut self, permit: Permit<ShutdownContainer>) -> Result<(), ActError> {
        let _ = permit;
        Err(failed(Step::Reap, Errno::NOSYS))
    }

    /// See [`crate::gate::action::Actor::resolve_user`].
    pub fn resolve_user(&self, container: &ContainerId, user: UserSpec<'_>) -> Result<User, ActError> {
        let _ = (container, user, &self.places);
        Err(failed(Step::ResolveUser, Errno::NOSYS))
    }

    /// Whether [`Containers::attach`] would accept this stream.
    pub fn attachable(&self, process: ProcessId, stream: Stream) -> Result<(), Reason> {
        let _ = (process, stream);
        Err(Reason::Unknown { field: crate::wire::Field::Process })
    }

    /// Connects a process's stream to a socket, from the next event on: nothing is read or written before this returns.
    pub fn attach(&mut self, process: ProcessId, stream: Stream, socket: OwnedFd) -> Result<(), Reason> {
        let _ = socket;
        self.attachable(process, stream)
    }

    /// Moves bytes. `token` has [`TOKEN_BIT`]; one of a stream that is gone is ignored.
    pub fn on_event(&mut self, token: u64, flags: EventFlags) {
        let _ = (token, flags);
    }

    /// A child of this process was waited for. Whose exit that is, if it is that of a container's process.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus) -> Option<(ProcessId, ExitStatus)> {
        let _ = (pid, status);
        None
    }

    /// The exits that were waited for here and not by the event loop, oldest first.
    pub fn take_exits(&mut self) -> Vec<(ProcessId, ExitStatus)> {
        Vec::new()
    }
}

fn failed(step: Step, errno: Errno) -> ActError {
    ActError { step, errno: u16::try_from(errno.raw_os_error()).unwrap_or(0), undone: true }
}
