use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn read(profile: &Value, capabilities: &[&str]) -> Result<Profile> {
    let capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
    Profile::read(profile.to_string().as_bytes(), &capabilities)
}

fn asked(profile: &Profile, name: &str, arguments: [u64; 6]) -> u32 {
    let number = u32::try_from(name.parse::<x86_64::Sysno>().expect(name).id()).unwrap();
    filter::evaluate(&profile.filter().unwrap(), X86_64, number, arguments).expect("an answer")
}

/// What a profile says of a call, read rule by rule.
fn says(profile: &Profile, number: u32, arguments: [u64; 6]) -> u32 {
    let holds = |condition: &Condition| {
        let (argument, value) = (arguments[usize::from(condition.index)], condition.value);
        match condition.op {
            Operator::NotEqual => argument != value,
            Operator::Less => argument < value,
            Operator::LessOrEqual => argument <= value,
            Operator::Equal => argument == value,
            Operator::GreaterOrEqual => argument >= value,
            Operator::Greater => argument > value,
            Operator::MaskedEqual => argument & value == condition.value_two,
        }
    };
    let number_of = |name: &String| name.parse::<x86_64::Sysno>().ok().map(|number| number.id() as u32);
    let resolved = &profile.resolved;
    let default = answer(&resolved.default_action, resolved.default_errno_ret).unwrap();
    let own = |rule: &&Rule| answer(&rule.action, rule.errno_ret).unwrap() != default;
    let mut rules = resolved.syscalls.iter().filter(own);
    let last =
        resolved.syscalls.iter().filter(own).flat_map(|rule| rule.names.iter().filter_map(number_of)).max();
    let of_call = |rule: &&Rule| {
        let several = |condition: &Condition| {
            rule.args.iter().filter(|other| other.index == condition.index).count() > 1
        };
        let met = if rule.args.iter().any(several) {
            rule.args.iter().any(holds)
        } else {
            rule.args.iter().all(holds)
        };
        met && rule.names.iter().filter_map(number_of).any(|named| named == number)
    };
    match rules.find(of_call) {
        Some(rule) => answer(&rule.action, rule.errno_ret).unwrap(),
        None if last.is_some_and(|last| number > last) => newer(default),
        None => default,
    }
}

#[test]
fn a_profile_is_named_by_the_hash_of_its_oci_form_in_whichever_form_it_is_written() {
    // SHA-256 of {"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{"names":["mkdir",
    // "mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1,"args":[{"index":1,"value":2,"valueTwo":3,"op":
    // "SCMP_CMP_MASKED_EQ"}]}]}, without the line breaks.
    let expected = "deadda2cd74cd0baddd86956a29cacc644980ea12371f72686b575dc75c96016";
    let args = json!([{"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 2, "valueTwo": 3}]);
    let rule =
        json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": args});
    let oci =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]});
    let mut written = rule.clone();
    written["comment"] = json!("no directories");
    written["excludes"] = json!({"caps": ["CAP_SYS_ADMIN"], "minKernel": "99.0"});
    written["includes"] = json!({"arches": ["amd64"], "minKernel": "4.8"});
    let docker = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
        ],
        "syscalls": [written, {"names": ["read"], "action": "SCMP_ACT_KILL", "includes": {"arches": ["s390x"]}}],
    });
    for profile in [oci, docker] {
        let hash = read(&profile, &["CAP_CHOWN"]).unwrap().hash().unwrap();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }
}

