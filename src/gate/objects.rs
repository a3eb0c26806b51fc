//! What exists in the guest, as the gate knows it: devices, overlays, containers and processes.
//!
//! The policy's own state says what the policy may still allow; this says what a request can name and what is in use.
//! Both change only when an allowed action was done.

use super::action::ProcessId;
use super::fields::{ContainerId, Serial, Slot, VolumeId};
use super::memory::{self, OutOfMemory};
use crate::wire::{ExitStatus, ScratchKind, Tags};
use alloc::string::String;
use alloc::vec::Vec;

/// Most mounted layer devices at a time.
pub const MAX_DEVICES: usize = 256;
/// Most overlays, and so containers, at a time.
pub const MAX_CONTAINERS: usize = 128;
/// Most scratch devices at a time.
pub const MAX_SCRATCH: usize = 128;
/// Most data volumes at a time.
pub const MAX_VOLUMES: usize = 128;
/// Most processes, exited ones of containers not yet shut down included; of these, the oldest are forgotten first.
pub const MAX_PROCESSES: usize = 1024;
/// Most containers from start to power-off: each leaves its id behind.
pub const MAX_IDS: usize = 16_384;

/// A mounted layer device.
#[derive(Debug)]
pub(super) struct Device {
    pub serial: Serial,
    pub slot: Slot,
}

/// A mounted scratch device.
#[derive(Debug)]
pub(super) struct Scratch {
    pub id: ContainerId,
    pub number: u16,
    pub serial: Serial,
    pub tags: Tags,
}

/// A mounted data volume.
#[derive(Debug)]
pub(super) struct Volume {
    pub id: VolumeId,
    pub number: u16,
    pub serial: Serial,
    pub generation: u64,
}

/// An assembled root filesystem, and the container on it if there is one.
#[derive(Debug)]
pub(super) struct Overlay {
    pub container: ContainerId,
    pub layers: Vec<Slot>,
    /// The scratch device under it; `None`: guest memory.
    pub scratch: Option<ContainerId>,
    /// Layer devices that are mounted in the container by themselves.
    pub mounts: Vec<Slot>,
    /// Data volumes that are mounted in the container.
    pub volumes: Vec<VolumeId>,
    /// Whether a container was created on it and not yet shut down.
    pub created: bool,
    /// Whether the policy allows that container's processes standard streams.
    pub stdio: bool,
    /// Whether what nobody reads of their output waits, and they with it.
    pub output_waits: bool,
    /// Whether its processes are held still.
    pub paused: bool,
}

/// A process the gate started.
#[derive(Debug)]
pub(super) struct Process {
    pub id: ProcessId,
    pub container: ContainerId,
    pub init: bool,
    /// Its command, for the policy's decisions on signals.
    pub args: Vec<String>,
    /// Whether it was started on a terminal.
    pub terminal: bool,
    pub exited: Option<ExitStatus>,
}

/// Everything that exists.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub devices: Vec<Device>,
    pub scratches: Vec<Scratch>,
    pub volumes: Vec<Volume>,
    pub overlays: Vec<Overlay>,
    pub processes: Vec<Process>,
    /// Whether the network was set up.
    pub network: bool,
    /// Ids for which the policy once allowed a container (D12, C08).
    burned: Vec<ContainerId>,
    last_process: u32,
}

impl Objects {
    /// The lowest slot that no device has.
    pub fn free_slot(&self) -> Option<Slot> {
        (0..MAX_DEVICES as u16).map(Slot).find(|&slot| self.devices.iter().all(|device| device.slot != slot))
    }

    pub fn device(&self, serial: &Serial) -> Option<&Device> {
        self.devices.iter().find(|device| device.serial == *serial)
    }

    /// Whether a disk of this serial is in use, for whatever purpose (L06).
    pub fn serial_in_use(&self, serial: &Serial) -> bool {
        self.device(serial).is_some()
            || self.scratches.iter().any(|scratch| scratch.serial == *serial)
            || self.volumes.iter().any(|volume| volume.serial == *serial)
    }

    pub fn volume(&self, id: &VolumeId) -> Option<&Volume> {
        self.volumes.iter().find(|volume| volume.id == *id)
    }

