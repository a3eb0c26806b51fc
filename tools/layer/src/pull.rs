//! Fills an image layout: from a registry, from another layout, or from what `docker save` writes.
//!
//! What this module promises: a blob gets its name in the layout when its digest was found to be what its descriptor says, and
//! `index.json` names an image when all its blobs are there; until then the layout's other images are what they were. What
//! came of a blob stays, as `.partial`, and is gone on with; a blob that is there is not fetched again; one that is not what
//! it should be leaves nothing. The documents are read by [`crate::oci`], so an image that it refuses is refused before a layer
//! is fetched.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use oci_spec::distribution;
use oci_spec::image::Descriptor;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::Archive;
use crate::oci::{Digest, Image, LayerBlob, Layout, MAX_JSON, REF_NAME, Reference, parse_json};
pub use crate::registry::Access;
use crate::registry::Registry;

/// Most bytes of an image's layers together.
pub const MAX_IMAGE: u64 = 256 << 30;

/// Digits of a digest that are a tag where the image has none.
const SHORT: usize = 12;

/// Where an image comes from.
#[derive(Clone, Debug)]
pub enum From {
    /// `docker://HOST/NAME[:TAG][@DIGEST]`
    Registry(distribution::Reference),
    /// `oci:DIR[:TAG]`
    Layout(Reference),
    /// `docker-archive:FILE[:NAME]`
    Archive(PathBuf, Option<String>),
}

impl From {
    /// Parses one of the three.
    ///
    /// # Errors
    /// It is none of them.
    pub fn parse(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("docker://") {
            let name: distribution::Reference = name.parse().map_err(|error| {
                anyhow!("{text:?} is no image in a registry: {error}: write docker://HOST/NAME:TAG")
            })?;
            name.digest().map(Digest::parse).transpose()?;
            return Ok(Self::Registry(name));
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = match rest.split_once(':') {
                Some((file, name)) => (file, Some(name.to_owned())),
                None => (rest, None),
            };
            ensure!(
                !file.is_empty() && name.as_deref() != Some(""),
                "{text:?}: write docker-archive:FILE or docker-archive:FILE:NAME"
            );
            return Ok(Self::Archive(file.into(), name));
        }
        ensure!(
            text.starts_with("oci:"),
            "{text:?}: write docker://HOST/NAME:TAG, oci:DIR:TAG or docker-archive:FILE"
        );
        Reference::parse(text).map(Self::Layout)
    }

    /// Where the image goes if nobody says otherwise: the directory and the tag of its own name, here.
    ///
    /// # Errors
    /// It has no name to be called by.
    pub fn usual_place(&self) -> Result<Reference> {
        let name = match self {
            Self::Registry(name) => name.clone(),
            Self::Archive(_, Some(name)) => {
                name.parse().with_context(|| format!("{name:?} is no name of an image"))?
            }
            Self::Layout(_) | Self::Archive(_, None) => bail!("where to? Add --to oci:DIR:TAG"),
        };
        let dir = name.repository().rsplit('/').next().unwrap_or_default();
        let of_digest = |text: &str| Some(Digest::parse(text).ok()?.hex()[..SHORT].to_owned());
        let tag = name.tag().map(str::to_owned).or_else(|| name.digest().and_then(of_digest));
        Ok(Reference { dir: dir.into(), tag: Some(tag.unwrap_or_else(|| "latest".into())) })
    }
}

/// A blob as its descriptor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
}

impl Blob {
    fn of(descriptor: &Descriptor) -> Result<Self> {
        let digest = Digest::parse(descriptor.digest().as_ref())?;
        Ok(Self { digest, size: descriptor.size(), media_type: descriptor.media_type().to_string() })
    }

    fn of_layer(layer: &LayerBlob) -> Self {
        Self { digest: layer.digest, size: layer.size, media_type: layer.media_type.clone() }
    }
}

/// Where blobs come from. None of it is to be believed.
pub(crate) trait Source {
    /// The image's index or manifest.
    fn image(&mut self) -> Result<Blob>;
    /// The bytes of a blob from this one on, or from an earlier one; which it is.
    fn open(&mut self, blob: &Blob, from: u64) -> Result<(u64, Box<dyn Read>)>;
}

/// Another layout.
struct Other {
    reference: Reference,
}

impl Source for Other {
    fn image(&mut self) -> Result<Blob> {
        let layout = Layout::new(&self.reference.dir);
        Blob::of(layout.choose(&layout.index()?, &self.reference)?)
    }

