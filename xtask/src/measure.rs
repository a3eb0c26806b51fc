//! The launch digest of a ROM: what an SNP host's PSP reports for a machine that started with it.

use crate::cache;
use anyhow::{Context, Result, anyhow};
use parma_firmware::measure::{self, CPUS};
use std::path::PathBuf;

/// Computes the SEV-SNP launch digest; the last line is the digest in hex.
#[derive(clap::Args)]
pub struct Arguments {
    /// Virtual processors. QEMU's versions differ in the state of all but the first.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u32,
    /// The processor model of QEMU's -cpu, as it is written there
    #[arg(long, value_name = "NAME", default_value = "EPYC-v4")]
    cpu: String,
    /// The ROM [default: the one of `cargo xtask image`]
    #[arg(long, value_name = "FILE")]
    rom: Option<PathBuf>,
    /// The launch of the image's IGVM file, which is for one processor, instead of the ROM's
    #[arg(long, conflicts_with = "vcpus")]
    igvm: bool,
    /// Print one JSON object instead
    #[arg(long)]
    json: bool,
}

pub fn main(arguments: Arguments) -> Result<()> {
    let path = arguments.rom.unwrap_or_else(|| cache::root().join("target/image/rom"));
    let rom = cache::read(&path).context("build it with `cargo xtask image`, or name one with --rom")?;
    let digest = if arguments.igvm {
        igvm_digest(&rom, &arguments.cpu)
    } else {
        digest(&rom, &arguments.cpu, arguments.vcpus)
    };
    let digest = digest.with_context(|| format!("{} cannot be measured", path.display()))?;
    if arguments.json {
        let (vcpus, cpu) = (arguments.vcpus, arguments.cpu);
        let rom_sha256 = cache::sha256(&rom);
        println!(
            "{}",
            serde_json::json!({ "measurement": digest, "vcpus": vcpus, "cpu": cpu, "rom_sha256": rom_sha256 })
        );
    } else {
        println!("{digest}");
    }
    Ok(())
}

/// The launch digest of a ROM in hex.
pub fn digest(rom: &[u8], cpu: &str, vcpus: u32) -> Result<String> {
    Ok(cache::hex(&bytes(rom, cpu, vcpus)?))
}

/// The launch digest of a ROM's IGVM file in hex.
pub fn igvm_digest(rom: &[u8], cpu: &str) -> Result<String> {
    Ok(cache::hex(&measure::igvm_digest(rom, 1, signature(cpu)?)?))
}

/// The launch digest of a ROM.
pub fn bytes(rom: &[u8], cpu: &str, vcpus: u32) -> Result<measure::Digest> {
    Ok(measure::launch_digest(rom, vcpus, signature(cpu)?)?)
}

/// The signature of a processor model.
pub fn signature(cpu: &str) -> Result<u32> {
    measure::signature(cpu).ok_or_else(|| {
        let known = CPUS.map(|(name, _)| name).join(", ");
        anyhow!("unknown processor {cpu:?}: use one of {known}, or a version of it like EPYC-v4")
    })
}
