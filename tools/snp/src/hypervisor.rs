//! The hypervisor: its side of the GHCB protocol, and the configuration device behind it.

use crate::C_BIT;
use crate::machine::Memory;
use crate::rmp::{Access, Rmp, Violation};
use parma_firmware::ghcb::{BUFFER, MAX_PAGES, Page, Size, State};

/// What a host does, and how it lies. The default is honest.
#[derive(Clone, Debug)]
pub struct Host {
    /// Most and least version of the GHCB protocol.
    pub versions: (u16, u16),
    /// The C-bit that it names.
    pub c_bit: u32,
    /// Its features; bit 0 is SNP.
    pub features: u64,
    /// Whether it takes the GHCB.
    pub takes_ghcb: bool,
    /// What it answers to every exit: 0 is "done".
    pub answer: u64,
    /// How it changes the state of pages.
    pub change: Change,
    /// Whether it has small pages only.
    pub small_pages: bool,
    /// A page that it makes valid before the guest does, as one does who maps an older page there.
    pub valid_before: Option<u64>,
    /// SEV_STATUS, which it cannot choose on hardware.
    pub sev_status: u64,
    /// The CPUID page.
    pub cpuid: Vec<u8>,
    /// The memory map, unless it is the true one.
    pub e820: Option<Vec<u8>>,
    /// Further files of the configuration device.
    pub files: Vec<(String, Vec<u8>)>,
    /// Sizes that it claims of files.
    pub sizes: Vec<(String, u32)>,
    /// How many files it claims to have.
    pub count: Option<u32>,
    /// The number of processors.
    pub processors: u16,
    /// When it exchanges what it gave.
    pub swap: Option<Swap>,
    /// Whether the configuration device reports an error.
    pub device_fails: bool,
}

/// How a host changes the state of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// All that it is asked for.
    All,
    /// So many at a time, and it says so.
    Some(usize),
    /// It refuses, in the answer.
    Refuse,
    /// Nothing, and says that it has.
    Claim,
    /// Nothing, and says that it has not.
    Never,
    /// All, and says that there were more.
    Grow,
}

/// When a host exchanges what is in the window for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// After the device is done, before the guest copies.
    BeforeTheCopy,
    /// After the guest has copied.
    AfterTheCopy,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            versions: (2, 1),
            c_bit: C_BIT,
            features: 1,
            takes_ghcb: true,
            answer: 0,
            change: Change::All,
            small_pages: false,
            valid_before: None,
            sev_status: 0x7,
            cpuid: Self::cpuid_page(&[(1, [0x0080_0f12, 0, 0, 0]), (0x8000_001f, [0x1f, C_BIT, 0, 0])]),
            e820: None,
            files: Vec::new(),
            sizes: Vec::new(),
            count: None,
            processors: 1,
            swap: None,
            device_fails: false,
        }
    }
}

impl Host {
    /// The CPUID page with these leaves: EAX in, and the four registers out.
    #[must_use]
    pub fn cpuid_page(leaves: &[(u32, [u32; 4])]) -> Vec<u8> {
        let mut page = vec![0; 4096];
        let mut put = |at: usize, value: u32| page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0, leaves.len() as u32);
        for (index, (leaf, registers)) in leaves.iter().enumerate() {
            let at = 16 + 48 * index;
            put(at, *leaf);
            registers.iter().enumerate().for_each(|(n, value)| put(at + 24 + 4 * n, *value));
        }
        page
    }

    /// A memory map of these entries: start, length, kind.
    #[must_use]
    pub fn e820(entries: &[(u64, u64, u32)]) -> Vec<u8> {
        let bytes =
            |(a, l, k): &(u64, u64, u32)| [&a.to_le_bytes()[..], &l.to_le_bytes(), &k.to_le_bytes()].concat();
        entries.iter().flat_map(bytes).collect()
    }
}

/// How an exit leaves the guest.
pub enum Next {
    /// It goes on.
    Run,
    /// It asked for its end: set and number of the reason.
    Ended(u8, u8),
}

/// The hypervisor of one guest.
pub struct Hypervisor<'a> {
    host: &'a Host,
    memory: &'a Memory,
    pub rmp: Rmp,
    /// The GHCB register.
    pub register: u64,
    ghcb: Option<u64>,
    /// What came out of the serial line.
    pub console: Vec<u8>,
    /// Keys of the files that were read, in order, once for each time that they were selected.
    pub reads: Vec<u16>,
    /// Machine-specific registers that were written.
    pub registers: Vec<(u64, u64)>,
    files: Vec<(String, Vec<u8>)>,
    selected: (u16, usize),
    address_high: u32,
    filled: Option<(u64, usize)>,
}

