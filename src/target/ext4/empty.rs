//! An empty ext4 filesystem for a device of which nothing is known: not even that what was never written reads as zeros.
//!
//! On an authenticated device a block that was never written cannot be read at all, and writing all of it would take as
//! long as the device is large. So the filesystem is of the kind whose group descriptors say which bitmaps and inodes do
//! not exist yet (`uninit_bg`: flags and a checksum in each descriptor); the kernel makes those in memory when it first
//! needs them. What is written is the superblock, the descriptors, the first group's bitmaps and first inodes, two
//! directories and the last group's bitmap: a few blocks, whatever the size.
//!
//! There is no journal: a scratch space does not outlive its key. Times, UUID and seeds are constants, so the same size is
//! always the same bytes.
//!
//! Source: Linux `Documentation/filesystems/ext4/`, `fs/ext4/ialloc.c` and `balloc.c` for what an uninitialised group is.

use super::{
    BLOCK, BLOCKS_PER_GROUP, DESCRIPTOR, DIRECTORY, DirectoryBlock, FIRST_INODE, FLAG_EXTENTS, Features,
    GroupDescriptor, INODE, Inode, InodeTime, ROOT_INODE, Run, SUPERBLOCK_OFFSET, SuperBlock,
};

/// Options that a mount of such a filesystem needs: nothing is to be read ahead or initialised behind its back.
pub const MOUNT_OPTIONS: &core::ffi::CStr = c"inode_readahead_blks=0,no_prefetch_block_bitmaps,noinit_itable";

/// Fewest blocks of a filesystem: 16 MiB.
pub const MIN_BLOCKS: u32 = 4096;
/// Most blocks: 8 TiB, far from where the descriptors would not fit the first group.
pub const MAX_BLOCKS: u32 = 1 << 31;

/// One inode for 16 KiB, as `mke2fs` has by default.
const INODES_PER_GROUP: u32 = 8192;
/// Blocks of a group's inode table.
const INODE_TABLE: u32 = INODES_PER_GROUP * INODE as u32 / BLOCK as u32;
/// Blocks of a group's own metadata: two bitmaps and the table.
const GROUP_METADATA: u32 = 2 + INODE_TABLE;
/// A last group with fewer blocks than this is left out.
const LEAST_GROUP: u32 = GROUP_METADATA + 64;

/// Whoever can mount a volume may write to it; the containers' own users are not known here. What is above a scratch space's
/// root is reached by nobody.
const ROOT_MODE: u16 = 0o777;

/// ext_attr, dir_index, sparse_super2 (without any backup); filetype, extents; large_file, huge_file, uninit_bg, extra_isize.
const FEATURES: Features = Features { compat: 0x228, incompat: 0x42, ro_compat: 0x5a };
const UUID: [u8; 16] = *b"parma empty ext4";
/// Offset and value of the superblock's default hash of directory entries: half MD4.
const HASH: (usize, u8) = (0xfc, 1);
/// Offset and value of the superblock's flags: names are hashed as signed bytes.
const SIGNED_HASH: (usize, u8) = (0x160, 1);
/// Offset of the superblock's number of mounts after which it is to be checked; −1 is never.
const MAX_MOUNTS: usize = 0x36;
const UUID_OFFSET: usize = 0x68;

/// Flags of a descriptor: the inode bitmap, the block bitmap is not there yet.
const INODES_UNINITIALISED: u16 = 1;
const BLOCKS_UNINITIALISED: u16 = 2;

/// Writes the filesystem: `write` is called with a block's number and content, for each block that must exist, in ascending
/// order. Where the last block group would be too small it stays unused.
///
/// # Errors
/// The first error of `write`; `None` in it where `blocks` is not between [`MIN_BLOCKS`] and [`MAX_BLOCKS`].
pub fn write<E>(
    blocks: u32,
    mut write: impl FnMut(u32, &[u8; BLOCK]) -> Result<(), E>,
) -> Result<(), Option<E>> {
    let plan = Plan::new(blocks).ok_or(None)?;
    let mut write = |at, block: &[u8; BLOCK]| write(at, block).map_err(Some);
    let mut block = [0; BLOCK];
    block[SUPERBLOCK_OFFSET as usize..][..super::SUPERBLOCK].copy_from_slice(&plan.superblock());
    write(0, &block)?;
    for number in 0..plan.descriptor_blocks {
        write(1 + number, &plan.descriptors(number))?;
    }
    let metadata = plan.metadata(0);
    write(metadata, &bitmap(plan.used(0), plan.size(0)))?;
    write(metadata + 1, &bitmap(FIRST_INODE, INODES_PER_GROUP))?;
    write(metadata + 2, &plan.inodes())?;
    write(plan.directory(0), &directory(ROOT_INODE, Some(FIRST_INODE)))?;
    write(plan.directory(1), &directory(FIRST_INODE, None))?;
    let last = plan.groups - 1;
    if last > 0 {
        write(plan.metadata(last), &bitmap(plan.used(last), plan.size(last)))?;
    }
    Ok(())
}

