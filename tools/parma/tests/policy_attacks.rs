//! The host chooses, changes or withholds the policy, or adds to it: attacks P01–P06, P08–P10 and, over the wire,
//! F01–F06, F08, I18 on the real VM; and it sets the clock: B07. `fragments.rs` has the fragments' attacks without a machine.

#[path = "support/signer.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod signer;
mod support;

use parma_guest::point::Point;
use parma_guest::policy::Reason as Check;
use parma_guest::wire::frame::encode;
use parma_guest::wire::{Denied, Field, List, Phase, Problem, Reason, Request, Stdio, Step, ToGuest};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Reply;
use support::{id, list, policy, stage};

#[test]
fn p01_only_the_policy_that_host_data_vouches_for_is_accepted() {
    let Some(stage) = stage() else { return };
    let honest = stage.workload("busybox", &["true"], GenerateOptions::default());
    let open = policy("package policy\napi_version := \"0.12.0\"\nmount_device := {\"allowed\": true}\n");
    let guest = stage.boot(honest.policy.host_data(), honest.disks());
    assert_eq!(guest.refused(Request::SetPolicy { image: &open.image }), Reason::NotHostData);
    let mut flipped = honest.policy.image.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(guest.refused(Request::SetPolicy { image: &flipped }), Reason::NotHostData);
    let mount = Request::MountDevice { device: "busybox0", root_hash: [0; 32], data_blocks: 1 };
    assert_eq!(guest.refused(mount), Reason::WrongPhase { phase: Phase::AwaitPolicy });
    // The honest twin, on the same guest.
    let Reply::PolicyAccepted(report) = guest.done(Request::SetPolicy { image: &honest.policy.image }) else {
        panic!("no report");
    };
    assert_eq!(report[0xC0..0xE0], honest.policy.host_data(), "HOST_DATA in the report");
}

#[test]
fn p02_nothing_is_allowed_without_a_policy_and_no_bytes_mean_allow_all() {
    let Some(stage) = stage() else { return };
    let honest = stage.workload("busybox", &["true"], GenerateOptions::default());
    let guest = stage.boot(honest.policy.host_data(), honest.disks());
    for image in [&b""[..], b"{\"allow_all\":true}", &[0; 32]] {
        assert_eq!(guest.refused(Request::SetPolicy { image }), Reason::NotHostData);
    }
    let phase = Phase::AwaitPolicy;
    let layers = list(["busybox0"]);
    let (container, process) = (id('1'), honest.process(support::OUTPUT));
    for request in [
        Request::MountDevice { device: "busybox0", root_hash: honest.layers[0].root_hash, data_blocks: 1 },
        Request::UnmountDevice { device: "busybox0" },
        Request::MountOverlay { container: &container, layers, scratch: None },
        Request::UnmountOverlay { container: &container },
        Request::CreateContainer {
            container: &container,
            privileged: false,
            mounts: List::new(),
            seccomp: None,
            process: process.clone(),
        },
        Request::ExecInContainer { container: &container, process },
        Request::SignalContainerProcess { container: &container, process: 1, signal: 9 },
        Request::ShutdownContainer { container: &container },
        Request::GetProperties,
        Request::RuntimeLogging { enabled: true },
    ] {
        assert_eq!(guest.refused(request), Reason::WrongPhase { phase });
    }
    guest.accept(&honest.policy.image);
    guest.mount_layers(&honest);
}

#[test]
fn p02_an_open_door_is_no_policy_even_where_host_data_vouches_for_it() {
    let Some(stage) = stage() else { return };
    let door = b"{\"allow_all\":true}";
    let guest = stage.boot(parma_policy::host_data(door), Vec::new());
    assert_eq!(guest.refused(Request::SetPolicy { image: door }), Reason::PolicyInvalid);
    assert_eq!(guest.refused(Request::GetProperties), Reason::WrongPhase { phase: Phase::AwaitPolicy });
}

