//! What key services and attested guests say to each other, both ends' code:
//!
//! - [`rsa_aes`]: a key wrapped to an RSA key, as Azure's key vaults and managed HSMs do it;
//! - [`jwe`]: a resource encrypted to a P-256 key, as Confidential Containers' KBS does it;
//! - [`rcar`]: the messages of that KBS's protocol.
//!
//! SECURITY (K08): there is no PKCS #1 v1.5 here, and what does not open says nothing of why.

pub mod jwe;
pub mod rcar;
pub mod rsa_aes;

use anyhow::{Context as _, Result};

/// Random bytes of the system's.
fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the system has no randomness")?;
    Ok(bytes)
}
