//! Every test: format, lints, documentation, unit and property tests, and the VMs.
//!
//! Tests that need an image, container images or a tool read where it is from the environment:
//! `PARMA_IMAGE` (emulated PSP), `PARMA_IMAGE_REAL` (for SNP hardware), `PARMA_FIXTURES` (OCI layouts),
//! `PARMA_VSOCKD` (vhost-device-vsock). Without it, under a plain `cargo test`, they say so and pass.

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
const CHECKS: [(&str, &[&str]); 5] = [
    ("format", &["fmt", "--all", "--check"]),
    (
        "lints of the host side",
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
    ),
    (
        "lints of the init",
        &[
            "clippy",
            "--package",
            "parma-guest",
            "--features",
            "guest",
            "--bin",
            "init",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    ),
    (
        "lints of the init with the emulated PSP",
        &[
            "clippy",
            "--package",
            "parma-guest",
            "--features",
            "guest,emulated",
            "--bin",
            "init",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("documentation", &["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"]),
];

pub fn main(arguments: Arguments) -> Result<()> {
    for (what, words) in CHECKS {
        eprintln!("== {what}");
        let mut cargo = cargo(words);
        process::run_visibly(cargo.env("RUSTDOCFLAGS", "-D warnings")).context(what)?;
    }
    let mut tests = cargo(&["test", "--workspace", "--locked"]);
    if arguments.quick {
        eprintln!("== tests without VMs");
    } else {
        tests.envs(prepare()?);
        eprintln!("== tests");
    }
    process::run_visibly(&mut tests).context("tests")?;
    eprintln!("== all passed");
    Ok(())
}

/// Builds what the tests need; returns where it is.
fn prepare() -> Result<Vec<(&'static str, OsString)>> {
    setup::ensure(&[setup::DEBIAN, setup::KERNEL, setup::VM, setup::ORACLES])?;
    Ok(vec![
        ("PARMA_VSOCKD", setup::vhost_device_vsock()?.into()),
        ("PARMA_FIXTURES", fixtures::all()?.into()),
        ("PARMA_IMAGE", image::build(true)?.dir.into()),
        ("PARMA_IMAGE_REAL", image::build(false)?.dir.into()),
    ])
}

fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(cache::root()).args(words);
    command
}
