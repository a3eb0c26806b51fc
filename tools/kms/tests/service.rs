//! The key service: attacks K01, K02, K05, K08, K09, K10 and K14 on what it releases, and on its wire.

mod common;

use aes_kw::KeyInit as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{Emulated, MEASUREMENT, POLICY};
use parma_guest::attest::channel::{End, Ephemeral, transcript};
use parma_guest::wire::{Order, frame};
use parma_kms::bundle::Bundle;
use parma_kms::rules::Rules;
use parma_kms::server::{self, Shared};
use parma_kms::service::{AttestRequest, Failure, OfferRequest, ReleaseRequest, SealedRequest, Service};
use parma_kms::store::Store;
use parma_kms::verify::hex;
use parma_psp::{Platform, Tcb, layout};
use rsa::traits::PublicKeyParts as _;
use rsa::{Oaep, RsaPrivateKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};

const KEY: [u8; 32] = [0x77; 32];

/// A rule for the honest guest, with this changed.
fn rules(change: &Value) -> Rules {
    let mut rule = json!({
        "measurements": [hex(&MEASUREMENT)],
        "host_data": [hex(&POLICY)],
        "minimum_tcb": "bootloader=10,snp=24,microcode=84",
        "least_generation": 5,
    });
    for (name, value) in change.as_object().unwrap() {
        rule[name] = value.clone();
    }
    let text = json!({"issuer": "https://kms.example", "keys": {"data": rule}}).to_string();
    Rules::parse(text.as_bytes()).unwrap()
}

struct Stage {
    service: Service,
    guest: Emulated,
    _dir: tempfile::TempDir,
}

/// A service that trusts this guest's root, which it has itself.
fn stage(platform: Platform, change: &Value) -> Stage {
    let guest = Emulated::new(platform);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kms.db")).unwrap();
    store.import("data", &KEY).unwrap();
    let service = Service::new(store, rules(change), guest.roots(), Bundle::default()).unwrap();
    Stage { service, guest, _dir: dir }
}

fn request<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn why(failure: &Failure) -> String {
    match failure {
        Failure::Request(why) | Failure::Refused(why, _) => why.clone(),
        Failure::Service(error) => panic!("{error:#}"),
    }
}

fn bytes<const N: usize>(value: &Value) -> [u8; N] {
    STANDARD.decode(value.as_str().unwrap()).unwrap().try_into().unwrap()
}

impl Stage {
    fn certificates(&self) -> Value {
        self.guest.certificates.iter().map(|der| json!(STANDARD.encode(der))).collect()
    }

    /// The guest's answer to an offer; and its end of the channel.
    fn answer(&self, offer: &Value) -> (Value, parma_guest::attest::channel::Channel) {
        let own = Ephemeral::new(&[3; 32]).unwrap();
        let peer = bytes::<65>(&offer["key"]);
        let key = own.public();
        let transcript = transcript(&bytes(&offer["nonce"]), &peer, &key, &[8; 32]);
        let answer = json!({
            "offer": offer["offer"], "name": "data", "key": STANDARD.encode(key), "audit": STANDARD.encode([8; 32]),
            "report": STANDARD.encode(self.guest.psp.report(&transcript)), "certificates": self.certificates(),
        });
        (answer, own.agree(End::Guest, &peer, &transcript).unwrap())
    }

    fn sealed(&self) -> Result<(), String> {
        let offer = self.service.offer(&OfferRequest::default()).unwrap_or_else(|f| panic!("{f:?}"));
        let (answer, mut channel) = self.answer(&offer);
        let released = self.service.release_sealed(&request::<SealedRequest>(answer)).map_err(|f| why(&f))?;
        let mut message = STANDARD.decode(released["message"].as_str().unwrap()).unwrap();
        let order = frame::decode::<Order<'_>>(channel.open(&mut message).unwrap()).unwrap();
        assert_eq!(order, Order::Key { key: KEY, least_generation: 5 });
        Ok(())
    }

    /// Evidence as a sidecar sends it, with its RSA key as runtime data.
    fn evidence(&self) -> Value {
        let public = rsa().to_public_key();
        let number = |n: &rsa::BoxedUint| URL_SAFE_NO_PAD.encode(n.to_be_bytes_trimmed_vartime());
        let jwk = json!({"kty": "RSA", "kid": "Nvhfuq2cCIOAB8XR4Xi9Pr0NP_9CeMzWQGtW_HALz_w",
            "n": number(public.n()), "e": number(public.e()), "key_ops": ["encrypt"]});
        let runtime = json!({"keys": [jwk]}).to_string();
        let mut data = [0; 64];
        data[..32].copy_from_slice(&Sha256::digest(&runtime));
        let chain = self.guest.psp.chain().to_pem().unwrap();
        let report = json!({
            "SnpReport": URL_SAFE_NO_PAD.encode(self.guest.psp.report(&data)),
            "VcekCertChain": URL_SAFE_NO_PAD.encode(chain),
        });
        json!({
            "report": URL_SAFE_NO_PAD.encode(report.to_string()),
            "runtimeData": {"data": URL_SAFE_NO_PAD.encode(runtime), "dataType": "JSON"},
            "nonce": 1,
        })
    }

