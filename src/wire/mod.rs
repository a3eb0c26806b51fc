//! The control protocol: what the host may ask and what the guest answers.
//!
//! One control connection, from CID 2 to [`CONTROL_PORT`], carries frames (see [`frame`]). The guest speaks first
//! ([`FromGuest::Hello`]); from then on the host sends one [`ToGuest`] at a time, numbered 1, 2, 3, …, and waits for the
//! [`FromGuest::Reply`] of the same number. Events may arrive between replies. A process's standard streams travel on
//! connections of their own to [`STREAM_PORT`], which begin with one [`Attach`] frame and one [`Attached`] answer and
//! carry raw bytes after that.
//!
//! The types here are what travels, not what may be acted on: strings are only known to be UTF-8, numbers only to fit.
//! [`crate::gate`] turns a request into checked values, once, before it decides. No path, no mount option and no device
//! node of the host's choosing has a field here, so there is nothing to validate for them.
//!
//! `docs/wire-protocol.md` describes the same bytes for someone who writes another client.

mod excerpt;
pub mod frame;
mod list;

use core::fmt;
use serde::{Deserialize, Serialize};

pub use excerpt::Excerpt;
pub use list::List;

use crate::policy;

pub use crate::attest::audit;
pub use crate::fragment::{MAX_FRAGMENT, Problem};
pub use crate::point::Point;

/// Version of this protocol, sent in [`FromGuest::Hello`]; a client refuses any other.
pub const PROTOCOL: u16 = 1;
/// vsock port on which the guest accepts the control connection.
pub const CONTROL_PORT: u32 = 5041;
/// vsock port on which the guest accepts connections for standard streams.
pub const STREAM_PORT: u32 = 5042;

/// Longest policy image, in bytes.
pub const MAX_POLICY: usize = 1 << 20;
/// Most arguments of one process.
pub const MAX_ARGS: usize = 1024;
/// Most environment variables of one process.
pub const MAX_ENV: usize = 1024;
/// Most layers of one overlay. Overlayfs itself stops at 500.
pub const MAX_LAYERS: usize = 128;
/// Most mounts of one container, beside those that every container has.
pub const MAX_MOUNTS: usize = 64;
/// Most addresses of the network interface.
pub const MAX_ADDRESSES: usize = 8;
/// Most routes through it.
pub const MAX_ROUTES: usize = 16;
/// Most name servers: a C library looks at no more (resolv.conf(5)).
pub const MAX_NAME_SERVERS: usize = 3;
/// Most domains in which names are looked up.
pub const MAX_SEARCH: usize = 6;
/// Most supplementary groups, processes or containers named in one reply.
pub const MAX_LISTED: usize = 1024;
/// Most failed checks named in one denial.
pub const MAX_FAILED: usize = 8;
/// Longest endorsement, and longest certificates, in bytes.
pub const MAX_ENDORSEMENT: usize = 64 << 10;
/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 64 << 10;
/// Longest excerpt of the host's own value that a refusal repeats, in bytes.
pub const MAX_EXCERPT: usize = 64;

/// A request with its number: 1 for the first on a connection, then one more each time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToGuest<'a> {
    /// Position of this request on its connection, from 1. Any other number is refused and the connection closed.
    pub sequence: u32,
    /// What is asked.
    #[serde(borrow)]
    pub request: Request<'a>,
}

