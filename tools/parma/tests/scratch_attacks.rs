//! The host reads, changes, moves and restores what containers wrote: attacks L01–L07 and L09 on the real VM.
//!
//! The disk is one that the test scripts: it sees every request of the guest and changes blocks under its feet.

mod support;
mod twin;

use parma_guest::point::Point;
use parma_guest::policy;
use parma_guest::wire::{
    Denied, Field, List, Mount, Reason, Request, ScratchKind, Source, Stdio, Step, Stream, Tags,
};
use parma_policy::generate::GenerateOptions;
use parma_vmm::scripted::{Operation, ScriptedDisk};
use parma_vmm::{Disk, Machine, Reply};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use support::{Guest, Peer, Stage, Workload, arguments, id, memory_of, read_until, serial, stage};

const BLOCK: u64 = 4096;
/// Blocks of a test's disk: 32 MiB.
const BLOCKS: u64 = 8192;
/// Bytes of a file that the container writes, and its blocks.
const FILE: usize = 65536;
const FILE_BLOCKS: u64 = FILE as u64 / BLOCK;

/// A program that writes and reads files past the guest's cache, as it is told, and says what came of it.
const CLERK: &str = "\
import errno, os, sys
SIZE = 65536
def open_file(name, flags):
    fd = os.open('/tmp/' + name, flags, 0o600)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd
def write(name, byte):
    fd = open_file(name, os.O_RDWR | os.O_CREAT)
    count = os.pwrite(fd, byte.encode() * SIZE, 0)
    os.fsync(fd)
    os.close(fd)
    return str(count)
def read(name):
    fd = open_file(name, os.O_RDONLY)
    try:
        page = os.pread(fd, SIZE, 0)
    finally:
        os.close(fd)
    seen = set(page)
    return chr(seen.pop()) * 2 if len(seen) == 1 and len(page) == SIZE else 'mixed'
def remove(name):
    os.unlink('/tmp/' + name)
    os.sync()
    return 'removed'
