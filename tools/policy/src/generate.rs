//! The strict policy of an OCI image, or of the containers of a Pod.
//!
//! [`Container`] is what one container of an image is to be: the image's configuration and what the user, or the Pod
//! ([`read_pod`]), adds. It gives the policy and the values that an honest request then has, so the two cannot differ.
//! The policy allows that one process line, user, environment and directory, on exactly the image's layers, and
//! nothing else. What it cannot express is an error, never left out.

mod accounts;
mod kubernetes;
mod rehearse;
mod settings;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use parma_guest::attest::service;
use parma_guest::gate::fields::{Args, CAPABILITY_NAMES, Env, Resources, UserSpec, WorkingDir};
use parma_guest::wire::{Capabilities, List, MAX_ARGS, MAX_ENV};
use parma_layer::oci::Image;
use serde_json::{Value, json};

pub use accounts::{Accounts, Identity};
pub use kubernetes::{ExecProbe, Pod, PodContainer, Restart, read_pod};
pub use settings::{PodSettings, Settings, hostname, rlimit, sysctl};

use crate::seccomp::{self, Profile};

/// The `PATH` of a container whose image has none, as container engines set it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File mode creation mask of every process.
const UMASK: u16 = 0o022;
/// The signal that ends a process whatever it does.
const SIGKILL: u8 = 9;
/// The signal that asks a process to end, unless the image names another.
const SIGTERM: u8 = 15;
/// The capabilities that container engines give to a container that asks for nothing.
const USUAL_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
/// The capabilities that container engines give to a container that asks for nothing.
pub fn usual_capabilities() -> Vec<String> {
    USUAL_CAPABILITIES.iter().map(ToString::to_string).collect()
}

/// Largest scratch device, unless the user says otherwise: 16 GiB.
const MAX_SCRATCH: u64 = 16 << 30;
/// The points that a generated policy takes from the framework. The others stay denied.
const POINTS: [&str; 17] = [
    "mount_device",
    "unmount_device",
    "rw_mount_device",
    "rw_unmount_device",
    "mount_overlay",
    "unmount_overlay",
    "scratch_mount",
    "scratch_unmount",
    "create_container",
    "exec_in_container",
    "signal_container_process",
    "update_container",
    "shutdown_container",
    "get_properties",
    "dump_stacks",
    "runtime_logging",
    "host_network",
];

/// What the user adds to the image's configuration.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The container's name in the policy.
    pub name: Option<String>,
    /// A command in place of the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments in place of the image's `Cmd`; its entry point stays.
    pub args: Option<Vec<String>>,
    /// `NAME=value`: replaces the image's variable of that name, or is added.
    pub env: Vec<String>,
    /// A working directory in place of the image's.
    pub working_dir: Option<String>,
    /// A user in place of the image's, `user[:group]`.
    pub user: Option<String>,
    /// Whether it is an error if the user is root.
    pub non_root: bool,
    /// Capabilities in place of the usual ones.
    pub capabilities: Option<Vec<String>>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Data volumes that are mounted.
    pub volumes: Vec<DataVolume>,
    /// What a Pod's claims of volumes stand for, by the claims' names.
    pub claims: BTreeMap<String, VolumeContent>,
    /// Whether it can attest itself: it gets the attestation directory, and the variable that names it.
    pub attestation: bool,
    /// Names of the containers that have to be running before it is created.
    pub after: Vec<String>,
    /// Further commands that may be started in the container, with its user, environment and directory.
    pub exec: Vec<Vec<String>>,
    /// Signals that may be sent to every process, 1 to 64; by default the image's stop signal and SIGKILL.
    pub signals: Option<Vec<u8>>,
    /// Whether standard streams may be connected to the host.
    pub stdio: bool,
    /// Whether they may be a terminal.
    pub terminal: bool,
    /// Whether processes can never gain privileges, by a set-user-ID program for instance.
    pub no_new_privileges: bool,
    /// Whether the host may list devices, containers and processes.
    pub properties: bool,
    /// Whether the host may turn on the guest's own log.
    pub logging: bool,
    /// Largest scratch device, in bytes.
    pub max_scratch: u64,
    /// Whether what the container writes may stay in the guest's memory instead of on a scratch device.
    pub memory_scratch: bool,
    /// Whether the host may give the containers a network.
    pub network: bool,
    /// Whether the guest is ready only when this one is running.
    pub required: bool,
    /// How often the container may be created until power-off.
    pub max_instances: Option<u32>,
    /// The most that the host may give it; less, too.
    pub limits: Limits,
    /// Names of the containers whose work has to be done before it is created.
    pub after_success: Vec<String>,
    /// A profile of system calls, as a file of JSON.
    pub seccomp: Option<Vec<u8>>,
    /// What the guest gives it.
    pub settings: Settings,
    /// What the guest gives all containers.
    pub pod: PodSettings,
}

