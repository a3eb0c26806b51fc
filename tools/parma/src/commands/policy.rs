//! `parma policy …`

use super::{command_line, show_warnings};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use parma::output::{self, hex};
use parma::workload::{ANNOTATION, Content, Policy, Volume, Workload};
use parma_guest::gate::settings::Limit;
use parma_kms::verify::from_hex;
use parma_layer::oci::Reference;
use parma_policy::explore::{self, Bounds, Progress, explore};
use parma_policy::generate::{
    GenerateOptions, Pod, PodContainer, PodSettings, Settings, hostname, policy_of, read_pod, rlimit, signal,
    sysctl, usual_capabilities,
};
use parma_policy::seccomp::Profile;
use parma_policy::{Inputs, check, explain, lint};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Generate(Generate),
    Compile(Compile),
    Check(Check),
    Lint(Lint),
    Explain(Explain),
    Replay(Replay),
    Explore(Explore),
    Disasm(Disasm),
}

/// What a generated policy allows beyond the image's own command.
#[derive(Args)]
pub struct Allow {
    /// Set a variable, in place of the image's of that name
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Allow this command to be started in the running container: words, or a JSON array
    #[arg(long, value_name = "COMMAND", value_parser = command_line)]
    allow_exec: Vec<Vec<String>>,
    /// Allow this signal instead of the image's stop signal and SIGKILL
    #[arg(long, value_name = "SIGNAL", value_parser = |text: &str| signal(text).map_err(|e| e.to_string()))]
    allow_signal: Vec<u8>,
    /// Allow no standard streams: output stays in the guest
    #[arg(long)]
    no_stdio: bool,
    /// Allow standard streams to be a terminal, whose keys send signals
    #[arg(long, conflicts_with = "no_stdio")]
    allow_terminal: bool,
    /// Let programs gain privileges, as set-user-ID programs do
    #[arg(long)]
    allow_new_privileges: bool,
    /// Allow what the container writes to stay in the guest's memory, instead of on a scratch disk
    #[arg(long)]
    allow_memory_scratch: bool,
    /// Allow the host to give the container a network
    #[arg(long)]
    allow_network: bool,
    /// Let the container attest itself: mount the attestation directory at /run/parma
    #[arg(long)]
    allow_attestation: bool,
    /// Mount a data volume of `parma volume create` at this path: a read-only one, or an encrypted one by the id that was
    /// printed; may be repeated
    #[arg(long, value_name = "FILE:PATH[:ID]", value_parser = volume_at, conflicts_with = "file")]
    volume: Vec<VolumeAt>,
    /// What a persistentVolumeClaim of the Pod stands for: its claimName, and a data volume of `parma volume create`, an
    /// encrypted one with the id that was printed; may be repeated
    #[arg(long, value_name = "NAME=FILE[:ID]", value_parser = Claim::parse, requires = "file")]
    claim: Vec<Claim>,
    /// Let nothing be written to the root filesystem
    #[arg(long)]
    read_only: bool,
    /// A profile of system calls, in JSON as Docker or the CRI has it
    #[arg(long, value_name = "FILE")]
    seccomp: Option<PathBuf>,
    /// A resource limit in place of the usual one, NAME=SOFT[:HARD]; may be repeated
    #[arg(long, value_name = "LIMIT", value_parser = |text: &str| rlimit(text).map_err(|e| format!("{e:#}")))]
    ulimit: Vec<(String, Limit)>,
    /// A setting of the kernel for the containers' own network and IPC namespaces, NAME=VALUE; may be repeated
    #[arg(long, value_name = "SETTING", value_parser = setting)]
    sysctl: Vec<(String, String)>,
    /// The host name [default: the Pod's, or twelve digits]
    #[arg(long, value_name = "NAME", value_parser = |text: &str| hostname(text).map_err(|e| e.to_string()))]
    hostname: Option<String>,
}

/// `net.core.somaxconn=1024`
fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    sysctl(name, value).map_err(|error| error.to_string())?;
    Ok((name.into(), value.into()))
}

/// What `--volume` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VolumeAt {
    file: PathBuf,
    path: String,
    id: Option<[u8; 32]>,
}

/// What `--claim` says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    name: String,
    file: PathBuf,
    id: Option<[u8; 32]>,
}

