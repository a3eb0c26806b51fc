//! The user of a process, in the container's own files.

use super::path;
use crate::accounts::{self, MAX_FILE, Unresolved};
use crate::gate::action::User;
use crate::gate::fields::UserSpec;
use crate::linux::Errno;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::BorrowedFd;

/// Resolves a user in the root filesystem `root`, once, to what both the policy and the process get (C06).
///
/// A missing file has no entries. Errors: `NOENT` for a name that is not there, `FBIG` for a file over its limit or too
/// many groups, `NOMEM`, and those of opening a file.
pub fn resolve(root: BorrowedFd<'_>, spec: UserSpec<'_>) -> Result<User, Errno> {
    let passwd = read(root, c"etc/passwd")?;
    let group = read(root, c"etc/group")?;
    accounts::resolve(&passwd, &group, spec).map_err(|unresolved| match unresolved {
        Unresolved::NoUser(_) | Unresolved::NoGroup(_) => Errno::NOENT,
        Unresolved::TooManyGroups => Errno::FBIG,
        Unresolved::Memory => Errno::NOMEM,
    })
}

fn read(root: BorrowedFd<'_>, file: &CStr) -> Result<Vec<u8>, Errno> {
    match path::read_file(root, file, MAX_FILE) {
        Err(Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}
