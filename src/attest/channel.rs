//! The sealed channel: from a customer to this guest, through a host that can only cut it.
//!
//! ```text
//! peer → guest   nonce (32 bytes), ephemeral key (P-256, 65 bytes)
//! guest → peer   ephemeral key, attestation report with REPORT_DATA = transcript
//!                and the head of its audit log
//! both           transcript = SHA-512("parma channel v1" ‖ 00 ‖ nonce ‖ peer's key ‖ guest's key ‖ audit head)
//!                key to guest ‖ key from guest = SHA-512(00000001 ‖ Z ‖ transcript)
//!                exporter = the first 32 bytes of SHA-512(00000002 ‖ Z ‖ transcript), for streams ([`super::stream`])
//! then           message n each way: AES-256-GCM, nonce = n as 96 bits, big-endian
//! ```
//!
//! Z is the shared secret of the two keys (SP 800-56A, section 5.7.1.2); the derivation is the one-step one of SP 800-56C, with
//! the transcript as its fixed info. What follows:
//!
//! - the report vouches for the guest's key and for the history that led there ([`super::audit`]), and for nothing else, and is made for this nonce and this peer: a relayed or a repeated
//!   report is of another transcript (attacks K01, K02), and REPORT_DATA is never a value of the host's choosing;
//! - only that guest and that peer know the keys; they are gone with the channel;
//! - a message that was changed, repeated, left out or sent back does not open, and nothing after it does.
//!
//! The guest knows nothing about its peer. What a peer may ask for is for the gate to decide, as for anybody.

use super::stream::Exporter;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use alloc::boxed::Box;
use alloc::vec::Vec;
use p256::elliptic_curve::point::AffineCoordinates;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::{PublicKey, SecretKey};
use sha2::{Digest, Sha512};

/// Bytes of an ephemeral key, uncompressed (SEC 1, section 2.3.3).
pub const KEY: usize = 65;
/// Bytes that a sealed message is longer than what is in it.
pub const OVERHEAD: usize = 16;
const LABEL: &[u8] = b"parma channel v1\0";

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest.
    Guest,
    /// Whoever verifies it.
    Peer,
}

/// An ephemeral key, for one channel.
pub struct Ephemeral(SecretKey);

impl Ephemeral {
    /// One from 32 random bytes; `None` where they are no scalar, which is not going to happen.
    pub fn new(random: &[u8; 32]) -> Option<Self> {
        SecretKey::from_slice(random).ok().map(Self)
    }

    /// The public half.
    pub fn public(&self) -> [u8; KEY] {
        let mut bytes = [0; KEY];
        let point = self.0.public_key().to_sec1_point(false);
        if let Some(own) = point.as_bytes().first_chunk() {
            bytes = *own;
        }
        bytes
    }

    /// The channel with whoever has the other key; `None` where that is no point of the curve.
    pub fn agree(self, end: End, theirs: &[u8; KEY], transcript: &[u8; 64]) -> Option<Channel> {
        // SECURITY (K08): only points of the curve; its cofactor is 1, so the product is never the point at infinity.
        let theirs = PublicKey::from_sec1_bytes(theirs).ok()?;
        let shared = (theirs.to_projective() * *self.0.to_nonzero_scalar()).to_affine();
        let keys = Sha512::new()
            .chain_update([0, 0, 0, 1])
            .chain_update(shared.x())
            .chain_update(transcript)
            .finalize();
        // The next block of the same derivation, for whatever else is kept from others by this channel.
        let exporter = Sha512::new()
            .chain_update([0, 0, 0, 2])
            .chain_update(shared.x())
            .chain_update(transcript)
            .finalize();
        let (to_guest, from_guest) = keys.split_at(32);
        let (send, receive) = match end {
            End::Guest => (from_guest, to_guest),
            End::Peer => (to_guest, from_guest),
        };
        let exporter = Exporter::new(*exporter.first_chunk()?);
        Some(Channel { send: Direction::new(send)?, receive: Direction::new(receive)?, exporter })
    }
}

/// What the report vouches for.
pub fn transcript(nonce: &[u8; 32], peer: &[u8; KEY], guest: &[u8; KEY], audit: &[u8; 32]) -> [u8; 64] {
    let hash = Sha512::new()
        .chain_update(LABEL)
        .chain_update(nonce)
        .chain_update(peer)
        .chain_update(guest)
        .chain_update(audit);
    hash.finalize().into()
}

/// One direction of a channel or a stream: a key, and the number of the next message under it.
pub(super) struct Direction {
    cipher: Box<Aes256Gcm>,
    /// Number of the next message; `None` after one that did not open.
    next: Option<u64>,
}

