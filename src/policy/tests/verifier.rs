//! What the verifier refuses: images that are valid but for one rule; and beside each, what is just valid.

use super::super::verify::verify;
use super::*;

/// An image in parts, put together as they are.
#[derive(Clone, Default)]
pub(super) struct Parts([Vec<u8>; Section::COUNT]);

pub(super) const RECORD: FunctionRecord =
    FunctionRecord { name: 0, end: 0, arity: 0, registers: 0, memo: false, stack: 0, frames: 1, controls: 0 };

impl Parts {
    pub(super) fn with(mut self, section: Section, bytes: &[u8]) -> Self {
        self.0[section as usize].extend_from_slice(bytes);
        self
    }

    pub(super) fn words(self, section: Section, words: &[u32]) -> Self {
        words.iter().fold(self, |parts, word| parts.with(section, &word.to_le_bytes()[..WORD]))
    }

    pub(super) fn strings(mut self, strings: &[&[u8]]) -> Self {
        for string in strings {
            self = self.with(Section::StringBytes, string);
            let end = self.0[Section::StringBytes as usize].len() as u32;
            self = self.words(Section::StringEnds, &[end]);
        }
        self
    }

    fn ints(self, ints: &[i64]) -> Self {
        ints.iter().fold(self, |parts, int| parts.with(Section::Ints, &int.to_le_bytes()))
    }

    fn nodes(mut self, levels: &[u32], nodes: Nodes<'_>) -> Self {
        let mut end = 0;
        for &(kind, words) in nodes {
            end += words.len() as u32;
            self = self.words(Section::Nodes, &[Const::new(kind, end).bits()]).words(Section::Words, words);
        }
        self.words(Section::Levels, levels)
    }

    fn dfa(self, bytes: &[u8]) -> Self {
        let parts = self.with(Section::DfaBytes, bytes);
        let end = parts.0[Section::DfaBytes as usize].len() as u32;
        parts.words(Section::DfaEnds, &[end])
    }

    fn program(mut self, holes: u8, slots: u8, steps: &[Step]) -> Self {
        self = self.with(Section::Programs, &[holes, slots, 0, 0, 0, 0, 0, 0]);
        self = steps.iter().fold(self, |parts, step| parts.with(Section::Programs, &step.to_bytes()));
        let end = (self.0[Section::Programs as usize].len() / Step::SIZE) as u32;
        self.words(Section::ProgramEnds, &[end])
    }

