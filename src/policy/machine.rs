//! The interpreter: runs verified code over immutable values.
//!
//! It keeps explicit stacks, sized when the image is loaded by what the verifier proved sufficient,
//! and never calls itself. Every instruction, every round of a loop, and every element or stretch of
//! bytes that a builtin visits costs fuel.
//!
//! # Memory
//!
//! Values made on the way live in the arena. A register is written once on each way and cannot be
//! read after the body that wrote it (only `Some` exports registers), so when a body ends, what it
//! allocated is garbage unless it escaped: by `Yield`, by `Return`, or as a remembered result. Those
//! raise the marks of the bodies that they leave behind; every other end of a body sets the arena
//! back to where it began.

use alloc::vec::Vec;

use super::builtins;
use super::format::{Class, Const, Image, ImageError, Pattern, Section};
use super::instruction::{Args, Collection, Instruction, Reg, Relation, Target};
use super::intern::Strings;
use super::pattern::{self, Holes};
use super::state::State;
use super::value::{Arena, CELL, Fault, Fuel, List, Text, Value, View};
use super::verify::verify;

/// What runs an image: its stacks.
#[derive(Debug)]
pub(super) struct Machine {
    functions: Vec<Function>,
    registers: Vec<Value>,
    /// The first register of the active function.
    base: usize,
    frames: Vec<Frame>,
    controls: Vec<Control>,
    /// Where the code goes on.
    at: usize,
    /// Where the innermost body ends.
    end: usize,
    memos: Vec<Memo>,
    strings: Strings,
    /// The list that was looked for last, in which table, and what the table has for it: most loops ask again.
    found: Option<(Const, List, Option<Accepted>)>,
}

/// What a table has for a list: a set, and an array of patterns' numbers.
type Accepted = (Value, List);

/// Where a function is, in bytes of code.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: u32,
    end: u32,
    registers: u8,
    /// The number of its remembered result.
    memo: Option<u32>,
}

/// A remembered result.
#[derive(Clone, Copy, Debug)]
enum Memo {
    Unknown,
    Known(Option<Value>),
}

/// An active function. Its offsets and numbers are of an image and an arena, so of less than 2^24.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// The number of its remembered result.
    memo: Option<u32>,
    /// Its first register, and that of the functions it calls.
    base: u32,
    callee_base: u32,
    /// Number of open bodies when it was called.
    controls: u32,
    /// Where its caller goes on, and with what.
    caller: u32,
    dst: Target,
    result: Option<Value>,
}

/// An open body.
#[derive(Clone, Copy, Debug)]
struct Control {
    scope: Scope,
    start: u32,
    end: u32,
    /// The arena's height to which its end goes back.
    mark: u32,
}

#[derive(Clone, Copy, Debug)]
enum Scope {
    Function,
    Block,
    Some,
    Not,
    Scan(Loop),
    Every(Loop),
    Collect { dst: Reg, kind: Collection, cells: Cells },
}

#[derive(Clone, Copy, Debug)]
struct Loop {
    source: Value,
    next: u32,
    key: Target,
    value: Target,
}

/// What happens next.
#[derive(Clone, Copy)]
enum Flow {
    /// Go on.
    Go,
    /// The innermost body fails.
    Fail,
    /// The innermost body ends.
    End,
    /// The function returns.
    Return,
    /// The run is over.
    Finish,
}

/// A growing list of cells in the arena.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cells {
    at: u32,
    len: u32,
    capacity: u32,
}

/// What one run works with.
pub(super) struct Context<'a, 'm> {
    pub image: &'a Image<'a>,
    pub state: &'a State,
    pub arena: &'a mut Arena<'m>,
    pub fuel: &'a mut Fuel,
    pub fragments: &'a [Patterns<'a>],
}

/// The patterns of a fragment in force.
#[derive(Clone, Debug)]
pub(super) struct Patterns<'p> {
    image: Image<'p>,
    /// Where its data is pinned.
    slots: Vec<u16>,
}

impl<'p> Patterns<'p> {
    /// Verifies an image and keeps what its patterns need.
    pub fn new(image: &'p [u8], slots: Vec<u16>) -> Result<Self, ImageError> {
        let image = Image::read(image)?;
        verify(&image)?;
        Ok(Self { image, slots })
    }
}

