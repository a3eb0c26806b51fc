//! A secret encrypted to a P-256 key: JWE (RFC 7516) in flattened JSON form, `ECDH-ES+A256KW` with `A256GCM`.
//!
//! SECURITY (K08): there is this one algorithm. A message that names another, or has anything in its header that would change how it
//! is read, is refused before any key is used.

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use aes_kw::KwAes256;
use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::elliptic_curve::point::AffineCoordinates as _;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::{PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// How the content's key is agreed on and wrapped (RFC 7518, section 4.6).
pub const ALGORITHM: &str = "ECDH-ES+A256KW";
/// How the content is encrypted.
pub const ENCRYPTION: &str = "A256GCM";
/// Longest secret, in bytes.
pub const MAX_SECRET: usize = 64 << 10;
const CURVE: &str = "P-256";

/// A P-256 key as a JWK (RFC 7518, section 6.2), with nothing else in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Jwk {
    kty: String,
    crv: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    x: String,
    y: String,
}

impl Jwk {
    /// Of a key, for this algorithm or for none in particular.
    fn new(key: &PublicKey, algorithm: Option<&str>) -> Self {
        let point = key.to_sec1_point(false);
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Self {
            kty: "EC".into(),
            crv: CURVE.into(),
            alg: algorithm.map(str::to_owned),
            x: number(&point.as_bytes()[1..33]),
            y: number(&point.as_bytes()[33..]),
        }
    }

    /// The key to which a guest wants secrets encrypted.
    #[must_use]
    pub fn recipient(key: &PublicKey) -> Self {
        Self::new(key, Some(ALGORITHM))
    }

    /// The key, of a JWK that names this algorithm.
    ///
    /// # Errors
    /// It names another, or is no point of P-256.
    pub fn for_recipient(&self) -> Result<PublicKey> {
        let algorithm = self.alg.as_deref().unwrap_or_default();
        ensure!(algorithm == ALGORITHM, "a key for {ALGORITHM} is needed");
        self.key()
    }

