//! An encrypted and authenticated block device on a disk of the host's: dm-crypt on dm-integrity.
//!
//! ```text
//! crypt       AES-256-GCM of each block; the authenticated data is its position and its nonce
//! integrity   keeps 28 bytes for each block: tag and nonce
//! linear      the disk's data blocks                  linear   tags: guest memory, or guest memory and then the disk
//! ```
//!
//! dm-integrity wants a superblock and room for a journal at the start of its metadata. Both are always in guest memory, so
//! the kernel never parses a byte of the host's (attacks L01, L03), and there is no journal: what the host could replay does
//! not exist. With the tags in guest memory as well, a block that the host restores, moves or changes does not match its tag
//! (L02, L04); the reader gets an error. Tags on the disk still bind a block to its position and key, but the host can
//! restore a block together with its tag.
//!
//! Proved on Linux 6.1 and 6.12. Sources: `drivers/md/dm-integrity.c` and `dm-crypt.c`, and
//! `Documentation/admin-guide/device-mapper/`.

use super::block::DeviceNumber;
use super::mapping::{Stack, node};
use super::ramdisk::{PAGE_SECTORS, RamDisks, Slice};
use super::volume::{self, SECTORS, TUPLE, tag_blocks};
use crate::attest::fill_random;
use crate::gate::fields::VolumeId;
use crate::linux::Errno;
use crate::linux::dm::{MAX_PARAMETERS, Target};
use crate::wire::Tags;
use core::fmt::{self, Write};
use rustix::fd::OwnedFd;
use zeroize::Zeroize;

/// Sectors at the start of dm-integrity's metadata, before the tags: a superblock of 8, and the smallest journal, one section
/// of 32 entries: 32 blocks of 8 sectors and 8 sectors of entries (`calculate_journal_section_size`). Nothing is ever written
/// to that journal.
const RESERVED: u64 = 8 + 32 * 8 + 8;

/// A key of AES-256-GCM, wiped when it is dropped.
pub struct Key([u8; 32]);

impl Key {
    /// A new one from the kernel's generator, which gives nothing before it is seeded.
    ///
    /// SECURITY (L07): the seed is the processor's (RDSEED); what a host supplies is never credited (`random.*` on the
    /// measured command line, no virtio-rng in the kernel).
    pub(super) fn fresh() -> Result<Self, Errno> {
        let mut key = Self([0; 32]);
        fill_random(&mut key.0)?;
        Ok(key)
    }
}

impl Key {
    /// One that was released to this guest. The caller wipes its own copy.
    pub(crate) fn released(key: &[u8; 32]) -> Self {
        Self(*key)
    }

