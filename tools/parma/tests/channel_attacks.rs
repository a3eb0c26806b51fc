//! The host breaks the protocol, and others try to speak it: attacks T01–T03, T05, T08 on the real VM.

mod support;

use parma_guest::wire::frame::{HEADER, MAX_FRAME, encode};
use parma_guest::wire::{
    Attach, CONTROL_PORT, ExitStatus, List, Phase, Reason, Request, STREAM_PORT, Stdio, Stream, ToGuest,
};
use parma_policy::generate::GenerateOptions;
use parma_vmm::{Image, Machine, Reply};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use support::{Guest, LONG, OUTPUT, arguments, id, list, memory_of, read_until, stage, strings};

/// The guest's reply to a frame that it cannot read: Reply (1) to request 0, refused (1) by Host (0), Malformed (0).
const MALFORMED: [u8; 5] = [1, 0, 1, 0, 0];

/// Sends these bytes on a control connection of their own; returns the bodies of so many answers.
fn say(machine: &mut Machine, bytes: &[u8], answers: usize) -> Vec<Vec<u8>> {
    let (mut control, _) = machine.control().unwrap();
    control.send_bytes(bytes).unwrap();
    (0..answers).map(|_| control.receive().unwrap().expect("an answer")).collect()
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

#[test]
fn t01_malformed_frames_are_refused_and_change_nothing() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["cat"], GenerateOptions::default());
    let mut guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), Stdio { stdin: true, ..OUTPUT });
    let mut input = guest.attach(process, Stream::Stdin);
    let mut output = guest.attach(process, Stream::Stdout);
    drop(guest.session);
    let request = encode(&ToGuest { sequence: 1, request: Request::GetProperties }).unwrap();
    let body = &request[HEADER..];
    let answered: [(&str, Vec<u8>); 9] = [
        ("length 0", vec![0; 4]),
        ("length over the limit", (MAX_FRAME as u32 + 1).to_le_bytes().to_vec()),
        ("length 4 GiB", vec![0xff; 4]),
        ("unknown request", framed(&[1, 99])),
        ("overlong number", framed(&[&[0x81, 0x00][..], &body[1..]].concat())),
        ("trailing byte", framed(&[body, &[0]].concat())),
        ("empty request", framed(&[1])),
        ("no UTF-8", framed(&[1, 2, 2, 0xff, 0xfe])),
        ("a list of four billion", framed(&[1, 3, 0, 0xff, 0xff, 0xff, 0xff, 0x0f])),
    ];
    for (what, bytes) in answered {
        assert_eq!(say(&mut guest.machine, &bytes, 1), [MALFORMED], "{what}");
    }
    for end in [0, 1, HEADER, request.len() - 1] {
        // The host hangs up inside a frame; that the next connection is served is the answer.
        say(&mut guest.machine, &request[..end], 0);
    }
    // The container went on all the while, and so does the honest host.
    input.write_all(b"still here\n").unwrap();
    read_until(&mut output, "still here\n");
    guest.session = guest.machine.session().unwrap();
    assert_eq!(guest.session.phase(), Phase::Running);
    assert!(matches!(guest.done(Request::GetProperties), Reply::Properties(_)));
}

#[test]
fn t01_malformed_attachments_are_refused() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["echo", "honest"], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    for bytes in [vec![0; 4], vec![0xff; 4], framed(&[1, 9]), framed(&[0x81, 0x00, 1]), vec![b'x'; 4096]] {
        let mut stream = guest.machine.connector().connect(STREAM_PORT).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        // The guest may hang up before it has taken all of it.
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "nothing of a stream: {answer:?}");
    }
    let good = encode(&Attach { process, stream: Stream::Stdout }).unwrap();
    assert_eq!(good.len(), HEADER + 2);
    assert_eq!(guest.finish(process), ("honest\n".to_owned(), ExitStatus::Code(0)));
}

