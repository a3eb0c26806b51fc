//! The guest's end of the control connection (`docs/wire-protocol.md`).
//!
//! - Nothing is read while there is something to write: the next request is looked at after the reply to the last one is
//!   with the kernel, so a host that does not read its replies makes the guest wait, not grow (attacks T05, C12).
//! - A request's bytes are copied once, into the caller's buffer, which the host cannot reach; what is decoded there is
//!   what is handled (attack P05).
//! - Whoever breaks the framing or the numbering is answered with a refusal and disconnected.

use crate::linux::Errno;
use crate::linux::vsock::MAX_SEND;
use crate::wire::frame;
use crate::wire::{Culprit, ExitStatus, FromGuest, Phase, Reason, Refusal, Reply, Request, ToGuest};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use rustix::event::epoll::EventFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

/// The connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

/// What handles requests.
pub trait Serve {
    /// Handles a request, which came in a frame with this body.
    fn serve(&mut self, request: &Request<'_>, body: &[u8]) -> Result<Reply<'_>, Refusal>;
}

/// One control connection.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    /// Number of the next request.
    expected: u32,
    header: [u8; frame::HEADER],
    /// Bytes that are there of the header and the body after it.
    received: usize,
    /// A frame on its way out, and how much of it is out.
    outgoing: Vec<u8>,
    sent: usize,
    /// Ends of processes that are to be told. The gate bounds the number of processes.
    exits: VecDeque<(u32, ExitStatus)>,
    /// Nothing more is read; what is outgoing is the last.
    closing: bool,
}

impl Control {
    /// A connection over a new non-blocking stream socket. The guest speaks first.
    pub fn new(socket: OwnedFd, phase: Phase) -> Result<Self, Closed> {
        let mut control = Self {
            socket,
            expected: 1,
            header: [0; frame::HEADER],
            received: 0,
            outgoing: Vec::new(),
            sent: 0,
            exits: VecDeque::new(),
            closing: false,
        };
        control.put(&FromGuest::Hello { protocol: crate::wire::PROTOCOL, phase })?;
        control.flush()?;
        Ok(control)
    }

    /// Tells the host that a process ended, as soon as what is on its way is out.
    pub fn exited(&mut self, process: u32, status: ExitStatus) -> Result<(), Closed> {
        self.exits.try_reserve(1).map_err(|_| Closed)?;
        self.exits.push_back((process, status));
        self.flush()
    }

    /// What to wait for.
    pub fn interest(&self) -> EventFlags {
        if self.is_flushed() { EventFlags::IN } else { EventFlags::OUT }
    }

    /// Whether everything that was to be said is with the kernel.
    pub fn is_flushed(&self) -> bool {
        self.outgoing.is_empty() && self.exits.is_empty()
    }

