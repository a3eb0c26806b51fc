//! Endorsements of utility VMs: a COSE_Sign1 message in which the VM's builder says which measurement a build has, and its
//! security version number. The signer is pinned by a did:x509; the feed names the series of builds.

use parma_guest::fragment::{Problem, cose};
use serde::Deserialize;
use std::fmt;

/// What a relying party accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorser {
    /// The did:x509 of the builder.
    pub issuer: String,
    /// The series of builds.
    pub feed: String,
    /// The least security version number.
    pub minimum_svn: u64,
}

/// What an endorsement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsement {
    /// The did:x509 of who signed it.
    pub issuer: String,
    /// The series.
    pub feed: String,
    /// The security version number.
    pub svn: u64,
    /// The launch digest.
    pub measurement: [u8; 48],
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoEndorsement {
    /// Of the envelope, its chain or its signature.
    Envelope(Problem),
    /// What it says is not the JSON of an endorsement.
    Payload,
}

impl fmt::Display for NoEndorsement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope(problem) => write!(f, "the endorsement's message is not valid: {problem:?}"),
            Self::Payload => f.write_str("the endorsement's content is no measurement with an SVN"),
        }
    }
}

#[derive(Deserialize)]
struct Payload {
    #[serde(rename = "x-ms-sevsnpvm-guestsvn")]
    svn: Option<serde_json::Value>,
    #[serde(rename = "x-ms-sevsnpvm-launchmeasurement")]
    measurement: String,
}

impl Endorsement {
    /// Verifies the message by itself: its envelope, its chain, that the did:x509 describes the chain, its signature.
    /// Who it is of is for the caller to compare.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(message: &[u8]) -> Result<Self, NoEndorsement> {
        let signed = cose::verify(message).map_err(NoEndorsement::Envelope)?;
        let payload: Payload = serde_json::from_slice(signed.payload).map_err(|_| NoEndorsement::Payload)?;
        // A number, or a number in a text.
        let claimed = match &payload.svn {
            None => None,
            Some(serde_json::Value::String(text)) => Some(text.parse().map_err(|_| NoEndorsement::Payload)?),
            Some(value) => Some(value.as_u64().ok_or(NoEndorsement::Payload)?),
        };
        let svn = match (signed.svn.map(u64::from), claimed) {
            (Some(header), Some(claimed)) if header != claimed => return Err(NoEndorsement::Payload),
            (Some(svn), _) | (None, Some(svn)) => svn,
            (None, None) => return Err(NoEndorsement::Payload),
        };
        let measurement = super::from_hex(&payload.measurement).ok_or(NoEndorsement::Payload)?;
        Ok(Self { issuer: signed.issuer.to_owned(), feed: signed.feed.to_owned(), svn, measurement })
    }
}
