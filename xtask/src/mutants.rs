//! Whether the tests would notice if a check were gone (attack I13, and section 10 of what a hostile host tries): cargo-mutants
//! changes what decides, and what acts on it, in one place at a time, and runs the tests that need no VM.
//!
//! Which files are changed, by which tests that has to be noticed, and which changes need not be noticed and why, is in
//! `.cargo/mutants*.toml`. The work is done in a copy of the tree. All of it takes hours on two processors: `--shard` and `--only`
//! do a part.

use crate::{cache, process, setup};
use anyhow::{Result, ensure};
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

/// The runs: their configuration, and further arguments. Unchanged code is tried first only where the tests are those of its own
/// package, the only ones that cargo-mutants tries then.
const RUNS: [(&str, &[&str]); 2] =
    [("mutants", &[]), ("mutants-fragments", &["--baseline=skip", "--timeout=300"])];

pub fn main(arguments: Arguments) -> Result<()> {
    let program = setup::cargo_mutants()?;
    let mut missed = Vec::new();
    for (name, further) in RUNS {
        let output = format!("target/{name}");
        let mut command = Command::new(&program);
        command.current_dir(cache::root()).args(["mutants", "--package", "parma-guest"]);
        command.arg("--config").arg(format!(".cargo/{name}.toml")).arg("--output").arg(&output).args(further);
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
        // The other run is to be had all the same.
        if process::run_visibly(&mut command).is_err() {
            missed.push(format!("{output}/mutants.out/missed.txt"));
        }
    }
    ensure!(missed.is_empty(), "a change was not noticed, see {}", missed.join(" and "));
    Ok(())
}