    fn token(&self) -> String {
        let answer = self.service.attest(&request::<AttestRequest>(self.evidence()));
        answer.unwrap_or_else(|f| panic!("{}", why(&f)))["token"].as_str().unwrap().to_owned()
    }

    fn release(&self, token: &str, enc: Option<&str>) -> Result<Vec<u8>, String> {
        let mut body = json!({"target": token});
        if let Some(enc) = enc {
            body["enc"] = json!(enc);
        }
        let released = self.service.release("data", &request::<ReleaseRequest>(body)).map_err(|f| why(&f))?;
        Ok(ciphertext(&released))
    }
}

/// Where sidecars look for it.
fn ciphertext(released: &Value) -> Vec<u8> {
    let jws = released["value"].as_str().unwrap();
    let payload = URL_SAFE_NO_PAD.decode(jws.split('.').nth(1).unwrap()).unwrap();
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    let hsm = payload["response"]["key"]["key"]["key_hsm"].as_str().unwrap();
    let hsm: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(hsm).unwrap()).unwrap();
    URL_SAFE_NO_PAD.decode(hsm["ciphertext"].as_str().unwrap()).unwrap()
}

fn rsa() -> &'static RsaPrivateKey {
    static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
    KEY.get_or_init(|| RsaPrivateKey::new(&mut rsa::rand_core::UnwrapErr(getrandom::SysRng), 2048).unwrap())
}

fn unwrap(ciphertext: &[u8], oaep: impl rsa::traits::PaddingScheme) -> Vec<u8> {
    let (kek, key) = ciphertext.split_at(256);
    let kek: [u8; 32] = rsa().decrypt(oaep, kek).unwrap().try_into().unwrap();
    let mut room = vec![0; key.len()];
    aes_kw::KwpAes256::new(&kek.into()).unwrap_key(key, &mut room).unwrap().to_vec()
}

#[test]
fn a_sealed_key_reaches_the_guest_that_the_rule_is_about_and_the_trail_says_so() {
    let stage = stage(Platform::default(), &json!({}));
    assert_eq!(stage.sealed(), Ok(()));
    let trail = stage.service.trail().unwrap();
    let entry: Value = serde_json::from_str(trail.last().unwrap()).unwrap();
    assert_eq!((&entry["key"], &entry["released"]), (&json!("data"), &json!(true)));
    assert_eq!(entry["host_data"], json!(hex(&POLICY)));
}

#[test]
fn k05_another_policy_image_debugging_and_old_firmware_get_no_key_and_hear_why() {
    let cases = [
        (Platform::default(), json!({"host_data": [hex(&[0; 32])]}), "host-data"),
        (Platform::default(), json!({"measurements": [hex(&[0; 48])]}), "measurement"),
        (
            Platform { policy: layout::LAUNCH_POLICY | layout::POLICY_DEBUG, ..Platform::default() },
            json!({}),
            "debug",
        ),
        (Platform { tcb: Tcb { snp: 23, ..layout::TCB }, ..Platform::default() }, json!({}), "minimum-tcb"),
        (Platform::default(), json!({"chips": [hex(&[1; 64])]}), "allowed-chip"),
        (Platform::default(), json!({"minimum_guest_svn": 1}), "guest-svn"),
    ];
    for (platform, change, check) in cases {
        let stage = stage(platform, &change);
        let why = stage.sealed().unwrap_err();
        assert!(why.starts_with(&format!("{check}: ")), "{why}");
        let entry: Value = serde_json::from_str(stage.service.trail().unwrap().last().unwrap()).unwrap();
        assert_eq!((&entry["released"], &entry["why"]), (&json!(false), &json!(why)));
        if check != "debug" {
            // What is genuine gets a token, and no key for it.
            let refused = stage.release(&stage.token(), None).unwrap_err();
            assert!(refused.starts_with(&format!("{check}: ")), "{refused}");
        }
    }
}

