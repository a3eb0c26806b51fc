//! What the guest gives a container because the policy says so: every setting arrives, and what is not understood is a denial.

use super::*;
use crate::filter::Instruction as Filtering;
use crate::gate::settings::LIMIT_NAMES;
use crate::wire::Resources as Asked;

/// A part of an answer.
enum Is<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Text(&'a str),
    List(Vec<Is<'a>>),
    Object(Vec<(&'a str, Is<'a>)>),
}

use Is::{Bool, Int, Null, Text};

fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Is<'a>)>) -> Is<'a> {
    Is::Object(fields.into_iter().collect())
}

impl Is<'_> {
    fn build(&self, builder: &mut Builder) -> Const {
        match self {
            Null => builder.null(),
            Bool(value) => builder.bool(*value),
            Int(value) => builder.int(*value),
            Text(value) => builder.string(value),
            Is::List(items) => {
                let items = items.iter().map(|item| item.build(builder)).collect();
                builder.array(items)
            }
            Is::Object(fields) => {
                let pair = |(name, value): &(&str, Is<'_>)| (builder.string(name), value.build(builder));
                let pairs = fields.iter().map(pair).collect();
                builder.object(pairs).unwrap()
            }
        }
    }
}

/// What the gate makes of an answer with this field.
fn read(field: &str, value: Is<'_>) -> Result<(Settings, PodSettings), Reason> {
    let answer = |builder: &mut Builder| {
        let value = value.build(builder);
        answer(builder, true, Some((field, value)))
    };
    let mut gate = gate_with(&answering(&[(Point::CreateContainer.entry(), &answer)]));
    let decision = gate.decide(Point::CreateContainer, &no_value, &|input| input.object(&[])).unwrap();
    gate.settings(&decision).map_err(|refusal| refusal.reason)
}

fn is_unclear(field: &str, value: Is<'_>) -> bool {
    matches!(read(field, value), Err(Reason::Denied { how: Denied::Fault, .. }))
}

#[test]
fn a_containers_settings_arrive() {
    for value in [false, true] {
        let (settings, _) = read("settings", object([("read_only_root", Bool(value))])).unwrap();
        assert_eq!((settings.read_only_root, settings.share_process_namespace), (value, false));
        let (settings, _) = read("settings", object([("share_process_namespace", Bool(value))])).unwrap();
        assert_eq!((settings.read_only_root, settings.share_process_namespace), (false, value));
    }
    assert!(is_unclear("settings", object([("read_only_root", Int(1))])));
    assert!(is_unclear("settings", Bool(true)));
}

#[test]
fn c15_resource_limits_are_whole_known_and_the_softer_is_not_the_harder() {
    let limit = |soft, hard| object([("soft", soft), ("hard", hard)]);
    let limits = |name, limit| object([("rlimits", object([(name, limit)]))]);
    for (at, name) in LIMIT_NAMES.iter().enumerate() {
        let (settings, _) = read("settings", limits(name, limit(Int(7), Int(9)))).unwrap();
        let mut expected = [None; LIMIT_NAMES.len()];
        expected[at] = Some((Some(7), Some(9)));
        assert_eq!(settings.limits.0, expected, "{name}");
    }
    let nofile = |limit| read("settings", limits("nofile", limit)).map(|(settings, _)| settings.limits.0[9]);
    assert_eq!(nofile(limit(Int(7), Int(7))), Ok(Some((Some(7), Some(7)))));
    assert_eq!(nofile(limit(Int(7), Null)), Ok(Some((Some(7), None))));
    assert_eq!(nofile(limit(Null, Null)), Ok(Some((None, None))));
    for unclear in [
        limit(Int(8), Int(7)),
        limit(Null, Int(7)),
        limit(Int(-1), Int(7)),
        limit(Int(1), Text("7")),
        object([("soft", Int(1))]),
        object([("hard", Int(1))]),
        object([("soft", Int(1)), ("hard", Int(1)), ("more", Int(1))]),
        Null,
    ] {
        assert!(is_unclear("settings", limits("nofile", unclear)));
    }
    assert!(is_unclear("settings", limits("files", limit(Int(1), Int(1)))));
}

#[test]
fn what_the_pod_is_given_arrives() {
    let whole = object([
        ("hostname", Text("web-0")),
        ("sysctls", object([("net.core.somaxconn", Text("1024"))])),
        ("memory", Int(64 << 20)),
        ("cpu", Int(50)),
        ("processes", Int(100)),
    ]);
    let (_, pod) = read("pod", whole).unwrap();
    assert_eq!(pod.hostname.unwrap().as_str(), "web-0");
    let sysctls: Vec<_> =
        pod.sysctls.iter().map(|sysctl| (sysctl.path.to_str().unwrap(), &*sysctl.value)).collect();
    assert_eq!(sysctls, [("net/core/somaxconn", "1024")]);
    let resources = Asked { memory: Some(64 << 20), cpu: Some(50), processes: Some(100), paused: false };
    assert_eq!(pod.resources.get(), resources);
    let (_, pod) = read("pod", object([])).unwrap();
    assert!(pod.hostname.is_none() && pod.sysctls.is_empty());
    for (name, unclear) in [
        ("hostname", Text("a.b")),
        ("hostname", Int(1)),
        ("sysctls", object([("kernel.core_pattern", Text("x"))])),
        ("sysctls", object([("net.core.somaxconn", Int(1))])),
        ("memory", Int(0)),
        ("cpu", Int(1 << 32)),
        ("processes", Int(1 << 32)),
        ("more", Int(1)),
    ] {
        assert!(is_unclear("pod", object([(name, unclear)])), "{name}");
    }
}

#[test]
fn c04_a_filter_is_a_list_of_words_that_make_one() {
    let word = Filtering::answer(0x7fff_0000).word();
    let (settings, _) = read("seccomp", Is::List(vec![Int(word)])).unwrap();
    assert_eq!(settings.filter.unwrap().instructions()[0].word(), word);
    let (settings, _) = read("settings", object([])).unwrap();
    assert!(settings.filter.is_none());
    assert!(is_unclear("seccomp", Is::List(vec![])));
    assert!(is_unclear("seccomp", Is::List(vec![Text("x")])));
    assert!(is_unclear("seccomp", Bool(true)));
}
