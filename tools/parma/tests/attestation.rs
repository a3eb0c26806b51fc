//! Containers attest themselves, and the owner of a guest runs processes in it that the host cannot listen to: in the VM.

mod support;

use parma_guest::attest::service::{DIRECTORY, DIRECTORY_VARIABLE};
use parma_guest::wire::{
    Denied, ExitStatus, Field, List, Mount, Order, Point, Reason, Refusal, Reply as Told, Request, Source,
    Stdio, Step, Stream,
};
use parma_kms::stream::{Reader, Writer};
use parma_kms::verify::{Check, Evidence, Expected, Moment, ReportData, Roots, RuntimeHash, verify};
use parma_policy::generate::GenerateOptions;
use std::io::{Read, Write};
use support::{Guest, Peer, Workload, id, stage, strings};

/// A container that asks for a report, as a sidecar does, shows the policy, and waits for a secret.
const SIDECAR: &str = "\
import sys
sys.stderr = sys.stdout
import base64, hashlib, os, socket, time
place = os.environ['UVM_SECURITY_CONTEXT_DIR']
def ask(question):
    s = socket.socket(socket.AF_UNIX)
    s.connect(place + '/attest.sock')
    s.sendall(question)
    report = b''
    while piece := s.recv(4096):
        report += piece
    return report
print(ask(hashlib.sha256(b'the runtime data').digest() + bytes(16)).hex())
print(hashlib.sha256(base64.b64decode(open(place + '/security-policy-base64').read())).hexdigest())
print(open(place + '/host-amd-cert-base64').read(), os.path.exists('/dev/sev-guest'))
print(ask(bytes(range(48)))[0x50:0x90].hex(), flush=True)
while not os.path.exists(place + '/secrets/token'):
    time.sleep(0.05)
print(open(place + '/secrets/token').read(), flush=True)
";

const ATTESTATION: Mount<'static> =
    Mount { source: Source::Attestation, destination: DIRECTORY, read_only: true };

fn create<'a>(workload: &'a Workload, container: &'a str, stdio: Stdio, mount: Mount<'a>) -> Request<'a> {
    let mounts = List::from_vec(vec![mount]).unwrap();
    Request::CreateContainer {
        container,
        privileged: false,
        mounts,
        seccomp: None,
        process: workload.process(stdio),
    }
}

fn ordered<'m>(
    peer: &mut Peer,
    guest: &Guest,
    order: &Order<'_>,
    message: &'m mut Vec<u8>,
) -> Result<Told<'m>, Refusal> {
    *message = peer.ask(guest, order);
    peer.open(message)
}

#[test]
fn k03_a_container_attests_itself_and_gets_no_report_that_passes_for_the_inits() {
    let Some(stage) = stage() else { return };
    let options =
        GenerateOptions { attestation: true, exec: vec![strings(&["cat"])], ..GenerateOptions::default() };
    let workload = stage.workload("python", &["python3", "-c", SIDECAR], options);
    assert!(workload.container.env.contains(&format!("{DIRECTORY_VARIABLE}={DIRECTORY}")));
    let guest = stage.start(&workload);
    guest.mount_layers(&workload);
    let container = id('1');
    guest.mount_overlay(&workload, &container);
    guest.done(Request::Endorse { certificates: b"chain", endorsement: b"" });
    let long = vec![0; (64 << 10) + 1];
    let refused = guest.refused(Request::Endorse { certificates: &long, endorsement: b"" });
    assert_eq!(refused, Reason::Limit { field: Field::Endorsement });
    // Only where the policy says, and never to be written to.
    let elsewhere = Mount { destination: "/elsewhere", ..ATTESTATION };
    let refused = guest.refused(create(&workload, &container, support::OUTPUT, elsewhere));
    assert!(
        matches!(refused, Reason::Denied { point: Point::CreateContainer, how: Denied::No, .. }),
        "{refused:?}"
    );
    let writable = Mount { read_only: false, ..ATTESTATION };
    let refused = guest.refused(create(&workload, &container, support::OUTPUT, writable));
    assert!(matches!(refused, Reason::Invalid { field: Field::Mounts, .. }), "{refused:?}");

    let process = guest.started(create(&workload, &container, support::OUTPUT, ATTESTATION));
    let mut output = guest.attach(process, Stream::Stdout);
    let mut line = || support::read_until(&mut output, "\n").trim().to_owned();
    let report = parma_kms::verify::from_hex::<1184>(&line()).expect("a report");
    let chain = guest.machine.chain().to_der().unwrap();
    let roots = Roots::amd().with_emulated(&chain[2]).unwrap();
    let evidence = Evidence { report: &report, certificates: &chain, ..Evidence::default() };
    let judged = |data: &[u8]| {
        let report_data = Some(ReportData::HashOf(RuntimeHash::Sha256, data.to_vec()));
        let expected = Expected { report_data, ..stage.expected(&workload) };
        verify(&evidence, &expected, &roots, Moment::now()).first_failure().map(|item| item.check)
    };
    assert_eq!(judged(b"the runtime data"), None);
    assert_eq!(judged(b"other data"), Some(Check::ReportData));
    assert_eq!(line(), parma::output::hex(&workload.policy.host_data()));
    assert_eq!(line(), "Y2hhaW4= False", "what the host gave, and no device of the PSP's");
    let first: Vec<u8> = (0..48).chain([0; 16]).collect();
    assert_eq!(line(), parma::output::hex(&first), "the last 16 bytes are not the container's");

    // A secret comes sealed, once.
    let mut peer = Peer::of(&guest, &stage.expected(&workload)).unwrap();
    let mut message = Vec::new();
    let secret = |name| Order::Secret { container: &container, name, content: b"what only its owner knew" };
    let refusal = ordered(&mut peer, &guest, &secret("../token"), &mut message).unwrap_err();
    assert!(matches!(refusal.reason, Reason::Invalid { field: Field::Secret, .. }), "{refusal:?}");
    assert_eq!(ordered(&mut peer, &guest, &secret("token"), &mut message), Ok(Told::Done));
    let refusal = ordered(&mut peer, &guest, &secret("token"), &mut message).unwrap_err();
    assert_eq!(refusal.reason, Reason::Failed { step: Step::Attestation, errno: 17 });
    assert_eq!(line(), "what only its owner knew");
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
}

