//! A host that can be honest or hostile, for the tests in the real VM.
//!
//! [`stage`] is there under `cargo xtask test`, which says where the measured image and the container images are; without
//! it these tests say that they are skipped. Every machine is real QEMU with the real image; every layer is a real
//! converted image layer, in a private copy that a test may damage.

#![allow(dead_code, reason = "each test file uses its own part")]

use parma_guest::gate::fields::Serial;
use parma_guest::wire::{ExitStatus, List, MAX_LAYERS, Process, Reason, Refusal, Request, Stdio, Stream};
use parma_layer::oci::{self, Reference};
use parma_policy::generate::{Container, GenerateOptions};
use parma_policy::{Compiled, Inputs, compile};
use parma_vmm::{Config, Disk, Image, Machine, Network, Outcome, Reply, Session};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More than anything in a guest takes, on any machine. Nothing waits this long unless a promise is broken.
pub const LONG: Duration = Duration::from_secs(120);

/// Where the tests play.
pub struct Stage {
    pub image: Image,
    pub fixtures: PathBuf,
    scratch: tempfile::TempDir,
}

/// The stage, or `None` after saying what is missing.
pub fn stage() -> Option<Stage> {
    let (Some(image), Some(fixtures)) = (std::env::var_os("PARMA_IMAGE"), std::env::var_os("PARMA_FIXTURES"))
    else {
        eprintln!("skipped: it needs a measured image and container images; run `cargo xtask test`");
        return None;
    };
    let image = Image::open(Path::new(&image)).unwrap();
    Some(Stage { image, fixtures: fixtures.into(), scratch: tempfile::tempdir().unwrap() })
}

/// A converted layer: a file of this test's own.
#[derive(Debug, Clone)]
pub struct Layer {
    pub path: PathBuf,
    pub root_hash: [u8; 32],
    pub data_blocks: u64,
}

/// An image to run, its policy, and its layers.
pub struct Workload {
    pub container: Container,
    pub policy: Compiled,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// Before the layers' numbers in their serials.
    name: String,
}

