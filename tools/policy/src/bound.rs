//! The most expensive requests that a host can send under a policy, and what deciding them takes.
//!
//! A decision has a budget: steps, and memory in which the request itself has to fit. A bound worked out from the code
//! alone, every loop times the longest collection, is hopelessly loose, since nearly all loops end at the first field
//! that no entry allows. So the worst requests are made and asked, of the guest's own machine, and counted.
//!
//! Why these are the worst: what a decision costs grows with the entries that are still possible, and for each of these
//! with the lists of the request: arguments, variables, groups, mounts, layers. A list costs most if it is as long as
//! the wire and the memory allow, and if all before it is allowed, since the first check that fails ends the entry.
//! Of variables, either their number counts (each is looked up in each entry, and names are compared) or their bytes (a
//! pattern reads them all), and whether they are allowed or dropped. So each list is filled, alone and with the others,
//! to several sizes up to all of the memory, with many short elements and with few long ones, allowed and not, in a
//! request that is honest in every other field, where most entries share their layers.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use parma_guest::accounts::MAX_GROUPS;
use parma_guest::gate::ARENA;
use parma_guest::point::Point;
use parma_guest::policy::engine::DEFAULT_FUEL;
use parma_guest::policy::{Arena, Engine, Refusal};
use parma_guest::wire::{MAX_ARGS, MAX_ENV, MAX_LAYERS, MAX_MOUNTS};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::explore::{Honest, items};
use crate::{Inputs, from_json};

/// Groups of entries with the same layers that are looked at, the largest first, and entries of each.
const GROUPS: usize = 2;
const ENTRIES: usize = 2;
/// Bytes that lists are filled to: a part of the memory, and nearly all of it.
const FILLS: [usize; 3] = [ARENA / 4, ARENA / 2, ARENA - ARENA / 8];
/// How far to count beyond what a decision may take.
const BEYOND: u64 = 10;

/// The most expensive request that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Worst {
    /// The point that decides it.
    pub point: &'static str,
    /// What it is, in words.
    pub request: String,
    /// The steps that deciding it takes.
    pub steps: u64,
    /// The memory that it takes, in bytes; rounded up to a kilobyte.
    pub memory: usize,
    /// Requests that were asked.
    pub asked: usize,
}

struct Search<'p> {
    engine: Engine<'p>,
    memory: Vec<u8>,
    worst: Worst,
    input: Json,
}

/// Looks for the most expensive request to the policy that `inputs` are, compiled as `image`.
///
/// # Errors
/// The policy is not valid, or its data cannot be read.
pub fn worst(inputs: &Inputs, image: &[u8]) -> Result<Worst> {
    let honest = Honest::new(inputs)?;
    let mut engine = Engine::new(image).map_err(|error| anyhow!("the image is not valid: {error:?}"))?;
    engine.set_fuel(BEYOND * DEFAULT_FUEL);
    let worst =
        Worst { point: "get_properties", request: "an empty one".into(), steps: 0, memory: 0, asked: 0 };
    let mut search = Search { engine, memory: vec![0; ARENA], worst, input: json!({}) };
    let start = search.engine.memory();
    for point in Point::ALL {
        search.ask(*point, &json!({}), "an empty one");
    }
    for number in 0..honest.external() {
        for (what, input) in filled(&honest.of_external(number)) {
            search.ask(Point::ExecExternal, &input, &what);
        }
    }
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (number, entry) in honest.entries().iter().enumerate() {
        groups.entry(entry["layers"].to_string()).or_default().push(number);
    }
    let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.len()));
    for group in groups.iter().take(GROUPS) {
        search.engine.set_memory(start.clone());
        for (point, input) in honest.overlay(group[0]) {
            search.follow(point, &input);
        }
        let paths = vec!["/run/mounts/scsi/m0"; MAX_LAYERS];
        let input =
            json!({"containerID": "c".repeat(64), "layerPaths": paths, "target": "/run/gcs/c/x/rootfs"});
        search.ask(Point::MountOverlay, &input, "as many layers as a request has");
        let prepared = search.engine.memory();
        // The entry with most rules, and the last one: the others are before it.
        let rules = |number: &usize| items(&honest.entries()[*number]["env_rules"]).len();
        let mut chosen = vec![*group.iter().max_by_key(|number| rules(number)).unwrap_or(&group[0])];
        chosen.extend(group.last());
        chosen.dedup();
        for number in chosen.into_iter().take(ENTRIES) {
            let name = honest.name(number);
            search.engine.set_memory(prepared.clone());
            let Some(creation) = honest.creation(number) else { continue };
            for (what, input) in filled(&creation) {
                search.ask(Point::CreateContainer, &input, &format!("{what}; otherwise what {name} allows"));
            }
            for (what, environment) in honest.environments(number) {
                let mut input = creation.clone();
                input["envList"] = environment;
                search.ask(Point::CreateContainer, &input, &format!("{what}; otherwise what {name} allows"));
            }
            search.follow(Point::CreateContainer, &creation);
            let many: Vec<String> = (0..MAX_ARGS).map(|_| "a".repeat(24)).collect();
            let signal = json!({"containerID": creation["containerID"], "signal": 9, "isInitProcess": false, "argList": many});
            search.ask(Point::SignalContainerProcess, &signal, "as many arguments as fit");
            let Some(execution) = honest.execution(number) else { continue };
            for (what, input) in filled(&execution) {
                search.ask(Point::ExecInContainer, &input, &format!("{what}; otherwise what {name} allows"));
            }
        }
    }
    Ok(search.finish())
}