/// Whether a text matches a pattern of a fragment's data; `None` if it is no string, or no regular expression.
///
/// SECURITY (F01): what a pattern means is told by the image that the pattern came with, so that a fragment cannot
/// give another meaning to a pattern of the policy or of another fragment. The policy's own were looked for before.
fn matches_of_fragment(
    context: &mut Context<'_, '_>,
    class: Class,
    pattern: Value,
    text: Value,
) -> Result<Option<Value>, Fault> {
    let slot = pattern.place().and_then(|(space, _)| space.slot_number());
    let from = |fragment: &&Patterns<'_>| fragment.slots.iter().any(|&own| Some(usize::from(own)) == slot);
    let fragment = context.fragments.iter().find(from).ok_or(Fault::Pattern)?;
    let (Value::String(pattern), Value::String(text)) = (pattern, text) else { return Ok(None) };
    let (arena, memory) = context.arena.split();
    let view = View { image: context.image, state: context.state, arena };
    context.fuel.bytes(pattern.len())?;
    let named = fragment.image.pattern_named(class, view.bytes(pattern));
    let Some(pattern) = named.ok_or(Fault::Pattern)? else { return Ok(None) };
    let (image, text, holes) = (&fragment.image, view.bytes(text), Holes::default());
    let matches = pattern::matches(image, pattern, text, &holes, memory, context.fuel)?;
    Ok(Some(Value::bool(matches)))
}

impl Machine {
    /// Verifies an image and makes the stacks that it needs.
    pub fn new(image: &Image<'_>) -> Result<Machine, ImageError> {
        verify(image)?;
        let count = image.functions();
        let mut functions = vec_of(count as usize)?;
        let (mut stack, mut frames, mut controls, mut remembered) = (0, 0, 0, 0);
        for function in 0..count {
            let record = image.function(function).ok_or(ImageError::Function { function })?;
            let start = image.code_range(function).ok_or(ImageError::Function { function })?.start;
            stack = stack.max(usize::from(record.stack));
            frames = frames.max(usize::from(record.frames));
            controls = controls.max(usize::from(record.controls));
            let memo = record.memo.then_some(remembered);
            remembered += u32::from(record.memo);
            functions.push(Function {
                start: start as u32,
                end: record.end,
                registers: record.registers,
                memo,
            });
        }
        let mut registers = vec_of(stack)?;
        registers.resize(stack, Value::Null);
        let mut memos = vec_of(remembered as usize)?;
        memos.resize(remembered as usize, Memo::Unknown);
        // Each active function has a body of its own.
        let controls = vec_of(controls + frames)?;
        let frames = vec_of(frames)?;
        let strings = Strings::new(image)?;
        Ok(Machine {
            functions,
            registers,
            base: 0,
            frames,
            controls,
            at: 0,
            end: 0,
            memos,
            strings,
            found: None,
        })
    }

    /// Evaluates a function without arguments. `None` is undefined.
    pub fn run(
        &mut self,
        context: &mut Context<'_, '_>,
        function: u32,
        input: Option<Value>,
    ) -> Result<Option<Value>, Fault> {
        self.frames.clear();
        self.controls.clear();
        self.memos.fill(Memo::Unknown);
        let code = context.image.section(Section::Code);
        let input = match input {
            Some(input) => Some(self.strings.intern(context.image, context.arena, input, context.fuel, 0)?),
            None => None,
        };
        let mut result = None;
        let mut flow = self.call(context, None, function, 0)?;
        loop {
            flow = match flow {
                Flow::Go if self.at == self.end => self.end(context)?,
                Flow::Go => self.step(context, code, input)?,
                Flow::Fail => self.fail(context)?,
                Flow::End => self.end(context)?,
                Flow::Return => self.leave(context, &mut result)?,
                Flow::Finish => return Ok(result),
            }
        }
    }

    // After verification there always is a top. If not, the policy faults rather than the guest.
    #[inline(always)]
    fn frame(&mut self) -> Result<&mut Frame, Fault> {
        self.frames.last_mut().ok_or(Fault::Abort)
    }

    #[inline(always)]
    fn get(&self, register: Reg) -> Value {
        self.registers[self.base + usize::from(register)]
    }

    #[inline(always)]
    fn set(&mut self, register: Reg, value: Value) {
        self.registers[self.base + usize::from(register)] = value;
    }

