//! dm-verity: an image's blocks are read and hashed on all cores and go out in order; the superblock and the hash tree are
//! appended at the end.
//!
//! Parameters are those of the reference and of the guest's verity table: version 1, SHA-256, data and hash
//! blocks of 4096 bytes, a salt of 32 zero bytes before each block. Layout: Linux
//! `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's `verity.h`; the tree is stored top
//! level first.
//!
//! Memory is constant: the lowest level of the tree (32 bytes a block) spills to a temporary file when large.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use parma_guest::target::ext4::{self, BLOCK};
use sha2::{Digest as _, Sha256};
use tempfile::SpooledTempFile;

use crate::content::{Content, Region, Streamed};
pub use crate::sha256::Hash;
use crate::sha256::{SALT, hash_block, hash_blocks};

/// Bytes that go to a worker at once.
const CHUNK: usize = 64 * BLOCK;
/// Chunks that may wait for each worker.
const QUEUE: usize = 6;
/// Bytes of the lowest level that are kept in memory: those of 4 GiB of data.
const SPOOL: usize = 32 << 20;
/// Bytes of the superblock's fields, padded to a block on disk.
const SUPERBLOCK: usize = 512;

/// A UUID that names `root` for this `purpose`: version 8 of RFC 9562, so that an image has no random byte.
pub fn derived_uuid(purpose: &str, root: &Hash) -> [u8; 16] {
    let hash: Hash = Sha256::new().chain_update(purpose).chain_update(root).finalize().into();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// What verity protects: the root of the tree and the size it was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protected {
    /// The root hash.
    pub root: Hash,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Bytes of superblock and tree behind the data.
    pub tree_bytes: u64,
}

/// What a finished image says of itself: `None` unless its size, its filesystem's size and its verity
/// superblock agree with each other and with the tree's top, as they do in every image made here.
///
/// This finds an image that was cut short or is of another kind. It does not check the blocks below the top.
///
/// # Errors
/// The image cannot be read.
pub fn describe(image: &fs::File) -> io::Result<Option<Protected>> {
    let mut start = [0; ext4::SUPERBLOCK];
    let length = image.metadata()?.len();
    if length < 2 * BLOCK as u64 {
        return Ok(None);
    }
    image.read_exact_at(&mut start, ext4::SUPERBLOCK_OFFSET)?;
    let Some(data_blocks) = ext4::superblock_blocks(&start) else { return Ok(None) };
    let mut tree_blocks = 1; // the superblock
    let mut level = data_blocks;
    while level > 1 {
        level = level.div_ceil(BLOCK as u64 / 32);
        tree_blocks += level;
    }
    let (data_bytes, tree_bytes) = (data_blocks * BLOCK as u64, tree_blocks * BLOCK as u64);
    if length != data_bytes + tree_bytes {
        return Ok(None);
    }
    let (mut found, mut top) = ([0; SUPERBLOCK], [0; BLOCK]);
    image.read_exact_at(&mut found, data_bytes)?;
    image.read_exact_at(&mut top, data_bytes + BLOCK as u64)?;
    let root = hash_block(&top);
    Ok((found == superblock(data_blocks, &root)).then_some(Protected { root, data_blocks, tree_bytes }))
}

/// Checks every block of an image: its data, tree and superblock must be those that this root hash names. Gives the number
/// of data blocks. `progress` is called with the bytes read so far.
///
/// # Errors
/// They are not; or the image cannot be read.
pub fn check(image: &fs::File, root: &Hash, progress: &mut dyn FnMut(u64)) -> Result<u64> {
    let Some(said) = describe(image)? else { bail!("no image of ours, or cut short") };
    let mut same = Same { image, position: 0 };
    let limit = said.data_blocks * BLOCK as u64;
    let mut stream = Stream::new(&mut same, 0, limit, progress)?;
    stream.copy(&mut Streamed(At { image, position: 0 }.take(limit)), limit)?;
    let found = stream.finish().context("the hash tree is not that of the data")?;
    ensure!(found.root == *root, "the data is not what the root hash names");
    Ok(said.data_blocks)
}

