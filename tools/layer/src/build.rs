//! A layer's tar becomes its image: ext4, then dm-verity, then perhaps a VHD footer.
//!
//! The same tar and [`Options`] give the same bytes on any machine, and the root hash is the one that
//! Microsoft's `tar2ext4` and `dmverity-vhd` give, so that existing policies stay valid. Only the two UUIDs,
//! random there and outside of the hash, are derived from the root hash here.
//!
//! What a tar says is taken literally; in particular extended attributes of `trusted.` stay, as in the
//! reference. (A guest that mounts layers in an overlay must therefore not follow overlayfs's own
//! attributes: `redirect_dir=nofollow,metacopy=off,index=off`.)

use std::fmt;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use parma_guest::target::ext4 as format;

use crate::content::{Content, Plain, Streamed};
use crate::ext4::{File, Writer};
use crate::output::Output;
use crate::tar::{self, End, Entry, flag, show};
use crate::verity::{Hash, derived_uuid};
use crate::xattr::Xattrs;

/// Changes with every change of the bytes that [`build`] makes from the same input.
pub const FORMAT_VERSION: u32 = 1;
/// Largest image unless told otherwise, in bytes: what `az confcom` and `dmverity-vhd` use.
pub const DEFAULT_MAX_SIZE: u64 = 128 << 30;

/// What decides an image's bytes besides the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Turn OCI whiteouts (`.wh.NAME`, `.wh..wh..opq`) into those of overlayfs.
    pub convert_whiteouts: bool,
    /// Largest size of the filesystem in bytes, at most 16 TiB. Decides the root hash: it says how much room
    /// the filesystem keeps for block group descriptors.
    pub max_size: u64,
    /// Append a fixed-size VHD footer (outside of the root hash).
    pub vhd: bool,
    /// Whether the tar must have its end marker. Not part of the bytes.
    pub end: End,
}

impl Default for Options {
    /// What gives the hashes found in Azure's policies.
    fn default() -> Self {
        Self { convert_whiteouts: true, max_size: DEFAULT_MAX_SIZE, vhd: false, end: End::Marked }
    }
}

/// What was built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// The dm-verity root hash.
    pub root_hash: Hash,
    /// The filesystem's size in 4096-byte blocks, which is the verity device's.
    pub data_blocks: u64,
    /// Bytes of the whole image.
    pub bytes: u64,
}

impl Built {
    /// The root hash as 64 hex digits.
    #[must_use]
    pub fn root_hex(&self) -> String {
        self.root_hash.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Debug for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "root {} of {} blocks, {} bytes", self.root_hex(), self.data_blocks, self.bytes)
    }
}

