//! The owner of keys and a guest, with the host between them.
//!
//! The host carries messages ([`Carrier`]) and learns nothing. The owner judges what the guest shows of itself before anything is
//! said through the channel. `parma run` is both at once, for an owner who runs guests on a machine of their own; the owner
//! elsewhere is `parma connect`, or a key service ([`KeyService`]).

use crate::pod::Guest;
use crate::workload::Policy;
use anyhow::{Context as _, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::attest::audit;
use parma_guest::attest::channel::KEY;
use parma_guest::attest::stream::Exporter;
use parma_guest::wire::{Order, Reply, Request, frame};
use parma_kms::bundle::Bundle;
use parma_kms::channel::{Offer, Peer};
use parma_kms::history::{Line, Log};
use parma_kms::server::MAX_BODY;
use parma_kms::verify::{Checklist, Evidence, Expected, Moment, ReportData, Roots, verify};
use parma_layer::volume::Key;
use parma_skr::client::{Client, Identity};
use parma_vmm::{Opened, Refused};
use serde_json::{Value, json};

/// Whoever carries messages to a guest.
pub trait Carrier {
    /// Carries an offer; gives the guest's answer.
    ///
    /// # Errors
    /// The guest refuses, or is not reached.
    fn open_channel(&mut self, nonce: [u8; 32], key: &[u8; KEY]) -> Result<Answered>;

    /// Carries a sealed message; gives the sealed answer.
    ///
    /// # Errors
    /// As above.
    fn carry(&mut self, channel: u32, message: &[u8]) -> Result<Vec<u8>>;
}

/// What came of an offer, as the host says.
pub struct Answered {
    /// The channel's number.
    pub channel: u32,
    /// What the guest says.
    pub opened: Box<Opened>,
    /// Certificates of the key that signed its report, in DER, where the host has them.
    pub certificates: Vec<Vec<u8>>,
}

impl Carrier for &Guest {
    fn open_channel(&mut self, nonce: [u8; 32], key: &[u8; KEY]) -> Result<Answered> {
        let (channel, opened) = Guest::open_channel(self, nonce, key)?;
        Ok(Answered { channel, opened, certificates: Vec::new() })
    }

    fn carry(&mut self, channel: u32, message: &[u8]) -> Result<Vec<u8>> {
        Guest::carry(self, channel, message)
    }
}

/// Whoever has keys, and what they want to see of a guest first.
pub struct Owner {
    /// The guest that may have them.
    pub expected: Expected,
    /// Who vouches for it.
    pub roots: Roots,
    /// Certificates of its processor, and revocation lists.
    pub certificates: Bundle,
    /// The builder's endorsement of its measurement.
    pub endorsement: Option<Vec<u8>>,
    /// As of when it is judged; `None`: now.
    pub at: Option<Moment>,
}

impl Owner {
    fn now(&self) -> Moment {
        self.at.unwrap_or_else(Moment::now)
    }

    /// Judges a report; some certificates may have come with it.
    #[must_use]
    pub fn judge(
        &self,
        report: &[u8],
        certificates: &[Vec<u8>],
        report_data: Option<ReportData>,
    ) -> Checklist {
        let expected = Expected { report_data, ..self.expected.clone() };
        let certificates = self.with(certificates);
        verify(&self.evidence(report, &certificates), &expected, &self.roots, self.now())
    }

    /// The owner's certificates and these.
    fn with(&self, certificates: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let own = &self.certificates.certificates;
        let more = certificates.iter().filter(|certificate| !own.contains(certificate));
        own.iter().chain(more).cloned().collect()
    }

    fn evidence<'a>(&'a self, report: &'a [u8], certificates: &'a [Vec<u8>]) -> Evidence<'a> {
        Evidence {
            report,
            certificates,
            revocation_lists: &self.certificates.revocation_lists,
            endorsement: self.endorsement.as_deref(),
        }
    }

    /// Opens a sealed channel to the guest, if its report is as expected.
    ///
    /// # Errors
    /// The guest refuses, or its report is not good enough.
    pub fn channel<C: Carrier>(&self, mut carrier: C) -> Result<Channel<C>> {
        let offer = Offer::new()?;
        let (nonce, key) = offer.parts();
        let Answered { channel: number, opened, certificates } = carrier.open_channel(nonce, &key)?;
        let certificates = self.with(&certificates);
        let evidence = self.evidence(&opened.report, &certificates);
        let (peer, list) =
            offer.accept(&opened.key, &opened.audit, &evidence, &self.expected, &self.roots, self.now())?;
        let shown = Shown { nonce, key, opened, certificates };
        Ok(Channel { carrier, number, peer, list, shown })
    }
}

