//! Kubernetes Pods in a real guest, through the program. Needs `PARMA_IMAGE` and `PARMA_FIXTURES`.

mod common;

use common::{fixtures, parma, stderr, stdout};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use tempfile::TempDir;

/// A Pod in a file, and a directory for its run.
struct Stage {
    runtime: TempDir,
    image: std::ffi::OsString,
    file: PathBuf,
}

impl Stage {
    /// `spec` names the image of each container BUSYBOX.
    fn new(spec: &str) -> Option<Self> {
        let (image, fixtures) = fixtures()?;
        let runtime = tempfile::tempdir().unwrap();
        let file = runtime.path().join("pod.yaml");
        let busybox = format!("oci:{}:latest", fixtures.join("busybox").display());
        let spec = spec.replace("BUSYBOX", &busybox);
        fs::write(&file, format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: shop}}\nspec:\n{spec}"))
            .unwrap();
        Some(Self { runtime, image, file })
    }

    fn run(&self, options: &[&str]) -> Command {
        let mut command = parma(&self.runtime);
        command.args(["run", "-q", "--image"]).arg(&self.image).args(options).arg("-f").arg(&self.file);
        command
    }

    fn parma(&self, arguments: &[&str]) -> Output {
        parma(&self.runtime).args(arguments).output().unwrap()
    }

    /// The container of this name, as `parma ps` shows it.
    fn listed(&self, name: &str) -> Value {
        let runs: Value = serde_json::from_slice(&self.parma(&["ps", "--json"]).stdout).unwrap();
        assert_eq!(runs[0]["name"], "shop");
        let containers = runs[0]["containers"].as_array().unwrap();
        containers.iter().find(|container| container["name"] == name).unwrap().clone()
    }
}

/// A run, and what it has written so far.
struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// Reads up to this line; gives those before it.
    fn until(&mut self, wanted: &str) -> String {
        let mut read = String::new();
        loop {
            let before = read.len();
            assert!(self.lines.read_line(&mut read).unwrap() > 0, "no {wanted:?} in\n{read}");
            if read[before..].trim_end() == wanted {
                return read;
            }
        }
    }

    fn end(mut self) -> (String, Option<i32>) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (rest, self.child.wait().unwrap().code())
    }
}

#[test]
fn containers_of_a_pod_start_in_order_and_share_network_host_name_and_volumes_but_no_processes() {
    let spec = r#"
  restartPolicy: Never
  volumes: [{name: work, emptyDir: {}}]
  initContainers:
  - name: first
    image: BUSYBOX
    command: [sh, -c, "echo one > /shared/steps; hostname > /shared/host; echo done"]
    volumeMounts: [{name: work, mountPath: /shared}]
  - name: second
    image: BUSYBOX
    command: [sh, -c, "echo two >> /shared/steps"]
    volumeMounts: [{name: work, mountPath: /shared}]
  containers:
  - name: serve
    image: BUSYBOX
    command: [sh, -c, "cat /shared/steps; echo index > /shared/index.html; httpd -p 127.0.0.1:8080 -h /shared; until [ -e /shared/seen ]; do usleep 50000; done"]
    volumeMounts: [{name: work, mountPath: /shared}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
  - name: client
    image: BUSYBOX
    command: [sh, -c, "until wget -q -O - http://127.0.0.1:8080/; do usleep 50000; done 2>/dev/null; [ $(hostname) = $(cat /data/host) ] && echo same host; ps | grep -c '[h]ttpd'; echo x 2>/dev/null > /data/x || echo cannot write; wget -q -O /dev/null http://127.0.0.1:8080/none; kill -9 1; exit 4"]
    volumeMounts: [{name: work, mountPath: /data, readOnly: true}]
  - name: witness
    image: BUSYBOX
    command: [sh, -c, "sleep 3; touch /shared/seen; grep . /sys/fs/cgroup/memory.max"]
    volumeMounts: [{name: work, mountPath: /shared}]
"#;
    let Some(stage) = Stage::new(spec) else { return };
    let output = stage.run(&[]).output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    for line in [
        "first | done",
        "serve | one",
        "serve | two",
        "client | index",
        "client | same host",
        "client | 0",
        "client | cannot write",
        "witness | max",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}\n{errors}");
    }
    assert_eq!(output.status.code(), Some(4), "of the first that failed\n{text}\n{errors}");
}

