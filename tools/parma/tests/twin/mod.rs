//! A guest of the tests' own: the measured kernel with a shell script for an init, which puts plain XTS on a disk. It shows what
//! our own scratch space would let through if it were no better than that.

use parma_guest::gate::fields::Serial;
use parma_vmm::{Disk, Image, ScriptedDisk};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// What the init needs of this machine.
const PROGRAMS: [&str; 5] = ["sh", "mount", "dmsetup", "dd", "cmp"];

/// Writes block 0 twice and block 1 once, and reads both past every cache; waits for a line where the test acts.
const INIT: &str = "\
mount -t devtmpfs none /dev
mount -t proc none /proc
dmsetup --noudevsync create twin --table \"0 2048 crypt aes-xts-plain64 KEY 0 /dev/vda 0 1 sector_size:4096\"
write() { dd if=/$1 of=/dev/dm-0 bs=4096 count=1 seek=$2 oflag=direct conv=fsync,notrunc 2>/dev/null; }
read_block() { dd if=/dev/dm-0 of=/seen bs=4096 count=1 skip=$1 iflag=direct 2>/dev/null; }
write a 0 && write c 1 && echo written once
read line
write b 0 && echo written again
read line
read_block 0 && cmp -s /seen /a && echo read: as it was before
read line
read_block 1 && ! cmp -s /seen /c && ! cmp -s /seen /a && echo read: noise, and no error
read line
";

/// The running guest.
pub struct Guest {
    qemu: Child,
    input: ChildStdin,
    output: ChildStdout,
    _initrd: tempfile::NamedTempFile,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Guest {
    /// Reads what the guest says up to this line.
    pub fn until(&mut self, line: &str) {
        let mut said = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&said).contains(&format!("{line}\r\n")) {
            match self.output.read(&mut byte) {
                Ok(1) => said.push(byte[0]),
                other => panic!("{other:?} after {:?}, waiting for {line:?}", String::from_utf8_lossy(&said)),
            }
        }
    }

    /// Lets the guest take its next step.
    pub fn go_on(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }
}

/// Boots it on this disk; `None` after saying what is missing.
pub fn boot(image: &Image, disk: &ScriptedDisk) -> Option<Guest> {
    let found: Vec<Option<PathBuf>> = PROGRAMS.iter().map(|name| find(name)).collect();
    if found.iter().any(Option::is_none) {
        eprintln!("skipped: it needs {PROGRAMS:?}; install dmsetup and diffutils");
        return None;
    }
    let mut cpio = Cpio::default();
    for directory in ["bin", "dev", "proc"] {
        cpio.add(directory, 0o040_755, &[]);
    }
    for (name, path) in PROGRAMS.iter().zip(found.into_iter().flatten()) {
        cpio.add(&format!("bin/{name}"), 0o100_755, &fs::read(&path).unwrap());
        libraries(&path).iter().for_each(|library| cpio.file(library));
    }
    for name in ["a", "b", "c"] {
        cpio.add(name, 0o100_644, &name.repeat(4096).into_bytes());
    }
    let script =
        INIT.replace("KEY", &"5a".repeat(32).chars().chain("a5".repeat(32).chars()).collect::<String>());
    cpio.add("init", 0o100_755, format!("#!/bin/sh\nexport PATH=/bin\n{script}").as_bytes());
    let initrd = tempfile::NamedTempFile::new().unwrap();
    fs::write(initrd.path(), cpio.finish()).unwrap();
    let node = Disk::scripted(disk, Serial::parse("twin").unwrap()).node("twin", 0).unwrap();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-M", "q35", "-m", "256M"])
        .args(["-accel", "tcg", "-cpu", "max", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(initrd.path())
        .args(["-append", "console=ttyS0 quiet panic=-1 reboot=t no_timer_check"])
        .arg("-blockdev")
        .arg(node.to_string())
        .args(["-device", "virtio-blk-pci,drive=twin,disable-legacy=on"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (input, output) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
    Some(Guest { qemu, input, output, _initrd: initrd })
}

fn find(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|place| Path::new(place).join(name))
        .find(|path| path.exists())
}

/// The shared libraries of a program, its loader included.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// An initramfs (`Documentation/driver-api/early-userspace/buffer-format.rst`, newc).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Cpio {
    /// A file of this machine at its own path, with the directories above it.
    fn file(&mut self, path: &Path) {
        let name = path.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
        for (at, _) in name.match_indices('/') {
            self.add(&name[..at], 0o040_755, &[]);
        }
        self.add(&name, 0o100_755, &fs::read(path).unwrap());
    }

    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        if self.names.iter().any(|other| other == name) {
            return;
        }
        self.names.push(name.to_owned());
        let fields =
            [self.names.len(), mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        fields.iter().for_each(|field| self.bytes.extend_from_slice(format!("{field:08x}").as_bytes()));
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
