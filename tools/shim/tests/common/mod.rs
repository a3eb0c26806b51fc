//! Debian's containerd, which a test starts with directories of its own.
//!
//! It runs under `cargo xtask test`, as root, where containerd is installed; otherwise the tests say that they are skipped.

#![allow(dead_code, reason = "each test file uses its own part")]

use parma::workload::Policy;
use parma_layer::cache::Cache;
use parma_layer::oci::{Image, Reference};
use parma_policy::generate::{Container, GenerateOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// More than anything takes, on any machine.
pub const LONG: Duration = Duration::from_secs(240);
pub const IMAGE: &str = "parma.test/busybox:latest";

/// The network that CNI gives to pods: the node is the first address, and the pods' gateway.
pub const SUBNET: &str = "10.231.77.0/24";
pub const GATEWAY: &str = "10.231.77.1";
/// Where Debian has CNI's plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// CRI with our runtime alone, whose sandboxes run no program of their image.
const CRI: &str = r#"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "parma.test/busybox:latest"
disable_apparmor = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "parma"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.parma]
runtime_type = "io.containerd.parma.v2"
pod_annotations = ["parma.dev/*"]
"#;

/// A containerd, and what it has.
pub struct Node {
    pub dir: TempDir,
    fixtures: PathBuf,
    containerd: Option<Child>,
}

impl Node {
    /// Starts one with the fixture busybox; `None` after saying what is missing.
    pub fn start() -> Option<Self> {
        let missing = |what| {
            eprintln!("skipped: it needs {what}; run `cargo xtask test` as root");
            None
        };
        let (Some(_), Some(fixtures)) = (std::env::var_os("PARMA_IMAGE"), std::env::var_os("PARMA_FIXTURES"))
        else {
            return missing("a measured image and container images");
        };
        if !rustix::process::getuid().is_root() {
            return missing("root, for containerd");
        }
        if Command::new("containerd").arg("--version").output().is_err() {
            return missing("containerd");
        }
        if !Path::new(PLUGINS).join("bridge").exists() {
            return missing("CNI's plugins");
        }
        let dir = tempfile::tempdir().unwrap();
        let mut node = Self { dir, fixtures: fixtures.into(), containerd: None };
        let path = |name: &str| node.dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n{CRI}\
            [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {PLUGINS:?}\nconf_dir = {:?}\n",
            path("root"),
            path("state"),
            path("socket"),
            path("opt"),
            path("cni")
        );
        let ipam = json!({
            "type": "host-local", "dataDir": path("ipam"),
            "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}],
        });
        let bridge = json!({"type": "bridge", "bridge": "parma-test", "isGateway": true, "ipam": ipam});
        let list = json!({"cniVersion": "0.4.0", "name": "parma-test", "plugins": [bridge]});
        fs::create_dir(path("cni")).unwrap();
        fs::write(node.dir.path().join("cni/test.conflist"), list.to_string()).unwrap();
        fs::write(node.dir.path().join("config.toml"), config).unwrap();
        fs::create_dir(node.machines()).unwrap();
        node.start_containerd();
        node.import("busybox", "parma.test/busybox");
        Some(node)
    }