/// What the host may ask for. Which of these is accepted when is one table: [`Phase::accepts`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Deliver the compiled policy. Its SHA-256 must equal HOST_DATA of the guest's own report. Once.
    SetPolicy {
        /// The compiled policy, as `parma policy compile` writes it.
        #[serde(borrow)]
        image: &'a [u8],
    },
    /// Map a layer device through dm-verity and mount it read-only.
    MountDevice {
        /// The virtio-blk serial of the device: 1 to 20 of `A–Z a–z 0–9 - _`.
        device: &'a str,
        /// The dm-verity root hash that the host claims, SHA-256.
        root_hash: [u8; 32],
        /// Number of 4096-byte data blocks before the verity superblock.
        data_blocks: u64,
    },
    /// Unmount a layer device and remove its mapping.
    UnmountDevice {
        /// Its serial.
        device: &'a str,
    },
    /// Assemble the root filesystem of a container from mounted layer devices.
    MountOverlay {
        /// The container's id: 64 lower-case hexadecimal digits.
        container: &'a str,
        /// Serials of the layers, top first.
        layers: List<&'a str, MAX_LAYERS>,
        /// The scratch device that takes what the container writes, by its id; `None`: the guest's memory, if the policy
        /// allows that.
        scratch: Option<&'a str>,
    },
    /// Take a container's root filesystem apart.
    UnmountOverlay {
        /// The container's id.
        container: &'a str,
    },
    /// Create a container on its overlay and start its init process.
    CreateContainer {
        /// The container's id.
        container: &'a str,
        /// Whether the container asks for elevated privileges.
        privileged: bool,
        /// What is mounted in it beside its root filesystem and what every container has.
        mounts: List<Mount<'a>, MAX_MOUNTS>,
        /// SHA-256 of the profile of system calls that it is to have.
        seccomp: Option<[u8; 32]>,
        /// Its init process.
        process: Process<'a>,
    },
    /// Start a further process in a running container.
    ExecInContainer {
        /// The container's id.
        container: &'a str,
        /// The process.
        process: Process<'a>,
    },
    /// Send a signal to one process.
    SignalContainerProcess {
        /// The container's id.
        container: &'a str,
        /// The process, as numbered in [`Reply::Started`].
        process: u32,
        /// The signal, 1 to 64.
        signal: u8,
    },
    /// Kill whatever still runs in a container and remove it. Its id is never accepted again.
    ShutdownContainer {
        /// The container's id.
        container: &'a str,
    },
    /// List devices, containers and processes.
    GetProperties,
    /// Turn the guest's own log on the console on or off.
    RuntimeLogging {
        /// On or off.
        enabled: bool,
    },
    /// End the virtual machine.
    PowerOff,
    /// Make a disk the scratch space of a container or a pod: encrypted with a key that nobody but the guest ever has,
    /// and empty.
    MountScratch {
        /// Its id, 64 lower-case hexadecimal digits: the container's own, or one that several containers share.
        scratch: &'a str,
        /// The virtio-blk serial of the disk.
        device: &'a str,
        /// Its size, in blocks of 4096 bytes.
        data_blocks: u64,
        /// Where the authentication tags are kept.
        tags: Tags,
    },
    /// Give up a scratch space that no overlay uses. Its key, and with it all its content, is gone.
    UnmountScratch {
        /// Its id.
        scratch: &'a str,
    },
    /// Open a read-write data volume with the key that is released to this guest for it, and mount it.
    MountVolume {
        /// Its id: which key opens it, see [`crate::target::volume::id`].
        volume: [u8; 32],
        /// The virtio-blk serial of its disk.
        device: &'a str,
    },
    /// Unmount a data volume that no container has mounted. All that was written is then on its disk.
    UnmountVolume {
        /// Its id.
        volume: [u8; 32],
    },
    /// Add a signed fragment to the policy.
    LoadFragment {
        /// The COSE_Sign1 message, as `parma fragment sign` writes it; at most [`MAX_FRAGMENT`] bytes.
        #[serde(borrow)]
        envelope: &'a [u8],
    },
    /// Give the containers that are created from now on the machine's network interface, all of them together. Once.
    SetUpNetwork(#[serde(borrow)] Network<'a>),
    /// Change what a running container may use, or hold it still.
    UpdateContainer {
        /// The container's id.
        container: &'a str,
        /// What holds from now on, all of it.
        resources: Resources,
    },
    /// Ask what a running container has used.
    GetUsage {
        /// The container's id.
        container: &'a str,
    },
    /// Open a sealed channel to this guest; see [`crate::attest::channel`].
    OpenChannel {
        /// The peer's, fresh.
        nonce: [u8; 32],
        /// The peer's ephemeral key: a point of P-256, 65 bytes.
        #[serde(borrow)]
        key: &'a [u8],
    },
    /// Take a message from a sealed channel: an [`Order`].
    Sealed {
        /// The channel.
        channel: u32,
        /// The next message.
        #[serde(borrow)]
        message: &'a [u8],
    },
    /// Read the audit log. Also where the guest is poisoned.
    ReadAudit {
        /// The number of the first entry that is wanted.
        first: u64,
    },
    /// Start a process of the guest itself, outside of any container. There is no program there.
    ExecExternal {
        /// Its argument vector.
        args: List<&'a str, MAX_ARGS>,
        /// Its environment.
        env: List<&'a str, MAX_ENV>,
        /// Its working directory.
        working_dir: &'a str,
    },
    /// Tell what the processes of the containers are doing.
    DumpStacks,
    /// Something that guests of other makes can do and this one does not: the policy decides, and what it allows fails.
    Unoffered {
        /// [`Point::UNOFFERED`]
        point: Point,
        /// The container whose share it would be.
        container: &'a str,
    },
    /// Tell a process's terminal how large its window is. What runs in the foreground there is sent SIGWINCH if that is new.
    ResizeTerminal {
        /// The container's id.
        container: &'a str,
        /// The process that was started with the terminal.
        process: u32,
        /// The size.
        size: WindowSize,
    },
    /// Tell the guest what its containers may show to others beside reports. It is the host's word, and the guest believes
    /// none of it. What comes later takes its place, for containers that are created after that.
    Endorse {
        /// The certificates of the report's key, in the form that its readers take; at most [`MAX_ENDORSEMENT`] bytes.
        #[serde(borrow)]
        certificates: &'a [u8],
        /// The endorsement of the measurement, a COSE_Sign1 message; at most [`MAX_ENDORSEMENT`] bytes.
        #[serde(borrow)]
        endorsement: &'a [u8],
    },
}

