//! Installs what is missing: Debian packages, and tools from crates.io and PyPI.
//!
//! Nothing is installed that is there already, and each package says what it is for. Without root the
//! command to run is printed instead.

use crate::process::{self, Step};
use crate::{cache, newer_qemu};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Installs what the other subcommands need.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only say what is missing; exit code 1 if something is
    #[arg(long)]
    check: bool,
}

/// A Debian package, and the file that shows it is there: a program's name, or an absolute path.
struct Package {
    name: &'static str,
    shown_by: &'static str,
    why: &'static str,
}

const fn package(name: &'static str, shown_by: &'static str, why: &'static str) -> Package {
    Package { name, shown_by, why }
}

/// What a group of subcommands needs.
pub struct Need(&'static [Package]);

/// To fetch Debian packages: kernel source, images for tests.
pub const DEBIAN: Need = Need(&[package(
    "debian-archive-keyring",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "the keys that sign Debian's packages",
)]);

/// To build the kernel.
pub const KERNEL: Need = Need(&[
    package("gcc", "gcc", "compiles the kernel"),
    package("make", "make", "builds the kernel"),
    package("flex", "flex", "the kernel's configuration parser"),
    package("bison", "bison", "the kernel's configuration parser"),
    package("bc", "bc", "the kernel's time constants"),
    package("libelf-dev", "/usr/include/gelf.h", "the kernel's objtool"),
    package("patch", "patch", "our changes to the kernel"),
    package("xz-utils", "xz", "unpacks the kernel's source"),
    package("zstd", "zstd", "compresses the kernel"),
]);

/// To run VMs.
pub const VM: Need = Need(&[package("qemu-system-x86", "qemu-system-x86_64", "runs the utility VM")]);

/// To compare our layers with in tests.
pub const ORACLES: Need = Need(&[
    package("cryptsetup-bin", "veritysetup", "checks our dm-verity trees"),
    package("e2fsprogs", "e2fsck", "checks our ext4 file systems"),
    package(
        "ovmf",
        "/usr/share/ovmf/OVMF.fd",
        "a peer of our firmware, and a second ROM for the launch digest",
    ),
]);

/// To load the servers of the tests with.
pub const CLIENTS: Need = Need(&[
    package("redis-tools", "redis-benchmark", "the client of the Redis test"),
    package("wrk", "wrk", "the client of the nginx test"),
]);

/// To test the shim. (Debian's containerd brings runc, which it needs for nothing here.)
pub const CONTAINERD: Need = Need(&[
    package("containerd", "containerd", "the shim's tests run under it, with directories of their own"),
    package("containernetworking-plugins", "/usr/lib/cni/bridge", "CNI, which makes the networks of pods"),
    package("iproute2", "tc", "ties the network of a pod to its guest"),
]);

/// To pull images from in tests.
pub const REGISTRY: Need = Need(&[package(
    "docker-registry",
    "docker-registry",
    "a registry for the tests, each of which starts one with a directory of its own",
)]);

/// Of these, what comes with a service that would listen on every interface, for anybody.
const SERVICES: [&str; 1] = ["docker-registry"];

pub fn main(arguments: Arguments) -> Result<()> {
    let all = [DEBIAN, KERNEL, VM, ORACLES, CLIENTS, CONTAINERD, REGISTRY];
    if arguments.check {
        let missing: Vec<_> = all.iter().flat_map(missing).collect();
        for package in &missing {
            println!("missing: {} ({})", package.name, package.why);
        }
        if !missing.is_empty() {
            bail!("run `cargo xtask setup`");
        }
    } else {
        ensure(&all)?;
        vhost_device_vsock()?;
        second_opinions();
    }
    println!("everything is installed");
    Ok(())
}

/// Installs the packages that are missing.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let wanted: Vec<_> = needs.iter().flat_map(missing).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    for package in &wanted {
        eprintln!("missing: {} ({})", package.name, package.why);
    }
    let names: Vec<_> = wanted.iter().map(|p| p.name).collect();
    if is_root() {
        let step = Step::new(&format!("installing {}", names.join(" ")), None);
        let apt = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            // Another installation may be under way: a new machine's own, or that of a second clone.
            let patient = ["-q", "-y", "-o", "DPkg::Lock::Timeout=300"];
            command.env("DEBIAN_FRONTEND", "noninteractive").args(patient).args(arguments);
            command
        };
        names.iter().filter(|name| SERVICES.contains(name)).try_for_each(|name| mask(name))?;
        process::run(&mut apt(&["update"]))?;
        process::run(apt(&["install", "--no-install-recommends"]).args(&names))?;
        step.done();
    }
    let still: Vec<_> = wanted.iter().filter(|p| !is_there(p.shown_by)).map(|p| p.name).collect();
    if !still.is_empty() {
        bail!("install with: sudo apt-get install --no-install-recommends {}", still.join(" "));
    }
    Ok(())
}

