//! Where an image goes. Several threads write at once, each bytes of its own.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, ensure};

/// Where an image goes.
pub enum Output {
    /// To a file, each byte at its place.
    File(File),
    /// Nowhere: its hashes are wanted.
    Nowhere,
    /// It is in this file already, byte for byte, or that is an error.
    Same(File),
}

impl Output {
    /// Takes the image's bytes at this place.
    ///
    /// # Errors
    /// A failed write; or what should be there already is not.
    pub fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        match self {
            Self::File(file) => file.write_all_at(bytes, at).context("image file: cannot be written"),
            Self::Nowhere => Ok(()),
            Self::Same(file) => {
                let mut found = vec![0; bytes.len()];
                file.read_exact_at(&mut found, at).context("image file: cannot be read")?;
                ensure!(
                    found == bytes,
                    "not all bytes from {at} to {} are as they should be",
                    at + bytes.len() as u64
                );
                Ok(())
            }
        }
    }
}
