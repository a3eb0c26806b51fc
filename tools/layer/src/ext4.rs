//! Writes a layer's filesystem: a compact, read-only ext4 whose bytes are those of Microsoft's `tar2ext4`.
//!
//! Content goes out as it comes; what describes it (directories, inode table, bitmaps, descriptors and the
//! superblock) is kept in memory and follows at the end. Memory therefore grows with the number of files, not
//! with their size. Where the reference has a quirk that decides bytes, the quirk is kept and said so.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use parma_guest::target::ext4::{
    self, BLOCK, BLOCKS_PER_GROUP, DESCRIPTOR, DIRECTORY, DirectoryBlock, FIRST_INODE, FLAG_EXTENTS,
    FLAG_HUGE_FILE, Features, GroupDescriptor, INODE, INODE_EXTENTS, INODE_FIELDS, INODE_XATTRS, Inode,
    LEAF_EXTENTS, MAX_EXTENT, MAX_INLINE_LINK, MAX_INODES_PER_GROUP, MAX_LINKS, MAX_NAME, REGULAR,
    ROOT_INODE, Run, SUPERBLOCK, SUPERBLOCK_OFFSET, SYMLINK, SuperBlock, TYPE_MASK,
};

use crate::content::Content;
use crate::output::Output;
use crate::time::{Time, from_inode, to_inode};
use crate::verity::{Protected, Stream};
use crate::xattr::{self, Xattrs};

/// Largest image, in bytes: block numbers have 32 bits.
pub const MAX_DISK: u64 = 16 << 40;
/// Largest file, in bytes (42 GiB): the extents of a larger one do not fit in one block, and there the
/// reference writes extents that do not exist.
pub const MAX_FILE: u64 = (LEAF_EXTENTS as u64 - 1) * MAX_EXTENT as u64 * BLOCK as u64;
/// Most inodes: the reference's arithmetic ends here.
const MAX_INODES: usize = 1 << 24;
const DESCRIPTORS_PER_BLOCK: u32 = (BLOCK / DESCRIPTOR) as u32;

/// What a file is to be.
#[derive(Clone, Debug, Default)]
pub struct File {
    /// Type (regular where it is 0) and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a regular file.
    pub size: u64,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the inode.
    pub ctime: Option<Time>,
    /// Last change of the content, and time of creation.
    pub mtime: Option<Time>,
    /// Target of a symbolic link.
    pub link: Vec<u8>,
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// An inode and what of it is written only at the end.
struct Node {
    inode: Inode,
    xattrs: Option<Box<[u8; INODE_XATTRS]>>,
    /// A directory's attributes outside of the inode, in case that it is created again.
    xattr_block: Option<Box<[u8; BLOCK]>>,
    /// A directory's entries.
    children: BTreeMap<Box<[u8]>, u32>,
}

impl Node {
    fn is_directory(&self) -> bool {
        self.inode.mode & TYPE_MASK == DIRECTORY
    }

    /// Names and inode numbers of a directory's entries by number, and by name where that is equal.
    fn sorted_children(&self) -> Vec<(&[u8], u32)> {
        let mut children: Vec<_> = self.children.iter().map(|(name, number)| (&**name, *number)).collect();
        children.sort_by_key(|(_, number)| *number); // stable
        children
    }
}

/// A filesystem being written.
pub struct Writer<'a> {
    out: Stream<'a>,
    descriptor_blocks: u32,
    /// By number, from 1; reserved ones are `None`.
    nodes: Vec<Option<Node>>,
}