    #[inline(always)]
    fn push(&mut self, control: Control) {
        self.end = control.end as usize;
        self.controls.push(control);
    }

    /// Closes all bodies but the outermost `count`.
    #[inline(always)]
    fn close(&mut self, count: usize) {
        self.controls.truncate(count);
        self.end = self.controls.last().map_or(0, |control| control.end as usize);
    }

    /// Delivers a result.
    #[inline(always)]
    fn deliver(&mut self, dst: Target, value: Value) -> Flow {
        match (dst, value) {
            (None, Value::False) => Flow::Fail,
            (None, _) => Flow::Go,
            (Some(dst), _) => {
                self.set(dst, value);
                Flow::Go
            }
        }
    }

    /// Delivers what may be undefined.
    #[inline(always)]
    fn deliver_some(&mut self, dst: Target, value: Option<Value>) -> Flow {
        value.map_or(Flow::Fail, |value| self.deliver(dst, value))
    }

    /// Starts a function whose arguments are already in place, or has its remembered result.
    fn call(
        &mut self,
        context: &mut Context<'_, '_>,
        dst: Target,
        function: u32,
        base: u32,
    ) -> Result<Flow, Fault> {
        let Function { start, end, registers, memo } =
            *self.functions.get(function as usize).ok_or(Fault::Abort)?;
        if let Some(Memo::Known(result)) = memo.and_then(|memo| self.memos.get(memo as usize)).copied() {
            return Ok(self.deliver_some(dst, result));
        }
        let (controls, callee_base) = (self.controls.len() as u32, base + u32::from(registers));
        let caller = self.at as u32;
        self.frames.push(Frame { memo, base, callee_base, controls, caller, dst, result: None });
        self.base = base as usize;
        let mark = context.arena.used() as u32;
        self.push(Control { scope: Scope::Function, start, end, mark });
        self.at = start as usize;
        Ok(Flow::Go)
    }

    /// Returns from the innermost function. `over` is where the result of the run goes.
    fn leave(&mut self, context: &mut Context<'_, '_>, over: &mut Option<Value>) -> Result<Flow, Fault> {
        let frame = self.frames.pop().ok_or(Fault::Abort)?;
        self.base = self.frames.last().map_or(0, |frame| frame.base as usize);
        let mark = self.controls.get(frame.controls as usize).map_or(0, |control| control.mark as usize);
        self.close(frame.controls as usize);
        let escapes = frame.result.and_then(Value::arena_start).is_some_and(|start| start >= mark);
        if !escapes {
            context.arena.release(mark);
        }
        if let Some(slot) = frame.memo.and_then(|memo| self.memos.get_mut(memo as usize)) {
            *slot = Memo::Known(frame.result);
            if escapes {
                self.pin(context, 0);
            }
        }
        self.at = frame.caller as usize;
        if self.frames.is_empty() {
            *over = frame.result;
            return Ok(Flow::Finish);
        }
        Ok(self.deliver_some(frame.dst, frame.result))
    }

    /// Keeps everything in the arena when the bodies from number `from` on end.
    fn pin(&mut self, context: &Context<'_, '_>, from: usize) {
        let top = context.arena.used() as u32;
        self.controls.iter_mut().skip(from).for_each(|control| control.mark = top);
    }

    /// The innermost body has failed.
    fn fail(&mut self, context: &mut Context<'_, '_>) -> Result<Flow, Fault> {
        let open = self.controls.len();
        let control = self.controls.last().ok_or(Fault::Abort)?;
        Ok(match control.scope {
            Scope::Function => Flow::Return,
            Scope::Scan(_) | Scope::Collect { .. } => return self.end(context),
            Scope::Block | Scope::Not => {
                context.arena.release(control.mark as usize);
                self.at = control.end as usize;
                self.close(open - 1);
                Flow::Go
            }
            Scope::Some | Scope::Every(_) => {
                self.close(open - 1);
                Flow::Fail
            }
        })
    }

