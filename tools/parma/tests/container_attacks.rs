//! The host changes what runs and reaches into it: attacks C01, C05–C08, C10–C12, F07, F09 on the real VM.

mod support;

use parma_guest::point::Point;
use parma_guest::policy;
use parma_guest::wire::{
    Capabilities, Denied, ExitStatus, Field, List, Process, Reason, Request, Stdio, Stream,
};
use parma_policy::generate::{GenerateOptions, PodSettings, Settings};
use std::io::Write;
use support::{Guest, OUTPUT, Workload, id, joined, list, read_until, stage, strings};

fn denied_for(reason: &Reason, point: Point, check: policy::Reason) -> bool {
    matches!(reason, Reason::Denied { point: at, how: Denied::No, failed, .. } if *at == point && failed.contains(&check))
}

fn create<'a>(container: &'a str, process: Process<'a>) -> Request<'a> {
    Request::CreateContainer { container, privileged: false, mounts: List::new(), seccomp: None, process }
}

/// A guest with the workload's overlay mounted as `1…`, ready for its container to be created.
fn ready(stage: &support::Stage, workload: &Workload) -> Guest {
    let guest = stage.start(workload);
    guest.mount_layers(workload);
    guest.mount_overlay(workload, &id('1'));
    guest
}

fn env_with<'a>(workload: &'a Workload, more: &[&'a str]) -> Process<'a> {
    let env = workload.container.env.iter().map(String::as_str).chain(more.iter().copied());
    Process { env: list(env), ..workload.process(OUTPUT) }
}

/// OCI runtimes take a profile of system calls, limits, sysctls and the host name from the host's specification.
#[test]
fn c04_a_container_gets_the_settings_of_its_policy_and_starts_under_no_other_profile() {
    let Some(stage) = stage() else { return };
    let profile = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}}]}"#;
    let look = "hostname; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax; ulimit -n; ulimit -Hn; \
        mkdir /dev/shm/x 2>/dev/null || echo no directory; echo x 2>/dev/null > /x || echo not written; \
        echo y > /dev/shm/y && cat /dev/shm/y; grep Seccomp_filters /proc/self/status";
    let options = GenerateOptions {
        seccomp: Some(profile.to_vec()),
        settings: Settings {
            read_only_root: true,
            rlimits: [("nofile".into(), (Some(77), Some(88)))].into(),
            ..Settings::default()
        },
        pod: PodSettings {
            hostname: Some("web-0".into()),
            sysctls: [("net.core.somaxconn", "321"), ("kernel.msgmax", "4321")]
                .map(|(name, value)| (name.into(), value.into()))
                .into(),
            ..PodSettings::default()
        },
        exec: vec![strings(&["sh", "-c", look])],
        ..GenerateOptions::default()
    };
    let workload = stage.workload("busybox", &["sleep", "1000"], options);
    let guest = ready(&stage, &workload);
    for other in [None, Some([7; 32])] {
        let (container, process) = (&*id('1'), workload.process(OUTPUT));
        let request = Request::CreateContainer {
            container,
            privileged: false,
            mounts: List::new(),
            seccomp: other,
            process,
        };
        let refused = guest.refused(request);
        assert!(
            denied_for(&refused, Point::CreateContainer, policy::Reason::InvalidSeccompProfile),
            "{refused:?}"
        );
    }
    guest.create(&workload, &id('1'), OUTPUT);
    let (text, status) = guest.exec(&workload, &id('1'), &["sh", "-c", look]);
    let expected = "web-0\n321\n4321\n77\n88\nno directory\nnot written\ny\nSeccomp_filters:\t2\n";
    assert_eq!((text.as_str(), status), (expected, ExitStatus::Code(0)));
}

