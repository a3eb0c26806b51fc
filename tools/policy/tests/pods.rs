//! The policy of a Kubernetes Pod: it allows what the Pod says and no more; what it cannot express is an error that
//! names the field.

mod common;

use std::path::Path;

use common::layout::{Entry, image};
use common::requests::{device_path, id, mount_device, with};
use common::{Guest, Oracle};
use parma_policy::generate::{Container, GenerateOptions, VolumeContent, policy_of, read_pod};
use serde_json::{Value, json};

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: shop, labels: {app: shop}}
spec:
  restartPolicy: Always
  securityContext: {runAsUser: 1000, runAsNonRoot: true}
  volumes:
  - name: work.dir
    emptyDir: {}
  initContainers:
  - name: prepare
    image: example.org/tools:1
    command: [/bin/prepare, "$(TARGET)", "$$(TARGET)", "$(UNKNOWN)"]
    env:
    - {name: TARGET, value: /srv}
    - {name: LOG, value: "$(TARGET)/log"}
    volumeMounts:
    - {name: work.dir, mountPath: /srv}
  containers:
  - name: serve
    image: example.org/serve:2
    args: [--port, "8080"]
    workingDir: /srv
    ports:
    - {containerPort: 8080, name: http}
    resources: {limits: {memory: 1Gi, cpu: "1"}, requests: {cpu: 500m}}
    readinessProbe:
      exec: {command: [/bin/check, --ready]}
      periodSeconds: 5
    livenessProbe:
      httpGet: {path: /live, port: 8080}
    volumeMounts:
    - {name: work.dir, mountPath: /data, readOnly: true}
    securityContext:
      runAsUser: 33
      runAsGroup: 4
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}
"#;

