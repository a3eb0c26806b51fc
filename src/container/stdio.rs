//! Standard streams: pipes to the processes, sockets to the host, and bytes between them.
//!
//! Of a sealed stream a record is held here ([`super::sealed`]), of others nothing. A host that does not read, or floods, blocks or feeds exactly one stream of one process, and the init never (C12). What a
//! process wrote before it ended is still in the pipe and is delivered; when the reader goes away, output is thrown
//! away, so that the process neither blocks nor dies of it.
//!
//! A terminal has a pipe for each direction too, between it and the socket, so that to the host it is a pair of streams
//! like any other.
//!
//! Both descriptors of a stream are in the epoll set, edge-triggered; each event moves all that can be moved.

use super::relay::{Progress, Relay, State};
use super::sealed::Sealed;
use super::terminal;
use crate::gate::action::ProcessId;
use crate::gate::fields::{Stdio, WindowSize};
use crate::linux::Errno;
use crate::wire::{Field, Reason, Step, Stream};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A tick of the clock by which connections are reminded of their end, and readers are waited for, in nanoseconds.
const TICK: i64 = 100_000_000;
/// Ticks until output is not kept back any more for a reader that has not attached: ten seconds.
const PATIENCE: u16 = if cfg!(test) { 5 } else { 100 };

/// A pipe whose ends are both closed on exec and neither of which is among descriptors 0–2.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((above_stdio(reader)?, above_stdio(writer)?))
}

/// The same, not among descriptors 0–2.
pub fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fcntl_dupfd_cloexec(&fd, 3) }
}

/// The process's ends of its pipes, or its terminal; where there is neither it gets a null device.
#[derive(Debug, Default)]
pub struct ChildEnds {
    /// To read from.
    pub stdin: Option<OwnedFd>,
    /// To write to.
    pub stdout: Option<OwnedFd>,
    /// To write to.
    pub stderr: Option<OwnedFd>,
    /// In place of all three.
    pub terminal: Option<OwnedFd>,
}

/// The init's ends.
#[derive(Debug, Default)]
pub struct OurEnds {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// From the host to a terminal: the pipe's other end, and the terminal.
    typed: Option<(OwnedFd, OwnedFd)>,
    /// From a terminal to the host.
    shown: Option<(OwnedFd, OwnedFd)>,
}

/// Makes a pipe for each stream that was decided on, or the terminal, in the container's own filesystem of terminals.
pub fn open(stdio: Stdio, terminals: BorrowedFd<'_>) -> Result<(ChildEnds, OurEnds), Errno> {
    let stdio = stdio.get();
    let (mut child, mut ours) = (ChildEnds::default(), OurEnds::default());
    if stdio.stdin {
        let (reader, writer) = pipe()?;
        ioctl_fionbio(&writer, true)?;
        (child.stdin, ours.stdin) = (Some(reader), Some(writer));
    }
    if stdio.stdout {
        let (reader, writer) = pipe()?;
        ioctl_fionbio(&reader, true)?;
        (child.stdout, ours.stdout) = (Some(writer), Some(reader));
    }
    if stdio.stderr {
        let (reader, writer) = pipe()?;
        ioctl_fionbio(&reader, true)?;
        (child.stderr, ours.stderr) = (Some(writer), Some(reader));
    }
    if let Some(size) = stdio.terminal {
        let (inner, outer) = terminal::open(terminals, size)?;
        // What would have been the process's ends are the terminal's.
        for (pipe, place) in [(child.stdin.take(), &mut ours.typed), (child.stdout.take(), &mut ours.shown)] {
            if let Some(pipe) = pipe {
                ioctl_fionbio(&pipe, true)?;
                *place = Some((pipe, fcntl_dupfd_cloexec(&outer, 3)?));
            }
        }
        child.terminal = Some(inner);
    }
    Ok((child, ours))
}

/// Why a stream cannot be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAttachable {
    /// There is no such process, or it has no such stream for the host, or that one has ended.
    Unknown,
    /// It is attached already.
    Again,
    /// The kernel would not.
    Failed(Errno),
}

impl From<NotAttachable> for Reason {
    fn from(error: NotAttachable) -> Self {
        match error {
            NotAttachable::Unknown => Self::Unknown { field: Field::Stdio },
            NotAttachable::Again => Self::InUse { field: Field::Stdio },
            NotAttachable::Failed(errno) => Self::Failed {
                step: Step::Descriptors,
                errno: u16::try_from(errno.raw_os_error()).unwrap_or(0),
            },
        }
    }
}

/// Which stream, for an epoll token. Bit 63 is set; 35–4: process; 3–1: stream; 0: the peer (1) or the pipe (0).
pub type Key = (u32, u8);

/// The streams between a terminal and its pipes, which the host does not see.
const TYPED: u8 = 3;
const SHOWN: u8 = 4;

