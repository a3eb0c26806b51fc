//! A key wrapped to a guest's RSA key, as key vaults and managed HSMs do it: `RSA-OAEP(fresh AES-256 key) ‖ AES-KWP(key)`
//! (PKCS #11 v3.1, CKM_RSA_AES_KEY_WRAP; RFC 5649).
//!
//! SECURITY (K08): OAEP only, never PKCS #1 v1.5; the guest's key has 2048 to 4096 bits and the exponent 65537. Unwrapping has one
//! error for whatever is wrong inside, and takes the same steps to it: it is no oracle.

use aes_kw::KeyInit as _;
use aes_kw::KwpAes256;
use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use getrandom::SysRng;
use rsa::rand_core::UnwrapErr;
use rsa::traits::{PaddingScheme as _, PublicKeyParts as _};
use rsa::{BoxedUint, Oaep, RsaPrivateKey, RsaPublicKey};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// Longest wrapped key that is looked at, in bytes.
pub const MAX_WRAPPED: usize = 16 << 10;
/// The exponent that RSA keys have.
const EXPONENT: [u8; 3] = [1, 0, 1];

/// The hash of OAEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapping {
    /// SHA-1, as existing sidecars ask for it.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl Wrapping {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sha1, Self::Sha256, Self::Sha384];

    /// What key vaults call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "CKM_RSA_AES_KEY_WRAP",
            Self::Sha256 => "RSA_AES_KEY_WRAP_256",
            Self::Sha384 => "RSA_AES_KEY_WRAP_384",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wrapping| wrapping.name() == name)
    }
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    n: Option<String>,
    e: Option<String>,
}

/// The first RSA key of a JWK set, which is what guests send as runtime data.
///
/// # Errors
/// There is none that a key may be wrapped to.
pub fn rsa_key(runtime_data: &[u8]) -> Result<RsaPublicKey> {
    let set: KeySet = serde_json::from_slice(runtime_data).context("the runtime data is no JWK set")?;
    let jwk = set.keys.iter().find(|key| key.kty == "RSA").context("the runtime data has no RSA key")?;
    let number = |text: &Option<String>| {
        let text = text.as_deref().context("the RSA key is not whole")?;
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).context("the RSA key is not in base64url")
    };
    let (modulus, exponent) = (number(&jwk.n)?, number(&jwk.e)?);
    ensure!((256..=512).contains(&modulus.len()) && modulus[0] != 0, "an RSA key has 2048 to 4096 bits here");
    ensure!(exponent == EXPONENT, "an RSA key has the exponent 65537 here");
    let number = BoxedUint::from_be_slice_vartime;
    RsaPublicKey::new(number(&modulus), number(&exponent)).map_err(|_| anyhow!("the RSA key is not valid"))
}

/// A guest's key as [`rsa_key`] reads it: a JWK set with this one key, for encryption.
#[must_use]
pub fn key_set(key: &RsaPublicKey) -> Value {
    let modulus = URL_SAFE_NO_PAD.encode(key.n_bytes());
    json!({"keys": [{
        "kty": "RSA", "kid": "wrapping", "key_ops": ["encrypt"],
        "n": modulus, "e": URL_SAFE_NO_PAD.encode(EXPONENT),
    }]})
}

/// Wraps `secret` to a guest's key.
///
/// # Errors
/// The system has no randomness, or the secret is too long.
pub fn wrap(secret: &[u8], to: &RsaPublicKey, wrapping: Wrapping) -> Result<Vec<u8>> {
    let kek = Zeroizing::new(crate::random::<32>()?);
    let mut random = UnwrapErr(SysRng);
    let wrapped_kek = match wrapping {
        Wrapping::Sha1 => Oaep::<sha1::Sha1>::new().encrypt(&mut random, to, &kek[..]),
        Wrapping::Sha256 => Oaep::<sha2::Sha256>::new().encrypt(&mut random, to, &kek[..]),
        Wrapping::Sha384 => Oaep::<sha2::Sha384>::new().encrypt(&mut random, to, &kek[..]),
    };
    let mut wrapped = wrapped_kek.map_err(|_| anyhow!("the key cannot be wrapped to this RSA key"))?;
    let mut room = vec![0; secret.len().next_multiple_of(8) + 8];
    let cipher = KwpAes256::new(&(*kek).into());
    wrapped.extend_from_slice(
        cipher
            .wrap_key(secret, &mut room)
            .map_err(|_| anyhow!("the key has a length that cannot be wrapped"))?,
    );
    Ok(wrapped)
}

