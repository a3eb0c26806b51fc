//! What makes a policy weak although it compiles: each finding names the container, the field and the remedy.
//!
//! What an environment rule lets through is not guessed from its text: the framework's own rule is compiled for
//! the policy's rules and asked about telling variables, such as `LD_PRELOAD=` and `LD_PRELOAD=/tmp/x`.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::{Evaluation, Inputs, Session, compile};

/// Variables that decide what code a process loads or runs.
const TELLING: [&str; 20] = [
    "BASH_ENV",
    "CLASSPATH",
    "ENV",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PATH",
    "PERL5LIB",
    "PERL5OPT",
    "PYTHONHOME",
    "PYTHONPATH",
    "RUBYLIB",
    "RUBYOPT",
];

/// Values that nobody means to allow: a rule that lets one through lets any through.
const FOREIGN: [&str; 4] = [
    "/tmp/parma-lint/foreign.so",
    "-rparma_lint_foreign",
    "parmalintforeign",
    "/tmp/parma-lint-a:/tmp/parma-lint-b:/tmp/parma-lint-c:/tmp/parma-lint-d:/tmp/parma-lint-e:/tmp/parma-lint-f",
];

/// Programs that run what they are told to.
const SHELLS: [&str; 10] = ["ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "sh", "tcsh", "zsh"];

/// What two containers may differ in and still be the same program.
const SAME_PROGRAM: [&str; 2] = ["layers", "command"];

/// Flags of a policy that weaken it, and what they give away.
const FLAGS: [(&str, &str); 5] = [
    ("allow_dump_stacks", "the host may read the stacks of the guest"),
    (
        "allow_environment_variable_dropping",
        "the host may offer any environment; what no rule allows is left out silently",
    ),
    ("allow_host_network", "containers share the network of the guest"),
    ("allow_scratch_rollback", "the host may put back what containers wrote earlier"),
    ("allow_unencrypted_scratch", "what containers write may reach the host's disk in the clear"),
];

/// The policy's data, as far as it is looked at.
const DATA_MODULE: &str = r#"package parma_lint
import rego.v1

default containers := []
containers := data.policy.containers

default external_processes := []
external_processes := data.policy.external_processes

flags contains "allow_dump_stacks" if data.policy.allow_dump_stacks == true
flags contains "allow_environment_variable_dropping" if data.policy.allow_environment_variable_dropping == true
flags contains "allow_host_network" if data.policy.allow_host_network == true
flags contains "allow_scratch_rollback" if data.policy.allow_scratch_rollback == true
flags contains "allow_unencrypted_scratch" if data.policy.allow_unencrypted_scratch == true

policy := {"containers": containers, "external_processes": external_processes, "flags": flags}
"#;

/// The environment rules that let one variable through.
const PROBE_MODULE: &str = r#"package parma_probe
import rego.v1

matching := [numbers |
	some entry in data.parma_entries
	numbers := [number |
		some number, rule in entry.env_rules
		data.framework.variable_matches(rule, input.variable)
	]
]
"#;

/// Something that makes a policy weak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check found it, a word such as `stdio` that stays the same.
    pub check: &'static str,
    /// The entry: `containers[0] "web"`; empty where it is about the policy as a whole.
    pub entry: String,
    /// The field, with its place in a list: `env_rules[2]`.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.entry.is_empty() {
            write!(f, "{}: ", self.entry)?;
        }
        write!(f, "{}: {} [{}]\n    remedy: {}", self.field, self.message, self.check, self.remedy)
    }
}

