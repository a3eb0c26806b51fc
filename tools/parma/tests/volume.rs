//! `parma volume`: made without root, opened with the key alone, and every damage found.

mod common;

use common::{fixtures, parma, stderr, stdout};
use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const KEY: [u8; 32] = [7; 32];
const BLOCK: u64 = 4096;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path("key"), KEY).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a subcommand here, so that names are relative.
    fn run(&self, arguments: &[&str]) -> Output {
        parma(&self.0).current_dir(self.0.path()).arg("volume").args(arguments).output().unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stdout(&output));
        stderr(&output)
    }
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Runs a tool that may be absent; gives its output and whether it was content.
fn tool(name: &str, arguments: &[&str]) -> Option<(String, bool)> {
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|folder| Path::new(folder).join(name));
    let Some(path) = found.iter().find(|path| path.exists()) else {
        println!("skipped: {name} is not installed");
        return None;
    };
    let output = Command::new(path).args(arguments).output().unwrap();
    Some((stdout(&output) + &stderr(&output), output.status.success()))
}

#[test]
fn an_encrypted_volume_is_made_checked_and_opened_with_its_key() {
    let place = Place::new();
    let id = place.done(&["create", "data.img", "--size", "64M", "--key", "key"]);
    assert!(id.len() == 65 && id.trim_end().bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    let meta = fs::metadata(place.path("data.img")).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777), (64 << 20, 0o600));
    assert!(meta.blocks() * 512 < 1 << 20, "it takes the room of what is in it: {}", meta.blocks());
    // The key's hexadecimal form, from standard input, is the same key.
    let mut child = parma(&place.0)
        .current_dir(place.0.path())
        .args(["volume", "check", "data.img", "--key", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all("07".repeat(32).as_bytes()).unwrap();
    let report: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(report["generation"], 0);
    assert!(report["damaged"] == 0 && report["whole"].as_u64().unwrap() > 5, "{report}");
    assert!(place.done(&["open", "data.img", "--key", "key", "-o", "plain.img"]).contains("never written"));
    assert_eq!(fs::metadata(place.path("plain.img")).unwrap().permissions().mode() & 0o777, 0o600);
    let plain = place.path("plain.img");
    if let Some((text, _)) = tool("debugfs", &["-R", "ls -l /", plain.to_str().unwrap()]) {
        assert!(text.contains("lost+found"), "{text}");
    }
    if let Some((text, content)) = tool("e2fsck", &["-fn", plain.to_str().unwrap()]) {
        assert!(content, "{text}");
    }
}

#[test]
fn nothing_of_the_content_or_the_key_is_on_the_disk() {
    let place = Place::new();
    place.done(&["create", "one.img", "--size", "32M", "--key", "key"]);
    place.done(&["create", "two.img", "--size", "32M", "--key", "key"]);
    let (one, two) = (fs::read(place.path("one.img")).unwrap(), fs::read(place.path("two.img")).unwrap());
    let written: Vec<_> = one.chunks(4096).zip(two.chunks(4096)).filter(|(a, _)| *a != [0; 4096]).collect();
    assert!(written.len() > 5);
    assert!(written.iter().all(|(a, b)| a != b), "the same content and key, and not the same bytes");
    for needle in [&KEY[..], b"lost+found", b"\x53\xef\x01\x00"] {
        assert!(!one.windows(needle.len()).any(|window| window == needle), "{needle:?}");
    }
}

#[test]
fn l04_every_changed_or_moved_block_is_found_and_named() {
    let place = Place::new();
    place.done(&["create", "data.img", "--size", "32M", "--key", "key"]);
    let path = place.path("data.img");
    let whole = fs::read(&path).unwrap();
    let data_blocks = (whole.len() as u64 / BLOCK) * 1024 / 1031;
    let tuple = |block: u64| data_blocks * BLOCK + block * 28;
    let check = ["check", "data.img", "--key", "key"];
    // The superblock's content, its tag, its nonce.
    for at in [1024, tuple(0), tuple(0) + 27] {
        flip(&path, at);
        let error = place.refused(&check);
        assert!(error.contains("1 blocks are not what was written there: 0"), "{error}");
        let error = place.refused(&["open", "data.img", "--key", "key", "-o", "plain.img"]);
        assert!(error.contains("not what was written") && !place.path("plain.img").exists(), "{error}");
        flip(&path, at);
    }
    place.done(&check);
    // A block and its tag, together, in another's place.
    let file = fs::File::options().write(true).open(&path).unwrap();
    let part = |at: u64, length: u64| &whole[at as usize..(at + length) as usize];
    file.write_all_at(part(0, BLOCK), BLOCK).unwrap();
    file.write_all_at(part(tuple(0), 28), tuple(1)).unwrap();
    let error = place.refused(&check);
    assert!(error.contains("written there: 1"), "{error}");
}

#[test]
fn another_key_opens_nothing_and_the_error_suspects_it() {
    let place = Place::new();
    place.done(&["create", "data.img", "--size", "32M", "--key", "key"]);
    fs::write(place.path("other"), [8; 32]).unwrap();
    let error = place.refused(&["check", "data.img", "--key", "other"]);
    assert!(error.contains("is this its key?"), "{error}");
    for (name, bytes) in [("short", &[7; 31][..]), ("long", &[7; 33]), ("text", &[b'x'; 64]), ("empty", &[])]
    {
        fs::write(place.path(name), bytes).unwrap();
        let error = place.refused(&["check", "data.img", "--key", name]);
        assert!(error.contains(name) && error.contains("openssl rand"), "{error}");
    }
    assert!(place.refused(&["check", "data.img", "--key", "missing"]).contains("missing"));
}

#[test]
fn a_volume_is_never_written_over_and_too_small_a_one_not_made() {
    let place = Place::new();
    place.done(&["create", "data.img", "--size", "32M", "--key", "key"]);
    let before = fs::read(place.path("data.img")).unwrap();
    let error = place.refused(&["create", "data.img", "--size", "32M", "--key", "key"]);
    assert!(error.contains("never written over"), "{error}");
    assert!(fs::read(place.path("data.img")).unwrap() == before);
    let error = place.refused(&["create", "small.img", "--size", "1M", "--key", "key"]);
    assert!(error.contains("too few"), "{error}");
    assert!(place.refused(&["create", "no/dir.img", "--size", "32M", "--key", "key"]).contains("writable"));
    // The key, two volumes' worth of attempts, and no half-written file.
    assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 2);
    for wrong in [&["create", "x"][..], &["create", "x", "--size", "1G"], &["check", "x"], &["open", "x"]] {
        assert_eq!(place.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_read_only_volume_is_checked_against_its_root_hash() {
    let place = Place::new();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3 << 20);
    header.set_mode(0o644);
    tar.append_data(&mut header, "model", std::io::repeat(5).take(3 << 20)).unwrap();
    fs::write(place.path("model.tar"), tar.into_inner().unwrap()).unwrap();
    let root = place.done(&["create", "model.img", "--from", "model.tar"]);
    let root = root.trim_end();
    let check = ["check", "model.img", "--root-hash", root];
    assert!(place.done(&check).contains("all as the root hash says"));
    let path = place.path("model.img");
    let length = fs::metadata(&path).unwrap().len();
    let mut data_blocks = [0; 8];
    let find =
        |text: &[u8]| fs::read(&path).unwrap().windows(text.len()).position(|w| w == text).unwrap() as u64;
    let superblock = find(b"verity\0\0");
    fs::File::open(&path).unwrap().read_exact_at(&mut data_blocks, superblock + 72).unwrap();
    assert_eq!(u64::from_le_bytes(data_blocks) * BLOCK, superblock);
    let text = path.to_str().unwrap();
    let offset = format!("--hash-offset={superblock}");
    if let Some((text, content)) = tool("veritysetup", &["verify", text, text, root, &offset]) {
        assert!(content, "{text}");
    }
    // Content, an unused byte, the superblock, the tree's top and its last leaf.
    for at in [64 << 10, 5, superblock + 20, superblock + BLOCK + 40, length - BLOCK] {
        flip(&path, at);
        let error = place.refused(&check);
        assert!(error.contains("model.img"), "{at}: {error}");
        flip(&path, at);
    }
    place.done(&check);
    place.refused(&["check", "model.img", "--root-hash", &"0".repeat(64)]);
    assert_eq!(place.run(&["check", "model.img", "--root-hash", "zz"]).status.code(), Some(2));
}

/// What `parma run --volume` mounts is what its policy names; a volume that is damaged is not read, and nothing else is a volume.
#[test]
fn a_container_reads_a_verified_volume_at_its_place() {
    let Some((image, fixtures)) = fixtures() else { return };
    let place = Place::new();
    let content = "a model, as its owner made it\n".repeat(1000);
    let mut tar = tar::Builder::new(fs::File::create(place.path("model.tar")).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, "weights", content.as_bytes()).unwrap();
    tar.finish().unwrap();
    let root = place.done(&["create", "model.img", "--from", "model.tar"]);
    let run = |volume: &str, script: &str| {
        parma(&place.0)
            .current_dir(place.0.path())
            .args(["run", "--volume", volume, "--image"])
            .arg(&image)
            .arg(format!("oci:{}:latest", fixtures.join("busybox").display()))
            .args(["--", "sh", "-c", script])
            .output()
            .unwrap()
    };
    let output =
        run("model.img:/model", "cat /model/weights; touch /model/more 2>/dev/null || echo read-only");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), content.clone() + "read-only\n");
    // The policy that was shown names it.
    assert!(stderr(&output).contains(&format!("verity://{}", root.trim_end())), "{}", stderr(&output));

    let whole = fs::read(place.path("model.img")).unwrap();
    let at = whole.windows(7).position(|window| window == b"a model").unwrap();
    flip(&place.path("model.img"), at as u64);
    let output = run("model.img:/model", "cat /model/weights");
    assert!(!output.status.success() && stdout(&output).is_empty(), "{}", stdout(&output));
    assert!(stderr(&output).contains("Input/output error"), "{}", stderr(&output));

    let output = run("model.tar:/model", "true");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no read-only volume"), "{}", stderr(&output));
    assert_eq!(run("model.img:model", "true").status.code(), Some(2));
}
