//! The sidecar in a real guest: an ordinary container beside one that needs a key, with the guest's attestation directory and the
//! guest's network, against the real key service outside. Needs `PARMA_IMAGE` and `PARMA_FIXTURES`.

#[path = "../../parma/tests/support/mod.rs"]
mod support;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parma::pod::network_request;
use parma_guest::attest::service::DIRECTORY;
use parma_guest::wire::{List, Mount, Request, Source, Stdio, Stream};
use parma_kms::bundle::Bundle;
use parma_kms::rules::Rules;
use parma_kms::server::{self, Shared};
use parma_kms::service::Service;
use parma_kms::store::Store;
use parma_kms::verify::{Evidence, Expected, Moment, ReportData, Roots, RuntimeHash, from_hex, hex, verify};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Network;
use parma_vmm::network::GATEWAY;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use support::{Guest, OUTPUT, Workload, id, joined, stage};
use tar::EntryType;

const KEY: [u8; 32] = [0x77; 32];
/// What the host hands out as its builder's; nobody here judges it.
const ENDORSEMENT: &[u8] = b"an endorsement";

/// Asks the sidecar for what it is told to, one line of JSON after the other: a path, and what to post there.
const WORKLOAD: &str = "\
import json, socket, sys
for line in sys.stdin:
    path, body = json.loads(line)
    data = b'' if body is None else json.dumps(body).encode()
    method = 'GET' if body is None else 'POST'
    service = socket.create_connection(('127.0.0.1', 8080))
    head = f'{method} {path} HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\nContent-Length: {len(data)}\\r\\n\\r\\n'
    service.sendall(head.encode() + data)
    answer = b''
    while piece := service.recv(65536):
        answer += piece
    head, text = answer.split(b'\\r\\n\\r\\n', 1)
    print(json.dumps([int(head.split()[1]), json.loads(text)]), flush=True)
";

/// The sidecar as it lies in an image: without what debuggers read, where that can be taken off.
fn binary() -> Vec<u8> {
    let own = env!("CARGO_BIN_EXE_skr");
    let stripped = tempfile::NamedTempFile::new().unwrap();
    let strip = Command::new("strip").arg("-o").arg(stripped.path()).arg(own).status();
    let smaller = strip.is_ok_and(|status| status.success());
    std::fs::read(if smaller { stripped.path().to_str().unwrap() } else { own }).unwrap()
}

fn create(guest: &Guest, workload: &Workload, container: &str, stdio: Stdio, mounts: Vec<Mount<'_>>) -> u32 {
    let mounts = List::from_vec(mounts).unwrap();
    let process = workload.process(stdio);
    guest.started(Request::CreateContainer { container, privileged: false, mounts, seccomp: None, process })
}

/// The container that needs a key.
struct Asker {
    input: UnixStream,
    output: BufReader<UnixStream>,
    errors: UnixStream,
}

impl Asker {
    fn ask(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let mut line = String::new();
        let asked = writeln!(self.input, "{}", json!([path, body]));
        if asked.is_err() || self.output.read_line(&mut line).unwrap() == 0 {
            panic!("{path}: {}", support::read_all(self.errors.try_clone().unwrap()));
        }
        serde_json::from_str(&line).unwrap()
    }

