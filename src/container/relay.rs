//! One direction of one stream: bytes from a pipe to a socket or a terminal, or the other way round.
//!
//! Nothing is buffered here, but of a sealed stream a record ([`super::sealed`]): splice(2) moves bytes from the one to the other,
//! and where one is full, the pipe is what is bounded. Output moves to a second pipe first, all there is of it, so that the process
//! writes a good deal again while that is sent, rather than wait for each packet.
//!
//! Output that nobody attaches to in time holds its process up no longer (C12): the first of it moves to a second pipe,
//! where it is kept, and what then does not fit is thrown away.
//!
//! The end of output is a full shutdown of the connection that leaves it open, so that the kernel does not reset it
//! under a slow reader as it does eight seconds after a close. `vhost-device-vsock` takes no notice of a shutdown while
//! it still holds bytes itself, so the peer is reminded until it agrees.

use super::sealed::Sealed;
use super::stdio::{Key, pipe, token};
use crate::linux::Errno;
use alloc::boxed::Box;
use rustix::event::epoll::{self, EventFlags};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{ioctl_fionbio, read, write};
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

/// Most bytes of one splice.
const CHUNK: usize = crate::linux::vsock::MAX_SEND;
/// Bytes that a pipe takes as a whole or not at all.
const PIPE_BUF: usize = 4096;
/// Bytes that each of an output's two pipes holds while somebody reads it.
const OUTPUT_PIPE: usize = 512 << 10;
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
    /// Nobody came yet. What the process writes waits in the pipe: for so many ticks more, or for ever.
    Unattached { left: Option<u16> },
    /// Nobody came in time. From the pipe to where it is kept, and then to nowhere.
    Absent,
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
    /// What was written before anybody came, and until it is full the way there.
    kept: Option<(OwnedFd, Option<OwnedFd>)>,
    /// Output that is being sent.
    stage: Option<Stage>,
    state: State,
    /// What the peer carries is encrypted.
    sealed: Option<Box<Sealed>>,
}

/// What of an output has left the process's pipe and was not yet sent.
#[derive(Debug)]
struct Stage {
    reader: OwnedFd,
    writer: OwnedFd,
    filled: usize,
}

impl Stage {
    fn new() -> Result<Self, Errno> {
        let (reader, writer) = pipe()?;
        fcntl_setpipe_size(&reader, OUTPUT_PIPE)?;
        Ok(Self { reader, writer, filled: 0 })
    }

    /// Moves bytes one step on. As of splice(2) 0 is the end of the output; what is here has then been sent.
    fn advance(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<usize, Errno> {
        if self.filled == 0 {
            self.filled = moved(from, self.writer.as_fd(), OUTPUT_PIPE)?;
            return Ok(self.filled);
        }
        let sent = moved(self.reader.as_fd(), to, CHUNK)?;
        self.filled = self.filled.saturating_sub(sent);
        Ok(sent)
    }
}

fn moved(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
    splice(from, None, to, None, most, SpliceFlags::NONBLOCK)
}

const INTEREST: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

impl Relay {
    /// A non-blocking pipe whose peer has yet to come: in so many ticks, or ever.
    pub fn unattached(pipe: OwnedFd, sealed: Option<Box<Sealed>>, left: Option<u16>) -> Self {
        // What is sealed is for its peer alone, and no part of it is thrown away.
        let left = left.filter(|_| sealed.is_none());
        Self {
            pipe: Some(pipe),
            peer: None,
            kept: None,
            stage: None,
            state: State::Unattached { left },
            sealed,
        }
    }

    /// Whether nobody came yet.
    pub fn is_unattached(&self) -> bool {
        matches!(self.state, State::Unattached { .. } | State::Absent)
    }

    /// Whether [`Self::tick`] has anything to do.
    pub fn ages(&self) -> bool {
        matches!(self.state, State::Unattached { left: Some(_) } | State::Flushed { .. })
    }

