//! An emulated AMD secure processor (PSP), for machines without SEV-SNP.
//!
//! It promises the *form* of what hardware gives, and nothing of its meaning: reports have the layout of the SNP
//! firmware ABI (document 56860, table 23, version 5) and a real ECDSA P-384 signature, and the key that signs them is
//! certified by a chain ARK → ASK → VCEK with AMD's extensions. But the keys are made here, in an ordinary process of
//! the host, so a report proves only that this process made it. Every subject name and every chip id says EMULATED.
//!
//! Two differences from AMD's chain, both deliberate: ARK and ASK have P-384 keys instead of RSA-4096 (which would take
//! seconds to make at each start), and certificates are valid for seven years from when they are made.
//!
//! * [`Psp`] is one secure processor that has launched one guest; it signs reports and serves them on a socket.
//! * [`Root`] is what its certificates rest on, new for each guest or kept.
//! * [`Chain`] is its certificates; [`verify`] checks a report against one.
//! * [`layout`] says where a report's fields are.

mod certificates;
pub mod layout;
mod root;

use anyhow::{Context as _, Result, ensure};
use p384::ecdsa::signature::{Signer as _, Verifier as _};
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
use p384::elliptic_curve::Generate;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

pub use certificates::{Chain, Link, Revocations};
pub use layout::{Platform, Tcb};
pub use root::{CERTIFICATE, Root};

/// Bytes of an attestation report.
pub const REPORT_LENGTH: usize = layout::LENGTH;
/// Bytes that a guest may put into its report.
pub const REPORT_DATA_LENGTH: usize = 64;
/// vsock port of the host on which an emulated guest asks for its reports; see [`Psp::serve`].
pub const PORT: u32 = 5043;
/// How long one request may take to arrive and its answer to leave.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// An attestation report as the guest gets it.
pub type Report = [u8; REPORT_LENGTH];

/// What the host vouches for at launch: here, as in all of Parma, SHA-256 of the compiled policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostData(pub [u8; 32]);

/// What was launched: the launch digest of SNP hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measurement(pub [u8; 48]);

/// One emulated secure processor that has launched one guest.
#[derive(Clone)]
pub struct Psp {
    key: SigningKey,
    chain: Chain,
    authorities: certificates::Authorities,
    template: Report,
}

impl Psp {
    /// A new processor, with new keys, whose guest was launched with these values.
    ///
    /// # Errors
    /// The system has no randomness, or certificates could not be encoded.
    pub fn new(host_data: HostData, measurement: Measurement) -> Result<Self> {
        Self::on(&Platform::default(), host_data, measurement)
    }

    /// The same on a platform that is not as it should be, for those who test that it is found out.
    ///
    /// # Errors
    /// See [`Psp::new`].
    pub fn on(platform: &Platform, host_data: HostData, measurement: Measurement) -> Result<Self> {
        Self::under(&Root::new()?, platform, host_data, measurement)
    }

    /// The same under a root that was there before: the chip is the root's.
    ///
    /// # Errors
    /// See [`Psp::new`].
    pub fn under(
        root: &Root,
        platform: &Platform,
        host_data: HostData,
        measurement: Measurement,
    ) -> Result<Self> {
        let mut chip_id = root.chip_id()?;
        if platform.turin {
            // 8 bytes, which tell chips apart, and zeros.
            chip_id.rotate_left(layout::EMULATED.len());
            chip_id[8..].fill(0);
        }
        let report_id: [u8; 32] = Generate::try_generate().context("no randomness")?;
        let (key, chain, authorities) = certificates::issue(root, platform, &chip_id)?;
        let mut template = [0; REPORT_LENGTH];
        layout::fill(&mut template, platform, &chip_id, &report_id);
        template[layout::HOST_DATA].copy_from_slice(&host_data.0);
        template[layout::MEASUREMENT].copy_from_slice(&measurement.0);
        Ok(Self { key, chain, authorities, template })
    }

    /// A signed report that carries these bytes.
    #[must_use]
    pub fn report(&self, report_data: &[u8; REPORT_DATA_LENGTH]) -> Report {
        let mut report = self.template;
        report[layout::REPORT_DATA].copy_from_slice(report_data);
        self.sign(&mut report);
        report
    }

    /// Signs what is in a report, whatever it says.
    pub fn sign(&self, report: &mut Report) {
        report[layout::SIGNATURE_R.start..].fill(0);
        let signature: Signature = self.key.sign(&report[layout::SIGNED]);
        let (r, s) = signature.split_bytes();
        for (field, scalar) in [(layout::SIGNATURE_R, r), (layout::SIGNATURE_S, s)] {
            // Little-endian and zero-extended: 48 of 72 bytes.
            for (to, from) in report[field].iter_mut().zip(scalar.iter().rev()) {
                *to = *from;
            }
        }
    }

    /// The certificates of the key that signs the reports.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// A list of revoked certificates, in DER.
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn revoke(&self, revocations: &Revocations<'_>) -> Result<Vec<u8>> {
        revocations.sign(&self.chain, &self.authorities)
    }

    /// Answers requests until the listener is shut down: 64 bytes of report data in, 1184 bytes of report out, close.
    ///
    /// One connection at a time; one that sends too little, too late is dropped and nothing else happens. The guest is
    /// the only client, so what it can obstruct is itself. `answered` is called after each report that was sent.
    ///
    /// # Errors
    /// The listener fails.
    pub fn serve(&self, listener: &UnixListener, mut answered: impl FnMut()) -> Result<()> {
        loop {
            match listener.accept() {
                Ok((connection, _)) => {
                    // A guest that hangs up early is its own loss.
                    if self.answer(connection).is_ok() {
                        answered();
                    }
                }
                // What shutdown(2) of a listening socket gives.
                Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the emulated PSP's socket"),
            }
        }
    }

    fn answer(&self, mut connection: UnixStream) -> std::io::Result<()> {
        connection.set_read_timeout(Some(REQUEST_TIMEOUT))?;
        connection.set_write_timeout(Some(REQUEST_TIMEOUT))?;
        let mut report_data = [0; REPORT_DATA_LENGTH];
        connection.read_exact(&mut report_data)?;
        connection.write_all(&self.report(&report_data))
    }
}

/// Checks that an emulated processor with this chain signed this report: that each certificate is signed by the one
/// above it, that the VCEK is for the chip and firmware that the report names, and the report's own signature.
///
/// What it does not say: that any hardware was involved, or that the measurement and HOST_DATA are the expected ones.
///
/// # Errors
/// The first check that fails.
pub fn verify(report: &Report, chain: &Chain) -> Result<()> {
    let vcek: VerifyingKey = chain.verify(&report[layout::CHIP_ID], &report[layout::REPORTED_TCB])?;
    let version = layout::u32_at(report, layout::VERSION);
    ensure!(version == layout::REPORT_VERSION, "report version {version}, not {}", layout::REPORT_VERSION);
    let algorithm = layout::u32_at(report, layout::SIGNATURE_ALGORITHM);
    ensure!(
        algorithm == layout::ECDSA_P384_SHA384,
        "signature algorithm {algorithm}, not ECDSA P-384 with SHA-384"
    );
    let r =
        layout::scalar(&report[layout::SIGNATURE_R]).context("the signature's R is longer than 48 bytes")?;
    let s =
        layout::scalar(&report[layout::SIGNATURE_S]).context("the signature's S is longer than 48 bytes")?;
    let signature = Signature::from_scalars(r, s).ok().context("the signature is not a pair of scalars")?;
    vcek.verify(&report[layout::SIGNED], &signature).ok().context("the VCEK did not sign this report")
}
