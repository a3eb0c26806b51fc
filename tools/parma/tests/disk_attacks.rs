//! Disks that come, go and lie while the guest runs: attacks I02–I04, I08, I11 and L08 on the real VM, with a block device
//! that does what the test says, and the honest ways of disks beside them.

mod support;

use parma_guest::wire::{ExitStatus, Reason, Request, Stdio, Step, Stream, Tags};
use parma_policy::generate::GenerateOptions;
use parma_vmm::scripted::{Failure, Operation, When};
use parma_vmm::{Disk, Reply, ScriptedDisk, most_disks};
use std::io::Write;
use std::os::unix::net::UnixStream;
use support::{Guest, LONG, OUTPUT, READER, Stage, Workload, id, list, read_until, serial, stage, tar};
use tar::EntryType;

/// Errno of what a disk or dm-verity refused.
const EIO: u16 = 5;
/// Errno of a device that is not there.
const ENODEV: u16 = 19;

/// Disks that can be plugged in, in a test that does.
const PORTS: u32 = 8;

/// A machine into which disks can be plugged, with this policy in force.
fn start_with_ports(stage: &Stage, workload: &Workload, disks: Vec<Disk>) -> Guest {
    let mut config = stage.config(workload.policy.host_data(), disks);
    config.ports = PORTS;
    let guest = stage.launch(&config);
    guest.accept(&workload.policy.image);
    guest
}

/// A container that prints one word.
fn echo(stage: &Stage) -> Workload {
    stage.workload("busybox", &["echo", "honest"], GenerateOptions::default())
}

fn mount<'a>(workload: &Workload, device: &'a str, index: usize) -> Request<'a> {
    let layer = &workload.layers[index];
    Request::MountDevice { device, root_hash: layer.root_hash, data_blocks: layer.data_blocks }
}

