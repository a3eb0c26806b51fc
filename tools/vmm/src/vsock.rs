//! How the host reaches the guest's vsock ports, and the guest the emulated PSP.
//!
//! With `vhost-device-vsock` (a process that serves the device over vhost-user), a connection to guest port P is a
//! connection to its Unix socket that begins with `CONNECT P\n` and is answered `OK …\n`; a connection of the guest to
//! port P of the host arrives at the Unix socket of the same path with `_P` appended. Where `/dev/vhost-vsock` exists,
//! both are ordinary AF_VSOCK connections.

use crate::connection::Connection;
use crate::process::Process;
use crate::qemu;
use crate::refusal::Refused;
use crate::runtime::{Runtime, cache_dir};
use anyhow::{Context as _, Result, anyhow, bail};
use parma_guest::wire::{Attach, Attached, STREAM_PORT, Stream, frame};
use parma_psp::Psp;
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Version of `vhost-device-vsock` that `cargo xtask setup` builds.
const VERSION: &str = "0.3.0";
/// Names the program, before the other places are looked at.
const VARIABLE: &str = "PARMA_VSOCKD";
const REMEDY: &str = "run `cargo xtask setup`, or `cargo install vhost-device-vsock` and set PARMA_VSOCKD";
/// How long `vhost-device-vsock` may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the guest's kernel may take to answer a connection request.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest answer of `vhost-device-vsock` to a `CONNECT`, in bytes.
const MAX_ANSWER: usize = 32;

/// Opens connections to one guest. It can be handed to another process of the same user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Connector {
    /// Through the Unix socket of `vhost-device-vsock`.
    Unix(PathBuf),
    /// Through the kernel, to this CID.
    Kernel(u32),
}

impl Connector {
    /// Connects to a port of the guest.
    ///
    /// The type is that of a Unix stream even where the kernel carries it: reading, writing, timeouts and shutdown are
    /// the same system calls for both.
    ///
    /// # Errors
    /// `ConnectionRefused` if nothing listens there (yet).
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let path = match self {
            Self::Unix(path) => path,
            Self::Kernel(cid) => {
                let stream = VsockStream::connect_with_cid_port(*cid, port)?;
                return Ok(UnixStream::from(OwnedFd::from(stream)));
            }
        };
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).map_err(refused)?;
        // Byte by byte: what follows the line is the guest's.
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            stream.read_exact(&mut byte).map_err(refused)?;
            answer.push(byte[0]);
            if answer.len() > MAX_ANSWER {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        if !answer.starts_with(b"OK ") {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        stream.set_read_timeout(None)?;
        Ok(stream)
    }

    /// Attaches to a standard stream of a process: the connection then carries its raw bytes.
    ///
    /// # Errors
    /// The guest cannot be reached. That it refuses is no error: it is what the guest answered.
    pub fn attach(&self, process: u32, stream: Stream) -> Result<Result<UnixStream, Refused>> {
        let connection = self.connect(STREAM_PORT).context("the guest's port for standard streams")?;
        let mut connection = Connection::new(connection);
        connection.set_timeout(Some(CONNECT_TIMEOUT))?;
        connection.send(&Attach { process, stream })?;
        let body = connection.receive()?.context("the guest hung up instead of attaching the stream")?;
        let attached: Attached =
            frame::decode(&body).map_err(|_| anyhow!("a malformed answer from the guest"))?;
        connection.set_timeout(None)?;
        Ok(attached.map(|()| connection.into_stream()).map_err(Refused))
    }
}

/// A peer that hangs up says that nothing listens.
fn refused(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            ErrorKind::ConnectionRefused.into()
        }
        _ => error,
    }
}

/// One guest's vsock device, with the PSP behind its port of the host.
pub struct Vsock {
    connector: Connector,
    arguments: Vec<OsString>,
    daemon: Option<Process>,
    // Dropped last: the PSP's thread ends when its listener is shut down.
    psp: PspServer,
}

impl Vsock {
    /// The device, ready for QEMU to connect to.
    ///
    /// With the kernel's vsock all guests share the host's ports, so only one can have an emulated PSP at a time:
    /// where its port is taken, `vhost-device-vsock` serves.
    pub fn start(runtime: &Runtime, psp: Arc<Psp>) -> Result<Self> {
        let device_exists = fs::File::options().read(true).write(true).open("/dev/vhost-vsock").is_ok();
        if device_exists
            && let Ok(listener) = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, parma_psp::PORT)
        {
            let mut random = [0; 4];
            rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
                .context("getrandom")?;
            // CIDs 0 to 2 mean something else, and the highest are reserved.
            let cid = (u32::from_le_bytes(random) >> 1).max(3);
            let device = kernel_device(cid);
            return Ok(Self {
                connector: Connector::Kernel(cid),
                arguments: vec!["-device".into(), device.into()],
                daemon: None,
                psp: PspServer::start(UnixListener::from(OwnedFd::from(listener)), psp),
            });
        }
        let (host, device) = (runtime.file("vsock"), runtime.file("vhost"));
        let mut psp_socket = host.clone().into_os_string();
        psp_socket.push(format!("_{}", parma_psp::PORT));
        let listener = UnixListener::bind(&psp_socket).context("cannot make the emulated PSP's socket")?;
        let psp = PspServer::start(listener, psp);

