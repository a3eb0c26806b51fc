//! Made-up lives of a guest: a policy, and requests of a host that is honest most of the time.

use serde_json::{Value, json};

use super::requests::*;

/// Numbers that look random and are the same in every run.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: usize) -> usize {
        // Knuth's MMIX generator; the high bits are the random ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    pub fn pick<T: Clone>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())].clone()
    }
}

/// Containers that differ in a few fields, so that requests narrow them down.
fn containers(numbers: &mut Numbers) -> Vec<Value> {
    let mount = |source: &str, destination: &str, options: &[&str]| json!({"source": source, "destination": destination, "type": "bind", "options": options});
    let mounts = json!([
        mount("sandbox:///tmp/atlas/emptydir/.+", "/mnt/data", &["rbind", "rshared", "rw"]),
        mount("hugepages://2M/[a-z]+", "/mnt/huge", &["rbind"]),
        mount("plan9://", "/mnt/share", &["rbind", "ro"]),
        mount("/etc/[a-z]+", "/etc/x", &["ro"]),
    ]);
    (0..3)
        .map(|_| {
            let mut container = container();
            container["mounts"] = mounts.clone();
            if numbers.below(2) == 0 {
                container["env_rules"]
                    .as_array_mut()
                    .unwrap()
                    .push(json!({"pattern": "EXTRA_[A-Z]+=.*|X=1", "strategy": "re2", "required": false}));
            }
            if numbers.below(3) == 0 {
                container["capabilities"] = Value::Null;
            }
            if numbers.below(3) == 0 {
                container["allow_elevated"] = true.into();
            }
            if numbers.below(3) == 0 {
                container["user"]["user_idname"] = json!({"pattern": "ser.+", "strategy": "re2"});
            }
            if numbers.below(4) == 0 {
                container["layers"] = json!([hash(1), hash(3)]);
            }
            container
        })
        .collect()
}

