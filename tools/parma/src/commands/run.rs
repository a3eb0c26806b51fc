//! `parma run`

use super::policy::{Allow, named_image, of_pod, reference};
use super::show_warnings;
use super::streams::{Output, connect_input, streams};
use super::terminal;
use super::volume::read_key;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use parma::group::{Group, Member, Sink, distinct_layers, distinct_volumes, share_layers};
use parma::local::{Reserved, Served, check_name};
use parma::output::hex;
use parma::pod::{Observer, Pod, Scratch, describe, new_container_id};
use parma::workload::{Content, Encrypted, Policy, Volume, Workload};
use parma_guest::wire::{Request, Stdio};
use parma_kms::bundle::Bundle;
use parma_layer::oci::Reference;
use parma_layer::volume::Key;
use parma_policy::generate::{DataVolume, GenerateOptions, policy_of};
use parma_vmm::{Config, Forward, Image, Network, Outcome, escape};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a container may take to end by itself, where no Pod says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Where `cargo xtask image --emulated` puts the image.
const IMAGE: &str = "target/image-emulated";
const VARIABLE: &str = "PARMA_IMAGE";
/// What a shell gives for a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

/// Run a container image, or the containers of a Kubernetes Pod, in a guest of their own, under an attested policy
///
/// Without --policy, the strict policy is generated, shown and used. Standard output and error of the container become
/// those of this program, and its exit code too. Of a Pod, each line begins with its container's name, and the exit code is
/// that of the first container that failed.
#[derive(Args)]
#[command(after_help = "Examples:
  parma run oci:python -- python3 -c 'print(6*7)'
  parma run -v --policy p.rego oci:python:latest
  parma run -it oci:busybox -- sh
  echo hello | parma run -q -i oci:busybox -- cat
  parma run -p 8080:80 oci:nginx
  parma run --volume model.img:/model oci:python
  parma run --volume data.img:/data:$(cat data.id) --volume-key data.key oci:postgres
  parma run -f pod.yaml --from docker.io/library/nginx:1.29=oci:nginx
  parma run -f pod.yaml --claim data=data.img:$(cat data.id) --volume-key data.key
  parma run --name web --allow-exec 'nginx -s reload' oci:nginx")]
