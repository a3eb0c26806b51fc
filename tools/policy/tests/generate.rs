//! The generated policy of an image: it allows the honest request, and no other; what it cannot say is an error.

mod common;

use std::path::Path;

use common::layout::{Entry, image};
use common::requests::{device_path, id, mount_device, mount_overlay, signal, with};
use common::{Guest, Oracle};
use parma_guest::gate::fields::CAPABILITY_NAMES;
use parma_policy::generate::{
    Container, DataVolume, GenerateOptions, VolumeContent, generate, signal as signal_number,
};
use serde_json::{Value, json};

const ETC: &[Entry] = &[
    Entry::Directory("etc"),
    Entry::File("etc/passwd", "root:x:0:0::/:/bin/sh\nwww:x:33:33::/:/bin/sh\n"),
    Entry::File("etc/group", "root:x:0:\nadm:x:4:www\nwww:x:33:\n"),
];
const PROGRAM: &[Entry] = &[Entry::File("bin/serve", "#!/bin/sh\n")];
const ROOT_HASHES: [[u8; 32]; 2] = [[0x11; 32], [0x22; 32]];

/// The configuration of an image that uses every field.
fn config() -> Value {
    json!({
        "Env": ["MODE=production", "LANG=C.UTF-8", "QUOTE=\"\\\u{1b}\u{e9}\u{1f600}"],
        "Entrypoint": ["/bin/serve"],
        "Cmd": ["--port", "80"],
        "WorkingDir": "/srv//www/",
        "User": "www",
        "StopSignal": "SIGQUIT",
    })
}

fn container(dir: &Path, config: &Value, options: &GenerateOptions) -> anyhow::Result<Container> {
    Container::new(&image(dir, &[ETC, PROGRAM], config), &ROOT_HASHES, options)
}

/// What an honest host asks for, as the guest gives it to the policy.
fn create_container(container: &Container) -> Value {
    let sets = container.capabilities();
    let set = |bits: u64| {
        let names = CAPABILITY_NAMES.iter().enumerate().filter(|(number, _)| bits >> number & 1 == 1);
        names.map(|(_, name)| *name).collect::<Vec<_>>()
    };
    let groups = container.identity.gids.iter();
    json!({
        "containerID": id('a'),
        "argList": container.args,
        "envList": container.env,
        "workingDir": container.working_dir,
        "sandboxDir": "/run/gcs/c/x/sandboxMounts",
        "hugePagesDir": "/run/gcs/c/x/hugepages",
        "mounts": [],
        "devices": [],
        "privileged": false,
        "noNewPrivileges": container.no_new_privileges,
        "user": {"id": container.identity.uid.to_string(), "name": "www"},
        "groups": groups.map(|gid| json!({"id": gid.to_string(), "name": ""})).collect::<Vec<_>>(),
        "umask": format!("{:04o}", container.umask),
        "capabilities": {
            "bounding": set(sets.bounding),
            "effective": set(sets.effective),
            "inheritable": set(sets.inheritable),
            "permitted": set(sets.permitted),
            "ambient": set(sets.ambient),
        },
        "seccompProfileSHA256": "",
        "isSandboxContainer": false,
    })
}

/// A guest under `policy`, in which the layers are mounted as devices 0 and 1.
fn guest(policy: &str) -> Guest {
    let mut guest = Guest::new(Oracle::new(policy));
    for (number, byte) in [(0, "11"), (1, "22")] {
        guest.ask("mount_device", &mount_device(number, &byte.repeat(32))).allowed();
    }
    guest
}

#[test]
fn the_policy_allows_the_honest_life_of_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let options = GenerateOptions { exec: vec![vec!["/bin/check".into()]], ..GenerateOptions::default() };
    let container = container(dir.path(), &config(), &options).unwrap();
    let mut guest = guest(&container.policy());
    guest.ask("mount_overlay", &mount_overlay(&id('a'), &[1, 0])).allowed();
    let created = guest.ask("create_container", &create_container(&container)).allowed();
    assert_eq!(created["env_list"], json!(container.env));
    assert_eq!(created["allow_stdio_access"], true);
    let exec = with(&create_container(&container), "/argList", json!(["/bin/check"]));
    guest.ask("exec_in_container", &exec).allowed();
    guest.ask("signal_container_process", &signal(&id('a'), 3)).allowed();
    guest.ask("signal_container_process", &signal(&id('a'), 9)).allowed();
    guest.ask("get_properties", &json!({})).allowed();
    guest.ask("shutdown_container", &json!({"containerID": id('a')})).allowed();
    guest.ask("unmount_device", &json!({"unmountTarget": device_path(0)})).allowed();
}

