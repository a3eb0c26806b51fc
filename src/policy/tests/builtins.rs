//! Each builtin and its answers, which are OPA's or, where it is written so, a fault.

use alloc::collections::BTreeSet;

use super::super::builtins::call;
use super::super::machine::Context;
use super::values::{Model, PLACES, World, models};
use super::*;
use Builtin as B;

/// Builtin, arguments and result: a value, nothing for undefined, or the name of a fault.
type Case = (Builtin, &'static str, &'static str);
/// A value, undefined or a fault.
type Answer = Result<Option<Model>, &'static str>;

const ARITHMETIC: &[Case] = &[
    (B::Plus, "1, 2", "3"),
    (B::Plus, "9223372036854775807, 1", "Overflow"),
    (B::Minus, "5, 7", "-2"),
    (B::Minus, "-9223372036854775808, 1", "Overflow"),
    (B::Minus, "{1, 2, 3}, {2, 4}", "{1, 3}"),
    (B::Mul, "6, -7", "-42"),
    (B::Mul, "4611686018427387904, 2", "Overflow"),
    (B::Div, "-42, 7", "-6"),
    (B::Div, "0, 7", "0"),
    (B::Div, "43, 7", "Unsupported"),
    (B::Div, "1, 0", ""),
    (B::Div, "-9223372036854775808, -1", "Overflow"),
    (B::Rem, "7, 3", "1"),
    (B::Rem, "-7, 3", "-1"),
    (B::Rem, "7, -3", "1"),
    (B::Rem, "7, 0", ""),
    (B::Rem, "-9223372036854775808, -1", "0"),
    (B::BitsAnd, "12, 10", "8"),
    (B::BitsAnd, "-1, 7", "7"),
    (B::BitsOr, "12, 10", "14"),
    (B::BitsOr, "-8, 1", "-7"),
    (B::BitsNegate, "0", "-1"),
    (B::BitsNegate, "-129", "128"),
];

const SETS: &[Case] = &[
    (B::Or, "{1, 3}, {2}", "{1, 2, 3}"),
    (B::Or, "{1}, {2}", "{1, 2}"),
    (B::Or, "{2}, {1}", "{1, 2}"),
    (B::Or, "{1, 2}, {1, 2}", "{1, 2}"),
    (B::Or, "set(), {[1], {'a': 1}}", "{[1], {'a': 1}}"),
    (B::Or, "{'a', 'b'}, {'aa', 'c', 'd', 'e'}", "{'a', 'aa', 'b', 'c', 'd', 'e'}"),
    (B::Or, "{'aa', 'c', 'd', 'e'}, {'a', 'b'}", "{'a', 'aa', 'b', 'c', 'd', 'e'}"),
    (B::And, "{1, 2, 3}, {2, 3, 4}", "{2, 3}"),
    (B::And, "{1, 2}, {3}", "set()"),
    (B::And, "{'a', 'b', 'c'}, {'c'}", "{'c'}"),
    (B::Minus, "{'a', 'b', 'c'}, {'c'}", "{'a', 'b'}"),
    (B::Minus, "{1}, {0, 2, 3}", "{1}"),
    (B::Minus, "set(), {1}", "set()"),
    (B::Union, "{{1}, {2, 3}, {3}}", "{1, 2, 3}"),
    (B::Union, "{{1}}", "{1}"),
    (B::Union, "set()", "set()"),
    (B::Union, "{{1}, [2]}", ""),
    (B::Intersection, "{{1, 2}, {2, 3}, {2}}", "{2}"),
    (B::Intersection, "{{1}, {2}}", "set()"),
    (B::Intersection, "{{1, 2}}", "{1, 2}"),
    (B::Intersection, "set()", "set()"),
    (B::Intersection, "{1}", ""),
];

