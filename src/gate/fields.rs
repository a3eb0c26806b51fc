//! What a request's fields must be before anything looks at them.
//!
//! Each type here has one constructor, which refuses and never repairs. A value proves that it has the form its type
//! describes and nothing else: not that the thing exists, and not that the policy allows it.

use super::memory::{self, OutOfMemory};
use crate::wire::{self, Field, MAX_ENV, Rule};
use alloc::borrow::Cow;
use core::fmt;
use core::ops::RangeInclusive;

/// Why a value is not valid in itself. `value` is the offending part, as the host sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid<'a> {
    /// The field.
    pub field: Field,
    /// The rule it breaks.
    pub rule: Rule,
    /// The host's own value.
    pub value: &'a str,
}

pub(super) fn invalid<T>(field: Field, rule: Rule, value: &str) -> Result<T, Invalid<'_>> {
    Err(Invalid { field, rule, value })
}

/// A container's id: 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId([u8; Self::LENGTH]);

impl ContainerId {
    /// Its length in bytes.
    pub const LENGTH: usize = 64;

    /// SECURITY (I09): a fixed alphabet and length leave no room for `..`, `/` or NUL.
    pub fn parse(text: &str) -> Result<Self, Invalid<'_>> {
        match text.as_bytes().try_into() {
            Ok(bytes) if text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) => Ok(Self(bytes)),
            _ => invalid(Field::Container, Rule::ContainerId, text),
        }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        // The constructor admits ASCII only, so the empty string is never taken.
        core::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A virtio-blk serial: 1 to 20 of `A–Z a–z 0–9 - _` (virtio 1.2, 5.2.6.1: at most 20 bytes).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Serial(heapless::String<{ Serial::MAX }>);

impl Serial {
    /// Most bytes.
    pub const MAX: usize = 20;

    /// The serial of these characters.
    pub fn parse(text: &str) -> Result<Self, Invalid<'_>> {
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        match heapless::String::try_from(text) {
            Ok(serial) if plain && !text.is_empty() => Ok(Self(serial)),
            _ => invalid(Field::Device, Rule::Serial, text),
        }
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where the guest puts a mounted layer: `/run/mounts/scsi/m<slot>`. The guest chooses the slot; see difference D3.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub(crate) u16);

impl Slot {
    /// Longest path, in bytes.
    pub const PATH_MAX: usize = 24;

    /// Its number.
    pub fn number(self) -> u16 {
        self.0
    }

    /// Its mount point.
    pub fn path(self) -> heapless::String<{ Self::PATH_MAX }> {
        let mut path = heapless::String::new();
        // 18 bytes and at most five digits always fit.
        let _ = fmt::Write::write_fmt(&mut path, format_args!("/run/mounts/scsi/m{}", self.0));
        path
    }
}

/// A dm-verity root hash, SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootHash(pub [u8; 32]);

impl RootHash {
    /// The 64 lower-case hexadecimal digits that policies use.
    pub fn hex(&self) -> heapless::String<64> {
        let mut hex = heapless::String::new();
        for byte in self.0 {
            // 32 bytes are 64 digits.
            let _ = fmt::Write::write_fmt(&mut hex, format_args!("{byte:02x}"));
        }
        hex
    }
}

impl fmt::Debug for RootHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// The id of a read-write data volume: which key opens it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VolumeId(pub [u8; 32]);

impl VolumeId {
    /// The 64 lower-case hexadecimal digits that policies use.
    pub fn hex(&self) -> heapless::String<64> {
        RootHash(self.0).hex()
    }

    /// Where the guest mounts it.
    pub fn path(&self) -> heapless::String<96> {
        let mut path = heapless::String::new();
        // 20 bytes and 64 digits fit.
        let _ = fmt::Write::write_fmt(&mut path, format_args!("/run/mounts/volumes/{}", self.hex()));
        path
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// SHA-256 of a profile of system calls, as policies name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProfileHash(pub [u8; 32]);

impl ProfileHash {
    /// The 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> heapless::String<64> {
        RootHash(self.0).hex()
    }
}

/// A number of 4096-byte data blocks, at most 128 GiB of them (`layer-format`: the largest disk of Azure's policies).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataBlocks(u64);

impl DataBlocks {
    /// Most blocks.
    pub const MAX: u64 = (128 << 30) / 4096;

