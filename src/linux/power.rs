//! The end of the virtual machine.

use rustix::system::{RebootCommand, reboot};

/// Ends the virtual machine: a reset, which QEMU's `-no-reboot` turns into an exit (there is no ACPI to power off with).
/// Written data is not waited for.
pub fn off() -> ! {
    let _ = reboot(RebootCommand::Restart);
    // Only PID 1 of a machine that has no such call gets here, and nothing may run on.
    loop {
        core::hint::spin_loop();
    }
}
