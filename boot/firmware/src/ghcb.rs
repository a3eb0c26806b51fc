//! What an SNP guest says to its hypervisor, and which answers it takes: the requests of the MSR protocol, and exits by
//! the page that both share (GHCB). Source: AMD 56421, "SEV-ES Guest-Hypervisor Communication Block", version 2.
//!
//! No answer is believed for what it says of memory: whether a page is the guest's own, only PVALIDATE tells.

/// The version that is spoken; another is refused.
pub const VERSION: u16 = 2;
/// The register of the MSR protocol, which also holds the page's address.
pub const REGISTER: u32 = 0xc001_0130;
/// Bytes of the page's save area.
pub const SAVE_AREA: usize = 0x400;
/// Where the page's buffer is.
pub const BUFFER: usize = 0x800;
/// Bytes of the buffer.
pub const BUFFER_SIZE: usize = 0x7f0;
/// Where version and usage are: a 16-bit and a 32-bit number.
pub const TRAILER: usize = 0xffa;
/// Version and usage.
pub const TRAILER_BYTES: [u8; 6] = [VERSION as u8, 0, 0, 0, 0, 0];
/// Bytes of the buffer before the list of page states.
pub const HEADER_SIZE: usize = 8;
/// Most pages of one list.
pub const MAX_PAGES: usize = (BUFFER_SIZE - HEADER_SIZE) / 8;
/// Where the answer of an exit is: 0 in the low half of the first, and 0 in the second, mean that it was done.
pub const ANSWER: usize = 0x398;

/// The set of our reasons among those of all firmware; see [`crate::reason`].
const REASONS: u64 = 0xa;

/// Whose a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// The guest's own.
    Private = 1,
    /// The host's too.
    Shared = 2,
}

/// The size of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
}

impl Size {
    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => 4 << 10,
            Self::Large => 2 << 20,
        }
    }
}

/// A page of memory; its address is a multiple of its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Where it is.
    pub address: u64,
    /// How large it is.
    pub size: Size,
}

/// A request of the MSR protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which versions are spoken, and which bit of an address makes it private.
    Information {
        /// The number of that bit, as the CPUID page has it.
        c_bit: u32,
    },
    /// What the hypervisor can do.
    Features,
    /// Take this page as the GHCB.
    Register {
        /// Its address.
        page: u64,
    },
    /// Change one small page.
    Change {
        /// Its address.
        page: u64,
        /// What it shall be.
        to: State,
    },
    /// End the machine.
    End {
        /// Why; see [`crate::reason::Reason`].
        reason: u8,
    },
}

impl Request {
    /// The register's value that asks for it.
    #[must_use]
    pub fn encode(self) -> u64 {
        match self {
            Self::Information { .. } => 0x002,
            Self::Features => 0x080,
            Self::Register { page } => page | 0x012,
            Self::Change { page, to } => u64::from(to as u8) << 52 | page | 0x014,
            Self::End { reason } => u64::from(reason) << 16 | REASONS << 12 | 0x100,
        }
    }

    /// Whether this value of the register says that it was done, or that things are as they must be.
    #[must_use]
    pub fn is_granted(self, answer: u64) -> bool {
        match self {
            Self::Information { c_bit } => {
                let (most, least) = ((answer >> 48) as u16, (answer >> 32) as u16);
                answer & 0xfff == 0x001
                    && (least..=most).contains(&VERSION)
                    && (answer >> 24) & 0xff == u64::from(c_bit)
            }
            Self::Features => {
                const SNP: u64 = 1 << 12;
                answer & 0xfff == 0x081 && answer & SNP != 0
            }
            Self::Register { page } => answer == page | 0x013,
            Self::Change { .. } => answer == 0x015,
            Self::End { .. } => false,
        }
    }
}

/// What the hypervisor is asked for by the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Write a byte to a port.
    Out8 {
        /// The port.
        port: u16,
        /// The byte.
        value: u8,
    },
    /// Write 32 bits to a port.
    Out32 {
        /// The port.
        port: u16,
        /// The value.
        value: u32,
    },
    /// Write a machine-specific register.
    WriteRegister {
        /// The register.
        register: u32,
        /// The value.
        value: u64,
    },
    /// Change the pages of the list in the buffer.
    ChangePages,
}

impl Exit {
    /// The save area that asks for it; `page` is the GHCB's address.
    #[must_use]
    pub fn save_area(self, page: u64) -> [u8; SAVE_AREA] {
        const RAX: usize = 0x1f8;
        const RCX: usize = 0x308;
        const RDX: usize = 0x310;
        const CODE: usize = 0x390;
        const INFO1: usize = 0x398;
        const INFO2: usize = 0x3a0;
        const SCRATCH: usize = 0x3a8;
        const VALID: usize = 0x3f0;
        const IOIO: u64 = 0x7b;
        const MSR: u64 = 0x7c;
        const PAGE_STATES: u64 = 0x8000_0010;
        const OUT8: u64 = 1 << 4 | ADDRESS_64;
        const OUT32: u64 = 1 << 6 | ADDRESS_64;
        const ADDRESS_64: u64 = 1 << 9;

        let mut area = [0; SAVE_AREA];
        let mut put = |at: usize, value: u64| {
            area[at..at + 8].copy_from_slice(&value.to_le_bytes());
            area[VALID + at / 64] |= 1 << (at / 8 % 8);
        };
        match self {
            Self::Out8 { port, value } => {
                put(CODE, IOIO);
                put(INFO1, u64::from(port) << 16 | OUT8);
                put(RAX, value.into());
            }
            Self::Out32 { port, value } => {
                put(CODE, IOIO);
                put(INFO1, u64::from(port) << 16 | OUT32);
                put(RAX, value.into());
            }
            Self::WriteRegister { register, value } => {
                put(CODE, MSR);
                put(INFO1, 1);
                put(RCX, register.into());
                put(RAX, value & 0xffff_ffff);
                put(RDX, value >> 32);
            }
            Self::ChangePages => {
                put(CODE, PAGE_STATES);
                put(INFO1, 0);
                put(SCRATCH, page + BUFFER as u64);
            }
        }
        put(INFO2, 0);
        area
    }
}