#[test]
fn p03_a_policy_is_set_once() {
    let Some(stage) = stage() else { return };
    let honest = stage.workload("busybox", &["true"], GenerateOptions::default());
    let guest = stage.start(&honest);
    let again = Reason::WrongPhase { phase: Phase::Running };
    assert_eq!(guest.refused(Request::SetPolicy { image: &honest.policy.image }), again);
    assert_eq!(guest.refused(Request::SetPolicy { image: b"other" }), again);
    guest.mount_layers(&honest);
}

/// Source: CVE-2025-58354, kata before 3.21: a policy that could not be read was none, and the default one took its place.
#[test]
fn p04_a_policy_that_does_not_arrive_whole_is_no_policy_and_zeros_in_host_data_expect_one_too() {
    let Some(stage) = stage() else { return };
    let honest = stage.workload("busybox", &["true"], GenerateOptions::default());
    let image = &honest.policy.image;
    let mut guest = stage.boot(honest.policy.host_data(), honest.disks());
    drop(guest.session);
    let whole = encode(&ToGuest { sequence: 1, request: Request::SetPolicy { image } }).unwrap();
    for cut in [0, 3, 4, 5, whole.len() / 2, whole.len() - 1] {
        let (mut control, phase) = guest.machine.control().unwrap();
        assert_eq!(phase, Phase::AwaitPolicy, "before {cut} bytes");
        control.send_bytes(&whole[..cut]).unwrap();
    }
    guest.session = guest.machine.session().unwrap();
    for part in [&image[..0], &image[..image.len() / 2], &image[1..]] {
        assert_eq!(guest.refused(Request::SetPolicy { image: part }), Reason::NotHostData);
    }
    assert_eq!(guest.refused(Request::GetProperties), Reason::WrongPhase { phase: Phase::AwaitPolicy });
    guest.accept(image);
    guest.mount_layers(&honest);
    drop(guest);
    let guest = stage.boot([0; 32], honest.disks());
    for image in [&[][..], image] {
        assert_eq!(guest.refused(Request::SetPolicy { image }), Reason::NotHostData);
    }
    assert_eq!(guest.refused(Request::GetProperties), Reason::WrongPhase { phase: Phase::AwaitPolicy });
}

#[test]
fn p05_what_is_hashed_is_what_runs_however_slowly_it_arrives() {
    let Some(stage) = stage() else { return };
    let honest = stage.workload("busybox", &["true"], GenerateOptions::default());
    let open = policy("package policy\napi_version := \"0.12.0\"\nget_properties := {\"allowed\": true}\n");
    let mut guest = stage.boot(honest.policy.host_data(), honest.disks());
    drop(guest.session);
    let (mut control, _) = guest.machine.control().unwrap();
    // The vouched-for bytes in many pieces, and in the same breath another policy behind them.
    let first = encode(&ToGuest { sequence: 1, request: Request::SetPolicy { image: &honest.policy.image } });
    let second = encode(&ToGuest { sequence: 2, request: Request::SetPolicy { image: &open.image } });
    let first = first.unwrap();
    for piece in first.chunks(first.len() / 7) {
        control.send_bytes(piece).unwrap();
    }
    control.send_bytes(&second.unwrap()).unwrap();
    let replies: Vec<Vec<u8>> = (0..2).map(|_| control.receive().unwrap().expect("a reply")).collect();
    // Reply (1) to request 1: Ok (0), PolicyAccepted (1). Reply to request 2: refused (1) by Host (0), WrongPhase (2).
    assert_eq!(replies[0][..4], [1, 1, 0, 1]);
    assert_eq!(replies[1][..5], [1, 2, 1, 0, 2]);
    drop(control);
    guest.session = guest.machine.session().unwrap();
    guest.mount_layers(&honest);
}

#[test]
fn p06_a_policy_with_a_byte_too_many_is_refused_even_where_host_data_vouches_for_it() {
    let Some(stage) = stage() else { return };
    let honest = stage.workload("busybox", &["true"], GenerateOptions::default());
    let mut image = honest.policy.image.clone();
    image.push(0);
    let guest = stage.boot(parma_policy::host_data(&image), Vec::new());
    assert_eq!(guest.refused(Request::SetPolicy { image: &image }), Reason::PolicyInvalid);
    let guest = stage.boot(honest.policy.host_data(), Vec::new());
    guest.accept(&honest.policy.image);
}

