//! One run of the ROM.

use crate::C_BIT;
use crate::hypervisor::{Host, Hypervisor, Next};
use crate::rmp::{Access, Rmp, Violation};
use crate::stub::{Register, Stub};
use anyhow::{Context, Result, bail, ensure};
use parma_firmware::accept::Validation;
use parma_firmware::ghcb::{Page, Size};
use parma_firmware::rom::{
    self, CPUID_PAGE, PROCESSORS_PAGE, RAM_START, ROM_BASE, SECTIONS, WINDOW, WINDOW_SIZE,
};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The ROM.
    pub rom: Vec<u8>,
    /// The files of the configuration device: names and contents.
    pub files: Vec<(String, Vec<u8>)>,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// What the host does.
    pub host: Host,
    /// Text on Linux's console at which the run ends; `None`: it ends when Linux would start.
    pub until: Option<String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Linux was started, and, if it was asked for, wrote the text.
    Linux,
    /// The guest asked for its end, for this reason of ours.
    Refused(u8),
    /// The processor gave up: an exception without a handler.
    TripleFault,
    /// The guest broke a rule, or met a fault that it cannot survive.
    Violation(Violation),
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Report {
    /// How it ended.
    pub ended: Ended,
    /// What the firmware wrote to the console.
    pub firmware: String,
    /// What Linux wrote.
    pub linux: String,
    /// The files that were read, each as often as it was.
    pub reads: Vec<String>,
    /// Machine-specific registers that the guest had written for it.
    pub registers: Vec<(u64, u64)>,
    /// Executions of PVALIDATE.
    pub validations: usize,
}

/// Bytes that all memory has at first, and those that a page has when it becomes valid: neither is zero.
const AT_FIRST: u8 = 0xa5;
const WHEN_VALID: u8 = 0x5a;
/// More memory than this is not filled: it would take too long.
const MOST_FILLED: u64 = 1 << 30;
/// How long Linux may take.
const PATIENCE: Duration = Duration::from_secs(120);
const FOUR_GIB: u64 = 1 << 32;
const CARRY: u64 = 1;
/// Where `boot_params` points to `setup_data`.
const SETUP_DATA: u64 = 0x250;

/// The guest's memory: a file that QEMU has mapped.
pub struct Memory {
    file: File,
    low: u64,
    size: u64,
}

impl Memory {
    /// As q35 divides it.
    fn new(file: File, size: u64) -> Result<Self> {
        file.set_len(size)?;
        let low = if size >= 0xb000_0000 { 0x8000_0000 } else { size };
        Ok(Self { file, low, size })
    }

    fn offset(&self, address: u64) -> u64 {
        if address < FOUR_GIB { address } else { address - FOUR_GIB + self.low }
    }

    /// The ranges that are RAM.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges = vec![(0, self.low)];
        if self.size > self.low {
            ranges.push((FOUR_GIB, FOUR_GIB + self.size - self.low));
        }
        ranges
    }

    /// The true memory map.
    pub fn e820(&self) -> Vec<u8> {
        let mut entries = vec![(0xfeff_c000, 0x4000, 2)];
        entries.extend(self.ranges().into_iter().map(|(start, end)| (start, end - start, 1)));
        Host::e820(&entries)
    }

    /// Reads; what is no memory is zero.
    pub fn read(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        // A short file leaves zeros, as nothing would on a bus.
        let _ = self.file.read_exact_at(&mut bytes, self.offset(address));
        bytes
    }

    pub fn read_u64(&self, address: u64) -> u64 {
        self.read(address, 8).iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Writes to memory that is there.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, self.offset(address)).expect("the guest's memory can be written");
    }

    /// Where a virtual address is, and whether it is mapped with the C-bit.
    fn translate(&self, tables: u64, address: u64) -> Option<(u64, bool)> {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let mut table = tables & ADDRESS;
        for shift in [39, 30, 21, 12] {
            let entry = self.read_u64(table + (address >> shift & 511) * 8);
            if entry & 1 == 0 {
                return None;
            }
            if shift == 12 || entry & 0x80 != 0 {
                let inside = (1 << shift) - 1;
                return Some((entry & ADDRESS & !inside | address & inside, entry >> C_BIT & 1 == 1));
            }
            if entry >> C_BIT & 1 == 0 {
                return None; // A table that the host could change.
            }
            table = entry & ADDRESS;
        }
        None
    }
}