#[test]
fn c01_d8_there_is_no_request_and_no_field_for_hooks() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["true"], GenerateOptions::default());
    let mut guest = ready(&stage, &workload);
    // An honest request with something appended, and a request of a number that does not exist.
    let request = create(&*Box::leak(id('1').into_boxed_str()), workload.process(OUTPUT));
    let honest =
        parma_guest::wire::frame::encode(&parma_guest::wire::ToGuest { sequence: 1, request }).unwrap();
    let mut hooked = honest[4..].to_vec();
    hooked.extend_from_slice(b"\x01\x0e/host/prestart");
    drop(guest.session);
    for body in [&hooked[..], &[1, 12], &[1, 200, 1]] {
        let (mut control, _) = guest.machine.control().unwrap();
        control.send_bytes(&(body.len() as u32).to_le_bytes()).unwrap();
        control.send_bytes(body).unwrap();
        let reply = control.receive().unwrap().expect("a refusal");
        // Reply (1) to request 0: refused (1) by Host (0), Malformed (0).
        assert_eq!(reply, [1, 0, 1, 0, 0]);
    }
    guest.session = guest.machine.session().unwrap();
    let process = guest.create(&workload, &id('1'), OUTPUT);
    assert_eq!(guest.finish(process).1, ExitStatus::Code(0));
}

#[test]
fn c05_no_variable_is_added_changed_doubled_or_left_out() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["env"], GenerateOptions::default());
    let guest = ready(&stage, &workload);
    let container = id('1');
    let long = format!("A={}", "x".repeat(512 << 10));
    for more in ["LD_PRELOAD=/x", "PATH2=/x", "A=", &long] {
        let refused = guest.refused(create(&container, env_with(&workload, &[more])));
        let environment = policy::Reason::InvalidEnvironment;
        assert!(
            denied_for(&refused, Point::CreateContainer, environment)
                || matches!(refused, Reason::Denied { how: Denied::Fault, .. }) && more.len() > 1024,
            "{more:.20}: {refused:?}"
        );
    }
    for more in [&["A=1", "A=2"][..], &["PATH=/x"], &["NAME"], &["=x"], &[""]] {
        let refused = guest.refused(create(&container, env_with(&workload, more)));
        assert!(
            matches!(refused, Reason::Invalid { field: Field::Environment, .. }),
            "{more:?}: {refused:?}"
        );
    }
    let none = Process { env: list([]), ..workload.process(OUTPUT) };
    let refused = guest.refused(create(&container, none));
    assert!(denied_for(&refused, Point::CreateContainer, policy::Reason::InvalidEnvironment), "{refused:?}");
    let process = guest.create(&workload, &container, OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0));
    assert_eq!(output.lines().collect::<Vec<_>>(), workload.container.env, "exactly these, in order");
}

