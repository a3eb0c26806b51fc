//! The whole of Parma in one run: a measured image, an attested policy, a real container, and a host that turns hostile.
//!
//! Everything shown happens: the VM is QEMU with the real image, the container is Debian's Python, and each attack is a
//! request or a change that a host can really make. The container answers a question after each of them. The run fails
//! if an attack is not refused, or if the container notices.

use crate::{cache, fixtures, image, release, setup};
use anyhow::{Context, Result, bail, ensure};
use parma::output::hex;
use parma::pod::{Observer, Pod, Scratch, describe, new_container_id, process};
use parma::workload::{Layer, Policy, Workload};
use parma_guest::gate::fields::{ContainerId, Serial};
use parma_guest::wire::{CONTROL_PORT, ExitStatus, List, Process, Request, Stdio, Stream};
use parma_layer::oci::Reference;
use parma_policy::generate::GenerateOptions;
use parma_vmm::{Config, Disk, Image, Outcome};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longer than any answer takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the container does: it answers each line, and ends with its input.
const SERVICE: &str = "\
import sys
print('the container is up:', sys.version.split()[0], flush=True)
for number, line in enumerate(sys.stdin, 1):
    print(f'answer {number}: {line.strip()[::-1]}', flush=True)
print('the container is done', flush=True)
";

/// What may be executed in it later: it reads a file that nothing has read before.
const READER: &str = "\
import errno, os
try:
    print(len(open(os.path.join(os.path.dirname(os.__file__), 'textwrap.py')).read()))
except OSError as error:
    print(errno.errorcode[error.errno])
";
/// How that file begins.
const READ_TEXT: &[u8] = b"\"\"\"Text wrapping and filling.";

/// Shows an unmodified container under an attested policy, and a hostile host refused.
#[derive(clap::Args)]
pub struct Arguments {}

pub fn main(_: Arguments) -> Result<()> {
    setup::ensure(&[setup::DEBIAN, setup::KERNEL, setup::VM])?;
    setup::vhost_device_vsock()?;
    let built = image::build(true)?;
    let fixtures = fixtures::all()?;

    heading("The measured image");
    print!("{}", components(&built.manifest())?);
    let image = Image::open(&built.dir)?;
    say("MEASUREMENT", &hex(&image.measurement(1)?.0));
    note("The PSP of this run is emulated: see \"What is proved where\" in the README.");

    heading("The container image, its layers and its policy");
    let scratch = tempfile::tempdir()?;
    let workload = workload(&fixtures, scratch.path())?;
    for layer in &workload.layers {
        say(layer.serial.as_str(), &format!("dm-verity root {}", hex(&layer.root_hash)));
    }
    let policy = workload.strict_policy()?;
    for line in policy.source.iter().flat_map(|source| source.lines()) {
        println!("    | {line}");
    }
    say("compiled", &format!("{} bytes", policy.image.len()));
    say("HOST_DATA", &hex(&policy.host_data()));

    let mut play = Play::begin(image.clone(), workload, policy)?;
    play.before_the_policy()?;
    play.honest()?;
    play.attacks()?;
    play.end()?;

    heading("A key that is released to the attested guest, and to no other");
    let observer: Observer = Arc::new(show);
    release::show(&image, &fixtures, &observer)
}

/// The Python image with the service as its command; its layers are copies that the demonstration may damage.
fn workload(fixtures: &Path, scratch: &Path) -> Result<Workload> {
    let reference = Reference::parse(&format!("oci:{}:latest", fixtures.join("python").display()))?;
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<String>>();
    let options = GenerateOptions {
        args: Some(words(&["python3", "-c", SERVICE])),
        exec: vec![words(&["python3", "-c", READER])],
        ..GenerateOptions::default()
    };
    let mut workload = Workload::prepare(&reference, &options, "layer", |_, _, _| {})?;
    for layer in &mut workload.layers {
        let copy = scratch.join(layer.serial.as_str());
        fs::copy(&layer.path, &copy).with_context(|| copy.display().to_string())?;
        layer.path = copy;
    }
    Ok(workload)
}

