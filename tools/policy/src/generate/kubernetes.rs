//! A Kubernetes Pod, as YAML, to what its containers are to be.
//!
//! Every field of the Pod is either expressed, or known to mean nothing to a guest (where a pod is scheduled, which
//! ports it documents), or an error that names it: nothing that was written is left out silently.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use parma_guest::gate::fields::{self, CAPABILITY_NAMES, DirectoryName, MountPoint};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{
    DataVolume, GenerateOptions, Limits, Mount, PodSettings, Settings, USUAL_CAPABILITIES, VolumeContent,
    hostname, sysctl,
};

/// A pod, as far as it is not the cluster's business.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Which of its containers are started again when they end.
    pub restart: Restart,
    /// Seconds from the signal that asks a container to stop to its end.
    pub grace: u32,
    /// The initial containers, then the others.
    pub containers: Vec<PodContainer>,
}

/// When a container that has ended is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum Restart {
    /// Whatever it ended with.
    #[default]
    Always,
    /// When it failed.
    OnFailure,
    /// Never.
    Never,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct PodContainer {
    /// Where it is in the Pod, `spec.containers[0]` for instance.
    pub place: String,
    /// Its image, as the Pod names it.
    pub image: String,
    /// What the Pod says about it.
    pub options: GenerateOptions,
    /// Whether the others wait until it has ended well.
    pub initial: bool,
    /// Asked until it succeeds, before the others are.
    pub startup: Option<ExecProbe>,
    /// Says whether the container is to be asked for something.
    pub readiness: Option<ExecProbe>,
    /// If it fails the container is ended.
    pub liveness: Option<ExecProbe>,
    /// A command for when the container has started.
    pub post_start: Option<Vec<String>>,
    /// A command for before it is asked to stop.
    pub pre_stop: Option<Vec<String>>,
    /// The TCP ports that it says it listens on.
    pub ports: Vec<u16>,
}

/// A probe that is a command in the container. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields of Kubernetes' Probe")]
pub struct ExecProbe {
    pub command: Vec<String>,
    pub initial_delay: u32,
    pub period: u32,
    pub timeout: u32,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: Metadata,
    spec: Spec,
}