/// Looks for what makes a policy weak. The same policy gives the same findings, in the order of its entries.
///
/// # Errors
/// If the policy does not compile, or its containers are no list of objects.
pub fn lint(inputs: &Inputs) -> Result<Vec<Finding>> {
    let policy = data(inputs)?;
    let mut findings = Vec::new();
    for (flag, meaning) in FLAGS {
        if items(&policy["flags"]).iter().any(|set| set == flag) {
            let remedy = "set it to false unless the workload needs it";
            findings.push(finding("flag", "", flag, meaning, remedy));
        }
    }
    let mut entries = Vec::new();
    for list in ["containers", "external_processes"] {
        let Json::Array(members) = &policy[list] else { bail!("data.policy.{list} is not an array") };
        for (number, member) in members.iter().enumerate() {
            if !member.is_object() {
                bail!("data.policy.{list}[{number}] is not an object");
            }
            entries.push((entry_name(list, number, member), member));
        }
    }
    let probed = probe(&entries.iter().map(|(_, entry)| *entry).collect::<Vec<_>>())?;
    for ((name, entry), risks) in entries.iter().zip(&probed) {
        environment(name, entry, risks, &mut findings);
        patterns(name, entry, &mut findings);
        privileges(name, entry, &mut findings);
        processes(name, entry, &mut findings);
    }
    same_program(&policy["containers"], &mut findings);
    obligations(&policy["containers"], &mut findings);
    Ok(findings)
}

/// How messages call an entry of a list of the policy.
pub(crate) fn entry_name(list: &str, number: usize, entry: &Json) -> String {
    let name = ["name", "id"].into_iter().find_map(|field| entry[field].as_str());
    name.map_or_else(|| format!("{list}[{number}]"), |name| format!("{list}[{number}] {name:?}"))
}

fn finding(
    check: &'static str,
    entry: &str,
    field: impl Into<String>,
    message: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding {
        check,
        entry: entry.into(),
        field: field.into(),
        message: message.into(),
        remedy: remedy.into(),
    }
}

fn items(list: &Json) -> &[Json] {
    list.as_array().map_or(&[], Vec::as_slice)
}

/// The policy's lists and flags, as it works them out.
fn data(inputs: &Inputs) -> Result<Json> {
    // The policy is compiled as it is first, so that its errors are its own.
    compile(inputs)?;
    let mut inputs = inputs.clone();
    inputs.modules.push(("lint.rego".into(), DATA_MODULE.into()));
    inputs.entries = vec!["data.parma_lint.policy".into()];
    evaluate(&inputs, "data.parma_lint.policy", &json!({}))
}

fn evaluate(inputs: &Inputs, rule: &str, input: &Json) -> Result<Json> {
    let compiled = compile(inputs)?;
    match Session::new(&compiled.image)?.evaluate(rule, Some(input)) {
        Evaluation::Value(value) => Ok(value),
        other => bail!("the policy's data cannot be evaluated: {other:?}"),
    }
}

/// A variable that a rule of an entry gives to the host.
struct Risk {
    rule: usize,
    variable: &'static str,
    /// Any value; else the empty one.
    any: bool,
}

/// What each entry's environment rules let through of [`TELLING`].
fn probe(entries: &[&Json]) -> Result<Vec<Vec<Risk>>> {
    let rule = "data.parma_probe.matching".to_string();
    let inputs = Inputs {
        modules: vec![("probe.rego".into(), PROBE_MODULE.into())],
        data: Some(json!({"parma_entries": entries})),
        entries: vec![rule.clone()],
        framework: true,
        optimise: false,
        known_inputs: Default::default(),
    };
    let compiled = compile(&inputs).context("the environment rules")?;
    let mut session = Session::new(&compiled.image)?;
    let mut found: Vec<Vec<Risk>> = entries.iter().map(|_| Vec::new()).collect();
    for variable in TELLING {
        // Foreign values first: a rule that allows any value is not also reported for the empty one.
        for (any, value) in FOREIGN.iter().map(|&value| (true, value)).chain([(false, "")]) {
            let input = json!({"variable": format!("{variable}={value}")});
            let matching = match session.evaluate(&rule, Some(&input)) {
                Evaluation::Value(matching) => matching,
                other => bail!("the environment rules cannot be evaluated: {other:?}"),
            };
            for (risks, numbers) in found.iter_mut().zip(items(&matching)) {
                for number in items(numbers).iter().filter_map(Json::as_u64) {
                    let rule = usize::try_from(number)?;
                    if !risks.iter().any(|risk| risk.rule == rule && risk.variable == variable) {
                        risks.push(Risk { rule, variable, any });
                    }
                }
            }
        }
    }
    Ok(found)
}

