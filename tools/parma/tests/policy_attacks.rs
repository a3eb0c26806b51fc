//! The host chooses, changes or withholds the policy: attacks P01–P03, P05, P06, P10 on the real VM.

mod support;

use parma_guest::point::Point;
use parma_guest::wire::frame::encode;
use parma_guest::wire::{Denied, List, Phase, Reason, Request, ToGuest};
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
fn p10_an_old_version_opens_nothing_that_the_policy_does_not_name() {
    let Some(stage) = stage() else { return };
    // In the reference this version predates every point but the first three, which would then be allowed.
    let old = stage.workload_with("busybox", &["true"], GenerateOptions::default(), |text| {
        let kept = ["mount_device", "mount_overlay", "create_container"];
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
    denied(Point::RuntimeLogging, Request::RuntimeLogging { enabled: true });
}
