//! The owner of a guest, who trusts no host: keys from a key service, sealed processes, secrets, and the log, all through the
//! program. Needs `PARMA_IMAGE` and `PARMA_FIXTURES`.

mod common;

use common::{fixtures, parma, stderr, stdout};
use parma_kms::verify::hex;
use parma_vmm::Image;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const KEY: [u8; 32] = [7; 32];

/// A directory of the owner's and the host's, an emulated PSP that is known beforehand, and what is expected of its guests.
struct Stage {
    dir: tempfile::TempDir,
    image: OsString,
    fixtures: PathBuf,
    measurement: String,
    root: String,
}

/// A child that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// The next line that it writes.
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let out = self.0.stdout.as_mut().unwrap();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }
}

fn stage() -> Option<Stage> {
    let (image, fixtures) = fixtures()?;
    let measurement = hex(&Image::open(Path::new(&image)).unwrap().measurement(1).unwrap().0);
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage { dir, image, fixtures, measurement, root: String::new() };
    stage.root = stage.done(&["attest", "emulate", "psp"]).trim().to_owned();
    Some(stage)
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn parma(&self, arguments: &[&str]) -> Command {
        let mut command = parma(&self.dir);
        command.current_dir(self.dir.path()).env("PARMA_IMAGE", &self.image).args(arguments);
        command
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.parma(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}{}", stderr(&output), stdout(&output));
        stdout(&output)
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.parma(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output) + &stderr(&output)
    }

    fn oci(&self, name: &str) -> String {
        format!("oci:{}", self.fixtures.join(name).display())
    }

    /// Writes the strict policy, compiled, to `NAME.bin`; gives HOST_DATA.
    fn policy(&self, name: &str, options: &[&str], fixture: &str, command: &[&str]) -> String {
        let (source, compiled, image) = (format!("{name}.rego"), format!("{name}.bin"), self.oci(fixture));
        let generate = [&["policy", "generate", "-o", &source], options, &[&image, "--"], command].concat();
        self.done(&generate);
        self.done(&["policy", "compile", &source, "-o", &compiled]).trim().to_owned()
    }

    /// Starts a run under the policy `NAME.bin`, and waits for the first line of its container.
    fn start(&self, name: &str, options: &[&str], fixture: &str, command: &[&str]) -> Running {
        let (policy, image) = (format!("{name}.bin"), self.oci(fixture));
        let run = ["run", "-q", "--name", name, "--emulated-psp", "psp", "--policy", &policy];
        let arguments = [&run[..], options, &[&image, "--"], command].concat();
        Running(self.parma(&arguments).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// `parma connect` by the owner, who expects the guest of this policy.
    fn connect<'a>(&'a self, name: &'a str, policy: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
        let head = ["connect", name, "--policy", policy, "--measurement", &self.measurement];
        [&head[..], &["--emulated-root", &self.root], rest].concat()
    }

    /// A key service with this rule's change, and its address.
    fn serve(&self, rules: &Value) -> (Running, String) {
        fs::write(self.path("release.json"), rules.to_string()).unwrap();
        let arguments =
            ["kms", "serve", "--plain-http", "--listen", "127.0.0.1:0", "--policy", "release.json"];
        let arguments = [&arguments[..], &["--store", "kms.db", "--emulated-root", &self.root]].concat();
        let mut command = self.parma(&arguments);
        let mut service = Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let url = service.line();
        assert!(url.starts_with("http://127.0.0.1:"), "{url}");
        (service, url)
    }

    fn volume(&self) -> String {
        fs::write(self.path("key"), KEY).unwrap();
        self.done(&["volume", "create", "data.img", "--size", "32M", "--key", "key"]).trim().to_owned()
    }

    /// How often guests have mounted the volume.
    fn generation(&self) -> u64 {
        let report = self.done(&["volume", "check", "data.img", "--key", "key", "--json"]);
        serde_json::from_str::<Value>(&report).unwrap()["generation"].as_u64().unwrap()
    }
}

fn code(output: &Output) -> (String, Option<i32>) {
    (stdout(output), output.status.code())
}

/// K01, K02, K05, K10: the whole way through the program, and every way that ends before the volume is open.
#[test]
fn k05_a_key_service_releases_a_volumes_key_to_the_guest_of_its_rule_and_the_volume_stays_closed_to_others() {
    let Some(stage) = stage() else { return };
    let id = stage.volume();
    let volume = format!("data.img:/data:{id}");
    let command = ["sh", "-c", "cat /data/kept; echo written >/data/kept"];
    let host_data = stage.policy("right", &["--volume", &volume], "busybox", &command);
    stage.policy("wrong", &["--volume", &volume, "--env", "A=b"], "busybox", &command);
    stage.done(&["kms", "import", "--store", "kms.db", "--name", "data", "--key", "key"]);
    stage.done(&["kms", "import", "--store", "kms.db", "--name", &id, "--key", "key"]);
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - {{name: reader, image: 'oci:{}', command: [cat, /data/kept], volumeMounts: [{{name: data, mountPath: /data}}]}}\n  \
         volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]\n",
        stage.fixtures.join("busybox").display()
    );
    fs::write(stage.path("pod.yaml"), pod).unwrap();
    let claim = format!("data=data.img:{id}");
    let of_pod = ["-f", "pod.yaml", "--claim", &claim];
    stage.done(&[&["policy", "generate", "-o", "pod.rego"], &of_pod[..]].concat());
    let pods = stage.done(&["policy", "compile", "pod.rego", "-o", "pod.bin"]);
    // Nobody has asked for a process in the guest before it has the key, nor for anything that its policy does not allow.
    let audit = json!({"never_asked": ["create_container", "exec_in_container"], "most_denied": 0});
    let host_data = [&host_data, pods.trim()];
    let rule = json!({
        "measurements": [stage.measurement], "host_data": host_data, "audit": audit,
        "minimum_tcb": "bootloader=10,snp=24,microcode=84",
    });
    let rules = |rule: &Value| json!({"issuer": "https://kms.example", "keys": {"data": rule, &id: rule}});
    let image = stage.oci("busybox");
    let run = |url: &str, more: &[&str]| {
        let run = ["run", "--volume", &volume, "--kms", url, "-q"];
        let arguments = [&run[..], more, &[&image, "--"], &command].concat();
        stage.parma(&arguments).output().unwrap()
    };
    let (right, wrong) = (["--policy", "right.bin"], ["--policy", "wrong.bin", "--env", "A=b"]);
    let (psp, by_name) = (["--emulated-psp", "psp"], ["--kms-key", "data"]);
    let (service, url) = stage.serve(&rules(&rule));
    let first = run(&url, &[&right[..], &psp, &by_name].concat());
    assert_eq!(code(&first), (String::new(), Some(0)), "{}", stderr(&first));
    assert!(
        stderr(&first).contains("EMULATED: reports are made under the root in psp"),
        "{}",
        stderr(&first)
    );
    // Under the volume's id, as it is called where nobody says otherwise.
    let second = run(&url, &[&right[..], &psp].concat());
    assert_eq!(code(&second), ("written\n".into(), Some(0)), "{}", stderr(&second));
    let pod = ["run", "-q", "--policy", "pod.bin", "--kms", &url, "--emulated-psp", "psp"];
    let third = stage.parma(&[&pod[..], &of_pod].concat()).output().unwrap();
    assert_eq!(code(&third), ("reader | written\n".into(), Some(0)), "{}", stderr(&third));
    assert_eq!(stage.generation(), 3);

    let refused = |url: &str, more: &[&str], why: &str| {
        let output = run(url, more);
        assert_eq!(code(&output), (String::new(), Some(1)), "{}", stderr(&output));
        assert!(stderr(&output).contains(why), "{why}: {}", stderr(&output));
        assert_eq!(stage.generation(), 3, "it was never opened: {why}");
    };
    refused(&url, &[&wrong[..], &psp, &by_name].concat(), "refuses: host-data: ");
    // B03: the same guest on a processor whose host may debug it, and on one with old firmware.
    let on = |platform| [&right[..], &psp, &by_name, &["--emulated-platform", platform]].concat();
    refused(&url, &on("debug"), "refuses: debug: ");
    refused(&url, &on("bootloader=10,snp=23,microcode=84"), "refuses: minimum-tcb: ");
    // A PSP that the service was not told of; a name that it does not know; another image of the guest.
    refused(&url, &[&right[..], &by_name].concat(), "refuses: root: ");
    refused(&url, &[&right[..], &psp, &["--kms-key", "other"]].concat(), "refuses: ");
    refused(&url, &[&right[..], &psp, &["--cpus", "2"]].concat(), "refuses: measurement: ");
    drop(service);
    let trail = stage.done(&["kms", "audit", "--store", "kms.db"]);
    let released = |line: &&str| serde_json::from_str::<Value>(line).unwrap()["released"] == json!(true);
    assert_eq!(trail.lines().filter(released).count(), 3, "{trail}");
    // K09, K10: the rule that has changed since is the one that counts.
    for (name, value, why) in [
        ("minimum_tcb", json!("snp=99"), "refuses: minimum-tcb: "),
        ("chips", json!(["00".repeat(64)]), "refuses: allowed-chip: "),
        ("audit", json!({"never_asked": ["mount_device"]}), "refuses: audit-state: "),
        // The guest has the key, and not the state of the volume that its owner wants.
        ("least_generation", json!(7), "an older state"),
    ] {
        let mut rule = rule.clone();
        rule[name] = value;
        let (_service, url) = stage.serve(&rules(&rule));
        refused(&url, &[&right[..], &psp].concat(), why);
    }
    // No service, no key, no container.
    refused("http://127.0.0.1:1", &[&right[..], &psp].concat(), "cannot be asked");
    let none = stage.refused(&["run", "--volume", &volume, &image]);
    assert!(none.contains("--kms") && none.contains(&id), "{none}");
}

