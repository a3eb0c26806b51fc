//! The inductive proof, made visible: every state that a compiled policy can be brought into, and what it then decides.
//!
//! The paper's argument is an induction: the state that is attested is safe, and each transition that the attested
//! policy allows leads from a safe state to a safe one. [`explore`] does that induction by exhaustion. It starts where
//! a guest starts, asks the real machine ([`Engine`]) everything of `requests` that a host may ask, follows what is
//! allowed, and goes on until no new state turns up. In each step it checks the promises of [`Invariant`] against
//! `world`, another memory of the same guest, and `reading`, another reading of the same policy; neither shares code
//! with the framework that decides.
//!
//! What it proves is bounded, and [`Exploration`] says by what: a number of container ids, a shape of what is mounted
//! at once, examples of what patterns accept. Two states that differ in names of ids and mount points only are one.
//! Parts of a guest that no decision connects are explored one beside the other (`apart`), not all their states with all.
//!
//! The policy is asked by itself. What the guest's gate refuses before it asks the policy (an id that was used, a
//! device that is in use) is not counted on.

mod apart;
mod offer;
mod pattern;
mod reading;
mod requests;
mod world;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;

use anyhow::{Context, Result, anyhow, bail};
use parma_guest::gate::ARENA;
use parma_guest::point::Point;
use parma_guest::policy::engine::Memory;
use parma_guest::policy::{Arena, Engine, Refusal};
use serde::Serialize;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use crate::{Evaluation, Inputs, Session, compile, fragment, from_json, host_data, to_json};
use apart::Apart;
use offer::Offer;
use reading::Reading;
pub(crate) use reading::items;
pub(crate) use requests::Honest;
use requests::{Request, Requests};
use world::{World, result_of};

pub use apart::Part;
pub use world::Invariant;

/// The rule of the customer's assertions.
const ASSERTION: &str = "data.assertions.deny";

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub enum Policy<'p> {
    /// A policy's source.
    Source(&'p Inputs),
    /// A compiled policy. Its entries are read from its constants; what its flags are cannot be.
    Image(&'p [u8]),
}

/// How far to look.
#[derive(Debug, Clone, Serialize)]
pub struct Bounds {
    /// Container ids, 1 to 4.
    pub ids: usize,
    /// Layer devices that are mounted beside those of one entry, which are mounted from the bottom up.
    pub extra_devices: usize,
    /// Writable devices, scratch spaces and shares at once.
    pub others: usize,
    /// States after which to give up.
    pub states: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { ids: 2, extra_devices: 1, others: 1, states: 200_000 }
    }
}

/// How far an exploration is.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// States found.
    pub states: usize,
    /// Those of them that still have to be looked at.
    pub waiting: usize,
    /// Requests asked.
    pub requests: u64,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Exploration {
    /// HOST_DATA of the image that was asked, in hex.
    pub host_data: String,
    /// Whether every state within the bounds was looked at, and no promise was broken.
    pub holds: bool,
    /// Different states, the first included; those of each walk.
    pub states: usize,
    /// Requests asked in them.
    pub requests: u64,
    /// Those that were allowed.
    pub allowed: u64,
    /// Steps to the farthest state.
    pub steps: u32,
    /// Whether every state within the bounds was looked at.
    pub complete: bool,
    /// Allowed requests that lead out of the bounds; their decisions were checked, what comes after was not.
    pub outside: u64,
    /// What was explored together. No decision depends on what is in two of them, or changes it.
    pub walks: Vec<Walked>,
    /// What decisions depend on, or change, that their request does not name: the point, and the map of the memory.
    /// Where there is none, more containers, devices and scratch spaces than the bounds have change no decision. `None`
    /// where decisions were not looked into, because there are fragments.
    pub beyond: Option<Vec<(&'static str, String)>>,
    /// The bounds.
    pub bounds: Bounds,
    /// What else was not looked at.
    pub notes: Vec<String>,
    /// The shortest way to a broken promise.
    pub violation: Option<Violation>,
    #[serde(skip)]
    graph: Graph,
}

/// One walk through states.
#[derive(Debug, Clone, Serialize)]
pub struct Walked {
    /// The parts of a guest that exist in them.
    pub parts: BTreeSet<Part>,
    /// Different states, the first included.
    pub states: usize,
}

/// A broken promise.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// How.
    pub message: String,
    /// The requests that lead to it, the last of which breaks it: a trace for `parma policy replay`.
    pub trace: Vec<Json>,
}

