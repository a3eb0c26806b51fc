//! What the policy sees of a request: the input objects of the reference's enforcement points (`enforcement.md`, section
//! 5), so that policies written for it read the same here. Every path in them is the guest's own (difference D3).

use super::action::{Mount, Source, StartProcess};
use super::fields::{
    Args, CAPABILITY_NAMES, ContainerId, DirectoryName, Env, ProfileHash, Resources, ScratchBlocks, Signal,
    VolumeId, WorkingDir,
};
use super::network::Network;
use crate::accounts::MAX_GROUPS;
use crate::policy::{Arena, Fault, Reason, Value};
use crate::wire::{self, MAX_MOUNTS, MAX_ROUTES, Process, Tags};
use alloc::string::String;
use core::fmt::Write;
use heapless::Vec;

/// Where layers are mounted, as a pattern that policies match mount points against.
pub(super) const MOUNT_PATH_REGEX: &str = "/run/mounts/scsi/m[0-9]+";

/// Where a container's root filesystem is.
pub(crate) fn rootfs(container: &ContainerId) -> Path {
    let mut path = folder(container);
    // 82 bytes fit.
    let _ = path.push_str("/rootfs");
    path
}

/// Where scratch devices are mounted, as a pattern that policies match mount points against.
const SCRATCH_PATH_REGEX: &str = "/run/gcs/c/[0-9a-fA-F]{64}";

/// A path below `/run/gcs/c`: 11 bytes, an id, and at most 85 more.
pub(crate) type Path = heapless::String<160>;

/// Where a scratch device is mounted, and where a container's folder is.
pub(crate) fn folder(id: &ContainerId) -> Path {
    let mut path = Path::new();
    // 75 bytes fit.
    let _ = write!(path, "/run/gcs/c/{}", id.as_str());
    path
}

/// What a container writes, on the scratch space of this id: the container's own where it is in guest memory.
pub(crate) fn writable(scratch: &ContainerId, container: &ContainerId) -> Path {
    let mut path = folder(scratch);
    // 148 bytes fit.
    let _ = write!(path, "/scratch/{}", container.as_str());
    path
}

/// Where containers have their attestation directories, each under its id. The policy sees this one path.
pub(crate) const ATTESTATION: &str = "/run/attestation";

/// Where a scratch space has the directories that are mounted in containers. The reference's `sandboxMounts`, and below
/// it the place of an `emptyDir`, so that policies for it name the same paths.
pub(crate) const DIRECTORIES: &str = "sandboxMounts/tmp/atlas/emptydir";

/// The path of such a directory.
pub(crate) fn directory(scratch: &ContainerId, name: DirectoryName<'_>) -> heapless::String<192> {
    let mut path = heapless::String::new();
    // 75, 34 and at most 64 bytes fit.
    let _ = write!(path, "{}/{DIRECTORIES}/{}", folder(scratch), name.as_str());
    path
}

pub(super) fn rw_mount_device(
    input: &mut Arena<'_>,
    scratch: &ContainerId,
    blocks: ScratchBlocks,
    tags: Tags,
) -> Result<Value, Fault> {
    let target = input.string(&folder(scratch))?;
    let filesystem = input.string("ext4")?;
    let regex = input.string(SCRATCH_PATH_REGEX)?;
    // At most 128 GiB.
    let size = i64::try_from(blocks.get() * 4096).map_err(|_| Fault::Arena)?;
    // SECURITY (L05): encrypted and formatted by the guest, always; nothing in a request says otherwise.
    input.object(&[
        ("encrypted", Value::bool(true)),
        ("ensureFilesystem", Value::bool(true)),
        ("filesystem", filesystem),
        ("mountPathRegex", regex),
        ("rollbackProtection", Value::bool(tags == Tags::Memory)),
        ("size", Value::Int(size)),
        ("target", target),
    ])
}

/// Where data volumes are mounted, as a pattern.
const VOLUME_PATH_REGEX: &str = "/run/mounts/volumes/[0-9a-f]{64}";

