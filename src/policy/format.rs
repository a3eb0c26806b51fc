//! The image: a compiled policy as bytes, read in place.
//!
//! A header, then the [`Section`]s in their order without gaps; everything is little-endian. What refers to
//! something, and what says where something ends, is a *word*: three bytes, of which an image has room for no more
//! than it can use. [`Image::read`] finds the sections and nothing else: only [`verify`](super::verify) makes their
//! content trustworthy, and no accessor here panics before.
//!
//! One content has one encoding. Strings are sorted by their bytes and unique; integers too;
//! composite constants are unique and ordered by height, kind and content, so that they refer to
//! earlier ones only; nothing follows the last section. The builder
//! ([`Builder`](super::builder::Builder)) makes exactly these bytes.
//!
//! # Constants
//!
//! A [`Const`] is a word: a kind in the top three bits, an index below. `null` and booleans are
//! immediate, integers and strings index their sections, arrays, objects and sets index
//! [`Section::Nodes`]. A node is the kind (top three bits) and the end (in words) of its elements in
//! [`Section::Words`]; it starts where the one before ends. Elements are constants: of an array in
//! order; of a set ascending in OPA's order; of an object first its *shape*, the array of its keys,
//! ascending, then the values in the order of the keys.
//!
//! A node's *level* is 0 without elements, otherwise one more than the highest of its elements, where
//! what is no node has level 0. [`Section::Levels`] has the number of nodes up to and with each level.
//! Within a level, nodes ascend by kind, then by their words.
//!
//! # Indexes
//!
//! There is no index section: an index is a constant object from what is looked for to what is there, for
//! [`Lookup`](super::instruction::Instruction::Lookup) or [`Find`](super::instruction::Instruction::Find).

use super::dfa::Dfa;

/// The first bytes of every image.
pub const MAGIC: [u8; 8] = *b"PARMAPOL";
/// The version of this format. Any change of meaning is a new one.
pub const FORMAT_VERSION: u32 = 4;
/// The largest image, in bytes.
pub const MAX_IMAGE: usize = 1 << 20;
/// Levels of nesting in a constant, and in any value.
pub const MAX_DEPTH: usize = 32;
/// Registers of one function.
pub const MAX_REGISTERS: usize = 255;
/// Bodies inside each other in one function, the function itself not counted.
pub const MAX_NESTING: usize = 48;
/// Registers that a call may need in all, its callees' included.
pub const MAX_STACK: usize = 4096;
/// Functions that may be active at once.
pub const MAX_FRAMES: usize = 64;
/// Bodies that may be open at once, over all active functions.
pub const MAX_CONTROLS: usize = 512;
/// Run-time strings in one pattern.
pub const MAX_HOLES: usize = 8;
/// Groups of one pattern, itself included.
pub const MAX_GROUPS: usize = 32;
/// Steps of one program of a pattern.
pub const MAX_PROGRAM: usize = 1 << 14;
/// Bytes of a word.
pub const WORD: usize = 3;
/// Bytes of a source: a string and a SHA-256.
pub const SOURCE_SIZE: usize = WORD + 32;
/// The size of the header in bytes.
pub const HEADER_SIZE: usize = 16 + 4 * Section::COUNT;

/// The sections, in their order in the image.
///
/// The header is [`MAGIC`], [`FORMAT_VERSION`] (u32), the compiler's version (u32), and the length
/// in bytes of each section (u32 each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    /// What was compiled: a string and a SHA-256 each (35 bytes), ascending by string.
    Sources,
    /// End of each string in [`Section::StringBytes`], a word each.
    StringEnds,
    /// UTF-8.
    StringBytes,
    /// i64 each.
    Ints,
    /// Ends of levels in [`Section::Nodes`], a word each, strictly ascending; the last is the number of nodes.
    Levels,
    /// Composite constants, a word each.
    Nodes,
    /// Elements of composite constants, [`Const`] each.
    Words,
    /// End of each DFA in [`Section::DfaBytes`], a word each.
    DfaEnds,
    /// [`Dfa`]s.
    DfaBytes,
    /// End of each program in [`Section::Programs`], a word each, in units of 8 bytes.
    ProgramEnds,
    /// [`Program`]s: 8 bytes, namely `holes`, `slots` and six zeros, then [`Step`]s of 8 bytes each.
    Programs,
    /// [`Pattern`]s, a word each.
    Patterns,
    /// Patterns by their text: a string, and [`Class`] and pattern, a word each; see [`Image::pattern_named`].
    Named,
    /// [`FunctionRecord`]s, 13 bytes each.
    Functions,
    /// Instructions, by functions in their order.
    Code,
    /// Entry points: a string and a function, a word each, ascending by string.
    Entries,
}

