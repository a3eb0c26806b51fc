//! Patterns, read naively: which texts a regular expression accepts, and some that it does.
//!
//! The machine matches with automata that the compiler made. This walks the expression instead and keeps every place
//! where a match can have got to, so that the two have nothing in common but the expression.

use std::collections::BTreeSet;

use regex_syntax::hir::{Class, Hir, HirKind, Look};

/// Longest repetition that a sample spells out.
const MAX_REPEAT: u32 = 4096;

/// A regular expression; `None` if it is none, or one that RE2 and this reading may see differently.
pub(super) fn parse(pattern: &str) -> Option<Hir> {
    // Quoting is RE2's alone. An expression with it is not judged.
    if pattern.contains("\\Q") {
        return None;
    }
    regex_syntax::parse(pattern).ok()
}

/// Whether the whole text matches.
pub(super) fn accepts(pattern: &Hir, text: &str) -> bool {
    ends(pattern, text.as_bytes(), 0).contains(&text.len())
}

/// Where a match that starts at `from` can end.
fn ends(pattern: &Hir, text: &[u8], from: usize) -> BTreeSet<usize> {
    let one = |end| BTreeSet::from([end]);
    match pattern.kind() {
        HirKind::Empty => one(from),
        HirKind::Literal(literal) if text[from..].starts_with(&literal.0) => one(from + literal.0.len()),
        HirKind::Literal(_) => BTreeSet::new(),
        HirKind::Class(class) => {
            let rest = std::str::from_utf8(&text[from..]).ok().and_then(|rest| rest.chars().next());
            match rest {
                Some(next) if in_class(class, next) => one(from + next.len_utf8()),
                _ => BTreeSet::new(),
            }
        }
        HirKind::Look(look) => {
            let word = |at: Option<usize>| {
                let byte = at.and_then(|at| text.get(at));
                byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
            };
            let boundary = word(from.checked_sub(1)) != word(Some(from));
            let holds = match look {
                Look::Start => from == 0,
                Look::End => from == text.len(),
                Look::StartLF | Look::StartCRLF => from == 0 || text[from - 1] == b'\n',
                Look::EndLF | Look::EndCRLF => from == text.len() || text[from] == b'\n',
                Look::WordAscii | Look::WordUnicode => boundary,
                Look::WordAsciiNegate | Look::WordUnicodeNegate => !boundary,
                _ => false,
            };
            if holds { one(from) } else { BTreeSet::new() }
        }
        HirKind::Repetition(repetition) => {
            let step = |places: &BTreeSet<usize>| -> BTreeSet<usize> {
                places.iter().flat_map(|&place| ends(&repetition.sub, text, place)).collect()
            };
            let mut places = one(from);
            for _ in 0..repetition.min {
                places = step(&places);
            }
            let (mut reached, mut round) = (places.clone(), repetition.min);
            while !places.is_empty() && repetition.max.is_none_or(|max| round < max) {
                places = step(&places).difference(&reached).copied().collect();
                reached.extend(&places);
                round += 1;
            }
            reached
        }
        HirKind::Capture(capture) => ends(&capture.sub, text, from),
        HirKind::Concat(parts) => parts.iter().fold(one(from), |places, part| {
            places.into_iter().flat_map(|place| ends(part, text, place)).collect()
        }),
        HirKind::Alternation(parts) => parts.iter().flat_map(|part| ends(part, text, from)).collect(),
    }
}

fn in_class(class: &Class, character: char) -> bool {
    match class {
        Class::Unicode(class) => {
            class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&character))
        }
        Class::Bytes(class) => u8::try_from(character).is_ok_and(|byte| {
            class.ranges().iter().any(|range| (range.start()..=range.end()).contains(&byte))
        }),
    }
}

/// A text that the pattern accepts, whole; with as few rounds of each repetition as it allows, and `more`.
pub(super) fn sample(pattern: &Hir, more: usize) -> Option<String> {
    let text = spell(pattern, more)?;
    accepts(pattern, &text).then_some(text)
}

fn spell(pattern: &Hir, more: usize) -> Option<String> {
    Some(match pattern.kind() {
        HirKind::Empty | HirKind::Look(_) => String::new(),
        HirKind::Literal(literal) => String::from_utf8(literal.0.to_vec()).ok()?,
        HirKind::Class(class) => {
            let plain = ['a', '1', 'A', '/', '_', '.', '-'].into_iter().find(|&plain| in_class(class, plain));
            match (plain, class) {
                (Some(plain), _) => plain,
                (None, Class::Unicode(class)) => class.ranges().first()?.start(),
                (None, Class::Bytes(class)) => char::from(class.ranges().first()?.start()),
            }
            .to_string()
        }
        HirKind::Repetition(repetition) => {
            let most = repetition.max.unwrap_or(u32::MAX);
            let times = repetition.min.saturating_add(u32::try_from(more).ok()?).min(most);
            // Repetitions inside of repetitions would multiply.
            spell(&repetition.sub, more.min(1))?.repeat(times.min(MAX_REPEAT) as usize)
        }
        HirKind::Capture(capture) => spell(&capture.sub, more)?,
        HirKind::Concat(parts) => {
            parts.iter().map(|part| spell(part, more)).collect::<Option<Vec<_>>>()?.concat()
        }
        HirKind::Alternation(parts) => spell(if more > 0 { parts.last() } else { parts.first() }?, more)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_texts_are_accepted_and_no_parts_of_them() {
        for (pattern, yes, no) in [
            ("a|b", &["a", "b"][..], &["ab", "", "ax"][..]),
            ("(?i)(FABRIC)_.+=.+", &["fabric_a=b"], &["FABRIC_=b", "xFABRIC_a=b"]),
            ("[0-9]{2,3}x?", &["12", "123x"], &["1", "1234", "12xx"]),
            ("(a*)*b", &["b", "aaab"], &["a", "ba"]),
            ("^a$", &["a"], &["a\n", ""]),
            (r"\bno\b( .*)?", &["no", "no way"], &["now"]),
        ] {
            let pattern = parse(pattern).unwrap();
            assert!(yes.iter().all(|text| accepts(&pattern, text)), "{pattern:?}");
            assert!(!no.iter().any(|text| accepts(&pattern, text)), "{pattern:?}");
            for more in [0, 1, 9] {
                assert!(sample(&pattern, more).is_some(), "{pattern:?}");
            }
        }
        assert!(parse("(").is_none() && parse(r"\Qa.b\E").is_none());
    }
}
