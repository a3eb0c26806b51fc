//! Other projects' Rego, unchanged: the reference implementation's own modules replay its recorded sessions whole, and
//! answer as regorus does what was not recorded.
//!
//! The modules are not ours to copy. Where they are is said by PARMA_REFERENCE_MODULES, a folder with `framework.rego` and
//! `api.rego` (their version placeholders filled in); without it, or without the recordings, the tests say so and pass.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::recorded;
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
