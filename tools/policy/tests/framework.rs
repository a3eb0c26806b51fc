//! The framework's decisions: the honest sequence, each field that can be wrong, and the differences on purpose
//! (D1 to D12 of docs/policy-framework.md), on every engine that can evaluate it.

mod common;

use common::requests::*;
use common::{Decision, Guest, Machine, Oracle};
use parma_guest::policy::Reason;
use serde_json::{Value, json};

/// Makes a fresh guest under a policy.
type NewEngine = fn(&str) -> Guest;

/// The engines that decide.
const ENGINES: &[NewEngine] =
    &[|policy| Guest::new(Oracle::new(policy)), |policy| Guest::new(Machine::new(policy))];

/// Runs `test` with a fresh guest under `policy`, once for each engine.
fn each_engine(policy: &str, test: impl Fn(&mut Guest)) {
    for new in ENGINES {
        test(&mut new(policy));
    }
}

/// As [`each_engine`], with layers 1 and 2 mounted as devices 1 and 2 and the overlay of container `a` on them.
fn each_prepared(policy: &str, test: impl Fn(&mut Guest)) {
    each_engine(policy, |guest| {
        guest.ask("mount_device", &mount_device(1, &hash(1))).allowed();
        guest.ask("mount_device", &mount_device(2, &hash(2))).allowed();
        guest.ask("mount_overlay", &mount_overlay(&id('a'), &[2, 1])).allowed();
        test(guest);
    });
}

/// The policy of [`container`] alone.
fn strict() -> String {
    policy(&[container()], &json!({}))
}

/// As [`container`], with one field, given as a JSON pointer, set to `value`.
fn container_with(field: &str, value: impl Into<Value>) -> Value {
    with(&container(), field, value)
}

#[test]
fn an_honest_life_of_a_container_is_allowed_and_remembered() {
    each_engine(&strict(), |guest| {
        let a = id('a');
        guest.ask("mount_device", &mount_device(1, &hash(1))).allowed();
        guest.ask("mount_device", &mount_device(2, &hash(2))).allowed();
        guest.ask("mount_overlay", &mount_overlay(&a, &[2, 1])).allowed();
        assert_eq!(
            guest.metadata,
            json!({
                "devices": {device_path(1): hash(1), device_path(2): hash(2)},
                "matches": {&a: [container()]},
                "overlayTargets": {format!("/run/gcs/c/{a}/rootfs"): true},
            })
        );

        let created = guest.ask("create_container", &create_container(&a)).allowed();
        assert_eq!(
            created,
            json!({
                "allowed": true,
                "env_list": ["LEVEL=3", "PATH=/bin"],
                "caps_list": create_container(&a)["capabilities"],
                "allow_stdio_access": true,
                "metadata": [
                    {"name": "matches", "action": "update", "key": &a, "value": [container()]},
                    {"name": "started", "action": "add", "key": &a, "value": {"privileged": false}},
                ],
            })
        );

        let executed = guest.ask("exec_in_container", &exec_in_container(&a)).allowed();
        assert_eq!(executed["env_list"], json!(["LEVEL=3", "PATH=/bin"]));
        guest.ask("signal_container_process", &signal(&a, 15)).allowed();
        guest.ask("shutdown_container", &json!({"containerID": &a})).allowed();
        let rootfs = format!("/run/gcs/c/{a}/rootfs");
        guest.ask("unmount_overlay", &json!({"unmountTarget": rootfs})).allowed();
        guest.ask("unmount_device", &json!({"unmountTarget": device_path(2)})).allowed();
        guest.ask("unmount_device", &json!({"unmountTarget": device_path(1)})).allowed();
        assert_eq!(
            guest.metadata,
            json!({"devices": {}, "matches": {}, "overlayTargets": {}, "started": {&a: {"privileged": false}}})
        );
    });
}

#[test]
fn a_device_is_mounted_only_with_a_layer_of_the_policy_at_a_free_path_of_the_right_form() {
    each_engine(&strict(), |guest| {
        let wrong_hash = mount_device(1, &hash(3));
        assert_eq!(guest.ask("mount_device", &wrong_hash).denied(), ["invalid device hash"]);
        for path in [
            "/run/mounts/scsi/m1x",
            "/run/mounts/scsi/m",
            "/x/run/mounts/scsi/m1",
            "/run/mounts/scsi/m1/../m2",
        ] {
            let moved = with(&mount_device(1, &hash(1)), "/target", path);
            assert_eq!(guest.ask("mount_device", &moved).denied(), ["invalid device path"], "{path}");
        }
        let own_pattern = with(&mount_device(1, &hash(1)), "/mountPathRegex", "/.*");
        assert_eq!(guest.ask("mount_device", &own_pattern).denied(), ["invalid device path"]);

        guest.ask("mount_device", &mount_device(1, &hash(1))).allowed();
        for byte in [1, 2] {
            let again = mount_device(1, &hash(byte));
            assert_eq!(guest.ask("mount_device", &again).denied(), ["device already mounted"]);
        }
        let other = json!({"unmountTarget": device_path(2)});
        assert_eq!(guest.ask("unmount_device", &other).denied(), ["device not mounted"]);
        guest.ask("unmount_device", &json!({"unmountTarget": device_path(1)})).allowed();
        guest.ask("mount_device", &mount_device(1, &hash(2))).allowed();
    });
}

#[test]
fn i05_an_overlay_needs_exactly_the_layers_of_one_container_in_its_order() {
    let other = container_with("/layers", json!([hash(3)]));
    let nothing = container_with("/layers", json!([]));
    each_engine(&policy(&[container(), other], &json!({})), |guest| {
        for number in 1..=3 {
            guest.ask("mount_device", &mount_device(number.into(), &hash(number))).allowed();
        }
        guest.ask("mount_device", &mount_device(4, &hash(1))).allowed();
        let wrong: [&[u32]; 8] = [&[1, 2], &[2], &[1], &[2, 1, 1], &[2, 2, 1], &[2, 3], &[2, 9], &[]];
        for layers in wrong {
            let request = mount_overlay(&id('a'), layers);
            assert_eq!(guest.decide("mount_overlay", &request).denied(), ["invalid layers"], "{layers:?}");
        }
        guest.decide("mount_overlay", &mount_overlay(&id('a'), &[2, 4])).allowed();
        guest.ask("mount_overlay", &mount_overlay(&id('b'), &[3])).allowed();
        guest.ask("mount_overlay", &mount_overlay(&id('a'), &[2, 1])).allowed();
    });
    // A container without layers is a legal entry: it must not be what an empty list of devices turns into.
    each_engine(&policy(&[container(), nothing], &json!({})), |guest| {
        guest.ask("mount_overlay", &mount_overlay(&id('a'), &[])).allowed();
        assert_eq!(
            guest.ask("create_container", &with(&create_container(&id('a')), "/workingDir", "/")).denied(),
            ["invalid working directory"]
        );
    });
}

#[test]
fn an_overlay_takes_a_free_id_and_a_free_target() {
    each_prepared(&strict(), |guest| {
        let mut elsewhere = mount_overlay(&id('a'), &[2, 1]);
        elsewhere["target"] = "/run/gcs/c/x/rootfs".into();
        assert_eq!(guest.ask("mount_overlay", &elsewhere).denied(), ["container id already used"]);
        let mut same_place = mount_overlay(&id('a'), &[2, 1]);
        same_place["containerID"] = id('b').into();
        assert_eq!(guest.ask("mount_overlay", &same_place).denied(), ["overlay already mounted"]);
        let nowhere = json!({"unmountTarget": "/run/gcs/c/x/rootfs"});
        assert_eq!(guest.ask("unmount_overlay", &nowhere).denied(), ["overlay not mounted"]);
    });
}

