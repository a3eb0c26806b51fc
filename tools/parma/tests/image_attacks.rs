//! The host attaches, changes and arranges layers, and layers are made to mislead: attacks I01–I06, I08–I12, I14, I16 and
//! I17 on the real VM. What a disk does while it is read is in `disk_attacks.rs`.

mod support;

use parma_guest::point::Point;
use parma_guest::policy;
use parma_guest::wire::{Denied, ExitStatus, Field, List, Mount, Reason, Request, Rule, Source, Step};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Disk;
use sha2::{Digest as _, Sha256};
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use support::{Guest, Workload, id, joined, list, read_until, serial, stage, tar};
use tar::EntryType;

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
fn i04_d4_no_size_that_the_host_claims_makes_another_device_of_a_layer() {
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
    let upper = format!("upperdir=/run/gcs/c/{0}/scratch/{0}/upper", id('1'));
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
    let options = GenerateOptions::default();
    let workload = stage.workload("python", &["python3", "-c", script], options).of_root();
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

/// Errno of a filesystem that is not of our writer.
const EMEDIUMTYPE: u16 = 124;

/// A layer's image whose filesystem was changed, with a hash tree that fits the change; gives the image and its root hash.
fn reseal(layer: &support::Layer, change: impl FnOnce(&mut [u8])) -> (Vec<u8>, [u8; 32]) {
    let hashes = |level: &[u8]| -> Vec<u8> {
        let hash = |block: &[u8]| Sha256::new().chain_update([0; 32]).chain_update(block).finalize();
        let mut above: Vec<u8> = level.chunks(4096).flat_map(hash).collect();
        above.resize(above.len().next_multiple_of(4096), 0);
        above
    };
    let mut image = std::fs::read(&layer.path).unwrap();
    let data = layer.data_blocks as usize * 4096;
    image.truncate(data + 4096); // the superblock, which the guest does not read
    change(&mut image[..data]);
    let mut levels = vec![hashes(&image[..data])];
    while levels.last().unwrap().len() > 4096 {
        levels.push(hashes(levels.last().unwrap()));
    }
    let root = Sha256::new().chain_update([0; 32]).chain_update(levels.last().unwrap()).finalize().into();
    image.extend(levels.iter().rev().flatten());
    (image, root)
}

#[test]
fn i11_a_filesystem_of_another_kind_is_not_mounted_though_the_policy_names_its_hash() {
    type Change = fn(&mut [u8]);
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options.clone());
    let top = honest.layers.len() - 1;
    let layer = &honest.layers[top];
    assert_eq!(reseal(layer, |_| {}).1, layer.root_hash, "unchanged, it is the layer");
    let changes: [(&str, Change); 5] = [
        ("xfs", |data| {
            data.fill(0);
            data[..4].copy_from_slice(b"XFSB");
        }),
        ("journal", |data| data[1024 + 0x5c] |= 4),
        ("recovery", |data| data[1024 + 0x60] |= 4),
        ("writable", |data| data[1024 + 0x65] &= !0x10),
        ("longer", |data| data[1024 + 4] += 1),
    ];
    let hex = |hash: &[u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let changed: Vec<_> = changes
        .iter()
        .map(|(name, change)| {
            let (image, root_hash) = reseal(layer, change);
            support::Layer { path: stage.file(name, &image), root_hash, data_blocks: layer.data_blocks }
        })
        .collect();
    // A policy that names each of them as a container's top layer, and the honest one.
    let text = honest.container.policy();
    let text = changed.iter().fold(text.clone(), |joint, changed| {
        joined(&joint, &text.replace(&hex(&layer.root_hash), &hex(&changed.root_hash)))
    });
    let honest = stage.workload_with(fixture, args, options, |_| text);
    let disks = changes.iter().zip(&changed).map(|((name, _), layer)| Disk::layer(&layer.path, serial(name)));
    let guest = stage.boot(honest.policy.host_data(), honest.disks().into_iter().chain(disks).collect());
    guest.accept(&honest.policy.image);
    for ((name, _), layer) in changes.iter().zip(&changed) {
        let (root_hash, data_blocks) = (layer.root_hash, layer.data_blocks);
        let refused = guest.refused(Request::MountDevice { device: name, root_hash, data_blocks });
        assert_eq!(refused, Reason::Failed { step: Step::LayerFilesystem, errno: EMEDIUMTYPE }, "{name}");
    }
    guest.mount_layers(&honest);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i14_a_volume_that_an_image_declares_holds_what_the_guest_has_and_nothing_of_the_hosts() {
    let Some(stage) = stage() else { return };
    let layer = tar(&[(EntryType::Regular, "data/inside", "", b"of the image\n")]);
    let layout = stage.layout("busybox", "volumes", &layer, |config| {
        config["config"]["Volumes"] = serde_json::json!({"/data": {}, "/new": {}});
    });
    let script =
        "cat /data/*; echo mine > /data/more && cat /data/more; grep -c ' /data ' /proc/mounts; true";
    let options = GenerateOptions::default();
    let workload = stage.workload_of(&layout, "volumes", &["sh", "-c", script], options, |policy| policy);
    let guest = stage.start(&workload);
    guest.mount_layers(&workload);
    guest.mount_overlay(&workload, &id('1'));
    // The host's own content in its place: a directory that containers share, and another layer.
    let sources = [Source::Directory("shared"), Source::Layer("volumes0")];
    for source in sources {
        let mounts = List::from_vec(vec![Mount { source, destination: "/data", read_only: false }]).unwrap();
        let container = &id('1');
        let process = workload.process(support::OUTPUT);
        let refused = guest.refused(Request::CreateContainer {
            container,
            privileged: false,
            mounts,
            seccomp: None,
            process,
        });
        assert!(
            matches!(refused, Reason::Denied { point: Point::CreateContainer, .. } | Reason::Invalid { .. }),
            "{refused:?}"
        );
    }
    let process = guest.create(&workload, &id('1'), support::OUTPUT);
    let (output, _) = guest.finish(process);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!((lines[0], lines[1], *lines.last().unwrap()), ("of the image", "mine", "0"), "{output}");
}

#[test]
fn i16_a_layer_with_a_link_where_something_is_mounted_gets_no_container() {
    let Some(stage) = stage() else { return };
    let (fixture, args, options) = echo();
    let honest = stage.workload(fixture, args, options.clone());
    let links = [("proc", "/tmp"), ("sys", "../../.."), ("dev", "/proc/1/root/dev")];
    let linked = links.map(|(name, target)| {
        let layout = stage.layout(fixture, name, &tar(&[(EntryType::Symlink, name, target, b"")]), |_| {});
        stage.workload_of(&layout, name, args, options.clone(), |policy| policy)
    });
    let text = linked
        .iter()
        .fold(honest.container.policy(), |joint, workload| joined(&joint, &workload.container.policy()));
    let honest = stage.workload_with(fixture, args, options, |_| text);
    let disks = linked.iter().flat_map(Workload::disks).chain(honest.disks()).collect();
    let guest = stage.boot(honest.policy.host_data(), disks);
    guest.accept(&honest.policy.image);
    for (workload, container) in linked.iter().zip(['2', '3', '4'].map(id)) {
        guest.mount_layers(workload);
        guest.mount_overlay(workload, &container);
        let process = workload.process(support::OUTPUT);
        let (container, mounts) = (&*container, List::new());
        let refused = guest.refused(Request::CreateContainer {
            container,
            privileged: false,
            mounts,
            seccomp: None,
            process,
        });
        // ENOTDIR: a link is not followed, wherever it leads.
        assert_eq!(refused, Reason::Failed { step: Step::Rootfs, errno: 20 });
    }
    guest.mount_layers(&honest);
    honest_container_runs(&guest, &honest);
}

#[test]
fn i17_what_a_layer_says_to_overlayfs_and_to_the_kernel_reaches_neither_other_files_nor_devices() {
    let Some(stage) = stage() else { return };
    let mut builder = tar::Builder::new(Vec::new());
    let mut add =
        |xattrs: &[(&str, &[u8])], kind: EntryType, name: &str, link: &str, device: Option<(u32, u32)>| {
            builder.append_pax_extensions(xattrs.iter().copied()).unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(0o4755);
            header.set_size(0);
            if let Some((major, minor)) = device {
                header.set_device_major(major).unwrap();
                header.set_device_minor(minor).unwrap();
            }
            if link.is_empty() {
                builder.append_data(&mut header, name, std::io::empty()).unwrap();
            } else {
                builder.append_link(&mut header, name, link).unwrap();
            }
        };
    let redirect: &[(&str, &[u8])] = &[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")];
    let metacopy: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc/passwd"),
    ];
    add(&[], EntryType::Directory, "etc", "", None);
    add(&[], EntryType::Regular, "etc/passwd", "", None);
    add(redirect, EntryType::Directory, "redirected", "", None);
    add(metacopy, EntryType::Regular, "copied", "", None);
    add(&[], EntryType::Char, "memory", "", Some((1, 1)));
    add(&[], EntryType::Block, "disk", "", Some((254, 0)));
    add(&[], EntryType::Regular, "kept", "", None);
    add(&[], EntryType::Link, "hard", "kept", None);
    add(&[], EntryType::Regular, "etc/.wh.hostname", "", None);
    let top = builder.into_inner().unwrap();
    let secret = tar(&[
        (EntryType::Regular, "etc/passwd", "", b"root:x:0:0:secret:/:/bin/sh\n"),
        (EntryType::Regular, "etc/hostname", "", b"hidden\n"),
    ]);
    // The lower layer has what the upper one tries to reach past its own whiteouts.
    let below = stage.layout("busybox", "below", &secret, |_| {});
    let layout = stage.layout_on(&below, "above", &top, |_| {});
    let script = "\
for try in 'ls /redirected' 'cat /copied' 'cat /etc/hostname' 'head -c1 /memory' 'head -c1 /disk' 'cat /etc/passwd'; do
    echo \"$try: $($try 2>&1 | tr '\\n' ' ')\"
done
ls -i /kept /hard | sort | uniq -c -w 8 | wc -l
";
    let options = GenerateOptions::default();
    let workload =
        stage.workload_of(&layout, "above", &["sh", "-c", script], options, |policy| policy).of_root();
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), support::OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    assert!(!output.contains("secret") && !output.contains("hidden"), "{output}");
    let said = |what: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
        line.unwrap_or_else(|| panic!("{what} in\n{output}")).to_owned()
    };
    assert!(said("cat /etc/hostname").contains("No such file"), "{output}");
    for device in ["head -c1 /memory", "head -c1 /disk"] {
        let said = said(device);
        assert!(said.contains("denied") || said.contains("not permitted"), "{output}");
    }
    assert_eq!(said("cat /etc/passwd"), "", "the upper layer's own, which is empty");
}
