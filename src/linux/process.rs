//! Making, entering and ending processes.
#![allow(unsafe_code)]

use super::{Errno, syscall::syscall};
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char};
use core::ops::Range;
use core::ptr::{null_mut, with_exposed_provenance_mut};
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use rustix::process::Pid;

const RT_SIGACTION: usize = 13;
const MADVISE: usize = 28;
const CLONE: usize = 56;
const EXECVE: usize = 59;
const EXIT_GROUP: usize = 231;
const SCHED_SETSCHEDULER: usize = 144;
const UNSHARE: usize = 272;
const PIDFD_SEND_SIGNAL: usize = 424;
const CLONE3: usize = 435;
const CLOSE_RANGE: usize = 436;

const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PARENT: usize = 0x8000;
const SIGCHLD: u64 = 17;
const SIG_IGN: usize = 1;
const MADV_DONTNEED: usize = 4;
const PAGE: usize = 4096;
/// Largest signal number.
const SIGNALS: usize = 64;

/// Namespaces that a new process gets for itself (`CLONE_NEW*`, clone(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNamespaces(u64);

impl NewNamespaces {
    /// None: the process shares those of its parent.
    pub const NONE: Self = Self(0);
    /// What each container has for itself: mount and PID.
    pub const CONTAINER: Self = Self(Self::MOUNT.0 | Self::PROCESSES.0);
    /// Mount.
    pub const MOUNT: Self = Self(0x0002_0000);
    /// PID.
    pub const PROCESSES: Self = Self(0x2000_0000);
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

/// When a process that was woken may run (sched(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// At once, if it had less than its share: what every program expects.
    Normal = 0,
    /// When whoever runs has had its turn. So a program that writes fills its pipe before its bytes are carried away, all
    /// in one go, where each write would else be two changes of context.
    Batch = 3,
}

/// Sets it for this process. Children inherit it, but for those of [`spawn`], which are [`Scheduling::Normal`].
pub fn schedule(scheduling: Scheduling) -> Result<(), Errno> {
    let priority = 0i32;
    let args = [0, scheduling as usize, &raw const priority as usize, 0, 0, 0];
    // SAFETY: the kernel reads a `struct sched_param`, which is one int, that outlives the call.
    unsafe { syscall(SCHED_SETSCHEDULER, args) }.map(drop)
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
        // It takes no privilege and cannot fail (sched_setscheduler(2)).
        let _ = schedule(Scheduling::Normal);
        child();
    }
    // SAFETY: the kernel has just made this descriptor for the parent, so nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::OVERFLOW)?;
    Ok((pid, pidfd))
}

/// A program (or several places where it may be), its arguments and its environment.
#[derive(Debug)]
pub struct Command {
    /// Where in `bytes` each string begins: paths, arguments, environment, with [`NOWHERE`] after each of the three.
    table: Vec<usize>,
    /// The strings, each with a NUL after it.
    bytes: Vec<u8>,
    paths: usize,
    args: usize,
}

const NOWHERE: usize = usize::MAX;

impl Command {
    /// These strings. `INVAL` where one has a NUL inside, `NOMEM` if there is no memory.
    pub fn new(paths: &[CString], args: &[&str], env: &[&str]) -> Result<Self, Errno> {
        let strings = || args.iter().chain(env).map(|string| string.as_bytes());
        let all = || paths.iter().map(|path| path.as_bytes()).chain(strings());
        if strings().any(|string| string.contains(&0)) {
            return Err(Errno::INVAL);
        }
        let (mut table, mut bytes) = (Vec::new(), Vec::new());
        table.try_reserve_exact(all().count() + 3).map_err(|_| Errno::NOMEM)?;
        bytes.try_reserve_exact(all().map(|string| string.len() + 1).sum()).map_err(|_| Errno::NOMEM)?;
        for (at, string) in all().enumerate() {
            if at == paths.len() || at == paths.len() + args.len() {
                table.push(NOWHERE);
            }
            table.push(bytes.len());
            bytes.extend_from_slice(string);
            bytes.push(0);
        }
        // The environment may be empty, paths and arguments never are.
        table.resize(all().count() + 3, NOWHERE);
        Ok(Self { table, bytes, paths: paths.len(), args: args.len() })
    }