/// The honest twin: the workload's container comes up. Its layers are mounted.
fn honest_container_runs(guest: &Guest, workload: &Workload) {
    guest.mount_overlay(workload, &id('1'));
    let process = guest.create(workload, &id('1'), OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!((output.as_str(), status), ("honest\n", ExitStatus::Code(0)), "{}", guest.console());
}

/// The workload's disks, its top layer one that a test drives.
fn scripted_top(workload: &Workload) -> (Vec<Disk>, ScriptedDisk) {
    let mut disks = workload.disks();
    let top = disks.pop().expect("a layer");
    let script = ScriptedDisk::copy_of(&workload.layers.last().unwrap().path).unwrap();
    disks.push(Disk { read_only: true, ..Disk::scripted(&script, top.serial) });
    (disks, script)
}

/// A container that prints the beginning of each file of a layer that a test drives, when it is told the file's name.
/// Everything that runs is in the layers below.
struct Reader {
    guest: Guest,
    workload: Workload,
    disk: ScriptedDisk,
    process: u32,
    input: UnixStream,
    output: UnixStream,
}

/// Where on the reader's disk the content of file 0 begins. That of the others follows, in their order.
fn content(workload: &Workload) -> u64 {
    let image = std::fs::read(&workload.layers.last().unwrap().path).unwrap();
    image.chunks(4096).position(|block| block == [b'a'; 4096]).unwrap() as u64 * 4096
}

/// The hash block that vouches for this place of the reader's disk: leaves come last, and a hash takes 32 bytes.
fn leaf(workload: &Workload, place: u64) -> u64 {
    let layer = workload.layers.last().unwrap();
    let leaves = layer.data_blocks.div_ceil(128);
    std::fs::metadata(&layer.path).unwrap().len() - (leaves - place / 4096 / 128) * 4096
}

/// Names and content of the files: enough that a hash block covers only some of them.
fn files() -> Vec<(String, Vec<u8>)> {
    (0..64).map(|number| (format!("data/{number}"), vec![b'a' + number % 26; 64 << 10])).collect()
}

impl Reader {
    fn new(stage: &Stage) -> Self {
        Self::after(stage, |_, _| {})
    }

    /// One to whose disk something is done before the guest sees it.
    fn after(stage: &Stage, prepare: impl FnOnce(&ScriptedDisk, &Workload)) -> Self {
        let files = files();
        let entries: Vec<_> =
            files.iter().map(|(name, content)| (EntryType::Regular, &**name, "", &**content)).collect();
        let layout = stage.layout("python", "reader", &tar(&entries), |_| {});
        let options = GenerateOptions::default();
        let workload =
            stage.workload_of(&layout, "reader", &["python3", "-c", READER], options, |policy| policy);
        let (disks, disk) = scripted_top(&workload);
        prepare(&disk, &workload);
        let guest = stage.boot(workload.policy.host_data(), disks);
        guest.accept(&workload.policy.image);
        let process = guest.run(&workload, &id('1'), Stdio { stdin: true, ..OUTPUT });
        let mut output = guest.attach(process, Stream::Stdout);
        let input = guest.attach(process, Stream::Stdin);
        read_until(&mut output, "ready\n");
        Self { guest, workload, disk, process, input, output }
    }

    fn ask(&mut self, name: &str) {
        self.input.write_all(format!("{name}\n").as_bytes()).unwrap();
    }

    fn answer(&mut self) -> String {
        read_until(&mut self.output, "\n")
    }

    fn read(&mut self, name: &str) -> String {
        self.ask(name);
        self.answer()
    }

    fn content(&self) -> u64 {
        content(&self.workload)
    }

    /// Everything comes apart in the honest order.
    fn take_apart(self) {
        self.guest.done(Request::ShutdownContainer { container: &id('1') });
        self.guest.done(Request::UnmountOverlay { container: &id('1') });
        for index in (0..self.workload.layers.len()).rev() {
            self.guest.done(Request::UnmountDevice { device: &self.workload.serial(index) });
        }
    }
}

#[test]
fn a_disk_that_is_plugged_in_late_is_found_and_can_be_taken_off_and_come_again() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let mut guest = start_with_ports(&stage, &workload, vec![]);
    for round in 0..2 {
        // The request is on its way before the guest's kernel has seen the disk.
        let attached: Vec<_> =
            workload.disks().iter().map(|disk| guest.machine.attach(disk).unwrap()).collect();
        guest.mount_layers(&workload);
        if round == 0 {
            for index in 0..workload.layers.len() {
                guest.done(Request::UnmountDevice { device: &workload.serial(index) });
            }
            for disk in attached {
                guest.machine.detach(disk).unwrap();
            }
            let refused = guest.refused(mount(&workload, &workload.serial(0), 0));
            assert_eq!(refused, Reason::Failed { step: Step::FindDevice, errno: ENODEV });
        }
    }
    honest_container_runs(&guest, &workload);
}

#[test]
fn more_layers_than_one_bus_has_slots_are_mounted_beside_disks_that_are_plugged_in() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let filler = stage.file("filler", &[0; 4096]);
    for (vcpus, ports) in [(1, PORTS), (2, 32)] {
        let most = most_disks(vcpus, ports);
        let fill = (workload.layers.len()..most)
            .map(|number| Disk::layer(&filler, serial(&format!("filler{number}"))));
        let mut config = stage.config(workload.policy.host_data(), fill.chain(workload.disks()).collect());
        (config.vcpus, config.ports) = (vcpus, ports);
        let mut guest = stage.launch(&config);
        guest.accept(&workload.policy.image);
        guest.mount_layers(&workload);
        let bottom = &workload.layers[0].path;
        for port in 0..ports {
            let _ = guest.machine.attach(&Disk::layer(bottom, serial(&format!("late{port}")))).unwrap();
        }
        for port in 0..ports {
            guest.done(mount(&workload, &format!("late{port}"), 0));
        }
        let error = guest.machine.attach(&Disk::layer(bottom, serial("one-too-many"))).unwrap_err();
        assert!(error.to_string().contains("take one off"), "{error}");
        honest_container_runs(&guest, &workload);
    }
}

