//! What is fuzzed: one function for each kind of bytes that the firmware takes from the host. Each takes any bytes, and panics
//! where a promise is broken. cargo-fuzz calls them (`fuzz_targets/`), and so does, with a bounded number of inputs, every
//! `cargo test` (`tests/fuzz.rs`).
//!
//! The kernel is verified before it is read; it is here because whoever makes an image may be wrong. The CPUID page is read by
//! assembly (`reset.s`): `tools/snp/tests/hosts.rs` gives it pages at random.
#![allow(dead_code, reason = "each binary calls one of them")]

use parma_firmware::accept::ranges;
use parma_firmware::e820::{DEVICES, ENTRY_SIZE as MAP_ENTRY, Kind, LIMIT, MAX, Map, Range};
use parma_firmware::fw_cfg::{self, ENTRY_SIZE, MAX_FILES};
use parma_firmware::ghcb::{HEADER_SIZE, MAX_PAGES, Request, State, progress};
use parma_firmware::linux::Kernel;
use parma_firmware::processors::{self, Count};
use parma_firmware::rom;

const FOUR_GIB: u64 = 1 << 32;
const NAME: &str = "opt/parma/kernel";

/// The memory map (`etc/e820`): what is accepted is sorted and without overlap; Linux gets no memory that the map has not, nor
/// any that is the firmware's, the PSP's or a device's; and what is accepted of it is accepted once.
pub fn e820(bytes: &[u8]) {
    let Ok(map) = Map::new(bytes) else { return };
    assert_eq!(bytes.len() % MAP_ENTRY, 0);
    let linux = map.for_linux();
    assert!(linux.ranges().len() <= MAX);
    assert!(linux.ranges().windows(2).all(|pair| pair[0].end <= pair[1].start));
    let ram = |range: &&Range| range.kind == Kind::Ram;
    for range in linux.ranges().iter().filter(ram) {
        assert!(range.start < range.end && range.end <= LIMIT);
        assert!(range.end <= DEVICES || range.start >= FOUR_GIB);
        let said =
            |host: &&Range| host.kind == Kind::Ram && host.start <= range.start && range.end <= host.end;
        assert_eq!(map.ranges().iter().filter(said).count(), 1, "{range:?}");
        for hole in [
            u64::from(rom::SECRETS_PAGE),
            u64::from(rom::CPUID_PAGE),
            u64::from(rom::PROCESSORS_PAGE),
            0xb_8000,
        ] {
            assert!(hole < range.start || range.end <= hole, "{range:?}");
        }
    }
    let mut taken: Vec<(u64, u64)> = ranges(&map).filter(|(start, end)| start < end).collect();
    taken.push((rom::RAM_START.into(), u64::from(rom::CPUID_PAGE) + 0x1000));
    taken.push((rom::WINDOW, rom::WINDOW + rom::WINDOW_SIZE));
    taken.sort_unstable();
    assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{taken:x?}");
    // Adjacent ranges count as one.
    taken.dedup_by(|next, before| (before.1 == next.0).then(|| before.1 = next.1).is_some());
    for range in linux.ranges().iter().filter(ram) {
        assert!(taken.iter().any(|(start, end)| *start <= range.start && range.end <= *end), "{range:?}");
    }
}

