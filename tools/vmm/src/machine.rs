//! One running virtual machine.

use crate::accel::Accel;
use crate::connection::Connection;
use crate::disk::{self, Disk, Place};
use crate::image::Image;
use crate::network::{Network, Tap, in_namespace};
use crate::process::{Process, tail};
use crate::qemu;
use crate::qmp::Monitor;
use crate::runtime::Runtime;
use crate::session::Session;
use crate::vsock::{Connector, Vsock};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use parma_guest::wire::{CONTROL_PORT, FromGuest, PROTOCOL, Phase};
use parma_psp::{Chain, HostData, Platform, Psp, Root};
use qapi::qmp::{Event, block_resize, device_del};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long QEMU may take to start executing.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU may take for an answer.
const QMP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the guest may take to let go of a disk; five seconds of it are its kernel's patience.
const UNPLUG_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the guest may take to boot. Emulated on a busy machine it needs many seconds.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);
/// How often a booting guest is looked at. (Its first report is an event; that it listens, a moment later, is none.)
const BOOT_POLL: Duration = Duration::from_millis(5);
/// Most bytes of the guest's console that are kept (T07: a guest must not fill the host's disk).
const MAX_CONSOLE: u64 = 16 << 20;

/// What to launch.
#[derive(Clone)]
pub struct Config {
    /// What boots.
    pub image: Image,
    /// What the PSP vouches for: SHA-256 of the compiled policy that the guest shall accept.
    pub host_data: [u8; 32],
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub vcpus: u32,
    /// Block devices.
    pub disks: Vec<Disk>,
    /// Disks that can be plugged in at the same time while it runs. Each port makes the boot a little longer.
    pub ports: u32,
    /// Its network interface, QEMU's own; `None`: it has none of this kind.
    pub network: Option<Network>,
    /// Its network interface, a tap device, in place of `network`.
    pub tap: Option<Tap>,
    /// What the emulated PSP's platform is like: for tests that play an old or a debuggable one.
    pub platform: Platform,
    /// What the emulated PSP's certificates rest on; `None`: a root of this machine's own.
    pub root: Option<Root>,
    /// What executes the guest; `None`: whatever works best, see [`Accel::choose`].
    pub accel: Option<Accel>,
    /// Further arguments of QEMU: for tests that play a hostile host.
    pub extra_args: Vec<OsString>,
}

impl Config {
    /// 512 MiB, one processor, no disks, and no ports for more.
    #[must_use]
    pub fn new(image: Image, host_data: [u8; 32]) -> Self {
        Self {
            image,
            host_data,
            memory_mib: 512,
            vcpus: 1,
            disks: Vec::new(),
            ports: 0,
            network: None,
            tap: None,
            platform: Platform::default(),
            root: None,
            accel: None,
            extra_args: Vec::new(),
        }
    }