/// What a guest has shown when a channel was opened to it.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The peer's nonce.
    pub nonce: [u8; 32],
    /// The peer's ephemeral key.
    pub key: [u8; KEY],
    /// What the guest said.
    pub opened: Box<Opened>,
    /// Certificates of the key that signed its report.
    pub certificates: Vec<Vec<u8>>,
}

impl Shown {
    /// A log without an entry, whose head this vouches for.
    #[must_use]
    pub fn log(&self) -> Log {
        Log {
            nonce: STANDARD.encode(self.nonce),
            peer_key: STANDARD.encode(self.key),
            guest_key: STANDARD.encode(self.opened.key),
            report: STANDARD.encode(self.opened.report),
            certificates: self.certificates.iter().map(|der| STANDARD.encode(der)).collect(),
            entries: Vec::new(),
        }
    }
}

/// The owner's end of a sealed channel to a guest.
pub struct Channel<C> {
    carrier: C,
    number: u32,
    peer: Peer,
    /// How the guest's report was judged.
    pub list: Checklist,
    /// What the guest has shown.
    pub shown: Shown,
}

impl<C: Carrier> Channel<C> {
    /// Has the guest do something. Gives what became of it, which may be a refusal, and the request that the host saw.
    ///
    /// # Errors
    /// The host did not carry the messages.
    pub fn order<T>(
        &mut self,
        order: &Order<'_>,
        take: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Result<(Result<T, Refused>, Vec<u8>)> {
        let message = self.peer.seal(order)?;
        let request = Request::Sealed { channel: self.number, message: &message };
        let request = frame::encode(&request).ok().context("too long")?.split_off(frame::HEADER);
        let mut answer = self.carrier.carry(self.number, &message)?;
        let taken = match self.peer.open(&mut answer)? {
            Ok(reply) => {
                Ok(take(reply).context("the guest answered something else than what it was asked for")?)
            }
            Err(refusal) => Err(Refused(refusal)),
        };
        Ok((taken, request))
    }

    /// Releases the key of a volume, which the guest then opens if its generation is at least this.
    ///
    /// # Errors
    /// See [`Channel::order`]; or the guest refuses it.
    pub fn release(&mut self, key: &Key, least_generation: u64) -> Result<()> {
        let order = Order::Key { key: *key.secret(), least_generation };
        self.order(&order, done)?.0.context("the guest did not take the key")?;
        Ok(())
    }

    /// The ends of the sealed streams of processes that were started through this channel.
    #[must_use]
    pub fn exporter(&self) -> Exporter {
        self.peer.exporter()
    }

    /// The carrier, for what is asked of it in the open.
    pub fn carrier(&mut self) -> &mut C {
        &mut self.carrier
    }
}

/// Whether a reply says that it was done.
pub fn done(reply: Reply<'_>) -> Option<()> {
    matches!(reply, Reply::Done).then_some(())
}

/// What a guest was asked for up to the head of its log that it has shown. Keys are released before there is a process, so no entry
/// is about a user.
fn history(guest: &Guest, opened: &Opened) -> Result<Vec<Line>> {
    let mut head: [u8; 32] = opened.report[parma_psp::layout::HOST_DATA].try_into()?;
    let mut lines = Vec::new();
    while head != opened.audit {
        let next = lines.len() as u64 + 1;
        let mut failed = None;
        guest.recorded(next, |entry, request| {
            let followed = audit::follow(head, lines.len() as u64 + 1, &[*entry]);
            match (followed, Line::new(entry, request, None)) {
                (Some(after), Ok(line)) => {
                    head = after;
                    lines.push(line);
                }
                (_, Err(error)) => failed = Some(error),
                (None, _) => failed = Some(anyhow!("the guest's log is not one chain")),
            }
            failed.is_none() && head != opened.audit
        })?;
        failed.map_or(Ok(()), Err)?;
        ensure!(lines.len() as u64 >= next, "the log does not lead to the head that the guest has shown");
    }
    Ok(lines)
}

/// A key service elsewhere (`parma kms serve`), for the host: it carries the service's offer to the guest, the guest's evidence to
/// the service, and back the key, which is sealed for that guest alone.
pub struct KeyService {
    client: Client,
    url: String,
}

impl KeyService {
    /// The service at this URL. Over TLS with these roots (PEM), or where there are none those of the web; the URL may also be of
    /// `http`, since what passes is sealed between service and guest, and whoever is on the way is no more than the host is.
    ///
    /// # Errors
    /// The roots are no certificates, or the URL is none.
    pub fn new(url: &str, roots: &[u8]) -> Result<Self> {
        let client = Client::new(roots, url.starts_with("http://"))?;
        client.url(url, "/").map_err(|failure| anyhow!("{url}: {failure}"))?;
        Ok(Self { client, url: url.to_owned() })
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let url = self.client.url(&self.url, path).map_err(|failure| anyhow!("{failure}"))?;
        let answer = self.client.post(&url, body, Identity::None).map_err(|failure| anyhow!("{failure}"))?;
        Ok(answer.body)
    }

