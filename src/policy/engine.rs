//! The engine: a verified image, its state, and decisions.
//!
//! [`Engine::decide`] changes nothing. It returns what the policy says and the [`Delta`] that has
//! to be committed once the allowed action has succeeded.

use alloc::string::String;
use alloc::vec::Vec;

use super::format::{Image, ImageError};
use super::machine::{Context, Machine, Patterns};
use super::reason::{Reason, Reasons};
use super::state::{Action, Delta, Pinned, State, StateError, Undo};
use super::value::{Arena, Fault, Fuel, Value, View};
use crate::point::Point;

/// Fuel of one decision unless its engine says otherwise, in steps: one an instruction, one an
/// element that a builtin visits, one for sixteen bytes copied or compared, one a byte matched.
pub const DEFAULT_FUEL: u64 = 20_000_000;

/// The entry that is asked for the reasons of a denial.
const REASON_ENTRY: &str = "data.policy.reason";
/// The entry that says whether everything runs that has to; only a policy that obliges to something has it.
const READY_ENTRY: &str = "data.framework.ready";

/// A loaded policy and its memory.
#[derive(Debug)]
pub struct Engine<'p> {
    image: Image<'p>,
    machine: Machine,
    pub(super) state: State,
    fragments: Vec<Patterns<'p>>,
    fuel: u64,
    spent: u64,
}

/// What an engine remembers: the state, and the fragments in force.
#[derive(Clone, Debug)]
pub struct Memory<'p> {
    state: State,
    fragments: Vec<Patterns<'p>>,
}

/// What a policy that allows says.
#[derive(Debug, Default)]
pub struct Decision {
    /// `env_list`: the environment to keep. `None` where the rule has none or `null`.
    pub env: Option<Vec<String>>,
    /// `caps_list`: the capabilities to keep.
    pub capabilities: Option<Capabilities>,
    /// `allow_stdio_access`.
    pub allow_stdio: Option<bool>,
    /// `output_waits`: whether output that nobody reads waits, and the process with it.
    pub output_waits: Option<bool>,
    /// `panic_on_corruption`: whether the machine ends when a block of the device does not match its root hash.
    pub panic_on_corruption: Option<bool>,
    /// `parameters`: what a fragment is to be worked out with, once for each; an array, still in the arena.
    pub parameters: Option<Value>,
    /// `settings`: what the guest gives the container, still in the arena, as the next two are.
    pub settings: Option<Value>,
    /// `pod`: what it gives all containers together.
    pub pod: Option<Value>,
    /// `seccomp`: the container's filter of system calls.
    pub seccomp: Option<Value>,
    /// `metadata`: to be committed when the action has succeeded.
    pub delta: Delta,
}

/// Capability sets by the names that policies use, `CAP_CHOWN` for instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "capabilities(7) explains the five sets")]
pub struct Capabilities {
    pub ambient: Vec<String>,
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
}

/// Why nothing is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy has no such rule (difference D1), or none of its bodies holds.
    Undefined,
    /// The policy denies.
    Denied(Reasons),
    /// The policy could not be evaluated, or its answer is no answer.
    Fault(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal::Fault(fault)
    }
}

/// What evaluating an entry comes to, faults aside.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// The image has no such entry.
    Missing,
    /// It has no value.
    Undefined,
    /// Its value, to be read with [`Engine::view`] and the same arena.
    Value(Value),
}

