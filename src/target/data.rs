//! Read-write data volumes: disks that outlive the guest, encrypted under a key that their owner releases to it.
//!
//! The format is that of a scratch device with its tags on the disk (`volume`), and the filesystem was made by the owner's
//! tool. Nothing of the host's is parsed: where data and tags are follows from the device's size, and the first thing read is
//! authenticated. What the host can do is restore earlier states, block by block. The header inside the encryption counts the
//! mounts, so bringing back the whole volume is detected by whoever knows the latest count.

use super::block;
use super::mapping::node;
use super::scratch::Disks;
use super::sealed::{self, Sealed};
use super::volume::{Header, Layout};
use super::{failed, undone};
use crate::gate::action::{ActError, MountVolume, Permit, UnmountVolume};
use crate::gate::fields::VolumeId;
use crate::linux::Errno;
use crate::wire::{Step, Tags};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fsync, mkdirat, openat, unlinkat};
use rustix::io::{pread, pwrite};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID);
/// After an error of the disk nothing more is written to it.
const OPTIONS: &core::ffi::CStr =
    c"errors=remount-ro,inode_readahead_blks=0,no_prefetch_block_bitmaps,noinit_itable";
/// Bytes of a block.
const BLOCK: usize = super::volume::BLOCK as usize;

impl Disks {
    /// See [`crate::gate::action::Actor::mount_volume`].
    pub fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError> {
        let MountVolume { volume, number, device } = permit.into_action();
        self.volumes.try_reserve(1).map_err(|_| failed(Step::Memory, Errno::NOMEM, true))?;
        let disk = block::find(&device).map_err(undone(Step::FindDevice))?;
        // SECURITY: keys are kept by the id that follows from them; the policy allowed this one and no other.
        let released = self.keys.of(&volume).map_err(undone(Step::ReleaseKey))?;
        let layout = Layout::of(disk.sectors.saturating_mul(512));
        if layout.data_blocks < u64::from(super::ext4::empty::MIN_BLOCKS) {
            return Err(failed(Step::DeviceSize, Errno::NOSPC, true));
        }
        let (which, blocks) = (("volume", number), layout.data_blocks);
        let mut sealed =
            sealed::open(&self.control, &mut self.ram, which, disk.number, blocks, Tags::Disk, &released.key)
                .map_err(|(errno, undone)| failed(Step::MapDevice, errno, undone))?;
        let made = count(&sealed, released.least_generation)
            .map_err(undone(Step::VolumeContent))
            .and_then(|generation| mount_at(&sealed, &volume).map(|()| generation));
        match made {
            Ok(generation) => {
                self.volumes.push((volume, sealed));
                self.keys.forget(&volume);
                Ok(generation)
            }
            Err(error) => {
                let closed = sealed::close(&mut sealed, &self.control, &mut self.ram).is_ok();
                Err(ActError { undone: error.undone && closed, ..error })
            }
        }
    }

    /// See [`crate::gate::action::Actor::unmount_volume`].
    pub fn unmount_volume(&mut self, permit: Permit<UnmountVolume>) -> Result<(), ActError> {
        let UnmountVolume { volume } = permit.into_action();
        let Some(at) = self.volumes.iter().position(|(id, _)| *id == volume) else {
            return Err(failed(Step::Unmount, Errno::NOENT, true));
        };
        let path = volume.path();
        unmount(path.as_str(), UnmountFlags::NOFOLLOW).map_err(undone(Step::Unmount))?;
        // From here on there is no way back.
        let (_, mut sealed) = self.volumes.swap_remove(at);
        sealed::close(&mut sealed, &self.control, &mut self.ram)
            .map_err(|errno| failed(Step::UnmapDevice, errno, false))?;
        unlinkat(CWD, path.as_str(), AtFlags::REMOVEDIR).map_err(|errno| failed(Step::Unmount, errno, false))
    }
}

/// Reads the volume's header, refuses a generation below `least` (`STALE`), writes the next one and gives that.
fn count(sealed: &Sealed, least: u64) -> Result<u64, Errno> {
    let device = openat(CWD, node(sealed.minor).as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut block = [0; BLOCK];
    if pread(&device, &mut block, 0)? != BLOCK {
        return Err(Errno::IO);
    }
    let header = block.first_chunk_mut().ok_or(Errno::IO)?;
    let Header { generation } = Header::parse(header).ok_or(Errno::MEDIUMTYPE)?;
    if generation < least {
        return Err(Errno::STALE);
    }
    let next = Header { generation: generation.checked_add(1).ok_or(Errno::OVERFLOW)? };
    *header = next.encode();
    if pwrite(&device, &block, 0)? != BLOCK {
        return Err(Errno::IO);
    }
    fsync(device)?;
    Ok(next.generation)
}

fn mount_at(sealed: &Sealed, volume: &VolumeId) -> Result<(), ActError> {
    let path = volume.path();
    mkdirat(CWD, path.as_str(), Mode::RWXU).map_err(undone(Step::Mount))?;
    mount(node(sealed.minor).as_str(), path.as_str(), "ext4", FLAGS, OPTIONS)
        .map_err(|errno| failed(Step::Mount, errno, unlinkat(CWD, path.as_str(), AtFlags::REMOVEDIR).is_ok()))
}