/// The profile that Pods here name.
fn profile(path: &str) -> anyhow::Result<Vec<u8>> {
    anyhow::ensure!(path == "strict.json", "there is no {path}");
    Ok(br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#.to_vec())
}

const ETC: &[Entry] = &[
    Entry::Directory("etc"),
    Entry::File("etc/passwd", "root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n"),
    Entry::File("etc/group", "root:x:0:\nadm:x:4:www\nwww:x:33:\n"),
];

/// The containers of [`POD`], both of one image, with a layer each that is the container's own.
fn containers(dir: &Path) -> Vec<Container> {
    let config =
        json!({"Entrypoint": ["/bin/serve"], "Cmd": ["--help"], "Env": ["MODE=production"], "User": "www"});
    let image = image(dir, &[ETC], &config);
    let pod = read_pod(POD, &GenerateOptions::default(), &profile).unwrap();
    let named: Vec<&str> = pod.containers.iter().map(|container| &*container.image).collect();
    assert_eq!(named, ["example.org/tools:1", "example.org/serve:2"]);
    let made = (1..)
        .zip(&pod.containers)
        .map(|(byte, container)| Container::new(&image, &[[byte; 32]], &container.options));
    made.collect::<anyhow::Result<_>>().unwrap()
}

fn create(id: &str, container: &Container, mounts: Value) -> Value {
    let none: [&str; 0] = [];
    json!({
        "containerID": id,
        "argList": container.args,
        "envList": container.env,
        "workingDir": container.working_dir,
        "sandboxDir": format!("/run/gcs/c/{id}/sandboxMounts"),
        "hugePagesDir": format!("/run/gcs/c/{id}/hugepages"),
        "mounts": mounts,
        "devices": [],
        "privileged": false,
        "noNewPrivileges": true,
        "user": {"id": container.identity.uid.to_string(), "name": ""},
        "groups": container.identity.gids.iter().map(|gid| json!({"id": gid.to_string(), "name": ""})).collect::<Vec<_>>(),
        "umask": "0022",
        "capabilities": {"bounding": container.held, "effective": container.held, "inheritable": none,
            "permitted": container.held, "ambient": none},
        "seccompProfileSHA256": "",
        "isSandboxContainer": false,
        "succeeded": [],
    })
}

fn directory(id: &str, name: &str, destination: &str, access: &str) -> Value {
    json!({"type": "bind", "source": format!("/run/gcs/c/{id}/sandboxMounts/tmp/atlas/emptydir/{name}"),
        "destination": destination, "options": ["rbind", "rshared", access]})
}

#[test]
fn a_pod_s_policy_allows_each_container_what_the_pod_says_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let containers = containers(dir.path());
    let [prepare, serve] = &containers[..] else { panic!("two containers") };
    assert_eq!(prepare.args, ["/bin/prepare", "/srv", "$(TARGET)", "$(UNKNOWN)"]);
    assert!(prepare.env.contains(&"LOG=/srv/log".to_string()), "{:?}", prepare.env);
    assert_eq!((prepare.identity.uid, &*prepare.identity.gids), (1000, &[0][..]));
    assert_eq!(serve.args, ["/bin/serve", "--port", "8080"]);
    assert_eq!((serve.identity.uid, serve.identity.gids[0]), (33, 4));
    assert_eq!(serve.held, ["CAP_NET_BIND_SERVICE"]);
    assert_eq!((&*serve.working_dir, &serve.exec[0][1]), ("/srv", &"--ready".to_string()));

    let policy = policy_of(&containers).unwrap();
    let mut guest = Guest::new(Oracle::new(&policy));
    let (a, b) = (id('a'), id('b'));
    assert_eq!((&*prepare.after_success, &*serve.after_success), (&[][..], &["prepare".to_string()][..]));
    for (number, id) in [(0, &a), (1, &b)] {
        guest.ask("mount_device", &mount_device(number, &format!("0{}", number + 1).repeat(32))).allowed();
        let layers = [device_path(number)];
        let target = format!("/run/gcs/c/{id}/rootfs");
        guest
            .ask("mount_overlay", &json!({"containerID": id, "layerPaths": layers, "target": target}))
            .allowed();
    }
    let mount = directory(&b, "work.dir", "/data", "ro");
    let honest = create(&b, serve, json!([mount]));
    // Not before the initial container.
    let denied = guest.ask("create_container", &honest).denied();
    assert_eq!(denied, ["an earlier container is not running"]);
    let mount = directory(&a, "work.dir", "/srv", "rw");
    guest.ask("create_container", &create(&a, prepare, json!([mount]))).allowed();
    // Nor while its work is not done, or another's is.
    let done = |ids: &[&String]| with(&honest, "/succeeded", json!(ids));
    for not_yet in [done(&[]), done(&[&b]), done(&[&id('c')])] {
        let denied = guest.ask("create_container", &not_yet).denied();
        assert_eq!(denied, ["an earlier container is not running"]);
    }
    let honest = done(&[&a]);

    for wrong in [
        directory(&b, "work.dir", "/data", "rw"),
        directory(&b, "work.dir", "/etc", "ro"),
        directory(&b, "workxdir", "/data", "ro"),
        directory(&b, "../../../etc", "/data", "ro"),
    ] {
        let denied = guest.ask("create_container", &with(&honest, "/mounts", json!([wrong]))).denied();
        assert_eq!(denied, ["invalid mount list"]);
    }
    // Nothing of the one container in the other.
    for (field, value) in [
        ("/argList", json!(prepare.args)),
        ("/envList", json!(prepare.env)),
        ("/user", json!({"id": "1000", "name": ""})),
        ("/noNewPrivileges", json!(false)),
    ] {
        guest.ask("create_container", &with(&honest, field, value)).denied();
    }
    guest.ask("create_container", &honest).allowed();
    let mut probe = honest.clone();
    probe["argList"] = json!(["/bin/check", "--ready"]);
    guest.ask("exec_in_container", &probe).allowed();
    probe["argList"] = json!(["/bin/check"]);
    guest.ask("exec_in_container", &probe).denied();
}

