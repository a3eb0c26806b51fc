//! What the policy's answer takes away is not there, and what it does not answer is not done.

use super::*;
use crate::attest::channel::{Channel, End, Ephemeral, transcript};
use crate::wire::{MAX_SECRET, Order};

fn texts(builder: &mut Builder, texts: &[&str]) -> Const {
    let texts = texts.iter().map(|text| builder.string(text)).collect();
    builder.array(texts)
}

/// A gate with a container `1…`, whose policy answers for further processes and for those outside as `more` says.
fn gate_answering(actor: &mut Recorder, more: Answer<'_>) -> Gate {
    let plain: Answer<'_> = &|builder| answer(builder, true, None);
    let narrowed = [Point::ExecInContainer, Point::ExecExternal];
    let entries: Vec<_> = Point::ALL
        .iter()
        .map(|point| (point.entry(), if narrowed.contains(point) { more } else { plain }))
        .collect();
    let mut gate = assembled(actor, &answering(&entries));
    gate.handle(actor, &create(&id('1'))).unwrap();
    gate
}

/// A gate under this policy with a device `a` and an overlay `1…` on it.
fn assembled(actor: &mut Recorder, image: &[u8]) -> Gate {
    let mut gate = gate_with(image);
    gate.handle(actor, &mount("a")).unwrap();
    let overlay = Request::MountOverlay { container: &id('1'), layers: list(&["a"]), scratch: None };
    gate.handle(actor, &overlay).unwrap();
    gate
}

fn create(container: &str) -> Request<'_> {
    Request::CreateContainer {
        container,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process: process(&["/bin/a"]),
    }
}

fn is_denied_for(result: Result<Reply<'_>, Refusal>, reason: policy::Reason) -> bool {
    matches!(super::reason(result), Reason::Denied { how: Denied::No, failed, .. } if failed[..] == [reason])
}

#[test]
fn c09_a_guest_is_ready_only_while_it_runs_and_as_its_policy_says() {
    let mut gate = Gate::new([0; 32], &REPORT);
    assert!(!gate.ready(), "without a policy");
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    assert!(gate.ready(), "nothing is required");
    actor.fail = Some(ActError { step: Step::Unmount, errno: 16, undone: false });
    gate.handle(&mut actor, &mount("c")).unwrap_err();
    assert!(!gate.ready(), "poisoned");
    let properties = Point::GetProperties.entry();
    for ready in [false, true] {
        let image = answering(&[
            ("data.framework.ready", &|builder| answer(builder, ready, None)),
            (properties, &|builder| answer(builder, true, None)),
        ]);
        let mut gate = gate_with(&image);
        assert_eq!(gate.ready(), ready);
        let Ok(Reply::Properties(shown)) = gate.handle(&mut actor, &Request::GetProperties) else { panic!() };
        assert_eq!(shown.ready, ready);
    }
}

#[test]
fn f09_a_process_gets_the_variables_that_the_policy_keeps_and_never_one_that_was_not_asked_for() {
    let mut actor = Recorder::default();
    let container = id('1');
    let asked = Process { env: list(&["A=1", "B=2", "C=3"]), ..process(&["/bin/b"]) };
    let exec = Request::ExecInContainer { container: &container, process: asked };
    let external = || Request::ExecExternal {
        args: list(&["/bin/b"]),
        env: list(&["A=1", "B=2", "C=3"]),
        working_dir: "/",
    };
    for (kept, given) in
        [(&["C=3", "A=1"][..], Some(&["A=1", "C=3"][..])), (&["A=1", "D=4"], None), (&["A=2"], None)]
    {
        let mut gate = gate_answering(&mut actor, &|builder| {
            let kept = texts(builder, kept);
            answer(builder, true, Some(("env_list", kept)))
        });
        let done = actor.done.len();
        match given {
            Some(given) => {
                gate.handle(&mut actor, &exec).unwrap();
                assert_eq!(actor.started.as_ref().unwrap().env, given);
                gate.handle(&mut actor, &external()).unwrap();
                assert_eq!(actor.done[done + 1], format!("external [\"/bin/b\"] {given:?}"));
            }
            None => {
                for request in [&exec, &external()] {
                    let result = gate.handle(&mut actor, request);
                    assert!(is_denied_for(result, policy::Reason::InvalidEnvironment), "{kept:?}");
                }
                assert_eq!(actor.done.len(), done);
            }
        }
    }
}

