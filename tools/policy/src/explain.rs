//! Why a policy allows or denies one request, for the policy's owner.
//!
//! The guest's own denial carries no content of the policy (D11); this says everything. It asks the framework's own
//! checks, one entry of the policy after another, in a module that is compiled beside the policy: what is explained
//! cannot differ from what is decided.

use std::fmt;

use anyhow::{Context, Result, bail};
use parma_guest::point::Point;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::lint::entry_name;
use crate::{Evaluation, Inputs, Session, compile};

/// The framework's checks, by entry. A check that is not in `passed` failed.
const MODULE: &str = r#"package parma_explain
import rego.v1

default containers := []
containers := data.policy.containers

candidates := {"containers": containers, "completed": data.framework.candidates}

answers := [answer |
	some entry in data.framework.possible
	answer := {
		"entry": entry,
		"passed": {check | some check in checks; passes(check, entry)},
		"variables": [variable | some variable in input.envList; not data.framework.variable_allowed(entry.env_rules, variable)],
		"required": [rule | some rule in entry.env_rules; rule.required; not given(rule)],
		"mounts": [mount | some mount in input.mounts; not data.framework.mount_ok(entry, mount)],
		"capabilities": [sets | sets := data.framework.allowed_capabilities(entry, privileged)],
	}
]

checks := {
	"command", "working_dir", "user", "umask", "env_rules", "capabilities",
	"no_new_privileges", "allow_terminal", "allow_elevated", "seccomp_profile_sha256", "mounts", "signals",
	"after", "after_success", "max_instances",
}

given(rule) if {
	some variable in input.envList
	data.framework.variable_matches(rule, variable)
}

default privileged := false
privileged := input.privileged if input.rule == "create_container"
privileged := data.metadata.started[input.containerID].privileged if input.rule == "exec_in_container"

passes("command", entry) if {
	input.rule == "create_container"
	entry.command == input.argList
}
passes("command", entry) if {
	input.rule == "exec_in_container"
	data.framework.exec_command_ok(entry)
}
passes("working_dir", entry) if entry.working_dir == input.workingDir
passes("user", entry) if data.framework.identity_ok(entry.user)
passes("umask", entry) if entry.user.umask == input.umask
passes("env_rules", entry) if data.framework.own_environment_ok(entry)
passes("capabilities", _) if data.framework.capability_dropping
passes("capabilities", entry) if data.framework.own_capabilities_ok(entry)
passes("no_new_privileges", entry) if data.framework.no_new_privileges_ok(entry)
passes("allow_terminal", entry) if data.framework.terminal_ok(entry)
passes("allow_elevated", entry) if data.framework.privileged_ok(entry)
passes("seccomp_profile_sha256", entry) if entry.seccomp_profile_sha256 == input.seccompProfileSHA256
passes("mounts", entry) if data.framework.mounts_ok(entry)
passes("signals", entry) if data.framework.signal_ok(entry)
passes("after", entry) if {
	every name in object.get(entry, "after", []) { data.framework.running(name) }
}
passes("after_success", entry) if {
	every name in object.get(entry, "after_success", []) { data.framework.succeeded(name) }
}
passes("max_instances", entry) if data.framework.instances_ok(entry)

# Names of the entries that containers were created from, and of those that run.
instances := [name | some name in object.get(data.metadata, "instances", {})]
running := {name | some name in instances; data.framework.running(name)}

# --- What the policy as a whole refuses, whatever the entry.

asked(field) := object.get(input, field, null)

remembered(map) := object.keys(object.get(data.metadata, map, {}))

refuses(field, allowed) := {"field": field, "asked": asked(field), "allowed": allowed}

refused contains refuses("target", "a path at which nothing is mounted") if {
	input.rule in {"mount_device", "rw_mount_device"}
	not data.framework.device_target_free
}
refused contains refuses("target", data.framework.device_path) if {
	input.rule == "mount_device"
	not data.framework.device_path_ok
}
refused contains refuses("deviceHash", data.framework.known_layers) if {
	input.rule == "mount_device"
	not data.framework.layer_known(asked("deviceHash"))
}
refused contains refuses("unmountTarget", remembered(unmounts[input.rule])) if {
	not asked("unmountTarget") in remembered(unmounts[input.rule])
}
unmounts := {
	"unmount_device": "devices", "rw_unmount_device": "rw_devices", "scratch_unmount": "scratch_mounts",
	"unmount_overlay": "overlayTargets", "plan9_unmount": "p9mounts",
}

