//! Memory of the guest as block devices: slices of the kernel's RAM disks.
//!
//! A RAM disk takes pages as they are written. The kernel has a fixed number of disks of a fixed size; a device of ours takes
//! a slice of one, so there can be as many as fit. A slice begins as zeros and gives its pages back when it is freed.

use super::block::DeviceNumber;
use crate::linux::{Errno, block};
use alloc::vec::Vec;
use core::fmt::Write;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::system::sysinfo;

/// The kernel's RAM disks (CONFIG_BLK_DEV_RAM_COUNT), and bytes of each (CONFIG_BLK_DEV_RAM_SIZE).
const DISKS: u32 = 4;
const DISK_BYTES: u64 = 1 << 30;
/// The RAM disks' major number (`include/uapi/linux/major.h`).
const MAJOR: u32 = 1;
/// Bytes of a page, which is what a slice is counted in.
pub(super) const PAGE: u64 = 4096;
/// Sectors of 512 bytes in a page.
pub(super) const PAGE_SECTORS: u64 = PAGE / 512;
/// All slices together are at most this part of the machine's memory, so that a host cannot make the guest run out of it by
/// asking for scratch space.
const SHARE: u64 = 8;

/// A part of a RAM disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    disk: u32,
    /// In pages.
    start: u64,
    pages: u64,
}

impl Slice {
    /// The disk's number.
    pub(super) fn device(&self) -> DeviceNumber {
        DeviceNumber { major: MAJOR, minor: self.disk }
    }

    /// Its first sector on the disk.
    pub(super) fn start(&self) -> u64 {
        self.start * PAGE_SECTORS
    }

    /// Its size in sectors.
    pub(super) fn sectors(&self) -> u64 {
        self.pages * PAGE_SECTORS
    }

    fn end(&self) -> u64 {
        self.start + self.pages
    }
}

/// The slices in use.
#[derive(Debug)]
pub(super) struct RamDisks {
    /// Ascending by disk and start.
    slices: Vec<Slice>,
    /// Most pages of all together.
    limit: u64,
}

impl RamDisks {
    /// None in use; as many as this machine's memory allows.
    pub(super) fn new() -> Self {
        let memory = sysinfo();
        let bytes = (memory.totalram as u64).saturating_mul(memory.mem_unit.into());
        Self::with_limit(bytes / SHARE / PAGE)
    }

    fn with_limit(limit: u64) -> Self {
        Self { slices: Vec::new(), limit }
    }

    /// A slice of this many pages, all zeros: the lowest that is free. `NOSPC` where no disk has one, or where all slices
    /// together would be more than their share of the machine's memory.
    pub(super) fn allocate(&mut self, pages: u64) -> Result<Slice, Errno> {
        let used: u64 = self.slices.iter().map(|slice| slice.pages).sum();
        if pages == 0 || used.checked_add(pages).is_none_or(|all| all > self.limit) {
            return Err(Errno::NOSPC);
        }
        self.slices.try_reserve(1).map_err(|_| Errno::NOMEM)?;
        let slice = (0..DISKS).find_map(|disk| self.gap(disk, pages)).ok_or(Errno::NOSPC)?;
        let at = self.slices.partition_point(|other| (other.disk, other.start) < (slice.disk, slice.start));
        self.slices.insert(at, slice);
        Ok(slice)
    }

    fn gap(&self, disk: u32, pages: u64) -> Option<Slice> {
        let mut start = 0;
        for taken in self.slices.iter().filter(|slice| slice.disk == disk) {
            if taken.start - start >= pages {
                break;
            }
            start = taken.end();
        }
        let fits = DISK_BYTES / PAGE - start >= pages;
        fits.then_some(Slice { disk, start, pages })
    }

    /// Gives a slice's pages back. After an error the slice stays in use, since its next user counts on zeros.
    pub(super) fn free(&mut self, slice: Slice) -> Result<(), Errno> {
        let mut path = heapless::String::<16>::new();
        // 18 digits would fit.
        let _ = write!(path, "/dev/ram{}", slice.disk);
        let disk = openat(CWD, path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        block::discard(disk, slice.start * PAGE, slice.pages * PAGE)?;
        self.forget(slice);
        Ok(())
    }

    fn forget(&mut self, slice: Slice) {
        self.slices.retain(|other| *other != slice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = DISK_BYTES / PAGE;

    #[test]
    fn slices_do_not_overlap_and_gaps_are_used_again() {
        let mut disks = RamDisks::with_limit(u64::MAX);
        let [a, b, c] = [10, 20, 30].map(|pages| disks.allocate(pages).unwrap());
        assert_eq!([a.start, b.start, c.start], [0, 10, 30]);
        disks.forget(b);
        assert_eq!(disks.allocate(21).unwrap().start, 60);
        assert_eq!(disks.allocate(15).unwrap().start, 10);
        assert_eq!(disks.allocate(5).unwrap().start, 25);
    }

    #[test]
    fn what_no_disk_has_room_for_is_refused() {
        let mut disks = RamDisks::with_limit(u64::MAX);
        for disk in 0..DISKS {
            assert_eq!(disks.allocate(DISK - 1).unwrap().disk, disk);
        }
        assert_eq!(disks.allocate(2), Err(Errno::NOSPC));
        assert_eq!(disks.allocate(DISK + 1), Err(Errno::NOSPC));
        assert_eq!(disks.allocate(0), Err(Errno::NOSPC));
        assert_eq!(disks.allocate(1).unwrap(), Slice { disk: 0, start: DISK - 1, pages: 1 });
    }

    #[test]
    fn all_slices_together_keep_to_their_share_of_memory() {
        let mut disks = RamDisks::with_limit(100);
        let first = disks.allocate(60).unwrap();
        assert_eq!(disks.allocate(41), Err(Errno::NOSPC));
        disks.allocate(40).unwrap();
        disks.forget(first);
        disks.allocate(60).unwrap();
        assert_eq!(disks.allocate(u64::MAX), Err(Errno::NOSPC));
    }
}