/// Where everything is.
struct Plan {
    blocks: u32,
    groups: u32,
    descriptor_blocks: u32,
}

impl Plan {
    fn new(blocks: u32) -> Option<Self> {
        if !(MIN_BLOCKS..=MAX_BLOCKS).contains(&blocks) {
            return None;
        }
        let tail = blocks % BLOCKS_PER_GROUP;
        let blocks = if tail < LEAST_GROUP { blocks - tail } else { blocks };
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        Some(Self { blocks, groups, descriptor_blocks: groups.div_ceil((BLOCK / DESCRIPTOR) as u32) })
    }

    /// Blocks of a group.
    fn size(&self, group: u32) -> u32 {
        (self.blocks - group * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP)
    }

    /// First block of a group's own metadata.
    fn metadata(&self, group: u32) -> u32 {
        group * BLOCKS_PER_GROUP + if group == 0 { 1 + self.descriptor_blocks } else { 0 }
    }

    /// Block of the root directory (0) and of `lost+found` (1).
    fn directory(&self, number: u32) -> u32 {
        self.metadata(0) + GROUP_METADATA + number
    }

    /// Blocks of a group that are in use, from its first one on.
    fn used(&self, group: u32) -> u32 {
        if group == 0 { self.directory(2) } else { GROUP_METADATA }
    }

    fn superblock(&self) -> [u8; super::SUPERBLOCK] {
        let used: u32 = (0..self.groups).map(|group| self.used(group)).sum();
        let inodes = self.groups * INODES_PER_GROUP;
        let superblock = SuperBlock {
            inodes,
            blocks: self.blocks,
            free_blocks: self.blocks - used,
            free_inodes: inodes - FIRST_INODE,
            inodes_per_group: INODES_PER_GROUP,
            features: FEATURES,
        };
        let mut bytes = superblock.encode();
        bytes[UUID_OFFSET..][..UUID.len()].copy_from_slice(&UUID);
        bytes[MAX_MOUNTS..][..2].copy_from_slice(&u16::MAX.to_le_bytes());
        for (at, value) in [HASH, SIGNED_HASH] {
            bytes[at] = value;
        }
        bytes
    }

    /// A block of group descriptors.
    fn descriptors(&self, number: u32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let first = number * (BLOCK / DESCRIPTOR) as u32;
        for (group, bytes) in (first..self.groups).zip(block.chunks_exact_mut(DESCRIPTOR)) {
            bytes.copy_from_slice(&self.descriptor(group));
        }
        block
    }

