//! Parma's command line.

fn main() {}
