//! The on-disk format of an encrypted device, as guest and host tools agree on it.
//!
//! A device has no header: nothing on it says how it is to be read, so there is nothing for a host to edit (attack L01). It is
//!
//! ```text
//! data: N blocks of 4096 bytes | tags: T blocks, 28 bytes for each data block | rest: unused
//! ```
//!
//! where N and T follow from the device's size alone ([`Layout::of`]). A scratch device whose tags are in guest memory has
//! no tags on disk, and N is what the host asked for. `docs/storage.md` says what a block and its 28 bytes are.

use sha2::{Digest, Sha256};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Sectors of 512 bytes in a block.
pub const SECTORS: u64 = BLOCK / 512;
/// Bytes of a block's authentication tag and nonce.
pub const TUPLE: u64 = 28;

/// Blocks that the tags of this many blocks take.
#[must_use]
pub const fn tag_blocks(data_blocks: u64) -> u64 {
    data_blocks.saturating_mul(TUPLE).div_ceil(BLOCK)
}

/// Where data and tags are on a device that has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Blocks of data, from the device's start.
    pub data_blocks: u64,
    /// Blocks of tags, behind them.
    pub tag_blocks: u64,
}

impl Layout {
    /// That of a device of this many bytes: as much data as fits with its tags.
    #[must_use]
    pub const fn of(device_bytes: u64) -> Self {
        let blocks = device_bytes / BLOCK;
        // 28 bytes for 4096 are 7 for 1024.
        let data_blocks = (blocks as u128 * 1024 / 1031) as u64;
        Self { data_blocks, tag_blocks: tag_blocks(data_blocks) }
    }
}

/// The id of a read-write data volume: which key opens it. A policy names volumes by it, in hexadecimal.
#[must_use]
pub fn id(key: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(b"parma volume v1\0").chain_update(key).finalize().into()
}

/// What a read-write data volume says about itself, inside the encryption: the first 1024 bytes of its first block, which
/// ext4 leaves to boot loaders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// How often the volume was mounted writable since it was made. Whoever knows the latest number detects a host that
    /// brings back the whole volume as it was before.
    pub generation: u64,
}

impl Header {
    /// Bytes of it.
    pub const LENGTH: usize = 1024;
    const MAGIC: &[u8; 8] = b"PARMAVOL";
    const VERSION: u64 = 1;

    /// Its bytes: magic, version and generation, the rest zero.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..8].copy_from_slice(Self::MAGIC);
        bytes[8..16].copy_from_slice(&Self::VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    /// Reads one; `None` unless encoding what was read gives these very bytes.
    #[must_use]
    pub fn parse(bytes: &[u8; Self::LENGTH]) -> Option<Self> {
        let parsed = Self { generation: u64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?) };
        (parsed.encode() == *bytes).then_some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_no_other_way() {
        let header = Header { generation: 0x0102_0304_0506_0708 };
        assert_eq!(Header::parse(&header.encode()), Some(header));
        for at in (0..16).chain(24..Header::LENGTH) {
            let mut bytes = header.encode();
            bytes[at] ^= 1;
            assert_eq!(Header::parse(&bytes), None, "byte {at}");
        }
    }

    #[test]
    fn ids_are_those_of_the_keys() {
        assert_eq!(id(&[1; 32]), id(&[1; 32]));
        assert_ne!(id(&[1; 32]), id(&[2; 32]));
        assert_ne!(id(&[1; 32]), [1; 32]);
    }

    #[test]
    fn data_and_tags_fit_and_one_block_more_would_not() {
        for blocks in (0..5000).chain([1 << 18, 33_554_432, (1 << 40) + 77]) {
            let Layout { data_blocks, tag_blocks: tags } = Layout::of(blocks * BLOCK + 511);
            assert!(data_blocks + tags <= blocks, "{blocks}");
            assert!(data_blocks + 1 + tag_blocks(data_blocks + 1) > blocks, "{blocks}");
        }
        let _ = Layout::of(u64::MAX);
    }
}