#[test]
fn each_wrong_field_of_a_creation_is_denied_and_named() {
    let capability =
        |name: &str, value: Value| (format!("/capabilities/{name}"), value, "invalid capabilities");
    let field = |name: &str, value: Value, reason| (format!("/{name}"), value, reason);
    let device = json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0, "fileMode": 384, "uid": null, "gid": null}]);
    let bind = json!([{"type": "bind", "source": "/run", "destination": "/mnt", "options": ["rbind"]}]);
    let cases = [
        field("containerID", json!(id('b')), "container has no overlay"),
        field("argList", json!(["/bin/serve"]), "invalid command"),
        field("argList", json!(["/bin/serve", "-v", ""]), "invalid command"),
        field("argList", json!(["-v", "/bin/serve"]), "invalid command"),
        field("argList", json!([]), "invalid command"),
        field("envList", json!([]), "invalid environment"),
        field("envList", json!(["LEVEL=3"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "LD_PRELOAD=/x"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "LEVEL=33"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "LEVEL=1", "LEVEL=2"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "PATH=/bin"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "ZONE"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "ZONE=a1"]), "invalid environment"),
        field("envList", json!(["PATH=/bin", "AZONE=a"]), "invalid environment"),
        field("workingDir", json!("/"), "invalid working directory"),
        field("workingDir", json!("/srv/"), "invalid working directory"),
        field("mounts", bind, "invalid mount list"),
        field("devices", device, "devices not allowed"),
        field("privileged", json!(true), "privileged container not allowed"),
        field("noNewPrivileges", json!(false), "no_new_privileges is required"),
        field("user/id", json!("0"), "invalid user"),
        field("groups", json!([{"id": "100", "name": "users"}, {"id": "0", "name": "root"}]), "invalid user"),
        field("umask", json!("0000"), "invalid umask"),
        capability("bounding", json!(["CAP_CHOWN"])),
        capability("bounding", json!(["CAP_CHOWN", "CAP_CHOWN"])),
        capability("effective", json!(["CAP_KILL", "CAP_SYS_ADMIN"])),
        capability("inheritable", json!(["CAP_KILL"])),
        capability("permitted", json!([])),
        capability("ambient", json!(["CAP_KILL"])),
        field("seccompProfileSHA256", json!(hash(9)), "invalid seccomp profile"),
    ];
    each_prepared(&strict(), |guest| {
        for (field, value, reason) in &cases {
            let request = with(&create_container(&id('a')), field, value.clone());
            let reasons = guest.decide("create_container", &request).denied();
            if field == "/containerID" {
                assert!(reasons.contains(&(*reason).to_owned()), "{field} = {value}: {reasons:?}");
            } else {
                assert_eq!(reasons, [*reason], "{field} = {value}");
            }
        }
        guest.ask("create_container", &create_container(&id('a'))).allowed();
    });
}

#[test]
fn each_missing_field_of_a_creation_is_denied() {
    each_prepared(&strict(), |guest| {
        let honest = create_container(&id('a'));
        // Not every field has a say where the policy's entry has nothing it could apply to.
        let unused = ["sandboxDir", "hugePagesDir", "isSandboxContainer"];
        for field in honest.as_object().unwrap().keys().filter(|field| !unused.contains(&field.as_str())) {
            let mut request = honest.clone();
            request.as_object_mut().unwrap().remove(field);
            let decision = guest.decide("create_container", &request);
            assert!(matches!(decision, Decision::Denied(_)), "without {field}: {decision:?}");
        }
    });
}

#[test]
fn c08_d12_an_id_is_used_once() {
    each_prepared(&strict(), |guest| {
        let a = id('a');
        guest.ask("create_container", &create_container(&a)).allowed();
        assert_eq!(
            guest.ask("create_container", &create_container(&a)).denied(),
            ["container already started"]
        );
        guest.ask("shutdown_container", &json!({"containerID": &a})).allowed();
        let rootfs = format!("/run/gcs/c/{a}/rootfs");
        guest.ask("unmount_overlay", &json!({"unmountTarget": rootfs})).allowed();
        // Its memory of a container that is over would pass for one that runs (D12).
        assert_eq!(
            guest.ask("mount_overlay", &mount_overlay(&a, &[2, 1])).denied(),
            ["container id already used"]
        );
        guest.ask("create_container", &create_container(&a)).denied();
        guest.ask("exec_in_container", &exec_in_container(&a)).denied();
    });
}

#[test]
fn c10_a_process_in_a_container_needs_its_own_line_in_the_policy_and_the_containers_identity() {
    let cases = [
        ("/argList", json!(["/bin/serve", "-v"]), "invalid command"),
        ("/argList", json!(["/bin/check", "-v"]), "invalid command"),
        ("/envList", json!(["PATH=/evil"]), "invalid environment"),
        ("/workingDir", json!("/"), "invalid working directory"),
        ("/noNewPrivileges", json!(false), "no_new_privileges is required"),
        ("/user/id", json!("0"), "invalid user"),
        ("/umask", json!("0000"), "invalid umask"),
        ("/capabilities/effective", json!(["CAP_KILL", "CAP_CHOWN"]), "invalid capabilities"),
    ];
    each_prepared(&strict(), |guest| {
        let honest = exec_in_container(&id('a'));
        let early = guest.decide("exec_in_container", &honest).denied();
        assert!(early.contains(&"container not started".to_owned()), "{early:?}");
        guest.ask("create_container", &create_container(&id('a'))).allowed();
        for (field, value, reason) in &cases {
            let request = with(&honest, field, value.clone());
            assert_eq!(guest.decide("exec_in_container", &request).denied(), [*reason], "{field} = {value}");
        }
        let elsewhere = with(&honest, "/containerID", id('b'));
        assert!(
            guest
                .decide("exec_in_container", &elsewhere)
                .denied()
                .contains(&"container not started".to_owned())
        );
        guest.ask("exec_in_container", &honest).allowed();
        guest.ask("shutdown_container", &json!({"containerID": id('a')})).allowed();
        guest.ask("exec_in_container", &honest).denied();
    });
}

#[test]
fn c11_a_process_gets_the_signals_that_the_policy_lists_for_it() {
    each_prepared(&strict(), |guest| {
        let a = id('a');
        assert!(
            guest
                .decide("signal_container_process", &signal(&a, 15))
                .denied()
                .contains(&"container not started".to_owned())
        );
        guest.ask("create_container", &create_container(&a)).allowed();
        for number in [0, 2, 9, 19] {
            let denied = guest.decide("signal_container_process", &signal(&a, number)).denied();
            assert_eq!(denied, ["invalid signal"], "{number}");
        }
        guest.ask("signal_container_process", &signal(&a, 15)).allowed();
        let exec = |number: u32, command: &str| json!({"containerID": id('a'), "signal": number, "isInitProcess": false, "argList": [command]});
        for request in [exec(15, "/bin/check"), exec(2, "/bin/other"), exec(9, "/bin/check")] {
            assert_eq!(guest.decide("signal_container_process", &request).denied(), ["invalid signal"]);
        }
        guest.ask("signal_container_process", &exec(2, "/bin/check")).allowed();
    });
}

