//! The real process of `parma kms serve`: whom it refuses, what it does with a disk that takes nothing, and what is left when it is
//! killed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parma_kms::verify::hex;
use parma_psp::layout::{LAUNCH_POLICY, POLICY_DEBUG, TCB};
use parma_psp::{HostData, Measurement, Platform, Psp, Root, Tcb};
use parma_release::jwe::{self, Jwe, Jwk};
use parma_release::rcar::{Attestation, Composite, RuntimeData, Snp};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

const POLICY: [u8; 32] = [0x1d; 32];
const MEASUREMENT: [u8; 48] = [0x3e; 48];
const KEY: [u8; 32] = [0x77; 32];
const NAME: &str = "default/key/data";
/// What the rule demands of the firmware.
const MINIMUM: &str = "bootloader=10,snp=24,microcode=84";

/// Files of a service, and the guest that its rule is about.
struct Stage {
    psp: Psp,
    dir: tempfile::TempDir,
}

fn parma() -> Command {
    Command::new(env!("CARGO_BIN_EXE_parma"))
}

fn stage() -> Stage {
    stage_on(&Root::new().unwrap(), &Platform::default())
}

/// With a guest on this platform.
fn stage_on(root: &Root, platform: &Platform) -> Stage {
    let psp = Psp::under(root, platform, HostData(POLICY), Measurement(MEASUREMENT)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let stage = Stage { psp, dir };
    let rule = json!({
        "measurements": [hex(&MEASUREMENT)], "host_data": [hex(&POLICY)], "minimum_tcb": MINIMUM,
    });
    let rules = json!({"issuer": "https://kms.example", "keys": {NAME: rule, "data": rule}});
    fs::write(stage.path("release.json"), rules.to_string()).unwrap();
    fs::write(stage.path("chain.pem"), stage.psp.chain().to_pem().unwrap()).unwrap();
    fs::write(stage.path("key"), KEY).unwrap();
    for name in [NAME, "data"] {
        let mut import = parma();
        import.args(["kms", "import", "--name", name, "--store"]).arg(stage.path("kms.db"));
        assert!(import.arg("--key").arg(stage.path("key")).status().unwrap().success());
    }
    stage
}

/// The running service.
struct Service {
    child: Child,
    address: String,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Stage {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `shell`: what a shell does before it becomes the service.
    fn serve(&self, shell: &str) -> Service {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{shell} exec \"$@\""), "sh", env!("CARGO_BIN_EXE_parma")]);
        command.args(["kms", "serve", "--plain-http", "--listen", "127.0.0.1:0", "--policy"]);
        command.arg(self.path("release.json")).arg("--store").arg(self.path("kms.db"));
        command.arg("--emulated-root").arg(self.path("chain.pem"));
        // A file here, as of a log, could take no byte either.
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Service { child, address: line.trim().strip_prefix("http://").expect(&line).to_owned() }
    }

    /// The trail, as it is printed while no service has the store open.
    fn trail(&self) -> Vec<Value> {
        let output = parma().args(["kms", "audit", "--store"]).arg(self.path("kms.db")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A session with good evidence: its cookie, and the key that resources are encrypted to. `None`: the service is gone.
    fn attested(&self, address: &str) -> Option<(String, p256::SecretKey)> {
        let (cookie, key, head, answer) = self.attest(address)?;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head} {answer}");
        Some((cookie, key))
    }

    /// A session that has shown its evidence, and what the service says to it.
    fn attest(&self, address: &str) -> Option<(String, p256::SecretKey, String, Value)> {
        let request = json!({"version": "0.4.0", "tee": "snp", "extra-params": {}});
        let (head, challenge) = send(address, "POST /kbs/v0/auth", "", &request.to_string())?;
        let cookie =
            head.lines().find_map(|line| line.strip_prefix("set-cookie: "))?.split(';').next()?.to_owned();
        let key = jwe::ephemeral().unwrap();
        let nonce = challenge["nonce"].as_str()?.to_owned();
        let runtime_data = RuntimeData { nonce, tee_pubkey: Jwk::recipient(&key.public_key()) };
        let mut report_data = [0; 64];
        report_data[..48].copy_from_slice(&Sha384::digest(runtime_data.canonical("").unwrap()));
        let snp = Snp::new(&self.psp.report(&report_data), &self.psp.chain().to_der().unwrap()).unwrap();
        let tee_evidence = Composite { primary_evidence: json!(snp), additional_evidence: String::new() };
        let body = json!(Attestation { init_data: None, runtime_data, tee_evidence }).to_string();
        let (head, answer) = send(address, "POST /kbs/v0/attest", &cookie, &body)?;
        Some((cookie, key, head, answer))
    }

    /// What comes of evidence as Microsoft's sidecar sends it: a token, or a refusal.
    fn token(&self, address: &str) -> (String, Value) {
        // A number of an RSA key's length: nobody unwraps here what is wrapped to it.
        let key = json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xd5; 256]), "e": "AQAB", "key_ops": ["encrypt"]});
        let runtime = json!({"keys": [key]}).to_string();
        let mut report_data = [0; 64];
        report_data[..32].copy_from_slice(&Sha256::digest(&runtime));
        let report = json!({
            "SnpReport": URL_SAFE_NO_PAD.encode(self.psp.report(&report_data)),
            "VcekCertChain": URL_SAFE_NO_PAD.encode(self.psp.chain().to_pem().unwrap()),
        });
        let body = json!({
            "report": URL_SAFE_NO_PAD.encode(report.to_string()),
            "runtimeData": {"data": URL_SAFE_NO_PAD.encode(runtime), "dataType": "JSON"},
        });
        send(address, "POST /attest/SevSnpVm?api-version=2020-10-01", "", &body.to_string()).unwrap()
    }
}

