//! The SNP guest's side of the hypervisor: its exits, and the state of its memory. Everything that decides is in
//! `parma_firmware::{ghcb, accept}`.
//!
//! Of the window, the first page is the GHCB; it is mapped as shared as long as there is anything to ask of the host, and
//! is ordinary private memory when Linux starts. No reference to shared memory is ever made.

use crate::memory::{self, clear};
use core::ptr::{read_volatile, with_exposed_provenance, with_exposed_provenance_mut, write_volatile};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use parma_firmware::accept::{self, Error, Platform, Validation};
use parma_firmware::e820::Map;
use parma_firmware::ghcb::{self, Exit, Page, Request, Size, State};
use parma_firmware::reason::Reason;
use parma_firmware::rom::{SHARED_SIZE, WINDOW, WINDOW_SIZE};

const GHCB: u64 = WINDOW;
const PAGE: u64 = 0x1000;
/// FAIL_SIZEMISMATCH of PVALIDATE.
const SIZE_MISMATCH: u32 = 6;

/// The bit of a page table's entry that makes a page private; 0 without SNP.
static C_BIT: AtomicU64 = AtomicU64::new(0);
/// Whether the hypervisor has taken the GHCB, and still has it.
static REGISTERED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// PVALIDATE: any address, 1 for a large page, 1 to validate.
    safe fn snp_pvalidate(address: u64, large: u32, validate: u32) -> u64;
    /// VMGEXIT with this value of the GHCB register. The hypervisor writes to shared memory only.
    safe fn snp_vmgexit(register: u64) -> u64;
}

/// Whether this is an SNP guest.
pub fn active() -> bool {
    C_BIT.load(Relaxed) != 0
}

/// Agrees with the hypervisor on the protocol, and shares the window with it.
pub fn begin(c_bit: u64) -> Result<(), Reason> {
    C_BIT.store(c_bit, Relaxed);
    request(Request::Information { c_bit: c_bit.trailing_zeros() }, Reason::Protocol)?;
    request(Request::Features, Reason::Features)?;
    request(Request::Change { page: GHCB, to: State::Shared }, Reason::Denied)?;
    // SAFETY: shared memory, mapped, of which nobody has a reference.
    unsafe { clear(GHCB, PAGE as usize) };
    request(Request::Register { page: GHCB }, Reason::Register)?;
    REGISTERED.store(true, Relaxed);
    accept::change_small(&mut Processor, GHCB + PAGE, WINDOW + SHARED_SIZE, State::Shared)?;
    Ok(())
}

/// Takes all memory that the launch did not validate, but for the window.
pub fn take_memory(map: &Map) -> Result<(), Reason> {
    for (start, end) in accept::ranges(map) {
        accept::accept(&mut Processor, start, end)?;
    }
    Ok(())
}

/// Takes the window back: after this, the hypervisor can be asked for nothing.
pub fn end() -> Result<(), Reason> {
    // SAFETY: shared memory, mapped, of which nobody has a reference.
    unsafe { clear(GHCB + PAGE, (SHARED_SIZE - PAGE) as usize) };
    accept::change_small(&mut Processor, GHCB + PAGE, WINDOW + WINDOW_SIZE, State::Private)?;
    REGISTERED.store(false, Relaxed);
    // SAFETY: as above.
    unsafe { clear(GHCB, PAGE as usize) };
    request(Request::Change { page: GHCB, to: State::Private }, Reason::Denied)?;
    memory::make_window_private(C_BIT.load(Relaxed));
    accept::validate(&mut Processor, Page { address: WINDOW, size: Size::Large })?;
    Ok(())
}

/// Tells the hypervisor to end the machine; it may not.
pub fn terminate(reason: Reason) {
    let _ = snp_vmgexit(Request::End { reason: reason as u8 }.encode());
}

/// Whether [`exit`] can be called.
pub fn can_exit() -> bool {
    REGISTERED.load(Relaxed)
}

/// Asks the hypervisor for something by the GHCB.
pub fn exit(exit: Exit) -> Result<(), Reason> {
    let area = exit.save_area(GHCB);
    put(0, &area);
    put(ghcb::TRAILER, &ghcb::TRAILER_BYTES);
    let _ = snp_vmgexit(GHCB);
    let answer: [[u32; 2]; 2] = get(ghcb::ANSWER);
    if answer[0][0] == 0 && answer[1] == [0, 0] { Ok(()) } else { Err(Reason::Exit) }
}

fn request(request: Request, otherwise: Reason) -> Result<(), Reason> {
    if request.is_granted(snp_vmgexit(request.encode())) { Ok(()) } else { Err(otherwise) }
}

/// Writes to the GHCB.
fn put<const N: usize>(at: usize, bytes: &[u8; N]) {
    const { assert!(N <= PAGE as usize) }
    // SAFETY: `at` is one of the constants of `ghcb`, behind each of which the page has place for its bytes.
    unsafe { write_volatile(with_exposed_provenance_mut(GHCB as usize + at), *bytes) };
}

/// Reads from the GHCB, once.
fn get<T: Copy>(at: usize) -> T {
    // SAFETY: as above; `T` is an array of integers, for which all bytes are valid, and `at` a multiple of 8.
    unsafe { read_volatile(with_exposed_provenance(GHCB as usize + at)) }
}

/// This processor, and the hypervisor below it.
struct Processor;

impl Platform for Processor {
    fn change(&mut self, pages: &[Page], to: State) -> Result<(), Error> {
        put(ghcb::BUFFER, &ghcb::list(pages, to));
        let mut done = 0;
        while done < pages.len() {
            exit(Exit::ChangePages).map_err(|_| Error::Denied)?;
            done = ghcb::progress(get(ghcb::BUFFER), pages.len(), done).ok_or(Error::Denied)?;
        }
        Ok(())
    }

    fn validate(&mut self, page: Page) -> Validation {
        let address = memory::map(page.address, C_BIT.load(Relaxed));
        let answer = snp_pvalidate(address, u32::from(page.size == Size::Large), 1);
        match (answer as u32, answer >> 32) {
            (0, 0) => Validation::Changed,
            (0, _) => Validation::Unchanged,
            (SIZE_MISMATCH, _) => Validation::SizeMismatch,
            _ => Validation::Failed,
        }
    }
}