/// Keeps a service from being started, now and at the next boot, as `systemctl mask` does (systemd.unit(5)).
fn mask(service: &str) -> Result<()> {
    const UNITS: &str = "/etc/systemd/system";
    let unit = Path::new(UNITS).join(format!("{service}.service"));
    if unit.symlink_metadata().is_err() {
        eprintln!("its service is not to run: masking it (`systemctl unmask {service}` undoes that)");
        fs::create_dir_all(UNITS)?;
        symlink("/dev/null", &unit).with_context(|| format!("cannot mask {}", unit.display()))?;
    }
    Ok(())
}

/// The version of [`vhost_device_vsock`].
const VHOST_DEVICE_VSOCK: &str = "0.3.0";

/// The vhost-user backend for vsock, which needs no `/dev/vhost-vsock`.
pub fn vhost_device_vsock() -> Result<PathBuf> {
    from_crates_io("vhost-device-vsock", VHOST_DEVICE_VSOCK)
}

/// The version of [`cargo_mutants`].
const CARGO_MUTANTS: &str = "27.1.0";

/// What removes checks one by one, to see whether a test notices.
pub fn cargo_mutants() -> Result<PathBuf> {
    from_crates_io("cargo-mutants", CARGO_MUTANTS)
}

/// A program from crates.io, built on first use.
fn from_crates_io(name: &str, version: &str) -> Result<PathBuf> {
    let target = cache::dir("tools")?.join(format!("{name}-{version}"));
    let program = target.join("bin").join(name);
    let _lock = cache::lock(&target)?;
    if program.exists() {
        return Ok(program);
    }
    let staging = cache::Staging::new(&target)?;
    let step = Step::new(&format!("building {name} {version} from crates.io"), None);
    process::run(
        Command::new("cargo")
            .args(["install", "--locked", name, "--version", version])
            .arg("--root")
            .arg(staging.path())
            .arg("--target-dir")
            .arg(staging.path().join("target")),
    )
    .with_context(|| format!("cannot build {name}"))?;
    std::fs::remove_dir_all(staging.path().join("target"))?;
    staging.publish()?;
    step.done();
    Ok(program)
}

/// Programs whose opinion tests compare with ours, each with the variable that names it; without one its tests are skipped.
pub fn second_opinions() -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    for (variable, program) in
        [("PARMA_NEWER_QEMU", newer_qemu::program()), ("PARMA_SEV_SNP_MEASURE", sev_snp_measure())]
    {
        match program {
            Ok(program) => found.push((variable, program)),
            Err(error) => eprintln!("no {variable}: {error:#}"),
        }
    }
    found
}

/// The version of [`sev_snp_measure`].
const SEV_SNP_MEASURE: &str = "0.0.13";

/// A second opinion on launch digests, from PyPI.
fn sev_snp_measure() -> Result<PathBuf> {
    let target = cache::dir("tools")?.join(format!("sev-snp-measure-{SEV_SNP_MEASURE}"));
    let program = target.join("sev-snp-measure");
    let _lock = cache::lock(&target)?;
    if program.exists() {
        return Ok(program);
    }
    let staging = cache::Staging::new(&target)?;
    let step = Step::new("installing sev-snp-measure beside the machine's Python", None);
    let package = format!("sev-snp-measure=={SEV_SNP_MEASURE}");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(staging.path().join("lib")).arg(&package);
    process::run(&mut pip).with_context(|| format!("python3's pip cannot install {package}"))?;
    let script = "#!/bin/sh\nlib=$(dirname \"$0\")/lib\nPYTHONPATH=$lib exec python3 $lib/bin/sev-snp-measure \"$@\"\n";
    let staged = staging.path().join("sev-snp-measure");
    cache::write(&staged, script.as_bytes())?;
    std::fs::set_permissions(&staged, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    staging.publish()?;
    step.done();
    Ok(program)
}

fn missing(need: &Need) -> impl Iterator<Item = &'static Package> + use<> {
    need.0.iter().filter(|p| !is_there(p.shown_by))
}

/// Whether a file exists: an absolute path, or a program in `PATH` or the directories for administrators.
fn is_there(file: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    Path::new(file).is_absolute() && Path::new(file).exists()
        || std::env::split_paths(&path).chain(system).any(|dir| dir.join(file).is_file())
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return false,
    }) == 0
}
