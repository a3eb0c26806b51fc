//! The reference monitor: request → decision → permit → act → commit.

pub mod action;
pub mod fields;