/// States, and which point leads from one to another.
#[derive(Debug, Clone, Default)]
struct Graph {
    labels: Vec<String>,
    edges: BTreeMap<(usize, usize), Vec<&'static str>>,
}

/// How a state was first reached.
struct Node {
    parent: u32,
    /// The number of the request in the parent's list.
    request: u32,
    steps: u32,
}

/// The customer's assertions, compiled.
struct Assertions {
    session: Session<'static>,
}

/// What every walk works with.
struct Explorer<'p> {
    image: &'p [u8],
    policy: &'p Reading,
    requests: &'p Requests<'p>,
    fragments: &'p [Vec<u8>],
    bounds: &'p Bounds,
    assertions: Option<Assertions>,
    apart: Apart<'p>,
    /// States and requests of the walks that are over.
    before: (usize, u64),
}

/// A walk through the states in which some parts of a guest exist.
struct Walk {
    nodes: Vec<Node>,
    requests: u64,
    allowed: u64,
    outside: u64,
    /// States that were found and not looked at.
    left: usize,
    graph: Graph,
    violation: Option<Violation>,
}

/// Explores a policy, and what it becomes with these fragments (images), which a host may bring at any time, signed by
/// whoever the policy names. `assertions` are name and text of a module `package assertions`.
///
/// # Errors
/// The policy or the assertions do not compile, an assertion cannot be evaluated, an image has no entries that can
/// be read, or a fragment is none.
pub fn explore(
    policy: Policy<'_>,
    fragments: &[Vec<u8>],
    assertions: Option<&(String, String)>,
    bounds: &Bounds,
    progress: &mut dyn FnMut(Progress),
) -> Result<Exploration> {
    let (image, reading) = match policy {
        Policy::Source(inputs) => (compile(inputs)?.image, Reading::new(inputs)?),
        Policy::Image(image) => (image.to_vec(), Reading::of_image(image)?),
    };
    let reading = reading.with_fragments(fragments)?;
    let assertions = assertions.map(|module| Assertions::new(policy, module)).transpose()?;
    let requests = Requests::new(&reading, bounds.ids.clamp(1, 4));
    let mut explorer = Explorer {
        image: &image,
        policy: &reading,
        requests: &requests,
        fragments,
        bounds,
        assertions,
        apart: Apart::new(&image, !reading.offers.is_empty())?,
        before: (0, 0),
    };

    // Each part by itself; and together what turns out to belong together.
    let mut walks: BTreeMap<BTreeSet<Part>, Walk> = BTreeMap::new();
    loop {
        let apart = explorer.apart.together();
        walks.retain(|parts, _| apart.contains(parts));
        let Some(parts) = apart.iter().find(|parts| !walks.contains_key(parts)) else { break };
        let walk = explorer.walk(parts, progress)?;
        explorer.before.0 += walk.nodes.len();
        explorer.before.1 += walk.requests;
        walks.insert(parts.clone(), walk);
    }

    let mut found = Exploration {
        host_data: host_data(&image).iter().map(|byte| format!("{byte:02x}")).collect(),
        holds: false,
        states: 0,
        requests: 0,
        allowed: 0,
        steps: 0,
        complete: true,
        outside: 0,
        walks: Vec::new(),
        beyond: explorer
            .apart
            .looks()
            .then(|| explorer.apart.beyond().map(|(point, map)| (point.name(), map)).collect()),
        bounds: bounds.clone(),
        notes: reading.notes(),
        violation: None,
        graph: Graph::default(),
    };
    for (parts, walk) in walks {
        found.requests += walk.requests;
        found.allowed += walk.allowed;
        found.outside += walk.outside;
        found.steps = found.steps.max(walk.nodes.iter().map(|node| node.steps).max().unwrap_or(0));
        found.complete &= walk.violation.is_none() && walk.left == 0;
        if walk.left > 0 {
            found.notes.push(format!("gave up with {} states still to look at", walk.left));
        }
        let from = found.graph.labels.len();
        found.graph.labels.extend(walk.graph.labels);
        let edges = walk.graph.edges.into_iter();
        found.graph.edges.extend(edges.map(|((a, b), names)| ((a + from, b + from), names)));
        found.states += walk.nodes.len();
        found.walks.push(Walked { parts, states: walk.nodes.len() });
        let shorter = |this: &Violation| {
            found.violation.as_ref().is_none_or(|other| this.trace.len() < other.trace.len())
        };
        if walk.violation.as_ref().is_some_and(shorter) {
            found.violation = walk.violation;
        }
    }
    found.holds = found.complete;
    for pattern in requests.unexplored.borrow().iter() {
        found.notes.push(format!("no example of the pattern {pattern:?} could be made"));
    }
    Ok(found)
}

