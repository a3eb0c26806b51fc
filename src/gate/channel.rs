//! Sealed channels at the gate: what comes through one is decided like everything else; only its reply is sealed.
//!
//! A channel needs no decision to be opened, since nothing can be done with it that could not be done without: it is the peer who
//! learns whom it talks to, not the guest. A volume's key needs none to be kept, since the policy decides whether that volume is
//! mounted; and it is kept only if it came sealed, so that a mistaken client does not show it to the host. A secret needs none either:
//! the policy decided when the container got the directory that it comes to. The streams of a process that was started through a
//! channel are sealed under it.

use super::action::{Actor, DeliverSecret, KeepKey, Permit};
use super::fields::{ContainerId, DirectoryName};
use super::memory;
use super::{Completed, Gate, Invalid, limit, refuse, unknown};
use crate::attest::audit::Verdict;
use crate::attest::channel::{Channel, End, Ephemeral, KEY, transcript};
use crate::attest::stream::Exporter;
use crate::wire::{Culprit, Field, MAX_SECRET, Order, Reason, Refusal, Reply, Request, Rule, frame};
use alloc::vec::Vec;
use zeroize::{Zeroize, Zeroizing};

/// Channels at a time; a further one ends the oldest.
const MAX_CHANNELS: usize = 4;

/// The open channels.
#[derive(Default)]
pub(super) struct Channels {
    open: heapless::Vec<(u32, Channel), MAX_CHANNELS>,
    last: u32,
    /// The head of the audit log when the last one was opened.
    audit: [u8; 32],
    /// What the last reply consists of.
    reply: Vec<u8>,
    /// Of the channel through which the request at hand came.
    exporter: Option<Exporter>,
}

impl Channels {
    /// Under what the streams of a process are sealed that is started now.
    pub(super) fn at_hand(&self) -> Option<Exporter> {
        self.exporter.clone()
    }
}

#[cfg(test)]
impl Channels {
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
}

impl Gate {
    pub(super) fn open_channel(
        &mut self,
        actor: &mut impl Actor,
        nonce: &[u8; 32],
        peer: &[u8],
    ) -> Result<Completed, Refusal> {
        let invalid =
            || Refusal::from(super::Invalid { field: Field::Channel, rule: Rule::PublicKey, value: "" });
        let peer: &[u8; KEY] = peer.try_into().map_err(|_| invalid())?;
        let mut random = actor.random()?;
        let own = Ephemeral::new(&random);
        random.zeroize();
        let own = own.ok_or_else(invalid)?;
        let key = own.public();
        let audit = self.audit.head();
        let transcript = transcript(nonce, peer, &key, &audit);
        let channel = own.agree(End::Guest, peer, &transcript).ok_or_else(invalid)?;
        let report = actor.report(&transcript)?;
        let channels = &mut self.channels;
        channels.reply = memory::room(KEY + report.len())?;
        channels.reply.extend_from_slice(&key);
        channels.reply.extend_from_slice(&report);
        channels.last = channels.last.checked_add(1).ok_or(memory::OutOfMemory)?;
        if channels.open.is_full() {
            channels.open.remove(0);
        }
        channels.open.push((channels.last, channel)).map_err(|_| memory::OutOfMemory)?;
        channels.audit = audit;
        Ok(Completed::Channel)
    }

    /// Does what was in a sealed message.
    pub(super) fn order(&mut self, actor: &mut impl Actor, order: &Order<'_>) -> Result<Completed, Refusal> {
        match *order {
            Order::Key { key, least_generation } => {
                actor.keep_key(Permit::granted(KeepKey { key: Zeroizing::new(key), least_generation }))?;
            }
            // One channel is not a way into another.
            Order::Request(Request::OpenChannel { .. } | Request::Sealed { .. }) => {
                return refuse(Culprit::Host, Reason::Malformed);
            }
            Order::Request(ref request) => return self.act(actor, request),
            Order::Secret { container, name, content } => {
                let container = ContainerId::parse(container)?;
                let name = DirectoryName::parse(name)
                    .map_err(|invalid| Invalid { field: Field::Secret, ..invalid })?;
                if content.len() > MAX_SECRET {
                    return limit(Field::Secret);
                }
                if !self.objects.created(&container) {
                    return unknown(Field::Container);
                }
                actor.deliver_secret(Permit::granted(DeliverSecret { container, name, content }))?;
            }
        }
        Ok(Completed::Done)
    }

    /// The channel that was just opened.
    pub(super) fn opened(&self) -> Reply<'_> {
        let (key, report) = self.channels.reply.split_at_checked(KEY).unwrap_or_default();
        Reply::Channel { channel: self.channels.last, key, report, audit: self.channels.audit }
    }

    /// The answer to the message that was just taken.
    pub(super) fn answer(&self) -> Reply<'_> {
        Reply::Sealed { message: &self.channels.reply }
    }

    pub(super) fn sealed(
        &mut self,
        actor: &mut impl Actor,
        number: u32,
        message: &[u8],
    ) -> Result<Completed, Refusal> {
        let Some(at) = self.channels.open.iter().position(|(own, _)| *own == number) else {
            return unknown(Field::Channel);
        };
        let mut copy = memory::room(message.len())?;
        copy.extend_from_slice(message);
        let channel = self.channels.open.get_mut(at).map(|(_, channel)| channel);
        let opened = channel.and_then(|channel| Some((channel.exporter(), channel.open(&mut copy)?)));
        let Some((exporter, opened)) = opened else {
            // SECURITY (K02, K14): after a message that is not the next one nothing more is believed.
            self.channels.open.remove(at);
            return unknown(Field::Channel);
        };
        self.channels.exporter = Some(exporter);
        let result = match frame::decode::<Order<'_>>(opened) {
            Ok(order) => self.order(actor, &order),
            Err(_) => refuse(Culprit::Host, Reason::Malformed),
        };
        self.channels.exporter = None;
        // What the log says of the message is what came of the order in it.
        let verdict = Verdict::of(result.as_ref().err());
        let reply = frame::encode(&result.and_then(|done| self.reply(done)));
        copy.zeroize();
        let reply = reply.map_err(|_| memory::OutOfMemory)?;
        // The request may have been one that took a while, but nothing else came in between: the channel is where it was.
        let sealed = self.channels.open.get_mut(at).and_then(|(_, channel)| channel.seal(reply));
        self.channels.reply = sealed.ok_or(memory::OutOfMemory)?;
        Ok(Completed::Sealed(verdict))
    }
}
