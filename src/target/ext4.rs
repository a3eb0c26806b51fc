//! The on-disk structures of ext4, as far as Parma writes them: encoded here once, for the host's layer writer
//! and for the init's formatter.
//!
//! Only what our own filesystems need exists: 4096-byte blocks, 256-byte inodes, 32-byte group descriptors,
//! extents, linear directories, no checksums and no journal. Every encoder is a pure function of its fields,
//! so the same filesystem is always the same bytes. Nothing here parses a filesystem except
//! [`SuperBlock::parse`], which accepts only what [`SuperBlock::encode`] gives.
//!
//! Source: Linux `Documentation/filesystems/ext4/`; what layer images hold in each field follows
//! Microsoft's `tar2ext4`, whose bytes decide the root hashes in existing policies.

pub mod empty;

/// Bytes of a block.
pub const BLOCK: usize = 4096;
/// Blocks of a block group: as many as one bitmap block has bits.
pub const BLOCKS_PER_GROUP: u32 = 8 * BLOCK as u32;
/// Most inodes of a block group: as many as one bitmap block has bits.
pub const MAX_INODES_PER_GROUP: u32 = 8 * BLOCK as u32;
/// Bytes of a group descriptor, without the 64-bit feature.
pub const DESCRIPTOR: usize = 32;
/// Bytes of an inode.
pub const INODE: usize = 256;
/// Bytes of an inode that its own fields take; extended attributes follow.
pub const INODE_FIELDS: usize = 152;
/// Bytes of an inode left for extended attributes.
pub const INODE_XATTRS: usize = INODE - INODE_FIELDS;
/// Where the superblock begins in block 0, in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Bytes of the superblock.
pub const SUPERBLOCK: usize = 1024;
/// The root directory's inode number.
pub const ROOT_INODE: u32 = 2;
/// The first inode that is not reserved; `lost+found` has it.
pub const FIRST_INODE: u32 = 11;
/// Longest name of a directory entry, in bytes.
pub const MAX_NAME: usize = 255;
/// Most links to an inode.
pub const MAX_LINKS: u32 = 65_000;
/// Longest symbolic link that is kept in the inode itself, in bytes.
pub const MAX_INLINE_LINK: usize = 59;
/// Most blocks of one extent.
pub const MAX_EXTENT: u32 = 0x8000;
/// Extents that fit in the inode.
pub const INODE_EXTENTS: usize = 4;
/// Extents that fit in a block below the inode.
pub const LEAF_EXTENTS: usize = BLOCK / 12 - 1;

/// The file type in an inode's mode.
pub const TYPE_MASK: u16 = 0xf000;
/// FIFO.
pub const FIFO: u16 = 0x1000;
/// Character device.
pub const CHARACTER: u16 = 0x2000;
/// Directory.
pub const DIRECTORY: u16 = 0x4000;
/// Block device.
pub const BLOCK_DEVICE: u16 = 0x6000;
/// Regular file.
pub const REGULAR: u16 = 0x8000;
/// Symbolic link.
pub const SYMLINK: u16 = 0xa000;

/// Inode flag: `i_blocks` counts filesystem blocks.
pub const FLAG_HUGE_FILE: u32 = 0x4_0000;
/// Inode flag: `i_block` holds extents.
pub const FLAG_EXTENTS: u32 = 0x8_0000;

/// `s_feature_*` of a superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// May be ignored by a kernel that does not know them.
    pub compat: u32,
    /// Forbid mounting by a kernel that does not know them.
    pub incompat: u32,
    /// Forbid writing by a kernel that does not know them.
    pub ro_compat: u32,
}

impl Features {
    /// A layer: sparse_super2, ext_attr; filetype, extents, flex_bg; large_file, huge_file, extra_isize and
    /// readonly, so that no kernel ever writes to it.
    pub const LAYER: Self = Self { compat: 0x208, incompat: 0x242, ro_compat: 0x104a };
}

/// The fields of a superblock that differ between filesystems of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    /// All inodes.
    pub inodes: u32,
    /// All blocks: the filesystem's size.
    pub blocks: u32,
    /// Blocks not in use.
    pub free_blocks: u32,
    /// Inodes not in use.
    pub free_inodes: u32,
    /// Inodes of each block group.
    pub inodes_per_group: u32,
    /// Features.
    pub features: Features,
}

