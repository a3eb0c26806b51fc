//! `skr`: see the library.

use anyhow::{Context as _, Result, ensure};
use clap::{ArgGroup, Parser};
use parma_guest::attest::service::{DIRECTORY, DIRECTORY_VARIABLE};
use parma_release::rsa_aes::Wrapping;
use parma_skr::azure::WrappingKey;
use parma_skr::client::Client;
use parma_skr::evidence::{Directory, Emulated, Tee, certificates};
use parma_skr::server::{self, Sidecar};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Has keys released to this guest, for the containers beside it
#[derive(Parser)]
#[command(name = "skr", group = ArgGroup::new("evidence"), after_help = "Example:
  skr --ca kms.pem
  curl -d '{\"maa_endpoint\":\"kms:8443\",\"akv_endpoint\":\"kms:8443\",\"kid\":\"data\"}' localhost:8080/key/release
docs/key-release.md has the endpoints.")]
struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Roots of the services' TLS certificates, PEM; without it those of the web
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Speak to services without TLS: for tests. Whoever is on the way can answer with a key of its own
    #[arg(long, conflicts_with = "ca")]
    plain_http: bool,
    /// How keys are to be wrapped: CKM_RSA_AES_KEY_WRAP, RSA_AES_KEY_WRAP_256 or RSA_AES_KEY_WRAP_384
    #[arg(long, value_name = "NAME", default_value = "RSA_AES_KEY_WRAP_256", value_parser = wrapping)]
    wrapping: Wrapping,
    /// Reports come from this directory of the guest's; without it that of UVM_SECURITY_CONTEXT_DIR, or /run/parma
    #[arg(long, value_name = "DIR", group = "evidence")]
    attestation: Option<PathBuf>,
    /// Reports come from an emulated PSP behind this socket: no hardware vouches for anything
    #[arg(long, value_name = "SOCKET", group = "evidence", requires = "certificates")]
    emulated_psp: Option<PathBuf>,
    /// The emulated PSP's certificates, PEM, leaf first
    #[arg(long, value_name = "FILE", requires = "emulated_psp")]
    certificates: Option<PathBuf>,
    /// There is no hardware, and no report: evidence of KBS's kind "sample", for tests
    #[arg(long, group = "evidence")]
    sample: bool,
}

fn wrapping(text: &str) -> Result<Wrapping, String> {
    Wrapping::named(text).ok_or_else(|| format!("one of {}", Wrapping::ALL.map(Wrapping::name).join(", ")))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skr: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let roots = arguments.ca.as_deref().map(read).transpose()?.unwrap_or_default();
    let client = Client::new(&roots, arguments.plain_http).context("--ca")?;
    let tee = tee(arguments)?;
    let key = WrappingKey::new()?;
    let sidecar = Sidecar { tee, client, key, wrapping: arguments.wrapping };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no threads")?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(arguments.listen)
            .await
            .with_context(|| format!("cannot listen on {}: choose another --listen", arguments.listen))?;
        println!("http://{}", listener.local_addr()?);
        server::run(listener, sidecar).await
    })
}

fn tee(arguments: &Arguments) -> Result<Tee> {
    if arguments.sample {
        eprintln!("skr: --sample: this guest shows evidence that nobody vouches for");
        return Ok(Tee::Sample);
    }
    let Some(socket) = arguments.emulated_psp.clone() else {
        let usual = || std::env::var_os(DIRECTORY_VARIABLE).map_or_else(|| DIRECTORY.into(), PathBuf::from);
        return Ok(Tee::Snp(Box::new(Directory(arguments.attestation.clone().unwrap_or_else(usual)))));
    };
    let file = arguments.certificates.as_deref().context("--certificates")?;
    let certificates = certificates(&read(file)?).with_context(|| file.display().to_string())?;
    ensure!(!certificates.is_empty(), "{} has no certificates", file.display());
    eprintln!("skr: --emulated-psp: no hardware vouches for this guest");
    Ok(Tee::Snp(Box::new(Emulated { socket, certificates })))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