refused contains refuses("volume", data.framework.known_volumes) if {
	input.rule == "rw_mount_device"
	"volume" in object.keys(input)
	not input.volume in data.framework.known_volumes
}
scratch if {
	input.rule == "rw_mount_device"
	not "volume" in object.keys(input)
}
refused contains refuses("target", data.framework.rw_device_path) if {
	scratch
	not data.framework.rw_device_path_ok
}
refused contains refuses("filesystem", ["ext4", "xfs"]) if {
	scratch
	not asked("filesystem") in ["ext4", "xfs"]
}
refused contains refuses("ensureFilesystem", true) if {
	scratch
	asked("ensureFilesystem") != true
}
refused contains refuses("size", data.policy.max_scratch_size) if {
	scratch
	not data.framework.scratch_size_ok
}
refused contains refuses("rollbackProtection", true) if {
	scratch
	not data.framework.rollback_protection_ok
}
refused contains refuses("encrypted", true) if {
	input.rule in {"rw_mount_device", "scratch_mount"}
	not data.framework.encryption_ok
}
refused contains refuses("memory", false) if {
	input.rule == "scratch_mount"
	not data.framework.scratch_memory_ok
}
refused contains refuses("target", "a path at which no scratch space is") if {
	input.rule == "scratch_mount"
	asked("target") in remembered("scratch_mounts")
}
refused contains refuses("containerID", "an id that was not used") if {
	input.rule == "mount_overlay"
	data.framework.id_used
}
refused contains refuses("target", "a path at which no overlay is") if {
	input.rule == "mount_overlay"
	asked("target") in remembered("overlayTargets")
}
refused contains refuses("containerID", "one that was not created before") if {
	input.rule == "create_container"
	asked("containerID") in remembered("started")
}
refused contains refuses("containerID", remembered("matches")) if {
	input.rule == "create_container"
	not asked("containerID") in remembered("matches")
}
refused contains refuses("devices", []) if {
	input.rule == "create_container"
	asked("devices") != []
}
refused contains refuses("containerID", remembered("started")) if {
	input.rule in {"exec_in_container", "signal_container_process", "shutdown_container"}
	not asked("containerID") in remembered("started")
}
refused contains refuses("target", "a path at which no share is") if {
	input.rule == "plan9_mount"
	asked("target") in remembered("p9mounts")
}
refused contains refuses("target", data.framework.plan9_path) if {
	input.rule == "plan9_mount"
	count([id | some id in remembered("matches"); data.framework.plan9_path_ok(id)]) == 0
}

# --- Entries of other lists: overlays, processes outside of containers, fragments.

from_bottom := data.framework.from_top([layer |
	some path in input.layerPaths
	layer := object.get(object.get(data.metadata, "devices", {}), path, "(nothing is mounted there)")
])

failing(field, asked, allowed, passed) := [{"field": field, "asked": asked, "allowed": allowed} | not passed]

overlays := [{"entry": entry, "failed": failing("layers", from_bottom, entry.layers, entry.layers == from_bottom)} |
	input.rule == "mount_overlay"
	some entry in data.framework.candidates
]

processes := [{"entry": process, "failed": failed} |
	input.rule == "exec_external"
	some process in data.framework.all_external_processes
	variables := [variable | some variable in input.envList; not data.framework.variable_allowed(process.env_rules, variable)]
	required := [rule | some rule in process.env_rules; rule.required; not given(rule)]
	failed := array.concat(
		array.concat(
			failing("command", asked("argList"), process.command, process.command == asked("argList")),
			failing("working_dir", asked("workingDir"), process.working_dir, process.working_dir == asked("workingDir")),
		),
		[{"field": "env_rules", "asked": {"not allowed": variables, "required and not given": required}, "allowed": process.env_rules} |
			not data.framework.own_environment_ok(process)
		],
	)
]

