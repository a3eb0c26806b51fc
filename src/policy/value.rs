//! Values: 16 bytes each, copied freely, with their content in one of three places.
//!
//! Strings and collections live in the image (constants), in the [`Arena`] (what one decision's
//! input and steps make) or in the [`State`]. A [`View`] reads all three. Nothing here changes a
//! value once it is made: arrays keep their order, sets and objects are sorted by OPA's order.

use core::cmp::Ordering;

use super::format::{Const, Image, Kind, MAX_DEPTH, Section, WORD};
use super::state::State;

/// A value.
///
/// Each is a kind and at most one number of 64 bits, which processors move as two of their own.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// `null`
    Null,
    /// `false`
    False,
    /// `true`
    True,
    /// A number.
    Int(i64),
    /// A string.
    String(Text),
    /// An array.
    Array(List),
    /// An object; the length is the number of its pairs.
    Object(List),
    /// A set.
    Set(List),
}

/// A string's place: from the lowest bit on, its length in bytes (24 bits), where it starts (24 bits), its space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text(u64);

/// A collection's place: as of a string, with its number of elements or pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List(u64);

/// Bits of a length and of a start. No image, no state and no arena has more bytes than they can count.
const PLACE_BITS: u32 = 24;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

const fn place(space: Space, at: u32, len: u32) -> u64 {
    (space.0 as u64) << (2 * PLACE_BITS) | (at as u64 & PLACE_MASK) << PLACE_BITS | len as u64 & PLACE_MASK
}

impl List {
    #[inline(always)]
    fn new(space: Space, at: u32, len: u32) -> List {
        List(place(space, at, len))
    }

    #[inline(always)]
    fn space(self) -> Space {
        Space((self.0 >> (2 * PLACE_BITS)) as u16)
    }

    #[inline(always)]
    fn at(self) -> u32 {
        (self.0 >> PLACE_BITS & PLACE_MASK) as u32
    }

    /// Number of elements or pairs.
    #[inline(always)]
    pub fn len(self) -> usize {
        (self.0 & PLACE_MASK) as usize
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether it is a constant of the image.
    pub(super) fn is_constant(self) -> bool {
        self.space() == Space::CONSTANT
    }
}

impl Text {
    #[inline(always)]
    fn new(space: Space, at: u32, len: u32) -> Text {
        Text(place(space, at, len))
    }

    #[inline(always)]
    fn space(self) -> Space {
        Space((self.0 >> (2 * PLACE_BITS)) as u16)
    }

    #[inline(always)]
    fn at(self) -> u32 {
        (self.0 >> PLACE_BITS & PLACE_MASK) as u32
    }

