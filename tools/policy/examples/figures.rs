//! The policy engine's figures, beside an interpreter of full Rego and, with the feature `rvm`, that project's own
//! virtual machine, on the same policy and requests, in one process.
//!
//! Prints a table, or with `--json` the numbers: microseconds, the median of many decisions and the fastest of them (a
//! busy machine moves the one and not the other); bytes; and allocations of the heap in one decision.
//! A decision here is the evaluation of a request that is in the arena or parsed already, with nothing committed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::iter;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use parma_guest::policy::engine::{Engine, Outcome};
use parma_guest::policy::value::Arena;
use parma_policy::{FRAMEWORK, FRAMEWORK_DATA, Inputs, compile, from_json, host_data};
use serde_json::{Value, json};

/// The heap, with its allocations counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
#[allow(unsafe_code, reason = "an allocator is an unsafe trait")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

const ENV_RULES: usize = 40;
const LAYERS: usize = 8;
const MOUNTS: usize = 6;
/// Decisions of each kind that are timed.
const DECISIONS: usize = 2001;
/// The request is for this container of the policy.
const CHOSEN: usize = 7;
const ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn main() -> Result<()> {
    let mut figures = serde_json::Map::new();
    for (containers, dropping) in [(10, false), (10, true), (100, false), (100, true)] {
        let name = format!("{containers} containers{}", if dropping { ", dropping" } else { "" });
        figures.insert(name, measured(containers, dropping)?);
    }
    if std::env::args().any(|argument| argument == "--json") {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    for (name, values) in &figures {
        println!("{name:<20} {:>10} {:>10} {:>12} {:>12}", "fastest", "median", "regorus", "its RVM");
        for (what, value) in values.as_object().into_iter().flatten() {
            let number = |field| value.get(field).and_then(Value::as_f64).unwrap_or(f64::NAN);
            println!(
                "  {what:<18} {:>10.2} {:>10.2} {:>12.2} {:>12.2}",
                number("fastest"),
                number("parma"),
                number("regorus"),
                number("regorus_rvm")
            );
        }
    }
    Ok(())
}

fn hash(container: usize, layer: usize) -> String {
    host_data(format!("{container}/{layer}").as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One variable in eight is a pattern, as generated policies have it.
fn env_rule(container: usize, rule: usize) -> Value {
    let (pattern, strategy) = match rule {
        0 => ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_string(), "string"),
        1 => ("TERM=xterm".into(), "string"),
        2 => ("(?i)(FABRIC)_.+=.+".into(), "re2"),
        3 => ("HOSTNAME=.+".into(), "re2"),
        4 => ("((?i)Fabric_NetworkName=.+)|(APP_[A-Z]+=[0-9]+)".into(), "re2"),
        5 => (format!("POD_{container}_IP=[0-9.]+"), "re2"),
        6 => ("IDENTITY_(API_VERSION|HEADER|SERVER_THUMBPRINT)=.+".into(), "re2"),
        _ => (format!("SETTING_{rule}=value of setting {rule} in container {container}"), "string"),
    };
    json!({"pattern": pattern, "strategy": strategy, "required": rule == 0})
}

fn variable(container: usize, rule: usize) -> String {
    match rule {
        2 => "Fabric_Id=1234".into(),
        3 => "HOSTNAME=service-7".into(),
        4 => "APP_PORT=8080".into(),
        5 => format!("POD_{container}_IP=10.0.0.7"),
        6 => "IDENTITY_HEADER=0123456789".into(),
        _ => env_rule(container, rule)["pattern"].as_str().unwrap_or_default().to_string(),
    }
}

fn mount(container: usize, number: usize, source: &str) -> Value {
    json!({
        "type": "bind",
        "source": source,
        "destination": format!("/mnt/{container}/{number}"),
        "options": ["rbind", "rshared", "rw"],
    })
}

fn capabilities() -> Value {
    let usual = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"]);
    json!({"bounding": usual, "effective": usual, "inheritable": [], "permitted": usual, "ambient": []})
}

fn policy(containers: usize, dropping: bool) -> String {
    let container = |number: usize| {
        json!({
            "name": format!("service-{number}"),
            "command": ["/bin/service", format!("--number={number}")],
            "env_rules": (0..ENV_RULES).map(|rule| env_rule(number, rule)).collect::<Vec<_>>(),
            "layers": (0..LAYERS).map(|layer| hash(number, layer)).collect::<Vec<_>>(),
            "mounts": (0..MOUNTS)
                .map(|mounted| mount(number, mounted, &format!("sandbox:///tmp/{mounted}/.+")))
                .collect::<Vec<_>>(),
            "exec_processes": [{"command": ["/bin/check"], "signals": [2]}],
            "signals": [9, 15],
            "user": {
                "user_idname": {"pattern": "1000", "strategy": "id"},
                "group_idnames": [{"pattern": "", "strategy": "any"}],
                "umask": "0022",
            },
            "capabilities": capabilities(),
            "seccomp_profile_sha256": "",
            "allow_elevated": false,
            "working_dir": "/srv",
            "allow_stdio_access": true,
            "no_new_privileges": true,
        })
    };
    let mut text =
        String::from("package policy\n\napi_version := \"0.10.0\"\nframework_version := \"0.5.0\"\n");
    text += "containers := [\n";
    (0..containers).for_each(|number| text += &format!("{},\n", container(number)));
    text += "]\n";
    for flag in ["allow_environment_variable_dropping", "allow_capability_dropping"] {
        text += &format!("{flag} := {dropping}\n");
    }
    for flag in ["allow_properties_access", "allow_dump_stacks", "allow_runtime_logging"] {
        text += &format!("{flag} := false\n");
    }
    text += "allow_unencrypted_scratch := false\n";
    for point in [
        "mount_device",
        "rw_mount_device",
        "unmount_device",
        "rw_unmount_device",
        "mount_overlay",
        "unmount_overlay",
        "create_container",
        "exec_in_container",
        "exec_external",
        "shutdown_container",
        "signal_container_process",
        "plan9_mount",
        "plan9_unmount",
        "get_properties",
        "dump_stacks",
        "runtime_logging",
        "scratch_mount",
        "scratch_unmount",
        "reason",
    ] {
        text += &format!("{point} := data.framework.{point}\n");
    }
    text
}

fn device(layer: usize) -> String {
    format!("/run/mounts/scsi/m{layer}")
}

/// The requests in their order, each allowed after those before it.
fn requests() -> Vec<(&'static str, String, Value)> {
    let mut requests = Vec::new();
    for layer in 0..LAYERS {
        let input = json!({
            "target": device(layer),
            "deviceHash": hash(CHOSEN, layer),
            "mountPathRegex": "/run/mounts/scsi/m[0-9]+",
        });
        requests.push(("mount_device", "mount_device".to_string(), input));
    }
    requests.push((
        "mount_overlay",
        "mount_overlay".into(),
        json!({
            "containerID": ID,
            "layerPaths": (0..LAYERS).rev().map(device).collect::<Vec<_>>(),
            "target": format!("/run/gcs/c/{ID}/rootfs"),
        }),
    ));
    let sandbox = format!("/run/gcs/c/{ID}/sandboxMounts");
    let process = json!({
        "containerID": ID,
        "envList": (0..ENV_RULES).map(|rule| variable(CHOSEN, rule)).collect::<Vec<_>>(),
        "workingDir": "/srv",
        "noNewPrivileges": true,
        "user": {"id": "1000", "name": "service"},
        "groups": [{"id": "1000", "name": "service"}],
        "umask": "0022",
        "capabilities": capabilities(),
    });
    let mut create = process.clone();
    for (field, value) in [
        ("argList", json!(["/bin/service", format!("--number={CHOSEN}")])),
        ("sandboxDir", json!(sandbox)),
        ("hugePagesDir", json!(format!("/run/gcs/c/{ID}/hugepages"))),
        ("mounts", (0..MOUNTS).map(|n| mount(CHOSEN, n, &format!("{sandbox}/tmp/{n}/data"))).collect()),
        ("devices", json!([])),
        ("privileged", json!(false)),
        ("seccompProfileSHA256", json!("")),
        ("isSandboxContainer", json!(false)),
    ] {
        create[field] = value;
    }
    requests.push(("create_container", "create_container".into(), create));
    let mut exec = process;
    exec["argList"] = json!(["/bin/check"]);
    requests.push(("exec_in_container", "exec_in_container".into(), exec));
    requests
}

/// The fastest and the median of the times that `work` says it took, in microseconds.
fn times(rounds: usize, work: impl FnMut() -> Result<Duration>) -> Result<(f64, f64)> {
    let mut times = iter::repeat_with(work).take(rounds).collect::<Result<Vec<_>>>()?;
    times.sort();
    let microseconds = |time: Duration| time.as_secs_f64() * 1e6;
    Ok((microseconds(times[0]), microseconds(times[rounds / 2])))
}

fn measured(containers: usize, dropping: bool) -> Result<Value> {
    let text = policy(containers, dropping);
    let started = Instant::now();
    let image = compile(&Inputs::policy("policy.rego", &text))?.image;
    let compiling = started.elapsed().as_secs_f64() * 1e6;
    let mut figures = serde_json::Map::new();
    figures.insert("source, bytes".into(), json!({"parma": text.len()}));
    figures.insert("image, bytes".into(), json!({"parma": image.len()}));
    figures.insert("compile".into(), json!({"parma": compiling}));
    let (fastest, load) = times(51, || {
        let started = Instant::now();
        Engine::new(&image).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(started.elapsed())
    })?;

    let mut engine = Engine::new(&image).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut memory = vec![0; Arena::DEFAULT_SIZE];
    let (mut oracle, parsing) = oracle(&text)?;
    let alone = std::env::args().any(|argument| argument == "--alone");
    figures.insert("load and verify".into(), json!({"fastest": fastest, "parma": load, "regorus": parsing}));
    for (name, point, input) in requests() {
        let entry = format!("data.policy.{point}");
        let mut arena = Arena::new(&mut memory);
        let mut metadata = None;
        let (fastest, ours) = times(DECISIONS, || {
            // Making the input is the gate's work, so the clock stands still for it.
            let mut making = Duration::ZERO;
            let started = Instant::now();
            let outcome = engine
                .evaluate(&mut arena, &entry, |arena| {
                    let started = Instant::now();
                    let input = from_json(arena, &input).map(Some);
                    making = started.elapsed();
                    input
                })
                .map_err(|error| anyhow::anyhow!("{point}: {error:?}"))?;
            let time = started.elapsed() - making;
            ensure!(matches!(outcome, Outcome::Value(_)), "{point} is undefined");
            Ok(time)
        })?;
        let mut before = 0;
        let outcome = engine
            .evaluate(&mut arena, &entry, |arena| {
                let input = from_json(arena, &input).map(Some);
                before = ALLOCATIONS.load(Ordering::Relaxed);
                input
            })
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        ensure!(allocations == 0, "{point} allocates {allocations} times beside the arena");
        if let Outcome::Value(value) = outcome {
            let view = engine.view(&arena);
            let answer = parma_policy::to_json(&view, value);
            ensure!(answer["allowed"] == true, "{point} is denied");
            if let Some(changes) = view.field(value, "metadata") {
                metadata = Some(engine.delta(&view, changes).map_err(|error| anyhow::anyhow!("{error:?}"))?);
            }
        }
        // The others are given the memory of this one as data.
        let state = parma_policy::to_json(&engine.view(&arena), engine.metadata());
        let (theirs, rvm) = if alone {
            (f64::NAN, f64::NAN)
        } else {
            (
                regorus_time(&mut oracle, &entry, &input, &state)?,
                rvm_time(&mut oracle, &entry, &input, &state)?,
            )
        };
        let values = json!({
            "fastest": fastest, "parma": ours, "regorus": theirs, "regorus_rvm": rvm, "allocations": allocations,
        });
        figures.insert(name.into(), values);
        if let Some(delta) = metadata {
            engine.commit(delta).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        }
    }
    Ok(figures.into())
}

fn oracle(policy: &str) -> Result<(regorus::Engine, f64)> {
    let mut engine = regorus::Engine::new();
    engine.set_policy_length_config(regorus::PolicyLengthConfig {
        max_col: NonZeroU32::MAX,
        max_lines: NonZeroUsize::MAX,
        max_file_bytes: NonZeroUsize::MAX,
    });
    engine.set_strict_builtin_errors(false);
    let started = Instant::now();
    engine.add_policy("framework.rego".into(), FRAMEWORK.into())?;
    engine.add_policy("policy.rego".into(), policy.into())?;
    Ok((engine, started.elapsed().as_secs_f64() * 1e6))
}

/// The data of the framework, and the memory of this project's engine in the place of theirs.
fn data(state: &Value) -> Result<regorus::Value> {
    let mut data: Value = serde_json::from_str(FRAMEWORK_DATA)?;
    data["metadata"] = state.clone();
    regorus::Value::from_json_str(&data.to_string())
}

fn regorus_time(engine: &mut regorus::Engine, entry: &str, input: &Value, state: &Value) -> Result<f64> {
    engine.clear_data();
    engine.add_data(data(state)?)?;
    let input = regorus::Value::from_json_str(&input.to_string())?;
    let (_, median) = times(3, || {
        engine.set_input(input.clone());
        let started = Instant::now();
        let answer = engine.eval_rule(entry.to_string()).with_context(|| format!("regorus: {entry}"))?;
        let time = started.elapsed();
        ensure!(answer["allowed"] == regorus::Value::from(true), "regorus denies {entry}");
        Ok(time)
    })?;
    Ok(median)
}

/// The same on their virtual machine, with what it compiles and loads once not counted. Not a number where it cannot run
/// the policy.
#[cfg(feature = "rvm")]
fn rvm_time(engine: &mut regorus::Engine, entry: &str, input: &Value, state: &Value) -> Result<f64> {
    use regorus::languages::rego::compiler::Compiler;
    use regorus::rvm::vm::RegoVM;
    let input = regorus::Value::from_json_str(&input.to_string())?;
    let mut prepared = || -> Result<RegoVM> {
        let policy = engine.compile_with_entrypoint(&entry.into())?;
        let program = Compiler::compile_from_policy(&policy, &[entry])?;
        let mut machine = RegoVM::new();
        machine.load_program(program);
        machine.set_data(data(state)?)?;
        Ok(machine)
    };
    let Ok(mut machine) = prepared() else { return Ok(f64::NAN) };
    let timed = times(3, || {
        machine.set_input(input.clone());
        let started = Instant::now();
        let answer = machine.execute()?;
        let time = started.elapsed();
        ensure!(answer["allowed"] == regorus::Value::from(true), "regorus' machine denies {entry}");
        Ok(time)
    });
    Ok(timed.map_or(f64::NAN, |(_, median)| median))
}

#[cfg(not(feature = "rvm"))]
fn rvm_time(_: &mut regorus::Engine, _: &str, _: &Value, _: &Value) -> Result<f64> {
    Ok(f64::NAN)
}
