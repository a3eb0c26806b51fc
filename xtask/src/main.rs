//! Builds, measures, tests and demonstrates Parma.

fn main() {}
