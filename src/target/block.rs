//! Finding the virtio-blk device of a serial.
//!
//! A serial is what the host says, each time it is asked: it names a device and proves nothing about it. What is on the
//! device counts only where dm-verity checked it.

use crate::gate::fields::Serial;
use crate::linux::{Errno, uevent};
use core::ffi::CStr;
use core::fmt::{self, Display};
use core::mem::MaybeUninit;
use core::str::{self, FromStr};
use rustix::fd::AsFd;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::read;

/// A whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its device number.
    pub(super) number: DeviceNumber,
    /// Its size in sectors of 512 bytes.
    pub(super) sectors: u64,
}

/// A device number. It is written as device-mapper tables want it, `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceNumber {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = Errno;

    fn from_str(text: &str) -> Result<Self, Errno> {
        let (major, minor) = text.split_once(':').ok_or(Errno::INVAL)?;
        Ok(Self { major: number(major)?, minor: number(minor)? })
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, Errno> {
    text.parse().map_err(|_| Errno::INVAL)
}

/// Seconds that a disk which was plugged in may take to appear. While it waits the guest does nothing else, which costs
/// availability alone.
const ARRIVAL: i64 = 10;

/// The one virtio-blk disk with this serial: `ENODEV` if none is there or comes in time, `ENOTUNIQ` if there are several.
pub(super) fn find(serial: &Serial) -> Result<Disk, Errno> {
    let arrivals = uevent::listener()?;
    let until = uevent::deadline(ARRIVAL);
    loop {
        match look(serial) {
            Err(Errno::NODEV) => uevent::wait(&arrivals, until).map_err(|_| Errno::NODEV)?,
            found => return found,
        }
    }
}

/// The disk that has this serial now.
fn look(serial: &Serial) -> Result<Disk, Errno> {
    let disks =
        openat(CWD, c"/sys/block", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = [MaybeUninit::uninit(); 2048];
    let mut names = RawDir::new(&disks, &mut names);
    let mut found = None;
    while let Some(entry) = names.next() {
        let entry = entry?;
        if !entry.file_name().to_bytes().starts_with(b"vd") {
            continue;
        }
        let disk = openat(
            &disks,
            entry.file_name(),
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // A device that fails to say its serial is not the one that is looked for.
        if !Attribute::read(&disk, c"serial").is_ok_and(|own| own.text() == Ok(serial.as_str())) {
            continue;
        }
        let number = Attribute::read(&disk, c"dev")?.text()?.parse()?;
        let sectors = self::number(Attribute::read(&disk, c"size")?.text()?)?;
        if found.replace(Disk { number, sectors }).is_some() {
            return Err(Errno::NOTUNIQ);
        }
    }
    found.ok_or(Errno::NODEV)
}

/// A short file of sysfs.
struct Attribute {
    bytes: [u8; 32],
    length: usize,
}

impl Attribute {
    fn read(folder: impl AsFd, name: &CStr) -> Result<Self, Errno> {
        let file = openat(folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut bytes = [0; 32];
        let length = read(file, &mut bytes)?;
        Ok(Self { bytes, length })
    }

    /// Its text, without the newline that ends most of them.
    fn text(&self) -> Result<&str, Errno> {
        let bytes = self.bytes.get(..self.length).ok_or(Errno::INVAL)?;
        str::from_utf8(bytes.strip_suffix(b"\n").unwrap_or(bytes)).map_err(|_| Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_is_read_and_written_alike() {
        let number = DeviceNumber { major: 254, minor: 16 };
        assert_eq!("254:16".parse(), Ok(number));
        assert_eq!(std::format!("{number}"), "254:16");
        for text in ["", "254", "254:", ":16", "254:16:0", "a:b", "-1:0", "4294967296:0"] {
            assert_eq!(text.parse::<DeviceNumber>(), Err(Errno::INVAL), "{text}");
        }
    }

    #[test]
    fn a_serial_that_no_device_has_finds_none() {
        let serial = Serial::parse("no-such-device").unwrap();
        assert_eq!(look(&serial), Err(Errno::NODEV));
    }
}