#[test]
fn c15_a_container_is_limited_and_held_still_as_its_entry_says() {
    let mut limited = container();
    limited["resources"] =
        json!({"memory": {"least": 100, "most": 200}, "processes": {"least": 1, "most": "many"}});
    limited["allow_pause"] = true.into();
    let update = |memory: Value, cpu: Value, processes: Value, paused: Value| json!({"containerID": id('a'), "memory": memory, "cpu": cpu, "processes": processes, "paused": paused});
    let none = || update(Value::Null, Value::Null, Value::Null, false.into());
    each_prepared(&strict(), |guest| {
        assert!(
            guest.decide("update_container", &none()).denied().contains(&"container not started".to_owned())
        );
        guest.ask("create_container", &create_container(&id('a'))).allowed();
        guest.ask("update_container", &none()).allowed();
        let denied = guest.decide("update_container", &with(&none(), "/memory", json!(150))).denied();
        assert_eq!(denied, ["resources not allowed"]);
        let denied = guest.decide("update_container", &with(&none(), "/paused", json!(true))).denied();
        assert_eq!(denied, ["pause not allowed"]);
    });
    limited["resources"]["processes"] = json!({"least": 1, "most": 50});
    each_prepared(&policy(&[limited.clone()], &json!({})), |guest| {
        guest.ask("create_container", &create_container(&id('a'))).allowed();
        let honest = update(150.into(), Value::Null, 50.into(), true.into());
        for (field, wrong) in [
            ("/memory", json!(99)),
            ("/memory", json!(201)),
            ("/memory", json!("150")),
            ("/memory", Value::Null),
            ("/cpu", json!(100)),
            ("/processes", json!(51)),
        ] {
            guest.ask("update_container", &with(&honest, field, wrong)).denied();
        }
        for memory in [100, 200] {
            guest.ask("update_container", &with(&honest, "/memory", json!(memory))).allowed();
        }
    });
    limited["resources"]["processes"] = json!({"least": 1, "most": "many"});
    each_prepared(&policy(&[limited.clone()], &json!({})), |guest| {
        guest.ask("create_container", &create_container(&id('a'))).allowed();
        let honest = update(150.into(), Value::Null, 50.into(), false.into());
        guest.ask("update_container", &honest).denied();
    });
}

#[test]
fn f07_one_entry_of_the_policy_allows_every_field_or_nothing_does() {
    // The same layers twice: as root in /, and as a user with one more variable in /srv.
    let mut root = container();
    root["user"]["user_idname"]["pattern"] = "0".into();
    root["working_dir"] = "/".into();
    let mut debug = container();
    debug["env_rules"] = json!([{"pattern": "DEBUG=1", "strategy": "string", "required": false}]);
    each_prepared(&policy(&[root, debug], &json!({})), |guest| {
        let honest = create_container(&id('a'));
        let as_root = with(&with(&honest, "/user/id", "0"), "/workingDir", "/");
        let as_user = with(&honest, "/envList", json!(["DEBUG=1"]));
        guest.decide("create_container", &as_root).allowed();
        guest.decide("create_container", &as_user).allowed();
        for mixed in [
            honest.clone(),
            with(&honest, "/user/id", "0"),
            with(&as_root, "/envList", json!(["DEBUG=1"])),
            with(&as_user, "/user/id", "0"),
            with(&as_user, "/workingDir", "/"),
        ] {
            assert!(guest.decide("create_container", &mixed).denied().is_empty(), "each field has its entry");
        }
    });
}

#[test]
fn f07_whatever_is_allowed_is_allowed_by_one_entry_alone() {
    let rule = |text: &str| json!({"pattern": text, "strategy": "string", "required": false});
    let entry = |user: &str, variables: &[&str], dir: &str, stdio: bool| {
        let mut entry = container();
        entry["user"]["user_idname"]["pattern"] = user.into();
        entry["env_rules"] = variables.iter().map(|text| rule(text)).collect();
        entry["working_dir"] = dir.into();
        entry["allow_stdio_access"] = stdio.into();
        entry
    };
    let entries = [
        entry("0", &["A=1", "B=1"], "/", true),
        entry("0", &["B=1", "C=1"], "/srv", true),
        entry("1000", &["A=1", "B=1", "C=1"], "/", true),
        entry("1000", &["C=1"], "/srv", true),
        entry("1000", &["C=1"], "/srv", false),
    ];
    let variables: [&[&str]; 7] =
        [&[], &["A=1"], &["C=1"], &["A=1", "B=1"], &["C=1", "B=1"], &["A=1", "C=1"], &["B=1", "D=1", "C=1"]];
    let mut requests = Vec::new();
    for user in ["0", "1000", "7"] {
        for variables in variables {
            for dir in ["/", "/srv"] {
                let request = with(&create_container(&id('a')), "/user/id", user);
                requests.push(with(&with(&request, "/envList", json!(variables)), "/workingDir", dir));
            }
        }
    }
    // Which entries allow a request, each of them alone and without dropping anything.
    let alone = |guests: &mut [Guest], request: &Value| {
        let allows =
            |guest: &mut Guest| matches!(guest.decide("create_container", request), Decision::Allowed(_));
        guests.iter_mut().map(allows).collect::<Vec<_>>()
    };
    let prepared = |policy: &str, new: &NewEngine| {
        let mut guest = new(policy);
        guest.ask("mount_device", &mount_device(1, &hash(1))).allowed();
        guest.ask("mount_device", &mount_device(2, &hash(2))).allowed();
        guest.ask("mount_overlay", &mount_overlay(&id('a'), &[2, 1])).allowed();
        guest
    };
    for new in ENGINES {
        let one = |entry: &Value| prepared(&policy(std::slice::from_ref(entry), &json!({})), new);
        let mut singles: Vec<Guest> = entries.iter().map(one).collect();
        for dropping in [false, true] {
            let flags = json!({"allow_environment_variable_dropping": dropping});
            let mut all = prepared(&policy(&entries, &flags), new);
            let mut allowed = 0;
            for request in &requests {
                let Decision::Allowed(result) = all.decide("create_container", request) else { continue };
                allowed += 1;
                let alone = alone(&mut singles, &with(request, "/envList", result["env_list"].clone()));
                let kept: Vec<&Value> = result["metadata"][0]["value"].as_array().unwrap().iter().collect();
                let expected: Vec<&Value> = entries
                    .iter()
                    .zip(&alone)
                    .filter(|(_, allows)| **allows)
                    .map(|(entry, _)| entry)
                    .collect();
                assert!(!kept.is_empty());
                assert_eq!(kept, expected, "{request}");
            }
            assert!(allowed > 5, "{allowed}");
        }
    }
}

#[test]
fn f07_each_decision_narrows_what_a_container_may_still_be() {
    let mut first = container();
    first["exec_processes"] =
        json!([{"command": ["/bin/a"], "signals": []}, {"command": ["/bin/both"], "signals": []}]);
    let mut second = container();
    second["exec_processes"] =
        json!([{"command": ["/bin/b"], "signals": []}, {"command": ["/bin/both"], "signals": []}]);
    each_prepared(&policy(&[first, second], &json!({})), |guest| {
        let exec = |command: &str| with(&exec_in_container(&id('a')), "/argList", json!([command]));
        guest.ask("create_container", &create_container(&id('a'))).allowed();
        assert_eq!(guest.metadata["matches"][id('a')].as_array().unwrap().len(), 2);
        guest.ask("exec_in_container", &exec("/bin/both")).allowed();
        guest.decide("exec_in_container", &exec("/bin/b")).allowed();
        guest.ask("exec_in_container", &exec("/bin/a")).allowed();
        assert_eq!(guest.metadata["matches"][id('a')].as_array().unwrap().len(), 1);
        assert_eq!(guest.ask("exec_in_container", &exec("/bin/b")).denied(), ["invalid command"]);
    });
}

#[test]
fn c10_a_terminal_is_allowed_by_itself() {
    let mut on_terminal = container();
    on_terminal["allow_terminal"] = true.into();
    let asking = |mut request: Value| {
        request["terminal"] = true.into();
        request
    };
    let create = asking(create_container(&id('a')));
    let exec = asking(exec_in_container(&id('a')));
    each_prepared(&strict(), |guest| {
        assert_eq!(guest.ask("create_container", &create).denied(), ["terminal not allowed"]);
        guest.ask("create_container", &create_container(&id('a'))).allowed();
        assert_eq!(guest.ask("exec_in_container", &exec).denied(), ["terminal not allowed"]);
        guest.ask("exec_in_container", &exec_in_container(&id('a'))).allowed();
    });
    each_prepared(&policy(&[on_terminal.clone()], &json!({})), |guest| {
        guest.ask("create_container", &create).allowed();
        guest.ask("exec_in_container", &exec).allowed();
        guest.ask("exec_in_container", &exec_in_container(&id('a'))).allowed();
    });
    // A value of another type is no yes, and neither is one of a framework that did not know it.
    let mut text = container();
    text["allow_terminal"] = "true".into();
    let older = policy(&[on_terminal], &json!({"framework_version": "0.4.0"}));
    for policy in [policy(&[text], &json!({})), older] {
        each_prepared(&policy, |guest| {
            assert_eq!(guest.ask("create_container", &create).denied(), ["terminal not allowed"]);
        });
    }
}

