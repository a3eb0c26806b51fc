//! Images of layers that were converted before, by content: a layer's diff id, the options and the format's
//! version name its file.
//!
//! A file under its final name is whole: it was written under another, synced and renamed. Whoever writes it
//! holds its lock, so parallel runs convert a layer once, and a run that died leaves only a file that the next
//! one overwrites. A file describes itself (see [`crate::build`]); one that does not is converted anew. The
//! cache is the user's own: whoever may write to it may choose what a policy generated from it allows.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};

use crate::build::{FORMAT_VERSION, Options, build};
use crate::oci::{Digest, Image};
use crate::tar::End;
use crate::verity::describe;

/// A converted layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedLayer {
    /// The image: ext4, then dm-verity.
    pub path: PathBuf,
    /// The dm-verity root hash.
    pub root_hash: [u8; 32],
    /// The filesystem's size in 4096-byte blocks, which is the verity device's.
    pub data_blocks: u64,
}

impl CachedLayer {
    /// The root hash as 64 hex digits.
    #[must_use]
    pub fn root_hex(&self) -> String {
        self.root_hash.iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// A directory of converted layers.
#[derive(Clone, Debug)]
pub struct Cache {
    layers: PathBuf,
}

impl Cache {
    /// The user's cache: `$PARMA_CACHE`, or else `$XDG_CACHE_HOME/parma`, or else `~/.cache/parma`.
    ///
    /// # Errors
    /// No home directory is known, or the directory cannot be made.
    pub fn open() -> Result<Self> {
        let variable = |name| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let xdg = || variable("XDG_CACHE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("parma"));
        let home = || variable("HOME").map(|p| p.join(".cache/parma"));
        let directory = variable("PARMA_CACHE").or_else(xdg).or_else(home);
        Self::at(&directory.context("no cache directory: set PARMA_CACHE or HOME")?)
    }

    /// The cache in this directory, which is made where it does not exist (readable by its owner alone).
    ///
    /// # Errors
    /// It cannot be made, or is not the user's own.
    pub fn at(directory: &Path) -> Result<Self> {
        let layers = directory.join("layers");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&layers).with_context(|| {
            format!("{}: cannot be made: set PARMA_CACHE to a writable directory", layers.display())
        })?;
        // SECURITY: T07: others could have layers of their choice measured into a policy, and with a link have files of the
        // user's own overwritten. The directory itself may be a link: the user has named it.
        for (path, meta) in
            [(directory, fs::metadata(directory)), (layers.as_path(), fs::symlink_metadata(&layers))]
        {
            let meta = meta.with_context(|| path.display().to_string())?;
            ensure!(
                meta.is_dir()
                    && meta.uid() == rustix::process::geteuid().as_raw()
                    && meta.mode() & 0o022 == 0,
                "{}: others could write to it: make it a directory of your own (chmod go-w), or set PARMA_CACHE to another",
                path.display()
            );
        }
        Ok(Self { layers })
    }

    /// Layer `index` (0 is the lowest) of an image, converted as `options` say (never with
    /// a VHD footer). `progress` gets the bytes written so far, and is not called where the cache holds the layer.
    ///
    /// # Errors
    /// As [`Image::open_layer`] and [`build`]; or the cache cannot be written.
    pub fn layer(
        &self,
        image: &Image,
        index: usize,
        options: &Options,
        progress: &mut dyn FnMut(u64),
    ) -> Result<CachedLayer> {
        let layer =
            image.layers.get(index).with_context(|| format!("{}: no layer {index}", image.reference))?;
        let key = key(layer.diff_id, options);
        let file = |ending: &str| self.layers.join(format!("{key}.{ending}"));
        let path = file("img");
        if let Some(found) = look_up(&path)? {
            return Ok(found);
        }
        let (lock_path, temporary) = (file("lock"), file("tmp"));
        let cannot = |path: &Path| format!("{}: cannot be written", path.display());
        let lock = open_new(&lock_path).with_context(|| cannot(&lock_path))?;
        lock.lock().with_context(|| format!("{}: cannot be locked", lock_path.display()))?;
        if let Some(found) = look_up(&path)? {
            return Ok(found); // another run was faster
        }
        let out = open_new(&temporary).with_context(|| cannot(&temporary))?;
        out.set_len(0).with_context(|| cannot(&temporary))?;
        let converted = convert_into(image, index, options, out, progress)
            .and_then(|()| fs::rename(&temporary, &path).with_context(|| cannot(&path)));
        if let Err(e) = converted {
            let _ = fs::remove_file(&temporary); // the error to report is the first one
            return Err(e.context(format!("layer {}", layer.digest)));
        }
        File::open(&self.layers).and_then(|d| d.sync_all()).with_context(|| cannot(&self.layers))?;
        look_up(&path)?.with_context(|| format!("{}: was changed while it was made", path.display()))
    }

    /// Whether a layer of this diff id was converted as `options` say.
    #[must_use]
    pub fn holds(&self, diff_id: Digest, options: &Options) -> bool {
        let path = self.layers.join(format!("{}.img", key(diff_id, options)));
        matches!(look_up(&path), Ok(Some(_)))
    }

    /// Removes converted layers, those first that were not used for longest, until the others have `most` bytes together;
    /// `used` stay. A guest that has one of the removed goes on: its file is open.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn trim(&self, most: u64, used: &[&Path]) -> Result<()> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.layers).with_context(|| self.layers.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "img")
                && let Ok(meta) = fs::metadata(&path)
            {
                images.push((meta.modified()?, meta.blocks() * 512, path));
            }
        }
        images.sort();
        let mut total: u64 = images.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in images {
            if total > most && !used.contains(&path.as_path()) && fs::remove_file(&path).is_ok() {
                total -= bytes;
            }
        }
        Ok(())
    }