fn key(process: ProcessId, stream: Stream) -> Key {
    let stream = match stream {
        Stream::Stdin => 0,
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    (process.get(), stream)
}

/// The token of one side of a stream.
pub fn token((process, stream): Key, peer: bool) -> EventData {
    EventData::new_u64(super::TOKEN_BIT | u64::from(process) << 4 | u64::from(stream) << 1 | u64::from(peer))
}

/// All streams of all processes.
#[derive(Debug)]
pub struct Streams {
    epoll: OwnedFd,
    null: OwnedFd,
    /// Ticks while `ticking`: while there is a stream that [`Relay::ages`].
    timer: OwnedFd,
    ticking: bool,
    streams: BTreeMap<Key, Relay>,
}

/// The timer's token: no process has number 0.
const TIMER: u64 = super::TOKEN_BIT;

impl Streams {
    /// None yet. They will report to `epoll`.
    pub fn new(epoll: OwnedFd) -> Result<Self, Errno> {
        let null = openat(CWD, c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        Ok(Self { epoll, null, timer, ticking: false, streams: BTreeMap::new() })
    }

    /// The streams of a process that started, for the host to attach to. `waits`: what nobody reads of its output waits for
    /// ever.
    pub fn add(&mut self, process: ProcessId, ends: OurEnds, sealed: [Option<Box<Sealed>>; 3], waits: bool) {
        let patience = (!waits).then_some(PATIENCE);
        let OurEnds { stdin, stdout, stderr, typed, shown } = ends;
        let streams = [
            (Stream::Stdin, stdin, None),
            (Stream::Stdout, stdout, patience),
            (Stream::Stderr, stderr, patience),
        ];
        for ((stream, pipe, patience), sealed) in streams.into_iter().zip(sealed) {
            if let Some(pipe) = pipe {
                self.streams.insert(key(process, stream), Relay::unattached(pipe, sealed, patience));
            }
        }
        // Without the timer output waits, which is all that can be done.
        let _ = self.set_ticking();
        for (number, state, ends) in [(TYPED, State::Typing, typed), (SHOWN, State::Input, shown)] {
            let Some((pipe, terminal)) = ends else { continue };
            let (key, mut relay) = ((process.get(), number), Relay::unattached(pipe, None, None));
            // Where the kernel has no memory for it, this is a terminal that is hung up.
            if relay.start(terminal, state, &self.epoll, key).is_ok() {
                self.streams.insert(key, relay);
            }
        }
    }

    /// Says how large a process's terminal is. Nothing is to be done where nothing has it open any more.
    pub fn resize(&self, process: ProcessId, size: WindowSize) -> Result<(), Errno> {
        let relay = self.streams.get(&(process.get(), SHOWN));
        relay.and_then(Relay::terminal).map_or(Ok(()), |terminal| terminal::resize(terminal, size.get()))
    }

    /// Forgets what was never attached; what was, is still delivered.
    pub fn remove_unattached(&mut self, process: ProcessId) {
        self.streams.retain(|&(owner, _), relay| owner != process.get() || !relay.is_unattached());
    }

    /// Whether [`Streams::attach`] would be accepted.
    pub fn attachable(&self, process: ProcessId, stream: Stream) -> Result<(), NotAttachable> {
        match self.streams.get(&key(process, stream)) {
            Some(relay) if relay.is_unattached() => Ok(()),
            Some(_) => Err(NotAttachable::Again),
            None => Err(NotAttachable::Unknown),
        }
    }

    /// Connects a stream to a socket, from the next event on.
    pub fn attach(
        &mut self,
        process: ProcessId,
        stream: Stream,
        socket: OwnedFd,
    ) -> Result<(), NotAttachable> {
        self.attachable(process, stream)?;
        let key = key(process, stream);
        let relay = self.streams.get_mut(&key).ok_or(NotAttachable::Unknown)?;
        let state = if stream == Stream::Stdin { State::Input } else { State::Output };
        relay.start(socket, state, &self.epoll, key).map_err(|errno| {
            // Closing both takes them out of the epoll set. The process sees the end of its input, or of its reader.
            self.streams.remove(&key);
            NotAttachable::Failed(errno)
        })
    }

    /// Moves what can be moved.
    pub fn on_event(&mut self, token: u64, flags: EventFlags) {
        if token == TIMER {
            return self.tick();
        }
        let peer = token & 1 == 1;
        // What is shifted out is the stream and the side; what is cut off, the bit that made it ours.
        let key = ((token >> 4) as u32, (token >> 1) as u8 & 7);
        let Some(relay) = self.streams.get_mut(&key) else { return };
        let gone = peer && flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let done = match relay.advance(gone, &self.null) {
            Progress::Waiting => false,
            Progress::Done => true,
            // There is more than its turn; it goes to the end of the queue.
            Progress::More => relay.rearm(&self.epoll, key).is_err(),
            // Without the timer the connection is closed at once, which is all that can be done.
            Progress::Flushed => self.set_ticking().is_err(),
        };
        if done {
            self.streams.remove(&key);
        }
    }

    /// Tells the peers of flushed streams once more, and forgets those that agree or never will; gives up waiting for readers
    /// whose time is over.
    fn tick(&mut self) {
        // How often it expired does not matter, only that it is not readable any more.
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        let epoll = &self.epoll;
        self.streams.retain(|&key, relay| !relay.tick(epoll, key));
        // A timer that goes on is of no harm.
        let _ = self.set_ticking();
    }

    /// Has the timer tick if there is a stream that it is for, and only then.
    fn set_ticking(&mut self) -> Result<(), Errno> {
        let wanted = self.streams.values().any(Relay::ages);
        if wanted != self.ticking {
            let interval = Timespec { tv_sec: 0, tv_nsec: if wanted { TICK } else { 0 } };
            let setting = Itimerspec { it_interval: interval, it_value: interval };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
            self.ticking = wanted;
        }
        Ok(())
    }
}