#[test]
fn t02_requests_out_of_order_are_refused_in_every_state() {
    let Some(stage) = stage() else { return };
    let listed = strings(&["true"]);
    let options = GenerateOptions { exec: vec![listed.clone()], ..GenerateOptions::default() };
    let workload = stage.workload("busybox", &["cat"], options);
    let guest = stage.boot(workload.policy.host_data(), workload.disks());
    let container = id('1');
    let serials = workload.overlay_layers();
    let requests = || {
        let process = workload.process(Stdio { stdin: true, ..OUTPUT });
        let layer = &workload.layers[0];
        let (root_hash, data_blocks) = (layer.root_hash, layer.data_blocks);
        [
            ("mount", Request::MountDevice { device: &serials[1], root_hash, data_blocks }),
            ("unmount", Request::UnmountDevice { device: &serials[1] }),
            (
                "overlay",
                Request::MountOverlay {
                    container: &container,
                    layers: list(serials.iter().map(String::as_str)),
                    scratch: None,
                },
            ),
            ("unoverlay", Request::UnmountOverlay { container: &container }),
            (
                "create",
                Request::CreateContainer {
                    container: &container,
                    privileged: false,
                    mounts: List::new(),
                    seccomp: None,
                    process,
                },
            ),
            (
                "exec",
                Request::ExecInContainer {
                    container: &container,
                    process: workload.process_with(&listed, OUTPUT),
                },
            ),
            ("signal", Request::SignalContainerProcess { container: &container, process: 1, signal: 9 }),
            ("shutdown", Request::ShutdownContainer { container: &container }),
        ]
    };
    let refuses = |guest: &Guest, state: &str, names: &[&str]| {
        for (name, request) in requests() {
            if names.contains(&name) {
                let reason = guest.refused(request);
                let mild = matches!(
                    reason,
                    Reason::WrongPhase { .. } | Reason::Unknown { .. } | Reason::InUse { .. }
                );
                assert!(mild, "{name} {state}: {reason:?}");
            }
        }
    };
    refuses(
        &guest,
        "before the policy",
        &["mount", "unmount", "overlay", "unoverlay", "create", "exec", "signal", "shutdown"],
    );
    guest.accept(&workload.policy.image);
    refuses(
        &guest,
        "before layers",
        &["unmount", "overlay", "unoverlay", "create", "exec", "signal", "shutdown"],
    );
    guest.mount_layers(&workload);
    refuses(&guest, "before the overlay", &["mount", "unoverlay", "create", "exec", "signal", "shutdown"]);
    guest.mount_overlay(&workload, &container);
    refuses(&guest, "before the container", &["mount", "unmount", "overlay", "exec", "signal", "shutdown"]);
    let process = guest.create(&workload, &container, Stdio { stdin: true, ..OUTPUT });
    refuses(&guest, "while it runs", &["mount", "unmount", "overlay", "unoverlay", "create"]);
    assert_eq!(guest.exec(&workload, &container, &["true"]).1, ExitStatus::Code(0));
    drop(guest.attach(process, Stream::Stdin));
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
    refuses(&guest, "after it has ended", &["mount", "unmount", "overlay", "unoverlay", "create", "signal"]);
    guest.done(Request::ShutdownContainer { container: &container });
    refuses(
        &guest,
        "after shutdown",
        &["mount", "unmount", "overlay", "create", "exec", "signal", "shutdown"],
    );
    guest.done(Request::UnmountOverlay { container: &container });
    refuses(&guest, "without the overlay", &["overlay", "unoverlay", "create", "exec", "signal", "shutdown"]);
}

#[test]
fn t03_a_second_control_connection_gets_nothing_and_disturbs_nothing() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["true"], GenerateOptions::default());
    let mut guest = stage.start(&workload);
    for _ in 0..5 {
        let mut second = guest.machine.connector().connect(CONTROL_PORT).unwrap();
        second.set_read_timeout(Some(LONG)).unwrap();
        let _ = second.write_all(&encode(&ToGuest { sequence: 1, request: Request::PowerOff }).unwrap());
        let mut answer = Vec::new();
        let _ = second.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{answer:?}");
    }
    assert!(matches!(guest.done(Request::GetProperties), Reply::Properties(_)));
    // When the first is gone the next may come; what was, stays.
    guest.mount_layer(&workload, 0);
    drop(guest.session);
    guest.session = guest.machine.session().unwrap();
    assert_eq!(guest.session.phase(), Phase::Running);
    let Reply::Properties(properties) = guest.done(Request::GetProperties) else { panic!("properties") };
    assert_eq!(properties.devices.len(), 1);
}

