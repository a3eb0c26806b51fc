//! seccomp filters (seccomp(2), classic BPF).
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use crate::filter::Instruction;

const SECCOMP: usize = 317;
const SECCOMP_SET_MODE_FILTER: usize = 1;

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Adds a filter to the calling thread, for good. Needs CAP_SYS_ADMIN or no-new-privileges; the kernel refuses a
/// program that is not valid.
pub fn install(filter: &[Instruction]) -> Result<(), Errno> {
    let length = u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?;
    let program = Program { length, instructions: filter.as_ptr() };
    // SAFETY: the kernel reads a Program and the `length` instructions that it points to; both outlive the call.
    unsafe { syscall(SECCOMP, [SECCOMP_SET_MODE_FILTER, 0, &raw const program as usize, 0, 0, 0]) }.map(drop)
}
