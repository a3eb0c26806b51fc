//! Matching: of automata that the compiler made, and of programs where those cannot tell.
//!
//! An automaton reads each byte once. A program ([`Program`]) tries one way after another and never
//! the same step at the same position twice, so it takes at most as many steps as it is long for each position.

use super::dfa::Numbers;
use super::format::{Class, Image, Look, MAX_GROUPS, MAX_HOLES, Pattern, Program, Step};
use super::value::{Fault, Fuel};

/// Run-time strings for holes; `None` is something else than a string.
pub(super) type Holes<'a> = [Option<&'a [u8]>; MAX_HOLES];

/// The patterns of a DFA that match a text.
pub(super) fn matching<'p>(
    image: &Image<'p>,
    dfa: u32,
    text: &[u8],
    fuel: &mut Fuel,
) -> Result<Numbers<'p>, Fault> {
    fuel.take(text.len())?;
    Ok(image.dfa(dfa).ok_or(Fault::Pattern)?.matching(text))
}

/// Whether `text` matches. `memory` is free for the time.
pub(super) fn matches(
    image: &Image<'_>,
    pattern: u32,
    text: &[u8],
    holes: &Holes<'_>,
    memory: &mut [u8],
    fuel: &mut Fuel,
) -> Result<bool, Fault> {
    match image.pattern(pattern).ok_or(Fault::Pattern)? {
        Pattern::Dfa(dfa) => Ok(!matching(image, dfa, text, fuel)?.is_empty()),
        Pattern::Member { dfa, pattern } => Ok(matching(image, dfa, text, fuel)?.has(pattern)),
        Pattern::Literal(string) => {
            fuel.bytes(text.len())?;
            Ok(Some(text) == image.string(string))
        }
        Pattern::Program(program) => {
            let program = image.program(program).ok_or(Fault::Pattern)?;
            Search::new(program, text, holes, memory, fuel)?.at(0)
        }
    }
}

