//! A process's standard streams and this program's.

use anyhow::{Context as _, Result};
use parma::output::Escaping;
use parma_guest::wire::Stream;
use parma_vmm::Connector;
use std::io::{self, IsTerminal as _, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// The threads that carry a process's output.
pub struct Streams(Vec<JoinHandle<()>>);

impl Streams {
    /// Connects the streams of a process with this program's own. Unless `raw`, what goes to a terminal is escaped.
    ///
    /// # Errors
    /// The guest refuses, or is gone.
    pub fn attach(connector: &Connector, process: u32, stdin: bool, raw: bool) -> Result<Self> {
        let attach = |stream| -> Result<UnixStream> {
            connector.attach(process, stream)?.with_context(|| format!("cannot attach {stream:?}"))
        };
        if stdin {
            let mut sink = attach(Stream::Stdin)?;
            // Not waited for: it may be blocked in a read when the process is over.
            std::thread::spawn(move || {
                // An end on either side is the end of the input.
                let _ = io::copy(&mut io::stdin().lock(), &mut sink);
                let _ = sink.shutdown(Shutdown::Write);
            });
        }
        let (out, err) = (attach(Stream::Stdout)?, attach(Stream::Stderr)?);
        let escape = |is_terminal: bool| is_terminal && !raw;
        Ok(Self(vec![
            carry(out, io::stdout(), escape(io::stdout().is_terminal())),
            carry(err, io::stderr(), escape(io::stderr().is_terminal())),
        ]))
    }

    /// Waits until all output has arrived.
    pub fn finish(self) {
        for thread in self.0 {
            let _ = thread.join();
        }
    }
}

fn carry(mut from: UnixStream, to: impl Write + Send + 'static, escape: bool) -> JoinHandle<()> {
    std::thread::spawn(move || {
        // Where the output is closed, the rest is dropped: the connection's end tells the guest.
        let _ = if escape {
            io::copy(&mut from, &mut Escaping::new(Flushing(to)))
        } else {
            io::copy(&mut from, &mut Flushing(to))
        };
    })
}

/// Flushes after each write: what a process has said is seen when it says it.
struct Flushing<W>(W);

impl<W: Write> Write for Flushing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes)?;
        self.0.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
