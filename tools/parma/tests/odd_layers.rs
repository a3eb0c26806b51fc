//! Layers of odd tars: names, links, times, owners, attributes and sizes at their limits.
//!
//! Each layer's hash tree is one that `veritysetup` accepts, `e2fsck` complains of nothing but what the reference's images
//! have, and what a container sees of it under the kernel is what the tar says.

mod support;

use parma_guest::wire::ExitStatus;
use parma_layer::build::{Options, build_file};
use parma_policy::generate::GenerateOptions;
use std::path::Path;
use std::process::Command;
use support::{OUTPUT, id, stage};
use tar::{Builder, EntryType, Header};

/// Prints a line for everything below /odd. Content is shown as a number, the file's bytes modulo a prime.
const LISTER: &str = "\
import os
def show(path):
    s = os.lstat(path)
    kind, detail = s.st_mode >> 12, '-'
    if kind == 8:
        with open(path, 'rb') as file:
            detail = str(int.from_bytes(file.read(), 'big') % 2305843009213693951)
    elif kind == 10:
        detail = os.readlink(path).hex()
    elif kind in (2, 6):
        detail = '%d:%d' % (os.major(s.st_rdev), os.minor(s.st_rdev))
    names = [name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith('trusted.')]
    xattrs = ','.join(name + '=' + os.getxattr(path, name, follow_symlinks=False).hex() for name in sorted(names))
    links = s.st_nlink if kind != 4 else '-'
    size = s.st_size if kind in (8, 10) else '-'
    print(path.hex(), kind, oct(s.st_mode & 0o7777), s.st_uid, s.st_gid, links, size, s.st_mtime_ns, detail, xattrs)
for path, folders, files in os.walk(b'/odd'):
    show(path)
    for name in files + [name for name in folders if os.path.islink(os.path.join(path, name))]:
        show(os.path.join(path, name))
";

/// The prime.
const PRIME: u128 = (1 << 61) - 1;

/// A tar, and what a container is to see of it.
struct Odd {
    tar: Builder<Vec<u8>>,
    lines: Vec<String>,
}

/// What an entry is besides its name and kind.
struct Is<'a> {
    mode: u32,
    owner: (u64, u64),
    /// Seconds and nanoseconds.
    mtime: (i64, u32),
    links: u32,
    content: &'a [u8],
    target: &'a [u8],
    device: (u32, u32),
    xattrs: &'a [(&'a str, &'a [u8])],
    /// Further PAX records.
    records: &'a [(&'a str, &'a [u8])],
}

const PLAIN: Is<'_> = Is {
    mode: 0o644,
    owner: (0, 0),
    mtime: (1_600_000_000, 0),
    links: 1,
    content: b"",
    target: b"",
    device: (0, 0),
    xattrs: &[],
    records: &[],
};

