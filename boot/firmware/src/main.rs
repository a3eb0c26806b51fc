//! The firmware's instructions: from the reset vector to Linux. Everything that decides is in the library.
//!
//! 1. `reset.s`: 64-bit mode, everything mapped one to one, this code copied to low memory.
//! 2. In an SNP guest: the protocol is agreed on, and the window shared with the host.
//! 3. The host's memory map is checked; an SNP guest takes all that memory.
//! 4. Kernel, initrd and command line are each copied to private memory, hashed, and compared with the ROM's slot. Nothing
//!    else of them is looked at before.
//! 5. An SNP guest takes the window back. Linux is started by its 64-bit entry.
//!
//! Any surprise ends the machine. Linux gets no ACPI tables and nothing else of the host but the memory map and the number
//! of processors.

#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod machine;
mod memory;
mod snp;

use machine::{fail, file, processor, start_linux};
use parma_firmware::e820::{self, Map};
use parma_firmware::fw_cfg::{self, File, Transfer};
use parma_firmware::linux::{self, Kernel, MAX_COMMAND_LINE};
use parma_firmware::reason::Reason;
use parma_firmware::{processors, rom};

core::arch::global_asm!(include_str!("reset.s"), options(att_syntax));
core::arch::global_asm!(include_str!("snp.s"), options(att_syntax));

/// The slot, the metadata and the table of GUIDs.
#[used]
#[unsafe(link_section = ".tail")]
static TAIL: [u8; rom::TAIL_SIZE] = rom::tail();

/// Where `boot_params` and the command line go: firmware memory above the stack.
const PARAMS: u64 = 0x7_0000;
const COMMAND_LINE: u64 = 0x7_1000;
/// Where the kernel is verified, and how large it may be: behind the window, before the place where it runs.
const STAGING: u64 = rom::WINDOW + rom::WINDOW_SIZE;
const MAX_KERNEL: usize = 10 << 20;

/// The digests of the slot, in its order.
#[derive(Clone, Copy)]
enum Digested {
    Kernel,
    Initrd,
    CommandLine,
}

/// Called by `reset.s` once, with the C-bit, or 0 without SNP.
#[unsafe(no_mangle)]
extern "C" fn start(c_bit: u64) -> ! {
    match boot(c_bit) {
        // SAFETY: the kernel was verified, and lies with all that it needs where its boot protocol says.
        Ok(entry) => unsafe { start_linux(entry, PARAMS) },
        Err(reason) => fail(reason),
    }
}

/// Everything up to Linux's first instruction; its address.
fn boot(c_bit: u64) -> Result<u64, Reason> {
    if c_bit != 0 {
        snp::begin(c_bit)?;
    }
    processor()?;

    let mut directory = [0; fw_cfg::MAX_FILES * fw_cfg::ENTRY_SIZE];
    let directory = read_directory(&mut directory)?;
    let find = |name| fw_cfg::find(directory, name).ok_or(Reason::Missing);

    let mut map = [0; e820::MAX_HOST * e820::ENTRY_SIZE];
    let map_file = find("etc/e820")?;
    let map = map.get_mut(..map_file.size as usize).ok_or(Reason::MapSize)?;
    file(Transfer::Start(map_file.key), map)?;
    let map = Map::new(map).map_err(|_| Reason::Map)?;
    if snp::active() {
        snp::take_memory(&map)?;
    }
    // Linux looks here for tables of the machine, and finds none.
    // SAFETY: RAM, to which nothing refers.
    unsafe { memory::clear(0, 0x1000) };

    let kernel = find("opt/parma/kernel")?;
    if kernel.size as usize > MAX_KERNEL {
        return Err(Reason::KernelSize);
    }
    // SAFETY: RAM that the map has (at least 64 MiB), used for nothing else, and this once.
    let kernel = read(kernel, unsafe { memory::range(STAGING, kernel.size as usize) }, Digested::Kernel)?;
    let kernel = Kernel::new(kernel).map_err(|_| Reason::KernelEntry)?;
    if kernel.address < STAGING + MAX_KERNEL as u64 || kernel.end > map.low_end() {
        return Err(Reason::KernelPlace);
    }

    let initrd = find("opt/parma/initrd")?;
    let initrd_address = kernel.place_initrd(initrd.size as usize, &map).map_err(|_| Reason::InitrdPlace)?;
    // SAFETY: RAM of the map behind all that the kernel uses, used for nothing else, and this once.
    let initrd_memory = unsafe { memory::range(initrd_address, initrd.size as usize) };
    let initrd_size = read(initrd, initrd_memory, Digested::Initrd)?.len();

    let command_line = find("opt/parma/cmdline")?;
    if command_line.size as usize >= MAX_COMMAND_LINE {
        return Err(Reason::CommandLineSize);
    }
    // SAFETY: firmware memory of 4 KiB that is zero, used for nothing else, and this once.
    let command_line_memory = unsafe { memory::range(COMMAND_LINE, command_line.size as usize) };
    read(command_line, command_line_memory, Digested::CommandLine)?;

    let mut count = [0; 2];
    file(Transfer::Start(fw_cfg::PROCESSORS), &mut count)?;
    let count = processors::Count::new(count).ok_or(Reason::Processors)?;
    // SAFETY: a page of RAM, used for nothing else, and this once.
    unsafe { memory::range(rom::PROCESSORS_PAGE.into(), processors::SIZE) }
        .copy_from_slice(&processors::page(count));

    let mut setup_data = 0;
    if snp::active() {
        setup_data = rom::BLOB_PAGE.into();
        // SAFETY: firmware memory, used for nothing else, and this once.
        unsafe { memory::range(setup_data, linux::CONFIDENTIAL_SIZE) }
            .copy_from_slice(&linux::confidential());
        snp::end()?;
    }

    // SAFETY: RAM of the map, used for nothing else, and this once.
    unsafe { memory::range(kernel.address, kernel.payload.len()) }.copy_from_slice(kernel.payload);
    let initrd = (initrd_address as u32, initrd_size as u32);
    let params = kernel.params(&map, COMMAND_LINE as u32, initrd, setup_data);
    // SAFETY: firmware memory of 4 KiB, used for nothing else, and this once.
    unsafe { memory::range(PARAMS, params.len()) }.copy_from_slice(&params);
    Ok(kernel.address + linux::ENTRY)
}

fn read_directory(buffer: &mut [u8]) -> Result<&[u8], Reason> {
    let mut count = [0; fw_cfg::COUNT_SIZE];
    file(Transfer::Start(fw_cfg::DIRECTORY), &mut count)?;
    let directory = fw_cfg::directory_size(count).and_then(|size| buffer.get_mut(..size));
    let directory = directory.ok_or(Reason::Directory)?;
    file(Transfer::Continue, directory)?;
    Ok(directory)
}

/// Copies a file to memory that the host cannot change, then verifies it there.
fn read(from: File, to: &mut [u8], what: Digested) -> Result<&[u8], Reason> {
    file(Transfer::Start(from.key), to)?;
    if rom::digest(to) == memory::slot()[what as usize] {
        return Ok(to);
    }
    Err(match what {
        Digested::Kernel => Reason::Kernel,
        Digested::Initrd => Reason::Initrd,
        Digested::CommandLine => Reason::CommandLine,
    })
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    fail(Reason::Bug)
}