impl Section {
    /// The number of sections.
    pub const COUNT: usize = 16;
}

/// The kinds of values, in OPA's order. Numbers are integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// `null`
    Null = 0,
    /// `false` and `true`
    Bool = 1,
    /// A signed 64-bit integer.
    Int = 2,
    /// UTF-8.
    String = 3,
    /// An array.
    Array = 4,
    /// An object.
    Object = 5,
    /// A set.
    Set = 6,
}

impl Kind {
    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<Kind> {
        const ALL: [Kind; 7] =
            [Kind::Null, Kind::Bool, Kind::Int, Kind::String, Kind::Array, Kind::Object, Kind::Set];
        ALL.get(number as usize).copied()
    }
}

/// A constant: kind and index in one word; see the [module documentation](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Const(u32);

impl Const {
    /// `null`
    pub const NULL: Const = Const(0);
    /// `false`
    pub const FALSE: Const = Const(1 << Const::INDEX_BITS);
    /// `true`
    pub const TRUE: Const = Const(1 << Const::INDEX_BITS | 1);
    /// The number of bits of the index: more than an image can have of anything.
    pub const INDEX_BITS: u32 = 21;

    /// A boolean.
    pub const fn bool(value: bool) -> Const {
        if value { Const::TRUE } else { Const::FALSE }
    }

    /// The constant of this kind with this index (of which [`INDEX_BITS`](Self::INDEX_BITS) count).
    pub const fn new(kind: Kind, index: u32) -> Const {
        Const((kind as u32) << Self::INDEX_BITS | index & ((1 << Self::INDEX_BITS) - 1))
    }

    /// The encoding.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Any word; the verifier refuses those that mean nothing.
    pub const fn from_bits(bits: u32) -> Const {
        Const(bits)
    }

    /// The kind, if the word has one.
    #[inline]
    pub fn kind(self) -> Option<Kind> {
        Kind::from_number(self.0 >> Self::INDEX_BITS)
    }

    /// The index in the kind's section.
    pub const fn index(self) -> u32 {
        self.0 & ((1 << Self::INDEX_BITS) - 1)
    }
}

/// What a string is matched against, from its first byte to its last.
///
/// As a word: the variant in the top two bits, its operand in the others (of a `Member` the DFA in the upper 10,
/// the pattern in the lower 12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// A string that this DFA accepts.
    Dfa(u32),
    /// This string, by its number. Cheaper than a DFA.
    Literal(u32),
    /// A string that this program matches: a pattern with holes, or one whose groups are asked for.
    Program(u32),
    /// A string that this one of a DFA's patterns accepts. Many patterns in one DFA are smaller than many DFAs.
    Member {
        /// The DFA, below [`Pattern::MAX_DFAS`].
        dfa: u32,
        /// The pattern, below [`Pattern::MAX_MEMBERS`].
        pattern: u32,
    },
}

impl Pattern {
    const OPERAND_BITS: u32 = 22;
    const MEMBER_BITS: u32 = 12;
    /// DFAs of which single patterns can be named.
    pub const MAX_DFAS: u32 = 1 << (Self::OPERAND_BITS - Self::MEMBER_BITS);
    /// Patterns of one DFA that can be named.
    pub const MAX_MEMBERS: u32 = 1 << Self::MEMBER_BITS;

