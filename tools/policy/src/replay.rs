//! Asking a compiled policy the way a guest does: any entry, with metadata kept from one request to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};

use anyhow::{Context, Result, anyhow, bail};
use parma_guest::policy::engine::{Engine, Outcome};
use parma_guest::policy::state::{Action, Delta};
use parma_guest::policy::value::{Arena, Fault};
use serde::{Deserialize, Deserializer};
use serde_json::{Value as Json, json};

use crate::compile::{self, CompileError, Inputs, compile};
use crate::fragment;
use crate::value::{from_json, to_json};

/// Bytes for one evaluation: far more than a guest gives, since traces may ask anything.
const MEMORY: usize = 16 << 20;

/// A policy that is being asked.
pub struct Session<'p> {
    image: &'p [u8],
    engine: Engine<'p>,
    memory: Vec<u8>,
}

/// What an entry evaluated to.
#[derive(Debug, Clone, PartialEq)]
pub enum Evaluation {
    /// Its value.
    Value(Json),
    /// It has none: the policy does not define it, or no body of it holds.
    Undefined,
    /// It could not be evaluated.
    Fault(Fault),
}

impl<'p> Session<'p> {
    /// Loads and verifies an image. Metadata is what it is in a fresh Linux guest.
    ///
    /// # Errors
    /// If the image is not valid.
    pub fn new(image: &'p [u8]) -> Result<Session<'p>> {
        let engine = Engine::new(image).map_err(|error| anyhow!("the image is not valid: {error:?}"))?;
        Ok(Session { image, engine, memory: vec![0; MEMORY] })
    }

    /// Evaluates `data.<…>` with an input. Metadata stays as it is.
    pub fn evaluate(&mut self, rule: &str, input: Option<&Json>) -> Evaluation {
        let mut arena = Arena::new(&mut self.memory);
        let outcome = self
            .engine
            .evaluate(&mut arena, rule, |arena| input.map(|input| from_json(arena, input)).transpose());
        match outcome {
            Ok(Outcome::Value(value)) => Evaluation::Value(to_json(&self.engine.view(&arena), value)),
            Ok(Outcome::Undefined | Outcome::Missing) => Evaluation::Undefined,
            Err(fault) => Evaluation::Fault(fault),
        }
    }

    /// Evaluates, and if the result allows, does to metadata what it says.
    ///
    /// # Errors
    /// If the result's operations cannot be applied; nothing has changed then.
    pub fn decide(&mut self, rule: &str, input: Option<&Json>) -> Result<Evaluation> {
        let mut arena = Arena::new(&mut self.memory);
        let outcome = self
            .engine
            .evaluate(&mut arena, rule, |arena| input.map(|input| from_json(arena, input)).transpose());
        let value = match outcome {
            Ok(Outcome::Value(value)) => value,
            Ok(Outcome::Undefined | Outcome::Missing) => return Ok(Evaluation::Undefined),
            Err(fault) => return Ok(Evaluation::Fault(fault)),
        };
        let view = self.engine.view(&arena);
        let json = to_json(&view, value);
        if json.get("allowed") != Some(&Json::Bool(true)) {
            return Ok(Evaluation::Value(json));
        }
        if let Some(operations) = view.field(value, "metadata") {
            let failed = |error| anyhow!("{rule}: the result's metadata cannot be applied: {error:?}");
            let delta = self.engine.delta(&view, operations).map_err(failed)?;
            self.engine.commit(delta).map_err(failed)?;
        }
        if let Some(Json::Array(operations)) = json.get("ops") {
            self.patch(operations).with_context(|| format!("{rule}: the result's ops cannot be applied"))?;
        }
        Ok(Evaluation::Value(json))
    }

    /// Puts a fragment in force, as if its signature had been verified. Whether the policy allows it.
    ///
    /// # Errors
    /// It is no fragment, or a limit of the guest is reached. Nothing has changed then.
    pub fn load_fragment(&mut self, image: &[u8], issuer: &str, feed: &str, svn: u32) -> Result<bool> {
        Ok(fragment::load(&mut self.engine, image, issuer, feed, svn)?.is_ok())
    }

    /// Does to `data.pstate` what a JSON patch of its entries says, as policies of other agents return it.
    fn patch(&mut self, operations: &[Json]) -> Result<()> {
        let mut delta = Delta::default();
        let mut arena = Arena::new(&mut self.memory);
        for operation in operations {
            let field = |name: &str| operation.get(name).and_then(Json::as_str);
            let (action, path) = (field("op"), field("path"));
            let key = path.and_then(|path| path.strip_prefix("/pstate/")).filter(|key| !key.contains('/'));
            let key = key.with_context(|| format!("{operation} is not on an entry of /pstate"))?;
            let key = key.replace("~1", "/").replace("~0", "~");
            let view = self.engine.view(&arena);
            let there = view
                .field(self.engine.metadata(), "pstate")
                .is_some_and(|map| view.field(map, &key).is_some());
            let action = match action {
                Some("add") if !there => Action::Add,
                Some("add" | "replace") => Action::Update,
                Some("remove") => Action::Remove,
                _ => bail!("{operation} neither adds, replaces nor removes"),
            };
            let fault = |fault: Fault| anyhow!("{operation}: {fault:?}");
            let value = operation.get("value").cloned().unwrap_or(Json::Null);
            let (key, value) =
                (arena.string(&key).map_err(fault)?, from_json(&mut arena, &value).map_err(fault)?);
            let view = self.engine.view(&arena);
            let pushed = delta.push(&view, action, "pstate", Some(key), value);
            pushed.map_err(|error| anyhow!("{operation}: {error:?}"))?;
        }
        self.engine.commit(delta).map_err(|error| anyhow!("{error:?}"))?;
        Ok(())
    }

    /// All of metadata.
    pub fn metadata(&self) -> Json {
        let mut memory = [];
        let arena = Arena::new(&mut memory);
        to_json(&self.engine.view(&arena), self.engine.metadata())
    }

    /// Replaces all of metadata: an object of maps (objects) and sets (arrays).
    ///
    /// # Errors
    /// If it is something else, or exceeds a limit of the state.
    pub fn set_metadata(&mut self, metadata: &Json) -> Result<()> {
        let Json::Object(maps) = metadata else { bail!("metadata is not an object") };
        let mut engine = Engine::with_empty_state(self.image)
            .map_err(|error| anyhow!("the image is not valid: {error:?}"))?;
        for (name, map) in maps {
            let mut entries: Vec<(Option<&str>, &Json)> = Vec::new();
            match map {
                Json::Object(map) => {
                    entries.extend(map.iter().map(|(key, value)| (Some(key.as_str()), value)))
                }
                Json::Array(members) => entries.extend(members.iter().map(|member| (None, member))),
                _ => bail!("metadata.{name} is neither an object nor an array"),
            }
            for (key, value) in entries {
                let mut arena = Arena::new(&mut self.memory);
                let made = (|| {
                    let key = key.map(|key| arena.string(key)).transpose()?;
                    Ok((key, from_json(&mut arena, value)?))
                })();
                let (key, value) = made.map_err(|fault: Fault| anyhow!("metadata.{name}: {fault:?}"))?;
                let mut delta = Delta::default();
                delta
                    .push(&engine.view(&arena), Action::Add, name, key, value)
                    .and_then(|()| engine.commit(delta))
                    .map_err(|error| anyhow!("metadata.{name}: {error:?}"))?;
            }
        }
        self.engine = engine;
        Ok(())
    }
}

/// A line of a trace. What else it has is passed over.
#[derive(Deserialize)]
struct Request {
    rule: String,
    /// No input is something else than `null`.
    #[serde(default, deserialize_with = "present")]
    input: Option<Json>,
}

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

fn requests(trace: impl BufRead) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let place = || format!("line {} of the trace", number + 1);
        let line = line.with_context(place)?;
        if !line.trim().is_empty() {
            requests.push(serde_json::from_str(&line).with_context(place)?);
        }
    }
    Ok(requests)
}

