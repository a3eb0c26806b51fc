//! `parma image convert`: every layer of an image once, whole files only, whoever else runs or was killed.

mod common;

use common::{parma, stderr, stdout};
use parma_layer::build::{Options, hash};
use parma_layer::oci::Digest;
use rustix::fs::inotify;
use serde_json::{Value, json};
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Large enough that its conversion takes longer than to notice that it has begun.
const LARGE: usize = 96 << 20;

/// A layout with an image of two layers, a large one and a small one, and a cache of its own.
struct Place {
    dir: tempfile::TempDir,
    tars: [Vec<u8>; 2],
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("layout/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let tars = [tar_of(LARGE), tar_of(5)];
        let store = |kind: &str, bytes: &[u8]| {
            let digest = Digest::of(bytes);
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
            json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest.to_string(), "size": bytes.len()})
        };
        let layers = tars.each_ref().map(|tar| store("layer.v1.tar", tar));
        let diff_ids = layers.each_ref().map(|layer| layer["digest"].clone());
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Cmd": ["/bin/sh"]},
        });
        let config = store("config.v1+json", config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
        });
        let manifest = store("manifest.v1+json", manifest.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(dir.path().join("layout/index.json"), index.to_string()).unwrap();
        fs::write(dir.path().join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir, tars }
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = parma(&self.dir);
        command.env("PARMA_CACHE", self.cache());
        command.args(["image", "convert", &format!("oci:{}", self.dir.path().join("layout").display())]);
        command.args(more);
        command
    }

    /// Checks that the layers on a run's standard output are what their tars give, and where they are.
    fn check(&self, output: &std::process::Output) {
        assert!(output.status.success(), "{}", stderr(output));
        let text = stdout(output);
        assert_eq!(text.lines().count(), 2, "{text}");
        for (line, tar) in text.lines().zip(&self.tars) {
            let built = hash(&tar[..], &Options::default(), &mut |_| ()).unwrap();
            let [root, blocks, path] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            assert_eq!((root, blocks), (&*built.root_hex(), &*built.data_blocks.to_string()));
            assert_eq!(fs::metadata(path).unwrap().len(), built.bytes);
        }
    }

    fn files(&self, ending: &str) -> usize {
        let entries = fs::read_dir(self.cache().join("layers")).into_iter().flatten();
        entries.filter(|entry| has_ending(&entry.as_ref().unwrap().path(), ending)).count()
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|extension| extension == ending)
}

fn tar_of(size: usize) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    let content: Vec<u8> = (0..size).map(|at| (at / 977 % 251) as u8).collect();
    builder.append_data(&mut header, format!("file{size}"), &content[..]).unwrap();
    builder.into_inner().unwrap()
}

#[test]
fn an_image_is_converted_once_and_its_disks_are_copied_out_on_request() {
    let place = Place::new();
    place.check(&place.command(&[]).output().unwrap());
    let made = || {
        let entries = fs::read_dir(place.cache().join("layers")).unwrap().map(|entry| entry.unwrap());
        let images = entries.filter(|entry| has_ending(&entry.path(), "img"));
        // One that is made again is another file under the name: it is written beside the old one and renamed.
        images.map(|entry| entry.metadata().unwrap().ino()).collect::<Vec<_>>()
    };
    let first = made();
    let out = place.dir.path().join("out");
    let output = place.command(&["-o", out.to_str().unwrap(), "--vhd", "--json"]).output().unwrap();
    assert_eq!(made(), first, "converted again");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (index, layer) in told["layers"].as_array().unwrap().iter().enumerate() {
        let path = out.join(format!("layer{index}.img"));
        assert_eq!(layer["path"], path.to_str().unwrap());
        let bytes = fs::read(path).unwrap();
        let footer = bytes.len() - 512;
        assert_eq!(&bytes[footer..footer + 8], b"conectix");
        let tar = &place.tars[index];
        assert_eq!(layer["diff_id"], Digest::of(tar).to_string());
        let plain = hash(&tar[..], &Options::default(), &mut |_| ()).unwrap();
        assert_eq!((footer as u64, &layer["root_hash"]), (plain.bytes, &json!(plain.root_hex())));
    }
    // Other options, other disks.
    let small = stdout(&place.command(&["--max-size", "16G"]).output().unwrap());
    assert!(!small.contains(told["layers"][0]["root_hash"].as_str().unwrap()));
    assert_eq!(place.files("img"), 4);
}

#[test]
fn a_run_that_is_killed_leaves_nothing_that_the_next_one_believes() {
    let place = Place::new();
    let layers = place.cache().join("layers");
    fs::create_dir_all(&layers).unwrap();
    for _ in 0..3 {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, &layers, inotify::WatchFlags::MODIFY).unwrap();
        let mut child = place.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The first bytes of the disk are written: this is in the middle of it.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        while !events.next().unwrap().file_name().is_some_and(|name| name.to_bytes().ends_with(b".tmp")) {}
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((place.files("tmp"), place.files("img")), (1, 0));
    }
    place.check(&place.command(&[]).output().unwrap());
    assert_eq!((place.files("tmp"), place.files("img")), (0, 2));
}

#[test]
fn two_runs_at_once_agree_and_convert_each_layer_once() {
    let place = Place::new();
    let run = || place.command(&[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let runs = [run(), run(), run()];
    for run in runs {
        place.check(&run.wait_with_output().unwrap());
    }
    assert_eq!((place.files("tmp"), place.files("img")), (0, 2));
}

#[test]
fn a_full_or_unwritable_output_is_named_with_the_remedy() {
    let place = Place::new();
    let file = place.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let output = place.command(&["-o", file.join("x").to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("may you write there"), "{}", stderr(&output));
    let usage = place.command(&["--vhd"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn what_pull_prints_is_what_the_other_commands_take() {
    let place = Place::new();
    let from = format!("oci:{}", place.dir.path().join("layout").display());
    let to = format!("oci:{}", place.dir.path().join("pulled").display());
    let pull = |more: &[&str]| {
        let mut command = parma(&place.dir);
        command.args(["image", "pull", &from, "--to", &to]).args(more).output().unwrap()
    };
    let output = pull(&[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    assert_eq!(printed, format!("{to}:latest\n"));
    let mut convert = parma(&place.dir);
    convert.env("PARMA_CACHE", place.cache()).args(["image", "convert", printed.trim()]);
    place.check(&convert.output().unwrap());
    let told: Value = serde_json::from_slice(&pull(&["--json"]).stdout).unwrap();
    assert_eq!((&told["image"], &told["fetched"]), (&json!(printed.trim()), &json!(0)));
    assert_eq!(told["layers"][0]["diff_id"], Digest::of(&place.tars[0]).to_string());

    let output = parma(&place.dir).args(["image", "pull", "ghcr.io/team/app"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("docker://"), "{}", stderr(&output));
    let output = parma(&place.dir).args(["image", "pull", &from]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--to"), "{}", stderr(&output));
}