/// Most memory and processor time of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu: Option<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            name: None,
            entrypoint: None,
            args: None,
            env: Vec::new(),
            working_dir: None,
            user: None,
            non_root: false,
            capabilities: None,
            mounts: Vec::new(),
            volumes: Vec::new(),
            claims: BTreeMap::new(),
            attestation: false,
            after: Vec::new(),
            exec: Vec::new(),
            signals: None,
            stdio: true,
            terminal: false,
            no_new_privileges: true,
            properties: true,
            logging: false,
            max_scratch: MAX_SCRATCH,
            memory_scratch: false,
            network: false,
            required: false,
            max_instances: None,
            limits: Limits::default(),
            after_success: Vec::new(),
            seccomp: None,
            settings: Settings::default(),
            pod: PodSettings::default(),
        }
    }
}

/// A directory on the container's scratch space, empty at first, that is mounted in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory's name: containers that name the same share it.
    pub volume: String,
    /// Where it is mounted.
    pub destination: String,
    /// Whether the container can only read it.
    pub read_only: bool,
}

impl Mount {
    /// The constraint of a policy that allows it, with the path of the directory below the scratch space as pattern.
    fn constraint(&self) -> Value {
        // Of what a name may have, only the dot means something in a pattern.
        let source = format!("sandbox:///tmp/atlas/emptydir/{}", self.volume.replace('.', "\\."));
        json!({"type": "bind", "source": source, "destination": self.destination, "options": self.options()})
    }

    /// Its options, as the guest gives them to the policy.
    fn options(&self) -> [&'static str; 3] {
        ["rbind", "rshared", if self.read_only { "ro" } else { "rw" }]
    }
}

/// A data volume that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataVolume {
    /// What it is known by.
    pub content: VolumeContent,
    /// Where it is mounted.
    pub destination: String,
    /// Whether the container can only read it, as is always so of read-only content.
    pub read_only: bool,
}

/// What a data volume is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeContent {
    /// Read-only content: the root hash, by which dm-verity checks it as it does a layer.
    Verified([u8; 32]),
    /// Encrypted content that can be written: the id, which follows from the key.
    Encrypted([u8; 32]),
}

impl DataVolume {
    /// The constraint of a policy that allows it.
    fn constraint(&self) -> Value {
        match &self.content {
            VolumeContent::Verified(root_hash) => self.mount(&format!("verity://{}", hex(root_hash))),
            VolumeContent::Encrypted(id) => self.mount(&format!("volume://{}", hex(id))),
        }
    }

    /// The mount, as the guest gives it to the policy; `source` is where the disk is mounted.
    fn mount(&self, source: &str) -> Value {
        let access = if self.read_only { "ro" } else { "rw" };
        json!({
            "type": "bind", "source": source, "destination": self.destination, "options": ["rbind", "rshared", access],
        })
    }
}

/// The mount of the attestation directory: both the constraint, and what the guest gives to the policy.
fn attestation() -> Value {
    json!({
        "type": "bind", "source": "/run/attestation", "destination": service::DIRECTORY,
        "options": ["rbind", "rshared", "ro"],
    })
}

