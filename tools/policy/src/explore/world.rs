//! What exists because of what was allowed, and what must be true of it whatever the policy's own memory says.
//!
//! The policy remembers in `data.metadata`. This is another memory of the same guest, kept by other code: devices that
//! are mounted, root filesystems, containers that ran. An allowed request is checked against it, and then changes it.

use std::collections::{BTreeMap, BTreeSet};

use parma_guest::point::Point;
use parma_guest::policy::Decision;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::offer::Offer;
use super::reading::{Mounted, Reading, Runs, VOLUMES, is_required, items};

/// A promise that is checked of every decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// No two devices, overlays, scratch spaces or shares at one path, and what is unmounted was mounted.
    OneDevicePerPath,
    /// An overlay has mounted layers only, exactly those of an entry, in its order.
    OverlayInOrder,
    /// Nothing runs, is mounted, signalled or told that the policy does not name.
    OnlyWhatThePolicyNames,
    /// What is allowed, one single entry allows in every field, and has allowed since its overlay was mounted.
    OneEntryAllowsAll,
    /// A container id never serves twice.
    BurnedIdsStayBurned,
    /// A container starts after those that its entry names and as often as its entry says; a guest is ready only when
    /// everything runs that is required.
    ObligationsAreMet,
    /// A denial, and an action that was undone, leave the policy's memory as it was.
    DenialsChangeNothing,
    /// The customer's own.
    Assertion,
}

impl Invariant {
    /// What is promised.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::OneDevicePerPath => "no two devices are at one path",
            Self::OverlayInOrder => "an overlay has only mounted layers, in the order of an entry",
            Self::OnlyWhatThePolicyNames => "nothing runs that is not in the policy",
            Self::OneEntryAllowsAll => "what is allowed, one single entry allows in every field",
            Self::BurnedIdsStayBurned => "a burned id never comes back",
            Self::ObligationsAreMet => "what entries oblige to is met",
            Self::DenialsChangeNothing => "what is denied changes nothing",
            Self::Assertion => "the customer's assertion",
        }
    }
}

/// A broken promise: which, and how.
pub(super) type Broken = (Invariant, String);

/// What exists.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct World {
    /// Layer devices: path to root hash.
    pub devices: BTreeMap<String, String>,
    /// Writable devices, by path.
    pub writable: BTreeSet<String>,
    /// Scratch spaces, by path.
    pub scratch: BTreeSet<String>,
    /// Shares: path to container.
    pub shares: BTreeMap<String, String>,
    /// Overlays that are mounted: path to container.
    pub overlays: BTreeMap<String, String>,
    /// Containers that have or had an overlay.
    pub containers: BTreeMap<String, Container>,
    /// Offers of fragments that were taken.
    pub loaded: BTreeSet<usize>,
}

/// A container.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Container {
    /// The entries that it can still be: each has allowed everything that happened to it.
    pub entries: BTreeSet<usize>,
    /// Where it stands.
    pub life: Life,
    /// Whether it was created privileged.
    pub privileged: bool,
    /// The name of the entry that it was created from, where entries oblige to something.
    pub instance: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Life {
    /// It has an overlay.
    Prepared,
    /// It was created.
    Runs,
    /// It was shut down.
    Over,
}

fn text<'j>(input: &'j Json, field: &str) -> &'j str {
    input[field].as_str().unwrap_or_default()
}

fn require(condition: bool, invariant: Invariant, what: impl Into<String>) -> Result<(), Broken> {
    if condition { Ok(()) } else { Err((invariant, what.into())) }
}

/// The decision as a policy writes it.
pub(super) fn result_of(decision: &Decision) -> Json {
    let mut result = json!({"allowed": true});
    if let Some(env) = &decision.env {
        result["env_list"] = json!(env);
    }
    if let Some(sets) = &decision.capabilities {
        result["caps_list"] = json!({"ambient": sets.ambient, "bounding": sets.bounding,
            "effective": sets.effective, "inheritable": sets.inheritable, "permitted": sets.permitted});
    }
    if let Some(stdio) = decision.allow_stdio {
        result["allow_stdio_access"] = stdio.into();
    }
    result
}

