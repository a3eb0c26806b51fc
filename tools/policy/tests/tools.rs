//! What `check` and `lint` say about policies.

mod common;

use common::requests::{container, policy};
use parma_policy::lint::Finding;
use parma_policy::{Inputs, check, lint};
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