    /// All layers of an image, lowest first, converted as Azure's policies expect. `progress` gets the layer's
    /// index and the bytes of its image written so far.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn convert(&self, image: &Image, progress: &mut dyn FnMut(usize, u64)) -> Result<Vec<CachedLayer>> {
        let layer =
            |index| self.layer(image, index, &Options::default(), &mut |bytes| progress(index, bytes));
        (0..image.layers.len()).map(layer).collect()
    }
}

/// Layer `index` of an image, from the user's cache, converted as Azure's policies expect.
///
/// # Errors
/// As [`Cache::open`] and [`Cache::layer`].
pub fn layer(image: &Image, index: usize, progress: &mut dyn FnMut(u64)) -> Result<CachedLayer> {
    Cache::open()?.layer(image, index, &Options::default(), progress)
}

/// All layers of an image, lowest first, from the user's cache.
///
/// # Errors
/// As [`Cache::open`] and [`Cache::convert`].
pub fn convert(image: &Image, progress: &mut dyn FnMut(usize, u64)) -> Result<Vec<CachedLayer>> {
    Cache::open()?.convert(image, progress)
}

/// The name of a converted layer: everything that its bytes depend on.
fn key(diff_id: Digest, options: &Options) -> String {
    let Options { convert_whiteouts, max_size, vhd: _, end: _ } = options;
    let whiteouts = if *convert_whiteouts { "overlay" } else { "plain" };
    format!("{}-v{FORMAT_VERSION}-{whiteouts}-{max_size}", diff_id.hex())
}

fn look_up(path: &Path) -> Result<Option<CachedLayer>> {
    let context = || path.display().to_string();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    let found = describe(&file).with_context(context)?;
    // When it was last used, for `Cache::trim`; a file of another user's stays as it is.
    let _ = file.set_modified(SystemTime::now());
    Ok(found.map(|p| CachedLayer { path: path.into(), root_hash: p.root, data_blocks: p.data_blocks }))
}

/// Opens a file for writing, and makes it where it does not exist; its content stays.
fn open_new(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    File::options().write(true).create(true).truncate(false).mode(0o600).custom_flags(flags).open(path)
}

fn convert_into(
    image: &Image,
    index: usize,
    options: &Options,
    out: File,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    // The layer's digest, which is checked at its end, vouches for its being whole. A footer is not kept.
    let options = Options { end: End::Anywhere, vhd: false, ..*options };
    build(image.open_layer(index)?, &out, &options, progress)?;
    out.sync_all().context("cache: cannot be synced to disk")
}