/// Takes only what is in the image already.
struct Same<'a> {
    image: &'a fs::File,
    position: u64,
}

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut found = vec![0; bytes.len()];
        self.image.read_exact_at(&mut found, self.position)?;
        if found != bytes {
            let message = format!("bytes from {} on differ", self.position);
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Same<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(position) => self.position = position,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        Ok(self.position)
    }
}

/// Reads an image from a place on.
struct At<'a> {
    image: &'a fs::File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.image.read_at(bytes, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Blocks of an image on their way to `out` and into the tree, front to back.
pub struct Stream<'a, W> {
    out: &'a mut W,
    /// Bytes that the data may have.
    limit: u64,
    /// Bytes that are in `out`: a chunk goes there when its hashes are there.
    stored: u64,
    /// Where `chunk` begins, in bytes.
    begins: u64,
    chunk: Chunk,
    workers: Workers,
    leaves: SpooledTempFile,
    /// Hashes of blocks that were written out of order.
    patched: BTreeMap<u64, Hash>,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a, W: Write + Seek> Stream<'a, W> {
    /// A stream that begins behind `reserved` blocks, all of which must be given to [`patch`](Self::patch)
    /// before the end. `progress` is called with the number of bytes written so far.
    ///
    /// # Errors
    /// `out` cannot be seeked, or no thread can be started.
    pub fn new(out: &'a mut W, reserved: u32, limit: u64, progress: &'a mut dyn FnMut(u64)) -> Result<Self> {
        let begins = u64::from(reserved) * BLOCK as u64;
        out.seek(SeekFrom::Start(begins)).context("image file")?;
        let mut leaves = SpooledTempFile::new(SPOOL);
        io::copy(&mut io::repeat(0).take(u64::from(reserved) * 32), &mut leaves).context("temporary file")?;
        let (chunk, workers) = (Chunk::new(), Workers::start()?);
        Ok(Self {
            out,
            limit,
            stored: begins,
            begins,
            chunk,
            workers,
            leaves,
            patched: BTreeMap::new(),
            progress,
        })
    }

    /// Bytes so far, the reserved ones included.
    pub fn position(&self) -> u64 {
        self.begins + self.chunk.filled as u64
    }

    /// The next block's number. Call it between blocks.
    pub fn block(&self) -> u32 {
        // The limit is at most 16 TiB, so that block numbers fit.
        (self.position() / BLOCK as u64) as u32
    }

    fn reserve(&self, bytes: u64) -> Result<()> {
        let fits = self.position().checked_add(bytes).is_some_and(|end| end <= self.limit);
        ensure!(fits, "the image would be larger than its maximum of {} bytes: raise --max-size", self.limit);
        Ok(())
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// The limit, or a failed write.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.reserve(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.chunk.room().len()));
            self.chunk.room()[..now.len()].copy_from_slice(now);
            bytes = later;
            self.filled(now.len())?;
        }
        Ok(())
    }

    /// Appends exactly `length` bytes of `content`, which must end there.
    ///
    /// # Errors
    /// The limit, a failed read or write, or content of another length.
    pub fn copy(&mut self, content: &mut dyn Content, length: u64) -> Result<()> {
        self.reserve(length)?;
        let mut left = length;
        while left > 0 {
            let room = left.min(self.chunk.room().len() as u64) as usize;
            if let Some(region) = content.region(room) {
                let taken = region.length();
                self.chunk.regions.push((self.chunk.filled, region));
                left -= taken as u64;
                self.filled(taken)?;
                continue;
            }
            match content.read(&mut self.chunk.room()[..room]) {
                Ok(0) => bail!("content ends {left} bytes early"),
                Ok(n) => {
                    left -= n as u64;
                    self.filled(n)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        ensure!(content.read(&mut [0])? == 0, "content is longer than the {length} bytes stated");
        Ok(())
    }

    /// Appends zeros.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn zero(&mut self, bytes: u64) -> Result<()> {
        self.reserve(bytes)?;
        let mut left = bytes;
        while left > 0 {
            let n = left.min(self.chunk.room().len() as u64);
            self.chunk.room()[..n as usize].fill(0);
            left -= n;
            self.filled(n as usize)?;
        }
        Ok(())
    }

    /// Appends zeros up to the next block.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn pad(&mut self) -> Result<()> {
        self.zero(self.position().next_multiple_of(BLOCK as u64) - self.position())
    }

    /// Writes a block that is reserved, or was written before.
    ///
    /// # Errors
    /// A failed write.
    pub fn patch(&mut self, number: u32, block: &[u8; BLOCK]) -> Result<()> {
        let at = u64::from(number) * BLOCK as u64;
        if at >= self.begins {
            let at = (at - self.begins) as usize;
            self.chunk.bytes[at..at + BLOCK].copy_from_slice(block);
        } else {
            // What is on its way there comes first.
            while at >= self.stored {
                let hashed = self.workers.receive()?.context("a block that was never written")?;
                self.store(hashed)?;
            }
            self.out.seek(SeekFrom::Start(at)).context("image file")?;
            self.out.write_all(block).context("image file")?;
            self.out.seek(SeekFrom::Start(self.stored)).context("image file")?;
            self.patched.insert(number.into(), hash_block(block));
        }
        Ok(())
    }

    /// So many bytes more of the chunk are taken.
    fn filled(&mut self, more: usize) -> Result<()> {
        self.chunk.filled += more;
        if self.chunk.filled == CHUNK { self.flush() } else { Ok(()) }
    }

    /// Gives the chunk to the workers, and takes another's memory for the next.
    fn flush(&mut self) -> Result<()> {
        self.begins += self.chunk.filled as u64;
        let chunk = std::mem::take(&mut self.chunk);
        self.chunk = match self.workers.send(chunk)? {
            // Its bytes stay, so that nothing is cleared only to be overwritten.
            Some(hashed) => self.store(hashed)?,
            None => Chunk::new(),
        };
        (self.progress)(self.begins);
        Ok(())
    }

    /// Writes the oldest chunk that is on its way, and its hashes; gives its memory back.
    fn store(&mut self, hashed: Hashed) -> Result<Chunk> {
        let (mut chunk, hashes) = hashed?;
        self.out.write_all(&chunk.bytes[..chunk.filled]).context("image file: cannot be written")?;
        self.stored += chunk.filled as u64;
        self.leaves.write_all(&hashes).context("temporary file")?;
        chunk.filled = 0;
        Ok(chunk)
    }

    /// Ends the data, which must end with a block, and appends verity's superblock and tree.
    ///
    /// # Errors
    /// A failed write.
    pub fn finish(mut self) -> Result<Protected> {
        self.flush()?;
        while let Some(hashed) = self.workers.receive()? {
            self.store(hashed)?;
        }
        let data_blocks = self.stored / BLOCK as u64;
        let leaves_end = self.leaves.seek(SeekFrom::End(0))?;
        debug_assert_eq!(leaves_end, data_blocks * 32);
        let padding = leaves_end.next_multiple_of(BLOCK as u64) - leaves_end;
        io::copy(&mut io::repeat(0).take(padding), &mut self.leaves)?;
        for (number, hash) in &self.patched {
            self.leaves.seek(SeekFrom::Start(number * 32))?;
            self.leaves.write_all(hash)?;
        }
        self.leaves.rewind()?;

        let mut levels = vec![level_above(&mut self.leaves)?];
        while let Some(last) = levels.last().filter(|level| level.len() > 32) {
            levels.push(level_above(&mut last.as_slice())?);
        }
        // The last level is the root alone; padded, those between are blocks of the tree.
        let root: Hash = levels.pop().and_then(|root| root.try_into().ok()).context("empty image")?;
        let mut tree_bytes = self.append(&superblock(data_blocks, &root))?;
        for level in levels.iter().rev() {
            tree_bytes += self.append(level)?;
        }
        self.leaves.rewind()?;
        tree_bytes += io::copy(&mut self.leaves, self.out).context("image file: cannot be written")?;
        (self.progress)(self.stored + tree_bytes);
        Ok(Protected { root, data_blocks, tree_bytes })
    }

    /// Writes behind the data what is not part of it, padded to a block; returns the bytes written.
    fn append(&mut self, bytes: &[u8]) -> Result<u64> {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(BLOCK), 0);
        self.out.write_all(&padded).context("image file: cannot be written")?;
        Ok(padded.len() as u64)
    }
}

