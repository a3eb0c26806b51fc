//! A sidecar that has keys released to its guest.
//!
//! It runs as an ordinary container beside those that need keys, and speaks to them as Microsoft's sidecar of the same name does,
//! on the loopback interface that the containers of a guest share ([`server`]). To services it speaks as those do that there are:
//! Microsoft's attestation service and key vault ([`azure`]), and the key broker of Confidential Containers ([`kbs`]). What it shows
//! them is the guest's report ([`evidence`]), which vouches for a key that is made here and never leaves.
//!
//! It trusts no host: services are found under TLS with pinned roots ([`client`]), and nothing that an answer says of itself (an
//! algorithm, a certificate, a key in its header) is believed (attack K08). What comes with evidence of no hardware is an explicit
//! choice of whoever starts it.

pub mod azure;
pub mod client;
pub mod evidence;
pub mod kbs;
pub mod server;

use anyhow::Error;

/// Why a request was not done.
#[derive(Debug)]
pub enum Failure {
    /// It is malformed.
    Request(String),
    /// A service refused it.
    Refused(String),
    /// There is no report, a service cannot be reached, or what it answers is none.
    Own(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Own(error)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Request(why) | Self::Refused(why) => f.write_str(why),
            Self::Own(why) => write!(f, "{why:#}"),
        }
    }
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
