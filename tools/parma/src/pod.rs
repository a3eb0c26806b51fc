//! A booted guest, and the requests of an honest host as methods.
//!
//! Each method is one request. Whoever wants to play a hostile host sends others through [`Guest::ask`], or goes below
//! it with [`parma_vmm::Connection`].

use crate::output::hex;
use crate::record::Record;
use crate::release::Owner;
use crate::workload::{Content, Encrypted, Layer, Policy, Workload};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use parma_guest::attest::{audit, service};
use parma_guest::gate::fields::{ContainerId, ScratchBlocks, Serial};
use parma_guest::wire::{
    self, Address, List, Mount, Prefix, Process, Request, Resources, Route, Source, Stdio, Tags, Usage,
    WindowSize,
};
use parma_kms::bundle::Bundle;
use parma_kms::verify::{Expected, Roots};
use parma_policy::generate::Container;
use parma_psp::{Report, Root, layout};
use parma_vmm::{
    Accel, Config, Disk, Exit, Machine, Network, Opened, Outcome, Properties, Reply, Session, network,
};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::NamedTempFile;

/// How long a guest may take to end after it was asked to.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(30);

/// Is told of each request and what came of it.
pub type Observer = Arc<dyn Fn(&Request<'_>, &Outcome) + Send + Sync>;

/// What QEMU's network is to the guest: its address, and the way out where there is one.
#[must_use]
pub fn network_request(network: &Network) -> wire::Network<'static> {
    let v4 = |address: Ipv4Addr| Address::v4(address.octets());
    let prefix = |address: Ipv4Addr, length| Prefix { address: v4(address), length };
    let mut set_up = wire::Network {
        addresses: List::new(),
        routes: List::new(),
        name_servers: List::new(),
        search: List::new(),
        mtu: network::MTU,
    };
    // One of each fits.
    let _ = set_up.addresses.push(prefix(network::ADDRESS, network::PREFIX));
    if network.outbound {
        let gateway = v4(network::GATEWAY);
        let _ = set_up.routes.push(Route { destination: prefix(Ipv4Addr::UNSPECIFIED, 0), gateway });
        let _ = set_up.name_servers.push(v4(network::NAME_SERVER));
    }
    set_up
}

/// Tells nobody.
#[must_use]
pub fn unobserved() -> Observer {
    Arc::new(|_, _| {})
}

/// A new container id.
///
/// # Errors
/// The system has no randomness.
pub fn new_container_id() -> Result<ContainerId> {
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).context("no randomness")?;
    ContainerId::parse(&hex(&random)).map_err(|_| anyhow!("64 hexadecimal digits are a container id"))
}

/// Serial of the disk for scratch space.
const SCRATCH_SERIAL: &str = "scratch0";
/// Bytes of a block of scratch space.
const BLOCK: u64 = 4096;

/// Where a container writes.
#[derive(Debug)]
pub enum Scratch {
    /// To the guest's memory, if the policy allows that.
    Memory,
    /// To a disk, which the guest encrypts: a sparse file that lasts as long as this value.
    Disk {
        /// The file.
        file: NamedTempFile,
        /// How the guest finds the disk.
        serial: Serial,
        /// Its size in blocks of 4096 bytes.
        blocks: u64,
    },
}

impl Scratch {
    /// A disk of this many bytes, rounded up to whole blocks.
    ///
    /// # Errors
    /// The size is not one that the guest takes, or the file cannot be made.
    pub fn disk(bytes: u64) -> Result<Self> {
        let blocks = bytes.div_ceil(BLOCK);
        ensure!(
            ScratchBlocks::new(blocks).is_ok(),
            "scratch space of {bytes} bytes: it must have {} MiB to {} GiB",
            (ScratchBlocks::MIN * BLOCK) >> 20,
            (ScratchBlocks::MAX * BLOCK) >> 30
        );
        let file = NamedTempFile::with_prefix("parma-scratch-")
            .and_then(|file| file.as_file().set_len(blocks * BLOCK).map(|()| file));
        let file = file.with_context(|| {
            let place = std::env::temp_dir();
            format!("cannot make the scratch disk in {}: set TMPDIR to another place", place.display())
        })?;
        let serial = Serial::parse(SCRATCH_SERIAL).map_err(|_| anyhow!("a serial"))?;
        Ok(Self::Disk { file, serial, blocks })
    }

