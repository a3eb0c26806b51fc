//! `parma run`

use super::policy::{Allow, named_image, of_pod, reference};
use super::streams::{Output, connect_input, streams};
use super::terminal;
use super::volume::read_key;
use super::{evidence, show_warnings};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use parma::group::{Group, Member, Sink, distinct_layers, distinct_volumes, share_layers};
use parma::local::{Reserved, Served, check_name};
use parma::output::hex;
use parma::pod::{Observer, Pod, Scratch, describe, network_request, new_container_id};
use parma::release::KeyService;
use parma::workload::{Content, Encrypted, Policy, Volume, Workload};
use parma_guest::wire::{Reason, Request, Stdio, Step};
use parma_kms::verify::Tcb;
use parma_layer::oci::Reference;
use parma_layer::volume::Key;
use parma_policy::generate::{DataVolume, GenerateOptions, policy_of};
use parma_psp::layout::{LAUNCH_POLICY, POLICY_DEBUG};
use parma_psp::{Platform, Root};
use parma_vmm::{Config, Forward, Image, Network, Outcome, Refused, escape};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use x509_cert::der::pem::LineEnding;
use x509_cert::der::{Decode as _, EncodePem as _};

/// How long a container may take to end by itself, where no Pod says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Where `cargo xtask image --emulated` puts the image.
const IMAGE: &str = "target/image-emulated";
const VARIABLE: &str = "PARMA_IMAGE";
/// What a shell gives for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

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
  parma run --volume data.img:/data:$(cat data.id) --volume-key data.key --emulated-psp psp oci:postgres
  parma run --volume data.img:/data:$(cat data.id) --kms https://kms.example.com --kms-key data oci:postgres
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
    /// the least generation of the volume that is accepted; may be repeated. Without hardware, only with --emulated-psp
    #[arg(long, value_name = "FILE[@GENERATION]", value_parser = VolumeKey::parse)]
    volume_key: Vec<VolumeKey>,
    /// A key service (`parma kms serve`), which judges the guest's report and releases the keys of the other volumes to it
    #[arg(long, value_name = "URL")]
    kms: Option<String>,
    /// What a key is called there [default: as the volume's id]; may be repeated
    #[arg(long, value_name = "NAME", requires = "kms")]
    kms_key: Vec<String>,
    /// Roots of the key service's TLS certificate, PEM [default: those of the web]
    #[arg(long, value_name = "FILE", requires = "kms")]
    kms_ca: Option<PathBuf>,
    /// Wait until `parma connect` has released the keys of the other volumes
    #[arg(long, conflicts_with = "kms")]
    await_keys: bool,
    /// Certificates of the processor that vouches for the guest, leaf first, and revocation lists; may be repeated
    #[arg(long, value_name = "FILE")]
    chain: Vec<PathBuf>,
    /// The builder's endorsement of the guest's measurement (COSE_Sign1), for whoever judges its reports
    #[arg(long, value_name = "FILE")]
    endorsement: Option<PathBuf>,
    /// Let reports be made by an emulated PSP under the root that is kept in this directory, which is made if there is none, and
    /// release keys on its word: no hardware vouches for anything
    #[arg(long, value_name = "DIR")]
    emulated_psp: Option<PathBuf>,
    /// Have the emulated PSP say something worse of itself, to see it refused: `debug`, that the host may debug the guest; or versions
    /// of its firmware, like bootloader=10,snp=23,microcode=84
    #[arg(long, value_name = "debug|VERSIONS", value_parser = emulated_platform, requires = "emulated_psp")]
    emulated_platform: Option<Platform>,
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
        ensure!(arguments.emulated_psp.is_none(), "--emulated-psp: this image has its reports from hardware");
        parma_vmm::snp::require()?;
    }
    ensure!(
        !image.emulated || arguments.volume_key.is_empty() || arguments.emulated_psp.is_some(),
        "--volume-key: no hardware vouches for this guest; to release a key on the word of an emulated PSP, name the directory of its \
         root with --emulated-psp DIR"
    );
    let root = arguments.emulated_psp.as_deref().map(Root::kept).transpose()?;
    let service = arguments.kms.as_deref().map(|url| {
        let roots = arguments.kms_ca.as_deref().map(evidence::read).transpose()?.unwrap_or_default();
        KeyService::new(url, &roots)
    });
    let service = service.transpose()?;
    let endorsement = arguments.endorsement.as_deref().map(evidence::read).transpose()?;
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
    let volumes = volumes.into_iter().cloned().collect();
    let (with_key, others) = with_keys(volumes, &arguments.volume_key)?;
    if let (Some(volume), None, false) = (others.first(), &service, arguments.await_keys) {
        bail!(
            "{}: its key is needed, with --volume-key, --kms or --await-keys: the id is {}",
            volume.path.display(),
            hex(&volume.id)
        );
    }
    let certificates = evidence::bundle(&arguments.chain)?;
    let measurement = image.measurement(arguments.cpus)?.0;
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
            eprintln!("MEASUREMENT {}", hex(&measurement));
        }
        if let Some(dir) = &arguments.emulated_psp {
            eprintln!(
                "parma: EMULATED: reports are made under the root in {} because --emulated-psp says so; no hardware vouches for them",
                dir.display()
            );
        }
    });

    let name = arguments.name.clone().unwrap_or_else(|| plan.name.clone());
    let reserved = Reserved::new(&name)?;
    let layers = distinct_layers(plan.members.iter().map(|member| &member.workload));
    let mut config = Config::new(image, policy.host_data());
    config.memory_mib = arguments.memory;
    config.vcpus = arguments.cpus;
    config.network = network;
    config.root = root.clone();
    config.platform = arguments.emulated_platform.unwrap_or_default();
    let disks = layers.iter().map(|layer| layer.disk()).chain(scratch.to_attach());
    let volumes = with_key.iter().map(|(volume, ..)| volume).chain(&others);
    config.disks = disks.chain(volumes.clone().map(Encrypted::disk)).collect();
    bar.set_message("booting the guest");
    let observer = observer(arguments.verbose, arguments.json, bar.clone());
    let pod = Pod::boot(&config, observer)?;
    pod.guest.keep_record();
    pod.set_policy(&policy)?;
    let chain = pod.chain(&certificates)?;
    if plan.members.iter().any(|member| member.workload.container.attestation) {
        pod.guest.endorse(&host_certificates(&chain)?, endorsement.as_deref().unwrap_or_default())?;
    }
    if let Some(network) = &config.network {
        pod.guest.set_up_network(network_request(network))?;
    }
    let on = Group::mount(&pod.guest, &layers, &id, &scratch)?;
    // The machine has the file open: it needs no name any more.
    drop(scratch);
    bar.set_message("releasing keys");
    if !with_key.is_empty() {
        let mut owner = pod.owner(&policy, certificates, root.as_ref())?.channel(&*pod.guest)?;
        if owner.list.emulated {
            bar.suspend(|| {
                eprintln!("parma: EMULATED: keys are released on the word of an emulated PSP because --emulated-psp says so; no hardware vouches for it");
            });
        }
        for (volume, key, generation) in &with_key {
            owner.release(key, *generation)?;
            pod.guest.mount_volume(volume)?;
        }
    }
    if let Some(service) = &service {
        let ids: Vec<String> = others.iter().map(|volume| hex(&volume.id)).collect();
        for name in if arguments.kms_key.is_empty() { &ids } else { &arguments.kms_key } {
            service.release(&pod.guest, name, &policy, &chain, endorsement.as_deref())?;
        }
    }
    let sink = plan.sink(arguments.raw || arguments.tty);
    let group = Group::new(pod.guest.clone(), plan.members, on, plan.grace, sink)?;
    reserved.serve(Served { group: group.clone(), name, certificates: chain })?;
    // The first Ctrl-C asks the containers to stop, the second ends this program and with it the machine.
    let (stopped, asked) = (group.clone(), AtomicBool::new(false));
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            terminal::restore();
            std::process::exit(INTERRUPTED.into());
        }
        let stopped = stopped.clone();
        std::thread::spawn(move || stopped.stop(None));
    })
    .context("cannot handle signals")?;

    if arguments.await_keys && !others.is_empty() {
        bar.suspend(|| eprintln!("parma: waiting for keys: `parma connect {} … key FILE`", reserved.name()));
    }
    for volume in &others {
        let attempt = || match pod.guest.mount_volume(volume) {
            Err(error) if arguments.await_keys && lacks_key(&error) => Ok(None),
            Err(error) => Err(error).with_context(|| volume.path.display().to_string()),
            Ok(()) => Ok(Some(())),
        };
        if group.after_sealed(attempt)?.is_none() {
            return Ok(ExitCode::from(INTERRUPTED));
        }
    }

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
    if volumes.clone().next().is_some() {
        group.shut_down()?;
        for volume in volumes {
            pod.guest.unmount_volume(volume)?;
        }
    }
    // The containers' end is what was waited for; a guest that does not end by itself is killed.
    if let (Err(error), true) = (pod.power_off(), arguments.verbose) {
        eprintln!("parma: {error:#}");
    }
    Ok(ExitCode::from(code))
}

