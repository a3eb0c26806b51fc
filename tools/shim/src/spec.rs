//! What containerd wants a container to be (the bundle's `config.json`), as a request to the guest.
//!
//! What the guest makes by itself for every container, or has fixed (`docs/containers.md`), is not passed on: namespaces,
//! the usual mounts, masked paths, limits. What a container would miss without it is refused by name. The policy decides on the
//! rest. The table in `docs/kubernetes.md` has every field.

use anyhow::{Context as _, Result, bail, ensure};
use oci_spec::runtime::{Capabilities as Set, Capability, LinuxNamespaceType, LinuxResources, Process, Spec};
use parma_guest::gate::fields::CAPABILITY_NAMES;
use parma_guest::wire::{self, Capabilities, List, Stdio};
use parma_layer::oci::Digest;
use parma_policy::seccomp::Profile;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const KIND: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";
const MEMORY: &str = "parma.dev/memory";
const CPUS: &str = "parma.dev/cpus";
const SCRATCH: &str = "parma.dev/scratch";
const NETWORK: &str = "parma.dev/network";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Most of each, in MiB and processors.
const MAX_MEMORY: u32 = 1 << 20;
const MAX_CPUS: u32 = 64;
const MAX_SCRATCH: u32 = 1 << 20;

/// Which part of a pod a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// All of it: a guest with one container.
    Alone,
    /// The guest itself. The process that the orchestrator names, which would only keep namespaces open, is not run.
    Sandbox,
    /// One of the containers in the sandbox of this id.
    Member(String),
}

/// What a guest is launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Size {
    /// Memory in MiB.
    pub memory: u32,
    /// Processors; the launch measurement depends on them.
    pub cpus: u32,
    /// The scratch disk in MiB; 0: what containers write stays in the guest's memory.
    pub scratch: u32,
}

/// A container as containerd describes it.
pub struct Wanted {
    /// Its role.
    pub role: Role,
    /// All annotations.
    pub annotations: BTreeMap<String, String>,
    /// The first process.
    pub process: Process,
    /// Directories of the pod's scratch space to mount: name, place, whether read-only.
    pub directories: Vec<(String, String, bool)>,
    /// Whether its root filesystem is to be read-only, which the policy alone can make it.
    pub read_only: bool,
    /// What its profile of system calls is called in policies.
    pub profile: Option<[u8; 32]>,
    /// Its limits.
    pub resources: Option<LinuxResources>,
    /// The network namespace whose interface the guest gets; `None`: none. A member has its sandbox's.
    pub network: Option<PathBuf>,
    /// The `resolv.conf` that goes with the network.
    pub resolv_conf: Option<PathBuf>,
}

/// The part of a pod that the container of these annotations is.
///
/// # Errors
/// It is a member of no sandbox.
pub fn role(annotations: &BTreeMap<String, String>) -> Result<Role> {
    match annotations.get(KIND).map(String::as_str) {
        None => Ok(Role::Alone),
        Some("sandbox") => Ok(Role::Sandbox),
        Some("container") => {
            let sandbox = annotations.get(SANDBOX).with_context(|| format!("no annotation {SANDBOX}"))?;
            Ok(Role::Member(sandbox.clone()))
        }
        Some(other) => bail!("annotation {KIND}: {other:?} is neither sandbox nor container"),
    }
}

/// The annotations in this bundle.
///
/// # Errors
/// It has no valid `config.json`.
pub fn annotations(bundle: &Path) -> Result<BTreeMap<String, String>> {
    Ok(load(bundle)?.annotations().clone().unwrap_or_default().into_iter().collect())
}

fn load(bundle: &Path) -> Result<Spec> {
    parse(document(bundle)?)
}

fn document(bundle: &Path) -> Result<Value> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn parse(document: Value) -> Result<Spec> {
    serde_json::from_value(document).context("config.json is no runtime configuration")
}

impl Size {
    /// What the pod's annotations say, or else 512 MiB, one processor and 4 GiB of scratch space.
    ///
    /// # Errors
    /// Something that is no number in its range.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        let number = |name: &str, least, most, default| match annotations.get(name) {
            None => Ok(default),
            Some(text) => {
                let number = text.parse().ok().filter(|number| (least..=most).contains(number));
                number.with_context(|| {
                    format!("annotation {name}: {text:?} is no number from {least} to {most}")
                })
            }
        };
        Ok(Self {
            memory: number(MEMORY, 128, MAX_MEMORY, 512)?,
            cpus: number(CPUS, 1, MAX_CPUS, 1)?,
            scratch: number(SCRATCH, 0, MAX_SCRATCH, 4096)?,
        })
    }
}