impl Claim {
    /// `model=model.img`, or `data=data.img:5b1f…`
    fn parse(text: &str) -> Result<Self, String> {
        let (text, id) = before_id(text);
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => {
                Ok(Self { name: name.into(), file: file.into(), id })
            }
            _ => Err("write NAME=FILE or NAME=FILE:ID, the id of 64 hexadecimal digits".into()),
        }
    }
}

/// What stands before the id of an encrypted volume, and the id, if there is one.
fn before_id(text: &str) -> (&str, Option<[u8; 32]>) {
    let id = text.rsplit_once(':').and_then(|(rest, id)| Some((rest, from_hex::<32>(id)?)));
    id.map_or((text, None), |(rest, id)| (rest, Some(id)))
}

/// A file that `parma volume create` made, encrypted if it has an id.
fn content(file: &Path, id: Option<[u8; 32]>) -> Result<Content> {
    id.map_or_else(|| Content::verified(file), |id| Content::encrypted(file, id))
}

/// `model.img:/model`, or `data.img:/data:5b1f…`
fn volume_at(text: &str) -> Result<VolumeAt, String> {
    let (text, id) = before_id(text);
    match text.rsplit_once(':') {
        Some((file, path)) if !file.is_empty() && path.starts_with('/') => {
            Ok(VolumeAt { file: file.into(), path: path.into(), id })
        }
        _ => {
            Err("write FILE:PATH or FILE:PATH:ID, the path beginning with /, the id of 64 hexadecimal digits"
                .into())
        }
    }
}

impl Allow {
    /// As the generator takes it; `args` replace the image's own.
    ///
    /// # Errors
    /// A volume or profile cannot be read.
    pub fn options(&self, args: &[String]) -> Result<GenerateOptions> {
        let Self {
            env,
            allow_exec,
            allow_signal,
            no_stdio,
            allow_terminal,
            allow_new_privileges,
            allow_memory_scratch,
            allow_network,
            allow_attestation,
            volume: _,
            claim: _,
            read_only,
            seccomp,
            ulimit,
            sysctl,
            hostname,
        } = self;
        Ok(GenerateOptions {
            args: (!args.is_empty()).then(|| args.to_vec()),
            env: env.clone(),
            exec: allow_exec.clone(),
            signals: (!allow_signal.is_empty()).then(|| allow_signal.clone()),
            stdio: !no_stdio,
            terminal: *allow_terminal,
            no_new_privileges: !allow_new_privileges,
            memory_scratch: *allow_memory_scratch,
            network: *allow_network,
            attestation: *allow_attestation,
            volumes: self.volumes()?.iter().map(Volume::data).collect(),
            claims: self.claims()?.iter().map(|(name, content)| (name.clone(), content.known_by())).collect(),
            seccomp: seccomp.as_deref().map(read).transpose()?,
            settings: Settings {
                read_only_root: *read_only,
                rlimits: ulimit.iter().cloned().collect(),
                ..Settings::default()
            },
            pod: PodSettings {
                hostname: hostname.clone(),
                sysctls: sysctl.iter().cloned().collect(),
                ..PodSettings::default()
            },
            ..GenerateOptions::default()
        })
    }

    /// The data volumes.
    ///
    /// # Errors
    /// A read-only one cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>> {
        let volume = |VolumeAt { file, path, id }: &VolumeAt| Ok(Volume::at(path, content(file, *id)?));
        self.volume.iter().map(volume).collect()
    }

    /// The data volumes that a Pod claims, by the claims' names.
    ///
    /// # Errors
    /// A read-only one cannot be read, or a name is there twice.
    pub fn claims(&self) -> Result<BTreeMap<String, Content>> {
        let mut claims = BTreeMap::new();
        for Claim { name, file, id } in &self.claim {
            let before = claims.insert(name.clone(), content(file, *id)?);
            ensure!(before.is_none(), "--claim {name}: it is there twice");
        }
        Ok(claims)
    }
}

/// Write the strict policy of an image or a Kubernetes Pod: these containers and nothing else
#[derive(Args)]
#[command(after_help = "Examples:
  parma policy generate oci:python:latest -o p.rego -- python3 -c 'print(6*7)'
  parma policy generate -f pod.yaml --image docker.io/library/nginx:1.29=oci:nginx -o p.rego
  parma policy generate -f pod.yaml --claim data=data.img:$(cat data.id) -o p.rego
