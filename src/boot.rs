//! What the guest sets up before it looks at anything from outside: the kernel's filesystems and settings.
//!
//! Nothing here depends on the host. A step that fails ends the machine.

use crate::linux::Errno;
use crate::linux::process::{Scheduling, schedule};
use core::ffi::CStr;
use core::fmt;
use core::mem::MaybeUninit;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, CWD, Dev, Mode, OFlags, RawDir, fstat, mkdirat, openat, unlinkat};
use rustix::io::write;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{Resource, Rlimit, chdir, chroot, getpid, setrlimit, umask};

/// A step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// What it was about.
    pub step: &'static str,
    /// The kernel's reason.
    pub errno: Errno,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.errno)
    }
}

/// Names the step in an error of the kernel.
pub fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, Failed> {
    result.map_err(|errno| Failed { step, errno })
}

const NOSUID_NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NOTHING: MountFlags = NOSUID_NODEV.union(MountFlags::NOEXEC);

/// The kernel's filesystems: type, place, flags, options.
const MOUNTS: &[(&str, &str, MountFlags, &core::ffi::CStr)] = &[
    ("proc", "/proc", NOTHING, c""),
    ("sysfs", "/sys", NOTHING, c""),
    ("devtmpfs", "/dev", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"mode=0755"),
    ("tmpfs", "/run", NOTHING, c"mode=0700,size=1m"),
    ("cgroup2", "/sys/fs/cgroup", NOTHING, c"nsdelegate"),
];

/// Settings under /proc/sys. A kernel without the setting lacks what the setting would turn off.
const SETTINGS: &[(&str, &str)] = &[
    ("/proc/sys/fs/protected_fifos", "2"),
    ("/proc/sys/fs/protected_hardlinks", "1"),
    ("/proc/sys/fs/protected_regular", "2"),
    ("/proc/sys/fs/protected_symlinks", "1"),
    ("/proc/sys/fs/suid_dumpable", "0"),
    ("/proc/sys/kernel/dmesg_restrict", "1"),
    ("/proc/sys/kernel/io_uring_disabled", "2"),
    ("/proc/sys/kernel/kexec_load_disabled", "1"),
    ("/proc/sys/kernel/kptr_restrict", "2"),
    ("/proc/sys/kernel/panic", "-1"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/kernel/perf_event_paranoid", "3"),
    ("/proc/sys/kernel/randomize_va_space", "2"),
    ("/proc/sys/kernel/sysrq", "0"),
    ("/proc/sys/kernel/unprivileged_bpf_disabled", "1"),
    ("/proc/sys/kernel/yama/ptrace_scope", "1"),
    ("/proc/sys/net/core/bpf_jit_harden", "2"),
    ("/proc/sys/vm/mmap_min_addr", "65536"),
    ("/proc/sys/vm/unprivileged_userfaultfd", "0"),
];

/// Descriptors that the init may hold: of 1024 processes one each and three streams of two, of 128 containers one each
/// and five of its attestation, and its own. The kernel's default would run out first, and a connection that cannot be accepted ends the machine.
const OPEN_FILES: u64 = 8192;

/// Folders that the guest mounts things in.
const FOLDERS: &[&str] =
    &["/run/mounts", "/run/mounts/scsi", "/run/mounts/volumes", "/run/gcs", "/run/gcs/c", "/run/attestation"];

/// Makes the machine ready. Refuses to run as anything but the first process of a machine.
pub fn prepare() -> Result<(), Failed> {
    if !getpid().is_init() {
        return Err(Failed {
            step: "this program is PID 1 of a virtual machine and nothing else",
            errno: Errno::PERM,
        });
    }
    umask(Mode::RWXG | Mode::RWXO);
    step("scheduling", schedule(Scheduling::Batch))?;
    let files = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    step("open files", setrlimit(Resource::Nofile, files))?;
    step("/", leave_initramfs())?;
    for &(kind, place, flags, options) in MOUNTS {
        step(place, make_folder(place))?;
        step(place, mount(kind, place, kind, flags, options))?;
    }
    for &(setting, value) in SETTINGS {
        step(setting, set(setting, value))?;
    }
    for &folder in FOLDERS {
        step(folder, make_folder(folder))?;
    }
    step("/dev/null", silence_standard_input())
}

/// Makes an empty tmpfs the root directory. The kernel lets no mount namespace pivot away from the initramfs itself, and
/// every container has to (`pivot_root(2)`, EINVAL).
///
/// SECURITY (C02): a container that may unmount its own root finds the initramfs below it, so nothing is left there. This
/// program's file has no name any more; its pages are freed when PID 1 ends.
fn leave_initramfs() -> Result<(), Errno> {
    empty(c"/")?;
    make_folder("/root")?;
    mount("tmpfs", "/root", "tmpfs", NOTHING, c"mode=0700,size=64k")?;
    chdir("/root")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")
}

/// Deepest tree that [`empty`] takes apart. The measured initramfs has one level of directories.
const MAX_DEPTH: usize = 4;

/// Removes everything below a directory of one filesystem.
fn empty(path: &CStr) -> Result<(), Errno> {
    let directory = open_directory(CWD, path)?;
    let device = fstat(&directory)?.st_dev;
    empty_directory(directory.as_fd(), device, MAX_DEPTH)
}

fn open_directory(at: BorrowedFd<'_>, path: &CStr) -> Result<rustix::fd::OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn empty_directory(directory: BorrowedFd<'_>, device: Dev, depth: usize) -> Result<(), Errno> {
    if fstat(directory)?.st_dev != device {
        return Err(Errno::XDEV);
    }
    let depth = depth.checked_sub(1).ok_or(Errno::LOOP)?;
    let mut entries = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(directory, &mut entries);
    while let Some(entry) = entries.next() {
        let name = entry?;
        let name = name.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                empty_directory(open_directory(directory, name)?.as_fd(), device, depth)?;
                unlinkat(directory, name, AtFlags::REMOVEDIR)?;
            }
            result => result?,
        }
    }
    Ok(())
}

fn make_folder(path: &str) -> Result<(), Errno> {
    match mkdirat(CWD, path, Mode::RWXU) {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

/// Writes a setting of the kernel, if this kernel has it.
pub fn set(setting: &str, value: &str) -> Result<(), Errno> {
    let file = match openat(CWD, setting, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        file => file?,
    };
    write(file, value.as_bytes()).map(drop)
}

/// SECURITY (B04): the kernel gives PID 1 the console, which the host can write to, as descriptors 0 to 2.
fn silence_standard_input() -> Result<(), Errno> {
    let null = openat(CWD, c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::{env, fs, process};

    #[test]
    fn c02_nothing_of_the_initramfs_is_left_below_a_containers_root() {
        let root = env::temp_dir().join(std::format!("parma-boot-{}", process::id()));
        let outside = root.with_extension("outside");
        fs::create_dir_all(root.join("dev/sub")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        for file in ["init", "dev/console", "dev/sub/file"] {
            fs::write(root.join(file), file).unwrap();
        }
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let path = CString::new(root.to_str().unwrap()).unwrap();
        assert_eq!(empty(&path), Ok(()));
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        assert!(outside.join("kept").exists(), "links are removed, not followed");
        fs::create_dir_all(root.join("1/2/3/4/5")).unwrap();
        assert_eq!(empty(&path), Err(Errno::LOOP));
        fs::remove_dir_all(root).unwrap();
        fs::remove_dir_all(outside).unwrap();
    }
}