/// A Python program that prints the beginning of each file of `/data` that it is told the name of, or the error's name.
pub const READER: &str = "\
import errno, sys
print('ready', flush=True)
for line in sys.stdin:
    try:
        with open('/data/' + line.strip(), 'rb', buffering=0) as file:
            print(file.read(8).decode(), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
";

/// Standard output and error, connected.
pub const OUTPUT: Stdio = Stdio { stdin: false, stdout: true, stderr: true, terminal: None };

impl Stage {
    /// A fixture with this command. The generator wrote its policy.
    pub fn workload(&self, fixture: &str, args: &[&str], options: GenerateOptions) -> Workload {
        self.workload_with(fixture, args, options, |policy| policy)
    }

    /// As [`Self::workload`], with another policy than the generator's.
    pub fn workload_with(
        &self,
        fixture: &str,
        args: &[&str],
        options: GenerateOptions,
        edit: impl FnOnce(String) -> String,
    ) -> Workload {
        self.workload_of(&self.fixtures.join(fixture), fixture, args, options, edit)
    }

    /// As [`Self::workload_with`], of the image `latest` of this layout. `name` begins its serials.
    pub fn workload_of(
        &self,
        layout: &Path,
        name: &str,
        args: &[&str],
        options: GenerateOptions,
        edit: impl FnOnce(String) -> String,
    ) -> Workload {
        let reference = format!("oci:{}:latest", layout.display());
        let image = oci::Image::open(&Reference::parse(&reference).unwrap()).unwrap();
        let layers: Vec<Layer> = parma_layer::cache::convert(&image, &mut |_, _| {})
            .unwrap()
            .into_iter()
            .enumerate()
            .map(|(index, cached)| {
                let path = self.scratch.path().join(format!("{name}-{index}.img"));
                if !path.exists() {
                    fs::copy(&cached.path, &path).unwrap();
                }
                Layer { path, root_hash: cached.root_hash, data_blocks: cached.data_blocks }
            })
            .collect();
        let hashes: Vec<[u8; 32]> = layers.iter().map(|layer| layer.root_hash).collect();
        // What most tests are about does not depend on where a container writes; a disk each would only cost time.
        let options = GenerateOptions { args: Some(strings(args)), memory_scratch: true, ..options };
        let container = Container::new(&image, &hashes, &options).unwrap();
        let policy = policy(&edit(container.policy()));
        Workload { container, policy, layers, name: name.to_owned() }
    }

    /// A layout with a fixture's image, to which this layer, a tar, is added on top and `config` done to its configuration.
    pub fn layout(&self, fixture: &str, name: &str, tar: &[u8], config: impl FnOnce(&mut Value)) -> PathBuf {
        self.layout_on(&self.fixtures.join(fixture), name, tar, config)
    }

    /// As [`Self::layout`], on the image of this layout.
    pub fn layout_on(
        &self,
        source: &Path,
        name: &str,
        tar: &[u8],
        config: impl FnOnce(&mut Value),
    ) -> PathBuf {
        let layout = self.scratch.path().join(name);
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for entry in fs::read_dir(source.join("blobs/sha256")).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), blobs.join(entry.file_name())).unwrap();
        }
        fs::copy(source.join("oci-layout"), layout.join("oci-layout")).unwrap();
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |descriptor: &Value| {
            blobs.join(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
        };
        // Stores a blob, and makes a descriptor point to it.
        let store = |descriptor: &mut Value, bytes: &[u8]| {
            let digest = oci::Digest::of(bytes);
            fs::write(blobs.join(digest.hex()), bytes).unwrap();
            descriptor["digest"] = digest.to_string().into();
            descriptor["size"] = bytes.len().into();
        };
        let mut index = read(&source.join("index.json"));
        let mut manifest = read(&blob(&index["manifests"][0]));
        let mut configuration = read(&blob(&manifest["config"]));
        let mut layer = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar"});
        store(&mut layer, tar);
        let diff_ids = configuration["rootfs"]["diff_ids"].as_array_mut().unwrap();
        diff_ids.push(layer["digest"].clone());
        manifest["layers"].as_array_mut().unwrap().push(layer);
        config(&mut configuration);
        store(&mut manifest["config"], configuration.to_string().as_bytes());
        store(&mut index["manifests"][0], manifest.to_string().as_bytes());
        fs::write(layout.join("index.json"), index.to_string()).unwrap();
        layout
    }

    /// A machine with these disks and this HOST_DATA, before its policy is set.
    pub fn boot(&self, host_data: [u8; 32], disks: Vec<Disk>) -> Guest {
        self.launch(&self.config(host_data, disks))
    }

    pub fn launch(&self, config: &Config) -> Guest {
        let mut machine = Machine::launch(config).unwrap();
        let session = machine.session().unwrap();
        Guest { machine, session }
    }

    pub fn config(&self, host_data: [u8; 32], disks: Vec<Disk>) -> Config {
        let mut config = Config::new(self.image.clone(), host_data);
        config.disks = disks;
        config
    }

    /// A machine with a workload's disks, its policy in force.
    pub fn start(&self, workload: &Workload) -> Guest {
        let guest = self.boot(workload.policy.host_data(), workload.disks());
        guest.accept(&workload.policy.image);
        guest
    }

    /// As [`Self::start`], with a network interface in the machine.
    pub fn start_with_network(&self, workload: &Workload, network: Network) -> Guest {
        let mut config = self.config(workload.policy.host_data(), workload.disks());
        config.network = Some(network);
        let guest = self.launch(&config);
        guest.accept(&workload.policy.image);
        guest
    }

    /// A file with this content, of this test's own.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.scratch.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

