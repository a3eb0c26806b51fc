//! From an OCI image to what a guest is asked for: layers, a container, a policy.

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::gate::fields::Serial;
use parma_guest::policy::format;
use parma_guest::wire::MAX_POLICY;
use parma_layer::cache::{self, CachedLayer};
use parma_layer::oci::{Image, Reference};
use parma_layer::verity;
use parma_policy::generate::{Container, DataVolume, GenerateOptions, VolumeContent, signal};
use parma_policy::{Inputs, Warning};
use parma_vmm::Disk;
use std::fs;
use std::path::{Path, PathBuf};

/// The annotation of a pod, or the label of an image, that holds its policy: compiled, in base64.
pub const ANNOTATION: &str = "parma.dev/policy";

/// One layer of an image, as a disk that the guest can verify.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The disk: ext4, then the dm-verity superblock and hash tree.
    pub path: PathBuf,
    /// The dm-verity root hash.
    pub root_hash: [u8; 32],
    /// Number of 4096-byte blocks before the verity superblock.
    pub data_blocks: u64,
    /// How the guest finds the disk.
    pub serial: Serial,
}

impl Layer {
    /// Its disk, read-only.
    #[must_use]
    pub fn disk(&self) -> Disk {
        Disk::layer(&self.path, self.serial.clone())
    }
}

/// A data volume and where it is mounted.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its disk.
    pub content: Content,
    /// Where.
    pub destination: String,
    /// Whether the container can only read it.
    pub read_only: bool,
}

/// What is on a data volume's disk.
#[derive(Clone, Debug)]
pub enum Content {
    /// What never changes, verified as a layer is.
    Verified(Layer),
    /// What its guests wrote, under a key that has to be released to them.
    Encrypted(Encrypted),
}

/// An encrypted data volume's disk.
#[derive(Clone, Debug)]
pub struct Encrypted {
    /// The disk.
    pub path: PathBuf,
    /// The volume's id, which follows from its key.
    pub id: [u8; 32],
    /// How the guest finds the disk.
    pub serial: Serial,
}

impl Encrypted {
    /// Its disk, which no other guest has at the same time.
    #[must_use]
    pub fn disk(&self) -> Disk {
        Disk::writable(&self.path, self.serial.clone())
    }
}

impl Content {
    /// Opens a volume that `parma volume create` made from a tar.
    ///
    /// # Errors
    /// The file cannot be read, or is none.
    pub fn verified(path: &Path) -> Result<Self> {
        let found = fs::File::open(path).and_then(|file| verity::describe(&file));
        let found = found.with_context(|| format!("cannot read the volume {}", path.display()))?;
        let found = found.with_context(|| {
            format!(
                "{} is no read-only volume: make one with `parma volume create FILE --from TAR`, or name an encrypted \
                 one with its id, FILE:…:ID",
                path.display()
            )
        })?;
        let (path, serial) = (path.to_owned(), volume_serial(&found.root)?);
        Ok(Self::Verified(Layer { path, root_hash: found.root, data_blocks: found.data_blocks, serial }))
    }

    /// The encrypted volume of this id, which `parma volume create` made with a key. Nobody can tell without the key what
    /// is in the file.
    ///
    /// # Errors
    /// The guest could not be told which disk it is.
    pub fn encrypted(path: &Path, id: [u8; 32]) -> Result<Self> {
        Ok(Self::Encrypted(Encrypted { path: path.to_owned(), id, serial: volume_serial(&id)? }))
    }

    /// What a policy knows it by.
    #[must_use]
    pub fn known_by(&self) -> VolumeContent {
        match self {
            Self::Verified(layer) => VolumeContent::Verified(layer.root_hash),
            Self::Encrypted(encrypted) => VolumeContent::Encrypted(encrypted.id),
        }
    }
}

impl Volume {
    /// A volume that is mounted here, to be written where that is possible.
    #[must_use]
    pub fn at(destination: &str, content: Content) -> Self {
        let read_only = matches!(content, Content::Verified(_));
        Self { content, destination: destination.to_owned(), read_only }
    }

    /// What a policy says of it.
    #[must_use]
    pub fn data(&self) -> DataVolume {
        let (destination, read_only) = (self.destination.clone(), self.read_only);
        DataVolume { content: self.content.known_by(), destination, read_only }
    }
}

