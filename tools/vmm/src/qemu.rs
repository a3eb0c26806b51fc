//! QEMU's command line.
//!
//! Everything the guest does not need is off: no default devices, no user configuration, no display, no reboot (a reset
//! ends the process). Disks are in [`crate::disk`].

use crate::accel::Accel;
use crate::image::Image;
use crate::machine::Config;
use crate::snp;
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::path::Path;

/// The program.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// How to get it.
pub const REMEDY: &str = "install it with `apt-get install qemu-system-x86`";

/// The processor where it is emulated: all that QEMU can, but for what says that string instructions are fast a byte at a time
/// (ERMS, FSRM). Emulated they are not, and a kernel that believes it copies and clears memory at half the speed.
pub const EMULATED_CPU: &str = "max,-erms,-fsrm";

/// QEMU's emulation, all processors in one thread. With a thread for each, QEMU before 8.1 may translate code while another
/// processor changes it: a Linux that patches its own code then dies of an `int3` that is no longer there, once in hundreds of
/// boots. Source: LKML, "qemu-x86_64 booting with 8.0.0 stil see int3", July 2023.
const EMULATION: &str = "tcg,thread=single";

/// The machine without its devices. HOST_DATA and the ID block are for the secure processor, where there is one.
///
/// # Errors
/// The ID block is not for this launch.
pub fn base(accel: Accel, config: &Config) -> Result<Vec<OsString>> {
    let Config { image, host_data, memory_mib, vcpus, .. } = config;
    let (accel, cpu) = match accel {
        Accel::Snp => {
            if let Some(id_block) = &image.id_block {
                id_block.check(&image.measurement(*vcpus)?, *vcpus)?;
            }
            return Ok(snp::base(*memory_mib, *vcpus, host_data, image.id_block.as_ref()));
        }
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => (EMULATION, EMULATED_CPU),
    };
    let machine = "q35,memory-backend=ram0,vmport=off,hpet=off,sata=off,smbus=off,usb=off,graphics=off";
    let memory = format!("memory-backend-memfd,id=ram0,size={memory_mib}M,share=on");
    let vcpus = vcpus.to_string();
    let memory_size = format!("{memory_mib}M");
    let words = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-accel",
        accel,
        "-cpu",
        cpu,
        "-machine",
        machine,
        // Hot-plug as PCI Express has it, since the guest has no ACPI.
        "-global",
        "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
        "-object",
        &memory,
        "-m",
        &memory_size,
        "-smp",
        &vcpus,
    ];
    Ok(words.map(OsString::from).into())
}

/// What boots: the ROM, and the files that it verifies. QEMU's `-kernel` would rewrite the kernel's header.
///
/// # Errors
/// A path is not UTF-8.
pub fn boot(image: &Image) -> Result<Vec<OsString>> {
    let files = [("kernel", &image.kernel), ("initrd", &image.initrd), ("cmdline", &image.command_line)];
    let mut arguments = vec!["-bios".into(), image.rom.clone().into_os_string()];
    for (name, path) in files {
        arguments.push("-fw_cfg".into());
        arguments.push(file_option(&format!("name=opt/parma/{name},file="), path)?);
    }
    Ok(arguments)
}

/// An option of QEMU that ends in a path. In such options a comma is written twice.
///
/// # Errors
/// The path is not UTF-8.
pub fn file_option(prefix: &str, path: &Path) -> Result<OsString> {
    let path = path.to_str().with_context(|| format!("{}: QEMU needs paths in UTF-8", path.display()))?;
    Ok(format!("{prefix}{}", path.replace(',', ",,")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_does_not_end_the_option() {
        assert_eq!(file_option("file:", Path::new("/a,b=c")).unwrap(), "file:/a,,b=c");
    }
}
