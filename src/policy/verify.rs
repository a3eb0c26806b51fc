//! The load-time verifier: one pass over an image, without a heap.
//!
//! What it accepts, the machine can run without a check that could panic: every operand refers to
//! something of the right kind; every register is written before it is read, and once; bodies nest;
//! calls go to lower-numbered functions, so there is no recursion and the stacks that each function
//! says it needs are exactly what it needs; the image is in its one canonical encoding.
//!
//! It does not prove that a program means what its source means (that is the compiler's), nor that
//! it ends within the fuel (that is counted at run time).

use super::dfa::Dfa;
use super::format::{
    Class, CodeRule, Const, FunctionRecord, Image, ImageError, Kind, MAX_CONTROLS, MAX_DEPTH, MAX_FRAMES,
    MAX_GROUPS, MAX_NESTING, MAX_PROGRAM, MAX_REGISTERS, MAX_STACK, Pattern, SOURCE_SIZE, Section, Step,
    WORD,
};
use super::instruction::{Args, Collection, Instruction, Owner, Reg};
use super::state::State;
use super::value::{Fuel, View};

/// Comparisons that verifying the order of constants may cost. An image of 1 MiB has at most 2^18
/// elements, most of them strings, which compare in one step.
const FUEL: u64 = 1 << 24;

/// Sections of records, and the bytes of a record.
const TABLES: [(Section, usize); 13] = [
    (Section::Sources, SOURCE_SIZE),
    (Section::StringEnds, WORD),
    (Section::Ints, size_of::<i64>()),
    (Section::Levels, WORD),
    (Section::Nodes, WORD),
    (Section::Words, WORD),
    (Section::DfaEnds, WORD),
    (Section::ProgramEnds, WORD),
    (Section::Programs, Step::SIZE),
    (Section::Patterns, WORD),
    (Section::Named, 2 * WORD),
    (Section::Functions, FunctionRecord::SIZE),
    (Section::Entries, 2 * WORD),
];

/// Verifies an image.
pub fn verify(image: &Image<'_>) -> Result<(), ImageError> {
    for (section, size) in TABLES {
        if !image.section(section).len().is_multiple_of(size) {
            return Err(ImageError::Section(section));
        }
    }
    ends(image, Section::StringEnds, image.section(Section::StringBytes).len())?;
    ends(image, Section::DfaEnds, image.section(Section::DfaBytes).len())?;
    ends(image, Section::ProgramEnds, image.section(Section::Programs).len() / Step::SIZE)?;
    strings(image)?;
    ints(image)?;
    constants(image)?;
    dfas(image)?;
    programs(image)?;
    patterns(image)?;
    named(image)?;
    functions(image)?;
    names(image)
}

/// Whether the table of ends is ascending and ends with what `content` has.
fn ends(image: &Image<'_>, section: Section, content: usize) -> Result<(), ImageError> {
    let (mut last, count) = (0, image.words(section));
    for index in 0..count {
        let end = image.word(section, index).ok_or(ImageError::Section(section))?;
        if end < last {
            return Err(ImageError::Section(section));
        }
        last = end;
    }
    if last as usize == content { Ok(()) } else { Err(ImageError::Section(section)) }
}

fn strings(image: &Image<'_>) -> Result<(), ImageError> {
    let mut last: Option<&[u8]> = None;
    for index in 0..image.words(Section::StringEnds) as u32 {
        let string = image.string(index).ok_or(ImageError::Strings)?;
        if core::str::from_utf8(string).is_err() || last.is_some_and(|last| last >= string) {
            return Err(ImageError::Strings);
        }
        last = Some(string);
    }
    Ok(())
}

fn ints(image: &Image<'_>) -> Result<(), ImageError> {
    let ints = image.section(Section::Ints).as_chunks().0;
    let ascending = ints.is_sorted_by(|&a, &b| i64::from_le_bytes(a) < i64::from_le_bytes(b));
    if ascending { Ok(()) } else { Err(ImageError::Ints) }
}

/// Whether a constant exists; of composite ones, among the first `nodes`.
fn exists(image: &Image<'_>, constant: Const, nodes: usize) -> bool {
    let index = constant.index() as usize;
    match constant.kind() {
        None => false,
        Some(Kind::Null) => index == 0,
        Some(Kind::Bool) => index <= 1,
        Some(Kind::Int) => index < image.section(Section::Ints).len() / 8,
        Some(Kind::String) => index < image.words(Section::StringEnds),
        Some(kind @ (Kind::Array | Kind::Object | Kind::Set)) => {
            index < nodes && image.node(constant.index()).is_some_and(|(node, _)| node == kind)
        }
    }
}