#[test]
fn the_same_file_twice_is_two_devices() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let again = Disk::layer(&workload.layers[0].path, serial("again"));
    let guest = stage.boot(workload.policy.host_data(), [workload.disks(), vec![again]].concat());
    guest.accept(&workload.policy.image);
    guest.mount_layers(&workload);
    guest.done(mount(&workload, "again", 0));
    honest_container_runs(&guest, &workload);
    // It is a device of its own: it goes, and the container's stays.
    guest.done(Request::UnmountDevice { device: "again" });
    let refused = guest.refused(Request::UnmountDevice { device: &workload.serial(0) });
    assert!(matches!(refused, Reason::InUse { .. }), "{refused:?}");
}

#[test]
fn i02_a_block_that_lies_on_its_way_is_an_error_until_it_is_read_as_it_should_be() {
    let Some(stage) = stage() else { return };
    let mut reader = Reader::new(&stage);
    // Every read of the first file's first block lies.
    let place = reader.content();
    reader.disk.flip(When::is(Operation::Read), place, 0x40);
    assert_eq!(reader.read("0"), "EIO\n");
    assert_eq!(reader.read("1"), "bbbbbbbb\n");
    assert_eq!(reader.read("0"), "EIO\n", "not what an earlier read left");
    // As soon as it is honest again, so is what is read.
    reader.disk.behave();
    assert_eq!(reader.read("0"), "aaaaaaaa\n");
    assert!(reader.guest.console().contains("verity"), "the kernel says why");
    assert!(reader.disk.accesses().iter().all(|access| access.operation == Operation::Read));
    reader.take_apart();
}

#[test]
fn i02_a_hash_block_that_lies_makes_what_it_vouches_for_unreadable_and_nothing_else() {
    let Some(stage) = stage() else { return };
    // The leaf of a file in the middle, so that it vouches for none of what describes the filesystem.
    let mut reader = Reader::after(&stage, |disk, workload| {
        let leaf = leaf(workload, content(workload) + 40 * (64 << 10));
        disk.flip(When::is(Operation::Read), leaf + 77, 1);
    });
    assert_eq!(reader.read("40"), "EIO\n");
    assert_eq!(reader.read("0"), "aaaaaaaa\n");
    assert_eq!(reader.read("63"), "llllllll\n");
    reader.take_apart();
}

#[test]
fn i02_old_content_of_a_disk_is_not_read_as_new() {
    let Some(stage) = stage() else { return };
    let mut reader = Reader::new(&stage);
    // Another layer's blocks, each of them once vouched for somewhere, in the place of this one's.
    let other = ScriptedDisk::copy_of(&reader.workload.layers[0].path).unwrap().snapshot().unwrap();
    let place = reader.content();
    reader.disk.serve(When::is(Operation::Read).at(place..place + (64 << 10)), &other);
    assert_eq!(reader.read("0"), "EIO\n");
    // And this layer's own blocks, in each other's place.
    reader.disk.behave();
    let (first, second) = (place + (2 << 16), place + (3 << 16));
    let (two, three) = (reader.disk.read(first, 4096).unwrap(), reader.disk.read(second, 4096).unwrap());
    reader.disk.write(first, &three).unwrap();
    reader.disk.write(second, &two).unwrap();
    assert_eq!((reader.read("2"), reader.read("3")), ("EIO\n".to_owned(), "EIO\n".to_owned()));
    assert_eq!(reader.read("1"), "bbbbbbbb\n");
    reader.take_apart();
}

