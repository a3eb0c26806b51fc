//! The attestation figures of `cargo xtask bench`: verifications of evidence in a second, beside the `sev` crate's, in one process.
//! The evidence is AMD's, so it is not in this repository: without `../shared/vectors` there is no figure.

use crate::{cache, process};
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::Command;

/// Where the evidence is, beside the repository.
const EVIDENCE: &str = "../shared/vectors/snp/trustee";

/// Measures, in a release build of its own; null without evidence.
pub fn figures() -> Result<Value> {
    let dir = cache::root().join(EVIDENCE);
    if !dir.is_dir() {
        return Ok(Value::Null);
    }
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(cache::root())
        .args([
            "run",
            "--release",
            "--quiet",
            "--locked",
            "--package",
            "parma-kms",
            "--example",
            "figures",
            "--",
        ])
        .args(["test-report.bin", "test-vcek.der"].map(|name| dir.join(name)));
    serde_json::from_str(&process::output(&mut cargo)?).context("what the example `figures` prints")
}

/// Prints a line.
pub fn print(figures: &Value) {
    let rate = |name: &str| figures[name].as_f64();
    match (rate("parma_per_second"), rate("sev_per_second")) {
        (Some(parma), Some(sev)) => {
            println!("evidence judged, report and chain             {parma:>9.0} /s, the sev crate {sev:.0}");
        }
        _ => println!("evidence judged: skipped, there is none in {EVIDENCE}"),
    }
}