pub(super) fn rw_mount_volume(input: &mut Arena<'_>, volume: &VolumeId) -> Result<Value, Fault> {
    let target = input.string(&volume.path())?;
    let id = input.string(&volume.hex())?;
    let filesystem = input.string("ext4")?;
    let regex = input.string(VOLUME_PATH_REGEX)?;
    input.object(&[
        ("encrypted", Value::bool(true)),
        ("ensureFilesystem", Value::bool(false)),
        ("filesystem", filesystem),
        ("mountPathRegex", regex),
        ("rollbackProtection", Value::bool(false)),
        ("target", target),
        ("volume", id),
    ])
}

pub(super) fn scratch_mount(
    input: &mut Arena<'_>,
    scratch: Option<&ContainerId>,
    container: &ContainerId,
) -> Result<Value, Fault> {
    let target = input.string(&writable(scratch.unwrap_or(container), container))?;
    input.object(&[
        ("encrypted", Value::bool(true)),
        ("memory", Value::bool(scratch.is_none())),
        ("target", target),
    ])
}

pub(super) fn unmount_target(input: &mut Arena<'_>, path: &str) -> Result<Value, Fault> {
    let target = input.string(path)?;
    input.object(&[("unmountTarget", target)])
}

fn mount(input: &mut Arena<'_>, scratch: &ContainerId, mount: &Mount<'_>) -> Result<Value, Fault> {
    let destination = input.string(mount.destination.as_str())?;
    let source = match mount.source {
        Source::Directory(name) => input.string(&directory(scratch, name))?,
        Source::Layer(slot) => input.string(&slot.path())?,
        Source::Volume(volume) => input.string(&volume.path())?,
        Source::Attestation(_) => input.string(ATTESTATION)?,
    };
    // As policies of the reference write them. Nothing is ever mounted on the other side, so nothing propagates.
    let access = if mount.read_only { "ro" } else { "rw" };
    let options = input.strings(["rbind", "rshared", access].into_iter())?;
    let kind = input.string("bind")?;
    input.object(&[("destination", destination), ("options", options), ("source", source), ("type", kind)])
}

/// Most fields of an input.
const FIELDS: usize = 24;

/// The fields that creating a container and starting a further process in it have in common.
fn process<'k>(
    input: &mut Arena<'_>,
    container: &ContainerId,
    start: &StartProcess<'_>,
) -> Result<Vec<(&'k str, Value), FIELDS>, Fault> {
    let id_name = |input: &mut Arena<'_>, id: u32, name: &str| {
        let mut digits = heapless::String::<10>::new();
        // A u32 has at most ten digits.
        let _ = write!(digits, "{id}");
        let id = input.string(&digits)?;
        let name = input.string(name)?;
        input.object(&[("id", id), ("name", name)])
    };
    let container = input.string(container.as_str())?;
    let args = input.strings(start.args.as_slice().iter().copied())?;
    let env = input.strings(start.env.as_slice().iter().copied())?;
    let working_dir = input.string(start.working_dir.as_str())?;
    let user = id_name(input, start.user.uid, &start.user.name)?;
    let mut groups = Vec::<Value, MAX_GROUPS>::new();
    for group in &start.user.groups {
        groups.push(id_name(input, group.gid, &group.name)?).map_err(|_| Fault::Arena)?;
    }
    let groups = input.array(&groups)?;
    let mut umask = heapless::String::<8>::new();
    let _ = write!(umask, "{:04o}", start.umask.bits());
    let umask = input.string(&umask)?;
    let sets = start.capabilities.get();
    let mut names = |set: u64| {
        let held = CAPABILITY_NAMES.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
        let held: Vec<&str, { CAPABILITY_NAMES.len() }> = held.map(|(_, &name)| name).collect();
        input.strings(held.into_iter())
    };
    let capabilities = [
        ("ambient", names(sets.ambient)?),
        ("bounding", names(sets.bounding)?),
        ("effective", names(sets.effective)?),
        ("inheritable", names(sets.inheritable)?),
        ("permitted", names(sets.permitted)?),
    ];
    let capabilities = input.object(&capabilities)?;
    Ok(Vec::from_iter([
        ("containerID", container),
        ("argList", args),
        ("envList", env),
        ("workingDir", working_dir),
        ("user", user),
        ("groups", groups),
        ("umask", umask),
        ("capabilities", capabilities),
        ("noNewPrivileges", Value::bool(start.no_new_privileges)),
        ("terminal", Value::bool(start.stdio.get().terminal.is_some())),
    ]))
}

