//! The guest's own attestation report, and the HOST_DATA in it.
//!
//! Paper, section 3.1: the hardware reports, beside the measurement of the guest, 32 bytes that were fixed at launch. Here
//! they are the SHA-256 of the policy. The guest reads them once, before it listens for anything, and from nowhere but
//! the report; a guest that cannot read a report does not run (difference D9).
//!
//! `docs/attestation.md` says what this proves, and what it does not.

pub mod audit;
pub mod channel;
#[cfg(feature = "emulated")]
mod emulated;
#[cfg(all(feature = "guest", not(feature = "emulated")))]
mod hardware;
#[cfg(feature = "guest")]
pub mod keys;
mod report;
pub mod service;
pub mod stream;

pub use report::{InvalidReport, Report};

#[cfg(feature = "emulated")]
use emulated as source;
#[cfg(all(feature = "guest", not(feature = "emulated")))]
use hardware as source;

/// Why there is no report.
#[cfg(feature = "guest")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestError {
    /// A call to the kernel failed.
    Kernel(crate::linux::Errno),
    /// The PSP refused, with this status.
    Psp(u32),
    /// What came is not a report.
    Invalid(InvalidReport),
    /// It is a report, but not the one that was asked for.
    NotFresh,
}

#[cfg(feature = "guest")]
impl core::fmt::Display for AttestError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Kernel(errno) => write!(f, "no report from {}: {errno}", source::NAME),
            Self::Psp(status) => write!(f, "no report from {}: status {status:#x}", source::NAME),
            Self::Invalid(invalid) => write!(f, "what {} sent is no report: {invalid}", source::NAME),
            Self::NotFresh => write!(f, "the report from {} is not the one asked for", source::NAME),
        }
    }
}

/// What this image takes reports from. The emulated build's name is a marker that the other build does not contain.
#[cfg(feature = "guest")]
pub const SOURCE: &str = source::NAME;

/// Reads this guest's report, asked for with fresh random data.
#[cfg(feature = "guest")]
pub fn read_report() -> Result<Report, AttestError> {
    let mut nonce = [0; report::REPORT_DATA];
    fill_random(&mut nonce).map_err(AttestError::Kernel)?;
    report_over(&nonce)
}

/// Reads a report of this guest with this REPORT_DATA.
#[cfg(feature = "guest")]
pub fn report_over(data: &[u8; report::REPORT_DATA]) -> Result<Report, AttestError> {
    let report = Report::parse(&source::report(data)?).map_err(AttestError::Invalid)?;
    // SECURITY (K02): an old report repeats other data.
    if report.report_data() != data {
        return Err(AttestError::NotFresh);
    }
    Ok(report)
}

/// Fills `bytes` from the kernel's generator, which must be seeded.
///
/// SECURITY (B09): the processor seeds it before the init starts. Where it did not, the kernel would in time take the jitter
/// of interrupts for randomness, and they are the host's: the first call, for the report, ends the machine instead.
#[cfg(feature = "guest")]
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), crate::linux::Errno> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::NONBLOCK) {
            Ok(more) => filled += more,
            Err(crate::linux::Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
