//! What a container sees as its filesystem. Everything here runs in the process that is to be the container's first, in a
//! mount namespace of its own, before anything of the image has run.

use super::device::DEVICES;
use super::path::{self, DIRECTORY};
use crate::linux::{Errno, mount::add_attributes};
use alloc::ffi::CString;
use alloc::string::String;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, fstat, makedev, mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::{fcntl_dupfd_cloexec, write};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;
const INERT: MountAttrFlags = NOSUID.union(NODEV).union(NOEXEC);

/// A filesystem that every container has.
struct Filesystem {
    /// Where; the links in `/dev` and the masked paths come later.
    target: &'static CStr,
    kind: &'static CStr,
    options: &'static [(&'static CStr, &'static CStr)],
    attributes: MountAttrFlags,
}

/// In the order in which they are mounted. `docs/containers.md` repeats this table.
const FILESYSTEMS: [Filesystem; 7] = [
    PROCESSES,
    Filesystem { target: c"sys", kind: c"sysfs", options: &[], attributes: INERT.union(RDONLY) },
    Filesystem { target: c"sys/fs/cgroup", kind: c"cgroup2", options: &[], attributes: INERT.union(RDONLY) },
    Filesystem {
        target: c"dev",
        kind: c"tmpfs",
        options: &[(c"mode", c"0755"), (c"size", c"64m")],
        // The only one that has device nodes; which ones can be opened, the device program says.
        attributes: NOSUID.union(NOEXEC),
    },
    TERMINALS,
    Filesystem {
        target: c"dev/shm",
        kind: c"tmpfs",
        options: &[(c"mode", c"1777"), (c"size", c"64m")],
        attributes: INERT,
    },
    Filesystem { target: c"dev/mqueue", kind: c"mqueue", options: &[], attributes: INERT },
];

const PROCESSES: Filesystem = Filesystem { target: c"proc", kind: c"proc", options: &[], attributes: INERT };