/// A container that waits for a secret and shows it.
const WAITER: &str = "echo ready; while ! cat /run/parma/secrets/token 2>/dev/null; do sleep 0.1; done; \
    echo; while :; do sleep 1000; done";

#[test]
fn k01_k02_an_owner_connects_to_the_guest_that_was_expected_and_the_host_cannot_listen() {
    let Some(stage) = stage() else { return };
    let nine = r#"["sh","-c","echo out; exit 9"]"#;
    let options = ["--allow-exec", "cat", "--allow-exec", nine, "--allow-attestation"];
    let command = ["sh", "-c", WAITER];
    stage.policy("web", &options, "busybox", &command);
    stage.policy("other", &[], "busybox", &command);
    let mut run = stage.start("web", &["--allow-attestation"], "busybox", &command);
    assert_eq!(run.line(), "ready");
    let orders = ["--orders", "orders.jsonl"];
    let connect = |rest: &[&'static str]| stage.connect("web", "web.bin", &[&orders[..], rest].concat());

    // Sealed in both directions; the exit code is the guest's.
    let mut child = stage.parma(&connect(&["exec", "-i", "--", "cat"]));
    let mut child =
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a canary that the host must not hear").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        code(&output),
        ("a canary that the host must not hear".into(), Some(0)),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("EMULATED: an emulated root was accepted because --emulated-root says so")
    );
    let output = stage.parma(&connect(&["exec", "--", "sh", "-c", "echo out; exit 9"])).output().unwrap();
    assert_eq!(code(&output), ("out\n".into(), Some(9)), "{}", stderr(&output));
    // Nothing is allowed to an owner that the policy does not allow.
    let denied = stage.refused(&connect(&["exec", "--", "id"]));
    assert!(denied.contains("does not allow exec_in_container"), "{denied}");

    fs::write(stage.path("token"), "what only its owner knew").unwrap();
    stage.done(&connect(&["secret", "token", "token"]));
    assert_eq!(run.line(), "what only its owner knew");
    let again = stage.refused(&connect(&["secret", "token", "token"]));
    assert!(again.contains("did not take the secret"), "{again}");

    // Another guest, or one that nobody vouches for, is told nothing.
    let other = stage.connect("web", "other.bin", &["exec", "--", "cat"]);
    assert!(stage.refused(&other).contains("not good: host-data: "));
    let measurement = "00".repeat(48);
    let policy = ["connect", "web", "--policy", "web.bin", "--measurement"];
    let other = [&policy[..], &[&measurement, "--emulated-root", &stage.root, "exec", "--", "cat"]].concat();
    assert!(stage.refused(&other).contains("not good: measurement: "));
    let other = [&policy[..], &[&stage.measurement, "exec", "--", "cat"]].concat();
    assert!(stage.refused(&other).contains("not good: root: "));
    assert!(
        stage
            .refused(&stage.connect("nobody", "web.bin", &["audit"]))
            .contains("nothing runs under the name")
    );

    // The same through a socket that somebody has carried elsewhere.
    let socket = stage.path("parma/web/control");
    std::os::unix::fs::symlink(&socket, stage.path("carried")).unwrap();
    let elsewhere = stage.connect("./carried", "web.bin", &["--orders", "orders.jsonl", "exec", "--", "cat"]);
    assert_eq!(stage.done(&elsewhere), "");

    judged_history(&stage, &connect);
}

