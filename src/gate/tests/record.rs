//! What the audit log says of what was asked.

use super::answers::Peer;
use super::*;
use crate::attest::audit::{Entry, follow};
use crate::wire::Order;

/// A request's body as its frame would have it: its number, then the request.
fn body(request: &Request<'_>) -> Vec<u8> {
    [vec![1], frame_body(request)].concat()
}

fn serve(gate: &mut Gate, actor: &mut Recorder, request: &Request<'_>) -> Result<(), Reason> {
    gate.serve(actor, request, &body(request)).map(drop).map_err(|refusal| refusal.reason)
}

/// All that the log has, checked up to its head.
fn entries(gate: &Gate, host_data: [u8; 32]) -> Vec<Entry> {
    let read = gate.audit.read(1);
    assert_eq!(read.before, host_data);
    assert_eq!(follow(host_data, 1, &read.entries), Some(gate.audit_head()));
    read.entries.to_vec()
}

#[test]
fn every_request_is_in_the_log_with_what_was_asked_of_the_policy_and_what_came_of_it() {
    let image = allowing(&[Point::MountDevice, Point::MountOverlay, Point::ScratchMount]);
    let host_data: [u8; 32] = Sha256::digest(&image).into();
    let mut gate = Gate::new(host_data, &REPORT);
    let mut actor = Recorder::default();
    serve(&mut gate, &mut actor, &mount("a")).unwrap_err();
    serve(&mut gate, &mut actor, &Request::SetPolicy { image: b"other" }).unwrap_err();
    assert_eq!(entries(&gate, host_data), [], "before the policy");
    let container = id('1');
    let overlay = Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None };
    let set_policy = Request::SetPolicy { image: &image };
    let unmount = Request::UnmountOverlay { container: &container };
    let again = mount("a");
    let (point, how) = (Point::UnmountOverlay, Denied::Undefined);
    let bit = |point: Point| 1u32 << point as u32;
    let both = bit(Point::MountOverlay) | bit(Point::ScratchMount);
    let (step, errno) = (Step::Mount, 5);
    let asked = [
        (&set_policy, 0, Verdict::Done),
        (&again, bit(Point::MountDevice), Verdict::Done),
        (&overlay, both, Verdict::Done),
        (&again, 0, Verdict::Refused),
        (&unmount, bit(point), Verdict::Denied { point, how }),
        (&mount("b"), bit(Point::MountDevice), Verdict::Failed { step, errno }),
    ];
    for (request, _, verdict) in &asked {
        if matches!(verdict, Verdict::Failed { .. }) {
            actor.fail = Some(ActError { step, errno, undone: true });
        }
        assert_eq!(serve(&mut gate, &mut actor, request).is_ok(), *verdict == Verdict::Done);
    }
    let log = entries(&gate, host_data);
    assert_eq!(log.len(), asked.len());
    for (entry, (request, points, verdict)) in log.iter().zip(&asked) {
        assert_eq!((entry.points, entry.verdict), (*points, *verdict), "{request:?}");
        assert_eq!(entry.request, audit::request_digest(&body(request)));
        assert_eq!(entry.user, [0; 32]);
    }
    assert_eq!(log[5].state, gate.engine.as_ref().unwrap().state_digest());
}

#[test]
fn a_log_that_is_played_again_has_the_same_head() {
    let image = allowing(Point::ALL);
    let host_data: [u8; 32] = Sha256::digest(&image).into();
    let mut gate = Gate::new(host_data, &REPORT);
    let mut actor = Recorder::default();
    serve(&mut gate, &mut actor, &Request::SetPolicy { image: &image }).unwrap();
    serve(&mut gate, &mut actor, &mount("a")).unwrap();
    serve(&mut gate, &mut actor, &mount("a")).unwrap_err();
    let log = entries(&gate, host_data);

    let mut again = Gate::new(host_data, &REPORT);
    let mut actor = Recorder::default();
    serve(&mut again, &mut actor, &Request::SetPolicy { image: &image }).unwrap();
    again.replay(&mut actor, &Order::Request(mount("a")), &body(&mount("a")));
    assert_eq!(actor.done.len(), 1, "it is done again");
    let before = again.audit_head();
    again.pass_over(&body(&mount("a")), &log[2]);
    assert_ne!(again.audit_head(), before);
    assert_eq!(entries(&again, host_data), log);
}

#[test]
fn k01_the_log_says_of_a_sealed_message_what_came_of_what_was_in_it() {
    let image = allowing(&[Point::GetProperties]);
    let host_data: [u8; 32] = Sha256::digest(&image).into();
    let mut gate = Gate::new(host_data, &REPORT);
    let mut actor = Recorder::default();
    serve(&mut gate, &mut actor, &Request::SetPolicy { image: &image }).unwrap();
    let mut peer = Peer::open(&mut gate, &mut actor);
    let (point, how) = (Point::RuntimeLogging, Denied::Undefined);
    for (request, points, verdict) in [
        (Request::GetProperties, 1 << Point::GetProperties as u32, Verdict::Done),
        (Request::RuntimeLogging { enabled: true }, 1 << point as u32, Verdict::Denied { point, how }),
    ] {
        let message = peer.seal(&Order::Request(request));
        serve(&mut gate, &mut actor, &Request::Sealed { channel: peer.number, message: &message }).unwrap();
        let last = entries(&gate, host_data).pop().unwrap();
        assert_eq!((last.points, last.verdict), (points, verdict));
    }
}
