//! The attestation figures of `cargo xtask bench`: from a guest's report to the key in its hand, and verifications of evidence in a
//! second, beside the `sev` crate's, in one process. That evidence is AMD's, so it is not in this repository: without
//! `../shared/vectors` there is no such figure.

use crate::bench::samples;
use crate::{cache, fixtures, process, release};
use anyhow::{Context, Result};
use parma_vmm::Image;
use serde_json::{Value, json};
use std::process::Command;

/// Where the evidence is, beside the repository.
const EVIDENCE: &str = "../shared/vectors/snp/trustee";

/// Measures both.
pub fn figures(image: &Image) -> Result<Value> {
    let busybox = fixtures::image("busybox")?;
    let fixtures = busybox.parent().context("the directory of the container images")?;
    let release = release::figure(image, fixtures)?;
    Ok(json!({"report_to_key_ms": samples(&release), "verifications": verifications()?}))
}

/// In a release build of its own; null without evidence.
fn verifications() -> Result<Value> {
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
            "verifications",
            "--",
        ])
        .args(["test-report.bin", "test-vcek.der"].map(|name| dir.join(name)));
    serde_json::from_str(&process::output(&mut cargo)?).context("what the example `verifications` prints")
}

/// Prints a line for each.
pub fn print(figures: &Value) {
    let time = figures["report_to_key_ms"]["median"].as_f64().unwrap_or(f64::NAN);
    println!("report to key in the guest's hand             {time:>9.0} ms");
    let rate = |name: &str| figures["verifications"][name].as_f64();
    match (rate("parma_per_second"), rate("sev_per_second")) {
        (Some(parma), Some(sev)) => {
            println!("evidence judged, report and chain             {parma:>9.0} /s, the sev crate {sev:.0}");
        }
        _ => println!("evidence judged: skipped, there is none in {EVIDENCE}"),
    }
}
