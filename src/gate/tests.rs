//! The gate without a kernel: a recording actor, a policy that allows everything, and a model of what may exist.

mod answers;
mod fields;
mod inputs;
mod interleavings;
mod record;
mod refusals;
mod settings;

use super::*;
use crate::gate::action::{DeliverSecret, KeepKey};
use crate::gate::fields::Slot;
use crate::policy::builder::{Builder, FunctionBuilder};
use crate::policy::format::Const;
use crate::policy::instruction::Instruction;
use crate::wire::{Rule, Stdio};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Records what it was permitted to do, and fails when told to.
#[derive(Default)]
struct Recorder {
    done: Vec<String>,
    fail: Option<ActError>,
    /// What the last process was to be started with.
    started: Option<Started>,
}

#[derive(Debug, PartialEq)]
struct Started {
    env: Vec<String>,
    capabilities: Capabilities,
    output_waits: bool,
    sealed: bool,
}

impl Started {
    fn of(process: &StartProcess<'_>) -> Option<Self> {
        let env = process.env.as_slice().iter().map(|variable| variable.to_string()).collect();
        Some(Self {
            env,
            capabilities: *process.capabilities.get(),
            output_waits: process.output_waits,
            sealed: process.sealed.is_some(),
        })
    }
}

impl Recorder {
    fn act(&mut self, what: String) -> Result<(), ActError> {
        match self.fail.take() {
            Some(error) => Err(error),
            None => {
                self.done.push(what);
                Ok(())
            }
        }
    }
}

impl Actor for Recorder {
    fn mount_device(&mut self, permit: Permit<MountDevice>) -> Result<(), ActError> {
        let action = permit.into_action();
        let or_panic = if action.panic_on_corruption { " or panic" } else { "" };
        self.act(format!("mount {} at {}{or_panic}", action.device.as_str(), action.slot.path()))
    }
    fn unmount_device(&mut self, permit: Permit<UnmountDevice>) -> Result<(), ActError> {
        self.act(format!("unmount {}", permit.into_action().slot.path()))
    }
    fn mount_scratch(&mut self, permit: Permit<MountScratch>) -> Result<(), ActError> {
        let action = permit.into_action();
        let (id, device) = (action.scratch, action.device);
        self.act(format!(
            "scratch {} {:.4} on {} {:?}",
            action.number,
            id.as_str(),
            device.as_str(),
            action.tags
        ))
    }
    fn unmount_scratch(&mut self, permit: Permit<UnmountScratch>) -> Result<(), ActError> {
        self.act(format!("unscratch {:.4}", permit.into_action().scratch.as_str()))
    }
    fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError> {
        let action = permit.into_action();
        let (id, device) = (action.volume.hex(), action.device);
        self.act(format!("volume {} {id:.4} on {}", action.number, device.as_str())).map(|()| 7)
    }
    fn keep_key(&mut self, permit: Permit<KeepKey>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.act(format!("keep {:02x} from {}", action.key[0], action.least_generation))
    }
    fn endorse(&mut self, permit: Permit<Endorse<'_>>) -> Result<(), ActError> {
        let Endorse { certificates, endorsement } = permit.into_action();
        self.act(format!("endorse {certificates:?} {endorsement:?}"))
    }
    fn deliver_secret(&mut self, permit: Permit<DeliverSecret<'_>>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.act(format!(
            "secret {:.4} {} {:?}",
            action.container.as_str(),
            action.name.as_str(),
            action.content
        ))
    }
    fn random(&self) -> Result<[u8; 32], ActError> {
        Ok([0x11; 32])
    }
    fn report(&self, data: &[u8; 64]) -> Result<[u8; 1184], ActError> {
        let mut report = [0; 1184];
        report[0x50..0x90].copy_from_slice(data);
        Ok(report)
    }
    fn unmount_volume(&mut self, permit: Permit<UnmountVolume>) -> Result<(), ActError> {
        self.act(format!("unvolume {:.4}", permit.into_action().volume.hex()))
    }
    fn mount_overlay(&mut self, permit: Permit<MountOverlay>) -> Result<(), ActError> {
        let action = permit.into_action();
        let layers: Vec<u16> = action.layers.iter().map(|slot: &Slot| slot.number()).collect();
        self.act(format!("overlay {:.4} {layers:?}", action.container.as_str()))
    }
    fn unmount_overlay(&mut self, permit: Permit<UnmountOverlay>) -> Result<(), ActError> {
        self.act(format!("unoverlay {:.4}", permit.into_action().container.as_str()))
    }
    fn create_container(&mut self, permit: Permit<CreateContainer<'_>>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.started = Started::of(&action.init);
        self.act(format!("create {:.4} {:?}", action.container.as_str(), action.init.args.as_slice()))
    }
    fn exec_in_container(&mut self, permit: Permit<ExecInContainer<'_>>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.started = Started::of(&action.process);
        self.act(format!("exec {:.4} {:?}", action.container.as_str(), action.process.args.as_slice()))
    }
    fn signal_process(&mut self, permit: Permit<SignalProcess>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.act(format!("signal {} {}", action.process.get(), action.signal.number()))
    }
    fn resize_terminal(&mut self, permit: Permit<ResizeTerminal>) -> Result<(), ActError> {
        let ResizeTerminal { process, size } = permit.into_action();
        self.act(format!("resize {} {}", process.get(), size.get().rows))
    }
    fn shutdown_container(&mut self, permit: Permit<ShutdownContainer>) -> Result<(), ActError> {
        self.act(format!("shutdown {:.4}", permit.into_action().container.as_str()))
    }
    fn update_container(&mut self, permit: Permit<UpdateContainer>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.act(format!("update {:.4} {:?}", action.container.as_str(), action.resources.get()))
    }
    fn usage(&mut self, permit: Permit<GetUsage>) -> Result<wire::Usage, ActError> {
        self.act(format!("usage {:.4}", permit.into_action().container.as_str()))
            .map(|()| wire::Usage::default())
    }
    fn forget(&mut self, process: ProcessId) {
        self.done.push(format!("forget {}", process.get()));
    }
    fn set_logging(&mut self, permit: Permit<SetLogging>) -> Result<(), ActError> {
        self.act(format!("logging {}", permit.into_action().enabled))
    }
    fn set_up_network(&mut self, permit: Permit<SetUpNetwork<'_>>) -> Result<(), ActError> {
        self.act(format!("network {:?}", permit.into_action().network.addresses()))
    }
    fn exec_external(&mut self, permit: Permit<ExecExternal<'_>>) -> Result<(), ActError> {
        let action = permit.into_action();
        self.act(format!("external {:?} {:?}", action.args.as_slice(), action.env.as_slice()))
    }
    fn dump_stack(&self, _: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        Ok(Some(b'S'))
    }
    fn resolve_user(&self, _: &ContainerId, _: UserSpec<'_>) -> Result<User, ActError> {
        Ok(User { uid: 0, name: "root".into(), groups: vec![action::Group { gid: 7, name: "seven".into() }] })
    }
}

