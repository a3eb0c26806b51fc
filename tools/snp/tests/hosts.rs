//! The unmodified ROM as an SNP guest of an honest host and of hostile ones. Needs `PARMA_IMAGE`, an image.
//!
//! Each hostile host is one lie. What is shown: the guest ends itself, and Linux is not started. The model checks in every
//! run that the guest breaks no rule of its own (see `parma_snp`), and at the end that each page that Linux gets is the guest's,
//! valid, and was validated once.

use parma_firmware::reason::Reason;
use parma_firmware::rom::{self, ROM_BASE};
use parma_snp::{C_BIT, Change, Config, Ended, Host, Report, Swap, run};
use std::path::PathBuf;

const NAMES: [&str; 3] = ["opt/parma/kernel", "opt/parma/initrd", "opt/parma/cmdline"];
const FOUR_GIB: u64 = 1 << 32;
const MIB: u64 = 1 << 20;
/// Memory of the machines here, unless the test is about it.
const MEMORY: u64 = 96;

/// The image under this host, up to the start of Linux.
fn config(host: Host) -> Option<Config> {
    let Some(image) = std::env::var_os("PARMA_IMAGE").map(PathBuf::from) else {
        eprintln!("skipped: PARMA_IMAGE names no image; run `cargo xtask test`");
        return None;
    };
    let read = |name: &str| std::fs::read(image.join(name)).unwrap();
    let files =
        NAMES.map(str::to_owned).into_iter().zip(["bzImage", "initrd", "cmdline"].map(read)).collect();
    Some(Config { rom: read("rom"), files, memory_mib: MEMORY, host, until: None })
}

/// The same with a command line that lets Linux talk, up to the init.
fn talkative(host: Host) -> Option<Config> {
    let mut config = config(host)?;
    let line = String::from_utf8(config.files[2].1.clone()).unwrap().replace(" quiet", "");
    config.files[2].1 = line.into_bytes();
    let digests = [0, 1, 2].map(|index: usize| rom::digest(&config.files[index].1));
    rom::patch(&mut config.rom, &digests).unwrap();
    config.until = Some("Run /init as init process".to_owned());
    Some(config)
}

fn linux_starts(config: &Config) -> Report {
    let report = run(config).unwrap();
    assert_eq!(report.ended, Ended::Linux, "{report:?}");
    // Each file once: there is no second answer that could differ from the one that was verified.
    assert_eq!(report.reads, NAMES, "{report:?}");
    report
}

/// The guest ends itself for this reason, whether the console shows it or not.
fn refused(host: Host, reason: Reason) {
    let Some(config) = config(host) else { return };
    let report = run(&config).unwrap();
    assert_eq!(report.ended, Ended::Refused(reason as u8), "{report:?}");
    if !report.firmware.is_empty() {
        assert_eq!(report.firmware, format!("firmware: {}\r\n", reason.text()));
    }
}

fn dies(host: Host) {
    let Some(config) = config(host) else { return };
    let report = run(&config).unwrap();
    assert_eq!(report.ended, Ended::TripleFault, "{report:?}");
}

#[test]
fn linux_runs_on_an_honest_host() {
    let Some(mut config) = talkative(Host::default()) else { return };
    config.memory_mib = 256;
    let report = linux_starts(&config);
    assert_eq!(report.registers, [(0x2ff, 0x806)]);
    assert!(!report.linux.contains("ACPI:"), "{}", report.linux);
}

#[test]
fn memory_above_4_gib_is_taken() {
    let Some(mut config) = config(Host::default()) else { return };
    config.memory_mib = 5 << 10;
    linux_starts(&config);
}

#[test]
fn a_host_with_small_pages_only_is_served() {
    let Some(mut config) = config(Host { small_pages: true, ..Host::default() }) else { return };
    config.memory_mib = 64;
    let report = linux_starts(&config);
    // All but what the launch validated, each once; and the large ones that were tried first.
    assert!(report.validations > 63 * 256, "{report:?}");
}

#[test]
fn a_host_that_changes_pages_little_by_little_is_served() {
    let Some(config) = config(Host { change: Change::Some(7), ..Host::default() }) else { return };
    linux_starts(&config);
}

#[test]
fn what_the_host_writes_to_the_window_after_the_copy_has_no_effect() {
    let Some(config) = talkative(Host { swap: Some(Swap::AfterTheCopy), ..Host::default() }) else { return };
    linux_starts(&config);
}

#[test]
fn a_kernel_exchanged_after_the_transfer_is_refused() {
    refused(Host { swap: Some(Swap::BeforeTheCopy), ..Host::default() }, Reason::Kernel);
}