/// The buffer that asks for a change of these pages, at most [`MAX_PAGES`]; more are not in it.
#[must_use]
pub fn list(pages: &[Page], to: State) -> [u8; BUFFER_SIZE] {
    let pages = &pages[..pages.len().min(MAX_PAGES)];
    let mut buffer = [0; BUFFER_SIZE];
    let last = pages.len().saturating_sub(1) as u16;
    buffer[2..4].copy_from_slice(&last.to_le_bytes());
    for (entry, page) in buffer[HEADER_SIZE..].chunks_exact_mut(8).zip(pages) {
        let large = u64::from(page.size == Size::Large);
        entry.copy_from_slice(&(large << 56 | u64::from(to as u8) << 52 | page.address).to_le_bytes());
    }
    buffer
}

/// How many of `count` pages the buffer's header says are done, or `None` where it says anything but that there are more
/// than the `before` of last time.
#[must_use]
pub fn progress(header: [u8; HEADER_SIZE], count: usize, before: usize) -> Option<usize> {
    let [a, b, c, d, reserved @ ..] = header;
    let (current, last) = (usize::from(u16::from_le_bytes([a, b])), usize::from(u16::from_le_bytes([c, d])));
    // SECURITY: a list that grows, or goes backwards, would keep the guest asking, for pages that it never named.
    (last + 1 == count && before < current && current <= count && reserved == [0; 4]).then_some(current)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_those_of_the_specification() {
        assert_eq!(Request::Information { c_bit: 51 }.encode(), 0x2);
        assert_eq!(Request::Features.encode(), 0x80);
        assert_eq!(Request::Register { page: 0x40_0000 }.encode(), 0x40_0012);
        let change = Request::Change { page: 0x40_0000, to: State::Shared };
        assert_eq!(change.encode(), 0x20_0000_0040_0014);
        assert_eq!(Request::End { reason: 7 }.encode(), 0x7_a100);
    }

    #[test]
    fn only_the_wanted_answer_is_taken() {
        let information = Request::Information { c_bit: 51 };
        let answer = |most: u64, least: u64, bit: u64| most << 48 | least << 32 | bit << 24 | 1;
        assert!(information.is_granted(answer(2, 1, 51)) && information.is_granted(answer(9, 2, 51)));
        for wrong in [answer(1, 1, 51), answer(9, 3, 51), answer(2, 1, 50), 0, answer(2, 1, 51) + 1] {
            assert!(!information.is_granted(wrong), "{wrong:#x}");
        }
        assert!(Request::Features.is_granted(0x1081) && !Request::Features.is_granted(0x2081));
        assert!(Request::Register { page: 0x1000 }.is_granted(0x1013));
        assert!(!Request::Register { page: 0x1000 }.is_granted(0x2013));
        let change = Request::Change { page: 0x1000, to: State::Private };
        assert!(change.is_granted(0x15) && !change.is_granted(1 << 32 | 0x15));
        assert!(!Request::End { reason: 0 }.is_granted(0));
    }

    #[test]
    fn an_exit_marks_the_fields_that_it_sets() {
        let area = Exit::Out32 { port: 0x518, value: 0x1234_5678 }.save_area(0x40_0000);
        assert_eq!(area[0x390..0x398], [0x7b, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(area[0x398..0x3a0], [0x40, 2, 0x18, 5, 0, 0, 0, 0]);
        assert_eq!(area[0x1f8..0x200], [0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0]);
        assert_eq!(area[0x3f0..], [0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0x1c, 0]);
        let area = Exit::ChangePages.save_area(0x40_0000);
        assert_eq!(area[0x3a8..0x3b0], [0, 8, 0x40, 0, 0, 0, 0, 0]);
        assert_eq!(area[0x3f0..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x3c, 0]);
    }

    #[test]
    fn a_list_is_that_of_the_specification() {
        let pages =
            [Page { address: 0x20_0000, size: Size::Large }, Page { address: 0x40_1000, size: Size::Small }];
        let buffer = list(&pages, State::Private);
        assert_eq!(buffer[..8], [0, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(buffer[8..16], 0x0110_0000_0020_0000u64.to_le_bytes());
        assert_eq!(buffer[16..24], 0x0010_0000_0040_1000u64.to_le_bytes());
        assert!(buffer[24..].iter().all(|byte| *byte == 0));
        assert_eq!(MAX_PAGES, 253);
    }

    proptest! {
        #[test]
        fn every_answer_ends_the_list_or_brings_it_forward(header: [u8; 8], count in 1usize..=MAX_PAGES) {
            let mut before = 0;
            while let Some(now) = progress(header, count, before) {
                prop_assert!(before < now && now <= count);
                before = now;
            }
        }
    }
}
