//! What a program without a C library brings along: entry, heap, panic, and the memory functions that the compiler
//! takes for granted.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::mem::MaybeUninit;
use core::ops::Range;
use core::panic::PanicInfo;
use core::ptr::{NonNull, null_mut};
use linked_list_allocator::Heap;
use parma_guest::linux::{console, power};
use spin::mutex::{SpinMutex, SpinMutexGuard};

// The kernel enters with the argument block at rsp; the System V ABI wants rsp a multiple of 16 before a call.
global_asm!(
    ".section .text._start, \"ax\"",
    ".globl _start",
    "_start:",
    "xor %ebp, %ebp",
    "and $-16, %rsp",
    "call {main}",
    "ud2",
    ".text",
    main = sym crate::main,
    options(att_syntax),
);

/// Size of the heap, in bytes: a policy image of 1 MiB, its indexes, one request of the same size decoded, and the
/// state of every process and container. Pages that were never used cost nothing.
const HEAP: usize = 8 << 20;

static MEMORY: SpinMutex<[MaybeUninit<u8>; HEAP]> = SpinMutex::new([MaybeUninit::uninit(); HEAP]);

struct Arena(SpinMutex<Heap>);

#[global_allocator]
static ARENA: Arena = Arena(SpinMutex::new(Heap::empty()));

/// Gives the heap its memory, and says where that is. Called once, before anything allocates.
pub fn heap() -> Range<usize> {
    let memory: &'static mut [MaybeUninit<u8>; HEAP] = SpinMutexGuard::leak(MEMORY.lock());
    let range = memory.as_mut_ptr_range();
    ARENA.0.lock().init_from_slice(memory);
    range.start.expose_provenance()..range.end.addr()
}

// SAFETY: `Heap` gives memory of the layout that is asked for, disjoint from all it gave before and did not get back,
// and the lock keeps its list consistent.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(memory) = NonNull::new(memory) {
            // SAFETY: the caller of `dealloc` promises that `memory` came from `alloc` with this layout.
            unsafe { self.0.lock().deallocate(memory, layout) };
        }
    }
}

/// Says where, not what: a message could carry a secret. Then ends the machine (attack T08). An allocation that fails
/// where it cannot be refused ends here too.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => console::line(format_args!("panic at {}:{}", at.file(), at.line())),
        None => console::line(format_args!("panic")),
    }
    power::off()
}

/// Named by the unwinding tables of the precompiled `core`; nothing ever unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named by the landing pads of the precompiled `alloc`; nothing ever unwinds.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    power::off()
}

/// # Safety
/// As in C: `from` is readable and `to` writable for `n` bytes, and they do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise is exactly what `rep movsb` needs; the ABI keeps the direction flag clear.
    unsafe {
        asm!(
            "rep movsb",
            inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// # Safety
/// As in C: `from` is readable and `to` writable for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= n {
        // SAFETY: `to` is not inside the source, so copying upwards reads each byte before it is overwritten.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: `to` is inside the source, so n > 0 and copying downwards reads each byte before it is overwritten. The
    // direction flag is set for this one instruction and cleared again.
    unsafe {
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") n => _, inout("rdi") to.add(n - 1) => _, inout("rsi") from.add(n - 1) => _,
            options(nostack),
        );
    }
    to
}

/// # Safety
/// As in C: `to` is writable for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller's promise is exactly what `rep stosb` needs.
    unsafe {
        asm!(
            "rep stosb",
            inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// # Safety
/// As in C: `a` and `b` are readable for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut at = 0;
    while n - at >= 8 {
        // SAFETY: at + 8 <= n, so both words lie within what the caller promised.
        let (x, y) =
            unsafe { (a.add(at).cast::<u64>().read_unaligned(), b.add(at).cast::<u64>().read_unaligned()) };
        if x != y {
            return if x.swap_bytes() < y.swap_bytes() { -1 } else { 1 };
        }
        at += 8;
    }
    while at < n {
        // SAFETY: at < n.
        let (x, y) = unsafe { (a.add(at).read(), b.add(at).read()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        at += 1;
    }
    0
}

/// # Safety
/// As in C: `a` and `b` are readable for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same promise.
    unsafe { memcmp(a, b, n) }
}

/// # Safety
/// As in C: `text` ends with a NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: every byte up to the NUL is readable; the volatile read keeps the compiler from seeing strlen in this.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