impl SuperBlock {
    /// The 1024 bytes at [`SUPERBLOCK_OFFSET`]. UUID, times and names are zero.
    #[must_use]
    pub fn encode(&self) -> [u8; SUPERBLOCK] {
        let mut b = [0; SUPERBLOCK];
        let mut put32 = |at: usize, v: u32| b[at..at + 4].copy_from_slice(&v.to_le_bytes());
        put32(0x00, self.inodes);
        put32(0x04, self.blocks);
        put32(0x0c, self.free_blocks);
        put32(0x10, self.free_inodes);
        put32(0x18, 2); // block size: 1024 << 2
        put32(0x1c, 2); // cluster size
        put32(0x20, BLOCKS_PER_GROUP);
        put32(0x24, BLOCKS_PER_GROUP);
        put32(0x28, self.inodes_per_group);
        put32(0x38, 0x0001_ef53); // magic; state: cleanly unmounted
        put32(0x3c, 1); // on error, continue
        put32(0x4c, 1); // revision: inode size is dynamic
        put32(0x54, FIRST_INODE);
        put32(0x58, INODE as u32);
        put32(0x5c, self.features.compat);
        put32(0x60, self.features.incompat);
        put32(0x64, self.features.ro_compat);
        put32(0x15c, 0x0018_0018); // least and wanted i_extra_isize: 24 each
        put32(0x174, 31); // one flexible group holds every group's metadata
        put32(0x268, FIRST_INODE); // lost+found
        b
    }

    /// Reads a superblock of ours: `None` unless encoding the fields read gives these very bytes.
    ///
    /// This proves that the bytes are one that [`encode`](Self::encode) can write, for a filesystem with a
    /// block; it does not prove that the filesystem behind it is sound.
    #[must_use]
    pub fn parse(bytes: &[u8; SUPERBLOCK]) -> Option<Self> {
        let get32 = |at: usize| {
            let field = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(field))
        };
        let parsed = Self {
            inodes: get32(0x00)?,
            blocks: get32(0x04)?,
            free_blocks: get32(0x0c)?,
            free_inodes: get32(0x10)?,
            inodes_per_group: get32(0x28)?,
            features: Features { compat: get32(0x5c)?, incompat: get32(0x60)?, ro_compat: get32(0x64)? },
        };
        (parsed.blocks > 0 && parsed.encode() == *bytes).then_some(parsed)
    }
}

/// The number of 4096-byte blocks of the layer whose superblock this is, or `None` where it is not one that
/// our writer (and so the reference) makes.
///
/// A layer's verity device must have exactly this many data blocks. The bytes must have been read through
/// that device: then the root hash vouches for them.
#[must_use]
pub fn superblock_blocks(bytes: &[u8; SUPERBLOCK]) -> Option<u64> {
    SuperBlock::parse(bytes).filter(|s| s.features == Features::LAYER).map(|s| s.blocks.into())
}

/// A block group's descriptor. Flags and checksums are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupDescriptor {
    /// Block of the block bitmap.
    pub block_bitmap: u32,
    /// Block of the inode bitmap.
    pub inode_bitmap: u32,
    /// First block of the inode table.
    pub inode_table: u32,
    /// Blocks not in use.
    pub free_blocks: u16,
    /// Inodes not in use.
    pub free_inodes: u16,
    /// Inodes that are directories.
    pub directories: u16,
}

impl GroupDescriptor {
    /// The descriptor's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; DESCRIPTOR] {
        let mut b = [0; DESCRIPTOR];
        b[0..4].copy_from_slice(&self.block_bitmap.to_le_bytes());
        b[4..8].copy_from_slice(&self.inode_bitmap.to_le_bytes());
        b[8..12].copy_from_slice(&self.inode_table.to_le_bytes());
        b[12..14].copy_from_slice(&self.free_blocks.to_le_bytes());
        b[14..16].copy_from_slice(&self.free_inodes.to_le_bytes());
        b[16..18].copy_from_slice(&self.directories.to_le_bytes());
        b
    }
}

/// A point in time as an inode holds it: the low half is the seconds' low 32 bits, the high half ("extra") has
/// two more bits of seconds and 30 bits of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InodeTime(pub u64);

/// An inode's own fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// File type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of the content.
    pub size: u64,
    /// Last access.
    pub atime: InodeTime,
    /// Last change of the inode.
    pub ctime: InodeTime,
    /// Last change of the content.
    pub mtime: InodeTime,
    /// Creation.
    pub crtime: InodeTime,
    /// Directory entries that name it.
    pub links: u16,
    /// Blocks it takes, those of extents and attributes included.
    pub blocks: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Block of the extended attributes, or 0.
    pub xattr_block: u32,
    /// Extents, a short symbolic link, or a device number.
    pub data: [u8; 60],
}

