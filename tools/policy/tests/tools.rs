//! What `check` and `lint` say about policies.

mod common;

use common::requests::{
    container, create_container, exec_in_container, hash, id, mount_device, mount_overlay, policy, signal,
};
use parma_guest::gate::ARENA;
use parma_guest::point::Point;
use parma_guest::policy::engine::DEFAULT_FUEL;
use parma_guest::policy::{Arena, Engine, Fault, Refusal};
use parma_policy::explain::{Explanation, explain};
use parma_policy::lint::Finding;
use parma_policy::{Inputs, check, from_json, lint};
use serde_json::{Value, json};

fn inputs(containers: &[Value], changes: &Value) -> Inputs {
    Inputs::policy("policy.rego", &policy(containers, changes))
}

/// An entry in which lint finds nothing.
fn strict() -> Value {
    let mut entry = container();
    entry["allow_stdio_access"] = json!(false);
    entry
}

fn findings(containers: &[Value]) -> Vec<Finding> {
    lint::lint(&inputs(containers, &json!({}))).unwrap()
}

/// The check, entry and field of each finding.
fn places(containers: &[Value]) -> Vec<(&'static str, String, String)> {
    findings(containers).into_iter().map(|finding| (finding.check, finding.entry, finding.field)).collect()
}

fn with(field: &str, value: Value) -> Value {
    let mut entry = strict();
    entry[field] = value;
    entry
}

#[test]
fn a_strict_policy_has_no_findings() {
    assert_eq!(findings(&[strict()]), []);
}

#[test]
fn lint_names_the_container_the_field_and_the_remedy() {
    let mut second = with("allow_elevated", json!(true));
    second["name"] = json!("second");
    second["command"] = json!(["/bin/other"]);
    let found = findings(&[strict(), second]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].check, &*found[0].entry, &*found[0].field),
        ("elevated", "containers[1] \"second\"", "allow_elevated")
    );
    assert!(found[0].remedy.contains("false"), "{found:?}");
}

#[test]
fn lint_finds_the_rule_that_gives_away_what_a_process_loads() {
    let rule = |pattern: &str| json!({"pattern": pattern, "strategy": "re2", "required": true});
    let rules = json!([
        rule("LD_PRELOAD=.*"),
        rule("LD_PRELOAD=(/lib/good\\.so)?"),
        rule("LD_PRELOAD=/lib/good\\.so"),
        rule("(?i)path=.+"),
        {"name": "LD_[A-Z]+", "name_strategy": "re2", "value": "[a-z]+", "value_strategy": "re2", "required": true},
        rule("HOSTNAME=.+"),
        {"pattern": "PYTHONPATH=", "strategy": "string", "required": true},
    ]);
    let found = findings(&[with("env_rules", rules)]);
    let said: Vec<(&str, bool)> =
        found.iter().map(|finding| (&*finding.field, finding.message.contains("any value"))).collect();
    assert_eq!(
        said,
        [("env_rules[0]", true), ("env_rules[1]", false), ("env_rules[3]", true), ("env_rules[4]", true)],
        "{found:?}"
    );
    assert!(found[0].message.contains("LD_PRELOAD"), "{found:?}");
    assert!(found.iter().all(|finding| finding.check == "variable"), "{found:?}");
}

#[test]
fn lint_finds_bare_alternations_wherever_a_pattern_stands() {
    let mut entry = strict();
    entry["env_rules"][1]["pattern"] = json!("LEVEL=[0-9]|LEVEL=x");
    entry["mounts"] =
        json!([{"type": "bind", "destination": "/a", "options": [], "source": "sandbox:///a|b"}]);
    entry["user"]["user_idname"] = json!({"pattern": "a|b", "strategy": "re2"});
    let fields: Vec<String> =
        places(&[entry]).into_iter().map(|(check, _, field)| format!("{check} {field}")).collect();
    assert_eq!(
        fields,
        [
            "alternation env_rules[1].pattern",
            "alternation mounts[0].source",
            "alternation user.user_idname.pattern"
        ]
    );
}

