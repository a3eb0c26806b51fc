//! Data volumes: encrypted disks that outlive a guest, made and looked at without one, and without root.
//!
//! A volume is what [`parma_guest::target::volume`] says: blocks of 4096 bytes, each under AES-256-GCM with a random nonce
//! and its own position, then 28 bytes (tag, nonce) for each. There is no header; where everything is follows from the
//! file's size. A block that was never written has 28 zeros, and cannot be read. `docs/storage.md` is the format's
//! description.
//!
//! Whoever keeps the file can put an older state of it, or of single blocks, in its place: tags on the same disk cannot
//! tell. What they cannot do is read it, change it, or move a block.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use anyhow::{Context as _, Result, bail, ensure};
use parma_guest::target::ext4::{BLOCK, empty};
use parma_guest::target::volume::{self as format, Header, Layout, SECTORS, TUPLE};
use zeroize::Zeroizing;

/// Bytes of a key.
const KEY: usize = 32;
/// Bytes of a block's authentication tag and of its nonce.
const TAG: usize = 16;
const NONCE: usize = 12;
/// Most places that a check names.
const SHOWN: usize = 16;

const _: () = assert!((TAG + NONCE) as u64 == TUPLE);

/// A volume's key. It is wiped when it is dropped, and never shown.
pub struct Key(Zeroizing<[u8; KEY]>);

