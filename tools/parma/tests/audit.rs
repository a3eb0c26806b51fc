//! The audit log over the wire: what a host did is in it, and it can be played again without a machine.

mod support;

use parma_guest::attest::audit::{self, Entry, Verdict};
use parma_guest::gate::Gate;
use parma_guest::gate::action::*;
use parma_guest::gate::fields::{ContainerId, UserSpec};
use parma_guest::wire::{Denied, List, Point, Reason, Request, Step, ToGuest, Usage, frame};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Reply;
use support::{Guest, OUTPUT, Workload, id, list, stage};

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

    // Whoever has the policy and the requests comes to the same states, and so to the same head.
    let mut gate = Gate::new(workload.policy.host_data(), &[]);
    let policy = Request::SetPolicy { image: &workload.policy.image };
    let again = [policy].into_iter().chain(requests).chain([Request::ReadAudit { first: 1 }]);
    for (request, entry) in again.zip(log.entries.iter()) {
        let body = body(request.clone());
        let mut actor = Replayer(*entry);
        let _ = gate.serve(&mut actor, &request, &body);
    }
    assert_eq!(gate.audit_head(), log.head);
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

/// A guest in which everything happens as an entry of the log says.
struct Replayer(Entry);

impl Replayer {
    fn act<A>(&self, permit: Permit<A>) -> Result<(), ActError> {
        let _ = permit.into_action();
        match self.0.verdict {
            Verdict::Failed { step, errno } => Err(ActError { step, errno, undone: true }),
            Verdict::Poisoned => Err(ActError { step: Step::Memory, errno: 0, undone: false }),
            _ => Ok(()),
        }
    }
}

impl Actor for Replayer {
    fn mount_device(&mut self, permit: Permit<MountDevice>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn unmount_device(&mut self, permit: Permit<UnmountDevice>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn mount_scratch(&mut self, permit: Permit<MountScratch>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn unmount_scratch(&mut self, permit: Permit<UnmountScratch>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError> {
        self.act(permit).map(|()| 1)
    }
    fn unmount_volume(&mut self, permit: Permit<UnmountVolume>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn mount_overlay(&mut self, permit: Permit<MountOverlay>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn unmount_overlay(&mut self, permit: Permit<UnmountOverlay>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn create_container(&mut self, permit: Permit<CreateContainer<'_>>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn exec_in_container(&mut self, permit: Permit<ExecInContainer<'_>>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn signal_process(&mut self, permit: Permit<SignalProcess>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn resize_terminal(&mut self, permit: Permit<ResizeTerminal>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn shutdown_container(&mut self, permit: Permit<ShutdownContainer>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn set_logging(&mut self, permit: Permit<SetLogging>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn set_up_network(&mut self, permit: Permit<SetUpNetwork<'_>>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn exec_external(&mut self, permit: Permit<ExecExternal<'_>>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn update_container(&mut self, permit: Permit<UpdateContainer>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn usage(&mut self, permit: Permit<GetUsage>) -> Result<Usage, ActError> {
        self.act(permit).map(|()| Usage::default())
    }
    fn forget(&mut self, _: ProcessId) {}
    fn keep_key(&mut self, permit: Permit<KeepKey>) -> Result<(), ActError> {
        self.act(permit)
    }
    fn random(&self) -> Result<[u8; 32], ActError> {
        Ok([1; 32])
    }
    fn report(&self, _: &[u8; 64]) -> Result<[u8; 1184], ActError> {
        Ok([0; 1184])
    }
    fn dump_stack(&self, permit: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        self.act(permit).map(|()| None)
    }
    fn resolve_user(&self, _: &ContainerId, _: UserSpec<'_>) -> Result<User, ActError> {
        Ok(User { uid: 0, name: "root".into(), groups: vec![Group { gid: 0, name: "root".into() }] })
    }
}
