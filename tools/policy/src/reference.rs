//! The reference evaluator: the bytecode's meaning, as `docs/policy-bytecode.md` says it and as plainly as it can be said.
//!
//! It shares the image's decoder with the guest's machine and nothing else: values are ordinary trees on the heap, bodies
//! and calls are recursion, builtins are written a second time. It has no fuel, no arena and no
//! limits, is slow, and exists to be compared with: where it and the machine give different answers, one of
//! them is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use parma_guest::policy::format::{
    Class, Const, Image, Kind, Look, MAX_HOLES, Pattern, Program, Section, Step,
};
use parma_guest::policy::fragment::{PACKAGE, RULES};
use parma_guest::policy::instruction::{Args, Builtin, Collection, Instruction, Reg, Target};
use parma_guest::policy::verify;
use serde_json::Value as Json;

use crate::compile::constant::{Constant as Value, from_json};

/// A policy, and what it remembers.
pub struct Reference<'p> {
    image: Image<'p>,
    /// `data.metadata`.
    state: BTreeMap<String, Map>,
    fragments: Vec<Loaded<'p>>,
}

/// A fragment in force.
struct Loaded<'p> {
    image: Image<'p>,
    /// Its data, once for each set of parameters.
    data: Vec<Value>,
}

impl Loaded<'_> {
    /// Whether this string is one of its data: it, and not an equal one.
    fn has(&self, text: &Rc<str>) -> bool {
        let mut strings = Vec::new();
        self.data.iter().for_each(|data| texts(data, &mut strings));
        strings.iter().any(|own| Rc::ptr_eq(own, text))
    }
}

/// A map of the state.
#[derive(Clone)]
enum Map {
    Object(BTreeMap<String, Value>),
    Set(BTreeSet<Value>),
}

/// What an evaluation comes to, if it is no fault: a value, or nothing.
type Outcome = Result<Option<Value>, Fault>;

/// The evaluation ends without a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault(pub &'static str);

/// How a body ended.
enum End {
    /// Behind its last instruction.
    Over,
    Failed,
    /// The body this many levels further out ends.
    Done(u8),
    /// The function ends.
    Returned,
}

/// One function that is being evaluated.
struct Frame {
    registers: Vec<Option<Value>>,
    result: Option<Value>,
    /// What the open comprehensions have so far.
    collected: Vec<Collected>,
}

enum Collected {
    Array(Vec<Value>),
    Set(BTreeSet<Value>),
    Object(BTreeMap<Value, Value>),
}

/// One evaluation.
struct Run<'r, 'p> {
    image: &'r Image<'p>,
    state: Value,
    input: Option<Value>,
    remembered: BTreeMap<u32, Option<Value>>,
    looked: Footprint,
    fragments: &'r [Loaded<'p>],
    /// Parts of strings of fragments' data, with the fragment's number.
    parts: Vec<(Rc<str>, usize)>,
}

/// What an evaluation looked at in `data.metadata`. Passing a map on is not looking at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Maps that it asked for by name, whether or not they are there.
    pub maps: BTreeSet<String>,
    /// Entries that it asked for: map and key, whether or not they are there.
    pub entries: BTreeSet<(String, String)>,
    /// Maps that it went through, or used otherwise than by a key.
    pub whole: BTreeSet<String>,
    /// Whether it went through the maps themselves.
    pub everything: bool,
}

