//! Layers against what the reference implementation made of the same tars, recorded in `vectors/layers`.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use parma_layer::build::{Options, build, hash};
use parma_layer::oci::Digest;
use serde_json::Value;

#[test]
fn every_recorded_tar_gives_the_recorded_image_and_root_hash() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/layers");
    let Ok(recorded) = fs::read(vectors.join("roothashes.json")) else {
        println!("skipped: no recorded layers in {}", vectors.display());
        return;
    };
    let recorded: Value = serde_json::from_slice(&recorded).unwrap();
    for (name, facts) in recorded.as_object().unwrap() {
        let mut tar = Vec::new();
        let packed = fs::read(vectors.join(format!("{name}.xz"))).unwrap();
        lzma_rs::xz_decompress(&mut packed.as_slice(), &mut tar).unwrap();
        assert_eq!(Digest::of(&tar).hex(), facts["tar_sha256"], "{name}");
        for (variant, facts) in facts["variants"].as_object().unwrap() {
            let options = match variant.as_str() {
                "azure (whiteouts converted, 128 GiB)" => Options::default(),
                "no whiteout conversion, 128 GiB" => {
                    Options { convert_whiteouts: false, ..Options::default() }
                }
                "whiteouts converted, 16 GiB" => Options { max_size: 16 << 30, ..Options::default() },
                other => panic!("unknown options {other:?}"),
            };
            let mut file = tempfile::tempfile().unwrap();
            let built = build(tar.as_slice(), &file, &options, &mut |_| ()).unwrap();
            let mut image = Vec::new();
            file.read_to_end(&mut image).unwrap();
            let at = format!("{name}, {variant}");
            let size = facts["ext4_size"].as_u64().unwrap();
            let tree = facts["hash_tree_size"].as_u64().unwrap();
            assert_eq!(built.data_blocks, facts["data_blocks"].as_u64().unwrap(), "{at}");
            assert_eq!((built.data_blocks * 4096, built.bytes), (size, size + 4096 + tree), "{at}");
            let (filesystem, verity) = image.split_at(size as usize);
            assert_eq!(Digest::of(filesystem).hex(), facts["sha256_ext4"], "{at}");
            assert_eq!(Digest::of(&verity[4096..]).hex(), facts["sha256_hash_tree"], "{at}");
            assert_eq!(built.root_hex(), facts["root_hash"], "{at}");
            assert_eq!(hash(tar.as_slice(), &options, &mut |_| ()).unwrap(), built, "{at}");
        }
    }
}

/// The order of entries, times and all else in an image come from the tar alone.
#[test]
fn an_image_does_not_depend_on_how_its_tar_arrives() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3_000_000);
    header.set_mode(0o600);
    tar.append_data(&mut header, "a/b", std::io::repeat(7).take(3_000_000)).unwrap();
    let tar = tar.into_inner().unwrap();
    let whole = hash(tar.as_slice(), &Options::default(), &mut |_| ()).unwrap();

    struct Dribble<'a>(&'a [u8]);
    impl std::io::Read for Dribble<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let n = buf.len().min(1 + self.0.len() % 997);
            self.0.read(&mut buf[..n])
        }
    }
    assert_eq!(hash(Dribble(&tar), &Options::default(), &mut |_| ()).unwrap(), whole);
}