impl Search<'_> {
    /// Counts what deciding a request takes.
    fn ask(&mut self, point: Point, input: &Json, what: &str) {
        let arena = &mut Arena::new(&mut self.memory);
        // Whatever the answer is, it was paid for.
        let _ = self.engine.decide(arena, point, |arena| from_json(arena, input));
        self.worst.asked += 1;
        let steps = self.engine.spent();
        if steps > self.worst.steps {
            self.worst = Worst { point: point.name(), request: what.to_string(), steps, ..self.worst };
            self.input = input.clone();
            self.worst.memory = self.needed(point, input);
        }
    }

    /// The memory that a decision needs to come out as it does, in bytes.
    fn needed(&mut self, point: Point, input: &Json) -> usize {
        let mut ask = |kilobytes: usize| {
            let arena = &mut Arena::new(&mut self.memory[..kilobytes << 10]);
            match self.engine.decide(arena, point, |arena| from_json(arena, input)) {
                Ok(_) => "allowed".to_string(),
                Err(Refusal::Denied(reasons)) => format!("{:?}", reasons.iter().collect::<Vec<_>>()),
                Err(refusal) => format!("{refusal:?}"),
            }
        };
        let (mut low, mut high) = (0, ARENA >> 10);
        let answer = ask(high);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if ask(middle) == answer { high = middle } else { low = middle }
        }
        high << 10
    }

    /// Asks, and does what the policy then says.
    fn follow(&mut self, point: Point, input: &Json) {
        let arena = &mut Arena::new(&mut self.memory);
        if let Ok(decision) = self.engine.decide(arena, point, |arena| from_json(arena, input)) {
            // Where it cannot be done, later requests are denied sooner.
            let _ = self.engine.commit(decision.delta);
        }
    }

    fn finish(self) -> Worst {
        self.worst
    }
}

/// A request with its lists filled.
fn filled(honest: &Json) -> Vec<(String, Json)> {
    let mut list = vec![("an honest request".to_string(), honest.clone())];
    let has = |field: &str| honest[field].is_array();
    let room = |fill: usize, count: usize| (fill / count).saturating_sub(40).clamp(1, 4000);
    for fill in FILLS {
        let kilobytes = fill >> 10;
        let with = |field: &str, count: usize, element: &dyn Fn(usize, usize) -> Json| {
            let size = room(fill, count);
            let elements = items(&honest[field]).iter().cloned();
            let elements: Vec<Json> =
                elements.chain((0..count).map(|number| element(number, size))).collect();
            json!(elements)
        };
        let mut all = honest.clone();
        let mut fill_in = |field: &str, what: &str, value: Json| {
            let mut changed = honest.clone();
            changed[field] = value.clone();
            all[field] = value;
            list.push((format!("{kilobytes} KiB of {what}"), changed));
        };
        let variable = |number: usize, size: usize| json!(format!("V{number}={}", "x".repeat(size)));
        if has("envList") {
            let used = items(&honest["envList"]).len();
            fill_in(
                "envList",
                "variables that no rule allows, many",
                with("envList", MAX_ENV - used.min(MAX_ENV), &variable),
            );
            fill_in("envList", "variables that no rule allows, long", with("envList", 12, &variable));
        }
        if has("argList") {
            let argument = |_: usize, size: usize| json!("x".repeat(size));
            fill_in("argList", "arguments", with("argList", MAX_ARGS / 2, &argument));
        }
        if has("groups") {
            let group =
                |number: usize, size: usize| json!({"id": number.to_string(), "name": "g".repeat(size)});
            fill_in("groups", "groups", with("groups", MAX_GROUPS, &group));
            // The same ones again: all of them are allowed.
            let allowed = items(&honest["groups"]).iter().cycle().take(MAX_GROUPS).cloned().collect();
            fill_in("groups", "allowed groups", allowed);
        }
        if has("mounts") {
            let mount = |number: usize, size: usize| json!({"type": "bind", "destination": format!("/{number}"), "source": "s".repeat(size), "options": ["rbind", "ro"]});
            fill_in("mounts", "mounts", with("mounts", MAX_MOUNTS, &mount));
        }
        // The command comes first: if it is wrong, the rest is not looked at.
        if has("argList") {
            all["argList"] = honest["argList"].clone();
        }
        list.push((format!("{kilobytes} KiB of every list"), all));
    }
    list
}