#[test]
fn c06_command_directory_user_and_privileges_are_the_policys() {
    let Some(stage) = stage() else { return };
    let script = "pwd; umask; while read -r line; do echo \"$line\"; done </proc/self/status";
    let workload = stage.workload("python", &["sh", "-c", script], GenerateOptions::default());
    let guest = ready(&stage, &workload);
    let container = id('1');
    let honest = || workload.process(OUTPUT);
    let shell = strings(&["sh", "-c", "cat /etc/shadow"]);
    let more = strings(&["sh", "-c", script, "more"]);
    let capabilities = workload.container.capabilities();
    let all = (1 << 41) - 1;
    let everything = Capabilities { bounding: all, effective: all, permitted: all, ..capabilities };
    let wrong: [(Process<'_>, policy::Reason); 11] = [
        (workload.process_with(&shell, OUTPUT), policy::Reason::InvalidCommand),
        (workload.process_with(&more, OUTPUT), policy::Reason::InvalidCommand),
        (Process { working_dir: "/etc", ..honest() }, policy::Reason::InvalidWorkingDirectory),
        (Process { user: "root", ..honest() }, policy::Reason::InvalidUser),
        (Process { user: "0", ..honest() }, policy::Reason::InvalidUser),
        (Process { user: "", ..honest() }, policy::Reason::InvalidUser),
        (Process { user: "app:0", ..honest() }, policy::Reason::InvalidUser),
        (Process { umask: 0, ..honest() }, policy::Reason::InvalidUmask),
        (Process { capabilities: everything, ..honest() }, policy::Reason::InvalidCapabilities),
        (Process { capabilities: Capabilities::default(), ..honest() }, policy::Reason::InvalidCapabilities),
        (Process { no_new_privileges: false, ..honest() }, policy::Reason::NoNewPrivilegesRequired),
    ];
    for (process, check) in wrong {
        let shown = format!("{process:?}");
        let refused = guest.refused(create(&container, process));
        assert!(denied_for(&refused, Point::CreateContainer, check), "{check:?}: {refused:?}\n{shown:.300}");
    }
    let privileged = Request::CreateContainer {
        container: &container,
        privileged: true,
        mounts: List::new(),
        seccomp: None,
        process: honest(),
    };
    let refused = guest.refused(privileged);
    let check = policy::Reason::PrivilegedNotAllowed;
    assert!(denied_for(&refused, Point::CreateContainer, check), "{refused:?}");
    // A name is looked up in the image's own files, once, and nothing that is not there.
    let refused = guest.refused(create(&container, Process { user: "nobody-here", ..honest() }));
    assert!(
        matches!(refused, Reason::Failed { step: parma_guest::wire::Step::ResolveUser, .. }),
        "{refused:?}"
    );
    let process = guest.create(&workload, &container, OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    for line in ["/home/app", "0022", "NoNewPrivs:\t1", "Uid:\t1000\t1000\t1000\t1000"] {
        assert!(output.lines().any(|found| found == line), "{line} in\n{output}");
    }
    let bounding = format!("CapBnd:\t{:016x}", capabilities.bounding);
    assert!(output.contains(&bounding), "{bounding} in\n{output}");
}

#[test]
fn c07_an_empty_command_or_a_nul_is_refused() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["echo", "honest"], GenerateOptions::default());
    let guest = ready(&stage, &workload);
    let container = id('1');
    for args in [&[][..], &[""], &["echo", "a\0b"], &["\0"]] {
        let args = strings(args);
        let refused = guest.refused(create(&container, workload.process_with(&args, OUTPUT)));
        assert!(matches!(refused, Reason::Invalid { field: Field::Command, .. }), "{args:?}: {refused:?}");
    }
    let process = guest.create(&workload, &container, OUTPUT);
    assert_eq!(guest.finish(process), ("honest\n".to_owned(), ExitStatus::Code(0)));
}

#[test]
fn c08_an_id_serves_one_container_ever() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["echo", "honest"], GenerateOptions::default());
    let guest = ready(&stage, &workload);
    let container = id('1');
    let process = guest.create(&workload, &container, OUTPUT);
    let used = Reason::InUse { field: Field::Container };
    assert_eq!(guest.refused(create(&container, workload.process(OUTPUT))), used, "while it runs");
    guest.finish(process);
    assert_eq!(guest.refused(create(&container, workload.process(OUTPUT))), used, "after it has ended");
    guest.done(Request::ShutdownContainer { container: &container });
    assert_eq!(guest.refused(create(&container, workload.process(OUTPUT))), used, "after it was removed");
    guest.done(Request::UnmountOverlay { container: &container });
    let layers = workload.overlay_layers();
    let layers = list(layers.iter().map(String::as_str));
    assert_eq!(guest.refused(Request::MountOverlay { container: &container, layers, scratch: None }), used);
    // Another id is another container.
    guest.mount_overlay(&workload, &id('2'));
    let process = guest.create(&workload, &id('2'), OUTPUT);
    assert_eq!(guest.finish(process), ("honest\n".to_owned(), ExitStatus::Code(0)));
}

#[test]
fn c08_d12_an_id_is_burned_by_a_creation_that_failed() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["/no/such/program"], GenerateOptions::default());
    let guest = ready(&stage, &workload);
    let container = id('1');
    let refused = guest.refused(create(&container, workload.process(OUTPUT)));
    assert!(
        matches!(refused, Reason::Failed { step: parma_guest::wire::Step::Execute, errno: 2 }),
        "{refused:?}"
    );
    let used = Reason::InUse { field: Field::Container };
    assert_eq!(guest.refused(create(&container, workload.process(OUTPUT))), used);
    let exec = Request::ExecInContainer { container: &container, process: workload.process(OUTPUT) };
    assert_eq!(guest.refused(exec), Reason::Unknown { field: Field::Container }, "C10: it never ran");
    guest.done(Request::UnmountOverlay { container: &container });
}

