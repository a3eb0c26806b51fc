//! Containers: their processes, what those see, and how they end.
//!
//! Everything that a container is comes from three places: the action inside a permit (what the policy decided on), the
//! container's own image, and constants of this module. `docs/containers.md` lists which field comes from where.
//!
//! Create and exec go the same way: everything is prepared here, a child is made inside the container's control group,
//! the child turns itself into the program (`launch`) and says over a pipe when it could not. What then exists is
//! either a running program or nothing.

mod cgroup;
mod device;
mod filter;
mod holder;
mod launch;
mod path;
mod pod;
mod privileges;
mod relay;
mod rootfs;
mod sealed;
mod service;
mod stdio;
mod terminal;
#[cfg(test)]
mod tests;
mod time;
mod user;

use crate::gate::action::{
    ActError, CreateContainer, DeliverSecret, DumpStack, Endorse, ExecInContainer, GetUsage, Mount, Permit,
    ProcessId, ResizeTerminal, SetUpNetwork, ShutdownContainer, SignalProcess, Source, StartProcess,
    UpdateContainer, User,
};
use crate::gate::fields::{ContainerId, Resources, Signal, UserSpec};
use crate::gate::input::{ATTESTATION, directory};
use crate::gate::memory::{OutOfMemory, text};
use crate::gate::settings::Settings;
use crate::linux::Errno;
use crate::linux::process::{send_signal, spawn};
use crate::network;
use crate::wire::{ExitStatus, Step, Stream, Usage};
use alloc::collections::BTreeMap;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use cgroup::{Cgroup, Cgroups};
use core::fmt::Write;
use core::ops::Range;
use holder::Holder;
use launch::{At, Failure, Place, Program};
use pod::Pod;
use rootfs::Bind;
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, mkdirat, openat};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, WaitId, WaitIdOptions, WaitStatus, pidfd_open, set_dumpable_behavior,
    waitid,
};
use time::Deadline;

pub use service::Source as ReportSource;
pub use stdio::NotAttachable;

/// The bit that marks an epoll token as one of [`Containers::on_event`]'s.
pub const TOKEN_BIT: u64 = 1 << 63;

/// Seconds until a new process must have executed its program. It is the init's own code that runs until then; only a
/// container that stops or starves a process that joins it can hold it up.
const LAUNCH_SECONDS: i64 = 30;
/// Seconds until killed processes must be gone.
const REAP_SECONDS: i64 = 30;

/// Where containers live.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root filesystem of container *id* is mounted at `<bundles>/<id>/rootfs`.
    pub bundles: String,
    /// Where cgroup2 is mounted.
    pub cgroup: String,
    /// The controllers to enable, as `cgroup.subtree_control` takes them; none, and nothing is limited.
    pub controllers: &'static str,
    /// Where attestation directories are, and where their reports come from.
    pub attestation: (&'static str, ReportSource),
    /// Where in this process's memory the heap is, and whatever else a container must not see.
    pub secrets: [Range<usize>; 2],
}

impl Default for Places {
    fn default() -> Self {
        Self {
            bundles: String::from("/run/gcs/c"),
            cgroup: String::from("/sys/fs/cgroup"),
            controllers: "+cpu +memory +pids +io",
            attestation: (ATTESTATION, |_| None),
            secrets: [0..0, 0..0],
        }
    }
}

/// All containers of this guest.
#[derive(Debug)]
pub struct Containers {
    bundles: String,
    cgroups: Cgroups,
    streams: stdio::Streams,
    services: service::Services,
    pod: Pod,
    /// Of the containers that share a namespace of processes; there as long as one of them is.
    holder: Option<Holder>,
    /// Not on the heap: a child reads it while it forgets the heap.
    secrets: [Range<usize>; 2],
    containers: BTreeMap<ContainerId, Container>,
    processes: BTreeMap<ProcessId, Process>,
    exits: Vec<(ProcessId, ExitStatus)>,
}

#[derive(Debug)]
struct Container {
    cgroup: Cgroup,
    /// Its filesystem of terminals.
    terminals: OwnedFd,
    init: ProcessId,
    /// What its creation was decided with holds for all its processes.
    settings: Settings,
    /// What it may use.
    resources: Resources,
    /// Processes of it that were killed for want of memory before the last that was killed at all.
    out_of_memory: u64,
}