/// This image with another command line, and a ROM that starts it.
pub fn with_command_line(stage: &Stage, edit: impl FnOnce(String) -> String) -> Image {
    let image = &stage.image;
    let read = |path: &Path| fs::read(path).unwrap();
    let line = edit(String::from_utf8(read(&image.command_line)).unwrap());
    let digests = [read(&image.kernel), read(&image.initrd), line.clone().into_bytes()];
    let mut rom = read(&image.rom);
    parma_firmware::rom::patch(&mut rom, &digests.map(|content| parma_firmware::rom::digest(&content)))
        .unwrap();
    let (rom, command_line) = (stage.file("rom", &rom), stage.file("cmdline", line.as_bytes()));
    Image { rom, command_line, ..image.clone() }
}

/// Compiles a policy with the framework.
pub fn policy(text: &str) -> Compiled {
    compile(&Inputs::policy("policy.rego", text)).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// A policy with the containers of both texts and everything else of the first.
pub fn joined(first: &str, second: &str) -> String {
    let (start, end) = ("containers := [\n", "\n]\n");
    let (_, rest) = second.split_once(start).expect("containers");
    let (containers, _) = rest.split_once(end).expect("their end");
    first.replacen(start, &format!("{start}{containers}\n"), 1)
}

pub fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|&item| item.to_owned()).collect()
}

pub fn list<'a, const N: usize>(items: impl IntoIterator<Item = &'a str>) -> List<&'a str, N> {
    List::from_vec(items.into_iter().collect()).expect("within the limit")
}

/// A container id of 64 times this digit.
pub fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

pub fn serial(text: &str) -> Serial {
    Serial::parse(text).unwrap()
}

impl Workload {
    /// The same as root of the container, with the usual capabilities.
    pub fn of_root(mut self) -> Self {
        self.container.user = String::new();
        self.container.identity.uid = 0;
        self.container.identity.gids = vec![0];
        self.policy = policy(&self.container.policy());
        self
    }

    /// Serial of the layer with this number, from the bottom.
    pub fn serial(&self, index: usize) -> String {
        format!("{}{index}", self.name)
    }

    pub fn disks(&self) -> Vec<Disk> {
        let disk = |(index, layer): (usize, &Layer)| Disk::layer(&layer.path, serial(&self.serial(index)));
        self.layers.iter().enumerate().map(disk).collect()
    }

    /// Serials, top first, as an overlay takes them.
    pub fn overlay_layers(&self) -> Vec<String> {
        (0..self.layers.len()).rev().map(|index| self.serial(index)).collect()
    }

    /// What an honest host asks for: the container's first process.
    pub fn process(&self, stdio: Stdio) -> Process<'_> {
        self.process_with(&self.container.args, stdio)
    }

    /// A further process of the container.
    pub fn process_with<'a>(&'a self, args: &'a [String], stdio: Stdio) -> Process<'a> {
        parma::pod::process(&self.container, args, stdio).unwrap()
    }
}

/// A running machine and the control connection to it.
pub struct Guest {
    pub machine: Machine,
    pub session: Session,
}

impl Guest {
    pub fn request(&self, request: Request<'_>) -> Outcome {
        self.session.request(request).unwrap()
    }

    /// The reply to a request that must be allowed and done.
    pub fn done(&self, request: Request<'_>) -> Reply {
        let what = format!("{request:?}");
        self.request(request).unwrap_or_else(|refused| panic!("{what:.300}: {refused}\n{}", self.console()))
    }

    /// The reason of a request that must be refused.
    pub fn refused(&self, request: Request<'_>) -> Reason {
        self.refusal(request).reason
    }

