//! did:x509, version 0: names that pin an authority of a chain and describe its leaf
//! (<https://github.com/microsoft/did-x509>, `specification.md`).
//!
//!     did:x509:0:sha256:<fingerprint of an authority>::subject:CN:example::eku:1.3.6.1.5.5.7.3.3
//!
//! Every predicate must hold of the leaf. What the specification does not name is refused, a part or a fragment
//! identifier after the name included.

use super::certificate::{Certificate, Chain};
use super::key::Hash;
use super::{MAX_NAME, Problem};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use const_oid::db::rfc5280::{ID_CE_EXT_KEY_USAGE, ID_CE_SUBJECT_ALT_NAME};
use core::str;
use der::asn1::ObjectIdentifier;
use der::{Decode, Tag, Tagged};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

const PREFIX: &str = "did:x509:0:";
/// The extension in which Sigstore's Fulcio says who identified the leaf's holder.
const FULCIO_ISSUER: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.4.1.57264.1.1");

/// The labels of RFC 4514 that the specification uses; other attributes go by their number.
const LABELS: [(&str, &str); 7] = [
    ("CN", "2.5.4.3"),
    ("L", "2.5.4.7"),
    ("ST", "2.5.4.8"),
    ("O", "2.5.4.10"),
    ("OU", "2.5.4.11"),
    ("C", "2.5.4.6"),
    ("STREET", "2.5.4.9"),
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

/// What the model calls an attribute of a name.
fn label(oid: ObjectIdentifier) -> String {
    let number = oid.to_string();
    LABELS.iter().find(|(_, known)| *known == number).map_or(number, |(label, _)| (*label).into())
}

/// An attribute's value, of the string types whose characters are those of UTF-8.
fn text(attribute: &AttributeTypeAndValue) -> Option<&str> {
    match attribute.value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String => {
            str::from_utf8(attribute.value.value()).ok()
        }
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
        let value = decoded(value)?;
        holds &= leaf
            .subject()
            .iter()
            .any(|attribute| label(attribute.oid) == *key && text(attribute) == Some(value.as_str()));
    }
    Some(holds)
}

fn alternative_name(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    let (kind, value) = value.split_once(':')?;
    let value = decoded(value)?;
    if !["email", "dns", "uri"].contains(&kind) {
        return None;
    }
    let Some(extension) = leaf.extension(ID_CE_SUBJECT_ALT_NAME) else { return Some(false) };
    let names = SubjectAltName::from_der(extension).ok()?;
    Some(names.0.iter().any(|name| match name {
        GeneralName::Rfc822Name(name) => kind == "email" && name.as_str() == value,
        GeneralName::DnsName(name) => kind == "dns" && name.as_str() == value,
        GeneralName::UniformResourceIdentifier(name) => kind == "uri" && name.as_str() == value,
        _ => false,
    }))
}

fn extended_key_usage(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    let wanted: ObjectIdentifier = value.parse().ok()?;
    let Some(extension) = leaf.extension(ID_CE_EXT_KEY_USAGE) else { return Some(false) };
    let usages = ExtendedKeyUsage::from_der(extension).ok()?;
    Some(wanted.to_string() == value && usages.0.contains(&wanted))
}

fn fulcio_issuer(value: &str, leaf: &Certificate<'_>) -> Option<bool> {
    let value = decoded(value)?;
    let Some(issuer) = leaf.extension(FULCIO_ISSUER) else { return Some(false) };
    Some(str::from_utf8(issuer).ok()?.strip_prefix("https://") == Some(value.as_str()))
}
