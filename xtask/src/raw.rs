//! The peers' machine for `cargo xtask bench`: the measured image's kernel with busybox's shell for an init, and a container
//! image's layers mounted without dm-verity. What ours is compared with runs there, in the same emulation.

use crate::{cpio, firmware, fixtures};
use anyhow::{Context, Result};
use parma::workload::Workload;
use parma_guest::gate::fields::Serial;
use parma_layer::oci::{Image as Source, Reference};
use parma_vmm::{Config, Disk, Image, Machine};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How long a machine may take to end.
const PATIENCE: Duration = Duration::from_secs(300);

/// Such a machine.
pub struct Raw {
    pub machine: Machine,
    /// Its image.
    _dir: TempDir,
}

/// Launches the machine. Its init makes an overlay of the layers at `/r`, above which is the ext4 of the disk `writable`, or
/// memory; runs `script` with its output on the console; and ends the machine.
pub fn launch(image: &Image, workload: &Workload, writable: Option<&Path>, script: &str) -> Result<Raw> {
    let own = tempfile::tempdir()?;
    let dir = own.path();
    let count = workload.layers.len();
    let mounts: String = (0..count)
        .map(|at| format!("mkdir /l{at}\nmount -t ext4 -o ro /dev/vd{} /l{at}\n", letter(at)))
        .collect();
    let lower: Vec<String> = (0..count).rev().map(|at| format!("/l{at}")).collect();
    let upper = match writable {
        Some(_) => format!("-t ext4 /dev/vd{}", letter(count)),
        None => "-t tmpfs t".to_owned(),
    };
    let script = format!(
        "for c in mkdir mount chroot reboot; do /busybox ln -s /busybox /$c; done\nexport PATH=/\nmkdir /t /r\n\
         mount -t devtmpfs d /dev\n{mounts}mount {upper} /t\nmkdir /t/u /t/w\n\
         mount -t overlay o -o lowerdir={},upperdir=/t/u,workdir=/t/w /r\nmkdir -p /r/proc\nmount -t proc p /r/proc\n\
         exec > /dev/ttyS0 2>&1\n{script}\nreboot -f\n",
        lower.join(":"),
    );
    let busybox = busybox()?;
    let archive = cpio::archive(&[
        ("sh", 0o755, &busybox),
        ("busybox", 0o755, &busybox),
        ("script", 0o644, script.as_bytes()),
    ])?;
    let (initrd, command_line) = (dir.join("raw-initrd"), dir.join("raw-cmdline"));
    fs::write(&initrd, archive)?;
    let ours = fs::read_to_string(&image.command_line)?;
    fs::write(&command_line, format!("{} rdinit=/sh -- /script\n", ours.trim_end()))?;
    let image = firmware::with_rom_of_its_own(Image { initrd, command_line, ..image.clone() }, dir)?;
    let mut config = Config::new(image, [0; 32]);
    config.disks.extend(workload.disks());
    if let Some(writable) = writable {
        config.disks.push(Disk::writable(writable, Serial::parse("writable").ok().context("a serial")?));
    }
    Ok(Raw { machine: Machine::launch(&config)?, _dir: own })
}

impl Raw {
    /// Waits for its end, and gives what it said on the console.
    pub fn end(mut self) -> Result<String> {
        self.machine.wait(PATIENCE)?.context("the peers' machine does not end")?;
        Ok(String::from_utf8_lossy(&self.machine.console()?).into_owned())
    }
}

/// The letter of a disk's name: the first is `vda`.
fn letter(index: usize) -> char {
    (b'a'..=b'z').nth(index).map_or('?', char::from)
}

/// The program busybox, from the container image of that name.
fn busybox() -> Result<Vec<u8>> {
    let layout: PathBuf = fixtures::image("busybox")?;
    let source = Source::open(&Reference::parse(&format!("oci:{}:latest", layout.display()))?)?;
    for index in 0..source.layers.len() {
        let mut tar = tar::Archive::new(source.open_layer(index)?);
        for entry in tar.entries()? {
            let mut entry = entry?;
            if entry.path()?.ends_with("busybox") && entry.header().entry_type().is_file() {
                let mut program = Vec::new();
                entry.read_to_end(&mut program)?;
                return Ok(program);
            }
        }
    }
    anyhow::bail!("the container image busybox has no busybox")
}