What a policy cannot express is an error that names the field. Before it is written, the policy is compiled and asked for
everything that an honest host asks for.")]
pub struct Generate {
    /// The image: oci:DIR or oci:DIR:TAG
    #[arg(value_parser = reference, required_unless_present = "file", conflicts_with = "file")]
    reference: Option<Reference>,
    /// A Pod, in YAML
    #[arg(short, long, value_name = "POD", conflicts_with_all = ["env", "args"])]
    file: Option<PathBuf>,
    /// Where an image of the Pod is: its name there, and oci:DIR or oci:DIR:TAG
    #[arg(long, value_name = "NAME=IMAGE", value_parser = named_image, requires = "file")]
    image: Vec<(String, Reference)>,
    #[command(flatten)]
    allow: Allow,
    /// Where to write it [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Compile it, and print the annotation that gives it to a Pod, NAME: VALUE
    #[arg(long)]
    annotation: bool,
    /// Arguments in place of the image's own
    #[arg(last = true)]
    args: Vec<String>,
}

/// Compile a policy; prints the HOST_DATA that a guest must be launched with
#[derive(Args)]
#[command(after_help = "Examples:
  parma policy compile p.rego -o p.bin
  parma policy compile p.rego --module lib.rego --entry data.policy.mount_device")]
pub struct Compile {
    /// The policy, in Rego
    policy: PathBuf,
    #[command(flatten)]
    inputs: Modules,
    /// Make this rule an entry [default: all enforcement points that the policy defines]
    #[arg(long, value_name = "RULE")]
    entry: Vec<String>,
    /// It is a fragment, to be signed by `parma fragment sign`: compile its data; prints the image's SHA-256
    #[arg(long, conflicts_with_all = ["module", "data", "no_framework", "entry", "add_missing_points"])]
    fragment: bool,
    /// Add the framework's rule for each enforcement point that the policy does not define; they are measured with it
    #[arg(long)]
    add_missing_points: bool,
    /// Where to write the compiled policy
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print the annotation that gives it to a Pod, NAME: VALUE, instead of HOST_DATA
    #[arg(long, conflicts_with_all = ["json", "fragment"])]
    annotation: bool,
    /// Print a JSON object: host_data, bytes, warnings
    #[arg(long)]
    json: bool,
}

/// What is compiled beside the policy.
#[derive(Args)]
struct Modules {
    /// A further module
    #[arg(long, value_name = "FILE")]
    module: Vec<PathBuf>,
    /// Static data: a JSON object that becomes `data`
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// A profile of system calls, in JSON as Docker or the CRI has it, whose hash the policy names; may be repeated
    #[arg(long, value_name = "FILE")]
    seccomp: Vec<PathBuf>,
    /// Leave out our framework. (A module that is package framework takes its place by itself.)
    #[arg(long)]
    no_framework: bool,
}

/// Compile and verify a policy, and report on it: what it can be asked, what it leaves denied, sizes, bounds
#[derive(Args)]
#[command(after_help = "Examples:
  parma policy check p.rego
  parma policy check p.bin --json
Exits with 1 if the policy does not compile or is not valid.")]
pub struct Check {
    /// The policy: Rego, or compiled
    policy: PathBuf,
    #[command(flatten)]
    inputs: Modules,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Warn about what makes a policy weak, each time with the remedy
#[derive(Args)]
#[command(after_help = "Examples:
  parma policy lint p.rego
  parma policy lint p.rego --deny && parma policy compile p.rego -o p.bin
Exits with 0 whatever it finds, with --deny with 1 if it finds anything.")]
pub struct Lint {
    /// The policy, in Rego
    policy: PathBuf,
    #[command(flatten)]
    inputs: Modules,
    /// Fail if there is a warning
    #[arg(long)]
    deny: bool,
    /// Print a JSON array: check, entry, field, message, remedy
    #[arg(long)]
    json: bool,
}

/// Say why a policy allows or denies a request, field by field, for the policy's owner
#[derive(Args)]
#[command(
    after_help = "REQUEST.json has {\"point\":\"create_container\",\"input\":{…}}, or \"rule\":\"data.policy.create_container\" in place of
the point, and may have \"metadata\":{…}, what the guest remembers, as `parma policy replay` prints it.

Example:
  parma policy explain p.rego request.json
What it prints is content of the policy: a guest never tells the host any of it.
Exits with 0 whether the request is allowed or denied."
)]
pub struct Explain {
    /// The policy, in Rego
    policy: PathBuf,
    #[command(flatten)]
    inputs: Modules,
    /// The request
    request: PathBuf,
    /// Print a JSON object: point, allowed, fault, reasons, candidates, notes
    #[arg(long)]
    json: bool,
}