#[test]
fn b02_a_file_that_is_not_the_images_is_refused() {
    for (index, reason) in [Reason::Kernel, Reason::Initrd, Reason::CommandLine].into_iter().enumerate() {
        let Some(mut config) = config(Host::default()) else { return };
        *config.files[index].1.last_mut().unwrap() ^= 1;
        let report = run(&config).unwrap();
        assert_eq!(report.ended, Ended::Refused(reason as u8), "{report:?}");
        assert_eq!(report.firmware, format!("firmware: {}\r\n", reason.text()));
    }
}

#[test]
fn a_hypervisor_of_another_protocol_is_refused() {
    for versions in [(1, 1), (9, 3), (0, 0)] {
        refused(Host { versions, ..Host::default() }, Reason::Protocol);
    }
}

#[test]
fn a_hypervisor_that_names_another_c_bit_is_refused() {
    refused(Host { c_bit: C_BIT - 1, ..Host::default() }, Reason::Protocol);
}

#[test]
fn a_hypervisor_without_snp_is_refused() {
    refused(Host { features: !1, ..Host::default() }, Reason::Features);
}

#[test]
fn a_hypervisor_that_takes_another_ghcb_is_refused() {
    refused(Host { takes_ghcb: false, ..Host::default() }, Reason::Register);
}

#[test]
fn an_exit_that_is_answered_with_an_exception_is_refused() {
    refused(Host { answer: 1, ..Host::default() }, Reason::Denied);
    refused(Host { answer: 2, ..Host::default() }, Reason::Denied);
}

#[test]
fn a_processor_that_is_not_an_snp_guest_but_has_its_cpuid_page_is_not_used() {
    for sev_status in [0x0, 0x1, 0x3, 0x5] {
        dies(Host { sev_status, ..Host::default() });
    }
}

#[test]
fn features_of_the_processor_that_change_what_snp_means_are_refused() {
    // Virtual top of memory, reflected #VC, restricted injection, alternate injection.
    for bit in 3..=6 {
        dies(Host { sev_status: 0x7 | 1 << bit, ..Host::default() });
    }
}

#[test]
fn an_snp_guest_without_a_cpuid_page_ends() {
    dies(Host { cpuid: Host::cpuid_page(&[]), ..Host::default() });
}

#[test]
fn a_cpuid_page_that_lies_about_itself_ends_the_guest() {
    let mut too_many = Host::cpuid_page(&[(0x8000_001f, [0x1f, C_BIT, 0, 0])]);
    too_many[0] = 65;
    dies(Host { cpuid: too_many, ..Host::default() });
    // No leaf with the C-bit; a C-bit in the part of an entry that holds flags and low addresses.
    dies(Host {
        cpuid: Host::cpuid_page(&[(1, [0; 4]), (0x8000_0000, [0x8000_0023, 0, 0, 0])]),
        ..Host::default()
    });
    dies(Host { cpuid: Host::cpuid_page(&[(0x8000_001f, [0x1f, 31, 0, 0])]), ..Host::default() });
}

#[test]
fn a_cpuid_page_with_another_c_bit_is_not_enough_to_make_memory_shared() {
    let cpuid = Host::cpuid_page(&[(0x8000_001f, [0x1f, C_BIT - 1, 0, 0])]);
    refused(Host { cpuid, ..Host::default() }, Reason::Protocol);
}

#[test]
fn pages_that_the_host_does_not_change_are_refused() {
    for change in [Change::Refuse, Change::Never, Change::Grow] {
        refused(Host { change, ..Host::default() }, Reason::Denied);
    }
}

#[test]
fn a_host_that_only_says_that_it_changed_pages_gets_nothing() {
    let Some(config) = config(Host { change: Change::Claim, ..Host::default() }) else { return };
    let report = run(&config).unwrap();
    // The first page that it should share is not shared: on hardware, a fault that never ends.
    assert!(matches!(report.ended, Ended::Violation(_)), "{report:?}");
}

#[test]
fn a_page_that_is_valid_already_is_refused() {
    // In the first MiB, in a large page, in the last page, and in the window.
    for page in [0x1000, 0x9_f000, 32 * MIB, MEMORY * MIB - 0x1000, 0x5f_f000] {
        refused(Host { valid_before: Some(page), ..Host::default() }, Reason::AlreadyValid);
    }
}