const DIRECTORY: u16 = 0x19;
const PROCESSORS: u16 = 0x05;
const FIRST_FILE: u16 = 0x20;

impl<'a> Hypervisor<'a> {
    pub fn new(host: &'a Host, memory: &'a Memory, files: &[(String, Vec<u8>)], rmp: Rmp) -> Self {
        let mut all = vec![("etc/e820".to_owned(), host.e820.clone().unwrap_or_else(|| memory.e820()))];
        all.extend_from_slice(files);
        all.extend_from_slice(&host.files);
        Self {
            host,
            memory,
            rmp,
            register: 0,
            ghcb: None,
            console: Vec::new(),
            reads: Vec::new(),
            registers: Vec::new(),
            files: all,
            selected: (0, 0),
            address_high: 0,
            filled: None,
        }
    }

    /// VMGEXIT. `is_private` says whether the guest has an address mapped with the C-bit.
    pub fn exit(&mut self, is_private: impl Fn(u64) -> bool) -> Result<Next, Violation> {
        if self.host.swap == Some(Swap::AfterTheCopy)
            && let Some((address, size)) = self.filled.take()
        {
            self.memory.write(address, &vec![0xcc; size]);
        }
        let value = self.register;
        match value & 0xfff {
            0x000 => return self.exit_by_page(value, is_private),
            0x002 => {
                let (most, least) = self.host.versions;
                self.register =
                    u64::from(most) << 48 | u64::from(least) << 32 | u64::from(self.host.c_bit) << 24 | 0x001;
            }
            0x080 => self.register = self.host.features << 12 | 0x081,
            0x012 => {
                let page = value & !0xfff;
                self.rmp.check(page, page + 0x1000, Access::Shared)?;
                self.ghcb = self.host.takes_ghcb.then_some(page);
                self.register = if self.host.takes_ghcb { page } else { !0xfff } | 0x013;
            }
            0x014 => {
                let page = Page { address: value & 0x000f_ffff_ffff_f000, size: Size::Small };
                let to = state(value >> 52 & 0xf)?;
                if self.host.change != Change::Claim {
                    self.rmp.change(page, to)?;
                }
                self.register = if self.host.change == Change::Refuse { 1 << 32 } else { 0 } | 0x015;
            }
            0x100 => return Ok(Next::Ended((value >> 12 & 0xf) as u8, (value >> 16) as u8)),
            _ => return Err(Violation(format!("an unknown request: {value:#x}"))),
        }
        Ok(Next::Run)
    }

    fn exit_by_page(&mut self, page: u64, is_private: impl Fn(u64) -> bool) -> Result<Next, Violation> {
        if self.ghcb != Some(page) {
            return Err(Violation(format!("an exit by the page {page:#x}, which was not taken")));
        }
        self.rmp.check(page, page + 0x1000, Access::Shared)?;
        if is_private(page) {
            return Err(Violation("the GHCB is mapped as private".to_owned()));
        }
        let field = |at: usize| -> Result<u64, Violation> {
            let bitmap = self.memory.read(page + 0x3f0 + at as u64 / 64, 1)[0];
            if bitmap & 1 << (at / 8 % 8) == 0 {
                return Err(Violation(format!("the field at {at:#x} is not marked as valid")));
            }
            Ok(self.memory.read_u64(page + at as u64))
        };
        if self.memory.read(page + 0xffa, 6) != [2, 0, 0, 0, 0, 0] {
            return Err(Violation("the GHCB is not of version 2 and usage 0".to_owned()));
        }
        let (code, info1, _) = (field(0x390)?, field(0x398)?, field(0x3a0)?);
        let mut answers = (self.host.answer, 0);
        match code {
            0x7b => {
                let value = field(0x1f8)? as u32;
                let (port, size) = ((info1 >> 16) as u16, info1 >> 4 & 7);
                match (port, size, info1 & 1) {
                    (0x3f8, 1, 0) => self.console.push(value as u8),
                    (0x514, 4, 0) => self.address_high = value.swap_bytes(),
                    (0x518, 4, 0) => self.transfer(
                        u64::from(self.address_high) << 32 | u64::from(value.swap_bytes()),
                        &is_private,
                    )?,
                    _ => return Err(Violation(format!("access to port {port:#x}: {info1:#x}"))),
                }
            }
            0x7c if info1 == 1 => {
                let value = field(0x310)? << 32 | field(0x1f8)?;
                self.registers.push((field(0x308)?, value));
            }
            0x8000_0010 => {
                if field(0x3a8)? != page + BUFFER as u64 {
                    return Err(Violation("the list of pages is not in the GHCB".to_owned()));
                }
                answers.1 = self.change_pages(page + BUFFER as u64)?;
            }
            _ => return Err(Violation(format!("an unknown exit: {code:#x}"))),
        }
        self.memory.write(page + 0x398, &answers.0.to_le_bytes());
        self.memory.write(page + 0x3a0, &answers.1.to_le_bytes());
        Ok(Next::Run)
    }