#[test]
fn c12_output_waits_only_where_every_entry_that_is_left_says_so() {
    let with = |waits: Value| {
        let mut entry = container();
        entry["output_waits"] = waits;
        entry
    };
    let create = create_container(&id('a'));
    for (entries, waits) in [
        (vec![container()], None),
        (vec![with(false.into()), container()], None),
        (vec![with(true.into()), with(true.into())], Some(json!(true))),
    ] {
        each_prepared(&policy(&entries, &json!({})), |guest| {
            let result = guest.ask("create_container", &create).allowed();
            assert_eq!(result.get("output_waits"), waits.as_ref());
        });
    }
    each_prepared(&policy(&[with(true.into()), container()], &json!({})), |guest| {
        guest.ask("create_container", &create).denied();
    });
}

#[test]
fn entries_that_disagree_about_the_standard_streams_start_nothing() {
    let silent = container_with("/allow_stdio_access", false);
    each_prepared(&policy(&[container(), silent.clone()], &json!({})), |guest| {
        guest.ask("create_container", &create_container(&id('a'))).denied();
    });
    each_prepared(&policy(&[silent.clone(), silent.clone()], &json!({})), |guest| {
        let result = guest.ask("create_container", &create_container(&id('a'))).allowed();
        assert_eq!(result["allow_stdio_access"], false);
    });
}

#[test]
fn variables_that_no_entry_allows_are_dropped_and_the_order_is_kept() {
    let dropping = json!({"allow_environment_variable_dropping": true});
    let asked = json!(["X=1", "ZONE=b", "PATH=/bin", "LEVEL=10", "LEVEL=1"]);
    each_prepared(&policy(&[container()], &dropping), |guest| {
        let create = with(&create_container(&id('a')), "/envList", asked.clone());
        let result = guest.ask("create_container", &create).allowed();
        assert_eq!(result["env_list"], json!(["ZONE=b", "PATH=/bin", "LEVEL=1"]));
        let exec = with(&exec_in_container(&id('a')), "/envList", asked.clone());
        assert_eq!(guest.ask("exec_in_container", &exec).allowed()["env_list"], result["env_list"]);
        let without_required = with(&exec, "/envList", json!(["ZONE=b"]));
        assert_eq!(guest.ask("exec_in_container", &without_required).denied(), ["invalid environment"]);
    });
    each_prepared(&strict(), |guest| {
        let create = with(&create_container(&id('a')), "/envList", asked.clone());
        assert_eq!(guest.ask("create_container", &create).denied(), ["invalid environment"]);
    });
}

#[test]
fn f09_entries_that_would_keep_different_variables_keep_none() {
    let rule = |text: &str| json!({"pattern": text, "strategy": "string", "required": false});
    let entry = |texts: &[&str]| {
        container_with("/env_rules", texts.iter().map(|text| rule(text)).collect::<Vec<_>>())
    };
    let dropping = json!({"allow_environment_variable_dropping": true});
    let request = with(&create_container(&id('a')), "/envList", json!(["A=1", "B=1", "C=1"]));
    each_prepared(&policy(&[entry(&["A=1", "B=1"]), entry(&["B=1", "C=1"])], &dropping), |guest| {
        guest.ask("create_container", &request).denied();
    });
    // Equal subsets, and a largest one among smaller ones, are no ambiguity.
    each_prepared(
        &policy(&[entry(&["B=1", "A=1"]), entry(&["A=1", "B=1", "X=1"]), entry(&["C=1"])], &dropping),
        |guest| {
            let result = guest.ask("create_container", &request).allowed();
            assert_eq!(result["env_list"], json!(["A=1", "B=1"]));
            assert_eq!(guest.metadata["matches"][id('a')].as_array().unwrap().len(), 2);
        },
    );
}

#[test]
fn capabilities_beyond_an_entry_are_dropped_where_the_policy_says_so() {
    let dropping = json!({"allow_capability_dropping": true});
    let all = json!(["CAP_KILL", "CAP_SYS_ADMIN", "CAP_CHOWN"]);
    let asked =
        json!({"bounding": all, "effective": all, "inheritable": all, "permitted": all, "ambient": []});
    each_prepared(&policy(&[container()], &dropping), |guest| {
        let create = with(&create_container(&id('a')), "/capabilities", asked.clone());
        let result = guest.ask("create_container", &create).allowed();
        assert_eq!(
            result["caps_list"],
            json!({
                "bounding": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_KILL"],
                "inheritable": [],
                "permitted": ["CAP_KILL"],
                "ambient": [],
            })
        );
        let fewer = with(&exec_in_container(&id('a')), "/capabilities/bounding", json!(["CAP_KILL"]));
        guest.ask("exec_in_container", &fewer).denied();
    });
    let other = container_with("/capabilities/effective", json!(["CAP_CHOWN"]));
    each_prepared(&policy(&[container(), other], &dropping), |guest| {
        let create = with(&create_container(&id('a')), "/capabilities", asked.clone());
        guest.ask("create_container", &create).denied();
    });
}

#[test]
fn an_entry_without_capabilities_means_the_usual_ones_or_all_if_privileged() {
    let usual = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]);
    let data: Value = serde_json::from_str(common::DATA).unwrap();
    let all = &data["defaultPrivilegedCapabilities"];
    assert_eq!(all.as_array().unwrap().len(), 41);
    let none = json!([]);
    let unprivileged = json!({"bounding": usual, "effective": usual, "inheritable": none, "permitted": usual, "ambient": none});
    let privileged =
        json!({"bounding": all, "effective": all, "inheritable": all, "permitted": all, "ambient": none});

    let plain = container_with("/capabilities", Value::Null);
    let elevated = with(&plain, "/allow_elevated", true);
    for (entry, ask_privileged, capabilities, allowed) in [
        (&plain, false, &unprivileged, true),
        (&plain, false, &privileged, false),
        (&plain, true, &privileged, false),
        (&elevated, false, &unprivileged, true),
        (&elevated, false, &privileged, false),
        (&elevated, true, &privileged, true),
        (&elevated, true, &unprivileged, false),
    ] {
        each_prepared(&policy(std::slice::from_ref(entry), &json!({})), |guest| {
            let create = with(&create_container(&id('a')), "/capabilities", capabilities.clone());
            let create = with(&create, "/privileged", ask_privileged);
            let decision = guest.ask("create_container", &create);
            assert_eq!(matches!(decision, Decision::Allowed(_)), allowed, "{decision:?}");
            if allowed {
                // A further process gets what the container got, not what it asks for.
                let exec = exec_in_container(&id('a'));
                for set in [&unprivileged, &privileged] {
                    let decision =
                        guest.decide("exec_in_container", &with(&exec, "/capabilities", set.clone()));
                    assert_eq!(matches!(decision, Decision::Allowed(_)), set == capabilities);
                }
            }
        });
    }
}

#[test]
fn users_and_groups_are_compared_as_their_rule_says() {
    let cases = [
        ("any", "", "7", "x", true),
        ("id", "7", "7", "x", true),
        ("id", "7", "70", "7", false),
        ("name", "www", "7", "www", true),
        ("name", "www", "www", "7", false),
        ("re2", "w+", "7", "www", true),
        ("re2", "w+|x", "7", "xyz", false),
        ("re2", "w+", "www", "7", false),
        ("glob", "w*", "7", "www", false),
    ];
    for (strategy, pattern, user, name, allowed) in cases {
        let rule = json!({"pattern": pattern, "strategy": strategy});
        let asked = json!({"id": user, "name": name});
        each_prepared(&policy(&[container_with("/user/user_idname", rule.clone())], &json!({})), |guest| {
            let decision =
                guest.ask("create_container", &with(&create_container(&id('a')), "/user", asked.clone()));
            assert_eq!(matches!(decision, Decision::Allowed(_)), allowed, "user {rule} {asked}");
        });
        each_prepared(
            &policy(&[container_with("/user/group_idnames", json!([rule]))], &json!({})),
            |guest| {
                let groups = json!([asked]);
                let decision =
                    guest.ask("create_container", &with(&create_container(&id('a')), "/groups", groups));
                assert_eq!(matches!(decision, Decision::Allowed(_)), allowed, "group {rule} {asked}");
            },
        );
    }
}

