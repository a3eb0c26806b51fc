//! Users and groups as the container's own `/etc/passwd` and `/etc/group` tell them.
//!
//! The rules are those of Docker for the `USER` of an image, with two differences: a number only ever means the user or
//! group with that number, not one with that name; and a line that is not well-formed is no entry, instead of an entry
//! of user 0.

use super::path;
use crate::gate::action::{Group, User};
use crate::gate::fields::{IdOrName, UserSpec};
use crate::linux::Errno;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::BorrowedFd;

/// Longest `/etc/passwd` or `/etc/group`, in bytes.
const MAX_FILE: usize = 1 << 20;
/// Most groups of one user.
const MAX_GROUPS: usize = 1024;

/// Resolves a user in the root filesystem `root`, once, to what both the policy and the process get (C06).
///
/// A missing file has no entries. Errors: `NOENT` for a name that is not there, `FBIG` for a file over its limit or too
/// many groups, and those of opening a file.
pub fn resolve(root: BorrowedFd<'_>, spec: UserSpec<'_>) -> Result<User, Errno> {
    let passwd = read(root, c"etc/passwd")?;
    let group = read(root, c"etc/group")?;
    lookup(&passwd, &group, spec)
}

fn read(root: BorrowedFd<'_>, file: &CStr) -> Result<Vec<u8>, Errno> {
    match path::read_file(root, file, MAX_FILE) {
        Err(Errno::NOENT) => Ok(Vec::new()),
        other => other,
    }
}

fn lookup(passwd: &[u8], group: &[u8], spec: UserSpec<'_>) -> Result<User, Errno> {
    let user = match spec.user {
        IdOrName::Id(uid) => {
            users(passwd).find(|user| user.uid == uid).unwrap_or(PasswdEntry { name: "", uid, gid: 0 })
        }
        IdOrName::Name(name) => users(passwd).find(|user| user.name == name).ok_or(Errno::NOENT)?,
    };
    let mut gids = Vec::new();
    match spec.group {
        Some(IdOrName::Id(gid)) => gids.push(gid),
        Some(IdOrName::Name(name)) => {
            gids.push(groups(group).find(|group| group.name == name).ok_or(Errno::NOENT)?.gid);
        }
        None => {
            gids.push(user.gid);
            let member_of = |group: &GroupEntry<'_>| {
                !user.name.is_empty() && group.members.split(',').any(|member| member == user.name)
            };
            for entry in groups(group).filter(member_of) {
                if gids.contains(&entry.gid) {
                    continue;
                }
                if gids.len() == MAX_GROUPS {
                    return Err(Errno::FBIG);
                }
                gids.push(entry.gid);
            }
        }
    }
    let name_of = |gid| groups(group).find(|group| group.gid == gid).map_or("", |group| group.name);
    let groups = gids.into_iter().map(|gid| Group { gid, name: String::from(name_of(gid)) }).collect();
    Ok(User { uid: user.uid, name: String::from(user.name), groups })
}

/// What a line of `/etc/passwd` says that matters here.
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

/// A line of `/etc/group`.
struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// `name:password:uid:gid:comment:home:shell`
fn users(file: &[u8]) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        Some(PasswdEntry { name: entry_name(name)?, uid: id(uid)?, gid: id(gid)? })
    })
}

/// `name:password:gid:member,member…`
fn groups(file: &[u8]) -> impl Iterator<Item = GroupEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some(GroupEntry { name: entry_name(name)?, gid: id(gid)?, members: fields.next().unwrap_or("") })
    })
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|&byte| byte == b'\n').filter_map(|line| core::str::from_utf8(line).ok()).map(str::trim)
}

/// `+` and `-` begin lines that refer to NIS, `#` comments.
fn entry_name(name: &str) -> Option<&str> {
    (!name.is_empty() && !name.starts_with(['+', '-', '#'])).then_some(name)
}

