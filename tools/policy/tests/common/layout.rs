//! OCI image layouts, made for one test.

use std::fs;
use std::path::Path;

use parma_layer::oci::{Image, Reference};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An entry of a layer's tar.
pub enum Entry {
    /// A regular file and its content.
    File(&'static str, &'static str),
    /// A symbolic link and its target.
    Link(&'static str, &'static str),
    /// A directory.
    Directory(&'static str),
}

/// Writes a layout with one image of these layers, lowest first, and this `config` object, and opens it.
pub fn image(dir: &Path, layers: &[&[Entry]], config: &Value) -> Image {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let layers: Vec<(Value, String)> = layers
        .iter()
        .map(|entries| {
            let tar = tar(entries);
            let descriptor = blob(dir, "application/vnd.oci.image.layer.v1.tar", &tar);
            (descriptor, digest(&tar))
        })
        .collect();
    let (descriptors, diff_ids): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = blob(dir, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let manifest = blob(dir, "application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
    Image::open(&Reference { dir: dir.into(), tag: None }).unwrap()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(dir: &Path, media_type: &str, bytes: &[u8]) -> Value {
    let digest = digest(bytes);
    fs::write(dir.join("blobs").join(digest.replace(':', "/")), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
}

fn tar(entries: &[Entry]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        match entry {
            Entry::File(path, content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_bytes()).unwrap();
            }
            Entry::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, target).unwrap();
            }
            Entry::Directory(path) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                tar.append_data(&mut header, path, &[][..]).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}
