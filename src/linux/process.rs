//! Making, entering and ending processes.
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::process::Pid;

const RT_SIGACTION: usize = 13;
const EXECVE: usize = 59;
const EXIT_GROUP: usize = 231;
const UNSHARE: usize = 272;
const PIDFD_SEND_SIGNAL: usize = 424;
const CLONE3: usize = 435;
const CLOSE_RANGE: usize = 436;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const SIGCHLD: u64 = 17;
/// Largest signal number.
const SIGNALS: usize = 64;

/// Namespaces that a new process gets for itself (`CLONE_NEW*`, clone(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNamespaces(u64);

impl NewNamespaces {
    /// None: the process shares those of its parent.
    pub const NONE: Self = Self(0);
    /// What each container has for itself: mount and PID.
    pub const CONTAINER: Self = Self(0x0002_0000 | 0x2000_0000);
    /// What all containers of a guest share: UTS, IPC and network.
    pub const POD: Self = Self(0x0400_0000 | 0x0800_0000 | 0x4000_0000);
    /// Control group.
    pub const CONTROL_GROUP: Self = Self(0x0200_0000);
}

/// `struct clone_args`.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a child in `cgroup` that runs `child` on a copy of this process's memory, as fork(2) does. Gives its number
/// and a descriptor for it.
///
/// Only the calling thread exists in the child: in a process with several, `child` must not wait for a lock.
pub fn spawn(
    namespaces: NewNamespaces,
    cgroup: BorrowedFd<'_>,
    child: impl FnOnce() -> core::convert::Infallible,
) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: namespaces.0 | CLONE_PIDFD | CLONE_INTO_CGROUP,
        pidfd: &raw mut pidfd as u64,
        exit_signal: SIGCHLD,
        // Descriptors are not negative.
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the kernel reads size_of::<CloneArgs>() bytes at `args` and writes one descriptor number to `pidfd`; both
    // outlive the call. Without CLONE_VM and with stack 0 the child goes on with a copy of this stack and memory.
    let pid = unsafe { syscall(CLONE3, [&raw const args as usize, size_of::<CloneArgs>(), 0, 0, 0, 0]) }?;
    if pid == 0 {
        child();
    }
    // SAFETY: the kernel has just made this descriptor for the parent, so nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::OVERFLOW)?;
    Ok((pid, pidfd))
}

/// Strings in the form in which a program gets its arguments and its environment.
#[derive(Debug)]
pub struct Strings {
    /// Addresses of `strings`, and a null one after them.
    pointers: Vec<*const u8>,
    strings: Vec<CString>,
}

impl Strings {
    /// These strings. `NOMEM` if there is no memory for their addresses.
    pub fn new(strings: Vec<CString>) -> Result<Self, Errno> {
        let mut pointers: Vec<*const u8> = Vec::new();
        pointers.try_reserve_exact(strings.len() + 1).map_err(|_| Errno::NOMEM)?;
        pointers.extend(strings.iter().map(|s| s.as_ptr().cast::<u8>()).chain([core::ptr::null()]));
        Ok(Self { pointers, strings })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.strings.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }
}

/// Runs a program in place of this one. Returns only if it could not.
pub fn execute(path: &CStr, args: &Strings, env: &Strings) -> Errno {
    // SAFETY: `path` ends with a NUL; both arrays end with a null pointer, and each other element points to a string
    // that ends with a NUL and that its `Strings` owns and never changes.
    let result = unsafe {
        let pointers =
            [path.as_ptr() as usize, args.pointers.as_ptr() as usize, env.pointers.as_ptr() as usize];
        syscall(EXECVE, [pointers[0], pointers[1], pointers[2], 0, 0, 0])
    };
    match result {
        // The kernel does not return from a call that succeeded.
        Ok(_) => Errno::NOEXEC,
        Err(errno) => errno,
    }
}

/// Closes every descriptor from 3 on but `keep`, without looking at who owns them.
///
/// For a child of [`spawn`] only, which never drops what it copied from its parent.
pub fn close_all_but<const N: usize>(mut keep: [RawFd; N]) -> Result<(), Errno> {
    keep.sort_unstable();
    let mut first: u32 = 3;
    for fd in keep.into_iter().filter_map(|fd| u32::try_from(fd).ok()) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd.saturating_add(1));
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: no memory is involved. The owners of these descriptors are copies that the child never uses nor drops.
    unsafe { syscall(CLOSE_RANGE, [first as usize, last as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Gives every signal its default action; what a parent ignores is otherwise ignored through `execve` too.
pub fn reset_signal_actions() {
    // `struct sigaction` of the kernel: handler, flags, restorer, mask. All zero is SIG_DFL.
    let default = [0usize; 4];
    for signal in 1..=SIGNALS {
        // SAFETY: the kernel reads 32 bytes at `default` and, asked for no old action, writes nothing. SIGKILL and
        // SIGSTOP are refused, which is as good.
        let _ = unsafe { syscall(RT_SIGACTION, [signal, &raw const default as usize, 0, 8, 0, 0]) };
    }
}

/// Moves the calling process into new namespaces, not of processes or mounts. A new control group namespace has the
/// process's own group as its root.
pub fn unshare(namespaces: NewNamespaces) -> Result<(), Errno> {
    // SAFETY: no memory is involved, and which of these namespaces a process is in is nothing that Rust relies on.
    unsafe { syscall(UNSHARE, [namespaces.0 as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Sends a signal, by number, to exactly the process of this descriptor.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: u8) -> Result<(), Errno> {
    // Descriptors are not negative.
    let fd = pidfd.as_raw_fd() as usize;
    // SAFETY: with no siginfo given, no memory is involved.
    unsafe { syscall(PIDFD_SEND_SIGNAL, [fd, usize::from(signal), 0, 0, 0, 0]) }.map(drop)
}

/// Ends this process, without running anything on the way.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: the process and its memory are gone after this call.
        let _ = unsafe { syscall(EXIT_GROUP, [usize::from(code), 0, 0, 0, 0, 0]) };
    }
}
