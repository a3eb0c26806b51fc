//! How an SNP guest takes its memory: every page of RAM that the launch did not validate is asked for as private and then
//! validated, once.
//!
//! The one thing that must not happen is that a page is validated twice: the host could have mapped another page in
//! between, with the content of its choice from earlier, and could exchange the two at will. The ranges here neither
//! overlap each other nor what is validated already, and a PVALIDATE that changed nothing ends the machine.

use crate::e820::{Kind, Map};
use crate::ghcb::{MAX_PAGES, Page, Size, State};
use crate::rom;

/// What PVALIDATE says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// The page is valid now, and was not before.
    Changed,
    /// It was valid already.
    Unchanged,
    /// It is large, but the host gave small ones.
    SizeMismatch,
    /// Anything else.
    Failed,
}

/// Why memory is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The host does not give the pages.
    Denied,
    /// A page was valid already.
    AlreadyValid,
    /// A page cannot be validated.
    Invalid,
}

/// The processor and the hypervisor.
pub trait Platform {
    /// Asks the hypervisor to change these pages, at most [`MAX_PAGES`].
    ///
    /// # Errors
    /// It does not say that it has.
    fn change(&mut self, pages: &[Page], to: State) -> Result<(), Error>;

    /// Executes PVALIDATE.
    fn validate(&mut self, page: Page) -> Validation;
}

/// The ranges of RAM that an SNP guest has to take before Linux may use them, but for the window.
pub fn ranges(map: &Map) -> impl Iterator<Item = (u64, u64)> {
    // All that is taken otherwise lies in the first range, see `e820::LEAST`.
    let first = [
        (0, rom::RAM_START.into()),
        (u64::from(rom::CPUID_PAGE) + Size::Small.bytes(), 0xa_0000),
        (0x10_0000, rom::WINDOW),
        (rom::WINDOW + rom::WINDOW_SIZE, map.low_end()),
    ];
    let rest = map.ranges().iter().skip(1).filter(|range| range.kind == Kind::Ram);
    first.into_iter().chain(rest.map(|range| (range.start, range.end)))
}

/// Asks for a range, and validates it.
///
/// # Errors
/// The host does not give what it said that it has.
pub fn accept(platform: &mut impl Platform, start: u64, end: u64) -> Result<(), Error> {
    each_batch(start, end, |pages| {
        platform.change(pages, State::Private)?;
        pages.iter().try_for_each(|page| validate(platform, *page))
    })
}

/// Asks for small pages of another state.
///
/// # Errors
/// The hypervisor does not say that it has changed them.
pub fn change_small(platform: &mut impl Platform, start: u64, end: u64, to: State) -> Result<(), Error> {
    let mut start = start;
    while start < end {
        let part = end.min(start + MAX_PAGES as u64 * Size::Small.bytes());
        let mut pages = [Page { address: 0, size: Size::Small }; MAX_PAGES];
        let mut count = 0;
        for (page, address) in pages.iter_mut().zip((start..part).step_by(0x1000)) {
            page.address = address;
            count += 1;
        }
        platform.change(&pages[..count], to)?;
        start = part;
    }
    Ok(())
}

/// Validates a page, in small ones if the host has no large one for it.
///
/// # Errors
/// It was valid before, or cannot be.
pub fn validate(platform: &mut impl Platform, page: Page) -> Result<(), Error> {
    match platform.validate(page) {
        Validation::Changed => Ok(()),
        // SECURITY: the host maps a page that was validated before at a second address, or offers it twice.
        Validation::Unchanged => Err(Error::AlreadyValid),
        Validation::SizeMismatch if page.size == Size::Large => (page.address
            ..page.address + Size::Large.bytes())
            .step_by(0x1000)
            .try_for_each(|address| validate(platform, Page { address, size: Size::Small })),
        Validation::SizeMismatch | Validation::Failed => Err(Error::Invalid),
    }
}

/// Calls `act` with the pages of a range, large where they can be, in ascending order.
fn each_batch(start: u64, end: u64, mut act: impl FnMut(&[Page]) -> Result<(), Error>) -> Result<(), Error> {
    let mut pages = [Page { address: 0, size: Size::Small }; MAX_PAGES];
    let (mut address, mut count) = (start, 0);
    while address < end {
        let large = address.is_multiple_of(Size::Large.bytes()) && end - address >= Size::Large.bytes();
        let size = if large { Size::Large } else { Size::Small };
        pages[count] = Page { address, size };
        address += size.bytes();
        count += 1;
        if count == MAX_PAGES || address >= end {
            act(&pages[..count])?;
            count = 0;
        }
    }
    Ok(())
}
