//! The figures of the README, each measured beside its peer in one run; they are kept in `target/bench.json`.
//!
//! Times are wall-clock of this machine, whole samples in the file, medians on the screen. The boot is compared with the
//! same kernel, command line and machine, with an init that does nothing but power off; the two take turns.

use crate::first_line::{self, Start, Way};
use crate::{attest, cache, containers, cpio, firmware, fixtures, image, policy, setup, shim, storage};
use anyhow::{Context, Result, ensure};
use parma_guest::gate::fields::Serial;
use parma_guest::wire::Request;
use parma_layer::cache as layers;
use parma_layer::oci::{self, Reference};
use parma_policy::generate::{GenerateOptions, generate};
use parma_policy::{Compiled, Inputs, compile};
use parma_vmm::{Accel, Config, Disk, Image, Machine, Reply};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Largest init, in bytes: the goal of the design.
const INIT_GOAL: u64 = 512 << 10;
/// How long a machine may take to end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures and prints the figures; writes target/bench.json.
#[derive(clap::Args)]
pub struct Arguments {
    /// Boots of each kind
    #[arg(long, default_value_t = 7)]
    boots: usize,
    /// Requests of each kind
    #[arg(long, default_value_t = 500)]
    requests: usize,
    /// Rounds of each storage figure
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only these figures; target/bench.json stays as it is
    #[arg(long, value_name = "GROUP")]
    only: Option<Group>,
    /// Build this layer and print the memory it took: what the storage figures run
    #[arg(long, hide = true)]
    peak_of: Option<PathBuf>,
    /// Print the JSON instead of the table
    #[arg(long)]
    json: bool,
}

/// Figures that can be had without the others.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Group {
    /// To the kernel's first line and to an accepted policy, through our firmware and others
    Boot,
    /// Verified, encrypted and authenticated disks, and layers
    Storage,
    /// Building layers, which needs no machine
    Layers,
    /// Compiling and deciding, which needs no machine
    Policy,
    /// Evidence, and the key service
    Attest,
    /// Starts, streams, crowds and servers
    Containers,
    /// Pods of containerd; needs root
    Shim,
}

impl Group {
    fn figures(self, arguments: &Arguments) -> Result<Value> {
        let image = || -> Result<Image> {
            setup::ensure(&NEEDS)?;
            Image::open(&image::build(true)?.dir)
        };
        match self {
            Self::Boot => boot(&Stage::prepare(&image()?)?, arguments.boots),
            Self::Storage => storage::figures(&image()?, arguments.rounds),
            Self::Layers => {
                setup::ensure(&[setup::ORACLES])?;
                storage::layer_figures(arguments.rounds)
            }
            Self::Policy => policy::figures(),
            Self::Attest => attest::figures(&image()?),
            Self::Containers => containers::figures(&image()?, arguments.rounds),
            Self::Shim => shim::figures(),
        }
    }

    fn print(self, figures: &Value) {
        match self {
            Self::Boot => print_boot(figures),
            Self::Storage => storage::print(figures),
            Self::Layers => storage::print_layers(figures),
            Self::Policy => policy::print(figures),
            Self::Attest => attest::print(figures),
            Self::Containers => containers::print(figures),
            Self::Shim => shim::print(figures),
        }
    }
}

/// What the figures of a machine need.
const NEEDS: [setup::Need; 5] = [setup::DEBIAN, setup::KERNEL, setup::VM, setup::ORACLES, setup::CLIENTS];

