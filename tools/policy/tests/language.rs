//! The language: OPA's recorded answers, agreement with regorus, and what is refused.

use parma_policy::{Evaluation, Inputs, Session, compile};
use serde_json::{Value, json};

/// Compiles modules alone, without the framework, with these entries.
fn inputs(text: &str, entries: &[&str]) -> Inputs {
    Inputs {
        modules: vec![("t.rego".into(), text.into())],
        data: None,
        entries: entries.iter().map(|entry| entry.to_string()).collect(),
        framework: false,
    }
}

/// What `data.t.<rule>` evaluates to.
fn evaluate(text: &str, rule: &str, input: Option<Value>) -> Evaluation {
    let entry = format!("data.t.{rule}");
    let compiled = compile(&inputs(text, &[&entry])).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let mut session = Session::new(&compiled.image).unwrap();
    session.evaluate(&entry, input.as_ref())
}

/// Each probe of the recorded vectors, asked of a module of its own (a refused one must not hide the rest).
#[test]
fn every_probe_gives_opas_answer_or_is_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors/rego");
    let (Ok(probes), Ok(answers)) = (
        std::fs::read_to_string(format!("{folder}/probes.rego")),
        std::fs::read_to_string(format!("{folder}/opa-answers.json")),
    ) else {
        println!("skipped: {folder} is absent");
        return;
    };
    let answers: serde_json::Map<String, Value> = serde_json::from_str(&answers).unwrap();
    // The answers to stmt_zero, bool_str and complete_conflict are those for this input.
    let input = json!({"f": false, "z": 0});
    let mut wrong = Vec::new();
    let mut refused = Vec::new();
    for (name, answer) in &answers {
        let answer = answer.as_str().unwrap();
        let entry = format!("data.t.{name}");
        // OPA refuses the whole module for this one.
        let module: Vec<&str> =
            probes.lines().filter(|line| *name == "str_order" || !line.starts_with("str_order")).collect();
        let module = module.join("\n");
        let compiled = match compile(&inputs(&module, &[&entry])) {
            Ok(compiled) => compiled,
            Err(error) => {
                refused.push(format!("{name}: {error}"));
                continue;
            }
        };
        let mut session = Session::new(&compiled.image).unwrap();
        let ours = session.evaluate(&entry, Some(&input));
        let right = match &ours {
            Evaluation::Undefined => answer == "UNDEFINED",
            // A fault denies, as OPA's errors do; it is no value.
            Evaluation::Fault(_) => true,
            Evaluation::Value(value) => {
                serde_json::from_str::<Value>(answer).is_ok_and(|theirs| *value == theirs)
            }
        };
        // What OPA refuses to compile has no answer to differ from.
        if !right && !answer.starts_with("compile:") {
            wrong.push(format!("{name}: OPA says {answer}, we say {ours:?}"));
        }
    }
    println!("refused:\n{}", refused.join("\n"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
