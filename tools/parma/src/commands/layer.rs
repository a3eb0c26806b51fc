//! `parma layer …`

use super::run::spinner;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use parma_layer::build::{Built, DEFAULT_MAX_SIZE, Options, build_file, hash_file};
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Build(Build),
    Hash(Hash),
}

/// Make the disk of a layer: ext4 with its dm-verity hash tree; prints the root hash
#[derive(Args)]
#[command(after_help = "Example:
  parma layer build layer.tar.gz -o layer.img")]
pub struct Build {
    #[command(flatten)]
    input: Input,
    /// Where to write the disk
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Append a VHD footer, as Azure's disks have
    #[arg(long)]
    vhd: bool,
}

/// Print the root hash of a layer without making its disk
#[derive(Args)]
pub struct Hash {
    #[command(flatten)]
    input: Input,
}

/// What decides the root hash besides the tar.
#[derive(Args)]
pub struct Format {
    /// Largest size of the filesystem, in bytes or with K, M, G or T; part of what decides the root hash
    #[arg(long, value_name = "SIZE", value_parser = size, default_value_t = DEFAULT_MAX_SIZE)]
    max_size: u64,
    /// Leave whiteouts (.wh.NAME) the plain files that they are in the tar; containers then see what the layer hides
    #[arg(long)]
    plain_whiteouts: bool,
}

impl Format {
    /// As the builder takes it.
    pub fn options(&self) -> Options {
        Options { max_size: self.max_size, convert_whiteouts: !self.plain_whiteouts, ..Options::default() }
    }
}

#[derive(Args)]
struct Input {
    /// The layer: a tar, plain or packed with gzip or zstd
    layer: PathBuf,
    #[command(flatten)]
    format: Format,
    /// Print a JSON object: root_hash, data_blocks, bytes
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    let bar = spinner(false);
    let mut progress = |bytes| bar.set_message(HumanBytes(bytes).to_string());
    let (built, json) = match command {
        Command::Build(Build { input: Input { layer, format, json }, output, vhd }) => {
            let options = Options { vhd, ..format.options() };
            (build_file(&layer, &output, &options, &mut progress)?, json)
        }
        Command::Hash(Hash { input: Input { layer, format, json } }) => {
            (hash_file(&layer, &format.options(), &mut progress)?, json)
        }
    };
    bar.finish_and_clear();
    writeln!(io::stdout(), "{}", text(&built, json)).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn text(built: &Built, json: bool) -> String {
    let root_hash = built.root_hex();
    if json {
        let Built { data_blocks, bytes, .. } = built;
        serde_json::json!({"root_hash": root_hash, "data_blocks": data_blocks, "bytes": bytes}).to_string()
    } else {
        root_hash
    }
}

/// A number of bytes: `131072`, `128K`, `128G`.
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.find(|c: char| !c.is_ascii_digit()).map(|at| text.split_at(at)) {
        None => (text, 0),
        Some((digits, "K")) => (digits, 10),
        Some((digits, "M")) => (digits, 20),
        Some((digits, "G")) => (digits, 30),
        Some((digits, "T")) => (digits, 40),
        Some((_, unit)) => return Err(format!("unknown unit {unit:?}: write K, M, G or T")),
    };
    let number: u64 = digits.parse().map_err(|error| format!("{error}"))?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(|| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!((size("4096"), size("128G"), size("16T")), (Ok(4096), Ok(128 << 30), Ok(16 << 40)));
        for bad in ["", "G", "1g", "1.5G", "0", "-1", "99999999T"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