welcomes := [{"entry": fragment, "failed": failed} |
	input.rule == "load_fragment"
	some fragment in data.framework.named_fragments
	receipts := object.get(fragment, "required_receipts", [])
	failed := array.concat(
		array.concat(
			failing("issuer", asked("issuer"), fragment.issuer, fragment.issuer == asked("issuer")),
			failing("feed", asked("feed"), fragment.feed, fragment.feed == asked("feed")),
		),
		array.concat(
			[{"field": "minimum_svn", "asked": asked("header_svn"), "allowed": fragment.minimum_svn} |
				not data.framework.fragment_svn_ok(fragment.minimum_svn)
			],
			failing("required_receipts", asked("receipts"), receipts, receipts == []),
		),
	)
]

other_answers := array.concat(array.concat(overlays, processes), welcomes)

whole := {"refused": refused, "answers": other_answers, "running": running, "instances": instances}
"#;

/// The checks of each point that keeps entries: the field of the entry, the field of the request.
const CREATE: [(&str, &str); 14] = [
    ("command", "argList"),
    ("working_dir", "workingDir"),
    ("user", "user"),
    ("umask", "umask"),
    ("env_rules", "envList"),
    ("capabilities", "capabilities"),
    ("no_new_privileges", "noNewPrivileges"),
    ("allow_terminal", "terminal"),
    ("allow_elevated", "privileged"),
    ("seccomp_profile_sha256", "seccompProfileSHA256"),
    ("mounts", "mounts"),
    ("after", ""),
    ("after_success", "succeeded"),
    ("max_instances", ""),
];
/// As [`CREATE`], without the last six.
const EXEC: usize = 8;
const SIGNAL: [(&str, &str); 1] = [("signals", "signal")];
/// What a flag alone decides.
const FLAGS: [(Point, &str); 4] = [
    (Point::GetProperties, "allow_properties_access"),
    (Point::DumpStacks, "allow_dump_stacks"),
    (Point::RuntimeLogging, "allow_runtime_logging"),
    (Point::HostNetwork, "allow_host_network"),
];

/// A request, as a file has it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    rule: Option<String>,
    point: Option<String>,
    input: Json,
    metadata: Option<Json>,
}

/// Why a request is allowed or denied.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// The enforcement point.
    pub point: &'static str,
    /// The decision.
    pub allowed: bool,
    /// Why there is no answer that could be a decision, if there is none.
    pub fault: Option<String>,
    /// The framework's reasons.
    pub reasons: Vec<String>,
    /// What no entry decides: fields that the policy as a whole refuses, or what the guest remembers.
    pub refused: Vec<Failure>,
    /// The entries that might have allowed it, and what each refuses: of a container, those that it may still be.
    pub candidates: Vec<Candidate>,
    /// What to know besides, such as what was assumed.
    pub notes: Vec<String>,
}

/// An entry of the policy.
#[derive(Debug, Clone, Serialize)]
pub struct Candidate {
    /// Its name.
    pub entry: String,
    /// The checks that it fails; none if it allows all of the request.
    pub failed: Vec<Failure>,
}

/// A check that an entry fails.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The field of the entry; of what no entry decides, that of the request.
    pub field: String,
    /// What the host asked for; of a list, what is not allowed of it.
    pub asked: Json,
    /// What the entry allows.
    pub allowed: Json,
}

