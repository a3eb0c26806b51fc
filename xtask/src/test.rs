//! Every test: format, lints, documentation, unit and property tests, and the VMs.
//!
//! Tests that need an image, container images or a tool read where it is from the environment:
//! `PARMA_IMAGE` (emulated PSP), `PARMA_IMAGE_REAL` (for SNP hardware), `PARMA_FIXTURES` (OCI layouts),
//! `PARMA_VSOCKD` (vhost-device-vsock), `PARMA_NEWER_QEMU` (one that knows SNP guests), `PARMA_SEV_SNP_MEASURE`.
//! Without it, under a plain `cargo test`, they say so and pass.

use crate::{cache, fixtures, image, process, setup};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::process::Command;

/// Sets up what is missing and runs every test.
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave out the image, the container images and the VMs
    #[arg(long)]
    quick: bool,
}

/// What is checked before anything is run; each is one call of cargo.
///
/// The init is linted apart from the guest's tests, and in its own profile: it cannot be built to unwind, nor with
/// the features that the tests' dependencies ask of the crates they share.
const CHECKS: [(&str, &str); 8] = [
    ("format", "fmt --all --check"),
    ("lints of the host side", "clippy --workspace --all-targets --locked -- -D warnings"),
    (
        "lints of the init",
        "clippy -p parma-guest --features guest --lib --bins --profile guest --target-dir target/guest --locked -- -D warnings",
    ),
    (
        "lints of the init with an emulated PSP",
        "clippy -p parma-guest --features emulated --lib --bins --profile guest --target-dir target/guest --locked -- -D warnings",
    ),
    (
        "lints of the firmware",
        "clippy -p parma-firmware --features rom --bins --profile firmware --target-dir target/guest --locked -- -D warnings",
    ),
    ("lints of the guest's tests", "clippy -p parma-guest --features guest --tests --locked -- -D warnings"),
    (
        "lints of the guest's tests with an emulated PSP",
        "clippy -p parma-guest --features emulated --tests --locked -- -D warnings",
    ),
    ("documentation", "doc --workspace --no-deps --features parma-guest/emulated --locked"),
];

/// The guest's own tests, which run on the host, with the features that the workspace's tests lack.
const GUEST_TESTS: [(&str, &str); 2] = [
    ("tests of the guest", "test -p parma-guest --features guest --lib --locked"),
    ("tests of the guest with an emulated PSP", "test -p parma-guest --features emulated --lib --locked"),
];

pub fn main(arguments: Arguments) -> Result<()> {
    for (what, words) in CHECKS.into_iter().chain(GUEST_TESTS) {
        run(what, &mut cargo(words))?;
    }
    let mut tests = cargo("test --workspace --locked --no-fail-fast");
    if arguments.quick {
        run("tests without VMs", &mut tests)?;
    } else {
        run("tests", tests.envs(prepare()?))?;
    }
    eprintln!("== all passed");
    Ok(())
}

/// Builds what the tests need; returns where it is.
fn prepare() -> Result<Vec<(&'static str, OsString)>> {
    setup::ensure(&[
        setup::DEBIAN,
        setup::KERNEL,
        setup::VM,
        setup::ORACLES,
        setup::CLIENTS,
        setup::CONTAINERD,
        setup::REGISTRY,
    ])?;
    let mut places = vec![
        ("PARMA_VSOCKD", setup::vhost_device_vsock()?.into()),
        ("PARMA_FIXTURES", fixtures::all()?.into()),
        ("PARMA_IMAGE", image::build(true)?.dir.into()),
        ("PARMA_IMAGE_REAL", image::build(false)?.dir.into()),
    ];
    places.extend(setup::second_opinions().into_iter().map(|(variable, program)| (variable, program.into())));
    Ok(places)
}

fn run(what: &str, cargo: &mut Command) -> Result<()> {
    eprintln!("== {what}");
    process::run_visibly(cargo).context(what.to_string())
}

/// A call of cargo, its words separated by spaces.
fn cargo(words: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(cache::root()).args(words.split(' ')).env("RUSTDOCFLAGS", "-D warnings");
    command
}
