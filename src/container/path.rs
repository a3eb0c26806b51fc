//! Paths inside a container's root filesystem.
//!
//! SECURITY (I16): whatever is in there was made by an image or by a container and points anywhere. Every path is
//! resolved by openat2(2) with the container's root as the root, magic links of procfs are never followed, and what was
//! opened is then used by its descriptor, so nothing can be swapped in between.

use crate::linux::Errno;
use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};

/// Mode of the directories made here.
const DIRECTORY_MODE: Mode = Mode::from_bits_retain(0o755);

const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const NO_LINKS: ResolveFlags = IN_ROOT.union(ResolveFlags::NO_SYMLINKS);

/// A handle on something inside `root`, for use by descriptor only. No component may be a symbolic link.
pub fn handle(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    openat2(root, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), NO_LINKS)
}

/// A handle on a directory inside `root`, which is made if it is missing. No component may be a symbolic link.
pub fn mount_target(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || openat2(root, path, flags, Mode::empty(), NO_LINKS);
    match open() {
        Err(Errno::NOENT) => {
            // The callers' paths have one component, or lead through filesystems mounted here a moment ago.
            mkdirat(root, path, DIRECTORY_MODE)?;
            open()
        }
        other => other,
    }
}

/// As [`mount_target`] for an absolute path of any depth, each of whose missing directories is made.
///
/// SECURITY (I16): no component may be a symbolic link, so an image cannot lead a mount elsewhere. The container does not run
/// yet.
pub fn mount_point(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let ends = path.bytes().enumerate().filter(|&(at, byte)| byte == b'/' && at > 0).map(|(at, _)| at);
    let mut target = Err(Errno::INVAL);
    for end in ends.chain([path.len()]) {
        target = mount_target(root, &c_string(&[path.get(1..end).ok_or(Errno::INVAL)?])?);
        if target.is_err() {
            break;
        }
    }
    target
}

/// A handle on an existing directory inside `root`; links are followed as they are inside the container.
pub fn directory(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), IN_ROOT)
}

/// As [`directory`]; the missing components at the end of the path are made.
///
/// For a container that does not run yet: in one that does, somebody could move a directory away between two steps.
pub fn make_directories(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let mut at = directory(root, c"/")?;
    let ends = path.bytes().enumerate().filter(|&(i, byte)| byte == b'/' && i > 0).map(|(i, _)| i);
    let mut start = 1;
    for end in ends.chain([path.len()]) {
        let prefix = path.get(..end).ok_or(Errno::INVAL)?;
        let name = path.get(start..end).ok_or(Errno::INVAL)?;
        start = end + 1;
        if name.is_empty() {
            continue;
        }
        at = match directory(root, &c_string(&[prefix])?) {
            Err(Errno::NOENT) => {
                let name = c_string(&[name])?;
                // A dangling link is there already, so this fails on it.
                mkdirat(&at, &*name, DIRECTORY_MODE)?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat2(&at, &*name, flags, Mode::empty(), NO_LINKS)?
            }
            other => other?,
        };
    }
    Ok(at)
}

/// The bytes of a regular file inside `root`. `FBIG` if it has more than `limit`, `INVAL` if it is anything else; a
/// device or a FIFO there is opened without side effect or waiting.
pub fn read_file(root: BorrowedFd<'_>, path: &CStr, limit: usize) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let handle = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), IN_ROOT)?;
    if FileType::from_raw_mode(fstat(&handle)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let file = openat2(root, path, flags, Mode::empty(), IN_ROOT | ResolveFlags::NO_XDEV)?;
    let stat = fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    if usize::try_from(stat.st_size).map_or(true, |size| size > limit) {
        return Err(Errno::FBIG);
    }
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let count = match rustix::io::read(&file, &mut chunk) {
            Ok(0) => return Ok(bytes),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        // The file may have grown since.
        if bytes.len() + count > limit {
            return Err(Errno::FBIG);
        }
        bytes.try_reserve(count).map_err(|_| Errno::NOMEM)?;
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
    }
}

/// Whether a program of this path may be executed by a process whose root is the container's: it exists, is a regular
/// file, and no magic link leads to it (`/proc/self/exe` would be the init itself, CVE-2019-5736).
pub fn executable(path: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let program = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    match FileType::from_raw_mode(fstat(program.as_fd())?.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(Errno::ACCESS),
    }
}

/// These pieces, one after the other. `INVAL` if there is a NUL inside, `NOMEM` if there is no memory.
pub fn c_string(pieces: &[&str]) -> Result<CString, Errno> {
    let mut bytes = Vec::new();
    let length: usize = pieces.iter().map(|piece| piece.len()).sum();
    // With room for the NUL, so that it can be added without asking again.
    bytes.try_reserve_exact(length + 1).map_err(|_| Errno::NOMEM)?;
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece.as_bytes()));
    CString::new(bytes).map_err(|_| Errno::INVAL)
}
