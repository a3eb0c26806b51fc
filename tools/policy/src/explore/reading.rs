//! A policy's data, read naively: what its entries say, field by field, without the framework.
//!
//! This is the second opinion that explored decisions are compared with, so nothing here is shared with the rules that
//! decide. It is slow, and says what `docs/policy-framework.md` says in the plainest way.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use regex_syntax::hir::Hir;
use serde_json::{Value as Json, json};

use super::offer::{Content, Offer, offers};
use super::pattern;
use crate::compile::rules;
use crate::lint::entry_name;
use crate::reference::Reference;
use crate::{Evaluation, FRAMEWORK_DATA, Inputs, Session, compile};

/// The version of the framework whose meaning the policy's data has.
pub(super) const FRAMEWORK_VERSION: [u64; 3] = [0, 5, 0];

/// What is read of a policy.
const DATA: [&str; 16] = [
    "allow_capability_dropping",
    "allow_dump_stacks",
    "allow_environment_variable_dropping",
    "allow_host_network",
    "allow_memory_scratch",
    "allow_properties_access",
    "allow_runtime_logging",
    "allow_scratch_rollback",
    "allow_unencrypted_scratch",
    "containers",
    "external_processes",
    "fragments",
    "framework_svn",
    "framework_version",
    "max_scratch_size",
    "platform_rules",
];

/// What a container of a policy has, once it is complete.
const CONTAINER: [&str; 13] = [
    "allow_elevated",
    "allow_stdio_access",
    "capabilities",
    "command",
    "env_rules",
    "exec_processes",
    "layers",
    "mounts",
    "no_new_privileges",
    "seccomp_profile_sha256",
    "signals",
    "user",
    "working_dir",
];

/// Before the root hash of a read-only volume, as the source of a mount.
const VOLUME: &str = "verity://";
/// Before the id of a read-write one.
const OPENED: &str = "volume://";
/// Where the guest opens read-write volumes.
pub(super) const VOLUMES: &str = "/run/mounts/volumes/";

/// The five capability sets.
pub(super) const SETS: [&str; 5] = ["ambient", "bounding", "effective", "inheritable", "permitted"];

/// The data of a policy.
pub(super) struct Reading {
    /// Its containers, complete; after its own those of fragments.
    pub containers: Vec<Json>,
    /// The offer that each of these comes with; `None` is the policy.
    pub containers_from: Vec<Option<usize>>,
    /// Their names, for people.
    pub names: Vec<String>,
    /// Every layer of every container, and every read-only volume of the policy's.
    pub layers: BTreeSet<String>,
    /// Those that are the policy's own.
    own_layers: BTreeSet<String>,
    /// Processes of the guest itself; after the policy's own those of fragments.
    pub external: Vec<Json>,
    /// As of containers.
    pub external_from: Vec<Option<usize>>,
    /// Fragments that may be brought.
    pub offers: Vec<Offer>,
    /// What is in them, as the policy is shown it.
    pub contents: Vec<Content>,
    /// The fragments that the policy names.
    named: Vec<Json>,
    /// Whether there are platform rules, which are not explored.
    pub platform_rules: bool,
    pub env_dropping: bool,
    pub capability_dropping: bool,
    /// Whether any entry obliges to something.
    pub obliging: bool,
    /// The policy's flags; `None` where they cannot be read, and then nothing that they decide is judged.
    flags: Option<BTreeMap<&'static str, Json>>,
    constants: Json,
    patterns: RefCell<BTreeMap<String, Option<Hir>>>,
}

/// What is mounted that a container may be given: layer devices and what is in them, and writable devices.
pub(super) struct Mounted<'w> {
    pub devices: &'w BTreeMap<String, String>,
    pub writable: &'w BTreeSet<String>,
}

/// What would run if a request to start a process were followed: the environment and the capabilities that the
/// decision left of it.
pub(super) struct Runs<'r> {
    pub env: &'r [String],
    pub capabilities: &'r Json,
}