/// Bytes of the disk that the container writes to.
const SCRATCH: u64 = 1 << 30;

/// The play: one guest, one container, one host that is honest and hostile by turns.
struct Play {
    pod: Pod,
    workload: Workload,
    policy: Policy,
    scratch: Scratch,
    id: ContainerId,
    container: Option<Container>,
    refused: usize,
}

/// The running container.
struct Container {
    process: u32,
    input: UnixStream,
    output: UnixStream,
    questions: usize,
}

impl Play {
    fn begin(image: Image, workload: Workload, policy: Policy) -> Result<Self> {
        heading("Boot");
        let mut config = Config::new(image, policy.host_data());
        let scratch = Scratch::disk(SCRATCH)?;
        config.disks.extend(workload.disks().chain(scratch.to_attach()));
        // A disk that the policy knows nothing of.
        let stranger = workload.layers.first().context("the image has layers")?;
        config.disks.push(Disk::layer(&stranger.path, serial("stranger")?));
        let observer: Observer = Arc::new(show);
        let pod = Pod::boot(&config, observer)?;
        say("guest", "one process, the init; it has read its report and listens");
        Ok(Self { pod, workload, policy, scratch, id: new_container_id()?, container: None, refused: 0 })
    }

    /// Sends what must be refused.
    fn attack(&mut self, id: &str, what: &str, request: Request<'_>) -> Result<()> {
        println!("\n  {id}  the host {what}");
        let outcome = self.pod.guest.session.request(request)?;
        self.must_be_refused(id, &outcome)
    }

    fn must_be_refused(&mut self, id: &str, outcome: &Outcome) -> Result<()> {
        match outcome {
            Ok(reply) => bail!("{id} was not refused: {reply:?}"),
            Err(refused) => self.held(&refused.to_string()),
        }
    }

    /// Counts an attack that came to nothing, and has the container prove that it goes on.
    fn held(&mut self, how: &str) -> Result<()> {
        self.refused += 1;
        println!("       -> {how}");
        match &mut self.container {
            Some(container) => container.ask(),
            None => Ok(()),
        }
    }

    fn before_the_policy(&mut self) -> Result<()> {
        heading("A hostile host, before there is a policy");
        let open = "package policy\napi_version := \"0.12.0\"\nmount_device := {\"allowed\": true}\n";
        let open = Policy::compile("open-door.rego", open)?;
        self.attack(
            "P01",
            "delivers another policy, one that allows everything",
            Request::SetPolicy { image: &open.image },
        )?;
        self.attack("P02", "goes on without any policy", Request::GetProperties)
    }

