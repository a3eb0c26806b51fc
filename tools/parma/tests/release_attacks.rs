//! What a guest shows of itself and what is released to it: attacks K01, K02, K05, K14 and B12 on the real VM, with the host in between.

mod support;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::wire::{Field, List, Order, Reason, Reply as Told, Request, Step};
use parma_kms::bundle::Bundle;
use parma_kms::channel::{Offer, Refused};
use parma_kms::rules::Rules;
use parma_kms::service::{Failure, OfferRequest, SealedRequest, Service};
use parma_kms::store::Store;
use parma_kms::verify::{Check, Evidence, Expected, Moment, Roots};
use parma_policy::generate::GenerateOptions;
use parma_psp::Platform;
use parma_psp::layout::{LAUNCH_POLICY, POLICY_DEBUG, TCB};
use parma_vmm::{Disk, Opened, Reply, ScriptedDisk};
use serde_json::json;
use std::path::PathBuf;
use support::{Guest, Peer, Stage, Workload, stage};

/// A guest under the policy of this command.
fn guest(stage: &Stage, args: &[&str]) -> (Workload, Guest) {
    let workload = stage.workload("python", args, GenerateOptions::default());
    let guest = stage.boot(workload.policy.host_data(), Vec::new());
    guest.accept(&workload.policy.image);
    (workload, guest)
}

fn check_of(refused: Result<Peer, Refused>) -> Check {
    match refused {
        Err(Refused::Evidence(list)) => list.first_failure().unwrap().check,
        Err(Refused::Key) => panic!("the key"),
        Ok(_) => panic!("a channel"),
    }
}

/// The honest way, and what the host can do to it: nothing but cut it.
#[test]
fn k01_k02_k14_a_channel_reaches_the_attested_guest_and_the_host_can_only_cut_it() {
    let Some(stage) = stage() else { return };
    let (workload, guest) = guest(&stage, &["true"]);
    let expected = stage.expected(&workload);
    let mut peer = Peer::of(&guest, &expected).unwrap();
    // Another request through the channel is decided as in the open, and its reply is not the host's to read.
    let sealed = peer.ask(&guest, &Order::Request(Request::GetProperties));
    let mut opened = sealed.clone();
    match peer.open(&mut opened) {
        Ok(Told::Properties(properties)) => assert!(properties.containers.is_empty()),
        other => panic!("{other:?}"),
    }
    let denied =
        Order::Request(Request::MountOverlay { container: "no id", layers: List::default(), scratch: None });
    let mut sealed = peer.ask(&guest, &denied);
    let refusal = peer.open(&mut sealed).unwrap_err();
    assert!(matches!(refusal.reason, Reason::Invalid { field: Field::Container, .. }), "{refusal:?}");
    // One channel is not a way into another.
    let nested = Order::Request(Request::Sealed { channel: 1, message: &[0; 40] });
    let mut sealed = peer.ask(&guest, &nested);
    assert_eq!(peer.open(&mut sealed).unwrap_err().reason, Reason::Malformed);

    // K02, K14: repeated, changed, too short, for a channel that is not there: it ends, and nothing opens any more.
    let unknown = Reason::Unknown { field: Field::Channel };
    for change in [|m: &mut Vec<u8>| m[0] ^= 1, |m: &mut Vec<u8>| m.truncate(15), |m: &mut Vec<u8>| m.clear()]
    {
        let mut peer = Peer::of(&guest, &expected).unwrap();
        let mut message = peer.seal(&Order::Request(Request::GetProperties));
        let honest = message.clone();
        change(&mut message);
        assert_eq!(guest.refused(peer.request(&message)), unknown);
        assert_eq!(guest.refused(peer.request(&honest)), unknown, "after one that did not open");
    }
    let mut peer = Peer::of(&guest, &expected).unwrap();
    let message = peer.seal(&Order::Request(Request::GetProperties));
    assert!(matches!(guest.done(peer.request(&message)), Reply::Sealed(_)));
    assert_eq!(guest.refused(peer.request(&message)), unknown, "a replay");
    // K08: a key that is none.
    for key in [&[4; 65][..], &[0; 65], &[4; 64], &[]] {
        let refused = guest.refused(Request::OpenChannel { nonce: [0; 32], key });
        assert!(matches!(refused, Reason::Invalid { field: Field::Channel, .. }), "{refused:?}");
    }
}

