//! A container's root filesystem: its layers, read-only, under a writable directory.
//!
//! The directory is on a scratch device, or, where the policy allows that, in a tmpfs of the container's own: guest memory,
//! bounded, so that one container cannot take all of it. What a container wrote on a scratch device stays there, out of
//! everybody's reach, until the device is unmounted: its id is never used again.

use super::scratch::furnish;
use super::{failed, undone};
use crate::gate::action::{ActError, MountOverlay, Permit, UnmountOverlay};
use crate::gate::fields::{ContainerId, Slot};
use crate::gate::input::{self, Path};
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
const MEMORY: &CStr = c"mode=0700,size=25%";

/// Overlay features that follow attributes in a layer to other files, off (attack I17).
/// `redirect_dir=off` would still follow the redirects that a layer brings, where the kernel is built to.
const FEATURES: [(&str, &str); 4] =
    [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off"), ("xino", "off")];

/// Where the parts of one container's root filesystem are.
struct Places {
    /// The container's folder, which is the scratch space itself where that is the container's own.
    folder: Path,
    /// Whether the folder is another one.
    shared: bool,
    /// What the container writes.
    writable: Path,
    upper: Path,
    work: Path,
    rootfs: Path,
}

impl Places {
    fn of(container: &ContainerId, scratch: Option<&ContainerId>) -> Self {
        let scratch = scratch.unwrap_or(container);
        let writable = input::writable(scratch, container);
        let under = |name: &str| {
            let mut path = writable.clone();
            // 148 bytes and at most 6 fit.
            let _ = write!(path, "/{name}");
            path
        };
        Self {
            folder: input::folder(container),
            shared: scratch != container,
            upper: under("upper"),
            work: under("work"),
            writable,
            rootfs: input::rootfs(container),
        }
    }
}

/// What was made so far, to be unmade in reverse order.
#[derive(Default)]
struct Made<'a>(heapless::Vec<Undo<'a>, 6>);

enum Undo<'a> {
    Unmount(&'a str),
    RemoveFolder(&'a str),
    /// On scratch space, where an empty folder that stays is in nobody's way.
    Discard(&'a str),
}

impl<'a> Made<'a> {
    fn folder(&mut self, path: &'a str) -> Result<(), Errno> {
        mkdirat(CWD, path, Mode::RWXU)?;
        self.0.push(Undo::RemoveFolder(path)).map_err(|_| Errno::NOMEM)
    }

    fn writable(&mut self, path: &'a str) -> Result<(), Errno> {
        mkdirat(CWD, path, Mode::RWXU)?;
        self.0.push(Undo::Discard(path)).map_err(|_| Errno::NOMEM)
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
                Undo::Discard(path) => {
                    let _ = remove_folder(path);
                    true
                }
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
    let MountOverlay { container, layers, scratch } = permit.into_action();
    let places = Places::of(&container, scratch.as_ref());
    let mut made = Made::default();
    build(&places, &layers, scratch.is_none(), &mut made)
        .map_err(|errno| failed(Step::Mount, errno, made.undo()))
}

fn build<'a>(places: &'a Places, layers: &[Slot], in_memory: bool, made: &mut Made<'a>) -> Result<(), Errno> {
    let top = layers.first().ok_or(Errno::INVAL)?.path();
    if in_memory {
        made.folder(&places.folder)?;
        made.tmpfs(&places.folder, MEMORY)?;
        furnish(&places.folder)?;
    } else if places.shared {
        made.folder(&places.folder)?;
    }
    made.folder(&places.rootfs)?;
    made.writable(&places.writable)?;
    made.writable(&places.work)?;
    made.writable(&places.upper)?;
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

/// Unmounts a container's overlay. What the container wrote to guest memory is dropped.
pub fn unmount_overlay(permit: Permit<UnmountOverlay>) -> Result<(), ActError> {
    let UnmountOverlay { container, scratch } = permit.into_action();
    let places = Places::of(&container, scratch.as_ref());
    unmount(places.rootfs.as_str(), UnmountFlags::NOFOLLOW).map_err(undone(Step::Unmount))?;
    // From here on there is no way back.
    let in_memory = scratch.is_none();
    let removed = if in_memory {
        unmount(places.folder.as_str(), UnmountFlags::NOFOLLOW)
    } else {
        remove_folder(&places.rootfs)
    };
    removed
        .and_then(|()| if in_memory || places.shared { remove_folder(&places.folder) } else { Ok(()) })
        .map_err(|errno| failed(Step::Unmount, errno, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_fits_its_path() {
        let id = |digit: &str| ContainerId::parse(&digit.repeat(ContainerId::LENGTH)).unwrap();
        let folder = |digit: &str| std::format!("/run/gcs/c/{}", digit.repeat(64));
        let places = Places::of(&id("a"), Some(&id("b")));
        let writable = std::format!("{}/scratch/{}", folder("b"), "a".repeat(64));
        assert_eq!(places.folder.as_str(), folder("a"));
        assert_eq!(places.upper.as_str(), std::format!("{writable}/upper"));
        assert_eq!(places.work.as_str(), std::format!("{writable}/work"));
        assert_eq!(places.rootfs.as_str(), std::format!("{}/rootfs", folder("a")));
        assert!(places.shared && !Places::of(&id("a"), None).shared);
        assert_eq!(Places::of(&id("a"), None).writable, Places::of(&id("a"), Some(&id("a"))).writable);
    }
}