/// A policy whose rules for `points` are `{"allowed": true}`; the others are not there.
fn allowing(points: &[Point]) -> Vec<u8> {
    let mut builder = Builder::new(1);
    let (key, yes) = (builder.string("allowed"), builder.bool(true));
    let allowed = builder.object(vec![(key, yes)]).unwrap();
    let mut code = FunctionBuilder::new("allowed", 0);
    let result = code.register();
    code.emit(Instruction::Const { dst: result, value: allowed });
    code.emit(Instruction::ReturnLast { value: result });
    let function = builder.function(code);
    for point in points {
        builder.entry(point.entry(), function).unwrap();
    }
    builder.finish().unwrap()
}

/// Makes the answer of a rule.
type Answer<'a> = &'a dyn Fn(&mut Builder) -> Const;

/// A policy that has these entries, whose answers are always the same, and no others.
fn answering(entries: &[(&str, Answer<'_>)]) -> Vec<u8> {
    let mut builder = Builder::new(1);
    for &(entry, answer) in entries {
        let answer = answer(&mut builder);
        let mut code = FunctionBuilder::new("answer", 0);
        let result = code.register();
        code.emit(Instruction::Const { dst: result, value: answer });
        code.emit(Instruction::ReturnLast { value: result });
        let function = builder.function(code);
        builder.entry(entry, function).unwrap();
    }
    builder.finish().unwrap()
}

/// `{"allowed": allowed, name: value}`, without the second if it is none.
fn answer(builder: &mut Builder, allowed: bool, more: Option<(&str, Const)>) -> Const {
    let (key, value) = (builder.string("allowed"), builder.bool(allowed));
    let more = more.map(|(name, value)| (builder.string(name), value));
    builder.object([Some((key, value)), more].into_iter().flatten().collect()).unwrap()
}

/// A policy that allows everything, with `settings` as part of every answer.
fn setting(settings: &[(&str, bool)]) -> Vec<u8> {
    let mut builder = Builder::new(1);
    let pairs = settings.iter().map(|&(name, value)| (builder.string(name), builder.bool(value))).collect();
    let settings = builder.object(pairs).unwrap();
    let (allowed, key, yes) = (builder.string("allowed"), builder.string("settings"), builder.bool(true));
    let answer = builder.object(vec![(allowed, yes), (key, settings)]).unwrap();
    let mut code = FunctionBuilder::new("answer", 0);
    let result = code.register();
    code.emit(Instruction::Const { dst: result, value: answer });
    code.emit(Instruction::ReturnLast { value: result });
    let function = builder.function(code);
    for point in Point::ALL {
        builder.entry(point.entry(), function).unwrap();
    }
    builder.finish().unwrap()
}

#[test]
fn c04_a_setting_that_is_not_understood_or_a_profile_without_a_filter_starts_nothing() {
    let create = |seccomp| {
        move |gate: &mut Gate, actor: &mut Recorder| {
            let container = id('1');
            let overlay =
                Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None };
            gate.handle(actor, &mount("a")).unwrap();
            gate.handle(actor, &overlay).unwrap();
            let create = Request::CreateContainer {
                container: &container,
                privileged: false,
                mounts: List::new(),
                seccomp,
                process: process(&["/bin/a"]),
            };
            let result = gate.handle(actor, &create).map(drop).map_err(|refusal| refusal.reason);
            assert_eq!(actor.done.iter().any(|done| done.starts_with("create")), result.is_ok());
            // What was not allowed burns no id.
            assert!(result.is_ok() || !gate.objects.is_burned(&ContainerId::parse(&container).unwrap()));
            result
        }
    };
    let ask = |settings: &[(&str, bool)], seccomp| {
        create(seccomp)(&mut gate_with(&setting(settings)), &mut Recorder::default())
    };
    assert_eq!(ask(&[], None), Ok(()));
    assert_eq!(ask(&[("read_only_root", true), ("share_process_namespace", true)], None), Ok(()));
    for unclear in [("read_only_rot", true), ("share_process_namespaces", true), ("rlimits", false)] {
        let denied = ask(&[unclear], None);
        assert!(matches!(denied, Err(Reason::Denied { how: Denied::Fault, .. })), "{denied:?}");
    }
    let denied = ask(&[], Some([7; 32]));
    let Err(Reason::Denied { how: Denied::No, failed, .. }) = denied else { panic!("{denied:?}") };
    assert_eq!(failed[..], [policy::Reason::InvalidSeccompProfile]);
}

const REPORT: [u8; 4] = *b"repo";

fn gate_with(image: &[u8]) -> Gate {
    let mut gate = Gate::new(Sha256::digest(image).into(), &REPORT);
    gate.handle(&mut Recorder::default(), &Request::SetPolicy { image }).unwrap();
    gate
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn list<'a, const N: usize>(items: &[&'a str]) -> List<&'a str, N> {
    List::from_vec(items.to_vec()).unwrap()
}

fn process<'a>(args: &[&'a str]) -> Process<'a> {
    Process {
        args: list(args),
        env: list(&["PATH=/bin"]),
        working_dir: "/",
        user: "",
        umask: 0o22,
        capabilities: Capabilities::default(),
        no_new_privileges: true,
        stdio: Stdio::default(),
    }
}

fn mount(device: &str) -> Request<'_> {
    Request::MountDevice { device, root_hash: [7; 32], data_blocks: 10 }
}

fn reason(result: Result<Reply<'_>, Refusal>) -> Reason {
    result.expect_err("refused").reason
}