    /// The disk to attach, if there is one.
    #[must_use]
    pub fn to_attach(&self) -> Option<Disk> {
        match self {
            Self::Memory => None,
            Self::Disk { file, serial, .. } => Some(Disk::writable(file.path(), serial.clone())),
        }
    }
}

/// What a guest's audit log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The head before the first entry: HOST_DATA, if that is entry 1.
    pub before: [u8; 32],
    /// The entries, each with the number after the one before it.
    pub entries: Vec<audit::Entry>,
    /// The head after the last one.
    pub head: [u8; 32],
}

/// A machine with its guest.
pub struct Pod {
    /// What can be asked of the guest, also from other threads.
    pub guest: Arc<Guest>,
    /// The machine; it ends when the pod is dropped.
    pub machine: Machine,
    measurement: [u8; 48],
}

impl Pod {
    /// Launches a machine and waits for its guest.
    ///
    /// # Errors
    /// See [`Machine::launch`] and [`Machine::session`].
    pub fn boot(config: &Config, observer: Observer) -> Result<Self> {
        let mut machine = Machine::launch(config)?;
        let session = machine.session()?;
        let measurement = config.image.measurement(config.vcpus)?.0;
        let guest = Guest { session, observer, record: Mutex::default() };
        Ok(Self { guest: Arc::new(guest), machine, measurement })
    }

    /// The whole way of `workload` from a machine to a running container: boot, policy, layers, overlay, container.
    /// Gives the pod and the number of the container's first process.
    ///
    /// `config` needs image and policy only: the disks are added here.
    ///
    /// # Errors
    /// The first step that fails or is refused.
    pub fn start(
        mut config: Config,
        policy: &Policy,
        workload: &Workload,
        scratch: &Scratch,
        id: &ContainerId,
        stdio: Stdio,
        observer: Observer,
    ) -> Result<(Self, u32)> {
        config.host_data = policy.host_data();
        config.disks.extend(workload.disks().chain(scratch.to_attach()));
        let pod = Self::boot(&config, observer)?;
        pod.set_policy(policy)?;
        if let Some(network) = &config.network {
            pod.guest.set_up_network(network_request(network))?;
        }
        for layer in &workload.layers {
            pod.guest.mount_layer(layer)?;
        }
        let on = pod.guest.mount_scratch(id, scratch)?;
        pod.guest.mount_overlay(id, &workload.layers, on)?;
        let process = pod.guest.create(id, workload, stdio)?;
        Ok((pod, process))
    }

    /// Delivers the policy, and checks the report that vouches for it.
    ///
    /// # Errors
    /// The guest refuses it, or the report is not about this image, this policy and this machine.
    pub fn set_policy(&self, policy: &Policy) -> Result<Box<Report>> {
        let Reply::PolicyAccepted(report) = self.guest.ask(Request::SetPolicy { image: &policy.image })?
        else {
            bail!("the guest answered something else than a report");
        };
        // The signature of real hardware is for whoever trusts AMD's roots, not for the host that delivers the policy.
        if self.machine.accel() != Accel::Snp {
            parma_psp::verify(&report, self.machine.chain()).context("the guest's report")?;
        }
        ensure!(
            report[layout::HOST_DATA] == policy.host_data(),
            "the guest's report is about another policy"
        );
        ensure!(report[layout::MEASUREMENT] == self.measurement, "the guest's report is about another image");
        Ok(report)
    }

    /// An owner of keys who gives them to this guest if it runs this image under this policy. That AMD's hardware says so, with these
    /// certificates, or whoever has the `emulated` root, behind which there is nothing: only the owner's own word makes it good.
    ///
    /// # Errors
    /// The emulated PSP's certificates cannot be written.
    pub fn owner(&self, policy: &Policy, mut certificates: Bundle, emulated: Option<&Root>) -> Result<Owner> {
        let expected = Expected {
            measurements: vec![self.measurement],
            policies: vec![policy.host_data()],
            ..Expected::default()
        };
        let mut roots = Roots::amd();
        if self.machine.accel() != Accel::Snp {
            certificates.certificates.extend(self.chain(&certificates)?);
        }
        if let Some(root) = emulated {
            let mut bundle = Bundle::default();
            bundle.add(root.certificate_pem()?.as_bytes())?;
            let root = bundle.certificates.first().context("the emulated root is not there")?;
            roots = roots.with_emulated(root).context("the emulated root is no certificate")?;
        }
        Ok(Owner { expected, roots, certificates, endorsement: None, at: None })
    }

