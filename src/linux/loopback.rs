//! The loopback interface.
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use rustix::fd::AsRawFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

const IOCTL: usize = 16;
const SIOCSIFFLAGS: usize = 0x8914;
/// IFF_UP and IFF_RUNNING.
const UP: u16 = 1 | 0x40;

/// `struct ifreq`, as SIOCSIFFLAGS reads it.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Brings `lo` of the calling process's network namespace up.
pub fn up() -> Result<(), Errno> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = Request { name: [0; 16], flags: UP, rest: [0; 22] };
    request.name[..2].copy_from_slice(b"lo");
    // Descriptors are not negative.
    let fd = socket.as_raw_fd() as usize;
    // SAFETY: the kernel reads a whole `struct ifreq` of 40 bytes, which outlives the call.
    unsafe { syscall(IOCTL, [fd, SIOCSIFFLAGS, &raw const request as usize, 0, 0, 0]) }.map(drop)
}
