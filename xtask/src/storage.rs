//! The storage figures of `cargo xtask bench`.
//!
//! Layers: `parma layer build` and `hash` beside `mkfs.ext4 -d` and `veritysetup format` on the same files, and beside
//! SHA-256 alone, salted blocks of 4096 bytes on as many threads, writing alone, and both at once. Disks: the time from a disk's arrival
//! to its mount; reads of a layer's file and writes and reads of a scratch file, past the page cache, in a container, and by
//! the same program on the same disks mounted raw, without dm-verity and dm-crypt, in the same kernel.

use crate::bench::median;
use crate::{fixtures, raw};
use anyhow::{Context, Result, ensure};
use parma::pod::{Pod, Scratch, new_container_id, unobserved};
use parma::workload::Workload;
use parma_guest::wire::{Stdio, Stream};
use parma_layer::build::{Options, build_file, hash_file};
use parma_layer::oci::Reference;
use parma_layer::sha256::{hash_block, hash_blocks};
use parma_policy::generate::GenerateOptions;
use parma_vmm::{Config, Disk, Image, escape};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::hint::black_box;
use std::io::{BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// Bytes of the files of the layer that is built.
const TREE: u64 = 512 << 20;
/// Sizes of its files, in turn.
const SIZES: [u64; 6] = [700, 4 << 10, 30 << 10, 200 << 10, 1 << 20, 12 << 20];
/// Bytes of the layer whose building's memory is measured.
const LARGE: u64 = 2 << 30;
/// Most memory that this may take, in KiB: the goal.
const MEMORY_GOAL: u64 = 64 << 10;
/// Reads its own interpreter, then writes and reads a file in /tmp, each past the page cache for some seconds, from front to
/// back and here and there; prints bytes a second, and reads a second, in the order of [`RATES`]. (A minimal Python has no
/// aligned memory to offer: a buffer's aligned part is found by trying.)
const READER: &str = "\
import os, sys, time
def open_direct(path, flags):
    global file, size
    file = os.open(path, flags | os.O_DIRECT, 0o600)
    size = os.fstat(file).st_size & ~0xfffff
def aligned(length):
    buffer = memoryview(bytearray(length + 4096))
    for at in range(0, 4096, 16):
        try:
            os.preadv(file, [buffer[at:at + length]], 0)
            return [buffer[at:at + length]]
        except OSError:
            pass
def rate(step):
    start, done = time.monotonic(), 0
    while time.monotonic() - start < 3:
        done += step()
    return done / (time.monotonic() - start)
state = 1
def somewhere():
    global state
    state = state * 6364136223846793005 + 1442695040888963407 & 0xffffffffffffffff
    return 4096 * ((state >> 33) % (size // 4096))
front = lambda: sum(os.preadv(file, large, at) for at in range(0, size, 1 << 20))
here = lambda: sum(os.preadv(file, small, somewhere()) for _ in range(100)) / 4096
fill = lambda: sum(os.pwritev(file, large, at) for at in range(0, 8 << 20, 1 << 20))
open_direct(os.path.realpath(sys.executable), os.O_RDONLY)
large, small = aligned(1 << 20), aligned(4096)
front()
rates = [rate(front), rate(here)]
open_direct('/tmp/file', os.O_RDWR | os.O_CREAT)
fill()
size = 8 << 20
rates += [rate(fill), rate(front), rate(here)]
print('rates', *rates, flush=True)
";

/// What the reader measures: on the layers, then on the writable space.
const RATES: [&str; 5] = ["layer_read", "layer_random", "scratch_write", "scratch_read", "scratch_random"];
/// Bytes of the writable space's disk.
const SCRATCH: u64 = 64 << 20;

/// All of them, for `target/bench.json`.
pub fn figures(image: &Image, rounds: usize) -> Result<Value> {
    let mut figures = layer_figures(rounds)?;
    figures["disks"] = disks(image, tempfile::tempdir()?.path(), rounds)?;
    Ok(figures)
}

/// Those of building layers.
pub fn layer_figures(rounds: usize) -> Result<Value> {
    let dir = tempfile::tempdir()?;
    Ok(json!({
        "layers": layers(dir.path(), rounds)?,
        "layer_of_2_gib_peak_kib": peak(dir.path())?,
    }))
}

fn number(figures: &Value, path: &str) -> f64 {
    figures.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

fn row(what: &str, value: f64, unit: &str, more: &str) {
    println!("{what:<45} {value:>9.0} {unit}   {more}");
}

/// Prints those of building layers as the table does.
pub fn print_layers(figures: &Value) {
    let number = |path: &str| number(figures, path);
    let limit = number("/layers/sha256_mb_s");
    for (what, name) in [
        ("parma layer build", "build"),
        ("parma layer hash", "hash"),
        ("SHA-256 of salted blocks alone, same cores", "sha256"),
        ("the same, two blocks at a time", "sha256_in_pairs"),
        ("writing so many bytes to a file alone", "write"),
        ("SHA-256 and writing, same cores", "sha256_and_write"),
    ] {
        let rate = number(&format!("/layers/{name}_mb_s"));
        let cpu = number(&format!("/layers/{name}_cpu_s_per_gb"));
        let share = 100.0 * rate / limit;
        row(
            what,
            rate,
            "MB/s",
            &format!("{cpu:.2} s of processors a GB; {share:.0} % of SHA-256 alone (goal 80)"),
        );
    }
    println!(
        "{:<45} {:>9.0} %      of SHA-256 and writing: what is left when nothing has to be read",
        "parma layer build",
        100.0 * number("/layers/build_mb_s") / number("/layers/sha256_and_write_mb_s")
    );
    row("mkfs.ext4 -d and veritysetup format", number("/layers/peer_mb_s"), "MB/s", "");
    row("peak memory, a layer of 2 GiB", number("/layer_of_2_gib_peak_kib"), "KiB", "goal 65536");
}

/// Prints them all as the table does.
pub fn print(figures: &Value) {
    print_layers(figures);
    let number = |path: &str| number(figures, path);
    row("disk plugged in to layer mounted", number("/disks/attach_to_mounted_ms"), "ms", "");
    row("disk that is there to layer mounted", number("/disks/present_to_mounted_ms"), "ms", "");
    for (name, what, unit, scale) in [
        ("layer_read", "layer, sequential reads", "MB/s", 1e-6),
        ("layer_random", "layer, random reads of 4 KiB", "/s", 1.0),
        ("scratch_write", "scratch, sequential writes", "MB/s", 1e-6),
        ("scratch_read", "scratch, sequential reads", "MB/s", 1e-6),
        ("scratch_random", "scratch, random reads of 4 KiB", "/s", 1.0),
    ] {
        let (ours, raw) = (number(&format!("/disks/ours/{name}")), number(&format!("/disks/raw/{name}")));
        let more = format!("{:.0} {unit} on the raw disk", raw * scale);
        row(what, ours * scale, unit, &more);
    }
}

/// Builds a layer, prints the peak of this process's memory in KiB: what [`peak`] runs.
pub fn build_and_print_peak(tar: &Path) -> Result<()> {
    let output = tar.with_extension("img");
    build_file(tar, &output, &Options::default(), &mut |_| {})?;
    fs::remove_file(output)?;
    println!("{}", peak_kib()?);
    Ok(())
}

/// The most memory that this process has had in use (proc_pid_status(5), VmHWM).
fn peak_kib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix(" kB"));
    Ok(line.context("VmHWM")?.trim().parse()?)
}

/// MB/s of everything that makes, or could make, a layer's disk.
fn layers(dir: &Path, rounds: usize) -> Result<Value> {
    let (tree, tar) = (dir.join("tree"), dir.join("tree.tar"));
    make_tree(&tree, &tar)?;
    let bytes = fs::metadata(&tar)?.len();
    let (image, peer, hashes) = (dir.join("ours.img"), dir.join("peer.img"), dir.join("peer.tree"));
    // MB/s, and seconds of all processors' time for each GB.
    let (mut rates, mut costs): ([Vec<f64>; 7], [Vec<f64>; 7]) = Default::default();
    for round in 0..rounds {
        eprintln!("layer {} of {rounds}", round + 1);
        let build = || build_file(&tar, &image, &Options::default(), &mut |_| {}).map(drop);
        let hash = || hash_file(&tar, &Options::default(), &mut |_| {}).map(drop);
        let peers = || {
            let blocks = (bytes / 4096 * 5 / 4).to_string();
            run(Command::new("mkfs.ext4")
                .args(["-q", "-F", "-b", "4096", "-O", "^has_journal", "-d"])
                .arg(&tree)
                .arg(&peer)
                .arg(&blocks))?;
            run(Command::new("veritysetup").arg("format").arg(&peer).arg(&hashes))
        };
        // Files of the round before are removed outside of the measured time.
        let write = || write_alone(&image, bytes);
        let sha256 = || {
            hash_alone(bytes, |chunk| chunk.chunks(4096).for_each(|block| _ = black_box(hash_block(block))))
        };
        let pairs = || hash_alone(bytes, |chunk| _ = black_box(hash_blocks(chunk)));
        let both = || hash_and_write_alone(&image, bytes);
        let steps: [&dyn Fn() -> Result<()>; 7] = [&build, &hash, &peers, &sha256, &pairs, &write, &both];
        for (step, (rate, cost)) in steps.into_iter().zip(rates.iter_mut().zip(&mut costs)) {
            for old in [&image, &peer, &hashes] {
                let _ = fs::remove_file(old);
            }
            let (start, cpu) = (Instant::now(), cpu_seconds()?);
            step()?;
            rate.push(bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
            cost.push((cpu_seconds()? - cpu) / (bytes as f64 / 1e9));
        }
    }
    fs::remove_dir_all(&tree)?;
    fs::remove_file(&tar)?;
    let [build, hash, peers, sha256, pairs, write, both] = rates.map(|samples| median(&samples).round());
    let [build_cpu, hash_cpu, _, sha256_cpu, pairs_cpu, write_cpu, both_cpu] =
        costs.map(|samples| median(&samples));
    Ok(json!({
        "tar_bytes": bytes, "build_mb_s": build, "hash_mb_s": hash, "peer_mb_s": peers, "sha256_mb_s": sha256,
        "sha256_in_pairs_mb_s": pairs, "write_mb_s": write, "build_cpu_s_per_gb": build_cpu, "hash_cpu_s_per_gb": hash_cpu,
        "sha256_cpu_s_per_gb": sha256_cpu, "sha256_in_pairs_cpu_s_per_gb": pairs_cpu, "write_cpu_s_per_gb": write_cpu,
        "sha256_and_write_mb_s": both, "sha256_and_write_cpu_s_per_gb": both_cpu,
    }))
}

/// Seconds of processor time that this process has used (proc_pid_stat(5), fields 14 and 15, in hundredths).
fn cpu_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("a process has a name")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| command.get_program().display().to_string())?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Hashes so many bytes by `hash`, which takes a whole MiB, on every processor.
fn hash_alone(bytes: u64, hash: impl Fn(&[u8]) + Sync) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let hash = &hash;
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(move || {
                let chunk = vec![0xa5; CHUNK];
                (0..bytes / (CHUNK * threads) as u64).for_each(|_| hash(&chunk));
            });
        }
    });
    Ok(())
}

