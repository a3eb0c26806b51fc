//! System calls by number.
#![allow(unsafe_code)]

use super::Errno;
use core::arch::asm;

/// Largest error number that the kernel returns (`include/linux/err.h`).
const MAX_ERRNO: usize = 4095;

/// Makes system call `number`; unused arguments are 0.
///
/// # Safety
///
/// The caller keeps the call's own rules: each argument that the kernel takes as an address is valid for what the call
/// reads or writes there, and the call does not break what Rust takes for granted (memory maps, stacks, descriptors
/// owned elsewhere).
pub unsafe fn syscall(number: usize, args: [usize; 6]) -> Result<usize, Errno> {
    let result: usize;
    // SAFETY: the x86-64 system call convention: number in rax, arguments in these registers, rcx and r11 lost, the
    // result in rax, no stack used. What the call does to memory is the caller's obligation.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    if result > usize::MAX - MAX_ERRNO {
        // At most 4095, so it fits.
        Err(Errno::from_raw_os_error(result.wrapping_neg() as i32))
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_errors_are_told_apart() {
        // SAFETY: getpid takes no arguments.
        let pid = unsafe { syscall(39, [0; 6]) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        // SAFETY: there is no descriptor -1, so close changes nothing.
        let close = unsafe { syscall(3, [usize::MAX, 0, 0, 0, 0, 0]) };
        assert_eq!(close, Err(Errno::BADF));
    }
}