impl<'p> Reference<'p> {
    /// Verifies an image. What it remembers is what a fresh Linux guest does.
    ///
    /// # Errors
    /// If the image is not valid.
    pub fn new(image: &'p [u8]) -> Result<Reference<'p>> {
        let invalid = |error| anyhow!("not a valid policy image: {error:?}");
        let image = Image::read(image).map_err(invalid)?;
        verify::verify(&image).map_err(invalid)?;
        let linux = Map::Object(BTreeMap::from([("ostype".into(), Value::string("linux"))]));
        let state = BTreeMap::from([("operatingsystem".into(), linux)]);
        Ok(Reference { image, state, fragments: Vec::new() })
    }

    /// Evaluates an entry, such as `data.policy.mount_device`. `None` is undefined.
    ///
    /// # Errors
    /// A fault.
    pub fn evaluate(&self, entry: &str, input: Option<&Json>) -> Result<Option<Json>, Fault> {
        Ok(self.asked(entry, input).0?.map(|value| json(&value)))
    }

    /// Evaluates, and says what it looked at in the memory.
    pub fn trace(&self, entry: &str, input: Option<&Json>) -> (Result<Option<Json>, Fault>, Footprint) {
        let (outcome, looked) = self.asked(entry, input);
        (outcome.map(|value| value.as_ref().map(json)), looked)
    }

    /// The objects among the image's constants, in its order.
    pub(crate) fn objects(&self) -> Vec<Json> {
        let run = self.run(None);
        let nodes = (0..).map_while(|index| Some((index, self.image.node(index)?.0)));
        let objects = nodes.filter(|(_, kind)| *kind == Kind::Object);
        objects
            .filter_map(|(index, kind)| run.constant(Const::new(kind, index)).ok().as_ref().map(json))
            .collect()
    }

    /// Evaluates, and if the result allows, remembers what it says.
    ///
    /// # Errors
    /// A fault, or operations that cannot be applied: nothing has changed then.
    pub fn decide(&mut self, entry: &str, input: Option<&Json>) -> Result<Option<Json>, Fault> {
        let Some(value) = self.asked(entry, input).0? else { return Ok(None) };
        if value.get(&Value::string("allowed")) == Some(&Value::Bool(true))
            && let Some(operations) = value.get(&Value::string("metadata"))
        {
            self.state = self.changed(operations).map_err(|_| Fault("metadata"))?;
        }
        Ok(Some(json(&value)))
    }

    /// `data.metadata`.
    pub fn metadata(&self) -> Json {
        json(&self.state())
    }

    /// Replaces `data.metadata`: an object of objects and, for sets, arrays.
    ///
    /// # Errors
    /// If it is something else.
    pub fn set_metadata(&mut self, metadata: &Json) -> Result<()> {
        let constant = |value: &Json| from_json(value).map_err(anyhow::Error::msg);
        let maps = metadata.as_object().context("metadata is no object")?;
        let map = |(name, map): (&String, &Json)| {
            let map = match map {
                Json::Object(map) => {
                    let pairs = map.iter().map(|(key, value)| Ok((key.clone(), constant(value)?)));
                    Map::Object(pairs.collect::<Result<_>>()?)
                }
                Json::Array(members) => Map::Set(members.iter().map(constant).collect::<Result<_>>()?),
                _ => bail!("metadata.{name} is neither an object nor an array"),
            };
            Ok((name.clone(), map))
        };
        self.state = maps.iter().map(map).collect::<Result<_>>()?;
        Ok(())
    }

    fn state(&self) -> Value {
        let map = |map: &Map| match map {
            Map::Object(map) => object(map.iter().map(|(key, value)| (Value::string(key), value.clone()))),
            Map::Set(members) => Value::Set(Rc::new(members.clone())),
        };
        object(self.state.iter().map(|(name, it)| (Value::string(name), map(it))))
    }

    fn run(&self, input: Option<Value>) -> Run<'_, 'p> {
        Run {
            image: &self.image,
            state: self.state(),
            input,
            remembered: BTreeMap::new(),
            looked: Footprint::default(),
            fragments: &self.fragments,
            parts: Vec::new(),
        }
    }

    /// Puts a fragment in force, as the guest does once its signature is verified: the policy is asked with the header, and
    /// for each set of parameters with the content. All of it, or nothing. Whether it was allowed.
    ///
    /// # Errors
    /// A fault, or no valid fragment.
    pub fn load_fragment(
        &mut self,
        image: &'p [u8],
        issuer: &str,
        feed: &str,
        svn: u32,
    ) -> Result<bool, Fault> {
        let ask = |this: &Self, content: Option<Value>| -> Outcome {
            let mut input = BTreeMap::from([
                (Value::string("feed"), Value::string(feed)),
                (Value::string("fragment_loaded"), Value::Bool(content.is_some())),
                (Value::string("has_header_svn"), Value::Bool(true)),
                (Value::string("header_svn"), Value::Int(svn.into())),
                (Value::string("issuer"), Value::string(issuer)),
                (Value::string("namespace"), Value::string("fragment")),
                (Value::string("receipts"), array([])),
            ]);
            input.extend(content.map(|content| (Value::string("fragment"), content)));
            let answer = this.value("data.policy.load_fragment", Some(Value::Object(Rc::new(input)))).0?;
            Ok(answer.filter(|answer| answer.get(&Value::string("allowed")) == Some(&Value::Bool(true))))
        };
        let Some(welcome) = ask(self, None)? else { return Ok(false) };
        let sets = match welcome.get(&Value::string("parameters")) {
            Some(Value::Array(sets)) if !sets.is_empty() => sets.to_vec(),
            _ => vec![object([])],
        };
        let content = Reference::new(image).map_err(|_| Fault("fragment"))?;
        let content = Reference { state: BTreeMap::new(), ..content };
        let before = self.state.clone();
        let mut loaded = Loaded { image: content.image, data: Vec::new() };
        for set in sets {
            let mut fields = Vec::new();
            for rule in RULES {
                let input = object([(Value::string("parameters"), set.clone())]);
                let value = content.value(&format!("data.{PACKAGE}.{rule}"), Some(input)).0?;
                fields.extend(value.map(|value| (Value::string(rule), value)));
            }
            let data = object(fields);
            let answer = ask(self, Some(data.clone()));
            let changed = match answer {
                Ok(Some(answer)) => match answer.get(&Value::string("metadata")) {
                    Some(operations) => self.changed(operations).map_err(|_| Fault("metadata")).map(Some),
                    None => Ok(Some(self.state.clone())),
                },
                Ok(None) => Ok(None),
                Err(fault) => Err(fault),
            };
            match changed {
                Ok(Some(state)) => self.state = state,
                refused => {
                    self.state = before;
                    return refused.map(|_| false);
                }
            }
            loaded.data.push(data);
        }
        self.fragments.push(loaded);
        Ok(true)
    }

    fn asked(&self, entry: &str, input: Option<&Json>) -> (Outcome, Footprint) {
        match input.map(from_json).transpose() {
            Ok(input) => self.value(entry, input),
            Err(_) => (Err(Fault("input")), Footprint::default()),
        }
    }

    fn value(&self, entry: &str, input: Option<Value>) -> (Outcome, Footprint) {
        let Some(function) = self.image.entry(entry) else { return (Ok(None), Footprint::default()) };
        let mut run = self.run(input);
        (run.call(function, Vec::new()), run.looked)
    }

    /// The state after these operations.
    fn changed(&self, operations: &Value) -> Result<BTreeMap<String, Map>> {
        let Value::Array(operations) = operations else { bail!("not an array") };
        let mut state = self.state.clone();
        let mut touched = BTreeSet::new();
        for operation in operations.iter() {
            let Value::Object(fields) = operation else { bail!("not an object") };
            let text = |name| operation.get(&Value::string(name)).and_then(Value::as_str);
            let (name, action) = (text("name").context("no name")?, text("action").context("no action")?);
            let value = operation.get(&Value::string("value"));
            let known = ["name", "action", "key", "value", "type"];
            ensure!(
                fields.keys().all(|key| key.as_str().is_some_and(|key| known.contains(&key))),
                "other fields"
            );
            ensure!(
                fields.contains_key(&Value::string("key")) == text("key").is_some(),
                "a key that is no string"
            );
            if fields.contains_key(&Value::string("type")) {
                let kind = if text("key").is_some() { "map" } else { "set" };
                ensure!(text("type") == Some(kind), "of another type");
            }
            let Some(key) = text("key") else {
                let member = value.context("no member")?;
                ensure!(touched.insert((name, member.clone())), "touched twice");
                match action {
                    "remove" => match state.get_mut(name) {
                        Some(Map::Set(set)) => drop(set.remove(member)),
                        Some(Map::Object(_)) => bail!("not a set"),
                        None => {}
                    },
                    "add" => match state.entry(name.into()).or_insert_with(|| Map::Set(BTreeSet::new())) {
                        Map::Set(set) => drop(set.insert(member.clone())),
                        Map::Object(_) => bail!("not a set"),
                    },
                    _ => bail!("no such action"),
                }
                continue;
            };
            ensure!(touched.insert((name, Value::string(key))), "touched twice");
            match action {
                "remove" => match state.get_mut(name) {
                    Some(Map::Object(map)) => drop(map.remove(key)),
                    Some(Map::Set(_)) => bail!("not an object"),
                    None => {}
                },
                "add" | "update" => {
                    let value = value.context("no value")?.clone();
                    match state.entry(name.into()).or_insert_with(|| Map::Object(BTreeMap::new())) {
                        Map::Object(map) => {
                            let there = map.insert(key.into(), value).is_some();
                            ensure!(!(there && action == "add"), "there already");
                        }
                        Map::Set(_) => bail!("not an object"),
                    }
                }
                _ => bail!("no such action"),
            }
        }
        Ok(state)
    }
}

/// A value as JSON: a set is a sorted array, and a key that is no string is its JSON text.
fn json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::from(*value),
        Value::Int(value) => Json::from(*value),
        Value::Str(text) => Json::from(&**text),
        Value::Array(items) => items.iter().map(json).collect(),
        Value::Set(members) => members.iter().map(json).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| {
                (key.as_str().map_or_else(|| json(key).to_string(), str::to_string), json(value))
            })
            .collect(),
    }
}