/// QEMU, killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the instructions are that are emulated.
struct Watched {
    address: u64,
    what: Instruction,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Instruction {
    Pvalidate,
    Vmgexit,
    WriteRegister,
    ReadRegister,
    ReadStatus,
    Cpuid,
    StartLinux,
}

/// Finds the instructions in the ROM: those of the first page, and those of the reset code.
fn watched(rom: &[u8]) -> Result<Vec<Watched>> {
    let mut found = Vec::new();
    let mut find = |range: std::ops::Range<usize>, base: u64, bytes: &[u8], skip: usize, what| {
        let before = found.len();
        for at in range.clone() {
            if rom[at..].starts_with(bytes) {
                let address = base + (at - range.start + skip) as u64;
                found.push(Watched { address, what });
            }
        }
        ensure!(found.len() > before, "the ROM has no {bytes:02x?}: is it ours?");
        Ok(())
    };
    let low = u64::from(RAM_START);
    find(0..0x1000, low, &[0xf2, 0x0f, 0x01, 0xff], 0, Instruction::Pvalidate)?;
    find(0..0x1000, low, &[0xf3, 0x0f, 0x01, 0xd9], 0, Instruction::Vmgexit)?;
    find(0..0x1000, low, &[0x0f, 0x30], 0, Instruction::WriteRegister)?;
    find(0..0x1000, low, &[0x0f, 0x32], 0, Instruction::ReadRegister)?;
    find(0..0x1000, low, &[0xff, 0xe0], 0, Instruction::StartLinux)?;
    let reset = rom.len() - 0x800;
    let base = ROM_BASE + reset as u64;
    let status = [0xb9, 0x31, 0x01, 0x01, 0xc0, 0x0f, 0x32];
    find(reset..rom.len() - 0x400, base, &status, 5, Instruction::ReadStatus)?;
    find(reset..rom.len() - 0x400, base, &[0x0f, 0xa2], 0, Instruction::Cpuid)?;
    Ok(found)
}

/// Runs a ROM until Linux starts, or it does not.
///
/// # Errors
/// The harness itself fails: no QEMU, a ROM that is not ours.
pub fn run(config: &Config) -> Result<Report> {
    let watched = watched(&config.rom)?;
    let dir = tempfile::tempdir()?;
    let rom = dir.path().join("rom");
    std::fs::write(&rom, &config.rom)?;
    let shared = std::path::Path::new("/dev/shm");
    let place = if shared.is_dir() { shared } else { dir.path() };
    let backing = tempfile::NamedTempFile::new_in(place)?;
    let memory = Memory::new(backing.reopen()?, config.memory_mib << 20)?;
    let mut rmp = Rmp::new(config.host.small_pages);
    launch(&memory, &mut rmp, &config.host);

    let listener = UnixListener::bind(dir.path().join("console"))?;
    let mib = config.memory_mib;
    let object =
        format!("memory-backend-file,id=ram0,size={mib}M,share=on,mem-path={}", backing.path().display());
    let console = format!("socket,id=console,path={}", dir.path().join("console").display());
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S", "-gdb", "stdio"])
        .args(["-accel", "tcg", "-cpu", "max", "-m", &format!("{mib}M"), "-object", &object])
        .args(["-machine", "q35,memory-backend=ram0,vmport=off,hpet=off,sata=off,smbus=off,usb=off"])
        .args(["-chardev", &console, "-serial", "chardev:console", "-bios"])
        .arg(&rom)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu-system-x86_64: install it with `apt-get install qemu-system-x86`")?;
    let pipes = child.stdin.take().zip(child.stdout.take()).context("pipes")?;
    let _qemu = Qemu(child);
    let mut stub = Stub::new(pipes.0, pipes.1).context("QEMU's debugger stub")?;
    let (console, _) = listener.accept()?;
    for watched in &watched {
        stub.watch(watched.address)?;
    }

    let mut hypervisor = Hypervisor::new(&config.host, &memory, &config.files, rmp);
    let mut guest = Guest { stub, memory: &memory, validations: 0, watched: &watched };
    let mut linux = String::new();
    let ended = match guest.firmware(&mut hypervisor, &config.host)? {
        Ok(Ended::Linux) => {
            if let Some(text) = &config.until {
                guest.stub.detach()?;
                linux = read_until(console, text)?;
                ensure!(linux.contains(text), "no {text:?} on the console:\n{linux}");
            }
            Ended::Linux
        }
        Ok(ended) => ended,
        Err(violation) => Ended::Violation(violation),
    };
    let name = |key: &u16| {
        let known = config.files.iter().find(|file| hypervisor.key(&file.0) == Some(*key));
        known.map(|file| file.0.clone())
    };
    Ok(Report {
        ended,
        firmware: String::from_utf8_lossy(&hypervisor.console).into_owned(),
        linux,
        reads: hypervisor.reads.iter().filter_map(name).collect(),
        registers: hypervisor.registers,
        validations: guest.validations,
    })
}

/// Memory as the launch leaves it.
fn launch(memory: &Memory, rmp: &mut Rmp, host: &Host) {
    if memory.size <= MOST_FILLED {
        let part = vec![AT_FIRST; 1 << 20];
        (0..memory.size).step_by(1 << 20).for_each(|address| memory.write(address, &part));
    }
    memory.ranges().iter().for_each(|(start, end)| rmp.add(*start, *end));
    for section in SECTIONS {
        let (start, size) = (u64::from(section.address), u64::from(section.size));
        rmp.launch(start, start + size);
        memory.write(start, &vec![0; section.size as usize]);
    }
    memory.write(CPUID_PAGE.into(), &host.cpuid);
    if let Some(page) = host.valid_before {
        rmp.launch(page, page + 0x1000);
    }
}

fn read_until(mut console: UnixStream, text: &str) -> Result<String> {
    console.set_read_timeout(Some(PATIENCE))?;
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let count = console.read(&mut part).context("Linux is silent")?;
        all.extend_from_slice(&part[..count]);
        let so_far = String::from_utf8_lossy(&all);
        if count == 0 || so_far.contains(text) {
            return Ok(so_far.into_owned());
        }
    }
}

