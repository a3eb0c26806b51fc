//! Attested history: the audit log of a guest, and whether every decision in it follows from the policy.
//!
//! A log ([`Log`]) is what `parma audit` writes, a JSON object:
//!
//! ```text
//! nonce, peer_key, guest_key   of the sealed channel whose report vouches for the log's head
//! report                       that report
//! certificates                 a list: of the key that signed it, as the host hands them out; may be missing
//! entries                      a list, from entry 1 on: {entry, request, order?, user?}
//! ```
//!
//! each of these but the lists in base64, and so what is in the first. `entry` is an entry in the encoding of the wire protocol, `request` the request that it is
//! about, `order` what was in it where it came sealed, which its sender knows and the host does not, and `user` the user of the
//! process that it asks for, as the container's own files resolve it. The request of the first entry is the policy's delivery and
//! is left out.
//!
//! Three things are checked, and each says of which entry it does not hold:
//!
//! - the entries lead from HOST_DATA to the head for which the report vouches, so none is missing, changed or moved;
//! - each request and each user is the one in its entry;
//! - the requests, played again under the policy in the guest's own gate ([`Gate`]), come to the same decisions and states. What a
//!   guest refused without asking the policy changed nothing and is not played.
//!
//! Beyond that, a log may have to show something ([`Demands`]): it is then the state of a guest, and not only its kind, that decides
//! whether it is good enough.

use crate::verify::{Check, Checklist, Item, NO_LOG, Outcome, ReportData};
use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::attest::audit::{self, Entry, Verdict};
use parma_guest::attest::channel::{KEY, transcript};
use parma_guest::gate::Gate;
use parma_guest::gate::action::*;
use parma_guest::gate::fields::{ContainerId, UserSpec};
use parma_guest::point::Point;
use parma_guest::wire::{Order, Request, Step, ToGuest, Usage, frame};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Longest log, in bytes.
pub const MAX_LOG: u64 = 256 << 20;

/// What a log has to show, beyond that it is whole and follows from the policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Demands {
    /// Of these the policy was never asked, whatever it would have said.
    pub never_asked: Vec<Point>,
    /// Most requests that the policy denied.
    pub most_denied: Option<usize>,
}

/// A history as it is shown with evidence, nothing of it checked.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The policy.
    pub policy: &'a [u8],
    /// The entries, from the first on.
    pub lines: &'a [Line],
}

/// A log as it was read, nothing of it checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The peer's nonce.
    pub nonce: String,
    /// The peer's ephemeral key.
    pub peer_key: String,
    /// The guest's.
    pub guest_key: String,
    /// The report.
    pub report: String,
    /// Certificates of the key that signed it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
    /// The entries.
    pub entries: Vec<Line>,
}

/// An entry, and what it is about.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// The entry.
    pub entry: String,
    /// The request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// What was in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<String>,
    /// Whom it names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>> {
    Ok(frame::encode(value).ok().context("too long to be encoded")?.split_off(frame::HEADER))
}

fn decoded(what: &str, text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).with_context(|| format!("{what} is not in base64"))
}

impl Line {
    /// Of an entry, with the encoding of its request, and of the user.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(entry: &Entry, request: &[u8], user: Option<&User>) -> Result<Self> {
        Ok(Self {
            entry: STANDARD.encode(encoded(entry)?),
            request: STANDARD.encode(request),
            order: None,
            user: user.map(|user| Ok::<_, anyhow::Error>(STANDARD.encode(encoded(user)?))).transpose()?,
        })
    }

    /// Of the first line the request is the delivery of the policy.
    fn decode(&self, policy: Option<&[u8]>) -> Result<Decoded> {
        let request = match policy {
            Some(image) => encoded(&Request::SetPolicy { image })?,
            None => decoded("a request", &self.request)?,
        };
        let user = match &self.user {
            None => None,
            Some(user) => {
                let user = decoded("a user", user)?;
                Some(frame::decode::<User>(&user).ok().context("a user that is none")?)
            }
        };
        let order = self.order.as_deref().map(|order| decoded("an order", order)).transpose()?;
        // The number on the connection is not a part of it; 1 is one byte.
        Ok(Decoded { entry: self.entry()?, body: [&[1][..], &request].concat(), order, user })
    }

    /// Its entry.
    ///
    /// # Errors
    /// It is none.
    pub fn entry(&self) -> Result<Entry> {
        frame::decode(&decoded("an entry", &self.entry)?).ok().context("an entry that is none")
    }
}