impl Reading {
    /// Reads the data of the policy that `inputs` are.
    ///
    /// # Errors
    /// It does not compile.
    pub fn new(inputs: &Inputs) -> Result<Reading> {
        let known = rules(inputs)?;
        let wanted = DATA.iter().map(|name| format!("data.policy.{name}"));
        let entries: Vec<String> = wanted.filter(|rule| known.contains(rule)).collect();
        let mut flags = BTreeMap::new();
        if !entries.is_empty() {
            let inputs = Inputs { entries, optimise: false, ..inputs.clone() };
            let image = compile(&inputs).context("the policy's data")?.image;
            let mut session = Session::new(&image)?;
            for name in DATA {
                match session.evaluate(&format!("data.policy.{name}"), None) {
                    Evaluation::Value(value) => drop(flags.insert(name, value)),
                    Evaluation::Undefined => {}
                    Evaluation::Fault(fault) => bail!("{name} is no data: {fault:?}"),
                }
            }
        }
        let mut reading = Reading::empty(Some(flags))?;
        for (name, value) in inputs.data.iter().flat_map(Json::as_object).flatten() {
            reading.constants[name] = value.clone();
        }
        let raw = items(&reading.flag("containers")).to_vec();
        reading.own_layers = layers_of(&raw);
        reading.layers.clone_from(&reading.own_layers);
        reading.env_dropping = reading.allows("allow_environment_variable_dropping");
        let version = ["framework_version", "framework_svn"].map(|name| reading.flag(name));
        let version = version.iter().find_map(Json::as_str).and_then(version_of);
        // Without a version, or for a newer framework, a policy has no containers.
        let Some(version) = version.filter(|version| *version <= FRAMEWORK_VERSION) else {
            return Ok(reading);
        };
        reading.capability_dropping = reading.allows("allow_capability_dropping") && version >= [0, 2, 2];
        reading.named = items(&reading.flag("fragments")).to_vec();
        reading.platform_rules = !items(&reading.flag("platform_rules")).is_empty();
        reading.external = items(&reading.flag("external_processes")).to_vec();
        reading.take(raw.into_iter().map(|container| completed(container, version)).collect());
        Ok(reading)
    }

    /// Reads what an image has of its policy's data: the entries, which are constants of it.
    ///
    /// # Errors
    /// It is not valid, or no entry can be told from its other constants.
    pub fn of_image(image: &[u8]) -> Result<Reading> {
        let mut reading = Reading::empty(None)?;
        let objects = Reference::new(image)?.objects();
        let with = |fields: &[&str]| -> Vec<Json> {
            let has = |object: &&Json| fields.iter().all(|field| object.get(*field).is_some());
            objects.iter().filter(has).cloned().collect()
        };
        let containers = with(&CONTAINER);
        if containers.is_empty() {
            bail!("no containers can be read from the image: give the Rego that it was compiled from");
        }
        reading.own_layers = layers_of(&containers);
        reading.layers.clone_from(&reading.own_layers);
        reading.external = with(&["allow_stdio_access", "command", "env_rules", "working_dir"]);
        reading.external.retain(|process| process.get("layers").is_none());
        reading.named = with(&["feed", "includes", "issuer", "minimum_svn"]);
        (reading.env_dropping, reading.capability_dropping) = (true, true);
        reading.take(containers);
        Ok(reading)
    }

    fn empty(flags: Option<BTreeMap<&'static str, Json>>) -> Result<Reading> {
        Ok(Reading {
            containers: Vec::new(),
            containers_from: Vec::new(),
            names: Vec::new(),
            layers: BTreeSet::new(),
            own_layers: BTreeSet::new(),
            external: Vec::new(),
            external_from: Vec::new(),
            offers: Vec::new(),
            contents: Vec::new(),
            named: Vec::new(),
            platform_rules: false,
            env_dropping: false,
            capability_dropping: false,
            obliging: false,
            flags,
            constants: serde_json::from_str(FRAMEWORK_DATA)?,
            patterns: RefCell::default(),
        })
    }

