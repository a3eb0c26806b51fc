//! `explore` proves the promises of a strict policy, and finds the hole that was put into a weakened one.

mod common;

use std::collections::BTreeSet;
use std::io::Cursor;

use common::requests::{container, hash, policy, with};
use parma_policy::explore::{Bounds, Exploration, Invariant, Part, Policy, explore};
use parma_policy::fragment::compile_fragment;
use parma_policy::generate::{Container, Identity, Limits, PodSettings, Settings};
use parma_policy::{Inputs, compile, replay_sources};
use serde_json::{Value, json};

/// One container id, nothing beside an entry's devices.
const NARROW: Bounds = Bounds { ids: 1, extra_devices: 0, others: 0, states: 100_000 };

/// A rule that mounts devices wherever it is asked to.
const SECOND_DEVICE: &str = r#"mount_device := {"allowed": true, "metadata": [operation]} if {
	input.deviceHash in data.framework.known_layers
	startswith(input.target, "/run/mounts/scsi/m")
	operation := {"name": "devices", "action": "update", "key": input.target, "value": input.deviceHash}
}"#;

fn explored(text: &str, bounds: &Bounds) -> Exploration {
    explore(Policy::Source(&Inputs::policy("policy.rego", text)), &[], None, bounds, &mut |_| {}).unwrap()
}

/// A policy of two containers with the layers 1 and 2 that differ in everything else that matters.
fn two() -> String {
    let mut other = with(&container(), "/command", json!(["/bin/other"]));
    other["name"] = json!("other");
    other["working_dir"] = json!("/other");
    other["env_rules"] = json!([{"pattern": "PATH=/other", "strategy": "string", "required": true}]);
    other["exec_processes"] = json!([{"command": ["/bin/other-check"], "signals": [3]}]);
    other["signals"] = json!([10]);
    policy(&[container(), other], &json!({}))
}

/// A policy with the rule of one point replaced.
fn weakened(text: &str, point: &str, rule: &str) -> String {
    let alias = format!("{point} := data.framework.{point}\n");
    assert!(text.contains(&alias), "{point} is not aliased");
    format!("{}\nimport rego.v1\n", "package policy\n")
        + &text
            .replace("package policy\n", "")
            .replace(&alias, &format!("default {point} := {{\"allowed\": false}}\n{rule}\n"))
}

/// Explores a weakened policy; the promise that must be found broken, and that the trace shows it.
fn finds(point: &str, rule: &str, promise: Invariant, steps: usize) -> String {
    finds_in(&weakened(&two(), point, rule), &NARROW, point, promise, steps)
}

/// The same of any policy.
fn finds_in(text: &str, bounds: &Bounds, point: &str, promise: Invariant, steps: usize) -> String {
    let found = explored(text, bounds);
    let violation = found.violation.as_ref().unwrap_or_else(|| panic!("{point}: nothing found\n{found}"));
    assert!(!found.holds);
    assert_eq!(violation.invariant, promise, "{point}: {found}");
    assert_eq!(violation.trace.len(), steps, "{point}: {found}");
    // The trace is one for `replay`, and there every step of it is allowed.
    let lines: String = violation.trace.iter().map(|line| format!("{line}\n")).collect();
    let mut answers = Vec::new();
    replay_sources(&Inputs::policy("policy.rego", text), Cursor::new(lines), &mut answers).unwrap();
    let answers = String::from_utf8(answers).unwrap();
    assert_eq!(answers.lines().count(), steps);
    for answer in answers.lines() {
        let answer: Value = serde_json::from_str(answer).unwrap();
        assert_eq!(answer["result"]["allowed"], true, "{answer}");
    }
    violation.message.clone()
}

