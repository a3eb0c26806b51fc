//! What the guest's kernel leaves out, looked for in a running guest: attacks B04 to B09. `docs/kernel.md` has the reasons.
//!
//! Everything is looked for from inside a container that runs as root, so what is not found is not there for the init either.

mod support;

use parma_guest::wire::ExitStatus;
use parma_policy::generate::GenerateOptions;
use parma_vmm::Machine;
use std::collections::BTreeSet;

use support::{Guest, LONG, Stage, arguments, id, stage, with_command_line};

/// What a Python program that runs as root of a container prints, in a guest of a host with these further arguments of QEMU.
fn seen(stage: &Stage, script: &str, host: &[&str]) -> (Vec<String>, Guest) {
    let args = ["python3", "-c", script];
    let workload = stage.workload("python", &args, GenerateOptions::default()).of_root();
    let mut config = stage.config(workload.policy.host_data(), workload.disks());
    config.image = with_command_line(stage, |line| line.replace(" quiet", ""));
    config.extra_args = arguments(host);
    let guest = stage.launch(&config);
    guest.accept(&workload.policy.image);
    let process = guest.run(&workload, &id('1'), support::OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    (output.lines().map(str::to_owned).collect(), guest)
}

/// B04: modules, consoles, debuggers, and memory as a file.
#[test]
fn b04_a_container_finds_no_way_into_the_kernel() {
    let Some(stage) = stage() else { return };
    let script = "\
import os, stat
for path in ['/proc/modules', '/proc/kallsyms', '/proc/kcore', '/proc/sysrq-trigger', '/proc/config.gz', '/proc/acpi',
             '/proc/sys/kernel/sysrq', '/proc/sys/kernel/modules_disabled', '/proc/sys/kernel/kexec_load_disabled',
             '/proc/sys/kernel/core_pattern', '/proc/sys/kernel/io_uring_disabled', '/proc/sys/kernel/ftrace_enabled',
             '/proc/sys/fs/binfmt_misc', '/proc/sys/abi', '/proc/swaps', '/sys/firmware/acpi', '/sys/firmware/efi',
             '/sys/firmware/dmi', '/sys/kernel/debug', '/sys/kernel/kexec_loaded', '/sys/power/state', '/sys/class/vtconsole',
             '/sys/class/graphics', '/dev/mem', '/dev/port', '/dev/kmsg', '/dev/hwrng', '/dev/fuse', '/dev/loop-control']:
    # What the kernel has and the container does not get is masked by an empty file or directory.
    try:
        there = os.listdir(path) if os.path.isdir(path) else open(path).read()
    except OSError:
        there = ''
    if there:
        print('there', path)
for number, name in [(1, 'mem'), (2, 'kmem'), (4, 'port'), (11, 'kmsg')]:
    path = '/tmp/' + name
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, number))
        os.open(path, os.O_RDONLY)
        print('there', name)
    except OSError:
        pass
for line in open('/proc/consoles'):
    print('console', line.split()[0])
for name in ['randomize_va_space', 'dmesg_restrict', 'unprivileged_bpf_disabled', 'panic', 'panic_on_oops']:
    print(name, open('/proc/sys/kernel/' + name).read().strip())
print('mmap_min_addr', open('/proc/sys/vm/mmap_min_addr').read().strip())
for line in open('/proc/filesystems'):
    print('filesystem', line.split()[-1])
";
    let (lines, guest) = seen(&stage, script, &[]);
    let all = |what: &str| -> BTreeSet<&str> {
        lines.iter().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' ')).collect()
    };
    assert_eq!(all("there"), BTreeSet::new());
    assert_eq!(all("console"), ["ttyS0"].into());
    for (name, value) in [
        ("randomize_va_space", "2"),
        ("dmesg_restrict", "1"),
        ("unprivileged_bpf_disabled", "1"),
        ("panic", "-1"),
        ("panic_on_oops", "1"),
        ("mmap_min_addr", "65536"),
    ] {
        assert_eq!(all(name), [value].into(), "{name}");
    }
    let filesystems = all("filesystem");
    for expected in ["ext4", "overlay", "tmpfs", "proc"] {
        assert!(filesystems.contains(expected), "{filesystems:?}");
    }
    for foreign in
        ["9p", "virtiofs", "fuse", "nfs", "debugfs", "tracefs", "efivarfs", "binfmt_misc", "xfs", "vfat"]
    {
        assert!(!filesystems.contains(foreign), "{foreign}");
    }
    let console = guest.console();
    assert!(console.contains("Kernel is locked down from Kernel configuration"), "{console}");
}

