//! The shim under containerd: containers of `ctr`, each a pod of one.

mod common;

use common::{Node, kill, lives, shims, text, until};
use parma_layer::oci::Digest;
use parma_policy::generate::{GenerateOptions, Settings};
use rustix::fs::inotify;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn a_container_of_ctr_lives_in_a_guest_and_outlives_containerd() {
    let Some(mut node) = Node::start() else { return };
    let shown = File::create(node.dir.path().join("events")).unwrap();
    let mut events = node.command(&["events"]).stdout(shown).stderr(Stdio::null()).spawn().unwrap();

    // Its output and its code are ctr's.
    let args = ["sh", "-c", "echo from $(uname -n | wc -c); echo to stderr >&2; exit 7"];
    let policy = node.policy(&args, GenerateOptions::default());
    let output = node.run(&policy, &["--rm"], "once", &args).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}\n{}", text(&output), node.log());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from 13\n");
    assert!(text(&output).contains("to stderr"));
    assert_eq!(node.task("once"), "");

    let args = ["sh", "-c", "echo started; exec sleep 100000"];
    let exec = ["sh", "-c", "cat; exit 3"].map(str::to_owned).to_vec();
    let options = GenerateOptions { exec: vec![exec], ..GenerateOptions::default() };
    let policy = node.policy(&args, options);
    let log = node.dir.path().join("output").display().to_string();
    let uri = format!("file://{log}");
    let run = node.run(&policy, &["--detach", "--log-uri", &uri], "c1", &args).output().unwrap();
    assert!(run.status.success(), "{}\n{}", text(&run), node.log());
    until("its output is logged", || fs::read_to_string(&log).is_ok_and(|text| text == "started\n"));
    assert!(node.task("c1").ends_with("RUNNING"), "{}", node.task("c1"));
    assert!(node.ctr(&["tasks", "metrics", "c1"]).contains("memory.usage"), "no metrics");

    // containerd is killed and comes back: the container goes on, and can be asked for something.
    let guest = node.pid("c1");
    node.kill_containerd();
    node.start_containerd();
    until("containerd knows the task", || node.task("c1").ends_with("RUNNING"));
    assert_eq!(node.pid("c1"), guest);
    let mut exec = node
        .command(&["tasks", "exec", "--exec-id", "e1", "c1", "sh", "-c", "cat; exit 3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut exec.stdin.take().unwrap(), b"through stdin\n").unwrap();
    let output = exec.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(3), &b"through stdin\n"[..]));

    // What the policy does not allow is refused in one line.
    let denied = node.command(&["tasks", "exec", "--exec-id", "e2", "c1", "id"]).output().unwrap();
    let message = text(&denied);
    assert!(!denied.status.success() && message.trim().lines().count() == 1, "{message}");
    assert!(message.contains("exec_in_container"), "{message}");

    // The guest dies: the task is reported as killed.
    kill(guest);
    until("the task has ended", || node.task("c1").ends_with("STOPPED"));
    let deleted = node.command(&["tasks", "delete", "c1"]).output().unwrap();
    assert!(text(&deleted).contains("137"), "{}", text(&deleted));
    node.ctr(&["containers", "delete", "c1"]);

    // The shim dies: its guest goes with it.
    let run = node.run(&policy, &["--detach", "--log-uri", &uri], "c2", &args).output().unwrap();
    assert!(run.status.success(), "{}\n{}", text(&run), node.log());
    let guest = node.pid("c2");
    let socket = node.dir.path().join("socket").display().to_string();
    for shim in shims(&socket) {
        kill(shim);
    }
    until("no QEMU is left", || !lives(guest));
    until("nor its directory", || fs::read_dir(node.machines()).unwrap().next().is_none());
    until("the task is gone", || !node.task("c2").ends_with("RUNNING"));

    events.kill().unwrap();
    events.wait().unwrap();
    let events = fs::read_to_string(node.dir.path().join("events")).unwrap();
    let of_once: Vec<_> = events
        .lines()
        .filter(|line| line.contains("\"once\""))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")))
        .collect();
    assert_eq!(of_once, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"], "{events}");
}