pub fn main(arguments: Arguments) -> Result<()> {
    if let Some(tar) = &arguments.peak_of {
        return storage::build_and_print_peak(tar);
    }
    if let Some(group) = arguments.only {
        let figures = group.figures(&arguments)?;
        if arguments.json {
            println!("{}", serde_json::to_string_pretty(&figures)?);
        } else {
            group.print(&figures);
        }
        return Ok(());
    }
    let decisions = policy::figures()?;
    setup::ensure(&NEEDS)?;
    let built = image::build(true)?;
    let image = Image::open(&built.dir)?;
    let disks = storage::figures(&image, arguments.rounds)?;
    let stage = Stage::prepare(&image)?;
    let scratch = tempfile::tempdir()?;
    let empty = Image { initrd: empty_initrd(scratch.path())?, ..image.clone() };
    let empty = firmware::with_rom_of_its_own(empty, scratch.path())?;
    let starts = boot(&stage, arguments.boots)?;
    let verifications = attest::figures(&image)?;
    let many = containers::figures(&image, arguments.rounds)?;
    let pods = shim::figures()?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for turn in 0..arguments.boots {
        eprintln!("boot {} of {}", turn + 1, arguments.boots);
        bare.push(power_off_boot(&empty)?);
        ours.push(policy_boot(&stage, Way::Ours)?.wall);
    }
    let (round_trip, decision, resident) = requests(&stage, arguments.requests)?;

    let init = fs::metadata(built.init())?.len();
    let files = [&image.rom, &image.kernel, &image.initrd];
    let image_bytes = files.iter().map(|file| Ok(fs::metadata(file)?.len())).sum::<Result<u64>>()?;
    let figures = json!({
        "machine": machine(&image)?,
        "init_bytes": init,
        "image_bytes": image_bytes,
        "boot": starts,
        "boot_to_policy_ms": samples(&ours),
        "boot_to_power_off_with_an_empty_init_ms": samples(&bare),
        "request_refused_by_the_gate_us": samples(&round_trip),
        "request_decided_by_the_policy_us": samples(&decision),
        "init_resident_kib": resident,
        "policy_image_bytes": stage.policy.image.len(),
        "storage": disks,
        "policy": decisions,
        "attestation": verifications,
        "containers": many,
        "shim": pods,
    });
    let text = serde_json::to_string_pretty(&figures)? + "\n";
    let path = cache::root().join("target/bench.json");
    cache::write(&path, text.as_bytes())?;
    if arguments.json {
        print!("{text}");
    } else {
        let ratio = median(&ours) / median(&bare);
        println!("{}", figures["machine"].as_object().map(describe).unwrap_or_default());
        println!(
            "init binary                                   {:>9.1} KiB   goal 512",
            init as f64 / 1024.0
        );
        println!("QEMU start to policy accepted                 {:>9.0} ms", median(&ours));
        println!("QEMU start to power-off, same kernel, no init {:>9.0} ms", median(&bare));
        println!("  ratio                                       {ratio:>9.2}       goal 1.5");
        println!(
            "ROM, kernel and initrd                        {:>9.2} MiB   goal 5",
            image_bytes as f64 / f64::from(1 << 20)
        );
        print_boot(&figures["boot"]);
        println!("request and refusal over vsock                {:>9.0} µs", median(&round_trip));
        println!("request decided by the policy                 {:>9.0} µs", median(&decision));
        println!("memory of the init with its policy            {resident:>9} KiB   goal 4096");
        storage::print(&figures["storage"]);
        policy::print(&figures["policy"]);
        attest::print(&figures["attestation"]);
        containers::print(&figures["containers"]);
        shim::print(&figures["shim"]);
        println!("written to {}", path.display());
    }
    ensure!(init <= INIT_GOAL, "the init has {init} bytes, more than the goal of {INIT_GOAL}");
    Ok(())
}

/// Bytes of a ROM that hold something: all but the longest run of zeros.
fn rom_bytes_used(rom: &[u8]) -> usize {
    rom.len() - rom.split(|byte| *byte != 0).map(<[u8]>::len).max().unwrap_or_default()
}

/// How long each way of starting takes, to the kernel's first line and to an accepted policy.
fn boot(stage: &Stage, boots: usize) -> Result<Value> {
    let own = tempfile::tempdir()?;
    let talkative = first_line::talkative(&stage.image, own.path())?;
    Ok(json!({
        "kernels_first_line": starts(boots, |way| first_line::measure(way, &talkative))?,
        "policy_accepted": starts(boots, |way| policy_boot(stage, way))?,
        "rom_bytes_used": rom_bytes_used(&fs::read(&stage.image.rom)?),
    }))
}

