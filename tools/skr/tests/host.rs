//! The real sidecar against the real key service, over TLS, with an emulated PSP: what the containers of a guest get, what they hear
//! where there is nothing to get, and what neither a neighbour nor the network can do.

use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parma_kms::bundle::Bundle;
use parma_kms::rules::Rules;
use parma_kms::server::{self, Shared};
use parma_kms::service::Service;
use parma_kms::store::Store;
use parma_kms::verify::{Roots, hex};
use parma_psp::{HostData, Measurement, Psp};
use parma_release::rsa_aes::{Wrapping, rsa_key, wrap};
use rsa::pkcs8::EncodePrivateKey as _;
use rsa::traits::PublicKeyParts as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use tokio::runtime::Runtime;

const POLICY: [u8; 32] = [0x1d; 32];
const MEASUREMENT: [u8; 48] = [0x3e; 48];
const KEY: [u8; 32] = [0x77; 32];

/// A key service, and the guest that its rules are about.
struct Stage {
    /// `localhost:PORT`, which the certificate is for.
    service: String,
    shared: Arc<Shared>,
    psp: Psp,
    runtime: Runtime,
    dir: tempfile::TempDir,
}

fn rules(change: &Value) -> Rules {
    let mut rule = json!({"measurements": [hex(&MEASUREMENT)], "host_data": [hex(&POLICY)]});
    for (name, value) in change.as_object().unwrap() {
        rule[name] = value.clone();
    }
    let keys = json!({"data": rule, "default/key/data": rule});
    Rules::parse(json!({"issuer": "https://kms.example", "keys": keys}).to_string().as_bytes()).unwrap()
}

fn stage() -> Stage {
    let psp = Psp::new(HostData(POLICY), Measurement(MEASUREMENT)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kms.db")).unwrap();
    for name in ["data", "default/key/data"] {
        store.import(name, &KEY).unwrap();
    }
    let roots = Roots::amd().with_emulated(&psp.chain().to_der().unwrap()[2]).unwrap();
    let shared = Shared::new(Service::new(store, rules(&json!({})), roots, Bundle::default()).unwrap());
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (chain, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    fs::write(dir.path().join("kms.pem"), &chain).unwrap();
    fs::write(dir.path().join("chain.pem"), psp.chain().to_pem().unwrap()).unwrap();
    let tls = server::tls(chain.as_bytes(), key.as_bytes()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let service = format!("localhost:{}", listener.local_addr().unwrap().port());
    runtime.spawn(server::run(listener, Some(tls), shared.clone()));
    Stage { service, shared, psp, runtime, dir }
}

/// A running sidecar.
struct Sidecar {
    child: Child,
    url: String,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sidecar(arguments: &[&str]) -> Sidecar {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skr"));
    command.args(["--listen", "127.0.0.1:0"]).args(arguments).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    Sidecar { child, url: url.trim().to_owned() }
}

/// A server of a test's own; its `HOST:PORT`.
fn serve(runtime: &Runtime, router: Router) -> String {
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    runtime.spawn(async { axum::serve(listener, router).await.unwrap() });
    endpoint
}

impl Stage {
    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// The directory in which a guest lets a container attest itself, and who answers in it.
    fn attestation(&self) -> String {
        let path = self.path("attestation");
        let dir = PathBuf::from(&path);
        if dir.is_dir() {
            return path;
        }
        fs::create_dir(&dir).unwrap();
        let [leaf, ask, ark] = &self.psp.chain().to_der().unwrap()[..] else { panic!() };
        let pem = |der: &[&Vec<u8>]| -> String {
            der.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_slice()))).collect()
        };
        let certificates =
            json!({"vcekCert": pem(&[leaf]), "certificateChain": pem(&[ask, ark]), "tcbm": "0"});
        fs::write(dir.join("host-amd-cert-base64"), STANDARD.encode(certificates.to_string())).unwrap();
        let listener = UnixListener::bind(dir.join("attest.sock")).unwrap();
        let psp = self.psp.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut question = [0; 64];
                if connection.read_exact(&mut question[..48]).is_ok() {
                    let _ = connection.write_all(&psp.report(&question));
                }
            }
        });
        path
    }

    fn sidecar(&self) -> Sidecar {
        sidecar(&["--attestation", &self.attestation(), "--ca", &self.path("kms.pem")])
    }

    fn release(&self) -> Value {
        json!({"maa_endpoint": self.service, "akv_endpoint": self.service, "kid": "data"})
    }

    fn resource(&self) -> Value {
        json!({"kbs_endpoint": self.service, "resource": "default/key/data"})
    }
}