#[test]
fn p08_a_policy_that_never_ends_costs_its_answer_and_no_more() {
    let Some(stage) = stage() else { return };
    let many: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    let policy = policy(&format!(
        "package policy\n\napi_version := \"0.12.0\"\nnumbers := [{}]\n\
         get_properties := {{\"allowed\": true}} if {{\n\tsome a in numbers\n\tsome b in numbers\n\tsome c in numbers\n\
         \tsome d in numbers\n\t((a + b) + c) + d == input.nothing\n}}\n\
         runtime_logging := {{\"allowed\": true}}\n",
        many.join(", "),
    ));
    // More than a policy may be long, and as long as it may be without being one.
    let long = vec![0; parma_guest::wire::MAX_POLICY];
    let guest = stage.boot(parma_policy::host_data(&long), Vec::new());
    assert_eq!(guest.refused(Request::SetPolicy { image: &long }), Reason::PolicyInvalid);
    let guest = stage.boot(policy.host_data(), Vec::new());
    guest.accept(&policy.image);
    for _ in 0..3 {
        let reason = guest.refused(Request::GetProperties);
        assert!(
            matches!(
                reason,
                Reason::Denied { how: Denied::Fault, .. } | Reason::Denied { how: Denied::Undefined, .. }
            ),
            "{reason:?}"
        );
        // The honest twin: what is simple to answer is answered after that as before.
        guest.done(Request::RuntimeLogging { enabled: true });
    }
}

#[test]
fn p09_a_pattern_never_matches_a_part() {
    let Some(stage) = stage() else { return };
    let patterns =
        stage.workload_with("busybox", &["sh", "-c", "echo A=$A B=$B"], GenerateOptions::default(), |text| {
            let rules = "{\"pattern\": \"A=1|B=2\", \"strategy\": \"re2\", \"required\": false}, \
                     {\"pattern\": \"C=1\\\\$\", \"strategy\": \"re2\", \"required\": false}, ";
            let marker = text.find("\"env_rules\": [").expect("rules") + "\"env_rules\": [".len();
            format!("{}{rules}{}", &text[..marker], &text[marker..])
        });
    let guest = stage.start(&patterns);
    let container = id('1');
    guest.mount_layers(&patterns);
    guest.mount_overlay(&patterns, &container);
    let with = |variable: &'static str| {
        let mut process = patterns.process(support::OUTPUT);
        process.env.push(variable).unwrap();
        Request::CreateContainer {
            container: &container,
            privileged: false,
            mounts: List::new(),
            seccomp: None,
            process,
        }
    };
    for variable in ["A=1xxxx", "LD_PRELOAD=/x;B=2", "xB=2", "C=1$:/evil", "C=1"] {
        let reason = guest.refused(with(variable));
        assert!(
            matches!(&reason, Reason::Denied { point: Point::CreateContainer, .. }),
            "{variable}: {reason:?}"
        );
    }
    let process = guest.started(with("A=1"));
    assert_eq!(guest.finish(process).0, "A=1 B=\n");
}

const FEED: &str = "example.com/tools";

/// A policy without its containers, which includes those of this issuer's fragments from version 2 on; and the fragment that has
/// them.
fn in_a_fragment(text: &str, issuer: &str) -> (String, String) {
    let (before, rest) = text.split_once("containers := [\n").expect("containers");
    let (containers, after) = rest.split_once("\n]\n").expect("their end");
    let includes = format!(
        "fragments := [{{\"issuer\": \"{issuer}\", \"feed\": \"{FEED}\", \"minimum_svn\": \"2\", \"includes\": [\"containers\"]}}]\n"
    );
    let alias = "load_fragment := data.framework.load_fragment\n";
    let alias = if text.contains(alias) { "" } else { alias };
    let fragment =
        format!("package fragment\n\nframework_version := \"0.5.0\"\n\ncontainers := [\n{containers}\n]\n");
    (format!("{before}containers := []\n{includes}{alias}{after}"), fragment)
}

