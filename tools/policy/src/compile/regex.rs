//! Regular expressions: RE2's language, as Go's `regexp` reads it, to automata.
//!
//! The pattern is read by RE2's rules and written anew in a form that has one meaning only: every
//! literal as a code point, every class as ranges, ASCII `\d \w \s \b`. What RE2 refuses is
//! [`Refused::Invalid`] (at run time: undefined); what RE2 accepts and this compiler does not, such as
//! `\p{…}`, is [`Refused::Unsupported`] (the policy does not compile).

use std::collections::BTreeMap;

use parma_guest::policy::dfa::{self, State};
use parma_guest::policy::format::{Class, Look, MAX_GROUPS, MAX_HOLES, MAX_PROGRAM, Step};
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

use super::hir::Span;

/// Repetition counts, multiplied where they nest, as in RE2.
const MAX_REPEAT: u32 = 1000;
/// Bytes of memory of an automaton before it is encoded, and to make it.
const MAX_AUTOMATON: usize = 4 << 20;
const MAX_MEMORY: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// No regular expression.
    Invalid(&'static str),
    /// One that this compiler leaves out.
    Unsupported(String),
}

type Result<T> = std::result::Result<T, Refused>;

/// The automaton of a pattern, as the image wants it: what counts is whether the whole string matches.
pub(crate) fn automaton(pattern: &str, span: Span) -> Result<Vec<u8>> {
    automaton_of_all(&[(pattern, span)])
}

/// One automaton of several patterns, which are told apart by their numbers in this order.
pub(crate) fn automaton_of_all(patterns: &[(&str, Span)]) -> Result<Vec<u8>> {
    let dense = dense_automaton(patterns)?;
    let states = states(&dense).ok_or_else(|| Refused::Unsupported("it never starts".into()))?;
    dfa::encode(&states).ok_or_else(|| {
        Refused::Unsupported(format!("needs an automaton of more than {} states or transitions", u16::MAX))
    })
}

/// Whether the only string that matches the pattern, whole, is the pattern itself.
pub(crate) fn is_literal(pattern: &str) -> bool {
    !pattern.contains(['\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$'])
}

/// Whether RE2 and this compiler accept the pattern.
pub(crate) fn is_valid(pattern: &str) -> bool {
    translate(pattern, Captures::None).is_ok()
}

/// Whether the pattern matches the text.
pub(crate) fn matches(pattern: &str, span: Span, text: &str) -> Result<bool> {
    let automaton = dense_automaton(&[(pattern, span)])?;
    let Some(mut state) = start(&automaton) else { return Ok(false) };
    for &byte in text.as_bytes() {
        state = automaton.next_state(state, byte);
    }
    Ok(automaton.is_match_state(automaton.next_eoi_state(state)))
}

fn start(automaton: &dense::DFA<Vec<u32>>) -> Option<StateID> {
    automaton.start_state_forward(&Input::new("").anchored(Anchored::Yes)).ok()
}

/// The states of an automaton, the start first. A state matches if it does at the end of a text.
fn states(automaton: &dense::DFA<Vec<u32>>) -> Option<Vec<State>> {
    let first = start(automaton)?;
    let (mut numbers, mut order) = (BTreeMap::from([(first, 0)]), vec![first]);
    let mut states = Vec::new();
    while let Some(&state) = order.get(states.len()) {
        let mut transitions: Vec<(u8, u8, usize)> = Vec::new();
        for byte in 0..=u8::MAX {
            let next = automaton.next_state(state, byte);
            let new = numbers.len();
            let to = *numbers.entry(next).or_insert(new);
            if to == new {
                order.push(next);
            }
            match transitions.last_mut() {
                Some(last) if last.2 == to => last.1 = byte,
                _ => transitions.push((byte, byte, to)),
            }
        }
        let end = automaton.next_eoi_state(state);
        let count = if automaton.is_match_state(end) { automaton.match_len(end) } else { 0 };
        let pattern = |index| u16::try_from(automaton.match_pattern(end, index).as_usize()).ok();
        states.push(State { transitions, patterns: (0..count).map(pattern).collect::<Option<_>>()? });
    }
    Some(states)
}