fn environment(name: &str, entry: &Json, risks: &[Risk], findings: &mut Vec<Finding>) {
    let rules = items(&entry["env_rules"]);
    for (number, rule) in rules.iter().enumerate() {
        let field = format!("env_rules[{number}]");
        let of = |any: bool| -> Vec<&str> {
            let risks = risks.iter().filter(|risk| risk.rule == number && risk.any == any);
            risks.map(|risk| risk.variable).collect()
        };
        let shown = rule_text(rule);
        // A rule that spells out an empty value says what it means.
        let spelled_out = rule["strategy"] == "string";
        for (any, what) in [(true, "any value"), (false, "an empty value")] {
            let variables = of(any);
            if variables.is_empty() || spelled_out && !any {
                continue;
            }
            let message = format!("{shown} lets the host give {what} to {}", variables.join(", "));
            let remedy = "spell the value out with strategy \"string\", or bound what the pattern takes";
            findings.push(finding("variable", name, field.clone(), message, remedy));
        }
        if rule.get("required").is_none() {
            let message =
                format!("{shown} does not say whether the variable is required: the host may leave it out");
            findings.push(finding(
                "required",
                name,
                field,
                message,
                "add \"required\": true, or false on purpose",
            ));
        }
    }
    let said = rules.iter().filter(|rule| rule.get("required").is_some());
    let exact: Vec<&Json> = said.filter(|rule| rule["strategy"] == "string").collect();
    if !exact.is_empty() && rules.iter().all(|rule| rule["required"] != true) {
        let message = "no variable is required: the host may leave out every one";
        let remedy = "set \"required\": true for the variables that the program's safety rests on";
        findings.push(finding("required", name, "env_rules", message, remedy));
    }
}

/// A rule as messages show it.
pub(crate) fn rule_text(rule: &Json) -> String {
    match (rule["pattern"].as_str(), rule["name"].as_str(), rule["value"].as_str()) {
        (Some(pattern), ..) => format!("{pattern:?}"),
        (None, Some(name), Some(value)) => format!("{:?}", format!("{name}={value}")),
        _ => rule.to_string(),
    }
}

/// Every pattern of an entry, with its field.
fn patterns(name: &str, entry: &Json, findings: &mut Vec<Finding>) {
    let mut all: Vec<(String, &Json)> = Vec::new();
    for (number, rule) in items(&entry["env_rules"]).iter().enumerate() {
        for (field, strategy) in
            [("pattern", "strategy"), ("name", "name_strategy"), ("value", "value_strategy")]
        {
            if rule[strategy] == "re2" {
                all.push((format!("env_rules[{number}].{field}"), &rule[field]));
            }
        }
    }
    for (number, mount) in items(&entry["mounts"]).iter().enumerate() {
        let source = mount["source"].as_str().unwrap_or_default();
        if source.starts_with("sandbox://") || source.starts_with("hugepages://") {
            all.push((format!("mounts[{number}].source"), &mount["source"]));
        }
    }
    let user = &entry["user"];
    let groups = items(&user["group_idnames"]).iter().enumerate();
    let groups = groups.map(|(number, group)| (format!("user.group_idnames[{number}].pattern"), group));
    for (field, idname) in groups.chain([("user.user_idname.pattern".to_string(), &user["user_idname"])]) {
        if idname["strategy"] == "re2" {
            all.push((field, &idname["pattern"]));
        }
    }
    for (field, pattern) in all {
        if let Some(pattern) = pattern.as_str().filter(|pattern| has_bare_alternation(pattern)) {
            let message = format!(
                "{pattern:?} has an alternation at its top level; other implementations anchor only its outer ends, and then each half matches more"
            );
            let remedy = format!("write ({pattern}), or one rule for each alternative");
            findings.push(finding("alternation", name, field, message, remedy));
        }
    }
}

