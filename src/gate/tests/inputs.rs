//! What the policy sees of a request, field by field.

use super::*;
use crate::gate::fields::{ProfileHash, ScratchBlocks, VolumeId};
use crate::gate::input::{self, Creation};
use crate::policy::tests::show;

/// What `make` makes, as text.
fn seen(make: impl FnOnce(&mut Arena<'_>) -> Result<Value, Fault>) -> String {
    let gate = gate_with(&allowing(&[]));
    let mut memory = vec![0; 16 << 10];
    let mut arena = Arena::new(&mut memory);
    let value = make(&mut arena).unwrap();
    show(&gate.engine.as_ref().unwrap().view(&arena), value)
}

fn container(digit: char) -> ContainerId {
    ContainerId::parse(&id(digit)).unwrap()
}

#[test]
fn a_scratch_space_is_seen_with_its_size_and_whether_it_can_be_rolled_back() {
    for (tags, protected) in [(Tags::Memory, true), (Tags::Disk, false)] {
        let blocks = ScratchBlocks::new(4097).unwrap();
        let expected = format!(
            r#"{{"encrypted":true,"ensureFilesystem":true,"filesystem":"ext4","mountPathRegex":"/run/gcs/c/[0-9a-fA-F]{{64}}","rollbackProtection":{protected},"size":16781312,"target":"/run/gcs/c/{}"}}"#,
            id('1')
        );
        assert_eq!(seen(|input| input::rw_mount_device(input, &container('1'), blocks, tags)), expected);
    }
    for (scratch, memory, folder) in [(None, true, '1'), (Some(container('2')), false, '2')] {
        let expected = format!(
            r#"{{"encrypted":true,"memory":{memory},"target":"/run/gcs/c/{}/scratch/{}"}}"#,
            id(folder),
            id('1')
        );
        let seen = seen(|input| input::scratch_mount(input, scratch.as_ref(), &container('1')));
        assert_eq!(seen, expected);
    }
}

#[test]
fn c01_a_process_is_seen_as_it_will_be_started_and_its_mounts_where_they_are() {
    let mut gate = with_container(&mut Recorder::default());
    let capabilities =
        Capabilities { bounding: 0b111, effective: 0b1, inheritable: 0b11, permitted: 0b101, ambient: 0b1 };
    let asked = Process {
        env: list(&["A=1", "B=2"]),
        working_dir: "/there",
        umask: 0o27,
        capabilities,
        ..process(&["/bin/a", "b"])
    };
    let first = gate.start_process(&Recorder::default(), &container('1'), &asked).unwrap();
    let common = [
        ("argList", r#"["/bin/a","b"]"#),
        (
            "capabilities",
            r#"{"ambient":["CAP_CHOWN"],"bounding":["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_DAC_READ_SEARCH"],"effective":["CAP_CHOWN"],"inheritable":["CAP_CHOWN","CAP_DAC_OVERRIDE"],"permitted":["CAP_CHOWN","CAP_DAC_READ_SEARCH"]}"#,
        ),
        ("containerID", &format!("{:?}", id('1'))),
        ("envList", r#"["A=1","B=2"]"#),
        ("groups", r#"[{"id":"7","name":"seven"}]"#),
        ("noNewPrivileges", "true"),
        ("terminal", "false"),
        ("umask", r#""0027""#),
        ("user", r#"{"id":"0","name":"root"}"#),
        ("workingDir", r#""/there""#),
    ];
    let object = |fields: &[(&str, &str)]| {
        let fields: BTreeMap<_, _> = fields.iter().copied().collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name:?}:{value}")).collect();
        format!("{{{}}}", fields.join(","))
    };
    let exec = seen(|input| input::exec_in_container(input, &container('1'), &first));
    assert_eq!(exec, object(&common));

    let mount = |source, destination, read_only| Mount {
        source,
        destination: MountPoint::parse(destination).unwrap(),
        read_only,
    };
    let mounts = [
        mount(Source::Directory(DirectoryName::parse("data").unwrap()), "/data", false),
        mount(Source::Layer(Slot(3)), "/layer", true),
        mount(Source::Volume(VolumeId([9; 32])), "/volume", true),
        mount(Source::Attestation(&[]), "/attestation", true),
    ];
    let creation = Creation {
        container: container('1'),
        privileged: true,
        scratch: container('2'),
        mounts: &mounts,
        profile: Some(ProfileHash([0xab; 32])),
        succeeded: &[container('3')],
        first: &first,
    };
    let (folder, profile) = (format!("/run/gcs/c/{}", id('2')), "ab".repeat(32));
    let at = |source: &str, destination: &str, access: &str| {
        format!(
            r#"{{"destination":"{destination}","options":["rbind","rshared","{access}"],"source":"{source}","type":"bind"}}"#
        )
    };
    let mounts = [
        at(&format!("{folder}/sandboxMounts/tmp/atlas/emptydir/data"), "/data", "rw"),
        at("/run/mounts/scsi/m3", "/layer", "ro"),
        at(&format!("/run/mounts/volumes/{}", "09".repeat(32)), "/volume", "ro"),
        at("/run/attestation", "/attestation", "ro"),
    ];
    let (huge_pages, sandbox) = (format!(r#""{folder}/hugepages""#), format!(r#""{folder}/sandboxMounts""#));
    let (mounts, profile, succeeded) =
        (format!("[{}]", mounts.join(",")), format!("{profile:?}"), format!("[{:?}]", id('3')));
    let more = [
        ("devices", "[]"),
        ("hugePagesDir", &huge_pages),
        ("isSandboxContainer", "false"),
        ("mounts", &mounts),
        ("privileged", "true"),
        ("sandboxDir", &sandbox),
        ("seccompProfileSHA256", &profile),
        ("succeeded", &succeeded),
    ];
    let expected = [&common[..], &more].concat();
    assert_eq!(seen(|input| input::create_container(input, &creation)), object(&expected));
}

#[test]
fn c11_a_signal_is_seen_with_the_command_of_the_process_that_it_is_for() {
    let gate = with_container(&mut Recorder::default());
    let process = &gate.objects.processes[0];
    let signal = Signal::new(9).unwrap();
    let seen = seen(|input| {
        input::signal_container_process(input, &container('1'), signal, process.init, &process.args)
    });
    let expected =
        format!(r#"{{"argList":["/bin/a"],"containerID":"{}","isInitProcess":true,"signal":9}}"#, id('1'));
    assert_eq!(seen, expected);
}

#[test]
fn c15_limits_are_seen_as_numbers_and_their_absence_too() {
    let asked = wire::Resources { memory: Some(1 << 20), cpu: None, processes: Some(7), paused: true };
    let resources = Resources::new(asked).unwrap();
    let seen = seen(|input| input::update_container(input, &container('1'), resources));
    let expected =
        format!(r#"{{"containerID":"{}","cpu":null,"memory":1048576,"paused":true,"processes":7}}"#, id('1'));
    assert_eq!(seen, expected);
}

#[test]
fn b11_a_network_is_seen_whole() {
    let (address, gateway) = (wire::Address::v4([10, 0, 2, 15]), wire::Address::v4([10, 0, 2, 2]));
    let everything = wire::Prefix { address: wire::Address::v4([0; 4]), length: 0 };
    let asked = wire::Network {
        addresses: List::from_vec(vec![wire::Prefix { address, length: 24 }]).unwrap(),
        routes: List::from_vec(vec![wire::Route { destination: everything, gateway }]).unwrap(),
        name_servers: List::from_vec(vec![gateway]).unwrap(),
        search: list(&["example.com"]),
        mtu: 1500,
    };
    let network = Network::parse(&asked).unwrap();
    let expected = r#"{"addresses":["10.0.2.15/24"],"mtu":1500,"nameServers":["10.0.2.2"],"routes":["0.0.0.0/0 via 10.0.2.2"],"search":["example.com"]}"#;
    assert_eq!(seen(|input| input::network(input, &network)), expected);
}
