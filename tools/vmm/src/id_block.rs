//! The ID block: what the PSP holds a launch against, and who says so. With it a host that launches anything else is refused by
//! its own processor, and reports name the keys.
//!
//! `cargo xtask sign` writes both parts beside an image, in base64. They are looked at before QEMU is: what the PSP would refuse
//! without a reason is refused here with one. The signatures are the PSP's to judge.
//!
//! Source: SEV-SNP firmware ABI (56860), tables of ID_BLOCK and ID_AUTH_INFORMATION; QEMU `qapi/qom.json` (`id-block`, `id-auth`,
//! `author-key-enabled`).

use crate::snp::POLICY;
use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_psp::Measurement;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Bytes of the block.
pub const BLOCK: usize = 96;
/// Bytes of what authenticates it.
pub const AUTH: usize = 4096;
/// Where the parts are, in an image's directory.
pub const FILES: [&str; 2] = ["id-block", "id-auth"];
/// The block's version.
pub const VERSION: u32 = 1;
/// ECDSA with P-384 and SHA-384.
pub const ALGORITHM: u32 = 1;
const REMEDY: &str =
    "make it again with `cargo xtask sign`, or remove id-block and id-auth to launch without";

/// An ID block and its authentication, of the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdBlock {
    block: [u8; BLOCK],
    auth: Box<[u8]>,
}

impl IdBlock {
    /// Reads what lies beside an image; `None` where nothing does.
    ///
    /// # Errors
    /// One part is missing, or is none.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let read = |name: &str| match fs::read_to_string(dir.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} cannot be read", dir.join(name).display())),
        };
        let [block, auth] = FILES;
        match (read(block)?, read(auth)?) {
            (None, None) => Ok(None),
            (Some(block), Some(auth)) => {
                Self::parse(&block, &auth).with_context(|| dir.display().to_string()).map(Some)
            }
            _ => bail!("{}: one of id-block and id-auth is there without the other: {REMEDY}", dir.display()),
        }
    }

    /// The parts in base64.
    fn parse(block: &str, auth: &str) -> Result<Self> {
        let bytes = |text: &str, length: usize| {
            let bytes = STANDARD.decode(text.trim_end()).ok().filter(|bytes| bytes.len() == length);
            bytes.with_context(|| format!("the ID block: not {length} bytes in base64: {REMEDY}"))
        };
        let (block, auth) = (bytes(block, BLOCK)?, bytes(auth, AUTH)?);
        let number = |bytes: &[u8], at: usize| bytes[at..at + 4].try_into().map(u32::from_le_bytes);
        ensure!(number(&block, 0x50)? == VERSION, "the ID block's version is not {VERSION}: {REMEDY}");
        ensure!(
            number(&auth, 0)? == ALGORITHM && number(&auth, 4)? == ALGORITHM,
            "the ID block is not signed with ECDSA P-384 by an ID key and an author's key: {REMEDY}"
        );
        Ok(Self { block: block.try_into().ok().context("96 bytes")?, auth: auth.into() })
    }

    /// Checks that it is about this launch.
    ///
    /// # Errors
    /// It is about another image, number of processors or guest policy: the PSP would refuse the launch.
    pub fn check(&self, measurement: &Measurement, vcpus: u32) -> Result<()> {
        ensure!(
            self.block[..48] == measurement.0,
            "the ID block was signed for another image or another number of processors than {vcpus}: {REMEDY}"
        );
        ensure!(
            self.block[0x58..] == u64::from(POLICY).to_le_bytes(),
            "the ID block was signed for another guest policy than {POLICY:#x}: {REMEDY}"
        );
        Ok(())
    }

    /// What QEMU's guest object is told of it.
    #[must_use]
    pub fn properties(&self) -> String {
        let (block, auth) = (encode(&self.block), encode(&self.auth));
        format!(",id-block={block},id-auth={auth},author-key-enabled=on")
    }
}

/// A part in base64, as QEMU takes it.
#[must_use]
pub fn encode(part: &[u8]) -> String {
    STANDARD.encode(part)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One of the right form, for this digest.
    pub fn parts(digest: [u8; 48]) -> [Vec<u8>; 2] {
        let (mut block, mut auth) = (vec![0; BLOCK], vec![0; AUTH]);
        block[..48].copy_from_slice(&digest);
        block[0x50] = 1;
        block[0x58..].copy_from_slice(&u64::from(POLICY).to_le_bytes());
        (auth[0], auth[4]) = (1, 1);
        [block, auth]
    }

    fn parse([block, auth]: &[Vec<u8>; 2]) -> Result<IdBlock> {
        IdBlock::parse(&STANDARD.encode(block), &STANDARD.encode(auth))
    }

    #[test]
    fn an_id_block_is_for_one_image_number_of_processors_and_guest_policy() {
        let block = parse(&parts([7; 48])).unwrap();
        block.check(&Measurement([7; 48]), 1).unwrap();
        let error = block.check(&Measurement([8; 48]), 2).unwrap_err().to_string();
        assert!(error.contains("another number of processors than 2"), "{error}");
        let mut debuggable = parts([7; 48]);
        debuggable[0][0x5a] |= 0x08;
        let error = parse(&debuggable).unwrap().check(&Measurement([7; 48]), 1).unwrap_err().to_string();
        assert!(error.contains("another guest policy"), "{error}");
    }

    #[test]
    fn what_is_no_id_block_is_refused_with_the_remedy() {
        let changes: [fn(&mut [Vec<u8>; 2]); 5] = [
            |parts| parts[0].truncate(95),
            |parts| parts[1].push(0),
            |parts| parts[0][0x50] = 2,
            |parts| parts[1][0] = 0,
            |parts| parts[1][4] = 0,
        ];
        for change in changes {
            let mut parts = parts([7; 48]);
            change(&mut parts);
            let error = format!("{:#}", parse(&parts).unwrap_err());
            assert!(error.contains("cargo xtask sign"), "{error}");
        }
    }

    #[test]
    fn both_parts_are_there_or_neither() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(IdBlock::open(dir.path()).unwrap(), None);
        let parts = parts([7; 48]);
        for (name, bytes) in FILES.into_iter().zip(&parts) {
            fs::write(dir.path().join(name), STANDARD.encode(bytes)).unwrap();
        }
        assert_eq!(IdBlock::open(dir.path()).unwrap(), Some(parse(&parts).unwrap()));
        fs::remove_file(dir.path().join(FILES[1])).unwrap();
        assert!(IdBlock::open(dir.path()).unwrap_err().to_string().contains("without the other"));
    }
}
