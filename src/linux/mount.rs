//! What `rustix` lacks of the mount interface.
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use rustix::fd::{AsRawFd, BorrowedFd};
use rustix::mount::MountAttrFlags;

const MOUNT_SETATTR: usize = 442;
const AT_EMPTY_PATH: usize = 0x1000;

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds attributes to the one mount whose root this descriptor is.
pub fn add_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> Result<(), Errno> {
    let attributes =
        Attributes { set: u64::from(attributes.bits()), clear: 0, propagation: 0, user_namespace: 0 };
    // Descriptors are not negative.
    let fd = mount.as_raw_fd() as usize;
    let (path, address) = (c"".as_ptr() as usize, &raw const attributes as usize);
    // SAFETY: the kernel reads an empty string and the Attributes of the given size; both outlive the call.
    unsafe { syscall(MOUNT_SETATTR, [fd, path, AT_EMPTY_PATH, address, size_of::<Attributes>(), 0]) }
        .map(drop)
}