/// Explains the request in `text`: `{"rule" or "point", "input", "metadata"}`.
///
/// Without `metadata`, a request about a container is judged as if its overlay had been mounted and each container of
/// the policy were possible, and as if it ran unless it is to be created.
///
/// # Errors
/// The policy does not compile, or the text is no request to an enforcement point.
pub fn explain(inputs: &Inputs, text: &str) -> Result<Explanation> {
    let request: Request = serde_json::from_str(text).context(
        "a request is {\"point\": \"create_container\", \"input\": {…}}, with \"metadata\" if there is any",
    )?;
    let name = match (&request.rule, &request.point) {
        (Some(rule), None) => rule.strip_prefix("data.policy.").unwrap_or(rule),
        (None, Some(point)) => point,
        _ => bail!("a request has either \"rule\" or \"point\""),
    };
    let point = Point::from_name(name).with_context(|| format!("{name:?} is no enforcement point"))?;
    let Json::Object(fields) = &request.input else { bail!("the request's input is not an object") };
    let mut asked = request.input.clone();
    asked["rule"] = point.name().into();

    let compiled = compile(inputs)?;
    let mut session = Session::new(&compiled.image)?;
    let mut beside = inputs.clone();
    beside.modules.push(("explain.rego".into(), MODULE.into()));
    beside.optimise = false;
    beside.entries =
        ["candidates", "answers", "whole"].map(|rule| format!("data.parma_explain.{rule}")).to_vec();
    let mut notes = Vec::new();
    // A policy with another framework has other checks: then there are only its reasons.
    let beside = match compile(&beside) {
        Ok(compiled) => Some(compiled),
        Err(error) => {
            notes.push(format!(
                "the policy's framework is another one, so entries cannot be compared: {error}"
            ));
            None
        }
    };
    let mut checks = beside.as_ref().map(|compiled| Session::new(&compiled.image)).transpose()?;
    let known = match &mut checks {
        Some(checks) => {
            value(checks.evaluate("data.parma_explain.candidates", Some(&asked))).unwrap_or_default()
        }
        None => Json::Null,
    };
    let metadata = match request.metadata {
        Some(metadata) => Some(metadata),
        None => {
            assumed(point, fields.get("containerID"), &known["completed"], session.metadata(), &mut notes)
        }
    };
    if let Some(metadata) = &metadata {
        session.set_metadata(metadata)?;
        if let Some(checks) = &mut checks {
            checks.set_metadata(metadata)?;
        }
    }

    let (allowed, fault) = match session.evaluate(point.entry(), Some(&request.input)) {
        Evaluation::Value(result) => (result["allowed"] == true, None),
        Evaluation::Undefined => (
            false,
            Some("the policy does not define this point, or nothing in it holds: denied (D1)".to_string()),
        ),
        Evaluation::Fault(fault) => (false, Some(format!("the evaluation ended in a fault: {fault:?}"))),
    };
    let mut reasons = Vec::new();
    if !allowed {
        let reason = value(session.evaluate("data.policy.reason", Some(&asked))).unwrap_or_default();
        reasons.extend(items(&reason["errors"]).iter().filter_map(Json::as_str).map(str::to_string));
    }
    let list: &[(&str, &str)] = match point {
        Point::CreateContainer => &CREATE,
        Point::ExecInContainer => &CREATE[..EXEC],
        Point::SignalContainerProcess => &SIGNAL,
        _ => &[],
    };
    let (mut candidates, mut refused) = (Vec::new(), Vec::new());
    if let Some(checks) = &mut checks {
        let mut ask = |rule: &str| match checks.evaluate(rule, Some(&asked)) {
            Evaluation::Value(value) => value,
            other => {
                notes.push(format!("entries cannot be compared: {other:?}"));
                Json::Null
            }
        };
        let whole = ask("data.parma_explain.whole");
        if !allowed {
            refused = items(&whole["refused"]).iter().map(failure).collect::<Result<_>>()?;
        }
        if !list.is_empty() {
            let answers = ask("data.parma_explain.answers");
            let of = |answer| candidate(answer, point, list, &known, &request.input, &whole);
            candidates.extend(items(&answers).iter().map(of));
        }
        for (number, answer) in items(&whole["answers"]).iter().enumerate() {
            let entry = &answer["entry"];
            let name = match point {
                Point::MountOverlay => name_of(entry, &known),
                Point::ExecExternal => entry_name("external_processes", number, entry),
                _ => format!("the fragment {} of {}", entry["feed"], entry["issuer"]),
            };
            let failed = items(&answer["failed"]).iter().map(failure).collect::<Result<_>>()?;
            candidates.push(Candidate { entry: name, failed });
        }
    }
    if let Some((_, flag)) = FLAGS.iter().find(|(of, _)| *of == point && !allowed) {
        refused.push(Failure { field: (*flag).into(), asked: true.into(), allowed: false.into() });
    }
    let given = |field: &str| field.is_empty() || fields.contains_key(field);
    for (_, field) in list.iter().filter(|(_, field)| !given(field)) {
        notes.push(format!("the request has no {field}; a guest always gives it"));
    }
    if !allowed && point == Point::MountDevice {
        for (number, container) in items(&known["containers"]).iter().enumerate() {
            notes.push(format!(
                "{} allows the layers {}",
                entry_name("containers", number, container),
                container["layers"]
            ));
        }
    }
    if !allowed && !candidates.is_empty() && candidates.iter().any(|candidate| candidate.failed.is_empty()) {
        notes.push("an entry passes every check by itself: the denial is about the container's state, its devices, a choice between entries, or a rule of the policy's own".into());
    }
    Ok(Explanation { point: point.name(), allowed, fault, reasons, refused, candidates, notes })
}

