//! Where results are kept, and how they get there.
//!
//! A directory or file appears under its final name only when it is complete: it is made beside it and
//! renamed. One process makes it; others wait at a lock file. So a crash leaves nothing half-written that a
//! later run would take for a result.

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The project's root.
pub fn root() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().expect("xtask lies in the root").to_path_buf()
}

/// The cache: `$PARMA_CACHE`, `$XDG_CACHE_HOME/parma` or `~/.cache/parma`, and a directory in it.
pub fn dir(name: &str) -> Result<PathBuf> {
    let from = |variable: &str| std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = from("PARMA_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|d| d.join("parma")))
        .or_else(|| from("HOME").map(|d| d.join(".cache/parma")))
        .ok_or_else(|| anyhow!("no place for the cache: set PARMA_CACHE or HOME"))?;
    let dir = std::path::absolute(base.join(name))?;
    fs::create_dir_all(&dir).with_context(|| {
        format!("cannot create {}: set PARMA_CACHE to a writable directory", dir.display())
    })?;
    Ok(dir)
}

/// Holds off every other process that wants `target`, until dropped.
pub fn lock(target: &Path) -> Result<File> {
    let path = beside(target, ".lock")?;
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another process that holds {}", path.display());
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    Ok(file)
}

/// A directory in the making: it becomes `target` by [`Staging::publish`], or disappears.
pub struct Staging {
    temporary: TempDir,
    target: PathBuf,
}

impl Staging {
    /// Call it with the target's [`lock`]: what a killed process left of the same target is removed.
    pub fn new(target: &Path) -> Result<Self> {
        let parent = parent(target)?;
        let prefix = beside(target, ".making-")?;
        let prefix = prefix.file_name().expect("it has a name").to_string_lossy().into_owned();
        for entry in fs::read_dir(&parent).with_context(|| format!("cannot list {}", parent.display()))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let temporary = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&parent)
            .with_context(|| format!("cannot write to {}", parent.display()))?;
        Ok(Self { temporary, target: target.to_path_buf() })
    }

    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Puts the directory in the target's place. What was there before is deleted.
    pub fn publish(self) -> Result<PathBuf> {
        let failed = || format!("cannot put the result in place at {}", self.target.display());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(self.temporary.path(), mode).with_context(failed)?;
        let old = beside(&self.target, ".old")?;
        let _ = fs::remove_dir_all(&old);
        if self.target.exists() {
            fs::rename(&self.target, &old).with_context(failed)?;
        }
        fs::rename(self.temporary.path(), &self.target).with_context(failed)?;
        let _ = self.temporary.keep();
        let _ = fs::remove_dir_all(&old);
        Ok(self.target)
    }
}

/// Writes a file so that it has either its old or its new content, whatever happens.
pub fn write(target: &Path, content: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", target.display());
    let mut file = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(parent(target)?)
        .with_context(failed)?;
    file.write_all(content).with_context(failed)?;
    file.persist(target).with_context(failed)?;
    Ok(())
}

/// The SHA-256 of some bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file, in hexadecimal.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// Reads a file, naming it when that fails.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn parent(target: &Path) -> Result<PathBuf> {
    let parent = std::path::absolute(target)?.parent().map(Path::to_path_buf);
    let parent = parent.ok_or_else(|| anyhow!("{} cannot be replaced", target.display()))?;
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    Ok(parent)
}

fn beside(target: &Path, suffix: &str) -> Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| anyhow!("{} has no name", target.display()))?;
    Ok(parent(target)?.join(format!(".{}{suffix}", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_published_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("result");
        let staging = Staging::new(&target).unwrap();
        fs::write(staging.path().join("half"), b"").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("result");
        let _ = Staging::new(&target).unwrap().temporary.keep();
        Staging::new(&target).unwrap().publish().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn publishing_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("result");
        for name in ["first", "second"] {
            let staging = Staging::new(&target).unwrap();
            fs::write(staging.path().join(name), b"").unwrap();
            staging.publish().unwrap();
        }
        assert!(target.join("second").exists() && !target.join("first").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn hashes_of_bytes_and_files_agree() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        write(&file, b"abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((sha256(b"abc"), sha256_of(&file).unwrap()), (expected.into(), expected.into()));
    }
}