    fn take(&mut self, containers: Vec<Json>) {
        let named = containers.iter().enumerate();
        self.names = named.map(|(number, container)| entry_name("containers", number, container)).collect();
        self.obliging = containers.iter().any(obliges);
        self.containers_from = vec![None; containers.len()];
        self.external_from = vec![None; self.external.len()];
        self.containers = containers;
    }

    /// The same with these fragments, as if everyone whom the policy names had signed them.
    ///
    /// # Errors
    /// One is no fragment, or the policy names some in a way that is not explored.
    pub fn with_fragments(mut self, images: &[Vec<u8>]) -> Result<Reading> {
        let contents = images.iter().map(|image| Content::new(image)).collect::<Result<Vec<_>>>()?;
        let named = self.named.clone();
        self.offers = offers(&mut self, &named, &contents)?;
        self.contents = contents;
        Ok(self)
    }

    /// Adds the containers of an offer.
    pub fn add_containers(&mut self, containers: Vec<Json>, offer: usize, feed: &str) {
        for (number, container) in containers.into_iter().enumerate() {
            let layers = items(&container["layers"]).iter().filter_map(Json::as_str);
            self.layers.extend(layers.map(str::to_string));
            self.names.push(format!("{} of {feed:?}", entry_name("containers", number, &container)));
            self.containers.push(container);
            self.containers_from.push(Some(offer));
        }
    }

    /// Adds the processes of an offer.
    pub fn add_external(&mut self, processes: Vec<Json>, offer: usize) {
        self.external_from.extend(processes.iter().map(|_| Some(offer)));
        self.external.extend(processes);
    }

    /// Whether a layer, or a volume, is one of the policy's, or of what was loaded.
    pub fn layer_known(&self, hash: &str, loaded: &BTreeSet<usize>) -> bool {
        let of_fragment = |number: usize| {
            self.containers_from[number].is_some_and(|offer| loaded.contains(&offer))
                && items(&self.containers[number]["layers"]).iter().any(|layer| layer == hash)
        };
        self.own_layers.contains(hash) || (0..self.containers.len()).any(of_fragment)
    }