#[test]
fn the_policy_denies_every_other_request() {
    let dir = tempfile::tempdir().unwrap();
    let container = container(dir.path(), &config(), &GenerateOptions::default()).unwrap();
    let mut guest = guest(&container.policy());
    assert_eq!(guest.ask("mount_overlay", &mount_overlay(&id('a'), &[0, 1])).denied(), ["invalid layers"]);
    guest.ask("mount_overlay", &mount_overlay(&id('a'), &[1, 0])).allowed();
    let honest = create_container(&container);
    let mut without_mode = container.env.clone();
    without_mode.retain(|variable| !variable.starts_with("MODE="));
    let mut preloaded = container.env.clone();
    preloaded.push("LD_PRELOAD=/x".into());
    for (field, value, reason) in [
        ("/argList", json!(["/bin/serve"]), "invalid command"),
        ("/envList", json!(without_mode), "invalid environment"),
        ("/envList", json!(preloaded), "invalid environment"),
        ("/workingDir", json!("/"), "invalid working directory"),
        ("/user/id", json!("0"), "invalid user"),
        ("/groups", json!([{"id": "0", "name": "root"}]), "invalid user"),
        ("/umask", json!("0000"), "invalid umask"),
        ("/noNewPrivileges", json!(false), "no_new_privileges is required"),
        ("/privileged", json!(true), "privileged container not allowed"),
        ("/capabilities/bounding", json!(["CAP_SYS_ADMIN"]), "invalid capabilities"),
        (
            "/mounts",
            json!([{"type": "bind", "source": "/", "destination": "/h", "options": []}]),
            "invalid mount list",
        ),
    ] {
        let denied = guest.decide("create_container", &with(&honest, field, value)).denied();
        assert_eq!(denied, [reason], "{field}");
    }
    guest.ask("create_container", &honest).allowed();
    let exec = with(&honest, "/argList", json!(["/bin/sh"]));
    assert_eq!(guest.ask("exec_in_container", &exec).denied(), ["invalid command"]);
    assert_eq!(guest.ask("signal_container_process", &signal(&id('a'), 15)).denied(), ["invalid signal"]);
    assert_eq!(guest.ask("runtime_logging", &json!({})).denied(), ["logging not allowed"]);
    guest.ask("exec_external", &exec).denied();
    guest.ask("load_fragment", &json!({})).denied();
}

#[test]
fn the_policy_is_the_same_for_the_same_image_and_says_what_it_allows() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let policy = |dir: &Path| {
        generate(&image(dir, &[ETC, PROGRAM], &config()), &ROOT_HASHES, &GenerateOptions::default()).unwrap()
    };
    let text = policy(one.path());
    assert_eq!(text, policy(two.path()), "the directory does not matter");
    for line in [
        r#"    "command": ["/bin/serve","--port","80"],"#,
        r#"      "1111111111111111111111111111111111111111111111111111111111111111","#,
        r#"      {"pattern":"MODE=production","required":true,"strategy":"string"},"#,
        r#"    "working_dir": "/srv/www","#,
        r#"      "user_idname": {"pattern":"33","strategy":"id"},"#,
        r#"    "signals": [3,9],"#,
        "create_container := data.framework.create_container",
    ] {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

#[test]
fn options_replace_the_arguments_and_variables_of_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let options = GenerateOptions {
        args: Some(vec!["--help".into()]),
        env: vec!["LANG=de".into(), "EXTRA=1".into()],
        signals: Some(vec![15, 1, 15]),
        stdio: false,
        no_new_privileges: false,
        ..GenerateOptions::default()
    };
    let it = container(dir.path(), &config(), &options).unwrap();
    assert_eq!(it.args, ["/bin/serve", "--help"]);
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let quote = "QUOTE=\"\\\u{1b}\u{e9}\u{1f600}";
    assert_eq!(it.env, [path, "MODE=production", "LANG=de", quote, "EXTRA=1"]);
    assert_eq!(it.signals, [1, 15]);
    assert!(!it.stdio && !it.no_new_privileges);

    let own_path = json!({"Env": ["A=1", "PATH=/bin"], "Cmd": ["sh"]});
    let it = container(dir.path(), &own_path, &GenerateOptions::default()).unwrap();
    assert_eq!(it.env, ["A=1", "PATH=/bin"]);
    assert_eq!((it.working_dir.as_str(), it.identity.uid, &it.signals[..]), ("/", 0, &[9, 15][..]));
}

