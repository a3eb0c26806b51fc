//! A process's standard streams and this program's.

use super::terminal;
use anyhow::{Context as _, Result};
use parma::output::Escaping;
use parma_guest::wire::{Stdio, Stream};
use parma_vmm::Connector;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Longest beginning of a line that waits for its end before it is shown, in bytes.
const LINE: usize = 64 << 10;

/// Where one process's output goes: to this program's own.
pub struct Output {
    out: Lines,
    err: Lines,
}

impl Output {
    /// With a name, each line begins with it, and is shown when it is complete. Unless `raw`, what goes to a terminal is
    /// escaped; with a name, always.
    pub fn new(name: Option<String>, raw: bool) -> Self {
        Self {
            out: Lines::new(io::stdout(), name.clone(), raw || !io::stdout().is_terminal()),
            err: Lines::new(io::stderr(), name, raw || !io::stderr().is_terminal()),
        }
    }

    /// Shows what it wrote to one of its streams, at once.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        match stream {
            Stream::Stderr => self.err.write(bytes),
            _ => self.out.write(bytes),
        }
    }
}

/// One of this program's streams.
struct Lines {
    to: Box<dyn Write + Send>,
    name: Option<String>,
    /// The beginning of a line with a name whose end has not come.
    line: Vec<u8>,
}

impl Lines {
    fn new(to: impl Write + Send + 'static, name: Option<String>, plain: bool) -> Self {
        let to: Box<dyn Write + Send> =
            if plain && name.is_none() { Box::new(to) } else { Box::new(Escaping::new(to)) };
        Self { to, name, line: Vec::new() }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(name) = &self.name else {
            self.to.write_all(bytes)?;
            return self.to.flush();
        };
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' || self.line.len() == LINE {
                // One write, so that lines of several containers do not mix.
                let end = if byte == b'\n' { "" } else { "\n" };
                let whole = [name.as_bytes(), b" | ", &self.line, end.as_bytes()].concat();
                self.line.clear();
                self.to.write_all(&whole)?;
            }
        }
        self.to.flush()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            // Where it cannot be written, nothing could be.
            let _ = self.write(b"\n");
        }
    }
}

/// Connects this program's standard input with a process's.
///
/// # Errors
/// The guest refuses, or is gone.
pub fn connect_input(connector: &Connector, process: u32) -> Result<()> {
    let mut sink = attach(connector, process, Stream::Stdin)?;
    // Not waited for: it may be blocked in a read when the process is over.
    std::thread::spawn(move || {
        // An end on either side is the end of the input.
        let _ = io::copy(&mut io::stdin().lock(), &mut sink);
        let _ = sink.shutdown(Shutdown::Write);
    });
    Ok(())
}

/// What a process has of this program's streams: all output, and input if that is wanted; or a terminal for both.
pub fn streams(stdin: bool, terminal: bool) -> Stdio {
    Stdio { stdin, stdout: true, stderr: !terminal, terminal: terminal.then(terminal::size) }
}

/// Connects the streams of a process with this program's own; gives the threads that carry its output.
///
/// # Errors
/// The guest refuses, or is gone.
pub fn connect(connector: &Connector, process: u32, stdio: Stdio, raw: bool) -> Result<Vec<JoinHandle<()>>> {
    if stdio.stdin {
        connect_input(connector, process)?;
    }
    let output = Arc::new(Mutex::new(Output::new(None, raw)));
    let carry = |stream| -> Result<JoinHandle<()>> {
        let (mut from, output) = (attach(connector, process, stream)?, output.clone());
        Ok(std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            // Where the output is closed, the rest is dropped: the connection's end tells the guest.
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                if output.write(stream, &buffer[..count]).is_err() {
                    return;
                }
            }
        }))
    };
    let wanted = [(stdio.stdout, Stream::Stdout), (stdio.stderr, Stream::Stderr)];
    wanted.into_iter().filter(|(wanted, _)| *wanted).map(|(_, stream)| carry(stream)).collect()
}

fn attach(connector: &Connector, process: u32, stream: Stream) -> Result<UnixStream> {
    connector.attach(process, stream)?.with_context(|| format!("cannot attach {stream:?}"))
}
