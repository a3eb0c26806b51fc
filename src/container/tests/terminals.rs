//! Processes with a terminal.

use super::*;
use crate::gate::fields;

const SIZE: Option<WindowSize> = Some(WindowSize { rows: 31, columns: 97 });

fn shell<'a>(script: &'a [&'a str; 3]) -> Spec<'a> {
    Spec { terminal: SIZE, stdin: true, ..Spec::new(script) }
}

impl Machine {
    /// What the terminal shows up to and with this text.
    fn shown(&mut self, terminal: &mut UnixStream, text: &str) -> String {
        terminal.set_nonblocking(true).unwrap();
        let (mut all, mut byte) = (Vec::new(), [0]);
        while !all.ends_with(text.as_bytes()) {
            match terminal.read(&mut byte) {
                Ok(1) => all.push(byte[0]),
                Ok(_) => panic!("the end after {:?}", String::from_utf8_lossy(&all)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.turn(),
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(all).unwrap()
    }

    fn resize(&mut self, process: ProcessId, rows: u16, columns: u16) -> Result<(), ActError> {
        let size = fields::WindowSize::new(WindowSize { rows, columns }).unwrap();
        self.containers.resize_terminal(Permit::for_test(ResizeTerminal { process, size }))
    }
}

#[test]
fn a_process_is_started_on_a_terminal_of_its_containers_and_its_own() {
    alone("terminals::a_process_is_started_on_a_terminal_of_its_containers_and_its_own", |machine| {
        let container = id('1');
        machine.rootfs(&container);
        let script = "tty; stty size; test -t 2 && : </dev/tty && test -c /dev/console && echo all; \
                      : >/dev/console && stat -c %u:%g /dev/pts/0 && ls /proc/self/fd; exec sleep 1000";
        let args = ["sh", "-c", script];
        let spec = Spec { uid: 33, gids: &[33], ..shell(&args) };
        let first = machine.create(container, &spec).unwrap();
        let mut terminal = machine.attach(first, Stream::Stdout);
        // What `ls` has open beside its directory is the terminal, three times.
        let shown = machine.shown(&mut terminal, "0  1  2  3\r\n");
        assert_eq!(shown, "/dev/pts/0\r\n31 97\r\nall\r\n33:5\r\n0  1  2  3\r\n");
        assert_eq!(machine.containers.attachable(first, Stream::Stderr), Err(NotAttachable::Unknown));

        // A further process has another one, whatever the container did to its /dev/pts.
        let script = "tty; ps -o tty= -p $$; echo err >&2; exit 5";
        let second = machine.exec(container, &shell(&["sh", "-c", script])).unwrap();
        let terminal = machine.attach(second, Stream::Stdout);
        let shown = String::from_utf8(machine.read_all(terminal)).unwrap();
        assert_eq!(shown, "/dev/pts/1\r\npts/1\r\nerr\r\n", "all of it, although it ended");
        assert_eq!(machine.exit_of(second), ExitStatus::Code(5));
        assert_eq!(machine.resize(second, 5, 5), Ok(()), "nobody is there to be told");
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn keys_sizes_and_the_end_of_input_reach_what_runs_on_a_terminal() {
    alone("terminals::keys_sizes_and_the_end_of_input_reach_what_runs_on_a_terminal", |machine| {
        let container = id('2');
        machine.rootfs(&container);
        let script = "import os, signal, sys\n\
                      say = lambda *what: os.write(1, ' '.join(map(str, what)).encode() + b'\\n')\n\
                      signal.signal(signal.SIGINT, lambda *_: say('interrupted'))\n\
                      signal.signal(signal.SIGWINCH, lambda *_: say(*os.get_terminal_size()))\n\
                      say('ready')\n\
                      for line in sys.stdin: say('got', line.strip())\n\
                      say('over')";
        let args = ["/usr/bin/python3", "-c", script];
        let process = machine.create(container, &shell(&args)).unwrap();
        let mut keys = machine.attach(process, Stream::Stdin);
        let mut terminal = machine.attach(process, Stream::Stdout);
        machine.shown(&mut terminal, "ready\r\n");
        keys.write_all(b"\x03").unwrap();
        machine.shown(&mut terminal, "interrupted\r\n");
        machine.resize(process, 7, 4096).unwrap();
        machine.shown(&mut terminal, "4096 7\r\n");
        keys.write_all(b"a line\r").unwrap();
        machine.shown(&mut terminal, "got a line\r\n");
        drop(keys);
        let rest = machine.read_all(terminal);
        assert_eq!(String::from_utf8(rest).unwrap(), "over\r\n");
        assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_a_terminal_that_is_flooded_or_not_read_holds_up_its_own_process_alone() {
    alone(
        "terminals::c12_a_terminal_that_is_flooded_or_not_read_holds_up_its_own_process_alone",
        |machine| {
            let container = id('3');
            machine.rootfs(&container);
            let script = "stty raw -echo; head -c 2000000 /dev/zero; head -c 100000 | wc -c; exit 3";
            let process = machine.create(container, &shell(&["sh", "-c", script])).unwrap();
            let mut terminal = machine.attach(process, Stream::Stdout);
            terminal.set_nonblocking(true).unwrap();
            // What is typed before the terminal is raw is a line too long, most of which is thrown away.
            while terminal.read(&mut [0]).is_err() {
                machine.turn();
            }
            let mut keys = machine.attach(process, Stream::Stdin);
            keys.set_nonblocking(true).unwrap();
            let mut sent = 0;
            for _ in 0..5 {
                while let Ok(count) = keys.write(&[b'x'; 4096]) {
                    sent += count;
                    assert!(sent < 4_000_000);
                }
                let other = machine.exec(container, &Spec::new(&["true"])).unwrap();
                assert_eq!(machine.exit_of(other), ExitStatus::Code(0));
            }
            let shown = machine.read_all(terminal);
            assert!(shown.len() >= 2_000_000 && shown.ends_with(b"100000\n"), "{} bytes", shown.len());
            assert_eq!(machine.exit_of(process), ExitStatus::Code(3));
            machine.shutdown(container).unwrap();
        },
    );
}