    fn open(&mut self, blob: &Blob, _from: u64) -> Result<(u64, Box<dyn Read>)> {
        Ok((0, Box::new(Layout::new(&self.reference.dir).open_blob(blob.digest, blob.size)?)))
    }
}

/// What came of a pull.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image, in its layout.
    pub image: Image,
    /// Bytes that were fetched now.
    pub fetched: u64,
    /// Bytes that were there before.
    pub present: u64,
}

/// What a pull is at: the blob's number, how many there are, the bytes of it that are there, and how many it has.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The layer's number, from 1.
    pub layer: usize,
    /// How many layers there are.
    pub layers: usize,
    /// Its bytes that are there.
    pub bytes: u64,
    /// All its bytes.
    pub size: u64,
}

/// Gets an image into the layout and under the tag of `to`; the layout is made where there is none. Of several platforms, it
/// gets linux/amd64.
///
/// # Errors
/// The source cannot be read, refuses, or gives other bytes than digests say; the image is none that Parma runs, or
/// larger than [`MAX_IMAGE`]; the layout cannot be written, or has no tag.
pub fn pull(
    from: &From,
    to: &Reference,
    access: Access,
    progress: &mut dyn FnMut(Progress),
) -> Result<Pulled> {
    let tag = to.tag.as_deref().with_context(|| format!("{to}: add a tag, oci:DIR:TAG"))?;
    let mut source: Box<dyn Source> = match from {
        From::Registry(name) => Box::new(Registry::new(name.clone(), access)?),
        From::Layout(reference) => Box::new(Other { reference: reference.clone() }),
        From::Archive(file, name) => Box::new(Archive::open(file, name.as_deref())?),
    };
    let top = source.image()?;
    let store = Store::open(&to.dir)?;
    let source = RefCell::new(source);
    let counts = RefCell::new((0, 0));
    let get = |blob: &Blob, told: &mut dyn FnMut(u64)| -> Result<()> {
        let fetched = store
            .get(&mut **source.borrow_mut(), blob, told)
            .with_context(|| format!("blob {}", blob.digest))?;
        let (now, before) = &mut *counts.borrow_mut();
        *now += fetched;
        *before += blob.size - fetched.min(blob.size);
        Ok(())
    };
    let fetch = |descriptor: &Descriptor| get(&Blob::of(descriptor)?, &mut |_| {});
    let descriptor = json!({
        "mediaType": top.media_type, "digest": top.digest.to_string(), "size": top.size, "annotations": {REF_NAME: tag},
    });
    let parsed: Descriptor =
        serde_json::from_value(descriptor.clone()).context("the source describes no image")?;
    let image = Image::of(&Layout::filled_by(&to.dir, &fetch), &parsed, to)?;
    let total = image.layers.iter().fold(0, |total: u64, layer| total.saturating_add(layer.size));
    ensure!(total <= MAX_IMAGE, "layers of {total} bytes, the limit is {MAX_IMAGE}");
    let layers = image.layers.len();
    for (index, layer) in image.layers.iter().enumerate() {
        let mut told = |bytes| progress(Progress { layer: index + 1, layers, bytes, size: layer.size });
        get(&Blob::of_layer(layer), &mut told)?;
    }
    store.name(tag, descriptor)?;
    let (fetched, present) = *counts.borrow();
    Ok(Pulled { image, fetched, present })
}

/// A layout that this process alone writes to.
struct Store {
    dir: PathBuf,
    /// Its directory, locked.
    _lock: File,
}