#[test]
fn mounts_are_those_of_the_entry_or_the_usual_ones() {
    let a = id('a');
    let mut entry = container();
    entry["mounts"] = json!([
        {"type": "bind", "source": "sandbox:///tmp/atlas/resolvconf/.+", "destination": "/etc/resolv.conf", "options": ["rbind", "rshared", "rw"]},
        {"type": "bind", "source": "hugepages://2M", "destination": "/huge", "options": ["rbind"]},
        {"type": "bind", "source": "/exact.path", "destination": "/exact", "options": []},
        {"type": "bind", "source": "plan9://share", "destination": "/share", "options": ["rbind"]},
    ]);
    let mount = |kind: &str, source: String, destination: &str, options: &[&str]| json!({"type": kind, "source": source, "destination": destination, "options": options});
    let sandbox = format!("/run/gcs/c/{a}/sandboxMounts");
    let resolv = |source: String| mount("bind", source, "/etc/resolv.conf", &["rw", "rbind", "rshared"]);
    let rw_sys = mount("sysfs", "sysfs".into(), "/sys", &["rw", "nosuid", "nodev", "noexec"]);
    let rw_cgroup = mount(
        "cgroup2",
        "cgroup2".into(),
        "/sys/fs/cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "rw"],
    );
    let cases = [
        (resolv(format!("{sandbox}/tmp/atlas/resolvconf/x1")), true),
        (resolv(format!("{sandbox}/tmp/atlas/resolvconf/")), false),
        (resolv(format!("{sandbox}/tmp/atlas/other")), false),
        (resolv(format!("/other{sandbox}/tmp/atlas/resolvconf/x1")), false),
        (resolv("sandbox:///tmp/atlas/resolvconf/.+".into()), true),
        (
            mount(
                "bind",
                format!("{sandbox}/tmp/atlas/resolvconf/x"),
                "/etc/passwd",
                &["rbind", "rshared", "rw"],
            ),
            false,
        ),
        (
            mount("bind", format!("{sandbox}/tmp/atlas/resolvconf/x"), "/etc/resolv.conf", &["rbind", "rw"]),
            false,
        ),
        (
            mount(
                "tmpfs",
                format!("{sandbox}/tmp/atlas/resolvconf/x"),
                "/etc/resolv.conf",
                &["rbind", "rshared", "rw"],
            ),
            false,
        ),
        (mount("bind", format!("/run/gcs/c/{a}/hugepages2M"), "/huge", &["rbind"]), true),
        (mount("bind", format!("/run/gcs/c/{a}/hugepages1G"), "/huge", &["rbind"]), false),
        (mount("bind", "/exact.path".into(), "/exact", &[]), true),
        (mount("bind", "/exactxpath".into(), "/exact", &[]), false),
        (mount("bind", "/run/gcs/c/x/mounts/m1".into(), "/share", &["rbind"]), false),
        (mount("proc", "proc".into(), "/proc", &["nodev", "nosuid", "noexec"]), true),
        (mount("proc", "proc".into(), "/proc", &["nodev", "nosuid"]), false),
        (mount("sysfs", "sysfs".into(), "/sys", &["nosuid", "noexec", "nodev", "ro"]), true),
        (rw_sys.clone(), false),
        (rw_cgroup.clone(), false),
    ];
    let asks = |mounts: Value| with(&create_container(&id('a')), "/mounts", mounts);
    each_prepared(&policy(std::slice::from_ref(&entry), &json!({})), |guest| {
        for (mount, allowed) in &cases {
            let decision = guest.decide("create_container", &asks(json!([mount])));
            assert_eq!(matches!(decision, Decision::Allowed(_)), *allowed, "{mount}");
        }
        let allowed: Vec<_> = cases.iter().filter(|(_, allowed)| *allowed).map(|(mount, _)| mount).collect();
        guest.decide("create_container", &asks(json!(allowed))).allowed();
        let all: Vec<_> = cases.iter().map(|(mount, _)| mount).collect();
        guest.decide("create_container", &asks(json!(all))).denied();
        // The pod's own container, and only with exactly these options.
        let sandbox_container = with(&asks(json!([rw_sys])), "/isSandboxContainer", true);
        guest.decide("create_container", &sandbox_container).allowed();
        let more = mount("sysfs", "sysfs".into(), "/sys", &["rw", "nosuid", "nodev", "noexec", "relatime"]);
        guest.decide("create_container", &with(&sandbox_container, "/mounts", json!([more]))).denied();
    });
    let elevated = with(&entry, "/allow_elevated", true);
    each_prepared(&policy(&[elevated], &json!({})), |guest| {
        guest.decide("create_container", &asks(json!([rw_sys, rw_cgroup]))).allowed();
    });
}

#[test]
fn d1_a_point_that_the_policy_does_not_mention_is_denied_however_old_it_says_it_is() {
    for version in [r#"api_version := "0.1.0""#, r#"api_version := "9.0.0""#, r#"api_svn := "0.1.0""#, ""] {
        let text = format!("package policy\n{version}\nframework_version := \"0.5.0\"\ncontainers := []\n");
        each_engine(&text, |guest| {
            for point in POINTS {
                let everything = json!({"containerID": id('a'), "target": "/x", "unmountTarget": "/x"});
                assert_eq!(guest.decide(point, &everything).denied(), [""; 0], "{point}");
            }
        });
    }
}

#[test]
fn d2_patterns_match_the_whole_string() {
    let cases = [
        ("A=1|B=2", "A=1", true),
        ("A=1|B=2", "B=2", true),
        ("A=1|B=2", "A=1xyz", false),
        ("A=1|B=2", "LD_PRELOAD=/e;B=2", false),
        ("A=.*", "A=1\nB=2", false),
        ("A=1", "A=1\n", false),
        (r"A=\$", "A=$", true),
        (r"A=\$", "A=$x", false),
        ("(?i)(FABRIC)_.+=.+", "fabric_x=1", true),
        ("(?i)(FABRIC)_.+=.+", "xfabric_x=1", false),
        // Not an expression: it must not become one by being put into another.
        ("A=1)|(?:.*", "B=2", false),
        ("A=1)|(?:.*", "A=1", false),
    ];
    for (pattern, variable, allowed) in cases {
        let rules = json!([{"pattern": pattern, "strategy": "re2", "required": false}]);
        each_prepared(&policy(&[container_with("/env_rules", rules)], &json!({})), |guest| {
            let request = with(&create_container(&id('a')), "/envList", json!([variable]));
            let decision = guest.ask("create_container", &request);
            assert_eq!(matches!(decision, Decision::Allowed(_)), allowed, "{pattern} {variable:?}");
        });
    }
}

#[test]
fn d7_the_order_of_the_environment_is_the_requests() {
    each_prepared(&strict(), |guest| {
        for order in [["ZONE=b", "PATH=/bin", "LEVEL=1"], ["LEVEL=1", "ZONE=b", "PATH=/bin"]] {
            let request = with(&create_container(&id('a')), "/envList", json!(order));
            assert_eq!(guest.decide("create_container", &request).allowed()["env_list"], json!(order));
        }
    });
}