    /// What of the policy is not explored.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.flags.is_none() {
            notes.push("a compiled policy does not say what its flags are: what they decide is followed and not judged".into());
        }
        if !self.named.is_empty() && self.offers.is_empty() {
            notes.push("what signed fragments would add is not explored: give some with --fragment".into());
        }
        if !self.offers.is_empty() {
            notes
                .push("each fragment is loaded once; with fragments, everything is explored together".into());
        }
        if self.platform_rules {
            notes.push("what platform rules add to containers is not asked for".into());
        }
        notes
    }

    fn flag(&self, name: &str) -> Json {
        self.flags.as_ref().and_then(|flags| flags.get(name)).cloned().unwrap_or_default()
    }

    /// Whether a flag is `true`, or may be.
    pub fn allows(&self, flag: &str) -> bool {
        self.flags.as_ref().is_none_or(|flags| flags.get(flag) == Some(&Json::Bool(true)))
    }

    /// The ids of read-write volumes that containers are given.
    pub fn volumes(&self) -> BTreeSet<String> {
        let mounts = self.containers.iter().flat_map(|container| items(&container["mounts"]));
        let volumes = mounts.filter_map(|mount| mount["source"].as_str()?.strip_prefix(OPENED));
        volumes.map(str::to_string).collect()
    }

    /// The most bytes of a scratch device.
    pub fn max_scratch_size(&self) -> Option<i64> {
        let size = self.flags.as_ref()?.get("max_scratch_size")?;
        Some(size.as_i64().unwrap_or(i64::MIN))
    }

    /// A pattern, parsed once.
    pub fn pattern(&self, text: &str) -> Option<Hir> {
        self.patterns.borrow_mut().entry(text.to_string()).or_insert_with(|| pattern::parse(text)).clone()
    }

    fn matches(&self, strategy: &Json, pattern: &Json, text: &str) -> bool {
        match (strategy.as_str(), pattern.as_str()) {
            (Some("string"), Some(pattern)) => pattern == text,
            (Some("re2"), Some(pattern)) => {
                self.pattern(pattern).is_some_and(|pattern| pattern::accepts(&pattern, text))
            }
            _ => false,
        }
    }

    /// The first field of the request to create a container that the entry does not allow.
    pub fn refuses_create(
        &self,
        entry: &Json,
        input: &Json,
        runs: &Runs<'_>,
        world: &Mounted<'_>,
    ) -> Option<&'static str> {
        let elevated = entry["allow_elevated"] == true;
        let checks = [
            ("argList", entry["command"] == input["argList"]),
            ("privileged", input["privileged"] == false || input["privileged"] == true && elevated),
            ("seccompProfileSHA256", entry["seccomp_profile_sha256"] == input["seccompProfileSHA256"]),
            (
                "mounts",
                items(&input["mounts"]).iter().all(|mount| self.mount_allowed(entry, input, mount, world)),
            ),
            ("devices", input["devices"] == json!([])),
        ];
        let failed = checks.into_iter().find(|(_, passed)| !passed).map(|(field, _)| field);
        failed.or_else(|| self.refuses_process(entry, input, runs, input["privileged"] == true))
    }

    /// The first field of the request to start another process in a container that the entry does not allow.
    pub fn refuses_exec(
        &self,
        entry: &Json,
        input: &Json,
        runs: &Runs<'_>,
        privileged: bool,
    ) -> Option<&'static str> {
        let known =
            items(&entry["exec_processes"]).iter().any(|process| process["command"] == input["argList"]);
        if known { self.refuses_process(entry, input, runs, privileged) } else { Some("argList") }
    }

    fn refuses_process(
        &self,
        entry: &Json,
        input: &Json,
        runs: &Runs<'_>,
        privileged: bool,
    ) -> Option<&'static str> {
        let must = &entry["no_new_privileges"];
        let user = &entry["user"];
        let allowed = self.capabilities(entry, privileged);
        let checks = [
            ("workingDir", entry["working_dir"] == input["workingDir"]),
            ("umask", user["umask"] == input["umask"]),
            ("user", self.is_user(&user["user_idname"], &input["user"])),
            (
                "groups",
                items(&input["groups"]).iter().all(|group| {
                    items(&user["group_idnames"]).iter().any(|idname| self.is_user(idname, group))
                }),
            ),
            ("terminal", input["terminal"] != true || entry["allow_terminal"] == true),
            ("noNewPrivileges", *must == false || *must == true && input["noNewPrivileges"] == true),
            ("envList", self.environment_allowed(&entry["env_rules"], runs.env)),
            ("capabilities", SETS.iter().all(|set| same_set(&runs.capabilities[set], &allowed[set]))),
        ];
        checks.into_iter().find(|(_, passed)| !passed).map(|(field, _)| field)
    }

    /// The capability sets of a process of this entry.
    pub fn capabilities(&self, entry: &Json, privileged: bool) -> Json {
        let (usual, none) = (&self.constants["defaultUnprivilegedCapabilities"], json!([]));
        let all = &self.constants["defaultPrivilegedCapabilities"];
        match &entry["capabilities"] {
            Json::Null if privileged && entry["allow_elevated"] == true => {
                json!({"ambient": none, "bounding": all, "effective": all, "inheritable": all, "permitted": all})
            }
            Json::Null => {
                json!({"ambient": none, "bounding": usual, "effective": usual, "inheritable": none, "permitted": usual})
            }
            sets => sets.clone(),
        }
    }

    /// The first field of the request for a process outside of containers that the entry does not allow.
    pub fn refuses_external(&self, entry: &Json, input: &Json, env: &[String]) -> Option<&'static str> {
        let checks = [
            ("argList", entry["command"] == input["argList"]),
            ("workingDir", entry["working_dir"] == input["workingDir"]),
            ("envList", self.environment_allowed(&entry["env_rules"], env)),
        ];
        checks.into_iter().find(|(_, passed)| !passed).map(|(field, _)| field)
    }

    /// Whether the entry allows the signal.
    pub fn signal_allowed(&self, entry: &Json, input: &Json) -> bool {
        let has = |signals: &Json| items(signals).contains(&input["signal"]);
        if input["isInitProcess"] == true {
            return has(&entry["signals"]);
        }
        let mut processes = items(&entry["exec_processes"]).iter();
        processes.any(|process| process["command"] == input["argList"] && has(&process["signals"]))
    }

    /// The first field of the request to change what a container may use that the entry does not allow.
    pub fn refuses_update(&self, entry: &Json, input: &Json) -> Option<&'static str> {
        let limit = |name: &str| {
            let (limits, asked) = (&entry["resources"][name], &input[name]);
            match (limits["least"].as_i64(), limits["most"].as_i64(), asked.as_i64()) {
                (Some(least), Some(most), Some(asked)) => (least..=most).contains(&asked),
                _ => limits.is_null() && asked.is_null(),
            }
        };
        let wrong = ["memory", "cpu", "processes"].into_iter().find(|name| !limit(name));
        let still = input["paused"] == false || entry["allow_pause"] == true;
        wrong.or((!still).then_some("paused"))
    }

    fn is_user(&self, idname: &Json, who: &Json) -> bool {
        let pattern = &idname["pattern"];
        match idname["strategy"].as_str() {
            Some("any") => true,
            Some("id") => *pattern == who["id"],
            Some("name") => *pattern == who["name"],
            Some("re2") => {
                who["name"].as_str().is_some_and(|name| self.matches(&json!("re2"), pattern, name))
            }
            _ => false,
        }
    }

    /// Whether a rule says that the variable may be there.
    pub fn variable_allowed(&self, rule: &Json, variable: &str) -> bool {
        if self.matches(&rule["strategy"], &rule["pattern"], variable) {
            return true;
        }
        let Some((name, value)) = variable.split_once('=') else { return false };
        self.matches(&rule["name_strategy"], &rule["name"], name)
            && self.matches(&rule["value_strategy"], &rule["value"], value)
    }

    fn environment_allowed(&self, rules: &Json, env: &[String]) -> bool {
        let rules = items(rules);
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_string();
        let given = |rule: &Json| env.iter().any(|variable| self.variable_allowed(rule, variable));
        let spelled = |variable: &String| {
            rules.iter().any(|rule| rule["strategy"] == "string" && rule["pattern"] == **variable)
        };
        let is_single =
            |variable: &String| env.iter().filter(|other| name(other) == name(variable)).count() == 1;
        let required = |rule: &&Json| !matches!(rule["required"], Json::Null | Json::Bool(false));
        env.iter().all(|variable| rules.iter().any(|rule| self.variable_allowed(rule, variable)))
            && rules.iter().filter(required).all(given)
            && env.iter().all(|variable| is_single(variable) || spelled(variable))
            && env.iter().collect::<BTreeSet<_>>().len() == env.len()
    }

    fn mount_allowed(&self, entry: &Json, input: &Json, mount: &Json, world: &Mounted<'_>) -> bool {
        let of = |name: &str| items(&self.constants[name]).to_vec();
        let privileged = if entry["allow_elevated"] == true { of("privilegedMounts") } else { Vec::new() };
        let sandbox = json!({"type": "sysfs", "source": "sysfs", "destination": "/sys",
            "options": ["nosuid", "noexec", "nodev", "rw"]});
        let sandbox = (input["isSandboxContainer"] == true).then_some(sandbox);
        let constraints = items(&entry["mounts"]).iter().cloned().chain(of("defaultMounts"));
        constraints.chain(privileged).chain(sandbox).any(|constraint| {
            constraint["type"] == mount["type"]
                && constraint["destination"] == mount["destination"]
                && mount["destination"] != ""
                && same_set(&constraint["options"], &mount["options"])
                && items(&constraint["options"]).len() == items(&mount["options"]).len()
                && self.source_allowed(&constraint["source"], input, &mount["source"], world)
        })
    }

    fn source_allowed(&self, constraint: &Json, input: &Json, source: &Json, world: &Mounted<'_>) -> bool {
        let (Some(allowed), Some(asked)) = (constraint.as_str(), source.as_str()) else { return false };
        let read_only = allowed.strip_prefix(VOLUME);
        let opened = allowed.strip_prefix(OPENED);
        if allowed == asked
            || read_only.is_some_and(|hash| world.devices.get(asked).is_some_and(|mounted| mounted == hash))
            || opened.is_some_and(|id| asked == format!("{VOLUMES}{id}") && world.writable.contains(asked))
        {
            return true;
        }
        [("sandboxPrefix", "sandboxDir"), ("hugePagesPrefix", "hugePagesDir")].iter().any(
            |(prefix, directory)| {
                let pattern = self.constants[prefix].as_str().and_then(|prefix| allowed.strip_prefix(prefix));
                let below = input[directory].as_str().and_then(|directory| asked.strip_prefix(directory));
                match (pattern, below) {
                    (Some(pattern), Some(below)) => self.matches(&json!("re2"), &json!(pattern), below),
                    _ => false,
                }
            },
        )
    }
}

