//! How long the init waits for what should take no time.

use crate::linux::Errno;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A moment after which waiting has failed.
#[derive(Debug)]
pub struct Deadline {
    at: Timespec,
}

impl Deadline {
    /// In so many seconds, by a clock that nobody sets.
    pub fn after_seconds(seconds: i64) -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self { at: Timespec { tv_sec: now.tv_sec.saturating_add(seconds), ..now } }
    }

    /// The time until then, or `TIMEDOUT`.
    pub fn left(&self) -> Result<Timespec, Errno> {
        let left = self.at - clock_gettime(ClockId::Monotonic);
        if left.tv_sec < 0 { Err(Errno::TIMEDOUT) } else { Ok(left) }
    }
}
