//! What is expected of a guest, as arguments, and how a judgement is shown.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use parma::release::Owner;
use parma_kms::bundle::Bundle;
use parma_kms::verify::{Certificate, Checklist, Endorser, Expected, Moment, Outcome, Roots, Tcb, from_hex};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// What is said wherever an emulated root was accepted.
pub const EMULATED: &str =
    "EMULATED: an emulated root was accepted because --emulated-root says so; no hardware vouches for this";

/// Which guest is a good one, and who vouches for it.
#[derive(Args)]
pub struct Expectations {
    /// The policy that the guest has to run under: HOST_DATA is the SHA-256 of this file (compiled, for Parma's guests)
    #[arg(long, value_name = "FILE", required_unless_present = "host_data")]
    policy: Vec<PathBuf>,
    /// HOST_DATA, 64 hexadecimal digits, instead of the policy itself
    #[arg(long, value_name = "HEX", value_parser = digits::<32>)]
    host_data: Vec<[u8; 32]>,
    /// The launch digest, 96 hexadecimal digits; given several times, any of them
    #[arg(long, value_name = "HEX", value_parser = digits::<48>, required_unless_present = "endorsement")]
    measurement: Vec<[u8; 48]>,
    /// Certificates of the report's key up to AMD's root, and revocation lists
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// A directory of such files
    #[arg(long, value_name = "DIR")]
    roots: Option<PathBuf>,
    /// Fail without a current revocation list
    #[arg(long)]
    require_revocation: bool,
    /// The privilege level that asked
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    vmpl: u32,
    /// The least firmware, like bootloader=3,tee=0,snp=8,microcode=115
    #[arg(long, value_name = "VERSIONS", value_parser = Tcb::parse)]
    minimum_tcb: Option<Tcb>,
    /// The least security version number of the guest
    #[arg(long, value_name = "NUMBER")]
    minimum_guest_svn: Option<u32>,
    /// Accept this chip only, 128 hexadecimal digits; given several times, any of them
    #[arg(long, value_name = "HEX", value_parser = digits::<64>)]
    chip: Vec<[u8; 64]>,
    /// Accept a report that does not say which chip made it
    #[arg(long)]
    masked_chip: bool,
    /// SHA-384 of the key that signed the ID block
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    id_key: Option<[u8; 48]>,
    /// SHA-384 of the author's key that signed that key
    #[arg(long, value_name = "HEX", value_parser = digits::<48>)]
    author_key: Option<[u8; 48]>,
    /// The builder's endorsement of the measurement (COSE_Sign1)
    #[arg(long, value_name = "FILE", requires_all = ["endorser", "endorsed_feed"])]
    endorsement: Option<PathBuf>,
    /// Whose endorsements count
    #[arg(long, value_name = "DID")]
    endorser: Option<String>,
    /// Of which feed
    #[arg(long, value_name = "FEED")]
    endorsed_feed: Option<String>,
    /// From which SVN on
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    endorsed_svn: u64,
    /// Judge as of this time [default: now]
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    at: Option<Moment>,
    /// Also trust this root, behind which there is no hardware: for tests with the emulated PSP
    #[arg(long, value_name = "FILE")]
    emulated_root: Option<PathBuf>,
}

impl Expectations {
    /// Whoever expects this.
    ///
    /// # Errors
    /// A file cannot be read, or is not what it should be.
    pub fn owner(&self) -> Result<Owner> {
        let mut files = self.chain.clone();
        if let Some(dir) = &self.roots {
            let listed = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
            for entry in listed {
                let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
                if path.is_file() {
                    files.push(path);
                }
            }
            files.sort();
        }
        let mut certificates = bundle(&files)?;
        let mut roots = Roots::amd();
        if let Some(path) = &self.emulated_root {
            let root = root(path)?;
            roots = roots
                .with_emulated(&root)
                .with_context(|| format!("{} is not a certificate of a root", path.display()))?;
            if !certificates.certificates.contains(&root) {
                certificates.certificates.push(root);
            }
        }
        let mut policies = self.host_data.clone();
        for policy in &self.policy {
            policies.push(Sha256::digest(read(policy)?).into());
        }
        let endorser = self.endorser.clone().zip(self.endorsed_feed.clone());
        let endorser =
            endorser.map(|(issuer, feed)| Endorser { issuer, feed, minimum_svn: self.endorsed_svn });
        let expected = Expected {
            measurements: self.measurement.clone(),
            policies,
            report_data: None,
            vmpl: self.vmpl,
            minimum_tcb: self.minimum_tcb,
            minimum_guest_svn: self.minimum_guest_svn,
            chips: (!self.chip.is_empty()).then(|| self.chip.clone()),
            masked_chip: self.masked_chip,
            id_key: self.id_key,
            author_key: self.author_key,
            endorser,
            revocation_required: self.require_revocation,
            audit: None,
        };
        let endorsement = self.endorsement.as_deref().map(read).transpose()?;
        Ok(Owner { expected, roots, certificates, endorsement, at: self.at })
    }

    /// The one policy that decisions are to follow from, compiled.
    ///
    /// # Errors
    /// There is none, or more than one, or it cannot be read.
    pub fn policy_image(&self) -> Result<Vec<u8>> {
        match &self.policy[..] {
            [policy] if self.host_data.is_empty() => read(policy),
            _ => {
                bail!("to see whether decisions follow from the policy, give the policy itself, one --policy")
            }
        }
    }
}

/// The certificates and revocation lists in these files.
///
/// # Errors
/// A file has something else in it.
pub fn bundle(files: &[PathBuf]) -> Result<Bundle> {
    let mut bundle = Bundle::default();
    for file in files {
        bundle.add(&read(file)?).with_context(|| file.display().to_string())?;
    }
    Ok(bundle)
}

/// The root among the certificates of a file.
///
/// # Errors
/// There is none.
pub fn root(path: &Path) -> Result<Vec<u8>> {
    let bundle = bundle(&[path.to_owned()])?;
    // Of a chain, the root is the one that issued itself.
    let is_root =
        |der: &Vec<u8>| Certificate::read(der).is_ok_and(|certificate| certificate.issued(&certificate));
    let root = bundle.certificates.into_iter().find(is_root);
    root.with_context(|| format!("{}: there is no root certificate in it", path.display()))
}

/// A line for each check, and what comes of them.
pub fn lines(list: &Checklist) -> String {
    let mut text = String::new();
    for item in &list.items {
        let outcome = match item.outcome {
            Outcome::Pass => "pass",
            Outcome::Fail => "FAIL",
            Outcome::NotAsked => "-",
        };
        text += &format!("{outcome:<5} {:<15} {}\n", item.check, parma_vmm::escape(item.detail.as_bytes()));
    }
    if list.emulated {
        text += EMULATED;
        text.push('\n');
    }
    text += &match list.first_failure() {
        None => "the report is good\n".to_owned(),
        Some(first) => format!(
            "the report is not good: {}: {}\n",
            first.check,
            parma_vmm::escape(first.detail.as_bytes())
        ),
    };
    text
}

/// The same as a JSON object.
pub fn json(list: &Checklist) -> String {
    let value = serde_json::json!({"passed": list.passed(), "emulated": list.emulated, "items": list.items});
    format!("{value}\n")
}

/// A file's bytes.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// That many bytes in hexadecimal digits.
///
/// # Errors
/// It is something else.
pub fn digits<const N: usize>(text: &str) -> Result<[u8; N], String> {
    from_hex(text).ok_or_else(|| format!("{} hexadecimal digits", 2 * N))
}