const COLLECTIONS: &[Case] = &[
    (B::Member, "'v', ['u', 'v']", "true"),
    (B::Member, "'v', ['u', 'w']", "false"),
    (B::Member, "1, {1, 2}", "true"),
    (B::Member, "3, {1, 2}", "false"),
    (B::Member, "'v', {'k': 'v'}", "true"),
    (B::Member, "'k', {'k': 'v'}", "false"),
    (B::Member, "[1], [[2], [1]]", "true"),
    (B::Member, "'v', 'v'", "false"),
    (B::Member, "null, []", "false"),
    (B::MemberWithKey, "'k', 'v', {'j': 'v', 'k': 'v'}", "true"),
    (B::MemberWithKey, "'k', 'w', {'j': 'w', 'k': 'v'}", "false"),
    (B::MemberWithKey, "'l', 'v', {'j': 'v', 'k': 'v'}", "false"),
    (B::MemberWithKey, "1, 'b', ['a', 'b']", "true"),
    (B::MemberWithKey, "0, 'b', ['a', 'b']", "false"),
    (B::MemberWithKey, "2, null, ['a', 'b']", "false"),
    (B::MemberWithKey, "1, 1, {1}", "true"),
    (B::MemberWithKey, "1, 2, {1, 2}", "false"),
    (B::MemberWithKey, "1, 1, 1", "false"),
    (B::ArrayConcat, "[1, 'a'], [[2], 3]", "[1, 'a', [2], 3]"),
    (B::ArrayConcat, "[], []", "[]"),
    (B::ArrayConcat, "[1, 2, 3, 4], [5]", "[1, 2, 3, 4, 5]"),
    (B::Count, "[1, 2]", "2"),
    (B::Count, "{'a': 1}", "1"),
    (B::Count, "{1, 2, 3}", "3"),
    (B::Count, "'é€😀a'", "4"),
    (B::Count, "''", "0"),
    (B::IsNull, "null", "true"),
    (B::IsNull, "false", "false"),
    (B::IsNull, "[]", "false"),
    (B::Max, "[2, 3, 1]", "3"),
    (B::Max, "[2, 'a', {'b'}, ['c']]", "{'b'}"),
    (B::Max, "{1, 2}", "2"),
    (B::Max, "[]", ""),
    (B::ObjectGet, "{'a': 1, 'b': 2}, 'b', 'none'", "2"),
    (B::ObjectGet, "{'a': 1, 'b': 2}, 'c', 'none'", "'none'"),
    (B::ObjectGet, "{'a': {'b': [5, 6]}}, ['a', 'b', 1], 'none'", "6"),
    (B::ObjectGet, "{'a': {'b': [5, 6]}}, ['a', 'c', 1], 'none'", "'none'"),
    (B::ObjectGet, "{'a': {'b': [5, 6]}}, ['a', 'b', 2], 'none'", "'none'"),
    (B::ObjectGet, "{'a': 1}, [], 'none'", "{'a': 1}"),
    (B::ObjectGet, "{[1]: 1, 2: {'x'}}, [2, 'x'], 'none'", "'x'"),
    (B::ObjectGet, "{[1]: 1}, [1], 'none'", "'none'"),
    (B::ObjectKeys, "{'b': 1, 'a': 2, 3: 4}", "{'a', 'b', 3}"),
    (B::ObjectKeys, "{}", "set()"),
    (B::ObjectUnion, "{'a': 1, 'z': 2}, {'m': 3}", "{'a': 1, 'm': 3, 'z': 2}"),
    (B::ObjectUnion, "{'m': 3}, {'a': 1, 'z': 2}", "{'a': 1, 'm': 3, 'z': 2}"),
    (B::ObjectUnion, "{'a': 1}, {'b': 2, 'c': 3, 'd': 4}", "{'a': 1, 'b': 2, 'c': 3, 'd': 4}"),
    (B::ObjectUnion, "{'a': 1, 'b': 2}, {'c': 3, 'd': 4}", "{'a': 1, 'b': 2, 'c': 3, 'd': 4}"),
    (
        B::ObjectUnion,
        "{'a': {'b': 1, 'c': [1]}}, {'a': {'c': [2], 'd': 3}}",
        "{'a': {'b': 1, 'c': [2], 'd': 3}}",
    ),
    (B::ObjectUnion, "{'a': {'b': 1}, 'b': 2}, {'a': 1, 'b': {'x': 1}}", "{'a': 1, 'b': {'x': 1}}"),
    (
        B::ObjectUnion,
        "{'a': {'b': {'c': 1}}, 'x': {'y': 1}}, {'a': {'b': {'d': 2}}, 'x': {'z': 2}}",
        "{'a': {'b': {'c': 1, 'd': 2}}, 'x': {'y': 1, 'z': 2}}",
    ),
    (B::ObjectUnion, "{}, {}", "{}"),
];

