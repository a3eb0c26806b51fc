//! The endpoints of a KBS (RCAR 0.4.0): a resource for the guest whose evidence answers the session's nonce, and for nobody else.

mod common;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Emulated, MEASUREMENT, POLICY};
use p256::SecretKey;
use parma_kms::bundle::Bundle;
use parma_kms::rules::Rules;
use parma_kms::service::kbs::{Begun, Holder};
use parma_kms::service::{Failure, ReleaseRequest, Service};
use parma_kms::store::Store;
use parma_kms::verify::hex;
use parma_psp::Platform;
use parma_release::jwe::{self, Jwe, Jwk};
use parma_release::rcar::{Attestation, Composite, Request, RuntimeData, Snp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};

const KEY: &[u8] = b"a resource of any length, 16 bytes or more";
const NAME: &str = "default/key/data";

fn rules(change: &Value) -> Rules {
    let mut rule = json!({"measurements": [hex(&MEASUREMENT)], "host_data": [hex(&POLICY)]});
    for (name, value) in change.as_object().unwrap() {
        rule[name] = value.clone();
    }
    let text =
        json!({"issuer": "https://kms.example", "keys": {NAME: rule, "other/key/data": rule}}).to_string();
    Rules::parse(text.as_bytes()).unwrap()
}

struct Stage {
    service: Service,
    guest: Emulated,
    _dir: tempfile::TempDir,
}

fn stage(platform: Platform, change: &Value) -> Stage {
    let guest = Emulated::new(platform);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kms.db")).unwrap();
    store.import(NAME, KEY).unwrap();
    let service = Service::new(store, rules(change), guest.roots(), Bundle::default()).unwrap();
    Stage { service, guest, _dir: dir }
}

#[track_caller]
fn why<T>(result: Result<T, Failure>) -> String {
    match result {
        Ok(_) => panic!("it was done"),
        Err(Failure::Refused(why, _)) => why,
        Err(other) => panic!("{other:?}"),
    }
}

fn id(begun: &Begun) -> String {
    begun.cookie.split(['=', ';']).nth(1).unwrap().to_owned()
}

impl Stage {
    fn auth(&self, version: &str, tee: &str) -> Result<Begun, Failure> {
        self.service.kbs_auth(&Request { version: version.into(), tee: tee.into(), extra_params: json!({}) })
    }

    fn begin(&self) -> Begun {
        self.auth("0.4.0", "snp").unwrap()
    }

    /// What the guest shows for a session, with this key.
    fn evidence(&self, begun: &Begun, key: &SecretKey) -> Attestation {
        let runtime_data = RuntimeData {
            nonce: begun.challenge.nonce.clone(),
            tee_pubkey: Jwk::recipient(&key.public_key()),
        };
        let mut report_data = [0; 64];
        report_data[..48].copy_from_slice(&Sha384::digest(runtime_data.canonical("").unwrap()));
        self.vouched(runtime_data, &self.guest.psp.report(&report_data))
    }

    fn vouched(&self, runtime_data: RuntimeData, report: &[u8]) -> Attestation {
        let snp = Snp::new(report, &self.guest.certificates).unwrap();
        let tee_evidence = Composite {
            primary_evidence: serde_json::to_value(snp).unwrap(),
            additional_evidence: String::new(),
        };
        Attestation { init_data: None, runtime_data, tee_evidence }
    }

    /// The honest way to a session that has shown its evidence: its id, its token, its key.
    fn attested(&self) -> (String, String, SecretKey) {
        let (begun, key) = (self.begin(), jwe::ephemeral().unwrap());
        let answer = self.service.kbs_attest(Some(&id(&begun)), &self.evidence(&begun, &key));
        let token =
            answer.unwrap_or_else(|failure| panic!("{failure:?}"))["token"].as_str().unwrap().to_owned();
        (id(&begun), token, key)
    }

    fn get(&self, holder: Holder<'_>, name: &str) -> Result<Jwe, Failure> {
        Ok(serde_json::from_value(self.service.kbs_resource(Some(holder), name)?).unwrap())
    }
}