#[test]
fn what_cannot_run_is_one_line_with_the_remedy_and_leaves_nothing() {
    let Some(node) = Node::start() else { return };
    let line = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let message = text(&output);
        assert_eq!(message.trim().lines().count(), 1, "{message}");
        message
    };
    let message = line(&mut node.run("", &[], "none", &["true"]));
    assert!(message.contains("policy generate --annotation"), "{message}");
    // ctr keeps the container that was refused, so each has an id of its own.
    for (id, wrong) in [("path", "parma.dev/policy=/etc/passwd"), ("no-policy", "parma.dev/policy=cm9vdA==")]
    {
        let message = line(&mut node.run(wrong, &[], id, &["true"]));
        assert!(message.contains("parma.dev/policy"), "{message}");
    }
    let other = node.policy(&["echo", "other"], GenerateOptions::default());
    let message = line(&mut node.run(&other, &[], "denied", &["true"]));
    assert!(message.contains("create_container"), "{message}");
    let message = line(&mut node.run(&other, &["--read-only"], "read-only", &["true"]));
    assert!(message.contains("readOnlyRootFilesystem") && message.contains("--read-only"), "{message}");
    let mount = "type=bind,src=/etc,dst=/mnt,options=rbind:ro";
    let message = line(&mut node.run(&other, &["--mount", mount], "mount", &["true"]));
    assert!(message.contains("/mnt"), "{message}");
    node.until_nothing_is_left();
}

/// A root filesystem that is read-only, and a profile of system calls.
#[test]
fn what_the_policy_alone_gives_is_given_where_containerd_asks_for_the_same() {
    let Some(node) = Node::start() else { return };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    });
    let file = node.dir.path().join("profile.json");
    fs::write(&file, profile.to_string()).unwrap();
    let script = "touch /file || echo no file; mkdir /dev/shm/directory || echo no directory; touch /dev/shm/file && echo both";
    let args = ["sh", "-c", script];
    let options = GenerateOptions {
        seccomp: Some(profile.to_string().into_bytes()),
        settings: Settings { read_only_root: true, ..Settings::default() },
        ..GenerateOptions::default()
    };
    let policy = node.policy(&args, options);
    let file = file.display().to_string();
    let flags = ["--rm", "--read-only", "--seccomp", "--seccomp-profile", &file];
    let output = node.run(&policy, &flags, "both", &args).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), node.log());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "no file\nno directory\nboth\n", "{}", text(&output));
}

#[test]
fn a_full_disk_fails_the_conversion_and_leaves_nothing_half_done() {
    let Some(node) = Node::start() else { return };
    let cache = node.cache();
    fs::create_dir_all(&cache).unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs"]).arg(&cache).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: it needs to mount a small filesystem");
        return;
    }
    let unmount = Unmount(&cache);
    let policy = node.policy(&["true"], GenerateOptions::default());
    let output = node.run(&policy, &["--rm"], "full", &["true"]).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("room"), "{}", text(&output));
    let left = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.ends_with("lock") && name != "layers").collect::<Vec<_>>()
    };
    assert_eq!(left(&cache), [] as [String; 0]);
    assert_eq!(left(&cache.join("layers")), [] as [String; 0]);
    drop(unmount);
    // With room it runs.
    let output = node.run(&policy, &["--rm"], "room", &["true"]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), node.log());
}

/// A layer that takes longer to convert than to notice that its conversion has begun.
const LARGE: usize = 96 << 20;