    /// The innermost body has reached its end.
    fn end(&mut self, context: &mut Context<'_, '_>) -> Result<Flow, Fault> {
        let open = self.controls.len();
        let control = self.controls.last().ok_or(Fault::Abort)?;
        let (end, mark) = (control.end as usize, control.mark as usize);
        match control.scope {
            Scope::Function => return Ok(Flow::Return),
            Scope::Scan(_) | Scope::Every(_) => {
                context.arena.release(mark);
                return self.round(context);
            }
            Scope::Not => {
                context.arena.release(mark);
                self.close(open - 1);
                return Ok(Flow::Fail);
            }
            Scope::Block => context.arena.release(mark),
            Scope::Some => {}
            Scope::Collect { dst, kind, cells } => self.set(dst, cells.finish(context.arena, kind)),
        }
        self.close(open - 1);
        self.at = end;
        Ok(Flow::Go)
    }

    /// The next round of the innermost body, a loop.
    #[inline]
    fn round(&mut self, context: &mut Context<'_, '_>) -> Result<Flow, Fault> {
        context.fuel.take(1)?;
        let control = self.controls.last_mut().ok_or(Fault::Abort)?;
        let (Scope::Scan(this) | Scope::Every(this)) = &mut control.scope else { return Err(Fault::Abort) };
        let Loop { source, next, key, value } = *this;
        this.next += 1;
        let (start, end) = (control.start, control.end);
        match context.view().element(source, next as usize) {
            Some(element) => {
                if let Some(key) = key {
                    self.set(key, element.0);
                }
                if let Some(value) = value {
                    self.set(value, element.1);
                }
                self.at = start as usize;
            }
            None => {
                self.close(self.controls.len() - 1);
                self.at = end as usize;
            }
        }
        Ok(Flow::Go)
    }

    /// Opens a body.
    #[inline(always)]
    fn open(&mut self, context: &Context<'_, '_>, scope: Scope, body: u32) -> Flow {
        let (start, mark) = (self.at as u32, context.arena.used() as u32);
        self.push(Control { scope, start, end: start + body, mark });
        Flow::Go
    }

