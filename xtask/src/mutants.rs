//! Whether the tests would notice if a check were gone (attack I13, and section 10 of what a hostile host tries): cargo-mutants
//! changes what decides, and what acts on it, in one place at a time, and runs the tests that need no VM.
//!
//! Which files are changed, and which changes need not be noticed and why, is in `.cargo/mutants.toml`. The work is done in a copy
//! of the tree. All of it takes hours on two processors: `--shard` and `--only` do a part.

use crate::{cache, process, setup};
use anyhow::{Context, Result};
use std::process::Command;

/// Removes checks one at a time and tells which of them no test misses.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only changes whose file, place or description matches, such as src/gate/; can be repeated
    #[arg(long, value_name = "REGEX")]
    only: Vec<String>,
    /// Only part k of n, k from 0
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// Only list the changes
    #[arg(long)]
    list: bool,
}

pub fn main(arguments: Arguments) -> Result<()> {
    let mut command = Command::new(setup::cargo_mutants()?);
    command.current_dir(cache::root()).args(["mutants", "--package", "parma-guest", "--output", "target"]);
    // (Its own choice of files would be added to those of the configuration.)
    for only in &arguments.only {
        command.arg("--re").arg(only);
    }
    if let Some(shard) = &arguments.shard {
        command.arg("--shard").arg(shard);
    }
    if arguments.list {
        command.arg("--list");
    }
    process::run_visibly(&mut command).context("a change was not noticed, see target/mutants.out/missed.txt")
}
