//! `parma exec`, `ps`, `logs`, `kill`, `stop`: commands for a `parma run` in another terminal.

use super::streams::{connect, streams};
use super::terminal;
use anyhow::{Result, bail};
use clap::Args;
use parma::local::{self, Answer, Client, Question};
use parma_policy::generate::signal;
use std::process::ExitCode;

/// Start a further process in a running container, if the policy allows it
#[derive(Args)]
#[command(after_help = "Example:
  parma exec web -- nginx -s reload
  parma exec -it web -- sh")]
pub struct Exec {
    /// The name of the run
    name: String,
    /// The container, where there are several
    #[arg(short, long)]
    container: Option<String>,
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal, which this one then stands for; its output steers this one
    #[arg(short, long)]
    tty: bool,
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
    /// The container, where there are several
    #[arg(short, long)]
    container: Option<String>,
    /// The signal
    #[arg(short, long, default_value = "KILL", value_parser = |text: &str| signal(text).map_err(|e| e.to_string()))]
    signal: u8,
    /// The process, as `parma ps` numbers it
    #[arg(short, long)]
    process: Option<u32>,
}

/// Show the end of what a container wrote
#[derive(Args)]
pub struct Logs {
    /// The name of the run
    name: String,
    /// The container, where there are several
    #[arg(short, long)]
    container: Option<String>,
}

/// Stop a run: each container gets its stop signal, and after ten seconds, or what its Pod says, its end
#[derive(Args)]
#[command(
    after_help = "The stop signal is the image's own, SIGTERM where it names none. Both are signals of the host's, so the policy decides.

Example:
  parma stop --time 60 db"
)]
pub struct Stop {
    /// The name of the run
    name: String,
    /// Seconds from the stop signal to the end, instead
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,
}

/// Runs `exec`; gives the process's exit code.
pub fn exec(arguments: Exec) -> Result<ExitCode> {
    let mut run = Client::connect(&arguments.name)?;
    let stdio = streams(arguments.interactive, arguments.tty);
    let question = Question::Exec { container: arguments.container.clone(), args: arguments.command, stdio };
    let Answer::Started { process, connector } = run.ask(&question)? else { bail!("an unexpected answer") };
    let raw = (arguments.tty && arguments.interactive).then(terminal::Raw::new).transpose()?;
    let output = connect(&connector, process, stdio, arguments.raw || arguments.tty)?;
    if arguments.tty {
        let (mut run, container) = (Client::connect(&arguments.name)?, arguments.container);
        terminal::watch(move |size| {
            run.ask(&Question::Resize { container: container.clone(), process, size }).map(drop)
        })?;
    }
    let Answer::Exited { code } = run.ask(&Question::Wait { process })? else {
        bail!("an unexpected answer")
    };
    for thread in output {
        let _ = thread.join();
    }
    drop(raw);
    Ok(ExitCode::from(code))
}

/// Runs `ps`.
pub fn ps(arguments: Ps) -> Result<ExitCode> {
    let runs = local::runs()?;
    if arguments.json {
        println!("{}", serde_json::to_string(&runs)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<16} {:<16} {:<12} {:>7} {:>8}  {:<16} IMAGE",
        "NAME", "CONTAINER", "ID", "PROCESS", "RESTARTS", "STATE"
    );
    for run in runs {
        for container in &run.containers {
            let id = container.id.as_deref().unwrap_or("-");
            let line = |process: &str, state: &str| {
                println!(
                    "{:<16} {:<16} {id:<12.12} {process:>7} {:>8}  {state:<16} {}",
                    run.name, container.name, container.restarts, container.image
                );
            };
            let ended = |code| match code {
                _ if container.out_of_memory => "out of memory".to_owned(),
                Some(code) => format!("exited {code}"),
                None if container.id.is_none() => "waiting".to_owned(),
                None if container.ready => "ready".to_owned(),
                None => "running".to_owned(),
            };
            if container.processes.is_empty() {
                line("-", &ended(container.exit_code));
            }
            for process in &container.processes {
                let state = match process.exit_code {
                    code if process.init => ended(code),
                    None => "running".to_owned(),
                    Some(code) => format!("exited {code}"),
                };
                line(&process.process.to_string(), &state);
            }
        }
        if let Some(why) = &run.unlisted {
            eprintln!("parma: {}: {why}", run.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `logs`.
pub fn logs(arguments: Logs) -> Result<ExitCode> {
    let question = Question::Logs { container: arguments.container };
    let Answer::Logs { text } = Client::connect(&arguments.name)?.ask(&question)? else {
        bail!("an unexpected answer")
    };
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// Runs `kill`.
pub fn kill(arguments: Kill) -> Result<ExitCode> {
    let Kill { name, container, signal, process } = arguments;
    Client::connect(&name)?.ask(&Question::Signal { container, process, signal })?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `stop`.
pub fn stop(arguments: Stop) -> Result<ExitCode> {
    let seconds = arguments.time.map(u64::from);
    Client::connect(&arguments.name)?.ask(&Question::Stop { seconds })?;
    Ok(ExitCode::SUCCESS)
}
