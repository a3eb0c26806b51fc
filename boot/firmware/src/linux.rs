//! What Linux is told: `boot_params`, by the 64-bit boot protocol. The kernel was verified before it comes here, so a
//! refusal is the image's fault. Source: Linux `Documentation/arch/x86/boot.rst`, `zero-page.rst`.

use crate::e820::{self, Map};
use crate::rom;

/// Bytes of `boot_params`.
pub const PARAMS_SIZE: usize = 4096;
/// Where the 64-bit entry is, from the loaded kernel's beginning.
pub const ENTRY: u64 = 0x200;
/// Most bytes of the command line, its final zero included.
pub const MAX_COMMAND_LINE: usize = 4096;

const SECTOR: usize = 512;
const PAGE: u64 = 0x1000;

/// Why a kernel cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is no bzImage with a 64-bit entry of protocol 2.12 or later.
    Kernel,
    /// Memory does not suffice for kernel and initrd.
    Memory,
}

/// Where a kernel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel<'a> {
    header: &'a [u8],
    /// What is loaded.
    pub payload: &'a [u8],
    /// Where it is loaded.
    pub address: u64,
    /// Where the memory ends that it uses before it looks at the memory map.
    pub end: u64,
    initrd_limit: u64,
}

impl<'a> Kernel<'a> {
    /// Reads the header of a bzImage.
    ///
    /// # Errors
    /// It has none, or it cannot be started by its 64-bit entry.
    pub fn new(image: &'a [u8]) -> Result<Self, Error> {
        let byte = |at: usize| image.get(at).copied().ok_or(Error::Kernel);
        let word = |at: usize| {
            let bytes = image.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Error::Kernel)?;
            Ok(u32::from_le_bytes(*bytes))
        };
        let version = word(0x206)? & 0xffff;
        let (relocatable, flags) = (byte(0x234)?, byte(0x236)?);
        if word(0x202)? != u32::from_le_bytes(*b"HdrS")
            || version < 0x20c
            || relocatable == 0
            || flags & 1 == 0
        {
            return Err(Error::Kernel);
        }
        let setup_sectors = usize::from(byte(0x1f1)?);
        let setup = SECTOR * (1 + if setup_sectors == 0 { 4 } else { setup_sectors });
        let header = image.get(0x1f1..0x202 + usize::from(byte(0x201)?)).ok_or(Error::Kernel)?;
        let payload = image.get(setup..).ok_or(Error::Kernel)?;
        let address = u64::from(word(0x258)?) | u64::from(word(0x25c)?) << 32;
        let size = u64::from(word(0x260)?).max(payload.len() as u64);
        let end = address.checked_add(size).ok_or(Error::Kernel)?;
        Ok(Self { header, payload, address, end, initrd_limit: u64::from(word(0x22c)?) + 1 })
    }

    /// Where an initrd of this size goes: as high as it may.
    ///
    /// # Errors
    /// Memory ends too early.
    pub fn place_initrd(&self, size: usize, map: &Map) -> Result<u64, Error> {
        let top = self.initrd_limit.min(map.low_end());
        let start = top.checked_sub(size as u64).ok_or(Error::Memory)? & !(PAGE - 1);
        if start < self.end { Err(Error::Memory) } else { Ok(start) }
    }

    /// `boot_params` for a start with these.
    #[must_use]
    pub fn params(
        &self,
        map: &Map,
        command_line: u32,
        initrd: (u32, u32),
        setup_data: u64,
    ) -> [u8; PARAMS_SIZE] {
        let mut params = [0; PARAMS_SIZE];
        let mut put = |at: usize, bytes: &[u8]| params[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, self.header);
        put(0x210, &[0xff]); // Loader: one without a number.
        put(0x218, &initrd.0.to_le_bytes());
        put(0x21c, &initrd.1.to_le_bytes());
        put(0x228, &command_line.to_le_bytes());
        put(0x250, &setup_data.to_le_bytes());
        let linux = map.for_linux();
        put(0x1e8, &[linux.ranges().len() as u8]);
        for (index, range) in linux.ranges().iter().enumerate() {
            let at = 0x2d0 + e820::ENTRY_SIZE * index;
            put(at, &range.start.to_le_bytes());
            put(at + 8, &(range.end - range.start).to_le_bytes());
            put(at + 16, &(range.kind as u32).to_le_bytes());
        }
        params
    }
}

/// Bytes of [`confidential`].
pub const CONFIDENTIAL_SIZE: usize = 0x60;

