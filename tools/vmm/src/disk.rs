//! Block devices: what is behind them, and where they are in the machine.
//!
//! Disks that are there from the start sit on the root bus, eight functions in a slot. Disks that come later each get a
//! PCI Express root port of their own, of which a machine has as many as it was started with.
//!
//! Files are handed over as open descriptors, so that what was checked is what is used.

use crate::scripted::ScriptedDisk;
use anyhow::{Context as _, Result, ensure};
use parma_guest::gate::fields::Serial;
use rustix::fs::{FlockOperation, OFlags, flock};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Interrupt vectors for disks and ports. A processor has about 200, of which some are left for the other devices.
const VECTORS: usize = 184;
/// The same with more than one processor: a disk's queue takes one of each.
const VECTORS_SMP: usize = 264;
/// Vectors of a disk: changes of its configuration, and its queue.
const DISK_VECTORS: usize = 2;
/// Vectors of a port: its own, and those of its disk.
const PORT_VECTORS: usize = 1 + DISK_VECTORS;
/// Most ports for disks that come later.
const MAX_PORTS: usize = 32;
/// Functions of a slot of a PCI bus.
const FUNCTIONS: usize = 8;
/// The first slot of the root bus that is for disks, and the first that is for ports.
const DISK_SLOT: usize = 2;
const PORT_SLOT: usize = 27;
const _: () = assert!(VECTORS_SMP / DISK_VECTORS <= (PORT_SLOT - DISK_SLOT) * FUNCTIONS);
const _: () = assert!(PORT_SLOT + MAX_PORTS / FUNCTIONS <= 31);

/// What is behind a disk.
#[derive(Clone)]
pub enum Source {
    /// A file. It is opened when the disk is attached; later changes of its content are visible to the guest, unless
    /// the guest has the blocks in its own cache.
    File(PathBuf),
    /// A test.
    Scripted(ScriptedDisk),
}

/// A block device.
#[derive(Clone)]
pub struct Disk {
    /// What is behind it.
    pub source: Source,
    /// How the guest finds it.
    pub serial: Serial,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl Disk {
    /// A read-only disk of this file.
    #[must_use]
    pub fn layer(path: &Path, serial: Serial) -> Self {
        Self { source: Source::File(path.to_owned()), serial, read_only: true }
    }

    /// A writable disk of this file.
    #[must_use]
    pub fn writable(path: &Path, serial: Serial) -> Self {
        Self { source: Source::File(path.to_owned()), serial, read_only: false }
    }

    /// A writable disk that does what a test says.
    #[must_use]
    pub fn scripted(disk: &ScriptedDisk, serial: Serial) -> Self {
        Self { source: Source::Scripted(disk.clone()), serial, read_only: false }
    }

    /// Opens what is behind it. `None`: QEMU connects to it by itself.
    ///
    /// # Errors
    /// The file is a symbolic link, not a regular file, of odd length, or cannot be opened.
    pub fn open(&self) -> Result<Option<OwnedFd>> {
        match &self.source {
            Source::File(path) => {
                let file = open(path, self.read_only)
                    .with_context(|| format!("cannot attach {}", path.display()))?;
                Ok(Some(file.into()))
            }
            Source::Scripted(_) => Ok(None),
        }
    }

    /// QEMU's block node of this name, where `fdset` holds what [`Self::open`] gave.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn node(&self, name: &str, fdset: i64) -> Result<Value> {
        Ok(match &self.source {
            Source::File(_) => json!({
                "driver": "file", "node-name": name, "filename": format!("/dev/fdset/{fdset}"),
                "read-only": self.read_only, "auto-read-only": false, "locking": "off", "discard": "unmap",
                "cache": {"direct": false, "no-flush": false},
            }),
            Source::Scripted(disk) => {
                let path = disk.socket().to_str().context("a temporary directory that is not UTF-8")?;
                json!({
                    "driver": "nbd", "node-name": name, "server": {"type": "unix", "path": path},
                    "read-only": self.read_only, "discard": "unmap",
                })
            }
        })
    }

    /// QEMU's device for that node. Errors are the guest's to see; by itself QEMU would stop a machine whose disk is full.
    pub fn device(&self, id: &str, node: &str, place: &Place) -> Value {
        json!({
            "driver": "virtio-blk-pci", "id": id, "drive": node, "serial": self.serial.as_str(),
            "bus": place.bus, "addr": place.address, "multifunction": true, "disable-legacy": "on",
            "num-queues": 1, "rerror": "report", "werror": "report", "romfile": "",
        })
    }
}

/// Where a device is in the machine.
pub struct Place {
    bus: String,
    address: String,
}

impl Place {
    /// Of a disk with this number that is there from the start.
    pub fn cold(index: usize) -> Self {
        let address = format!("{:x}.{}", DISK_SLOT + index / FUNCTIONS, index % FUNCTIONS);
        Self { bus: "pcie.0".to_owned(), address }
    }

    /// Of the disk that is plugged into this port.
    pub fn hot(port: usize) -> Self {
        Self { bus: format!("hot{port}"), address: "0.0".to_owned() }
    }
}

