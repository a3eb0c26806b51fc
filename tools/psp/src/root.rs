//! The root of an emulated chain: new for each guest, or kept in a directory, so that a relying party elsewhere can be told of it
//! before there is a guest. Either way no hardware stands behind it.

use crate::certificates;
use crate::layout::EMULATED;
use anyhow::{Context as _, Result, ensure};
use p384::SecretKey;
use p384::ecdsa::SigningKey;
use p384::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use sha2::{Digest as _, Sha384};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use x509_cert::Certificate;
use x509_cert::der::{DecodePem as _, Encode as _, EncodePem as _};

/// The file of a kept root with its key, which only its owner can read.
const KEPT: &str = "psp.pem";
/// The file with its certificate, for relying parties.
pub const CERTIFICATE: &str = "root.pem";

/// A root. It stands for one chip, whose id follows from it.
#[derive(Clone)]
pub struct Root {
    pub(crate) key: SigningKey,
    pub(crate) certificate: Certificate,
}

impl Root {
    /// A new one.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new() -> Result<Self> {
        let (key, certificate) = certificates::root()?;
        Ok(Self { key, certificate })
    }

    /// The one that is kept in this directory. If there is none it is made, and the directory too.
    ///
    /// # Errors
    /// The directory cannot be used, or others can read the key in it.
    pub fn kept(dir: &Path) -> Result<Self> {
        let path = dir.join(KEPT);
        let root = match fs::metadata(&path) {
            Ok(meta) => {
                ensure!(
                    meta.mode() & 0o077 == 0,
                    "{}: others can read the key in it: chmod 600, or remove it",
                    path.display()
                );
                let text =
                    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Self::from_pem(&text).with_context(|| path.display().to_string())?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
                made.with_context(|| format!("cannot make {}", dir.display()))?;
                let root = Self::new()?;
                match write(dir, KEPT, root.to_pem()?.as_bytes(), 0o600) {
                    Ok(()) => root,
                    // Another process was faster: its root it is.
                    Err(_) if path.exists() => return Self::kept(dir),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        if !dir.join(CERTIFICATE).exists() {
            let written = write(dir, CERTIFICATE, root.certificate_pem()?.as_bytes(), 0o644);
            // As above.
            written.or_else(|error| if dir.join(CERTIFICATE).exists() { Ok(()) } else { Err(error) })?;
        }
        Ok(root)
    }

    /// The certificate, for whoever accepts what this root vouches for.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn certificate_pem(&self) -> Result<String> {
        self.certificate.to_pem(LineEnding::LF).context("encoding the root")
    }

    fn to_pem(&self) -> Result<String> {
        let key = SecretKey::from(self.key.as_nonzero_scalar());
        let key = key.to_pkcs8_pem(LineEnding::LF).ok().context("encoding the root's key")?;
        Ok(key.to_string() + &self.certificate_pem()?)
    }

    fn from_pem(text: &str) -> Result<Self> {
        let (key, certificate) =
            text.split_once("-----BEGIN CERTIFICATE").context("there is no root and its key in it")?;
        let certificate = Certificate::from_pem(format!("-----BEGIN CERTIFICATE{certificate}"))
            .context("the root is no certificate")?;
        let key = SecretKey::from_pkcs8_pem(key).ok().context("the root's key is none of P-384")?;
        let root = Self { key: SigningKey::from(key), certificate };
        certificates::belongs(&root.key, &root.certificate)?;
        Ok(root)
    }

    /// The id of its chip.
    pub(crate) fn chip_id(&self) -> Result<[u8; 64]> {
        let digest = Sha384::digest(self.certificate.to_der().context("encoding the root")?);
        let mut id = [0; 64];
        let (name, rest) = id.split_at_mut(EMULATED.len());
        name.copy_from_slice(EMULATED);
        rest.copy_from_slice(&digest[..rest.len()]);
        Ok(id)
    }
}

/// Writes a file that appears whole, and only where there is none.
fn write(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<()> {
    let cannot = || format!("cannot write {}", dir.join(name).display());
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(dir)
        .with_context(cannot)?;
    file.write_all(content).with_context(cannot)?;
    file.persist_noclobber(dir.join(name)).with_context(cannot)?;
    Ok(())
}
