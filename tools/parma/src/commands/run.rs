//! `parma run`

use super::policy::{Allow, reference};
use super::show_warnings;
use super::streams::Streams;
use anyhow::{Context as _, Result};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use parma::local::{Reserved, Served};
use parma::output::hex;
use parma::pod::{Observer, Pod, Scratch, describe, new_container_id};
use parma::workload::{Policy, Workload};
use parma_guest::wire::{Request, Stdio};
use parma_layer::oci::Reference;
use parma_vmm::{Config, Forward, Image, Network, Outcome, escape};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where `cargo xtask image --emulated` puts the image.
const IMAGE: &str = "target/image-emulated";
const VARIABLE: &str = "PARMA_IMAGE";
/// What a shell gives for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Run a container image in a guest of its own, under an attested policy
///
/// Without --policy, the strict policy of the image is generated, shown and used. Standard output and error of the
/// container become those of this program, and its exit code too.
#[derive(Args)]
#[command(after_help = "Examples:
  parma run oci:python -- python3 -c 'print(6*7)'
  parma run -v --policy p.rego oci:python:latest
  echo hello | parma run -q -i oci:busybox -- cat
  parma run -p 8080:80 oci:nginx
  parma run --name web --allow-exec 'nginx -s reload' oci:nginx")]
pub struct Arguments {
    /// The image: oci:DIR or oci:DIR:TAG
    #[arg(value_parser = reference)]
    image: Reference,
    /// Run under this policy, in Rego or compiled, instead of the generated one
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    allow: Allow,
    /// The measured image of the guest [default: $PARMA_IMAGE, or target/image-emulated]
    #[arg(long = "image", value_name = "DIR", id = "guest_image")]
    guest_image: Option<PathBuf>,
    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..))]
    memory: u32,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Where the container writes: the size of a disk that the guest encrypts, such as 4G or 512M, or `memory`
    #[arg(long, value_name = "SIZE|memory", default_value = "4G", value_parser = Space::parse)]
    scratch: Space,
    /// Forward a port of this machine to the container: [ADDRESS:]HOST:GUEST[/udp]; may be repeated
    #[arg(short, long, value_name = "HOST:GUEST", value_parser = |text: &str| text.parse::<Forward>().map_err(|e| format!("{e:#}")))]
    publish: Vec<Forward>,
    /// Let the container open connections to the outside
    #[arg(long)]
    network: bool,
    /// A name for exec, ps, kill and stop [default: the container id's first twelve digits]
    #[arg(long)]
    name: Option<String>,
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Let the container's output steer this terminal
    #[arg(long)]
    raw: bool,
    /// Do not show the generated policy
    #[arg(short, long)]
    quiet: bool,
    /// Show each request and the guest's decision
    #[arg(short, long)]
    verbose: bool,
    /// Show requests and decisions as JSON lines on standard error
    #[arg(long)]
    json: bool,
    /// Arguments in place of the image's own
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs it.
pub fn main(arguments: Arguments) -> Result<ExitCode> {
    let bar = spinner(arguments.quiet);
    bar.set_message("opening the guest's image");
    let image = Image::open(&guest_image(arguments.guest_image.as_deref()))?;
    if !image.emulated {
        parma_vmm::snp::require()?;
    }
    let mut options = arguments.allow.options(&arguments.args);
    let scratch = match arguments.scratch {
        Space::Memory => {
            options.memory_scratch = true;
            Scratch::Memory
        }
        Space::Disk(bytes) => {
            options.max_scratch = options.max_scratch.max(bytes);
            Scratch::disk(bytes)?
        }
    };
    let network = (arguments.network || !arguments.publish.is_empty())
        .then(|| Network { outbound: arguments.network, forwards: arguments.publish.clone() });
    options.network |= network.is_some();
    let workload = Workload::prepare(&arguments.image, &options, "layer", |number, count, bytes| {
        bar.set_message(format!("layer {number} of {count}: {}", HumanBytes(bytes)));
    })?;
    bar.set_message("compiling the policy");
    let policy = match &arguments.policy {
        Some(path) => Policy::read(path)?,
        None => workload.strict_policy()?,
    };
    bar.suspend(|| {
        match (&arguments.policy, &policy.source) {
            (Some(_), _) => show_warnings(&policy.warnings),
            (None, Some(source)) if !arguments.quiet => eprint!("{source}"),
            _ => {}
        }
        if !arguments.quiet {
            eprintln!("HOST_DATA {}", hex(&policy.host_data()));
        }
    });

    let id = new_container_id()?;
    let name = arguments.name.clone().unwrap_or_else(|| id.as_str().chars().take(12).collect());
    let reserved = Reserved::new(&name)?;
    let stdio = if options.stdio {
        Stdio { stdin: arguments.interactive, stdout: true, stderr: true }
    } else {
        Stdio::default()
    };
    let mut config = Config::new(image, policy.host_data());
    config.memory_mib = arguments.memory;
    config.vcpus = arguments.cpus;
    config.network = network;
    bar.set_message("booting the guest");
    let observer = observer(arguments.verbose, arguments.json, bar.clone());
    let (pod, process) = Pod::start(config, &policy, &workload, &scratch, &id, stdio, observer)?;
    // The machine has the file open: it needs no name any more.
    drop(scratch);
    bar.finish_and_clear();

    let streams = options
        .stdio
        .then(|| Streams::attach(pod.guest.session.connector(), process, stdio.stdin, arguments.raw))
        .transpose()?;
    reserved.serve(Served {
        guest: pod.guest.clone(),
        id,
        container: workload.container.clone(),
        init: process,
        stop_signal: workload.stop_signal,
        name,
        image: arguments.image.to_string(),
    })?;
    // The first Ctrl-C asks the container to stop, the second ends this program and with it the machine.
    let (guest, signal, asked) = (pod.guest.clone(), workload.stop_signal, AtomicBool::new(false));
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) || guest.signal(&id, process, signal).is_err() {
            std::process::exit(INTERRUPTED);
        }
    })
    .context("cannot handle signals")?;

    let status = match pod.guest.session.wait(process, None) {
        Ok(status) => status.context("the container has not ended")?,
        Err(error) => {
            let console = pod.machine.console().unwrap_or_default();
            let tail = &console[console.len().saturating_sub(4096)..];
            return Err(error)
                .with_context(|| format!("the guest is gone; end of its console:\n{}", escape(tail)));
        }
    };
    if let Some(streams) = streams {
        streams.finish();
    }
    drop(reserved);
    // The container's end is what was waited for; a guest that does not end by itself is killed.
    let ended = pod.guest.shutdown(&id).and_then(|()| pod.power_off());
    if let (Err(error), true) = (ended, arguments.verbose) {
        eprintln!("parma: {error:#}");
    }
    Ok(ExitCode::from(status.shell_code()))
}

