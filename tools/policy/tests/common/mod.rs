//! What the tests of the framework share: something that answers queries, and a guest that remembers.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod layout;
pub mod requests;
pub mod sessions;

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::process::{Command, Stdio};

use parma_policy::reference::Reference;
use parma_policy::{Evaluation, Session};
use serde_json::{Map, Value, json};

/// The framework, as policies alias it.
pub const FRAMEWORK: &str = include_str!("../../framework/framework.rego");
/// The data that the framework refers to.
pub const DATA: &str = include_str!("../../framework/data.json");

/// The JSON values of an xz-packed file, one a line; `None`, with a note, where there is no such file.
pub fn recorded(name: &str) -> Option<Vec<Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/policy").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    let output = Command::new("xz").arg("-dc").arg(&path).stderr(Stdio::inherit()).output();
    let output = output.expect("xz unpacks the recordings: install xz-utils");
    assert!(output.status.success(), "xz failed on {}", path.display());
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// Answers queries against one policy: the oracle, or the compiler and machine.
pub trait Engine {
    /// The value of `data.<rule>`, `None` where it is undefined or faults. `rule` is `package.name`.
    fn query(&mut self, rule: &str, input: &Value, metadata: &Value) -> Option<Value>;
}

/// What regorus may be given.
pub fn unlimited() -> regorus::PolicyLengthConfig {
    regorus::PolicyLengthConfig {
        max_col: NonZeroU32::MAX,
        max_file_bytes: NonZeroUsize::MAX,
        max_lines: NonZeroUsize::MAX,
    }
}

/// regorus, whose answers serve as the oracle.
pub struct Oracle {
    /// The modules, parsed, with no data yet: every query starts from a copy.
    modules: regorus::Engine,
}

impl Oracle {
    /// Parses the framework and `policy`.
    pub fn new(policy: &str) -> Self {
        let mut modules = regorus::Engine::new();
        modules.set_policy_length_config(unlimited());
        modules.set_strict_builtin_errors(false);
        for (name, text) in [("framework.rego", FRAMEWORK), ("policy.rego", policy)] {
            if let Err(error) = modules.add_policy(name.into(), text.into()) {
                panic!("{name}: {error:#}");
            }
        }
        Self { modules }
    }
}

impl Engine for Oracle {
    fn query(&mut self, rule: &str, input: &Value, metadata: &Value) -> Option<Value> {
        let mut engine = self.modules.clone();
        let mut data: Value = serde_json::from_str(DATA).unwrap();
        data["metadata"] = metadata.clone();
        engine.add_data_json(&data.to_string()).unwrap();
        engine.set_input_json(&input.to_string()).unwrap();
        let value = engine.eval_rule(format!("data.{rule}")).ok()?;
        if value == regorus::Value::Undefined {
            return None;
        }
        Some(serde_json::from_str(&value.to_json_str().unwrap()).unwrap())
    }
}

/// The compiler and the machine.
pub struct Machine {
    session: Session<'static>,
    /// What the session has as metadata.
    metadata: Value,
}

impl Machine {
    /// Compiles `policy` with the framework.
    pub fn new(policy: &str) -> Self {
        let compiled = match parma_policy::compile(&parma_policy::Inputs::policy("policy.rego", policy)) {
            Ok(compiled) => compiled,
            Err(error) => panic!("{error}"),
        };
        // A session borrows its image; a test's images live as long as the test.
        let session = Session::new(compiled.image.leak()).unwrap();
        let metadata = session.metadata();
        Self { session, metadata }
    }
}

impl Engine for Machine {
    fn query(&mut self, rule: &str, input: &Value, metadata: &Value) -> Option<Value> {
        if self.metadata != *metadata {
            self.session.set_metadata(metadata).unwrap();
            self.metadata.clone_from(metadata);
        }
        match self.session.evaluate(&format!("data.{rule}"), Some(input)) {
            Evaluation::Value(value) => Some(value),
            Evaluation::Undefined => None,
            Evaluation::Fault(fault) => panic!("{rule} faults: {fault:?}: {input}"),
        }
    }
}