/// What a line says, decoded.
struct Decoded {
    entry: Entry,
    /// The body of a frame with the request in it.
    body: Vec<u8>,
    order: Option<Vec<u8>>,
    user: Option<User>,
}

impl Log {
    /// Reads a file's content.
    ///
    /// # Errors
    /// It is no such JSON.
    pub fn parse(text: &[u8]) -> Result<Self> {
        ensure!(text.len() as u64 <= MAX_LOG, "a log has at most {MAX_LOG} bytes");
        serde_json::from_slice(text).context("not a log that `parma audit` wrote")
    }

    /// The report that vouches for it.
    ///
    /// # Errors
    /// It is not in base64.
    pub fn report(&self) -> Result<Vec<u8>> {
        decoded("the report", &self.report)
    }

    /// The certificates that came with it, in DER.
    ///
    /// # Errors
    /// One is not in base64.
    pub fn certificates(&self) -> Result<Vec<Vec<u8>>> {
        self.certificates.iter().map(|text| decoded("a certificate", text)).collect()
    }

    /// What REPORT_DATA has to be if the report vouches for these entries after this HOST_DATA: then, and only then, they are the
    /// whole history up to when the report was made.
    ///
    /// # Errors
    /// The entries are not one chain, or what the log has is malformed.
    pub fn report_data(&self, host_data: [u8; 32]) -> Result<ReportData> {
        let part = |what: &str, text: &str| decoded(what, text);
        let nonce: [u8; 32] =
            part("the nonce", &self.nonce)?.try_into().ok().context("the nonce has not 32 bytes")?;
        let key = |what, text| -> Result<[u8; KEY]> {
            part(what, text)?.try_into().ok().with_context(|| format!("{what} has not {KEY} bytes"))
        };
        let entries: Vec<Entry> = self.entries.iter().map(Line::entry).collect::<Result<_>>()?;
        let head =
            audit::follow(host_data, 1, &entries).context("the entries are not numbered 1, 2, 3, …")?;
        let (peer, guest) =
            (key("the peer's key", &self.peer_key)?, key("the guest's key", &self.guest_key)?);
        Ok(ReportData::Exactly(transcript(&nonce, &peer, &guest, &head)))
    }

    /// Adds to the list, which is that of the log's own report with [`Log::report_data`] expected, what the log is worth.
    pub fn judge(&self, list: &mut Checklist, policy: &[u8]) {
        let leads = list.outcome(Check::ReportData) == Outcome::Pass;
        judge(list, Some(Shown { policy, lines: &self.entries }), leads, None);
    }
}

/// Adds to a list what a history is worth that is shown with evidence: up to this head, for which the report vouches.
pub fn judge_shown(
    list: &mut Checklist,
    shown: Option<Shown<'_>>,
    host_data: [u8; 32],
    head: [u8; 32],
    demands: &Demands,
) {
    let leads = shown.is_some_and(|shown| {
        let is_policy = host_data == *Sha256::digest(shown.policy);
        let entries: Result<Vec<Entry>> = shown.lines.iter().map(Line::entry).collect();
        is_policy && entries.is_ok_and(|entries| audit::follow(host_data, 1, &entries) == Some(head))
    });
    judge(list, shown, leads, Some(demands));
}

