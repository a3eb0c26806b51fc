//! Linker arguments of the init.

fn main() {}
