//! Chains of certificates of every kind, and whoever signs fragments with them.

use p256::ecdsa::{DerSignature, SigningKey};
use parma_guest::fragment::cbor::{Major, head};
use std::str::FromStr as _;
use x509_cert::builder::profile::BuilderProfile;
use x509_cert::builder::{Builder as _, CertificateBuilder};
use x509_cert::certificate::TbsCertificate;
use x509_cert::der::asn1::{GeneralizedTime, Ia5String, ObjectIdentifier};
use x509_cert::der::{DateTime, Encode as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName};
use x509_cert::ext::{Extension, ToExtension};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{SubjectPublicKeyInfo, SubjectPublicKeyInfoRef};
use x509_cert::time::{Time, Validity};

/// What one certificate says.
pub struct Profile {
    pub subject: &'static str,
    /// `None`: a leaf. `Some(n)`: an authority with at most n authorities below it.
    pub authority: Option<u8>,
    /// The years in which it is valid.
    pub years: (u16, u16),
    pub usages: Vec<&'static str>,
    pub emails: Vec<&'static str>,
    pub critical: Option<&'static str>,
}

impl Profile {
    pub fn authority(subject: &'static str) -> Self {
        Self { authority: Some(9), ..Self::leaf(subject) }
    }

    pub fn leaf(subject: &'static str) -> Self {
        let (usages, emails) = (vec!["1.3.6.1.5.5.7.3.3"], vec!["release@example.com"]);
        Self { subject, authority: None, years: (2020, 2040), usages, emails, critical: None }
    }
}

struct Built<'a> {
    profile: &'a Profile,
    issuer: &'static str,
}

impl BuilderProfile for Built<'_> {
    fn get_issuer(&self, _: &Name) -> Name {
        Name::from_str(self.issuer).unwrap()
    }

    fn get_subject(&self) -> Name {
        Name::from_str(self.profile.subject).unwrap()
    }

    fn build_extensions(
        &self,
        _: SubjectPublicKeyInfoRef<'_>,
        _: SubjectPublicKeyInfoRef<'_>,
        _: &TbsCertificate,
    ) -> x509_cert::builder::Result<Vec<Extension>> {
        let subject = self.get_subject();
        let mut extensions = Vec::new();
        match self.profile.authority {
            Some(below) => {
                let constraints = BasicConstraints { ca: true, path_len_constraint: Some(below) };
                extensions.push(constraints.to_extension(&subject, &extensions)?);
                extensions.push(KeyUsage(KeyUsages::KeyCertSign.into()).to_extension(&subject, &extensions)?);
            }
            None => {
                let usage = KeyUsage(KeyUsages::DigitalSignature.into());
                extensions.push(usage.to_extension(&subject, &extensions)?);
                let usages = self.profile.usages.iter().map(|id| ObjectIdentifier::new(id).unwrap());
                extensions.push(ExtendedKeyUsage(usages.collect()).to_extension(&subject, &extensions)?);
                let email = |name: &&str| GeneralName::Rfc822Name(Ia5String::new(name).unwrap());
                let names = self.profile.emails.iter().map(email).collect();
                extensions.push(SubjectAltName(names).to_extension(&subject, &extensions)?);
            }
        }
        if let Some(id) = self.profile.critical {
            let mut unknown = extensions[0].clone();
            (unknown.extn_id, unknown.critical) = (ObjectIdentifier::new(id).unwrap(), true);
            extensions.push(unknown);
        }
        Ok(extensions)
    }
}

/// A key that depends on its number only.
pub fn key(number: u8) -> SigningKey {
    SigningKey::from_slice(&[number; 32]).unwrap()
}

fn time(year: u16) -> Time {
    Time::GeneralTime(GeneralizedTime::from_date_time(DateTime::new(year, 1, 1, 0, 0, 0).unwrap()))
}

/// One certificate, for the key of this number, signed by the key of that one.
pub fn certificate(profile: &Profile, own: u8, issuer: &'static str, signer: u8) -> Vec<u8> {
    let public = SubjectPublicKeyInfo::from_key(key(own).verifying_key()).unwrap();
    let validity = Validity::new(time(profile.years.0), time(profile.years.1));
    let serial = SerialNumber::from(u32::from(own));
    let builder = CertificateBuilder::new(Built { profile, issuer }, serial, validity, public).unwrap();
    builder.build::<_, DerSignature>(&key(signer)).unwrap().to_der().unwrap()
}

pub const ROOT: &str = "CN=Example Root,O=Example";
pub const AUTHORITY: &str = "CN=Example Signing,O=Example";
pub const LEAF: &str = "CN=Release Engineering,O=Example,C=DE";

/// The honest chain: leaf (key 3), authority (key 2), root (key 1).
pub fn chain() -> Vec<Vec<u8>> {
    vec![
        certificate(&Profile::leaf(LEAF), 3, AUTHORITY, 2),
        certificate(&Profile::authority(AUTHORITY), 2, ROOT, 1),
        certificate(&Profile::authority(ROOT), 1, ROOT, 1),
    ]
}

/// A COSE_Sign1 message, piece by piece, so that each can be wrong. `protected` is the map's pairs, encoded.
pub struct Message {
    pub tag: Vec<u8>,
    pub protected: Vec<Vec<u8>>,
    pub unprotected: Vec<u8>,
    pub payload: Vec<u8>,
    /// What comes after the last item.
    pub after: Vec<u8>,
    /// Number of the key that signs.
    pub signer: u8,
}

pub fn int(number: i64) -> Vec<u8> {
    let (major, argument) = if number < 0 { (Major::Negative, !number) } else { (Major::Unsigned, number) };
    head(major, argument as u64).to_vec()
}

pub fn text(text: &str) -> Vec<u8> {
    [&head(Major::Text, text.len() as u64)[..], text.as_bytes()].concat()
}

pub fn bytes(bytes: &[u8]) -> Vec<u8> {
    [&head(Major::Bytes, bytes.len() as u64)[..], bytes].concat()
}

pub fn pair(label: Vec<u8>, value: Vec<u8>) -> Vec<u8> {
    [label, value].concat()
}

impl Message {
    /// An honest message of this chain.
    pub fn new(chain: &[Vec<u8>], issuer: &str, feed: &str, svn: Vec<u8>, payload: &[u8]) -> Self {
        let certificates: Vec<u8> = chain.iter().flat_map(|certificate| bytes(certificate)).collect();
        Self {
            tag: vec![0xd2],
            protected: vec![
                pair(int(1), int(-7)),
                pair(int(3), text(parma_guest::fragment::CONTENT_TYPE)),
                pair(int(33), [&head(Major::Array, chain.len() as u64)[..], &certificates].concat()),
                pair(text("iss"), text(issuer)),
                pair(text("feed"), text(feed)),
                pair(text("svn"), svn),
            ],
            unprotected: vec![0xa0],
            payload: bytes(payload),
            after: Vec::new(),
            signer: 3,
        }
    }

    pub fn signed(&self) -> Vec<u8> {
        use p256::ecdsa::signature::Signer as _;
        let map = [&head(Major::Map, self.protected.len() as u64)[..], &self.protected.concat()].concat();
        let protected = bytes(&map);
        let message = [vec![0x84], text("Signature1"), protected.clone(), bytes(b""), self.payload.clone()];
        let signature: p256::ecdsa::Signature = key(self.signer).sign(&message.concat());
        let parts = [
            self.tag.clone(),
            vec![0x84],
            protected,
            self.unprotected.clone(),
            self.payload.clone(),
            bytes(&signature.to_bytes()),
            self.after.clone(),
        ];
        parts.concat()
    }
}
