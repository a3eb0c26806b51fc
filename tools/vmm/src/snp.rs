//! SNP hosts: what one has and lacks, and what QEMU is told beyond the ordinary command line.
//!
//! Source: QEMU `docs/system/i386/amd-memory-encryption.rst`, `qapi/qom.json` (`SevSnpGuestProperties`).

use crate::id_block::IdBlock;
use crate::image::CPU;
use crate::qemu;
use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::ffi::OsString;
use std::fs::{self, File};
use std::process::Command;

/// The first QEMU with SNP guests.
const LEAST_QEMU: (u32, u32) = (9, 1);
/// POLICY: simultaneous multithreading allowed (bit 16), reserved and one (bit 17); no debugging, no migration agent.
pub const POLICY: u32 = 0x3_0000;

/// One thing that an SNP host needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub what: &'static str,
    /// Whether it is there.
    pub there: bool,
    /// What was seen.
    pub seen: String,
    /// What to do where it is not there.
    pub remedy: &'static str,
}

/// Looks at this host: the processor, its kernel, QEMU.
#[must_use]
pub fn check() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let opens = |path: &str| {
        let opened = File::options().read(true).write(true).open(path);
        (opened.is_ok(), opened.err().map_or("can be opened".to_owned(), |error| error.to_string()))
    };
    let cpuinfo = read("/proc/cpuinfo");
    let module = read("/sys/module/kvm_amd/parameters/sev_snp");
    let (kvm, kvm_seen) = opens("/dev/kvm");
    let (sev, sev_seen) = opens("/dev/sev");
    let (vsock, vsock_seen) = opens("/dev/vhost-vsock");
    let program = |argument: &[&str]| {
        let output = Command::new(qemu::PROGRAM).args(argument).output().ok();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    let version = program(&["--version"]);
    let objects = program(&["-object", "help"]);
    let flag = has_flag(&cpuinfo, "sev_snp");
    vec![
        Finding {
            what: "the processor has SEV-SNP",
            there: flag,
            seen: format!("sev_snp is {}in /proc/cpuinfo", if flag { "" } else { "not " }),
            remedy: "use an AMD EPYC of the third generation or later, and turn SEV-SNP on in its firmware set-up",
        },
        Finding {
            what: "KVM can be used",
            there: kvm,
            seen: format!("/dev/kvm: {kvm_seen}"),
            remedy: "load kvm_amd, and let this user open /dev/kvm",
        },
        Finding {
            what: "KVM runs SNP guests",
            there: matches!(module.trim(), "Y" | "1"),
            seen: format!("kvm_amd.sev_snp is {:?}", module.trim()),
            remedy: "use Linux 6.11 or later with CONFIG_KVM_AMD_SEV, and start it with kvm_amd.sev_snp=1",
        },
        Finding {
            what: "the secure processor can be reached",
            there: sev,
            seen: format!("/dev/sev: {sev_seen}"),
            remedy: "load the module ccp, and let this user open /dev/sev",
        },
        Finding {
            what: "QEMU is 9.1 or later",
            there: parse_version(&version).is_some_and(|version| version >= LEAST_QEMU),
            seen: version.lines().next().unwrap_or("no qemu-system-x86_64").to_owned(),
            remedy: "install a newer qemu-system-x86",
        },
        Finding {
            what: "QEMU has SNP guests",
            there: objects.lines().any(|line| line.trim() == "sev-snp-guest"),
            seen: "-object help".to_owned(),
            remedy: "install a qemu-system-x86 that is built with SEV-SNP",
        },
        Finding {
            what: "guests have vsock",
            there: vsock,
            seen: format!("/dev/vhost-vsock: {vsock_seen}"),
            remedy: "load vhost_vsock, and let this user open /dev/vhost-vsock",
        },
    ]
}

/// Whether SNP guests can run here.
///
/// # Errors
/// They cannot: each thing that is missing, and what to do.
pub fn require() -> Result<()> {
    let missing: Vec<String> = check()
        .into_iter()
        .filter(|finding| !finding.there)
        .map(|finding| format!("\n  not: {} ({}): {}", finding.what, finding.seen, finding.remedy))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "this image is for SEV-SNP hardware, and this host cannot run it:{}\n\
         for a machine without SNP, build another one with `cargo xtask image --emulated`",
        missing.concat()
    );
}

