//! The container figures of `cargo xtask bench`.
//!
//! Starts: from the request to create a container to the first word of its program, which the guest had to make namespaces,
//! mounts, control groups and a device filter for; beside runc and crun, with the container that their own `spec` describes, in
//! the same kernel. Streams: standard output, which goes from a pipe through the init, beside a program that writes to vsock
//! itself. Crowds: the init's memory with many containers. Servers: under a policy of one container, and under one that allows
//! everything.

use crate::bench::{InitUse, samples};
use crate::{fixtures, raw};
use anyhow::{Context, Result, ensure};
use parma::pod::{Pod, Scratch, new_container_id, unobserved};
use parma::workload::{Policy, Workload};
use parma_guest::gate::fields::ContainerId;
use parma_guest::wire::{Request, Stdio, Stream};
use parma_layer::oci::Reference;
use parma_policy::generate::GenerateOptions;
use parma_vmm::{Config, Connector, Image, Network, escape};
use serde_json::{Map, Value, json};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

/// Containers that are started to see how long that takes, with each runtime.
const STARTS: usize = 15;
/// Containers in one guest.
const CROWD: usize = 100;
/// Processes that are started in a row.
const PROCESSES: usize = 1000;
/// Bytes of a write of the programs that are measured.
const CHUNK: usize = 16 << 10;
/// Bytes of a stream that is measured.
const STREAM: usize = 2048 * CHUNK;
/// The host's port of the bare stream.
const PORT: u32 = 6000;
/// Standard output alone.
const OUTPUT: Stdio = Stdio { stdin: false, stdout: true, stderr: false, terminal: None };

/// What lets the host do everything.
const OPEN: &str = r#"package policy
api_version := "0.12.0"
mount_device := {"allowed": true}
mount_overlay := {"allowed": true}
create_container := {"allowed": true, "allow_stdio_access": true}
scratch_mount := {"allowed": true}
host_network := {"allowed": true}
runtime_logging := {"allowed": true}
"#;

/// All of them.
pub fn figures(image: &Image, rounds: usize) -> Result<Value> {
    Ok(json!({
        "starts_ms": starts(image)?,
        "streams_mb_s": streams(image, rounds)?,
        "crowd": crowd(image)?,
        "servers_per_second": servers(image, rounds)?,
    }))
}

/// Prints a line for each.
pub fn print(figures: &Value) {
    let number = |path: &str| figures.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let start = |who: &str| number(&format!("/starts_ms/{who}/median"));
    println!(
        "create_container to the program's first word  {:>9.1} ms   runc {:.1}, crun {:.1}",
        start("parma"),
        start("runc"),
        start("crun")
    );
    let (ours, bare) = (number("/streams_mb_s/stdout/median"), number("/streams_mb_s/vsock/median"));
    println!(
        "standard output                               {ours:>9.1} MB/s {:.0} % of a bare vsock stream's {bare:.1} (goal 90)",
        100.0 * ours / bare
    );
    for count in ["1", "10", "100"] {
        let (what, memory) =
            (format!("memory of the init, {count} containers"), number(&format!("/crowd/{count}_kib")));
        println!("{what:<45} {memory:>9.0} KiB");
    }
    let crowd = |what: &str| number(&format!("/crowd/{what}"));
    println!(
        "{CROWD} containers, all started, all stopped      {:>9.0} ms, {:.0} ms",
        crowd("start_ms"),
        crowd("stop_ms")
    );
    println!("{PROCESSES} processes in a row                       {:>9.0} ms", crowd("processes_ms"));
    for (server, rates) in figures["servers_per_second"].as_object().into_iter().flatten() {
        let of = |policy: &str| rates[policy]["median"].as_f64().unwrap_or(f64::NAN);
        let (strict, open) = (of("strict"), of("open"));
        println!(
            "{server:<45} {strict:>9.0} /s   {open:.0} under a policy that allows everything: {:+.1} %",
            100.0 * (strict / open - 1.0)
        );
        let share = rates["init_percent_of_processor"].as_f64().unwrap_or(f64::NAN);
        println!("  the guest's processor while they work, of it the init {share:.2} %   goal 1");
    }
}

fn workload(fixture: &str, args: &[&str], options: GenerateOptions) -> Result<Workload> {
    let layout = fixtures::image(fixture)?;
    let reference = Reference::parse(&format!("oci:{}:latest", layout.display()))?;
    let args = args.iter().map(|&word| word.to_owned()).collect();
    let options = GenerateOptions { args: Some(args), memory_scratch: true, ..options };
    Workload::prepare(&reference, &options, "layer", |_, _, _| {})
}

