//! The thin unsafe layer: system calls that `rustix` lacks, one small file each, safe functions out.
//!
//! Nothing here decides anything. A function checks what makes its `unsafe` block sound and leaves the rest to callers.

pub mod block;
pub mod bpf;
pub mod console;
pub mod dm;
pub mod mount;
pub mod netlink;
pub mod power;
pub mod process;
pub mod seccomp;
pub mod sev;
pub mod signal;
pub mod syscall;
pub mod uevent;
pub mod vsock;

pub use rustix::io::Errno;