/// A gate with devices `a`, `b`, an overlay and a container `1…` on them.
fn with_container(actor: &mut Recorder) -> Gate {
    let mut gate = gate_with(&allowing(Point::ALL));
    gate.handle(actor, &mount("a")).unwrap();
    gate.handle(actor, &mount("b")).unwrap();
    gate.handle(
        actor,
        &Request::MountOverlay { container: &id('1'), layers: list(&["b", "a"]), scratch: None },
    )
    .unwrap();
    let create = Request::CreateContainer {
        container: &id('1'),
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: process(&["/bin/a"]),
    };
    assert_eq!(gate.handle(actor, &create), Ok(Reply::Started { process: 1 }));
    gate
}

#[test]
fn the_honest_sequence_is_done_in_order() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let container = id('1');
    let exec = Request::ExecInContainer { container: &container, process: process(&["/bin/b"]) };
    assert_eq!(gate.handle(&mut actor, &exec), Ok(Reply::Started { process: 2 }));
    let signal = Request::SignalContainerProcess { container: &container, process: 2, signal: 15 };
    gate.handle(&mut actor, &signal).unwrap();
    gate.handle(&mut actor, &Request::ShutdownContainer { container: &container }).unwrap();
    gate.handle(&mut actor, &Request::UnmountOverlay { container: &container }).unwrap();
    gate.handle(&mut actor, &Request::UnmountDevice { device: "a" }).unwrap();
    assert_eq!(
        actor.done,
        [
            "mount a at /run/mounts/scsi/m0",
            "mount b at /run/mounts/scsi/m1",
            "overlay 1111 [1, 0]",
            "create 1111 [\"/bin/a\"]",
            "exec 1111 [\"/bin/b\"]",
            "signal 2 15",
            "shutdown 1111",
            "unoverlay 1111",
            "unmount /run/mounts/scsi/m0",
        ]
    );
}

fn scratch<'a>(id: &'a str, device: &'a str) -> Request<'a> {
    Request::MountScratch { scratch: id, device, data_blocks: 4096, tags: Tags::Memory }
}

#[test]
fn l06_a_disk_has_one_purpose_and_scratch_space_stays_under_its_containers() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let (pod, two) = (id('f'), id('2'));
    let mut ask = |request: &Request<'_>| gate.handle(&mut actor, request).map(drop).map_err(|r| r.reason);
    let in_use = |field| Err(Reason::InUse { field });
    assert_eq!(ask(&scratch(&pod, "a")), in_use(Field::Device), "a layer's disk");
    assert_eq!(ask(&scratch(&pod, "s")), Ok(()));
    assert_eq!(ask(&scratch(&two, "s")), in_use(Field::Device));
    assert!(matches!(ask(&scratch("../x", "t")), Err(Reason::Invalid { field: Field::Scratch, .. })));
    assert_eq!(ask(&scratch(&pod, "t")), in_use(Field::Scratch));
    assert_eq!(ask(&mount("s")), in_use(Field::Device));
    assert_eq!(ask(&scratch(&id('1'), "t")), in_use(Field::Scratch), "a container's folder");
    let overlay = |container, scratch| Request::MountOverlay { container, layers: list(&["a"]), scratch };
    let nowhere = Err(Reason::Unknown { field: Field::Scratch });
    let other = id('e');
    assert_eq!(ask(&overlay(&two, Some(&other))), nowhere);
    assert_eq!(ask(&overlay(&pod, None)), in_use(Field::Container), "another's scratch space");
    assert_eq!(ask(&overlay(&two, Some(&pod))), Ok(()));
    assert_eq!(ask(&Request::UnmountScratch { scratch: &pod }), in_use(Field::Scratch));
    assert_eq!(ask(&Request::UnmountOverlay { container: &two }), Ok(()));
    assert_eq!(ask(&Request::UnmountScratch { scratch: &pod }), Ok(()));
    assert_eq!(ask(&Request::UnmountScratch { scratch: &pod }), nowhere);
    for data_blocks in [0, 4095, (128 << 30) / 4096 + 1] {
        let refused =
            ask(&Request::MountScratch { scratch: &pod, device: "s", data_blocks, tags: Tags::Memory });
        assert!(matches!(refused, Err(Reason::Invalid { field: Field::DataBlocks, .. })), "{data_blocks}");
    }
}

#[test]
fn i06_a_layer_that_is_mounted_in_a_container_stays_until_the_container_is_gone() {
    let mut actor = Recorder::default();
    let mut gate = gate_with(&allowing(Point::ALL));
    let container = id('1');
    let mut ask = |request: &Request<'_>| gate.handle(&mut actor, request).map(drop).map_err(|r| r.reason);
    for device in ["a", "volume"] {
        ask(&mount(device)).unwrap();
    }
    ask(&Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None }).unwrap();
    let create = |serial, destination, read_only| Request::CreateContainer {
        container: &container,
        privileged: false,
        mounts: List::from_vec(vec![wire::Mount {
            source: wire::Source::Layer(serial),
            destination,
            read_only,
        }])
        .unwrap(),
        seccomp: None,
        process: process(&["/bin/a"]),
    };
    let invalid = |result| matches!(result, Err(Reason::Invalid { field: Field::Mounts, .. }));
    assert!(invalid(ask(&create("volume", "/data", false))), "writable");
    for destination in ["", "/", "data", "/data/..", "/proc", "/proc/sys", "/sys/fs", "/dev/shm"] {
        assert!(invalid(ask(&create("volume", destination, true))), "{destination}");
    }
    assert_eq!(ask(&create("other", "/data", true)), Err(Reason::Unknown { field: Field::Mounts }));
    assert_eq!(ask(&create("volume", "/data", true)), Ok(()));
    let unmount = Request::UnmountDevice { device: "volume" };
    assert_eq!(ask(&unmount), Err(Reason::InUse { field: Field::Device }));
    ask(&Request::ShutdownContainer { container: &container }).unwrap();
    assert_eq!(ask(&unmount), Ok(()));
}