    /// This many.
    pub fn new(blocks: u64) -> Result<Self, Invalid<'static>> {
        if (1..=Self::MAX).contains(&blocks) {
            Ok(Self(blocks))
        } else {
            invalid(Field::DataBlocks, Rule::Range, "")
        }
    }

    /// How many.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The size of a scratch space in blocks of 4096 bytes: from 16 MiB, so that there is room for a filesystem, to 128 GiB, so
/// that its tags fit one RAM disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ScratchBlocks(u64);

impl ScratchBlocks {
    /// Fewest blocks.
    pub const MIN: u64 = (16 << 20) / 4096;
    /// Most blocks.
    pub const MAX: u64 = (128 << 30) / 4096;

    /// This many.
    pub fn new(blocks: u64) -> Result<Self, Invalid<'static>> {
        if (Self::MIN..=Self::MAX).contains(&blocks) {
            Ok(Self(blocks))
        } else {
            invalid(Field::DataBlocks, Rule::Range, "")
        }
    }

    /// How many.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The name of a directory on scratch space: 1 to 64 of `A–Z a–z 0–9 . _ -`, not starting with a dot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectoryName<'a>(&'a str);

impl<'a> DirectoryName<'a> {
    /// Most bytes.
    pub const MAX: usize = 64;

    /// This name.
    pub fn parse(name: &'a str) -> Result<Self, Invalid<'a>> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if plain && !name.is_empty() && name.len() <= Self::MAX && !name.starts_with('.') {
            Ok(Self(name))
        } else {
            invalid(Field::Mounts, Rule::DirectoryName, name)
        }
    }

    /// The name.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// Where something is mounted in a container: as [`WorkingDir`], not the root, and outside of what the guest itself mounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MountPoint<'a>(&'a str);

impl<'a> MountPoint<'a> {
    /// This path.
    pub fn parse(path: &'a str) -> Result<Self, Invalid<'a>> {
        // SECURITY (I10, C04): nothing covers the guest's own filesystems or what it masks in them.
        let first = path.split('/').nth(1).unwrap_or_default();
        if WorkingDir::parse(path).is_ok() && !matches!(first, "" | "dev" | "proc" | "sys") {
            Ok(Self(path))
        } else {
            invalid(Field::Mounts, Rule::MountPoint, path)
        }
    }

    /// The path.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// An argument vector: at least one, the first not empty, no NUL inside (C07, the pwnkit class).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Args<'a>(&'a [&'a str]);

impl<'a> Args<'a> {
    /// These arguments.
    pub fn parse(args: &'a [&'a str]) -> Result<Self, Invalid<'a>> {
        match args.first() {
            None => return invalid(Field::Command, Rule::NotEmpty, ""),
            Some(&"") => return invalid(Field::Command, Rule::CString, ""),
            Some(_) => {}
        }
        match args.iter().find(|arg| arg.contains('\0')) {
            Some(arg) => invalid(Field::Command, Rule::CString, arg),
            None => Ok(Self(args)),
        }
    }