fn print_boot(figures: &Value) {
    let used = figures["rom_bytes_used"].as_f64().unwrap_or(f64::NAN);
    println!("ROM bytes used                                {:>9.1} KiB   of 64", used / 1024.0);
    for (what, key) in [("kernel's first line", "kernels_first_line"), ("policy accepted", "policy_accepted")]
    {
        for (way, start) in figures[key].as_object().into_iter().flatten() {
            let of = |what: &str| start[what]["median"].as_f64().unwrap_or(f64::NAN);
            let what = format!("{what} through {way}");
            println!("{what:<45} {:>9.0} ms of CPU, {:.0} ms", of("cpu_ms"), of("wall_ms"));
        }
    }
}

/// A real policy, for a real image.
struct Stage {
    image: Image,
    policy: Compiled,
    layers: Vec<Disk>,
}

impl Stage {
    fn prepare(image: &Image) -> Result<Self> {
        let layout = fixtures::image("python")?;
        let source = oci::Image::open(&Reference::parse(&format!("oci:{}:latest", layout.display()))?)?;
        let converted = layers::convert(&source, &mut |_, _| {})?;
        let hashes: Vec<[u8; 32]> = converted.iter().map(|layer| layer.root_hash).collect();
        let options = GenerateOptions { logging: true, ..GenerateOptions::default() };
        let text = generate(&source, &hashes, &options)?;
        let policy = compile(&Inputs::policy("bench.rego", &text))?;
        let disk = |(index, layer): (usize, &layers::CachedLayer)| -> Result<Disk> {
            let serial = format!("layer{index}");
            let serial = Serial::parse(&serial).ok().context("a serial")?;
            Ok(Disk::layer(&layer.path, serial))
        };
        let layers = converted.iter().enumerate().map(disk).collect::<Result<_>>()?;
        Ok(Self { image: image.clone(), policy, layers })
    }

    fn launch(&self, way: Way) -> Result<Machine> {
        let mut config = Config::new(self.image.clone(), self.policy.host_data());
        config.extra_args = way.instead(&self.image)?;
        config.disks.clone_from(&self.layers);
        Machine::launch(&config)
    }
}

/// From the start of QEMU to the guest's word that the policy is in force.
fn policy_boot(stage: &Stage, way: Way) -> Result<Start> {
    let start = Instant::now();
    let mut machine = stage.launch(way)?;
    let session = machine.session()?;
    let accepted = session.request(Request::SetPolicy { image: &stage.policy.image })?;
    ensure!(matches!(accepted, Ok(Reply::PolicyAccepted(_))), "the policy was not accepted: {accepted:?}");
    let wall = start.elapsed().as_secs_f64() * 1e3;
    Ok(Start { cpu: machine.cpu_time()?.as_secs_f64() * 1e3, wall })
}

/// Milliseconds from the start of QEMU to its end.
fn power_off_boot(image: &Image) -> Result<f64> {
    let start = Instant::now();
    let mut machine = Machine::launch(&Config::new(image.clone(), [0; 32]))?;
    let exit = machine.wait(PATIENCE)?.context("the empty init does not power off")?;
    ensure!(exit.by_guest(), "the empty init's machine ended otherwise: {exit:?}");
    let console = machine.console()?;
    let console = String::from_utf8_lossy(&console);
    ensure!(!console.contains("firmware: "), "the empty init's machine did not boot: {console}");
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// The starts of all ways, in turns.
fn starts(boots: usize, measure: impl Fn(Way) -> Result<Start>) -> Result<Value> {
    let mut starts: Vec<(Way, Vec<f64>, Vec<f64>)> =
        first_line::ways().into_iter().map(|way| (way, Vec::new(), Vec::new())).collect();
    for _ in 0..boots {
        for (way, cpu, wall) in &mut starts {
            let start = measure(*way)?;
            cpu.push(start.cpu);
            wall.push(start.wall);
        }
    }
    let figure = |(way, cpu, wall): &(Way, Vec<f64>, Vec<f64>)| {
        (way.name().to_owned(), json!({ "cpu_ms": samples(cpu), "wall_ms": samples(wall) }))
    };
    Ok(Value::Object(starts.iter().map(figure).collect()))
}

/// Microseconds of requests that only the gate looks at and of requests that the policy decides, and the init's memory.
fn requests(stage: &Stage, count: usize) -> Result<(Vec<f64>, Vec<f64>, u64)> {
    let mut machine = stage.launch(Way::Ours)?;
    let session = machine.session()?;
    session.request(Request::SetPolicy { image: &stage.policy.image })?.map_err(anyhow::Error::new)?;
    let time = |request: &Request<'_>| -> Result<Vec<f64>> {
        (0..count)
            .map(|_| {
                let start = Instant::now();
                // Whether it is refused is the same every time and says nothing about the time it takes.
                let _ = session.request(request.clone())?;
                Ok(start.elapsed().as_secs_f64() * 1e6)
            })
            .collect()
    };
    let refused = time(&Request::UnmountDevice { device: "no-such-device" })?;
    let decided =
        time(&Request::MountDevice { device: "no-such-device", root_hash: [7; 32], data_blocks: 1 })?;
    session.request(Request::RuntimeLogging { enabled: true })?.map_err(anyhow::Error::new)?;
    Ok((refused, decided, InitUse::said(&machine)?.resident_kib))
}

