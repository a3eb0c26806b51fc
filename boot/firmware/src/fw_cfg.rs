//! QEMU's configuration device as far as it is read: the directory of its files, and the descriptor of a transfer.
//! Everything in the directory comes from the host. Source: QEMU `docs/specs/fw_cfg.rst`.

/// The key of the directory.
pub const DIRECTORY: u16 = 0x19;
/// The key of the number of processors: two bytes, little-endian.
pub const PROCESSORS: u16 = 0x05;
/// Most files of a directory that is believed. QEMU itself has place for fewer.
pub const MAX_FILES: usize = 128;
/// Bytes of an entry of the directory.
pub const ENTRY_SIZE: usize = 64;
/// Bytes of the count before the entries.
pub const COUNT_SIZE: usize = 4;

/// A file of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Its key.
    pub key: u16,
    /// Its bytes, as the host says.
    pub size: u32,
}

/// The directory's length in bytes without the count, or `None` if it has too many entries.
#[must_use]
pub fn directory_size(count: [u8; COUNT_SIZE]) -> Option<usize> {
    let count = usize::try_from(u32::from_be_bytes(count)).ok()?;
    (count <= MAX_FILES).then_some(count * ENTRY_SIZE)
}

/// The file of this name, if there is exactly one.
#[must_use]
pub fn find(directory: &[u8], name: &str) -> Option<File> {
    let mut found = None;
    for entry in directory.as_chunks::<ENTRY_SIZE>().0 {
        let (header, field) = entry.split_first_chunk::<8>()?;
        let length = field.iter().position(|byte| *byte == 0)?;
        if field.get(..length) != Some(name.as_bytes()) {
            continue;
        }
        let [a, b, c, d, e, f, ..] = *header;
        let file = File { key: u16::from_be_bytes([e, f]), size: u32::from_be_bytes([a, b, c, d]) };
        // SECURITY: of two files of one name a reader could be shown either.
        if found.replace(file).is_some() {
            return None;
        }
    }
    found
}

/// What a transfer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Select a key and read from its beginning.
    Start(u16),
    /// Read on.
    Continue,
}

/// Bytes of a descriptor.
pub const DESCRIPTOR_SIZE: usize = 16;
/// The first four bytes of a descriptor when the device has done what it says without error.
pub const DONE: [u8; 4] = [0; 4];

/// The descriptor of a transfer of `size` bytes to `address`.
#[must_use]
pub fn descriptor(transfer: Transfer, size: u32, address: u64) -> [u8; DESCRIPTOR_SIZE] {
    const READ: u32 = 1 << 1;
    const SELECT: u32 = 1 << 3;
    let control = match transfer {
        Transfer::Start(key) => u32::from(key) << 16 | SELECT | READ,
        Transfer::Continue => READ,
    };
    let mut bytes = [0; DESCRIPTOR_SIZE];
    bytes[..4].copy_from_slice(&control.to_be_bytes());
    bytes[4..8].copy_from_slice(&size.to_be_bytes());
    bytes[8..].copy_from_slice(&address.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn entry(name: &str, key: u16, size: u32) -> Vec<u8> {
        let mut bytes =
            [size.to_be_bytes().as_slice(), &key.to_be_bytes(), &[0, 0], name.as_bytes()].concat();
        bytes.resize(ENTRY_SIZE, 0);
        bytes
    }

    #[test]
    fn a_file_is_found_by_its_whole_name_only() {
        let directory =
            [entry("opt/parma/kernels", 0x20, 1), entry("opt/parma/kernel", 0x21, 70000)].concat();
        assert_eq!(find(&directory, "opt/parma/kernel"), Some(File { key: 0x21, size: 70000 }));
        assert_eq!(find(&directory, "opt/parma/initrd"), None);
        assert_eq!(find(&directory, "opt/parma"), None);
    }

    #[test]
    fn two_files_of_one_name_are_none() {
        assert_eq!(find(&[entry("a", 1, 1), entry("a", 2, 1)].concat(), "a"), None);
    }

    #[test]
    fn a_directory_is_bounded() {
        assert_eq!(directory_size([0, 0, 0, 2]), Some(128));
        assert_eq!(directory_size([0, 0, 0, 129]), None);
        assert_eq!(directory_size([0xff; 4]), None);
    }

    #[test]
    fn a_descriptor_is_big_endian() {
        assert_eq!(
            descriptor(Transfer::Start(0x19), 0x100, 0x40_1000),
            [0, 0x19, 0, 0x0a, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 0]
        );
        assert_eq!(descriptor(Transfer::Continue, 1, 0)[..4], [0, 0, 0, 2]);
    }

    proptest! {
        #[test]
        fn no_directory_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = find(&bytes, "");
        }
    }
}