for line in sys.stdin:
    what, *how = line.split()
    try:
        print({'write': write, 'read': read, 'remove': remove}[what](*how), flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
";

/// What a reader gets of a block that does not match its tag.
const REFUSED: &str = "EIO";

/// The program in a container.
struct Clerk {
    input: UnixStream,
    output: UnixStream,
}

impl Clerk {
    fn ask(&mut self, what: &str) -> String {
        writeln!(self.input, "{what}").unwrap();
        read_until(&mut self.output, "\n").trim_end().to_owned()
    }

    fn write(&mut self, name: &str, byte: char) {
        assert_eq!(self.ask(&format!("write {name} {byte}")), FILE.to_string());
    }

    fn read(&mut self, name: &str) -> String {
        self.ask(&format!("read {name}"))
    }
}

fn workload(stage: &Stage, edit: impl FnOnce(String) -> String) -> Workload {
    let options = GenerateOptions::default();
    stage.workload_with("python", &["python3", "-c", CLERK], options, edit)
}

/// A machine whose policy is in force and whose layers are mounted, with these disks beside them: `scratch0`, `scratch1`, …
fn machine(stage: &Stage, workload: &Workload, disks: &[&ScriptedDisk]) -> Guest {
    let scratch = disks.iter().enumerate();
    let scratch = scratch.map(|(at, disk)| Disk::scripted(disk, serial(&format!("scratch{at}"))));
    let guest =
        stage.boot(workload.policy.host_data(), workload.disks().into_iter().chain(scratch).collect());
    guest.accept(&workload.policy.image);
    guest.mount_layers(workload);
    guest
}

fn scratch<'a>(id: &'a str, device: &'a str, tags: Tags) -> Request<'a> {
    Request::MountScratch { scratch: id, device, data_blocks: BLOCKS, tags }
}

/// A container that writes to the scratch space of this id.
fn clerk(guest: &Guest, workload: &Workload, container: &str, scratch: &str) -> Clerk {
    guest.mount_overlay_on(workload, container, Some(scratch));
    let process =
        guest.create(workload, container, Stdio { stdin: true, stdout: true, stderr: false, terminal: None });
    Clerk { input: guest.attach(process, Stream::Stdin), output: guest.attach(process, Stream::Stdout) }
}

fn disk() -> ScriptedDisk {
    ScriptedDisk::zeroed(BLOCKS * BLOCK).unwrap()
}

fn content(disk: &ScriptedDisk) -> Vec<u8> {
    disk.read(0, (BLOCKS * BLOCK) as usize).unwrap()
}

fn block(content: &[u8], at: u64) -> &[u8] {
    &content[(at * BLOCK) as usize..][..BLOCK as usize]
}

/// Where a file's blocks are: those in a row that are others after it was written again.
fn file_blocks(before: &[u8], after: &[u8]) -> Range<u64> {
    let differs = |at: u64| block(before, at) != block(after, at);
    let start =
        (0..=before.len() as u64 / BLOCK - FILE_BLOCKS).find(|&at| (at..at + FILE_BLOCKS).all(differs));
    let start = start.expect("the file's blocks changed");
    start..start + FILE_BLOCKS
}

fn denied_for(reason: &Reason, point: Point, check: policy::Reason) -> bool {
    matches!(reason, Reason::Denied { point: at, how: Denied::No, failed, .. } if *at == point && failed.contains(&check))
}

/// L02 (Parma, section 6; dm-integrity's replay): a host that restores a sector with an older state of itself. The tags are
/// in guest memory, so the older state matches none.
#[test]
fn l02_a_block_that_the_host_restores_is_an_error_to_its_reader() {
    let Some(stage) = stage() else { return };
    let (workload, disk) = (workload(&stage, |policy| policy), disk());
    let guest = machine(&stage, &workload, &[&disk]);
    guest.done(scratch(&id('1'), "scratch0", Tags::Memory));
    let mut clerk = clerk(&guest, &workload, &id('1'), &id('1'));
    clerk.write("ledger", 'a');
    clerk.write("other", 'x');
    let old = content(&disk);
    clerk.write("ledger", 'b');
    let new = content(&disk);
    let file = file_blocks(&old, &new);
    assert_eq!(clerk.read("ledger"), "bb", "the honest twin");
    // One sector of the file, one block, all of it, the whole disk.
    let sector = file.start * BLOCK + 512..file.start * BLOCK + 1024;
    let one = file.start * BLOCK..(file.start + 1) * BLOCK;
    let whole = file.start * BLOCK..file.end * BLOCK;
    for range in [sector, one, whole, 0..BLOCKS * BLOCK] {
        let bytes = |content: &[u8]| content[range.start as usize..range.end as usize].to_vec();
        disk.write(range.start, &bytes(&old)).unwrap();
        assert_eq!(clerk.read("ledger"), REFUSED, "{range:?}");
        disk.write(range.start, &bytes(&new)).unwrap();
        assert_eq!(clerk.read("ledger"), "bb", "{range:?} as the guest wrote it");
    }
    assert_eq!(clerk.read("other"), "xx", "what was not touched");
    assert!(guest.console().contains("AEAD ERROR"), "the kernel says why");
}

/// L04: a host that puts a block where another belongs. A block's position is part of what its tag authenticates.
#[test]
fn l04_a_block_that_the_host_moves_is_an_error_to_its_reader() {
    let Some(stage) = stage() else { return };
    let (workload, disk) = (workload(&stage, |policy| policy), disk());
    let guest = machine(&stage, &workload, &[&disk]);
    guest.done(scratch(&id('1'), "scratch0", Tags::Memory));
    let mut clerk = clerk(&guest, &workload, &id('1'), &id('1'));
    clerk.write("first", 'a');
    clerk.write("second", 'a');
    let states = ["first", "second"].map(|name| {
        let before = content(&disk);
        clerk.write(name, 'b');
        file_blocks(&before, &content(&disk))
    });
    let [first, second] = states;
    let at = |number: u64| number * BLOCK;
    let (one, two) = (disk.read(at(first.start), FILE).unwrap(), disk.read(at(second.start), FILE).unwrap());
    // The same plaintext, and each valid where it is.
    disk.write(at(first.start), &two).unwrap();
    disk.write(at(second.start), &one).unwrap();
    assert_eq!((clerk.read("first").as_str(), clerk.read("second").as_str()), (REFUSED, REFUSED));
    disk.write(at(first.start), &one).unwrap();
    disk.write(at(second.start), &two).unwrap();
    assert_eq!((clerk.read("first").as_str(), clerk.read("second").as_str()), ("bb", "bb"));
}

/// L01, L03 (CVE-2025-59054 and its kin): headers that a host wrote. Nothing on a scratch disk is a header: whatever is
/// there, the guest reads no block that it did not write itself.
#[test]
fn l01_l03_what_the_host_put_on_the_disk_is_never_read() {
    let Some(stage) = stage() else { return };
    let (workload, disk) = (workload(&stage, |policy| policy), disk());
    // A LUKS2 header that says "no cipher", dm-integrity's superblock, an ext4 superblock.
    disk.write(0, b"LUKS\xba\xbe\x00\x02 {\"segments\":{\"0\":{\"encryption\":\"cipher_null-ecb\"}}}")
        .unwrap();
    disk.write(16384, b"SKUL\xba\xbe\x00\x02").unwrap();
    disk.write(8192, b"integrt\0\x04\x00\x1c\x00").unwrap();
    disk.write(1024 + 0x38, &[0x53, 0xef]).unwrap();
    let guest = machine(&stage, &workload, &[&disk]);
    disk.forget_accesses();
    guest.done(scratch(&id('1'), "scratch0", Tags::Memory));
    let mut clerk = clerk(&guest, &workload, &id('1'), &id('1'));
    clerk.write("file", 'a');
    assert_eq!(clerk.read("file"), "aa");
    let mut written = vec![false; BLOCKS as usize];
    for access in disk.accesses() {
        let blocks = (access.offset / BLOCK) as usize
            ..(access.offset + u64::from(access.length)).div_ceil(BLOCK) as usize;
        match access.operation {
            Operation::Write => written[blocks].fill(true),
            Operation::Read => {
                assert!(written[blocks].iter().all(|&own| own), "reads the host's bytes: {access:?}")
            }
            _ => {}
        }
    }
    assert!(written.iter().any(|&own| own), "the honest twin: the guest did write");
}

/// L05 (hcsshim 0a55db758): no request says "unencrypted". What a host can choose is the policy's to allow.
#[test]
fn l05_scratch_is_encrypted_and_anything_weaker_is_the_policys_to_allow() {
    let Some(stage) = stage() else { return };
    let (strict, disk) = (
        workload(&stage, |policy| {
            policy.replace("allow_memory_scratch := true", "allow_memory_scratch := false")
        }),
        disk(),
    );
    let guest = machine(&stage, &strict, &[&disk]);
    // Every field there is.
    let Request::MountScratch { scratch: _, device: _, data_blocks: _, tags: _ } =
        scratch("", "", Tags::Memory)
    else {
        unreachable!()
    };
    let layers = strict.overlay_layers();
    let memory = Request::MountOverlay {
        container: &id('1'),
        layers: support::list(layers.iter().map(String::as_str)),
        scratch: None,
    };
    let refused = guest.refused(memory);
    assert!(denied_for(&refused, Point::ScratchMount, policy::Reason::ScratchInMemory), "{refused:?}");
    let refused = guest.refused(scratch(&id('1'), "scratch0", Tags::Disk));
    assert!(denied_for(&refused, Point::RwMountDevice, policy::Reason::ScratchUnprotected), "{refused:?}");
    let large = Request::MountScratch {
        scratch: &id('1'),
        device: "scratch0",
        data_blocks: (16 << 30) / BLOCK + 1,
        tags: Tags::Memory,
    };
    let refused = guest.refused(large);
    assert!(denied_for(&refused, Point::RwMountDevice, policy::Reason::ScratchTooLarge), "{refused:?}");
    guest.done(scratch(&id('1'), "scratch0", Tags::Memory));
    let mut clerk = clerk(&guest, &strict, &id('1'), &id('1'));
    clerk.write("secret", 'S');
    assert_eq!(clerk.read("secret"), "SS", "the honest twin");
    let disk = content(&disk);
    assert!(!disk.windows(32).any(|window| window == [b'S'; 32]), "the host reads what the container wrote");
    let Reply::Properties(properties) = guest.done(Request::GetProperties) else { panic!("no properties") };
    let scratch: Vec<_> =
        properties.scratch.iter().map(|(id, kind)| (id.as_str().to_owned(), *kind)).collect();
    assert_eq!(scratch, [(id('1'), ScratchKind::Sealed)]);
}

/// What the policy allows is what there is: space in memory, and space without protection against roll-back, both of which
/// the list of properties names.
#[test]
fn l05_weaker_scratch_that_the_policy_allows_works_and_is_named() {
    let Some(stage) = stage() else { return };
    let rollback =
        |policy: String| policy.replace("allow_scratch_rollback := false", "allow_scratch_rollback := true");
    let (weak, disk) = (workload(&stage, rollback), disk());
    let guest = machine(&stage, &weak, &[&disk]);
    assert_eq!(
        guest.refused(scratch(&id('1'), "scratch0", Tags::Disk)),
        Reason::Failed { step: Step::DeviceSize, errno: 28 },
        "no room for tags"
    );
    let data_blocks = parma_guest::target::volume::Layout::of(BLOCKS * BLOCK).data_blocks;
    guest.done(Request::MountScratch {
        scratch: &id('1'),
        device: "scratch0",
        data_blocks,
        tags: Tags::Disk,
    });
    let mut on_disk = clerk(&guest, &weak, &id('1'), &id('1'));
    on_disk.write("file", 'a');
    assert_eq!(on_disk.read("file"), "aa");
    let image = content(&disk);
    assert!(!image.windows(32).any(|window| window == [b'a'; 32]), "encrypted all the same");
    // A changed block is an error here too.
    on_disk.write("file", 'b');
    let file = file_blocks(&image, &content(&disk));
    disk.write(file.start * BLOCK, &[0; 512]).unwrap();
    assert_eq!(on_disk.read("file"), REFUSED);
    guest.mount_overlay(&weak, &id('2'));
    let Reply::Properties(properties) = guest.done(Request::GetProperties) else { panic!("no properties") };
    let kinds: Vec<ScratchKind> = properties.scratch.iter().map(|&(_, kind)| kind).collect();
    assert_eq!(kinds, [ScratchKind::SealedWithoutRollbackProtection, ScratchKind::Memory]);
}

/// L06: one disk for two purposes. By one serial it is refused; by two it is noise to whoever did not write it.
#[test]
fn l06_a_disk_that_serves_twice_shows_nobody_anothers_data() {
    let Some(stage) = stage() else { return };
    let (workload, disk) = (workload(&stage, |policy| policy), disk());
    let largest = workload.layers.iter().max_by_key(|layer| layer.data_blocks).unwrap();
    let layer = ScriptedDisk::copy_of(&largest.path).unwrap();
    let guest = machine(&stage, &workload, &[&disk, &disk, &layer]);
    let (one, two) = (id('1'), id('2'));
    guest.done(scratch(&one, "scratch0", Tags::Memory));
    let device = Reason::InUse { field: Field::Device };
    assert_eq!(guest.refused(scratch(&two, "scratch0", Tags::Memory)), device);
    let taken = Reason::InUse { field: Field::Scratch };
    assert_eq!(guest.refused(scratch(&one, "scratch1", Tags::Memory)), taken);
    assert_eq!(guest.refused(scratch(&two, &workload.serial(0), Tags::Memory)), device, "a mounted layer");
    let mut first = clerk(&guest, &workload, &one, &one);
    first.write("file", 'a');
    assert_eq!(first.read("file"), "aa", "the honest twin");
    // The same disk again, by another name: the guest makes a filesystem over the first one's.
    guest.done(scratch(&two, "scratch1", Tags::Memory));
    let mut second = clerk(&guest, &workload, &two, &two);
    second.write("file", 'b');
    assert_eq!(second.read("file"), "bb");
    assert_ne!(first.read("file"), "bb");
    // A layer as scratch space is overwritten, and is no layer any more.
    let small = Request::MountScratch {
        scratch: &id('3'),
        device: "scratch2",
        data_blocks: 4096,
        tags: Tags::Memory,
    };
    guest.done(small);
    let mount = Request::MountDevice {
        device: "scratch2",
        root_hash: largest.root_hash,
        data_blocks: largest.data_blocks,
    };
    assert_eq!(guest.refused(mount.clone()), device);
    guest.done(Request::UnmountScratch { scratch: &id('3') });
    let refused = guest.refused(mount);
    assert!(matches!(refused, Reason::Failed { step: Step::LayerFilesystem, .. }), "{refused:?}");
}

/// L07: keys that come again, in another boot or for another disk, would let a host put back what it kept.
#[test]
fn l07_the_same_content_is_other_ciphertext_in_each_boot_and_on_each_mount() {
    let Some(stage) = stage() else { return };
    let workload = workload(&stage, |policy| policy);
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for _ in 0..2 {
        let disk = disk();
        let guest = machine(&stage, &workload, &[&disk]);
        for _ in 0..2 {
            guest.done(scratch(&id('f'), "scratch0", Tags::Memory));
            // Where the filesystem's metadata is, which the guest makes the same each time.
            let superblock = disk.read(0, BLOCK as usize).unwrap();
            assert!(!seen.contains(&superblock));
            seen.push(superblock);
            guest.done(Request::UnmountScratch { scratch: &id('f') });
        }
    }
}

/// L09: which blocks are free is nobody's business; a discard would tell.
#[test]
fn l09_no_discard_reaches_the_disk() {
    let Some(stage) = stage() else { return };
    let (workload, disk) = (workload(&stage, |policy| policy), disk());
    let guest = machine(&stage, &workload, &[&disk]);
    guest.done(scratch(&id('1'), "scratch0", Tags::Memory));
    let mut clerk = clerk(&guest, &workload, &id('1'), &id('1'));
    clerk.write("file", 'a');
    assert_eq!(clerk.ask("remove file"), "removed");
    drop(clerk);
    guest.done(Request::ShutdownContainer { container: &id('1') });
    guest.done(Request::UnmountOverlay { container: &id('1') });
    guest.done(Request::UnmountScratch { scratch: &id('1') });
    let accesses = disk.accesses();
    assert!(accesses.iter().any(|access| access.operation == Operation::Flush), "the honest twin");
    let other: Vec<_> = accesses
        .iter()
        .filter(|access| !matches!(access.operation, Operation::Read | Operation::Write | Operation::Flush))
        .collect();
    assert!(other.is_empty(), "{other:?}");
}

/// A pod's containers share a scratch device, each with files of its own, and leave it usable for those that follow.
#[test]
fn containers_of_a_pod_share_a_device_and_nothing_on_it() {
    let Some(stage) = stage() else { return };
    let (workload, disk) = (workload(&stage, |policy| policy), disk());
    let guest = machine(&stage, &workload, &[&disk]);
    let pod = id('f');
    guest.done(scratch(&pod, "scratch0", Tags::Memory));
    let mut one = clerk(&guest, &workload, &id('1'), &pod);
    let mut two = clerk(&guest, &workload, &id('2'), &pod);
    one.write("file", 'a');
    two.write("file", 'b');
    assert_eq!((one.read("file").as_str(), two.read("file").as_str()), ("aa", "bb"));
    let in_use = Reason::InUse { field: Field::Scratch };
    assert_eq!(guest.refused(Request::UnmountScratch { scratch: &pod }), in_use);
    for container in [id('1'), id('2')] {
        guest.done(Request::ShutdownContainer { container: &container });
        guest.done(Request::UnmountOverlay { container: &container });
    }
    let mut three = clerk(&guest, &workload, &id('3'), &pod);
    assert_eq!(three.read("file"), "ENOENT");
}

/// The layer that holds a data volume's content here, and what is in it.
fn data_layer(stage: &Stage) -> support::Layer {
    stage.workload("busybox", &["true"], GenerateOptions::default()).layers.remove(0)
}

fn mount_entry(source: &str, destination: &str, access: &str) -> String {
    format!(
        r#"{{"type": "bind", "source": "{source}", "destination": "{destination}", "options": ["rbind", "rshared", "{access}"]}}"#
    )
}

/// A workload whose container may have these mounts.
fn workload_with(stage: &Stage, entries: &[String]) -> Workload {
    workload(stage, |policy| {
        policy.replace("\"mounts\": []", &format!("\"mounts\": [{}]", entries.join(", ")))
    })
}

/// A container with these mounts, on the scratch space of this id.
fn clerk_with(
    guest: &Guest,
    workload: &Workload,
    container: &str,
    scratch: &str,
    mounts: &[Mount<'_>],
) -> Clerk {
    guest.mount_overlay_on(workload, container, Some(scratch));
    let stdio = Stdio { stdin: true, stdout: true, stderr: false, terminal: None };
    let process = guest.started(create_with(workload, container, mounts, stdio));
    Clerk { input: guest.attach(process, Stream::Stdin), output: guest.attach(process, Stream::Stdout) }
}

fn create_with<'a>(
    workload: &'a Workload,
    container: &'a str,
    mounts: &[Mount<'a>],
    stdio: Stdio,
) -> Request<'a> {
    let mounts = List::from_vec(mounts.to_vec()).unwrap();
    Request::CreateContainer {
        container,
        privileged: false,
        mounts,
        seccomp: None,
        process: workload.process(stdio),
    }
}

/// Takes half a GiB of the disk and writes a block of it for each page that its blocks' 28 bytes fill; prints how much more memory, in
/// KiB, the guest's kernel has then given out and keeps in no account: RAM disks, and device-mapper's buffers.
const MEASURER: &str = "\
import os
def unaccounted():
    rows = dict(line.split(':') for line in open('/proc/meminfo'))
    kib = lambda name: int(rows[name].split()[0])
    # Free pages that a processor keeps at hand are not in MemFree.
    at_hand = sum(4 * int(line.split()[1]) for line in open('/proc/zoneinfo') if line.split()[0] == 'count:')
    return kib('MemTotal') - at_hand - sum(map(kib, ['MemFree', 'Buffers', 'Cached', 'AnonPages', 'Slab', 'PageTables', 'KernelStack']))
file = os.open('/tmp/file', os.O_RDWR | os.O_CREAT, 0o600)
os.posix_fallocate(file, 0, 1 << 29)
os.fsync(file)
before = unaccounted()
for at in range(0, 1 << 29, 4096 // 28 * 4096):
    os.pwrite(file, b'x' * 4096, at)
os.fsync(file)
print(unaccounted() - before)
";

/// The price of roll-back protection: 7 MiB of memory for each GiB that was written. The twin keeps its tags on the disk; what
/// device-mapper buffers of them is the same for both, as long as it is less than the most that it may take.
#[test]
fn protection_from_roll_back_takes_28_bytes_of_memory_a_block() {
    let Some(stage) = stage() else { return };
    let blocks = (3 << 28) / BLOCK;
    let workload =
        stage.workload_with("python", &["python3", "-c", MEASURER], GenerateOptions::default(), |policy| {
            policy.replace("allow_scratch_rollback := false", "allow_scratch_rollback := true")
        });
    let disks = ["scratch0", "scratch1"].map(|name| {
        let path = stage.file(name, b"");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len((blocks + blocks / 64) * BLOCK).unwrap();
        Disk::writable(&path, serial(name))
    });
    let guest = stage.boot(workload.policy.host_data(), workload.disks().into_iter().chain(disks).collect());
    guest.accept(&workload.policy.image);
    guest.mount_layers(&workload);
    let ways = [(Tags::Memory, '1', '3', "scratch0"), (Tags::Disk, '2', '4', "scratch1")];
    let [protected, twin] = ways.map(|(tags, space, container, device)| {
        let (space, container) = (id(space), id(container));
        guest.done(Request::MountScratch { scratch: &space, device, data_blocks: blocks, tags });
        guest.mount_overlay_on(&workload, &container, Some(&space));
        let process = guest.create(&workload, &container, support::OUTPUT);
        let (output, _) = guest.finish(process);
        output.trim().parse::<i64>().unwrap_or_else(|_| panic!("{output}"))
    });
    let difference = protected - twin;
    assert!((3 << 10..=4 << 10).contains(&difference), "{protected} KiB with protection, {twin} KiB without");
}

/// An `emptyDir` is the pod's own, and a read-only volume is what its root hash says; neither goes anywhere else.
#[test]
fn directories_of_a_pod_and_verified_volumes_are_mounted_where_the_policy_says() {
    let Some(stage) = stage() else { return };
    let layer = data_layer(&stage);
    let entries = [
        mount_entry("sandbox:///tmp/atlas/emptydir/.+", "/shared", "rw"),
        mount_entry(&format!("verity://{}", parma::output::hex(&layer.root_hash)), "/deep/data", "ro"),
    ];
    let (workload, disk) = (workload_with(&stage, &entries), disk());
    let mut disks = workload.disks();
    disks.push(Disk::scripted(&disk, serial("scratch0")));
    disks.push(Disk::layer(&layer.path, serial("model")));
    let guest = stage.boot(workload.policy.host_data(), disks);
    guest.accept(&workload.policy.image);
    guest.mount_layers(&workload);
    let pod = id('f');
    guest.done(scratch(&pod, "scratch0", Tags::Memory));
    let (root_hash, data_blocks) = (layer.root_hash, layer.data_blocks);
    guest.done(Request::MountDevice { device: "model", root_hash, data_blocks });
    let shared = Mount { source: Source::Directory("cache"), destination: "/shared", read_only: false };
    let data = Mount { source: Source::Layer("model"), destination: "/deep/data", read_only: true };
    let mut one = clerk_with(&guest, &workload, &id('1'), &pod, &[shared, data]);
    let mut two = clerk_with(&guest, &workload, &id('2'), &pod, &[shared]);
    one.write("../shared/file", 'a');
    assert_eq!(two.read("../shared/file"), "aa");
    assert_eq!(one.ask("write ../deep/data/file x"), "EROFS");
    assert_eq!(two.read("../deep/data/bin"), "ENOENT", "what was not asked for");
    // Elsewhere, or with other rights, or another layer: the policy's to allow.
    guest.mount_overlay_on(&workload, &id('3'), Some(&pod));
    let base = workload.serial(0);
    for wrong in [
        Mount { destination: "/etc", ..shared },
        Mount { read_only: true, ..shared },
        Mount { destination: "/shared", ..data },
        Mount { source: Source::Layer(&base), ..data },
    ] {
        let refused = guest.refused(create_with(&workload, &id('3'), &[wrong], Stdio::default()));
        assert!(
            denied_for(&refused, Point::CreateContainer, policy::Reason::InvalidMounts),
            "{wrong:?}: {refused:?}"
        );
    }
    let unmount = Request::UnmountDevice { device: "model" };
    assert_eq!(guest.refused(unmount.clone()), Reason::InUse { field: Field::Device });
    drop(one);
    guest.done(Request::ShutdownContainer { container: &id('1') });
    guest.done(unmount);
}

/// By policy, a corrupted layer is the end of the machine.
#[test]
fn i02_a_corrupted_block_ends_the_machine_where_the_policy_says_so() {
    let Some(stage) = stage() else { return };
    let panics =
        |policy: String| policy.replace("panic_on_corruption := false", "panic_on_corruption := true");
    let workload = workload(&stage, panics);
    let top = workload.layers.last().unwrap();
    let disk = ScriptedDisk::copy_of(&top.path).unwrap();
    let last = workload.layers.len() - 1;
    let mut disks = workload.disks();
    disks[last] = Disk::scripted(&disk, serial(&workload.serial(last)));
    let mut guest = stage.boot(workload.policy.host_data(), disks);
    guest.accept(&workload.policy.image);
    guest.mount_layers(&workload);
    // Every block of the layer, from now on.
    disk.write(0, &vec![0xa5; (top.data_blocks * BLOCK) as usize]).unwrap();
    let layers = workload.overlay_layers();
    let overlay = Request::MountOverlay {
        container: &id('1'),
        layers: support::list(layers.iter().map(String::as_str)),
        scratch: None,
    };
    let start = guest
        .session
        .request(overlay)
        .and_then(|_| guest.session.request(create_with(&workload, &id('1'), &[], Stdio::default())));
    let exit = guest.machine.wait(support::LONG).unwrap().expect("the machine ends");
    assert!(exit.by_guest(), "{exit:?} {start:?}");
    assert!(guest.console().contains("dm-verity device corrupted"), "{}", guest.console());
}

/// A volume that its owner made with `parma volume create` keeps its content from one guest to the next; a block that the
/// host changes is an error, another key opens nothing, and a volume that was brought back as a whole is refused where its
/// owner keeps count.
#[test]
fn k09_a_volume_outlives_its_guest_and_what_the_host_does_to_it_is_noticed() {
    let Some(stage) = stage() else { return };
    let key = [7; 32];
    let volume = parma_guest::target::volume::id(&key);
    let path = stage.file("unused", b"").with_file_name("volume.img");
    parma_layer::volume::Volume::create(
        &path,
        20 << 20,
        &parma_layer::volume::Key::read(&mut &key[..]).unwrap(),
    )
    .unwrap();
    let data = ScriptedDisk::copy_of(&path).unwrap();
    let made = data.snapshot().unwrap();
    let entries = [mount_entry(&format!("volume://{}", parma::output::hex(&volume)), "/data", "rw")];
    let workload = workload_with(&stage, &entries);
    let mount = Mount { source: Source::Volume(volume), destination: "/data", read_only: false };
    let open = Request::MountVolume { volume, device: "scratch1" };
    let failed = |step, errno| Reason::Failed { step, errno };
    let (estale, enokey, eilseq) = (116, 126, 84);
    for (generation, earlier) in [(1, "ENOENT"), (2, "bb")] {
        let space = disk();
        let guest = machine(&stage, &workload, &[&space, &data]);
        guest.done(scratch(&id('1'), "scratch0", Tags::Memory));
        let mut owner = Peer::of(&guest, &stage.expected(&workload)).unwrap();
        owner.release(&guest, [8; 32], 0);
        assert_eq!(guest.refused(open.clone()), failed(Step::ReleaseKey, enokey), "another key");
        owner.release(&guest, key, generation - 1);
        let other = Request::MountVolume { volume: [9; 32], device: "scratch1" };
        let refused = guest.refused(other);
        assert!(denied_for(&refused, Point::RwMountDevice, policy::Reason::VolumeNotAllowed), "{refused:?}");
        guest.done(open.clone());
        let Reply::Properties(properties) = guest.done(Request::GetProperties) else {
            panic!("no properties")
        };
        assert_eq!((properties.volumes[0].volume, properties.volumes[0].generation), (volume, generation));
        let mut clerk = clerk_with(&guest, &workload, &id('1'), &id('1'), &[mount]);
        assert_eq!(clerk.read("../data/file"), earlier);
        clerk.write("../data/file", 'a');
        let before = data.read(0, 20 << 20).unwrap();
        clerk.write("../data/file", 'b');
        let file = file_blocks(&before, &data.read(0, 20 << 20).unwrap());
        assert_eq!(clerk.read("../data/file"), "bb");
        let block = data.read(file.start * BLOCK, BLOCK as usize).unwrap();
        data.write(file.start * BLOCK, &[0; BLOCK as usize]).unwrap();
        assert_eq!(clerk.read("../data/file"), REFUSED);
        data.write(file.start * BLOCK, &block).unwrap();
        assert_eq!(clerk.read("../data/file"), "bb");
        drop(clerk);
        guest.done(Request::ShutdownContainer { container: &id('1') });
        guest.done(Request::UnmountVolume { volume });
        if generation == 2 {
            // The volume as it was made, and one with another first block.
            assert_eq!(guest.refused(open.clone()), failed(Step::ReleaseKey, enokey), "a key opens once");
            owner.release(&guest, key, 2);
            data.restore(&made).unwrap();
            assert_eq!(guest.refused(open.clone()), failed(Step::VolumeContent, estale));
            data.write(100, b"x").unwrap();
            let refused = guest.refused(open.clone());
            assert!(
                refused == failed(Step::VolumeContent, eilseq) || refused == failed(Step::VolumeContent, 5),
                "{refused:?}"
            );
        }
    }
}

/// How often this key is in the guest's memory, as it is or as the digits that device-mapper takes.
fn copies(memory: &fs::File, key: &[u8; 32]) -> usize {
    const PART: usize = 1 << 20;
    let digits = parma::output::hex(key).into_bytes();
    let (mut part, zeros) = (vec![0; PART + digits.len() - 1], vec![0; PART + digits.len() - 1]);
    let mut found = 0;
    for at in (0..memory.metadata().unwrap().len()).step_by(PART) {
        let length = memory.read_at(&mut part, at).unwrap();
        if part[..length] == zeros[..length] {
            continue;
        }
        for needle in [&key[..], &digits] {
            // One that begins in the next part is counted there.
            let length = length.min(PART + needle.len() - 1);
            let begins = |window: &&[u8]| window[0] == needle[0] && *window == needle;
            found += part[..length].windows(needle.len()).filter(begins).count();
        }
    }
    found
}

/// While a volume is open the kernel has its key, so the search finds it; afterwards nobody has. That of another volume waits
/// all the while, and is as gone in the end.
#[test]
fn no_copy_of_a_key_is_left_in_the_guests_memory_when_its_volume_is_closed() {
    let Some(stage) = stage() else { return };
    let keys = ["one", "two"].map(|key| <[u8; 32]>::from(Sha256::digest(key)));
    let volumes = keys.map(|key| parma_guest::target::volume::id(&key));
    let names = ["volume0", "volume1"];
    let folder = stage.file("unused", b"");
    let paths = names.map(|name| folder.with_file_name(name));
    for (path, key) in paths.iter().zip(&keys) {
        let key = parma_layer::volume::Key::read(&mut &key[..]).unwrap();
        parma_layer::volume::Volume::create(path, 20 << 20, &key).unwrap();
    }
    let entry = |volume: &[u8; 32], place: &str| {
        mount_entry(&format!("volume://{}", parma::output::hex(volume)), place, "rw")
    };
    let workload = workload_with(&stage, &[entry(&volumes[0], "/a"), entry(&volumes[1], "/b")]);
    let mut disks = workload.disks();
    disks.extend(paths.iter().zip(names).map(|(path, name)| Disk::writable(path, serial(name))));
    let mut config = stage.config(workload.policy.host_data(), disks);
    config.extra_args = arguments(&["-name", "wiped"]);
    let mut machine = Machine::launch(&config).unwrap();
    let session = machine.session().unwrap();
    let guest = Guest { machine, session };
    guest.accept(&workload.policy.image);
    let memory = fs::File::open(memory_of("wiped")).unwrap();
    let mut owner = Peer::of(&guest, &stage.expected(&workload)).unwrap();
    assert_eq!(keys.map(|key| copies(&memory, &key)), [0, 0], "not there yet");
    for key in keys {
        owner.release(&guest, key, 0);
    }
    for ((volume, device), key) in volumes.into_iter().zip(names).zip(&keys) {
        guest.done(Request::MountVolume { volume, device });
        assert!(copies(&memory, key) > 0, "the kernel has it");
        guest.done(Request::UnmountVolume { volume });
        assert_eq!(copies(&memory, key), 0, "{device}");
    }
}

/// The twin of L02 and L04: the same kernel, the same disk and the same two attacks, but plain XTS, as many set-ups have it.
/// A restored block is read as what it was, and a moved one as noise, without any error. So those tests can fail.
#[test]
fn l02_l04_on_plain_xts_the_same_attacks_succeed() {
    let Some(stage) = stage() else { return };
    let disk = ScriptedDisk::zeroed(1 << 20).unwrap();
    let Some(mut guest) = twin::boot(&stage.image, &disk) else { return };
    guest.until("written once");
    let old = disk.snapshot().unwrap();
    let moved = disk.read(0, BLOCK as usize).unwrap();
    assert!(moved[..64] != [b'a'; 64] && moved[..64] != [0; 64], "written, and encrypted");
    guest.go_on();
    guest.until("written again");
    disk.restore(&old).unwrap();
    guest.go_on();
    guest.until("read: as it was before");
    disk.write(BLOCK, &moved).unwrap();
    guest.go_on();
    guest.until("read: noise, and no error");
}