/// The machine of an SNP guest without its devices.
#[must_use]
pub fn base(memory_mib: u32, vcpus: u32, host_data: &[u8; 32], id_block: Option<&IdBlock>) -> Vec<OsString> {
    let host_data = STANDARD.encode(host_data);
    let id_block = id_block.map(IdBlock::properties).unwrap_or_default();
    let text = [
        "-nodefaults -no-user-config -no-reboot -display none -accel kvm".to_owned(),
        format!("-cpu {CPU} -smp {vcpus} -m {memory_mib}M"),
        "-machine q35,confidential-guest-support=sev0,memory-backend=ram0,kernel-irqchip=split,vmport=off,hpet=off,sata=off,smbus=off,usb=off,graphics=off".to_owned(),
        "-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off".to_owned(),
        // Devices reach only what the guest shares with them.
        "-global virtio-device.iommu_platform=on".to_owned(),
        format!("-object memory-backend-memfd,id=ram0,size={memory_mib}M,share=true,prealloc=false"),
        format!("-object sev-snp-guest,id=sev0,cbitpos=51,reduced-phys-bits=1,policy={POLICY:#x},host-data={host_data}{id_block}"),
    ];
    text.iter().flat_map(|part| part.split(' ')).map(OsString::from).collect()
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(": "));
    flags.is_some_and(|(_, flags)| flags.split(' ').any(|word| word == flag))
}