/// Unwraps what [`wrap`] made.
///
/// # Errors
/// It is of another length than anything wrapped, or not for this key.
pub fn unwrap(wrapped: &[u8], own: &RsaPrivateKey, wrapping: Wrapping) -> Result<Zeroizing<Vec<u8>>> {
    let lengths = own.size() + 16..=MAX_WRAPPED;
    ensure!(
        lengths.contains(&wrapped.len()) && (wrapped.len() - own.size()).is_multiple_of(8),
        "{} bytes are no wrapped key",
        wrapped.len()
    );
    let (wrapped_kek, sealed) = wrapped.split_at(own.size());
    let mut random = UnwrapErr(SysRng);
    let kek = match wrapping {
        Wrapping::Sha1 => own.decrypt_blinded(&mut random, Oaep::<sha1::Sha1>::new(), wrapped_kek),
        Wrapping::Sha256 => own.decrypt_blinded(&mut random, Oaep::<sha2::Sha256>::new(), wrapped_kek),
        Wrapping::Sha384 => own.decrypt_blinded(&mut random, Oaep::<sha2::Sha384>::new(), wrapped_kek),
    };
    // SECURITY (K08): a padding that does not fit takes the way of one that does, with a key that opens nothing.
    let nobodys = Zeroizing::new(crate::random::<32>()?);
    let kek = kek.map(Zeroizing::new).ok().and_then(|kek| <[u8; 32]>::try_from(&kek[..]).ok());
    let kek = Zeroizing::new(kek.unwrap_or(*nobodys));
    let mut room = Zeroizing::new(vec![0; sealed.len()]);
    match KwpAes256::new(&(*kek).into()).unwrap_key(sealed, &mut room) {
        Ok(secret) => Ok(Zeroizing::new(secret.to_vec())),
        Err(_) => Err(anyhow!("it is not a key wrapped to this guest's key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;

    const SECRET: [u8; 32] = [0x77; 32];

    fn own() -> &'static RsaPrivateKey {
        static KEY: OnceLock<RsaPrivateKey> = OnceLock::new();
        KEY.get_or_init(|| RsaPrivateKey::new(&mut UnwrapErr(SysRng), 2048).unwrap())
    }

    #[test]
    fn what_is_wrapped_unwraps_in_each_way_and_in_no_other() {
        let set = key_set(&own().to_public_key()).to_string();
        let public = rsa_key(set.as_bytes()).unwrap();
        for wrapping in Wrapping::ALL {
            assert_eq!(Wrapping::named(wrapping.name()), Some(wrapping));
            for length in [16, 31, 32, 1190] {
                let secret = vec![7; length];
                let wrapped = wrap(&secret, &public, wrapping).unwrap();
                for other in Wrapping::ALL {
                    let unwrapped = unwrap(&wrapped, own(), other).ok();
                    assert_eq!(unwrapped.as_deref() == Some(&secret), other == wrapping);
                }
            }
        }
    }

    /// K08, source: PKCS #1 v1.5 and OAEP padding oracles (Bleichenbacher 1998, Manger 2001): the error is one.
    #[test]
    fn k08_what_is_wrong_inside_a_wrapped_key_makes_no_difference_to_who_tries() {
        let public = own().to_public_key();
        let wrapped = wrap(&SECRET, &public, Wrapping::Sha256).unwrap();
        let other = |payload: &[u8]| {
            let kek = Oaep::<sha2::Sha256>::new().encrypt(&mut UnwrapErr(SysRng), &public, payload).unwrap();
            [&kek, &wrapped[256..]].concat()
        };
        let pkcs1 = rsa::Pkcs1v15Encrypt.encrypt(&mut UnwrapErr(SysRng), &public, &[1; 32]).unwrap();
        let changed = |at: usize| {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            changed
        };
        let wrong = [
            changed(0),
            changed(255),
            changed(256),
            changed(wrapped.len() - 1),
            // Padding that fits, with keys of other lengths and another key in it.
            other(&[1; 16]),
            other(&[1; 31]),
            other(&[1; 32]),
            [&pkcs1, &wrapped[256..]].concat(),
            // No number below the modulus.
            [&[0xff; 256], &wrapped[256..]].concat(),
        ];
        for (number, wrong) in wrong.iter().enumerate() {
            let why = unwrap(wrong, own(), Wrapping::Sha256).unwrap_err().to_string();
            assert_eq!(why, "it is not a key wrapped to this guest's key", "{number}");
        }
        assert_eq!(*unwrap(&wrapped, own(), Wrapping::Sha256).unwrap(), SECRET);
    }

    /// K14, source: CVE-2026-100836, a panic on short ciphertext.
    #[test]
    fn k14_every_length_is_refused_or_opens_and_none_panics() {
        let wrapped = wrap(&SECRET, &own().to_public_key(), Wrapping::Sha1).unwrap();
        for length in (0..wrapped.len()).filter(|length| *length < 273 || length % 8 == 0) {
            assert!(unwrap(&wrapped[..length], own(), Wrapping::Sha1).is_err(), "{length}");
        }
        assert!(unwrap(&vec![0; MAX_WRAPPED + 8], own(), Wrapping::Sha1).is_err());
    }

    #[test]
    fn k08_a_key_that_nothing_should_be_wrapped_to_is_refused() {
        let good = key_set(&own().to_public_key());
        let with = |name: &str, value: Value| {
            let mut set = good.clone();
            set["keys"][0][name] = value;
            rsa_key(set.to_string().as_bytes())
        };
        rsa_key(good.to_string().as_bytes()).unwrap();
        for (name, value) in [
            ("kty", json!("oct")),
            ("e", json!("Aw")),
            ("e", json!("AQ")),
            ("e", Value::Null),
            ("n", json!(URL_SAFE_NO_PAD.encode([0xff; 128]))),
            ("n", json!(URL_SAFE_NO_PAD.encode([0xff; 513]))),
            ("n", json!("")),
            ("n", json!("!")),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name}: {value}");
        }
        for text in ["", "{}", r#"{"keys":[]}"#, "[]"] {
            assert!(rsa_key(text.as_bytes()).is_err(), "{text}");
        }
    }
}
