//! Memory by its address, and the functions on memory that compiled Rust calls.

use core::arch::asm;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use parma_firmware::rom;

/// Memory as bytes.
///
/// # Safety
/// It must be RAM that is mapped private, that nothing else refers to, and that the host cannot change.
pub unsafe fn range(address: u64, size: usize) -> &'static mut [u8] {
    // SAFETY: the caller's promise; any bytes are valid.
    unsafe { core::slice::from_raw_parts_mut(with_exposed_provenance_mut(address as usize), size) }
}

/// Where `reset.s` has the page tables: one of the second level for each GiB below 4, each entry 2 MiB.
const SECOND_LEVEL: usize = 0x6_2000;
/// The entry of the third level for the GiB above.
const FIFTH_GIB: usize = 0x6_1000 + 4 * 8;
/// The table of the second level behind it.
const FAR: usize = 0x6_6000;
const GIB: u64 = 1 << 30;
const LARGE: u64 = 2 << 20;
/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, of 2 MiB.
const LEAF: u64 = 0x83;

/// Where an address of memory is mapped, privately; what is above 4 GiB, only until the next call.
pub fn map(address: u64, c_bit: u64) -> u64 {
    if address < 4 * GIB {
        return address;
    }
    let start = address & !(GIB - 1);
    // 0 is no GiB above 4.
    static MAPPED: AtomicU64 = AtomicU64::new(0);
    if MAPPED.swap(start, Relaxed) == start {
        return 4 * GIB + address % GIB;
    }
    for index in 0..512 {
        let entry = (start + index as u64 * LARGE) | LEAF | c_bit;
        // SAFETY: a page of the firmware's memory that is this table and nothing else.
        unsafe { with_exposed_provenance_mut::<u64>(FAR + index * 8).write_volatile(entry) };
    }
    // SAFETY: the entry for addresses that nothing uses but what is mapped here.
    unsafe { with_exposed_provenance_mut::<u64>(FIFTH_GIB).write_volatile(FAR as u64 | TABLE | c_bit) };
    flush();
    4 * GIB + address % GIB
}

/// Maps the window as what it is from now on.
pub fn make_window_private(c_bit: u64) {
    let entry = SECOND_LEVEL + (rom::WINDOW / LARGE) as usize * 8;
    // SAFETY: the entry of the window, to which nothing refers.
    unsafe { with_exposed_provenance_mut::<u64>(entry).write_volatile(rom::WINDOW | LEAF | c_bit) };
    flush();
}

/// Makes the processor forget what it knows of the page tables.
fn flush() {
    // SAFETY: the same tables as before, in which only addresses have changed to which nothing refers.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}

/// Makes memory zero, whether it is shared or private.
///
/// # Safety
/// It must be mapped, and nothing may refer to it.
pub unsafe fn clear(address: u64, size: usize) {
    // SAFETY: the caller's promise; the direction flag is clear.
    unsafe { fill(address, 0, size) };
}

/// The digests in the ROM, as they were patched.
pub fn slot() -> [[u8; rom::DIGEST_SIZE]; rom::DIGESTS] {
    let address = rom::ROM_BASE as usize + rom::SLOT_OFFSET;
    // SAFETY: it lies in the ROM, which is mapped and which nobody changes. Volatile, since the linked bytes are zeros.
    unsafe { core::ptr::with_exposed_provenance::<[[u8; _]; _]>(address).read_volatile() }
}

/// Copies `n` bytes, the lowest first: eight at a time, since under emulation every step counts the same.
///
/// # Safety
/// Both must be mapped, and the direction flag clear. `to` may lie in `from` only where it begins before it.
pub unsafe fn copy_ascending(to: *mut u8, from: *const u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "rep movsq", "mov rcx, {rest}", "rep movsb",
            rest = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Fills memory. It takes an address, not a pointer: to the compiler, a call of `memset` proves that its pointer is not 0.
///
/// # Safety
/// The memory must be mapped, and the direction flag clear.
unsafe fn fill(address: u64, value: u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "rep stosq", "mov rcx, {rest}", "rep stosb",
            rest = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rdi") address => _, in("rax") u64::from(value) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags),
        );
    }
}

#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise of `memcpy`; the direction flag is clear.
    unsafe { copy_ascending(to, from, n) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= n {
        // SAFETY: ascending order reads every byte before it is overwritten.
        unsafe { copy_ascending(to, from, n) };
        return to;
    }
    // SAFETY: the caller's promise of `memmove`; descending order reads every byte before it is overwritten, and the
    // direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _, inout("rdi") to.wrapping_add(n).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(n).wrapping_sub(1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise of `memset`; the direction flag is clear.
    unsafe { fill(to.expose_provenance() as u64, value as u8, n) };
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for index in 0..n {
        // SAFETY: the caller's promise of `memcmp`. Volatile, lest this loop be compiled to a call of `memcmp`.
        let (a, b) = unsafe { (a.add(index).read_volatile(), b.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(a, b, n) }
}
