//! Real containers in a real guest, through the program. Needs `PARMA_IMAGE` and `PARMA_FIXTURES`.

mod common;

use common::{fixtures, parma, stderr, stdout};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// `parma run` of one of the container images.
fn run(runtime: &TempDir, options: &[&str], name: &str, arguments: &[&str]) -> Option<Command> {
    let (image, fixtures) = fixtures()?;
    let mut command = parma(runtime);
    command.arg("run").arg("--image").arg(image).args(options);
    command.arg(format!("oci:{}", fixtures.join(name).display())).arg("--").args(arguments);
    Some(command)
}

fn output(options: &[&str], name: &str, arguments: &[&str]) -> Option<Output> {
    let runtime = tempfile::tempdir().unwrap();
    let output = run(&runtime, options, name, arguments)?.output().unwrap();
    let left: Vec<_> =
        fs::read_dir(runtime.path()).unwrap().flat_map(|e| fs::read_dir(e.unwrap().path())).collect();
    assert!(left.into_iter().flatten().next().is_none(), "what was made for the run is removed");
    Some(output)
}

#[test]
fn python_prints_42_under_a_policy_that_nobody_wrote() {
    let Some(output) = output(&["-v"], "python", &["python3", "-c", "print(6*7)"]) else { return };
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("42\n", Some(0)), "{}", stderr(&output));
    let log = stderr(&output);
    for shown in ["package policy", "HOST_DATA ", "set_policy", "mount_device layer0", "create_container"] {
        assert!(log.contains(shown), "{shown}: {log}");
    }
}

#[test]
fn the_containers_exit_code_and_error_stream_are_the_programs() {
    let script = "echo out; echo err >&2; exit 7";
    let Some(output) = output(&["-q"], "busybox", &["sh", "-c", script]) else { return };
    let seen = (stdout(&output), stderr(&output), output.status.code());
    assert_eq!(seen, ("out\n".into(), "err\n".into(), Some(7)));
}

#[test]
fn bytes_pass_both_ways_complete_and_unchanged() {
    let runtime = tempfile::tempdir().unwrap();
    let Some(mut command) = run(&runtime, &["-q", "-i"], "busybox", &["cat"]) else { return };
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Every byte value, and more than any buffer on the way holds.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8 ^ (i >> 16) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == sent, "{} of {} bytes", output.stdout.len(), sent.len());
}

/// A container that runs until it is asked to stop, and then ends with 5.
struct Running {
    runtime: TempDir,
    child: Child,
}

impl Running {
    fn start() -> Option<Self> {
        Self::that("trap 'exit 5' TERM", &["--allow-signal", "TERM"])
    }

    /// One that begins with this command, and whose host may do this.
    fn that(begins: &str, allowed: &[&str]) -> Option<Self> {
        let script = format!("{begins}; echo ready; while :; do sleep 1000 & wait $!; done");
        let options = [&["-q", "--name", "web", "--allow-exec", "echo from exec"], allowed].concat();
        let runtime = tempfile::tempdir().unwrap();
        let mut child = run(&runtime, &options, "busybox", &["sh", "-c", &script])?
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Self { runtime, child })
    }

    fn parma(&self, arguments: &[&str]) -> Output {
        parma(&self.runtime).args(arguments).output().unwrap()
    }
}