/// Writes so many bytes to a new file, which is the least that building a layer does beside hashing.
fn write_alone(path: &Path, bytes: u64) -> Result<()> {
    let (mut file, chunk) = (File::create(path)?, vec![0xa5; 1 << 20]);
    let mut left = bytes;
    while left > 0 {
        let now = chunk.len().min(left as usize);
        file.write_all(&chunk[..now])?;
        left -= now as u64;
    }
    Ok(())
}

/// Hashes so many bytes and writes them to a new file, on every processor: what is left of building a layer when nothing has to
/// be read.
fn hash_and_write_alone(path: &Path, bytes: u64) -> Result<()> {
    const CHUNK: usize = 1 << 20;
    let (file, next) = (File::create(path)?, AtomicU64::new(0));
    let work = || -> Result<()> {
        let chunk = vec![0xa5; CHUNK];
        loop {
            let at = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
            if at >= bytes {
                return Ok(());
            }
            chunk.chunks(4096).for_each(|block| _ = black_box(hash_block(block)));
            file.write_all_at(&chunk, at)?;
        }
    };
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a thread died")?)
    })
}

/// Files of all sizes with content that does not repeat, as a tree and as a tar.
fn make_tree(tree: &Path, tar: &Path) -> Result<()> {
    let mut builder = tar::Builder::new(BufWriter::new(File::create(tar)?));
    let (mut state, mut done) = (1u64, 0);
    for number in 0.. {
        if done >= TREE {
            break;
        }
        let size = SIZES[number % SIZES.len()];
        let content: Vec<u8> = (0..size.div_ceil(8))
            .flat_map(|_| {
                // xorshift64
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()
            })
            .take(size as usize)
            .collect();
        let name = format!("usr/share/{}/{number}", number % 40);
        let path = tree.join(&name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, &content)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(size);
        builder.append_data(&mut header, name, &content[..])?;
        done += size;
    }
    builder.into_inner()?.flush()?;
    Ok(())
}

