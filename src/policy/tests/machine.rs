//! The machine in programs and parts: what it keeps, what it finds, and at what cost.

use super::super::intern::Strings;
use super::super::machine::{Cells, Context};
use super::super::pattern::{Holes, Search};
use super::super::state::{Action, Delta, Pinning};
use super::values::{Model, World, models};
use super::*;

/// A constant of this text, as [`models`] reads it, into a register.
fn set(b: &mut Builder, f: &mut FunctionBuilder, dst: Reg, text: &str) {
    let value = models(text).remove(0).constant(b);
    f.emit(I::Const { dst, value });
}

#[test]
fn a_call_leaves_the_registers_of_its_callers_as_they_are() {
    let mut b = Builder::new(1);
    let mut functions = Vec::new();
    for name in ["inner", "outer", "main"] {
        let mut f = FunctionBuilder::new(name, u8::from(name != "main"));
        if name == "main" {
            set(&mut b, &mut f, 0, "'main'");
        }
        set(&mut b, &mut f, 1, &alloc::format!("'{name} 1'"));
        set(&mut b, &mut f, 2, &alloc::format!("'{name} 2'"));
        match functions.last() {
            Some(&FunctionId(function)) => f.emit(I::Call { dst: Some(3), function, args: Args(&[2]) }),
            None => set(&mut b, &mut f, 3, "null"),
        }
        f.emit(I::Array { dst: 4, items: Args(&[0, 1, 2, 3]) });
        f.emit(I::ReturnLast { value: 4 });
        functions.push(b.function(f));
    }
    b.entry("main", functions[2]).unwrap();
    assert_eq!(
        run(&b.finish().unwrap(), NO_INPUT).unwrap(),
        r#"["main","main 1","main 2",["main 2","outer 1","outer 2",["outer 2","inner 1","inner 2",null]]]"#
    );
}

#[test]
fn a_function_is_left_once_it_has_a_result() {
    let result = eval(|b, f| {
        f.emit(I::Leave);
        set(b, f, 0, "1");
        f.emit(I::Leave);
        f.emit(I::Return { value: 0 });
        f.emit(I::Leave);
        f.emit(I::Abort);
    });
    assert_eq!(result.unwrap(), "1");
}