#[test]
fn c10_only_listed_commands_are_executed_where_they_are_listed() {
    let Some(stage) = stage() else { return };
    let date = strings(&["date", "-u"]);
    let options = GenerateOptions { exec: vec![date.clone()], ..GenerateOptions::default() };
    let with_exec = stage.workload("busybox", &["cat"], options);
    let text = with_exec.container.policy();
    let without = GenerateOptions { stdio: false, ..GenerateOptions::default() };
    let both = stage.workload_with("busybox", &["sleep", "600"], without, |policy| joined(&policy, &text));
    let guest = stage.start(&both);
    let (listing, other) = (id('1'), id('2'));
    guest.mount_layers(&both);
    guest.mount_overlay(&both, &listing);
    guest.mount_overlay(&both, &other);
    guest.create(&with_exec, &listing, Stdio { stdin: true, ..OUTPUT });
    guest.create(&both, &other, Stdio::default());
    let exec = |container, process| guest.refused(Request::ExecInContainer { container, process });
    let shell = strings(&["sh"]);
    let more = strings(&["date", "-u", "+%s"]);
    for args in [&shell, &more, &with_exec.container.args] {
        let refused = exec(&listing, with_exec.process_with(args, OUTPUT));
        assert!(denied_for(&refused, Point::ExecInContainer, policy::Reason::InvalidCommand), "{refused:?}");
    }
    let honest = || with_exec.process_with(&date, OUTPUT);
    let refused = exec(&other, with_exec.process_with(&date, Stdio::default()));
    assert!(denied_for(&refused, Point::ExecInContainer, policy::Reason::InvalidCommand), "{refused:?}");
    let refused = exec(&listing, Process { user: "33", ..honest() });
    assert!(denied_for(&refused, Point::ExecInContainer, policy::Reason::InvalidUser), "{refused:?}");
    let capabilities = Capabilities { bounding: (1 << 41) - 1, ..with_exec.container.capabilities() };
    let refused = exec(&listing, Process { capabilities, ..honest() });
    assert!(denied_for(&refused, Point::ExecInContainer, policy::Reason::InvalidCapabilities), "{refused:?}");
    let nowhere = id('3');
    assert_eq!(exec(&nowhere, honest()), Reason::Unknown { field: Field::Container });
    let (output, status) = guest.exec(&with_exec, &listing, &["date", "-u"]);
    assert!(output.contains("UTC") && status == ExitStatus::Code(0), "{output}");
}

#[test]
fn c11_only_listed_signals_reach_only_the_containers_own_processes() {
    let Some(stage) = stage() else { return };
    let options = GenerateOptions { signals: Some(vec![10]), ..GenerateOptions::default() };
    let script = "trap 'echo caught' USR1; echo ready; while :; do sleep 600 & wait; done";
    let workload = stage.workload("busybox", &["sh", "-c", script], options);
    let guest = stage.start(&workload);
    let (first, second) = (id('1'), id('2'));
    let process = guest.run(&workload, &first, OUTPUT);
    guest.mount_overlay(&workload, &second);
    let other = guest.create(&workload, &second, OUTPUT);
    let mut output = guest.attach(process, Stream::Stdout);
    read_until(&mut output, "ready\n");
    let send = |container, process, signal| Request::SignalContainerProcess { container, process, signal };
    for signal in [9, 15, 19, 64] {
        let refused = guest.refused(send(&first, process, signal));
        assert!(
            denied_for(&refused, Point::SignalContainerProcess, policy::Reason::InvalidSignal),
            "{signal}: {refused:?}"
        );
    }
    for signal in [0, 65, 255] {
        let refused = guest.refused(send(&first, process, signal));
        assert!(matches!(refused, Reason::Invalid { field: Field::Signal, .. }), "{signal}: {refused:?}");
    }
    let unknown = Reason::Unknown { field: Field::Process };
    for number in [0, 99, u32::MAX, other] {
        assert_eq!(guest.refused(send(&first, number, 10)), unknown, "{number} is none of this container's");
    }
    guest.done(send(&first, process, 10));
    read_until(&mut output, "caught\n");
}