/// The canary goes in and comes out sealed, and is nowhere in what crossed to the host.
#[test]
fn k02_the_host_carries_a_sealed_process_and_can_neither_read_nor_change_it() {
    let Some(stage) = stage() else { return };
    let cat = strings(&["cat"]);
    let options = GenerateOptions { exec: vec![cat.clone()], ..GenerateOptions::default() };
    let workload = stage.workload("busybox", &["sleep", "600"], options);
    let guest = stage.start(&workload);
    let container = id('1');
    guest.run(&workload, &container, support::OUTPUT);
    let mut peer = Peer::of(&guest, &stage.expected(&workload)).unwrap();
    let stdio = Stdio { stdin: true, ..support::OUTPUT };
    let start = |args: &[String], peer: &mut Peer| {
        let process = workload.process_with(args, stdio);
        let exec = Order::Request(Request::ExecInContainer { container: &container, process });
        let mut message = Vec::new();
        match ordered(peer, &guest, &exec, &mut message) {
            Ok(Told::Started { process }) => Ok(process),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(refusal.reason),
        }
    };
    // Nothing is allowed to a peer that is not allowed to the host.
    let denied = start(&strings(&["sh"]), &mut peer).unwrap_err();
    assert!(matches!(denied, Reason::Denied { point: Point::ExecInContainer, .. }), "{denied:?}");

    let canary = "a canary that the host must not hear";
    let process = start(&cat, &mut peer).unwrap();
    let exporter = peer.exporter();
    let mut sent = Vec::new();
    let mut writer = Writer::new(&exporter, process, &mut sent).unwrap();
    writer.write_all(canary.as_bytes()).unwrap();
    writer.finish().unwrap();
    guest.attach(process, Stream::Stdin).write_all(&sent).unwrap();
    let mut crossed = Vec::new();
    guest.attach(process, Stream::Stdout).read_to_end(&mut crossed).unwrap();
    let mut text = String::new();
    Reader::new(&exporter, process, Stream::Stdout, &crossed[..]).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, canary);
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
    for seen in [&sent, &crossed] {
        assert!(!seen.windows(8).any(|part| canary.as_bytes().windows(8).any(|of| of == part)));
    }
    // What the host cuts off, changes, or takes for another stream is an error for whoever reads.
    let read = |records: &[u8], stream| {
        Reader::new(&exporter, process, stream, records).unwrap().read_to_end(&mut Vec::new())
    };
    let kind = |result: std::io::Result<usize>| result.unwrap_err().kind();
    let ended = crossed.len() - (3 + 16);
    assert_eq!(kind(read(&crossed[..ended], Stream::Stdout)), std::io::ErrorKind::UnexpectedEof);
    let mut changed = crossed.clone();
    changed[5] ^= 1;
    assert_eq!(kind(read(&changed, Stream::Stdout)), std::io::ErrorKind::InvalidData);
    assert_eq!(kind(read(&crossed, Stream::Stderr)), std::io::ErrorKind::InvalidData);

    // To the process the host's records are none: it gets what came before, and no end.
    let process = start(&cat, &mut peer).unwrap();
    let mut sent = Vec::new();
    Writer::new(&exporter, process, &mut sent).unwrap().write_all(b"honest").unwrap();
    let again = sent.clone();
    let mut input = guest.attach(process, Stream::Stdin);
    input.write_all(&[sent, again].concat()).unwrap();
    let _ = input.read_to_end(&mut Vec::new());
    let output = guest.attach(process, Stream::Stdout);
    let mut reader = Reader::new(&exporter, process, Stream::Stdout, output).unwrap();
    let mut text = [0; 6];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"honest");
    let processes = match guest.done(Request::GetProperties) {
        parma_vmm::Reply::Properties(properties) => properties.processes,
        other => panic!("{other:?}"),
    };
    assert!(processes.iter().any(|state| state.process == process && state.exited.is_none()), "it waits");
}