    fn honest(&mut self) -> Result<()> {
        heading("The honest host");
        let report = self.pod.set_policy(&self.policy)?;
        say("report", &format!("{} bytes, signed, MEASUREMENT and HOST_DATA as above", report.len()));
        for layer in &self.workload.layers {
            self.pod.guest.mount_layer(layer)?;
        }
        let scratch = self.pod.guest.mount_scratch(&self.id, &self.scratch)?;
        self.pod.guest.mount_overlay(&self.id, &self.workload.layers, scratch)?;
        let stdio = Stdio { stdin: true, stdout: true, stderr: false, terminal: None };
        let process = self.pod.guest.create(&self.id, &self.workload, stdio)?;
        let attach = |stream| -> Result<UnixStream> {
            let stream = self.pod.guest.session.attach(process, stream)??;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let (input, output) = (attach(Stream::Stdin)?, attach(Stream::Stdout)?);
        let mut container = Container { process, input, output, questions: 0 };
        container.line("the container is up: ")?;
        container.ask()?;
        self.container = Some(container);
        Ok(())
    }

    fn attacks(&mut self) -> Result<()> {
        heading("The host turns hostile; the container is asked after each attack");
        let workload = self.workload.clone();
        let (top, bottom) = match &workload.layers[..] {
            [bottom, .., top] => (top, bottom),
            _ => bail!("the image has too few layers for the demonstration"),
        };
        let id = self.id;
        let (container, other) = (id.as_str(), new_container_id()?);
        let first = self.container.as_ref().map_or(0, |container| container.process);
        let (root_hash, data_blocks) = (bottom.root_hash, bottom.data_blocks);
        let policy = self.policy.image.clone();

        self.attack("P03", "sets the policy a second time", Request::SetPolicy { image: &policy })?;
        let unknown = Request::MountDevice { device: "stranger", root_hash: [0xee; 32], data_blocks };
        self.attack("I01", "attaches a layer that the policy does not name", unknown)?;
        let lie =
            Request::MountDevice { device: "stranger", root_hash, data_blocks: data_blocks.div_ceil(128) };
        self.attack("I04", "lies about a layer's size, so that hashes would be read as data", lie)?;
        let reversed = list(workload.layers.iter().map(|layer| layer.serial.as_str()))?;
        let reversed = Request::MountOverlay { container: other.as_str(), layers: reversed, scratch: None };
        self.attack("I05", "stacks the layers in another order", reversed)?;
        let pull = Request::UnmountDevice { device: top.serial.as_str() };
        self.attack("I06", "pulls a layer from under the container", pull)?;
        let path = Request::MountOverlay {
            container: "../../x",
            layers: list([top.serial.as_str()])?,
            scratch: None,
        };
        self.attack("I09", "names a container that is a path", path)?;

        let again = self.honest_process(&workload)?;
        self.attack("C08", "creates the container a second time", create(container, again.clone()))?;
        self.pod.guest.mount_overlay(&other, &workload.layers, Some(&self.id))?;
        let other = other.as_str();
        let env: Vec<&str> = again.env.iter().copied().chain(["LD_PRELOAD=/tmp/evil.so"]).collect();
        let preload = Process { env: list(env)?, ..again.clone() };
        self.attack("C05", "adds LD_PRELOAD to the environment", create(other, preload))?;
        let shell = Process { args: list(["sh", "-c", "cat /etc/shadow"])?, ..again.clone() };
        self.attack("C06", "runs another command", create(other, shell))?;
        self.attack("C06", "runs it as root", create(other, Process { user: "0", ..again.clone() }))?;
        let everything = (1 << 41) - 1;
        let mut capabilities = again.capabilities;
        (capabilities.bounding, capabilities.permitted) = (everything, everything);
        let capable = Process { capabilities, ..again.clone() };
        self.attack("C04", "adds every capability", create(other, capable))?;
        let exec = Process { args: list(["sh"])?, stdio: Stdio::default(), ..again };
        let exec = Request::ExecInContainer { container, process: exec };
        self.attack("C10", "executes a shell in the container", exec)?;
        let signal = Request::SignalContainerProcess { container, process: first, signal: 19 };
        self.attack("C11", "stops the container with a signal that is not listed", signal)?;

        println!("\n  C12  the host attaches to the container's output a second time");
        match self.pod.guest.session.attach(first, Stream::Stdout)? {
            Ok(_) => bail!("C12 was not refused"),
            Err(refused) => self.held(&refused.to_string())?,
        }
        println!("\n  T03  somebody else connects to the control port");
        let mut second = self.pod.machine.connector().connect(CONTROL_PORT)?;
        second.set_read_timeout(Some(PATIENCE))?;
        let mut said = Vec::new();
        // A connection that is reset gave nothing either.
        let _ = second.read_to_end(&mut said);
        ensure!(said.is_empty(), "T03 was not refused: {said:?}");
        self.held("closed without a byte")?;

        println!("\n  I02  the host changes one bit of a mounted layer on its disk");
        flip(top, READ_TEXT)?;
        let reader = &workload.container.exec[0];
        let stdio = Stdio { stdout: true, ..Stdio::default() };
        let process = self.pod.guest.exec(&id, &workload.container, reader, stdio)?;
        let mut output = self.pod.guest.session.attach(process, Stream::Stdout)??;
        output.set_read_timeout(Some(PATIENCE))?;
        let mut read = String::new();
        output.read_to_string(&mut read)?;
        ensure!(read == "EIO\n", "I02: the changed block was read: {read}");
        self.held("the reader of that block gets an I/O error, and not a byte of it")
    }

    fn honest_process<'a>(&self, workload: &'a Workload) -> Result<Process<'a>> {
        process(&workload.container, &workload.container.args, Stdio { stdout: true, ..Stdio::default() })
    }

    fn end(mut self) -> Result<()> {
        heading("The honest end");
        let container = self.container.take().context("the container runs")?;
        let Container { process, input, mut output, questions } = container;
        drop(input);
        let mut rest = String::new();
        output.read_to_string(&mut rest)?;
        print!("    | {rest}");
        let status = self.pod.guest.session.wait(process, Some(PATIENCE))?;
        ensure!(status == Some(ExitStatus::Code(0)), "the container ended otherwise: {status:?}");
        self.pod.guest.shutdown(&self.id)?;
        self.pod.guest.unmount_overlay(&self.id)?;
        let refused = self.refused;
        let exit = self.pod.power_off()?;
        ensure!(exit.by_guest(), "the guest did not power off by itself: {exit:?}");
        println!("\n{refused} attacks refused; the container answered {questions} times and exited with 0.");
        Ok(())
    }
}

