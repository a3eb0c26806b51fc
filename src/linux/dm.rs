//! `/dev/mapper/control`: device-mapper devices (`include/uapi/linux/dm-ioctl.h`).
//!
//! Names and tables come from callers that made them of checked values. A table can hold a key: no copy of it stays in this
//! program or in the kernel's buffers.
#![allow(unsafe_code)]

use super::Errno;
use core::ffi::c_void;
use rustix::fd::AsFd;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};
use zeroize::Zeroize;

/// Longest table parameters, in bytes, the ending NUL included.
pub const MAX_PARAMETERS: usize = 512;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 32;
/// Most targets of one table.
pub const MAX_TARGETS: usize = 2;

const TYPE: u8 = 0xfd;
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const DEV_STATUS: u8 = 7;
const TABLE_LOAD: u8 = 9;

const READONLY: u32 = 1;
/// Wipe the buffer in the kernel after the call, so that no key stays there.
const SECURE_DATA: u32 = 1 << 15;

/// `struct dm_ioctl`.
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}

/// `struct dm_target_spec`.
#[repr(C)]
struct TargetSpec {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
}

/// A target and its parameters.
#[repr(C)]
struct Entry {
    target: TargetSpec,
    parameters: [u8; MAX_PARAMETERS],
}

/// Header and targets, as the kernel reads them from one piece of memory.
#[repr(C)]
struct Message {
    header: Header,
    targets: [Entry; MAX_TARGETS],
}

impl Drop for Message {
    fn drop(&mut self) {
        self.targets.iter_mut().for_each(|entry| entry.parameters.zeroize());
    }
}

/// Whether a device can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// It cannot.
    ReadOnly,
    /// It can.
    ReadWrite,
}

/// A part of a device: these sectors of 512 bytes go to this target. The parts of a device follow one another.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Its size in sectors.
    pub sectors: u64,
    /// Its kind.
    pub kind: &'a str,
    /// Its parameters.
    pub parameters: &'a str,
}

impl Message {
    fn new(name: &str) -> Result<Self, Errno> {
        let mut message = Self {
            header: Header {
                version: [4, 0, 0],
                data_size: size_of::<Self>() as u32,
                data_start: size_of::<Header>() as u32,
                target_count: 0,
                open_count: 0,
                flags: SECURE_DATA,
                event_nr: 0,
                padding: 0,
                dev: 0,
                name: [0; 128],
                uuid: [0; 129],
                data: [0; 7],
            },
            targets: [const {
                Entry {
                    target: TargetSpec {
                        sector_start: 0,
                        length: 0,
                        status: 0,
                        // From one target to the next.
                        next: size_of::<Entry>() as u32,
                        target_type: [0; 16],
                    },
                    parameters: [0; MAX_PARAMETERS],
                }
            }; MAX_TARGETS],
        };
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(Errno::INVAL);
        }
        copy_text(&mut message.header.name, name)?;
        Ok(message)
    }

    /// The minor number in the kernel's answer, encoded as in `include/linux/kdev_t.h`: bits 0–7 and 20–31.
    fn minor(&self) -> u32 {
        let dev = self.header.dev as u32;
        (dev & 0xff) | ((dev >> 12) & 0x000f_ff00)
    }

    /// Makes call `number` on `control`.
    fn call(&mut self, control: impl AsFd, number: u8) -> Result<(), Errno> {
        // SAFETY: the opcode's argument is a `struct dm_ioctl` whose `data_size` says how much memory follows; `self`
        // is exactly that long, and the kernel reads and writes nothing beyond it.
        unsafe { ioctl(control, Call { number, message: self }) }
    }
}

/// Copies `text` and leaves at least one NUL after it.
fn copy_text(to: &mut [u8], text: &str) -> Result<(), Errno> {
    if text.len() >= to.len() || text.contains('\0') {
        return Err(Errno::NAMETOOLONG);
    }
    to[..text.len()].copy_from_slice(text.as_bytes());
    Ok(())
}

struct Call<'a> {
    number: u8,
    message: &'a mut Message,
}

// SAFETY: device-mapper's opcodes all have the same type and a `struct dm_ioctl` as argument; `as_ptr` gives one.
unsafe impl Ioctl for Call<'_> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<Header>(TYPE, self.number)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut *self.message).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Makes a device without a table. Gives its minor number: it is `/dev/dm-<minor>`.
pub fn create(control: impl AsFd, name: &str) -> Result<u32, Errno> {
    let mut message = Message::new(name)?;
    message.call(control, DEV_CREATE)?;
    Ok(message.minor())
}

/// The minor number of a device that exists.
pub fn minor(control: impl AsFd, name: &str) -> Result<u32, Errno> {
    let mut message = Message::new(name)?;
    message.call(control, DEV_STATUS)?;
    Ok(message.minor())
}

/// Gives the device a table of these targets, one after the other.
pub fn load(control: impl AsFd, name: &str, access: Access, targets: &[Target<'_>]) -> Result<(), Errno> {
    let mut message = Message::new(name)?;
    if access == Access::ReadOnly {
        message.header.flags |= READONLY;
    }
    if targets.len() > MAX_TARGETS {
        return Err(Errno::INVAL);
    }
    message.header.target_count = targets.len() as u32;
    let mut start = 0;
    for (entry, target) in message.targets.iter_mut().zip(targets) {
        entry.target.sector_start = start;
        entry.target.length = target.sectors;
        copy_text(&mut entry.target.target_type, target.kind)?;
        copy_text(&mut entry.parameters, target.parameters)?;
        start = start.checked_add(target.sectors).ok_or(Errno::INVAL)?;
    }
    message.call(control, TABLE_LOAD)
}

/// Puts the loaded table into force.
pub fn resume(control: impl AsFd, name: &str) -> Result<(), Errno> {
    // DEV_SUSPEND without the suspend flag resumes.
    Message::new(name)?.call(control, DEV_SUSPEND)
}

/// Removes the device; an error if something has it open.
pub fn remove(control: impl AsFd, name: &str) -> Result<(), Errno> {
    Message::new(name)?.call(control, DEV_REMOVE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_are_as_long_as_the_kernels() {
        assert_eq!(size_of::<Header>(), 312);
        assert_eq!(size_of::<TargetSpec>(), 40);
        assert_eq!(opcode::read_write::<Header>(TYPE, DEV_CREATE), 0xc138_fd03);
        assert_eq!(core::mem::offset_of!(Message, targets), size_of::<Header>(), "no gap before the targets");
        assert_eq!(size_of::<Entry>() % 8, 0, "the kernel wants each target aligned");
    }

    #[test]
    fn names_and_parameters_that_do_not_fit_are_refused() {
        assert!(Message::new("").is_err());
        assert!(Message::new(&"n".repeat(MAX_NAME + 1)).is_err());
        assert!(Message::new("layer\0").is_err());
        assert!(copy_text(&mut [0; 4], "four").is_err());
        assert!(copy_text(&mut [0; 4], "fou").is_ok());
    }
}