/// Whether a `|` stands outside of every group and class of an RE2 pattern.
fn has_bare_alternation(pattern: &str) -> bool {
    let mut rest = pattern;
    let (mut depth, mut class) = (0_usize, false);
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = after;
        match (c, class) {
            ('\\', _) if after.starts_with('Q') && !class => {
                rest = after.find("\\E").map_or("", |end| &after[end + 2..]);
            }
            ('\\', _) => rest = after.get(after.chars().next().map_or(0, char::len_utf8)..).unwrap_or(""),
            ('[', true) if after.starts_with(':') && after.contains(":]") => {
                rest = after.find(":]").map_or("", |end| &after[end + 2..]);
            }
            ('[', false) => {
                class = true;
                // A bracket that comes first belongs to the class.
                rest = after.strip_prefix('^').unwrap_or(after);
                rest = rest.strip_prefix(']').unwrap_or(rest);
            }
            (']', true) => class = false,
            ('(', false) => depth += 1,
            (')', false) => depth = depth.saturating_sub(1),
            ('|', false) if depth == 0 => return true,
            _ => {}
        }
    }
    false
}

fn privileges(name: &str, entry: &Json, findings: &mut Vec<Finding>) {
    if entry["allow_elevated"] == true {
        let message = "the host may start it privileged, with all capabilities and a writable /sys";
        let remedy = "set it to false and list the capabilities that the program needs";
        findings.push(finding("elevated", name, "allow_elevated", message, remedy));
    }
    if entry["allow_stdio_access"] == true {
        let message = "the host reads its output and writes its input";
        let remedy = "set it to false (`parma policy generate --no-stdio`) unless the program is meant to talk to the host";
        findings.push(finding("stdio", name, "allow_stdio_access", message, remedy));
    }
}

fn processes(name: &str, entry: &Json, findings: &mut Vec<Finding>) {
    let listed = items(&entry["exec_processes"]).iter().enumerate();
    let mut commands: Vec<(String, &Json)> = listed
        .map(|(number, process)| (format!("exec_processes[{number}].command"), &process["command"]))
        .collect();
    if name.starts_with("external_processes") {
        commands.push(("command".into(), &entry["command"]));
    }
    for (field, command) in commands {
        let words: Vec<&str> = items(command).iter().filter_map(Json::as_str).collect();
        let base = |word: &str| word.rsplit('/').next().unwrap_or_default().to_string();
        // `env sh` is a shell too.
        let program = words.iter().map(|word| base(word)).find(|word| word != "env").unwrap_or_default();
        if !SHELLS.contains(&program.as_str()) {
            continue;
        }
        let message = match words.iter().any(|word| word.starts_with('-') && word.contains('c')) {
            true => {
                format!("{words:?} is a shell: what its script does depends on its environment and files")
            }
            false => {
                format!("{words:?} is a shell that reads what to do from its input, which the host may write")
            }
        };
        let remedy = "name the program itself, with its arguments";
        findings.push(finding("shell", name, field, message, remedy));
    }
}

/// Containers of the same layers and command: the host chooses whose permissions it gets.
fn same_program(containers: &Json, findings: &mut Vec<Finding>) {
    let containers = items(containers);
    for (number, container) in containers.iter().enumerate() {
        let same = |other: &Json| SAME_PROGRAM.iter().all(|&field| other[field] == container[field]);
        let Some(twin) = containers[..number].iter().position(same) else { continue };
        let fields =
            |entry: &Json| entry.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
        let mut differing: Vec<String> = fields(container).into_iter().flatten().collect();
        differing.extend(fields(&containers[twin]).into_iter().flatten());
        differing.sort();
        differing.dedup();
        differing.retain(|field| {
            container[field] != containers[twin][field] && !["name", "id"].contains(&field.as_str())
        });
        let twin = entry_name("containers", twin, &containers[twin]);
        let name = entry_name("containers", number, container);
        findings.push(match differing.is_empty() {
            true => finding("twin", &name, "layers, command", format!("the same as {twin}"), "remove one"),
            false => {
                let message = format!("the same layers and command as {twin}: the host chooses which of them applies");
                let remedy = "make it one container that allows no more than is needed, or give the two different commands";
                finding("twin", &name, differing.join(", "), message, remedy)
            }
        });
    }
}