    /// In order.
    pub fn as_slice(&self) -> &'a [&'a str] {
        self.0
    }
}

/// An environment: at most [`MAX_ENV`] variables, `NAME=value` each, no name twice, no NUL inside, in the host's order
/// (difference D7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Env<'a>(Cow<'a, [&'a str]>);

impl<'a> Env<'a> {
    /// These variables.
    pub fn parse(env: &'a [&'a str]) -> Result<Self, Invalid<'a>> {
        let mut names = heapless::Vec::<&str, MAX_ENV>::new();
        for variable in env {
            match variable.split_once('=') {
                Some((name, _)) if !name.is_empty() && !variable.contains('\0') => {
                    if names.push(name).is_err() {
                        return invalid(Field::Environment, Rule::Range, "");
                    }
                }
                _ => return invalid(Field::Environment, Rule::Variable, variable),
            }
        }
        // SECURITY (C05): which of two equal names a program takes differs between programs.
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => invalid(Field::Environment, Rule::UniqueNames, pair[0]),
            None => Ok(Self(Cow::Borrowed(env))),
        }
    }

    /// In order.
    pub fn as_slice(&self) -> &[&'a str] {
        &self.0
    }

    /// Only the variables that `keep` names, in the host's order.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) -> Result<(), OutOfMemory> {
        let mut kept = memory::room(self.0.len())?;
        kept.extend(self.0.iter().copied().filter(|variable| keep(variable)));
        self.0 = Cow::Owned(kept);
        Ok(())
    }
}

/// An absolute path without NUL, `.`, `..` or empty components.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkingDir<'a>(&'a str);

impl<'a> WorkingDir<'a> {
    /// Longest, in bytes (Linux's PATH_MAX less the NUL).
    pub const MAX: usize = 4095;

    /// This path.
    pub fn parse(path: &'a str) -> Result<Self, Invalid<'a>> {
        let clean = path == "/"
            || path.strip_prefix('/').is_some_and(|rest| {
                rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            });
        if clean && path.len() <= Self::MAX && !path.contains('\0') {
            Ok(Self(path))
        } else {
            invalid(Field::WorkingDir, Rule::AbsolutePath, path)
        }
    }

    /// The path.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// What a container may use, each within what the kernel and the container can live with (C15).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resources(wire::Resources);

impl Resources {
    /// Bytes of memory.
    pub const MEMORY: RangeInclusive<u64> = 1 << 20..=1 << 40;
    /// Thousandths of a processor. The kernel's least quota is a millisecond of a period of 100.
    pub const CPU: RangeInclusive<u32> = 10..=1_000_000;
    /// Processes and threads; no more than a container has that is given no limit.
    pub const PROCESSES: RangeInclusive<u32> = 1..=8192;

    /// These limits.
    pub fn new(resources: wire::Resources) -> Result<Self, Invalid<'static>> {
        let wire::Resources { memory, cpu, processes, .. } = resources;
        let valid = memory.is_none_or(|bytes| Self::MEMORY.contains(&bytes))
            && cpu.is_none_or(|share| Self::CPU.contains(&share))
            && processes.is_none_or(|count| Self::PROCESSES.contains(&count));
        if valid { Ok(Self(resources)) } else { invalid(Field::Resources, Rule::Range, "") }
    }

    /// The limits.
    pub fn get(self) -> wire::Resources {
        self.0
    }
}

/// The size of a terminal's window: 1 to 4096 rows and columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowSize(wire::WindowSize);

impl WindowSize {
    /// Rows or columns.
    pub const RANGE: RangeInclusive<u16> = 1..=4096;

    /// This size.
    pub fn new(size: wire::WindowSize) -> Result<Self, Invalid<'static>> {
        if Self::RANGE.contains(&size.rows) && Self::RANGE.contains(&size.columns) {
            Ok(Self(size))
        } else {
            invalid(Field::Stdio, Rule::Range, "")
        }
    }

    /// The size.
    pub fn get(self) -> wire::WindowSize {
        self.0
    }
}

/// Standard streams that can be had together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stdio(wire::Stdio);

impl Stdio {
    /// These streams. A terminal shows both outputs of what runs on it as one.
    pub fn new(stdio: wire::Stdio) -> Result<Self, Invalid<'static>> {
        if let Some(size) = stdio.terminal {
            WindowSize::new(size)?;
            if !stdio.stdout || stdio.stderr {
                return invalid(Field::Stdio, Rule::Terminal, "");
            }
        }
        Ok(Self(stdio))
    }

    /// The streams.
    pub fn get(self) -> wire::Stdio {
        self.0
    }

    /// Whether there is any.
    pub fn any(self) -> bool {
        self.0.stdin || self.0.stdout || self.0.stderr
    }
}