#[test]
fn a_record_has_room_for_all_its_values() {
    let result = eval(|b, f| {
        set(b, f, 0, "1");
        set(b, f, 1, "'a,b'");
        set(b, f, 2, "','");
        let shape = models("['a', 'b', 'c', 'd', 'e']").remove(0).constant(b);
        f.emit(I::Record { dst: 3, shape, values: Args(&[0, 1, 2, 1, 0]) });
        f.emit(I::Builtin { dst: Some(4), builtin: Builtin::Split, args: Args(&[1, 2]) });
        f.emit(I::Array { dst: 5, items: Args(&[3, 4]) });
        f.emit(I::ReturnLast { value: 5 });
    });
    assert_eq!(result.unwrap(), r#"[{"a":1,"b":"a,b","c":",","d":"a,b","e":1},["a","b"]]"#);
}

#[test]
fn a_remembered_result_stays_when_the_body_around_its_call_has_ended() {
    for last in [false, true] {
        let mut b = Builder::new(1);
        let mut f = FunctionBuilder::new("memo", 0).memo();
        set(&mut b, &mut f, 0, "'a,b'");
        set(&mut b, &mut f, 1, "','");
        f.emit(I::Builtin { dst: Some(2), builtin: Builtin::Split, args: Args(&[0, 1]) });
        f.emit(if last { I::ReturnLast { value: 2 } } else { I::Return { value: 2 } });
        let memo = b.function(f).0;
        let mut f = FunctionBuilder::new("main", 0);
        let block = f.open(I::Block { body: 0 });
        f.emit(I::Call { dst: Some(0), function: memo, args: Args(&[]) });
        f.close(block);
        set(&mut b, &mut f, 1, "'x'");
        f.emit(I::Array { dst: 2, items: Args(&[1, 1, 1, 1]) });
        f.emit(I::Call { dst: Some(3), function: memo, args: Args(&[]) });
        f.emit(I::Array { dst: 4, items: Args(&[2, 3]) });
        f.emit(I::ReturnLast { value: 4 });
        let main = b.function(f);
        b.entry("main", main).unwrap();
        let result = run(&b.finish().unwrap(), NO_INPUT);
        assert_eq!(result.unwrap(), r#"[["x","x","x","x"],["a","b"]]"#);
    }
}

#[test]
fn each_list_and_each_table_is_looked_for() {
    let result = eval(|b, f| {
        set(b, f, 0, "'t'");
        set(b, f, 1, "[1]");
        set(b, f, 2, "[2]");
        let yes = models("{[1]: [{'t'}, []], [2]: [set(), []]}").remove(0).constant(b);
        let no = models("{[1]: [set(), []], [2]: [{'t'}, []]}").remove(0).constant(b);
        for (dst, list, table) in [(3, 1, yes), (4, 1, no), (5, 2, no), (6, 2, yes), (7, 2, yes), (8, 1, yes)]
        {
            f.emit(I::Find { dst: Some(dst), text: 0, list, table });
        }
        f.emit(I::Array { dst: 9, items: Args(&[3, 4, 5, 6, 7, 8]) });
        f.emit(I::ReturnLast { value: 9 });
    });
    assert_eq!(result.unwrap(), "[true,false,true,false,false,true]");
}

#[test]
fn empty_matches_are_found_as_go_finds_them() {
    // `a*`, and the texts as of FindAllString.
    let found = |text: &str, limit: i64| {
        let steps = [
            Step::Save { slot: 0, next: 1 },
            Step::Split { first: 2, second: 3 },
            Step::Range { low: b'a', high: b'a', next: 1 },
            Step::Save { slot: 1, next: 4 },
            Step::Match,
        ];
        eval(|b, f| {
            let program = b.program(&steps);
            let pattern = b.pattern(Pattern::Program(program));
            b.named(Class::Find, "a*", Some(pattern));
            set(b, f, 0, &alloc::format!("'{text}'"));
            set(b, f, 1, "'a*'");
            set(b, f, 2, &limit.to_string());
            f.emit(I::Submatches { dst: 3, text: 0, pattern: 1, limit: 2 });
            f.emit(I::ReturnLast { value: 3 });
        })
        .unwrap()
    };
    for (text, limit, expected) in [
        ("baaac", -1, r#"[[""],["aaa"],[""]]"#),
        ("baaac", 2, r#"[[""],["aaa"]]"#),
        ("aab", -1, r#"[["aa"],[""]]"#),
        ("é€😀", -1, r#"[[""],[""],[""],[""]]"#),
        ("😀aé", -1, r#"[[""],["a"],[""]]"#),
        ("", -1, r#"[[""]]"#),
    ] {
        assert_eq!(found(text, limit), expected, "{text}");
    }
}

#[test]
fn what_a_fragments_pattern_means_is_told_by_its_own_image() {
    // SECURITY (F01): the same text means another thing in each of two fragments, and nothing in the policy.
    let fragment = |pattern: &str| {
        let mut b = Builder::new(1);
        let dfa = b.dfa(dfa(pattern)).0;
        let pattern = b.pattern(Pattern::Dfa(dfa));
        b.named(Class::Whole, "p", Some(pattern));
        b.finish().unwrap()
    };
    let matches = |key: &str, text: &str| {
        let image = image(|b, f| {
            let (kept, key) = (b.string("kept"), b.string(key));
            f.emit(I::StateGet { dst: 0, key: kept });
            f.emit(I::GetConst { dst: 1, from: 0, key });
            set(b, f, 2, &alloc::format!("'{text}'"));
            f.emit(I::MatchBy { dst: Some(3), text: 2, pattern: 1, part: false, holes: Args(&[]) });
            f.emit(I::ReturnLast { value: 3 });
        });
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let mut memory = [0; 4096];
        let mut arena = Arena::new(&mut memory);
        let [name, pattern] = ["pattern", "p"].map(|text| arena.string(text).unwrap());
        let mut delta = Delta::default();
        for (key, meaning) in [("first", "a+"), ("second", "b+")] {
            let mut pinning = Pinning::default();
            pinning.field(&engine.view(&arena), name, pattern).unwrap();
            let pinned = engine.state.pin(pinning).unwrap();
            let field = engine.view(&arena).field(engine.state.pinned(&pinned), "pattern").unwrap();
            let key = arena.string(key).unwrap();
            delta.push(&engine.view(&arena), Action::Add, "kept", Some(key), field).unwrap();
            engine.attach(&fragment(meaning), [pinned].iter()).unwrap();
        }
        let key = arena.string("neither").unwrap();
        delta.push(&engine.view(&arena), Action::Add, "kept", Some(key), pattern).unwrap();
        engine.commit(delta).unwrap();
        let outcome = engine.evaluate(&mut arena, "main", NO_INPUT)?;
        let Outcome::Value(value) = outcome else { panic!("{outcome:?}") };
        Ok(show(&engine.view(&arena), value))
    };
    for (key, text, expected) in [
        ("first", "aa", Ok("true")),
        ("first", "bb", Ok("false")),
        ("second", "aa", Ok("false")),
        ("second", "bb", Ok("true")),
        ("neither", "aa", Err(Fault::Pattern)),
    ] {
        assert_eq!(matches(key, text).as_deref(), expected.as_ref().copied(), "{key} {text}");
    }
}

#[test]
fn a_list_grows_where_it_is_or_moves_and_pays_for_it() {
    let world = World::new(Vec::new());
    let mut memory = alloc::vec![0xff; 4096];
    let mut arena = Arena::new(&mut memory);
    let mut fuel = Fuel(1000);
    let (image, state) = (world.engine.image(), &world.engine.state);
    let context = &mut Context { image, state, arena: &mut arena, fuel: &mut fuel, fragments: &[] };
    let mut cells = Cells::default();
    let mut used = Vec::new();
    for number in 0..33 {
        cells.push(context, Value::Int(number)).unwrap();
        used.push(context.arena.used() / CELL);
    }
    let sizes = [(1, 4), (5, 8), (9, 16), (17, 32), (33, 48)];
    let size = |count: usize| sizes.iter().rfind(|(from, _)| count >= *from).unwrap().1;
    assert!(used.iter().enumerate().all(|(index, &used)| used == size(index + 1)), "{used:?}");
    assert_eq!(context.fuel.0, 1000 - 33);

    let mut cells = Cells::default();
    (0..4).for_each(|number| cells.push(context, Value::Int(number)).unwrap());
    let other = context.arena.string("something else!!").unwrap();
    let (before, fuel) = (context.arena.used(), context.fuel.0);
    cells.push(context, Value::Int(4)).unwrap();
    assert_eq!(context.arena.used(), before + 8 * CELL);
    assert_eq!(context.fuel.0, fuel - 1 - 4 * CELL as u64 / 16);
    (5..9).for_each(|number| cells.push(context, Value::Int(number)).unwrap());
    let list = cells.finish(context.arena, Collection::Array);
    let read = |value| Model::read(&context.view(), value);
    assert_eq!(read(list), models("[0, 1, 2, 3, 4, 5, 6, 7, 8]").remove(0));
    assert_eq!(read(other), models("'something else!!'").remove(0));
}

/// Where groups start and end.
type Places = Vec<Option<(usize, usize)>>;

/// Where the groups of a match are: of the first from a byte on, in memory that something else was in.
fn groups(steps: &[Step], text: &str, from: usize) -> Result<Option<Places>, Fault> {
    let slots = steps.iter().map(|step| if let Step::Save { slot, .. } = step { (slot | 1) + 1 } else { 0 });
    let (slots, bytes) = (slots.max().unwrap(), steps.iter().map(|step| step.to_bytes()).collect::<Vec<_>>());
    let (mut memory, mut fuel, holes) = ([0xff; 1024], Fuel(1000), Holes::default());
    let program = Program { holes: 0, slots, steps: &bytes };
    let found = Search::new(program, text.as_bytes(), &holes, &mut memory, &mut fuel)?.find(from)?;
    Ok(found.map(|groups| groups[..usize::from(slots) / 2].to_vec()))
}

#[test]
fn a_program_finds_the_first_way_that_matches_and_forgets_the_others() {
    let range = |low, high, next| Step::Range { low, high, next };
    let save = |slot, next| Step::Save { slot, next };
    let split = |first, second| Step::Split { first, second };
    let whole = |start, end| Ok(Some(Vec::from([Some((start, end))])));
    // `a*`
    let run = [save(0, 1), split(2, 3), range(b'a', b'a', 1), save(1, 4), Step::Match];
    assert_eq!(groups(&run, "aab", 0), whole(0, 2));
    assert_eq!(groups(&run, "baab", 1), whole(1, 3));
    assert_eq!(groups(&run, "b", 0), whole(0, 0));
    assert_eq!(groups(&run, &"a".repeat(100), 0), whole(0, 100));
    // `(a)b|a`: the group is none of the way that matches.
    let other = [
        save(0, 1),
        split(2, 6),
        save(2, 3),
        range(b'a', b'a', 4),
        save(3, 5),
        range(b'b', b'b', 7),
        range(b'a', b'a', 7),
        save(1, 8),
        Step::Match,
    ];
    assert_eq!(groups(&other, "ab", 0), Ok(Some(Vec::from([Some((0, 2)), Some((0, 1))]))));
    assert_eq!(groups(&other, "ac", 0), Ok(Some(Vec::from([Some((0, 1)), None]))));
    // A loop that reads nothing ends.
    let idle = [save(0, 1), split(2, 3), save(2, 1), save(1, 4), Step::Match];
    assert_eq!(groups(&idle, "x", 0), Ok(Some(Vec::from([Some((0, 0)), None]))));
    // A group that ends before it starts is none.
    assert_eq!(
        groups(&[save(1, 1), range(b'a', b'a', 2), save(0, 3), Step::Match], "a", 0),
        Ok(Some(Vec::from([None])))
    );
    // A match starts where a character does.
    let byte = |low, high| [save(0, 1), range(low, high, 2), save(1, 3), Step::Match];
    assert_eq!(groups(&byte(0x80, 0xbf), "é€", 0), Ok(None));
    assert_eq!(groups(&byte(0xc3, 0xff), "a€", 0), whole(1, 2));
    assert_eq!(groups(&byte(b'@', b'@'), "é@", 0), whole(2, 3));
}

#[test]
fn positions_are_as_a_program_asks_for() {
    let text = "a_\n-1\n";
    for (look, expected) in [
        (Look::Start, "1000000"),
        (Look::End, "0000001"),
        (Look::LineStart, "1001001"),
        (Look::LineEnd, "0010011"),
        (Look::Boundary, "1010110"),
        (Look::NoBoundary, "0101001"),
    ] {
        let steps = [Step::Assert { look, next: 1 }.to_bytes(), Step::Match.to_bytes()];
        let program = Program { holes: 0, slots: 0, steps: &steps };
        let holds = (0..=text.len()).map(|position| {
            let (mut memory, mut fuel, holes) = ([0xff; 64], Fuel(100), Holes::default());
            let mut search = Search::new(program, text.as_bytes(), &holes, &mut memory, &mut fuel).unwrap();
            if search.at(position).unwrap() { '1' } else { '0' }
        });
        assert_eq!(holds.collect::<String>(), expected, "{look:?}");
    }
}

#[test]
fn to_forget_what_was_tried_costs_steps() {
    let steps = [Step::Match.to_bytes(); 2];
    let program = Program { holes: 0, slots: 0, steps: &steps };
    let (mut memory, mut fuel, holes) = ([0xff; 1024], Fuel(100), Holes::default());
    // Of 800 pairs of a step and a position, a bit each.
    Search::new(program, &[b'x'; 399], &holes, &mut memory, &mut fuel).unwrap();
    assert_eq!(fuel.0, 100 - 100 / 16);
}

#[test]
fn a_dot_in_what_is_put_in_is_one_character_of_any_width() {
    for (text, expected) in [
        ("/run/abc/m", "true"),
        ("/run/aéc/m", "true"),
        ("/run/a€c/m", "true"),
        ("/run/a😀c/m", "true"),
        ("/run/a€€c/m", "false"),
        ("/run/aéé/m", "false"),
    ] {
        assert_eq!(matches_filled("/run/a.c/m", "a.c", text).unwrap(), expected, "{text}");
    }
}

#[test]
fn strings_of_an_input_are_looked_for_as_deep_as_values_nest() {
    let world = World::new(models("'known'"));
    let strings = Strings::new(world.engine.image()).unwrap();
    let mut memory = alloc::vec![0; 4096];
    for (levels, found) in [(0, true), (1, true), (MAX_DEPTH + 1, true), (MAX_DEPTH + 2, false)] {
        let arena = &mut Arena::new(&mut memory);
        let known = arena.string("known").unwrap();
        let mut value = (0..levels).fold(known, |inner, _| arena.array(&[inner]).unwrap());
        value = strings.intern(world.engine.image(), arena, value, &mut Fuel(1000), 0).unwrap();
        let view = world.engine.view(arena);
        while let Some((_, inner)) = view.element(value, 0) {
            value = inner;
        }
        assert_eq!(value.is_constant(), found, "{levels}");
    }
}