#[test]
fn f09_a_process_gets_the_capabilities_that_the_policy_keeps_and_never_one_that_was_not_asked_for() {
    let mut actor = Recorder::default();
    let container = id('1');
    let all = 0b1111;
    let capabilities =
        Capabilities { bounding: all, effective: 0b111, inheritable: 0b11, permitted: all, ambient: 0b11 };
    let asked = Process { capabilities, ..process(&["/bin/b"]) };
    let exec = Request::ExecInContainer { container: &container, process: asked };
    let names = |set: u64| -> Vec<&str> {
        (0..CAPABILITY_NAMES.len())
            .filter(|bit| set >> bit & 1 == 1)
            .map(|bit| CAPABILITY_NAMES[bit])
            .collect()
    };
    let answering = |actor: &mut Recorder, kept: Capabilities| {
        gate_answering(actor, &|builder| {
            let sets = [
                ("ambient", kept.ambient),
                ("bounding", kept.bounding),
                ("effective", kept.effective),
                ("inheritable", kept.inheritable),
                ("permitted", kept.permitted),
            ];
            let sets = sets.map(|(name, set)| (builder.string(name), texts(builder, &names(set))));
            let sets = builder.object(sets.to_vec()).unwrap();
            answer(builder, true, Some(("caps_list", sets)))
        })
    };
    // Bit 20 was not asked for.
    let kept = Capabilities {
        bounding: 1 << 20 | 0b101,
        effective: 0b1,
        inheritable: 0b1,
        permitted: 0b101,
        ambient: 0b1,
    };
    let mut gate = answering(&mut actor, kept);
    gate.handle(&mut actor, &exec).unwrap();
    let given = Capabilities { bounding: 0b101, ..kept };
    assert_eq!(actor.started.as_ref().unwrap().capabilities, given);
    // Sets that no process can have.
    let mut gate = answering(&mut actor, Capabilities { permitted: 0b100, ..kept });
    let done = actor.done.len();
    let result = gate.handle(&mut actor, &exec);
    assert!(is_denied_for(result, policy::Reason::InvalidCapabilities));
    assert_eq!(actor.done.len(), done);
}