fn dense_automaton(patterns: &[(&str, Span)]) -> Result<dense::DFA<Vec<u32>>> {
    // The expression is parsed by itself before anything is put around it: the translation balances
    // its parentheses, so what is around cannot change its meaning.
    let whole = |&(pattern, span): &(&str, Span)| {
        let inner = translate(pattern, Captures::None)?;
        Ok(match span {
            Span::Whole | Span::Find => format!("(?:{inner})"),
            Span::Part => format!("(?s:.)*(?:{inner})(?s:.)*"),
        })
    };
    let patterns = patterns.iter().map(whole).collect::<Result<Vec<String>>>()?;
    let unsupported = |error: &dyn std::fmt::Display| Refused::Unsupported(error.to_string());
    let config = dense::Config::new()
        .match_kind(MatchKind::All)
        .start_kind(StartKind::Anchored)
        .accelerate(false)
        .dfa_size_limit(Some(MAX_AUTOMATON))
        .determinize_size_limit(Some(MAX_MEMORY));
    dense::Builder::new()
        .configure(config)
        .syntax(syntax::Config::new().unicode(true).utf8(false))
        .build_many(&patterns)
        .map_err(|error| unsupported(&error))
}

/// The program of a pattern with holes (characters from [`Class::HOLE`] on), or of one whose groups are asked for.
pub(crate) fn program(pattern: &str, span: Span) -> Result<Vec<Step>> {
    let captures = if span == Span::Find { Captures::Groups } else { Captures::Holes };
    let inner = translate(pattern, captures)?;
    let whole = match span {
        Span::Whole => format!("(?:{inner})\\z"),
        Span::Part => format!("(?s:.)*?(?:{inner})"),
        Span::Find => inner,
    };
    let unsupported = |why: &str| Refused::Unsupported(why.to_string());
    let wanted =
        if span == Span::Find { thompson::WhichCaptures::All } else { thompson::WhichCaptures::None };
    let config = thompson::Config::new().utf8(false).which_captures(wanted).nfa_size_limit(Some(MAX_MEMORY));
    let nfa = thompson::Compiler::new()
        .configure(config)
        .syntax(syntax::Config::new().unicode(true).utf8(false))
        .build(&whole)
        .map_err(|error| unsupported(&error.to_string()))?;
    if nfa.group_info().group_len(regex_automata::PatternID::ZERO) > MAX_GROUPS {
        return Err(unsupported("more than 31 groups"));
    }
    Steps::of(&nfa)
}

/// The states of a Thompson automaton as steps: one that has several ways out takes several steps.
#[derive(Default)]
struct Steps {
    steps: Vec<Step>,
    /// The first step of each state.
    first: Vec<u32>,
}

impl Steps {
    fn of(nfa: &thompson::NFA) -> Result<Vec<Step>> {
        let mut steps = Steps::default();
        // The way in comes first, then the states in their order.
        let mut next = 1;
        for state in nfa.states() {
            steps.first.push(next);
            next += steps.size(state);
        }
        if next as usize > MAX_PROGRAM {
            return Err(Refused::Unsupported(format!("needs a program of more than {MAX_PROGRAM} steps")));
        }
        let start = steps.to(nfa.start_anchored());
        steps.steps.push(Step::Split { first: start, second: start });
        nfa.states().iter().try_for_each(|state| steps.state(state))?;
        Ok(steps.steps)
    }

    fn to(&self, state: StateID) -> u32 {
        self.first[state.as_usize()]
    }

    fn size(&self, state: &thompson::State) -> u32 {
        let ways = match state {
            thompson::State::Sparse(transitions) => {
                (transitions.transitions.len() * 2).saturating_sub(1).max(1)
            }
            thompson::State::Union { alternates } => alternates.len().saturating_sub(1).max(1),
            thompson::State::Dense(_) => 256 * 2 - 1,
            _ => 1,
        };
        u32::try_from(ways).unwrap_or(u32::MAX)
    }

