//! `parma fragment …`

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use parma::fragment::{SigningKey, chain_from_pem, check, issuer_of, sign};
use parma::output::{self, hex};
use parma_guest::fragment::key::Hash;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Sign(Sign),
    Verify(Verify),
}

/// Sign a compiled fragment; prints the issuer that policies name it by
#[derive(Args)]
#[command(after_help = "Example:
  parma policy compile --fragment infra.rego -o infra.bin
  parma fragment sign infra.bin --key leaf.key --chain chain.pem --feed example.com/infra --svn 3 -o infra.cose
The policy then has {\"issuer\": ISSUER, \"feed\": \"example.com/infra\", \"minimum_svn\": \"3\", \"includes\": [\"containers\"]} among its fragments.
A fragment does not expire: guests have no clock to trust. It is taken back by raising minimum_svn.")]
pub struct Sign {
    /// The compiled fragment
    fragment: PathBuf,
    /// The private key of the chain's first certificate: PEM, P-256 or P-384
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The certificates, leaf first, its authorities after it up to the one that policies pin: PEM
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// The series that this fragment belongs to
    #[arg(long)]
    feed: String,
    /// Its security version number: raised when an older one must no longer be used
    #[arg(long, value_name = "NUMBER")]
    svn: u32,
    /// The did:x509 to name [default: one that pins the chain's last certificate and the leaf's CN and O]
    #[arg(long, value_name = "DID")]
    issuer: Option<String>,
    /// Where to write the signed fragment
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print a JSON object: issuer, feed, svn, bytes
    #[arg(long)]
    json: bool,
}

/// Check a signed fragment as a guest does, and print what it says
#[derive(Args)]
#[command(after_help = "Example:
  parma fragment verify infra.cose --feed example.com/infra --minimum-svn 3
Exits with 1 if a guest would refuse it whatever its policy, or if it is not what the options say.")]
pub struct Verify {
    /// The signed fragment
    fragment: PathBuf,
    /// It must be of this issuer
    #[arg(long, value_name = "DID")]
    issuer: Option<String>,
    /// It must be of this feed
    #[arg(long)]
    feed: Option<String>,
    /// Its SVN must not be lower
    #[arg(long, value_name = "NUMBER")]
    minimum_svn: Option<u32>,
    /// Write the compiled fragment that is inside
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// Print a JSON object: issuer, feed, svn, payload_sha256, bytes
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Sign(Sign { fragment, key, chain, feed, svn, issuer, output, json }) => {
            let image = read(&fragment)?;
            let signing_key =
                SigningKey::from_pem(&text(&key)?).with_context(|| key.display().to_string())?;
            let certificates = chain_from_pem(&text(&chain)?).with_context(|| chain.display().to_string())?;
            let issuer = match issuer {
                Some(issuer) => issuer,
                None => issuer_of(&certificates).with_context(|| chain.display().to_string())?,
            };
            let message = sign(&image, &signing_key, &certificates, &issuer, &feed, svn)
                .with_context(|| format!("cannot sign {}", fragment.display()))?;
            output::write(&output, &message)?;
            if json {
                let value =
                    serde_json::json!({"issuer": issuer, "feed": feed, "svn": svn, "bytes": message.len()});
                print(&format!("{value}\n"))?;
            } else {
                print(&format!("{issuer}\n"))?;
            }
        }
        Command::Verify(Verify { fragment, issuer, feed, minimum_svn, payload, json }) => {
            let message = read(&fragment)?;
            let place = || fragment.display().to_string();
            let (signed, svn) = check(&message).with_context(place)?;
            if let Some(issuer) = issuer {
                ensure!(signed.issuer == issuer, "{}: it is of another issuer, {}", place(), signed.issuer);
            }
            if let Some(feed) = feed {
                ensure!(signed.feed == feed, "{}: it is of another feed, {}", place(), signed.feed);
            }
            if let Some(minimum) = minimum_svn {
                ensure!(svn >= minimum, "{}: its SVN is {svn}; get a newer one", place());
            }
            if let Some(path) = payload {
                output::write(&path, signed.payload)?;
            }
            let digest = hex(&Hash::Sha256.of(&[signed.payload]));
            let (issuer, feed, bytes) = (signed.issuer, signed.feed, signed.payload.len());
            if json {
                let value = serde_json::json!({
                    "issuer": issuer, "feed": feed, "svn": svn, "payload_sha256": digest, "bytes": bytes,
                });
                print(&format!("{value}\n"))?;
            } else {
                let (issuer, feed) =
                    (parma_vmm::escape(issuer.as_bytes()), parma_vmm::escape(feed.as_bytes()));
                print(&format!(
                    "issuer   {issuer}\nfeed     {feed}\nsvn      {svn}\npayload  {bytes} bytes, SHA-256 {digest}\n"
                ))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).with_context(|| format!("{} is not PEM", path.display()))
}

fn print(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