#[test]
fn d7_a_name_occurs_twice_only_if_the_policy_spells_out_both() {
    let rules = json!([
        {"pattern": "A=1", "strategy": "string", "required": false},
        {"pattern": "A=2", "strategy": "string", "required": false},
        {"pattern": "A=[0-9]", "strategy": "re2", "required": false},
    ]);
    let cases = [
        (["A=1", "A=2"], true),
        (["A=2", "A=1"], true),
        (["A=1", "A=3"], false),
        (["A=3", "A=4"], false),
        (["A=1", "A=1"], false),
    ];
    for dropping in [false, true] {
        let flags = json!({"allow_environment_variable_dropping": dropping});
        each_prepared(&policy(&[container_with("/env_rules", rules.clone())], &flags), |guest| {
            for (environment, allowed) in cases {
                let request = with(&create_container(&id('a')), "/envList", json!(environment));
                let decision = guest.decide("create_container", &request);
                assert_eq!(matches!(decision, Decision::Allowed(_)), allowed, "{environment:?}");
            }
        });
    }
}

#[test]
fn d3_a_pattern_of_the_hosts_is_never_used() {
    each_engine(&strict(), |guest| {
        let anywhere = with(&mount_device(1, &hash(1)), "/mountPathRegex", ".*");
        assert_eq!(guest.decide("mount_device", &anywhere).denied(), ["invalid device path"]);
        let elsewhere = with(&anywhere, "/target", "/etc");
        assert_eq!(guest.decide("mount_device", &elsewhere).denied(), ["invalid device path"]);
        guest.decide("mount_device", &mount_device(1, &hash(1))).allowed();
    });
}

#[test]
fn d8_each_field_of_what_is_started_is_decided_or_the_guests_own() {
    let changed = |point: &str| -> Vec<(&str, Value)> {
        let process = [
            ("/argList", json!(["/bin/sh"])),
            ("/envList", json!(["PATH=/bin", "LD_PRELOAD=/x"])),
            ("/workingDir", json!("/")),
            ("/user/id", json!("0")),
            ("/groups", json!([{"id": "0", "name": "root"}])),
            ("/umask", json!("0000")),
            ("/noNewPrivileges", json!(false)),
            ("/terminal", json!(true)),
            ("/capabilities/bounding", json!(["CAP_KILL", "CAP_CHOWN", "CAP_SYS_ADMIN"])),
            ("/capabilities/effective", json!(["CAP_KILL", "CAP_CHOWN"])),
            ("/capabilities/inheritable", json!(["CAP_KILL"])),
            ("/capabilities/permitted", json!([])),
            ("/capabilities/ambient", json!(["CAP_KILL"])),
        ];
        let bind =
            json!([{"type": "bind", "source": "/", "destination": "/host", "options": ["rbind", "rw"]}]);
        let first = [
            ("/mounts", bind),
            ("/devices", json!([{"path": "/dev/mem"}])),
            ("/privileged", json!(true)),
            ("/seccompProfileSHA256", json!("00")),
        ];
        let first = first.into_iter().filter(|_| point == "create_container");
        process.into_iter().chain(first).collect()
    };
    // What the host has no part in: the guest derives it, and what it stands for is decided elsewhere.
    let own = ["containerID", "sandboxDir", "hugePagesDir", "isSandboxContainer"];
    each_prepared(&strict(), |guest| {
        for (point, mut honest) in [
            ("create_container", create_container(&id('a'))),
            ("exec_in_container", exec_in_container(&id('a'))),
        ] {
            honest["terminal"] = json!(false);
            let changes = changed(point);
            for field in honest.as_object().unwrap().keys() {
                let decided = changes.iter().any(|(path, _)| path[1..].split('/').next() == Some(field));
                assert!(decided || own.contains(&field.as_str()), "{point}: nothing asks about {field}");
            }
            for (field, value) in changes {
                guest.decide(point, &with(&honest, field, value)).denied();
            }
            guest.ask(point, &honest).allowed();
        }
    });
}

#[test]
fn d10_what_reads_the_outside_world_does_not_compile() {
    for call in [
        "http.send({\"method\": \"get\", \"url\": \"http://example.com\"})",
        "time.now_ns()",
        "rand.intn(\"seed\", 9)",
        "opa.runtime()",
        "uuid.rfc4122(\"seed\")",
        "net.lookup_ip_addr(\"example.com\")",
    ] {
        let text =
            format!("package policy\n\nget_properties := {{\"allowed\": true}} if {{ x := {call}; x }}\n");
        let error = parma_policy::compile(&parma_policy::Inputs::policy("policy.rego", &text)).unwrap_err();
        let name = call.split_once('(').unwrap().0;
        assert!(error.to_string().contains(name), "{call}: {error}");
    }
}

#[test]
fn p07_a_package_is_what_opa_reads_and_a_fragments_says_nothing() {
    // One parser reads the package, comments and all: this is another framework, and that is said aloud.
    let takes_over = "package #aa\nframework\n\nload_fragment := {\"allowed\": true}\n";
    let mut inputs = parma_policy::Inputs::policy("policy.rego", &strict());
    inputs.modules.push(("other.rego".into(), takes_over.into()));
    match parma_policy::compile(&inputs) {
        Ok(compiled) => {
            let warned =
                compiled.warnings.iter().any(|warning| warning.to_string().contains("takes the place"));
            assert!(warned, "{:?}", compiled.warnings);
        }
        Err(error) => assert!(error.to_string().contains("framework"), "{error}"),
    }
    // Whatever a fragment calls itself, its image has a fragment's entries and no others.
    for package in ["framework", "policy", "metadata", "#aa\nframework", "parma"] {
        let text =
            format!("package {package}\n\nframework_version := \"0.5.0\"\ncontainers := [{}]\n", container());
        let image = parma_policy::fragment::compile_fragment("fragment.rego", &text).unwrap().image;
        let read = parma_guest::policy::format::Image::read(&image).unwrap();
        for (name, _) in read.entries() {
            let name = String::from_utf8_lossy(read.string(name).unwrap()).into_owned();
            assert!(name.starts_with("data.parma_fragment."), "{package}: {name}");
        }
        parma_guest::policy::fragment::Fragment::read(&image).unwrap();
    }
}

#[test]
fn d11_reasons_are_texts_of_the_guests_fixed_list() {
    let mut written: Vec<&str> = common::FRAMEWORK
        .lines()
        .filter_map(|line| line.strip_prefix("errors contains "))
        .map(|rest| rest.strip_prefix('"').unwrap().split_once("\" if").unwrap().0)
        .collect();
    written.sort_unstable();
    written.dedup();
    // The guest drops what it does not know; what it knows and the framework does not say is its own.
    let own = Reason::StdioNotAllowed;
    let known = Reason::ALL.iter().filter(|reason| **reason != own).map(|reason| reason.text());
    assert_eq!(written, known.collect::<Vec<_>>());
}

#[test]
fn flags_open_what_they_name_and_nothing_else() {
    let flags = [
        ("get_properties", "allow_properties_access", "properties not allowed"),
        ("dump_stacks", "allow_dump_stacks", "stacks not allowed"),
        ("runtime_logging", "allow_runtime_logging", "logging not allowed"),
        ("host_network", "allow_host_network", "host network not allowed"),
    ];
    for (open, flag, _) in flags {
        each_engine(&policy(&[container()], &json!({flag: true})), |guest| {
            for (point, _, reason) in flags {
                let decision = guest.decide(point, &json!({}));
                if point == open {
                    assert_eq!(decision.allowed(), json!({"allowed": true}));
                } else {
                    assert_eq!(decision.denied(), [reason]);
                }
            }
        });
    }
    for value in [json!("yes"), json!(1), json!(null)] {
        each_engine(&policy(&[container()], &json!({"allow_dump_stacks": value})), |guest| {
            guest.decide("dump_stacks", &json!({})).denied();
        });
    }
}

