//! Terminals on the real VM: attacks C10, C11 and T09 at them, and what an honest user has of them.

mod common;
mod support;

use common::{fixtures, parma};
use parma_guest::policy;
use parma_guest::wire::{Denied, ExitStatus, Field, List, Reason, Request, Stdio, Stream, WindowSize};
use parma_policy::generate::GenerateOptions;
use std::io::Write as _;
use std::process::Command;
use support::{OUTPUT, id, joined, read_all, read_until, stage, strings};

const SIZE: WindowSize = WindowSize { rows: 31, columns: 97 };
const TERMINAL: Stdio = Stdio { stdin: true, stdout: true, stderr: false, terminal: Some(SIZE) };

/// Says what its terminal is, and what reaches it there. A thread waits for the signals: one that a handler takes between
/// two instructions of Python, just before it reads, would only be told after the next key.
const TALKER: &str = "\
import os, sys, _thread, _signal as signal
say = lambda *what: os.write(1, ' '.join(map(str, what)).encode() + b'\\n')
signals = signal.SIGWINCH, signal.SIGINT
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
def listen():
    while True:
        if signal.sigwait(signals) == signal.SIGINT: say('interrupted')
        else: say('size', *os.get_terminal_size())
_thread.start_new_thread(listen, ())
say(all(map(os.isatty, range(3))), os.ttyname(0), *os.get_terminal_size(), os.tcgetpgrp(0) == os.getpid())
say(os.stat('/dev/console').st_rdev == os.stat(0).st_rdev, os.stat(0).st_uid == os.getuid())
for line in sys.stdin: say('got', line.strip())
say('over')
";

/// Two processes, which both die of Ctrl-C, as long as nobody does anything about it.
const JOB: &str = "\
import os, _signal as signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print(os.ttyname(0), *os.get_terminal_size(), flush=True)
child = os.fork()
if child: os.waitpid(child, 0)
print('job', flush=True)
while True: os.read(0, 1)
";

/// C10, C11: a terminal is one more channel to a process, and its keys are signals. The honest twin has all of one: isatty,
/// its size, Ctrl-C, the end of input; and a further process has its own, with a foreground job.
#[test]
fn c10_a_terminal_is_had_only_where_the_policy_allows_one_and_is_a_whole_one_there() {
    let Some(stage) = stage() else { return };
    let job = strings(&["python3", "-c", JOB]);
    let with =
        |stdio, terminal| GenerateOptions { stdio, terminal, logging: true, ..GenerateOptions::default() };
    let options = GenerateOptions { exec: vec![job.clone()], ..with(true, true) };
    let talker = stage.workload("python", &["python3", "-c", TALKER], options);
    let on_pipes = stage.workload("python", &["python3", "-c", "1"], with(true, false));
    let silent = stage.workload("python", &["python3", "-c", "2"], with(false, true));
    let (second, third) = (on_pipes.container.policy(), silent.container.policy());
    let all = stage.workload_with("python", &["python3", "-c", TALKER], with(true, true), |_| {
        joined(&joined(&talker.container.policy(), &second), &third)
    });
    let guest = stage.start(&all);
    guest.done(Request::RuntimeLogging { enabled: true });
    guest.mount_layers(&all);
    let ids = [id('1'), id('2'), id('3')];
    ids.iter().for_each(|container| guest.mount_overlay(&all, container));
    let [on_terminal, piped, nothing] = &ids;
    for (workload, container, check) in [
        // Another entry of the same layers allows one, so that no check failed everywhere.
        (&on_pipes, piped, &[][..]),
        (&silent, nothing, &[policy::Reason::StdioNotAllowed]),
    ] {
        let process = workload.process(TERMINAL);
        let refused = guest.refused(Request::CreateContainer {
            container,
            privileged: false,
            mounts: List::new(),
            seccomp: None,
            process,
        });
        assert!(
            matches!(&refused, Reason::Denied { how: Denied::No, failed, .. } if failed[..] == *check),
            "{refused:?}"
        );
    }
    let other = guest.create(&on_pipes, piped, OUTPUT);
    let resize = |container, process, rows, columns| {
        let size = WindowSize { rows, columns };
        Request::ResizeTerminal { container, process, size }
    };
    let refused = guest.refused(resize(piped, other, 1, 1));
    assert!(matches!(refused, Reason::Unknown { field: Field::Stdio | Field::Process }), "{refused:?}");

    let process = guest.create(&talker, on_terminal, TERMINAL);
    let mut keys = guest.attach(process, Stream::Stdin);
    let mut shown = guest.attach(process, Stream::Stdout);
    assert!(guest.session.attach(process, Stream::Stderr).unwrap().is_err(), "it is not asked for");
    assert_eq!(read_until(&mut shown, "True True\r\n"), "True /dev/pts/0 97 31 True\r\nTrue True\r\n");
    guest.done(resize(on_terminal, process, 40, 132));
    assert_eq!(read_until(&mut shown, "\n"), "size 132 40\r\n");
    keys.write_all(b"\x03").unwrap();
    read_until(&mut shown, "interrupted\r\n");
    keys.write_all(b"canary\r").unwrap();
    read_until(&mut shown, "got canary\r\n");

    // Ctrl-C ends the foreground group of this terminal, and nothing of the other.
    let asked = talker.process_with(&job, TERMINAL);
    let further = guest.started(Request::ExecInContainer { container: on_terminal, process: asked });
    let mut its_keys = guest.attach(further, Stream::Stdin);
    let mut its_screen = guest.attach(further, Stream::Stdout);
    assert_eq!(read_until(&mut its_screen, "job\r\n"), "/dev/pts/1 97 31\r\njob\r\n");
    its_keys.write_all(b"\x03").unwrap();
    assert_eq!(read_all(its_screen), "^C");
    assert_eq!(guest.wait(further), ExitStatus::Signal(2));

    drop(keys);
    assert_eq!(read_all(shown), "over\r\n");
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
    let refused = guest.refused(resize(on_terminal, process, 1, 1));
    assert_eq!(refused, Reason::Unknown { field: Field::Process }, "it has ended");
    // C17: what is typed and shown is nowhere but in these streams.
    let console = guest.console();
    let unprintable = |c: char| c.is_control() && !matches!(c, '\n' | '\r');
    assert!(console.contains("resize terminal: done"), "the guest's own log is on: {console}");
    assert!(!console.contains("canary") && !console.contains(unprintable), "{console:?}");
}