/// Most disks that a machine with so many processors and ports can start with.
#[must_use]
pub fn most_disks(vcpus: u32, ports: u32) -> usize {
    let vectors = if vcpus == 1 { VECTORS } else { VECTORS_SMP };
    vectors.saturating_sub(PORT_VECTORS.saturating_mul(ports as usize)) / DISK_VECTORS
}

/// Checks that a machine with so many processors and ports can start with so many disks.
///
/// # Errors
/// It cannot.
pub fn check_count(disks: usize, vcpus: u32, ports: u32) -> Result<()> {
    ensure!(ports as usize <= MAX_PORTS, "{ports} ports for disks that come later: at most {MAX_PORTS}");
    let most = most_disks(vcpus, ports);
    let remedy = if vcpus == 1 { "give the guest two processors, or " } else { "" };
    ensure!(
        disks <= most,
        "{disks} disks, and a guest of {vcpus} processors and {ports} ports takes {most}: {remedy}use images with \
         fewer layers"
    );
    Ok(())
}

/// QEMU's arguments for the ports of disks that come later.
pub fn hot_ports(count: u32) -> Vec<OsString> {
    let port = |index: usize| {
        let (slot, function) = (PORT_SLOT + index / FUNCTIONS, index % FUNCTIONS);
        // A disk needs no I/O ports, and 2 MiB of addresses are more than its registers.
        let port = json!({
            "driver": "pcie-root-port", "id": format!("hot{index}"), "bus": "pcie.0", "addr": format!("{slot:x}.{function}"),
            "multifunction": true, "chassis": index, "slot": index, "io-reserve": 0, "mem-reserve": 2 << 20,
            "pref64-reserve": 2 << 20,
        });
        ["-device".into(), OsString::from(port.to_string())]
    };
    (0..count as usize).flat_map(port).collect()
}

/// SECURITY (T07): a layer's path may lie where something else can put a link to a file of the host; what is opened is
/// the file itself, read-only unless it is a scratch disk, and only if it is one.
fn open(path: &Path, read_only: bool) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::options()
        .read(true)
        .write(!read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .context("it must be a file that this user may open, and no symbolic link")?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a regular file");
    ensure!(
        meta.len() > 0 && meta.len() % 512 == 0,
        "its {} bytes are no whole number of sectors",
        meta.len()
    );
    if !read_only {
        // Held by the machine for as long as it has the disk. Two guests that write to one filesystem destroy it.
        flock(&file, FlockOperation::NonBlockingLockExclusive).context("it is in use by another guest")?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;

    fn attach(path: &Path) -> Result<Option<OwnedFd>> {
        Disk::layer(path, Serial::parse("layer0").unwrap()).open()
    }

    #[test]
    fn t07_a_symbolic_link_is_not_attached() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("layer.img"), dir.path().join("link.img"));
        fs::write(&file, [0; 4096]).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        attach(&file).unwrap();
        let error = format!("{:#}", attach(&link).unwrap_err());
        assert!(error.contains("link.img") && error.contains("symbolic link"), "{error}");
    }

    #[test]
    fn t07_only_regular_files_of_whole_sectors_are_attached() {
        let dir = tempfile::tempdir().unwrap();
        for size in [0, 511, 4097] {
            let file = dir.path().join(size.to_string());
            fs::write(&file, vec![0; size]).unwrap();
            assert!(attach(&file).is_err(), "{size} bytes");
        }
        for other in [Path::new("/dev/zero"), dir.path()] {
            assert!(attach(other).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn a_disk_that_is_written_to_has_one_guest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("volume.img");
        fs::write(&file, [0; 4096]).unwrap();
        let disk = Disk::writable(&file, Serial::parse("volume0").unwrap());
        let first = disk.open().unwrap();
        let error = format!("{:#}", disk.open().unwrap_err());
        assert!(error.contains("in use by another guest"), "{error}");
        drop(first);
        disk.open().unwrap();
    }

    #[test]
    fn every_disk_and_port_has_a_place_of_its_own() {
        let most = most_disks(2, 0);
        let cold = (0..most).map(Place::cold).map(|place| (place.bus, place.address));
        let ports = hot_ports(MAX_PORTS as u32).into_iter().filter_map(|argument| {
            let port: Value = serde_json::from_str(argument.to_str()?).ok()?;
            Some((port["bus"].as_str()?.to_owned(), port["addr"].as_str()?.to_owned()))
        });
        let places: BTreeSet<_> = cold.chain(ports).collect();
        assert_eq!(places.len(), most + MAX_PORTS);
    }

    #[test]
    fn too_many_disks_are_refused_with_the_remedy() {
        for (vcpus, ports) in [(1, 0), (1, 8), (2, 0), (2, 32)] {
            let most = most_disks(vcpus, ports);
            check_count(most, vcpus, ports).unwrap();
            let error = check_count(most + 1, vcpus, ports).unwrap_err().to_string();
            assert!(
                error.contains("fewer layers") && error.contains("two processors") == (vcpus == 1),
                "{error}"
            );
        }
        assert!(check_count(0, 2, 33).is_err());
        assert!(most_disks(1, u32::MAX) == 0);
    }
}