impl<'a> Writer<'a> {
    /// Begins a filesystem of at most `max_disk` bytes (which is at most [`MAX_DISK`]). The maximum decides
    /// how many blocks the group descriptors get, and so the root hash. `progress` gets the bytes written.
    ///
    /// # Errors
    /// A maximum out of range.
    pub fn new(out: Arc<Output>, max_disk: u64, progress: &'a mut dyn FnMut(u64)) -> Result<Self> {
        ensure!(
            (1..=MAX_DISK).contains(&max_disk),
            "maximum size {max_disk}: give 1 byte to {MAX_DISK} bytes"
        );
        let blocks = max_disk.div_ceil(BLOCK as u64);
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP.into());
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK.into()) as u32;
        let out = Stream::new(out, 1 + descriptor_blocks, blocks * BLOCK as u64, progress)?;
        let mut writer = Self { out, descriptor_blocks, nodes: vec![None] };
        let root =
            writer.make(File { mode: DIRECTORY | 0o755, ..File::default() }, None, &mut std::io::empty())?;
        writer.node_mut(root).inode.links += 1; // it is its own parent
        writer.nodes.resize_with(FIRST_INODE as usize - 1, || None);
        writer.create(
            b"lost+found",
            File { mode: DIRECTORY | 0o700, ..File::default() },
            &mut std::io::empty(),
        )?;
        Ok(writer)
    }

    fn node(&self, number: u32) -> &Node {
        self.nodes[number as usize - 1].as_ref().expect("only numbers of nodes are handed out")
    }

    fn node_mut(&mut self, number: u32) -> &mut Node {
        self.nodes[number as usize - 1].as_mut().expect("only numbers of nodes are handed out")
    }

    /// The directory that holds the last of `path`, and that last component.
    fn parent_of<'p>(&self, path: &Path<'p>) -> Result<Option<(u32, &'p [u8])>> {
        let Some((last, parents)) = path.0.split_last() else { return Ok(None) };
        ensure!(last.len() <= MAX_NAME, "a name of {} bytes: the limit is {MAX_NAME}", last.len());
        let mut at = ROOT_INODE;
        for name in parents {
            at = *self.node(at).children.get(*name).context("its directory does not exist")?;
        }
        ensure!(self.node(at).is_directory(), "its directory is not a directory");
        Ok(Some((at, last)))
    }

    /// What `path` names now.
    fn find(&self, path: &Path<'_>) -> Result<Option<u32>> {
        Ok(match self.parent_of(path)? {
            Some((directory, name)) => self.node(directory).children.get(name).copied(),
            None => Some(ROOT_INODE),
        })
    }

    /// Creates the directories above `name` that are missing, each like the one it is in.
    ///
    /// # Errors
    /// One of them exists and is no directory, or has too long a name.
    pub fn make_parents(&mut self, name: &[u8]) -> Result<()> {
        let path = Path::clean(name);
        let parents = path.0.split_last().map_or(&[][..], |(_, parents)| parents);
        let mut at = ROOT_INODE;
        for name in parents {
            at = match self.node(at).children.get(*name) {
                Some(child) => *child,
                None => {
                    ensure!(self.node(at).is_directory(), "its directory is not a directory");
                    ensure!(
                        name.len() <= MAX_NAME,
                        "a name of {} bytes: the limit is {MAX_NAME}",
                        name.len()
                    );
                    let like = File { xattrs: Xattrs::new(), ..self.directory_as_file(at) };
                    self.create_in(Some((at, name)), like, &mut std::io::empty())?
                }
            };
        }
        Ok(())
    }

    /// Creates or replaces what `name` names; `content` must be exactly as long as the file's size.
    ///
    /// # Errors
    /// No such parent directory, a directory replacing something else or the reverse, a file with content
    /// being replaced, attributes that do not fit, too many links, or a failed read or write.
    pub fn create(&mut self, name: &[u8], file: File, content: &mut dyn Content) -> Result<()> {
        let path = Path::clean(name);
        self.create_in(self.parent_of(&path)?, file, content)?;
        Ok(())
    }

    /// The same, where parent directory and name (none for the root) are known; gives the inode's number.
    fn create_in(
        &mut self,
        place: Option<(u32, &[u8])>,
        file: File,
        content: &mut dyn Content,
    ) -> Result<u32> {
        let directory = file.mode & TYPE_MASK == DIRECTORY;
        let existing = match place {
            Some((parent, name)) => self.node(parent).children.get(name).copied(),
            None => Some(ROOT_INODE),
        };
        let reuse = match existing.map(|number| (number, self.node(number))) {
            Some((_, node)) if node.is_directory() != directory => {
                let (new, old) =
                    if directory { ("a directory", "a file") } else { ("a file", "a directory") };
                bail!("{new} cannot replace {old} of the same layer")
            }
            Some((number, node)) if directory || node.inode.links < 2 => Some(number),
            Some(_) => None,
            None => {
                let full =
                    directory && place.is_some_and(|(p, _)| u32::from(self.node(p).inode.links) >= MAX_LINKS);
                ensure!(!full, "its directory has {MAX_LINKS} links, the limit");
                None
            }
        };
        let number = self.make(file, reuse, content)?;
        if existing != Some(number)
            && let Some((parent, name)) = place
        {
            if let Some(old) = existing {
                self.node_mut(old).inode.links -= 1;
            }
            self.node_mut(number).inode.links += 1;
            let parent = self.node_mut(parent);
            parent.children.insert(name.into(), number);
            parent.inode.links += u16::from(directory);
        }
        Ok(number)
    }

    /// Fills a new inode, or one that exists, and writes attributes and content.
    fn make(&mut self, file: File, reuse: Option<u32>, content: &mut dyn Content) -> Result<u32> {
        let kind = if file.mode & TYPE_MASK == 0 { REGULAR } else { file.mode & TYPE_MASK };
        let directory = kind == DIRECTORY;
        let number = match reuse {
            Some(number) => number,
            None => {
                ensure!(self.nodes.len() < MAX_INODES, "more than {MAX_INODES} files");
                self.nodes.len() as u32 + 1
            }
        };
        let mut node = match reuse.and_then(|number| self.nodes[number as usize - 1].take()) {
            Some(node) => node,
            None => Node {
                inode: new_inode(directory),
                xattrs: None,
                xattr_block: None,
                children: BTreeMap::new(),
            },
        };
        ensure!(
            node.inode.flags & FLAG_EXTENTS == 0,
            "a file with content is replaced within its layer, which the format cannot express"
        );

        // Attributes that the inode held stay, unless the new ones replace them. (Those in a block do not.)
        let mut attributes = node.xattrs.as_deref().map(xattr::decode_inode).unwrap_or_default();
        attributes.extend(file.xattrs);
        let placed = xattr::place(&attributes)?;
        let block = match node.inode.xattr_block {
            0 => placed.block,
            _ => Some(placed.block.unwrap_or_else(xattr::empty_block)),
        };
        match (&block, node.inode.xattr_block) {
            (Some(block), 0) => {
                node.inode.xattr_block = self.out.block();
                node.inode.blocks += 1;
                self.out.write(&**block)?;
            }
            (Some(block), number) => self.out.patch(number, block)?,
            (None, _) => {}
        }
        node.xattrs = placed.inode;
        node.xattr_block = block.filter(|_| directory);

        let inode = &mut node.inode;
        inode.mode = kind | file.mode & !TYPE_MASK;
        (inode.uid, inode.gid, inode.flags) = (file.uid, file.gid, FLAG_HUGE_FILE);
        (inode.atime, inode.ctime) = (to_inode(file.atime), to_inode(file.ctime));
        (inode.mtime, inode.crtime) = (to_inode(file.mtime), to_inode(file.mtime));
        (inode.size, inode.data) = (0, [0; 60]);
        match kind {
            REGULAR => {
                ensure!(file.size <= MAX_FILE, "a file of {} bytes: the limit is {MAX_FILE}", file.size);
                self.write_content(inode, content, file.size)?;
            }
            SYMLINK => {
                inode.mode |= 0o777;
                if file.link.len() <= MAX_INLINE_LINK {
                    inode.size = file.link.len() as u64;
                    inode.data[..file.link.len()].copy_from_slice(&file.link);
                } else {
                    self.write_content(inode, &mut file.link.as_slice(), file.link.len() as u64)?;
                }
            }
            ext4::CHARACTER | ext4::BLOCK_DEVICE => inode.data = ext4::device_data(file.major, file.minor),
            _ => {}
        }
        match reuse {
            Some(number) => self.nodes[number as usize - 1] = Some(node),
            None => self.nodes.push(Some(node)),
        }
        Ok(number)
    }

    /// Writes content and the extents that say where it is.
    fn write_content(&mut self, inode: &mut Inode, content: &mut dyn Content, size: u64) -> Result<()> {
        let start = self.out.block();
        self.out.copy(content, size)?;
        self.out.pad()?;
        inode.size = size;
        let run = Run { start, blocks: self.out.block() - start };
        if run.blocks == 0 {
            return Ok(());
        }
        inode.flags |= FLAG_EXTENTS;
        inode.blocks += run.blocks;
        inode.data = if run.extents() as usize <= INODE_EXTENTS {
            run.inode_data()
        } else {
            let leaf = self.out.block();
            self.out.write(&run.leaf(0))?;
            inode.blocks += 1;
            ext4::extent_index(&[leaf])
        };
        Ok(())
    }

    /// Makes `name` a hard link to `target`, which may be a symbolic link.
    ///
    /// # Errors
    /// The target does not exist or is a directory, too many links, or `name` exists and is not one of
    /// several links itself.
    pub fn link(&mut self, target: &[u8], name: &[u8]) -> Result<()> {
        let path = Path::clean(name);
        let place = self.parent_of(&path)?;
        let existing = self.find(&path)?;
        if let Some(node) = existing.map(|number| self.node(number)) {
            let replaceable = !node.is_directory() && node.inode.links >= 2;
            ensure!(replaceable, "a hard link cannot replace a file or directory of the same layer");
        }
        let shown = || crate::tar::show(target);
        let found = self.find(&Path::clean(target)).with_context(|| format!("hard link to {}", shown()))?;
        let number =
            found.with_context(|| format!("hard link to {}, which the layer does not hold", shown()))?;
        let node = self.node(number);
        ensure!(!node.is_directory(), "hard link to {}, which is a directory", shown());
        let full = existing != Some(number) && u32::from(node.inode.links) >= MAX_LINKS;
        ensure!(!full, "hard link to {}, which has {MAX_LINKS} links, the limit", shown());
        let (parent, name) = place.context("the root cannot be a hard link")?;
        if let Some(old) = existing {
            self.node_mut(old).inode.links -= 1;
        }
        self.node_mut(number).inode.links += 1;
        self.node_mut(parent).children.insert(name.into(), number);
        Ok(())
    }

    /// Marks a directory as opaque to overlayfs, by creating it again as the reference does.
    ///
    /// # Errors
    /// It does not exist or is no directory, or its attributes do not fit.
    pub fn make_opaque(&mut self, name: &[u8]) -> Result<()> {
        let number = self.find(&Path::clean(name))?.context("its directory does not exist")?;
        ensure!(self.node(number).is_directory(), "its directory is not a directory");
        let mut file = self.directory_as_file(number);
        file.xattrs.insert(b"trusted.overlay.opaque".into(), b"y".into());
        self.create(name, file, &mut std::io::empty())
    }

    /// A directory as it would be created. Times go through the inode's form, which is not exact.
    fn directory_as_file(&self, number: u32) -> File {
        let Node { inode, xattrs, xattr_block, .. } = self.node(number);
        let mut attributes = xattr_block.as_deref().map(xattr::decode_block).unwrap_or_default();
        attributes.extend(xattrs.as_deref().map(xattr::decode_inode).unwrap_or_default());
        File {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            atime: from_inode(inode.atime),
            ctime: from_inode(inode.ctime),
            mtime: from_inode(inode.mtime),
            xattrs: attributes,
            ..File::default()
        }
    }

    /// Writes everything that describes the content, then the hash tree.
    ///
    /// # Errors
    /// The image does not fit in its maximum, or a failed write.
    pub fn finish(mut self) -> Result<Protected> {
        self.write_directories()?;
        let (groups, inodes_per_group) = group_count(self.out.block(), self.nodes.len() as u32);
        let layout = Layout { inode_table: self.out.block(), groups, inodes_per_group };
        ensure!(
            groups.div_ceil(DESCRIPTORS_PER_BLOCK) <= self.descriptor_blocks,
            "the image needs {groups} block groups, more than its maximum size has room for: raise --max-size"
        );
        self.write_inodes(&layout)?;
        let bitmaps = self.out.block();
        let end = bitmaps + 2 * groups;
        let disk = end.max((groups - 1) * BLOCKS_PER_GROUP + 1);
        let mut descriptors = Vec::new();
        let (mut used_blocks, mut used_inodes) = (0, 0);
        for group in 0..groups {
            let (block_bitmap, blocks) = self.block_bitmap(group, groups, end, disk);
            let (inode_bitmap, inodes, directories) = self.inode_bitmap(group, inodes_per_group);
            self.out.write(&block_bitmap)?;
            self.out.write(&inode_bitmap)?;
            let descriptor = GroupDescriptor {
                block_bitmap: bitmaps + 2 * group,
                inode_bitmap: bitmaps + 2 * group + 1,
                inode_table: layout.inode_table + group * layout.table_blocks(),
                free_blocks: (BLOCKS_PER_GROUP - blocks) as u16,
                free_inodes: (inodes_per_group - inodes) as u16,
                directories: directories as u16,
            };
            descriptors.extend_from_slice(&descriptor.encode());
            used_blocks += blocks;
            used_inodes += inodes;
        }
        self.out.zero(u64::from(disk - end) * BLOCK as u64)?;

        descriptors.resize(self.descriptor_blocks as usize * BLOCK, 0);
        for (number, block) in (1..).zip(descriptors.as_chunks::<BLOCK>().0) {
            self.out.patch(number, block)?;
        }
        let superblock = SuperBlock {
            inodes: inodes_per_group * groups,
            blocks: disk,
            free_blocks: BLOCKS_PER_GROUP * groups - used_blocks,
            free_inodes: inodes_per_group * groups - used_inodes,
            inodes_per_group,
            features: Features::LAYER,
        };
        let mut first = [0; BLOCK];
        first[SUPERBLOCK_OFFSET as usize..][..SUPERBLOCK].copy_from_slice(&superblock.encode());
        self.out.patch(0, &first)?;
        self.out.finish()
    }

    /// Directories, each before those in it.
    fn write_directories(&mut self) -> Result<()> {
        let mut waiting = vec![(ROOT_INODE, ROOT_INODE)];
        while let Some((number, parent)) = waiting.pop() {
            let node = self.node(number);
            let children = node.sorted_children();
            let entries = [(&b"."[..], number), (b"..", parent)].into_iter().chain(children.iter().copied());
            let mut content = Vec::new();
            let mut block = DirectoryBlock::new();
            for (name, child) in entries {
                let mode = self.node(child).inode.mode;
                if !block.add(child, mode, name) {
                    content.extend_from_slice(&std::mem::take(&mut block).finish());
                    let fits = block.add(child, mode, name);
                    debug_assert!(fits, "an entry fits in an empty block");
                }
            }
            content.extend_from_slice(&block.finish());
            let directories = children.iter().rev().map(|(_, child)| *child);
            waiting.extend(directories.filter(|child| self.node(*child).is_directory()).map(|c| (c, number)));

            let mut inode = node.inode.clone();
            self.write_content(&mut inode, &mut content.as_slice(), content.len() as u64)?;
            self.node_mut(number).inode = inode;
        }
        Ok(())
    }

    fn write_inodes(&mut self, layout: &Layout) -> Result<()> {
        for node in &self.nodes {
            let mut bytes = [0; INODE];
            if let Some(Node { inode, xattrs, .. }) = node {
                bytes[..INODE_FIELDS].copy_from_slice(&inode.encode());
                if let Some(xattrs) = xattrs {
                    bytes[INODE_FIELDS..].copy_from_slice(&**xattrs);
                }
            }
            self.out.write(&bytes)?;
        }
        let table = u64::from(layout.groups) * u64::from(layout.inodes_per_group);
        self.out.zero((table - self.nodes.len() as u64) * INODE as u64)
    }

    /// A group's block bitmap and the blocks it counts as used: all before `end`, those that the disk does not
    /// have, but not the blocks kept for descriptors that no group needs.
    fn block_bitmap(&self, group: u32, groups: u32, end: u32, disk: u32) -> ([u8; BLOCK], u32) {
        let first = group * BLOCKS_PER_GROUP;
        let needed = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let spare = 1 + needed..1 + self.descriptor_blocks;
        bitmap(|bit| {
            let block = first + bit;
            (block < end && !spare.contains(&block)) || block >= disk
        })
    }

    /// A group's inode bitmap, and its numbers of used inodes and of directories. Bits past the group's inodes
    /// stay clear (e2fsck remarks on it).
    fn inode_bitmap(&self, group: u32, inodes_per_group: u32) -> ([u8; BLOCK], u32, u32) {
        let node = |bit: u32| self.nodes.get((group * inodes_per_group + bit) as usize)?.as_ref();
        let reserved = |bit: u32| group * inodes_per_group + bit + 1 < FIRST_INODE;
        let (bits, used) = bitmap(|bit| bit < inodes_per_group && (reserved(bit) || node(bit).is_some()));
        let directories =
            (0..inodes_per_group).filter(|bit| node(*bit).is_some_and(Node::is_directory)).count();
        (bits, used, directories as u32)
    }
}

