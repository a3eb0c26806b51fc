//! What the guest gives a container, or all of them, without being asked: `settings` of an entry, `pod` of a policy.

use anyhow::{Context, Result, bail, ensure};
use parma_guest::gate::settings::{Hostname, LIMIT_NAMES, Limit, Sysctl};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::Limits;

/// What one container is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Its root filesystem cannot be written to.
    pub read_only_root: bool,
    /// Its processes are in the namespace of all containers that have this.
    pub share_process_namespace: bool,
    /// Resource limits by their names, `nofile` for instance, in place of the usual ones.
    pub rlimits: BTreeMap<String, Limit>,
}

impl Settings {
    /// As the entry has it; `None` if there is nothing.
    pub(super) fn entry(&self) -> Option<Value> {
        let mut fields = Map::new();
        for (name, set) in [
            ("read_only_root", self.read_only_root),
            ("share_process_namespace", self.share_process_namespace),
        ] {
            if set {
                fields.insert(name.into(), true.into());
            }
        }
        if !self.rlimits.is_empty() {
            let limits = self.rlimits.iter();
            let limits =
                limits.map(|(name, (soft, hard))| (name.clone(), json!({"soft": soft, "hard": hard})));
            fields.insert("rlimits".into(), limits.collect::<Map<_, _>>().into());
        }
        (!fields.is_empty()).then(|| fields.into())
    }
}

/// What all containers are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSettings {
    /// Their host name.
    pub hostname: Option<String>,
    /// Settings of the kernel for the namespaces that they share.
    pub sysctls: BTreeMap<String, String>,
    /// The most that they use together.
    pub limits: Limits,
}

impl PodSettings {
    /// As the policy has it; `None` if there is nothing.
    ///
    /// # Errors
    /// The guest would not take it.
    pub(super) fn rule(&self) -> Result<Option<Value>> {
        let mut fields = Map::new();
        if let Some(name) = &self.hostname {
            fields.insert("hostname".into(), hostname(name)?.into());
        }
        for (name, value) in &self.sysctls {
            sysctl(name, value)?;
        }
        if !self.sysctls.is_empty() {
            fields.insert("sysctls".into(), json!(self.sysctls));
        }
        fields.extend(self.limits.memory.map(|bytes| ("memory".into(), bytes.into())));
        fields.extend(self.limits.cpu.map(|share| ("cpu".into(), share.into())));
        Ok((!fields.is_empty()).then(|| fields.into()))
    }
}

/// A host name that the guest takes.
///
/// # Errors
/// It is no label of DNS.
pub fn hostname(text: &str) -> Result<String> {
    if Hostname::parse(text).is_err() {
        bail!("the host name {text:?} is not 1 to 63 of a-z 0-9 - with a letter or digit at both ends");
    }
    Ok(text.into())
}

/// A setting that the guest takes.
///
/// # Errors
/// It is not one of the namespaces that containers share.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    if Sysctl::parse(name, value).is_err() {
        bail!(
            "sysctl {name}={value:?}: containers can have net.*, fs.mqueue.*, kernel.msg*, kernel.shm* and kernel.sem, \
             to which up to 256 printable characters are written"
        );
    }
    Ok(())
}

/// A resource limit, `NAME=SOFT[:HARD]` with `unlimited` for none, as container engines write it.
///
/// # Errors
/// The kernel has no such limit, or the soft one is above the hard one.
pub fn rlimit(text: &str) -> Result<(String, Limit)> {
    let usage = || format!("{text:?}: write NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:4096");
    let (name, limits) = text.split_once('=').with_context(usage)?;
    ensure!(LIMIT_NAMES.contains(&name), "{name:?} is no resource limit: {}", LIMIT_NAMES.join(", "));
    let number = |text: &str| match text {
        "unlimited" | "-1" => Ok(None),
        // What a policy can say is a number of 63 bits.
        text => {
            text.parse::<i64>().ok().and_then(|limit| u64::try_from(limit).ok()).map(Some).with_context(usage)
        }
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let limit = (number(soft)?, number(hard)?);
    let least = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    ensure!(least(limit.0) <= least(limit.1), "{text:?}: the soft limit is above the hard one");
    Ok((name.into(), limit))
}
