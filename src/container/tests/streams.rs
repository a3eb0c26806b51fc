//! Standard streams between a process and the host.

use super::*;

#[test]
fn input_reaches_the_process_and_its_end_too() {
    alone("streams::input_reaches_the_process_and_its_end_too", |machine| {
        let container = id('8');
        machine.rootfs(&container);
        let spec = Spec { stdin: true, ..Spec::new(&["cat"]) };
        let process = machine.create(container, &spec).unwrap();
        let (mut stdin, stdout) =
            (machine.attach(process, Stream::Stdin), machine.attach(process, Stream::Stdout));
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let bytes = sent.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let received = machine.read_all(stdout);
        writer.join().unwrap();
        assert!(received == sent);
        assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn the_end_of_a_further_process_s_input_is_not_that_of_the_first_one_s() {
    alone("streams::the_end_of_a_further_process_s_input_is_not_that_of_the_first_one_s", |machine| {
        let container = id('7');
        machine.rootfs(&container);
        let spec = Spec { stdin: true, ..Spec::new(&["cat"]) };
        let first = machine.create(container, &spec).unwrap();
        let mut first_input = machine.attach(first, Stream::Stdin);
        let args = ["sh", "-c", "cat; echo end"];
        let further = machine.exec(container, &Spec { stdin: true, ..Spec::new(&args) }).unwrap();
        let mut input = machine.attach(further, Stream::Stdin);
        input.write_all(b"further\n").unwrap();
        drop(input);
        assert_eq!(machine.finish(further), ("further\nend\n".to_string(), ExitStatus::Code(0)));
        assert!(machine.exits.iter().all(|&(process, _)| process != first));
        first_input.write_all(b"first\n").unwrap();
        drop(first_input);
        assert_eq!(machine.finish(first), ("first\n".to_string(), ExitStatus::Code(0)));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_a_stream_is_attached_once_and_only_if_it_was_granted() {
    alone("streams::c12_a_stream_is_attached_once_and_only_if_it_was_granted", |machine| {
        let container = id('9');
        machine.rootfs(&container);
        let process = machine.create(container, &Spec::new(&["sh", "-c", "cat; sleep 1000"])).unwrap();
        assert_eq!(machine.containers.attachable(process, Stream::Stdin), Err(NotAttachable::Unknown));
        assert_eq!(machine.containers.attachable(ProcessId(99), Stream::Stdout), Err(NotAttachable::Unknown));
        let _stdout = machine.attach(process, Stream::Stdout);
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let again = machine.containers.attach(process, Stream::Stdout, theirs.into());
        assert_eq!(again, Err(NotAttachable::Again));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_output_after_the_exit_is_delivered_and_a_slow_reader_holds_up_nobody_else() {
    alone(
        "streams::c12_output_after_the_exit_is_delivered_and_a_slow_reader_holds_up_nobody_else",
        |machine| {
            let container = id('a');
            machine.rootfs(&container);
            let script = "head -c 2000000 /dev/zero; echo done >&2";
            let slow = machine.create(container, &Spec::new(&["sh", "-c", script])).unwrap();
            let slow_out = machine.attach(slow, Stream::Stdout);
            let quick = machine.exec(container, &Spec::new(&["sh", "-c", "echo quick; exit 4"])).unwrap();
            // Nobody reads the slow one meanwhile, and this one is attached only after its exit.
            assert_eq!(machine.exit_of(quick), ExitStatus::Code(4));
            let (text, _) = machine.finish(quick);
            assert_eq!(text, "quick\n");
            assert!(machine.exits.iter().all(|&(process, _)| process != slow));
            assert_eq!(machine.read_all(slow_out).len(), 2_000_000);
            assert_eq!(machine.exit_of(slow), ExitStatus::Code(0));
            machine.shutdown(container).unwrap();
        },
    );
}

#[test]
fn c12_output_that_is_read_in_bits_is_whole_and_in_order() {
    alone("streams::c12_output_that_is_read_in_bits_is_whole_and_in_order", |machine| {
        let container = id('9');
        machine.rootfs(&container);
        let process = machine.create(container, &Spec::new(&["seq", "300000"])).unwrap();
        let mut stdout = machine.attach(process, Stream::Stdout);
        stdout.set_nonblocking(true).unwrap();
        let (mut text, mut bit) = (Vec::new(), [0; 1000]);
        for _ in 0..200 {
            match stdout.read(&mut bit) {
                Ok(count) => text.extend_from_slice(&bit[..count]),
                Err(_) => machine.turn(),
            }
        }
        assert!(machine.exits.is_empty());
        text.extend(machine.read_all(stdout));
        let text = String::from_utf8(text).unwrap();
        assert!(text.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=300_000));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_when_the_reader_goes_away_the_process_neither_blocks_nor_dies() {
    alone("streams::c12_when_the_reader_goes_away_the_process_neither_blocks_nor_dies", |machine| {
        let container = id('b');
        machine.rootfs(&container);
        let script = "head -c 9000000 /dev/zero && exit 6";
        let process = machine.create(container, &Spec::new(&["sh", "-c", script])).unwrap();
        let mut stdout = machine.attach(process, Stream::Stdout);
        stdout.set_nonblocking(true).unwrap();
        while stdout.read(&mut [0; 1000]).is_err() {
            machine.turn();
        }
        drop(stdout);
        assert_eq!(machine.exit_of(process), ExitStatus::Code(6));
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_a_host_that_floods_input_fills_one_pipe_and_no_more() {
    alone("streams::c12_a_host_that_floods_input_fills_one_pipe_and_no_more", |machine| {
        let container = id('c');
        machine.rootfs(&container);
        let spec = Spec { stdin: true, ..Spec::new(&["sh", "-c", "sleep 1000"]) };
        let process = machine.create(container, &spec).unwrap();
        let mut stdin = machine.attach(process, Stream::Stdin);
        stdin.set_nonblocking(true).unwrap();
        let mut sent = 0;
        // Another process's life goes on, and with it the loop; the flood stops being accepted.
        for _ in 0..20 {
            while let Ok(count) = stdin.write(&[0; 4096]) {
                sent += count;
                assert!(sent < 2_000_000);
            }
            let other = machine.exec(container, &Spec::new(&["true"])).unwrap();
            assert_eq!(machine.exit_of(other), ExitStatus::Code(0));
        }
        machine.signal(process, 9).unwrap();
        machine.exit_of(process);
        machine.shutdown(container).unwrap();
    });
}

#[test]
fn c12_output_that_nobody_attaches_to_is_dropped_after_its_beginning_and_holds_up_nobody() {
    alone(
        "streams::c12_output_that_nobody_attaches_to_is_dropped_after_its_beginning_and_holds_up_nobody",
        |machine| {
            let container = id('d');
            machine.rootfs(&container);
            // Short writes, so that what is kept is bytes and not so many writes.
            let script =
                "i=0; while [ $i -lt 9000 ]; do echo 012345678901234567890$i; i=$((i+1)); done; exit 6";
            let args = ["bash", "-c", script];
            machine.create(container, &Spec::new(&["sleep", "1000"])).unwrap();
            let process = machine.exec(container, &Spec::new(&args)).unwrap();
            let waiting = Spec { output_waits: true, ..Spec::new(&args) };
            let waiting = machine.exec(container, &waiting).unwrap();
            assert_eq!(machine.exit_of(process), ExitStatus::Code(6));
            let stdout = machine.attach(process, Stream::Stdout);
            let kept = String::from_utf8(machine.read_all(stdout)).unwrap();
            assert!((50_000..140_000).contains(&kept.len()), "{}", kept.len());
            let (kept, _) = kept.rsplit_once('\n').unwrap();
            let numbers = kept.lines().map(|line| line[21..].parse::<u32>().unwrap());
            assert!(numbers.eq(0..kept.lines().count() as u32), "the first, and in order");
            // Where the policy says so it waits, and nothing is lost.
            assert!(machine.exits.iter().all(|&(other, _)| other != waiting));
            let stdout = machine.attach(waiting, Stream::Stdout);
            assert_eq!(String::from_utf8(machine.read_all(stdout)).unwrap().lines().count(), 9000);
            assert_eq!(machine.exit_of(waiting), ExitStatus::Code(6));
            machine.shutdown(container).unwrap();
        },
    );
}
