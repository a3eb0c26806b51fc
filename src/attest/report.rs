//! An attestation report (AMD SEV-SNP ABI 56860, table "ATTESTATION_REPORT Structure").

use core::fmt;

/// Bytes of REPORT_DATA, which whoever asks for the report chooses.
pub const REPORT_DATA: usize = 64;

/// Why bytes are not a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidReport {
    /// They are not [`Report::LENGTH`] many.
    Length(usize),
    /// Of a version whose layout is not known.
    Version(u32),
    /// For another privilege level than the most privileged, or made by the host (attack K04).
    Vmpl(u32),
    /// Signed with something else than ECDSA P-384 with SHA-384.
    Algorithm(u32),
}

impl fmt::Display for InvalidReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "{length} bytes instead of {}", Report::LENGTH),
            Self::Version(version) => write!(f, "version {version}"),
            Self::Vmpl(vmpl) => write!(f, "VMPL {vmpl:#x}"),
            Self::Algorithm(algorithm) => write!(f, "signature algorithm {algorithm}"),
        }
    }
}

/// A report for VMPL 0 in a known layout. This does not prove that the PSP made it: its signature is for a relying
/// party to check.
#[derive(Clone, PartialEq, Eq)]
pub struct Report([u8; Self::LENGTH]);

impl Report {
    /// Its length in bytes, in every version.
    pub const LENGTH: usize = 1184;

    const VERSION: usize = 0x00;
    const VMPL: usize = 0x30;
    const ALGORITHM: usize = 0x34;
    const DATA: usize = 0x50;
    const MEASUREMENT: usize = 0x90;
    const HOST_DATA: usize = 0xc0;

    /// ECDSA P-384 with SHA-384.
    const ECDSA_P384_SHA384: u32 = 1;

    /// The report in these bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidReport> {
        let report = Self(bytes.try_into().map_err(|_| InvalidReport::Length(bytes.len()))?);
        // Versions 2 to 5 keep every field that is read here in its place; they differ in bytes that were reserved.
        match report.u32_at::<{ Self::VERSION }>() {
            2..=5 => {}
            version => return Err(InvalidReport::Version(version)),
        }
        match report.u32_at::<{ Self::VMPL }>() {
            0 => {}
            vmpl => return Err(InvalidReport::Vmpl(vmpl)),
        }
        match report.u32_at::<{ Self::ALGORITHM }>() {
            Self::ECDSA_P384_SHA384 => Ok(report),
            algorithm => Err(InvalidReport::Algorithm(algorithm)),
        }
    }

    /// The `N` bytes at `AT`. That they exist is checked when this is compiled.
    fn at<const AT: usize, const N: usize>(&self) -> &[u8; N] {
        const { assert!(AT + N <= Self::LENGTH) };
        match self.0[AT..].first_chunk() {
            Some(bytes) => bytes,
            None => &[0; N],
        }
    }

    fn u32_at<const AT: usize>(&self) -> u32 {
        u32::from_le_bytes(*self.at::<AT, 4>())
    }

    /// All of it, as the PSP signed it.
    pub fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// The launch digest.
    pub fn measurement(&self) -> &[u8; 48] {
        self.at::<{ Self::MEASUREMENT }, 48>()
    }

    /// What was fixed at launch: the SHA-256 of the policy.
    pub fn host_data(&self) -> &[u8; 32] {
        self.at::<{ Self::HOST_DATA }, 32>()
    }

    /// What was asked for.
    pub fn report_data(&self) -> &[u8; REPORT_DATA] {
        self.at::<{ Self::DATA }, REPORT_DATA>()
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> [u8; Report::LENGTH] {
        let mut bytes = core::array::from_fn(|at| (at % 251) as u8);
        bytes[0x00..0x04].copy_from_slice(&3u32.to_le_bytes());
        bytes[0x30..0x34].copy_from_slice(&0u32.to_le_bytes());
        bytes[0x34..0x38].copy_from_slice(&1u32.to_le_bytes());
        bytes
    }

    fn with(at: usize, value: u32) -> Result<Report, InvalidReport> {
        let mut bytes = bytes();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        Report::parse(&bytes)
    }

    #[test]
    fn a_reports_fields_are_read_from_their_places() {
        let bytes = bytes();
        let report = Report::parse(&bytes).unwrap();
        assert_eq!(report.bytes(), &bytes);
        assert_eq!(report.report_data()[..], bytes[0x50..0x90]);
        assert_eq!(report.measurement()[..], bytes[0x90..0xc0]);
        assert_eq!(report.host_data()[..], bytes[0xc0..0xe0]);
    }

    #[test]
    fn k04_every_other_length_is_refused() {
        let bytes = [bytes().as_slice(), &[0]].concat();
        for length in (0..=bytes.len()).filter(|&length| length != Report::LENGTH) {
            assert_eq!(Report::parse(&bytes[..length]), Err(InvalidReport::Length(length)));
        }
    }

    #[test]
    fn k04_only_known_versions_are_read() {
        for version in 2..=5 {
            assert!(with(0, version).is_ok());
        }
        for version in [0, 1, 6, u32::MAX] {
            assert_eq!(with(0, version), Err(InvalidReport::Version(version)));
        }
    }

    #[test]
    fn k04_a_report_made_by_the_host_or_for_another_vmpl_is_refused() {
        for vmpl in [1, 2, 3, u32::MAX] {
            assert_eq!(with(0x30, vmpl), Err(InvalidReport::Vmpl(vmpl)));
        }
    }

    #[test]
    fn k04_another_signature_algorithm_is_refused() {
        for algorithm in [0, 2, u32::MAX] {
            assert_eq!(with(0x34, algorithm), Err(InvalidReport::Algorithm(algorithm)));
        }
    }
}