/// One container: what its policy allows, and what an honest host asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name in the policy.
    pub name: Option<String>,
    /// Digest of the image's manifest, `sha256:…`.
    pub image: String,
    /// The layers' root hashes, bottom first.
    pub layers: Vec<[u8; 32]>,
    /// The argument vector of the first process.
    pub args: Vec<String>,
    /// The environment of every process, in order.
    pub env: Vec<String>,
    /// The working directory of every process.
    pub working_dir: String,
    /// The user of every process, as the image writes it.
    pub user: String,
    /// The same, resolved.
    pub identity: Identity,
    /// File mode creation mask of every process.
    pub umask: u16,
    /// Capabilities that every process has, and can get.
    pub held: Vec<String>,
    /// What is mounted.
    pub mounts: Vec<Mount>,
    /// Data volumes that are mounted.
    pub volumes: Vec<DataVolume>,
    /// Whether it can attest itself.
    pub attestation: bool,
    /// Names of the containers that have to be running before it is created.
    pub after: Vec<String>,
    /// Whether processes can never gain privileges.
    pub no_new_privileges: bool,
    /// Whether standard streams may be connected.
    pub stdio: bool,
    /// Whether they may be a terminal.
    pub terminal: bool,
    /// Commands of further processes.
    pub exec: Vec<Vec<String>>,
    /// Signals to any process, ascending.
    pub signals: Vec<u8>,
    /// Whether the host may list devices, containers and processes.
    pub properties: bool,
    /// Whether the host may turn on the guest's own log.
    pub logging: bool,
    /// Largest scratch device, in bytes.
    pub max_scratch: u64,
    /// Whether what the container writes may stay in the guest's memory.
    pub memory_scratch: bool,
    /// Whether the host may give the containers a network.
    pub network: bool,
    /// Whether the guest is ready only when this one is running.
    pub required: bool,
    /// How often it may be created.
    pub max_instances: Option<u32>,
    /// The most that the host may give it.
    pub limits: Limits,
    /// Names of the containers whose work has to be done before it is created.
    pub after_success: Vec<String>,
    /// Its profile of system calls.
    pub seccomp: Option<Profile>,
    /// What the guest gives it.
    pub settings: Settings,
    /// What the guest gives all containers.
    pub pod: PodSettings,
}

/// The strict policy of `image`, whose layers have these dm-verity root hashes, bottom first.
///
/// The policy has been compiled, and has allowed every request of an honest life of the container.
///
/// # Errors
/// As [`Container::new`], or if the policy does not do that.
pub fn generate(image: &Image, layers: &[[u8; 32]], options: &GenerateOptions) -> Result<String> {
    policy_of(&[Container::new(image, layers, options)?])
}

/// The strict policy of some containers in one guest.
///
/// It has been compiled, and has allowed every request of an honest life of each container.
///
/// # Errors
/// There is none, or the policy does not do that.
pub fn policy_of(containers: &[Container]) -> Result<String> {
    ensure!(!containers.is_empty(), "there is no container");
    let policy = text(containers);
    rehearse::rehearse(containers, &policy)?;
    Ok(policy)
}

impl Container {
    /// The container of `image`, whose layers have these dm-verity root hashes, bottom first.
    ///
    /// # Errors
    /// Something that a policy or the guest cannot express: no command, a malformed or repeated variable, a directory
    /// that is not absolute, an unknown user or signal, another number of root hashes than of layers. Or the
    /// layers cannot be read.
    pub fn new(image: &Image, layers: &[[u8; 32]], options: &GenerateOptions) -> Result<Self> {
        let of_image = || format!("image {}", image.reference);
        ensure!(
            layers.len() == image.layers.len(),
            "{}: {} root hashes for {} layers",
            of_image(),
            layers.len(),
            image.layers.len()
        );
        ensure!(!layers.is_empty(), "{}: it has no layers", of_image());
        let config = &image.config;
        let entrypoint = options.entrypoint.as_ref().unwrap_or(&config.entrypoint);
        let args = options.args.as_ref().unwrap_or(&config.cmd);
        let mut env = options.env.clone();
        if options.attestation {
            env.push(format!("{}={}", service::DIRECTORY_VARIABLE, service::DIRECTORY));
        }
        let user = options.user.as_ref().unwrap_or(&config.user);
        let identity = identity(image, user).with_context(of_image)?;
        ensure!(
            !options.non_root || identity.uid != 0,
            "{}: its user is root, and must not be: give another",
            of_image()
        );
        let held = match &options.capabilities {
            Some(names) => names.clone(),
            None => usual_capabilities(),
        };
        let seccomp = options.seccomp.as_deref().map(|json| Profile::read(json, &held));
        options.pod.rule()?;
        let container = Self {
            name: options.name.clone(),
            image: format!("sha256:{}", image.manifest.hex()),
            layers: layers.to_vec(),
            args: command(entrypoint.iter().chain(args).cloned().collect()).with_context(of_image)?,
            env: environment(&config.env, &env).with_context(of_image)?,
            working_dir: working_dir(options.working_dir.as_ref().unwrap_or(&config.working_dir))
                .with_context(of_image)?,
            user: user.clone(),
            identity,
            umask: UMASK,
            held,
            mounts: options.mounts.clone(),
            volumes: options.volumes.clone(),
            attestation: options.attestation,
            after: options.after.clone(),
            no_new_privileges: options.no_new_privileges,
            stdio: options.stdio,
            terminal: options.terminal,
            exec: options.exec.iter().cloned().map(command).collect::<Result<_>>()?,
            signals: signals(options.signals.as_deref(), config.stop_signal.as_deref())
                .with_context(of_image)?,
            properties: options.properties,
            logging: options.logging,
            max_scratch: options.max_scratch,
            memory_scratch: options.memory_scratch,
            network: options.network,
            required: options.required,
            max_instances: options.max_instances,
            limits: options.limits,
            after_success: options.after_success.clone(),
            seccomp: seccomp.transpose().context("the seccomp profile")?,
            settings: options.settings.clone(),
            pod: options.pod.clone(),
        };
        Ok(container)
    }