/// What tells Linux that it is an SNP guest, and where the PSP's pages are: an element of `setup_data` (the last), and the
/// blob to which it points. It is for [`rom::BLOB_PAGE`]. Source: Linux `arch/x86/include/asm/sev.h`, `cc_blob_sev_info`.
#[must_use]
pub fn confidential() -> [u8; CONFIDENTIAL_SIZE] {
    const SETUP_CC_BLOB: u32 = 7;
    const BLOB: usize = 0x20;
    let mut bytes = [0; CONFIDENTIAL_SIZE];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(8, SETUP_CC_BLOB);
    put(12, 4);
    put(16, rom::BLOB_PAGE + BLOB as u32);
    put(BLOB, u32::from_le_bytes(*b"AMDE"));
    put(BLOB + 8, rom::SECRETS_PAGE);
    put(BLOB + 16, PAGE as u32);
    put(BLOB + 24, rom::CPUID_PAGE);
    put(BLOB + 32, PAGE as u32);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// A bzImage of one set-up sector more than the boot sector, loaded at 16 MiB, in need of 32 MiB.
    fn image() -> Vec<u8> {
        let mut image = std::vec![0; 5000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &[0x0f, 0x02]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x234, &[1, 0, 1]);
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x200_0000u32.to_le_bytes());
        put(1024, b"payload");
        image
    }

    fn map(mib: u64) -> Map {
        Map::new(&[&[0; 8][..], &(mib << 20).to_le_bytes(), &[1, 0, 0, 0]].concat()).unwrap()
    }

    #[test]
    fn boot_params_hold_the_header_and_what_was_asked_for() {
        let image = image();
        let kernel = Kernel::new(&image).unwrap();
        assert!(kernel.payload.starts_with(b"payload"));
        assert_eq!((kernel.address, kernel.end), (0x100_0000, 0x300_0000));
        let initrd = kernel.place_initrd(5000, &map(256)).unwrap();
        assert_eq!(initrd, (256 << 20) - 8192);
        let params = kernel.params(&map(256), 0x7_1000, (initrd as u32, 5000), 0x7_2000);
        assert_eq!(params[0x1f1..0x1f1 + 1], [1]);
        assert_eq!(&params[0x202..0x206], b"HdrS");
        assert_eq!(params[0x210], 0xff);
        assert_eq!(params[0x218..0x220], [0, 0xe0, 0xff, 0x0f, 0x88, 0x13, 0, 0]);
        assert_eq!(params[0x228..0x22c], [0, 0x10, 7, 0]);
        assert_eq!(params[0x250..0x258], [0, 0x20, 7, 0, 0, 0, 0, 0]);
        assert_eq!(params[0x1e8], 6);
        assert_eq!(
            params[0x2d0..0x2d0 + 20],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0xf0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0]
        );
        // Nothing that was not set: no video mode, no EFI, no ACPI tables, a clean sentinel.
        assert!(params[..0x1e8].iter().all(|b| *b == 0) && params[0x1e9..0x1f1].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_file_that_is_no_64_bit_kernel_is_refused() {
        for (at, value) in [(0x202, b'X'), (0x207, 1), (0x234, 0), (0x236, 0), (0x25f, 0xff), (0x1f1, 9)] {
            let mut image = image();
            image[at] = value;
            if at == 0x25f {
                image[0x258..0x25f].fill(0xff);
            }
            assert_eq!(Kernel::new(&image), Err(Error::Kernel), "{at:#x}");
        }
        assert_eq!(Kernel::new(&image()[..0x230]), Err(Error::Kernel));
    }

    #[test]
    fn kernel_and_initrd_do_not_overlap() {
        let image = image();
        let kernel = Kernel::new(&image).unwrap();
        assert_eq!(kernel.place_initrd(16 << 20, &map(64)), Ok(0x300_0000));
        assert_eq!(kernel.place_initrd((16 << 20) + 1, &map(64)), Err(Error::Memory));
        assert_eq!(kernel.place_initrd(usize::MAX, &map(64)), Err(Error::Memory));
    }

    #[test]
    fn a_confidential_guest_is_told_where_the_psps_pages_are() {
        let bytes = confidential();
        // The one element of its list, of type 7, whose four bytes are the blob's address.
        assert_eq!(bytes[..20], [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 0x20, 0xf0, 7, 0]);
        #[rustfmt::skip]
        assert_eq!(bytes[0x20..0x48], [
            b'A', b'M', b'D', b'E', 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
            0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
        ]);
    }

    proptest! {
        #[test]
        fn no_kernel_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0x60), size in 0usize..6000) {
            let mut image = image();
            image[0x208..0x268].copy_from_slice(&bytes);
            image.truncate(size);
            if let Ok(kernel) = Kernel::new(&image) {
                let _ = kernel.place_initrd(5000, &map(256));
                let _ = kernel.params(&map(256), 0, (0, 0), 0);
            }
        }
    }
}