impl World {
    /// Takes note that a request was allowed, with this result.
    ///
    /// # Errors
    /// The promise that is broken by allowing it.
    pub fn allow(
        &mut self,
        policy: &Reading,
        point: Point,
        input: &Json,
        result: &Json,
    ) -> Result<(), Broken> {
        use Invariant::{BurnedIdsStayBurned, OneDevicePerPath, OnlyWhatThePolicyNames, OverlayInOrder};
        let (target, unmounted, id) =
            (text(input, "target"), text(input, "unmountTarget"), text(input, "containerID"));
        let free = !self.devices.contains_key(target) && !self.writable.contains(target);
        let secret = input["encrypted"] == true || policy.allows("allow_unencrypted_scratch");
        match point {
            Point::MountDevice => {
                require(free, OneDevicePerPath, format!("a second device at {target}"))?;
                let path = target.strip_prefix("/run/mounts/scsi/m");
                let numbered = path.is_some_and(|number| {
                    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
                });
                require(numbered, OneDevicePerPath, format!("a device at {target:?}"))?;
                let hash = text(input, "deviceHash");
                let known = policy.layer_known(hash, &self.loaded);
                require(known, OnlyWhatThePolicyNames, format!("the layer {hash:?}"))?;
                self.devices.insert(target.into(), hash.into());
            }
            Point::UnmountDevice => {
                let was = self.devices.remove(unmounted).is_some();
                require(was, OneDevicePerPath, format!("no device is at {unmounted:?} to be unmounted"))?;
            }
            Point::RwMountDevice if input.get("volume").is_some() => {
                require(free, OneDevicePerPath, format!("a second device at {target}"))?;
                let volume = text(input, "volume");
                let known = policy.volumes().contains(volume) && target == format!("{VOLUMES}{volume}");
                require(known, OnlyWhatThePolicyNames, format!("the volume {volume:?} at {target}"))?;
                let sealed = input["encrypted"] == true && input["filesystem"] == "ext4";
                require(
                    sealed,
                    OnlyWhatThePolicyNames,
                    "a volume that is not encrypted, or of another kind",
                )?;
                self.writable.insert(target.into());
            }
            Point::RwMountDevice => {
                require(free, OneDevicePerPath, format!("a second device at {target}"))?;
                require(secret, OnlyWhatThePolicyNames, "a writable device that is not encrypted")?;
                let large = policy
                    .max_scratch_size()
                    .is_some_and(|most| input["size"].as_i64().is_none_or(|size| size > most));
                require(!large, OnlyWhatThePolicyNames, "a writable device that is too large")?;
                let protected =
                    input["rollbackProtection"] != false || policy.allows("allow_scratch_rollback");
                require(protected, OnlyWhatThePolicyNames, "a writable device that can be rolled back")?;
                let known = ["ext4", "xfs"].contains(&text(input, "filesystem"));
                require(
                    known && input["ensureFilesystem"] == true,
                    OnlyWhatThePolicyNames,
                    "a foreign filesystem",
                )?;
                self.writable.insert(target.into());
            }
            Point::RwUnmountDevice => {
                let was = self.writable.remove(unmounted);
                require(was, OneDevicePerPath, format!("no device is at {unmounted:?} to be unmounted"))?;
            }
            Point::ScratchMount => {
                require(secret, OnlyWhatThePolicyNames, "scratch space that is not encrypted")?;
                let disk = input["memory"] != true || policy.allows("allow_memory_scratch");
                require(disk, OnlyWhatThePolicyNames, "scratch space in the guest's memory")?;
                let new = self.scratch.insert(target.into());
                require(new, OneDevicePerPath, format!("a second scratch space at {target}"))?;
            }
            Point::ScratchUnmount => {
                let was = self.scratch.remove(unmounted);
                require(was, OneDevicePerPath, format!("no scratch space is at {unmounted:?}"))?;
            }
            Point::Plan9Mount => {
                let owner = self.containers.iter().find(|(id, container)| {
                    container.life != Life::Over && target.starts_with(&format!("/run/gcs/c/{id}/mounts/m"))
                });
                let Some((owner, _)) = owner else {
                    return Err((
                        OnlyWhatThePolicyNames,
                        format!("a share at {target:?}, which no container has"),
                    ));
                };
                let before = self.shares.insert(target.into(), owner.clone());
                require(before.is_none(), OneDevicePerPath, format!("a second share at {target}"))?;
            }
            Point::Plan9Unmount => {
                let was = self.shares.remove(unmounted).is_some();
                require(was, OneDevicePerPath, format!("no share is at {unmounted:?}"))?;
            }
            Point::MountOverlay => {
                require(
                    !self.overlays.contains_key(target),
                    OneDevicePerPath,
                    format!("a second overlay at {target}"),
                )?;
                require(
                    !self.containers.contains_key(id),
                    BurnedIdsStayBurned,
                    format!("a second overlay of the container {id:.8}…"),
                )?;
                let mut layers = Vec::new();
                for path in items(&input["layerPaths"]).iter().filter_map(Json::as_str) {
                    let Some(hash) = self.devices.get(path) else {
                        return Err((
                            OverlayInOrder,
                            format!("an overlay of {path}, where no device is mounted"),
                        ));
                    };
                    layers.insert(0, json!(hash));
                }
                let layers = Json::Array(layers);
                let fits = |number: &usize| {
                    self.has(policy.containers_from[*number])
                        && policy.containers[*number]["layers"] == layers
                };
                let entries: BTreeSet<usize> = (0..policy.containers.len()).filter(fits).collect();
                let fits = !entries.is_empty();
                require(fits, OverlayInOrder, format!("no entry has the layers {layers}, bottom first"))?;
                self.overlays.insert(target.into(), id.into());
                let container =
                    Container { entries, life: Life::Prepared, privileged: false, instance: None };
                self.containers.insert(id.into(), container);
            }
            Point::UnmountOverlay => {
                let was = self.overlays.remove(unmounted).is_some();
                require(was, OneDevicePerPath, format!("no overlay is at {unmounted:?} to be unmounted"))?;
            }
            Point::CreateContainer => self.create(policy, input, result)?,
            Point::ExecInContainer => {
                let (env, capabilities) = runs(policy, input, result)?;
                let runs = Runs { env: &env, capabilities: &capabilities };
                let container = self.running(id)?;
                let privileged = container.privileged;
                narrow(container, policy, |entry| policy.refuses_exec(entry, input, &runs, privileged))?;
            }
            Point::SignalContainerProcess => {
                let container = self.running(id)?;
                narrow(container, policy, |entry| {
                    (!policy.signal_allowed(entry, input)).then_some("signal")
                })?;
            }
            Point::UpdateContainer => {
                let container = self.running(id)?;
                narrow(container, policy, |entry| policy.refuses_update(entry, input))?;
            }
            Point::ShutdownContainer => {
                let life = self.containers.get(id).map(|container| container.life);
                let was = matches!(life, Some(Life::Runs | Life::Over));
                require(was, OnlyWhatThePolicyNames, format!("the end of {id:.8}…, which never ran"))?;
                if let Some(container) = self.containers.get_mut(id) {
                    container.life = Life::Over;
                    container.entries.clear();
                }
            }
            Point::ExecExternal => {
                let (env, _) = runs(policy, input, result)?;
                let mut refused = Vec::new();
                let there = policy.external.iter().zip(&policy.external_from);
                let mut there = there.filter(|(_, from)| self.has(**from));
                let entry = there.find(|(entry, _)| {
                    let refusal = policy.refuses_external(entry, input, &env);
                    refused.extend(refusal);
                    refusal.is_none() && entry["allow_stdio_access"] == result["allow_stdio_access"]
                });
                require(
                    entry.is_some(),
                    Invariant::OneEntryAllowsAll,
                    format!("no external process allows it all ({})", refused.join(", ")),
                )?;
            }
            Point::GetProperties => flag(policy, "allow_properties_access")?,
            Point::DumpStacks => flag(policy, "allow_dump_stacks")?,
            Point::RuntimeLogging => flag(policy, "allow_runtime_logging")?,
            Point::HostNetwork => flag(policy, "allow_host_network")?,
            _ => return Err((OnlyWhatThePolicyNames, format!("{}, which no policy allows", point.name()))),
        }
        Ok(())
    }

