//! Directories: private ones for running machines, and the cache.

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use std::env::var_os;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PREFIX: &str = "parma-vm-";
/// Longest path of a Unix socket (unix(7)), less the NUL and the longest name put into a runtime directory.
const LONGEST: usize = 107 - "/vsock_4294967295".len();

/// A private directory for one machine's sockets and logs, removed when dropped. One whose owner was killed is removed
/// by the next machine.
pub struct Runtime {
    dir: TempDir,
    _lock: File,
}

impl Runtime {
    /// A new, empty one: below `$XDG_RUNTIME_DIR`, or the directory for temporary files.
    pub fn new() -> Result<Self> {
        let base = base();
        sweep_below(&base);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&base)
            .with_context(|| {
                format!("cannot create a directory in {}: set XDG_RUNTIME_DIR", base.display())
            })?;
        if dir.path().as_os_str().len() > LONGEST {
            bail!("{} is too long for Unix sockets: set XDG_RUNTIME_DIR to a shorter path", base.display());
        }
        // It gets its name when it is locked: otherwise another's sweep could be in between.
        let unnamed = dir.path().join("lock.new");
        let lock = File::create(&unnamed).context("cannot create a lock file")?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).context("cannot lock a new file")?;
        fs::rename(&unnamed, dir.path().join("lock")).context("cannot name a lock file")?;
        Ok(Self { dir, _lock: lock })
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn base() -> PathBuf {
    let named = var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
    named.unwrap_or_else(std::env::temp_dir)
}

/// Removes the directories of machines whose owners were killed, as the next [`Machine`](crate::Machine) does.
pub fn sweep() {
    sweep_below(&base());
}

/// Whatever is not plainly ours stays.
fn sweep_below(base: &Path) {
    let me = rustix::process::getuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let is_mine = || entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == me);
        if ours && is_mine() {
            // Its owner makes the file, locked, right after the directory: one without a file is left alone.
            let abandoned = File::open(entry.path().join("lock"))
                .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok());
            if abandoned {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A directory in the cache: below `$PARMA_CACHE`, `$XDG_CACHE_HOME/parma` or `~/.cache/parma`. It may not exist yet.
///
/// # Errors
/// None of the three variables is set.
pub fn cache_dir(name: &str) -> Result<PathBuf> {
    let from = |variable: &str| var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = from("PARMA_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("parma")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/parma")))
        .context("no place for the cache: set PARMA_CACHE or HOME")?;
    ensure!(base.is_absolute(), "the cache {} is not an absolute path: set PARMA_CACHE", base.display());
    Ok(base.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_without_a_living_owner_are_swept() {
        let base = tempfile::tempdir().unwrap();
        let dir = |name: &str| {
            let path = base.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let abandoned = dir("parma-vm-dead");
        File::create(abandoned.join("lock")).unwrap();
        let alive = dir("parma-vm-alive");
        let lock = File::create(alive.join("lock")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let (unlocked, foreign) = (dir("parma-vm-new"), dir("other"));
        sweep_below(base.path());
        assert!(!abandoned.exists());
        assert!(alive.exists() && unlocked.exists() && foreign.exists());
    }
}