fn constants(image: &Image<'_>) -> Result<(), ImageError> {
    let refuse = Err(ImageError::Constant);
    let levels = image.words(Section::Levels);
    if levels > MAX_DEPTH {
        return refuse;
    }
    let state = State::default();
    let view = View { image, state: &state, arena: &[] };
    let mut fuel = Fuel(FUEL);
    // Where the level before and this one start, in nodes.
    let (mut before, mut start) = (0, 0);
    for level in 0..levels {
        let end = image.word(Section::Levels, level).unwrap_or_default() as usize;
        // A level may be empty only where it is the lowest.
        if end < start || end == start && (level > 0 || levels == 1) {
            return refuse;
        }
        for node in start..end {
            let Some((kind, words)) = image.node(node as u32) else { return refuse };
            if kind < Kind::Array || words.end > image.words(Section::Words) {
                return refuse;
            }
            let mut highest = None;
            for word in words.clone() {
                let Some(element) = image.element(word) else { return refuse };
                if !exists(image, element, start) {
                    return refuse;
                }
                let composite = element.kind() >= Some(Kind::Array);
                let in_level_before = if composite { element.index() as usize >= before } else { level == 1 };
                highest = Some(highest.unwrap_or(false) || in_level_before);
            }
            // Elements are from the level before, at least one; the lowest level has none.
            if highest != (level > 0).then_some(true) {
                return refuse;
            }
            if kind == Kind::Object {
                let shape = image.element(words.start).filter(|shape| shape.kind() == Some(Kind::Array));
                let keys = shape.and_then(|shape| image.node(shape.index()));
                let Some((_, keys)) = keys.filter(|(_, keys)| keys.len() + 1 == words.len()) else {
                    return refuse;
                };
                if !ascending(&view, keys, &mut fuel) {
                    return refuse;
                }
            } else if kind == Kind::Set && !ascending(&view, words.clone(), &mut fuel) {
                return refuse;
            }
            if node > start && !in_order(image, node as u32) {
                return refuse;
            }
        }
        (before, start) = (start, end);
    }
    let last = match start.checked_sub(1) {
        Some(last) => image.node(last as u32).map(|(_, words)| words.end),
        None => Some(0),
    };
    if start == image.words(Section::Nodes) && last == Some(image.words(Section::Words)) {
        Ok(())
    } else {
        refuse
    }
}

/// Whether elements ascend strictly in OPA's order.
fn ascending(view: &View<'_>, words: core::ops::Range<usize>, fuel: &mut Fuel) -> bool {
    let value = |index| view.image.element(index).map(|constant| view.constant(constant));
    let mut last = None;
    for index in words {
        let this = value(index);
        if let (Some(last), Some(this)) = (last, this)
            && view.compare(last, this, fuel) != Ok(core::cmp::Ordering::Less)
        {
            return false;
        }
        last = this;
    }
    true
}

/// Whether a node comes after the one before it: by kind, then by words.
fn in_order(image: &Image<'_>, node: u32) -> bool {
    let (Some((a, x)), Some((b, y))) = (image.node(node - 1), image.node(node)) else { return false };
    let words = |range: core::ops::Range<usize>| range.map(|index| image.element(index));
    a < b || a == b && words(x).lt(words(y))
}

fn dfas(image: &Image<'_>) -> Result<(), ImageError> {
    let valid = |index| image.dfa_bytes(index).is_some_and(Dfa::verify);
    let mut indexes = 0..image.words(Section::DfaEnds) as u32;
    if indexes.all(valid) { Ok(()) } else { Err(ImageError::Dfa) }
}

