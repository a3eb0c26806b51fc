//! The policy's memory, `data.metadata`: maps from strings to values that outlive a decision.
//!
//! It changes only by a [`Delta`], which a decision makes and the gate commits after the action
//! succeeded. A commit gives back an [`Undo`], as large as what changed. Values are deep copies,
//! owned here; what is a constant of the policy stays a reference into the image. Sizes are
//! bounded, and where the heap has nothing left that is an error.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::format::{Image, MAX_DEPTH};
use super::value::{CELL, Fuel, Space, Value, View};
use sha2::digest::Update;
use sha2::{Digest, Sha256};

/// Entries of all maps together, the names of the maps included.
pub const MAX_ENTRIES: usize = 8192;
/// Bytes of keys and values of all maps together (references to constants not counted).
pub const MAX_BYTES: usize = 1 << 20;
/// Bytes of one key and value.
pub const MAX_ENTRY_BYTES: usize = 64 << 10;
/// Steps that going through one value may take: one for each element and 16 bytes, as often as they are referred to.
pub const MAX_ENTRY_STEPS: u64 = 1 << 20;
/// Operations of one decision.
pub const MAX_OPERATIONS: usize = 64;
/// Bytes of the data of one fragment.
pub const MAX_FRAGMENT_DATA: usize = 512 << 10;

/// Why the state cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// An operation has not the form `{"name", "action", "key", "value"}`.
    Malformed,
    /// Something is added that is there already.
    Exists,
    /// One delta touches an entry twice, or uses a map as a set.
    Ambiguous,
    /// One of the limits of this module is reached.
    Limit,
    /// The heap is exhausted.
    Memory,
    /// The undo does not belong to the last commit.
    Stale,
}

/// What an operation does with its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Makes it; an entry with a key must not be there yet.
    Add,
    /// Makes or replaces it.
    Update,
    /// Removes it, if it is there.
    Remove,
}

/// A key and a value, deep-copied into bytes of their own.
#[derive(Clone, Debug)]
struct Stored {
    bytes: Box<[u8]>,
    key: Value,
    value: Value,
    /// Whether it stays until power-off, so that entries may refer to it as they do to constants.
    pinned: bool,
}

/// Data that is not of the policy's image and stays all the same: a fragment's. Entries refer to it, so that what a
/// fragment adds is there once however many containers are made of it.
#[derive(Debug)]
pub struct Pinned {
    slot: u16,
}

/// Fields of an object that is to be pinned, from wherever their values are.
#[derive(Debug, Default)]
pub struct Pinning {
    bytes: Vec<u8>,
    pairs: Vec<(Value, Value)>,
}

impl Pinned {
    pub(super) fn slot(&self) -> u16 {
        self.slot
    }
}

impl Pinning {
    /// Copies a field, what is a constant where it comes from included. Names come in ascending order.
    pub fn field(&mut self, view: &View<'_>, name: Value, value: Value) -> Result<(), StateError> {
        let copy = Copying { view, limit: MAX_FRAGMENT_DATA, all: true };
        let name = copy.value(name, &mut self.bytes, 0)?;
        let value = copy.value(value, &mut self.bytes, 0)?;
        self.pairs.try_reserve(1).map_err(|_| StateError::Memory)?;
        self.pairs.push((name, value));
        Ok(())
    }

    fn finish(mut self) -> Result<Stored, StateError> {
        let start = self.bytes.len();
        let size = self.pairs.len() * 2 * CELL;
        self.bytes.try_reserve_exact(size).map_err(|_| StateError::Memory)?;
        for (name, value) in &self.pairs {
            self.bytes.extend_from_slice(&name.to_cell());
            self.bytes.extend_from_slice(&value.to_cell());
        }
        let value = Value::object_here(start, self.pairs.len());
        Ok(Stored { bytes: exact(&self.bytes)?, key: Value::Null, value, pinned: true })
    }
}

#[derive(Clone, Debug)]
struct Operation {
    action: Action,
    name: Box<str>,
    /// Entries without a key are members of a set.
    keyed: bool,
    entry: Stored,
}

/// Changes that an allowed decision asks for.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    operations: Vec<Operation>,
}

impl Delta {
    /// Whether nothing would change.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// The operations' actions and maps, for the audit log.
    pub fn operations(&self) -> impl Iterator<Item = (Action, &str)> {
        self.operations.iter().map(|operation| (operation.action, &*operation.name))
    }

    /// Adds an operation. `key` is `None` for a member of a set.
    pub fn push(
        &mut self,
        view: &View<'_>,
        action: Action,
        name: &str,
        key: Option<Value>,
        value: Value,
    ) -> Result<(), StateError> {
        if self.operations.len() >= MAX_OPERATIONS {
            return Err(StateError::Limit);
        }
        if !matches!(key, None | Some(Value::String(_))) {
            return Err(StateError::Malformed);
        }
        let operation = Operation {
            action,
            name: boxed(name)?,
            keyed: key.is_some(),
            entry: pack(view, key.unwrap_or(Value::Null), value)?,
        };
        self.operations.try_reserve(1).map_err(|_| StateError::Memory)?;
        self.operations.push(operation);
        Ok(())
    }

    /// Adds the operations of a second decision on the same request: they take effect together.
    pub fn append(&mut self, other: Self) -> Result<(), StateError> {
        if self.operations.len() + other.operations.len() > MAX_OPERATIONS {
            return Err(StateError::Limit);
        }
        self.operations.try_reserve(other.operations.len()).map_err(|_| StateError::Memory)?;
        self.operations.extend(other.operations);
        Ok(())
    }

    /// Adds the operations that a decision's `metadata` lists.
    pub(super) fn push_all(&mut self, view: &View<'_>, metadata: Value) -> Result<(), StateError> {
        let Value::Array(list) = metadata else { return Err(StateError::Malformed) };
        for index in 0..list.len() {
            let operation = view.item(list, index);
            let Value::Object(fields) = operation else { return Err(StateError::Malformed) };
            let text = |name| match view.field(operation, name) {
                Some(Value::String(text)) => Ok(view.text(text)),
                _ => Err(StateError::Malformed),
            };
            let action = match text("action")? {
                "add" => Action::Add,
                "update" => Action::Update,
                "remove" => Action::Remove,
                _ => return Err(StateError::Malformed),
            };
            let (key, value) = (view.field(operation, "key"), view.field(operation, "value"));
            // What is changed need not be said, but it must not be something else.
            let (kind, is_set) = (view.field(operation, "type").is_some(), key.is_none());
            if kind && text("type")? != if is_set { "set" } else { "map" } {
                return Err(StateError::Malformed);
            }
            let known = 2 + usize::from(key.is_some()) + usize::from(value.is_some()) + usize::from(kind);
            if fields.len() != known || value.is_none() && (action != Action::Remove || key.is_none()) {
                return Err(StateError::Malformed);
            }
            self.push(view, action, text("name")?, key, value.unwrap_or(Value::Null))?;
        }
        Ok(())
    }
}

