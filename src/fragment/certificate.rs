//! Certificate chains: RFC 5280 path validation with the last certificate as trust anchor, as did:x509 asks for it.
//!
//! Stricter than the RFC where that is simpler: a chain with name constraints or policy constraints, with a critical
//! extension that is not evaluated here, with one extension or one attribute of a name twice, is refused; names are
//! compared as they are encoded.

use super::der::{Invalid, Reader, Value, explicit, tag};
use super::key::Key;
use super::{MAX_CERTIFICATE, MAX_CHAIN, Problem};
use alloc::vec::Vec;

/// Most extensions of a certificate, and attributes of a name.
const MAX_ITEMS: usize = 32;

// The contents of their object identifiers (RFC 5280 section 4.2.1).
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 30];
const CERTIFICATE_POLICIES: &[u8] = &[0x55, 0x1d, 32];
const POLICY_MAPPINGS: &[u8] = &[0x55, 0x1d, 33];
const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 36];
pub(super) const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
const INHIBIT_ANY_POLICY: &[u8] = &[0x55, 0x1d, 54];

/// Extensions that may be critical because they are evaluated here, or cannot make a valid chain invalid: without an
/// initial set of policies, certificate policies, their mappings and limits only say which policies are left at the end.
const KNOWN: [&[u8]; 7] = [
    BASIC_CONSTRAINTS,
    KEY_USAGE,
    EXT_KEY_USAGE,
    SUBJECT_ALT_NAME,
    CERTIFICATE_POLICIES,
    POLICY_MAPPINGS,
    INHIBIT_ANY_POLICY,
];

// Bits of a key usage (RFC 5280 section 4.2.1.3), in its first byte.
const DIGITAL_SIGNATURE: u8 = 0x80;
const KEY_CERT_SIGN: u8 = 0x04;

/// Version 3, as certificates count.
const VERSION_3: &[u8] = &[2];

/// An attribute of a name: the content of its object identifier, and its value.
pub type Attribute<'a> = (&'a [u8], Value<'a>);

/// One certificate of a chain.
#[derive(Debug)]
pub struct Certificate<'a> {
    der: &'a [u8],
    /// The part that is signed, byte for byte.
    signed: &'a [u8],
    /// The content of the algorithm's object identifier, and the signature.
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    attributes: heapless::Vec<Attribute<'a>, MAX_ITEMS>,
    /// First and last moment, see [`Reader::time`].
    life: (u64, u64),
    key: Key,
    /// Object identifiers and contents.
    extensions: heapless::Vec<(&'a [u8], &'a [u8]), MAX_ITEMS>,
}

impl<'a> Certificate<'a> {
    /// Reads one certificate by itself.
    fn read(der: &'a [u8]) -> Result<Self, Invalid> {
        if der.len() > MAX_CERTIFICATE {
            return Err(Invalid);
        }
        let mut outer = Reader::new(der);
        let mut parts = outer.inside(tag::SEQUENCE)?;
        outer.end()?;
        let body = parts.expect(tag::SEQUENCE)?;
        let algorithm = parts.expect(tag::SEQUENCE)?;
        let signature = parts.bits()?;
        parts.end()?;

        let mut fields = Reader::new(body.content);
        let mut version = fields.inside(explicit(0))?;
        let is_version_3 = version.unsigned()? == VERSION_3;
        version.end()?;
        fields.expect(tag::INTEGER)?;
        // RFC 5280 section 4.1.1.2: the algorithm stands inside and outside of what is signed.
        if !is_version_3 || fields.expect(tag::SEQUENCE)? != algorithm {
            return Err(Invalid);
        }
        let issuer = fields.expect(tag::SEQUENCE)?;
        let mut validity = fields.inside(tag::SEQUENCE)?;
        let life = (validity.time()?, validity.time()?);
        validity.end()?;
        let subject = fields.expect(tag::SEQUENCE)?;
        let key = Key::read(fields.expect(tag::SEQUENCE)?.content).ok_or(Invalid)?;
        // Unique identifiers, which nothing uses any more.
        fields.optional(0x81)?;
        fields.optional(0x82)?;
        let mut extensions = heapless::Vec::new();
        if let Some(wrapped) = fields.optional(explicit(3))? {
            let mut wrapped = Reader::new(wrapped.content);
            let mut list = wrapped.inside(tag::SEQUENCE)?;
            wrapped.end()?;
            while !list.is_at_end() {
                let mut extension = list.inside(tag::SEQUENCE)?;
                let id = extension.expect(tag::OID)?.content;
                let critical = extension.flag()?;
                let content = extension.expect(tag::OCTET_STRING)?.content;
                extension.end()?;
                let constraint = id == NAME_CONSTRAINTS || id == POLICY_CONSTRAINTS;
                let twice = extensions.iter().any(|(other, _)| *other == id);
                if constraint || twice || critical && !KNOWN.contains(&id) {
                    return Err(Invalid);
                }
                extensions.push((id, content)).map_err(|_| Invalid)?;
            }
        }
        fields.end()?;
        attributes(issuer.content)?;
        Ok(Self {
            der,
            signed: body.whole,
            algorithm: Reader::new(algorithm.content).expect(tag::OID)?.content,
            signature,
            issuer: issuer.whole,
            subject: subject.whole,
            attributes: attributes(subject.content)?,
            life,
            key,
            extensions,
        })
    }

