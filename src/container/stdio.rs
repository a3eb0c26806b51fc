//! Standard streams: pipes to the processes, sockets to the host, and bytes between them.
//!
//! Nothing is buffered here: splice(2) moves bytes from the one to the other, and where one is full, the pipe is what
//! is bounded. So a host that does not read, or floods, blocks or feeds exactly one stream of one process, and the init
//! never (C12). What a process wrote before it ended is still in the pipe and is delivered; when the reader goes away,
//! output is thrown away, so that the process neither blocks nor dies of it.
//!
//! Both descriptors of a stream are in the epoll set, edge-triggered; each event moves all that can be moved.

use crate::gate::action::ProcessId;
use crate::linux::Errno;
use crate::wire::{Field, Reason, Stdio, Step, Stream};
use alloc::collections::BTreeMap;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{fcntl_dupfd_cloexec, ioctl_fionbio};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// Most bytes of one splice.
const CHUNK: usize = crate::linux::vsock::MAX_SEND;
/// Most chunks of one event, so that a busy stream leaves the others their turn.
const CHUNKS: usize = 8;

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
    streams: BTreeMap<Key, Relay>,
}

impl Streams {
    /// None yet. They will report to `epoll`.
    pub fn new(epoll: OwnedFd) -> Result<Self, Errno> {
        let null = openat(CWD, c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { epoll, null, streams: BTreeMap::new() })
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
        };
        if done {
            self.streams.remove(&key);
        }
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
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Nothing more can be moved until the next event.
    Waiting,
    /// More can be moved at once.
    More,
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
        // What the host sent before it went is still to be read.
        if gone && self.state == State::Output {
            self.drain();
        }
        for _ in 0..CHUNKS {
            let (from, to) = match (self.state, &self.pipe, &self.socket) {
                (State::Input, Some(pipe), Some(socket)) => (socket.as_fd(), pipe.as_fd()),
                (State::Output, Some(pipe), Some(socket)) => (pipe.as_fd(), socket.as_fd()),
                (State::Drain, Some(pipe), _) => (pipe.as_fd(), null.as_fd()),
                _ => return Progress::Waiting,
            };
            match splice(from, None, to, None, CHUNK, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                // The end of the host's input, or of output. Closing says so to the other side; half a shutdown would be
                // enough for Linux's own vsock, but `vhost-device-vsock` does not pass it on.
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

    fn drain(&mut self) {
        self.socket = None;
        self.state = State::Drain;
    }
}
