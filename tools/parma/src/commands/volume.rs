//! `parma volume …`

use super::layer::size;
use super::run::spinner;
use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use parma_layer::build::{Options, build_file};
use parma_layer::verity;
use parma_layer::volume::{Key, Report, Volume};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Bytes of a block.
const BLOCK: u64 = 4096;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Create(Create),
    Open(Open),
    Check(Check),
}

/// Make a data volume: encrypted and writable (--size and --key), or read-only and verified (--from); prints what a policy names it by
///
/// A key comes from a file or from standard input, never from the command line, which others can see.
#[derive(Args)]
#[command(after_help = "Examples:
  openssl rand -out key 32
  parma volume create data.img --size 1G --key key       prints the volume's id
  parma volume create model.img --from model.tar         prints the root hash")]
pub struct Create {
    /// Where to write it
    volume: PathBuf,
    /// Its size, in bytes or with K, M, G or T
    #[arg(long, value_name = "SIZE", value_parser = size, requires = "key", required_unless_present = "from")]
    size: Option<u64>,
    /// The key: 32 bytes or 64 hexadecimal digits; - is standard input
    #[arg(long, value_name = "FILE", requires = "size")]
    key: Option<PathBuf>,
    /// The content of a read-only volume: a tar, plain or packed with gzip or zstd
    #[arg(long, value_name = "TAR", conflicts_with_all = ["size", "key"])]
    from: Option<PathBuf>,
    /// Print a JSON object: id or root_hash, data_blocks, bytes
    #[arg(long)]
    json: bool,
}

/// Decrypt an encrypted volume into a plain ext4 image, which debugfs or mount -o loop read
///
/// Blocks that were never written become holes. Where a block is damaged nothing is written: `check` says which.
#[derive(Args)]
#[command(after_help = "Example:
  parma volume open data.img --key key -o plain.img && debugfs -R 'ls -l /' plain.img")]
pub struct Open {
    /// The volume
    volume: PathBuf,
    /// The key: 32 bytes or 64 hexadecimal digits; - is standard input
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Where to write the plain image; only its owner can read it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Print a JSON object: whole, unwritten
    #[arg(long)]
    json: bool,
}

/// Check every block of a volume, with its key, or with its root hash
#[derive(Args)]
#[command(after_help = "Examples:
  parma volume check data.img --key key
  parma volume check model.img --root-hash 7f3c…
Exits with 1 if a block is not what was written there. An older state of the volume is whole too: its generation, the
number of times that guests mounted it, is then lower than the last one known.")]
pub struct Check {
    /// The volume
    volume: PathBuf,
    /// The key: 32 bytes or 64 hexadecimal digits; - is standard input
    #[arg(long, value_name = "FILE", required_unless_present = "root_hash")]
    key: Option<PathBuf>,
    /// The root hash of a read-only volume
    #[arg(long, value_name = "HEX", conflicts_with = "key", value_parser = root_hash)]
    root_hash: Option<[u8; 32]>,
    /// Print a JSON object: generation, whole, unwritten, damaged, damaged_at; or root_hash, data_blocks
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Create(arguments) => create(&arguments),
        Command::Open(arguments) => open(&arguments),
        Command::Check(arguments) => check(&arguments),
    }
}

fn create(arguments: &Create) -> Result<ExitCode> {
    let bar = spinner(false);
    let mut progress = |bytes| bar.set_message(HumanBytes(bytes).to_string());
    if let Some(tar) = &arguments.from {
        let built = build_file(tar, &arguments.volume, &Options::default(), &mut progress)?;
        bar.finish_and_clear();
        let fields =
            json!({"root_hash": built.root_hex(), "data_blocks": built.data_blocks, "bytes": built.bytes});
        return print(arguments.json, &fields, &built.root_hex());
    }
    let (Some(bytes), Some(key)) = (arguments.size, &arguments.key) else {
        bail!("give --size and --key, or --from");
    };
    let bytes = bytes.next_multiple_of(BLOCK);
    let key = read_key(key)?;
    let volume = Volume::create(&arguments.volume, bytes, &key)?;
    bar.finish_and_clear();
    let fields = json!({"id": key.id(), "data_blocks": volume.blocks(), "bytes": bytes});
    print(arguments.json, &fields, &key.id())
}

