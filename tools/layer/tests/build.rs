//! Layers that are built: other tools read them, bad input is refused by name, output is whole or absent.

#[allow(dead_code)]
mod common;

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use common::*;
use parma_guest::target::ext4::superblock_blocks;
use parma_layer::End;
use parma_layer::build::{Built, Options, build, build_file, hash, hash_file};
use tar::{Builder, EntryType, Header};

/// Type, name, link target and content.
type Spec<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

fn tar_of(entries: &[Spec<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (kind, name, link, content) in entries {
        tar.append(&header(*kind, name, link, content.len() as u64), *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A header with the name as given: the builder's own checks would refuse the bad ones.
fn header(kind: EntryType, name: &str, link: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_mtime(1_600_000_000);
    header.set_size(size);
    header.set_cksum();
    header
}

/// A tar with one empty file that has PAX records.
fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions(records.iter().copied()).unwrap();
    tar.append(&header(EntryType::Regular, "file", "", 0), &b""[..]).unwrap();
    tar.into_inner().unwrap()
}

fn hashed(tar: &[u8]) -> anyhow::Result<Built> {
    hash(tar, &Options::default(), &mut |_| ())
}

fn image(tar: &[u8], options: &Options) -> (Built, Vec<u8>) {
    let mut out = tempfile::tempfile().unwrap();
    let built = build(tar, &out, options, &mut |_| ()).unwrap();
    let mut bytes = Vec::new();
    out.read_to_end(&mut bytes).unwrap();
    (built, bytes)
}

/// Runs a tool that may be absent; gives its output.
fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|d| Path::new(d).join(tool));
    let Some(path) = found.iter().find(|p| p.exists()) else {
        println!("skipped: {tool} is not installed");
        return None;
    };
    let output = Command::new(path).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool}: {text}");
    Some(text.into_owned())
}

fn sample() -> Vec<u8> {
    tar_of(&[
        (EntryType::Directory, "etc/", "", b""),
        (EntryType::Regular, "etc/motd", "", b"hello\n"),
        (EntryType::Symlink, "etc/link", "motd", b""),
        (EntryType::Link, "etc/hard", "etc/motd", b""),
        (EntryType::Regular, "usr/lib/deep", "", &[b'x'; 700_000]),
        (EntryType::Regular, "usr/.wh.gone", "", b""),
    ])
}

#[test]
fn veritysetup_accepts_an_image_and_the_root_hash_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (tar, out) = (dir.path().join("l.tar"), dir.path().join("l.img"));
    fs::write(&tar, sample()).unwrap();
    let built = build_file(&tar, &out, &Options::default(), &mut |_| ()).unwrap();
    let out = out.to_str().unwrap();
    let offset = format!("--hash-offset={}", built.data_blocks * 4096);
    run("veritysetup", &["verify", out, out, &built.root_hex(), &offset]);
    let wrong = Command::new("veritysetup").args(["verify", out, out, &"00".repeat(32), &offset]).output();
    assert!(wrong.map_or(true, |o| !o.status.success()));
}

#[test]
fn debugfs_and_dumpe2fs_read_what_the_tar_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.img");
    let (built, bytes) = image(&sample(), &Options::default());
    fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();
    if let Some(text) = run("dumpe2fs", &["-h", path]) {
        let blocks = text.lines().find(|l| l.starts_with("Block count:")).unwrap();
        assert!(blocks.ends_with(&format!(" {}", built.data_blocks)), "{blocks}");
    }
    for (request, expected) in [
        ("cat /etc/motd", "hello"),
        ("stat /etc/hard", "Links: 2"),
        ("stat /etc/link", "Fast link dest: \"motd\""),
        ("stat /usr/lib/deep", "Size: 700000"),
        ("stat /usr/gone", "Type: character special"),
        ("stat /etc", "Mode:  0755"),
    ] {
        if let Some(text) = run("debugfs", &["-R", request, path]) {
            assert!(text.contains(expected), "{request}: {text}");
        }
    }
}

#[test]
fn the_superblock_tells_the_verity_devices_size() {
    let (built, bytes) = image(&sample(), &Options::default());
    let superblock = bytes[1024..2048].try_into().unwrap();
    assert_eq!(superblock_blocks(&superblock), Some(built.data_blocks));
    assert_eq!(bytes.len() as u64, built.bytes);
}

#[test]
fn plain_gzip_and_zstd_give_the_same_bytes_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut images = Vec::new();
    for (name, bytes) in [
        ("a.tar", sample()),
        ("b.tar", sample()),
        ("c.tar.gz", gzip(&sample())),
        ("d.tar.zst", zstd(&sample())),
    ] {
        let (input, output) = (dir.path().join(name), dir.path().join("out"));
        fs::write(&input, bytes).unwrap();
        let built = build_file(&input, &output, &Options::default(), &mut |_| ()).unwrap();
        assert_eq!(hash_file(&input, &Options::default(), &mut |_| ()).unwrap(), built);
        images.push(fs::read(&output).unwrap());
    }
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn a_vhd_footer_follows_the_image_and_leaves_the_hash_alone() {
    let (plain, image_bytes) = image(&sample(), &Options::default());
    let (vhd, bytes) = image(&sample(), &Options { vhd: true, ..Options::default() });
    assert_eq!((vhd.root_hash, vhd.bytes), (plain.root_hash, plain.bytes + 512));
    let (body, footer) = bytes.split_at(image_bytes.len());
    assert!(body == image_bytes);
    assert_eq!(&footer[..8], b"conectix");
    assert_eq!(footer[48..56], plain.bytes.to_be_bytes());
    let stated = u32::from_be_bytes(footer[64..68].try_into().unwrap());
    let sum: u32 = footer[..64].iter().chain(&footer[68..]).map(|b| u32::from(*b)).sum();
    assert_eq!(stated, !sum);
}