    /// Reads one word.
    pub fn from_bits(bits: u32) -> Pattern {
        let operand = bits & ((1 << Pattern::OPERAND_BITS) - 1);
        match bits >> Pattern::OPERAND_BITS {
            0 => Pattern::Dfa(operand),
            1 => Pattern::Literal(operand),
            2 => Pattern::Program(operand),
            _ => {
                let pattern = operand & ((1 << Pattern::MEMBER_BITS) - 1);
                Pattern::Member { dfa: operand >> Pattern::MEMBER_BITS, pattern }
            }
        }
    }

    /// The word.
    pub fn bits(self) -> u32 {
        let (variant, operand) = match self {
            Pattern::Dfa(index) => (0, index),
            Pattern::Literal(index) => (1, index),
            Pattern::Program(index) => (2, index),
            Pattern::Member { dfa, pattern } => (3, dfa << Pattern::MEMBER_BITS | pattern),
        };
        variant << Pattern::OPERAND_BITS | operand & ((1 << Pattern::OPERAND_BITS) - 1)
    }
}

/// How a pattern that is known by its text is used. One text may be several patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    /// All of a string has to match.
    Whole = 0,
    /// Some part of a string has to match.
    Part = 1,
    /// Matches are looked for, with their groups.
    Find = 2,
    /// As `Whole`, with holes: in the text, hole *n* is the character [`Class::HOLE`] + *n*.
    WholeHoles = 3,
    /// As `Part`, with holes.
    PartHoles = 4,
}

impl Class {
    /// What stands for the first hole in a text. It is of a private use area and of no meaning elsewhere.
    pub const HOLE: char = '\u{f0000}';
    const SHIFT: u32 = 21;
    const NONE: u32 = (1 << Self::SHIFT) - 1;

    /// The class with this number.
    pub fn from_number(number: u32) -> Option<Class> {
        const ALL: [Class; 5] = [Class::Whole, Class::Part, Class::Find, Class::WholeHoles, Class::PartHoles];
        ALL.get(number as usize).copied()
    }

    /// The class of the same use with holes, if there is one.
    pub fn with_holes(self) -> Option<Class> {
        match self {
            Class::Whole => Some(Class::WholeHoles),
            Class::Part => Some(Class::PartHoles),
            _ => None,
        }
    }

    /// The word that a name has for this class and pattern.
    pub fn bits(self, pattern: Option<u32>) -> u32 {
        (self as u32) << Self::SHIFT | pattern.unwrap_or(Self::NONE) & Self::NONE
    }
}

/// What matches where an automaton cannot tell: a non-deterministic one, which tries one way after another.
#[derive(Clone, Copy, Debug)]
pub struct Program<'p> {
    /// The number of run-time strings that it takes; at most [`MAX_HOLES`].
    pub holes: u8,
    /// The number of positions that it notes, two for each group.
    pub slots: u8,
    /// [`Step`]s, as [`Step::from_bytes`] reads them.
    pub steps: &'p [[u8; Step::SIZE]],
}

/// A step of a program. Programs run from step 0; of two ways that both match, the first counts.
///
/// 8 bytes: variant, three operands of a byte (of a split its second step in 24 bits), the next step in 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads a byte from `low` to `high`.
    Range {
        /// The least byte.
        low: u8,
        /// The greatest byte.
        high: u8,
        /// Where to go on.
        next: u32,
    },
    /// Goes on at `first`; if that does not match, at `second`.
    Split {
        /// The preferred way.
        first: u32,
        /// The other one, below 2^24.
        second: u32,
    },
    /// Notes the position: of group n, the start is slot 2n and the end is slot 2n + 1.
    Save {
        /// The slot.
        slot: u8,
        /// Where to go on.
        next: u32,
    },
    /// Goes on if the position is of this kind.
    Assert {
        /// The kind.
        look: Look,
        /// Where to go on.
        next: u32,
    },
    /// Reads what the run-time string with this number stands for.
    Hole {
        /// Its number, below [`MAX_HOLES`].
        hole: u8,
        /// Where to go on.
        next: u32,
    },
    /// Has matched.
    Match,
}