fn new_inode(directory: bool) -> Inode {
    let zero = to_inode(None);
    Inode {
        mode: 0,
        uid: 0,
        gid: 0,
        size: 0,
        atime: zero,
        ctime: zero,
        mtime: zero,
        crtime: zero,
        links: u16::from(directory), // a directory names itself
        blocks: 0,
        flags: 0,
        xattr_block: 0,
        data: [0; 60],
    }
}

fn bitmap(set: impl Fn(u32) -> bool) -> ([u8; BLOCK], u32) {
    let (mut bits, mut count) = ([0; BLOCK], 0);
    for bit in (0..8 * BLOCK as u32).filter(|bit| set(*bit)) {
        bits[bit as usize / 8] |= 1 << (bit % 8);
        count += 1;
    }
    (bits, count)
}

/// Where the inodes are.
struct Layout {
    inode_table: u32,
    groups: u32,
    inodes_per_group: u32,
}

impl Layout {
    fn table_blocks(&self) -> u32 {
        self.inodes_per_group * INODE as u32 / BLOCK as u32
    }
}

/// The least number of groups that hold `blocks` blocks and `inodes` inodes, and the smallest number of inodes
/// a group with which that many suffice.
fn group_count(blocks: u32, inodes: u32) -> (u32, u32) {
    let groups = |inodes_per_group: u32| {
        let data_blocks = u64::from(BLOCKS_PER_GROUP - inodes_per_group * INODE as u32 / BLOCK as u32 - 2);
        let for_inodes = u64::from((inodes - 1) / inodes_per_group) * data_blocks + 1;
        // At most 2^32 blocks, or 2^20 groups of 16 inodes.
        u64::from(blocks).max(for_inodes).div_ceil(data_blocks) as u32
    };
    let step = BLOCK / INODE;
    let sizes = (step as u32..=MAX_INODES_PER_GROUP).step_by(step);
    sizes.map(|size| (groups(size), size)).min().expect("the range is not empty")
}

/// A path from the root as components: empty ones and `.` dropped, `..` resolved by name and without effect at
/// the root.
struct Path<'a>(Vec<&'a [u8]>);

impl<'a> Path<'a> {
    fn clean(name: &'a [u8]) -> Self {
        let mut components = Vec::new();
        for component in name.split(|c| *c == b'/') {
            match component {
                b"" | b"." => {}
                b".." => drop(components.pop()),
                _ => components.push(component),
            }
        }
        Self(components)
    }
}