/// How the machine's one network interface is set up. What comes in through it is the host's in any case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network<'a> {
    /// Its addresses, each with the length of its network's prefix.
    pub addresses: List<Prefix, MAX_ADDRESSES>,
    /// What is reached through it beside those networks.
    pub routes: List<Route, MAX_ROUTES>,
    /// Name servers.
    pub name_servers: List<Address, MAX_NAME_SERVERS>,
    /// Domains in which names are looked up.
    #[serde(borrow)]
    pub search: List<&'a str, MAX_SEARCH>,
    /// Longest packet in bytes, 1280 to 9000.
    pub mtu: u16,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {}", self.destination, self.gateway)
    }
}

/// An IP address: sixteen bytes, in which IPv4 addresses are `::ffff:a.b.c.d` (RFC 4291, section 2.5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address(pub [u8; 16]);

impl Address {
    /// What an IPv4 address begins with.
    const V4: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

    /// An IPv4 address.
    pub const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The four bytes, if it is an IPv4 address.
    pub fn to_v4(self) -> Option<[u8; 4]> {
        self.0.strip_prefix(&Self::V4)?.first_chunk().copied()
    }
}

/// Four decimal numbers between dots, or eight hexadecimal ones between colons, none of which is left out.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some([a, b, c, d]) = self.to_v4() {
            return write!(f, "{a}.{b}.{c}.{d}");
        }
        for (at, [high, low]) in self.0.as_chunks().0.iter().enumerate() {
            write!(f, "{}{:x}", if at == 0 { "" } else { ":" }, u16::from_be_bytes([*high, *low]))?;
        }
        Ok(())
    }
}

