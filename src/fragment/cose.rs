//! COSE_Sign1 (RFC 9052 section 4.2), of which exactly what a fragment needs is understood.
//!
//! ```text
//! 18([ protected: bstr, unprotected: {}, payload: bstr, signature: bstr ])
//! ```
//!
//! | label | parameter | |
//! |---|---|---|
//! | 1 | alg | needed; see [`Algorithm`] |
//! | 2 | crit | refused: nothing critical is understood |
//! | 3 | content type | needed, text |
//! | 33 | x5chain | needed, an array of at least two certificates, leaf first |
//! | 15 | CWT claims | `iss` (1), `sub` (2) and "svn" in it; or instead of it |
//! | "iss", "feed", "svn" | | the same three, by name |
//!
//! Other parameters of the protected header are passed over. In the unprotected header none of these may stand.

use super::cbor::{Invalid, Item, Major, Reader, head};
use super::certificate::Chain;
use super::key::Algorithm;
use super::{MAX_CHAIN, MAX_FRAGMENT, MAX_NAME, Problem, did};
use alloc::vec::Vec;

const TAG: u64 = 18;
/// Most parameters of one header.
const MAX_PARAMETERS: usize = 32;

const ALG: i64 = 1;
const CRIT: i64 = 2;
const CONTENT_TYPE: i64 = 3;
const CWT_CLAIMS: i64 = 15;
const X5CHAIN: i64 = 33;
const CLAIM_ISSUER: i64 = 1;
const CLAIM_SUBJECT: i64 = 2;
const ISSUER: &str = "iss";
const FEED: &str = "feed";
const SVN: &str = "svn";
/// Names what is signed, RFC 9052 section 4.4.
const CONTEXT: &str = "Signature1";

/// What a valid message says. Nothing of its payload has been interpreted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    /// Who vouches for it: a did:x509 that describes its chain.
    pub issuer: &'a str,
    /// The series it belongs to.
    pub feed: &'a str,
    /// Its number in that series.
    pub svn: Option<u32>,
    /// What the payload is.
    pub content_type: &'a str,
    /// What was signed.
    pub payload: &'a [u8],
}

/// A header parameter's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label<'a> {
    Int(i64),
    Text(&'a str),
}

impl Label<'_> {
    /// Whether it means something here, so that it must be protected.
    fn is_ours(self) -> bool {
        matches!(
            self,
            Self::Int(ALG | CRIT | CONTENT_TYPE | CWT_CLAIMS | X5CHAIN) | Self::Text(ISSUER | FEED | SVN)
        )
    }
}

/// Reads a map; `value` reads the value of each label. No label occurs twice.
fn parameters<'a>(
    reader: &mut Reader<'a>,
    mut value: impl FnMut(Label<'a>, &mut Reader<'a>) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let mut labels = heapless::Vec::<Label<'_>, MAX_PARAMETERS>::new();
    for _ in 0..reader.map().map_err(envelope)? {
        let label = match reader.item().map_err(envelope)? {
            Item::Int(number) => Label::Int(number),
            Item::Text(text) => Label::Text(text),
            _ => return Err(Problem::Header),
        };
        if labels.contains(&label) || labels.push(label).is_err() {
            return Err(Problem::Header);
        }
        value(label, reader)?;
    }
    Ok(())
}

fn envelope(_: Invalid) -> Problem {
    Problem::Envelope
}

fn header(_: Invalid) -> Problem {
    Problem::Header
}

/// Sets what must not be set twice: a name may stand among the claims or beside them, not in both places.
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Problem> {
    if place.replace(value).is_some() { Err(Problem::Header) } else { Ok(()) }
}

#[derive(Default)]
struct Headers<'a> {
    algorithm: Option<i64>,
    content_type: Option<&'a str>,
    chain: heapless::Vec<&'a [u8], MAX_CHAIN>,
    issuer: Option<&'a str>,
    feed: Option<&'a str>,
    svn: Option<u32>,
}

impl<'a> Headers<'a> {
    fn read(protected: &'a [u8]) -> Result<Self, Problem> {
        let mut found = Self::default();
        let mut reader = Reader::new(protected);
        parameters(&mut reader, |label, reader| {
            match label {
                Label::Int(ALG) => found.algorithm = Some(reader.int().map_err(header)?),
                Label::Int(CRIT) => return Err(Problem::Header),
                Label::Int(CONTENT_TYPE) => found.content_type = Some(reader.text().map_err(header)?),
                Label::Int(X5CHAIN) => {
                    for _ in 0..reader.array().map_err(|_| Problem::Chain)? {
                        let certificate = reader.bytes().map_err(|_| Problem::Chain)?;
                        found.chain.push(certificate).map_err(|_| Problem::Chain)?;
                    }
                }
                Label::Int(CWT_CLAIMS) => parameters(reader, |claim, reader| match claim {
                    Label::Int(CLAIM_ISSUER) => once(&mut found.issuer, reader.text().map_err(header)?),
                    Label::Int(CLAIM_SUBJECT) => once(&mut found.feed, reader.text().map_err(header)?),
                    Label::Text(SVN) => found.svn(reader),
                    _ => reader.skip().map_err(header),
                })?,
                Label::Text(ISSUER) => once(&mut found.issuer, reader.text().map_err(header)?)?,
                Label::Text(FEED) => once(&mut found.feed, reader.text().map_err(header)?)?,
                Label::Text(SVN) => found.svn(reader)?,
                _ => reader.skip().map_err(header)?,
            }
            Ok(())
        })?;
        reader.end().map_err(header)?;
        Ok(found)
    }