/// A container that is to be created.
pub(super) struct Creation<'a, 'r> {
    pub container: ContainerId,
    pub privileged: bool,
    /// The scratch space whose directories it can have.
    pub scratch: ContainerId,
    pub mounts: &'a [Mount<'r>],
    pub profile: Option<ProfileHash>,
    /// Other containers, which have done their work.
    pub succeeded: &'a [ContainerId],
    /// Its first process.
    pub first: &'a StartProcess<'r>,
}

pub(super) fn create_container(input: &mut Arena<'_>, creation: &Creation<'_, '_>) -> Result<Value, Fault> {
    let Creation { container, privileged, scratch, mounts, profile, succeeded, first } = creation;
    let mut fields = process(input, container, first)?;
    let mut under = |name: &str| {
        let mut path = folder(scratch);
        // 75 bytes and at most 14 fit.
        let _ = write!(path, "/{name}");
        input.string(&path)
    };
    let sandbox_dir = under("sandboxMounts")?;
    let huge_pages_dir = under("hugepages")?;
    let mut asked = Vec::<Value, MAX_MOUNTS>::new();
    for one in *mounts {
        asked.push(mount(input, scratch, one)?).map_err(|_| Fault::Arena)?;
    }
    let mounts = input.array(&asked)?;
    // The guest makes the same devices for every container; a request cannot add any, so none is to be decided.
    let none = input.array(&[])?;
    // The empty string is what the reference has for no profile.
    let profile = match profile {
        Some(hash) => input.string(&hash.hex())?,
        None => input.string("")?,
    };
    let succeeded = input.strings(succeeded.iter().map(ContainerId::as_str))?;
    fields.extend([
        ("succeeded", succeeded),
        ("sandboxDir", sandbox_dir),
        ("hugePagesDir", huge_pages_dir),
        ("mounts", mounts),
        ("devices", none),
        ("privileged", Value::bool(*privileged)),
        ("seccompProfileSHA256", profile),
        ("isSandboxContainer", Value::bool(false)),
    ]);
    input.object(&fields)
}

pub(super) fn exec_in_container(
    input: &mut Arena<'_>,
    container: &ContainerId,
    start: &StartProcess<'_>,
) -> Result<Value, Fault> {
    let fields = process(input, container, start)?;
    input.object(&fields)
}

pub(super) fn exec_external(
    input: &mut Arena<'_>,
    args: &Args<'_>,
    env: &Env<'_>,
    working_dir: WorkingDir<'_>,
) -> Result<Value, Fault> {
    let args = input.strings(args.as_slice().iter().copied())?;
    let env = input.strings(env.as_slice().iter().copied())?;
    let working_dir = input.string(working_dir.as_str())?;
    input.object(&[("argList", args), ("envList", env), ("workingDir", working_dir)])
}

/// The fields of every point that this guest has nothing behind, with the paths that such a share would have.
pub(super) fn unoffered(input: &mut Arena<'_>, container: &ContainerId) -> Result<Value, Fault> {
    let mut path = folder(container);
    // 75 bytes and 10 fit.
    let _ = path.push_str("/mounts/m0");
    let target = input.string(&path)?;
    let root = input.string("/run/gcs/c")?;
    let pattern = input.string("/mounts/m[0-9]+")?;
    input.object(&[
        ("mountPathPrefix", pattern),
        ("rootPrefix", root),
        ("target", target),
        ("unmountTarget", target),
    ])
}