    fn create(&mut self, policy: &Reading, input: &Json, result: &Json) -> Result<(), Broken> {
        use Invariant::{BurnedIdsStayBurned, OneEntryAllowsAll, OnlyWhatThePolicyNames};
        let id = text(input, "containerID");
        let (env, capabilities) = runs(policy, input, result)?;
        let runs = Runs { env: &env, capabilities: &capabilities };
        let (mounted, instances) =
            (Mounted { devices: &self.devices, writable: &self.writable }, self.instances());
        let Some(container) = self.containers.get_mut(id) else {
            return Err((OnlyWhatThePolicyNames, format!("the container {id:.8}… without an overlay")));
        };
        require(
            container.life == Life::Prepared,
            BurnedIdsStayBurned,
            format!("a second container with the id {id:.8}…"),
        )?;
        narrow(container, policy, |entry| policy.refuses_create(entry, input, &runs, &mounted))?;
        if policy.obliging {
            let met = narrow(container, policy, |entry| instances.refuse(entry, input));
            met.map_err(|(_, message)| (Invariant::ObligationsAreMet, message))?;
            let names: BTreeSet<String> =
                container.entries.iter().map(|&entry| name_of(&policy.containers[entry])).collect();
            let several = "it may be of several names, so that nobody can count what it was";
            require(names.len() == 1, Invariant::ObligationsAreMet, several)?;
            container.instance = names.into_iter().next();
        }
        let stdio = &result["allow_stdio_access"];
        let agreed =
            container.entries.iter().all(|&entry| policy.containers[entry]["allow_stdio_access"] == *stdio);
        require(
            agreed,
            OneEntryAllowsAll,
            format!("allow_stdio_access is {stdio}, and an entry says otherwise"),
        )?;
        (container.life, container.privileged) = (Life::Runs, input["privileged"] == true);
        Ok(())
    }