    /// The id of the volume that it opens.
    pub(crate) fn volume(&self) -> VolumeId {
        VolumeId(volume::id(&self.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Parameters of a target, wiped when they are dropped.
struct Parameters {
    bytes: [u8; MAX_PARAMETERS],
    length: usize,
}

impl Parameters {
    fn new() -> Self {
        Self { bytes: [0; MAX_PARAMETERS], length: 0 }
    }

    fn as_str(&self) -> &str {
        // Only whole strings are added.
        self.bytes.get(..self.length).and_then(|text| core::str::from_utf8(text).ok()).unwrap_or_default()
    }
}

impl Write for Parameters {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length.checked_add(text.len()).ok_or(fmt::Error)?;
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

impl Drop for Parameters {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// An open device.
#[derive(Debug)]
pub(super) struct Sealed {
    stack: Stack,
    memory: Option<Slice>,
    /// Its minor number.
    pub(super) minor: u32,
}

/// Opens the first `blocks` blocks of `disk` with this key. Every block that was not written under it is an error to read.
///
/// After an error everything is as before, unless its second part says that it is not.
pub(super) fn open(
    control: &OwnedFd,
    ram: &mut RamDisks,
    (kind, number): (&'static str, u16),
    disk: DeviceNumber,
    blocks: u64,
    tags: Tags,
    key: &Key,
) -> Result<Sealed, (Errno, bool)> {
    let mut sealed = Sealed { stack: Stack::new(kind, number), memory: None, minor: 0 };
    match build(&mut sealed, control, ram, disk, blocks, tags, key) {
        Ok(()) => Ok(sealed),
        Err(errno) => Err((errno, close(&mut sealed, control, ram).is_ok())),
    }
}

/// Closes the device: the kernel wipes its copy of the key, and its tags are gone. Can be called again after an error.
pub(super) fn close(sealed: &mut Sealed, control: &OwnedFd, ram: &mut RamDisks) -> Result<(), Errno> {
    sealed.stack.remove(control)?;
    if let Some(slice) = sealed.memory {
        ram.free(slice)?;
        sealed.memory = None;
    }
    Ok(())
}

fn build(
    sealed: &mut Sealed,
    control: &OwnedFd,
    ram: &mut RamDisks,
    disk: DeviceNumber,
    blocks: u64,
    tags: Tags,
    key: &Key,
) -> Result<(), Errno> {
    let sectors = blocks * SECTORS;
    let on_disk = match tags {
        Tags::Memory => 0,
        Tags::Disk => tag_blocks(blocks),
    };
    let in_memory = tag_blocks(blocks) - on_disk;
    let slice = *sealed.memory.insert(ram.allocate(RESERVED / PAGE_SECTORS + in_memory)?);

    let data = text(format_args!("{disk} 0"))?;
    let data = Target { sectors, kind: "linear", parameters: data.as_str() };
    let data = sealed.stack.push(control, "-data", &[data])?;

    let memory = text(format_args!("{} {}", slice.device(), slice.start()))?;
    let memory = Target { sectors: slice.sectors(), kind: "linear", parameters: memory.as_str() };
    let rest = text(format_args!("{disk} {sectors}"))?;
    let rest = Target { sectors: on_disk * SECTORS, kind: "linear", parameters: rest.as_str() };
    let parts = [memory, rest];
    let tags = sealed.stack.push(control, "-tags", if on_disk == 0 { &parts[..1] } else { &parts })?;

    let integrity = integrity(data, tags)?;
    let integrity = Target { sectors, kind: "integrity", parameters: integrity.as_str() };
    let integrity = sealed.stack.push(control, "-auth", &[integrity])?;

    let crypt = crypt(key, integrity)?;
    let crypt = Target { sectors, kind: "crypt", parameters: crypt.as_str() };
    sealed.minor = sealed.stack.push(control, "", &[crypt])?;
    Ok(())
}

fn text(text: fmt::Arguments<'_>) -> Result<Parameters, Errno> {
    let mut parameters = Parameters::new();
    parameters.write_fmt(text).map_err(|fmt::Error| Errno::NAMETOOLONG)?;
    Ok(parameters)
}

/// Device, reserved sectors, bytes of a tag, mode D (direct: no journal), options. The smallest journal; and metadata in
/// blocks of 4096 bytes, so that a tag that changes costs no more.
fn integrity(data: u32, tags: u32) -> Result<Parameters, Errno> {
    let (data, tags) = (node(data), node(tags));
    text(format_args!(
        "{data} 0 {TUPLE} D 4 meta_device:{tags} block_size:4096 buffer_sectors:8 journal_sectors:1"
    ))
}

/// Cipher with a random nonce for each write, key, offset of the first nonce, device, its offset, options. None of them lets
/// a discard through (L09).
fn crypt(key: &Key, integrity: u32) -> Result<Parameters, Errno> {
    let integrity = node(integrity);
    let mut parameters = text(format_args!("capi:gcm(aes)-random "))?;
    let rest = key
        .0
        .iter()
        .try_for_each(|byte| write!(parameters, "{byte:02x}"))
        .and_then(|()| write!(parameters, " 0 {integrity} 0 2 integrity:{TUPLE}:aead sector_size:4096"));
    rest.map_err(|fmt::Error| Errno::NAMETOOLONG)?;
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_those_that_are_documented() {
        assert_eq!(
            integrity(4, 5).unwrap().as_str(),
            "/dev/dm-4 0 28 D 4 meta_device:/dev/dm-5 block_size:4096 buffer_sectors:8 journal_sectors:1"
        );
        let key = Key([0xab; 32]);
        let expected = std::format!(
            "capi:gcm(aes)-random {} 0 /dev/dm-6 0 2 integrity:28:aead sector_size:4096",
            "ab".repeat(32)
        );
        assert_eq!(crypt(&key, 6).unwrap().as_str(), expected);
    }

    #[test]
    fn l07_no_two_keys_are_alike() {
        let (a, b) = (Key::fresh().unwrap(), Key::fresh().unwrap());
        assert_ne!(a.0, b.0);
        assert_ne!(a.0, [0; 32]);
    }

    #[test]
    fn what_is_reserved_is_whole_pages_and_what_the_kernel_reserves() {
        // offsetof(struct journal_entry, last_bytes) + 8 sectors of 8 bytes + a tag, rounded up to 8, in sectors of 504.
        let entries = 8 * (504 / (8u64 + 64 + TUPLE).next_multiple_of(8));
        assert_eq!(RESERVED, 8 + entries * 8 + 8);
        assert_eq!(RESERVED % PAGE_SECTORS, 0);
    }
}