/// What was done so far follows from the policy; a log that says something else does not hold.
fn judged_history<'a>(stage: &'a Stage, connect: &dyn Fn(&[&'static str]) -> Vec<&'a str>) {
    let list = stage.done(&connect(&["audit", "-o", "log.json"]));
    for item in ["audit-chain", "audit-requests", "audit-decisions"] {
        let passed = list.lines().any(|line| line.starts_with("pass ") && line.contains(item));
        assert!(passed, "{item}: {list}");
    }
    assert!(list.contains("EMULATED: ") && list.ends_with("the report is good\n"), "{list}");
    // The same later and elsewhere, from what the host handed out.
    stage.done(&["audit", "web", "-o", "later.json", "--orders", "orders.jsonl"]);
    let verify = |log: &'static str, policy: &'static str| {
        let verify = ["attest", "verify", "--audit", log, "--policy", policy, "--measurement"];
        [&verify[..], &[&stage.measurement, "--emulated-root", &stage.root, "--json"]].concat()
    };
    for log in ["log.json", "later.json"] {
        let list: Value = serde_json::from_str(&stage.done(&verify(log, "web.bin"))).unwrap();
        assert!(list["passed"] == json!(true) && list["emulated"] == json!(true), "{list}");
    }
    let fails = |log: &'static str, policy: &'static str, on: &str| {
        let list: Value = serde_json::from_str(&stage.refused(&verify(log, policy))).unwrap();
        let items = list["items"].as_array().unwrap().clone();
        let first = items.iter().find(|item| item["outcome"] == json!("fail"));
        assert_eq!(first.unwrap()["check"], json!(on), "{list}");
    };
    fails("later.json", "other.bin", "host-data");
    let log: Value = serde_json::from_slice(&fs::read(stage.path("later.json")).unwrap()).unwrap();
    let mut changed = log.clone();
    changed["entries"].as_array_mut().unwrap().remove(2);
    fs::write(stage.path("less.json"), changed.to_string()).unwrap();
    fails("less.json", "web.bin", "report-data");
    let mut changed = log.clone();
    changed["entries"][2]["request"] = log["entries"][1]["request"].clone();
    fs::write(stage.path("other.json"), changed.to_string()).unwrap();
    fails("other.json", "web.bin", "audit-requests");
    // What was asked under seal is not the host's to tell.
    stage.done(&["audit", "web", "-o", "sealed.json"]);
    fails("sealed.json", "web.bin", "audit-decisions");
}

/// The owner elsewhere has the key, and the host waits for it.
#[test]
fn k01_an_owner_releases_a_volumes_key_through_the_channel_and_the_container_starts_after_it() {
    let Some(stage) = stage() else { return };
    let id = stage.volume();
    let volume = format!("data.img:/data:{id}");
    let command = ["sh", "-c", "echo kept >/data/file; cat /data/file"];
    stage.policy("db", &["--volume", &volume], "busybox", &command);
    let arguments = ["run", "--name", "db", "--emulated-psp", "psp", "--policy", "db.bin", "--await-keys"];
    let image = stage.oci("busybox");
    let arguments = [&arguments[..], &["--volume", &volume, &image, "--"], &command].concat();
    let mut run = stage.parma(&arguments);
    let mut run = Running(run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let errors = BufReader::new(run.0.stderr.take().unwrap());
    let waits = errors.lines().map(Result::unwrap).find(|line| line.contains("waiting for keys"));
    assert!(waits.is_some_and(|line| line.contains("parma connect db")));
    // Another key opens nothing, and the host goes on waiting.
    fs::write(stage.path("another"), [8; 32]).unwrap();
    stage.done(&stage.connect("db", "db.bin", &["key", "another"]));
    stage.done(&stage.connect("db", "db.bin", &["key", "key"]));
    assert_eq!(run.line(), "kept");
    assert_eq!(run.0.wait().unwrap().code(), Some(0));
    assert_eq!(stage.generation(), 1);
}