impl Key {
    /// Reads a key: 32 bytes, or 64 hexadecimal digits with or without a newline.
    ///
    /// # Errors
    /// It is something else, or cannot be read. The error says nothing of the content.
    pub fn read(source: &mut impl Read) -> Result<Self> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(2 * KEY + 2));
        source.take(2 * KEY as u64 + 2).read_to_end(&mut bytes).context("the key cannot be read")?;
        let mut key = Zeroizing::new([0; KEY]);
        if let Ok(raw) = <&[u8; KEY]>::try_from(&bytes[..]) {
            key.copy_from_slice(raw);
            return Ok(Self(key));
        }
        let digits = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        ensure!(
            digits.len() == 2 * KEY && digits.iter().all(u8::is_ascii_hexdigit),
            "a key is 32 bytes or 64 hexadecimal digits: make one with `openssl rand -out FILE 32`"
        );
        let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
        for (byte, pair) in key.iter_mut().zip(digits.chunks(2)) {
            *byte = digit(pair[0]) << 4 | digit(pair[1]);
        }
        Ok(Self(key))
    }

    /// Its bytes, for whoever seals them.
    #[must_use]
    pub fn secret(&self) -> &[u8; KEY] {
        &self.0
    }

    /// The volume's id, which policies name it by: it says which key, and nothing of the key.
    #[must_use]
    pub fn id(&self) -> String {
        format::id(&self.0).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An open volume.
pub struct Volume {
    file: File,
    cipher: Aes256Gcm,
    layout: Layout,
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is as it was written under this key.
    Whole,
    /// It was never written.
    Unwritten,
    /// It is not what was written here under this key.
    Damaged,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Blocks that are as they were written.
    pub whole: u64,
    /// Blocks that were never written.
    pub unwritten: u64,
    /// Blocks that are not what was written there.
    pub damaged: u64,
    /// The first of those, at most 16.
    pub damaged_at: Vec<u64>,
}

impl Volume {
    /// Makes a volume of `bytes` bytes with an empty filesystem in it. The file appears whole or not at all, takes only the
    /// room that is used, and is its owner's alone.
    ///
    /// # Errors
    /// It exists, its directory cannot be written, or the size is out of range.
    pub fn create(path: &Path, bytes: u64, key: &Key) -> Result<Self> {
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let cannot =
            || format!("{}: cannot be written: is its directory there and writable?", path.display());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".parma-").permissions(fs::Permissions::from_mode(0o600));
        let temporary = builder.tempfile_in(directory).with_context(cannot)?;
        temporary.as_file().set_len(bytes).with_context(cannot)?;
        let volume = Self::new(temporary.reopen().with_context(cannot)?, key)?;
        let blocks =
            u32::try_from(volume.layout.data_blocks).ok().filter(|blocks| *blocks <= empty::MAX_BLOCKS);
        let blocks = blocks.with_context(|| format!("{bytes} bytes: more than a volume can have"))?;
        let written = empty::write(blocks, |block, content| {
            let mut content = *content;
            if block == 0 {
                content[..Header::LENGTH].copy_from_slice(&Header { generation: 0 }.encode());
            }
            volume.write(block.into(), &content)
        });
        match written {
            Ok(()) => {}
            Err(Some(error)) => return Err(error.context(cannot())),
            Err(None) => bail!("{bytes} bytes are too few for a volume: give at least 17M"),
        }
        volume.file.sync_all().with_context(cannot)?;
        temporary.persist_noclobber(path).map_err(|error| error.error).with_context(|| {
            format!("{}: a volume is never written over: remove it, or choose another name", path.display())
        })?;
        Ok(volume)
    }

    /// Opens a volume for reading. Whether the key is its key shows when a block is read.
    ///
    /// # Errors
    /// The file cannot be read, is no regular file, or has no whole number of sectors.
    pub fn open(path: &Path, key: &Key) -> Result<Self> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path);
        let file = file.with_context(|| format!("{}: cannot be opened", path.display()))?;
        ensure!(file.metadata()?.is_file(), "{}: not a regular file", path.display());
        Self::new(file, key).with_context(|| path.display().to_string())
    }

    fn new(file: File, key: &Key) -> Result<Self> {
        let bytes = file.metadata()?.len();
        ensure!(bytes % 512 == 0, "{bytes} bytes are no whole number of sectors");
        let layout = Layout::of(bytes);
        ensure!(layout.data_blocks > 0, "{bytes} bytes are too few for a volume");
        Ok(Self { file, cipher: Aes256Gcm::new(key.0.as_slice().try_into()?), layout })
    }

    /// How often guests mounted it writable; `None` where its first block is not one of a volume. Whoever knows a later
    /// number knows that this is an older state of it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn generation(&self) -> io::Result<Option<u64>> {
        let mut content = [0; BLOCK];
        if self.read(0, &mut content)? != State::Whole {
            return Ok(None);
        }
        let header = content.first_chunk().and_then(Header::parse);
        Ok(header.map(|header| header.generation))
    }

    /// Blocks of data.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.layout.data_blocks
    }

    /// Where a block's tag and nonce are.
    fn tuple_at(&self, block: u64) -> u64 {
        self.layout.data_blocks * BLOCK as u64 + block * TUPLE
    }

    fn write(&self, block: u64, content: &[u8; BLOCK]) -> Result<()> {
        let mut nonce = [0; NONCE];
        rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())
            .context("no randomness")?;
        let mut sealed = *content;
        let tag = self
            .cipher
            .encrypt_inout_detached(&nonce.into(), &associated(block, &nonce), sealed.as_mut_slice().into())
            .ok()
            .context("a block is too long for AES-GCM")?;
        self.file.write_all_at(&sealed, block * BLOCK as u64)?;
        self.file.write_all_at(&[&tag[..], &nonce].concat(), self.tuple_at(block))?;
        Ok(())
    }

    /// Reads and checks a block; `content` is its plaintext only where it is whole.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, block: u64, content: &mut [u8; BLOCK]) -> io::Result<State> {
        let mut tuple = [0; TUPLE as usize];
        self.file.read_exact_at(&mut tuple, self.tuple_at(block))?;
        if tuple == [0; TUPLE as usize] {
            return Ok(State::Unwritten);
        }
        self.file.read_exact_at(content, block * BLOCK as u64)?;
        let (tag, nonce) = tuple.split_at(TAG);
        let (Ok(tag), Ok(nonce)) = (<[u8; TAG]>::try_from(tag), <[u8; NONCE]>::try_from(nonce)) else {
            return Ok(State::Damaged);
        };
        let opened = self.cipher.decrypt_inout_detached(
            &nonce.into(),
            &associated(block, &nonce),
            content.as_mut_slice().into(),
            &tag.into(),
        );
        Ok(if opened.is_ok() { State::Whole } else { State::Damaged })
    }

    /// Reads every block. `each` gets those that are whole; `progress` the blocks so far.
    ///
    /// # Errors
    /// The file cannot be read, or `each` fails.
    pub fn walk(
        &self,
        mut each: impl FnMut(u64, &[u8; BLOCK]) -> Result<()>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Report> {
        let mut report = Report::default();
        let mut content = [0; BLOCK];
        for block in 0..self.blocks() {
            match self.read(block, &mut content).with_context(|| format!("block {block}"))? {
                State::Whole => {
                    report.whole += 1;
                    each(block, &content)?;
                }
                State::Unwritten => report.unwritten += 1,
                State::Damaged => {
                    report.damaged += 1;
                    if report.damaged_at.len() < SHOWN {
                        report.damaged_at.push(block);
                    }
                }
            }
            if block % 256 == 255 {
                progress(block + 1);
            }
        }
        Ok(report)
    }
}

/// What is authenticated beside a block: its position in sectors, and its nonce.
fn associated(block: u64, nonce: &[u8; NONCE]) -> [u8; 8 + NONCE] {
    let mut data = [0; 8 + NONCE];
    data[..8].copy_from_slice(&(block * SECTORS).to_le_bytes());
    data[8..].copy_from_slice(nonce);
    data
}