/// An address, and how many of its leading bits are the network's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address.
    pub address: Address,
    /// Bits: 1 to 32 of an IPv4 address, 1 to 128 of an IPv6 one; of a route's destination also 0.
    pub length: u8,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where it leads: all addresses that begin with these bits. The others are 0.
    pub destination: Prefix,
    /// By way of this address, which is on one of the interface's own networks.
    pub gateway: Address,
}

/// What a container may use. `None` is all that the guest has for containers, which is how each one starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes of memory: 1 MiB to 2⁴⁰.
    pub memory: Option<u64>,
    /// Thousandths of a processor: 10 to 1,000,000.
    pub cpu: Option<u32>,
    /// Processes and threads: 1 to 8192.
    pub processes: Option<u32>,
    /// Whether all of its processes are held still.
    pub paused: bool,
}

/// What a container has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes of memory, now.
    pub memory: u64,
    /// Processor time, in microseconds.
    pub cpu: u64,
    /// Processes and threads, now.
    pub processes: u64,
    /// Processes that were killed because the memory that the container may use was exhausted.
    pub out_of_memory: u64,
}

/// What comes sealed. The sealed reply holds a frame with what came of it, as in [`FromGuest::Reply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order<'a> {
    /// The key of a data volume. It is kept until [`Request::MountVolume`].
    Key {
        /// The key.
        key: [u8; 32],
        /// The volume's generation is at least this.
        least_generation: u64,
    },
    /// What could be asked for in the open, too.
    #[serde(borrow)]
    Request(Request<'a>),
    /// A secret for a running container that has the attestation directory, where it becomes a file. Once for each name.
    Secret {
        /// The container's id.
        container: &'a str,
        /// The file's name: 1 to 64 of `A–Z a–z 0–9 . _ -`, not starting with a dot.
        name: &'a str,
        /// What is in it; at most [`MAX_SECRET`] bytes.
        #[serde(borrow)]
        content: &'a [u8],
    },
}

/// Where the authentication tags of an encrypted device are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tags {
    /// In guest memory, 28 bytes for each block of 4096: a block that the host restores to an earlier state is an I/O error.
    Memory,
    /// On the disk, behind the data: the host can restore a block together with its tag. Only where the policy allows it.
    Disk,
}

/// Something to mount in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount<'a> {
    /// What.
    #[serde(borrow)]
    pub source: Source<'a>,
    /// Where: an absolute path inside the container, not at or below `/dev`, `/proc` or `/sys`.
    pub destination: &'a str,
    /// Whether the container can only read it. A layer always is.
    pub read_only: bool,
}

/// What can be mounted in a container. The guest derives the path of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source<'a> {
    /// A directory of this name on the container's scratch space, empty at first; the containers that share the space share
    /// it. 1 to 64 of `A–Z a–z 0–9 . _ -`, not starting with a dot.
    Directory(&'a str),
    /// The filesystem of a mounted layer device, by its serial: a read-only data volume.
    Layer(&'a str),
    /// A mounted read-write data volume, by its id.
    Volume([u8; 32]),
    /// The container's attestation directory, read-only: see [`crate::attest::service`].
    Attestation,
}

/// A process that a request asks for. Names and strings are resolved and checked in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process<'a> {
    /// Its argument vector; the first is also the program. Not empty, no NUL bytes.
    #[serde(borrow)]
    pub args: List<&'a str, MAX_ARGS>,
    /// Its environment, `NAME=value`, in order.
    pub env: List<&'a str, MAX_ENV>,
    /// Its working directory, an absolute path inside the container.
    pub working_dir: &'a str,
    /// As in an OCI image: empty (root), `user`, `uid`, `user:group`, `uid:gid` and mixtures; names are looked up in the
    /// container's own `/etc/passwd` and `/etc/group`.
    pub user: &'a str,
    /// File mode creation mask, at most 0o777.
    pub umask: u16,
    /// The five capability sets.
    pub capabilities: Capabilities,
    /// Whether the process and its children can never gain privileges.
    pub no_new_privileges: bool,
    /// Which standard streams the host will attach to; the others are `/dev/null`.
    pub stdio: Stdio,
}

