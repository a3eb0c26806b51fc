//! The instruction set: one decoder, one encoder, and what each instruction means.
//!
//! An instruction is its opcode, then its operands, each as long as it needs to be: registers, flags and counts are
//! one byte; a constant, a function, a pattern and the length of a body (in bytes) are a word of three bytes; a list
//! of registers is its length and then the registers. So each has one encoding.
//!
//! # How code runs
//!
//! A function has registers `0..registers`; its arguments are in the first ones. A register is
//! written at most once on the way to any instruction and read only after that (the verifier
//! proves both), so there is no "undefined" value: *undefined leaves the innermost body by failure*.
//!
//! Bodies are nested. Each of [`Block`](Instruction::Block), [`Some`](Instruction::Some),
//! [`Not`](Instruction::Not), [`Scan`](Instruction::Scan), [`Every`](Instruction::Every) and
//! [`Collect`](Instruction::Collect) owns the `body` bytes that follow it; the function itself is
//! the outermost body. A body ends in one of two ways, and its owner says what follows:
//!
//! | owner | body reaches its end (or [`Done`](Instruction::Done)) | body fails |
//! |---|---|---|
//! | `Block` | go on after it | go on after it |
//! | `Some` | go on after it; registers written on every way here stay written | the enclosing body fails |
//! | `Not` | the enclosing body fails | go on after it |
//! | `Scan` | next element; after the last, go on after it | the same |
//! | `Every` | next element; after the last, go on after it | the enclosing body fails |
//! | `Collect` | `dst` is what was yielded; go on after it | the same |
//! | function | return to the caller | the same |
//!
//! A call whose function returned nothing is undefined, so it fails the caller's body.
//! `every x in undefined` is undefined because the load of its domain failed before.

use alloc::vec::Vec;

use super::format::{Const, MAX_HOLES, WORD};

/// A register of the current function, `0..MAX_REGISTERS`.
pub type Reg = u8;

/// Where a result goes. `None` makes a test of it: the body fails if the result is `false`
/// (and, as always, if it is undefined), and the result is dropped.
pub type Target = Option<Reg>;

/// The encoding of an absent register.
pub const NO_REGISTER: u8 = 255;

/// Comparison by OPA's total order: null < boolean < number < string < array < object < set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Relation {
    /// `==`
    Equal = 0,
    /// `!=`
    NotEqual = 1,
    /// `<`
    Less = 2,
    /// `<=`
    LessOrEqual = 3,
    /// `>`
    Greater = 4,
    /// `>=`
    GreaterOrEqual = 5,
}

impl Relation {
    /// All relations, by number.
    pub const ALL: [Relation; 6] = [
        Relation::Equal,
        Relation::NotEqual,
        Relation::Less,
        Relation::LessOrEqual,
        Relation::Greater,
        Relation::GreaterOrEqual,
    ];

    /// Whether two values that compare as `order` are in this relation.
    pub fn holds(self, order: core::cmp::Ordering) -> bool {
        match self {
            Relation::Equal => order.is_eq(),
            Relation::NotEqual => order.is_ne(),
            Relation::Less => order.is_lt(),
            Relation::LessOrEqual => order.is_le(),
            Relation::Greater => order.is_gt(),
            Relation::GreaterOrEqual => order.is_ge(),
        }
    }

    /// As Rego writes it.
    pub fn symbol(self) -> &'static str {
        match self {
            Relation::Equal => "==",
            Relation::NotEqual => "!=",
            Relation::Less => "<",
            Relation::LessOrEqual => "<=",
            Relation::Greater => ">",
            Relation::GreaterOrEqual => ">=",
        }
    }
}

/// What a comprehension builds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Collection {
    /// In the order of yields; [`Instruction::Yield`].
    Array = 0,
    /// Sorted, each value once; [`Instruction::Yield`].
    Set = 1,
    /// Sorted by key; [`Instruction::YieldPair`]; a key with two different values is a fault.
    Object = 2,
}

impl Collection {
    /// All kinds, by number.
    pub const ALL: [Collection; 3] = [Collection::Array, Collection::Set, Collection::Object];
}

/// A list of registers, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args<'a>(pub &'a [Reg]);

/// Owners of a body; see the table in the [module documentation](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// [`Instruction::Block`]
    Block,
    /// [`Instruction::Some`]
    Some,
    /// [`Instruction::Not`]
    Not,
    /// [`Instruction::Scan`]
    Scan,
    /// [`Instruction::Every`]
    Every,
    /// [`Instruction::Collect`]
    Collect(Collection),
}