#[test]
fn what_a_policy_cannot_express_is_an_error_that_names_it() {
    let many: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
    for (change, message) in [
        (json!({"Cmd": [], "Entrypoint": []}), "there is no command"),
        (json!({"Entrypoint": [""]}), "empty argument"),
        (json!({"Cmd": many}), "too many"),
        (json!({"Env": ["A=1", "A=2"]}), "each name occurs once"),
        (json!({"Env": ["A"]}), "NAME=value"),
        (json!({"Env": ["=A"]}), "NAME=value"),
        (json!({"WorkingDir": "srv"}), "not absolute"),
        (json!({"WorkingDir": "/srv/../etc"}), "`..`"),
        (json!({"User": "nobody"}), "no user \"nobody\""),
        (json!({"User": "www:wheel"}), "no group \"wheel\""),
        (json!({"User": "a b"}), "names and numbers"),
        (json!({"StopSignal": "SIGNOTHING"}), "SIGNOTHING"),
        (json!({"StopSignal": "65"}), "65"),
    ] {
        let mut config = config();
        for (name, value) in change.as_object().unwrap() {
            config[name] = value.clone();
        }
        let dir = tempfile::tempdir().unwrap();
        let error = container(dir.path(), &config, &GenerateOptions::default()).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(message), "{change}: {error}");
        assert!(error.starts_with("image oci:"), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), &[ETC, PROGRAM], &config());
    for (hashes, options, message) in [
        (&ROOT_HASHES[..1], GenerateOptions::default(), "1 root hashes for 2 layers"),
        (
            &ROOT_HASHES[..],
            GenerateOptions { env: vec!["B=1".into(), "B=2".into()], ..Default::default() },
            "\"B\"",
        ),
        (&ROOT_HASHES[..], GenerateOptions { exec: vec![vec![]], ..Default::default() }, "no command"),
        (&ROOT_HASHES[..], GenerateOptions { signals: Some(vec![0]), ..Default::default() }, "signal 0"),
    ] {
        let error = format!("{:#}", Container::new(&image, hashes, &options).unwrap_err());
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn users_are_looked_up_in_the_files_that_the_container_will_see() {
    let new_etc: &[Entry] = &[Entry::File("./etc/passwd", "www:x:44:44::/:/bin/sh\n")];
    let no_group: &[Entry] = &[Entry::File("etc/.wh.group", "")];
    let opaque: &[Entry] =
        &[Entry::File("etc/.wh..wh..opq", ""), Entry::File("etc/passwd", "www:x:55:55::/:\n")];
    let no_etc: &[Entry] = &[Entry::File(".wh.etc", "")];
    let linked: &[Entry] = &[Entry::Link("etc/passwd", "/usr/etc/passwd")];
    let moved: &[Entry] = &[Entry::Link("etc", "usr/etc")];
    let identity = |layers: &[&[Entry]]| {
        let dir = tempfile::tempdir().unwrap();
        let image = image(dir.path(), layers, &config());
        let hashes = vec![[0; 32]; layers.len()];
        let container = Container::new(&image, &hashes, &GenerateOptions::default());
        container.map(|it| (it.identity.uid, it.identity.gids)).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(identity(&[ETC]).unwrap(), (33, vec![33, 4]));
    assert_eq!(identity(&[ETC, PROGRAM, new_etc]).unwrap(), (44, vec![44, 4]));
    assert_eq!(identity(&[new_etc, ETC]).unwrap(), (33, vec![33, 4]));
    assert_eq!(identity(&[ETC, no_group]).unwrap(), (33, vec![33]));
    assert_eq!(identity(&[ETC, opaque]).unwrap(), (55, vec![55]));
    for (layers, message) in [
        (&[ETC, no_etc][..], "no user"),
        (&[PROGRAM], "no user"),
        (&[ETC, linked], "no regular file"),
        (&[ETC, moved], "no directory"),
    ] {
        let error = identity(layers).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn signals_are_read_as_images_write_them() {
    for (text, number) in [
        ("SIGTERM", 15),
        ("TERM", 15),
        ("15", 15),
        ("SIGSYS", 31),
        ("SIGRTMIN+3", 37),
        ("RTMAX", 64),
        ("RTMAX-1", 63),
    ] {
        assert_eq!(signal_number(text).unwrap(), number, "{text}");
    }
    for text in ["", "SIG", "0", "65", "-1", "term", "SIGRTMIN+31", "RTMAX-64", "RTMIN3"] {
        assert!(signal_number(text).is_err(), "{text}");
    }
}

/// Each kind of volume is mounted before the container is created and as its entry says; the generator has played that.
#[test]
fn data_volumes_are_named_by_what_proves_their_content() {
    let dir = tempfile::tempdir().unwrap();
    let volume = |content, destination: &str| {
        let read_only = matches!(content, VolumeContent::Verified(_));
        DataVolume { content, destination: destination.into(), read_only }
    };
    let options = GenerateOptions {
        volumes: vec![
            volume(VolumeContent::Encrypted([0x33; 32]), "/data"),
            volume(VolumeContent::Verified([0x44; 32]), "/model"),
        ],
        ..GenerateOptions::default()
    };
    let policy = generate(&image(dir.path(), &[ETC, PROGRAM], &config()), &ROOT_HASHES, &options).unwrap();
    let entries = [("volume", "33", "/data", "rw"), ("verity", "44", "/model", "ro")];
    for (kind, name, destination, access) in entries {
        let name = name.repeat(32);
        let entry = json!({
            "type": "bind", "source": format!("{kind}://{name}"), "destination": destination,
            "options": ["rbind", "rshared", access],
        });
        assert!(policy.contains(&entry.to_string()), "{entry} is not in {policy}");
    }
}
