//! Many patterns in one automaton.
//!
//! An automaton by itself costs most of a kilobyte before its first state, and a text has to be run
//! through each. So the patterns that policies ask with at run time share automata, which say which
//! of their patterns match. Patterns that would multiply each other's states are kept apart.

use std::collections::{BTreeMap, BTreeSet};

use parma_guest::policy::format::Pattern;

use super::hir::Span;
use super::patterns::Language;
use super::regex;

/// The shared automata.
#[derive(Default)]
pub(crate) struct Automata {
    bytes: Vec<Vec<u8>>,
    places: BTreeMap<Language, (u32, u32)>,
}

/// The most patterns of one automaton.
const MAX_PATTERNS: usize = Pattern::MAX_MEMBERS as usize;
/// The most bytes that an automaton may take for each pattern beyond the first, and for itself.
const BYTES_PER_PATTERN: usize = 1 << 10;

impl Automata {
    /// Shares automata among those of the languages that match whole texts and need one. What is no regular
    /// expression is left out.
    pub fn new(languages: &BTreeSet<Language>) -> Automata {
        let mut automata = Automata::default();
        let wanted: Vec<&Language> = languages
            .iter()
            .filter(|language| language.span == Span::Whole && !regex::is_literal(&language.text))
            .filter(|language| regex::is_valid(&language.text))
            .collect();
        wanted.chunks(MAX_PATTERNS).for_each(|chunk| automata.add(chunk));
        automata
    }

    fn add(&mut self, languages: &[&Language]) {
        let patterns: Vec<(&str, Span)> =
            languages.iter().map(|language| (&*language.text, language.span)).collect();
        let limit = (patterns.len() + 1) * BYTES_PER_PATTERN;
        match regex::automaton_of_all(&patterns) {
            _ if languages.is_empty() => {}
            Ok(bytes) if bytes.len() <= limit || languages.len() == 1 => {
                let number = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
                self.bytes.push(bytes);
                self.places.extend(
                    languages
                        .iter()
                        .zip(0..)
                        .map(|(&language, pattern)| (language.clone(), (number, pattern))),
                );
            }
            // Too large a one by itself is refused, with its place, where it is used.
            Err(_) if languages.len() == 1 => {}
            _ => {
                let (front, back) = languages.split_at(languages.len() / 2);
                self.add(front);
                self.add(back);
            }
        }
    }

    /// The automaton that has this language, and the pattern's number in it.
    pub fn place(&self, language: &Language) -> Option<(usize, u32)> {
        let &(automaton, pattern) = self.places.get(language)?;
        Some((automaton as usize, pattern))
    }

    /// An automaton as the image has it.
    pub fn bytes(&self, automaton: usize) -> &[u8] {
        &self.bytes[automaton]
    }
}
