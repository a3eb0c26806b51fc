//! The ROM's last kilobyte: the slot with the digests of what may be started, and the tables by which QEMU finds what
//! an SNP launch needs. All addresses of the firmware's memory are here, for code, linker script and tables alike.
//!
//! ```text
//! 4 GiB - 0x400  slot: SHA-384 of kernel, initrd, command line (patched by xtask; zeros match nothing)
//!       - 0x360  launch metadata ("ASEV")
//!       - 0x5e   table of GUIDs, which ends at
//!       - 0x20   the reset vector of other processors (assembly)
//!       - 0x10   the reset vector (assembly)
//! ```
//!
//! Source: OVMF's `ResetVector` tables as QEMU 9.1 and later read them (`hw/i386/pc_sysfw_ovmf.c`, `target/i386/sev.c`).

use sha2::{Digest, Sha384};

/// Bytes of the ROM. QEMU wants a multiple of this for `-bios`.
pub const ROM_SIZE: usize = 64 << 10;
/// Where the ROM begins.
pub const ROM_BASE: u64 = FOUR_GIB - ROM_SIZE as u64;
/// Bytes of the reset vectors, which are assembly and the last of the ROM: other processors', then the first's.
pub const RESET_SIZE: usize = 32;
/// Bytes from the slot to the reset vectors.
pub const TAIL_SIZE: usize = 0x400 - RESET_SIZE;
/// Where the slot begins, from the ROM's beginning.
pub const SLOT_OFFSET: usize = ROM_SIZE - RESET_SIZE - TAIL_SIZE;
/// Bytes of [`digest`].
pub const DIGEST_SIZE: usize = 48;
/// Digests in the slot.
pub const DIGESTS: usize = 3;
/// Where an SNP launch lets the other processors wait for the kernel.
pub const AP_RESET: u32 = 0xffff_ffe0;

const FOUR_GIB: u64 = 1 << 32;
const METADATA_OFFSET: usize = 0xa0;
const PAGE: u32 = 0x1000;

/// Where the firmware's memory begins: text, data, stack and page tables. Every page of it is validated at launch.
pub const RAM_START: u32 = 0x1_0000;
/// Where it ends.
pub const RAM_END: u32 = 0x8_0000;
/// The last page of the firmware's memory, of which Linux is told that it is there: what [`crate::linux::confidential`] makes.
pub const BLOB_PAGE: u32 = 0x7_f000;
/// The page that the PSP fills with the secrets of the guest.
pub const SECRETS_PAGE: u32 = 0x8_0000;
/// The page that the PSP fills with the CPUID leaves that it vouches for.
pub const CPUID_PAGE: u32 = 0x8_1000;
/// The page with the table of processors, where Linux looks for it: 639 KiB.
pub const PROCESSORS_PAGE: u32 = 0x9_f000;

/// What the host may read and write as long as the firmware runs: a large page of which the first part is shared.
pub const WINDOW: u64 = 0x40_0000;
/// Bytes of that page.
pub const WINDOW_SIZE: u64 = 2 << 20;
/// Most bytes of one transfer.
pub const MAX_TRANSFER: usize = 1 << 20;
/// Bytes of the window that are shared: the GHCB, a page for a transfer's descriptor, and its data.
pub const SHARED_SIZE: u64 = 0x2000 + MAX_TRANSFER as u64;

/// What the PSP is told of a range of pages; the numbers are those of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Zeros, validated.
    Memory = 1,
    /// The secrets page.
    Secrets = 2,
    /// The CPUID page.
    Cpuid = 3,
    /// Zeros, validated: the calling area of an SVSM.
    CallingArea = 4,
    /// OVMF's page of hashes: zeros unless QEMU is asked for `kernel-hashes=on`.
    KernelHashes = 0x10,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        [Self::Memory, Self::Secrets, Self::Cpuid, Self::CallingArea, Self::KernelHashes]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// A range of pages that are validated at launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Where it begins.
    pub address: u32,
    /// Its bytes.
    pub size: u32,
    /// What it is.
    pub kind: Kind,
}

/// What is validated at launch, in the order of the launch.
pub const SECTIONS: [Section; 3] = [
    Section { address: RAM_START, size: RAM_END - RAM_START, kind: Kind::Memory },
    Section { address: SECRETS_PAGE, size: PAGE, kind: Kind::Secrets },
    Section { address: CPUID_PAGE, size: PAGE, kind: Kind::Cpuid },
];

/// A GUID as it is stored: the first three fields little-endian.
pub type Guid = [u8; 16];

/// Ends the table: 96b582de-1fb2-45f7-baea-a366c55a082d.
pub const FOOTER: Guid = guid(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea_a366_c55a_082d);
/// The address where other processors begin: 00f771de-1a7e-4fcb-890e-68c77e2fb44e.
pub const RESET_BLOCK: Guid = guid(0x00f7_71de, 0x1a7e, 0x4fcb, 0x890e_68c7_7e2f_b44e);
/// Where the metadata is, counted back from 4 GiB: dc886566-984a-4798-a75e-5585a7bf67cc.
pub const METADATA: Guid = guid(0xdc88_6566, 0x984a, 0x4798, 0xa75e_5585_a7bf_67cc);

