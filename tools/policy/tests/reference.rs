//! Other projects' Rego, unchanged: the reference implementation's own modules replay its recorded sessions whole, and
//! answer as regorus does what was not recorded.
//!
//! The modules are not ours to copy. Where they are is said by PARMA_REFERENCE_MODULES, a folder with `framework.rego` and
//! `api.rego` (their version placeholders filled in); without it, or without the recordings, the tests say so and pass.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::requests::POINTS;
use common::sessions::{Numbers, session};
use common::{recorded, unordered};
use parma_policy::{Evaluation, Inputs, Session, compile};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// A module of the reference.
fn module(name: &str) -> Option<(String, String)> {
    let Some(folder) = std::env::var_os("PARMA_REFERENCE_MODULES") else {
        println!("skipped: PARMA_REFERENCE_MODULES does not say where {name} is");
        return None;
    };
    let path = Path::new(&PathBuf::from(folder)).join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => Some((name.to_string(), text)),
        Err(error) => {
            println!("skipped: {}: {error}", path.display());
            None
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A policy engine's life: modules come and go, and memory stays.
struct Life<'s> {
    modules: Vec<(String, String)>,
    data: Value,
    session: Option<Session<'static>>,
    memory: Value,
    inputs: Vec<&'s Value>,
    rules: Vec<String>,
}

impl Life<'_> {
    /// Evaluates a rule and does to the memory what it says.
    fn ask(&mut self, rule: &str, input: &Value) -> Evaluation {
        if self.session.is_none() {
            let mut inputs = Inputs {
                modules: self.modules.clone(),
                data: Some(self.data.clone()),
                entries: Vec::new(),
                framework: false,
                optimise: true,
                known_inputs: BTreeMap::new(),
            };
            self.inputs.iter().for_each(|input| inputs.know(input));
            inputs.entries = self.rules.iter().filter(|rule| is_defined(rule, &inputs)).cloned().collect();
            let compiled = compile(&inputs).unwrap_or_else(|error| panic!("{error}"));
            let mut session = Session::new(compiled.image.leak()).unwrap();
            session.set_metadata(&self.memory).unwrap();
            self.session = Some(session);
        }
        let session = self.session.as_mut().unwrap();
        let answer = session.decide(rule, Some(input)).unwrap();
        self.memory = session.metadata();
        answer
    }

    fn change(&mut self, change: impl FnOnce(&mut Vec<(String, String)>)) {
        change(&mut self.modules);
        self.session = None;
    }
}

/// Whether some module has the rule. (It would be refused as an entry otherwise.)
fn is_defined(rule: &str, inputs: &Inputs) -> bool {
    let (package, name) = rule.strip_prefix("data.").unwrap().rsplit_once('.').unwrap();
    inputs.modules.iter().any(|(_, text)| {
        text.lines().any(|line| line.trim() == format!("package {package}"))
            && text.lines().any(|line| {
                line.strip_prefix("default ")
                    .unwrap_or(line)
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with([' ', ':', '{', '=']) || rest.is_empty())
            })
    })
}