/// The fields that name containers which have to be there before.
const WAITS: [&str; 2] = ["after", "after_success"];

/// What entries oblige to and nothing can meet: then a container never starts, or the guest is never ready.
fn obligations(containers: &Json, findings: &mut Vec<Finding>) {
    let containers = items(containers);
    let name = |entry: &Json| entry["name"].as_str().unwrap_or_default().to_string();
    let is_none = |entry: &Json| {
        entry.get("max_instances").is_some_and(|most| most.as_i64().is_none_or(|most| most < 1))
    };
    // Names of containers that can start: those that only wait for others of them, again and again.
    let mut startable: BTreeSet<String> = BTreeSet::new();
    loop {
        let known = startable.len();
        for entry in containers.iter().filter(|entry| !is_none(entry)) {
            let waits = |name: &Json| name.as_str().is_some_and(|name| startable.contains(name));
            let met = |after: &Json| after.is_null() || after.is_array() && items(after).iter().all(waits);
            if !name(entry).is_empty() && WAITS.iter().all(|field| met(&entry[field])) {
                startable.insert(name(entry));
            }
        }
        if startable.len() == known {
            break;
        }
    }
    for (number, entry) in containers.iter().enumerate() {
        let mut found = |field: &str, message: String, remedy: &str| {
            findings.push(finding(
                "obligation",
                &entry_name("containers", number, entry),
                field,
                message,
                remedy,
            ));
        };
        let obliges = ["max_instances", "required"].iter().any(|field| entry.get(*field).is_some());
        if name(entry).is_empty() && obliges {
            let message = "it obliges to something and has no name: it counts as one with all others that have none, and never as running";
            found("name", message.into(), "give it a name of its own");
            continue;
        }
        let mut waits = false;
        for field in WAITS {
            let after = &entry[field];
            let never = |name: &&Json| !name.as_str().is_some_and(|name| startable.contains(name));
            let missing: Vec<String> = items(after).iter().filter(never).map(Json::to_string).collect();
            if !after.is_null() && !after.is_array() {
                let message = format!("{after} is no list of names: the container never starts");
                found(field, message, "write [names]");
                waits = true;
            } else if !missing.is_empty() {
                let message = format!(
                    "it waits for {}, which never starts: no container has the name, or it waits in turn for this one, or may never be created",
                    missing.join(", ")
                );
                found(field, message, "name containers of this policy that can start before it");
                waits = true;
            }
        }
        if is_none(entry) {
            let message = format!("{} allows no container at all", entry["max_instances"]);
            found("max_instances", message, "give a number from 1, or leave it out");
        }
        match entry.get("required") {
            None | Some(Json::Bool(false)) => {}
            Some(Json::Bool(true)) if !waits && !is_none(entry) => {}
            Some(Json::Bool(true)) => {
                let message = "it can never run: the guest is never ready, and no secret is released";
                found("required", message.into(), "mend what keeps it from starting, or do not require it");
            }
            Some(other) => {
                let message = format!("{other} counts as true");
                found("required", message, "write true or false");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alternation_counts_only_outside_of_groups_classes_and_quotes() {
        for pattern in ["a|b", "(a)|b", "[]|]|b", "A=1|B=2", r"\(|b", r"\Qa\E|b", "[^]]|b", "[[:alpha:]]|b"] {
            assert!(has_bare_alternation(pattern), "{pattern}");
        }
        for pattern in [
            "(a|b)",
            "[|]",
            "[]|]",
            "[^]|]",
            r"a\|b",
            r"\Qa|b\E",
            r"\Qa|b",
            "((a)|b)",
            "[[:alpha:]|]",
            "",
            "\\",
        ] {
            assert!(!has_bare_alternation(pattern), "{pattern}");
        }
    }
}
