//! The host attaches, changes and arranges layers: attacks I01–I06, I08–I10, I12 on the real VM.

mod support;

use parma_guest::point::Point;
use parma_guest::policy;
use parma_guest::wire::{Denied, ExitStatus, Field, Reason, Request, Rule, Step};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Disk;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use support::{Guest, Workload, id, joined, list, read_until, serial, stage};

/// Errno of a read that dm-verity refused.
const EIO: u16 = 5;

fn denied_for(reason: &Reason, point: Point, check: policy::Reason) -> bool {
    matches!(reason, Reason::Denied { point: at, how: Denied::No, failed, .. } if *at == point && failed.contains(&check))
}

fn mount<'a>(workload: &Workload, device: &'a str, index: usize) -> Request<'a> {
    let layer = &workload.layers[index];
    Request::MountDevice { device, root_hash: layer.root_hash, data_blocks: layer.data_blocks }
}

/// Flips one bit.
fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Where this text is in a file.
fn find(path: &Path, text: &[u8]) -> u64 {
    let content = std::fs::read(path).unwrap();
    let at = content.windows(text.len()).position(|window| window == text);
    at.expect("the text is in the layer") as u64
}

/// The honest twin of everything here: the workload's container still comes up.
fn honest_container_runs(guest: &Guest, workload: &Workload) {
    guest.mount_overlay(workload, &id('1'));
    let process = guest.create(workload, &id('1'), support::OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!((output.as_str(), status), ("honest\n", ExitStatus::Code(0)), "{}", guest.console());
}

fn echo() -> (&'static str, &'static [&'static str], GenerateOptions) {
    ("busybox", &["echo", "honest"], GenerateOptions::default())
}

#[test]
fn i01_a_layer_that_the_policy_does_not_name_is_not_mounted() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options);
    let other = stage.workload("python", &["python3"], GenerateOptions::default());
    let disks = [honest.disks(), other.disks()].concat();
    let guest = stage.boot(honest.policy.host_data(), disks);
    guest.accept(&honest.policy.image);
    let refused = guest.refused(mount(&other, "python1", 1));
    assert!(denied_for(&refused, Point::MountDevice, policy::Reason::InvalidDeviceHash), "{refused:?}");
    // The right hash for the wrong device: dm-verity finds out before anything of it is looked at.
    let layer = &honest.layers[1];
    let (root_hash, data_blocks) = (layer.root_hash, layer.data_blocks.min(other.layers[1].data_blocks));
    let refused = guest.refused(Request::MountDevice { device: "python1", root_hash, data_blocks });
    assert_eq!(refused, Reason::Failed { step: Step::LayerFilesystem, errno: EIO });
    guest.mount_layers(&honest);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i02_a_block_changed_after_mounting_is_an_error_to_its_reader_and_to_nobody_else() {
    let Some(stage) = stage() else { return };
    // Two files that nothing else reads: one stays whole.
    let script = "\
import errno, os, sys
library = os.path.dirname(os.__file__)
print('ready', flush=True)
sys.stdin.readline()
for name in ('textwrap.py', 'bisect.py'):
    try:
        with open(os.path.join(library, name)) as file:
            print(file.read(20).replace(chr(10), ' '))
    except OSError as error:
        print(errno.errorcode[error.errno])
";
    let options = GenerateOptions::default();
    let workload = stage.workload("python", &["python3", "-c", script], options);
    let guest = stage.start(&workload);
    let stdio = parma_guest::wire::Stdio { stdin: true, ..support::OUTPUT };
    let process = guest.run(&workload, &id('1'), stdio);
    let mut output = guest.attach(process, parma_guest::wire::Stream::Stdout);
    let mut input = guest.attach(process, parma_guest::wire::Stream::Stdin);
    read_until(&mut output, "ready\n");
    let layer = workload.layers.last().unwrap();
    flip(&layer.path, find(&layer.path, b"\"\"\"Text wrapping and filling."));
    input.write_all(b"go\n").unwrap();
    let read = support::read_all(output);
    let lines: Vec<&str> = read.lines().collect();
    assert!(matches!(lines[..], ["EIO", whole] if whole.contains("Bisection")), "{read}");
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
    assert!(guest.console().contains("verity"), "the kernel says why");
}

#[test]
fn i02_a_changed_hash_block_or_superblock_is_not_mounted_and_the_verity_superblock_is_not_read() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options);
    let top = honest.layers.len() - 1;
    let layer = &honest.layers[top];
    let copy = |name: &str, at: u64| {
        let path = stage.file(name, &std::fs::read(&layer.path).unwrap());
        flip(&path, at);
        Disk::layer(&path, serial(name))
    };
    let data_end = layer.data_blocks * 4096;
    let disks = vec![
        copy("root-hash-block", data_end + 4096),
        copy("ext4-superblock", 1024 + 0x20),
        copy("verity-superblock", data_end + 64),
    ];
    let guest = stage.boot(honest.policy.host_data(), [honest.disks(), disks].concat());
    guest.accept(&honest.policy.image);
    for device in ["root-hash-block", "ext4-superblock"] {
        let refused = guest.refused(mount(&honest, device, top));
        assert_eq!(refused, Reason::Failed { step: Step::LayerFilesystem, errno: EIO }, "{device}");
    }
    guest.done(mount(&honest, "verity-superblock", top));
    (0..top).for_each(|index| guest.mount_layer(&honest, index));
    let mut layers = honest.overlay_layers();
    layers[0] = "verity-superblock".to_owned();
    let layers = list(layers.iter().map(String::as_str));
    guest.done(Request::MountOverlay { container: &id('1'), layers, scratch: None });
    let process = guest.create(&honest, &id('1'), support::OUTPUT);
    assert_eq!(guest.finish(process), ("honest\n".to_owned(), ExitStatus::Code(0)));
}

