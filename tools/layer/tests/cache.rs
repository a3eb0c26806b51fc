//! The cache of converted layers: one conversion for one content, whole files only.

#[allow(dead_code)]
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use common::*;
use parma_layer::build::{Options, hash};
use parma_layer::cache::Cache;
use parma_layer::oci::{Digest, Image};

fn image_of(blob: &[u8], media_type: &str) -> (Layout, Image) {
    let mut layout = Layout::new();
    let layer = layout.blob(media_type, blob);
    let image = layout.image(vec![layer], &[Digest::of(&tar()).to_string()]);
    layout.tag(image, None);
    let image = layout.open(None).unwrap();
    (layout, image)
}

fn images(directory: &std::path::Path) -> Vec<String> {
    let names = fs::read_dir(directory.join("layers"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| !n.ends_with(".lock")).collect();
    names.sort();
    names
}

#[test]
fn a_layer_is_converted_once_whatever_its_compression() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path()).unwrap();
    let expected = hash(&tar()[..], &Options::default(), &mut |_| ()).unwrap();
    let mut conversions = 0;
    for (blob, media_type) in [(tar(), LAYER), (gzip(&tar()), LAYER_GZIP), (zstd(&tar()), LAYER_ZSTD)] {
        let (_layout, image) = image_of(&blob, media_type);
        let mut called = false;
        let layers = cache.convert(&image, &mut |_, _| called = true).unwrap();
        conversions += u32::from(called);
        assert_eq!((layers[0].root_hash, layers[0].data_blocks), (expected.root_hash, expected.data_blocks));
        assert_eq!(fs::metadata(&layers[0].path).unwrap().len(), expected.bytes);
    }
    assert_eq!(conversions, 1);
    assert_eq!(images(directory.path()).len(), 1);
}

#[test]
fn other_options_give_another_file() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path()).unwrap();
    let (_layout, image) = image_of(&tar(), LAYER);
    let first = cache.layer(&image, 0, &Options::default(), &mut |_| ()).unwrap();
    let small = Options { max_size: 16 << 30, ..Options::default() };
    let second = cache.layer(&image, 0, &small, &mut |_| ()).unwrap();
    assert_ne!((&first.path, first.root_hash), (&second.path, second.root_hash));
}

#[test]
fn parallel_conversions_agree_and_leave_one_image() {
    let directory = tempfile::tempdir().unwrap();
    let (_layout, image) = image_of(&gzip(&tar()), LAYER_GZIP);
    let results = thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| Cache::at(directory.path()).unwrap().convert(&image, &mut |_, _| ()).unwrap())
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(images(directory.path()).len(), 1);
}

#[test]
fn what_a_run_that_died_left_behind_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path()).unwrap();
    let (_layout, image) = image_of(&tar(), LAYER);
    let good = cache.convert(&image, &mut |_, _| ()).unwrap().remove(0);
    let whole = fs::read(&good.path).unwrap();
    for damage in [&b""[..], &whole[..whole.len() - 4096], &vec![7; whole.len() + 99]] {
        fs::write(&good.path, damage).unwrap();
        fs::write(good.path.with_extension("tmp"), vec![9; whole.len() * 2]).unwrap();
        assert_eq!(cache.convert(&image, &mut |_, _| ()).unwrap(), std::slice::from_ref(&good));
        assert!(fs::read(&good.path).unwrap() == whole);
        assert_eq!(images(directory.path()).len(), 1);
    }
}

#[test]
fn a_damaged_blob_leaves_nothing_in_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path()).unwrap();
    let (layout, image) = image_of(&gzip(&tar()), LAYER_GZIP);
    replace(&layout.blob_path(&image.layers[0].digest.to_string()), |b| *b.last_mut().unwrap() ^= 1);
    let error = message(cache.convert(&image, &mut |_, _| ()));
    assert!(error.contains(&image.layers[0].digest.to_string()), "{error}");
    assert!(images(directory.path()).is_empty());
}

#[test]
fn an_unwritable_cache_says_how_to_choose_another() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(message(Cache::at(&file.join("x"))).contains("PARMA_CACHE"));
}

/// Kata's CVE-2020-2026: a link in place of a directory led a tool with more rights elsewhere.
#[test]
fn t07_a_cache_that_others_could_write_to_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let refused = |name: &str| {
        let error = message(Cache::at(&base.path().join(name)));
        assert!(error.contains("PARMA_CACHE"), "{error}");
    };
    let own = base.path().join("own");
    Cache::at(&own).unwrap();
    // A planted link to a directory that is the user's own.
    fs::create_dir(base.path().join("link")).unwrap();
    std::os::unix::fs::symlink(own.join("layers"), base.path().join("link/layers")).unwrap();
    refused("link");
    for name in ["open", "inside"] {
        Cache::at(&base.path().join(name)).unwrap();
    }
    fs::set_permissions(base.path().join("open"), fs::Permissions::from_mode(0o777)).unwrap();
    refused("open");
    fs::set_permissions(base.path().join("inside/layers"), fs::Permissions::from_mode(0o770)).unwrap();
    refused("inside");
    // Another user's; only root can make that.
    Cache::at(&base.path().join("foreign")).unwrap();
    if std::os::unix::fs::chown(base.path().join("foreign/layers"), Some(65534), None).is_ok() {
        refused("foreign");
    }
    Cache::at(&own).unwrap();
}

#[test]
fn what_was_not_used_for_longest_is_removed_first_and_what_is_in_use_never() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::at(directory.path()).unwrap();
    let (_layout, image) = image_of(&tar(), LAYER);
    let plain = Options { convert_whiteouts: false, ..Options::default() };
    let convert = |options| cache.layer(&image, 0, options, &mut |_| ()).unwrap();
    let usual = Options::default();
    let (first, second) = (convert(&usual), convert(&plain));
    let old = std::time::SystemTime::UNIX_EPOCH;
    fs::File::open(&second.path).unwrap().set_modified(old).unwrap();
    assert!(cache.holds(image.layers[0].diff_id, &plain));
    cache.trim(u64::MAX, &[]).unwrap();
    assert_eq!(images(directory.path()).len(), 2);
    cache.trim(0, &[&second.path]).unwrap();
    assert!(!first.path.exists() && second.path.exists());
    // Looking a layer up is a use of it.
    let first = convert(&usual);
    fs::File::open(&first.path).unwrap().set_modified(old).unwrap();
    convert(&usual);
    fs::File::open(&second.path).unwrap().set_modified(old + std::time::Duration::from_secs(1)).unwrap();
    let one = fs::metadata(&first.path).unwrap();
    cache.trim(std::os::unix::fs::MetadataExt::blocks(&one) * 512, &[]).unwrap();
    assert!(first.path.exists() && !second.path.exists());
}