    fn key(&self) -> Result<PublicKey> {
        ensure!(self.kty == "EC" && self.crv == CURVE, "a key of {CURVE} is needed");
        let number = |text: &str| -> Result<[u8; 32]> {
            let bytes = URL_SAFE_NO_PAD.decode(text).context("the key is not in base64url")?;
            bytes.try_into().map_err(|_| anyhow!("a coordinate of {CURVE} has 32 bytes"))
        };
        let point = [&[4][..], &number(&self.x)?, &number(&self.y)?].concat();
        PublicKey::from_sec1_bytes(&point).map_err(|_| anyhow!("the key is no point of {CURVE}"))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    enc: String,
    epk: Jwk,
}

/// A message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Jwe {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

/// The key that wraps the content's key: Concat KDF (RFC 7518, section 4.6.2) with neither party's information.
fn wrapping_key(own: &SecretKey, theirs: &PublicKey) -> Zeroizing<[u8; 32]> {
    // The curve's cofactor is 1: the product of a point and a scalar that is not 0 is never the point at infinity.
    let shared = (theirs.to_projective() * *own.to_nonzero_scalar()).to_affine();
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    let key = Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(shared.x())
        .chain_update(length(ALGORITHM.len()))
        .chain_update(ALGORITHM)
        .chain_update(length(0))
        .chain_update(length(0))
        .chain_update(256u32.to_be_bytes());
    Zeroizing::new(key.finalize().into())
}

/// A fresh key.
///
/// # Errors
/// The system has no randomness.
pub fn ephemeral() -> Result<SecretKey> {
    SecretKey::from_slice(&crate::random::<32>()?)
        .map_err(|_| anyhow!("32 random bytes are no key; try again"))
}

/// Encrypts a secret to a key.
///
/// # Errors
/// It is too long, or the system has no randomness.
pub fn seal(secret: &[u8], to: &PublicKey) -> Result<Jwe> {
    ensure!(secret.len() <= MAX_SECRET, "a secret has at most {MAX_SECRET} bytes");
    let own = ephemeral()?;
    let (key, iv) = (Zeroizing::new(crate::random::<32>()?), crate::random::<12>()?);
    let mut wrapped = [0; 40];
    KwAes256::new(&(*wrapping_key(&own, to)).into())
        .wrap_key(&key[..], &mut wrapped)
        .map_err(|_| anyhow!("the content's key cannot be wrapped"))?;
    let epk = Jwk::new(&own.public_key(), None);
    let header = serde_json::to_vec(&Header { alg: ALGORITHM.into(), enc: ENCRYPTION.into(), epk })?;
    let protected = URL_SAFE_NO_PAD.encode(header);
    let mut content = secret.to_vec();
    let tag = Aes256Gcm::new(&(*key).into())
        .encrypt_inout_detached(&Nonce::from(iv), protected.as_bytes(), content.as_mut_slice().into())
        .map_err(|_| anyhow!("the secret cannot be encrypted"))?;
    Ok(Jwe {
        protected,
        encrypted_key: URL_SAFE_NO_PAD.encode(wrapped),
        iv: URL_SAFE_NO_PAD.encode(iv),
        ciphertext: URL_SAFE_NO_PAD.encode(content),
        tag: URL_SAFE_NO_PAD.encode(tag),
    })
}

/// Decrypts what was encrypted to this key.
///
/// # Errors
/// It is no such message, or not for this key, or was changed.
pub fn open(message: &Jwe, own: &SecretKey) -> Result<Zeroizing<Vec<u8>>> {
    let part = |what: &'static str, text: &str| URL_SAFE_NO_PAD.decode(text).context(what);
    let header = part("the header is not in base64url", &message.protected)?;
    let header: Header = serde_json::from_slice(&header).context("the header is not that of a JWE here")?;
    ensure!(
        header.alg == ALGORITHM && header.enc == ENCRYPTION,
        "only {ALGORITHM} with {ENCRYPTION} is taken"
    );
    let wrapped: Result<[u8; 40], _> =
        part("the key is not in base64url", &message.encrypted_key)?.try_into();
    let iv: Result<[u8; 12], _> = part("the IV is not in base64url", &message.iv)?.try_into();
    let tag: Result<[u8; 16], _> = part("the tag is not in base64url", &message.tag)?.try_into();
    let (Ok(wrapped), Ok(iv), Ok(tag)) = (wrapped, iv, tag) else {
        return Err(anyhow!("a wrapped key has 40 bytes, an IV 12, a tag 16"));
    };
    let mut content = Zeroizing::new(part("the content is not in base64url", &message.ciphertext)?);
    ensure!(content.len() <= MAX_SECRET, "a secret has at most {MAX_SECRET} bytes");
    let mut key = Zeroizing::new([0; 32]);
    let cipher = KwAes256::new(&(*wrapping_key(own, &header.epk.key()?)).into());
    let unwrapped = cipher.unwrap_key(&wrapped, &mut key[..]).is_ok();
    let opened = unwrapped
        && Aes256Gcm::new(&(*key).into())
            .decrypt_inout_detached(
                &Nonce::from(iv),
                message.protected.as_bytes(),
                content.as_mut_slice().into(),
                &Tag::from(tag),
            )
            .is_ok();
    ensure!(opened, "it is not a message to this guest's key");
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn key(scalar: &str) -> SecretKey {
        SecretKey::from_slice(&URL_SAFE_NO_PAD.decode(scalar).unwrap()).unwrap()
    }

    /// The agreement of RFC 7518, appendix C, with this algorithm's name and length in place of A128GCM's: the point that is
    /// agreed on is the appendix's Z.
    #[test]
    fn the_shared_secret_is_that_of_the_standards_example() {
        let alice = key("0_NxaRPUMQoAJt50Gz8YiTr8gRTwyEaCumd-MToTmIo");
        let bob = key("VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw");
        let z = [
            158u8, 86, 217, 29, 129, 113, 53, 211, 114, 131, 66, 131, 191, 132, 38, 156, 251, 49, 110, 163,
            218, 128, 106, 72, 246, 218, 167, 121, 140, 254, 144, 196,
        ];
        let info = [&14u32.to_be_bytes()[..], b"ECDH-ES+A256KW", &[0; 8], &[0, 0, 1, 0]].concat();
        let expected: [u8; 32] = Sha256::digest([&[0, 0, 0, 1][..], &z, &info].concat()).into();
        assert_eq!(*wrapping_key(&alice, &bob.public_key()), expected);
        assert_eq!(*wrapping_key(&bob, &alice.public_key()), expected);
    }

    #[test]
    fn a_secret_opens_for_its_recipient_only_and_any_change_of_any_part_shows() {
        let (own, other) = (ephemeral().unwrap(), ephemeral().unwrap());
        let message = seal(b"secret", &own.public_key()).unwrap();
        assert_eq!(*open(&message, &own).unwrap(), b"secret");
        assert!(open(&message, &other).is_err());
        let whole = serde_json::to_value(&message).unwrap();
        for name in ["protected", "encrypted_key", "iv", "ciphertext", "tag"] {
            let text = whole[name].as_str().unwrap();
            for at in 0..text.len() {
                let mut changed = text.as_bytes().to_vec();
                changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
                let mut message = whole.clone();
                message[name] = json!(String::from_utf8(changed).unwrap());
                let message: Jwe = serde_json::from_value(message).unwrap();
                assert!(open(&message, &own).is_err(), "{name}, character {at}");
            }
            for text in ["", "A", "AAAA", "!"] {
                let mut message = whole.clone();
                message[name] = json!(text);
                assert!(
                    open(&serde_json::from_value(message).unwrap(), &own).is_err(),
                    "K14: {name} {text:?}"
                );
            }
        }
    }

    /// K08, source: KBS's `kbs/src/jwe/mod.rs` still encrypts with RSA1_5 where a guest asks for it.
    #[test]
    fn k08_another_algorithm_or_a_header_that_says_more_is_refused() {
        let own = ephemeral().unwrap();
        let message = seal(b"secret", &own.public_key()).unwrap();
        let header = URL_SAFE_NO_PAD.decode(&message.protected).unwrap();
        let header: Value = serde_json::from_slice(&header).unwrap();
        let with = |name: &str, value: &Value| {
            let mut header = header.clone();
            header[name] = value.clone();
            let protected = URL_SAFE_NO_PAD.encode(header.to_string());
            let why = open(&Jwe { protected, ..message.clone() }, &own).unwrap_err();
            format!("{why:#}")
        };
        for alg in ["RSA1_5", "RSA-OAEP-256", "ECDH-ES", "dir", "none"] {
            assert!(with("alg", &json!(alg)).contains("only ECDH-ES+A256KW"), "{alg}");
        }
        assert!(with("enc", &json!("A128CBC-HS256")).contains("only ECDH-ES+A256KW"));
        for (name, value) in [("apu", json!("QWxpY2U")), ("crit", json!(["exp"])), ("zip", json!("DEF"))] {
            assert!(with(name, &value).contains("the header is not that"), "{name}");
        }
        // K08: points that are none, and of other curves.
        let zero = URL_SAFE_NO_PAD.encode([0; 32]);
        for epk in [
            json!({"kty": "EC", "crv": "P-256", "x": zero, "y": zero}),
            json!({"kty": "EC", "crv": "P-521", "x": header["epk"]["x"], "y": header["epk"]["y"]}),
            json!({"kty": "EC", "crv": "P-256", "x": header["epk"]["x"], "y": header["epk"]["x"]}),
        ] {
            assert!(!with("epk", &epk).contains("secret"));
        }
        let recipient = Jwk::recipient(&own.public_key());
        assert_eq!(recipient.for_recipient().unwrap(), own.public_key());
        assert!(Jwk { alg: Some("RSA1_5".into()), ..recipient.clone() }.for_recipient().is_err());
        assert!(Jwk { alg: None, ..recipient }.for_recipient().is_err());
    }
}
