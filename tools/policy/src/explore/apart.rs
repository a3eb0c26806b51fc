//! What decisions depend on, so that what does not depend on each other need not be explored together.
//!
//! The reference evaluator says of each decision which entries of the memory it looked at. Where those are
//! entries that the request itself names, nothing else that exists makes a difference: a decision about one container is
//! the same beside no other container and beside a hundred. And where the decisions about one part of a guest, say its
//! scratch spaces, look at nothing of another part, every state of the two together is a state of the one beside a state
//! of the other, and it is enough to go through each by itself.
//!
//! On the way it is checked that the machine decides as the reference evaluator does, and that nothing depends on
//! whether a map is empty or was never there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use anyhow::{Result, bail};
use parma_guest::point::Point;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::reading::items;
use crate::reference::{Footprint, Reference};

/// Most maps that one decision may find empty or missing and still be asked with all combinations of that.
const MAX_EMPTY: usize = 6;

/// A part of what a guest has, with what the policy remembers of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Containers, their overlays and the layer devices below. Maps of which nothing is known belong here.
    Containers,
    /// Writable devices.
    Writable,
    /// Scratch spaces.
    Scratch,
    /// Shares.
    Shares,
}

impl Part {
    pub(super) const ALL: [Part; 4] = [Self::Containers, Self::Writable, Self::Scratch, Self::Shares];

    /// What it is called.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Containers => "containers",
            Self::Writable => "writable devices",
            Self::Scratch => "scratch spaces",
            Self::Shares => "shares",
        }
    }

    fn of_map(name: &str) -> Part {
        match name {
            "rw_devices" => Self::Writable,
            "scratch_mounts" => Self::Scratch,
            "p9mounts" => Self::Shares,
            _ => Self::Containers,
        }
    }
}

/// The map that says what the guest is. No decision changes it.
const FIXED: &str = "operatingsystem";

/// A decision that was looked into, and the part of the memory on which it depends.
struct Seen {
    /// Entries, and what they are.
    entries: Vec<(String, String, Option<Json>)>,
    /// Maps.
    whole: Vec<(String, Json)>,
}

/// What one decision looked at and changed.
#[derive(Default, PartialEq, Eq, PartialOrd, Ord)]
struct Touched {
    /// Entries, and maps (`None`).
    read: BTreeSet<(String, Option<String>)>,
    /// Maps.
    changed: BTreeSet<String>,
}

/// What is known about the decisions that were asked for.
pub(super) struct Apart<'p> {
    /// `None` where all is one.
    reference: Option<Reference<'p>>,
    seen: HashMap<(Point, String), Vec<Seen>>,
    /// What decisions looked at and changed; each kind of decision once.
    touched: BTreeSet<Touched>,
    /// Keys that each map ever had.
    held: BTreeMap<String, BTreeSet<String>>,
    /// What a point looks at or changes although the request does not name it: a map.
    beyond: BTreeSet<(Point, String)>,
}

