//! What the policy sees of a request: the input objects of the reference's enforcement points (`enforcement.md`, section
//! 5), so that policies written for it read the same here. Every path in them is the guest's own (difference D3).

use super::action::StartProcess;
use super::fields::{CAPABILITY_NAMES, ContainerId, Signal};
use crate::accounts::MAX_GROUPS;
use crate::policy::{Arena, Fault, Reason, Value};
use crate::wire::Process;
use alloc::string::String;
use core::fmt::Write;
use heapless::Vec;

/// Where layers are mounted, as a pattern that policies match mount points against.
pub(super) const MOUNT_PATH_REGEX: &str = "/run/mounts/scsi/m[0-9]+";

/// Where a container's root filesystem is.
pub(super) fn rootfs(container: &ContainerId) -> heapless::String<96> {
    let mut path = heapless::String::new();
    // 15 bytes, 64 digits and 7 bytes fit.
    let _ = write!(path, "/run/gcs/c/{}/rootfs", container.as_str());
    path
}

/// Most fields of an input.
const FIELDS: usize = 16;

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
        ("noNewPrivileges", Value::Bool(start.no_new_privileges)),
    ]))
}

pub(super) fn create_container(
    input: &mut Arena<'_>,
    container: &ContainerId,
    privileged: bool,
    start: &StartProcess<'_>,
) -> Result<Value, Fault> {
    let mut fields = process(input, container, start)?;
    let mut sandbox = heapless::String::<96>::new();
    let _ = write!(sandbox, "/run/gcs/c/{}/", container.as_str());
    let mut under = |name: &str| {
        let mut path = sandbox.clone();
        // 76 bytes and at most 13 fit.
        let _ = path.push_str(name);
        input.string(&path)
    };
    let sandbox_dir = under("sandboxMounts")?;
    let huge_pages_dir = under("hugepages")?;
    // The guest makes the same mounts and devices for every container; a request cannot add any, so none is to be
    // decided. There is no seccomp profile of the host's either: the empty string is what the reference has for none.
    let none = input.array(&[])?;
    let no_profile = input.string("")?;
    fields.extend([
        ("sandboxDir", sandbox_dir),
        ("hugePagesDir", huge_pages_dir),
        ("mounts", none),
        ("devices", none),
        ("privileged", Value::Bool(privileged)),
        ("seccompProfileSHA256", no_profile),
        ("isSandboxContainer", Value::Bool(false)),
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
        ("isInitProcess", Value::Bool(init)),
        ("signal", Value::Int(i64::from(signal.number()))),
    ])
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
