//! The audit log: every request since the policy is in force, what came of it, and what the policy remembers then.
//!
//! The log is a chain. Its head is 32 bytes, at first HOST_DATA, and after each entry
//!
//! ```text
//! head = SHA-256(head before ‖ entry)
//! ```
//!
//! where the entry is in the encoding of the wire protocol. So the head stands for the whole history, in its order, since
//! the policy was accepted: whoever has it from a report can check every entry that a host hands out ([`follow`]). The
//! guest keeps the last [`KEPT`] entries; a host that wants the whole history reads them in time. An entry holds digests,
//! numbers of points and steps, and nothing of a request's or a process's content.
//!
//! `docs/wire-protocol.md` describes the same bytes for someone who writes another verifier.

use crate::gate::action::User;
use crate::point::Point;
use crate::wire::{Denied, List, Reason, Refusal, Step, frame};
use alloc::collections::VecDeque;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Entries that the guest keeps.
pub const KEPT: usize = 1024;
/// Most entries of one reply.
pub const MAX_READ: usize = 256;

/// What one request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its position, from 1. (The policy's acceptance is the first.)
    pub sequence: u64,
    /// SHA-256 of the request in the encoding of the wire protocol, without the number that it had on its connection.
    pub request: [u8; 32],
    /// The enforcement points that the policy was asked about for it: bit *n* for point number *n*.
    pub points: u32,
    /// The user of the process that it is about, as the container's own files resolve it: [`user_digest`]; 32 bytes of 0
    /// where there is none.
    pub user: [u8; 32],
    /// What came of it.
    pub verdict: Verdict,
    /// What the policy remembers after it: see [`crate::policy::Engine::state_digest`].
    pub state: [u8; 32],
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It was allowed and done.
    Done,
    /// The policy did not allow it.
    Denied {
        /// The point that decided.
        point: Point,
        /// How.
        how: Denied,
    },
    /// The policy allowed it, doing it failed, and it was undone.
    Failed {
        /// The step that failed.
        step: Step,
        /// The Linux error number, 0 where there is none.
        errno: u16,
    },
    /// The policy allowed it; it failed and could not be undone, or had been so before.
    Poisoned,
    /// It was not valid, or not possible, whatever the policy says.
    Refused,
}

impl Verdict {
    /// That of this refusal, or of none.
    pub fn of(refusal: Option<&Refusal>) -> Self {
        let Some(refusal) = refusal else { return Self::Done };
        match refusal.reason {
            Reason::Denied { point, how, .. } => Self::Denied { point, how },
            Reason::Failed { step, errno } => Self::Failed { step, errno },
            Reason::Poisoned => Self::Poisoned,
            _ => Self::Refused,
        }
    }
}

/// A part of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excerpt {
    /// The head before the first of these entries.
    pub before: [u8; 32],
    /// Entries, each with the number after the one before it.
    pub entries: List<Entry, MAX_READ>,
    /// The head after the newest entry of the whole log.
    pub head: [u8; 32],
}

/// The head after an entry; `None` where there is no memory for its encoding.
fn after(head: [u8; 32], entry: &Entry) -> Option<[u8; 32]> {
    let encoded = frame::encode(entry).ok()?;
    let mut hash = Sha256::new();
    hash.update(head);
    hash.update(encoded.get(frame::HEADER..)?);
    Some(hash.finalize().into())
}

/// The head to which entries lead from the head `before` them, if they follow each other and the first has the number
/// `first`.
pub fn follow(before: [u8; 32], first: u64, entries: &[Entry]) -> Option<[u8; 32]> {
    (first..).zip(entries).try_fold(before, |head, (sequence, entry)| {
        if entry.sequence == sequence { after(head, entry) } else { None }
    })
}

/// SHA-256 of a request as it stands in an entry. `body` is that of its frame: the request's number, then the request.
pub fn request_digest(body: &[u8]) -> [u8; 32] {
    // A varint ends with the first byte whose highest bit is clear.
    let number = body.iter().position(|byte| byte & 0x80 == 0).map_or(0, |last| last + 1);
    Sha256::digest(body.get(number..).unwrap_or_default()).into()
}

/// SHA-256 of a user's encoding; `None` where there is no memory for it.
pub fn user_digest(user: &User) -> Option<[u8; 32]> {
    Some(Sha256::digest(frame::encode(user).ok()?.get(frame::HEADER..)?).into())
}

/// The log.
#[derive(Debug)]
pub struct Log {
    head: [u8; 32],
    next: u64,
    /// The newest entries, each with the head after it.
    kept: VecDeque<(Entry, [u8; 32])>,
    /// The head before the first of them.
    before: [u8; 32],
}

impl Log {
    /// An empty log of a guest with this HOST_DATA.
    pub const fn new(host_data: [u8; 32]) -> Self {
        Self { head: host_data, next: 1, kept: VecDeque::new(), before: host_data }
    }

