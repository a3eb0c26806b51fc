//! The machine and the session against a real guest. Needs `PARMA_IMAGE`, an image built with `--emulated`.

use parma_guest::wire::{CONTROL_PORT, Phase, Reason, Request};
use parma_vmm::{Config, Image, Machine, Reply};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sha2::{Digest as _, Sha256};
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const NOT_A_POLICY: &[u8] = b"no policy image";
/// More than a guest needs to end, on any machine.
const LONG: Duration = Duration::from_secs(60);

/// A machine whose HOST_DATA vouches for [`NOT_A_POLICY`]; `None` where there is no image.
fn config() -> Option<Config> {
    let Some(dir) = std::env::var_os("PARMA_IMAGE") else {
        eprintln!("skipped: PARMA_IMAGE names no image; run `cargo xtask test`");
        return None;
    };
    let image = Image::open(Path::new(&dir)).unwrap();
    Some(Config::new(image, Sha256::digest(NOT_A_POLICY).into()))
}

#[test]
fn a_guest_boots_answers_and_powers_off_when_asked() {
    let Some(config) = config() else { return };
    let mut machine = Machine::launch(&config).unwrap();
    let session = machine.session().unwrap();
    assert_eq!(session.phase(), Phase::AwaitPolicy);
    let refused = session.request(Request::SetPolicy { image: b"another" }).unwrap().unwrap_err();
    assert_eq!(refused.0.reason, Reason::NotHostData);
    let refused = session.request(Request::SetPolicy { image: NOT_A_POLICY }).unwrap().unwrap_err();
    assert_eq!(refused.0.reason, Reason::PolicyInvalid);
    let refused = session.request(Request::GetProperties).unwrap().unwrap_err();
    assert_eq!(refused.0.reason, Reason::WrongPhase { phase: Phase::AwaitPolicy });
    assert_eq!(session.request(Request::PowerOff).unwrap(), Ok(Reply::Done));
    let exit = machine.wait(LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?}");
}

#[test]
fn a_session_can_be_opened_again_and_starts_at_one() {
    let Some(config) = config() else { return };
    let mut machine = Machine::launch(&config).unwrap();
    for _ in 0..3 {
        let session = machine.session().unwrap();
        let refused = session.request(Request::GetProperties).unwrap().unwrap_err();
        assert_eq!(refused.0.reason, Reason::WrongPhase { phase: Phase::AwaitPolicy });
    }
}

#[test]
fn a_port_without_a_listener_refuses_and_does_not_hang() {
    let Some(config) = config() else { return };
    let mut machine = Machine::launch(&config).unwrap();
    let _session = machine.session().unwrap();
    let error = machine.connector().connect(CONTROL_PORT + 1000).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn what_qemu_refuses_is_part_of_the_error() {
    let Some(mut config) = config() else { return };
    config.extra_args = vec!["-device".into(), "no-such-device".into()];
    let error = format!("{:#}", Machine::launch(&config).err().unwrap());
    assert!(error.contains("no-such-device"), "{error}");
}

#[test]
fn a_guest_that_ends_while_booting_is_reported_with_its_console() {
    let Some(mut config) = config() else { return };
    let dir = tempfile::tempdir().unwrap();
    config.image.command_line = dir.path().join("cmdline");
    std::fs::write(&config.image.command_line, "console=ttyS0 panic=-1 rdinit=/nothing").unwrap();
    let mut machine = Machine::launch(&config).unwrap();
    let error = format!("{:#}", machine.session().err().unwrap());
    assert!(error.contains("the command line's digest is not the ROM's"), "{error}");
}

/// Not a test of its own: the process that [`nothing_outlives_a_killed_parent`] kills.
#[test]
fn child_that_is_killed() {
    if std::env::var_os("PARMA_TEST_CHILD").is_none() {
        return;
    }
    let machine = Machine::launch(&config().unwrap()).unwrap();
    println!("\nlaunched");
    std::thread::park();
    drop(machine);
}

#[test]
fn nothing_outlives_a_killed_parent() {
    if config().is_none() {
        return;
    }
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env("PARMA_TEST_CHILD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(parent.stdout.take().unwrap());
    output.lines().find(|line| line.as_ref().unwrap() == "launched").expect("the machine starts").unwrap();
    let children = children_of(parent.id());
    assert_eq!(children.len(), 2, "QEMU and vhost-device-vsock");
    parent.kill().unwrap();
    parent.wait().unwrap();
    for child in &children {
        let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(ended, 1, "a child goes on");
    }
}

/// The processes that this one has started, held so that their numbers cannot mean others.
fn children_of(parent: u32) -> Vec<OwnedFd> {
    let parent = parent.to_string();
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        // Field 4, behind the name in parentheses, is the parent.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if after_name.split(' ').nth(1) == Some(&parent) {
            children.push(pidfd_open(pid, PidfdFlags::empty()).unwrap());
        }
    }
    children
}

#[test]
fn an_image_for_hardware_powers_off_where_it_gets_no_real_report() {
    let Some(dir) = std::env::var_os("PARMA_IMAGE_REAL") else {
        eprintln!("skipped: PARMA_IMAGE_REAL names no image; run `cargo xtask test`");
        return;
    };
    let image = Image::open(Path::new(&dir)).unwrap();
    assert!(!image.emulated);
    let mut machine = Machine::launch(&Config::new(image, [0; 32])).unwrap();
    let error = format!("{:#}", machine.session().err().expect("it never listens"));
    assert!(error.contains("parma: fatal"), "{error}");
    let exit = machine.wait(LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?}");
}