impl Container {
    /// Asks a question that has one right answer.
    fn ask(&mut self) -> Result<()> {
        self.questions += 1;
        let question = format!("question {}", self.questions);
        writeln!(self.input, "{question}").context("the container's standard input")?;
        let reversed: String = question.chars().rev().collect();
        self.line(&format!("answer {}: {reversed}", self.questions))
    }

    /// Reads and shows a line, which must begin like this.
    fn line(&mut self, expected: &str) -> Result<()> {
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            self.output.read_exact(&mut byte).context("the container's standard output")?;
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line);
        ensure!(line.starts_with(expected), "the container says {line:?} instead of {expected:?}");
        print!("    | {line}");
        Ok(())
    }
}

fn create<'a>(container: &'a str, process: Process<'a>) -> Request<'a> {
    Request::CreateContainer { container, privileged: false, mounts: List::new(), seccomp: None, process }
}

fn list<'a, const N: usize>(items: impl IntoIterator<Item = &'a str>) -> Result<List<&'a str, N>> {
    List::from_vec(items.into_iter().collect()).context("within the limit")
}

fn serial(text: &str) -> Result<Serial> {
    Serial::parse(text).ok().context("a serial")
}

/// Flips a bit of the block that holds this text.
fn flip(layer: &Layer, text: &[u8]) -> Result<()> {
    let content = fs::read(&layer.path)?;
    let at =
        content.windows(text.len()).position(|window| window == text).context("the text is in the layer")?;
    let byte = content.get(at).map(|byte| byte ^ 1).context("in the layer")?;
    let file = OpenOptions::new().write(true).open(&layer.path)?;
    Ok(file.write_all_at(&[byte], at as u64)?)
}

/// A line for each file of the image.
fn components(manifest: &Path) -> Result<String> {
    let manifest: serde_json::Value = serde_json::from_slice(&cache::read(manifest)?)?;
    let mut lines = String::new();
    for component in manifest["components"].as_array().context("manifest.json has no components")? {
        let text = |name: &str| component[name].as_str().unwrap_or_default();
        lines +=
            &format!("  {:<13} {:>9} bytes  {}\n", text("component"), component["bytes"], text("sha256"));
    }
    Ok(lines)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn say(what: &str, value: &str) {
    println!("  {what:<13} {value}");
}

fn note(text: &str) {
    println!("  ({text})");
}

/// Shows a decision.
fn show(request: &Request<'_>, outcome: &Outcome) {
    let mut what = describe(request).replace('\n', " ");
    if what.chars().count() > 90 {
        what = what.chars().take(89).chain(['…']).collect();
    }
    match outcome {
        Ok(_) => println!("  allowed       {what}"),
        Err(refused) => println!("  refused       {what}: {refused}"),
    }
}
