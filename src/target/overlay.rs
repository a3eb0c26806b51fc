//! A container's root filesystem: its layers, read-only, under a writable directory.
//!
//! Until scratch space is encrypted, what a container writes stays in guest memory, in a tmpfs of its own whose size is
//! bounded, so that one container cannot take all of it.

use super::{failed, undone};
use crate::gate::action::{ActError, MountOverlay, Permit, UnmountOverlay};
use crate::gate::fields::{ContainerId, Slot};
use crate::linux::Errno;
use crate::wire::Step;
use core::ffi::CStr;
use core::fmt::Write;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, CWD, Gid, Mode, Uid, chmodat, chownat, mkdirat, stat, unlinkat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

/// What one container may write, as tmpfs's options: a share of the machine's memory.
const SCRATCH: &CStr = c"mode=0700,size=25%";

/// Overlay features that follow attributes in a layer to other files, off (attack I17).
/// `redirect_dir=off` would still follow the redirects that a layer brings, where the kernel is built to.
const FEATURES: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")];

/// The longest is `/run/gcs/c/<64 digits>/scratch/upper`.
type Path = heapless::String<96>;

/// Where the parts of one container's root filesystem are.
struct Places {
    folder: Path,
    scratch: Path,
    upper: Path,
    work: Path,
    rootfs: Path,
}

impl Places {
    fn of(container: &ContainerId) -> Self {
        let under = |name: &str| {
            let mut path = Path::new();
            // 11, 64 and at most 14 bytes.
            let _ = write!(path, "/run/gcs/c/{}{name}", container.as_str());
            path
        };
        Self {
            folder: under(""),
            scratch: under("/scratch"),
            upper: under("/scratch/upper"),
            work: under("/scratch/work"),
            rootfs: under("/rootfs"),
        }
    }
}

/// What was made so far, to be unmade in reverse order.
#[derive(Default)]
struct Made<'a>(heapless::Vec<Undo<'a>, 4>);

enum Undo<'a> {
    Unmount(&'a str),
    RemoveFolder(&'a str),
}

impl<'a> Made<'a> {
    fn folder(&mut self, path: &'a str) -> Result<(), Errno> {
        mkdirat(CWD, path, Mode::RWXU)?;
        self.0.push(Undo::RemoveFolder(path)).map_err(|_| Errno::NOMEM)
    }

    fn tmpfs(&mut self, path: &'a str, options: &CStr) -> Result<(), Errno> {
        mount("tmpfs", path, "tmpfs", MountFlags::NODEV, options)?;
        self.0.push(Undo::Unmount(path)).map_err(|_| Errno::NOMEM)
    }

    /// Whether everything is as before.
    fn undo(mut self) -> bool {
        let mut undone = true;
        while let Some(step) = self.0.pop() {
            undone &= match step {
                Undo::Unmount(path) => unmount(path, UnmountFlags::NOFOLLOW).is_ok(),
                Undo::RemoveFolder(path) => remove_folder(path).is_ok(),
            };
        }
        undone
    }
}

fn remove_folder(path: &str) -> Result<(), Errno> {
    unlinkat(CWD, path, AtFlags::REMOVEDIR)
}

/// Mounts the overlay of these layers, top first, at the container's `rootfs`.
pub fn mount_overlay(permit: Permit<MountOverlay>) -> Result<(), ActError> {
    let MountOverlay { container, layers } = permit.into_action();
    let places = Places::of(&container);
    let mut made = Made::default();
    build(&places, &layers, &mut made).map_err(|errno| failed(Step::Mount, errno, made.undo()))
}

fn build<'a>(places: &'a Places, layers: &[Slot], made: &mut Made<'a>) -> Result<(), Errno> {
    let top = layers.first().ok_or(Errno::INVAL)?.path();
    made.folder(&places.folder)?;
    made.folder(&places.scratch)?;
    made.folder(&places.rootfs)?;
    made.tmpfs(&places.scratch, SCRATCH)?;
    mkdirat(CWD, places.work.as_str(), Mode::RWXU)?;
    mkdirat(CWD, places.upper.as_str(), Mode::RWXU)?;
    // The container's `/` shows owner and mode of the upper directory.
    let root = stat(top.as_str())?;
    chownat(
        CWD,
        places.upper.as_str(),
        Some(Uid::from_raw(root.st_uid)),
        Some(Gid::from_raw(root.st_gid)),
        AtFlags::empty(),
    )?;
    chmodat(CWD, places.upper.as_str(), Mode::from_raw_mode(root.st_mode & 0o7777), AtFlags::empty())?;
    overlay(places, layers)
}

fn overlay(places: &Places, layers: &[Slot]) -> Result<(), Errno> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| fsconfig_set_string(filesystem.as_fd(), key, value);
    for layer in layers {
        set("lowerdir+", &layer.path())?;
    }
    set("upperdir", &places.upper)?;
    set("workdir", &places.work)?;
    for (feature, setting) in FEATURES {
        set(feature, setting)?;
    }
    fsconfig_create(filesystem.as_fd())?;
    let mounted =
        fsmount(filesystem.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    move_mount(mounted.as_fd(), "", CWD, places.rootfs.as_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Unmounts a container's overlay and drops what the container wrote.
pub fn unmount_overlay(permit: Permit<UnmountOverlay>) -> Result<(), ActError> {
    let UnmountOverlay { container } = permit.into_action();
    let places = Places::of(&container);
    unmount(places.rootfs.as_str(), UnmountFlags::NOFOLLOW).map_err(undone(Step::Unmount))?;
    // What the container wrote is gone with its scratch space, so from here on there is no way back.
    unmount(places.scratch.as_str(), UnmountFlags::NOFOLLOW)
        .and_then(|()| remove_folder(&places.rootfs))
        .and_then(|()| remove_folder(&places.scratch))
        .and_then(|()| remove_folder(&places.folder))
        .map_err(|errno| failed(Step::Unmount, errno, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_fits_its_path() {
        let container = ContainerId::parse(&"a".repeat(ContainerId::LENGTH)).unwrap();
        let places = Places::of(&container);
        let folder = std::format!("/run/gcs/c/{}", "a".repeat(64));
        assert_eq!(places.folder.as_str(), folder);
        assert_eq!(places.upper.as_str(), std::format!("{folder}/scratch/upper"));
        assert_eq!(places.work.as_str(), std::format!("{folder}/scratch/work"));
        assert_eq!(places.rootfs.as_str(), std::format!("{folder}/rootfs"));
    }
}
