//! Terminals: pairs of an inner side, which processes have open, and an outer one, which is the init's.
//!
//! They are made in the container's own filesystem of terminals, which the init holds by a descriptor from before anything
//! of the container ran: no path is involved, and whatever a container mounts over its `/dev/pts` changes nothing.

use super::stdio::above_stdio;
use crate::linux::Errno;
use crate::wire::WindowSize;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// A new terminal: its inner and its outer side. Neither is among descriptors 0–2.
pub fn open(terminals: BorrowedFd<'_>, size: WindowSize) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let outer = openat(terminals, c"ptmx", flags, Mode::empty())?;
    unlockpt(&outer)?;
    resize(&outer, size)?;
    let inner = ioctl_tiocgptpeer(&outer, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((above_stdio(inner)?, above_stdio(outer)?))
}

/// Says how large a terminal is. What runs in its foreground is sent SIGWINCH if that is new.
pub fn resize(terminal: impl AsFd, WindowSize { rows, columns }: WindowSize) -> Result<(), Errno> {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })
}
