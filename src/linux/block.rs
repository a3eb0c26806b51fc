//! What block devices are told beside reads and writes (`include/uapi/linux/fs.h`).
#![allow(unsafe_code)]

use super::Errno;
use core::ffi::c_void;
use rustix::fd::AsFd;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

/// `BLKDISCARD`: `_IO(0x12, 119)`, although it takes an argument.
const DISCARD: Opcode = 0x1277;

struct Discard {
    range: [u64; 2],
}

// SAFETY: BLKDISCARD reads two u64 from its argument and writes nothing; `as_ptr` gives two.
unsafe impl Ioctl for Discard {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        DISCARD
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.range).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// Tells a device that nobody needs these bytes any more. A RAM disk gives their pages back; they read as zeros then.
pub fn discard(device: impl AsFd, start: u64, length: u64) -> Result<(), Errno> {
    // SAFETY: the opcode's argument is what `Discard` holds.
    unsafe { ioctl(device, Discard { range: [start, length] }) }
}