const TEXTS: &[Case] = &[
    (B::Base64UrlEncode, "''", "''"),
    (B::Base64UrlEncode, "'a>?>'", "'YT4_Pg=='"),
    (B::Base64UrlEncode, "'a>~'", "'YT5-'"),
    (B::Base64UrlEncode, "'abcde'", "'YWJjZGU='"),
    (B::Concat, "', ', ['a', 'b', 'c']", "'a, b, c'"),
    (B::Concat, "'', ['a', 'b']", "'ab'"),
    (B::Concat, "'-', {'b', 'a'}", "'a-b'"),
    (B::Concat, "'-', ['a']", "'a'"),
    (B::Concat, "'-', []", "''"),
    (B::Concat, "'-', ['a', 1]", ""),
    (B::Contains, "'abcab', 'cab'", "true"),
    (B::Contains, "'aab', 'ab'", "true"),
    (B::Contains, "'ab', 'abc'", "false"),
    (B::Contains, "'abc', 'ac'", "false"),
    (B::Contains, "'a', ''", "true"),
    (B::Contains, "'', ''", "true"),
    (B::EndsWith, "'abc', 'bc'", "true"),
    (B::EndsWith, "'abc', 'ab'", "false"),
    (B::EndsWith, "'abc', ''", "true"),
    (B::StartsWith, "'abc', 'ab'", "true"),
    (B::StartsWith, "'abc', 'bc'", "false"),
    (B::StartsWith, "'abc', 'abcd'", "false"),
    (B::IndexOf, "'é€aab', 'ab'", "3"),
    (B::IndexOf, "'abc', 'a'", "0"),
    (B::IndexOf, "'abc', 'd'", "-1"),
    (B::IndexOf, "'abc', ''", ""),
    (B::Lower, "'ÀİẞΣaZ9'", "'àißσaz9'"),
    (B::Before, "'key=value=x', '='", "'key'"),
    (B::Before, "'key=value', '=v'", "'key'"),
    (B::Before, "'key', '='", "'key'"),
    (B::Before, "'=key', '='", "''"),
    (B::Before, "'key', ''", ""),
    (B::Replace, "'sandbox://a/sandbox://', 'sandbox://', '/s'", "'/sa//s'"),
    (B::Replace, "'xaby', 'ab', 'c'", "'xcy'"),
    (B::Replace, "'abxyzab', 'ab', ''", "'xyz'"),
    (B::Replace, "'abcdefab', 'ab', '-'", "'-cdef-'"),
    (B::Replace, "'aaa', 'aa', 'b'", "'ba'"),
    (B::Replace, "'aaa', 'b', 'c'", "'aaa'"),
    (B::Replace, "'aaa', '', 'c'", "Unsupported"),
    (B::Replace, "'a', 'b', 1", ""),
    (B::Split, "'A=b=c', '='", "['A', 'b', 'c']"),
    (B::Split, "'a::b:', '::'", "['a', 'b:']"),
    (B::Split, "'=', '='", "['', '']"),
    (B::Split, "'', '='", "['']"),
    (B::Split, "'aé€😀', ''", "['a', 'é', '€', '😀']"),
    (B::Split, "'', ''", "[]"),
    (B::Substring, "'abcdef', 2, 3", "'cde'"),
    (B::Substring, "'abcdef', 4, 3", "'ef'"),
    (B::Substring, "'abcdef', 2, -1", "'cdef'"),
    (B::Substring, "'abcdef', 6, -1", "''"),
    (B::Substring, "'abcdef', 9, 2", "''"),
    (B::Substring, "'abcdef', -1, 2", ""),
    (B::Substring, "'añ€b', 1, 2", "'ñ€'"),
    (B::Substring, "'añ€b', 1, -1", "'ñ€b'"),
    (B::Substring, "'añ€b', 3, 9", "'b'"),
    (B::Substring, "'añ€b', 4, 1", "''"),
    (B::Substring, "'añ€b', -1, 1", ""),
    (B::Substring, "'abc', 1, null", ""),
    (B::TrimPrefix, "'abcde', 'ab'", "'cde'"),
    (B::TrimPrefix, "'abcde', 'bc'", "'abcde'"),
    (B::TrimPrefix, "'abcde', ''", "'abcde'"),
    (B::TrimPrefix, "'ab', 'ab'", "''"),
    (B::CountBefore, "['a=1', 'b=1', 'a=2', 'a', 'c', '=', 7, null], '='", "4"),
    (B::CountBefore, "{'x': 'a::1', 'y': 'a:1', 'z': 'a::2'}, '::'", "2"),
    (B::CountBefore, "{'a=1', 'a=2', 'b'}, '='", "2"),
    (B::CountBefore, "[], '='", "0"),
    (B::CountBefore, "'a=1', '='", "0"),
    (B::CountBefore, "null, '='", "0"),
    (B::CountBefore, "['a'], ''", ""),
];