impl Sidecar {
    fn send(&self, path: &str, body: Option<&str>) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("{}{path}", self.url);
        let mut answer = match body {
            None => agent.get(url).call().unwrap(),
            Some(body) => agent.post(url).send(body).unwrap(),
        };
        let body = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(path, Some(&body.to_string()))
    }

    /// The error of a request that is not done.
    #[track_caller]
    fn refused(&self, path: &str, body: &Value) -> (u16, String) {
        let (status, answer) = self.post(path, body);
        (status, answer["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned())
    }
}

fn with(mut body: Value, name: &str, value: &str) -> Value {
    body[name] = json!(value);
    body
}

#[test]
fn a_key_and_a_resource_reach_the_container_that_asks_and_the_key_service_noted_it() {
    let stage = stage();
    let sidecar = stage.sidecar();
    assert_eq!(sidecar.send("/status", None), (200, json!({"message": "STATUS OK"})));
    let (status, answer) = sidecar.post("/key/release", &stage.release());
    assert_eq!(status, 200, "{answer}");
    let key: Value = serde_json::from_str(answer["key"].as_str().unwrap()).unwrap();
    assert_eq!(key, json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(KEY)}));
    let answer = sidecar.post("/kbs/resource", &stage.resource());
    assert_eq!(answer, (200, json!({"resource": STANDARD.encode(KEY)})));
    let trail = stage.shared.service().trail().unwrap();
    let events: Vec<Value> = trail.iter().map(|entry| serde_json::from_str(entry).unwrap()).collect();
    assert_eq!(events.len(), 2);
    assert_eq!((&events[0]["event"], &events[1]["event"]), (&json!("token"), &json!("kbs")));
    assert!(events.iter().all(|event| event["released"] == json!(true)));
    // K05, K10: the rule that has changed since is the one that counts, and the container hears which check failed.
    stage.shared.service().set_rules(rules(&json!({"host_data": [hex(&[0; 32])]})));
    for (path, body) in [("/key/release", stage.release()), ("/kbs/resource", stage.resource())] {
        let (status, error) = sidecar.refused(path, &body);
        assert!(status == 403 && error.contains("refuses: host-data: "), "{status} {error}");
    }
    // The other ways to wrap, and the emulated PSP's own socket.
    stage.shared.service().set_rules(rules(&json!({})));
    let (socket, chain, ca) = (stage.path("psp"), stage.path("chain.pem"), stage.path("kms.pem"));
    let (listener, psp) = (UnixListener::bind(&socket).unwrap(), stage.psp.clone());
    std::thread::spawn(move || psp.serve(&listener, || {}));
    for wrapping in ["CKM_RSA_AES_KEY_WRAP", "RSA_AES_KEY_WRAP_384"] {
        let sidecar = self::sidecar(&[
            "--wrapping",
            wrapping,
            "--emulated-psp",
            &socket,
            "--certificates",
            &chain,
            "--ca",
            &ca,
        ]);
        assert_eq!(sidecar.post("/key/release", &stage.release()).0, 200, "{wrapping}");
    }
}

