//! A Kubernetes Pod, as YAML, to what its containers are to be.
//!
//! Every field of the Pod is either expressed, or known to mean nothing to a guest (where a pod is scheduled, which
//! ports it documents), or an error that names it: nothing that was written is left out silently.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use parma_guest::gate::fields::{CAPABILITY_NAMES, DirectoryName, MountPoint};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{GenerateOptions, Mount, USUAL_CAPABILITIES};

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct PodContainer {
    /// Where it is in the Pod, `spec.containers[0]` for instance.
    pub place: String,
    /// Its image, as the Pod names it.
    pub image: String,
    /// What the Pod says about it.
    pub options: GenerateOptions,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pod {
    api_version: String,
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    spec: Spec,
}

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
    #[serde(default, rename = "restartPolicy")]
    _restart_policy: IgnoredAny,
    #[serde(default, rename = "terminationGracePeriodSeconds")]
    _termination_grace_period_seconds: IgnoredAny,
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
    #[serde(default, rename = "ports")]
    _ports: Vec<Port>,
    #[serde(default, rename = "resources")]
    _resources: Resources,
    #[serde(default, rename = "stdin")]
    _stdin: IgnoredAny,
    #[serde(default, rename = "stdinOnce")]
    _stdin_once: IgnoredAny,
    #[serde(default, rename = "imagePullPolicy")]
    _image_pull_policy: IgnoredAny,
    #[serde(default, rename = "terminationMessagePolicy")]
    _termination_message_policy: IgnoredAny,
    #[serde(default, rename = "restartPolicy")]
    _restart_policy: IgnoredAny,
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
    #[serde(rename = "containerPort")]
    _container_port: u16,
    #[serde(default, rename = "name")]
    _name: IgnoredAny,
    #[serde(default, rename = "protocol")]
    _protocol: IgnoredAny,
}

/// How large a guest has to be: of no meaning inside of it.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Resources {
    #[serde(default, rename = "limits")]
    _limits: BTreeMap<String, IgnoredAny>,
    #[serde(default, rename = "requests")]
    _requests: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    empty_dir: EmptyDir,
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
    #[serde(default, rename = "initialDelaySeconds")]
    _initial_delay_seconds: IgnoredAny,
    #[serde(default, rename = "periodSeconds")]
    _period_seconds: IgnoredAny,
    #[serde(default, rename = "timeoutSeconds")]
    _timeout_seconds: IgnoredAny,
    #[serde(default, rename = "successThreshold")]
    _success_threshold: IgnoredAny,
    #[serde(default, rename = "failureThreshold")]
    _failure_threshold: IgnoredAny,
    #[serde(default, rename = "terminationGracePeriodSeconds")]
    _termination_grace_period_seconds: IgnoredAny,
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

/// The containers of the Pod in `yaml`, initial ones first. `options` are what the user adds to each.
///
/// # Errors
/// It is no Pod, or says something that a policy cannot express; the error names the field.
pub fn read_pod(yaml: &str, options: &GenerateOptions) -> Result<Vec<PodContainer>> {
    let pod: Pod = serde_saphyr::from_str(yaml)
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
        ("shareProcessNamespace", spec.share_process_namespace),
        ("enableServiceLinks", spec.enable_service_links),
        ("automountServiceAccountToken", spec.automount_service_account_token),
    ] {
        ensure!(!set, "spec.{field}: no policy can express it; leave it out, or make it false");
    }
    seccomp("spec.securityContext", spec.security_context.seccomp_profile.as_ref())?;
    ensure!(!spec.containers.is_empty(), "spec.containers: there is none");
    let mut volumes = BTreeSet::new();
    for (number, volume) in spec.volumes.iter().enumerate() {
        let place = format!("spec.volumes[{number}]");
        ensure!(
            volume.empty_dir.medium.is_empty(),
            "{place}.emptyDir.medium: such a volume is on the scratch device, in encrypted form; leave it out"
        );
        ensure!(DirectoryName::parse(&volume.name).is_ok(), "{place}.name: {:?} is no name", volume.name);
        ensure!(volumes.insert(volume.name.as_str()), "{place}.name: {:?} is there twice", volume.name);
    }
    let lists = [("initContainers", &spec.init_containers), ("containers", &spec.containers)];
    let mut names = BTreeSet::new();
    let mut containers: Vec<PodContainer> = Vec::new();
    // Initial containers start one after the other, the others after the last of them.
    let mut after = Vec::new();
    for (list, members) in lists {
        for (number, container) in members.iter().enumerate() {
            let place = format!("spec.{list}[{number}]");
            ensure!(names.insert(&container.name), "{place}.name: {:?} is there twice", container.name);
            let options = container.options(options, &spec.security_context, &volumes);
            let mut options = options.with_context(|| place.clone())?;
            options.after.clone_from(&after);
            if list == "initContainers" {
                after = vec![container.name.clone()];
            }
            containers.push(PodContainer { place, image: container.image.clone(), options });
        }
    }
    Ok(containers)
}

impl Container {
    fn options(
        &self,
        general: &GenerateOptions,
        pod: &PodSecurity,
        volumes: &BTreeSet<&str>,
    ) -> Result<GenerateOptions> {
        let security = &self.security_context;
        for (field, set) in [
            ("tty", self.tty),
            ("securityContext.privileged", security.privileged),
            ("securityContext.readOnlyRootFilesystem", security.read_only_root_filesystem),
        ] {
            ensure!(!set, "{field}: no policy can express it; leave it out, or make it false");
        }
        seccomp("securityContext", security.seccomp_profile.as_ref())?;
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
        let mut mounts = Vec::new();
        for (number, mount) in self.volume_mounts.iter().enumerate() {
            let place = format!("volumeMounts[{number}]");
            ensure!(
                volumes.contains(mount.name.as_str()),
                "{place}.name: spec.volumes has no {:?}",
                mount.name
            );
            ensure!(
                MountPoint::parse(&mount.mount_path).is_ok(),
                "{place}.mountPath: {:?} is no absolute path outside of /dev, /proc and /sys",
                mount.mount_path
            );
            mounts.push(Mount {
                volume: mount.name.clone(),
                destination: mount.mount_path.clone(),
                read_only: mount.read_only,
            });
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
            no_new_privileges: match security.allow_privilege_escalation {
                Some(allowed) => !allowed,
                None => general.no_new_privileges,
            },
            ..general.clone()
        })
    }
}

fn seccomp(place: &str, profile: Option<&Seccomp>) -> Result<()> {
    // The guest has one filter, for every container.
    let usual = profile.is_none_or(|profile| profile.kind == "RuntimeDefault");
    ensure!(usual, "{place}.seccompProfile: every container has the guest's own; make it RuntimeDefault");
    Ok(())
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
