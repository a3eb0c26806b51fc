//! The host changes what boots, or adds to it: attacks B01 and B02 on the real VM.

mod support;

use parma_guest::wire::{ExitStatus, Request};
use parma_policy::generate::GenerateOptions;
use parma_vmm::{Config, Image, Machine, Reply};
use std::os::unix::fs::FileExt;

use support::{Guest, LONG, Stage, Workload, arguments, id, memory_of, stage, with_command_line};

/// An address that only the firmware writes to: the page of the table of processors, between the table and its pointer.
const TARGET: u32 = 0x9_f800;
/// Where the pointer is, which shows that the right memory is looked at.
const POINTER: u64 = 0x9_fc00;
const MARK: [u8; 8] = *b"BadAML!!";

/// Byte code that writes [`MARK`] to [`TARGET`] as soon as an interpreter loads it: an OperationRegion in memory, a Field of
/// 64 bits in it, and a Store. Source: ACPI specification 6.5, chapter 20.
fn byte_code() -> Vec<u8> {
    let mut code = vec![0x5b, 0x80];
    code.extend(b"PMEM");
    code.extend([0x00, 0x0c]);
    code.extend(TARGET.to_le_bytes());
    code.extend([0x0a, 0x08]);
    code.extend([0x5b, 0x81, 0x0c]);
    code.extend(b"PMEM");
    code.push(0x04);
    code.extend(b"MARK");
    code.extend([0x40, 0x04]);
    code.extend([0x70, 0x0e]);
    code.extend(MARK);
    code.extend(b"MARK");
    code
}

fn echo(stage: &Stage) -> Workload {
    stage.workload("busybox", &["echo", "honest"], GenerateOptions::default())
}

/// The twin of everything here: what was attested boots, and the workload's container runs.
fn container_runs(guest: &Guest, workload: &Workload) {
    guest.accept(&workload.policy.image);
    let process = guest.run(workload, &id('1'), support::OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!((output.as_str(), status), ("honest\n", ExitStatus::Code(0)), "{}", guest.console());
}

/// A guest with further arguments of QEMU, whose kernel says what it does.
fn boot(stage: &Stage, workload: &Workload, host: &[&str]) -> Guest {
    let mut config = stage.config(workload.policy.host_data(), workload.disks());
    config.image = with_command_line(stage, |line| line.replace(" quiet", ""));
    config.vcpus = 2;
    config.extra_args = arguments(host);
    let mut machine = Machine::launch(&config).unwrap();
    let session = machine.session().unwrap();
    Guest { machine, session }
}

/// B01: BadAML (CCS 2025; CVE-2026-100839): the host's ACPI tables are code that a guest's kernel runs, and nothing measures
/// them.
#[test]
fn b01_byte_code_of_the_host_is_not_executed() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let table = stage.file("aml", &byte_code());
    let tables = ["SSDT", "DSDT"].map(|signature| format!("sig={signature},data={}", table.display()));
    let host = ["-name", "b01", "-acpitable", &tables[0], "-acpitable", &tables[1]];
    let guest = boot(&stage, &workload, &host);
    let memory = std::fs::File::open(memory_of("b01")).unwrap();
    let read = |at: u64| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    assert_eq!(read(POINTER)[..4], *b"_MP_");
    assert_eq!(read(TARGET.into()), [0; 8]);
    let console = guest.console();
    assert!(console.contains("Linux version") && !console.contains("ACPI: "), "{console}");
    // Processors are found without tables of the host.
    assert!(console.contains("Brought up 1 node, 2 CPUs"), "{console}");
    container_runs(&guest, &workload);
    assert_eq!(read(TARGET.into()), [0; 8]);
}