#[test]
fn a_pod_that_a_policy_cannot_express_is_refused_by_the_name_of_the_field() {
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nspec:\n  {}\n", spec.replace('\n', "\n  "));
    let one = |more: &str| pod(&format!("containers:\n- name: a\n  image: i\n{more}"));
    for (text, named) in [
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {containers: []}".into(),
            "kind is apps/v1 Deployment",
        ),
        (pod("containers: []"), "spec.containers"),
        (one("hostNetwork: true"), "spec.hostNetwork"),
        (one("hostPID: true"), "spec.hostPID"),
        (one("hostAliases: []"), "hostAliases"),
        (one("securityContext: {fsGroup: 2000}"), "fsGroup"),
        (one("securityContext: {supplementalGroups: [5]}"), "supplementalGroups"),
        (
            one("securityContext: {sysctls: [{name: kernel.core_pattern, value: x}]}"),
            "spec.securityContext.sysctls",
        ),
        (
            one("securityContext: {sysctls: [{name: net.core.somaxconn, value: ''}]}"),
            "spec.securityContext.sysctls",
        ),
        (one("hostname: a.b"), "spec.hostname"),
        (one("resources: {limits: {memory: 1}}"), "resources.limits.memory"),
        (one("volumes:\n- {name: v, hostPath: {path: /}}"), "hostPath"),
        (one("volumes:\n- {name: v, emptyDir: {medium: Memory}}"), "spec.volumes[0].emptyDir.medium"),
        (one("volumes:\n- {name: v, emptyDir: {sizeLimit: 1Gi}}"), "sizeLimit"),
        (one("volumes:\n- {name: .., emptyDir: {}}"), "spec.volumes[0].name"),
        (one("  tty: true"), "spec.containers[0]: tty"),
        (one("  envFrom: []"), "envFrom"),
        (one("  env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"), "valueFrom"),
        (one("  securityContext: {privileged: true}"), "securityContext.privileged"),
        (one("  securityContext: {procMount: Unmasked}"), "procMount"),
        (one("  securityContext: {seccompProfile: {type: Localhost}}"), "seccompProfile"),
        (
            one("  securityContext: {seccompProfile: {type: Localhost, localhostProfile: other.json}}"),
            "spec.containers[0].securityContext.seccompProfile.localhostProfile",
        ),
        (one("  securityContext: {capabilities: {add: [ALL]}}"), "capabilities.add"),
        (one("  securityContext: {runAsGroup: 5}"), "runAsGroup"),
        (one("  volumeMounts: [{name: v, mountPath: /v}]"), "volumeMounts[0].name"),
        (one("volumes:\n- {name: v}"), "spec.volumes[0]"),
        (
            one("volumes:\n- {name: v, emptyDir: {}, persistentVolumeClaim: {claimName: c}}"),
            "spec.volumes[0]",
        ),
        (
            one("volumes:\n- {name: v, persistentVolumeClaim: {claimName: c}}"),
            "spec.volumes[0].persistentVolumeClaim.claimName: say which data volume it is, --claim c=FILE",
        ),
        (one("  volumeMounts: [{name: v, mountPath: /v, subPath: a}]"), "subPath"),
        (one("  volumeDevices: []"), "volumeDevices"),
        (one("  ports: [{containerPort: 80, hostPort: 80}]"), "hostPort"),
        (one("  name: again"), "name"),
        (one("- {name: a, image: j}"), "spec.containers[1].name"),
    ] {
        let error = format!("{:#}", read_pod(&text, &GenerateOptions::default(), &profile).expect_err(&text));
        assert!(error.contains(named), "{named}: {error}");
    }
    let error = read_pod(
        &one("  volumeMounts: [{name: v, mountPath: /proc/v}]\nvolumes: [{name: v, emptyDir: {}}]"),
        &GenerateOptions::default(),
        &profile,
    );
    assert!(format!("{:#}", error.unwrap_err()).contains("mountPath"));
}