impl Direction {
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        Some(Self { cipher: Box::new(Aes256Gcm::new_from_slice(key).ok()?), next: Some(0) })
    }

    fn nonce(&mut self) -> Option<Nonce<aes_gcm::aead::consts::U12>> {
        let mut nonce = [0; 12];
        let number = self.next.take()?;
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        self.next = number.checked_add(1);
        Some(nonce.into())
    }

    /// Nothing goes this way any more.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// Seals the next message in its place; gives the tag that goes behind it.
    pub(super) fn seal(&mut self, header: &[u8], message: &mut [u8]) -> Option<[u8; OVERHEAD]> {
        let nonce = self.nonce()?;
        Some(self.cipher.encrypt_inout_detached(&nonce, header, message.into()).ok()?.into())
    }

    /// Opens the next message in its place. After one that is not, nothing opens any more.
    pub(super) fn open<'m>(&mut self, header: &[u8], sealed: &'m mut [u8]) -> Option<&'m [u8]> {
        let nonce = self.nonce()?;
        let next = self.next.take();
        let (message, tag) = sealed.split_last_chunk_mut::<OVERHEAD>()?;
        let tag = Tag::from(*tag);
        self.cipher.decrypt_inout_detached(&nonce, header, (&mut *message).into(), &tag).ok()?;
        self.next = next;
        Some(message)
    }
}

/// One end of a channel.
pub struct Channel {
    send: Direction,
    receive: Direction,
    exporter: Exporter,
}

impl Channel {
    /// Seals a message; `None` after 2⁶⁴ of them, or where there is no memory.
    pub fn seal(&mut self, mut message: Vec<u8>) -> Option<Vec<u8>> {
        message.try_reserve(OVERHEAD).ok()?;
        let tag = self.send.seal(&[], &mut message)?;
        message.extend_from_slice(&tag);
        Some(message)
    }

    /// Opens the next message in its place. After one that is not the next message of the other end nothing opens any more.
    pub fn open<'m>(&mut self, sealed: &'m mut [u8]) -> Option<&'m [u8]> {
        self.receive.open(&[], sealed)
    }

    /// What the streams of processes are sealed under that are started through this channel.
    pub fn exporter(&self) -> Exporter {
        self.exporter.clone()
    }
}

impl core::fmt::Debug for Channel {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair_with(change: impl Fn(&mut [u8; 64])) -> (Channel, Channel) {
        let (guest, peer) = (Ephemeral::new(&[1; 32]).unwrap(), Ephemeral::new(&[2; 32]).unwrap());
        let transcript = transcript(&[3; 32], &peer.public(), &guest.public(), &[6; 32]);
        let mut theirs = transcript;
        change(&mut theirs);
        let (guest_key, peer_key) = (guest.public(), peer.public());
        let guest = guest.agree(End::Guest, &peer_key, &transcript).unwrap();
        (guest, peer.agree(End::Peer, &guest_key, &theirs).unwrap())
    }

    #[test]
    fn messages_go_both_ways_in_order() {
        let (mut guest, mut peer) = pair_with(|_| ());
        for text in [&b"one"[..], b"", b"three"] {
            let mut sealed = peer.seal(text.to_vec()).unwrap();
            assert!(text.is_empty() || !sealed.windows(text.len()).any(|part| part == text));
            assert_eq!(guest.open(&mut sealed).unwrap(), text);
            let mut back = guest.seal(text.to_vec()).unwrap();
            assert_eq!(peer.open(&mut back).unwrap(), text);
        }
    }

    #[test]
    fn k02_what_is_changed_repeated_left_out_or_sent_back_ends_the_channel() {
        type Change = fn(&mut Vec<Vec<u8>>, &mut Channel);
        let changes: [Change; 5] = [
            |sent, _| sent[0][2] ^= 1,
            |sent, _| sent[1] = sent[0].clone(),
            |sent, _| {
                sent.remove(0);
            },
            |sent, guest| sent[0] = guest.seal(b"one".to_vec()).unwrap(),
            |sent, _| sent[0].truncate(15),
        ];
        for change in changes {
            let (mut guest, mut peer) = pair_with(|_| ());
            let mut sent: Vec<Vec<u8>> =
                [b"one", b"two", b"six"].iter().map(|text| peer.seal(text.to_vec()).unwrap()).collect();
            change(&mut sent, &mut guest);
            let opened: Vec<bool> = sent.iter_mut().map(|message| guest.open(message).is_some()).collect();
            let broken = opened.iter().position(|opened| !opened).unwrap();
            assert!(opened[broken..].iter().all(|opened| !opened), "{opened:?}");
        }
    }

    #[test]
    fn k03_ends_that_saw_different_things_have_different_keys() {
        let (mut guest, mut peer) = pair_with(|transcript| transcript[63] ^= 1);
        assert!(guest.open(&mut peer.seal(b"one".to_vec()).unwrap()).is_none());
        let (peer, guest) = ([4; KEY], [5; KEY]);
        let own = transcript(&[3; 32], &peer, &guest, &[6; 32]);
        assert_ne!(own, transcript(&[2; 32], &peer, &guest, &[6; 32]));
        assert_ne!(own, transcript(&[3; 32], &peer, &guest, &[7; 32]));
        assert_ne!(own, transcript(&[3; 32], &guest, &peer, &[6; 32]));
    }

    #[test]
    fn k08_what_is_no_point_of_the_curve_is_no_key() {
        let mut wrong = Ephemeral::new(&[1; 32]).unwrap().public();
        wrong[40] ^= 1;
        for theirs in [wrong, [0; KEY], [4; KEY], [0xff; KEY]] {
            let own = Ephemeral::new(&[2; 32]).unwrap();
            assert!(own.agree(End::Guest, &theirs, &[0; 64]).is_none());
        }
        assert!(Ephemeral::new(&[0; 32]).is_none());
        assert!(Ephemeral::new(&[0xff; 32]).is_none());
    }
}