    /// One instruction.
    #[inline(always)]
    fn step(
        &mut self,
        context: &mut Context<'_, '_>,
        code: &[u8],
        input: Option<Value>,
    ) -> Result<Flow, Fault> {
        use Instruction as I;
        context.fuel.take(1)?;
        let (instruction, next) = Instruction::read(code, self.at).ok_or(Fault::Abort)?;
        self.at = next;
        Ok(match instruction {
            I::Const { dst, value } => self.deliver(Some(dst), context.view().constant(value)),
            I::Input { dst } => self.deliver_some(Some(dst), input),
            I::InputGet { dst, key } => {
                let value = match input {
                    Some(input) => context.field(input, key)?,
                    None => None,
                };
                self.deliver_some(Some(dst), value)
            }
            I::State { dst } => self.deliver(Some(dst), context.state.root()),
            I::StateGet { dst, key } => {
                let value = context.field(context.state.root(), key)?;
                self.deliver_some(Some(dst), value)
            }
            I::Move { dst, src } => self.deliver(Some(dst), self.get(src)),
            I::Get { dst, from, key } => {
                let value = context.lookup(self.get(from), self.get(key))?;
                self.deliver_some(Some(dst), value)
            }
            I::GetConst { dst, from, key } => {
                let value = context.field(self.get(from), key)?;
                self.deliver_some(Some(dst), value)
            }
            I::Lookup { dst, key, from } => {
                let from = context.view().constant(from);
                let value = context.lookup(from, self.get(key))?;
                self.deliver_some(dst, value)
            }
            I::Array { dst, items } => {
                let mut cells = Cells::default();
                for &item in items.0 {
                    cells.push(context, self.get(item))?;
                }
                let value = cells.finish(context.arena, Collection::Array);
                self.deliver(Some(dst), value)
            }
            I::Set { dst, items } => {
                let mut cells = Cells::default();
                for &item in items.0 {
                    cells.insert(context, self.get(item))?;
                }
                let value = cells.finish(context.arena, Collection::Set);
                self.deliver(Some(dst), value)
            }
            I::Object { dst, pairs } => {
                let mut cells = Cells::default();
                for pair in pairs.0.chunks_exact(2) {
                    cells.insert_pair(context, self.get(pair[0]), self.get(pair[1]), true)?;
                }
                let value = cells.finish(context.arena, Collection::Object);
                self.deliver(Some(dst), value)
            }
            I::Record { dst, shape, values } => {
                let Value::Array(shape) = context.view().constant(shape) else { return Err(Fault::Abort) };
                let at = context.arena.reserve(2 * values.0.len())?;
                for (index, &value) in values.0.iter().enumerate() {
                    let (key, cell) = (context.view().item(shape, index), at + 2 * index * CELL);
                    context.arena.set_cell(cell, key);
                    context.arena.set_cell(cell + CELL, self.get(value));
                }
                let value = Value::Object(context.arena.list(at, values.0.len()));
                self.deliver(Some(dst), value)
            }
            I::Compare { relation, dst, left, right } => {
                let holds = context.holds(relation, self.get(left), self.get(right))?;
                self.deliver(dst, Value::bool(holds))
            }
            I::CompareConst { relation, dst, left, right } => {
                let right = context.view().constant(right);
                let holds = context.holds(relation, self.get(left), right)?;
                self.deliver(dst, Value::bool(holds))
            }
            I::Test { value } => self.deliver(None, self.get(value)),
            I::Call { dst, function, args } => {
                let base = self.frame()?.callee_base;
                for (index, &arg) in args.0.iter().enumerate() {
                    self.registers[base as usize + index] = self.get(arg);
                }
                self.call(context, dst, function, base)?
            }
            I::Builtin { dst, builtin, args } => {
                let mut values = [Value::Null; 3];
                values.iter_mut().zip(args.0).for_each(|(value, &arg)| *value = self.get(arg));
                let value = builtins::call(context, builtin, values)?;
                self.deliver_some(dst, value)
            }
            I::Match { dst, text, pattern } => {
                let value = self.matches(context, self.get(text), pattern, Args(&[]))?;
                self.deliver_some(dst, value)
            }
            I::MatchBy { dst, text, pattern, part, holes } => {
                let class = if part { Class::Part } else { Class::Whole };
                let value = match self.named(context, class, self.get(pattern), holes) {
                    Ok(Some(pattern)) => self.matches(context, self.get(text), pattern, holes)?,
                    Ok(None) => None,
                    Err(Fault::Pattern) => {
                        matches_of_fragment(context, class, self.get(pattern), self.get(text))?
                    }
                    Err(fault) => return Err(fault),
                };
                self.deliver_some(dst, value)
            }
            I::Submatches { dst, text, pattern, limit } => {
                let (text, limit) = (self.get(text), self.get(limit));
                match (self.named(context, Class::Find, self.get(pattern), Args(&[]))?, text, limit) {
                    (Some(pattern), Value::String(text), Value::Int(limit)) => {
                        let value = submatches(context, pattern, text, limit)?;
                        self.deliver(Some(dst), value)
                    }
                    _ => Flow::Fail,
                }
            }
            I::Find { dst, text, list, table } => {
                let value = self.find(context, self.get(text), self.get(list), table)?;
                self.deliver_some(dst, value.map(Value::bool))
            }
            I::Block { body } => self.open(context, Scope::Block, body),
            I::Some { body } => self.open(context, Scope::Some, body),
            I::Not { body } => self.open(context, Scope::Not, body),
            I::Scan { source, key, value, body } => {
                let source = self.get(source);
                self.open(context, Scope::Scan(Loop { source, next: 0, key, value }), body);
                self.round(context)?
            }
            I::Every { source, key, value, body } => {
                let source = self.get(source);
                if !matches!(source, Value::Array(_) | Value::Object(_) | Value::Set(_)) {
                    return Ok(Flow::Fail);
                }
                self.open(context, Scope::Every(Loop { source, next: 0, key, value }), body);
                self.round(context)?
            }
            I::Collect { dst, kind, body } => {
                self.open(context, Scope::Collect { dst, kind, cells: Cells::default() }, body)
            }
            I::Yield { value } => self.collect(context, self.get(value), None)?,
            I::YieldPair { key, value } => self.collect(context, self.get(key), Some(self.get(value)))?,
            I::Fail => Flow::Fail,
            I::Done { depth } => {
                let open = self.controls.len().checked_sub(usize::from(depth)).ok_or(Fault::Abort)?;
                self.close(open);
                Flow::End
            }
            I::Return { value } => {
                let value = self.get(value);
                match self.frame()?.result {
                    None => {
                        let frame = self.frame()?;
                        frame.result = Some(value);
                        let from = frame.controls as usize;
                        if value.arena_start().is_some() {
                            self.pin(context, from + 1);
                        }
                    }
                    Some(first) if context.compare(first, value)?.is_ne() => return Err(Fault::Conflict),
                    Some(_) => {}
                }
                Flow::Go
            }
            I::ReturnLast { value } => {
                let value = self.get(value);
                if let Some(first) = self.frame()?.result
                    && context.compare(first, value)?.is_ne()
                {
                    return Err(Fault::Conflict);
                }
                self.frame()?.result = Some(value);
                Flow::Return
            }
            I::ReturnConst { value } => {
                let value = context.view().constant(value);
                if let Some(first) = self.frame()?.result
                    && context.compare(first, value)?.is_ne()
                {
                    return Err(Fault::Conflict);
                }
                self.frame()?.result = Some(value);
                Flow::Return
            }
            I::Leave if self.frame()?.result.is_some() => Flow::Return,
            I::Leave => Flow::Go,
            I::Abort => return Err(Fault::Abort),
        })
    }