/// The directory of files, its count first: it is bounded, and a file is found if exactly one entry has its name.
pub fn directory(bytes: &[u8]) {
    let Some((count, entries)) = bytes.split_first_chunk() else { return };
    let Some(size) = fw_cfg::directory_size(*count) else {
        assert!(u32::from_be_bytes(*count) as usize > MAX_FILES);
        return;
    };
    assert!(size <= MAX_FILES * ENTRY_SIZE && size == u32::from_be_bytes(*count) as usize * ENTRY_SIZE);
    let Some(entries) = entries.get(..size) else { return };
    let named = |entry: &&[u8]| entry[8..].starts_with(NAME.as_bytes()) && entry[8 + NAME.len()] == 0;
    let mut all = entries.chunks(ENTRY_SIZE).filter(named);
    match (fw_cfg::find(entries, NAME), all.next(), all.next()) {
        (Some(file), Some(entry), None) => {
            assert_eq!(entry[..4], file.size.to_be_bytes());
            assert_eq!(entry[4..6], file.key.to_be_bytes());
        }
        // An entry whose name does not end makes the whole directory one that is not believed.
        (None, Some(_), None) => assert!(entries.chunks(ENTRY_SIZE).any(|entry| !entry[8..].contains(&0))),
        (found, _, _) => assert_eq!(found, None),
    }
}

/// The number of processors: what is accepted gives a table that Linux accepts, by its checksums.
pub fn processors(bytes: &[u8]) {
    let Some((host, _)) = bytes.split_first_chunk() else { return };
    let number = u16::from_le_bytes(*host);
    let Some(count) = Count::new(*host) else {
        assert!(number == 0 || number > processors::MAX.into());
        return;
    };
    let page = processors::page(count);
    let length = usize::from(u16::from_le_bytes([page[4], page[5]]));
    assert_eq!(page[..length].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(
        page[44..length].chunks(20).take(number.into()).filter(|entry| entry[0] == 0).count(),
        number.into()
    );
}

/// What the hypervisor answers: only the one right answer to each request is taken, and a list of pages comes to an end.
pub fn answers(bytes: &[u8]) {
    let numbers = bytes.as_chunks::<8>().0;
    let page = 0x40_0000;
    for answer in numbers.iter().map(|number| u64::from_le_bytes(*number)) {
        assert!(!Request::End { reason: 0 }.is_granted(answer));
        assert_eq!(Request::Register { page }.is_granted(answer), answer == page | 0x13);
        assert_eq!(Request::Change { page, to: State::Private }.is_granted(answer), answer == 0x15);
        if (Request::Information { c_bit: 51 }).is_granted(answer) {
            assert!(
                answer >> 48 >= 2
                    && answer >> 32 & 0xffff <= 2
                    && answer >> 24 & 0xff == 51
                    && answer & 0xfff == 1
            );
        }
        if Request::Features.is_granted(answer) {
            assert!(answer & 0x1fff == 0x1081);
        }
    }
    for count in [1, 2, MAX_PAGES] {
        let mut before = 0;
        for header in numbers {
            const { assert!(HEADER_SIZE == 8) };
            let Some(now) = progress(*header, count, before) else { break };
            assert!(before < now && now <= count);
            before = now;
        }
    }
}

/// A kernel's header: whatever is accepted lies where it says, and kernel and initrd do not overlap.
pub fn kernel(bytes: &[u8]) {
    let Ok(kernel) = Kernel::new(bytes) else { return };
    assert!(kernel.payload.len() < bytes.len());
    assert!(kernel.end.checked_sub(kernel.address).is_some_and(|size| size >= kernel.payload.len() as u64));
    let memory = [&[0; 8][..], &(1u64 << 30).to_le_bytes(), &[1, 0, 0, 0]].concat();
    let map = Map::new(&memory).expect("an honest map");
    for size in [0, 1, 0x1000, 64 << 20, usize::MAX] {
        if let Ok(start) = kernel.place_initrd(size, &map) {
            assert!(start >= kernel.end && start.is_multiple_of(0x1000));
            assert!(start.checked_add(size as u64).is_some_and(|end| end <= map.low_end()));
        }
    }
    let params = kernel.params(&map, 0x7_1000, (0x100_0000, 5), 0);
    assert!(params[..0x1e8].iter().all(|byte| *byte == 0));
    assert_eq!(params[0x228..0x22c], 0x7_1000u32.to_le_bytes());
    assert_eq!(usize::from(params[0x1e8]), map.for_linux().ranges().len());
}