fn programs(image: &Image<'_>) -> Result<(), ImageError> {
    let refuse = Err(ImageError::Pattern);
    for index in 0..image.words(Section::ProgramEnds) as u32 {
        let Some(program) = image.program(index) else { return refuse };
        let inside = |step: u32| (step as usize) < program.steps.len();
        let (mut slots, mut holes) = (0, 0);
        for step in program.steps {
            let valid = match Step::from_bytes(step) {
                None => false,
                Some(Step::Match) => true,
                Some(Step::Range { next, .. } | Step::Assert { next, .. }) => inside(next),
                Some(Step::Split { first, second }) => inside(first) && inside(second),
                Some(Step::Save { slot, next }) => {
                    // Slots come in pairs.
                    slots = slots.max((slot | 1).saturating_add(1));
                    usize::from(slot) < 2 * MAX_GROUPS && inside(next)
                }
                Some(Step::Hole { hole, next }) => {
                    holes = holes.max(hole + 1);
                    inside(next)
                }
            };
            if !valid {
                return refuse;
            }
        }
        let exact = (slots, holes) == (program.slots, program.holes);
        if program.steps.is_empty() || program.steps.len() > MAX_PROGRAM || !exact {
            return refuse;
        }
    }
    Ok(())
}

fn patterns(image: &Image<'_>) -> Result<(), ImageError> {
    let exist = (0..image.words(Section::Patterns) as u32).all(|index| match image.pattern(index) {
        Some(Pattern::Dfa(dfa) | Pattern::Member { dfa, .. }) => {
            (dfa as usize) < image.words(Section::DfaEnds)
        }
        Some(Pattern::Literal(string)) => (string as usize) < image.words(Section::StringEnds),
        Some(Pattern::Program(program)) => (program as usize) < image.words(Section::ProgramEnds),
        None => false,
    });
    if exist { Ok(()) } else { Err(ImageError::Pattern) }
}

fn named(image: &Image<'_>) -> Result<(), ImageError> {
    let words = image.words(Section::Named);
    let mut last = None;
    for index in 0..words / 2 {
        let Some((string, class, pattern)) = image.name(index) else { return Err(ImageError::Pattern) };
        let program = match pattern.map(|pattern| image.pattern(pattern)) {
            Some(None) => return Err(ImageError::Pattern),
            Some(Some(Pattern::Program(program))) => image.program(program),
            _ => None,
        };
        let fits = match (class, program) {
            _ if pattern.is_none() => true,
            (Class::Whole | Class::Part, program) => program.is_none_or(|program| program.holes == 0),
            (Class::Find, Some(program)) => program.holes == 0 && program.slots > 0,
            (Class::WholeHoles | Class::PartHoles, Some(program)) => program.holes > 0,
            (_, None) => false,
        };
        let exists = (string as usize) < image.words(Section::StringEnds);
        if !fits || !exists || last.is_some_and(|last| last >= (class, string)) {
            return Err(ImageError::Pattern);
        }
        last = Some((class, string));
    }
    Ok(())
}

fn names(image: &Image<'_>) -> Result<(), ImageError> {
    let strings = image.words(Section::StringEnds);
    let sources = image.sources().is_sorted_by(|a, b| a.0 < b.0)
        && image.sources().all(|(name, _)| (name as usize) < strings);
    let entries = image.entries().is_sorted_by(|a, b| a.0 < b.0)
        && image.entries().all(|(name, function)| {
            (name as usize) < strings && image.function(function).is_some_and(|record| record.arity == 0)
        });
    if sources && entries { Ok(()) } else { Err(ImageError::Names) }
}

fn functions(image: &Image<'_>) -> Result<(), ImageError> {
    let mut end = 0;
    for function in 0..image.functions() {
        let refuse = ImageError::Function { function };
        let record = image.function(function).ok_or(refuse)?;
        let range = image.code_range(function).ok_or(refuse)?;
        let code = image.section(Section::Code).get(range.clone()).ok_or(refuse)?;
        end = range.end;
        if record.name as usize >= image.words(Section::StringEnds)
            || usize::from(record.registers) > MAX_REGISTERS
            || record.arity > record.registers
            || record.memo && record.arity > 0
        {
            return Err(refuse);
        }
        let mut body = Function::new(image, function, record);
        body.verify(code)?;
        let exact = record.stack == u16::from(record.registers).saturating_add(body.stack)
            && record.frames == body.frames + 1
            && record.controls == body.controls;
        if !exact
            || usize::from(record.stack) > MAX_STACK
            || usize::from(record.frames) > MAX_FRAMES
            || usize::from(record.controls) > MAX_CONTROLS
        {
            return Err(refuse);
        }
    }
    if end == image.section(Section::Code).len() { Ok(()) } else { Err(ImageError::Section(Section::Code)) }
}

