//! Working out at compile time what depends on nothing but the policy: by compiling it and running it
//! on the machine, so that there is no second meaning.

use parma_guest::policy::engine::{self, Engine};
use parma_guest::policy::value::{Arena, Fault};

use super::automata::Automata;
use super::constant::Constant;
use super::emit::Image;
use super::error::NOWHERE;
use super::hir::{Expr, FunctionId, Node, Program};
use super::patterns::Computed;
use crate::value;

/// What is known before a request.
pub(crate) enum Outcome {
    Value(Constant),
    Undefined,
    /// OPA has a value that the machine has not: a fraction, a number too large, a verb of `sprintf`.
    Unsupported,
    /// It cannot be worked out now, or is a fault: left to be found at run time.
    Unknown,
}

/// The name of the one entry of an image that is made here.
const ENTRY: &str = "value";
/// Bytes for one evaluation.
const MEMORY: usize = 4 << 20;

/// The result of a pure function.
pub(crate) fn call(program: &Program, id: FunctionId, arguments: &[Constant]) -> Outcome {
    let arguments = arguments.iter().map(|value| Node::constant(NOWHERE, value.clone())).collect();
    run(program, &Node::new(NOWHERE, Expr::Call(id, arguments)), &[id])
}

/// The value of an expression whose parts are constants.
pub(crate) fn node(program: &Program, node: &Node) -> Outcome {
    run(program, node, &[])
}

fn run(program: &Program, node: &Node, roots: &[FunctionId]) -> Outcome {
    let (computed, automata) = (Computed::default(), Automata::default());
    let mut image = Image::new(0, program, &computed, &automata);
    // What does not fit an image of its own is refused, with its place, when the whole is compiled.
    let Ok(function) = image.functions(roots).and_then(|()| image.expression(node)) else {
        return Outcome::Unknown;
    };
    let Ok(()) = image.builder.entry(ENTRY, function) else { return Outcome::Unknown };
    let Ok(bytes) = image.builder.finish() else { return Outcome::Unknown };
    let Ok(mut engine) = Engine::with_empty_state(&bytes) else { return Outcome::Unknown };
    let mut memory = vec![0; MEMORY];
    let mut arena = Arena::new(&mut memory);
    match engine.evaluate(&mut arena, ENTRY, |_| Ok(None)) {
        Ok(engine::Outcome::Value(value)) => match value::constant(&engine.view(&arena), value) {
            Some(value) => Outcome::Value(value),
            None => Outcome::Unknown,
        },
        Ok(engine::Outcome::Undefined) => Outcome::Undefined,
        Err(Fault::Unsupported | Fault::Overflow) => Outcome::Unsupported,
        Ok(engine::Outcome::Missing) | Err(_) => Outcome::Unknown,
    }
}
