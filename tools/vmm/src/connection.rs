//! A connection to the guest that carries frames: the layer below [`crate::Session`], and the tool of tests that play a
//! hostile host.

use anyhow::{Context as _, Result, anyhow};
use parma_guest::wire::frame::{self, HEADER};
use serde::Serialize;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Sends and receives frames, or any bytes at all.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// The frames of this stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// How long one read or write may take; `None`: for ever.
    ///
    /// # Errors
    /// The system refuses, as it does for zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(timeout).context("a socket's timeout")?;
        self.stream.set_write_timeout(timeout).context("a socket's timeout")
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// The value is longer than a frame can be, or the guest hung up.
    pub fn send<T: Serialize>(&mut self, value: &T) -> Result<()> {
        let frame = frame::encode(value).map_err(|_| anyhow!("longer than a frame may be"))?;
        self.send_bytes(&frame)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The guest hung up.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the guest hung up")
    }

    /// The body of the next frame; `None` at the end of the stream.
    ///
    /// # Errors
    /// The guest announces a frame longer than any may be, hangs up inside one, or a timeout is over.
    pub fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        let mut header = [0; HEADER];
        let first = loop {
            match self.stream.read(&mut header) {
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break 0,
                Err(error) => return Err(error).context("reading from the guest"),
            }
        };
        if first == 0 {
            return Ok(None);
        }
        let cut = "the guest hung up inside a frame";
        self.stream.read_exact(&mut header[first..]).context(cut)?;
        // SECURITY (T07): the length is bounded before anything of its size is allocated.
        let length = frame::body_length(header)
            .map_err(|_| anyhow!("the guest announces a frame that is too long"))?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).context(cut)?;
        Ok(Some(body))
    }

    /// The stream, just behind the last frame received.
    #[must_use]
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(Self { stream: self.stream.try_clone().context("dup")? })
    }

    pub(crate) fn close(&self) {
        // Fails only where it is closed already.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parma_guest::wire::frame::MAX_FRAME;

    fn receive(bytes: &[u8]) -> Result<Option<Vec<u8>>> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).unwrap();
        drop(theirs);
        Connection::new(ours).receive()
    }

    #[test]
    fn frames_arrive_whole_or_not_at_all() {
        assert_eq!(receive(&[2, 0, 0, 0, 7, 8, 9]).unwrap(), Some(vec![7, 8]));
        assert_eq!(receive(&[]).unwrap(), None);
        for cut in [&[2][..], &[2, 0, 0, 0], &[2, 0, 0, 0, 7]] {
            assert!(receive(cut).is_err(), "{cut:?}");
        }
    }

    #[test]
    fn t07_a_guest_cannot_announce_more_than_the_limit() {
        for length in [0, u32::try_from(MAX_FRAME).unwrap() + 1, u32::MAX] {
            let error = receive(&length.to_le_bytes()).unwrap_err();
            assert!(error.to_string().contains("too long"), "{length}");
        }
    }
}
