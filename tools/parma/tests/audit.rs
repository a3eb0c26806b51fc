//! The audit log over the wire: what a host did is in it, and it can be played again without a machine.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::attest::audit::{self, Entry, Verdict};
use parma_guest::gate::action::User;
use parma_guest::gate::fields::UserSpec;
use parma_guest::wire::{Denied, List, Point, Reason, Request, Step, ToGuest, frame};
use parma_kms::channel::Offer;
use parma_kms::history::{Line, Log};
use parma_kms::verify::{Check, Evidence, Expected, Moment, Outcome, ReportData, Roots, verify};
use parma_layer::oci::{Image, Reference};
use parma_policy::generate::{Accounts, GenerateOptions};
use parma_vmm::Reply;
use support::{Guest, OUTPUT, Stage, Workload, id, list, stage};

fn read(guest: &Guest, first: u64) -> Box<audit::Excerpt> {
    match guest.done(Request::ReadAudit { first }) {
        Reply::Audit(excerpt) => excerpt,
        other => panic!("{other:?}"),
    }
}

fn body(request: Request<'_>) -> Vec<u8> {
    frame::encode(&ToGuest { sequence: 1, request }).unwrap().split_off(frame::HEADER)
}

/// What a host asks a guest for, in this order, after its policy.
fn requests<'a>(workload: &'a Workload, container: &'a str, layers: &'a [String]) -> Vec<Request<'a>> {
    let mount = |index: usize, root_hash| Request::MountDevice {
        device: &layers[layers.len() - 1 - index],
        root_hash,
        data_blocks: workload.layers[index].data_blocks,
    };
    let hash = |index: usize| workload.layers[index].root_hash;
    let create = || Request::CreateContainer {
        container,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: workload.process(OUTPUT),
    };
    let mut requests = vec![mount(0, [0; 32])];
    requests.extend((0..layers.len()).map(|index| mount(index, hash(index))));
    let layers = list(layers.iter().map(String::as_str));
    requests.extend([
        Request::MountDevice { device: "absent", root_hash: hash(0), data_blocks: 9 },
        Request::MountOverlay { container, layers, scratch: None },
        Request::RuntimeLogging { enabled: true },
        create(),
        create(),
        Request::ShutdownContainer { container },
        Request::UnmountOverlay { container },
    ]);
    requests
}

#[test]
fn everything_that_a_host_did_is_in_the_log_and_leads_to_its_head() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["sleep", "600"], GenerateOptions::default());
    let guest = stage.start(&workload);
    let (container, layers) = (id('1'), workload.overlay_layers());
    let requests = requests(&workload, &container, &layers);
    for request in &requests {
        // Some of them are refused, as is to be seen.
        let _ = guest.request(request.clone());
    }
    let log = read(&guest, 1);
    assert_eq!(log.before, workload.policy.host_data());
    assert_eq!(audit::follow(workload.policy.host_data(), 1, &log.entries), Some(log.head));

    // The policy, the requests, and the reading of the log.
    let verdicts: Vec<Verdict> = log.entries.iter().map(|entry| entry.verdict).collect();
    let no = |point| Verdict::Denied { point, how: Denied::No };
    let mut expected = vec![Verdict::Done, no(Point::MountDevice)];
    expected.extend(layers.iter().map(|_| Verdict::Done));
    expected.extend([
        Verdict::Failed { step: Step::FindDevice, errno: 19 },
        Verdict::Done,
        no(Point::RuntimeLogging),
        Verdict::Done,
        Verdict::Refused,
        Verdict::Done,
        Verdict::Done,
        Verdict::Done,
    ]);
    assert_eq!(verdicts, expected);
    let digests = requests.iter().map(|request| audit::request_digest(&body(request.clone())));
    assert!(
        log.entries[1..]
            .iter()
            .map(|entry| entry.request)
            .eq(digests.chain([audit::request_digest(&body(Request::ReadAudit { first: 1 }))]))
    );

    attested(&stage, &workload, &guest, &requests);
}

