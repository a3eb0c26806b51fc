//! The forms that values have, at their limits.

use super::*;
use crate::gate::fields::{IdOrName, ProfileHash, RootHash, VolumeId};

#[test]
fn a_hash_is_64_digits_and_a_path_the_guests_own() {
    let mut hash = [0; 32];
    (hash[0], hash[31]) = (0xab, 0x01);
    let digits = format!("ab{}01", "0".repeat(60));
    assert_eq!(RootHash(hash).hex().as_str(), digits);
    assert_eq!(ProfileHash(hash).hex().as_str(), digits);
    assert_eq!(VolumeId(hash).hex().as_str(), digits);
    assert_eq!(VolumeId(hash).path().as_str(), format!("/run/mounts/volumes/{digits}"));
    assert_eq!(Slot(65_535).path().as_str(), "/run/mounts/scsi/m65535");
}

#[test]
fn i09_a_directory_has_a_plain_name_of_at_most_64() {
    for name in ["a", "A.b_c-9", &"a".repeat(64)] {
        assert_eq!(DirectoryName::parse(name).map(DirectoryName::as_str), Ok(name));
    }
    for name in ["", ".", "..", ".a", "a/b", "a b", "a\0", "\u{e9}", &"a".repeat(65)] {
        assert!(DirectoryName::parse(name).is_err(), "{name:?}");
    }
}

#[test]
fn i10_a_directory_to_work_in_is_absolute_and_has_one_spelling() {
    let longest = format!("/{}", "a".repeat(4094));
    for path in ["/", "/a", "/a/b.c/..d", &longest] {
        assert_eq!(WorkingDir::parse(path).map(WorkingDir::as_str), Ok(path));
    }
    for path in ["", "a", "//", "/a/", "/a//b", "/./a", "/a/..", "/a\0b", &format!("{longest}a")] {
        assert!(WorkingDir::parse(path).is_err(), "{path:?}");
    }
    assert_eq!(MountPoint::parse("/device").map(MountPoint::as_str), Ok("/device"));
}

#[test]
fn c06_a_user_has_one_spelling() {
    let parsed = |text| UserSpec::parse(text).map(|spec| (spec.user, spec.group)).ok();
    let name = "n".repeat(32);
    assert_eq!(parsed(""), Some((IdOrName::Id(0), None)));
    assert_eq!(parsed("0:0"), Some((IdOrName::Id(0), Some(IdOrName::Id(0)))));
    assert_eq!(parsed("4294967294"), Some((IdOrName::Id(u32::MAX - 1), None)));
    assert_eq!(parsed("_a.b-9:1"), Some((IdOrName::Name("_a.b-9"), Some(IdOrName::Id(1)))));
    assert_eq!(parsed(&name), Some((IdOrName::Name(&name), None)));
    for text in [
        ":",
        "a:",
        ":a",
        "00",
        "01",
        "0x1",
        "1a",
        "4294967295",
        "-a",
        "a b",
        "a:b:c",
        "a\0",
        &format!("{name}n"),
    ] {
        assert_eq!(parsed(text), None, "{text:?}");
    }
}

#[test]
fn c06_capability_sets_are_those_that_the_kernel_can_hold() {
    let last = 1 << (CAPABILITY_NAMES.len() - 1);
    let all = Capabilities { bounding: last | 1, effective: 1, inheritable: 1, permitted: 1, ambient: 1 };
    assert_eq!(CapabilitySets::new(all).map(|sets| *sets.get()), Ok(all));
    for wrong in [
        Capabilities { bounding: last << 1 | 1, ..all },
        Capabilities { permitted: 3, ..all },
        Capabilities { effective: 3, ..all },
        Capabilities { inheritable: 3, ..all },
        Capabilities { inheritable: 0, ..all },
        Capabilities { permitted: 0, effective: 0, ..all },
    ] {
        assert!(CapabilitySets::new(wrong).is_err(), "{wrong:?}");
    }
}

#[test]
fn numbers_are_within_their_ranges_and_stay_what_they_are() {
    let most = (128 << 30) / 4096;
    for (blocks, valid) in [(0, false), (1, true), (most, true), (most + 1, false)] {
        assert_eq!(DataBlocks::new(blocks).map(DataBlocks::get).ok(), valid.then_some(blocks));
    }
    let (least, most) = (4096, (128 << 30) / 4096);
    for (blocks, valid) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
        assert_eq!(ScratchBlocks::new(blocks).map(ScratchBlocks::get).ok(), valid.then_some(blocks));
    }
    for (bits, valid) in [(0, true), (0o777, true), (0o1000, false)] {
        assert_eq!(Umask::new(bits).map(Umask::bits).ok(), valid.then_some(bits));
    }
    for (number, valid) in [(0, false), (1, true), (64, true), (65, false)] {
        assert_eq!(Signal::new(number).map(Signal::number).ok(), valid.then_some(number));
    }
    let limits = wire::Resources { memory: Some(1 << 20), cpu: Some(10), processes: Some(1), paused: true };
    assert_eq!(Resources::new(limits).map(Resources::get), Ok(limits));
    let size = wire::WindowSize { rows: 1, columns: 4096 };
    assert_eq!(WindowSize::new(size).map(WindowSize::get), Ok(size));
    let pipes = wire::Stdio { stdin: true, ..wire::Stdio::default() };
    for (stdio, any) in [
        (wire::Stdio::default(), false),
        (pipes, true),
        (wire::Stdio { stdin: false, stdout: true, ..pipes }, true),
        (wire::Stdio { stdin: false, stderr: true, ..pipes }, true),
    ] {
        let checked = super::super::Stdio::new(stdio).unwrap();
        assert_eq!((checked.get(), checked.any()), (stdio, any));
    }
}
