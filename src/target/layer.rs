//! Layer devices: mapped through dm-verity with the permitted root hash first, then looked at, then mounted.
//!
//! Whatever the disk says is read through the mapping (attacks I01, I03): a block that the root hash does not vouch for
//! is an I/O error, not data.

use super::mapping::{self, node};
use super::{block, ext4, failed, undone, verity};
use crate::gate::action::{ActError, MountDevice, Permit, UnmountDevice};
use crate::gate::fields::{DataBlocks, Slot};
use crate::linux::Errno;
use crate::linux::dm::{self, Access, Target};
use crate::wire::Step;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::pread;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// How layers are mounted. Set-user-id programs work in containers that allow them, so `nosuid` is not here.
const FLAGS: MountFlags = MountFlags::RDONLY.union(MountFlags::NODEV);

/// The layer devices.
#[derive(Debug)]
pub struct Layers {
    /// Device-mapper's control device.
    control: OwnedFd,
}

impl Layers {
    /// No layers yet.
    pub fn new() -> Result<Self, Errno> {
        Ok(Self { control: mapping::control()? })
    }

    /// Maps a device, checks the filesystem behind the mapping and mounts it at its slot.
    pub fn mount_device(&mut self, permit: Permit<MountDevice>) -> Result<(), ActError> {
        let MountDevice { device, slot, root_hash, data_blocks, panic_on_corruption } = permit.into_action();
        let disk = block::find(&device).map_err(undone(Step::FindDevice))?;
        if !verity::fits(&disk, data_blocks) {
            return Err(failed(Step::DeviceSize, Errno::NOSPC, true));
        }
        let name = mapping::name("layer", slot.number(), "");
        let minor = dm::create(&self.control, &name).map_err(undone(Step::MapDevice))?;
        let parameters = verity::parameters(disk.number, &root_hash, data_blocks, panic_on_corruption);
        let target =
            Target { sectors: verity::sectors(data_blocks), kind: verity::TARGET, parameters: &parameters };
        dm::load(&self.control, &name, Access::ReadOnly, &[target])
            .and_then(|()| dm::resume(&self.control, &name))
            .map_err(|errno| (Step::MapDevice, errno))
            .and_then(|()| {
                check_filesystem(minor, data_blocks).map_err(|errno| (Step::LayerFilesystem, errno))
            })
            .and_then(|()| mount_layer(minor, slot).map_err(|errno| (Step::Mount, errno)))
            .map_err(|(step, errno)| failed(step, errno, dm::remove(&self.control, &name).is_ok()))
    }

    /// Unmounts a layer and removes its mapping.
    pub fn unmount_device(&mut self, permit: Permit<UnmountDevice>) -> Result<(), ActError> {
        let UnmountDevice { slot } = permit.into_action();
        let path = slot.path();
        let name = mapping::name("layer", slot.number(), "");
        unmount(path.as_str(), UnmountFlags::NOFOLLOW).map_err(undone(Step::Unmount))?;
        if let Err(errno) = dm::remove(&self.control, &name) {
            // Something still holds the device, so its layer goes back where it was.
            let restored = dm::minor(&self.control, &name)
                .and_then(|minor| mount(node(minor).as_str(), path.as_str(), "ext4", FLAGS, c""));
            return Err(failed(Step::UnmapDevice, errno, restored.is_ok()));
        }
        // An empty folder that is left behind is used again by the slot's next layer.
        let _ = unlinkat(CWD, path.as_str(), AtFlags::REMOVEDIR);
        Ok(())
    }
}

/// Refuses what is not a layer of our writer with exactly this many blocks (differences D4, I04).
fn check_filesystem(minor: u32, data_blocks: DataBlocks) -> Result<(), Errno> {
    let device = openat(CWD, node(minor).as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut superblock = [0; ext4::SUPERBLOCK];
    if pread(device, &mut superblock, ext4::SUPERBLOCK_OFFSET)? != superblock.len() {
        return Err(Errno::IO);
    }
    if ext4::superblock_blocks(&superblock) == Some(data_blocks.get()) {
        Ok(())
    } else {
        Err(Errno::MEDIUMTYPE)
    }
}

fn mount_layer(minor: u32, slot: Slot) -> Result<(), Errno> {
    let path = slot.path();
    match mkdirat(CWD, path.as_str(), Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    mount(node(minor).as_str(), path.as_str(), "ext4", FLAGS, c"")
}