const TERMINALS: Filesystem = Filesystem {
    target: c"dev/pts",
    kind: c"devpts",
    options: &[(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")],
    attributes: NOSUID.union(NOEXEC),
};

/// Symbolic links in `/dev`, and where they lead.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// Paths of which nothing is to be seen: those that OCI runtimes mask by default, and further views of the whole machine.
const MASKED: [&CStr; 19] = [
    c"proc/acpi",
    c"proc/asound",
    c"proc/iomem",
    c"proc/ioports",
    c"proc/kallsyms",
    c"proc/kcore",
    c"proc/key-users",
    c"proc/keys",
    c"proc/kmsg",
    c"proc/kpagecount",
    c"proc/kpageflags",
    c"proc/latency_stats",
    c"proc/sched_debug",
    c"proc/scsi",
    c"proc/timer_list",
    c"proc/timer_stats",
    // SECURITY (T03): registers of the virtio devices, which root can map from here even where it cannot write.
    c"sys/devices/pci0000:00",
    c"sys/devices/virtual/powercap",
    c"sys/firmware",
];

/// Paths that OCI runtimes make read-only by default.
const READ_ONLY: [&CStr; 5] = [c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

/// Something of the guest's that the policy lets one container see: a directory of its scratch space, or a data volume.
#[derive(Debug)]
pub struct Bind {
    /// The guest's own path.
    pub source: CString,
    /// Where it goes: absolute, inside the container, below nothing that is mounted here.
    pub destination: String,
    /// Whether the container can only read it.
    pub read_only: bool,
}

/// A container's filesystem of terminals, which [`enter`] mounts.
pub fn new_terminals() -> Result<OwnedFd, Errno> {
    let mount = new_mount(TERMINALS.kind, TERMINALS.options, TERMINALS.attributes)?;
    fcntl_dupfd_cloexec(&mount, 3)
}

/// Shows the processes of this process's own namespace at `place`.
pub fn show_processes(place: &CStr) -> Result<(), Errno> {
    let mount = new_mount(PROCESSES.kind, PROCESSES.options, PROCESSES.attributes)?;
    attach(mount.as_fd(), openat(CWD, place, DIRECTORY, Mode::empty())?.as_fd())
}

/// Removes a directory of the guest's own, and first of all what is mounted there. It is no error if there is neither.
pub fn remove_mount_point(path: &CStr) -> Result<(), Errno> {
    match unmount(path, UnmountFlags::DETACH) {
        // There is none, or nothing is mounted.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    match unlinkat(CWD, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Makes `rootfs`, a mount, the root of everything that this process and its children can reach.
///
/// `processes` is where [`show_processes`] showed the processes that this one will be among, if these are not those of its own
/// namespace already. `console` is the terminal of the container's first process, if it has one. `files` are names in `/etc` and contents,
/// written over what the image has there.
pub fn enter(
    rootfs: &CStr,
    processes: Option<&CStr>,
    terminals: BorrowedFd<'_>,
    console: Option<BorrowedFd<'_>>,
    binds: &[Bind],
    files: &[(&str, &str)],
) -> Result<(), Errno> {
    // Nothing that is mounted here is to appear in the init's own namespace, nor the reverse.
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let root = openat(CWD, rootfs, DIRECTORY, Mode::empty())?;
    let root = root.as_fd();
    // Device nodes in an image are nothing but names (I17).
    add_attributes(root, NODEV)?;
    for filesystem in &FILESYSTEMS {
        let target = path::mount_target(root, filesystem.target)?;
        if filesystem.kind == TERMINALS.kind {
            attach(terminals, target.as_fd())?;
            continue;
        }
        let mount = match processes {
            Some(place) if filesystem.kind == PROCESSES.kind => {
                clone_mount(openat(CWD, place, DIRECTORY, Mode::empty())?.as_fd())?
            }
            _ => new_mount(filesystem.kind, filesystem.options, filesystem.attributes)?,
        };
        attach(mount.as_fd(), target.as_fd())?;
    }
    populate_dev(root)?;
    if let Some(console) = console {
        let dev = path::handle(root, c"dev")?;
        mknodat(&dev, c"console", FileType::RegularFile, Mode::empty(), 0)?;
        attach(clone_mount(console)?.as_fd(), path::handle(root, c"dev/console")?.as_fd())?;
    }
    for (name, content) in files {
        write_etc(root, name, content)?;
    }
    for bind in binds {
        let source = openat(CWD, &*bind.source, DIRECTORY, Mode::empty())?;
        let mount = clone_mount(source.as_fd())?;
        let read_only = if bind.read_only { RDONLY } else { MountAttrFlags::empty() };
        add_attributes(mount.as_fd(), NOSUID | NODEV | read_only)?;
        attach(mount.as_fd(), path::mount_point(root, &bind.destination)?.as_fd())?;
    }
    for path in MASKED {
        mask(root, path)?;
    }
    for path in READ_ONLY {
        make_read_only(root, path)?;
    }
    leave_all_but(root)
}

/// As [`enter`], of an empty directory.
pub fn enter_nothing() -> Result<(), Errno> {
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let nothing = empty_directory()?;
    // Any place would do.
    let place = openat(CWD, c"/proc", DIRECTORY, Mode::empty())?;
    attach(nothing.as_fd(), place.as_fd())?;
    leave_all_but(nothing.as_fd())
}

/// The init's own tree is unmounted from this namespace as a whole: what is not there cannot be reached.
fn leave_all_but(root: BorrowedFd<'_>) -> Result<(), Errno> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    chdir(c"/")
}

fn empty_directory() -> Result<OwnedFd, Errno> {
    new_mount(c"tmpfs", &[(c"mode", c"0555")], INERT | RDONLY)
}

/// A new, still unattached mount of a filesystem.
fn new_mount(
    kind: &CStr,
    options: &[(&'static CStr, &'static CStr)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for &(key, value) in options {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// SECURITY (I16): by descriptor on both sides; no path is resolved any more.
fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// Everybody may use the devices that are on the list.
const DEVICE_MODE: Mode = Mode::from_bits_retain(0o666);

fn populate_dev(root: BorrowedFd<'_>) -> Result<(), Errno> {
    let dev = path::handle(root, c"dev")?;
    for device in DEVICES {
        if let (Some(name), Some(minor)) = (device.name, device.minor) {
            mknodat(&dev, name, FileType::CharacterDevice, DEVICE_MODE, makedev(device.major, minor))?;
        }
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name)?;
    }
    Ok(())
}

/// Makes a file of `/etc` anew.
///
/// SECURITY (I16): an image's link of that name is removed, not followed, and neither is one that stands for `/etc`.
fn write_etc(root: BorrowedFd<'_>, name: &str, content: &str) -> Result<(), Errno> {
    let etc = path::mount_target(root, c"etc")?;
    match unlinkat(&etc, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = openat(&etc, name, flags, Mode::from_raw_mode(0o644))?;
    if write(&file, content.as_bytes())? == content.len() { Ok(()) } else { Err(Errno::NOSPC) }
}

/// Covers a path, if it is there, with nothing: an empty directory, or the null device.
fn mask(root: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let target = match path::handle(root, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let cover = match FileType::from_raw_mode(fstat(&target)?.st_mode) {
        FileType::Directory => empty_directory()?,
        _ => clone_mount(path::handle(root, c"dev/null")?.as_fd())?,
    };
    attach(cover.as_fd(), target.as_fd())
}

fn make_read_only(root: BorrowedFd<'_>, path: &CStr) -> Result<(), Errno> {
    let target = match path::handle(root, path) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let again = clone_mount(target.as_fd())?;
    add_attributes(again.as_fd(), RDONLY)?;
    attach(again.as_fd(), target.as_fd())
}

/// A second, unattached mount of what is at this handle.
fn clone_mount(handle: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(handle, c"", flags)
}

/// A null device for one process alone: changing its mode or owner changes nobody else's. Never one of descriptors 0–2.
pub fn private_null() -> Result<OwnedFd, Errno> {
    let mount = new_mount(c"tmpfs", &[], NOSUID | NOEXEC)?;
    mknodat(&mount, c"null", FileType::CharacterDevice, DEVICE_MODE, makedev(1, 3))?;
    let null = openat(&mount, c"null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    fcntl_dupfd_cloexec(&null, 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::StatVfsMountFlags;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    #[test]
    fn mounts_are_in_an_order_in_which_each_has_its_parent() {
        for (at, filesystem) in FILESYSTEMS.iter().enumerate() {
            let target = filesystem.target.to_str().unwrap();
            assert!(!target.starts_with('/') && !target.contains(".."));
            if let Some((parent, _)) = target.split_once('/') {
                assert!(FILESYSTEMS[..at].iter().any(|other| other.target.to_str() == Ok(parent)));
            }
        }
    }

    #[test]
    fn only_dev_and_dev_pts_can_hold_devices_and_nothing_holds_setuid_programs() {
        for filesystem in &FILESYSTEMS {
            assert!(filesystem.attributes.contains(NOSUID | NOEXEC));
            let devices = !filesystem.attributes.contains(NODEV);
            assert_eq!(devices, filesystem.target == c"dev" || filesystem.target == c"dev/pts");
        }
    }

    #[test]
    fn what_the_oci_runtimes_hide_is_hidden() {
        // The default profile of containerd and Docker ("MaskedPaths", "ReadonlyPaths").
        for path in [
            c"proc/acpi",
            c"proc/asound",
            c"proc/kcore",
            c"proc/keys",
            c"proc/latency_stats",
            c"proc/timer_list",
            c"proc/timer_stats",
            c"proc/sched_debug",
            c"proc/scsi",
            c"sys/firmware",
            c"sys/devices/virtual/powercap",
        ] {
            assert!(MASKED.contains(&path));
        }
        for path in [c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"] {
            assert!(READ_ONLY.contains(&path));
        }
    }

    #[test]
    fn i16_files_of_etc_are_made_anew_and_no_link_is_written_through() {
        let root = std::env::temp_dir().join(std::format!("parma-etc-{}", std::process::id()));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("outside"), "outside").unwrap();
        symlink("../outside", root.join("etc/hosts")).unwrap();
        fs::write(root.join("etc/hostname"), "a longer name than the new one").unwrap();
        let open = |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty()).unwrap();
        let at = open(&root);
        for name in ["hosts", "hostname", "resolv.conf"] {
            write_etc(at.as_fd(), name, "content").unwrap();
            let path = root.join("etc").join(name);
            assert_eq!(fs::read_to_string(&path).unwrap(), "content");
            let file = fs::symlink_metadata(&path).unwrap();
            assert!(file.is_file() && file.permissions().mode() & 0o777 & !0o644 == 0);
        }
        assert_eq!(fs::read_to_string(root.join("outside")).unwrap(), "outside");
        // Here `/etc` itself leads elsewhere.
        fs::create_dir(root.join("other")).unwrap();
        symlink("../etc", root.join("other/etc")).unwrap();
        assert_eq!(write_etc(open(&root.join("other")).as_fd(), "hosts", "x"), Err(Errno::NOTDIR));
        assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "content");
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn c09_a_process_has_a_null_device_of_its_own_on_a_mount_that_holds_nothing_else_of_use() {
        if !rustix::process::geteuid().is_root() {
            std::println!("skipped, needs root");
            return;
        }
        let [one, other] = [(); 2].map(|()| private_null().unwrap());
        assert_ne!(fstat(&one).unwrap().st_dev, fstat(&other).unwrap().st_dev);
        assert_eq!(fstat(&one).unwrap().st_rdev, makedev(1, 3));
        assert_eq!((write(&one, b"x"), rustix::io::read(&one, &mut [0; 1])), (Ok(1), Ok(0)));
        let flags = rustix::fs::fstatvfs(&one).unwrap().f_flag;
        assert!(flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NOEXEC));
    }
}
