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
const HANDLE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// For a handle on a directory; a symbolic link in its place is none.
pub const DIRECTORY: OFlags = HANDLE.union(OFlags::DIRECTORY);

/// A handle on something inside `root`, for use by descriptor only. No component may be a symbolic link.
pub fn handle(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    openat2(root, path, HANDLE, Mode::empty(), NO_LINKS)
}

/// A handle on a directory inside `root`, which is made if it is missing. No component may be a symbolic link.
pub fn mount_target(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd, Errno> {
    let open = || openat2(root, path, DIRECTORY, Mode::empty(), NO_LINKS);
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
            // A dangling link is there, and is not followed.
            Err(Errno::NOENT) => mount_target(at.as_fd(), &c_string(&[name])?)?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{fcntl_getfl, mknodat, open};
    use rustix::io::{FdFlags, fcntl_getfd};
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    /// A root filesystem: `/dir/file`, `/file`, and links out of it.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let root = Self(std::env::temp_dir().join(std::format!("parma-{name}-{}", std::process::id())));
            fs::create_dir_all(root.0.join("dir")).unwrap();
            fs::write(root.0.join("dir/file"), "inside").unwrap();
            fs::write(root.0.join("file"), "12345").unwrap();
            symlink("dir", root.0.join("link")).unwrap();
            symlink("/usr/lib", root.0.join("etc")).unwrap();
            symlink("../../../../dir/file", root.0.join("up")).unwrap();
            root
        }

        fn open(&self) -> OwnedFd {
            open(&self.0, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Nothing can be read or written through it, and no program inherits it.
    fn is_handle(opened: &OwnedFd) -> bool {
        fcntl_getfl(opened).unwrap().contains(OFlags::PATH)
            && fcntl_getfd(opened).unwrap().contains(FdFlags::CLOEXEC)
    }

    #[test]
    fn i16_no_link_of_an_image_leads_a_mount_anywhere() {
        let root = Root::new("targets");
        let at = root.open();
        let at = at.as_fd();
        assert!(is_handle(&handle(at, c"dir/file").unwrap()));
        assert_eq!(handle(at, c"link/file").map(drop), Err(Errno::LOOP));
        // The link itself, not what it leads to.
        let link = handle(at, c"etc").unwrap();
        assert_eq!(FileType::from_raw_mode(fstat(&link).unwrap().st_mode), FileType::Symlink);

        assert!(is_handle(&mount_target(at, c"dir").unwrap()));
        assert!(is_handle(&mount_target(at, c"new").unwrap()));
        assert!(root.0.join("new").is_dir());
        assert_eq!(mount_target(at, c"file").map(drop), Err(Errno::NOTDIR));
        for link in [c"etc", c"link"] {
            assert!(mount_target(at, link).is_err(), "{link:?}");
        }
        assert!(is_handle(&mount_point(at, "/one/two/three").unwrap()));
        assert!(root.0.join("one/two/three").is_dir());
        for path in ["/etc/x", "/link/x", "/file/x", "/one/two/../../../x"] {
            assert!(mount_point(at, path).is_err(), "{path}");
        }
        assert!(!root.0.join("dir/x").exists());
    }

    #[test]
    fn a_directory_to_work_in_is_where_the_container_finds_it() {
        let root = Root::new("directories");
        let at = root.open();
        let at = at.as_fd();
        let same = |opened: &OwnedFd, path: &str| {
            let (opened, path) = (fstat(opened).unwrap(), fs::metadata(root.0.join(path)).unwrap());
            opened.st_ino == std::os::unix::fs::MetadataExt::ino(&path)
        };
        for (path, place) in [(c"/", "."), (c"/dir", "dir"), (c"/link", "dir"), (c"/../../dir", "dir")] {
            let opened = directory(at, path).unwrap();
            assert!(is_handle(&opened) && same(&opened, place), "{path:?}");
        }
        assert_eq!(directory(at, c"/file").map(drop), Err(Errno::NOTDIR));
        // `/usr/lib` is the container's own, which is not there.
        assert_eq!(directory(at, c"/etc").map(drop), Err(Errno::NOENT));
        for path in ["/", "/dir", "/link/a/b", "/x/y"] {
            assert!(is_handle(&make_directories(at, path).unwrap()), "{path}");
        }
        assert!(root.0.join("dir/a/b").is_dir() && root.0.join("x/y").is_dir());
        assert_eq!(make_directories(at, "/file/x").map(drop), Err(Errno::NOTDIR));
        assert_eq!(make_directories(at, "/etc/x").map(drop), Err(Errno::NOTDIR), "a dangling link");
    }

    #[test]
    fn i16_a_file_is_read_whole_from_inside_and_only_if_it_is_one() {
        let root = Root::new("files");
        let at = root.open();
        let at = at.as_fd();
        assert_eq!(read_file(at, c"file", 5).as_deref(), Ok(&b"12345"[..]));
        assert_eq!(read_file(at, c"file", 4), Err(Errno::FBIG));
        assert_eq!(read_file(at, c"up", 10).as_deref(), Ok(&b"inside"[..]));
        assert_eq!(read_file(at, c"etc/os-release", 1 << 20), Err(Errno::NOENT));
        assert_eq!(read_file(at, c"dir", 10), Err(Errno::INVAL));
        let fifo = root.0.join("fifo");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        assert_eq!(read_file(at, c"fifo", 10), Err(Errno::INVAL));
        let fifo = c_string(&[fifo.to_str().unwrap()]).unwrap();
        assert_eq!(executable(&fifo), Err(Errno::ACCESS), "nor is it waited for");
        fs::write(root.0.join("long"), [7; 10_000]).unwrap();
        assert_eq!(read_file(at, c"long", 10_000), Ok(alloc::vec![7; 10_000]));
    }
}
