//! The fuzz targets (`fuzz/targets.rs`), bounded: any bytes, and valid ones with changes.

#[path = "../fuzz/targets.rs"]
mod targets;

use proptest::collection::vec;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// These bytes with some of them replaced, and an end that may be missing.
fn changed(seed: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (Just(seed), changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut bytes, changes, end, cut)| {
            for (index, byte) in changes {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
            if cut {
                bytes.truncate(end.index(bytes.len() + 1));
            }
            bytes
        },
    )
}

fn map() -> Vec<u8> {
    let entries: [(u64, u64, u32); 3] =
        [(0, 512 * MIB, 1), (0xfeff_c000, 0x4000, 2), (4096 * MIB, 512 * MIB, 1)];
    let bytes =
        |(a, l, k): (u64, u64, u32)| [&a.to_le_bytes()[..], &l.to_le_bytes(), &k.to_le_bytes()].concat();
    entries.into_iter().flat_map(bytes).collect()
}

fn directory() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    for (key, name) in ["etc/e820", "opt/parma/kernel", "opt/parma/initrd"].into_iter().enumerate() {
        let mut entry = [&5000u32.to_be_bytes()[..], &[0, key as u8, 0, 0], name.as_bytes()].concat();
        entry.resize(64, 0);
        bytes.extend(entry);
    }
    bytes
}

fn kernel() -> Vec<u8> {
    let mut image = vec![0; 3000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x201, &[0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &[0x0f, 0x02]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x234, &[1, 0, 1]);
    put(0x258, &0x100_0000u64.to_le_bytes());
    put(0x260, &0x200_0000u32.to_le_bytes());
    image
}

/// The seeds are what an honest host says: they are accepted, so what is changed in them matters.
#[test]
fn the_seeds_are_accepted() {
    assert!(parma_firmware::e820::Map::new(&map()).is_ok());
    assert!(parma_firmware::fw_cfg::find(&directory()[4..], "opt/parma/kernel").is_some());
    assert!(parma_firmware::linux::Kernel::new(&kernel()).is_ok());
    targets::e820(&map());
    targets::directory(&directory());
    targets::kernel(&kernel());
}

#[test]
fn every_number_of_processors_is_refused_or_makes_a_table() {
    (0..=u16::MAX).for_each(|number| targets::processors(&number.to_le_bytes()));
}

proptest! {
    #[test]
    fn any_memory_map_is_refused_or_kept_to(bytes in prop_oneof![vec(any::<u8>(), 0..200), changed(map())]) {
        targets::e820(&bytes);
    }

    #[test]
    fn any_directory_is_bounded_and_unambiguous(bytes in prop_oneof![vec(any::<u8>(), 0..600), changed(directory())]) {
        targets::directory(&bytes);
    }

    #[test]
    fn any_answer_of_the_hypervisor_is_the_right_one_or_refused(bytes in vec(any::<u8>(), 0..256)) {
        targets::answers(&bytes);
    }

    #[test]
    fn any_kernel_is_refused_or_has_a_place(bytes in changed(kernel())) {
        targets::kernel(&bytes);
    }
}