/// A set of registers.
#[derive(Clone, Copy, Default)]
struct Registers([u64; 4]);

impl Registers {
    fn has(&self, register: Reg) -> bool {
        self.0[usize::from(register >> 6)] >> (register & 63) & 1 == 1
    }

    fn insert(&mut self, register: Reg) {
        self.0[usize::from(register >> 6)] |= 1 << (register & 63);
    }

    fn intersect(&mut self, other: &Registers) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, other)| *mine &= other);
    }
}

/// An open body.
#[derive(Clone, Copy)]
struct Scope {
    owner: Owner,
    /// Bytes of code left after its last instruction.
    rest: usize,
    /// What was written when its owner was reached.
    entry: Registers,
    /// Whether anything reaches the owner at all.
    reachable: bool,
    /// What is written at every successful end so far.
    exit: Option<Registers>,
    /// What the owner itself writes after the body.
    dst: Option<Reg>,
}

/// The verification of one function.
struct Function<'i, 'p> {
    image: &'i Image<'p>,
    number: u32,
    record: FunctionRecord,
    scopes: [Option<Scope>; MAX_NESTING],
    depth: usize,
    /// What is written on every way here.
    written: Registers,
    /// Whether there is a way here.
    reachable: bool,
    /// What the callees need: registers, frames, bodies (with those around the call).
    stack: u16,
    frames: u8,
    controls: u16,
}

impl<'i, 'p> Function<'i, 'p> {
    fn new(image: &'i Image<'p>, number: u32, record: FunctionRecord) -> Self {
        let mut written = Registers::default();
        (0..record.arity).for_each(|register| written.insert(register));
        Function {
            image,
            number,
            record,
            scopes: [None; MAX_NESTING],
            depth: 0,
            written,
            reachable: true,
            stack: 0,
            frames: 0,
            controls: 0,
        }
    }

    fn verify(&mut self, code: &[u8]) -> Result<(), ImageError> {
        let mut rest = code;
        loop {
            // Bodies end where no code of theirs is left.
            while let Some(scope) = self.top().filter(|scope| scope.rest == rest.len()) {
                self.close(&scope);
            }
            if rest.is_empty() {
                return Ok(());
            }
            let at = (code.len() - rest.len()) as u32;
            let function = self.number;
            let refuse = |rule| ImageError::Code { function, at, rule };
            // Of an instruction that crosses the end of its body a part is missing.
            let end = self.top().map_or(0, |scope| scope.rest);
            let body = rest.split_at_checked(rest.len() - end).map_or(rest, |(body, _)| body);
            let (instruction, after) = Instruction::decode(body).ok_or(refuse(CodeRule::Encoding))?;
            rest = &rest[body.len() - after.len()..];
            self.instruction(&instruction, rest.len(), after.len()).map_err(refuse)?;
        }
    }

    fn top(&self) -> Option<Scope> {
        self.depth.checked_sub(1).and_then(|top| self.scopes[top])
    }

    /// Ends the innermost body.
    fn close(&mut self, scope: &Scope) {
        self.depth -= 1;
        let mut exit = scope.exit;
        if self.reachable {
            exit.get_or_insert(self.written).intersect(&self.written);
        }
        (self.written, self.reachable) = match (scope.owner, exit) {
            (Owner::Some, Some(exit)) => (exit, scope.reachable),
            (Owner::Some, None) => (scope.entry, false),
            _ => (scope.entry, scope.reachable),
        };
        if let Some(dst) = scope.dst {
            self.written.insert(dst);
        }
    }

    fn args(&self, args: Args<'_>, expected: usize) -> Result<(), CodeRule> {
        if args.0.len() == expected { Ok(()) } else { Err(CodeRule::Arity) }
    }

