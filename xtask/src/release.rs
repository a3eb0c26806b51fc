//! The workflow of the paper, in the demonstration and for a figure: a key service that judges a guest's evidence and releases
//! a volume's key sealed for that guest alone.

use anyhow::{Context, Result, bail, ensure};
use parma::output::hex;
use parma::pod::{Observer, Pod, Scratch, describe, new_container_id, unobserved};
use parma::release::KeyService;
use parma::workload::{Content, Encrypted, Policy, Volume, Workload};
use parma_guest::wire::{ExitStatus, Request, Stdio, Stream};
use parma_kms::bundle::Bundle;
use parma_kms::rules::Rules;
use parma_kms::server::{self, Shared};
use parma_kms::service::Service;
use parma_kms::store::Store;
use parma_kms::verify::{Outcome, Roots};
use parma_layer::oci::Reference;
use parma_layer::volume::{self, Key};
use parma_policy::generate::GenerateOptions;
use parma_psp::Root;
use parma_vmm::{Config, Image};
use serde_json::json;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longer than any answer takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the volume.
const SIZE: u64 = 32 << 20;
/// What the key is called at the service.
const NAME: &str = "data";
/// What the container does with the volume.
const SCRIPT: &str = "echo 'what this volume holds, no host can read' >/data/note; cat /data/note; exec sync";
/// Releases that are measured; an address may ask for so many at once.
const RELEASES: usize = 20;

/// An owner's volume, its key service, and the guests that are asked for it.
struct Stage {
    image: Image,
    workload: Workload,
    volume: PathBuf,
    root: Root,
    service: KeyService,
    /// Its threads.
    _runtime: tokio::runtime::Runtime,
    _scratch: tempfile::TempDir,
}

impl Stage {
    fn prepare(image: &Image, fixtures: &Path) -> Result<Self> {
        let scratch = tempfile::tempdir()?;
        let path = scratch.path().join("data.img");
        let mut random = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let key = Key::read(&mut &random[..])?;
        volume::Volume::create(&path, SIZE, &key)?;
        let id = parma_guest::target::volume::id(&random);
        let volumes = vec![Volume::at("/data", Content::encrypted(&path, id)?)];
        let reference = Reference::parse(&format!("oci:{}:latest", fixtures.join("busybox").display()))?;
        let options = GenerateOptions {
            args: Some(["sh", "-c", SCRIPT].map(str::to_owned).to_vec()),
            memory_scratch: true,
            volumes: volumes.iter().map(Volume::data).collect(),
            ..GenerateOptions::default()
        };
        let mut workload = Workload::prepare(&reference, &options, "layer", |_, _, _| {})?;
        workload.volumes = volumes;

        let rule = json!({
            "measurements": [hex(&image.measurement(1)?.0)],
            "host_data": [hex(&workload.strict_policy()?.host_data())],
        });
        let rules = json!({"issuer": "https://kms.example", "keys": {NAME: rule}});
        let store = Store::open(&scratch.path().join("kms.db"))?;
        store.import(NAME, &random)?;
        let root = Root::new()?;
        let mut bundle = Bundle::default();
        bundle.add(root.certificate_pem()?.as_bytes())?;
        let known = bundle.certificates.first().context("the emulated root")?;
        let roots = Roots::amd().with_emulated(known).context("the emulated root is none")?;
        let rules = Rules::parse(rules.to_string().as_bytes())?;
        let service = Service::new(store, rules, roots, bundle)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("http://{}", listener.local_addr()?);
        runtime.spawn(server::run(listener, None, Shared::new(service)));
        let service = KeyService::new(&url, b"")?;
        let image = image.clone();
        Ok(Self { image, workload, volume: path, root, service, _runtime: runtime, _scratch: scratch })
    }

    /// A guest with the volume's disk, under this policy.
    fn boot(&self, policy: &Policy, observer: Observer) -> Result<Pod> {
        let mut config = Config::new(self.image.clone(), policy.host_data());
        config.root = Some(self.root.clone());
        config.disks = self.workload.disks().chain([self.encrypted()?.disk()]).collect();
        let pod = Pod::boot(&config, observer)?;
        pod.set_policy(policy)?;
        Ok(pod)
    }

    fn encrypted(&self) -> Result<&Encrypted> {
        match self.workload.volumes.first().map(|volume| &volume.content) {
            Some(Content::Encrypted(volume)) => Ok(volume),
            _ => bail!("the workload has its volume"),
        }
    }

