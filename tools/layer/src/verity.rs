//! dm-verity: an image's blocks are read, hashed and written on all cores, in any order; the superblock and the hash tree are
//! appended at the end.
//!
//! Parameters are those of the reference and of the guest's verity table: version 1, SHA-256, data and hash
//! blocks of 4096 bytes, a salt of 32 zero bytes before each block. Layout: Linux
//! `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's `verity.h`; the tree is stored top
//! level first.
//!
//! Memory is constant: the lowest level of the tree (32 bytes a block) spills to a temporary file when large.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use parma_guest::target::ext4::{self, BLOCK};
use sha2::{Digest as _, Sha256};
use tempfile::SpooledTempFile;

use crate::content::{Content, Region, Streamed};
use crate::output::Output;
pub use crate::sha256::Hash;
use crate::sha256::{SALT, hash_block, hash_blocks};

/// Bytes that go to a worker at once.
const CHUNK: usize = 64 * BLOCK;
/// Chunks that each worker may have, the one that it works on included.
const QUEUE: usize = 4;
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
    let limit = said.data_blocks * BLOCK as u64;
    let mut stream = Stream::new(Arc::new(Output::Same(image.try_clone()?)), 0, limit, progress)?;
    stream.copy(&mut Streamed(At { image, position: 0 }.take(limit)), limit)?;
    let found = stream.finish().context("the hash tree is not that of the data")?;
    ensure!(found.root == *root, "the data is not what the root hash names");
    Ok(said.data_blocks)
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

/// Blocks of an image on their way to its output and into the tree, front to back.
pub struct Stream<'a> {
    out: Arc<Output>,
    /// Bytes that the data may have.
    limit: u64,
    /// What comes next.
    chunk: Chunk,
    workers: Workers,
    /// The lowest level of the tree, as far as it is known.
    leaves: SpooledTempFile,
    /// Hashes of blocks that were written out of order.
    patched: BTreeMap<u64, Hash>,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a> Stream<'a> {
    /// A stream that begins behind `reserved` blocks, all of which must be given to [`patch`](Self::patch)
    /// before the end. `progress` is called with the number of bytes that are on their way so far.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(
        out: Arc<Output>,
        reserved: u32,
        limit: u64,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self> {
        let mut chunk = Chunk::new();
        chunk.begins = u64::from(reserved) * BLOCK as u64;
        let workers = Workers::start(&out)?;
        let leaves = SpooledTempFile::new(SPOOL);
        Ok(Self { out, limit, chunk, workers, leaves, patched: BTreeMap::new(), progress })
    }

    /// Bytes so far, the reserved ones included.
    pub fn position(&self) -> u64 {
        self.chunk.begins + self.chunk.filled as u64
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
        if let Some(at) = at.checked_sub(self.chunk.begins) {
            self.chunk.bytes[at as usize..][..BLOCK].copy_from_slice(block);
        } else {
            // What is on its way there comes first.
            self.settle()?;
            self.out.put(block, at)?;
            self.patched.insert(number.into(), hash_block(block));
        }
        Ok(())
    }

    /// So many bytes more of the chunk are taken.
    fn filled(&mut self, more: usize) -> Result<()> {
        self.chunk.filled += more;
        if self.chunk.filled == CHUNK { self.flush() } else { Ok(()) }
    }

    /// Gives the chunk to a worker, and takes another's memory for the next.
    fn flush(&mut self) -> Result<()> {
        let begins = self.position();
        let (worker, mut next) = match self.workers.idle() {
            Some(worker) => (worker, Chunk::new()),
            // Its bytes stay, so that nothing is cleared only to be overwritten.
            None => self.receive()?,
        };
        next.begins = begins;
        self.workers.send(worker, std::mem::replace(&mut self.chunk, next))?;
        (self.progress)(begins);
        Ok(())
    }

    /// Waits for a chunk that is done with, and takes down its hashes.
    fn receive(&mut self) -> Result<(usize, Chunk)> {
        let Done { worker, chunk } = self.workers.receive()?;
        let (mut chunk, hashes) = chunk?;
        self.leaves.seek(SeekFrom::Start(chunk.begins / BLOCK as u64 * 32)).context("temporary file")?;
        self.leaves.write_all(&hashes).context("temporary file")?;
        chunk.filled = 0;
        Ok((worker, chunk))
    }

    /// Waits for all chunks that are on their way.
    fn settle(&mut self) -> Result<()> {
        while self.workers.outstanding > 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// Ends the data, which must end with a block, and appends verity's superblock and tree.
    ///
    /// # Errors
    /// A failed write.
    pub fn finish(mut self) -> Result<Protected> {
        self.flush()?;
        self.settle()?;
        let data_bytes = self.position();
        let data_blocks = data_bytes / BLOCK as u64;
        let leaves_end = (data_blocks * 32).next_multiple_of(BLOCK as u64);
        self.leaves.set_len(leaves_end).context("temporary file")?;
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
        let mut end = data_bytes;
        let superblock = superblock(data_blocks, &root);
        for part in [&superblock[..]].into_iter().chain(levels.iter().rev().map(Vec::as_slice)) {
            let mut padded = part.to_vec();
            padded.resize(part.len().next_multiple_of(BLOCK), 0);
            self.out.put(&padded, end)?;
            end += padded.len() as u64;
        }
        self.leaves.rewind()?;
        let mut part = Vec::with_capacity(CHUNK);
        while read_chunk(&mut self.leaves, &mut part)? {
            self.out.put(&part, end)?;
            end += part.len() as u64;
        }
        (self.progress)(end);
        Ok(Protected { root, data_blocks, tree_bytes: end - data_bytes })
    }
}