#[test]
fn c12_streams_that_the_policy_or_the_request_leaves_out_cannot_be_had() {
    let Some(stage) = stage() else { return };
    let options = GenerateOptions { stdio: false, ..GenerateOptions::default() };
    let silent = stage.workload("busybox", &["cat", "/etc/passwd"], options);
    let guest = ready(&stage, &silent);
    let container = id('1');
    for stdio in
        [OUTPUT, Stdio { stdin: true, ..Stdio::default() }, Stdio { stderr: true, ..Stdio::default() }]
    {
        let refused = guest.refused(create(&container, silent.process(stdio)));
        assert!(
            denied_for(&refused, Point::CreateContainer, policy::Reason::StdioNotAllowed),
            "{stdio:?}: {refused:?}"
        );
    }
    let process = guest.create(&silent, &container, Stdio::default());
    for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
        assert!(guest.session.attach(process, stream).unwrap().is_err(), "{stream:?} was not asked for");
    }
    assert!(guest.session.attach(process + 1, Stream::Stdout).unwrap().is_err(), "no such process");
    assert_eq!(guest.wait(process), ExitStatus::Code(0), "its output went nowhere, and it did not wait");
}

#[test]
fn c12_a_stream_is_had_once_and_a_reader_that_does_not_read_holds_up_nobody_else() {
    let Some(stage) = stage() else { return };
    let listed = strings(&["echo", "other"]);
    let options = GenerateOptions { exec: vec![listed], ..GenerateOptions::default() };
    // Far more than pipe and sockets hold.
    let script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789012345678901234567890123; i=$((i+1)); done; cat >/dev/null; echo end";
    let workload = stage.workload("busybox", &["sh", "-c", script], options);
    let guest = stage.start(&workload);
    let container = id('1');
    let process = guest.run(&workload, &container, Stdio { stdin: true, ..OUTPUT });
    let output = guest.attach(process, Stream::Stdout);
    assert!(guest.session.attach(process, Stream::Stdout).unwrap().is_err(), "a second time");
    // Nobody reads it, and yet everything else goes on.
    let (other, status) = guest.exec(&workload, &container, &["echo", "other"]);
    assert_eq!((other.as_str(), status), ("other\n", ExitStatus::Code(0)));
    // A flood to standard input is taken as the process takes it, and no faster.
    let mut input = guest.attach(process, Stream::Stdin);
    let flood = std::thread::spawn(move || {
        input.write_all(&vec![b'x'; 1 << 20]).unwrap();
    });
    let read = support::read_all(output);
    flood.join().unwrap();
    assert_eq!(read.len(), 20_000 * 65 + "end\n".len(), "not a byte is lost");
    assert!(read.ends_with("end\n"));
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
}

/// C12: the host asks for a stream and never attaches to it. Twin: a reader who comes late, and the policy that waits for one.
#[test]
fn c12_a_reader_that_never_comes_holds_up_a_process_only_where_the_policy_says_so() {
    let Some(stage) = stage() else { return };
    let script = "i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 7";
    let waiting = format!("{script} ");
    let waiting = stage.workload("busybox", &["sh", "-c", &waiting], GenerateOptions::default());
    let both = stage.workload_with("busybox", &["sh", "-c", script], GenerateOptions::default(), |policy| {
        let entry = waiting.container.policy();
        joined(
            &policy,
            &entry.replace("\"allow_stdio_access\"", "\"output_waits\": true,\n    \"allow_stdio_access\""),
        )
    });
    let guest = stage.start(&both);
    let (first, second) = (id('1'), id('2'));
    let process = guest.run(&both, &first, OUTPUT);
    guest.mount_overlay(&both, &second);
    let held_up = guest.create(&waiting, &second, OUTPUT);
    assert_eq!(guest.wait(process), ExitStatus::Code(7));
    let kept = support::read_all(guest.attach(process, Stream::Stdout));
    assert!((60_000..200_000).contains(&kept.len()), "its beginning: {} bytes", kept.len());
    assert_eq!(guest.session.wait(held_up, Some(std::time::Duration::ZERO)).unwrap(), None);
    assert_eq!(support::read_all(guest.attach(held_up, Stream::Stdout)).len(), 20_000 * 41);
    assert_eq!(guest.wait(held_up), ExitStatus::Code(7));
}

