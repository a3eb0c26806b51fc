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

/// B02: one way by which a host can hand something to a booting kernel without its being measured: what is made of it here
/// are arguments of QEMU. The guest boots as if it were not there; none of `words` is in its kernel's log.
fn has_no_effect(arguments: impl FnOnce(&Stage) -> Vec<String>, words: &[&str]) {
    let Some(stage) = stage() else { return };
    let workload = echo(&stage);
    let host = arguments(&stage);
    let guest = boot(&stage, &workload, &host.iter().map(String::as_str).collect::<Vec<_>>());
    let console = guest.console();
    let line = std::fs::read_to_string(&stage.image.command_line).unwrap().replace(" quiet", "");
    // Linux says it twice, and QEMU's serial line loses a byte now and then when its machine has much to do.
    let said: Vec<_> = console.lines().filter_map(|said| said.split_once("ommand line: ")).collect();
    assert!(said.iter().any(|(_, said)| said.trim_end() == line), "{line:?}: {said:?}");
    for word in words.iter().chain(&["SMBIOS", "DMI:", "EFI", "setup_data", "setup data", "ACPI: "]) {
        assert!(!console.contains(word), "{word}: {console}");
    }
    container_runs(&guest, &workload);
}

fn option(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.into(), value.into()]
}

/// Our kernel, for QEMU's own `-kernel`, with the fields of its header that a boot loader fills: from offset 0x1f1 on.
/// Source: Linux, Documentation/arch/x86/boot.rst.
fn prepared_kernel(stage: &Stage, fields: &[(usize, &[u8])]) -> Vec<String> {
    let mut kernel = std::fs::read(&stage.image.kernel).unwrap();
    assert_eq!(kernel[0x202..0x206], *b"HdrS");
    for (at, value) in fields {
        kernel[*at..at + value.len()].copy_from_slice(value);
    }
    option("-kernel", stage.file("kernel", &kernel).display().to_string())
}

#[test]
fn b02_a_kernel_of_the_hosts_is_not_started() {
    // Another version string: where it is, the header says.
    let other = |stage: &Stage| {
        let kernel = std::fs::read(&stage.image.kernel).unwrap();
        let at = usize::from(u16::from_le_bytes([kernel[0x20e], kernel[0x20f]])) + 0x200;
        prepared_kernel(stage, &[(at, b"of-the-host")])
    };
    has_no_effect(other, &["of-the-host"]);
}

#[test]
fn b02_arguments_of_the_hosts_are_not_appended() {
    let append = |stage: &Stage| {
        let kernel = prepared_kernel(stage, &[]);
        [kernel, option("-append", "rdinit=/bin/sh console=hvc0 of-the-host")].concat()
    };
    has_no_effect(append, &["of-the-host", "rdinit"]);
}

#[test]
fn b02_a_second_initrd_is_not_unpacked() {
    let initrd = |stage: &Stage| {
        let file = stage.file("initrd2", b"070701 of the host").display().to_string();
        [prepared_kernel(stage, &[]), option("-initrd", file)].concat()
    };
    has_no_effect(initrd, &["initramfs unpacking failed", "invalid magic"]);
}

/// QEMU makes of a device tree an element of `setup_data`, the list that no digest covers.
#[test]
fn b02_setup_data_of_the_hosts_is_not_read() {
    let tree = |stage: &Stage| {
        let tree = [0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 40, 0, 0, 0, 40, 0, 0, 0, 40];
        let file = stage.file("tree.dtb", &tree).display().to_string();
        [prepared_kernel(stage, &[(0x250, &0x9_f800_u64.to_le_bytes())]), option("-dtb", file)].concat()
    };
    has_no_effect(tree, &["device tree", "OF: fdt"]);
}

/// The fields of `boot_params` that the host's loader would set: flags, the RAM disk's place, the end of the heap, the command
/// line's address, the preferred place.
#[test]
fn b02_boot_params_of_the_hosts_are_not_used() {
    let header = |stage: &Stage| {
        let far = 0xffff_f000_u32.to_le_bytes();
        let fields: [(usize, &[u8]); 5] =
            [(0x211, &[0xe1]), (0x218, &far), (0x21c, &far), (0x224, &[0xff, 0xff]), (0x228, &far)];
        prepared_kernel(stage, &fields)
    };
    has_no_effect(header, &["RAMDISK: [mem 0xff"]);
}

#[test]
fn b02_further_files_of_the_hosts_are_not_read() {
    let names = ["opt/parma/setup_data", "opt/parma/boot_params", "opt/parma/cmdline.d", "opt/parma/kernels"];
    let names = [&names[..], &["opt/parma/initrd2", "opt/parma/kerne", "opt/org.seabios/boot"]].concat();
    let files = |stage: &Stage| {
        let file = stage.file("content", b"of-the-host").display().to_string();
        names.iter().flat_map(|name| option("-fw_cfg", format!("name={name},file={file}"))).collect()
    };
    has_no_effect(files, &["of-the-host"]);
}

#[test]
fn b02_tables_of_the_hosts_are_not_read() {
    let tables = |_: &Stage| {
        let mut tables = option("-smbios", "type=11,value=of-the-host");
        tables.extend(option("-smbios", "type=1,manufacturer=of-the-host"));
        tables
    };
    has_no_effect(tables, &["of-the-host"]);
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
