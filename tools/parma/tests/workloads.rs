//! Unmodified programs of Debian's do their work in the real VM, as the users their images name.

mod support;

use parma_guest::wire::{ExitStatus, Request, Stdio, Stream};
use parma_policy::generate::GenerateOptions;
use support::{OUTPUT, id, read_until, stage, strings};

#[test]
fn nginx_serves_a_real_client() {
    let Some(stage) = stage() else { return };
    let command = ["nginx", "-e", "stderr", "-g", "daemon off;"];
    let client = ["busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/"];
    let options = GenerateOptions {
        exec: vec![strings(&client)],
        signals: Some(vec![3, 9]),
        ..GenerateOptions::default()
    };
    let workload = stage.workload("nginx", &command, options);
    let guest = stage.start(&workload);
    let container = id('1');
    let server = guest.run(&workload, &container, OUTPUT);
    let mut log = guest.attach(server, Stream::Stdout);
    // A client that comes before the server listens is told so; the log says when one was served.
    let page = loop {
        let (page, status) = guest.exec(&workload, &container, &client);
        if status == ExitStatus::Code(0) {
            break page;
        }
        assert!(page.contains("can't connect"), "{page}\n{}", guest.console());
    };
    assert!(page.contains("It works."), "{page}");
    assert!(read_until(&mut log, "\n").contains("GET / HTTP/1.1\" 200"), "the server's log");
    guest.done(Request::SignalContainerProcess { container: &container, process: server, signal: 3 });
    assert_eq!(guest.wait(server), ExitStatus::Code(0), "SIGQUIT: a graceful end");
}

#[test]
fn python_finds_what_it_expects_of_linux() {
    let Some(stage) = stage() else { return };
    let script = "\
import os, select, signal, socket, subprocess, threading
assert os.getuid() == 1000 and os.getpid() == 1
assert 0 not in os.sched_getaffinity(0) or os.cpu_count() >= 1
with open('/tmp/file', 'wb') as file:
    file.write(b'x' * (1 << 20)); file.flush(); os.fsync(file.fileno())
os.unlink('/tmp/file')
assert subprocess.run(['sh', '-c', 'exit 3']).returncode == 3
left, right = socket.socketpair()
left.send(b'a'); assert right.recv(1) == b'a'
server = socket.create_server(('127.0.0.1', 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b'hello')).start()
assert socket.create_connection(server.getsockname()).recv(5) == b'hello'
poller = select.epoll(); poller.register(left.fileno()); poller.poll(0)
master, slave = os.openpty(); os.write(slave, b'tty'); assert os.read(master, 3) == b'tty'
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM]); signal.setitimer(signal.ITIMER_REAL, 0.01)
assert signal.sigwait([signal.SIGALRM]) == signal.SIGALRM
open('/dev/shm/x', 'w').close(); os.urandom(16); open('/dev/null', 'w').write('x')
orphan = os.fork()
if orphan == 0:
    if os.fork() == 0: os._exit(0)
    os._exit(0)
os.waitpid(orphan, 0)
print('everything')
";
    let workload = stage.workload("python", &["python3", "-c", script], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!((output.as_str(), status), ("everything\n", ExitStatus::Code(0)), "{}", guest.console());
}

#[test]
fn a_shell_script_writes_reads_and_pipes_in_its_own_root() {
    let Some(stage) = stage() else { return };
    let script = "cd /tmp && seq 1 1000 >a && sort -rn a | head -1 && ln -s a b && cat b | wc -l && rm a b && ls | wc -l \
                  && hostname | wc -c && cat /proc/1/comm && set -- /proc/[0-9]* && echo $#";
    let workload = stage.workload("busybox", &["sh", "-c", script], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), Stdio { stdin: false, ..OUTPUT });
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    let lines: Vec<&str> = output.lines().map(str::trim).collect();
    assert_eq!(
        lines[..6],
        ["1000", "1000", "0", "13", "sh", "1"],
        "nothing of the guest's processes: {output}"
    );
}

#[test]
fn a_container_that_is_shut_down_tells_how_its_processes_ended() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["sleep", "600"], GenerateOptions::default());
    let guest = stage.start(&workload);
    let container = id('1');
    let process = guest.run(&workload, &container, OUTPUT);
    guest.done(Request::ShutdownContainer { container: &container });
    assert_eq!(guest.wait(process), ExitStatus::Signal(9));
    guest.done(Request::UnmountOverlay { container: &container });
}
