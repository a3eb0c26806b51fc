//! OCI layouts written for tests, honest unless a test breaks them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use parma_layer::oci::{Digest, Image, Reference};
use serde_json::{Value, json};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

pub struct Layout {
    pub dir: tempfile::TempDir,
    entries: Vec<Value>,
}

impl Layout {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, entries: Vec::new() }
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.path().join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())
    }

    /// Stores a blob and returns its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        fs::write(self.blob_path(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    pub fn json(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    /// Stores configuration and manifest for these layer descriptors and diff ids.
    pub fn image(&self, layers: Vec<Value>, diff_ids: &[String]) -> Value {
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Env": ["PATH=/bin", "A=1"], "Cmd": ["/bin/sh"], "User": "7:8", "WorkingDir": "/srv",
                       "StopSignal": "SIGINT", "Volumes": {"/b": {}, "/a": {}}, "Entrypoint": null},
        });
        let config = self.json(CONFIG, &config);
        self.json(MANIFEST, &manifest(&config, &layers))
    }

    /// Lists a descriptor in index.json, under a tag if one is given.
    pub fn tag(&mut self, mut descriptor: Value, tag: Option<&str>) {
        if let Some(tag) = tag {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        self.entries.push(descriptor);
        let index = json!({"schemaVersion": 2, "manifests": self.entries});
        fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }

    pub fn reference(&self, tag: Option<&str>) -> Reference {
        Reference { dir: self.dir.path().into(), tag: tag.map(str::to_owned) }
    }

    pub fn open(&self, tag: Option<&str>) -> anyhow::Result<Image> {
        Image::open(&self.reference(tag))
    }
}

pub fn manifest(config: &Value, layers: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
}

/// A small tar.
pub fn tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o644);
    header.set_mtime(1_700_000_000);
    tar.append_data(&mut header, "etc/motd", &b"hello"[..]).unwrap();
    tar.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The whole chain of causes, as the command line prints it.
pub fn message<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("accepted"),
        Err(e) => format!("{e:#}"),
    }
}

pub fn replace(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}