#[test]
fn i03_a_device_that_changes_places_after_the_check_is_read_as_what_it_is_not() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options);
    let twice = vec![
        Disk::layer(&honest.layers[0].path, serial("same")),
        Disk::layer(&honest.layers[1].path, serial("same")),
    ];
    let guest = stage.boot(honest.policy.host_data(), [honest.disks(), twice].concat());
    guest.accept(&honest.policy.image);
    // Two devices of one name: which one would be checked, and which one mapped?
    let refused = guest.refused(mount(&honest, "same", 0));
    assert!(matches!(refused, Reason::Failed { step: Step::FindDevice, .. }), "{refused:?}");
    // The whole content exchanged between two mounts: what the first mapping has not read yet, it refuses.
    guest.mount_layer(&honest, 0);
    let (first, second) = (&honest.layers[0].path, &honest.layers[1].path);
    let (whole, other) = (std::fs::read(second).unwrap(), std::fs::read(first).unwrap());
    OpenOptions::new().write(true).open(second).unwrap().write_all(&other).unwrap();
    let refused = guest.refused(mount(&honest, &honest.serial(1), 1));
    assert_eq!(refused, Reason::Failed { step: Step::LayerFilesystem, errno: EIO });
    OpenOptions::new().write(true).open(second).unwrap().write_all(&whole).unwrap();
    guest.mount_layer(&honest, 1);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i04_no_size_that_the_host_claims_makes_another_device_of_a_layer() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options);
    let top = honest.layers.len() - 1;
    let layer = &honest.layers[top];
    let short =
        stage.file("short", &std::fs::read(&layer.path).unwrap()[..(layer.data_blocks as usize) * 4096]);
    let disks = [honest.disks(), vec![Disk::layer(&short, serial("short"))]].concat();
    let guest = stage.boot(honest.policy.host_data(), disks);
    guest.accept(&honest.policy.image);
    let device = &honest.serial(top);
    let claim = |device, data_blocks| {
        let root_hash = layer.root_hash;
        guest.refused(Request::MountDevice { device, root_hash, data_blocks })
    };
    for blocks in [0, 1 << 40] {
        let refused = claim(device, blocks);
        assert!(matches!(refused, Reason::Invalid { field: Field::DataBlocks, rule: Rule::Range, .. }));
    }
    // Fewer, more, and as many as make a tree of another depth, whose leaves would be hash blocks.
    for blocks in [1, 2, layer.data_blocks - 1, layer.data_blocks.div_ceil(128)] {
        let refused = claim(device, blocks);
        assert!(
            matches!(refused, Reason::Failed { step: Step::LayerFilesystem, .. }),
            "{blocks}: {refused:?}"
        );
    }
    let refused = claim(device, layer.data_blocks * 2);
    assert!(matches!(refused, Reason::Failed { step: Step::DeviceSize, .. }), "{refused:?}");
    let refused = claim("short", layer.data_blocks);
    assert!(matches!(refused, Reason::Failed { step: Step::DeviceSize, .. }), "{refused:?}");
    guest.mount_layers(&honest);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i05_only_the_exact_list_of_layers_of_one_container_is_stacked() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let other = stage.workload("python", &["python3"], GenerateOptions::default());
    let text = other.container.policy();
    let honest = stage.workload_with(fixture, args, options, |policy| joined(&policy, &text));
    let guest = stage.boot(honest.policy.host_data(), [honest.disks(), other.disks()].concat());
    guest.accept(&honest.policy.image);
    guest.mount_layers(&honest);
    guest.mount_layers(&other);
    let container = id('1');
    let (bottom, top) = (honest.serial(0), honest.serial(1));
    let wrong: [&[&str]; 6] = [
        &[&bottom, &top],
        &[&top],
        &[&bottom],
        &[&top, "python0"],
        &["python1", &bottom],
        &["python1", "python0", &top, &bottom],
    ];
    for layers in wrong {
        let layers = list(layers.iter().copied());
        let refused = guest.refused(Request::MountOverlay { container: &container, layers, scratch: None });
        assert!(denied_for(&refused, Point::MountOverlay, policy::Reason::InvalidLayers), "{refused:?}");
    }
    for (layers, rule) in [(&[][..], Rule::NotEmpty), (&[&*top, &*top, &*bottom], Rule::NoDuplicates)] {
        let layers = list(layers.iter().copied());
        let refused = guest.refused(Request::MountOverlay { container: &container, layers, scratch: None });
        assert!(matches!(refused, Reason::Invalid { rule: broken, .. } if broken == rule), "{refused:?}");
    }
    let layers = list(["not-mounted"]);
    let refused = guest.refused(Request::MountOverlay { container: &container, layers, scratch: None });
    assert_eq!(refused, Reason::Unknown { field: Field::Layers });
    honest_container_runs(&guest, &honest);
}