#[test]
fn a_generated_policy_holds_with_two_ids_and_with_foreign_devices() {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<String>>();
    let container = Container {
        name: None,
        image: format!("sha256:{}", hash(7)),
        layers: vec![[1; 32], [2; 32]],
        args: words(&["python3", "-c", "print('up')"]),
        env: words(&["PATH=/bin", "LANG=C"]),
        working_dir: "/".into(),
        user: String::new(),
        identity: Identity { uid: 0, gids: vec![0] },
        umask: 0o22,
        held: words(&["CAP_KILL"]),
        mounts: Vec::new(),
        volumes: Vec::new(),
        after: Vec::new(),
        no_new_privileges: true,
        stdio: true,
        terminal: false,
        attestation: false,
        exec: vec![words(&["python3", "-c", "print('more')"])],
        signals: vec![9, 15],
        properties: true,
        logging: false,
        max_scratch: 1 << 30,
        memory_scratch: false,
        network: false,
        required: false,
        max_instances: None,
        limits: Limits::default(),
        after_success: Vec::new(),
        seccomp: None,
        settings: Settings::default(),
        pod: PodSettings::default(),
    };
    for (bounds, states) in [
        (Bounds { ids: 2, extra_devices: 0, ..NARROW }, 50),
        (Bounds { extra_devices: 1, others: 1, ..NARROW }, 50),
    ] {
        let found = explored(&container.policy(), &bounds);
        assert!(found.holds && found.complete && found.violation.is_none(), "{found}");
        assert!(found.states > states && found.outside > 0, "{found}");
        // Nothing depends on what a request does not name, so that each part of the guest was explored by itself.
        assert!(found.beyond == Some(Vec::new()) && found.walks.len() == 4, "{found}");
        let text = found.to_string();
        assert!(text.contains("holds") && text.contains(&format!("{} container ids", bounds.ids)), "{text}");
    }
}

#[test]
fn two_entries_of_the_same_layers_are_told_apart_in_every_state() {
    let found = explored(&two(), &Bounds { extra_devices: 1, ..NARROW });
    assert!(found.holds, "{found}");
    let graph = found.dot();
    assert!(graph.starts_with("digraph") && graph.contains("create_container"), "{graph}");
    assert_eq!(graph.matches(" [label=").count() - graph.matches(" -> ").count(), found.states);
}

#[test]
fn a_compiled_policy_is_explored_as_its_source_is() {
    let image = compile(&Inputs::policy("policy.rego", &two())).unwrap().image;
    let found = explore(Policy::Image(&image), &[], None, &NARROW, &mut |_| {}).unwrap();
    assert!(found.holds, "{found}");
    let of_source = explored(&two(), &NARROW);
    assert_eq!((found.states, &found.host_data), (of_source.states, &of_source.host_data));
    assert!(found.to_string().contains("does not say what its flags are"), "{found}");
    // A hole in its rules is found in it all the same.
    let hole = weakened(&two(), "mount_device", SECOND_DEVICE);
    let image = compile(&Inputs::policy("policy.rego", &hole)).unwrap().image;
    let found = explore(Policy::Image(&image), &[], None, &NARROW, &mut |_| {}).unwrap();
    assert_eq!(found.violation.expect("it is broken").invariant, Invariant::OneDevicePerPath);
    let nothing =
        compile(&Inputs::policy("policy.rego", "package policy\nget_properties := {\"allowed\": false}"));
    let nothing = explore(Policy::Image(&nothing.unwrap().image), &[], None, &NARROW, &mut |_| {});
    assert!(nothing.unwrap_err().to_string().contains("no containers"));
}

#[test]
fn parts_that_a_decision_connects_are_explored_together() {
    let others = Bounds { others: 1, ..NARROW };
    let together = |text: &str| {
        let found = explored(text, &others);
        let walks = found.walks.iter().map(|walk| walk.parts.iter().copied().collect::<Vec<_>>());
        (walks.collect::<Vec<_>>(), found)
    };
    // A share is mounted at the path of any container that has an overlay.
    let (walks, found) = together(&two());
    assert!(found.holds, "{found}");
    assert_eq!(walks, [vec![Part::Containers, Part::Shares], vec![Part::Writable], vec![Part::Scratch]]);
    assert_eq!(found.beyond, Some(vec![("plan9_mount", "matches".to_string())]));
    // What is wrong only while there is scratch space is found although nothing else connects the two.
    let rule = r#"unmount_device := data.framework.unmount_device if not data.metadata.scratch_mounts
unmount_device := {"allowed": true} if data.metadata.scratch_mounts"#;
    let hole = weakened(&two(), "unmount_device", rule);
    let promise = Invariant::OneDevicePerPath;
    finds_in(&hole, &others, "unmount_device", promise, 2);
    assert!(explored(&hole, &NARROW).holds, "without scratch space there is no hole");
}

