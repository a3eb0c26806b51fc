//! One running virtual machine.

use crate::accel::Accel;
use crate::connection::Connection;
use crate::image::Image;
use crate::process::{Process, tail};
use crate::qemu;
use crate::runtime::Runtime;
use crate::session::Session;
use crate::vsock::{Connector, Vsock};
use anyhow::{Context as _, Result, anyhow, bail};
use parma_guest::gate::fields::Serial;
use parma_guest::wire::{CONTROL_PORT, FromGuest, PROTOCOL, Phase};
use parma_psp::{Chain, HostData, Psp};
use qapi::qmp::Event;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long QEMU may take to start executing.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the guest may take to boot. Emulated on a busy machine it needs many seconds.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// How often a booting guest is looked at. (Its first report is an event; that it listens, a moment later, is none.)
const BOOT_POLL: Duration = Duration::from_millis(5);
/// Most bytes of the guest's console that are kept (T07: a guest must not fill the host's disk).
const MAX_CONSOLE: u64 = 16 << 20;

/// What to launch.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kernel, initrd and command line.
    pub image: Image,
    /// What the PSP vouches for: SHA-256 of the compiled policy that the guest shall accept.
    pub host_data: [u8; 32],
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// What executes the guest; `None`: whatever works best, see [`Accel::choose`].
    pub accel: Option<Accel>,
    /// Instead of the image's own command line: for tests that play a hostile host.
    pub command_line: Option<String>,
    /// Further arguments of QEMU: for tests that play a hostile host.
    pub extra_args: Vec<OsString>,
}

impl Config {
    /// 512 MiB, one processor, no disks.
    #[must_use]
    pub fn new(image: Image, host_data: [u8; 32]) -> Self {
        Self {
            image,
            host_data,
            memory_mib: 512,
            vcpus: 1,
            disks: Vec::new(),
            accel: None,
            command_line: None,
            extra_args: Vec::new(),
        }
    }
}

/// A block device. It is opened when the machine is launched; later changes of the file's content are visible to the
/// guest, unless the guest has the blocks in its own cache.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// How the guest finds it.
    pub serial: Serial,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Disk {
    /// A read-only disk.
    #[must_use]
    pub fn layer(path: &Path, serial: Serial) -> Self {
        Self { path: path.to_owned(), serial, read_only: true }
    }
}

/// How a machine ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// QEMU's exit status; 0 where the guest ended the machine.
    pub status: ExitStatus,
    /// Why QEMU ended, as it says itself: `guest-reset`, `guest-shutdown`, `guest-panic`, `host-signal`, …
    pub reason: Option<String>,
}

impl Exit {
    /// Whether the guest ended the machine itself.
    #[must_use]
    pub fn by_guest(&self) -> bool {
        self.status.success() && self.reason.as_deref().is_some_and(|reason| reason.starts_with("guest-"))
    }
}

/// A running machine. Dropping it kills it and removes all it has made; so does the death of this process.
pub struct Machine {
    // The order of the fields is the order of their end: QEMU, console, vsock device, PSP, directory.
    qemu: Process,
    qmp: qapi::Qmp<qapi::Stream<BufReader<UnixStream>, UnixStream>>,
    console: Console,
    vsock: Vsock,
    psp: Arc<Psp>,
    accel: Accel,
    _runtime: Runtime,
}

impl Machine {
    /// Launches it, and returns when it has begun to execute.
    ///
    /// # Errors
    /// A file cannot be used, a program is missing, or QEMU does not accept its arguments.
    pub fn launch(config: &Config) -> Result<Self> {
        let accel = config.accel.map_or_else(|| Accel::choose(&config.image), Ok)?;
        let runtime = Runtime::new()?;
        let psp = Arc::new(Psp::new(HostData(config.host_data), config.image.measurement)?);

        let (qmp, qmp_fd) = UnixStream::pair().context("socketpair")?;
        let (console, console_fd) = UnixStream::pair().context("socketpair")?;
        let (qmp_fd, console_fd) = (OwnedFd::from(qmp_fd), OwnedFd::from(console_fd));
        let command_line = config.command_line.as_ref().unwrap_or(&config.image.command_line);
        let mut command = Command::new(qemu::PROGRAM);
        command.args(qemu::base(accel, config.memory_mib, config.vcpus));
        command.arg("-kernel").arg(&config.image.kernel).arg("-initrd").arg(&config.image.initrd);
        command.arg("-append").arg(command_line);
        command.arg("-chardev").arg(format!("socket,id=qmp,fd={}", qmp_fd.as_raw_fd()));
        command.args(["-mon", "chardev=qmp,mode=control"]);
        command.arg("-chardev").arg(format!("socket,id=console,fd={}", console_fd.as_raw_fd()));
        command.args(["-serial", "chardev:console"]);
        let mut inherit = vec![qmp_fd, console_fd];
        for (index, disk) in config.disks.iter().enumerate() {
            let (arguments, fd) = qemu::disk(index, disk)?;
            command.args(arguments);
            inherit.push(fd);
        }
        let vsock = Vsock::start(&runtime, psp.clone())?;
        command.args(vsock.arguments());
        command.args(&config.extra_args);

        let console = Console::start(console, &runtime.file("console"))?;
        let mut process = Process::spawn("QEMU", command, inherit, &runtime.file("qemu.log"), qemu::REMEDY)?;
        qmp.set_read_timeout(Some(START_TIMEOUT)).context("a socket's timeout")?;
        let mut qmp = qapi::Qmp::new(qapi::Stream::new(BufReader::new(qmp.try_clone()?), qmp));
        // An end instead of a greeting: QEMU refused its arguments, and said why.
        if qmp.inner_mut().fill_buf().map_or(true, <[u8]>::is_empty) {
            return Err(match process.wait(START_TIMEOUT)? {
                Some(status) => process.ended(status),
                None => anyhow!("QEMU does not answer\n{}", process.tail()),
            });
        }
        qmp.handshake().map_err(|error| anyhow!("QEMU's monitor: {error}\n{}", process.tail()))?;
        Ok(Self { qemu: process, qmp, console, vsock, psp, accel, _runtime: runtime })
    }