/// I17: names cannot leave the layer; they are cleaned as the reference does.
#[test]
fn i17_absolute_and_dot_dot_names_stay_inside_the_layer() {
    let plain = hashed(&tar_of(&[(EntryType::Regular, "etc/x", "", b"1")])).unwrap();
    for name in ["/etc/x", "../../etc/x", "./etc//./x", "etc/../../etc/x"] {
        assert_eq!(hashed(&tar_of(&[(EntryType::Regular, name, "", b"1")])).unwrap(), plain, "{name}");
    }
}

/// I17: a symbolic link in the layer is never followed while the layer is built.
#[test]
fn i17_nothing_is_written_or_linked_through_a_symbolic_link() {
    let link = (EntryType::Symlink, "dir", "/etc", &b""[..]);
    let through = tar_of(&[link, (EntryType::Regular, "dir/passwd", "", b"x")]);
    let error = message(hashed(&through));
    assert!(error.contains("dir/passwd") && error.contains("not a directory"), "{error}");
    assert!(hashed(&tar_of(&[link, (EntryType::Link, "h", "dir/passwd", b"")])).is_err());
}

/// I17: attributes of `trusted.` are part of the recorded root hashes, so they stay; the guest's overlay must
/// not act on them.
#[test]
fn i17_trusted_attributes_stay_as_in_the_reference() {
    let with = image(&pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/x")]), &Options::default()).1;
    assert!(with.windows(16).any(|w| w == b"overlay.redirect"));
}

#[test]
fn truncated_tars_are_refused() {
    let tar = sample();
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("t"), dir.path().join("out"));
    for length in [1, 511, 512, 1024, 1500, 4096, tar.len() / 2, tar.len() - 1024, tar.len() - 2000] {
        fs::write(&input, &tar[..length]).unwrap();
        let error = message(build_file(&input, &output, &Options::default(), &mut |_| ()));
        assert!(error.contains("truncated") || error.contains("early"), "{length}: {error}");
        assert!(fs::read_dir(dir.path()).unwrap().count() == 1, "{length}: half-written output");
    }
    let unmarked = &tar[..tar.len() - 1024];
    let digest_vouches = Options { end: End::Anywhere, ..Options::default() };
    assert_eq!(hash(unmarked, &digest_vouches, &mut |_| ()).unwrap(), hashed(&tar).unwrap());
}

#[test]
fn truncated_compression_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [gzip(&sample()), zstd(&sample())] {
        let (input, output) = (dir.path().join("t"), dir.path().join("out"));
        fs::write(&input, &bytes[..bytes.len() - 5]).unwrap();
        assert!(build_file(&input, &output, &Options::default(), &mut |_| ()).is_err());
        assert!(!output.exists());
    }
}

