//! The key broker of Confidential Containers, as its clients know it (RCAR, version 0.4.0; [`parma_release::rcar`]): a session with a
//! nonce, evidence for it, and resources, each encrypted to the key that the report vouched for.
//!
//! What differs from the broker that they know is refused there later or not at all: a session takes evidence once, and each resource
//! is judged by the rule of its key as it is when it is asked for (attack K10: the session of a guest that was good stays good there);
//! evidence of no hardware (`sample`), init-data and `RSA1_5` (attack K08) are not taken. A resource is the key of this name in the
//! store, `REPOSITORY/TYPE/TAG`.

use super::{Failure, PATIENCE, Service, Shown, Waiting, malformed, of_list, random, refused};
use crate::verify::{RuntimeHash, hex};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::PublicKey;
use parma_release::jwe;
use parma_release::rcar::{Attestation, COOKIE, Challenge, PREFIX, Request, SAMPLE, SNP, Snp, VERSION};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Sessions, by their cookies.
pub(super) struct Sessions {
    /// Nonces of those that have shown nothing.
    challenged: Waiting<String, String>,
    /// Those that have shown evidence that was good.
    attested: Waiting<String, Arc<Attested>>,
}

/// Evidence that was good when it came, and the key that it vouches for.
struct Attested {
    shown: Shown,
    key: PublicKey,
}

impl Sessions {
    pub(super) fn new(patience: Duration) -> Self {
        Self { challenged: Waiting::new(patience), attested: Waiting::new(patience) }
    }
}

/// Who asks for a resource.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// Of a session's cookie.
    Session(&'a str),
    /// Of the token that its evidence gave.
    Token(&'a str),
}

/// A session that has begun.
#[derive(Debug)]
pub struct Begun {
    /// What the cookie is set to.
    pub cookie: String,
    /// The answer.
    pub challenge: Challenge,
}

/// The value of the session's cookie among those of a request.
#[must_use]
pub fn session(cookies: &str) -> Option<&str> {
    cookies.split(';').find_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

impl Service {
    /// A session for one guest.
    ///
    /// # Errors
    /// It speaks another version, or is of another kind.
    pub fn kbs_auth(&self, request: &Request) -> Result<Begun, Failure> {
        if request.version != VERSION {
            return refused(format!("version: this is {VERSION}, and no other"));
        }
        match request.tee.as_str() {
            SNP => {}
            SAMPLE => {
                return refused("tee: evidence of kind sample is of no hardware, and nobody vouches for it");
            }
            _ => return refused("tee: only snp is known"),
        }
        let id = hex(&random::<16>()?);
        let nonce = STANDARD.encode(random::<32>()?);
        self.sessions.challenged.put(id.clone(), nonce.clone());
        let expires = httpdate::fmt_http_date(SystemTime::now() + PATIENCE);
        let cookie = format!("{COOKIE}={id}; Path={PREFIX}; HttpOnly; Expires={expires}");
        Ok(Begun { cookie, challenge: Challenge { nonce, extra_params: json!("") } })
    }

    /// Evidence for a session, which takes it once: `{token}`.
    ///
    /// # Errors
    /// There is no such session, or the evidence is not genuine, or not for its nonce and this key.
    pub fn kbs_attest(&self, session: Option<&str>, request: &Attestation) -> Result<Value, Failure> {
        // SECURITY (K02): whatever comes of it, the nonce is used up.
        let waiting = session.and_then(|id| self.sessions.challenged.take(&id.to_owned()));
        let (Some(id), Some(nonce)) = (session, waiting) else {
            return refused("session: there is none, or it has expired, or has shown its evidence");
        };
        if request.init_data.is_some() {
            return refused(
                "init-data: HOST_DATA is the digest of the guest's policy here, not of init-data",
            );
        }
        if !request.tee_evidence.additional_evidence.is_empty() {
            return refused("additional evidence: only that of the guest itself is judged");
        }
        let runtime_data = &request.runtime_data;
        if runtime_data.nonce != nonce {
            return refused("nonce: it is not that of this session");
        }
        let key = match runtime_data.tee_pubkey.for_recipient() {
            Ok(key) => key,
            Err(why) => return refused(format!("tee-pubkey: {why:#}")),
        };
        let Ok(snp) = serde_json::from_value::<Snp>(request.tee_evidence.primary_evidence.clone()) else {
            return malformed("the evidence is not that of an SNP guest");
        };
        let Ok(report) = snp.report() else { return malformed("the evidence has no report") };
        let shown = Shown {
            report,
            certificates: snp.certificates(),
            endorsement: None,
            runtime_data: runtime_data.canonical("")?,
            hash: RuntimeHash::Sha384,
        };
        let mut claims = self.claims_of_genuine(&shown, id)?;
        claims["tee-pubkey"] = json!(runtime_data.tee_pubkey);
        self.sessions.attested.put(id.to_owned(), Arc::new(Attested { shown, key }));
        Ok(json!({"token": self.signet.sign(&claims)}))
    }

    /// A resource, encrypted to the key of whoever showed evidence: a JWE.
    ///
    /// # Errors
    /// Nobody did, or the evidence does not satisfy the rule as it now is.
    pub fn kbs_resource(&self, holder: Option<Holder<'_>>, name: &str) -> Result<Value, Failure> {
        let id = match holder {
            None => None,
            Some(Holder::Session(id)) => Some(id.to_owned()),
            Some(Holder::Token(token)) => {
                let claims = self.signet.read(token, super::unix_now());
                claims.and_then(|claims| Some(claims["jti"].as_str()?.to_owned()))
            }
        };
        let attested = id.and_then(|id| self.sessions.attested.get(&id));
        let result = match &attested {
            None => refused("session: there is none that has shown evidence, or it has expired"),
            Some(attested) => self.try_resource(name, attested),
        };
        let report = attested.as_ref().map_or(&[][..], |attested| &attested.shown.report);
        // SECURITY: no key leaves that is not in the trail.
        self.note("kbs", name, report, &result.as_ref().map(|_| ()))?;
        result
    }

    fn try_resource(&self, name: &str, attested: &Attested) -> Result<Value, Failure> {
        let rule = self.rule(name)?;
        let list = self.judge(&attested.shown, &rule.expected);
        if !list.passed() {
            return Err(of_list(list));
        }
        let Some(key) = self.store.key(name)? else { return refused("there is no key of this name") };
        Ok(json!(jwe::seal(&key, &attested.key)?))
    }
}