#[test]
fn i03_content_that_is_exchanged_at_any_read_of_a_mount_is_refused() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let (disks, disk) = scripted_top(&workload);
    let top = workload.layers.len() - 1;
    let device = workload.serial(top);
    let guest = stage.boot(workload.policy.host_data(), disks);
    guest.accept(&workload.policy.image);
    let honest = disk.snapshot().unwrap();
    let other = ScriptedDisk::copy_of(&workload.layers[0].path).unwrap().snapshot().unwrap();
    // How many reads a mount takes, when nothing goes wrong.
    disk.forget_accesses();
    guest.done(mount(&workload, &device, top));
    let reads = disk.accesses().len() as u64;
    guest.done(Request::UnmountDevice { device: &device });
    assert!(reads > 1, "{reads}");
    for read in 0..reads {
        let held = disk.hold(When::is(Operation::Read).after(read).times(1));
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| guest.request(mount(&workload, &device, top)));
            assert!(held.caught(LONG).is_some(), "read {read} of {reads}");
            disk.restore(&other).unwrap();
            held.release();
            match refused.join().unwrap() {
                Err(refused) => {
                    let errno = |reason: &Reason| {
                        matches!(
                            reason,
                            Reason::Failed {
                                step: Step::LayerFilesystem | Step::Mount,
                                errno: EIO | 117 | 22
                            }
                        )
                    };
                    assert!(errno(&refused.0.reason), "read {read}: {refused:?}");
                }
                // The last reads may be ahead of what the mount needed.
                Ok(_) => {
                    guest.done(Request::UnmountDevice { device: &device });
                }
            }
        });
        disk.behave();
        disk.restore(&honest).unwrap();
    }
    guest.mount_layers(&workload);
    honest_container_runs(&guest, &workload);
}

#[test]
fn i04_a_disk_that_shrinks_after_its_size_was_checked_gives_errors_and_nothing_else() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let (disks, disk) = scripted_top(&workload);
    let top = workload.layers.len() - 1;
    let device = workload.serial(top);
    // A second copy that QEMU itself makes shorter, and says so to the guest.
    let copy = stage.file("shrinks", &std::fs::read(&workload.layers[top].path).unwrap());
    let index = disks.len();
    let disks = [disks, vec![Disk::writable(&copy, serial("shrinks"))]].concat();
    let mut guest = stage.boot(workload.policy.host_data(), disks);
    guest.accept(&workload.policy.image);
    let held = disk.hold(When::is(Operation::Read).times(1));
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| guest.refused(mount(&workload, &device, top)));
        assert!(held.caught(LONG).is_some());
        disk.shrink(4096);
        held.release();
        assert_eq!(refused.join().unwrap(), Reason::Failed { step: Step::LayerFilesystem, errno: EIO });
    });
    disk.restore(&ScriptedDisk::copy_of(&workload.layers[top].path).unwrap().snapshot().unwrap()).unwrap();
    disk.behave();
    // Mounted first, shorter later.
    guest.done(mount(&workload, "shrinks", top));
    guest.machine.resize(index, 64 << 10).unwrap();
    guest.mount_layers(&workload);
    honest_container_runs(&guest, &workload);
    guest.done(Request::UnmountDevice { device: "shrinks" });
    let refused = guest.refused(mount(&workload, "shrinks", top));
    assert!(matches!(refused, Reason::Failed { step: Step::DeviceSize, .. }), "{refused:?}");
}

#[test]
fn i08_a_mount_that_fails_at_any_read_is_undone_and_can_be_tried_again() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let (disks, disk) = scripted_top(&workload);
    let top = workload.layers.len() - 1;
    let (bottom, device) = (workload.serial(0), workload.serial(top));
    let guest = stage.boot(workload.policy.host_data(), disks);
    guest.accept(&workload.policy.image);
    let mut steps = Vec::new();
    for read in 0.. {
        // That read and all later ones.
        disk.fail(When::is(Operation::Read).after(read), Failure::Io);
        let outcome = guest.request(mount(&workload, &device, top));
        disk.behave();
        match outcome {
            Ok(_) => break,
            Err(refused) => match refused.0.reason {
                Reason::Failed { step, errno: EIO } => steps.push(step),
                other => panic!("read {read}: {other:?}"),
            },
        }
        let refused = guest.refused(Request::UnmountDevice { device: &device });
        assert!(matches!(refused, Reason::Unknown { .. }), "{refused:?}");
        let layers = list([&*device, &*bottom]);
        let refused = guest.refused(Request::MountOverlay { container: &id('1'), layers, scratch: None });
        assert!(matches!(refused, Reason::Unknown { .. }), "{refused:?}");
    }
    assert!(steps.contains(&Step::LayerFilesystem) && steps.contains(&Step::Mount), "{steps:?}");
    (0..top).for_each(|index| guest.mount_layer(&workload, index));
    honest_container_runs(&guest, &workload);
}