/// The serial of a volume's disk. It follows from what the policy knows the volume by, so a volume that several containers
/// mount is one disk.
fn volume_serial(name: &[u8; 32]) -> Result<Serial> {
    let serial = format!("volume{}", crate::output::hex(&name[..7]));
    Serial::parse(&serial).map_err(|_| anyhow!("20 digits and letters are a serial"))
}

/// A compiled policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its Rego, where that is known.
    pub source: Option<String>,
    /// The bytes whose SHA-256 is HOST_DATA.
    pub image: Vec<u8>,
    /// What its author should know.
    pub warnings: Vec<Warning>,
}

impl Policy {
    /// Compiles a policy of one module with the framework.
    ///
    /// # Errors
    /// What the compiler refuses, with its place.
    pub fn compile(name: &str, source: &str) -> Result<Self> {
        let compiled =
            parma_policy::compile(&Inputs::policy(name, source)).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { source: Some(source.to_owned()), image: compiled.image, warnings: compiled.warnings })
    }

    /// Reads a policy: Rego, which is compiled, or what `parma policy compile -o` wrote, which is taken as it is.
    ///
    /// # Errors
    /// The file cannot be read, is too long, or does not compile.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read the policy {}", path.display()))?;
        if bytes.starts_with(&format::MAGIC) {
            ensure!(bytes.len() <= MAX_POLICY, "{}: more than {MAX_POLICY} bytes", path.display());
            return Ok(Self { source: None, image: bytes, warnings: Vec::new() });
        }
        let source = String::from_utf8(bytes)
            .with_context(|| format!("{} is neither Rego nor a compiled policy", path.display()))?;
        Self::compile(&path.display().to_string(), &source)
    }

    /// It as the annotation of a pod or the label of an image, named [`ANNOTATION`].
    #[must_use]
    pub fn annotation(&self) -> String {
        STANDARD.encode(&self.image)
    }

    /// What HOST_DATA has to be for a guest to accept it.
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        parma_policy::host_data(&self.image)
    }
}

/// An image that is ready to run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The image.
    pub image: Image,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
    /// Its data volumes, in the order of its container's.
    pub volumes: Vec<Volume>,
    /// What its container is to be.
    pub container: Container,
    /// The signal that asks it to stop.
    pub stop_signal: u8,
}

impl Workload {
    /// Opens the image, converts its layers (a converted layer is kept for the next time), and works out its container.
    ///
    /// `prefix` begins the serials of its disks: two images in one guest need two. `progress` is told of each layer
    /// that has to be converted: its number from 1, how many there are, and the bytes written so far.
    ///
    /// # Errors
    /// The image is missing, damaged or of a kind that is not supported, or it cannot be run as `options` say.
    pub fn prepare(
        reference: &Reference,
        options: &GenerateOptions,
        prefix: &str,
        mut progress: impl FnMut(usize, usize, u64),
    ) -> Result<Self> {
        let image = Image::open(reference)?;
        let count = image.layers.len();
        let converted = cache::convert(&image, &mut |index, bytes| progress(index + 1, count, bytes))?;
        let layers = (0..).zip(converted).map(|(index, layer)| {
            let serial = format!("{prefix}{index}");
            let serial = Serial::parse(&serial)
                .map_err(|_| anyhow!("{serial:?} is no serial of a disk: at most 20 of A-Z a-z 0-9 - _"))?;
            let CachedLayer { path, root_hash, data_blocks } = layer;
            Ok(Layer { path, root_hash, data_blocks, serial })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let hashes: Vec<_> = layers.iter().map(|layer| layer.root_hash).collect();
        let container = Container::new(&image, &hashes, options)?;
        let stop_signal = image.config.stop_signal.as_deref().map_or(Ok(15), signal)?;
        Ok(Self { image, layers, volumes: Vec::new(), container, stop_signal })
    }

    /// The strict policy, which allows this container and nothing else.
    ///
    /// # Errors
    /// It does not compile, which would be an error of the generator.
    pub fn strict_policy(&self) -> Result<Policy> {
        Policy::compile("generated.rego", &self.container.policy())
    }

    /// The disks of its layers, read-only.
    pub fn disks(&self) -> impl Iterator<Item = Disk> {
        self.layers.iter().map(Layer::disk)
    }
}