/// An answer that allows, with these fields as `true`.
fn yes<'a>(names: &'a [&'a str]) -> impl Fn(&mut Builder) -> Const + 'a {
    move |builder| {
        let yes = builder.bool(true);
        let names = ["allowed"].iter().chain(names);
        let pairs = names.map(|name| (builder.string(name), yes)).collect();
        builder.object(pairs).unwrap()
    }
}

#[test]
fn c12_output_waits_and_corruption_ends_the_guest_where_the_policy_says_so() {
    let mut actor = Recorder::default();
    let container = id('1');
    for (panics, waits) in [(false, false), (true, false), (false, true)] {
        let mount_answer = yes(if panics { &["panic_on_corruption"] } else { &[] });
        let create_answer = yes(if waits { &["output_waits"] } else { &[] });
        let entries: Vec<(&str, Answer<'_>)> = Point::ALL
            .iter()
            .map(|point| match point {
                Point::MountDevice => (point.entry(), &mount_answer as Answer<'_>),
                _ => (point.entry(), &create_answer as Answer<'_>),
            })
            .collect();
        let before = actor.done.len();
        let mut gate = assembled(&mut actor, &answering(&entries));
        assert_eq!(actor.done[before].ends_with(" or panic"), panics);
        gate.handle(&mut actor, &create(&container)).unwrap();
        assert_eq!(actor.started.as_ref().unwrap().output_waits, waits);
        // What was decided for the container holds for its further processes.
        let exec = Request::ExecInContainer { container: &container, process: process(&["/bin/b"]) };
        gate.handle(&mut actor, &exec).unwrap();
        assert_eq!(actor.started.as_ref().unwrap().output_waits, waits);
    }
}

#[test]
fn c10_a_terminal_that_was_decided_on_changes_its_size_until_its_process_ends() {
    let mut actor = Recorder::default();
    let answer = yes(&["allow_stdio_access"]);
    let entries: Vec<(&str, Answer<'_>)> =
        Point::ALL.iter().map(|point| (point.entry(), &answer as Answer<'_>)).collect();
    let mut gate = assembled(&mut actor, &answering(&entries));
    let container = id('1');
    gate.handle(&mut actor, &create(&container)).unwrap();
    let size = wire::WindowSize { rows: 24, columns: 80 };
    let stdio = Stdio { stdin: true, stdout: true, stderr: false, terminal: Some(size) };
    let shell = Process { stdio, ..process(&["/bin/sh"]) };
    let exec = Request::ExecInContainer { container: &container, process: shell };
    assert_eq!(gate.handle(&mut actor, &exec), Ok(Reply::Started { process: 2 }));
    let resize = Request::ResizeTerminal { container: &container, process: 2, size };
    gate.handle(&mut actor, &resize).unwrap();
    assert_eq!(actor.done.last().unwrap(), "resize 2 24");
    assert!(gate.process_exited(ProcessId(2), ExitStatus::Signal(9)));
    assert!(!gate.process_exited(ProcessId(3), ExitStatus::Code(0)), "nobody knows it");
    assert_eq!(gate.exited().collect::<Vec<_>>(), [(ProcessId(2), ExitStatus::Signal(9))]);
    assert_eq!(reason(gate.handle(&mut actor, &resize)), Reason::Unknown { field: Field::Process });
}

#[test]
fn k05_the_attestation_directory_is_mounted_to_be_read_only() {
    let mut actor = Recorder::default();
    let mut gate = assembled(&mut actor, &allowing(Point::ALL));
    let container = id('1');
    let ask = |read_only| Request::CreateContainer {
        container: &container,
        privileged: false,
        mounts: List::from_vec(vec![wire::Mount {
            source: wire::Source::Attestation,
            destination: "/attestation",
            read_only,
        }])
        .unwrap(),
        seccomp: None,
        process: process(&["/bin/a"]),
    };
    let (field, rule, value) = (Field::Mounts, Rule::Range, Excerpt::of("/attestation"));
    let refused = reason(gate.handle(&mut actor, &ask(false)));
    assert_eq!(refused, Reason::Invalid { field, rule, value });
    assert_eq!(gate.handle(&mut actor, &ask(true)), Ok(Reply::Started { process: 1 }));
}

#[test]
fn l06_each_disk_has_the_lowest_place_that_is_free() {
    let mut actor = Recorder::default();
    let mut gate = gate_with(&allowing(Point::ALL));
    let ids = ['1', '2', '3'].map(id);
    let space = |number: usize| scratch(&ids[number], ["s", "t", "u"][number]);
    let volume =
        |number: usize| Request::MountVolume { volume: [number as u8; 32], device: ["v", "w", "x"][number] };
    for request in [
        space(0),
        space(1),
        Request::UnmountScratch { scratch: &ids[0] },
        space(2),
        volume(0),
        volume(1),
        Request::UnmountVolume { volume: [0; 32] },
        volume(2),
    ] {
        gate.handle(&mut actor, &request).unwrap();
    }
    let expected = [
        "scratch 0 1111 on s Memory",
        "scratch 1 2222 on t Memory",
        "unscratch 1111",
        "scratch 0 3333 on u Memory",
        "volume 0 0000 on v",
        "volume 1 0101 on w",
        "unvolume 0000",
        "volume 0 0202 on x",
    ];
    assert_eq!(actor.done, expected);
}

#[test]
fn c08_there_are_so_many_containers_until_power_off_and_no_more() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let container = id('2');
    let overlay = Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None };
    gate.handle(&mut actor, &overlay).unwrap();
    for number in 1..objects::MAX_IDS {
        assert!(gate.objects.can_burn(), "{number}");
        gate.objects.burn(ContainerId::parse(&format!("{number:064x}")).unwrap());
    }
    let refused = reason(gate.handle(&mut actor, &create(&container)));
    assert_eq!(refused, Reason::Limit { field: Field::Container });
}

#[test]
fn a_container_has_succeeded_when_its_first_process_ended_with_0() {
    let mut actor = Recorder::default();
    let own = ContainerId::parse(&id('1')).unwrap();
    for (first, second, succeeded) in [
        (None, Some(ExitStatus::Code(0)), &[][..]),
        (Some(ExitStatus::Code(1)), Some(ExitStatus::Code(0)), &[]),
        (Some(ExitStatus::Signal(9)), None, &[]),
        (Some(ExitStatus::Code(0)), Some(ExitStatus::Code(1)), &[own]),
    ] {
        let mut gate = with_container(&mut actor);
        let exec = Request::ExecInContainer { container: &id('1'), process: process(&["/bin/b"]) };
        gate.handle(&mut actor, &exec).unwrap();
        for (number, status) in [(1, first), (2, second)] {
            if let Some(status) = status {
                gate.process_exited(ProcessId(number), status);
            }
        }
        assert_eq!(gate.objects.succeeded().unwrap(), succeeded, "{first:?}");
    }
}

#[test]
fn t06_there_are_so_many_overlays_and_no_more() {
    let mut actor = Recorder::default();
    let mut gate = gate_with(&allowing(Point::ALL));
    gate.handle(&mut actor, &mount("a")).unwrap();
    for number in 0..=MAX_CONTAINERS {
        let container = format!("{number:064x}");
        let overlay = Request::MountOverlay { container: &container, layers: list(&["a"]), scratch: None };
        let answer = gate.handle(&mut actor, &overlay);
        match number {
            MAX_CONTAINERS => assert_eq!(reason(answer), Reason::Limit { field: Field::Container }),
            _ => assert_eq!(answer, Ok(Reply::Done)),
        }
    }
}

#[test]
fn what_the_guest_does_not_offer_is_decided_by_the_policy_and_then_not_done() {
    let mut actor = Recorder::default();
    let container = id('1');
    let ask = |points: &[Point], point, actor: &mut Recorder| {
        let request = Request::Unoffered { point, container: &container };
        gate_with(&allowing(points)).handle(actor, &request).map(drop).map_err(|refusal| refusal.reason)
    };
    for point in Point::UNOFFERED {
        let failed = Err(Reason::Failed { step: Step::Unoffered, errno: 0 });
        assert_eq!(ask(Point::ALL, point, &mut actor), failed);
        let denied = ask(&[], point, &mut actor);
        assert!(matches!(denied, Err(Reason::Denied { how: Denied::Undefined, .. })), "{denied:?}");
    }
    // What it does offer is not decided with so little.
    let unknown = Err(Reason::Unknown { field: Field::Point });
    assert_eq!(ask(Point::ALL, Point::MountDevice, &mut actor), unknown);
    assert!(actor.done.is_empty());
}

/// The gate's two decisions on an overlay: neither may be forgotten.
#[test]
fn d5_what_two_decisions_on_one_request_say_is_remembered_of_both() {
    let remembering = |name: &'static str| {
        move |builder: &mut Builder| {
            let pairs = [("name", name), ("action", "add"), ("key", "k"), ("value", "v")];
            let pairs = pairs.map(|(key, value)| (builder.string(key), builder.string(value)));
            let operation = builder.object(pairs.to_vec()).unwrap();
            let operations = builder.array(vec![operation]);
            answer(builder, true, Some(("metadata", operations)))
        }
    };
    let image = answering(&[
        (Point::MountDevice.entry(), &|builder| answer(builder, true, None)),
        (Point::MountOverlay.entry(), &remembering("one")),
        (Point::ScratchMount.entry(), &remembering("other")),
    ]);
    let mut gate = gate_with(&image);
    let mut actor = Recorder::default();
    gate.handle(&mut actor, &mount("a")).unwrap();
    let overlay = Request::MountOverlay { container: &id('1'), layers: list(&["a"]), scratch: None };
    gate.handle(&mut actor, &overlay).unwrap();
    let engine = gate.engine.as_ref().unwrap();
    let memory = engine.view_of(&[]);
    for name in ["one", "other"] {
        assert!(memory.field(engine.metadata(), name).is_some(), "{name}");
    }
}

#[test]
fn c10_a_shutdown_ends_what_is_known_of_one_container_and_of_no_other() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let (one, two) = (id('1'), id('2'));
    let overlay = Request::MountOverlay { container: &two, layers: list(&["a"]), scratch: None };
    gate.handle(&mut actor, &overlay).unwrap();
    let unknown = Reason::Unknown { field: Field::Container };
    let shutdown = Request::ShutdownContainer { container: &two };
    assert_eq!(reason(gate.handle(&mut actor, &shutdown)), unknown, "it is not created");
    gate.handle(&mut actor, &create(&two)).unwrap();
    gate.handle(&mut actor, &Request::ShutdownContainer { container: &one }).unwrap();
    let Ok(Reply::Properties(shown)) = gate.handle(&mut actor, &Request::GetProperties) else { panic!() };
    let processes: Vec<_> =
        shown.processes.iter().map(|process| (process.process, process.container)).collect();
    assert_eq!(processes, [(2, two.as_str())]);
    assert_eq!(shown.devices[..], ["a", "b"]);
    assert_eq!(shown.containers[..], [one.as_str(), two.as_str()]);
    let exec = Request::ExecInContainer { container: &one, process: process(&["/bin/b"]) };
    assert_eq!(reason(gate.handle(&mut actor, &exec)), unknown);
}

/// A peer's end of a channel.
pub(super) struct Peer {
    pub(super) number: u32,
    channel: Channel,
}

impl Peer {
    pub(super) fn open(gate: &mut Gate, actor: &mut Recorder) -> Self {
        let own = Ephemeral::new(&[9; 32]).unwrap();
        let key = own.public();
        let open = Request::OpenChannel { nonce: [5; 32], key: &key };
        let Ok(Reply::Channel { channel: number, key: guest, audit, .. }) = gate.handle(actor, &open) else {
            panic!()
        };
        let guest: [u8; 65] = guest.try_into().unwrap();
        let transcript = transcript(&[5; 32], &key, &guest, &audit);
        Self { number, channel: own.agree(End::Peer, &guest, &transcript).unwrap() }
    }

    pub(super) fn seal(&mut self, order: &Order<'_>) -> Vec<u8> {
        self.channel.seal(frame_body(order)).unwrap()
    }

    /// The answer's encoding; `None` if the channel is none.
    fn ask(&mut self, gate: &mut Gate, actor: &mut Recorder, order: &Order<'_>) -> Option<Vec<u8>> {
        let message = self.seal(order);
        let sealed = Request::Sealed { channel: self.number, message: &message };
        match gate.handle(actor, &sealed) {
            Ok(Reply::Sealed { message }) => {
                let mut message = message.to_vec();
                Some(self.channel.open(&mut message).unwrap()[4..].to_vec())
            }
            other => {
                assert_eq!(super::reason(other), Reason::Unknown { field: Field::Channel });
                None
            }
        }
    }
}

#[test]
fn k02_streams_are_sealed_of_what_was_started_through_a_channel_and_of_nothing_else() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let container = id('1');
    assert!(!actor.started.as_ref().unwrap().sealed);
    let exec = || Request::ExecInContainer { container: &container, process: process(&["/bin/b"]) };
    let mut peer = Peer::open(&mut gate, &mut actor);
    peer.ask(&mut gate, &mut actor, &Order::Request(exec())).unwrap();
    assert!(actor.started.as_ref().unwrap().sealed);
    gate.handle(&mut actor, &exec()).unwrap();
    assert!(!actor.started.as_ref().unwrap().sealed);
}

#[test]
fn k14_a_channel_too_many_ends_the_oldest_and_no_other() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let mut peers: Vec<Peer> = (0..5).map(|_| Peer::open(&mut gate, &mut actor)).collect();
    let order = Order::Request(Request::GetProperties);
    let answered: Vec<bool> =
        peers.iter_mut().map(|peer| peer.ask(&mut gate, &mut actor, &order).is_some()).collect();
    assert_eq!(answered, [false, true, true, true, true]);
}

#[test]
fn k05_a_secret_has_a_name_a_size_and_a_container_that_is_there() {
    let mut actor = Recorder::default();
    let mut gate = with_container(&mut actor);
    let mut peer = Peer::open(&mut gate, &mut actor);
    let (container, content) = (id('1'), vec![b's'; MAX_SECRET + 1]);
    let secret = |name, length| Order::Secret { container: &container, name, content: &content[..length] };
    let refused = |reason| frame_body(&Err::<Reply<'_>, _>(Refusal { culprit: Culprit::Host, reason }));
    let too_long = peer.ask(&mut gate, &mut actor, &secret("token", MAX_SECRET + 1)).unwrap();
    assert_eq!(too_long, refused(Reason::Limit { field: Field::Secret }));
    let (field, rule, value) = (Field::Secret, Rule::DirectoryName, Excerpt::of("../x"));
    let path = peer.ask(&mut gate, &mut actor, &secret("../x", 1)).unwrap();
    assert_eq!(path, refused(Reason::Invalid { field, rule, value }));
    let done = actor.done.len();
    let most = peer.ask(&mut gate, &mut actor, &secret("token", MAX_SECRET)).unwrap();
    assert_eq!(most, frame_body(&Ok::<_, Refusal>(Reply::Done)));
    assert!(actor.done[done].starts_with("secret 1111 token [115, 115"));
}