#[test]
fn c12_a_reader_that_goes_away_does_not_stop_the_process() {
    let Some(stage) = stage() else { return };
    let script = "echo first; read go; i=0; while [ $i -lt 20000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 7";
    let workload = stage.workload("busybox", &["sh", "-c", script], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process =
        guest.run(&workload, &id('1'), Stdio { stdin: true, stdout: true, stderr: false, terminal: None });
    let mut output = guest.attach(process, Stream::Stdout);
    let mut input = guest.attach(process, Stream::Stdin);
    read_until(&mut output, "first\n");
    drop(output);
    input.write_all(b"go\n").unwrap();
    assert_eq!(guest.wait(process), ExitStatus::Code(7));
}

/// A workload under a policy that also has the container of another one, of the same layers; `edit` changes its text.
fn beside(
    stage: &support::Stage,
    [first, second]: [(&[&str], &str); 2],
    edit: impl FnOnce(String) -> String,
) -> [Workload; 2] {
    let options =
        |variable: &str| GenerateOptions { env: strings(&[variable]), ..GenerateOptions::default() };
    let mut text = String::new();
    let other = stage.workload_with("busybox", second.0, options(second.1), |policy| {
        text = policy.clone();
        policy
    });
    let both = |policy: String| edit(joined(&policy, &text));
    [stage.workload_with("busybox", first.0, options(first.1), both), other]
}

/// Each check has an entry that passes it, so none is named.
fn denied(reason: &Reason) -> bool {
    matches!(reason, Reason::Denied { point: Point::CreateContainer, how: Denied::No, failed, .. } if failed.is_empty())
}

/// Two entries of a policy, each of which the host takes a half of. Twin: each container as its entry has it.
#[test]
fn f07_what_two_containers_of_the_same_layers_may_cannot_be_mixed() {
    let Some(stage) = stage() else { return };
    let halves: [(&[&str], &str); 2] =
        [(&["sh", "-c", "echo $MODE"], "MODE=quiet"), (&["sh", "-c", "echo $MODE; id -u"], "MODE=debug")];
    let [quiet, debug] = beside(&stage, halves, |policy| policy);
    let guest = ready(&stage, &quiet);
    for (command, variables) in [(&quiet, &debug), (&debug, &quiet)] {
        let process = Process { env: variables.process(OUTPUT).env, ..command.process(OUTPUT) };
        let refused = guest.refused(create(&id('1'), process));
        assert!(denied(&refused), "{refused:?}");
    }
    let container = id('1');
    let process = guest.started(create(&container, debug.process(OUTPUT)));
    assert_eq!(guest.finish(process).0, "debug\n0\n");
    guest.mount_overlay(&quiet, &id('2'));
    let process = guest.create(&quiet, &id('2'), OUTPUT);
    assert_eq!(guest.finish(process).0, "quiet\n");
}

/// A policy that has variables dropped which an entry does not name, and two entries that would keep different ones. Twin: the
/// variables of one of them, and one more.
#[test]
fn f09_where_it_is_not_clear_which_variables_are_kept_nothing_starts() {
    let Some(stage) = stage() else { return };
    let command: &[&str] = &["env"];
    let [first, _] = beside(&stage, [(command, "ONE=1"), (command, "OTHER=1")], |policy| {
        let flag = "allow_environment_variable_dropping := ";
        policy.replace(&format!("{flag}false"), &format!("{flag}true"))
    });
    let guest = ready(&stage, &first);
    let refused = guest.refused(create(&id('1'), env_with(&first, &["OTHER=1"])));
    assert!(denied(&refused), "{refused:?}");
    let container = id('1');
    let process = guest.started(create(&container, env_with(&first, &["MORE=1"])));
    let said = guest.finish(process).0;
    assert!(said.lines().any(|line| line == "ONE=1") && !said.contains("MORE"), "{said}");
}
