//! The honest life of a container, played once against its policy, compiled, before anyone relies on it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use parma_guest::gate::fields::CAPABILITY_NAMES;
use parma_guest::point::Point;
use serde_json::{Value, json};

use super::{Container, VolumeContent, attestation, hex};
use crate::{Evaluation, Inputs, Session, compile};

/// An id of the form that containers have.
fn id_of(number: usize) -> String {
    format!("{:064x}", number + 1)
}

/// Asks `policy` for everything that an honest host asks for in the lives of `containers`: they start in their order, and
/// end when all run, since some may have to be running for others to start.
///
/// # Errors
/// The policy does not compile, or denies one of these requests.
pub fn rehearse(containers: &[Container], policy: &str) -> Result<()> {
    let compiled = compile(&Inputs::policy("policy.rego", policy)).context("the generated policy")?;
    let mut session = Session::new(&compiled.image)?;
    // All of them are there before the first ends: that is what some wait for.
    let (mut lives, mut ends) = (Vec::new(), Vec::new());
    // A volume that several have is opened once.
    let (mut devices, mut opened) = (0, BTreeSet::new());
    let ids: Vec<String> = (0..containers.len()).map(id_of).collect();
    for (number, container) in containers.iter().enumerate() {
        let (life, end) = honest_life(container, &ids[number], devices, &ids[..number], &mut opened)?;
        devices += verified(container).count();
        lives.extend(life);
        ends.push(end);
    }
    lives.extend(ends.into_iter().rev().flatten());
    for (point, input) in lives {
        let rule = point.entry();
        match session.decide(rule, Some(&input)).context("the generated policy")? {
            Evaluation::Value(result) if result["allowed"] == true => {}
            other => {
                bail!("the generated policy does not allow the honest request {rule} {input}: {other:?}")
            }
        }
    }
    Ok(())
}

/// Requests in order, as the guest gives them to the policy.
type Requests = Vec<(Point, Value)>;

/// The root hashes of a container's layers, and then of its read-only data volumes.
fn verified(container: &Container) -> impl Iterator<Item = &[u8; 32]> {
    let volumes = container.volumes.iter().filter_map(|volume| match &volume.content {
        VolumeContent::Verified(root_hash) => Some(root_hash),
        VolumeContent::Encrypted(_) => None,
    });
    container.layers.iter().chain(volumes)
}

