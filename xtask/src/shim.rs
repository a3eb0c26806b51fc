//! The shim's figures of `cargo xtask bench`: `ctr run` to the first output beside runc through the same containerd, and where
//! the difference goes; the memory of a pod; conversions. They need root and containerd, and are null without.

use crate::bench::samples;
use crate::{cache, fixtures, image, process, setup};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::fs;
use std::process::Command;

/// The variable that says where the figures go.
const PLACE: &str = "PARMA_FIGURES";

/// Measures them: `tools/shim/tests/figures.rs`.
pub fn figures() -> Result<Value> {
    setup::ensure(&[setup::DEBIAN, setup::KERNEL, setup::VM, setup::CONTAINERD])?;
    let dir = tempfile::tempdir()?;
    let place = dir.path().join("figures.json");
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(cache::root())
        .args([
            "test",
            "--quiet",
            "--locked",
            "--package",
            "parma-shim",
            "--test",
            "figures",
            "--",
            "--ignored",
        ])
        .env("PARMA_VSOCKD", setup::vhost_device_vsock()?)
        .env("PARMA_FIXTURES", fixtures::all()?)
        .env("PARMA_IMAGE", image::build(true)?.dir)
        .env(PLACE, &place);
    process::run_visibly(&mut cargo).context("the shim's figures")?;
    let Ok(text) = fs::read_to_string(&place) else { return Ok(Value::Null) };
    let raw: Value = serde_json::from_str(&text).context("the shim's figures")?;
    let list = |value: &Value| {
        let numbers: Vec<f64> = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        samples(&numbers)
    };
    let lists = |value: &Value| {
        let each = value.as_object().into_iter().flatten();
        Value::Object(each.map(|(what, value)| (what.clone(), list(value))).collect::<Map<_, _>>())
    };
    let conversions = &raw["conversions"];
    let a_minute = |what: &str| {
        let (done, seconds) = (conversions[what].as_f64()?, conversions["seconds"].as_f64()?);
        Some((done / seconds * 60.0 * 10.0).round() / 10.0)
    };
    Ok(json!({
        "first_output_ms": {"runc": list(&raw["runc_ms"]), "cold": list(&raw["cold_ms"]), "warm": list(&raw["warm_ms"])},
        "steps_ms": {"cold": lists(&raw["cold_steps_ms"]), "warm": lists(&raw["warm_steps_ms"])},
        "memory_kib": lists(&raw["memory_kib"]),
        "conversions_a_minute": {"layers": a_minute("layers"), "bytes": a_minute("bytes")},
    }))
}

/// Prints a line for each.
pub fn print(figures: &Value) {
    if figures.is_null() {
        println!("shim: skipped, it needs root, containerd and CNI's plugins");
        return;
    }
    let median = |value: &Value| value["median"].as_f64().unwrap_or(f64::NAN);
    let first = &figures["first_output_ms"];
    for (what, key) in [("warm layers", "warm"), ("cold layers", "cold"), ("runc", "runc")] {
        println!("{:<45} {:>9.0} ms", format!("ctr run to first output, {what}"), median(&first[key]));
    }
    for (what, time) in figures["steps_ms"]["warm"].as_object().into_iter().flatten() {
        println!("{:<45} {:>9.0} ms", format!("  of the first: {what}"), median(time));
    }
    for (what, memory) in figures["memory_kib"].as_object().into_iter().flatten() {
        println!("{:<45} {:>9.1} MiB", format!("memory of a pod (PSS): {what}"), median(memory) / 1024.0);
    }
    let a_minute = |what: &str| figures["conversions_a_minute"][what].as_f64().unwrap_or(f64::NAN);
    let size = a_minute("bytes") / f64::from(1 << 20);
    println!(
        "layers converted                              {:>9.0} /min, {size:.0} MiB/min of blobs",
        a_minute("layers")
    );
}