    /// The same in memory of its own, which nothing else is in.
    pub fn settle(&self) -> Result<Settled, Errno> {
        let table = size_of_val(&*self.table);
        // SAFETY: new memory, of no use to anybody yet.
        let memory = unsafe {
            mmap_anonymous(
                null_mut(),
                table + self.bytes.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        // SAFETY: the mapping is as long as the table and the bytes together, writable, page-aligned and nobody else's.
        unsafe {
            let strings = memory.byte_add(table).cast::<u8>();
            strings.copy_from_nonoverlapping(self.bytes.as_ptr(), self.bytes.len());
            for (at, &place) in self.table.iter().enumerate() {
                let address = if place == NOWHERE { null_mut() } else { strings.add(place) };
                memory.cast::<*mut u8>().add(at).write(address);
            }
        }
        Ok(Settled { addresses: memory.cast(), paths: self.paths, args: self.args })
    }
}

/// A [`Command`] that is ready to be executed. It is never freed.
#[derive(Debug)]
pub struct Settled {
    /// Addresses of the paths, a null one, of the arguments, a null one, of the environment, a null one.
    addresses: *const *const c_char,
    paths: usize,
    args: usize,
}

impl Settled {
    /// Where the program may be, in the order in which to try.
    pub fn paths(&self) -> impl Iterator<Item = &CStr> {
        // SAFETY: the first `paths` addresses are of strings that end with a NUL, are never changed and never freed.
        (0..self.paths).map(|at| unsafe { CStr::from_ptr(*self.addresses.add(at)) })
    }

    /// Runs the program at this path in place of this one. Returns only if it could not.
    pub fn execute(&self, path: &CStr) -> Errno {
        // SAFETY: `path` ends with a NUL; both arrays end with a null pointer, and each other element points to a string
        // that ends with a NUL.
        let result = unsafe {
            let args = self.addresses.add(self.paths + 1);
            let env = args.add(self.args + 1);
            syscall(EXECVE, [path.as_ptr() as usize, args as usize, env as usize, 0, 0, 0])
        };
        match result {
            // The kernel does not return from a call that succeeded.
            Ok(_) => Errno::NOEXEC,
            Err(errno) => errno,
        }
    }
}

/// Makes a copy of this process that has the same parent, as a member of the PID namespace that this process has entered
/// for its children. `None` in the copy; its number, as this process's own namespace has it, in this one.
///
/// For a child of [`spawn`] only: the parent has to wait for a child that it did not make.
pub fn fork_sibling() -> Result<Option<Pid>, Errno> {
    // SAFETY: without CLONE_VM and with stack 0 the copy goes on with a copy of this stack and memory.
    let pid = unsafe { syscall(CLONE, [CLONE_PARENT | SIGCHLD as usize, 0, 0, 0, 0, 0]) }?;
    i32::try_from(pid).map(Pid::from_raw).map_err(|_| Errno::OVERFLOW)
}

/// Fills memory with zeros, whole pages by giving them back.
///
/// # Safety
/// Nothing of what is in these ranges is used any more by this process, not even by the heap's own book-keeping.
pub unsafe fn forget(ranges: &[Range<usize>]) -> Result<(), Errno> {
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        // SAFETY: the caller's promise.
        unsafe { forget_range(range) }?;
    }
    Ok(())
}

/// # Safety
/// That of [`forget`].
unsafe fn forget_range(range: &Range<usize>) -> Result<(), Errno> {
    let (first, last) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
    let edges = if first < last { [range.start..first, last..range.end] } else { [range.clone(), 0..0] };
    for edge in edges {
        // SAFETY: the caller's promise.
        unsafe { with_exposed_provenance_mut::<u8>(edge.start).write_bytes(0, edge.len()) };
    }
    if first < last {
        // SAFETY: the caller's promise; private memory of no file reads as zeros afterwards.
        unsafe { syscall(MADVISE, [first, last - first, MADV_DONTNEED, 0, 0, 0]) }?;
    }
    Ok(())
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

/// Has the kernel take away every child of this process that ends, its own and those that it was given.
pub fn ignore_ended_children() -> Result<(), Errno> {
    let ignore = [SIG_IGN, 0, 0, 0];
    // SAFETY: the kernel reads 32 bytes at `ignore` and, asked for no old action, writes nothing.
    unsafe { syscall(RT_SIGACTION, [SIGCHLD as usize, &raw const ignore as usize, 0, 8, 0, 0]) }.map(drop)
}

/// Moves the calling process into new namespaces, not of processes. A new control group namespace has the
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