#[test]
fn lint_finds_open_streams_shells_and_variables_that_may_be_left_out() {
    let mut entry = container();
    entry["exec_processes"] = json!([{"command": ["/usr/bin/env", "bash"], "signals": []}, {"command": ["/bin/shred"], "signals": []}]);
    entry["env_rules"] = json!([{"pattern": "A=1", "strategy": "string"}, {"pattern": "B=1", "strategy": "string", "required": false}]);
    let checks: Vec<String> =
        places(&[entry]).into_iter().map(|(check, _, field)| format!("{check} {field}")).collect();
    assert_eq!(
        checks,
        [
            "required env_rules[0]",
            "required env_rules",
            "stdio allow_stdio_access",
            "shell exec_processes[0].command"
        ]
    );
}

#[test]
fn lint_finds_containers_between_which_the_host_may_choose() {
    let mut wider = with("working_dir", json!("/"));
    wider["name"] = json!("wider");
    let found = findings(&[strict(), wider]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].check, &*found[0].field), ("twin", "working_dir"));
    assert!(found[0].message.contains("containers[0] \"serve\""), "{found:?}");
}

#[test]
fn lint_finds_weak_flags_and_reads_policies_without_containers() {
    let weak = inputs(&[], &json!({"allow_unencrypted_scratch": true, "containers": null}));
    let found = lint::lint(&weak).unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(
        (found[0].check, &*found[0].entry, &*found[0].field),
        ("flag", "", "allow_unencrypted_scratch")
    );
}

#[test]
fn what_does_not_compile_is_an_error_of_the_policy_s_own() {
    let broken = Inputs::policy("broken.rego", "package policy\n\nmount_device := input with input as 1\n");
    for error in [lint::lint(&broken).unwrap_err(), check::check(&broken).unwrap_err()] {
        assert!(error.to_string().starts_with("broken.rego:3:"), "{error}");
    }
}

#[test]
fn check_lists_what_is_denied_because_the_policy_does_not_mention_it() {
    let text =
        "package policy\n\nframework_version := \"0.5.0\"\nmount_device := data.framework.mount_device\n";
    let report = check::check(&Inputs::policy("p.rego", text)).unwrap();
    assert!(report.entries.contains(&"data.policy.mount_device".to_string()), "{report}");
    assert!(
        report.denied.contains(&"create_container") && !report.denied.contains(&"mount_device"),
        "{report}"
    );
    assert!(report.warnings.iter().any(|warning| warning.contains("create_container")), "{report}");
}

#[test]
fn check_says_the_same_of_the_source_and_of_the_image() {
    let inputs = inputs(&[container()], &json!({}));
    let compiled = parma_policy::compile(&inputs).unwrap();
    let (of_source, of_image) =
        (check::check(&inputs).unwrap(), check::check_image(&compiled.image, &[]).unwrap());
    assert_eq!(of_source.host_data, of_image.host_data);
    assert_eq!(of_source.image.bytes, compiled.image.len());
    assert!(of_source.image.functions > 0 && of_source.image.dfas > 0 && of_source.bounds.registers > 0);
    let mut damaged = compiled.image;
    damaged.push(0);
    assert!(check::check_image(&damaged, &[]).is_err());
}

/// A policy of entries that nothing but the environment tells apart, each with many patterns, and dropping: nothing is
/// ruled out early.
fn expensive(entries: usize) -> Inputs {
    let rules: Vec<Value> = (0..40)
        .map(|rule| json!({"pattern": format!("(?i)(NAME)_?[A-Z]*{rule}=.*"), "strategy": "re2", "required": false}))
        .collect();
    let mut entry = container();
    entry["env_rules"] = json!(rules);
    let mut entries = vec![entry; entries];
    for (number, entry) in entries.iter_mut().enumerate() {
        entry["name"] = json!(format!("entry {number}"));
        entry["env_rules"][39] =
            json!({"pattern": format!("OWN_{number}=.*"), "strategy": "re2", "required": false});
    }
    let flags = json!({"allow_environment_variable_dropping": true, "allow_capability_dropping": true});
    inputs(&entries, &flags)
}

