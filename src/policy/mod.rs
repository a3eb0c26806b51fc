//! The policy machine: a compiled policy's format, its verifier, the interpreter and its state.
//!
//! No system calls, no unsafe, no recursion over what comes from outside. `docs/policy-bytecode.md`
//! says the same to someone who wants to write a second machine.

pub mod builder;
mod builtins;
pub mod dfa;
pub mod engine;
pub mod format;
pub mod fragment;
pub mod instruction;
mod intern;
mod machine;
mod pattern;
pub mod reason;
pub mod state;
#[cfg(test)]
pub(crate) mod tests;
pub mod value;
pub mod verify;

pub use engine::{Capabilities, Decision, Engine, Outcome, Refusal};
pub use format::ImageError;
pub use reason::{Reason, Reasons};
pub use state::{Delta, Pinned, Pinning, StateError, Undo};
pub use value::{Arena, Fault, Value, View};
