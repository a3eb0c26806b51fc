//! `parma kms …`

use super::evidence::{bundle, read, root};
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use parma_kms::rules::Rules;
use parma_kms::server::{self, Shared};
use parma_kms::service::Service;
use parma_kms::store::Store;
use parma_kms::verify::Roots;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Serve(Serve),
    Import(Import),
    Audit(Audit),
}

/// Run the reference key service: judges evidence, issues tokens, releases keys
#[derive(Args)]
#[command(after_help = "Example:
  parma kms import --store kms.db --name data --key data.key
  parma kms serve --policy release.json --store kms.db --tls-chain chain.pem --tls-key tls.key
docs/attestation.md has the form of release.json and the endpoints.")]
pub struct Serve {
    /// The release policy: which guest gets which key
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The key store
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// The TLS certificate and its chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", required_unless_present = "plain_http")]
    tls_chain: Option<PathBuf>,
    /// The TLS key, PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Serve without TLS: for tests, or behind something that has it
    #[arg(long, conflicts_with = "tls_chain")]
    plain_http: bool,
    /// Certificates that guests need not bring, and revocation lists
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// Also trust this root, behind which there is no hardware: for tests with the emulated PSP
    #[arg(long, value_name = "FILE")]
    emulated_root: Option<PathBuf>,
}

/// Put a key into the store
#[derive(Args)]
pub struct Import {
    /// The key store; made if it is not there
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
    /// The key's name
    #[arg(long)]
    name: String,
    /// The key: 16 to 8192 bytes; - is standard input
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// Print the audit trail, a JSON object a line
#[derive(Args)]
pub struct Audit {
    /// The key store, which no service has open
    #[arg(long, value_name = "FILE")]
    store: PathBuf,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Serve(arguments) => serve(&arguments)?,
        Command::Import(Import { store, name, key }) => {
            let mut bytes = Vec::new();
            if key == Path::new("-") {
                io::stdin().lock().take(1 << 20).read_to_end(&mut bytes).context("standard input")?;
            } else {
                bytes = read(&key)?;
            }
            Store::open(&store)?.import(&name, &bytes)?;
        }
        Command::Audit(Audit { store }) => {
            let mut out = io::stdout().lock();
            for entry in Store::open(&store)?.trail()? {
                writeln!(out, "{entry}").context("cannot write to standard output")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(arguments: &Serve) -> Result<()> {
    let at = |path: &Path| path.display().to_string();
    let rules = Rules::parse(&read(&arguments.policy)?).with_context(|| at(&arguments.policy))?;
    let mut bundle = bundle(&arguments.chain)?;
    let mut roots = Roots::amd();
    if let Some(path) = &arguments.emulated_root {
        let root = root(path)?;
        roots = roots.with_emulated(&root).with_context(|| at(path))?;
        eprintln!(
            "parma: EMULATED root accepted because --emulated-root says so: no hardware vouches for anything"
        );
        bundle.certificates.push(root);
    }
    let tls = match (&arguments.tls_chain, &arguments.tls_key) {
        (Some(chain), Some(key)) => Some(server::tls(&read(chain)?, &read(key)?)?),
        _ => None,
    };
    let shared = Shared::new(Service::new(Store::open(&arguments.store)?, rules, roots, bundle)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(arguments.listen)
            .await
            .with_context(|| format!("cannot listen on {}: choose another --listen", arguments.listen))?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        println!("{scheme}://{}", listener.local_addr()?);
        server::run(listener, tls, shared).await
    })
}
