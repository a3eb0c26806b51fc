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
const CHUNK: usize = 256 * BLOCK;
/// Bytes that are read and then hashed: as many as a processor's own cache has when it hashes them.
const PIECE: usize = 16 * BLOCK;
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
            let room = self.chunk.room(bytes.len() as u64);
            let (now, later) = bytes.split_at(room.len());
            room.copy_from_slice(now);
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
            let room = self.chunk.room(left);
            if let Some(region) = content.region(room.len()) {
                left -= region.length() as u64;
                self.region(region)?;
                continue;
            }
            match content.read(room) {
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
            let room = self.chunk.room(left);
            room.fill(0);
            let count = room.len();
            left -= count as u64;
            self.filled(count)?;
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

    /// Writes a block that is reserved, or was written before. Call it between blocks.
    ///
    /// # Errors
    /// A failed write.
    pub fn patch(&mut self, number: u32, block: &[u8; BLOCK]) -> Result<()> {
        // What is on its way there comes first.
        self.flush()?;
        self.settle()?;
        self.out.put(block, u64::from(number) * BLOCK as u64)?;
        self.patched.insert(number.into(), hash_block(block));
        Ok(())
    }

    /// So many bytes more of the chunk are there.
    fn filled(&mut self, more: usize) -> Result<()> {
        self.chunk.here += more;
        self.added(more)
    }

    /// A region is the chunk's next part.
    fn region(&mut self, region: Region) -> Result<()> {
        let length = region.length();
        self.chunk.regions.push((self.chunk.here, region));
        self.added(length)
    }

    fn added(&mut self, more: usize) -> Result<()> {
        self.chunk.filled += more;
        if self.chunk.missing() == 0 { self.flush() } else { Ok(()) }
    }

    /// Gives the chunk to a worker, and takes another's memory for the next.
    fn flush(&mut self) -> Result<()> {
        let begins = self.position();
        // Memory that was used before is not cleared only to be overwritten; more is taken where the workers wait.
        let mut next = match self.workers.try_receive() {
            Some(hashed) => self.take_down(hashed)?,
            None if self.workers.outstanding() < QUEUE * self.workers.each.len() => Chunk::new(),
            None => self.receive()?,
        };
        next.begins = begins;
        self.workers.send(std::mem::replace(&mut self.chunk, next))?;
        (self.progress)(begins);
        Ok(())
    }

    /// Waits for a chunk that is done with.
    fn receive(&mut self) -> Result<Chunk> {
        let hashed = self.workers.receive()?;
        self.take_down(hashed)
    }

    /// Takes down a chunk's hashes.
    fn take_down(&mut self, hashed: Hashed) -> Result<Chunk> {
        let (mut chunk, hashes) = hashed?;
        self.leaves.seek(SeekFrom::Start(chunk.begins / BLOCK as u64 * 32)).context("temporary file")?;
        self.leaves.write_all(&hashes).context("temporary file")?;
        (chunk.filled, chunk.here) = (0, 0);
        chunk.regions.clear();
        Ok(chunk)
    }

    /// Waits for all chunks that are on their way.
    fn settle(&mut self) -> Result<()> {
        while self.workers.outstanding() > 0 {
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
    /// How many bytes it has.
    filled: usize,
    /// Those that are there already: the first `here` of these [`CHUNK`] bytes.
    bytes: Vec<u8>,
    here: usize,
    /// What has yet to be read, each behind so many of the bytes that are there.
    regions: Vec<(usize, Region)>,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: vec![0; CHUNK], ..Self::default() }
    }

    /// Bytes that are still missing. A chunk ends at a multiple of [`CHUNK`]: the page cache takes it in whole then.
    fn missing(&self) -> u64 {
        let begun = (self.begins + self.filled as u64) % CHUNK as u64;
        if begun == 0 && self.filled > 0 { 0 } else { CHUNK as u64 - begun }
    }

    /// Room for at most so many of the bytes that are still missing.
    fn room(&mut self, most: u64) -> &mut [u8] {
        let length = most.min(self.missing()) as usize;
        &mut self.bytes[self.here..][..length]
    }

    /// Reads what has yet to be read, into this memory of [`CHUNK`] bytes, hashes all blocks, and writes them.
    fn done(&self, out: &Output, memory: &mut [u8]) -> Result<Vec<u8>> {
        let mut hashes = Vec::with_capacity(self.filled / BLOCK * size_of::<Hash>());
        if self.regions.is_empty() {
            for piece in self.bytes[..self.here].chunks(PIECE) {
                hashes.extend_from_slice(&hash_blocks(piece));
            }
            out.put(&self.bytes[..self.here], self.begins)?;
            return Ok(hashes);
        }
        let mut rest = Rest { chunk: self, taken: 0, regions: 0, of_region: 0 };
        for start in (0..self.filled).step_by(PIECE) {
            // What is not kept may be overwritten by what comes next, which is then in memory that is near.
            let place = if matches!(out, Output::Nowhere) { 0 } else { start };
            let piece = &mut memory[place..][..PIECE.min(self.filled - start)];
            rest.read(piece)?;
            hashes.extend_from_slice(&hash_blocks(piece));
        }
        out.put(&memory[..self.filled], self.begins)?;
        Ok(hashes)
    }
}