    /// The capability sets of every process.
    pub fn capabilities(&self) -> Capabilities {
        let held = CAPABILITY_NAMES.iter().enumerate();
        let held = held.filter(|(_, name)| self.held.iter().any(|held| held == *name));
        let held = held.fold(0, |set, (number, _)| set | 1 << number);
        Capabilities { bounding: held, effective: held, inheritable: 0, permitted: held, ambient: 0 }
    }

    /// The hash of its profile of system calls, if it has one.
    ///
    /// # Errors
    /// There is none.
    pub fn seccomp_hash(&self) -> Result<Option<[u8; 32]>> {
        self.seccomp.as_ref().map(Profile::hash).transpose()
    }

    /// The policy's text: Rego, the same for the same container.
    pub fn policy(&self) -> String {
        text(std::slice::from_ref(self))
    }

    /// Its entry in a policy.
    fn entry(&self) -> String {
        let rule = |variable: &String| json!({"pattern": variable, "strategy": "string", "required": true});
        let process = |command: &Vec<String>| json!({"command": command, "signals": self.signals});
        let number = |id: &u32| json!({"pattern": id.to_string(), "strategy": "id"});
        let name =
            self.name.as_ref().map(|name| format!("    \"name\": {},\n", json!(name))).unwrap_or_default();
        let after = match &*self.after {
            [] => String::new(),
            names => format!(
                "    # These have to be running before it is created.\n    \"after\": {},\n",
                json!(names)
            ),
        };
        let after = match &*self.after_success {
            [] => after,
            names => format!(
                "{after}    # And the first processes of these have ended with 0.\n    \"after_success\": {},\n",
                json!(names)
            ),
        };
        let id = json!(self.image);
        let layers = lines(self.layers.iter().map(|layer| json!(hex(layer))));
        let command = json!(self.args);
        let exec = lines(self.exec.iter().map(process));
        let signals = json!(self.signals);
        let env = lines(self.env.iter().map(rule));
        let working_dir = json!(self.working_dir);
        let user = number(&self.identity.uid);
        let groups = lines(self.identity.gids.iter().map(number));
        let umask = json!(format!("{:04o}", self.umask));
        let held = json!(self.held);
        let volumes = self.volumes.iter().map(DataVolume::constraint);
        let attestation = self.attestation.then(attestation);
        let mounts = lines(self.mounts.iter().map(Mount::constraint).chain(volumes).chain(attestation));
        let further = self.further();
        let seccomp = json!(self.seccomp_hash().ok().flatten().map(|hash| hex(&hash)).unwrap_or_default());
        let Self { no_new_privileges, stdio, .. } = self;
        format!(
            r#"  {{
{name}    "id": {id},
{after}    # The root hashes of the layers, bottom first.
    "layers": {layers},
    # The first process, and the signals that may be sent to it.
    "command": {command},
    "signals": {signals},
    # Processes that may be started later.
    "exec_processes": {exec},
    # What is the same for every process.
    "env_rules": {env},
    "working_dir": {working_dir},
    "user": {{
      "user_idname": {user},
      "group_idnames": {groups},
      "umask": {umask},
    }},
    "capabilities": {{
      "bounding": {held},
      "effective": {held},
      "inheritable": [],
      "permitted": {held},
      "ambient": [],
    }},
    "no_new_privileges": {no_new_privileges},
    "allow_elevated": false,
    "seccomp_profile_sha256": {seccomp},
    "mounts": {mounts},
    # Whether standard streams may be connected to the host.
    "allow_stdio_access": {stdio},
{further}  }},
"#
        )
    }
}