/// A guest under this policy, with the workload's layers mounted.
fn pod(config: Config, policy: &Policy, workload: &Workload) -> Result<Pod> {
    let mut config = Config { host_data: policy.host_data(), ..config };
    config.disks.extend(workload.disks());
    let pod = Pod::boot(&config, unobserved())?;
    pod.set_policy(policy)?;
    workload.layers.iter().try_for_each(|layer| pod.guest.mount_layer(layer))?;
    Ok(pod)
}

/// A root for a further container.
fn root(pod: &Pod, workload: &Workload) -> Result<ContainerId> {
    let id = new_container_id()?;
    let scratch = pod.guest.mount_scratch(&id, &Scratch::Memory)?;
    pod.guest.mount_overlay(&id, &workload.layers, scratch)?;
    Ok(id)
}

/// Milliseconds from the request to the program's first byte. Ours has the host's way to the guest and back in it, twice; the
/// peers' is measured in the guest.
fn starts(image: &Image) -> Result<Value> {
    const PROGRAM: [&str; 2] = ["date", "+%s%N"];
    eprintln!("containers of ours");
    let ours = workload("runtimes", &PROGRAM, GenerateOptions::default())?;
    let pod = pod(Config::new(image.clone(), [0; 32]), &ours.strict_policy()?, &ours)?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let id = root(&pod, &ours)?;
        let start = Instant::now();
        let process = pod.guest.create(&id, &ours, OUTPUT)?;
        let mut output = pod.guest.session.attach(process, Stream::Stdout)?.map_err(anyhow::Error::new)?;
        output.read_exact(&mut [0])?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        pod.guest.shutdown(&id)?;
        pod.guest.unmount_overlay(&id)?;
    }
    drop(pod);

    eprintln!("containers of runc and crun");
    let script = format!(
        "mount -t sysfs s /r/sys\nmount -t cgroup2 c /r/sys/fs/cgroup\nmount -t devtmpfs d /r/dev\n\
         mount -t tmpfs t /r/run\nmkdir -p /r/bundle/rootfs\nmount -o bind /r /r/bundle/rootfs\n\
         PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot /r /bin/sh -c 'cd /bundle && runc spec && sed -i \
         \"s/\\\"terminal\\\": true/\\\"terminal\\\": false/; s/^\\t\\t\\t\\\"sh\\\"/\\\"date\\\",\\\"+%s%N\\\"/\" config.json\n\
         for turn in $(seq {STARTS}); do for runtime in runc crun; do\n\
         before=$(date +%s%N); first=$($runtime run $runtime$turn) && echo started $runtime $((first - before))\n\
         done; done'"
    );
    let console = raw::launch(image, &ours, None, &script)?.end()?;
    let of = |runtime: &str| -> Result<Value> {
        let prefix = format!("started {runtime} ");
        let times: Vec<f64> = console
            .lines()
            .filter_map(|line| line.trim().strip_prefix(&prefix)?.parse::<f64>().ok())
            .map(|nanoseconds| nanoseconds / 1e6)
            .collect();
        ensure!(
            times.len() == STARTS,
            "{runtime} started {} of {STARTS} containers; console:\n{}",
            times.len(),
            escape(console.as_bytes())
        );
        Ok(samples(&times))
    };
    Ok(json!({ "parma": samples(&times), "runc": of("runc")?, "crun": of("crun")? }))
}

/// MB/s of a container's standard output, and of a program that writes to vsock.
fn streams(image: &Image, rounds: usize) -> Result<Value> {
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    let writes = STREAM / CHUNK;
    let program = format!("import os\nchunk = b'x' * {CHUNK}\nfor _ in range({writes}): os.write(1, chunk)");
    let python = workload("python", &["python3", "-c", &program], GenerateOptions::default())?;
    let policy = python.strict_policy()?;
    let script = format!(
        "PATH=/usr/bin:/bin chroot /r python3 -c \"import _socket, time\ns = _socket.socket(40, 1)\n\
         s.connect((2, {PORT}))\nchunk = b'x' * {CHUNK}\nfor _ in range({writes}): s.sendall(chunk)\ns.recv(1)\""
    );
    for round in 0..rounds {
        eprintln!("streams {} of {rounds}", round + 1);
        let pod = pod(Config::new(image.clone(), [0; 32]), &policy, &python)?;
        let id = root(&pod, &python)?;
        let process = pod.guest.create(&id, &python, OUTPUT)?;
        let output = pod.guest.session.attach(process, Stream::Stdout)?.map_err(anyhow::Error::new)?;
        ours.push(rate(output)?);
        drop(pod);
        let peer = raw::launch(image, &python, None, &script)?;
        let Connector::Unix(path) = peer.machine.connector() else {
            eprintln!("skipped: the bare stream, which is measured through vhost-device-vsock only");
            return Ok(json!({ "stdout": samples(&ours) }));
        };
        let mut path = path.clone().into_os_string();
        path.push(format!("_{PORT}"));
        let listener = UnixListener::bind(path)?;
        let (stream, _) = listener.accept()?;
        bare.push(rate(stream)?);
        peer.end()?;
    }
    Ok(json!({ "stdout": samples(&ours), "vsock": samples(&bare) }))
}

