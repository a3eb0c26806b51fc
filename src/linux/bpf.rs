//! Device programs of control groups (bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`).
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF: usize = 321;
const BPF_PROG_LOAD: usize = 5;
const BPF_PROG_ATTACH: usize = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of parents and children must all allow.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The start of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what is missing as 0.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device program of eBPF instructions, 8 bytes each. The kernel's verifier refuses one that is not safe.
pub fn load_device_program(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(instructions.len()).map_err(|_| Errno::INVAL)?,
        instructions: instructions.as_ptr() as u64,
        license: c"".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads a Load, `count` instructions and a string that ends with a NUL; all outlive the call.
    let fd = unsafe { syscall(BPF, [BPF_PROG_LOAD, &raw const load as usize, size_of::<Load>(), 0, 0, 0]) }?;
    // SAFETY: the kernel made this descriptor just now, so nothing else owns it; descriptors fit i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a device program to a control group, until the group is removed.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), Errno> {
    let attach = Attach {
        // Descriptors are not negative.
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the kernel reads an Attach, which outlives the call.
    unsafe { syscall(BPF, [BPF_PROG_ATTACH, &raw const attach as usize, size_of::<Attach>(), 0, 0, 0]) }
        .map(drop)
}