#[test]
fn the_largest_request_to_an_expensive_policy_stays_within_steps_and_memory() {
    let mut last = 0;
    // Of many more entries not even the list has room in a decision's memory.
    for entries in [1, 16, 128] {
        let report = check::check(&expensive(entries)).unwrap();
        let worst = report.bounds.worst.as_ref().expect("worked out of a source");
        assert!(worst.steps > last && worst.asked > 20, "{report}");
        assert!(
            worst.steps <= report.bounds.fuel_limit && worst.memory <= report.bounds.arena_limit,
            "{report}"
        );
        assert!(report.to_string().contains(&format!("at worst    {} steps", worst.steps)), "{report}");
        assert!(report.warnings.is_empty(), "{report}");
        println!("{entries} entries: {report}");
        last = worst.steps;
    }
}

/// Whatever a policy and a request cost: the budget is what a decision can cost at most, and one that it does not suffice
/// for is denied, whole.
#[test]
fn p08_a_decision_that_exceeds_its_budget_is_a_denial_and_leaves_no_trace() {
    let image = parma_policy::compile(&expensive(4)).unwrap().image;
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = vec![0; ARENA];
    let arena = &mut Arena::new(&mut memory);
    for (point, input) in [
        (Point::MountDevice, mount_device(0, &hash(1))),
        (Point::MountDevice, mount_device(1, &hash(2))),
        (Point::MountOverlay, mount_overlay(&id('a'), &[1, 0])),
    ] {
        let decision = engine.decide(arena, point, |arena| from_json(arena, &input)).unwrap();
        engine.commit(decision.delta).unwrap();
    }
    let mut request = create_container(&id('a'));
    let variables = (0..300).map(|number| format!("NAME_X{number}={}", "x".repeat(number % 50)));
    request["envList"] = variables.collect();
    let mut ask = |fuel: u64| {
        let before = engine.state_digest();
        engine.set_fuel(fuel);
        let decision = engine.decide(arena, Point::CreateContainer, |arena| from_json(arena, &request));
        assert_eq!(engine.state_digest(), before);
        (decision.map(|decision| decision.env), engine.spent())
    };
    let (answer, cost) = ask(DEFAULT_FUEL);
    assert!(answer.as_ref().is_ok_and(|env| env.as_ref().is_some_and(|kept| kept.len() > 30)), "{answer:?}");
    assert!(cost > 1000);
    for fuel in (0..cost).step_by(cost as usize / 199).chain([cost - 1]) {
        let (refused, spent) = ask(fuel);
        assert_eq!(refused, Err(Refusal::Fault(Fault::Fuel)), "{fuel} of {cost}");
        assert_eq!(spent, fuel);
    }
    assert_eq!(ask(cost), (answer, cost));
}

fn explained(policy: &Inputs, point: &str, input: &Value) -> Explanation {
    explain(policy, &json!({"point": point, "input": input}).to_string()).unwrap()
}

#[test]
fn lint_finds_obligations_that_nothing_can_meet() {
    let entry = |name: &str, more: Value| {
        let mut entry = strict();
        entry["name"] = name.into();
        entry["command"] = json!([format!("/bin/{name}")]);
        for (field, value) in more.as_object().unwrap() {
            entry[field] = value.clone();
        }
        entry
    };
    assert_eq!(
        places(&[
            entry("a", json!({"required": true, "max_instances": 2})),
            entry("b", json!({"after": ["a"]}))
        ]),
        []
    );
    for (containers, found) in [
        (vec![entry("a", json!({"after": ["b", "c"]})), entry("b", json!({}))], vec!["after"]),
        (vec![entry("a", json!({"after": ["a"]}))], vec!["after"]),
        (
            vec![
                entry("a", json!({"after": ["b"]})),
                entry("b", json!({"after": ["c"]})),
                entry("c", json!({"after": ["b"]})),
            ],
            vec!["after", "after", "after"],
        ),
        (vec![entry("a", json!({"after": "b"})), entry("b", json!({}))], vec!["after"]),
        (vec![entry("a", json!({"max_instances": 0}))], vec!["max_instances"]),
        (vec![entry("a", json!({"max_instances": "3"}))], vec!["max_instances"]),
        (vec![entry("a", json!({"required": "yes"}))], vec!["required"]),
        (vec![entry("a", json!({"required": true, "max_instances": 0}))], vec!["max_instances", "required"]),
        (
            vec![
                entry("a", json!({"required": true, "after": ["b"]})),
                entry("b", json!({"max_instances": 0})),
            ],
            vec!["after", "required", "max_instances"],
        ),
        (vec![entry("", json!({"required": true}))], vec!["name"]),
    ] {
        let places = places(&containers);
        assert!(places.iter().all(|(check, ..)| *check == "obligation"), "{places:?}");
        let fields: Vec<&str> = places.iter().map(|(_, _, field)| &**field).collect();
        assert_eq!(fields, found, "{:#?}", findings(&containers));
    }
}

