//! `parma attest …`

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use parma_kms::bundle::Bundle;
use parma_kms::verify::{
    Checklist, Endorser, Evidence, Expected, Moment, Outcome, ReportData, Roots, RuntimeHash, Tcb, from_hex,
    verify,
};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Verify(Box<Verify>),
}

/// Judge an attestation report; prints a line for each check, and exits with 1 if one fails
///
/// A report is good if AMD's hardware made it (chain, signature, chip, firmware), for the guest (measurement) under the policy
/// (HOST_DATA) that were expected. AMD's roots are built in; certificates are only taken for what those roots vouch for. What is
/// not asked for has a dash.
#[derive(Args)]
#[command(after_help = "Examples:
  parma attest verify report.bin --chain chain.pem --policy p.bin --measurement $(cargo xtask measure | tail -1)
  parma attest verify report.bin --roots certs/ --policy p.bin --measurement 51068107cdc7… --runtime-data key.json
Certificates may be PEM, DER or the JSON that Azure's hosts hand out; AMD's key server has them at
https://kdsintf.amd.com/vcek/v1/Milan/cert_chain and …/crl.")]
pub struct Verify {
    /// The report: 1184 bytes, or as many in hexadecimal digits; - is standard input
    report: PathBuf,
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
    /// What the guest vouches for: REPORT_DATA is the hash of this file's very bytes, and zeros
    #[arg(long, value_name = "FILE")]
    runtime_data: Option<PathBuf>,
    /// How runtime data is hashed
    #[arg(long, value_name = "HASH", default_value = "sha256")]
    runtime_hash: Hash,
    /// REPORT_DATA, 128 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = digits::<64>, conflicts_with = "runtime_data")]
    report_data: Option<[u8; 64]>,
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
    /// Print a JSON object: passed, emulated, items: [{check, outcome, detail}]
    #[arg(long)]
    json: bool,
}

/// How runtime data becomes REPORT_DATA.
#[derive(Clone, Copy, ValueEnum)]
enum Hash {
    /// Microsoft's services
    Sha256,
    /// Confidential Containers
    Sha384,
    Sha512,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    let Command::Verify(arguments) = command;
    let list = judge(&arguments)?;
    let text = if arguments.json { json(&list) } else { lines(&list) };
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(if list.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(arguments: &Verify) -> Result<Checklist> {
    let report = report(&arguments.report)?;
    let mut bundle = Bundle::default();
    let mut files = arguments.chain.clone();
    if let Some(dir) = &arguments.roots {
        let listed = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in listed {
            let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
            if path.is_file() {
                files.push(path);
            }
        }
        files.sort();
    }
    let emulated = arguments.emulated_root.as_deref().map(root).transpose()?;
    for file in &files {
        bundle.add(&read(file)?).with_context(|| file.display().to_string())?;
    }
    let mut roots = Roots::amd();
    if let Some(root) = emulated {
        let path = arguments.emulated_root.as_deref().unwrap_or(Path::new("")).display();
        roots =
            roots.with_emulated(&root).with_context(|| format!("{path} is not a certificate of a root"))?;
        if !bundle.certificates.contains(&root) {
            bundle.certificates.push(root);
        }
    }
    let mut policies = arguments.host_data.clone();
    for policy in &arguments.policy {
        policies.push(Sha256::digest(read(policy)?).into());
    }
    let report_data = match (&arguments.runtime_data, arguments.report_data) {
        (Some(file), _) => {
            let hash = match arguments.runtime_hash {
                Hash::Sha256 => RuntimeHash::Sha256,
                Hash::Sha384 => RuntimeHash::Sha384,
                Hash::Sha512 => RuntimeHash::Sha512,
            };
            Some(ReportData::HashOf(hash, read(file)?))
        }
        (None, bytes) => bytes.map(ReportData::Exactly),
    };
    let endorser = arguments.endorser.clone().zip(arguments.endorsed_feed.clone());
    let endorser =
        endorser.map(|(issuer, feed)| Endorser { issuer, feed, minimum_svn: arguments.endorsed_svn });
    let expected = Expected {
        measurements: arguments.measurement.clone(),
        policies,
        report_data,
        vmpl: arguments.vmpl,
        minimum_tcb: arguments.minimum_tcb,
        minimum_guest_svn: arguments.minimum_guest_svn,
        chips: (!arguments.chip.is_empty()).then(|| arguments.chip.clone()),
        masked_chip: arguments.masked_chip,
        id_key: arguments.id_key,
        author_key: arguments.author_key,
        endorser,
        revocation_required: arguments.require_revocation,
    };
    let endorsement = arguments.endorsement.as_deref().map(read).transpose()?;
    let evidence = Evidence {
        report: &report,
        certificates: &bundle.certificates,
        revocation_lists: &bundle.revocation_lists,
        endorsement: endorsement.as_deref(),
    };
    Ok(verify(&evidence, &expected, &roots, arguments.at.unwrap_or_else(Moment::now)))
}

fn lines(list: &Checklist) -> String {
    let mut text = String::new();
    for item in &list.items {
        let outcome = match item.outcome {
            Outcome::Pass => "pass",
            Outcome::Fail => "FAIL",
            Outcome::NotAsked => "-",
        };
        text += &format!("{outcome:<5} {:<13} {}\n", item.check, parma_vmm::escape(item.detail.as_bytes()));
    }
    if list.emulated {
        text += "EMULATED: an emulated root was accepted because --emulated-root says so; no hardware vouches for this\n";
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

fn json(list: &Checklist) -> String {
    let value = serde_json::json!({"passed": list.passed(), "emulated": list.emulated, "items": list.items});
    format!("{value}\n")
}

/// A report's bytes, or those that its digits stand for.
fn report(path: &Path) -> Result<Vec<u8>> {
    let bytes = if path == Path::new("-") {
        let mut bytes = Vec::new();
        // One more than the longest form has, line end included.
        io::Read::read_to_end(&mut io::Read::take(io::stdin().lock(), 4096), &mut bytes)
            .context("standard input")?;
        bytes
    } else {
        read(path)?
    };
    let digits = std::str::from_utf8(&bytes).ok().map(str::trim);
    Ok(match digits.and_then(from_hex::<1184>) {
        Some(report) => report.to_vec(),
        None => bytes,
    })
}

/// The root among the certificates of a file.
pub(super) fn root(path: &Path) -> Result<Vec<u8>> {
    let mut bundle = Bundle::default();
    bundle.add(&read(path)?).with_context(|| path.display().to_string())?;
    // Of a chain, the root is the one that issued itself.
    let is_root = |der: &Vec<u8>| {
        parma_kms::verify::Certificate::read(der).is_ok_and(|certificate| certificate.issued(&certificate))
    };
    let root = bundle.certificates.into_iter().find(is_root);
    root.with_context(|| format!("{}: there is no root certificate in it", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn digits<const N: usize>(text: &str) -> Result<[u8; N], String> {
    from_hex(text).ok_or_else(|| format!("{} hexadecimal digits", 2 * N))
}