    fn state(&mut self, state: &thompson::State) -> Result<()> {
        use thompson::State as S;
        let here = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        match state {
            S::ByteRange { trans } => {
                let step = self.range(trans);
                self.steps.push(step);
            }
            S::Sparse(transitions) => {
                let ranges: Vec<Step> = transitions.transitions.iter().map(|way| self.range(way)).collect();
                self.any(here, &ranges);
            }
            S::Dense(transitions) => {
                let ranges: Vec<Step> = (0u8..=255)
                    .zip(transitions.transitions.iter())
                    .map(|(byte, &next)| Step::Range { low: byte, high: byte, next: self.to(next) })
                    .collect();
                self.any(here, &ranges);
            }
            S::Look { look, next } => {
                use regex_automata::util::look::Look as L;
                let look = match look {
                    L::Start => Look::Start,
                    L::End => Look::End,
                    L::StartLF => Look::LineStart,
                    L::EndLF => Look::LineEnd,
                    L::WordAscii => Look::Boundary,
                    L::WordAsciiNegate => Look::NoBoundary,
                    other => return Err(Refused::Unsupported(format!("the assertion {other:?}"))),
                };
                let next = self.to(*next);
                self.steps.push(Step::Assert { look, next });
            }
            S::Union { alternates } => match &**alternates {
                [] => self.never(here),
                [only] => {
                    let only = self.to(*only);
                    self.steps.push(Step::Split { first: only, second: only });
                }
                [ways @ .., last] => {
                    for (number, way) in ways.iter().enumerate() {
                        let second = match ways.len() - number {
                            1 => self.to(*last),
                            _ => here + u32::try_from(number).unwrap_or(u32::MAX) + 1,
                        };
                        let first = self.to(*way);
                        self.steps.push(Step::Split { first, second });
                    }
                }
            },
            S::BinaryUnion { alt1, alt2 } => {
                let (first, second) = (self.to(*alt1), self.to(*alt2));
                self.steps.push(Step::Split { first, second });
            }
            S::Capture { next, slot, .. } => {
                let slot = u8::try_from(slot.as_usize())
                    .map_err(|_| Refused::Unsupported("too many groups".into()))?;
                let next = self.to(*next);
                self.steps.push(Step::Save { slot, next });
            }
            S::Fail => self.never(here),
            S::Match { .. } => self.steps.push(Step::Match),
        }
        Ok(())
    }

    fn range(&self, way: &thompson::Transition) -> Step {
        match way.start.checked_sub(HOLE_BYTE) {
            // No text has such bytes.
            Some(hole) if usize::from(hole) < MAX_HOLES && way.start == way.end => {
                Step::Hole { hole, next: self.to(way.next) }
            }
            _ => Step::Range { low: way.start, high: way.end, next: self.to(way.next) },
        }
    }

    /// A byte that no text has.
    fn never(&mut self, here: u32) {
        self.steps.push(Step::Range { low: u8::MAX, high: u8::MAX, next: here });
    }

    /// One of these, which exclude each other.
    fn any(&mut self, here: u32, ranges: &[Step]) {
        let count = ranges.len();
        if count == 0 {
            self.never(here);
        }
        for (number, range) in ranges.iter().enumerate() {
            let at = here + u32::try_from(number * 2).unwrap_or(u32::MAX);
            if number + 1 < count {
                self.steps.push(Step::Split { first: at + 1, second: at + 2 });
            }
            self.steps.push(*range);
        }
    }
}

/// What stands for hole 0 in the bytes that a translated pattern matches; no UTF-8 has it.
const HOLE_BYTE: u8 = 0xf8;

/// What a translation keeps of groups, and whether it has holes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Captures {
    None,
    Groups,
    Holes,
}

/// One open group: what of it matters for repetition.
#[derive(Default)]
struct Group {
    /// The last thing in it, if that can be repeated: how many copies counted repetition makes of it.
    last: Option<u32>,
    /// The last thing is repeated already.
    repeated: bool,
    /// The most copies that anything in the group is made.
    copies: u32,
}

struct Translator<'p> {
    whole: &'p str,
    rest: &'p str,
    captures: Captures,
    /// A hole, and an assertion of the end, has been read.
    hole: bool,
    end: bool,
    out: String,
    groups: Vec<Group>,
    names: Vec<&'p str>,
}

