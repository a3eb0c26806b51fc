//! Keys that are released to this guest.
//!
//! This is the one place where a data volume's key comes from. An image for hardware has none yet: the key's owner will release
//! it to a guest that shows an attestation report with the right HOST_DATA. An emulated image takes it from whoever answers on
//! the host, as it does its reports: see [`super`].

use crate::gate::fields::VolumeId;
use crate::linux::Errno;
use crate::target::Key;

/// A key, and what its owner knows of the volume that it opens.
pub struct Released {
    /// The key.
    pub key: Key,
    /// The volume's generation is at least this: an older state of it is not to be mounted.
    pub least_generation: u64,
}

/// Has the key of a volume released.
#[cfg(not(feature = "emulated"))]
pub fn release(_: &VolumeId) -> Result<Released, Errno> {
    Err(Errno::OPNOTSUPP)
}

/// Has the key of a volume released: connects to [`PORT`] of the host, sends the volume's id and reads key and generation.
#[cfg(feature = "emulated")]
pub fn release(volume: &VolumeId) -> Result<Released, Errno> {
    use crate::linux::vsock;
    use rustix::event::PollFlags;
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    use zeroize::Zeroizing;

    let owner = vsock::connect_to_host(PORT, PATIENCE)?;
    // A new connection takes 32 bytes at once.
    if send(&owner, &volume.0, SendFlags::NOSIGNAL)? != volume.0.len() {
        return Err(Errno::IO);
    }
    let mut answer = Zeroizing::new([0; 40]);
    let mut length = 0;
    while let Some(rest) = answer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        vsock::wait(&owner, PollFlags::IN, PATIENCE)?;
        match recv(&owner, rest, RecvFlags::empty()) {
            Ok((0, _)) => return Err(Errno::CONNREFUSED),
            Ok((more, _)) => length += more,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    let (Some(key), Some(generation)) = (answer.first_chunk(), answer.last_chunk()) else {
        return Err(Errno::IO);
    };
    Ok(Released { key: Key::released(key), least_generation: u64::from_le_bytes(*generation) })
}

/// vsock port of the key's owner on the host.
#[cfg(feature = "emulated")]
pub const PORT: u32 = 5044;
/// How long each step may take.
#[cfg(feature = "emulated")]
const PATIENCE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