#[test]
fn a_volume_is_mounted_once_and_stays_until_its_containers_are_gone() {
    let mut actor = Recorder::default();
    let mut gate = gate_with(&allowing(Point::ALL));
    let (container, volume) = (id('1'), [9; 32]);
    let mut ask = |request: &Request<'_>| gate.handle(&mut actor, request).map(drop).map_err(|r| r.reason);
    let open = |volume, device| Request::MountVolume { volume, device };
    ask(&mount("a")).unwrap();
    ask(&Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None }).unwrap();
    let create = Request::CreateContainer {
        container: &container,
        privileged: false,
        mounts: List::from_vec(vec![wire::Mount {
            source: wire::Source::Volume(volume),
            destination: "/data",
            read_only: false,
        }])
        .unwrap(),
        seccomp: None,
        process: process(&["/bin/a"]),
    };
    assert_eq!(ask(&create), Err(Reason::Unknown { field: Field::Mounts }));
    assert_eq!(ask(&open(volume, "a")), Err(Reason::InUse { field: Field::Device }));
    assert_eq!(ask(&open(volume, "v")), Ok(()));
    assert_eq!(ask(&open(volume, "w")), Err(Reason::InUse { field: Field::Volume }));
    assert_eq!(ask(&open([8; 32], "v")), Err(Reason::InUse { field: Field::Device }));
    assert_eq!(ask(&create), Ok(()));
    let close = Request::UnmountVolume { volume };
    assert_eq!(ask(&close), Err(Reason::InUse { field: Field::Volume }));
    ask(&Request::ShutdownContainer { container: &container }).unwrap();
    assert_eq!(ask(&close), Ok(()));
    assert_eq!(ask(&close), Err(Reason::Unknown { field: Field::Volume }));
}

#[test]
fn p01_a_policy_that_is_not_host_datas_is_refused_and_nothing_opens() {
    let honest = allowing(Point::ALL);
    let other = allowing(&[Point::MountDevice]);
    let mut gate = Gate::new(Sha256::digest(&honest).into(), &REPORT);
    let mut actor = Recorder::default();
    assert_eq!(reason(gate.handle(&mut actor, &Request::SetPolicy { image: &other })), Reason::NotHostData);
    let phase = Phase::AwaitPolicy;
    assert_eq!(reason(gate.handle(&mut actor, &mount("a"))), Reason::WrongPhase { phase });
    let accepted = gate.handle(&mut actor, &Request::SetPolicy { image: &honest });
    assert_eq!(accepted, Ok(Reply::PolicyAccepted { report: &REPORT }));
}

#[test]
fn p02_neither_nothing_nor_an_allow_all_sentinel_is_a_policy() {
    for image in [
        &b""[..],
        b"{\"allow_all\":true}",
        b"package policy\nmount_device := {\"allowed\": true}\n",
        &[0; 64],
    ] {
        // Even where HOST_DATA vouches for these very bytes.
        let mut gate = Gate::new(Sha256::digest(image).into(), &REPORT);
        let refused = reason(gate.handle(&mut Recorder::default(), &Request::SetPolicy { image }));
        assert_eq!(refused, Reason::PolicyInvalid);
        assert_eq!(gate.phase(), Phase::AwaitPolicy);
    }
}

#[test]
fn p03_a_policy_is_set_once() {
    let image = allowing(Point::ALL);
    let mut gate = gate_with(&image);
    let again = gate.handle(&mut Recorder::default(), &Request::SetPolicy { image: &image });
    assert_eq!(reason(again), Reason::WrongPhase { phase: Phase::Running });
}

/// CVE-2025-58354: where the policy could not be read, another guest went on with one of its own.
#[test]
fn p04_a_policy_that_fails_to_arrive_leaves_everything_denied() {
    let image = allowing(Point::ALL);
    let mut actor = Recorder::default();
    let mut denies_all = |gate: &mut Gate| {
        assert_eq!(gate.phase(), Phase::AwaitPolicy);
        let phase = Phase::AwaitPolicy;
        assert_eq!(reason(gate.handle(&mut actor, &mount("a"))), Reason::WrongPhase { phase });
    };
    // HOST_DATA that nobody set does not say that no policy is expected.
    let mut gate = Gate::new([0; 32], &REPORT);
    denies_all(&mut gate);
    for sent in [&image[..], &[], &[0; 32]] {
        let refused = reason(gate.handle(&mut Recorder::default(), &Request::SetPolicy { image: sent }));
        assert_eq!(refused, Reason::NotHostData);
        denies_all(&mut gate);
    }
    // Of one that is expected, a part is none.
    let mut gate = Gate::new(Sha256::digest(&image).into(), &REPORT);
    for end in (0..image.len()).step_by(5) {
        let part = Request::SetPolicy { image: &image[..end] };
        assert_eq!(reason(gate.handle(&mut Recorder::default(), &part)), Reason::NotHostData);
        denies_all(&mut gate);
    }
    assert!(gate.handle(&mut Recorder::default(), &Request::SetPolicy { image: &image }).is_ok());
}

#[test]
fn p06_a_valid_policy_with_one_more_byte_is_not_a_policy() {
    let mut image = allowing(Point::ALL);
    image.push(0);
    let mut gate = Gate::new(Sha256::digest(&image).into(), &REPORT);
    let refused = gate.handle(&mut Recorder::default(), &Request::SetPolicy { image: &image });
    assert_eq!(reason(refused), Reason::PolicyInvalid);
}

#[test]
fn p10_a_point_without_a_rule_is_denied() {
    let mut gate = gate_with(&allowing(&[Point::MountDevice]));
    let mut actor = Recorder::default();
    gate.handle(&mut actor, &mount("a")).unwrap();
    let refused = gate.handle(&mut actor, &Request::UnmountDevice { device: "a" });
    let (point, how) = (Point::UnmountDevice, Denied::Undefined);
    assert_eq!(
        reason(refused),
        Reason::Denied { point, how, failed: List::new(), value: Excerpt::default() }
    );
    assert_eq!(actor.done.len(), 1);
}

