//! Patterns that go through a function before they are matched: `every x in f(rules) { regex.match(x.pattern, …) }`.
//!
//! Such a function often becomes a table, and what it returns is where the compiler finds the patterns. None may get lost
//! on that way: the guest would then refuse a request that the policy allows.

mod common;

use common::sessions::Numbers;
use parma_policy::reference::Reference;
use parma_policy::{Evaluation, Inputs, Session, compile};
use serde_json::{Value, json};

/// Lists of rules as policies have them, each rule with a name of its own.
const LISTS: &str = r#"[
  [{"name": "a", "pattern": "A=[0-9]+", "strategy": "re2", "required": true},
   {"name": "b", "pattern": "B=x", "strategy": "string", "required": true},
   {"name": "c", "pattern": "C=.*", "strategy": "re2", "required": false}],
  [{"name": "d", "pattern": "(?i)d=.+", "strategy": "re2", "required": true},
   {"name": "e", "pattern": "A=1|B=x", "strategy": "re2"}],
  [{"name": "f", "pattern": "F.", "strategy": "string", "required": false}],
  []
]"#;

/// Functions of a list of rules: what they give has either rules or patterns in it.
const FUNCTIONS: &str = r#"
known := lists[input.i]
required(rules) := [rule | some rule in rules; rule.required]
as_set(rules) := {rule | some rule in rules; rule.required}
expressions(rules) := [rule | some rule in rules; rule.strategy == "re2"]
by_name(rules) := {rule.name: rule | some rule in rules}
both(rules) := [rule | some rule in required(rules); rule.strategy == "re2"]
either(rules) := required(rules) if count(rules) > 1
either(rules) := rules if count(rules) <= 1
first(rules) := [rules[0]] if count(rules) > 0 else := []
again(rules) := [rule | some rule in [other | some other in rules; other.strategy != "string"]]
same(rules) := rules
texts(rules) := [rule.pattern | some rule in rules; rule.required]
text_set(rules) := {rule.pattern | some rule in rules}
whole(pattern, text) if regex.match(concat("", ["^(?:", pattern, ")$"]), text)
matches(rule, text) if { rule.strategy == "string"; rule.pattern == text }
matches(rule, text) if { rule.strategy == "re2"; whole(rule.pattern, text) }
by(strategy, pattern, text) if { strategy == "re2"; regex.match(pattern, text) }
by(strategy, pattern, text) if { strategy == "string"; pattern == text }
"#;

const RULES: [&str; 9] =
    ["required", "as_set", "expressions", "by_name", "both", "either", "first", "again", "same"];
const TEXTS: [&str; 2] = ["texts", "text_set"];

/// Where a list comes from; the second is written before it.
const SOURCES: [(&str, &str); 8] = [
    ("lists[0]", ""),
    ("lists[input.i]", ""),
    ("data.metadata.lists[input.l]", ""),
    ("container.rules", "some container in data.metadata.matches[input.l]"),
    ("list", "some list in lists"),
    ("list", "list := data.metadata.lists[input.l]"),
    ("container.rules", "container := data.metadata.matches[input.l][0]"),
    ("object.get(data.metadata.lists, input.l, [])", ""),
];

/// A rule that asks some such question, made of these choices.
fn question(numbers: &mut Numbers) -> String {
    let (source, binding) = SOURCES[numbers.below(SOURCES.len())];
    let texts = numbers.below(4) == 0;
    let function = if texts { numbers.pick(&TEXTS) } else { numbers.pick(&RULES) };
    let holds = if texts {
        numbers.pick(&["whole(x, t)", "regex.match(x, t)", "whole(x, input.texts[_])"])
    } else {
        numbers.pick(&[
            "whole(x.pattern, t)",
            "regex.match(x.pattern, t)",
            "matches(x, t)",
            "by(x.strategy, x.pattern, t)",
            "regex.match(concat(\"\", [\"^\", x.pattern]), t)",
        ])
    };
    let one = format!("some t in input.texts; {holds}");
    let (list, body) = match numbers.below(4) {
        // By a function around it, which has the list as a parameter.
        0 => (format!("{function}(rules)"), "ask(rules) if { BODY }\nr if { BINDING ask(SOURCE) }"),
        1 => ("given".to_string(), "r if { BINDING given := CALL; BODY }"),
        _ => (format!("{function}({source})"), "r if { BINDING BODY }"),
    };
    let ask = match numbers.below(8) {
        0 => format!("some x in {list}; {one}"),
        1 => format!("every x in [y | some y in {list}] {{ {one} }}"),
        2 => format!("every k, x in {list} {{ k != 9; {one} }}"),
        3 => format!("x := {list}[_]; {one}"),
        4 => format!("count([x | some x in {list}; {one}]) == count({list})"),
        5 => format!("xs := {list}; every x in xs {{ {one} }}"),
        _ => format!("every x in {list} {{ {one} }}"),
    };
    let binding = if binding.is_empty() { String::new() } else { format!("{binding};") };
    let rule = body
        .replace("BODY", &ask)
        .replace("BINDING", &binding)
        .replace("CALL", &format!("{function}({source})"))
        .replace("SOURCE", source);
    format!("package t\nimport rego.v1\nlists := {LISTS}\n{FUNCTIONS}\ndefault r := false\n{rule}\n")
}