/// What `--emulated-platform` says.
fn emulated_platform(text: &str) -> Result<Platform, String> {
    if text == "debug" {
        return Ok(Platform { policy: LAUNCH_POLICY | POLICY_DEBUG, ..Platform::default() });
    }
    let Tcb { fmc, bootloader, tee, snp, microcode } = Tcb::parse(text)?;
    if fmc != 0 {
        return Err("the emulated processor has no FMC".into());
    }
    Ok(Platform { tcb: parma_psp::Tcb { bootloader, tee, snp, microcode }, ..Platform::default() })
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

/// Whether a volume was not mounted because its key has not come.
fn lacks_key(error: &anyhow::Error) -> bool {
    /// ENOKEY
    const NO_KEY: u16 = 126;
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|Refused(why)| why.reason == Reason::Failed { step: Step::ReleaseKey, errno: NO_KEY })
}

/// Certificates, leaf first, as Azure's hosts hand them out, which is what sidecars read.
fn host_certificates(chain: &[Vec<u8>]) -> Result<Vec<u8>> {
    let pem = |der: &Vec<u8>| -> Result<String> {
        let certificate = x509_cert::Certificate::from_der(der).context("a certificate of the chain")?;
        Ok(certificate.to_pem(LineEnding::LF)?)
    };
    let Some((leaf, rest)) = chain.split_first() else { return Ok(Vec::new()) };
    let rest = rest.iter().map(pem).collect::<Result<String>>()?;
    Ok(serde_json::json!({"vcekCert": pem(leaf)?, "certificateChain": rest}).to_string().into_bytes())
}