/// A policy and as many requests.
pub fn session(numbers: &mut Numbers, count: usize) -> (String, Vec<(&'static str, Value)>) {
    let flag = |numbers: &mut Numbers| numbers.below(2) == 0;
    let process = json!({
        "command": ["/bin/outside"], "working_dir": "/", "allow_stdio_access": true,
        "env_rules": [{"pattern": "A=[0-9]+", "strategy": "re2", "required": false}],
    });
    let changes = json!({
        "allow_environment_variable_dropping": flag(numbers), "allow_capability_dropping": flag(numbers),
        "allow_properties_access": flag(numbers), "allow_unencrypted_scratch": flag(numbers),
        "external_processes": [process],
    });
    let policy = policy(&containers(numbers), &changes);
    let id = id('a');
    let start = [
        ("mount_device", mount_device(0, &hash(1))),
        ("mount_device", mount_device(1, &hash(2))),
        ("mount_overlay", mount_overlay(&id, &[1, 0])),
        ("create_container", create_container(&id)),
        ("exec_in_container", exec_in_container(&id)),
    ];
    let rest = (start.len()..count).map(|_| request(numbers)).collect::<Vec<_>>();
    (policy, start.into_iter().chain(rest).collect())
}

fn request(numbers: &mut Numbers) -> (&'static str, Value) {
    let id = id(numbers.pick(&['a', 'a', 'b']));
    let number = numbers.below(4) as u32;
    let target = format!("/run/gcs/c/{id}/rootfs");
    let scratch = format!("/run/gcs/c/{id}");
    let share = format!("/run/gcs/c/{id}/mounts/m{number}");
    let point = if numbers.below(3) == 0 {
        numbers.pick(&POINTS)
    } else {
        numbers.pick(&[
            "mount_device",
            "mount_device",
            "mount_overlay",
            "mount_overlay",
            "create_container",
            "create_container",
            "exec_in_container",
            "signal_container_process",
            "plan9_mount",
            "exec_external",
        ])
    };
    let honest = match point {
        "mount_device" => mount_device(number, &hash(numbers.pick(&[1, 2, 3]))),
        "rw_mount_device" => json!({
            "target": scratch, "encrypted": numbers.below(2) == 0, "ensureFilesystem": true,
            "filesystem": numbers.pick(&["ext4", "xfs", "btrfs"]), "mountPathRegex": "/run/gcs/c/[0-9a-fA-F]{64}",
        }),
        "unmount_device" => json!({"unmountTarget": device_path(number)}),
        "rw_unmount_device" | "scratch_unmount" => json!({"unmountTarget": scratch}),
        "unmount_overlay" => json!({"unmountTarget": target}),
        "mount_blockdev" => json!({"target": scratch}),
        "unmount_blockdev" => json!({"unmountTarget": scratch}),
        "mount_overlay" => {
            let layers = numbers.pick(&[
                vec![1, 0],
                vec![0, 1],
                vec![2, 1],
                vec![1],
                vec![3, 2],
                vec![2, 0],
                vec![1, 3],
            ]);
            mount_overlay(&id, &layers)
        }
        "mount_cims" => json!({"containerID": id, "layerHashes": [hash(1)], "mountedCim": [hash(2)]}),
        "registry_changes" => json!({"containerID": id, "registryChanges": {"AddValues": []}}),
        "create_container" => created(numbers, &id, &share),
        "exec_in_container" => exec_in_container(&id),
        "exec_external" => json!({"argList": ["/bin/outside"], "envList": ["A=1"], "workingDir": "/"}),
        "shutdown_container" => json!({"containerID": id}),
        "signal_container_process" => {
            let mut request = signal(&id, numbers.pick(&[15, 9, 2]));
            if numbers.below(2) == 0 {
                request["isInitProcess"] = false.into();
                request["argList"] = json!(["/bin/check"]);
            }
            request
        }
        "plan9_mount" => {
            json!({"rootPrefix": "/run/gcs/c", "mountPathPrefix": "/mounts/m[0-9]+", "target": share})
        }
        "plan9_unmount" => json!({"unmountTarget": share}),
        "load_fragment" => json!({
            "issuer": "did:x509:0:sha256:x::eku:1.2", "feed": "f", "namespace": "fragment", "fragment_loaded": false,
            "has_header_svn": true, "header_svn": "1", "receipts": [],
        }),
        "load_transparency_trust_list" => json!({"issuer": "i", "subject": "s", "svn": 1, "ledgers": ["*"]}),
        "scratch_mount" => json!({"target": scratch, "encrypted": numbers.below(2) == 0}),
        "log_provider" => json!({"providers": ["a"]}),
        _ => json!({}),
    };
    if numbers.below(4) > 0 { (point, honest) } else { (point, changed(numbers, &honest)) }
}

fn created(numbers: &mut Numbers, id: &str, share: &str) -> Value {
    let mut request = create_container(id);
    let mount = |source: &str, destination: &str, options: &[&str]| json!({"source": source, "destination": destination, "type": "bind", "options": options});
    let text = |field: &str| request[field].as_str().unwrap().to_string();
    let (sandbox, huge) = (text("sandboxDir"), text("hugePagesDir"));
    let possible = [
        mount(&format!("{sandbox}/tmp/atlas/emptydir/x1"), "/mnt/data", &["rbind", "rshared", "rw"]),
        mount(&format!("{sandbox}/tmp/atlas/emptydir/"), "/mnt/data", &["rbind", "rshared", "rw"]),
        mount(&format!("{huge}2M/abc"), "/mnt/huge", &["rbind"]),
        mount(&format!("{huge}/2M/abc"), "/mnt/huge", &["rbind"]),
        mount(share, "/mnt/share", &["ro", "rbind"]),
        mount("/etc/hosts", "/etc/x", &["ro"]),
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
    ];
    let mounts: Vec<Value> = (0..numbers.below(3)).map(|_| numbers.pick(&possible)).collect();
    request["mounts"] = mounts.into();
    if numbers.below(3) == 0 {
        request["envList"] = json!(["EXTRA_A=1", "PATH=/bin", "ZONE=north", "UNKNOWN=1"]);
    }
    request["privileged"] = (numbers.below(5) == 0).into();
    request
}

/// The request with one value another one, or one field left out.
fn changed(numbers: &mut Numbers, request: &Value) -> Value {
    fn places(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(key, value)| places(value, format!("{at}/{key}"), found))
            }
            Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(index, item)| places(item, format!("{at}/{index}"), found));
            }
            _ => {}
        }
        if !at.is_empty() {
            found.push(at);
        }
    }
    let mut found = Vec::new();
    places(request, String::new(), &mut found);
    if found.is_empty() {
        return request.clone();
    }
    let mut changed = request.clone();
    if numbers.below(5) == 0 {
        let fields = changed.as_object_mut().unwrap();
        let names: Vec<String> = fields.keys().cloned().collect();
        fields.remove(&numbers.pick(&names));
        return changed;
    }
    let other = [
        json!(null),
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(""),
        json!("serve"),
        json!("PATH=/bin"),
        json!("LEVEL=x"),
        json!([]),
        json!({}),
        json!(["PATH=/bin", "PATH=/bin"]),
        json!("CAP_KILL"),
        json!({"id": "1000", "name": "server"}),
        json!("/run/mounts/scsi/m1"),
        json!(["/bin/serve", "-v"]),
        json!("X=1"),
        json!("a b.c"),
    ];
    let place = numbers.pick(&found);
    *changed.pointer_mut(&place).unwrap() = numbers.pick(&other);
    changed
}
