//! The event loop: one thread, one epoll, whatever comes next.
//!
//! Connections are accepted from the host alone (attack T03: a container that found a way to open a vsock has another
//! context id), control connections one at a time. Requests go to the gate, bytes of standard streams to the containers,
//! ended children to both. When the gate has been told to stop and the reply is out, the machine ends.

use crate::attest::{self, Report};
use crate::boot::{Failed, step};
use crate::container::{Containers, Places, TOKEN_BIT};
use crate::control::{Control, Serve};
use crate::gate::Gate;
use crate::gate::action::ProcessId;
use crate::guest::Guest;
use crate::linux::{Errno, console, power, signal, vsock};
use crate::streams::{MAX_PENDING, Pending, Progress, answer};
use crate::target::{Disks, Layers};
use crate::wire::frame::MAX_FRAME;
use crate::wire::{Attach, CONTROL_PORT, ExitStatus, Phase, Reason, Refusal, Reply, Request, STREAM_PORT};
use core::convert::Infallible;
use core::mem::MaybeUninit;
use core::ops::Range;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::process::{WaitOptions, wait};
use spin::mutex::{SpinMutex, SpinMutexGuard};

/// The one buffer for bodies of requests. Not on the heap: its pages cost nothing until a frame of that size comes.
static BODY: SpinMutex<[u8; MAX_FRAME]> = SpinMutex::new([0; MAX_FRAME]);

/// Events taken from the kernel at a time.
const BATCH: usize = 32;
/// Bytes of the stack that are overwritten after a request that had to do with keys: no request takes as many.
const SCRUBBED: usize = 32 << 10;

// What an epoll token means. Tokens with TOKEN_BIT belong to the containers.
const CONTROL_LISTENER: u64 = 0;
const STREAM_LISTENER: u64 = 1;
const CHILDREN: u64 = 2;
const CONTROL: u64 = 3;
/// The first of [`MAX_PENDING`].
const PENDING: u64 = 16;

/// Everything the loop watches and drives.
pub struct Events {
    epoll: OwnedFd,
    control_listener: OwnedFd,
    stream_listener: OwnedFd,
    children: OwnedFd,
    control: Option<Control>,
    pending: [Option<Pending>; MAX_PENDING],
    body: &'static mut [u8; MAX_FRAME],
    monitor: Monitor,
}

/// The gate, and what it acts on.
struct Monitor {
    gate: Gate,
    guest: Guest,
}