/// The guest, stopped at an instruction.
struct Guest<'a> {
    stub: Stub,
    memory: &'a Memory,
    validations: usize,
    watched: &'a [Watched],
}

type Outcome = std::result::Result<Ended, Violation>;

impl Guest<'_> {
    /// Runs the firmware to its end. The outer error is the harness's, the inner one the guest's.
    fn firmware(&mut self, hypervisor: &mut Hypervisor<'_>, host: &Host) -> Result<Outcome> {
        loop {
            if !self.stub.resume()? {
                return Ok(Ok(Ended::TripleFault));
            }
            let address = self.stub.register(Register::Rip)?;
            let Some(watched) = self.watched.iter().find(|watched| watched.address == address) else {
                bail!("stopped at {address:#x}, where nothing is");
            };
            match watched.what {
                Instruction::ReadStatus => {
                    self.stub.set(Register::Rax, host.sev_status)?;
                    self.stub.set(Register::Rdx, 0)?;
                    self.stub.set(Register::Rip, address + 2)?;
                }
                // In an SNP guest, #VC; and there is no handler.
                Instruction::Cpuid => return Ok(Ok(Ended::TripleFault)),
                Instruction::WriteRegister => {
                    hypervisor.register = self.pair()?;
                    self.stub.set(Register::Rip, address + 2)?;
                }
                Instruction::ReadRegister => {
                    self.stub.set(Register::Rax, hypervisor.register & 0xffff_ffff)?;
                    self.stub.set(Register::Rdx, hypervisor.register >> 32)?;
                    self.stub.set(Register::Rip, address + 2)?;
                }
                Instruction::Vmgexit => {
                    let tables = self.stub.register(Register::Cr3)?;
                    let is_private =
                        |address| self.memory.translate(tables, address).is_none_or(|(_, private)| private);
                    match hypervisor.exit(is_private) {
                        Ok(Next::Run) => self.stub.set(Register::Rip, address + 4)?,
                        Ok(Next::Ended(0xa, reason)) => return Ok(Ok(Ended::Refused(reason))),
                        Ok(Next::Ended(set, reason)) => {
                            return Ok(Err(Violation(format!("a reason of set {set}: {reason}"))));
                        }
                        Err(violation) => return Ok(Err(violation)),
                    }
                }
                Instruction::Pvalidate => {
                    if let Err(violation) = self.pvalidate(hypervisor)? {
                        return Ok(Err(violation));
                    }
                    self.stub.set(Register::Rip, address + 4)?;
                }
                Instruction::StartLinux => {
                    let params = self.stub.register(Register::Rsi)?;
                    let checked = self.check_hand_over(hypervisor, params);
                    // From here Linux is what QEMU makes of it: no SNP guest. It ends itself if it is told otherwise.
                    self.memory.write(params + SETUP_DATA, &[0; 8]);
                    return Ok(checked.map(|()| Ended::Linux));
                }
            }
        }
    }

    fn pvalidate(&mut self, hypervisor: &mut Hypervisor<'_>) -> Result<std::result::Result<(), Violation>> {
        self.validations += 1;
        let address = self.stub.register(Register::Rax)?;
        let large = self.stub.register(Register::Rcx)? & 0xffff_ffff;
        let validate = self.stub.register(Register::Rdx)? & 0xffff_ffff;
        let tables = self.stub.register(Register::Cr3)?;
        let Some((address, true)) = self.memory.translate(tables, address) else {
            return Ok(Err(Violation(format!("PVALIDATE of {address:#x}, which is not mapped as private"))));
        };
        if large > 1 || validate != 1 {
            return Ok(Err(Violation(format!("PVALIDATE with size {large} and operation {validate}"))));
        }
        let page = Page { address, size: if large == 1 { Size::Large } else { Size::Small } };
        let outcome = match hypervisor.rmp.validate(page) {
            Ok(outcome) => outcome,
            Err(violation) => return Ok(Err(violation)),
        };
        if outcome == Validation::Changed
            && self.memory.size <= MOST_FILLED
            && let Err(violation) = self.fill(page)
        {
            return Ok(Err(violation));
        }
        let (answer, carry) = match outcome {
            Validation::Changed => (0, 0),
            Validation::Unchanged => (0, CARRY),
            Validation::SizeMismatch => (6, 0),
            Validation::Failed => (1, 0),
        };
        let flags = self.stub.register(Register::Flags)?;
        self.stub.set(Register::Rax, answer)?;
        self.stub.set(Register::Flags, flags & !CARRY | carry)?;
        Ok(Ok(()))
    }

    /// A page that becomes valid must not have been written to, and holds what nobody can tell beforehand.
    fn fill(&self, page: Page) -> std::result::Result<(), Violation> {
        let size = page.size.bytes() as usize;
        let in_window = (WINDOW..WINDOW + WINDOW_SIZE).contains(&page.address);
        if !in_window && self.memory.read(page.address, size).iter().any(|byte| *byte != AT_FIRST) {
            return Err(Violation(format!("{page:x?} was written to before it was valid")));
        }
        self.memory.write(page.address, &vec![WHEN_VALID; size]);
        Ok(())
    }

    /// What must hold when Linux gets the machine.
    fn check_hand_over(
        &mut self,
        hypervisor: &Hypervisor<'_>,
        params: u64,
    ) -> std::result::Result<(), Violation> {
        let rmp = &hypervisor.rmp;
        let violation = |text: &str| Err(Violation(text.to_owned()));
        rmp.check(params, params + 0x1000, Access::Private)?;
        let count = usize::from(self.memory.read(params + 0x1e8, 1)[0]);
        let mut total = 0;
        for index in 0..count as u64 {
            let entry = self.memory.read(params + 0x2d0 + 20 * index, 20);
            let number = |at: usize| entry[at..at + 8].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
            if entry[16..] == [1, 0, 0, 0] {
                rmp.check_once(number(0), number(0) + number(8))?;
                total += number(8);
            }
        }
        let ram: u64 = self.memory.ranges().iter().map(|(start, end)| end - start).sum();
        // The hole below 1 MiB, the pages that the PSP filled and the blob that names them, the table of processors.
        if ram - total != 0x6_0000 + 0x3000 + 0x1000 {
            return Err(Violation(format!("Linux gets {total:#x} of {ram:#x} bytes")));
        }
        rmp.check_once(PROCESSORS_PAGE.into(), 0xa_0000)?;
        rmp.check_once(rom::BLOB_PAGE.into(), u64::from(CPUID_PAGE) + 0x1000)?;
        if self.memory.read(0, 0x400).iter().any(|byte| *byte != 0) {
            return violation("the first KiB is not zero");
        }
        // The blob: from boot_params by setup_data.
        let data = self.memory.read_u64(params + SETUP_DATA);
        let data_bytes = self.memory.read(data, 20);
        if data_bytes[..16] != [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0] {
            return violation("setup_data is not the one element of a confidential guest");
        }
        let blob =
            u64::from(u32::from_le_bytes([data_bytes[16], data_bytes[17], data_bytes[18], data_bytes[19]]));
        let expected = [0x4544_4d41, u64::from(rom::SECRETS_PAGE), 0x1000, CPUID_PAGE.into(), 0x1000];
        let found: Vec<u64> = (0..5).map(|index| self.memory.read_u64(blob + 8 * index)).collect();
        if found != expected || blob < rom::BLOB_PAGE.into() {
            return Err(Violation(format!("the blob at {blob:#x} is {found:x?}")));
        }
        Ok(())
    }

    fn pair(&mut self) -> Result<u64> {
        let (low, high) = (self.stub.register(Register::Rax)?, self.stub.register(Register::Rdx)?);
        let register = self.stub.register(Register::Rcx)? as u32;
        ensure!(register == parma_firmware::ghcb::REGISTER, "WRMSR of {register:#x}");
        Ok(high << 32 | low & 0xffff_ffff)
    }
}
