//! Launches a utility VM in QEMU and speaks the control protocol to its init.
//!
//! Nothing here is trusted by the guest. In the other direction, what comes from the guest is taken as hostile too:
//! frames are bounded, every value is checked before use, and text is escaped before it is shown (T07, T09).
//!
//! * [`Image`] is a measured image on disk, its bytes checked against its manifest.
//! * [`IdBlock`] is what its processor holds the launch of an image against.
//! * [`Machine`] is one running virtual machine with its vsock device and, in emulation, its PSP. Dropping it, or the
//!   death of this process, ends all of it.
//! * [`Disk`] is a block device of it, there from the start or plugged in later; [`ScriptedDisk`] is one that a test drives.
//! * [`Session`] is the control connection: typed requests and replies, exits of processes, standard streams.
//! * [`Connection`] is the same connection below the types, for tests that play a hostile host.

mod accel;
mod connection;
mod disk;
pub mod id_block;
mod image;
mod machine;
mod nbd;
pub mod network;
mod process;
mod qemu;
mod qmp;
mod refusal;
mod runtime;
pub mod scripted;
mod session;
pub mod snp;
mod text;
mod vsock;

pub use accel::Accel;
pub use connection::Connection;
pub use disk::{Disk, Source, most_disks};
pub use id_block::IdBlock;
pub use image::{CPU, Image};
pub use machine::{Attached, Config, Exit, Machine};
pub use network::{Forward, Network, Tap};
pub use qemu::EMULATED_CPU;
pub use refusal::Refused;
pub use runtime::{cache_dir, sweep};
pub use scripted::ScriptedDisk;
pub use session::{Opened, Outcome, ProcessState, Properties, Reply, Session};
pub use text::escape;
pub use vsock::Connector;
