//! What this guest can show of itself.
//!
//! A source of reports answers a question of 48 bytes with a report whose REPORT_DATA is the question and 16 zeros: as much as the
//! protocols need, and as Parma's guest lets its containers choose.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::attest::service::{self, QUESTION, report_data};
use serde::Deserialize;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of a report.
pub const REPORT: usize = 1184;
/// Longest file of the attestation directory, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// How long a report may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A report, and what is needed to judge it.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// The report.
    pub report: Vec<u8>,
    /// The certificates of the key that signed it, in DER, leaf first; none where the relying party has them.
    pub certificates: Vec<Vec<u8>>,
    /// The builder's endorsement of what was launched.
    pub endorsement: Option<Vec<u8>>,
}

impl Evidence {
    /// The certificates in PEM.
    #[must_use]
    pub fn chain(&self) -> String {
        let encode = |der: &Vec<u8>| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_slice()));
        self.certificates.iter().map(encode).collect()
    }

    /// REPORTED_TCB, of which the certificates are, as Azure's hosts write it.
    ///
    /// # Errors
    /// The report is none.
    pub fn endorsed_tcb(&self) -> Result<String> {
        Ok(crate::hex(self.report.get(0x180..0x188).context("the report is too short")?))
    }
}

/// Where reports come from.
pub trait Source: Send + Sync {
    /// A fresh report for this question.
    ///
    /// # Errors
    /// There is none to be had.
    fn evidence(&self, question: &[u8; QUESTION]) -> Result<Evidence>;
}

/// What this guest is, as KBS names it.
pub enum Tee {
    /// One with SEV-SNP, or with what plays it.
    Snp(Box<dyn Source>),
    /// None: there is no hardware, and the evidence says so. For tests with services that accept that.
    Sample,
}

impl Tee {
    /// A fresh report for a hash of at most 48 bytes: REPORT_DATA is the hash, and zeros.
    ///
    /// # Errors
    /// There is none to be had.
    pub fn evidence(&self, hash: &[u8]) -> Result<Evidence> {
        let Self::Snp(source) = self else {
            bail!("there are no reports: this sidecar was started with --sample");
        };
        let mut question = [0; QUESTION];
        question.get_mut(..hash.len()).context("the hash is too long")?.copy_from_slice(hash);
        let evidence = source.evidence(&question)?;
        ensure!(evidence.report.len() == REPORT, "there is no report");
        // SECURITY (K02): not one that was asked for before.
        ensure!(evidence.report[0x50..0x90] == report_data(&question), "the report is for something else");
        Ok(evidence)
    }
}

/// Asks a socket: these bytes there, a report back.
fn ask(socket: &Path, question: &[u8]) -> Result<Vec<u8>> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.write_all(question)?;
        let mut report = Vec::new();
        socket.take(REPORT as u64 + 1).read_to_end(&mut report)?;
        Ok(report)
    };
    ask().with_context(|| format!("no report from {}", socket.display()))
}

/// The certificates of one PEM after another.
///
/// # Errors
/// It is no PEM.
pub fn certificates(text: &[u8]) -> Result<Vec<Vec<u8>>> {
    let parts = pem::parse_many(text).map_err(|why| anyhow!("not in PEM: {why}"))?;
    let certificates = parts.into_iter().filter(|part| part.tag() == "CERTIFICATE");
    Ok(certificates.map(pem::Pem::into_contents).collect())
}

/// The directory in which Parma's guest lets a container attest itself (`parma_guest::attest::service`).
pub struct Directory(pub PathBuf);

/// Certificates as Azure's hosts hand them out.
#[derive(Deserialize)]
struct HostCertificates {
    #[serde(rename = "vcekCert")]
    leaf: String,
    #[serde(rename = "certificateChain")]
    chain: String,
}

impl Directory {
    /// What a file's base64 says; `None` if there is no such file.
    fn file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.0.join(name);
        let cannot = || format!("cannot read {}", path.display());
        let file = match fs::File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.with_context(cannot)?,
        };
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text).with_context(cannot)?;
        ensure!(text.len() as u64 <= MAX_FILE, "{} has more than {MAX_FILE} bytes", path.display());
        let content =
            STANDARD.decode(text.trim_ascii()).with_context(|| format!("{name} is not in base64"))?;
        Ok(Some(content))
    }
}

impl Source for Directory {
    fn evidence(&self, question: &[u8; QUESTION]) -> Result<Evidence> {
        let report = ask(&self.0.join(service::SOCKET), question)?;
        let chain = self.file(service::CERTIFICATES)?.unwrap_or_default();
        let chain = match serde_json::from_slice::<HostCertificates>(&chain) {
            Ok(HostCertificates { leaf, chain }) => format!("{leaf}\n{chain}").into_bytes(),
            Err(_) => chain,
        };
        let certificates = certificates(&chain).context(service::CERTIFICATES)?;
        Ok(Evidence { report, certificates, endorsement: self.file(service::ENDORSEMENT)? })
    }
}

/// The emulated PSP's socket (64 bytes there, a report back) and its certificates: no hardware vouches for anything.
pub struct Emulated {
    /// The socket.
    pub socket: PathBuf,
    /// The certificates, in DER, leaf first.
    pub certificates: Vec<Vec<u8>>,
}

impl Source for Emulated {
    fn evidence(&self, question: &[u8; QUESTION]) -> Result<Evidence> {
        let report = ask(&self.socket, &report_data(question))?;
        Ok(Evidence { report, certificates: self.certificates.clone(), endorsement: None })
    }
}