pub struct Arguments {
    /// The image: oci:DIR or oci:DIR:TAG
    #[arg(value_parser = reference, required_unless_present = "file", conflicts_with = "file")]
    image: Option<Reference>,
    /// A Pod, in YAML. What is not supported of it is refused by name
    #[arg(short, long, value_name = "POD", conflicts_with_all = ["env", "args", "interactive", "tty"])]
    file: Option<PathBuf>,
    /// Where an image of the Pod is: its name there, and oci:DIR or oci:DIR:TAG
    #[arg(long, value_name = "NAME=IMAGE", value_parser = named_image, requires = "file")]
    from: Vec<(String, Reference)>,
    /// Run under this policy, in Rego or compiled, instead of the generated one
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    allow: Allow,
    /// A key of an encrypted volume, released to the guest once its report was judged: 32 bytes or 64 hexadecimal digits; and
    /// the least generation of the volume that is accepted; may be repeated
    #[arg(long, value_name = "FILE[@GENERATION]", value_parser = VolumeKey::parse)]
    volume_key: Vec<VolumeKey>,
    /// Certificates and revocation lists of the processor that vouches for the guest, where it is one; may be repeated
    #[arg(long, value_name = "FILE", requires = "volume_key")]
    chain: Vec<PathBuf>,
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
    /// Let the containers open connections to the outside
    #[arg(long)]
    network: bool,
    /// A name for exec, ps, logs, kill and stop [default: the Pod's, or twelve digits]
    #[arg(long)]
    name: Option<String>,
    /// Connect standard input
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal, which this one then stands for; its output steers this one. A generated policy allows it
    #[arg(short, long, conflicts_with = "no_stdio")]
    tty: bool,
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
    let mut options = arguments.allow.options(&arguments.args)?;
    // Whether a name is right is known before anything is done.
    arguments.name.as_deref().map(check_name).transpose()?;
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
    options.terminal |= arguments.tty;
    let progress = |number, count, bytes| {
        bar.set_message(format!("layer {number} of {count}: {}", HumanBytes(bytes)));
    };
    let id = new_container_id()?;
    let digits: String = id.as_str().chars().take(12).collect();
    let stdio = if options.stdio { streams(arguments.interactive, arguments.tty) } else { Stdio::default() };
    let plan = match (&arguments.image, &arguments.file) {
        (Some(reference), _) => {
            let mut workload = Workload::prepare(reference, &options, "layer", progress)?;
            workload.volumes = arguments.allow.volumes()?;
            let member = Member::single("container".into(), reference.to_string(), workload, stdio);
            Plan { name: digits, members: vec![member], grace: STOP_TIMEOUT, prefix: false }
        }
        (None, Some(file)) => {
            let claims = arguments.allow.claims()?;
            Plan::of_pod(file, &arguments.from, &claims, &options, stdio, digits, progress)?
        }
        (None, None) => bail!("there is no image: give one, or a Pod with -f"),
    };
    let volumes = distinct_volumes(plan.members.iter().map(|member| &member.workload));
    let volumes = with_keys(volumes.into_iter().cloned().collect(), &arguments.volume_key)?;
    let certificates = bundle(&arguments.chain)?;
    bar.set_message("compiling the policy");
    let policy = match &arguments.policy {
        Some(path) => Policy::read(path)?,
        None => plan.strict_policy()?,
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

    let name = arguments.name.clone().unwrap_or_else(|| plan.name.clone());
    let reserved = Reserved::new(&name)?;
    let layers = distinct_layers(plan.members.iter().map(|member| &member.workload));
    let mut config = Config::new(image, policy.host_data());
    config.memory_mib = arguments.memory;
    config.vcpus = arguments.cpus;
    config.network = network;
    let disks = layers.iter().map(|layer| layer.disk()).chain(scratch.to_attach());
    config.disks = disks.chain(volumes.iter().map(|(volume, ..)| volume.disk())).collect();
    bar.set_message("booting the guest");
    let observer = observer(arguments.verbose, arguments.json, bar.clone());
    let pod = Pod::boot(&config, observer)?;
    pod.set_policy(&policy)?;
    if let Some(network) = &config.network {
        pod.guest.set_up_network(network)?;
    }
    let on = Group::mount(&pod.guest, &layers, &id, &scratch)?;
    // The machine has the file open: it needs no name any more.
    drop(scratch);
    if !volumes.is_empty() {
        bar.set_message("releasing keys");
        let mut owner = pod.owner(&policy, certificates)?.channel(&pod.guest)?;
        for (volume, key, generation) in &volumes {
            owner.release(key, *generation)?;
            pod.guest.mount_volume(volume)?;
        }
    }
    let sink = plan.sink(arguments.raw || arguments.tty);
    let group = Group::new(pod.guest.clone(), plan.members, on, plan.grace, sink)?;
    reserved.serve(Served { group: group.clone(), name })?;
    // The first Ctrl-C asks the containers to stop, the second ends this program and with it the machine.
    let (stopped, asked) = (group.clone(), AtomicBool::new(false));
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            terminal::restore();
            std::process::exit(INTERRUPTED);
        }
        let stopped = stopped.clone();
        std::thread::spawn(move || stopped.stop(None));
    })
    .context("cannot handle signals")?;

    let mut raw = None;
    let started = |group: &Group| {
        bar.finish_and_clear();
        let (id, process) = group.running(0)?;
        if stdio.terminal.is_some() {
            raw = stdio.stdin.then(terminal::Raw::new).transpose()?;
            let guest = group.guest.clone();
            terminal::watch(move |size| guest.resize(&id, process, size))?;
        }
        if stdio.stdin {
            connect_input(group.guest.session.connector(), process)?;
        }
        Ok(())
    };
    let result = group.run(started);
    drop(raw);
    let code = match result {
        Ok(code) => code,
        // Only a guest that still answers has refused something.
        Err(error) if pod.guest.session.wait(0, Some(Duration::ZERO)).is_ok() => return Err(error),
        Err(error) => {
            let console = pod.machine.console().unwrap_or_default();
            let tail = &console[console.len().saturating_sub(4096)..];
            return Err(error)
                .with_context(|| format!("the guest is gone; end of its console:\n{}", escape(tail)));
        }
    };
    drop(reserved);
    if !volumes.is_empty() {
        group.shut_down()?;
        for (volume, ..) in &volumes {
            pod.guest.unmount_volume(volume)?;
        }
    }
    // The containers' end is what was waited for; a guest that does not end by itself is killed.
    if let (Err(error), true) = (pod.power_off(), arguments.verbose) {
        eprintln!("parma: {error:#}");
    }
    Ok(ExitCode::from(code))
}