#[test]
fn the_references_modules_replay_its_recorded_sessions_whole() {
    let (Some(policies), Some(sessions)) = (recorded("policies.jsonl.xz"), recorded("sessions.jsonl.xz"))
    else {
        return;
    };
    let (Some(framework), Some(api)) = (module("framework.rego"), module("api.rego")) else { return };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut texts: BTreeMap<String, String> =
        policies.iter().map(|policy| (text(&policy["sha256"]), text(&policy["code"]))).collect();
    texts.extend([&framework, &api].map(|(_, code)| (digest(code.as_bytes()), code.clone())));
    let (mut compared, mut wrong) = (0, Vec::new());
    for session in &sessions {
        let name = text(&session["session"]);
        let steps = session["steps"].as_array().unwrap();
        let mut data = session["data"].clone();
        data.as_object_mut().unwrap().remove("metadata");
        let memory = json!({"operatingsystem": {"ostype": session["os"]}});
        let mut rules: Vec<String> =
            steps.iter().filter(|step| step["t"] == "query").map(|step| text(&step["rule"])).collect();
        rules.sort();
        rules.dedup();
        let mut life = Life {
            modules: vec![("policy.rego".into(), texts[session["policy"].as_str().unwrap()].clone())],
            data,
            session: None,
            memory: memory.clone(),
            inputs: steps.iter().filter_map(|step| step.get("input")).collect(),
            rules,
        };
        let (mut saved, mut request) = (memory, Value::Null);
        for (number, step) in steps.iter().enumerate() {
            match step["t"].as_str().unwrap() {
                "add_module" => {
                    let code = texts.get(step["code"].as_str().unwrap()).cloned();
                    let code = code.unwrap_or_else(|| panic!("{name}: the modules are of another version"));
                    life.change(|modules| modules.push((text(&step["id"]), code)));
                }
                "remove_module" => life.change(|modules| modules.retain(|(id, _)| step["id"] != **id)),
                "enforce_begin" => request = step["input"].clone(),
                "save_metadata" => saved = life.memory.clone(),
                "restore_metadata" => {
                    life.memory = saved.clone();
                    life.session = None;
                }
                "update_data" => panic!("{name}: data changes"),
                "query" => {
                    let rule = step["rule"].as_str().unwrap();
                    let input = match step["input"].as_str() {
                        Some("@enforce") => request.clone(),
                        Some("@enforce+rule") => {
                            let point = steps[..number].iter().rfind(|step| step["t"] == "enforce_begin");
                            let mut input = request.clone();
                            input["rule"] = point.unwrap()["point"].clone();
                            input
                        }
                        _ => step["input"].clone(),
                    };
                    let answer = life.ask(rule, &input);
                    let same = match &answer {
                        Evaluation::Value(value) => step["defined"] == true && *value == step["result"],
                        Evaluation::Undefined => step["defined"] == false,
                        Evaluation::Fault(_) => step.get("error").is_some(),
                    };
                    let memory = digest(life.memory.to_string().as_bytes());
                    let remembered =
                        step["metadata_sha256"].as_str().is_none_or(|recorded| *recorded == memory);
                    compared += 1;
                    if !same || !remembered {
                        wrong.push(format!(
                            "{name} step {number} {rule}: same {same}, memory {remembered}\n    {answer:?}\n    {}",
                            step["result"]
                        ));
                    }
                }
                _ => {}
            }
        }
    }
    println!("{compared} queries of {} sessions", sessions.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The data of a policy for the other agent's rules: a sandbox with one container, small but with every kind of thing.
fn agent_policy() -> Value {
    let process = json!({
        "Args": ["/bin/app", "--name", "$(sandbox-name)"], "Cwd": "/", "NoNewPrivileges": true, "Terminal": false,
        "Env": ["PATH=/bin", "POD=$(sandbox-name)", "IP=$(pod-ip)", "NODE=$(node-name)"],
        "User": {"UID": 0, "GID": 0, "AdditionalGids": [0, 1], "Username": ""},
        "Capabilities": {
            "Ambient": [], "Bounding": ["$(default_caps)"], "Effective": ["$(default_caps)"], "Inheritable": [],
            "Permitted": ["$(default_caps)"],
        },
    });
    let linux = json!({
        "MaskedPaths": ["/proc/kcore"], "ReadonlyPaths": ["/proc/sys"], "Devices": [], "Sysctl": {"a.b": "0"},
        "Namespaces": [{"Path": "", "Type": "ipc"}, {"Path": "", "Type": "mount"}],
    });
    let mounts = json!([
        {"destination": "/proc", "source": "proc", "type_": "proc", "options": ["nosuid"]},
        {"destination": "/etc/resolv.conf", "source": "$(sfprefix)resolv.conf$", "type_": "bind", "options": ["rbind"]},
        {"destination": "/tmp/x", "source": "^$(cpath)/$(sandbox-id)/rootfs/local/", "type_": "local", "options": ["mode=0777"]},
    ]);
    let annotations = json!({
        "io.katacontainers.pkg.oci.bundle_path": "/run/containerd/$(bundle-id)",
        "io.kubernetes.cri.sandbox-id": "^[a-z0-9]{64}$",
        "io.kubernetes.cri.sandbox-name": "^app-[a-z0-9]{3}$",
        "io.kubernetes.cri.sandbox-namespace": "default",
    });
    let with = |base: &Value, more: Value| {
        let mut all = base.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let oci = |annotations: Value, process: &Value, readonly: bool| {
        json!({
            "Version": "1.1.0", "Root": {"Path": "$(root_path)", "Readonly": readonly}, "Annotations": annotations,
            "Linux": linux, "Mounts": mounts, "Process": process,
        })
    };
    let sandbox = with(
        &annotations,
        json!({
            "io.katacontainers.pkg.oci.container_type": "pod_sandbox",
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-log-directory": "^/var/log/pods/$(sandbox-namespace)_$(sandbox-name)_[0-9a-f]{8}$",
            "nerdctl/network-namespace": "^/var/run/netns/cni-[0-9a-f]{4}$",
        }),
    );
    let container = with(
        &annotations,
        json!({
            "io.katacontainers.pkg.oci.container_type": "pod_container",
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "app",
        }),
    );
    let pause = with(&process, json!({"Args": ["/pause"]}));
    let both = json!({"storages": [], "devices": [], "sandbox_pidns": false, "exec_commands": [["/bin/ls", "-l"]],
                      "runtime_anno_patterns": {"^x\\.y/z[0-9]+$": "^v=[0-9]+$"}});
    json!({
        "containers": [
            with(&both, json!({"OCI": oci(sandbox, &pause, true)})), with(&both, json!({"OCI": oci(container, &process, false)})),
        ],
        "common": {
            "cpath": "/run/kata-containers/shared/containers(?:/passthrough)?", "spath": "/run/kata-containers/sandbox/storage",
            "root_path": "/run/kata-containers/$(bundle-id)/rootfs",
            "sfprefix": "^$(cpath)/(watchable/)?$(bundle-id)-[a-z0-9]{16}-", "ip_p": "[0-9]{1,5}",
            "ipv4_a": "(?:[0-9]{1,3}\\.){3}[0-9]{1,3}", "svc_name_downward_env": "[A-Z](?:[A-Z0-9_]{0,61}[A-Z0-9])?",
            "dns_label": "[a-zA-Z0-9_\\.\\-]+", "default_caps": ["CAP_CHOWN", "CAP_KILL"], "privileged_caps": ["CAP_SYS_ADMIN"],
        },
        "sandbox": {"storages": [{
            "driver": "ephemeral", "driver_options": [], "source": "shm", "fstype": "tmpfs", "options": ["noexec"],
            "mount_point": "/run/kata-containers/sandbox/shm", "fs_group": null,
        }]},
        "devices": {"vfio": {"device_path": "/dev/vfio/devices/vfio"}},
        "cluster_config": {"cgroup_mount_extras_allowed": ["nsdelegate"]},
        "request_defaults": {
            "CreateContainerRequest": {"allow_env_regex": ["^HOSTNAME=$(dns_label)$", "^$(svc_name_downward_env)_PORT=tcp://$(ipv4_a):$(ip_p)$"]},
            "CopyFileRequest": ["$(sfprefix)"],
            "ExecProcessRequest": {"allowed_commands": [["/bin/date"]], "regex": ["^/bin/echo [a-z]+$"]},
            "UpdateInterfaceRequest": {"allow_raw_flags": 128, "forbidden_names": ["lo"], "forbidden_hw_addrs": ["00:00:00:00:00:00"]},
            "UpdateRoutesRequest": {"forbidden_device_names": ["lo"], "forbidden_source_regex": ["^127\\.(?:[0-9]{1,3}\\.){2}[0-9]{1,3}$"]},
            "AddARPNeighborsRequest": {"forbidden_device_names": ["lo"], "forbidden_cidrs_regex": ["^127\\..*$"], "allowed_states": [2, 128]},
            "CloseStdinRequest": false, "ReadStreamRequest": true, "WriteStreamRequest": false, "UpdateEphemeralMountsRequest": false,
            "GetDiagnosticDataRequest": false,
        },
    })
}

/// A request to create one of the policy's containers that it allows.
fn agent_request(sandbox: bool) -> Value {
    let id = "4bae4a8e74302a8edfe17424aff0b632cae893687f4d9ad2f2115666899f9a12";
    let bundle = if sandbox { id.to_string() } else { "c0ffee.app-1".to_string() };
    let mut annotations = json!({
        "io.katacontainers.pkg.oci.bundle_path": format!("/run/containerd/{bundle}"),
        "io.kubernetes.cri.sandbox-id": id, "io.kubernetes.cri.sandbox-name": "app-x1y",
        "io.kubernetes.cri.sandbox-namespace": "default", "x.y/z1": "v=2",
    });
    let more = if sandbox {
        json!({
            "io.katacontainers.pkg.oci.container_type": "pod_sandbox", "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/default_app-x1y_00ff00ff",
            "nerdctl/network-namespace": "/var/run/netns/cni-00ff",
        })
    } else {
        json!({
            "io.katacontainers.pkg.oci.container_type": "pod_container", "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": "app",
        })
    };
    annotations.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let capabilities = json!(["CAP_CHOWN", "CAP_KILL"]);
    let shared = "/run/kata-containers/shared/containers";
    json!({
        "container_id": bundle, "sandbox_pidns": false, "shared_mounts": [], "string_user": null, "storages": [], "devices": [],
        "OCI": {
            "Version": "1.1.0", "Hooks": null, "Solaris": null, "Windows": null, "Annotations": annotations,
            "Root": {"Path": format!("/run/kata-containers/{bundle}/rootfs"), "Readonly": sandbox},
            "Mounts": [
                {"destination": "/proc", "source": "proc", "type_": "proc", "options": ["nosuid"]},
                {"destination": "/etc/resolv.conf", "source": format!("{shared}/{bundle}-b3930b9af7125931-resolv.conf"), "type_": "bind", "options": ["rbind"]},
                {"destination": "/tmp/x", "source": format!("{shared}/passthrough/{id}/rootfs/local/d"), "type_": "local", "options": ["mode=0777"]},
            ],
            "Linux": {
                "GIDMappings": [], "UIDMappings": [], "MountLabel": "", "RootfsPropagation": "", "IntelRdt": null, "Seccomp": null,
                "Resources": {"Devices": [], "BlockIO": null, "Network": null, "Pids": null}, "Devices": [], "Sysctl": {"a.b": "0"},
                "MaskedPaths": ["/proc/kcore", "/proc/keys"], "ReadonlyPaths": ["/proc/sys"],
                "Namespaces": [{"Path": "", "Type": "ipc"}, {"Path": "", "Type": "mount"}, {"Path": "/n", "Type": "network"}],
            },
            "Process": {
                "Args": if sandbox { json!(["/pause"]) } else { json!(["/bin/app", "--name", "app-x1y"]) },
                "Cwd": "/", "NoNewPrivileges": true, "Terminal": false, "SelinuxLabel": "", "ApparmorProfile": "",
                "Env": ["PATH=/bin", "HOSTNAME=app-x1y", "POD=app-x1y", "WEB_PORT=tcp://10.0.0.1:80"],
                "User": {"UID": 0, "GID": 0, "AdditionalGids": [1, 0], "Username": ""},
                "Capabilities": {"Ambient": [], "Bounding": capabilities, "Effective": capabilities, "Inheritable": [], "Permitted": capabilities},
            },
        },
    })
}

/// The paths of all values in a request.
fn paths(value: &Value, at: &str, found: &mut Vec<String>) {
    let escaped = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| paths(value, &format!("{at}/{}", escaped(key)), found))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| paths(item, &format!("{at}/{index}"), found))
        }
        _ => {}
    }
    found.push(at.to_string());
}

