//! An SNP host for machines without SNP: the *unmodified* ROM runs its SNP half in QEMU's emulation (TCG), under the
//! debugger stub. Breakpoints on the few instructions that only an SNP guest executes hand each of them to a model of the
//! processor and of the hypervisor.
//!
//! * [`Rmp`] is the model of memory: whose a page is, whether it is validated, and how often it was. It is the one under
//!   the property tests of the firmware's plan, too.
//! * [`Host`] says what the hypervisor and its devices do: honest by default, and each lie is a field.
//! * [`run`] starts the ROM and says how it ended: Linux running, the guest ending itself, or a rule broken by the guest.
//!
//! What it cannot show: how #VC and nested page faults behave, what the PSP does to the CPUID page, that memory is
//! encrypted, and what caches keep. Linux goes on without SNP when the firmware has handed over.

mod hypervisor;
mod machine;
mod rmp;
mod stub;

pub use hypervisor::{Change, Host, Swap};
pub use machine::{Config, Ended, Report, run};
pub use rmp::{Access, Rmp, Violation};

/// The C-bit of this host: TCG ignores the bit in page tables.
pub const C_BIT: u32 = 56;