/// Every layer of these containers, and every read-only volume.
fn layers_of(containers: &[Json]) -> BTreeSet<String> {
    let layers = containers.iter().flat_map(|container| items(&container["layers"])).filter_map(Json::as_str);
    let mounts = containers.iter().flat_map(|container| items(&container["mounts"]));
    let volumes = mounts.filter_map(|mount| mount["source"].as_str()?.strip_prefix(VOLUME));
    layers.chain(volumes).map(str::to_string).collect()
}

/// Whether an entry is required.
pub(super) fn is_required(entry: &Json) -> bool {
    entry.get("required").is_some_and(|required| *required != false)
}

/// Whether an entry says anything of other containers, or of how many there are.
fn obliges(entry: &Json) -> bool {
    is_required(entry)
        || entry.get("max_instances").is_some()
        || ["after", "after_success"].iter().any(|field| !items(&entry[field]).is_empty())
}

/// The elements of an array, none of anything else.
pub(crate) fn items(list: &Json) -> &[Json] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn same_set(these: &Json, those: &Json) -> bool {
    let set = |list: &Json| items(list).iter().map(Json::to_string).collect::<BTreeSet<_>>();
    these.is_array() && those.is_array() && set(these) == set(those)
}

pub(super) fn version_of(text: &str) -> Option<[u64; 3]> {
    let mut parts = text.split('.');
    let mut version = [0; 3];
    for part in &mut version {
        *part = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(version)
}

/// A container of a policy for an older framework has that version's meaning of what it could not say.
pub(super) fn completed(mut container: Json, version: [u64; 3]) -> Json {
    let Json::Object(fields) = &mut container else { return container };
    if version < FRAMEWORK_VERSION {
        // What it could not say, it did not.
        fields.retain(|field, _| CONTAINER.contains(&field.as_str()));
    }
    if version < [0, 2, 0] {
        fields.insert("no_new_privileges".into(), false.into());
    }
    if version < [0, 2, 1] {
        let anyone = json!({"pattern": "", "strategy": "any"});
        fields.insert(
            "user".into(),
            json!({"umask": "0022", "user_idname": anyone, "group_idnames": [anyone]}),
        );
    }
    if version < [0, 2, 2] {
        fields.insert("capabilities".into(), Json::Null);
    }
    if version < [0, 2, 3] {
        fields.insert("seccomp_profile_sha256".into(), "".into());
    }
    if version < [0, 4, 1]
        && let Some(Json::Array(signals)) = fields.get_mut("signals")
    {
        signals.extend([json!(9), json!(15)]);
    }
    container
}
