//! Policies and requests: an honest one of each kind, to be changed in one field.

use serde_json::{Value, json};

/// Every enforcement point that a policy can alias.
pub const POINTS: [&str; 27] = [
    "mount_device",
    "rw_mount_device",
    "mount_blockdev",
    "unmount_device",
    "rw_unmount_device",
    "unmount_blockdev",
    "mount_overlay",
    "unmount_overlay",
    "mount_cims",
    "registry_changes",
    "create_container",
    "exec_in_container",
    "exec_external",
    "shutdown_container",
    "signal_container_process",
    "plan9_mount",
    "plan9_unmount",
    "get_properties",
    "dump_stacks",
    "runtime_logging",
    "load_fragment",
    "scratch_mount",
    "scratch_unmount",
    "log_provider",
    "load_transparency_trust_list",
    "host_network",
    "update_container",
];

/// Container ids: 64 digits, all the same.
pub fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// A root hash of one repeated byte.
pub fn hash(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

/// Where the guest mounts the layer device of this number.
pub fn device_path(number: u32) -> String {
    format!("/run/mounts/scsi/m{number}")
}

/// An entry of a policy: layers 1 (below) and 2, `/bin/serve -v` in `/srv` as user 1000.
pub fn container() -> Value {
    json!({
        "name": "serve",
        "command": ["/bin/serve", "-v"],
        "env_rules": [
            {"pattern": "PATH=/bin", "strategy": "string", "required": true},
            {"pattern": "LEVEL=[0-9]", "strategy": "re2", "required": false},
            {"name": "ZONE", "name_strategy": "string", "value": "[a-z]+", "value_strategy": "re2", "required": false},
        ],
        "layers": [hash(1), hash(2)],
        "mounts": [],
        "exec_processes": [{"command": ["/bin/check"], "signals": [2]}],
        "signals": [15],
        "user": {
            "user_idname": {"pattern": "1000", "strategy": "id"},
            "group_idnames": [{"pattern": "users", "strategy": "name"}],
            "umask": "0022",
        },
        "capabilities": {
            "bounding": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_KILL"],
            "inheritable": [],
            "permitted": ["CAP_KILL"],
            "ambient": [],
        },
        "seccomp_profile_sha256": "",
        "allow_elevated": false,
        "working_dir": "/srv",
        "allow_stdio_access": true,
        "no_new_privileges": true,
    })
}

/// A policy: these containers, all flags off unless `changes` says otherwise, every point aliased.
pub fn policy(containers: &[Value], changes: &Value) -> String {
    let mut members = json!({
        "api_version": "0.12.0",
        "framework_version": "0.5.0",
        "containers": containers,
        "allow_properties_access": false,
        "allow_dump_stacks": false,
        "allow_runtime_logging": false,
        "allow_host_network": false,
        "allow_environment_variable_dropping": false,
        "allow_unencrypted_scratch": false,
        "allow_capability_dropping": false,
    });
    for (name, value) in changes.as_object().into_iter().flatten() {
        members[name] = value.clone();
    }
    let mut text = String::from("package policy\n\n");
    for (name, value) in members.as_object().unwrap() {
        if !value.is_null() {
            text += &format!("{name} := {value}\n");
        }
    }
    for point in POINTS {
        text += &format!("{point} := data.framework.{point}\n");
    }
    text + "reason := data.framework.reason\n"
}

/// Mounts the layer of this root hash at the path of this number.
pub fn mount_device(number: u32, hash: &str) -> Value {
    json!({
        "target": device_path(number),
        "deviceHash": hash,
        "mountPathRegex": "/run/mounts/scsi/m[0-9]+",
    })
}

/// Assembles a root filesystem from the devices of these numbers, topmost first.
pub fn mount_overlay(id: &str, layers: &[u32]) -> Value {
    json!({
        "containerID": id,
        "layerPaths": layers.iter().map(|&number| device_path(number)).collect::<Vec<_>>(),
        "target": format!("/run/gcs/c/{id}/rootfs"),
    })
}

/// What [`container`] allows.
pub fn create_container(id: &str) -> Value {
    json!({
        "containerID": id,
        "argList": ["/bin/serve", "-v"],
        "envList": ["LEVEL=3", "PATH=/bin"],
        "workingDir": "/srv",
        "sandboxDir": format!("/run/gcs/c/{id}/sandboxMounts"),
        "hugePagesDir": format!("/run/gcs/c/{id}/hugepages"),
        "mounts": [],
        "devices": [],
        "privileged": false,
        "noNewPrivileges": true,
        "user": {"id": "1000", "name": "serve"},
        "groups": [{"id": "100", "name": "users"}],
        "umask": "0022",
        "capabilities": {
            "bounding": ["CAP_KILL", "CAP_CHOWN"],
            "effective": ["CAP_KILL"],
            "inheritable": [],
            "permitted": ["CAP_KILL"],
            "ambient": [],
        },
        "seccompProfileSHA256": "",
        "isSandboxContainer": false,
    })
}

/// The process that [`container`] allows beside its first.
pub fn exec_in_container(id: &str) -> Value {
    let create = create_container(id);
    let mut exec = json!({ "argList": ["/bin/check"] });
    for field in
        ["containerID", "envList", "workingDir", "noNewPrivileges", "user", "groups", "umask", "capabilities"]
    {
        exec[field] = create[field].clone();
    }
    exec
}

/// A signal to the first process.
pub fn signal(id: &str, signal: u32) -> Value {
    json!({"containerID": id, "signal": signal, "isInitProcess": true, "argList": []})
}

/// `request` with one field, given as a JSON pointer, set to `value`.
pub fn with(request: &Value, field: &str, value: impl Into<Value>) -> Value {
    let mut changed = request.clone();
    *changed.pointer_mut(field).unwrap_or_else(|| panic!("no {field}")) = value.into();
    changed
}