/// B05, B07, B08: a host plugs in what nobody asked for; the devices are seen, and nothing drives them.
#[test]
fn b05_devices_that_nobody_asked_for_have_no_driver() {
    let Some(stage) = stage() else { return };
    let script = "\
import os
bus = '/sys/bus/virtio/'
driven = set()
for name in os.listdir(bus + 'drivers'):
    print('driver', name)
    driven |= {device for device in os.listdir(bus + 'drivers/' + name) if device.startswith('virtio')}
print('idle', len(set(os.listdir(bus + 'devices')) - driven))
for kind in ['rtc', 'ptp', 'hwmon', 'drm', 'input', 'sound', 'virtio-ports', 'watchdog', 'nvme', 'scsi_host', 'usb']:
    if os.path.exists('/sys/class/' + kind) and os.listdir('/sys/class/' + kind):
        print('class', kind)
print('clocks', open('/sys/devices/system/clocksource/clocksource0/available_clocksource').read().strip())
";
    let host = [
        "-device virtio-balloon-pci,addr=10",
        "-object rng-random,id=rng0",
        "-device virtio-rng-pci,rng=rng0,addr=11",
        "-device virtio-serial-pci,id=serials,addr=12",
        "-chardev null,id=nothing",
        "-device virtconsole,bus=serials.0,chardev=nothing",
        "-device virtio-keyboard-pci,addr=13",
        "-device virtio-scsi-pci,addr=14",
        "-device qemu-xhci,addr=15",
    ];
    let host: Vec<_> = host.iter().flat_map(|device| device.split(' ')).collect();
    let (lines, guest) = seen(&stage, script, &host);
    let all = |what: &str| -> Vec<&str> {
        let mut all: Vec<_> =
            lines.iter().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' ')).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(all("driver"), ["virtio_blk", "virtio_net", "vmw_vsock_virtio_transport"]);
    assert_eq!(all("idle"), ["5"], "balloon, entropy, console, keyboard, SCSI");
    assert_eq!(all("class"), Vec::<&str>::new());
    let console = guest.console();
    assert!(!console.contains("hvc0"), "{console}");
}

/// B06: Heckler (CVE-2024-25744) makes a guest run its entry of 32-bit system calls at a time of the host's choice. There is no
/// such entry: the instruction that asks for it is a fault.
#[test]
fn b06_the_old_system_call_is_a_fault() {
    let Some(stage) = stage() else { return };
    // An ELF file of one page: a header, one segment, and code that asks for exit(42), the old way or the new one.
    let script = "\
import os, struct, signal
def program(code):
    base, size = 0x400000, 0x78
    header = b'\\x7fELF\\x02\\x01\\x01' + bytes(9) + struct.pack('<HHIQQQIHHHHHH', 2, 62, 1, base + size, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack('<IIQQQQQQ', 1, 5, 0, base, base, size + len(code), size + len(code), 4096)
    return header + segment + code
def run(code):
    path = '/tmp/program'
    with open(path, 'wb') as file:
        file.write(program(code))
    os.chmod(path, 0o755)
    child = os.fork()
    if child == 0:
        os.execv(path, [path])
    _, status = os.waitpid(child, 0)
    os.unlink(path)
    return 'exit %d' % os.WEXITSTATUS(status) if os.WIFEXITED(status) else signal.Signals(os.WTERMSIG(status)).name
print(run(bytes.fromhex('bf2a000000 b83c000000 0f05')))
print(run(bytes.fromhex('bb2a000000 b801000000 cd80')))
# kexec_load, whose answer becomes the status: EPERM is 1, ENOSYS 38
print(run(bytes.fromhex('b8f6000000 31ff 31f6 31d2 4d31d2 0f05 f7d8 89c7 b83c000000 0f05')))
";
    let (lines, _guest) = seen(&stage, script, &[]);
    assert_eq!(lines[..2], ["exit 42", "SIGSEGV"]);
    assert!(["exit 1", "exit 38"].contains(&lines[2].as_str()), "{lines:?}");
}

/// B09: a processor without randomness, as a host can make one that is no SNP guest's; the kernel alone would go on, with the
/// jitter of the host's interrupts for a seed.
#[test]
fn b09_a_guest_without_randomness_of_its_processor_ends() {
    let Some(stage) = stage() else { return };
    let mut config = stage.config([0; 32], Vec::new());
    config.accel = Some(parma_vmm::Accel::Tcg);
    config.extra_args = arguments(&[
        "-cpu",
        "max,rdrand=off,rdseed=off",
        "-object",
        "rng-random,id=rng0",
        "-device",
        "virtio-rng-pci,rng=rng0",
    ]);
    let mut machine = Machine::launch(&config).unwrap();
    let exit = machine.wait(LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?}");
    let console = String::from_utf8_lossy(&machine.console().unwrap()).into_owned();
    assert!(console.contains("parma: fatal: no report"), "{console}");
}