/// What is demanded of a log that is shown, `audit_state.rs` of the program has.
#[test]
fn a_key_whose_rule_demands_something_of_the_audit_log_is_not_released_without_one() {
    for demands in [json!({}), json!({"never_asked": ["exec_in_container"], "most_denied": 0})] {
        let stage = stage(Platform::default(), &json!({"audit": demands}));
        let why = "audit-chain: no audit log was shown, and one is demanded";
        assert_eq!(stage.sealed().unwrap_err(), why);
        assert_eq!(
            stage.release(&stage.token(), None).unwrap_err(),
            why,
            "the init's reports alone vouch for one"
        );
        let told = |name: &str| {
            let offer =
                stage.service.offer(&request(json!({"name": name}))).unwrap_or_else(|f| panic!("{f:?}"));
            offer["audit"].clone()
        };
        assert_eq!((told("data"), told("none")), (json!(true), json!(false)));
    }
}

#[test]
fn k02_an_offer_serves_once_and_its_answer_serves_no_other() {
    let stage = stage(Platform::default(), &json!({}));
    let offer = || stage.service.offer(&OfferRequest::default()).unwrap_or_else(|f| panic!("{f:?}"));
    let release =
        |answer: &Value| stage.service.release_sealed(&request(answer.clone())).map_err(|f| why(&f));
    let (answer, _) = stage.answer(&offer());
    release(&answer).unwrap();
    assert!(release(&answer).unwrap_err().contains("serves once"));
    let mut other = answer.clone();
    other["offer"] = offer()["offer"].clone();
    assert!(release(&other).unwrap_err().starts_with("report-data: "));
    // K01: the host's key beside the guest's report.
    let (mut relayed, _) = stage.answer(&offer());
    relayed["key"] = json!(STANDARD.encode(Ephemeral::new(&[4; 32]).unwrap().public()));
    assert!(release(&relayed).unwrap_err().starts_with("report-data: "));
    for (name, value) in [
        ("offer", "00"),
        ("key", "AAAA"),
        ("report", "!"),
        ("report", "AAAA"),
        ("audit", "AAAA"),
        ("name", "other"),
    ] {
        let (mut answer, _) = stage.answer(&offer());
        answer[name] = json!(value);
        assert!(release(&answer).is_err(), "{name}");
    }
}

#[test]
fn k08_a_token_gets_the_key_wrapped_to_the_attested_key_in_each_of_the_three_ways() {
    let stage = stage(Platform::default(), &json!({}));
    let get = |enc: Option<&str>| stage.release(&stage.token(), enc).unwrap();
    assert_eq!(unwrap(&get(None), Oaep::<sha1::Sha1>::new()), KEY);
    assert_eq!(unwrap(&get(Some("CKM_RSA_AES_KEY_WRAP")), Oaep::<sha1::Sha1>::new()), KEY);
    assert_eq!(unwrap(&get(Some("RSA_AES_KEY_WRAP_256")), Oaep::<Sha256>::new()), KEY);
    assert_eq!(unwrap(&get(Some("RSA_AES_KEY_WRAP_384")), Oaep::<sha2::Sha384>::new()), KEY);
    assert!(stage.release(&stage.token(), Some("RSA1_5")).unwrap_err().contains("enc"));
}

#[test]
fn k08_a_token_has_the_claims_of_the_report_and_no_other_header_is_believed() {
    let stage = stage(Platform::default(), &json!({}));
    let token = stage.token();
    let parts: Vec<&str> = token.split('.').collect();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    assert_eq!(claims["x-ms-sevsnpvm-hostdata"], json!(hex(&POLICY)));
    assert_eq!(claims["x-ms-sevsnpvm-launchmeasurement"], json!(hex(&MEASUREMENT)));
    assert_eq!(claims["x-ms-sevsnpvm-is-debuggable"], json!(false));
    assert_eq!(claims["x-parma-emulated"], json!(true));
    assert_eq!(claims["x-ms-runtime"]["keys"][0]["kty"], json!("RSA"));
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let others = [
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.{}", parts[0], URL_SAFE_NO_PAD.encode("{}"), parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        token[1..].to_owned(),
        String::new(),
        "a.b.c".to_owned(),
        "x".repeat(1 << 16),
        self::stage(Platform::default(), &json!({})).token(),
    ];
    for other in others {
        let why = stage.release(&other, None).unwrap_err();
        assert!(why.starts_with("the token is not one"), "{why}");
    }
    stage.release(&token, None).unwrap();
}