impl Odd {
    /// Adds an entry whose fields are all in PAX records, where they have no limits.
    fn add(&mut self, kind: EntryType, name: &[u8], is: &Is<'_>) {
        let mut records: Vec<(String, Vec<u8>)> = vec![("path".into(), name.into())];
        let mut record = |key: &str, value: &[u8]| records.push((key.into(), value.into()));
        record("uid", is.owner.0.to_string().as_bytes());
        record("gid", is.owner.1.to_string().as_bytes());
        record("mtime", format!("{}.{:09}", is.mtime.0, is.mtime.1).as_bytes());
        if !is.target.is_empty() {
            record("linkpath", is.target);
        }
        is.xattrs.iter().for_each(|(key, value)| record(&format!("SCHILY.xattr.{key}"), value));
        is.records.iter().for_each(|(key, value)| record(key, value));
        self.tar
            .append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), value.as_slice())))
            .unwrap();
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.as_ustar_mut().unwrap().name[..4].copy_from_slice(b"name");
        header.set_mode(is.mode);
        header.set_size(is.content.len() as u64);
        header.set_device_major(is.device.0).unwrap();
        header.set_device_minor(is.device.1).unwrap();
        header.set_cksum();
        self.tar.append(&header, is.content).unwrap();
    }

    /// Adds an entry that the container sees under this name, with this content.
    fn seen(&mut self, kind: EntryType, name: &[u8], is: &Is<'_>) {
        self.add(kind, name, is);
        self.expect(kind, name, is, is.content);
    }

    fn expect(&mut self, kind: EntryType, name: &[u8], is: &Is<'_>, content: &[u8]) {
        let (number, detail) = match kind {
            EntryType::Directory => (4, "-".to_owned()),
            EntryType::Symlink => (10, hex(is.target)),
            EntryType::Char => (2, format!("{}:{}", is.device.0, is.device.1)),
            EntryType::Block => (6, format!("{}:{}", is.device.0, is.device.1)),
            EntryType::Fifo => (1, "-".to_owned()),
            _ => {
                let value = content.iter().fold(0, |sum, byte| (sum * 256 + u128::from(*byte)) % PRIME);
                (8, value.to_string())
            }
        };
        let mode = if kind == EntryType::Symlink { 0o777 } else { is.mode };
        let links = if kind == EntryType::Directory { "-".to_owned() } else { is.links.to_string() };
        let size = match number {
            8 => content.len().to_string(),
            10 => is.target.len().to_string(),
            _ => "-".to_owned(),
        };
        let mut xattrs: Vec<_> =
            is.xattrs.iter().map(|(key, value)| format!("{key}={}", hex(value))).collect();
        xattrs.sort();
        let time = i128::from(is.mtime.0) * 1_000_000_000 + i128::from(is.mtime.1);
        let name = name.strip_suffix(b"/").unwrap_or(name);
        let (path, owner, xattrs) = (hex(&[b"/", name].concat()), is.owner, xattrs.join(","));
        self.lines.push(
            format!(
                "{path} {number} 0o{mode:o} {} {} {links} {size} {time} {detail} {xattrs}",
                owner.0, owner.1
            )
            .trim_end()
            .to_owned(),
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn odd() -> Odd {
    use EntryType::{Block, Char, Directory, Fifo, Link, Regular, Symlink};
    let mut odd = Odd { tar: Builder::new(Vec::new()), lines: Vec::new() };
    let folder = Is { mode: 0o755, ..PLAIN };
    odd.seen(Directory, b"odd/", &folder);
    // Names: the longest, such that no shell likes, deep ones.
    odd.seen(Regular, &[b"odd/", &[b'n'; 255][..]].concat(), &PLAIN);
    for name in ["odd/a b\\c\n\t", "odd/-rf", "odd/gr\u{fc}n", "odd/...", "odd/*", "odd/'\""] {
        odd.seen(Regular, name.as_bytes(), &Is { content: name.as_bytes(), ..PLAIN });
    }
    odd.seen(Regular, b"odd/\xff\xfe", &PLAIN);
    let mut deep = b"odd".to_vec();
    for _ in 0..6 {
        deep.extend([b"/", &[b'd'; 200][..]].concat());
        odd.seen(Directory, &deep, &folder);
    }
    odd.seen(Regular, &[&deep[..], b"/end"].concat(), &PLAIN);
    // Sizes around the ends of blocks.
    for size in [0usize, 1, 4095, 4096, 4097, 300_000] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8 + 1).collect();
        odd.seen(Regular, format!("odd/size{size}").as_bytes(), &Is { content: &content, ..PLAIN });
    }
    // Links that fit into their inode and that do not.
    for length in [1usize, 59, 60, 4000] {
        let target = vec![b't'; length];
        odd.seen(Symlink, format!("odd/link{length}").as_bytes(), &Is { target: &target, ..PLAIN });
    }
    let three = Is { links: 3, content: b"one of three", ..PLAIN };
    odd.seen(Regular, b"odd/hard1", &three);
    for name in [&b"odd/hard2"[..], b"odd/hard3"] {
        odd.add(Link, name, &Is { target: b"odd/hard1", ..PLAIN });
        odd.expect(Regular, name, &three, three.content);
    }
    // Owners, permissions and times at their limits.
    odd.seen(Regular, b"odd/owner", &Is { owner: (4_000_000_000, 70_000), mode: 0o7777, ..PLAIN });
    odd.seen(Regular, b"odd/nobody", &Is { mode: 0, ..PLAIN });
    for (at, mtime) in [(1, 1), (1_234_567_890, 123_456_789), (4_294_967_301, 5), (15_032_385_535, 0)]
        .into_iter()
        .enumerate()
    {
        odd.seen(Regular, format!("odd/time{at}").as_bytes(), &Is { mtime, ..PLAIN });
    }
    // Of a time whose low 32 bits look negative the reference writes bits that mean 136 years earlier.
    let late = Is { mtime: (4_102_444_800, 0), ..PLAIN };
    odd.add(Regular, b"odd/late", &late);
    odd.expect(Regular, b"odd/late", &Is { mtime: (4_102_444_800 - (1 << 32), 0), ..PLAIN }, b"");
    // Devices, large numbers among them, and a pipe.
    odd.seen(Char, b"odd/char", &Is { device: (5, 1), ..PLAIN });
    odd.seen(Block, b"odd/block", &Is { device: (259, 300_000), ..PLAIN });
    odd.seen(Fifo, b"odd/fifo", &PLAIN);
    // Attributes in the inode, in a block of their own, and in both.
    let (small, large) = (("user.small", &b"value"[..]), ("user.large", &[b'v'; 3000][..]));
    let capability: (&str, &[u8]) =
        ("security.capability", &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for (name, xattrs) in [
        ("inside", &[small][..]),
        ("outside", &[large]),
        ("both", &[small, large, capability, ("user.empty", b"")]),
    ] {
        odd.seen(Regular, format!("odd/{name}").as_bytes(), &Is { xattrs, content: b"x", ..PLAIN });
    }
    odd.seen(Directory, b"odd/attributes", &Is { xattrs: &[small], mode: 0o1777, ..PLAIN });
    // A sparse file, as GNU tar writes it into PAX records.
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"4096,3,20000,4"),
        ("GNU.sparse.realsize", b"30000"),
        ("GNU.sparse.name", b"odd/sparse"),
    ];
    odd.add(Regular, b"odd/sparse", &Is { content: b"abcdefg", records, ..PLAIN });
    let mut sparse = vec![0; 30_000];
    sparse[4096..4099].copy_from_slice(b"abc");
    sparse[20_000..20_004].copy_from_slice(b"defg");
    odd.expect(Regular, b"odd/sparse", &PLAIN, &sparse);
    // A directory of many blocks, one that is described after what it holds, and one that nobody describes.
    for number in 0..700 {
        odd.seen(Regular, format!("odd/many/a-rather-long-name-{number:04}").as_bytes(), &PLAIN);
    }
    odd.seen(Directory, b"odd/many", &Is { mode: 0o711, owner: (1, 2), ..PLAIN });
    odd.seen(Regular, b"odd/implicit/file", &PLAIN);
    odd.expect(Directory, b"odd/implicit", &folder, b"");
    odd
}

