//! Policies: from Rego to the guest's bytecode, and from an image to its policy.
//!
//! * [`generate`] writes the strict policy of one OCI image.
//! * [`compile`] makes bytecode of a policy, the [`FRAMEWORK`] and further modules; its hash is what
//!   HOST_DATA has to be.
//! * [`replay`] and [`Session`] evaluate any compiled rule and remember metadata, as a guest does.
//! * [`check`](mod@check) reports on a policy in figures, [`lint`](mod@lint) on what makes it weak,
//!   [`explain`](mod@explain) on why it allows or denies a request.
//! * [`explore`](mod@explore) walks every state that a policy can be brought into, and checks what it decides there.
//! * [`seccomp`] makes filters of profiles of system calls.
//! * [`disassemble`] shows what is in an image.

mod bound;
pub mod check;
mod compile;
mod disasm;
pub mod explain;
pub mod explore;
pub mod fragment;
pub mod generate;
pub mod lint;
pub mod reference;
mod replay;
pub mod seccomp;
mod value;

pub use bound::Worst;
pub use compile::{
    COMPILER_VERSION, CompileError, Compiled, FRAMEWORK, FRAMEWORK_DATA, FRAMEWORK_NAME, Inputs, Warning,
    compile, host_data,
};
pub use disasm::disassemble;
pub use replay::{Evaluation, Session, replay, replay_sources};
pub use value::{from_json, to_json};
