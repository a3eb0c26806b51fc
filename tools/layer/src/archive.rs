//! What `docker save` and `podman save` write: a tar of layers, configurations and a list of the images in it.
//!
//! Names in the tar are only compared; none becomes a path. The blobs are given the manifest that they lack, the same
//! for the same archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use oci_spec::distribution;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::oci::{CONFIG_TYPES, Digest, LAYER_TYPES, MANIFEST_TYPES, MAX_JSON, MAX_LAYERS, open_regular};
use crate::pull::{Blob, Source};

/// Most files in an archive.
const MAX_FILES: usize = 1 << 14;
/// Most links from one name to the next: docker refers to a layer that an image has twice.
const MAX_LINKS: usize = 4;
/// The list of images.
const LIST: &str = "manifest.json";

/// One image of an archive.
pub(crate) struct Archive {
    file: File,
    wanted: Option<String>,
    blobs: BTreeMap<Digest, Place>,
}

enum Place {
    /// First byte and length in the file.
    At(u64, u64),
    Made(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The files of an archive: where each is, or what it is a link to.
type Files = BTreeMap<PathBuf, Result<(u64, u64), PathBuf>>;

impl Archive {
    /// The image that is called so in this file; without a name, its only one.
    pub(crate) fn open(path: &Path, wanted: Option<&str>) -> Result<Self> {
        Ok(Self { file: open_regular(path)?, wanted: wanted.map(str::to_owned), blobs: BTreeMap::new() })
    }

    fn files(&self) -> Result<Files> {
        let mut files = Files::new();
        let mut archive = tar::Archive::new(&self.file);
        for entry in archive.entries_with_seek().context("no tar: unpack it, if it is compressed")? {
            let entry = entry.context("the tar is damaged, or compressed: unpack it")?;
            ensure!(files.len() < MAX_FILES, "more than {MAX_FILES} files");
            let path = entry.path().context("a name in the tar")?.into_owned();
            let kind = entry.header().entry_type();
            if kind.is_file() {
                files.insert(path, Ok((entry.raw_file_position(), entry.size())));
            } else if kind.is_symlink() || kind.is_hard_link() {
                let to = entry.link_name().context("a link in the tar")?.context("a link to nothing")?;
                let from =
                    if kind.is_symlink() { path.parent().unwrap_or(Path::new("")) } else { Path::new("") };
                let to = lexically(&from.join(to));
                files.insert(path, Err(to));
            }
        }
        Ok(files)
    }

    fn read(&self, (start, length): (u64, u64)) -> Result<io::Take<File>> {
        let mut file = self.file.try_clone()?;
        file.seek(SeekFrom::Start(start))?;
        Ok(file.take(length))
    }

    fn document(&self, place: (u64, u64)) -> Result<Vec<u8>> {
        ensure!(place.1 <= MAX_JSON, "larger than {MAX_JSON} bytes");
        let mut text = Vec::new();
        self.read(place)?.read_to_end(&mut text)?;
        Ok(text)
    }

    fn choose(&self, list: Vec<Listed>) -> Result<Listed> {
        let name = |text: &str| text.parse().map(|name: distribution::Reference| name.whole());
        let tags = |listed: &Listed| listed.repo_tags.clone().unwrap_or_default();
        let all: Vec<_> = list.iter().flat_map(tags).collect();
        let all = all.join(", ");
        let mut found: Vec<_> = match &self.wanted {
            None => list,
            Some(wanted) => {
                let wanted = name(wanted).with_context(|| format!("{wanted:?} is no name of an image"))?;
                let is_wanted =
                    |listed: &Listed| tags(listed).iter().any(|tag| name(tag).ok() == Some(wanted.clone()));
                list.into_iter().filter(is_wanted).collect()
            }
        };
        match (found.pop(), found.is_empty()) {
            (Some(one), true) => Ok(one),
            (None, _) => bail!("there is no such image in it: there are {all:?}"),
            (Some(_), false) => bail!("there are several images in it: name one of {all:?}"),
        }
    }

    /// A layer's digest and media type, by what its bytes are.
    fn layer(&self, place: (u64, u64)) -> Result<(Digest, &'static str)> {
        let mut reader = self.read(place)?;
        let (mut hash, mut buffer, mut magic) = (Sha256::new(), vec![0; 1 << 18], Vec::new());
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            if magic.len() < 4 {
                magic.extend_from_slice(&buffer[..count.min(4)]);
            }
            hash.update(&buffer[..count]);
        }
        let [plain, gzip, zstd, ..] = LAYER_TYPES.map(|(name, _)| name);
        let media_type = match magic.as_slice() {
            [0x1f, 0x8b, ..] => gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd,
            _ => plain,
        };
        Ok((Digest::from_hash(hash), media_type))
    }
}

impl Source for Archive {
    fn image(&mut self) -> Result<Blob> {
        let files = self.files()?;
        let find = |name: &str| -> Result<(u64, u64)> {
            let mut path = lexically(Path::new(name));
            for _ in 0..MAX_LINKS {
                match files.get(&path).with_context(|| format!("no file {name:?} in it"))? {
                    Ok(place) => return Ok(*place),
                    Err(to) => path.clone_from(to),
                }
            }
            bail!("{name:?} is a link to a link too often")
        };
        let list = self.document(find(LIST)?).context(LIST)?;
        let list =
            serde_json::from_slice(&list).with_context(|| format!("{LIST}: not docker's list of images"))?;
        let listed = self.choose(list)?;
        ensure!(
            listed.layers.len() <= MAX_LAYERS,
            "{} layers, the limit is {MAX_LAYERS}",
            listed.layers.len()
        );

        let mut blobs = BTreeMap::new();
        let config = find(&listed.config)?;
        let digest = Digest::of(&self.document(config).context("configuration")?);
        blobs.insert(digest, Place::At(config.0, config.1));
        let config = json!({"mediaType": CONFIG_TYPES[0], "digest": digest.to_string(), "size": config.1});
        let mut layers = Vec::new();
        for name in &listed.layers {
            let place = find(name)?;
            let (digest, media_type) = self.layer(place).with_context(|| format!("layer {name:?}"))?;
            blobs.insert(digest, Place::At(place.0, place.1));
            layers.push(json!({"mediaType": media_type, "digest": digest.to_string(), "size": place.1}));
        }
        let media_type = MANIFEST_TYPES[0].to_owned();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers})
                .to_string();
        let (digest, size) = (Digest::of(manifest.as_bytes()), manifest.len() as u64);
        blobs.insert(digest, Place::Made(manifest.into_bytes()));
        self.blobs = blobs;
        Ok(Blob { digest, size, media_type })
    }

    fn open(&mut self, blob: &Blob, from: u64) -> Result<(u64, Box<dyn Read>)> {
        match self.blobs.get(&blob.digest).with_context(|| format!("no {} in it", blob.digest))? {
            Place::Made(bytes) => Ok((0, Box::new(Cursor::new(bytes.clone())))),
            Place::At(start, length) => {
                let from = from.min(*length);
                Ok((from, Box::new(self.read((start + from, length - from))?)))
            }
        }
    }
}

/// A name without `.` and `..`.
fn lexically(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}