#[test]
fn volumes_and_what_a_running_container_may_use_are_explored_too() {
    let volume = "ab".repeat(32);
    let mut entry = container();
    entry["mounts"] = json!([
        {"type": "bind", "source": format!("volume://{volume}"), "destination": "/data", "options": ["rw"]},
    ]);
    entry["resources"] = json!({"memory": {"least": 1024, "most": 4096}});
    let policy = policy(&[entry], &json!({}));
    let others = Bounds { others: 1, ..NARROW };
    let found = explored(&policy, &others);
    assert!(found.holds, "{found}");
    // A container is given a volume only where that is open, so the two are not apart.
    let together = BTreeSet::from([Part::Containers, Part::Writable]);
    assert!(found.walks.iter().any(|walk| walk.parts.is_superset(&together)), "{found}");

    let rule = r#"rw_mount_device := {"allowed": true, "metadata": [
	{"name": "rw_devices", "action": "add", "key": input.target, "value": true},
]} if {
	not data.metadata.rw_devices[input.target]
	input.encrypted == true
	startswith(input.target, "/run/mounts/volumes/")
}"#;
    let hole = weakened(&policy, "rw_mount_device", rule);
    finds_in(&hole, &others, "rw_mount_device", Invariant::OnlyWhatThePolicyNames, 1);
    let rule = r#"update_container := {"allowed": true} if {
	data.metadata.started[input.containerID]
	some container in data.metadata.matches[input.containerID]
	input.memory <= container.resources.memory.most
}"#;
    let hole = weakened(&policy, "update_container", rule);
    finds_in(&hole, &NARROW, "update_container", Invariant::OneEntryAllowsAll, 5);
}

#[test]
fn f07_a_policy_with_its_fragments_is_explored_wherever_they_are_brought() {
    let mut tool = with(&container(), "/command", json!(["/bin/tool"]));
    tool["name"] = json!("tool");
    tool["layers"] = json!([hash(1), hash(7)]);
    tool["env_rules"] = json!([{"pattern": "MODE=[a-z]+", "strategy": "re2", "required": true}]);
    let fragment = format!("package fragment\n\nframework_version := \"0.5.0\"\ncontainers := [{tool}]\n");
    let fragments = [compile_fragment("fragment.rego", &fragment).unwrap().image];
    let policy_with = |includes: &[&str]| {
        let named = json!([{"issuer": "did:x509:x", "feed": "f", "minimum_svn": "2", "includes": includes}]);
        policy(&[container()], &json!({"fragments": named}))
    };
    let explored = |text: &str| {
        let inputs = Inputs::policy("policy.rego", text);
        explore(Policy::Source(&inputs), &fragments, None, &NARROW, &mut |_| {}).unwrap()
    };
    let found = explored(&policy_with(&["containers"]));
    assert!(found.holds && found.beyond.is_none(), "{found}");
    let without = explored(&policy_with(&["external_processes"]));
    assert!(without.holds && without.states < found.states, "{without}");
    assert!(found.dot().contains("load_fragment"));

    let load = |condition: &str| {
        let rule = format!(
            r#"load_fragment := {{"allowed": true}} if {{ input.fragment_loaded == false; {condition} }}
load_fragment := {{"allowed": true, "metadata": [
	{{"name": "issuers", "action": "update", "key": input.issuer, "value": {{"feeds": {{input.feed: [input.fragment]}}}}}},
]}} if {{ input.fragment_loaded == true; {condition} }}"#
        );
        weakened(&policy_with(&["external_processes"]), "load_fragment", &rule)
    };
    for (condition, steps, what) in [
        ("input.feed == \"f\"", 1, "the fragment \"f\""),
        ("input.feed == \"f\"; input.header_svn >= 2", 2, "the layer"),
    ] {
        let found = explored(&load(condition));
        let violation = found.violation.as_ref().unwrap_or_else(|| panic!("{condition}: {found}"));
        assert_eq!(violation.invariant, Invariant::OnlyWhatThePolicyNames, "{found}");
        assert!(violation.trace.len() == steps && violation.message.contains(what), "{found}");
        assert_eq!(violation.trace[0]["rule"], "data.policy.load_fragment");
    }
}