/// The five capability sets of a process, bit *n* for capability number *n* (`linux/capability.h`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Limit of what an exec can gain.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What is kept through an exec of a file with inheritable capabilities.
    pub inheritable: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What is kept through an exec of an ordinary file.
    pub ambient: u64,
}

/// Which standard streams are carried to the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stdio {
    /// Bytes from the host to the process.
    pub stdin: bool,
    /// Bytes from the process to the host.
    pub stdout: bool,
    /// Bytes from the process to the host.
    pub stderr: bool,
    /// A terminal in place of the pipes, its window of this size. What is typed on it is `stdin`, what it shows is `stdout`;
    /// `stderr` is false.
    pub terminal: Option<WindowSize>,
}

/// The size of a terminal's window, in characters: 1 to 4096 each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// One message of the guest on the control connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest<'a> {
    /// The first message of every control connection.
    Hello {
        /// [`PROTOCOL`].
        protocol: u16,
        /// Where the guest stands.
        phase: Phase,
    },
    /// The answer to the request of this number.
    Reply {
        /// The request's number; 0 where the request could not be read.
        sequence: u32,
        /// What came of it.
        #[serde(borrow)]
        result: Result<Reply<'a>, Refusal>,
    },
    /// A process ended. Sent once on every connection that was there when it ended or came later, until its container
    /// is shut down.
    Exited {
        /// The process.
        process: u32,
        /// How it ended.
        status: ExitStatus,
    },
}

/// What a phase is for; see [`crate::gate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing but the policy is accepted.
    AwaitPolicy,
    /// The policy decides.
    Running,
    /// An undo failed: the guest's state is no longer known to match the policy's. Only [`Request::PowerOff`] is accepted.
    Poisoned,
    /// The guest is powering off.
    Stopping,
}

/// What came of a request that was allowed and done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply<'a> {
    /// Done, nothing to tell.
    Done,
    /// The policy is in force.
    PolicyAccepted {
        /// The attestation report that vouches for it: 1184 bytes, exactly as the PSP signed them.
        #[serde(borrow)]
        report: &'a [u8],
    },
    /// A process runs.
    Started {
        /// Its number: unique until power-off, never used again.
        process: u32,
    },
    /// What exists in the guest.
    Properties(Properties<'a>),
    /// What a container has used.
    Usage(Usage),
    /// A sealed channel is open.
    Channel {
        /// Its number: unique until power-off.
        channel: u32,
        /// The guest's ephemeral key, 65 bytes.
        #[serde(borrow)]
        key: &'a [u8],
        /// The attestation report that vouches for it.
        #[serde(borrow)]
        report: &'a [u8],
        /// The head of the audit log before this request, for which the report vouches, too.
        audit: [u8; 32],
    },
    /// What came of an [`Order`], sealed.
    Sealed {
        /// The next message.
        #[serde(borrow)]
        message: &'a [u8],
    },
    /// A part of the audit log. Its last entry may be the one about this request.
    Audit(audit::Excerpt),
    /// What processes are doing.
    Stacks(List<Doing, MAX_LISTED>),
}

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doing {
    /// The process.
    pub process: u32,
    /// Its state as the kernel writes it: `R` runs, `S` or `D` waits, `T` is stopped, `Z` has ended (proc_pid_stat(5)).
    pub state: u8,
}