/// Of a history that leads to the head for which the report vouches, or does not.
fn judge(list: &mut Checklist, shown: Option<Shown<'_>>, leads: bool, demands: Option<&Demands>) {
    let Shown { policy, lines: shown_lines } = shown.unwrap_or(Shown { policy: &[], lines: &[] });
    let chain = match (shown, leads) {
        (None, _) => Err(NO_LOG.to_owned()),
        (_, true) => {
            Ok(format!("{} entries lead from HOST_DATA to the head in REPORT_DATA", shown_lines.len()))
        }
        (_, false) => Err("the entries do not lead to the head for which the report vouches".to_owned()),
    };
    let lines = decode(shown_lines, policy).map_err(|error| format!("{error:#}"));
    let requests = match &lines {
        _ if shown.is_none() => Err(NO_LOG.to_owned()),
        Err(why) => Err(why.clone()),
        Ok(lines) => same_requests(lines),
    };
    // What rests on something that failed fails, too.
    let decided = match (&lines, &chain, &requests) {
        (Ok(lines), Ok(_), Ok(_)) => decisions(lines, policy),
        _ => Err("what was decided is not known".into()),
    };
    let state = match (demands, &lines, &chain) {
        (None, ..) => None,
        (Some(demands), Ok(lines), Ok(_)) => Some(demands.met_by(lines.iter().map(|line| &line.entry))),
        (Some(_), ..) => Some(Err("what was asked is not known".into())),
    };
    let all = Check::AUDIT.into_iter().zip([Some(chain), Some(requests), Some(decided), state]);
    for (check, found) in all {
        let Some(found) = found else { continue };
        let (outcome, detail) = match found {
            Ok(detail) => (Outcome::Pass, detail),
            Err(detail) => (Outcome::Fail, detail),
        };
        for item in list.items.iter_mut().filter(|item| item.check == check) {
            *item = Item { check, outcome, detail: detail.clone() };
        }
    }
}

impl Demands {
    fn met_by<'e>(&self, entries: impl Iterator<Item = &'e Entry>) -> Result<String, String> {
        let mut denied = 0;
        for entry in entries {
            if let Some(point) = self.never_asked.iter().find(|&&point| entry.points >> point as u32 & 1 == 1)
            {
                return Err(format!("entry {} asked for {}", entry.sequence, point.name()));
            }
            denied += usize::from(matches!(entry.verdict, Verdict::Denied { .. }));
            if self.most_denied.is_some_and(|most| denied > most) {
                return Err(format!("entry {} is denied request {denied}", entry.sequence));
            }
        }
        Ok(format!("{denied} requests were denied, and nothing was asked that was not to be"))
    }
}

fn decode(lines: &[Line], policy: &[u8]) -> Result<Vec<Decoded>> {
    let lines = lines.iter().enumerate();
    lines
        .map(|(at, line)| {
            let first = (at == 0).then_some(policy);
            line.decode(first).with_context(|| format!("entry {}", at + 1))
        })
        .collect()
}

fn same_requests(lines: &[Decoded]) -> Result<String, String> {
    for Decoded { entry, body, user, .. } in lines {
        let number = entry.sequence;
        if audit::request_digest(body) != entry.request {
            return Err(format!("entry {number} is about another request"));
        }
        let user = user.as_ref().map_or(Some([0; 32]), audit::user_digest);
        if user != Some(entry.user) {
            return Err(format!("entry {number} is about another user"));
        }
    }
    Ok(format!("{} requests are those of the entries", lines.len()))
}

