//! Containers of one pod against each other, against the machine's resources and against the init; and a host that starts them
//! out of order: attacks C02, C09, C14–C17, T06 on the real VM.

mod support;

use parma_guest::point::Point;
use parma_guest::policy;
use parma_guest::wire::{
    Denied, ExitStatus, Field, List, Reason, Request, Resources, Rule, Stdio, Stream, Usage,
};
use parma_policy::generate::{GenerateOptions, Limits};
use parma_vmm::Reply;
use std::io::Write as _;
use support::{Guest, OUTPUT, Stage, Workload, id, joined, list, policy, read_until, stage, strings};

fn denied_for(reason: &Reason, point: Point, check: policy::Reason) -> bool {
    matches!(reason, Reason::Denied { point: at, how: Denied::No, failed, .. } if *at == point && failed.contains(&check))
}

fn shell(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

/// A second workload of the same image in the same policy.
fn with_other(
    stage: &Stage,
    first: Workload,
    script: &str,
    options: GenerateOptions,
) -> (Workload, Workload) {
    let other = stage.workload("busybox", &shell(script), options);
    let text = other.container.policy();
    let mut first = first;
    first.policy = policy(&joined(&first.container.policy(), &text));
    (first, other)
}

fn update(container: &str, resources: Resources) -> Request<'_> {
    Request::UpdateContainer { container, resources }
}

