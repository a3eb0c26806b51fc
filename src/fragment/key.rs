//! Public keys, and the signatures that each kind may make.
//!
//! SECURITY (F05): the key decides. Of the algorithms that a message may name there is one for each curve and three, by
//! their hash, for RSA; none of them is "none", none is symmetric.

use super::Problem;
use super::der::{Invalid, Reader, tag};
use alloc::boxed::Box;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::traits::SignatureScheme;
use rsa::{BoxedUint, Pkcs1v15Sign, Pss, RsaPublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// Sizes of RSA keys, in bytes.
const RSA_SIZES: core::ops::RangeInclusive<usize> = 2048 / 8..=4096 / 8;

// The contents of object identifiers: RFC 5480, RFC 8017, RFC 5758.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 4, 0, 34];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const ECDSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4];
const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11];
const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12];
const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13];

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256
    Sha256,
    /// SHA-384
    Sha384,
    /// SHA-512
    Sha512,
}

/// The longest hash, in bytes.
const LONGEST: usize = 64;

impl Hash {
    /// The hash of these parts one after another.
    pub fn of(self, parts: &[&[u8]]) -> heapless::Vec<u8, LONGEST> {
        fn hash<D: Digest>(parts: &[&[u8]]) -> heapless::Vec<u8, LONGEST> {
            let hash = parts.iter().fold(D::new(), |hash, part| hash.chain_update(part));
            hash.finalize().iter().copied().collect()
        }
        match self {
            Self::Sha256 => hash::<Sha256>(parts),
            Self::Sha384 => hash::<Sha384>(parts),
            Self::Sha512 => hash::<Sha512>(parts),
        }
    }
}

/// A signature algorithm of a message, RFC 9053 section 2 and RFC 8230.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// RSASSA-PSS with SHA-384.
    Ps384,
    /// RSASSA-PSS with SHA-512.
    Ps512,
}

impl Algorithm {
    const ALL: [Self; 5] = [Self::Es256, Self::Es384, Self::Ps256, Self::Ps384, Self::Ps512];

    /// Its number in the registry "COSE Algorithms".
    pub const fn number(self) -> i64 {
        match self {
            Self::Es256 => -7,
            Self::Es384 => -35,
            Self::Ps256 => -37,
            Self::Ps384 => -38,
            Self::Ps512 => -39,
        }
    }

    /// The algorithm of this number.
    pub fn from_number(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.number() == number)
    }

    const fn hash(self) -> Hash {
        match self {
            Self::Es256 | Self::Ps256 => Hash::Sha256,
            Self::Es384 | Self::Ps384 => Hash::Sha384,
            Self::Ps512 => Hash::Sha512,
        }
    }
}

/// A public key that may sign.
#[derive(Debug)]
pub enum Key {
    /// On the curve P-256.
    P256(Box<p256::ecdsa::VerifyingKey>),
    /// On the curve P-384.
    P384(Box<p384::ecdsa::VerifyingKey>),
    /// RSA, 2048 to 4096 bits.
    Rsa(Box<RsaPublicKey>),
}

impl Key {
    /// Reads the content of a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7, RFC 5480, RFC 3279).
    pub fn read(info: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(info);
        let mut algorithm = reader.inside(tag::SEQUENCE).ok()?;
        let bits = reader.bits().ok()?;
        reader.end().ok()?;
        let kind = algorithm.expect(tag::OID).ok()?.content;
        let parameters = algorithm.value().ok()?;
        algorithm.end().ok()?;
        match (kind, parameters.tag, parameters.content) {
            (EC_PUBLIC_KEY, tag::OID, P256) => {
                Some(Self::P256(Box::new(p256::ecdsa::VerifyingKey::from_sec1_bytes(bits).ok()?)))
            }
            (EC_PUBLIC_KEY, tag::OID, P384) => {
                Some(Self::P384(Box::new(p384::ecdsa::VerifyingKey::from_sec1_bytes(bits).ok()?)))
            }
            (RSA, tag::NULL, []) => {
                let [modulus, exponent] = pair(bits).ok()?;
                if !RSA_SIZES.contains(&modulus.len()) {
                    return None;
                }
                let number = BoxedUint::from_be_slice_vartime;
                Some(Self::Rsa(Box::new(RsaPublicKey::new(number(modulus), number(exponent)).ok()?)))
            }
            _ => None,
        }
    }