/// A kind of position in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Look {
    /// At the start.
    Start = 0,
    /// At the end.
    End = 1,
    /// At the start or after a line feed.
    LineStart = 2,
    /// At the end or before a line feed.
    LineEnd = 3,
    /// Between `[0-9A-Za-z_]` and something else.
    Boundary = 4,
    /// Anywhere else.
    NoBoundary = 5,
}

impl Step {
    /// Bytes of one step.
    pub const SIZE: usize = 8;

    /// Reads a step; `None` if it is none, or not in its one encoding.
    pub fn from_bytes(&[variant, a, b, c, d, e, f, g]: &[u8; Self::SIZE]) -> Option<Step> {
        const LOOKS: [Look; 6] =
            [Look::Start, Look::End, Look::LineStart, Look::LineEnd, Look::Boundary, Look::NoBoundary];
        let next = u32::from_le_bytes([d, e, f, g]);
        Some(match (variant, b, c) {
            (0, _, 0) if a <= b => Step::Range { low: a, high: b, next },
            (1, _, _) => Step::Split { first: next, second: u32::from_le_bytes([a, b, c, 0]) },
            (2, 0, 0) => Step::Save { slot: a, next },
            (3, 0, 0) => Step::Assert { look: *LOOKS.get(usize::from(a))?, next },
            (4, 0, 0) if usize::from(a) < MAX_HOLES => Step::Hole { hole: a, next },
            (5, 0, 0) if a == 0 && next == 0 => Step::Match,
            _ => return None,
        })
    }

    /// The step's bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let ([variant, a, b, c], next) = match self {
            Step::Range { low, high, next } => ([0, low, high, 0], next),
            Step::Split { first, second } => {
                let [a, b, c, _] = second.to_le_bytes();
                ([1, a, b, c], first)
            }
            Step::Save { slot, next } => ([2, slot, 0, 0], next),
            Step::Assert { look, next } => ([3, look as u8, 0, 0], next),
            Step::Hole { hole, next } => ([4, hole, 0, 0], next),
            Step::Match => ([5, 0, 0, 0], 0),
        };
        let [d, e, f, g] = next.to_le_bytes();
        [variant, a, b, c, d, e, f, g]
    }
}

/// A function: 13 bytes.
///
/// In their order: name and end of code (a word each); arity, registers, `memo << 7 | frames` (a byte each); stack and
/// controls (two bytes each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionRecord {
    /// A string, for people.
    pub name: u32,
    /// Where its code ends in [`Section::Code`], in bytes; it starts where the one before ends.
    pub end: u32,
    /// Number of arguments, in the first registers.
    pub arity: u8,
    /// Number of registers.
    pub registers: u8,
    /// Whether its result is remembered for the rest of a decision. Only without arguments.
    pub memo: bool,
    /// Registers that a call needs, the deepest calls of its callees included.
    pub stack: u16,
    /// Functions active at once in a call of this one, itself included; below 128.
    pub frames: u8,
    /// Bodies open at once in a call of this one, the function bodies not counted.
    pub controls: u16,
}

impl FunctionRecord {
    /// Bytes of one record.
    pub const SIZE: usize = 13;
    const MEMO: u8 = 1 << 7;

    /// Reads a record.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> FunctionRecord {
        let &[a, b, c, d, e, f, arity, registers, frames, g, h, i, j] = bytes;
        FunctionRecord {
            name: u32::from_le_bytes([a, b, c, 0]),
            end: u32::from_le_bytes([d, e, f, 0]),
            arity,
            registers,
            memo: frames & Self::MEMO != 0,
            stack: u16::from_le_bytes([g, h]),
            frames: frames & !Self::MEMO,
            controls: u16::from_le_bytes([i, j]),
        }
    }

    /// The record's bytes.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let [[a, b, c, _], [d, e, f, _]] = [self.name, self.end].map(u32::to_le_bytes);
        let [[g, h], [i, j]] = [self.stack, self.controls].map(u16::to_le_bytes);
        let frames = self.frames | if self.memo { Self::MEMO } else { 0 };
        [a, b, c, d, e, f, self.arity, self.registers, frames, g, h, i, j]
    }
}

