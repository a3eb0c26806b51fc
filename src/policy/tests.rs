//! The machine as a whole, on programs assembled by hand.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

use super::builder::*;
use super::dfa::{State, encode};
use super::engine::*;
use super::format::*;
use super::instruction::{Instruction as I, *};
use super::value::*;
use crate::point::Point;

mod builtins;
mod engine;
mod format;
mod machine;
mod values;
mod verifier;

/// A DFA that matches whole strings of this expression.
pub(super) fn dfa(pattern: &str) -> Vec<u8> {
    dfa_many(&[pattern])
}

fn dfa_many(patterns: &[&str]) -> Vec<u8> {
    let dfa = dense::Builder::new()
        .configure(dense::Config::new().match_kind(MatchKind::All).start_kind(StartKind::Anchored))
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .thompson(thompson::Config::new().utf8(false))
        .build_many(patterns)
        .unwrap();
    let mut order = Vec::from([dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).unwrap()]);
    let mut states = Vec::new();
    while let Some(&state) = order.get(states.len()) {
        let mut transitions = Vec::new();
        for byte in 0..=255 {
            let next = dfa.next_state(state, byte);
            let known = order.iter().position(|&other| other == next);
            transitions.push((byte, byte, known.unwrap_or(order.len())));
            if known.is_none() {
                order.push(next);
            }
        }
        let end = dfa.next_eoi_state(state);
        let count = if dfa.is_match_state(end) { dfa.match_len(end) } else { 0 };
        let patterns = (0..count).map(|index| dfa.match_pattern(end, index).as_usize() as u16).collect();
        states.push(State { transitions, patterns });
    }
    encode(&states).unwrap()
}

/// Writes a value as JSON; sets as `{a, b}`.
pub(crate) fn show(view: &View<'_>, value: Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::False => "false".into(),
        Value::True => "true".into(),
        Value::Int(value) => value.to_string(),
        Value::String(text) => alloc::format!("{:?}", view.text(text)),
        _ => {
            let mut parts = Vec::new();
            while let Some((key, item)) = view.element(value, parts.len()) {
                parts.push(match value {
                    Value::Object(_) => alloc::format!("{}:{}", show(view, key), show(view, item)),
                    _ => show(view, item),
                });
            }
            let list = parts.join(",");
            if let Value::Array(_) = value {
                alloc::format!("[{list}]")
            } else {
                alloc::format!("{{{list}}}")
            }
        }
    }
}