/// Writes a pattern of RE2 anew for Rust's parser.
fn translate(pattern: &str, captures: Captures) -> Result<String> {
    let mut translator = Translator {
        whole: pattern,
        rest: pattern,
        captures,
        hole: false,
        end: false,
        out: String::new(),
        groups: vec![Group::default()],
        names: Vec::new(),
    };
    while !translator.rest.is_empty() {
        translator.step()?;
    }
    if translator.groups.len() > 1 {
        return Err(Refused::Invalid("missing )"));
    }
    Ok(translator.out)
}

impl<'p> Translator<'p> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn group(&mut self) -> &mut Group {
        if self.groups.is_empty() {
            self.groups.push(Group::default());
        }
        let last = self.groups.len() - 1;
        &mut self.groups[last]
    }

    /// Something that can be repeated was written; `copies` are inside it.
    fn atom(&mut self, copies: u32) {
        let group = self.group();
        group.last = Some(copies);
        group.repeated = false;
        group.copies = group.copies.max(copies);
    }

    fn literal(&mut self, c: char) {
        self.out.push_str(&code_point(c));
        self.atom(1);
    }

    fn step(&mut self) -> Result<()> {
        if let Some(rest) = self.rest.strip_prefix("\\Q") {
            let (text, after) = rest.split_once("\\E").unwrap_or((rest, ""));
            if self.captures == Captures::Holes && text.chars().any(|c| hole_number(c).is_some()) {
                return Err(awkward());
            }
            text.chars().for_each(|c| self.literal(c));
            self.rest = after;
            return Ok(());
        }
        let Some(c) = self.next() else { return Ok(()) };
        if self.captures == Captures::Holes
            && let Some(hole) = hole_number(c)
        {
            return self.hole(hole);
        }
        match c {
            '(' => self.open_group(),
            ')' => {
                if self.groups.len() == 1 {
                    return Err(Refused::Invalid("unexpected )"));
                }
                let copies = self.groups.pop().map_or(1, |group| group.copies.max(1));
                self.out.push(')');
                self.atom(copies);
                Ok(())
            }
            '|' => {
                self.out.push('|');
                self.group().last = None;
                Ok(())
            }
            '*' | '+' | '?' => self.repeat(&c.to_string(), 1),
            '{' => match counted(self.rest) {
                None => {
                    self.literal('{');
                    Ok(())
                }
                Some((min, max, rest)) => {
                    self.rest = rest;
                    let most = max.unwrap_or(min);
                    if min > MAX_REPEAT || most > MAX_REPEAT || most < min {
                        return Err(Refused::Invalid("invalid repeat count"));
                    }
                    let text = match max {
                        None => format!("{{{min},}}"),
                        Some(max) => format!("{{{min},{max}}}"),
                    };
                    self.repeat(&text, most)
                }
            },
            '[' => self.class(),
            '.' | '^' | '$' => {
                self.assertion(c)?;
                self.out.push(c);
                self.atom(1);
                Ok(())
            }
            '\\' => self.escape(),
            _ => {
                self.literal(c);
                Ok(())
            }
        }
    }

    /// A run-time string. It has to be text wherever it stands, whatever it is.
    fn hole(&mut self, hole: u8) -> Result<()> {
        let before = &self.whole[..self.whole.len() - self.rest.len()];
        let before = &before[..before.len() - Class::HOLE.len_utf8()];
        let count = before.trim_end_matches(|c: char| c.is_ascii_digit() || c == ',').ends_with('{');
        let digits = before.trim_end_matches(|c: char| c.is_digit(8));
        let octal = (1..=2).contains(&(before.len() - digits.len())) && digits.ends_with('\\');
        let repeated = self.rest.starts_with(['*', '+', '?'])
            || self.rest.strip_prefix('{').is_some_and(|rest| counted(rest).is_some());
        if count || octal || repeated || self.end {
            return Err(awkward());
        }
        self.hole = true;
        self.out.push_str(&format!("(?-u:\\x{:02X})", HOLE_BYTE + hole));
        self.atom(1);
        Ok(())
    }

    /// Assertions look at their neighbours, which a hole is not: beside holes, they are the first and the last.
    fn assertion(&mut self, c: char) -> Result<()> {
        if self.captures == Captures::Holes {
            match c {
                '^' | 'A' if self.hole => return Err(awkward()),
                '$' | 'z' => self.end = true,
                'b' | 'B' => return Err(awkward()),
                _ => {}
            }
        }
        Ok(())
    }

    fn repeat(&mut self, operator: &str, times: u32) -> Result<()> {
        let group = self.group();
        let Some(copies) = group.last else {
            return Err(Refused::Invalid("missing argument to repetition operator"));
        };
        if group.repeated {
            return Err(Refused::Invalid("invalid nested repetition operator"));
        }
        let copies = copies.saturating_mul(times.max(1));
        if copies > MAX_REPEAT {
            return Err(Refused::Invalid("invalid repeat count"));
        }
        group.last = Some(copies);
        group.repeated = true;
        group.copies = group.copies.max(copies);
        self.out.push_str(operator);
        if let Some(rest) = self.rest.strip_prefix('?') {
            self.rest = rest;
            self.out.push('?');
        }
        Ok(())
    }

    fn open_group(&mut self) -> Result<()> {
        let open = if self.captures == Captures::Groups { "(" } else { "(?:" };
        if !self.rest.starts_with('?') {
            self.out.push_str(open);
            self.groups.push(Group::default());
            return Ok(());
        }
        for prefix in ["?P<", "?<"] {
            // `(?<=` and `(?<!` look behind, which RE2 refuses: no name starts so.
            if let Some(rest) = self.rest.strip_prefix(prefix) {
                let Some((name, after)) = rest.split_once('>') else {
                    return Err(Refused::Invalid("invalid named capture"));
                };
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if name.is_empty() || !name.chars().all(word) || self.names.contains(&name) {
                    return Err(Refused::Invalid("invalid named capture"));
                }
                self.names.push(name);
                self.rest = after;
                self.out.push_str(open);
                self.groups.push(Group::default());
                return Ok(());
            }
        }
        self.next();
        if self.captures == Captures::Holes && !self.rest.starts_with(':') {
            return Err(awkward());
        }
        // Flags up to `:` (for a group) or `)` (from here to the end of the group).
        let (mut on, mut off, mut negated, mut since_sign) = (String::new(), String::new(), false, true);
        loop {
            match self.next() {
                Some(c @ ('i' | 'm' | 's' | 'U')) => {
                    let (to, other) = if negated { (&mut off, &mut on) } else { (&mut on, &mut off) };
                    other.retain(|flag| flag != c);
                    if !to.contains(c) {
                        to.push(c);
                    }
                    since_sign = true;
                }
                Some('-') if !negated => {
                    negated = true;
                    since_sign = false;
                }
                Some(end @ (':' | ')')) if since_sign => {
                    let off = if off.is_empty() { String::new() } else { format!("-{off}") };
                    if end == ':' {
                        self.out.push_str(&format!("(?{on}{off}:"));
                        self.groups.push(Group::default());
                    } else if !on.is_empty() || !off.is_empty() {
                        self.out.push_str(&format!("(?{on}{off})"));
                    }
                    return Ok(());
                }
                _ => return Err(Refused::Invalid("invalid or unsupported Perl syntax")),
            }
        }
    }

    fn escape(&mut self) -> Result<()> {
        let Some(c) = self.rest.chars().next() else { return Err(Refused::Invalid("trailing \\")) };
        let assertion = match c {
            'A' => "\\A",
            'z' => "\\z",
            'b' => "(?-u:\\b)",
            'B' => "(?-u:\\B)",
            _ => "",
        };
        if !assertion.is_empty() {
            self.assertion(c)?;
            self.next();
            self.out.push_str(assertion);
            self.atom(1);
            return Ok(());
        }
        if let Some((ranges, negated)) = perl_class(c) {
            self.next();
            self.out.push_str(&format!("[{}{ranges}]", if negated { "^" } else { "" }));
            self.atom(1);
            return Ok(());
        }
        let c = self.escaped()?;
        self.literal(c);
        Ok(())
    }

    /// The character that an escape stands for; the backslash is behind us.
    fn escaped(&mut self) -> Result<char> {
        let invalid = Refused::Invalid("invalid escape sequence");
        let Some(c) = self.next() else { return Err(Refused::Invalid("trailing \\")) };
        let octal = |c: char| c.is_digit(8);
        let code = match c {
            '1'..='7' if !self.rest.starts_with(octal) => return Err(invalid),
            '0'..='7' => {
                let mut code = c.to_digit(8).unwrap_or(0);
                for _ in 0..2 {
                    let Some(digit) = self.rest.chars().next().and_then(|c| c.to_digit(8)) else { break };
                    self.next();
                    code = code * 8 + digit;
                }
                code
            }
            'x' => {
                let (digits, after) = match self.rest.strip_prefix('{') {
                    Some(rest) => rest.split_once('}').ok_or(invalid.clone())?,
                    None => self.rest.split_at_checked(2).ok_or(invalid.clone())?,
                };
                if digits.is_empty() || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
                    return Err(invalid);
                }
                self.rest = after;
                u32::from_str_radix(digits, 16).map_err(|_| invalid.clone())?
            }
            'a' => 7,
            'f' => 12,
            'n' => 10,
            'r' => 13,
            't' => 9,
            'v' => 11,
            'p' | 'P' => {
                return Err(Refused::Unsupported(
                    "Unicode classes differ between engines; list the characters".into(),
                ));
            }
            c if c.is_ascii() && !c.is_ascii_alphanumeric() => c as u32,
            _ => return Err(invalid),
        };
        char::from_u32(code).ok_or(invalid)
    }

    fn class(&mut self) -> Result<()> {
        const MISSING: Refused = Refused::Invalid("missing closing ]");
        self.out.push('[');
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.rest = rest;
            self.out.push('^');
        }
        let mut first = true;
        loop {
            if !first && self.rest.starts_with(']') {
                self.next();
                break;
            }
            if self.rest.is_empty() {
                return Err(MISSING);
            }
            first = false;
            if let Some(rest) = self.rest.strip_prefix("[:")
                && let Some((name, after)) = rest.split_once(":]")
            {
                let (name, negated) = name.strip_prefix('^').map_or((name, false), |name| (name, true));
                const NAMES: [&str; 14] = [
                    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
                    "space", "upper", "word", "xdigit",
                ];
                if !NAMES.contains(&name) {
                    return Err(Refused::Invalid("invalid character class range"));
                }
                self.out.push_str(&format!("[:{}{name}:]", if negated { "^" } else { "" }));
                self.rest = after;
                continue;
            }
            if let Some(rest) = self.rest.strip_prefix('\\')
                && let Some((ranges, negated)) = rest.chars().next().and_then(perl_class)
            {
                self.rest = &rest[1..];
                self.out.push_str(&format!("[{}{ranges}]", if negated { "^" } else { "" }));
                continue;
            }
            let low = self.class_character()?;
            let dash = self.rest.strip_prefix('-').filter(|rest| !rest.starts_with(']') && !rest.is_empty());
            let high = match dash {
                Some(rest) => {
                    self.rest = rest;
                    self.class_character()?
                }
                None => low,
            };
            if high < low {
                return Err(Refused::Invalid("invalid character class range"));
            }
            self.out.push_str(&code_point(low));
            if high > low {
                self.out.push('-');
                self.out.push_str(&code_point(high));
            }
        }
        self.out.push(']');
        self.atom(1);
        Ok(())
    }

    fn class_character(&mut self) -> Result<char> {
        match self.next() {
            Some('\\') => self.escaped(),
            Some(c) if self.captures == Captures::Holes && hole_number(c).is_some() => Err(awkward()),
            Some(c) => Ok(c),
            None => Err(Refused::Invalid("missing closing ]")),
        }
    }
}