/// What exists in the guest, in the order in which it came to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties<'a> {
    /// Serials of mounted layer devices.
    #[serde(borrow)]
    pub devices: List<&'a str, MAX_LISTED>,
    /// Containers that have an overlay.
    pub containers: List<&'a str, MAX_LISTED>,
    /// Processes of those containers, exited ones included.
    pub processes: List<ProcessProperties<'a>, MAX_LISTED>,
    /// Where what the containers write goes: each scratch device, then each container without one.
    pub scratch: List<ScratchProperties<'a>, MAX_LISTED>,
    /// Mounted read-write data volumes. The host can restore earlier states of their blocks.
    pub volumes: List<VolumeProperties, MAX_LISTED>,
    /// Whether every container runs that the policy requires.
    pub ready: bool,
}

/// A read-write data volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeProperties {
    /// Its id.
    pub volume: [u8; 32],
    /// How often it was mounted since it was made, this time included: whoever keeps count detects that the whole volume was
    /// rolled back.
    pub generation: u64,
}

/// Scratch space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScratchProperties<'a> {
    /// Its id; that of the container where it is that container's share of the guest's memory.
    pub scratch: &'a str,
    /// How it is kept.
    pub kind: ScratchKind,
}

/// How scratch space is kept from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ScratchKind {
    /// It never leaves the guest's memory.
    Memory,
    /// On a disk: encrypted, authenticated, and protected against roll-back.
    Sealed,
    /// On a disk: encrypted and authenticated; the host can restore earlier states of its blocks.
    SealedWithoutRollbackProtection,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessProperties<'a> {
    /// Its number.
    pub process: u32,
    /// Its container's id.
    pub container: &'a str,
    /// Whether it is the container's init process.
    pub init: bool,
    /// Its status once it has ended.
    pub exited: Option<ExitStatus>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// This signal killed it.
    Signal(u8),
    /// SIGKILL ended it, and since the last such end the kernel has killed a process of its container because the memory that
    /// it may use was exhausted.
    OutOfMemory,
}

impl ExitStatus {
    /// The number a shell would give: the code, or 128 and the signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128u8.saturating_add(signal),
            Self::OutOfMemory => 128 + 9,
        }
    }
}

/// First frame on a connection to [`STREAM_PORT`], from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The process.
    pub process: u32,
    /// The stream. Each can be attached once.
    pub stream: Stream,
}

/// The guest's answer to [`Attach`]; raw bytes follow an `Ok`.
pub type Attached = Result<(), Refusal>;

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Closing the connection's sending side closes the process's standard input; on a terminal, types its end of file.
    Stdin,
    /// Ends when every writer in the container has closed it.
    Stdout,
    /// As [`Stream::Stdout`].
    Stderr,
}

/// Why nothing was done. After every refusal but [`Reason::Poisoned`] the guest's state is what it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Who has to change something.
    pub culprit: Culprit,
    /// What is wrong.
    pub reason: Reason,
}

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Culprit {
    /// The host asked for something malformed, out of order or not there.
    Host,
    /// The policy does not allow it, or is itself not acceptable.
    Policy,
    /// The container image or layer device is not what it claims to be.
    Image,
    /// The guest itself failed.
    Guest,
}

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// The frame is not a canonical encoding of a request.
    Malformed,
    /// The request's number is not the next one.
    OutOfSequence {
        /// The number that was expected.
        expected: u32,
    },
    /// This phase does not accept this request.
    WrongPhase {
        /// The phase.
        phase: Phase,
    },
    /// A field's value is not valid in itself.
    Invalid {
        /// The field.
        field: Field,
        /// Its rule.
        rule: Rule,
        /// The start of the host's own value, at most [`MAX_EXCERPT`] bytes.
        value: Excerpt,
    },
    /// SHA-256 of the policy is not HOST_DATA.
    NotHostData,
    /// The bytes that HOST_DATA vouches for are not a valid policy image.
    PolicyInvalid,
    /// The policy does not allow it.
    Denied {
        /// The enforcement point that decided.
        point: Point,
        /// How the decision failed.
        how: Denied,
        /// The checks of the policy that failed, where it can tell.
        failed: List<policy::Reason, MAX_FAILED>,
        /// The start of the host's own value that the first such check is about, at most [`MAX_EXCERPT`] bytes.
        value: Excerpt,
    },
    /// It names something that does not exist.
    Unknown {
        /// What.
        field: Field,
    },
    /// It names something that is still in use, or that exists already, or an id that was used before.
    InUse {
        /// What.
        field: Field,
    },
    /// A named limit of the guest is reached.
    Limit {
        /// Of what.
        field: Field,
    },
    /// The policy allowed it, doing it failed, and it was undone.
    Failed {
        /// Which step failed.
        step: Step,
        /// The Linux error number, 0 where there is none.
        errno: u16,
    },
    /// Undoing a failed step failed too. Nothing but [`Request::PowerOff`] is accepted any more.
    Poisoned,
    /// The fragment is not one that the policy could be asked about, or its content is none.
    Fragment {
        /// What is wrong with it.
        problem: Problem,
    },
}

