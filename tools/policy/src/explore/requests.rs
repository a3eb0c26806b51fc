//! What a host may ask in a state, abstracted to what a policy can tell apart.
//!
//! A policy sees strings. It can tell apart those that it has itself, those that the guest remembers, and others; so of
//! each field a request has a value that an entry allows, one that no entry allows, and those of the other entries,
//! mixed. Ids and mount points are opaque to it but for being equal: of those not yet used, one stands for all.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::Result;
use parma_guest::point::Point;
use parma_guest::wire::MAX_ENV;
use serde_json::{Value as Json, json};

use super::offer::Offer;
use super::pattern;
use super::reading::{Reading, SETS, VOLUMES, items};
use super::world::{Life, World};
use crate::Inputs;

/// A request: the point, and its input.
pub(super) type Request = (Point, Rc<Json>);

/// Most fields in which two entries differ and all mixtures of them are asked; with more, one or two fields at a time
/// come from the other entry.
const MIXED: usize = 5;

/// The most bytes of a large environment: what a request can have in the memory of a decision.
const MAX_ENVIRONMENT: usize = 48 << 10;

/// Where the guest mounts layer devices.
const DEVICE_PATTERN: &str = "/run/mounts/scsi/m[0-9]+";
/// Where it mounts writable ones.
const WRITABLE_PATTERN: &str = "/run/gcs/c/[0-9a-fA-F]{64}";
/// A layer that is in no policy.
const FOREIGN: &str = "f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0";

/// Makes requests about a policy.
pub(super) struct Requests<'p> {
    policy: &'p Reading,
    /// The ids that containers may have.
    ids: Vec<String>,
    /// Of each entry and id: requests to create it that the entry allows, and those that it may not.
    creations: RefCell<BTreeMap<(usize, String), Rc<Asked>>>,
    executions: RefCell<BTreeMap<(usize, String), Rc<Asked>>>,
    /// Rules of which no example could be made.
    pub unexplored: RefCell<BTreeSet<String>>,
}

/// Requests of one kind about one entry.
#[derive(Default)]
struct Asked {
    allowed: Vec<Request>,
    others: Vec<Request>,
}

/// The path of the layer device of this number.
pub(super) fn slot(number: usize) -> String {
    format!("/run/mounts/scsi/m{number}")
}

/// The container id of this number: 64 digits.
pub(super) fn id(number: usize) -> String {
    format!("{:x}", number % 15 + 1).repeat(64)
}

fn rootfs(id: &str) -> String {
    format!("/run/gcs/c/{id}/rootfs")
}