    /// The image's string with this number, so many bytes long.
    pub(super) fn constant(number: u32, len: u32) -> Text {
        Text::new(Space::CONSTANT, number, len)
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn len(self) -> usize {
        (self.0 & PLACE_MASK) as usize
    }

    /// Whether it has none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Where content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space(u16);

impl Space {
    /// A whole string of the image or a node; `at` is its number.
    const CONSTANT: Space = Space(0);
    /// Part of a string of the image; `at` is an offset in the bytes of all.
    const CONSTANT_PART: Space = Space(1);
    /// The arena; `at` is an offset in it.
    pub(super) const ARENA: Space = Space(2);
    /// All maps of the state, as one object.
    const MAPS: Space = Space(3);
    /// One map of the state; `at` is its number.
    const MAP: Space = Space(4);
    /// Inside a packed value: in the same one.
    pub(super) const HERE: Space = Space(5);
    /// The first of the state's slots; `at` is an offset in the slot's bytes.
    const SLOTS: u16 = 16;
    /// The most slots that can be told apart.
    pub(super) const MAX_SLOTS: usize = (u16::MAX - Self::SLOTS) as usize;

    pub(super) fn slot(number: u16) -> Space {
        Space(Self::SLOTS.saturating_add(number))
    }

    pub(super) fn slot_number(self) -> Option<usize> {
        self.0.checked_sub(Self::SLOTS).map(usize::from)
    }
}

/// The bytes that a value takes in the arena and in the state.
pub(super) const CELL: usize = 16;

impl Value {
    /// The kind, in OPA's order.
    pub fn kind(self) -> Kind {
        match self {
            Value::Null => Kind::Null,
            Value::False | Value::True => Kind::Bool,
            Value::Int(_) => Kind::Int,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::Object(_) => Kind::Object,
            Value::Set(_) => Kind::Set,
        }
    }

    /// A boolean.
    pub const fn bool(value: bool) -> Value {
        if value { Value::True } else { Value::False }
    }

    /// A number.
    pub const fn int(value: i64) -> Value {
        Value::Int(value)
    }

    /// Whether its content, if it has any, is in the image: it needs no copy to be kept.
    pub(super) fn is_constant(self) -> bool {
        matches!(self.place(), None | Some((Space::CONSTANT | Space::CONSTANT_PART, _)))
    }

    /// A packed value whose bytes a view has in the place of the arena.
    pub(super) fn in_arena(self) -> Value {
        match self.place() {
            Some((Space::HERE, at)) => self.placed(Space::ARENA, at),
            _ => self,
        }
    }

    /// The string of the first `len` bytes of a slot.
    pub(super) fn text_here(len: usize) -> Value {
        Value::String(Text::new(Space::HERE, 0, len as u32))
    }

    /// The object of `len` pairs at this offset of a slot.
    pub(super) fn object_here(at: usize, len: usize) -> Value {
        Value::Object(List::new(Space::HERE, at as u32, len as u32))
    }

    /// All maps of the state, as one object.
    pub(super) fn maps(len: usize) -> Value {
        Value::Object(List::new(Space::MAPS, 0, len as u32))
    }

    /// One map of the state.
    pub(super) fn map(number: usize, len: usize, is_set: bool) -> Value {
        let list = List::new(Space::MAP, number as u32, len as u32);
        if is_set { Value::Set(list) } else { Value::Object(list) }
    }

    /// The offset in the arena where its content starts, if it has content there.
    pub(super) fn arena_start(self) -> Option<usize> {
        let (space, at) = self.place()?;
        (space == Space::ARENA).then_some(at as usize)
    }

    pub(super) fn place(self) -> Option<(Space, u32)> {
        match self {
            Value::String(text) => Some((text.space(), text.at())),
            Value::Array(list) | Value::Object(list) | Value::Set(list) => Some((list.space(), list.at())),
            _ => None,
        }
    }

    /// The same value with its content somewhere else.
    pub(super) fn placed(self, to: Space, start: u32) -> Value {
        let list = |list: List| List::new(to, start, list.len() as u32);
        match self {
            Value::String(text) => Value::String(Text::new(to, start, text.len() as u32)),
            Value::Array(it) => Value::Array(list(it)),
            Value::Object(it) => Value::Object(list(it)),
            Value::Set(it) => Value::Set(list(it)),
            other => other,
        }
    }

    /// The value as bytes of the arena or of a slot.
    #[inline]
    pub(super) fn to_cell(self) -> [u8; CELL] {
        let (kind, body) = match self {
            Value::Null => (0, 0),
            Value::False => (1, 0),
            Value::True => (1, 1),
            Value::Int(value) => (2, value as u64),
            Value::String(Text(place)) => (3, place),
            Value::Array(List(place)) => (4, place),
            Value::Object(List(place)) => (5, place),
            Value::Set(List(place)) => (6, place),
        };
        (u128::from(body) << 64 | kind).to_le_bytes()
    }

    /// The inverse of [`to_cell`](Self::to_cell).
    #[inline]
    pub(super) fn from_cell(cell: [u8; CELL]) -> Value {
        let bits = u128::from_le_bytes(cell);
        let body = (bits >> 64) as u64;
        match bits as u8 {
            1 => Value::bool(body != 0),
            2 => Value::Int(body as i64),
            3 => Value::String(Text(body)),
            4 => Value::Array(List(body)),
            5 => Value::Object(List(body)),
            6 => Value::Set(List(body)),
            _ => Value::Null,
        }
    }
}

/// Why a decision has no outcome. Each is a denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The fuel is used up: the policy asks for more work than a decision may cost.
    Fuel,
    /// The arena is full.
    Arena,
    /// A value is nested deeper than [`MAX_DEPTH`], or longer than can be counted.
    Depth,
    /// A rule, a function or an object comprehension has two different values.
    Conflict,
    /// The result of arithmetic is no 64-bit integer.
    Overflow,
    /// A pattern has to be matched that the compiler did not see, or a text is too long for one.
    Pattern,
    /// A builtin was asked for something that this machine leaves out (a verb of `sprintf`, a fraction).
    Unsupported,
    /// The program says that going on is not what its source means.
    Abort,
    /// The input has one key twice.
    Input,
    /// The decision's result is no object with a boolean `allowed`, or its other fields have wrong types.
    Result,
    /// The decision's `metadata` cannot be applied.
    State(super::state::StateError),
}

/// Memory for one decision: filled from the front, emptied at once.
#[derive(Debug)]
pub struct Arena<'m> {
    memory: &'m mut [u8],
    top: usize,
}

impl<'m> Arena<'m> {
    /// What one decision gets unless its caller says otherwise, in bytes.
    pub const DEFAULT_SIZE: usize = 64 << 10;