impl Explorer<'_> {
    /// Looks at every state in which nothing but these parts exists.
    fn walk(&mut self, parts: &BTreeSet<Part>, progress: &mut dyn FnMut(Progress)) -> Result<Walk> {
        let Self { image, policy, requests, fragments, bounds, .. } = *self;
        let mut engine = Engine::new(image).map_err(|error| anyhow!("the image is not valid: {error:?}"))?;
        let mut memory = vec![0; ARENA];
        let arena = &mut Arena::new(&mut memory);
        let mut walk = Walk {
            nodes: vec![Node { parent: 0, request: 0, steps: 0 }],
            requests: 0,
            allowed: 0,
            outside: 0,
            left: 0,
            graph: Graph::default(),
            violation: None,
        };
        let mut known: HashMap<[u8; 32], usize> = HashMap::new();
        let mut waiting: VecDeque<(u32, Memory<'_>, World)> = VecDeque::new();
        let start = World::default();
        known.insert(key(&metadata(&engine), &start, bounds.ids), 0);
        walk.graph.labels.push(start.summary());
        waiting.push_back((0, engine.memory(), start));

        let broken = 'search: loop {
            let Some((number, memory_then, world)) = waiting.pop_front() else { break None };
            engine.set_memory(memory_then);
            let before = metadata(&engine);
            self.apart.hold(&before);
            if engine.ready(arena)
                && let Some(message) = world.unready(policy)
            {
                break Some((number, None, Invariant::ObligationsAreMet, message));
            }
            let list = requests.of(&world, &before);
            for (index, (point, input)) in (0..).zip(&list) {
                walk.requests += 1;
                if walk.requests.is_multiple_of(1024) {
                    progress(Progress {
                        states: self.before.0 + walk.nodes.len(),
                        waiting: waiting.len(),
                        requests: self.before.1 + walk.requests,
                    });
                }
                let decision = engine.decide(arena, *point, |arena| from_json(arena, input));
                let verdict = match &decision {
                    Ok(_) => Some(true),
                    Err(Refusal::Fault(_)) => None,
                    Err(_) => Some(false),
                };
                self.apart.look(*point, input, &before, verdict)?;
                let decision = match decision {
                    Ok(decision) => decision,
                    Err(_) => {
                        if let Some(assertions) = &mut self.assertions {
                            let result = json!({"allowed": false, "fault": verdict.is_none()});
                            if let Some(message) =
                                assertions.ask(point.name(), input, &result, &before, &before)?
                            {
                                break 'search Some((number, Some(index), Invariant::Assertion, message));
                            }
                        }
                        continue;
                    }
                };
                walk.allowed += 1;
                let result = result_of(&decision);
                let mut next = world.clone();
                if let Err((invariant, message)) = next.allow(policy, *point, input, &result) {
                    let message = format!("{} is allowed: {message}", point.name());
                    break 'search Some((number, Some(index), invariant, message));
                }
                let undo =
                    engine.commit(decision.delta).map_err(|error| anyhow!("{}: {error:?}", point.name()))?;
                let after = metadata(&engine);
                if let Some(assertions) = &mut self.assertions
                    && let Some(message) = assertions.ask(point.name(), input, &result, &before, &after)?
                {
                    break 'search Some((number, Some(index), Invariant::Assertion, message));
                }
                match within(policy, &next, parts, bounds) {
                    Within::Yes => {
                        let key = key(&after, &next, bounds.ids);
                        if walk.step(&mut known, key, (number, index), point.name(), &next) {
                            waiting.push_back((walk.newest(), engine.memory(), next));
                        }
                    }
                    Within::No => walk.outside += 1,
                    Within::OtherWalk => {}
                }
                engine.rollback(undo).map_err(|error| anyhow!("an undo failed: {error:?}"))?;
            }
            for (index, (offer, svn)) in (list.len() as u32..).zip(requests.loads(&world)) {
                walk.requests += 1;
                let Offer { issuer, feed, content, .. } = &policy.offers[offer];
                let memory_then = engine.memory();
                if fragment::load(&mut engine, &fragments[*content], issuer, feed, svn)?.is_err() {
                    continue;
                }
                walk.allowed += 1;
                let mut next = world.clone();
                if let Err((invariant, message)) = next.load(policy, offer, svn) {
                    break 'search Some((number, Some(index), invariant, message));
                }
                let after = metadata(&engine);
                if let Some(assertions) = &mut self.assertions {
                    let input = fragment::request(issuer, feed, svn, true);
                    let result = json!({"allowed": true});
                    let point = Point::LoadFragment.name();
                    if let Some(message) = assertions.ask(point, &input, &result, &before, &after)? {
                        break 'search Some((number, Some(index), Invariant::Assertion, message));
                    }
                }
                let key = key(&after, &next, bounds.ids);
                if walk.step(&mut known, key, (number, index), Point::LoadFragment.name(), &next) {
                    waiting.push_back((walk.newest(), engine.memory(), next));
                }
                engine.set_memory(memory_then);
            }
            // Denied requests and undone ones: all that was asked here left no trace.
            if metadata(&engine) != before {
                let message = "what was denied or undone here is remembered".to_string();
                break Some((number, None, Invariant::DenialsChangeNothing, message));
            }
            if self.before.0 + walk.nodes.len() >= bounds.states && !waiting.is_empty() {
                walk.left = waiting.len();
                break None;
            }
        };
        if let Some((state, request, invariant, message)) = broken {
            let trace = self.trace(&walk.nodes, state, request)?;
            walk.violation = Some(Violation { invariant, message, trace });
        }
        Ok(walk)
    }
}

