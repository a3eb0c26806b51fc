//! What a guest shows of itself and what is released to it: attacks K01, K02, K05 and K14 on the real VM, with the host in between.

mod support;

use parma_guest::wire::{Field, List, Order, Reason, Reply as Told, Request};
use parma_kms::channel::{Offer, Refused};
use parma_kms::verify::{Check, Evidence, Expected, Moment, Roots};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Reply;
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
        let Reply::Channel(_, key, report) = guest.done(Request::OpenChannel { nonce, key: &key }) else {
            panic!()
        };
        (key, report)
    };
    let accept = |offer: Offer, key: &[u8; 65], report: &[u8]| {
        let evidence = Evidence { report, certificates: &chain, ..Evidence::default() };
        match offer.accept(key, &evidence, &expected, &roots, Moment::now()) {
            Ok(_) => None,
            Err(Refused::Evidence(list)) => list.first_failure().map(|item| item.check),
            Err(Refused::Key) => panic!(),
        }
    };
    let offer = Offer::new().unwrap();
    let (key, report) = open(&first, offer.parts());
    assert_eq!(accept(offer, &key, &report[..]), None, "the honest one");
    // K02: the same answer to another offer.
    assert_eq!(accept(Offer::new().unwrap(), &key, &report[..]), Some(Check::ReportData));
    // K01: the host puts its own key beside the guest's report.
    let (offer, host) = (Offer::new().unwrap(), Offer::new().unwrap());
    let (_, report) = open(&first, offer.parts());
    assert_eq!(accept(offer, &host.parts().1, &report[..]), Some(Check::ReportData));
    // The host offers itself to the guest, and the guest's answer to the peer.
    let (offer, host) = (Offer::new().unwrap(), Offer::new().unwrap());
    let (key, report) = open(&first, (offer.parts().0, host.parts().1));
    assert_eq!(accept(offer, &key, &report[..]), Some(Check::ReportData));
    // Another processor's report.
    let offer = Offer::new().unwrap();
    let (key, report) = open(&second, offer.parts());
    assert!(matches!(accept(offer, &key, &report[..]), Some(Check::Chip | Check::Signature)));
}