    /// Moves bytes until the socket gives or takes no more, and has at most one request served. `buffer` keeps the body
    /// between calls; it is as long as the longest.
    pub fn ready(&mut self, buffer: &mut [u8], server: &mut impl Serve) -> Result<(), Closed> {
        self.flush()?;
        if !self.is_flushed() {
            return Ok(());
        }
        let body = match self.receive(buffer) {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(()),
            Err(Stop::Closed) => return Err(Closed),
            Err(Stop::Length) => return self.part(0, Reason::Malformed),
        };
        match frame::decode::<ToGuest<'_>>(body) {
            Ok(ToGuest { sequence, request }) if sequence == self.expected => {
                // After the last number none is expected: 0 is never right.
                self.expected = self.expected.checked_add(1).unwrap_or(0);
                self.put(&FromGuest::Reply { sequence, result: server.serve(&request, body) })?;
                self.flush()
            }
            Ok(ToGuest { sequence, .. }) => {
                self.part(sequence, Reason::OutOfSequence { expected: self.expected })
            }
            Err(_) => self.part(0, Reason::Malformed),
        }
    }

    /// Refuses what breaks the protocol, and takes nothing more from this host.
    fn part(&mut self, sequence: u32, reason: Reason) -> Result<(), Closed> {
        self.closing = true;
        self.put(&FromGuest::Reply { sequence, result: Err(Refusal { culprit: Culprit::Host, reason }) })?;
        self.flush()
    }

    /// A message that cannot be encoded for want of memory ends the connection: the host must not wait for it.
    fn put(&mut self, message: &FromGuest<'_>) -> Result<(), Closed> {
        self.outgoing = frame::encode(message).map_err(|_| Closed)?;
        self.sent = 0;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Closed> {
        loop {
            while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
                let piece = rest.get(..MAX_SEND).unwrap_or(rest);
                match send(&self.socket, piece, SendFlags::NOSIGNAL) {
                    Ok(sent) => self.sent += sent,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => return Ok(()),
                    Err(_) => return Err(Closed),
                }
            }
            self.outgoing = Vec::new();
            if self.closing {
                // The other side sees the end of the stream after the refusal. It may be gone already.
                let _ = shutdown(&self.socket, Shutdown::Write);
                return Err(Closed);
            }
            match self.exits.pop_front() {
                Some((process, status)) => self.put(&FromGuest::Exited { process, status })?,
                None => return Ok(()),
            }
        }
    }

    /// The next body, once all of it is there. Reads nothing beyond it.
    fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, Stop> {
        loop {
            let length = if self.received < frame::HEADER {
                None
            } else {
                Some(frame::body_length(self.header).map_err(|_| Stop::Length)?)
            };
            let there = self.received.saturating_sub(frame::HEADER);
            let room = match length {
                Some(length) if there == length => {
                    self.received = 0;
                    return buffer.get(..length).map(Some).ok_or(Stop::Length);
                }
                Some(length) => buffer.get_mut(there..length),
                None => self.header.get_mut(self.received..),
            };
            match recv(&self.socket, room.ok_or(Stop::Length)?, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Stop::Closed),
                Ok((more, _)) => self.received += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(_) => return Err(Stop::Closed),
            }
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Why no further body comes.
enum Stop {
    /// The connection ended.
    Closed,
    /// The header's length is out of bounds.
    Length,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::PROTOCOL;
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    /// Counts requests, and answers with a report of this length.
    struct Server {
        served: usize,
        report: Vec<u8>,
    }

    impl Serve for Server {
        fn serve(&mut self, _: &Request<'_>, _: &[u8]) -> Result<Reply<'_>, Refusal> {
            self.served += 1;
            Ok(Reply::PolicyAccepted { report: &self.report })
        }
    }

    struct Pair {
        host: UnixStream,
        control: Control,
        server: Server,
        buffer: Vec<u8>,
    }

    impl Pair {
        fn new() -> Self {
            let (host, guest) = UnixStream::pair().unwrap();
            guest.set_nonblocking(true).unwrap();
            let control = Control::new(guest.into(), Phase::AwaitPolicy).unwrap();
            let server = Server { served: 0, report: std::vec![1, 2, 3] };
            let mut pair = Self { host, control, server, buffer: std::vec![0; frame::MAX_FRAME] };
            assert_eq!(
                pair.told(),
                frame::encode(&FromGuest::Hello { protocol: PROTOCOL, phase: Phase::AwaitPolicy }).unwrap()
            );
            pair
        }

        fn ready(&mut self) -> Result<(), Closed> {
            self.control.ready(&mut self.buffer, &mut self.server)
        }

        fn send(&mut self, bytes: &[u8]) -> Result<(), Closed> {
            self.host.write_all(bytes).unwrap();
            self.ready()
        }

        /// What the host can read now.
        fn told(&mut self) -> Vec<u8> {
            self.host.set_nonblocking(true).unwrap();
            let mut told = Vec::new();
            match self.host.read_to_end(&mut told) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            self.host.set_nonblocking(false).unwrap();
            told
        }
    }

    fn request(sequence: u32) -> Vec<u8> {
        frame::encode(&ToGuest { sequence, request: Request::GetProperties }).unwrap()
    }

    fn reply(sequence: u32) -> Vec<u8> {
        frame::encode(&FromGuest::Reply {
            sequence,
            result: Ok(Reply::PolicyAccepted { report: &[1, 2, 3] }),
        })
        .unwrap()
    }

    fn refusal(sequence: u32, reason: Reason) -> Vec<u8> {
        let result = Err(Refusal { culprit: Culprit::Host, reason });
        frame::encode(&FromGuest::Reply { sequence, result }).unwrap()
    }

    #[test]
    fn requests_in_order_are_answered_by_number() {
        let mut pair = Pair::new();
        for sequence in 1..=3 {
            assert_eq!(pair.send(&request(sequence)), Ok(()));
            assert_eq!(pair.told(), reply(sequence));
        }
    }

    #[test]
    fn a_request_may_arrive_in_pieces() {
        let mut pair = Pair::new();
        let whole = request(1);
        for piece in whole.chunks(1) {
            assert_eq!(pair.server.served, 0);
            assert_eq!(pair.send(piece), Ok(()));
        }
        assert_eq!(pair.told(), reply(1));
    }

    #[test]
    fn t05_of_requests_sent_early_one_is_served_at_a_time() {
        let mut pair = Pair::new();
        assert_eq!(pair.send(&[request(1), request(2)].concat()), Ok(()));
        assert_eq!(pair.server.served, 1);
        assert_eq!(pair.ready(), Ok(()));
        assert_eq!(pair.told(), [reply(1), reply(2)].concat());
    }

    #[test]
    fn t04_a_number_out_of_order_is_refused_and_the_connection_closed() {
        for wrong in [0, 1, 3, u32::MAX] {
            let mut pair = Pair::new();
            pair.send(&request(1)).unwrap();
            pair.told();
            assert_eq!(pair.send(&request(wrong)), Err(Closed));
            assert_eq!(pair.told(), refusal(wrong, Reason::OutOfSequence { expected: 2 }));
            assert_eq!(pair.server.served, 1);
        }
    }

    #[test]
    fn t01_a_length_out_of_bounds_is_refused_and_the_connection_closed() {
        for length in [0, frame::MAX_FRAME as u32 + 1, u32::MAX] {
            let mut pair = Pair::new();
            assert_eq!(pair.send(&length.to_le_bytes()), Err(Closed));
            assert_eq!(pair.told(), refusal(0, Reason::Malformed));
        }
    }

    #[test]
    fn t01_a_body_that_is_no_request_is_refused_and_the_connection_closed() {
        let mut trailing = request(1);
        trailing[0] += 1;
        trailing.push(0);
        for frame in [std::vec![1, 0, 0, 0, 0xff], trailing] {
            let mut pair = Pair::new();
            assert_eq!(pair.send(&frame), Err(Closed));
            assert_eq!(pair.told(), refusal(0, Reason::Malformed));
            assert_eq!(pair.server.served, 0);
        }
    }

    #[test]
    fn a_host_that_goes_away_inside_a_frame_closes_the_connection() {
        let mut pair = Pair::new();
        pair.host.write_all(&request(1)[..5]).unwrap();
        pair.host.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(pair.ready(), Err(Closed));
        assert_eq!(pair.server.served, 0);
    }

    #[test]
    fn c12_nothing_is_read_until_the_last_reply_is_out() {
        let mut pair = Pair::new();
        // More than a socket buffer takes, and within a frame.
        pair.server.report = std::vec![7; 1 << 20];
        assert_eq!(pair.send(&[request(1), request(2)].concat()), Ok(()));
        assert_eq!(pair.control.interest(), EventFlags::OUT);
        assert_eq!(pair.ready(), Ok(()));
        assert_eq!(pair.server.served, 1, "the second request waits for the first reply");
        let mut told = 0;
        while pair.server.served == 1 {
            assert!(told < 1 << 20, "the first reply is out, so the second request is served");
            told += pair.told().len();
            assert_eq!(pair.ready(), Ok(()));
        }
    }

    #[test]
    fn ends_of_processes_are_told_after_what_is_on_its_way() {
        let mut pair = Pair::new();
        pair.send(&request(1)).unwrap();
        pair.control.exited(4, ExitStatus::Code(0)).unwrap();
        pair.control.exited(5, ExitStatus::Signal(9)).unwrap();
        let exited = |process, status| frame::encode(&FromGuest::Exited { process, status }).unwrap();
        assert_eq!(
            pair.told(),
            [reply(1), exited(4, ExitStatus::Code(0)), exited(5, ExitStatus::Signal(9))].concat()
        );
    }
}