/// The hashes of a level's blocks; what ends within a block is padded with zeros.
fn level_above(level: &mut dyn Read) -> Result<Vec<u8>> {
    let mut hashes = Vec::new();
    let mut block = Vec::with_capacity(BLOCK);
    loop {
        block.clear();
        if level.take(BLOCK as u64).read_to_end(&mut block)? == 0 {
            return Ok(hashes);
        }
        block.resize(BLOCK, 0);
        hashes.extend_from_slice(&hash_block(&block));
    }
}

fn superblock(data_blocks: u64, root: &Hash) -> [u8; SUPERBLOCK] {
    let mut b = [0; SUPERBLOCK];
    let block = (BLOCK as u32).to_le_bytes();
    b[0..8].copy_from_slice(b"verity\0\0");
    b[8..12].copy_from_slice(&1u32.to_le_bytes()); // version of this superblock
    b[12..16].copy_from_slice(&1u32.to_le_bytes()); // hash type: salt first
    b[16..32].copy_from_slice(&derived_uuid("parma dm-verity", root));
    b[32..38].copy_from_slice(b"sha256");
    b[64..68].copy_from_slice(&block);
    b[68..72].copy_from_slice(&block);
    b[72..80].copy_from_slice(&data_blocks.to_le_bytes());
    b[80..82].copy_from_slice(&(SALT.len() as u16).to_le_bytes());
    b[88..120].copy_from_slice(&SALT);
    b
}