/// [`two`], in which the other one comes after the first, and each may be there once.
fn obliging() -> String {
    two()
        .replace("\"name\":\"other\"", "\"name\":\"other\",\"after\":[\"serve\"]")
        .replace("\"name\":\"serve\"", "\"name\":\"serve\",\"max_instances\":1,\"required\":true")
}

#[test]
fn what_entries_oblige_to_is_met_in_every_state() {
    let two_ids = Bounds { ids: 2, ..NARROW };
    let found = explored(&obliging(), &two_ids);
    assert!(found.holds, "{found}");
    assert!(found.beyond.as_ref().unwrap().contains(&("create_container", "instances".into())), "{found}");
    // A rule that forgets them, and is right in everything else.
    let rule = r#"create_container := {
	"allowed": true, "env_list": input.envList, "caps_list": input.capabilities,
	"allow_stdio_access": one.allow_stdio_access,
	"metadata": [
		{"name": "matches", "action": "update", "key": input.containerID, "value": [one]},
		{"name": "started", "action": "add", "key": input.containerID, "value": {"privileged": false}},
		{"name": "instances", "action": "add", "key": input.containerID, "value": one.name},
	],
} if {
	not data.metadata.started[input.containerID]
	input.devices == []
	some one in data.metadata.matches[input.containerID]
	one.command == input.argList
	one.working_dir == input.workingDir
	data.framework.user_ok(one.user)
	data.framework.privileged_ok(one)
	data.framework.no_new_privileges_ok(one)
	data.framework.terminal_ok(one)
	one.seccomp_profile_sha256 == input.seccompProfileSHA256
	data.framework.mounts_ok(one)
	data.framework.equips({}, one.env_rules, input.envList)
	data.framework.capabilities_ok(one.capabilities, input.capabilities)
	CONDITION
}"#;
    for (condition, steps, what) in [
        ("data.framework.instances_ok(one)", 4, "`after`"),
        ("data.framework.turn_ok(one)", 6, "`max_instances`"),
    ] {
        let hole = weakened(&obliging(), "create_container", &rule.replace("CONDITION", condition));
        let message = finds_in(&hole, &two_ids, "create_container", Invariant::ObligationsAreMet, steps);
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn a_path_that_is_forgotten_to_be_free_again_is_found() {
    finds(
        "unmount_device",
        "unmount_device := {\"allowed\": true} if data.framework.unmount_device.allowed",
        Invariant::OneDevicePerPath,
        3,
    );
}

#[test]
fn a_second_device_at_one_path_is_found() {
    finds("mount_device", SECOND_DEVICE, Invariant::OneDevicePerPath, 1);
}

#[test]
fn an_overlay_in_another_order_is_found() {
    let rule = r#"mount_overlay := {"allowed": true, "metadata": [
	{"name": "matches", "action": "add", "key": input.containerID, "value": entries},
	{"name": "overlayTargets", "action": "add", "key": input.target, "value": true},
]} if {
	not data.metadata.matches[input.containerID]
	not data.metadata.overlayTargets[input.target]
	mounted := {data.metadata.devices[path] | some path in input.layerPaths}
	entries := [entry | some entry in containers; {layer | some layer in entry.layers} == mounted]
	count(entries) > 0
}"#;
    finds("mount_overlay", rule, Invariant::OverlayInOrder, 3);
}

