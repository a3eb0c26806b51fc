//! The chain ARK → ASK → VCEK, with the extensions of AMD's VCEK specification (57230, section 3), and lists of what is revoked.

use crate::layout::Platform;
use crate::root::Root;
use anyhow::{Context as _, Result, anyhow, ensure};
use p384::ecdsa::signature::Verifier as _;
use p384::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p384::elliptic_curve::Generate;
use std::str::FromStr as _;
use std::time::{Duration, SystemTime};
use x509_cert::Certificate;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{Builder as _, CertificateBuilder, CrlBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::crl::RevokedCert;
use x509_cert::der::asn1::{Ia5String, OctetString, Uint};
use x509_cert::der::oid::ObjectIdentifier;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode as _, Encode as _, EncodePem as _};
use x509_cert::ext::pkix::{BasicConstraints, CrlNumber, KeyUsage, KeyUsages};
use x509_cert::ext::{Extension, ToExtension as _};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};

const ARK: &str = "CN=ARK-EMULATED,O=Parma emulated PSP (no hardware)";
const ASK: &str = "CN=SEV-EMULATED,O=Parma emulated PSP (no hardware)";
const ASVK: &str = "CN=SEV-VLEK-EMULATED,O=Parma emulated PSP (no hardware)";
const VLEK: &str = "CN=SEV-VLEK-LEAF-EMULATED,O=Parma emulated PSP (no hardware)";
const VCEK: &str = "CN=SEV-VCEK-EMULATED,O=Parma emulated PSP (no hardware)";
/// The product name that stands in the VCEK.
const PRODUCT: &str = "EMULATED";
/// That of one that says it is a Turin.
const TURIN: &str = "Turin-EMULATED";
/// Whose key a VLEK is.
const PROVIDER: &str = "Parma emulated provider";
const SEVEN_YEARS: Duration = Duration::from_secs(7 * 365 * 24 * 60 * 60);

const STRUCT_VERSION: &str = "1.3.6.1.4.1.3704.1.1";
const PRODUCT_NAME: &str = "1.3.6.1.4.1.3704.1.2";
const BOOTLOADER: &str = "1.3.6.1.4.1.3704.1.3.1";
const TEE: &str = "1.3.6.1.4.1.3704.1.3.2";
const SNP: &str = "1.3.6.1.4.1.3704.1.3.3";
const MICROCODE: &str = "1.3.6.1.4.1.3704.1.3.8";
const FMC: &str = "1.3.6.1.4.1.3704.1.3.9";
const HARDWARE_ID: &str = "1.3.6.1.4.1.3704.1.4";
const PROVIDER_ID: &str = "1.3.6.1.4.1.3704.1.5";

/// The certificates of an emulated processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The root, signed by itself.
    pub ark: Certificate,
    /// Signed by the root.
    pub ask: Certificate,
    /// The report-signing key's, signed by the ASK.
    pub vcek: Certificate,
}

impl Chain {
    /// The three certificates as PEM: VCEK, ASK, ARK.
    ///
    /// # Errors
    /// A certificate cannot be encoded.
    pub fn to_pem(&self) -> Result<String> {
        [&self.vcek, &self.ask, &self.ark]
            .map(|c| c.to_pem(LineEnding::LF))
            .into_iter()
            .collect::<Result<_, _>>()
            .context("encoding the chain")
    }

    /// The three certificates as DER, in the same order.
    ///
    /// # Errors
    /// A certificate cannot be encoded.
    pub fn to_der(&self) -> Result<Vec<Vec<u8>>> {
        [&self.vcek, &self.ask, &self.ark]
            .map(|c| c.to_der())
            .into_iter()
            .collect::<Result<_, _>>()
            .context("encoding the chain")
    }

    /// Reads what [`Chain::to_pem`] wrote.
    ///
    /// # Errors
    /// Not exactly three certificates.
    pub fn from_pem(text: &str) -> Result<Self> {
        let certificates = Certificate::load_pem_chain(text.as_bytes())
            .map_err(|e| anyhow!("not a chain of certificates: {e}"))?;
        let [vcek, ask, ark]: [Certificate; 3] =
            certificates.try_into().ok().context("a chain is three certificates: VCEK, ASK and ARK")?;
        Ok(Self { ark, ask, vcek })
    }

