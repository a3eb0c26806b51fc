//! A measured image on disk, as `cargo xtask image` writes it.

use anyhow::{Context as _, Result, bail, ensure};
use parma_psp::Measurement;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What tells the reader how to get an image.
const REMEDY: &str = "build one with `cargo xtask image --emulated`, or name one with --image or PARMA_IMAGE";

/// An image whose files are what its manifest says.
#[derive(Clone, Debug)]
pub struct Image {
    /// Path of the kernel.
    pub kernel: PathBuf,
    /// Path of the initrd.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
    /// Whether its init takes its reports from an emulated PSP.
    pub emulated: bool,
    /// What the emulated PSP reports of it; see [`Measurement::of_components`].
    pub measurement: Measurement,
}

#[derive(Deserialize)]
struct Manifest {
    emulated: bool,
    components: Vec<Component>,
}

#[derive(Deserialize)]
struct Component {
    file: String,
    sha256: String,
}

impl Image {
    /// Opens the image in this directory: `bzImage`, `initrd`, `cmdline` and `manifest.json`.
    ///
    /// # Errors
    /// A file is missing or is not what the manifest says.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = dir.join("manifest.json");
        let text = fs::read(&manifest).with_context(|| format!("no image in {}: {REMEDY}", dir.display()))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged: {REMEDY}", manifest.display()))?;
        let hash = |name: &str| -> Result<[u8; 32]> {
            let path = dir.join(name);
            let damaged = || format!("{} cannot be read: {REMEDY}", path.display());
            let mut hash = Sha256::new();
            let mut file = File::open(&path).with_context(damaged)?;
            io::copy(&mut file, &mut Writer(&mut hash)).with_context(damaged)?;
            let digest: [u8; 32] = hash.finalize().into();
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let listed = manifest.components.iter().find(|component| component.file == name);
            let listed = listed.with_context(|| format!("manifest.json does not list {}", path.display()))?;
            ensure!(listed.sha256 == hex, "{} is not what manifest.json says: {REMEDY}", path.display());
            Ok(digest)
        };
        let measurement = Measurement::of_components(hash("bzImage")?, hash("initrd")?, hash("cmdline")?);
        let command_line = fs::read_to_string(dir.join("cmdline")).context("cmdline")?;
        let command_line = command_line.strip_suffix('\n').unwrap_or(&command_line).to_owned();
        if command_line.is_empty() || command_line.contains(['\n', '\0']) {
            bail!("{} is not one line: {REMEDY}", dir.join("cmdline").display());
        }
        let (kernel, initrd) = (dir.join("bzImage"), dir.join("initrd"));
        Ok(Self { kernel, initrd, command_line, emulated: manifest.emulated, measurement })
    }
}

/// Feeds what is written to a hash.
struct Writer<'a>(&'a mut Sha256);

impl io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut components = Vec::new();
        for (file, content) in [("bzImage", "kernel"), ("initrd", "cpio"), ("cmdline", "panic=-1")] {
            fs::write(dir.path().join(file), content).unwrap();
            let sha256: String = Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
            components.push(serde_json::json!({"component": file, "file": file, "sha256": sha256}));
        }
        let manifest = serde_json::json!({"emulated": true, "components": components});
        fs::write(dir.path().join("manifest.json"), manifest.to_string()).unwrap();
        dir
    }

    #[test]
    fn an_image_is_opened_and_measured() {
        let dir = image();
        let opened = Image::open(dir.path()).unwrap();
        assert!(opened.emulated);
        assert_eq!(opened.command_line, "panic=-1");
        let digest = |text: &str| Sha256::digest(text).into();
        let expected = Measurement::of_components(digest("kernel"), digest("cpio"), digest("panic=-1"));
        assert_eq!(opened.measurement, expected);
    }

    #[test]
    fn every_file_that_is_missing_or_changed_is_named_with_the_remedy() {
        for file in ["bzImage", "initrd", "cmdline"] {
            for change in [|path: &Path| fs::write(path, "other"), |path: &Path| fs::remove_file(path)] {
                let dir = image();
                change(&dir.path().join(file)).unwrap();
                let error = format!("{:#}", Image::open(dir.path()).unwrap_err());
                assert!(error.contains(file) && error.contains("cargo xtask image"), "{error}");
            }
        }
        let error = format!("{:#}", Image::open(Path::new("/nonexistent")).unwrap_err());
        assert!(error.contains("/nonexistent") && error.contains("cargo xtask image"), "{error}");
    }
}
