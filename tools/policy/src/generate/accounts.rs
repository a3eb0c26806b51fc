//! Who a user of an image is: its `/etc/passwd` and `/etc/group`, read from the layers without unpacking them.
//!
//! The guest resolves the user of a request in the container's own files. A strict policy pins the result, so it is
//! worked out here by the same code; what could make the two differ is an error.

use std::io::Read;

use anyhow::{Context, Result, anyhow, ensure};
use parma_guest::accounts::{self, MAX_FILE};
use parma_guest::gate::action::User;
use parma_guest::gate::fields::UserSpec;
use parma_layer::oci::Image;

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

    /// Looks up `user` as the guest does, with the same code.
    ///
    /// # Errors
    /// A name that the files do not have; a user in too many groups.
    pub fn user(&self, user: UserSpec<'_>) -> Result<User> {
        accounts::resolve(&self.passwd, &self.group, user)
            .map_err(|unresolved| anyhow!("in the image, {unresolved}"))
    }

    /// As [`Self::user`], without names.
    ///
    /// # Errors
    /// As there.
    pub fn identity(&self, user: UserSpec<'_>) -> Result<Identity> {
        let user = self.user(user)?;
        Ok(Identity { uid: user.uid, gids: user.groups.iter().map(|group| group.gid).collect() })
    }
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
                        ensure!(
                            entry.size() <= MAX_FILE as u64,
                            "/etc/{wanted} is longer than {MAX_FILE} bytes"
                        );
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