impl Inode {
    /// The inode's bytes before its extended attributes.
    #[must_use]
    pub fn encode(&self) -> [u8; INODE_FIELDS] {
        let mut b = [0; INODE_FIELDS];
        let low = |v: u64| (v as u32).to_le_bytes();
        let high = |v: u64| ((v >> 32) as u32).to_le_bytes();
        let (uid, gid) = (self.uid.to_le_bytes(), self.gid.to_le_bytes());
        b[0..2].copy_from_slice(&self.mode.to_le_bytes());
        b[2..4].copy_from_slice(&uid[..2]);
        b[4..8].copy_from_slice(&low(self.size));
        b[8..12].copy_from_slice(&low(self.atime.0));
        b[12..16].copy_from_slice(&low(self.ctime.0));
        b[16..20].copy_from_slice(&low(self.mtime.0));
        b[24..26].copy_from_slice(&gid[..2]);
        b[26..28].copy_from_slice(&self.links.to_le_bytes());
        b[28..32].copy_from_slice(&self.blocks.to_le_bytes());
        b[32..36].copy_from_slice(&self.flags.to_le_bytes());
        b[40..100].copy_from_slice(&self.data);
        b[104..108].copy_from_slice(&self.xattr_block.to_le_bytes());
        b[108..112].copy_from_slice(&high(self.size));
        b[120..122].copy_from_slice(&uid[2..]);
        b[122..124].copy_from_slice(&gid[2..]);
        b[128..130].copy_from_slice(&((INODE_FIELDS - 128) as u16).to_le_bytes());
        b[132..136].copy_from_slice(&high(self.ctime.0));
        b[136..140].copy_from_slice(&high(self.mtime.0));
        b[140..144].copy_from_slice(&high(self.atime.0));
        b[144..148].copy_from_slice(&low(self.crtime.0));
        b[148..152].copy_from_slice(&high(self.crtime.0));
        b
    }
}

/// The `data` of a device node's inode.
#[must_use]
pub fn device_data(major: u32, minor: u32) -> [u8; 60] {
    let number = minor & 0xff | major.wrapping_shl(8) | (minor & !0xff).wrapping_shl(12);
    let mut data = [0; 60];
    data[4..8].copy_from_slice(&number.to_le_bytes());
    data
}

/// Blocks of a file that lie together on disk, and so their extents: [`MAX_EXTENT`] blocks each, the last one
/// what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block on disk.
    pub start: u32,
    /// Number of blocks.
    pub blocks: u32,
}

impl Run {
    /// Number of extents.
    #[must_use]
    pub fn extents(&self) -> u32 {
        self.blocks.div_ceil(MAX_EXTENT)
    }

    /// The `data` of an inode whose extents all fit there (at most [`INODE_EXTENTS`]).
    #[must_use]
    pub fn inode_data(&self) -> [u8; 60] {
        let mut data = [0; 60];
        self.encode(0, INODE_EXTENTS, &mut data);
        data
    }

    /// Extent block number `index` of a file with more extents than the inode holds.
    #[must_use]
    pub fn leaf(&self, index: u32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        self.encode(index * LEAF_EXTENTS as u32, LEAF_EXTENTS, &mut block);
        block
    }

    /// Writes a header for `capacity` extents, and the file's extents from number `first` on that fit.
    fn encode(&self, first: u32, capacity: usize, out: &mut [u8]) {
        let mut count = 0;
        for (number, slot) in (first..self.extents()).zip(out[12..].chunks_exact_mut(12)).take(capacity) {
            let at = number * MAX_EXTENT;
            let length = (self.blocks - at).min(MAX_EXTENT) as u16;
            slot[0..4].copy_from_slice(&at.to_le_bytes());
            slot[4..6].copy_from_slice(&length.to_le_bytes());
            slot[8..12].copy_from_slice(&(self.start + at).to_le_bytes());
            count += 1;
        }
        out[..12].copy_from_slice(&extent_header(count, capacity as u16, 0));
    }
}

/// The `data` of an inode whose extents are in the blocks `leaves` (at most [`INODE_EXTENTS`]).
#[must_use]
pub fn extent_index(leaves: &[u32]) -> [u8; 60] {
    let mut data = [0; 60];
    let mut count = 0;
    for (leaf, slot) in leaves.iter().zip(data[12..].chunks_exact_mut(12)) {
        let at = u32::from(count) * LEAF_EXTENTS as u32 * MAX_EXTENT;
        slot[0..4].copy_from_slice(&at.to_le_bytes());
        slot[4..8].copy_from_slice(&leaf.to_le_bytes());
        count += 1;
    }
    data[..12].copy_from_slice(&extent_header(count, INODE_EXTENTS as u16, 1));
    data
}