/// One request: the head of the answer, and its body. `None`: the service is gone, before or after it did it.
fn send(address: &str, request: &str, cookie: &str, body: &str) -> Option<(String, Value)> {
    let mut stream = TcpStream::connect(address).ok()?;
    let head = format!(
        "{request} HTTP/1.1\r\nhost: kms\r\nconnection: close\r\ncookie: {cookie}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    // An answer that was cut off is none.
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse::<usize>().ok()?;
    (body.len() == length).then(|| (head.to_owned(), serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// The key, if the service gives it.
fn resource(address: &str, cookie: &str, key: &p256::SecretKey) -> Option<Vec<u8>> {
    let (head, answer) = send(address, &format!("GET /kbs/v0/resource/{NAME}"), cookie, "")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    let message: Jwe = serde_json::from_value(answer).unwrap();
    Some(jwe::open(&message, key).unwrap().to_vec())
}

fn released(trail: &[Value]) -> usize {
    trail.iter().filter(|entry| entry["released"] == json!(true)).count()
}

/// The key for a token.
fn release(address: &str, token: &Value) -> (String, Value) {
    send(address, "POST /keys/data/release?api-version=7.4", "", &json!({"target": token}).to_string())
        .unwrap()
}

#[track_caller]
fn refused((head, answer): &(String, Value), status: u16, why: &str) {
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head} {answer}");
    let said = answer["detail"].as_str().or(answer["error"]["message"].as_str()).unwrap();
    assert!(said.starts_with(why), "{why}: {said}");
}

/// B03, K02: what is genuine and not good enough, or good and used, through the process, on both ways that sidecars go.
#[test]
fn k02_b03_old_firmware_debugging_and_tokens_and_evidence_that_were_used_get_no_key() {
    let root = Root::new().unwrap();
    let old = Platform { tcb: Tcb { snp: 23, ..TCB }, ..Platform::default() };
    let debug = Platform { policy: LAUNCH_POLICY | POLICY_DEBUG, ..Platform::default() };
    let good = stage_on(&root, &Platform::default());
    let service = good.serve("");
    let address = &service.address;
    // Old firmware is genuine: it gets as far as to the key's rule.
    let stage = stage_on(&root, &old);
    let (cookie, ..) = stage.attest(address).unwrap();
    let resource = format!("GET /kbs/v0/resource/{NAME}");
    refused(&send(address, &resource, &cookie, "").unwrap(), 401, "minimum-tcb: ");
    refused(&release(address, &stage.token(address).1["token"]), 403, "minimum-tcb: ");
    // A guest that can be debugged does not.
    let stage = stage_on(&root, &debug);
    let (.., head, answer) = stage.attest(address).unwrap();
    refused(&(head, answer), 401, "debug: ");
    refused(&stage.token(address), 403, "debug: ");
    // The twin; and the same token again, to this process and to the one after it.
    let (token, unused) = (good.token(address).1["token"].clone(), good.token(address).1["token"].clone());
    let (head, answer) = release(address, &token);
    assert!(head.starts_with("HTTP/1.1 200 ") && answer["value"].is_string(), "{head} {answer}");
    let gone = "the token is not one of this service, has expired, or was used";
    refused(&release(address, &token), 403, gone);
    let before = released(&{
        drop(service);
        good.trail()
    });
    assert_eq!(before, 1);
    let service = good.serve("");
    for token in [&token, &unused] {
        refused(&release(&service.address, token), 403, gone);
    }
    drop(service);
    assert_eq!(released(&good.trail()), 1);
}

#[test]
fn a_service_that_is_killed_while_it_releases_has_every_key_that_left_in_its_trail() {
    let stage = stage();
    let (mut keys, mut before) = (0, Vec::new());
    let mut signed_with = None;
    for round in 0..3 {
        let mut service = stage.serve("");
        let certs = send(&service.address, "GET /certs", "", "").unwrap().1;
        assert_eq!(signed_with.get_or_insert(certs.clone()), &certs, "the service's own key survives");
        let (cookie, key) = stage.attested(&service.address).unwrap();
        let (seen, receive) = mpsc::channel();
        let address = service.address.clone();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (seen, address, cookie, key) = (seen.clone(), &address, &cookie, &key);
                scope.spawn(move || {
                    while let Some(secret) = resource(address, cookie, key) {
                        assert_eq!(secret, KEY);
                        seen.send(()).unwrap();
                    }
                });
            }
            drop(seen);
            // SIGKILL, in the middle of what the other clients ask for.
            for _ in 0..=2 * round {
                receive.recv().unwrap();
                keys += 1;
            }
            service.child.kill().unwrap();
            service.child.wait().unwrap();
            keys += receive.iter().count();
        });
        let trail = stage.trail();
        assert!(released(&trail) >= keys, "{keys} keys left, {} are in the trail", released(&trail));
        assert_eq!(trail[..before.len()], before, "what was in the trail stays there");
        // K02: what was shown to the process that died is not believed by the next.
        let next = stage.serve("");
        assert_eq!(resource(&next.address, &cookie, &key), None);
        drop(next);
        before = stage.trail();
        assert_eq!(before.last().unwrap()["released"], json!(false));
    }
}