#[test]
fn d5_a_denial_changes_nothing_even_if_it_says_so() {
    let mut builder = Builder::new(1);
    let text = |builder: &mut Builder, text: &str| builder.string(text);
    let operation = ["name", "m", "action", "add", "key", "k", "value", "v"].map(|t| text(&mut builder, t));
    let pairs = operation.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    let operation = builder.object(pairs).unwrap();
    let operations = builder.array(vec![operation]);
    let (allowed, metadata, no) =
        (builder.string("allowed"), builder.string("metadata"), builder.bool(false));
    let denied = builder.object(vec![(allowed, no), (metadata, operations)]).unwrap();
    let mut code = FunctionBuilder::new("denied", 0);
    let result = code.register();
    code.emit(Instruction::Const { dst: result, value: denied });
    code.emit(Instruction::ReturnLast { value: result });
    let function = builder.function(code);
    builder.entry(Point::GetProperties.entry(), function).unwrap();
    let mut gate = gate_with(&builder.finish().unwrap());
    let refused = reason(gate.handle(&mut Recorder::default(), &Request::GetProperties));
    assert!(matches!(refused, Reason::Denied { how: Denied::No, .. }), "{refused:?}");
    let engine = gate.engine.as_ref().unwrap();
    let memory = engine.view_of(&[]);
    assert!(memory.field(engine.metadata(), "m").is_none(), "something was remembered");
}

#[test]
fn i06_a_device_under_an_overlay_is_not_unmounted() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let refused = gate.handle(&mut actor, &Request::UnmountDevice { device: "a" });
    assert_eq!(reason(refused), Reason::InUse { field: Field::Device });
}

#[test]
fn i08_a_failed_mount_leaves_no_trace() {
    let mut gate = gate_with(&allowing(Point::ALL));
    let (step, errno) = (Step::Mount, 22);
    let mut actor = Recorder { fail: Some(ActError { step, errno, undone: true }), ..Default::default() };
    assert_eq!(reason(gate.handle(&mut actor, &mount("a"))), Reason::Failed { step, errno });
    let overlay = Request::MountOverlay { container: &id('1'), layers: list(&["a"]), scratch: None };
    assert_eq!(reason(gate.handle(&mut actor, &overlay)), Reason::Unknown { field: Field::Layers });
    gate.handle(&mut actor, &mount("a")).unwrap();
    assert_eq!(actor.done, ["mount a at /run/mounts/scsi/m0"]);
}

#[test]
fn i08_a_failed_undo_stops_everything_but_power_off() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    actor.fail = Some(ActError { step: Step::Unmount, errno: 16, undone: false });
    assert_eq!(reason(gate.handle(&mut actor, &mount("c"))), Reason::Poisoned);
    assert_eq!(gate.phase(), Phase::Poisoned);
    let done = actor.done.len();
    for request in [mount("d"), Request::GetProperties, Request::ShutdownContainer { container: &id('1') }] {
        assert_eq!(reason(gate.handle(&mut actor, &request)), Reason::Poisoned);
    }
    assert_eq!(actor.done.len(), done);
    assert_eq!(gate.handle(&mut actor, &Request::PowerOff), Ok(Reply::Done));
}

#[test]
fn i05_an_overlay_without_layers_or_with_one_twice_is_refused() {
    let mut gate = gate_with(&allowing(Point::ALL));
    let mut actor = Recorder::default();
    gate.handle(&mut actor, &mount("a")).unwrap();
    for (layers, rule) in [(&[][..], Rule::NotEmpty), (&["a", "a"], Rule::NoDuplicates)] {
        let overlay = Request::MountOverlay { container: &id('1'), layers: list(layers), scratch: None };
        let refused = reason(gate.handle(&mut actor, &overlay));
        assert!(
            matches!(refused, Reason::Invalid { field: Field::Layers, rule: broken, .. } if broken == rule)
        );
    }
}

#[test]
fn i09_d6_names_that_are_paths_are_refused_before_anything_happens() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let done = actor.done.len();
    let odd = ["../../x", "", "/run", "a/../b", "a\0b", &"a".repeat(4096), "A", &id('G'), &(id('1') + "/")];
    for name in odd {
        let overlay = Request::MountOverlay { container: name, layers: list(&["a"]), scratch: None };
        assert!(matches!(
            reason(gate.handle(&mut actor, &overlay)),
            Reason::Invalid { field: Field::Container, .. }
        ));
    }
    for name in ["../../x", "", "/dev/vda", "a b", "a\0", "123456789012345678901"] {
        let refused = reason(gate.handle(&mut actor, &mount(name)));
        assert!(
            matches!(refused, Reason::Invalid { field: Field::Device, rule: Rule::Serial, .. }),
            "{name:?}"
        );
    }
    assert_eq!(actor.done.len(), done);
}

#[test]
fn c05_a_malformed_or_doubled_variable_is_refused() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    for env in [&["A=1", "A=2"][..], &["A"], &["=1"], &[""], &["A=\0"]] {
        let process = Process { env: list(env), ..process(&["/bin/b"]) };
        let exec = Request::ExecInContainer { container: &id('1'), process };
        let refused = reason(gate.handle(&mut actor, &exec));
        assert!(matches!(refused, Reason::Invalid { field: Field::Environment, .. }), "{env:?}");
    }
}

#[test]
fn c07_an_empty_argument_vector_or_program_and_nul_are_refused() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    for args in [&[][..], &[""], &["/bin/b", "a\0b"], &["\0"]] {
        let exec = Request::ExecInContainer { container: &id('1'), process: process(args) };
        let refused = reason(gate.handle(&mut actor, &exec));
        assert!(matches!(refused, Reason::Invalid { field: Field::Command, .. }), "{args:?}");
    }
    let exec = Request::ExecInContainer { container: &id('1'), process: process(&["/bin/b", ""]) };
    gate.handle(&mut actor, &exec).expect("only the program's name must not be empty");
}

#[test]
fn c08_a_container_id_serves_once_even_where_the_policy_has_no_memory() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let container = id('1');
    gate.handle(&mut actor, &Request::ShutdownContainer { container: &container }).unwrap();
    let create = Request::CreateContainer {
        container: &container,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: process(&["/bin/a"]),
    };
    assert_eq!(reason(gate.handle(&mut actor, &create)), Reason::InUse { field: Field::Container });
    gate.handle(&mut actor, &Request::UnmountOverlay { container: &container }).unwrap();
    let overlay = Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None };
    assert_eq!(reason(gate.handle(&mut actor, &overlay)), Reason::InUse { field: Field::Container });
}