fn usage(guest: &Guest, container: &str) -> Usage {
    match guest.done(Request::GetUsage { container }) {
        Reply::Usage(usage) => usage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn c02_no_device_but_the_listed_ones_can_be_made() {
    let Some(stage) = stage() else { return };
    // mem, kmem, port, kmsg, console, the first serial port, miscellaneous devices, and disks under three majors.
    let devices =
        "c:1:1 c:1:2 c:1:4 c:1:11 c:5:1 c:4:64 c:10:1 c:10:126 c:10:236 c:10:241 b:8:0 b:253:0 b:254:0";
    let script = format!(
        "for d in {devices}; do mknod /tmp/x $(echo $d | tr : ' ') 2>/dev/null && echo made $d; done; \
         mknod /tmp/null c 1 3 && echo honest; echo y 2>/dev/null > /tmp/null || echo but no device; \
         echo z > /dev/null && echo good"
    );
    let workload = stage.workload("busybox", &shell(&script), GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    assert_eq!(guest.finish(process), ("honest\nbut no device\ngood\n".into(), ExitStatus::Code(0)));
}

#[test]
fn c09_a_host_that_skips_the_container_that_comes_first_is_refused_and_the_guest_says_it_is_not_ready() {
    let Some(stage) = stage() else { return };
    let named = |name: &str, after: &[&str], required| GenerateOptions {
        name: Some(name.into()),
        after: strings(after),
        required,
        ..GenerateOptions::default()
    };
    let first = stage.workload("busybox", &["sleep", "1000"], named("first", &[], false));
    let (first, second) = with_other(&stage, first, "echo second", named("second", &["first"], true));
    let guest = stage.start(&first);
    guest.mount_layers(&first);
    let ready = || match guest.done(Request::GetProperties) {
        Reply::Properties(properties) => properties.ready,
        other => panic!("{other:?}"),
    };
    let (early, one, late) = (id('1'), id('2'), id('3'));
    guest.mount_overlay(&first, &early);
    let process = second.process(OUTPUT);
    let request = Request::CreateContainer {
        container: &early,
        privileged: false,
        mounts: List::new(),
        seccomp: None,
        process,
    };
    let refused = guest.refused(request);
    // No reason is named: each check has an entry that passes it, since both have the same layers.
    let create = Point::CreateContainer;
    assert!(
        matches!(refused, Reason::Denied { point, how: Denied::No, .. } if point == create),
        "{refused:?}"
    );
    assert!(!ready());
    guest.mount_overlay(&first, &one);
    guest.create(&first, &one, OUTPUT);
    guest.mount_overlay(&first, &late);
    let process = guest.create(&second, &late, OUTPUT);
    assert!(ready());
    assert_eq!(guest.finish(process), ("second\n".into(), ExitStatus::Code(0)));
}

#[test]
fn c09_what_comes_after_anothers_work_starts_only_once_that_has_ended_well() {
    let Some(stage) = stage() else { return };
    let named = |name: &str, after: &[&str]| GenerateOptions {
        name: Some(name.into()),
        after_success: strings(after),
        ..GenerateOptions::default()
    };
    let script = "read -r code; exit \"$code\"";
    let first = stage.workload("busybox", &shell(script), named("first", &[]));
    let (first, second) = with_other(&stage, first, "echo second", named("second", &["first"]));
    let guest = stage.start(&first);
    guest.mount_layers(&first);
    let later = id('9');
    guest.mount_overlay(&first, &later);
    let refused = || {
        let process = second.process(OUTPUT);
        let (container, mounts) = (&*later, List::new());
        let request =
            Request::CreateContainer { container, privileged: false, mounts, seccomp: None, process };
        let refused = guest.refused(request);
        let create = Point::CreateContainer;
        assert!(
            matches!(refused, Reason::Denied { point, how: Denied::No, .. } if point == create),
            "{refused:?}"
        );
    };
    for (digit, code) in [('1', 3), ('2', 0)] {
        // Neither while it works, nor when another has failed.
        refused();
        guest.mount_overlay(&first, &id(digit));
        let process = guest.create(&first, &id(digit), Stdio { stdin: true, ..OUTPUT });
        refused();
        let mut input = guest.attach(process, Stream::Stdin);
        input.write_all(format!("{code}\n").as_bytes()).unwrap();
        assert_eq!(guest.wait(process), ExitStatus::Code(code));
    }
    let process = guest.create(&second, &later, OUTPUT);
    assert_eq!(guest.finish(process), ("second\n".into(), ExitStatus::Code(0)));
}

#[test]
fn c14_nothing_is_taken_from_under_a_running_container() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload(
        "busybox",
        &shell("echo up; cat; cat /etc/passwd >/dev/null && echo still here"),
        GenerateOptions::default(),
    );
    let guest = stage.start(&workload);
    let container = id('1');
    let process = guest.run(&workload, &container, Stdio { stdin: true, ..OUTPUT });
    let mut output = guest.attach(process, Stream::Stdout);
    read_until(&mut output, "up\n");
    let in_use = |field| Reason::InUse { field };
    assert_eq!(guest.refused(Request::UnmountOverlay { container: &container }), in_use(Field::Container));
    assert_eq!(guest.refused(Request::UnmountDevice { device: &workload.serial(0) }), in_use(Field::Device));
    drop(guest.attach(process, Stream::Stdin));
    read_until(&mut output, "still here\n");
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
    guest.done(Request::ShutdownContainer { container: &container });
    guest.done(Request::UnmountOverlay { container: &container });
    guest.done(Request::UnmountDevice { device: &workload.serial(0) });
}

#[test]
fn c15_a_container_is_limited_and_held_still_within_what_the_policy_says() {
    let Some(stage) = stage() else { return };
    let script = "while read -r word; do $word; done";
    let options = GenerateOptions {
        limits: Limits { memory: Some(64 << 20), cpu: Some(500) },
        exec: vec![strings(&["true"])],
        ..GenerateOptions::default()
    };
    let edit = |text: String| {
        text.replace("\"allow_stdio_access\"", "\"allow_pause\": true,\n    \"allow_stdio_access\"")
    };
    let workload = stage.workload_with("busybox", &shell(script), options, edit);
    let command = strings(&["true"]);
    let guest = stage.start(&workload);
    let container = id('1');
    let process = guest.run(&workload, &container, Stdio { stdin: true, ..OUTPUT });
    let honest = Resources { memory: Some(64 << 20), cpu: Some(500), ..Resources::default() };
    for wrong in [
        Resources { memory: Some(0), ..honest },
        Resources { memory: Some(u64::MAX), ..honest },
        Resources { cpu: Some(0), ..honest },
        Resources { processes: Some(0), ..honest },
    ] {
        let refused = guest.refused(update(&container, wrong));
        let range = Rule::Range;
        assert!(
            matches!(refused, Reason::Invalid { field: Field::Resources, rule, .. } if rule == range),
            "{refused:?}"
        );
    }
    for denied in [
        Resources { memory: Some((64 << 20) + 1), ..honest },
        Resources { memory: None, ..honest },
        Resources { cpu: Some(501), ..honest },
        Resources { processes: Some(10), ..honest },
    ] {
        let refused = guest.refused(update(&container, denied));
        assert!(
            denied_for(&refused, Point::UpdateContainer, policy::Reason::ResourcesNotAllowed),
            "{refused:?}"
        );
    }
    guest.done(update(&container, honest));
    let mut input = guest.attach(process, Stream::Stdin);
    let mut output = guest.attach(process, Stream::Stdout);
    let mut say = |word: &str| std::io::Write::write_all(&mut input, word.as_bytes()).unwrap();
    say("hostname\n");
    read_until(&mut output, "\n");
    guest.done(update(&container, Resources { paused: true, ..honest }));
    let exec =
        Request::ExecInContainer { container: &container, process: workload.process_with(&command, OUTPUT) };
    assert_eq!(guest.refused(exec), Reason::InUse { field: Field::Container });
    say("hostname\n");
    // What it uses of the processor stands still, between two looks at it at the latest.
    let mut before = usage(&guest, &container);
    loop {
        let now = usage(&guest, &container);
        if now.cpu == before.cpu {
            break;
        }
        before = now;
    }
    assert!(before.memory > 0 && before.processes >= 1, "{before:?}");
    guest.done(update(&container, honest));
    read_until(&mut output, "\n");
    assert_eq!(guest.exec(&workload, &container, &["true"]).1, ExitStatus::Code(0));
    guest.done(update(&container, Resources { paused: true, ..honest }));
    guest.done(Request::ShutdownContainer { container: &container });
    assert_eq!(guest.wait(process), ExitStatus::Signal(9), "what is held still can be ended");
}

#[test]
fn c16_a_container_sees_no_process_of_another_and_no_request_could_change_that() {
    let Some(stage) = stage() else { return };
    let env = |secret: &str| GenerateOptions { env: strings(&[secret]), ..GenerateOptions::default() };
    let first = stage.workload("busybox", &["sleep", "1000"], env("SECRET=of-the-first"));
    let script = "echo $(ls -d /proc/[0-9]* | wc -l) processes; cat /proc/*/environ | tr '\\0' '\\n' | grep -c first; \
        for n in 1 2 3 100 101 102; do kill -0 $n 2>/dev/null && [ $n -gt 3 ] && echo reached $n; done; \
        ls /proc/1/root/run /proc/1/cwd/run 2>/dev/null; ipcs | grep -c 0x; nc 127.0.0.1 5041 </dev/null || echo no port";
    let (first, second) = with_other(&stage, first, script, GenerateOptions::default());
    let guest = stage.start(&first);
    guest.run(&first, &id('1'), OUTPUT);
    guest.mount_overlay(&first, &id('2'));
    let process = guest.create(&second, &id('2'), OUTPUT);
    let (output, _) = guest.finish(process);
    assert!(!output.contains("reached"), "{output}");
    let mut lines = output.lines();
    assert_eq!(lines.next().map(|line| line.ends_with(" processes")), Some(true), "{output}");
    assert_eq!(lines.next(), Some("0"), "no variable of the other's\n{output}");
    assert!(output.contains("no port"), "{output}");
}

#[test]
fn c17_the_guest_tells_the_host_nothing_that_the_policy_does_not_name_and_no_secret_at_all() {
    let Some(stage) = stage() else { return };
    let canary = "canary-4711-a-secret-value";
    let variable = format!("TOKEN={canary}");
    let options = GenerateOptions { properties: false, env: vec![variable], ..GenerateOptions::default() };
    let workload = stage.workload("busybox", &shell("echo ready; cat"), options);
    let guest = stage.start(&workload);
    let container = id('1');
    let process = guest.run(&workload, &container, Stdio { stdin: true, ..OUTPUT });
    read_until(&mut guest.attach(process, Stream::Stdout), "ready\n");
    let mut answers = Vec::new();
    for (request, point) in [
        (Request::GetProperties, Point::GetProperties),
        (Request::GetUsage { container: &container }, Point::GetProperties),
        (Request::RuntimeLogging { enabled: true }, Point::RuntimeLogging),
    ] {
        let refused = guest.refused(request);
        assert!(matches!(refused, Reason::Denied { point: at, .. } if at == point), "{refused:?}");
        answers.push(format!("{refused:?}"));
    }
    // Refusals about the very variable say nothing of its value either.
    let wrong = parma_guest::wire::Process { env: list(["TOKEN=guess"]), ..workload.process(OUTPUT) };
    answers.push(format!(
        "{:?}",
        guest.refused(Request::ExecInContainer { container: &container, process: wrong })
    ));
    answers.push(guest.console());
    assert!(answers.iter().all(|answer| !answer.contains(canary)), "{answers:?}");
}

#[test]
fn t06_a_fork_bomb_and_a_memory_hog_take_neither_the_init_nor_another_container_down() {
    let Some(stage) = stage() else { return };
    let bomb = "bomb() { while :; do bomb & done; }; echo armed; bomb 2>/dev/null";
    let exec = GenerateOptions { exec: vec![strings(&["echo", "alive"])], ..GenerateOptions::default() };
    let quiet = stage.workload("busybox", &["sleep", "1000"], exec);
    let (quiet, bomber) = with_other(&stage, quiet, bomb, GenerateOptions::default());
    let text = joined(
        &joined(&quiet.container.policy(), &bomber.container.policy()),
        &stage
            .workload(
                "busybox",
                &shell("x=0123456789; echo fed; while :; do x=$x$x$x; done"),
                GenerateOptions::default(),
            )
            .container
            .policy(),
    );
    let hog = stage.workload(
        "busybox",
        &shell("x=0123456789; echo fed; while :; do x=$x$x$x; done"),
        GenerateOptions::default(),
    );
    let mut quiet = quiet;
    quiet.policy = policy(&text);
    let guest = stage.start(&quiet);
    guest.run(&quiet, &id('1'), OUTPUT);
    for (container, workload, word) in [('2', &bomber, "armed\n"), ('3', &hog, "fed\n")] {
        let container = id(container);
        guest.mount_overlay(&quiet, &container);
        let process = guest.create(workload, &container, OUTPUT);
        read_until(&mut guest.attach(process, Stream::Stdout), word);
        if word == "fed\n" {
            assert_eq!(guest.wait(process), ExitStatus::OutOfMemory);
        } else {
            // It has what every container has, and the rest of the machine the rest.
            while usage(&guest, &container).processes < 500 {}
        }
        let (output, status) = guest.exec(&quiet, &id('1'), &["echo", "alive"]);
        assert_eq!((output.as_str(), status), ("alive\n", ExitStatus::Code(0)));
        guest.done(Request::ShutdownContainer { container: &container });
        guest.done(Request::UnmountOverlay { container: &container });
    }
    let (output, status) = guest.exec(&quiet, &id('1'), &["echo", "alive"]);
    assert_eq!((output.as_str(), status), ("alive\n", ExitStatus::Code(0)));
}

#[test]
fn t06_a_hundred_containers_and_a_thousand_processes_in_a_row_leave_nothing_behind() {
    let Some(stage) = stage() else { return };
    let options = GenerateOptions {
        exec: vec![strings(&["true"])],
        logging: true,
        stdio: false,
        ..GenerateOptions::default()
    };
    let workload = stage.workload("busybox", &["sleep", "100000"], options);
    let guest = stage.start(&workload);
    guest.mount_layers(&workload);
    // What the init uses of memory is what it says on the console when it is asked to.
    let memory = || -> u64 {
        guest.done(Request::RuntimeLogging { enabled: true });
        guest.done(Request::RuntimeLogging { enabled: false });
        let console = guest.console();
        let line = console.lines().rev().find_map(|line| line.split_once("memory: ")).unwrap().1;
        line.split_once(" KiB").unwrap().0.parse().unwrap()
    };
    let ids: Vec<String> = (1..=100).map(|number| format!("{number:064x}")).collect();
    for container in &ids {
        guest.mount_overlay(&workload, container);
        guest.create(&workload, container, Stdio::default());
    }
    let with_hundred = memory();
    for container in &ids[1..] {
        guest.done(Request::ShutdownContainer { container });
        guest.done(Request::UnmountOverlay { container });
    }
    let command = strings(&["true"]);
    let run = |count| {
        for _ in 0..count {
            let process = workload.process_with(&command, Stdio::default());
            let process = guest.started(Request::ExecInContainer { container: &ids[0], process });
            assert_eq!(guest.wait(process), ExitStatus::Code(0));
        }
    };
    // The last 1024 processes and the last 1024 requests are remembered: from here on, one comes where another went.
    run(1100);
    let before = memory();
    run(1100);
    let after = memory();
    assert!(after <= before + 32, "{before} KiB, {after} KiB after 1100 more processes");
    assert!(with_hundred <= 4096, "{with_hundred} KiB with a hundred containers");
    assert_eq!(usage(&guest, &ids[0]).processes, 1);
    let Reply::Properties(properties) = guest.done(Request::GetProperties) else { panic!() };
    assert_eq!(properties.containers.len(), 1);
}