/// MB/s from the first byte to the last of [`STREAM`].
fn rate(mut stream: impl Read) -> Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let mut count = stream.read(&mut buffer)?;
    let (start, first) = (Instant::now(), count);
    while count < STREAM {
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "a stream of {STREAM} bytes ended after {count}");
        count += read;
    }
    Ok((count - first) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

/// What the init has used so far.
fn init_use(pod: &Pod) -> Result<InitUse> {
    pod.guest.ask(Request::RuntimeLogging { enabled: true })?;
    pod.guest.ask(Request::RuntimeLogging { enabled: false })?;
    InitUse::said(&pod.machine)
}

/// The init's memory with 1, 10 and 100 containers, and how long they take.
fn crowd(image: &Image) -> Result<Value> {
    eprintln!("{CROWD} containers");
    let exec = vec!["true".to_owned()];
    let options = GenerateOptions {
        exec: vec![exec.clone()],
        logging: true,
        stdio: false,
        ..GenerateOptions::default()
    };
    let sleeper = workload("runtimes", &["sleep", "100000"], options)?;
    let pod = pod(Config::new(image.clone(), [0; 32]), &sleeper.strict_policy()?, &sleeper)?;
    let mut figures = Map::new();
    let (mut containers, mut starting) = (Vec::new(), 0.0);
    for count in 1..=CROWD {
        let start = Instant::now();
        let id = root(&pod, &sleeper)?;
        pod.guest.create(&id, &sleeper, Stdio::default())?;
        starting += start.elapsed().as_secs_f64() * 1e3;
        containers.push(id);
        if [1, 10, 100].contains(&count) {
            figures.insert(format!("{count}_kib"), init_use(&pod)?.resident_kib.into());
        }
    }
    figures.insert("start_ms".to_owned(), starting.into());
    let start = Instant::now();
    for id in &containers[1..] {
        pod.guest.shutdown(id)?;
        pod.guest.unmount_overlay(id)?;
    }
    figures.insert("stop_ms".to_owned(), (start.elapsed().as_secs_f64() * 1e3).into());
    let start = Instant::now();
    for _ in 0..PROCESSES {
        let process = pod.guest.exec(&containers[0], &sleeper.container, &exec, Stdio::default())?;
        pod.guest.session.wait(process, None)?;
    }
    figures.insert("processes_ms".to_owned(), (start.elapsed().as_secs_f64() * 1e3).into());
    Ok(Value::Object(figures))
}

/// A server, how to tell that it serves, and its client.
struct Server {
    name: &'static str,
    fixture: &'static str,
    command: &'static [&'static str],
    port: u16,
    /// Where it says that it serves, and what; none: it answers HTTP.
    ready: Option<(Stream, &'static str)>,
    /// Before the client can do its work: none, or a command.
    prepare: Option<&'static str>,
    /// A shell's command; `$PORT` is the port.
    client: &'static str,
    /// What the number stands behind, and before.
    number: (&'static str, &'static str),
}

const SERVERS: [Server; 3] = [
    Server {
        name: "nginx under wrk, requests",
        fixture: "nginx",
        command: &["nginx", "-e", "stderr", "-g", "daemon off;"],
        port: 8080,
        ready: None,
        prepare: None,
        client: "wrk -t 1 -c 4 -d 4s http://127.0.0.1:$PORT/",
        number: ("Requests/sec:", "\n"),
    },
    Server {
        name: "Redis under redis-benchmark, SET",
        fixture: "redis",
        command: &["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""],
        port: 6379,
        ready: Some((Stream::Stdout, "Ready to accept connections")),
        prepare: None,
        client: "redis-benchmark -h 127.0.0.1 -p $PORT -n 20000 -c 4 -t set --csv",
        number: ("\"SET\",\"", "\""),
    },
    Server {
        name: "PostgreSQL under pgbench, transactions",
        fixture: "postgres",
        command: &[
            "sh",
            "-c",
            "initdb -D data -A trust -U postgres --no-sync --no-instructions --locale=C --encoding=UTF8 >&2 \
             && echo host all all all trust >>data/pg_hba.conf && exec postgres -D data -c listen_addresses=* \
             -c unix_socket_directories=/tmp -c jit=off -c shared_buffers=16MB",
        ],
        port: 5432,
        ready: Some((Stream::Stderr, "database system is ready to accept connections")),
        prepare: Some(
            "/usr/lib/postgresql/15/bin/pgbench -i -I dtgp -q -h 127.0.0.1 -p $PORT -U postgres postgres",
        ),
        client: "/usr/lib/postgresql/15/bin/pgbench -c 2 -t 300 -n -h 127.0.0.1 -p $PORT -U postgres postgres",
        number: ("tps = ", " "),
    },
];

/// Each server in guests under either policy, all at once; the clients take turns.
fn servers(image: &Image, rounds: usize) -> Result<Value> {
    let open = Policy::compile("open.rego", OPEN)?;
    let mut figures = Map::new();
    for server in &SERVERS {
        eprintln!("{}", server.name);
        let program = server.client.split(' ').next().unwrap_or_default();
        if shell(&format!("command -v {program}"), 0).is_err() {
            eprintln!("skipped: {program} is not installed");
            continue;
        }
        let options = GenerateOptions { network: true, logging: true, ..GenerateOptions::default() };
        let workload = workload(server.fixture, server.command, options)?;
        let strict = workload.strict_policy()?;
        let (mut rates, mut shares) = ([Vec::new(), Vec::new()], Vec::new());
        // Guests of one kind differ, not least by when they were started and whose turn it is: so two of each, the ones around
        // the others, and then the other way round.
        for order in [[0, 1, 1, 0], [1, 0, 0, 1]] {
            let mut guests = Vec::new();
            for kind in order {
                let (pod, port) = serve(image, server, &workload, [&strict, &open][kind])?;
                // The first time everything is read and translated that is used at all.
                client(server, port)?;
                guests.push((pod, port, kind));
            }
            for _ in 0..rounds.div_ceil(2) {
                for (pod, port, kind) in &guests {
                    let (before, start) = (init_use(pod)?.processor, Instant::now());
                    rates[*kind].push(client(server, *port)?);
                    let spent = (init_use(pod)?.processor - before).as_secs_f64();
                    shares.push(100.0 * spent / start.elapsed().as_secs_f64());
                }
            }
        }
        let [strict, open] = rates.map(|rates| samples(&rates));
        // A mean, since what is shared out is counted in milliseconds.
        let share = shares.iter().sum::<f64>() / shares.len() as f64;
        figures.insert(
            server.name.to_owned(),
            json!({ "strict": strict, "open": open, "init_percent_of_processor": share }),
        );
    }
    Ok(Value::Object(figures))
}

/// A guest with the server, which serves, and the host's port.
fn serve(image: &Image, server: &Server, workload: &Workload, policy: &Policy) -> Result<(Pod, u16)> {
    // Another process could take it before QEMU does, which then says so.
    let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let mut config = Config::new(image.clone(), [0; 32]);
    config.network =
        Some(Network { outbound: false, forwards: vec![format!("{port}:{}", server.port).parse()?] });
    let id = new_container_id()?;
    // One that says nothing to wait for gets no streams: carrying its log is work of the init, but no enforcement.
    let stdio = match server.ready {
        Some(_) => Stdio { stderr: true, ..OUTPUT },
        None => Stdio::default(),
    };
    let (pod, process) = Pod::start(config, policy, workload, &Scratch::Memory, &id, stdio, unobserved())?;
    if let Some((stream, line)) = server.ready {
        let stream = pod.guest.session.attach(process, stream)?.map_err(anyhow::Error::new)?;
        let mut lines = BufReader::new(stream).lines();
        let said = lines.find(|said| said.as_ref().is_ok_and(|said| said.contains(line)));
        said.with_context(|| format!("{} ended", server.fixture))??;
    } else {
        while !answers(port) {}
    }
    if let Some(command) = server.prepare {
        shell(command, port)?;
    }
    Ok((pod, port))
}

/// QEMU accepts connections before anybody listens behind the port, and then ends them.
fn answers(port: u16) -> bool {
    let ask = || -> io::Result<usize> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0])
    };
    ask().is_ok_and(|count| count > 0)
}

fn client(server: &Server, port: u16) -> Result<f64> {
    let said = shell(server.client, port)?;
    let (before, after) = server.number;
    let number = said.split_once(before).and_then(|(_, rest)| rest.split_once(after));
    let number = number.and_then(|(number, _)| number.trim().parse().ok());
    number.with_context(|| format!("{}: no rate in {said:?}", server.client))
}

/// What a command prints.
fn shell(command: &str, port: u16) -> Result<String> {
    let output = Command::new("sh").args(["-c", command]).env("PORT", port.to_string()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}