#[test]
fn c08_d12_an_id_is_burned_also_when_creating_failed() {
    let mut gate = gate_with(&allowing(Point::ALL));
    let mut actor = Recorder::default();
    let container = id('1');
    gate.handle(&mut actor, &mount("a")).unwrap();
    gate.handle(
        &mut actor,
        &Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None },
    )
    .unwrap();
    let create = Request::CreateContainer {
        container: &container,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: process(&["/x"]),
    };
    actor.fail = Some(ActError { step: Step::Execute, errno: 2, undone: true });
    assert_eq!(reason(gate.handle(&mut actor, &create)), Reason::Failed { step: Step::Execute, errno: 2 });
    assert_eq!(reason(gate.handle(&mut actor, &create)), Reason::InUse { field: Field::Container });
}

#[test]
fn c10_nothing_is_executed_in_a_container_that_was_allowed_and_failed() {
    let mut gate = gate_with(&allowing(Point::ALL));
    let mut actor = Recorder::default();
    let container = id('1');
    gate.handle(&mut actor, &mount("a")).unwrap();
    gate.handle(
        &mut actor,
        &Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None },
    )
    .unwrap();
    let create = Request::CreateContainer {
        container: &container,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: process(&["/x"]),
    };
    actor.fail = Some(ActError { step: Step::Execute, errno: 2, undone: true });
    gate.handle(&mut actor, &create).unwrap_err();
    let exec = Request::ExecInContainer { container: &container, process: process(&["/x"]) };
    assert_eq!(reason(gate.handle(&mut actor, &exec)), Reason::Unknown { field: Field::Container });
}

#[test]
fn c11_a_signal_reaches_only_live_processes_of_the_named_container() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let unknown = Reason::Unknown { field: Field::Process };
    let (own, other) = (id('1'), id('2'));
    fn signal(container: &str, process: u32) -> Request<'_> {
        Request::SignalContainerProcess { container, process, signal: 9 }
    }
    assert_eq!(reason(gate.handle(&mut actor, &signal(&own, 2))), unknown, "no such number");
    assert_eq!(reason(gate.handle(&mut actor, &signal(&other, 1))), unknown, "another container's");
    let probe = Request::SignalContainerProcess { container: &own, process: 1, signal: 0 };
    assert!(matches!(reason(gate.handle(&mut actor, &probe)), Reason::Invalid { field: Field::Signal, .. }));
    assert!(gate.process_exited(ProcessId(1), ExitStatus::Code(0)));
    assert_eq!(reason(gate.handle(&mut actor, &signal(&own, 1))), unknown, "it has ended");
}

#[test]
fn c12_standard_streams_need_the_policys_word() {
    // The policy says nothing of standard streams, which is not yes.
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let stdio = Stdio { stdout: true, ..Stdio::default() };
    let process = Process { stdio, ..process(&["/bin/b"]) };
    let exec = Request::ExecInContainer { container: &id('1'), process };
    let refused = reason(gate.handle(&mut actor, &exec));
    assert!(
        matches!(refused, Reason::Denied { failed, .. } if failed[..] == [policy::Reason::StdioNotAllowed])
    );
}

#[test]
fn c10_a_terminal_is_whole_and_only_one_that_was_decided_on_changes_its_size() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let container = id('1');
    let size = |rows, columns| wire::WindowSize { rows, columns };
    let on = |terminal, stdout, stderr| {
        let stdio = Stdio { stdin: true, stdout, stderr, terminal: Some(terminal) };
        Request::ExecInContainer { container: &container, process: Process { stdio, ..process(&["/bin/b"]) } }
    };
    let mut ask = |request: &Request<'_>| gate.handle(&mut actor, request).map(drop).map_err(|r| r.reason);
    let invalid = |rule| Err(Reason::Invalid { field: Field::Stdio, rule, value: Excerpt::default() });
    for (rows, columns) in [(0, 80), (24, 0), (4097, 80), (24, u16::MAX)] {
        assert_eq!(ask(&on(size(rows, columns), true, false)), invalid(Rule::Range));
        let resize = Request::ResizeTerminal { container: &container, process: 1, size: size(rows, columns) };
        assert_eq!(ask(&resize), invalid(Rule::Range));
    }
    for (stdout, stderr) in [(false, false), (true, true), (false, true)] {
        assert_eq!(ask(&on(size(24, 80), stdout, stderr)), invalid(Rule::Terminal));
    }
    // The policy says nothing of standard streams.
    let denied = ask(&on(size(24, 80), true, false)).unwrap_err();
    assert!(
        matches!(denied, Reason::Denied { failed, .. } if failed[..] == [policy::Reason::StdioNotAllowed])
    );
    let resize = |container, process| Request::ResizeTerminal { container, process, size: size(1, 4096) };
    assert_eq!(ask(&resize(&container, 1)), Err(Reason::Unknown { field: Field::Stdio }), "it has pipes");
    for (container, process) in [(&container, 2), (&id('2'), 1)] {
        assert_eq!(ask(&resize(container, process)), Err(Reason::Unknown { field: Field::Process }));
    }
}

#[test]
fn c15_limits_are_within_bounds_and_nothing_is_started_in_what_is_held_still() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let (container, other) = (id('1'), id('2'));
    let mut ask = |request: &Request<'_>| gate.handle(&mut actor, request).map(drop).map_err(|r| r.reason);
    let update = |container, resources| Request::UpdateContainer { container, resources };
    let none = wire::Resources::default();
    for wrong in [
        wire::Resources { memory: Some(0), ..none },
        wire::Resources { memory: Some((1 << 20) - 1), ..none },
        wire::Resources { memory: Some(u64::MAX), ..none },
        wire::Resources { cpu: Some(9), ..none },
        wire::Resources { cpu: Some(u32::MAX), ..none },
        wire::Resources { processes: Some(0), ..none },
        wire::Resources { processes: Some(8193), ..none },
    ] {
        let invalid =
            Reason::Invalid { field: Field::Resources, rule: Rule::Range, value: Excerpt::default() };
        assert_eq!(ask(&update(&container, wrong)), Err(invalid), "{wrong:?}");
    }
    let unknown = Err(Reason::Unknown { field: Field::Container });
    assert_eq!(ask(&update(&other, none)), unknown);
    assert_eq!(ask(&Request::GetUsage { container: &other }), unknown);
    let exec = || Request::ExecInContainer { container: &container, process: process(&["/bin/b"]) };
    assert_eq!(ask(&update(&container, wire::Resources { paused: true, ..none })), Ok(()));
    assert_eq!(ask(&exec()), Err(Reason::InUse { field: Field::Container }));
    assert_eq!(ask(&update(&container, none)), Ok(()));
    assert_eq!(ask(&exec()), Ok(()));
    assert_eq!(ask(&Request::GetUsage { container: &container }), Ok(()));
    assert_eq!(ask(&update(&container, wire::Resources { paused: true, ..none })), Ok(()));
    assert_eq!(ask(&Request::ShutdownContainer { container: &container }), Ok(()));
}