/// A fragment with this content and number, honestly signed.
fn message(issuer: &str, source: &str, svn: i64) -> signer::Message {
    let image = parma_policy::fragment::compile_fragment("fragment.rego", source).unwrap().image;
    signer::Message::new(&signer::chain(), issuer, FEED, signer::int(svn), &image)
}

#[test]
fn f01_to_f04_a_fragment_adds_what_the_policy_includes_if_its_issuer_signed_it() {
    let Some(stage) = stage() else { return };
    let issuer = parma::fragment::issuer_of(&signer::chain()).unwrap();
    let mut source = String::new();
    // The policy has no containers of its own.
    let workload = stage.workload_with("busybox", &["echo", "hello"], GenerateOptions::default(), |text| {
        let (policy, fragment) = in_a_fragment(&text, &issuer);
        source = fragment;
        policy
    });
    let image = parma_policy::fragment::compile_fragment("fragment.rego", &source).unwrap().image;
    let message = |svn| message(&issuer, &source, svn);
    let guest = stage.start(&workload);
    let layer = || Request::MountDevice {
        device: "busybox0",
        root_hash: workload.layers[0].root_hash,
        data_blocks: workload.layers[0].data_blocks,
    };
    let unknown = |reason: Reason| {
        assert!(matches!(&reason, Reason::Denied { point: Point::MountDevice, .. }), "{reason:?}");
    };
    unknown(guest.refused(layer()));
    // F02, F04: not signed by the leaf; F03: no number, too low a number; F05: garbage.
    let forged = signer::Message { signer: 9, ..message(2) }.signed();
    for (envelope, problem) in [
        (forged.as_slice(), Problem::Signature),
        (b"garbage", Problem::Envelope),
        (
            &signer::Message::new(&signer::chain(), &issuer, FEED, signer::text("2"), &image).signed(),
            Problem::Svn,
        ),
    ] {
        assert_eq!(guest.refused(Request::LoadFragment { envelope }), Reason::Fragment { problem });
    }
    let reason = guest.refused(Request::LoadFragment { envelope: &message(1).signed() });
    assert!(matches!(&reason, Reason::Denied { point: Point::LoadFragment, .. }), "{reason:?}");
    // F01: a signed policy is no fragment.
    let open = policy("package policy\nmount_device := {\"allowed\": true}\n");
    let replacing =
        signer::Message::new(&signer::chain(), &issuer, FEED, signer::int(2), &open.image).signed();
    assert_eq!(
        guest.refused(Request::LoadFragment { envelope: &replacing }),
        Reason::Fragment { problem: Problem::Payload }
    );
    unknown(guest.refused(layer()));
    // The honest twin, on the same guest.
    guest.done(Request::LoadFragment { envelope: &message(3).signed() });
    assert_eq!(
        guest.refused(Request::LoadFragment { envelope: &message(2).signed() }),
        Reason::Fragment { problem: Problem::Rollback }
    );
    let process = guest.run(&workload, &id('1'), support::OUTPUT);
    assert_eq!(guest.finish(process).0, "hello\n");
}

