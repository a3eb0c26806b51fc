//! Block devices of the guest, and the filesystem on them.

pub mod ext4;
pub mod volume;

#[cfg(feature = "guest")]
mod block;
#[cfg(feature = "guest")]
mod data;
#[cfg(feature = "guest")]
mod layer;
#[cfg(feature = "guest")]
mod mapping;
#[cfg(feature = "guest")]
mod overlay;
#[cfg(feature = "guest")]
mod ramdisk;
#[cfg(feature = "guest")]
mod scratch;
#[cfg(feature = "guest")]
mod sealed;
#[cfg(feature = "guest")]
mod verity;

#[cfg(feature = "guest")]
pub use layer::Layers;
#[cfg(feature = "guest")]
pub use overlay::{mount_overlay, unmount_overlay};
#[cfg(feature = "guest")]
pub use scratch::Disks;
#[cfg(feature = "guest")]
pub use sealed::Key;

#[cfg(feature = "guest")]
use crate::{gate::action::ActError, linux::Errno, wire::Step};

/// An error of this step, after which nothing is left to undo.
#[cfg(feature = "guest")]
fn undone(step: Step) -> impl Fn(Errno) -> ActError {
    move |errno| failed(step, errno, true)
}

#[cfg(feature = "guest")]
pub(crate) fn failed(step: Step, errno: Errno, undone: bool) -> ActError {
    ActError { step, errno: u16::try_from(errno.raw_os_error()).unwrap_or(0), undone }
}
