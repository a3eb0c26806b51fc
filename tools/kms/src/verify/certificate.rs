//! AMD's certificates (VCEK specification 57230, section 3; VLEK likewise), read strictly and from their exact bytes.
//!
//! A certificate here is DER with exactly one of two signature algorithms: RSASSA-PSS with SHA-384 and a salt of 48 bytes, as
//! AMD encodes it, or ECDSA with SHA-384, which only the emulated PSP's chains have.

use parma_guest::fragment::der::{Invalid, Reader, explicit, tag};
use parma_guest::fragment::key::{Algorithm, Hash, Key};

/// Longest certificate, in bytes.
pub const MAX_CERTIFICATE: usize = 8 << 10;
/// Most extensions of one.
const MAX_EXTENSIONS: usize = 32;

/// RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt of 48 bytes, trailer 1: as all of AMD's certificates name it.
const PSS_SHA384: &[u8] = &[
    0x30, 0x46, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a, 0x30, 0x39, 0xa0, 0x0f,
    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa1, 0x1c,
    0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09,
    0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x30, 0xa3,
    0x03, 0x02, 0x01, 0x01,
];
/// ECDSA with SHA-384 (RFC 5758), and its object identifier alone.
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const ECDSA_SHA384_OID: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const KEY_CERT_SIGN: u8 = 0x04;
const COMMON_NAME: &[u8] = &[0x55, 4, 3];

/// 1.3.6.1.4.1.3704.1, under which AMD's extensions are.
const AMD: [u8; 9] = [0x2b, 6, 1, 4, 1, 0x9c, 0x78, 1, 0];

/// AMD's extensions, by the end of their object identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amd {
    /// Product name and stepping: `Milan-B0`.
    Product,
    /// Version of the boot loader.
    BootLoader,
    /// Of the TEE operating system.
    Tee,
    /// Of the SNP firmware.
    Snp,
    /// Of the microcode.
    Microcode,
    /// Of the FMC (Turin).
    Fmc,
    /// The chip (VCEK only).
    HardwareId,
    /// The cloud provider (VLEK only).
    ProviderId,
}

impl Amd {
    const fn suffix(self) -> &'static [u8] {
        match self {
            Self::Product => &[2],
            Self::BootLoader => &[3, 1],
            Self::Tee => &[3, 2],
            Self::Snp => &[3, 3],
            Self::Microcode => &[3, 8],
            Self::Fmc => &[3, 9],
            Self::HardwareId => &[4],
            Self::ProviderId => &[5],
        }
    }
}

/// A certificate that is well formed. That says nothing of who made it.
#[derive(Debug)]
pub struct Certificate<'a> {
    /// The part that is signed, byte for byte.
    signed: &'a [u8],
    /// Its serial number.
    pub serial: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    /// Names, as they are encoded.
    pub issuer: &'a [u8],
    /// See `issuer`.
    pub subject: &'a [u8],
    /// First and last moment as YYYYMMDDhhmmss.
    pub life: (u64, u64),
    key_info: &'a [u8],
    key: Key,
    extensions: Extensions<'a>,
}

/// Something signed, in its parts.
pub(super) struct Signed<'a> {
    /// What is signed, byte for byte.
    pub whole: &'a [u8],
    /// What is in it.
    pub body: &'a [u8],
    /// By what algorithm.
    pub algorithm: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
}

/// Takes something signed (a certificate, a list) apart.
pub(super) fn signed_parts(der: &[u8]) -> Result<Signed<'_>, Invalid> {
    let mut outer = Reader::new(der);
    let mut parts = outer.inside(tag::SEQUENCE)?;
    outer.end()?;
    let body = parts.expect(tag::SEQUENCE)?;
    let algorithm = parts.expect(tag::SEQUENCE)?.whole;
    let signature = parts.bits()?;
    parts.end()?;
    Ok(Signed { whole: body.whole, body: body.content, algorithm, signature })
}

/// Object identifiers and contents.
type Extensions<'a> = Vec<(&'a [u8], &'a [u8])>;

/// The extensions in the value of `[n]`; none twice, and none critical that is not of `known`.
pub(super) fn extensions<'a>(wrapped: &'a [u8], known: &[&[u8]]) -> Result<Extensions<'a>, Invalid> {
    let mut found = Vec::new();
    let mut wrapped = Reader::new(wrapped);
    let mut list = wrapped.inside(tag::SEQUENCE)?;
    wrapped.end()?;
    while !list.is_at_end() {
        let mut extension = list.inside(tag::SEQUENCE)?;
        let id = extension.expect(tag::OID)?.content;
        let critical = extension.flag()?;
        let content = extension.expect(tag::OCTET_STRING)?.content;
        extension.end()?;
        let twice = found.iter().any(|(other, _)| *other == id);
        if twice || critical && !known.contains(&id) || found.len() == MAX_EXTENSIONS {
            return Err(Invalid);
        }
        found.push((id, content));
    }
    Ok(found)
}