#[derive(Debug)]
struct Process {
    container: ContainerId,
    /// Its number, and the descriptor that stays its own when the number is used again; `None` once it was waited for.
    running: Option<(Pid, OwnedFd)>,
}

impl Containers {
    /// No containers yet. Their streams will report to `epoll`.
    pub fn new(epoll: impl AsFd, places: Places) -> Result<Self, Errno> {
        // SECURITY: a child is a copy of this process until it executes its program.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        Ok(Self {
            bundles: places.bundles,
            cgroups: Cgroups::new(&places.cgroup, places.controllers)?,
            services: service::Services::new(
                fcntl_dupfd_cloexec(&epoll, 3)?,
                places.attestation.0,
                places.attestation.1,
            ),
            streams: stdio::Streams::new(fcntl_dupfd_cloexec(epoll, 3)?)?,
            pod: Pod::new()?,
            holder: None,
            secrets: places.secrets,
            containers: BTreeMap::new(),
            processes: BTreeMap::new(),
            exits: Vec::new(),
        })
    }

    /// See [`crate::gate::action::Actor::create_container`].
    pub fn create_container(&mut self, permit: Permit<CreateContainer<'_>>) -> Result<(), ActError> {
        let CreateContainer { container, scratch, mounts, settings, pod, init } = permit.into_action();
        if self.containers.contains_key(&container) {
            return Err(Failure { step: Step::Cgroup, errno: Errno::EXIST }.into_error(true));
        }
        let rootfs = self.rootfs(&container).at(Step::Rootfs).map_err(|failure| failure.into_error(true))?;
        let binds = binds(&self.services, &container, &scratch, &mounts)
            .at(Step::Rootfs)
            .map_err(|failure| failure.into_error(true))?;
        let cgroup = self
            .cgroups
            .make(container.as_str())
            .at(Step::Cgroup)
            .map_err(|failure| failure.into_error(true))?;
        let prepared = self.cgroups.limit_all(pod.resources).at(Step::Cgroup);
        self.pod.set_up(pod, &container);
        let attestation = self.attestation(&container, init.process, &mounts);
        let terminals = attestation.and_then(|()| {
            let terminals = prepared.and_then(|()| rootfs::new_terminals().at(Step::Rootfs));
            terminals.map_err(|failure| failure.into_error(true))
        });
        let started = terminals.and_then(|terminals| {
            let shared = settings.share_process_namespace.then(|| self.shared_processes()).transpose()?;
            let (terminal, read_only) = (terminals.as_fd(), settings.read_only_root);
            let shared = shared.as_ref().map(|(holder, place)| (holder.as_fd(), &**place));
            let place = Place::New { rootfs: &rootfs, terminals: terminal, binds: &binds, read_only, shared };
            self.start(container, &cgroup, terminal, place, &init, &settings).map(|()| terminals)
        });
        match started {
            Ok(terminals) => {
                let (init, resources, out_of_memory) = (init.process, Resources::default(), 0);
                let entry = Container { cgroup, terminals, init, settings, resources, out_of_memory };
                self.containers.insert(container, entry);
                Ok(())
            }
            Err(error) => {
                let deadline = Deadline::after_seconds(REAP_SECONDS);
                let removed = [
                    self.cgroups.remove(container.as_str(), &cgroup, &deadline).is_ok(),
                    self.release_holder(&deadline).is_ok(),
                    self.services.remove(&container).is_ok(),
                ];
                Err(ActError { undone: error.undone && removed == [true; 3], ..error })
            }
        }
    }

    /// The first process of the namespace that containers share, and where they are shown. There is one from here on.
    fn shared_processes(&mut self) -> Result<(OwnedFd, CString), ActError> {
        let holder = match self.holder.take() {
            Some(holder) => holder,
            None => Holder::new(&self.bundles, &self.pod, &self.cgroups, self.secrets.clone())?,
        };
        let processes = holder.processes();
        self.holder = Some(holder);
        processes.at(Step::EnterNamespaces).map_err(|failure| failure.into_error(true))
    }

    /// Ends the namespace that containers share, if none of them is left.
    fn release_holder(&mut self, deadline: &Deadline) -> Result<(), Failure> {
        if self.containers.values().any(|container| container.settings.share_process_namespace) {
            return Ok(());
        }
        self.holder.take().map_or(Ok(()), |holder| holder.end(&self.cgroups, deadline))
    }

    /// Makes the attestation directory of a container that is to have it mounted.
    fn attestation(
        &mut self,
        container: &ContainerId,
        init: ProcessId,
        mounts: &[Mount<'_>],
    ) -> Result<(), ActError> {
        let policy = mounts.iter().find_map(|mount| match mount.source {
            Source::Attestation(policy) => Some(policy),
            _ => None,
        });
        let Some(policy) = policy else { return Ok(()) };
        let made = self.services.make(container, init.get(), policy);
        made.at(Step::Attestation).map_err(|failure| failure.into_error(true))
    }

    /// See [`crate::gate::action::Actor::endorse`].
    pub fn endorse(&mut self, permit: Permit<Endorse<'_>>) -> Result<(), ActError> {
        let kept = self.services.endorse(permit.into_action());
        kept.at(Step::Memory).map_err(|failure| failure.into_error(true))
    }

    /// See [`crate::gate::action::Actor::deliver_secret`].
    pub fn deliver_secret(&mut self, permit: Permit<DeliverSecret<'_>>) -> Result<(), ActError> {
        let delivered = self.services.deliver(&permit.into_action());
        delivered.at(Step::Attestation).map_err(|failure| failure.into_error(true))
    }

    /// See [`crate::gate::action::Actor::set_up_network`].
    pub fn set_up_network(&mut self, permit: Permit<SetUpNetwork<'_>>) -> Result<(), ActError> {
        self.pod.names = Some(network::set_up(permit, self.pod.network.as_fd())?);
        Ok(())
    }

    /// See [`crate::gate::action::Actor::exec_in_container`].
    pub fn exec_in_container(&mut self, permit: Permit<ExecInContainer<'_>>) -> Result<(), ActError> {
        let ExecInContainer { container, process } = permit.into_action();
        // Taken out for the time being, since starting a process changes the rest.
        let Some(entry) = self.containers.remove(&container) else {
            return Err(Failure { step: Step::EnterNamespaces, errno: Errno::SRCH }.into_error(true));
        };
        let result = match self.descriptor(entry.init) {
            Ok(init) => {
                let place = Place::Running { init: init.as_fd() };
                let terminals = entry.terminals.as_fd();
                self.start(container, &entry.cgroup, terminals, place, &process, &entry.settings)
            }
            Err(errno) => Err(Failure { step: Step::EnterNamespaces, errno }.into_error(true)),
        };
        self.containers.insert(container, entry);
        result
    }

    /// See [`crate::gate::action::Actor::signal_process`].
    pub fn signal_process(&mut self, permit: Permit<SignalProcess>) -> Result<(), ActError> {
        let SignalProcess { process, signal } = permit.into_action();
        let sent = match self.processes.get(&process) {
            None => Err(Errno::SRCH),
            Some(Process { running: None, .. }) => Ok(()),
            Some(Process { running: Some((_, pidfd)), .. }) => {
                match send_signal(pidfd.as_fd(), signal.number()) {
                    // It ended, and nobody has waited for it yet.
                    Err(Errno::SRCH) => Ok(()),
                    other => other,
                }
            }
        };
        sent.at(Step::Signal).map_err(|failure| failure.into_error(true))
    }

    /// See [`crate::gate::action::Actor::resize_terminal`].
    pub fn resize_terminal(&self, permit: Permit<ResizeTerminal>) -> Result<(), ActError> {
        let ResizeTerminal { process, size } = permit.into_action();
        self.streams.resize(process, size).at(Step::Descriptors).map_err(|failure| failure.into_error(true))
    }

    /// See [`crate::gate::action::Actor::shutdown_container`]. The exits of the processes that it killed are
    /// [`Containers::take_exits`]' next. A container that was never created is shut down already.
    pub fn shutdown_container(&mut self, permit: Permit<ShutdownContainer>) -> Result<(), ActError> {
        let ShutdownContainer { container } = permit.into_action();
        // Room for what follows the kill, which cannot be taken back.
        let ids = self.processes_of(container).map_err(|failure| failure.into_error(true))?;
        let Some(entry) = self.containers.get(&container) else { return Ok(()) };
        entry.cgroup.kill().at(Step::Cgroup).map_err(|failure| failure.into_error(true))?;
        self.finish(container, ids).map_err(|failure| failure.into_error(false))
    }

    /// See [`crate::gate::action::Actor::update_container`].
    pub fn update_container(&mut self, permit: Permit<UpdateContainer>) -> Result<(), ActError> {
        let UpdateContainer { container, resources } = permit.into_action();
        let Some(entry) = self.containers.get_mut(&container) else {
            return Err(Failure { step: Step::Cgroup, errno: Errno::SRCH }.into_error(true));
        };
        entry.cgroup.limit(resources).at(Step::Cgroup).map_err(|failure| {
            let undone = entry.cgroup.limit(entry.resources).is_ok();
            failure.into_error(undone)
        })?;
        entry.resources = resources;
        Ok(())
    }

    /// See [`crate::gate::action::Actor::usage`].
    pub fn usage(&self, permit: Permit<GetUsage>) -> Result<Usage, ActError> {
        let GetUsage { container } = permit.into_action();
        let usage = self.containers.get(&container).ok_or(Errno::SRCH).and_then(|entry| entry.cgroup.usage());
        usage.at(Step::Cgroup).map_err(|failure| failure.into_error(true))
    }

    /// The processes of a container, its first one last, and room for their exits.
    fn processes_of(&mut self, container: ContainerId) -> Result<Vec<ProcessId>, Failure> {
        let all = || self.processes.iter().filter(|(_, process)| process.container == container);
        let mut ids = launch::room(all().count()).at(Step::Memory)?;
        self.exits.try_reserve(ids.capacity()).map_err(|_| Errno::NOMEM).at(Step::Memory)?;
        ids.extend(all().map(|(&id, _)| id));
        // The first process of a PID namespace of its own ends only after all others were waited for.
        let init = self.containers.get(&container).map(|entry| entry.init);
        ids.sort_unstable_by_key(|&id| Some(id) == init);
        Ok(ids)
    }

    /// Waits for a killed container's processes and forgets it.
    fn finish(&mut self, container: ContainerId, ids: Vec<ProcessId>) -> Result<(), Failure> {
        let deadline = Deadline::after_seconds(REAP_SECONDS);
        for &id in &ids {
            let Some((_, pidfd)) = self.processes.get_mut(&id).and_then(|process| process.running.take())
            else {
                continue;
            };
            let status = wait(pidfd.as_fd(), &deadline).at(Step::Reap)?;
            self.exits.push((id, status));
        }
        if let Some(entry) = self.containers.get(&container) {
            self.cgroups.remove(container.as_str(), &entry.cgroup, &deadline).at(Step::Cgroup)?;
        }
        self.services.remove(&container).at(Step::Attestation)?;
        for id in ids {
            self.processes.remove(&id);
            self.streams.remove_unattached(id);
        }
        self.containers.remove(&container);
        self.release_holder(&deadline)
    }

    /// See [`crate::gate::action::Actor::resolve_user`].
    pub fn resolve_user(&self, container: &ContainerId, spec: UserSpec<'_>) -> Result<User, ActError> {
        self.rootfs(container)
            .and_then(|rootfs| {
                user::resolve(openat(CWD, &*rootfs, path::DIRECTORY, Mode::empty())?.as_fd(), spec)
            })
            .at(Step::ResolveUser)
            .map_err(|failure| failure.into_error(true))
    }

    /// See [`crate::gate::action::Actor::dump_stack`].
    pub fn dump_stack(&self, permit: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        let DumpStack { process } = permit.into_action();
        let running = self.processes.get(&process).and_then(|process| process.running.as_ref());
        let Some((pid, _)) = running else { return Ok(None) };
        state_of(*pid).at(Step::DumpStacks).map(Some).map_err(|failure| failure.into_error(true))
    }

    /// Whether [`Containers::attach`] would accept this stream.
    pub fn attachable(&self, process: ProcessId, stream: Stream) -> Result<(), NotAttachable> {
        self.streams.attachable(process, stream)
    }

    /// Connects a process's stream to a socket, from the next event on: nothing is read or written before this returns.
    pub fn attach(
        &mut self,
        process: ProcessId,
        stream: Stream,
        socket: OwnedFd,
    ) -> Result<(), NotAttachable> {
        self.streams.attach(process, stream, socket)
    }

    /// Moves bytes. `token` has [`TOKEN_BIT`]; one of a stream that is gone is ignored.
    pub fn on_event(&mut self, token: u64, flags: EventFlags) {
        if token & service::TOKEN_BIT != 0 {
            self.services.on_event(token);
        } else {
            self.streams.on_event(token, flags);
        }
    }

    /// A child of this process was waited for, by number, just now. Whose exit that is, if it is that of a container's
    /// process.
    pub fn reaped(&mut self, pid: Pid, status: WaitStatus) -> Option<(ProcessId, ExitStatus)> {
        let status = exit_status(status.exit_status(), status.terminating_signal())?;
        if let Some(holder) = &mut self.holder {
            holder.reaped(pid);
        }
        let is_it = |process: &Process| process.running.as_ref().is_some_and(|&(number, _)| number == pid);
        let (&id, process) = self.processes.iter_mut().find(|(_, process)| is_it(process))?;
        process.running = None;
        let Some(container) = self.containers.get_mut(&process.container) else { return Some((id, status)) };
        if container.settings.share_process_namespace && container.init == id {
            // What the kernel does where the first process had a namespace of its own. What this does not reach ends with
            // the container.
            let _ = container.cgroup.kill();
        }
        Some((id, container.explained(status)))
    }

    /// See [`crate::gate::action::Actor::forget`].
    pub fn forget(&mut self, process: ProcessId) {
        if self.processes.get(&process).is_some_and(|process| process.running.is_none()) {
            self.processes.remove(&process);
            self.streams.remove_unattached(process);
        }
    }

    /// The exits that were waited for here and not by the event loop, oldest first.
    pub fn take_exits(&mut self) -> Vec<(ProcessId, ExitStatus)> {
        core::mem::take(&mut self.exits)
    }

    fn rootfs(&self, container: &ContainerId) -> Result<CString, Errno> {
        path::c_string(&[&self.bundles, "/", container.as_str(), "/rootfs"])
    }

    /// A descriptor of a process that was not waited for yet.
    fn descriptor(&self, process: ProcessId) -> Result<OwnedFd, Errno> {
        let running = self.processes.get(&process).and_then(|process| process.running.as_ref());
        let (_, pidfd) = running.ok_or(Errno::SRCH)?;
        fcntl_dupfd_cloexec(pidfd, 3)
    }

    /// Starts a process, or leaves nothing of it behind.
    fn start(
        &mut self,
        container: ContainerId,
        cgroup: &Cgroup,
        terminals: BorrowedFd<'_>,
        place: Place<'_>,
        process: &StartProcess<'_>,
        settings: &Settings,
    ) -> Result<(), ActError> {
        let prepare = || {
            let program = Program::new(process, settings)?;
            let (child_ends, our_ends) = stdio::open(process.stdio, terminals).at(Step::Descriptors)?;
            let (reader, writer) = stdio::pipe().at(Step::Descriptors)?;
            let sealed = sealed::streams(process.sealed.as_ref(), process.process.get()).at(Step::Memory)?;
            Ok((program, child_ends, our_ends, sealed, reader, writer))
        };
        let (program, child_ends, our_ends, sealed, reader, writer) =
            prepare().map_err(|failure: Failure| failure.into_error(true))?;
        let secrets = self.secrets.clone();
        let child = || launch::child(&self.pod, place, &program, &child_ends, &secrets, &writer);
        let mut running = spawn(place.namespaces(), cgroup.directory(), child)
            .at(Step::Clone)
            .map_err(|failure| failure.into_error(true))?;
        drop((child_ends, writer));
        let (inside, mut result) = launch::outcome(&reader, &Deadline::after_seconds(LAUNCH_SECONDS));
        let mut undone = true;
        if let Some(pid) = inside {
            // It is this process's child and nobody has waited for it, so the number is still its own.
            match pidfd_open(pid, PidfdFlags::empty()).at(Step::Clone) {
                Ok(pidfd) => {
                    let (_, outside) = core::mem::replace(&mut running, (pid, pidfd));
                    undone = wait(outside.as_fd(), &Deadline::after_seconds(REAP_SECONDS)).is_ok();
                }
                Err(failure) => (result, undone) = (Err(failure), false),
            }
        }
        match result {
            Ok(()) => {
                self.processes.insert(process.process, Process { container, running: Some(running) });
                self.streams.add(process.process, our_ends, sealed, process.output_waits);
                Ok(())
            }
            Err(failure) => {
                // It may have ended already; then there is nothing to kill.
                let _ = send_signal(running.1.as_fd(), Signal::KILL.number());
                undone &= wait(running.1.as_fd(), &Deadline::after_seconds(REAP_SECONDS)).is_ok();
                Err(failure.into_error(undone))
            }
        }
    }
}

