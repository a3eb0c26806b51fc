//! Names of device-mapper devices, and stacks of them that are made and unmade as one.

use crate::linux::Errno;
use crate::linux::dm::{self, Access, Target};
use core::fmt::Write;
use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, openat};

/// A device's name, or its path.
pub(super) type Name = heapless::String<{ dm::MAX_NAME }>;

/// Device-mapper's control device.
pub(super) fn control() -> Result<OwnedFd, Errno> {
    openat(CWD, c"/dev/mapper/control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// The name of a part of the device of this kind and number: `scratch3-tags`.
pub(super) fn name(kind: &str, number: u16, part: &str) -> Name {
    let mut name = Name::new();
    // Kinds and parts are words of ours: 20 bytes at most.
    let _ = write!(name, "{kind}{number}{part}");
    name
}

/// The node that devtmpfs makes for a device.
pub(super) fn node(minor: u32) -> Name {
    let mut node = Name::new();
    // 18 bytes at most.
    let _ = write!(node, "/dev/dm-{minor}");
    node
}

/// Devices on top of one another.
#[derive(Debug)]
pub(super) struct Stack {
    kind: &'static str,
    number: u16,
    /// From the bottom.
    parts: heapless::Vec<&'static str, 4>,
}

impl Stack {
    /// None yet.
    pub(super) fn new(kind: &'static str, number: u16) -> Self {
        Self { kind, number, parts: heapless::Vec::new() }
    }

    /// Makes the next device, writable; gives its minor number. After an error it is not there.
    pub(super) fn push(
        &mut self,
        control: &OwnedFd,
        part: &'static str,
        targets: &[Target<'_>],
    ) -> Result<u32, Errno> {
        let name = name(self.kind, self.number, part);
        self.parts.push(part).map_err(|_| Errno::NOMEM)?;
        let minor = dm::create(control, &name).inspect_err(|_| {
            self.parts.pop();
        })?;
        dm::load(control, &name, Access::ReadWrite, targets)?;
        dm::resume(control, &name)?;
        Ok(minor)
    }

    /// Removes the devices from the top. After an error the one that could not be removed, and what is below it, is still
    /// there; calling this again goes on with it.
    pub(super) fn remove(&mut self, control: &OwnedFd) -> Result<(), Errno> {
        while let Some(part) = self.parts.last() {
            dm::remove(control, &name(self.kind, self.number, part))?;
            self.parts.pop();
        }
        Ok(())
    }
}
