//! Control groups: one below `parma` for each container, and for what holds their namespace, so that its processes can be limited, kept to the listed
//! devices, and killed together. `parma` itself limits all of them together; the init is not in it.

use super::device::{self, DEVICES};
use super::time::Deadline;
use crate::gate::fields::Resources;
use crate::linux::{Errno, bpf};
use crate::wire::{self, Usage};
use core::ffi::CStr;
use core::fmt::Write;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};

/// Most processes and threads of one container, so that it cannot use up the machine's process numbers.
const PIDS_MAX: u32 = *Resources::PROCESSES.end();

/// Microseconds in which a container may use so many thousandths of a processor, and how many of them a thousandth is.
const PERIOD: u64 = 100_000;
const THOUSANDTH: u64 = PERIOD / 1000;

/// Longest of the kernel's files of counters, in bytes.
const COUNTERS: usize = 1024;

/// Memory that all containers together leave to the init and the kernel, in bytes: what the init can ever use (its heap
/// of 8 MiB, a frame, its program), and seven times that for what the kernel charges to nobody.
const MEMORY_RESERVE: u64 = 64 << 20;

/// Processes and threads that all containers together leave to the kernel's own threads.
const PIDS_RESERVE: u64 = 512;

/// Process numbers that every kernel has (`PID_MAX_DEFAULT`).
const PID_MAX: u64 = 32_768;

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
            Share::of_this_machine()?.limit(parent.as_fd(), Resources::default())?;
        }
        let devices = bpf::load_device_program(&device::program(&DEVICES))?;
        Ok(Self { parent, devices, limits })
    }

    /// Makes this, where it is less than what the machine has for them, what all containers together may use.
    pub fn limit_all(&self, resources: Resources) -> Result<(), Errno> {
        if self.limits { Share::of_this_machine()?.limit(self.parent.as_fd(), resources) } else { Ok(()) }
    }

    /// Makes the group of this name, a container's id, or leaves nothing behind.
    pub fn make(&self, name: &str) -> Result<Cgroup, Errno> {
        mkdirat(&self.parent, name, MODE)?;
        self.configure(name).inspect_err(|_| {
            // Nothing is in it, so this fails only where the group is not there either.
            let _ = unlinkat(&self.parent, name, AtFlags::REMOVEDIR);
        })
    }

    fn configure(&self, name: &str) -> Result<Cgroup, Errno> {
        let cgroup = Cgroup { directory: open_directory(self.parent.as_fd(), name)? };
        if self.limits {
            cgroup.limit(Resources::default())?;
        }
        // The group has no groups of its own, so it can be removed once its processes are gone.
        write(cgroup.directory(), c"cgroup.max.descendants", b"0")?;
        bpf::attach_device_program(cgroup.directory(), self.devices.as_fd())?;
        Ok(cgroup)
    }

    /// Removes a group. Its processes have been waited for, so what is left in it is about to vanish.
    pub fn remove(&self, name: &str, cgroup: &Cgroup, deadline: &Deadline) -> Result<(), Errno> {
        let events =
            openat(&cgroup.directory, c"cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        loop {
            // Reading it is what makes the next change wake us, so it comes before the attempt.
            rustix::io::pread(&events, &mut [0u8; 64], 0)?;
            match unlinkat(&self.parent, name, AtFlags::REMOVEDIR) {
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

/// What all containers together may use. The rest keeps the init running whatever they do (T08).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    /// Bytes.
    memory: u64,
    /// Processes and threads.
    pids: u64,
}

impl Share {
    /// That of a machine with this much memory, in bytes, whose kernel allows so many threads. `NOMEM` for one that is
    /// too small to run containers.
    fn of(memory: u64, threads: u64) -> Result<Self, Errno> {
        let left = |all: u64, reserve| all.checked_sub(reserve).filter(|&left| left > 0).ok_or(Errno::NOMEM);
        Ok(Self { memory: left(memory, MEMORY_RESERVE)?, pids: left(threads.min(PID_MAX), PIDS_RESERVE)? })
    }

    fn of_this_machine() -> Result<Self, Errno> {
        let machine = rustix::system::sysinfo();
        let file = openat(
            CWD,
            c"/proc/sys/kernel/threads-max",
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut threads = [0; 24];
        let length = rustix::io::read(&file, &mut threads)?;
        let threads = threads.get(..length).and_then(|threads| core::str::from_utf8(threads).ok());
        let threads = threads.and_then(|threads| threads.trim().parse().ok()).ok_or(Errno::INVAL)?;
        Self::of(machine.totalram.saturating_mul(machine.mem_unit.into()), threads)
    }

    fn limit(self, group: BorrowedFd<'_>, resources: Resources) -> Result<(), Errno> {
        let wire::Resources { memory, cpu, processes, .. } = resources.get();
        let memory = memory.map_or(self.memory, |memory| memory.min(self.memory));
        let pids = processes.map_or(self.pids, |processes| self.pids.min(processes.into()));
        set(group, c"memory.max", Some(memory))?;
        set(group, c"cpu.max", cpu.map(quota))?;
        set(group, c"pids.max", Some(pids))
    }
}

/// One control group.
#[derive(Debug)]
pub struct Cgroup {
    directory: OwnedFd,
}

impl Cgroup {
    /// The group's directory, to make processes in it.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Makes this what its processes may use. After an error some of it may hold.
    pub fn limit(&self, resources: Resources) -> Result<(), Errno> {
        let wire::Resources { memory, cpu, processes, paused } = resources.get();
        let group = self.directory.as_fd();
        set(group, c"memory.max", memory)?;
        set(group, c"cpu.max", cpu.map(quota))?;
        set(group, c"pids.max", Some(processes.unwrap_or(PIDS_MAX).into()))?;
        write(group, c"cgroup.freeze", if paused { b"1" } else { b"0" })
    }

    /// What its processes have used.
    pub fn usage(&self) -> Result<Usage, Errno> {
        Ok(Usage {
            memory: self.counter(c"memory.current", "")?,
            cpu: self.counter(c"cpu.stat", "usage_usec ")?,
            processes: self.counter(c"pids.current", "")?,
            out_of_memory: self.out_of_memory()?,
        })
    }

    /// How many of its processes were killed because it had used up its memory.
    pub fn out_of_memory(&self) -> Result<u64, Errno> {
        self.counter(c"memory.events", "oom_kill ")
    }

    /// The number after this name, which begins a line of one of the group's files.
    fn counter(&self, file: &CStr, name: &str) -> Result<u64, Errno> {
        let file = openat(
            &self.directory,
            file,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = [0; COUNTERS];
        let length = rustix::io::read(&file, &mut text)?;
        let text = text.get(..length).and_then(|text| core::str::from_utf8(text).ok());
        let mut lines = text.unwrap_or_default().lines();
        lines.find_map(|line| line.strip_prefix(name)?.parse().ok()).ok_or(Errno::INVAL)
    }

    /// Kills every process in it.
    pub fn kill(&self) -> Result<(), Errno> {
        write(self.directory.as_fd(), c"cgroup.kill", b"1")
    }
}

/// Microseconds of each period that so many thousandths of a processor are.
fn quota(share: u32) -> u64 {
    u64::from(share) * THOUSANDTH
}

/// Writes a limit; `None` is no limit.
fn set(group: BorrowedFd<'_>, file: &CStr, limit: Option<u64>) -> Result<(), Errno> {
    match limit {
        Some(limit) => write(group, file, decimal(limit).as_bytes()),
        None => write(group, file, b"max"),
    }
}

fn decimal(number: u64) -> heapless::String<20> {
    let mut digits = heapless::String::new();
    // A u64 has at most twenty digits.
    let _ = write!(digits, "{number}");
    digits
}

fn open_directory(at: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    openat(at, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn write(directory: BorrowedFd<'_>, file: &CStr, value: &[u8]) -> Result<(), Errno> {
    let file = openat(directory, file, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t08_containers_leave_memory_and_processes_to_the_init_and_the_kernel() {
        assert_eq!(Share::of(512 << 20, 3900), Ok(Share { memory: 448 << 20, pids: 3388 }));
        assert_eq!(Share::of(64 << 30, 500_000), Ok(Share { memory: (64 << 30) - (64 << 20), pids: 32_256 }));
        assert!(Share::of_this_machine().is_ok());
    }

    /// A directory with the files that the kernel has in a group with controllers, which not every machine has.
    struct Files(std::path::PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let files = Self(std::env::temp_dir().join(format!("parma-{name}-{}", std::process::id())));
            std::fs::create_dir(&files.0).unwrap();
            files
        }

        fn open(&self) -> OwnedFd {
            open_directory(CWD, self.0.to_str().unwrap()).unwrap()
        }

        fn has(&self, file: &str, text: &str) {
            std::fs::write(self.0.join(file), text).unwrap();
        }

        /// What `act` writes to the files of limits, which are there before.
        fn written(&self, act: impl FnOnce() -> Result<(), Errno>) -> [String; 4] {
            let files = ["memory.max", "cpu.max", "pids.max", "cgroup.freeze"];
            files.iter().for_each(|file| self.has(file, ""));
            act().unwrap();
            files.map(|file| std::fs::read_to_string(self.0.join(file)).unwrap())
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn resources(memory: Option<u64>, cpu: Option<u32>, processes: Option<u32>, paused: bool) -> Resources {
        Resources::new(wire::Resources { memory, cpu, processes, paused }).unwrap()
    }

    #[test]
    fn c15_limits_are_written_as_they_were_decided() {
        let files = Files::new("limits");
        let group = Cgroup { directory: files.open() };
        let limits = resources(Some(8 << 20), Some(250), Some(7), true);
        assert_eq!(files.written(|| group.limit(limits)), ["8388608", "25000", "7", "1"]);
        let none = Resources::default();
        assert_eq!(files.written(|| group.limit(none)), ["max", "max", "8192", "0"]);

        let share = Share { memory: 32 << 20, pids: 100 };
        let less = |resources| files.written(|| share.limit(group.directory(), resources));
        assert_eq!(less(limits), ["8388608", "25000", "7", ""]);
        let more = resources(Some(64 << 20), None, Some(200), false);
        for resources in [none, more] {
            assert_eq!(less(resources), ["33554432", "max", "100", ""], "not more than the machine has");
        }

        let mut all = Cgroups { parent: files.open(), devices: files.open(), limits: true };
        assert_eq!(files.written(|| all.limit_all(limits))[..3], ["8388608", "25000", "7"]);
        all.limits = false;
        assert_eq!(files.written(|| all.limit_all(limits)), ["", "", "", ""], "without controllers");
    }

    #[test]
    fn a_group_is_a_directory_and_stays_with_the_init() {
        let files = Files::new("group");
        let flags = rustix::io::fcntl_getfd(files.open()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        files.has("file", "");
        std::os::unix::fs::symlink(".", files.0.join("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(open_directory(files.open().as_fd(), name).map(drop), Err(Errno::NOTDIR), "{name}");
        }
    }

    #[test]
    fn what_was_used_is_what_the_kernel_counted() {
        let files = Files::new("usage");
        files.has("memory.current", "4096\n");
        files.has("cpu.stat", "usage_usec 123\nuser_usec 100\nsystem_usec 23\n");
        files.has("pids.current", "3\n");
        files.has("memory.events", "low 0\nhigh 1\nmax 2\noom 4\noom_kill 5\noom_group_kill 0\n");
        let group = Cgroup { directory: files.open() };
        let usage = Usage { memory: 4096, cpu: 123, processes: 3, out_of_memory: 5 };
        assert_eq!(group.usage(), Ok(usage));
        files.has("pids.current", "none\n");
        assert_eq!(group.usage(), Err(Errno::INVAL));
        // Nothing of a group is a link.
        std::fs::remove_file(files.0.join("pids.current")).unwrap();
        std::os::unix::fs::symlink("memory.current", files.0.join("pids.current")).unwrap();
        assert_eq!(group.usage(), Err(Errno::LOOP));
    }

    #[test]
    fn a_machine_without_anything_to_share_is_refused() {
        assert_eq!(Share::of(64 << 20, 4000), Err(Errno::NOMEM));
        assert_eq!(Share::of(512 << 20, 512), Err(Errno::NOMEM));
    }
}