#[test]
fn a_resource_reaches_the_guest_that_its_rule_is_about_by_cookie_and_by_token_and_the_trail_says_so() {
    for version in [2, 3, 4, 5u32] {
        let stage = stage(Platform::default(), &json!({}));
        let (begun, key) = (stage.begin(), jwe::ephemeral().unwrap());
        assert_eq!(begun.challenge.extra_params, json!(""));
        assert!(begun.cookie.starts_with("kbs-session-id=") && begun.cookie.contains("; Expires="));
        let mut evidence = stage.evidence(&begun, &key);
        // Each version of the report survives the form in which it is sent.
        let snp: Snp = serde_json::from_value(evidence.tee_evidence.primary_evidence.clone()).unwrap();
        let mut report: parma_psp::Report = snp.report().unwrap().try_into().unwrap();
        report[..4].copy_from_slice(&version.to_le_bytes());
        if version == 2 {
            report[0x188..0x18b].fill(0);
        }
        stage.guest.psp.sign(&mut report);
        evidence = stage.vouched(evidence.runtime_data, &report);
        let answer = stage.service.kbs_attest(Some(&id(&begun)), &evidence);
        let answer = answer.unwrap_or_else(|failure| panic!("version {version}: {failure:?}"));
        let token = answer["token"].as_str().unwrap();
        for holder in [Holder::Session(&id(&begun)), Holder::Token(token), Holder::Session(&id(&begun))] {
            assert_eq!(*jwe::open(&stage.get(holder, NAME).unwrap(), &key).unwrap(), KEY);
        }
        let trail = stage.service.trail().unwrap();
        let entry: Value = serde_json::from_str(trail.last().unwrap()).unwrap();
        assert_eq!((trail.len(), &entry["event"], &entry["key"]), (3, &json!("kbs"), &json!(NAME)));
        assert_eq!(entry["released"], json!(true));
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        assert_eq!(claims["tee-pubkey"]["alg"], json!("ECDH-ES+A256KW"));
        assert_eq!(claims["x-ms-sevsnpvm-hostdata"], json!(hex(&POLICY)));
    }
}

#[test]
fn another_version_or_kind_of_guest_has_no_session() {
    let stage = stage(Platform::default(), &json!({}));
    for version in ["0.1.1", "0.4.1", "0.4", "=0.4.0", "v0.4.0", "1.0.0", ""] {
        assert!(why(stage.auth(version, "snp")).starts_with("version: "), "{version}");
    }
    for tee in ["sample", "tdx", "SNP", ""] {
        assert!(why(stage.auth("0.4.0", tee)).starts_with("tee: "), "{tee}");
    }
}

/// Source: KBS tells all of these with one text (seen live); here each has its own.
#[test]
fn k01_k02_k03_evidence_for_something_else_is_refused_and_the_check_that_failed_is_named() {
    let stage = stage(Platform::default(), &json!({}));
    let key = jwe::ephemeral().unwrap();
    let other = Jwk::recipient(&jwe::ephemeral().unwrap().public_key());
    let attest =
        |begun: &Begun, evidence: &Attestation| why(stage.service.kbs_attest(Some(&id(begun)), evidence));
    // A report that vouches for something else, and for the same by another hash.
    let begun = stage.begin();
    let evidence = stage.evidence(&begun, &key);
    let report = stage.guest.psp.report(&[7; 64]);
    assert!(attest(&begun, &stage.vouched(evidence.runtime_data, &report)).starts_with("report-data: "));
    let begun = stage.begin();
    let evidence = stage.evidence(&begun, &key);
    let mut data = [0; 64];
    let canonical = evidence.runtime_data.canonical("").unwrap();
    data[..32].copy_from_slice(&<sha2::Sha256 as sha2::Digest>::digest(&canonical));
    let report = stage.guest.psp.report(&data);
    assert!(attest(&begun, &stage.vouched(evidence.runtime_data, &report)).starts_with("report-data: "));
    // K01: the host's key beside the guest's report.
    let begun = stage.begin();
    let mut evidence = stage.evidence(&begun, &key);
    evidence.runtime_data.tee_pubkey = other;
    assert!(attest(&begun, &evidence).starts_with("report-data: "));
    // K02: evidence for another session, and shown twice.
    let (begun, foreign) = (stage.begin(), stage.begin());
    let evidence = stage.evidence(&begun, &key);
    assert!(attest(&foreign, &evidence).starts_with("nonce: "));
    stage.service.kbs_attest(Some(&id(&begun)), &evidence).unwrap();
    assert!(attest(&begun, &evidence).starts_with("session: "), "K10: a session takes evidence once");
    assert!(attest(&foreign, &evidence).starts_with("session: "), "a nonce serves once");
    // No session.
    for session in [None, Some(""), Some("00")] {
        assert!(why(stage.service.kbs_attest(session, &evidence)).starts_with("session: "));
    }
    // Evidence of another processor.
    let begun = stage.begin();
    let stranger = self::stage(Platform::default(), &json!({}));
    assert!(attest(&begun, &stranger.evidence(&begun, &key)).starts_with("root: "));
}

