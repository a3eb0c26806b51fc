//! A measured image on disk, as `cargo xtask image` writes it.

use crate::id_block::IdBlock;
use anyhow::{Context as _, Result, anyhow, ensure};
use parma_firmware::measure;
use parma_psp::Measurement;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// What tells the reader how to get an image.
const REMEDY: &str = "build one with `cargo xtask image --emulated`, or name one with --image or PARMA_IMAGE";

/// An image whose files are what its manifest says.
#[derive(Clone, Debug)]
pub struct Image {
    /// Path of the ROM, which starts the other three and nothing else.
    pub rom: PathBuf,
    /// Path of the kernel.
    pub kernel: PathBuf,
    /// Path of the initrd.
    pub initrd: PathBuf,
    /// Path of the kernel's command line.
    pub command_line: PathBuf,
    /// Whether its init takes its reports from an emulated PSP.
    pub emulated: bool,
    /// What the PSP of SNP hardware is to hold its launch against, if it was signed.
    pub id_block: Option<IdBlock>,
}

/// The processor model that counts as launched where an emulated PSP reports: QEMU's `-cpu` of the SNP command line.
pub const CPU: &str = "EPYC-v4";

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
    /// Opens the image in this directory: `rom`, `bzImage`, `initrd`, `cmdline` and `manifest.json`; and `id-block` and
    /// `id-auth`, where they are.
    ///
    /// # Errors
    /// A file is missing or is not what the manifest says.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = dir.join("manifest.json");
        let text = fs::read(&manifest).with_context(|| format!("no image in {}: {REMEDY}", dir.display()))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged: {REMEDY}", manifest.display()))?;
        let checked = |name: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            let content =
                fs::read(&path).with_context(|| format!("{} cannot be read: {REMEDY}", path.display()))?;
            let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
            let listed = manifest.components.iter().find(|component| component.file == name);
            let listed = listed.with_context(|| format!("manifest.json does not list {}", path.display()))?;
            ensure!(listed.sha256 == hex, "{} is not what manifest.json says: {REMEDY}", path.display());
            Ok(path)
        };
        Ok(Self {
            rom: checked("rom")?,
            kernel: checked("bzImage")?,
            initrd: checked("initrd")?,
            command_line: checked("cmdline")?,
            emulated: manifest.emulated,
            id_block: IdBlock::open(dir)?,
        })
    }

    /// The launch digest of this image on a machine with this many processors of the model [`CPU`]: what the PSP of SNP
    /// hardware computes of the ROM, and the emulated one reports.
    ///
    /// # Errors
    /// The ROM is none that can be launched with SNP, or there are too many processors.
    pub fn measurement(&self, vcpus: u32) -> Result<Measurement> {
        let rom = fs::read(&self.rom).with_context(|| format!("{} cannot be read", self.rom.display()))?;
        let signature = measure::signature(CPU).context("the processor model is known")?;
        let digest = measure::launch_digest(&rom, vcpus, signature)
            .map_err(|error| anyhow!("{} cannot be measured: {error}: {REMEDY}", self.rom.display()))?;
        Ok(Measurement(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parma_firmware::rom;

    const FILES: [&str; 4] = ["rom", "bzImage", "initrd", "cmdline"];

    fn image() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut rom = vec![0; rom::ROM_SIZE - rom::RESET_SIZE - rom::TAIL_SIZE];
        rom.extend(rom::tail());
        rom.resize(rom::ROM_SIZE, 0);
        let mut components = Vec::new();
        for (file, content) in FILES.into_iter().zip([&rom[..], b"kernel", b"cpio", b"panic=-1"]) {
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
        let rom = fs::read(dir.path().join("rom")).unwrap();
        let expected = |vcpus| Measurement(measure::launch_digest(&rom, vcpus, 0x0080_0f12).unwrap());
        assert_eq!(opened.measurement(1).unwrap(), expected(1));
        assert_eq!(opened.measurement(2).unwrap(), expected(2));
        assert_ne!(expected(1), expected(2));
    }

    #[test]
    fn every_file_that_is_missing_or_changed_is_named_with_the_remedy() {
        for file in FILES {
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
