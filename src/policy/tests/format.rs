//! What is read from bytes, at the edges of what is allowed.

use super::verifier::{Parts, base};
use super::*;

#[test]
fn an_image_has_1_mib_at_most() {
    let of_size = |size: usize| {
        let text = "x".repeat(size - HEADER_SIZE - WORD);
        let parts = Parts::default().strings(&[text.as_bytes()]);
        assert_eq!(parts.image().len(), size);
        parts.error()
    };
    assert_eq!(of_size(MAX_IMAGE), None);
    assert_eq!(of_size(MAX_IMAGE + 1), Some(ImageError::Length));
    assert_eq!(of_size(MAX_IMAGE + 2), Some(ImageError::Length));
    let empty = Parts::default().image();
    assert_eq!(empty.len(), HEADER_SIZE);
    assert_eq!(Image::read(&empty).err(), None);
    assert_eq!(Image::read(&empty[..HEADER_SIZE - 1]).err(), Some(ImageError::Length));
}

#[test]
fn a_step_has_one_encoding() {
    let look = Look::NoBoundary;
    for step in [
        Step::Range { low: 7, high: 7, next: 9 },
        Step::Range { low: 0, high: 255, next: u32::MAX },
        Step::Split { first: 1 << 24, second: (1 << 24) - 1 },
        Step::Save { slot: 255, next: 1 },
        Step::Assert { look, next: 1 },
        Step::Hole { hole: 7, next: 1 },
        Step::Match,
    ] {
        assert_eq!(Step::from_bytes(&step.to_bytes()), Some(step));
    }
    for refused in [
        [0, 8, 7, 0, 1, 0, 0, 0],
        [0, 7, 8, 1, 1, 0, 0, 0],
        [2, 1, 1, 0, 1, 0, 0, 0],
        [2, 1, 0, 1, 1, 0, 0, 0],
        [3, 6, 0, 0, 1, 0, 0, 0],
        [3, 0, 1, 0, 1, 0, 0, 0],
        [3, 0, 0, 1, 1, 0, 0, 0],
        [4, 8, 0, 0, 1, 0, 0, 0],
        [4, 0, 1, 0, 1, 0, 0, 0],
        [4, 0, 0, 1, 1, 0, 0, 0],
        [5, 1, 0, 0, 0, 0, 0, 0],
        [5, 0, 1, 0, 0, 0, 0, 0],
        [5, 0, 0, 1, 0, 0, 0, 0],
        [5, 0, 0, 0, 1, 0, 0, 0],
        [5, 0, 0, 0, 0, 0, 0, 1],
        [6, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(Step::from_bytes(&refused), None, "{refused:?}");
    }
}

#[test]
fn a_pattern_is_found_by_class_and_text_and_by_nothing_else() {
    let texts = ["", "a", "aa", "b", "c"];
    let strings = texts.map(str::as_bytes);
    // A text that is there in one class, in several, in none; and classes that are not there at all.
    let names = [
        (Class::Whole, 1, Some(2)),
        (Class::Whole, 3, None),
        (Class::Find, 0, None),
        (Class::Find, 1, None),
        (Class::Find, 3, None),
        (Class::WholeHoles, 3, None),
    ];
    let parts = Parts::default().strings(&strings).words(Section::Patterns, &[1 << 22; 3]);
    let add = |parts: Parts, &(class, text, pattern): &(Class, u32, Option<u32>)| {
        parts.words(Section::Named, &[text, class.bits(pattern)])
    };
    let parts = names.iter().fold(parts, add);
    assert_eq!(parts.error(), None);
    let image = parts.image();
    let image = Image::read(&image).unwrap();
    for class in [Class::Whole, Class::Part, Class::Find, Class::WholeHoles, Class::PartHoles] {
        for (number, text) in texts.into_iter().enumerate() {
            let number = number as u32;
            let name = names.iter().find(|&&(of, name, _)| (of, name) == (class, number));
            let expected = name.map(|&(.., pattern)| pattern);
            assert_eq!(image.pattern_named(class, text.as_bytes()), expected, "{class:?} {text}");
            assert_eq!(image.pattern_of_name(class, number), expected, "{class:?} {text}");
        }
        assert_eq!(image.pattern_named(class, b"ab"), None);
        let place =
            |before: fn(&Class, &Class) -> bool| names.iter().filter(|name| before(&name.0, &class)).count();
        assert_eq!(image.names_of(class), place(Class::lt)..place(Class::le));
    }
    let none = base().image();
    assert_eq!(Image::read(&none).unwrap().pattern_named(Class::Whole, b"a"), None);
}

#[test]
fn a_pattern_with_holes_can_be_one_of_a_part() {
    let matches = |text: &str| {
        eval(|b, f| {
            let literal = steps(&[Ok("/"), Err(0)]);
            let template = b.program(&literal);
            let template = b.pattern(Pattern::Program(template));
            b.named(Class::PartHoles, &alloc::format!("/{}$", Class::HOLE), Some(template));
            for (register, value) in ["/ab$", "ab", text].into_iter().enumerate() {
                let value = b.string(value);
                f.emit(I::Const { dst: register as u8, value });
            }
            f.emit(I::MatchBy { dst: Some(3), text: 2, pattern: 0, part: true, holes: Args(&[1]) });
            f.emit(I::ReturnLast { value: 3 });
        })
    };
    assert_eq!(matches("/ab").unwrap(), "true");
    assert_eq!(matches("/ac").unwrap(), "false");
    let with_holes = [Class::Whole, Class::Part, Class::Find, Class::WholeHoles].map(Class::with_holes);
    assert_eq!(with_holes, [Some(Class::WholeHoles), Some(Class::PartHoles), None, None]);
}

#[test]
fn a_relation_is_written_as_in_rego() {
    assert_eq!(Relation::ALL.map(Relation::symbol), ["==", "!=", "<", "<=", ">", ">="]);
}
