//! Sealed streams: what is moved between a pipe and the host's socket is encrypted here ([`crate::attest::stream`]), so the host
//! carries records and no text.
//!
//! [`Sealed::advance`] stands in the place of a splice(2) and answers like one. Memory is one record for each stream.

use crate::attest::stream::{Exporter, HEADER, MAX_RECORD, MAX_TEXT, Opener, Sealer};
use crate::linux::Errno;
use crate::wire::Stream;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::io::{read, write};
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use zeroize::Zeroize;

/// The guest's end of a sealed stream.
#[derive(Debug)]
pub enum Sealed {
    /// From the pipe to the socket.
    Output {
        sealer: Sealer,
        /// A record on its way out, and how much of it is out.
        record: Vec<u8>,
        sent: usize,
        /// Whether that is the last.
        last: bool,
    },
    /// From the socket to the pipe.
    Input {
        opener: Opener,
        /// Bytes of the next record, and how many are there.
        record: Vec<u8>,
        received: usize,
        /// What of it is text that the process has not got yet.
        text: Range<usize>,
        end: End,
    },
}

/// How a sealed input goes on when its text is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With another record.
    Open,
    /// It ends: so the last record says.
    Last,
    /// Nothing more comes, and whoever sealed it did not say so.
    Cut,
}

impl Sealed {
    /// That of a stream of this process.
    pub fn new(exporter: &Exporter, process: u32, stream: Stream) -> Option<Self> {
        if stream != Stream::Stdin {
            let sealer = exporter.sealer(process, stream)?;
            return Some(Self::Output { sealer, record: Vec::new(), sent: 0, last: false });
        }
        let mut record = Vec::new();
        record.try_reserve_exact(MAX_RECORD).ok()?;
        record.resize(MAX_RECORD, 0);
        let opener = exporter.opener(process, stream)?;
        Some(Self::Input { opener, record, received: 0, text: 0..0, end: End::Open })
    }

    /// Moves a record. Gives 0 at the end, and `AGAIN` where nothing can be moved before the next event.
    pub fn advance(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<usize, Errno> {
        match self {
            Self::Output { sealer, record, sent, last } => {
                if record.is_empty() {
                    let mut text = [0; MAX_TEXT];
                    let length = read(from, &mut text)?;
                    *last = length == 0;
                    let sealed = sealer.seal(text.get(..length).unwrap_or_default(), *last);
                    text.zeroize();
                    *record = sealed.ok_or(Errno::NOMEM)?;
                }
                while let Some(rest) = record.get(*sent..).filter(|rest| !rest.is_empty()) {
                    *sent += send(to, rest, SendFlags::NOSIGNAL)?;
                }
                let moved = if *last { 0 } else { *sent };
                (*record, *sent) = (Vec::new(), 0);
                Ok(moved)
            }
            Self::Input { opener, record, received, text, end } => {
                if let Some(rest) = record.get(text.clone()).filter(|rest| !rest.is_empty()) {
                    let written = write(to, rest)?;
                    text.start += written;
                    return Ok(written);
                }
                match end {
                    End::Open => {}
                    End::Last => return Ok(0),
                    End::Cut => return held(to),
                }
                let whole = match record.first_chunk::<HEADER>() {
                    Some(header) if *received >= HEADER => Opener::length(*header),
                    _ => Some(HEADER),
                };
                // SECURITY (K02): what is not the sender's next record is the end of the stream, but not one that the process
                // takes for the sender's.
                let Some(whole) = whole else { return cut(from, end, to) };
                if *received < whole || *received == HEADER {
                    let room = record.get_mut(*received..whole).ok_or(Errno::MSGSIZE)?;
                    let more = read(from, room)?;
                    if more == 0 {
                        return cut(from, end, to);
                    }
                    *received += more;
                    return Ok(more);
                }
                let Some((opened, last)) = record.get_mut(..whole).and_then(|record| opener.open(record))
                else {
                    return cut(from, end, to);
                };
                (*text, *received) = (HEADER..HEADER + opened.len(), 0);
                if last {
                    *end = End::Last;
                }
                Ok(whole)
            }
        }
    }
}

fn cut(socket: BorrowedFd<'_>, end: &mut End, pipe: BorrowedFd<'_>) -> Result<usize, Errno> {
    *end = End::Cut;
    // Whoever is there is not listened to any more.
    let _ = shutdown(socket, Shutdown::Both);
    held(pipe)
}

/// Waits for the process to let go of its input, which has no end.
fn held(pipe: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut waiting = [PollFd::new(&pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut waiting, Some(&now)) {
        Ok(0) | Err(Errno::INTR) => Err(Errno::AGAIN),
        _ => Err(Errno::PIPE),
    }
}

/// Those of a process's three streams.
pub fn streams(exporter: Option<&Exporter>, process: u32) -> Result<[Option<Box<Sealed>>; 3], Errno> {
    let Some(exporter) = exporter else { return Ok([None, None, None]) };
    let sealed = |stream| {
        let sealed = Sealed::new(exporter, process, stream).ok_or(Errno::NOMEM)?;
        Ok(Some(Box::new(sealed)))
    };
    Ok([sealed(Stream::Stdin)?, sealed(Stream::Stdout)?, sealed(Stream::Stderr)?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::stdio::pipe;
    use rustix::fd::AsFd;
    use rustix::io::ioctl_fionbio;
    use rustix::pipe::fcntl_setpipe_size;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn k02_text_that_finds_its_pipe_full_follows_in_pieces() {
        let exporter = Exporter::new([7; 32]);
        let text: Vec<u8> = (0..MAX_TEXT).map(|n| (n % 251) as u8).collect();
        let mut sealer = exporter.sealer(1, Stream::Stdin).unwrap();
        let (mut host, guest) = UnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        host.write_all(&sealer.seal(&text, false).unwrap()).unwrap();
        host.write_all(&sealer.seal(b"", true).unwrap()).unwrap();
        let (process, pipe) = pipe().unwrap();
        ioctl_fionbio(&pipe, true).unwrap();
        fcntl_setpipe_size(&pipe, 4096).unwrap();
        let mut sealed = Sealed::new(&exporter, 1, Stream::Stdin).unwrap();
        let (mut received, mut buffer) = (Vec::new(), [0; 8192]);
        loop {
            match sealed.advance(guest.as_fd(), pipe.as_fd()) {
                Ok(0) => break,
                Ok(_) => {}
                Err(errno) => {
                    assert_eq!(errno, Errno::AGAIN);
                    let count = read(&process, &mut buffer).unwrap();
                    received.extend_from_slice(&buffer[..count]);
                }
            }
        }
        drop(pipe);
        let count = read(&process, &mut buffer).unwrap();
        received.extend_from_slice(&buffer[..count]);
        assert!(received == text);
    }
}