impl Wanted {
    /// Reads the bundle.
    ///
    /// # Errors
    /// It is malformed, or asks for something that a confidential container cannot have.
    pub fn read(bundle: &Path) -> Result<Self> {
        let document = document(bundle)?;
        // As it was written: policies name a profile by a hash of it.
        let profile = document.pointer("/linux/seccomp").filter(|seccomp| !seccomp.is_null()).map(profile);
        let spec = parse(document)?;
        let annotations: BTreeMap<_, _> =
            spec.annotations().clone().unwrap_or_default().into_iter().collect();
        let role = role(&annotations)?;
        let process = spec.process().clone().context("config.json has no process")?;
        let linux = spec.linux().as_ref();
        let mut directories = Vec::new();
        if role != Role::Sandbox {
            ensure!(
                spec.hooks().is_none(),
                "hooks: programs of the host cannot be run for a confidential container: remove them"
            );
            let devices = linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten();
            if let Some(device) = devices.map(|device| device.path().display()).next() {
                bail!(
                    "device {device}: the node's devices cannot be lent to a confidential container: leave it out"
                );
            }
            for mount in spec.mounts().iter().flatten() {
                let place = mount.destination().to_string_lossy().into_owned();
                if mount.typ().as_deref() != Some("bind") || made_by_the_guest(&place) {
                    continue;
                }
                let source = mount.source().clone().unwrap_or_default();
                let Some(name) = empty_dir(&source) else {
                    bail!(
                        "mount {place}: the host's {} cannot be shared with a confidential container: use an emptyDir, or \
                         put it into the image (automountServiceAccountToken: false for the token)",
                        source.display()
                    );
                };
                let read_only = mount.options().iter().flatten().any(|option| option == "ro");
                directories.push((name, place, read_only));
            }
        }
        let network = match role {
            Role::Member(_) => None,
            Role::Alone | Role::Sandbox => network(&spec, &annotations)?,
        };
        let mut mounts = spec.mounts().iter().flatten();
        let resolv_conf = mounts
            .find(|mount| mount.destination() == Path::new(RESOLV_CONF))
            .and_then(|mount| mount.source().clone());
        let read_only = spec.root().as_ref().is_some_and(|root| root.readonly() == Some(true));
        let resources = linux.and_then(|linux| linux.resources().clone());
        Ok(Self {
            role,
            annotations,
            process,
            directories,
            read_only,
            profile,
            resources,
            network,
            resolv_conf,
        })
    }
}

/// What policies call a profile. One that guests cannot have has a name too, which no policy knows.
fn profile(seccomp: &Value) -> [u8; 32] {
    let json = seccomp.to_string();
    let known = Profile::read(json.as_bytes(), &[]).and_then(|profile| profile.hash());
    known.unwrap_or_else(|_| Digest::of(json.as_bytes()).bytes())
}

/// The network namespace that was made for a pod.
fn network(spec: &Spec, annotations: &BTreeMap<String, String>) -> Result<Option<PathBuf>> {
    match annotations.get(NETWORK).map(String::as_str) {
        None => {}
        Some("none") => return Ok(None),
        Some(other) => bail!("annotation {NETWORK}: {other:?} is not none"),
    }
    let namespaces =
        spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let network = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    let network = network.with_context(|| {
        format!("hostNetwork: the node's network cannot be lent to a guest: leave it out, or add the annotation {NETWORK}: none")
    })?;
    // Without a path: a new one, in which there is nothing.
    Ok(network.path().clone())
}

/// Places where the guest mounts something itself (`docs/containers.md`), and the files that it writes.
fn made_by_the_guest(place: &str) -> bool {
    matches!(
        place,
        "/dev/shm" | "/dev/termination-log" | "/etc/hosts" | "/etc/hostname" | RESOLV_CONF | "/sys/fs/cgroup"
    )
}