/// B02: everything else by which a host can hand something to a booting kernel without its being measured.
#[test]
fn b02_what_else_the_host_offers_has_no_effect() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let path = |name: &str, content: &[u8]| stage.file(name, content).display().to_string();
    let kernel = stage.image.kernel.display().to_string();
    let second = path("second-initrd", b"070701 of the host");
    let tree = path("tree.dtb", &[0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 40, 0, 0, 0, 40, 0, 0, 0, 40]);
    let files = ["setup_data", "boot_params", "cmdline.d", "kernels", "initrd2"]
        .map(|name| format!("name=opt/parma/{name},file={second}"));
    let mut host = vec!["-kernel", &kernel, "-initrd", &second, "-dtb", &tree];
    host.extend(["-append", "rdinit=/bin/sh from=the-host", "-smbios", "type=11,value=from-the-host"]);
    files.iter().for_each(|file| host.extend(["-fw_cfg", file.as_str()]));
    let guest = boot(&stage, &workload, &host);
    let console = guest.console();
    let line = std::fs::read_to_string(&stage.image.command_line).unwrap().replace(" quiet", "");
    let said = console.lines().find_map(|said| said.split_once("Command line: ")).expect("Linux says it").1;
    assert_eq!(said.trim_end(), line);
    for word in ["from=the-host", "from-the-host", "SMBIOS", "DMI:", "EFI", "setup_data"] {
        assert!(!console.contains(word), "{word}: {console}");
    }
    container_runs(&guest, &workload);
}

/// B02: a kernel, an initrd or a command line that the ROM does not name is not started.
#[test]
fn b02_a_changed_file_is_not_started() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    type Choose = fn(&mut Image) -> &mut std::path::PathBuf;
    let files: [(&str, Choose); 3] = [
        ("the kernel's digest", |image| &mut image.kernel),
        ("the initrd's digest", |image| &mut image.initrd),
        ("the command line's digest", |image| &mut image.command_line),
    ];
    for (reason, file) in files {
        let mut config = stage.config(workload.policy.host_data(), Vec::new());
        let path = file(&mut config.image);
        let mut content = std::fs::read(&*path).unwrap();
        *content.last_mut().unwrap() ^= 1;
        *path = stage.file("changed", &content);
        let console = ended(&config);
        assert!(console.contains(reason) && !console.contains("parma"), "{console}");
    }
    container_runs(&stage.boot(workload.policy.host_data(), workload.disks()), &workload);
}

/// B02: whoever makes the ROM start something else changes what the PSP reports.
#[test]
fn b02_another_command_line_is_another_measurement() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let measurement = |image: &Image| {
        let mut config = stage.config(workload.policy.host_data(), Vec::new());
        config.image = image.clone();
        let mut machine = Machine::launch(&config).unwrap();
        let session = machine.session().unwrap();
        let accepted = session.request(Request::SetPolicy { image: &workload.policy.image }).unwrap();
        let Ok(Reply::PolicyAccepted(report)) = accepted else { panic!("{accepted:?}") };
        report[parma_psp::layout::MEASUREMENT].to_vec()
    };
    let expected = stage.image.measurement(1).unwrap().0;
    assert_eq!(measurement(&stage.image), expected);
    let changed = with_command_line(&stage, |line| line.replace("panic=-1", "panic=-2"));
    assert_ne!(measurement(&changed), expected);
}

/// What a machine that ends by itself wrote to its console.
fn ended(config: &Config) -> String {
    let mut machine = Machine::launch(config).unwrap();
    let exit = machine.wait(LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?}");
    String::from_utf8_lossy(&machine.console().unwrap()).into_owned()
}

#[test]
fn the_byte_code_is_what_it_says() {
    let code = byte_code();
    assert_eq!(code.len(), 14 + 14 + 14);
    // PkgLength of the Field counts itself and what follows, up to the Store.
    let field = code.windows(2).position(|pair| pair == [0x5b, 0x81]).unwrap();
    assert_eq!(code[field + 2 + usize::from(code[field + 2])], 0x70);
}

/// What QEMU is told for SNP guests, as far as it means anything without SNP: devices that reach shared memory only.
#[test]
fn the_devices_of_an_snp_guest_work() {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let guest = boot(&stage, &workload, &["-global", "virtio-device.iommu_platform=on"]);
    container_runs(&guest, &workload);
}