#[test]
fn scratch_is_encrypted_unless_the_policy_says_otherwise() {
    let rw_device = json!({
        "target": format!("/run/gcs/c/{}", id('a')),
        "encrypted": true,
        "ensureFilesystem": true,
        "filesystem": "ext4",
        "mountPathRegex": "/run/gcs/c/[0-9a-fA-F]{64}",
    });
    let overlay = json!({"target": "/run/gcs/c/x/scratch", "encrypted": true});
    each_engine(&strict(), |guest| {
        for (field, value, reason) in [
            ("/encrypted", json!(false), "unencrypted scratch not allowed"),
            ("/ensureFilesystem", json!(false), "filesystem not ensured"),
            ("/filesystem", json!("btrfs"), "invalid filesystem"),
            ("/target", json!("/run/gcs/c/x"), "invalid device path"),
            ("/mountPathRegex", json!(".*"), "invalid device path"),
        ] {
            let request = with(&rw_device, field, value);
            assert_eq!(guest.decide("rw_mount_device", &request).denied(), [reason], "{field}");
        }
        guest.ask("rw_mount_device", &rw_device).allowed();
        assert_eq!(guest.ask("rw_mount_device", &rw_device).denied(), ["device already mounted"]);
        let here = json!({"unmountTarget": rw_device["target"]});
        assert_eq!(guest.decide("unmount_device", &here).denied(), ["device not mounted"]);
        guest.ask("rw_unmount_device", &here).allowed();
        assert_eq!(guest.ask("rw_unmount_device", &here).denied(), ["device not mounted"]);

        let plain = with(&overlay, "/encrypted", false);
        assert_eq!(guest.ask("scratch_mount", &plain).denied(), ["unencrypted scratch not allowed"]);
        guest.ask("scratch_mount", &overlay).allowed();
        assert_eq!(guest.metadata["scratch_mounts"], json!({"/run/gcs/c/x/scratch": {"encrypted": true}}));
        assert_eq!(guest.ask("scratch_mount", &overlay).denied(), ["scratch already mounted"]);
        let here = json!({"unmountTarget": overlay["target"]});
        guest.ask("scratch_unmount", &here).allowed();
        assert_eq!(guest.ask("scratch_unmount", &here).denied(), ["scratch not mounted"]);
    });
    each_engine(&policy(&[container()], &json!({"allow_unencrypted_scratch": true})), |guest| {
        guest.ask("rw_mount_device", &with(&rw_device, "/encrypted", false)).allowed();
        guest.ask("scratch_mount", &with(&overlay, "/encrypted", false)).allowed();
    });
}

#[test]
fn l05_scratch_weaker_than_sealed_and_larger_than_the_limit_is_the_policys_to_allow() {
    let device = json!({
        "target": format!("/run/gcs/c/{}", id('a')),
        "encrypted": true,
        "ensureFilesystem": true,
        "filesystem": "ext4",
        "mountPathRegex": "/run/gcs/c/[0-9a-fA-F]{64}",
        "rollbackProtection": true,
        "size": 4096,
    });
    let unprotected = with(&device, "/rollbackProtection", false);
    let memory = json!({"target": "/run/gcs/c/x/scratch", "encrypted": true, "memory": true});
    each_engine(&strict(), |guest| {
        let denied = guest.decide("rw_mount_device", &unprotected).denied();
        assert_eq!(denied, ["scratch without rollback protection not allowed"]);
        assert_eq!(guest.decide("scratch_mount", &memory).denied(), ["scratch in memory not allowed"]);
        guest.decide("scratch_mount", &with(&memory, "/memory", false)).allowed();
        guest.decide("rw_mount_device", &device).allowed();
    });
    let weak =
        json!({"allow_scratch_rollback": true, "allow_memory_scratch": true, "max_scratch_size": 4096});
    each_engine(&policy(&[container()], &weak), |guest| {
        guest.decide("rw_mount_device", &unprotected).allowed();
        guest.decide("scratch_mount", &memory).allowed();
        guest.decide("rw_mount_device", &device).allowed();
        let larger = with(&device, "/size", 4097);
        assert_eq!(guest.decide("rw_mount_device", &larger).denied(), ["scratch too large"]);
    });
    for nonsense in [json!("4096"), json!(true), json!([4096])] {
        each_engine(&policy(&[container()], &json!({"max_scratch_size": nonsense})), |guest| {
            guest.decide("rw_mount_device", &device).denied();
        });
    }
}

#[test]
fn a_data_volume_is_known_by_its_root_hash_and_mounted_only_as_the_entry_says() {
    let volume = hash(9);
    let constraint = json!({
        "destination": "/data", "type": "bind", "options": ["rbind", "rshared", "ro"],
        "source": format!("verity://{volume}"),
    });
    each_prepared(&policy(&[container_with("/mounts", json!([constraint]))], &json!({})), |guest| {
        assert_eq!(guest.ask("mount_device", &mount_device(8, &hash(8))).denied(), ["invalid device hash"]);
        guest.ask("mount_device", &mount_device(9, &volume)).allowed();
        let mount = |number: u32, destination: &str, access: &str| {
            json!([{
                "destination": destination, "type": "bind", "options": ["rbind", "rshared", access],
                "source": device_path(number),
            }])
        };
        let asks = |mounts| with(&create_container(&id('a')), "/mounts", mounts);
        for wrong in [
            mount(9, "/etc", "ro"),
            mount(9, "/data", "rw"),
            mount(1, "/data", "ro"),
            mount(7, "/data", "ro"),
        ] {
            assert_eq!(
                guest.decide("create_container", &asks(wrong.clone())).denied(),
                ["invalid mount list"],
                "{wrong}"
            );
        }
        guest.decide("create_container", &asks(mount(9, "/data", "ro"))).allowed();
    });
}

#[test]
fn a_volume_is_opened_and_mounted_only_as_the_entry_says() {
    let volume = hash(9);
    let constraint = json!({
        "destination": "/data", "type": "bind", "options": ["rbind", "rshared", "rw"],
        "source": format!("volume://{volume}"),
    });
    let path = |id: &str| format!("/run/mounts/volumes/{id}");
    let opens = |id: &str| {
        json!({
            "target": path(id), "volume": id, "encrypted": true, "ensureFilesystem": false, "filesystem": "ext4",
            "mountPathRegex": "/run/mounts/volumes/[0-9a-f]{64}", "rollbackProtection": false,
        })
    };
    each_prepared(&policy(&[container_with("/mounts", json!([constraint]))], &json!({})), |guest| {
        let other = hash(8);
        assert_eq!(guest.ask("rw_mount_device", &opens(&other)).denied(), ["volume not allowed"]);
        for (field, value) in [
            ("/encrypted", json!(false)),
            ("/target", json!(path(&other))),
            ("/target", json!(format!("/run/gcs/c/{volume}"))),
            ("/mountPathRegex", json!(".*")),
            ("/filesystem", json!("xfs")),
        ] {
            guest.decide("rw_mount_device", &with(&opens(&volume), field, value)).denied();
        }
        let asks = |destination: &str, access: &str| {
            let mount = json!([{
                "destination": destination, "type": "bind", "options": ["rbind", "rshared", access],
                "source": path(&volume),
            }]);
            with(&create_container(&id('a')), "/mounts", mount)
        };
        guest.decide("create_container", &asks("/data", "rw")).denied();
        guest.ask("rw_mount_device", &opens(&volume)).allowed();
        guest.decide("create_container", &asks("/etc", "rw")).denied();
        guest.decide("create_container", &asks("/data", "ro")).denied();
        guest.decide("create_container", &asks("/data", "rw")).allowed();
    });
}

#[test]
fn a_corrupted_layer_ends_the_machine_where_the_policy_says_so() {
    for (flag, panics) in [(json!(true), true), (json!(false), false), (json!("true"), false)] {
        each_engine(&policy(&[container()], &json!({"panic_on_corruption": flag})), |guest| {
            let result = guest.decide("mount_device", &mount_device(1, &hash(1))).allowed();
            assert_eq!(result["panic_on_corruption"] == true, panics, "{flag}");
        });
    }
}