    /// The certificates of the key that signs the guest's reports, in DER, leaf first: the emulated PSP's, or those of the hardware
    /// that were found elsewhere.
    ///
    /// # Errors
    /// The emulated PSP's certificates cannot be written.
    pub fn chain(&self, hardware: &Bundle) -> Result<Vec<Vec<u8>>> {
        if self.machine.accel() == Accel::Snp {
            return Ok(hardware.certificates.clone());
        }
        self.machine.chain().to_der().context("the emulated PSP's certificates")
    }

    /// Asks the guest to end, and waits until it has.
    ///
    /// # Errors
    /// It refuses, or does not end in time. The machine is gone in any case.
    pub fn power_off(mut self) -> Result<Exit> {
        match self.guest.ask(Request::PowerOff) {
            // A machine that ends takes an answer with it that is on its way; that the guest ended it says the same.
            Err(error) if !error.is::<parma_vmm::Refused>() => match self.machine.wait(POWER_OFF_TIMEOUT)? {
                Some(exit) if exit.by_guest() => Ok(exit),
                _ => Err(error),
            },
            asked => {
                asked?;
                self.machine.wait(POWER_OFF_TIMEOUT)?.context("the guest did not power off")
            }
        }
    }
}

/// What can be asked of a guest.
pub struct Guest {
    /// The control connection.
    pub session: Session,
    observer: Observer,
    /// Locked for as long as a request takes, so that its order is the guest's.
    record: Mutex<Record>,
}

impl Guest {
    /// Asks for anything. A refusal is an error of type [`parma_vmm::Refused`].
    ///
    /// # Errors
    /// The guest refuses, or is gone.
    pub fn ask(&self, request: Request<'_>) -> Result<Reply> {
        let mut record = self.record();
        let outcome = self.exchange(&mut record, &request)?;
        if record.is_behind() {
            self.catch_up(&mut record)?;
        }
        Ok(outcome?)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        // After a panic the record is no worse than the request that was cut off.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, record: &mut Record, request: &Request<'_>) -> Result<Outcome> {
        let outcome = self.session.request(request.clone())?;
        record.note(request, &outcome);
        (self.observer)(request, &outcome);
        Ok(outcome)
    }