    /// What executes the guest.
    #[must_use]
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// The certificates of the emulated PSP behind this machine.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        self.psp.chain()
    }

    /// Opens raw connections to the guest, also from other threads.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        self.vsock.connector()
    }

    /// Waits until the guest has booted and opens the control connection.
    ///
    /// # Errors
    /// The machine ends, or the guest does not answer in time; the end of its console is then part of the error.
    pub fn session(&mut self) -> Result<Session> {
        let (connection, phase) = self.control()?;
        Session::start(connection, phase, self.connector().clone())
    }

    /// As [`Machine::session`], below the types.
    ///
    /// # Errors
    /// As there.
    pub fn control(&mut self) -> Result<(Connection, Phase)> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        loop {
            if self.vsock.wait_for_guest(BOOT_POLL)
                && let Ok(stream) = self.connector().connect(CONTROL_PORT)
            {
                let mut connection = Connection::new(stream);
                connection.set_timeout(Some(deadline.saturating_duration_since(Instant::now())))?;
                // An end instead of a Hello: the guest has not yet seen that an earlier connection is gone.
                if let Some(body) = connection.receive().context("the guest's first frame")? {
                    let phase = greeting(&body)?;
                    connection.set_timeout(None)?;
                    return Ok((connection, phase));
                }
            }
            if let Some(status) = self.qemu.wait(BOOT_POLL)? {
                bail!("{}\nend of the guest's console:\n{}", self.qemu.ended(status), self.console.tail());
            }
            self.vsock.check()?;
            if Instant::now() > deadline {
                bail!(
                    "no answer from the guest in {BOOT_TIMEOUT:?}; end of its console:\n{}",
                    self.console.tail()
                );
            }
        }
    }

    /// Waits until the machine ends by itself; `None` if it has not after this time.
    ///
    /// # Errors
    /// Its status cannot be had.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Exit>> {
        let Some(status) = self.qemu.wait(timeout)? else { return Ok(None) };
        self.console.finish();
        let mut reason = None;
        let mut line = String::new();
        while self.qmp.inner_mut().read_line(&mut line).is_ok_and(|read| read > 0) {
            if let Ok(Event::SHUTDOWN { data, .. }) = serde_json::from_str(&line) {
                reason = Some(serde_json::to_value(data.reason)?.as_str().unwrap_or_default().to_owned());
            }
            line.clear();
        }
        Ok(Some(Exit { status, reason }))
    }

    /// Executes a command of QEMU's monitor, for tests that play a hostile host.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub fn qmp<C: qapi::Command>(&mut self, command: &C) -> Result<C::Ok> {
        self.qmp.execute(command).map_err(|error| anyhow!("QEMU's monitor: {error}"))
    }

    /// Everything the guest has written to its console so far, as it is: escape it before showing it.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn console(&self) -> Result<Vec<u8>> {
        fs::read(&self.console.log).context("the console's log")
    }
}

/// What the guest's first frame says.
fn greeting(body: &[u8]) -> Result<Phase> {
    match parma_guest::wire::frame::decode(body) {
        Ok(FromGuest::Hello { protocol: PROTOCOL, phase }) => Ok(phase),
        Ok(FromGuest::Hello { protocol, .. }) => {
            bail!(
                "the guest speaks protocol {protocol}, this program {PROTOCOL}: use an image of this version"
            )
        }
        _ => bail!("the guest's first frame is no Hello"),
    }
}

/// The thread that writes the guest's console to a file, as much of it as is kept.
struct Console {
    log: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Console {
    fn start(source: UnixStream, log: &Path) -> Result<Self> {
        let mut file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let thread = std::thread::spawn(move || {
            let (mut source, mut left, mut buffer) = (source, MAX_CONSOLE, vec![0; 64 << 10]);
            while let Ok(count @ 1..) = source.read(&mut buffer) {
                let kept = count.min(usize::try_from(left).unwrap_or(usize::MAX));
                left -= kept as u64;
                // A full disk costs the log, not the machine.
                let _ = file.write_all(&buffer[..kept]);
            }
        });
        Ok(Self { log: log.to_owned(), thread: Some(thread) })
    }

    /// Waits for the last byte; QEMU must have ended.
    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.finish();
    }
}
