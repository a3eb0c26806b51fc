//! Actions: what the guest can do, and the permit without which it does none of it.
//!
//! Paper, section 3.2: the inductive step. An [`Actor`] changes the guest only in functions that take a [`Permit`] by
//! value, and only [`super::Gate`] can make one, after the policy allowed exactly the action inside it. So that nothing
//! happens without a decision is checked by the compiler, and so is that what happens is what was decided on.

use super::fields::{
    Args, CapabilitySets, ContainerId, DataBlocks, DirectoryName, Env, MountPoint, Resources, RootHash,
    ScratchBlocks, Serial, Signal, Slot, Stdio, Umask, UserSpec, VolumeId, WindowSize, WorkingDir,
};
use super::network::Network;
use super::settings::{PodSettings, Settings};
use crate::attest::stream::Exporter;
use crate::point::Point;
use crate::wire::{Step, Tags, Usage};
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Leave to do one action, once.
#[derive(Debug)]
#[must_use = "an action that was allowed is done, or its decision undone"]
pub struct Permit<A> {
    action: A,
}

impl<A> Permit<A> {
    /// Only the gate calls this, after a decision.
    pub(super) fn granted(action: A) -> Self {
        Self { action }
    }

    /// A permit for a unit test of an actor.
    #[cfg(all(test, feature = "guest"))]
    pub(crate) fn for_test(action: A) -> Self {
        Self { action }
    }

    /// Uses the permit up.
    pub fn into_action(self) -> A {
        self.action
    }
}

/// Keep the key of a volume until the volume is mounted.
pub struct KeepKey {
    /// The key, which came sealed.
    pub key: Zeroizing<[u8; 32]>,
    /// The volume's generation is at least this.
    pub least_generation: u64,
}

/// Keep what containers that are created from now on may show beside reports.
#[derive(Debug, Clone, Copy)]
pub struct Endorse<'a> {
    /// The certificates of the report's key, if the host says so.
    pub certificates: &'a [u8],
    /// The endorsement of the measurement, if the host says so.
    pub endorsement: &'a [u8],
}

/// Give a container a secret.
pub struct DeliverSecret<'a> {
    /// The container.
    pub container: ContainerId,
    /// The secret's name.
    pub name: DirectoryName<'a>,
    /// What it is; it came sealed.
    pub content: &'a [u8],
}

/// Number of a process: unique until power-off, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub(crate) u32);

impl ProcessId {
    /// As it travels.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// Map a device through dm-verity and mount it read-only at its slot.
#[derive(Debug, Clone)]
pub struct MountDevice {
    /// The device.
    pub device: Serial,
    /// Where it goes.
    pub slot: Slot,
    /// Root of its hash tree; the policy allowed this one.
    pub root_hash: RootHash,
    /// Its size. The actor refuses a filesystem that says otherwise (difference D4).
    pub data_blocks: DataBlocks,
    /// Whether the machine ends when a block does not match; otherwise its reader gets an error.
    pub panic_on_corruption: bool,
}

/// Unmount a layer and remove its mapping.
#[derive(Debug, Clone)]
pub struct UnmountDevice {
    /// Where it is.
    pub slot: Slot,
}

/// Assemble a container's root filesystem.
#[derive(Debug, Clone)]
pub struct MountOverlay {
    /// The container.
    pub container: ContainerId,
    /// Its layers, top first.
    pub layers: Vec<Slot>,
    /// The scratch device for what it writes; `None`: the guest's memory.
    pub scratch: Option<ContainerId>,
}

/// Take it apart.
#[derive(Debug, Clone)]
pub struct UnmountOverlay {
    /// The container.
    pub container: ContainerId,
    /// The scratch device under it.
    pub scratch: Option<ContainerId>,
}

/// Make a disk encrypted scratch space and mount it.
#[derive(Debug, Clone)]
pub struct MountScratch {
    /// Its id: a container's, or one that several share.
    pub scratch: ContainerId,
    /// The number of its mapping: no other scratch space has it.
    pub number: u16,
    /// The disk.
    pub device: Serial,
    /// Its size.
    pub blocks: ScratchBlocks,
    /// Where its tags are kept.
    pub tags: Tags,
}

/// Unmount scratch space and forget its key.
#[derive(Debug, Clone)]
pub struct UnmountScratch {
    /// Its id.
    pub scratch: ContainerId,
}

/// Open a read-write data volume and mount it.
#[derive(Debug, Clone)]
pub struct MountVolume {
    /// Its id.
    pub volume: VolumeId,
    /// The number of its mapping: no other volume has it.
    pub number: u16,
    /// Its disk.
    pub device: Serial,
}

/// Unmount a data volume.
#[derive(Debug, Clone)]
pub struct UnmountVolume {
    /// Its id.
    pub volume: VolumeId,
}

/// Something mounted in a container beside what every container has.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// What.
    pub source: Source<'a>,
    /// Where.
    pub destination: MountPoint<'a>,
    /// Whether the container can only read it.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A directory on the container's scratch space.
    Directory(DirectoryName<'a>),
    /// A mounted layer device.
    Layer(Slot),
    /// A mounted data volume.
    Volume(VolumeId),
    /// The container's attestation directory, with this policy in it.
    Attestation(&'static [u8]),
}

/// A process to start.
#[derive(Debug, Clone)]
pub struct StartProcess<'a> {
    /// Its number.
    pub process: ProcessId,
    /// Its argument vector.
    pub args: Args<'a>,
    /// Its environment, after what the policy dropped.
    pub env: Env<'a>,
    /// Its working directory, inside the container.
    pub working_dir: WorkingDir<'a>,
    /// Who it runs as, already resolved.
    pub user: User,
    /// Its file mode creation mask.
    pub umask: Umask,
    /// Its capabilities, after what the policy dropped.
    pub capabilities: CapabilitySets,
    /// Whether it can never gain privileges.
    pub no_new_privileges: bool,
    /// Streams to keep for the host; the others are `/dev/null`.
    pub stdio: Stdio,
    /// Whether output that nobody reads waits for ever, and the process with it.
    pub output_waits: bool,
    /// Under what these streams are sealed: a process that was started through a channel shows the host nothing.
    pub sealed: Option<Exporter>,
}

/// Create a container on its overlay and start its init process.
#[derive(Debug, Clone)]
pub struct CreateContainer<'a> {
    /// The container.
    pub container: ContainerId,
    /// The scratch space whose directories it can have mounted: the container's own where it is in guest memory.
    pub scratch: ContainerId,
    /// What is mounted in it.
    pub mounts: Vec<Mount<'a>>,
    /// What the policy says that the guest gives it.
    pub settings: Settings,
    /// What the policy says that the guest gives all containers together.
    pub pod: PodSettings,
    /// Its init process.
    pub init: StartProcess<'a>,
}