/// What takes a commit back.
#[derive(Debug)]
pub struct Undo {
    /// In the order in which they were made.
    changes: Vec<Change>,
    /// The state's generation after the commit.
    generation: u64,
    /// Its digest before.
    digest: [u8; 32],
}

#[derive(Debug)]
enum Change {
    NewMap { map: usize },
    Inserted { map: usize, position: usize },
    Replaced { map: usize, position: usize, old: Stored },
    Removed { map: usize, position: usize, old: Stored },
}

#[derive(Clone, Debug)]
struct Map {
    /// The slot with its name.
    name: u16,
    is_set: bool,
    /// Slots, ascending by key (of a set by member).
    entries: Vec<u16>,
}

/// The maps. See the [module documentation](self).
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Ascending by name.
    maps: Vec<Map>,
    slots: Vec<Option<Stored>>,
    free: Vec<u16>,
    bytes: usize,
    generation: u64,
    digest: [u8; 32],
}

/// An entry of a map.
pub(super) struct Entry {
    pub key: Value,
    pub value: Value,
}

impl State {
    /// A slot's bytes.
    pub(super) fn slot(&self, number: usize) -> &[u8] {
        self.slots.get(number).and_then(Option::as_ref).map_or(&[], |stored| &stored.bytes)
    }

    fn stored(&self, number: u16) -> Entry {
        let stored = self.slots.get(usize::from(number)).and_then(Option::as_ref);
        let resolve = |value: Value| match value.place() {
            Some((Space::HERE, at)) => value.placed(Space::slot(number), at),
            _ => value,
        };
        match stored {
            Some(stored) => Entry { key: resolve(stored.key), value: resolve(stored.value) },
            None => Entry { key: Value::Null, value: Value::Null },
        }
    }

    /// The maps as one object.
    pub(super) fn root(&self) -> Value {
        Value::maps(self.maps.len())
    }

    /// Name and content of a map.
    pub(super) fn map(&self, number: usize) -> Option<(Value, Value)> {
        let map = self.maps.get(number)?;
        Some((self.stored(map.name).key, Value::map(number, map.entries.len(), map.is_set)))
    }

    /// An entry of a map.
    pub(super) fn entry(&self, map: usize, position: usize) -> Option<Entry> {
        Some(self.stored(*self.maps.get(map)?.entries.get(position)?))
    }

    /// Keeps data for entries to refer to.
    pub(super) fn pin(&mut self, pinning: Pinning) -> Result<Pinned, StateError> {
        let stored = pinning.finish()?;
        if self.bytes + stored.bytes.len() > MAX_BYTES {
            return Err(StateError::Limit);
        }
        // So that giving it up never allocates.
        self.free.try_reserve(self.slots.len() + 1 - self.free.len()).map_err(|_| StateError::Memory)?;
        Ok(Pinned { slot: self.insert_slot(stored)? })
    }

    /// Gives data up to which no entry refers yet.
    pub(super) fn unpin(&mut self, pinned: Pinned) {
        self.take_slot(pinned.slot);
    }

    /// The data.
    pub(super) fn pinned(&self, pinned: &Pinned) -> Value {
        self.stored(pinned.slot).value
    }

    /// Whether a value is in data that stays.
    fn is_pinned(&self, value: Value) -> bool {
        let slot = value.place().and_then(|(space, _)| space.slot_number());
        slot.and_then(|slot| self.slots.get(slot)?.as_ref()).is_some_and(|stored| stored.pinned)
    }

    fn name(&self, map: &Map) -> &[u8] {
        self.slot(usize::from(map.name))
    }

    fn find_map(&self, name: &str) -> Result<usize, usize> {
        self.maps.binary_search_by(|map| self.name(map).cmp(name.as_bytes()))
    }

    /// Where an entry is in its map, or where it would be.
    fn find(
        &self,
        image: &Image<'_>,
        map: &Map,
        keyed: bool,
        entry: &Stored,
    ) -> Result<Result<usize, usize>, StateError> {
        if map.is_set == keyed {
            return Err(StateError::Ambiguous);
        }
        let view = View { image, state: self, arena: &entry.bytes };
        // For the comparison the entry's own bytes stand where the arena would.
        let wanted = if keyed { entry.key } else { entry.value }.in_arena();
        let mut fuel = Fuel(MAX_BYTES as u64);
        let member = |index: usize| {
            let entry = map.entries.get(index).map(|&slot| self.stored(slot));
            entry.map_or(Value::Null, |entry| if keyed { entry.key } else { entry.value })
        };
        view.search(map.entries.len(), wanted, &mut fuel, member).map_err(|_| StateError::Limit)
    }

    /// Whether a delta could be committed now, memory aside.
    pub(super) fn check(&self, image: &Image<'_>, delta: &Delta) -> Result<(), StateError> {
        let (mut bytes, mut entries) = (self.bytes, self.slots.len() - self.free.len());
        for (index, operation) in delta.operations.iter().enumerate() {
            let view = View { image, state: self, arena: &[] };
            let earlier = delta.operations.iter().take(index);
            if earlier.into_iter().any(|earlier| same_entry(&view, earlier, operation)) {
                return Err(StateError::Ambiguous);
            }
            let map = self.find_map(&operation.name).ok().and_then(|map| self.maps.get(map));
            let found = match map {
                Some(map) => self.find(image, map, operation.keyed, &operation.entry)?.is_ok(),
                None => false,
            };
            if found && operation.action == Action::Add && operation.keyed {
                return Err(StateError::Exists);
            }
            if operation.action != Action::Remove {
                bytes += operation.entry.bytes.len() + if map.is_none() { operation.name.len() } else { 0 };
                entries += usize::from(!found) + usize::from(map.is_none());
            }
        }
        if bytes > MAX_BYTES || entries > MAX_ENTRIES.min(Space::MAX_SLOTS) {
            return Err(StateError::Limit);
        }
        Ok(())
    }

    /// Applies all operations of a delta, or none.
    pub(super) fn commit(&mut self, image: &Image<'_>, delta: Delta) -> Result<Undo, StateError> {
        self.check(image, &delta)?;
        let digest = self.digest_after(image, &delta);
        let mut undo = Undo { changes: Vec::new(), generation: 0, digest: self.digest };
        // Everything that could fail for lack of memory happens before anything changes. A map that is new
        // allocates later, so its error takes the undo's way.
        let count = delta.operations.len();
        let reserved = undo.changes.try_reserve(2 * count).is_ok()
            && self.slots.try_reserve(2 * count).is_ok()
            && self.free.try_reserve((self.slots.len() + 2 * count).saturating_sub(self.free.len())).is_ok()
            && self.maps.try_reserve(count).is_ok();
        if !reserved {
            return Err(StateError::Memory);
        }
        for operation in delta.operations {
            if let Err(error) = self.apply(image, operation, &mut undo.changes) {
                self.revert(undo.changes);
                return Err(error);
            }
        }
        self.generation += 1;
        undo.generation = self.generation;
        self.digest = digest;
        Ok(undo)
    }