        let program = find_daemon()?;
        let mut command = Command::new(&program);
        command.arg("--guest-cid=3").arg("--socket").arg(&device).arg("--uds-path").arg(&host);
        let watch = Watch::new(&device)?;
        let mut daemon =
            Process::spawn("vhost-device-vsock", command, vec![], &runtime.file("vsock.log"), REMEDY)?;
        watch.until_listening(&device, &mut daemon)?;
        Ok(Self {
            connector: Connector::Unix(host),
            arguments: vec![
                "-chardev".into(),
                qemu::file_option("socket,id=vsock,path=", &device)?,
                "-device".into(),
                "vhost-user-vsock-pci,chardev=vsock,disable-legacy=on,addr=1.0,multifunction=on,romfile="
                    .into(),
            ],
            daemon: Some(daemon),
            psp,
        })
    }

    /// QEMU's arguments for the device.
    pub fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Opens connections to the guest.
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Waits until the guest has had a report of its PSP; false if it has not after this time.
    ///
    /// Before that nothing may connect to it: `vhost-device-vsock` 0.3 stops serving when a connection arrives after
    /// QEMU has told it of the guest's memory and before it has told it of the queues.
    pub fn wait_for_guest(&self, timeout: Duration) -> bool {
        self.psp.answered.wait(timeout)
    }

    /// The error to give if the device has failed.
    pub fn check(&mut self) -> Result<()> {
        if let Some(daemon) = &mut self.daemon
            && let Some(status) = daemon.wait(Duration::ZERO)?
        {
            return Err(daemon.ended(status));
        }
        Ok(())
    }
}

/// QEMU's device of the kernel's vsock, under this CID.
pub fn kernel_device(cid: u32) -> String {
    format!("vhost-vsock-pci,guest-cid={cid},disable-legacy=on,addr=1.0,multifunction=on,romfile=")
}

/// `$PARMA_VSOCKD`, or the one in `PATH`, or the one that `cargo xtask setup` built.
fn find_daemon() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            bail!("{VARIABLE} is {}, which is no file: {REMEDY}", named.display())
        };
    }
    const NAME: &str = "vhost-device-vsock";
    let built = cache_dir(&format!("tools/{NAME}-{VERSION}/bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(built)
        .map(|dir| dir.join(NAME))
        .find(|file| file.is_file())
        .with_context(|| format!("neither /dev/vhost-vsock nor {NAME} found: {REMEDY}"))
}

/// Waits for a Unix socket to appear.
struct Watch(OwnedFd);

impl Watch {
    fn new(socket: &Path) -> Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .context("inotify")?;
        let dir = socket.parent().context("a socket without a directory")?;
        inotify::add_watch(&fd, dir, inotify::WatchFlags::CREATE).context("inotify")?;
        Ok(Self(fd))
    }

    /// Connecting would be taken for QEMU's connection, so the kernel's table of sockets is read instead.
    fn until_listening(self, socket: &Path, server: &mut Process) -> Result<()> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let start = std::time::Instant::now();
        while !is_listening(socket)? {
            if let Some(status) = server.wait(Duration::ZERO)? {
                return Err(server.ended(status));
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("vhost-device-vsock does not listen after {START_TIMEOUT:?}\n{}", server.tail());
            }
            // Between its creation and listen(2) no event comes, hence the short timeout.
            let timeout = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
            let _ = poll(&mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)], Some(&timeout));
            let mut drained = [0; 1024];
            let _ = rustix::io::read(&self.0, &mut drained);
        }
        Ok(())
    }
}

/// Whether a Unix socket of this path accepts connections: flag 0x10000 (`__SO_ACCEPTCON`) in `/proc/net/unix`.
fn is_listening(socket: &Path) -> Result<bool> {
    let table = fs::read("/proc/net/unix").context("cannot read /proc/net/unix")?;
    let table = String::from_utf8_lossy(&table);
    let path = socket.to_str().context("a socket whose path is not UTF-8")?;
    Ok(table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some("00010000") && fields.nth(3) == Some(path)
    }))
}

/// Something that happens once, and can be waited for.
#[derive(Default)]
struct Happened {
    yes: Mutex<bool>,
    changed: Condvar,
}

impl Happened {
    fn set(&self) {
        *self.yes.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, timeout: Duration) -> bool {
        let yes = self.yes.lock().unwrap_or_else(PoisonError::into_inner);
        *self.changed.wait_timeout_while(yes, timeout, |yes| !*yes).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The thread that answers for the emulated PSP.
struct PspServer {
    listener: UnixListener,
    answered: Arc<Happened>,
    thread: Option<JoinHandle<()>>,
}

impl PspServer {
    fn start(listener: UnixListener, psp: Arc<Psp>) -> Self {
        let answered = Arc::<Happened>::default();
        let theirs = answered.clone();
        // Where the descriptor cannot be cloned there is no PSP, and the guest finds that out.
        let thread = listener.try_clone().ok().map(|served| {
            std::thread::spawn(move || {
                if let Err(error) = psp.serve(&served, || theirs.set()) {
                    eprintln!("{error:#}");
                }
            })
        });
        Self { listener, answered, thread }
    }
}

impl Drop for PspServer {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_listening_only_after_listen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!is_listening(&path).unwrap());
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path).unwrap());
        drop(listener);
        assert!(!is_listening(&path).unwrap());
    }

    #[test]
    fn a_peer_that_hangs_up_is_a_refusal_and_what_follows_the_answer_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            drop(listener.accept().unwrap());
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 13];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"CONNECT 5041\n");
            stream.write_all(b"OK 1024\nrest").unwrap();
        });
        let connector = Connector::Unix(path);
        assert_eq!(connector.connect(5041).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let mut rest = String::new();
        connector.connect(5041).unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "rest");
        server.join().unwrap();
    }
}