/// The state of a guest that remembers what the policy has.
fn state() -> Value {
    let lists: Value = serde_json::from_str(LISTS).unwrap();
    let mut state = json!({"lists": {}, "matches": {}});
    for number in 0..4 {
        state["lists"][number.to_string()] = lists[number].clone();
        state["matches"][number.to_string()] =
            json!([{"rules": lists[number]}, {"rules": lists[(number + 1) % 4]}]);
    }
    state
}

fn requests() -> Vec<Value> {
    let texts: [&[&str]; 6] = [
        &["A=12", "B=x"],
        &["A=12"],
        &["d=1", "B=x", "A=1"],
        &["C=", "A=5", "B=x", "F."],
        &[],
        &["D=y", "A=1"],
    ];
    let ask = |texts: &&[&str]| {
        (0..4).map(|i| json!({"i": i, "l": i.to_string(), "texts": texts})).collect::<Vec<_>>()
    };
    texts.iter().flat_map(ask).collect()
}

/// Asks the optimised image, the plain one, the reference evaluator of both, and regorus. The number of those that hold.
fn agree(text: &str) -> usize {
    let inputs = |optimise| Inputs {
        modules: vec![("t.rego".into(), text.into())],
        data: None,
        // The lists are a part of the policy by another entry, as containers are by the overlays that they have.
        entries: vec!["data.t.r".into(), "data.t.known".into()],
        framework: false,
        optimise,
        known_inputs: Default::default(),
    };
    let state = state();
    let mut oracle = regorus::Engine::new();
    oracle.set_policy_length_config(common::unlimited());
    oracle.set_strict_builtin_errors(false);
    oracle.add_policy("t.rego".into(), text.into()).unwrap();
    oracle.add_data_json(&json!({"metadata": state}).to_string()).unwrap();
    let images = [true, false]
        .map(|optimise| compile(&inputs(optimise)).unwrap_or_else(|error| panic!("{error}\n{text}")).image);
    let mut machines = images.each_ref().map(|image| Session::new(image).unwrap());
    let mut references = images.each_ref().map(|image| Reference::new(image).unwrap());
    machines.iter_mut().for_each(|machine| machine.set_metadata(&state).unwrap());
    references.iter_mut().for_each(|reference| reference.set_metadata(&state).unwrap());
    let mut held = 0;
    for request in requests() {
        oracle.set_input_json(&request.to_string()).unwrap();
        let theirs: Value =
            serde_json::from_str(&oracle.eval_rule("data.t.r".into()).unwrap().to_json_str().unwrap())
                .unwrap();
        for machine in &mut machines {
            let ours = machine.evaluate("data.t.r", Some(&request));
            let same = matches!(&ours, Evaluation::Value(ours) if *ours == theirs);
            assert!(same, "{text}\n{request}\nours {ours:?}, regorus {theirs}");
        }
        for reference in &mut references {
            let ours = reference.evaluate("data.t.r", Some(&request));
            assert!(
                matches!(&ours, Ok(Some(ours)) if *ours == theirs),
                "{text}\n{request}\nreference {ours:?}"
            );
        }
        held += usize::from(theirs == true);
    }
    held
}

/// The rule that was reported: a list from the guest's memory, of which no value is known when the policy is compiled.
#[test]
fn patterns_of_a_remembered_list_are_known_behind_a_function() {
    for body in [
        "every x in required(data.metadata.lists[input.l]) { some t in input.texts; whole(x.pattern, t) }",
        "some container in data.metadata.matches[input.l]\n\
         every x in required(container.rules) { some t in input.texts; matches(x, t) }",
        "every x in texts(data.metadata.lists[input.l]) { some t in input.texts; regex.match(x, t) }",
    ] {
        let text = format!(
            "package t\nimport rego.v1\nlists := {LISTS}\n{FUNCTIONS}\ndefault r := false\nr if {{\n{body}\n}}\n"
        );
        assert!(agree(&text) > 4, "{text}");
    }
}

#[test]
fn patterns_behind_functions_match_as_regorus_says() {
    let mut numbers = Numbers(3);
    let mut held = 0;
    for _ in 0..rounds(120) {
        let text = question(&mut numbers);
        held += usize::from(agree(&text) > 0);
    }
    println!("{held} questions have an answer that is yes");
    assert!(held > 60, "{held}");
}

/// How many to ask; PARMA_ROUNDS asks for more.
fn rounds(usual: usize) -> usize {
    std::env::var("PARMA_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(usual)
}