    fn refused(&mut self, path: &str, body: &Value) -> (u16, String) {
        let (status, answer) = self.ask(path, body);
        (status, answer["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned())
    }
}

#[test]
fn k05_k10_the_sidecar_in_a_guest_gets_keys_for_the_container_beside_it_as_long_as_the_rule_is_about_that_guest()
 {
    let Some(stage) = stage() else { return };
    let own = rcgen::generate_simple_self_signed(vec![GATEWAY.to_string()]).unwrap();
    let (certificate, tls_key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let layer = support::tar(&[
        (EntryType::Regular, "usr/bin/skr", "", &binary()),
        (EntryType::Regular, "etc/kms.pem", "", certificate.as_bytes()),
    ]);
    let layout = stage.layout("python", "with-skr", &layer, |_| {});
    let workload = |args: &[&str], attestation| {
        let options = GenerateOptions { network: true, attestation, ..GenerateOptions::default() };
        stage.workload_of(&layout, "skr", args, options, |policy| policy)
    };
    let sidecar = workload(&["skr", "--ca", "/etc/kms.pem"], true);
    let asker = workload(&["python3", "-c", WORKLOAD], false);
    let policy = support::policy(&joined(&sidecar.container.policy(), &asker.container.policy()));

    // The service outside; it is told of the machine's root before there is evidence.
    let network = Network { outbound: true, forwards: Vec::new() };
    let mut config = stage.config(policy.host_data(), sidecar.disks());
    config.network = Some(network.clone());
    let root = parma_psp::Root::new().unwrap();
    config.root = Some(root.clone());
    let mut bundle = Bundle::default();
    bundle.add(root.certificate_pem().unwrap().as_bytes()).unwrap();
    let roots = Roots::amd().with_emulated(&bundle.certificates[0]).unwrap();
    let measurement = stage.image.measurement(config.vcpus).unwrap().0;
    let rules = |host_data: [u8; 32]| {
        let rule = json!({"measurements": [hex(&measurement)], "host_data": [hex(&host_data)]});
        let rules =
            json!({"issuer": "https://kms.example", "keys": {"data": rule, "default/key/data": rule}});
        Rules::parse(rules.to_string().as_bytes()).unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("kms.db")).unwrap();
    for name in ["data", "default/key/data"] {
        store.import(name, &KEY).unwrap();
    }
    let shared = Shared::new(Service::new(store, rules(policy.host_data()), roots.clone(), bundle).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let service = format!("{GATEWAY}:{}", listener.local_addr().unwrap().port());
    let tls = server::tls(certificate.as_bytes(), tls_key.as_bytes()).unwrap();
    runtime.spawn(server::run(listener, Some(tls), Arc::clone(&shared)));

    let guest = stage.launch(&config);
    guest.accept(&policy.image);
    guest.done(Request::SetUpNetwork(network_request(&network)));
    let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
    let chain = guest.machine.chain().to_der().unwrap();
    let certificates =
        json!({"vcekCert": pem(&chain[0]), "certificateChain": pem(&chain[1]) + &pem(&chain[2])});
    guest.done(Request::Endorse {
        certificates: certificates.to_string().as_bytes(),
        endorsement: ENDORSEMENT,
    });
    guest.mount_layers(&sidecar);
    let (first, second) = (id('1'), id('2'));
    guest.mount_overlay(&sidecar, &first);
    let attestation = Mount { source: Source::Attestation, destination: DIRECTORY, read_only: true };
    let process = create(&guest, &sidecar, &first, OUTPUT, vec![attestation]);
    let output = guest.attach(process, Stream::Stdout);
    let mut line = String::new();
    BufReader::new(&output).read_line(&mut line).unwrap();
    if line != "http://127.0.0.1:8080\n" {
        panic!("{line:?}, and {}", support::read_all(guest.attach(process, Stream::Stderr)));
    }
    guest.mount_overlay(&asker, &second);
    let process = create(&guest, &asker, &second, Stdio { stdin: true, ..OUTPUT }, Vec::new());
    let input = guest.attach(process, Stream::Stdin);
    let output = BufReader::new(guest.attach(process, Stream::Stdout));
    let mut asker = Asker { input, output, errors: guest.attach(process, Stream::Stderr) };

    assert_eq!(asker.ask("/status", &Value::Null), (200, json!({"message": "STATUS OK"})));
    let runtime_data = json!({"runtime_data": STANDARD.encode("what it vouches for")});
    let (status, answer) = asker.ask("/attest/raw", &runtime_data);
    assert_eq!(status, 200, "{answer}");
    let report = from_hex::<1184>(answer["report"].as_str().unwrap()).unwrap();
    let evidence = Evidence { report: &report, certificates: &chain, ..Evidence::default() };
    let expected = Expected {
        measurements: vec![measurement],
        policies: vec![policy.host_data()],
        report_data: Some(ReportData::HashOf(RuntimeHash::Sha256, b"what it vouches for".to_vec())),
        ..Expected::default()
    };
    let list = verify(&evidence, &expected, &roots, Moment::now());
    assert!(list.passed(), "{:?}", list.first_failure());
    // All that a relying party needs in one answer: report, chain, endorsement.
    let (status, answer) = asker.ask("/attest/combined", &runtime_data);
    assert_eq!(status, 200, "{answer}");
    let part = |name: &str| STANDARD.decode(answer[name].as_str().unwrap()).unwrap();
    let mut shown = Bundle::default();
    shown.add(&part("endorsements")).unwrap();
    let (report, endorsement) = (part("evidence"), part("uvm_endorsements"));
    let evidence = Evidence { report: &report, certificates: &shown.certificates, ..Evidence::default() };
    let list = verify(&evidence, &expected, &roots, Moment::now());
    assert!(list.passed(), "{:?}", list.first_failure());
    assert_eq!(
        (endorsement.as_slice(), &answer["endorsed_tcb"]),
        (ENDORSEMENT, &json!(hex(&report[0x180..0x188])))
    );
    let mut maa = runtime_data.clone();
    maa["maa_endpoint"] = json!(service);
    let (status, answer) = asker.ask("/attest/maa", &maa);
    let token = answer["token"].as_str().unwrap_or_else(|| panic!("{status} {answer}"));
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["x-ms-sevsnpvm-hostdata"], json!(hex(&policy.host_data())));
    assert_eq!(claims["x-parma-emulated"], json!(true));

    let release = json!({"maa_endpoint": service, "akv_endpoint": service, "kid": "data"});
    let (status, answer) = asker.ask("/key/release", &release);
    assert_eq!(status, 200, "{answer}");
    let key: Value = serde_json::from_str(answer["key"].as_str().unwrap()).unwrap();
    assert_eq!(key, json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(KEY)}));
    let resource = json!({"kbs_endpoint": service, "resource": "default/key/data"});
    let answer = asker.ask("/kbs/resource", &resource);
    assert_eq!(answer, (200, json!({"resource": STANDARD.encode(KEY)})));

    // The rule is about another policy now: neither way leads to a key, and the container hears which check failed.
    shared.service().set_rules(rules([0; 32]));
    for (path, body) in [("/key/release", &release), ("/kbs/resource", &resource)] {
        let (status, error) = asker.refused(path, body);
        assert!(status == 403 && error.contains("refuses: host-data: "), "{status} {error}");
    }
}
