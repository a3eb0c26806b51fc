//! Reads OCI image layouts: a directory with `oci-layout`, `index.json` and `blobs/sha256/`.
//!
//! What this module promises: every byte it hands out was hashed and is what the manifest's digest names
//! (a layer's reader fails at its end where the digest is wrong, so nothing may use the result before
//! that); no name from the layout ever becomes a path except a digest of 64 lower-case hex digits; symbolic
//! links in the layout are not followed; and whatever it does not know it refuses by name.
//!
//! Format: OCI image-spec v1.1 (image-layout.md, image-index.md, manifest.md, config.md), and the Docker
//! manifest v2 schema 2 media types that skopeo and docker keep when they copy.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use oci_spec::image::{
    Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os,
};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

/// Largest JSON document (index, manifest, configuration) that is read, in bytes.
pub const MAX_JSON: u64 = 4 << 20;
/// Most layers an image may have. (Docker stops at 127.)
pub const MAX_LAYERS: usize = 256;
/// Deepest nesting of image indexes.
pub const MAX_INDEX_DEPTH: usize = 4;

pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
pub(crate) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
pub(crate) const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
pub(crate) const LAYER_TYPES: [(&str, Compression); 6] = [
    ("application/vnd.oci.image.layer.v1.tar", Compression::None),
    ("application/vnd.oci.image.layer.v1.tar+gzip", Compression::Gzip),
    ("application/vnd.oci.image.layer.v1.tar+zstd", Compression::Zstd),
    ("application/vnd.docker.image.rootfs.diff.tar", Compression::None),
    ("application/vnd.docker.image.rootfs.diff.tar.gzip", Compression::Gzip),
    ("application/vnd.docker.image.rootfs.diff.tar.zstd", Compression::Zstd),
];

/// Where an image is: `oci:DIR[:TAG]`, split at the first colon after the directory, as skopeo does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The layout's directory.
    pub dir: PathBuf,
    /// The image's name in the layout; none is needed where there is only one image.
    pub tag: Option<String>,
}