    /// Takes the last commit back.
    pub(super) fn rollback(&mut self, undo: Undo) -> Result<(), StateError> {
        if undo.generation != self.generation {
            return Err(StateError::Stale);
        }
        self.generation += 1;
        self.digest = undo.digest;
        self.revert(undo.changes);
        Ok(())
    }

    /// Stands for every change since the start that was not taken back, in its order.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The digest once a delta is committed; see [`super::Engine::state_digest`].
    fn digest_after(&self, image: &Image<'_>, delta: &Delta) -> [u8; 32] {
        if delta.is_empty() {
            return self.digest;
        }
        let mut hash = Sha256::new();
        Update::update(&mut hash, &self.digest);
        for Operation { action, name, keyed, entry } in &delta.operations {
            let view = View { image, state: self, arena: &entry.bytes };
            Update::update(&mut hash, &[*action as u8, u8::from(*keyed)]);
            absorb_text(&mut hash, name.as_bytes());
            absorb(&mut hash, &view, entry.key.in_arena());
            absorb(&mut hash, &view, entry.value.in_arena());
        }
        hash.finalize().into()
    }

    fn apply(
        &mut self,
        image: &Image<'_>,
        operation: Operation,
        changes: &mut Vec<Change>,
    ) -> Result<(), StateError> {
        let Operation { action, name, keyed, entry } = operation;
        let number = match self.find_map(&name) {
            Ok(number) => number,
            Err(_) if action == Action::Remove => return Ok(()),
            Err(number) => {
                let bytes: Box<[u8]> = name.into_boxed_bytes();
                let key = Value::text_here(bytes.len());
                let name = self.insert_slot(Stored { bytes, key, value: Value::Null, pinned: false })?;
                self.maps.insert(number, Map { name, is_set: !keyed, entries: Vec::new() });
                changes.push(Change::NewMap { map: number });
                number
            }
        };
        let Some(map) = self.maps.get(number) else { return Err(StateError::Limit) };
        let place = self.find(image, map, keyed, &entry)?;
        match (place, action) {
            (Ok(_), Action::Add) if keyed => return Err(StateError::Exists),
            (Ok(_), Action::Add) | (Err(_), Action::Remove) => {}
            (Ok(position), Action::Remove) => {
                let slot = self.maps[number].entries.remove(position);
                if let Some(old) = self.take_slot(slot) {
                    changes.push(Change::Removed { map: number, position, old });
                }
            }
            (Ok(position), Action::Update) => {
                let slot = usize::from(self.maps[number].entries[position]);
                self.bytes += entry.bytes.len();
                if let Some(old) = self.slots[slot].replace(entry) {
                    self.bytes -= old.bytes.len();
                    changes.push(Change::Replaced { map: number, position, old });
                }
            }
            (Err(position), Action::Add | Action::Update) => {
                self.maps[number].entries.try_reserve(1).map_err(|_| StateError::Memory)?;
                let slot = self.insert_slot(entry)?;
                self.maps[number].entries.insert(position, slot);
                changes.push(Change::Inserted { map: number, position });
            }
        }
        Ok(())
    }

    fn revert(&mut self, changes: Vec<Change>) {
        for change in changes.into_iter().rev() {
            match change {
                Change::NewMap { map } => {
                    let map = self.maps.remove(map);
                    self.take_slot(map.name);
                }
                Change::Inserted { map, position } => {
                    let slot = self.maps[map].entries.remove(position);
                    self.take_slot(slot);
                }
                Change::Replaced { map, position, old } => {
                    let slot = usize::from(self.maps[map].entries[position]);
                    self.bytes += old.bytes.len();
                    if let Some(new) = self.slots[slot].replace(old) {
                        self.bytes -= new.bytes.len();
                    }
                }
                Change::Removed { map, position, old } => {
                    // Its slot is still free, and so is its place among the entries: nothing allocates.
                    if let Ok(slot) = self.insert_slot(old) {
                        self.maps[map].entries.insert(position, slot);
                    }
                }
            }
        }
    }

    fn insert_slot(&mut self, stored: Stored) -> Result<u16, StateError> {
        let size = stored.bytes.len();
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[usize::from(number)] = Some(stored);
                number
            }
            None => {
                let number = u16::try_from(self.slots.len()).map_err(|_| StateError::Limit)?;
                if usize::from(number) >= Space::MAX_SLOTS {
                    return Err(StateError::Limit);
                }
                self.slots.try_reserve(1).map_err(|_| StateError::Memory)?;
                self.slots.push(Some(stored));
                number
            }
        };
        self.bytes += size;
        Ok(number)
    }

    fn take_slot(&mut self, number: u16) -> Option<Stored> {
        let stored = self.slots.get_mut(usize::from(number))?.take()?;
        self.bytes -= stored.bytes.len();
        self.free.push(number);
        Some(stored)
    }
}

/// Whether two operations are for the same entry of the same map. Members of sets never conflict.
fn same_entry(view: &View<'_>, a: &Operation, b: &Operation) -> bool {
    let (in_a, in_b) = (View { arena: &a.entry.bytes, ..*view }, View { arena: &b.entry.bytes, ..*view });
    match (a.entry.key.in_arena(), b.entry.key.in_arena()) {
        (Value::String(key), Value::String(other)) if a.keyed && b.keyed => {
            a.name == b.name && in_a.bytes(key) == in_b.bytes(other)
        }
        _ => false,
    }
}

fn absorb_text(hash: &mut Sha256, text: &[u8]) {
    Update::update(hash, &(text.len() as u32).to_le_bytes());
    Update::update(hash, text);
}

/// Takes a value in, so that no two values are the same bytes. What is kept is [`bounded`], and so is this recursion.
fn absorb(hash: &mut Sha256, view: &View<'_>, value: Value) {
    let (kind, list) = match value {
        Value::Null => (b'0', None),
        Value::False => (b'f', None),
        Value::True => (b't', None),
        Value::Int(_) => (b'i', None),
        Value::String(_) => (b's', None),
        Value::Array(list) => (b'a', Some(list)),
        Value::Set(list) => (b'e', Some(list)),
        Value::Object(list) => (b'o', Some(list)),
    };
    Update::update(hash, &[kind]);
    match value {
        Value::Int(number) => Update::update(hash, &number.to_le_bytes()),
        Value::String(text) => absorb_text(hash, view.bytes(text)),
        _ => {}
    }
    let Some(list) = list else { return };
    Update::update(hash, &(list.len() as u32).to_le_bytes());
    for index in 0..list.len() {
        let Some((key, member)) = view.element(value, index) else { return };
        if kind == b'o' {
            absorb(hash, view, key);
        }
        absorb(hash, view, member);
    }
}