    /// A moment has passed. Whether this is over now.
    pub fn tick(&mut self, epoll: &OwnedFd, key: Key) -> bool {
        match self.state {
            State::Unattached { left: Some(0) } => self.keep(epoll, key).is_err(),
            State::Unattached { left: Some(left) } => {
                self.state = State::Unattached { left: Some(left - 1) };
                false
            }
            _ => self.remind(),
        }
    }

    /// Waits for nobody any more.
    fn keep(&mut self, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        let (reader, writer) = pipe()?;
        ioctl_fionbio(&writer, true)?;
        ioctl_fionbio(&reader, true)?;
        (self.kept, self.state) = (Some((reader, Some(writer))), State::Absent);
        self.pipe.as_ref().map_or(Ok(()), |pipe| epoll::add(epoll, pipe, token(key, false), INTEREST))
    }

    /// The terminal, where it has one.
    pub fn terminal(&self) -> Option<&OwnedFd> {
        self.peer.as_ref()
    }

    /// Moves bytes between the pipe and this peer, from the next event on. It takes both into the epoll set.
    pub fn start(&mut self, peer: OwnedFd, state: State, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        ioctl_fionbio(&peer, true)?;
        if state == State::Output && self.sealed.is_none() {
            self.stage = Some(Stage::new()?);
            // A process that made it larger itself is content with that.
            let _ = self.pipe.as_ref().map(|pipe| fcntl_setpipe_size(pipe, OUTPUT_PIPE));
        }
        let peer = self.peer.insert(peer);
        if let Some((_, writer)) = &mut self.kept {
            *writer = None;
        }
        if let (Some(pipe), State::Unattached { .. }) = (&self.pipe, self.state) {
            epoll::add(epoll, pipe, token(key, false), INTEREST)?;
        }
        self.state = state;
        epoll::add(epoll, peer, token(key, true), INTEREST)
    }

