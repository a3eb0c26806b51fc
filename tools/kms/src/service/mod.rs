//! The key service without its wire: what each endpoint takes, checks and gives.
//!
//! Three ways lead to a key, and all end in one judgement ([`crate::verify`]) against the key's rule at the time of the release:
//!
//! - sealed, for Parma's init: an offer ([`Service::offer`]), which the host carries to the guest, and the guest's answer
//!   ([`Service::release_sealed`]); the key goes into the sealed channel;
//! - by token, for sidecars: evidence against a token with Microsoft's claims ([`Service::attest`]), the token against the key
//!   ([`Service::release`]), wrapped to the RSA key that the report vouched for;
//! - by session, for clients of Confidential Containers ([`kbs`]).
//!
//! Only the first can show a guest's audit log, since only the init's own reports vouch for its head: a key whose rule demands
//! something of the log goes no other way.
//!
//! An offer and a token serve once (attack K02). A token is a receipt for evidence that the service still has: at the release the
//! evidence is judged again, against the rule as it then is (attack K10). An entry of the audit trail is on the disk before a key
//! leaves.

pub mod kbs;

use crate::channel::{Offer, Refused, random};
use crate::history::{self, Line};
use crate::rules::{Rule, Rules};
use crate::store::Store;
use crate::token::{self, Signet};
use crate::verify::{
    Check, Checklist, Evidence, Expected, Moment, Report, ReportData, Roots, RuntimeHash, TcbLayout, hex,
    verify,
};
use anyhow::Result;
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use parma_guest::attest::channel::KEY;
use parma_guest::wire::Order;
use parma_release::rsa_aes::{Wrapping, rsa_key, wrap};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Offers and tokens that wait at a time; when there are more, the oldest is forgotten.
const MAX_WAITING: usize = 4096;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(token::LIFE);

/// Reads base64 with or without padding.
const LAX: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LAX);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LAX.with_encode_padding(false));

/// Why a request was not done.
#[derive(Debug)]
pub enum Failure {
    /// It is malformed.
    Request(String),
    /// The evidence, or what it is for, is not good enough. The list has each check.
    Refused(String, Option<Checklist>),
    /// The service itself failed; the log has the cause.
    Service(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Service(error)
    }
}

fn malformed<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Request(why.into()))
}

fn refused<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Refused(why.into(), None))
}

fn of_list(list: Checklist) -> Failure {
    let why = match list.first_failure() {
        Some(item) => format!("{}: {}", item.check, item.detail),
        None => "the report was not judged to its end".into(),
    };
    Failure::Refused(why, Some(list))
}

/// Things that wait for their use, and not for long.
struct Waiting<K, V> {
    waiting: Mutex<HashMap<K, (Instant, V)>>,
    /// For how long.
    patience: Duration,
}

impl<K: Hash + Eq + Clone, V> Waiting<K, V> {
    fn new(patience: Duration) -> Self {
        Self { waiting: Mutex::default(), patience }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, (Instant, V)>> {
        // Every change is a single call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, key: K, value: V) {
        let mut waiting = self.lock();
        waiting.retain(|_, (since, _)| since.elapsed() < self.patience);
        if waiting.len() >= MAX_WAITING
            && let Some(oldest) =
                waiting.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| key.clone())
        {
            waiting.remove(&oldest);
        }
        waiting.insert(key, (Instant::now(), value));
    }