fn extent_header(entries: u16, capacity: u16, depth: u16) -> [u8; 12] {
    let mut b = [0; 12];
    for (field, value) in b.chunks_exact_mut(2).zip([0xf30a, entries, capacity, depth]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    b
}

/// One block of a linear directory, being filled.
pub struct DirectoryBlock {
    bytes: [u8; BLOCK],
    used: usize,
}

impl DirectoryBlock {
    /// Bytes of an entry without its name; an unused entry of this size and four more ends every block.
    const HEADER: usize = 8;

    /// An empty block.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: [0; BLOCK], used: 0 }
    }

    /// Adds an entry. False, and nothing is added, where the block is full.
    ///
    /// A name longer than [`MAX_NAME`] is cut to it: callers check first.
    #[must_use]
    pub fn add(&mut self, inode: u32, mode: u16, name: &[u8]) -> bool {
        let name = &name[..name.len().min(MAX_NAME)];
        let length = (Self::HEADER + name.len()).next_multiple_of(4);
        if BLOCK - self.used < length + Self::HEADER + 4 {
            return false;
        }
        self.header(inode, length, name.len() as u8, file_type(mode));
        self.bytes[self.used + Self::HEADER..][..name.len()].copy_from_slice(name);
        self.used += length;
        true
    }

    /// The block's bytes: what is left of it becomes one unused entry.
    #[must_use]
    pub fn finish(mut self) -> [u8; BLOCK] {
        self.header(0, BLOCK - self.used, 0, 0);
        self.bytes
    }

    fn header(&mut self, inode: u32, length: usize, name_length: u8, file_type: u8) {
        let entry = &mut self.bytes[self.used..][..Self::HEADER];
        entry[0..4].copy_from_slice(&inode.to_le_bytes());
        entry[4..6].copy_from_slice(&(length as u16).to_le_bytes());
        entry[6] = name_length;
        entry[7] = file_type;
    }
}

impl Default for DirectoryBlock {
    fn default() -> Self {
        Self::new()
    }
}

/// The file type in a directory entry for an inode of this mode.
fn file_type(mode: u16) -> u8 {
    match mode & TYPE_MASK {
        REGULAR => 1,
        DIRECTORY => 2,
        CHARACTER => 3,
        BLOCK_DEVICE => 4,
        FIFO => 5,
        SYMLINK => 7,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: SuperBlock = SuperBlock {
        inodes: 16,
        blocks: 21,
        free_blocks: 7,
        free_inodes: 3,
        inodes_per_group: 16,
        features: Features::LAYER,
    };

    #[test]
    fn a_layers_superblock_tells_its_size() {
        assert_eq!(SuperBlock::parse(&LAYER.encode()), Some(LAYER));
        assert_eq!(superblock_blocks(&LAYER.encode()), Some(21));
    }

    #[test]
    fn a_superblock_with_any_fixed_byte_changed_is_refused() {
        let varying = [0x00..0x08, 0x0c..0x14, 0x28..0x2c];
        for at in 0..SUPERBLOCK {
            let mut bytes = LAYER.encode();
            bytes[at] ^= 0x80;
            let varies = varying.iter().any(|r| r.contains(&at));
            assert_eq!(superblock_blocks(&bytes).is_some(), varies, "byte {at:#x}");
        }
        assert_eq!(superblock_blocks(&SuperBlock { blocks: 0, ..LAYER }.encode()), None);
    }

    #[test]
    fn a_directory_block_ends_in_an_unused_entry_of_what_is_left() {
        let mut block = DirectoryBlock::new();
        let mut count = 0;
        while block.add(7, REGULAR, &[b'n'; 200]) {
            count += 1;
        }
        assert_eq!(count, 19); // 208 bytes each, and 12 must be left
        let bytes = block.finish();
        assert_eq!(bytes[..8], [7, 0, 0, 0, 208, 0, 200, 1]);
        assert_eq!(bytes[19 * 208..][..8], [0, 0, 0, 0, (4096 - 19 * 208) as u8, 0, 0, 0]);
    }

    #[test]
    fn extents_are_of_at_most_32768_blocks() {
        let run = Run { start: 9, blocks: 3 * MAX_EXTENT + 5 };
        let data = run.inode_data();
        assert_eq!(data[..8], [0x0a, 0xf3, 4, 0, 4, 0, 0, 0]);
        assert_eq!(data[12..24], [0, 0, 0, 0, 0, 0x80, 0, 0, 9, 0, 0, 0]);
        assert_eq!(data[48..60], [0, 0x80, 1, 0, 5, 0, 0, 0, 9, 0x80, 1, 0]);
        let index = extent_index(&[77]);
        assert_eq!(
            index[..24],
            [0x0a, 0xf3, 1, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]
        );
    }
}