impl Walk {
    /// Takes note of a step to a state, given by its key. Whether the state is new.
    fn step(
        &mut self,
        known: &mut HashMap<[u8; 32], usize>,
        key: [u8; 32],
        (from, request): (u32, u32),
        point: &'static str,
        world: &World,
    ) -> bool {
        let new = self.nodes.len();
        let to = *known.entry(key).or_insert(new);
        if to == new {
            let steps = self.nodes[from as usize].steps + 1;
            self.graph.labels.push(world.summary());
            self.nodes.push(Node { parent: from, request, steps });
        }
        let names = self.graph.edges.entry((from as usize, to)).or_default();
        if !names.contains(&point) {
            names.push(point);
        }
        to == new
    }

    /// The number of the state that was found last.
    fn newest(&self) -> u32 {
        // There are far fewer than `Bounds::states` can say.
        u32::try_from(self.nodes.len() - 1).unwrap_or(u32::MAX)
    }
}

impl Explorer<'_> {
    /// The requests on the shortest way to a state, and one more in it.
    fn trace(&self, nodes: &[Node], state: u32, last: Option<u32>) -> Result<Vec<Json>> {
        let Self { image, policy, requests, fragments, .. } = *self;
        let mut way: Vec<u32> = last.into_iter().collect();
        let mut at = state as usize;
        while at != 0 {
            way.push(nodes[at].request);
            at = nodes[at].parent as usize;
        }
        let mut engine = Engine::new(image).map_err(|error| anyhow!("the image is not valid: {error:?}"))?;
        let mut memory = vec![0; ARENA];
        let arena = &mut Arena::new(&mut memory);
        let mut world = World::default();
        let mut trace = Vec::new();
        let unrepeatable =
            |(_, message): (Invariant, String)| anyhow!("the search is not repeatable: {message}");
        for (index, request) in way.iter().rev().enumerate() {
            let list = requests.of(&world, &metadata(&engine));
            let is_last = index + 1 == way.len();
            let Some((point, input)): Option<&Request> = list.get(*request as usize) else {
                let loads = requests.loads(&world);
                let (offer, svn) =
                    loads.get(*request as usize - list.len()).context("the search is not repeatable")?;
                let Offer { issuer, feed, content, .. } = &policy.offers[*offer];
                let mut input = fragment::request(issuer, feed, *svn, true);
                input["fragment"] = policy.contents[*content].shown().clone();
                trace.push(json!({"rule": Point::LoadFragment.entry(), "input": input}));
                if !is_last && fragment::load(&mut engine, &fragments[*content], issuer, feed, *svn)?.is_ok()
                {
                    world.load(policy, *offer, *svn).map_err(unrepeatable)?;
                }
                continue;
            };
            trace.push(json!({"rule": point.entry(), "input": **input}));
            if !is_last && let Ok(decision) = engine.decide(arena, *point, |arena| from_json(arena, input)) {
                world.allow(policy, *point, input, &result_of(&decision)).map_err(unrepeatable)?;
                engine.commit(decision.delta).map_err(|error| anyhow!("{}: {error:?}", point.name()))?;
            }
        }
        Ok(trace)
    }
}