/// What a claim stands for is the user's to say; the policy names it by its content or key, and only for those that mount it.
#[test]
fn what_a_pod_claims_is_in_the_policy_by_what_proves_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1
kind: Pod
spec:
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: shop-data}}
  - {name: weights, persistentVolumeClaim: {claimName: model}}
  - {name: archive, persistentVolumeClaim: {claimName: shop-data, readOnly: true}}
  initContainers:
  - {name: first, image: i, command: [/first], volumeMounts: [{name: data, mountPath: /srv}]}
  containers:
  - {name: a, image: i, command: [/a], volumeMounts: [{name: data, mountPath: /srv, readOnly: true}, {name: weights, mountPath: /model}]}
  - {name: b, image: i, command: [/b], volumeMounts: [{name: archive, mountPath: /old}]}
  - {name: c, image: i, command: [/c]}
";
    let claims = [
        ("shop-data".to_string(), VolumeContent::Encrypted([0x33; 32])),
        ("model".to_string(), VolumeContent::Verified([0x44; 32])),
    ];
    let options = GenerateOptions { claims: claims.into(), ..GenerateOptions::default() };
    let pod = read_pod(text, &options, &profile).unwrap();
    let image = image(dir.path(), &[ETC], &json!({"Entrypoint": ["/bin/serve"]}));
    let made = pod.containers.iter().map(|container| Container::new(&image, &[[1; 32]], &container.options));
    let containers = made.collect::<anyhow::Result<Vec<_>>>().unwrap();
    let policy = policy_of(&containers).unwrap();
    let entry = |kind: &str, name: &str, destination: &str, access: &str| {
        let source = format!("{kind}://{}", name.repeat(32));
        json!({"type": "bind", "source": source, "destination": destination, "options": ["rbind", "rshared", access]})
            .to_string()
    };
    let entries = [
        entry("volume", "33", "/srv", "rw"),
        entry("volume", "33", "/srv", "ro"),
        entry("verity", "44", "/model", "ro"),
        entry("volume", "33", "/old", "ro"),
    ];
    for entry in &entries {
        assert_eq!(policy.matches(entry).count(), 1, "{entry} in {policy}");
    }
    assert_eq!(policy.matches("\"volume://").count() + policy.matches("\"verity://").count(), entries.len());

    let claims = [("other".to_string(), VolumeContent::Verified([0x44; 32]))];
    let options = GenerateOptions { claims: claims.into(), ..GenerateOptions::default() };
    let unclaimed = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: i}]}";
    let error = read_pod(unclaimed, &options, &profile).unwrap_err();
    assert!(error.to_string().contains("none claims \"other\""), "{error}");
}

#[test]
fn a_container_that_must_not_be_root_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: i, securityContext: {runAsNonRoot: true}}]}";
    let pod = read_pod(text, &GenerateOptions::default(), &profile).unwrap();
    let config = json!({"Entrypoint": ["/bin/serve"], "User": "root"});
    let error = Container::new(&image(dir.path(), &[ETC], &config), &[[1; 32]], &pod.containers[0].options)
        .unwrap_err();
    assert!(error.to_string().contains("its user is root"), "{error}");
}

#[test]
fn what_the_guest_gives_containers_by_itself_is_in_the_policy_as_the_pod_says_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: v1
kind: Pod
metadata: {name: shop.example}
spec:
  hostname: web-0
  securityContext:
    sysctls: [{name: net.core.somaxconn, value: '1024'}]
    seccompProfile: {type: Localhost, localhostProfile: strict.json}
  initContainers:
  - {name: first, image: i, command: [/first], resources: {limits: {memory: 3Gi}}, securityContext: {seccompProfile: {type: Unconfined}}}
  containers:
  - {name: a, image: i, command: [/a], resources: {limits: {memory: 1Gi, cpu: 250m}}, securityContext: {readOnlyRootFilesystem: true}}
  - {name: b, image: i, command: [/b], resources: {limits: {memory: 1Gi, cpu: 500m}}}