    /// An empty arena in this memory, of which at most 16 MiB are used.
    pub fn new(memory: &'m mut [u8]) -> Arena<'m> {
        let usable = memory.len().min(PLACE_MASK as usize);
        Arena { memory: &mut memory[..usable], top: 0 }
    }

    /// Forgets all values in it. [`Engine`](super::engine::Engine) does this before each decision.
    pub fn reset(&mut self) {
        self.top = 0;
    }

    /// A string.
    pub fn string(&mut self, text: &str) -> Result<Value, Fault> {
        let start = self.top;
        self.append(text.as_bytes())?;
        Ok(self.text_since(start))
    }

    /// An array.
    pub fn array(&mut self, items: &[Value]) -> Result<Value, Fault> {
        let at = self.reserve(items.len())?;
        for (index, &item) in items.iter().enumerate() {
            self.set_cell(at + index * CELL, item);
        }
        Ok(Value::Array(self.list(at, items.len())))
    }

    /// An array of strings.
    pub fn strings<'s>(&mut self, items: impl ExactSizeIterator<Item = &'s str>) -> Result<Value, Fault> {
        let (len, mut cell) = (items.len(), self.reserve(items.len())?);
        let at = cell;
        for item in items.take(len) {
            let item = self.string(item)?;
            self.set_cell(cell, item);
            cell += CELL;
        }
        Ok(Value::Array(self.list(at, len)))
    }

    /// An object. Pairs may come in any order; a repeated key is an error.
    pub fn object(&mut self, pairs: &[(&str, Value)]) -> Result<Value, Fault> {
        let at = self.reserve(pairs.len() * 2)?;
        // Selection by rank: objects have few keys, and this needs no memory for an order.
        for (key, value) in pairs {
            let rank = pairs.iter().filter(|(other, _)| other < key).count();
            if pairs.iter().filter(|(other, _)| other == key).count() > 1 {
                return Err(Fault::Input);
            }
            let key = self.string(key)?;
            self.set_cell(at + rank * 2 * CELL, key);
            self.set_cell(at + (rank * 2 + 1) * CELL, *value);
        }
        Ok(Value::Object(self.list(at, pairs.len())))
    }

    /// A copy of an object of this arena with one more string, under a key that it has not.
    pub(super) fn with_field(&mut self, object: Value, key: &str, value: &str) -> Result<Value, Fault> {
        let Value::Object(list) = object else { return Err(Fault::Input) };
        if list.space() != Space::ARENA {
            return Err(Fault::Input);
        }
        let (old, len) = (list.at() as usize, list.len());
        let (key_value, value) = (self.string(key)?, self.string(value)?);
        let at = self.reserve((len + 1) * 2)?;
        let less = |&index: &usize| match self.cell(old + index * 2 * CELL) {
            Value::String(text) => self
                .bytes()
                .get(text.at() as usize..text.at() as usize + text.len())
                .is_some_and(|bytes| bytes < key.as_bytes()),
            other => other.kind() < Kind::String,
        };
        let rank = (0..len).take_while(less).count();
        let (before, after) = (rank * 2 * CELL, (len - rank) * 2 * CELL);
        self.shift(old, at, before);
        self.shift(old + before, at + before + 2 * CELL, after);
        self.set_cell(at + before, key_value);
        self.set_cell(at + before + CELL, value);
        Ok(Value::Object(self.list(at, len + 1)))
    }