/// What else is there is for the cluster.
#[derive(Deserialize, Default)]
struct Metadata {
    name: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The annotation that names the containers which can attest themselves, separated by commas.
const ATTESTATION: &str = "parma/attestation";

/// Fields whose names begin with `_` are known and mean nothing to a guest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
    #[serde(default)]
    volumes: Vec<Volume>,
    #[serde(default)]
    security_context: PodSecurity,
    #[serde(default, rename = "hostNetwork")]
    host_network: bool,
    #[serde(default, rename = "hostPID")]
    host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    host_ipc: bool,
    #[serde(default)]
    share_process_namespace: bool,
    #[serde(default)]
    enable_service_links: bool,
    #[serde(default)]
    automount_service_account_token: bool,
    #[serde(default)]
    restart_policy: Restart,
    termination_grace_period_seconds: Option<u32>,
    hostname: Option<String>,
    #[serde(default)]
    resources: Resources,
    #[serde(default, rename = "activeDeadlineSeconds")]
    _active_deadline_seconds: IgnoredAny,
    #[serde(default, rename = "runtimeClassName")]
    _runtime_class_name: IgnoredAny,
    #[serde(default, rename = "nodeName")]
    _node_name: IgnoredAny,
    #[serde(default, rename = "nodeSelector")]
    _node_selector: IgnoredAny,
    #[serde(default, rename = "affinity")]
    _affinity: IgnoredAny,
    #[serde(default, rename = "tolerations")]
    _tolerations: IgnoredAny,
    #[serde(default, rename = "topologySpreadConstraints")]
    _topology_spread_constraints: IgnoredAny,
    #[serde(default, rename = "priorityClassName")]
    _priority_class_name: IgnoredAny,
    #[serde(default, rename = "schedulerName")]
    _scheduler_name: IgnoredAny,
    #[serde(default, rename = "imagePullSecrets")]
    _image_pull_secrets: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Container {
    name: String,
    image: String,
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
    working_dir: Option<String>,
    #[serde(default)]
    env: Vec<Variable>,
    #[serde(default)]
    volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    security_context: Security,
    liveness_probe: Option<Probe>,
    readiness_probe: Option<Probe>,
    startup_probe: Option<Probe>,
    lifecycle: Option<Lifecycle>,
    #[serde(default)]
    tty: bool,
    #[serde(default)]
    ports: Vec<Port>,
    #[serde(default)]
    resources: Resources,
    #[serde(default, rename = "stdin")]
    _stdin: IgnoredAny,
    #[serde(default, rename = "stdinOnce")]
    _stdin_once: IgnoredAny,
    #[serde(default, rename = "imagePullPolicy")]
    _image_pull_policy: IgnoredAny,
    #[serde(default, rename = "terminationMessagePolicy")]
    _termination_message_policy: IgnoredAny,
    restart_policy: Option<Restart>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Port {
    container_port: u16,
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    #[serde(default)]
    protocol: Protocol,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
enum Protocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
}

/// Requests are for the scheduler.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default)]
    limits: BTreeMap<String, Quantity>,
    #[serde(default, rename = "requests")]
    _requests: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Integer(u64),
    Float(f64),
    Text(String),
}

impl Quantity {
    /// Thousandths of the quantity, rounded up.
    fn thousandths(&self) -> Option<u64> {
        let text = match self {
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        };
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let factor: u128 = match suffix {
            "m" => 1,
            "" => 1000,
            "k" => 1000 * 1000,
            "M" => 1000 * 1000_u128.pow(2),
            "G" => 1000 * 1000_u128.pow(3),
            "T" => 1000 * 1000_u128.pow(4),
            "Ki" => 1000 << 10,
            "Mi" => 1000 << 20,
            "Gi" => 1000 << 30,
            "Ti" => 1000 << 40,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        u64::try_from(digits.checked_mul(factor)?.div_ceil(scale)).ok()
    }
}

impl Resources {
    fn limits(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        for (name, quantity) in &self.limits {
            let place = || format!("resources.limits.{name}");
            let thousandths = quantity.thousandths().with_context(place)?;
            match name.as_str() {
                "memory" => {
                    let bytes = thousandths.div_ceil(1000);
                    ensure!(fields::Resources::MEMORY.contains(&bytes), "{}: from 1Mi to 1Ti", place());
                    limits.memory = Some(bytes);
                }
                "cpu" => {
                    let share = u32::try_from(thousandths).ok();
                    let share = share.filter(|share| fields::Resources::CPU.contains(share));
                    limits.cpu = Some(share.with_context(|| format!("{}: from 10m to 1000", place()))?);
                }
                _ => bail!("{}: the guest limits memory and cpu; leave it out", place()),
            }
        }
        Ok(limits)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    empty_dir: Option<EmptyDir>,
    persistent_volume_claim: Option<Claim>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Claim {
    claim_name: String,
    #[serde(default)]
    read_only: bool,
}

/// What containers of the Pod can mount.
enum Mountable {
    /// A directory on the scratch device.
    Directory,
    /// What a claim stands for.
    Data { content: VolumeContent, read_only: bool },
}

impl Volume {
    fn mountable(&self, place: &str, claims: &BTreeMap<String, VolumeContent>) -> Result<Mountable> {
        match (&self.empty_dir, &self.persistent_volume_claim) {
            (Some(directory), None) => {
                ensure!(
                    directory.medium.is_empty(),
                    "{place}.emptyDir.medium: such a volume is on the scratch device, in encrypted form; leave it out"
                );
                ensure!(DirectoryName::parse(&self.name).is_ok(), "{place}.name: {:?} is no name", self.name);
                Ok(Mountable::Directory)
            }
            (None, Some(Claim { claim_name, read_only })) => {
                let content = claims.get(claim_name).with_context(|| {
                    format!(
                        "{place}.persistentVolumeClaim.claimName: say which data volume it is, --claim \
                         {claim_name}=FILE, of an encrypted one {claim_name}=FILE:ID"
                    )
                })?;
                Ok(Mountable::Data { content: *content, read_only: *read_only })
            }
            _ => bail!("{place}: give it emptyDir or persistentVolumeClaim, and nothing else"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EmptyDir {
    #[serde(default)]
    medium: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeMount {
    name: String,
    mount_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodSecurity {
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
    run_as_non_root: Option<bool>,
    seccomp_profile: Option<Seccomp>,
    #[serde(default)]
    sysctls: Vec<Setting>,
    #[serde(default)]
    supplemental_groups: Vec<u32>,
    fs_group: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Setting {
    name: String,
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Security {
    run_as_user: Option<u32>,
    run_as_group: Option<u32>,
    run_as_non_root: Option<bool>,
    allow_privilege_escalation: Option<bool>,
    #[serde(default)]
    privileged: bool,
    #[serde(default)]
    read_only_root_filesystem: bool,
    #[serde(default)]
    capabilities: Capabilities,
    seccomp_profile: Option<Seccomp>,
    proc_mount: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Capabilities {
    #[serde(default)]
    add: Vec<String>,
    #[serde(default)]
    drop: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Seccomp {
    #[serde(rename = "type")]
    kind: String,
    localhost_profile: Option<String>,
}

/// What is asked over the network needs no leave of the policy; a command does.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Probe {
    exec: Option<Exec>,
    #[serde(default, rename = "httpGet")]
    _http_get: IgnoredAny,
    #[serde(default, rename = "tcpSocket")]
    _tcp_socket: IgnoredAny,
    #[serde(default, rename = "grpc")]
    _grpc: IgnoredAny,
    initial_delay_seconds: Option<u32>,
    period_seconds: Option<u32>,
    timeout_seconds: Option<u32>,
    success_threshold: Option<u32>,
    failure_threshold: Option<u32>,
    #[serde(default, rename = "terminationGracePeriodSeconds")]
    _termination_grace_period_seconds: IgnoredAny,
}

impl Probe {
    /// What it is where it is a command.
    fn exec(probe: Option<&Self>) -> Option<ExecProbe> {
        let probe = probe?;
        Some(ExecProbe {
            command: probe.exec.as_ref()?.command.clone(),
            initial_delay: probe.initial_delay_seconds.unwrap_or(0),
            period: probe.period_seconds.unwrap_or(10).max(1),
            timeout: probe.timeout_seconds.unwrap_or(1).max(1),
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Lifecycle {
    post_start: Option<Handler>,
    pre_stop: Option<Handler>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Handler {
    exec: Option<Exec>,
    #[serde(default, rename = "httpGet")]
    _http_get: IgnoredAny,
    #[serde(default, rename = "sleep")]
    _sleep: IgnoredAny,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Exec {
    command: Vec<String>,
}

/// Seconds that a container has to stop, unless the Pod says otherwise.
const GRACE: u32 = 30;

/// The Pod in `yaml`. `options` are what the user adds to each container; `profile` reads a profile of system calls that the
/// Pod names.
///
/// # Errors
/// It is no Pod, or says something that a policy cannot express; the error names the field.
pub fn read_pod(
    yaml: &str,
    options: &GenerateOptions,
    profile: &dyn Fn(&str) -> Result<Vec<u8>>,
) -> Result<Pod> {
    let pod: Document = serde_saphyr::from_str(yaml)
        .context("not a Pod that a policy can express: this field is not known, or of another type")?;
    ensure!(
        pod.api_version == "v1" && pod.kind == "Pod",
        "kind is {} {}: give a v1 Pod, of a Deployment or Job for instance its template",
        pod.api_version,
        pod.kind
    );
    let spec = pod.spec;
    for (field, set) in [
        ("hostNetwork", spec.host_network),
        ("hostPID", spec.host_pid),
        ("hostIPC", spec.host_ipc),
        ("enableServiceLinks", spec.enable_service_links),
        ("automountServiceAccountToken", spec.automount_service_account_token),
    ] {
        ensure!(!set, "spec.{field}: no policy can express it; leave it out, or make it false");
    }
    for (field, set) in [
        ("supplementalGroups", !spec.security_context.supplemental_groups.is_empty()),
        ("fsGroup", spec.security_context.fs_group.is_some()),
    ] {
        ensure!(
            !set,
            "spec.securityContext.{field}: groups are those that the image has for its user; leave it out"
        );
    }
    let options = &GenerateOptions {
        pod: spec.settings(pod.metadata.name.as_deref(), &options.pod)?,
        ..options.clone()
    };
    ensure!(!spec.containers.is_empty(), "spec.containers: there is none");
    let mut volumes = BTreeMap::new();
    for (number, volume) in spec.volumes.iter().enumerate() {
        let place = format!("spec.volumes[{number}]");
        let mountable = volume.mountable(&place, &options.claims)?;
        let before = volumes.insert(volume.name.as_str(), mountable);
        ensure!(before.is_none(), "{place}.name: {:?} is there twice", volume.name);
    }
    for claim in options.claims.keys() {
        let named = |volume: &Volume| {
            volume.persistent_volume_claim.as_ref().is_some_and(|named| named.claim_name == *claim)
        };
        ensure!(spec.volumes.iter().any(named), "spec.volumes: none claims {claim:?}");
    }
    let attested = pod.metadata.annotations.get(ATTESTATION);
    let mut attested: BTreeSet<&str> =
        attested.map(|names| names.split(',').map(str::trim).collect()).unwrap_or_default();
    let lists = [("initContainers", &spec.init_containers), ("containers", &spec.containers)];
    let mut names = BTreeSet::new();
    let mut containers: Vec<PodContainer> = Vec::new();
    // Initial containers start one after the other, the others after the last of them.
    let mut after = Vec::new();
    let place = "spec.securityContext";
    let general = seccomp(place, spec.security_context.seccomp_profile.as_ref(), profile)?;
    for (list, members) in lists {
        for (number, container) in members.iter().enumerate() {
            let place = format!("spec.{list}[{number}]");
            ensure!(names.insert(&container.name), "{place}.name: {:?} is there twice", container.name);
            let options = container.options(options, &spec.security_context, &volumes);
            let mut options = options.with_context(|| place.clone())?;
            let own = container.security_context.seccomp_profile.as_ref();
            let own = seccomp(&format!("{place}.securityContext"), own, profile)?;
            options.seccomp = own.or_else(|| general.clone()).unwrap_or(options.seccomp);
            let initial = list == "initContainers";
            ensure!(
                container.restart_policy.is_none(),
                "{place}.restartPolicy: the Pod has one for all its containers; leave it out"
            );
            options.after_success.clone_from(&after);
            options.settings.share_process_namespace |= spec.share_process_namespace;
            options.attestation |= attested.remove(container.name.as_str());
            if initial {
                after = vec![container.name.clone()];
            }
            options.required = !initial;
            // Nothing of the guest's knows that one which failed must not be started again but the number.
            options.max_instances = (spec.restart_policy == Restart::Never).then_some(1);
            let handler = |handler: &Option<Handler>| Some(handler.as_ref()?.exec.as_ref()?.command.clone());
            let lifecycle = container.lifecycle.as_ref();
            let tcp = container.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            containers.push(PodContainer {
                place,
                image: container.image.clone(),
                options,
                initial,
                startup: Probe::exec(container.startup_probe.as_ref()),
                readiness: Probe::exec(container.readiness_probe.as_ref()),
                liveness: Probe::exec(container.liveness_probe.as_ref()),
                post_start: lifecycle.and_then(|cycle| handler(&cycle.post_start)),
                pre_stop: lifecycle.and_then(|cycle| handler(&cycle.pre_stop)),
                ports: tcp.map(|port| port.container_port).collect(),
            });
        }
    }
    ensure!(attested.is_empty(), "metadata.annotations.{ATTESTATION}: there is no container {attested:?}");
    Ok(Pod {
        name: pod.metadata.name,
        restart: spec.restart_policy,
        grace: spec.termination_grace_period_seconds.unwrap_or(GRACE),
        containers,
    })
}

impl Container {
    fn options(
        &self,
        general: &GenerateOptions,
        pod: &PodSecurity,
        volumes: &BTreeMap<&str, Mountable>,
    ) -> Result<GenerateOptions> {
        let security = &self.security_context;
        for (field, set) in [("tty", self.tty), ("securityContext.privileged", security.privileged)] {
            ensure!(!set, "{field}: no policy can express it; leave it out, or make it false");
        }
        let usual = security.proc_mount.as_deref().is_none_or(|kind| kind == "Default");
        ensure!(usual, "securityContext.procMount: /proc is always masked; make it Default");
        let mut env: Vec<(String, String)> = Vec::new();
        for Variable { name, value } in &self.env {
            let value = expanded(value, &env);
            env.retain(|(other, _)| other != name);
            env.push((name.clone(), value));
        }
        let expand = |words: &Option<Vec<String>>| {
            words.as_ref().map(|words| words.iter().map(|word| expanded(word, &env)).collect::<Vec<_>>())
        };
        let (command, args) = (expand(&self.command), expand(&self.args));
        // A command takes the place of the image's arguments, too.
        let args = if command.is_some() { Some(args.unwrap_or_default()) } else { args };
        let user = security.run_as_user.or(pod.run_as_user);
        let user = match (user, security.run_as_group.or(pod.run_as_group)) {
            (None, None) => None,
            (Some(user), None) => Some(user.to_string()),
            (Some(user), Some(group)) => Some(format!("{user}:{group}")),
            (None, Some(_)) => bail!("securityContext.runAsGroup: give runAsUser with it"),
        };
        let probes = [&self.liveness_probe, &self.readiness_probe, &self.startup_probe];
        let probes = probes.into_iter().flatten().filter_map(|probe| probe.exec.as_ref());
        let lifecycle = self.lifecycle.iter().flat_map(|cycle| [&cycle.post_start, &cycle.pre_stop]);
        let handlers = lifecycle.flatten().filter_map(|handler| handler.exec.as_ref());
        let mut exec = general.exec.clone();
        for Exec { command } in probes.chain(handlers) {
            if !exec.contains(command) {
                exec.push(command.clone());
            }
        }
        let (mut mounts, mut data) = (Vec::new(), Vec::new());
        for (number, mount) in self.volume_mounts.iter().enumerate() {
            let place = format!("volumeMounts[{number}]");
            let volume = volumes.get(mount.name.as_str());
            let volume =
                volume.with_context(|| format!("{place}.name: spec.volumes has no {:?}", mount.name))?;
            ensure!(
                MountPoint::parse(&mount.mount_path).is_ok(),
                "{place}.mountPath: {:?} is no absolute path outside of /dev, /proc and /sys",
                mount.mount_path
            );
            let destination = mount.mount_path.clone();
            match *volume {
                Mountable::Directory => {
                    mounts.push(Mount {
                        volume: mount.name.clone(),
                        destination,
                        read_only: mount.read_only,
                    });
                }
                Mountable::Data { content, read_only } => {
                    let verified = matches!(content, VolumeContent::Verified(_));
                    let read_only = read_only || mount.read_only || verified;
                    data.push(DataVolume { content, destination, read_only });
                }
            }
        }
        Ok(GenerateOptions {
            name: Some(self.name.clone()),
            entrypoint: command,
            args,
            env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            working_dir: self.working_dir.clone(),
            user,
            non_root: security.run_as_non_root.or(pod.run_as_non_root) == Some(true),
            capabilities: capabilities(&security.capabilities)?,
            exec,
            mounts,
            volumes: data,
            limits: self.resources.limits()?,
            settings: Settings {
                read_only_root: general.settings.read_only_root || security.read_only_root_filesystem,
                ..general.settings.clone()
            },
            no_new_privileges: match security.allow_privilege_escalation {
                Some(allowed) => !allowed,
                None => general.no_new_privileges,
            },
            ..general.clone()
        })
    }
}

impl Spec {
    /// What all containers are given: what the Pod says, over what the user does.
    fn settings(&self, name: Option<&str>, general: &PodSettings) -> Result<PodSettings> {
        let mut settings = general.clone();
        if let Some(name) = &self.hostname {
            settings.hostname = Some(hostname(name).context("spec.hostname")?);
        } else if settings.hostname.is_none() {
            // A Pod's name may be longer, and have dots.
            settings.hostname = name.and_then(|name| hostname(name).ok());
        }
        for Setting { name, value } in &self.security_context.sysctls {
            sysctl(name, value).context("spec.securityContext.sysctls")?;
            settings.sysctls.insert(name.clone(), value.clone());
        }
        let own = self.resources.limits().context("spec")?;
        // Without a limit for all, what the containers may have together, if all of them have one. Initial ones run alone.
        let together = |of: fn(&Limits) -> Option<u64>| -> Result<Option<u64>> {
            let all = |list: &[Container]| -> Result<Vec<Option<u64>>> {
                list.iter().map(|container| Ok(of(&container.resources.limits()?))).collect()
            };
            let (initial, others) = (all(&self.init_containers)?, all(&self.containers)?);
            let most = initial.into_iter().try_fold(0, |most, limit| Some(u64::max(most, limit?)));
            let sum = others.into_iter().try_fold(0, |sum, limit| Some(sum + limit?));
            Ok(most.zip(sum).map(|(most, sum)| most.max(sum)))
        };
        settings.limits.memory = match own.memory {
            Some(bytes) => Some(bytes),
            None => {
                together(|limits| limits.memory)?.filter(|bytes| fields::Resources::MEMORY.contains(bytes))
            }
        };
        settings.limits.cpu = match own.cpu {
            Some(share) => Some(share),
            None => {
                let share =
                    together(|limits| limits.cpu.map(u64::from))?.and_then(|share| u32::try_from(share).ok());
                share.filter(|share| fields::Resources::CPU.contains(share))
            }
        };
        Ok(settings)
    }
}

/// The profile that is asked for: `Some(None)` is none beside the guest's own filter.
fn seccomp(
    place: &str,
    asked: Option<&Seccomp>,
    read: &dyn Fn(&str) -> Result<Vec<u8>>,
) -> Result<Option<Option<Vec<u8>>>> {
    let Some(Seccomp { kind, localhost_profile }) = asked else { return Ok(None) };
    match (kind.as_str(), localhost_profile) {
        // What a container has in any case is the runtime's default, and the least of what is not confined.
        ("RuntimeDefault" | "Unconfined", None) => Ok(Some(None)),
        ("Localhost", Some(path)) => read(path)
            .map(|json| Some(Some(json)))
            .with_context(|| format!("{place}.seccompProfile.localhostProfile")),
        _ => bail!(
            "{place}.seccompProfile: give RuntimeDefault, Unconfined, or Localhost with the file as localhostProfile"
        ),
    }
}

/// The usual capabilities, less what is dropped, and what is added.
fn capabilities(Capabilities { add, drop }: &Capabilities) -> Result<Option<Vec<String>>> {
    if add.is_empty() && drop.is_empty() {
        return Ok(None);
    }
    let named = |name: &String, list: &str| {
        let full = format!("CAP_{}", name.strip_prefix("CAP_").unwrap_or(name));
        let known = CAPABILITY_NAMES.contains(&full.as_str());
        ensure!(
            known,
            "securityContext.capabilities.{list}: {name:?} is no capability that a policy can name"
        );
        Ok(full)
    };
    let mut held: BTreeSet<String> = USUAL_CAPABILITIES.iter().map(ToString::to_string).collect();
    for name in drop {
        if name == "ALL" {
            held.clear();
        } else {
            held.remove(&named(name, "drop")?);
        }
    }
    for name in add {
        held.insert(named(name, "add")?);
    }
    Ok(Some(held.into_iter().collect()))
}

/// `$(NAME)` replaced by the variable, where it is known; `$$` is a dollar sign.
fn expanded(text: &str, env: &[(String, String)]) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match env.iter().find(|(known, _)| known == name) {
                Some((_, value)) => result += value,
                None => result += &format!("$({name})"),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result + rest
}