impl Store {
    fn open(dir: &Path) -> Result<Self> {
        let cannot = || format!("{}: no layout can be made there: may you write there?", dir.display());
        let blobs = dir.join("blobs/sha256");
        let is_new = !dir.join("oci-layout").exists();
        if is_new
            && fs::read_dir(dir)
                .is_ok_and(|mut entries| entries.any(|entry| entry.is_ok_and(|e| e.file_name() != "blobs")))
        {
            bail!(
                "{}: something else than an image layout is there: name another directory with --to",
                dir.display()
            );
        }
        fs::create_dir_all(&blobs).with_context(cannot)?;
        let lock = File::open(dir).with_context(cannot)?;
        lock.lock().with_context(|| format!("{}: cannot be locked", dir.display()))?;
        let store = Self { dir: dir.into(), _lock: lock };
        // The index first: what has `oci-layout` is a layout.
        if !dir.join("index.json").exists() {
            store.write("index.json", &json!({"schemaVersion": 2, "manifests": []}))?;
        }
        if !dir.join("oci-layout").exists() {
            store.write("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        }
        Layout::new(dir).index()?;
        Ok(store)
    }

    /// Replaces a file of the layout.
    fn write(&self, name: &str, content: &Value) -> Result<()> {
        let path = self.dir.join(name);
        let cannot = || format!("cannot write {}: is there room?", path.display());
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(&self.dir)
            .with_context(cannot)?;
        file.write_all(content.to_string().as_bytes()).with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        file.persist(&path).with_context(cannot)?;
        Ok(())
    }

    /// Calls the image of a descriptor so, and no other.
    fn name(&self, tag: &str, descriptor: Value) -> Result<()> {
        File::open(self.dir.join("blobs/sha256"))?.sync_all()?;
        let path = self.dir.join("index.json");
        let mut index: Value = parse_json(&fs::read(&path)?, &path)?;
        let manifests = index["manifests"].as_array_mut().context("index.json lists no images")?;
        manifests.retain(|manifest| manifest["annotations"][REF_NAME] != tag);
        manifests.push(descriptor);
        ensure!(
            index.to_string().len() as u64 <= MAX_JSON,
            "index.json would be larger than {MAX_JSON} bytes"
        );
        self.write("index.json", &index)
    }

    /// Gets a blob, where it is not there; the bytes that had to be fetched.
    fn get(&self, source: &mut dyn Source, blob: &Blob, told: &mut dyn FnMut(u64)) -> Result<u64> {
        let path = Layout::new(&self.dir).blob_path(blob.digest);
        // What has its name was checked, and is again by whoever reads it.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == blob.size) {
            return Ok(0);
        }
        let mut partial = Partial::open(path.with_extension("partial"))?;
        if partial.length > blob.size {
            partial.begin_again()?;
        }
        let mut fetched = 0;
        if partial.length < blob.size {
            let (start, mut reader) = source.open(blob, partial.length)?;
            if start != partial.length {
                ensure!(
                    start == 0,
                    "it was asked for from byte {} on, and came from byte {start} on",
                    partial.length
                );
                partial.begin_again()?;
            }
            let mut buffer = vec![0; 1 << 18];
            loop {
                let count = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => {
                        return Err(error)
                            .context("it was interrupted: run the command again, it goes on from there");
                    }
                };
                if partial.length + count as u64 > blob.size {
                    partial.remove();
                    bail!("it is longer than the {} bytes that its descriptor says", blob.size);
                }
                partial.append(&buffer[..count])?;
                fetched += count as u64;
                told(partial.length);
            }
            ensure!(
                partial.length == blob.size,
                "it ended after {} of {} bytes: run the command again, it goes on from there",
                partial.length,
                blob.size
            );
        }
        let found = Digest::from_hash(partial.hash.clone());
        if found != blob.digest {
            partial.remove();
            bail!(
                "its content is {found}: it was damaged on its way, or the source lies; nothing of it was kept"
            );
        }
        partial.finish(&path)?;
        Ok(fetched)
    }
}

/// The first bytes of a blob, and their hash.
struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    length: u64,
}

impl Partial {
    fn open(path: PathBuf) -> Result<Self> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o644);
        let file = options.custom_flags(flags.bits().cast_signed()).open(&path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        ensure!(file.metadata()?.is_file(), "{}: not a regular file", path.display());
        let (mut hash, mut buffer, mut length) = (Sha256::new(), vec![0; 1 << 18], 0);
        loop {
            let count = file.read(&mut buffer).with_context(|| path.display().to_string())?;
            if count == 0 {
                return Ok(Self { path, file, hash, length });
            }
            hash.update(&buffer[..count]);
            length += count as u64;
        }
    }

    fn begin_again(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.hash, self.length) = (Sha256::new(), 0);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all(bytes)
            .with_context(|| format!("cannot write {}: is there room?", self.path.display()))?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn remove(&self) {
        // The error to report is why.
        let _ = fs::remove_file(&self.path);
    }

    fn finish(self, path: &Path) -> Result<()> {
        let cannot = || format!("cannot write {}: is there room?", path.display());
        self.file.sync_all().with_context(cannot)?;
        fs::rename(&self.path, path).with_context(cannot)
    }
}
