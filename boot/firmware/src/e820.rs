//! The host's memory map. It is refused unless it is one that QEMU's q35 makes: Linux then gets what is left of it
//! without the legacy hole and without the pages that the PSP filled.

use crate::rom;

/// Bytes of an entry: address and length, 64 bits each, and a type, 32 bits, little-endian.
pub const ENTRY_SIZE: usize = 20;
/// Most entries of the host's map.
pub const MAX_HOST: usize = 32;
/// Most entries of the map for Linux: each hole may split one.
pub const MAX: usize = MAX_HOST + HOLES.len() * 2;
/// No RAM lies between here and 4 GiB: there are devices and the ROM.
pub const DEVICES: u64 = 0xb000_0000;
/// Where addresses end that the firmware can map.
pub const LIMIT: u64 = 512 << 30;
/// Least RAM at address 0.
pub const LEAST: u64 = 64 << 20;

const PAGE: u64 = 0x1000;
const FOUR_GIB: u64 = 1 << 32;
/// What is no memory for Linux, whatever the host says: what the PSP filled, and what says where; the table of processors; the legacy hole.
const HOLES: [(u64, u64); 3] = [
    (rom::BLOB_PAGE as u64, rom::CPUID_PAGE as u64 + PAGE),
    (rom::PROCESSORS_PAGE as u64, 0xa_0000),
    (0xa_0000, 0x10_0000),
];

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// What it is.
    pub kind: Kind,
}

const NOTHING: Range = Range { start: 0, end: 0, kind: Kind::Reserved };

/// Why a map is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not a whole number of entries, none, or too many.
    Size,
    /// An entry of an unknown type, empty, not of whole pages, or beyond [`LIMIT`].
    Entry,
    /// Two entries overlap.
    Overlap,
    /// RAM where the devices or the ROM are.
    Devices,
    /// Less than [`LEAST`] at address 0.
    Little,
}

/// A map that was checked: sorted, without overlap.
#[derive(Clone, Debug)]
pub struct Map {
    ranges: [Range; MAX],
    count: usize,
}

impl Map {
    /// Checks the host's map.
    ///
    /// # Errors
    /// It is not one that a machine of ours has.
    pub fn new(host: &[u8]) -> Result<Self, Error> {
        let (entries, rest) = host.as_chunks::<ENTRY_SIZE>();
        if !rest.is_empty() || entries.is_empty() || entries.len() > MAX_HOST {
            return Err(Error::Size);
        }
        let mut map = Self { ranges: [NOTHING; MAX], count: 0 };
        for entry in entries {
            let range = range(entry)?;
            if range.kind == Kind::Ram && range.start < FOUR_GIB && range.end > DEVICES {
                return Err(Error::Devices);
            }
            map.push(range);
        }
        map.ranges[..map.count].sort_unstable_by_key(|range| range.start);
        if map.ranges().windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(Error::Overlap);
        }
        match map.ranges().first() {
            Some(Range { start: 0, end: LEAST.., kind: Kind::Ram }) => Ok(map),
            _ => Err(Error::Little),
        }
    }

    fn push(&mut self, range: Range) {
        if let Some(slot) = self.ranges.get_mut(self.count)
            && range.start < range.end
        {
            *slot = range;
            self.count += 1;
        }
    }

    /// The ranges in ascending order.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.count]
    }

    /// Where the RAM at address 0 ends.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        self.ranges[0].end
    }

    /// The map for Linux.
    #[must_use]
    pub fn for_linux(&self) -> Self {
        let mut map = Self { ranges: [NOTHING; MAX], count: 0 };
        let mut start = 0;
        // All holes lie in the first range: RAM from 0 to at least `LEAST`.
        for (from, to) in HOLES {
            map.push(Range { start, end: from, kind: Kind::Ram });
            map.push(Range { start: from, end: to, kind: Kind::Reserved });
            start = to;
        }
        map.push(Range { start, end: self.low_end(), kind: Kind::Ram });
        for range in &self.ranges()[1..] {
            map.push(*range);
        }
        map
    }
}

