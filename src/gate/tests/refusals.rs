//! What a refusal says: whose fault it is, and of the host's own values the one that it is about.

use super::*;
use crate::policy::Reason as Why;
use crate::wire::{MAX_ENDORSEMENT, MAX_POLICY};

#[test]
fn a_failure_is_put_down_to_the_host_the_image_or_the_guest() {
    let culprit = |step| Refusal::from(ActError { step, errno: 5, undone: true }).culprit;
    for step in [Step::FindDevice, Step::DeviceSize] {
        assert_eq!(culprit(step), Culprit::Host, "{step:?}");
    }
    for step in
        [Step::LayerFilesystem, Step::VolumeContent, Step::ResolveUser, Step::WorkingDir, Step::Execute]
    {
        assert_eq!(culprit(step), Culprit::Image, "{step:?}");
    }
    for step in [Step::Mount, Step::Memory, Step::Report] {
        assert_eq!(culprit(step), Culprit::Guest, "{step:?}");
    }
}

#[test]
fn the_longest_policy_and_endorsement_are_looked_at_and_longer_ones_are_not() {
    let mut gate = Gate::new([0; 32], &REPORT);
    let mut actor = Recorder::default();
    let bytes = vec![0; MAX_POLICY + 1];
    let mut ask =
        |length: usize| reason(gate.handle(&mut actor, &Request::SetPolicy { image: &bytes[..length] }));
    assert_eq!(ask(MAX_POLICY), Reason::NotHostData);
    assert_eq!(ask(MAX_POLICY + 1), Reason::Limit { field: Field::Policy });

    let mut gate = gate_with(&allowing(&[]));
    let mut ask = |certificates: usize, endorsement: usize| {
        let (certificates, endorsement) = (&bytes[..certificates], &bytes[..endorsement]);
        gate.handle(&mut actor, &Request::Endorse { certificates, endorsement })
            .map(drop)
            .map_err(|no| no.reason)
    };
    let limit = Err(Reason::Limit { field: Field::Endorsement });
    assert_eq!(ask(MAX_ENDORSEMENT, MAX_ENDORSEMENT), Ok(()));
    assert_eq!(ask(MAX_ENDORSEMENT + 1, 0), limit);
    assert_eq!(ask(0, MAX_ENDORSEMENT + 1), limit);
}

/// A policy that denies everything, for this reason.
fn denying(why: Why) -> Vec<u8> {
    let reasons = |builder: &mut Builder| {
        let (key, text) = (builder.string("errors"), builder.string(why.text()));
        let errors = builder.array(vec![text]);
        builder.object(vec![(key, errors)]).unwrap()
    };
    let no = |builder: &mut Builder| answer(builder, false, None);
    let yes = |builder: &mut Builder| answer(builder, true, None);
    let mut entries: Vec<(&str, Answer<'_>)> = vec![("data.policy.reason", &reasons)];
    for point in Point::ALL {
        let needed = [Point::MountOverlay, Point::ScratchMount].contains(point);
        let mount = *point == Point::MountDevice && why != Why::InvalidDeviceHash;
        entries.push((point.entry(), if needed || mount { &yes } else { &no }));
    }
    answering(&entries)
}

#[test]
fn d11_a_denial_repeats_the_hosts_own_value_that_it_is_about_and_nothing_else() {
    let said = |gate: &mut Gate, request: &Request<'_>| {
        let Reason::Denied { failed, value, .. } = reason(gate.handle(&mut Recorder::default(), request))
        else {
            panic!()
        };
        (failed[0], value)
    };
    let why = Why::InvalidDeviceHash;
    let hash = "07".repeat(32);
    assert_eq!(said(&mut gate_with(&denying(why)), &mount("a")), (why, Excerpt::of(&hash)));
    let nothing = (why, Excerpt::default());
    assert_eq!(said(&mut gate_with(&denying(why)), &Request::GetProperties), nothing);
    let container = id('1');
    for (why, value) in [
        (Why::InvalidCommand, "/bin/a"),
        (Why::InvalidWorkingDirectory, "/there"),
        (Why::InvalidUser, "someone"),
        (Why::InvalidEnvironment, ""),
    ] {
        let mut gate = gate_with(&denying(why));
        gate.handle(&mut Recorder::default(), &mount("a")).unwrap();
        let overlay = Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None };
        gate.handle(&mut Recorder::default(), &overlay).unwrap();
        let create = Request::CreateContainer {
            container: &container,
            privileged: false,
            mounts: List::new(),
            seccomp: None,
            process: Process { working_dir: "/there", user: "someone", ..process(&["/bin/a", "b"]) },
        };
        assert_eq!(said(&mut gate, &create), (why, Excerpt::of(value)));
    }
}