/// Why bytes are not an image. Each names what is wrong; none carries content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Longer than [`MAX_IMAGE`], shorter than a header, or not as long as its sections.
    Length,
    /// Not [`MAGIC`].
    Magic,
    /// Another [`FORMAT_VERSION`].
    Version,
    /// A section's length or its table of ends is impossible.
    Section(Section),
    /// A string is no UTF-8, or strings are not strictly ascending.
    Strings,
    /// Integers are not strictly ascending.
    Ints,
    /// A composite constant is malformed, refers forward, or is not in its place.
    Constant,
    /// A DFA that is malformed, or not in its one encoding.
    Dfa,
    /// A step of a program means nothing or leads out of it; a pattern or its name refers to nothing; names are not
    /// strictly ascending.
    Pattern,
    /// A function's record contradicts its code or exceeds a limit.
    Function {
        /// The function's number.
        function: u32,
    },
    /// An instruction breaks a rule.
    Code {
        /// The function's number.
        function: u32,
        /// Offset in the function's code, in bytes.
        at: u32,
        /// Which rule.
        rule: CodeRule,
    },
    /// Sources or entries are not strictly ascending or refer to nothing; an entry takes arguments.
    Names,
    /// There was no memory to load it.
    Memory,
}

/// A rule of code that an instruction can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeRule {
    /// No such instruction, or not its one encoding.
    Encoding,
    /// A register beyond the function's.
    Register,
    /// A register read that some way here has not written.
    Unassigned,
    /// A register written that some way here has already written.
    Reassigned,
    /// A constant that does not exist.
    Constant,
    /// A call of this function or a later one.
    Callee,
    /// Another number of arguments than it takes.
    Arity,
    /// A pattern or DFA that does not exist.
    Pattern,
    /// A body that reaches beyond the one around it.
    Body,
    /// More bodies inside each other than [`MAX_NESTING`].
    Nesting,
    /// A yield without its comprehension, or of the wrong kind.
    Yield,
    /// `Done` for a body that is not there, or beyond a comprehension.
    Done,
}

/// The sections of an image, found but not verified.
#[derive(Clone, Copy, Debug)]
pub struct Image<'p> {
    /// The compiler's version, as it counts itself.
    pub compiler: u32,
    sections: [&'p [u8]; Section::COUNT],
}

/// How many of `count` numbers, from 0 on, are before the first for which `before` does not hold.
fn partition(count: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        (low, high) = if before(middle) { (middle + 1, high) } else { (low, middle) };
    }
    low
}

#[inline]
fn word_at(bytes: &[u8], index: usize) -> Option<u32> {
    let &[a, b, c] = bytes.get(index.checked_mul(WORD)?..)?.first_chunk()?;
    Some(u32::from_le_bytes([a, b, c, 0]))
}

impl<'p> Image<'p> {
    /// Finds the sections.
    pub fn read(bytes: &'p [u8]) -> Result<Image<'p>, ImageError> {
        if bytes.len() > MAX_IMAGE || bytes.len() < HEADER_SIZE {
            return Err(ImageError::Length);
        }
        let (header, mut rest) = bytes.split_at(HEADER_SIZE);
        if !header.starts_with(&MAGIC) {
            return Err(ImageError::Magic);
        }
        let number = |index: usize| header.as_chunks().0.get(index).copied().map_or(0, u32::from_le_bytes);
        if number(2) != FORMAT_VERSION {
            return Err(ImageError::Version);
        }
        let compiler = number(3);
        let mut sections = [&bytes[..0]; Section::COUNT];
        for (index, section) in sections.iter_mut().enumerate() {
            let length = number(4 + index) as usize;
            (*section, rest) = rest.split_at_checked(length).ok_or(ImageError::Length)?;
        }
        if !rest.is_empty() {
            return Err(ImageError::Length);
        }
        Ok(Image { compiler, sections })
    }

    /// A section's bytes.
    #[inline]
    pub fn section(&self, section: Section) -> &'p [u8] {
        self.sections[section as usize]
    }