#[test]
fn k02_k10_a_token_serves_once_and_is_judged_by_the_rules_of_the_release() {
    let stage = stage(Platform::default(), &json!({}));
    let token = stage.token();
    stage.release(&token, None).unwrap();
    assert!(stage.release(&token, None).unwrap_err().starts_with("the token is not one"), "a replay");
    // The policy is tightened after the token was given.
    let token = stage.token();
    stage.service.set_rules(rules(&json!({"minimum_tcb": "snp=25"})));
    assert!(stage.release(&token, None).unwrap_err().starts_with("minimum-tcb: "));
}

#[test]
fn k03_runtime_data_that_the_report_does_not_vouch_for_gets_no_token() {
    let stage = stage(Platform::default(), &json!({}));
    let mut evidence = stage.evidence();
    let data = URL_SAFE_NO_PAD.decode(evidence["runtimeData"]["data"].as_str().unwrap()).unwrap();
    // The same JSON, with a blank at its end.
    evidence["runtimeData"]["data"] = json!(URL_SAFE_NO_PAD.encode([&data[..], b" "].concat()));
    let refused = stage.service.attest(&request(evidence)).unwrap_err();
    assert!(why(&refused).starts_with("report-data: "), "{refused:?}");
}

#[test]
fn a_release_policy_that_would_give_a_key_to_any_guest_or_that_is_misspelt_is_an_error() {
    let parse = |rule: Value| {
        Rules::parse(json!({"issuer": "i", "keys": {"data": rule}}).to_string().as_bytes()).map(|_| ())
    };
    let (host_data, measurements) = (json!([hex(&POLICY)]), json!([hex(&MEASUREMENT)]));
    parse(json!({"host_data": host_data, "measurements": measurements})).unwrap();
    for wrong in [
        json!({"measurements": measurements}),
        json!({"host_data": [], "measurements": measurements}),
        json!({"host_data": host_data}),
        json!({"host_data": host_data, "measurements": measurements, "minimum_tbc": "snp=1"}),
        json!({"host_data": host_data, "measurements": measurements, "minimum_tcb": "snp=x"}),
        json!({"host_data": ["12"], "measurements": measurements}),
        json!({"host_data": host_data, "measurements": measurements, "audit": {"never_asked": ["exec"]}}),
        json!({"host_data": host_data, "measurements": measurements, "audit": {"most_denied": -1}}),
        json!({"host_data": host_data, "measurements": measurements, "audit": {"never_aksed": []}}),
    ] {
        assert!(parse(wrong.clone()).is_err(), "{wrong}");
    }
}

