//! A resource from the key broker of Confidential Containers, or from what speaks as it does (RCAR, version 0.4.0).
//!
//! Each resource has a session and a key of its own. The answer has to be encrypted to that key, by the one algorithm that was asked
//! for (attack K08).

use crate::Failure;
use crate::client::{Client, Identity};
use crate::evidence::Tee;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_release::jwe::{self, Jwe, Jwk};
use parma_release::rcar::{
    Attestation, COOKIE, Challenge, Composite, PREFIX, Request, RuntimeData, SAMPLE, SNP, Snp, VERSION,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha384};
use zeroize::Zeroizing;

/// Longest nonce that is taken, in bytes of its text.
const MAX_NONCE: usize = 1024;

/// Has a resource released: `REPOSITORY/TYPE/TAG`.
///
/// # Errors
/// The broker refuses, or what it answers is no resource.
pub fn resource(
    client: &Client,
    tee: &Tee,
    endpoint: &str,
    name: &str,
) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let is_part = |part: &str| {
        (1..=64).contains(&part.len())
            && !part.starts_with('.')
            && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c))
    };
    if name.split('/').count() != 3 || !name.split('/').all(is_part) {
        return Err(Failure::Request("a resource is called REPOSITORY/TYPE/TAG".into()));
    }
    let url = |path: &str| client.url(endpoint, &format!("{PREFIX}/{path}"));
    let auth = Request {
        version: VERSION.into(),
        tee: if matches!(tee, Tee::Sample) { SAMPLE } else { SNP }.into(),
        extra_params: json!({}),
    };
    let answer = client.post(&url("auth")?, &json!(auth), Identity::None)?;
    let cookie = answer.cookie.filter(|cookie| cookie.starts_with(&format!("{COOKIE}=")));
    let cookie = cookie.context("the key broker gives no session")?;
    let session = Identity::Cookie(&cookie);
    let challenge: Challenge =
        serde_json::from_value(answer.body).ok().context("the key broker gives no challenge")?;
    if challenge.nonce.len() > MAX_NONCE {
        return Err(Failure::Own(anyhow::anyhow!("the key broker's nonce is too long")));
    }
    let own = jwe::ephemeral()?;
    let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: Jwk::recipient(&own.public_key()) };
    let tee_evidence =
        Composite { primary_evidence: evidence(tee, &runtime_data)?, additional_evidence: String::new() };
    let attestation = Attestation { init_data: None, runtime_data, tee_evidence };
    client.post(&url("attest")?, &json!(attestation), session)?;
    let message = client.get(&url(&format!("resource/{name}"))?, session)?.body;
    let message: Jwe = serde_json::from_value(message).ok().context("the key broker's answer is no JWE")?;
    Ok(jwe::open(&message, &own).context("the key broker's answer")?)
}

/// The evidence for runtime data: of an SNP guest its report, of no hardware the digest alone.
fn evidence(tee: &Tee, runtime_data: &RuntimeData) -> Result<Value> {
    let digest = Sha384::digest(runtime_data.canonical("")?);
    if matches!(tee, Tee::Sample) {
        return Ok(json!({"svn": "1", "report_data": STANDARD.encode(digest)}));
    }
    let evidence = tee.evidence(&digest)?;
    Ok(serde_json::to_value(Snp::new(&evidence.report, &evidence.certificates)?)?)
}