/// Builds the image of a plain tar into a file, which should be empty. `progress` is called now
/// and then with the bytes written so far. The tar is read to the end of its stream, behind the end marker.
///
/// # Errors
/// A malformed tar, something the format cannot express, or a failed read or write; the error names the
/// entry. What the file then holds is of no use.
pub fn build(
    tar: impl Read,
    out: &fs::File,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Built> {
    let out = out.try_clone().context("image file")?;
    build_of(Streamed(tar), Output::File(out), options, progress)
}

fn build_of(
    tar: impl Content,
    out: Output,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Built> {
    let (mut tar, out) = (tar::Reader::new(tar, options.end), Arc::new(out));
    let mut writer = Writer::new(out.clone(), options.max_size, progress)?;
    while let Some(mut entry) = tar.next_entry()? {
        let name = std::mem::take(&mut entry.name);
        add(&mut writer, &name, entry, &mut tar, options)
            .with_context(|| format!("entry {}", show(&name)))?;
    }
    io::copy(&mut tar.into_inner(), &mut io::sink()).context("behind the tar's end")?;
    let verity = writer.finish()?;
    let mut bytes = verity.data_blocks * format::BLOCK as u64 + verity.tree_bytes;
    if options.vhd {
        let footer = vhd_footer(bytes, &verity.root);
        out.put(&footer, bytes)?;
        bytes += footer.len() as u64;
    }
    Ok(Built { root_hash: verity.root, data_blocks: verity.data_blocks, bytes })
}

/// The root hash of a plain tar's image, without keeping the image.
///
/// # Errors
/// As [`build`].
pub fn hash(tar: impl Read, options: &Options, progress: &mut dyn FnMut(u64)) -> Result<Built> {
    build_of(Streamed(tar), Output::Nowhere, options, progress)
}

/// Builds the image of the tar in a file (plain, gzip or zstd) into another, which appears whole or not at
/// all.
///
/// # Errors
/// As [`build`]; or a file cannot be read or written.
pub fn build_file(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &mut dyn FnMut(u64),
) -> Result<Built> {
    let tar = open_tar(input)?;
    write_file(output, |out| {
        let out = Output::File(out.try_clone().context("image file")?);
        build_of(tar, out, options, progress).with_context(|| input.display().to_string())
    })
}

/// The root hash of the tar in a file (plain, gzip or zstd).
///
/// # Errors
/// As [`hash`]; or the file cannot be read.
pub fn hash_file(input: &Path, options: &Options, progress: &mut dyn FnMut(u64)) -> Result<Built> {
    build_of(open_tar(input)?, Output::Nowhere, options, progress)
        .with_context(|| input.display().to_string())
}

/// Opens a tar, decompressing it if it begins as gzip or zstd do.
fn open_tar(path: &Path) -> Result<Box<dyn Content>> {
    let context = || path.display().to_string();
    let file = fs::File::open(path).with_context(context)?;
    let mut input = BufReader::with_capacity(1 << 18, file);
    let start = input.fill_buf().with_context(context)?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(Streamed(flate2::bufread::MultiGzDecoder::new(input)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(Streamed(zstd::stream::read::Decoder::with_buffer(input).with_context(context)?))
    } else {
        let meta = input.get_ref().metadata().with_context(context)?;
        // A pipe has no places.
        if meta.is_file() {
            Box::new(Plain::new(input.into_inner(), meta.len()))
        } else {
            Box::new(Streamed(input))
        }
    })
}

/// Writes a file that appears under its name only when `write` has succeeded.
fn write_file<T>(path: &Path, write: impl FnOnce(&fs::File) -> Result<T>) -> Result<T> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let cannot = || format!("{}: cannot be written: is its directory there and writable?", path.display());
    let mut builder = tempfile::Builder::new();
    builder.prefix(".parma-").permissions(fs::Permissions::from_mode(0o666)); // less the umask
    let file = builder.tempfile_in(directory).with_context(cannot)?;
    let result = write(file.as_file())?;
    file.persist(path).with_context(cannot)?;
    Ok(result)
}

/// Adds one entry of the tar, whose content `tar` gives.
fn add(
    writer: &mut Writer<'_>,
    name: &[u8],
    entry: Entry,
    tar: &mut dyn Content,
    options: &Options,
) -> Result<()> {
    writer.make_parents(name)?;
    let split = name.iter().rposition(|c| *c == b'/').map_or(0, |slash| slash + 1);
    let (directory, file_name) = name.split_at(split);
    if options.convert_whiteouts
        && let Some(hidden) = file_name.strip_prefix(b".wh.")
    {
        return if hidden == b".wh..opq" {
            writer.make_opaque(directory)
        } else {
            let whiteout = File { mode: format::CHARACTER, ..File::default() };
            writer.create(&[directory, b"/", hidden].concat(), whiteout, &mut io::empty())
        };
    }
    if entry.flag == flag::LINK {
        return writer.link(&entry.link, name);
    }
    let kind = match entry.flag {
        flag::SYMLINK => format::SYMLINK,
        flag::CHARACTER => format::CHARACTER,
        flag::BLOCK => format::BLOCK_DEVICE,
        flag::DIRECTORY => format::DIRECTORY,
        flag::FIFO => format::FIFO,
        _ => format::REGULAR,
    };
    let is_xattr = |(key, value): (&Vec<u8>, &Vec<u8>)| {
        Some((key.strip_prefix(b"SCHILY.xattr.")?.into(), value.clone()))
    };
    let file = File {
        mode: kind | entry.mode as u16 & !format::TYPE_MASK,
        uid: entry.uid as u32,
        gid: entry.gid as u32,
        size: entry.size,
        atime: entry.atime,
        ctime: entry.ctime,
        mtime: entry.mtime,
        major: entry.major as u32,
        minor: entry.minor as u32,
        xattrs: entry.pax.iter().filter_map(is_xattr).collect::<Xattrs>(),
        link: entry.link,
    };
    writer.create(name, file, tar)
}

/// What makes a fixed VHD of an image of `size` bytes, behind it (Virtual Hard Disk Image Format Specification 1.0).
#[must_use]
pub fn vhd_footer(size: u64, root: &Hash) -> [u8; 512] {
    let mut b = [0; 512];
    b[0..8].copy_from_slice(b"conectix");
    b[8..12].copy_from_slice(&2u32.to_be_bytes()); // features: the reserved bit
    b[12..16].copy_from_slice(&0x0001_0000u32.to_be_bytes()); // format version 1.0
    b[16..24].fill(0xff); // no dynamic header
    b[32..36].copy_from_slice(&0x000a_0000u32.to_be_bytes()); // creator version
    b[40..48].copy_from_slice(&size.to_be_bytes());
    b[48..56].copy_from_slice(&size.to_be_bytes());
    b[60..64].copy_from_slice(&2u32.to_be_bytes()); // fixed
    b[68..84].copy_from_slice(&derived_uuid("parma vhd", root));
    let sum: u32 = b.iter().map(|byte| u32::from(*byte)).sum();
    b[64..68].copy_from_slice(&(!sum).to_be_bytes());
    b
}