    /// The number of bytes in use.
    pub fn used(&self) -> usize {
        self.top
    }

    pub(super) fn release(&mut self, mark: usize) {
        self.top = self.top.min(mark);
    }

    /// Makes room for `count` values at the top and returns where.
    pub(super) fn reserve(&mut self, count: usize) -> Result<usize, Fault> {
        let at = self.top;
        let end = count.checked_mul(CELL).and_then(|size| at.checked_add(size)).ok_or(Fault::Arena)?;
        // What was there before is of another decision; it is overwritten before it is read.
        if end > self.memory.len() {
            return Err(Fault::Arena);
        }
        self.top = end;
        Ok(at)
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let end = self.top.checked_add(bytes.len()).ok_or(Fault::Arena)?;
        self.memory.get_mut(self.top..end).ok_or(Fault::Arena)?.copy_from_slice(bytes);
        self.top = end;
        Ok(())
    }

    /// Appends bytes that are in the arena already.
    pub(super) fn append_within(&mut self, at: usize, len: usize) -> Result<(), Fault> {
        let end = self.top.checked_add(len).filter(|&end| end <= self.memory.len()).ok_or(Fault::Arena)?;
        if at.checked_add(len).is_none_or(|source_end| source_end > self.top) {
            return Err(Fault::Arena);
        }
        self.memory.copy_within(at..at + len, self.top);
        self.top = end;
        Ok(())
    }

    /// Moves `len` bytes; both ranges are below the top.
    pub(super) fn shift(&mut self, from: usize, to: usize, len: usize) {
        if from.max(to).checked_add(len).is_some_and(|end| end <= self.top) {
            self.memory.copy_within(from..from + len, to);
        }
    }

    pub(super) fn text_since(&self, start: usize) -> Value {
        Value::String(Text::new(Space::ARENA, start as u32, (self.top - start) as u32))
    }

    pub(super) fn list(&self, at: usize, len: usize) -> List {
        List::new(Space::ARENA, at as u32, len as u32)
    }

    pub(super) fn set_cell(&mut self, at: usize, value: Value) {
        if let Some(cell) = self.memory.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
            *cell = value.to_cell();
        }
    }

    pub(super) fn cell(&self, at: usize) -> Value {
        let cell = self.memory.get(at..).and_then(<[u8]>::first_chunk);
        cell.map_or(Value::Null, |&cell| Value::from_cell(cell))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[..self.top]
    }

    /// What is in use, and the rest, which is free until the next allocation.
    pub(super) fn split(&mut self) -> (&[u8], &mut [u8]) {
        let (used, free) = self.memory.split_at_mut(self.top);
        (used, free)
    }
}

/// Work that a caller of a comparison allows, in steps.
#[derive(Clone, Copy, Debug)]
pub struct Fuel(pub u64);

/// Pairs of an object that are looked through one after another.
const MAX_SCANNED: usize = 32;
/// Bytes that cost one step of fuel where they are copied or compared.
pub(super) const BYTES_PER_STEP: usize = 16;

impl Fuel {
    /// Takes `steps`.
    #[inline]
    pub(super) fn take(&mut self, steps: usize) -> Result<(), Fault> {
        match self.0.checked_sub(steps as u64) {
            Some(rest) => {
                self.0 = rest;
                Ok(())
            }
            None => {
                self.0 = 0;
                Err(Fault::Fuel)
            }
        }
    }

    /// Takes the cost of touching this many bytes.
    #[inline]
    pub(super) fn bytes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.take(bytes / BYTES_PER_STEP)
    }
}