fn array(items: impl IntoIterator<Item = Value>) -> Value {
    Value::Array(Rc::new(items.into_iter().collect()))
}

fn set(members: impl IntoIterator<Item = Value>) -> Value {
    Value::Set(Rc::new(members.into_iter().collect()))
}

fn object(pairs: impl IntoIterator<Item = (Value, Value)>) -> Value {
    Value::Object(Rc::new(pairs.into_iter().collect()))
}

/// Every string in a value.
fn texts(value: &Value, into: &mut Vec<Rc<str>>) {
    match value {
        Value::Str(text) => into.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, into)),
        Value::Set(members) => members.iter().for_each(|member| texts(member, into)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            texts(key, into);
            texts(value, into);
        }),
        Value::Null | Value::Bool(_) | Value::Int(_) => {}
    }
}

/// Key and value of each element of a collection; `None` for what is none.
fn elements(value: &Value) -> Option<Vec<(Value, Value)>> {
    Some(match value {
        Value::Array(items) => (0..).map(Value::Int).zip(items.iter().cloned()).collect(),
        Value::Object(fields) => fields.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        Value::Set(members) => members.iter().map(|member| (member.clone(), member.clone())).collect(),
        _ => return None,
    })
}

impl Run<'_, '_> {
    fn call(&mut self, function: u32, arguments: Vec<Value>) -> Outcome {
        if let Some(result) = self.remembered.get(&function) {
            return Ok(result.clone());
        }
        let record = self.image.function(function).ok_or(Fault("function"))?;
        let range = self.image.code_range(function).ok_or(Fault("function"))?;
        let code = self.image.section(Section::Code).get(range).ok_or(Fault("code"))?;
        let mut registers: Vec<Option<Value>> = arguments.into_iter().map(Some).collect();
        registers.resize(record.registers.into(), None);
        let mut frame = Frame { registers, result: None, collected: Vec::new() };
        // However its body ends, the function returns.
        self.body(code, &mut frame)?;
        if record.memo {
            self.remembered.insert(function, frame.result.clone());
        }
        Ok(frame.result)
    }

    fn body(&mut self, code: &[u8], frame: &mut Frame) -> Result<End, Fault> {
        let mut rest = code;
        while !rest.is_empty() {
            let (instruction, after) = Instruction::decode(rest).ok_or(Fault("code"))?;
            rest = after;
            self.note(&instruction, frame)?;
            let end = match instruction.body() {
                Some((_, length)) => {
                    let (body, after) = rest.split_at_checked(length as usize).ok_or(Fault("code"))?;
                    rest = after;
                    self.owner(&instruction, body, frame)?
                }
                None => self.step(&instruction, frame)?,
            };
            if !matches!(end, End::Over) {
                return Ok(end);
            }
        }
        Ok(End::Over)
    }

    /// Takes note of what an instruction is going to look at in the memory.
    fn note(&mut self, instruction: &Instruction<'_>, frame: &Frame) -> Result<(), Fault> {
        use Instruction as I;
        let text = |key: &Value| key.as_str().map_or_else(|| json(key).to_string(), str::to_string);
        let (from, key) = match *instruction {
            I::Move { .. } | I::Call { .. } | I::Return { .. } | I::ReturnLast { .. } => return Ok(()),
            I::Get { from, key, .. } => (from, frame.get(key)?),
            I::GetConst { from, key, .. } => (from, self.constant(key)?),
            I::StateGet { key, .. } => {
                let key = self.constant(key)?;
                self.looked.maps.insert(text(&key));
                return Ok(());
            }
            _ => {
                instruction.registers(|register, written| {
                    if !written && let Ok(value) = frame.get(register) {
                        match self.place(&value) {
                            Some(Some(map)) => drop(self.looked.whole.insert(map)),
                            Some(None) => self.looked.everything = true,
                            None => {}
                        }
                    }
                });
                return Ok(());
            }
        };
        match self.place(&frame.get(from)?) {
            Some(Some(map)) => drop(self.looked.entries.insert((map, text(&key)))),
            Some(None) => drop(self.looked.maps.insert(text(&key))),
            None => {}
        }
        Ok(())
    }

