//! The customer's end of a sealed channel (`parma_guest::attest::channel`): first an [`Offer`], which the untrusted host carries
//! to the guest; then, once the guest's report has been judged, a [`Peer`].

use crate::verify::{Checklist, Evidence, Expected, Moment, ReportData, Roots, verify};
use anyhow::{Context as _, Result, ensure};
use parma_guest::attest::channel::{Channel, End, Ephemeral, KEY, transcript};
use parma_guest::attest::stream::Exporter;
use parma_guest::wire::{Order, Refusal, Reply, frame};
use std::fmt;

/// A nonce and an ephemeral key, good for one channel.
pub struct Offer {
    nonce: [u8; 32],
    own: Ephemeral,
}

/// Why there is no channel.
#[derive(Debug)]
pub enum Refused {
    /// The guest's evidence is not good enough.
    Evidence(Checklist),
    /// Its key is none.
    Key,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evidence(list) => match list.first_failure() {
                Some(item) => write!(f, "the guest's report is not good: {}: {}", item.check, item.detail),
                None => f.write_str("the guest's report was not judged to its end"),
            },
            Self::Key => f.write_str("the guest's key is no point of P-256"),
        }
    }
}

impl std::error::Error for Refused {}

/// Random bytes from the system.
///
/// # Errors
/// It has none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .context("the system has no randomness")?;
    }
    Ok(bytes)
}

impl Offer {
    /// A fresh one.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn new() -> Result<Self> {
        let own = Ephemeral::new(&random()?).context("32 random bytes that are no key; try again")?;
        Ok(Self { nonce: random()?, own })
    }

    /// What the guest needs: the nonce and the key.
    #[must_use]
    pub fn parts(&self) -> ([u8; 32], [u8; KEY]) {
        (self.nonce, self.own.public())
    }

    /// The channel with the guest that has this key, if its evidence is as `expected` and vouches for that key, this head of its
    /// audit log, and this offer.
    /// An offer is used up by this, whatever comes of it (attack K02).
    ///
    /// # Errors
    /// The evidence is not good enough.
    pub fn accept(
        self,
        guest: &[u8; KEY],
        audit: &[u8; 32],
        evidence: &Evidence<'_>,
        expected: &Expected,
        roots: &Roots,
        now: Moment,
    ) -> Result<(Peer, Checklist), Refused> {
        let transcript = transcript(&self.nonce, &self.own.public(), guest, audit);
        let expected = Expected { report_data: Some(ReportData::Exactly(transcript)), ..expected.clone() };
        let list = verify(evidence, &expected, roots, now);
        if !list.passed() {
            return Err(Refused::Evidence(list));
        }
        let channel = self.own.agree(End::Peer, guest, &transcript).ok_or(Refused::Key)?;
        Ok((Peer(channel), list))
    }
}

/// The customer's end of an open channel.
#[derive(Debug)]
pub struct Peer(Channel);

impl Peer {
    /// Seals what the guest is to do.
    ///
    /// # Errors
    /// It is too long for a frame.
    pub fn seal(&mut self, order: &Order<'_>) -> Result<Vec<u8>> {
        let frame = frame::encode(order).ok().context("the order is too long")?;
        self.0.seal(frame[frame::HEADER..].to_vec()).context("the channel has carried all that it can")
    }

    /// The ends of sealed streams, of processes that were started through this channel.
    #[must_use]
    pub fn exporter(&self) -> Exporter {
        self.0.exporter()
    }

    /// Opens what came of it.
    ///
    /// # Errors
    /// It is not the guest's next message: the host changed, repeated or left out one. The channel is of no use any more.
    pub fn open<'m>(&mut self, sealed: &'m mut [u8]) -> Result<Result<Reply<'m>, Refusal>> {
        let opened = self.0.open(sealed).context("the message is not the guest's next one")?;
        ensure!(opened.len() >= frame::HEADER, "the message is not a reply");
        frame::decode(&opened[frame::HEADER..]).ok().context("the message is not a reply")
    }
}