/// Between the judgement and the commit of the trail: the disk takes no byte any more, and the process dies of it, or hears of it.
#[test]
fn no_key_leaves_a_service_that_cannot_write_its_trail() {
    for (shell, dies) in [("", true), ("trap '' XFSZ;", false)] {
        let stage = stage();
        let mut service = stage.serve(shell);
        let (cookie, key) = stage.attested(&service.address).unwrap();
        assert_eq!(resource(&service.address, &cookie, &key).as_deref(), Some(&KEY[..]));
        let pid = Pid::from_child(&service.child);
        let limit = Rlimit { current: Some(0), maximum: Some(0) };
        prlimit(Some(pid), Resource::Fsize, limit).unwrap();
        assert_eq!(resource(&service.address, &cookie, &key), None);
        if dies {
            assert!(!service.child.wait().unwrap().success());
        } else {
            let (head, answer) =
                send(&service.address, &format!("GET /kbs/v0/resource/{NAME}"), &cookie, "").unwrap();
            assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
            assert_eq!(answer["error"]["code"], json!("Internal"));
        }
        drop(service);
        assert_eq!(released(&stage.trail()), 1, "and what left before is there");
        let service = stage.serve("");
        let (cookie, key) = stage.attested(&service.address).unwrap();
        assert_eq!(
            resource(&service.address, &cookie, &key).as_deref(),
            Some(&KEY[..]),
            "the store is whole"
        );
    }
}
