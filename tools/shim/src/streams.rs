//! Carries a process's standard streams between the guest and the pipes or files that containerd names.

use anyhow::{Context as _, Result, bail};
use parma_guest::wire::{Stdio, Stream, WindowSize};
use parma_vmm::Connector;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Bytes that are on their way between two reads: what a pipe holds.
const CHUNK: usize = 64 << 10;

/// Where a process's streams go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// A named pipe; empty: none.
    pub stdin: String,
    /// A named pipe, or `file://` and a path; empty: none.
    pub stdout: String,
    /// As for `stdout`.
    pub stderr: String,
    /// A terminal of this size in place of pipes. What it shows is `stdout`.
    pub terminal: Option<WindowSize>,
}

impl Places {
    /// Which streams are wanted.
    #[must_use]
    pub fn wanted(&self) -> Stdio {
        Stdio {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && self.terminal.is_none(),
            terminal: self.terminal,
        }
    }

    /// Connects the streams of a process that runs.
    ///
    /// # Errors
    /// The guest refuses, or a place is of a kind that is not supported.
    pub fn connect(&self, connector: &Connector, process: u32) -> Result<Streams> {
        let mut streams = Streams { input: None, output: Vec::new() };
        let wanted = self.wanted();
        for (name, stream, wanted) in
            [(&self.stdout, Stream::Stdout, wanted.stdout), (&self.stderr, Stream::Stderr, wanted.stderr)]
        {
            if !wanted {
                continue;
            }
            let place = Place::parse(name)?;
            let mut from = connector.attach(process, stream)?.with_context(|| format!("{stream:?}"))?;
            streams.output.push(std::thread::spawn(move || {
                // A place that is gone costs the output, not the process: the connection's end tells the guest.
                if let Ok((mut to, _held)) = place.open() {
                    let _ = carry(&mut from, &mut to);
                }
            }));
        }
        if !self.stdin.is_empty() {
            // Held open for writing until containerd says that there is no more (CloseIO): whoever writes may come and go.
            streams.input = Some(hold(&self.stdin)?);
            // Opened while it is held: later there may be no writer left, and this would wait for one.
            let mut from = File::open(&self.stdin)?;
            let mut to = connector.attach(process, Stream::Stdin)?.context("Stdin")?;
            // Not waited for: it may be blocked in a read when the process is over.
            std::thread::spawn(move || {
                let _ = carry(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
        Ok(streams)
    }
}

/// The connected streams of a process.
#[derive(Debug, Default)]
pub struct Streams {
    input: Option<File>,
    output: Vec<JoinHandle<()>>,
}

impl Streams {
    /// Nothing more comes from containerd than what is on its way.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Whether all output of the process, which has ended, was carried.
    #[must_use]
    pub fn drained(&self) -> bool {
        self.output.iter().all(JoinHandle::is_finished)
    }
}

/// Carries bytes until one side is at its end.
///
/// Not `io::copy`, which splices: splice(2) waits for a connection's next bytes with the pipe locked, so for as long as
/// the process is silent nobody could read what it wrote before, nor open the pipe, and containerd's thread that tries
/// to cannot even be killed (T07).
fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(&buffer[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

enum Place {
    Pipe(PathBuf),
    File(PathBuf),
}

impl Place {
    fn parse(name: &str) -> Result<Self> {
        match name.split_once("://") {
            None => Ok(Self::Pipe(name.into())),
            Some(("fifo", path)) => Ok(Self::Pipe(path.into())),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some((kind, _)) => bail!("output to {kind}:// is not supported: use a pipe or file://"),
        }
    }

    /// Opens it; for a pipe waits for its reader, and then holds it open for others that come later.
    fn open(&self) -> io::Result<(File, Option<File>)> {
        match self {
            Self::Pipe(path) => {
                let to = File::options().write(true).open(path)?;
                let held = hold(path)?;
                Ok((to, Some(held)))
            }
            Self::File(path) => Ok((File::options().append(true).create(true).open(path)?, None)),
        }
    }
}

fn hold(path: impl AsRef<std::path::Path>) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::thread::JoinHandle;

    /// A pipe in `dir`, the process whose output is carried there, and the carrier.
    fn carried(dir: &Path) -> (PathBuf, UnixStream, JoinHandle<io::Result<()>>) {
        let path = dir.join("stdout");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let (process, mut connection) = UnixStream::pair().unwrap();
        let place = Place::parse(path.to_str().unwrap()).unwrap();
        let carrier = std::thread::spawn(move || {
            let (mut to, _held) = place.open().unwrap();
            carry(&mut connection, &mut to)
        });
        (path, process, carrier)
    }

    /// Neither memory nor a disk of the host takes it: it waits where its process is.
    #[test]
    fn t06_output_that_nobody_reads_is_not_taken_from_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut process, carried) = carried(dir.path());
        let mut reader = File::open(&path).unwrap();
        // As much as sockets, pipe and buffer hold, and then nothing for a second.
        process.set_write_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        let mut taken = 0;
        let stopped = loop {
            match process.write(&[b'x'; CHUNK]) {
                Ok(count) => taken += count,
                Err(error) => break error,
            }
            assert!(taken < 64 * CHUNK, "taken without end");
        };
        assert_eq!(stopped.kind(), io::ErrorKind::WouldBlock);
        drop(process);
        let mut read = Vec::new();
        // All of it comes when somebody reads; then the carrier's pipe is closed.
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), taken);
        carried.join().unwrap().unwrap();
    }

    /// What was written before can be read, and the pipe opened, while the process is silent.
    #[test]
    fn t07_a_silent_process_holds_up_nobody_at_its_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mut process, carried) = carried(dir.path());
        let mut first = File::open(&path).unwrap();
        process.write_all(b"one").unwrap();
        let mut read = [0; 3];
        first.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one");
        // Would wait for the process's next word if the pipe were locked.
        drop(File::open(&path).unwrap());
        drop(process);
        carried.join().unwrap().unwrap();
    }
}