    /// What `parma run --kms` does.
    fn release(&self, pod: &Pod, policy: &Policy) -> Result<()> {
        self.service.release(&pod.guest, NAME, policy, &pod.chain(&Bundle::default())?, None)
    }
}

/// Shows evidence judged item by item, a key released and its volume opened, and the same refused to a guest under another policy.
pub fn show(image: &Image, fixtures: &Path, observer: &Observer) -> Result<()> {
    let stage = Stage::prepare(image, fixtures)?;
    let policy = stage.workload.strict_policy()?;
    println!("  {:<13} {}, encrypted, id {}", "volume", stage.volume.display(), hex(&stage.encrypted()?.id));
    println!(
        "  {:<13} its rule names the MEASUREMENT above and HOST_DATA {}",
        "key service",
        hex(&policy.host_data())
    );
    println!(
        "  (It accepts the EMULATED root of this demonstration, because it is told to; no hardware vouches for this.)"
    );
    let pod = stage.boot(&policy, observer.clone())?;
    let channel = pod.owner(&policy, Bundle::default(), Some(&stage.root))?.channel(&*pod.guest)?;
    println!("\n  The guest's evidence, as the key service judges it:");
    for item in &channel.list.items {
        let outcome = match item.outcome {
            Outcome::Pass => "pass",
            Outcome::Fail => "FAIL",
            Outcome::NotAsked => continue,
        };
        println!("  {outcome}  {:<13} {}", item.check, item.detail);
    }
    println!();
    stage.release(&pod, &policy)?;
    println!("  released      the key, sealed for this guest alone; this host carried it and cannot read it");
    pod.guest.mount_volume(stage.encrypted()?)?;
    for layer in &stage.workload.layers {
        pod.guest.mount_layer(layer)?;
    }
    let id = new_container_id()?;
    pod.guest.mount_overlay(&id, &stage.workload.layers, pod.guest.mount_scratch(&id, &Scratch::Memory)?)?;
    let stdio = Stdio { stdout: true, ..Stdio::default() };
    let process = pod.guest.create(&id, &stage.workload, stdio)?;
    let mut output = pod.guest.session.attach(process, Stream::Stdout)??;
    output.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    output.read_to_string(&mut text)?;
    print!("    | {text}");
    ensure!(text.starts_with("what this volume holds"), "the container did not read the volume: {text}");
    let status = pod.guest.session.wait(process, Some(PATIENCE))?;
    ensure!(status == Some(ExitStatus::Code(0)), "the container ended otherwise: {status:?}");
    pod.guest.shutdown(&id)?;
    pod.guest.unmount_volume(stage.encrypted()?)?;
    pod.power_off()?;

    println!("\n  K05  the host starts the same guest under a changed policy, which allows one command more");
    let mut changed = stage.workload.clone();
    changed.container.exec.push(["cat", "/data/note"].map(str::to_owned).to_vec());
    let policy = changed.strict_policy()?;
    let pod = stage.boot(&policy, unobserved())?;
    match stage.release(&pod, &policy) {
        Ok(()) => bail!("K05 was not refused: the key was released to a guest under another policy"),
        Err(refused) => println!("       -> {refused:#}"),
    }
    let closed =
        Request::MountVolume { volume: stage.encrypted()?.id, device: stage.encrypted()?.serial.as_str() };
    let what = describe(&closed);
    match pod.guest.session.request(closed)? {
        Ok(_) => bail!("K05 was not refused: the volume opened"),
        Err(refused) => println!("       -> {what}: {refused}"),
    }
    pod.power_off()?;
    Ok(())
}

/// Milliseconds from the offer to the key in the guest: its key pair and report, the judgement, the trail, the sealed key.
pub fn figure(image: &Image, fixtures: &Path) -> Result<Vec<f64>> {
    let stage = Stage::prepare(image, fixtures)?;
    let policy = stage.workload.strict_policy()?;
    let pod = stage.boot(&policy, unobserved())?;
    let mut times = Vec::new();
    for _ in 0..RELEASES {
        let start = Instant::now();
        stage.release(&pod, &policy)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    pod.guest
        .mount_volume(stage.encrypted()?)
        .context("the key that was released does not open the volume")?;
    Ok(times)
}