fn boxed(text: &str) -> Result<Box<str>, StateError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(text.len()).map_err(|_| StateError::Memory)?;
    bytes.extend_from_slice(text.as_bytes());
    // The bytes of a `str` are UTF-8. Nothing is moved: there is no room left over.
    alloc::string::String::from_utf8(bytes).map(Into::into).map_err(|_| StateError::Malformed)
}

/// Cutting off the room that a list has left over could fail; a copy of the right size can be refused.
fn exact(bytes: &[u8]) -> Result<Box<[u8]>, StateError> {
    let mut exact = Vec::new();
    exact.try_reserve_exact(bytes.len()).map_err(|_| StateError::Memory)?;
    exact.extend_from_slice(bytes);
    Ok(exact.into_boxed_slice())
}

/// Deep-copies a key and a value, but for what stays anyway.
fn pack(view: &View<'_>, key: Value, value: Value) -> Result<Stored, StateError> {
    let mut bytes = Vec::new();
    let copy = Copying { view, limit: MAX_ENTRY_BYTES, all: false };
    bounded(view, value, 0, &mut Fuel(MAX_ENTRY_STEPS))?;
    let (key, value) = (copy.value(key, &mut bytes, 0)?, copy.value(value, &mut bytes, 0)?);
    Ok(Stored { bytes: exact(&bytes)?, key, value, pinned: false })
}

/// How values are copied into bytes of their own.
struct Copying<'a> {
    view: &'a View<'a>,
    limit: usize,
    /// Also what stays where it is as long as the policy is in force: constants and pinned data.
    all: bool,
}

impl Copying<'_> {
    // The recursion is bounded by MAX_DEPTH, its work by the limit.
    fn value(&self, value: Value, out: &mut Vec<u8>, depth: usize) -> Result<Value, StateError> {
        if depth > MAX_DEPTH {
            return Err(StateError::Limit);
        }
        if value.place().is_none() || !self.all && (value.is_constant() || self.view.state.is_pinned(value)) {
            return Ok(value);
        }
        let start = out.len();
        let mut grow = |size: usize| {
            if out.len() + size > self.limit {
                return Err(StateError::Limit);
            }
            out.try_reserve(size).map_err(|_| StateError::Memory)
        };
        match value {
            Value::String(text) => {
                grow(text.len())?;
                out.extend_from_slice(self.view.bytes(text));
            }
            Value::Array(list) | Value::Set(list) => {
                grow(list.len() * CELL)?;
                out.resize(start + list.len() * CELL, 0);
                for index in 0..list.len() {
                    let item = self.value(self.view.item(list, index), out, depth + 1)?;
                    out[start + index * CELL..][..CELL].copy_from_slice(&item.to_cell());
                }
            }
            Value::Object(list) => {
                grow(list.len() * 2 * CELL)?;
                out.resize(start + list.len() * 2 * CELL, 0);
                for index in 0..list.len() {
                    let (key, value) = self.view.pair(list, index);
                    let key = self.value(key, out, depth + 1)?;
                    let value = self.value(value, out, depth + 1)?;
                    let pair = &mut out[start + index * 2 * CELL..][..2 * CELL];
                    pair[..CELL].copy_from_slice(&key.to_cell());
                    pair[CELL..].copy_from_slice(&value.to_cell());
                }
            }
            Value::Null | Value::False | Value::True | Value::Int(_) => {}
        }
        Ok(value.placed(Space::HERE, start as u32))
    }
}