/// Binary search: `order` compares element `index` with what is looked for.
#[inline(always)]
fn bisect(
    len: usize,
    mut order: impl FnMut(usize) -> Result<Ordering, Fault>,
) -> Result<Result<usize, usize>, Fault> {
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = (low + high) / 2;
        match order(middle)? {
            Ordering::Less => low = middle + 1,
            Ordering::Equal => return Ok(Ok(middle)),
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

/// Reads values. A value is only meaningful with the view of the engine and the decision that made it; with
/// another it reads as something else or as `null`, but never out of bounds.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub(super) image: &'a Image<'a>,
    pub(super) state: &'a State,
    pub(super) arena: &'a [u8],
}

impl<'a> View<'a> {
    /// A constant as a value.
    #[inline]
    pub fn constant(&self, constant: Const) -> Value {
        let index = constant.index();
        let node = |index| List::new(Space::CONSTANT, index, self.image.node_len(index));
        match constant.kind() {
            Some(Kind::String) => Value::String(Text::constant(index, self.image.string_len(index))),
            Some(Kind::Array) => Value::Array(node(index)),
            Some(Kind::Set) => Value::Set(node(index)),
            Some(Kind::Object) => {
                // The first word is the shape.
                let len = self.image.node_len(index).saturating_sub(1);
                Value::Object(List::new(Space::CONSTANT, index, len))
            }
            Some(Kind::Bool) => Value::bool(index != 0),
            Some(Kind::Int) => Value::Int(self.image.int(index).unwrap_or_default()),
            Some(Kind::Null) | None => Value::Null,
        }
    }

    /// A string's bytes, which are UTF-8.
    #[inline]
    pub fn bytes(&self, text: Text) -> &'a [u8] {
        let region: &'a [u8] = match text.space() {
            Space::CONSTANT => return self.image.string(text.at()).unwrap_or_default(),
            Space::CONSTANT_PART => self.image.section(Section::StringBytes),
            Space::ARENA => self.arena,
            space => space.slot_number().map_or(&[], |slot| self.state.slot(slot)),
        };
        let start = text.at() as usize;
        region.get(start..start + text.len()).unwrap_or_default()
    }

    /// The part of a string from byte `start`, `len` bytes long; the caller keeps to character boundaries and to the
    /// string's length.
    pub(super) fn part(&self, text: Text, start: usize, len: usize) -> Text {
        let (space, at) = match text.space() {
            Space::CONSTANT => {
                let range = self.image.range(Section::StringEnds, text.at()).unwrap_or_default();
                (Space::CONSTANT_PART, range.start as u32)
            }
            space => (space, text.at()),
        };
        Text::new(space, at.saturating_add(start as u32), len as u32)
    }

    /// A string.
    pub fn text(&self, text: Text) -> &'a str {
        core::str::from_utf8(self.bytes(text)).unwrap_or_default()
    }

    /// A cell of the arena or of a slot.
    #[inline]
    fn cell(&self, space: Space, at: usize) -> Value {
        let region = match space {
            Space::ARENA => self.arena,
            space => space.slot_number().map_or(&[][..], |slot| self.state.slot(slot)),
        };
        let Some(&cell) = region.get(at..).and_then(<[u8]>::first_chunk) else { return Value::Null };
        let value = Value::from_cell(cell);
        match value.place() {
            // What is packed beside it moves with it.
            Some((Space::HERE, start)) => value.placed(space, start),
            _ => value,
        }
    }

    /// An element of an array or a set.
    #[inline]
    pub fn item(&self, list: List, index: usize) -> Value {
        match list.space() {
            Space::CONSTANT => self.word(self.image.node_start(list.at()) + index),
            Space::MAP => {
                self.state.entry(list.at() as usize, index).map_or(Value::Null, |entry| entry.value)
            }
            space => self.cell(space, list.at() as usize + index * CELL),
        }
    }

    #[inline]
    fn word(&self, index: usize) -> Value {
        self.image.element(index).map_or(Value::Null, |constant| self.constant(constant))
    }

    /// A pair of an object.
    #[inline]
    pub fn pair(&self, list: List, index: usize) -> (Value, Value) {
        match list.space() {
            Space::CONSTANT => (self.key(list, index), self.pair_value(list, index)),
            Space::MAPS => self.state.map(index).unwrap_or((Value::Null, Value::Null)),
            Space::MAP => match self.state.entry(list.at() as usize, index) {
                Some(entry) => (entry.key, entry.value),
                None => (Value::Null, Value::Null),
            },
            space => {
                let at = list.at() as usize + index * 2 * CELL;
                (self.cell(space, at), self.cell(space, at + CELL))
            }
        }
    }

    #[inline]
    fn key(&self, list: List, index: usize) -> Value {
        match list.space() {
            Space::CONSTANT => {}
            Space::MAPS | Space::MAP => return self.pair(list, index).0,
            space => return self.cell(space, list.at() as usize + index * 2 * CELL),
        }
        let shape = self.image.node(list.at()).and_then(|(_, words)| self.image.element(words.start));
        match shape.and_then(|shape| self.image.node(shape.index())) {
            Some((_, keys)) => self.word(keys.start + index),
            None => Value::Null,
        }
    }

    #[inline]
    fn pair_value(&self, list: List, index: usize) -> Value {
        match list.space() {
            Space::CONSTANT => {}
            Space::MAPS | Space::MAP => return self.pair(list, index).1,
            space => return self.cell(space, list.at() as usize + (index * 2 + 1) * CELL),
        }
        match self.image.node(list.at()) {
            Some((_, words)) => self.word(words.start + 1 + index),
            None => Value::Null,
        }
    }

    /// OPA's total order.
    #[inline]
    pub fn compare(&self, a: Value, b: Value, fuel: &mut Fuel) -> Result<Ordering, Fault> {
        match (a, b) {
            (Value::String(a), Value::String(b)) => {
                fuel.take(1)?;
                self.compare_texts(a, b, fuel)
            }
            _ => self.compare_nested(a, b, fuel, 0),
        }
    }

    // The recursion is bounded by MAX_DEPTH, its work by the fuel.
    fn compare_nested(&self, a: Value, b: Value, fuel: &mut Fuel, depth: usize) -> Result<Ordering, Fault> {
        fuel.take(1)?;
        if depth > MAX_DEPTH {
            return Err(Fault::Depth);
        }
        Ok(match (a, b) {
            (Value::False, Value::True) => Ordering::Less,
            (Value::True, Value::False) => Ordering::Greater,
            (Value::Int(a), Value::Int(b)) => a.cmp(&b),
            (Value::String(a), Value::String(b)) => self.compare_texts(a, b, fuel)?,
            (Value::Array(x), Value::Array(y)) | (Value::Set(x), Value::Set(y)) if x != y => {
                for index in 0..x.len().min(y.len()) {
                    let (x, y) = (self.item(x, index), self.item(y, index));
                    let order = self.compare_nested(x, y, fuel, depth + 1)?;
                    if order.is_ne() {
                        return Ok(order);
                    }
                }
                x.len().cmp(&y.len())
            }
            (Value::Object(x), Value::Object(y)) if x != y => {
                for index in 0..x.len().min(y.len()) {
                    let (x, y) = (self.pair(x, index), self.pair(y, index));
                    let keys = self.compare_nested(x.0, y.0, fuel, depth + 1)?;
                    if keys.is_ne() {
                        return Ok(keys);
                    }
                    let values = self.compare_nested(x.1, y.1, fuel, depth + 1)?;
                    if values.is_ne() {
                        return Ok(values);
                    }
                }
                x.len().cmp(&y.len())
            }
            _ => a.kind().cmp(&b.kind()),
        })
    }

    #[inline]
    fn compare_texts(&self, a: Text, b: Text, fuel: &mut Fuel) -> Result<Ordering, Fault> {
        if a.space() == Space::CONSTANT && b.space() == Space::CONSTANT {
            // The image's strings are sorted and unique.
            return Ok(a.at().cmp(&b.at()));
        }
        fuel.bytes(a.len().min(b.len()))?;
        Ok(self.bytes(a).cmp(self.bytes(b)))
    }

    /// Whether two values are the same.
    #[inline]
    pub fn equal(&self, a: Value, b: Value, fuel: &mut Fuel) -> Result<bool, Fault> {
        match (a, b) {
            (Value::String(a), Value::String(b)) => {
                fuel.take(1)?;
                if a == b || a.len() != b.len() {
                    return Ok(a == b);
                }
                if a.space() == Space::CONSTANT && b.space() == Space::CONSTANT {
                    return Ok(false);
                }
                fuel.bytes(a.len())?;
                Ok(self.bytes(a) == self.bytes(b))
            }
            (Value::Array(a), Value::Array(b))
            | (Value::Object(a), Value::Object(b))
            | (Value::Set(a), Value::Set(b))
                if a.len() != b.len() =>
            {
                Ok(false)
            }
            (Value::Array(a), Value::Array(b)) if a != b => {
                // What most arrays are of, strings, without a step into them.
                for index in 0..a.len() {
                    let (a, b) = (self.item(a, index), self.item(b, index));
                    let same = match (a, b) {
                        (Value::String(_), Value::String(_)) => self.equal(a, b, fuel)?,
                        _ => self.compare_nested(a, b, fuel, 1)?.is_eq(),
                    };
                    if !same {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(self.compare(a, b, fuel)?.is_eq()),
        }
    }

    /// Where `key` is, or where it would be, among `len` keys in ascending order.
    #[inline]
    pub(super) fn search(
        &self,
        len: usize,
        key: Value,
        fuel: &mut Fuel,
        at: impl Fn(usize) -> Value,
    ) -> Result<Result<usize, usize>, Fault> {
        match key {
            Value::String(key) => {
                let bytes = self.bytes(key);
                bisect(len, |middle| {
                    fuel.take(1)?;
                    match at(middle) {
                        // As in `compare_texts`, with the key's bytes at hand.
                        Value::String(text)
                            if (text.space(), key.space()) == (Space::CONSTANT, Space::CONSTANT) =>
                        {
                            Ok(text.at().cmp(&key.at()))
                        }
                        Value::String(text) => {
                            fuel.bytes(text.len().min(key.len()))?;
                            Ok(self.bytes(text).cmp(bytes))
                        }
                        other => Ok(other.kind().cmp(&Kind::String)),
                    }
                })
            }
            _ => bisect(len, |middle| self.compare(at(middle), key, fuel)),
        }
    }

    /// The same among constants, which are these words of the image.
    fn search_words(
        &self,
        words: core::ops::Range<usize>,
        key: Value,
        fuel: &mut Fuel,
    ) -> Result<Result<usize, usize>, Fault> {
        let (start, len) = (words.start, words.len());
        let word = |index: usize| self.image.element(start + index).unwrap_or(Const::NULL);
        match key {
            Value::String(text) if text.space() == Space::CONSTANT => {
                self.bisect_words(start, len, Const::new(Kind::String, text.at()), fuel)
            }
            Value::String(text) => {
                let bytes = self.bytes(text);
                bisect(len, |middle| {
                    let word = word(middle);
                    fuel.take(1)?;
                    match word.kind() {
                        Some(Kind::String) => {
                            let string = self.image.string(word.index()).unwrap_or_default();
                            fuel.bytes(string.len().min(bytes.len()))?;
                            Ok(string.cmp(bytes))
                        }
                        kind => Ok(kind.cmp(&Some(Kind::String))),
                    }
                })
            }
            // Equal constants are the same word.
            Value::Array(list) | Value::Object(list) | Value::Set(list) if list.is_constant() => {
                let key = Const::new(key.kind(), list.at());
                self.find_word(start, len, key, fuel)
            }
            _ => self.search(len, key, fuel, |index| self.constant(word(index))),
        }
    }

    /// What a small object of the arena has for a string. Most keys are of another length, which is seen at once.
    fn scan(&self, list: List, key: Text, fuel: &mut Fuel) -> Result<Option<Value>, Fault> {
        fuel.take(list.len())?;
        let cells = self.arena.get(list.at() as usize..).unwrap_or_default().as_chunks().0;
        let bytes = self.bytes(key);
        let like = Value::String(Text::new(Space::CONSTANT, 0, key.len() as u32)).to_cell();
        // A string of this length, wherever it is.
        let mask = u128::from(PLACE_MASK) << 64 | 0xff;
        let like = u128::from_le_bytes(like) & mask;
        for pair in cells.chunks_exact(2).take(list.len()) {
            if u128::from_le_bytes(pair[0]) & mask != like {
                continue;
            }
            let Value::String(text) = Value::from_cell(pair[0]) else { continue };
            fuel.bytes(bytes.len())?;
            if self.bytes(text) == bytes {
                return Ok(Some(Value::from_cell(pair[1])));
            }
        }
        Ok(None)
    }

    /// Where a constant that is no collection is among ascending words: the order of such constants is the order of
    /// their words, and collections come after them.
    #[inline]
    fn bisect_words(
        &self,
        start: usize,
        len: usize,
        key: Const,
        fuel: &mut Fuel,
    ) -> Result<Result<usize, usize>, Fault> {
        bisect(len, |middle| {
            fuel.take(1)?;
            Ok(self.image.element(start + middle).cmp(&Some(key)))
        })
    }

    /// Where a composite constant is among words that are not in the order of their numbers.
    fn find_word(
        &self,
        start: usize,
        len: usize,
        key: Const,
        fuel: &mut Fuel,
    ) -> Result<Result<usize, usize>, Fault> {
        fuel.bytes(WORD * len)?;
        let found = (start..start + len).position(|index| self.image.element(index) == Some(key));
        Ok(found.ok_or(len))
    }

    /// `from[key]`.
    #[inline]
    pub fn get(&self, from: Value, key: Value, fuel: &mut Fuel) -> Result<Option<Value>, Fault> {
        Ok(match (from, key) {
            (Value::Array(list), Value::Int(index)) => {
                let index = usize::try_from(index).ok().filter(|&index| index < list.len());
                index.map(|index| self.item(list, index))
            }
            (Value::Object(list), _) if list.is_constant() => {
                let Some((words, keys)) = self.constant_object(list.at()) else { return Ok(None) };
                let found = self.search_words(keys, key, fuel)?;
                found.ok().map(|index| self.word(words.start + 1 + index))
            }
            (Value::Set(list), _) if list.is_constant() => {
                let Some((_, words)) = self.image.node(list.at()) else { return Ok(None) };
                self.search_words(words, key, fuel)?.ok().map(|_| key)
            }
            (Value::Object(list), Value::String(text))
                if list.space() == Space::ARENA && list.len() <= MAX_SCANNED =>
            {
                self.scan(list, text, fuel)?
            }
            (Value::Object(list), _) => {
                let found = self.search(list.len(), key, fuel, |index| self.key(list, index))?;
                found.ok().map(|index| self.pair_value(list, index))
            }
            (Value::Set(list), _) => {
                let found = self.search(list.len(), key, fuel, |index| self.item(list, index))?;
                found.ok().map(|_| key)
            }
            _ => None,
        })
    }

    /// `from[key]` of a key that is a constant of the image.
    #[inline]
    pub(super) fn get_constant(
        &self,
        from: Value,
        key: Const,
        fuel: &mut Fuel,
    ) -> Result<Option<Value>, Fault> {
        let list = match from {
            Value::Object(list) if list.is_constant() => list,
            _ => return self.get(from, self.constant(key), fuel),
        };
        let Some((words, keys)) = self.constant_object(list.at()) else { return Ok(None) };
        let found = if key.kind() < Some(Kind::Array) {
            self.bisect_words(keys.start, keys.len(), key, fuel)?
        } else {
            self.find_word(keys.start, keys.len(), key, fuel)?
        };
        Ok(found.ok().map(|index| self.word(words.start + 1 + index)))
    }

    /// Where the words of a constant object are (the shape first), and those of its keys.
    #[inline]
    fn constant_object(&self, node: u32) -> Option<(core::ops::Range<usize>, core::ops::Range<usize>)> {
        let (_, words) = self.image.node(node)?;
        let (_, keys) = self.image.node(self.image.element(words.start)?.index())?;
        Some((words, keys))
    }

    /// Key and value number `index` of any collection: position and element of an array, member and
    /// member of a set.
    pub fn element(&self, collection: Value, index: usize) -> Option<(Value, Value)> {
        match collection {
            Value::Array(list) if index < list.len() => {
                Some((Value::Int(index as i64), self.item(list, index)))
            }
            Value::Object(list) if index < list.len() => Some(self.pair(list, index)),
            Value::Set(list) if index < list.len() => {
                let member = self.item(list, index);
                Some((member, member))
            }
            _ => None,
        }
    }

    /// The value of a field of an object.
    pub fn field(&self, object: Value, name: &str) -> Option<Value> {
        let Value::Object(list) = object else { return None };
        let (mut low, mut high) = (0, list.len());
        while low < high {
            let middle = (low + high) / 2;
            let (key, value) = self.pair(list, middle);
            let order = match key {
                Value::String(text) => self.bytes(text).cmp(name.as_bytes()),
                other => other.kind().cmp(&Kind::String),
            };
            match order {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(value),
                Ordering::Greater => high = middle,
            }
        }
        None
    }
}