#[test]
fn t06_processes_that_have_ended_make_room_for_others_and_those_that_run_do_not() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let container = id('1');
    let exec = || Request::ExecInContainer { container: &container, process: process(&["/bin/b"]) };
    for _ in 1..MAX_PROCESSES {
        gate.handle(&mut actor, &exec()).unwrap();
    }
    assert_eq!(reason(gate.handle(&mut actor, &exec())), Reason::Limit { field: Field::Process });
    gate.process_exited(ProcessId(1), ExitStatus::Code(0));
    let refused = reason(gate.handle(&mut actor, &exec()));
    assert_eq!(refused, Reason::Limit { field: Field::Process }, "a container's first process is remembered");
    for ended in [7, 5] {
        gate.process_exited(ProcessId(ended), ExitStatus::Code(0));
    }
    gate.handle(&mut actor, &exec()).unwrap();
    assert_eq!(actor.done[actor.done.len() - 2], "forget 5");
    gate.handle(&mut actor, &exec()).unwrap();
    assert_eq!(actor.done[actor.done.len() - 2], "forget 7");
    assert_eq!(reason(gate.handle(&mut actor, &exec())), Reason::Limit { field: Field::Process });
}

#[test]
fn c14_an_overlay_is_not_unmounted_under_its_container() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let refused = gate.handle(&mut actor, &Request::UnmountOverlay { container: &id('1') });
    assert_eq!(reason(refused), Reason::InUse { field: Field::Container });
}

#[test]
fn k01_k14_what_comes_sealed_is_decided_as_in_the_open_and_what_does_not_open_ends_the_channel() {
    use crate::attest::channel::{End, Ephemeral, transcript};
    use crate::wire::Order;
    let mut actor = Recorder::default();
    let mut gate = gate_with(&allowing(&[Point::GetProperties]));
    let own = Ephemeral::new(&[9; 32]).unwrap();
    let key = own.public();
    let open = Request::OpenChannel { nonce: [5; 32], key: &key };
    let Ok(Reply::Channel { channel, key: guest, report, audit }) = gate.handle(&mut actor, &open) else {
        panic!()
    };
    let guest: [u8; 65] = guest.try_into().unwrap();
    let transcript = transcript(&[5; 32], &key, &guest, &audit);
    assert_eq!(report[0x50..0x90], transcript);
    let mut peer = own.agree(End::Peer, &guest, &transcript).unwrap();
    let mut ask = |order: Order<'_>, actor: &mut Recorder| {
        let body = frame_body(&order);
        let message = peer.seal(body).unwrap();
        let sealed = Request::Sealed { channel, message: &message };
        let Ok(Reply::Sealed { message }) = gate.handle(actor, &sealed) else { panic!() };
        let mut message = message.to_vec();
        peer.open(&mut message).unwrap()[4..].to_vec()
    };
    let body = |result: Result<Reply<'_>, Refusal>| frame_body(&result);
    assert_eq!(ask(Order::Key { key: [7; 32], least_generation: 3 }, &mut actor), body(Ok(Reply::Done)));
    assert_eq!(actor.done, ["keep 07 from 3"]);
    let malformed = || Err(Refusal { culprit: Culprit::Host, reason: Reason::Malformed });
    assert_eq!(ask(Order::Request(open.clone()), &mut actor), body(malformed()));
    let secret = Order::Secret { container: &id('1'), name: "token", content: b"s" };
    let unknown = Refusal { culprit: Culprit::Host, reason: Reason::Unknown { field: Field::Container } };
    assert_eq!(ask(secret, &mut actor), body(Err(unknown)), "for a container that is not there");
    // The policy has no rule for this.
    let denied = ask(Order::Request(Request::RuntimeLogging { enabled: true }), &mut actor);
    let refusal = crate::wire::frame::decode::<Result<Reply<'_>, Refusal>>(&denied).unwrap().unwrap_err();
    assert!(matches!(refusal.reason, Reason::Denied { point: Point::RuntimeLogging, .. }), "{refusal:?}");
    assert_eq!(actor.done.len(), 1);
    let unknown = Reason::Unknown { field: Field::Channel };
    for message in [&[0; 40][..], &[], &[0; 15]] {
        let sealed = Request::Sealed { channel, message };
        assert_eq!(reason(gate.handle(&mut actor, &sealed)), unknown);
    }
    assert!(gate.channels.is_empty());
}

/// What a message is encoded as, without the frame's header.
fn frame_body(message: &impl serde::Serialize) -> Vec<u8> {
    crate::wire::frame::encode(message).unwrap().split_off(4)
}

/// What exists, said as simply as possible: the specification of `objects`.
#[derive(Default)]
struct Model {
    devices: BTreeSet<u8>,
    /// Container to its layers and whether it was created.
    overlays: BTreeMap<u8, (Vec<u8>, bool)>,
    burned: BTreeSet<u8>,
    poisoned: bool,
}

#[derive(Debug, Clone)]
enum Move {
    Mount(u8),
    Unmount(u8),
    Overlay(u8, Vec<u8>),
    Unoverlay(u8),
    Create(u8),
    Exec(u8),
    Shutdown(u8),
    SetPolicy,
}

