//! `parma exec`, `ps`, `kill`, `stop`: commands for a `parma run` in another terminal.

use super::streams::Streams;
use anyhow::{Result, bail};
use clap::Args;
use parma::local::{self, Answer, Client, Question};
use parma_policy::generate::signal;
use std::process::ExitCode;

/// Start a further process in a running container, if the policy allows it
#[derive(Args)]
#[command(after_help = "Example:
  parma exec web -- nginx -s reload")]
pub struct Exec {
    /// The name of the run
    name: String,
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Let the process's output steer this terminal
    #[arg(long)]
    raw: bool,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// List running containers and their processes
#[derive(Args)]
pub struct Ps {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Send a signal to a container's first process, or to another of its processes
#[derive(Args)]
#[command(after_help = "Example:
  parma kill web -s SIGHUP")]
pub struct Kill {
    /// The name of the run
    name: String,
    /// The signal
    #[arg(short, long, default_value = "KILL", value_parser = |text: &str| signal(text).map_err(|e| e.to_string()))]
    signal: u8,
    /// The process, as `parma ps` numbers it
    #[arg(short, long)]
    process: Option<u32>,
}

/// Stop a container: its stop signal, and after ten seconds its end
#[derive(Args)]
pub struct Stop {
    /// The name of the run
    name: String,
}

/// Runs `exec`; gives the process's exit code.
pub fn exec(arguments: Exec) -> Result<ExitCode> {
    let mut run = Client::connect(&arguments.name)?;
    let question = Question::Exec { args: arguments.command, stdin: arguments.interactive };
    let Answer::Started { process, connector } = run.ask(&question)? else { bail!("an unexpected answer") };
    let streams = Streams::attach(&connector, process, arguments.interactive, arguments.raw)?;
    let Answer::Exited { code } = run.ask(&Question::Wait { process })? else {
        bail!("an unexpected answer")
    };
    streams.finish();
    Ok(ExitCode::from(code))
}

/// Runs `ps`.
pub fn ps(arguments: Ps) -> Result<ExitCode> {
    let runs = local::runs()?;
    if arguments.json {
        println!("{}", serde_json::to_string(&runs)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<16} {:<13} {:>7}  {:<10} IMAGE", "NAME", "CONTAINER", "PROCESS", "STATE");
    for run in runs {
        let line = |process: &str, state: &str| {
            println!("{:<16} {:<13.12} {process:>7}  {state:<10} {}", run.name, run.container, run.image);
        };
        for process in &run.processes {
            let state = match process.exit_code {
                None => "running".to_owned(),
                Some(code) => format!("exited {code}"),
            };
            line(&process.process.to_string(), &state);
        }
        if let Some(why) = &run.unlisted {
            line("?", "unknown");
            eprintln!("parma: {}: {why}", run.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `kill`.
pub fn kill(arguments: Kill) -> Result<ExitCode> {
    let Kill { name, signal, process } = arguments;
    Client::connect(&name)?.ask(&Question::Signal { process, signal })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `stop`.
pub fn stop(arguments: Stop) -> Result<ExitCode> {
    Client::connect(&arguments.name)?.ask(&Question::Stop)?;
    Ok(ExitCode::SUCCESS)
}
