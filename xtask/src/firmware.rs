//! The ROM: the firmware as cargo builds it, laid out as QEMU maps it, with the digests of what it may start.

use crate::cache;
use crate::process::{self, Step};
use anyhow::{Context, Result, bail, ensure};
use parma_firmware::rom::{self, ROM_BASE, ROM_SIZE};
use parma_vmm::Image;
use std::path::Path;

/// Builds the firmware of a tree: a ROM that starts nothing yet. `flags` are the compiler's.
pub fn build(root: &Path, flags: &[String]) -> Result<Vec<u8>> {
    let target = root.join("target/guest");
    let step = Step::new("building the firmware", None);
    let _lock = cache::lock(&target)?;
    // An SNP guest cannot execute CPUID, so nothing may be chosen by it. BMI2 has a rotation that leaves the flags alone,
    // which is most of SHA-384: emulation computes flags at a cost. Every processor with SNP has it; others are asked.
    let ours = [r#"--cfg=sha2_backend="soft""#, "-Ctarget-feature=+bmi1,+bmi2"].map(String::from);
    let flags = [flags, &ours].concat();
    let built =
        process::bare_metal(root, &target, "firmware", ["parma-firmware", "firmware", "rom"], &flags)?;
    let rom = layout(&cache::read(&built)?).context("the firmware's segments")?;
    step.done();
    Ok(rom)
}

/// The ROM that starts these and nothing else.
pub fn patch(mut rom: Vec<u8>, kernel: &[u8], initrd: &[u8], command_line: &[u8]) -> Result<Vec<u8>> {
    let digests = [kernel, initrd, command_line].map(rom::digest);
    let size = rom.len();
    rom::patch(&mut rom, &digests).with_context(|| format!("a ROM of {size} bytes"))?;
    Ok(rom)
}

/// An image whose kernel, initrd or command line is another than the one its ROM was made for, with a new ROM in `dir`, which
/// must have none yet: it would be another image's.
pub fn with_rom_of_its_own(image: Image, dir: &Path) -> Result<Image> {
    let (kernel, initrd) = (cache::read(&image.kernel)?, cache::read(&image.initrd)?);
    let rom = patch(cache::read(&image.rom)?, &kernel, &initrd, &cache::read(&image.command_line)?)?;
    let path = dir.join("rom");
    ensure!(!path.exists(), "{} is another image's", path.display());
    cache::write(&path, &rom)?;
    Ok(Image { rom: path, ..image })
}

/// Puts every loaded segment of an ELF file where its physical address says.
fn layout(elf: &[u8]) -> Result<Vec<u8>> {
    const LOAD: u64 = 1;
    let number = |at: usize, size: usize| -> Result<u64> {
        let bytes = elf.get(at..at + size).context("the file ends early")?;
        Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        bail!("not a 64-bit little-endian ELF file");
    }
    let (table, count) = (usize::try_from(number(0x20, 8)?)?, usize::try_from(number(0x38, 2)?)?);
    let mut rom = vec![0; ROM_SIZE];
    for header in (0..count).map(|index| table + 56 * index) {
        let (kind, offset, address, size) =
            (number(header, 4)?, number(header + 8, 8)?, number(header + 24, 8)?, number(header + 32, 8)?);
        if kind != LOAD || size == 0 {
            continue;
        }
        let (offset, size) = (usize::try_from(offset)?, usize::try_from(size)?);
        let from = elf.get(offset..offset + size).context("a segment ends behind the file")?;
        let at = address.checked_sub(ROM_BASE).and_then(|at| usize::try_from(at).ok());
        let to = at.and_then(|at| rom.get_mut(at..)?.get_mut(..size));
        to.with_context(|| format!("a segment at {address:#x} is outside the ROM"))?.copy_from_slice(from);
    }
    Ok(rom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parma_firmware::rom::{DIGEST_SIZE, SLOT_OFFSET};
    use sha2::Digest as _;
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    /// The images that `cargo xtask test` built, unless this is a plain `cargo test`.
    fn image() -> Option<PathBuf> {
        let dir = std::env::var_os("PARMA_IMAGE").map(PathBuf::from);
        if dir.is_none() {
            eprintln!("skipped: run `cargo xtask test`");
        }
        dir
    }

    /// The console of a machine that starts from this ROM, until it ends by itself.
    fn boot(rom: &Path, [kernel, initrd, command_line]: &[PathBuf; 3], host: &[&str]) -> String {
        let file = |name: &str, path: &Path| format!("name=opt/parma/{name},file={}", path.display());
        let output = Command::new("timeout")
            .args(["--kill-after=5", "120", "qemu-system-x86_64", "-nodefaults", "-no-user-config"])
            .args(["-no-reboot", "-display", "none", "-accel", "tcg", "-cpu", "max", "-m", "256M"])
            .args(["-machine", "q35,vmport=off,sata=off,smbus=off,usb=off", "-serial", "stdio", "-bios"])
            .arg(rom)
            .args(["-fw_cfg", &file("kernel", kernel), "-fw_cfg", &file("initrd", initrd)])
            .args(["-fw_cfg", &file("cmdline", command_line)])
            .args(host)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn files(image: &Path) -> [PathBuf; 3] {
        ["bzImage", "initrd", "cmdline"].map(|name| image.join(name))
    }

    /// The image with a command line that lets the kernel talk, and the ROM for it.
    fn talkative(image: &Path, dir: &Path) -> (PathBuf, [PathBuf; 3]) {
        let mut files = files(image);
        let content = files.each_ref().map(|file| fs::read(file).unwrap());
        let command_line = String::from_utf8(content[2].clone()).unwrap().replace(" quiet", "");
        files[2] = dir.join("cmdline");
        fs::write(&files[2], &command_line).unwrap();
        let rom = fs::read(image.join("rom")).unwrap();
        let rom = patch(rom, &content[0], &content[1], command_line.as_bytes()).unwrap();
        fs::write(dir.join("rom"), rom).unwrap();
        (dir.join("rom"), files)
    }

    #[test]
    fn the_rom_starts_the_init_on_every_processor() {
        let Some(image) = image() else { return };
        let dir = tempfile::tempdir().unwrap();
        let (rom, files) = talkative(&image, dir.path());
        let console = boot(&rom, &files, &["-smp", "2"]);
        assert!(console.contains("Brought up 1 node, 2 CPUs"), "{console}");
        assert!(console.contains("Run /init as init process"), "{console}");
    }

    #[test]
    fn the_slot_holds_the_digests_of_the_three_files() {
        let rom = patch(vec![0; ROM_SIZE], b"kernel", b"initrd", b"command line").unwrap();
        for (index, content) in [b"kernel".as_slice(), b"initrd", b"command line"].iter().enumerate() {
            let at = SLOT_OFFSET + index * DIGEST_SIZE;
            assert_eq!(rom[at..at + DIGEST_SIZE], *sha2::Sha384::digest(content));
        }
        assert!(rom[..SLOT_OFFSET].iter().chain(&rom[SLOT_OFFSET + 3 * DIGEST_SIZE..]).all(|b| *b == 0));
    }

    #[test]
    fn a_segment_outside_the_rom_is_refused() {
        let elf = |address: u64| {
            let mut elf = vec![0; 0x80];
            elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
            elf[0x20] = 0x40;
            elf[0x38] = 1;
            elf[0x40] = 1;
            elf[0x58..0x60].copy_from_slice(&address.to_le_bytes());
            elf[0x60] = 4;
            elf
        };
        assert_eq!(layout(&elf(ROM_BASE + 16)).unwrap()[16..20], *b"\x7fELF");
        for address in [0, ROM_BASE - 1, (1 << 32) - 3, u64::MAX] {
            assert!(layout(&elf(address)).is_err(), "{address:#x}");
        }
        assert!(layout(b"").is_err());
    }
}
