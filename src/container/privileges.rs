//! What a process may do: limits, user, groups, capabilities, system calls. Runs in the process itself, last before the
//! program.

use super::filter;
use crate::gate::action::User;
use crate::gate::fields::{CapabilitySets, Umask};
use crate::gate::memory::{self, OutOfMemory};
use crate::gate::settings::{Limit, Settings};
use crate::linux::{Errno, seccomp};
use alloc::vec::Vec;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets as KernelSets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use rustix::thread::{Gid, Uid};

/// The resource limits of every process whose policy has no others, in the order of
/// [`LIMIT_NAMES`](crate::gate::settings::LIMIT_NAMES): soft, hard; `None` is unlimited. Memory and processes are limited
/// by the container's control group, for all its processes together.
const LIMITS: [(Resource, Option<u64>, Option<u64>); 16] = [
    (Resource::As, None, None),
    (Resource::Core, Some(0), Some(0)),
    (Resource::Cpu, None, None),
    (Resource::Data, None, None),
    (Resource::Fsize, None, None),
    (Resource::Locks, None, None),
    (Resource::Memlock, Some(8 << 20), Some(8 << 20)),
    (Resource::Msgqueue, Some(819_200), Some(819_200)),
    (Resource::Nice, Some(0), Some(0)),
    // The soft limit is what select(2) can hold; servers raise it themselves.
    (Resource::Nofile, Some(1024), Some(524_288)),
    (Resource::Nproc, None, None),
    (Resource::Rss, None, None),
    (Resource::Rtprio, Some(0), Some(0)),
    (Resource::Rttime, None, None),
    (Resource::Sigpending, Some(16_384), Some(16_384)),
    (Resource::Stack, Some(8 << 20), None),
];

/// What a process is to be allowed, ready to be applied without asking for memory.
#[derive(Debug)]
pub struct Privileges<'a> {
    settings: &'a Settings,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    umask: Mode,
    capabilities: CapabilitySets,
    no_new_privileges: bool,
    filter: filter::Program,
}

impl<'a> Privileges<'a> {
    /// Those of this decision. `INVAL` if the user has no group or an id that the kernel takes for "unchanged".
    pub fn new(
        user: &User,
        umask: Umask,
        capabilities: CapabilitySets,
        no_new_privileges: bool,
        settings: &'a Settings,
    ) -> Result<Self, Errno> {
        if user.uid == u32::MAX || user.groups.iter().any(|group| group.gid == u32::MAX) {
            return Err(Errno::INVAL);
        }
        let mut groups: Vec<Gid> = memory::room(user.groups.len()).map_err(|OutOfMemory| Errno::NOMEM)?;
        groups.extend(user.groups.iter().map(|group| Gid::from_raw(group.gid)));
        Ok(Self {
            settings,
            uid: Uid::from_raw(user.uid),
            gid: *groups.first().ok_or(Errno::INVAL)?,
            groups,
            umask: Mode::from_bits_retain(umask.bits().into()),
            capabilities,
            no_new_privileges,
            filter: filter::program(),
        })
    }

    /// The user's number.
    pub fn uid(&self) -> Uid {
        self.uid
    }

    /// The primary group's number.
    pub fn gid(&self) -> Gid {
        self.gid
    }