/// What `--scratch` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Memory,
    /// Bytes.
    Disk(u64),
}

impl Space {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "memory" {
            return Ok(Self::Memory);
        }
        let (digits, shift) = match (text.strip_suffix('M'), text.strip_suffix('G')) {
            (Some(digits), _) => (digits, 20),
            (_, Some(digits)) => (digits, 30),
            _ => return Err("write a size in M or G, such as 512M, or `memory`".into()),
        };
        let count: u64 = digits.parse().map_err(|_| format!("{digits:?} is no number"))?;
        count.checked_mul(1 << shift).map(Self::Disk).ok_or_else(|| "too large".into())
    }
}

/// The directory of the guest's image.
fn guest_image(named: Option<&Path>) -> PathBuf {
    let variable = || std::env::var_os(VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.map(Path::to_owned).or_else(variable).unwrap_or_else(|| IMAGE.into())
}

/// A line on a terminal that says what takes time; nothing where there is no terminal.
pub fn spinner(quiet: bool) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Shows requests and decisions, if they are wanted.
fn observer(verbose: bool, json: bool, bar: ProgressBar) -> Observer {
    Arc::new(move |request: &Request<'_>, outcome: &Outcome| {
        let what = describe(request);
        bar.set_message(what.clone());
        let refused = outcome.as_ref().err().map(ToString::to_string);
        if json {
            let line = serde_json::json!({"request": what, "allowed": refused.is_none(), "refusal": refused});
            bar.suspend(|| eprintln!("{line}"));
        } else if verbose {
            let how = refused.as_deref().unwrap_or("allowed");
            bar.suspend(|| eprintln!("{what}: {how}"));
        }
    })
}
