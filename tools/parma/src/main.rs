//! Parma's command line. Exit codes: 0, 1 where something failed or was refused, 2 for wrong usage; `run` and `exec` give
//! the code of the process they waited for.

mod commands;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Confidential containers under an attested policy
#[derive(Parser)]
#[command(version, propagate_version = true)]
#[command(after_help = "Examples:
  parma run oci:python -- python3 -c 'print(6*7)'   run an image under its own strict policy
  parma policy generate oci:python -o p.rego        write that policy to a file, to be edited
  parma policy compile p.rego -o p.bin              compile it; prints HOST_DATA
  parma run --policy p.rego oci:python              run under it")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Get images, and convert them to disks that the guest can verify
    #[command(subcommand)]
    Image(commands::image::Command),
    /// Make data volumes, and look at them without a guest
    #[command(subcommand)]
    Volume(commands::volume::Command),
    /// Convert single layers of images to disks that the guest can verify
    #[command(subcommand)]
    Layer(commands::layer::Command),
    /// Look at this host: can it run SEV-SNP guests?
    #[command(subcommand)]
    Host(commands::host::Command),
    /// Write, compile and inspect policies
    #[command(subcommand)]
    Policy(commands::policy::Command),
    /// Sign and check fragments: additions to a policy by others
    #[command(subcommand)]
    Fragment(commands::fragment::Command),
    /// Judge what guests show of themselves
    #[command(subcommand)]
    Attest(commands::attest::Command),
    /// A reference key service: releases keys to attested guests
    #[command(subcommand)]
    Kms(commands::kms::Command),
    Run(Box<commands::run::Arguments>),
    Exec(commands::remote::Exec),
    Ps(commands::remote::Ps),
    Logs(commands::remote::Logs),
    Kill(commands::remote::Kill),
    Stop(commands::remote::Stop),
    Connect(Box<commands::connect::Arguments>),
    Audit(commands::connect::Audit),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Image(command) => commands::image::main(command),
        Command::Volume(command) => commands::volume::main(command),
        Command::Layer(command) => commands::layer::main(command),
        Command::Host(command) => commands::host::main(command),
        Command::Policy(command) => commands::policy::main(command),
        Command::Fragment(command) => commands::fragment::main(command),
        Command::Attest(command) => commands::attest::main(command),
        Command::Kms(command) => commands::kms::main(command),
        Command::Run(arguments) => commands::run::main(*arguments),
        Command::Exec(arguments) => commands::remote::exec(arguments),
        Command::Ps(arguments) => commands::remote::ps(arguments),
        Command::Logs(arguments) => commands::remote::logs(arguments),
        Command::Kill(arguments) => commands::remote::kill(arguments),
        Command::Stop(arguments) => commands::remote::stop(arguments),
        Command::Connect(arguments) => commands::connect::main(*arguments),
        Command::Audit(arguments) => commands::connect::audit(arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("parma: {error:#}");
        ExitCode::FAILURE
    })
}