    /// Adds to the innermost comprehension.
    fn collect(
        &mut self,
        context: &mut Context<'_, '_>,
        first: Value,
        second: Option<Value>,
    ) -> Result<Flow, Fault> {
        let found = self.controls.iter().rposition(|control| matches!(control.scope, Scope::Collect { .. }));
        let index = found.ok_or(Fault::Abort)?;
        let Scope::Collect { kind, cells, .. } = &mut self.controls[index].scope else {
            return Err(Fault::Abort);
        };
        match (kind, second) {
            (Collection::Array, _) => cells.push(context, first)?,
            (Collection::Set, _) => cells.insert(context, first)?,
            (Collection::Object, Some(second)) => cells.insert_pair(context, first, second, false)?,
            (Collection::Object, None) => return Err(Fault::Abort),
        }
        self.pin(context, index + 1);
        Ok(Flow::Go)
    }

    /// Whether a table accepts a text for a list; `None` if it does not have the list.
    fn find(
        &mut self,
        context: &mut Context<'_, '_>,
        text: Value,
        list: Value,
        table: Const,
    ) -> Result<Option<bool>, Fault> {
        let entry = match (self.found, list) {
            (Some((of, same, entry)), Value::Array(list)) if (of, same) == (table, list) => entry,
            _ => {
                let entry = match context.lookup(context.view().constant(table), list)? {
                    None => None,
                    Some(Value::Array(entry)) => {
                        match (context.view().item(entry, 0), context.view().item(entry, 1)) {
                            (strings @ Value::Set(_), Value::Array(patterns)) => Some((strings, patterns)),
                            _ => return Err(Fault::Pattern),
                        }
                    }
                    Some(_) => return Err(Fault::Pattern),
                };
                if let Value::Array(list) = list
                    && list.is_constant()
                {
                    self.found = Some((table, list, entry));
                }
                entry
            }
        };
        let Some((strings, patterns)) = entry else { return Ok(None) };
        let view = View { image: context.image, state: context.state, arena: context.arena.bytes() };
        if view.get(strings, text, context.fuel)?.is_some() {
            return Ok(Some(true));
        }
        let Value::String(text) = text else { return Ok(Some(false)) };
        let numbers = (0..patterns.len()).map(|index| match view.item(patterns, index) {
            Value::Int(number) => u32::try_from(number).unwrap_or(u32::MAX),
            _ => u32::MAX,
        });
        pattern::any_matches(context.image, numbers, view.bytes(text), context.fuel).map(Some)
    }

    /// The pattern of a class with this text, or with this text once its holes are filled; `None` if the text
    /// is no string, or no regular expression.
    fn named(
        &self,
        context: &mut Context<'_, '_>,
        class: Class,
        text: Value,
        holes: Args<'_>,
    ) -> Result<Option<u32>, Fault> {
        let Value::String(text) = text else { return Ok(None) };
        let view = View { image: context.image, state: context.state, arena: context.arena.bytes() };
        let text = view.bytes(text);
        context.fuel.bytes(text.len())?;
        let known = match self.strings.number(context.image, text, context.fuel)? {
            Some(number) => context.image.pattern_of_name(class, number),
            None => context.image.pattern_named(class, text),
        };
        if let Some(pattern) = known {
            return Ok(pattern);
        }
        let found = match class.with_holes().filter(|_| !holes.0.is_empty()) {
            Some(class) => {
                let holes = self.holes(&view, holes);
                pattern::filled(context.image, class, text, &holes, context.fuel)?
            }
            None => None,
        };
        // One that was not foreseen: to call it undefined could turn a `not` around it into an allowance.
        found.map(Some).ok_or(Fault::Pattern)
    }

