//! The framework against decisions recorded from the reference implementation (`../shared/vectors/policy`): the same
//! decisions, results and memory, except where [`difference`] knows the purpose.
//!
//! Where the recordings are absent, the tests say so and pass.

mod common;

use std::collections::BTreeMap;
use std::io::Cursor;

use common::sessions::{Numbers, session};
use common::{Decision, Engine, Guest, Machine, Oracle, Plain, recorded, unordered};
use parma_policy::{Inputs, compile, replay};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// SHA-256 of a value as JSON with sorted keys and without spaces.
fn digest(value: &Value) -> String {
    Sha256::digest(value.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which difference on purpose (docs/policy-framework.md) explains that the recorded decision is not ours.
fn difference(recorded: &Recorded, decision: &Decision) -> Option<&'static str> {
    match decision {
        // An old policy that does not mention a point: the reference allows, or asks its framework.
        Decision::Denied(_) if recorded.allowed && recorded.result.is_none() => Some("D1"),
        // Variables were dropped: the reference sorts what is left, ours are in the request's order.
        Decision::Allowed(result) if recorded.allowed => {
            let sorted = |result: &Value| {
                let mut result = result.clone();
                if let Some(environment) = result["env_list"].as_array_mut() {
                    environment.sort_by_key(Value::to_string);
                }
                result
            };
            (sorted(result) == sorted(recorded.result.as_ref()?)).then_some("D7")
        }
        _ => None,
    }
}

/// What a recording says of one decision.
struct Recorded {
    /// Whether it was allowed in the end.
    allowed: bool,
    /// What the policy's own rule gave.
    result: Option<Value>,
    /// SHA-256 of the guest's memory after it, if that changed.
    memory: Option<String>,
}

/// Follows every recorded session; returns how often each difference explained another decision.
fn follow<E: Engine + 'static>(engine: impl Fn(&str) -> E) -> BTreeMap<&'static str, u32> {
    let mut explained = BTreeMap::new();
    let (Some(policies), Some(sessions)) = (recorded("policies.jsonl.xz"), recorded("sessions.jsonl.xz"))
    else {
        return explained;
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let policies: BTreeMap<String, String> =
        policies.iter().map(|policy| (text(&policy["sha256"]), text(&policy["code"]))).collect();
    let mut unexplained = Vec::new();
    let mut compared = 0;
    for session in &sessions {
        let name = text(&session["session"]);
        if session["os"] != "linux" {
            println!("skipped: {name}, whose guest is not Linux");
            continue;
        }
        let policy = &policies[session["policy"].as_str().unwrap()];
        let mut guest = Guest::new(engine(policy));
        guest.metadata = json!({"operatingsystem": {"ostype": session["os"]}});
        let mut saved = guest.metadata.clone();
        let mut request = Value::Null;
        let mut recorded = Recorded { allowed: false, result: None, memory: None };
        for (number, step) in session["steps"].as_array().unwrap().iter().enumerate() {
            match step["t"].as_str().unwrap() {
                "enforce_begin" => {
                    request = step["input"].clone();
                    recorded = Recorded { allowed: false, result: None, memory: None };
                }
                // What a fragment defines: here it is a part of the request.
                "objects" if step["namespace"] == request["namespace"] => {
                    request["fragment"] = step["objects"].clone();
                }
                "query" => {
                    let rule = step["rule"].as_str().unwrap();
                    if rule.starts_with("data.policy.") && rule != "data.policy.reason" {
                        recorded.result = step.get("result").cloned();
                    }
                    recorded.memory = step["metadata_sha256"].as_str().map(str::to_owned).or(recorded.memory);
                }
                "enforce" => {
                    recorded.allowed = step["allowed"].as_bool().unwrap();
                    let decision = guest.ask(step["point"].as_str().unwrap(), &request);
                    compared += 1;
                    let same = match &decision {
                        Decision::Denied(_) => !recorded.allowed,
                        Decision::Allowed(result) => {
                            let memory = digest(&guest.metadata);
                            recorded.allowed
                                && Some(result) == recorded.result.as_ref()
                                && recorded.memory.as_ref().is_none_or(|recorded| *recorded == memory)
                        }
                    };
                    if !same {
                        match difference(&recorded, &decision) {
                            Some(difference) => *explained.entry(difference).or_insert(0) += 1,
                            None => unexplained.push(format!(
                                "{name} step {number}, {}: {decision:.2000?}\n    recorded {} {:.2000?}\n    {request:.500}",
                                step["point"], recorded.allowed, recorded.result,
                            )),
                        }
                    }
                }
                "save_metadata" => saved = guest.metadata.clone(),
                "restore_metadata" => guest.metadata = saved.clone(),
                _ => {}
            }
        }
    }
    assert!(unexplained.is_empty(), "{} of {compared}:\n{}", unexplained.len(), unexplained.join("\n"));
    println!("{compared} decisions compared; differences on purpose: {explained:?}");
    explained
}

#[test]
fn recorded_sessions_are_decided_as_recorded() {
    follow(Oracle::new);
}

#[test]
fn recorded_sessions_are_decided_as_recorded_by_the_machine() {
    follow(Machine::new);
}

#[test]
fn recorded_sessions_are_decided_as_recorded_by_the_reference_evaluator() {
    follow(Plain::new);
}

/// Recordings that nobody made beforehand: lives of guests as an engine of full Rego decides them, written down as traces,
/// and replayed as `parma policy replay` does it.
#[test]
fn sessions_recorded_from_another_engine_are_replayed_to_the_same_answers() {
    let (mut allowed, mut denied) = (0, 0);
    for seed in 101..105 {
        let (policy, requests) = session(&mut Numbers(seed), 40);
        let mut guest = Guest::new(Oracle::new(&policy));
        guest.metadata = json!({"operatingsystem": {"ostype": "linux"}});
        let (mut trace, mut expected) = (String::new(), Vec::new());
        for (point, request) in requests {
            trace += &format!("{}\n", json!({"rule": format!("data.policy.{point}"), "input": request}));
            let decision = guest.ask(point, &request);
            expected.push((decision, guest.metadata.clone()));
        }
        let image = compile(&Inputs::policy("policy.rego", &policy)).unwrap().image;
        let mut answers = Vec::new();
        replay(&image, Cursor::new(&trace), &mut answers).unwrap();
        let answers = String::from_utf8(answers).unwrap();
        assert_eq!(answers.lines().count(), expected.len());
        for ((answer, asked), (decision, metadata)) in answers.lines().zip(trace.lines()).zip(expected) {
            let answer: Value = serde_json::from_str(answer).unwrap();
            match &decision {
                Decision::Allowed(result) => {
                    assert_eq!(unordered(&answer["result"]), unordered(result), "{asked}");
                    allowed += 1;
                }
                Decision::Denied(_) => {
                    assert_ne!(answer["result"]["allowed"], true, "{asked}");
                    denied += 1;
                }
            }
            assert_eq!(unordered(&answer["metadata"]), unordered(&metadata), "after {asked}");
        }
    }
    assert!(allowed > 30 && denied > 30, "{allowed} allowed, {denied} denied");
}