/// Source: CVE-2026-23655, secrets in the clear in Microsoft's sidecar before 2.12; CVE-2026-21522, commands in its tools' input;
/// CVE-2026-26122, defaults that trust. A key is in the answer and nowhere else; what it is asked with is a name, never a command;
/// and nothing but TLS with known roots is a default.
#[test]
fn k13_a_released_key_is_in_the_answer_alone_and_neither_names_nor_defaults_open_a_way() {
    let stage = stage();
    let (dir, ca) = (stage.attestation(), stage.path("kms.pem"));
    let home = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_skr"));
    command.current_dir(home.path()).env("HOME", home.path()).env("TMPDIR", home.path());
    command.args(["--listen", "127.0.0.1:0", "--attestation", &dir, "--ca", &ca]);
    let log = fs::File::create(stage.path("log")).unwrap();
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut url = String::new();
    output.read_line(&mut url).unwrap();
    let sidecar = Sidecar { child, url: url.trim().to_owned() };
    assert_eq!(sidecar.post("/key/release", &stage.release()).0, 200);
    assert_eq!(sidecar.post("/kbs/resource", &stage.resource()).0, 200);
    for name in ["$(touch ran)", "`touch ran`", ";touch ran", "data\ntouch ran", "|touch ran", "../data"] {
        assert_eq!(sidecar.refused("/key/release", &with(stage.release(), "kid", name)).0, 400, "{name}");
        assert_eq!(sidecar.refused("/kbs/resource", &with(stage.resource(), "resource", name)).0, 400);
    }
    drop(sidecar);
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    said += &fs::read_to_string(stage.path("log")).unwrap();
    for form in [STANDARD.encode(KEY), URL_SAFE_NO_PAD.encode(KEY), hex(&KEY)] {
        assert!(!said.contains(&form), "{said}");
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0, "nothing was written");
    // The service's own file is its owner's.
    let mode = fs::metadata(stage.path("kms.db")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn reports_and_tokens_are_over_what_the_container_says() {
    let stage = stage();
    let sidecar = stage.sidecar();
    let data = STANDARD.encode(r#"{"keys":[]}"#);
    let hash = Sha256::digest(r#"{"keys":[]}"#);
    let (status, answer) = sidecar.post("/attest/raw", &json!({"runtime_data": data}));
    let report = answer["report"].as_str().unwrap();
    assert_eq!((status, report.len()), (200, 2 * 1184));
    assert_eq!(report[0xa0..0x120], format!("{}{}", hex(&hash), "0".repeat(64)));
    let (status, answer) = sidecar.post("/attest/combined", &json!({"runtime_data": data}));
    assert_eq!(status, 200, "{answer}");
    let part = |name: &str| STANDARD.decode(answer[name].as_str().unwrap()).unwrap();
    assert_eq!(part("evidence")[0x50..0x70], hash[..]);
    assert_eq!(String::from_utf8(part("endorsements")).unwrap().matches("BEGIN CERTIFICATE").count(), 3);
    assert_eq!(answer["endorsed_tcb"], json!(hex(&part("evidence")[0x180..0x188])));
    assert_eq!(part("uvm_endorsements"), b"");
    let maa = json!({"maa_endpoint": stage.service, "runtime_data": data});
    let (status, answer) = sidecar.post("/attest/maa", &maa);
    assert_eq!((status, answer["token"].as_str().unwrap().split('.').count()), (200, 3));
}

#[test]
fn malformed_requests_are_400_and_what_cannot_be_done_is_500() {
    let stage = stage();
    let sidecar = stage.sidecar();
    for path in ["/attest/raw", "/attest/combined", "/attest/maa", "/key/release", "/kbs/resource"] {
        for body in ["", "{", "[]", "{}", r#"{"runtime_data":1}"#] {
            let (status, answer) = sidecar.send(path, Some(body));
            assert_eq!((status, answer["error"].is_string()), (400, true), "{path} {body}");
        }
        assert_eq!(sidecar.send(path, Some(&" ".repeat(65 << 10))).0, 413);
        assert_eq!(sidecar.send(path, None).0, 405);
    }
    assert_eq!(sidecar.refused("/attest/raw", &json!({"runtime_data": "!"})).0, 400);
    for kid in ["", "../x", "a b", "a?b", "a/../b", &"a".repeat(200)] {
        assert_eq!(sidecar.refused("/key/release", &with(stage.release(), "kid", kid)).0, 400, "{kid}");
    }
    for name in ["", "a/b", "a/b/c/d", "../b/c", "a/b/c?d"] {
        assert_eq!(
            sidecar.refused("/kbs/resource", &with(stage.resource(), "resource", name)).0,
            400,
            "{name}"
        );
    }
    // K08: without TLS, and somewhere else than a host.
    for endpoint in [&format!("http://{}", stage.service), "user@host", "host/path"] {
        assert_eq!(sidecar.refused("/key/release", &with(stage.release(), "akv_endpoint", endpoint)).0, 400);
        assert_eq!(sidecar.refused("/key/release", &with(stage.release(), "maa_endpoint", endpoint)).0, 400);
        assert_eq!(
            sidecar.refused("/kbs/resource", &with(stage.resource(), "kbs_endpoint", endpoint)).0,
            400
        );
    }
    // A key that nobody has a rule for.
    let (status, error) = sidecar.refused("/key/release", &with(stage.release(), "kid", "none"));
    assert!(status == 403 && error.contains("there is no rule"), "{error}");
    // Nobody answers.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gone = format!("localhost:{port}");
    assert_eq!(sidecar.refused("/kbs/resource", &with(stage.resource(), "kbs_endpoint", &gone)).0, 500);
}

/// K08, source: Microsoft's sidecar verifies an answer by a certificate in the answer, against the system's roots.
#[test]
fn k08_a_service_with_another_certificate_or_under_another_name_gets_no_evidence_and_gives_no_key() {
    let stage = stage();
    let certificate = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let other = certificate("localhost");
    fs::write(stage.path("other.pem"), other.cert.pem()).unwrap();
    let dir = stage.attestation();
    let trusting_another = self::sidecar(&["--attestation", &dir, "--ca", &stage.path("other.pem")]);
    let trusting_the_web = self::sidecar(&["--attestation", &dir]);
    for sidecar in [&trusting_another, &trusting_the_web] {
        for (path, body) in [("/key/release", stage.release()), ("/kbs/resource", stage.resource())] {
            let (status, error) = sidecar.refused(path, &body);
            assert!(status == 500 && error.contains("certificate"), "{status} {error}");
        }
    }
    // Under the address, which the certificate does not name.
    let sidecar = stage.sidecar();
    let address = stage.service.replace("localhost", "127.0.0.1");
    assert_eq!(sidecar.refused("/kbs/resource", &with(stage.resource(), "kbs_endpoint", &address)).0, 500);
    // A service that speaks no TLS.
    let plain = stage.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("localhost:{}", plain.local_addr().unwrap().port());
    stage.runtime.spawn(server::run(plain, None, stage.shared.clone()));
    assert_eq!(sidecar.refused("/kbs/resource", &with(stage.resource(), "kbs_endpoint", &endpoint)).0, 500);
    assert!(stage.shared.service().trail().unwrap().is_empty(), "nobody got as far as to ask for a key");
    // A key that does not fit its certificate makes no server, nor do files that are neither.
    let (own, foreign) = (certificate("a").cert.pem(), other.signing_key.serialize_pem());
    for (chain, key) in [(own.as_str(), foreign.as_str()), ("", &foreign), (&own, ""), (&foreign, &own)] {
        assert!(server::tls(chain.as_bytes(), key.as_bytes()).is_err());
    }
}

#[test]
fn k08_a_service_whose_certificate_has_expired_or_is_not_valid_yet_gets_no_evidence() {
    let stage = stage();
    let dir = stage.attestation();
    for (from, to, good) in [(2020, 2021, false), (2098, 2099, false), (2020, 2099, true)] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut of = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (of.not_before, of.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 1, 1));
        let certificate = of.self_signed(&key).unwrap().pem();
        let tls = server::tls(certificate.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let listener = stage.runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("localhost:{}", listener.local_addr().unwrap().port());
        stage.runtime.spawn(server::run(listener, Some(tls), stage.shared.clone()));
        // The sidecar trusts this very certificate: only its time is wrong.
        let ca = stage.path("of-its-time.pem");
        fs::write(&ca, &certificate).unwrap();
        let sidecar = self::sidecar(&["--attestation", &dir, "--ca", &ca]);
        let resource = with(stage.resource(), "kbs_endpoint", &endpoint);
        if good {
            assert_eq!(sidecar.post("/kbs/resource", &resource).0, 200);
        } else {
            let (status, error) = sidecar.refused("/kbs/resource", &resource);
            assert!(status == 500 && error.contains("certificate"), "{status} {error}");
            assert!(stage.shared.service().trail().unwrap().is_empty());
        }
    }
}

#[test]
fn evidence_of_no_hardware_is_an_explicit_choice_and_the_key_service_refuses_it_by_name() {
    let stage = stage();
    let ca = stage.path("kms.pem");
    let sample = sidecar(&["--sample", "--ca", &ca]);
    let (status, error) = sample.refused("/kbs/resource", &stage.resource());
    assert!(status == 403 && error.contains("refuses: tee: "), "{status} {error}");
    let (status, error) = sample.refused("/attest/raw", &json!({"runtime_data": ""}));
    assert!(status == 500 && error.contains("--sample"), "{status} {error}");
    // Where there is no directory, there is no report, and nothing in its place.
    let none = sidecar(&["--attestation", "/nonexistent", "--ca", &ca]);
    for (path, body) in [("/attest/raw", json!({"runtime_data": ""})), ("/kbs/resource", stage.resource())] {
        let (status, error) = none.refused(path, &body);
        assert!(status == 500 && error.contains("no report"), "{status} {error}");
    }
}

/// A broker that takes evidence of no hardware, as Confidential Containers' does: what the sidecar sends to it.
#[test]
fn what_is_sent_to_a_key_broker_is_version_0_4_0_to_the_letter() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (seen, said) = mpsc::channel::<(Option<String>, Value)>();
    let note = move |headers: &HeaderMap, body: &str| {
        let cookie = headers.get("cookie").map(|value| value.to_str().unwrap().to_owned());
        seen.send((cookie, serde_json::from_str(body).unwrap_or(Value::Null))).unwrap();
    };
    let (first, second, third) = (note.clone(), note.clone(), note);
    let auth = async move |headers: HeaderMap, body: String| {
        first(&headers, &body);
        let cookie = [("set-cookie", "kbs-session-id=abc; Expires=Sat, 28 Nov 2026 20:00:00 GMT")];
        (cookie, Json(json!({"nonce": "bm9uY2U=", "extra-params": ""})))
    };
    let attest = async move |headers: HeaderMap, body: String| {
        second(&headers, &body);
        Json(json!({"token": "a.b.c"}))
    };
    let resource = async move |headers: HeaderMap| {
        third(&headers, "");
        Json(json!({"protected": "e30", "encrypted_key": "", "iv": "", "ciphertext": "", "tag": ""}))
    };
    let router = Router::new()
        .route("/kbs/v0/auth", post(auth))
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/default/key/data", get(resource));
    let endpoint = serve(&runtime, router);
    let sidecar = sidecar(&["--sample", "--plain-http"]);
    let request = json!({"kbs_endpoint": endpoint, "resource": "default/key/data"});
    let (status, error) = sidecar.refused("/kbs/resource", &request);
    assert!(status == 500 && error.contains("the header is not that of a JWE"), "K08: {status} {error}");
    let auth = said.recv().unwrap();
    assert_eq!(auth, (None, json!({"version": "0.4.0", "tee": "sample", "extra-params": {}})));
    let (cookie, attest) = said.recv().unwrap();
    assert_eq!(cookie.as_deref(), Some("kbs-session-id=abc"));
    let key = &attest["runtime-data"]["tee-pubkey"];
    assert_eq!((&key["kty"], &key["crv"]), (&json!("EC"), &json!("P-256")));
    // RFC 8785 by hand: members in order, no blanks.
    let canonical = format!(
        r#"{{"additional-evidence":"","nonce":"bm9uY2U=","tee-pubkey":{{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":{},"y":{}}}}}"#,
        key["x"], key["y"]
    );
    let report_data = STANDARD.encode(Sha384::digest(canonical));
    let evidence =
        json!({"primary_evidence": {"svn": "1", "report_data": report_data}, "additional_evidence": ""});
    assert_eq!(attest["tee-evidence"], evidence);
    assert_eq!(attest["runtime-data"]["nonce"], json!("bm9uY2U="));
    assert_eq!(attest.as_object().unwrap().keys().collect::<Vec<_>>(), ["runtime-data", "tee-evidence"]);
    assert_eq!(said.recv().unwrap().0.as_deref(), Some("kbs-session-id=abc"));
}

/// Keys that are not bytes, as a managed HSM wraps them: PKCS #8.
#[test]
fn rsa_and_ec_keys_come_as_jwks() {
    let ec = p384::SecretKey::from_slice(&[5; 48]).unwrap();
    let rsa = rsa::RsaPrivateKey::new(&mut rsa::rand_core::UnwrapErr(getrandom::SysRng), 2048).unwrap();
    let keys = [
        ("EC-HSM", ec.to_pkcs8_der().unwrap().as_bytes().to_vec()),
        ("RSA-HSM", rsa.to_pkcs8_der().unwrap().as_bytes().to_vec()),
        ("other", vec![1; 16]),
    ];
    let stage = stage();
    let sidecar = self::sidecar(&["--attestation", &stage.attestation(), "--plain-http"]);
    for (kty, bytes) in keys {
        // A service that gives this key to whoever asks. Its token is the runtime data.
        let attest = async |body: String| {
            let body: Value = serde_json::from_str(&body).unwrap();
            Json(json!({"token": body["runtimeData"]["data"]}))
        };
        let release = async move |body: String| {
            let body: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["enc"], json!("RSA_AES_KEY_WRAP_256"));
            let runtime = body["target"].as_str().unwrap().trim_end_matches('=');
            let to = rsa_key(&URL_SAFE_NO_PAD.decode(runtime).unwrap()).unwrap();
            let wrapped = URL_SAFE_NO_PAD.encode(wrap(&bytes, &to, Wrapping::Sha256).unwrap());
            let hsm = URL_SAFE_NO_PAD.encode(json!({"ciphertext": wrapped}).to_string());
            let payload = json!({"response": {"key": {"key": {"kty": kty, "key_hsm": hsm}}}});
            Json(json!({"value": format!("e30.{}.", URL_SAFE_NO_PAD.encode(payload.to_string()))}))
        };
        let router =
            Router::new().route("/attest/SevSnpVm", post(attest)).route("/keys/data/release", post(release));
        let endpoint = serve(&stage.runtime, router);
        let body = json!({"maa_endpoint": endpoint, "akv_endpoint": endpoint, "kid": "data"});
        let (status, answer) = sidecar.post("/key/release", &body);
        if kty == "other" {
            assert_eq!(status, 500, "{answer}");
            continue;
        }
        let jwk: Value = serde_json::from_str(answer["key"].as_str().unwrap()).unwrap();
        if kty == "EC-HSM" {
            assert_eq!((&jwk["crv"], &jwk["d"]), (&json!("P-384"), &json!(URL_SAFE_NO_PAD.encode([5; 48]))));
            assert_eq!(jwk["x"].as_str().unwrap().len(), 64);
        } else {
            assert_eq!(jwk["n"], json!(URL_SAFE_NO_PAD.encode(rsa.n_bytes())));
            for name in ["e", "d", "p", "q", "dp", "dq", "qi"] {
                assert!(jwk[name].is_string(), "{name}");
            }
        }
    }
}
