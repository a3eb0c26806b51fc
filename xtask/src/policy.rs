//! The policy figures of `cargo xtask bench`: decisions beside regorus' interpreter and virtual machine, all in one
//! process, and the bytes that the machine and its verifier take in the init.

use crate::{cache, process};
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::Command;

/// What is the policy machine's in the init.
const MACHINE: &str = "parma_guest::policy::";
/// The most bytes of code that these should take.
const CODE_GOAL: u64 = 96 << 10;

/// Measures, in a release build of its own.
pub fn figures() -> Result<Value> {
    let example =
        ["run", "--release", "--quiet", "--locked", "--package", "parma-policy", "--example", "figures"];
    let peers = ["--features", "rvm", "--", "--json"];
    let mut cargo = Command::new("cargo");
    let text = process::output(cargo.current_dir(cache::root()).args(example).args(peers))?;
    let mut figures: Value = serde_json::from_str(&text).context("what the example `figures` prints")?;
    figures["code_in_the_init_bytes"] = code_size()?.into();
    Ok(figures)
}

/// Bytes of the machine's functions in an init that keeps its symbols. What the compiler has put into functions of
/// others is not seen, nor is what others have put into these told apart.
fn code_size() -> Result<u64> {
    let target = cache::root().join("target/symbols");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(cache::root())
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "parma-guest",
            "--bin",
            "init",
            "--features",
            "guest",
        ])
        .args(["--profile", "guest", "--config", "profile.guest.strip=false", "--target-dir"])
        .arg(&target);
    process::run(&mut cargo)?;
    let symbols = process::output(
        Command::new("nm").args(["--print-size", "--demangle"]).arg(target.join("guest/init")),
    )?;
    let size = |line: &str| {
        let mut fields = line.splitn(4, ' ');
        let (_, size, kind, name) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let ours = kind.eq_ignore_ascii_case("t") && name.contains(MACHINE);
        u64::from_str_radix(size, 16).ok().filter(|_| ours)
    };
    Ok(symbols.lines().filter_map(size).sum())
}

/// Prints a table: microseconds, the median of each and the fastest of ours.
pub fn print(figures: &Value) {
    println!(
        "{:<45} {:>9} {:>9} {:>10} {:>10}",
        "policy, microseconds", "fastest", "median", "regorus", "its RVM"
    );
    let number = |value: &Value, field: &str| value.get(field).and_then(Value::as_f64);
    let shown = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.2}"));
    for (policy, values) in figures.as_object().into_iter().flatten() {
        for (what, value) in values.as_object().into_iter().flatten() {
            let [fastest, median, regorus, rvm] =
                ["fastest", "parma", "regorus", "regorus_rvm"].map(|field| shown(number(value, field)));
            println!("{:<45} {fastest:>9} {median:>9} {regorus:>10} {rvm:>10}", format!("{policy}: {what}"));
        }
    }
    let code = figures["code_in_the_init_bytes"].as_u64().unwrap_or_default() as f64 / 1024.0;
    println!("code of machine and verifier in the init      {code:>9.1} KiB   goal {}", CODE_GOAL >> 10);
}