impl<'p> Apart<'p> {
    /// Where `all` is to be explored together, decisions are not looked into.
    ///
    /// # Errors
    /// The image is not valid.
    pub fn new(image: &'p [u8], all: bool) -> Result<Apart<'p>> {
        Ok(Apart {
            reference: if all { None } else { Some(Reference::new(image)?) },
            seen: HashMap::new(),
            touched: BTreeSet::new(),
            held: BTreeMap::new(),
            beyond: BTreeSet::new(),
        })
    }

    /// Takes note of a state.
    pub fn hold(&mut self, memory: &Json) {
        for (name, map) in memory.as_object().into_iter().flatten() {
            let keys = self.held.entry(name.clone()).or_default();
            keys.extend(keys_of(map));
        }
    }

    /// Takes note of a decision of the machine: `allowed`, or not, or a fault (`None`).
    ///
    /// # Errors
    /// The reference evaluator decides otherwise.
    pub fn look(
        &mut self,
        point: Point,
        input: &Rc<Json>,
        memory: &Json,
        allowed: Option<bool>,
    ) -> Result<()> {
        let Some(reference) = &mut self.reference else { return Ok(()) };
        let key = (point, input.to_string());
        let known = |seen: &Seen| {
            seen.entries.iter().all(|(map, key, value)| member(memory, map, key) == *value)
                && seen.whole.iter().all(|(map, value)| memory[map] == *value)
        };
        if self.seen.get(&key).is_some_and(|list| list.iter().any(known)) {
            return Ok(());
        }
        reference.set_metadata(memory)?;
        let (outcome, mut looked) = reference.trace(point.entry(), Some(input));
        let verdict = |outcome: &Result<Option<Json>, _>| match outcome {
            Ok(Some(result)) => result["allowed"] == true,
            _ => false,
        };
        // A fault of the machine may be one of its limits, of which the other has none.
        if allowed.is_some_and(|allowed| allowed != verdict(&outcome)) {
            bail!("{} {input}: the machine and the reference evaluator decide differently", point.name());
        }
        let result = outcome.as_ref().ok().cloned().flatten();
        if !empty_as_missing(reference, point, input, memory, &result, &mut looked)? {
            looked.everything = true;
        }
        self.note(point, input, memory, &looked, result.as_ref());
        let whole: BTreeSet<&String> = match looked.everything {
            true => memory.as_object().into_iter().flatten().map(|(name, _)| name).collect(),
            false => looked.whole.iter().collect(),
        };
        let seen = Seen {
            entries: looked
                .entries
                .iter()
                .map(|(map, key)| (map.clone(), key.clone(), member(memory, map, key)))
                .collect(),
            whole: whole.into_iter().map(|map| (map.clone(), memory[map].clone())).collect(),
        };
        self.seen.entry(key).or_default().push(seen);
        Ok(())
    }

    fn note(&mut self, point: Point, input: &Json, memory: &Json, looked: &Footprint, result: Option<&Json>) {
        let mut named = BTreeSet::new();
        strings(input, &mut named);
        let mut touched = Touched::default();
        let mut touch = |map: &str, key: Option<&str>| {
            if map != FIXED {
                touched.read.insert((map.into(), key.map(str::to_string)));
                if !key.is_some_and(|key| named.contains(key)) {
                    self.beyond.insert((point, map.into()));
                }
            }
        };
        for (map, key) in &looked.entries {
            touch(map, Some(key));
        }
        for map in &looked.whole {
            touch(map, None);
        }
        if looked.everything {
            let known =
                self.held.keys().chain(memory.as_object().into_iter().flatten().map(|(name, _)| name));
            let known: BTreeSet<String> = known.cloned().collect();
            known.iter().for_each(|map| touch(map, None));
        }
        let result = result.filter(|result| result["allowed"] == true);
        let operations: Vec<&Json> =
            result.into_iter().flat_map(|result| items(&result["metadata"])).collect();
        let map = |operation: &Json| operation["name"].as_str().unwrap_or_default().to_string();
        for operation in &operations {
            touch(&map(operation), operation["key"].as_str());
        }
        touched.changed = operations.into_iter().map(map).collect();
        self.touched.insert(touched);
    }

    /// Whether decisions are looked into.
    pub fn looks(&self) -> bool {
        self.reference.is_some()
    }

    /// What a point looks at or changes although its requests do not name it: a map that ever had something.
    pub fn beyond(&self) -> impl Iterator<Item = (Point, String)> {
        let filled = |map: &String| self.held.get(map).is_some_and(|held| !held.is_empty());
        self.beyond.iter().filter(move |(_, map)| filled(map)).cloned()
    }

    /// The parts, put together where a decision looks at more than one of them and finds something there, or changes it.
    pub fn together(&self) -> BTreeSet<BTreeSet<Part>> {
        if self.reference.is_none() {
            return BTreeSet::from([BTreeSet::from(Part::ALL)]);
        }
        let mut groups: Vec<BTreeSet<Part>> = Part::ALL.iter().map(|part| BTreeSet::from([*part])).collect();
        for Touched { read, changed } in &self.touched {
            let there = read.iter().filter(|(map, key)| {
                self.held.get(map).is_some_and(|held| match key {
                    Some(key) => held.contains(key),
                    None => !held.is_empty(),
                })
            });
            let parts: BTreeSet<Part> =
                there.map(|(map, _)| map).chain(changed).map(|map| Part::of_map(map)).collect();
            let (joined, others): (Vec<_>, Vec<_>) =
                groups.into_iter().partition(|group| !group.is_disjoint(&parts));
            groups = others;
            groups.extend((!joined.is_empty()).then(|| joined.into_iter().flatten().collect()));
        }
        groups.into_iter().collect()
    }
}

/// Whether the decision is the same whichever of the maps that it asks for, and that have nothing in them, are there.
fn empty_as_missing(
    reference: &mut Reference<'_>,
    point: Point,
    input: &Json,
    memory: &Json,
    result: &Option<Json>,
    looked: &mut Footprint,
) -> Result<bool> {
    let allows = |result: &Option<Json>| result.as_ref().filter(|result| result["allowed"] == true).cloned();
    let is_empty = |name: &&String| keys_of(&memory[name.as_str()]).next().is_none();
    let mut asked: BTreeSet<String> = BTreeSet::new();
    loop {
        let empty: Vec<String> = looked.maps.iter().filter(is_empty).cloned().collect();
        if empty.len() > MAX_EMPTY {
            return Ok(false);
        }
        if empty.iter().all(|name| asked.contains(name)) {
            return Ok(true);
        }
        for choice in 0..1_u32 << empty.len() {
            let mut memory = memory.clone();
            for (number, name) in empty.iter().enumerate() {
                match choice >> number & 1 {
                    0 => drop(memory.as_object_mut().and_then(|maps| maps.remove(name))),
                    _ => memory[name.as_str()] = json!({}),
                }
            }
            reference.set_metadata(&memory)?;
            let (outcome, more) = reference.trace(point.entry(), Some(input));
            if allows(&outcome.ok().flatten()) != allows(result) {
                return Ok(false);
            }
            looked.maps.extend(more.maps);
            looked.entries.extend(more.entries);
            looked.whole.extend(more.whole);
            looked.everything |= more.everything;
        }
        asked.extend(empty);
    }
}

fn keys_of(map: &Json) -> impl Iterator<Item = String> {
    let keys: Vec<String> = match map {
        Json::Object(map) => map.keys().cloned().collect(),
        Json::Array(members) => members
            .iter()
            .map(|member| member.as_str().map_or_else(|| member.to_string(), str::to_string))
            .collect(),
        _ => Vec::new(),
    };
    keys.into_iter()
}

/// An entry of a map; of a set, whether it has the member.
fn member(memory: &Json, map: &str, key: &str) -> Option<Json> {
    match &memory[map] {
        Json::Object(map) => map.get(key).cloned(),
        set => keys_of(set).any(|member| member == key).then_some(Json::Bool(true)),
    }
}

fn strings(value: &Json, into: &mut BTreeSet<String>) {
    match value {
        Json::String(text) => drop(into.insert(text.clone())),
        Json::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Json::Object(fields) => fields.values().for_each(|value| strings(value, into)),
        _ => {}
    }
}
