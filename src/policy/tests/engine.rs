//! What an engine remembers and takes in besides decisions.

use super::super::{Pinned, Pinning, Reason, Reasons};
use super::*;

#[test]
fn what_a_decision_spent_is_what_it_needs() {
    let image = mount_policy();
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = [0; 4096];
    let arena = &mut Arena::new(&mut memory);
    engine.decide(arena, Point::MountDevice, target("/m1")).unwrap();
    let spent = engine.spent();
    engine.set_fuel(spent);
    engine.decide(arena, Point::MountDevice, target("/m1")).unwrap();
    assert_eq!(engine.spent(), spent);
    engine.set_fuel(spent - 1);
    let refusal = engine.decide(arena, Point::MountDevice, target("/m1")).unwrap_err();
    assert_eq!(refusal, Refusal::Fault(Fault::Fuel));
}

#[test]
fn an_engine_can_be_given_back_what_it_remembered() {
    let image = mount_policy();
    let mut engine = Engine::new(&image).unwrap();
    let mut memory = [0; 4096];
    let arena = &mut Arena::new(&mut memory);
    let (before, fresh) = (engine.memory(), metadata(&engine));
    let decision = engine.decide(arena, Point::MountDevice, target("/m1")).unwrap();
    engine.commit(decision.delta).unwrap();
    let (after, mounted) = (engine.memory(), metadata(&engine));
    engine.set_memory(before);
    assert_eq!(metadata(&engine), fresh);
    engine.set_memory(after);
    assert_eq!(metadata(&engine), mounted);
}

/// An image that knows this pattern by its text, and matches `input.text` by `input.pattern`.
fn matching(pattern: &str) -> Vec<u8> {
    image(|b, f| {
        let dfa = b.dfa(dfa(pattern));
        let known = b.pattern(Pattern::Dfa(dfa.0));
        b.named(Class::Whole, pattern, Some(known));
        let (text, pattern) = (b.string("text"), b.string("pattern"));
        f.emit(I::InputGet { dst: 0, key: text });
        f.emit(I::InputGet { dst: 1, key: pattern });
        f.emit(I::MatchBy { dst: Some(2), text: 0, pattern: 1, part: false, holes: Args(&[]) });
        f.emit(I::ReturnLast { value: 2 });
    })
}

#[test]
fn a_pattern_of_a_fragments_data_is_matched_by_that_fragment() {
    let policy = matching("p");
    let mut engine = Engine::new(&policy).unwrap();
    let mut memory = [0; 4096];
    let mut arena = Arena::new(&mut memory);
    let mut pin = |engine: &mut Engine<'_>, pattern: &str| {
        arena.reset();
        let [name, pattern] = ["pattern", pattern].map(|text| arena.string(text).unwrap());
        let mut pinning = Pinning::default();
        pinning.field(&engine.view(&arena), name, pattern).unwrap();
        engine.pin(pinning).unwrap()
    };
    let pinned: [Pinned; 4] = ["a+", "b+", "b+", "p"].map(|pattern| pin(&mut engine, pattern));
    let [a, b, other_b, p] = &pinned;
    let mut matches = |engine: &mut Engine<'_>, pinned: &Pinned, text: &str| {
        let object = engine.pinned(pinned);
        let pattern = engine.view(&arena).field(object, "pattern").unwrap();
        let outcome = engine.evaluate(&mut arena, "main", |arena| {
            let text = arena.string(text)?;
            arena.object(&[("text", text), ("pattern", pattern)]).map(Some)
        });
        outcome.map(|outcome| match outcome {
            Outcome::Value(value) => show(&engine.view(&arena), value),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(matches(&mut engine, a, "aa"), Err(Fault::Pattern), "not in force");
    engine.attach(&matching("a+"), [a].into_iter()).unwrap();
    engine.attach(&matching("b+"), [b, other_b].into_iter()).unwrap();
    for (pinned, text, expected) in
        [(a, "aa", "true"), (a, "bb", "false"), (b, "bb", "true"), (other_b, "bb", "true")]
    {
        assert_eq!(matches(&mut engine, pinned, text).as_deref(), Ok(expected), "{text}");
    }
    assert_eq!(matches(&mut engine, p, "p").as_deref(), Ok("true"), "the policy's own");
    assert_eq!(engine.attach(&[], [a].into_iter()), Err(ImageError::Length));
    let wrong = matching("a+");
    let wrong = [&wrong[..wrong.len() - 1], &[9]].concat();
    assert_eq!(engine.attach(&wrong, [a].into_iter()), Err(ImageError::Names));
}

#[test]
fn a_set_of_reasons_is_empty_until_there_is_one() {
    for &reason in Reason::ALL {
        let mut reasons = Reasons::default();
        assert!(reasons.is_empty());
        reasons.insert(reason);
        assert!(!reasons.is_empty());
        assert_eq!(reasons.iter().collect::<Vec<_>>(), [reason]);
    }
}