    pub fn refusal(&self, request: Request<'_>) -> Refusal {
        let what = format!("{request:?}");
        match self.request(request) {
            Err(refused) => refused.0,
            Ok(reply) => panic!("allowed: {what:.300}: {reply:?}"),
        }
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.machine.console().unwrap()).into_owned()
    }

    /// Delivers the policy that HOST_DATA vouches for.
    pub fn accept(&self, image: &[u8]) {
        assert!(matches!(self.done(Request::SetPolicy { image }), Reply::PolicyAccepted(_)));
    }

    pub fn mount_layer(&self, workload: &Workload, index: usize) {
        let Layer { root_hash, data_blocks, .. } = workload.layers[index];
        self.done(Request::MountDevice { device: &workload.serial(index), root_hash, data_blocks });
    }

    pub fn mount_layers(&self, workload: &Workload) {
        (0..workload.layers.len()).for_each(|index| self.mount_layer(workload, index));
    }

    pub fn mount_overlay(&self, workload: &Workload, container: &str) {
        self.mount_overlay_on(workload, container, None);
    }

    /// As [`Self::mount_overlay`], writing to a scratch device, or to memory.
    pub fn mount_overlay_on(&self, workload: &Workload, container: &str, scratch: Option<&str>) {
        let layers = workload.overlay_layers();
        let layers: List<&str, MAX_LAYERS> = list(layers.iter().map(String::as_str));
        self.done(Request::MountOverlay { container, layers, scratch });
    }

    /// Starts a process that must be allowed; returns its number.
    pub fn started(&self, request: Request<'_>) -> u32 {
        match self.done(request) {
            Reply::Started(process) => process,
            other => panic!("no process but {other:?}"),
        }
    }

    /// Everything from layers to the first process, honestly.
    pub fn run(&self, workload: &Workload, container: &str, stdio: Stdio) -> u32 {
        self.mount_layers(workload);
        self.mount_overlay(workload, container);
        self.create(workload, container, stdio)
    }

    pub fn create(&self, workload: &Workload, container: &str, stdio: Stdio) -> u32 {
        let process = workload.process(stdio);
        self.started(Request::CreateContainer {
            container,
            privileged: false,
            mounts: List::new(),
            seccomp: workload.container.seccomp_hash().unwrap(),
            process,
        })
    }

    /// Executes a further command to its end; returns its output and status.
    pub fn exec(&self, workload: &Workload, container: &str, command: &[&str]) -> (String, ExitStatus) {
        let args = strings(command);
        let process = workload.process_with(&args, OUTPUT);
        let process = self.started(Request::ExecInContainer { container, process });
        self.finish(process)
    }

    pub fn attach(&self, process: u32, stream: Stream) -> UnixStream {
        let attached = self.session.attach(process, stream).unwrap();
        let attached = attached.unwrap_or_else(|refused| panic!("{stream:?} of {process}: {refused}"));
        attached.set_read_timeout(Some(LONG)).unwrap();
        attached
    }

    /// What a process writes to its end, standard output before standard error, and how it ends.
    pub fn finish(&self, process: u32) -> (String, ExitStatus) {
        let mut output = read_all(self.attach(process, Stream::Stdout));
        output += &read_all(self.attach(process, Stream::Stderr));
        (output, self.wait(process))
    }

    pub fn wait(&self, process: u32) -> ExitStatus {
        self.session.wait(process, Some(LONG)).unwrap().expect("the process ends")
    }
}

