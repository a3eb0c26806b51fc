//! Who a user of an image is: its `/etc/passwd` and `/etc/group`, read from the layers without unpacking them.
//!
//! The guest resolves the user of a request in the container's own files. A strict policy pins the result, so it is
//! worked out here in the same way; what could make the two differ is an error.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use parma_guest::gate::fields::{IdOrName, UserSpec};
use parma_layer::oci::Image;

/// Longest `/etc/passwd` or `/etc/group` that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// An image's `/etc/passwd` and `/etc/group`. A file that is not there is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    passwd: String,
    group: String,
}

/// A user and every group that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// The primary group first, then the others in ascending order.
    pub gids: Vec<u32>,
}

/// What the layers say of one file, from the top down.
#[derive(Debug, Default)]
enum Found {
    /// Nothing yet: a lower layer may have it.
    #[default]
    Unknown,
    /// Deleted: lower layers do not count.
    Absent,
    /// This.
    File(String),
}

impl Accounts {
    /// The accounts of these two files.
    pub fn new(passwd: impl Into<String>, group: impl Into<String>) -> Self {
        Self { passwd: passwd.into(), group: group.into() }
    }

    /// Reads the two files as a container of `image` finds them.
    ///
    /// # Errors
    /// A layer cannot be read or is not what its digest says; `/etc` is no directory, or one of the files is no
    /// regular file, longer than 1 MiB, or not UTF-8.
    pub fn read(image: &Image) -> Result<Self> {
        let mut files = [("passwd", Found::Unknown), ("group", Found::Unknown)];
        for index in (0..image.layers.len()).rev() {
            if files.iter().all(|(_, found)| !matches!(found, Found::Unknown)) {
                break;
            }
            let digest = image.layers[index].digest;
            read_layer(image, index, &mut files).with_context(|| format!("layer {digest}"))?;
        }
        let [passwd, group] = files.map(|(_, found)| match found {
            Found::File(text) => text,
            Found::Unknown | Found::Absent => String::new(),
        });
        Ok(Self { passwd, group })
    }

    /// Looks up `user` as the guest does: names in the files, the group of a user that is not listed is 0.
    ///
    /// # Errors
    /// A name that the files do not have.
    pub fn identity(&self, user: UserSpec<'_>) -> Result<Identity> {
        let entry = self.passwd.lines().filter_map(Entry::of_user).find(|entry| match user.user {
            IdOrName::Id(id) => entry.id == id,
            IdOrName::Name(name) => entry.name == name,
        });
        let uid = match (user.user, &entry) {
            (IdOrName::Id(id), _) => id,
            (IdOrName::Name(_), Some(entry)) => entry.id,
            (IdOrName::Name(name), None) => bail!("the image's /etc/passwd has no user {name:?}"),
        };
        let primary = match user.group {
            None => entry.as_ref().map_or(0, |entry| entry.group),
            Some(IdOrName::Id(id)) => id,
            Some(IdOrName::Name(name)) => {
                let group = self.group.lines().filter_map(Entry::of_group).find(|group| group.name == name);
                group.with_context(|| format!("the image's /etc/group has no group {name:?}"))?.id
            }
        };
        let mut others = Vec::new();
        if let Some(entry) = entry {
            let member = |group: &Entry<'_>| group.members.split(',').any(|name| name == entry.name);
            others
                .extend(self.group.lines().filter_map(Entry::of_group).filter(member).map(|group| group.id));
        }
        others.sort_unstable();
        others.dedup();
        others.retain(|&gid| gid != primary);
        Ok(Identity { uid, gids: std::iter::once(primary).chain(others).collect() })
    }
}

/// A line of one of the two files. Lines that are none are passed over.
struct Entry<'a> {
    name: &'a str,
    id: u32,
    /// The user's group; 0 for a group.
    group: u32,
    /// The group's members; empty for a user.
    members: &'a str,
}

impl<'a> Entry<'a> {
    /// `name:password:uid:gid:…`
    fn of_user(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        Some(Self {
            name,
            id: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            members: "",
        })
    }

    /// `name:password:gid:member,member`
    fn of_group(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _) = (fields.next()?, fields.next()?);
        Some(Self { name, id: fields.next()?.parse().ok()?, group: 0, members: fields.next().unwrap_or("") })
    }
}

/// Takes from one layer what upper layers left open.
fn read_layer(image: &Image, index: usize, files: &mut [(&str, Found); 2]) -> Result<()> {
    let mut archive = tar::Archive::new(image.open_layer(index)?);
    let mut here: [Option<String>; 2] = [None, None];
    let mut hidden = [false, false];
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let parts: Vec<&[u8]> =
            path.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        match parts[..] {
            [b".wh..wh..opq"] | [b".wh.etc"] | [b"etc", b".wh..wh..opq"] => hidden = [true, true],
            [b"etc"] => ensure!(entry.header().entry_type().is_dir(), "/etc is no directory"),
            [b"etc", name] => {
                for (at, (wanted, _)) in files.iter().enumerate() {
                    if name.strip_prefix(b".wh.") == Some(wanted.as_bytes()) {
                        hidden[at] = true;
                    } else if name == wanted.as_bytes() {
                        ensure!(
                            entry.header().entry_type().is_file(),
                            "/etc/{wanted} is no regular file: give the user by its number"
                        );
                        ensure!(entry.size() <= MAX_FILE, "/etc/{wanted} is longer than {MAX_FILE} bytes");
                        let mut text = String::new();
                        entry.read_to_string(&mut text).with_context(|| format!("/etc/{wanted}"))?;
                        here[at] = Some(text);
                    }
                }
            }
            _ => {}
        }
    }
    // SECURITY: only now is it known that these bytes are the image's.
    archive.into_inner().finish()?;
    for (((_, found), here), hidden) in files.iter_mut().zip(here).zip(hidden) {
        if matches!(found, Found::Unknown) {
            *found = match (here, hidden) {
                (Some(text), _) => Found::File(text),
                (None, true) => Found::Absent,
                (None, false) => Found::Unknown,
            };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken:x:one:1::\nwww-data:x:33:33::/var/www:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nadm:x:4:www-data,other\nwww-data:x:33:\nstaff:x:50:other,www-data\n";

    fn identity(user: &str) -> Result<Identity> {
        let user = UserSpec::parse(user).expect("a user");
        Accounts::new(PASSWD, GROUP).identity(user)
    }

    #[test]
    fn users_have_their_own_groups_and_those_that_list_them() {
        for (user, uid, gids) in [
            ("", 0, &[0][..]),
            ("root", 0, &[0]),
            ("www-data", 33, &[33, 4, 50]),
            ("33", 33, &[33, 4, 50]),
            ("www-data:staff", 33, &[50, 4]),
            ("33:7", 33, &[7, 4, 50]),
            ("1234", 1234, &[0]),
            ("1234:33", 1234, &[33]),
        ] {
            assert_eq!(identity(user).unwrap(), Identity { uid, gids: gids.to_vec() }, "{user}");
        }
    }

    #[test]
    fn a_name_that_the_image_does_not_have_is_an_error_that_says_so() {
        for (user, message) in [("nobody", r#"no user "nobody""#), ("root:wheel", r#"no group "wheel""#)] {
            let error = identity(user).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