/// Requests, each with one thing changed.
fn variations(request: &Value) -> Vec<Value> {
    let others = [
        json!(null),
        json!(""),
        json!("/"),
        json!("a.b"),
        json!("/etc/passwd"),
        json!([]),
        json!({}),
        json!(1),
        json!(true),
        json!("/run/kata-containers/c0ffee.app-1/rootfs"),
        json!("/run/kata-containers/../rootfs"),
        json!("app-x1z"),
        json!(["x"]),
        json!("/run/kata-containers/shared/containers/watchable/c0ffeeXapp-1-b3930b9af7125931-resolv.conf"),
        json!("POD=app-x1yy"),
    ];
    let mut all = vec![request.clone()];
    let mut found = Vec::new();
    paths(request, "", &mut found);
    for (number, path) in found.iter().enumerate() {
        for (other, value) in others.iter().enumerate().filter(|(other, _)| (other + number) % 3 == 0) {
            let mut changed = request.clone();
            let _ = other;
            *changed.pointer_mut(path).unwrap() = value.clone();
            all.push(changed);
        }
    }
    all
}

#[test]
fn another_agents_rules_decide_as_regorus_says() {
    let Some((name, rules)) = module("rules.rego") else { return };
    let text = format!("{rules}\npolicy_data := {:#}\n", agent_policy());
    let mut command = agent_request(false)["OCI"]["Process"].clone();
    command["Args"] = json!(["/bin/echo", "hello"]);
    command["Capabilities"] = json!({});
    let requests: Vec<(&str, Value)> = [
        ("CreateContainerRequest", agent_request(true)),
        ("CreateContainerRequest", agent_request(false)),
        ("CopyFileRequest", json!({"path": "/run/kata-containers/shared/containers/4bae4a8e74302a8edfe17424aff0b632cae893687f4d9ad2f2115666899f9a12-b3930b9af7125931-hosts", "file_type": "Regular", "symlink_target": ""})),
        ("ExecProcessRequest", json!({"container_id": "c0ffee.app-1", "string_user": null, "process": command})),
        ("UpdateInterfaceRequest", json!({"interface": {"raw_flags": 128, "name": "eth0", "hwAddr": "02:00:00:00:00:01"}})),
        ("UpdateRoutesRequest", json!({"routes": {"Routes": [{"source": "10.0.0.1", "device": "eth0"}, {"source": "", "device": "eth1"}]}})),
        ("AddARPNeighborsRequest", json!({"neighbors": {"ARPNeighbors": [{"device": "eth0", "toIPAddress": {"mask": "", "address": "10.0.0.1"}, "state": 128, "flags": 8}]}})),
        ("SignalProcessRequest", json!({})),
        ("ReadStreamRequest", json!({})),
        ("WriteStreamRequest", json!({})),
        ("RemoveContainerRequest", json!({"container_id": "c0ffee.app-1"})),
    ]
    .into_iter()
    .flat_map(|(rule, request)| {
        // The allowed one last: it changes the state.
        let mut all = variations(&request);
        all.rotate_left(1);
        all.into_iter().map(move |request| (rule, request))
    })
    .collect();
    let mut rules: Vec<String> =
        requests.iter().map(|(rule, _)| format!("data.agent_policy.{rule}")).collect();
    rules.sort();
    rules.dedup();
    let inputs = Inputs {
        modules: vec![(name, text.clone())],
        data: None,
        entries: rules,
        framework: false,
        optimise: true,
        known_inputs: BTreeMap::new(),
    };
    let compiled = compile(&inputs).unwrap_or_else(|error| panic!("{error}"));
    println!("{} bytes", compiled.image.len());
    let mut session = Session::new(&compiled.image).unwrap();
    let mut oracle = regorus::Engine::new();
    oracle.set_strict_builtin_errors(false);
    oracle.add_policy("rules.rego".into(), text).unwrap();
    let (mut allowed, mut faults, mut deviations) = (BTreeMap::new(), Vec::new(), 0);
    oracle.set_gather_prints(true);
    for (rule, request) in &requests {
        let memory = session.metadata();
        let mut oracle = oracle.clone();
        let pstate = memory.get("pstate").cloned().unwrap_or(json!({}));
        oracle.add_data_json(&json!({"pstate": pstate}).to_string()).unwrap();
        oracle.set_input_json(&request.to_string()).unwrap();
        let theirs = oracle.eval_rule(format!("data.agent_policy.{rule}"));
        // (An id with a slash in it is allowed, but is no entry of the memory: that fails.)
        let Ok(ours) = session.decide(&format!("data.agent_policy.{rule}"), Some(request)) else {
            assert!(request["container_id"].as_str().is_some_and(|id| id.contains('/')));
            continue;
        };
        let same = match (&ours, &theirs) {
            // `not` of a call with an undefined argument is undefined for OPA, and true for regorus. These
            // rules ask so of fields that a request may lack.
            (Evaluation::Value(Value::Bool(false)), Ok(regorus::Value::Bool(true)))
                if ["UpdateRoutesRequest", "AddARPNeighborsRequest", "UpdateInterfaceRequest"]
                    .contains(rule) =>
            {
                deviations += 1;
                true
            }
            (Evaluation::Value(ours), Ok(theirs)) if *theirs != regorus::Value::Undefined => {
                let yes = *ours == json!(true) || ours["allowed"] == true;
                *allowed.entry(*rule).or_insert(0) += usize::from(yes);
                *ours == serde_json::from_str::<Value>(&theirs.to_json_str().unwrap()).unwrap()
            }
            (Evaluation::Undefined, Ok(theirs)) => *theirs == regorus::Value::Undefined,
            (Evaluation::Fault(_), Err(_)) => true,
            // To go through what is no collection is undefined for OPA, and an error for regorus.
            (ours, Err(error)) => {
                deviations += 1;
                error.to_string().contains("expects array/set/object")
                    && [Evaluation::Undefined, Evaluation::Value(json!(false))].contains(ours)
            }
            (Evaluation::Fault(fault), Ok(theirs)) => {
                faults.push(format!("{rule} {fault:?} {theirs:?}"));
                // A denial is one as well.
                *theirs == regorus::Value::Undefined || *theirs == regorus::Value::from(false)
            }
            _ => false,
        };
        assert!(same, "{rule}: {request}\nours {ours:?}\nregorus {theirs:?}");
    }
    println!(
        "{} requests, allowed {allowed:?}, regorus alone fails {deviations}, faults {faults:?}",
        requests.len()
    );
    for rule in ["CreateContainerRequest", "CopyFileRequest", "ExecProcessRequest", "UpdateRoutesRequest"] {
        assert!(allowed[rule] >= 2, "{allowed:?}");
    }
}