type Input = fn(&mut Arena<'_>) -> Result<Option<Value>, Fault>;

const NO_INPUT: Input = |_| Ok(None);

fn image(program: impl FnOnce(&mut Builder, &mut FunctionBuilder)) -> Vec<u8> {
    let mut builder = Builder::new(1);
    let mut code = FunctionBuilder::new("main", 0);
    program(&mut builder, &mut code);
    let main = builder.function(code);
    builder.entry("main", main).unwrap();
    builder.finish().unwrap()
}

fn run(image: &[u8], input: Input) -> Result<String, Fault> {
    let mut engine = Engine::new(image).unwrap();
    let mut memory = [0; 4096];
    let mut arena = Arena::new(&mut memory);
    Ok(match engine.evaluate(&mut arena, "main", input)? {
        Outcome::Value(value) => show(&engine.view(&arena), value),
        Outcome::Undefined => "undefined".into(),
        Outcome::Missing => "missing".into(),
    })
}

fn eval(program: impl FnOnce(&mut Builder, &mut FunctionBuilder)) -> Result<String, Fault> {
    run(&image(program), NO_INPUT)
}

/// The result of a builtin on constants.
fn builtin(builtin: Builtin, args: impl FnOnce(&mut Builder) -> Vec<Const>) -> Result<String, Fault> {
    eval(|b, f| {
        let registers: Vec<Reg> = args(b)
            .into_iter()
            .map(|value| {
                let dst = f.register();
                f.emit(I::Const { dst, value });
                dst
            })
            .collect();
        let dst = f.register();
        f.emit(I::Builtin { dst: Some(dst), builtin, args: Args(&registers) });
        f.emit(I::ReturnLast { value: dst });
    })
}

#[test]
fn an_object_of_the_input_is_read_by_field() {
    let image = image(|b, f| {
        let key = b.string("layers");
        let one = b.int(1);
        f.emit(I::Input { dst: 0 });
        f.emit(I::GetConst { dst: 1, from: 0, key });
        f.emit(I::GetConst { dst: 2, from: 1, key: one });
        f.emit(I::Array { dst: 3, items: Args(&[2, 1, 0]) });
        f.emit(I::ReturnLast { value: 3 });
    });
    let result = run(&image, |arena| {
        let a = arena.string("a")?;
        let layers = arena.array(&[Value::int(7), a])?;
        arena.object(&[("target", Value::bool(true)), ("layers", layers)]).map(Some)
    });
    assert_eq!(result.unwrap(), r#"["a",[7,"a"],{"layers":[7,"a"],"target":true}]"#);
    assert_eq!(run(&image, NO_INPUT).unwrap(), "undefined");
    let short = run(&image, |arena| {
        let layers = arena.array(&[Value::Null])?;
        arena.object(&[("layers", layers)]).map(Some)
    });
    assert_eq!(short.unwrap(), "undefined");
}

#[test]
fn a_failing_block_is_left_and_what_follows_runs() {
    let result = eval(|b, f| {
        let (one, two) = (b.int(1), b.int(2));
        let block = f.open(I::Block { body: 0 });
        f.emit(I::Const { dst: 0, value: one });
        f.emit(I::CompareConst { relation: Relation::Equal, dst: None, left: 0, right: two });
        f.emit(I::Return { value: 0 });
        f.close(block);
        f.emit(I::Const { dst: 0, value: two });
        f.emit(I::Return { value: 0 });
    });
    assert_eq!(result.unwrap(), "2");
}

#[test]
fn two_equal_results_agree_and_two_different_ones_are_a_fault() {
    let twice = |second: i64| {
        eval(|b, f| {
            let (x, y) = (b.int(1), b.int(second));
            f.emit(I::Const { dst: 0, value: x });
            f.emit(I::Return { value: 0 });
            f.emit(I::Const { dst: 1, value: y });
            f.emit(I::Return { value: 1 });
        })
    };
    assert_eq!(twice(1).unwrap(), "1");
    assert_eq!(twice(2), Err(Fault::Conflict));
}

#[test]
fn a_comprehension_collects_what_passes() {
    let collect = |kind: Collection| {
        eval(|b, f| {
            let items = [3, 1, 2, 3, 5].map(|n| b.int(n)).to_vec();
            let (list, four) = (b.array(items), b.int(4));
            f.emit(I::Const { dst: 0, value: list });
            let collection = f.open(I::Collect { dst: 1, kind, body: 0 });
            let scan = f.open(I::Scan { source: 0, key: Some(2), value: Some(3), body: 0 });
            f.emit(I::CompareConst { relation: Relation::Less, dst: None, left: 3, right: four });
            match kind {
                Collection::Object => f.emit(I::YieldPair { key: 3, value: 3 }),
                _ => f.emit(I::Yield { value: 3 }),
            }
            f.close(scan);
            f.close(collection);
            f.emit(I::ReturnLast { value: 1 });
        })
    };
    assert_eq!(collect(Collection::Array).unwrap(), "[3,1,2,3]");
    assert_eq!(collect(Collection::Set).unwrap(), "{1,2,3}");
    assert_eq!(collect(Collection::Object).unwrap(), "{1:1,2:2,3:3}");
}

#[test]
fn a_comprehension_key_with_two_values_is_a_fault_and_in_a_literal_the_last_counts() {
    let key_twice = |literal: bool| {
        eval(|b, f| {
            let (list, x) = ([1, 2].map(|n| b.int(n)).to_vec(), b.string("x"));
            let list = b.array(list);
            f.emit(I::Const { dst: 0, value: list });
            f.emit(I::Const { dst: 1, value: x });
            let collection = f.open(I::Collect { dst: 2, kind: Collection::Object, body: 0 });
            let scan = f.open(I::Scan { source: 0, key: None, value: Some(3), body: 0 });
            if literal {
                f.emit(I::Object { dst: 4, pairs: Args(&[1, 0, 1, 3]) });
                f.emit(I::YieldPair { key: 3, value: 4 });
            } else {
                f.emit(I::YieldPair { key: 1, value: 3 });
            }
            f.close(scan);
            f.close(collection);
            f.emit(I::ReturnLast { value: 2 });
        })
    };
    assert_eq!(key_twice(false), Err(Fault::Conflict));
    assert_eq!(key_twice(true).unwrap(), r#"{1:{"x":1},2:{"x":2}}"#);
}

/// `exists x in [1, 2, 3]: x == wanted`, under `Some` or `Not`, exporting x.
fn existence(owner: Owner, wanted: i64) -> String {
    eval(|b, f| {
        let (list, wanted) = ([1, 2, 3].map(|n| b.int(n)).to_vec(), b.int(wanted));
        let list = b.array(list);
        f.emit(I::Const { dst: 0, value: list });
        let outer = f.open(match owner {
            Owner::Some => I::Some { body: 0 },
            _ => I::Not { body: 0 },
        });
        let scan = f.open(I::Scan { source: 0, key: None, value: Some(1), body: 0 });
        f.emit(I::CompareConst { relation: Relation::Equal, dst: None, left: 1, right: wanted });
        f.emit(I::Done { depth: 1 });
        f.close(scan);
        f.emit(I::Fail);
        f.close(outer);
        let result = if owner == Owner::Some { 1 } else { 0 };
        f.emit(I::ReturnLast { value: result });
    })
    .unwrap()
}

#[test]
fn some_exports_the_first_witness_and_not_is_its_opposite() {
    assert_eq!(existence(Owner::Some, 2), "2");
    assert_eq!(existence(Owner::Some, 4), "undefined");
    assert_eq!(existence(Owner::Not, 2), "undefined");
    assert_eq!(existence(Owner::Not, 4), "[1,2,3]");
}

#[test]
fn every_needs_all_and_holds_for_none_and_is_undefined_for_no_collection() {
    let every = |domain: fn(&mut Builder) -> Const| {
        eval(|b, f| {
            let (domain, three) = (domain(b), b.int(3));
            f.emit(I::Const { dst: 0, value: domain });
            let every = f.open(I::Every { source: 0, key: None, value: Some(1), body: 0 });
            f.emit(I::CompareConst { relation: Relation::Less, dst: None, left: 1, right: three });
            f.close(every);
            f.emit(I::Const { dst: 1, value: Const::TRUE });
            f.emit(I::ReturnLast { value: 1 });
        })
        .unwrap()
    };
    assert_eq!(every(|b| list(b, &[1, 2])), "true");
    assert_eq!(every(|b| list(b, &[1, 3])), "undefined");
    assert_eq!(every(|b| list(b, &[])), "true");
    assert_eq!(every(|b| b.string("abc")), "undefined");
}

fn list(b: &mut Builder, items: &[i64]) -> Const {
    let items = items.iter().map(|&n| b.int(n)).collect();
    b.array(items)
}

#[test]
fn calls_pass_arguments_and_undefined_results_fail_the_caller() {
    let call = |argument: i64| {
        let mut b = Builder::new(1);
        let (zero, argument) = (b.int(0), b.int(argument));
        // positive(x) := x + x if x > 0
        let mut f = FunctionBuilder::new("positive", 1);
        f.emit(I::CompareConst { relation: Relation::Greater, dst: None, left: 0, right: zero });
        f.emit(I::Builtin { dst: Some(1), builtin: Builtin::Plus, args: Args(&[0, 0]) });
        f.emit(I::ReturnLast { value: 1 });
        let positive = b.function(f);
        let mut f = FunctionBuilder::new("main", 0);
        f.emit(I::Const { dst: 0, value: argument });
        f.emit(I::Call { dst: Some(1), function: positive.0, args: Args(&[0]) });
        f.emit(I::ReturnLast { value: 1 });
        let main = b.function(f);
        b.entry("main", main).unwrap();
        run(&b.finish().unwrap(), NO_INPUT)
    };
    assert_eq!(call(4).unwrap(), "8");
    assert_eq!(call(0).unwrap(), "undefined");
    assert_eq!(call(i64::MAX), Err(Fault::Overflow));
}

#[test]
fn a_remembered_function_runs_once() {
    let fuel = |memo: bool| {
        let mut b = Builder::new(1);
        let numbers = list(&mut b, &(0..50).collect::<Vec<_>>());
        let mut f = FunctionBuilder::new("numbers", 0);
        if memo {
            f = f.memo();
        }
        f.emit(I::Const { dst: 0, value: numbers });
        let collection = f.open(I::Collect { dst: 1, kind: Collection::Array, body: 0 });
        let scan = f.open(I::Scan { source: 0, key: None, value: Some(2), body: 0 });
        f.emit(I::Array { dst: 3, items: Args(&[2]) });
        f.emit(I::Yield { value: 3 });
        f.close(scan);
        f.close(collection);
        f.emit(I::ReturnLast { value: 1 });
        let callee = b.function(f);
        let mut f = FunctionBuilder::new("main", 0);
        let not = f.open(I::Not { body: 0 });
        f.emit(I::Call { dst: Some(0), function: callee.0, args: Args(&[]) });
        f.emit(I::Fail);
        f.close(not);
        for register in 0..8 {
            f.emit(I::Call { dst: Some(register), function: callee.0, args: Args(&[]) });
        }
        f.emit(I::ReturnLast { value: 7 });
        let main = b.function(f);
        b.entry("main", main).unwrap();
        let image = b.finish().unwrap();
        let mut engine = Engine::new(&image).unwrap();
        let mut memory = [0; 65536];
        let mut arena = Arena::new(&mut memory);
        let fits = |engine: &mut Engine<'_>, arena: &mut Arena<'_>, fuel| {
            engine.set_fuel(fuel);
            engine.evaluate(arena, "main", NO_INPUT).is_ok()
        };
        let needed = (0..10_000).find(|&fuel| fits(&mut engine, &mut arena, fuel)).unwrap();
        let Ok(Outcome::Value(value)) = engine.evaluate(&mut arena, "main", NO_INPUT) else { panic!() };
        assert!(show(&engine.view(&arena), value).starts_with("[[0],[1],[2],"));
        needed
    };
    assert!(fuel(true) * 5 < fuel(false));
}

#[test]
fn patterns_match_whole_strings_only() {
    let matches = |pattern: &str, text: &str| {
        eval(|b, f| {
            let dfa = b.dfa(dfa(pattern));
            let pattern = b.pattern(Pattern::Dfa(dfa.0));
            let text = b.string(text);
            f.emit(I::Const { dst: 0, value: text });
            f.emit(I::Match { dst: Some(1), text: 0, pattern: pattern.0 });
            f.emit(I::ReturnLast { value: 1 });
        })
        .unwrap()
    };
    // SECURITY (P09): alternatives are anchored as a whole.
    assert_eq!(matches("A=1|B=2", "A=1"), "true");
    assert_eq!(matches("A=1|B=2", "B=2"), "true");
    assert_eq!(matches("A=1|B=2", "A=1xyz"), "false");
    assert_eq!(matches("A=1|B=2", "LD_PRELOAD=/e;B=2"), "false");
    assert_eq!(matches("a|ab", "ab"), "true");
    assert_eq!(matches("/m[0-9]+", "/m12"), "true");
    assert_eq!(matches("/m[0-9]+", "/m12\n"), "false");
    assert_eq!(matches("", ""), "true");
    assert_eq!(matches("(?i)(FABRIC)_.+=.+", "fabric_x=1"), "true");
}

/// The steps of a sequence of literal text, with holes in it.
fn steps(parts: &[Result<&str, u8>]) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in parts {
        let bytes = part.map_or(&[][..], str::as_bytes);
        for &byte in bytes {
            let next = steps.len() as u32 + 1;
            steps.push(Step::Range { low: byte, high: byte, next });
        }
        if let Err(hole) = *part {
            let next = steps.len() as u32 + 1;
            steps.push(Step::Hole { hole, next });
        }
    }
    let next = steps.len() as u32 + 1;
    steps.extend([Step::Assert { look: Look::End, next }, Step::Match]);
    steps
}

/// Whether `text` matches by a pattern's text, which is that of the policy with `id` put into it.
fn matches_filled(pattern: &str, id: &str, text: &str) -> Result<String, Fault> {
    eval(|b, f| {
        let program = b.program(&steps(&[Ok("/run/"), Err(0), Ok("/m")]));
        let template = b.pattern(Pattern::Program(program));
        b.named(Class::WholeHoles, &alloc::format!("/run/{}/m", Class::HOLE), Some(template));
        b.named(Class::Whole, "(", None);
        for (register, value) in [pattern, id, text].into_iter().enumerate() {
            let value = b.string(value);
            f.emit(I::Const { dst: register as u8, value });
        }
        f.emit(I::MatchBy { dst: Some(3), text: 2, pattern: 0, part: false, holes: Args(&[1]) });
        f.emit(I::ReturnLast { value: 3 });
    })
}

#[test]
fn what_is_put_into_a_pattern_is_text() {
    assert_eq!(matches_filled("/run/ab/m", "ab", "/run/ab/m").unwrap(), "true");
    assert_eq!(matches_filled("/run/ab/m", "ab", "/run/ac/m").unwrap(), "false");
    assert_eq!(matches_filled("/run/ab/m", "ab", "/run/ab/m/").unwrap(), "false");
    assert_eq!(matches_filled("/run//m", "", "/run//m").unwrap(), "true");
    // A dot means what it means in a pattern.
    assert_eq!(matches_filled("/run/a.c/m", "a.c", "/run/abc/m").unwrap(), "true");
    assert_eq!(matches_filled("/run/a.c/m", "a.c", "/run/aéc/m").unwrap(), "true");
    assert_eq!(matches_filled("/run/a.c/m", "a.c", "/run/a\nc/m").unwrap(), "false");
    assert_eq!(matches_filled("/run/a.c/m", "a.c", "/run/ac/m").unwrap(), "false");
    assert_eq!(matches_filled("(", "", "(").unwrap(), "undefined");
}

#[test]
fn a_pattern_that_nothing_foresaw_is_a_fault() {
    // SECURITY: to call it no match would turn a `not` around it into an allowance.
    assert_eq!(matches_filled("/run/ab/m", "xy", "/run/ab/m"), Err(Fault::Pattern));
    assert_eq!(matches_filled(".*", "", "/run/ab/m"), Err(Fault::Pattern));
    // What is put in would be read as a pattern.
    assert_eq!(matches_filled("/run/.*/m", ".*", "/run/ab/m"), Err(Fault::Pattern));
    assert_eq!(matches_filled("/run/a|b/m", "a|b", "/run/a|b/m"), Err(Fault::Pattern));
}

/// All matches of `(a|ab)(c|bcd)?` in a text.
fn found(text: &str, limit: i64) -> String {
    let range = |byte: u8, next| Step::Range { low: byte, high: byte, next };
    let program = [
        Step::Save { slot: 0, next: 1 },
        Step::Save { slot: 2, next: 2 },
        Step::Split { first: 3, second: 4 },
        range(b'a', 6),
        range(b'a', 5),
        range(b'b', 6),
        Step::Save { slot: 3, next: 7 },
        Step::Split { first: 8, second: 14 },
        Step::Save { slot: 4, next: 9 },
        Step::Split { first: 10, second: 11 },
        range(b'c', 13),
        range(b'b', 12),
        range(b'd', 13),
        Step::Save { slot: 5, next: 14 },
        Step::Save { slot: 1, next: 15 },
        Step::Match,
    ];
    eval(|b, f| {
        let program = b.program(&program);
        let pattern = b.pattern(Pattern::Program(program));
        b.named(Class::Find, "p", Some(pattern));
        let (text, name, limit) = (b.string(text), b.string("p"), b.int(limit));
        f.emit(I::Const { dst: 0, value: text });
        f.emit(I::Const { dst: 1, value: name });
        f.emit(I::Const { dst: 2, value: limit });
        f.emit(I::Submatches { dst: 3, text: 0, pattern: 1, limit: 2 });
        f.emit(I::ReturnLast { value: 3 });
    })
    .unwrap()
}

#[test]
fn matches_are_found_from_the_left_with_their_groups() {
    assert_eq!(found("xac", -1), r#"[["ac","a","c"]]"#);
    // Of two ways that match, the first one counts; a group that has no part in it is empty.
    assert_eq!(found("abc", -1), r#"[["a","a",""]]"#);
    assert_eq!(found("abd.a", -1), r#"[["abd","a","bd"],["a","a",""]]"#);
    assert_eq!(found("aaa", 2), r#"[["a","a",""],["a","a",""]]"#);
    assert_eq!(found("aaa", 0), "[]");
    assert_eq!(found("xyz", -1), "[]");
}

#[test]
fn a_table_tells_what_texts_a_list_accepts() {
    // Of [1]: "A" and what A=.* and [AB]=1 match; of [2]: "A" and what the string "C" is.
    let accepts = |list_of: i64, text: fn(&mut Builder) -> Const| {
        eval(|b, f| {
            let own = b.dfa(dfa("D+")).0;
            let dfa = b.dfa(dfa_many(&["A=.*", "B=.*", "[AB]=1"])).0;
            let literal = b.string("C").index();
            let strings = alloc::vec![b.string("A")];
            let strings = b.set(strings);
            let entry = |b: &mut Builder, list_of: i64, patterns: &[Pattern]| {
                let numbers = patterns.iter().map(|&pattern| b.pattern(pattern).0.into()).collect::<Vec<_>>();
                let patterns = list(b, &numbers);
                (list(b, &[list_of]), b.array(alloc::vec![strings, patterns]))
            };
            let member = |pattern| Pattern::Member { dfa, pattern };
            let first = entry(b, 1, &[member(0), member(2), Pattern::Dfa(own)]);
            let second = entry(b, 2, &[Pattern::Literal(literal)]);
            let table = b.object(alloc::vec![first, second]).unwrap();
            let (list, text) = (list(b, &[list_of]), text(b));
            f.emit(I::Const { dst: 0, value: list });
            f.emit(I::Const { dst: 1, value: text });
            f.emit(I::Find { dst: Some(2), text: 1, list: 0, table });
            f.emit(I::ReturnLast { value: 2 });
        })
        .unwrap()
    };
    for (text, first, second) in [
        ((|b| b.string("A")) as fn(&mut Builder) -> Const, "true", "true"),
        (|b| b.string("A=2"), "true", "false"),
        (|b| b.string("B=1"), "true", "false"),
        (|b| b.string("B=2"), "false", "false"),
        (|b| b.string("DD"), "true", "false"),
        (|b| b.string("C"), "false", "true"),
        (|b| b.int(1), "false", "false"),
    ] {
        assert_eq!(
            (&*accepts(1, text), &*accepts(2, text), &*accepts(3, text)),
            (first, second, "undefined")
        );
    }
}

#[test]
fn a_table_of_another_form_is_a_fault() {
    fn found(entry: impl Fn(&mut Builder) -> Const) -> Result<String, Fault> {
        eval(|b, f| {
            let (key, entry, text) = (b.string("list"), entry(b), b.string("text"));
            let table = b.object(alloc::vec![(key, entry)]).unwrap();
            f.emit(I::Const { dst: 0, value: key });
            f.emit(I::Const { dst: 1, value: text });
            f.emit(I::Find { dst: None, text: 1, list: 0, table });
            f.emit(I::ReturnLast { value: 1 });
        })
    }
    let parts = |b: &mut Builder, number: i64| {
        let (none, numbers) = (b.set(Vec::new()), list(b, &[number]));
        b.array(alloc::vec![none, numbers])
    };
    assert_eq!(found(|b| b.int(1)), Err(Fault::Pattern));
    assert_eq!(found(|b| list(b, &[1, 2])), Err(Fault::Pattern));
    for number in [0, -1, i64::MAX] {
        let found = found(|b| parts(b, number));
        assert_eq!(found, Err(Fault::Pattern), "there is no pattern {number}");
    }
}

#[test]
fn a_pattern_can_be_one_of_many_in_a_dfa_or_a_string() {
    let matches = |number: usize, text: &str| {
        eval(|b, f| {
            let dfa = b.dfa(dfa_many(&["A=.*", "[AB]=1"])).0;
            let [unused, literal, text] = ["-unused-", "B=1", text].map(|text| b.string(text));
            let _ = unused;
            let patterns = [
                b.pattern(Pattern::Member { dfa, pattern: 0 }),
                b.pattern(Pattern::Member { dfa, pattern: 1 }),
                b.pattern(Pattern::Literal(literal.index())),
            ];
            f.emit(I::Const { dst: 0, value: text });
            f.emit(I::Match { dst: Some(1), text: 0, pattern: patterns[number].0 });
            f.emit(I::ReturnLast { value: 1 });
        })
        .unwrap()
    };
    let which = |text: &str| [0, 1, 2].map(|number| matches(number, text) == "true");
    assert_eq!(which("A=1"), [true, true, false]);
    assert_eq!(which("A=2"), [true, false, false]);
    assert_eq!(which("B=1"), [false, true, true]);
    assert_eq!(which("B=1A=1"), [false; 3]);
}

#[test]
fn values_of_all_kinds_sort_in_opas_order() {
    let result = eval(|b, f| {
        let (one, a) = (b.int(1), b.string("a"));
        let (array, set) = (b.array(alloc::vec![one]), b.set(alloc::vec![one]));
        let object = b.object(alloc::vec![(a, one)]).unwrap();
        let all = b.array(alloc::vec![set, object, array, a, one, Const::TRUE, Const::NULL, Const::FALSE]);
        f.emit(I::Const { dst: 0, value: all });
        let collection = f.open(I::Collect { dst: 1, kind: Collection::Set, body: 0 });
        let scan = f.open(I::Scan { source: 0, key: None, value: Some(2), body: 0 });
        f.emit(I::Yield { value: 2 });
        f.close(scan);
        f.close(collection);
        f.emit(I::ReturnLast { value: 1 });
    });
    assert_eq!(result.unwrap(), r#"{null,false,true,1,"a",[1],{"a":1},{1}}"#);
}

#[test]
fn builtins_answer_as_opa_does() {
    use Builtin as B;
    fn s(b: &mut Builder, texts: &[&str]) -> Vec<Const> {
        texts.iter().map(|text| b.string(text)).collect()
    }
    fn sets(b: &mut Builder, sets: &[&[i64]]) -> Vec<Const> {
        let sets: Vec<_> = sets.iter().map(|set| set.iter().map(|&n| b.int(n)).collect()).collect();
        sets.into_iter().map(|set| b.set(set)).collect()
    }
    let text = |f, texts: &[&str]| builtin(f, |b| s(b, texts)).unwrap();
    let substring = |start, length| {
        builtin(B::Substring, |b| alloc::vec![b.string("añb"), b.int(start), b.int(length)]).unwrap()
    };
    assert_eq!(text(B::Split, &["A=b=c", "="]), r#"["A","b","c"]"#);
    assert_eq!(text(B::Split, &["é€", ""]), r#"["é","€"]"#);
    assert_eq!(text(B::Split, &["", "="]), r#"[""]"#);
    assert_eq!(text(B::IndexOf, &["é=x", "="]), "1");
    assert_eq!(text(B::IndexOf, &["abc", "d"]), "-1");
    assert_eq!(text(B::IndexOf, &["abc", ""]), "undefined");
    assert_eq!(text(B::Contains, &["a", ""]), "true");
    assert_eq!(text(B::Replace, &["sandbox://a/sandbox://", "sandbox://", "/s"]), r#""/sa//s""#);
    assert_eq!(text(B::TrimPrefix, &["abc", "ab"]), r#""c""#);
    assert_eq!(text(B::StartsWith, &["abc", "ab"]), "true");
    assert_eq!(text(B::EndsWith, &["abc", "ab"]), "false");
    assert_eq!(text(B::Lower, &["ÀİẞΣ"]), r#""àißσ""#);
    assert_eq!(text(B::Count, &["é€😀"]), "3");
    assert_eq!(text(B::Base64UrlEncode, &["a>?>"]), r#""YT4_Pg==""#);
    assert_eq!(text(B::ToNumber, &["01"]), "1");
    assert_eq!(text(B::ToNumber, &[" 1"]), "undefined");
    assert_eq!(text(B::ToNumber, &["abc"]), "undefined");
    assert_eq!(text(B::ToNumber, &["-9223372036854775808"]), "-9223372036854775808");
    assert_eq!(text(B::SemverCompare, &["1.0", "1.0.0"]), "undefined");
    assert_eq!(text(B::SemverCompare, &["1.0.0-alpha", "1.0.0"]), "-1");
    assert_eq!(text(B::SemverCompare, &["v0.10.0", "0.9.12"]), "1");
    assert_eq!(text(B::SemverCompare, &["1.0.0-rc.2", "1.0.0-rc.11"]), "-1");
    assert_eq!(text(B::SemverIsValid, &["01.2.3"]), "true");
    assert_eq!(text(B::Plus, &["a", "b"]), "undefined");
    assert_eq!(builtin(B::ToNumber, |b| s(b, &["1.5"])), Err(Fault::Unsupported));
    assert_eq!(builtin(B::SemverIsValid, |b| alloc::vec![b.int(1)]).unwrap(), "false");
    assert_eq!(builtin(B::ToNumber, |b| alloc::vec![b.null()]).unwrap(), "0");
    assert_eq!(builtin(B::BitsNegate, |b| alloc::vec![b.int(128)]).unwrap(), "-129");
    assert_eq!(builtin(B::Rem, |b| alloc::vec![b.int(-7), b.int(3)]).unwrap(), "-1");
    assert_eq!(builtin(B::Div, |b| alloc::vec![b.int(1), b.int(3)]), Err(Fault::Unsupported));
    assert_eq!(builtin(B::Div, |b| alloc::vec![b.int(1), b.int(0)]).unwrap(), "undefined");
    assert_eq!(substring(1, 1), r#""ñ""#);
    assert_eq!(substring(1, -1), r#""ñb""#);
    assert_eq!(substring(9, 2), r#""""#);
    assert_eq!(substring(-1, 2), "undefined");
    assert_eq!(builtin(B::Minus, |b| sets(b, &[&[1, 2], &[2]])).unwrap(), "{1}");
    assert_eq!(builtin(B::Or, |b| sets(b, &[&[1, 3], &[2]])).unwrap(), "{1,2,3}");
    assert_eq!(builtin(B::And, |b| sets(b, &[&[1, 3], &[3, 4]])).unwrap(), "{3}");
    let folded = |f, members: &'static [&'static [i64]]| {
        let of = |b: &mut Builder| {
            let members = sets(b, members);
            alloc::vec![b.set(members)]
        };
        builtin(f, of).unwrap()
    };
    assert_eq!(folded(B::Union, &[&[1], &[2]]), "{1,2}");
    assert_eq!(folded(B::Intersection, &[&[1, 2], &[2, 3], &[2]]), "{2}");
    assert_eq!(folded(B::Intersection, &[]), "{}");
    let overlaid = builtin(B::ObjectUnion, |b| {
        let (one, two, three) = (b.int(1), b.int(2), b.int(3));
        let (ones, twos) = (b.array(alloc::vec![one]), b.array(alloc::vec![two]));
        let [ka, kb, kc, kd] = ["a", "b", "c", "d"].map(|key| b.string(key));
        let x = b.object(alloc::vec![(kb, one), (kc, ones)]).unwrap();
        let y = b.object(alloc::vec![(kc, twos), (kd, three)]).unwrap();
        let (x, y) = (b.object(alloc::vec![(ka, x)]).unwrap(), b.object(alloc::vec![(ka, y)]).unwrap());
        alloc::vec![x, y]
    });
    assert_eq!(overlaid.unwrap(), r#"{"a":{"b":1,"c":[2],"d":3}}"#);
    let formatted = |format: &str| {
        builtin(B::Sprintf, |b| {
            let (one, a) = (b.int(1), b.string("a"));
            let nested = b.array(alloc::vec![one, a]);
            alloc::vec![b.string(format), b.array(alloc::vec![one, a, nested])]
        })
        .unwrap()
    };
    assert_eq!(formatted("%d%% %s %v"), r#""1% a [1, \"a\"]""#);
    assert_eq!(formatted("%s %d %v %d"), r#""%!s(int64=1) %!d(string=a) [1, \"a\"] %!d(MISSING)""#);
}

#[test]
fn membership_looks_at_members_elements_and_values() {
    let member = |collection: fn(&mut Builder, Const) -> Const| {
        builtin(Builtin::Member, |b| {
            let v = b.string("v");
            alloc::vec![v, collection(b, v)]
        })
        .unwrap()
    };
    assert_eq!(member(|b, v| b.array(alloc::vec![v])), "true");
    assert_eq!(member(|b, v| b.set(alloc::vec![v])), "true");
    assert_eq!(
        member(|b, v| {
            let k = b.string("k");
            b.object(alloc::vec![(k, v)]).unwrap()
        }),
        "true"
    );
    assert_eq!(
        member(|b, v| {
            let k = b.string("k");
            b.object(alloc::vec![(v, k)]).unwrap()
        }),
        "false"
    );
    assert_eq!(member(|_, v| v), "false");
}

#[test]
fn garbage_of_loops_is_reclaimed_and_what_escapes_is_kept() {
    // 2000 rounds of splitting would need 200 KB; the arena has 4.
    let result = eval(|b, f| {
        let (numbers, text, comma) =
            (list(b, &(0..2000).collect::<Vec<_>>()), b.string("a,b,c,d"), b.string(","));
        let (last, one) = (b.int(1999), b.int(1));
        f.emit(I::Const { dst: 0, value: numbers });
        f.emit(I::Const { dst: 1, value: text });
        f.emit(I::Const { dst: 2, value: comma });
        let collection = f.open(I::Collect { dst: 3, kind: Collection::Array, body: 0 });
        let scan = f.open(I::Scan { source: 0, key: None, value: Some(4), body: 0 });
        f.emit(I::Builtin { dst: Some(5), builtin: Builtin::Split, args: Args(&[1, 2]) });
        f.emit(I::GetConst { dst: 6, from: 5, key: one });
        let inner = f.open(I::Collect { dst: 7, kind: Collection::Set, body: 0 });
        f.emit(I::Yield { value: 6 });
        f.close(inner);
        f.emit(I::CompareConst { relation: Relation::Equal, dst: None, left: 4, right: last });
        f.emit(I::Yield { value: 7 });
        f.emit(I::Yield { value: 5 });
        f.close(scan);
        f.close(collection);
        f.emit(I::Builtin { dst: Some(4), builtin: Builtin::Split, args: Args(&[1, 2]) });
        f.emit(I::ReturnLast { value: 3 });
    });
    assert_eq!(result.unwrap(), r#"[{"b"},["a","b","c","d"]]"#);
}

#[test]
fn fuel_and_arena_are_bounds() {
    let image = image(|b, f| {
        let numbers = list(b, &(0..1000).collect::<Vec<_>>());
        f.emit(I::Const { dst: 0, value: numbers });
        let collection = f.open(I::Collect { dst: 1, kind: Collection::Array, body: 0 });
        let scan = f.open(I::Scan { source: 0, key: None, value: Some(2), body: 0 });
        f.emit(I::Yield { value: 2 });
        f.close(scan);
        f.close(collection);
        f.emit(I::ReturnLast { value: 1 });
    });
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = [0; 32768];
    assert!(engine.evaluate(&mut Arena::new(&mut memory), "main", NO_INPUT).is_ok());
    let small = &mut Arena::new(&mut memory[..8192]);
    assert_eq!(engine.evaluate(small, "main", NO_INPUT).unwrap_err(), Fault::Arena);
    engine.set_fuel(500);
    assert_eq!(engine.evaluate(&mut Arena::new(&mut memory), "main", NO_INPUT).unwrap_err(), Fault::Fuel);
}

/// A policy with `mount_device` that remembers its target, denies a second time, and gives reasons.
fn mount_policy() -> Vec<u8> {
    let mut b = Builder::new(1);
    let keys = ["allowed", "metadata", "name", "action", "key", "value", "target", "devices", "add"];
    let [allowed, metadata, name, action, key, value, target, devices, add] = keys.map(|text| b.string(text));
    let mut f = FunctionBuilder::new("mount_device", 0);
    f.emit(I::Input { dst: 0 });
    f.emit(I::GetConst { dst: 1, from: 0, key: target });
    let rule = f.open(I::Block { body: 0 });
    let not = f.open(I::Not { body: 0 });
    f.emit(I::State { dst: 2 });
    f.emit(I::GetConst { dst: 3, from: 2, key: devices });
    f.emit(I::Get { dst: 4, from: 3, key: 1 });
    f.emit(I::Test { value: 4 });
    f.close(not);
    for (dst, value) in [(2, allowed), (3, metadata), (4, name), (5, action), (6, key), (7, value)] {
        f.emit(I::Const { dst, value });
    }
    f.emit(I::Const { dst: 8, value: devices });
    f.emit(I::Const { dst: 9, value: add });
    f.emit(I::Const { dst: 10, value: Const::TRUE });
    f.emit(I::Object { dst: 11, pairs: Args(&[4, 8, 5, 9, 6, 1, 7, 0]) });
    f.emit(I::Array { dst: 12, items: Args(&[11]) });
    f.emit(I::Object { dst: 13, pairs: Args(&[2, 10, 3, 12]) });
    f.emit(I::ReturnLast { value: 13 });
    f.close(rule);
    let denied = b.object(alloc::vec![(allowed, Const::FALSE)]).unwrap();
    f.emit(I::Const { dst: 2, value: denied });
    f.emit(I::ReturnLast { value: 2 });
    let mount = b.function(f);
    b.entry(Point::MountDevice.entry(), mount).unwrap();

    let texts = ["device already mounted", "a secret of the policy"].map(|text| b.string(text)).to_vec();
    let (texts, errors, rule) = (b.set(texts), b.string("errors"), b.string("rule"));
    let (point, reasons) = (b.string("mount_device"), b.object(alloc::vec![(errors, texts)]).unwrap());
    let mut f = FunctionBuilder::new("reason", 0);
    f.emit(I::Input { dst: 0 });
    f.emit(I::GetConst { dst: 1, from: 0, key: rule });
    f.emit(I::CompareConst { relation: Relation::Equal, dst: None, left: 1, right: point });
    f.emit(I::Const { dst: 2, value: reasons });
    f.emit(I::ReturnLast { value: 2 });
    let reason = b.function(f);
    b.entry("data.policy.reason", reason).unwrap();
    b.finish().unwrap()
}

fn target(path: &str) -> impl FnOnce(&mut Arena<'_>) -> Result<Value, Fault> {
    move |arena| {
        let path = arena.string(path)?;
        arena.object(&[("target", path), ("a", Value::Null), ("z", Value::Null)])
    }
}

fn metadata(engine: &Engine<'_>) -> String {
    let mut memory = [];
    let arena = Arena::new(&mut memory);
    show(&engine.view(&arena), engine.metadata())
}

#[test]
fn a_decision_changes_nothing_until_it_is_committed_and_an_undo_takes_that_back() {
    let image = mount_policy();
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = [0; 4096];
    let arena = &mut Arena::new(&mut memory);
    let fresh = r#"{"operatingsystem":{"ostype":"linux"}}"#;
    assert_eq!(metadata(&engine), fresh);

    let decision = engine.decide(arena, Point::MountDevice, target("/m1")).unwrap();
    assert_eq!(metadata(&engine), fresh);
    let undo = engine.commit(decision.delta).unwrap();
    let mounted =
        r#"{"devices":{"/m1":{"a":null,"target":"/m1","z":null}},"operatingsystem":{"ostype":"linux"}}"#;
    assert_eq!(metadata(&engine), mounted);
    engine.rollback(undo).unwrap();
    assert_eq!(metadata(&engine), fresh);

    let decision = engine.decide(arena, Point::MountDevice, target("/m1")).unwrap();
    let undo = engine.commit(decision.delta).unwrap();
    let second = engine.decide(arena, Point::MountDevice, target("/m2")).unwrap();
    engine.commit(second.delta).unwrap();
    assert_eq!(engine.rollback(undo), Err(super::StateError::Stale));
}

#[test]
fn a_denial_gives_reasons_of_the_fixed_vocabulary_only() {
    let image = mount_policy();
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = [0; 4096];
    let arena = &mut Arena::new(&mut memory);
    let decision = engine.decide(arena, Point::MountDevice, target("/m1")).unwrap();
    engine.commit(decision.delta).unwrap();
    let Err(Refusal::Denied(reasons)) = engine.decide(arena, Point::MountDevice, target("/m1")) else {
        panic!("a second mount was not denied");
    };
    assert_eq!(reasons.iter().collect::<Vec<_>>(), [super::Reason::DeviceAlreadyMounted]);
}

#[test]
fn a_point_that_the_policy_does_not_mention_is_refused() {
    let image = mount_policy();
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = [0; 4096];
    let arena = &mut Arena::new(&mut memory);
    let refusal = engine.decide(arena, Point::UnmountDevice, target("/m1")).unwrap_err();
    assert_eq!(refusal, Refusal::Undefined);
}

#[test]
fn an_answer_that_is_no_answer_is_refused() {
    let refused = |field: &'static str, value: fn(&mut Builder) -> Const| {
        let mut b = Builder::new(1);
        let (allowed, field, value) = (b.string("allowed"), b.string(field), value(&mut b));
        let pairs = if field == allowed {
            alloc::vec![(field, value)]
        } else {
            alloc::vec![(allowed, Const::TRUE), (field, value)]
        };
        let result = b.object(pairs).unwrap();
        let mut f = FunctionBuilder::new("f", 0);
        f.emit(I::Const { dst: 0, value: result });
        f.emit(I::ReturnLast { value: 0 });
        let f = b.function(f);
        b.entry(Point::GetProperties.entry(), f).unwrap();
        let image = b.finish().unwrap();
        let mut engine = Engine::new(&image).unwrap();
        let mut memory = [0; 1024];
        engine.decide(&mut Arena::new(&mut memory), Point::GetProperties, |arena| arena.object(&[])).err()
    };
    let no_result = Some(Refusal::Fault(Fault::Result));
    assert_eq!(refused("allowed", |_| Const::TRUE), None);
    assert_eq!(refused("allowed", |b| b.int(1)), no_result);
    assert_eq!(refused("allowed", |b| b.string("true")), no_result);
    assert_eq!(refused("env_list", |b| b.string("A=1")), no_result);
    assert_eq!(refused("env_list", |b| list(b, &[1])), no_result);
    assert_eq!(refused("allow_stdio_access", |b| b.int(1)), no_result);
    assert_eq!(refused("caps_list", |b| b.array(Vec::new())), no_result);
    assert!(refused("metadata", |b| b.string("x")).is_some());
    assert!(refused("metadata", |b| list(b, &[1])).is_some());
}

mod refused {
    //! What the verifier refuses, rule by rule.
    use super::*;

    fn rule(program: impl FnOnce(&mut Builder, &mut FunctionBuilder)) -> CodeRule {
        let mut builder = Builder::new(1);
        let mut code = FunctionBuilder::new("main", 0);
        program(&mut builder, &mut code);
        builder.function(code);
        match builder.finish() {
            Err(BuildError::Image(ImageError::Code { rule, .. })) => rule,
            other => panic!("not refused for its code: {other:?}"),
        }
    }

    #[test]
    fn a_register_that_is_not_written_on_every_way() {
        assert_eq!(rule(|_, f| f.emit(I::Test { value: 0 })), CodeRule::Unassigned);
        let after_block = |_: &mut Builder, f: &mut FunctionBuilder| {
            let block = f.open(I::Block { body: 0 });
            f.emit(I::State { dst: 0 });
            f.close(block);
            f.emit(I::Test { value: 0 });
        };
        assert_eq!(rule(after_block), CodeRule::Unassigned);
        let one_way_of_two = |_: &mut Builder, f: &mut FunctionBuilder| {
            let some = f.open(I::Some { body: 0 });
            let block = f.open(I::Block { body: 0 });
            f.emit(I::State { dst: 0 });
            f.emit(I::Done { depth: 1 });
            f.close(block);
            f.emit(I::State { dst: 1 });
            f.close(some);
            f.emit(I::Test { value: 0 });
        };
        assert_eq!(rule(one_way_of_two), CodeRule::Unassigned);
    }

    #[test]
    fn a_register_that_is_written_twice() {
        let twice = |_: &mut Builder, f: &mut FunctionBuilder| {
            f.emit(I::State { dst: 0 });
            let not = f.open(I::Not { body: 0 });
            f.emit(I::Input { dst: 0 });
            f.close(not);
        };
        assert_eq!(rule(twice), CodeRule::Reassigned);
    }

    #[test]
    fn a_call_of_itself_or_of_a_later_function() {
        let call = |function| {
            move |_: &mut Builder, f: &mut FunctionBuilder| {
                f.emit(I::Call { dst: None, function, args: Args(&[]) });
            }
        };
        assert_eq!(rule(call(0)), CodeRule::Callee);
        assert_eq!(rule(call(1)), CodeRule::Callee);
    }

    #[test]
    fn operands_that_refer_to_nothing() {
        let constant = |_: &mut Builder, f: &mut FunctionBuilder| {
            f.emit(I::Const { dst: 0, value: Const::new(Kind::Null, 1) });
        };
        assert_eq!(rule(constant), CodeRule::Constant);
        let pattern = |_: &mut Builder, f: &mut FunctionBuilder| {
            f.emit(I::State { dst: 0 });
            f.emit(I::Match { dst: None, text: 0, pattern: 0 });
        };
        assert_eq!(rule(pattern), CodeRule::Pattern);
        let arity = |_: &mut Builder, f: &mut FunctionBuilder| {
            f.emit(I::Builtin { dst: None, builtin: Builtin::Plus, args: Args(&[]) });
        };
        assert_eq!(rule(arity), CodeRule::Arity);
    }

    #[test]
    fn yields_and_ends_without_their_owner() {
        let yielded = |_: &mut Builder, f: &mut FunctionBuilder| {
            f.emit(I::State { dst: 0 });
            f.emit(I::Yield { value: 0 });
        };
        assert_eq!(rule(yielded), CodeRule::Yield);
        let wrong_kind = |_: &mut Builder, f: &mut FunctionBuilder| {
            f.emit(I::State { dst: 0 });
            let collect = f.open(I::Collect { dst: 1, kind: Collection::Object, body: 0 });
            f.emit(I::Yield { value: 0 });
            f.close(collect);
        };
        assert_eq!(rule(wrong_kind), CodeRule::Yield);
        assert_eq!(rule(|_, f| f.emit(I::Done { depth: 0 })), CodeRule::Done);
        let out_of_collect = |_: &mut Builder, f: &mut FunctionBuilder| {
            let some = f.open(I::Some { body: 0 });
            let collect = f.open(I::Collect { dst: 1, kind: Collection::Set, body: 0 });
            f.emit(I::Done { depth: 1 });
            f.close(collect);
            f.close(some);
        };
        assert_eq!(rule(out_of_collect), CodeRule::Done);
    }

    #[test]
    fn bodies_too_deep() {
        let deep = |_: &mut Builder, f: &mut FunctionBuilder| {
            let open: Vec<_> = (0..=MAX_NESTING).map(|_| f.open(I::Block { body: 0 })).collect();
            open.into_iter().rev().for_each(|open| f.close(open));
        };
        assert_eq!(rule(deep), CodeRule::Nesting);
    }

    #[test]
    fn bytes_that_are_not_the_image_alone() {
        let image = mount_policy();
        let error = |bytes: &[u8]| Engine::new(bytes).err();
        assert_eq!(error(&image), None);
        assert_eq!(error(&[]), Some(ImageError::Length));
        assert_eq!(error(&image[..image.len() - 4]), Some(ImageError::Length));
        assert_eq!(error(&[&image[..], &[0; 4]].concat()), Some(ImageError::Length));
        let mut other = image.clone();
        other[0] ^= 1;
        assert_eq!(error(&other), Some(ImageError::Magic));
        let mut other = image.clone();
        other[8] ^= 1;
        assert_eq!(error(&other), Some(ImageError::Version));
    }
}

/// A program that uses every part of the format.
fn everything() -> Vec<u8> {
    let mut b = Builder::new(7);
    b.source("policy.rego", [7; 32]).unwrap();
    let numbers = list(&mut b, &[5, -1, 3]);
    let (text, comma) = (b.string("x=1,y=2"), b.string(","));
    let (name, zero) = (b.string("name"), b.int(0));
    let empty = b.array(Vec::new());
    let nested = b.object(alloc::vec![(name, numbers), (comma, empty)]).unwrap();
    let nested = b.set(alloc::vec![nested, numbers, text, zero]);
    let (word, number) = (b.dfa(dfa("[a-z]=")), b.dfa(dfa("[0-9]+")));
    let assignment = b.dfa(dfa("[a-z]=[0-9]+"));
    let pattern = b.pattern(Pattern::Dfa(assignment.0));
    b.pattern(Pattern::Dfa(number.0));
    let member = b.pattern(Pattern::Member { dfa: word.0, pattern: 0 });
    let (members, numbers_of) = (alloc::vec![zero], list(&mut b, &[i64::from(member.0)]));
    let accepted = alloc::vec![b.set(members), numbers_of];
    let accepted = b.array(accepted);
    let [one_way, other_way] = ["x=1", "y=2"].map(|text| b.string(text));
    let table = b.object(alloc::vec![(one_way, accepted), (other_way, accepted)]).unwrap();
    let program = b.program(&steps(&[Err(0), Err(1), Ok("=1")]));
    let template = b.pattern(Pattern::Program(program));
    b.named(Class::WholeHoles, &alloc::format!("{}", Class::HOLE), Some(template));
    b.named(Class::Whole, "x=1,y=2", None);
    b.named(Class::Part, ",", Some(pattern));
    let find = [Step::Save { slot: 0, next: 1 }, Step::Save { slot: 1, next: 2 }, Step::Match];
    let find = b.program(&find);
    let find = b.pattern(Pattern::Program(find));
    b.named(Class::Find, ",", Some(find));
    let mut f = FunctionBuilder::new("helper", 2);
    f.emit(I::Builtin { dst: Some(2), builtin: Builtin::Split, args: Args(&[0, 1]) });
    let every = f.open(I::Every { source: 2, key: Some(3), value: Some(4), body: 0 });
    f.emit(I::Match { dst: None, text: 4, pattern: pattern.0 });
    f.close(every);
    f.emit(I::Return { value: 2 });
    let helper = b.function(f);
    let mut f = FunctionBuilder::new("memo", 0).memo();
    f.emit(I::Const { dst: 0, value: text });
    f.emit(I::Const { dst: 1, value: comma });
    f.emit(I::Call { dst: Some(2), function: helper.0, args: Args(&[0, 1]) });
    f.emit(I::ReturnLast { value: 2 });
    let memo = b.function(f);
    let mut f = FunctionBuilder::new("main", 0);
    f.emit(I::Call { dst: Some(0), function: memo.0, args: Args(&[]) });
    f.emit(I::Const { dst: 1, value: nested });
    f.emit(I::State { dst: 2 });
    let collect = f.open(I::Collect { dst: 3, kind: Collection::Object, body: 0 });
    let scan = f.open(I::Scan { source: 0, key: Some(4), value: Some(5), body: 0 });
    let some = f.open(I::Some { body: 0 });
    let block = f.open(I::Block { body: 0 });
    f.emit(I::MatchBy { dst: Some(6), text: 5, pattern: 4, part: true, holes: Args(&[]) });
    f.emit(I::Done { depth: 1 });
    f.close(block);
    f.emit(I::Match { dst: Some(6), text: 5, pattern: pattern.0 });
    f.close(some);
    let not = f.open(I::Not { body: 0 });
    f.emit(I::CompareConst { relation: Relation::Greater, dst: None, left: 4, right: zero });
    f.emit(I::Builtin { dst: None, builtin: Builtin::Member, args: Args(&[5, 1]) });
    f.close(not);
    f.emit(I::Find { dst: Some(7), text: 5, list: 5, table });
    let unused = f.open(I::Block { body: 0 });
    f.emit(I::Const { dst: 9, value: comma });
    f.emit(I::Const { dst: 10, value: zero });
    f.emit(I::Submatches { dst: 11, text: 5, pattern: 9, limit: 10 });
    f.emit(I::MatchBy { dst: None, text: 5, pattern: 5, part: false, holes: Args(&[5, 9]) });
    f.close(unused);
    f.emit(I::Set { dst: 8, items: Args(&[5, 6, 7, 4, 5]) });
    f.emit(I::YieldPair { key: 5, value: 8 });
    f.close(scan);
    f.close(collect);
    f.emit(I::Array { dst: 4, items: Args(&[0, 1, 2, 3]) });
    f.emit(I::Compare { relation: Relation::NotEqual, dst: Some(5), left: 4, right: 0 });
    f.emit(I::Object { dst: 6, pairs: Args(&[0, 1, 5, 4]) });
    let shape = b.array(alloc::vec![zero, one_way]);
    let system = b.string("operatingsystem");
    f.emit(I::StateGet { dst: 7, key: system });
    f.emit(I::Record { dst: 8, shape, values: Args(&[6, 7]) });
    f.emit(I::Return { value: 8 });
    f.emit(I::Leave);
    f.emit(I::Abort);
    let main = b.function(f);
    b.entry("main", main).unwrap();
    b.finish().unwrap()
}

#[test]
fn a_program_of_everything_runs() {
    assert_eq!(
        run(&everything(), NO_INPUT).unwrap(),
        concat!(
            r#"{0:{true:[["x=1","y=2"],{0,"x=1,y=2",[5,-1,3],{",":[],"name":[5,-1,3]}},"#,
            r#"{"operatingsystem":{"ostype":"linux"}},"#,
            r#"{"x=1":{false,true,0,"x=1"},"y=2":{false,true,1,"y=2"}}],"#,
            r#"["x=1","y=2"]:{0,"x=1,y=2",[5,-1,3],{",":[],"name":[5,-1,3]}}},"x=1":{"ostype":"linux"}}"#
        )
    );
}

#[test]
fn an_image_is_read_in_place_at_any_alignment() {
    let image = everything();
    for offset in 0..8 {
        let mut memory = alloc::vec![0; offset];
        memory.extend_from_slice(&image);
        assert_eq!(run(&memory[offset..], NO_INPUT), run(&image, NO_INPUT));
    }
}

mod mutated {
    //! Images that differ from a valid one are refused or run like any other: never a panic.
    use super::*;
    use proptest::prelude::*;

    fn try_all(bytes: &[u8]) {
        let Ok(mut engine) = Engine::new(bytes) else { return };
        engine.set_fuel(50_000);
        let mut memory = [0; 4096];
        let arena = &mut Arena::new(&mut memory);
        let names: Vec<String> = engine
            .image()
            .entries()
            .map(|(name, _)| String::from_utf8(engine.image().string(name).unwrap().to_vec()).unwrap())
            .collect();
        for name in names {
            if let Ok(Outcome::Value(value)) =
                engine.evaluate(arena, &name, |arena| target("/m1")(arena).map(Some))
            {
                let view = engine.view(arena);
                let mut fuel = Fuel(10_000);
                let _ = view.compare(value, value, &mut fuel);
                let _ = engine.delta(&view, value);
            }
        }
        for &point in Point::ALL {
            if let Ok(decision) = engine.decide(arena, point, target("/m1")) {
                let _ = engine.commit(decision.delta).map(|undo| engine.rollback(undo));
            }
        }
    }

    #[test]
    fn one_bit_anywhere() {
        for image in [everything(), mount_policy()] {
            for bit in 0..image.len() * 8 {
                let mut other = image.clone();
                other[bit / 8] ^= 1 << (bit % 8);
                try_all(&other);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn some_bytes(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut image = everything();
            for (index, byte) in edits {
                let at = index.index(image.len());
                image[at] = byte;
            }
            try_all(&image);
        }

        #[test]
        fn some_words(edits in prop::collection::vec((any::<prop::sample::Index>(), 0u32..64), 1..6)) {
            let mut image = everything();
            for (index, word) in edits {
                let at = index.index(image.len() / 4) * 4;
                image[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            try_all(&image);
        }

        #[test]
        fn arbitrary_bytes_after_the_header(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let header = everything();
            try_all(&[&header[..16], &bytes[..]].concat());
        }
    }
}

#[test]
fn instructions_encode_to_what_they_decode_from() {
    // Every word of code that decodes encodes to itself again.
    let image = everything();
    let image = Image::read(&image).unwrap();
    let mut rest = image.section(Section::Code);
    let mut count = 0;
    while let Some((instruction, after)) = I::decode(rest) {
        let mut encoded = Vec::new();
        instruction.encode(&mut encoded);
        assert_eq!(encoded, rest[..rest.len() - after.len()]);
        (rest, count) = (after, count + 1);
    }
    assert_eq!((rest.len(), count), (0, 37));
}