impl<'p> Engine<'p> {
    /// Verifies an image and starts with the state of a fresh Linux guest:
    /// `{"operatingsystem": {"ostype": "linux"}}`.
    pub fn new(image: &'p [u8]) -> Result<Engine<'p>, ImageError> {
        let mut engine = Engine::with_empty_state(image)?;
        let mut memory = [0; 64];
        let mut arena = Arena::new(&mut memory);
        let mut delta = Delta::default();
        let strings = arena.string("ostype").and_then(|key| Ok((key, arena.string("linux")?)));
        let (key, value) = strings.map_err(|_| ImageError::Memory)?;
        let view = engine.view(&arena);
        let pushed = delta.push(&view, Action::Add, "operatingsystem", Some(key), value);
        pushed.and_then(|()| engine.commit(delta)).map_err(|_| ImageError::Memory)?;
        Ok(engine)
    }

    /// The same with a state that has no maps.
    pub fn with_empty_state(image: &'p [u8]) -> Result<Engine<'p>, ImageError> {
        let image = Image::read(image)?;
        let machine = Machine::new(&image)?;
        Ok(Engine {
            image,
            machine,
            state: State::default(),
            fragments: Vec::new(),
            fuel: DEFAULT_FUEL,
            spent: 0,
        })
    }

    /// Sets the fuel of each decision.
    pub fn set_fuel(&mut self, fuel: u64) {
        self.fuel = fuel;
    }

    /// Steps that the last decision took: for the answer, or for the reasons of a denial, whichever was more.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// The image.
    pub fn image(&self) -> &Image<'p> {
        &self.image
    }

    /// Asks the policy. `input` makes the input object in the arena, which is emptied before.
    ///
    /// Nothing has changed when this returns, whatever it returns.
    pub fn decide(
        &mut self,
        arena: &mut Arena<'_>,
        point: Point,
        input: impl FnOnce(&mut Arena<'_>) -> Result<Value, Fault>,
    ) -> Result<Decision, Refusal> {
        arena.reset();
        self.spent = 0;
        let mut fuel = Fuel(self.fuel);
        let input = input(arena)?;
        let mark = arena.used();
        let result = match self.run(arena, point.entry(), Some(input), &mut fuel)? {
            Outcome::Value(result) => result,
            Outcome::Missing | Outcome::Undefined => return Err(Refusal::Undefined),
        };
        match self.view(arena).field(result, "allowed") {
            Some(Value::True) => {}
            Some(Value::False) => {
                arena.release(mark);
                return Err(Refusal::Denied(self.reasons(arena, point, input)));
            }
            _ => return Err(Fault::Result.into()),
        }
        let decision = Decision::read(&self.view(arena), result)?;
        self.state.check(&self.image, &decision.delta).map_err(Fault::State)?;
        Ok(decision)
    }

    /// Whether everything runs that the policy requires: then the guest may say that it is ready, and secrets may be
    /// released to it. A policy that requires nothing is always ready; one that cannot tell is not.
    pub fn ready(&mut self, arena: &mut Arena<'_>) -> bool {
        arena.reset();
        let mut fuel = Fuel(self.fuel);
        match self.run(arena, READY_ENTRY, None, &mut fuel) {
            Ok(Outcome::Missing) => true,
            Ok(Outcome::Value(result)) => {
                matches!(self.view(arena).field(result, "allowed"), Some(Value::True))
            }
            Ok(Outcome::Undefined) | Err(_) => false,
        }
    }

    /// Why a request was denied, as far as the policy can say it in the fixed vocabulary.
    fn reasons(&mut self, arena: &mut Arena<'_>, point: Point, input: Value) -> Reasons {
        let mut reasons = Reasons::default();
        let mut fuel = Fuel(self.fuel);
        let Ok(input) = arena.with_field(input, "rule", point.name()) else { return reasons };
        let Ok(Outcome::Value(result)) = self.run(arena, REASON_ENTRY, Some(input), &mut fuel) else {
            return reasons;
        };
        let view = self.view(arena);
        let errors = view.field(result, "errors").unwrap_or(Value::Null);
        let mut index = 0;
        while let Some((_, error)) = view.element(errors, index) {
            // SECURITY (D11): a text that is not in the vocabulary may be content of the policy.
            if let Value::String(text) = error
                && let Some(reason) = Reason::from_text(view.text(text))
            {
                reasons.insert(reason);
            }
            index += 1;
        }
        reasons
    }

    /// Evaluates any entry, `data.policy.mount_device` for instance, for tools. The arena is emptied before
    /// `input` makes the input in it; `None` leaves `input` undefined.
    pub fn evaluate(
        &mut self,
        arena: &mut Arena<'_>,
        entry: &str,
        input: impl FnOnce(&mut Arena<'_>) -> Result<Option<Value>, Fault>,
    ) -> Result<Outcome, Fault> {
        arena.reset();
        self.spent = 0;
        let mut fuel = Fuel(self.fuel);
        let input = input(arena)?;
        self.run(arena, entry, input, &mut fuel)
    }

    fn run(
        &mut self,
        arena: &mut Arena<'_>,
        entry: &str,
        input: Option<Value>,
        fuel: &mut Fuel,
    ) -> Result<Outcome, Fault> {
        let Some(function) = self.image.entry(entry) else { return Ok(Outcome::Missing) };
        let given = fuel.0;
        let context =
            &mut Context { image: &self.image, state: &self.state, arena, fuel, fragments: &self.fragments };
        let result = self.machine.run(context, function, input);
        self.spent = self.spent.max(given - fuel.0);
        Ok(result?.map_or(Outcome::Undefined, Outcome::Value))
    }

    /// Reads values of the last evaluation, and of the state.
    pub fn view<'a>(&'a self, arena: &'a Arena<'_>) -> View<'a> {
        View { image: &self.image, state: &self.state, arena: arena.bytes() }
    }

    /// The same, for an arena's memory after the arena is gone.
    pub fn view_of<'a>(&'a self, arena: &'a [u8]) -> View<'a> {
        View { image: &self.image, state: &self.state, arena }
    }

    /// `data.metadata` as a value.
    pub fn metadata(&self) -> Value {
        self.state.root()
    }

    /// The operations that a result's `metadata` lists, for tools that evaluate without deciding.
    pub fn delta(&self, view: &View<'_>, metadata: Value) -> Result<Delta, StateError> {
        let mut delta = Delta::default();
        delta.push_all(view, metadata)?;
        Ok(delta)
    }

    /// All that it remembers, for tools that go back and forth.
    pub fn memory(&self) -> Memory<'p> {
        Memory { state: self.state.clone(), fragments: self.fragments.clone() }
    }