/// Start a further process in a container.
#[derive(Debug, Clone)]
pub struct ExecInContainer<'a> {
    /// The container.
    pub container: ContainerId,
    /// The process.
    pub process: StartProcess<'a>,
}

/// Send a signal to a process.
#[derive(Debug, Clone, Copy)]
pub struct SignalProcess {
    /// The process.
    pub process: ProcessId,
    /// The signal.
    pub signal: Signal,
}

/// Tell a process's terminal how large its window is.
#[derive(Debug, Clone, Copy)]
pub struct ResizeTerminal {
    /// The process, which was started with a terminal.
    pub process: ProcessId,
    /// The size.
    pub size: WindowSize,
}

/// Kill what runs in a container and remove it.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownContainer {
    /// The container.
    pub container: ContainerId,
}

/// Change what a container may use, or hold it still.
#[derive(Debug, Clone, Copy)]
pub struct UpdateContainer {
    /// The container.
    pub container: ContainerId,
    /// What holds from now on.
    pub resources: Resources,
}

/// Look at what a container has used.
#[derive(Debug, Clone, Copy)]
pub struct GetUsage {
    /// The container.
    pub container: ContainerId,
}

/// Turn the guest's own log on or off.
#[derive(Debug, Clone, Copy)]
pub struct SetLogging {
    /// On or off.
    pub enabled: bool,
}

/// Add a fragment's entries to what the policy allows.
#[derive(Debug)]
pub struct LoadFragment<'a> {
    /// Its image, which has been verified.
    pub image: &'a [u8],
}

/// Make the network that containers join from now on.
#[derive(Debug, Clone)]
pub struct SetUpNetwork<'a> {
    /// How.
    pub network: Network<'a>,
}

/// Start a process outside of any container.
#[derive(Debug, Clone)]
pub struct ExecExternal<'a> {
    /// Its argument vector.
    pub args: Args<'a>,
    /// Its environment, after what the policy dropped.
    pub env: Env<'a>,
    /// Its working directory.
    pub working_dir: WorkingDir<'a>,
}

/// Find out what a process is doing.
#[derive(Debug, Clone, Copy)]
pub struct DumpStack {
    /// The process.
    pub process: ProcessId,
}

/// What this guest does not do: [`Point::UNOFFERED`].
#[derive(Debug, Clone, Copy)]
pub struct Unoffered {
    /// What.
    pub point: Point,
}

/// A user and its groups as the kernel and the policy know them. The audit log has the digest of its encoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Its name in the container's `/etc/passwd`, or empty.
    pub name: String,
    /// Primary group first, then the supplementary ones in the order of `/etc/group`.
    pub groups: Vec<Group>,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Group id.
    pub gid: u32,
    /// Its name in the container's `/etc/group`, or empty.
    pub name: String,
}