/// Evaluate a trace of requests as a guest would; prints an answer for each
#[derive(Args)]
#[command(
    after_help = "TRACE has a line each {\"rule\":\"data.policy.mount_device\",\"input\":{…}}; the answers are a line each
{\"defined\":true,\"result\":{…},\"metadata\":{…the whole state after…}}"
)]
pub struct Replay {
    /// The policy: Rego, or compiled
    policy: PathBuf,
    #[command(flatten)]
    inputs: Modules,
    /// The requests
    trace: PathBuf,
}

/// Walk every state that a policy can be brought into, and check what it decides there
#[derive(Args)]
#[command(
    after_help = "Checked of every decision: no two devices are at one path; an overlay has only mounted layers, in the order of an entry;
nothing runs that is not in the policy; a burned id never comes back; what is denied changes nothing; what is allowed,
one single entry allows in every field; and the assertions, `deny contains message if { … }` in package assertions, over
input.point, input.request, input.decision, input.state and input.after.

Examples:
  parma policy explore p.rego
  parma policy explore p.rego --assert mine.rego > trace.jsonl || parma policy replay p.rego trace.jsonl
  parma policy explore p.rego --ids 1 --dot p.dot && dot -Tsvg p.dot -o p.svg
Exits with 0 if everything holds in all states within the bounds. If something is broken, prints the shortest way to it
as a trace, and exits with 1; with 1 also if there are more states than it may look at."
)]
pub struct Explore {
    /// The policy: Rego, or compiled
    policy: PathBuf,
    #[command(flatten)]
    inputs: Modules,
    /// A module of assertions
    #[arg(long, value_name = "FILE")]
    assert: Option<PathBuf>,
    /// A fragment, in Rego or compiled, that a host may bring at any time, signed by whoever the policy names
    #[arg(long, value_name = "FILE")]
    fragment: Vec<PathBuf>,
    /// Container ids, 1 to 4
    #[arg(long, value_name = "N", default_value_t = Bounds::default().ids, value_parser = clap::builder::TypedValueParser::map(clap::value_parser!(u8).range(1..=4), usize::from))]
    ids: usize,
    /// Layer devices beside those of one entry
    #[arg(long, value_name = "N", default_value_t = Bounds::default().extra_devices)]
    extra_devices: usize,
    /// Writable devices, scratch spaces and shares at once
    #[arg(long, value_name = "N", default_value_t = Bounds::default().others)]
    others: usize,
    /// Give up after this many states
    #[arg(long, value_name = "N", default_value_t = Bounds::default().states)]
    states: usize,
    /// Write the states as a graph, for Graphviz
    #[arg(long, value_name = "FILE")]
    dot: Option<PathBuf>,
    /// Print a JSON object: holds, states, requests, bounds, violation and more
    #[arg(long)]
    json: bool,
}

/// Show what is in a compiled policy
#[derive(Args)]
pub struct Disasm {
    /// The compiled policy
    policy: PathBuf,
}

/// Parses an image reference for clap.
pub fn reference(text: &str) -> Result<Reference, String> {
    Reference::parse(text).map_err(|error| format!("{error:#}"))
}

/// Parses an image of a Pod and where it is, for clap.
pub fn named_image(text: &str) -> Result<(String, Reference), String> {
    // A name may have `=` in no place; a folder may.
    let (name, place) = text.split_once('=').ok_or("not NAME=oci:DIR or NAME=oci:DIR:TAG")?;
    Ok((name.into(), reference(place)?))
}

