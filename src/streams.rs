//! Connections for standard streams that have not yet said which one they are (`docs/wire-protocol.md`).
//!
//! There are at most [`MAX_PENDING`] of them, and each may send one short frame. Once that is read it is answered, and
//! whoever carries the stream's bytes gets the socket.

use crate::linux::Errno;
use crate::wire::frame;
use crate::wire::{Attach, Attached, Culprit, Reason, Refusal};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Most connections that have not yet attached; a further one is closed at once.
pub const MAX_PENDING: usize = 16;

/// Longest [`Attach`]: a `u32` varint and a variant number.
const MAX_ATTACH: usize = 6;

/// A connection that has not yet attached.
#[derive(Debug)]
pub struct Pending {
    socket: OwnedFd,
    bytes: [u8; frame::HEADER + MAX_ATTACH],
    received: usize,
}

/// What a connection has come to.
#[derive(Debug)]
pub enum Progress {
    /// Not all is there.
    Waiting(Pending),
    /// It asks for this stream.
    Asks(Attach, OwnedFd),
    /// It broke the rules, or is gone.
    Over,
}

impl Pending {
    /// A new non-blocking connection.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, bytes: [0; _], received: 0 }
    }

    /// Reads the frame and nothing beyond it: what follows belongs to the stream.
    pub fn ready(mut self) -> Progress {
        loop {
            let end = match self.bytes.first_chunk() {
                Some(header) if self.received >= frame::HEADER => match frame::body_length(*header) {
                    Ok(length) if length <= MAX_ATTACH => frame::HEADER + length,
                    _ => return self.refuse(),
                },
                _ => frame::HEADER,
            };
            if self.received == end && end > frame::HEADER {
                return match self.bytes.get(frame::HEADER..end).map(frame::decode) {
                    Some(Ok(attach)) => Progress::Asks(attach, self.socket),
                    _ => self.refuse(),
                };
            }
            let Some(room) = self.bytes.get_mut(self.received..end) else { return Progress::Over };
            match recv(&self.socket, room, RecvFlags::empty()) {
                Ok((0, _)) => return Progress::Over,
                Ok((more, _)) => self.received += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Progress::Waiting(self),
                Err(_) => return Progress::Over,
            }
        }
    }

    fn refuse(self) -> Progress {
        // The connection ends either way.
        let _ = answer(&self.socket, Err(Reason::Malformed));
        Progress::Over
    }
}

impl AsFd for Pending {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends the answer to an [`Attach`]. It is the first thing on its connection and a few bytes long, so a socket that does
/// not take it at once is not one to talk to.
pub fn answer(socket: impl AsFd, result: Result<(), Reason>) -> Result<(), Errno> {
    let answer: Attached = result.map_err(|reason| Refusal { culprit: Culprit::Host, reason });
    let frame = frame::encode(&answer).map_err(|_| Errno::NOMEM)?;
    if send(socket, &frame, SendFlags::NOSIGNAL)? == frame.len() { Ok(()) } else { Err(Errno::IO) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Stream;
    use alloc::vec::Vec;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (UnixStream, Pending) {
        let (host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        (host, Pending::new(guest.into()))
    }

    fn attach(process: u32) -> Vec<u8> {
        frame::encode(&Attach { process, stream: Stream::Stderr }).unwrap()
    }

    #[test]
    fn the_longest_attach_fits_and_bytes_after_it_stay_in_the_socket() {
        let (mut host, pending) = pair();
        host.write_all(&[&attach(u32::MAX)[..], b"input"].concat()).unwrap();
        let Progress::Asks(Attach { process: u32::MAX, stream: Stream::Stderr }, socket) = pending.ready()
        else {
            panic!("not attached")
        };
        let mut rest = [0; 16];
        assert_eq!(recv(&socket, &mut rest, RecvFlags::empty()).unwrap().0, 5);
        assert_eq!(&rest[..5], b"input");
    }

    #[test]
    fn an_attach_may_arrive_in_pieces() {
        let (mut host, mut pending) = pair();
        let whole = attach(7);
        let (last, before) = whole.split_last().unwrap();
        for byte in before {
            host.write_all(&[*byte]).unwrap();
            let Progress::Waiting(waiting) = pending.ready() else { panic!("not waiting") };
            pending = waiting;
        }
        host.write_all(&[*last]).unwrap();
        assert!(matches!(pending.ready(), Progress::Asks(Attach { process: 7, .. }, _)));
    }

    #[test]
    fn t01_what_is_not_an_attach_is_refused() {
        let refusal =
            frame::encode(&Attached::Err(Refusal { culprit: Culprit::Host, reason: Reason::Malformed }));
        for bytes in
            [&[7, 0, 0, 0][..], &[0, 0, 0, 0], &[255; 4], &[2, 0, 0, 0, 1, 9], &[3, 0, 0, 0, 1, 1, 0]]
        {
            let (mut host, pending) = pair();
            host.write_all(bytes).unwrap();
            assert!(matches!(pending.ready(), Progress::Over), "{bytes:?}");
            let mut told = Vec::new();
            host.read_to_end(&mut told).unwrap();
            assert_eq!(Some(told), refusal.clone().ok(), "{bytes:?}");
        }
    }

    #[test]
    fn a_host_that_goes_away_ends_it() {
        let (host, pending) = pair();
        drop(host);
        assert!(matches!(pending.ready(), Progress::Over));
    }
}