    fn descriptor(&self, group: u32) -> [u8; DESCRIPTOR] {
        let (inodes, directories) = if group == 0 { (FIRST_INODE, 2) } else { (0, 0) };
        let metadata = self.metadata(group);
        let flags = match group {
            0 => 0,
            // As mke2fs does: the last group, which can be a short one, has its bitmap.
            last if last == self.groups - 1 => INODES_UNINITIALISED,
            _ => INODES_UNINITIALISED | BLOCKS_UNINITIALISED,
        };
        let unused = (INODES_PER_GROUP - inodes) as u16;
        let descriptor = GroupDescriptor {
            block_bitmap: metadata,
            inode_bitmap: metadata + 1,
            inode_table: metadata + 2,
            free_blocks: (self.size(group) - self.used(group)) as u16,
            free_inodes: unused,
            directories,
        };
        let mut bytes = descriptor.encode();
        bytes[0x12..0x14].copy_from_slice(&flags.to_le_bytes());
        bytes[0x1c..0x1e].copy_from_slice(&unused.to_le_bytes());
        let sum = crc16(crc16(crc16(!0, &UUID), &group.to_le_bytes()), &bytes[..0x1e]);
        bytes[0x1e..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// The first block of the first group's inode table.
    fn inodes(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        for (number, mode, links, at) in
            [(ROOT_INODE, DIRECTORY | ROOT_MODE, 3, 0), (FIRST_INODE, DIRECTORY | 0o700, 2, 1)]
        {
            let inode = Inode {
                mode,
                uid: 0,
                gid: 0,
                size: BLOCK as u64,
                atime: InodeTime(0),
                ctime: InodeTime(0),
                mtime: InodeTime(0),
                crtime: InodeTime(0),
                links,
                // Of 512 bytes each.
                blocks: (BLOCK / 512) as u32,
                flags: FLAG_EXTENTS,
                xattr_block: 0,
                data: Run { start: self.directory(at), blocks: 1 }.inode_data(),
            };
            let bytes = inode.encode();
            block[(number as usize - 1) * INODE..][..bytes.len()].copy_from_slice(&bytes);
        }
        block
    }
}

/// A bitmap whose first `used` bits are set, and all from `size` on, which stand for nothing.
fn bitmap(used: u32, size: u32) -> [u8; BLOCK] {
    let mut bits = [0; BLOCK];
    for bit in (0..used).chain(size..8 * BLOCK as u32) {
        bits[bit as usize / 8] |= 1 << (bit % 8);
    }
    bits
}

fn directory(own: u32, lost_and_found: Option<u32>) -> [u8; BLOCK] {
    let mut block = DirectoryBlock::new();
    // Both lie in the root directory. Three short names fit a block.
    let _ = block.add(own, DIRECTORY, b".") && block.add(ROOT_INODE, DIRECTORY, b"..");
    if let Some(inode) = lost_and_found {
        let _ = block.add(inode, DIRECTORY, b"lost+found");
    }
    block.finish()
}

/// CRC-16 with the polynomial x¹⁶ + x¹⁵ + x² + 1, least significant bit first.
fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xa001 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::{env, fs, process};

    fn written(blocks: u32) -> std::vec::Vec<(u32, [u8; BLOCK])> {
        let mut written = std::vec::Vec::new();
        let result: Result<(), Option<()>> = write(blocks, |at, block| {
            written.push((at, *block));
            Ok(())
        });
        assert_eq!(result, Ok(()));
        written
    }

    #[test]
    fn the_checksum_is_the_usual_crc_16() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn blocks_are_written_once_in_order_and_few_whatever_the_size() {
        for blocks in [MIN_BLOCKS, 32_768, 32_769, 262_144, 33_554_432, MAX_BLOCKS] {
            let numbers: std::vec::Vec<u32> = written(blocks).into_iter().map(|(at, _)| at).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b), "{blocks}");
            assert!(numbers.iter().all(|&at| at < blocks), "{blocks}");
            assert!(numbers.len() as u32 <= 7 + blocks.div_ceil(BLOCKS_PER_GROUP).div_ceil(128), "{blocks}");
        }
    }

    #[test]
    fn a_size_out_of_range_is_refused_and_nothing_written() {
        for blocks in [0, MIN_BLOCKS - 1, MAX_BLOCKS + 1] {
            let refused = write(blocks, |_, _| -> Result<(), ()> { panic!("written") });
            assert_eq!(refused, Err(None));
        }
    }

    /// e2fsck reads what was never written as zeros; that the kernel does not is shown in the VM.
    #[test]
    fn e2fsck_finds_nothing_to_complain_about() {
        for blocks in [MIN_BLOCKS, 32_768, 32_800, 40_000, 5 * 32_768, 1_000_000] {
            let path = env::temp_dir().join(std::format!("parma-empty-{}-{blocks}.img", process::id()));
            let mut file = fs::File::create(&path).unwrap();
            file.set_len(u64::from(blocks) * BLOCK as u64).unwrap();
            for (at, block) in written(blocks) {
                file.seek(SeekFrom::Start(u64::from(at) * BLOCK as u64)).unwrap();
                file.write_all(&block).unwrap();
            }
            let checked = process::Command::new("e2fsck").arg("-fn").arg(&path).output();
            fs::remove_file(&path).unwrap();
            let Ok(checked) = checked else {
                std::eprintln!("skipped: e2fsck is not installed");
                return;
            };
            let output = std::string::String::from_utf8_lossy(&checked.stdout).into_owned();
            assert!(checked.status.success(), "{blocks}: {output}");
        }
    }
}
