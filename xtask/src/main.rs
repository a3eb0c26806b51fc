//! Builds, measures, tests and demonstrates Parma.
//!
//! Every subcommand does its own set-up and states what is missing and how to get it. What is expensive
//! (kernel, Debian packages, tools) is cached outside the tree, keyed by the content it is made from.

mod apt;
mod attest;
mod bench;
mod cache;
mod containers;
mod cpio;
mod demo;
mod firmware;
mod first_line;
mod fixtures;
mod igvm;
mod image;
mod kernel;
mod measure;
mod mutants;
mod newer_qemu;
mod policy;
mod process;
mod raw;
mod release;
mod setup;
mod shim;
mod sign;
mod storage;
mod tcb;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, measures, tests and demonstrates Parma.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Arguments),
    Kernel(kernel::Arguments),
    Image(image::Arguments),
    Measure(measure::Arguments),
    Sign(sign::Arguments),
    Fixtures(fixtures::Arguments),
    Test(test::Arguments),
    Mutants(mutants::Arguments),
    Demo(demo::Arguments),
    Bench(bench::Arguments),
    Tcb(tcb::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup(arguments) => setup::main(arguments),
        Task::Kernel(arguments) => kernel::main(arguments),
        Task::Image(arguments) => image::main(arguments),
        Task::Measure(arguments) => measure::main(arguments),
        Task::Sign(arguments) => sign::main(arguments),
        Task::Fixtures(arguments) => fixtures::main(arguments),
        Task::Test(arguments) => test::main(arguments),
        Task::Mutants(arguments) => mutants::main(arguments),
        Task::Demo(arguments) => demo::main(arguments),
        Task::Bench(arguments) => bench::main(arguments),
        Task::Tcb(arguments) => tcb::main(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