fn open(arguments: &Open) -> Result<ExitCode> {
    let volume = Volume::open(&arguments.volume, &read_key(&arguments.key)?)?;
    let output = &arguments.output;
    let cannot = || format!("{}: cannot be written: is its directory there and writable?", output.display());
    let directory = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".parma-").permissions(fs::Permissions::from_mode(0o600));
    let file = builder.tempfile_in(directory).with_context(cannot)?;
    file.as_file().set_len(volume.blocks() * BLOCK).with_context(cannot)?;
    let report = walk(&volume, |block, content| {
        file.as_file().write_all_at(content, block * BLOCK).with_context(cannot)
    })?;
    ensure!(report.damaged == 0, "{}", damaged(&arguments.volume, &report));
    file.persist(output).with_context(cannot)?;
    let fields = json!({"whole": report.whole, "unwritten": report.unwritten});
    print(arguments.json, &fields, &format!("{} blocks, {} never written", report.whole, report.unwritten))
}

fn check(arguments: &Check) -> Result<ExitCode> {
    let path = &arguments.volume;
    let Some(key) = &arguments.key else {
        let root = arguments.root_hash.context("give --key or --root-hash")?;
        let bar = spinner(false);
        let mut progress = |bytes| bar.set_message(HumanBytes(bytes).to_string());
        let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
        let blocks =
            verity::check(&file, &root, &mut progress).with_context(|| path.display().to_string())?;
        bar.finish_and_clear();
        let hex = parma::output::hex(&root);
        return print(
            arguments.json,
            &json!({"root_hash": hex, "data_blocks": blocks}),
            &format!("{blocks} blocks, all as the root hash says"),
        );
    };
    let volume = Volume::open(path, &read_key(key)?)?;
    let report = walk(&volume, |_, _| Ok(()))?;
    let generation = volume.generation()?;
    let fields = json!({
        "generation": generation, "whole": report.whole, "unwritten": report.unwritten, "damaged": report.damaged, "damaged_at": report.damaged_at,
    });
    if report.damaged > 0 {
        if arguments.json {
            print(true, &fields, "")?;
        }
        bail!(damaged(path, &report));
    }
    // What is whole may still have been written by something else than a guest of ours.
    let mounted = generation.map_or_else(|| "unknown".to_owned(), |generation| generation.to_string());
    let text = format!(
        "generation {mounted}: {} blocks are whole, {} never written",
        report.whole, report.unwritten
    );
    print(arguments.json, &fields, &text)
}

fn walk(volume: &Volume, each: impl FnMut(u64, &[u8; BLOCK as usize]) -> Result<()>) -> Result<Report> {
    let bar = spinner(false);
    let report = volume.walk(each, &mut |blocks| bar.set_message(HumanBytes(blocks * BLOCK).to_string()))?;
    bar.finish_and_clear();
    Ok(report)
}

fn damaged(path: &Path, report: &Report) -> String {
    let at: Vec<String> = report.damaged_at.iter().map(u64::to_string).collect();
    let more = if report.damaged > report.damaged_at.len() as u64 { ", …" } else { "" };
    let hint = if report.whole == 0 { "; none is whole: is this its key?" } else { "" };
    format!(
        "{}: {} blocks are not what was written there: {}{more}{hint}",
        path.display(),
        report.damaged,
        at.join(", ")
    )
}

/// Reads a key from a file, or from standard input where that is called `-`.
pub(super) fn read_key(path: &Path) -> Result<Key> {
    if path == Path::new("-") {
        return Key::read(&mut io::stdin().lock()).context("standard input");
    }
    let mut file =
        File::open(path).with_context(|| format!("the key {} cannot be opened", path.display()))?;
    Key::read(&mut file).with_context(|| path.display().to_string())
}

/// 64 hexadecimal digits.
fn root_hash(text: &str) -> Result<[u8; 32], String> {
    let bad = || "a root hash has 64 hexadecimal digits".to_owned();
    let mut hash = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad());
    }
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
    }
    Ok(hash)
}

fn print(json: bool, fields: &serde_json::Value, text: &str) -> Result<ExitCode> {
    let line = if json { fields.to_string() } else { text.to_owned() };
    writeln!(io::stdout(), "{line}").context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