/// Why an action was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActError {
    /// The step that failed.
    pub step: Step,
    /// The Linux error number, 0 where there is none.
    pub errno: u16,
    /// Whether everything before that step was undone. If not, the gate is poisoned (difference D5).
    pub undone: bool,
}

/// What can act: the kernel's side of the guest, or a recording of it in tests.
///
/// Every function that takes a permit either does the whole action, or leaves the guest as it was and says
/// [`ActError::undone`], or says that it could not.
pub trait Actor {
    /// Does it.
    fn mount_device(&mut self, permit: Permit<MountDevice>) -> Result<(), ActError>;
    /// Does it.
    fn unmount_device(&mut self, permit: Permit<UnmountDevice>) -> Result<(), ActError>;
    /// Does it.
    fn mount_scratch(&mut self, permit: Permit<MountScratch>) -> Result<(), ActError>;
    /// Does it.
    fn unmount_scratch(&mut self, permit: Permit<UnmountScratch>) -> Result<(), ActError>;
    /// Does it. Gives the volume's generation.
    fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError>;
    /// Does it.
    fn unmount_volume(&mut self, permit: Permit<UnmountVolume>) -> Result<(), ActError>;
    /// Does it.
    fn mount_overlay(&mut self, permit: Permit<MountOverlay>) -> Result<(), ActError>;
    /// Does it.
    fn unmount_overlay(&mut self, permit: Permit<UnmountOverlay>) -> Result<(), ActError>;
    /// Does it; when it returns, the program has been executed.
    fn create_container(&mut self, permit: Permit<CreateContainer<'_>>) -> Result<(), ActError>;
    /// Does it; when it returns, the program has been executed.
    fn exec_in_container(&mut self, permit: Permit<ExecInContainer<'_>>) -> Result<(), ActError>;
    /// Does it. A process that has just ended is not an error.
    fn signal_process(&mut self, permit: Permit<SignalProcess>) -> Result<(), ActError>;
    /// Does it. A terminal that nothing has open any more is not an error.
    fn resize_terminal(&mut self, permit: Permit<ResizeTerminal>) -> Result<(), ActError>;
    /// Does it; when it returns, no process of the container is left.
    fn shutdown_container(&mut self, permit: Permit<ShutdownContainer>) -> Result<(), ActError>;
    /// Does it. What runs may be held still only some time after this returns.
    fn update_container(&mut self, permit: Permit<UpdateContainer>) -> Result<(), ActError>;
    /// Does it.
    fn usage(&mut self, permit: Permit<GetUsage>) -> Result<Usage, ActError>;
    /// Does it.
    fn set_logging(&mut self, permit: Permit<SetLogging>) -> Result<(), ActError>;
    /// Does it.
    fn set_up_network(&mut self, permit: Permit<SetUpNetwork<'_>>) -> Result<(), ActError>;
    /// Does it, where there is a program outside of containers.
    fn exec_external(&mut self, permit: Permit<ExecExternal<'_>>) -> Result<(), ActError>;
    /// Gives the letter of the process's state; `None` if it has ended.
    fn dump_stack(&self, permit: Permit<DumpStack>) -> Result<Option<u8>, ActError>;
    /// Does it, where the guest can.
    fn unoffered(&mut self, permit: Permit<Unoffered>) -> Result<(), ActError> {
        let Unoffered { .. } = permit.into_action();
        Err(ActError { step: Step::Unoffered, errno: 0, undone: true })
    }

    /// Forgets a process that has ended, and what nobody read of its output.
    fn forget(&mut self, process: ProcessId);
    /// Keeps the key of a volume.
    fn keep_key(&mut self, permit: Permit<KeepKey>) -> Result<(), ActError>;

    /// Keeps it.
    fn endorse(&mut self, permit: Permit<Endorse<'_>>) -> Result<(), ActError>;
    /// Does it, if the container has an attestation directory and no secret of that name yet.
    fn deliver_secret(&mut self, permit: Permit<DeliverSecret<'_>>) -> Result<(), ActError>;

    /// 32 fresh random bytes. Changes nothing.
    fn random(&self) -> Result<[u8; 32], ActError>;
    /// A report of this guest with this REPORT_DATA. Changes nothing.
    fn report(&self, data: &[u8; 64]) -> Result<[u8; 1184], ActError>;

    /// Looks a user up in the container's own files. Changes nothing. Done once per request: the policy decides on the
    /// very value that the process then gets (C06).
    fn resolve_user(&self, container: &ContainerId, user: UserSpec<'_>) -> Result<User, ActError>;
}
