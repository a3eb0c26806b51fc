//! The ID block: what the PSP holds a launch against. With it a host that launches anything else is refused by its own
//! processor, and reports name the keys. Source: SEV-SNP firmware ABI (56860), tables of ID_BLOCK and ID_AUTH_INFORMATION.
//!
//! `parma run` and `parma host command` take both from the image's directory and give them to QEMU.

use crate::{cache, measure};
use anyhow::{Context, Result};
use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};
use p384::pkcs8::DecodePrivateKey;
use parma_vmm::id_block::{ALGORITHM, AUTH, BLOCK, FILES, VERSION, encode};
use parma_vmm::snp::POLICY;
use sha2::{Digest, Sha384};
use std::path::{Path, PathBuf};

/// Signs an image's launch digest: writes id-block and id-auth, in base64, beside it.
///
/// Keys are P-384 in PKCS #8: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out KEY.pem
#[derive(clap::Args)]
pub struct Arguments {
    /// The key that vouches for this image
    #[arg(long, value_name = "PEM")]
    id_key: PathBuf,
    /// The key that vouches for that key
    #[arg(long, value_name = "PEM")]
    author_key: PathBuf,
    /// The image
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    image: PathBuf,
    /// Virtual processors of the launch
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// The processor model of the launch
    #[arg(long, value_name = "NAME", default_value = parma_vmm::CPU)]
    cpu: String,
    /// The image's security version: reports carry it, relying parties can ask for a minimum
    #[arg(long, value_name = "N", default_value_t = 0)]
    svn: u32,
}

const PUBLIC_KEY: usize = 0x404;
/// The curve's number in a key.
const CURVE: u32 = 2;
/// Bytes of a number: little-endian, zero-extended.
const NUMBER: usize = 72;

pub fn main(arguments: Arguments) -> Result<()> {
    let rom = cache::read(&arguments.image.join("rom")).context("build it with `cargo xtask image`")?;
    let digest = measure::bytes(&rom, &arguments.cpu, arguments.vcpus)?;
    let (id, author) = (key(&arguments.id_key)?, key(&arguments.author_key)?);
    let block = id_block(&digest, arguments.svn);
    let auth = id_auth(&block, &id, &author);
    for (name, bytes) in FILES.into_iter().zip([&block[..], &auth]) {
        let path = arguments.image.join(name);
        cache::write(&path, encode(bytes).as_bytes())?;
        println!("{name:<18} {}", path.display());
    }
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    println!("ID_KEY_DIGEST      {}", hex(&Sha384::digest(public_key(id.verifying_key()))));
    println!("AUTHOR_KEY_DIGEST  {}", hex(&Sha384::digest(public_key(author.verifying_key()))));
    println!("MEASUREMENT        {}", hex(&digest));
    Ok(())
}

fn key(path: &Path) -> Result<SigningKey> {
    let text = String::from_utf8(cache::read(path)?).context("a key in PEM is text")?;
    SigningKey::from_pkcs8_pem(&text).ok().with_context(|| {
        format!("{} is no P-384 key in PKCS #8: see `cargo xtask sign --help`", path.display())
    })
}

/// Launch digest, no family and no image, version 1, SVN, and the guest's policy.
fn id_block(digest: &[u8; 48], svn: u32) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..48].copy_from_slice(digest);
    block[0x50..0x54].copy_from_slice(&VERSION.to_le_bytes());
    block[0x54..0x58].copy_from_slice(&svn.to_le_bytes());
    block[0x58..].copy_from_slice(&u64::from(POLICY).to_le_bytes());
    block
}

/// The block's signature by the ID key, and that key's by the author's.
fn id_auth(block: &[u8; BLOCK], id: &SigningKey, author: &SigningKey) -> [u8; AUTH] {
    let id_public = public_key(id.verifying_key());
    let mut auth = [0; AUTH];
    let mut put = |at: usize, bytes: &[u8]| auth[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &ALGORITHM.to_le_bytes());
    put(4, &ALGORITHM.to_le_bytes());
    put(0x40, &signature(&id.sign(block)));
    put(0x240, &id_public);
    put(0x680, &signature(&author.sign(&id_public)));
    put(0x880, &public_key(author.verifying_key()));
    auth
}

fn signature(signature: &Signature) -> [u8; 2 * NUMBER] {
    let (r, s) = signature.split_bytes();
    let mut bytes = [0; 2 * NUMBER];
    little_endian(&mut bytes[..NUMBER], &r);
    little_endian(&mut bytes[NUMBER..], &s);
    bytes
}