impl Reference {
    /// Parses `oci:DIR[:TAG]`.
    ///
    /// # Errors
    /// Another transport than `oci:`, an empty directory or an empty tag.
    pub fn parse(text: &str) -> Result<Self> {
        let usage = || format!("image reference {text:?}: write oci:DIR or oci:DIR:TAG");
        let rest = text.strip_prefix("oci:").with_context(usage)?;
        let (dir, tag) = match rest.split_once(':') {
            Some((dir, tag)) => (dir, Some(tag)),
            None => (rest, None),
        };
        ensure!(!dir.is_empty() && tag != Some(""), usage());
        Ok(Self { dir: dir.into(), tag: tag.map(str::to_owned) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci:{}", self.dir.display())?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// A SHA-256 digest as the OCI specifications write it: `sha256:` and 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Parses `sha256:HEX`. This is the only way from a layout's text to a file name below `blobs/`.
    ///
    /// # Errors
    /// Any other algorithm, length or character.
    pub fn parse(text: &str) -> Result<Self> {
        let hex = text.strip_prefix("sha256:").with_context(|| {
            format!("digest {text:?}: only sha256 is supported; copy the image with skopeo")
        })?;
        Self::from_hex(hex)
            .with_context(|| format!("digest {text:?}: 64 lower-case hex digits must follow sha256:"))
    }

    fn from_hex(hex: &str) -> Option<Self> {
        let nibble = |c: &u8| match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        };
        let digits = hex.as_bytes().iter().map(nibble).collect::<Option<Vec<u8>>>()?;
        let digits: [u8; 64] = digits.try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(Self(bytes))
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of all that was hashed.
    pub(crate) fn from_hash(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }

    /// The 64 hex digits without the algorithm.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a layer's tar is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, one or more members.
    Gzip,
    /// Zstandard, one or more frames.
    Zstd,
}

/// A layer as the manifest and the configuration describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob as stored.
    pub digest: Digest,
    /// Digest of the decompressed tar, from the image's configuration.
    pub diff_id: Digest,
    /// The manifest's media type, one of those this module knows.
    pub media_type: String,
    /// Bytes of the blob as stored.
    pub size: u64,
    /// What the media type says of the packing.
    pub compression: Compression,
}

/// What an image wants its containers to be: the `config` object of the image's configuration.
/// Absent and `null` fields are empty here; no string holds a NUL byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// What to run; precedes `cmd`.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the command where there is no entry point.
    pub cmd: Vec<String>,
    /// Working directory; empty where the image names none.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` and so on; empty where the image names none.
    pub user: String,
    /// Signal that asks the container to stop, as `SIGTERM`, `TERM` or a number.
    pub stop_signal: Option<String>,
    /// Mount points of `VOLUME`, sorted.
    pub volumes: Vec<String>,
    /// `PORT/PROTOCOL`, sorted.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// An image of a layout: configuration and layers, whose JSON has been read and checked. The layers' bytes
/// are read, and checked, by [`Image::open_layer`].
#[derive(Clone, Debug)]
pub struct Image {
    /// What was asked for.
    pub reference: Reference,
    /// Digest of the manifest that was chosen.
    pub manifest: Digest,
    /// The configuration.
    pub config: Config,
    /// Layers, lowest first.
    pub layers: Vec<LayerBlob>,
}

impl Image {
    /// Opens the image that `reference` names.
    ///
    /// # Errors
    /// The directory is no image layout, the tag does not exist (the error lists those that do) or is
    /// ambiguous, a blob is missing or not what its digest says, JSON is malformed or larger than
    /// [`MAX_JSON`], a media type is unknown, or the image is not for linux/amd64.
    pub fn open(reference: &Reference) -> Result<Self> {
        let layout = Layout::new(&reference.dir);
        let index = layout.index()?;
        Self::of(&layout, layout.choose(&index, reference)?, reference)
    }

    /// The image of this descriptor.
    pub(crate) fn of(layout: &Layout<'_>, descriptor: &Descriptor, reference: &Reference) -> Result<Self> {
        let (manifest_digest, manifest) = layout.resolve(descriptor, 0)?;

        let config_descriptor = manifest.config();
        let config_type = config_descriptor.media_type().to_string();
        ensure!(
            CONFIG_TYPES.contains(&config_type.as_str()),
            "manifest {manifest_digest}: configuration of unknown media type {config_type:?}: this is no \
             container image (an artifact, perhaps)"
        );
        let (config_digest, config): (_, ImageConfiguration) = layout.read_json(config_descriptor)?;
        ensure!(
            *config.os() == Os::Linux && *config.architecture() == Arch::Amd64,
            "configuration {config_digest}: the image is for {}/{}, and Parma runs linux/amd64: \
             copy that platform's image",
            config.os(),
            config.architecture()
        );
        let layers = layers(&manifest, &config).with_context(|| format!("manifest {manifest_digest}"))?;
        let config = parse_config(&config).with_context(|| format!("configuration {config_digest}"))?;
        Ok(Self { reference: reference.clone(), manifest: manifest_digest, config, layers })
    }

    /// Opens the decompressed tar of layer `index` (0 is the lowest).
    ///
    /// The reader fails, instead of returning its end, where the blob's digest or the tar's (the diff id)
    /// is not the one that the image names: nothing may rely on the bytes before that end was seen.
    ///
    /// # Errors
    /// No such layer, or the blob is missing, not a regular file or of the wrong size.
    pub fn open_layer(&self, index: usize) -> Result<LayerReader> {
        let layer = self
            .layers
            .get(index)
            .with_context(|| format!("{}: no layer {index}, it has {}", self.reference, self.layers.len()))?;
        let layout = Layout::new(&self.reference.dir);
        LayerReader::new(layout.open_blob(layer.digest, layer.size)?, layer)
            .with_context(|| format!("layer {}", layer.digest))
    }
}

/// The manifest descriptor of `index` that goes by the name `tag`.
fn choose<'a>(index: &'a ImageIndex, tag: Option<&str>) -> Result<&'a Descriptor> {
    let name = |d: &'a Descriptor| d.annotations().as_ref().and_then(|a| a.get(REF_NAME)).map(String::as_str);
    let all: Vec<&Descriptor> = index.manifests().iter().collect();
    let mut names: Vec<&str> = all.iter().filter_map(|d| name(d)).collect();
    names.sort_unstable();
    names.dedup();
    ensure!(!all.is_empty(), "index.json lists no image");
    let found: Vec<&Descriptor> = match tag {
        Some(tag) => all.into_iter().filter(|d| name(d) == Some(tag)).collect(),
        None => all,
    };
    match (found.as_slice(), tag) {
        ([], Some(tag)) if names.is_empty() => {
            bail!("no image has the tag {tag:?}: none has any, leave it out")
        }
        ([], Some(tag)) => bail!("no image has the tag {tag:?}: there are {}", names.join(", ")),
        ([one], _) => Ok(one),
        (many, _) if many.iter().all(|d| d.digest() == many[0].digest()) => Ok(many[0]),
        (_, None) if !names.is_empty() => {
            bail!("several images: add a tag, one of {}", names.join(", "))
        }
        (many, _) => for_this_platform(many),
    }
}