#[test]
fn rules_are_there_for_the_capabilities_the_architecture_and_the_kernel_that_they_ask_for() {
    let rule = |name: &str, includes: Value, excludes: Value| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": null, "includes": includes, "excludes": excludes});
    let profile = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
        rule("mount", json!({"caps": ["CAP_SYS_ADMIN"]}), json!({})),
        rule("chroot", json!({}), json!({"caps": ["CAP_SYS_ADMIN"]})),
        rule("ptrace", json!({"minKernel": "4.8"}), json!({})),
        rule("mseal", json!({"minKernel": "6.13"}), json!({})),
        rule("reboot", json!({"arches": ["arm64"]}), json!({})),
        rule("acct", json!({}), json!({"arches": ["amd64"]})),
        {"names": ["clone3", "_llseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]});
    let (allow, eperm) = (filter::ALLOW, filter::ERRNO | EPERM);
    for (capabilities, mount, chroot) in [(&[][..], eperm, allow), (&["CAP_SYS_ADMIN"][..], allow, eperm)] {
        let profile = read(&profile, capabilities).unwrap();
        let answers =
            ["mount", "chroot", "ptrace", "reboot", "acct", "read"].map(|name| asked(&profile, name, [0; 6]));
        assert_eq!(answers, [mount, chroot, allow, eperm, eperm, eperm]);
        assert_eq!(asked(&profile, "clone3", [0; 6]), filter::ERRNO | ENOSYS);
        // It is newer than all that is named here: no C library takes EPERM for "not there".
        assert_eq!(asked(&profile, "mseal", [0; 6]), filter::ERRNO | ENOSYS);
    }
}

#[test]
fn what_the_guest_does_not_do_is_an_error_that_names_it() {
    let profile = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let argument = json!([{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]);
    for (wrong, expected) in [
        (profile(json!({"names": ["read"], "action": "SCMP_ACT_NOTIFY"})), "SCMP_ACT_NOTIFY"),
        (profile(json!({"names": ["read"], "action": "SCMP_ACT_TRACE"})), "SCMP_ACT_TRACE"),
        (profile(json!({"names": ["mkdri"], "action": "SCMP_ACT_ERRNO"})), "mkdri"),
        (profile(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096})), "4096"),
        (profile(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "args": argument})), "no argument 6"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}),
            "SPEC_ALLOW",
        ),
        (json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"}), "listenerPath"),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_KILL"}, {"names": ["read"], "action": "SCMP_ACT_LOG"},
            ]}),
            "different actions",
        ),
    ] {
        let error = format!("{:#}", read(&wrong, &[]).expect_err("refused"));
        assert!(error.contains(expected), "{error}");
    }
    // Of another architecture, or not known and allowed: that makes nothing weaker.
    assert!(
        read(&profile(json!({"names": ["vm86", "socketcall"], "action": "SCMP_ACT_ERRNO"})), &[]).is_ok()
    );
    let allowing = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["new_call"], "action": "SCMP_ACT_ALLOW"}]});
    assert!(read(&allowing, &[]).is_ok());
}

#[test]
fn another_architecture_is_killed() {
    let profile = read(&json!({"defaultAction": "SCMP_ACT_ALLOW"}), &[]).unwrap();
    assert_eq!(
        filter::evaluate(&profile.filter().unwrap(), 0x4000_0003, 1, [0; 6]),
        Some(filter::KILL_PROCESS)
    );
    assert_eq!(asked(&profile, "read", [0; 6]), filter::ALLOW);
}

/// Values around those that conditions compare with, where a comparison by halves goes wrong first.
fn word() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![
        0,
        1,
        2,
        40,
        0xffff_ffff,
        1 << 32,
        (1 << 32) + 1,
        (2 << 32) + 1,
        0x7e02_0000,
        u64::MAX,
    ])
}

fn condition() -> impl Strategy<Value = Condition> {
    let op = prop::sample::select(vec![
        Operator::NotEqual,
        Operator::Less,
        Operator::LessOrEqual,
        Operator::Equal,
        Operator::GreaterOrEqual,
        Operator::Greater,
        Operator::MaskedEqual,
    ]);
    (0..6u8, word(), word(), op).prop_map(|(index, value, value_two, op)| Condition {
        index,
        value,
        value_two,
        op,
    })
}

const NAMES: [&str; 12] = [
    "read",
    "write",
    "open",
    "close",
    "mkdir",
    "clone",
    "socket",
    "personality",
    "openat2",
    "vm86",
    "mseal",
    "futex",
];

fn profile() -> impl Strategy<Value = Profile> {
    let action =
        || prop::sample::select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_LOG"]);
    // One action a name: rules that contradict each other are refused.
    let rule = (0..NAMES.len(), prop::collection::vec(condition(), 0..4));
    let rules = prop::collection::vec(rule, 0..16);
    (action(), prop::collection::vec(action(), NAMES.len()), rules).prop_map(|(default, actions, rules)| {
        let rule = |(name, args): (usize, Vec<Condition>)| Rule {
            names: vec![NAMES[name].into()],
            action: actions[name].into(),
            errno_ret: (actions[name] == "SCMP_ACT_ERRNO").then_some(7),
            args,
        };
        let resolved = Resolved {
            default_action: default.into(),
            default_errno_ret: None,
            architectures: Vec::new(),
            flags: Vec::new(),
            syscalls: rules.into_iter().map(rule).collect(),
        };
        Profile { resolved }
    })
}

proptest! {
    #[test]
    fn a_filter_answers_what_its_profile_says(profile in profile(), arguments in prop::array::uniform6(word())) {
        let code = profile.filter().unwrap();
        for number in (0..470).chain([0x4000_0000, u32::MAX]) {
            prop_assert_eq!(
                filter::evaluate(&code, X86_64, number, arguments),
                Some(says(&profile, number, arguments)),
                "call {}", number
            );
        }
    }
}