    /// `rest` and `body` are the bytes of code after the instruction in the function and in its body.
    fn instruction(
        &mut self,
        instruction: &Instruction<'_>,
        rest: usize,
        body: usize,
    ) -> Result<(), CodeRule> {
        use Instruction as I;
        self.operands(instruction)?;
        // What an owner writes belongs to its body, or (of a comprehension) to what follows it.
        let entry = self.written;
        let mut result = Ok(());
        instruction.registers(|register, written| {
            let rule = match (self.written.has(register), written) {
                _ if register >= self.record.registers => Err(CodeRule::Register),
                (false, false) => Err(CodeRule::Unassigned),
                (true, true) => Err(CodeRule::Reassigned),
                _ => Ok(()),
            };
            if written && rule.is_ok() {
                self.written.insert(register);
            }
            result = result.and(rule);
        });
        result?;
        match *instruction {
            I::Yield { .. } | I::YieldPair { .. } => {
                let kind = self.open().rev().find_map(|scope| match scope.owner {
                    Owner::Collect(kind) => Some(kind),
                    _ => None,
                });
                let pair = matches!(instruction, I::YieldPair { .. });
                if kind.is_none_or(|kind| pair != (kind == Collection::Object)) {
                    return Err(CodeRule::Yield);
                }
            }
            I::Done { depth } => {
                let target = self.depth.checked_sub(1 + usize::from(depth)).ok_or(CodeRule::Done)?;
                let between = self.scopes[target + 1..self.depth].iter().flatten();
                if between.into_iter().any(|scope| matches!(scope.owner, Owner::Collect(_))) {
                    return Err(CodeRule::Done);
                }
                let (reachable, written) = (self.reachable, self.written);
                if let Some(scope) = &mut self.scopes[target]
                    && reachable
                {
                    scope.exit.get_or_insert(written).intersect(&written);
                }
                self.reachable = false;
            }
            I::Fail | I::ReturnLast { .. } | I::ReturnConst { .. } | I::Abort => self.reachable = false,
            _ => {}
        }
        let Some((owner, length)) = instruction.body() else { return Ok(()) };
        let length = length as usize;
        if length > body {
            return Err(CodeRule::Body);
        }
        let dst = match *instruction {
            I::Collect { dst, .. } => {
                // It is written only once the body has ended, but then it must not have been before.
                self.written = entry;
                Some(dst)
            }
            _ => None,
        };
        let scope = Scope { owner, rest: rest - length, entry, reachable: self.reachable, exit: None, dst };
        *self.scopes.get_mut(self.depth).ok_or(CodeRule::Nesting)? = Some(scope);
        self.depth += 1;
        self.controls = self.controls.max(self.depth as u16);
        Ok(())
    }

    fn open(&self) -> impl DoubleEndedIterator<Item = &Scope> {
        self.scopes[..self.depth].iter().flatten()
    }

    /// What is not a register.
    fn operands(&mut self, instruction: &Instruction<'_>) -> Result<(), CodeRule> {
        use Instruction as I;
        match *instruction {
            I::Record { shape, values, .. } => self.shape(shape, values),
            I::Const { value: constant, .. }
            | I::InputGet { key: constant, .. }
            | I::StateGet { key: constant, .. }
            | I::Find { table: constant, .. }
            | I::GetConst { key: constant, .. }
            | I::Lookup { from: constant, .. }
            | I::ReturnConst { value: constant }
            | I::CompareConst { right: constant, .. } => {
                let nodes = self.image.words(Section::Nodes);
                if exists(self.image, constant, nodes) { Ok(()) } else { Err(CodeRule::Constant) }
            }
            I::Call { function, args, .. } => {
                let callee = self.image.function(function).filter(|_| function < self.number);
                let callee = callee.ok_or(CodeRule::Callee)?;
                self.stack = self.stack.max(callee.stack);
                self.frames = self.frames.max(callee.frames);
                self.controls = self.controls.max(callee.controls.saturating_add(self.depth as u16));
                self.args(args, usize::from(callee.arity))
            }
            I::Builtin { builtin, args, .. } => self.args(args, builtin.arity()),
            I::Match { pattern, .. } => match self.image.pattern(pattern) {
                None | Some(Pattern::Program(_)) => Err(CodeRule::Pattern),
                Some(_) => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Keys of an object: no collections, ascending. Of such constants the order is that of their words.
    fn shape(&self, shape: Const, values: Args<'_>) -> Result<(), CodeRule> {
        let node = self.image.node(shape.index()).filter(|_| shape.kind() == Some(Kind::Array));
        let (kind, words) = node.ok_or(CodeRule::Constant)?;
        let keys = words.clone().map(|word| self.image.element(word));
        let ascending = keys.clone().is_sorted_by(|a, b| a < b);
        let simple = keys.clone().all(|key| key.is_some_and(|key| key.kind() < Some(Kind::Array)));
        if kind != Kind::Array || !ascending || !simple {
            return Err(CodeRule::Constant);
        }
        self.args(values, words.len())
    }
}