";
    let pod = read_pod(text, &GenerateOptions::default(), &profile).unwrap();
    let image = image(dir.path(), &[ETC], &json!({"Entrypoint": ["/bin/serve"]}));
    let made = pod.containers.iter().map(|container| Container::new(&image, &[[1; 32]], &container.options));
    let containers = made.collect::<anyhow::Result<Vec<_>>>().unwrap();
    let hash = containers[1].seccomp_hash().unwrap().expect("a profile");
    let profiles: Vec<_> = containers.iter().map(|container| container.seccomp_hash().unwrap()).collect();
    assert_eq!(profiles, [None, Some(hash), Some(hash)]);

    let mut guest = Guest::new(Oracle::new(&policy_of(&containers).unwrap()));
    guest.ask("mount_device", &mount_device(0, &"01".repeat(32))).allowed();
    let ids = ['a', 'b', 'c'].map(id);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    // The most of the initial one, which runs alone, and of the others together; not all have a limit of their processors.
    let shared =
        json!({"hostname": "web-0", "sysctls": {"net.core.somaxconn": "1024"}, "memory": 3_u64 << 30});
    for (id, container, settings) in [
        (&ids[0], &containers[0], json!({})),
        (&ids[1], &containers[1], json!({"read_only_root": true})),
        (&ids[2], &containers[2], json!({})),
    ] {
        let target = format!("/run/gcs/c/{id}/rootfs");
        let overlay = json!({"containerID": id, "layerPaths": [device_path(0)], "target": target});
        guest.ask("mount_overlay", &overlay).allowed();
        let mut request = create(id, container, json!([]));
        request["succeeded"] = json!([ids[0]]);
        if container.seccomp.is_some() {
            guest.ask("create_container", &request).denied();
            request["seccompProfileSHA256"] = json!(hex);
        }
        let answer = guest.ask("create_container", &request).allowed();
        assert_eq!(answer["settings"], settings);
        assert_eq!(answer["pod"], shared);
        assert_eq!(answer["seccomp"].is_array(), container.seccomp.is_some(), "{answer}");
    }
}

#[test]
fn containers_share_their_processes_only_where_the_pod_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), &[ETC], &json!({"Entrypoint": ["/bin/serve"]}));
    for (said, settings) in [
        ("", json!(null)),
        ("shareProcessNamespace: false", json!(null)),
        ("shareProcessNamespace: true", json!({"share_process_namespace": true})),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nspec:\n  {said}\n  initContainers: [{{name: first, image: i, command: [/first]}}]
  containers: [{{name: a, image: i, command: [/a]}}, {{name: b, image: i, command: [/b]}}]\n"
        );
        let pod = read_pod(&text, &GenerateOptions::default(), &profile).unwrap();
        let made = pod.containers.iter().map(|one| Container::new(&image, &[[1; 32]], &one.options));
        let containers = made.collect::<anyhow::Result<Vec<_>>>().unwrap();
        let mut guest = Guest::new(Oracle::new(&policy_of(&containers).unwrap()));
        guest.ask("mount_device", &mount_device(0, &"01".repeat(32))).allowed();
        for (digit, container) in ['a', 'b', 'c'].into_iter().zip(&containers) {
            let target = format!("/run/gcs/c/{}/rootfs", id(digit));
            let overlay = json!({"containerID": id(digit), "layerPaths": [device_path(0)], "target": target});
            guest.ask("mount_overlay", &overlay).allowed();
            let mut request = create(&id(digit), container, json!([]));
            request["succeeded"] = json!([id('a')]);
            assert_eq!(guest.ask("create_container", &request).allowed()["settings"], settings, "{said}");
        }
    }
}
