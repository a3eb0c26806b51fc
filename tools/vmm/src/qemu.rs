//! QEMU's command line.
//!
//! Everything the guest does not need is off: no default devices, no user configuration, no display, no reboot (a reset
//! ends the process). Files are handed over as open descriptors, so that what was checked is what is used.

use crate::accel::Accel;
use crate::machine::Disk;
use anyhow::{Context as _, Result, ensure};
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// How to get it.
pub const REMEDY: &str = "install it with `apt-get install qemu-system-x86`";
/// Most disks: eight functions in each of the slots 2 to 30 of the one bus.
pub const MAX_DISKS: usize = 29 * 8;

/// The machine without its devices.
pub fn base(accel: Accel, memory_mib: u32, vcpus: u32) -> Vec<OsString> {
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg", "max"),
    };
    let machine = "q35,memory-backend=ram0,vmport=off,hpet=off,sata=off,smbus=off,usb=off,graphics=off";
    let memory = format!("memory-backend-memfd,id=ram0,size={memory_mib}M,share=on");
    let vcpus = vcpus.to_string();
    let memory_size = format!("{memory_mib}M");
    [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-accel",
        accel,
        "-cpu",
        cpu,
        "-machine",
        machine,
        "-object",
        &memory,
        "-m",
        &memory_size,
        "-smp",
        &vcpus,
    ]
    .map(OsString::from)
    .into()
}

/// An option of QEMU that ends in a path. In such options a comma is written twice.
///
/// # Errors
/// The path is not UTF-8.
pub fn file_option(prefix: &str, path: &Path) -> Result<OsString> {
    let path = path.to_str().with_context(|| format!("{}: QEMU needs paths in UTF-8", path.display()))?;
    Ok(format!("{prefix}{}", path.replace(',', ",,")).into())
}

/// One disk: the arguments, and the descriptor that QEMU must inherit.
///
/// # Errors
/// The file is a symbolic link, not a regular file, of odd length, or cannot be opened; or there are too many disks.
pub fn disk(index: usize, disk: &Disk) -> Result<(Vec<OsString>, OwnedFd)> {
    ensure!(index < MAX_DISKS, "more than {MAX_DISKS} disks: use an image with fewer layers");
    let file = open(disk).with_context(|| format!("cannot attach {}", disk.path.display()))?;
    let fd = OwnedFd::from(file);
    let (slot, function) = (2 + index / 8, index % 8);
    let read_only = if disk.read_only { "on" } else { "off" };
    // The set's number only has to be unique; the descriptor's is.
    let set = fd.as_raw_fd();
    let backend = format!(
        "driver=file,node-name=disk{index},filename=/dev/fdset/{set},read-only={read_only},auto-read-only=off,\
         locking=off,cache.direct=off"
    );
    let device = format!(
        "virtio-blk-pci,drive=disk{index},serial={},addr={slot:x}.{function},multifunction=on,disable-legacy=on,\
         num-queues=1,romfile=",
        disk.serial.as_str()
    );
    let fdset = format!("fd={set},set={set}");
    Ok((["-add-fd", &fdset, "-blockdev", &backend, "-device", &device].map(OsString::from).into(), fd))
}

/// SECURITY (T07): a layer's path may lie where something else can put a link to a file of the host; what is opened is
/// the file itself, read-only unless it is a scratch disk, and only if it is one.
fn open(disk: &Disk) -> Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::options()
        .read(true)
        .write(!disk.read_only)
        .custom_flags(flags.bits().cast_signed())
        .open(&disk.path)
        .context("it must be a file that this user may open, and no symbolic link")?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a regular file");
    ensure!(
        meta.len() > 0 && meta.len() % 512 == 0,
        "its {} bytes are no whole number of sectors",
        meta.len()
    );
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parma_guest::gate::fields::Serial;
    use std::fs;

    fn attach(path: &Path) -> Result<(Vec<OsString>, OwnedFd)> {
        disk(0, &Disk::layer(path, Serial::parse("layer0").unwrap()))
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
    fn a_comma_in_a_path_does_not_end_the_option() {
        assert_eq!(file_option("file:", Path::new("/a,b=c")).unwrap(), "file:/a,,b=c");
    }
}