    /// Whether a value is the memory (`Some(None)`) or one of its maps. Values are shared, not copied, so it is the same
    /// place and not an equal value.
    fn place(&self, value: &Value) -> Option<Option<String>> {
        let same = |a: &Value, b: &Value| match (a, b) {
            (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
            (Value::Set(a), Value::Set(b)) => Rc::ptr_eq(a, b),
            _ => false,
        };
        if same(value, &self.state) {
            return Some(None);
        }
        let Value::Object(maps) = &self.state else { return None };
        let found = maps.iter().find(|(_, map)| same(value, map));
        found.map(|(name, _)| name.as_str().map(str::to_string))
    }

    /// An instruction with a body: what comes of it for the body around it.
    fn owner(&mut self, owner: &Instruction<'_>, body: &[u8], frame: &mut Frame) -> Result<End, Fault> {
        use Instruction as I;
        let (source, key, value, every) = match *owner {
            I::Block { .. } => {
                return Ok(match self.body(body, frame)? {
                    End::Done(0) | End::Failed => End::Over,
                    End::Done(depth) => End::Done(depth - 1),
                    end => end,
                });
            }
            I::Some { .. } => {
                return Ok(match self.body(body, frame)? {
                    End::Done(0) => End::Over,
                    End::Done(depth) => End::Done(depth - 1),
                    end => end,
                });
            }
            I::Not { .. } => {
                return Ok(match self.body(body, frame)? {
                    End::Failed => End::Over,
                    End::Over | End::Done(0) => End::Failed,
                    End::Done(depth) => End::Done(depth - 1),
                    End::Returned => End::Returned,
                });
            }
            I::Collect { dst, kind, .. } => {
                frame.collected.push(match kind {
                    Collection::Array => Collected::Array(Vec::new()),
                    Collection::Set => Collected::Set(BTreeSet::new()),
                    Collection::Object => Collected::Object(BTreeMap::new()),
                });
                let end = self.body(body, frame)?;
                let value = match frame.collected.pop().ok_or(Fault("collect"))? {
                    Collected::Array(items) => array(items),
                    Collected::Set(members) => set(members),
                    Collected::Object(pairs) => object(pairs),
                };
                frame.put(dst, value)?;
                return Ok(if let End::Returned = end { End::Returned } else { End::Over });
            }
            I::Scan { source, key, value, .. } => (source, key, value, false),
            I::Every { source, key, value, .. } => (source, key, value, true),
            _ => return Err(Fault("owner")),
        };
        let Some(elements) = elements(&frame.get(source)?) else {
            return Ok(if every { End::Failed } else { End::Over });
        };
        for element in elements {
            if let Some(key) = key {
                frame.put(key, element.0)?;
            }
            if let Some(value) = value {
                frame.put(value, element.1)?;
            }
            match self.body(body, frame)? {
                End::Over | End::Done(0) => {}
                End::Failed if every => return Ok(End::Failed),
                End::Failed => {}
                End::Done(depth) => return Ok(End::Done(depth - 1)),
                End::Returned => return Ok(End::Returned),
            }
        }
        Ok(End::Over)
    }

    /// An instruction without a body.
    fn step(&mut self, instruction: &Instruction<'_>, frame: &mut Frame) -> Result<End, Fault> {
        use Instruction as I;
        let (target, value): (Target, Option<Value>) = match *instruction {
            I::Const { dst, value } => (Some(dst), Some(self.constant(value)?)),
            I::Input { dst } => (Some(dst), self.input.clone()),
            I::InputGet { dst, key } => {
                let key = self.constant(key)?;
                (Some(dst), self.input.as_ref().and_then(|input| input.get(&key)).cloned())
            }
            I::State { dst } => (Some(dst), Some(self.state.clone())),
            I::StateGet { dst, key } => (Some(dst), self.state.get(&self.constant(key)?).cloned()),
            I::Move { dst, src } => (Some(dst), Some(frame.get(src)?)),
            I::Get { dst, from, key } => (Some(dst), frame.get(from)?.get(&frame.get(key)?).cloned()),
            I::GetConst { dst, from, key } => {
                (Some(dst), frame.get(from)?.get(&self.constant(key)?).cloned())
            }
            I::Lookup { dst, key, from } => (dst, self.constant(from)?.get(&frame.get(key)?).cloned()),
            I::Array { dst, items } => (Some(dst), Some(array(frame.all(items)?))),
            I::Set { dst, items } => (Some(dst), Some(set(frame.all(items)?))),
            I::Object { dst, pairs } => {
                let parts = frame.all(pairs)?;
                let pairs = parts.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                (Some(dst), Some(object(pairs)))
            }
            I::Record { dst, shape, values } => {
                let Value::Array(keys) = self.constant(shape)? else { return Err(Fault("shape")) };
                (Some(dst), Some(object(keys.iter().cloned().zip(frame.all(values)?))))
            }
            I::Test { value } => (None, Some(frame.get(value)?)),
            I::Compare { relation, dst, left, right } => {
                (dst, Some(Value::Bool(relation.holds(frame.get(left)?.cmp(&frame.get(right)?)))))
            }
            I::CompareConst { relation, dst, left, right } => {
                (dst, Some(Value::Bool(relation.holds(frame.get(left)?.cmp(&self.constant(right)?)))))
            }
            I::Call { dst, function, args } => (dst, self.call(function, frame.all(args)?)?),
            I::Builtin { dst, builtin, args } => {
                let args = frame.all(args)?;
                let result = builtins::call(builtin, &args)?;
                self.take_parts(builtin, &args, result.as_ref());
                (dst, result)
            }
            I::Match { dst, text, pattern } => {
                let text = frame.get(text)?;
                let matched = text.as_str().map(|text| self.matches(pattern, text, &[]));
                (dst, matched.transpose()?.map(Value::Bool))
            }
            I::MatchBy { dst, text, pattern, part, holes } => {
                let class = if part { Class::Part } else { Class::Whole };
                let holes = frame.all(holes)?;
                let (pattern, text) = (frame.get(pattern)?, frame.get(text)?);
                let matched = match self.matches_named(class, &pattern, &text, &holes) {
                    Err(Fault("pattern")) => self.matches_of_fragment(class, &pattern, &text)?,
                    matched => matched?,
                };
                (dst, matched.map(Value::Bool))
            }
            I::Submatches { dst, text, pattern, limit } => {
                let pattern = self.named(Class::Find, &frame.get(pattern)?, &[])?;
                match (pattern, &frame.get(text)?, frame.get(limit)?) {
                    (Some(pattern), Value::Str(text), Value::Int(limit)) => {
                        (Some(dst), Some(self.submatches(pattern, text, limit)?))
                    }
                    _ => (Some(dst), None),
                }
            }
            I::Find { dst, text, list, table } => {
                let found = match self.constant(table)?.get(&frame.get(list)?) {
                    Some(entry) => Some(self.accepts(entry, &frame.get(text)?)?),
                    None => None,
                };
                (dst, found.map(Value::Bool))
            }
            I::Yield { value } => {
                let value = frame.get(value)?;
                match frame.collected.last_mut().ok_or(Fault("yield"))? {
                    Collected::Array(items) => items.push(value),
                    Collected::Set(members) => drop(members.insert(value)),
                    Collected::Object(_) => return Err(Fault("yield")),
                }
                return Ok(End::Over);
            }
            I::YieldPair { key, value } => {
                let (key, value) = (frame.get(key)?, frame.get(value)?);
                let Some(Collected::Object(pairs)) = frame.collected.last_mut() else {
                    return Err(Fault("yield"));
                };
                return match pairs.insert(key, value.clone()) {
                    Some(other) if other != value => Err(Fault("conflict")),
                    _ => Ok(End::Over),
                };
            }
            I::Fail => return Ok(End::Failed),
            I::Done { depth } => return Ok(End::Done(depth)),
            I::Return { value } => {
                let value = frame.get(value)?;
                return frame.give(value).map(|()| End::Over);
            }
            I::ReturnLast { value } => {
                let value = frame.get(value)?;
                return frame.give(value).map(|()| End::Returned);
            }
            I::ReturnConst { value } => {
                let value = self.constant(value)?;
                return frame.give(value).map(|()| End::Returned);
            }
            I::Leave => return Ok(if frame.result.is_some() { End::Returned } else { End::Over }),
            I::Abort => return Err(Fault("abort")),
            I::Block { .. } | I::Some { .. } | I::Not { .. } => return Err(Fault("body")),
            I::Scan { .. } | I::Every { .. } | I::Collect { .. } => return Err(Fault("body")),
        };
        Ok(match (target, value) {
            (_, None) | (None, Some(Value::Bool(false))) => End::Failed,
            (None, Some(_)) => End::Over,
            (Some(dst), Some(value)) => {
                frame.put(dst, value)?;
                End::Over
            }
        })
    }

    fn string(&self, number: u32) -> Result<&str, Fault> {
        let bytes = self.image.string(number).ok_or(Fault("string"))?;
        std::str::from_utf8(bytes).map_err(|_| Fault("string"))
    }

    fn constant(&self, constant: Const) -> Result<Value, Fault> {
        let index = constant.index();
        let kind = constant.kind().ok_or(Fault("constant"))?;
        Ok(match kind {
            Kind::Null => Value::Null,
            Kind::Bool => Value::Bool(index == 1),
            Kind::Int => Value::Int(self.image.int(index).ok_or(Fault("constant"))?),
            Kind::String => Value::string(self.string(index)?),
            Kind::Array | Kind::Object | Kind::Set => {
                let (_, words) = self.image.node(index).ok_or(Fault("constant"))?;
                let element = |word| self.constant(self.image.element(word).ok_or(Fault("constant"))?);
                let mut parts = words.map(element).collect::<Result<Vec<Value>, Fault>>()?;
                match kind {
                    Kind::Array => array(parts),
                    Kind::Set => set(parts),
                    _ => {
                        let Value::Array(keys) = parts.remove(0) else { return Err(Fault("constant")) };
                        object(keys.iter().cloned().zip(parts))
                    }
                }
            }
        })
    }

    // Patterns

    /// The numbers of a DFA's patterns that accept a text: every state is looked for from the first on.
    fn accepting(&self, number: u32, text: &str) -> Result<Vec<u32>, Fault> {
        let bytes = self.image.dfa_bytes(number).ok_or(Fault("dfa"))?;
        let number = |at: usize| -> Result<usize, Fault> {
            let bytes = bytes.get(at..at + 2).ok_or(Fault("dfa"))?;
            Ok(usize::from(bytes[0]) + 256 * usize::from(bytes[1]))
        };
        let (states, accepting) = (number(0)?, number(2)?);
        let sets = 4 + 2 * states;
        let transitions = sets + 4 * accepting;
        let ends = |state: usize| number(4 + 2 * state);
        let patterns = transitions + 4 * ends(states - 1)?;
        let mut state = 0;
        for &byte in text.as_bytes() {
            let start = if state == 0 { 0 } else { ends(state - 1)? };
            let mut next = None;
            for transition in start..ends(state)? {
                let at = transitions + 4 * transition;
                if (bytes[at]..=bytes[at + 1]).contains(&byte) {
                    next = Some(number(at + 2)?);
                }
            }
            match next {
                Some(next) => state = next,
                None => return Ok(Vec::new()),
            }
        }
        let mut start = 0;
        for accepted in 0..accepting {
            let end = number(sets + 4 * accepted + 2)?;
            if number(sets + 4 * accepted)? == state {
                let numbers = (start..end).map(|index| number(patterns + 2 * index));
                return numbers.map(|number| number.map(|number| number as u32)).collect();
            }
            start = end;
        }
        Ok(Vec::new())
    }

    /// What an entry of a table says of a text.
    fn accepts(&self, entry: &Value, text: &Value) -> Result<bool, Fault> {
        let Value::Array(parts) = entry else { return Err(Fault("table")) };
        let [Value::Set(members), Value::Array(patterns)] = &parts[..] else { return Err(Fault("table")) };
        if members.contains(text) {
            return Ok(true);
        }
        let Some(text) = text.as_str() else { return Ok(false) };
        for pattern in patterns.iter() {
            let Value::Int(pattern) = pattern else { return Err(Fault("table")) };
            let pattern = u32::try_from(*pattern).map_err(|_| Fault("table"))?;
            if let Some(Pattern::Program(_)) = self.image.pattern(pattern) {
                return Err(Fault("table"));
            }
            if self.matches(pattern, text, &[])? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn matches(&self, pattern: u32, text: &str, holes: &[Value]) -> Result<bool, Fault> {
        Ok(match self.image.pattern(pattern).ok_or(Fault("pattern"))? {
            Pattern::Dfa(dfa) => !self.accepting(dfa, text)?.is_empty(),
            Pattern::Member { dfa, pattern } => self.accepting(dfa, text)?.contains(&pattern),
            Pattern::Literal(string) => self.string(string)? == text,
            Pattern::Program(program) => {
                let program = self.image.program(program).ok_or(Fault("program"))?;
                let mut tried = BTreeSet::new();
                let mut slots = vec![None; program.slots.into()];
                Way { program, text: text.as_bytes(), holes }.go(0, 0, &mut tried, &mut slots)?
            }
        })
    }

    /// Whether a text matches the pattern with this text; undefined if one is no string, or the pattern is none.
    fn matches_named(
        &self,
        class: Class,
        pattern: &Value,
        text: &Value,
        holes: &[Value],
    ) -> Result<Option<bool>, Fault> {
        let Some(pattern) = self.named(class, pattern, holes)? else { return Ok(None) };
        text.as_str().map(|text| self.matches(pattern, text, holes)).transpose()
    }

    /// The same by the fragment that the pattern itself came from, and by no other.
    fn matches_of_fragment(
        &self,
        class: Class,
        pattern: &Value,
        text: &Value,
    ) -> Result<Option<bool>, Fault> {
        let Value::Str(own) = pattern else { return Err(Fault("pattern")) };
        let loaded =
            self.origin(own).and_then(|number| self.fragments.get(number)).ok_or(Fault("pattern"))?;
        let run = Run {
            image: &loaded.image,
            state: object([]),
            input: None,
            remembered: BTreeMap::new(),
            looked: Footprint::default(),
            fragments: &[],
            parts: Vec::new(),
        };
        run.matches_named(class, pattern, text, &[])
    }

    /// The number of the fragment in whose data a string is, or of which it is a part.
    fn origin(&self, text: &Rc<str>) -> Option<usize> {
        let part = self.parts.iter().find(|(part, _)| Rc::ptr_eq(part, text));
        part.map(|(_, number)| *number).or_else(|| self.fragments.iter().position(|loaded| loaded.has(text)))
    }

    /// A part of a string comes from where the string does.
    fn take_parts(&mut self, builtin: Builtin, args: &[Value], result: Option<&Value>) {
        let parting =
            [Builtin::Substring, Builtin::TrimPrefix, Builtin::Split, Builtin::Before].contains(&builtin);
        if let Some(Value::Str(whole)) = args.first()
            && parting
            && let Some(number) = self.origin(whole)
        {
            let mut parts = Vec::new();
            result.into_iter().for_each(|result| texts(result, &mut parts));
            self.parts.extend(parts.into_iter().map(|part| (part, number)));
        }
    }

    /// The pattern with this text; `None` if it is no string, or no regular expression.
    fn named(&self, class: Class, text: &Value, holes: &[Value]) -> Result<Option<u32>, Fault> {
        let Some(text) = text.as_str() else { return Ok(None) };
        let names = (0..).map_while(|index| self.image.name(index));
        let mut filled = None;
        for (name, of, pattern) in names {
            let name = self.string(name)?;
            if of == class && name == text {
                return Ok(pattern);
            }
            if Some(of) == class.with_holes()
                && filled.is_none()
                && let Some((whole, used)) = fill(name, holes)
                && whole == text
            {
                filled = Some((pattern, used));
            }
        }
        match filled {
            Some((pattern, used)) if !used.contains(|c| r"\+*?()|[]{}^$".contains(c)) => Ok(pattern),
            _ => Err(Fault("pattern")),
        }
    }

    fn submatches(&self, pattern: u32, text: &str, limit: i64) -> Result<Value, Fault> {
        let Some(Pattern::Program(program)) = self.image.pattern(pattern) else {
            return Err(Fault("program"));
        };
        let program = self.image.program(program).ok_or(Fault("program"))?;
        let way = Way { program, text: text.as_bytes(), holes: &[] };
        let (mut found, mut from, mut last_end) = (Vec::new(), 0, None);
        while from <= text.len() && (limit < 0 || found.len() < limit as usize) {
            let mut matched = None;
            for start in (from..=text.len()).filter(|&start| text.is_char_boundary(start)) {
                let mut slots = vec![None; program.slots.into()];
                if way.go(0, start, &mut BTreeSet::new(), &mut slots)? {
                    matched = Some(slots);
                    break;
                }
            }
            let Some(slots) = matched else { break };
            let groups: Vec<Option<(usize, usize)>> =
                slots.chunks(2).map(|pair| pair[0].zip(pair[1])).collect();
            let (start, end) = groups[0].ok_or(Fault("program"))?;
            if end > start || Some(start) != last_end {
                let part = |group: &Option<(usize, usize)>| {
                    let (start, end) = group.unwrap_or_default();
                    Value::string(&text[start..end])
                };
                found.push(array(groups.iter().map(part)));
            }
            last_end = Some(end);
            let width = text[from..].chars().next().map_or(1, char::len_utf8);
            from = if end > from { end } else { from + width };
        }
        Ok(array(found))
    }
}

/// A pattern's name with strings put into its holes, and all that was put in.
fn fill(name: &str, holes: &[Value]) -> Option<(String, String)> {
    let (mut text, mut used) = (String::new(), String::new());
    for c in name.chars() {
        let hole = u32::from(c).checked_sub(Class::HOLE.into()).filter(|&hole| (hole as usize) < MAX_HOLES);
        match hole {
            Some(hole) => {
                let hole = holes.get(hole as usize)?.as_str()?;
                text.push_str(hole);
                used.push_str(hole);
            }
            None => text.push(c),
        }
    }
    Some((text, used))
}

/// Matching a program.
struct Way<'w> {
    program: Program<'w>,
    text: &'w [u8],
    holes: &'w [Value],
}

impl Way<'_> {
    /// Whether there is a way to a match from a step at a position; the slots are those of the first such way.
    fn go(
        &self,
        step: u32,
        position: usize,
        tried: &mut BTreeSet<(u32, usize)>,
        slots: &mut Vec<Option<usize>>,
    ) -> Result<bool, Fault> {
        if !tried.insert((step, position)) {
            return Ok(false);
        }
        let step =
            self.program.steps.get(step as usize).and_then(Step::from_bytes).ok_or(Fault("program"))?;
        match step {
            Step::Match => Ok(true),
            Step::Range { low, high, next } => match self.text.get(position) {
                Some(byte) if (low..=high).contains(byte) => self.go(next, position + 1, tried, slots),
                _ => Ok(false),
            },
            Step::Split { first, second } => {
                Ok(self.go(first, position, tried, slots)? || self.go(second, position, tried, slots)?)
            }
            Step::Save { slot, next } => {
                let before = slots[usize::from(slot)].replace(position);
                let matched = self.go(next, position, tried, slots)?;
                if !matched {
                    slots[usize::from(slot)] = before;
                }
                Ok(matched)
            }
            Step::Assert { look, next } => {
                Ok(self.looks(look, position) && self.go(next, position, tried, slots)?)
            }
            Step::Hole { hole, next } => {
                let hole = self.holes.get(usize::from(hole)).and_then(Value::as_str).ok_or(Fault("hole"))?;
                let Ok(rest) = std::str::from_utf8(&self.text[position..]) else { return Ok(false) };
                let mut rest = rest.chars();
                let fits = hole.chars().all(|wanted| match rest.next() {
                    Some(c) => {
                        if wanted == '.' {
                            c != '\n'
                        } else {
                            c == wanted
                        }
                    }
                    None => false,
                });
                Ok(fits && self.go(next, self.text.len() - rest.as_str().len(), tried, slots)?)
            }
        }
    }

    fn looks(&self, look: Look, position: usize) -> bool {
        let (before, after) = self.text.split_at(position);
        let (before, after) = (before.last(), after.first());
        let word = |byte: Option<&u8>| byte.is_some_and(|&byte| byte == b'_' || byte.is_ascii_alphanumeric());
        match look {
            Look::Start => before.is_none(),
            Look::End => after.is_none(),
            Look::LineStart => before.is_none_or(|&byte| byte == b'\n'),
            Look::LineEnd => after.is_none_or(|&byte| byte == b'\n'),
            Look::Boundary => word(before) != word(after),
            Look::NoBoundary => word(before) == word(after),
        }
    }
}

impl Frame {
    fn get(&self, register: Reg) -> Result<Value, Fault> {
        self.registers.get(usize::from(register)).cloned().flatten().ok_or(Fault("register"))
    }

