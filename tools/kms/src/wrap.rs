//! Wrapping a key to a guest's RSA key, as managed HSMs do it: `RSA-OAEP(fresh AES-256 key) ‖ AES-KWP(key)` (PKCS #11 v3.1,
//! CKM_RSA_AES_KEY_WRAP; RFC 5649).
//!
//! SECURITY (K08): OAEP only, never PKCS #1 v1.5; the guest's key has 2048 to 4096 bits and the exponent 65537.

use aes_kw::KeyInit as _;
use aes_kw::KwpAes256;
use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rsa::traits::PaddingScheme as _;
use rsa::{BoxedUint, Oaep, RsaPublicKey};
use serde::Deserialize;

/// The hash of OAEP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapping {
    /// `CKM_RSA_AES_KEY_WRAP`: SHA-1, as existing sidecars ask for it.
    Sha1,
    /// `RSA_AES_KEY_WRAP_256`.
    Sha256,
    /// `RSA_AES_KEY_WRAP_384`.
    Sha384,
}

impl Wrapping {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "CKM_RSA_AES_KEY_WRAP" => Self::Sha1,
            "RSA_AES_KEY_WRAP_256" => Self::Sha256,
            "RSA_AES_KEY_WRAP_384" => Self::Sha384,
            _ => return None,
        })
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
    ensure!(exponent == [1, 0, 1], "an RSA key has the exponent 65537 here");
    let number = BoxedUint::from_be_slice_vartime;
    RsaPublicKey::new(number(&modulus), number(&exponent)).map_err(|_| anyhow!("the RSA key is not valid"))
}

/// Wraps `secret` to a guest's key.
///
/// # Errors
/// The system has no randomness.
pub fn wrap(secret: &[u8], to: &RsaPublicKey, wrapping: Wrapping) -> Result<Vec<u8>> {
    let kek: [u8; 32] = crate::channel::random()?;
    let mut random = rsa::rand_core::UnwrapErr(getrandom::SysRng);
    let wrapped_kek = match wrapping {
        Wrapping::Sha1 => Oaep::<sha1::Sha1>::new().encrypt(&mut random, to, &kek),
        Wrapping::Sha256 => Oaep::<sha2::Sha256>::new().encrypt(&mut random, to, &kek),
        Wrapping::Sha384 => Oaep::<sha2::Sha384>::new().encrypt(&mut random, to, &kek),
    };
    let mut wrapped = wrapped_kek.map_err(|_| anyhow!("the key cannot be wrapped to this RSA key"))?;
    let mut room = vec![0; secret.len().next_multiple_of(8) + 8];
    let cipher = KwpAes256::new(&kek.into());
    wrapped.extend_from_slice(
        cipher
            .wrap_key(secret, &mut room)
            .map_err(|_| anyhow!("the key has a length that cannot be wrapped"))?,
    );
    Ok(wrapped)
}
