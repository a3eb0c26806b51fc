//! The protocol of Confidential Containers' key broker (RCAR: request, challenge, attestation, response), version 0.4.0.
//!
//! ```text
//! POST /kbs/v0/auth      {version, tee, extra-params}                         → a session's cookie, {nonce, extra-params}
//! POST /kbs/v0/attest    {runtime-data: {nonce, tee-pubkey}, tee-evidence}    → {token}
//! GET  /kbs/v0/resource/REPOSITORY/TYPE/TAG                                   → a JWE to tee-pubkey
//! ```
//!
//! The report vouches for nonce and key together: REPORT_DATA is the SHA-384 of the canonical JSON (RFC 8785) of
//! `{additional-evidence, nonce, tee-pubkey}`, and zeros. Everything in it is text that is read strictly, so two messages of one
//! canonical form are one message (attack K03).

use crate::jwe::Jwk;
use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::{CertTableEntry, CertType};
use sev::parser::ByteParser as _;

/// The version, which is taken literally.
pub const VERSION: &str = "0.4.0";
/// The name of a session's cookie.
pub const COOKIE: &str = "kbs-session-id";
/// Where the endpoints are.
pub const PREFIX: &str = "/kbs/v0";
/// What guests on SEV-SNP call themselves.
pub const SNP: &str = "snp";
/// What those call themselves that have no hardware.
pub const SAMPLE: &str = "sample";

/// Asks for a session.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Request {
    /// [`VERSION`].
    pub version: String,
    /// [`SNP`] or [`SAMPLE`].
    pub tee: String,
    /// Nothing that is looked at.
    #[serde(default)]
    pub extra_params: Value,
}

/// The answer to it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Challenge {
    /// The session's nonce: 32 bytes in base64.
    pub nonce: String,
    /// Parameters of other kinds of hardware.
    #[serde(default)]
    pub extra_params: Value,
}

/// What the report vouches for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RuntimeData {
    /// The session's.
    pub nonce: String,
    /// The guest's.
    pub tee_pubkey: Jwk,
}

/// Evidence of the guest, and of its devices.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Composite {
    /// The guest's: of SNP guests, [`Snp`].
    pub primary_evidence: Value,
    /// Its devices': none here.
    #[serde(default)]
    pub additional_evidence: String,
}

/// Shows evidence.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Attestation {
    /// What the guest was configured with, where HOST_DATA is its digest; under Parma HOST_DATA is the policy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_data: Option<Value>,
    /// What the report vouches for.
    pub runtime_data: RuntimeData,
    /// The report.
    pub tee_evidence: Composite,
}

impl RuntimeData {
    /// The bytes whose SHA-384 stands in REPORT_DATA.
    ///
    /// # Errors
    /// They cannot be written, which is not going to happen.
    pub fn canonical(&self, additional_evidence: &str) -> Result<Vec<u8>> {
        let whole = json!({
            "additional-evidence": additional_evidence, "nonce": self.nonce, "tee-pubkey": self.tee_pubkey,
        });
        serde_json_canonicalizer::to_vec(&whole).map_err(|why| anyhow!("no canonical JSON: {why}"))
    }
}

/// Evidence of an SNP guest, as the `sev` crate writes a report.
#[derive(Serialize, Deserialize)]
pub struct Snp {
    attestation_report: AttestationReport,
    #[serde(default)]
    cert_chain: Option<Vec<CertTableEntry>>,
}

impl Snp {
    /// Of a report and the certificates of the key that signed it, leaf first, in DER.
    ///
    /// # Errors
    /// It is no report.
    pub fn new(report: &[u8], certificates: &[Vec<u8>]) -> Result<Self> {
        let attestation_report =
            AttestationReport::from_bytes(report).map_err(|why| anyhow!("it is no report: {why}"))?;
        let leaf =
            if attestation_report.key_info.signing_key() == 1 { CertType::VLEK } else { CertType::VCEK };
        let kinds = [leaf, CertType::ASK, CertType::ARK];
        let entry =
            |(cert_type, data): (CertType, &Vec<u8>)| CertTableEntry { cert_type, data: data.clone() };
        let chain: Vec<_> = kinds.into_iter().zip(certificates).map(entry).collect();
        Ok(Self { attestation_report, cert_chain: (!chain.is_empty()).then_some(chain) })
    }

    /// The report as the processor signed it.
    ///
    /// Whether these are those bytes is for the signature to say: what a report has and this form has not would be missing.
    ///
    /// # Errors
    /// It is none.
    pub fn report(&self) -> Result<Vec<u8>> {
        let bytes = self.attestation_report.to_bytes().map_err(|why| anyhow!("it is no report: {why}"))?;
        Ok(bytes.to_vec())
    }

    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> Vec<Vec<u8>> {
        self.cert_chain.iter().flatten().map(|entry| entry.data.clone()).collect()
    }
}
