//! What all containers of a guest share. A guest is one pod: its containers have one network, one host name, and the same
//! System V and POSIX queues, semaphores and shared memory. The init itself is in none of these namespaces.

use crate::gate::fields::ContainerId;
use crate::gate::settings::{Hostname, PodSettings, Sysctl};
use crate::linux::Errno;
use crate::linux::netlink;
use crate::linux::process::{NewNamespaces, unshare};
use crate::network::Names;
use alloc::vec::Vec;
use core::ffi::CStr;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::write;
use rustix::thread::move_into_link_name_space;

/// The pod's namespaces. They last until power-off, whatever containers come and go.
#[derive(Debug)]
pub struct Pod {
    /// The network: `lo`, up, and what was added since.
    pub network: OwnedFd,
    /// What its members' files in `/etc` say, once it has an interface.
    pub names: Option<Names>,
    ipc: OwnedFd,
    uts: OwnedFd,
    hostname: heapless::String<{ Hostname::MAX }>,
    sysctls: Vec<Sysctl>,
}

/// Digits of the first container's id that are the host name of a pod that was given none.
const DIGITS: usize = 12;

const NETWORK: &CStr = c"/proc/thread-self/ns/net";
const IPC: &CStr = c"/proc/thread-self/ns/ipc";
const UTS: &CStr = c"/proc/thread-self/ns/uts";

impl Pod {
    /// New namespaces, with this process in those that it was in before. After an error it may be between them and must end.
    pub fn new() -> Result<Self, Errno> {
        let open = || {
            let open = |path| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            Ok(Self {
                network: open(NETWORK)?,
                names: None,
                ipc: open(IPC)?,
                uts: open(UTS)?,
                hostname: heapless::String::new(),
                sysctls: Vec::new(),
            })
        };
        let own = open()?;
        unshare(NewNamespaces::POD)?;
        netlink::loopback_up()?;
        let pod = open()?;
        own.join()?;
        Ok(pod)
    }

    /// The host name.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Gives a pod without a host name the policy's, or that of its first container. The policy's other settings hold from
    /// the next container on; they are the same for all.
    pub fn set_up(&mut self, settings: PodSettings, container: &ContainerId) {
        if self.hostname.is_empty() {
            let digits = container.as_str().get(..DIGITS).unwrap_or_default();
            let name = settings.hostname.as_ref().map_or(digits, Hostname::as_str);
            // Twelve bytes fit, and so does every host name.
            let _ = self.hostname.push_str(name);
        }
        self.sysctls = settings.sysctls;
    }

    /// Makes the policy's settings those of the namespaces that the calling process is in: the pod's.
    pub fn apply_sysctls(&self) -> Result<(), Errno> {
        if self.sysctls.is_empty() {
            return Ok(());
        }
        let all =
            openat(CWD, c"/proc/sys", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for Sysctl { path, value } in &self.sysctls {
            let file = openat(
                &all,
                path.as_c_str(),
                OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            if write(&file, value.as_bytes())? != value.len() {
                return Err(Errno::INVAL);
            }
        }
        Ok(())
    }

    /// Makes the calling process a member of all three.
    pub fn join(&self) -> Result<(), Errno> {
        for namespace in [&self.network, &self.ipc, &self.uts] {
            move_into_link_name_space(namespace.as_fd(), None)?;
        }
        Ok(())
    }
}