#[test]
fn host_directories_are_mounted_below_a_container_that_has_an_overlay() {
    each_prepared(&strict(), |guest| {
        let share = |target: String| json!({"rootPrefix": "/run/gcs/c", "mountPathPrefix": "/mounts/m[0-9]+", "target": target});
        let honest = share(format!("/run/gcs/c/{}/mounts/m1", id('a')));
        for wrong in [
            share(format!("/run/gcs/c/{}/mounts/m1", id('b'))),
            share(format!("/run/gcs/c/{}/mounts/m1/x", id('a'))),
            share(format!("/x/run/gcs/c/{}/mounts/m1", id('a'))),
            with(&honest, "/mountPathPrefix", "/.*"),
        ] {
            assert_eq!(guest.decide("plan9_mount", &wrong).denied(), ["invalid share path"], "{wrong}");
        }
        guest.ask("plan9_mount", &honest).allowed();
        assert_eq!(guest.metadata["p9mounts"], json!({honest["target"].as_str().unwrap(): id('a')}));
        assert_eq!(guest.ask("plan9_mount", &honest).denied(), ["share already mounted"]);
        let here = json!({"unmountTarget": honest["target"]});
        guest.ask("plan9_unmount", &here).allowed();
        assert_eq!(guest.ask("plan9_unmount", &here).denied(), ["share not mounted"]);
    });
}

#[test]
fn a_process_of_the_guest_itself_needs_its_own_entry() {
    let process = json!({
        "command": ["/bin/tool"],
        "env_rules": [{"pattern": "A=1", "strategy": "string", "required": true}],
        "working_dir": "/",
        "allow_stdio_access": false,
    });
    let request = json!({"argList": ["/bin/tool"], "envList": ["A=1"], "workingDir": "/"});
    each_engine(&policy(&[container()], &json!({"external_processes": [process]})), |guest| {
        for (field, value, reason) in [
            ("/argList", json!(["/bin/sh"]), "invalid command"),
            ("/envList", json!([]), "invalid environment"),
            ("/envList", json!(["A=1", "B=1"]), "invalid environment"),
            ("/workingDir", json!("/tmp"), "invalid working directory"),
        ] {
            assert_eq!(guest.decide("exec_external", &with(&request, field, value)).denied(), [reason]);
        }
        assert_eq!(
            guest.ask("exec_external", &request).allowed(),
            json!({"allowed": true, "env_list": ["A=1"], "allow_stdio_access": false})
        );
    });
    each_engine(&strict(), |guest| {
        guest.ask("exec_external", &request).denied();
    });
}

#[test]
fn points_that_this_guest_does_not_have_are_denied() {
    each_engine(&strict(), |guest| {
        for point in [
            "mount_blockdev",
            "unmount_blockdev",
            "load_transparency_trust_list",
            "mount_cims",
            "registry_changes",
            "log_provider",
        ] {
            assert_eq!(guest.decide(point, &json!({"target": "/x"})).denied(), ["not supported"], "{point}");
        }
    });
}

#[test]
fn a_policy_without_a_framework_version_or_for_a_newer_framework_has_no_containers() {
    for (version, reason) in [
        (Value::Null, "framework_version is missing"),
        (json!("0.6.0"), "framework_version is newer than the framework"),
    ] {
        let text = policy(&[container()], &json!({"framework_version": version}));
        each_engine(&text, |guest| {
            guest.ask("mount_device", &mount_device(1, &hash(1))).allowed();
            guest.ask("mount_device", &mount_device(2, &hash(2))).allowed();
            let denied = guest.ask("mount_overlay", &mount_overlay(&id('a'), &[2, 1])).denied();
            assert_eq!(denied, [reason, "invalid layers"]);
        });
    }
    let old_name = policy(&[container()], &json!({"framework_version": null, "framework_svn": "0.5.0"}));
    each_prepared(&old_name, |guest| {
        guest.ask("create_container", &create_container(&id('a'))).allowed();
    });
}

#[test]
fn a_policy_for_an_older_framework_means_what_it_meant_then() {
    let mut entry = container();
    entry["env_rules"] = json!([]);
    let known = |version: &str| {
        let policy = policy(
            &[entry.clone()],
            &json!({"framework_version": version, "allow_capability_dropping": true}),
        );
        let mut guest = Guest::new(Oracle::new(&policy));
        guest.ask("mount_device", &mount_device(1, &hash(1))).allowed();
        guest.ask("mount_device", &mount_device(2, &hash(2))).allowed();
        guest.ask("mount_overlay", &mount_overlay(&id('a'), &[2, 1])).allowed();
        guest.metadata["matches"][id('a')][0].clone()
    };
    assert_eq!(known("0.5.0"), entry);

    let mut expected = entry.clone();
    expected.as_object_mut().unwrap().remove("name");
    assert_eq!(known("0.4.1"), expected);
    expected["signals"] = json!([15, 9, 15]);
    assert_eq!(known("0.4.0"), expected);
    assert_eq!(known("0.2.3"), expected);
    expected["seccomp_profile_sha256"] = json!("");
    assert_eq!(known("0.2.2"), expected);
    expected["capabilities"] = Value::Null;
    assert_eq!(known("0.2.1"), expected);
    let anyone = json!({"pattern": "", "strategy": "any"});
    expected["user"] = json!({"umask": "0022", "user_idname": anyone, "group_idnames": [anyone]});
    assert_eq!(known("0.2.0"), expected);
    expected["no_new_privileges"] = json!(false);
    assert_eq!(known("0.1.0"), expected);
}

#[test]
fn capabilities_are_not_dropped_for_a_policy_older_than_dropping() {
    for (version, dropped) in [("0.2.1", false), ("0.2.2", true)] {
        let flags = json!({"framework_version": version, "allow_capability_dropping": true});
        each_prepared(&policy(&[container()], &flags), |guest| {
            let all = &serde_json::from_str::<Value>(common::DATA).unwrap()["defaultPrivilegedCapabilities"];
            let asked = json!({"bounding": all, "effective": all, "inheritable": [], "permitted": all, "ambient": []});
            let request = with(&create_container(&id('a')), "/capabilities", asked);
            let decision = guest.ask("create_container", &request);
            assert_eq!(matches!(decision, Decision::Allowed(_)), dropped, "{version}: {decision:?}");
        });
    }
}

#[test]
fn a_generated_policy_of_another_tool_works_unchanged() {
    let layers = [
        "3f5a2e1c0b9d8f7e6a5c4b3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d4e31",
        "7c0d9e8f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5",
    ];
    let usual = &serde_json::from_str::<Value>(common::DATA).unwrap()["defaultUnprivilegedCapabilities"];
    let mut create = create_container(&id('a'));
    create["argList"] = json!(["/usr/bin/serve", "--port", "8080"]);
    create["envList"] = json!(["MODE=production", "HOSTNAME=pod", "Fabric_NodeIPOrFQDN=10.0.0.1"]);
    create["user"] = json!({"id": "10001", "name": ""});
    create["capabilities"] =
        json!({"bounding": usual, "effective": usual, "inheritable": [], "permitted": usual, "ambient": []});
    create["mounts"] = json!([{
        "type": "bind",
        "source": format!("/run/gcs/c/{}/sandboxMounts/tmp/atlas/resolvconf/r1", id('a')),
        "destination": "/etc/resolv.conf",
        "options": ["rbind", "rshared", "rw"],
    }]);
    each_engine(include_str!("policies/pod.rego"), |guest| {
        for (number, layer) in layers.iter().enumerate() {
            guest.ask("mount_device", &mount_device(number as u32, layer)).allowed();
        }
        guest.ask("mount_overlay", &mount_overlay(&id('a'), &[1, 0])).allowed();
        let other = with(&create, "/envList", json!(["MODE=production", "LD_PRELOAD=/x"]));
        assert_eq!(guest.ask("create_container", &other).denied(), ["invalid environment"]);
        guest.ask("create_container", &create).allowed();
        guest.ask("signal_container_process", &signal(&id('a'), 9)).allowed();
        guest.ask("get_properties", &json!({})).allowed();
        guest.ask("load_fragment", &json!({"issuer": "x", "feed": "y"})).denied();
        guest.ask("rw_mount_device", &json!({"target": "/x"})).denied();
    });
}
