//! Revocation lists (RFC 5280, section 5), as AMD's key server gives them: signed by the root, of authorities it revoked.

use super::certificate::{Certificate, Signed, extensions, signed_parts};
use parma_guest::fragment::der::{Invalid, Reader, explicit, tag};

/// Longest list, in bytes.
pub const MAX_LIST: usize = 60 << 10;

/// A list that is well formed.
#[derive(Debug)]
pub struct RevocationList<'a> {
    signed: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    /// From when to when it is the current one, as YYYYMMDDhhmmss.
    pub life: (u64, u64),
    serials: Vec<&'a [u8]>,
}

impl<'a> RevocationList<'a> {
    /// Reads one. It has to say when the next is due.
    ///
    /// # Errors
    /// It is no such list.
    pub fn read(der: &'a [u8]) -> Result<Self, Invalid> {
        if der.len() > MAX_LIST {
            return Err(Invalid);
        }
        let Signed { whole: signed, body, algorithm, signature } = signed_parts(der)?;
        let mut fields = Reader::new(body);
        if fields.unsigned()? != [1] || fields.expect(tag::SEQUENCE)?.whole != algorithm {
            return Err(Invalid);
        }
        let issuer = fields.expect(tag::SEQUENCE)?.whole;
        let life = (fields.time()?, fields.time()?);
        let mut serials = Vec::new();
        if let Some(list) = fields.optional(tag::SEQUENCE)? {
            let mut list = Reader::new(list.content);
            while !list.is_at_end() {
                let mut entry = list.inside(tag::SEQUENCE)?;
                serials.push(entry.unsigned()?);
                entry.time()?;
                if let Some(own) = entry.optional(tag::SEQUENCE)? {
                    // SECURITY (K06): a critical extension could say that the entry is another issuer's.
                    extensions(own.whole, &[])?;
                }
                entry.end()?;
            }
        }
        if let Some(wrapped) = fields.optional(explicit(0))? {
            extensions(wrapped.content, &[])?;
        }
        fields.end()?;
        Ok(Self { signed, algorithm, signature, issuer, life, serials })
    }

    /// Whether it speaks for this authority.
    #[must_use]
    pub fn is_of(&self, authority: &Certificate<'_>) -> bool {
        self.issuer == authority.subject
    }

    /// Whether this authority signed it.
    #[must_use]
    pub fn is_signed_by(&self, authority: &Certificate<'_>) -> bool {
        authority.has_signed(self.signed, self.algorithm, self.signature)
    }

    /// Whether a certificate of its issuer is on it.
    #[must_use]
    pub fn revokes(&self, certificate: &Certificate<'_>) -> bool {
        certificate.issuer == self.issuer && self.serials.contains(&certificate.serial)
    }
}
