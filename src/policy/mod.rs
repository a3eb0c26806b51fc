//! The policy machine: a compiled policy's format, its verifier, the interpreter and its state.
//!
//! No system calls, no unsafe, no recursion over what comes from outside. `docs/policy-bytecode.md`
//! says the same to someone who wants to write a second machine.

pub mod builder;
pub mod format;
pub mod instruction;
pub mod verify;
