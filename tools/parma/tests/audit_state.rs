//! Keys whose rules demand something of the guest's audit log: the guest's own gate is asked for things and keeps its log, a key
//! service judges it. No machine is needed for that.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma::workload::Policy;
use parma_guest::attest::audit::{self, Entry, Verdict};
use parma_guest::attest::channel::{Ephemeral, transcript};
use parma_guest::gate::Gate;
use parma_guest::gate::action::*;
use parma_guest::gate::fields::{ContainerId, UserSpec};
use parma_guest::wire::{Denied, Point, Reply, Request, Step, ToGuest, Usage, frame};
use parma_kms::bundle::Bundle;
use parma_kms::channel::random;
use parma_kms::history::Line;
use parma_kms::rules::Rules;
use parma_kms::service::{Failure, Service};
use parma_kms::store::Store;
use parma_kms::verify::{Roots, hex};
use parma_psp::{HostData, Measurement, Psp};
use serde_json::{Value, json};

const MEASUREMENT: [u8; 48] = [0x3e; 48];
const KEY: [u8; 32] = [0x77; 32];
const POLICY: &str = "package policy

api_version := \"0.12.0\"
framework_version := \"0.5.0\"

mount_device := {\"allowed\": true}
get_properties := {\"allowed\": true}
";

/// A machine in which whatever is allowed succeeds.
struct Machine {
    psp: Psp,
    /// The key of a volume, once it has come.
    key: Option<[u8; 32]>,
}

macro_rules! succeed {
    ($($name:ident $action:ty),* $(,)?) => {
        $(fn $name(&mut self, permit: Permit<$action>) -> Result<(), ActError> {
            let _ = permit.into_action();
            Ok(())
        })*
    };
}

impl Actor for Machine {
    succeed! {
        mount_device MountDevice, unmount_device UnmountDevice, mount_scratch MountScratch, unmount_scratch UnmountScratch,
        unmount_volume UnmountVolume, mount_overlay MountOverlay, unmount_overlay UnmountOverlay,
        create_container CreateContainer<'_>, exec_in_container ExecInContainer<'_>, signal_process SignalProcess,
        shutdown_container ShutdownContainer, update_container UpdateContainer, set_logging SetLogging,
        set_up_network SetUpNetwork<'_>, exec_external ExecExternal<'_>, resize_terminal ResizeTerminal, endorse Endorse<'_>,
        deliver_secret DeliverSecret<'_>,
    }

    fn keep_key(&mut self, permit: Permit<KeepKey>) -> Result<(), ActError> {
        let _ = permit.into_action();
        self.key = Some(KEY);
        Ok(())
    }

    fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError> {
        let _ = permit.into_action();
        Ok(1)
    }

    fn usage(&mut self, permit: Permit<GetUsage>) -> Result<Usage, ActError> {
        let _ = permit.into_action();
        Ok(Usage::default())
    }

    fn dump_stack(&self, permit: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        let _ = permit.into_action();
        Ok(None)
    }

    fn forget(&mut self, _: ProcessId) {}

    fn random(&self) -> Result<[u8; 32], ActError> {
        Ok(random().unwrap())
    }

    fn report(&self, data: &[u8; 64]) -> Result<[u8; 1184], ActError> {
        Ok(self.psp.report(data))
    }

    fn resolve_user(&self, _: &ContainerId, _: UserSpec<'_>) -> Result<User, ActError> {
        Err(ActError { step: Step::ResolveUser, errno: 2, undone: true })
    }
}

/// A guest, what it was asked for, and the key service.
struct Stage {
    policy: Policy,
    gate: Gate,
    machine: Machine,
    asked: Vec<Vec<u8>>,
    service: Service,
    _dir: tempfile::TempDir,
}

fn rules(host_data: &[u8; 32], demands: &Value) -> Rules {
    let rule = json!({"measurements": [hex(&MEASUREMENT)], "host_data": [hex(host_data)], "audit": demands});
    Rules::parse(json!({"issuer": "i", "keys": {"data": rule}}).to_string().as_bytes()).unwrap()
}

impl Stage {
    /// A guest that has its policy, a mounted device, and was refused something.
    fn new() -> Self {
        let policy = Policy::compile("policy.rego", POLICY).unwrap();
        let psp = Psp::new(HostData(policy.host_data()), Measurement(MEASUREMENT)).unwrap();
        let roots = Roots::amd().with_emulated(&psp.chain().to_der().unwrap()[2]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kms.db")).unwrap();
        store.import("data", &KEY).unwrap();
        let rules = rules(&policy.host_data(), &json!({}));
        let service = Service::new(store, rules, roots, Bundle::default()).unwrap();
        let gate = Gate::new(policy.host_data(), &psp.report(&[0; 64]));
        let machine = Machine { psp, key: None };
        let mut stage = Self { policy, gate, machine, asked: Vec::new(), service, _dir: dir };
        let image = stage.policy.image.clone();
        stage.ask(Request::SetPolicy { image: &image }, |_| ());
        stage.ask(Request::MountDevice { device: "layer", root_hash: [1; 32], data_blocks: 9 }, |_| ());
        let logging = Request::RuntimeLogging { enabled: true };
        let body = body(&logging);
        assert!(
            stage.gate.serve(&mut stage.machine, &logging, &body).is_err(),
            "the policy does not allow it"
        );
        stage.asked.push(body);
        stage
    }

    fn ask<T>(&mut self, request: Request<'_>, take: impl FnOnce(Reply<'_>) -> T) -> T {
        let body = body(&request);
        let taken = take(self.gate.serve(&mut self.machine, &request, &body).unwrap());
        self.asked.push(body);
        taken
    }

    /// What the host answers to an offer; and the number of the guest's channel.
    fn answer(&mut self, offer: &Value) -> (Value, u32) {
        let part = |name: &str| STANDARD.decode(offer[name].as_str().unwrap()).unwrap();
        let (nonce, peer) = (part("nonce").try_into().unwrap(), part("key"));
        let before = self.gate.audit_head();
        let open = Request::OpenChannel { nonce, key: &peer };
        let body = body(&open);
        let answered = self.gate.serve(&mut self.machine, &open, &body);
        let Ok(Reply::Channel { channel, key, audit, report }) = answered else { panic!("no channel") };
        assert_eq!(before, audit);
        self.asked.push(body);
        let (key, report) = (STANDARD.encode(key), STANDARD.encode(report));
        let answer = json!({
            "offer": offer["offer"], "name": "data", "key": key, "audit": STANDARD.encode(audit),
            "report": report, "certificates": self.certificates(),
            "history": {"policy": STANDARD.encode(&self.policy.image), "entries": self.lines(audit)},
        });
        (answer, channel)
    }

    fn certificates(&self) -> Value {
        self.machine.psp.chain().to_der().unwrap().iter().map(|der| json!(STANDARD.encode(der))).collect()
    }

    /// The log up to this head.
    fn lines(&mut self, head: [u8; 32]) -> Vec<Line> {
        let (mut at, mut lines) = (self.policy.host_data(), Vec::new());
        let read = Request::ReadAudit { first: 1 };
        let body = body(&read);
        let Ok(Reply::Audit(log)) = self.gate.serve(&mut self.machine, &read, &body) else {
            panic!("no log")
        };
        for (entry, asked) in log.entries.iter().zip(&self.asked) {
            if at == head {
                break;
            }
            at = audit::follow(at, entry.sequence, &[*entry]).unwrap();
            lines.push(Line::new(entry, &asked[1..], None).unwrap());
        }
        assert_eq!(at, head);
        self.asked.push(body);
        lines
    }

    fn offer(&self) -> Value {
        self.service.offer(&serde_json::from_value(json!({"name": "data"})).unwrap()).unwrap()
    }

    fn judge(&self, answer: &Value) -> Result<Vec<u8>, String> {
        match self.service.release_sealed(&serde_json::from_value(answer.clone()).unwrap()) {
            Ok(released) => Ok(STANDARD.decode(released["message"].as_str().unwrap()).unwrap()),
            Err(Failure::Refused(why, _)) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Has the key released under these demands, the host having changed what it hands out.
    fn release(&mut self, demands: &Value, change: impl FnOnce(&mut Value)) -> Result<(), String> {
        self.service.set_rules(rules(&self.policy.host_data(), demands));
        let (mut answer, channel) = self.answer(&self.offer());
        change(&mut answer);
        let message = self.judge(&answer)?;
        self.ask(Request::Sealed { channel, message: &message }, |reply| {
            assert!(matches!(reply, Reply::Sealed { .. }));
        });
        assert!(self.machine.key.take().is_some(), "the guest has the key");
        Ok(())
    }
}

fn body(request: &Request<'_>) -> Vec<u8> {
    frame::encode(&ToGuest { sequence: 1, request: request.clone() }).unwrap().split_off(frame::HEADER)
}

fn entries(answer: &mut Value) -> &mut Vec<Value> {
    answer["history"]["entries"].as_array_mut().unwrap()
}

#[test]
fn a_key_goes_to_a_guest_whose_history_is_as_its_rule_demands_and_to_no_other() {
    let mut stage = Stage::new();
    // The twin of all that follows. Then a second key, the first being in the history.
    for _ in 0..2 {
        let demands = json!({"never_asked": ["exec_in_container", "exec_external"], "most_denied": 1});
        assert_eq!(stage.release(&demands, |_| ()), Ok(()));
        assert_eq!(stage.release(&json!({}), |_| ()), Ok(()));
    }
    let mut refused = |demands: Value| stage.release(&demands, |_| ()).unwrap_err();
    assert_eq!(refused(json!({"most_denied": 0})), "audit-state: entry 3 is denied request 1");
    // Whether it was allowed or not.
    assert_eq!(
        refused(json!({"never_asked": ["mount_device"]})),
        "audit-state: entry 2 asked for mount_device"
    );
    let both = json!({"never_asked": ["exec_external", "runtime_logging"], "most_denied": 9});
    assert_eq!(refused(both), "audit-state: entry 3 asked for runtime_logging");
    // What happens after a good history counts at the next key.
    let bound = json!({"most_denied": 1});
    assert_eq!(stage.release(&bound, |_| ()), Ok(()));
    let request = Request::DumpStacks;
    assert!(stage.gate.serve(&mut stage.machine, &request, &body(&request)).is_err());
    stage.asked.push(body(&request));
    assert!(stage.release(&bound, |_| ()).unwrap_err().ends_with("is denied request 2"));
}

#[test]
fn a_history_that_is_missing_cut_moved_or_of_other_requests_or_another_policy_gets_no_key() {
    let mut stage = Stage::new();
    let mut on = |check: &str, change: &dyn Fn(&mut Value)| {
        let why = stage.release(&json!({}), change).unwrap_err();
        assert!(why.starts_with(&format!("{check}: ")), "{check}: {why}");
        assert!(stage.machine.key.is_none());
    };
    on("audit-chain", &|answer| drop(answer.as_object_mut().unwrap().remove("history")));
    on("audit-chain", &|answer| entries(answer).clear());
    on("audit-chain", &|answer| drop(entries(answer).pop()));
    on("audit-chain", &|answer| drop(entries(answer).remove(0)));
    on("audit-chain", &|answer| drop(entries(answer).remove(2)));
    on("audit-chain", &|answer| entries(answer).swap(1, 2));
    on("audit-chain", &|answer| entries(answer)[1]["entry"] = json!("AAAA"));
    on("audit-chain", &|answer| {
        let twice = entries(answer)[2].clone();
        entries(answer).push(twice);
    });
    // The policy of another guest, or none that can be read.
    let other = Policy::compile("p.rego", &POLICY.replace("mount_device", "dump_stacks")).unwrap();
    on("audit-chain", &|answer| answer["history"]["policy"] = json!(STANDARD.encode(&other.image)));
    on("audit-chain", &|answer| answer["history"]["policy"] = json!(""));
    // The requests are not those of the entries.
    on("audit-requests", &|answer| {
        entries(answer)[2]["request"] = entries(answer)[1]["request"].clone();
    });
    on("audit-requests", &|answer| entries(answer)[1]["request"] = json!("!"));
    on("audit-requests", &|answer| drop(entries(answer)[1].as_object_mut().unwrap().remove("request")));
    // The head of another history: the report does not vouch for it (K01, K02).
    on("report-data", &|answer| answer["audit"] = json!(STANDARD.encode([0; 32])));
}

/// Source: none in the field; a guest that was taken over would report honestly what it did.
#[test]
fn a_guest_that_decided_otherwise_than_its_policy_gets_no_key_even_if_its_report_vouches_for_what_it_did() {
    let mut stage = Stage::new();
    let head = stage.gate.audit_head();
    let honest = stage.lines(head);
    type Lie = fn(&mut Entry);
    let lies: [(usize, Option<Lie>); 4] = [
        (1, None),
        (2, Some(|entry| entry.verdict = Verdict::Done)),
        (1, Some(|entry| entry.verdict = Verdict::Denied { point: Point::MountDevice, how: Denied::No })),
        (1, Some(|entry| entry.state[0] ^= 1)),
    ];
    for (at, lie) in lies {
        let mut lines = honest.clone();
        let mut entry = lines[at].entry().unwrap();
        if let Some(lie) = lie {
            lie(&mut entry);
        }
        lines[at].entry = Line::new(&entry, &[], None).unwrap().entry;
        let all: Vec<Entry> = lines.iter().map(|line| line.entry().unwrap()).collect();
        let head = audit::follow(stage.policy.host_data(), 1, &all).unwrap();
        // What such a guest would answer.
        let offer = stage.offer();
        let part = |name: &str| STANDARD.decode(offer[name].as_str().unwrap()).unwrap();
        let own = Ephemeral::new(&random().unwrap()).unwrap();
        let (nonce, peer) = (part("nonce").try_into().unwrap(), part("key").try_into().unwrap());
        let report = stage.machine.psp.report(&transcript(&nonce, &peer, &own.public(), &head));
        let answer = json!({
            "offer": offer["offer"], "name": "data", "key": STANDARD.encode(own.public()), "audit": STANDARD.encode(head),
            "report": STANDARD.encode(report), "certificates": stage.certificates(),
            "history": {"policy": STANDARD.encode(&stage.policy.image), "entries": lines},
        });
        match stage.judge(&answer) {
            Ok(_) => assert!(lie.is_none(), "the honest one gets it, and no other"),
            Err(why) => {
                assert!(lie.is_some(), "{why}");
                let expected = format!("audit-decisions: entry {} does not follow", at + 1);
                assert!(why.starts_with(&expected), "{why}");
            }
        }
    }
}
