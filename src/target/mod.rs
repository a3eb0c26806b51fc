//! Block devices of the guest, and the filesystem on them.

pub mod ext4;
