//! Matching: whole strings only (difference D2), in time linear in the text for each part and start.

use regex_automata::Anchored;
use regex_automata::dfa::Automaton;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;

use super::format::{Image, Part};
use super::value::{Fault, Fuel};
use super::verify::{Dfa, pattern_arity};

/// The longest text that a pattern with run-time parts is matched against, in bytes.
pub const MAX_TEXT: usize = 4096;

/// Positions in a text, its end included.
#[derive(Clone, Copy)]
struct Positions([u64; MAX_TEXT / 64 + 1]);

impl Positions {
    const NONE: Positions = Positions([0; MAX_TEXT / 64 + 1]);

    fn insert(&mut self, position: usize) {
        if let Some(word) = self.0.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    fn has(&self, position: usize) -> bool {
        self.0.get(position / 64).is_some_and(|word| word >> (position % 64) & 1 == 1)
    }
}

fn start(dfa: &Dfa<'_>) -> Result<StateID, Fault> {
    dfa.start_state(&start::Config::new().anchored(Anchored::Yes)).map_err(|_| Fault::Pattern)
}

/// The state after the whole text; `None` where no continuation can match.
pub(super) fn run(dfa: &Dfa<'_>, text: &[u8]) -> Result<Option<StateID>, Fault> {
    let mut state = start(dfa)?;
    for &byte in text {
        state = dfa.next_state(state, byte);
        if dfa.is_special_state(state) {
            if dfa.is_dead_state(state) {
                return Ok(None);
            }
            if dfa.is_quit_state(state) {
                return Err(Fault::Pattern);
            }
        }
    }
    let state = dfa.next_eoi_state(state);
    Ok((!dfa.is_dead_state(state) && !dfa.is_quit_state(state)).then_some(state))
}

/// The number of a DFA's patterns that match in this state.
pub(super) fn match_count(dfa: &Dfa<'_>, state: StateID) -> usize {
    if dfa.is_match_state(state) { dfa.match_len(state) } else { 0 }
}

/// One of them.
pub(super) fn matched(dfa: &Dfa<'_>, state: StateID, index: usize) -> i64 {
    i64::from(dfa.match_pattern(state, index).as_u32())
}

/// Whether a part's DFA accepts in this state after the end of input.
fn accepts(dfa: &Dfa<'_>, state: StateID, part: Part) -> bool {
    match part {
        Part::Member { pattern, .. } => {
            (0..match_count(dfa, state)).any(|index| matched(dfa, state, index) == i64::from(pattern))
        }
        _ => dfa.is_match_state(state),
    }
}

/// The string that a part stands for.
fn literal<'a>(image: &Image<'a>, part: Part, args: &[&'a [u8]]) -> Result<&'a [u8], Fault> {
    let literal = match part {
        Part::Literal(string) => image.string(string),
        Part::Arg(number) => args.get(number as usize).copied(),
        Part::Dfa(_) | Part::Member { .. } => None,
    };
    literal.ok_or(Fault::Pattern)
}

/// Whether `text`, whole, is the pattern's parts one after another.
pub(super) fn matches(
    image: &Image<'_>,
    dfas: &[Dfa<'_>],
    pattern: u32,
    text: &[u8],
    args: &[&[u8]],
    fuel: &mut Fuel,
) -> Result<bool, Fault> {
    let mut parts = image.pattern(pattern).ok_or(Fault::Pattern)?;
    if pattern_arity(image, pattern) != Some(args.len()) {
        return Err(Fault::Pattern);
    }
    let dfa = |number: u32| dfas.get(number as usize).ok_or(Fault::Pattern);
    // Most patterns have one part.
    if let (Some(part), None) = (parts.clone().next(), parts.clone().nth(1)) {
        match part {
            Part::Dfa(number) | Part::Member { dfa: number, .. } => {
                fuel.take(text.len())?;
                let dfa = dfa(number)?;
                return Ok(run(dfa, text)?.is_some_and(|state| accepts(dfa, state, part)));
            }
            Part::Literal(_) | Part::Arg(_) => {
                fuel.bytes(text.len())?;
                return Ok(text == literal(image, part, args)?);
            }
        }
    }
    if text.len() > MAX_TEXT {
        return Err(Fault::Pattern);
    }
    // Where the parts so far can end.
    let mut ends = Positions::NONE;
    ends.insert(0);
    parts.try_for_each(|part| {
        let mut next = Positions::NONE;
        for from in (0..=text.len()).filter(|&from| ends.has(from)) {
            let rest = text.get(from..).unwrap_or_default();
            match part {
                Part::Literal(_) | Part::Arg(_) => {
                    let literal = literal(image, part, args)?;
                    fuel.bytes(literal.len() + text.len())?;
                    if rest.starts_with(literal) {
                        next.insert(from + literal.len());
                    }
                }
                Part::Dfa(number) | Part::Member { dfa: number, .. } => {
                    let dfa = dfa(number)?;
                    fuel.take(rest.len() + 1)?;
                    let mut state = start(dfa)?;
                    for (read, byte) in rest.iter().map(Some).chain([None]).enumerate() {
                        if accepts(dfa, dfa.next_eoi_state(state), part) {
                            next.insert(from + read);
                        }
                        let Some(&byte) = byte else { break };
                        state = dfa.next_state(state, byte);
                        if dfa.is_quit_state(state) {
                            return Err(Fault::Pattern);
                        }
                        if dfa.is_dead_state(state) {
                            break;
                        }
                    }
                }
            }
        }
        ends = next;
        Ok(())
    })?;
    Ok(ends.has(text.len()))
}