/// Replays a trace: a line each `{"rule": "data.policy.mount_device", "input": {…}}`; writes a line each
/// `{"defined": bool, "result": …, "metadata": {…}}`, where `metadata` is the whole state afterwards. A
/// result that allows changes it as it says. A fault, or a change that is impossible, is
/// `"defined": false` with an `error`.
///
/// # Errors
/// If a line is no request, the image is not valid, or reading or writing fails.
pub fn replay(image: &[u8], trace: impl BufRead, out: impl Write) -> Result<()> {
    answer(Session::new(image)?, &requests(trace)?, &BTreeMap::new(), out)
}

/// Replays a trace on sources: any rule can be asked, whether or not it is an enforcement point. A rule
/// that does not compile is answered with `"defined": false` and the compiler's `error`. `metadata` and `pstate` in the static
/// data are what is remembered at the start, beside what a fresh guest remembers.
///
/// # Errors
/// As [`replay`], or if the modules do not parse.
pub fn replay_sources(inputs: &Inputs, trace: impl BufRead, out: impl Write) -> Result<()> {
    let requests = requests(trace)?;
    let known = compile::rules(inputs)?;
    let asked: BTreeSet<String> = requests.iter().map(|request| request.rule.clone()).collect();
    let mut entries: Vec<String> = asked.intersection(&known).cloned().collect();
    let mut inputs = inputs.clone();
    requests.iter().filter_map(|request| request.input.as_ref()).for_each(|input| inputs.know(input));
    let inputs = &inputs;
    let with = |entries: Vec<String>| compile(&Inputs { entries, ..inputs.clone() });
    let mut refused: BTreeMap<String, CompileError> = BTreeMap::new();
    let image = match (entries.is_empty(), with(entries.clone())) {
        (false, Ok(compiled)) => compiled.image,
        _ => {
            // One that does not compile does not keep the others from being asked.
            entries.retain(|entry| match with(vec![entry.clone()]) {
                Ok(_) => true,
                Err(error) => {
                    refused.insert(entry.clone(), error);
                    false
                }
            });
            let nothing = [("nothing.rego".to_string(), "package nothing\nnone := null".to_string())];
            let modules = inputs.modules.iter().cloned().chain(nothing).collect();
            entries.push("data.nothing.none".into());
            compile(&Inputs { entries, modules, ..inputs.clone() })?.image
        }
    };
    let mut session = Session::new(&image)?;
    // What is given as data of the memory's names is what the guest remembers at the start.
    let mut memory = session.metadata();
    for (given, into) in [("metadata", ""), ("pstate", "/pstate")] {
        if let Some(Json::Object(given)) = inputs.data.as_ref().and_then(|data| data.get(given)) {
            if memory.pointer(into).is_none() {
                memory["pstate"] = json!({});
            }
            if let Some(Json::Object(memory)) = memory.pointer_mut(into) {
                memory.extend(given.clone());
            }
        }
    }
    if memory != session.metadata() {
        session.set_metadata(&memory).context("data.metadata")?;
    }
    answer(session, &requests, &refused, out)
}

/// Answers each request; `refused` are the rules that do not compile.
fn answer(
    mut session: Session<'_>,
    requests: &[Request],
    refused: &BTreeMap<String, CompileError>,
    mut out: impl Write,
) -> Result<()> {
    for request in requests {
        let evaluation = match refused.get(&request.rule) {
            Some(error) => Err(anyhow!("{error}")),
            None => session.decide(&request.rule, request.input.as_ref()),
        };
        let mut answer = match evaluation {
            Ok(Evaluation::Value(result)) => json!({"defined": true, "result": result}),
            Ok(Evaluation::Undefined) => json!({"defined": false}),
            Ok(Evaluation::Fault(fault)) => json!({"defined": false, "error": format!("fault: {fault:?}")}),
            Err(error) => json!({"defined": false, "error": format!("{error:#}")}),
        };
        answer["metadata"] = session.metadata();
        writeln!(out, "{answer}").context("writing the answers")?;
    }
    Ok(())
}
