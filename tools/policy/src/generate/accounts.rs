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
    passwd: Vec<u8>,
    group: Vec<u8>,
}

/// A user and every group that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// The primary group first, then the others in the order of the file.
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
    File(Vec<u8>),
}

impl Accounts {
    /// The accounts of these two files.
    pub fn new(passwd: impl Into<Vec<u8>>, group: impl Into<Vec<u8>>) -> Self {
        Self { passwd: passwd.into(), group: group.into() }
    }

    /// Reads the two files as a container of `image` finds them.
    ///
    /// # Errors
    /// A layer cannot be read or is not what its digest says; `/etc` is no directory, or one of the files is no
    /// regular file or longer than 1 MiB.
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
            Found::File(bytes) => bytes,
            Found::Unknown | Found::Absent => Vec::new(),
        });
        Ok(Self { passwd, group })
    }

    /// Looks up `user` as the guest does: a user that is not listed has group 0; a group that is given is the only one.
    ///
    /// # Errors
    /// A name that the files do not have.
    pub fn identity(&self, user: UserSpec<'_>) -> Result<Identity> {
        let entry = lines(&self.passwd).filter_map(Entry::of_user).find(|entry| match user.user {
            IdOrName::Id(id) => entry.id == id,
            IdOrName::Name(name) => entry.name == name,
        });
        let uid = match (user.user, &entry) {
            (IdOrName::Id(id), _) => id,
            (IdOrName::Name(_), Some(entry)) => entry.id,
            (IdOrName::Name(name), None) => bail!("the image's /etc/passwd has no user {name:?}"),
        };
        let mut groups = lines(&self.group).filter_map(Entry::of_group);
        let gids = match (user.group, &entry) {
            (Some(IdOrName::Id(id)), _) => vec![id],
            (Some(IdOrName::Name(name)), _) => {
                let group = groups.find(|group| group.name == name);
                vec![group.with_context(|| format!("the image's /etc/group has no group {name:?}"))?.id]
            }
            (None, None) => vec![0],
            (None, Some(entry)) => {
                let mut gids = vec![entry.group];
                for group in groups.filter(|group| group.members.split(',').any(|name| name == entry.name)) {
                    if !gids.contains(&group.id) {
                        gids.push(group.id);
                    }
                }
                gids
            }
        };
        Ok(Identity { uid, gids })
    }
}

/// A line of one of the two files. A line that is not well-formed is none.
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
        let (name, _) = (name(fields.next()?)?, fields.next()?);
        Some(Self { name, id: id(fields.next()?)?, group: id(fields.next()?)?, members: "" })
    }

    /// `name:password:gid:member,member`
    fn of_group(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _) = (name(fields.next()?)?, fields.next()?);
        Some(Self { name, id: id(fields.next()?)?, group: 0, members: fields.next().unwrap_or("") })
    }
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|&byte| byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok()).map(str::trim)
}

/// `+` and `-` begin lines that refer to NIS, `#` comments.
fn name(text: &str) -> Option<&str> {
    (!text.is_empty() && !text.starts_with(['+', '-', '#'])).then_some(text)
}

/// A decimal number below 2³²−1, which means "unchanged" to the kernel.
fn id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&id| digits && id != u32::MAX)
}

/// Takes from one layer what upper layers left open.
fn read_layer(image: &Image, index: usize, files: &mut [(&str, Found); 2]) -> Result<()> {
    let mut archive = tar::Archive::new(image.open_layer(index)?);
    let mut here: [Option<Vec<u8>>; 2] = [None, None];
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
                        let mut bytes = Vec::new();
                        entry.read_to_end(&mut bytes).with_context(|| format!("/etc/{wanted}"))?;
                        here[at] = Some(bytes);
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
                (Some(bytes), _) => Found::File(bytes),
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

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        www-data:x:one:1::\n\
        www-data:\xff:1:1::\n\
        www-data:x:33:33::/var/www:/bin/sh\n";
    const GROUP: &[u8] =
        b"root:x:0:\nstaff:x:50:other,www-data\nadm:x:4:www-data,other\nagain:x:50:www-data\nwww-data:x:33:\n";

    fn identity(user: &str) -> Result<Identity> {
        let user = UserSpec::parse(user).expect("a user");
        Accounts::new(PASSWD, GROUP).identity(user)
    }

    #[test]
    fn users_are_resolved_as_in_the_guest() {
        for (user, uid, gids) in [
            ("", 0, &[0][..]),
            ("root", 0, &[0]),
            ("www-data", 33, &[33, 50, 4]),
            ("33", 33, &[33, 50, 4]),
            ("www-data:staff", 33, &[50]),
            ("33:7", 33, &[7]),
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
