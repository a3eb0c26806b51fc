//! `parma attest …`

use super::evidence::{Expectations, digits, json, lines, read};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use parma_kms::history::Log;
use parma_kms::verify::{Checklist, ReportData, RuntimeHash, from_hex};
use parma_psp::{CERTIFICATE, Root};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Verify(Box<Verify>),
    Emulate(Emulate),
}

/// Judge an attestation report; prints a line for each check, and exits with 1 if one fails
///
/// A report is good if AMD's hardware made it (chain, signature, chip, firmware), for the guest (measurement) under the policy
/// (HOST_DATA) that were expected. AMD's roots are built in; certificates are only taken for what those roots vouch for. What is
/// not asked for has a dash. With --audit, the report is a log's: then the log has to be the whole history up to the report, and
/// each decision in it has to follow from the policy.
#[derive(Args)]
#[command(after_help = "Examples:
  parma attest verify report.bin --chain chain.pem --policy p.bin --measurement $(cargo xtask measure | tail -1)
  parma attest verify report.bin --roots certs/ --policy p.bin --measurement 51068107cdc7… --runtime-data key.json
  parma audit web -o log.json && parma attest verify --audit log.json --policy p.bin --measurement 51068107cdc7…
Certificates may be PEM, DER or the JSON that Azure's hosts hand out; AMD's key server has them at
https://kdsintf.amd.com/vcek/v1/Milan/cert_chain and …/crl.")]
pub struct Verify {
    /// The report: 1184 bytes, or as many in hexadecimal digits; - is standard input
    #[arg(required_unless_present = "audit", conflicts_with = "audit")]
    report: Option<PathBuf>,
    /// A log that `parma audit` wrote, whose report is judged: play it again, and see that every decision follows
    #[arg(long, value_name = "LOG", conflicts_with_all = ["runtime_data", "report_data"])]
    audit: Option<PathBuf>,
    #[command(flatten)]
    expectations: Expectations,
    /// What the guest vouches for: REPORT_DATA is the hash of this file's very bytes, and zeros
    #[arg(long, value_name = "FILE")]
    runtime_data: Option<PathBuf>,
    /// How runtime data is hashed
    #[arg(long, value_name = "HASH", default_value = "sha256")]
    runtime_hash: Hash,
    /// REPORT_DATA, 128 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = digits::<64>, conflicts_with = "runtime_data")]
    report_data: Option<[u8; 64]>,
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

/// Make the root of an emulated PSP, or find the one that is there; prints the file for --emulated-root
///
/// For machines without SEV-SNP. A guest of `parma run --emulated-psp DIR` shows reports under this root, so that a relying party
/// can be told of it before there is a guest. No hardware vouches for anything: whoever can read the directory can forge reports.
#[derive(Args)]
#[command(after_help = "Example:
  parma kms serve --emulated-root $(parma attest emulate psp) …
  parma run --emulated-psp psp …")]
pub struct Emulate {
    /// Where it is kept
    directory: PathBuf,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    let arguments = match command {
        Command::Verify(arguments) => arguments,
        Command::Emulate(Emulate { directory }) => {
            Root::kept(&directory)?;
            println!("{}", directory.join(CERTIFICATE).display());
            return Ok(ExitCode::SUCCESS);
        }
    };
    let list = judge(&arguments)?;
    let text = if arguments.json { json(&list) } else { lines(&list) };
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
    Ok(if list.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn judge(arguments: &Verify) -> Result<Checklist> {
    let owner = arguments.expectations.owner()?;
    if let Some(path) = &arguments.audit {
        let log = Log::parse(&read(path)?).with_context(|| path.display().to_string())?;
        return replay(&owner, &log, &arguments.expectations.policy_image()?);
    }
    let report = report(arguments.report.as_deref().context("a report is needed")?)?;
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
    Ok(owner.judge(&report, &[], report_data))
}

/// Judges a log: its report, and what follows from the policy.
pub(super) fn replay(owner: &parma::release::Owner, log: &Log, policy: &[u8]) -> Result<Checklist> {
    // What is no chain from HOST_DATA is of no report.
    let nothing = ReportData::Exactly([0; 64]);
    let report_data = log.report_data(parma_policy::host_data(policy)).unwrap_or(nothing);
    let mut list = owner.judge(&log.report()?, &log.certificates()?, Some(report_data));
    log.judge(&mut list, policy);
    Ok(list)
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
