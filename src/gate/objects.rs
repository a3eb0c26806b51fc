//! What exists in the guest, as the gate knows it: devices, overlays, containers and processes.
//!
//! The policy's own state says what the policy may still allow; this says what a request can name and what is in use.
//! Both change only when an allowed action was done.

use super::action::ProcessId;
use super::fields::{ContainerId, Serial, Slot};
use crate::wire::ExitStatus;
use alloc::string::String;
use alloc::vec::Vec;

/// Most mounted layer devices at a time.
pub const MAX_DEVICES: usize = 256;
/// Most overlays, and so containers, at a time.
pub const MAX_CONTAINERS: usize = 128;
/// Most processes, exited ones of containers not yet shut down included.
pub const MAX_PROCESSES: usize = 1024;
/// Most containers from start to power-off: each leaves its id behind.
pub const MAX_IDS: usize = 16_384;

/// A mounted layer device.
#[derive(Debug)]
pub(super) struct Device {
    pub serial: Serial,
    pub slot: Slot,
}

/// An assembled root filesystem, and the container on it if there is one.
#[derive(Debug)]
pub(super) struct Overlay {
    pub container: ContainerId,
    pub layers: Vec<Slot>,
    /// Whether a container was created on it and not yet shut down.
    pub created: bool,
    /// Whether the policy allows that container's processes standard streams.
    pub stdio: bool,
}

/// A process the gate started.
#[derive(Debug)]
pub(super) struct Process {
    pub id: ProcessId,
    pub container: ContainerId,
    pub init: bool,
    /// Its command, for the policy's decisions on signals.
    pub args: Vec<String>,
    pub exited: Option<ExitStatus>,
}

/// Everything that exists.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub devices: Vec<Device>,
    pub overlays: Vec<Overlay>,
    pub processes: Vec<Process>,
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

    pub fn overlay(&mut self, container: &ContainerId) -> Option<&mut Overlay> {
        self.overlays.iter_mut().find(|overlay| overlay.container == *container)
    }

    pub fn slot_in_use(&self, slot: Slot) -> bool {
        self.overlays.iter().any(|overlay| overlay.layers.contains(&slot))
    }

    pub fn process(&self, container: &ContainerId, id: u32) -> Option<&Process> {
        self.processes.iter().find(|process| process.id.0 == id && process.container == *container)
    }

    /// Whether a container was created under this id and not yet shut down.
    pub fn created(&self, container: &ContainerId) -> bool {
        self.overlays.iter().any(|overlay| overlay.container == *container && overlay.created)
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