const NUMBERS: &[Case] = &[
    (B::ToNumber, "null", "0"),
    (B::ToNumber, "false", "0"),
    (B::ToNumber, "true", "1"),
    (B::ToNumber, "-7", "-7"),
    (B::ToNumber, "'01'", "1"),
    (B::ToNumber, "'-120'", "-120"),
    (B::ToNumber, "'-9223372036854775808'", "-9223372036854775808"),
    (B::ToNumber, "'9223372036854775808'", "Overflow"),
    (B::ToNumber, "'92233720368547758070'", "Overflow"),
    (B::SemverIsValid, "1", "false"),
    (B::SemverIsValid, "null", "false"),
];

/// What `ParseFloat` of Go takes, or might, and is no integer in digits.
const FLOATS: &[&str] = &[
    "1.5",
    "-1.5",
    "+1",
    "1.",
    ".5",
    "1e5",
    "1E5",
    "1e+5",
    "1e-5",
    "1.5e5",
    ".5e5",
    "1.e5",
    "inf",
    "+Inf",
    "-INFINITY",
    "NaN",
    "0x1p4",
    "0X1",
    "1_000",
];
const NO_FLOATS: &[&str] = &[
    "", " 1", "1 ", "abc", "x", "_", "-", "+", ".", "e", "e5", ".e5", "1e", "1e+", "1e5y", "1.5y", "1a",
    "--1", "inf1", "in", "1.5.5",
];

const VERSIONS: &[&str] =
    &["1.0.0", "v1.0.0", "01.2.3", "1.0.0-a", "1.0.0-a-b.0", "1.0.0+b-1.x", "1.0.0-a.1+b", "1.0.0---"];
const NO_VERSIONS: &[&str] = &[
    "",
    "1",
    "1.0",
    "1.0.0.0",
    "1..0",
    "1.0.x",
    "vv1.0.0",
    "V1.0.0",
    "1.0.0-",
    "1.0.0+",
    "1.0.0-a..b",
    "1.0.0-a_b",
    "1.0.0-a.é",
    "1.0.0+a+b",
    "1.0.18446744073709551616",
    " 1.0.0",
];
/// In ascending order; those of a line are the same.
const ORDER: &[&[&str]] = &[
    &["0.9.12"],
    &["0.10.0", "v0.10.0", "00.010.0", "0.10.0+build"],
    &["1.0.0-0", "1.0.0-00"],
    &["1.0.0-2"],
    &["1.0.0-10", "1.0.0-10+b"],
    &["1.0.0--"],
    &["1.0.0-alpha"],
    &["1.0.0-alpha.1"],
    &["1.0.0-alpha.beta"],
    &["1.0.0-beta"],
    &["1.0.0-beta.2"],
    &["1.0.0-beta.11", "1.0.0-beta.011"],
    &["1.0.0-rc.1"],
    &["1.0.0", "v1.0.0", "1.0.0+a-b"],
    &["1.0.1-x"],
    &["1.2.3"],
    &["1.3.4"],
    &["2.0.0"],
    &["18446744073709551615.0.0"],
];