/// Whether one of these patterns matches a text. None of them may be a program.
pub(super) fn any_matches(
    image: &Image<'_>,
    patterns: impl Iterator<Item = u32>,
    text: &[u8],
    fuel: &mut Fuel,
) -> Result<bool, Fault> {
    // Those of one DFA follow each other, and it is run once.
    let mut last = None;
    for pattern in patterns {
        fuel.take(1)?;
        let (dfa, member) = match image.pattern(pattern).ok_or(Fault::Pattern)? {
            Pattern::Dfa(dfa) => (dfa, None),
            Pattern::Member { dfa, pattern } => (dfa, Some(pattern)),
            Pattern::Literal(string) if image.string(string) == Some(text) => return Ok(true),
            Pattern::Literal(_) => continue,
            Pattern::Program(_) => return Err(Fault::Pattern),
        };
        let numbers = match last {
            Some((of, numbers)) if of == dfa => numbers,
            _ => matching(image, dfa, text, fuel)?,
        };
        last = Some((dfa, numbers));
        if member.map_or(!numbers.is_empty(), |member| numbers.has(member)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The pattern of this class whose text, with the strings for its holes put in, is `text`.
pub(super) fn filled(
    image: &Image<'_>,
    class: Class,
    text: &[u8],
    holes: &Holes<'_>,
    fuel: &mut Fuel,
) -> Result<Option<u32>, Fault> {
    for index in image.names_of(class) {
        fuel.take(1)?;
        fuel.bytes(text.len())?;
        let Some((name, _, Some(pattern))) = image.name(index) else { continue };
        if let Some(used) = image.string(name).and_then(|name| fits(name, text, holes)) {
            // What is put in is text. It can be read as nothing else if it has no character that means
            // something in a pattern; but for the dot, which is heeded.
            let means = |byte: &u8| br"\+*?()|[]{}^$".contains(byte);
            let used = holes.iter().zip(used).filter(|(_, used)| *used);
            if used.filter_map(|(hole, _)| *hole).any(|hole| hole.iter().any(means)) {
                return Err(Fault::Pattern);
            }
            return Ok(Some(pattern));
        }
    }
    Ok(None)
}

/// Whether a name with the strings for its holes put in is `text`, and if so, which holes it has.
fn fits(name: &[u8], mut text: &[u8], holes: &Holes<'_>) -> Option<[bool; MAX_HOLES]> {
    let mut used = [false; MAX_HOLES];
    let mut buffer = [0; 4];
    let marker = Class::HOLE.encode_utf8(&mut buffer).as_bytes();
    let (&last, marker) = marker.split_last()?;
    let mut name = name;
    while let Some((&byte, rest)) = name.split_first() {
        let hole = name.strip_prefix(marker).and_then(|rest| rest.split_first());
        let number = hole.map_or(MAX_HOLES, |(&byte, _)| usize::from(byte.wrapping_sub(last)));
        let piece = match (holes.get(number), used.get_mut(number), hole) {
            (Some(hole), Some(used), Some((_, rest))) => {
                (name, *used) = (rest, true);
                (*hole)?
            }
            _ => {
                name = rest;
                core::slice::from_ref(&byte)
            }
        };
        text = text.strip_prefix(piece)?;
    }
    text.is_empty().then_some(used)
}

/// Where each group of a match starts and ends; `None` for one that has no part in it.
pub(super) type Groups = [Option<(usize, usize)>; MAX_GROUPS];

/// The number of bytes of the first character.
pub(super) fn width(text: &[u8]) -> usize {
    match text.first() {
        Some(0xc0..0xe0) => 2,
        Some(0xe0..0xf0) => 3,
        Some(0xf0..) => 4,
        _ => 1,
    }
}

/// Runs of a program over one text.
pub(super) struct Search<'a> {
    program: Program<'a>,
    text: &'a [u8],
    holes: &'a Holes<'a>,
    fuel: &'a mut Fuel,
    /// A bit for each step and position: it was tried.
    tried: &'a mut [[u8; 4]],
    /// The positions noted.
    slots: &'a mut [[u8; 4]],
    /// What is left to do: pairs of a step (or a slot, with [`UNDO`]) and a position.
    todo: &'a mut [[u8; 4]],
    left: usize,
}

/// Marks a slot that has its old position back, now that a way has failed.
const UNDO: u32 = 1 << 31;
/// A slot that holds no position.
const NOWHERE: u32 = u32::MAX;

impl<'a> Search<'a> {
    pub fn new(
        program: Program<'a>,
        text: &'a [u8],
        holes: &'a Holes<'a>,
        memory: &'a mut [u8],
        fuel: &'a mut Fuel,
    ) -> Result<Search<'a>, Fault> {
        let bits = program.steps.len().checked_mul(text.len() + 1).ok_or(Fault::Arena)?;
        let words = memory.as_chunks_mut().0;
        let (tried, words) = words.split_at_mut_checked(bits.div_ceil(32)).ok_or(Fault::Arena)?;
        let slots = usize::from(program.slots);
        let (slots, todo) = words.split_at_mut_checked(slots).ok_or(Fault::Arena)?;
        let mut search = Search { program, text, holes, fuel, tried, slots, todo, left: 0 };
        search.forget()?;
        Ok(search)
    }

    /// Forgets what was tried.
    fn forget(&mut self) -> Result<(), Fault> {
        self.fuel.bytes(self.tried.len() * 4)?;
        self.tried.fill([0; 4]);
        Ok(())
    }

    /// The first match that starts at `from` or later, where a character does: where each of its groups starts
    /// and ends.
    pub fn find(&mut self, from: usize) -> Result<Option<Groups>, Fault> {
        self.forget()?;
        for start in from..=self.text.len() {
            let inside = self.text.get(start).is_some_and(|byte| byte & 0xc0 == 0x80);
            // What failed before fails again: what was tried stays known.
            if !inside && self.at(start)? {
                let slot = |slot: usize| match u32::from_le_bytes(*self.slots.get(slot)?) {
                    NOWHERE => None,
                    position => Some(position as usize),
                };
                let group = |group: usize| {
                    let place = slot(group * 2).zip(slot(group * 2 + 1));
                    place.filter(|&(start, end)| start <= end && end <= self.text.len())
                };
                return Ok(Some(core::array::from_fn(group)));
            }
        }
        Ok(None)
    }

    /// Whether it matches from `start` on.
    pub fn at(&mut self, start: usize) -> Result<bool, Fault> {
        self.slots.fill(NOWHERE.to_le_bytes());
        self.left = 0;
        self.push(0, start as u32)?;
        while let Some((step, position)) = self.pop() {
            if step & UNDO == 0 {
                if self.way(step, position as usize)? {
                    return Ok(true);
                }
            } else if let Some(slot) = self.slots.get_mut((step & !UNDO) as usize) {
                *slot = position.to_le_bytes();
            }
        }
        Ok(false)
    }

    fn push(&mut self, step: u32, position: u32) -> Result<(), Fault> {
        let pair = self.todo.get_mut(self.left..self.left + 2).ok_or(Fault::Arena)?;
        pair.copy_from_slice(&[step.to_le_bytes(), position.to_le_bytes()]);
        self.left += 2;
        Ok(())
    }

    fn pop(&mut self) -> Option<(u32, u32)> {
        self.left = self.left.checked_sub(2)?;
        let pair = self.todo.get(self.left..)?;
        Some((u32::from_le_bytes(*pair.first()?), u32::from_le_bytes(*pair.get(1)?)))
    }

    /// Follows one way to its end.
    fn way(&mut self, mut step: u32, mut position: usize) -> Result<bool, Fault> {
        loop {
            self.fuel.take(1)?;
            let bit = step as usize * (self.text.len() + 1) + position;
            let word = self.tried.get_mut(bit / 32).ok_or(Fault::Pattern)?;
            let (known, mask) = (u32::from_le_bytes(*word), 1 << (bit % 32));
            if known & mask != 0 {
                return Ok(false);
            }
            *word = (known | mask).to_le_bytes();
            let bytes = self.program.steps.get(step as usize).ok_or(Fault::Pattern)?;
            step = match Step::from_bytes(bytes).ok_or(Fault::Pattern)? {
                Step::Match => return Ok(true),
                Step::Range { low, high, next } => match self.text.get(position) {
                    Some(byte) if (low..=high).contains(byte) => {
                        position += 1;
                        next
                    }
                    _ => return Ok(false),
                },
                Step::Split { first, second } => {
                    self.push(second, position as u32)?;
                    first
                }
                Step::Save { slot, next } => {
                    if let Some(noted) = self.slots.get_mut(usize::from(slot)) {
                        let old = u32::from_le_bytes(*noted);
                        *noted = (position as u32).to_le_bytes();
                        self.push(u32::from(slot) | UNDO, old)?;
                    }
                    next
                }
                Step::Assert { look, next } if looks(look, self.text, position) => next,
                Step::Assert { .. } => return Ok(false),
                Step::Hole { hole, next } => {
                    let hole = self.holes.get(usize::from(hole)).copied().flatten().ok_or(Fault::Pattern)?;
                    self.fuel.take(hole.len())?;
                    match after(hole, self.text, position) {
                        Some(end) => {
                            position = end;
                            next
                        }
                        None => return Ok(false),
                    }
                }
            };
        }
    }
}

/// Where what a hole stands for ends. A dot in it stands for any character but a line feed.
fn after(hole: &[u8], text: &[u8], mut position: usize) -> Option<usize> {
    for &wanted in hole {
        let &byte = text.get(position)?;
        position += match wanted {
            b'.' if byte != b'\n' => width(text.get(position..)?),
            _ if wanted == byte && wanted != b'.' => 1,
            _ => return None,
        };
    }
    (position <= text.len()).then_some(position)
}

fn looks(look: Look, text: &[u8], position: usize) -> bool {
    let before = position.checked_sub(1).and_then(|before| text.get(before));
    let next = text.get(position);
    let word = |byte: Option<&u8>| byte.is_some_and(|&byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let feed = |byte: Option<&u8>| byte.is_none_or(|&byte| byte == b'\n');
    match look {
        Look::Start => before.is_none(),
        Look::End => next.is_none(),
        Look::LineStart => feed(before),
        Look::LineEnd => feed(next),
        Look::Boundary => word(before) != word(next),
        Look::NoBoundary => word(before) == word(next),
    }
}