    /// The lowest number that no data volume has.
    pub fn free_volume(&self) -> Option<u16> {
        (0..MAX_VOLUMES as u16).find(|&number| self.volumes.iter().all(|volume| volume.number != number))
    }

    pub fn volume_in_use(&self, id: &VolumeId) -> bool {
        self.overlays.iter().any(|overlay| overlay.volumes.contains(id))
    }

    pub fn scratch(&self, id: &ContainerId) -> Option<&Scratch> {
        self.scratches.iter().find(|scratch| scratch.id == *id)
    }

    /// The lowest number that no scratch device has.
    pub fn free_scratch(&self) -> Option<u16> {
        (0..MAX_SCRATCH as u16).find(|&number| self.scratches.iter().all(|scratch| scratch.number != number))
    }

    pub fn scratch_in_use(&self, id: &ContainerId) -> bool {
        self.overlays.iter().any(|overlay| overlay.scratch == Some(*id))
    }

    /// Where what containers write goes: each scratch device, then each container that writes to guest memory.
    pub fn scratch_kinds(&self) -> impl Iterator<Item = (&ContainerId, ScratchKind)> {
        let devices = self.scratches.iter().map(|scratch| match scratch.tags {
            Tags::Memory => (&scratch.id, ScratchKind::Sealed),
            Tags::Disk => (&scratch.id, ScratchKind::SealedWithoutRollbackProtection),
        });
        let in_memory = self.overlays.iter().filter(|overlay| overlay.scratch.is_none());
        devices.chain(in_memory.map(|overlay| (&overlay.container, ScratchKind::Memory)))
    }

    pub fn overlay(&mut self, container: &ContainerId) -> Option<&mut Overlay> {
        self.overlays.iter_mut().find(|overlay| overlay.container == *container)
    }

    pub fn slot_in_use(&self, slot: Slot) -> bool {
        let uses = |overlay: &Overlay| overlay.layers.contains(&slot) || overlay.mounts.contains(&slot);
        self.overlays.iter().any(uses)
    }

    pub fn process(&self, container: &ContainerId, id: u32) -> Option<&Process> {
        self.processes.iter().find(|process| process.id.0 == id && process.container == *container)
    }

    /// The containers that are not shut down and whose first process has ended with 0.
    pub fn succeeded(&self) -> Result<Vec<ContainerId>, OutOfMemory> {
        let well = |process: &&Process| process.init && process.exited == Some(ExitStatus::Code(0));
        let all = || self.processes.iter().filter(well).map(|process| process.container);
        let mut succeeded = memory::room(all().count())?;
        succeeded.extend(all());
        Ok(succeeded)
    }

    /// Where the process is that was started first of those that have ended and are no container's first.
    pub fn oldest_ended(&self) -> Option<usize> {
        self.processes.iter().position(|process| process.exited.is_some() && !process.init)
    }

    /// Whether there is no room for another process, even if one that has ended is forgotten.
    pub fn is_full(&self) -> bool {
        self.processes.len() >= MAX_PROCESSES && self.oldest_ended().is_none()
    }

    /// Whether a container was created under this id and not yet shut down.
    pub fn created(&self, container: &ContainerId) -> bool {
        self.overlays.iter().any(|overlay| overlay.container == *container && overlay.created)
    }

    /// Whether it was created, not yet shut down, and is held still.
    pub fn paused(&self, container: &ContainerId) -> bool {
        self.overlays.iter().any(|overlay| overlay.container == *container && overlay.paused)
    }

    pub fn is_burned(&self, container: &ContainerId) -> bool {
        self.burned.contains(container)
    }

    /// Whether [`Self::burn`] has room.
    pub fn can_burn(&mut self) -> bool {
        self.burned.len() < MAX_IDS && self.burned.try_reserve(1).is_ok()
    }

    pub fn burn(&mut self, container: ContainerId) {
        self.burned.push(container);
    }

    /// The next process number, or `None` after 2³²−1 of them.
    pub fn next_process(&mut self) -> Option<ProcessId> {
        self.last_process = self.last_process.checked_add(1)?;
        Some(ProcessId(self.last_process))
    }
}
