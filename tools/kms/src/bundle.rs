//! Certificates and revocation lists as they lie in files: PEM, DER, or the JSON in which Azure's hosts hand them out
//! (`{"vcekCert": PEM, "certificateChain": PEM}`, plain or in base64).

use crate::verify::{Certificate, RevocationList};
use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Longest file, in bytes.
pub const MAX_FILE: usize = 1 << 20;

/// What a file, or several, contain, as DER.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Certificates.
    pub certificates: Vec<Vec<u8>>,
    /// Revocation lists.
    pub revocation_lists: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
struct HostCertificates {
    #[serde(rename = "vcekCert")]
    leaf: String,
    #[serde(rename = "certificateChain")]
    chain: String,
}

impl Bundle {
    /// Adds what is in a file.
    ///
    /// # Errors
    /// It is none of the forms above.
    pub fn add(&mut self, file: &[u8]) -> Result<()> {
        ensure!(file.len() <= MAX_FILE, "it has more than {MAX_FILE} bytes");
        let text = std::str::from_utf8(file).ok().map(str::trim);
        if let Some(json) = text.filter(|text| text.starts_with('{')) {
            let certificates: HostCertificates =
                serde_json::from_str(json).context("it is no JSON of certificates")?;
            self.add_pem(&certificates.leaf)?;
            return self.add_pem(&certificates.chain);
        }
        if let Some(pem) = text.filter(|text| text.contains("-----BEGIN ")) {
            return self.add_pem(pem);
        }
        if let Some(json) =
            text.and_then(|text| STANDARD.decode(text).ok()).filter(|json| json.starts_with(b"{"))
        {
            return self.add(&json);
        }
        if Certificate::read(file).is_ok() {
            self.certificates.push(file.to_vec());
        } else if RevocationList::read(file).is_ok() {
            self.revocation_lists.push(file.to_vec());
        } else {
            bail!("it is neither PEM nor a certificate or revocation list in DER");
        }
        Ok(())
    }

    fn add_pem(&mut self, text: &str) -> Result<()> {
        for part in pem::parse_many(text).context("it is no PEM")? {
            match part.tag() {
                "CERTIFICATE" => self.certificates.push(part.into_contents()),
                "X509 CRL" => self.revocation_lists.push(part.into_contents()),
                other => {
                    bail!("a {} in it is neither a certificate nor a revocation list", other.escape_debug())
                }
            }
        }
        Ok(())
    }
}
