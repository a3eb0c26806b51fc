//! Signing fragments, and what a guest will say of a signed one.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use p256::ecdsa::signature::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use parma_guest::fragment::cose::Signed;
use parma_guest::fragment::did::base64url;
use parma_guest::fragment::key::{Algorithm, Hash};
use parma_guest::fragment::{CONTENT_TYPE, Envelope, Problem, verify};
use parma_guest::policy::fragment::Fragment;
use x509_cert::Certificate;
use x509_cert::der::{Encode as _, Tag, Tagged as _};

/// A private key, by the one algorithm that it signs fragments with.
#[derive(Debug)]
pub enum SigningKey {
    /// ES256
    P256(p256::ecdsa::SigningKey),
    /// ES384
    P384(p384::ecdsa::SigningKey),
}

impl SigningKey {
    /// Reads PEM, PKCS #8 or the older kind for elliptic curves.
    ///
    /// # Errors
    /// It is neither, or of another kind of key than elliptic curves P-256 and P-384.
    pub fn from_pem(pem: &str) -> Result<Self> {
        if let Ok(key) = p256::ecdsa::SigningKey::from_pkcs8_pem(pem) {
            return Ok(Self::P256(key));
        }
        if let Ok(key) = p384::ecdsa::SigningKey::from_pkcs8_pem(pem) {
            return Ok(Self::P384(key));
        }
        if let Ok(key) = p256::SecretKey::from_sec1_pem(pem) {
            return Ok(Self::P256(key.into()));
        }
        if let Ok(key) = p384::SecretKey::from_sec1_pem(pem) {
            return Ok(Self::P384(key.into()));
        }
        bail!(
            "not an unencrypted private key on P-256 or P-384 in PEM; `openssl pkcs8 -topk8 -nocrypt -in KEY` makes one of other formats"
        )
    }

    fn algorithm(&self) -> Algorithm {
        match self {
            Self::P256(_) => Algorithm::Es256,
            Self::P384(_) => Algorithm::Es384,
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                signature.to_bytes().to_vec()
            }
        }
    }
}

/// The certificates of a PEM file, leaf first, as DER.
///
/// # Errors
/// It is no chain of certificates.
pub fn chain_from_pem(pem: &str) -> Result<Vec<Vec<u8>>> {
    let chain = Certificate::load_pem_chain(pem.as_bytes())
        .map_err(|error| anyhow!("not a chain of certificates in PEM: {error}"))?;
    chain.iter().map(|certificate| certificate.to_der().map_err(|error| anyhow!("{error}"))).collect()
}

/// The did:x509 that pins the last certificate of a chain and names the leaf's common name and organisation.
///
/// # Errors
/// The chain is empty, or the leaf has neither.
pub fn issuer_of(chain: &[Vec<u8>]) -> Result<String> {
    use x509_cert::der::Decode as _;
    let (Some(leaf), Some(root)) = (chain.first(), chain.last()) else { bail!("the chain is empty") };
    let leaf = Certificate::from_der(leaf).map_err(|error| anyhow!("the leaf: {error}"))?;
    let mut did = format!("did:x509:0:sha256:{}::subject", base64url(&Hash::Sha256.of(&[root.as_slice()])));
    let mut found = false;
    for attribute in leaf.tbs_certificate().subject().iter() {
        let label = match attribute.oid.to_string().as_str() {
            "2.5.4.3" => "CN",
            "2.5.4.10" => "O",
            _ => continue,
        };
        ensure!(
            matches!(attribute.value.tag(), Tag::Utf8String | Tag::PrintableString),
            "the leaf's {label} is no ordinary string: give --issuer"
        );
        did += &format!(":{label}:{}", percent_encoded(attribute.value.value()));
        found = true;
    }
    ensure!(found, "the leaf has neither a common name nor an organisation: give --issuer");
    Ok(did)
}

fn percent_encoded(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            b'-' | b'.' | b'_' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// Signs an image as a fragment. What comes out verifies, or nothing does.
///
/// # Errors
/// The image is no fragment, the key is not the leaf's, or the chain or the issuer is not valid.
pub fn sign(
    image: &[u8],
    key: &SigningKey,
    chain: &[Vec<u8>],
    issuer: &str,
    feed: &str,
    svn: u32,
) -> Result<Vec<u8>> {
    Fragment::read(image).map_err(|invalid| {
        anyhow!("not a compiled fragment ({invalid:?}): make it with `parma policy compile --fragment`")
    })?;
    let envelope = Envelope {
        algorithm: key.algorithm(),
        chain,
        issuer,
        feed,
        svn,
        content_type: CONTENT_TYPE,
        payload: image,
    };
    let message = envelope.signed(&key.sign(&envelope.to_be_signed()));
    match verify(&message) {
        Ok(_) => Ok(message),
        Err(Problem::Signature | Problem::Algorithm) => {
            bail!(
                "the key is not that of the chain's first certificate: give the leaf's key, and the leaf first"
            )
        }
        Err(problem) => bail!("a guest would refuse it: the fragment {problem}"),
    }
}

/// What a guest checks of a signed fragment before and after it asks its policy.
///
/// # Errors
/// It would refuse it, whatever its policy.
pub fn check(message: &[u8]) -> Result<(Signed<'_>, u32)> {
    let signed = verify(message).map_err(|problem| anyhow!("the fragment {problem}"))?;
    ensure!(signed.content_type == CONTENT_TYPE, "the fragment {}", Problem::ContentType);
    let svn = signed.svn.ok_or_else(|| anyhow!("the fragment {}", Problem::Svn))?;
    Fragment::read(signed.payload)
        .map_err(|invalid| anyhow!("{invalid:?}"))
        .with_context(|| format!("the fragment {}", Problem::Payload))?;
    Ok((signed, svn))
}
