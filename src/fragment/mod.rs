//! Policy fragments: signed additions to the policy, as far as they can be judged without the policy.
//!
//! A fragment travels as a COSE_Sign1 message (RFC 9052) whose protected header names who issued it (a did:x509), what
//! series it belongs to (its feed), its number in that series (its security version number, SVN) and the certificate
//! chain of the key that signed it. [`verify`] promises, of what it returns, that
//!
//! - the message is the one strict encoding of its content: definite lengths, shortest numbers, no label twice ([`cbor`],
//!   and [`der`] in its certificates);
//! - everything that it says comes from the protected header (attack F05);
//! - the chain is valid up to its last certificate ([`certificate`]), the issuer is a did:x509 that pins a certificate of
//!   that chain and describes its leaf ([`did`]), and so whoever trusts the issuer's text trusts the chain (attack F04);
//! - the signature is the leaf's, by the one algorithm that its kind of key allows ([`key`]).
//!
//! Not a byte of the payload has been interpreted by then (attack F02). Whether the issuer, the feed and the SVN are
//! welcome is the policy's decision; what the payload may say is [`crate::gate`]'s and the framework's.
//!
//! There is no clock to trust in a guest, so *expiry is not an event*: a chain is valid if its certificates are valid
//! together, at the end of its leaf's life. A fragment is taken back by raising the minimum SVN, not by waiting.
//! `docs/fragments.md` is the page for those who sign fragments.

pub mod cbor;
pub mod certificate;
pub mod cose;
pub mod der;
pub mod did;
pub mod key;

use serde::{Deserialize, Serialize};

pub use cose::{Envelope, verify};

/// Longest message, in bytes.
pub const MAX_FRAGMENT: usize = 512 << 10;
/// Most certificates of a chain.
pub const MAX_CHAIN: usize = 8;
/// Longest certificate, in bytes.
pub const MAX_CERTIFICATE: usize = 8 << 10;
/// Longest issuer and feed, in bytes.
pub const MAX_NAME: usize = 1024;
/// The content type of a fragment that is a compiled image.
pub const CONTENT_TYPE: &str = "application/vnd.parma.fragment";

/// What is wrong with a fragment, in the order in which it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Problem {
    /// It is not a strictly encoded, tagged COSE_Sign1 message with its payload, or it is longer than [`MAX_FRAGMENT`].
    Envelope,
    /// A header parameter is missing, is there twice, has the wrong type, stands in the unprotected header, or is critical.
    Header,
    /// The algorithm is not supported, or is not the one of the leaf's kind of key.
    Algorithm,
    /// The certificates are not a valid chain of at least two.
    Chain,
    /// The issuer is not a did:x509 that describes the chain.
    Issuer,
    /// The signature is not the leaf's.
    Signature,
    /// The content is not of type [`CONTENT_TYPE`].
    ContentType,
    /// There is no SVN in the protected header, or it is not a number from 0 to 2³²−1.
    Svn,
    /// The SVN is lower than that of a fragment of this issuer and feed that is in force already.
    Rollback,
    /// The payload is not a valid fragment image.
    Payload,
}

impl Problem {
    /// The end of a sentence that begins with "the fragment", and the remedy.
    pub const fn explained(self) -> &'static str {
        match self {
            Self::Envelope => "is no strictly encoded COSE_Sign1 message; make it with `parma fragment sign`",
            Self::Header => {
                "has a header parameter too many, too few or of a wrong type; make it with `parma fragment sign`"
            }
            Self::Algorithm => {
                "is signed by an algorithm that its key may not use; take ES256 for P-256, ES384 for P-384, PS256/384/512 for RSA"
            }
            Self::Chain => {
                "has no valid chain of two or more certificates; give the chain, leaf first, with all its authorities"
            }
            Self::Issuer => {
                "names an issuer that does not describe its chain; the did:x509 pins an authority and fits the leaf"
            }
            Self::Signature => "is not signed by its leaf's key; sign it again",
            Self::ContentType => {
                "is no compiled fragment; compile it with `parma policy compile --fragment` before it is signed"
            }
            Self::Svn => "has no SVN from 0 to 4294967295 in its protected header; sign it with `--svn`",
            Self::Rollback => "is older than one of its feed that is in force; load the newer one",
            Self::Payload => {
                "has a content that is no fragment image; compile it with the guest's version of `parma policy compile --fragment`"
            }
        }
    }
}

impl core::fmt::Display for Problem {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.explained())
    }
}

impl core::error::Error for Problem {}
