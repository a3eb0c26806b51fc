//! Standard streams: pipes to the processes, sockets to the host, and bytes between them.
//!
//! Nothing is buffered here: splice(2) moves bytes from the one to the other, and where one is full, the pipe is what
//! is bounded. So a host that does not read, or floods, blocks or feeds exactly one stream of one process, and the init
//! never (C12). What a process wrote before it ended is still in the pipe and is delivered; when the reader goes away,
//! output is thrown away, so that the process neither blocks nor dies of it.
//!
//! Both descriptors of a stream are in the epoll set, edge-triggered; each event moves all that can be moved.
//!
//! The end of output is a full shutdown of the connection that leaves it open, so that the kernel does not reset it
//! under a slow reader as it does eight seconds after a close. `vhost-device-vsock` takes no notice of a shutdown while
//! it still holds bytes itself, so the peer is reminded until it agrees.

use crate::gate::action::ProcessId;
use crate::linux::Errno;
use crate::wire::{Field, Reason, Stdio, Step, Stream};
use alloc::collections::BTreeMap;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Most bytes of one splice.
const CHUNK: usize = crate::linux::vsock::MAX_SEND;
/// Most chunks of one event, so that a busy stream leaves the others their turn.
const CHUNKS: usize = 8;

/// Time between two reminders of a connection's end, in nanoseconds.
const REMINDER: i64 = 100_000_000;
/// Reminders until a connection is closed whatever its peer says: after a minute.
const REMINDERS: u16 = 600;

/// A pipe whose ends are both closed on exec and neither of which is among descriptors 0–2.
pub fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((above_stdio(reader)?, above_stdio(writer)?))
}

fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { fcntl_dupfd_cloexec(&fd, 3) }
}

/// The process's ends of its pipes; where there is none it gets a null device.
#[derive(Debug, Default)]
pub struct ChildEnds {
    /// To read from.
    pub stdin: Option<OwnedFd>,
    /// To write to.
    pub stdout: Option<OwnedFd>,
    /// To write to.
    pub stderr: Option<OwnedFd>,
}

