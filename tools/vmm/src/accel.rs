//! Whether KVM can be used. `/dev/kvm` may exist and still be unable to run Linux (in a VM without full nested
//! virtualisation, for example), so the kernel itself is booted once; the answer is kept until the host reboots.

use crate::image::Image;
use crate::machine::Config;
use crate::process::{Process, tail};
use crate::qemu;
use crate::runtime::{Runtime, cache_dir};
use crate::snp;
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Overrides the probe: `kvm`, `tcg` or `snp`.
const VARIABLE: &str = "PARMA_ACCEL";
/// How long the probe may take. With working KVM it takes about a second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What executes the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation: slow, and everywhere.
    Tcg,
    /// The processor, with SEV-SNP.
    Snp,
}

impl Accel {
    /// What this machine can do: `$PARMA_ACCEL`, or SNP for an image that is for it on a host that has it, or KVM where a boot of this image's kernel works, or TCG.
    ///
    /// # Errors
    /// `$PARMA_ACCEL` is none of `kvm`, `tcg` and `snp`, or QEMU cannot be started at all.
    pub fn choose(image: &Image) -> Result<Self> {
        match std::env::var(VARIABLE).ok().as_deref() {
            Some("kvm") => return Ok(Self::Kvm),
            Some("tcg") => return Ok(Self::Tcg),
            Some("snp") => return Ok(Self::Snp),
            Some("") | None => {}
            Some(other) => bail!("{VARIABLE} is {other:?}: set it to kvm, tcg or snp, or unset it"),
        }
        if !image.emulated && snp::require().is_ok() {
            return Ok(Self::Snp);
        }
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Ok(Self::Tcg);
        }
        let answer = answer_file().ok();
        if let Some(known) = answer.as_ref().and_then(|file| fs::read_to_string(file).ok()) {
            return Ok(if known == "works" { Self::Kvm } else { Self::Tcg });
        }
        let works = probe(image)?;
        if let Some(file) = answer {
            // A cache: the next launch may as well probe again.
            let _ = fs::create_dir_all(file.parent().unwrap_or(&file));
            let _ = fs::write(&file, if works { "works" } else { "fails" });
        }
        Ok(if works { Self::Kvm } else { Self::Tcg })
    }
}

/// Where the answer is kept: one file for each boot of the host.
fn answer_file() -> Result<PathBuf> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(cache_dir("kvm")?.join(boot.trim()))
}

/// Boots the kernel without an init: it works if the kernel gets as far as missing it and resets the machine.
fn probe(image: &Image) -> Result<bool> {
    let runtime = Runtime::new()?;
    let console = runtime.file("console");
    let mut command = Command::new(qemu::PROGRAM);
    let config = Config { memory_mib: 256, ..Config::new(image.clone(), [0; 32]) };
    command.args(qemu::base(Accel::Kvm, &config)?).arg("-kernel").arg(&image.kernel);
    command.args(["-append", "console=ttyS0 panic=-1"]);
    command.arg("-serial").arg(qemu::file_option("file:", &console)?);
    let mut process =
        Process::spawn("QEMU (probe)", command, vec![], &runtime.file("qemu.log"), qemu::REMEDY)?;
    let status = process.wait(PROBE_TIMEOUT).context("waiting for QEMU")?;
    Ok(status.is_some_and(|status| status.success()) && tail(&console).contains("Kernel panic"))
}