/// All that the policy remembers.
fn metadata(engine: &Engine<'_>) -> Json {
    let mut memory = [];
    let arena = Arena::new(&mut memory);
    to_json(&engine.view(&arena), engine.metadata())
}

/// Where a state belongs.
enum Within {
    Yes,
    /// Another walk goes through the states in which this exists.
    OtherWalk,
    /// Beyond the bounds.
    No,
}

/// Whether a state is one of the walk through these parts, and within the bounds.
fn within(policy: &Reading, world: &World, parts: &BTreeSet<Part>, bounds: &Bounds) -> Within {
    let exists = |part: Part| match part {
        Part::Containers => !world.devices.is_empty() || !world.containers.is_empty(),
        Part::Writable => !world.writable.is_empty(),
        Part::Scratch => !world.scratch.is_empty(),
        Part::Shares => !world.shares.is_empty(),
    };
    if Part::ALL.into_iter().any(|part| exists(part) && !parts.contains(&part)) {
        return Within::OtherWalk;
    }
    if world.writable.len() + world.scratch.len() + world.shares.len() > bounds.others {
        return Within::No;
    }
    let mounted: Vec<&String> = world.devices.values().collect();
    // Devices from the bottom of an entry's layers upwards, and some others.
    let beside = |entry: &Json| {
        let mut others = mounted.clone();
        for layer in items(&entry["layers"]) {
            match others.iter().position(|hash| *layer == ***hash) {
                Some(at) => drop(others.swap_remove(at)),
                None => break,
            }
        }
        others.len()
    };
    let least = policy.containers.iter().map(beside).min();
    if least.unwrap_or(mounted.len()) <= bounds.extra_devices { Within::Yes } else { Within::No }
}

/// A state up to the names of ids and mount points.
fn key(metadata: &Json, world: &World, ids: usize) -> [u8; 32] {
    let mut text = json!([metadata, world]).to_string();
    // Mount points in the order of what is there.
    let mut devices: Vec<(&String, String)> = world
        .devices
        .iter()
        .map(|(path, hash)| (path, format!("{hash} {}", metadata["devices"][path])))
        .collect();
    devices.sort_by(|one, other| one.1.cmp(&other.1));
    for (number, (path, _)) in devices.iter().enumerate() {
        text = text.replace(&format!("\"{path}\""), &format!("\"@{number:02}\""));
    }
    let used = world.containers.len().min(ids);
    let names: Vec<String> = world.containers.keys().take(used).cloned().collect();
    let renamed = permutations(names.len()).into_iter().map(|order| {
        let mut text = text.clone();
        for (name, place) in names.iter().zip(&order) {
            text = text.replace(name, &format!("#{place}"));
        }
        // Maps were sorted by the old names.
        let sorted: Json = serde_json::from_str(&text).unwrap_or(Json::String(text));
        sorted.to_string()
    });
    Sha256::digest(renamed.min().unwrap_or(text)).into()
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = permutations(count - 1);
    let insert = |order: &Vec<usize>, at: usize| {
        let mut longer = order.clone();
        longer.insert(at, count - 1);
        longer
    };
    shorter.iter().flat_map(|order| (0..count).map(move |at| insert(order, at))).collect()
}