/// The hashes of a level's blocks; what ends within a block is padded with zeros.
fn level_above(level: &mut dyn Read) -> Result<Vec<u8>> {
    let (mut hashes, mut part) = (Vec::new(), Vec::with_capacity(CHUNK));
    while read_chunk(level, &mut part)? {
        part.resize(part.len().next_multiple_of(BLOCK), 0);
        hashes.extend_from_slice(&hash_blocks(&part));
    }
    Ok(hashes)
}

/// Reads the next [`CHUNK`] bytes, or what is left of them. Whether there was something.
fn read_chunk(input: &mut dyn Read, part: &mut Vec<u8>) -> Result<bool> {
    part.clear();
    Ok(input.take(CHUNK as u64).read_to_end(part).context("temporary file")? > 0)
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

/// A part of an image's data.
#[derive(Default)]
struct Chunk {
    /// Where it begins in the image.
    begins: u64,
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

    /// Reads what has yet to be read, hashes all blocks, and writes them.
    fn done(mut self, out: &Output) -> Hashed {
        for (at, region) in self.regions.drain(..) {
            region.read(&mut self.bytes[at..][..region.length()])?;
        }
        let bytes = &self.bytes[..self.filled];
        let hashes = hash_blocks(bytes);
        out.put(bytes, self.begins)?;
        Ok((self, hashes))
    }
}

/// A chunk, and the hashes of its blocks one after the other; or why it could not be read or written.
type Hashed = Result<(Chunk, Vec<u8>)>;

/// What a worker says of a chunk.
struct Done {
    worker: usize,
    chunk: Hashed,
}

/// Threads that read, hash and write chunks. Chunks come back in any order, and whoever gave one back gets the next, so that no
/// thread waits for another.
struct Workers {
    each: Vec<SyncSender<Chunk>>,
    done: Receiver<Done>,
    /// Chunks that were sent and have not come back.
    outstanding: usize,
}

impl Workers {
    fn start(out: &Arc<Output>) -> Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let (sender, done) = sync_channel(QUEUE * count);
        let each = (0..count).map(|worker| {
            let (chunks, incoming) = sync_channel::<Chunk>(QUEUE);
            let (sender, out) = (sender.clone(), out.clone());
            let work = move || {
                for chunk in incoming {
                    // Whoever waits for it has to learn of its end.
                    let chunk = panic::catch_unwind(AssertUnwindSafe(|| chunk.done(&out)));
                    let chunk = chunk.unwrap_or_else(|_| Err(anyhow!("a hashing thread died")));
                    if sender.send(Done { worker, chunk }).is_err() {
                        return; // the image was given up
                    }
                }
            };
            thread::Builder::new().name("hash".into()).spawn(work).context("cannot start a thread")?;
            Ok(chunks)
        });
        Ok(Self { each: each.collect::<Result<_>>()?, done, outstanding: 0 })
    }

    /// A worker that may get a chunk before one comes back.
    fn idle(&self) -> Option<usize> {
        (self.outstanding < QUEUE * self.each.len()).then_some(self.outstanding % self.each.len())
    }

    fn send(&mut self, worker: usize, chunk: Chunk) -> Result<()> {
        self.each[worker].send(chunk).ok().context("a hashing thread died")?;
        self.outstanding += 1;
        Ok(())
    }

    fn receive(&mut self) -> Result<Done> {
        let done = self.done.recv().ok().context("the hashing threads died")?;
        self.outstanding -= 1;
        Ok(done)
    }
}