#[test]
fn containers_of_a_pod_that_shares_its_processes_see_and_end_each_other_but_not_what_holds_them() {
    let spec = r#"
  restartPolicy: Never
  shareProcessNamespace: true
  containers:
  - name: worker
    image: BUSYBOX
    command: [sh, -c, "trap 'echo asked to end; exit 7' TERM; /usr/bin/sleep 1000 & wait"]
  - name: boss
    image: BUSYBOX
    command: [sh, -c, "until p=$(pidof sleep); do usleep 50000; done; kill $(sed -n 's/^PPid:.//p' /proc/$p/status); kill -9 1; [ -d /proc/1 ] && [ $$ != 1 ] && echo still held"]
"#;
    let Some(stage) = Stage::new(spec) else { return };
    let output = stage.run(&[]).output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    for line in ["worker | asked to end", "boss | still held"] {
        assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}\n{errors}");
    }
    assert_eq!(output.status.code(), Some(7), "{text}\n{errors}");
}

#[test]
fn a_pod_is_listed_read_entered_and_stopped_by_the_names_of_its_containers() {
    let spec = r#"
  terminationGracePeriodSeconds: 5
  containers:
  - name: web
    image: BUSYBOX
    command: [sh, -c, "trap 'echo bye; exit 0' TERM; echo up; touch /up; while :; do sleep 1000 & wait $!; done"]
    readinessProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}
    lifecycle: {preStop: {exec: {command: [touch, /stopping]}}}
  - name: deaf
    image: BUSYBOX
    command: [sh, -c, "trap '' TERM; echo deaf; exec sleep 1000"]
"#;
    let Some(stage) = Stage::new(spec) else { return };
    let mut running = Running::start(stage.run(&["--allow-exec", "cat /proc/1/cmdline"]));
    running.until("deaf | deaf");
    // The probe is asked each second; nothing else says when it was.
    while stage.listed("web")["ready"] != true {}
    let web = stage.listed("web");
    assert_eq!(
        (&web["restarts"], &web["exit_code"], &web["initial"]),
        (&0.into(), &Value::Null, &false.into())
    );
    assert_eq!(stdout(&stage.parma(&["logs", "shop", "-c", "web"])), "up\n");
    let ambiguous = stage.parma(&["logs", "shop"]);
    assert!(stderr(&ambiguous).contains("Name one of web, deaf with -c"), "{}", stderr(&ambiguous));
    let entered = stage.parma(&["exec", "shop", "-c", "deaf", "--", "cat", "/proc/1/cmdline"]);
    assert!(stdout(&entered).starts_with("sleep\0"), "{}{}", stdout(&entered), stderr(&entered));
    let denied = stage.parma(&["exec", "shop", "-c", "deaf", "--", "touch", "/stopping"]);
    assert!(stderr(&denied).contains("does not allow exec_in_container"), "{}", stderr(&denied));
    assert!(stage.parma(&["stop", "shop"]).status.success());
    let (rest, code) = running.end();
    assert!(rest.contains("web | bye"), "{rest}");
    assert_eq!(code, Some(137), "the deaf one was killed when its time was over");
}

#[test]
fn what_ends_is_started_again_as_the_pod_says_and_what_uses_too_much_memory_is_told() {
    let spec = r#"
  restartPolicy: OnFailure
  volumes: [{name: count, emptyDir: {}}]
  containers:
  - name: flaky
    image: BUSYBOX
    command: [sh, -c, "echo x >> /count/x; [ $(wc -l < /count/x) -ge 3 ] && echo third time && exit 0; exit 1"]
    volumeMounts: [{name: count, mountPath: /count}]
  - name: hungry
    image: BUSYBOX
    command: [sh, -c, "echo x >> /count/y; [ $(wc -l < /count/y) -ge 2 ] && exit 0; usleep 500000; x=0123456789; while :; do x=$x$x; done"]
    volumeMounts: [{name: count, mountPath: /count}]
    resources: {limits: {memory: 32Mi}}
  - name: sick
    image: BUSYBOX
    command: [sh, -c, "[ -e /count/again ] && exit 0; touch /count/again; trap 'exit 3' TERM; while :; do sleep 1000 & wait $!; done"]
    livenessProbe: {exec: {command: [test, -e, /healthy]}, periodSeconds: 1, failureThreshold: 1}
    volumeMounts: [{name: count, mountPath: /count}]
"#;
    let Some(stage) = Stage::new(spec) else { return };
    let output = stage.run(&["--json"]).output().unwrap();
    let (text, errors) = (stdout(&output), stderr(&output));
    assert!(text.contains("flaky | third time\n"), "{text}\n{errors}");
    assert_eq!(output.status.code(), Some(0), "{text}\n{errors}");
    let creations = errors.lines().filter(|line| line.contains("create_container")).count();
    assert_eq!(creations, 3 + 2 + 2, "{errors}");
}