/// Those of a container's life, and of its end. Its devices are numbered from `first`; the containers `before` it have done
/// their work, and these encrypted volumes are open `already`.
fn honest_life(
    container: &Container,
    id: &str,
    first: usize,
    before: &[String],
    already: &mut BTreeSet<[u8; 32]>,
) -> Result<(Requests, Requests)> {
    let device = |number: usize| format!("/run/mounts/scsi/m{}", first + number);
    let devices = 0..verified(container).count();
    let rootfs = format!("/run/gcs/c/{id}/rootfs");
    let mut life = Vec::new();
    for (number, root_hash) in verified(container).enumerate() {
        let target = device(number);
        life.push((
            Point::MountDevice,
            json!({"target": target, "deviceHash": hex(root_hash), "mountPathRegex": "/run/mounts/scsi/m[0-9]+"}),
        ));
    }
    let layers: Vec<String> = (0..container.layers.len()).rev().map(device).collect();
    let scratch = format!("/run/gcs/c/{id}");
    let writable = format!("{scratch}/scratch/{id}");
    life.push((
        Point::RwMountDevice,
        json!({
            "target": scratch, "encrypted": true, "ensureFilesystem": true, "filesystem": "ext4",
            "mountPathRegex": "/run/gcs/c/[0-9a-fA-F]{64}", "rollbackProtection": true, "size": container.max_scratch,
        }),
    ));
    life.push((Point::MountOverlay, json!({"containerID": id, "layerPaths": layers, "target": rootfs})));
    life.push((
        Point::ScratchMount,
        json!({"target": writable, "encrypted": true, "memory": container.memory_scratch}),
    ));
    let (mut volumes, mut opened) = (Vec::new(), Vec::new());
    let mut places = devices.clone().skip(container.layers.len()).map(device);
    for volume in &container.volumes {
        let place = match &volume.content {
            VolumeContent::Verified(_) => places.next().unwrap_or_default(),
            VolumeContent::Encrypted(id) => {
                let place = format!("/run/mounts/volumes/{}", hex(id));
                if already.insert(*id) {
                    life.push((
                        Point::RwMountDevice,
                        json!({
                            "target": place, "volume": hex(id), "encrypted": true, "ensureFilesystem": false,
                            "filesystem": "ext4", "mountPathRegex": "/run/mounts/volumes/[0-9a-f]{64}",
                            "rollbackProtection": false,
                        }),
                    ));
                    opened.push(place.clone());
                }
                place
            }
        };
        volumes.push(place);
    }
    let mut creation = process(container, id, &volumes, &container.args);
    creation["succeeded"] = json!(before);
    creation["seccompProfileSHA256"] =
        json!(container.seccomp_hash()?.map(|hash| hex(&hash)).unwrap_or_default());
    life.push((Point::CreateContainer, creation));
    for command in &container.exec {
        life.push((Point::ExecInContainer, process(container, id, &volumes, command)));
    }
    for &signal in &container.signals {
        let request = |args: &[String], init: bool| json!({"containerID": id, "signal": signal, "isInitProcess": init, "argList": args});
        life.push((Point::SignalContainerProcess, request(&container.args, true)));
        for command in &container.exec {
            life.push((Point::SignalContainerProcess, request(command, false)));
        }
    }
    if container.properties {
        life.push((Point::GetProperties, json!({})));
    }
    if container.logging {
        life.push((Point::RuntimeLogging, json!({})));
    }
    let limits = container.limits;
    let update = json!({"containerID": id, "memory": limits.memory, "cpu": limits.cpu, "processes": null, "paused": false});
    life.push((Point::UpdateContainer, update));
    let mut end = vec![
        (Point::ShutdownContainer, json!({"containerID": id})),
        (Point::UnmountOverlay, json!({"unmountTarget": rootfs})),
        (Point::ScratchUnmount, json!({"unmountTarget": writable})),
        (Point::RwUnmountDevice, json!({"unmountTarget": scratch})),
    ];
    let unmount = |place| (Point::RwUnmountDevice, json!({"unmountTarget": place}));
    end.extend(opened.into_iter().map(unmount));
    end.extend(devices.map(|number| (Point::UnmountDevice, json!({"unmountTarget": device(number)}))));
    Ok((life, end))
}

/// The start of a process, with the fields of both enforcement points that start one.
/// `volumes`: where its data volumes are mounted in the guest.
fn process(container: &Container, id: &str, volumes: &[String], args: &[String]) -> Value {
    let id_name = |id: u32| json!({"id": id.to_string(), "name": ""});
    let sets = container.capabilities();
    let names = |set: u64| -> Vec<&str> {
        let held = CAPABILITY_NAMES.iter().enumerate().filter(|(number, _)| set >> number & 1 == 1);
        held.map(|(_, &name)| name).collect()
    };
    let mounts = container.mounts.iter().map(|mount| {
        let source = format!("/run/gcs/c/{id}/sandboxMounts/tmp/atlas/emptydir/{}", mount.volume);
        json!({"type": "bind", "source": source, "destination": mount.destination, "options": mount.options()})
    });
    let volumes = container.volumes.iter().zip(volumes).map(|(volume, source)| volume.mount(source));
    json!({
        "containerID": id,
        "argList": args,
        "envList": container.env,
        "workingDir": container.working_dir,
        "sandboxDir": format!("/run/gcs/c/{id}/sandboxMounts"),
        "hugePagesDir": format!("/run/gcs/c/{id}/hugepages"),
        "mounts": mounts.chain(volumes).chain(container.attestation.then(attestation)).collect::<Vec<_>>(),
        "devices": [],
        "privileged": false,
        "noNewPrivileges": container.no_new_privileges,
        "terminal": container.terminal,
        "user": id_name(container.identity.uid),
        "groups": container.identity.gids.iter().map(|&gid| id_name(gid)).collect::<Vec<_>>(),
        "umask": format!("{:04o}", container.umask),
        "capabilities": {
            "ambient": names(sets.ambient),
            "bounding": names(sets.bounding),
            "effective": names(sets.effective),
            "inheritable": names(sets.inheritable),
            "permitted": names(sets.permitted),
        },
        "isSandboxContainer": false,
    })
}