pub(super) fn signal_container_process(
    input: &mut Arena<'_>,
    container: &ContainerId,
    signal: Signal,
    init: bool,
    args: &[String],
) -> Result<Value, Fault> {
    let id = input.string(container.as_str())?;
    let args = input.strings(args.iter().map(String::as_str))?;
    input.object(&[
        ("argList", args),
        ("containerID", id),
        ("isInitProcess", Value::bool(init)),
        ("signal", Value::Int(i64::from(signal.number()))),
    ])
}

pub(super) fn network(input: &mut Arena<'_>, network: &Network<'_>) -> Result<Value, Fault> {
    let addresses =
        texts(input, network.addresses().len(), &|at, out| write!(out, "{}", network.addresses()[at]))?;
    let routes = texts(input, network.routes().len(), &|at, out| write!(out, "{}", network.routes()[at]))?;
    let servers =
        texts(input, network.name_servers().len(), &|at, out| write!(out, "{}", network.name_servers()[at]))?;
    let search = input.strings(network.search().iter().copied())?;
    input.object(&[
        ("addresses", addresses),
        ("mtu", Value::Int(i64::from(network.mtu()))),
        ("nameServers", servers),
        ("routes", routes),
        ("search", search),
    ])
}

/// Longest text of a route: two addresses of 39 bytes, and 8 around them.
type Line = heapless::String<96>;

/// As many strings as `count`, at most [`MAX_ROUTES`].
fn texts(
    input: &mut Arena<'_>,
    count: usize,
    write: &dyn Fn(usize, &mut Line) -> core::fmt::Result,
) -> Result<Value, Fault> {
    let mut texts = Vec::<Value, MAX_ROUTES>::new();
    for at in 0..count {
        let mut text = Line::new();
        write(at, &mut text).map_err(|_| Fault::Arena)?;
        texts.push(input.string(&text)?).map_err(|_| Fault::Arena)?;
    }
    input.array(&texts)
}

pub(super) fn update_container(
    input: &mut Arena<'_>,
    container: &ContainerId,
    resources: Resources,
) -> Result<Value, Fault> {
    let id = input.string(container.as_str())?;
    let wire::Resources { memory, cpu, processes, paused } = resources.get();
    // At most 2⁴⁰.
    let number = |limit: Option<u64>| {
        limit.and_then(|limit| i64::try_from(limit).ok()).map_or(Value::Null, Value::Int)
    };
    input.object(&[
        ("containerID", id),
        ("cpu", number(cpu.map(u64::from))),
        ("memory", number(memory)),
        ("paused", Value::bool(paused)),
        ("processes", number(processes.map(u64::from))),
    ])
}

/// What a fragment's header says, and its content once the header was welcome.
pub(super) fn load_fragment(
    input: &mut Arena<'_>,
    issuer: &str,
    feed: &str,
    svn: u32,
    content: Option<Value>,
) -> Result<Value, Fault> {
    let issuer = input.string(issuer)?;
    let feed = input.string(feed)?;
    // The reference's is the fragment's package, which says nothing here: what is loaded is data.
    let namespace = input.string("fragment")?;
    // No receipts of transparency ledgers are read.
    let receipts = input.array(&[])?;
    let mut fields: Vec<(&str, Value), FIELDS> = Vec::from_iter([
        ("feed", feed),
        ("fragment_loaded", Value::bool(content.is_some())),
        ("has_header_svn", Value::bool(true)),
        ("header_svn", Value::Int(i64::from(svn))),
        ("issuer", issuer),
        ("namespace", namespace),
        ("receipts", receipts),
    ]);
    fields.extend(content.map(|content| ("fragment", content)));
    input.object(&fields)
}

/// The host's own value that a denial is about, as far as repeating it helps.
pub(super) fn value<'r>(reason: Reason, process: &Process<'r>) -> &'r str {
    match reason {
        Reason::InvalidCommand => process.args.first().copied().unwrap_or_default(),
        Reason::InvalidWorkingDirectory => process.working_dir,
        Reason::InvalidUser => process.user,
        _ => "",
    }
}