    /// Remembers what an engine of the same image did.
    pub fn set_memory(&mut self, memory: Memory<'p>) {
        (self.state, self.fragments) = (memory.state, memory.fragments);
    }

    /// Puts a fragment in force: from now on decisions can match the patterns of its data, which is pinned here. Its
    /// copy stays until power-off.
    pub fn attach<'d>(
        &mut self,
        image: &[u8],
        data: impl Iterator<Item = &'d Pinned>,
    ) -> Result<(), ImageError> {
        let mut slots = Vec::new();
        for pinned in data {
            slots.try_reserve(1).map_err(|_| ImageError::Memory)?;
            slots.push(pinned.slot());
        }
        self.fragments.try_reserve(1).map_err(|_| ImageError::Memory)?;
        // Whatever can be wrong with it is found before anything is kept for good.
        Patterns::new(image, Vec::new())?;
        let mut copy = Vec::new();
        copy.try_reserve_exact(image.len()).map_err(|_| ImageError::Memory)?;
        copy.extend_from_slice(image);
        self.fragments.push(Patterns::new(Vec::leak(copy), slots)?);
        Ok(())
    }

    /// Stands for all that the policy has come to remember: 32 bytes of 0 at first, and after each commit that changes
    /// something
    ///
    /// ```text
    /// SHA-256(digest before ‖ operation ‖ …)
    /// operation: action (0 add, 1 update, 2 remove) ‖ 1 if it has a key, else 0 ‖ text of the map's name ‖ key ‖ value
    /// text: length in bytes (u32) ‖ UTF-8
    /// value: "0" null | "f" | "t" | "i" i64 | "s" text | "a" count (u32) items | "e" count members | "o" count (key value)…
    /// ```
    ///
    /// with numbers in little-endian order, sets and objects in the order of Rego. What is not there is null. A commit that
    /// is taken back takes its step back.
    pub fn state_digest(&self) -> [u8; 32] {
        self.state.digest()
    }

    /// Applies all of a delta or nothing of it.
    pub fn commit(&mut self, delta: Delta) -> Result<Undo, StateError> {
        self.state.commit(&self.image, delta)
    }

    /// Takes the last commit back.
    pub fn rollback(&mut self, undo: Undo) -> Result<(), StateError> {
        self.state.rollback(undo)
    }
}

impl Decision {
    /// Reads an allowing result. Every field that has a meaning must have its type.
    fn read(view: &View<'_>, result: Value) -> Result<Decision, Fault> {
        let mut decision = Decision::default();
        match view.field(result, "env_list") {
            None | Some(Value::Null) => {}
            Some(list) => decision.env = Some(strings(view, list)?),
        }
        match view.field(result, "caps_list") {
            None | Some(Value::Null) => {}
            Some(lists) => {
                let list = |name| strings(view, view.field(lists, name).ok_or(Fault::Result)?);
                decision.capabilities = Some(Capabilities {
                    ambient: list("ambient")?,
                    bounding: list("bounding")?,
                    effective: list("effective")?,
                    inheritable: list("inheritable")?,
                    permitted: list("permitted")?,
                });
            }
        }
        let flag = |name| match view.field(result, name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::True) => Ok(Some(true)),
            Some(Value::False) => Ok(Some(false)),
            Some(_) => Err(Fault::Result),
        };
        decision.allow_stdio = flag("allow_stdio_access")?;
        decision.output_waits = flag("output_waits")?;
        decision.panic_on_corruption = flag("panic_on_corruption")?;
        match view.field(result, "parameters") {
            None | Some(Value::Null) => {}
            Some(list @ Value::Array(_)) => decision.parameters = Some(list),
            Some(_) => return Err(Fault::Result),
        }
        decision.settings = view.field(result, "settings");
        decision.pod = view.field(result, "pod");
        decision.seccomp = view.field(result, "seccomp");
        if let Some(metadata) = view.field(result, "metadata") {
            decision.delta.push_all(view, metadata).map_err(Fault::State)?;
        }
        Ok(decision)
    }
}

/// The strings of an array or a set.
fn strings(view: &View<'_>, list: Value) -> Result<Vec<String>, Fault> {
    let (Value::Array(items) | Value::Set(items)) = list else { return Err(Fault::Result) };
    let mut strings = Vec::new();
    strings.try_reserve_exact(items.len()).map_err(|_| Fault::Arena)?;
    for index in 0..items.len() {
        let Value::String(text) = view.item(items, index) else { return Err(Fault::Result) };
        let mut string = String::new();
        string.try_reserve_exact(text.len()).map_err(|_| Fault::Arena)?;
        string.push_str(view.text(text));
        strings.push(string);
    }
    Ok(strings)
}