pub fn read_all(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the stream ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads up to and with this text.
pub fn read_until(stream: &mut UnixStream, text: &str) -> String {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(text.as_bytes()) {
        match stream.read(&mut byte) {
            Ok(1) => read.push(byte[0]),
            other => panic!("{other:?} after {:?}, waiting for {text:?}", String::from_utf8_lossy(&read)),
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// A tar for a layer: type, name, link target and content.
pub fn tar(entries: &[(tar::EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for &(kind, name, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(content.len() as u64);
        if kind.is_symlink() || kind.is_hard_link() {
            builder.append_link(&mut header, name, link).unwrap();
        } else {
            builder.append_data(&mut header, name, content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// Further arguments of QEMU.
pub fn arguments(arguments: &[&str]) -> Vec<OsString> {
    arguments.iter().map(OsString::from).collect()
}

/// The file that is the memory of the machine with this name.
pub fn memory_of(name: &str) -> PathBuf {
    let wanted = format!("-name\0{name}\0");
    let qemu = fs::read_dir("/proc").unwrap().flatten().find(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    });
    let descriptors = fs::read_dir(qemu.expect("QEMU runs").path().join("fd")).unwrap();
    let memory = descriptors.flatten().map(|fd| fd.path()).find(|fd| {
        fs::read_link(fd).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:memory-backend"))
    });
    memory.expect("QEMU holds the guest's memory")
}

/// The owner of keys, who talks to a guest through this host.
pub struct Peer {
    channel: u32,
    peer: parma_kms::channel::Peer,
}

impl Stage {
    /// What a relying party expects of a guest of this image under this workload's policy.
    pub fn expected(&self, workload: &Workload) -> parma_kms::verify::Expected {
        let vcpus = self.config([0; 32], Vec::new()).vcpus;
        parma_kms::verify::Expected {
            measurements: vec![self.image.measurement(vcpus).unwrap().0],
            policies: vec![workload.policy.host_data()],
            ..parma_kms::verify::Expected::default()
        }
    }
}

impl Peer {
    /// Opens a channel if the guest is as this peer expects.
    pub fn of(
        guest: &Guest,
        expected: &parma_kms::verify::Expected,
    ) -> Result<Self, parma_kms::channel::Refused> {
        use parma_kms::verify::{Evidence, Moment, Roots};
        let offer = parma_kms::channel::Offer::new().unwrap();
        let (nonce, key) = offer.parts();
        let Reply::Channel(channel, opened) = guest.done(Request::OpenChannel { nonce, key: &key }) else {
            panic!("no channel")
        };
        let chain = guest.machine.chain().to_der().unwrap();
        let roots = Roots::amd().with_emulated(&chain[2]).unwrap();
        let evidence = Evidence { report: &opened.report, certificates: &chain, ..Evidence::default() };
        let (peer, _) =
            offer.accept(&opened.key, &opened.audit, &evidence, expected, &roots, Moment::now())?;
        Ok(Self { channel, peer })
    }

    /// What the host carries to the guest.
    pub fn seal(&mut self, order: &parma_guest::wire::Order<'_>) -> Vec<u8> {
        self.peer.seal(order).unwrap()
    }

    /// The request in which it travels.
    pub fn request<'a>(&self, message: &'a [u8]) -> Request<'a> {
        Request::Sealed { channel: self.channel, message }
    }

    /// The ends of the streams of processes that it starts.
    pub fn exporter(&self) -> parma_guest::attest::stream::Exporter {
        self.peer.exporter()
    }

    /// What came of an order.
    pub fn open<'m>(&mut self, message: &'m mut [u8]) -> Result<parma_guest::wire::Reply<'m>, Refusal> {
        self.peer.open(message).unwrap()
    }

    /// What the guest answers to this order, which the host cannot read.
    pub fn ask(&mut self, guest: &Guest, order: &parma_guest::wire::Order<'_>) -> Vec<u8> {
        let message = self.seal(order);
        match guest.done(self.request(&message)) {
            Reply::Sealed(message) => message,
            other => panic!("{other:?}"),
        }
    }

    /// Releases a volume's key.
    pub fn release(&mut self, guest: &Guest, key: [u8; 32], least_generation: u64) {
        let mut message = self.ask(guest, &parma_guest::wire::Order::Key { key, least_generation });
        assert_eq!(self.open(&mut message), Ok(parma_guest::wire::Reply::Done));
    }
}

/// A port of this machine that nobody uses just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn forwarding(guest: u16) -> (Network, SocketAddr) {
    let host = free_port();
    let network = Network { outbound: false, forwards: vec![format!("{host}:{guest}").parse().unwrap()] };
    (network, SocketAddr::from(([127, 0, 0, 1], host)))
}

/// QEMU accepts connections to a forwarded port before anybody listens behind it, and then ends them.
pub fn fetch(address: SocketAddr) -> String {
    loop {
        let mut stream = TcpStream::connect_timeout(&address, LONG).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut page = String::new();
        if stream.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
            && stream.read_to_string(&mut page).is_ok()
            && !page.is_empty()
        {
            return page;
        }
    }
}