    fn function(self, record: FunctionRecord, code: &[I<'_>]) -> Self {
        let mut bytes = Vec::new();
        code.iter().for_each(|instruction| instruction.encode(&mut bytes));
        self.function_of(record, &bytes)
    }

    fn function_of(self, record: FunctionRecord, code: &[u8]) -> Self {
        let parts = self.with(Section::Code, code);
        let end = parts.0[Section::Code as usize].len() as u32;
        parts.with(Section::Functions, &FunctionRecord { end, ..record }.to_bytes())
    }

    pub(super) fn image(&self) -> Vec<u8> {
        let mut image = MAGIC.to_vec();
        image.extend(FORMAT_VERSION.to_le_bytes());
        image.extend([0; 4]);
        self.0.iter().for_each(|section| image.extend((section.len() as u32).to_le_bytes()));
        image.extend(self.0.concat());
        image
    }

    pub(super) fn error(&self) -> Option<ImageError> {
        Image::read(&self.image()).and_then(|image| verify(&image)).err()
    }
}

/// Kinds and words of nodes.
type Nodes<'a> = &'a [(Kind, &'a [u32])];

/// Two strings and two integers.
pub(super) fn base() -> Parts {
    Parts::default().strings(&[b"a", b"b"]).ints(&[1, 2])
}

fn int(index: u32) -> u32 {
    Const::new(Kind::Int, index).bits()
}

fn string(index: u32) -> u32 {
    Const::new(Kind::String, index).bits()
}

fn array(index: u32) -> u32 {
    Const::new(Kind::Array, index).bits()
}

fn set(index: u32) -> u32 {
    Const::new(Kind::Set, index).bits()
}

#[test]
fn sections_are_whole_records_and_ends_end_with_their_content() {
    assert_eq!(Parts::default().error(), None, "an image may be empty");
    assert_eq!(base().error(), None);
    for section in [
        Section::Sources,
        Section::StringEnds,
        Section::Ints,
        Section::Levels,
        Section::Nodes,
        Section::Words,
        Section::DfaEnds,
        Section::ProgramEnds,
        Section::Programs,
        Section::Patterns,
        Section::Named,
        Section::Functions,
        Section::Entries,
    ] {
        assert_eq!(base().with(section, &[0]).error(), Some(ImageError::Section(section)));
    }
    for (ends, content, record) in [
        (Section::StringEnds, Section::StringBytes, 1),
        (Section::DfaEnds, Section::DfaBytes, 1),
        (Section::ProgramEnds, Section::Programs, Step::SIZE),
    ] {
        let refused = Some(ImageError::Section(ends));
        let content = Parts::default().with(content, &[0].repeat(2 * record));
        for words in [&[][..], &[1], &[3], &[1, 3], &[2, 1, 2]] {
            assert_eq!(content.clone().words(ends, words).error(), refused, "{words:?}");
        }
    }
}

#[test]
fn strings_and_integers_ascend_strictly() {
    let strings = |strings: &[&[u8]]| Parts::default().strings(strings).error();
    assert_eq!(strings(&[b"", b"a", b"ab", b"b", "\u{e9}".as_bytes()]), None);
    for refused in [&[&b"b"[..], b"a"][..], &[b"a", b"a"], &[b"", b""], &[b"\xff"], &[b"\xc3", b"\xc3\xa9"]] {
        assert_eq!(strings(refused), Some(ImageError::Strings), "{refused:?}");
    }
    let ints = |ints: &[i64]| Parts::default().ints(ints).error();
    assert_eq!(ints(&[i64::MIN, -1, 0, i64::MAX]), None);
    for refused in [[1, 1], [0, -1], [1, 0]] {
        assert_eq!(ints(&refused), Some(ImageError::Ints), "{refused:?}");
    }
}

#[test]
fn constants_have_one_encoding() {
    use Kind::{Array, Object, Set};
    const NONE: &[u32] = &[];
    let check = |levels: &[u32], nodes: Nodes<'_>| base().nodes(levels, nodes).error();
    let valid: [(&[u32], Nodes<'_>); 6] = [
        (&[1], &[(Array, NONE)]),
        (&[2], &[(Array, NONE), (Set, NONE)]),
        (&[0, 2], &[(Array, &[int(1), int(0), int(1)]), (Array, &[string(1)])]),
        (
            &[0, 1],
            &[(Set, &[Const::NULL.bits(), Const::FALSE.bits(), Const::TRUE.bits(), int(0), string(0)])],
        ),
        (&[1, 2], &[(Array, NONE), (Object, &[array(0)])]),
        (
            &[1, 3, 4],
            &[
                (Array, NONE),
                (Array, &[string(0), string(1)]),
                (Set, &[int(1), array(0)]),
                (Object, &[array(1), 0, array(0)]),
            ],
        ),
    ];
    for (levels, nodes) in valid {
        assert_eq!(check(levels, nodes), None, "{levels:?} {nodes:?}");
    }
    let refused: [(&str, &[u32], Nodes<'_>); 36] = [
        ("no integer", &[0, 1], &[(Array, &[int(2)])]),
        ("no string", &[0, 1], &[(Array, &[string(2)])]),
        ("no null", &[0, 1], &[(Array, &[1])]),
        ("no boolean", &[0, 1], &[(Array, &[Const::TRUE.bits() + 1])]),
        ("no kind", &[0, 1], &[(Array, &[7 << Const::INDEX_BITS])]),
        ("no node", &[0, 1], &[(Array, &[array(5)])]),
        ("itself", &[0, 1], &[(Array, &[array(0)])]),
        ("itself, above others", &[1, 2], &[(Array, NONE), (Array, &[array(1)])]),
        ("of the same level", &[1, 3], &[(Array, NONE), (Array, &[int(0)]), (Array, &[array(1)])]),
        ("of another kind", &[1, 2], &[(Array, NONE), (Array, &[set(0)])]),
        ("above its level", &[1, 2, 3], &[(Array, NONE), (Array, &[int(0)]), (Array, &[int(1)])]),
        ("two levels above", &[1, 2, 3], &[(Array, NONE), (Array, &[int(0)]), (Array, &[array(0)])]),
        ("elements on level 0", &[1], &[(Array, &[int(0)])]),
        ("none on level 1", &[0, 1], &[(Array, NONE)]),
        ("an empty level", &[0], &[]),
        ("empty levels", &[0, 0], &[]),
        ("an empty level on top", &[1, 1], &[(Array, NONE)]),
        ("an empty level between", &[1, 1, 2], &[(Array, NONE), (Array, &[int(0)])]),
        ("a level that descends", &[1, 0], &[(Array, NONE)]),
        ("a level of no nodes", &[2], &[(Array, NONE)]),
        ("nodes of no level", &[], &[(Array, NONE)]),
        ("more nodes than levels have", &[1], &[(Array, NONE), (Set, NONE)]),
        ("no collection", &[1], &[(Kind::String, NONE)]),
        ("a node twice", &[2], &[(Array, NONE), (Array, NONE)]),
        ("kinds that descend", &[2], &[(Set, NONE), (Array, NONE)]),
        ("kinds that descend, with words that ascend", &[0, 2], &[(Set, &[int(0)]), (Array, &[int(1)])]),
        ("words that descend", &[0, 2], &[(Array, &[int(1)]), (Array, &[int(0)])]),
        ("words twice", &[0, 2], &[(Array, &[int(0)]), (Array, &[int(0)])]),
        ("a set that descends", &[0, 1], &[(Set, &[int(1), int(0)])]),
        ("a member twice", &[0, 1], &[(Set, &[int(0), int(0)])]),
        ("an object without a shape", &[1], &[(Object, NONE)]),
        ("a shape that is no array", &[0, 1], &[(Object, &[int(0)])]),
        ("a shape that is a set", &[1, 2], &[(Set, NONE), (Object, &[set(0)])]),
        ("a value too many", &[1, 2], &[(Array, NONE), (Object, &[array(0), int(0)])]),
        ("keys that descend", &[0, 1, 2], &[(Array, &[int(1), int(0)]), (Object, &[array(0), 0, 0])]),
        ("a key twice", &[0, 1, 2], &[(Array, &[int(0), int(0)]), (Object, &[array(0), 0, 0])]),
    ];
    for (what, levels, nodes) in refused {
        assert_eq!(check(levels, nodes), Some(ImageError::Constant), "{what}");
    }
    let left_over = base().nodes(&[1], &[(Array, NONE)]).words(Section::Words, &[0]);
    assert_eq!(left_over.error(), Some(ImageError::Constant));
    let beyond = base().words(Section::Levels, &[0, 1]).words(Section::Nodes, &[array(1)]);
    assert_eq!(beyond.error(), Some(ImageError::Constant));
}

#[test]
fn constants_have_32_levels_at_most() {
    let nested = |levels: u32| {
        let words: Vec<u32> = (0..levels).map(array).collect();
        let node = |level: u32| (Kind::Array, &words[(level as usize).saturating_sub(1)..level as usize]);
        let nodes: Vec<_> = (0..levels).map(node).collect();
        base().nodes(&(1..=levels).collect::<Vec<_>>(), &nodes).error()
    };
    assert_eq!(nested(MAX_DEPTH as u32), None);
    assert_eq!(nested(MAX_DEPTH as u32 + 1), Some(ImageError::Constant));
}

const RANGE: Step = Step::Range { low: 1, high: 2, next: 1 };

#[test]
fn programs_stay_inside_and_say_what_they_use() {
    let check = |holes: u8, slots: u8, steps: &[Step]| Parts::default().program(holes, slots, steps).error();
    let look = Look::End;
    let most = alloc::vec![Step::Match; MAX_PROGRAM];
    let (hole, save) = (|hole| Step::Hole { hole, next: 1 }, |slot| Step::Save { slot, next: 1 });
    let split = |first, second| Step::Split { first, second };
    let valid: [(u8, u8, &[Step]); 9] = [
        (0, 0, &[Step::Match]),
        (0, 0, &most),
        (0, 0, &[RANGE, Step::Match]),
        (0, 0, &[split(1, 0), Step::Match]),
        (0, 0, &[Step::Assert { look, next: 1 }, Step::Match]),
        (8, 0, &[hole(7), Step::Match]),
        (0, 2, &[save(0), Step::Match]),
        (0, 2, &[save(1), Step::Match]),
        (0, 64, &[save(63), Step::Match]),
    ];
    for (holes, slots, steps) in valid {
        assert_eq!(check(holes, slots, steps), None, "{:?}", &steps[..1]);
    }
    let more = alloc::vec![Step::Match; MAX_PROGRAM + 1];
    let refused: [(u8, u8, &[Step]); 18] = [
        (0, 0, &[]),
        (0, 0, &more),
        (0, 0, &[RANGE]),
        (0, 0, &[Step::Assert { look, next: 1 }]),
        (0, 0, &[split(0, 1)]),
        (0, 0, &[split(1, 0)]),
        (1, 0, &[Step::Hole { hole: 0, next: 1 }]),
        (0, 2, &[Step::Save { slot: 0, next: 1 }]),
        (0, 66, &[save(64), Step::Match]),
        (9, 0, &[hole(8), Step::Match]),
        (1, 0, &[Step::Match]),
        (0, 2, &[Step::Match]),
        (0, 0, &[hole(0), Step::Match]),
        (2, 0, &[hole(0), Step::Match]),
        (0, 0, &[save(0), Step::Match]),
        (0, 1, &[save(0), Step::Match]),
        (0, 1, &[save(1), Step::Match]),
        (0, 4, &[save(1), Step::Match]),
    ];
    for (holes, slots, steps) in refused {
        let error = check(holes, slots, steps);
        assert_eq!(error, Some(ImageError::Pattern), "{holes} {slots} {:?}", steps.first());
    }
    let header = |header: [u8; 8]| {
        let steps = [header, Step::Match.to_bytes()].concat();
        Parts::default().with(Section::Programs, &steps).words(Section::ProgramEnds, &[2]).error()
    };
    assert_eq!(header([0; 8]), None);
    for byte in 2..8 {
        let mut odd = [0; 8];
        odd[byte] = 1;
        assert_eq!(header(odd), Some(ImageError::Pattern));
    }
    let empty = Parts::default().words(Section::ProgramEnds, &[0]);
    assert_eq!(empty.error(), Some(ImageError::Pattern));
}

/// The base with a DFA, and programs that are plain, with slots, with a hole, and with both.
fn with_programs() -> Parts {
    let (save, hole) = (Step::Save { slot: 0, next: 1 }, |next| Step::Hole { hole: 0, next });
    base()
        .dfa(&dfa("a"))
        .program(0, 0, &[Step::Match])
        .program(0, 2, &[save, Step::Match])
        .program(1, 0, &[hole(1), Step::Match])
        .program(1, 2, &[save, hole(2), Step::Match])
}

#[test]
fn a_pattern_is_of_something_that_is_there() {
    let check = |pattern: Pattern| with_programs().words(Section::Patterns, &[pattern.bits()]).error();
    for (valid, refused) in [
        (Pattern::Dfa(0), Pattern::Dfa(1)),
        (Pattern::Literal(1), Pattern::Literal(2)),
        (Pattern::Program(3), Pattern::Program(4)),
        (Pattern::Member { dfa: 0, pattern: 4095 }, Pattern::Member { dfa: 1, pattern: 0 }),
    ] {
        assert_eq!((check(valid), check(refused)), (None, Some(ImageError::Pattern)));
    }
    assert_eq!(Parts::default().dfa(&[0; 4]).error(), Some(ImageError::Dfa));
    let second = Parts::default().dfa(&dfa("a")).dfa(&dfa("a")[..4]);
    assert_eq!(second.error(), Some(ImageError::Dfa));
}

#[test]
fn a_name_has_a_pattern_that_its_class_can_use() {
    use Class::{Find, Part, PartHoles, Whole, WholeHoles};
    // The four programs in their order, the DFA, a pattern that is not there, and no pattern.
    let patterns = [0, 1, 2, 3].map(|program| Pattern::Program(program).bits());
    let parts = with_programs().words(Section::Patterns, &patterns).words(Section::Patterns, &[0]);
    let check = |names: &[(u32, u32)]| {
        names
            .iter()
            .fold(parts.clone(), |parts, &(text, word)| parts.words(Section::Named, &[text, word]))
            .error()
    };
    for (class, fits) in [
        (Whole, [true, true, false, false, true, false, true]),
        (Part, [true, true, false, false, true, false, true]),
        (Find, [false, true, false, false, false, false, true]),
        (WholeHoles, [false, false, true, true, false, false, true]),
        (PartHoles, [false, false, true, true, false, false, true]),
    ] {
        for (pattern, fits) in
            [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), None].into_iter().zip(fits)
        {
            let expected = if fits { None } else { Some(ImageError::Pattern) };
            assert_eq!(check(&[(0, class.bits(pattern))]), expected, "{class:?} {pattern:?}");
        }
    }
    let (whole, part) = (Whole.bits(None), Part.bits(None));
    for names in [&[(1, whole)][..], &[(0, whole), (1, whole)], &[(1, whole), (0, part)]] {
        assert_eq!(check(names), None);
    }
    let no_class = 5 << Const::INDEX_BITS | Whole.bits(None);
    for names in [
        &[(2, whole)][..],
        &[(0, no_class)],
        &[(1, whole), (0, whole)],
        &[(0, whole), (0, whole)],
        &[(0, part), (1, whole)],
    ] {
        assert_eq!(check(names), Some(ImageError::Pattern), "{names:?}");
    }
}

#[test]
fn sources_and_entries_ascend_and_are_of_what_is_there() {
    let check = |sources: &[u32], entries: &[(u32, u32)]| {
        let argument = FunctionRecord { arity: 1, registers: 1, stack: 1, ..RECORD };
        let mut parts = base().function(RECORD, &[]).function(argument, &[]);
        for &source in sources {
            parts = parts.words(Section::Sources, &[source]).with(Section::Sources, &[7; 32]);
        }
        for &(name, function) in entries {
            parts = parts.words(Section::Entries, &[name, function]);
        }
        parts.error()
    };
    for sources in [&[][..], &[0], &[1], &[0, 1]] {
        assert_eq!(check(sources, &[]), None);
    }
    for sources in [&[2][..], &[0, 2], &[1, 0], &[0, 0]] {
        assert_eq!(check(sources, &[]), Some(ImageError::Names), "{sources:?}");
    }
    for entries in [&[(0, 0)][..], &[(1, 0)], &[(0, 0), (1, 0)]] {
        assert_eq!(check(&[], entries), None);
    }
    for entries in [&[(2, 0)][..], &[(0, 2)], &[(0, 1)], &[(1, 0), (0, 0)], &[(0, 0), (0, 0)]] {
        assert_eq!(check(&[], entries), Some(ImageError::Names), "{entries:?}");
    }
}

#[test]
fn a_function_record_is_exact() {
    let refused = Some(ImageError::Function { function: 1 });
    let check = |record: FunctionRecord| base().function(RECORD, &[]).function(record, &[]).error();
    for record in [
        FunctionRecord { name: 1, memo: true, ..RECORD },
        FunctionRecord { arity: 1, registers: 1, stack: 1, ..RECORD },
        FunctionRecord { arity: 255, registers: 255, stack: 255, ..RECORD },
    ] {
        assert_eq!(check(record), None, "{record:?}");
    }
    for record in [
        FunctionRecord { name: 2, ..RECORD },
        FunctionRecord { arity: 1, ..RECORD },
        FunctionRecord { arity: 1, registers: 1, stack: 1, memo: true, ..RECORD },
        FunctionRecord { stack: 1, ..RECORD },
        FunctionRecord { registers: 1, ..RECORD },
        FunctionRecord { frames: 0, ..RECORD },
        FunctionRecord { frames: 2, ..RECORD },
        FunctionRecord { controls: 1, ..RECORD },
    ] {
        assert_eq!(check(record), refused, "{record:?}");
    }
    let ends = |ends: &[u32]| {
        let records = ends.iter().map(|&end| FunctionRecord { end, ..RECORD });
        let code = base().with(Section::Code, &[0x2c, 0x2c]);
        records.fold(code, |parts, record| parts.with(Section::Functions, &record.to_bytes())).error()
    };
    assert_eq!(ends(&[1, 2]), None);
    assert_eq!(ends(&[1, 3]), refused);
    assert_eq!(ends(&[2, 1]), refused);
    assert_eq!(ends(&[1]), Some(ImageError::Section(Section::Code)));
    assert_eq!(ends(&[]), Some(ImageError::Section(Section::Code)));
}

#[test]
fn calls_need_no_more_than_a_machine_has() {
    // Each function calls the one before; it has so many registers, and so many bodies around the call.
    let calls = |functions: &[(usize, usize)]| {
        let mut b = Builder::new(1);
        for (number, &(registers, bodies)) in functions.iter().enumerate() {
            let mut f = FunctionBuilder::new("f", 0);
            (0..registers).for_each(|_| _ = f.register());
            let open: Vec<_> = (0..bodies).map(|_| f.open(I::Block { body: 0 })).collect();
            if let Some(function) = number.checked_sub(1) {
                f.emit(I::Call { dst: None, function: function as u32, args: Args(&[]) });
            }
            open.into_iter().rev().for_each(|open| f.close(open));
            b.function(f);
        }
        b.finish().err()
    };
    let frames = |count: usize| alloc::vec![(0, 0); count];
    let stack = |last: usize| [&[(255, 0); 16][..], &[(last, 0)]].concat();
    let bodies = |last: usize| [&[(0, MAX_NESTING); 10][..], &[(0, last)]].concat();
    for (valid, refused) in [
        (frames(MAX_FRAMES), frames(MAX_FRAMES + 1)),
        (stack(MAX_STACK - 16 * 255), stack(MAX_STACK - 16 * 255 + 1)),
        (bodies(MAX_CONTROLS - 10 * MAX_NESTING), bodies(MAX_CONTROLS - 10 * MAX_NESTING + 1)),
    ] {
        assert_eq!(calls(&valid), None);
        let function = refused.len() as u32 - 1;
        assert_eq!(calls(&refused), Some(BuildError::Image(ImageError::Function { function })));
    }
}

/// Why this code of a function with two registers is refused, and where.
fn code(parts: Parts, controls: u16, code: &[I<'_>]) -> Option<(u32, CodeRule)> {
    let record = FunctionRecord { registers: 2, stack: 2, controls, ..RECORD };
    match parts.function(record, code).error() {
        None => None,
        Some(ImageError::Code { function: 0, at, rule }) => Some((at, rule)),
        other => panic!("not refused for its code: {other:?}"),
    }
}

#[test]
fn what_is_wrong_with_code_is_said_with_its_place() {
    let (state, test) = (I::State { dst: 0 }, |value| I::Test { value });
    assert_eq!(code(base(), 0, &[state, test(0), I::Leave, I::Leave]), None);
    assert_eq!(code(base(), 0, &[state, test(1), I::Leave, I::Leave]), Some((2, CodeRule::Unassigned)));
    assert_eq!(code(base(), 0, &[state, test(0), test(2)]), Some((4, CodeRule::Register)));
    assert_eq!(code(base(), 0, &[state, I::State { dst: 2 }]), Some((2, CodeRule::Register)));
    assert_eq!(code(base(), 1, &[I::Block { body: 1 }, I::Leave]), None);
    assert_eq!(code(base(), 1, &[I::Block { body: 2 }, I::Leave]), Some((0, CodeRule::Body)));
    let inner = |body| [I::Block { body: 5 }, I::Block { body }, I::Leave, I::Leave];
    assert_eq!(code(base(), 2, &inner(1)), None);
    assert_eq!(code(base(), 2, &inner(2)), Some((4, CodeRule::Body)));
    let crossing = [I::Block { body: 1 }, I::State { dst: 0 }];
    assert_eq!(code(base(), 1, &crossing), Some((4, CodeRule::Encoding)));
}

#[test]
fn a_constant_of_code_is_there() {
    let (relation, dst) = (Relation::Less, Some(1));
    for index in [1, 2] {
        let constant = Const::new(Kind::String, index);
        for using in [
            I::Const { dst: 1, value: constant },
            I::InputGet { dst: 1, key: constant },
            I::StateGet { dst: 1, key: constant },
            I::Find { dst, text: 0, list: 0, table: constant },
            I::GetConst { dst: 1, from: 0, key: constant },
            I::Lookup { dst, key: 0, from: constant },
            I::ReturnConst { value: constant },
            I::CompareConst { relation, dst, left: 0, right: constant },
        ] {
            let refused = (index == 2).then_some((2, CodeRule::Constant));
            assert_eq!(code(base(), 0, &[I::State { dst: 0 }, using]), refused, "{using:?}");
        }
    }
    let parts = base().nodes(&[2], &[(Kind::Array, &[]), (Kind::Set, &[])]);
    for (constant, exists) in [
        (Const::new(Kind::Int, 1), true),
        (Const::new(Kind::Int, 2), false),
        (Const::new(Kind::Set, 1), true),
        (Const::new(Kind::Set, 0), false),
        (Const::new(Kind::Array, 1), false),
        (Const::new(Kind::Array, 2), false),
    ] {
        let refused = (!exists).then_some((0, CodeRule::Constant));
        assert_eq!(code(parts.clone(), 0, &[I::Const { dst: 0, value: constant }]), refused, "{constant:?}");
    }
}

#[test]
fn the_shape_of_a_record_is_an_array_of_simple_keys_that_ascend() {
    let nodes: [(Kind, &[u32]); 7] = [
        (Kind::Array, &[]),
        (Kind::Array, &[int(0)]),
        (Kind::Array, &[string(0), string(0)]),
        (Kind::Array, &[string(0), string(1)]),
        (Kind::Array, &[string(1), string(0)]),
        (Kind::Array, &[array(0)]),
        (Kind::Set, &[string(0), string(1)]),
    ];
    let parts = base().nodes(&[1, 7], &nodes);
    let constant = Some(CodeRule::Constant);
    for (kind, index, values, rule) in [
        (Kind::Array, 0, &[][..], None),
        (Kind::Array, 1, &[0], None),
        (Kind::Array, 3, &[0, 0], None),
        (Kind::Array, 3, &[0], Some(CodeRule::Arity)),
        (Kind::Array, 3, &[0, 0, 0], Some(CodeRule::Arity)),
        (Kind::Array, 2, &[0, 0], constant),
        (Kind::Array, 4, &[0, 0], constant),
        (Kind::Array, 5, &[0], constant),
        (Kind::Array, 6, &[0, 0], constant),
        (Kind::Set, 6, &[0, 0], constant),
        (Kind::Array, 7, &[], constant),
        (Kind::String, 0, &[], constant),
    ] {
        let record = I::Record { dst: 1, shape: Const::new(kind, index), values: Args(values) };
        let refused = rule.map(|rule| (2, rule));
        assert_eq!(code(parts.clone(), 0, &[I::State { dst: 0 }, record]), refused, "{record:?}");
    }
}

#[test]
fn an_instruction_has_one_encoding() {
    let check = |instruction: &[u8]| {
        let record = FunctionRecord { registers: 2, stack: 2, ..RECORD };
        base().function_of(record, &[&[0x03, 0][..], instruction].concat()).error()
    };
    let refused = Some(ImageError::Code { function: 0, at: 2, rule: CodeRule::Encoding });
    let match_by =
        |part: u8, holes: u8| [&[0x0e, 1, 0, 0, part, holes][..], &[0].repeat(holes.into())].concat();
    for valid in
        [match_by(0, 0), match_by(1, 8), alloc::vec![0x09, 1, 2, 0, 0], alloc::vec![0x0c, 1, 37, 2, 0, 0]]
    {
        assert_eq!(check(&valid), None, "{valid:?}");
    }
    for other in [
        match_by(2, 0),
        match_by(0, 9),
        match_by(2, 9),
        alloc::vec![0x09, 1, 1, 0],
        alloc::vec![0x0c, 1, 38, 0],
    ] {
        assert_eq!(check(&other), refused, "{other:?}");
    }
    for opcode in [0x00, 0x16, 0x17, 0x1e, 0x1f, 0x2e, 0x2f, 0x35, 0xff] {
        assert_eq!(check(&[opcode]), refused, "{opcode:#x}");
    }
}

#[test]
fn a_body_that_never_ends_well_is_no_way_to_what_follows() {
    let written = |inner: bool| {
        image(|_, f| {
            let some = f.open(I::Some { body: 0 });
            let block = f.open(I::Block { body: 0 });
            f.emit(I::State { dst: 0 });
            f.emit(I::Done { depth: 1 });
            f.close(block);
            if inner {
                let never = f.open(I::Some { body: 0 });
                f.emit(I::Fail);
                f.close(never);
            } else {
                f.emit(I::Fail);
            }
            f.close(some);
            f.emit(I::ReturnLast { value: 0 });
        })
    };
    let state = r#"{"operatingsystem":{"ostype":"linux"}}"#;
    assert_eq!([true, false].map(|inner| run(&written(inner), NO_INPUT).unwrap()), [state, state]);
}

#[test]
fn a_comprehension_can_be_ended_from_inside_it() {
    let result = eval(|b, f| {
        let list = list(b, &[1, 2, 3]);
        f.emit(I::Const { dst: 0, value: list });
        let collect = f.open(I::Collect { dst: 1, kind: Collection::Array, body: 0 });
        let scan = f.open(I::Scan { source: 0, key: None, value: Some(2), body: 0 });
        f.emit(I::Yield { value: 2 });
        f.emit(I::Done { depth: 1 });
        f.close(scan);
        f.close(collect);
        f.emit(I::ReturnLast { value: 1 });
    });
    assert_eq!(result.unwrap(), "[1]");
}