#[test]
fn i06_a_layer_is_not_taken_from_under_an_overlay_nor_another_put_in_its_place() {
    let Some(stage) = stage() else { return };
    let (fixture, _, options) = echo();
    let honest = stage.workload(fixture, &["cat"], options);
    let guest = stage.start(&honest);
    let stdio = parma_guest::wire::Stdio { stdin: true, ..support::OUTPUT };
    let process = guest.run(&honest, &id('1'), stdio);
    let (bottom, top) = (honest.serial(0), honest.serial(1));
    for device in [&bottom, &top] {
        let refused = guest.refused(Request::UnmountDevice { device });
        assert_eq!(refused, Reason::InUse { field: Field::Device });
        let refused = guest.refused(mount(&honest, device, 1));
        assert_eq!(refused, Reason::InUse { field: Field::Device });
    }
    let container = id('1');
    let refused = guest.refused(Request::UnmountOverlay { container: &container });
    assert_eq!(refused, Reason::InUse { field: Field::Container });
    // Meanwhile the container goes on; afterwards everything comes apart in the honest order.
    let mut input = guest.attach(process, parma_guest::wire::Stream::Stdin);
    input.write_all(b"still here\n").unwrap();
    drop(input);
    assert_eq!(guest.finish(process), ("still here\n".to_owned(), ExitStatus::Code(0)));
    guest.done(Request::ShutdownContainer { container: &container });
    guest.done(Request::UnmountOverlay { container: &container });
    guest.done(Request::UnmountDevice { device: &top });
    guest.done(Request::UnmountDevice { device: &bottom });
    guest.mount_layers(&honest);
}

