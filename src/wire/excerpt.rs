//! The start of a string that came from the other side, safe to print.

use super::MAX_EXCERPT;
use core::fmt;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// At most [`MAX_EXCERPT`] bytes without control characters.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Excerpt(heapless::String<MAX_EXCERPT>);

/// Control characters, and those that reorder text on a terminal (T09).
fn unprintable(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl Excerpt {
    /// The start of `text`, each unprintable character replaced by `?`.
    pub fn of(text: &str) -> Self {
        let mut start = heapless::String::new();
        for c in text.chars() {
            if start.push(if unprintable(c) { '?' } else { c }).is_err() {
                break;
            }
        }
        Self(start)
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_str().fmt(f)
    }
}

impl Serialize for Excerpt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Excerpt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&str>::deserialize(deserializer)?;
        let excerpt = Self::of(text);
        if excerpt.as_str() == text { Ok(excerpt) } else { Err(D::Error::custom("not an excerpt")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t09_control_characters_do_not_survive() {
        assert_eq!(Excerpt::of("a\x1b[31m\nb\u{202e}c").as_str(), "a?[31m?b?c");
    }

    #[test]
    fn an_excerpt_ends_at_a_character_within_its_limit() {
        let long = "é".repeat(MAX_EXCERPT);
        assert_eq!(Excerpt::of(&long).as_str(), "é".repeat(MAX_EXCERPT / 2));
    }
}
