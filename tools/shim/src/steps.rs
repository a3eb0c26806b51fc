//! How long the steps to a container took: a line in containerd's log, for whoever wonders where the time goes.

use std::fmt;
use std::time::{Duration, Instant};

/// Steps so far.
#[derive(Debug)]
pub struct Steps {
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Steps {
    /// None yet.
    #[must_use]
    pub fn begin() -> Self {
        Self { last: Instant::now(), done: Vec::new() }
    }

    /// One is done: all that happened since the last.
    pub fn done(&mut self, what: &'static str) {
        let now = Instant::now();
        self.done.push((what, now - self.last));
        self.last = now;
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (what, time) in &self.done {
            write!(f, "{between}{what} {} ms", time.as_millis())?;
            between = ", ";
        }
        Ok(())
    }
}