    fn all(&self, registers: Args<'_>) -> Result<Vec<Value>, Fault> {
        registers.0.iter().map(|&register| self.get(register)).collect()
    }

    fn put(&mut self, register: Reg, value: Value) -> Result<(), Fault> {
        *self.registers.get_mut(usize::from(register)).ok_or(Fault("register"))? = Some(value);
        Ok(())
    }

    fn give(&mut self, value: Value) -> Result<(), Fault> {
        match &self.result {
            Some(other) if *other != value => Err(Fault("conflict")),
            _ => {
                self.result = Some(value);
                Ok(())
            }
        }
    }
}

mod builtins {
    //! The builtins, once more.

    use super::{BTreeSet, Builtin, Fault, Outcome, Value, array, object, set};

    const UNSUPPORTED: Fault = Fault("unsupported");
    const OVERFLOW: Fault = Fault("overflow");

    pub(super) fn call(builtin: Builtin, arguments: &[Value]) -> Outcome {
        use Builtin as B;
        use Value as V;
        let string = |text: &str| Some(Value::string(text));
        let number = |value: Option<i64>| value.map(|value| Some(V::Int(value))).ok_or(OVERFLOW);
        let count = |length: usize| Some(V::Int(length as i64));
        Ok(match (builtin, arguments) {
            (B::Plus, [V::Int(a), V::Int(b)]) => number(a.checked_add(*b))?,
            (B::Minus, [V::Int(a), V::Int(b)]) => number(a.checked_sub(*b))?,
            (B::Mul, [V::Int(a), V::Int(b)]) => number(a.checked_mul(*b))?,
            (B::Div | B::Rem, [V::Int(_), V::Int(0)]) => None,
            (B::Div, [V::Int(a), V::Int(b)]) => match a.checked_rem(*b) {
                Some(0) => number(a.checked_div(*b))?,
                Some(_) => return Err(UNSUPPORTED),
                None => return Err(OVERFLOW),
            },
            (B::Rem, [V::Int(a), V::Int(b)]) => Some(V::Int(a.wrapping_rem(*b))),
            (B::Minus, [V::Set(a), V::Set(b)]) => Some(set(a.difference(b).cloned())),
            (B::Or, [V::Set(a), V::Set(b)]) => Some(set(a.union(b).cloned())),
            (B::And, [V::Set(a), V::Set(b)]) => Some(set(a.intersection(b).cloned())),
            (B::Member, [value, collection]) => Some(V::Bool(match collection {
                V::Array(items) => items.contains(value),
                V::Set(members) => members.contains(value),
                V::Object(fields) => fields.values().any(|other| other == value),
                _ => false,
            })),
            (B::MemberWithKey, [key, value, collection]) => Some(V::Bool(collection.get(key) == Some(value))),
            (B::ArrayConcat, [V::Array(a), V::Array(b)]) => Some(array(a.iter().chain(b.iter()).cloned())),
            (B::Base64UrlEncode, [V::Str(text)]) => string(&base64url(text.as_bytes())),
            (B::BitsAnd, [V::Int(a), V::Int(b)]) => Some(V::Int(a & b)),
            (B::BitsOr, [V::Int(a), V::Int(b)]) => Some(V::Int(a | b)),
            (B::BitsNegate, [V::Int(a)]) => Some(V::Int(!a)),
            (B::Concat, [V::Str(separator), list]) => {
                let items: Vec<&Value> = match list {
                    V::Array(items) => items.iter().collect(),
                    V::Set(members) => members.iter().collect(),
                    _ => return Ok(None),
                };
                let texts: Option<Vec<&str>> = items.into_iter().map(Value::as_str).collect();
                texts.map(|texts| Value::string(&texts.join(separator)))
            }
            (B::Contains, [V::Str(text), V::Str(part)]) => Some(V::Bool(text.contains(&**part))),
            (B::EndsWith, [V::Str(text), V::Str(part)]) => Some(V::Bool(text.ends_with(&**part))),
            (B::StartsWith, [V::Str(text), V::Str(part)]) => Some(V::Bool(text.starts_with(&**part))),
            (B::Count, [V::Str(text)]) => count(text.chars().count()),
            (B::Count, [V::Array(items)]) => count(items.len()),
            (B::Count, [V::Set(members)]) => count(members.len()),
            (B::Count, [V::Object(fields)]) => count(fields.len()),
            (B::IndexOf, [V::Str(_), V::Str(part)]) if part.is_empty() => None,
            (B::IndexOf, [V::Str(text), V::Str(part)]) => Some(V::Int(match text.find(&**part) {
                Some(at) => text[..at].chars().count() as i64,
                None => -1,
            })),
            (B::Intersection | B::Union, [V::Set(sets)]) => {
                let mut all: Option<BTreeSet<Value>> = None;
                for member in sets.iter() {
                    let V::Set(member) = member else { return Ok(None) };
                    all = Some(match all {
                        None => (**member).clone(),
                        Some(all) if builtin == B::Union => all.union(member).cloned().collect(),
                        Some(all) => all.intersection(member).cloned().collect(),
                    });
                }
                Some(set(all.unwrap_or_default()))
            }
            (B::IsNull, [value]) => Some(V::Bool(*value == V::Null)),
            (B::Lower, [V::Str(text)]) => {
                string(&text.chars().map(|c| c.to_lowercase().next().unwrap_or(c)).collect::<String>())
            }
            (B::Max, [V::Array(items)]) => items.iter().max().cloned(),
            (B::Max, [V::Set(members)]) => members.last().cloned(),
            (B::ObjectGet, [from @ V::Object(_), V::Array(path), default]) => {
                let found = path.iter().try_fold(from, |value, key| value.get(key));
                Some(found.unwrap_or(default).clone())
            }
            (B::ObjectGet, [from @ V::Object(_), key, default]) => {
                Some(from.get(key).unwrap_or(default).clone())
            }
            (B::ObjectKeys, [V::Object(fields)]) => Some(set(fields.keys().cloned())),
            (B::ObjectUnion, [a @ V::Object(_), b @ V::Object(_)]) => Some(overlaid(a, b)),
            (B::Replace, [V::Str(_), V::Str(old), V::Str(_)]) if old.is_empty() => return Err(UNSUPPORTED),
            (B::Replace, [V::Str(text), V::Str(old), V::Str(new)]) => string(&text.replace(&**old, new)),
            (B::SemverCompare, [V::Str(a), V::Str(b)]) => match (version(a), version(b)) {
                (Some(a), Some(b)) => Some(V::Int(a.cmp(&b) as i64)),
                _ => None,
            },
            (B::SemverIsValid, [value]) => {
                Some(V::Bool(value.as_str().is_some_and(|text| version(text).is_some())))
            }
            (B::Before, [V::Str(_), V::Str(separator)]) if separator.is_empty() => None,
            (B::Before, [V::Str(text), V::Str(separator)]) => {
                Some(Value::string(text.split(&**separator).next().unwrap_or_default()))
            }
            (B::CountBefore, [_, V::Str(separator)]) if separator.is_empty() => None,
            (B::CountBefore, [from, V::Str(separator)]) => {
                let texts: Vec<&Value> = match from {
                    V::Array(items) => items.iter().collect(),
                    V::Set(members) => members.iter().collect(),
                    V::Object(fields) => fields.values().collect(),
                    _ => Vec::new(),
                };
                let parts = texts.into_iter().filter_map(Value::as_str);
                let parts: BTreeSet<_> = parts.map(|text| text.split(&**separator).next()).collect();
                Some(V::Int(i64::try_from(parts.len()).unwrap_or(i64::MAX)))
            }
            (B::Split, [V::Str(text), V::Str(separator)]) if separator.is_empty() => {
                Some(array(text.chars().map(|c| Value::string(&c.to_string()))))
            }
            (B::Split, [V::Str(text), V::Str(separator)]) => {
                Some(array(text.split(&**separator).map(Value::string)))
            }
            (B::Sprintf, [V::Str(format), V::Array(values)]) => string(&sprintf(format, values)?),
            (B::Substring, [V::Str(text), V::Int(start), V::Int(length)]) => {
                let Ok(start) = usize::try_from(*start) else { return Ok(None) };
                let length = usize::try_from(*length).unwrap_or(usize::MAX);
                string(&text.chars().skip(start).take(length).collect::<String>())
            }
            (B::ToNumber, [V::Null]) => Some(V::Int(0)),
            (B::ToNumber, [V::Bool(value)]) => Some(V::Int((*value).into())),
            (B::ToNumber, [V::Int(value)]) => Some(V::Int(*value)),
            (B::ToNumber, [V::Str(text)]) => to_number(text)?.map(V::Int),
            (B::TrimPrefix, [V::Str(text), V::Str(prefix)]) => {
                string(text.strip_prefix(&**prefix).unwrap_or(text))
            }
            _ => None,
        })
    }