/// A decimal number below 2³²−1, which means "unchanged" to the kernel.
fn id(text: &str) -> Option<u32> {
    // `parse` takes a sign, which no entry has.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?.filter(|&id| id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        daemon:x:1:1::/:/usr/sbin/nologin\n\
        www:x:33:44::/var/www:/bin/sh\n\
        twice:x:50:51::/:\n\
        twice:x:60:61::/:\n\
        4242:x:70:71::/:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nadm:x:4:www,daemon\nwww-data:x:44:\nextra:x:45:daemon,www\nalias:x:4:www\nempty:x:9\n";

    fn spec(text: &str) -> Result<User, Errno> {
        lookup(PASSWD, GROUP, UserSpec::parse(text).unwrap())
    }

    fn ids(text: &str) -> (u32, Vec<u32>) {
        let user = spec(text).unwrap();
        (user.uid, user.groups.iter().map(|group| group.gid).collect())
    }

    #[test]
    fn a_user_has_its_primary_group_first_and_each_supplementary_one_once() {
        assert_eq!(ids("www"), (33, [44, 4, 45].into()));
        assert_eq!(ids("33"), ids("www"));
        let names: Vec<_> = spec("www").unwrap().groups.into_iter().map(|group| group.name).collect();
        assert_eq!(names, ["www-data", "adm", "extra"]);
        assert_eq!(spec("33").unwrap().name, "www");
    }

    #[test]
    fn no_user_is_root() {
        assert_eq!(ids(""), (0, [0].into()));
        assert_eq!(spec("").unwrap(), spec("root").unwrap());
    }

    #[test]
    fn a_number_that_is_not_listed_has_group_0_and_no_name() {
        assert_eq!(ids("1000"), (1000, [0].into()));
        assert_eq!(spec("1000").unwrap().name, "");
    }

    #[test]
    fn a_group_that_is_given_is_the_only_one() {
        assert_eq!(ids("www:adm"), (33, [4].into()));
        assert_eq!(ids("www:7"), (33, [7].into()));
        assert_eq!(ids("1000:extra"), (1000, [45].into()));
        assert_eq!(ids("0:9"), (0, [9].into()));
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error() {
        assert_eq!(spec("nobody"), Err(Errno::NOENT));
        assert_eq!(spec("root:nogroup"), Err(Errno::NOENT));
        assert_eq!(lookup(b"", b"", UserSpec::parse("root").unwrap()), Err(Errno::NOENT));
        assert!(lookup(b"", b"", UserSpec::parse("").unwrap()).is_ok());
    }

    #[test]
    fn the_first_of_two_entries_counts() {
        assert_eq!(ids("twice"), (50, [51].into()));
    }

    #[test]
    fn c06_a_number_never_means_a_user_of_that_name() {
        assert_eq!(ids("4242"), (4242, [0].into()));
    }

    #[test]
    fn c06_a_malformed_line_is_no_entry() {
        for line in [
            "evil",
            "evil:x",
            "evil:x:0",
            "evil:x::0",
            "evil:x:zero:0",
            "evil:x:-1:0",
            "evil:x:+0:0",
            "evil:x:0x0:0",
            "evil:x:4294967295:0",
            "evil:x:4294967296:0",
            "evil:x:0:4294967295",
            "evil:x: 0:0",
            "+evil:x:0:0",
            ":x:0:0:evil",
        ] {
            let result = lookup(line.as_bytes(), b"", UserSpec::parse("evil").unwrap());
            assert_eq!(result, Err(Errno::NOENT), "{line}");
        }
        let result = lookup(b"evil\xff:x:0:0\nevil:x:5:6\n", b"", UserSpec::parse("evil").unwrap());
        assert_eq!(result.unwrap().uid, 5);
    }

    #[test]
    fn a_nameless_user_is_not_a_member_of_groups_with_empty_members() {
        let user = lookup(b"", b"trap:x:7:\ntrap2:x:8:a,,b\n", UserSpec::parse("5").unwrap()).unwrap();
        assert_eq!(user.groups, [Group { gid: 0, name: String::new() }]);
    }

    #[test]
    fn more_groups_than_the_limit_are_refused() {
        let file: String = (0..2000).map(|n| format!("g{n}:x:{n}:www\n")).collect();
        let result = lookup(PASSWD, file.as_bytes(), UserSpec::parse("www").unwrap());
        assert_eq!(result, Err(Errno::FBIG));
    }
}