    /// Has the side reported again on which there is still something to move.
    pub fn rearm(&self, epoll: &OwnedFd, key: Key) -> Result<(), Errno> {
        // The pipe of output that is being sent may be empty, and its process silent from here on.
        let sending = self.stage.as_ref().is_some_and(|stage| stage.filled > 0);
        match (&self.pipe, &self.peer) {
            (Some(pipe), _) if self.state != State::Input && !sending => {
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
                _ => {}
            }
        }
        for _ in 0..CHUNKS {
            let kept = self.kept.as_ref().map(|(reader, _)| reader);
            let (from, to) = match (self.state, kept.or(self.pipe.as_ref()), &self.peer) {
                (State::Absent, ..) => return self.set_aside(),
                (State::Output, None, _) => return self.flush(),
                (State::Drain, None, _) => return Progress::Done,
                (State::Input, Some(pipe), Some(peer)) => (peer.as_fd(), pipe.as_fd()),
                (State::Output | State::Typing, Some(pipe), Some(peer)) => (pipe.as_fd(), peer.as_fd()),
                (State::Drain, Some(pipe), _) => (pipe.as_fd(), null.as_fd()),
                _ => return Progress::Waiting,
            };
            let moved = match (&mut self.sealed, &mut self.stage) {
                (Some(sealed), _) if matches!(self.state, State::Input | State::Output) => {
                    sealed.advance(from, to)
                }
                (None, Some(stage)) => stage.advance(from, to),
                _ => moved(from, to, CHUNK),
            };
            match moved {
                Ok(0) if self.kept.is_some() => self.kept = None,
                Ok(0) if self.state == State::Output => return self.flush(),
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

    /// Takes from a pipe what nobody reads: it is kept while there is room. It is copied, so that short writes come to lie
    /// next to each other.
    fn set_aside(&mut self) -> Progress {
        for _ in 0..CHUNKS {
            let Some(pipe) = &self.pipe else { return Progress::Waiting };
            let mut bytes = [0; PIPE_BUF];
            match read(pipe, &mut bytes) {
                // All that the process ever writes is there.
                Ok(0) => self.pipe = None,
                Ok(count) => {
                    // So many bytes are written as a whole or not at all (pipe(7)).
                    if let Some((_, way)) = &mut self.kept
                        && let Some(writer) = way
                        && write(writer, bytes.get(..count).unwrap_or_default()).is_err()
                    {
                        *way = None;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Progress::Waiting,
                Err(_) => return Progress::Done,
            }
        }
        Progress::More
    }

    /// All of the output is with the kernel.
    fn flush(&mut self) -> Progress {
        (self.pipe, self.stage, self.state) = (None, None, State::Flushed { reminders: 0 });
        if self.remind() { Progress::Done } else { Progress::Flushed }
    }

    /// Tells the peer of a flushed stream that nothing follows. Whether it is over now; never that of another stream.
    fn remind(&mut self) -> bool {
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
        (self.peer, self.kept, self.stage, self.state) = (None, None, None, State::Drain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::stream::Exporter;
    use crate::wire::Stream;
    use rustix::event::Timespec;
    use rustix::event::epoll::{Event, EventData};
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::string::String;

    #[test]
    fn c12_output_is_sent_to_its_end_also_where_its_process_falls_silent() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let null = pipe().unwrap().1;
        let (reader, process) = pipe().unwrap();
        // In place of a connection: it takes all that is sent.
        let (_host, peer) = pipe().unwrap();
        fcntl_setpipe_size(&peer, 1 << 20).unwrap();
        let mut relay = Relay::unattached(reader, None, None);
        relay.start(peer, State::Output, &epoll, (7, 1)).unwrap();
        assert_eq!(write(&process, &[0; 400_000]), Ok(400_000));
        reported(&epoll);
        let mut turns = 1;
        while relay.advance(false, &null) == Progress::More {
            assert_eq!(reported(&epoll), 0, "nothing happens by itself");
            relay.rearm(&epoll, (7, 1)).unwrap();
            assert!(reported(&epoll) > 0, "{turns}");
            turns += 1;
        }
        assert!(turns > 1, "more than its turn");
        assert!(relay.stage.is_some_and(|stage| stage.filled == 0));
    }

    /// An epoll set, the null device, and a process's output with the end that the process has.
    fn output(left: Option<u16>) -> (OwnedFd, OwnedFd, Relay, OwnedFd) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let null = openat(CWD, "/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let (reader, process) = pipe().unwrap();
        ioctl_fionbio(&reader, true).unwrap();
        ioctl_fionbio(&process, true).unwrap();
        (epoll, null, Relay::unattached(reader, None, left), process)
    }

    fn until_it_waits(relay: &mut Relay, null: &OwnedFd) -> Progress {
        loop {
            match relay.advance(false, null) {
                Progress::More => {}
                progress => return progress,
            }
        }
    }

    fn reported(epoll: &OwnedFd) -> usize {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 4];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(epoll, &mut events, Some(&at_once)).unwrap()
    }

    #[test]
    fn c12_output_whose_reader_has_gone_is_thrown_away_to_its_end() {
        // That the peer has gone is said while it still takes something, or seen when it takes nothing any more.
        for (said, is_sealed) in [(true, false), (false, false), (true, true)] {
            let (epoll, null, mut relay, process) = output(None);
            relay.sealed =
                is_sealed.then(|| Sealed::new(&Exporter::new([7; 32]), 1, Stream::Stdout).unwrap().into());
            fcntl_setpipe_size(&process, OUTPUT_PIPE).unwrap();
            let (host, peer) = UnixStream::pair().unwrap();
            relay.start(peer.into(), State::Output, &epoll, (7, 1)).unwrap();
            let _host = Some(host).filter(|_| said);
            for _ in 0..4 {
                assert_eq!(write(&process, &[0; 300_000]), Ok(300_000));
                reported(&epoll);
                let progress = relay.advance(said, &null);
                assert_eq!(relay.state, State::Drain);
                if progress == Progress::More {
                    relay.rearm(&epoll, (7, 1)).unwrap();
                    assert!(reported(&epoll) > 0);
                }
                assert_eq!(until_it_waits(&mut relay, &null), Progress::Waiting);
            }
            drop(process);
            assert_eq!(until_it_waits(&mut relay, &null), Progress::Done);
        }
    }

    #[test]
    fn c12_what_was_kept_of_a_process_that_has_ended_is_done_with_when_its_reader_goes() {
        let (epoll, null, mut relay, process) = output(Some(0));
        assert!(!relay.tick(&epoll, (7, 1)));
        write(&process, b"all").unwrap();
        drop(process);
        assert_eq!(until_it_waits(&mut relay, &null), Progress::Waiting);
        let (_host, peer) = UnixStream::pair().unwrap();
        relay.start(peer.into(), State::Output, &epoll, (7, 1)).unwrap();
        assert_eq!(relay.advance(true, &null), Progress::Done);
    }

    #[test]
    fn c12_what_was_kept_comes_before_what_follows_and_then_the_end() {
        let (epoll, null, mut relay, process) = output(Some(0));
        assert!(!relay.tick(&epoll, (7, 1)));
        write(&process, b"first ").unwrap();
        assert_eq!(until_it_waits(&mut relay, &null), Progress::Waiting);
        let (mut host, peer) = UnixStream::pair().unwrap();
        relay.start(peer.into(), State::Output, &epoll, (7, 1)).unwrap();
        write(&process, b"second").unwrap();
        assert_eq!(until_it_waits(&mut relay, &null), Progress::Waiting);
        drop(process);
        assert_ne!(until_it_waits(&mut relay, &null), Progress::Waiting);
        assert!(matches!(relay.state, State::Flushed { .. }), "the host is told that it is the end");
        let mut said = String::new();
        host.read_to_string(&mut said).unwrap();
        assert_eq!(said, "first second");
    }

    #[test]
    fn input_goes_straight_to_the_process_and_ends_where_the_host_ends_it() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (process, writer) = pipe().unwrap();
        let mut relay = Relay::unattached(writer, None, None);
        let (mut host, peer) = UnixStream::pair().unwrap();
        relay.start(peer.into(), State::Input, &epoll, (7, 0)).unwrap();
        assert!(relay.stage.is_none());
        host.write_all(b"input").unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        // That the host has gone does not make what it sent any less.
        assert_eq!(relay.advance(true, &process), Progress::Done);
        drop(relay);
        assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host gets nothing of it back");
        let mut bytes = [0; 16];
        assert_eq!(read(&process, &mut bytes), Ok(5));
        assert_eq!(&bytes[..5], b"input");
    }

    #[test]
    fn the_end_of_what_is_typed_waits_until_the_terminal_has_room() {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (typed, host) = pipe().unwrap();
        // In place of a terminal.
        let (process, terminal) = pipe().unwrap();
        ioctl_fionbio(&terminal, true).unwrap();
        let size = fcntl_setpipe_size(&terminal, PIPE_BUF).unwrap();
        assert_eq!(write(&terminal, &std::vec![b'x'; size]), Ok(size));
        let mut relay = Relay::unattached(typed, None, None);
        relay.start(terminal, State::Typing, &epoll, (7, 0)).unwrap();
        drop(host);
        assert_eq!(relay.advance(false, &process), Progress::Waiting);
        let mut bytes = std::vec![0; size];
        assert_eq!(read(&process, &mut bytes), Ok(size));
        assert_eq!(relay.advance(false, &process), Progress::Done);
        assert_eq!(read(&process, &mut bytes), Ok(END_OF_INPUT.len()));
        assert_eq!(bytes[..END_OF_INPUT.len()], END_OF_INPUT);
    }
}