    /// Whether a message's signature over these parts, one after another, is this key's.
    pub fn verify(&self, algorithm: Algorithm, parts: &[&[u8]], signature: &[u8]) -> Result<(), Problem> {
        use Algorithm::*;
        let hash = algorithm.hash().of(parts);
        let valid = match (self, algorithm) {
            (Self::P256(key), Es256) => p256::ecdsa::Signature::from_slice(signature)
                .and_then(|s| key.verify_prehash(&hash, &s))
                .is_ok(),
            (Self::P384(key), Es384) => p384::ecdsa::Signature::from_slice(signature)
                .and_then(|s| key.verify_prehash(&hash, &s))
                .is_ok(),
            (Self::Rsa(key), Ps256) => Pss::<Sha256>::new().verify(key, &hash, signature).is_ok(),
            (Self::Rsa(key), Ps384) => Pss::<Sha384>::new().verify(key, &hash, signature).is_ok(),
            (Self::Rsa(key), Ps512) => Pss::<Sha512>::new().verify(key, &hash, signature).is_ok(),
            _ => return Err(Problem::Algorithm),
        };
        if valid { Ok(()) } else { Err(Problem::Signature) }
    }

    /// Whether a certificate's signature over its signed part is this key's. Certificates name their algorithms
    /// otherwise, by object identifiers: ECDSA with any hash, RSA as in PKCS #1 v1.5 (RFC 5758, RFC 4055).
    pub fn signed_certificate(&self, algorithm: &[u8], signed: &[u8], signature: &[u8]) -> bool {
        let (hash, scheme) = match algorithm {
            ECDSA_SHA256 => (Hash::Sha256, None),
            ECDSA_SHA384 => (Hash::Sha384, None),
            ECDSA_SHA512 => (Hash::Sha512, None),
            RSA_SHA256 => (Hash::Sha256, Some(Pkcs1v15Sign::new::<Sha256>())),
            RSA_SHA384 => (Hash::Sha384, Some(Pkcs1v15Sign::new::<Sha384>())),
            RSA_SHA512 => (Hash::Sha512, Some(Pkcs1v15Sign::new::<Sha512>())),
            _ => return false,
        };
        let hash = hash.of(&[signed]);
        match (self, scheme) {
            (Self::P256(key), None) => fixed::<32, 64>(signature)
                .and_then(|fixed| p256::ecdsa::Signature::from_slice(&fixed).ok())
                .is_some_and(|signature| key.verify_prehash(&hash, &signature).is_ok()),
            (Self::P384(key), None) => fixed::<48, 96>(signature)
                .and_then(|fixed| p384::ecdsa::Signature::from_slice(&fixed).ok())
                .is_some_and(|signature| key.verify_prehash(&hash, &signature).is_ok()),
            (Self::Rsa(key), Some(scheme)) => scheme.verify(key, &hash, signature).is_ok(),
            _ => false,
        }
    }
}

/// Two numbers in a sequence.
fn pair(bytes: &[u8]) -> Result<[&[u8]; 2], Invalid> {
    let mut outer = Reader::new(bytes);
    let mut numbers = outer.inside(tag::SEQUENCE)?;
    outer.end()?;
    let pair = [numbers.unsigned()?, numbers.unsigned()?];
    numbers.end()?;
    Ok(pair)
}

/// A signature's two numbers, of `N` bytes each, one after the other.
fn fixed<const N: usize, const TWICE: usize>(signature: &[u8]) -> Option<[u8; TWICE]> {
    let mut fixed = [0; TWICE];
    for (part, number) in fixed.chunks_exact_mut(N).zip(pair(signature).ok()?) {
        let start = N.checked_sub(number.len())?;
        part.get_mut(start..)?.copy_from_slice(number);
    }
    Some(fixed)
}
