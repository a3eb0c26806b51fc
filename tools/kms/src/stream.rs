//! The customer's ends of sealed streams (`parma_guest::attest::stream`), over whatever carries the records.

use parma_guest::attest::stream::{Exporter, HEADER, MAX_TEXT, Opener, Sealer};
use parma_guest::wire::Stream;
use std::io::{Error, ErrorKind, Read, Result, Write};

/// Reads what a process wrote.
pub struct Reader<R> {
    inner: R,
    opener: Opener,
    text: Vec<u8>,
    read: usize,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Of this stream of a process; `None` without memory.
    #[must_use]
    pub fn new(exporter: &Exporter, process: u32, stream: Stream, inner: R) -> Option<Self> {
        let opener = exporter.opener(process, stream)?;
        Some(Self { inner, opener, text: Vec::new(), read: 0, ended: false })
    }

    fn next(&mut self) -> Result<()> {
        let cut = |error: Error| match error.kind() {
            ErrorKind::UnexpectedEof => Error::new(ErrorKind::UnexpectedEof, "the host cut the stream off"),
            _ => error,
        };
        let changed =
            || Error::new(ErrorKind::InvalidData, "what the host carried is not the guest's next record");
        let mut header = [0; HEADER];
        self.inner.read_exact(&mut header).map_err(cut)?;
        let mut record = vec![0; Opener::length(header).ok_or_else(changed)?];
        let (start, rest) = record.split_at_mut(HEADER);
        start.copy_from_slice(&header);
        self.inner.read_exact(rest).map_err(cut)?;
        let (text, last) = self.opener.open(&mut record).ok_or_else(changed)?;
        (self.text, self.read, self.ended) = (text.to_vec(), 0, last);
        Ok(())
    }
}

/// An end of the records that the guest did not write is an error, not the end.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        while self.read == self.text.len() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let rest = &self.text[self.read..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.read += length;
        Ok(length)
    }
}

/// Writes a process's input.
pub struct Writer<W> {
    inner: W,
    sealer: Sealer,
}

impl<W: Write> Writer<W> {
    /// To the standard input of a process; `None` without memory.
    #[must_use]
    pub fn new(exporter: &Exporter, process: u32, inner: W) -> Option<Self> {
        Some(Self { inner, sealer: exporter.sealer(process, Stream::Stdin)? })
    }

    fn record(&mut self, text: &[u8], last: bool) -> Result<()> {
        let record = self.sealer.seal(text, last).ok_or(ErrorKind::OutOfMemory)?;
        self.inner.write_all(&record)
    }

    /// Says that nothing follows. Without that the process never sees the end of its input.
    ///
    /// # Errors
    /// As of the connection.
    pub fn finish(mut self) -> Result<()> {
        self.record(b"", true)?;
        self.inner.flush()
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, text: &[u8]) -> Result<usize> {
        let text = &text[..text.len().min(MAX_TEXT)];
        if !text.is_empty() {
            self.record(text, false)?;
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}
