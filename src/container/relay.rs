//! One direction of one stream: bytes from a pipe to a socket or a terminal, or the other way round.
//!
//! Nothing is buffered here: splice(2) moves bytes from the one to the other, and where one is full, the pipe is what is
//! bounded.
//!
//! The end of output is a full shutdown of the connection that leaves it open, so that the kernel does not reset it
//! under a slow reader as it does eight seconds after a close. `vhost-device-vsock` takes no notice of a shutdown while
//! it still holds bytes itself, so the peer is reminded until it agrees.

use super::stdio::{Key, token};
use crate::linux::Errno;
use rustix::event::epoll::{self, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{ioctl_fionbio, write};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::pipe::{SpliceFlags, splice};

/// Most bytes of one splice.
const CHUNK: usize = crate::linux::vsock::MAX_SEND;
/// Most chunks of one event, so that a busy stream leaves the others their turn.
const CHUNKS: usize = 8;
/// Reminders until a connection is closed whatever its peer says: after a minute.
const REMINDERS: u16 = 600;
/// What ends the input of a program that reads a terminal by lines, as it is set at first (`VEOF`). After the beginning of
/// a line the first only ends that.
const END_OF_INPUT: [u8; 2] = [4, 4];

/// What becomes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody came yet. What the process writes waits in the pipe.
    Unattached,
    /// From the socket, or what a terminal shows, to the pipe.
    Input,
    /// From the pipe to the socket.
    Output,
    /// From the pipe to the terminal.
    Typing,
    /// The reader went away: from the pipe to nowhere.
    Drain,
    /// All was written to the socket, and the peer was told this often that nothing follows.
    Flushed { reminders: u16 },
}

/// What one event came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more can be moved until the next event.
    Waiting,
    /// More can be moved at once.
    More,
    /// All was moved; the peer has yet to agree.
    Flushed,
    /// Both ends are done with.
    Done,
}

/// A pipe and a socket, or a pipe and a terminal.
#[derive(Debug)]
pub struct Relay {
    pipe: Option<OwnedFd>,
    peer: Option<OwnedFd>,
    state: State,
}

const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

impl Relay {
    /// A non-blocking pipe whose peer has yet to come.
    pub fn unattached(pipe: OwnedFd) -> Self {
        Self { pipe: Some(pipe), peer: None, state: State::Unattached }
    }

    /// What becomes of it.
    pub fn state(&self) -> State {
        self.state
    }

    /// The terminal, where it has one.
    pub fn terminal(&self) -> Option<&OwnedFd> {
        self.peer.as_ref()
    }

    /// Moves bytes between the pipe and this peer, from the next event on. It takes both into the epoll set.
    pub fn start(&mut self, peer: OwnedFd, state: State, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        ioctl_fionbio(&peer, true)?;
        let (Some(pipe), peer) = (&self.pipe, self.peer.insert(peer)) else { return Err(Errno::BADF) };
        self.state = state;
        epoll::add(epoll, pipe, token(key, false), INTEREST)?;
        epoll::add(epoll, peer, token(key, true), INTEREST)
    }

    /// Has the pipe reported again if there is still something to move.
    pub fn rearm(&self, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        match (&self.pipe, &self.peer) {
            (Some(pipe), _) if self.state != State::Input => {
                epoll::modify(epoll, pipe, token(key, false), INTEREST)
            }
            (_, Some(peer)) => epoll::modify(epoll, peer, token(key, true), INTEREST),
            _ => Ok(()),
        }
    }

    /// One event's worth of work. `gone`: whoever is behind the peer neither reads nor writes any more.
    pub fn advance(&mut self, gone: bool, null: &OwnedFd) -> Progress {
        if gone {
            match self.state {
                State::Output | State::Typing => self.drain(),
                State::Flushed { .. } if self.is_over() => return Progress::Done,
                // What the host sent before it went is still to be read.
                State::Flushed { .. } | State::Input | State::Drain | State::Unattached => {}
            }
        }
        for _ in 0..CHUNKS {
            let (from, to) = match (self.state, &self.pipe, &self.peer) {
                (State::Input, Some(pipe), Some(peer)) => (peer.as_fd(), pipe.as_fd()),
                (State::Output | State::Typing, Some(pipe), Some(peer)) => (pipe.as_fd(), peer.as_fd()),
                (State::Drain, Some(pipe), _) => (pipe.as_fd(), null.as_fd()),
                _ => return Progress::Waiting,
            };
            match splice(from, None, to, None, CHUNK, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
                Ok(0) if self.state == State::Output => {
                    self.pipe = None;
                    self.state = State::Flushed { reminders: 0 };
                    return if self.remind() { Progress::Done } else { Progress::Flushed };
                }
                Ok(0) if self.state == State::Typing => {
                    // It is tried again when the terminal has taken what was typed before.
                    let typed = self.peer.as_ref().map(|terminal| write(terminal, &END_OF_INPUT));
                    return if typed == Some(Err(Errno::AGAIN)) { Progress::Waiting } else { Progress::Done };
                }
                // The end of the host's input, or of output that nobody reads.
                Ok(0) => return Progress::Done,
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(_) if matches!(self.state, State::Output | State::Typing) => self.drain(),
                // The process closed its standard input, the host its connection, or the last process its terminal.
                Err(_) => return Progress::Done,
            }
        }
        Progress::More
    }

    /// Tells the peer of a flushed stream that nothing follows. Whether it is over now; never that of another stream.
    pub fn remind(&mut self) -> bool {
        let State::Flushed { reminders } = &mut self.state else { return false };
        *reminders += 1;
        let told = self.peer.as_ref().map(|socket| shutdown(socket, Shutdown::Both));
        *reminders > REMINDERS || told != Some(Ok(())) || self.is_over()
    }

    /// Whether the peer of a connection that was shut down here has let go of it too.
    fn is_over(&self) -> bool {
        let Some(socket) = &self.peer else { return true };
        // After a full shutdown neither poll nor read tells. But vsock_connectible_recvmsg looks whether there is still
        // a connection before it says that it has no urgent data.
        recv(socket, &mut [0u8; 1], RecvFlags::OOB | RecvFlags::DONTWAIT).map(drop) != Err(Errno::OPNOTSUPP)
    }

    fn drain(&mut self) {
        self.peer = None;
        self.state = State::Drain;
    }
}