    /// SECURITY (K02): takes it, so that of several that come with the same one only one gets it.
    fn take(&self, key: &K) -> Option<V> {
        let (since, value) = self.lock().remove(key)?;
        (since.elapsed() < self.patience).then_some(value)
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Waiting<K, V> {
    /// Looks at it; it stays for its time.
    fn get(&self, key: &K) -> Option<V> {
        let waiting = self.lock();
        let (since, value) = waiting.get(key)?;
        (since.elapsed() < self.patience).then(|| value.clone())
    }
}

/// Evidence that was good when it came.
struct Shown {
    report: Vec<u8>,
    certificates: Vec<Vec<u8>>,
    endorsement: Option<Vec<u8>>,
    /// What the report vouches for, and how it was hashed.
    runtime_data: Vec<u8>,
    hash: RuntimeHash,
}

/// The service.
pub struct Service {
    store: Store,
    rules: Mutex<Rules>,
    roots: Roots,
    /// Revocation lists, and certificates that guests need not bring.
    bundle: crate::bundle::Bundle,
    signet: Signet,
    offers: Waiting<[u8; 16], Offer>,
    shown: Waiting<String, Shown>,
    sessions: kbs::Sessions,
}

/// What a guest, or the host for it, answers to an offer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedRequest {
    offer: String,
    /// The name of the key that is asked for.
    name: String,
    /// The guest's ephemeral key.
    key: String,
    /// The head of its audit log.
    audit: String,
    report: String,
    #[serde(default)]
    certificates: Vec<String>,
    endorsement: Option<String>,
    history: Option<ShownHistory>,
}

/// What the guest was asked for, where the key's rule demands something of that.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShownHistory {
    policy: String,
    entries: Vec<Line>,
}

/// A guest that is to be offered a channel.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OfferRequest {
    /// The name of the key that will be asked for.
    name: Option<String>,
}

/// Evidence as Microsoft's attestation service takes it.
#[derive(Deserialize)]
pub struct AttestRequest {
    report: String,
    #[serde(rename = "runtimeData")]
    runtime_data: RuntimeData,
}

#[derive(Deserialize)]
struct RuntimeData {
    data: String,
}

#[derive(Deserialize)]
struct SnpReport {
    #[serde(rename = "SnpReport")]
    report: String,
    #[serde(rename = "VcekCertChain")]
    chain: String,
    #[serde(rename = "Endorsements")]
    endorsements: Option<String>,
}

#[derive(Deserialize)]
struct Endorsements {
    #[serde(rename = "Uvm", default)]
    uvm: Vec<String>,
}

/// A token against a key.
#[derive(Deserialize)]
pub struct ReleaseRequest {
    target: String,
    /// How to wrap it.
    enc: Option<String>,
}