#[test]
fn l08_a_disk_that_vanishes_in_the_middle_of_a_read_is_an_error_to_its_reader() {
    let Some(stage) = stage() else { return };
    let mut reader = Reader::new(&stage);
    let place = reader.content();
    let held = reader.disk.hold(When::is(Operation::Read).at(place..place + 1));
    reader.ask("0");
    assert!(held.caught(LONG).is_some());
    reader.disk.disconnect();
    held.release();
    assert_eq!(reader.answer(), "EIO\n");
    // The container goes on, and so does the guest.
    assert_eq!(reader.read("5"), "EIO\n");
    reader.take_apart();
}

#[test]
fn l08_a_slow_disk_delays_its_reader_and_nobody_else() {
    let Some(stage) = stage() else { return };
    let mut reader = Reader::new(&stage);
    let place = reader.content();
    let held = reader.disk.hold(When::is(Operation::Read).at(place..place + 1));
    reader.ask("0");
    assert!(held.caught(LONG).is_some());
    // The guest answers, and the container's other processes could run.
    assert!(matches!(reader.guest.done(Request::GetProperties), Reply::Properties(_)));
    held.release();
    assert_eq!(reader.answer(), "aaaaaaaa\n");
    reader.input.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(reader.guest.wait(reader.process), ExitStatus::Code(0));
}

#[test]
fn l08_a_layer_that_is_unplugged_under_a_container_leaves_the_guest_and_others_running() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let mut guest = start_with_ports(&stage, &workload, vec![]);
    let attached: Vec<_> = workload.disks().iter().map(|disk| guest.machine.attach(disk).unwrap()).collect();
    guest.mount_layers(&workload);
    guest.mount_overlay(&workload, &id('1'));
    for disk in attached {
        guest.machine.detach(disk).unwrap();
    }
    // Whatever of the layers is not in memory cannot be had: no container starts, and the guest says so.
    let refused = guest.request(Request::CreateContainer {
        container: &id('1'),
        privileged: false,
        mounts: parma_guest::wire::List::new(),
        seccomp: None,
        process: workload.process(OUTPUT),
    });
    if let Err(refused) = &refused {
        assert!(matches!(refused.0.reason, Reason::Failed { .. }), "{refused:?}");
    } else {
        guest.done(Request::ShutdownContainer { container: &id('1') });
    }
    // All of it comes apart, and the same layers serve another container when they are back.
    guest.done(Request::UnmountOverlay { container: &id('1') });
    for index in (0..workload.layers.len()).rev() {
        guest.done(Request::UnmountDevice { device: &workload.serial(index) });
    }
    let _attached: Vec<_> = workload.disks().iter().map(|disk| guest.machine.attach(disk).unwrap()).collect();
    guest.mount_layers(&workload);
    guest.mount_overlay(&workload, &id('2'));
    let (output, _) = guest.finish(guest.create(&workload, &id('2'), OUTPUT));
    assert_eq!(output, "honest\n");
}

/// A container that writes a file to its scratch space and asks for it to be lasting, each time it is told to.
struct Writer {
    input: UnixStream,
    output: UnixStream,
}