impl Model {
    /// Whether this is to be done, and what is then.
    fn step(&mut self, step: &Move, fails: bool) -> bool {
        if self.poisoned {
            return false;
        }
        let in_use =
            |model: &Self, device| model.overlays.values().any(|(layers, _)| layers.contains(device));
        let allowed = match step {
            Move::Mount(device) => !self.devices.contains(device),
            Move::Unmount(device) => self.devices.contains(device) && !in_use(self, device),
            Move::Overlay(container, layers) => {
                !layers.is_empty()
                    && layers.iter().collect::<BTreeSet<_>>().len() == layers.len()
                    && layers.iter().all(|layer| self.devices.contains(layer))
                    && !self.overlays.contains_key(container)
                    && !self.burned.contains(container)
            }
            Move::Unoverlay(container) => self.overlays.get(container).is_some_and(|overlay| !overlay.1),
            Move::Create(container) => {
                self.overlays.get(container).is_some_and(|overlay| !overlay.1)
                    && !self.burned.contains(container)
            }
            Move::Exec(container) | Move::Shutdown(container) => {
                self.overlays.get(container).is_some_and(|overlay| overlay.1)
            }
            Move::SetPolicy => false,
        };
        if allowed && let Move::Create(container) = step {
            self.burned.insert(*container);
        }
        if !allowed || fails {
            return false;
        }
        match step {
            Move::Mount(device) => drop(self.devices.insert(*device)),
            Move::Unmount(device) => drop(self.devices.remove(device)),
            Move::Overlay(container, layers) => {
                drop(self.overlays.insert(*container, (layers.clone(), false)))
            }
            Move::Unoverlay(container) => drop(self.overlays.remove(container)),
            Move::Create(container) => {
                self.overlays.entry(*container).and_modify(|o| o.1 = true).or_default().1 = true
            }
            Move::Shutdown(container) => self.overlays.entry(*container).or_default().1 = false,
            Move::Exec(_) | Move::SetPolicy => {}
        }
        true
    }
}

fn steps() -> impl Strategy<Value = Vec<(Move, Option<bool>)>> {
    let small = 0u8..4;
    let step = prop_oneof![
        4 => small.clone().prop_map(Move::Mount),
        2 => small.clone().prop_map(Move::Unmount),
        4 => (small.clone(), proptest::collection::vec(small.clone(), 0..3)).prop_map(|(c, l)| Move::Overlay(c, l)),
        1 => small.clone().prop_map(Move::Unoverlay),
        3 => small.clone().prop_map(Move::Create),
        2 => small.clone().prop_map(Move::Exec),
        2 => small.prop_map(Move::Shutdown),
        1 => Just(Move::SetPolicy),
    ];
    // Mostly succeeding; else failing and undone, and rarely failing for good.
    let outcome = prop_oneof![20 => Just(None), 3 => Just(Some(true)), 1 => Just(Some(false))];
    proptest::collection::vec((step, outcome), 0..60)
}

proptest! {
    /// Any order of requests, with any of them failing: the gate acts exactly when the model says so, and its idea
    /// of what exists is the model's.
    #[test]
    fn t02_in_any_order_of_requests_the_gate_does_what_the_model_allows(steps in steps()) {
        let image = allowing(Point::ALL);
        let mut gate = gate_with(&image);
        let mut actor = Recorder::default();
        let mut model = Model::default();
        for (step, outcome) in steps {
            let names: Vec<String> = (0..4u8).map(|n| format!("disk{n}")).collect();
            let ids: Vec<String> = "0123".chars().map(id).collect();
            let request = match &step {
                Move::Mount(device) => mount(&names[usize::from(*device)]),
                Move::Unmount(device) => Request::UnmountDevice { device: &names[usize::from(*device)] },
                Move::Overlay(container, layers) => {
                    let layers: Vec<&str> = layers.iter().map(|&layer| &*names[usize::from(layer)]).collect();
                    Request::MountOverlay { container: &ids[usize::from(*container)], layers: list(&layers), scratch: None }
                }
                Move::Unoverlay(container) => Request::UnmountOverlay { container: &ids[usize::from(*container)] },
                Move::Create(container) => Request::CreateContainer {
                    container: &ids[usize::from(*container)],
                    privileged: false, mounts: List::new(),
                    seccomp: None,
                    process: process(&["/bin/a"]),
                },
                Move::Exec(container) => {
                    Request::ExecInContainer { container: &ids[usize::from(*container)], process: process(&["/bin/b"]) }
                }
                Move::Shutdown(container) => Request::ShutdownContainer { container: &ids[usize::from(*container)] },
                Move::SetPolicy => Request::SetPolicy { image: &image },
            };
            actor.fail = outcome.map(|undone| ActError { step: Step::Mount, errno: 5, undone });
            let before = actor.done.len();
            let accepted = gate.handle(&mut actor, &request).is_ok();
            let reached = actor.fail.take().is_none() && outcome.is_some();
            prop_assert_eq!(accepted, model.step(&step, outcome.is_some()), "{:?}", step);
            prop_assert_eq!(actor.done.len() - before, usize::from(accepted), "acted exactly when accepted");
            if reached && outcome == Some(false) {
                model.poisoned = true;
            }
            prop_assert_eq!(gate.phase() == Phase::Poisoned, model.poisoned);
            let devices: BTreeSet<u8> =
                gate.objects.devices.iter().map(|device| device.serial.as_str().as_bytes()[4] - b'0').collect();
            prop_assert_eq!(&devices, &model.devices);
            prop_assert_eq!(gate.objects.overlays.len(), model.overlays.len());
        }
    }
}

fn network(mtu: u16) -> Request<'static> {
    let address = wire::Address::v4([10, 0, 2, 15]);
    Request::SetUpNetwork(wire::Network {
        addresses: List::from_vec(vec![wire::Prefix { address, length: 24 }]).unwrap(),
        routes: List::new(),
        name_servers: List::new(),
        search: List::new(),
        mtu,
    })
}

#[test]
fn b11_the_network_is_set_up_once_where_the_policy_allows_it() {
    let mut gate = gate_with(&allowing(&[Point::GetProperties]));
    let mut actor = Recorder::default();
    assert!(matches!(reason(gate.handle(&mut actor, &network(1500))), Reason::Denied { .. }));
    let mut gate = gate_with(&allowing(&[Point::HostNetwork]));
    let invalid = reason(gate.handle(&mut actor, &network(68)));
    assert!(matches!(invalid, Reason::Invalid { field: Field::Network, rule: Rule::Range, .. }));
    actor.fail = Some(ActError { step: Step::Network, errno: 5, undone: true });
    assert!(matches!(reason(gate.handle(&mut actor, &network(1500))), Reason::Failed { .. }));
    assert!(actor.done.is_empty());
    gate.handle(&mut actor, &network(1500)).unwrap();
    assert_eq!(actor.done.len(), 1);
    assert_eq!(reason(gate.handle(&mut actor, &network(1500))), Reason::InUse { field: Field::Network });
}