/// Plays the requests again.
fn decisions(lines: &[Decoded], policy: &[u8]) -> Result<String, String> {
    let mut gate = Gate::new(Sha256::digest(policy).into(), &[]);
    let (mut head, mut asked): ([u8; 32], usize) = (Sha256::digest(policy).into(), 0);
    for Decoded { entry, body, order, user } in lines {
        let number = entry.sequence;
        let request = match frame::decode::<ToGuest<'_>>(body) {
            Ok(ToGuest { request, .. }) => request,
            Err(_) => return Err(format!("the request of entry {number} is none")),
        };
        let sealed = matches!(request, Request::Sealed { .. });
        let undecided = entry.points == 0
            && match entry.verdict {
                Verdict::Refused | Verdict::Failed { .. } => true,
                // A key or a secret: its order asks nothing of the policy.
                Verdict::Done => sealed && order.is_none(),
                _ => false,
            };
        let mut actor = Replayer { verdict: entry.verdict, user };
        match order.as_deref().filter(|_| sealed).map(frame::decode::<Order<'_>>) {
            _ if undecided => gate.pass_over(body, entry),
            Some(Ok(order)) => gate.replay(&mut actor, &order, body),
            Some(Err(_)) => return Err(format!("the order of entry {number} is none")),
            None if sealed => {
                return Err(format!(
                    "entry {number} asked something of the policy under seal: its order is needed to see whether it follows"
                ));
            }
            // Whatever comes of it is in the log.
            None => drop(gate.serve(&mut actor, &request, body)),
        }
        head = audit::follow(head, number, std::slice::from_ref(entry)).unwrap_or_default();
        if gate.audit_head() != head {
            return Err(format!(
                "entry {number} does not follow from the policy: the guest's gate comes to something else than {:?}",
                entry.verdict
            ));
        }
        asked += usize::from(entry.points != 0);
    }
    Ok(format!("{asked} decisions of the policy, and the state after each, follow from it"))
}

/// A guest in which everything happens as an entry says.
struct Replayer<'e> {
    verdict: Verdict,
    user: &'e Option<User>,
}

impl Replayer<'_> {
    fn act<A>(&self, permit: Permit<A>) -> Result<(), ActError> {
        let _ = permit.into_action();
        match self.verdict {
            Verdict::Failed { step, errno } => Err(ActError { step, errno, undone: true }),
            Verdict::Poisoned => Err(ActError { step: Step::Memory, errno: 0, undone: false }),
            _ => Ok(()),
        }
    }
}

macro_rules! as_the_entry_says {
    ($($name:ident $action:ty),* $(,)?) => {
        $(fn $name(&mut self, permit: Permit<$action>) -> Result<(), ActError> {
            self.act(permit)
        })*
    };
}

impl Actor for Replayer<'_> {
    as_the_entry_says! {
        mount_device MountDevice, unmount_device UnmountDevice, mount_scratch MountScratch, unmount_scratch UnmountScratch,
        unmount_volume UnmountVolume, mount_overlay MountOverlay, unmount_overlay UnmountOverlay,
        create_container CreateContainer<'_>, exec_in_container ExecInContainer<'_>, signal_process SignalProcess,
        shutdown_container ShutdownContainer, update_container UpdateContainer, set_logging SetLogging,
        set_up_network SetUpNetwork<'_>, exec_external ExecExternal<'_>, unoffered Unoffered, keep_key KeepKey,
        resize_terminal ResizeTerminal, endorse Endorse<'_>, deliver_secret DeliverSecret<'_>,
    }

    fn mount_volume(&mut self, permit: Permit<MountVolume>) -> Result<u64, ActError> {
        self.act(permit).map(|()| 1)
    }

    fn usage(&mut self, permit: Permit<GetUsage>) -> Result<Usage, ActError> {
        self.act(permit).map(|()| Usage::default())
    }

    fn dump_stack(&self, permit: Permit<DumpStack>) -> Result<Option<u8>, ActError> {
        self.act(permit).map(|()| None)
    }

    fn forget(&mut self, _: ProcessId) {}

    fn random(&self) -> Result<[u8; 32], ActError> {
        Ok([1; 32])
    }

    fn report(&self, _: &[u8; 64]) -> Result<[u8; 1184], ActError> {
        Ok([0; 1184])
    }

    fn resolve_user(&self, _: &ContainerId, _: UserSpec<'_>) -> Result<User, ActError> {
        self.user.clone().ok_or(ActError { step: Step::ResolveUser, errno: 2, undone: true })
    }
}