    /// Reads what the guest's log has since it was read last.
    fn catch_up(&self, record: &mut Record) -> Result<()> {
        loop {
            let Ok(kept) = record.kept() else { return Ok(()) };
            let first = kept.next();
            let outcome = self.exchange(record, &Request::ReadAudit { first })?;
            let Ok(Reply::Audit(excerpt)) = outcome else {
                *record = Record::Lost("the policy does not allow the log to be read");
                return Ok(());
            };
            let Ok(kept) = record.kept() else { return Ok(()) };
            match kept.take(&excerpt) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(why) => *record = Record::Lost(why),
            }
        }
    }

    /// Keeps a record of what is asked for from now on, which is before the policy is delivered.
    pub fn keep_record(&self) {
        *self.record() = Record::Waiting;
    }

    /// What the record has from this entry on: each entry with its request, for as long as `take` says so.
    ///
    /// # Errors
    /// There is no record.
    pub fn recorded(&self, first: u64, mut take: impl FnMut(&audit::Entry, &[u8]) -> bool) -> Result<()> {
        let mut record = self.record();
        if record.kept()?.next() <= first {
            self.catch_up(&mut record)?;
        }
        let kept = record.kept()?;
        kept.from(first).take_while(|(entry, request)| take(entry, request)).for_each(drop);
        Ok(())
    }

    fn done(&self, request: Request<'_>) -> Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => bail!("the guest answered something else than Done"),
        }
    }

    fn started(&self, request: Request<'_>) -> Result<u32> {
        match self.ask(request)? {
            Reply::Started(process) => Ok(process),
            _ => bail!("the guest answered something else than a process"),
        }
    }

    /// Mounts a layer's disk, verified by its root hash.
    ///
    /// # Errors
    /// See [`Guest::ask`], here as in all that follow.
    pub fn mount_layer(&self, layer: &Layer) -> Result<()> {
        let Layer { serial, root_hash, data_blocks, .. } = layer;
        self.done(Request::MountDevice {
            device: serial.as_str(),
            root_hash: *root_hash,
            data_blocks: *data_blocks,
        })
    }

    /// Gives the containers that are created from now on the machine's network.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn set_up_network(&self, network: wire::Network<'_>) -> Result<()> {
        self.done(Request::SetUpNetwork(network))
    }

    /// Reads the audit log from its first entry that the guest still has, and checks that the entries lead to its head.
    ///
    /// # Errors
    /// The guest refuses, or its entries are not one chain.
    pub fn audit(&self) -> Result<History> {
        let mut history: Option<History> = None;
        loop {
            let first = history
                .as_ref()
                .and_then(|history| history.entries.last())
                .map_or(1, |last| last.sequence + 1);
            let Reply::Audit(excerpt) = self.ask(Request::ReadAudit { first })? else {
                bail!("the guest answered something else than its audit log");
            };
            let history = history.get_or_insert_with(|| History {
                before: excerpt.before,
                entries: Vec::new(),
                head: excerpt.before,
            });
            let Some(from) = excerpt.entries.first() else {
                bail!("the guest's log lacks the entry of its reading")
            };
            ensure!(
                excerpt.before == history.head && (from.sequence == first || history.entries.is_empty()),
                "the guest's log is not one chain"
            );
            history.head = audit::follow(excerpt.before, from.sequence, &excerpt.entries)
                .context("the guest's log is not one chain")?;
            history.entries.extend_from_slice(&excerpt.entries);
            if history.head == excerpt.head {
                return Ok(history.clone());
            }
        }
    }

    /// Tells the guest what its containers may show beside reports.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn endorse(&self, certificates: &[u8], endorsement: &[u8]) -> Result<()> {
        self.done(Request::Endorse { certificates, endorsement })
    }

    /// Unmounts a layer's disk.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn unmount_layer(&self, layer: &Layer) -> Result<()> {
        self.done(Request::UnmountDevice { device: layer.serial.as_str() })
    }

    /// Opens an encrypted data volume with the key that was released for it before ([`crate::release`]).
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn mount_volume(&self, volume: &Encrypted) -> Result<()> {
        self.done(Request::MountVolume { volume: volume.id, device: volume.serial.as_str() })
    }

    /// Closes an encrypted data volume: everything is on its disk.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn unmount_volume(&self, volume: &Encrypted) -> Result<()> {
        self.done(Request::UnmountVolume { volume: volume.id })
    }

    /// Carries the offer of a key's owner to the guest: a nonce and an ephemeral key. Gives the channel's number and the
    /// guest's answer, for the owner to judge.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn open_channel(&self, nonce: [u8; 32], key: &[u8]) -> Result<(u32, Box<Opened>)> {
        match self.ask(Request::OpenChannel { nonce, key })? {
            Reply::Channel(channel, opened) => Ok((channel, opened)),
            _ => bail!("the guest answered something else than a channel"),
        }
    }

    /// Carries a sealed message to the guest, and gives its sealed answer.
    ///
    /// # Errors
    /// See [`Guest::ask`]: the guest could not open the message. Whether it did what the message says is in the answer.
    pub fn carry(&self, channel: u32, message: &[u8]) -> Result<Vec<u8>> {
        match self.ask(Request::Sealed { channel, message })? {
            Reply::Sealed(answer) => Ok(answer),
            _ => bail!("the guest answered something else than a sealed message"),
        }
    }

    /// Makes a disk the scratch space of this id, and gives the id back; nothing is to be done where it is memory.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn mount_scratch<'a>(
        &self,
        id: &'a ContainerId,
        scratch: &Scratch,
    ) -> Result<Option<&'a ContainerId>> {
        let Scratch::Disk { serial, blocks, .. } = scratch else { return Ok(None) };
        self.done(Request::MountScratch {
            scratch: id.as_str(),
            device: serial.as_str(),
            data_blocks: *blocks,
            tags: Tags::Memory,
        })?;
        Ok(Some(id))
    }

    /// Gives up the scratch space of this id.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn unmount_scratch(&self, id: &ContainerId) -> Result<()> {
        self.done(Request::UnmountScratch { scratch: id.as_str() })
    }

    /// Puts a container's root filesystem together from mounted layers, given bottom first. It writes to the scratch space
    /// of the id `scratch`, or to memory.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn mount_overlay(
        &self,
        id: &ContainerId,
        layers: &[Layer],
        scratch: Option<&ContainerId>,
    ) -> Result<()> {
        let layers = layers.iter().rev().map(|layer| layer.serial.as_str()).collect();
        let layers = List::from_vec(layers).context("more layers than the guest takes: squash the image")?;
        let scratch = scratch.map(ContainerId::as_str);
        self.done(Request::MountOverlay { container: id.as_str(), layers, scratch })
    }

    /// Takes a container's root filesystem apart.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn unmount_overlay(&self, id: &ContainerId) -> Result<()> {
        self.done(Request::UnmountOverlay { container: id.as_str() })
    }

    /// Creates a container and starts its first process; gives the process's number.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn create(&self, id: &ContainerId, workload: &Workload, stdio: Stdio) -> Result<u32> {
        let container = &workload.container;
        let process = process(container, &container.args, stdio)?;
        let mounts = container.mounts.iter().map(|mount| Mount {
            source: Source::Directory(&mount.volume),
            destination: &mount.destination,
            read_only: mount.read_only,
        });
        let volumes = workload.volumes.iter().map(|volume| {
            let source = match &volume.content {
                Content::Verified(layer) => Source::Layer(layer.serial.as_str()),
                Content::Encrypted(encrypted) => Source::Volume(encrypted.id),
            };
            Mount { source, destination: &volume.destination, read_only: volume.read_only }
        });
        let attestation = container.attestation.then_some(Mount {
            source: Source::Attestation,
            destination: service::DIRECTORY,
            read_only: true,
        });
        let mut mounts: Vec<_> = mounts.chain(volumes).chain(attestation).collect();
        // What is mounted within another mount comes after that.
        mounts.sort_by_key(|mount| mount.destination.split('/').filter(|name| !name.is_empty()).count());
        let mounts = List::from_vec(mounts).context("more mounts than the guest takes")?;
        self.started(Request::CreateContainer {
            container: id.as_str(),
            privileged: false,
            mounts,
            seccomp: container.seccomp_hash()?,
            process,
        })
    }

    /// Starts a further process in a container; gives its number.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn exec(
        &self,
        id: &ContainerId,
        container: &Container,
        args: &[String],
        stdio: Stdio,
    ) -> Result<u32> {
        let process = process(container, args, stdio)?;
        self.started(Request::ExecInContainer { container: id.as_str(), process })
    }

    /// Sends a signal to a process.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn signal(&self, id: &ContainerId, process: u32, signal: u8) -> Result<()> {
        self.done(Request::SignalContainerProcess { container: id.as_str(), process, signal })
    }

    /// Says how large a process's terminal is.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn resize(&self, id: &ContainerId, process: u32, size: WindowSize) -> Result<()> {
        self.done(Request::ResizeTerminal { container: id.as_str(), process, size })
    }

    /// Kills what still runs in a container and removes it.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn shutdown(&self, id: &ContainerId) -> Result<()> {
        self.done(Request::ShutdownContainer { container: id.as_str() })
    }

    /// Changes what a container may use.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn update(&self, id: &ContainerId, resources: Resources) -> Result<()> {
        self.done(Request::UpdateContainer { container: id.as_str(), resources })
    }

    /// What a container has used.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn usage(&self, id: &ContainerId) -> Result<Usage> {
        match self.ask(Request::GetUsage { container: id.as_str() })? {
            Reply::Usage(usage) => Ok(usage),
            _ => bail!("the guest answered something else than what was used"),
        }
    }

    /// Lists what exists.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn properties(&self) -> Result<Properties> {
        match self.ask(Request::GetProperties)? {
            Reply::Properties(properties) => Ok(properties),
            _ => bail!("the guest answered something else than properties"),
        }
    }
}