#[test]
fn what_the_format_cannot_express_is_refused_with_the_entrys_name() {
    use EntryType::{Directory, Link, Regular};
    let cases: [(&[Spec<'_>], &str, &str); 8] = [
        (&[(Link, "a", "nowhere", b"")], "\"a\"", "does not hold"),
        (&[(Link, "a", "a", b"")], "\"a\"", "does not hold"),
        (&[(Directory, "d", "", b""), (Link, "a", "d", b"")], "\"a\"", "is a directory"),
        (&[(Regular, "a", "", b"1"), (Regular, "a", "", b"2")], "\"a\"", "replaced"),
        (&[(Regular, "a", "", b""), (Directory, "a", "", b"")], "\"a\"", "cannot replace"),
        (&[(Directory, "a", "", b""), (Regular, "a", "", b"")], "\"a\"", "cannot replace"),
        (&[(Regular, "a", "", b""), (Regular, "a/b", "", b"")], "\"a/b\"", "not a directory"),
        (&[(Regular, "a", "", b""), (Regular, "a/.wh..wh..opq", "", b"")], "opq", "not a directory"),
    ];
    for (entries, name, reason) in cases {
        let error = message(hashed(&tar_of(entries)));
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
}

#[test]
fn an_empty_file_may_be_replaced_within_its_layer() {
    let twice = tar_of(&[(EntryType::Regular, "a", "", b""), (EntryType::Regular, "a", "", b"2")]);
    assert_eq!(hashed(&twice).unwrap(), hashed(&tar_of(&[(EntryType::Regular, "a", "", b"2")])).unwrap());
}

#[test]
fn names_over_255_bytes_are_refused() {
    let long = "n".repeat(256);
    let mut tar = Builder::new(Vec::new());
    tar.append_data(&mut Header::new_gnu(), format!("dir/{long}"), &b""[..]).unwrap();
    assert!(message(hashed(&tar.into_inner().unwrap())).contains("the limit is 255"));
    let mut tar = Builder::new(Vec::new());
    tar.append_data(&mut Header::new_gnu(), format!("{long}/file"), &b""[..]).unwrap();
    assert!(message(hashed(&tar.into_inner().unwrap())).contains("the limit is 255"));
}

#[test]
fn attributes_that_do_not_fit_are_refused() {
    let error = message(hashed(&pax(&[("SCHILY.xattr.user.big", &[b'v'; 5000])])));
    assert!(error.contains("\"file\"") && error.contains("user.big"), "{error}");
}

#[test]
fn sizes_that_lie_are_refused() {
    let mut huge = header(EntryType::Regular, "liar", "", 1 << 40);
    let mut tar = huge.as_bytes().to_vec();
    tar.extend_from_slice(&[0; 4096]);
    assert!(message(hashed(&tar)).contains("\"liar\""));
    huge.as_old_mut().size = [0xff; 12]; // -1 in base 256
    huge.set_cksum();
    let mut tar = huge.as_bytes().to_vec();
    tar.extend_from_slice(&[0; 1024]);
    assert!(message(hashed(&tar)).contains("negative size"));
    assert!(message(hashed(&pax(&[("size", b"-1")]))).contains("negative size"));
    assert!(hashed(&pax(&[("size", b"9999999999999999999999")])).is_err());
    let map = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"0,10"),
        ("GNU.sparse.realsize", b"5"),
    ];
    assert!(message(hashed(&pax(&map))).contains("sparse"));
}

#[test]
fn a_header_with_a_changed_byte_is_refused() {
    let mut tar = sample();
    tar[512 + 100] ^= 1;
    let error = message(hashed(&tar));
    assert!(error.contains("checksum") && error.contains("etc/"), "{error}");
}

#[test]
fn garbage_is_refused() {
    for garbage in [vec![b'x'; 5000], vec![0xff; 512], b"{}".to_vec(), Vec::new()] {
        assert!(hashed(&garbage).is_err());
    }
}

#[test]
fn an_image_over_its_maximum_is_refused() {
    let small = Options { max_size: 1 << 20, ..Options::default() };
    let tar = tar_of(&[(EntryType::Regular, "a", "", &vec![1; 2 << 20])]);
    let error = message(hash(tar.as_slice(), &small, &mut |_| ()));
    assert!(error.contains("--max-size") && error.contains("\"a\""), "{error}");
    for bad in [0, u64::MAX, (16 << 40) + 1] {
        assert!(hash(&sample()[..], &Options { max_size: bad, ..small }, &mut |_| ()).is_err());
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("t");
    fs::write(&input, sample()).unwrap();
    let nowhere = dir.path().join("no/such/dir/out.img");
    let error = message(build_file(&input, &nowhere, &Options::default(), &mut |_| ()));
    assert!(error.contains("out.img") && error.contains("writable"), "{error}");
    let error = message(build_file(&nowhere, &input, &Options::default(), &mut |_| ()));
    assert!(error.contains("out.img"), "{error}");
}

#[test]
fn progress_grows_to_the_images_size() {
    let mut seen = Vec::new();
    let built = hash(&sample()[..], &Options::default(), &mut |bytes| seen.push(bytes)).unwrap();
    assert!(seen.is_sorted());
    assert_eq!(seen.last(), Some(&built.bytes));
}

/// A plain file's content is read by the threads that hash it, a stream's before; the image is the same.
#[test]
fn a_tar_in_a_file_and_the_same_tar_as_a_stream_give_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let (path, output) = (dir.path().join("layer.tar"), dir.path().join("layer.img"));
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8 ^ (at >> 12) as u8).collect();
    let sizes = [0, 1, 511, 4095, 4096, 16_384, 15_872, 15_873, 20_000, 262_144, 262_145, 1 << 20, 3_000_000];
    let mut builder = Builder::new(Vec::new());
    for (number, size) in sizes.into_iter().enumerate() {
        let name = format!("file{number}");
        builder.append(&header(EntryType::Regular, &name, "", size), &content[..size as usize]).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    fs::write(&path, &tar).unwrap();
    let (expected, bytes) = image(&tar, &Options::default());
    assert_eq!(hash_file(&path, &Options::default(), &mut |_| ()).unwrap(), expected);
    assert_eq!(build_file(&path, &output, &Options::default(), &mut |_| ()).unwrap(), expected);
    assert!(fs::read(&output).unwrap() == bytes);
    // Cut short, wherever: in a header, in content that is read ahead, in content that is not.
    for length in [300, 10_000, 500_000, 2_000_000, tar.len() - 512 * 3] {
        fs::write(&path, &tar[..length]).unwrap();
        let error = message(hash_file(&path, &Options::default(), &mut |_| ()));
        assert!(error.contains("truncated") && error.contains("layer.tar"), "{length}: {error}");
    }
}
