//! A fragment's image: data that is worked out by itself, once.
//!
//! It is an image as a policy's, with other entries: `data.parma_fragment.<rule>` for each of [`RULES`] that its source
//! defines. What they may depend on is the parameters that the policy gives the fragment, and nothing else.
//!
//! SECURITY (F01): a fragment's code runs in a machine of its own, with the parameters as its input and without the
//! policy's state, and what comes out of it is values. No decision ever runs any of it: a fragment cannot replace a rule.

use alloc::vec::Vec;

use super::engine::{Engine, Outcome};
use super::format::{Image, ImageError};
use super::state::{Pinned, Pinning, StateError};
use super::value::{Arena, Fault, Value, View};

/// What a fragment may define, in ascending order.
pub const RULES: [&str; 7] = [
    "containers",
    "external_processes",
    "fragments",
    "framework_svn",
    "framework_version",
    "platform_rules",
    "svn",
];

/// The package of a fragment's entries.
pub const PACKAGE: &str = "parma_fragment";
/// The entry that is never asked: its code names every pattern of the fragment's data.
pub const PATTERNS: &str = "patterns";

/// The field of a fragment's input that holds its parameters.
const PARAMETERS: &str = "parameters";
/// How deep parameters may nest.
const MAX_NESTING: usize = 16;

/// Why an image is no fragment, or its data cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// The image is not valid.
    Image(ImageError),
    /// It has an entry that a fragment has not.
    Entry,
    /// Its data cannot be worked out.
    Fault(Fault),
    /// Its data cannot be kept.
    State(StateError),
}

impl From<ImageError> for Invalid {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<Fault> for Invalid {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<StateError> for Invalid {
    fn from(error: StateError) -> Self {
        Self::State(error)
    }
}

/// Whether an image is a fragment's: has its entries and no others.
fn check(image: &Image<'_>) -> Result<(), Invalid> {
    let known = |name: &[u8]| {
        let name = core::str::from_utf8(name).ok()?.strip_prefix("data.")?.strip_prefix(PACKAGE)?;
        let name = name.strip_prefix('.')?;
        (name == PATTERNS || RULES.contains(&name)).then_some(())
    };
    let mut names = image.entries().map(|(name, _)| image.string(name).and_then(known));
    names.try_for_each(|known| known.ok_or(Invalid::Entry))
}

/// A fragment that has been verified.
#[derive(Debug)]
pub struct Fragment<'f> {
    engine: Engine<'f>,
}

impl<'f> Fragment<'f> {
    /// Verifies a fragment's image.
    pub fn read(image: &'f [u8]) -> Result<Self, Invalid> {
        let engine = Engine::with_empty_state(image)?;
        check(engine.image())?;
        Ok(Self { engine })
    }

    /// Works its data out. `parameters` is an object that `view` can read; without one there are none.
    pub fn content(
        &mut self,
        arena: &mut Arena<'_>,
        parameters: Option<(&View<'_>, Value)>,
    ) -> Result<Pinning, Invalid> {
        let mut content = Pinning::default();
        for rule in RULES {
            let mut entry = heapless::String::<64>::new();
            // The longest of them fits.
            let _ = core::fmt::write(&mut entry, format_args!("data.{PACKAGE}.{rule}"));
            let mut name = Value::Null;
            let outcome = self.engine.evaluate(arena, &entry, |arena| {
                name = arena.string(rule)?;
                let parameters = match parameters {
                    Some((view, value)) => copied(arena, view, value, 0)?,
                    None => arena.object(&[])?,
                };
                arena.object(&[(PARAMETERS, parameters)]).map(Some)
            })?;
            if let Outcome::Value(value) = outcome {
                content.field(&self.engine.view(arena), name, value)?;
            }
        }
        Ok(content)
    }
}

/// A copy of what a view reads, in an arena.
fn copied(arena: &mut Arena<'_>, view: &View<'_>, value: Value, depth: usize) -> Result<Value, Fault> {
    if depth > MAX_NESTING {
        return Err(Fault::Depth);
    }
    match value {
        Value::String(text) => arena.string(view.text(text)),
        Value::Array(list) | Value::Set(list) => {
            let mut items = Vec::new();
            items.try_reserve_exact(list.len()).map_err(|_| Fault::Arena)?;
            for index in 0..list.len() {
                items.push(copied(arena, view, view.item(list, index), depth + 1)?);
            }
            arena.array(&items)
        }
        Value::Object(list) => {
            let mut pairs = Vec::new();
            pairs.try_reserve_exact(list.len()).map_err(|_| Fault::Arena)?;
            for index in 0..list.len() {
                let (key, value) = view.pair(list, index);
                let Value::String(key) = key else { return Err(Fault::Input) };
                pairs.push((view.text(key), copied(arena, view, value, depth + 1)?));
            }
            arena.object(&pairs)
        }
        Value::Null | Value::False | Value::True | Value::Int(_) => Ok(value),
    }
}

impl<'p> Engine<'p> {
    /// Keeps a fragment's data, so that a decision can be asked about it and entries can refer to it.
    pub fn pin(&mut self, data: Pinning) -> Result<Pinned, StateError> {
        self.state.pin(data)
    }

    /// Gives up data to which nothing refers: the policy did not allow it.
    pub fn unpin(&mut self, pinned: Pinned) {
        self.state.unpin(pinned);
    }

    /// The data, for an input.
    pub fn pinned(&self, pinned: &Pinned) -> Value {
        self.state.pinned(pinned)
    }
}