#[test]
fn t03_a_container_cannot_reach_the_control_channel() {
    let Some(stage) = stage() else { return };
    let script = "\
import errno, socket
try:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
except OSError as error:
    print(errno.errorcode[error.errno])
else:
    raise SystemExit('a vsock socket')
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
    socket.socket(family, socket.SOCK_STREAM).close()
";
    let workload = stage.workload("python", &["python3", "-c", script], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    assert_eq!(guest.finish(process), ("EAFNOSUPPORT\n".to_owned(), ExitStatus::Code(0)));
}

#[test]
fn t05_requests_sent_early_are_served_one_after_another() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["true"], GenerateOptions::default());
    let mut guest = stage.start(&workload);
    drop(guest.session);
    let layer = &workload.layers[0];
    let (device, root_hash, data_blocks) = (&*workload.serial(0), layer.root_hash, layer.data_blocks);
    let requests = [
        Request::MountDevice { device, root_hash, data_blocks },
        Request::UnmountDevice { device },
        Request::MountDevice { device, root_hash, data_blocks },
        Request::UnmountDevice { device },
    ];
    let frames: Vec<u8> = (1..)
        .zip(requests)
        .flat_map(|(sequence, request)| encode(&ToGuest { sequence, request }).unwrap())
        .collect();
    // Reply (1) to each number: Ok (0), Done (0).
    let expected: Vec<Vec<u8>> = (1..=4).map(|sequence| vec![1, sequence, 0, 0]).collect();
    assert_eq!(say(&mut guest.machine, &frames, 4), expected);
    // A number that is not the next: OutOfSequence (1), expected 1.
    let skipped = encode(&ToGuest { sequence: 2, request: Request::PowerOff }).unwrap();
    assert_eq!(say(&mut guest.machine, &skipped, 1), [[1, 2, 1, 0, 1, 1]]);
    guest.session = guest.machine.session().unwrap();
    guest.mount_layers(&workload);
}

#[test]
fn t08_an_init_that_dies_takes_the_machine_with_it() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["sleep", "600"], GenerateOptions::default());
    let mut config = stage.config(workload.policy.host_data(), workload.disks());
    config.extra_args = arguments(&["-name", "t08"]);
    let mut machine = Machine::launch(&config).unwrap();
    let session = machine.session().unwrap();
    let mut guest = Guest { machine, session };
    guest.accept(&workload.policy.image);
    guest.run(&workload, &id('1'), OUTPUT);
    // Without SNP the host can write the guest's memory. It makes every instruction of the init an invalid one; those
    // that have not run yet are not in the emulator's cache of translations.
    let init = std::fs::read(workspace_file(&stage.image, "init")).unwrap();
    assert!(overwrite_code(&memory_of("t08"), &init) > 0, "the init's pages are found");
    let container = id('1');
    let _ = guest.session.request(Request::ShutdownContainer { container: &container });
    let exit = guest.machine.wait(LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?}");
    assert!(guest.console().contains("Attempted to kill init"), "{}", guest.console());
}

#[test]
fn t08_an_image_for_snp_hardware_powers_off_where_there_is_no_report() {
    let (Some(stage), Some(real)) = (stage(), std::env::var_os("PARMA_IMAGE_REAL")) else { return };
    let workload = stage.workload("busybox", &["true"], GenerateOptions::default());
    let mut config = stage.config(workload.policy.host_data(), workload.disks());
    config.image = Image::open(Path::new(&real)).unwrap();
    let mut machine = Machine::launch(&config).unwrap();
    let exit = machine.wait(LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?}");
    let console = String::from_utf8_lossy(&machine.console().unwrap()).into_owned();
    assert!(console.contains("no report"), "{console}");
}

fn workspace_file(image: &Image, name: &str) -> PathBuf {
    image.kernel.with_file_name(name)
}

/// Replaces every page of memory that is a page of this program's code; returns how many.
fn overwrite_code(memory: &Path, program: &[u8]) -> usize {
    const PAGE: usize = 4096;
    /// `ud2`
    const INVALID: [u8; 2] = [0x0f, 0x0b];
    let pages: std::collections::HashSet<&[u8]> = program
        .chunks_exact(PAGE)
        .filter(|page| page.iter().filter(|&&byte| byte == 0).count() < PAGE / 2)
        .collect();
    let file = OpenOptions::new().read(true).write(true).open(memory).unwrap();
    let size = file.metadata().unwrap().len();
    let mut page = vec![0; PAGE];
    let mut replaced = 0;
    for at in (0..size).step_by(PAGE) {
        file.read_exact_at(&mut page, at).unwrap();
        if pages.contains(&page[..]) {
            file.write_all_at(&INVALID.repeat(PAGE / 2), at).unwrap();
            replaced += 1;
        }
    }
    replaced
}
