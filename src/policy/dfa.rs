//! Automata: which of some patterns match a whole text, at one step a byte.
//!
//! An automaton is deterministic and sparse: each state has the ranges of bytes that lead on, and any other byte ends
//! the match. It is read in place. As bytes, all numbers little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 2 | number of states, at least 1 |
//! | 2 | number of accepting states |
//! | 2 a state | where its transitions end, as a number of them; they start where those of the state before end |
//! | 4 an accepting state | its number, ascending; where its patterns end, as a number of them |
//! | 4 a transition | lowest and highest byte, the state that it leads to (2 bytes); ascending, none overlapping |
//! | 2 a pattern | its number, ascending within a state |
//!
//! State 0 is the start. The others are numbered as they come up first, transition by transition. Two neighbouring
//! ranges never lead to the same state.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// An automaton, read in place. Without [`verify`](Self::verify) a match may come out wrong, but nothing worse.
#[derive(Clone, Copy, Debug)]
pub struct Dfa<'p> {
    ends: &'p [[u8; 2]],
    accepting: &'p [[u8; 4]],
    transitions: &'p [[u8; 4]],
    patterns: &'p [[u8; 2]],
}

/// Numbers of patterns, ascending.
#[derive(Clone, Copy, Debug)]
pub struct Numbers<'p>(&'p [[u8; 2]]);

impl Numbers<'_> {
    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is one of them.
    pub fn has(self, pattern: u32) -> bool {
        self.0.iter().any(|&one| number(one) == pattern as usize)
    }
}

fn number(bytes: [u8; 2]) -> usize {
    usize::from(u16::from_le_bytes(bytes))
}

impl<'p> Dfa<'p> {
    /// Finds the parts.
    pub fn read(bytes: &'p [u8]) -> Option<Dfa<'p>> {
        let (&[a, b, c, d], rest) = bytes.split_first_chunk()?;
        let (ends, rest) = rest.split_at_checked(2 * number([a, b]))?;
        let (accepting, rest) = rest.split_at_checked(4 * number([c, d]))?;
        let (ends, accepting) = (ends.as_chunks().0, accepting.as_chunks().0);
        let (transitions, patterns) = rest.split_at_checked(4 * number(*ends.last()?))?;
        let (patterns, odd) = patterns.as_chunks();
        let transitions = transitions.as_chunks().0;
        odd.is_empty().then_some(Dfa { ends, accepting, transitions, patterns })
    }

    /// Whether these bytes are an automaton in its one encoding.
    pub fn verify(bytes: &'p [u8]) -> bool {
        Self::read(bytes).is_some_and(|dfa| dfa.is_valid())
    }

    fn is_valid(&self) -> bool {
        let (mut start, mut seen) = (0, 1);
        for (state, &end) in self.ends.iter().enumerate() {
            let Some(transitions) = self.transitions.get(start..number(end)) else { return false };
            let mut last = None;
            for &[low, high, c, d] in transitions {
                let target = number([c, d]);
                let apart = last.is_none_or(|(before, to)| {
                    let gap = usize::from(low).checked_sub(before + 1);
                    gap.is_some_and(|gap| gap > 0 || to != target)
                });
                if low > high || !apart || target > seen {
                    return false;
                }
                seen = seen.max(target + 1);
                last = Some((usize::from(high), target));
            }
            if state >= seen {
                return false;
            }
            start = number(end);
        }
        let (mut start, mut last) = (0, None);
        for &[a, b, c, d] in self.accepting {
            let (state, end) = (number([a, b]), number([c, d]));
            let patterns = self.patterns.get(start..end).unwrap_or_default();
            let ascending = patterns.is_sorted_by(|&a, &b| number(a) < number(b));
            if patterns.is_empty() || !ascending || state >= self.ends.len() || last >= Some(state) {
                return false;
            }
            (start, last) = (end, Some(state));
        }
        seen == self.ends.len() && start == self.patterns.len()
    }

    /// The patterns that match a text.
    pub fn matching(&self, text: &[u8]) -> Numbers<'p> {
        Numbers(self.patterns_of(self.run(text)))
    }