    fn change_pages(&mut self, buffer: u64) -> Result<u64, Violation> {
        let header = self.memory.read_u64(buffer);
        let (current, last) = (header as u16 as usize, (header >> 16) as u16 as usize);
        if header >> 32 != 0 || last >= MAX_PAGES || current > last {
            return Err(Violation(format!("a list of pages from {current} to {last}")));
        }
        let end = match self.host.change {
            Change::Refuse => return Ok(1 << 32 | 5),
            Change::Never => current,
            Change::Some(count) => (current + count).min(last + 1),
            Change::All | Change::Claim | Change::Grow => last + 1,
        };
        for index in current..end {
            let entry = self.memory.read_u64(buffer + 8 + 8 * index as u64);
            let size = if entry >> 56 & 1 == 1 { Size::Large } else { Size::Small };
            if entry & 0xfff != 0 || entry >> 57 != 0 {
                return Err(Violation(format!("an entry {entry:#x} in the list of pages")));
            }
            let page = Page { address: entry & 0x000f_ffff_ffff_f000, size };
            if self.host.change != Change::Claim {
                self.rmp.change(page, state(entry >> 52 & 0xf)?)?;
            }
        }
        let last = if self.host.change == Change::Grow { last + 1 } else { last };
        self.memory.write(buffer, &((last as u64) << 16 | end as u64).to_le_bytes());
        Ok(0)
    }

    /// A transfer of the configuration device.
    fn transfer(&mut self, descriptor: u64, is_private: impl Fn(u64) -> bool) -> Result<(), Violation> {
        let shared = |start: u64, size: u64| {
            self.rmp.check(start, start + size, Access::Shared)?;
            if is_private(start) {
                return Err(Violation(format!("a transfer at {start:#x}, which is mapped as private")));
            }
            Ok(())
        };
        shared(descriptor, 16)?;
        let bytes = self.memory.read(descriptor, 16);
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (control, size) = (word(0), word(4) as usize);
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        shared(address, size as u64)?;
        if control & 0x8 != 0 {
            self.selected = ((control >> 16) as u16, 0);
            self.reads.push(self.selected.0);
        }
        if control & 0x17 != 0x2 {
            return Err(Violation(format!("a transfer that does not read: {control:#x}")));
        }
        let (key, offset) = self.selected;
        let content = self.content(key);
        let mut part: Vec<u8> = content.iter().skip(offset).take(size).copied().collect();
        part.resize(size, 0);
        self.selected.1 += size;
        if self.host.swap == Some(Swap::BeforeTheCopy) && key > FIRST_FILE {
            part[size / 2] ^= 1;
        }
        self.memory.write(address, &part);
        self.filled = Some((address, size));
        self.memory.write(descriptor, &u32::from(self.host.device_fails).to_be_bytes());
        Ok(())
    }

    fn content(&self, key: u16) -> Vec<u8> {
        match key {
            PROCESSORS => self.host.processors.to_le_bytes().to_vec(),
            DIRECTORY => self.directory(),
            _ => {
                let file = key.checked_sub(FIRST_FILE).and_then(|index| self.files.get(usize::from(index)));
                file.map(|(_, content)| content.clone()).unwrap_or_default()
            }
        }
    }

    fn directory(&self) -> Vec<u8> {
        let count = self.host.count.unwrap_or(self.files.len() as u32);
        let mut bytes = count.to_be_bytes().to_vec();
        for (key, (name, content)) in (FIRST_FILE..).zip(&self.files) {
            let claimed = self.host.sizes.iter().find(|(of, _)| of == name).map(|(_, size)| *size);
            bytes.extend(claimed.unwrap_or(content.len() as u32).to_be_bytes());
            bytes.extend(key.to_be_bytes());
            bytes.extend([0, 0]);
            let mut field = name.clone().into_bytes();
            field.resize(56, 0);
            bytes.extend(field);
        }
        bytes
    }

    /// The key of a file.
    pub fn key(&self, name: &str) -> Option<u16> {
        (FIRST_FILE..).zip(&self.files).find(|(_, file)| file.0 == name).map(|(key, _)| key)
    }
}

fn state(number: u64) -> Result<State, Violation> {
    match number {
        1 => Ok(State::Private),
        2 => Ok(State::Shared),
        _ => Err(Violation(format!("a page shall become {number}"))),
    }
}