/// One instruction. `body` is a length in bytes.
#[allow(missing_docs, reason = "each variant's text explains its fields")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction<'a> {
    /// `dst` := a constant.
    Const { dst: Reg, value: Const },
    /// `dst` := `input`. Fails if the decision has no input.
    Input { dst: Reg },
    /// `dst` := `input[key]`. Fails if there is no input, or no such field.
    InputGet { dst: Reg, key: Const },
    /// `dst` := `data.metadata`, an object of the state's maps.
    State { dst: Reg },
    /// `dst` := `data.metadata[key]`. Fails if there is none.
    StateGet { dst: Reg, key: Const },
    /// `dst` := `src`.
    Move { dst: Reg, src: Reg },
    /// `dst` := `from[key]`: array by integer, object by key, set by member (the member itself).
    /// Fails if there is none, or if `from` is no collection.
    Get { dst: Reg, from: Reg, key: Reg },
    /// The same with a constant key.
    GetConst { dst: Reg, from: Reg, key: Const },
    /// `dst` := `from[key]` of a constant: a table that the compiler made, or the policy's data.
    Lookup { dst: Target, key: Reg, from: Const },
    /// `dst` := `[items…]`.
    Array { dst: Reg, items: Args<'a> },
    /// `dst` := `{items…}`.
    Set { dst: Reg, items: Args<'a> },
    /// `dst` := `{key: value, …}` of alternating keys and values; of a key that is there twice,
    /// the last value counts.
    Object { dst: Reg, pairs: Args<'a> },
    /// `dst` := the object with the keys `shape`, a constant array of ascending keys, and these values in their order.
    Record { dst: Reg, shape: Const, values: Args<'a> },
    /// `dst` := `left relation right`.
    Compare { relation: Relation, dst: Target, left: Reg, right: Reg },
    /// The same with a constant on the right.
    CompareConst { relation: Relation, dst: Target, left: Reg, right: Const },
    /// Fails if `value` is `false`; every other value, `null` and 0 included, passes.
    Test { value: Reg },
    /// `dst` := the result of a lower-numbered function. Fails if that returned nothing.
    Call { dst: Target, function: u32, args: Args<'a> },
    /// `dst` := the result of a builtin. Fails if that is undefined (wrong types, bad values).
    Builtin { dst: Target, builtin: Builtin, args: Args<'a> },
    /// `dst` := whether the string `text` matches pattern number `pattern`. Fails if it is no string.
    Match { dst: Target, text: Reg, pattern: u32 },
    /// `dst` := whether the string `text` matches the pattern with the text `pattern`, `part`: a part of it does.
    /// Fails if one of them is no string, or if the pattern is known to be no regular expression. One
    /// that the image does not know by its name is a fault, unless it is a name with holes with the
    /// run-time strings `holes` in their place.
    MatchBy { dst: Target, text: Reg, pattern: Reg, part: bool, holes: Args<'a> },
    /// `dst` := the first `limit` matches of the pattern with the text `pattern` in `text`, each an
    /// array of the strings of its groups. Fails and faults as `MatchBy`, and fails if `limit` is no number.
    Submatches { dst: Reg, text: Reg, pattern: Reg, limit: Reg },
    /// `dst` := whether `table[list]` accepts `text`. That is an array: of a set, which accepts its members, and of an
    /// ascending array of patterns' numbers, which accepts the strings that one of them matches. Fails if the table has
    /// no such list; a table of another form, or a pattern that is a program, is a fault.
    Find { dst: Target, text: Reg, list: Reg, table: Const },
    /// Runs the body once; goes on after it whatever happened.
    Block { body: u32 },
    /// Runs the body once; it must succeed.
    Some { body: u32 },
    /// Runs the body once; it must fail.
    Not { body: u32 },
    /// Runs the body for each element of `source`, in order: index and element of an array, key
    /// and value of an object, member and member of a set. No collection: no elements.
    Scan { source: Reg, key: Target, value: Target, body: u32 },
    /// Runs the body for each element as `Scan` does; it must succeed each time. Fails if
    /// `source` is no collection.
    Every { source: Reg, key: Target, value: Target, body: u32 },
    /// Runs the body once and makes `dst` of what it yields.
    Collect { dst: Reg, kind: Collection, body: u32 },
    /// Adds to the innermost `Collect` (of an array or a set) that encloses this.
    Yield { value: Reg },
    /// Adds to the innermost `Collect` (of an object) that encloses this.
    YieldPair { key: Reg, value: Reg },
    /// The innermost body fails.
    Fail,
    /// The body `depth` levels out (0 is the innermost) reaches its end, and with it all inside.
    /// It may name neither the function nor reach out of a `Collect`.
    Done { depth: u8 },
    /// The function returns `value`, and goes on, so that a different second value is noticed:
    /// that is a fault.
    Return { value: Reg },
    /// The function returns `value` and ends (where no other way could return something else).
    ReturnLast { value: Reg },
    /// The function returns a constant and ends.
    ReturnConst { value: Const },
    /// The function ends if it has returned something: what follows is `else` or `default`.
    Leave,
    /// A fault: the compiler proved that going on would not be what the source means.
    Abort,
}

/// Numbers of instructions. Relations are added to `COMPARE` and `COMPARE_CONST`.
mod opcode {
    pub const CONST: u8 = 0x01;
    pub const INPUT: u8 = 0x02;
    pub const STATE: u8 = 0x03;
    pub const MOVE: u8 = 0x04;
    pub const GET: u8 = 0x05;
    pub const GET_CONST: u8 = 0x06;
    pub const ARRAY: u8 = 0x07;
    pub const SET: u8 = 0x08;
    pub const OBJECT: u8 = 0x09;
    pub const TEST: u8 = 0x0a;
    pub const CALL: u8 = 0x0b;
    pub const BUILTIN: u8 = 0x0c;
    pub const MATCH: u8 = 0x0d;
    pub const MATCH_BY: u8 = 0x0e;
    pub const FIND: u8 = 0x0f;
    pub const COMPARE: u8 = 0x10;
    pub const COMPARE_CONST: u8 = 0x18;
    pub const SUBMATCHES: u8 = 0x1e;
    pub const BLOCK: u8 = 0x20;
    pub const SOME: u8 = 0x21;
    pub const NOT: u8 = 0x22;
    pub const SCAN: u8 = 0x23;
    pub const EVERY: u8 = 0x24;
    pub const COLLECT: u8 = 0x25;
    pub const YIELD: u8 = 0x26;
    pub const YIELD_PAIR: u8 = 0x27;
    pub const FAIL: u8 = 0x28;
    pub const DONE: u8 = 0x29;
    pub const RETURN: u8 = 0x2a;
    pub const RETURN_LAST: u8 = 0x2b;
    pub const LEAVE: u8 = 0x2c;
    pub const ABORT: u8 = 0x2d;
    pub const INPUT_GET: u8 = 0x30;
    pub const LOOKUP: u8 = 0x31;
    pub const RETURN_CONST: u8 = 0x32;
    pub const STATE_GET: u8 = 0x33;
    pub const RECORD: u8 = 0x34;
}

/// Takes operands one after another.
struct Reader<'a> {
    code: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    #[inline(always)]
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.code.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn target(&mut self) -> Option<Target> {
        let byte = self.byte()?;
        Some((byte != NO_REGISTER).then_some(byte))
    }

    #[inline(always)]
    fn word(&mut self) -> Option<u32> {
        let &[a, b, c] = self.code.get(self.at..)?.first_chunk()?;
        self.at += WORD;
        Some(u32::from_le_bytes([a, b, c, 0]))
    }

    #[inline(always)]
    fn constant(&mut self) -> Option<Const> {
        self.word().map(Const::from_bits)
    }

    #[inline(always)]
    fn args(&mut self) -> Option<Args<'a>> {
        let count = usize::from(self.byte()?);
        let args = self.code.get(self.at..)?.get(..count)?;
        self.at += count;
        Some(Args(args))
    }
}

impl<'a> Instruction<'a> {
    /// Reads the instruction at the start of `code` and returns it with the code after it.
    ///
    /// `None` where there is no instruction, or a part is missing; anything else is what [`encode`](Self::encode)
    /// writes. It does not look at what operands refer to: that is the verifier's.
    pub fn decode(code: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (instruction, next) = Self::read(code, 0)?;
        Some((instruction, code.get(next..)?))
    }

    /// Reads the instruction at byte `at` of code that was decoded before, and where the next one is.
    #[inline(always)]
    pub(super) fn read(code: &'a [u8], at: usize) -> Option<(Self, usize)> {
        use Instruction as I;
        let mut r = Reader { code, at };
        // Operands are read in the order in which they are written here.
        let instruction = match r.byte()? {
            opcode::CONST => I::Const { dst: r.byte()?, value: r.constant()? },
            opcode::INPUT => I::Input { dst: r.byte()? },
            opcode::INPUT_GET => I::InputGet { dst: r.byte()?, key: r.constant()? },
            opcode::STATE => I::State { dst: r.byte()? },
            opcode::STATE_GET => I::StateGet { dst: r.byte()?, key: r.constant()? },
            opcode::MOVE => I::Move { dst: r.byte()?, src: r.byte()? },
            opcode::GET => I::Get { dst: r.byte()?, from: r.byte()?, key: r.byte()? },
            opcode::GET_CONST => I::GetConst { dst: r.byte()?, from: r.byte()?, key: r.constant()? },
            opcode::LOOKUP => I::Lookup { dst: r.target()?, key: r.byte()?, from: r.constant()? },
            opcode::ARRAY => I::Array { dst: r.byte()?, items: r.args()? },
            opcode::SET => I::Set { dst: r.byte()?, items: r.args()? },
            opcode::OBJECT => {
                let (dst, pairs) = (r.byte()?, r.args()?);
                if pairs.0.len() % 2 != 0 {
                    return None;
                }
                I::Object { dst, pairs }
            }
            opcode::RECORD => I::Record { dst: r.byte()?, shape: r.constant()?, values: r.args()? },
            opcode::TEST => I::Test { value: r.byte()? },
            opcode::CALL => I::Call { dst: r.target()?, function: r.word()?, args: r.args()? },
            opcode::BUILTIN => {
                let (dst, number) = (r.target()?, r.byte()?);
                I::Builtin { dst, builtin: Builtin::from_number(number)?, args: r.args()? }
            }
            opcode::MATCH => I::Match { dst: r.target()?, text: r.byte()?, pattern: r.word()? },
            opcode::MATCH_BY => {
                let (dst, text, pattern, part, holes) =
                    (r.target()?, r.byte()?, r.byte()?, r.byte()?, r.args()?);
                if holes.0.len() > MAX_HOLES || part > 1 {
                    return None;
                }
                I::MatchBy { dst, text, pattern, part: part == 1, holes }
            }
            opcode::SUBMATCHES => {
                I::Submatches { dst: r.byte()?, text: r.byte()?, pattern: r.byte()?, limit: r.byte()? }
            }
            opcode::FIND => {
                I::Find { dst: r.target()?, text: r.byte()?, list: r.byte()?, table: r.constant()? }
            }
            opcode::BLOCK => I::Block { body: r.word()? },
            opcode::SOME => I::Some { body: r.word()? },
            opcode::NOT => I::Not { body: r.word()? },
            opcode::SCAN => {
                I::Scan { source: r.byte()?, key: r.target()?, value: r.target()?, body: r.word()? }
            }
            opcode::EVERY => {
                I::Every { source: r.byte()?, key: r.target()?, value: r.target()?, body: r.word()? }
            }
            opcode::COLLECT => {
                let (dst, kind) = (r.byte()?, r.byte()?);
                I::Collect { dst, kind: *Collection::ALL.get(usize::from(kind))?, body: r.word()? }
            }
            opcode::YIELD => I::Yield { value: r.byte()? },
            opcode::YIELD_PAIR => I::YieldPair { key: r.byte()?, value: r.byte()? },
            opcode::FAIL => I::Fail,
            opcode::DONE => I::Done { depth: r.byte()? },
            opcode::RETURN => I::Return { value: r.byte()? },
            opcode::RETURN_LAST => I::ReturnLast { value: r.byte()? },
            opcode::RETURN_CONST => I::ReturnConst { value: r.constant()? },
            opcode::LEAVE => I::Leave,
            opcode::ABORT => I::Abort,
            op => {
                let relation = |base: u8| Relation::ALL.get(usize::from(op.wrapping_sub(base))).copied();
                if let Some(relation) = relation(opcode::COMPARE) {
                    I::Compare { relation, dst: r.target()?, left: r.byte()?, right: r.byte()? }
                } else {
                    let relation = relation(opcode::COMPARE_CONST)?;
                    I::CompareConst { relation, dst: r.target()?, left: r.byte()?, right: r.constant()? }
                }
            }
        };
        Some((instruction, r.at))
    }

    /// The body's owner and length, if this instruction has a body.
    pub fn body(&self) -> Option<(Owner, u32)> {
        match *self {
            Instruction::Block { body } => Some((Owner::Block, body)),
            Instruction::Some { body } => Some((Owner::Some, body)),
            Instruction::Not { body } => Some((Owner::Not, body)),
            Instruction::Scan { body, .. } => Some((Owner::Scan, body)),
            Instruction::Every { body, .. } => Some((Owner::Every, body)),
            Instruction::Collect { kind, body, .. } => Some((Owner::Collect(kind), body)),
            _ => None,
        }
    }

    /// Visits the registers it uses: first those it reads, then those it writes (`true`).
    ///
    /// What `Scan` and `Every` write is written in their body only; what `Collect` writes, after it.
    pub fn registers(&self, mut visit: impl FnMut(Reg, bool)) {
        use Instruction as I;
        let (reads, args, writes): ([Target; 3], &[Reg], [Target; 2]) = match *self {
            I::Const { dst, .. }
            | I::Input { dst }
            | I::InputGet { dst, .. }
            | I::State { dst }
            | I::StateGet { dst, .. }
            | I::Collect { dst, .. } => ([None; 3], &[], [Some(dst), None]),
            I::Move { dst, src } => ([Some(src), None, None], &[], [Some(dst), None]),
            I::Get { dst, from, key } => ([Some(from), Some(key), None], &[], [Some(dst), None]),
            I::GetConst { dst, from, .. } => ([Some(from), None, None], &[], [Some(dst), None]),
            I::Lookup { dst, key, .. } => ([Some(key), None, None], &[], [dst, None]),
            I::Array { dst, items } | I::Set { dst, items } => ([None; 3], items.0, [Some(dst), None]),
            I::Object { dst, pairs } => ([None; 3], pairs.0, [Some(dst), None]),
            I::Record { dst, values, .. } => ([None; 3], values.0, [Some(dst), None]),
            I::Compare { dst, left, right, .. } => ([Some(left), Some(right), None], &[], [dst, None]),
            I::CompareConst { dst, left, .. } => ([Some(left), None, None], &[], [dst, None]),
            I::Call { dst, args, .. } | I::Builtin { dst, args, .. } => ([None; 3], args.0, [dst, None]),
            I::Match { dst, text, .. } => ([Some(text), None, None], &[], [dst, None]),
            I::MatchBy { dst, text, pattern, holes, .. } => {
                ([Some(text), Some(pattern), None], holes.0, [dst, None])
            }
            I::Submatches { dst, text, pattern, limit } => {
                ([Some(text), Some(pattern), Some(limit)], &[], [Some(dst), None])
            }
            I::Find { dst, text, list, .. } => ([Some(text), Some(list), None], &[], [dst, None]),
            I::Scan { source, key, value, .. } | I::Every { source, key, value, .. } => {
                ([Some(source), None, None], &[], [key, value])
            }
            I::Test { value } | I::Yield { value } | I::Return { value } | I::ReturnLast { value } => {
                ([Some(value), None, None], &[], [None; 2])
            }
            I::YieldPair { key, value } => ([Some(key), Some(value), None], &[], [None; 2]),
            I::Block { .. }
            | I::Some { .. }
            | I::Not { .. }
            | I::Fail
            | I::Done { .. }
            | I::ReturnConst { .. }
            | I::Leave
            | I::Abort => ([None; 3], &[], [None; 2]),
        };
        reads.into_iter().flatten().chain(args.iter().copied()).for_each(|register| visit(register, false));
        writes.into_iter().flatten().for_each(|register| visit(register, true));
    }

    /// Appends the instruction to `code`: the inverse of [`decode`](Self::decode).
    ///
    /// # Panics
    /// If there are more than 255 argument registers.
    pub fn encode(&self, code: &mut Vec<u8>) {
        use Instruction as I;
        let reg = |target: Target| target.unwrap_or(NO_REGISTER);
        let constant = |constant: Const| Some(constant.bits());
        // The opcode, the bytes after it, a word, a list of registers.
        let (op, bytes, word, args): (u8, &[u8], Option<u32>, Option<Args<'_>>) = match *self {
            I::Const { dst, value } => (opcode::CONST, &[dst], constant(value), None),
            I::Input { dst } => (opcode::INPUT, &[dst], None, None),
            I::InputGet { dst, key } => (opcode::INPUT_GET, &[dst], constant(key), None),
            I::State { dst } => (opcode::STATE, &[dst], None, None),
            I::StateGet { dst, key } => (opcode::STATE_GET, &[dst], constant(key), None),
            I::Move { dst, src } => (opcode::MOVE, &[dst, src], None, None),
            I::Get { dst, from, key } => (opcode::GET, &[dst, from, key], None, None),
            I::GetConst { dst, from, key } => (opcode::GET_CONST, &[dst, from], constant(key), None),
            I::Lookup { dst, key, from } => (opcode::LOOKUP, &[reg(dst), key], constant(from), None),
            I::Array { dst, items } => (opcode::ARRAY, &[dst], None, Some(items)),
            I::Set { dst, items } => (opcode::SET, &[dst], None, Some(items)),
            I::Object { dst, pairs } => (opcode::OBJECT, &[dst], None, Some(pairs)),
            I::Record { dst, shape, values } => (opcode::RECORD, &[dst], constant(shape), Some(values)),
            I::Compare { relation, dst, left, right } => {
                (opcode::COMPARE + relation as u8, &[reg(dst), left, right], None, None)
            }
            I::CompareConst { relation, dst, left, right } => {
                (opcode::COMPARE_CONST + relation as u8, &[reg(dst), left], constant(right), None)
            }
            I::Test { value } => (opcode::TEST, &[value], None, None),
            I::Call { dst, function, args } => (opcode::CALL, &[reg(dst)], Some(function), Some(args)),
            I::Builtin { dst, builtin, args } => {
                (opcode::BUILTIN, &[reg(dst), builtin as u8], None, Some(args))
            }
            I::Match { dst, text, pattern } => (opcode::MATCH, &[reg(dst), text], Some(pattern), None),
            I::MatchBy { dst, text, pattern, part, holes } => {
                (opcode::MATCH_BY, &[reg(dst), text, pattern, u8::from(part)], None, Some(holes))
            }
            I::Submatches { dst, text, pattern, limit } => {
                (opcode::SUBMATCHES, &[dst, text, pattern, limit], None, None)
            }
            I::Find { dst, text, list, table } => {
                (opcode::FIND, &[reg(dst), text, list], constant(table), None)
            }
            I::Block { body } => (opcode::BLOCK, &[], Some(body), None),
            I::Some { body } => (opcode::SOME, &[], Some(body), None),
            I::Not { body } => (opcode::NOT, &[], Some(body), None),
            I::Scan { source, key, value, body } => {
                (opcode::SCAN, &[source, reg(key), reg(value)], Some(body), None)
            }
            I::Every { source, key, value, body } => {
                (opcode::EVERY, &[source, reg(key), reg(value)], Some(body), None)
            }
            I::Collect { dst, kind, body } => (opcode::COLLECT, &[dst, kind as u8], Some(body), None),
            I::Yield { value } => (opcode::YIELD, &[value], None, None),
            I::YieldPair { key, value } => (opcode::YIELD_PAIR, &[key, value], None, None),
            I::Fail => (opcode::FAIL, &[], None, None),
            I::Done { depth } => (opcode::DONE, &[depth], None, None),
            I::Return { value } => (opcode::RETURN, &[value], None, None),
            I::ReturnLast { value } => (opcode::RETURN_LAST, &[value], None, None),
            I::ReturnConst { value } => (opcode::RETURN_CONST, &[], constant(value), None),
            I::Leave => (opcode::LEAVE, &[], None, None),
            I::Abort => (opcode::ABORT, &[], None, None),
        };
        code.push(op);
        code.extend_from_slice(bytes);
        if let Some(word) = word {
            code.extend_from_slice(&word.to_le_bytes()[..WORD]);
        }
        if let Some(Args(args)) = args {
            code.push(u8::try_from(args.len()).expect("at most 255 arguments"));
            code.extend_from_slice(args);
        }
    }
}

/// Declares [`Builtin`] from one table: variant, number, name in Rego, number of arguments, meaning.
macro_rules! builtins {
    ($($variant:ident = $number:literal, $name:literal, $arity:literal, $doc:literal;)*) => {
        /// The builtins, by number. Each is undefined where OPA's is undefined or an error, unless
        /// it says "fault". Costs are in `docs/policy-bytecode.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Builtin {
            $(#[doc = $doc] $variant = $number,)*
        }

        impl Builtin {
            /// All builtins.
            pub const ALL: &[Builtin] = &[$(Builtin::$variant),*];

            /// The builtin with this number.
            pub fn from_number(number: u8) -> Option<Builtin> {
                match number { $($number => Some(Builtin::$variant),)* _ => None }
            }

            /// The name in Rego; operators have OPA's internal names.
            pub fn name(self) -> &'static str {
                match self { $(Builtin::$variant => $name,)* }
            }

            /// The number of arguments.
            pub fn arity(self) -> usize {
                match self { $(Builtin::$variant => $arity,)* }
            }
        }
    };
}

builtins! {
    Plus = 0, "plus", 2, "`a + b` on integers; overflow is a fault.";
    Minus = 1, "minus", 2, "`a - b` on integers (overflow is a fault) or sets.";
    Mul = 2, "mul", 2, "`a * b` on integers; overflow is a fault.";
    Div = 3, "div", 2, "`a / b` on integers; a result that is no integer is a fault, division by zero undefined.";
    Rem = 4, "rem", 2, "`a % b` on integers with the sign of `a`; modulo zero is undefined.";
    Or = 5, "or", 2, "`a | b`: union of two sets.";
    And = 6, "and", 2, "`a & b`: intersection of two sets.";
    Member = 7, "internal.member_2", 2, "`a in b`: whether `a` is an element, a member or a value of `b`; false where `b` is no collection.";
    MemberWithKey = 8, "internal.member_3", 3, "`k, v in c`: whether `c[k]` is `v`.";
    ArrayConcat = 9, "array.concat", 2, "Two arrays in one.";
    Base64UrlEncode = 10, "base64url.encode", 1, "Base64 with the URL alphabet and padding.";
    BitsAnd = 11, "bits.and", 2, "Bitwise and of two integers.";
    BitsNegate = 12, "bits.negate", 1, "Bitwise complement of an integer.";
    BitsOr = 13, "bits.or", 2, "Bitwise or of two integers.";
    Concat = 14, "concat", 2, "Joins an array or set of strings: `concat(separator, strings)`.";
    Contains = 15, "contains", 2, "Whether the first string contains the second.";
    Count = 16, "count", 1, "Elements of a collection, or characters (Unicode scalar values) of a string.";
    EndsWith = 17, "endswith", 2, "Whether the first string ends with the second.";
    IndexOf = 18, "indexof", 2, "Position in characters of the second string in the first, or -1; undefined if the second is empty.";
    Intersection = 19, "intersection", 1, "Intersection of a set of sets.";
    IsNull = 20, "is_null", 1, "Whether the value is null.";
    Lower = 21, "lower", 1, "Each character's simple lower-case mapping.";
    Max = 22, "max", 1, "The greatest element of an array or set; undefined if it is empty.";
    ObjectGet = 23, "object.get", 3, "`object.get(o, key or path of keys, default)`.";
    ObjectKeys = 24, "object.keys", 1, "The set of an object's keys.";
    ObjectUnion = 25, "object.union", 2, "The first object overlaid by the second, recursively.";
    Before = 26, "internal.before", 2, "The part of a string before the first of a separator: `split(text, separator)[0]`; undefined if that is empty.";
    Replace = 27, "replace", 3, "`replace(text, old, new)`, all occurrences.";
    SemverCompare = 28, "semver.compare", 2, "-1, 0 or 1 by Semantic Versioning 2.0.0.";
    SemverIsValid = 29, "semver.is_valid", 1, "Whether the value is a valid semantic version.";
    Split = 30, "split", 2, "The parts of a string between separators.";
    Sprintf = 31, "sprintf", 2, "`sprintf(format, array)` with `%v`, `%s`, `%d` and `%%`; any other verb is a fault.";
    StartsWith = 32, "startswith", 2, "Whether the first string starts with the second.";
    Substring = 33, "substring", 3, "`substring(text, start, length)` in characters; a negative length is the rest.";
    ToNumber = 34, "to_number", 1, "An integer of a number, a boolean, null or a decimal string; other numbers are a fault.";
    TrimPrefix = 35, "trim_prefix", 2, "The first string without the second in front.";
    Union = 36, "union", 1, "Union of a set of sets.";
    CountBefore = 37, "internal.count_before", 2, "`count({part | some text in c; part := split(text, separator)[0]})` of any value `c`; undefined if the separator is no string or empty.";
}