    /// QEMU's command line for an SNP guest, without vsock device and disks.
    ///
    /// # Errors
    /// A path is not UTF-8, or the image's ID block is not for this launch.
    pub fn snp_command_line(&self) -> Result<Vec<OsString>> {
        let mut line = vec![qemu::PROGRAM.into()];
        line.extend(qemu::base(Accel::Snp, self)?);
        line.extend(qemu::boot(&self.image)?);
        Ok(line)
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

/// A disk that was plugged in.
#[derive(Debug)]
#[must_use = "without it the disk cannot be taken off"]
pub struct Attached {
    port: usize,
}

/// What QEMU calls it.
struct Plugged {
    id: String,
    node: String,
    fdset: Option<i64>,
}

/// A running machine. Dropping it kills it and removes all it has made; so does the death of this process.
pub struct Machine {
    // The order of the fields is the order of their end: QEMU, console, vsock device, PSP, directory.
    qemu: Process,
    qmp: Monitor,
    console: Console,
    vsock: Vsock,
    psp: Arc<Psp>,
    accel: Accel,
    /// What is plugged into each port.
    hot: Vec<Option<Plugged>>,
    /// Disks that were plugged in so far.
    plugged: usize,
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
        let root = config.root.clone().map_or_else(Root::new, Ok)?;
        let (host_data, measurement) = (HostData(config.host_data), config.image.measurement(config.vcpus)?);
        let psp = Arc::new(Psp::under(&root, &config.platform, host_data, measurement)?);

        let (qmp, qmp_fd) = UnixStream::pair().context("socketpair")?;
        // A pipe holds 64 KiB however they come; a socket a few hundred of the serial line's single bytes, and then QEMU loses some.
        let (console, console_fd) = io::pipe().context("pipe")?;
        let (qmp_fd, console_fd) = (OwnedFd::from(qmp_fd), OwnedFd::from(console_fd));
        ensure!(config.network.is_none() || config.tap.is_none(), "a machine has one network interface");
        let mut command = match &config.tap {
            None => Command::new(qemu::PROGRAM),
            Some(tap) => in_namespace(&tap.namespace, qemu::PROGRAM),
        };
        command.args(qemu::base(accel, config)?);
        command.args(qemu::boot(&config.image)?);
        command.arg("-chardev").arg(format!("socket,id=qmp,fd={}", qmp_fd.as_raw_fd()));
        command.args(["-mon", "chardev=qmp,mode=control"]);
        let set = console_fd.as_raw_fd();
        command.arg("-add-fd").arg(format!("fd={set},set={set}"));
        // Appended to: otherwise QEMU truncates it, which no pipe can be.
        command.arg("-chardev").arg(format!("file,id=console,path=/dev/fdset/{set},append=on"));
        command.args(["-serial", "chardev:console"]);
        let mut inherit = vec![qmp_fd, console_fd];
        disk::check_count(config.disks.len(), config.vcpus, config.ports)?;
        command.args(disk::hot_ports(config.ports));
        for (index, disk) in config.disks.iter().enumerate() {
            let mut set = 0;
            if let Some(fd) = disk.open()? {
                // The set's number only has to be unique; the descriptor's is.
                set = fd.as_raw_fd();
                command.arg("-add-fd").arg(format!("fd={set},set={set}"));
                inherit.push(fd);
            }
            let (id, node) = (format!("disk{index}"), format!("node{index}"));
            command.arg("-blockdev").arg(disk.node(&node, set.into())?.to_string());
            command.arg("-device").arg(disk.device(&id, &node, &Place::cold(index)).to_string());
        }
        if let Some(network) = &config.network {
            command.args(network.arguments()?);
        }
        if let Some(tap) = &config.tap {
            command.args(tap.arguments()?);
        }
        let vsock = Vsock::start(&runtime, psp.clone())?;
        command.args(vsock.arguments());
        command.args(&config.extra_args);

        let console = Console::start(console, &runtime.file("console"))?;
        let mut process = Process::spawn("QEMU", command, inherit, &runtime.file("qemu.log"), qemu::REMEDY)?;
        let mut qmp = Monitor::new(qmp)?;
        // An end instead of a greeting: QEMU refused its arguments, and said why.
        if !qmp.speaks(START_TIMEOUT)? {
            return Err(match process.wait(START_TIMEOUT)? {
                Some(status) => process.ended(status),
                None => anyhow!("QEMU does not answer\n{}", process.tail()),
            });
        }
        qmp.handshake().with_context(|| process.tail())?;
        let hot = (0..config.ports).map(|_| None).collect();
        Ok(Self { qemu: process, qmp, console, vsock, psp, accel, hot, plugged: 0, _runtime: runtime })
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Processor time that QEMU has used.
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.qemu.cpu_time()
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
            // An SNP guest has its reports from the processor.
            if (self.accel == Accel::Snp || self.vsock.wait_for_guest(BOOT_POLL))
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
        while let Ok(Some(event)) = self.qmp.event(QMP_TIMEOUT) {
            if let Event::SHUTDOWN { data, .. } = event {
                reason = Some(serde_json::to_value(data.reason)?.as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(Some(Exit { status, reason }))
    }

    /// Executes a command of QEMU's monitor, for tests that play a hostile host.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub fn qmp<C: qapi::Command>(&mut self, command: &C) -> Result<C::Ok> {
        self.qmp.execute(command)
    }

    /// Plugs a disk in, into a machine that runs. The guest learns of it by itself, some time later; a request that names
    /// its serial waits for that.
    ///
    /// # Errors
    /// No port is free, the disk cannot be opened, or QEMU refuses it.
    pub fn attach(&mut self, disk: &Disk) -> Result<Attached> {
        let free = self.hot.iter().position(Option::is_none);
        let port = free.with_context(|| {
            format!(
                "all {} ports have their disks: take one off, or start the machine with more ports",
                self.hot.len()
            )
        })?;
        let number = self.plugged;
        self.plugged += 1;
        let (id, node) = (format!("hot-disk{number}"), format!("hot-node{number}"));
        let fdset = disk.open()?.map(|fd| self.qmp.add_fd(&fd)).transpose()?;
        let arguments = disk.node(&node, fdset.unwrap_or_default())?;
        let device = disk.device(&id, &node, &Place::hot(port));
        let attached = self
            .qmp
            .blockdev_add(arguments)
            .and_then(|()| self.qmp.device_add(device).inspect_err(|_| drop(self.qmp.blockdev_del(&node))));
        if let Err(error) = attached {
            if let Some(fdset) = fdset {
                self.qmp.remove_fd(fdset)?;
            }
            return Err(error.context(format!("cannot plug in the disk {}", disk.serial.as_str())));
        }
        self.hot[port] = Some(Plugged { id, node, fdset });
        Ok(Attached { port })
    }

    /// Takes a disk off: asks the guest to let go of it and waits until it has, which takes its kernel five seconds (the
    /// time that PCI Express gives an operator to change their mind). Whoever still uses it gets I/O errors.
    ///
    /// # Errors
    /// The guest does not let go of it, or is gone.
    pub fn detach(&mut self, attached: Attached) -> Result<()> {
        let Some(Plugged { id, node, fdset }) = self.hot.get_mut(attached.port).and_then(Option::take) else {
            bail!("the disk is not plugged in");
        };
        self.qmp.execute(&device_del { id: id.clone() })?;
        let deadline = Instant::now() + UNPLUG_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.qmp.event(left).with_context(|| format!("waiting for {id} to be let go of"))?;
            match event {
                Some(Event::DEVICE_DELETED { data, .. }) if data.device.as_ref() == Some(&id) => break,
                Some(_) => {}
                None => bail!("QEMU ended while {id} was to be let go of"),
            }
        }
        self.qmp.blockdev_del(&node)?;
        fdset.map_or(Ok(()), |fdset| self.qmp.remove_fd(fdset))
    }

    /// Makes the file of a writable disk longer or shorter and tells the guest, for tests that play a hostile host. `index`
    /// is the disk's place in [`Config::disks`].
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn resize(&mut self, index: usize, bytes: u64) -> Result<()> {
        let size = i64::try_from(bytes).context("a size")?;
        self.qmp.execute(&block_resize { device: None, node_name: Some(format!("node{index}")), size })?;
        Ok(())
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
    fn start(source: PipeReader, log: &Path) -> Result<Self> {
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