#[test]
fn a_memory_map_that_lies_is_refused() {
    let low = (0, MEMORY * MIB, 1);
    for lie in [
        vec![low, low],
        vec![low, (MEMORY * MIB - 0x1000, MIB, 1)],
        vec![low, (MIB, MIB, 2)],
        vec![(0, 0xa_0000, 1), (0x10_0000, MEMORY * MIB, 1)],
        vec![(0x1000, MEMORY * MIB, 1)],
        vec![(0, 32 * MIB, 1)],
        vec![low, (ROM_BASE, 0x1_0000, 1)],
        vec![low, (FOUR_GIB - MIB, 2 * MIB, 1)],
        vec![low, (FOUR_GIB, 1 << 40, 1)],
        vec![low, (FOUR_GIB, u64::MAX, 1)],
        vec![low, (FOUR_GIB, 0, 1)],
        vec![low, (FOUR_GIB, 0x1001, 1)],
        vec![low, (FOUR_GIB, MIB, 7)],
    ] {
        refused(Host { e820: Some(Host::e820(&lie)), ..Host::default() }, Reason::Map);
    }
    refused(Host { e820: Some(Host::e820(&[low; 33])), ..Host::default() }, Reason::MapSize);
    refused(Host { e820: Some(Host::e820(&[low])[1..].to_vec()), ..Host::default() }, Reason::Map);
}

#[test]
fn memory_that_the_map_has_and_the_host_has_not_is_not_used() {
    let e820 = Host::e820(&[(0, MEMORY * MIB, 1), (FOUR_GIB, 1 << 30, 1)]);
    let Some(config) = config(Host { e820: Some(e820), ..Host::default() }) else { return };
    let report = run(&config).unwrap();
    assert!(matches!(report.ended, Ended::Violation(_)), "{report:?}");
}

#[test]
fn sizes_of_files_that_lie_are_refused() {
    let sized = |name: &str, size: u32| Host { sizes: vec![(name.to_owned(), size)], ..Host::default() };
    refused(sized("etc/e820", 0), Reason::Map);
    refused(sized("etc/e820", u32::MAX), Reason::MapSize);
    refused(sized(NAMES[0], 0), Reason::Kernel);
    refused(sized(NAMES[0], 100), Reason::Kernel);
    refused(sized(NAMES[0], 9 << 20), Reason::Kernel);
    refused(sized(NAMES[0], u32::MAX), Reason::KernelSize);
    refused(sized(NAMES[1], 0), Reason::Initrd);
    refused(sized(NAMES[1], u32::MAX), Reason::InitrdPlace);
    refused(sized(NAMES[2], 1), Reason::CommandLine);
    refused(sized(NAMES[2], 4096), Reason::CommandLineSize);
}

#[test]
fn a_directory_that_lies_is_refused() {
    refused(Host { count: Some(129), ..Host::default() }, Reason::Directory);
    refused(Host { count: Some(u32::MAX), ..Host::default() }, Reason::Directory);
    refused(Host { count: Some(0), ..Host::default() }, Reason::Missing);
    let twice = vec![(NAMES[0].to_owned(), b"another kernel".to_vec())];
    refused(Host { files: twice, ..Host::default() }, Reason::Missing);
}

#[test]
fn a_device_that_fails_is_refused() {
    refused(Host { device_fails: true, ..Host::default() }, Reason::Device);
}

#[test]
fn a_number_of_processors_that_lies_is_refused() {
    for processors in [0, 65, u16::MAX] {
        refused(Host { processors, ..Host::default() }, Reason::Processors);
    }
}

/// Assembly reads this page before any Rust runs. Pages at random, most of them nearly right, against a reading of the same page here.
#[test]
fn any_cpuid_page_is_read_as_it_stands_or_ends_the_guest() {
    const LEAF: u32 = 0x8000_001f;
    let mut number = 1u64;
    let mut below = |limit: u64| {
        number = number.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (number >> 33) % limit
    };
    for _ in 0..16 {
        let mut leaves = Vec::new();
        for index in 0..below(6) {
            let c_bit = [C_BIT, C_BIT, C_BIT - 1, 31][below(4) as usize];
            leaves.push(([LEAF, 1, 0x8000_0000, LEAF - 1][below(4) as usize], [index as u32, c_bit, 0, 0]));
        }
        let mut cpuid = Host::cpuid_page(&leaves);
        // The count need not be that of the leaves.
        if below(3) == 0 {
            cpuid[0] = [0, 1, 64, 65, 255][below(5) as usize];
        }
        let count = u32::from_le_bytes(cpuid[..4].try_into().unwrap()) as usize;
        let entry = |at: usize| u32::from_le_bytes(cpuid[at..at + 4].try_into().unwrap());
        let found = (0..count.min(64)).map(|index| 0x10 + 48 * index).find(|at| entry(*at) == LEAF);
        let c_bit = found.filter(|_| count <= 64).map(|at| entry(at + 0x1c) & 0x3f);
        let expected = match c_bit {
            Some(C_BIT) => Ended::Linux,
            Some(32..) => Ended::Refused(Reason::Protocol as u8),
            _ => Ended::TripleFault,
        };
        let Some(config) = config(Host { cpuid, ..Host::default() }) else { return };
        let report = run(&config).unwrap();
        assert_eq!(report.ended, expected, "{leaves:x?} {count}: {report:?}");
    }
}
