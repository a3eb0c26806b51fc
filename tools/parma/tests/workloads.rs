//! Unmodified programs of Debian's do their work in the real VM, as the users their images name; servers under their real
//! clients, through a forwarded port.

mod support;

use parma::pod::network_request;
use parma_guest::wire::{ExitStatus, Request, Stdio, Stream};
use parma_policy::generate::GenerateOptions;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Command;
use support::{Guest, OUTPUT, Stage, Workload, fetch, forwarding, id, read_until, stage, strings};

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

/// A client on this machine; what it prints. `None` after saying that it is not installed.
fn client(program: &str, args: &[&str]) -> Option<(String, bool)> {
    match Command::new(program).args(args).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            Some((String::from_utf8_lossy(&text).into_owned(), output.status.success()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("skipped: {program} is not installed; run `cargo xtask setup`");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// A server of a fixture with a network, reached at the address.
fn serve(stage: &Stage, fixture: &str, args: &[&str], port: u16) -> (Guest, Workload, u32, SocketAddr) {
    let options = GenerateOptions { network: true, ..GenerateOptions::default() };
    let workload = stage.workload(fixture, args, options);
    let (network, address) = forwarding(port);
    let guest = stage.start_with_network(&workload, network.clone());
    guest.done(Request::SetUpNetwork(network_request(&network)));
    let server = guest.run(&workload, &id('1'), OUTPUT);
    (guest, workload, server, address)
}

#[test]
fn nginx_serves_wrk() {
    let Some(stage) = stage() else { return };
    let command = ["nginx", "-e", "stderr", "-g", "daemon off;"];
    let (guest, _workload, server, address) = serve(&stage, "nginx", &command, 8080);
    let log = guest.attach(server, Stream::Stdout);
    // Nobody reads the log any more; the server goes on.
    drop(log);
    assert!(fetch(address).contains("It works."));
    let url = format!("http://{address}/");
    let Some((said, well)) = client("wrk", &["-t", "1", "-c", "4", "-d", "3s", &url]) else { return };
    assert!(well && said.contains("Requests/sec") && !said.contains("Non-2xx"), "{said}");
    println!("{said}");
}

#[test]
fn redis_answers_its_benchmark() {
    let Some(stage) = stage() else { return };
    let command = ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""];
    let (guest, _workload, server, address) = serve(&stage, "redis", &command, 6379);
    let mut log = guest.attach(server, Stream::Stdout);
    read_until(&mut log, "Ready to accept connections");
    let port = address.port().to_string();
    let arguments =
        ["-h", "127.0.0.1", "-p", &port, "-n", "400", "-c", "4", "-t", "set,get,incr,lpush,zadd", "--csv"];
    let Some((said, well)) = client("redis-benchmark", &arguments) else { return };
    assert!(well, "{said}");
    for test in ["SET", "GET", "INCR", "LPUSH", "ZADD"] {
        assert!(said.contains(&format!("\"{test}\",")), "{test}: {said}");
    }
    println!("{said}");
}

#[test]
fn postgres_is_made_and_run_and_serves_pgbench() {
    let Some(stage) = stage() else { return };
    let script = "initdb -D data -A trust -U postgres --no-sync --no-instructions --locale=C --encoding=UTF8 >&2 \
        && echo host all all all trust >>data/pg_hba.conf \
        && exec postgres -D data -c listen_addresses=* -c unix_socket_directories=/tmp -c jit=off -c shared_buffers=16MB";
    let (guest, _workload, server, address) = serve(&stage, "postgres", &["sh", "-c", script], 5432);
    let mut log = guest.attach(server, Stream::Stderr);
    read_until(&mut log, "database system is ready to accept connections");
    let port = address.port().to_string();
    let to = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "postgres"];
    let program = "/usr/lib/postgresql/15/bin/pgbench";
    let Some((said, well)) = client(program, &[&["-i", "-I", "dtgp", "-q"], &to[..]].concat()) else {
        return;
    };
    assert!(well, "{said}");
    let (said, well) =
        client(program, &[&["-c", "2", "-t", "20", "-n"], &to[..]].concat()).unwrap_or_default();
    assert!(well && said.contains("number of failed transactions: 0"), "{said}");
    println!("{said}");
}

#[test]
fn node_serves_computes_and_writes_files() {
    let Some(stage) = stage() else { return };
    let script = "\
const http = require('http'), fs = require('fs'), crypto = require('crypto'), zlib = require('zlib');
const { Worker } = require('worker_threads');
fs.writeFileSync('/tmp/file', crypto.randomBytes(100000));
const packed = zlib.gzipSync(fs.readFileSync('/tmp/file'));
if (zlib.gunzipSync(packed).length !== 100000) throw new Error('zlib');
new Worker('require(\"worker_threads\").parentPort.postMessage(6*7)', { eval: true }).on('message', answer => {
  http.createServer((request, response) => response.end(`node says ${answer} to ${request.url}`)).listen(8080);
});
";
    let (_guest, _workload, _server, address) = serve(&stage, "node", &["node", "-e", script], 8080);
    let page = fetch(address);
    assert!(page.ends_with("node says 42 to /"), "{page}");
}

#[test]
fn cpythons_own_tests_pass() {
    let Some(stage) = stage() else { return };
    // What starts further interpreters again and again takes too long where the processor is emulated.
    let command: Vec<&str> = "python3 -m test test_grammar test_struct test_array test_pwd test_epoll test_mmap test_fcntl test_fork1 test_heapq"
        .split_whitespace()
        .collect();
    let workload = stage.workload("cpython", &command, GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    let (said, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{said}");
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn sqlites_shell_makes_fills_and_checks_a_database() {
    let Some(stage) = stage() else { return };
    let sql = "PRAGMA journal_mode = wal; CREATE TABLE t(id INTEGER PRIMARY KEY, text TEXT); \
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 20000) INSERT INTO t SELECT i, hex(randomblob(16)) FROM n; \
        CREATE INDEX x ON t(text); DELETE FROM t WHERE id % 3 = 0; PRAGMA integrity_check; SELECT count(*) FROM t; VACUUM;";
    let workload = stage.workload("sqlite", &["sqlite3", "/home/app/db", sql], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    let (said, status) = guest.finish(process);
    assert_eq!((said.as_str(), status), ("wal\nok\n13334\n", ExitStatus::Code(0)));
}
