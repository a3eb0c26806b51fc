//! What the guest gives a container or the pod because the policy says so, and no request ever names: the answer of
//! `create_container`, in checked form. What is not understood is a denial, so that no setting goes unnoticed.

use super::fields::Resources;
use crate::filter::Filter;
use crate::policy::{Value, View};
use crate::wire;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;

/// The policy's answer is none that the guest understands, or there is no memory for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unclear;

/// A container's own settings: `settings` of its entry, and its profile's filter.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Its root filesystem cannot be written to.
    pub read_only_root: bool,
    /// Its processes are in the namespace of all containers that have this, not in one of their own.
    pub share_process_namespace: bool,
    /// Resource limits in place of the usual ones.
    pub limits: Limits,
    /// The system calls that its processes may make, below what no container may.
    pub filter: Option<Filter>,
}

impl Settings {
    /// Those of the answer's `settings` and `seccomp`.
    pub(super) fn read(
        view: &View<'_>,
        settings: Option<Value>,
        words: Option<Value>,
    ) -> Result<Self, Unclear> {
        let mut read = Self::default();
        for_each(view, settings, |name, value| {
            match name {
                "read_only_root" => read.read_only_root = flag(value)?,
                "share_process_namespace" => read.share_process_namespace = flag(value)?,
                "rlimits" => read.limits = Limits::read(view, value)?,
                _ => return Err(Unclear),
            }
            Ok(())
        })?;
        read.filter = words.map(|words| filter(view, words)).transpose()?;
        Ok(read)
    }
}

/// The filter of these words.
fn filter(view: &View<'_>, words: Value) -> Result<Filter, Unclear> {
    let Value::Array(list) = words else { return Err(Unclear) };
    let mut words = Vec::new();
    words.try_reserve_exact(list.len()).map_err(|_| Unclear)?;
    for index in 0..list.len() {
        let Value::Int(word) = view.item(list, index) else { return Err(Unclear) };
        words.push(word);
    }
    Filter::new(&words).ok_or(Unclear)
}

/// Names of resource limits, as setrlimit(2) has them, without `RLIMIT_`.
pub const LIMIT_NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A soft and a hard limit, the first not above the second; `None` is unlimited.
pub type Limit = (Option<u64>, Option<u64>);

/// Resource limits that are not the usual ones, in the order of [`LIMIT_NAMES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits(pub [Option<Limit>; LIMIT_NAMES.len()]);

impl Limits {
    /// `{"nofile": {"soft": 1024, "hard": null}}`
    fn read(view: &View<'_>, value: Value) -> Result<Self, Unclear> {
        let mut limits = Self::default();
        for_each(view, Some(value), |name, value| {
            let at = LIMIT_NAMES.iter().position(|&known| known == name).ok_or(Unclear)?;
            let (mut soft, mut hard) = (Err(Unclear), Err(Unclear));
            for_each(view, Some(value), |name, value| {
                let limit = match value {
                    Value::Null => None,
                    other => Some(number(other)?),
                };
                match name {
                    "soft" => soft = Ok(limit),
                    "hard" => hard = Ok(limit),
                    _ => return Err(Unclear),
                }
                Ok(())
            })?;
            let limit = (soft?, hard?);
            let least = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
            if least(limit.0) > least(limit.1) {
                return Err(Unclear);
            }
            limits.0[at] = Some(limit);
            Ok(())
        })?;
        Ok(limits)
    }
}

/// What all containers share: the policy's `pod`.
#[derive(Debug, Clone, Default)]
pub struct PodSettings {
    /// The host name.
    pub hostname: Option<Hostname>,
    /// Settings of the kernel for the namespaces that all containers share.
    pub sysctls: Vec<Sysctl>,
    /// What all containers together may use.
    pub resources: Resources,
}

impl PodSettings {
    /// Those of the answer's `pod`.
    pub(super) fn read(view: &View<'_>, pod: Option<Value>) -> Result<Self, Unclear> {
        let mut read = Self::default();
        let mut resources = wire::Resources::default();
        for_each(view, pod, |name, value| {
            match name {
                "hostname" => read.hostname = Some(Hostname::parse(text(view, value)?)?),
                "sysctls" => {
                    for_each(view, Some(value), |name, value| {
                        let sysctl = Sysctl::parse(name, text(view, value)?)?;
                        read.sysctls.try_reserve(1).map_err(|_| Unclear)?;
                        read.sysctls.push(sysctl);
                        Ok(())
                    })?;
                }
                "memory" => resources.memory = Some(number(value)?),
                "cpu" => resources.cpu = Some(u32::try_from(number(value)?).map_err(|_| Unclear)?),
                "processes" => {
                    resources.processes = Some(u32::try_from(number(value)?).map_err(|_| Unclear)?);
                }
                _ => return Err(Unclear),
            }
            Ok(())
        })?;
        read.resources = Resources::new(resources).map_err(|_| Unclear)?;
        Ok(read)
    }
}

