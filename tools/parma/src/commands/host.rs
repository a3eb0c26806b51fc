//! `parma host`

use anyhow::Result;
use clap::Subcommand;
use parma_vmm::{Config, Image, snp};
use std::path::PathBuf;
use std::process::ExitCode;

/// What `parma host` can do.
#[derive(Subcommand)]
pub enum Command {
    /// Say what this host has and lacks for SEV-SNP guests; exit code 1 where something is missing
    Check {
        /// Print a JSON array instead
        #[arg(long)]
        json: bool,
    },
    /// Print QEMU's command line of an SEV-SNP guest, without disks, a word a line
    Command {
        /// The measured image
        #[arg(long, value_name = "DIR", default_value = "target/image")]
        image: PathBuf,
        /// HOST_DATA in hex, as `parma policy compile` prints it
        #[arg(long, value_name = "HEX", value_parser = host_data)]
        host_data: [u8; 32],
        /// Memory of the guest, in MiB
        #[arg(long, value_name = "MIB", default_value_t = 512)]
        memory: u32,
        /// Processors of the guest
        #[arg(long, value_name = "N", default_value_t = 1)]
        cpus: u32,
    },
}

/// Does it.
pub fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Check { json } => Ok(check(json)),
        Command::Command { image, host_data, memory, cpus } => {
            let mut config = Config::new(Image::open(&image)?, host_data);
            (config.memory_mib, config.vcpus) = (memory, cpus);
            for word in config.snp_command_line()? {
                println!("{}", word.display());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn check(json: bool) -> ExitCode {
    let findings = snp::check();
    if json {
        let values: Vec<_> = findings
            .iter()
            .map(
                |f| serde_json::json!({"what": f.what, "there": f.there, "seen": f.seen, "remedy": f.remedy}),
            )
            .collect();
        println!("{}", serde_json::Value::from(values));
    } else {
        for finding in &findings {
            println!("{:<4} {} ({})", if finding.there { "yes" } else { "no" }, finding.what, finding.seen);
            if !finding.there {
                println!("     {}", finding.remedy);
            }
        }
    }
    if findings.iter().all(|finding| finding.there) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn host_data(text: &str) -> Result<[u8; 32], String> {
    let bytes: Option<Vec<u8>> = text
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| "64 hexadecimal digits".to_owned())
}