    /// What stands for everything so far.
    pub fn head(&self) -> [u8; 32] {
        self.head
    }

    /// Makes room for one more entry, before anything is done that it would have to tell of.
    pub fn reserve(&mut self) -> bool {
        self.kept.len() >= KEPT || self.kept.try_reserve(1).is_ok()
    }

    /// Adds an entry. `false` if there was no memory: then the chain has not grown, and nobody may go on as if it had.
    #[must_use]
    pub fn record(
        &mut self,
        request: [u8; 32],
        points: u32,
        user: [u8; 32],
        verdict: Verdict,
        state: [u8; 32],
    ) -> bool {
        let entry = Entry { sequence: self.next, request, points, user, verdict, state };
        let Some(head) = after(self.head, &entry) else { return false };
        if !self.reserve() {
            return false;
        }
        if self.kept.len() >= KEPT
            && let Some((_, head)) = self.kept.pop_front()
        {
            self.before = head;
        }
        self.kept.push_back((entry, head));
        (self.head, self.next) = (head, self.next + 1);
        true
    }

    /// The kept entries from this number on, or from the oldest one; as many as fit a reply.
    pub fn read(&self, first: u64) -> Excerpt {
        let skipped = self.kept.iter().take_while(|(entry, _)| entry.sequence < first).count();
        let before = skipped.checked_sub(1).and_then(|last| self.kept.get(last));
        let mut entries = List::new();
        // The list says itself when it is full.
        let _ = self.kept.iter().skip(skipped).try_for_each(|(entry, _)| entries.push(*entry));
        Excerpt { before: before.map_or(self.before, |(_, head)| *head), entries, head: self.head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Culprit, Request, ToGuest};

    fn filled(count: u64) -> Log {
        let mut log = Log::new([7; 32]);
        for number in 1..=count {
            let refusal = Refusal { culprit: Culprit::Host, reason: Reason::Malformed };
            let refusal = (number % 3 == 0).then_some(&refusal);
            assert!(log.record(
                [number as u8; 32],
                1 << (number % 27),
                [2; 32],
                Verdict::of(refusal),
                [1; 32]
            ));
        }
        log
    }

    #[test]
    fn entries_lead_from_host_data_to_the_head() {
        let log = filled(10);
        let read = log.read(0);
        assert_eq!((read.before, read.entries.len()), ([7; 32], 10));
        assert_eq!(follow([7; 32], 1, &read.entries), Some(log.head()));
        assert_eq!(Log::new([7; 32]).read(0).head, [7; 32], "an empty log");
    }

    #[test]
    fn a_changed_missing_or_moved_entry_leads_elsewhere() {
        let log = filled(5);
        let entries = log.read(0).entries.into_vec();
        for at in 0..5 {
            let mut missing = entries.clone();
            missing.remove(at);
            assert_ne!(follow([7; 32], 1, &missing), Some(log.head()), "without {at}");
            let changes: [fn(&mut Entry); 6] = [
                |entry| entry.request[31] ^= 1,
                |entry| entry.points ^= 1,
                |entry| entry.user[5] ^= 1,
                |entry| entry.verdict = Verdict::Poisoned,
                |entry| entry.state[0] ^= 1,
                |entry| entry.sequence += 1,
            ];
            for change in changes {
                let mut changed = entries.clone();
                change(&mut changed[at]);
                assert_ne!(follow([7; 32], 1, &changed), Some(log.head()), "{at} changed");
            }
        }
        let mut swapped = entries.clone();
        swapped.swap(1, 2);
        assert_eq!(follow([7; 32], 1, &swapped), None);
        assert_ne!(follow([8; 32], 1, &entries), Some(log.head()), "of another policy");
    }

    #[test]
    fn a_log_that_is_read_in_pieces_is_one_chain_and_keeps_its_last_entries() {
        let log = filled(KEPT as u64 + 300);
        let mut read = log.read(0);
        assert_eq!(read.entries[0].sequence, 301, "the oldest are gone");
        let (mut head, mut next) = (read.before, 301);
        while !read.entries.is_empty() {
            assert_eq!(read.before, head);
            head = follow(head, next, &read.entries).unwrap();
            next += read.entries.len() as u64;
            read = log.read(next);
        }
        assert_eq!((head, next), (log.head(), KEPT as u64 + 301));
        assert_eq!(read.before, head, "nothing is after the head");
    }

    #[test]
    fn the_digest_is_of_the_request_and_not_of_its_number() {
        let digest = |sequence| {
            let frame = frame::encode(&ToGuest { sequence, request: Request::GetProperties }).unwrap();
            request_digest(&frame[frame::HEADER..])
        };
        assert_eq!(digest(1), digest(u32::MAX));
        // GetProperties is number 9 and has no fields.
        assert_eq!(digest(300)[..], Sha256::digest([9])[..]);
    }
}
