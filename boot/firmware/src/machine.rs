//! Ports, machine-specific registers, and the two ways out.

use crate::memory::copy_ascending;
use core::arch::asm;
use core::ptr::{read_volatile, with_exposed_provenance_mut, write_volatile};
use parma_firmware::fw_cfg::{DESCRIPTOR_SIZE, DONE, Transfer, descriptor};

/// What the host may read and write: the transfer's descriptor, then, a page on, its data.
const WINDOW: usize = 0x40_0000;
const DATA: usize = WINDOW + 0x1000;
const MAX_TRANSFER: usize = 1 << 20;

const FW_CFG_DMA: u16 = 0x514;
const SERIAL: u16 = 0x3f8;
const RESET_CONTROL: u16 = 0xcf9;
const FULL_RESET: u8 = 0x0e;

/// `IA32_MTRR_DEF_TYPE`: enabled, write-back. Linux does without PAT otherwise.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const WRITE_BACK: u64 = 0x806;

/// What Linux expects of the processor.
pub fn processor() {
    // SAFETY: all memory is write-back already, as nothing was said of any range.
    unsafe {
        asm!("wrmsr", in("ecx") MTRR_DEF_TYPE, in("eax") WRITE_BACK as u32, in("edx") 0, options(nostack, nomem));
    }
}

fn out8(port: u16, value: u8) {
    // SAFETY: the ports of this module change no memory of ours.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem, preserves_flags)) };
}

fn out32(port: u16, value: u32) {
    // SAFETY: the device writes to the window only, which is accessed as volatile; so this may not move.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}

/// Reads from the configuration device to private memory. What was not verified is the host's.
pub fn file(transfer: Transfer, to: &mut [u8]) {
    let mut transfer = transfer;
    for part in to.chunks_mut(MAX_TRANSFER) {
        copy_out(&descriptor(transfer, part.len() as u32, DATA as u64));
        out32(FW_CFG_DMA, 0);
        out32(FW_CFG_DMA + 4, (WINDOW as u32).to_be());
        // The device is done when the instruction is.
        if copy_in_status() != DONE {
            fail("the configuration device fails");
        }
        copy_in(part);
        transfer = Transfer::Continue;
    }
}

fn copy_out(bytes: &[u8; DESCRIPTOR_SIZE]) {
    // SAFETY: the window is mapped, and no reference to it exists.
    unsafe { write_volatile(with_exposed_provenance_mut(WINDOW), *bytes) };
}

fn copy_in_status() -> [u8; 4] {
    // SAFETY: as above.
    unsafe { read_volatile(with_exposed_provenance_mut(WINDOW)) }
}

fn copy_in(to: &mut [u8]) {
    // SAFETY: as above; at most `MAX_TRANSFER` bytes, which lie in the window. No reference to shared memory is made.
    unsafe { copy_ascending(to.as_mut_ptr(), with_exposed_provenance_mut::<u8>(DATA), to.len()) };
}

/// Says why, and ends the machine. The reason is the firmware's own text: no byte of the host.
#[cold]
pub fn fail(reason: &str) -> ! {
    for byte in b"firmware: ".iter().chain(reason.as_bytes()).chain(b"\r\n") {
        out8(SERIAL, *byte);
    }
    out8(RESET_CONTROL, FULL_RESET);
    loop {
        // SAFETY: nothing can wake it: interrupts are off.
        unsafe { asm!("cli", "hlt", options(nostack, nomem)) };
    }
}

/// Starts Linux.
///
/// # Safety
/// `entry` must be its 64-bit entry, and `params` its `boot_params`.
pub unsafe fn jump(entry: u64, params: u64) -> ! {
    // SAFETY: the caller's promise; interrupts are off and the segments are what the boot protocol wants.
    unsafe {
        asm!("xor edi, edi", "xor ebp, ebp", "xor ebx, ebx", "jmp rax", in("rax") entry, in("rsi") params, options(noreturn));
    }
}