    fn base64url(bytes: &[u8]) -> String {
        let digit = |value: u32| match value as u8 {
            value @ 0..26 => (b'A' + value) as char,
            value @ 26..52 => (b'a' + value - 26) as char,
            value @ 52..62 => (b'0' + value - 52) as char,
            62 => '-',
            _ => '_',
        };
        let group = |bytes: &[u8]| {
            let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(bytes.get(at).copied().unwrap_or(0)));
            let digits = (0..4).map(move |at| digit(bits >> (18 - 6 * at) & 63));
            digits.take(bytes.len() + 1).chain("==".chars().take(3 - bytes.len())).collect::<String>()
        };
        bytes.chunks(3).map(group).collect()
    }

    fn overlaid(a: &Value, b: &Value) -> Value {
        let (Value::Object(old), Value::Object(new)) = (a, b) else { return b.clone() };
        let mut all = (**old).clone();
        for (key, value) in new.iter() {
            let value = all.get(key).map_or_else(|| value.clone(), |old| overlaid(old, value));
            all.insert(key.clone(), value);
        }
        object(all)
    }

    /// A version as its order: the numbers, then releases after their previews, then what previews say.
    type Version = ([u64; 3], bool, Vec<Identifier>);

    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Identifier {
        Number(u64),
        Text(String),
    }

