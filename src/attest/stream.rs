//! Sealed streams: the standard streams of a process that was started through a sealed channel.
//!
//! ```text
//! key      the first 32 bytes of SHA-512(00000001 ‖ exporter ‖ "parma stream v1" ‖ 00 ‖ process (u32, LE) ‖ stream (u8))
//! record   last (u8: 0, 1) ‖ length (u16, LE) ‖ AES-256-GCM(text) ‖ tag
//!          length: of what follows it, 16 to 8208; nonce: the record's number from 0, as 96 bits, big-endian; additional data:
//!          the three bytes before the text
//! ```
//!
//! Each stream has a key of its own and goes one way, so a record is only ever what its sender sent next on that stream: one that
//! was changed, repeated, left out, moved or sent back does not open, and nothing after it does. A stream whose last record says
//! so was not cut off. The host sees how much is written when, and no more.

use super::channel::{Direction, OVERHEAD};
use crate::wire::Stream;
use alloc::vec::Vec;
use sha2::{Digest, Sha512};
use zeroize::Zeroize;

/// Bytes before a record's text.
pub const HEADER: usize = 3;
/// Most bytes of text in a record.
pub const MAX_TEXT: usize = 8 << 10;
/// Longest record.
pub const MAX_RECORD: usize = HEADER + MAX_TEXT + OVERHEAD;
const LABEL: &[u8] = b"parma stream v1\0";

/// What the keys of streams are derived from.
#[derive(Clone)]
pub struct Exporter([u8; 32]);

impl Exporter {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    fn direction(&self, process: u32, stream: Stream) -> Option<Direction> {
        let key = Sha512::new()
            .chain_update([0, 0, 0, 1])
            .chain_update(self.0)
            .chain_update(LABEL)
            .chain_update(process.to_le_bytes())
            .chain_update([stream as u8])
            .finalize();
        Direction::new(key.get(..32)?)
    }

    /// The sending end of a stream of this process.
    pub fn sealer(&self, process: u32, stream: Stream) -> Option<Sealer> {
        self.direction(process, stream).map(Sealer)
    }

    /// Its receiving end.
    pub fn opener(&self, process: u32, stream: Stream) -> Option<Opener> {
        self.direction(process, stream).map(Opener)
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl core::fmt::Debug for Exporter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// The sending end of a stream.
pub struct Sealer(Direction);

impl Sealer {
    /// The next record, of at most [`MAX_TEXT`] bytes; `None` where there are more, or no memory.
    pub fn seal(&mut self, text: &[u8], last: bool) -> Option<Vec<u8>> {
        let length = u16::try_from(text.len() + OVERHEAD).ok().filter(|_| text.len() <= MAX_TEXT)?;
        let [low, high] = length.to_le_bytes();
        let header = [last.into(), low, high];
        let mut record = Vec::new();
        record.try_reserve_exact(HEADER + usize::from(length)).ok()?;
        record.extend_from_slice(&header);
        record.extend_from_slice(text);
        let tag = self.0.seal(&header, record.get_mut(HEADER..)?)?;
        record.extend_from_slice(&tag);
        Some(record)
    }
}

/// The receiving end of a stream.
pub struct Opener(Direction);

impl Opener {
    /// Bytes of a whole record that begins like this; `None` if none does.
    pub fn length(header: [u8; HEADER]) -> Option<usize> {
        let [last, low, high] = header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        (last <= 1 && (OVERHEAD..=MAX_TEXT + OVERHEAD).contains(&length)).then_some(HEADER + length)
    }

    /// Opens the next record in its place: its text, and whether it is the last. After one that is not the next, or after the
    /// last, none opens any more.
    pub fn open<'r>(&mut self, record: &'r mut [u8]) -> Option<(&'r [u8], bool)> {
        let (header, sealed) = record.split_first_chunk_mut::<HEADER>()?;
        let text = self.0.open(header, sealed)?;
        let last = header[0] == 1;
        if last {
            self.0.end();
        }
        Some((text, last))
    }
}

impl core::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Sealer").finish_non_exhaustive()
    }
}

impl core::fmt::Debug for Opener {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        let exporter = Exporter([7; 32]);
        (exporter.sealer(4, Stream::Stdout).unwrap(), exporter.opener(4, Stream::Stdout).unwrap())
    }

    #[test]
    fn records_open_in_their_order_and_none_after_the_last() {
        let (mut sealer, mut opener) = pair();
        let long = [b'x'; MAX_TEXT];
        for (text, last) in [(&b"one"[..], false), (b"", false), (&long, false), (b"end", true)] {
            let mut record = sealer.seal(text, last).unwrap();
            assert_eq!(Opener::length([record[0], record[1], record[2]]), Some(record.len()));
            assert!(text.is_empty() || !record.windows(text.len()).any(|part| part == text));
            assert_eq!(opener.open(&mut record), Some((text, last)));
        }
        assert_eq!(opener.open(&mut sealer.seal(b"more", false).unwrap()), None);
        assert!(sealer.seal(&[0; MAX_TEXT + 1], false).is_none());
    }

    #[test]
    fn k02_a_record_that_is_changed_repeated_left_out_or_moved_ends_the_stream() {
        type Change = fn(&mut Vec<Vec<u8>>);
        let changes: [Change; 7] = [
            |sent| sent[0][0] = 1,
            |sent| sent[0][HEADER] ^= 1,
            |sent| *sent[0].last_mut().unwrap() ^= 1,
            |sent| sent[1] = sent[0].clone(),
            |sent| drop(sent.remove(0)),
            |sent| sent.swap(0, 1),
            |sent| sent[0].truncate(HEADER + 15),
        ];
        for change in changes {
            let (mut sealer, mut opener) = pair();
            let mut sent: Vec<_> =
                (0..3).map(|number| sealer.seal(&[number; 9], number == 2).unwrap()).collect();
            change(&mut sent);
            let opened: Vec<bool> = sent.iter_mut().map(|record| opener.open(record).is_some()).collect();
            let broken = opened.iter().position(|opened| !opened).unwrap();
            assert!(opened[broken..].iter().all(|opened| !opened), "{opened:?}");
        }
    }

    #[test]
    fn k03_a_record_of_another_stream_process_or_channel_does_not_open() {
        let others = [
            Exporter([7; 32]).sealer(4, Stream::Stderr),
            Exporter([7; 32]).sealer(5, Stream::Stdout),
            Exporter([8; 32]).sealer(4, Stream::Stdout),
        ];
        for other in others {
            let (_, mut opener) = pair();
            assert_eq!(opener.open(&mut other.unwrap().seal(b"one", false).unwrap()), None);
        }
    }

    #[test]
    fn t01_a_header_bounds_its_record() {
        for header in [[2, 16, 0], [0, 15, 0], [0, 0, 0], [0, 0xff, 0xff], [0, 0x11, 0x20]] {
            assert_eq!(Opener::length(header), None, "{header:?}");
        }
        assert_eq!(Opener::length([1, 0x10, 0x20]), Some(MAX_RECORD));
    }
}