    /// The state after the whole text, if there is one.
    fn run(&self, text: &[u8]) -> Option<u16> {
        let mut state = 0u16;
        for &byte in text {
            let end = number(*self.ends.get(usize::from(state))?);
            let before = usize::from(state).checked_sub(1).and_then(|before| self.ends.get(before));
            let transitions = self.transitions.get(before.map_or(0, |&end| number(end))..end)?;
            let &[low, _, c, d] = transitions.iter().find(|&&[_, high, ..]| byte <= high)?;
            if byte < low {
                return None;
            }
            state = u16::from_le_bytes([c, d]);
        }
        Some(state)
    }

    fn patterns_of(&self, state: Option<u16>) -> &'p [[u8; 2]] {
        let found =
            |state| self.accepting.binary_search_by_key(&state, |&[a, b, ..]| u16::from_le_bytes([a, b]));
        let Some(Ok(at)) = state.map(found) else { return &[] };
        let end = |at: usize| self.accepting.get(at).map_or(0, |&[_, _, c, d]| number([c, d]));
        let start = at.checked_sub(1).map_or(0, end);
        self.patterns.get(start..end(at)).unwrap_or_default()
    }
}

/// A state of an automaton that is to be encoded.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Lowest and highest byte, and the position of the state that they lead to; ascending, none overlapping.
    pub transitions: Vec<(u8, u8, usize)>,
    /// The patterns that match where the text ends here.
    pub patterns: BTreeSet<u16>,
}

/// How often a state may be looked at to find out which are the same; beyond that, all are taken to be different.
const MAX_WORK: usize = 1 << 20;

/// The automaton that does what these states do, the first being the start; the smallest one, unless it would take too
/// long to find. `None` if it has too many parts to be numbered.
pub fn encode(states: &[State]) -> Option<Vec<u8>> {
    let alive = alive(states);
    // States that no text tells apart get the same class: first by what they accept, then by where they lead.
    let mut classes = classes(states.iter().map(|state| &state.patterns));
    let ways = |state: &State, classes: &[usize]| {
        let mut ways: Vec<(u8, u8, usize)> = Vec::new();
        for &(low, high, to) in state.transitions.iter().filter(|&&(.., to)| alive.contains(&to)) {
            match ways.last_mut() {
                Some(last) if last.1.checked_add(1) == Some(low) && last.2 == classes[to] => last.1 = high,
                _ => ways.push((low, high, classes[to])),
            }
        }
        ways
    };
    let mut work = 0;
    loop {
        work += states.len();
        if work > MAX_WORK {
            classes = (0..states.len()).collect();
            break;
        }
        let finer =
            self::classes(states.iter().zip(&classes).map(|(state, class)| (*class, ways(state, &classes))));
        if finer.iter().max() == classes.iter().max() {
            break;
        }
        classes = finer;
    }
    let (mut numbers, mut order) = (BTreeMap::from([(*classes.first()?, 0)]), alloc::vec![0]);
    let (mut ends, mut accepting) = (Vec::new(), Vec::new());
    let (mut transitions, mut patterns) = (Vec::new(), Vec::new());
    let mut next = 0;
    while let Some(&state) = order.get(next) {
        let state: &State = &states[state];
        for (low, high, class) in ways(state, &classes) {
            let new = numbers.len();
            let target = *numbers.entry(class).or_insert(new);
            if target == new {
                order.push(classes.iter().position(|&other| other == class)?);
            }
            transitions.extend([low, high]);
            transitions.extend(u16::try_from(target).ok()?.to_le_bytes());
        }
        ends.extend(u16::try_from(transitions.len() / 4).ok()?.to_le_bytes());
        if !state.patterns.is_empty() {
            patterns.extend(state.patterns.iter().flat_map(|pattern| pattern.to_le_bytes()));
            accepting.extend(u16::try_from(next).ok()?.to_le_bytes());
            accepting.extend(u16::try_from(patterns.len() / 2).ok()?.to_le_bytes());
        }
        next += 1;
    }
    let mut bytes = Vec::new();
    bytes.extend(u16::try_from(ends.len() / 2).ok()?.to_le_bytes());
    bytes.extend(u16::try_from(accepting.len() / 4).ok()?.to_le_bytes());
    [ends, accepting, transitions, patterns].iter().for_each(|part| bytes.extend_from_slice(part));
    Some(bytes)
}

