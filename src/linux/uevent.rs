//! The kernel's word that a device came or went (`NETLINK_KOBJECT_UEVENT`).
//!
//! What an event says is not read: it only means that it is worth while to look again.

use super::{Errno, vsock};
use rustix::event::{PollFlags, Timespec};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use rustix::time::{ClockId, clock_gettime};

/// The multicast group of events that the kernel itself sends.
const KERNEL: u32 = 1;

/// A descriptor on which every event from now on arrives.
pub fn listener() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
    Ok(socket)
}

/// Waits for an event, at most until this time on the monotonic clock: then it is `ETIMEDOUT`.
pub fn wait(listener: impl AsFd, until: Timespec) -> Result<(), Errno> {
    let left = until - clock_gettime(ClockId::Monotonic);
    if left.tv_sec < 0 {
        return Err(Errno::TIMEDOUT);
    }
    vsock::wait(&listener, PollFlags::IN, left)?;
    loop {
        match recv(&listener, &mut [0; 1], RecvFlags::TRUNC) {
            Ok(_) | Err(Errno::INTR) => {}
            // Taken all; or so many came that some were lost, which says the same.
            Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(()),
            Err(errno) => return Err(errno),
        }
    }
}

/// So many seconds from now, for [`wait`].
pub fn deadline(seconds: i64) -> Timespec {
    clock_gettime(ClockId::Monotonic) + Timespec { tv_sec: seconds, tv_nsec: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_what_does_not_come_ends_at_its_deadline() {
        let listener = listener().unwrap();
        let until = deadline(0);
        while wait(&listener, until) != Err(Errno::TIMEDOUT) {}
    }
}