/// A report vouches for the history so far, and whoever has the policy and the requests sees that it follows.
fn attested(stage: &Stage, workload: &Workload, guest: &Guest, requests: &[Request<'_>]) {
    let offer = Offer::new().unwrap();
    let (nonce, key) = offer.parts();
    let Reply::Channel(_, opened) = guest.done(Request::OpenChannel { nonce, key: &key }) else { panic!() };
    let entries = read(guest, 1).entries.into_vec();
    let user = accounts(stage, workload);
    let policy = Request::SetPolicy { image: &workload.policy.image };
    let asked = [policy].into_iter().chain(requests.iter().cloned()).chain([Request::ReadAudit { first: 1 }]);
    let lines = asked.zip(&entries).map(|(request, entry)| {
        let user = (entry.user != [0; 32]).then_some(&user);
        Line::new(entry, &body(request)[1..], user).unwrap()
    });
    let base64 = |bytes: &[u8]| STANDARD.encode(bytes);
    let log = Log {
        nonce: base64(&nonce),
        peer_key: base64(&key),
        guest_key: base64(&opened.key),
        report: base64(&opened.report),
        certificates: Vec::new(),
        entries: lines.collect(),
    };
    let chain = guest.machine.chain().to_der().unwrap();
    let roots = Roots::amd().with_emulated(&chain[2]).unwrap();
    let judged = |log: &Log| {
        let report = log.report().unwrap();
        let evidence = Evidence { report: &report, certificates: &chain, ..Evidence::default() };
        let report_data =
            log.report_data(workload.policy.host_data()).unwrap_or(ReportData::Exactly([0; 64]));
        let expected = Expected { report_data: Some(report_data), ..stage.expected(workload) };
        let mut list = verify(&evidence, &expected, &roots, Moment::now());
        log.judge(&mut list, &workload.policy.image);
        list
    };
    let list = judged(&log);
    assert!(list.passed(), "{:?}", list.first_failure());
    assert_eq!(list.outcome(Check::AuditDecisions), Outcome::Pass);
    let fails = |change: &dyn Fn(&mut Log), on: Check| {
        let mut log = log.clone();
        change(&mut log);
        let list = judged(&log);
        assert!(!list.passed());
        assert_eq!(list.outcome(on), Outcome::Fail, "{on}");
        // What rests on the chain falls with it; nothing before what is wrong does.
        let audit = [Check::AuditChain, Check::AuditRequests, Check::AuditDecisions];
        let first = audit.into_iter().find(|check| list.outcome(*check) == Outcome::Fail);
        assert_eq!(first, Some(on));
    };
    // The host leaves out what it did, moves it, or has the guest say something else.
    fails(&|log| drop(log.entries.remove(2)), Check::AuditChain);
    fails(&|log| drop(log.entries.pop()), Check::AuditChain);
    fails(&|log| log.entries.swap(2, 3), Check::AuditChain);
    fails(
        &|log| {
            let entry = Entry { verdict: Verdict::Done, ..log.entries[1].entry().unwrap() };
            log.entries[1] = Line::new(&entry, &[], None).unwrap();
        },
        Check::AuditChain,
    );
    // It shows another request than the one that it made, or another user.
    let other = base64(&body(Request::PowerOff)[1..]);
    fails(&|log| log.entries[1].request.clone_from(&other), Check::AuditRequests);
    let create = entries.iter().position(|entry| entry.user != [0; 32]).unwrap();
    fails(&|log| log.entries[create].user = None, Check::AuditRequests);
    // A guest that decides otherwise than its policy, but reports honestly what it did.
    let requests = || {
        let lie = |entry: &mut Entry| entry.verdict = Verdict::Done;
        let state = |entry: &mut Entry| entry.state[0] ^= 1;
        [(1, lie as fn(&mut Entry)), (create, state)]
    };
    for (at, change) in requests() {
        let mut lines = log.clone();
        let mut changed = lines.entries[at].entry().unwrap();
        change(&mut changed);
        lines.entries[at].entry = Line::new(&changed, &[], None).unwrap().entry;
        let all: Vec<Entry> = lines.entries.iter().map(|line| line.entry().unwrap()).collect();
        let head = audit::follow(workload.policy.host_data(), 1, &all).unwrap();
        let mut list = judged(&log);
        // As if the report vouched for that head.
        assert_ne!(head, opened.audit);
        lines.judge(&mut list, &workload.policy.image);
        assert_eq!(list.outcome(Check::AuditRequests), Outcome::Pass);
        assert_eq!(list.outcome(Check::AuditDecisions), Outcome::Fail);
        let item = list.items.iter().find(|item| item.check == Check::AuditDecisions).unwrap();
        assert!(item.detail.starts_with(&format!("entry {} does not follow", at + 1)), "{}", item.detail);
    }
}

/// The user of the workload's processes, in the container's own files.
fn accounts(stage: &Stage, workload: &Workload) -> User {
    let reference = format!("oci:{}:latest", stage.fixtures.join("busybox").display());
    let image = Image::open(&Reference::parse(&reference).unwrap()).unwrap();
    let spec = UserSpec::parse(&workload.container.user).unwrap();
    Accounts::read(&image).unwrap().user(spec).unwrap()
}

#[test]
fn a_policy_that_keeps_its_properties_to_itself_keeps_its_log_too() {
    let Some(stage) = stage() else { return };
    let options = GenerateOptions { properties: false, ..GenerateOptions::default() };
    let workload = stage.workload("busybox", &["true"], options);
    let guest = stage.start(&workload);
    let reason = guest.refused(Request::ReadAudit { first: 1 });
    assert!(matches!(reason, Reason::Denied { point: Point::GetProperties, .. }), "{reason:?}");
}