/// The one descriptor for linux/amd64 among several.
fn for_this_platform<'a>(all: &[&'a Descriptor]) -> Result<&'a Descriptor> {
    let platform = |d: &Descriptor| match d.platform() {
        Some(p) => format!("{}/{}", p.os(), p.architecture()),
        None => "no platform".to_owned(),
    };
    let found: Vec<_> = all.iter().filter(|d| platform(d) == "linux/amd64").collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => {
            let there: Vec<_> = all.iter().map(|d| platform(d)).collect();
            bail!("no image for linux/amd64: there are {}", there.join(", "))
        }
        _ => {
            bail!("{} images for linux/amd64 under one name: copy one of them to its own layout", found.len())
        }
    }
}

/// The layers of a manifest, each with the diff id that the configuration gives it.
fn layers(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<LayerBlob>> {
    let (blobs, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
    ensure!(config.rootfs().typ() == "layers", "unknown rootfs type {:?}", config.rootfs().typ());
    ensure!(!blobs.is_empty(), "the image has no layers");
    ensure!(blobs.len() <= MAX_LAYERS, "{} layers, the limit is {MAX_LAYERS}: squash the image", blobs.len());
    ensure!(
        blobs.len() == diff_ids.len(),
        "{} layers, but the configuration has {} diff ids: the image is damaged, copy it again",
        blobs.len(),
        diff_ids.len()
    );
    blobs
        .iter()
        .zip(diff_ids)
        .map(|(blob, diff_id)| {
            let media_type = blob.media_type().to_string();
            let (_, compression) = LAYER_TYPES
                .into_iter()
                .find(|(name, _)| *name == media_type)
                .with_context(|| format!("layer of unknown media type {media_type:?}: tar, gzip and zstd are known"))?;
            let (digest, diff_id) = (Digest::parse(blob.digest().as_ref())?, Digest::parse(diff_id)?);
            ensure!(
                compression != Compression::None || digest == diff_id,
                "layer {digest}: uncompressed, but its diff id is {diff_id}: the image is damaged, copy it again"
            );
            Ok(LayerBlob { digest, diff_id, media_type, size: blob.size(), compression })
        })
        .collect()
}

fn parse_config(image: &ImageConfiguration) -> Result<Config> {
    let Some(config) = image.config() else { return Ok(Config::default()) };
    let sorted = |set: &Option<Vec<String>>| {
        let mut list = set.clone().unwrap_or_default();
        list.sort_unstable();
        list
    };
    let config = Config {
        env: config.env().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().filter(|s| !s.is_empty()),
        volumes: sorted(config.volumes()),
        exposed_ports: sorted(config.exposed_ports()),
        labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
    };
    let Config { env, entrypoint, cmd, working_dir, user, stop_signal, volumes, .. } = &config;
    let singles = [working_dir, user].into_iter().chain(stop_signal);
    for text in [env, entrypoint, cmd, volumes].into_iter().flatten().chain(singles) {
        ensure!(!text.contains('\0'), "{text:?} holds a NUL character, which no process can be given");
    }
    Ok(config)
}

/// A document's own media type, where it states one, must be the one it was asked for under: otherwise one
/// blob could be read as a manifest here and as an index elsewhere (CVE-2021-41190).
fn check_schema(digest: Digest, version: u32, own: Option<&MediaType>, expected: &str) -> Result<()> {
    ensure!(version == 2, "{digest}: schema version {version}, known is 2: copy the image again with skopeo");
    if let Some(own) = own {
        ensure!(own.as_ref() == expected, "{digest}: says it is {own}, was referred to as {expected}");
    }
    Ok(())
}

/// The files of one layout.
pub(crate) struct Layout<'a> {
    dir: &'a Path,
    /// Gets a document that is going to be read into the layout, where it may be missing.
    fetch: Option<Fetch<'a>>,
}

/// Gets the blob of a descriptor into a layout.
pub(crate) type Fetch<'a> = &'a dyn Fn(&Descriptor) -> Result<()>;

impl<'a> Layout<'a> {
    pub(crate) fn new(dir: &'a Path) -> Self {
        Self { dir, fetch: None }
    }

    /// One that is being filled.
    pub(crate) fn filled_by(dir: &'a Path, fetch: Fetch<'a>) -> Self {
        Self { dir, fetch: Some(fetch) }
    }

    /// What `index.json` says.
    pub(crate) fn index(&self) -> Result<ImageIndex> {
        self.check_version()?;
        parse_json(&self.read_index()?, &self.dir.join("index.json"))
    }

    /// The descriptor in `index` that `reference` names.
    pub(crate) fn choose<'i>(&self, index: &'i ImageIndex, reference: &Reference) -> Result<&'i Descriptor> {
        choose(index, reference.tag.as_deref()).with_context(|| format!("image {reference}"))
    }

    fn check_version(&self) -> Result<()> {
        let path = self.dir.join("oci-layout");
        let remedy = || {
            format!(
                "{} is no OCI image layout: make one with parma image pull docker://IMAGE --to oci:DIR:TAG",
                self.dir.display()
            )
        };
        let mut text = Vec::new();
        open_regular(&path)
            .with_context(remedy)?
            .take(MAX_JSON)
            .read_to_end(&mut text)
            .with_context(remedy)?;
        let layout: OciLayout = parse_json(&text, &path)?;
        ensure!(
            layout.image_layout_version().starts_with("1."),
            "{}: image layout version {:?}, known is 1.0.0",
            path.display(),
            layout.image_layout_version()
        );
        Ok(())
    }

    fn read_index(&self) -> Result<Vec<u8>> {
        let path = self.dir.join("index.json");
        let mut text = Vec::new();
        open_regular(&path)?
            .take(MAX_JSON + 1)
            .read_to_end(&mut text)
            .with_context(|| path.display().to_string())?;
        ensure!(text.len() as u64 <= MAX_JSON, "{}: larger than {MAX_JSON} bytes", path.display());
        Ok(text)
    }

    /// Follows `descriptor` through nested indexes to the manifest for linux/amd64.
    fn resolve(&self, descriptor: &Descriptor, depth: usize) -> Result<(Digest, ImageManifest)> {
        let media_type = descriptor.media_type().to_string();
        if MANIFEST_TYPES.contains(&media_type.as_str()) {
            let (digest, manifest): (_, ImageManifest) = self.read_json(descriptor)?;
            check_schema(digest, manifest.schema_version(), manifest.media_type().as_ref(), &media_type)?;
            return Ok((digest, manifest));
        }
        ensure!(
            INDEX_TYPES.contains(&media_type.as_str()),
            "{}: unknown media type {media_type:?}: neither image manifest nor index",
            descriptor.digest()
        );
        ensure!(depth < MAX_INDEX_DEPTH, "image indexes nested deeper than {MAX_INDEX_DEPTH}");
        let (digest, index): (_, ImageIndex) = self.read_json(descriptor)?;
        check_schema(digest, index.schema_version(), index.media_type().as_ref(), &media_type)?;
        let all: Vec<&Descriptor> = index.manifests().iter().collect();
        let one = match all.as_slice() {
            [one] => one,
            many => for_this_platform(many).with_context(|| format!("image index {digest}"))?,
        };
        self.resolve(one, depth + 1)
    }

    fn read_json<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<(Digest, T)> {
        let digest = Digest::parse(descriptor.digest().as_ref())?;
        let size = descriptor.size();
        ensure!(size <= MAX_JSON, "{digest}: a JSON document of {size} bytes, the limit is {MAX_JSON}");
        if let Some(fetch) = self.fetch {
            fetch(descriptor)?;
        }
        let mut blob = self.open_blob(digest, size)?;
        let mut text = Vec::new();
        blob.read_to_end(&mut text).with_context(|| format!("blob {digest}"))?;
        Ok((digest, parse_json(&text, &self.blob_path(digest))?))
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn open_blob(&self, digest: Digest, size: u64) -> Result<BlobReader> {
        let path = self.blob_path(digest);
        let file = open_regular(&path)
            .with_context(|| format!("blob {digest} cannot be opened: copy the image again"))?;
        let found = file.metadata().with_context(|| path.display().to_string())?.len();
        ensure!(
            found == size,
            "{}: {found} bytes, the image says {size}: the layout is damaged, copy the image again",
            path.display()
        );
        Ok(BlobReader { path, file, left: size, hash: Sha256::new(), digest })
    }
}