/// Peak memory of a process that builds a layer of [`LARGE`] bytes, in KiB.
fn peak(dir: &Path) -> Result<u64> {
    eprintln!("a layer of {} GiB", LARGE >> 30);
    let tar = dir.join("large.tar");
    let mut header = tar::Header::new_gnu();
    header.set_path("large")?;
    header.set_mode(0o644);
    header.set_size(LARGE);
    header.set_cksum();
    // The content is a hole, and so is the end marker.
    let mut file = File::create(&tar)?;
    file.write_all(header.as_bytes())?;
    file.set_len(512 + LARGE + 1024)?;
    let output = Command::new(std::env::current_exe()?).args(["bench", "--peak-of"]).arg(&tar).output()?;
    fs::remove_file(&tar)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let peak = String::from_utf8(output.stdout)?.trim().parse()?;
    ensure!(peak <= MEMORY_GOAL, "building a layer took {peak} KiB, more than the goal of {MEMORY_GOAL}");
    Ok(peak)
}

/// Times of mounts, and rates of reads and writes.
fn disks(image: &Image, dir: &Path, rounds: usize) -> Result<Value> {
    let layout = fixtures::image("python")?;
    let reference = Reference::parse(&format!("oci:{}:latest", layout.display()))?;
    let args = ["python3", "-c", READER].map(str::to_owned).to_vec();
    let options = GenerateOptions { args: Some(args), memory_scratch: true, ..GenerateOptions::default() };
    let workload = Workload::prepare(&reference, &options, "layer", |_, _, _| {})?;
    let policy = workload.strict_policy()?;

    eprintln!("disks of a container");
    let id = new_container_id()?;
    let stdio = Stdio { stdin: false, stdout: true, stderr: true, terminal: None };
    let config = Config::new(image.clone(), policy.host_data());
    let (pod, process) =
        Pod::start(config.clone(), &policy, &workload, &Scratch::disk(SCRATCH)?, &id, stdio, unobserved())?;
    let mut output = String::new();
    let mut stream = pod.guest.session.attach(process, Stream::Stdout)?.map_err(anyhow::Error::new)?;
    stream.read_to_string(&mut output)?;
    let mut stream = pod.guest.session.attach(process, Stream::Stderr)?.map_err(anyhow::Error::new)?;
    stream.read_to_string(&mut output)?;
    let ours = rates(&output).with_context(|| format!("the reader said {output:?}"))?;
    drop(pod);

    eprintln!("the same disks, raw");
    let raw = raw(image, &workload, dir)?;

    eprintln!("mounts");
    let (mut plugged, mut present) = (Vec::new(), Vec::new());
    let mut pod = Pod::boot(&Config { ports: 1, ..config }, unobserved())?;
    pod.set_policy(&policy)?;
    let layer = workload.layers.last().context("a layer")?;
    for _ in 0..rounds {
        let start = Instant::now();
        let attached = pod.machine.attach(&Disk::layer(&layer.path, layer.serial.clone()))?;
        pod.guest.mount_layer(layer)?;
        plugged.push(start.elapsed().as_secs_f64() * 1e3);
        pod.guest.unmount_layer(layer)?;
        let start = Instant::now();
        pod.guest.mount_layer(layer)?;
        present.push(start.elapsed().as_secs_f64() * 1e3);
        pod.guest.unmount_layer(layer)?;
        pod.machine.detach(attached)?;
    }
    Ok(json!({
        "attach_to_mounted_ms": median(&plugged), "present_to_mounted_ms": median(&present),
        "ours": ours, "raw": raw,
    }))
}

/// The reader's rates on the layers' filesystems without dm-verity and on an ext4 of the host's without dm-crypt.
fn raw(image: &Image, workload: &Workload, dir: &Path) -> Result<Value> {
    let writable = dir.join("writable.img");
    File::create(&writable)?.set_len(SCRATCH)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096", "-O", "^has_journal"]).arg(&writable))?;
    let script = format!("PATH=/usr/bin:/bin chroot /r python3 -c \"{READER}\"");
    let console = raw::launch(image, workload, Some(&writable), &script)?.end()?;
    rates(&console)
        .with_context(|| format!("the reader said nothing; console:\n{}", escape(console.as_bytes())))
}

/// What the reader says.
fn rates(output: &str) -> Option<Value> {
    let line = output.lines().find_map(|line| line.trim().strip_prefix("rates "))?;
    let rates: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
    (rates.len() == RATES.len()).then(|| {
        RATES.into_iter().zip(rates).map(|(name, rate)| (name.to_owned(), Value::from(rate))).collect()
    })
}