#[test]
fn i08_a_mount_that_fails_leaves_nothing_that_the_policy_believes_in() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options);
    let top = honest.layers.len() - 1;
    let damaged = stage.file("damaged", &std::fs::read(&honest.layers[top].path).unwrap());
    flip(&damaged, 1024 + 0x38);
    let disks = [honest.disks(), vec![Disk::layer(&damaged, serial("damaged"))]].concat();
    let guest = stage.boot(honest.policy.host_data(), disks);
    guest.accept(&honest.policy.image);
    // More often than there would be slots, if each left something behind.
    for _ in 0..3 {
        let refused = guest.refused(mount(&honest, "damaged", top));
        assert_eq!(refused, Reason::Failed { step: Step::LayerFilesystem, errno: EIO });
    }
    let container = id('1');
    let bottom = honest.serial(0);
    let layers = list(["damaged", &*bottom]);
    let refused = guest.refused(Request::MountOverlay { container: &container, layers, scratch: None });
    assert_eq!(refused, Reason::Unknown { field: Field::Layers });
    let refused = guest.refused(Request::UnmountDevice { device: "damaged" });
    assert_eq!(refused, Reason::Unknown { field: Field::Device });
    // The policy would refuse the same mount point a second time, had the first been committed.
    guest.mount_layers(&honest);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i09_a_name_that_could_be_a_path_is_refused_before_anything_else() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options);
    let guest = stage.start(&honest);
    let long = "a".repeat(4096);
    for name in ["../../x", "/run/mounts/m1/../..", "", "a\0b", "a/", &long, &id('A'), &(id('1') + "/"), "é"]
    {
        let refused = guest.refusal(Request::MountOverlay {
            container: name,
            layers: list(["busybox0"]),
            scratch: None,
        });
        assert!(
            matches!(refused.reason, Reason::Unknown { .. } | Reason::Invalid { .. }),
            "{name:.20}: {refused:?}"
        );
        let refused = guest.refused(Request::UnmountOverlay { container: name });
        assert!(
            matches!(refused, Reason::Invalid { field: Field::Container, .. }),
            "{name:.20}: {refused:?}"
        );
    }
    for name in ["../vda", "/dev/vda", "", "vda\0", "a b", &long] {
        let refused = guest.refused(mount(&honest, name, 0));
        assert!(matches!(refused, Reason::Invalid { field: Field::Device, .. }), "{name:.20}: {refused:?}");
    }
    guest.mount_layers(&honest);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i10_mount_options_are_the_guests_own() {
    let Some(stage) = stage() else { return };
    // The protocol has no field for an option, a type or a source; what is mounted is the same for every container.
    let workload = stage.workload("busybox", &["cat", "/proc/self/mounts"], GenerateOptions::default());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), support::OUTPUT);
    let (mounts, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0));
    let options = |target: &str| {
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(target));
        let line = line.unwrap_or_else(|| panic!("{target} in\n{mounts}"));
        line.split(' ').nth(3).unwrap().split(',').map(str::to_owned).collect::<Vec<_>>()
    };
    for (target, wanted) in [
        ("/", &["rw", "nodev", "redirect_dir=nofollow", "metacopy=off"][..]),
        ("/proc", &["nosuid", "nodev", "noexec"]),
        ("/sys", &["ro", "nosuid", "nodev", "noexec"]),
        ("/dev", &["nosuid"]),
        ("/dev/shm", &["nosuid", "nodev", "noexec"]),
    ] {
        let found = options(target);
        for option in wanted {
            // What is the kernel's default it does not print.
            let name = option.split_once('=').map(|(name, _)| format!("{name}="));
            let on = found.iter().any(|f| f == option);
            let default = name.is_some_and(|name| !found.iter().any(|f| f.starts_with(&name)));
            assert!(on || default, "{target}: {option} in {found:?}");
        }
    }
    let upper = format!("upperdir=/run/gcs/c/{}/scratch/upper", id('1'));
    assert!(options("/").contains(&upper), "where it writes is the guest's own choice:\n{mounts}");
}

#[test]
fn i12_no_container_reaches_a_block_device() {
    let Some(stage) = stage() else { return };
    let script = "\
import os, stat
for root, _, names in os.walk('/dev'):
    for name in names:
        mode = os.lstat(os.path.join(root, name)).st_mode
        assert not stat.S_ISBLK(mode), name
assert not os.path.exists('/dev/vda') and not os.path.exists('/dev/mapper')
made = 0
for major, minor in [(254, 0), (253, 0), (252, 0), (1, 0)]:
    path = f'/tmp/disk{major}.{minor}'
    try:
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
        made += 1
        os.open(path, os.O_RDONLY)
    except PermissionError:
        continue
    except FileNotFoundError:
        continue
    raise SystemExit('opened a block device')
null = os.open('/dev/null', os.O_RDWR)
print('none')
";
    // As root of the container, with the usual capabilities, CAP_MKNOD among them.
    let policy = |text: String| text;
    let options = GenerateOptions::default();
    let mut workload = stage.workload_with("python", &["python3", "-c", script], options, policy);
    workload.container.user = String::new();
    workload.container.identity.uid = 0;
    workload.container.identity.gids = vec![0];
    workload.policy = support::policy(&workload.container.policy());
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), support::OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!((output.as_str(), status), ("none\n", ExitStatus::Code(0)), "{}", guest.console());
}

/// The tests above rely on this: a disk's file that changes is what the guest reads next.
#[test]
fn a_copy_of_a_layer_is_private_to_its_test() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["true"], GenerateOptions::default());
    let mut file = std::fs::File::open(&workload.layers[0].path).unwrap();
    file.seek(SeekFrom::Start(1024 + 56)).unwrap();
    let mut magic = [0; 2];
    file.read_exact(&mut magic).unwrap();
    assert_eq!(magic, [0x53, 0xef], "an ext4 superblock");
}