/// This test runs itself as the process that dies.
#[test]
fn what_was_kept_survives_the_death_of_the_process_and_what_was_not_leaves_no_trace() {
    const PLACE: &str = "PARMA_KMS_DIES_AT";
    if let Some(path) = std::env::var_os(PLACE) {
        let store = Store::open(path.as_ref()).unwrap();
        store.import("data", &KEY).unwrap();
        store.audit(&json!({"released": true})).unwrap();
        std::process::abort();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kms.db");
    let name = "what_was_kept_survives_the_death_of_the_process_and_what_was_not_leaves_no_trace";
    let died = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(PLACE, &path)
        .output()
        .unwrap();
    assert!(!died.status.success());
    let store = Store::open(&path).unwrap();
    assert_eq!(store.key("data").unwrap().unwrap(), KEY);
    assert_eq!(store.trail().unwrap(), [r#"{"released":true}"#]);
    assert!(store.import("data", &[1; 32]).is_err(), "a name serves once");
    store.import("other", &[1; 32]).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

// On the wire.

struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    guest: Emulated,
    _runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

fn wire() -> Wire {
    let Stage { service, guest, _dir } = stage(Platform::default(), &json!({}));
    let shared = Shared::new(service);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(server::run(listener, None, shared.clone()));
    Wire { address, shared, guest, _runtime: runtime, _dir }
}

impl Wire {
    fn send(&self, head: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head =
            format!("{head} HTTP/1.1\r\nhost: kms\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A server that has refused may not read on.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(&format!("POST {path}"), body.to_string().as_bytes())
    }
}

#[test]
fn malformed_and_oversize_requests_are_refused_and_slow_clients_hold_nobody_up() {
    let wire = wire();
    let mut slow: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(wire.address).unwrap()).collect();
    for stream in &mut slow {
        stream
            .write_all(b"POST /parma/v1/release HTTP/1.1\r\nhost: kms\r\ncontent-length: 100\r\n\r\n{")
            .unwrap();
    }
    assert_eq!(wire.send("GET /status", b""), (200, json!({"message": "STATUS OK"})));
    let key = &wire.send("GET /certs", b"").1["keys"][0];
    assert_eq!((&key["crv"], &key["alg"]), (&json!("P-256"), &json!("ES256")));
    for body in [&b""[..], b"{", b"[]", b"null", b"\xff\xfe", br#"{"target":1}"#] {
        for path in [
            "/attest/SevSnpVm?api-version=2020-10-01",
            "/keys/data/release?api-version=7.4",
            "/parma/v1/release",
        ] {
            assert_eq!(wire.send(&format!("POST {path}"), body).0, 400, "{path}");
        }
    }
    assert_eq!(wire.send("POST /parma/v1/release", &vec![b' '; server::MAX_BODY + 1]).0, 413);
    assert_eq!(wire.send("GET /parma/v1/release", b"").0, 405);
    assert_eq!(wire.send("GET /no/such", b"").0, 404);
}

/// K08, K14: a token with a character changed, and a beginning of one, is none; the token itself goes on being one.
#[test]
fn k08_k14_malformed_tokens_are_refused_on_the_wire_and_use_nothing_up() {
    let wire = wire();
    let stage = Stage {
        service: stage(Platform::default(), &json!({})).service,
        guest: Emulated { psp: wire.guest.psp.clone(), certificates: wire.guest.certificates.clone() },
        _dir: tempfile::tempdir().unwrap(),
    };
    let (_, answer) = wire.post("/attest/SevSnpVm", &stage.evidence());
    let token = answer["token"].as_str().unwrap();
    let refused = |token: &str| {
        let request = request::<ReleaseRequest>(json!({"target": token}));
        let refused = wire.shared.service().release("data", &request).unwrap_err();
        assert!(why(&refused).starts_with("the token is not one"), "{token}");
    };
    // Each refusal is written to the disk: a stride that meets every part, its first and last characters among them.
    let ends = token.match_indices('.').flat_map(|(at, _)| [at - 1, at, at + 1]);
    for at in (0..token.len()).step_by(31).chain(ends).chain([token.len() - 1]) {
        refused(&token[..at]);
        let other = if &token[at..=at] == "A" { "B" } else { "A" };
        refused(&format!("{}{other}{}", &token[..at], &token[at + 1..]));
    }
    for malformed in
        ["", ".", "..", "...", "a.b.c", "\u{1f511}", &"x".repeat(40 << 10), &token.replace('.', "")]
    {
        let (status, answer) = wire.post("/keys/data/release", &json!({"target": malformed}));
        assert_eq!((status, &answer["error"]["code"]), (403, &json!("Refused")), "{malformed}");
    }
    let (status, answer) = wire.post("/keys/data/release", &json!({"target": token}));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn k02_of_parallel_releases_with_one_token_one_gets_the_key_and_each_is_in_the_trail() {
    let wire = wire();
    let stage = Stage {
        service: stage(Platform::default(), &json!({})).service,
        guest: Emulated { psp: wire.guest.psp.clone(), certificates: wire.guest.certificates.clone() },
        _dir: tempfile::tempdir().unwrap(),
    };
    let (status, answer) = wire.post("/attest/SevSnpVm?api-version=2020-10-01", &stage.evidence());
    assert_eq!(status, 200, "{answer}");
    let body = json!({"target": answer["token"], "enc": "RSA_AES_KEY_WRAP_256"});
    let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| wire.post("/keys/data/1/release?api-version=7.4", &body)))
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let released: Vec<&Value> =
        answers.iter().filter(|(status, _)| *status == 200).map(|(_, body)| body).collect();
    assert_eq!(released.len(), 1, "{answers:?}");
    assert_eq!(unwrap(&ciphertext(released[0]), Oaep::<Sha256>::new()), KEY);
    assert!(answers.iter().all(|(status, _)| [200, 403].contains(status)), "{answers:?}");
    assert_eq!(wire.shared.service().trail().unwrap().len(), 8);
    // A refusal of evidence has every check.
    let mut evidence = stage.evidence();
    evidence["runtimeData"]["data"] = json!(URL_SAFE_NO_PAD.encode("{}"));
    let (status, answer) = wire.post("/attest/SevSnpVm", &evidence);
    assert_eq!((status, &answer["error"]["code"]), (403, &json!("Refused")));
    let checks = answer["error"]["checks"].as_array().unwrap();
    let failed: Vec<&Value> = checks.iter().filter(|item| item["outcome"] == "fail").collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0]["check"], "report-data");
}

#[test]
fn an_address_that_asks_too_much_is_told_to_wait() {
    let wire = wire();
    let many = (0..200).map(|_| wire.send("GET /status", b"").0).find(|&status| status == 429);
    assert_eq!(many, Some(429));
}