/// Opens a regular file without following a symbolic link to it and without waiting on a FIFO.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    use rustix::fs::OFlags;
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let context = || path.display().to_string();
    let file = File::options()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .with_context(context)?;
    ensure!(file.metadata().with_context(context)?.is_file(), "{}: not a regular file", path.display());
    Ok(file)
}

pub(crate) fn parse_json<T: DeserializeOwned>(text: &[u8], path: &Path) -> Result<T> {
    serde_json::from_slice(text).with_context(|| {
        format!("{}: malformed JSON: the layout is damaged, copy the image again", path.display())
    })
}

fn bad_data(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A blob being read; fails at its end where the digest is wrong.
pub(crate) struct BlobReader {
    path: PathBuf,
    file: File,
    left: u64,
    hash: Sha256,
    digest: Digest,
}

impl Read for BlobReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = (&mut self.file).take(self.left).read(buf)?;
        self.hash.update(&buf[..n]);
        self.left -= n as u64;
        if n == 0 {
            let found = Digest::from_hash(self.hash.clone());
            if self.left != 0 || found != self.digest {
                return Err(bad_data(format!(
                    "{}: content is {found}, the image says {}: the layout is damaged, copy the image again",
                    self.path.display(),
                    self.digest
                )));
            }
        }
        Ok(n)
    }
}