/// How a decision was not an allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Denied {
    /// The policy has no rule for this point, or the rule has no value for this request.
    Undefined,
    /// The rule's value says no.
    No,
    /// Evaluation stopped: conflict, overflow, out of fuel or memory.
    Fault,
}

/// A part of a request, as far as a refusal names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Field {
    /// The policy image.
    Policy,
    /// A container id.
    Container,
    /// A device serial or the mount point derived from it.
    Device,
    /// A root hash.
    RootHash,
    /// A device's size.
    DataBlocks,
    /// The layers of an overlay.
    Layers,
    /// The argument vector.
    Command,
    /// The environment.
    Environment,
    /// The working directory.
    WorkingDir,
    /// The user, or the groups it is in.
    User,
    /// The file mode creation mask.
    Umask,
    /// The capability sets.
    Capabilities,
    /// The no-new-privileges flag.
    NoNewPrivileges,
    /// The privileged flag.
    Privileged,
    /// The mounts of the container.
    Mounts,
    /// The seccomp profile.
    Seccomp,
    /// The standard streams.
    Stdio,
    /// A process number.
    Process,
    /// A signal number.
    Signal,
    /// Scratch space, by its id.
    Scratch,
    /// A data volume, by its id.
    Volume,
    /// A fragment.
    Fragment,
    /// The network, or a part of its set-up.
    Network,
    /// What a container may use.
    Resources,
    /// A sealed channel, or a key of one.
    Channel,
    /// An enforcement point.
    Point,
    /// An endorsement, or certificates.
    Endorsement,
    /// A secret, or its name.
    Secret,
}

/// The rule that an invalid value breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// 64 lower-case hexadecimal digits.
    ContainerId,
    /// 1 to 20 of `A–Z a–z 0–9 - _`.
    Serial,
    /// At least one.
    NotEmpty,
    /// No NUL byte inside, and the first argument is not empty.
    CString,
    /// `NAME=value` with a non-empty name and no NUL byte.
    Variable,
    /// No name twice.
    UniqueNames,
    /// An absolute path without NUL, `.` or `..` components, at most 4095 bytes.
    AbsolutePath,
    /// `user[:group]`, each a name or a number below 2³²−1.
    UserSpec,
    /// Inside the range that the field's description gives.
    Range,
    /// Only capabilities that exist, and sets that the kernel can hold together.
    CapabilitySets,
    /// No element twice.
    NoDuplicates,
    /// 1 to 64 of `A–Z a–z 0–9 . _ -`, not starting with a dot.
    DirectoryName,
    /// An absolute path without NUL, `.` or `..` components, not at or below `/dev`, `/proc` or `/sys`.
    MountPoint,
    /// An address of one machine, not a loopback, multicast or reserved one; of a network, its first one.
    Address,
    /// A domain: labels of `A–Z a–z 0–9 -` between dots, at most 253 bytes.
    Domain,
    /// A point of P-256, uncompressed: 65 bytes.
    PublicKey,
    /// A terminal comes with standard output and without standard error.
    Terminal,
}