#[test]
fn k08_what_would_be_read_in_another_way_is_refused() {
    let stage = stage(Platform::default(), &json!({}));
    let key = jwe::ephemeral().unwrap();
    let with = |change: &dyn Fn(&mut Attestation)| {
        let begun = stage.begin();
        let mut evidence = stage.evidence(&begun, &key);
        change(&mut evidence);
        why(stage.service.kbs_attest(Some(&id(&begun)), &evidence))
    };
    let toml = json!({"format": "toml", "body": "algorithm = \"sha256\""});
    assert!(with(&|e| e.init_data = Some(toml.clone())).starts_with("init-data: "));
    assert!(with(&|e| e.tee_evidence.additional_evidence = "{}".into()).starts_with("additional evidence: "));
    let jwk = json!(Jwk::recipient(&key.public_key()));
    for alg in ["RSA1_5", "RSA-OAEP-256", "ECDH-ES", ""] {
        let mut jwk = jwk.clone();
        jwk["alg"] = json!(alg);
        let jwk: Jwk = serde_json::from_value(jwk).unwrap();
        assert!(with(&|e| e.runtime_data.tee_pubkey = jwk.clone()).starts_with("tee-pubkey: "), "{alg}");
    }
    // K03: a key that says more, or says it twice, is none; neither is an RSA key.
    let (x, y) = (&jwk["x"], &jwk["y"]);
    for text in [
        format!(r#"{{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":{x},"y":{y},"use":"enc"}}"#),
        format!(r#"{{"kty":"EC","crv":"P-256","alg":"ECDH-ES+A256KW","x":{x},"x":{y},"y":{y}}}"#),
        r#"{"kty":"RSA","alg":"RSA1_5","n":"AQAB","e":"AQAB"}"#.to_owned(),
    ] {
        assert!(serde_json::from_str::<Jwk>(&text).is_err(), "{text}");
    }
    // A bit that the form of the report does not have: then the signature is of other bytes.
    let begun = stage.begin();
    let evidence = stage.evidence(&begun, &key);
    let snp: Snp = serde_json::from_value(evidence.tee_evidence.primary_evidence.clone()).unwrap();
    let mut report: parma_psp::Report = snp.report().unwrap().try_into().unwrap();
    report[0x198] = 1;
    stage.guest.psp.sign(&mut report);
    let refused = match Snp::new(&report, &stage.guest.certificates) {
        Err(_) => true,
        Ok(_) => {
            let evidence = stage.vouched(evidence.runtime_data, &report);
            stage.service.kbs_attest(Some(&id(&begun)), &evidence).is_err()
        }
    };
    assert!(refused);
}

#[test]
fn k05_k10_each_resource_is_judged_by_its_rule_as_it_is_when_it_is_asked_for() {
    let stage = stage(Platform::default(), &json!({}));
    let (session, token, key) = stage.attested();
    jwe::open(&stage.get(Holder::Session(&session), NAME).unwrap(), &key).unwrap();
    for (change, check) in [
        (json!({"minimum_tcb": "snp=25"}), "minimum-tcb: "),
        (json!({"host_data": [hex(&[0; 32])]}), "host-data: "),
        (json!({"measurements": [hex(&[0; 48])]}), "measurement: "),
        (json!({"chips": [hex(&[1; 64])]}), "allowed-chip: "),
        (json!({"require_revocation": true}), "revocation: "),
        // No log goes this way.
        (json!({"audit": {}}), "audit-chain: "),
    ] {
        stage.service.set_rules(rules(&change));
        for holder in [Holder::Session(&session), Holder::Token(&token)] {
            let refused = why(stage.get(holder, NAME));
            assert!(refused.starts_with(check), "{refused}");
        }
        let trail = stage.service.trail().unwrap();
        let entry: Value = serde_json::from_str(trail.last().unwrap()).unwrap();
        assert!(entry["why"].as_str().unwrap().starts_with(check), "{entry}");
    }
    stage.service.set_rules(rules(&json!({})));
    stage.get(Holder::Session(&session), NAME).unwrap();
    for (name, reason) in [
        ("default/key/none", "there is no rule"),
        ("data", "there is no rule"),
        ("other/key/data", "there is no key"),
        ("../key/data", "there is no rule"),
    ] {
        assert!(why(stage.get(Holder::Session(&session), name)).starts_with(reason), "{name}");
    }
}

#[test]
fn k02_a_session_without_evidence_and_tokens_of_other_ways_get_nothing() {
    let stage = stage(Platform::default(), &json!({}));
    let begun = stage.begin();
    let none = "session: there is none";
    assert!(why(stage.get(Holder::Session(&id(&begun)), NAME)).starts_with(none), "challenged only");
    assert!(why(stage.service.kbs_resource(None, NAME)).starts_with(none));
    let (session, token, _) = stage.attested();
    let forged = format!("{}x", &token[..token.len() - 1]);
    for holder in [Holder::Session("00"), Holder::Token(""), Holder::Token(&session), Holder::Token(&forged)]
    {
        assert!(why(stage.get(holder, NAME)).starts_with(none), "{holder:?}");
    }
    // Its token is none of a managed HSM's callers.
    let request: ReleaseRequest = serde_json::from_value(json!({"target": token})).unwrap();
    assert!(why(stage.service.release(NAME, &request)).starts_with("the token is not one"));
}
