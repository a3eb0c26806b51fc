//! The image's second form: an IGVM file, which holds every page of the launch instead of leaving QEMU to make them from the
//! ROM. Kernel, initrd and command line are beside it as ever: the ROM's pages hold their digests.
//!
//! It is for one processor, whose state is part of it. Loaders differ in what they ask of the PSP for a page without content, so
//! each page has its content here, zeros too. QEMU boots such a file from 10.1 on if it is built with libigvm, which Debian's is not.
//!
//! Source: the `igvm_defs` crate, which is the format's specification.

use anyhow::{Context, Result, anyhow};
use igvm::snp_defs::SevVmsa;
use igvm::{IgvmDirectiveHeader, IgvmFile, IgvmInitializationHeader, IgvmPlatformHeader, IgvmRevision};
use igvm_defs::{IGVM_VHS_SUPPORTED_PLATFORM, IgvmPageDataFlags, IgvmPageDataType, IgvmPlatformType};
use parma_firmware::measure::{self, PAGE, Page};
use parma_vmm::snp::POLICY;
use zerocopy::FromBytes;

/// The one platform of the file.
const SNP: u32 = 1;

/// The file that launches this ROM on one processor with this signature.
pub fn file(rom: &[u8], signature: u32) -> Result<Vec<u8>> {
    let platform = IgvmPlatformHeader::SupportedPlatform(IGVM_VHS_SUPPORTED_PLATFORM {
        compatibility_mask: SNP,
        highest_vtl: 0,
        platform_type: IgvmPlatformType::SEV_SNP,
        platform_version: igvm_defs::IGVM_SEV_SNP_PLATFORM_VERSION,
        shared_gpa_boundary: 0,
    });
    let policy = IgvmInitializationHeader::GuestPolicy { policy: POLICY.into(), compatibility_mask: SNP };
    let mut directives = Vec::new();
    measure::launch(rom, 1, signature, |gpa, page| directives.push(directive(gpa, page)))?;
    let directives = directives.into_iter().collect::<Option<_>>().context("a save area is too small")?;
    let mut bytes = Vec::new();
    IgvmFile::new(IgvmRevision::V1, vec![platform], vec![policy], directives)
        .and_then(|file| file.serialize(&mut bytes))
        .map_err(|error| anyhow!("the pages make no IGVM file: {error}"))?;
    Ok(bytes)
}

fn directive(gpa: u64, page: Page<'_>) -> Option<IgvmDirectiveHeader> {
    let (data_type, data) = match page {
        Page::Rom(content) => (IgvmPageDataType::NORMAL, content.to_vec()),
        Page::Memory => (IgvmPageDataType::NORMAL, vec![0; PAGE]),
        Page::Secrets => (IgvmPageDataType::SECRETS, Vec::new()),
        Page::Cpuid => (IgvmPageDataType::CPUID_DATA, Vec::new()),
        Page::SaveArea(content) => {
            let (vmsa, _) = SevVmsa::read_from_prefix(content).ok()?;
            let vmsa = Box::new(vmsa);
            return Some(IgvmDirectiveHeader::SnpVpContext {
                gpa,
                compatibility_mask: SNP,
                vp_index: 0,
                vmsa,
            });
        }
    };
    let flags = IgvmPageDataFlags::new();
    Some(IgvmDirectiveHeader::PageData { gpa, compatibility_mask: SNP, flags, data_type, data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use igvm::IgvmSerializer;
    use parma_firmware::rom;

    /// A ROM with our tables and something before them, and the one that `cargo xtask test` built.
    fn roms() -> Vec<Vec<u8>> {
        let mut rom: Vec<u8> = (0..rom::ROM_SIZE).map(|at| (at * 7 + at / 256) as u8).collect();
        rom[rom::SLOT_OFFSET..][..rom::TAIL_SIZE].copy_from_slice(&rom::tail());
        let mut roms = vec![rom];
        match std::env::var_os("PARMA_IMAGE") {
            Some(image) => roms.push(std::fs::read(std::path::Path::new(&image).join("rom")).unwrap()),
            None => eprintln!("skipped: the ROM of an image; run `cargo xtask test`"),
        }
        roms
    }

    #[test]
    fn the_igvm_crate_reads_the_file_and_measures_what_we_measure() {
        for rom in roms() {
            for (cpu, signature) in measure::CPUS {
                let bytes = file(&rom, signature).unwrap();
                let read = IgvmFile::new_from_binary(&bytes, Some(igvm::IsolationType::Snp)).unwrap();
                let serializer = IgvmSerializer::new(&read).unwrap();
                let theirs = serializer.measurement_for(IgvmPlatformType::SEV_SNP).unwrap();
                assert_eq!(theirs.digest, measure::igvm_digest(&rom, 1, signature).unwrap(), "{cpu}");
                // What QEMU makes of the ROM itself is another launch.
                assert_ne!(theirs.digest, measure::launch_digest(&rom, 1, signature).unwrap());
            }
        }
    }

    #[test]
    fn every_page_of_the_rom_and_of_the_firmwares_memory_is_in_the_file() {
        let rom = &roms()[0];
        let bytes = file(rom, 0x0080_0f12).unwrap();
        let read = IgvmFile::new_from_binary(&bytes, None).unwrap();
        let pages: Vec<_> = read
            .directives()
            .iter()
            .filter_map(|directive| match directive {
                IgvmDirectiveHeader::PageData { gpa, data_type, data, .. } => {
                    Some((*gpa, *data_type, data.clone()))
                }
                _ => None,
            })
            .collect();
        for (index, content) in rom.chunks(PAGE).enumerate() {
            let gpa = rom::ROM_BASE + (index * PAGE) as u64;
            assert!(pages.contains(&(gpa, IgvmPageDataType::NORMAL, content.to_vec())), "{gpa:#x}");
        }
        for gpa in (rom::RAM_START..rom::RAM_END).step_by(PAGE) {
            assert!(pages.contains(&(gpa.into(), IgvmPageDataType::NORMAL, vec![0; PAGE])), "{gpa:#x}");
        }
        for (gpa, kind) in
            [(rom::SECRETS_PAGE, IgvmPageDataType::SECRETS), (rom::CPUID_PAGE, IgvmPageDataType::CPUID_DATA)]
        {
            assert!(pages.contains(&(gpa.into(), kind, Vec::new())), "{gpa:#x}");
        }
        assert_eq!(read.directives().len(), pages.len() + 1, "and one processor");
    }
}