/// The fields that an entry refuses.
fn refused(explanation: &Explanation, entry: usize) -> Vec<&str> {
    explanation.candidates[entry].failed.iter().map(|failure| &*failure.field).collect()
}

#[test]
fn explain_says_which_entry_refuses_which_field_what_was_asked_and_what_is_allowed() {
    let mut other = container();
    other["name"] = json!("other");
    other["command"] = json!(["/bin/other"]);
    let policy = inputs(&[container(), other], &json!({}));
    let id = id('1');
    let honest = create_container(&id);
    let answer = explained(&policy, "create_container", &honest);
    assert!(answer.allowed, "{answer}");
    assert_eq!((refused(&answer, 0), refused(&answer, 1)), (vec![], vec!["command"]));
    for (field, value, check) in [
        ("argList", json!(["/bin/evil"]), "command"),
        ("workingDir", json!("/evil"), "working_dir"),
        ("user", json!({"id": "0", "name": "root"}), "user"),
        ("umask", json!("0000"), "umask"),
        ("envList", json!(["PATH=/bin", "EVIL=1"]), "env_rules"),
        ("envList", json!([]), "env_rules"),
        ("noNewPrivileges", json!(false), "no_new_privileges"),
        ("privileged", json!(true), "allow_elevated"),
        ("seccompProfileSHA256", json!("evil"), "seccomp_profile_sha256"),
        (
            "mounts",
            json!([{"type": "bind", "source": "/evil", "destination": "/e", "options": []}]),
            "mounts",
        ),
    ] {
        let mut request = honest.clone();
        request[field] = value.clone();
        let answer = explained(&policy, "create_container", &request);
        assert!(!answer.allowed && !answer.reasons.is_empty(), "{field}: {answer}");
        assert_eq!(answer.candidates[0].entry, "containers[0] \"serve\"");
        assert_eq!(refused(&answer, 0), [check], "{answer}");
        let failure = &answer.candidates[0].failed[0];
        assert!(!failure.allowed.is_null(), "{answer}");
        if check == "env_rules" {
            let told = failure.asked.to_string();
            assert!(told.contains("EVIL=1") != told.contains("PATH=/bin"), "{told}");
        }
    }
    let mut request = honest;
    request["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
    let answer = explained(&policy, "create_container", &request);
    assert_eq!(refused(&answer, 0), ["capabilities"], "{answer}");
    assert_eq!(answer.candidates[0].failed[0].allowed, container()["capabilities"]);
}

#[test]
fn explain_knows_processes_signals_and_layers() {
    let policy = inputs(&[container()], &json!({}));
    let id = id('1');
    let mut exec = exec_in_container(&id);
    let answer = explained(&policy, "exec_in_container", &exec);
    assert!(answer.allowed, "{answer}");
    exec["argList"] = json!(["/bin/sh"]);
    let answer = explained(&policy, "exec_in_container", &exec);
    assert_eq!(refused(&answer, 0), ["command"], "{answer}");
    assert_eq!(answer.candidates[0].failed[0].allowed, json!([["/bin/check"]]));
    let answer = explained(&policy, "signal_container_process", &signal(&id, 1));
    assert_eq!(refused(&answer, 0), ["signals"], "{answer}");
    let answer = explained(&policy, "mount_device", &mount_device(0, &hash(9)));
    assert_eq!(answer.reasons, ["invalid device hash"]);
    assert!(answer.notes.iter().any(|note| note.contains(&hash(1))), "{answer}");
}

#[test]
fn explain_names_the_field_and_what_would_be_allowed_at_every_point() {
    let changes = json!({
        "max_scratch_size": 4096,
        "external_processes": [{"command": ["/bin/top"], "working_dir": "/", "allow_stdio_access": false,
            "env_rules": [{"pattern": "A=1", "strategy": "string", "required": true}]}],
        "fragments": [{"issuer": "did:x509:x", "feed": "f", "minimum_svn": "3", "includes": ["containers"]}],
    });
    let mut entry = container();
    entry["after"] = json!(["first"]);
    entry["max_instances"] = json!(1);
    let policy = inputs(&[entry], &changes);
    let id = id('1');
    let top = json!({"argList": ["/bin/top"], "envList": ["A=1"], "workingDir": "/"});
    let load = json!({"issuer": "did:x509:x", "feed": "f", "namespace": "x", "fragment_loaded": false,
        "has_header_svn": true, "header_svn": 3, "receipts": []});
    let disk = json!({"target": format!("/run/gcs/c/{id}"), "encrypted": true, "ensureFilesystem": true,
        "filesystem": "ext4", "mountPathRegex": "/run/gcs/c/[0-9a-fA-F]{64}", "rollbackProtection": true, "size": 4096});
    let scratch = json!({"target": "/s", "encrypted": true, "memory": false});
    let changed = |request: &Value, field: &str, value: Value| {
        let mut request = request.clone();
        request[field] = value;
        request
    };
    for (point, request, field, allowed) in [
        ("mount_device", mount_device(0, &hash(9)), "deviceHash", json!([hash(1), hash(2)])),
        (
            "mount_device",
            changed(&mount_device(0, &hash(1)), "target", json!("/etc")),
            "target",
            json!("/run/mounts/scsi/m[0-9]+"),
        ),
        ("unmount_device", json!({"unmountTarget": "/x"}), "unmountTarget", json!([])),
        ("rw_unmount_device", json!({"unmountTarget": "/x"}), "unmountTarget", json!([])),
        ("scratch_unmount", json!({"unmountTarget": "/x"}), "unmountTarget", json!([])),
        ("unmount_overlay", json!({"unmountTarget": "/x"}), "unmountTarget", json!([])),
        ("plan9_unmount", json!({"unmountTarget": "/x"}), "unmountTarget", json!([])),
        (
            "rw_mount_device",
            changed(&disk, "target", json!("/x")),
            "target",
            json!("/run/gcs/c/[0-9a-fA-F]{64}"),
        ),
        (
            "rw_mount_device",
            changed(&disk, "filesystem", json!("vfat")),
            "filesystem",
            json!(["ext4", "xfs"]),
        ),
        (
            "rw_mount_device",
            changed(&disk, "ensureFilesystem", json!(false)),
            "ensureFilesystem",
            json!(true),
        ),
        ("rw_mount_device", changed(&disk, "size", json!(4097)), "size", json!(4096)),
        (
            "rw_mount_device",
            changed(&disk, "rollbackProtection", json!(false)),
            "rollbackProtection",
            json!(true),
        ),
        ("rw_mount_device", changed(&disk, "encrypted", json!(false)), "encrypted", json!(true)),
        (
            "rw_mount_device",
            changed(&changed(&disk, "volume", json!("x")), "target", json!("/run/mounts/volumes/x")),
            "volume",
            json!([]),
        ),
        ("scratch_mount", changed(&scratch, "encrypted", json!(false)), "encrypted", json!(true)),
        ("scratch_mount", changed(&scratch, "memory", json!(true)), "memory", json!(false)),
        (
            "plan9_mount",
            json!({"target": "/x", "rootPrefix": "/run/gcs/c", "mountPathPrefix": "/mounts/m[0-9]+"}),
            "target",
            json!("/mounts/m[0-9]+"),
        ),
        ("create_container", changed(&create_container(&id), "devices", json!([1])), "devices", json!([])),
        ("get_properties", json!({}), "allow_properties_access", json!(false)),
        ("dump_stacks", json!({}), "allow_dump_stacks", json!(false)),
        ("runtime_logging", json!({}), "allow_runtime_logging", json!(false)),
        ("host_network", json!({}), "allow_host_network", json!(false)),
    ] {
        let answer = explained(&policy, point, &request);
        assert!(!answer.allowed, "{answer}");
        let failure = answer.refused.iter().find(|failure| failure.field == field);
        let failure = failure.unwrap_or_else(|| panic!("{point} {field}: {answer}"));
        assert_eq!(failure.allowed, allowed, "{answer}");
        let asked = request.get(field).cloned().unwrap_or(json!(true));
        assert_eq!(failure.asked, asked, "{answer}");
        assert!(answer.to_string().contains(field), "{answer}");
    }
    for (point, request) in [
        ("rw_mount_device", &disk),
        ("scratch_mount", &scratch),
        ("exec_external", &top),
        ("load_fragment", &load),
    ] {
        let answer = explained(&policy, point, request);
        assert!(answer.allowed && answer.refused.is_empty(), "{answer}");
    }
    // Of what has entries, each entry by itself.
    for (point, request, field, asked) in [
        ("exec_external", changed(&top, "argList", json!(["/bin/sh"])), "command", json!(["/bin/sh"])),
        ("exec_external", changed(&top, "workingDir", json!("/tmp")), "working_dir", json!("/tmp")),
        (
            "exec_external",
            changed(&top, "envList", json!(["B=1"])),
            "env_rules",
            json!({"not allowed": ["B=1"], "required and not given": [changes["external_processes"][0]["env_rules"][0]]}),
        ),
        ("load_fragment", changed(&load, "issuer", json!("did:x509:y")), "issuer", json!("did:x509:y")),
        ("load_fragment", changed(&load, "feed", json!("g")), "feed", json!("g")),
        ("load_fragment", changed(&load, "header_svn", json!(2)), "minimum_svn", json!(2)),
        (
            "mount_overlay",
            common::requests::mount_overlay(&id, &[1, 0]),
            "layers",
            json!(["(nothing is mounted there)", "(nothing is mounted there)"]),
        ),
        ("create_container", create_container(&id), "after", json!({"running": []})),
    ] {
        let answer = explained(&policy, point, &request);
        assert!(!answer.allowed, "{answer}");
        assert_eq!(refused(&answer, 0), [field], "{answer}");
        assert_eq!(answer.candidates[0].failed[0].asked, asked, "{answer}");
    }
    // What the guest remembers is what decides about instances.
    let metadata = json!({
        "matches": {id.clone(): [policy_entry(&policy)], "a": [], "b": []},
        "started": {"a": {"privileged": false}, "b": {"privileged": false}},
        "instances": {"a": "first", "b": "serve"},
    });
    let request = json!({"point": "create_container", "input": create_container(&id), "metadata": metadata});
    let answer = explain(&policy, &request.to_string()).unwrap();
    assert_eq!(refused(&answer, 0), ["max_instances"], "{answer}");
    assert_eq!(answer.candidates[0].failed[0].asked, json!({"created before": 1}), "{answer}");
}

/// The only container of a policy.
fn policy_entry(inputs: &Inputs) -> Value {
    let inputs = Inputs { entries: vec!["data.policy.containers".into()], ..inputs.clone() };
    let image = parma_policy::compile(&inputs).unwrap().image;
    match parma_policy::Session::new(&image).unwrap().evaluate("data.policy.containers", None) {
        parma_policy::Evaluation::Value(containers) => containers[0].clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn explain_judges_by_the_metadata_that_is_given() {
    let policy = inputs(&[container()], &json!({}));
    let request =
        json!({"rule": "data.policy.create_container", "input": create_container(&id('1')), "metadata": {}});
    let answer = explain(&policy, &request.to_string()).unwrap();
    assert!(!answer.allowed && answer.candidates.is_empty(), "{answer}");
    assert!(answer.reasons.contains(&"container has no overlay".to_string()), "{answer}");
}

#[test]
fn explain_refuses_what_is_no_request_and_names_what_is_missing() {
    let policy = inputs(&[container()], &json!({}));
    for (request, said) in [
        (json!({"input": {}}), "either"),
        (json!({"point": "nonsense", "input": {}}), "nonsense"),
        (json!({"point": "mount_device", "input": []}), "object"),
        (json!({"point": "mount_device", "input": {}, "more": 1}), "a request is"),
    ] {
        let error = explain(&policy, &request.to_string()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    let answer = explained(&policy, "create_container", &json!({"containerID": id('1')}));
    assert!(!answer.allowed && answer.notes.iter().any(|note| note.contains("no argList")), "{answer}");
    // What is missing does not make it a request of another kind.
    assert_eq!(answer.candidates[0].failed[0].allowed, container()["command"], "{answer}");
}