fn decode(engine: &GeneralPurpose, what: &str, text: &str) -> Result<Vec<u8>, Failure> {
    engine.decode(text).or_else(|_| malformed(format!("{what} is not in base64")))
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Service {
    /// A service with these keys and rules.
    ///
    /// # Errors
    /// The store fails, or the system has no randomness.
    pub fn new(store: Store, rules: Rules, roots: Roots, bundle: crate::bundle::Bundle) -> Result<Self> {
        let signet = Signet::new(&store.own("token", || Ok(random::<32>()?.to_vec()))?)?;
        let rules = Mutex::new(rules);
        let (offers, shown) = (Waiting::new(PATIENCE), Waiting::new(PATIENCE));
        let sessions = kbs::Sessions::new(PATIENCE);
        Ok(Self { store, rules, roots, bundle, signet, offers, shown, sessions })
    }

    /// Takes other rules from now on; what was shown under the old ones is judged by the new ones (attack K10).
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// The audit trail, oldest first.
    ///
    /// # Errors
    /// The store fails.
    pub fn trail(&self) -> Result<Vec<String>> {
        self.store.trail()
    }

    /// What tokens are signed with, as a JWK set.
    #[must_use]
    pub fn key_set(&self) -> Value {
        self.signet.key_set()
    }

    fn rule(&self, name: &str) -> Result<Rule, Failure> {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        // A name that is not there and one that is not for this guest are told apart by nobody who has no evidence: the
        // names are in URLs anyway.
        rules.keys.get(name).cloned().map_or_else(|| refused("there is no rule for a key of this name"), Ok)
    }

    fn certificates(&self, shown: &[Vec<u8>]) -> Vec<Vec<u8>> {
        [shown, &self.bundle.certificates].concat()
    }

    fn note(
        &self,
        event: &str,
        name: &str,
        report: &[u8],
        outcome: &Result<(), &Failure>,
    ) -> Result<(), Failure> {
        let report = Report::read(report).ok();
        let why = match outcome {
            Ok(()) => Value::Null,
            Err(Failure::Request(why) | Failure::Refused(why, _)) => json!(why),
            Err(Failure::Service(_)) => json!("the service failed"),
        };
        self.store.audit(&json!({
            "time": Moment::now().to_string(),
            "event": event,
            "key": name.chars().take(crate::rules::MAX_NAME).collect::<String>(),
            "released": outcome.is_ok(),
            "why": why,
            "measurement": report.as_ref().map(|r| hex(&r.measurement())),
            "host_data": report.as_ref().map(|r| hex(&r.host_data())),
            "chip": report.as_ref().map(|r| hex(&r.chip_id())),
        }))?;
        Ok(())
    }

    /// A fresh offer: `{offer, nonce, key, audit}`, the last being whether the key's rule demands something of the audit log.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn offer(&self, request: &OfferRequest) -> Result<Value, Failure> {
        let rule = request.name.as_deref().and_then(|name| self.rule(name).ok());
        let audit = rule.is_some_and(|rule| rule.expected.audit.is_some());
        let id: [u8; 16] = random()?;
        let offer = Offer::new()?;
        let (nonce, key) = offer.parts();
        self.offers.put(id, offer);
        let (nonce, key) = (BASE64.encode(nonce), BASE64.encode(key));
        Ok(json!({"offer": hex(&id), "nonce": nonce, "key": key, "audit": audit}))
    }

    /// A volume's key for the guest that answers an offer: `{message}`, to be put into the channel.
    ///
    /// # Errors
    /// The evidence does not satisfy the key's rule, or does not answer the offer.
    pub fn release_sealed(&self, request: &SealedRequest) -> Result<Value, Failure> {
        let report = decode(&BASE64, "the report", &request.report)?;
        let result = self.try_release_sealed(request, &report);
        // SECURITY: no key leaves that is not in the trail.
        self.note("sealed", &request.name, &report, &result.as_ref().map(|_| ()))?;
        result
    }

    fn try_release_sealed(&self, request: &SealedRequest, report: &[u8]) -> Result<Value, Failure> {
        let id = crate::verify::from_hex(&request.offer);
        let guest: Result<[u8; KEY], _> = decode(&BASE64, "the key", &request.key)?.try_into();
        let audit: Result<[u8; 32], _> = decode(&BASE64, "the audit head", &request.audit)?.try_into();
        let (Some(id), Ok(guest), Ok(audit)) = (id, guest, audit) else {
            return malformed("an offer has 16 bytes, a key 65, an audit head 32");
        };
        let certificates = request
            .certificates
            .iter()
            .map(|text| decode(&BASE64, "a certificate", text))
            .collect::<Result<Vec<_>, _>>()?;
        let endorsement = request
            .endorsement
            .as_deref()
            .map(|text| decode(&BASE64, "the endorsement", text))
            .transpose()?;
        let policy = match &request.history {
            Some(shown) => decode(&BASE64, "the policy", &shown.policy)?,
            None => Vec::new(),
        };
        let rule = self.rule(&request.name)?;
        let Some(offer) = self.offers.take(&id) else {
            return refused("the offer is not known any more: it serves once, and for five minutes");
        };
        let certificates = self.certificates(&certificates);
        let evidence = Evidence {
            report,
            certificates: &certificates,
            revocation_lists: &self.bundle.revocation_lists,
            endorsement: endorsement.as_deref(),
        };
        // The log is judged after the report that vouches for its head.
        let mut expected = rule.expected;
        let demands = expected.audit.take();
        let (mut peer, mut list) =
            match offer.accept(&guest, &audit, &evidence, &expected, &self.roots, Moment::now()) {
                Ok(accepted) => accepted,
                Err(Refused::Evidence(list)) => return Err(of_list(list)),
                Err(Refused::Key) => return malformed("the guest's key is no point of P-256"),
            };
        if let (Some(demands), Ok(report)) = (demands, Report::read(report)) {
            let lines = request.history.as_ref().map(|shown| &shown.entries[..]);
            let shown = lines.map(|lines| history::Shown { policy: &policy, lines });
            history::judge_shown(&mut list, shown, report.host_data(), audit, &demands);
        }
        if !list.passed() {
            return Err(of_list(list));
        }
        let Some(key) = self.store.key(&request.name)? else {
            return refused("there is no key of this name");
        };
        let Ok(key) = <[u8; 32]>::try_from(key) else { return refused("this key is none of a volume") };
        let message = peer.seal(&Order::Key { key, least_generation: rule.least_generation })?;
        Ok(json!({"message": BASE64.encode(message)}))
    }

    /// Evidence against a token: `{token}`.
    ///
    /// # Errors
    /// It is not genuine, or can be debugged, or does not vouch for the runtime data.
    pub fn attest(&self, request: &AttestRequest) -> Result<Value, Failure> {
        let snp = decode(&BASE64_URL, "the report", &request.report)?;
        let Ok(snp) = serde_json::from_slice::<SnpReport>(&snp) else {
            return malformed("the report is no JSON of SnpReport, VcekCertChain and Endorsements");
        };
        let report = decode(&BASE64_URL, "SnpReport", &snp.report)?;
        let chain = decode(&BASE64_URL, "VcekCertChain", &snp.chain)?;
        let mut bundle = crate::bundle::Bundle::default();
        if bundle.add(&chain).is_err() {
            return malformed("VcekCertChain is no chain of certificates in PEM");
        }
        let endorsement = match &snp.endorsements {
            None => None,
            Some(text) => {
                let text = decode(&BASE64_URL, "Endorsements", text)?;
                let Ok(endorsements) = serde_json::from_slice::<Endorsements>(&text) else {
                    return malformed("Endorsements is no JSON of Uvm");
                };
                endorsements.uvm.first().map(|text| decode(&BASE64_URL, "Uvm", text)).transpose()?
            }
        };
        let runtime_data = decode(&BASE64_URL, "the runtime data", &request.runtime_data.data)?;
        let hash = RuntimeHash::Sha256;
        let shown = Shown { report, certificates: bundle.certificates, endorsement, runtime_data, hash };
        let id = hex(&random::<16>()?);
        let mut claims = self.claims_of_genuine(&shown, &id)?;
        if let Ok(runtime) = serde_json::from_slice::<Value>(&shown.runtime_data) {
            claims["x-ms-runtime"] = runtime;
        }
        self.shown.put(id, shown);
        Ok(json!({"token": self.signet.sign(&claims)}))
    }

    /// What evidence says, if it is true.
    fn claims_of_genuine(&self, shown: &Shown, id: &str) -> Result<Value, Failure> {
        let Ok(report) = Report::read(&shown.report) else {
            return Err(of_list(self.judge(shown, &Expected::default())));
        };
        // Whether these are the right guest and policy is the keys' rules' to say; here, whether it is true.
        let genuine = Expected {
            measurements: vec![report.measurement()],
            policies: vec![report.host_data()],
            vmpl: report.vmpl(),
            masked_chip: true,
            ..Expected::default()
        };
        let list = self.judge(shown, &genuine);
        if !list.passed() {
            return Err(of_list(list));
        }
        let turin =
            list.items.iter().any(|item| item.check == Check::Product && item.detail.starts_with("Turin"));
        let mut claims = token::claims(&report, if turin { TcbLayout::Zen5 } else { TcbLayout::Zen3And4 });
        let now = unix_now();
        let issuer = self.rules.lock().unwrap_or_else(PoisonError::into_inner).issuer.clone();
        claims["iss"] = json!(issuer);
        claims["iat"] = json!(now);
        claims["nbf"] = json!(now);
        claims["exp"] = json!(now + token::LIFE);
        claims["jti"] = json!(id);
        claims["x-parma-emulated"] = json!(list.emulated);
        Ok(claims)
    }

    fn judge(&self, shown: &Shown, expected: &Expected) -> Checklist {
        let certificates = self.certificates(&shown.certificates);
        let evidence = Evidence {
            report: &shown.report,
            certificates: &certificates,
            revocation_lists: &self.bundle.revocation_lists,
            endorsement: shown.endorsement.as_deref(),
        };
        let report_data = Some(ReportData::HashOf(shown.hash, shown.runtime_data.clone()));
        verify(&evidence, &Expected { report_data, ..expected.clone() }, &self.roots, Moment::now())
    }

    /// A token against a key, wrapped to the guest that the token is of: `{value: JWS}`, in which the key is where managed HSMs
    /// have it.
    ///
    /// # Errors
    /// The token is not this service's, or was used, or its evidence does not satisfy the key's rule as it now is.
    pub fn release(&self, name: &str, request: &ReleaseRequest) -> Result<Value, Failure> {
        let wrapping = match request.enc.as_deref() {
            // What existing clients mean who do not say.
            None => Wrapping::Sha1,
            Some(enc) => Wrapping::named(enc).map_or_else(|| malformed("enc is none that is known"), Ok)?,
        };
        let claims = self.signet.read(&request.target, unix_now());
        let shown = claims.as_ref().and_then(|claims| self.shown.take(&claims["jti"].as_str()?.to_owned()));
        let result = match &shown {
            None => refused("the token is not one of this service, has expired, or was used"),
            Some(shown) => self.try_release(name, shown, wrapping),
        };
        let report = shown.as_ref().map_or(&[][..], |shown| &shown.report);
        self.note("token", name, report, &result.as_ref().map(|_| ()))?;
        result
    }

    fn try_release(&self, name: &str, shown: &Shown, wrapping: Wrapping) -> Result<Value, Failure> {
        let rule = self.rule(name)?;
        let list = self.judge(shown, &rule.expected);
        if !list.passed() {
            return Err(of_list(list));
        }
        let Some(key) = self.store.key(name)? else { return refused("there is no key of this name") };
        let to = rsa_key(&shown.runtime_data).map_err(|error| Failure::Request(format!("{error:#}")))?;
        // The key as a JWK, as managed HSMs wrap symmetric ones: its bytes.
        let wrapped = wrap(&key, &to, wrapping)?;
        let hsm = json!({
            "schema_version": "1.0",
            "header": {"kid": name, "alg": "dir", "enc": wrapping.name()},
            "ciphertext": BASE64_URL.encode(wrapped),
        });
        let request = json!({"api-version": "7.4", "enc": wrapping.name(), "kid": name});
        let payload = json!({"request": request, "response": {"key": {"key": {
            "kid": name, "kty": "oct-HSM", "key_ops": ["encrypt", "decrypt"], "key_hsm": BASE64_URL.encode(hsm.to_string()),
        }}}});
        Ok(json!({"value": self.signet.sign(&payload)}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// K02, K10: offers, tokens and sessions (of KBS, by cookie) alike.
    #[test]
    fn k02_what_waits_serves_once_and_not_after_its_time_and_the_oldest_gives_way() {
        let waiting = Waiting::new(Duration::from_secs(600));
        waiting.put(1, "a");
        assert_eq!((waiting.get(&1), waiting.take(&1), waiting.get(&1)), (Some("a"), Some("a"), None));
        for key in 0..=MAX_WAITING {
            waiting.put(key, "a");
        }
        assert_eq!(
            (waiting.get(&0), waiting.get(&1), waiting.get(&MAX_WAITING)),
            (None, Some("a"), Some("a"))
        );
        let expired = Waiting::new(Duration::ZERO);
        expired.put(1, "a");
        assert_eq!((expired.get(&1), expired.take(&1)), (None, None));
    }
}
