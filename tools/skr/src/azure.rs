//! A key from Azure's services, or from what speaks as they do: evidence against a token (Microsoft Azure Attestation,
//! `SevSnpVm`, version 2020-10-01), the token against a key (key vault and managed HSM, version 7.4).
//!
//! SECURITY (K08): the answer is a JWS, of which the header is not looked at: it could only name a key of its own choosing. Who answers
//! is known from TLS and its pinned roots. How the key is wrapped was asked for, and is not read from the answer either.

use crate::Failure;
use crate::client::{Client, Identity};
use crate::evidence::{Evidence, Tee};
use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use p256::elliptic_curve::sec1::ToSec1Point as _;
use parma_release::rsa_aes::{Wrapping, key_set, unwrap};
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::traits::{PrivateKeyParts as _, PublicKeyParts as _};
use rsa::{BoxedUint, RsaPrivateKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Bits of the guest's key.
const BITS: usize = 2048;

/// The key to which keys are wrapped: made when the sidecar starts, and gone with it.
pub struct WrappingKey {
    own: RsaPrivateKey,
    /// Its public half, as runtime data: the very bytes that are hashed and sent (attack K03).
    runtime_data: String,
}

/// Which key to release, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Release<'a> {
    /// The attestation service.
    pub maa: &'a str,
    /// The key vault or managed HSM.
    pub akv: &'a str,
    /// The key: its name, or name and version.
    pub kid: &'a str,
    /// For services that ask who is there before they look at evidence.
    pub access_token: Option<&'a str>,
    /// How it is to be wrapped.
    pub wrapping: Wrapping,
}

impl WrappingKey {
    /// A new one. It takes a second or so.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new() -> Result<Self> {
        let mut random = rsa::rand_core::UnwrapErr(getrandom::SysRng);
        let own = RsaPrivateKey::new(&mut random, BITS).map_err(|_| anyhow!("no RSA key can be made"))?;
        let runtime_data = key_set(&own.to_public_key()).to_string();
        Ok(Self { own, runtime_data })
    }

    /// Has a key released: a JWK.
    ///
    /// # Errors
    /// A service refuses, or what it answers is no key.
    pub fn release(&self, client: &Client, tee: &Tee, release: &Release<'_>) -> Result<Value, Failure> {
        let Release { akv, kid, .. } = *release;
        let is_kid = (1..=160).contains(&kid.len())
            && kid.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_./".contains(&c))
            && kid.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
        if !is_kid {
            return Err(Failure::Request("kid is no name of a key".into()));
        }
        let url = client.url(akv, &format!("/keys/{kid}/release?api-version=7.4"))?;
        let token = attest(client, tee, release.maa, self.runtime_data.as_bytes())?;
        let body = json!({"target": token, "enc": release.wrapping.name()});
        let identity = release.access_token.map_or(Identity::None, Identity::Bearer);
        let answer = client.post(&url, &body, identity)?.body;
        self.open(&answer, release.wrapping)
            .context("what the service answers is no key for this guest")
            .map_err(Failure::Own)
    }

    /// The key in an answer.
    fn open(&self, answer: &Value, wrapping: Wrapping) -> Result<Value> {
        let json = |what: &'static str, text: Option<&str>| -> Result<Value> {
            let bytes = URL_SAFE_NO_PAD.decode(text.context(what)?.trim_end_matches('=')).context(what)?;
            serde_json::from_slice(&bytes).context(what)
        };
        let parts: Vec<&str> = answer["value"].as_str().context("no value")?.split('.').collect();
        ensure!(parts.len() == 3, "the value is no JWS");
        let payload = json("the payload is no JSON", Some(parts[1]))?;
        let key = &payload["response"]["key"]["key"];
        let hsm = json("key_hsm is no JSON", key["key_hsm"].as_str())?;
        let wrapped = hsm["ciphertext"].as_str().context("there is no ciphertext")?;
        let wrapped = URL_SAFE_NO_PAD
            .decode(wrapped.trim_end_matches('='))
            .context("the ciphertext is not in base64")?;
        let kty = key["kty"].as_str().context("the key has no type")?;
        jwk(kty, &unwrap(&wrapped, &self.own, wrapping)?)
    }
}