/// F05: what counts is under the signature. F06: a fragment names no others where the policy does not say that it may. F08: a
/// receipt that is asked for is not there. Twin: the same feed's fragment without any of this.
#[test]
fn f05_f06_f08_a_fragment_that_says_it_elsewhere_or_for_others_or_without_its_receipt_adds_nothing() {
    let Some(stage) = stage() else { return };
    let issuer = parma::fragment::issuer_of(&signer::chain()).unwrap();
    let entry = |feed: &str, more: &str| {
        format!(
            r#"{{"issuer": "{issuer}", "feed": "{feed}", "minimum_svn": "1", "includes": ["containers"]{more}}}"#
        )
    };
    let (other, receipts) = ("example.com/other", "example.com/receipts");
    let mut source = String::new();
    let workload = stage.workload_with("busybox", &["echo", "hello"], GenerateOptions::default(), |text| {
        let (policy, fragment) = in_a_fragment(&text, &issuer);
        source = fragment + &format!("\nfragments := [{}]\n", entry(other, ""));
        let further = entry(receipts, r#", "required_receipts": ["*"]"#);
        policy.replace("fragments := [", &format!("fragments := [{further}, "))
    });
    let image = parma_policy::fragment::compile_fragment("fragment.rego", &source).unwrap().image;
    let of =
        |feed: &str, svn| signer::Message::new(&signer::chain(), &issuer, feed, signer::int(svn), &image);
    let guest = stage.start(&workload);
    let refused = |envelope: &[u8]| guest.refused(Request::LoadFragment { envelope });
    let mut by_no_algorithm = of(FEED, 2);
    by_no_algorithm.protected[0] = signer::pair(signer::int(1), signer::int(0));
    let algorithm = [vec![0xa1], signer::int(1), signer::int(-7)].concat();
    let mut unsigned = signer::Message { unprotected: algorithm, ..of(FEED, 2) };
    unsigned.protected.remove(0);
    let detached = signer::Message { payload: vec![0xf6], ..of(FEED, 2) };
    for (message, problem) in
        [(by_no_algorithm, Problem::Algorithm), (unsigned, Problem::Header), (detached, Problem::Envelope)]
    {
        assert_eq!(refused(&message.signed()), Reason::Fragment { problem });
    }
    let denied = |feed, checks: &[Check]| match refused(&of(feed, 2).signed()) {
        Reason::Denied { point: Point::LoadFragment, failed, .. } => assert_eq!(failed.into_vec(), checks),
        other => panic!("{other:?}"),
    };
    // The other entry asks for no receipt, so that check is not the one that failed.
    denied(receipts, &[]);
    let (root_hash, data_blocks) = (workload.layers[0].root_hash, workload.layers[0].data_blocks);
    let reason = guest.refused(Request::MountDevice { device: "busybox0", root_hash, data_blocks });
    assert!(matches!(&reason, Reason::Denied { point: Point::MountDevice, .. }), "{reason:?}");

    guest.done(Request::LoadFragment { envelope: &of(FEED, 2).signed() });
    denied(other, &[Check::InvalidFragmentFeed]);
    let process = guest.run(&workload, &id('1'), support::OUTPUT);
    assert_eq!(guest.finish(process).0, "hello\n");
}

/// I18: the issuer allowed an image once and has learnt better. What it signed then is still its signature; its number is too low.
#[test]
fn i18_an_image_that_its_issuer_has_replaced_does_not_come_back() {
    let Some(stage) = stage() else { return };
    let issuer = parma::fragment::issuer_of(&signer::chain()).unwrap();
    let hole = support::tar(&[(tar::EntryType::Regular, "etc/motd", "", b"with a hole\n")]);
    let layout = stage.layout("busybox", "old", &hole, |_| {});
    let (args, options) = (&["cat", "/etc/motd"][..], GenerateOptions::default());
    let (mut before, mut now) = (String::new(), String::new());
    let old = stage.workload_of(&layout, "old", args, options.clone(), |text| {
        before = in_a_fragment(&text, &issuer).1;
        text
    });
    let new = stage.workload_with("busybox", args, options, |text| {
        let (policy, fragment) = in_a_fragment(&text, &issuer);
        now = fragment;
        policy
    });
    let disks = old.disks().into_iter().chain(new.disks()).collect();
    let guest = stage.boot(new.policy.host_data(), disks);
    guest.accept(&new.policy.image);
    let (serial, top) = (old.serial(2), &old.layers[2]);
    let with_hole = || {
        let (root_hash, data_blocks) = (top.root_hash, top.data_blocks);
        let reason = guest.refused(Request::MountDevice { device: &serial, root_hash, data_blocks });
        assert!(matches!(&reason, Reason::Denied { point: Point::MountDevice, .. }), "{reason:?}");
    };
    let reason = guest.refused(Request::LoadFragment { envelope: &message(&issuer, &before, 1).signed() });
    assert!(matches!(&reason, Reason::Denied { point: Point::LoadFragment, .. }), "{reason:?}");
    with_hole();
    guest.done(Request::LoadFragment { envelope: &message(&issuer, &now, 2).signed() });
    // Nor after the one that is good.
    let reason = guest.refused(Request::LoadFragment { envelope: &message(&issuer, &before, 1).signed() });
    assert_eq!(reason, Reason::Fragment { problem: Problem::Rollback });
    with_hole();
    let process = guest.run(&new, &id('1'), support::OUTPUT);
    assert!(!guest.finish(process).0.contains("hole"));
}

/// B07: years before the certificates of a fragment begin and years after they end, everything is decided alike, to the last bit of
/// what the guest remembers of it. A container sees the host's time: that is why nothing is decided by it.
#[test]
fn b07_the_hosts_clock_decides_nothing() {
    let Some(stage) = stage() else { return };
    let issuer = parma::fragment::issuer_of(&signer::chain()).unwrap();
    let mut source = String::new();
    let args = ["date", "-u", "+%Y"];
    let workload = stage.workload_with("busybox", &args, GenerateOptions::default(), |text| {
        let (policy, fragment) = in_a_fragment(&text, &issuer);
        source = fragment;
        policy
    });
    let envelope = message(&issuer, &source, 2).signed();
    let heads = ["2001", "2099"].map(|year| {
        let mut config = stage.config(workload.policy.host_data(), workload.disks());
        config.extra_args = support::arguments(&["-rtc", &format!("base={year}-06-01T00:00:00")]);
        let guest = stage.launch(&config);
        guest.accept(&workload.policy.image);
        guest.done(Request::LoadFragment { envelope: &envelope });
        let process = guest.run(&workload, &id('1'), support::OUTPUT);
        let (seen, _) = guest.finish(process);
        let Reply::Audit(log) = guest.done(Request::ReadAudit { first: 1 }) else { panic!("no log") };
        (seen, log.head)
    });
    let [(early, first), (late, second)] = heads;
    assert_eq!(first, second);
    // What the machine's clock makes of a year it cannot say is its own affair.
    assert!(early.as_str() < "2020" && late.as_str() > "2041", "the clock was another: {early} {late}");
}

#[test]
fn p10_an_old_version_opens_nothing_that_the_policy_does_not_name() {
    let Some(stage) = stage() else { return };
    // In the reference this version predates every point but the first three; the others would then be allowed. (An
    // overlay needs scratch space, which is a decision of its own.)
    let old = stage.workload_with("busybox", &["true"], GenerateOptions::default(), |text| {
        let kept = ["mount_device", "mount_overlay", "scratch_mount", "create_container"];
        let lines = text.lines().filter(|line| match line.split_once(" := data.framework.") {
            Some((point, _)) => kept.contains(&point),
            None => true,
        });
        let text = lines.collect::<Vec<_>>().join("\n") + "\n";
        text.replace("api_version := \"0.12.0\"", "api_version := \"0.1.0\"")
    });
    let guest = stage.start(&old);
    let container = id('1');
    let process = guest.run(&old, &container, support::OUTPUT);
    guest.wait(process);
    let denied = |point, request| {
        let reason = guest.refused(request);
        assert!(
            matches!(&reason, Reason::Denied { point: at, how: Denied::Undefined, .. } if *at == point),
            "{point:?}: {reason:?}"
        );
    };
    let args = old.container.args.clone();
    let exec = old.process_with(&args, support::OUTPUT);
    denied(Point::ExecInContainer, Request::ExecInContainer { container: &container, process: exec });
    denied(Point::ShutdownContainer, Request::ShutdownContainer { container: &container });
    denied(Point::GetProperties, Request::GetProperties);
    denied(Point::GetProperties, Request::ReadAudit { first: 1 });
    denied(Point::DumpStacks, Request::DumpStacks);
    denied(Point::RuntimeLogging, Request::RuntimeLogging { enabled: true });
}

/// What other guests offer a host and this one does not is still the policy's to decide, and is not done even where it is
/// allowed. The policy here has the reference's most generous flags and rules.
#[test]
fn c17_what_the_guest_does_not_offer_is_asked_of_the_policy_and_never_done() {
    let Some(stage) = stage() else { return };
    let container = id('1');
    let external = |args: &'static [&'static str]| Request::ExecExternal {
        args: support::list(args.iter().copied()),
        env: List::new(),
        working_dir: "/",
    };
    let strict = stage.workload("busybox", &["sleep", "600"], GenerateOptions::default());
    let open = stage.workload_with("busybox", &["sleep", "600"], GenerateOptions::default(), |policy| {
        let mut policy = policy.replace("allow_dump_stacks := false", "allow_dump_stacks := true");
        for point in Point::UNOFFERED {
            policy += &format!("{} := {{\"allowed\": true}}\n", point.name());
        }
        policy + "exec_external := {\"allowed\": true, \"env_list\": [], \"allow_stdio_access\": false}\n"
    });
    let guest = stage.start(&strict);
    for point in Point::UNOFFERED {
        let reason = guest.refused(Request::Unoffered { point, container: &container });
        assert!(matches!(reason, Reason::Denied { point: at, .. } if at == point), "{point:?}: {reason:?}");
    }
    let reason = guest.refused(external(&["/init"]));
    assert!(matches!(reason, Reason::Denied { point: Point::ExecExternal, .. }), "{reason:?}");
    let reason = guest.refused(Request::DumpStacks);
    assert!(matches!(reason, Reason::Denied { point: Point::DumpStacks, .. }), "{reason:?}");
    drop(guest);

    let guest = stage.start(&open);
    for point in Point::UNOFFERED {
        let reason = guest.refused(Request::Unoffered { point, container: &container });
        assert_eq!(reason, Reason::Failed { step: Step::Unoffered, errno: 0 }, "{point:?}");
    }
    let reason = guest.refused(Request::Unoffered { point: Point::MountDevice, container: &container });
    assert_eq!(reason, Reason::Unknown { field: Field::Point });
    let reason = guest.refused(external(&["/init"]));
    assert_eq!(reason, Reason::Failed { step: Step::Execute, errno: 2 });
    // The twin: what it can do.
    let process = guest.run(&open, &container, Stdio::default());
    let Reply::Stacks(doing) = guest.done(Request::DumpStacks) else { panic!("no stacks") };
    assert_eq!(doing.len(), 1);
    assert!(doing[0].process == process && b"RSD".contains(&doing[0].state), "{doing:?}");
}

