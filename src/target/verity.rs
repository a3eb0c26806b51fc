//! The dm-verity table of a layer, from checked values only (difference D4).
//!
//! The superblock between the data and the hash tree says what the tree is made of. The host can write anything there,
//! so it is never read: everything in the table is either a constant of the format or part of the permit. What a wrong
//! number of blocks could do is make the kernel see a tree of another depth, whose hashes still match: hash blocks would
//! be read as data. The caller therefore compares the number with the filesystem's own, read through the mapping.

use super::block::{DeviceNumber, Disk};
use crate::gate::fields::{DataBlocks, RootHash};
use crate::linux::dm::MAX_PARAMETERS;
use core::fmt::Write;

/// The target's name.
pub(super) const TARGET: &str = "verity";

/// Bytes of a data block and of a hash block.
const BLOCK: u64 = 4096;
/// Sectors of 512 bytes in a block.
const SECTORS: u64 = BLOCK / 512;
/// SHA-256 hashes in a block.
const HASHES: u64 = BLOCK / 32;
/// Blocks between the data and the tree.
const SUPERBLOCK: u64 = 1;
/// The salt, in hexadecimal: 32 zero bytes.
const SALT: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Blocks of the hash tree over this many data blocks, all levels together.
fn tree_blocks(data_blocks: DataBlocks) -> u64 {
    let mut level = data_blocks.get();
    let mut blocks = 0;
    while level > 1 {
        level = level.div_ceil(HASHES);
        blocks += level;
    }
    blocks
}

/// Whether data, superblock and tree fit on the disk.
pub(super) fn fits(disk: &Disk, data_blocks: DataBlocks) -> bool {
    // At most 2^25 data blocks, so nothing overflows.
    disk.sectors / SECTORS >= data_blocks.get() + SUPERBLOCK + tree_blocks(data_blocks)
}

/// Size of the mapped device in sectors.
pub(super) fn sectors(data_blocks: DataBlocks) -> u64 {
    data_blocks.get() * SECTORS
}

/// The table's parameters (`Documentation/admin-guide/device-mapper/verity.rst`): version, data and hash device, block
/// sizes, data blocks, start of the tree in blocks, algorithm, root, salt. Without an option a block that does not match is
/// an I/O error for whoever reads it; with one, the end of the machine.
pub(super) fn parameters(
    device: DeviceNumber,
    root_hash: &RootHash,
    data_blocks: DataBlocks,
    panic_on_corruption: bool,
) -> heapless::String<MAX_PARAMETERS> {
    let mut parameters = heapless::String::new();
    let blocks = data_blocks.get();
    let tree = blocks + SUPERBLOCK;
    // Below 280 bytes with the largest numbers.
    let _ = write!(
        parameters,
        "1 {device} {device} {BLOCK} {BLOCK} {blocks} {tree} sha256 {} {SALT}",
        root_hash.hex()
    );
    if panic_on_corruption {
        let _ = parameters.push_str(" 1 panic_on_corruption");
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(blocks: u64) -> DataBlocks {
        DataBlocks::new(blocks).unwrap()
    }

    #[test]
    fn i04_the_table_has_only_constants_and_permitted_values() {
        let device = DeviceNumber { major: 254, minor: 16 };
        assert_eq!(
            parameters(device, &RootHash([0xab; 32]), blocks(300), false).as_str(),
            std::format!("1 254:16 254:16 4096 4096 300 301 sha256 {} {}", "ab".repeat(32), "00".repeat(32)),
        );
        assert_eq!(sectors(blocks(300)), 2400);
    }

    #[test]
    fn the_longest_table_is_not_cut() {
        let device = DeviceNumber { major: u32::MAX, minor: u32::MAX };
        let longest = parameters(device, &RootHash([0; 32]), blocks(DataBlocks::MAX), true);
        assert!(longest.ends_with(" 1 panic_on_corruption"));
        assert_eq!(SALT.len(), 64);
        assert!(longest.len() < 280);
    }

    #[test]
    fn the_tree_has_one_hash_for_each_block_below_and_one_block_on_top() {
        for (data, tree) in [(1, 0), (2, 1), (128, 1), (129, 2 + 1), (16_384, 128 + 1), (16_385, 129 + 2 + 1)]
        {
            assert_eq!(tree_blocks(blocks(data)), tree, "{data} data blocks");
        }
    }

    #[test]
    fn i04_a_device_one_sector_too_short_is_refused() {
        // 129 data blocks, a superblock, 3 hash blocks.
        let disk = |sectors| Disk { number: DeviceNumber { major: 254, minor: 0 }, sectors };
        assert!(fits(&disk(133 * 8), blocks(129)));
        assert!(fits(&disk(133 * 8 + 1), blocks(129)));
        assert!(!fits(&disk(133 * 8 - 1), blocks(129)));
        assert!(!fits(&disk(0), blocks(1)));
    }
}