/// Each of these reports is genuine, by its chain; none is for this peer's guest, offer and key.
#[test]
fn k01_k02_k05_a_report_of_another_guest_offer_or_policy_opens_no_channel() {
    let Some(stage) = stage() else { return };
    let (workload, first) = guest(&stage, &["true"]);
    let (other, second) = guest(&stage, &["false"]);
    let expected = stage.expected(&workload);
    assert_eq!(check_of(Peer::of(&second, &expected)), Check::HostData);
    assert!(Peer::of(&second, &stage.expected(&other)).is_ok());
    let measured = Expected { measurements: vec![[1; 48]], ..expected.clone() };
    assert_eq!(check_of(Peer::of(&first, &measured)), Check::Measurement);

    let chain = first.machine.chain().to_der().unwrap();
    let roots = Roots::amd().with_emulated(&chain[2]).unwrap();
    let open = |guest: &Guest, (nonce, key): ([u8; 32], [u8; 65])| {
        let Reply::Channel(_, opened) = guest.done(Request::OpenChannel { nonce, key: &key }) else {
            panic!()
        };
        opened
    };
    let accept = |offer: Offer, opened: &Opened| {
        let evidence = Evidence { report: &opened.report, certificates: &chain, ..Evidence::default() };
        match offer.accept(&opened.key, &opened.audit, &evidence, &expected, &roots, Moment::now()) {
            Ok(_) => None,
            Err(Refused::Evidence(list)) => list.first_failure().map(|item| item.check),
            Err(Refused::Key) => panic!(),
        }
    };
    let offer = Offer::new().unwrap();
    let honest = open(&first, offer.parts());
    assert_eq!(accept(offer, &honest), None, "the honest one");
    // K02: the same answer to another offer.
    assert_eq!(accept(Offer::new().unwrap(), &honest), Some(Check::ReportData));
    // K01: the host puts its own key, or another history, beside the guest's report.
    let (offer, host) = (Offer::new().unwrap(), Offer::new().unwrap());
    let opened = open(&first, offer.parts());
    assert_eq!(accept(offer, &Opened { key: host.parts().1, ..*opened }), Some(Check::ReportData));
    let offer = Offer::new().unwrap();
    let opened = open(&first, offer.parts());
    assert_eq!(accept(offer, &Opened { audit: [0; 32], ..*opened }), Some(Check::ReportData));
    // The host offers itself to the guest, and the guest's answer to the peer.
    let (offer, host) = (Offer::new().unwrap(), Offer::new().unwrap());
    let opened = open(&first, (offer.parts().0, host.parts().1));
    assert_eq!(accept(offer, &opened), Some(Check::ReportData));
    // Another processor's report.
    let offer = Offer::new().unwrap();
    let opened = open(&second, offer.parts());
    assert!(matches!(accept(offer, &opened), Some(Check::Chip | Check::Signature)));
}

/// A volume with this key, and its file.
fn volume_of(stage: &Stage, key: [u8; 32]) -> ([u8; 32], PathBuf) {
    let path = stage.file("unused", b"").with_file_name("volume.img");
    let owners = parma_layer::volume::Key::read(&mut &key[..]).unwrap();
    parma_layer::volume::Volume::create(&path, 20 << 20, &owners).unwrap();
    (parma_guest::target::volume::id(&key), path)
}

/// A command under a policy that names a volume.
fn workload_with(stage: &Stage, volume: &[u8; 32], args: &[&str]) -> Workload {
    let entry = format!(
        r#"{{"type": "bind", "source": "volume://{}", "destination": "/data", "options": ["rbind", "rshared", "rw"]}}"#,
        parma::output::hex(volume)
    );
    stage.workload_with("python", args, GenerateOptions::default(), |policy| {
        policy.replace("\"mounts\": []", &format!("\"mounts\": [{entry}]"))
    })
}

/// The host starts the same guest once more, on the same processor, with everything that the first was launched with and everything
/// that it was sent: the second has nothing that the first was told, and nobody takes it for the first.
#[test]
fn b12_a_guest_that_is_launched_again_knows_nothing_that_the_first_was_told() {
    let Some(stage) = stage() else { return };
    let key = [7; 32];
    let (volume, path) = volume_of(&stage, key);
    let workload = workload_with(&stage, &volume, &["true"]);
    let root = parma_psp::Root::new().unwrap();
    let launch = || {
        let disk = Disk::scripted(&ScriptedDisk::copy_of(&path).unwrap(), support::serial("volume"));
        let mut config = stage.config(workload.policy.host_data(), vec![disk]);
        config.root = Some(root.clone());
        let guest = stage.launch(&config);
        guest.accept(&workload.policy.image);
        // The disk is there for as long as its configuration is.
        (guest, config)
    };
    let answer = |guest: &Guest, (nonce, key): ([u8; 32], [u8; 65])| {
        let Reply::Channel(channel, opened) = guest.done(Request::OpenChannel { nonce, key: &key }) else {
            panic!("no channel")
        };
        (channel, opened)
    };
    let expected = stage.expected(&workload);
    let accept = |offer: Offer, guest: &Guest, opened: &Opened| {
        let chain = guest.machine.chain().to_der().unwrap();
        let roots = Roots::amd().with_emulated(&chain[2]).unwrap();
        let evidence = Evidence { report: &opened.report, certificates: &chain, ..Evidence::default() };
        offer.accept(&opened.key, &opened.audit, &evidence, &expected, &roots, Moment::now())
    };
    let ((first, _disk), (second, _other_disk)) = (launch(), launch());
    let open = Request::MountVolume { volume, device: "volume" };
    let closed = Reason::Failed { step: Step::ReleaseKey, errno: 126 };
    // The same offer to both, one answer to its peer.
    let offer = Offer::new().unwrap();
    let parts = offer.parts();
    let (channel, opened) = answer(&first, parts);
    let (other, others) = answer(&second, parts);
    assert_eq!((channel, opened.report[0x1a0..0x1e0] == others.report[0x1a0..0x1e0]), (other, true));
    assert_ne!(opened.key, others.key);
    let (mut peer, _) = accept(offer, &first, &opened).unwrap_or_else(|refused| panic!("{refused}"));
    let message = peer.seal(&Order::Key { key, least_generation: 0 }).unwrap();
    let unknown = Reason::Unknown { field: Field::Channel };
    assert_eq!(second.refused(Request::Sealed { channel: other, message: &message }), unknown);
    assert_eq!(second.refused(open.clone()), closed);
    // The answer of one beside the key of the other.
    let offer = Offer::new().unwrap();
    let ((_, own), (_, others)) = (answer(&first, offer.parts()), answer(&second, offer.parts()));
    let mixed = Opened { key: others.key, ..*own };
    assert!(matches!(accept(offer, &first, &mixed), Err(Refused::Evidence(list))
        if list.first_failure().map(|item| item.check) == Some(Check::ReportData)));
    // The twin: the first takes what was meant for it.
    assert!(matches!(first.done(Request::Sealed { channel, message: &message }), Reply::Sealed(_)));
    first.done(open.clone());
    assert_eq!(second.refused(open), closed);
}