/// The init's ends.
#[derive(Debug, Default)]
pub struct OurEnds {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Makes a pipe for each stream that was decided on.
pub fn pipes(stdio: Stdio) -> Result<(ChildEnds, OurEnds), Errno> {
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

/// Which stream, for an epoll token. Bit 63 is set; 34–3: process; 2–1: stream; 0: socket (1) or pipe (0).
type Key = (u32, u8);

fn key(process: ProcessId, stream: Stream) -> Key {
    let stream = match stream {
        Stream::Stdin => 0,
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    (process.get(), stream)
}

fn token((process, stream): Key, socket: bool) -> EventData {
    EventData::new_u64(
        super::TOKEN_BIT | u64::from(process) << 3 | u64::from(stream) << 1 | u64::from(socket),
    )
}

/// All streams of all processes.
#[derive(Debug)]
pub struct Streams {
    epoll: OwnedFd,
    null: OwnedFd,
    /// Runs while a stream is in [`State::Flushed`].
    timer: OwnedFd,
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
        Ok(Self { epoll, null, timer, streams: BTreeMap::new() })
    }

    /// The streams of a process that started, for the host to attach to.
    pub fn add(&mut self, process: ProcessId, ends: OurEnds) {
        let OurEnds { stdin, stdout, stderr } = ends;
        for (stream, pipe) in [(Stream::Stdin, stdin), (Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            if let Some(pipe) = pipe {
                let state = State::Unattached;
                self.streams.insert(key(process, stream), Relay { pipe: Some(pipe), socket: None, state });
            }
        }
    }

    /// Forgets what was never attached; what was, is still delivered.
    pub fn remove_unattached(&mut self, process: ProcessId) {
        self.streams.retain(|&(owner, _), relay| owner != process.get() || relay.state != State::Unattached);
    }

    /// Whether [`Streams::attach`] would be accepted.
    pub fn attachable(&self, process: ProcessId, stream: Stream) -> Result<(), NotAttachable> {
        match self.streams.get(&key(process, stream)).map(|relay| relay.state) {
            Some(State::Unattached) => Ok(()),
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
        relay.socket = Some(socket);
        relay.state = if stream == Stream::Stdin { State::Input } else { State::Output };
        relay.register(&self.epoll, key).map_err(|errno| {
            // Closing both takes them out of the epoll set. The process sees the end of its input, or of its reader.
            self.streams.remove(&key);
            NotAttachable::Failed(errno)
        })
    }

    /// Moves what can be moved.
    pub fn on_event(&mut self, token: u64, flags: EventFlags) {
        if token == TIMER {
            return self.remind();
        }
        let socket = token & 1 == 1;
        // What is shifted out is the stream and the side; what is cut off, the bit that made it ours.
        let key = ((token >> 3) as u32, (token >> 1) as u8 & 3);
        let Some(relay) = self.streams.get_mut(&key) else { return };
        let gone = socket && flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let done = match relay.advance(gone, &self.null) {
            Progress::Waiting => false,
            Progress::Done => true,
            // There is more than its turn; it goes to the end of the queue.
            Progress::More => relay.rearm(&self.epoll, key).is_err(),
            // Without the timer the connection is closed at once, which is all that can be done.
            Progress::Flushed => self.set_timer(REMINDER).is_err(),
        };
        if done {
            self.streams.remove(&key);
        }
    }

    /// Tells the peers of flushed streams once more, and forgets those that agree or never will.
    fn remind(&mut self) {
        // How often it expired does not matter, only that it is not readable any more.
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        self.streams.retain(|_, relay| !relay.remind());
        if !self.streams.values().any(|relay| matches!(relay.state, State::Flushed { .. })) {
            // A timer that goes on is of no harm.
            let _ = self.set_timer(0);
        }
    }

    /// Nanoseconds between two events; 0 for none.
    fn set_timer(&self, interval: i64) -> Result<(), Errno> {
        let interval = Timespec { tv_sec: 0, tv_nsec: interval };
        let setting = Itimerspec { it_interval: interval, it_value: interval };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting).map(drop)
    }
}

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody came yet. What the process writes waits in the pipe.
    Unattached,
    /// From the socket to the pipe.
    Input,
    /// From the pipe to the socket.
    Output,
    /// The reader went away: from the pipe to nowhere.
    Drain,
    /// All was written to the socket, and the peer was told this often that nothing follows.
    Flushed { reminders: u16 },
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing more can be moved until the next event.
    Waiting,
    /// More can be moved at once.
    More,
    /// All was moved; the peer has yet to agree.
    Flushed,
    /// Both ends are done with.
    Done,
}

/// A pipe and a socket.
#[derive(Debug)]
struct Relay {
    pipe: Option<OwnedFd>,
    socket: Option<OwnedFd>,
    state: State,
}

const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

impl Relay {
    fn register(&self, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        let (Some(pipe), Some(socket)) = (&self.pipe, &self.socket) else { return Err(Errno::BADF) };
        ioctl_fionbio(socket, true)?;
        epoll::add(epoll, pipe, token(key, false), INTEREST)?;
        epoll::add(epoll, socket, token(key, true), INTEREST)
    }

    /// Has the pipe reported again if there is still something to move.
    fn rearm(&self, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        match (&self.pipe, &self.socket) {
            (Some(pipe), _) if self.state != State::Input => {
                epoll::modify(epoll, pipe, token(key, false), INTEREST)
            }
            (_, Some(socket)) => epoll::modify(epoll, socket, token(key, true), INTEREST),
            _ => Ok(()),
        }
    }

    /// One event's worth of work. `gone`: the peer of the socket neither reads nor writes any more.
    fn advance(&mut self, gone: bool, null: &OwnedFd) -> Progress {
        if gone {
            match self.state {
                State::Output => self.drain(),
                State::Flushed { .. } if self.is_over() => return Progress::Done,
                // What the host sent before it went is still to be read.
                State::Flushed { .. } | State::Input | State::Drain | State::Unattached => {}
            }
        }
        for _ in 0..CHUNKS {
            let (from, to) = match (self.state, &self.pipe, &self.socket) {
                (State::Input, Some(pipe), Some(socket)) => (socket.as_fd(), pipe.as_fd()),
                (State::Output, Some(pipe), Some(socket)) => (pipe.as_fd(), socket.as_fd()),
                (State::Drain, Some(pipe), _) => (pipe.as_fd(), null.as_fd()),
                _ => return Progress::Waiting,
            };
            match splice(from, None, to, None, CHUNK, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                Ok(0) if self.state == State::Output => {
                    self.pipe = None;
                    self.state = State::Flushed { reminders: 0 };
                    return if self.remind() { Progress::Done } else { Progress::Flushed };
                }
                // The end of the host's input, or of output that nobody reads.
                Ok(0) => return Progress::Done,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(_) if self.state == State::Output => self.drain(),
                // The process closed its standard input, or the host its connection.
                Err(_) => return Progress::Done,
            }
        }
        Progress::More
    }

    /// Tells the peer of a flushed stream that nothing follows. Whether it is over now; never that of another stream.
    fn remind(&mut self) -> bool {
        let State::Flushed { reminders } = &mut self.state else { return false };
        *reminders += 1;
        let told = self.socket.as_ref().map(|socket| shutdown(socket, Shutdown::Both));
        *reminders > REMINDERS || told != Some(Ok(())) || self.is_over()
    }

    /// Whether the peer of a connection that was shut down here has let go of it too.
    fn is_over(&self) -> bool {
        let Some(socket) = &self.socket else { return true };
        // After a full shutdown neither poll nor read tells. But vsock_connectible_recvmsg looks whether there is still
        // a connection before it says that it has no urgent data.
        recv(socket, &mut [0u8; 1], RecvFlags::OOB | RecvFlags::DONTWAIT).map(drop) != Err(Errno::OPNOTSUPP)
    }

    fn drain(&mut self) {
        self.socket = None;
        self.state = State::Drain;
    }
}