fn public_key(key: &VerifyingKey) -> [u8; PUBLIC_KEY] {
    let point = key.to_sec1_point(false);
    let (x, y) = point.as_bytes()[1..].split_at(48);
    let mut bytes = [0; PUBLIC_KEY];
    bytes[..4].copy_from_slice(&CURVE.to_le_bytes());
    little_endian(&mut bytes[4..4 + NUMBER], x);
    little_endian(&mut bytes[4 + NUMBER..4 + 2 * NUMBER], y);
    bytes
}

fn little_endian(to: &mut [u8], big: &[u8]) {
    to.iter_mut().zip(big.iter().rev()).for_each(|(to, from)| *to = *from);
}

#[cfg(test)]
mod tests {
    use super::*;
    use p384::ecdsa::signature::Verifier;
    use std::process::Command;

    fn number(bytes: &[u8]) -> [u8; 48] {
        let mut big: [u8; 48] = bytes[..48].try_into().unwrap();
        big.reverse();
        assert!(bytes[48..NUMBER].iter().all(|byte| *byte == 0));
        big
    }

    fn signed_by(key: &SigningKey, bytes: &[u8], at: &[u8]) -> bool {
        let signature = Signature::from_scalars(number(at), number(&at[NUMBER..])).unwrap();
        key.verifying_key().verify(bytes, &signature).is_ok()
    }

    #[test]
    fn the_id_key_signs_the_block_and_the_author_signs_the_id_key() {
        let [id, author] = [3, 5].map(|byte| SigningKey::from_slice(&[byte; 48]).unwrap());
        let block = id_block(&[7; 48], 9);
        assert_eq!((block[0x50], block[0x54], &block[0x58..]), (1, 9, &[0, 0, 3, 0, 0, 0, 0, 0][..]));
        let auth = id_auth(&block, &id, &author);
        assert!(signed_by(&id, &block, &auth[0x40..]) && !signed_by(&author, &block, &auth[0x40..]));
        let id_public = &auth[0x240..0x240 + PUBLIC_KEY];
        assert!(signed_by(&author, id_public, &auth[0x680..]));
        assert_eq!(auth[0x240], 2);
        assert_ne!(*id_public, auth[0x880..0x880 + PUBLIC_KEY]);
        assert!(!signed_by(&id, &id_block(&[7; 48], 8), &auth[0x40..]));
    }

    /// A signature as OpenSSL takes it: a sequence of two integers (DER).
    fn der(at: &[u8]) -> Vec<u8> {
        let integer = |big: [u8; 48]| {
            let digits = big.iter().position(|byte| *byte != 0).map_or(&[][..], |first| &big[first..]);
            let sign: &[u8] = if digits.first().is_none_or(|byte| *byte >= 0x80) { &[0] } else { &[] };
            [&[2, (sign.len() + digits.len()) as u8], sign, digits].concat()
        };
        let body = [integer(number(at)), integer(number(&at[NUMBER..]))].concat();
        [&[0x30, body.len() as u8], body.as_slice()].concat()
    }

    /// Another implementation makes the keys, has them where we say that they are, and accepts the signatures.
    #[test]
    fn openssl_accepts_what_the_keys_have_signed() {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("skipped: no openssl");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).into_os_string().into_string().unwrap();
        let openssl = |line: &str| {
            let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), at));
            Command::new("openssl").args(words).output().unwrap()
        };
        for name in ["id", "author"] {
            let made =
                openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out @{name}.pem"));
            assert!(made.status.success(), "{made:?}");
            assert!(openssl(&format!("pkey -in @{name}.pem -pubout -out @{name}.pub")).status.success());
        }
        let [id, author] = ["id", "author"].map(|name| key(&dir.path().join(format!("{name}.pem"))).unwrap());
        let block = id_block(&[7; 48], 9);
        let auth = id_auth(&block, &id, &author);
        let id_public = &auth[0x240..0x240 + PUBLIC_KEY];
        let author_public = &auth[0x880..0x880 + PUBLIC_KEY];
        for (name, public) in [("id", id_public), ("author", author_public)] {
            // The uncompressed point is the last of the structure.
            let spki = openssl(&format!("pkey -in @{name}.pem -pubout -outform DER")).stdout;
            let point = [number(&public[4..]), number(&public[4 + NUMBER..])].concat();
            assert!(spki.ends_with(&point), "{name}");
        }
        let accepts = |name: &str, content: &[u8], signature: &[u8]| {
            std::fs::write(at("content"), content).unwrap();
            std::fs::write(at("signature"), der(signature)).unwrap();
            openssl(&format!("dgst -sha384 -verify @{name}.pub -signature @signature @content"))
                .status
                .success()
        };
        assert!(accepts("id", &block, &auth[0x40..]));
        assert!(accepts("author", id_public, &auth[0x680..]));
        assert!(!accepts("author", &block, &auth[0x40..]));
        assert!(!accepts("id", &id_block(&[7; 48], 8), &auth[0x40..]));
    }
}