    /// Its bytes.
    pub fn der(&self) -> &'a [u8] {
        self.der
    }

    /// Its key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Whom it describes; no attribute occurs twice.
    pub fn subject(&self) -> &[Attribute<'a>] {
        &self.attributes
    }

    /// The content of an extension, by that of its object identifier.
    pub fn extension(&self, id: &[u8]) -> Option<&'a [u8]> {
        self.extensions.iter().find(|(own, _)| *own == id).map(|(_, content)| *content)
    }

    /// Whether its key may be used so: a certificate that says nothing of it does not forbid it.
    fn may(&self, usage: u8) -> bool {
        let Some(extension) = self.extension(KEY_USAGE) else { return true };
        let mut reader = Reader::new(extension);
        match reader.expect(tag::BIT_STRING) {
            Ok(Value { content: [0..8, first, ..], .. }) => first & usage != 0 && reader.is_at_end(),
            _ => false,
        }
    }

    /// Whether it may sign the certificate below it, with so many authorities between that and the leaf.
    fn is_authority(&self, below: usize) -> bool {
        let constraints = |extension| {
            let mut outer = Reader::new(extension);
            let mut fields = outer.inside(tag::SEQUENCE)?;
            outer.end()?;
            let authority = fields.flag()?;
            let limit = if fields.is_at_end() { None } else { Some(fields.unsigned()?) };
            fields.end()?;
            let short = match limit {
                None => true,
                Some([]) => below == 0,
                Some([limit]) => below <= usize::from(*limit),
                // More than there are certificates.
                Some(_) => true,
            };
            Ok::<_, Invalid>(authority && short)
        };
        let may_be = self.extension(BASIC_CONSTRAINTS).map(constraints);
        may_be == Some(Ok(true)) && self.may(KEY_CERT_SIGN)
    }

    fn is_signed_by(&self, key: &Key) -> bool {
        key.signed_certificate(self.algorithm, self.signed, self.signature)
    }

    fn self_issued(&self) -> bool {
        self.issuer == self.subject
    }
}

/// The attributes of a name, none twice.
fn attributes(name: &[u8]) -> Result<heapless::Vec<Attribute<'_>, MAX_ITEMS>, Invalid> {
    let mut found: heapless::Vec<Attribute<'_>, MAX_ITEMS> = heapless::Vec::new();
    let mut name = Reader::new(name);
    while !name.is_at_end() {
        let mut set = name.inside(tag::SET)?;
        while !set.is_at_end() {
            let mut attribute = set.inside(tag::SEQUENCE)?;
            let id = attribute.expect(tag::OID)?.content;
            let value = attribute.value()?;
            attribute.end()?;
            if found.iter().any(|(other, _)| *other == id) || found.push((id, value)).is_err() {
                return Err(Invalid);
            }
        }
    }
    Ok(found)
}

/// A valid chain: its leaf's key may sign, each certificate is signed by the next, the last is the anchor.
#[derive(Debug)]
pub struct Chain<'a> {
    certificates: Vec<Certificate<'a>>,
}

impl<'a> Chain<'a> {
    /// Validates a chain, leaf first.
    pub fn validate(ders: &[&'a [u8]]) -> Result<Self, Problem> {
        // SECURITY (F04): a single certificate would vouch for itself.
        if !(2..=MAX_CHAIN).contains(&ders.len()) {
            return Err(Problem::Chain);
        }
        let mut certificates = Vec::new();
        certificates.try_reserve_exact(ders.len()).map_err(|_| Problem::Chain)?;
        for der in ders {
            certificates.push(Certificate::read(der).map_err(|Invalid| Problem::Chain)?);
        }
        let chain = Self { certificates };
        if chain.is_valid() { Ok(chain) } else { Err(Problem::Chain) }
    }

    fn is_valid(&self) -> bool {
        // No trusted clock: the moment that is asked about is the end of the leaf's life.
        let (begin, moment) = self.leaf().life;
        // Authorities below each one, not counting those that issued themselves (RFC 5280 section 4.2.1.9).
        let mut below = 0;
        let mut valid = begin <= moment && self.leaf().may(DIGITAL_SIGNATURE);
        for (certificate, issuer) in self.certificates.iter().zip(self.authorities()) {
            let (from, to) = issuer.life;
            valid = valid
                && certificate.issuer == issuer.subject
                && issuer.is_authority(below)
                && (from..=to).contains(&moment)
                && certificate.is_signed_by(&issuer.key);
            below += usize::from(!issuer.self_issued());
        }
        let anchor = self.authorities().last();
        valid && anchor.is_some_and(|anchor| !anchor.self_issued() || anchor.is_signed_by(&anchor.key))
    }

    /// The certificate of the key that signed the message.
    pub fn leaf(&self) -> &Certificate<'a> {
        &self.certificates[0]
    }

    /// The others, the leaf's issuer first.
    pub fn authorities(&self) -> impl Iterator<Item = &Certificate<'a>> {
        self.certificates.iter().skip(1)
    }
}