const fn guid(a: u32, b: u16, c: u16, d: u64) -> Guid {
    let mut bytes = [0; 16];
    put(&mut bytes, 0, &a.to_le_bytes());
    put(&mut bytes, 4, &b.to_le_bytes());
    put(&mut bytes, 6, &c.to_le_bytes());
    put(&mut bytes, 8, &d.to_be_bytes());
    bytes
}

const fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    let mut index = 0;
    while index < bytes.len() {
        into[at + index] = bytes[index];
        index += 1;
    }
}

/// Everything from the slot (zeros) to the reset vectors.
#[must_use]
pub const fn tail() -> [u8; TAIL_SIZE] {
    let mut bytes = [0; TAIL_SIZE];

    let length = 16 + 12 * SECTIONS.len() as u32;
    put(&mut bytes, METADATA_OFFSET, b"ASEV");
    put(&mut bytes, METADATA_OFFSET + 4, &length.to_le_bytes());
    put(&mut bytes, METADATA_OFFSET + 8, &1u32.to_le_bytes());
    put(&mut bytes, METADATA_OFFSET + 12, &(SECTIONS.len() as u32).to_le_bytes());
    let mut index = 0;
    while index < SECTIONS.len() {
        let at = METADATA_OFFSET + 16 + 12 * index;
        put(&mut bytes, at, &SECTIONS[index].address.to_le_bytes());
        put(&mut bytes, at + 4, &SECTIONS[index].size.to_le_bytes());
        put(&mut bytes, at + 8, &(SECTIONS[index].kind as u32).to_le_bytes());
        index += 1;
    }

    // The table grows downwards from its footer: data, length, GUID.
    let entry = 4 + 2 + 16;
    let back = (TAIL_SIZE + RESET_SIZE - METADATA_OFFSET) as u32;
    let footer = TAIL_SIZE - 16;
    let table_size = 2 * entry + 2 + 16;
    put(&mut bytes, footer, &FOOTER);
    put(&mut bytes, footer - 2, &(table_size as u16).to_le_bytes());
    let mut end = footer - 2;
    let mut index = 0;
    while index < 2 {
        let (value, name) = if index == 0 { (AP_RESET, &RESET_BLOCK) } else { (back, &METADATA) };
        put(&mut bytes, end - 16, name);
        put(&mut bytes, end - 18, &(entry as u16).to_le_bytes());
        put(&mut bytes, end - 22, &value.to_le_bytes());
        end -= entry;
        index += 1;
    }
    bytes
}

/// What the slot holds of a file: the function of the launch digest itself, so that none other must be believed. Where
/// instructions for SHA-256 are not to be had (they may not be chosen at run time, and are not emulated), it is the faster one.
#[must_use]
pub fn digest(file: &[u8]) -> [u8; DIGEST_SIZE] {
    Sha384::digest(file).into()
}

/// Makes a ROM start what has these digests, of kernel, initrd and command line, and nothing else. `None` if it has not
/// [`ROM_SIZE`] bytes.
#[must_use]
pub fn patch(rom: &mut [u8], digests: &[[u8; DIGEST_SIZE]; DIGESTS]) -> Option<()> {
    let rom: &mut [u8; ROM_SIZE] = rom.try_into().ok()?;
    rom[SLOT_OFFSET..SLOT_OFFSET + DIGESTS * DIGEST_SIZE].copy_from_slice(digests.as_flattened());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_byte_for_byte_what_qemu_reads() {
        let mut expected = [0; TAIL_SIZE];
        #[rustfmt::skip]
        let metadata = [
            b'A', b'S', b'E', b'V', 52, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0,
            0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x07, 0x00, 1, 0, 0, 0,
            0x00, 0x00, 0x08, 0x00, 0x00, 0x10, 0x00, 0x00, 2, 0, 0, 0,
            0x00, 0x10, 0x08, 0x00, 0x00, 0x10, 0x00, 0x00, 3, 0, 0, 0,
        ];
        expected[0xa0..0xa0 + metadata.len()].copy_from_slice(&metadata);
        #[rustfmt::skip]
        let table = [
            0x60, 0x03, 0x00, 0x00, 0x16, 0x00,
            0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98, 0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc,
            0xe0, 0xff, 0xff, 0xff, 0x16, 0x00,
            0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb, 0x4f, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e,
            0x3e, 0x00,
            0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d,
        ];
        expected[TAIL_SIZE - table.len()..].copy_from_slice(&table);
        assert_eq!(tail(), expected);
    }

    #[test]
    fn the_slot_is_zero_until_it_is_patched() {
        assert!(tail()[..DIGESTS * DIGEST_SIZE].iter().all(|b| *b == 0));
        const { assert!(DIGESTS * DIGEST_SIZE <= METADATA_OFFSET) }
    }

    #[test]
    fn launch_sections_are_whole_pages_and_do_not_overlap() {
        for (index, section) in SECTIONS.iter().enumerate() {
            assert!(section.size > 0 && section.size % PAGE == 0 && section.address % PAGE == 0);
            for other in &SECTIONS[..index] {
                assert!(
                    other.address + other.size <= section.address
                        || section.address + section.size <= other.address
                );
            }
        }
    }
}