    /// Whether the policy, or the fragment of this offer, is there.
    fn has(&self, from: Option<usize>) -> bool {
        from.is_none_or(|offer| self.loaded.contains(&offer))
    }

    /// Takes note that a fragment was taken, with this number.
    ///
    /// # Errors
    /// The promise that is broken by taking it.
    pub fn load(&mut self, policy: &Reading, offer: usize, svn: u32) -> Result<(), Broken> {
        let Offer { issuer, feed, least, by, .. } = &policy.offers[offer];
        let welcome = self.has(*by) && svn >= *least;
        let what =
            format!("the fragment {feed:?} of {issuer}, number {svn}, which nothing that is there names");
        require(welcome, Invariant::OnlyWhatThePolicyNames, what)?;
        self.loaded.insert(offer);
        Ok(())
    }

    fn instances(&self) -> Instances {
        let mut instances = Instances::default();
        for (id, container) in &self.containers {
            let Some(name) = &container.instance else { continue };
            *instances.created.entry(name.clone()).or_default() += 1;
            if container.life == Life::Runs && !name.is_empty() {
                instances.running.insert(name.clone());
                instances.by_id.insert(id.clone(), name.clone());
            }
        }
        instances
    }

    /// What does not run although it is required.
    pub fn unready(&self, policy: &Reading) -> Option<String> {
        let running = self.instances().running;
        let there = policy.containers.iter().zip(&policy.containers_from);
        let there = there.filter(|(_, from)| self.has(**from)).map(|(entry, _)| entry);
        let missing =
            there.filter(|entry| is_required(entry)).find(|entry| !running.contains(&name_of(entry)))?;
        Some(format!("the guest is ready, and {:?} does not run", name_of(missing)))
    }

    fn running(&mut self, id: &str) -> Result<&mut Container, Broken> {
        let container = self.containers.get_mut(id).filter(|container| container.life == Life::Runs);
        container.ok_or_else(|| {
            (Invariant::OnlyWhatThePolicyNames, format!("the container {id:.8}… does not run"))
        })
    }