fn failure(value: &Json) -> Result<Failure> {
    serde_json::from_value(value.clone()).context("what the policy's checks say")
}

/// What to call an entry of the policy's containers.
fn name_of(entry: &Json, known: &Json) -> String {
    match items(&known["completed"]).iter().position(|known| known == entry) {
        Some(number) => entry_name("containers", number, &known["containers"][number]),
        None => "an entry that is not in the policy: a fragment's, or one with what the platform adds".into(),
    }
}

fn items(list: &Json) -> &[Json] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn value(evaluation: Evaluation) -> Option<Json> {
    match evaluation {
        Evaluation::Value(value) => Some(value),
        _ => None,
    }
}

/// What a guest would remember when an honest host asks this.
fn assumed(
    point: Point,
    id: Option<&Json>,
    candidates: &Json,
    mut fresh: Json,
    notes: &mut Vec<String>,
) -> Option<Json> {
    let id = id?.as_str()?;
    let started = match point {
        Point::CreateContainer => false,
        Point::ExecInContainer | Point::SignalContainerProcess | Point::ShutdownContainer => true,
        _ => return None,
    };
    fresh["matches"] = json!({ id: candidates });
    if started {
        fresh["started"] = json!({ id: {"privileged": false} });
    }
    let state = if started { "runs, unprivileged" } else { "has its overlay" };
    notes.push(format!("no metadata given: assumed that the container {state} and may be any of the policy"));
    Some(fresh)
}

fn candidate(
    answer: &Json,
    point: Point,
    list: &[(&'static str, &str)],
    known: &Json,
    input: &Json,
    whole: &Json,
) -> Candidate {
    let entry = &answer["entry"];
    let passed = items(&answer["passed"]);
    let failed = list.iter().filter(|(check, _)| !passed.iter().any(|name| name == check));
    let failed = failed.map(|&(field, of)| {
        let (asked, allowed) = match field {
            "command" if point == Point::ExecInContainer => {
                let commands = items(&entry["exec_processes"]).iter().map(|process| process["command"].clone());
                (input[of].clone(), commands.collect())
            }
            "user" => (
                json!({"user": input["user"], "groups": input["groups"]}),
                json!({"user_idname": entry["user"]["user_idname"], "group_idnames": entry["user"]["group_idnames"]}),
            ),
            "umask" => (input[of].clone(), entry["user"]["umask"].clone()),
            "env_rules" => (
                json!({"not allowed": answer["variables"], "required and not given": answer["required"]}),
                entry[field].clone(),
            ),
            "capabilities" => (input[of].clone(), answer["capabilities"][0].clone()),
            "mounts" => (answer["mounts"].clone(), entry[field].clone()),
            "after" => (json!({"running": whole["running"]}), entry[field].clone()),
            "max_instances" => {
                let own = entry["name"].as_str().unwrap_or_default();
                let count = items(&whole["instances"]).iter().filter(|name| **name == *own).count();
                (json!({"created before": count}), entry[field].clone())
            }
            "signals" => (
                json!({"signal": input["signal"], "argList": input["argList"], "isInitProcess": input["isInitProcess"]}),
                json!({"signals": entry["signals"], "exec_processes": entry["exec_processes"]}),
            ),
            _ => (input[of].clone(), entry[field].clone()),
        };
        Failure { field: field.into(), asked, allowed }
    });
    Candidate { entry: name_of(entry, known), failed: failed.collect() }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.point, if self.allowed { "allowed" } else { "denied" })?;
        if let Some(fault) = &self.fault {
            writeln!(f, "  {fault}")?;
        }
        for reason in &self.reasons {
            writeln!(f, "  reason: {reason}")?;
        }
        for Failure { field, asked, allowed } in &self.refused {
            writeln!(f, "  {field}\n    asked:   {asked}\n    allowed: {allowed}")?;
        }
        for Candidate { entry, failed } in &self.candidates {
            writeln!(
                f,
                "  {entry}: {}",
                if failed.is_empty() { "passes every check" } else { "does not allow" }
            )?;
            for Failure { field, asked, allowed } in failed {
                writeln!(f, "    {field}\n      asked:   {asked}\n      allowed: {allowed}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "  note: {note}")?;
        }
        Ok(())
    }
}
