//! The initrd: a cpio archive ("newc") that is the same bytes for the same files.
//!
//! Every header field that could carry a trace of the build (inode, owner, time) is fixed. The format is in the
//! kernel's Documentation/driver-api/early-userspace/buffer-format.rst: a 110-byte header of hexadecimal
//! fields, the name with its NUL, the data; name and data each padded to four bytes.

use anyhow::{Context, Result};

/// `S_IFREG`.
const REGULAR: u32 = 0o100_000;

/// An archive of regular files: (path without leading slash, permissions, content).
pub fn archive(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (inode, (name, permissions, content)) in (1..).zip(files) {
        entry(&mut out, inode, REGULAR | permissions, name, content)?;
    }
    entry(&mut out, 0, 0, "TRAILER!!!", &[])?;
    Ok(out)
}

fn entry(out: &mut Vec<u8>, inode: u32, mode: u32, name: &str, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is too large for an initrd"))?;
    let name_size = u32::try_from(name.len() + 1).context("the name is too long")?;
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_documented_layout() {
        let bytes = archive(&[("init", 0o755, b"abcde")]).unwrap();
        let header = "0707010000000100008 1ed00000000000000000000000100000000000000050000000000000000\
                      00000000000000000000000500000000"
            .replace(' ', "");
        assert_eq!(header.len(), 110);
        assert_eq!(&bytes[..110], header.as_bytes());
        // 110 + "init\0" = 115, padded to 116; five bytes of data, padded to 124.
        assert_eq!(&bytes[110..124], b"init\0\0abcde\0\0\0");
        assert!(bytes[124..].starts_with(b"070701") && bytes.len().is_multiple_of(4));
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