    /// Checks the signatures from the root down and that the VCEK is for this chip with this firmware; gives its key.
    pub(crate) fn verify(&self, chip_id: &[u8], tcb: &[u8]) -> Result<VerifyingKey> {
        signed_by(&self.ark, &self.ark).context("ARK")?;
        signed_by(&self.ask, &self.ark).context("ASK")?;
        signed_by(&self.vcek, &self.ask).context("VCEK")?;
        let extension = |oid: &str| {
            let oid = ObjectIdentifier::new(oid).ok()?;
            let all = self.vcek.tbs_certificate().extensions()?;
            all.iter().find(|e| e.extn_id == oid).map(|e| e.extn_value.as_bytes())
        };
        ensure!(extension(HARDWARE_ID) == Some(chip_id), "the VCEK is for another chip than the report's");
        for (name, oid, at) in
            [("boot loader", BOOTLOADER, 0), ("TEE", TEE, 1), ("SNP", SNP, 6), ("microcode", MICROCODE, 7)]
        {
            let certified = extension(oid).and_then(|der| u8::from_der(der).ok());
            ensure!(
                certified == tcb.get(at).copied(),
                "the VCEK is for another {name} version than the report's"
            );
        }
        key(&self.vcek)
    }
}

fn key(certificate: &Certificate) -> Result<VerifyingKey> {
    let info = certificate.tbs_certificate().subject_public_key_info();
    let point = info.subject_public_key.as_bytes().context("the key is not a whole number of bytes")?;
    VerifyingKey::from_sec1_bytes(point).ok().context("the key is not a P-384 point")
}

fn signed_by(certificate: &Certificate, issuer: &Certificate) -> Result<()> {
    let body = certificate.tbs_certificate();
    ensure!(body.issuer() == issuer.tbs_certificate().subject(), "the issuer is another");
    let signature = certificate.signature().as_bytes().and_then(|der| DerSignature::from_bytes(der).ok());
    let signature = signature.context("the signature is malformed")?;
    key(issuer)?.verify(&body.to_der()?, &signature).ok().context("the issuer did not sign it")
}

/// A certificate of the chain; its serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Link {
    /// The root.
    Ark = 1,
    /// The ASK, or the ASVK of a VLEK.
    Ask = 2,
    /// The VCEK or VLEK.
    Leaf = 3,
}

/// The keys above the one that signs reports.
#[derive(Clone)]
pub(crate) struct Authorities {
    ark: SigningKey,
    ask: SigningKey,
}

impl Authorities {
    fn key(&self, of: Link) -> &SigningKey {
        if of == Link::Ark { &self.ark } else { &self.ask }
    }
}

/// A list of revoked certificates: whose name stands in it, who signed it, what is on it, and from when to when it is the current one.
#[derive(Clone, Copy, Debug)]
pub struct Revocations<'a> {
    /// The authority that it is of.
    pub issuer: Link,
    /// The authority that signs it.
    pub signer: Link,
    /// What is revoked.
    pub revoked: &'a [Link],
    /// First and last moment.
    pub life: (SystemTime, SystemTime),
}

impl Revocations<'_> {
    pub(crate) fn sign(&self, chain: &Chain, authorities: &Authorities) -> Result<Vec<u8>> {
        let issuer = if self.issuer == Link::Ark { &chain.ark } else { &chain.ask };
        let from = Time::try_from(self.life.0)?;
        let entry = |link: &Link| RevokedCert {
            serial_number: SerialNumber::from(*link as u32),
            revocation_date: from,
            crl_entry_extensions: None,
        };
        let mut list = CrlBuilder::new_with_this_update(issuer, CrlNumber(Uint::new(&[1])?), from)?
            .with_next_update(Some(self.life.1.try_into()?));
        if !self.revoked.is_empty() {
            list = list.with_certificates(self.revoked.iter().map(entry));
        }
        Ok(list.build::<_, DerSignature>(authorities.key(self.signer))?.to_der()?)
    }
}

fn new_key() -> Result<SigningKey> {
    SigningKey::try_generate().context("no randomness")
}

/// A certificate that may issue others.
fn authority(subject: &str, issuer: &str) -> Result<Profile> {
    let mut profile = Profile::new(subject, issuer)?;
    let usage = KeyUsage(KeyUsages::KeyCertSign | KeyUsages::CRLSign);
    profile.add(&BasicConstraints { ca: true, path_len_constraint: None })?;
    profile.add(&usage)?;
    Ok(profile)
}