/// The decompressed tar of a layer. See [`Image::open_layer`] for what its end means.
pub struct LayerReader {
    source: Source,
    hash: Sha256,
    diff_id: Digest,
    digest: Digest,
}

enum Source {
    Plain(BlobReader),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<BlobReader>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<BlobReader>>>),
}

impl LayerReader {
    fn new(blob: BlobReader, layer: &LayerBlob) -> Result<Self> {
        let buffered = |blob| BufReader::with_capacity(1 << 18, blob);
        let source = match layer.compression {
            Compression::None => Source::Plain(blob),
            Compression::Gzip => Source::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(buffered(blob)))),
            Compression::Zstd => {
                Source::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(buffered(blob))?))
            }
        };
        Ok(Self { source, hash: Sha256::new(), diff_id: layer.diff_id, digest: layer.digest })
    }

    /// Reads what is left and checks both digests, for readers that stop at the tar's end marker.
    ///
    /// # Errors
    /// As reading to the end: a damaged blob, or the wrong digest.
    pub fn finish(mut self) -> Result<()> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(())
    }

    fn check_end(&mut self) -> io::Result<()> {
        let blob: &mut dyn Read = match &mut self.source {
            Source::Plain(blob) => blob,
            Source::Gzip(decoder) => decoder.get_mut(),
            Source::Zstd(decoder) => decoder.get_mut(),
        };
        io::copy(blob, &mut io::sink())?;
        let found = Digest::from_hash(self.hash.clone());
        if found != self.diff_id {
            return Err(bad_data(format!(
                "layer {}: its tar is {found}, the configuration says {}: the image is damaged, copy it again",
                self.digest, self.diff_id
            )));
        }
        Ok(())
    }
}

impl Read for LayerReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let digest = self.digest;
        let read = match &mut self.source {
            Source::Plain(blob) => blob.read(buf),
            Source::Gzip(decoder) => decoder.read(buf),
            Source::Zstd(decoder) => decoder.read(buf),
        };
        let n = read.map_err(|e| io::Error::new(e.kind(), anyhow!("layer {digest}: {e}")))?;
        self.hash.update(&buf[..n]);
        if n == 0 {
            self.check_end()?;
        }
        Ok(n)
    }
}
