//! The table of processors that Linux gets instead of the host's ACPI tables. Everything in it but the number of
//! processors is fixed: QEMU's q35 with its one I/O APIC. Source: Intel MultiProcessor Specification 1.4, chapter 4.

use crate::rom::PROCESSORS_PAGE;

/// Most processors; the kernel has no place for more.
pub const MAX: u8 = 64;
/// Bytes of the page that holds the table.
pub const SIZE: usize = 0x1000;

/// Where Linux looks for the pointer to the table: the last KiB below 640 KiB.
const POINTER: usize = 0xc00;
const HEADER_SIZE: usize = 44;
const REVISION: u8 = 4;
const ISA: u8 = 0;
const IO_APIC: u8 = 0;
const EVERY_PROCESSOR: u8 = 0xff;

/// The number of processors, from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(u8);

impl Count {
    /// Refuses none, and more than [`MAX`].
    #[must_use]
    pub fn new(host: [u8; 2]) -> Option<Self> {
        let count = u8::try_from(u16::from_le_bytes(host)).ok()?;
        (1..=MAX).contains(&count).then_some(Self(count))
    }
}

/// The page at [`PROCESSORS_PAGE`].
#[must_use]
pub fn page(count: Count) -> [u8; SIZE] {
    let mut page = [0; SIZE];
    let (mut end, mut entries) = (HEADER_SIZE, 0u16);
    let mut entry = |page: &mut [u8; SIZE], bytes: &[u8]| {
        page[end..end + bytes.len()].copy_from_slice(bytes);
        end += bytes.len();
        entries += 1;
    };
    for id in 0..count.0 {
        let flags = if id == 0 { 3 } else { 1 }; // enabled; the first is the one that boots
        entry(&mut page, &[0, id, 0x14, flags, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    entry(&mut page, &[1, ISA, b'I', b'S', b'A', b' ', b' ', b' ']);
    let [a, b, c, d] = 0xfec0_0000u32.to_le_bytes();
    entry(&mut page, &[2, IO_APIC, 0x20, 1, a, b, c, d]);
    // The timer is at pin 2, where the cascade of the old controllers would be.
    for irq in (0..16).filter(|irq| *irq != 2) {
        entry(&mut page, &[3, 0, 0, 0, ISA, irq, IO_APIC, if irq == 0 { 2 } else { irq }]);
    }
    entry(&mut page, &[4, 3, 0, 0, ISA, 0, EVERY_PROCESSOR, 0]); // ExtINT
    entry(&mut page, &[4, 1, 0, 0, ISA, 0, EVERY_PROCESSOR, 1]); // NMI

    page[..4].copy_from_slice(b"PCMP");
    page[4..6].copy_from_slice(&(end as u16).to_le_bytes());
    page[6] = REVISION;
    page[8..28].copy_from_slice(b"PARMA   PARMA       ");
    page[34..36].copy_from_slice(&entries.to_le_bytes());
    page[36..40].copy_from_slice(&0xfee0_0000u32.to_le_bytes());
    page[7] = checksum(&page[..end]);

    page[POINTER..POINTER + 4].copy_from_slice(b"_MP_");
    page[POINTER + 4..POINTER + 8].copy_from_slice(&PROCESSORS_PAGE.to_le_bytes());
    page[POINTER + 8] = 1; // in units of 16 bytes
    page[POINTER + 9] = REVISION;
    page[POINTER + 10] = checksum(&page[POINTER..POINTER + 16]);
    page
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_processors_is_bounded() {
        assert_eq!(Count::new([0, 0]), None);
        assert_eq!(Count::new([65, 0]), None);
        assert_eq!(Count::new([1, 1]), None);
        assert_eq!(Count::new([64, 0]), Some(Count(64)));
    }

    #[test]
    fn the_table_is_whole_for_every_number_of_processors() {
        for count in 1..=MAX {
            let page = page(Count(count));
            let length = usize::from(u16::from_le_bytes([page[4], page[5]]));
            assert!(length <= POINTER);
            assert_eq!(checksum(&page[..length]), 0);
            assert_eq!(checksum(&page[POINTER..POINTER + 16]), 0);
            let (mut at, mut seen, mut processors) = (HEADER_SIZE, 0, 0);
            while at < length {
                processors += u8::from(page[at] == 0);
                at += if page[at] == 0 { 20 } else { 8 };
                seen += 1;
            }
            assert_eq!((at, seen), (length, u16::from_le_bytes([page[34], page[35]])));
            assert_eq!(processors, count);
        }
    }

    #[test]
    fn the_pointer_is_where_linux_looks() {
        assert_eq!(PROCESSORS_PAGE as usize + POINTER, 639 << 10);
        let page = page(Count(1));
        assert_eq!(page[POINTER..POINTER + 10], *b"_MP_\x00\xf0\x09\x00\x01\x04");
    }
}