    /// SECURITY (F03): a number and nothing else, so that 10 is more than 9.
    fn svn(&mut self, reader: &mut Reader<'a>) -> Result<(), Problem> {
        let svn = reader.int().ok().and_then(|number| u32::try_from(number).ok());
        once(&mut self.svn, svn.ok_or(Problem::Svn)?)
    }
}

/// A name: not empty, bounded, printable.
fn name(text: Option<&str>) -> Result<&str, Problem> {
    text.filter(|text| (1..=MAX_NAME).contains(&text.len()) && !text.chars().any(char::is_control))
        .ok_or(Problem::Header)
}

/// Checks everything that can be checked of a message by itself, as the [module above](super) promises.
pub fn verify(message: &[u8]) -> Result<Signed<'_>, Problem> {
    if message.len() > MAX_FRAGMENT {
        return Err(Problem::Envelope);
    }
    let mut reader = Reader::new(message);
    if reader.item() != Ok(Item::Tag(TAG)) || reader.array() != Ok(4) {
        return Err(Problem::Envelope);
    }
    let protected = reader.bytes().map_err(envelope)?;
    parameters(&mut reader, |label, reader| {
        if label.is_ours() { Err(Problem::Header) } else { reader.skip().map_err(envelope) }
    })?;
    // A detached payload would be null here.
    let payload = reader.bytes().map_err(envelope)?;
    let signature = reader.bytes().map_err(envelope)?;
    reader.end().map_err(envelope)?;

    let headers = Headers::read(protected)?;
    let algorithm =
        Algorithm::from_number(headers.algorithm.ok_or(Problem::Header)?).ok_or(Problem::Algorithm)?;
    let content_type = name(headers.content_type)?;
    let (issuer, feed) = (name(headers.issuer)?, name(headers.feed)?);
    let chain = Chain::validate(&headers.chain)?;
    did::check(issuer, &chain)?;
    let start = to_be_signed(protected.len());
    let length = head(Major::Bytes, payload.len() as u64);
    // No external data.
    let parts = [&start[..], protected, &head(Major::Bytes, 0), &length, payload];
    chain.leaf().key().verify(algorithm, &parts, signature)?;
    Ok(Signed { issuer, feed, svn: headers.svn, content_type, payload })
}

/// The start of what is signed, up to the bytes of the protected header.
fn to_be_signed(protected: usize) -> Vec<u8> {
    let mut start = Vec::from(&head(Major::Array, 4)[..]);
    put_text(&mut start, CONTEXT);
    start.extend_from_slice(&head(Major::Bytes, protected as u64));
    start
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&head(Major::Text, text.len() as u64));
    out.extend_from_slice(text.as_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&head(Major::Bytes, bytes.len() as u64));
    out.extend_from_slice(bytes);
}

fn put_int(out: &mut Vec<u8>, number: i64) {
    let (major, argument) = if number < 0 { (Major::Negative, !number) } else { (Major::Unsigned, number) };
    out.extend_from_slice(&head(major, argument as u64));
}

/// A message that is to be signed, for the host.
#[derive(Debug, Clone)]
pub struct Envelope<'a> {
    /// By what it will be signed.
    pub algorithm: Algorithm,
    /// Certificates, leaf first.
    pub chain: &'a [Vec<u8>],
    /// The issuer.
    pub issuer: &'a str,
    /// The series.
    pub feed: &'a str,
    /// Its number in the series.
    pub svn: u32,
    /// What the payload is.
    pub content_type: &'a str,
    /// The payload.
    pub payload: &'a [u8],
}

impl Envelope<'_> {
    fn protected(&self) -> Vec<u8> {
        let mut out = Vec::from(&head(Major::Map, 4)[..]);
        put_int(&mut out, ALG);
        put_int(&mut out, self.algorithm.number());
        put_int(&mut out, CONTENT_TYPE);
        put_text(&mut out, self.content_type);
        put_int(&mut out, CWT_CLAIMS);
        out.extend_from_slice(&head(Major::Map, 3));
        put_int(&mut out, CLAIM_ISSUER);
        put_text(&mut out, self.issuer);
        put_int(&mut out, CLAIM_SUBJECT);
        put_text(&mut out, self.feed);
        put_text(&mut out, SVN);
        put_int(&mut out, i64::from(self.svn));
        put_int(&mut out, X5CHAIN);
        out.extend_from_slice(&head(Major::Array, self.chain.len() as u64));
        self.chain.iter().for_each(|certificate| put_bytes(&mut out, certificate));
        out
    }

    /// The bytes to sign.
    pub fn to_be_signed(&self) -> Vec<u8> {
        let protected = self.protected();
        let mut out = to_be_signed(protected.len());
        out.extend_from_slice(&protected);
        put_bytes(&mut out, b"");
        put_bytes(&mut out, self.payload);
        out
    }

    /// The message with this signature.
    pub fn signed(&self, signature: &[u8]) -> Vec<u8> {
        let mut out = Vec::from(&head(Major::Tag, TAG)[..]);
        out.extend_from_slice(&head(Major::Array, 4));
        put_bytes(&mut out, &self.protected());
        out.extend_from_slice(&head(Major::Map, 0));
        put_bytes(&mut out, self.payload);
        put_bytes(&mut out, signature);
        out
    }
}