const FORMATS: &[Case] = &[
    (B::Sprintf, "'%d%% %s %v', [1, 'a', [1, 'a']]", "'1% a [1, \"a\"]'"),
    (B::Sprintf, "'%s %d %v %d', [1, 'a', 'b']", "'%!s(int64=1) %!d(string=a) b %!d(MISSING)'"),
    (B::Sprintf, "'%v|%s', []", "'%!v(MISSING)|%!s(MISSING)'"),
    (
        B::Sprintf,
        "'%d %d %d %d', [0, -5, -9223372036854775808, 9223372036854775807]",
        "'0 -5 -9223372036854775808 9223372036854775807'",
    ),
    (B::Sprintf, "'%v %v %v', [null, true, false]", "'null true false'"),
    (B::Sprintf, "'%s %d', [null, [true]]", "'null %!d(string=[true])'"),
    (B::Sprintf, "'%v %v %v %v', [[], {}, set(), {1}]", "'[] {} set() {1}'"),
    (B::Sprintf, "'%v', [{'a': 1, 'b': 'c'}]", "'{\"a\": 1, \"b\": \"c\"}'"),
    (B::Sprintf, "'%v', [{'a', [1, {'x': {'y'}}]}]", "'{\"a\", [1, {\"x\": {\"y\"}}]}'"),
    (B::Sprintf, "'%v', [[' ~!#']]", "'[\" ~!#\"]'"),
    (B::Sprintf, "'é%v', ['é\"\\\n']", "'éé\"\\\n'"),
    (B::Sprintf, "'%v', [['é']]", "Unsupported"),
    (B::Sprintf, "'%v', [['a\"']]", "Unsupported"),
    (B::Sprintf, "'%v', [{'\\': 1}]", "Unsupported"),
    (B::Sprintf, "'%v', [{1: '\n'}]", "Unsupported"),
    (B::Sprintf, "'%v', [{'\u{7f}'}]", "Unsupported"),
    (B::Sprintf, "'%x', [1]", "Unsupported"),
    (B::Sprintf, "'100%', []", "Unsupported"),
    (B::Sprintf, "'a', [1]", "Unsupported"),
    (B::Sprintf, "'%v', [1, 2]", "Unsupported"),
    (B::Sprintf, "'', []", "''"),
];

/// Whatever a builtin does, it takes fewer steps than this here.
const ENOUGH: u64 = 10_000;

/// What a builtin answers to some of the world's values: each in the next of the places from `place` on, or all there.
fn answer(
    world: &World,
    of: Builtin,
    args: core::ops::Range<usize>,
    place: usize,
    same: bool,
) -> Result<Option<Model>, Fault> {
    let mut memory = alloc::vec![0x5a; 16 << 10];
    let mut arena = Arena::new(&mut memory);
    let mut values = [Value::Null; 3];
    for (value, index) in values.iter_mut().zip(args) {
        *value = world.value(index, (place + if same { 0 } else { index }) % PLACES, &mut arena);
    }
    let mut fuel = Fuel(ENOUGH);
    let context = &mut context(world, &mut arena, &mut fuel);
    let value = call(context, of, values)?;
    // What is made later must not be where the value is.
    context.arena.append(&[0xff; 512])?;
    Ok(value.map(|value| Model::read(&context.view(), value)))
}

fn context<'a, 'm>(world: &'a World, arena: &'a mut Arena<'m>, fuel: &'a mut Fuel) -> Context<'a, 'm> {
    Context { image: world.engine.image(), state: &world.engine.state, arena, fuel, fragments: &[] }
}

/// Asks for the answers in all places.
fn answers(cases: &[(Builtin, Vec<Model>, Answer)]) {
    let world = World::new(cases.iter().flat_map(|(_, args, _)| args.clone()).collect());
    let mut from = 0;
    for (of, args, expected) in cases {
        for (place, same) in (0..PLACES).flat_map(|place| [(place, false), (place, true)]) {
            let answer = answer(&world, *of, from..from + args.len(), place, same);
            let answer = answer.map_err(|fault| alloc::format!("{fault:?}"));
            assert_eq!(
                answer.as_ref().map_err(|fault| &**fault),
                expected.as_ref().map_err(|fault| *fault),
                "{of:?} {args:?}"
            );
        }
        from += args.len();
    }
}

