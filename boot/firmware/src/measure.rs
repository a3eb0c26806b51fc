//! The launch digest: what the PSP reports as MEASUREMENT when QEMU starts a ROM with SEV-SNP.
//!
//! The digest starts as zeros and takes in one 112-byte record for each page in the order of the launch: the ROM, the
//! ranges of its metadata, and one save area (VMSA) for each processor. Source: SEV-SNP firmware ABI, section 8.17
//! (`SNP_LAUNCH_UPDATE`, PAGE_INFO); AMD64 APM volume 2, table B-4 (VMSA); QEMU `target/i386/sev.c`.
//!
//! What differs between versions of QEMU and KVM is the save area of processors other than the first: take one
//! processor where the version is unknown.

use crate::rom::{self, Guid, Kind};
use core::fmt;
use sha2::{Digest as _, Sha384};

/// Bytes of the digest.
pub const SIZE: usize = 48;
/// The launch digest.
pub type Digest = [u8; SIZE];
/// Most processors that are measured.
pub const MAX_VCPUS: u32 = 512;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Most bytes of a ROM: QEMU maps no more below 4 GiB.
const MAX_ROM: usize = 16 << 20;
/// Where the save areas count as lying.
const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;
/// Where the first processor begins.
const RESET_VECTOR: u32 = 0xffff_fff0;

/// Why a ROM cannot be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is empty, no whole number of pages, or too large.
    Size,
    /// The table of GUIDs at its end is missing, or damaged.
    Table,
    /// The table has no address for other processors.
    ResetBlock,
    /// The launch metadata is missing, or damaged.
    Metadata,
    /// The launch metadata has a section of an unknown kind, or not of whole pages.
    Section,
    /// No processors, or more than [`MAX_VCPUS`].
    Processors,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "it must be a whole number of 4 KiB pages, at most 16 MiB",
            Self::Table => "it does not end in OVMF's table of GUIDs",
            Self::ResetBlock => "its table names no reset address of other processors",
            Self::Metadata => "it has no SEV-SNP launch metadata",
            Self::Section => "its launch metadata has a section that is unknown or not of whole pages",
            Self::Processors => "the number of processors must be 1 to 512",
        })
    }
}

impl core::error::Error for Error {}

/// QEMU's processor models that can run SNP guests: name, and CPUID 1 EAX, which is in the save area.
pub const CPUS: [(&str, u32); 6] = [
    ("EPYC", 0x0080_0f12),
    ("EPYC-IBPB", 0x0080_0f12),
    ("EPYC-Rome", 0x0083_0f10),
    ("EPYC-Milan", 0x00a0_0f11),
    ("EPYC-Genoa", 0x00a1_0f10),
    ("EPYC-Turin", 0x00b0_0f00),
];

/// The signature of a processor model, with or without its version: `EPYC-v4`, `EPYC-Milan`.
#[must_use]
pub fn signature(cpu: &str) -> Option<u32> {
    let model = match cpu.rsplit_once("-v") {
        Some((model, version)) if matches!(version.as_bytes(), [b'1'..=b'9']) => model,
        _ => cpu,
    };
    CPUS.iter().find(|(name, _)| *name == model).map(|(_, signature)| *signature)
}