/// Runs a tool that may be absent; gives what it says.
fn tool(name: &str, arguments: &[&str]) -> Option<(String, bool)> {
    let found = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
    let Some(path) = found.iter().find(|path| path.exists()) else {
        println!("skipped: {name} is not installed");
        return None;
    };
    let output = Command::new(path).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Some((text.into_owned(), output.status.success()))
}

/// What the checkers say of the image of this tar. Gives its root hash.
fn check(tar: &[u8], complaints: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("tar"), dir.path().join("img"));
    std::fs::write(&input, tar).unwrap();
    let built = build_file(&input, &output, &Options::default(), &mut |_| ()).unwrap();
    let image = output.to_str().unwrap();
    let offset = format!("--hash-offset={}", built.data_blocks * 4096);
    if let Some((text, content)) = tool("veritysetup", &["verify", image, image, &built.root_hex(), &offset])
    {
        assert!(content, "{text}");
    }
    if let Some((text, _)) = tool("e2fsck", &["-fn", image]) {
        for line in text.lines().filter(|line| line.contains("no") && line.contains('?')) {
            let known = complaints.iter().any(|complaint| line.contains(complaint));
            assert!(known, "{line}\nin\n{text}");
        }
        assert!(text.contains("WARNING: Filesystem still has errors") || text.contains("files ("), "{text}");
    }
    built.root_hex()
}

/// The reference leaves the padding of inode bitmaps clear; then e2fsck says that it would change it.
const PADDING: &str = "Padding at end of inode bitmap is not set. Fix? no";

/// The root hash of Microsoft's own image of [`odd`]: `tar2ext4` of hcsshim, commit 7c9ff7f48.
const REFERENCE: &str = "72074aa880c71cee0e12e2c63e2e97e7dd128a2b5d6e5a6c00767783d1b87b7f";

#[test]
fn the_images_of_odd_tars_are_ones_that_the_checkers_accept() {
    let odd = odd().tar.into_inner().unwrap();
    assert_eq!(check(&odd, &[PADDING]), REFERENCE);
    // Nothing at all, and one empty file.
    check(&[0; 1024], &[PADDING]);
    check(&support::tar(&[(EntryType::Regular, "a", "", b"")]), &[PADDING]);
    // A time before 1970 keeps its sign in bits where e2fsck does not look for it, in the reference as here.
    let mut old = Odd { tar: Builder::new(Vec::new()), lines: Vec::new() };
    old.add(EntryType::Regular, b"old", &Is { mtime: (-86_400, 0), ..PLAIN });
    check(&old.tar.into_inner().unwrap(), &[PADDING, "Clear? no", "Fix? no"]);
}

#[test]
fn a_file_of_more_extents_than_its_inode_holds_is_one_that_the_checkers_accept() {
    let size = (4u64 << 27) + 5000;
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"536870912,5"),
        ("GNU.sparse.realsize", &size.to_string().into_bytes()),
    ];
    let mut large = Odd { tar: Builder::new(Vec::new()), lines: Vec::new() };
    large.add(EntryType::Regular, b"large", &Is { content: b"the e", records, ..PLAIN });
    check(&large.tar.into_inner().unwrap(), &[PADDING]);
}

#[test]
fn a_container_sees_of_an_odd_layer_what_its_tar_says() {
    let Some(stage) = stage() else { return };
    let Odd { tar, mut lines } = odd();
    let layout = stage.layout("python", "odd", &tar.into_inner().unwrap(), |_| {});
    let options = GenerateOptions::default();
    let workload =
        stage.workload_of(&layout, "odd", &["python3", "-c", LISTER], options, |policy| policy).of_root();
    let guest = stage.start(&workload);
    let process = guest.run(&workload, &id('1'), OUTPUT);
    let (output, status) = guest.finish(process);
    assert_eq!(status, ExitStatus::Code(0), "{output}");
    let mut seen: Vec<&str> = output.lines().map(str::trim_end).collect();
    seen.sort_unstable();
    lines.sort_unstable();
    for (seen, said) in seen.iter().zip(&lines) {
        assert_eq!(seen, said);
    }
    assert_eq!(seen.len(), lines.len());
}
