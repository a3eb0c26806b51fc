//! Attestation for containers: what a container that the policy lets attest itself finds in its directory, and how it asks
//! for a report.
//!
//! ```text
//! container → guest   48 bytes
//! guest → container   the report with REPORT_DATA = those ‖ 16 bytes of 0, 1184 bytes, and the end of the stream
//! ```
//!
//! over a new connection to the socket each time. Instead of a report there may be nothing but the end.
//!
//! SECURITY (K03): REPORT_DATA of a sealed channel ([`super::channel`]) is a SHA-512, so a container gets no report that
//! passes for the init's: it would need a transcript that ends in 128 bits of 0. The data of existing protocols, a SHA-256 or
//! a SHA-384 and zeros, fits.
//!
//! `docs/attestation.md` describes the same for someone who writes another client.

use super::report::REPORT_DATA;

/// Bytes of REPORT_DATA that a container chooses, which is all that it sends.
pub const QUESTION: usize = 48;
/// Where `parma policy generate --allow-attestation` has the directory mounted.
pub const DIRECTORY: &str = "/run/parma";
/// The variable that names the directory to existing sidecars.
pub const DIRECTORY_VARIABLE: &str = "UVM_SECURITY_CONTEXT_DIR";
/// The socket in the directory.
pub const SOCKET: &str = "attest.sock";
/// The compiled policy in base64: SHA-256 of what it decodes to is HOST_DATA.
pub const POLICY: &str = "security-policy-base64";
/// What the host says endorses the measurement, a COSE_Sign1 message, in base64.
pub const ENDORSEMENT: &str = "reference-info-base64";
/// The certificates of the report's key as the host has them, in base64.
pub const CERTIFICATES: &str = "host-amd-cert-base64";
/// The directory, in the directory, of secrets that came through sealed channels.
pub const SECRETS: &str = "secrets";

/// The REPORT_DATA that a container gets for its question.
pub fn report_data(question: &[u8; QUESTION]) -> [u8; REPORT_DATA] {
    let mut data = [0; REPORT_DATA];
    data[..QUESTION].copy_from_slice(question);
    data
}