/// What `--volume-key` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeKey {
    file: PathBuf,
    /// The least generation of the volume that is accepted.
    pub least_generation: u64,
}

impl VolumeKey {
    /// The key.
    ///
    /// # Errors
    /// The file cannot be read, or has none in it.
    pub fn read(&self) -> Result<Key> {
        read_key(&self.file)
    }

    /// `FILE`, or `FILE@GENERATION`.
    ///
    /// # Errors
    /// The generation is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (file, generation) = text.rsplit_once('@').map_or((text, Ok(0)), |(file, n)| (file, n.parse()));
        let least_generation = generation.map_err(|_| "after @ comes a generation, a number")?;
        Ok(Self { file: file.into(), least_generation })
    }
}

/// Volumes whose keys are here, each with its key and least generation, and the others. A key says by itself which volume it
/// opens.
type Volumes = (Vec<(Encrypted, Key, u64)>, Vec<Encrypted>);

fn with_keys(volumes: Vec<Encrypted>, keys: &[VolumeKey]) -> Result<Volumes> {
    let (mut with_key, mut others) = (Vec::new(), volumes);
    for named in keys {
        let key = named.read()?;
        let found = others.iter().position(|volume| hex(&volume.id) == key.id());
        let found = found.with_context(|| {
            format!(
                "the key {} opens none of the volumes, but the one with the id {}",
                named.file.display(),
                key.id()
            )
        })?;
        with_key.push((others.remove(found), key, named.least_generation));
    }
    Ok((with_key, others))
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