/// What of a chunk has not been taken yet.
struct Rest<'a> {
    chunk: &'a Chunk,
    /// Bytes taken of those that are there.
    taken: usize,
    /// Regions taken whole, and bytes of the next one.
    regions: usize,
    of_region: usize,
}

impl Rest<'_> {
    /// Reads the next bytes, of which there are enough.
    fn read(&mut self, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            let next = self.chunk.regions.get(self.regions);
            let there = next.map_or(self.chunk.here, |(behind, _)| *behind) - self.taken;
            let length = match next {
                Some((_, region)) if there == 0 => {
                    let length = to.len().min(region.length() - self.of_region);
                    region.read(self.of_region, &mut to[..length])?;
                    self.of_region += length;
                    if self.of_region == region.length() {
                        (self.regions, self.of_region) = (self.regions + 1, 0);
                    }
                    length
                }
                _ => {
                    let length = to.len().min(there);
                    to[..length].copy_from_slice(&self.chunk.bytes[self.taken..][..length]);
                    self.taken += length;
                    length
                }
            };
            to = &mut to[length..];
        }
        Ok(())
    }
}

/// A chunk, and the hashes of its blocks one after the other; or why it could not be read or written.
type Hashed = Result<(Chunk, Vec<u8>)>;

/// What a worker says of a chunk.
struct Done {
    worker: usize,
    chunk: Hashed,
}

/// Threads that read, hash and write chunks. Chunks come back in any order, and whoever has the fewest gets the next, so that no
/// thread waits for another.
struct Workers {
    each: Vec<Worker>,
    done: Receiver<Done>,
}

struct Worker {
    chunks: SyncSender<Chunk>,
    /// Chunks that it was sent and that have not come back.
    has: usize,
}

impl Workers {
    fn start(out: &Arc<Output>) -> Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let (sender, done) = sync_channel(QUEUE * count);
        let each = (0..count).map(|worker| {
            let (chunks, incoming) = sync_channel::<Chunk>(QUEUE);
            let (sender, out) = (sender.clone(), out.clone());
            let work = move || {
                let mut memory = vec![0; CHUNK];
                for chunk in incoming {
                    // Whoever waits for it has to learn of its end.
                    let hashes = panic::catch_unwind(AssertUnwindSafe(|| chunk.done(&out, &mut memory)));
                    let hashes = hashes.unwrap_or_else(|_| Err(anyhow!("a hashing thread died")));
                    let chunk = hashes.map(|hashes| (chunk, hashes));
                    if sender.send(Done { worker, chunk }).is_err() {
                        return; // the image was given up
                    }
                }
            };
            thread::Builder::new().name("hash".into()).spawn(work).context("cannot start a thread")?;
            Ok(Worker { chunks, has: 0 })
        });
        Ok(Self { each: each.collect::<Result<_>>()?, done })
    }

    /// Chunks that were sent and have not come back.
    fn outstanding(&self) -> usize {
        self.each.iter().map(|worker| worker.has).sum()
    }

    /// Gives a chunk to the worker that has the fewest, of which there must be one with less than [`QUEUE`].
    fn send(&mut self, chunk: Chunk) -> Result<()> {
        let worker = self.each.iter_mut().min_by_key(|worker| worker.has).context("no hashing thread")?;
        worker.chunks.send(chunk).ok().context("a hashing thread died")?;
        worker.has += 1;
        Ok(())
    }

    /// A chunk that has come back already.
    fn try_receive(&mut self) -> Option<Hashed> {
        self.done.try_recv().ok().map(|done| self.back(done))
    }

    /// Waits until a chunk comes back.
    fn receive(&mut self) -> Result<Hashed> {
        let done = self.done.recv().ok().context("the hashing threads died")?;
        Ok(self.back(done))
    }

    fn back(&mut self, Done { worker, chunk }: Done) -> Hashed {
        self.each[worker].has -= 1;
        chunk
    }
}