    /// Reduces the calling process to this. On an error it is somewhere between and must end.
    pub fn apply(&self) -> Result<(), Errno> {
        for ((resource, current, maximum), own) in LIMITS.into_iter().zip(self.settings.limits.0) {
            let (current, maximum): Limit = own.unwrap_or((current, maximum));
            match setrlimit(resource, Rlimit { current, maximum }) {
                // An init that may not raise its own limits, on a machine for tests: tighter ones do no harm.
                Err(Errno::PERM) if own.is_none() => {
                    let maximum = getrlimit(resource).maximum;
                    setrlimit(resource, Rlimit { current: tighter(current, maximum), maximum })?;
                }
                other => other?,
            }
        }
        umask(self.umask);
        // While the process still may; the filter denies nothing of what follows.
        seccomp::install(&self.filter)?;
        // The policy's own may. So where a process without privileges can still install it, it comes last.
        if !self.no_new_privileges {
            self.install_profile()?;
        }
        let sets = self.capabilities.get();
        for capability in all_but(sets.bounding) {
            match remove_capability_from_bounding_set(capability) {
                // Above the last one that the kernel knows.
                Err(Errno::INVAL) => break,
                other => other?,
            }
        }
        // Changing the user would take the permitted set away.
        set_keep_capabilities(true)?;
        set_thread_groups(&self.groups)?;
        set_thread_res_gid(self.gid, self.gid, self.gid)?;
        set_thread_res_uid(self.uid, self.uid, self.uid)?;
        set_keep_capabilities(false)?;
        set_capabilities(
            None,
            KernelSets {
                effective: CapabilitySet::from_bits_retain(sets.effective),
                permitted: CapabilitySet::from_bits_retain(sets.permitted),
                inheritable: CapabilitySet::from_bits_retain(sets.inheritable),
            },
        )?;
        clear_ambient_capability_set()?;
        for capability in all_but(!sets.ambient) {
            configure_capability_in_ambient_set(capability, true)?;
        }
        if self.no_new_privileges {
            set_no_new_privs(true)?;
            self.install_profile()?;
        }
        Ok(())
    }

    fn install_profile(&self) -> Result<(), Errno> {
        self.settings.filter.as_ref().map_or(Ok(()), |filter| seccomp::install(filter.instructions()))
    }
}

/// The lower of two limits, of which `None` is none.
fn tighter(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (limit, None) | (None, limit) => limit,
    }
}

/// Each capability that is not in the set, from 0 to 63, whether or not the kernel knows it.
fn all_but(set: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS)
        .map(|number| 1 << number)
        .filter(move |bit| set & bit == 0)
        .map(CapabilitySet::from_bits_retain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::action::Group;
    use crate::wire::Capabilities;
    use alloc::string::String;

    fn privileges(uid: u32, gids: &[u32]) -> Result<(), Errno> {
        let groups = gids.iter().map(|&gid| Group { gid, name: String::new() }).collect();
        let user = User { uid, name: String::new(), groups };
        let none = CapabilitySets::new(Capabilities::default()).unwrap();
        Privileges::new(&user, Umask::new(0o022).unwrap(), none, true, &Settings::default()).map(drop)
    }

    #[test]
    fn every_capability_outside_a_set_is_dropped() {
        assert_eq!(all_but(0).count(), 64);
        assert_eq!(all_but(u64::MAX).count(), 0);
        let docker = 0x0000_0000_a804_25fb;
        let dropped = all_but(docker).fold(0, |all, capability| all | capability.bits());
        assert_eq!(dropped, !docker);
        // CAP_MKNOD is 27 and in Docker's set, CAP_SYS_ADMIN is 21 and is not.
        assert!(all_but(docker).all(|capability| capability.bits() != 1 << 27));
        assert!(all_but(docker).any(|capability| capability.bits() == 1 << 21));
    }

    #[test]
    fn a_user_without_groups_or_with_an_id_that_means_unchanged_is_refused() {
        assert!(privileges(0, &[0]).is_ok());
        assert!(privileges(1, &[]).is_err());
        assert!(privileges(u32::MAX, &[0]).is_err());
        assert!(privileges(1, &[0, u32::MAX]).is_err());
    }

    #[test]
    fn every_limit_is_set_once_and_no_soft_one_is_above_its_hard_one() {
        for (at, &(resource, soft, hard)) in LIMITS.iter().enumerate() {
            assert!(LIMITS[..at].iter().all(|&(other, ..)| other != resource));
            assert!(hard.is_none_or(|hard| soft.is_some_and(|soft| soft <= hard)));
        }
    }
}