/// What is to be run.
struct Plan {
    name: String,
    members: Vec<Member>,
    /// How long a container may take to end by itself when it is asked to stop.
    grace: Duration,
    /// Whether each line of output begins with its container's name.
    prefix: bool,
}

impl Plan {
    fn of_pod(
        file: &Path,
        images: &[(String, Reference)],
        claims: &BTreeMap<String, Content>,
        options: &GenerateOptions,
        stdio: Stdio,
        digits: String,
        mut progress: impl FnMut(usize, usize, u64),
    ) -> Result<Self> {
        let (pod, references) = of_pod(file, images, options)?;
        let mut members = Vec::new();
        for (number, (container, reference)) in pod.containers.into_iter().zip(references).enumerate() {
            let prefix = format!("c{number}-");
            let mut workload = Workload::prepare(&reference, &container.options, &prefix, &mut progress)
                .with_context(|| container.place.clone())?;
            for DataVolume { content, destination, read_only } in &container.options.volumes {
                let of = claims.values().find(|claim| claim.known_by() == *content);
                let (content, destination) =
                    (of.context("a volume of no claim")?.clone(), destination.clone());
                workload.volumes.push(Volume { content, destination, read_only: *read_only });
            }
            members.push(Member {
                name: container.options.name.unwrap_or_default(),
                image: container.image,
                workload,
                stdio,
                initial: container.initial,
                restart: pod.restart,
                startup: container.startup,
                readiness: container.readiness,
                liveness: container.liveness,
                post_start: container.post_start,
                pre_stop: container.pre_stop,
            });
        }
        share_layers(&mut members.iter_mut().map(|member| &mut member.workload).collect::<Vec<_>>());
        let name = pod.name.filter(|name| check_name(name).is_ok()).unwrap_or(digits);
        Ok(Self { name, members, grace: Duration::from_secs(pod.grace.into()), prefix: true })
    }

    /// The policy that allows these containers and nothing else.
    fn strict_policy(&self) -> Result<Policy> {
        let containers: Vec<_> =
            self.members.iter().map(|member| member.workload.container.clone()).collect();
        Policy::compile("generated.rego", &policy_of(&containers)?)
    }

    /// Where output goes: to this program's own, as it is or with names before the lines.
    fn sink(&self, raw: bool) -> Sink {
        let names = self.members.iter().map(|member| self.prefix.then(|| member.name.clone()));
        let outputs = names.map(|name| Mutex::new(Output::new(name, raw))).collect::<Vec<_>>();
        Arc::new(move |index, stream, bytes| {
            outputs[index].lock().unwrap_or_else(PoisonError::into_inner).write(stream, bytes)
        })
    }
}

/// What `--volume-key` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VolumeKey {
    file: PathBuf,
    least_generation: u64,
}

impl VolumeKey {
    fn parse(text: &str) -> Result<Self, String> {
        let (file, generation) = text.rsplit_once('@').map_or((text, Ok(0)), |(file, n)| (file, n.parse()));
        let least_generation = generation.map_err(|_| "after @ comes a generation, a number")?;
        Ok(Self { file: file.into(), least_generation })
    }
}

/// Each volume with its key and least generation. A key says by itself which volume it opens.
fn with_keys(volumes: Vec<Encrypted>, keys: &[VolumeKey]) -> Result<Vec<(Encrypted, Key, u64)>> {
    let mut read = Vec::new();
    for VolumeKey { file, least_generation } in keys {
        let key = read_key(file)?;
        ensure!(
            volumes.iter().any(|volume| hex(&volume.id) == key.id()),
            "the key {} opens none of the volumes, but the one with the id {}",
            file.display(),
            key.id()
        );
        read.push((key, *least_generation));
    }
    let of = |volume: Encrypted| {
        let id = hex(&volume.id);
        let found = read.iter().position(|(key, _)| key.id() == id);
        let found = found.with_context(|| {
            format!("{}: its key is needed, with --volume-key: the id is {id}", volume.path.display())
        })?;
        let (key, least_generation) = read.swap_remove(found);
        Ok((volume, key, least_generation))
    };
    volumes.into_iter().map(of).collect()
}

/// The certificates and revocation lists in these files.
fn bundle(files: &[PathBuf]) -> Result<Bundle> {
    let mut bundle = Bundle::default();
    for file in files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        bundle.add(&bytes).with_context(|| file.display().to_string())?;
    }
    Ok(bundle)
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