    /// Number of words in a section.
    pub fn words(&self, section: Section) -> usize {
        self.section(section).len() / WORD
    }

    /// A word of a section.
    #[inline]
    pub fn word(&self, section: Section, index: usize) -> Option<u32> {
        word_at(self.section(section), index)
    }

    /// The range that a table of ends gives to number `index`.
    #[inline]
    pub fn range(&self, ends: Section, index: u32) -> Option<core::ops::Range<usize>> {
        let index = index as usize;
        let end = self.word(ends, index)?;
        let start = if index == 0 { 0 } else { self.word(ends, index - 1)? };
        (start <= end).then_some(start as usize..end as usize)
    }

    /// A string's bytes.
    #[inline]
    pub fn string(&self, index: u32) -> Option<&'p [u8]> {
        self.section(Section::StringBytes).get(self.range(Section::StringEnds, index)?)
    }

    /// An integer.
    #[inline]
    pub fn int(&self, index: u32) -> Option<i64> {
        let start = (index as usize).checked_mul(8)?;
        self.section(Section::Ints).get(start..)?.first_chunk().copied().map(i64::from_le_bytes)
    }

    /// A composite constant: its kind and where its elements are in [`Section::Words`].
    #[inline]
    pub fn node(&self, index: u32) -> Option<(Kind, core::ops::Range<usize>)> {
        let node = Const::from_bits(self.word(Section::Nodes, index as usize)?);
        let start = match index.checked_sub(1) {
            Some(before) => Const::from_bits(self.word(Section::Nodes, before as usize)?).index(),
            None => 0,
        };
        let end = node.index();
        (start <= end).then_some((node.kind()?, start as usize..end as usize))
    }

    /// Where a composite constant's elements start in [`Section::Words`].
    #[inline]
    pub(super) fn node_start(&self, index: u32) -> usize {
        let before = index.checked_sub(1).and_then(|before| self.word(Section::Nodes, before as usize));
        before.map_or(0, |node| Const::from_bits(node).index() as usize)
    }

    /// How many elements it has.
    #[inline]
    pub(super) fn node_len(&self, index: u32) -> u32 {
        let end = self.word(Section::Nodes, index as usize).map_or(0, |node| Const::from_bits(node).index());
        end.saturating_sub(self.node_start(index) as u32)
    }

    /// The length in bytes of a string.
    #[inline]
    pub(super) fn string_len(&self, index: u32) -> u32 {
        let end = |index: u32| self.word(Section::StringEnds, index as usize).unwrap_or(0);
        end(index).saturating_sub(index.checked_sub(1).map_or(0, end))
    }

    /// A word of [`Section::Words`].
    #[inline]
    pub fn element(&self, index: usize) -> Option<Const> {
        self.word(Section::Words, index).map(Const::from_bits)
    }

    /// A DFA's bytes.
    pub fn dfa_bytes(&self, index: u32) -> Option<&'p [u8]> {
        self.section(Section::DfaBytes).get(self.range(Section::DfaEnds, index)?)
    }

    /// A DFA.
    #[inline]
    pub fn dfa(&self, index: u32) -> Option<Dfa<'p>> {
        Dfa::read(self.dfa_bytes(index)?)
    }

    /// A pattern.
    #[inline]
    pub fn pattern(&self, index: u32) -> Option<Pattern> {
        self.word(Section::Patterns, index as usize).map(Pattern::from_bits)
    }

    /// A program.
    #[inline]
    pub fn program(&self, index: u32) -> Option<Program<'p>> {
        let bytes: &'p [[u8; Step::SIZE]] = self.section(Section::Programs).as_chunks().0;
        let (&[holes, slots, zeros @ ..], steps) =
            bytes.get(self.range(Section::ProgramEnds, index)?)?.split_first()?;
        (zeros == [0; Step::SIZE - 2]).then_some(Program { holes, slots, steps })
    }

    /// The name with this number: its text, a string's number, its class, and its pattern: `None` for a text
    /// that is no regular expression.
    pub fn name(&self, index: usize) -> Option<(u32, Class, Option<u32>)> {
        let bits = self.word(Section::Named, index * 2 + 1)?;
        let number = bits & Class::NONE;
        let pattern = (number != Class::NONE).then_some(number);
        Some((self.word(Section::Named, index * 2)?, Class::from_number(bits >> Class::SHIFT)?, pattern))
    }

    /// Where the names of a class are.
    pub fn names_of(&self, class: Class) -> core::ops::Range<usize> {
        let first = |class: u32| {
            partition(self.words(Section::Named) / 2, |index| {
                self.word(Section::Named, index * 2 + 1).is_some_and(|bits| bits >> Class::SHIFT < class)
            })
        };
        first(class as u32)..first(class as u32 + 1)
    }

    /// The pattern of this class with this text. `None`: the image knows none. `Some(None)`: it is no
    /// regular expression.
    pub fn pattern_named(&self, class: Class, text: &[u8]) -> Option<Option<u32>> {
        let found = partition(self.words(Section::Named) / 2, |index| match self.name(index) {
            Some((name, of, _)) if of == class => self.string(name).is_some_and(|name| name < text),
            Some((_, of, _)) => of < class,
            None => false,
        });
        let (name, of, pattern) = self.name(found)?;
        (of == class && self.string(name)? == text).then_some(pattern)
    }

    /// The same by the number of the text's string.
    pub fn pattern_of_name(&self, class: Class, string: u32) -> Option<Option<u32>> {
        let found = partition(self.words(Section::Named) / 2, |index| {
            self.name(index).is_some_and(|(name, of, _)| (of, name) < (class, string))
        });
        let (name, of, pattern) = self.name(found)?;
        ((of, name) == (class, string)).then_some(pattern)
    }

    /// Number of functions.
    pub fn functions(&self) -> u32 {
        (self.section(Section::Functions).len() / FunctionRecord::SIZE) as u32
    }

    /// A function's record.
    pub fn function(&self, index: u32) -> Option<FunctionRecord> {
        let start = (index as usize).checked_mul(FunctionRecord::SIZE)?;
        self.section(Section::Functions).get(start..)?.first_chunk().map(FunctionRecord::from_bytes)
    }

    /// Where a function's code is in [`Section::Code`], in bytes.
    pub fn code_range(&self, index: u32) -> Option<core::ops::Range<usize>> {
        let end = self.function(index)?.end as usize;
        let start = match index.checked_sub(1) {
            Some(before) => self.function(before)?.end as usize,
            None => 0,
        };
        (start <= end).then_some(start..end)
    }

    /// The sources, by name: name and SHA-256.
    pub fn sources(&self) -> impl Iterator<Item = (u32, [u8; 32])> + use<'p> {
        self.section(Section::Sources).as_chunks::<SOURCE_SIZE>().0.iter().map(|source| {
            let (&[a, b, c], hash) = source.split_first_chunk().expect("a word and a hash");
            (u32::from_le_bytes([a, b, c, 0]), hash.try_into().expect("32 bytes"))
        })
    }

    /// The function of the entry with this name.
    pub fn entry(&self, name: &str) -> Option<u32> {
        let entry = |index: usize| self.word(Section::Entries, 2 * index).and_then(|name| self.string(name));
        let count = self.words(Section::Entries) / 2;
        let found = partition(count, |index| entry(index) < Some(name.as_bytes()));
        let this = entry(found).filter(|this| *this == name.as_bytes());
        this.and_then(|_| self.word(Section::Entries, 2 * found + 1))
    }

    /// The entries, by name: name and function.
    pub fn entries(&self) -> impl Iterator<Item = (u32, u32)> + use<'p> {
        self.section(Section::Entries)
            .as_chunks::<{ 2 * WORD }>()
            .0
            .iter()
            .map(|&[a, b, c, d, e, f]| (u32::from_le_bytes([a, b, c, 0]), u32::from_le_bytes([d, e, f, 0])))
    }
}