    fn version(text: &str) -> Option<Version> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (numbers, preview) = text.split_once('-').map_or((text, None), |(text, pre)| (text, Some(pre)));
        let valid = |text: &str| {
            text.split('.')
                .all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'))
        };
        if !build.into_iter().chain(preview).all(valid) {
            return None;
        }
        let digits = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse().ok()).flatten()
        };
        let numbers: Vec<u64> = numbers.split('.').map(digits).collect::<Option<_>>()?;
        let identifier = |part: &str| match digits(part) {
            Some(number) => Identifier::Number(number),
            None => Identifier::Text(part.into()),
        };
        let parts = preview.map(|preview| preview.split('.').map(identifier).collect());
        Some((numbers.try_into().ok()?, preview.is_none(), parts.unwrap_or_default()))
    }

    fn sprintf(format: &str, values: &[Value]) -> Result<String, Fault> {
        let mut values = values.iter();
        let mut out = String::new();
        let mut format = format.chars();
        while let Some(c) = format.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let verb = match format.next() {
                Some('%') => {
                    out.push('%');
                    continue;
                }
                Some(verb @ ('v' | 's' | 'd')) => verb,
                _ => return Err(UNSUPPORTED),
            };
            out += &match (verb, values.next()) {
                (_, None) => format!("%!{verb}(MISSING)"),
                ('s', Some(Value::Int(value))) => format!("%!s(int64={value})"),
                ('d', Some(value)) if !matches!(value, Value::Int(_)) => {
                    format!("%!d(string={})", bare(value)?)
                }
                (_, Some(value)) => bare(value)?,
            };
        }
        if values.next().is_some() { Err(UNSUPPORTED) } else { Ok(out) }
    }

    fn bare(value: &Value) -> Result<String, Fault> {
        match value {
            Value::Str(text) => Ok(text.to_string()),
            _ => inside(value),
        }
    }

    fn inside(value: &Value) -> Result<String, Fault> {
        let all = |values: &mut dyn Iterator<Item = &Value>| -> Result<String, Fault> {
            Ok(values.map(inside).collect::<Result<Vec<_>, _>>()?.join(", "))
        };
        Ok(match value {
            Value::Null => "null".into(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Str(text) => {
                let plain = |c: char| (' '..='~').contains(&c) && c != '"' && c != '\\';
                if !text.chars().all(plain) {
                    return Err(UNSUPPORTED);
                }
                format!("\"{text}\"")
            }
            Value::Array(items) => format!("[{}]", all(&mut items.iter())?),
            Value::Set(members) if members.is_empty() => "set()".into(),
            Value::Set(members) => format!("{{{}}}", all(&mut members.iter())?),
            Value::Object(fields) => {
                let pair = |(key, value)| Ok(format!("{}: {}", inside(key)?, inside(value)?));
                format!("{{{}}}", fields.iter().map(pair).collect::<Result<Vec<_>, Fault>>()?.join(", "))
            }
        })
    }

    fn to_number(text: &str) -> Result<Option<i64>, Fault> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Some).map_err(|_| OVERFLOW);
        }
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let start = unsigned.trim_start_matches(|c: char| c.is_ascii_digit());
        // Rust and Go read decimal floats alike; other forms of Go's begin so.
        let other = start.len() < unsigned.len() && start.contains(['_', 'x', 'X']);
        if other || text.parse::<f64>().is_ok() { Err(UNSUPPORTED) } else { Ok(None) }
    }
}
