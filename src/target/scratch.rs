//! Scratch space: disks of the host's that hold what containers write, so that the host can neither read nor change nor roll
//! back any of it.
//!
//! Each gets a new key, and an ext4 filesystem that the guest itself makes; whatever was on the disk is noise under that key
//! (attacks L06, I11). It has directories for the overlays of its containers and for what is mounted in them. When it is
//! unmounted its key is gone.

use super::ext4::empty;
use super::mapping::{self, node};
use super::ramdisk::RamDisks;
use super::sealed::{self, Key, Sealed};
use super::volume::{BLOCK, SECTORS, tag_blocks};
use super::{block, failed, undone};
use crate::attest::keys::Keys;
use crate::gate::action::{ActError, MountScratch, Permit, UnmountScratch};
use crate::gate::fields::{ContainerId, VolumeId};
use crate::gate::input::{self, DIRECTORIES, Path};
use crate::linux::Errno;
use crate::wire::{Step, Tags};
use alloc::vec::Vec;
use core::fmt::Write;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fsync, mkdirat, openat, unlinkat};
use rustix::io::pwrite;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// How scratch space is mounted. Set-user-id programs work in containers that allow them, so `nosuid` is not here.
const FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOATIME);

/// The encrypted disks.
#[derive(Debug)]
pub struct Disks {
    pub(super) control: OwnedFd,
    pub(super) ram: RamDisks,
    scratches: Vec<(ContainerId, Sealed)>,
    pub(super) volumes: Vec<(VolumeId, Sealed)>,
    /// Keys of volumes that are not mounted yet.
    pub keys: Keys,
}

impl Disks {
    /// None yet.
    pub fn new() -> Result<Self, Errno> {
        let (scratches, volumes) = (Vec::new(), Vec::new());
        Ok(Self {
            control: mapping::control()?,
            ram: RamDisks::new(),
            scratches,
            volumes,
            keys: Keys::default(),
        })
    }

    /// See [`crate::gate::action::Actor::mount_scratch`].
    pub fn mount_scratch(&mut self, permit: Permit<MountScratch>) -> Result<(), ActError> {
        let MountScratch { scratch, number, device, blocks, tags } = permit.into_action();
        self.scratches.try_reserve(1).map_err(|_| failed(Step::Memory, Errno::NOMEM, true))?;
        let disk = block::find(&device).map_err(undone(Step::FindDevice))?;
        let blocks = blocks.get();
        let needed = match tags {
            Tags::Memory => blocks,
            Tags::Disk => blocks + tag_blocks(blocks),
        };
        if disk.sectors / SECTORS < needed {
            return Err(failed(Step::DeviceSize, Errno::NOSPC, true));
        }
        let key = Key::fresh().map_err(undone(Step::MapDevice))?;
        let which = ("scratch", number);
        let mut sealed = sealed::open(&self.control, &mut self.ram, which, disk.number, blocks, tags, &key)
            .map_err(|(errno, undone)| failed(Step::MapDevice, errno, undone))?;
        drop(key);
        let made = format(sealed.minor, blocks)
            .map_err(|errno| failed(Step::Format, errno, true))
            .and_then(|()| mount_at(sealed.minor, &input::folder(&scratch)));
        match made {
            Ok(()) => {
                self.scratches.push((scratch, sealed));
                Ok(())
            }
            Err(error) => {
                let closed = sealed::close(&mut sealed, &self.control, &mut self.ram).is_ok();
                Err(ActError { undone: error.undone && closed, ..error })
            }
        }
    }

    /// See [`crate::gate::action::Actor::unmount_scratch`].
    pub fn unmount_scratch(&mut self, permit: Permit<UnmountScratch>) -> Result<(), ActError> {
        let UnmountScratch { scratch } = permit.into_action();
        let Some(at) = self.scratches.iter().position(|(id, _)| *id == scratch) else {
            return Err(failed(Step::Unmount, Errno::NOENT, true));
        };
        let folder = input::folder(&scratch);
        unmount(folder.as_str(), UnmountFlags::NOFOLLOW).map_err(undone(Step::Unmount))?;
        // From here on there is no way back.
        let (_, mut sealed) = self.scratches.swap_remove(at);
        sealed::close(&mut sealed, &self.control, &mut self.ram)
            .map_err(|errno| failed(Step::UnmapDevice, errno, false))?;
        unlinkat(CWD, folder.as_str(), AtFlags::REMOVEDIR)
            .map_err(|errno| failed(Step::Unmount, errno, false))
    }
}

/// Makes the filesystem on a device.
fn format(minor: u32, blocks: u64) -> Result<(), Errno> {
    let device = openat(CWD, node(minor).as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let blocks = u32::try_from(blocks).map_err(|_| Errno::FBIG)?;
    let written = empty::write(blocks, |at, block| match pwrite(&device, block, u64::from(at) * BLOCK) {
        Ok(count) if count == block.len() => Ok(()),
        Ok(_) => Err(Errno::IO),
        Err(errno) => Err(errno),
    });
    written.map_err(|error| error.unwrap_or(Errno::INVAL))?;
    fsync(device)
}

/// Mounts a new filesystem at its folder, with its directories.
fn mount_at(minor: u32, folder: &Path) -> Result<(), ActError> {
    mkdirat(CWD, folder.as_str(), Mode::RWXU).map_err(undone(Step::Mount))?;
    let mounted = mount(node(minor).as_str(), folder.as_str(), "ext4", FLAGS, empty::MOUNT_OPTIONS);
    if let Err(errno) = mounted {
        let removed = unlinkat(CWD, folder.as_str(), AtFlags::REMOVEDIR).is_ok();
        return Err(failed(Step::Mount, errno, removed));
    }
    furnish(folder).map_err(|errno| {
        let unmounted = unmount(folder.as_str(), UnmountFlags::NOFOLLOW)
            .and_then(|()| unlinkat(CWD, folder.as_str(), AtFlags::REMOVEDIR));
        failed(Step::Mount, errno, unmounted.is_ok())
    })
}

/// Makes the directories that a new scratch space has: one for the overlays, and the path to those that are mounted in
/// containers.
pub(super) fn furnish(folder: &Path) -> Result<(), Errno> {
    let mut path = folder.clone();
    write!(path, "/scratch").map_err(|_| Errno::NAMETOOLONG)?;
    mkdirat(CWD, path.as_str(), Mode::RWXU)?;
    let mut path = folder.clone();
    for part in DIRECTORIES.split('/') {
        write!(path, "/{part}").map_err(|_| Errno::NAMETOOLONG)?;
        mkdirat(CWD, path.as_str(), Mode::RWXU)?;
    }
    Ok(())
}