#[test]
fn the_references_modules_decide_made_up_sessions_as_regorus_says() {
    let (Some(framework), Some(api)) = (module("framework.rego"), module("api.rego")) else { return };
    let data: Value = serde_json::from_str(common::DATA).unwrap();
    let mut numbers = Numbers(21);
    let (mut allowed, mut denied, mut faults) = (0, 0, Vec::new());
    for _ in 0..5 {
        let (policy, requests) = session(&mut numbers, 60);
        let modules = vec![framework.clone(), api.clone(), ("policy.rego".to_string(), policy)];
        let mut oracle = regorus::Engine::new();
        oracle.set_policy_length_config(common::unlimited());
        oracle.set_strict_builtin_errors(false);
        for (name, text) in &modules {
            // It does not take a fact about a function without a value.
            let fact = |line: &str| {
                !line.starts_with([' ', '\t', '#']) && line.ends_with("\")") && !line.contains(":=")
            };
            let lines = text
                .lines()
                .map(|line| if fact(line) { format!("{line} := true") } else { line.to_string() });
            oracle.add_policy(name.clone(), lines.collect::<Vec<_>>().join("\n")).unwrap();
        }
        let entries = POINTS.iter().map(|point| format!("data.policy.{point}"));
        let inputs = Inputs {
            modules,
            data: Some(data.clone()),
            entries: entries.chain(["data.policy.reason".into()]).collect(),
            framework: false,
            optimise: true,
            known_inputs: BTreeMap::new(),
        };
        let compiled = compile(&inputs).unwrap_or_else(|error| panic!("{error}"));
        let mut ours = Session::new(&compiled.image).unwrap();
        for (point, request) in requests {
            let mut ask = |rule: &str, request: &Value| {
                let mut oracle = oracle.clone();
                let mut data = data.clone();
                data["metadata"] = ours.metadata();
                oracle.add_data_json(&data.to_string()).unwrap();
                oracle.set_input_json(&request.to_string()).unwrap();
                let theirs = oracle.eval_rule(rule.into());
                // (A request whose id or path is no string may be allowed, but cannot be remembered.)
                let Ok(answer) = ours.decide(rule, Some(request)) else { return false };
                let theirs = theirs.map(|theirs| {
                    (theirs != regorus::Value::Undefined)
                        .then(|| serde_json::from_str::<Value>(&theirs.to_json_str().unwrap()).unwrap())
                });
                let same = match (&answer, &theirs) {
                    // A field is missing that is asked for under `not`: true for regorus, undefined for OPA.
                    (Evaluation::Value(ours), Ok(Some(theirs)))
                        if rule == "data.policy.reason" && unordered(ours) != unordered(theirs) =>
                    {
                        let all = theirs["errors"].as_array().unwrap();
                        ours["errors"].as_array().unwrap().iter().all(|error| all.contains(error))
                    }
                    (Evaluation::Value(ours), Ok(Some(theirs))) => unordered(ours) == unordered(theirs),
                    (Evaluation::Undefined, Ok(None)) => true,
                    (Evaluation::Fault(fault), Ok(theirs)) => {
                        faults.push(format!("{rule} {fault:?} {theirs:?} {request}"));
                        // A denial is one as well.
                        theirs.as_ref().is_none_or(|theirs| theirs["allowed"] != true)
                    }
                    // What regorus calls an error is undefined for OPA, or a fault.
                    (Evaluation::Value(ours), Err(_)) => ours["allowed"] != true,
                    (_, Err(_)) => true,
                    _ => false,
                };
                assert!(same, "{rule} {request}\nours {answer:?}\nregorus {theirs:?}");
                matches!(&answer, Evaluation::Value(value) if value["allowed"] == true)
            };
            if ask(&format!("data.policy.{point}"), &request) {
                allowed += 1;
            } else {
                denied += 1;
                let mut asked = request.clone();
                asked["rule"] = point.into();
                ask("data.policy.reason", &asked);
            }
        }
    }
    println!("{allowed} allowed, {denied} denied, faults {faults:?}");
    assert!(allowed > 20 && denied > 20, "{allowed} allowed, {denied} denied");
}
