//! How long a machine takes to its kernel's first line: through our ROM, through SeaBIOS and through OVMF with `-kernel`, with
//! the same kernel, initrd and command line, in turns.

use crate::{cache, firmware};
use anyhow::{Context, Result, ensure};
use parma_vmm::{EMULATED_CPU, Image};
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// What every kernel says first.
const LINE: &[u8] = b"Linux version";
const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

/// What starts the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Ours,
    SeaBios,
    Ovmf,
}

/// Milliseconds of one start.
pub struct Start {
    /// Of the processors that QEMU used.
    pub cpu: f64,
    pub wall: f64,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "our ROM",
            Self::SeaBios => "SeaBIOS -kernel",
            Self::Ovmf => "OVMF -kernel",
        }
    }

    /// What QEMU is told beside the command line that starts our ROM: the last firmware that is named counts, and ours takes no
    /// notice of the files.
    pub fn instead(self, image: &Image) -> Result<Vec<OsString>> {
        let bios = match self {
            Self::Ours => return Ok(Vec::new()),
            Self::SeaBios => "bios-256k.bin",
            Self::Ovmf => OVMF,
        };
        let line = String::from_utf8(cache::read(&image.command_line)?)?;
        let (kernel, initrd) = (image.kernel.clone().into(), image.initrd.clone().into());
        let words: [OsString; 8] = [
            "-bios".into(),
            bios.into(),
            "-kernel".into(),
            kernel,
            "-initrd".into(),
            initrd,
            "-append".into(),
            line.into(),
        ];
        Ok(words.into())
    }
}

/// The ways that this machine has.
pub fn ways() -> Vec<Way> {
    let mut ways = vec![Way::Ours, Way::SeaBios];
    if Path::new(OVMF).exists() {
        ways.push(Way::Ovmf);
    } else {
        eprintln!("skipped: OVMF, which is not at {OVMF} (`apt-get install ovmf`)");
    }
    ways
}

/// The image with a command line that lets the kernel talk, and a ROM for it.
pub fn talkative(image: &Image, dir: &Path) -> Result<Image> {
    let line = String::from_utf8(cache::read(&image.command_line)?)?.replace(" quiet", "");
    let command_line = dir.join("cmdline");
    cache::write(&command_line, line.as_bytes())?;
    firmware::with_rom_of_its_own(Image { command_line, ..image.clone() }, dir)
}

/// Starts a machine in emulation and measures it up to its kernel's first line.
pub fn measure(way: Way, image: &Image) -> Result<Start> {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", "tcg"]);
    command.args([
        "-cpu",
        EMULATED_CPU,
        "-m",
        "512M",
        "-machine",
        "q35,vmport=off,hpet=off,sata=off,smbus=off,usb=off",
    ]);
    command.args(["-serial", "stdio"]);
    match way {
        Way::Ours => {
            command.arg("-bios").arg(&image.rom);
            for (name, path) in
                [("kernel", &image.kernel), ("initrd", &image.initrd), ("cmdline", &image.command_line)]
            {
                command.arg("-fw_cfg").arg(format!("name=opt/parma/{name},file={}", path.display()));
            }
        }
        Way::SeaBios | Way::Ovmf => {
            if way == Way::Ovmf {
                command.args(["-bios", OVMF]);
            }
            command.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initrd);
            command.arg("-append").arg(String::from_utf8(cache::read(&image.command_line)?)?);
        }
    }
    let start = Instant::now();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("qemu-system-x86_64")?;
    let measured = until_first_line(&mut child, start);
    // It is not needed any more; it may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    measured.with_context(|| format!("{way:?}"))
}

fn until_first_line(child: &mut Child, start: Instant) -> Result<Start> {
    let mut output = child.stdout.take().context("a pipe")?;
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    while !seen.windows(LINE.len()).any(|window| window == LINE) {
        let count = output.read(&mut part)?;
        ensure!(count > 0, "the machine ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..count]);
    }
    let wall = start.elapsed().as_secs_f64() * 1e3;
    Ok(Start { cpu: cpu_time(child)?, wall })
}

/// Milliseconds that the threads of a process have run: the first number of each one's `schedstat`, in nanoseconds, where
/// `/proc/PID/stat` has but hundredths of a second.
fn cpu_time(child: &Child) -> Result<f64> {
    let mut time = 0.0;
    for thread in std::fs::read_dir(format!("/proc/{}/task", child.id()))? {
        // A thread that ends in between ran for next to nothing: QEMU's are for its whole life, or to load a file.
        let Ok(text) = std::fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        time += text.split(' ').next().and_then(|time| time.parse::<f64>().ok()).context("schedstat")?;
    }
    Ok(time / 1e6)
}
