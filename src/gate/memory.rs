//! Memory for what the host decides the size of: asked for, and refused where there is none.
//!
//! What is allocated elsewhere in the gate and the containers without asking is a few hundred bytes at a time, and of
//! bounded number: entries of maps of at most `MAX_PROCESSES` processes and `MAX_CONTAINERS` containers.

use crate::wire::{Culprit, Reason, Refusal, Step};
use alloc::string::String;
use alloc::vec::Vec;

/// The heap has no room for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfMemory;

impl From<OutOfMemory> for Refusal {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self { culprit: Culprit::Guest, reason: Reason::Failed { step: Step::Memory, errno: 0 } }
    }
}

/// An empty list with room for this many.
pub fn room<T>(count: usize) -> Result<Vec<T>, OutOfMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    Ok(list)
}

/// A copy of a text.
pub fn text(text: &str) -> Result<String, OutOfMemory> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| OutOfMemory)?;
    copy.push_str(text);
    Ok(copy)
}

/// A copy of texts.
pub fn texts(texts: &[impl AsRef<str>]) -> Result<Vec<String>, OutOfMemory> {
    let mut copy = room(texts.len())?;
    for item in texts {
        copy.push(text(item.as_ref())?);
    }
    Ok(copy)
}