/// The states from which a text can be accepted.
fn alive(states: &[State]) -> BTreeSet<usize> {
    let mut before: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, state) in states.iter().enumerate() {
        state.transitions.iter().for_each(|&(.., to)| before.entry(to).or_default().push(number));
    }
    let mut open: Vec<usize> =
        (0..states.len()).filter(|&state| !states[state].patterns.is_empty()).collect();
    let mut alive: BTreeSet<usize> = open.iter().copied().collect();
    while let Some(state) = open.pop() {
        for &earlier in before.get(&state).into_iter().flatten() {
            if alive.insert(earlier) {
                open.push(earlier);
            }
        }
    }
    alive
}

/// A number for each key, equal ones for equal keys.
fn classes<K: Ord>(keys: impl Iterator<Item = K>) -> Vec<usize> {
    let mut numbers = BTreeMap::new();
    keys.map(|key| {
        let new = numbers.len();
        *numbers.entry(key).or_insert(new)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(transitions: &[(u8, u8, usize)], patterns: &[u16]) -> State {
        State { transitions: transitions.to_vec(), patterns: patterns.iter().copied().collect() }
    }

    /// `a+` is pattern 0, `[ab]` pattern 1; with a state that leads nowhere, and one that is there twice.
    fn some() -> Vec<u8> {
        encode(&[
            state(&[(b'a', b'a', 1), (b'b', b'b', 2), (b'c', b'z', 4)], &[]),
            state(&[(b'a', b'a', 3)], &[0, 1]),
            state(&[], &[1]),
            state(&[(b'a', b'a', 5)], &[0]),
            state(&[(0, 255, 4)], &[]),
            state(&[(b'a', b'a', 3)], &[0]),
        ])
        .unwrap()
    }

    fn matching(bytes: &[u8], text: &str) -> Vec<u32> {
        let matching = Dfa::read(bytes).unwrap().matching(text.as_bytes());
        (0..10).filter(|&pattern| matching.has(pattern)).collect()
    }

    #[test]
    fn the_patterns_that_match_a_whole_text_are_found() {
        let bytes = some();
        for (text, expected) in
            [("", &[][..]), ("a", &[0, 1]), ("b", &[1]), ("aaaa", &[0]), ("ab", &[]), ("c", &[]), ("ba", &[])]
        {
            assert_eq!(matching(&bytes, text), expected, "{text}");
        }
    }

    #[test]
    fn equal_states_are_one_and_dead_ones_are_left_out() {
        // Header, four states of two bytes, three that accept, three transitions, four patterns.
        assert_eq!(some().len(), 4 + 4 * 2 + 3 * 4 + 4 * 4 + 4 * 2);
        let nothing = encode(&[state(&[(0, 255, 0)], &[])]).unwrap();
        assert_eq!(nothing, [1, 0, 0, 0, 0, 0]);
        assert!(matching(&nothing, "").is_empty() && Dfa::verify(&nothing));
    }

    #[test]
    fn only_the_one_encoding_is_valid() {
        let bytes = some();
        assert!(Dfa::verify(&bytes));
        assert!(!Dfa::verify(&bytes[..bytes.len() - 1]) && !Dfa::verify(&[&bytes[..], &[0]].concat()));
        assert!(!Dfa::verify(&[0, 0, 0, 0]) && !Dfa::verify(&[]));
        // No states but the first is reached by nothing; ranges that could be one; a target that is no state; a
        // pattern twice.
        for refused in [
            &[2, 0, 0, 0, 0, 0, 0, 0][..],
            &[1, 0, 0, 0, 2, 0, 1, 1, 0, 0, 2, 2, 0, 0],
            &[1, 0, 0, 0, 2, 0, 5, 5, 0, 0, 2, 2, 0, 0],
            &[1, 0, 0, 0, 1, 0, 9, 5, 0, 0],
            &[1, 0, 0, 0, 1, 0, 5, 5, 1, 0],
            &[1, 0, 1, 0, 0, 0, 0, 0, 2, 0, 7, 0, 7, 0],
            &[1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 7, 0],
        ] {
            assert!(!Dfa::verify(refused), "{refused:?}");
        }
        // Whatever else it is, it can be run.
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            if let Some(dfa) = Dfa::read(&other) {
                let _ = dfa.matching(b"aab").is_empty();
            }
        }
    }
}