/// The compiler and the reference evaluator.
pub struct Plain(Reference<'static>);

impl Plain {
    /// Compiles `policy` with the framework.
    pub fn new(policy: &str) -> Self {
        let compiled = parma_policy::compile(&parma_policy::Inputs::policy("policy.rego", policy)).unwrap();
        Self(Reference::new(compiled.image.leak()).unwrap())
    }
}

impl Engine for Plain {
    fn query(&mut self, rule: &str, input: &Value, metadata: &Value) -> Option<Value> {
        self.0.set_metadata(metadata).unwrap();
        match self.0.evaluate(&format!("data.{rule}"), Some(input)) {
            Ok(answer) => answer,
            Err(fault) => panic!("{rule} faults: {fault:?}: {input}"),
        }
    }
}

/// A guest's side of a policy: it asks, and it remembers what an allowed decision says.
pub struct Guest {
    engine: Box<dyn Engine>,
    /// What earlier decisions left.
    pub metadata: Value,
}

/// A decision, as the policy gave it.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The whole result object.
    Allowed(Value),
    /// The reasons, sorted.
    Denied(Vec<String>),
}

impl Decision {
    /// The result of an allowed request.
    #[track_caller]
    pub fn allowed(self) -> Value {
        match self {
            Self::Allowed(result) => result,
            Self::Denied(reasons) => panic!("denied: {reasons:?}"),
        }
    }

    /// The reasons of a denied request.
    #[track_caller]
    pub fn denied(self) -> Vec<String> {
        match self {
            Self::Allowed(result) => panic!("allowed: {result}"),
            Self::Denied(reasons) => reasons,
        }
    }
}

impl Guest {
    /// A guest that remembers nothing yet.
    pub fn new(engine: impl Engine + 'static) -> Self {
        Self { engine: Box::new(engine), metadata: json!({}) }
    }

    /// Decides, without remembering. Anything but `"allowed": true` is a denial, so is no rule at all (D1).
    pub fn decide(&mut self, point: &str, input: &Value) -> Decision {
        let result = self.engine.query(&format!("policy.{point}"), input, &self.metadata);
        match result {
            Some(result) if result["allowed"] == true => Decision::Allowed(result),
            _ => {
                let mut asked = input.clone();
                asked["rule"] = point.into();
                let reason = self.engine.query("policy.reason", &asked, &self.metadata);
                let errors = reason.and_then(|reason| reason["errors"].as_array().cloned());
                let texts = errors.into_iter().flatten().map(|text| text.as_str().unwrap().to_owned());
                Decision::Denied(texts.collect())
            }
        }
    }

    /// Decides, and remembers if the request was allowed, as a guest does whose action then succeeded.
    pub fn ask(&mut self, point: &str, input: &Value) -> Decision {
        let decision = self.decide(point, input);
        if let Decision::Allowed(result) = &decision {
            for operation in result["metadata"].as_array().into_iter().flatten() {
                apply(&mut self.metadata, operation);
            }
        }
        decision
    }
}

/// Carries out one operation on the guest's memory.
///
/// # Panics
/// Where an operation does not fit what is remembered: adding what is there, removing what is not.
pub fn apply(metadata: &mut Value, operation: &Value) {
    let text = |field: &str| operation[field].as_str().unwrap_or_else(|| panic!("{field}: {operation}"));
    let maps = metadata.as_object_mut().unwrap();
    let map = maps.entry(text("name")).or_insert_with(|| Value::Object(Map::new()));
    let map = map.as_object_mut().unwrap();
    let (key, value) = (text("key").to_owned(), operation["value"].clone());
    match text("action") {
        "add" => assert_eq!(map.insert(key, value), None, "added twice: {operation}"),
        "update" => drop(map.insert(key, value)),
        "remove" => assert_ne!(map.remove(&key), None, "removed what is not there: {operation}"),
        other => panic!("unknown action {other}"),
    }
}

/// With every array sorted: regorus orders sets before objects, so the sorted members of sets may differ.
pub fn unordered(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(unordered).collect();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), unordered(value))).collect(),
        other => other.clone(),
    }
}

/// Asks the machine and the reference evaluator, which must answer and remember alike; the machine's answer.
pub fn both(
    machine: &mut Session<'_>,
    reference: &mut Reference<'_>,
    rule: &str,
    input: &Value,
) -> Evaluation {
    let ours = machine.decide(rule, Some(input));
    let theirs = reference.decide(rule, Some(input));
    let same = match (&ours, &theirs) {
        (Ok(Evaluation::Value(ours)), Ok(Some(theirs))) => ours == theirs,
        (Ok(Evaluation::Undefined), Ok(None)) => true,
        (Ok(Evaluation::Fault(_)) | Err(_), Err(_)) => true,
        _ => false,
    };
    assert!(same, "{rule} {input}\nmachine {ours:?}\nreference {theirs:?}");
    assert_eq!(machine.metadata(), reference.metadata(), "after {rule} {input}");
    ours.unwrap_or(Evaluation::Undefined)
}
