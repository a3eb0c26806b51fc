//! Public keys, and the signatures that each kind may make.
//!
//! SECURITY (F05): the key decides. Of the algorithms that a message may name there is one for each curve and three, by
//! their hash, for RSA; none of them is "none", none is symmetric.

use super::Problem;
use alloc::boxed::Box;
use der::asn1::{AnyRef, ObjectIdentifier, UintRef};
use der::{Decode, Reader as _, SliceReader};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::traits::SignatureScheme;
use rsa::{BoxedUint, Pkcs1v15Sign, Pss, RsaPublicKey};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// Sizes of RSA keys, in bytes.
const RSA_SIZES: core::ops::RangeInclusive<usize> = 2048 / 8..=4096 / 8;

const EC_PUBLIC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

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
    /// Reads what a SubjectPublicKeyInfo says (RFC 5280 section 4.1.2.7, RFC 5480, RFC 3279).
    pub fn read(algorithm: ObjectIdentifier, parameters: Option<AnyRef<'_>>, bits: &[u8]) -> Option<Self> {
        match algorithm {
            EC_PUBLIC_KEY => match parameters?.decode_as::<ObjectIdentifier>().ok()? {
                P256 => Some(Self::P256(Box::new(p256::ecdsa::VerifyingKey::from_sec1_bytes(bits).ok()?))),
                P384 => Some(Self::P384(Box::new(p384::ecdsa::VerifyingKey::from_sec1_bytes(bits).ok()?))),
                _ => None,
            },
            RSA if parameters.is_some_and(|parameters| parameters.is_null()) => {
                let mut reader = SliceReader::new(bits).ok()?;
                let (modulus, exponent) = reader
                    .sequence(|reader| {
                        Ok::<_, der::Error>((UintRef::decode(reader)?, UintRef::decode(reader)?))
                    })
                    .ok()?;
                reader.finish().ok()?;
                if !RSA_SIZES.contains(&modulus.as_bytes().len()) {
                    return None;
                }
                let number = |number: UintRef<'_>| BoxedUint::from_be_slice_vartime(number.as_bytes());
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
    /// otherwise: ECDSA with any hash, RSA as in PKCS #1 v1.5 (RFC 5758, RFC 4055).
    pub fn signed_certificate(&self, algorithm: ObjectIdentifier, signed: &[u8], signature: &[u8]) -> bool {
        const ECDSA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
        const ECDSA_384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
        const ECDSA_512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.4");
        const RSA_256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
        const RSA_384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.12");
        const RSA_512: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.13");
        let (hash, scheme) = match algorithm {
            ECDSA_256 => (Hash::Sha256, None),
            ECDSA_384 => (Hash::Sha384, None),
            ECDSA_512 => (Hash::Sha512, None),
            RSA_256 => (Hash::Sha256, Some(Pkcs1v15Sign::new::<Sha256>())),
            RSA_384 => (Hash::Sha384, Some(Pkcs1v15Sign::new::<Sha384>())),
            RSA_512 => (Hash::Sha512, Some(Pkcs1v15Sign::new::<Sha512>())),
            _ => return false,
        };
        let hash = hash.of(&[signed]);
        match (self, scheme) {
            (Self::P256(key), None) => p256::ecdsa::Signature::from_der(signature)
                .and_then(|signature| key.verify_prehash(&hash, &signature))
                .is_ok(),
            (Self::P384(key), None) => p384::ecdsa::Signature::from_der(signature)
                .and_then(|signature| key.verify_prehash(&hash, &signature))
                .is_ok(),
            (Self::Rsa(key), Some(scheme)) => scheme.verify(key, &hash, signature).is_ok(),
            _ => false,
        }
    }
}
