//! The optimised image answers as the plain one does, whatever it is asked.

mod common;

use common::requests::*;
use parma_policy::{Inputs, Session, compile};
use serde_json::{Value, json};

/// One session for the optimised image and one for the plain one.
fn both(inputs: &Inputs) -> [Session<'static>; 2] {
    [true, false].map(|optimise| {
        let compiled = compile(&Inputs { optimise, ..inputs.clone() }).unwrap();
        // A session borrows its image; a test's images live as long as the test.
        Session::new(compiled.image.leak()).unwrap()
    })
}

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }

    fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// Rules of every kind: strings, patterns, names and values apart, and such as match nothing.
fn rules() -> Vec<Value> {
    let mut rules = vec![
        json!({"name": "ZONE", "name_strategy": "string", "value": "[a-z]+", "value_strategy": "re2", "required": true}),
        json!({"pattern": "BOTH=1", "strategy": "string", "name": "Z", "name_strategy": "string", "value": "2",
               "value_strategy": "string", "required": false}),
        json!({"strategy": "string", "required": false}),
        json!({"pattern": 7, "strategy": "string", "required": false}),
        json!({"pattern": "A=1", "strategy": "unknown", "required": false}),
        json!("no rule at all"),
    ];
    for (pattern, strategy) in [
        ("A=1", "string"),
        ("A=1", "re2"),
        ("A=.*", "re2"),
        ("A=.*", "string"),
        ("(?i)(FABRIC)_.+=.+", "re2"),
        ("A=1|B=2", "re2"),
        ("^A=[0-9]+$", "re2"),
        ("a)|(?:b", "re2"),
        ("(", "string"),
        ("[", "re2"),
        ("", "re2"),
        ("", "string"),
        (".*X.*", "re2"),
        ("B=2", "string"),
        ("C=é+", "re2"),
    ] {
        rules.push(json!({"pattern": pattern, "strategy": strategy, "required": pattern == "B=2"}));
    }
    rules
}

fn texts() -> Vec<Value> {
    let strings = [
        "A=1",
        "A=12",
        "A=1x",
        "B=2",
        "A=",
        "",
        "fabric_x=y",
        "FABRIC_=",
        "Z=2",
        "ZONE=abc",
        "ZONE=1",
        "BOTH=1",
        "(",
        "[",
        "a",
        "b",
        "a)|(?:b",
        "C=éé",
        "fooXbar",
        "A=.*",
        "A=\n",
        "no rule at all",
    ];
    strings.iter().map(|text| json!(text)).chain([json!(null), json!(1), json!(["A=1"]), json!({})]).collect()
}

#[test]
fn a_search_through_a_list_of_the_policy_finds_what_it_found_before() {
    let mut numbers = Numbers(1);
    let rules = rules();
    for _ in 0..12 {
        let lists: Vec<Vec<Value>> =
            (0..4).map(|_| (0..numbers.below(12)).map(|_| numbers.pick(&rules)).collect()).collect();
        let module = format!(
            "package policy\n\
             import rego.v1\n\
             lists := {}\n\
             r := {{i: found |\n\
               some i, list in lists\n\
               found := [data.framework.variable_allowed(list, text) | some text in input.texts]\n\
             }}\n\
             n := {{i: found |\n\
               some i, list in lists\n\
               found := {{text | some text in input.texts; not data.framework.variable_allowed(list, text)}}\n\
             }}\n\
             known if data.framework.variable_allowed(data.metadata.lists[input.list], input.texts[_])\n",
            Value::from(lists.iter().cloned().map(Value::from).collect::<Vec<_>>())
        );
        let entries = ["data.policy.r", "data.policy.n", "data.policy.known"];
        let inputs = Inputs {
            entries: entries.iter().map(|entry| entry.to_string()).collect(),
            ..Inputs::policy("lists.rego", &module)
        };
        let mut sessions = both(&inputs);
        // Lists that the policy has, and one that it has not: that takes the old way.
        let state = json!({"lists": {"0": lists[0], "1": lists[1], "other": [{"pattern": "Q=1", "strategy": "string"}]}});
        sessions.iter_mut().for_each(|session| session.set_metadata(&state).unwrap());
        for text in texts().into_iter().chain([json!("Q=1")]) {
            for list in ["0", "1", "other", "none"] {
                let input = json!({"texts": [text], "list": list});
                for entry in entries {
                    let [fast, plain] =
                        sessions.each_mut().map(|session| session.evaluate(entry, Some(&input)));
                    assert_eq!(fast, plain, "{entry} {input} {module}");
                }
            }
        }
    }
}

#[test]
fn containers_are_created_with_the_same_environment_as_before() {
    let mut numbers = Numbers(2);
    let rules: Vec<Value> = rules().into_iter().filter(Value::is_object).collect();
    let variables: Vec<Value> = texts().into_iter().filter(Value::is_string).collect();
    let mut allowed = 0;
    for round in 0..10 {
        let containers: Vec<Value> = (0..3)
            .map(|_| {
                let own: Vec<Value> = (0..4 + numbers.below(10)).map(|_| numbers.pick(&rules)).collect();
                with(&container(), "/env_rules", own)
            })
            .collect();
        let flags = json!({"allow_environment_variable_dropping": round % 2 == 0});
        let mut sessions = both(&Inputs::policy("policy.rego", &policy(&containers, &flags)));
        let state = json!({"matches": {id('a'): containers}, "started": {}});
        sessions.iter_mut().for_each(|session| session.set_metadata(&state).unwrap());
        for _ in 0..60 {
            let environment: Vec<Value> = (0..numbers.below(5)).map(|_| numbers.pick(&variables)).collect();
            let request = with(&create_container(&id('a')), "/envList", environment);
            let [fast, plain] = sessions
                .each_mut()
                .map(|session| session.evaluate("data.policy.create_container", Some(&request)));
            assert_eq!(fast, plain, "{request} {containers:?}");
            allowed += usize::from(format!("{fast:?}").contains("\"allowed\": Bool(true)"));
        }
    }
    assert!(allowed > 0, "no request was allowed: the comparison says nothing");
}

#[test]
fn the_optimised_image_of_many_rules_is_the_smaller_one() {
    let rules: Vec<Value> = (0..40)
        .map(|rule| json!({"pattern": format!("NAME_{rule}=[a-z]+"), "strategy": "re2", "required": false}))
        .collect();
    let inputs =
        Inputs::policy("policy.rego", &policy(&[with(&container(), "/env_rules", rules)], &json!({})));
    let [fast, plain] =
        [true, false].map(|optimise| compile(&Inputs { optimise, ..inputs.clone() }).unwrap().image.len());
    assert!(fast < plain, "{fast} bytes optimised, {plain} plain");
}