    /// The strings for holes.
    fn holes<'a>(&self, view: &View<'a>, registers: Args<'_>) -> Holes<'a> {
        let mut holes = Holes::default();
        for (hole, &register) in holes.iter_mut().zip(registers.0) {
            if let Value::String(text) = self.get(register) {
                *hole = Some(view.bytes(text));
            }
        }
        holes
    }

    /// Whether a text matches a pattern; `None` if it is no string.
    fn matches(
        &self,
        context: &mut Context<'_, '_>,
        text: Value,
        pattern: u32,
        holes: Args<'_>,
    ) -> Result<Option<Value>, Fault> {
        let Value::String(text) = text else { return Ok(None) };
        let (arena, memory) = context.arena.split();
        let view = View { image: context.image, state: context.state, arena };
        let (text, holes) = (view.bytes(text), self.holes(&view, holes));
        let matches = pattern::matches(context.image, pattern, text, &holes, memory, context.fuel)?;
        Ok(Some(Value::bool(matches)))
    }
}

/// The first `limit` matches of a program in a text, as Go finds them: from left to right, none inside of
/// another, no empty one right after another. A negative limit is none.
fn submatches(context: &mut Context<'_, '_>, pattern: u32, text: Text, limit: i64) -> Result<Value, Fault> {
    let image = context.image;
    let program = match image.pattern(pattern) {
        Some(Pattern::Program(program)) => image.program(program).ok_or(Fault::Pattern)?,
        _ => return Err(Fault::Pattern),
    };
    let groups = usize::from(program.slots) / 2;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut found, mut count) = (Cells::default(), 0);
    let (mut from, mut last_end) = (0, usize::MAX);
    while count < limit && from <= text.len() {
        let (arena, memory) = context.arena.split();
        let view = View { image, state: context.state, arena };
        let bytes = view.bytes(text);
        let holes = Holes::default();
        let matched = pattern::Search::new(program, bytes, &holes, memory, context.fuel)?.find(from)?;
        let Some(places) = matched else { break };
        let (start, end) = places[0].unwrap_or_default();
        // An empty match moves on by a character.
        let width = pattern::width(bytes.get(from..).unwrap_or_default());
        from = if end > from { end } else { from + width };
        if end > start || start != last_end {
            let at = context.arena.reserve(groups)?;
            for (group, place) in places.iter().take(groups).enumerate() {
                let (start, end) = place.unwrap_or_default();
                let part = context.part(text, start, end - start);
                context.arena.set_cell(at + group * CELL, Value::String(part));
            }
            let groups = Value::Array(context.arena.list(at, groups));
            found.push(context, groups)?;
            count += 1;
        }
        last_end = end;
    }
    Ok(found.finish(context.arena, Collection::Array))
}

fn vec_of<T>(count: usize) -> Result<Vec<T>, ImageError> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(count).map_err(|_| ImageError::Memory)?;
    Ok(vec)
}

impl<'a> Context<'a, '_> {
    #[inline]
    pub fn view(&self) -> View<'_> {
        View { image: self.image, state: self.state, arena: self.arena.bytes() }
    }

    /// See [`View::part`].
    pub fn part(&self, text: Text, start: usize, len: usize) -> Text {
        self.view().part(text, start, len)
    }

    pub fn compare(&mut self, a: Value, b: Value) -> Result<core::cmp::Ordering, Fault> {
        let view = View { image: self.image, state: self.state, arena: self.arena.bytes() };
        view.compare(a, b, self.fuel)
    }

    fn holds(&mut self, relation: Relation, a: Value, b: Value) -> Result<bool, Fault> {
        if relation == Relation::Equal {
            let view = View { image: self.image, state: self.state, arena: self.arena.bytes() };
            return view.equal(a, b, self.fuel);
        }
        Ok(relation.holds(self.compare(a, b)?))
    }

    #[inline]
    fn field(&mut self, from: Value, key: Const) -> Result<Option<Value>, Fault> {
        let view = View { image: self.image, state: self.state, arena: self.arena.bytes() };
        view.get_constant(from, key, self.fuel)
    }

    #[inline]
    pub fn lookup(&mut self, from: Value, key: Value) -> Result<Option<Value>, Fault> {
        let view = View { image: self.image, state: self.state, arena: self.arena.bytes() };
        view.get(from, key, self.fuel)
    }

    /// Appends a string's bytes to the arena.
    pub fn append(&mut self, text: Text) -> Result<(), Fault> {
        self.fuel.bytes(text.len())?;
        match Value::String(text).arena_start() {
            Some(at) => self.arena.append_within(at, text.len()),
            None => {
                let view = View { image: self.image, state: self.state, arena: &[] };
                self.arena.append(view.bytes(text))
            }
        }
    }
}