#[test]
fn an_initial_container_that_fails_keeps_the_others_from_starting() {
    let spec = r#"
  restartPolicy: Never
  initContainers: [{name: check, image: BUSYBOX, command: [sh, -c, "echo no; exit 6"]}]
  containers: [{name: serve, image: BUSYBOX, command: [echo, served]}]
"#;
    let Some(stage) = Stage::new(spec) else { return };
    let output = stage.run(&[]).output().unwrap();
    assert_eq!(
        (stdout(&output).as_str(), output.status.code()),
        ("check | no\n", Some(6)),
        "{}",
        stderr(&output)
    );
}

/// An encrypted volume keeps what a Pod's containers wrote for the next guest, which may demand that it is the newest; a
/// read-only one is what its owner made. Each container has them as the Pod says, and as nothing else.
#[test]
fn what_a_pod_claims_outlives_it_and_is_mounted_as_it_says() {
    let spec = r#"
  restartPolicy: Never
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: shop-data}}
  - {name: weights, persistentVolumeClaim: {claimName: model}}
  - {name: work, emptyDir: {}}
  initContainers:
  - name: write
    image: BUSYBOX
    command: [sh, -c, "echo line >> /data/lines; echo kept > /data/own/for-this-pod"]
    volumeMounts: [{name: work, mountPath: /data/own}, {name: data, mountPath: /data}]
  containers:
  - name: read
    image: BUSYBOX
    command: [sh, -c, "wc -l < /srv/data/lines; ls /srv/data/own; touch /srv/data/x || echo data cannot be written"]
    volumeMounts: [{name: data, mountPath: /srv/data, readOnly: true}]
  - name: think
    image: BUSYBOX
    command: [sh, -c, "cat /model/weights; touch /model/x || echo model cannot be written; ls -d /data /srv/data"]
    volumeMounts: [{name: weights, mountPath: /model}]
"#;
    let Some(stage) = Stage::new(spec) else { return };
    let file = |name: &str| stage.runtime.path().join(name).into_os_string().into_string().unwrap();
    let (data, key, model, tar) = (file("data.img"), file("key"), file("model.img"), file("model.tar"));
    fs::write(&key, [7; 32]).unwrap();
    let mut builder = tar::Builder::new(fs::File::create(&tar).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(6);
    builder.append_data(&mut header, "weights", &b"heavy\n"[..]).unwrap();
    builder.finish().unwrap();
    let made = |arguments: &[&str]| {
        let output = stage.parma(&[&["volume", "create"], arguments].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output).trim_end().to_owned()
    };
    let id = made(&[&data, "--size", "20M", "--key", &key]);
    made(&[&model, "--from", &tar]);
    let (data, model) = (format!("shop-data={data}:{id}"), format!("model={model}"));
    let psp = stage.runtime.path().join("psp");
    let claims =
        ["--claim", &data, "--claim", &model, "--emulated-psp", psp.to_str().unwrap(), "--volume-key"];
    for generation in [1, 2] {
        let key = format!("{key}@{}", generation - 1);
        let output = stage.run(&[&claims[..], &[&key]].concat()).output().unwrap();
        let (text, errors) = (stdout(&output), stderr(&output));
        let lines = format!("read | {generation}");
        for line in
            [&lines, "read | data cannot be written", "think | heavy", "think | model cannot be written"]
        {
            assert!(text.lines().any(|shown| shown == line), "{line} in\n{text}\n{errors}");
        }
        assert!(!text.contains("for-this-pod") && !text.contains("think | /"), "{text}\n{errors}");
    }
    let output = stage.run(&[&claims[..], &[&format!("{key}@3")]].concat()).output().unwrap();
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(1), ""),
        "an older state than is known"
    );
    assert!(stderr(&output).contains("older state"), "{}", stderr(&output));
    let output = stage.run(&claims[..6]).output().unwrap();
    assert!(stderr(&output).contains("--volume-key"), "{}", stderr(&output));
    let output = stage.run(&claims[..2]).output().unwrap();
    assert!(stderr(&output).contains("spec.volumes[1].persistentVolumeClaim"), "{}", stderr(&output));
}

#[test]
fn what_is_not_supported_of_a_pod_is_refused_by_name_before_anything_boots() {
    let Some(stage) = Stage::new("  hostPID: true\n  containers: [{name: a, image: BUSYBOX}]\n") else {
        return;
    };
    let output = stage.run(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("spec.hostPID"), "{}", stderr(&output));
}