impl Assertions {
    fn new(policy: Policy<'_>, module: &(String, String)) -> Result<Assertions> {
        let inputs = match policy {
            Policy::Source(inputs) => {
                let mut inputs = inputs.clone();
                inputs.modules.push(module.clone());
                inputs
            }
            Policy::Image(_) => Inputs::policy(&module.0, &module.1),
        };
        let inputs = Inputs { entries: vec![ASSERTION.into()], ..inputs };
        let image = compile(&inputs).context("the assertions")?.image;
        // A session borrows its image, and there is one for as long as the program runs.
        Ok(Assertions { session: Session::new(image.leak())? })
    }

    /// What the assertions say against a decision.
    fn ask(
        &mut self,
        point: &str,
        request: &Json,
        decision: &Json,
        state: &Json,
        after: &Json,
    ) -> Result<Option<String>> {
        let input =
            json!({"point": point, "request": request, "decision": decision, "state": state, "after": after});
        let texts: Vec<String> = match self.session.evaluate(ASSERTION, Some(&input)) {
            Evaluation::Undefined | Evaluation::Value(Json::Bool(false)) => Vec::new(),
            Evaluation::Value(Json::Bool(true)) => vec!["deny is true".into()],
            Evaluation::Value(Json::Array(messages)) => messages
                .iter()
                .map(|message| message.as_str().map_or_else(|| message.to_string(), str::to_string))
                .collect(),
            other => bail!("{ASSERTION} is neither a set of messages nor a boolean: {other:?}; for {input}"),
        };
        let answer = if decision["allowed"] == true { "allowed" } else { "denied" };
        Ok((!texts.is_empty()).then(|| format!("{point} is {answer}: {}", texts.join("; "))))
    }
}

impl Exploration {
    /// The states and what leads from one to another, for Graphviz.
    #[must_use]
    pub fn dot(&self) -> String {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let mut text =
            String::from("digraph policy {\n\trankdir=LR\n\tnode [shape=box, fontname=monospace]\n");
        for (number, label) in self.graph.labels.iter().enumerate() {
            text += &format!("\ts{number} [label=\"{}\"]\n", quoted(label));
        }
        for ((from, to), names) in &self.graph.edges {
            text += &format!("\ts{from} -> s{to} [label=\"{}\"]\n", names.join("\\n"));
        }
        text + "}\n"
    }
}

impl fmt::Display for Exploration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exploration { states, requests, allowed, steps, outside, bounds, .. } = self;
        writeln!(f, "HOST_DATA   {}", self.host_data)?;
        writeln!(f, "states      {states}, the farthest {steps} steps from the start")?;
        for Walked { parts, states } in self.walks.iter().filter(|_| self.walks.len() > 1) {
            let parts: Vec<&str> = parts.iter().map(|part| part.text()).collect();
            writeln!(f, "            {states} of {}", parts.join(", "))?;
        }
        writeln!(f, "requests    {requests}, of which {allowed} were allowed")?;
        writeln!(
            f,
            "bounds      {} container ids; devices of one entry from the bottom up and {} beside them; {} writable device, scratch space or share at once; one example of each pattern",
            bounds.ids, bounds.extra_devices, bounds.others
        )?;
        writeln!(f, "outside     {outside} allowed requests led out of the bounds and were not followed")?;
        if self.beyond.as_ref().is_some_and(Vec::is_empty) {
            writeln!(
                f,
                "apart       each decision depends on what its request names and on nothing else: other containers, devices and scratch spaces, however many, change none"
            )?;
        }
        let mut maps: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        self.beyond.iter().flatten().for_each(|(point, map)| maps.entry(map).or_default().push(point));
        for (map, points) in maps {
            writeln!(f, "connected   all of `{map}` matters to {}", points.join(", "))?;
        }
        for note in &self.notes {
            writeln!(f, "note        {note}")?;
        }
        match &self.violation {
            Some(violation) => writeln!(
                f,
                "BROKEN      {}, after {} steps\n            {}",
                violation.invariant.text(),
                violation.trace.len(),
                violation.message
            ),
            None if self.holds => writeln!(f, "holds       in every state within the bounds"),
            None => writeln!(f, "unfinished  nothing is broken so far; this is no proof"),
        }
    }
}