impl Container {
    /// Fields that only some entries have, one a line.
    fn further(&self) -> String {
        let mut lines = String::new();
        if self.terminal {
            lines += "    # Standard streams may be a terminal, whose keys send signals: Ctrl-C, for instance.\n    \"allow_terminal\": true,\n";
        }
        if self.required {
            lines += "    # The guest is not ready without it.\n    \"required\": true,\n";
        }
        if let Some(most) = self.max_instances {
            lines += &format!("    \"max_instances\": {most},\n");
        }
        let mut ranges = serde_json::Map::new();
        for (name, least, most) in [
            ("memory", *Resources::MEMORY.start(), self.limits.memory),
            ("cpu", (*Resources::CPU.start()).into(), self.limits.cpu.map(u64::from)),
        ] {
            ranges.extend(most.map(|most| (name.to_owned(), json!({"least": least, "most": most}))));
        }
        if !ranges.is_empty() {
            lines += &format!(
                "    # What the host may limit it to: bytes, thousandths of a processor.\n    \"resources\": {},\n",
                Value::from(ranges)
            );
        }
        if let Some(settings) = self.settings.entry() {
            lines += &format!("    # What the guest gives it by itself.\n    \"settings\": {settings},\n");
        }
        lines
    }
}

/// The policy of these containers. What is not a container's own is the first one's.
fn text(containers: &[Container]) -> String {
    let Some(Container { properties, logging, max_scratch, memory_scratch, network, pod, .. }) =
        containers.first()
    else {
        return String::new();
    };
    // Both were read before.
    let pod = pod
        .rule()
        .ok()
        .flatten()
        .map(|pod| format!("\n# What the guest gives all containers by itself.\npod := {pod}\n"));
    let profiles: Vec<Profile> =
        containers.iter().filter_map(|container| container.seccomp.clone()).collect();
    let filters = (!profiles.is_empty())
        .then(|| seccomp::rule(&profiles).unwrap_or_default())
        .map(|rule| format!("\n# The filters of system calls, by the hashes of their profiles.\n{rule}"));
    let own = pod.unwrap_or_default() + &filters.unwrap_or_default();
    let count = if containers.len() == 1 { "one container" } else { "the containers of one guest" };
    let entries: String = containers.iter().map(Container::entry).collect();
    let points: String = POINTS.iter().map(|point| format!("{point} := data.framework.{point}\n")).collect();
    format!(
        r#"# The policy of {count}. What it does not name is denied.
# What it means is said by the framework that is compiled with it: docs/policy-framework.md.
package policy

api_version := "0.12.0"
framework_version := "0.5.0"

containers := [
{entries}]

# Whether the host may list devices, containers and processes, use the guest's own log, or see its stacks.
allow_properties_access := {properties}
allow_runtime_logging := {logging}
allow_dump_stacks := false

# Whether the host may give the containers a network. Without it they have a loopback interface each and nothing else.
allow_host_network := {network}

# Where what the container writes may go: to a disk of at most so many bytes, encrypted under a key that only the guest has,
# and protected against roll-back; or to the guest's memory.
max_scratch_size := {max_scratch}
allow_unencrypted_scratch := false
allow_scratch_rollback := false
allow_memory_scratch := {memory_scratch}

# Whether a corrupted block of a layer ends the guest. If not, it is an error for whoever reads it.
panic_on_corruption := false

# Whether the host may ask for more variables or capabilities than are allowed, and is given those that are.
allow_environment_variable_dropping := false
allow_capability_dropping := false
{own}
# What the host may ask for at all.
{points}
reason := data.framework.reason
"#
    )
}