/// The fixture busybox with a large layer on top, as a layout.
fn large(node: &Node) -> tempfile::TempDir {
    let (from, to) = (node.fixture("busybox"), tempfile::tempdir().unwrap());
    let blob = |dir: &Path, digest: &Value| {
        dir.join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    fs::create_dir_all(to.path().join("blobs/sha256")).unwrap();
    fs::copy(from.join("oci-layout"), to.path().join("oci-layout")).unwrap();
    let put = |media_type: &Value, bytes: &[u8]| {
        let digest = json!(Digest::of(bytes).to_string());
        fs::write(blob(to.path(), &digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let mut header = tar::Header::new_ustar();
    header.set_size(LARGE as u64);
    header.set_mode(0o644);
    let mut builder = tar::Builder::new(Vec::new());
    let content: Vec<u8> = (0..LARGE).map(|at| (at / 977 % 251) as u8).collect();
    builder.append_data(&mut header, "large", &content[..]).unwrap();
    let layer = put(&json!("application/vnd.oci.image.layer.v1.tar"), &builder.into_inner().unwrap());

    let mut index = read(&from.join("index.json"));
    let mut manifest = read(&blob(&from, &index["manifests"][0]["digest"]));
    let mut config = read(&blob(&from, &manifest["config"]["digest"]));
    for layer in manifest["layers"].as_array().unwrap() {
        fs::copy(blob(&from, &layer["digest"]), blob(to.path(), &layer["digest"])).unwrap();
    }
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().push(layer["digest"].clone());
    config.as_object_mut().unwrap().remove("history");
    manifest["layers"].as_array_mut().unwrap().push(layer);
    manifest["config"] = put(&manifest["config"]["mediaType"], config.to_string().as_bytes());
    let named = index["manifests"][0]["annotations"].clone();
    index["manifests"][0] = put(&index["manifests"][0]["mediaType"], manifest.to_string().as_bytes());
    index["manifests"][0]["annotations"] = named;
    fs::write(to.path().join("index.json"), index.to_string()).unwrap();
    to
}

#[test]
fn a_shim_killed_in_the_middle_of_a_conversion_leaves_nothing_that_a_later_one_trips_over() {
    const NAME: &str = "parma.test/large";
    let Some(node) = Node::start() else { return };
    let image = large(&node);
    let name = format!("{NAME}:latest");
    node.import(image.path().to_str().unwrap(), NAME);
    let policy = Node::policy_of(&node.container_of(image.path(), &["true"], GenerateOptions::default()));
    let layers = node.cache().join("layers");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&layers).unwrap();
    let entries = |dir: &Path, is: &dyn Fn(&str) -> bool| {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| is(name.to_str().unwrap())).count()
    };
    let halves = || entries(&layers, &|name| name.ends_with(".tmp"));
    let layouts = || entries(&node.cache(), &|name| name.starts_with("layout-"));
    let socket = node.dir.path().join("socket").display().to_string();

    // The first bytes of the large layer's disk are written: this is in the middle of it.
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, &layers, inotify::WatchFlags::MODIFY).unwrap();
    let mut run =
        node.run_image(&name, &policy, &[], "killed", &["true"]).stderr(Stdio::null()).spawn().unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let is_large = |file: &[u8]| {
        let path = layers.join(std::str::from_utf8(file).unwrap());
        file.ends_with(b".tmp") && fs::metadata(path).is_ok_and(|meta| meta.len() > LARGE as u64 / 2)
    };
    while !events.next().unwrap().file_name().is_some_and(|file| is_large(file.to_bytes())) {}
    for shim in shims(&socket) {
        kill(shim);
    }
    assert!(!run.wait().unwrap().success());
    assert_eq!((halves(), layouts()), (1, 1), "it was over already");
    node.until_nothing_is_left();

    let output = node.run_image(&name, &policy, &["--rm"], "later", &["true"]).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), node.log());
    assert_eq!((halves(), layouts()), (0, 0));
    node.until_nothing_is_left();
}

/// At once; each has a guest of its own.
const PODS: usize = 4;

#[test]
fn pods_started_at_once_share_one_conversion_and_leave_nothing() {
    let Some(node) = Node::start() else { return };
    let args = ["sh", "-c", "uname -n"];
    let policy = node.policy(&args, GenerateOptions::default());
    let runs: Vec<_> = (0..PODS)
        .map(|number| {
            let id = format!("pod{number}");
            node.run(&policy, &["--rm"], &id, &args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut names = std::collections::BTreeSet::new();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output), node.log());
        names.insert(output.stdout);
    }
    assert_eq!(names.len(), PODS, "guests of their own have names of their own");
    let converted = fs::read_dir(node.cache().join("layers")).unwrap().flatten();
    let layers =
        converted.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "img")).count();
    assert_eq!(layers, node.layers(), "each layer of the image once");
    node.until_nothing_is_left();
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