    /// Has the key of this name released to the guest. Certificates, leaf first, and endorsement are part of its evidence; so are its
    /// policy and what it was asked for, where the key's rule demands that.
    ///
    /// # Errors
    /// The service refuses, and says which check failed; or the guest does.
    pub fn release(
        &self,
        guest: &Guest,
        name: &str,
        policy: &Policy,
        certificates: &[Vec<u8>],
        endorsement: Option<&[u8]>,
    ) -> Result<()> {
        let offer = self.post("/parma/v1/offer", &json!({"name": name}))?;
        let part = |name: &str| offer[name].as_str().and_then(|text| STANDARD.decode(text).ok());
        let nonce = part("nonce").and_then(|nonce| <[u8; 32]>::try_from(nonce).ok());
        let nonce = nonce.context("the key service's offer has no nonce")?;
        let key = part("key").context("the key service's offer has no key")?;
        let (channel, opened) = guest.open_channel(nonce, &key)?;
        let mut answer = json!({
            "offer": offer["offer"], "name": name,
            "key": STANDARD.encode(opened.key), "audit": STANDARD.encode(opened.audit),
            "report": STANDARD.encode(opened.report),
            "certificates": certificates.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>(),
        });
        if let Some(endorsement) = endorsement {
            answer["endorsement"] = json!(STANDARD.encode(endorsement));
        }
        if offer["audit"] == json!(true) {
            let entries = history(guest, &opened).context("the key service demands the guest's log")?;
            answer["history"] = json!({"policy": STANDARD.encode(&policy.image), "entries": entries});
            ensure!(
                answer.to_string().len() <= MAX_BODY,
                "the key service demands the guest's log, which is longer than it takes with the policy: {MAX_BODY} bytes"
            );
        }
        let released = self.post("/parma/v1/release", &answer).with_context(|| format!("the key {name}"))?;
        let message = released["message"].as_str().and_then(|text| STANDARD.decode(text).ok());
        let message = message.context("the key service answers with no message for the guest")?;
        ensure!(!message.is_empty(), "the key service answers with an empty message");
        // The guest's answer is sealed for the service; whether it has the key is seen when the volume is mounted.
        guest.carry(channel, &message)?;
        Ok(())
    }
}