/// Threads that hash chunks; results come back in the order of the chunks.
struct Workers {
    each: Vec<(SyncSender<Chunk>, Receiver<Hashed>)>,
    next: usize,
    /// The worker of each chunk whose result is outstanding.
    outstanding: VecDeque<usize>,
}

/// A part of an image's data.
#[derive(Default)]
struct Chunk {
    /// [`CHUNK`] bytes.
    bytes: Vec<u8>,
    /// How many of them count.
    filled: usize,
    /// What has yet to be read, and where in `bytes` it belongs.
    regions: Vec<(usize, Region)>,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: vec![0; CHUNK], ..Self::default() }
    }

    /// The bytes that do not count yet.
    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.filled..]
    }

    /// Reads what has yet to be read, and hashes all blocks.
    fn hash(mut self) -> Hashed {
        for (at, region) in self.regions.drain(..) {
            region.read(&mut self.bytes[at..][..region.length()])?;
        }
        let hashes = hash_blocks(&self.bytes[..self.filled]);
        Ok((self, hashes))
    }
}

/// A chunk, and the hashes of its blocks one after the other; or why it could not be read.
type Hashed = io::Result<(Chunk, Vec<u8>)>;

impl Workers {
    fn start() -> Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let each = (0..count).map(|_| {
            let (chunks, incoming) = sync_channel::<Chunk>(QUEUE);
            let (outgoing, hashes) = sync_channel(QUEUE);
            let work = move || {
                for chunk in incoming {
                    if outgoing.send(chunk.hash()).is_err() {
                        return; // the image was given up
                    }
                }
            };
            thread::Builder::new().name("hash".into()).spawn(work).context("cannot start a thread")?;
            Ok((chunks, hashes))
        });
        Ok(Self { each: each.collect::<Result<_>>()?, next: 0, outstanding: VecDeque::new() })
    }

    /// Gives a chunk away, and waits for the oldest result where enough are outstanding.
    fn send(&mut self, chunk: Chunk) -> Result<Option<Hashed>> {
        self.each[self.next].0.send(chunk).ok().context("a hashing thread died")?;
        self.outstanding.push_back(self.next);
        self.next = (self.next + 1) % self.each.len();
        if self.outstanding.len() < QUEUE * self.each.len() { Ok(None) } else { self.receive() }
    }

    /// The oldest outstanding result, or `None` where there is none.
    fn receive(&mut self) -> Result<Option<Hashed>> {
        let Some(worker) = self.outstanding.pop_front() else { return Ok(None) };
        self.each[worker].1.recv().ok().map(Some).context("a hashing thread died")
    }
}