/// A page of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page<'a> {
    /// Of the ROM.
    Rom(&'a [u8]),
    /// Memory of the firmware: zeros.
    Memory,
    /// Where the PSP writes its secrets.
    Secrets,
    /// Where the PSP writes the CPUID leaves that it vouches for.
    Cpuid,
    /// The state with which a processor starts.
    SaveArea(&'a [u8; PAGE]),
}

/// Shows each page of a launch of this ROM with this many processors of this [`signature`], and its address, in the order
/// of the launch.
///
/// # Errors
/// The ROM cannot be launched with SNP, or not with this many processors.
pub fn launch(
    rom: &[u8],
    vcpus: u32,
    signature: u32,
    mut page: impl FnMut(u64, Page<'_>),
) -> Result<(), Error> {
    if rom.is_empty() || !rom.len().is_multiple_of(PAGE) || rom.len() > MAX_ROM {
        return Err(Error::Size);
    }
    if vcpus == 0 || vcpus > MAX_VCPUS {
        return Err(Error::Processors);
    }
    let reset_block = entry(rom, &rom::RESET_BLOCK)?.ok_or(Error::ResetBlock)?;
    let metadata = Metadata::new(rom)?;

    let base = (1 << 32) - rom.len() as u64;
    for (content, address) in rom.chunks_exact(PAGE).zip((base..).step_by(PAGE)) {
        page(address, Page::Rom(content));
    }
    for section in 0..metadata.count {
        let (address, size, kind) = metadata.section(section)?;
        for address in (address..address + size).step_by(PAGE) {
            page(
                address,
                match kind {
                    Kind::Memory | Kind::CallingArea | Kind::KernelHashes => Page::Memory,
                    Kind::Secrets => Page::Secrets,
                    Kind::Cpuid => Page::Cpuid,
                },
            );
        }
    }
    page(VMSA_ADDRESS, Page::SaveArea(&save_area(RESET_VECTOR, signature)));
    let other = save_area(reset_block, signature);
    (1..vcpus).for_each(|_| page(VMSA_ADDRESS, Page::SaveArea(&other)));
    Ok(())
}

/// The digest of such a launch by QEMU.
///
/// # Errors
/// As for [`launch`].
pub fn launch_digest(rom: &[u8], vcpus: u32, signature: u32) -> Result<Digest, Error> {
    digest(rom, vcpus, signature, |launch, address| launch.blank(PageType::Zero, address))
}

/// The digest of the same pages from an IGVM file that holds them all.
///
/// It differs from [`launch_digest`] in the firmware's memory: there the PSP is asked for pages of zeros, here it is given them.
///
/// # Errors
/// As for [`launch`].
pub fn igvm_digest(rom: &[u8], vcpus: u32, signature: u32) -> Result<Digest, Error> {
    digest(rom, vcpus, signature, |launch, address| launch.content(PageType::Normal, address, &[0; PAGE]))
}

fn digest(
    rom: &[u8],
    vcpus: u32,
    signature: u32,
    memory: impl Fn(&mut Launch, u64),
) -> Result<Digest, Error> {
    let mut digest = Launch([0; SIZE]);
    launch(rom, vcpus, signature, |address, page| match page {
        Page::Rom(content) => digest.content(PageType::Normal, address, content),
        Page::Memory => memory(&mut digest, address),
        Page::Secrets => digest.blank(PageType::Secrets, address),
        Page::Cpuid => digest.blank(PageType::Cpuid, address),
        Page::SaveArea(content) => digest.content(PageType::SaveArea, address, content),
    })?;
    Ok(digest.0)
}

/// PAGE_TYPE of the firmware ABI.
#[derive(Clone, Copy)]
#[repr(u8)]
enum PageType {
    Normal = 1,
    SaveArea = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

/// The digest of the pages so far.
struct Launch(Digest);

impl Launch {
    fn content(&mut self, kind: PageType, address: u64, page: &[u8]) {
        self.update(kind, address, &Sha384::digest(page).into());
    }

    /// A page whose contents the PSP writes or clears itself.
    fn blank(&mut self, kind: PageType, address: u64) {
        self.update(kind, address, &[0; SIZE]);
    }

    fn update(&mut self, kind: PageType, address: u64, contents: &Digest) {
        let mut record = Sha384::new();
        record.update(self.0);
        record.update(contents);
        // Length of the record; page type; not a migration image; no permissions for lower VMPLs; reserved.
        record.update([0x70, 0, kind as u8, 0, 0, 0, 0, 0]);
        record.update(address.to_le_bytes());
        self.0 = record.finalize().into();
    }
}

/// `size` bytes that begin `back` bytes before the ROM's end.
fn from_end(rom: &[u8], back: usize, size: usize) -> Option<&[u8]> {
    let start = rom.len().checked_sub(back)?;
    rom.get(start..start.checked_add(size)?)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The four bytes of an entry of the table of GUIDs.
fn entry(rom: &[u8], name: &Guid) -> Result<Option<u32>, Error> {
    if from_end(rom, 0x30, 16) != Some(&rom::FOOTER) {
        return Err(Error::Table);
    }
    let total = from_end(rom, 0x32, 2).ok_or(Error::Table)?;
    let total = usize::from(u16::from_le_bytes([total[0], total[1]]));
    let rest = total.checked_sub(18).ok_or(Error::Table)?;
    let mut table = from_end(rom, 0x32 + rest, rest).ok_or(Error::Table)?;
    while !table.is_empty() {
        let (before, found) = table.split_last_chunk::<16>().ok_or(Error::Table)?;
        let (_, length) = before.split_last_chunk::<2>().ok_or(Error::Table)?;
        let length = usize::from(u16::from_le_bytes(*length));
        let start = table.len().checked_sub(length).ok_or(Error::Table)?;
        let data = length.checked_sub(18).and_then(|size| table.get(start..start + size));
        let data = data.ok_or(Error::Table)?;
        if found == name {
            return word(data, 0).filter(|_| data.len() == 4).map(Some).ok_or(Error::Table);
        }
        table = &table[..start];
    }
    Ok(None)
}

/// The launch metadata of a ROM.
struct Metadata<'a> {
    sections: &'a [u8],
    count: usize,
}

impl<'a> Metadata<'a> {
    fn new(rom: &'a [u8]) -> Result<Self, Error> {
        let back = entry(rom, &rom::METADATA)?.ok_or(Error::Metadata)? as usize;
        let header = from_end(rom, back, 16).ok_or(Error::Metadata)?;
        let (size, version, count) = (word(header, 4), word(header, 8), word(header, 12));
        let count = count.ok_or(Error::Metadata)? as usize;
        let expected = count.checked_mul(12).and_then(|size| size.checked_add(16));
        let expected = expected.filter(|e| size == u32::try_from(*e).ok()).ok_or(Error::Metadata)?;
        if !header.starts_with(b"ASEV") || version != Some(1) {
            return Err(Error::Metadata);
        }
        let sections = &from_end(rom, back, expected).ok_or(Error::Metadata)?[16..];
        Ok(Self { sections, count })
    }

    fn section(&self, index: usize) -> Result<(u64, u64, Kind), Error> {
        let field = |at| word(self.sections, 12 * index + at).ok_or(Error::Section);
        let (address, size) = (u64::from(field(0)?), u64::from(field(4)?));
        let kind = Kind::new(field(8)?).ok_or(Error::Section)?;
        let pages = |value: u64| value.is_multiple_of(PAGE as u64);
        if size == 0 || !pages(address) || !pages(size) || address + size > 1 << 32 {
            return Err(Error::Section);
        }
        Ok((address, size, kind))
    }
}

/// The save area with which QEMU and KVM start a processor at `start`.
fn save_area(start: u32, signature: u32) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // Segment registers: selector, attributes, limit, base.
    let segments: [(usize, u16, u16, u32, u64); 10] = [
        (0x00, 0, 0x93, 0xffff, 0),
        (0x10, 0xf000, 0x9b, 0xffff, u64::from(start & 0xffff_0000)),
        (0x20, 0, 0x93, 0xffff, 0),
        (0x30, 0, 0x93, 0xffff, 0),
        (0x40, 0, 0x93, 0xffff, 0),
        (0x50, 0, 0x93, 0xffff, 0),
        (0x60, 0, 0, 0xffff, 0),
        (0x70, 0, 0x82, 0xffff, 0),
        (0x80, 0, 0, 0xffff, 0),
        (0x90, 0, 0x8b, 0xffff, 0),
    ];
    for (at, selector, attributes, limit, base) in segments {
        put(at, &selector.to_le_bytes());
        put(at + 2, &attributes.to_le_bytes());
        put(at + 4, &limit.to_le_bytes());
        put(at + 8, &base.to_le_bytes());
    }
    put(0x0d0, &0x1000u64.to_le_bytes()); // EFER: SVME
    put(0x148, &0x40u64.to_le_bytes()); // CR4: MCE
    put(0x158, &0x10u64.to_le_bytes()); // CR0: ET
    put(0x160, &0x400u64.to_le_bytes()); // DR7
    put(0x168, &0xffff_0ff0u64.to_le_bytes()); // DR6
    put(0x170, &2u64.to_le_bytes()); // RFLAGS
    put(0x178, &u64::from(start & 0xffff).to_le_bytes()); // RIP
    put(0x268, &0x0007_0406_0007_0406u64.to_le_bytes()); // PAT
    put(0x310, &u64::from(signature).to_le_bytes()); // RDX
    put(0x3b0, &1u64.to_le_bytes()); // SEV features: SNP
    put(0x3e8, &1u64.to_le_bytes()); // XCR0: x87
    put(0x408, &0x1f80u32.to_le_bytes()); // MXCSR
    put(0x410, &0x37fu16.to_le_bytes()); // x87 control word
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rom::{ROM_SIZE, tail};
    use proptest::prelude::*;
    use sev::measurement::snp::{SnpMeasurementArgs, snp_calc_launch_digest};
    use sev::measurement::vcpu_types::CpuType;
    use sev::measurement::vmsa::{GuestFeatures, VMMType};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::string::{String, ToString};
    use std::{eprintln, format, fs, vec, vec::Vec};

    /// A ROM with our tables and something before them.
    fn ours() -> Vec<u8> {
        let mut rom: Vec<u8> = (0..ROM_SIZE).map(|i| (i * 7 + i / 256) as u8).collect();
        let end = ROM_SIZE - rom::RESET_SIZE;
        rom[end - rom::TAIL_SIZE..end].copy_from_slice(&tail());
        rom
    }

    /// Our tables, the ROM that xtask built if it did, and Debian's OVMF if it is installed.
    fn roms(dir: &Path) -> Vec<PathBuf> {
        let synthetic = dir.join("synthetic.rom");
        fs::write(&synthetic, ours()).unwrap();
        let mut roms = vec![synthetic];
        for found in ["/usr/share/ovmf/OVMF.fd", "/usr/share/OVMF/OVMF_CODE.fd"]
            .map(PathBuf::from)
            .into_iter()
            .chain(std::env::var_os("PARMA_IMAGE").map(|image| Path::new(&image).join("rom")))
        {
            if found.exists() {
                roms.push(found);
            } else {
                eprintln!("skipped: {} is not there", found.display());
            }
        }
        roms
    }

    fn hex(digest: &[u8]) -> String {
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Every name of a processor that both know.
    const NAMES: [&str; 18] = [
        "EPYC",
        "EPYC-v1",
        "EPYC-v2",
        "EPYC-IBPB",
        "EPYC-v3",
        "EPYC-v4",
        "EPYC-Rome",
        "EPYC-Rome-v1",
        "EPYC-Rome-v2",
        "EPYC-Rome-v3",
        "EPYC-Milan",
        "EPYC-Milan-v1",
        "EPYC-Milan-v2",
        "EPYC-Genoa",
        "EPYC-Genoa-v1",
        "EPYC-Turin",
        "EPYC-Turin-v1",
        "EPYC-Turin-v2",
    ];

    #[test]
    fn the_sev_crate_computes_the_same_digests() {
        let dir = tempfile::tempdir().unwrap();
        for rom in roms(dir.path()) {
            let bytes = fs::read(&rom).unwrap();
            for cpu in NAMES {
                for vcpus in 1..=8 {
                    let theirs = snp_calc_launch_digest(SnpMeasurementArgs {
                        vcpus,
                        vcpu_type: CpuType::try_from(cpu).unwrap(),
                        ovmf_file: rom.clone(),
                        guest_features: GuestFeatures(1),
                        kernel_file: None,
                        initrd_file: None,
                        append: None,
                        ovmf_hash_str: None,
                        vmm_type: Some(VMMType::QEMU),
                    })
                    .unwrap();
                    let ours = launch_digest(&bytes, vcpus, signature(cpu).unwrap()).unwrap();
                    assert_eq!(hex(&ours), theirs.get_hex_ld(), "{} {cpu} {vcpus}", rom.display());
                }
            }
        }
    }

    #[test]
    fn sev_snp_measure_computes_the_same_digests() {
        let program = std::env::var("PARMA_SEV_SNP_MEASURE").unwrap_or("sev-snp-measure".to_string());
        if Command::new(&program).arg("--help").output().is_err() {
            eprintln!("skipped: no sev-snp-measure; run `cargo xtask test`");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let agree = |rom: &Path, cpu: &str, vcpus: u32| {
            let output = Command::new(&program)
                .args(["--mode", "snp", "--vmm-type", "QEMU", "--guest-features", "0x1"])
                .args(["--vcpu-type", cpu, "--vcpus", &vcpus.to_string(), "--ovmf"])
                .arg(rom)
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let ours = launch_digest(&fs::read(rom).unwrap(), vcpus, signature(cpu).unwrap()).unwrap();
            assert_eq!(hex(&ours), String::from_utf8(output.stdout).unwrap().trim(), "{}", rom.display());
        };
        // Its start takes longer than its work, so what it is asked is each processor and each number once for each ROM.
        for rom in roms(dir.path()) {
            for (cpu, vcpus) in
                ["EPYC-v4", "EPYC-Rome", "EPYC-Milan", "EPYC-Genoa"].into_iter().zip([1, 2, 3, 4])
            {
                agree(&rom, cpu, vcpus);
            }
            (5..=8).for_each(|vcpus| agree(&rom, "EPYC-v4", vcpus));
        }
    }

    #[test]
    fn one_bit_anywhere_changes_the_digest() {
        let rom = ours();
        let digest = launch_digest(&rom, 1, 0x0080_0f12).unwrap();
        for at in [0, 4096, ROM_SIZE / 2, rom::SLOT_OFFSET, ROM_SIZE - 1] {
            let mut changed = rom.clone();
            changed[at] ^= 1;
            assert_ne!(launch_digest(&changed, 1, 0x0080_0f12).unwrap(), digest, "{at}");
        }
        assert_ne!(launch_digest(&rom, 2, 0x0080_0f12).unwrap(), digest);
        assert_ne!(launch_digest(&rom, 1, 0x00a0_0f11).unwrap(), digest);
    }

    #[test]
    fn a_rom_that_qemu_would_refuse_is_refused() {
        let rom = ours();
        let refused = |rom: &[u8]| launch_digest(rom, 1, 0).unwrap_err();
        assert_eq!(refused(&[]), Error::Size);
        assert_eq!(refused(&rom[1..]), Error::Size);
        assert_eq!(refused(&vec![0; ROM_SIZE]), Error::Table);
        assert_eq!(launch_digest(&rom, 0, 0), Err(Error::Processors));
        assert_eq!(launch_digest(&rom, MAX_VCPUS + 1, 0), Err(Error::Processors));
        let changed = |at: usize, to: u8| {
            let mut rom = rom.clone();
            rom[at] = to;
            rom
        };
        let metadata = rom::SLOT_OFFSET + 0xa0;
        assert_eq!(refused(&changed(metadata, b'X')), Error::Metadata);
        assert_eq!(refused(&changed(metadata + 4, 51)), Error::Metadata);
        assert_eq!(refused(&changed(metadata + 12, 4)), Error::Metadata);
        assert_eq!(refused(&changed(metadata + 16, 1)), Error::Section);
        assert_eq!(refused(&changed(metadata + 24, 9)), Error::Section);
        assert_eq!(refused(&changed(ROM_SIZE - 0x32 - 1, 0)), Error::ResetBlock);
    }

    #[test]
    fn only_known_processors_have_a_signature() {
        assert_eq!(signature("EPYC-v4"), Some(0x0080_0f12));
        assert_eq!(signature("EPYC-Milan"), Some(0x00a0_0f11));
        for other in ["", "EPYC-", "EPYC-v", "EPYC-v0", "EPYC-v10", "EPYC-vv1", "epyc", "max", "-v1"] {
            assert_eq!(signature(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_tables_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300) {
            let mut rom = ours();
            let start = ROM_SIZE - 0x32 - at.max(tail.len());
            rom[start..start + tail.len()].copy_from_slice(&tail);
            let _ = entry(&rom, &rom::METADATA);
            if let Ok(metadata) = Metadata::new(&rom) {
                for index in 0..metadata.count {
                    let _ = metadata.section(index);
                }
            }
        }
    }
}