#[test]
fn a_running_container_is_listed_entered_and_stopped_from_elsewhere() {
    let Some(mut running) = Running::start() else { return };
    let listed: serde_json::Value = serde_json::from_slice(&running.parma(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(listed[0]["name"], "web");
    let container = &listed[0]["containers"][0];
    assert_eq!(container["processes"][0]["init"], true);
    assert!(container["processes"][0]["exit_code"].is_null());
    assert_eq!(stdout(&running.parma(&["logs", "web"])), "ready\n");

    let allowed = running.parma(&["exec", "web", "--", "echo", "from", "exec"]);
    assert_eq!((stdout(&allowed).as_str(), allowed.status.code()), ("from exec\n", Some(0)));
    let denied = running.parma(&["exec", "web", "--", "id"]);
    assert_eq!(denied.status.code(), Some(1));
    assert!(stderr(&denied).contains("does not allow exec_in_container"), "{}", stderr(&denied));

    let denied = running.parma(&["kill", "web", "-s", "HUP"]);
    assert_eq!(denied.status.code(), Some(1));
    assert!(stderr(&denied).contains("does not allow signal_container_process"), "{}", stderr(&denied));
    let stopped = running.parma(&["stop", "web"]);
    assert!(stopped.status.success(), "{}", stderr(&stopped));
    assert_eq!(running.child.wait().unwrap().code(), Some(5));
    assert_eq!(stdout(&running.parma(&["ps", "--json"])), "[]\n");
}

#[test]
fn what_does_not_stop_in_the_time_it_is_given_is_killed() {
    let Some(mut running) = Running::that("trap '' TERM", &[]) else { return };
    let stopped = running.parma(&["stop", "--time", "0", "web"]);
    assert!(stopped.status.success(), "{}", stderr(&stopped));
    assert_eq!(running.child.wait().unwrap().code(), Some(128 + 9));
}

#[test]
fn a_name_is_taken_once() {
    let Some(mut running) = Running::start() else { return };
    let second =
        run(&running.runtime, &["-q", "--name", "web"], "busybox", &["true"]).unwrap().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("web runs already"), "{}", stderr(&second));
    assert!(running.parma(&["kill", "web", "-s", "TERM"]).status.success());
    assert_eq!(running.child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_terminated_run_asks_its_container_to_stop() {
    let Some(mut running) = Running::start() else { return };
    kill_process(Pid::from_child(&running.child), Signal::TERM).unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_policy_for_another_command_is_refused_by_the_guest() {
    let Some((_, fixtures)) = fixtures() else { return };
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("p.rego");
    let image = format!("oci:{}", fixtures.join("busybox").display());
    let policy = policy.to_str().unwrap();
    let generated =
        parma(&dir).args(["policy", "generate", &image, "-o", policy, "--", "echo", "yes"]).output().unwrap();
    assert!(generated.status.success(), "{}", stderr(&generated));
    let output = output(&["--policy", policy], "busybox", &["echo", "no"]).unwrap();
    assert_eq!((stdout(&output).as_str(), output.status.code()), ("", Some(1)));
    let error = stderr(&output);
    assert!(
        error.contains("does not allow create_container") && error.contains("invalid command"),
        "{error}"
    );
}

/// The whole life of an encrypted volume: made by its owner, opened in a guest that showed who it is, whole when the run is
/// over, and found again by the next one.
#[test]
fn an_encrypted_volume_keeps_what_containers_wrote_and_a_read_only_one_is_beside_it() {
    if fixtures().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let made = |arguments: &[&str]| {
        let output = parma(&dir).arg("volume").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).trim_end().to_owned()
    };
    for (key, byte) in [("data.key", 7), ("other.key", 8)] {
        fs::write(path(key), [byte; 32]).unwrap();
    }
    let id = made(&["create", &path("data.img"), "--size", "20M", "--key", &path("data.key")]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(6);
    tar.append_data(&mut header, "weights", &b"frozen"[..]).unwrap();
    fs::write(path("model.tar"), tar.into_inner().unwrap()).unwrap();
    made(&["create", &path("model.img"), "--from", &path("model.tar")]);

    let volumes = [format!("{}:/data:{id}", path("data.img")), format!("{}:/model", path("model.img"))];
    let psp = path("psp");
    let emulated = ["--emulated-psp", &psp];
    let run_with = |emulated: &[&str], key: &str, script: &str| {
        let key = key.replace("KEY", &path("data.key"));
        let options = ["-q", "--volume", &volumes[0], "--volume", &volumes[1], "--volume-key", &key];
        let options = [&options[..], emulated].concat();
        output(&options, "busybox", &["sh", "-c", script]).unwrap()
    };
    let run = |key: &str, script: &str| run_with(&emulated, key, script);
    // No emulated root is accepted unless that is asked for.
    let unasked = run_with(&[], "KEY", "true");
    assert_eq!((stdout(&unasked), unasked.status.code()), (String::new(), Some(1)));
    assert!(
        stderr(&unasked).contains("name the directory of its root with --emulated-psp"),
        "{}",
        stderr(&unasked)
    );
    let script =
        "cat /model/weights; ! touch /model/x 2>/dev/null; mkdir /data/d && echo kept > /data/d/file; exit 3";
    let first = run("KEY", script);
    let seen = (stdout(&first), first.status.code());
    assert_eq!(seen, ("frozen".to_owned(), Some(3)), "{}", stderr(&first));
    let said = "EMULATED: keys are released on the word of an emulated PSP because --emulated-psp says so";
    assert!(stderr(&first).contains(said), "{}", stderr(&first));
    let report = made(&["check", &path("data.img"), "--key", &path("data.key"), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["generation"], &report["damaged"]), (&1.into(), &0.into()), "{report}");
    let second = run("KEY@1", "cat /data/d/file");
    assert_eq!((stdout(&second).as_str(), second.status.code()), ("kept\n", Some(0)), "{}", stderr(&second));

    // The owner knows of a later state than the one that the host has.
    let rolled_back = run("KEY@7", "true");
    let error = stderr(&rolled_back);
    assert!(rolled_back.status.code() == Some(1) && error.contains("an older state"), "{error}");
    // What is known to fail is not begun.
    for (key, why) in [(&*path("other.key"), "opens none of the volumes"), ("KEY@x", "a number")] {
        let refused = run(key, "true");
        assert!(!refused.status.success() && stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    let unopened = output(&["-q", "--volume", &volumes[0]], "busybox", &["true"]).unwrap();
    assert!(stderr(&unopened).contains(&format!("the id is {id}")), "{}", stderr(&unopened));
}

/// A copy of the busybox image that one change has damaged.
fn damaged(change: impl FnOnce(&Path)) -> Option<(TempDir, String)> {
    let (_, fixtures) = fixtures()?;
    let dir = tempfile::tempdir().unwrap();
    let copied =
        Command::new("cp").arg("-rL").arg(fixtures.join("busybox")).arg(dir.path()).status().unwrap();
    assert!(copied.success());
    let layout = dir.path().join("busybox");
    change(&layout);
    let reference = format!("oci:{}", layout.display());
    Some((dir, reference))
}

/// The largest blob, which is a layer.
fn layer(layout: &Path) -> std::path::PathBuf {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

#[test]
fn a_missing_blob_and_a_changed_one_are_named_and_nothing_is_written() {
    let changes: [fn(&Path); 2] = [
        |layout| fs::remove_file(layer(layout)).unwrap(),
        |layout| {
            let mut bytes = fs::read(layer(layout)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(layer(layout), bytes).unwrap();
        },
    ];
    for change in changes {
        let mut name = None;
        let Some((dir, reference)) = damaged(|layout| {
            name = layer(layout).file_name().map(|name| name.to_string_lossy().into_owned());
            change(layout);
        }) else {
            return;
        };
        let out = dir.path().join("p.rego");
        // A cache of its own: a layer that was converted before would not be read again.
        let output = parma(&dir)
            .env("PARMA_CACHE", dir.path().join("cache"))
            .args(["policy", "generate", &reference, "-o", out.to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output);
        assert!(error.contains(&name.unwrap()), "{error}");
        assert!(!out.exists());
    }
}
