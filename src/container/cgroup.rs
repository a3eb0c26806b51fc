//! Control groups: one below `parma` for each container, so that its processes can be limited, kept to the listed
//! devices, and killed together.

use super::device::{self, DEVICES};
use super::time::Deadline;
use crate::gate::fields::ContainerId;
use crate::linux::{Errno, bpf};
use core::ffi::CStr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};

/// Most processes and threads of one container, so that it cannot use up the machine's process numbers.
const PIDS_MAX: &[u8] = b"8192";

/// Longest wait before removing a group is tried again: a group can be busy for a moment after its last process was
/// reported gone.
const ATTEMPT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

const MODE: Mode = Mode::from_bits_retain(0o755);

/// Where the containers' groups are made.
#[derive(Debug)]
pub struct Cgroups {
    parent: OwnedFd,
    devices: OwnedFd,
    limits: bool,
}

impl Cgroups {
    /// Makes the group `parma` in the cgroup2 filesystem mounted at `root`, with these controllers for its children.
    pub fn new(root: &str, controllers: &str) -> Result<Self, Errno> {
        let root = open_directory(CWD, root)?;
        match mkdirat(&root, c"parma", MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let parent = open_directory(root.as_fd(), "parma")?;
        let limits = !controllers.is_empty();
        if limits {
            write(root.as_fd(), c"cgroup.subtree_control", controllers.as_bytes())?;
            write(parent.as_fd(), c"cgroup.subtree_control", controllers.as_bytes())?;
        }
        let devices = bpf::load_device_program(&device::program(&DEVICES))?;
        Ok(Self { parent, devices, limits })
    }

    /// Makes a container's group, or leaves nothing behind.
    pub fn make(&self, container: &ContainerId) -> Result<Cgroup, Errno> {
        mkdirat(&self.parent, container.as_str(), MODE)?;
        self.configure(container).inspect_err(|_| {
            // Nothing is in it, so this fails only where the group is not there either.
            let _ = unlinkat(&self.parent, container.as_str(), AtFlags::REMOVEDIR);
        })
    }

    fn configure(&self, container: &ContainerId) -> Result<Cgroup, Errno> {
        let directory = open_directory(self.parent.as_fd(), container.as_str())?;
        if self.limits {
            write(directory.as_fd(), c"pids.max", PIDS_MAX)?;
        }
        // The group has no groups of its own, so it can be removed once its processes are gone.
        write(directory.as_fd(), c"cgroup.max.descendants", b"0")?;
        bpf::attach_device_program(directory.as_fd(), self.devices.as_fd())?;
        Ok(Cgroup { directory })
    }

    /// Removes a container's group. Its processes have been waited for, so what is left in it is about to vanish.
    pub fn remove(&self, container: &ContainerId, cgroup: &Cgroup, deadline: &Deadline) -> Result<(), Errno> {
        let events =
            openat(&cgroup.directory, c"cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        loop {
            // Reading it is what makes the next change wake us, so it comes before the attempt.
            rustix::io::pread(&events, &mut [0u8; 64], 0)?;
            match unlinkat(&self.parent, container.as_str(), AtFlags::REMOVEDIR) {
                Err(Errno::BUSY) => {}
                other => return other,
            }
            let wait = deadline.left()?.min(ATTEMPT);
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// The control group of one container.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
}

impl Cgroup {
    /// The group's directory, to make processes in it.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Kills every process in it.
    pub fn kill(&self) -> Result<(), Errno> {
        write(self.directory.as_fd(), c"cgroup.kill", b"1")
    }
}

fn open_directory(at: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn write(directory: BorrowedFd<'_>, file: &CStr, value: &[u8]) -> Result<(), Errno> {
    let file = openat(directory, file, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value).map(drop)
}
