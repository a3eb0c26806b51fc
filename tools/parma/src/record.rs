//! What a host has asked of its guest, beside the guest's own log of it.
//!
//! The log has digests of requests; with the requests themselves, and the policy, whoever has it can see that every decision
//! follows (`parma_kms::history`). The guest keeps its last entries only, so they are read in time.

use anyhow::{Result, bail};
use parma_guest::attest::audit::{self, Entry, Excerpt, KEPT};
use parma_guest::wire::{Request, frame};
use parma_vmm::{Outcome, Reply};

/// Requests after which the guest's entries are read.
const BEHIND: usize = KEPT / 2;
/// Bytes of requests that are kept; a run that asks for more has no record any more.
const MAX_BYTES: usize = 64 << 20;

/// A record, or why there is none.
#[derive(Debug, Default)]
pub enum Record {
    /// Nobody wants one.
    #[default]
    Off,
    /// It begins with the policy.
    Waiting,
    /// It is kept.
    Kept(Kept),
    /// It was kept, and is not any more.
    Lost(&'static str),
}

/// From the policy's acceptance on.
#[derive(Debug, Default)]
pub struct Kept {
    /// What was asked for, the first request being the policy's delivery, of which nothing is kept here.
    requests: Vec<Vec<u8>>,
    /// The guest's entries, as many as were read.
    entries: Vec<Entry>,
    head: [u8; 32],
    bytes: usize,
}

impl Record {
    /// Takes in a request that the guest has answered.
    pub fn note(&mut self, request: &Request<'_>, outcome: &Outcome) {
        match self {
            Self::Off | Self::Lost(_) => {}
            Self::Waiting => {
                if let Ok(Reply::PolicyAccepted(report)) = outcome {
                    let mut head = [0; 32];
                    head.copy_from_slice(&report[parma_psp::layout::HOST_DATA]);
                    *self = Self::Kept(Kept { requests: vec![Vec::new()], head, ..Kept::default() });
                }
            }
            Self::Kept(kept) => {
                let Ok(mut encoded) = frame::encode(request) else {
                    *self = Self::Lost("a request was too long to be kept");
                    return;
                };
                kept.bytes += encoded.len();
                if kept.bytes > MAX_BYTES {
                    *self = Self::Lost("there were more requests than are kept");
                    return;
                }
                kept.requests.push(encoded.split_off(frame::HEADER));
            }
        }
    }

    /// Whether the guest's entries have to be read before it forgets them.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        matches!(self, Self::Kept(kept) if kept.requests.len() - kept.entries.len() >= BEHIND)
    }

    /// What is kept.
    ///
    /// # Errors
    /// Nothing is.
    pub fn kept(&mut self) -> Result<&mut Kept> {
        match self {
            Self::Kept(kept) => Ok(kept),
            Self::Lost(why) => bail!("there is no record of this run: {why}"),
            Self::Off | Self::Waiting => bail!("there is no record of this run"),
        }
    }
}

impl Kept {
    /// The number of the first entry that was not read.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.entries.len() as u64 + 1
    }

    /// Takes in entries from [`Kept::next`] on. Whether these were the last ones.
    ///
    /// # Errors
    /// They do not follow what was read before.
    pub fn take(&mut self, excerpt: &Excerpt) -> Result<bool, &'static str> {
        let follows = audit::follow(self.head, self.next(), &excerpt.entries);
        match follows.filter(|_| excerpt.before == self.head && !excerpt.entries.is_empty()) {
            Some(head) if self.entries.len() + excerpt.entries.len() <= self.requests.len() => {
                self.entries.extend_from_slice(&excerpt.entries);
                self.head = head;
                Ok(head == excerpt.head)
            }
            _ => Err("the guest's log does not continue what was read of it before"),
        }
    }

    /// Each entry from this number on with its request.
    pub fn from(&self, first: u64) -> impl Iterator<Item = (&Entry, &[u8])> {
        let both = self.entries.iter().zip(self.requests.iter().map(Vec::as_slice));
        both.skip(usize::try_from(first.saturating_sub(1)).unwrap_or(usize::MAX))
    }
}