impl Serve for Monitor {
    fn serve(&mut self, request: &Request<'_>, body: &[u8]) -> Result<Reply<'_>, Refusal> {
        let logging = self.guest.logging;
        let result = self.gate.serve(&mut self.guest, request, body);
        if matches!(
            request,
            Request::OpenChannel { .. }
                | Request::Sealed { .. }
                | Request::MountScratch { .. }
                | Request::MountVolume { .. }
        ) {
            scrub_stack();
        }
        if logging {
            let outcome = if result.is_ok() { "done" } else { "refused" };
            console::line(format_args!("{}: {outcome}", name(request)));
        }
        result
    }
}

/// Overwrites what calls that have returned left on the stack. Keys are wiped when they are dropped, but each move of one before
/// that may have left a copy.
#[inline(never)]
fn scrub_stack() {
    core::hint::black_box(&mut [0_u8; SCRUBBED]);
}

/// What a request is called on the console.
fn name(request: &Request<'_>) -> &'static str {
    match request {
        Request::SetPolicy { .. } => "set policy",
        Request::MountDevice { .. } => "mount device",
        Request::UnmountDevice { .. } => "unmount device",
        Request::MountOverlay { .. } => "mount overlay",
        Request::UnmountOverlay { .. } => "unmount overlay",
        Request::CreateContainer { .. } => "create container",
        Request::ExecInContainer { .. } => "exec in container",
        Request::SignalContainerProcess { .. } => "signal container process",
        Request::ShutdownContainer { .. } => "shut down container",
        Request::GetProperties => "get properties",
        Request::RuntimeLogging { .. } => "runtime logging",
        Request::PowerOff => "power off",
        Request::MountScratch { .. } => "mount scratch",
        Request::UnmountScratch { .. } => "unmount scratch",
        Request::MountVolume { .. } => "mount volume",
        Request::UnmountVolume { .. } => "unmount volume",
        Request::LoadFragment { .. } => "load fragment",
        Request::SetUpNetwork(_) => "set up network",
        Request::UpdateContainer { .. } => "update container",
        Request::GetUsage { .. } => "get usage",
        Request::OpenChannel { .. } => "open channel",
        Request::Sealed { .. } => "sealed message",
        Request::ReadAudit { .. } => "read audit",
        Request::ExecExternal { .. } => "exec external",
        Request::DumpStacks => "dump stacks",
        Request::Unoffered { point, .. } => point.name(),
        Request::ResizeTerminal { .. } => "resize terminal",
        Request::Endorse { .. } => "endorse",
    }
}

impl Events {
    /// Starts to listen. The report was read before; `heap` is where in memory the heap is.
    pub fn new(report: &Report, heap: Range<usize>) -> Result<Self, Failed> {
        let body = SpinMutexGuard::leak(BODY.lock());
        let bodies = body.as_mut_ptr_range();
        let secrets = [heap, bodies.start.expose_provenance()..bodies.end.addr()];
        let (place, _) = Places::default().attestation;
        let source = |data: &[u8; 64]| attest::report_over(data).ok().map(|report| *report.bytes());
        let places = Places { secrets, attestation: (place, source), ..Places::default() };
        let epoll = step("epoll", epoll::create(CreateFlags::CLOEXEC))?;
        let events = Self {
            control_listener: step("control port", vsock::listener(CONTROL_PORT))?,
            stream_listener: step("stream port", vsock::listener(STREAM_PORT))?,
            children: step("signals", signal::child_signals())?,
            control: None,
            pending: [const { None }; MAX_PENDING],
            body,
            monitor: Monitor {
                gate: Gate::new(*report.host_data(), report.bytes()),
                guest: Guest {
                    layers: step("device-mapper", Layers::new())?,
                    disks: step("device-mapper", Disks::new())?,
                    containers: step("containers", Containers::new(&epoll, places))?,
                    logging: false,
                },
            },
            epoll,
        };
        step("epoll", events.watch(&events.control_listener, CONTROL_LISTENER, EventFlags::IN))?;
        step("epoll", events.watch(&events.stream_listener, STREAM_LISTENER, EventFlags::IN))?;
        step("epoll", events.watch(&events.children, CHILDREN, EventFlags::IN))?;
        Ok(events)
    }

    /// Runs until the machine ends, or something fails without which it cannot go on.
    pub fn run(mut self) -> Result<Infallible, Failed> {
        loop {
            let mut batch = [MaybeUninit::uninit(); BATCH];
            let batch: &[Event] = match epoll::wait(&self.epoll, &mut batch, None) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => &[],
                Err(errno) => return Err(Failed { step: "epoll", errno }),
            };
            for event in batch {
                let (token, flags) = (event.data.u64(), event.flags);
                match token {
                    CONTROL_LISTENER => step("control port", self.accept_control())?,
                    STREAM_LISTENER => step("stream port", self.accept_stream())?,
                    CHILDREN => step("signals", self.reap())?,
                    CONTROL => self.serve(),
                    _ if token & TOKEN_BIT != 0 => self.monitor.guest.containers.on_event(token, flags),
                    _ => self.attach(token),
                }
                self.tell_exits();
                self.stop_if_told();
            }
        }
    }

    fn watch(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)
    }