/// The step of an allowed action that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Finding the block device of this serial.
    FindDevice,
    /// The device is too small for its data and hash blocks.
    DeviceSize,
    /// Making the device-mapper target.
    MapDevice,
    /// The filesystem behind dm-verity is not one of our layers, or not of the claimed size.
    LayerFilesystem,
    /// Mounting.
    Mount,
    /// Unmounting.
    Unmount,
    /// Removing the device-mapper target.
    UnmapDevice,
    /// Looking up the user in the container's image.
    ResolveUser,
    /// Making or configuring the control group.
    Cgroup,
    /// Making pipes or file descriptors.
    Descriptors,
    /// Making the process with its namespaces.
    Clone,
    /// Entering a running container's namespaces.
    EnterNamespaces,
    /// Building the container's filesystem view.
    Rootfs,
    /// Dropping privileges.
    Privileges,
    /// Changing to the working directory.
    WorkingDir,
    /// Executing the program.
    Execute,
    /// Sending the signal.
    Signal,
    /// Waiting for killed processes to be gone.
    Reap,
    /// The guest's memory is exhausted.
    Memory,
    /// Making the filesystem of a scratch space.
    Format,
    /// Having the key of a volume released.
    ReleaseKey,
    /// The volume is not what its key says, or an earlier state than the key's owner knows of.
    VolumeContent,
    /// Finding the network interface.
    FindInterface,
    /// Setting up the network.
    Network,
    /// Having the processor make a report, or fresh random bytes.
    Report,
    /// Finding out what processes are doing.
    DumpStacks,
    /// This guest does not do such things.
    Unoffered,
    /// Making a container's attestation directory, or a secret in it.
    Attestation,
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;
    use alloc::vec::Vec;
    use core::fmt::Write;

    const PAGE: &str = include_str!("../../docs/wire-protocol.md");

    fn on_the_page<T: Serialize>(what: &str, value: &T) {
        let frame = frame::encode(value).unwrap();
        let hex = frame.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let row = alloc::format!("| `{} {}` | {what} |", &hex[..8], &hex[8..]);
        assert!(PAGE.lines().any(|line| line == row), "docs/wire-protocol.md lacks the row\n{row}");
    }

    #[test]
    fn the_examples_of_the_protocol_page_are_what_is_sent() {
        on_the_page("request 1: PowerOff", &ToGuest { sequence: 1, request: Request::PowerOff });
        on_the_page(
            "request 2: RuntimeLogging on",
            &ToGuest { sequence: 2, request: Request::RuntimeLogging { enabled: true } },
        );
        on_the_page(
            "Hello, protocol 1, AwaitPolicy",
            &FromGuest::Hello { protocol: PROTOCOL, phase: Phase::AwaitPolicy },
        );
        on_the_page(
            "reply to request 1: Ok, Done",
            &FromGuest::Reply { sequence: 1, result: Ok(Reply::Done) },
        );
        let refusal = Refusal { culprit: Culprit::Host, reason: Reason::NotHostData };
        on_the_page(
            "reply to request 1: refused; culprit Host, NotHostData",
            &FromGuest::Reply { sequence: 1, result: Err(refusal) },
        );
        on_the_page(
            "process 5 exited with code 9",
            &FromGuest::Exited { process: 5, status: ExitStatus::Code(9) },
        );
        on_the_page("attach to process 7's standard output", &Attach { process: 7, stream: Stream::Stdout });
    }

    #[test]
    fn every_point_has_its_number_on_the_protocol_page() {
        let listed: Vec<&str> = PAGE.split(['\n', ',', '.']).map(str::trim).collect();
        for (number, point) in Point::ALL.iter().enumerate() {
            let entry = alloc::format!("{number} {}", point.name());
            assert!(listed.iter().any(|text| text.trim_start_matches("`Point`: ") == entry), "{entry}");
        }
    }
}