/// Whether a value can be gone through, for the digest. What stays where it is costs an entry no bytes, but a constant
/// of a few hundred can refer to others so often that there is no end to it; and it nests, too.
fn bounded(view: &View<'_>, value: Value, depth: usize, fuel: &mut Fuel) -> Result<(), StateError> {
    let size = if let Value::String(text) = value { text.len() } else { 0 };
    if depth > MAX_DEPTH || fuel.take(1).and_then(|()| fuel.bytes(size)).is_err() {
        return Err(StateError::Limit);
    }
    let mut index = 0;
    while let Some((key, member)) = view.element(value, index) {
        if matches!(value, Value::Object(_)) {
            bounded(view, key, depth + 1, fuel)?;
        }
        bounded(view, member, depth + 1, fuel)?;
        index += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::builder::{Builder, FunctionBuilder};
    use crate::policy::format::Const;
    use crate::policy::instruction::{Args, Instruction};
    use crate::policy::value::Arena;
    use crate::policy::{Engine, Outcome};
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::string::{String, ToString};
    use proptest::prelude::*;

    /// An image with one string constant and an entry that returns it.
    fn image() -> Vec<u8> {
        let mut builder = Builder::new(1);
        let value = builder.string("constant");
        let mut code = FunctionBuilder::new("constant", 0);
        code.emit(Instruction::Const { dst: 0, value });
        code.emit(Instruction::ReturnLast { value: 0 });
        let function = builder.function(code);
        builder.entry("constant", function).unwrap();
        builder.finish().unwrap()
    }

    /// Names of maps to their entries: keys to values, and members of sets to nothing.
    type Model = BTreeMap<String, BTreeMap<String, String>>;

    #[derive(Clone, Debug)]
    struct Step {
        action: Action,
        map: u8,
        key: u8,
        value: u16,
    }

    fn model(engine: &Engine<'_>) -> Model {
        let mut nothing = [];
        let arena = Arena::new(&mut nothing);
        let view = engine.view(&arena);
        let text = |value: Value| match value {
            Value::String(text) => view.text(text).to_string(),
            Value::Array(list) => match view.item(list, 0) {
                Value::String(text) => alloc::format!("[{}]", view.text(text)),
                other => alloc::format!("{other:?}"),
            },
            other => alloc::format!("{other:?}"),
        };
        let mut model = Model::new();
        let mut number = 0;
        while let Some((name, map)) = view.element(engine.metadata(), number) {
            let is_set = matches!(map, Value::Set(_));
            let (mut entries, mut keys, mut entry) = (BTreeMap::new(), Vec::new(), 0);
            while let Some((key, value)) = view.element(map, entry) {
                keys.push(text(key));
                entries.insert(text(key), if is_set { String::new() } else { text(value) });
                entry += 1;
            }
            assert!(is_set || keys.is_sorted());
            assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), keys.len());
            model.insert(text(name), entries);
            number += 1;
        }
        model
    }

    fn delta(engine: &mut Engine<'_>, steps: &[Step]) -> Result<Delta, StateError> {
        let mut memory = [0; 4096];
        let mut arena = Arena::new(&mut memory);
        let constant = engine.evaluate(&mut arena, "constant", |_| Ok(None)).unwrap();
        let Outcome::Value(constant) = constant else { panic!("no value") };
        let mut delta = Delta::default();
        for step in steps {
            let name = alloc::format!("map{}", step.map);
            let key = arena.string(&alloc::format!("key{}", step.key)).unwrap();
            let text = arena.string(&alloc::format!("value{}", step.value)).unwrap();
            let value = match step.value % 3 {
                0 => constant,
                1 => text,
                _ => arena.array(&[text, constant]).unwrap(),
            };
            // The last map is a set.
            let (key, value) = if step.map == 2 { (None, key) } else { (Some(key), value) };
            delta.push(&engine.view(&arena), step.action, &name, key, value)?;
        }
        Ok(delta)
    }

    fn apply(model: &mut Model, step: &Step) -> bool {
        let (map, key) = (alloc::format!("map{}", step.map), alloc::format!("key{}", step.key));
        let value = match (step.map, step.value % 3) {
            (2, _) => String::new(),
            (_, 0) => "constant".to_string(),
            (_, 1) => alloc::format!("value{}", step.value),
            _ => alloc::format!("[value{}]", step.value),
        };
        match step.action {
            Action::Remove => {
                model.get_mut(&map).map(|entries| entries.remove(&key));
            }
            Action::Add
                if step.map != 2 && model.get(&map).is_some_and(|entries| entries.contains_key(&key)) =>
            {
                return false;
            }
            _ => {
                model.entry(map).or_default().insert(key, value);
            }
        }
        true
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let action = prop_oneof![Just(Action::Add), Just(Action::Update), Just(Action::Remove)];
        let step = (action, 0u8..3, 0u8..6, 0u16..100).prop_map(|(action, map, key, value)| Step {
            action,
            map,
            key,
            value,
        });
        prop::collection::vec(step, 0..4)
    }

    proptest! {
        #[test]
        fn commits_and_rollbacks_do_what_a_map_of_maps_does(
            history in prop::collection::vec((steps(), any::<bool>()), 0..40)
        ) {
            let image = image();
            let mut engine = Engine::with_empty_state(&image).unwrap();
            let mut expected = Model::new();
            for (steps, keep) in history {
                let mut after = expected.clone();
                let twice = (0..steps.len()).any(|i| steps[..i].iter().any(|earlier| {
                    earlier.map == steps[i].map && earlier.key == steps[i].key && earlier.map != 2
                }));
                let fits = steps.iter().all(|step| apply(&mut after, step)) && !twice;
                let delta = delta(&mut engine, &steps).unwrap();
                match engine.commit(delta) {
                    Ok(undo) => {
                        prop_assert!(fits);
                        prop_assert_eq!(&model(&engine), &after);
                        if keep {
                            expected = after;
                        } else {
                            engine.rollback(undo).unwrap();
                        }
                    }
                    Err(_) => prop_assert!(!fits),
                }
                prop_assert_eq!(&model(&engine), &expected);
                accounted(&engine.state);
            }
        }
    }

    /// Every slot is used once or free once, the bytes are counted, and giving slots up will not allocate.
    fn accounted(state: &State) {
        let used = state.maps.iter().flat_map(|map| map.entries.iter().chain([&map.name]));
        let mut slots: Vec<u16> = used.chain(&state.free).copied().collect();
        slots.sort_unstable();
        assert!(slots.iter().map(|&slot| usize::from(slot)).eq(0..state.slots.len()));
        assert!(state.free.iter().all(|&slot| state.slots[usize::from(slot)].is_none()));
        let bytes = state.slots.iter().flatten().map(|stored| stored.bytes.len());
        assert_eq!(state.bytes, bytes.sum::<usize>());
        assert!(state.free.capacity() >= state.slots.len());
    }

    #[test]
    fn a_commit_and_its_undo_cost_what_changed_and_not_what_exists() {
        let image = image();
        // How many changes an undo keeps, and the bytes of what they replaced, beside this many entries.
        let cost = |existing: usize| {
            let mut engine = Engine::with_empty_state(&image).unwrap();
            let mut memory = [0; 4096];
            for number in 0..existing {
                let mut arena = Arena::new(&mut memory);
                let key = arena.string(&alloc::format!("key{number:05}")).unwrap();
                let mut delta = Delta::default();
                delta.push(&engine.view(&arena), Action::Add, "map", Some(key), key).unwrap();
                engine.commit(delta).unwrap();
            }
            let places = |engine: &Engine<'_>| {
                let mut nothing = [];
                let arena = Arena::new(&mut nothing);
                let view = engine.view(&arena);
                let map = view.field(engine.metadata(), "map").unwrap();
                let key = |number: usize| match view.element(map, number)?.0 {
                    Value::String(text) => Some(view.bytes(text).as_ptr()),
                    _ => None,
                };
                (0..existing).map_while(key).collect::<Vec<_>>()
            };
            let before = places(&engine);
            assert_eq!(before.len(), existing);
            let mut arena = Arena::new(&mut memory);
            let [first, new] = ["key00000", "new"].map(|text| arena.string(text).unwrap());
            let mut delta = Delta::default();
            delta.push(&engine.view(&arena), Action::Update, "map", Some(first), new).unwrap();
            delta.push(&engine.view(&arena), Action::Add, "map", Some(new), new).unwrap();
            let undo = engine.commit(delta).unwrap();
            // The entries that did not change are where they were: nothing was copied.
            assert_eq!(before[1..], places(&engine)[1..]);
            let kept = undo.changes.iter().map(|change| match change {
                Change::Replaced { old, .. } | Change::Removed { old, .. } => old.bytes.len(),
                Change::NewMap { .. } | Change::Inserted { .. } => 0,
            });
            let cost = (undo.changes.len(), kept.sum::<usize>());
            engine.rollback(undo).unwrap();
            assert_eq!(before, places(&engine));
            cost
        };
        assert_eq!(cost(1), cost(1000));
    }

    /// A delta that does this with each key and value of a map, or with members of a set, which have no key.
    fn operations(engine: &Engine<'_>, action: Action, entries: &[(Option<&str>, &str)]) -> Delta {
        let mut memory = alloc::vec![0; 2 * MAX_ENTRY_BYTES];
        let mut arena = Arena::new(&mut memory);
        let mut delta = Delta::default();
        for &(key, value) in entries {
            arena.reset();
            let key = key.map(|key| arena.string(key).unwrap());
            let value = arena.string(value).unwrap();
            delta.push(&engine.view(&arena), action, "m", key, value).unwrap();
        }
        delta
    }

    #[test]
    fn a_key_and_its_value_have_64_kib_and_all_of_them_1_mib() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let mut memory = alloc::vec![0; MAX_ENTRY_BYTES + 64];
        let mut arena = Arena::new(&mut memory);
        let key = arena.string("k").unwrap();
        for (size, fits) in [(MAX_ENTRY_BYTES - 1, true), (MAX_ENTRY_BYTES, false)] {
            let mark = arena.used();
            let value = arena.string(&"x".repeat(size)).unwrap();
            let pushed = Delta::default().push(&engine.view(&arena), Action::Add, "m", Some(key), value);
            assert_eq!(pushed, if fits { Ok(()) } else { Err(StateError::Limit) });
            arena.release(mark);
        }
        // A map's name counts once.
        let (mut left, mut key) = (MAX_BYTES - 1, b'a');
        while left > 0 {
            let size = left.min(MAX_ENTRY_BYTES);
            let name = char::from(key).to_string();
            let entry = |engine: &mut Engine<'_>, size: usize| {
                let delta = operations(engine, Action::Add, &[(Some(&name), &"x".repeat(size - 1))]);
                engine.commit(delta).map(drop)
            };
            if left < MAX_ENTRY_BYTES {
                let before = model(&engine);
                assert_eq!(entry(&mut engine, left + 1), Err(StateError::Limit));
                assert_eq!(model(&engine), before);
            }
            assert_eq!(entry(&mut engine, size), Ok(()));
            (left, key) = (left - size, key + 1);
        }
        accounted(&engine.state);
        let more = operations(&engine, Action::Update, &[(Some("a"), &"x".repeat(MAX_ENTRY_BYTES - 1))]);
        assert_eq!(
            engine.commit(more).map(drop),
            Err(StateError::Limit),
            "the old is counted until it is gone"
        );
        let removed = operations(&engine, Action::Remove, &[(Some("a"), "")]);
        engine.commit(removed).unwrap();
        let again = operations(&engine, Action::Update, &[(Some("b"), &"y".repeat(MAX_ENTRY_BYTES - 1))]);
        engine.commit(again).unwrap();
        accounted(&engine.state);
    }

    #[test]
    fn there_are_8192_entries_with_the_names_of_their_maps() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let mut add = |numbers: core::ops::Range<usize>| {
            let members: Vec<String> = numbers.map(|number| number.to_string()).collect();
            let members: Vec<(Option<&str>, &str)> = members.iter().map(|member| (None, &**member)).collect();
            let delta = operations(&engine, Action::Add, &members);
            engine.commit(delta).map(drop)
        };
        for start in (0..MAX_ENTRIES - MAX_OPERATIONS).step_by(MAX_OPERATIONS) {
            assert_eq!(add(start..start + MAX_OPERATIONS), Ok(()));
        }
        let full = MAX_ENTRIES - 1;
        assert_eq!(add(MAX_ENTRIES - MAX_OPERATIONS..full + 1), Err(StateError::Limit));
        assert_eq!(add(MAX_ENTRIES - MAX_OPERATIONS..full), Ok(()));
        assert_eq!(add(0..1), Ok(()), "it is there already");
        assert_eq!(add(full..full + 1), Err(StateError::Limit));
    }

    #[test]
    fn a_decision_has_64_operations_also_where_two_are_made_one() {
        let image = image();
        let engine = Engine::with_empty_state(&image).unwrap();
        let entries = [(None, "member"); MAX_OPERATIONS + 1];
        let [all, one, most] = [64, 1, 63].map(|count| operations(&engine, Action::Add, &entries[..count]));
        assert!(Delta::default().is_empty() && !one.is_empty());
        let mut both = most;
        assert_eq!(both.append(one.clone()), Ok(()));
        assert_eq!(both.operations().count(), MAX_OPERATIONS);
        assert_eq!(both.append(one), Err(StateError::Limit));
        let mut memory = [0; 64];
        let mut arena = Arena::new(&mut memory);
        let member = arena.string("member").unwrap();
        let mut all = all;
        assert_eq!(all.push(&engine.view(&arena), Action::Add, "m", None, member), Err(StateError::Limit));
    }

    #[test]
    fn what_is_remembered_has_the_documented_digest_and_taking_back_takes_that_back() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        assert_eq!(engine.state_digest(), [0; 32]);
        let mut memory = [0; 4096];
        let mut arena = Arena::new(&mut memory);
        let [a, b, text] = ["a", "b", "\u{e9}"].map(|text| arena.string(text).unwrap());
        let array = arena.array(&[Value::Null, Value::False, Value::True, Value::Int(-2), text]).unwrap();
        let object = arena.object(&[("b", Value::Int(258)), ("a", array)]).unwrap();
        let mut delta = Delta::default();
        delta.push(&engine.view(&arena), Action::Update, "map", Some(b), object).unwrap();
        delta.push(&engine.view(&arena), Action::Add, "set", None, a).unwrap();
        let undo = engine.commit(delta).unwrap();

        let mut hashed = alloc::vec![0; 32];
        hashed.extend(b"\x01\x01\x03\0\0\0maps\x01\0\0\0b");
        hashed.extend(b"o\x02\0\0\0s\x01\0\0\0aa\x05\0\0\x000fti\xfe\xff\xff\xff\xff\xff\xff\xff");
        hashed.extend(b"s\x02\0\0\0\xc3\xa9s\x01\0\0\0bi\x02\x01\0\0\0\0\0\0");
        hashed.extend(b"\0\0\x03\0\0\0set0s\x01\0\0\0a");
        let first: [u8; 32] = Sha256::digest(&hashed).into();
        assert_eq!(engine.state_digest(), first);

        let nothing = engine.commit(Delta::default()).unwrap();
        assert_eq!(engine.state_digest(), first, "nothing has changed");
        assert_eq!(engine.rollback(undo), Err(StateError::Stale));
        engine.rollback(nothing).unwrap();
        let mut delta = Delta::default();
        delta.push(&engine.view(&arena), Action::Remove, "map", Some(b), Value::Null).unwrap();
        let undo = engine.commit(delta).unwrap();
        let removal: [u8; 32] =
            Sha256::digest([&first[..], b"\x02\x01\x03\0\0\0maps\x01\0\0\0b0"].concat()).into();
        assert_eq!(engine.state_digest(), removal);
        engine.rollback(undo).unwrap();
        assert_eq!(engine.state_digest(), first);
    }

    #[test]
    fn what_is_pinned_is_copied_once_and_entries_refer_to_it() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let mut memory = alloc::vec![0; MAX_FRAGMENT_DATA + 4096];
        let mut arena = Arena::new(&mut memory);
        let [name, text] = ["name", "some text"].map(|text| arena.string(text).unwrap());
        let list = arena.array(&[text, Value::Int(7)]).unwrap();
        let mut pinning = Pinning::default();
        pinning.field(&engine.view(&arena), name, list).unwrap();
        let pinned = engine.pin(pinning).unwrap();
        assert!(engine.state.free.capacity() >= engine.state.slots.len(), "giving it up allocates");
        // Its name, its text, two cells of the array, and the pair.
        assert_eq!(engine.state.bytes, 4 + 9 + 4 * CELL);

        arena.reset();
        let object = engine.pinned(&pinned);
        let kept = engine.view(&arena).field(object, "name").unwrap();
        let Value::Array(items) = kept else { panic!("no array") };
        let view = engine.view(&arena);
        assert!(matches!(view.item(items, 0), Value::String(text) if view.text(text) == "some text"));
        assert!(matches!(view.item(items, 1), Value::Int(7)));

        let key = arena.string("key").unwrap();
        let mut delta = Delta::default();
        delta.push(&engine.view(&arena), Action::Add, "m", Some(key), kept).unwrap();
        let undo = engine.commit(delta).unwrap();
        assert_eq!(engine.state.bytes, 4 + 9 + 4 * CELL + "m".len() + "key".len(), "the value is not copied");
        engine.rollback(undo).unwrap();

        // Given up, it leaves nothing; and there is no more room for it than for anything else.
        engine.unpin(pinned);
        assert_eq!(engine.state.bytes, 0);
        let mut pin = |size: usize, fits: Result<(), StateError>| {
            arena.reset();
            let text = arena.string(&"x".repeat(size)).unwrap();
            let mut pinning = Pinning::default();
            assert_eq!(pinning.field(&engine.view(&arena), Value::Null, text), fits);
            fits.and_then(|()| engine.pin(pinning).map(drop))
        };
        assert_eq!(pin(MAX_FRAGMENT_DATA + 1, Err(StateError::Limit)), Err(StateError::Limit));
        assert_eq!(pin(MAX_FRAGMENT_DATA, Ok(())), Ok(()));
        let left = MAX_BYTES - MAX_FRAGMENT_DATA - 4 * CELL;
        assert_eq!(pin(left + 1, Ok(())), Err(StateError::Limit));
        assert_eq!(pin(left, Ok(())), Ok(()));
    }

    #[test]
    fn what_is_copied_nests_so_deep_and_no_deeper() {
        let image = image();
        let engine = Engine::with_empty_state(&image).unwrap();
        let mut memory = [0; 4096];
        let mut arena = Arena::new(&mut memory);
        let key = arena.string("k").unwrap();
        let mut value = arena.string("v").unwrap();
        for depth in 0..=MAX_DEPTH + 1 {
            let pushed = Delta::default().push(&engine.view(&arena), Action::Add, "m", Some(key), value);
            assert_eq!(pushed.is_ok(), depth <= MAX_DEPTH, "{depth}");
            value = arena.array(&[value]).unwrap();
        }
    }

    #[test]
    fn operations_of_another_form_are_refused() {
        let image = image();
        let engine = Engine::with_empty_state(&image).unwrap();
        let mut memory = [0; 4096];
        let mut arena = Arena::new(&mut memory);
        let [add, map, key] = ["add", "m", "k"].map(|text| arena.string(text).unwrap());
        let [update, remove, kind_map, kind_set] =
            ["update", "remove", "map", "set"].map(|text| arena.string(text).unwrap());
        let mut refused = |operation: &[(&str, Value)]| {
            let operation = arena.object(operation).unwrap();
            let list = arena.array(&[operation]).unwrap();
            engine.delta(&engine.view(&arena), list).is_err()
        };
        assert!(!refused(&[("name", map), ("action", add), ("key", key), ("value", key)]));
        assert!(!refused(&[("name", map), ("action", add), ("value", key)]));
        assert!(!refused(&[("name", map), ("action", update), ("key", key), ("value", key)]));
        assert!(!refused(&[("name", map), ("action", remove), ("key", key)]));
        assert!(refused(&[("name", map), ("action", remove)]));
        for (kind, keyed, fits) in [
            (kind_map, true, true),
            (kind_set, true, false),
            (kind_set, false, true),
            (kind_map, false, false),
        ] {
            let mut operation = vec![("name", map), ("action", add), ("type", kind), ("value", key)];
            operation.extend(keyed.then_some(("key", key)));
            assert_eq!(!refused(&operation), fits, "{operation:?}");
        }
        assert!(refused(&[("name", map), ("action", add), ("key", key)]));
        assert!(refused(&[("name", map), ("action", map), ("key", key), ("value", key)]));
        assert!(refused(&[("name", map), ("key", key), ("value", key)]));
        assert!(refused(&[("action", add), ("key", key), ("value", key)]));
        assert!(refused(&[("name", Value::Null), ("action", add), ("key", key), ("value", key)]));
        assert!(refused(&[("name", map), ("action", add), ("key", Value::Null), ("value", key)]));
        assert!(refused(&[("name", map), ("action", add), ("key", key), ("value", key), ("more", key)]));
    }

    /// Commits an operation for each of these, members of a set or keys without a value.
    fn change(
        engine: &mut Engine<'_>,
        action: Action,
        keyed: bool,
        entries: impl Iterator<Item = (String, String)>,
    ) -> Result<Undo, StateError> {
        let mut memory = [0; 64];
        let mut arena = Arena::new(&mut memory);
        let mut delta = Delta::default();
        for (map, entry) in entries {
            arena.reset();
            let entry = arena.string(&entry).unwrap();
            let (key, value) = if keyed { (Some(entry), Value::Null) } else { (None, entry) };
            delta.push(&engine.view(&arena), action, &map, key, value)?;
        }
        engine.commit(delta)
    }

    #[test]
    fn a_new_map_counts_as_an_entry_and_what_is_gone_counts_no_more() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let mut set = |action, map: &str, members: core::ops::Range<usize>| {
            let members = members.map(|member| (map.to_string(), member.to_string()));
            change(&mut engine, action, false, members).map(drop)
        };
        // Beside the name there is room for three more: a member, and a map with one.
        let most = MAX_ENTRIES - 4;
        for start in (0..most).step_by(MAX_OPERATIONS) {
            assert_eq!(set(Action::Add, "m", start..most.min(start + MAX_OPERATIONS)), Ok(()));
        }
        assert_eq!(set(Action::Add, "m", most..most + 2), Ok(()));
        assert_eq!(set(Action::Add, "other", 0..1), Err(StateError::Limit));
        assert_eq!(set(Action::Remove, "m", most..most + 1), Ok(()));
        assert_eq!(set(Action::Add, "other", 0..1), Ok(()));
        assert_eq!(set(Action::Add, "other", 1..2), Err(StateError::Limit));
        assert_eq!(set(Action::Remove, "m", 0..MAX_OPERATIONS), Ok(()));
        assert_eq!(set(Action::Add, "other", 1..MAX_OPERATIONS + 1), Ok(()));
        assert_eq!(set(Action::Add, "other", MAX_OPERATIONS + 1..MAX_OPERATIONS + 2), Err(StateError::Limit));
        accounted(&engine.state);
    }

    #[test]
    fn a_commit_of_many_new_maps_leaves_room_to_take_it_back() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let maps = (0..MAX_OPERATIONS).map(|map| (map.to_string(), "key".to_string()));
        let undo = change(&mut engine, Action::Update, true, maps).unwrap();
        accounted(&engine.state);
        assert_eq!(model(&engine).len(), MAX_OPERATIONS);
        engine.rollback(undo).unwrap();
        accounted(&engine.state);
        assert!(model(&engine).is_empty());
    }

    #[test]
    fn an_undo_is_stale_once_something_came_after_even_where_that_was_taken_back() {
        let image = image();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let add = |engine: &mut Engine<'_>, key: &str| {
            change(engine, Action::Add, true, [("m".to_string(), key.to_string())].into_iter()).unwrap()
        };
        let first = add(&mut engine, "first");
        let second = add(&mut engine, "second");
        engine.rollback(second).unwrap();
        assert_eq!(engine.rollback(first), Err(StateError::Stale));
        assert_eq!(model(&engine)["m"].keys().collect::<Vec<_>>(), ["first"]);
    }

    /// What a function makes of a text of this length: whether it can be a member of a set, and a fragment's data.
    fn kept(code: impl FnOnce(&mut Builder, &mut FunctionBuilder), text: usize) -> [bool; 2] {
        let mut builder = Builder::new(1);
        let mut function = FunctionBuilder::new("value", 0);
        code(&mut builder, &mut function);
        let function = builder.function(function);
        builder.entry("value", function).unwrap();
        let image = builder.finish().unwrap();
        let mut engine = Engine::with_empty_state(&image).unwrap();
        let mut memory = alloc::vec![0; 2 * MAX_ENTRY_BYTES];
        let mut arena = Arena::new(&mut memory);
        let input = "x".repeat(text);
        let outcome = engine.evaluate(&mut arena, "value", |arena| arena.string(&input).map(Some)).unwrap();
        let Outcome::Value(value) = outcome else { panic!("no value") };
        let view = engine.view(&arena);
        let mut delta = Delta::default();
        let pushed = delta.push(&view, Action::Add, "m", None, value);
        let pinned = Pinning::default().field(&view, Value::Null, value);
        let kept = [pushed, pinned].map(|result| match result {
            Ok(()) => true,
            Err(StateError::Limit) => false,
            Err(other) => panic!("{other:?}"),
        });
        engine.commit(delta).unwrap();
        kept
    }

    #[test]
    fn the_64_kib_of_an_entry_count_what_collections_need() {
        // A list of the text and a collection of one integer, or of one pair.
        for (collection, cells) in [("array", 1), ("set", 1), ("object", 2)] {
            let push = |text: usize| {
                let code = |builder: &mut Builder, function: &mut FunctionBuilder| {
                    let one = builder.int(1);
                    function.emit(Instruction::Input { dst: 0 });
                    function.emit(Instruction::Const { dst: 1, value: one });
                    function.emit(match collection {
                        "array" => Instruction::Array { dst: 2, items: Args(&[1]) },
                        "set" => Instruction::Set { dst: 2, items: Args(&[1]) },
                        _ => Instruction::Object { dst: 2, pairs: Args(&[1, 1]) },
                    });
                    function.emit(Instruction::Array { dst: 3, items: Args(&[0, 2]) });
                    function.emit(Instruction::ReturnLast { value: 3 });
                };
                kept(code, text)
            };
            let most = MAX_ENTRY_BYTES - (2 + cells) * CELL;
            // A fragment's data has more.
            assert_eq!((push(most), push(most + 1)), ([true; 2], [false, true]), "{collection}");
        }
    }

    #[test]
    fn keys_values_and_elements_nest_so_deep_and_no_deeper() {
        for outer in ["key", "value", "element"] {
            let nested = |levels: usize| {
                let code = |builder: &mut Builder, function: &mut FunctionBuilder| {
                    let one = builder.int(1);
                    function.emit(Instruction::Const { dst: 0, value: one });
                    for level in 0..levels as u8 {
                        let (dst, args) = (level + 1, [level, 0, level]);
                        function.emit(match outer {
                            "key" => Instruction::Object { dst, pairs: Args(&args[..2]) },
                            "value" => Instruction::Object { dst, pairs: Args(&args[1..]) },
                            _ => Instruction::Array { dst, items: Args(&args[..1]) },
                        });
                    }
                    function.emit(Instruction::ReturnLast { value: levels as u8 });
                };
                kept(code, 0)
            };
            assert_eq!((nested(MAX_DEPTH), nested(MAX_DEPTH + 1)), ([true; 2], [false; 2]), "{outer}");
        }
    }

    /// Whether a value can be kept: arrays made by code, around constants that each have the one inside.
    fn constants_kept(
        around: u8,
        levels: usize,
        text: usize,
        level: impl Fn(&mut Builder, Const) -> Const,
    ) -> bool {
        let code = |builder: &mut Builder, function: &mut FunctionBuilder| {
            let text = builder.string(&"x".repeat(text));
            let value = (0..levels).fold(text, |value, _| level(builder, value));
            function.emit(Instruction::Const { dst: 0, value });
            for level in 0..around {
                function.emit(Instruction::Array { dst: level + 1, items: Args(&[level]) });
            }
            function.emit(Instruction::ReturnLast { value: around });
        };
        kept(code, 0)[0]
    }

    #[test]
    fn t06_what_an_entry_refers_to_is_bounded_as_if_it_were_there() {
        let array = |width: usize| move |builder: &mut Builder, value| builder.array(vec![value; width]);
        let key = |builder: &mut Builder, value| builder.object(vec![(value, Const::NULL)]).unwrap();
        // Constants cost no bytes, however large; but they nest.
        assert!(constants_kept(0, 1, 0, array(10_000)));
        let deepest = MAX_DEPTH - 1;
        assert!(constants_kept(1, deepest, 0, array(1)) && !constants_kept(2, deepest, 0, array(1)));
        assert!(constants_kept(22, 10, 0, key) && !constants_kept(23, 10, 0, key));
        // An image of some hundred bytes whose value has 2^31 elements: a digest of it would take minutes.
        assert!(!constants_kept(0, deepest, 0, array(2)));
        // A step for each of the arrays, 1 + 2 + 4 + …, and of the texts, and what the texts cost by their length.
        let (arrays, texts) = (255, 256);
        let most = (MAX_ENTRY_STEPS as usize - arrays) / texts - 1;
        assert!(constants_kept(0, 8, most * 16 + 15, array(2)));
        assert!(!constants_kept(0, 8, (most + 1) * 16, array(2)));
    }
}
