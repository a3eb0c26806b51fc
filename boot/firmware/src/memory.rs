//! Memory by its address, and the functions on memory that compiled Rust calls.

use core::arch::asm;
use parma_firmware::rom;

/// Memory as bytes.
///
/// # Safety
/// It must be RAM that is mapped private, that nothing else refers to, and that the host cannot change.
pub unsafe fn range(address: u64, size: usize) -> &'static mut [u8] {
    // SAFETY: the caller's promise; any bytes are valid.
    unsafe { core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(address as usize), size) }
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
    unsafe {
        asm!(
            "rep stosq", "mov rcx, {rest}", "rep stosb",
            rest = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rdi") to => _, in("rax") u64::from(value as u8) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags),
        );
    }
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