/// A host name: a label of DNS, 1 to 63 of `a-z 0-9 -`, with a letter or digit at both ends (C13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hostname(heapless::String<{ Hostname::MAX }>);

impl Hostname {
    /// Its greatest length in bytes.
    pub const MAX: usize = 63;

    /// This one.
    pub fn parse(text: &str) -> Result<Self, Unclear> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = text.bytes().all(|b| plain(b) || b == b'-')
            && text.bytes().next().is_some_and(plain)
            && text.bytes().last().is_some_and(plain);
        if valid { heapless::String::try_from(text).map(Self).map_err(|_| Unclear) } else { Err(Unclear) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A setting of a kernel namespace that all containers of the pod share and nobody else is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Where, below `/proc/sys`.
    pub path: CString,
    /// What is written there: up to 256 printable characters of ASCII.
    pub value: String,
}

impl Sysctl {
    /// Longest name and value, in bytes.
    const MAX: usize = 256;
    /// The IPC namespace's. Of the network namespace it is all below `net`, of message queues all below `fs.mqueue`.
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shm_rmid_forced",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];

    /// SECURITY: a name of a fixed alphabet, of which no part is empty, leads nowhere but below the directories listed here.
    pub fn parse(name: &str, value: &str) -> Result<Self, Unclear> {
        let listed = Self::IPC.contains(&name) || name.starts_with("net.") || name.starts_with("fs.mqueue.");
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        let plain = |b: u8| matches!(b, b' '..=b'~' | b'\t');
        let valid = listed && name.split('.').all(part) && !value.is_empty() && value.bytes().all(plain);
        if !valid || name.len().max(value.len()) > Self::MAX {
            return Err(Unclear);
        }
        Ok(Self { path: CString::new(name.replace('.', "/")).map_err(|_| Unclear)?, value: value.into() })
    }
}

/// Each field of an object; of nothing, none. Anything else is unclear.
fn for_each(
    view: &View<'_>,
    object: Option<Value>,
    mut each: impl FnMut(&str, Value) -> Result<(), Unclear>,
) -> Result<(), Unclear> {
    let list = match object {
        None => return Ok(()),
        Some(Value::Object(list)) => list,
        Some(_) => return Err(Unclear),
    };
    for index in 0..list.len() {
        let (name, value) = view.pair(list, index);
        each(text(view, name)?, value)?;
    }
    Ok(())
}

fn text<'v>(view: &View<'v>, value: Value) -> Result<&'v str, Unclear> {
    match value {
        Value::String(text) => Ok(view.text(text)),
        _ => Err(Unclear),
    }
}

fn flag(value: Value) -> Result<bool, Unclear> {
    match value {
        Value::True => Ok(true),
        Value::False => Ok(false),
        _ => Err(Unclear),
    }
}

fn number(value: Value) -> Result<u64, Unclear> {
    match value {
        Value::Int(number) => u64::try_from(number).map_err(|_| Unclear),
        _ => Err(Unclear),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c13_a_host_name_is_one_label_and_never_a_line_of_a_file() {
        for name in ["a", "web-0", "0", &"a".repeat(63)] {
            assert_eq!(Hostname::parse(name).map(|name| name.as_str().len()), Ok(name.len()));
        }
        for name in ["", "-a", "a-", "A", "a.b", "a_b", "a b", "a\nb", "a\0", "\u{e9}", &"a".repeat(64)] {
            assert_eq!(Hostname::parse(name), Err(Unclear), "{name:?}");
        }
    }

    #[test]
    fn c04_only_settings_of_the_pods_own_namespaces_can_be_named() {
        for (name, path) in [
            ("net.ipv4.ip_local_port_range", "net/ipv4/ip_local_port_range"),
            ("net.ipv4.conf.all.rp_filter", "net/ipv4/conf/all/rp_filter"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ] {
            let sysctl = Sysctl::parse(name, "1\t2").expect(name);
            assert_eq!((sysctl.path.to_str(), &*sysctl.value), (Ok(path), "1\t2"));
        }
        for name in [
            "",
            "net",
            "net.",
            "net..core",
            "net.../kernel/core_pattern",
            "net.core/../../kernel",
            "net.core.a\0",
            "kernel.core_pattern",
            "kernel.shm",
            "kernel.sem.x",
            "kernel.msgmax/../modprobe",
            "fs.mqueue",
            "fs.file-max",
            "vm.overcommit_memory",
            "kernel.hostname",
            "kernel.domainname",
            &format!("net.{}", "a".repeat(256)),
        ] {
            assert_eq!(Sysctl::parse(name, "1"), Err(Unclear), "{name:?}");
        }
        let (name, value) = (format!("net.{}", "a".repeat(252)), "1".repeat(256));
        assert!(Sysctl::parse(&name, &value).is_ok());
        for value in ["", "1\n", "\0", "\u{e9}", &"1".repeat(257)] {
            assert_eq!(Sysctl::parse("net.core.somaxconn", value), Err(Unclear), "{value:?}");
        }
    }
}