/// The workflow of the paper with the key service in it: the volume opens in the guest that the key's rule is about, and in no
/// guest under another policy, on a platform that can be debugged or has old firmware, or with another's answer.
#[test]
fn k02_k05_a_volume_opens_only_in_the_guest_that_its_keys_rule_is_about() {
    let Some(stage) = stage() else { return };
    let key = [7; 32];
    let (volume, path) = volume_of(&stage, key);
    let workload = |args: &[&str]| workload_with(&stage, &volume, args);
    let (right, wrong) = (workload(&["true"]), workload(&["false"]));
    let expected = stage.expected(&right);
    let hex = |bytes: &[u8]| parma::output::hex(bytes);
    let rules = json!({"issuer": "https://kms.example", "keys": {"data": {
        "measurements": [hex(&expected.measurements[0])], "host_data": [hex(&expected.policies[0])],
        "minimum_tcb": "bootloader=10,snp=24,microcode=84",
    }}});
    let debug = Platform { policy: LAUNCH_POLICY | POLICY_DEBUG, ..Platform::default() };
    let old = Platform { tcb: parma_psp::Tcb { snp: 23, ..TCB }, ..Platform::default() };
    let cases = [
        (&right, Platform::default(), None),
        (&wrong, Platform::default(), Some("host-data: ")),
        (&right, debug, Some("debug: ")),
        (&right, old, Some("minimum-tcb: ")),
    ];
    for (workload, platform, refused) in cases {
        let disk = Disk::scripted(&ScriptedDisk::copy_of(&path).unwrap(), support::serial("volume"));
        let mut config = stage.config(workload.policy.host_data(), vec![disk]);
        config.platform = platform;
        let guest = stage.launch(&config);
        guest.accept(&workload.policy.image);
        let open = Request::MountVolume { volume, device: "volume" };
        let closed = Reason::Failed { step: Step::ReleaseKey, errno: 126 };
        assert_eq!(guest.refused(open.clone()), closed, "no key, no volume");

        let chain = guest.machine.chain().to_der().unwrap();
        let store = Store::open(&path.with_extension("db")).unwrap();
        let _ = store.import("data", &key);
        let roots = Roots::amd().with_emulated(&chain[2]).unwrap();
        let rules = Rules::parse(rules.to_string().as_bytes()).unwrap();
        let service = Service::new(store, rules, roots, Bundle::default()).unwrap();
        let base64 = |bytes: &[u8]| STANDARD.encode(bytes);
        let offer = service.offer(&OfferRequest::default()).unwrap();
        let part = |name: &str| STANDARD.decode(offer[name].as_str().unwrap()).unwrap();
        let nonce = part("nonce").try_into().unwrap();
        let Reply::Channel(channel, opened) = guest.done(Request::OpenChannel { nonce, key: &part("key") })
        else {
            panic!("no channel")
        };
        let answer: SealedRequest = serde_json::from_value(json!({
            "offer": offer["offer"], "name": "data", "key": base64(&opened.key), "audit": base64(&opened.audit),
            "report": base64(&opened.report), "certificates": chain.iter().map(|der| base64(der)).collect::<Vec<_>>(),
        }))
        .unwrap();
        match (service.release_sealed(&answer), refused) {
            (Ok(released), None) => {
                let message = STANDARD.decode(released["message"].as_str().unwrap()).unwrap();
                guest.done(Request::Sealed { channel, message: &message });
                guest.done(open);
                assert!(service.release_sealed(&answer).is_err(), "a replayed answer");
            }
            (Err(Failure::Refused(why, Some(_))), Some(check)) => {
                assert!(why.starts_with(check), "{why}");
                assert_eq!(guest.refused(open), closed);
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}
