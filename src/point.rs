//! The enforcement points: every action that a policy decides, by the name of its rule.

use serde::{Deserialize, Serialize};

macro_rules! points {
    ($($(#[$doc:meta])* $variant:ident $name:literal),* $(,)?) => {
        /// An enforcement point. The rule that decides it is `data.policy.<name>`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Point {
            $($(#[$doc])* $variant),*
        }

        impl Point {
            /// Every point, in the order of the wire protocol's numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name of its rule.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The rule's whole path, `data.policy.<name>`.
            pub const fn entry(self) -> &'static str {
                match self { $(Self::$variant => concat!("data.policy.", $name)),* }
            }

            /// The point of this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|point| point.name() == name)
            }
        }
    };
}

points! {
    /// Mount a read-only layer device.
    MountDevice "mount_device",
    /// Mount a writable device.
    RwMountDevice "rw_mount_device",
    /// Unmount a read-only layer device.
    UnmountDevice "unmount_device",
    /// Unmount a writable device.
    RwUnmountDevice "rw_unmount_device",
    /// Attach a block device that is not mounted.
    MountBlockdev "mount_blockdev",
    /// Detach such a device.
    UnmountBlockdev "unmount_blockdev",
    /// Assemble a container's root filesystem.
    MountOverlay "mount_overlay",
    /// Take it apart.
    UnmountOverlay "unmount_overlay",
    /// Create a container.
    CreateContainer "create_container",
    /// Start a process in a container.
    ExecInContainer "exec_in_container",
    /// Start a process outside of any container.
    ExecExternal "exec_external",
    /// Remove a container.
    ShutdownContainer "shutdown_container",
    /// Send a signal.
    SignalContainerProcess "signal_container_process",
    /// Mount a 9p share.
    Plan9Mount "plan9_mount",
    /// Unmount a 9p share.
    Plan9Unmount "plan9_unmount",
    /// List what exists.
    GetProperties "get_properties",
    /// Dump the guest's stacks.
    DumpStacks "dump_stacks",
    /// Turn the guest's log on or off.
    RuntimeLogging "runtime_logging",
    /// Add a signed policy fragment.
    LoadFragment "load_fragment",
    /// Set up a container's scratch space.
    ScratchMount "scratch_mount",
    /// Remove it.
    ScratchUnmount "scratch_unmount",
    /// Windows only.
    RegistryChanges "registry_changes",
    /// Windows only.
    MountCims "mount_cims",
    /// Windows only.
    LogProvider "log_provider",
    /// Load a trust list for transparency receipts.
    LoadTransparencyTrustList "load_transparency_trust_list",
    /// Use the utility VM's own network.
    HostNetwork "host_network",
    /// Change what a container may use, or hold it still. Not a point of the reference.
    UpdateContainer "update_container",
}

impl Point {
    /// What this guest does not do, whatever a policy says: shares of the host's files, block devices without dm-verity,
    /// what is Windows' alone, and ledgers.
    pub const UNOFFERED: [Self; 8] = [
        Self::MountBlockdev,
        Self::UnmountBlockdev,
        Self::Plan9Mount,
        Self::Plan9Unmount,
        Self::RegistryChanges,
        Self::MountCims,
        Self::LogProvider,
        Self::LoadTransparencyTrustList,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_27_points_and_each_is_found_by_its_name() {
        assert_eq!(Point::ALL.len(), 27);
        for &point in Point::ALL {
            assert_eq!(Point::from_name(point.name()), Some(point));
        }
        assert_eq!(Point::from_name("mount"), None);
    }
}