/// The number of the hole that a character stands for.
fn hole_number(c: char) -> Option<u8> {
    let number = u32::from(c).checked_sub(u32::from(Class::HOLE))?;
    u8::try_from(number).ok().filter(|&number| usize::from(number) < MAX_HOLES)
}

fn awkward() -> Refused {
    Refused::Unsupported("a run-time string where it is not plainly text".into())
}

fn code_point(c: char) -> String {
    format!("\\x{{{:X}}}", c as u32)
}

/// The members of `\d`, `\s`, `\w` and their complements.
fn perl_class(c: char) -> Option<(&'static str, bool)> {
    Some(match c {
        'd' => ("0-9", false),
        'D' => ("0-9", true),
        's' => ("\\t\\n\\x0C\\r ", false),
        'S' => ("\\t\\n\\x0C\\r ", true),
        'w' => ("0-9A-Za-z_", false),
        'W' => ("0-9A-Za-z_", true),
        _ => return None,
    })
}

/// `n}`, `n,}` or `n,m}` at the start of `rest`, and what follows. Anything else after `{` makes
/// that a literal.
fn counted(rest: &str) -> Option<(u32, Option<u32>, &str)> {
    let (inside, after) = rest.split_once('}')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let canonical = text == "0" || !text.starts_with('0');
        // Too long a number is too large a count, not a literal.
        (plain && canonical).then(|| text.parse().unwrap_or(u32::MAX))
    };
    match inside.split_once(',') {
        None => number(inside).map(|n| (n, Some(n), after)),
        Some((min, "")) => number(min).map(|n| (n, None, after)),
        Some((min, max)) => Some((number(min)?, Some(number(max)?), after)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pattern: &str, text: &str) -> Option<bool> {
        matches(pattern, Span::Part, text).ok()
    }

    fn whole(pattern: &str, text: &str) -> Option<bool> {
        matches(pattern, Span::Whole, text).ok()
    }

    #[test]
    fn patterns_mean_what_re2_says_they_mean() {
        assert_eq!(part(r"^[[a]b]$", "[b]"), Some(true));
        assert_eq!(part(r"^[a&&b]$", "&"), Some(true));
        assert_eq!(part(r"^\d$", "٣"), Some(false));
        assert_eq!(part(r"^\s$", "\u{a0}"), Some(false));
        assert_eq!(part(r"^\s$", "\u{b}"), Some(false));
        assert_eq!(part(r"(?i)(FABRIC)_.+=.+", "fabric_x=1"), Some(true));
        assert_eq!(part(r"^a.b$", "a\nb"), Some(false));
        assert_eq!(part(r"^(?s)a.b$", "a\nb"), Some(true));
        assert_eq!(part(r"^\Qa.b\E+$", "a.bb"), Some(true));
        assert_eq!(part(r"^\Qa.b", "axb"), Some(false));
        assert_eq!(part(r"^a{,2}$", "a{,2}"), Some(true));
        assert_eq!(part(r"^[]a]$", "]"), Some(true));
        assert_eq!(part(r"^[\d-z]$", "-"), Some(true));
        assert_eq!(part(r"\bfoo\b", "a foo b"), Some(true));
        assert_eq!(part(r"\bfoo\b", "éfoo"), Some(true));
        assert_eq!(part(r"(?m)^b$", "a\nb"), Some(true));
        assert_eq!(part("", "anything"), Some(true));
    }

    #[test]
    fn what_re2_refuses_is_invalid() {
        let patterns = [
            "(",
            ")",
            "*",
            "a**",
            "a{2}{3}",
            "a{1001}",
            "(a{100}){11}",
            "(?=a)",
            "(?<=a)",
            "(?x)a",
            r"\8",
            r"\1",
            r"\Z",
            r"\C",
            "[a",
            "[b-a]",
            "[[:nope:]]",
            "a|*",
            r"\",
            "(?P<n>a)(?P<n>b)",
            r"\x{110000}",
            "a{3,2}",
        ];
        for pattern in patterns {
            let refused = matches(pattern, Span::Part, "a");
            assert!(matches!(refused, Err(Refused::Invalid(_))), "{pattern}: {refused:?}");
        }
    }

    #[test]
    fn unicode_classes_are_refused_and_not_read_differently() {
        assert!(matches!(matches(r"\pL", Span::Part, "a"), Err(Refused::Unsupported(_))));
    }

    #[test]
    fn a_whole_match_leaves_nothing_over_on_either_side() {
        assert_eq!(whole("A=1|B=2", "A=1"), Some(true));
        assert_eq!(whole("A=1|B=2", "B=2"), Some(true));
        assert_eq!(whole("A=1|B=2", "A=1xyz"), Some(false));
        assert_eq!(whole("A=1|B=2", "LD_PRELOAD=/e;B=2"), Some(false));
        assert_eq!(whole("a)|(?:b", "b"), None);
        assert_eq!(whole("a?b", "b"), Some(true));
        assert_eq!(whole("a|ab", "ab"), Some(true));
    }
}
