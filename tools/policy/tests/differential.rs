//! The machine and the reference evaluator answer alike, request by request, and remember alike.

mod common;

use common::both;
use common::requests::*;
use common::sessions::{Numbers, session};
use parma_policy::reference::Reference;
use parma_policy::{Evaluation, Inputs, Session, compile};
use serde_json::{Value, json};

#[test]
fn made_up_sessions_are_decided_alike() {
    let mut numbers = Numbers(11);
    let (mut allowed, mut denied) = (0, 0);
    for _ in 0..6 {
        let (policy, requests) = session(&mut numbers, 60);
        let compiled = compile(&Inputs::policy("policy.rego", &policy)).unwrap();
        let mut machine = Session::new(&compiled.image).unwrap();
        let mut reference = Reference::new(&compiled.image).unwrap();
        for (point, request) in requests {
            let rule = format!("data.policy.{point}");
            match both(&mut machine, &mut reference, &rule, &request) {
                Evaluation::Value(value) if value["allowed"] == true => allowed += 1,
                _ => {
                    denied += 1;
                    let mut asked = request.clone();
                    asked["rule"] = point.into();
                    both(&mut machine, &mut reference, "data.policy.reason", &asked);
                }
            }
        }
    }
    println!("{allowed} allowed, {denied} denied");
    assert!(allowed > 60 && denied > 60, "{allowed} allowed, {denied} denied");
}

#[test]
fn memory_changes_alike() {
    let policy = "package policy\nmount_device := {\"allowed\": true, \"metadata\": input.operations}\n";
    let compiled = compile(&Inputs { framework: false, ..Inputs::policy("policy.rego", policy) }).unwrap();
    let mut machine = Session::new(&compiled.image).unwrap();
    let mut reference = Reference::new(&compiled.image).unwrap();
    let mut numbers = Numbers(5);
    let mut changed = 0;
    for _ in 0..400 {
        let operations: Vec<Value> = (0..1 + numbers.below(3))
            .map(|_| {
                let mut operation = json!({
                    "name": numbers.pick(&["a", "b", "s"]),
                    "action": numbers.pick(&["add", "add", "update", "remove", "nothing"]),
                });
                if numbers.below(4) > 0 {
                    operation["key"] = numbers.pick(&["k", "l", "m", "n"]).into();
                }
                if numbers.below(8) > 0 {
                    operation["value"] =
                        numbers.pick(&[json!(1), json!("v"), json!([1, {"x": null}]), json!(true)]);
                }
                if numbers.below(8) == 0 {
                    operation["type"] = numbers.pick(&["map", "set"]).into();
                }
                if numbers.below(20) == 0 {
                    operation["other"] = json!(1);
                }
                operation
            })
            .collect();
        let before = machine.metadata();
        both(&mut machine, &mut reference, "data.policy.mount_device", &json!({"operations": operations}));
        changed += usize::from(before != machine.metadata());
    }
    assert!(changed > 30, "{changed} changes");
}

#[test]
fn every_point_of_the_framework_is_asked() {
    let (_, requests) = session(&mut Numbers(11), 600);
    let missing: Vec<_> =
        POINTS.iter().filter(|point| !requests.iter().any(|(asked, _)| asked == *point)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