    /// For people: what exists, in a line each.
    pub fn summary(&self) -> String {
        let mut lines = Vec::new();
        let number = |path: &str| path.rsplit('/').next().unwrap_or_default().to_string();
        let devices = self.devices.iter().map(|(path, hash)| format!("{}={hash:.6}", number(path)));
        lines.push(devices.collect::<Vec<_>>().join(" "));
        lines.extend(self.containers.iter().map(|(id, container)| {
            let mounted = self.overlays.values().any(|owner| owner == id);
            let overlay = if mounted { "" } else { ", no overlay" };
            format!("{id:.2} {:?} {:?}{overlay}", container.life, container.entries)
        }));
        if !self.loaded.is_empty() {
            lines.push(format!("fragments {:?}", self.loaded));
        }
        let others = self.writable.len() + self.scratch.len() + self.shares.len();
        if others > 0 {
            lines.push(format!("{others} writable or shared"));
        }
        lines.retain(|line| !line.is_empty());
        if lines.is_empty() { "nothing".into() } else { lines.join("\n") }
    }
}

/// Names of entries: how many containers were created from them, and of which one runs.
#[derive(Default)]
struct Instances {
    created: BTreeMap<String, i64>,
    running: BTreeSet<String>,
    /// The running ones by their containers' ids.
    by_id: BTreeMap<String, String>,
}

impl Instances {
    /// The obligation of an entry that is not met when this is asked for.
    fn refuse(&self, entry: &Json, input: &Json) -> Option<&'static str> {
        let done = |name: &Json| {
            let mut succeeded = items(&input["succeeded"]).iter().filter_map(Json::as_str);
            succeeded.any(|id| self.by_id.get(id).is_some_and(|of| *name == **of))
        };
        if !items(&entry["after_success"]).iter().all(done) {
            return Some("turn (`after_success`)");
        }
        let after = items(&entry["after"]).iter();
        if !after.map(|name| name.as_str().unwrap_or_default()).all(|name| self.running.contains(name)) {
            return Some("turn (`after`)");
        }
        let count = self.created.get(&name_of(entry)).copied().unwrap_or(0);
        let most = entry.get("max_instances")?;
        (count >= most.as_i64().unwrap_or(0)).then_some("number (`max_instances`)")
    }
}

fn name_of(entry: &Json) -> String {
    entry["name"].as_str().unwrap_or_default().into()
}

fn flag(policy: &Reading, name: &str) -> Result<(), Broken> {
    require(policy.allows(name), Invariant::OnlyWhatThePolicyNames, format!("{name} is not true"))
}

/// Keeps the entries that allow the request; none is a broken promise.
fn narrow(
    container: &mut Container,
    policy: &Reading,
    refuses: impl Fn(&Json) -> Option<&'static str>,
) -> Result<(), Broken> {
    let mut refused = Vec::new();
    container.entries.retain(|&number| match refuses(&policy.containers[number]) {
        None => true,
        Some(field) => {
            refused.push(format!("{} does not allow its {field}", policy.names[number]));
            false
        }
    });
    require(!container.entries.is_empty(), Invariant::OneEntryAllowsAll, refused.join(", "))
}

/// The environment and the capabilities that the decision leaves: a part of what was asked for, and all of it unless
/// the policy lets some be dropped.
fn runs(policy: &Reading, input: &Json, result: &Json) -> Result<(Vec<String>, Json), Broken> {
    let invariant = Invariant::OnlyWhatThePolicyNames;
    let asked = &input["envList"];
    let kept = match &result["env_list"] {
        Json::Null => asked,
        kept => kept,
    };
    let part = items(kept).iter().all(|variable| items(asked).contains(variable));
    require(
        part && (kept == asked || policy.env_dropping),
        invariant,
        "the environment is not the one that was asked for",
    )?;
    let env = items(kept).iter().filter_map(Json::as_str).map(str::to_string).collect();
    let asked = &input["capabilities"];
    let kept = match &result["caps_list"] {
        Json::Null => asked,
        kept => kept,
    };
    let part = super::reading::SETS.iter().all(|set| {
        let (kept, asked) = (items(&kept[set]), items(&asked[set]));
        kept.iter().all(|name| asked.contains(name))
            && (policy.capability_dropping || asked.iter().all(|name| kept.contains(name)))
    });
    require(part, invariant, "the capabilities are not those that were asked for")?;
    Ok((env, kept.clone()))
}
