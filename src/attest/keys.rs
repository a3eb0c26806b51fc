//! Keys of data volumes that were released to this guest, through a sealed channel ([`super::channel`]).
//!
//! This is the one place where such keys come from. A key is kept until its volume is mounted, or a newer delivery takes its
//! place.

use crate::gate::fields::VolumeId;
use crate::linux::Errno;
use crate::target::Key;

/// Most keys that wait for their volumes.
const MAX_KEYS: usize = 16;

/// A key, and what its owner knows of the volume that it opens.
#[derive(Debug)]
pub struct Released {
    /// The key.
    pub key: Key,
    /// The volume's generation is at least this: an older state of it is not to be mounted.
    pub least_generation: u64,
}

/// The keys that wait. None is ever moved to another place, which would leave a copy behind.
#[derive(Debug, Default)]
pub struct Keys([Option<(VolumeId, Released)>; MAX_KEYS]);

impl Keys {
    /// Keeps a key under the id that follows from it.
    ///
    /// SECURITY (K09): what is known of the volume's generation never becomes less.
    pub fn keep(&mut self, key: &[u8; 32], least_generation: u64) -> Result<(), Errno> {
        let key = Key::released(key);
        let volume = key.volume();
        if let Some(released) = self.find(&volume) {
            released.least_generation = released.least_generation.max(least_generation);
            return Ok(());
        }
        let free = self.0.iter_mut().find(|slot| slot.is_none()).ok_or(Errno::NOSPC)?;
        *free = Some((volume, Released { key, least_generation }));
        Ok(())
    }

    fn find(&mut self, volume: &VolumeId) -> Option<&mut Released> {
        self.0.iter_mut().flatten().find(|(id, _)| id == volume).map(|(_, released)| released)
    }

    /// The key of a volume, if it was released.
    pub fn of(&mut self, volume: &VolumeId) -> Result<&Released, Errno> {
        self.find(volume).map(|released| &*released).ok_or(Errno::NOKEY)
    }

    /// Wipes a key.
    pub fn forget(&mut self, volume: &VolumeId) {
        for slot in &mut self.0 {
            if slot.as_ref().is_some_and(|(id, _)| id == volume) {
                *slot = None;
            }
        }
    }
}