/// A JSON array of one element a line, which is also how Rego writes one.
fn lines(items: impl Iterator<Item = Value>) -> String {
    let items: String = items.map(|item| format!("      {item},\n")).collect();
    if items.is_empty() { "[]".into() } else { format!("[\n{items}    ]") }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A command that the guest can execute.
fn command(args: Vec<String>) -> Result<Vec<String>> {
    ensure!(!args.is_empty(), "there is no command: the image has none, so give one after `--`");
    let borrowed = List::<_, MAX_ARGS>::from_vec(args.iter().map(String::as_str).collect());
    let borrowed = borrowed.with_context(|| format!("the command has {} arguments: too many", args.len()))?;
    if Args::parse(&borrowed).is_err() {
        bail!("the command {args:?} begins with an empty argument or has a NUL byte in one");
    }
    Ok(args)
}

/// The image's variables, overlaid by `added`, with a `PATH` where there is none.
fn environment(image: &[String], added: &[String]) -> Result<Vec<String>> {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut env = image.to_vec();
    for variable in added {
        match env[..image.len()].iter().position(|other| name(other) == name(variable)) {
            Some(at) => env[at].clone_from(variable),
            None => env.push(variable.clone()),
        }
    }
    if !env.iter().any(|variable| name(variable) == "PATH") {
        env.insert(0, DEFAULT_PATH.into());
    }
    let borrowed = List::<_, MAX_ENV>::from_vec(env.iter().map(String::as_str).collect());
    let borrowed = borrowed.with_context(|| format!("{} variables are too many", env.len()))?;
    if let Err(invalid) = Env::parse(&borrowed) {
        bail!(
            "environment: {:?}: every variable is NAME=value without a NUL byte, and each name occurs once",
            invalid.value
        );
    }
    Ok(env)
}

/// The image's directory, in the one spelling that the guest takes.
fn working_dir(image: &str) -> Result<String> {
    ensure!(image.is_empty() || image.starts_with('/'), "the working directory {image:?} is not absolute");
    let parts = image.split('/').filter(|part| !part.is_empty());
    let path = format!("/{}", parts.collect::<Vec<_>>().join("/"));
    if WorkingDir::parse(&path).is_err() {
        bail!("the working directory {image:?} has a part `.` or `..` or a NUL byte, or is too long");
    }
    Ok(path)
}

/// A user, resolved in the image's files.
fn identity(image: &Image, user: &str) -> Result<Identity> {
    let Ok(spec) = UserSpec::parse(user) else {
        bail!("the user {user:?} is not `user[:group]` of names and numbers");
    };
    Accounts::read(image)?.identity(spec)
}

/// The signals to allow, ascending.
fn signals(wanted: Option<&[u8]>, stop: Option<&str>) -> Result<Vec<u8>> {
    let mut signals = match (wanted, stop) {
        (Some(wanted), _) => wanted.to_vec(),
        (None, None) => vec![SIGKILL, SIGTERM],
        (None, Some(stop)) => vec![SIGKILL, signal(stop).with_context(|| format!("stop signal {stop:?}"))?],
    };
    if let Some(wrong) = signals.iter().find(|signal| !(1..=64).contains(*signal)) {
        bail!("signal {wrong}: signals are numbered 1 to 64");
    }
    signals.sort_unstable();
    signals.dedup();
    Ok(signals)
}

/// The number of a signal that is written as `SIGTERM`, `TERM` or `15`.
///
/// # Errors
/// It is no signal of Linux on x86-64.
pub fn signal(text: &str) -> Result<u8> {
    /// `signal(7)`; the first is number 1.
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    // What a C library leaves of the real-time signals to programs: 34 to 64.
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(34),
        (Some(offset), _) => {
            offset.strip_prefix('+').and_then(|offset| offset.parse::<u8>().ok()?.checked_add(34))
        }
        (_, Some("")) => Some(64),
        (_, Some(offset)) => {
            offset.strip_prefix('-').and_then(|offset| 64_u8.checked_sub(offset.parse().ok()?))
        }
        _ => match NAMES.iter().position(|known| *known == name) {
            Some(index) => u8::try_from(index + 1).ok(),
            None => text.parse().ok(),
        },
    };
    let number = number.filter(|number| (1..=64).contains(number));
    number.with_context(|| format!("{text:?} is no signal: write SIGTERM, TERM or a number from 1 to 64"))
}
