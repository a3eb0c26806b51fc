//! Tokens: JWS in compact form (RFC 7515), ES256, with the claims that Microsoft's attestation service gives to SNP guests.
//!
//! SECURITY (K08): a token has exactly one header, this service's own. There is no algorithm, key or certificate in it that a
//! reader could be made to believe.

use crate::verify::{Report, TcbLayout, hex};
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};

/// How long a token is good for, in seconds.
pub const LIFE: u64 = 300;
/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 32 << 10;

/// Signs tokens, and knows its own.
pub struct Signet {
    key: SigningKey,
    /// The first part of every token.
    header: String,
}

impl Signet {
    /// From a secret scalar.
    ///
    /// # Errors
    /// It is none.
    pub fn new(secret: &[u8]) -> Result<Self> {
        let key = SigningKey::from_slice(secret).ok().context("the token key is no scalar of P-256")?;
        let id = hex(&key.verifying_key().to_sec1_point(false).as_bytes()[1..17]);
        let header = json!({"alg": "ES256", "kid": id, "typ": "JWT"});
        Ok(Self { header: URL_SAFE_NO_PAD.encode(header.to_string()), key })
    }

    /// The public half, as a JWK set.
    #[must_use]
    pub fn key_set(&self) -> Value {
        let point = self.key.verifying_key().to_sec1_point(false);
        let point = point.as_bytes();
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": hex(&point[1..17]),
            "x": number(&point[1..33]), "y": number(&point[33..65]),
        }]})
    }

    /// A token with these claims.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let signed = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature: Signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// The claims of a token of its own that is good at this time (in seconds since 1970).
    #[must_use]
    pub fn read(&self, token: &str, now: u64) -> Option<Value> {
        if token.len() > MAX_TOKEN {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).ok()?).ok()?;
        if header != self.header || self.key.verifying_key().verify(signed.as_bytes(), &signature).is_err() {
            return None;
        }
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        let time = |name: &str| claims[name].as_u64();
        (time("nbf")? <= now && now < time("exp")?).then_some(claims)
    }
}

/// What a report says, as claims. It was judged before.
#[must_use]
pub fn claims(report: &Report, layout: TcbLayout) -> Value {
    let tcb = report.reported_tcb(layout);
    json!({
        "x-ms-attestation-type": "sevsnpvm",
        "x-ms-sevsnpvm-hostdata": hex(&report.host_data()),
        "x-ms-sevsnpvm-launchmeasurement": hex(&report.measurement()),
        "x-ms-sevsnpvm-reportdata": hex(&report.report_data()),
        "x-ms-sevsnpvm-reportid": hex(&report.report_id()),
        "x-ms-sevsnpvm-chipid": hex(&report.chip_id()),
        "x-ms-sevsnpvm-guestsvn": report.guest_svn(),
        "x-ms-sevsnpvm-vmpl": report.vmpl(),
        "x-ms-sevsnpvm-is-debuggable": report.is_debuggable(),
        "x-ms-sevsnpvm-migration-allowed": report.is_migratable(),
        "x-ms-sevsnpvm-idkeydigest": hex(&report.id_key_digest()),
        "x-ms-sevsnpvm-authorkeydigest": hex(&report.author_key_digest()),
        "x-ms-sevsnpvm-bootloader-svn": tcb.bootloader,
        "x-ms-sevsnpvm-tee-svn": tcb.tee,
        "x-ms-sevsnpvm-snpfw-svn": tcb.snp,
        "x-ms-sevsnpvm-microcode-svn": tcb.microcode,
    })
}