/// The name of the kubelet's emptyDir volume with this path on the host.
fn empty_dir(source: &Path) -> Option<String> {
    let kind = source.parent()?.file_name()?;
    (kind == "kubernetes.io~empty-dir").then(|| source.file_name()?.to_str().map(str::to_owned))?
}

/// A process's environment. CRI adds the name that it gave the pod, to further processes too; the guest has another, so in
/// a pod of CRI the variable is left out.
#[must_use]
pub fn environment(process: &Process, of_cri: bool) -> Vec<String> {
    let named = |variable: &&String| !of_cri || !variable.starts_with("HOSTNAME=");
    process.env().iter().flatten().filter(named).cloned().collect()
}

/// The request for a process. `image_user` is what its image says; a process of the user that this names by number, or
/// of the user behind its name, gets its groups, too.
///
/// # Errors
/// More of something than the guest takes.
pub fn request<'a>(
    process: &'a Process,
    env: &'a [String],
    user: &'a str,
    stdio: Stdio,
) -> Result<wire::Process<'a>> {
    let list = |strings: &'a [String]| strings.iter().map(String::as_str).collect::<Vec<_>>();
    Ok(wire::Process {
        args: List::from_vec(list(process.args().as_deref().unwrap_or_default()))
            .context("too many arguments")?,
        env: List::from_vec(list(env)).context("too many variables")?,
        working_dir: process.cwd().to_str().context("a working directory that is not UTF-8")?,
        user,
        umask: process.user().umask().and_then(|umask| umask.try_into().ok()).unwrap_or(0o022),
        capabilities: capabilities(process),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        stdio,
    })
}

/// How the guest is told a process's user. containerd has resolved a name in the image to a number; the guest does so
/// itself, and the policy decides on what it finds.
#[must_use]
pub fn user(process: &Process, image_user: &str) -> String {
    let (uid, gid) = (process.user().uid(), process.user().gid());
    let (name, _) = image_user.split_once(':').unwrap_or((image_user, ""));
    let of_the_image = match name {
        "" | "root" => uid == 0,
        _ => name.parse().map_or(uid != 0, |number: u32| number == uid),
    };
    if of_the_image { image_user.to_owned() } else { format!("{uid}:{gid}") }
}

fn capabilities(process: &Process) -> Capabilities {
    let Some(sets) = process.capabilities() else { return Capabilities::default() };
    let bits = |set: &Option<Set>| set.iter().flatten().fold(0, |bits, capability| bits | bit(*capability));
    Capabilities {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        inheritable: bits(sets.inheritable()),
        permitted: bits(sets.permitted()),
        ambient: bits(sets.ambient()),
    }
}