/// Major and minor of `QEMU emulator version 7.2.22 (…)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("version ")?;
    let mut numbers = rest.split(['.', ' ', '(']).map(|number| number.trim().parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{self, Disk, Place};
    use crate::id_block::{self, tests::parts};
    use crate::{Config, Image, vsock};
    use parma_firmware::rom;
    use parma_guest::gate::fields::Serial;
    use serde_json::{Value, json};
    use std::ffi::OsStr;
    use std::io::Write as _;
    use std::path::Path;
    use std::process::Stdio;

    #[test]
    fn the_command_line_binds_the_policy_and_lets_nobody_debug() {
        let line: Vec<_> =
            base(512, 2, &[0xff; 32], None).into_iter().map(|word| word.into_string().unwrap()).collect();
        let after = |word: &str| line[line.iter().position(|found| found == word).unwrap() + 1].clone();
        assert_eq!((after("-accel"), after("-cpu"), after("-smp")), ("kvm".into(), CPU.into(), "2".into()));
        let guest = line.iter().find(|word| word.starts_with("sev-snp-guest,")).unwrap();
        assert!(guest.ends_with(&format!("policy=0x30000,host-data={}8=", "/".repeat(42))), "{guest}");
        assert!(line.contains(&"virtio-device.iommu_platform=on".to_owned()));
    }

    /// QEMU 9.1 or later, which knows SNP guests; it needs no hardware to say what it thinks of an argument.
    fn newer_qemu() -> Option<OsString> {
        let program = std::env::var_os("PARMA_NEWER_QEMU");
        if program.is_none() {
            eprintln!("skipped: PARMA_NEWER_QEMU names no QEMU; run `cargo xtask test`");
        }
        program
    }

    /// All that `parma run` tells QEMU of an SNP guest but for its sockets: machine, image, ports, a disk.
    fn whole_line(dir: &Path) -> Vec<String> {
        let file = |name: &str, size: usize| {
            std::fs::write(dir.join(name), vec![0; size]).unwrap();
            dir.join(name)
        };
        let mut rom = vec![0; rom::ROM_SIZE - rom::RESET_SIZE - rom::TAIL_SIZE];
        rom.extend(rom::tail());
        rom.resize(rom::ROM_SIZE, 0);
        std::fs::write(dir.join("rom"), rom).unwrap();
        let image = Image {
            rom: dir.join("rom"),
            kernel: file("bzImage", 512),
            initrd: file("initrd", 512),
            command_line: file("cmdline", 64),
            emulated: false,
            id_block: None,
        };
        // It has to be for this launch, like the one that `cargo xtask sign` makes.
        let digest = image.measurement(VCPUS).unwrap();
        for (name, bytes) in id_block::FILES.into_iter().zip(parts(digest.0)) {
            std::fs::write(dir.join(name), STANDARD.encode(bytes)).unwrap();
        }
        let image = Image { id_block: IdBlock::open(dir).unwrap(), ..image };
        let config = Config { vcpus: VCPUS, ..Config::new(image, [0xa5; 32]) };
        let mut line = config.snp_command_line().unwrap();
        line.extend(disk::hot_ports(2));
        let disk = Disk::layer(&file("disk", 4096), Serial::parse("layer0").unwrap());
        let words = [
            "-add-fd".to_owned(),
            format!("fd={DISK_FD},set={DISK_FD}"),
            "-blockdev".to_owned(),
            disk.node("node0", DISK_FD).unwrap().to_string(),
            "-device".to_owned(),
            disk.device("disk0", "node0", &Place::cold(0)).to_string(),
        ];
        line.extend(words.map(OsString::from));
        line.into_iter().skip(1).map(|word| word.into_string().unwrap()).collect()
    }

    const DISK_FD: i64 = 9;
    const VCPUS: u32 = 2;

    /// What QEMU says to this command line and these requests, and whether it ended well.
    fn ask(qemu: &OsStr, dir: &Path, line: &[String], requests: &[Value]) -> (bool, String, String) {
        let mut child = Command::new("sh")
            .args(["-c", &format!("exec timeout 120 \"$@\" {DISK_FD}<disk"), "sh"])
            .arg(qemu)
            .args(line)
            .args(["-S", "-qmp", "stdio"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        for request in
            [&[json!({"execute": "qmp_capabilities"})], requests, &[json!({"execute": "quit"})]].concat()
        {
            // A QEMU that refused its arguments reads nothing.
            let _ = writeln!(stdin, "{request}");
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    #[test]
    fn a_newer_qemu_understands_the_whole_command_line() {
        let Some(qemu) = newer_qemu() else { return };
        let dir = tempfile::tempdir().unwrap();
        let mut line = whole_line(dir.path());
        // As it stands: it is the hardware that is missing, or, on a host that has it, nothing.
        let (well, _, errors) = ask(&qemu, dir.path(), &line, &[]);
        let hardware = ["SEV-SNP", "SNP", "KVM", "/dev/kvm", "/dev/sev"];
        assert!(well || hardware.iter().any(|word| errors.contains(word)), "{errors}");
        assert!(!errors.contains("roperty") && !errors.contains("nvalid parameter"), "{errors}");

        // Without the need for hardware: every device is made, and the guest object holds what was asked for.
        for word in &mut line {
            *word = word.replace("confidential-guest-support=sev0,", "");
            if word == "kvm" {
                *word = "tcg".to_owned();
            }
        }
        let get = |property: &str| json!({"execute": "qom-get", "arguments": {"path": "/objects/sev0", "property": property}});
        let properties = ["policy", "host-data", "cbitpos", "author-key-enabled", "id-block", "id-auth"];
        let (well, answers, errors) = ask(&qemu, dir.path(), &line, &properties.map(get));
        assert!(well, "{errors}");
        let signed = id_block::FILES.map(|name| std::fs::read_to_string(dir.path().join(name)).unwrap());
        let host_data = STANDARD.encode([0xa5; 32]);
        for answer in
            [json!(POLICY), json!(host_data), json!(51), json!(true), json!(signed[0]), json!(signed[1])]
        {
            assert!(answers.contains(&json!({"return": answer}).to_string().replace(':', ": ")), "{answers}");
        }
    }

    /// The kernel's vsock needs a device of the host's, so QEMU is asked for the properties of its own.
    #[test]
    fn a_newer_qemu_has_every_property_of_the_vsock_device() {
        let Some(qemu) = newer_qemu() else { return };
        let output = Command::new(qemu).args(["-device", "vhost-vsock-pci,help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let device = vsock::kernel_device(3);
        let (name, properties) = device.split_once(',').unwrap();
        assert!(name == "vhost-vsock-pci" && properties.contains("guest-cid=3"), "{device}");
        for property in properties.split(',').map(|property| property.split_once('=').unwrap().0) {
            assert!(
                help.lines().any(|line| line.trim_start().starts_with(&format!("{property}="))),
                "{property}: {help}"
            );
        }
    }

    /// The twin: an argument that is wrong is one that this QEMU names.
    #[test]
    fn a_newer_qemu_refuses_what_is_misspelt() {
        let Some(qemu) = newer_qemu() else { return };
        let dir = tempfile::tempdir().unwrap();
        let line = whole_line(dir.path());
        for word in
            ["host-data", "confidential-guest-support", "reduced-phys-bits", "id-block", "author-key-enabled"]
        {
            let wrong = &word[..word.len() - 1];
            let line: Vec<_> = line.iter().map(|argument| argument.replace(word, wrong)).collect();
            let (well, _, errors) = ask(&qemu, dir.path(), &line, &[]);
            assert!(!well && errors.contains(wrong) && !errors.contains("KVM"), "{word}: {errors}");
        }
    }

    #[test]
    fn versions_and_flags_are_read() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2)"), Some((7, 2)));
        assert_eq!(parse_version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(parse_version("no QEMU"), None);
        assert!(has_flag("model name\t: x\nflags\t\t: fpu sev_snp sev\n", "sev_snp"));
        assert!(!has_flag("flags\t\t: fpu sev_snp_more\n", "sev_snp") && !has_flag("", "sev_snp"));
    }
}