/// A new root: its key and its certificate.
pub(crate) fn root() -> Result<(SigningKey, Certificate)> {
    let key = new_key()?;
    let certificate = authority(ARK, ARK)?.sign(Link::Ark, &key, &key)?;
    Ok((key, certificate))
}

/// Checks that the certificate is a root's of this key.
pub(crate) fn belongs(own: &SigningKey, root: &Certificate) -> Result<()> {
    ensure!(key(root)? == *own.verifying_key(), "the root is of another key");
    signed_by(root, root)
}

/// A new report-signing key for this chip, its certificates under this root, and the keys that issued them.
pub(crate) fn issue(
    root: &Root,
    platform: &Platform,
    chip_id: &[u8; 64],
) -> Result<(SigningKey, Chain, Authorities)> {
    let (ark_key, ark) = (root.key.clone(), root.certificate.clone());
    let (ask_key, vcek_key) = (new_key()?, new_key()?);
    let middle = if platform.vlek != platform.misplaced { ASVK } else { ASK };
    let leaf = if platform.vlek { VLEK } else { VCEK };
    let ask = authority(middle, ARK)?.sign(Link::Ask, &ask_key, &ark_key)?;
    let mut leaf = Profile::new(leaf, middle)?;
    leaf.raw(STRUCT_VERSION, &1u8.to_der()?)?;
    leaf.raw(PRODUCT_NAME, &Ia5String::new(if platform.turin { TURIN } else { PRODUCT })?.to_der()?)?;
    let tcb = platform.tcb;
    for (oid, version) in
        [(BOOTLOADER, tcb.bootloader), (TEE, tcb.tee), (SNP, tcb.snp), (MICROCODE, tcb.microcode)]
    {
        leaf.raw(oid, &version.to_der()?)?;
    }
    if platform.turin {
        leaf.raw(FMC, &0u8.to_der()?)?;
    }
    // As in AMD's certificates, the bytes stand there bare.
    match (platform.vlek, platform.turin) {
        (true, _) => leaf.raw(PROVIDER_ID, &Ia5String::new(PROVIDER)?.to_der()?)?,
        (false, true) => leaf.raw(HARDWARE_ID, &chip_id[..8])?,
        (false, false) => leaf.raw(HARDWARE_ID, chip_id)?,
    }
    let vcek = leaf.sign(Link::Leaf, &vcek_key, &ask_key)?;
    Ok((vcek_key, Chain { ark, ask, vcek }, Authorities { ark: ark_key, ask: ask_key }))
}

/// What one certificate says.
struct Profile {
    subject: Name,
    issuer: Name,
    extensions: Vec<Extension>,
}

impl Profile {
    fn new(subject: &str, issuer: &str) -> Result<Self> {
        Ok(Self {
            subject: Name::from_str(subject)?,
            issuer: Name::from_str(issuer)?,
            extensions: Vec::new(),
        })
    }

    fn add<T>(&mut self, extension: &T) -> Result<()>
    where
        for<'a> &'a T: x509_cert::ext::ToExtension<Error = x509_cert::der::Error>,
    {
        self.extensions.push(extension.to_extension(&self.subject, &self.extensions)?);
        Ok(())
    }

    fn raw(&mut self, oid: &str, value: &[u8]) -> Result<()> {
        let extn_id = ObjectIdentifier::new(oid)?;
        self.extensions.push(Extension { extn_id, critical: false, extn_value: OctetString::new(value)? });
        Ok(())
    }

    fn sign(self, link: Link, key: &SigningKey, issuer: &SigningKey) -> Result<Certificate> {
        let public = SubjectPublicKeyInfo::from_key(key.verifying_key())?;
        let validity = Validity::from_now(SEVEN_YEARS)?;
        let builder = CertificateBuilder::new(self, SerialNumber::from(link as u32), validity, public)?;
        Ok(builder.build::<_, DerSignature>(issuer)?)
    }
}

impl BuilderProfile for Profile {
    fn get_issuer(&self, _: &Name) -> Name {
        self.issuer.clone()
    }

    fn get_subject(&self) -> Name {
        self.subject.clone()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        Ok(self.extensions.clone())
    }
}
