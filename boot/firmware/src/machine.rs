//! Ports, machine-specific registers, and the two ways out. In an SNP guest each is an exit that asks the hypervisor.

use crate::memory::copy_ascending;
use crate::snp;
use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::ptr::{read_volatile, with_exposed_provenance, with_exposed_provenance_mut, write_volatile};
use parma_firmware::fw_cfg::{DESCRIPTOR_SIZE, DONE, Transfer, descriptor};
use parma_firmware::ghcb::Exit;
use parma_firmware::reason::Reason;
use parma_firmware::rom::{MAX_TRANSFER, SHARED_SIZE, WINDOW};

/// Where in the window a transfer's descriptor is, and where its data; the page before is the GHCB's.
const DESCRIPTOR: usize = WINDOW as usize + 0x1000;
const DATA: usize = WINDOW as usize + 0x2000;
const _: () = assert!(DATA + MAX_TRANSFER == (WINDOW + SHARED_SIZE) as usize);

const FW_CFG_DMA: u16 = 0x514;
const SERIAL: u16 = 0x3f8;
const RESET_CONTROL: u16 = 0xcf9;
const FULL_RESET: u8 = 0x0e;

/// `IA32_MTRR_DEF_TYPE`: enabled, write-back. Linux does without PAT otherwise.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const WRITE_BACK: u64 = 0x806;

/// CPUID's leaf of extended features, and BMI1 and BMI2 in its EBX. Source: AMD64 APM volume 3, appendix E.
const FEATURES: u32 = 7;
const BIT_MANIPULATION: u32 = 1 << 3 | 1 << 8;

/// What this ROM is compiled for, and what Linux expects of the processor.
pub fn processor() -> Result<(), Reason> {
    if snp::active() {
        return snp::exit(Exit::WriteRegister { register: MTRR_DEF_TYPE, value: WRITE_BACK });
    }
    if __cpuid(0).eax < FEATURES || __cpuid(FEATURES).ebx & BIT_MANIPULATION != BIT_MANIPULATION {
        return Err(Reason::Processor);
    }
    // SAFETY: all memory is write-back already, as nothing was said of any range.
    unsafe {
        asm!("wrmsr", in("ecx") MTRR_DEF_TYPE, in("eax") WRITE_BACK as u32, in("edx") 0, options(nostack, nomem));
    }
    Ok(())
}

fn out8(port: u16, value: u8) -> Result<(), Reason> {
    if snp::active() {
        return snp::exit(Exit::Out8 { port, value });
    }
    // SAFETY: the ports of this module change no memory of ours.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, nomem, preserves_flags)) };
    Ok(())
}

fn out32(port: u16, value: u32) -> Result<(), Reason> {
    if snp::active() {
        return snp::exit(Exit::Out32 { port, value });
    }
    // SAFETY: the device writes to the window only, which is accessed as volatile; so this may not move.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
    Ok(())
}

/// Reads from the configuration device to private memory. What was not verified is the host's.
pub fn file(transfer: Transfer, to: &mut [u8]) -> Result<(), Reason> {
    let mut transfer = transfer;
    for part in to.chunks_mut(MAX_TRANSFER) {
        let descriptor: [u8; DESCRIPTOR_SIZE] = descriptor(transfer, part.len() as u32, DATA as u64);
        // SAFETY: the window is mapped, and no reference to it exists.
        unsafe { write_volatile(with_exposed_provenance_mut(DESCRIPTOR), descriptor) };
        out32(FW_CFG_DMA, 0)?;
        out32(FW_CFG_DMA + 4, (DESCRIPTOR as u32).to_be())?;
        // The device is done when the instruction is.
        // SAFETY: as above.
        let status: [u8; 4] = unsafe { read_volatile(with_exposed_provenance(DESCRIPTOR)) };
        if status != DONE {
            return Err(Reason::Device);
        }
        // SAFETY: at most `MAX_TRANSFER` bytes, which lie in the window. No reference to shared memory is made.
        unsafe { copy_ascending(part.as_mut_ptr(), with_exposed_provenance(DATA), part.len()) };
        transfer = Transfer::Continue;
    }
    Ok(())
}

/// Says why, and ends the machine.
#[cold]
pub fn fail(reason: Reason) -> ! {
    if !snp::active() || snp::can_exit() {
        for byte in b"firmware: ".iter().chain(reason.text().as_bytes()).chain(b"\r\n") {
            // A host that does not show it has its own reasons.
            let _ = out8(SERIAL, *byte);
        }
    }
    if snp::active() {
        snp::terminate(reason);
    } else {
        let _ = out8(RESET_CONTROL, FULL_RESET);
    }
    loop {
        // SAFETY: nothing can wake it: interrupts are off. A host that lets an SNP guest run on gets no further.
        unsafe { asm!("cli", "hlt", options(nostack, nomem)) };
    }
}

unsafe extern "C" {
    /// Starts Linux.
    ///
    /// # Safety
    /// `entry` must be its 64-bit entry, and `params` its `boot_params`.
    pub fn start_linux(entry: u64, params: u64) -> !;
}
