//! The reverse map table: the processor's own record of whose each page of memory is. Source: AMD64 APM volume 2, 15.36.

use parma_firmware::accept::Validation;
use parma_firmware::ghcb::{Page, Size, State};
use std::collections::HashMap;
use std::fmt;

const SMALL: u64 = Size::Small.bytes();

/// A rule that a guest must not break, or a fault that it cannot survive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Whose a page is to be for an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest's own, validated.
    Private,
    /// Shared with the host.
    Shared,
}

/// One small page.
#[derive(Clone, Copy, Default)]
struct Entry {
    private: bool,
    valid: bool,
    /// The host gave it as part of a large page.
    large: bool,
    /// How often it went from not valid to valid.
    validations: u32,
}

/// Memory's owners. What it does not list is no memory.
pub struct Rmp {
    entries: HashMap<u64, Entry>,
    small_pages: bool,
}

impl Rmp {
    /// No memory yet. `small_pages`: the host has no large ones.
    #[must_use]
    pub fn new(small_pages: bool) -> Self {
        Self { entries: HashMap::new(), small_pages }
    }

    /// Adds memory as a launch leaves it: the guest's, not validated.
    pub fn add(&mut self, start: u64, end: u64) {
        for address in (start..end).step_by(SMALL as usize) {
            let whole = address & !(Size::Large.bytes() - 1);
            let large = !self.small_pages && whole >= start && whole + Size::Large.bytes() <= end;
            self.entries.insert(address, Entry { private: true, large, ..Entry::default() });
        }
    }

    /// Adds pages that the launch validates.
    pub fn launch(&mut self, start: u64, end: u64) {
        for address in (start..end).step_by(SMALL as usize) {
            self.entries.insert(address, Entry { private: true, valid: true, large: false, validations: 1 });
            // A large page is one entry: its neighbours are small, too.
            let whole = address & !(Size::Large.bytes() - 1);
            for neighbour in (whole..whole + Size::Large.bytes()).step_by(SMALL as usize) {
                if let Some(entry) = self.entries.get_mut(&neighbour) {
                    entry.large = false;
                }
            }
        }
    }

    /// What an honest hypervisor does when it is asked for a change.
    ///
    /// # Errors
    /// There is no such memory, or the guest gives away a page that it still holds for valid.
    pub fn change(&mut self, page: Page, to: State) -> Result<(), Violation> {
        if !page.address.is_multiple_of(page.size.bytes()) {
            return Err(Violation(format!("{page:x?} is not a multiple of its size")));
        }
        for address in small(page) {
            let entry = self.entries.get_mut(&address);
            let entry = entry.ok_or_else(|| Violation(format!("there is no memory at {address:#x}")))?;
            match to {
                State::Shared if entry.valid => {
                    return Err(Violation(format!("{address:#x} is shared without having been rescinded")));
                }
                State::Shared => *entry = Entry { validations: entry.validations, ..Entry::default() },
                State::Private => entry.private = true,
            }
        }
        if page.size == Size::Small {
            let whole = page.address & !(Size::Large.bytes() - 1);
            for address in small(Page { address: whole, size: Size::Large }) {
                if let Some(entry) = self.entries.get_mut(&address) {
                    entry.large = false;
                }
            }
        }
        Ok(())
    }

    /// PVALIDATE of a page that is mapped as private.
    ///
    /// # Errors
    /// The page is the host's: a fault that the hypervisor gets, and that the guest does not survive.
    pub fn validate(&mut self, page: Page) -> Result<Validation, Violation> {
        if !page.address.is_multiple_of(page.size.bytes()) {
            return Err(Violation(format!("{page:x?} is not a multiple of its size")));
        }
        let find = |address: &u64| self.entries.get(address).filter(|entry| entry.private);
        if let Some(address) = small(page).find(|address| find(address).is_none()) {
            return Err(Violation(format!("PVALIDATE of {address:#x}, which is not the guest's")));
        }
        if page.size == Size::Large && small(page).any(|address| !self.entries[&address].large) {
            return Ok(Validation::SizeMismatch);
        }
        if self.entries[&page.address].valid {
            return Ok(Validation::Unchanged);
        }
        for address in small(page) {
            if let Some(entry) = self.entries.get_mut(&address) {
                entry.valid = true;
                entry.validations += 1;
            }
        }
        Ok(Validation::Changed)
    }

    /// Whether the guest may use a range in this way.
    ///
    /// # Errors
    /// The first page with which it may not.
    pub fn check(&self, start: u64, end: u64, access: Access) -> Result<(), Violation> {
        for address in (start & !(SMALL - 1)..end).step_by(SMALL as usize) {
            let entry = self.entries.get(&address).copied().unwrap_or_default();
            let right = match access {
                Access::Private => entry.private && entry.valid,
                Access::Shared => !entry.private,
            };
            if !right {
                return Err(Violation(format!("{address:#x} is not {access:?}")));
            }
        }
        Ok(())
    }

    /// Whether every page of a range is the guest's, valid, and was validated once in its life.
    ///
    /// # Errors
    /// The first page for which this is not so.
    pub fn check_once(&self, start: u64, end: u64) -> Result<(), Violation> {
        self.check(start, end, Access::Private)?;
        for address in (start..end).step_by(SMALL as usize) {
            let times = self.entries[&address].validations;
            if times != 1 {
                return Err(Violation(format!("{address:#x} was validated {times} times")));
            }
        }
        Ok(())
    }

    /// How many pages are valid.
    #[must_use]
    pub fn valid(&self) -> usize {
        self.entries.values().filter(|entry| entry.valid).count()
    }
}

/// The small pages of a page.
fn small(page: Page) -> impl Iterator<Item = u64> {
    (page.address..page.address + page.size.bytes()).step_by(SMALL as usize)
}