/// What a program shows on a terminal of this machine of 33 rows and 99 columns: of `parma run` with these options.
fn on_a_screen(options: &str, command: &str, keys: &[u8]) -> Option<String> {
    let (image, fixtures) = fixtures()?;
    let runtime = tempfile::tempdir().unwrap();
    let program = parma(&runtime);
    let line = format!(
        "stty rows 33 cols 99; before=$(stty -g); {} run -q --image {} {options} oci:{} -- {command}; echo code $?; \
         [ \"$(stty -g)\" = \"$before\" ] && echo restored",
        program.get_program().to_str().unwrap(),
        image.display(),
        fixtures.join("busybox").display(),
    );
    let mut script = Command::new("script");
    let mut child = script
        .args(["-qec", &line, "/dev/null"])
        .env("XDG_RUNTIME_DIR", runtime.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(keys).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// T09: what a container writes does not steer the terminal of whoever runs it, unless that is what he asked for with `-t`.
#[test]
fn t09_output_steers_the_terminal_only_of_a_user_who_gave_it_one() {
    let sequence = r"printf '\033]0;title\007\033[2J\r\n'; stty size";
    let Some(escaped) = on_a_screen("", &format!("sh -c \"{sequence}\""), b"") else { return };
    assert!(!escaped.contains('\x1b') && !escaped.contains('\x07'), "{escaped:?}");
    assert!(escaped.contains("\\u{1b}]0;title\\u{7}\\u{1b}[2J\\u{d}"), "{escaped:?}");
    // `read` shows that keys arrive unchanged, and its echo that the guest's terminal does the echoing.
    let asked = on_a_screen("-it", &format!("sh -c \"read x; echo got \\$x; {sequence}; exit 3\""), b"abc\r")
        .unwrap();
    assert!(asked.contains("\x1b]0;title\x07\x1b[2J\r\r\n33 99\r\n"), "{asked:?}");
    assert!(asked.contains("got abc\r\n") && asked.contains("code 3\r\nrestored\r\n"), "{asked:?}");
}
