//! Sealed streams: attack K02 of the host on what it carries.

use super::*;
use crate::attest::channel::OVERHEAD;
use crate::attest::stream::{HEADER, MAX_TEXT, Opener};

fn exporter() -> Exporter {
    Exporter::new([7; 32])
}

fn start(machine: &mut Machine, container: ContainerId, args: &[&str]) -> ProcessId {
    machine.rootfs(&container);
    let spec = Spec { stdin: true, sealed: Some(exporter()), ..Spec::new(args) };
    machine.create(container, &spec).unwrap()
}

/// The records in these bytes, opened; whether the last is among them, and nothing after it.
fn open(process: ProcessId, stream: Stream, mut bytes: Vec<u8>) -> (Vec<u8>, bool) {
    let mut opener = exporter().opener(process.get(), stream).unwrap();
    let (mut text, mut rest, mut ended) = (Vec::new(), &mut bytes[..], false);
    while let Some(header) = rest.first_chunk::<HEADER>() {
        assert!(!ended);
        let (record, after) = rest.split_at_mut(Opener::length(*header).unwrap());
        let (opened, last) = opener.open(record).unwrap();
        text.extend_from_slice(opened);
        (rest, ended) = (after, last);
    }
    (text, ended)
}

#[test]
fn what_is_sealed_reaches_the_process_and_what_it_says_comes_back_sealed() {
    alone("sealed::what_is_sealed_reaches_the_process_and_what_it_says_comes_back_sealed", |machine| {
        let process = start(machine, id('8'), &["cat"]);
        let (mut stdin, stdout) =
            (machine.attach(process, Stream::Stdin), machine.attach(process, Stream::Stdout));
        let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let mut sealer = exporter().sealer(process.get(), Stream::Stdin).unwrap();
        let mut records: Vec<u8> =
            sent.chunks(MAX_TEXT - 5).flat_map(|text| sealer.seal(text, false).unwrap()).collect();
        records.extend(sealer.seal(b"", true).unwrap());
        let writer = std::thread::spawn(move || stdin.write_all(&records).unwrap());
        let received = machine.read_all(stdout);
        writer.join().unwrap();
        assert!(received.windows(64).all(|part| part != &sent[..64]));
        let (text, ended) = open(process, Stream::Stdout, received);
        assert!(text == sent && ended);
        assert_eq!(machine.exit_of(process), ExitStatus::Code(0));
        machine.shutdown(id('8')).unwrap();
    });
}

#[test]
fn k02_a_host_can_cut_a_sealed_input_and_no_more() {
    alone("sealed::k02_a_host_can_cut_a_sealed_input_and_no_more", |machine| {
        type Change = fn(&mut Vec<Vec<u8>>);
        // Each time the first record is honest, and then
        let changes: [Change; 6] = [
            |sent| sent[1][HEADER] ^= 1,
            |sent| sent[1] = sent[0].clone(),
            |sent| drop(sent.remove(1)),
            // The host would have the input end there.
            |sent| sent[1][0] = 1,
            |sent| sent.truncate(1),
            |sent| sent[1].truncate(5),
        ];
        for (change, digit) in changes.into_iter().zip('0'..) {
            let script = "head -c 3; cat; echo ended";
            let process = start(machine, id(digit), &["sh", "-c", script]);
            let (mut stdin, stdout) =
                (machine.attach(process, Stream::Stdin), machine.attach(process, Stream::Stdout));
            let mut sealer = exporter().sealer(process.get(), Stream::Stdin).unwrap();
            let mut sent = ["one", "two", "six"]
                .map(|text| sealer.seal(text.as_bytes(), text == "six").unwrap())
                .to_vec();
            change(&mut sent);
            stdin.write_all(&sent.concat()).unwrap();
            stdin.shutdown(std::net::Shutdown::Write).unwrap();
            // The guest says that it has seen enough by hanging up.
            machine.read_all(stdin);
            // "one" is out, so the process has seen what it is to see of the rest.
            let mut first = [0; HEADER + 3 + OVERHEAD];
            stdout.set_nonblocking(true).unwrap();
            while let Err(error) = (&stdout).read_exact(&mut first) {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                machine.turn();
            }
            machine.shutdown(id(digit)).unwrap();
            let said = [first.to_vec(), machine.read_all(stdout)].concat();
            let (text, _) = open(process, Stream::Stdout, said);
            assert_eq!(
                String::from_utf8(text).unwrap(),
                "one",
                "{digit}: nothing of the host's, and not the end"
            );
        }
    });
}
