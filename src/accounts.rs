//! Users and groups as a container's own `/etc/passwd` and `/etc/group` tell them (C06).
//!
//! The guest looks a user up in the container's files, and the policy decides on the result; the policy generator looks
//! it up in the image's files, to write that result down. Both do it here.
//!
//! The rules are those of Docker for the `USER` of an image, with two differences: a number only ever means the user or
//! group with that number, not one with that name; and a line that is not well-formed is no entry, instead of an entry
//! of user 0.

use crate::gate::action::{Group, User};
use crate::gate::fields::{IdOrName, UserSpec};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Longest `/etc/passwd` or `/etc/group`, in bytes.
pub const MAX_FILE: usize = 1 << 20;
/// Most groups of one user.
pub const MAX_GROUPS: usize = 1024;

/// Why a user cannot be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved<'a> {
    /// No user has this name.
    NoUser(&'a str),
    /// No group has this name.
    NoGroup(&'a str),
    /// The user is a member of more than [`MAX_GROUPS`] groups.
    TooManyGroups,
    /// No memory for the result.
    Memory,
}

impl fmt::Display for Unresolved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser(name) => write!(f, "/etc/passwd has no user {name:?}"),
            Self::NoGroup(name) => write!(f, "/etc/group has no group {name:?}"),
            Self::TooManyGroups => write!(f, "the user is in more than {MAX_GROUPS} groups of /etc/group"),
            Self::Memory => f.write_str("out of memory"),
        }
    }
}

/// Looks a user up. `passwd` and `group` are the contents of the two files; a file that is not there is empty.
///
/// A user that is not listed has group 0 and no name; a group that is given is the only one. What this costs grows with
/// the files' lengths, not with their product: the files may be a hostile container's.
pub fn resolve<'a>(passwd: &[u8], group: &[u8], spec: UserSpec<'a>) -> Result<User, Unresolved<'a>> {
    let user = match spec.user {
        IdOrName::Id(uid) => {
            users(passwd).find(|user| user.uid == uid).unwrap_or(PasswdEntry { name: "", uid, gid: 0 })
        }
        IdOrName::Name(name) => {
            users(passwd).find(|user| user.name == name).ok_or(Unresolved::NoUser(name))?
        }
    };
    let mut found: Vec<Found<'_>> = Vec::new();
    match spec.group {
        Some(IdOrName::Id(gid)) => add(&mut found, gid)?,
        Some(IdOrName::Name(name)) => {
            let entry = groups(group).find(|group| group.name == name).ok_or(Unresolved::NoGroup(name))?;
            add(&mut found, entry.gid)?;
        }
        None => {
            add(&mut found, user.gid)?;
            let member_of = |group: &GroupEntry<'_>| {
                !user.name.is_empty() && group.members.split(',').any(|member| member == user.name)
            };
            for entry in groups(group).filter(member_of) {
                add(&mut found, entry.gid)?;
            }
        }
    }
    // The first entry of a number names it.
    for entry in groups(group) {
        if let Some(found) = found.iter_mut().find(|found| found.gid == entry.gid) {
            found.name.get_or_insert(entry.name);
        }
    }
    let mut groups = Vec::new();
    groups.try_reserve_exact(found.len()).map_err(|_| Unresolved::Memory)?;
    for Found { gid, name } in found {
        groups.push(Group { gid, name: own(name.unwrap_or(""))? });
    }
    Ok(User { uid: user.uid, name: own(user.name)?, groups })
}

/// A group of the user.
struct Found<'f> {
    gid: u32,
    name: Option<&'f str>,
}

/// Adds a group, once.
fn add<'a>(found: &mut Vec<Found<'_>>, gid: u32) -> Result<(), Unresolved<'a>> {
    if found.iter().any(|found| found.gid == gid) {
        return Ok(());
    }
    if found.len() == MAX_GROUPS {
        return Err(Unresolved::TooManyGroups);
    }
    found.try_reserve(1).map_err(|_| Unresolved::Memory)?;
    found.push(Found { gid, name: None });
    Ok(())
}

fn own<'a>(text: &str) -> Result<String, Unresolved<'a>> {
    let mut own = String::new();
    own.try_reserve_exact(text.len()).map_err(|_| Unresolved::Memory)?;
    own.push_str(text);
    Ok(own)
}

/// What a line of `/etc/passwd` says that matters here.
struct PasswdEntry<'f> {
    name: &'f str,
    uid: u32,
    gid: u32,
}

/// A line of `/etc/group`.
struct GroupEntry<'f> {
    name: &'f str,
    gid: u32,
    members: &'f str,
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

    fn spec(text: &str) -> Result<User, Unresolved<'_>> {
        resolve(PASSWD, GROUP, UserSpec::parse(text).unwrap())
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
        assert_eq!(spec("nobody"), Err(Unresolved::NoUser("nobody")));
        assert_eq!(spec("root:nogroup"), Err(Unresolved::NoGroup("nogroup")));
        assert_eq!(resolve(b"", b"", UserSpec::parse("root").unwrap()), Err(Unresolved::NoUser("root")));
        assert!(resolve(b"", b"", UserSpec::parse("").unwrap()).is_ok());
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
            let result = resolve(line.as_bytes(), b"", UserSpec::parse("evil").unwrap());
            assert_eq!(result, Err(Unresolved::NoUser("evil")), "{line}");
        }
        let result = resolve(b"evil\xff:x:0:0\nevil:x:5:6\n", b"", UserSpec::parse("evil").unwrap());
        assert_eq!(result.unwrap().uid, 5);
    }

    #[test]
    fn a_nameless_user_is_not_a_member_of_groups_with_empty_members() {
        let user = resolve(b"", b"trap:x:7:\ntrap2:x:8:a,,b\n", UserSpec::parse("5").unwrap()).unwrap();
        assert_eq!(user.groups, [Group { gid: 0, name: String::new() }]);
    }

    #[test]
    fn more_groups_than_the_limit_are_refused() {
        let file: String = (0..2000).map(|n| format!("g{n}:x:{n}:www\n")).collect();
        let result = resolve(PASSWD, file.as_bytes(), UserSpec::parse("www").unwrap());
        assert_eq!(result, Err(Unresolved::TooManyGroups));
    }
}