#[test]
fn an_id_that_is_not_burned_is_found() {
    let rule = r#"create_container := {
	"allowed": true, "env_list": answer.env_list, "caps_list": answer.caps_list,
	"allow_stdio_access": answer.allow_stdio_access,
	"metadata": [operation | some operation in answer.metadata; operation.name != "started"],
} if {
	answer := data.framework.create_container
	answer.allowed == true
}"#;
    finds("create_container", rule, Invariant::BurnedIdsStayBurned, 5);
}

#[test]
fn an_id_that_a_shutdown_frees_is_found() {
    let rule = r#"shutdown_container := {"allowed": true, "metadata": [
	{"name": "matches", "action": "remove", "key": input.containerID},
	{"name": "started", "action": "remove", "key": input.containerID},
]} if data.metadata.started[input.containerID]"#;
    finds("shutdown_container", rule, Invariant::BurnedIdsStayBurned, 7);
}

#[test]
fn a_mixture_of_two_entries_is_found_with_the_field_that_each_refuses() {
    let rule = r#"create_container := {
	"allowed": true, "env_list": input.envList, "caps_list": input.capabilities, "allow_stdio_access": true,
	"metadata": [{"name": "started", "action": "add", "key": input.containerID, "value": {"privileged": false}}],
} if {
	not data.metadata.started[input.containerID]
	input.devices == []
	possible := data.metadata.matches[input.containerID]
	some one in possible
	one.command == input.argList
	one.working_dir == input.workingDir
	data.framework.user_ok(one.user)
	data.framework.privileged_ok(one)
	data.framework.no_new_privileges_ok(one)
	data.framework.terminal_ok(one)
	one.seccomp_profile_sha256 == input.seccompProfileSHA256
	data.framework.mounts_ok(one)
	some other in possible
	data.framework.equips({}, other.env_rules, input.envList)
	data.framework.capabilities_ok(other.capabilities, input.capabilities)
}"#;
    let message = finds("create_container", rule, Invariant::OneEntryAllowsAll, 4);
    assert!(
        message.contains("envList") && message.contains("\"serve\"") && message.contains("\"other\""),
        "{message}"
    );
}

#[test]
fn what_a_flag_does_not_allow_is_found_in_the_first_step() {
    finds("get_properties", "get_properties := {\"allowed\": true}", Invariant::OnlyWhatThePolicyNames, 1);
}

#[test]
fn the_customer_s_assertions_are_checked_and_a_broken_one_comes_with_its_trace() {
    let inputs = Inputs::policy("policy.rego", &two());
    let check = |rules: &str| {
        let module =
            ("assertions.rego".to_string(), format!("package assertions\n\nimport rego.v1\n\n{rules}\n"));
        explore(Policy::Source(&inputs), &[], Some(&module), &NARROW, &mut |_| {})
    };
    let rules = r#"deny contains "a second process runs" if {
	input.point == "exec_in_container"
	input.decision.allowed
	input.state.started[input.request.containerID]
}"#;
    let found = check(rules).unwrap();
    let violation = found.violation.expect("it is broken");
    assert_eq!(violation.invariant, Invariant::Assertion);
    assert!(violation.message.contains("a second process runs"), "{}", violation.message);
    assert_eq!(violation.trace.len(), 5);

    let rules = r#"deny contains "without its PATH" if {
	input.point == "create_container"
	input.decision.allowed
	not "PATH=/bin" in input.decision.env_list
	not "PATH=/other" in input.decision.env_list
}

deny contains "more containers than one" if count(object.get(input.after, "started", {})) > 1"#;
    assert!(check(rules).unwrap().holds);
    let error = format!("{:#}", check("allow := true").unwrap_err());
    assert!(error.contains("data.assertions.deny"), "{error}");
}

#[test]
fn an_exploration_that_was_not_finished_does_not_say_that_it_holds() {
    let found = explored(&two(), &Bounds { states: 3, ..NARROW });
    assert!(!found.holds && !found.complete && found.violation.is_none());
    assert!(found.to_string().contains("no proof"), "{found}");
}