fn bit(capability: Capability) -> u64 {
    let name = serde_json::to_value(capability).unwrap_or_default();
    let number = CAPABILITY_NAMES.iter().position(|known| name.as_str() == Some(known));
    number.map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: impl FnOnce(&mut Value)) -> Result<Wanted> {
        let bundle = tempfile::tempdir().unwrap();
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["/bin/true"], "cwd": "/", "env": ["HOSTNAME=node", "A=1"], "user": {"uid": 0, "gid": 0},
                "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"]}, "noNewPrivileges": true,
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "annotations": {},
            "linux": {"namespaces": [{"type": "network"}]},
        });
        change(&mut config);
        std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
        Wanted::read(bundle.path())
    }

    #[test]
    fn a_process_is_asked_for_as_containerd_describes_it() {
        let wanted = read(|_| {}).unwrap();
        assert_eq!(wanted.role, Role::Alone);
        let env = environment(&wanted.process, false);
        let request = request(&wanted.process, &env, "", Stdio::default()).unwrap();
        assert_eq!(request.args[..], ["/bin/true"]);
        assert_eq!(request.env[..], ["HOSTNAME=node", "A=1"]);
        assert_eq!(request.capabilities.bounding, 1 | 1 << 5);
        assert_eq!((request.capabilities.effective, request.umask), (0, 0o022));
        assert!(request.no_new_privileges);
    }

    #[test]
    fn a_member_of_a_pod_has_its_emptydirs_and_not_the_nodes_name() {
        let wanted = read(|config| {
            config["annotations"] = json!({KIND: "container", SANDBOX: "s1"});
            config["mounts"] = json!([
                {"destination": "/etc/hosts", "type": "bind", "source": "/var/lib/kubelet/pods/1/etc-hosts"},
                {"destination": "/data", "type": "bind", "options": ["rbind", "ro"],
                 "source": "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache"},
            ]);
        })
        .unwrap();
        assert_eq!(wanted.role, Role::Member("s1".into()));
        assert_eq!(environment(&wanted.process, true), ["A=1"]);
        assert_eq!(wanted.directories, [("cache".into(), "/data".into(), true)]);
    }

    /// CVE-2026-24054, CVE-2026-47243: what the orchestrator names on the host must not reach a guest by accident.
    #[test]
    fn t07_a_path_of_the_host_is_refused_by_name() {
        for source in
            ["/", "/var/run/secrets/token", "/var/lib/kubelet/pods/1/volumes/kubernetes.io~secret/x"]
        {
            let mount = json!([{"destination": "/x", "type": "bind", "source": source}]);
            let error = read(|config| config["mounts"] = mount).err().unwrap().to_string();
            assert!(error.contains(source) && error.contains("emptyDir"), "{error}");
        }
        let device = json!([{"path": "/dev/mem", "type": "c", "major": 1, "minor": 1}]);
        let error = read(|config| config["linux"]["devices"] = device).err().unwrap().to_string();
        assert!(error.contains("/dev/mem"), "{error}");
        assert!(read(|config| config["hooks"] = json!({"prestart": [{"path": "/bin/sh"}]})).is_err());
    }

    /// What parma policy generate --seccomp takes is called the same as what containerd makes of it.
    #[test]
    fn a_profile_is_called_as_policies_call_it() {
        assert_eq!(read(|_| {}).unwrap().profile, None);
        let seccomp = json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
                          "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]}],
        });
        let expected = Profile::read(seccomp.to_string().as_bytes(), &[]).unwrap().hash().unwrap();
        assert_eq!(read(|config| config["linux"]["seccomp"] = seccomp).unwrap().profile, Some(expected));
        // One that asks somebody on the host is nothing that a guest has.
        let notify = json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/x"});
        let other = read(|config| config["linux"]["seccomp"] = notify).unwrap().profile;
        assert!(other.is_some() && other != Some(expected));
    }

    #[test]
    fn a_pod_has_its_own_network_or_none_and_never_the_nodes() {
        assert_eq!(read(|_| {}).unwrap().network, None);
        let own = |config: &mut Value| {
            config["linux"]["namespaces"] = json!([{"type": "network", "path": "/run/netns/x"}]);
        };
        assert_eq!(read(own).unwrap().network.unwrap(), Path::new("/run/netns/x"));
        let none = |config: &mut Value| {
            own(config);
            config["annotations"] = json!({NETWORK: "none"});
        };
        assert_eq!(read(none).unwrap().network, None);
        let node = |config: &mut Value| config["linux"]["namespaces"] = json!([{"type": "mount"}]);
        let error = read(node).err().unwrap().to_string();
        assert!(error.contains("hostNetwork") && error.contains(NETWORK), "{error}");
    }

    #[test]
    fn the_size_of_a_guest_is_in_its_annotations() {
        let of = |name: &str, value: &str| Size::of(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(Size::of(&BTreeMap::new()).unwrap(), Size { memory: 512, cpus: 1, scratch: 4096 });
        assert_eq!(of(MEMORY, "1024").unwrap().memory, 1024);
        for (name, value) in [(MEMORY, "1"), (CPUS, "0"), (CPUS, "65"), (SCRATCH, "-1"), (SCRATCH, "4G")] {
            assert!(of(name, value).unwrap_err().to_string().contains(name), "{name} {value}");
        }
    }

    #[test]
    fn a_user_is_the_images_where_containerd_took_it_from_there() {
        let wanted = |uid| read(|config| config["process"]["user"]["uid"] = json!(uid)).unwrap().process;
        assert_eq!(user(&wanted(0), ""), "");
        assert_eq!(user(&wanted(0), "root"), "root");
        assert_eq!(user(&wanted(101), "nginx"), "nginx");
        assert_eq!(user(&wanted(7), "7:8"), "7:8");
        assert_eq!(user(&wanted(5), ""), "5:0");
        assert_eq!(user(&wanted(0), "nginx"), "0:0");
    }
}