/// The Pod in a file, and where the image of each of its containers is. An image that is named `oci:…` is there.
pub fn of_pod(
    file: &Path,
    images: &[(String, Reference)],
    options: &GenerateOptions,
) -> Result<(Pod, Vec<Reference>)> {
    let of_file = || file.display().to_string();
    let text = String::from_utf8(read(file)?).with_context(of_file)?;
    // Profiles are named from where the Pod is.
    let profile = |path: &str| read(&file.parent().unwrap_or(Path::new(".")).join(path));
    let pod = read_pod(&text, options, &profile).with_context(of_file)?;
    let located = pod.containers.iter().map(|PodContainer { place, image, .. }| {
        let named = images.iter().find(|(name, _)| name == image).map(|(_, reference)| reference.clone());
        named.or_else(|| Reference::parse(image).ok()).with_context(|| {
            format!("{}: {place}.image: say where it is, {image}=oci:DIR[:TAG]", file.display())
        })
    });
    let references = located.collect::<Result<_>>()?;
    Ok((pod, references))
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Generate(Generate { reference, file, image, allow, output, annotation, args }) => {
            let options = allow.options(&args)?;
            let wanted = match (reference, file) {
                (Some(reference), _) => vec![(reference, options)],
                (None, Some(file)) => {
                    let (pod, references) = of_pod(&file, &image, &options)?;
                    references.into_iter().zip(pod.containers.into_iter().map(|it| it.options)).collect()
                }
                (None, None) => bail!("there is no image: give one, or a Pod with -f"),
            };
            let bar = super::run::spinner(false);
            let mut containers = Vec::new();
            for (reference, options) in wanted {
                let workload = Workload::prepare(&reference, &options, "layer", |number, count, bytes| {
                    bar.set_message(format!("layer {number} of {count}: {}", HumanBytes(bytes)));
                })?;
                containers.push(workload.container);
            }
            bar.finish_and_clear();
            let policy = policy_of(&containers)?;
            match output {
                Some(path) => output::write(&path, policy.as_bytes())?,
                None if !annotation => print(&policy)?,
                None => {}
            }
            if annotation {
                let compiled = Policy::compile("generated.rego", &policy)?;
                print(&format!("{ANNOTATION}: {}\n", compiled.annotation()))?;
            }
        }
        Command::Compile(Compile {
            policy,
            inputs,
            entry,
            fragment,
            add_missing_points,
            output,
            annotation,
            json,
        }) => {
            let inputs = inputs.with(&policy, entry)?;
            let inputs = match inputs.modules.first() {
                Some((name, text)) if fragment => parma_policy::fragment::inputs(name, text),
                _ if add_missing_points => inputs.with_missing_points(),
                _ => Ok(inputs),
            };
            let compiled = inputs
                .and_then(|inputs| parma_policy::compile(&inputs))
                .map_err(|error| anyhow!("{error}"))?;
            if let Some(path) = output {
                output::write(&path, &compiled.image)?;
            }
            let host_data = hex(&compiled.host_data());
            if json {
                let warnings: Vec<_> = compiled.warnings.iter().map(ToString::to_string).collect();
                let bytes = compiled.image.len();
                let value = serde_json::json!({"host_data": host_data, "bytes": bytes, "warnings": warnings});
                print(&format!("{value}\n"))?;
            } else {
                show_warnings(&compiled.warnings);
                if annotation {
                    let policy = Policy { source: None, image: compiled.image, warnings: Vec::new() };
                    print(&format!("{ANNOTATION}: {}\n", policy.annotation()))?;
                } else {
                    print(&format!("{host_data}\n"))?;
                }
            }
        }
        Command::Check(Check { policy, inputs, json }) => {
            let bytes = read(&policy)?;
            let report = if is_compiled(&bytes) {
                check::check_image(&bytes, &[]).with_context(|| policy.display().to_string())
            } else {
                check::check(&inputs.with(&policy, Vec::new())?)
            }?;
            if json {
                print(&format!("{}\n", serde_json::to_string(&report)?))?;
            } else {
                print(&report.to_string())?;
            }
        }
        Command::Lint(Lint { policy, inputs, deny, json }) => {
            let findings = lint::lint(&inputs.of_source(&policy)?)?;
            if json {
                print(&format!("{}\n", serde_json::to_string(&findings)?))?;
            } else {
                print(&findings.iter().map(|finding| format!("{finding}\n")).collect::<String>())?;
                eprintln!("parma: {} to look at in {}", findings.len(), policy.display());
            }
            if deny && !findings.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Explain(Explain { policy, inputs, request, json }) => {
            let text = String::from_utf8(read(&request)?)
                .with_context(|| format!("{} is not JSON", request.display()))?;
            let explanation = explain::explain(&inputs.of_source(&policy)?, &text)
                .with_context(|| format!("cannot explain {}", request.display()))?;
            if json {
                print(&format!("{}\n", serde_json::to_string(&explanation)?))?;
            } else {
                print(&parma_vmm::escape(explanation.to_string().as_bytes()))?;
            }
        }
        Command::Replay(Replay { policy, inputs, trace }) => {
            let file =
                File::open(&trace).with_context(|| format!("cannot read the trace {}", trace.display()))?;
            let (requests, answers) = (BufReader::new(file), io::stdout().lock());
            let bytes = read(&policy)?;
            if is_compiled(&bytes) {
                parma_policy::replay(&bytes, requests, answers)
            } else {
                parma_policy::replay_sources(&inputs.with(&policy, Vec::new())?, requests, answers)
            }
            .with_context(|| trace.display().to_string())?;
        }
        Command::Explore(Explore {
            policy,
            inputs,
            assert,
            fragment,
            ids,
            extra_devices,
            others,
            states,
            dot,
            json,
        }) => {
            let assertions = match &assert {
                None => None,
                Some(path) => {
                    let text = String::from_utf8(read(path)?);
                    Some((path.display().to_string(), text.with_context(|| path.display().to_string())?))
                }
            };
            let bounds = Bounds { ids, extra_devices, others, states };
            let fragments = fragment.iter().map(|path| fragment_image(path)).collect::<Result<Vec<_>>>()?;
            let image = read(&policy)?;
            let source;
            let subject = if is_compiled(&image) {
                explore::Policy::Image(&image)
            } else {
                source = inputs.with(&policy, Vec::new())?;
                explore::Policy::Source(&source)
            };
            let bar = super::run::spinner(false);
            let explored = explore(subject, &fragments, assertions.as_ref(), &bounds, &mut |progress| {
                let Progress { states, waiting, requests } = progress;
                bar.set_message(format!("{states} states, {waiting} to look at, {requests} requests"));
            });
            bar.finish_and_clear();
            let explored = explored.with_context(|| format!("cannot explore {}", policy.display()))?;
            if let Some(path) = dot {
                output::write(&path, explored.dot().as_bytes())?;
            }
            let report = parma_vmm::escape(explored.to_string().as_bytes());
            match &explored.violation {
                _ if json => print(&format!("{}\n", serde_json::to_string(&explored)?))?,
                None => print(&report)?,
                Some(violation) => {
                    eprint!("{report}");
                    print(&violation.trace.iter().map(|line| format!("{line}\n")).collect::<String>())?;
                }
            }
            if !explored.holds {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Disasm(Disasm { policy }) => {
            let text = parma_policy::disassemble(&Policy::read(&policy)?.image);
            print(&text.with_context(|| policy.display().to_string())?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Modules {
    /// As [`Modules::with`], for commands that have to see the source.
    fn of_source(&self, policy: &Path) -> Result<Inputs> {
        if is_compiled(&read(policy)?) {
            bail!("{} is compiled: give the Rego that it was compiled from", policy.display());
        }
        self.with(policy, Vec::new())
    }

    fn with(&self, policy: &Path, entries: Vec<String>) -> Result<Inputs> {
        let mut modules = Vec::new();
        for path in std::iter::once(policy).chain(self.module.iter().map(PathBuf::as_path)) {
            let text =
                String::from_utf8(read(path)?).with_context(|| format!("{} is not Rego", path.display()))?;
            modules.push((path.display().to_string(), text));
        }
        let data = match &self.data {
            None => None,
            Some(path) => {
                let value = serde_json::from_slice(&read(path)?);
                Some(value.with_context(|| format!("{} is not JSON", path.display()))?)
            }
        };
        let inputs = Inputs {
            modules,
            data,
            entries,
            framework: !self.no_framework,
            optimise: true,
            known_inputs: Default::default(),
        };
        let profiles = self.seccomp.iter().map(|path| {
            // Rules that depend on capabilities are those for a container that has the usual ones.
            Profile::read(&read(path)?, &usual_capabilities()).with_context(|| path.display().to_string())
        });
        inputs.with_seccomp(&profiles.collect::<Result<Vec<_>>>()?)
    }
}

/// A fragment's image, of its source or as it is.
fn fragment_image(path: &Path) -> Result<Vec<u8>> {
    let bytes = read(path)?;
    if is_compiled(&bytes) {
        return Ok(bytes);
    }
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not Rego", path.display()))?;
    let compiled = parma_policy::fragment::compile_fragment(&path.display().to_string(), &text);
    Ok(compiled.map_err(|error| anyhow!("{error}"))?.image)
}

fn is_compiled(bytes: &[u8]) -> bool {
    bytes.starts_with(&parma_guest::policy::format::MAGIC)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Standard output may be a pipe that is closed: that is an error, not a panic.
fn print(text: &str) -> Result<()> {
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