/// C17: everything that goes to a host of its own accord: the console, replies, the audit log. What a container has in its
/// environment, writes to files or is given as arguments is not in it.
#[test]
fn c17_nothing_of_a_containers_secrets_crosses_to_the_host() {
    let Some(stage) = stage() else { return };
    const CANARY: &str = "canary-5d41402abc4b2a76";
    let variable = format!("TOKEN={CANARY}");
    let options =
        GenerateOptions { env: vec![variable], stdio: false, logging: true, ..GenerateOptions::default() };
    let script = "echo $TOKEN; echo $TOKEN >&2; echo $TOKEN >/tmp/file; echo $TOKEN >/dev/console; \
                  echo $TOKEN >/dev/kmsg; echo $TOKEN >/proc/1/comm; kill -SEGV $$";
    let workload = stage.workload("busybox", &["sh", "-c", script], options);
    let guest = stage.start(&workload);
    guest.done(Request::RuntimeLogging { enabled: true });
    let container = id('1');
    let process = guest.run(&workload, &container, Stdio::default());
    guest.wait(process);
    let mut said = format!("{:?}", guest.done(Request::GetProperties));
    said += &format!("{:?}", guest.done(Request::ReadAudit { first: 1 }));
    let mut asked = workload.process(Stdio::default());
    asked.no_new_privileges = false;
    said +=
        &format!("{:?}", guest.refused(Request::ExecInContainer { container: &container, process: asked }));
    said += &guest.console();
    assert!(said.contains("create container"), "the guest's own log is on: {said}");
    assert!(!said.contains("canary"), "{said}");
    let unprintable = |c: char| c.is_control() && !matches!(c, '\n' | '\r');
    assert!(!guest.console().contains(unprintable), "{:?}", guest.console());
}
