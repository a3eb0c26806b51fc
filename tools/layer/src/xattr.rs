//! Extended attributes as ext4 stores them: those that fit in the inode, the rest in one block.
//!
//! Attributes are placed in the order of their full names. The order of entries in the block is that of the
//! reference, whose comparison is no order at all in general, so that its sort routine decides.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use parma_guest::target::ext4::{BLOCK, INODE_XATTRS};

use crate::gosort;

/// Attributes by full name (`user.x`).
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

const MAGIC: [u8; 4] = 0xea02_0000_u32.to_le_bytes();
/// Bytes before the entries in the inode, and in a block.
const INODE_HEADER: usize = 4;
const BLOCK_HEADER: usize = 32;
/// The entries end with four zero bytes.
const END: usize = 4;
/// Bytes of an entry without its name.
const ENTRY: usize = 16;

/// Names with a prefix of this table are stored as its number and the rest; the first match counts.
const PREFIXES: [(u8, &[u8]); 7] = [
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (8, b"system.richacl"),
    (7, b"system."),
    (1, b"user."),
    (4, b"trusted."),
    (6, b"security."),
];

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: &'a [u8],
}

impl<'a> Entry<'a> {
    fn new(full_name: &'a [u8], value: &'a [u8]) -> Self {
        let found =
            PREFIXES.iter().find_map(|(index, prefix)| Some((*index, full_name.strip_prefix(*prefix)?)));
        let (index, name) = found.unwrap_or((0, full_name));
        Self { index, name, value }
    }

    fn length(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn value_length(&self) -> usize {
        self.value.len().next_multiple_of(4)
    }

    /// The reference's comparison: each key decides alone, not only where those before it are equal.
    fn before(&self, other: &Self) -> bool {
        self.index < other.index || self.name.len() < other.name.len() || self.name < other.name
    }

    fn hash(&self) -> u32 {
        let name = self.name.iter().fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Where an inode's attributes went.
pub struct Placed {
    /// The part in the inode, if it holds any.
    pub inode: Option<Box<[u8; INODE_XATTRS]>>,
    /// The block, if it holds any.
    pub block: Option<Box<[u8; BLOCK]>>,
}

/// A block without attributes: what the reference leaves where an entry loses those it had in a block.
pub fn empty_block() -> Box<[u8; BLOCK]> {
    encode_block(&[])
}

/// Places attributes.
///
/// # Errors
/// A name longer than 255 bytes, or attributes that do not fit.
pub fn place(attributes: &Xattrs) -> Result<Placed> {
    let (mut inode, mut block) = (Vec::new(), Vec::new());
    let mut inode_left = INODE_XATTRS - INODE_HEADER - END;
    let mut block_left = BLOCK - BLOCK_HEADER - END;
    for (name, value) in attributes {
        let entry = Entry::new(name, value);
        ensure!(entry.name.len() <= 255, "extended attribute name of {} bytes: the limit is 255", name.len());
        let length = entry.length() + entry.value_length();
        if length <= inode_left {
            inode_left -= length;
            inode.push(entry);
        } else {
            ensure!(
                length <= block_left,
                "extended attribute \"{}\" of {} bytes does not fit: an inode and one block hold them all",
                name.escape_ascii(),
                value.len()
            );
            block_left -= length;
            block.push(entry);
        }
    }
    gosort::sort(&mut block, Entry::before);
    Ok(Placed {
        inode: (!inode.is_empty()).then(|| {
            let mut bytes = Box::new([0; INODE_XATTRS]);
            bytes[..INODE_HEADER].copy_from_slice(&MAGIC);
            encode(&inode, &mut bytes[INODE_HEADER..], 0);
            bytes
        }),
        block: (!block.is_empty()).then(|| encode_block(&block)),
    })
}

fn encode_block(entries: &[Entry<'_>]) -> Box<[u8; BLOCK]> {
    let mut bytes = Box::new([0; BLOCK]);
    bytes[0..4].copy_from_slice(&MAGIC);
    bytes[4] = 1; // reference count
    bytes[8] = 1; // blocks
    encode(entries, &mut bytes[BLOCK_HEADER..], BLOCK_HEADER);
    bytes
}

/// Entries from the front, values from the back; a value's offset counts from `base` bytes before `out`.
fn encode(entries: &[Entry<'_>], out: &mut [u8], base: usize) {
    let (mut front, mut back) = (0, out.len());
    for entry in entries {
        back -= entry.value_length();
        out[back..][..entry.value.len()].copy_from_slice(entry.value);
        let header = &mut out[front..][..entry.length()];
        header[0] = entry.name.len() as u8;
        header[1] = entry.index;
        header[2..4].copy_from_slice(&((base + back) as u16).to_le_bytes());
        header[8..12].copy_from_slice(&(entry.value.len() as u32).to_le_bytes());
        header[12..16].copy_from_slice(&entry.hash().to_le_bytes());
        header[ENTRY..][..entry.name.len()].copy_from_slice(entry.name);
        front += entry.length();
    }
}

/// The attributes in the part of an inode that [`place`] made, as the reference reads them back: it takes an
/// entry without a name of its own (an ACL) for the end of the list.
pub fn decode_inode(bytes: &[u8; INODE_XATTRS]) -> Xattrs {
    decode(&bytes[INODE_HEADER..], 0)
}

/// The same for a block.
pub fn decode_block(bytes: &[u8; BLOCK]) -> Xattrs {
    decode(&bytes[BLOCK_HEADER..], BLOCK_HEADER)
}

fn decode(bytes: &[u8], base: usize) -> Xattrs {
    let mut attributes = Xattrs::new();
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + ENTRY)
        && header[0] != 0
    {
        let name = &bytes[at + ENTRY..][..header[0].into()];
        let offset = usize::from(u16::from_le_bytes([header[2], header[3]])) - base;
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let prefix = PREFIXES.iter().find(|(index, _)| *index == header[1]).map_or(&b""[..], |(_, p)| p);
        attributes.insert([prefix, name].concat(), bytes[offset..][..length].to_vec());
        at += ENTRY + name.len().next_multiple_of(4);
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(list: &[(&str, usize)]) -> Xattrs {
        list.iter().map(|(name, length)| (name.as_bytes().to_vec(), vec![b'v'; *length])).collect()
    }

    #[test]
    fn what_was_placed_reads_back() {
        let all =
            attributes(&[("user.a", 3), ("trusted.overlay.opaque", 1), ("security.long", 400), ("odd", 4)]);
        let placed = place(&all).unwrap();
        let mut back = decode_inode(&placed.inode.unwrap());
        back.extend(decode_block(&placed.block.unwrap()));
        assert_eq!(back, all);
    }

    #[test]
    fn attributes_that_do_not_fit_are_refused_by_name() {
        let error = place(&attributes(&[("user.a", 4060)])).err().unwrap().to_string();
        assert!(error.contains("user.a"), "{error}");
        assert!(place(&attributes(&[(&format!("user.{}", "n".repeat(256)), 1)])).is_err());
        assert!(place(&attributes(&[("user.a", 4060 - ENTRY - 4)])).is_ok());
    }
}