#[test]
fn each_builtin_has_its_answers_wherever_its_arguments_are() {
    for cases in [ARITHMETIC, SETS, COLLECTIONS, TEXTS, NUMBERS, FORMATS] {
        let read = |&(of, args, expected): &Case| {
            let fault = expected.starts_with(|first: char| first.is_ascii_uppercase());
            (of, models(args), if fault { Err(expected) } else { Ok(models(expected).pop()) })
        };
        answers(&cases.iter().map(read).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_a_number_or_a_version_is_as_for_go_and_opa() {
    let text = |text: &&str| Model::String((*text).into());
    let mut cases = Vec::new();
    let floats = FLOATS.iter().map(|float| (float, Err("Unsupported")));
    for (number, expected) in floats.chain(NO_FLOATS.iter().map(|other| (other, Ok(None)))) {
        cases.push((B::ToNumber, Vec::from([text(number)]), expected));
    }
    let versions = VERSIONS.iter().map(|version| (version, true));
    for (version, valid) in versions.chain(NO_VERSIONS.iter().map(|other| (other, false))) {
        cases.push((B::SemverIsValid, Vec::from([text(version)]), Ok(Some(Model::Bool(valid)))));
        let same = valid.then_some(Model::Int(0));
        cases.push((B::SemverCompare, Vec::from([text(version), text(version)]), Ok(same)));
        if !valid {
            cases.push((B::SemverCompare, Vec::from([text(&"1.0.0"), text(version)]), Ok(None)));
        }
    }
    answers(&cases);
    let order =
        ORDER.iter().enumerate().flat_map(|(rank, same)| same.iter().map(move |version| (rank, version)));
    let (ranks, versions): (Vec<_>, Vec<_>) = order.unzip();
    let world = World::new(versions.iter().map(text).collect());
    let mut memory = alloc::vec![0; 1 << 10];
    for (a, b) in (0..ranks.len()).flat_map(|a| (0..ranks.len()).map(move |b| (a, b))) {
        let mut arena = Arena::new(&mut memory);
        let args = [world.value(a, 0, &mut arena), world.value(b, 0, &mut arena), Value::Null];
        let answer = call(&mut context(&world, &mut arena, &mut Fuel(ENOUGH)), B::SemverCompare, args);
        let Ok(Some(Value::Int(answer))) = answer else { panic!("{} {}", versions[a], versions[b]) };
        assert_eq!(answer, ranks[a].cmp(&ranks[b]) as i64, "{} {}", versions[a], versions[b]);
    }
}

#[test]
fn arguments_of_other_types_are_undefined() {
    // Of null, a boolean, an integer, a string, an array, an object, a set: which a builtin answers to.
    let world = World::new(models("null, true, 3, 'a', ['%v'], {'k': 'v'}, {{'m'}}"));
    let kinds = "nbisaot";
    let takes = |of: Builtin| match of {
        B::Plus | B::Mul | B::Div | B::Rem | B::BitsAnd | B::BitsOr => &["ii"][..],
        B::Minus => &["ii", "tt"],
        B::Or | B::And => &["tt"],
        B::Member => &["**"],
        B::MemberWithKey => &["***"],
        B::ArrayConcat => &["aa"],
        B::Base64UrlEncode | B::Lower => &["s"],
        B::BitsNegate => &["i"],
        // The members of the set are no strings.
        B::Concat => &["sa"],
        B::Contains
        | B::EndsWith
        | B::IndexOf
        | B::SemverCompare
        | B::Before
        | B::Split
        | B::StartsWith
        | B::TrimPrefix => &["ss"],
        B::Count => &["s", "a", "o", "t"],
        B::Intersection | B::Union => &["t"],
        B::IsNull | B::SemverIsValid => &["*"],
        B::Max => &["a", "t"],
        B::ObjectGet => &["o**"],
        B::ObjectKeys => &["o"],
        B::ObjectUnion => &["oo"],
        B::Replace => &["sss"],
        B::Sprintf => &["sa"],
        B::Substring => &["sii"],
        B::ToNumber => &["n", "b", "i", "s"],
        B::CountBefore => &["*s"],
    };
    let kind = |index: usize| kinds.as_bytes()[index];
    for &of in Builtin::ALL {
        for args in 0..7usize.pow(of.arity() as u32) {
            let args: Vec<usize> = (0..of.arity() as u32).map(|place| args / 7usize.pow(place) % 7).collect();
            let mut memory = [0; 1024];
            let mut arena = Arena::new(&mut memory);
            let mut values = [Value::Null; 3];
            let of_args = values.iter_mut().zip(&args);
            of_args.for_each(|(value, &index)| *value = world.value(index, 2, &mut arena));
            let answer = call(&mut context(&world, &mut arena, &mut Fuel(ENOUGH)), of, values);
            let fits =
                |signature: &&str| signature.bytes().zip(&args).all(|(s, &arg)| s == b'*' || s == kind(arg));
            let taken = takes(of).iter().any(fits);
            // The strings are neither numbers nor versions, and the format has no verb for the array.
            let expected = match of {
                B::Sprintf if taken => Err(Fault::Unsupported),
                B::SemverCompare => Ok(false),
                B::ToNumber => Ok(taken && args[0] != 3),
                _ => Ok(taken),
            };
            assert_eq!(answer.map(|answer| answer.is_some()), expected, "{of:?} {args:?}");
        }
    }
}

#[test]
fn before_finds_the_first_of_a_byte_at_any_place() {
    let world = World::new(Vec::new());
    for len in 0..20usize {
        for (at, other) in (0..=len).flat_map(|at| [b'<', b'>', 0, b'\x7f', b'}'].map(|other| (at, other))) {
            let mut memory = [0; 256];
            let mut arena = Arena::new(&mut memory);
            let text: String =
                (0..len).map(|n| if n == at || n > at + 1 { '=' } else { other as char }).collect();
            let list =
                Model::Array(Vec::from([&text, &text[..at.min(len)]].map(|text| Model::String(text.into()))));
            let list = list.in_arena(&mut arena);
            let [text, separator] = [&*text, "="].map(|text| arena.string(text).unwrap());
            let fuel = &mut Fuel(ENOUGH);
            let context = &mut context(&world, &mut arena, fuel);
            let Ok(Some(Value::String(before))) = call(context, B::Before, [text, separator, Value::Null])
            else {
                panic!()
            };
            assert_eq!(before.len(), at, "{len} {at} {other}");
            let count = call(context, B::CountBefore, [list, separator, Value::Null]);
            assert!(matches!(count, Ok(Some(Value::Int(1)))), "{len} {at} {other}");
        }
    }
}

#[test]
fn parts_before_a_separator_are_counted_once_each() {
    let world = World::new(Vec::new());
    let mut memory = alloc::vec![0; 16 << 10];
    for count in (0..70).step_by(3) {
        for modulus in [1, 7, 32, 1000] {
            // Scrambled, so that places in the table are taken by others.
            let keys: Vec<String> =
                (0..count).map(|n| alloc::format!("{:x}", n * 7919 % modulus * 0x9e37)).collect();
            let texts = keys.iter().enumerate().map(|(n, key)| Model::String(alloc::format!("{key}=={n}")));
            let arena = &mut Arena::new(&mut memory);
            let args =
                [Model::Array(texts.collect()).in_arena(arena), arena.string("==").unwrap(), Value::Null];
            let answer = call(&mut context(&world, arena, &mut Fuel(ENOUGH)), B::CountBefore, args);
            let Ok(Some(Value::Int(answer))) = answer else { panic!("{answer:?}") };
            assert_eq!(answer as usize, keys.iter().collect::<BTreeSet<_>>().len(), "{count} {modulus}");
        }
    }
}

#[test]
fn values_too_deep_are_no_arguments() {
    let world = World::new(Vec::new());
    let mut memory = alloc::vec![0; 16 << 10];
    let mut deep = |of: Builtin, levels: usize, wrap: fn(Model) -> Model| {
        let arena = &mut Arena::new(&mut memory);
        let value = |n| (0..levels).fold(Model::Int(n), |inner, _| wrap(inner));
        let args = match of {
            B::Sprintf => [Model::String("%v".into()), Model::Array(Vec::from([value(1)]))],
            _ => [value(1), value(2)],
        };
        let [a, b] = args.map(|arg| arg.in_arena(arena));
        call(&mut context(&world, arena, &mut Fuel(ENOUGH)), of, [a, b, Value::Null])
            .map(|value| value.is_some())
    };
    let object = |inner| Model::Object([(Model::Null, inner)].into());
    assert_eq!(deep(B::ObjectUnion, MAX_DEPTH + 1, object), Ok(true));
    assert_eq!(deep(B::ObjectUnion, MAX_DEPTH + 2, object), Err(Fault::Depth));
    let wraps: [fn(Model) -> Model; 4] = [
        object,
        |inner| Model::Object([(inner, Model::Null)].into()),
        |inner| Model::Array(Vec::from([inner])),
        |inner| Model::Set([inner].into()),
    ];
    for wrap in wraps {
        assert_eq!(deep(B::Sprintf, MAX_DEPTH, wrap), Ok(true));
        assert_eq!(deep(B::Sprintf, MAX_DEPTH + 1, wrap), Err(Fault::Depth));
    }
}

#[test]
fn what_a_builtin_visits_costs_steps() {
    let long = "x".repeat(160);
    let text = |text: &str| Model::String(text.into());
    let strings =
        |count: usize| Model::Array((0..count).map(|n| text(&alloc::format!("{n:0160}"))).collect());
    // Each is one step, and:
    for (of, args, cost) in [
        (B::SemverCompare, Vec::from([text("1.0.0"), text("1.0.0")]), 0),
        (B::SemverCompare, Vec::from([text(&long), text(&long[..16])]), 11),
        // To where it is found, a look there.
        (B::Contains, Vec::from([text(&alloc::format!("{long}y")), text("y")]), 1 + 10),
        (B::ObjectUnion, models("{}, {}"), 0),
        // Each round, and in it the comparisons that tell whose pair is next.
        (B::ObjectUnion, models("{1: null}, {2: null}"), 4 + 2),
        // The same twice, one look to the end for nothing, and each part.
        (
            B::Split,
            Vec::from([text(&alloc::format!("{long}y{long}y")), text("y")]),
            2 * (1 + 10) + 322 / 16 + 3,
        ),
        // A round, a look and the bytes of each string, the table's bytes, and those of a string that is there already.
        (B::CountBefore, Vec::from([strings(1), text("=")]), 2 + 10),
        (B::CountBefore, Vec::from([strings(1), text(&long[..16])]), 2 + 11),
        (
            B::CountBefore,
            Vec::from([Model::Array(alloc::vec![Model::Null; 17]), text("=")]),
            64 * 4 / 16 + 17,
        ),
        (
            B::CountBefore,
            Vec::from([Model::Array(alloc::vec![text(&long); 2]), text(&"y".repeat(32))]),
            1 + 14 + 14 + 12,
        ),
    ] {
        let world = World::new(Vec::new());
        let mut memory = alloc::vec![0; 16 << 10];
        let arena = &mut Arena::new(&mut memory);
        let mut values = [Value::Null; 3];
        values.iter_mut().zip(&args).for_each(|(value, arg)| *value = arg.in_arena(arena));
        let mut fuel = Fuel(ENOUGH);
        call(&mut context(&world, arena, &mut fuel), of, values).unwrap();
        assert_eq!(ENOUGH - fuel.0, 1 + cost, "{of:?} {args:?}");
    }
}

#[test]
fn the_table_of_what_was_counted_has_to_fit_the_arena() {
    let world = World::new(Vec::new());
    let list = Model::Array(alloc::vec![Model::Null; 17]);
    for (free, expected) in [(64 * 4, Ok(true)), (64 * 4 - 1, Err(Fault::Arena))] {
        let mut memory = alloc::vec![0; 17 * CELL + 1 + free];
        let arena = &mut Arena::new(&mut memory);
        let args = [list.in_arena(arena), arena.string("=").unwrap(), Value::Null];
        let answer = call(&mut context(&world, arena, &mut Fuel(ENOUGH)), B::CountBefore, args);
        assert_eq!(answer.map(|answer| answer.is_some()), expected);
    }
}