impl<'p> Requests<'p> {
    pub fn new(policy: &'p Reading, ids: usize) -> Requests<'p> {
        Requests {
            policy,
            ids: (0..ids).map(id).collect(),
            creations: RefCell::default(),
            executions: RefCell::default(),
            unexplored: RefCell::default(),
        }
    }

    /// What is asked where this exists, and the policy remembers this. The same for the same arguments.
    pub fn of(&self, world: &World, memory: &Json) -> Vec<Request> {
        let mut list = Vec::new();
        let mut ask = |point: Point, input: Json| list.push((point, Rc::new(input)));
        self.devices(world, memory, &mut ask);
        self.overlays(world, memory, &mut ask);
        self.writable(world, memory, &mut ask);
        for point in [
            Point::GetProperties,
            Point::DumpStacks,
            Point::RuntimeLogging,
            Point::HostNetwork,
            Point::MountBlockdev,
            Point::UnmountBlockdev,
            Point::RegistryChanges,
            Point::MountCims,
            Point::LogProvider,
            Point::LoadTransparencyTrustList,
        ] {
            ask(point, json!({"target": slot(0), "unmountTarget": slot(0), "containerID": self.ids[0]}));
        }
        let nobody = json!({"issuer": "did:x509:nobody", "feed": "nothing", "namespace": "nothing",
            "fragment_loaded": false, "has_header_svn": true, "header_svn": 9, "receipts": []});
        ask(Point::LoadFragment, nobody);
        for number in 0..self.policy.external.len() {
            self.external(number, &mut ask);
        }
        self.containers(world, &mut list);
        list
    }

    /// Fragments that are brought where this exists: the offer, and the number that the header has. Those that were
    /// taken are not brought again.
    pub fn loads(&self, world: &World) -> Vec<(usize, u32)> {
        let offers = self.policy.offers.iter().enumerate();
        let new = offers.filter(|(number, _)| !world.loaded.contains(number));
        let numbers = |offer: &Offer| [Some(offer.svn), offer.least.checked_sub(1)].into_iter().flatten();
        new.flat_map(|(number, offer)| numbers(offer).map(move |svn| (number, svn))).collect()
    }

    /// The ids that were used, and one that was not.
    fn known_ids<'w>(&'w self, world: &'w World) -> Vec<&'w str> {
        let fresh = self.ids.iter().find(|id| !world.containers.contains_key(*id));
        world.containers.keys().chain(fresh).map(String::as_str).collect()
    }

    fn devices(&self, world: &World, memory: &Json, ask: &mut impl FnMut(Point, Json)) {
        let remembered = memory["devices"].as_object().into_iter().flatten().map(|(path, _)| path.as_str());
        let taken: BTreeSet<&str> = world.devices.keys().map(String::as_str).chain(remembered).collect();
        let free = (0..).map(slot).find(|path| !taken.contains(&**path)).unwrap_or_default();
        let mount = |target: &str, hash: &str, pattern: &str| json!({"target": target, "deviceHash": hash, "mountPathRegex": pattern});
        let hashes = || self.policy.layers.iter().map(String::as_str).chain([FOREIGN, ""]);
        for hash in hashes() {
            ask(Point::MountDevice, mount(&free, hash, DEVICE_PATTERN));
        }
        let some = self.policy.layers.first().map_or(FOREIGN, String::as_str);
        for target in &taken {
            for hash in [some, FOREIGN].into_iter().chain(world.devices.get(*target).map(String::as_str)) {
                ask(Point::MountDevice, mount(target, hash, DEVICE_PATTERN));
            }
            ask(Point::UnmountDevice, json!({"unmountTarget": target}));
        }
        for (target, pattern) in [
            ("/run/mounts/scsi/m", DEVICE_PATTERN),
            ("/run/mounts/scsi/m0/../../x", DEVICE_PATTERN),
            ("/etc", ".*"),
            (&*free, ".*"),
        ] {
            ask(Point::MountDevice, mount(target, some, pattern));
        }
        ask(Point::UnmountDevice, json!({"unmountTarget": free}));
    }

    fn overlays(&self, world: &World, memory: &Json, ask: &mut impl FnMut(Point, Json)) {
        let free = slot(99);
        // Where each layer is, as the guest has it or as the policy remembers.
        let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let remembered = memory["devices"].as_object().into_iter().flatten();
        let remembered = remembered.filter_map(|(path, hash)| Some((path.as_str(), hash.as_str()?)));
        let mounted = world.devices.iter().map(|(path, hash)| (path.as_str(), hash.as_str()));
        for (path, hash) in mounted.chain(remembered) {
            places.entry(hash).or_default().insert(path);
        }
        let orders: BTreeSet<Vec<&str>> = self
            .policy
            .containers
            .iter()
            .map(|entry| items(&entry["layers"]).iter().rev().filter_map(Json::as_str).collect())
            .collect();
        let mut sequences: BTreeSet<Vec<&str>> = BTreeSet::from([Vec::new()]);
        let mut right: BTreeSet<Vec<&str>> = BTreeSet::new();
        for order in &orders {
            let mut used: BTreeMap<&str, usize> = BTreeMap::new();
            let paths: Vec<Option<&str>> = order
                .iter()
                .map(|hash| {
                    let count = used.entry(hash).or_default();
                    *count += 1;
                    let places = places.get(hash)?;
                    places.iter().nth(*count - 1).or(places.iter().next()).copied()
                })
                .collect();
            let missing = paths.iter().filter(|path| path.is_none()).count();
            // Any other device in the place of one that is missing, or of the top one.
            let others = || places.values().flatten().copied().chain([&*free]);
            if missing == 0 {
                let path: Vec<&str> = paths.into_iter().flatten().collect();
                for other in others() {
                    let mut changed = path.clone();
                    if let Some(top) = changed.first_mut() {
                        *top = other;
                    }
                    sequences.insert(changed);
                }
                sequences.insert(path.iter().rev().copied().collect());
                sequences.insert(path.iter().skip(1).copied().collect());
                sequences.insert(path.iter().take(path.len().saturating_sub(1)).copied().collect());
                sequences.insert(path.iter().copied().chain(path.last().copied()).collect());
                for at in 1..path.len() {
                    let mut swapped = path.clone();
                    swapped.swap(at - 1, at);
                    sequences.insert(swapped);
                }
                right.insert(path);
            } else if missing == 1 {
                for other in others() {
                    sequences.insert(paths.iter().map(|path| path.unwrap_or(other)).collect());
                }
                sequences.insert(paths.iter().flatten().copied().collect());
            }
        }
        let mount = |id: &str, layers: &[&str], target: &str| json!({"containerID": id, "layerPaths": layers, "target": target});
        let ids = self.known_ids(world);
        // What no id may do is asked of one that was not used, or of the last.
        let id = ids.last().copied().unwrap_or_default();
        for layers in sequences.difference(&right) {
            ask(Point::MountOverlay, mount(id, layers, &rootfs(id)));
        }
        for layers in &right {
            for id in &ids {
                ask(Point::MountOverlay, mount(id, layers, &rootfs(id)));
            }
            for target in world.overlays.keys() {
                ask(Point::MountOverlay, mount(id, layers, target));
            }
        }
        let remembered = memory["overlayTargets"].as_object().into_iter().flatten().map(|(path, _)| path);
        let targets: BTreeSet<&String> = world.overlays.keys().chain(remembered).collect();
        for target in targets {
            ask(Point::UnmountOverlay, json!({"unmountTarget": target}));
        }
        ask(Point::UnmountOverlay, json!({"unmountTarget": rootfs(&"e".repeat(64))}));
    }

    fn writable(&self, world: &World, memory: &Json, ask: &mut impl FnMut(Point, Json)) {
        let device = format!("/run/gcs/c/{}", "d".repeat(64));
        let scratch = format!("{device}/scratch");
        let most = self.policy.max_scratch_size().unwrap_or(1 << 30);
        let mount = |encrypted: bool, ensure: bool, filesystem: &str, pattern: &str| {
            json!({"target": device, "encrypted": encrypted, "ensureFilesystem": ensure, "filesystem": filesystem,
                "mountPathRegex": pattern, "rollbackProtection": true, "size": most})
        };
        let honest = mount(true, true, "ext4", WRITABLE_PATTERN);
        ask(Point::RwMountDevice, with(&honest, "rollbackProtection", json!(false)));
        ask(Point::RwMountDevice, with(&honest, "size", json!(most.saturating_add(1))));
        for (encrypted, ensure, filesystem, pattern) in [
            (true, true, "ext4", WRITABLE_PATTERN),
            (false, true, "xfs", WRITABLE_PATTERN),
            (true, false, "ext4", WRITABLE_PATTERN),
            (true, true, "vfat", WRITABLE_PATTERN),
            (true, true, "ext4", ".*"),
        ] {
            ask(Point::RwMountDevice, mount(encrypted, ensure, filesystem, pattern));
        }
        // A layer where a writable device is.
        for target in &world.writable {
            let hash = self.policy.layers.first().map_or(FOREIGN, String::as_str);
            ask(
                Point::MountDevice,
                json!({"target": target, "deviceHash": hash, "mountPathRegex": DEVICE_PATTERN}),
            );
            ask(Point::RwUnmountDevice, json!({"unmountTarget": target}));
        }
        for id in self.policy.volumes().iter().map(String::as_str).chain([FOREIGN]) {
            let honest = json!({"target": format!("{VOLUMES}{id}"), "encrypted": true, "ensureFilesystem": false,
                "filesystem": "ext4", "mountPathRegex": format!("{VOLUMES}[0-9a-f]{{64}}"), "volume": id});
            ask(Point::RwMountDevice, honest.clone());
            for (field, value) in [
                ("encrypted", json!(false)),
                ("filesystem", json!("xfs")),
                ("target", json!(format!("{VOLUMES}{}", "e".repeat(64)))),
                ("mountPathRegex", json!(".*")),
            ] {
                ask(Point::RwMountDevice, with(&honest, field, value));
            }
        }
        for (encrypted, memory) in [(true, false), (false, false), (true, true)] {
            let input = json!({"target": scratch, "encrypted": encrypted, "memory": memory});
            ask(Point::ScratchMount, input);
        }
        for id in self.known_ids(world) {
            let share = format!("/run/gcs/c/{id}/mounts/m0");
            let mount = |root: &str, prefix: &str, target: &str| json!({"rootPrefix": root, "mountPathPrefix": prefix, "target": target});
            ask(Point::Plan9Mount, mount("/run/gcs/c", "/mounts/m[0-9]+", &share));
            ask(Point::Plan9Mount, mount("/run/gcs/c", ".*", &format!("/run/gcs/c/{id}/etc")));
            ask(Point::Plan9Mount, mount("/run/gcs/c", "/mounts/m[0-9]+", &format!("{share}/../../../etc")));
            ask(Point::Plan9Unmount, json!({"unmountTarget": share}));
        }
        ask(Point::RwUnmountDevice, json!({"unmountTarget": device}));
        ask(Point::ScratchUnmount, json!({"unmountTarget": scratch}));
        for path in memory["p9mounts"].as_object().into_iter().flatten().map(|(path, _)| path) {
            ask(Point::Plan9Unmount, json!({"unmountTarget": path}));
        }
        // What is mounted as one kind is not unmounted as another.
        for target in world.devices.keys().take(1) {
            ask(Point::RwUnmountDevice, json!({"unmountTarget": target}));
        }
        ask(Point::UnmountDevice, json!({"unmountTarget": device}));
    }

    fn external(&self, number: usize, ask: &mut impl FnMut(Point, Json)) {
        let entry = &self.policy.external[number];
        let env = self.environment(&entry["env_rules"], true).unwrap_or_default();
        let honest = json!({"argList": entry["command"], "envList": env, "workingDir": entry["working_dir"]});
        ask(Point::ExecExternal, honest.clone());
        for (field, value) in [
            ("argList", longer(&honest["argList"], "--foreign")),
            ("envList", longer(&honest["envList"], "PARMA_FOREIGN=1")),
            ("envList", json!([])),
            ("workingDir", json!("/foreign")),
        ] {
            let mut changed = honest.clone();
            changed[field] = value;
            ask(Point::ExecExternal, changed);
        }
        for other in self.policy.external.iter().enumerate().filter(|(other, _)| *other != number) {
            for (field, of) in [("argList", "command"), ("workingDir", "working_dir")] {
                let mut changed = honest.clone();
                changed[field] = other.1[of].clone();
                ask(Point::ExecExternal, changed);
            }
        }
    }

    fn containers(&self, world: &World, list: &mut Vec<Request>) {
        let entries = 0..self.policy.containers.len();
        let mut signals: BTreeSet<i64> = BTreeSet::from([31]);
        for entry in &self.policy.containers {
            let processes = items(&entry["exec_processes"]).iter().map(|process| &process["signals"]);
            let all = processes.chain([&entry["signals"]]).flat_map(items);
            signals.extend(all.filter_map(Json::as_i64));
        }
        for id in self.known_ids(world) {
            let container = world.containers.get(id);
            let life = container.map(|container| container.life);
            for entry in entries.clone() {
                let possible = container.is_some_and(|container| container.entries.contains(&entry));
                let creation = self.creation(entry, id);
                list.extend(creation.allowed.iter().cloned());
                if possible && life == Some(Life::Prepared) {
                    list.extend(creation.others.iter().cloned());
                }
                let execution = self.execution(entry, id);
                list.extend(execution.allowed.iter().cloned());
                if possible && life == Some(Life::Runs) {
                    list.extend(execution.others.iter().cloned());
                }
            }
            let mut commands: BTreeSet<String> = BTreeSet::new();
            let lists = self.policy.containers.iter().flat_map(|entry| items(&entry["exec_processes"]));
            commands.extend(lists.map(|process| process["command"].to_string()));
            commands.insert(json!(["/foreign"]).to_string());
            for &signal in &signals {
                let request = |init: bool, args: &Json| json!({"containerID": id, "signal": signal, "isInitProcess": init, "argList": args});
                list.push((Point::SignalContainerProcess, Rc::new(request(true, &json!([])))));
                if life != Some(Life::Runs) {
                    continue;
                }
                for command in commands.iter().filter_map(|command| serde_json::from_str(command).ok()) {
                    list.push((Point::SignalContainerProcess, Rc::new(request(false, &command))));
                }
            }
            list.push((Point::ShutdownContainer, Rc::new(json!({"containerID": id}))));
            let entries = self.policy.containers.iter();
            for update in
                entries.flat_map(|entry| updates(entry, id)).collect::<BTreeMap<_, _>>().into_values()
            {
                list.push((Point::UpdateContainer, Rc::new(update)));
            }
        }
    }

    /// Requests to create the container of an entry.
    fn creation(&self, number: usize, id: &str) -> Rc<Asked> {
        let key = (number, id.to_string());
        if let Some(known) = self.creations.borrow().get(&key) {
            return known.clone();
        }
        let entry = &self.policy.containers[number];
        let mut asked = Asked::default();
        let honest: Vec<Json> = self.honest_creations(number, id);
        let mut others: Vec<Json> = Vec::new();
        if let Some(base) = honest.first() {
            others.extend(self.changed_process(entry, base));
            for (field, value) in [
                ("privileged", json!(base["privileged"] != true)),
                ("seccompProfileSHA256", json!(FOREIGN)),
                ("devices", json!([{"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232}])),
                (
                    "mounts",
                    json!([{"type": "bind", "source": "/foreign", "destination": "/etc", "options": ["rw"]}]),
                ),
                ("isSandboxContainer", json!(true)),
                ("succeeded", json!([])),
            ] {
                others.push(with(base, field, value));
            }
            for mount in self.mounts(entry, base) {
                others.push(with(base, "mounts", json!([mount])));
                for (field, value) in
                    [("destination", json!("/foreign")), ("options", json!(["rw", "foreign"]))]
                {
                    others.push(with(base, "mounts", json!([with(&mount, field, value)])));
                }
                let source = mount["source"].as_str().unwrap_or_default();
                others.push(with(
                    base,
                    "mounts",
                    json!([with(&mount, "source", json!(format!("{source}/../foreign")))]),
                ));
            }
            for other in (0..self.policy.containers.len()).filter(|other| *other != number) {
                let theirs = self.honest_creations(other, id).into_iter().next();
                others.extend(theirs.iter().flat_map(|theirs| mixtures(base, theirs)));
            }
        }
        asked.allowed.extend(honest.into_iter().map(|input| (Point::CreateContainer, Rc::new(input))));
        asked.others.extend(others.into_iter().map(|input| (Point::CreateContainer, Rc::new(input))));
        let asked = Rc::new(asked);
        self.creations.borrow_mut().insert(key, asked.clone());
        asked
    }

    fn execution(&self, number: usize, id: &str) -> Rc<Asked> {
        let key = (number, id.to_string());
        if let Some(known) = self.executions.borrow().get(&key) {
            return known.clone();
        }
        let policy = self.policy;
        let entry = &policy.containers[number];
        let mut asked = Asked::default();
        let of = |number: usize, command: &Json| {
            let base = self.honest_creations(number, id).into_iter().next()?;
            Some(with(&execution_of(&base), "argList", command.clone()))
        };
        let commands = || items(&entry["exec_processes"]).iter().map(|process| &process["command"]);
        let push = |list: &mut Vec<Request>, input: Json| list.push((Point::ExecInContainer, Rc::new(input)));
        for command in commands() {
            of(number, command).into_iter().for_each(|input| push(&mut asked.allowed, input));
        }
        // The first process's own command, which may not be started again unless the entry says so.
        of(number, &entry["command"]).into_iter().for_each(|input| push(&mut asked.others, input));
        if let Some(base) = commands().next().and_then(|command| of(number, command)) {
            self.changed_process(entry, &base).into_iter().for_each(|input| push(&mut asked.others, input));
            for other in (0..policy.containers.len()).filter(|other| *other != number) {
                let theirs = items(&policy.containers[other]["exec_processes"]).first();
                let theirs = theirs.and_then(|process| of(other, &process["command"]));
                for mixed in theirs.iter().flat_map(|theirs| mixtures(&base, theirs)) {
                    push(&mut asked.others, mixed);
                }
            }
        }
        let asked = Rc::new(asked);
        self.executions.borrow_mut().insert(key, asked.clone());
        asked
    }

    /// What the entry allows: with all variables or the required ones, unprivileged and privileged where it may be.
    fn honest_creations(&self, number: usize, id: &str) -> Vec<Json> {
        let entry = &self.policy.containers[number];
        let mut list = Vec::new();
        for (all, privileged) in [(true, false), (false, false), (true, true)] {
            if privileged && entry["allow_elevated"] != true {
                continue;
            }
            let Some(env) = self.environment(&entry["env_rules"], all) else { continue };
            let user = &entry["user"];
            let groups = items(&user["group_idnames"]).iter().take(1).map(|idname| self.person(idname));
            let input = json!({
                "containerID": id,
                "argList": entry["command"],
                "envList": env,
                "workingDir": entry["working_dir"],
                "sandboxDir": format!("/run/gcs/c/{id}/sandboxMounts"),
                "hugePagesDir": format!("/run/gcs/c/{id}/hugepages"),
                "mounts": [],
                "devices": [],
                "privileged": privileged,
                "noNewPrivileges": entry["no_new_privileges"] == true,
                "terminal": entry["allow_terminal"] == true,
                "user": self.person(&user["user_idname"]),
                "groups": groups.collect::<Vec<_>>(),
                "umask": user["umask"],
                "capabilities": self.policy.capabilities(entry, privileged),
                "seccompProfileSHA256": entry["seccomp_profile_sha256"],
                "isSandboxContainer": false,
                // Of these, those that run have done their work.
                "succeeded": self.ids,
            });
            if !list.contains(&input) {
                list.push(input);
            }
        }
        list
    }

    /// A user or group that the rule allows.
    fn person(&self, idname: &Json) -> Json {
        let pattern = idname["pattern"].as_str().unwrap_or_default();
        match idname["strategy"].as_str() {
            Some("id") => json!({"id": pattern, "name": ""}),
            Some("name") => json!({"id": "4242", "name": pattern}),
            Some("re2") => json!({"id": "4242", "name": self.sample(pattern, 1).unwrap_or_default()}),
            _ => json!({"id": "4242", "name": "anyone"}),
        }
    }

    fn sample(&self, text: &str, more: usize) -> Option<String> {
        let sample = self.policy.pattern(text).and_then(|pattern| pattern::sample(&pattern, more));
        if sample.is_none() {
            self.unexplored.borrow_mut().insert(text.to_string());
        }
        sample
    }

    /// A variable that the rule allows, with so many more rounds of its pattern's repetitions.
    fn variable(&self, rule: &Json, more: usize) -> Option<String> {
        let text = |strategy: &str, pattern: &str| match (rule[strategy].as_str(), rule[pattern].as_str()) {
            (Some("string"), Some(pattern)) => Some(pattern.to_string()),
            (Some("re2"), Some(pattern)) => self.sample(pattern, more),
            _ => None,
        };
        text("strategy", "pattern").or_else(|| {
            Some(format!("{}={}", text("name_strategy", "name")?, text("value_strategy", "value")?))
        })
    }

    /// An environment that the rules allow: all of them, or those that are required.
    fn environment(&self, rules: &Json, all: bool) -> Option<Vec<String>> {
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_string();
        let mut env: Vec<String> = Vec::new();
        for rule in items(rules) {
            let required = !matches!(rule["required"], Json::Null | Json::Bool(false));
            if !all && !required {
                continue;
            }
            match self.variable(rule, 1) {
                Some(variable) if !env.iter().any(|other| name(other) == name(&variable)) => {
                    env.push(variable)
                }
                // Of a required one there has to be an example.
                None if required => return None,
                _ => {}
            }
        }
        Some(env)
    }

    /// Mounts that the entry's constraints allow.
    fn mounts(&self, entry: &Json, input: &Json) -> Vec<Json> {
        let place = |source: &str| {
            if source.starts_with("verity://") {
                return Some(slot(0));
            }
            if let Some(id) = source.strip_prefix("volume://") {
                return Some(format!("{VOLUMES}{id}"));
            }
            [("sandbox://", "sandboxDir"), ("hugepages://", "hugePagesDir")].iter().find_map(
                |(prefix, field)| {
                    let below = self.sample(source.strip_prefix(prefix)?, 0)?;
                    Some(format!("{}{below}", input[*field].as_str()?))
                },
            )
        };
        items(&entry["mounts"])
            .iter()
            .filter_map(|constraint| {
                let source = constraint["source"].as_str()?;
                let source = place(source).unwrap_or_else(|| source.to_string());
                Some(json!({"type": constraint["type"], "destination": constraint["destination"],
                "options": constraint["options"], "source": source}))
            })
            .collect()
    }

    /// The same process with one field changed into what its entry may not allow.
    fn changed_process(&self, entry: &Json, base: &Json) -> Vec<Json> {
        let mut list = Vec::new();
        let mut change = |field: &str, value: Json| list.push(with(base, field, value));
        change("argList", longer(&base["argList"], "--foreign"));
        change("argList", shorter(&base["argList"]));
        change("argList", json!([]));
        change("envList", longer(&base["envList"], "PARMA_FOREIGN=1"));
        change("envList", longer(&base["envList"], "LD_PRELOAD=/foreign.so"));
        change("envList", json!([]));
        for (number, variable) in items(&base["envList"]).iter().enumerate() {
            let text = variable.as_str().unwrap_or_default();
            let name = text.split('=').next().unwrap_or_default();
            for value in [
                format!("{text}\n"),
                format!("FOREIGN_{text}"),
                format!("{text}:/foreign"),
                format!("{name}="),
            ] {
                let mut env = base["envList"].clone();
                env[number] = value.into();
                change("envList", env);
            }
            change("envList", longer(&base["envList"], &format!("{name}=foreign")));
            let mut env = base["envList"].clone();
            if let Some(items) = env.as_array_mut() {
                items.remove(number);
            }
            change("envList", env);
        }
        for rule in items(&entry["env_rules"]) {
            // Other values of the same pattern: shorter, and what its alternatives may let through.
            if let Some(variable) = self.variable(rule, 0) {
                change("envList", json!([variable]));
            }
        }
        let directory = base["workingDir"].as_str().unwrap_or_default();
        change("workingDir", json!(format!("{directory}/foreign")));
        change("workingDir", json!(""));
        change("user", json!({"id": "0", "name": "root"}));
        change("user", json!({"id": "65533", "name": "foreign"}));
        change("groups", longer_by(&base["groups"], json!({"id": "0", "name": "root"})));
        change("groups", longer_by(&base["groups"], json!({"id": "65533", "name": "foreign"})));
        change("umask", json!("0777"));
        change("noNewPrivileges", json!(base["noNewPrivileges"] != true));
        change("terminal", json!(base["terminal"] != true));
        for set in SETS {
            let mut sets = base["capabilities"].clone();
            sets[set] = longer(&sets[set], "CAP_SYS_ADMIN");
            change("capabilities", sets);
        }
        let mut sets = base["capabilities"].clone();
        sets["effective"] = shorter(&sets["effective"]);
        change("capabilities", sets);
        change(
            "capabilities",
            self.policy.capabilities(&json!({"capabilities": null, "allow_elevated": true}), true),
        );
        list
    }
}

/// Requests that a policy's entries allow, for those who look for expensive ones.
pub(crate) struct Honest {
    policy: Reading,
}

impl Honest {
    /// Reads the data of the policy that `inputs` are.
    ///
    /// # Errors
    /// It does not compile.
    pub fn new(inputs: &Inputs) -> Result<Honest> {
        Ok(Honest { policy: Reading::new(inputs)? })
    }

    /// The policy's containers.
    pub fn entries(&self) -> &[Json] {
        &self.policy.containers
    }

    /// What to call one of them.
    pub fn name(&self, number: usize) -> &str {
        &self.policy.names[number]
    }

    /// The number of processes of the guest itself.
    pub fn external(&self) -> usize {
        self.policy.external.len()
    }

    /// A request for one of these.
    pub fn of_external(&self, number: usize) -> Json {
        let mut honest = json!(null);
        let mut keep = |_: Point, input: Json| {
            if honest.is_null() {
                honest = input;
            }
        };
        Requests::new(&self.policy, 1).external(number, &mut keep);
        honest
    }

    /// The requests that lead to the overlay of an entry.
    pub fn overlay(&self, number: usize) -> Vec<(Point, Json)> {
        let layers = items(&self.policy.containers[number]["layers"]);
        let mount = |(number, layer): (usize, &Json)| {
            let input =
                json!({"target": slot(number), "deviceHash": layer, "mountPathRegex": DEVICE_PATTERN});
            (Point::MountDevice, input)
        };
        let mut list: Vec<(Point, Json)> = layers.iter().enumerate().map(mount).collect();
        let paths: Vec<String> = (0..layers.len()).rev().map(slot).collect();
        let overlay = json!({"containerID": id(0), "layerPaths": paths, "target": rootfs(&id(0))});
        list.push((Point::MountOverlay, overlay));
        list
    }

    /// The request to create the container of an entry.
    pub fn creation(&self, number: usize) -> Option<Json> {
        Requests::new(&self.policy, 1).honest_creations(number, &id(0)).into_iter().next()
    }

    /// A request for another process in it.
    pub fn execution(&self, number: usize) -> Option<Json> {
        let execution = Requests::new(&self.policy, 1).execution(number, &id(0));
        execution.allowed.first().map(|(_, input)| (**input).clone())
    }

    /// Environments that the entry's rules allow and that are large: many variables, and long ones.
    pub fn environments(&self, number: usize) -> Vec<(String, Json)> {
        let requests = Requests::new(&self.policy, 1);
        let rules = items(&self.policy.containers[number]["env_rules"]);
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_string();
        let mut list = Vec::new();
        for (what, rounds) in [("many allowed variables", 1..MAX_ENV), ("long allowed variables", 600..601)] {
            let mut names = BTreeSet::new();
            let (mut env, mut bytes) = (Vec::new(), 0);
            for round in rounds {
                for rule in rules {
                    let Some(variable) = requests.variable(rule, round) else { continue };
                    if env.len() < MAX_ENV
                        && bytes + variable.len() < MAX_ENVIRONMENT
                        && names.insert(name(&variable))
                    {
                        bytes += variable.len() + 16;
                        env.push(variable);
                    }
                }
                if bytes >= MAX_ENVIRONMENT / 2 {
                    break;
                }
            }
            list.push((what.to_string(), json!(env)));
        }
        list
    }
}

/// Requests to change what a container of this entry may use: what it allows, what it does not, and to hold it still.
/// By their text.
fn updates(entry: &Json, id: &str) -> Vec<(String, Json)> {
    let mut honest =
        json!({"containerID": id, "memory": null, "cpu": null, "processes": null, "paused": false});
    let mut list = Vec::new();
    for name in ["memory", "cpu", "processes"] {
        honest[name] = entry["resources"][name]["most"].clone();
    }
    list.push(with(&honest, "paused", json!(true)));
    for name in ["memory", "cpu", "processes"] {
        let limits = &entry["resources"][name];
        let beyond = |limit: &Json, by: i64| limit.as_i64().map(|limit| json!(limit.saturating_add(by)));
        list.extend(beyond(&limits["most"], 1).map(|value| with(&honest, name, value)));
        list.extend(beyond(&limits["least"], -1).map(|value| with(&honest, name, value)));
        list.push(with(&honest, name, limits["least"].clone()));
        list.push(with(&honest, name, if honest[name].is_null() { json!(1) } else { json!(null) }));
    }
    list.push(honest);
    list.into_iter().map(|update| (update.to_string(), update)).collect()
}

/// The fields of a request to start another process, of one to create.
fn execution_of(creation: &Json) -> Json {
    let fields = [
        "containerID",
        "argList",
        "envList",
        "workingDir",
        "user",
        "groups",
        "umask",
        "capabilities",
        "noNewPrivileges",
        "terminal",
    ];
    fields
        .iter()
        .map(|field| (field.to_string(), creation[*field].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Requests with some fields of one and the others of the other; neither of the two themselves.
fn mixtures(mine: &Json, theirs: &Json) -> Vec<Json> {
    let fields = mine.as_object().into_iter().flatten().map(|(field, _)| field);
    let differing: Vec<&String> = fields.filter(|field| mine[*field] != theirs[*field]).collect();
    let count = differing.len();
    let takes: Vec<u32> = if count <= MIXED {
        (1..(1u32 << count).saturating_sub(1)).collect()
    } else {
        let one = (0..count).map(|a| 1 << a);
        let two = (0..count).flat_map(|a| (0..a).map(move |b| 1 << a | 1 << b));
        one.chain(two).collect()
    };
    let mixed = takes.into_iter().map(|take| {
        let mut mixed = mine.clone();
        for (_, field) in differing.iter().enumerate().filter(|(number, _)| take >> number & 1 == 1) {
            mixed[*field] = theirs[*field].clone();
        }
        mixed
    });
    mixed.collect()
}

fn with(base: &Json, field: &str, value: Json) -> Json {
    let mut changed = base.clone();
    changed[field] = value;
    changed
}

fn longer(list: &Json, text: &str) -> Json {
    longer_by(list, json!(text))
}

fn longer_by(list: &Json, item: Json) -> Json {
    items(list).iter().cloned().chain([item]).collect()
}

fn shorter(list: &Json) -> Json {
    let list = items(list);
    list[..list.len().saturating_sub(1)].to_vec().into()
}