/// What the init says of itself on the console when its log is turned on: `… memory: 1234 KiB, processor: 56 ms`.
pub struct InitUse {
    pub resident_kib: u64,
    pub processor: Duration,
}

impl InitUse {
    /// What it said last.
    pub fn said(machine: &Machine) -> Result<Self> {
        let console = machine.console()?;
        let said = String::from_utf8_lossy(&console).lines().rev().find_map(|line| {
            let (memory, processor) = line.split_once("memory: ")?.1.split_once(" KiB, processor: ")?;
            let processor = Duration::from_millis(processor.trim().strip_suffix(" ms")?.parse().ok()?);
            Some(Self { resident_kib: memory.parse().ok()?, processor })
        });
        said.context("the init did not say on the console what it uses")
    }
}

/// An initrd whose init is 132 bytes that call reboot(2).
fn empty_initrd(dir: &Path) -> Result<PathBuf> {
    /// An ELF header, one program header, and the code, loaded at 4 MiB.
    const BASE: u64 = 0x40_0000;
    #[rustfmt::skip]
    const CODE: [u8; 28] = [
        0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, LINUX_REBOOT_MAGIC1
        0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, LINUX_REBOOT_MAGIC2
        0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, LINUX_REBOOT_CMD_RESTART
        0xb8, 0xa9, 0x00, 0x00, 0x00, // mov eax, SYS_reboot
        0x0f, 0x05,                   // syscall
        0xeb, 0xfe, 0x90, 0x90, 0x90, 0x90, // jmp .
    ];
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + CODE.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    elf.extend(5u32.to_le_bytes());
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(CODE);
    let path = dir.join("empty-initrd");
    fs::write(&path, cpio::archive(&[("init", 0o755, &elf)])?)?;
    Ok(path)
}

fn machine(image: &Image) -> Result<Value> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output().context("qemu-system-x86_64")?;
    let qemu = String::from_utf8_lossy(&qemu.stdout).lines().next().unwrap_or_default().to_owned();
    Ok(json!({
        "processor": model.unwrap_or("unknown"),
        "processors": std::thread::available_parallelism()?.get(),
        "qemu": qemu,
        "acceleration": match Accel::choose(image)? { Accel::Kvm => "KVM", Accel::Tcg => "TCG (emulation)", Accel::Snp => "SEV-SNP" },
    }))
}

fn describe(machine: &serde_json::Map<String, Value>) -> String {
    machine.values().map(|value| value.to_string().replace('"', "")).collect::<Vec<_>>().join(", ")
}

/// Values and the middle one, rounded.
pub fn samples(values: &[f64]) -> Value {
    let rounded: Vec<f64> = values.iter().map(|value| (value * 10.0).round() / 10.0).collect();
    json!({ "median": (median(values) * 10.0).round() / 10.0, "samples": rounded })
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