    pub fn start_containerd(&mut self) {
        let shim = PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-parma-v2"));
        let path = std::env::var("PATH").unwrap_or_default();
        let log = File::options().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        // In a network namespace of its own, so that what CNI makes ends with it.
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set dev lo up && exec containerd \"$@\"", "sh", "--config"])
            .arg(self.dir.path().join("config.toml"))
            .env("PATH", format!("{}:{path}", shim.parent().unwrap().display()))
            .env("PARMA_CACHE", self.cache())
            .env("XDG_RUNTIME_DIR", self.machines())
            .env("PARMA_POLICIES", self.dir.path().join("policies"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.containerd = Some(child);
        let socket = self.dir.path().join("socket");
        until("containerd listens", || UnixStream::connect(&socket).is_ok());
    }

    pub fn kill_containerd(&mut self) {
        let mut child = self.containerd.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Directories of machines that run.
    pub fn machines(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Runs this on the node's network.
    pub fn on_network<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let pid = self.containerd.as_ref().unwrap().id();
        let namespace = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        // A namespace is a thread's.
        std::thread::scope(|scope| {
            let within = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                what()
            });
            within.join().unwrap()
        })
    }

    /// What is mounted below its directories.
    pub fn mounts(&self) -> Vec<String> {
        let below = format!("{}/", self.dir.path().display());
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        places.filter(|place| place.starts_with(&below)).map(str::to_owned).collect()
    }

    /// Waits until nothing is left of any pod: no shim, no machine, no bundle, no mount.
    pub fn until_nothing_is_left(&self) {
        let path = |name: &str| self.dir.path().join(name);
        let socket = path("socket").display().to_string();
        until("no shim is left", || shims(&socket).is_empty());
        let empty = |dir: PathBuf| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none());
        until("no machine is left", || empty(self.machines()));
        let bundles = || fs::read_dir(path("state/io.containerd.runtime.v2.task")).unwrap().flatten();
        until("no bundle is left", || bundles().all(|namespace| empty(namespace.path())));
        until("no mount is left", || self.mounts().is_empty());
    }

    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Imports a fixture, or a layout of this path, for ctr and for CRI.
    pub fn import(&self, fixture: &str, name: &str) {
        let tar = self.dir.path().join("image.tar");
        let mut builder = tar::Builder::new(File::create(&tar).unwrap());
        builder.append_dir_all(".", self.fixtures.join(fixture)).unwrap();
        builder.finish().unwrap();
        let tar = tar.display().to_string();
        for namespace in ["default", "k8s.io"] {
            let import = [
                "--namespace",
                namespace,
                "images",
                "import",
                "--snapshotter",
                "native",
                "--base-name",
                name,
            ];
            self.ctr(&[&import[..], &[&tar]].concat());
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.dir.path().join("socket")).args(arguments);
        command
    }

    /// Runs ctr, which has to succeed; gives its output.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "ctr {arguments:?}: {}\n{}", text(&output), self.log());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        let shim = log.lines().filter(|line| line.contains("parma") || line.contains("shim"));
        shim.collect::<Vec<_>>().join("\n")
    }

    /// The annotation of the strict policy for these arguments.
    pub fn policy(&self, args: &[&str], options: GenerateOptions) -> String {
        Self::policy_of(&self.container(args, options))
    }

    /// The annotation of a container's strict policy.
    pub fn policy_of(container: &Container) -> String {
        let policy = Policy::compile("p.rego", &container.policy()).unwrap();
        format!("{}={}", parma::workload::ANNOTATION, policy.annotation())
    }

    /// A container of busybox with these arguments.
    pub fn container(&self, args: &[&str], options: GenerateOptions) -> Container {
        self.container_of(&self.fixture("busybox"), args, options)
    }

    /// The layout of a fixture.
    pub fn fixture(&self, name: &str) -> PathBuf {
        self.fixtures.join(name)
    }

    /// A container of the image of this layout.
    pub fn container_of(&self, layout: &Path, args: &[&str], options: GenerateOptions) -> Container {
        let reference = format!("oci:{}:latest", layout.display());
        let image = Image::open(&Reference::parse(&reference).unwrap()).unwrap();
        // A cache of its own: the shim's is to be empty first.
        let cache = Cache::at(&self.dir.path().join("own-cache")).unwrap();
        let layers = cache.convert(&image, &mut |_, _| {}).unwrap();
        let hashes: Vec<_> = layers.iter().map(|layer| layer.root_hash).collect();
        let args = args.iter().map(ToString::to_string).collect();
        let options = GenerateOptions { entrypoint: Some(args), args: Some(Vec::new()), ..options };
        Container::new(&image, &hashes, &options).unwrap()
    }

    /// How many different layers the fixture busybox has.
    pub fn layers(&self) -> usize {
        let image = Image::open(&Reference { dir: self.fixtures.join("busybox"), tag: None }).unwrap();
        let ids: std::collections::HashSet<_> = image.layers.iter().map(|layer| layer.diff_id).collect();
        ids.len()
    }

    pub fn run<'a>(&self, policy: &'a str, flags: &[&'a str], id: &'a str, args: &[&'a str]) -> Command {
        self.run_image(IMAGE, policy, flags, id, args)
    }

    pub fn run_image<'a>(
        &self,
        image: &'a str,
        policy: &'a str,
        flags: &[&'a str],
        id: &'a str,
        args: &[&'a str],
    ) -> Command {
        let mut words = vec!["run", "--snapshotter", "native", "--runtime", "io.containerd.parma.v2"];
        if !policy.is_empty() {
            words.extend(["--annotation", policy]);
        }
        words.extend(flags);
        words.extend([image, id]);
        words.extend(args);
        self.command(&words)
    }

    /// The line of `ctr tasks ls` about a task.
    pub fn task(&self, id: &str) -> String {
        let tasks = self.ctr(&["tasks", "ls"]);
        tasks.lines().find(|line| line.starts_with(id)).unwrap_or_default().to_owned()
    }

    pub fn pid(&self, id: &str) -> u32 {
        self.task(id).split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.containerd {
            let _ = child.kill();
            let _ = child.wait();
        }
        // Shims outlive their containerd; these are the ones of this test alone, by their argument.
        let socket = self.dir.path().join("socket").display().to_string();
        for shim in shims(&socket) {
            kill(shim);
        }
        // Of a test that failed.
        for place in self.mounts() {
            let _ = Command::new("umount").args(["--lazy", &place]).status();
        }
    }
}

/// The shims that serve the containerd of this socket.
pub fn shims(socket: &str) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let number = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    number
        .filter(|pid: &u32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("containerd-shim-parma-v2") && line.split('\0').any(|word| word == socket)
        })
        .collect()
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Whether a process is there and no zombie.
pub fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "not in {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}
