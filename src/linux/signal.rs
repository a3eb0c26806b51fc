//! SIGCHLD as a readable file descriptor.
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use rustix::fd::{AsFd, FromRawFd, OwnedFd};

const RT_SIGPROCMASK: usize = 14;
const SIGNALFD4: usize = 289;
const SIG_SETMASK: usize = 2;
const SIGCHLD: u64 = 17;
/// O_CLOEXEC and O_NONBLOCK.
const SFD_CLOEXEC_NONBLOCK: usize = 0o2000000 | 0o4000;
/// Bytes of the kernel's signal set.
const SET_SIZE: usize = 8;
/// Bytes of a `signalfd_siginfo`.
const SIGINFO: usize = 128;

/// Sets the calling thread's mask of blocked signals: bit *n* − 1 for signal *n*. A process that is to run a program
/// of its own sets it to 0 before, since masks survive `execve`.
pub fn set_blocked(mask: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads SET_SIZE bytes at `mask`, which is that long and outlives the call; the old mask is not
    // asked for.
    unsafe { syscall(RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, SET_SIZE, 0, 0]) }?;
    Ok(())
}

/// Blocks SIGCHLD and gives a descriptor that is readable while one is pending.
pub fn child_signals() -> Result<OwnedFd, Errno> {
    let mask: u64 = 1 << (SIGCHLD - 1);
    set_blocked(mask)?;
    // SAFETY: the kernel reads SET_SIZE bytes at `mask`, as above.
    let fd = unsafe {
        syscall(SIGNALFD4, [usize::MAX, &raw const mask as usize, SET_SIZE, SFD_CLOEXEC_NONBLOCK, 0, 0])
    }?;
    // SAFETY: the kernel made this descriptor just now, so nothing else owns it; descriptors fit i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes every pending signal off the descriptor. Which children ended, `waitpid` says: signals are merged.
pub fn drain(signals: impl AsFd) -> Result<(), Errno> {
    let mut info = [0; SIGINFO];
    loop {
        match rustix::io::read(&signals, &mut info) {
            Ok(_) => {}
            Err(Errno::AGAIN) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_child_makes_the_descriptor_readable_until_it_is_drained() {
        let signals = child_signals().unwrap();
        // SIGCHLD goes to any thread of this process that does not block it, so send it to this very thread.
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as usize;
        let process = std::process::id() as usize;
        // SAFETY: tgkill with three numbers touches no memory; SIGCHLD is ignored where it is not blocked.
        unsafe { syscall(234, [process, thread, SIGCHLD as usize, 0, 0, 0]) }.unwrap();
        let mut info = [0; SIGINFO];
        assert_eq!(rustix::io::read(&signals, &mut info), Ok(SIGINFO));
        assert_eq!(u32::from_ne_bytes([info[0], info[1], info[2], info[3]]), SIGCHLD as u32);
        assert_eq!(drain(&signals), Ok(()));
        assert_eq!(rustix::io::read(&signals, &mut info), Err(Errno::AGAIN));
        set_blocked(0).unwrap();
    }
}