/// One half of an OCI user: a number or a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdOrName<'a> {
    /// A numeric id; never 2³²−1, which means "unchanged" to the kernel.
    Id(u32),
    /// A name: 1 to 32 of `A–Z a–z 0–9 . _ -`, not starting with a digit or `-`.
    Name(&'a str),
}

impl<'a> IdOrName<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        match text.bytes().next()? {
            b'0'..=b'9' => {
                let id = text.parse().ok().filter(|&id| id != u32::MAX)?;
                // SECURITY (C06): one spelling only, so that the policy's string compare sees every number.
                (text == "0" || !text.starts_with('0')).then_some(Self::Id(id))
            }
            b'-' => None,
            _ => {
                let plain =
                    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
                (plain && text.len() <= 32).then_some(Self::Name(text))
            }
        }
    }
}

/// The user of an OCI image: `user[:group]`; empty means `0`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UserSpec<'a> {
    /// The user.
    pub user: IdOrName<'a>,
    /// The group, where it is given; otherwise the user's own from `/etc/passwd`, or 0.
    pub group: Option<IdOrName<'a>>,
}

impl<'a> UserSpec<'a> {
    /// This user.
    pub fn parse(text: &'a str) -> Result<Self, Invalid<'a>> {
        if text.is_empty() {
            return Ok(Self { user: IdOrName::Id(0), group: None });
        }
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (IdOrName::parse(user), Some(IdOrName::parse(group))),
            None => (IdOrName::parse(text), None),
        };
        match (user, group) {
            (Some(user), None) => Ok(Self { user, group: None }),
            (Some(user), Some(Some(group))) => Ok(Self { user, group: Some(group) }),
            _ => invalid(Field::User, Rule::UserSpec, text),
        }
    }
}

/// A file mode creation mask, at most 0o777.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Umask(u16);

impl Umask {
    /// This mask.
    pub fn new(bits: u16) -> Result<Self, Invalid<'static>> {
        if bits <= 0o777 { Ok(Self(bits)) } else { invalid(Field::Umask, Rule::Range, "") }
    }

    /// Its bits.
    pub fn bits(self) -> u16 {
        self.0
    }
}

/// Five capability sets that exist and that the kernel can hold together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CapabilitySets(wire::Capabilities);

/// The names of Linux's capabilities, by number (`linux/capability.h`, 6.12).
pub const CAPABILITY_NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

impl CapabilitySets {
    /// These sets: effective within permitted, permitted and inheritable within bounding, ambient within both
    /// (capabilities(7)).
    pub fn new(sets: wire::Capabilities) -> Result<Self, Invalid<'static>> {
        let wire::Capabilities { bounding, effective, inheritable, permitted, ambient } = sets;
        let within = |inner: u64, outer: u64| inner & !outer == 0;
        let known = (1u64 << CAPABILITY_NAMES.len()) - 1;
        if within(bounding, known)
            && within(permitted, bounding)
            && within(effective, permitted)
            && within(inheritable, bounding)
            && within(ambient, permitted & inheritable)
        {
            Ok(Self(sets))
        } else {
            invalid(Field::Capabilities, Rule::CapabilitySets, "")
        }
    }

    /// The five sets.
    pub fn get(&self) -> &wire::Capabilities {
        &self.0
    }
}

/// A signal number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signal(u8);

impl Signal {
    /// Kills.
    pub const KILL: Self = Self(9);

    /// This signal; 0, which only probes, is none (C11).
    pub fn new(number: u8) -> Result<Self, Invalid<'static>> {
        if (1..=64).contains(&number) { Ok(Self(number)) } else { invalid(Field::Signal, Rule::Range, "") }
    }

    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}