impl Writer {
    fn workload(stage: &Stage) -> Workload {
        let script = "\
import errno, os, sys
for line in sys.stdin:
    try:
        file = os.open('/tmp/' + line.strip(), os.O_WRONLY | os.O_CREAT, 0o600)
        os.pwrite(file, bytes(1 << 18), 0)
        os.fsync(file)
        os.close(file)
        print('done', flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
";
        stage.workload("python", &["python3", "-c", script], GenerateOptions::default())
    }

    /// Of this container, which writes to the scratch space of the same id.
    fn start(guest: &Guest, workload: &Workload, container: &str) -> Self {
        guest.mount_overlay_on(workload, container, Some(container));
        let process = guest.create(workload, container, Stdio { stdin: true, ..OUTPUT });
        Self { input: guest.attach(process, Stream::Stdin), output: guest.attach(process, Stream::Stdout) }
    }

    fn write(&mut self, name: &str) -> String {
        writeln!(self.input, "{name}").unwrap();
        read_until(&mut self.output, "\n").trim_end().to_owned()
    }
}

/// Bytes and blocks of a scratch disk.
const SCRATCH: u64 = 32 << 20;

fn scratch<'a>(id: &'a str, device: &'a str) -> Request<'a> {
    Request::MountScratch { scratch: id, device, data_blocks: SCRATCH / 4096, tags: Tags::Memory }
}

#[test]
fn l08_a_scratch_disk_that_is_full_fails_shrinks_or_vanishes_is_an_error_to_its_writer_and_to_nobody_else() {
    type Fault = fn(&ScriptedDisk);
    let faults: [(&str, Fault); 4] = [
        ("full", |disk| disk.fail(When::is(Operation::Write), Failure::NoSpace)),
        ("flush", |disk| disk.fail(When::is(Operation::Flush), Failure::Io)),
        ("shrinks", |disk| disk.shrink(1 << 20)),
        ("vanishes", ScriptedDisk::disconnect),
    ];
    let Some(stage) = stage() else { return };
    let workload = Writer::workload(&stage);
    let disks: Vec<_> = (0..=faults.len()).map(|_| ScriptedDisk::zeroed(SCRATCH).unwrap()).collect();
    let attached = disks.iter().enumerate();
    let attached = attached.map(|(at, disk)| Disk::scripted(disk, serial(&format!("scratch{at}"))));
    let guest =
        stage.boot(workload.policy.host_data(), workload.disks().into_iter().chain(attached).collect());
    guest.accept(&workload.policy.image);
    guest.mount_layers(&workload);
    let container = |at: usize| id(char::from_digit(at as u32 + 1, 16).unwrap());
    let mut writers: Vec<_> = (0..disks.len())
        .map(|at| {
            guest.done(scratch(&container(at), &format!("scratch{at}")));
            Writer::start(&guest, &workload, &container(at))
        })
        .collect();
    let mut honest = writers.pop().unwrap();
    for (at, ((name, fault), writer)) in faults.iter().zip(&mut writers).enumerate() {
        assert_eq!(writer.write("before"), "done", "{name}");
        fault(&disks[at]);
        assert_eq!(writer.write("after"), "EIO", "{name}: {}", guest.console());
        assert_eq!(honest.write(name), "done", "{name}");
        assert!(matches!(guest.done(Request::GetProperties), Reply::Properties(_)));
        // It comes apart: what could not be written is lost, and nothing of it is left in the guest.
        guest.done(Request::ShutdownContainer { container: &container(at) });
        guest.done(Request::UnmountOverlay { container: &container(at) });
        guest.done(Request::UnmountScratch { scratch: &container(at) });
    }
    assert_eq!(honest.write("last"), "done");
}

#[test]
fn l08_a_scratch_disk_that_is_unplugged_is_an_error_to_its_writer_and_can_be_replaced() {
    let Some(stage) = stage() else { return };
    let workload = Writer::workload(&stage);
    let mut guest = start_with_ports(&stage, &workload, workload.disks());
    guest.mount_layers(&workload);
    for round in ['1', '2'] {
        let disk = ScriptedDisk::zeroed(SCRATCH).unwrap();
        let attached = guest.machine.attach(&Disk::scripted(&disk, serial("scratch0"))).unwrap();
        guest.done(scratch(&id(round), "scratch0"));
        let mut writer = Writer::start(&guest, &workload, &id(round));
        assert_eq!(writer.write("before"), "done");
        guest.machine.detach(attached).unwrap();
        assert_eq!(writer.write("after"), "EIO", "{}", guest.console());
        guest.done(Request::ShutdownContainer { container: &id(round) });
        guest.done(Request::UnmountOverlay { container: &id(round) });
        guest.done(Request::UnmountScratch { scratch: &id(round) });
    }
}