impl Cells {
    /// Makes room for `count` more.
    fn grow(&mut self, context: &mut Context<'_, '_>, count: u32) -> Result<(), Fault> {
        context.fuel.take(1)?;
        if self.len + count <= self.capacity {
            return Ok(());
        }
        let top = context.arena.used();
        if self.capacity > 0 && self.cell(self.capacity as usize) == top {
            let more = count.max(self.capacity.min(16));
            context.arena.reserve(more as usize)?;
            self.capacity += more;
            return Ok(());
        }
        let capacity = (self.capacity * 2).max(count).max(4);
        let at = context.arena.reserve(capacity as usize)?;
        context.fuel.bytes(self.len as usize * CELL)?;
        context.arena.shift(self.at as usize, at, self.len as usize * CELL);
        (self.at, self.capacity) = (at as u32, capacity);
        Ok(())
    }

    /// Where a cell is in the arena.
    fn cell(&self, index: usize) -> usize {
        self.at as usize + index * CELL
    }

    /// Adds at the end.
    pub fn push(&mut self, context: &mut Context<'_, '_>, value: Value) -> Result<(), Fault> {
        self.grow(context, 1)?;
        context.arena.set_cell(self.cell(self.len as usize), value);
        self.len += 1;
        Ok(())
    }

    /// Where `key` is among keys `stride` cells apart, or belongs.
    fn search(
        &self,
        context: &mut Context<'_, '_>,
        key: Value,
        stride: usize,
    ) -> Result<Result<usize, usize>, Fault> {
        let view = View { image: context.image, state: context.state, arena: context.arena.bytes() };
        let at = |index: usize| context.arena.cell(self.cell(index * stride));
        view.search(self.len as usize / stride, key, context.fuel, at)
    }

    /// Opens a gap of `stride` cells for element `index`.
    fn gap(&mut self, context: &mut Context<'_, '_>, index: usize, stride: u32) -> Result<usize, Fault> {
        self.grow(context, stride)?;
        let at = self.cell(index * stride as usize);
        let moved = self.cell(self.len as usize) - at;
        context.fuel.bytes(moved)?;
        context.arena.shift(at, at + stride as usize * CELL, moved);
        self.len += stride;
        Ok(at)
    }

    /// Adds a member in its place, unless it is there.
    pub fn insert(&mut self, context: &mut Context<'_, '_>, value: Value) -> Result<(), Fault> {
        if let Err(index) = self.search(context, value, 1)? {
            let at = self.gap(context, index, 1)?;
            context.arena.set_cell(at, value);
        }
        Ok(())
    }

    /// Adds a pair in its place. If the key is there with another value, that is replaced or a fault.
    pub fn insert_pair(
        &mut self,
        context: &mut Context<'_, '_>,
        key: Value,
        value: Value,
        replace: bool,
    ) -> Result<(), Fault> {
        match self.search(context, key, 2)? {
            Err(index) => {
                let at = self.gap(context, index, 2)?;
                context.arena.set_cell(at, key);
                context.arena.set_cell(at + CELL, value);
            }
            Ok(index) => {
                let at = self.cell(index * 2 + 1);
                let old = context.arena.cell(at);
                if replace {
                    context.arena.set_cell(at, value);
                } else if context.compare(old, value)?.is_ne() {
                    return Err(Fault::Conflict);
                }
            }
        }
        Ok(())
    }

    /// The value.
    pub fn finish(self, arena: &Arena<'_>, kind: Collection) -> Value {
        let list = |len: u32| arena.list(self.at as usize, len as usize);
        match kind {
            Collection::Array => Value::Array(list(self.len)),
            Collection::Set => Value::Set(list(self.len)),
            Collection::Object => Value::Object(list(self.len / 2)),
        }
    }
}