/// The process of `container` with these arguments, as an honest host asks for it.
///
/// # Errors
/// More arguments or variables than a request can carry.
pub fn process<'a>(container: &'a Container, args: &'a [String], stdio: Stdio) -> Result<Process<'a>> {
    let list = |strings: &'a [String]| strings.iter().map(String::as_str).collect::<Vec<_>>();
    Ok(Process {
        args: List::from_vec(list(args)).context("too many arguments")?,
        env: List::from_vec(list(&container.env)).context("too many variables")?,
        working_dir: &container.working_dir,
        user: &container.user,
        umask: container.umask,
        capabilities: container.capabilities(),
        no_new_privileges: container.no_new_privileges,
        stdio,
    })
}

/// A request as one line for the operator: its name, and what it is about.
#[must_use]
pub fn describe(request: &Request<'_>) -> String {
    let short = |id: &str| id.get(..12).unwrap_or(id).to_owned();
    match request {
        Request::SetPolicy { image } => format!("set_policy: {} bytes", image.len()),
        Request::MountDevice { device, root_hash, data_blocks } => {
            format!("mount_device {device}: root hash {}, {data_blocks} blocks", hex(root_hash))
        }
        Request::UnmountDevice { device } => format!("unmount_device {device}"),
        Request::MountOverlay { container, layers, scratch } => {
            let under = if scratch.is_some() { "scratch" } else { "memory" };
            format!("mount_overlay {}: {under} on {}", short(container), layers.join(" on "))
        }
        Request::UnmountOverlay { container } => format!("unmount_overlay {}", short(container)),
        Request::CreateContainer { container, process, .. } => {
            format!("create_container {}: {:?}", short(container), &process.args[..])
        }
        Request::ExecInContainer { container, process } => {
            format!("exec_in_container {}: {:?}", short(container), &process.args[..])
        }
        Request::SignalContainerProcess { container, process, signal } => {
            format!("signal_container_process {}: signal {signal} to process {process}", short(container))
        }
        Request::ShutdownContainer { container } => format!("shutdown_container {}", short(container)),
        Request::GetProperties => "get_properties".to_owned(),
        Request::RuntimeLogging { enabled } => {
            format!("runtime_logging {}", if *enabled { "on" } else { "off" })
        }
        Request::MountScratch { scratch, device, data_blocks, tags } => {
            let tags = match tags {
                Tags::Memory => "in memory",
                Tags::Disk => "on the disk",
            };
            format!("mount_scratch {} on {device}: {data_blocks} blocks, tags {tags}", short(scratch))
        }
        Request::UnmountScratch { scratch } => format!("unmount_scratch {}", short(scratch)),
        Request::MountVolume { volume, device } => {
            format!("mount_volume {} on {device}", short(&hex(volume)))
        }
        Request::UnmountVolume { volume } => format!("unmount_volume {}", short(&hex(volume))),
        Request::PowerOff => "power_off".to_owned(),
        Request::UpdateContainer { container, resources } => {
            format!("update_container {}: {resources:?}", short(container))
        }
        Request::GetUsage { container } => format!("get_usage {}", short(container)),
        Request::LoadFragment { envelope } => format!("load_fragment of {} bytes", envelope.len()),
        Request::ReadAudit { first } => format!("read_audit from {first}"),
        Request::ExecExternal { args, .. } => format!("exec_external: {:?}", &args[..]),
        Request::DumpStacks => "dump_stacks".to_owned(),
        Request::Unoffered { point, container } => format!("{} {}", point.name(), short(container)),
        Request::SetUpNetwork(network) => {
            let addresses: Vec<_> =
                network.addresses.iter().map(|prefix| prefix.address.to_string()).collect();
            format!("set_up_network: {}", addresses.join(", "))
        }
        Request::OpenChannel { .. } => "open_channel".to_owned(),
        Request::ResizeTerminal { container, process, size } => {
            format!(
                "resize_terminal {}: {} rows, {} columns for process {process}",
                short(container),
                size.rows,
                size.columns
            )
        }
        Request::Endorse { certificates, endorsement } => {
            format!(
                "endorse: certificates of {} bytes, endorsement of {} bytes",
                certificates.len(),
                endorsement.len()
            )
        }
        Request::Sealed { message, .. } => format!("sealed message of {} bytes", message.len()),
    }
}