/// Evidence against a token.
///
/// # Errors
/// There is no evidence, or the service refuses it.
pub fn attest(client: &Client, tee: &Tee, endpoint: &str, runtime_data: &[u8]) -> Result<String, Failure> {
    let url = client.url(endpoint, "/attest/SevSnpVm?api-version=2020-10-01")?;
    let evidence = tee.evidence(&Sha256::digest(runtime_data))?;
    let answer = client.post(&url, &request(&evidence, runtime_data)?, Identity::None)?;
    let token = answer.body["token"].as_str();
    Ok(token.with_context(|| format!("{url} gives no token"))?.to_owned())
}

fn request(evidence: &Evidence, runtime_data: &[u8]) -> Result<Value> {
    let mut report = json!({
        "SnpReport": URL_SAFE.encode(&evidence.report), "VcekCertChain": URL_SAFE.encode(evidence.chain()),
    });
    if let Some(endorsement) = &evidence.endorsement {
        let endorsements = json!({"Uvm": [URL_SAFE.encode(endorsement)]});
        report["Endorsements"] = json!(URL_SAFE.encode(endorsements.to_string()));
    }
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).context("the system has no randomness")?;
    let empty = json!({"data": "", "dataType": ""});
    Ok(json!({
        "report": URL_SAFE.encode(report.to_string()),
        "runtimeData": {"data": URL_SAFE.encode(runtime_data), "dataType": "JSON"},
        "initTimeData": empty, "nonce": u64::from_le_bytes(nonce),
    }))
}

/// A released key as a JWK: the bytes of a symmetric one, or PKCS #8 of another.
fn jwk(kty: &str, key: &[u8]) -> Result<Value> {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    match kty {
        "oct" | "oct-HSM" => Ok(json!({"kty": "oct", "k": text(key)})),
        "RSA" | "RSA-HSM" => {
            let key = RsaPrivateKey::from_pkcs8_der(key).map_err(|_| anyhow!("it is no RSA key"))?;
            let number = |n: &BoxedUint| text(&Zeroizing::new(n.to_be_bytes_trimmed_vartime()));
            let [p, q] = key.primes() else { return Err(anyhow!("an RSA key has two primes")) };
            let exponents = [key.dp(), key.dq()].map(|part| part.map(number));
            let [Some(dp), Some(dq)] = exponents else { return Err(anyhow!("the RSA key is not whole")) };
            let qi = key.crt_coefficient().context("the RSA key is not whole")?;
            Ok(json!({
                "kty": "RSA", "n": number(key.n()), "e": number(key.e()), "d": number(key.d()),
                "p": number(p), "q": number(q), "dp": dp, "dq": dq, "qi": number(&qi),
            }))
        }
        "EC" | "EC-HSM" => {
            let (crv, point, scalar) = if let Ok(key) = p256::SecretKey::from_pkcs8_der(key) {
                ("P-256", key.public_key().to_sec1_point(false).as_bytes().to_vec(), key.to_bytes().to_vec())
            } else if let Ok(key) = p384::SecretKey::from_pkcs8_der(key) {
                ("P-384", key.public_key().to_sec1_point(false).as_bytes().to_vec(), key.to_bytes().to_vec())
            } else {
                return Err(anyhow!("it is no key of P-256 or P-384"));
            };
            let (x, y) = point[1..].split_at(point.len() / 2);
            Ok(
                json!({"kty": "EC", "crv": crv, "x": text(x), "y": text(y), "d": text(&Zeroizing::new(scalar))}),
            )
        }
        _ => Err(anyhow!("keys of its type are not known here")),
    }
}
