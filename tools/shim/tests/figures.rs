//! What the shim costs, for `cargo xtask bench --only shim`, which runs this; among the tests it is ignored.
//!
//! Writes raw figures as JSON to the file that `PARMA_FIGURES` names.

mod common;

use common::{IMAGE, Node, shims, text};
use parma_layer::cache::Cache;
use parma_layer::oci::{Image, Reference};
use parma_policy::generate::GenerateOptions;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Runs of each kind.
const RUNS: usize = 5;
/// Pods whose memory is looked at.
const PODS: usize = 2;
const ECHO: [&str; 2] = ["echo", "first"];

/// Milliseconds to the first byte on standard output.
fn first_output(node: &Node, mut command: Command) -> f64 {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0];
    let came = child.stdout.as_mut().unwrap().read_exact(&mut first);
    let time = start.elapsed().as_secs_f64() * 1e3;
    let output = child.wait_with_output().unwrap();
    assert!(came.is_ok() && output.status.success(), "{}\n{}", text(&output), node.log());
    time
}

/// Proportional set size of a process in KiB, by what it is of: the process itself, by its name, or the guest's memory.
fn pss(pid: u32) -> Option<[(String, u64); 2]> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
    let (mut own, mut guests, mut is_guests) = (0, 0, false);
    for line in maps.lines() {
        match line.strip_prefix("Pss:") {
            Some(size) => {
                let size: u64 = size.trim().strip_suffix(" kB")?.trim().parse().ok()?;
                *if is_guests { &mut guests } else { &mut own } += size;
            }
            // A mapping's first line: its range, rights and file.
            None if line.split(' ').nth(1).is_some_and(|rights| rights.len() == 4) => {
                is_guests = line.contains("/memfd:memory-backend");
            }
            None => {}
        }
    }
    Some([(name.trim().to_owned(), own), ("guest's memory".to_owned(), guests)])
}

/// A process and all below it.
fn family(of: u32) -> Vec<u32> {
    let parents = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        Some((pid, rest.split(' ').nth(1)?.parse().ok()?))
    });
    let parents: Vec<(u32, u32)> = parents.collect();
    let mut family = vec![of];
    let mut at = 0;
    while let Some(&parent) = family.get(at) {
        family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid));
        at += 1;
    }
    family
}

/// The steps that the shim tells in containerd's log: `ID: created: WHAT 12 ms, WHAT 3 ms`.
fn steps(log: &str, of: &str) -> BTreeMap<String, Vec<u64>> {
    let mut steps = BTreeMap::<_, Vec<_>>::new();
    for line in log.lines() {
        let told = [": created: ", ": started: "].into_iter().find_map(|mark| line.split_once(mark));
        let Some((_, told)) = told.filter(|(id, _)| id.contains(of)) else { continue };
        let told = told.split_once('"').map_or(told, |(told, _)| told);
        for step in told.split(", ").map(|step| step.trim_end_matches('\\')) {
            if let Some((what, time)) = step.strip_suffix(" ms").and_then(|step| step.rsplit_once(' ')) {
                steps.entry(what.to_owned()).or_default().push(time.parse().unwrap());
            }
        }
    }
    steps
}

#[test]
#[ignore = "cargo xtask bench --only shim runs it"]
fn figures() {
    let Some(node) = Node::start() else { return };
    let policy = node.policy(&ECHO, GenerateOptions::default());
    let run = |kind: &str, number: usize| {
        let id = format!("{kind}{number}");
        first_output(&node, node.run(&policy, &["--rm"], &id, &ECHO))
    };
    let (mut runc, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    // In turns, so that whatever else the machine does comes to all of them.
    for number in 0..RUNS {
        let id = format!("runc{number}");
        let words =
            ["run", "--rm", "--snapshotter", "native", "--runtime", "io.containerd.runc.v2", IMAGE, &id];
        runc.push(first_output(&node, node.command(&[&words[..], &ECHO].concat())));
        let _ = fs::remove_dir_all(node.cache());
        cold.push(run("cold", number));
        warm.push(run("warm", number));
    }
    let log = fs::read_to_string(node.dir.path().join("log")).unwrap();

    let sleep = ["sleep", "100000"];
    let asleep = node.policy(&sleep, GenerateOptions::default());
    for number in 0..PODS {
        let id = format!("pod{number}");
        let started = node.run(&asleep, &["--detach"], &id, &sleep).output().unwrap();
        assert!(started.status.success(), "{}\n{}", text(&started), node.log());
    }
    let socket = node.dir.path().join("socket").display().to_string();
    let mut memory = BTreeMap::<_, Vec<u64>>::new();
    for shim in shims(&socket) {
        let mut pod = BTreeMap::new();
        for (name, kib) in family(shim).into_iter().filter_map(pss).flatten() {
            *pod.entry(name).or_default() += kib;
            *pod.entry("all".to_owned()).or_default() += kib;
        }
        for (name, kib) in pod {
            memory.entry(name).or_default().push(kib);
        }
    }
    assert_eq!(memory["all"].len(), PODS);

    let cache = tempfile::tempdir().unwrap();
    let image = Image::open(&Reference { dir: node.fixture("python"), tag: None }).unwrap();
    let start = Instant::now();
    let converted = Cache::at(&cache.path().join("cache")).unwrap().convert(&image, &mut |_, _| {}).unwrap();
    let seconds = start.elapsed().as_secs_f64();

    let of = |steps: BTreeMap<String, Vec<u64>>| steps.into_iter().map(|(what, ms)| (what, json!(ms)));
    let steps = |kind: &str| Value::Object(of(steps(&log, kind)).collect::<Map<_, _>>());
    let figures = json!({
        "runc_ms": runc, "cold_ms": cold, "warm_ms": warm,
        "cold_steps_ms": steps("cold"), "warm_steps_ms": steps("warm"),
        "memory_kib": memory,
        "conversions": {
            "layers": converted.len(), "bytes": image.layers.iter().map(|layer| layer.size).sum::<u64>(), "seconds": seconds,
        },
    });
    match std::env::var_os("PARMA_FIGURES") {
        Some(path) => fs::write(path, figures.to_string()).unwrap(),
        None => println!("{figures}"),
    }
}