impl Container {
    /// What the kernel does not say of a process: that it was killed because the memory is exhausted.
    fn explained(&mut self, status: ExitStatus) -> ExitStatus {
        if status != ExitStatus::Signal(Signal::KILL.number()) {
            return status;
        }
        let before = self.out_of_memory;
        self.out_of_memory = self.cgroup.out_of_memory().unwrap_or(before);
        if self.out_of_memory > before { ExitStatus::OutOfMemory } else { status }
    }
}

/// What these mounts bind. A directory of the scratch space that is not there yet is made: everybody's, as Kubernetes makes
/// an `emptyDir`.
fn binds(
    services: &service::Services,
    container: &ContainerId,
    scratch: &ContainerId,
    mounts: &[Mount<'_>],
) -> Result<Vec<Bind>, Errno> {
    let mut binds = launch::room(mounts.len())?;
    for mount in mounts {
        let source = match mount.source {
            Source::Layer(slot) => path::c_string(&[&slot.path()])?,
            Source::Volume(volume) => path::c_string(&[&volume.path()])?,
            Source::Attestation(_) => services.path(container)?,
            Source::Directory(name) => {
                let path = path::c_string(&[&directory(scratch, name)])?;
                match mkdirat(CWD, &*path, Mode::RWXU) {
                    // The init's own mask would take the others' access away.
                    Ok(()) => chmodat(CWD, &*path, Mode::from_raw_mode(0o777), AtFlags::empty())?,
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                path
            }
        };
        let destination = text(mount.destination.as_str()).map_err(|OutOfMemory| Errno::NOMEM)?;
        binds.push(Bind { source, destination, read_only: mount.read_only });
    }
    Ok(binds)
}

/// Waits for a child that is about to end.
fn wait(pidfd: BorrowedFd<'_>, deadline: &Deadline) -> Result<ExitStatus, Errno> {
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline.left()?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(status)) => {
                return exit_status(status.exit_status(), status.terminating_signal()).ok_or(Errno::CHILD);
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// The letter of a process's state (proc_pid_stat(5)): after its number and its name in parentheses, which is its own choice
/// of at most 15 bytes.
fn state_of(pid: Pid) -> Result<u8, Errno> {
    let mut path = heapless::String::<32>::new();
    // Two names and a number of at most ten digits fit.
    let _ = write!(path, "/proc/{}/stat", pid.as_raw_nonzero());
    let stat = openat(CWD, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = [0; 64];
    let length = rustix::io::read(stat, &mut text)?;
    let text = text.get(..length).unwrap_or_default();
    let end = text.windows(2).rposition(|pair| pair == b") ").ok_or(Errno::PROTO)?;
    text.get(end + 2).copied().filter(u8::is_ascii_uppercase).ok_or(Errno::PROTO)
}

fn exit_status(code: Option<i32>, signal: Option<i32>) -> Option<ExitStatus> {
    match (code, signal) {
        (Some(code), _) => u8::try_from(code).ok().map(ExitStatus::Code),
        (_, Some(signal)) => u8::try_from(signal).ok().map(ExitStatus::Signal),
        _ => None,
    }
}