impl<'a> Certificate<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// It is not a certificate of the kinds that this module is for.
    pub fn read(der: &'a [u8]) -> Result<Self, Invalid> {
        if der.len() > MAX_CERTIFICATE {
            return Err(Invalid);
        }
        let Signed { whole: signed, body, algorithm, signature } = signed_parts(der)?;
        let mut fields = Reader::new(body);
        let mut version = fields.inside(explicit(0))?;
        let is_version_3 = version.unsigned()? == [2];
        version.end()?;
        let serial = fields.unsigned()?;
        let inner = fields.expect(tag::SEQUENCE)?.whole;
        if !is_version_3 || inner != algorithm || ![PSS_SHA384, ECDSA_SHA384].contains(&algorithm) {
            return Err(Invalid);
        }
        let issuer = fields.expect(tag::SEQUENCE)?.whole;
        let mut validity = fields.inside(tag::SEQUENCE)?;
        let life = (validity.time()?, validity.time()?);
        validity.end()?;
        let subject = fields.expect(tag::SEQUENCE)?.whole;
        let info = fields.expect(tag::SEQUENCE)?;
        let key = Key::read(info.content).ok_or(Invalid)?;
        let extensions = extensions(fields.expect(explicit(3))?.content, &[KEY_USAGE, BASIC_CONSTRAINTS])?;
        fields.end()?;
        Ok(Self {
            signed,
            serial,
            algorithm,
            signature,
            issuer,
            subject,
            life,
            key_info: info.whole,
            key,
            extensions,
        })
    }

    fn extension(&self, id: &[u8]) -> Option<&'a [u8]> {
        self.extensions.iter().find(|(own, _)| *own == id).map(|(_, content)| *content)
    }

    /// The content of one of AMD's extensions.
    #[must_use]
    pub fn amd(&self, which: Amd) -> Option<&'a [u8]> {
        self.extension(&[&AMD[..8], which.suffix()].concat())
    }

    /// A version in one of AMD's extensions.
    #[must_use]
    pub fn version(&self, which: Amd) -> Option<u8> {
        let mut reader = Reader::new(self.amd(which)?);
        let version = match reader.unsigned().ok()? {
            [] => 0,
            [version] => *version,
            _ => return None,
        };
        reader.end().ok().map(|()| version)
    }

    /// The chip in the extension: bare bytes, or in an OCTET STRING in old certificates.
    #[must_use]
    pub fn hardware_id(&self) -> Option<&'a [u8]> {
        let content = self.amd(Amd::HardwareId)?;
        match content {
            [0x04, 0x40, id @ ..] if id.len() == 64 => Some(id),
            [0x04, 0x08, id @ ..] if id.len() == 8 => Some(id),
            _ => Some(content),
        }
    }

    /// The text of the product extension, or of none.
    #[must_use]
    pub fn product(&self) -> Option<&'a str> {
        let mut reader = Reader::new(self.amd(Amd::Product)?);
        let text = reader.expect(tag::IA5_STRING).ok()?.content;
        reader.end().ok()?;
        core::str::from_utf8(text).ok()
    }

    /// The common name of the subject.
    #[must_use]
    pub fn common_name(&self) -> Option<&'a str> {
        let mut outer = Reader::new(self.subject);
        let mut list = outer.inside(tag::SEQUENCE).ok()?;
        let mut found = None;
        while !list.is_at_end() {
            let mut pair = list.inside(tag::SET).ok()?.inside(tag::SEQUENCE).ok()?;
            let id = pair.expect(tag::OID).ok()?.content;
            let text = pair.value().ok()?.content;
            // Two names are none.
            if id == COMMON_NAME && found.replace(text).is_some() {
                return None;
            }
        }
        core::str::from_utf8(found?).ok()
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    #[must_use]
    pub fn key_digest(&self) -> [u8; 32] {
        Hash::Sha256.of(&[self.key_info]).as_slice().try_into().unwrap_or([0; 32])
    }

    /// Its key, which signs reports.
    #[must_use]
    pub fn report_key(&self) -> Option<&p384::ecdsa::VerifyingKey> {
        if let Key::P384(key) = &self.key { Some(key) } else { None }
    }

    /// Whether its key signed this: an authority's signature over `signed`.
    pub(super) fn has_signed(&self, signed: &[u8], algorithm: &[u8], signature: &[u8]) -> bool {
        match algorithm {
            PSS_SHA384 => {
                matches!(self.key, Key::Rsa(_))
                    && self.key.verify(Algorithm::Ps384, &[signed], signature).is_ok()
            }
            ECDSA_SHA384 => self.key.signed_certificate(ECDSA_SHA384_OID, signed, signature),
            _ => false,
        }
    }

    /// Whether it is an authority, names itself as `certificate`'s issuer does, and signed it.
    #[must_use]
    pub fn issued(&self, certificate: &Certificate<'_>) -> bool {
        self.is_authority()
            && self.subject == certificate.issuer
            && self.has_signed(certificate.signed, certificate.algorithm, certificate.signature)
    }

    fn is_authority(&self) -> bool {
        let constraints = || {
            let mut outer = Reader::new(self.extension(BASIC_CONSTRAINTS)?);
            let mut fields = outer.inside(tag::SEQUENCE).ok()?;
            outer.end().ok()?;
            fields.flag().ok()
        };
        let usage = || {
            let mut reader = Reader::new(self.extension(KEY_USAGE)?);
            match reader.expect(tag::BIT_STRING).ok()?.content {
                [0..8, first, ..] => Some(first & KEY_CERT_SIGN != 0),
                _ => None,
            }
        };
        constraints() == Some(true) && usage() == Some(true)
    }
}
