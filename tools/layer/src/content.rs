//! Content on its way into an image.
//!
//! What lies in a plain file need not pass through the thread that lays the image out: that thread takes a [`Region`], and the
//! thread that hashes it reads it from there, into memory that is then still in its processor's cache.

use std::fs::File;
use std::io::{self, Empty, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// Bytes that are read ahead: headers, and content that is not worth a region.
const AHEAD: usize = 16 << 10;
/// Least bytes of a region.
const LEAST: u64 = 4096;

/// A part of a file.
#[derive(Debug)]
pub struct Region {
    file: Arc<File>,
    at: u64,
    length: usize,
}

impl Region {
    /// Its length in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Reads its bytes from this one on.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub fn read(&self, from: usize, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, self.at + from as u64)
    }
}

/// Bytes, some of which may lie in a file.
pub trait Content: Read {
    /// Takes at most `most` of the next bytes without reading them; `None` where they have to be read.
    fn region(&mut self, _most: usize) -> Option<Region> {
        None
    }
}

impl Content for Empty {}
impl Content for &[u8] {}

impl<C: Content + ?Sized> Content for Box<C> {
    fn region(&mut self, most: usize) -> Option<Region> {
        (**self).region(most)
    }
}

/// Content that comes as a stream.
pub struct Streamed<R>(pub R);

impl<R: Read> Read for Streamed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl<R: Read> Content for Streamed<R> {}

/// A regular file, from its start on.
pub struct Plain {
    file: Arc<File>,
    /// Bytes of the file when it was opened.
    length: u64,
    /// Where the next byte is.
    position: u64,
    buffer: Vec<u8>,
    /// The part of the buffer that was read and not taken: what comes next.
    ahead: Range<usize>,
}

impl Plain {
    /// A file of this many bytes.
    pub fn new(file: File, length: u64) -> Self {
        Self { file: Arc::new(file), length, position: 0, buffer: vec![0; AHEAD], ahead: 0..0 }
    }
}

impl Read for Plain {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.ahead.is_empty() {
            self.ahead = 0..self.file.read_at(&mut self.buffer, self.position)?;
        }
        let count = bytes.len().min(self.ahead.len());
        bytes[..count].copy_from_slice(&self.buffer[self.ahead.start..][..count]);
        self.ahead.start += count;
        self.position += count as u64;
        Ok(count)
    }
}

impl Content for Plain {
    fn region(&mut self, most: usize) -> Option<Region> {
        let length = self.length.saturating_sub(self.position).min(most as u64);
        if !self.ahead.is_empty() || length < LEAST {
            return None;
        }
        let region = Region { file: self.file.clone(), at: self.position, length: length as usize };
        self.position += length;
        Some(region)
    }
}
