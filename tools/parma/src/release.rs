//! The owner of keys and a guest, with the host between them.
//!
//! The host carries messages ([`Guest::open_channel`], [`Guest::carry`]) and learns nothing. The owner judges what the guest
//! shows of itself before anything is said through the channel. `parma run` is both at once, for an owner who runs guests on
//! a machine of their own; a key service is the owner elsewhere.

use crate::pod::Guest;
use anyhow::{Context as _, Result};
use parma_guest::wire::Order;
use parma_kms::bundle::Bundle;
use parma_kms::channel::{Offer, Peer};
use parma_kms::verify::{Evidence, Expected, Moment, Roots};
use parma_layer::volume::Key;
use parma_vmm::Refused;

/// Whoever has keys, and what they want to see of a guest first.
pub struct Owner {
    /// The guest that may have them.
    pub expected: Expected,
    /// Who vouches for it.
    pub roots: Roots,
    /// Certificates of its processor, and revocation lists.
    pub certificates: Bundle,
}

impl Owner {
    /// Opens a sealed channel to the guest, if its report is as expected.
    ///
    /// # Errors
    /// The guest refuses, or its report is not good enough.
    pub fn channel<'g>(&self, guest: &'g Guest) -> Result<Channel<'g>> {
        let offer = Offer::new()?;
        let (nonce, key) = offer.parts();
        let (number, opened) = guest.open_channel(nonce, &key)?;
        let evidence = Evidence {
            report: &opened.report,
            certificates: &self.certificates.certificates,
            revocation_lists: &self.certificates.revocation_lists,
            ..Evidence::default()
        };
        let now = Moment::now();
        let (peer, _) =
            offer.accept(&opened.key, &opened.audit, &evidence, &self.expected, &self.roots, now)?;
        Ok(Channel { guest, number, peer })
    }
}

/// The owner's end of a sealed channel to a guest.
pub struct Channel<'g> {
    guest: &'g Guest,
    number: u32,
    peer: Peer,
}

impl Channel<'_> {
    /// Releases the key of a volume, which the guest then opens if its generation is at least this.
    ///
    /// # Errors
    /// The guest refuses it, or the host did not carry the messages.
    pub fn release(&mut self, key: &Key, least_generation: u64) -> Result<()> {
        let order = Order::Key { key: *key.secret(), least_generation };
        let message = self.peer.seal(&order)?;
        let mut answer = self.guest.carry(self.number, &message)?;
        self.peer.open(&mut answer)?.map_err(Refused).context("the guest did not take the key")?;
        Ok(())
    }
}
