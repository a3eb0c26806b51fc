//! did:x509, version 0: names that pin an authority of a chain and describe its leaf
//! (<https://github.com/microsoft/did-x509>, `specification.md`).
//!
//! ```text
//! did:x509:0:sha256:<fingerprint of an authority>::subject:CN:example::eku:1.3.6.1.5.5.7.3.3
//! ```
//!
//! Every predicate must hold of the leaf. What the specification does not name is refused, a part or a fragment
//! identifier after the name included.

use super::certificate::{Certificate, Chain, EXT_KEY_USAGE, SUBJECT_ALT_NAME};
use super::der::{Invalid, Reader, Value, implicit, oid, tag};
use super::key::Hash;
use super::{MAX_NAME, Problem};
use alloc::string::String;
use alloc::vec::Vec;
use core::str;

const PREFIX: &str = "did:x509:0:";
/// The extension in which Sigstore's Fulcio says who identified the leaf's holder, 1.3.6.1.4.1.57264.1.1.
const FULCIO_ISSUER: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 1];

/// The labels of RFC 4514 that the specification uses, and the object identifiers of the attributes; other attributes go
/// by their number.
const LABELS: [(&str, &[u8]); 7] = [
    ("CN", &[0x55, 4, 3]),
    ("L", &[0x55, 4, 7]),
    ("ST", &[0x55, 4, 8]),
    ("O", &[0x55, 4, 10]),
    ("OU", &[0x55, 4, 11]),
    ("C", &[0x55, 4, 6]),
    ("STREET", &[0x55, 4, 9]),
];

/// Whether a did:x509 describes a valid chain.
pub fn check(did: &str, chain: &Chain<'_>) -> Result<(), Problem> {
    describes(did, chain).filter(|&holds| holds).map(|_| ()).ok_or(Problem::Issuer)
}

/// `None` where it is no did:x509 of this version.
fn describes(did: &str, chain: &Chain<'_>) -> Option<bool> {
    if did.len() > MAX_NAME {
        return None;
    }
    let mut parts = did.strip_prefix(PREFIX)?.split("::");
    let (algorithm, fingerprint) = parts.next()?.split_once(':')?;
    let hash = match algorithm {
        "sha256" => Hash::Sha256,
        "sha384" => Hash::Sha384,
        "sha512" => Hash::Sha512,
        _ => return None,
    };
    // SECURITY (F04): the pinned certificate is one above the leaf, so another leaf of the same name does not match.
    let mut holds =
        chain.authorities().any(|authority| base64url(&hash.of(&[authority.der()])) == fingerprint);
    let mut predicates = 0;
    for predicate in parts {
        let (name, value) = predicate.split_once(':')?;
        holds &= match name {
            "subject" => subject(value, chain.leaf())?,
            "san" => alternative_name(value, chain.leaf())?,
            "eku" => extended_key_usage(value, chain.leaf())?,
            "fulcio-issuer" => fulcio_issuer(value, chain.leaf())?,
            _ => return None,
        };
        predicates += 1;
    }
    (predicates > 0).then_some(holds)
}

/// RFC 4648 section 5, without padding.
pub fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let bits = chunk.iter().fold(0, |bits, &byte| bits << 8 | u32::from(byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).map(move |digit| char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]))
    });
    digits.collect()
}

/// A value of the name: `idchar` only, percent-encoding undone.
fn decoded(text: &str) -> Option<String> {
    let hex = |digit: u8| char::from(digit).to_digit(16);
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (&[high, low], after) = rest.split_first_chunk()?;
                rest = after;
                (hex(high)? << 4 | hex(low)?) as u8
            }
            b'.' | b'-' | b'_' => first,
            _ if first.is_ascii_alphanumeric() => first,
            _ => return None,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

/// The object identifier of an attribute that a name calls so. What has a label is not called by its number.
fn attribute(name: &str) -> Option<Vec<u8>> {
    if let Some((_, id)) = LABELS.iter().find(|(label, _)| *label == name) {
        return Some(Vec::from(*id));
    }
    oid(name).filter(|id| LABELS.iter().all(|(_, known)| known != id))
}

/// A text of the types whose characters are those of UTF-8.
fn text<'a>(value: &Value<'a>) -> Option<&'a str> {
    match value.tag {
        tag::UTF8_STRING | tag::PRINTABLE_STRING | tag::IA5_STRING => str::from_utf8(value.content).ok(),
        _ => None,
    }
}

fn subject(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    let items: Vec<&str> = value.split(':').collect();
    let (pairs, []) = items.as_chunks::<2>() else { return None };
    let mut holds = true;
    for (index, [key, value]) in pairs.iter().enumerate() {
        if pairs.iter().skip(index + 1).any(|[other, _]| other == key) {
            return None;
        }
        let (id, value) = (attribute(key)?, decoded(value)?);
        holds &=
            leaf.subject().iter().any(|(own, text_of)| *own == id && text(text_of) == Some(value.as_str()));
    }
    Some(holds)
}

/// Whether a sequence that an extension is has this value.
fn contains(extension: Option<&[u8]>, tag_of: u8, wanted: &[u8]) -> Option<bool> {
    let Some(extension) = extension else { return Some(false) };
    let search = || {
        let mut outer = Reader::new(extension);
        let mut list = outer.inside(tag::SEQUENCE)?;
        outer.end()?;
        let mut found = false;
        while !list.is_at_end() {
            let value = list.value()?;
            found |= value.tag == tag_of && value.content == wanted;
        }
        Ok::<_, Invalid>(found)
    };
    search().ok()
}

fn alternative_name(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    let (kind, value) = value.split_once(':')?;
    // RFC 5280 section 4.2.1.6.
    let number = match kind {
        "email" => 1,
        "dns" => 2,
        "uri" => 6,
        _ => return None,
    };
    contains(leaf.extension(SUBJECT_ALT_NAME), implicit(number), decoded(value)?.as_bytes())
}

fn extended_key_usage(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    contains(leaf.extension(EXT_KEY_USAGE), tag::OID, &oid(value)?)
}

fn fulcio_issuer(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    let value = decoded(value)?;
    let Some(issuer) = leaf.extension(FULCIO_ISSUER) else { return Some(false) };
    Some(str::from_utf8(issuer).ok()?.strip_prefix("https://") == Some(value.as_str()))
}