fn range(entry: &[u8; ENTRY_SIZE]) -> Result<Range, Error> {
    let (address, rest) = entry.split_first_chunk::<8>().ok_or(Error::Entry)?;
    let (length, kind) = rest.split_first_chunk::<8>().ok_or(Error::Entry)?;
    let start = u64::from_le_bytes(*address);
    let end = start.checked_add(u64::from_le_bytes(*length)).ok_or(Error::Entry)?;
    let kind = match kind {
        [1, 0, 0, 0] => Kind::Ram,
        [2, 0, 0, 0] => Kind::Reserved,
        _ => return Err(Error::Entry),
    };
    let whole = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
    if start >= end || kind == Kind::Ram && (!whole || end > LIMIT) {
        return Err(Error::Entry);
    }
    Ok(Range { start, end, kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const MIB: u64 = 1 << 20;

    fn host(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let bytes = |(a, l, k): &(u64, u64, u32)| {
            [a.to_le_bytes().as_slice(), &l.to_le_bytes(), &k.to_le_bytes()].concat()
        };
        entries.iter().flat_map(bytes).collect()
    }

    #[test]
    fn linux_gets_all_memory_but_the_holes() {
        let map =
            Map::new(&host(&[(FOUR_GIB, 1 << 30, 1), (0xfeff_c000, 0x4000, 2), (0, 512 * MIB, 1)])).unwrap();
        let linux: Vec<_> =
            map.for_linux().ranges().iter().map(|r| (r.start, r.end, r.kind as u32)).collect();
        assert_eq!(
            linux,
            [
                (0, 0x7_f000, 1),
                (0x7_f000, 0x8_2000, 2),
                (0x8_2000, 0x9_f000, 1),
                (0x9_f000, 0xa_0000, 2),
                (0xa_0000, 0x10_0000, 2),
                (0x10_0000, 512 * MIB, 1),
                (0xfeff_c000, 0xff00_0000, 2),
                (FOUR_GIB, FOUR_GIB + (1 << 30), 1),
            ]
        );
    }

    #[test]
    fn a_lying_map_is_refused() {
        let refused = |entries: &[(u64, u64, u32)]| Map::new(&host(entries)).unwrap_err();
        let low = (0, 512 * MIB, 1);
        assert_eq!(refused(&[]), Error::Size);
        assert_eq!(refused(&[low; MAX_HOST + 1]), Error::Size);
        assert_eq!(Map::new(&host(&[low])[1..]).unwrap_err(), Error::Size);
        assert_eq!(refused(&[low, low]), Error::Overlap);
        assert_eq!(refused(&[low, (MIB, MIB, 2)]), Error::Overlap);
        assert_eq!(refused(&[low, (512 * MIB - 0x1000, MIB, 1)]), Error::Overlap);
        assert_eq!(refused(&[low, (rom::ROM_BASE, 0x1_0000, 1)]), Error::Devices);
        assert_eq!(refused(&[(0, FOUR_GIB, 1)]), Error::Devices);
        assert_eq!(refused(&[(0, 32 * MIB, 1)]), Error::Little);
        assert_eq!(refused(&[(0x1000, 512 * MIB, 1)]), Error::Little);
        assert_eq!(refused(&[(0, 512 * MIB, 2)]), Error::Little);
        assert_eq!(refused(&[low, (FOUR_GIB, LIMIT, 1)]), Error::Entry);
        assert_eq!(refused(&[low, (FOUR_GIB, u64::MAX, 1)]), Error::Entry);
        assert_eq!(refused(&[low, (FOUR_GIB, 0, 1)]), Error::Entry);
        assert_eq!(refused(&[low, (FOUR_GIB + 1, MIB, 1)]), Error::Entry);
        assert_eq!(refused(&[low, (FOUR_GIB, MIB, 3)]), Error::Entry);
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_sorted_and_has_no_ram_in_a_hole(
            entries in proptest::collection::vec((0u64..2048, 1u64..1024, 1u32..3), 0..8),
            low in 64u64..1024,
        ) {
            let mut all = std::vec![(0, low * MIB, 1)];
            all.extend(entries.iter().map(|(a, l, k)| (a * 4 * MIB, l * MIB, *k)));
            if let Ok(map) = Map::new(&host(&all)) {
                let linux = map.for_linux();
                prop_assert!(linux.ranges().windows(2).all(|p| p[0].end <= p[1].start));
                for range in linux.ranges().iter().filter(|r| r.kind == Kind::Ram) {
                    prop_assert!(HOLES.iter().all(|h| range.end <= h.0 || h.1 <= range.start));
                    prop_assert!(range.end <= DEVICES || range.start >= FOUR_GIB);
                }
            }
        }
    }
}