    /// The next connection from the host, if there is one and it is from there.
    fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
        // SECURITY (T03): the peer's context id is filled in by the transport; a process in this machine has another.
        Ok(vsock::accept(listener)?.and_then(|(socket, peer)| (peer == vsock::HOST).then_some(socket)))
    }

    fn accept_control(&mut self) -> Result<(), Errno> {
        let Some(socket) = Self::accept(&self.control_listener)? else { return Ok(()) };
        if self.control.is_some() {
            // SECURITY (T03): a second connection takes nothing over; it ends here.
            return Ok(());
        }
        let gate = &self.monitor.gate;
        let greeted = Control::new(socket, gate.phase()).and_then(|mut control| {
            gate.exited().try_for_each(|(process, status)| control.exited(process.get(), status))?;
            Ok(control)
        });
        if let Ok(control) = greeted {
            self.watch(&control, CONTROL, control.interest())?;
            self.control = Some(control);
        }
        Ok(())
    }

    fn serve(&mut self) {
        if let Some(control) = &mut self.control
            && control.ready(self.body, &mut self.monitor).is_err()
        {
            // Closing the last descriptor takes it out of the epoll set.
            self.control = None;
        }
        self.rearm();
    }

    /// Waits for what the control connection needs next; level-triggered, so nothing is missed.
    fn rearm(&mut self) {
        if let Some(control) = &self.control
            && epoll::modify(&self.epoll, control, EventData::new_u64(CONTROL), control.interest()).is_err()
        {
            self.control = None;
        }
    }

    fn accept_stream(&mut self) -> Result<(), Errno> {
        let Some(socket) = Self::accept(&self.stream_listener)? else { return Ok(()) };
        let free = (PENDING..).zip(&mut self.pending).find(|(_, place)| place.is_none());
        if let Some((token, place)) = free {
            epoll::add(&self.epoll, &socket, EventData::new_u64(token), EventFlags::IN)?;
            *place = Some(Pending::new(socket));
        }
        Ok(())
    }

    /// Goes on with a connection that has not yet said which stream it wants.
    fn attach(&mut self, token: u64) {
        let place = usize::try_from(token.wrapping_sub(PENDING)).ok().and_then(|at| self.pending.get_mut(at));
        // An event of a connection that ended in the same batch finds an empty place.
        let Some(place) = place else { return };
        match place.take().map(Pending::ready) {
            Some(Progress::Waiting(pending)) => *place = Some(pending),
            Some(Progress::Asks(Attach { process, stream }, socket)) => {
                let process = ProcessId(process);
                let containers = &mut self.monitor.guest.containers;
                let allowed = match self.monitor.gate.phase() {
                    Phase::Running => containers.attachable(process, stream).map_err(Reason::from),
                    Phase::Poisoned => Err(Reason::Poisoned),
                    phase => Err(Reason::WrongPhase { phase }),
                };
                let attach = allowed.is_ok();
                // The answer comes before the first byte of the stream. A connection that fails on the way to its
                // stream is closed; the stream stays as it was, to be attached by another.
                let handed_over = epoll::delete(&self.epoll, &socket).and_then(|()| answer(&socket, allowed));
                if attach && handed_over.is_ok() {
                    let _ = containers.attach(process, stream, socket);
                }
            }
            Some(Progress::Over) | None => {}
        }
    }

    /// Waits for every child that has ended: processes of containers, and orphans that the kernel gave to PID 1.
    fn reap(&mut self) -> Result<(), Errno> {
        signal::drain(&self.children)?;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some((process, status)) = self.monitor.guest.containers.reaped(pid, status) {
                        self.exited(process, status);
                    }
                }
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Passes on the exits that a shutdown waited for itself. The gate has forgotten these processes by now; the host,
    /// which was told their numbers, has not.
    fn tell_exits(&mut self) {
        for (process, status) in self.monitor.guest.containers.take_exits() {
            self.tell(process, status);
        }
    }

    fn exited(&mut self, process: ProcessId, status: ExitStatus) {
        if self.monitor.gate.process_exited(process, status) {
            self.tell(process, status);
        }
    }

    fn tell(&mut self, process: ProcessId, status: ExitStatus) {
        if self.control.as_mut().is_some_and(|control| control.exited(process.get(), status).is_err()) {
            self.control = None;
        }
        self.rearm();
    }

    fn stop_if_told(&self) {
        if self.monitor.gate.phase() == Phase::Stopping
            && self.control.as_ref().is_none_or(Control::is_flushed)
        {
            rustix::fs::sync();
            power::off();
        }
    }
}
