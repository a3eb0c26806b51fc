//! The control connection as a typed client.
//!
//! One request at a time; its reply must carry its number. A thread reads the connection, so that exits of processes are
//! seen while nothing is asked. Whatever the guest sends that the protocol does not allow ends the session: after that,
//! each call says why.

use crate::connection::Connection;
use crate::refusal::Refused;
use crate::vsock::Connector;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use parma_guest::attest::audit;
use parma_guest::attest::channel::KEY;
use parma_guest::gate::fields::{ContainerId, Serial};
use parma_guest::wire::{
    self, Doing, ExitStatus, FromGuest, Phase, Refusal, Request, ScratchKind, Stream, ToGuest, Usage,
    VolumeProperties, frame,
};
use parma_psp::Report;
use std::collections::{HashMap, VecDeque};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long the guest may take for one request. Stopping a container is the slowest.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);
/// Most exits that are remembered of one session (T06, T07: a guest must not fill the host's memory). Of more, the oldest are
/// forgotten: a container that is probed for ever has exits without end.
const MAX_EXITS: usize = 1 << 14;

/// What a request came to: done, or refused with a reason.
pub type Outcome = Result<Reply, Refused>;

/// What came of a request that was allowed and done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done, nothing to tell.
    Done,
    /// The policy is in force, and this report vouches for it.
    PolicyAccepted(Box<Report>),
    /// A process of this number runs.
    Started(u32),
    /// What exists in the guest.
    Properties(Properties),
    /// What a container has used.
    Usage(Usage),
    /// A sealed channel of this number is open.
    Channel(u32, Box<Opened>),
    /// What came of a sealed message, sealed.
    Sealed(Vec<u8>),
    /// A part of the audit log.
    Audit(Box<audit::Excerpt>),
    /// What processes are doing.
    Stacks(Vec<Doing>),
}

/// What a guest says of a sealed channel that it opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its ephemeral key.
    pub key: [u8; KEY],
    /// The report that vouches for the key and the head.
    pub report: Report,
    /// The head of its audit log.
    pub audit: [u8; 32],
}

/// What exists in the guest, in the order in which it came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Mounted layer devices.
    pub devices: Vec<Serial>,
    /// Containers that have an overlay.
    pub containers: Vec<ContainerId>,
    /// Processes of those containers, exited ones included.
    pub processes: Vec<ProcessState>,
    /// Where what the containers write goes: each scratch device, then each container without one.
    pub scratch: Vec<(ContainerId, ScratchKind)>,
    /// Mounted read-write data volumes.
    pub volumes: Vec<VolumeProperties>,
    /// Whether every container runs that the policy requires.
    pub ready: bool,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessState {
    /// Its number.
    pub process: u32,
    /// Its container.
    pub container: ContainerId,
    /// Whether it is the container's init process.
    pub init: bool,
    /// Its status once it has ended.
    pub exited: Option<ExitStatus>,
}

/// The control connection.
pub struct Session {
    sending: Mutex<Sending>,
    shared: Arc<Shared>,
    connector: Connector,
    phase: Phase,
    reader: Option<JoinHandle<()>>,
}

/// What only the thread with a request uses.
struct Sending {
    connection: Connection,
    sequence: u32,
}

/// What the reading thread tells the others.
#[derive(Default)]
struct Shared {
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    /// The number of the request that waits for its reply.
    expected: Option<u32>,
    reply: Option<Outcome>,
    exits: HashMap<u32, ExitStatus>,
    /// The keys of `exits`, the oldest first.
    order: VecDeque<u32>,
    unseen: VecDeque<(u32, ExitStatus)>,
    /// Why the session is over.
    end: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, News> {
        // Every change is complete when the lock is released, even by a panic.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` gives something, the session is over, or the deadline has passed (`None`).
    fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut(&mut News) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut news = self.lock();
        loop {
            if let Some(value) = ready(&mut news) {
                return Ok(Some(value));
            }
            if let Some(end) = &news.end {
                bail!("the control connection is gone: {end}");
            }
            news = match deadline {
                None => self.changed.wait(news).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.changed.wait_timeout(news, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Session {
    /// The session on a connection whose Hello, with this phase, has been read.
    pub(crate) fn start(connection: Connection, phase: Phase, connector: Connector) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut receiving = connection.try_clone()?;
        let theirs = shared.clone();
        let reader = std::thread::spawn(move || {
            let end = loop {
                match receiving.receive() {
                    Ok(Some(body)) => {
                        if let Err(error) = take(&theirs, &body) {
                            receiving.close();
                            break format!("{error:#}");
                        }
                    }
                    Ok(None) => break "the guest hung up".to_owned(),
                    Err(error) => break format!("{error:#}"),
                }
            };
            theirs.lock().end = Some(end);
            theirs.changed.notify_all();
        });
        let sending = Mutex::new(Sending { connection, sequence: 0 });
        Ok(Self { sending, shared, connector, phase, reader: Some(reader) })
    }

    /// Opens further connections to the same guest.
    #[must_use]
    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Where the guest stood when the connection was opened.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Sends a request and waits for its reply. Callers of several threads wait for each other.
    ///
    /// # Errors
    /// The connection is gone, or the guest broke the protocol or does not answer. A refusal is no error: it is what
    /// the guest answered.
    pub fn request(&self, request: Request<'_>) -> Result<Outcome> {
        let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = sending.sequence.checked_add(1).context("too many requests on one connection")?;
        {
            let mut news = self.shared.lock();
            ensure!(news.expected.is_none(), "an earlier request was never answered");
            news.expected = Some(sequence);
        }
        sending.sequence = sequence;
        if let Err(error) = sending.connection.send(&ToGuest { sequence, request }) {
            // What the reader saw says more, where it saw something.
            let end = self.shared.lock().end.clone();
            return Err(end.map_or(error, |end| anyhow!("the control connection is gone: {end}")));
        }
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let reply = self.shared.wait(Some(deadline), |news| news.reply.take())?;
        reply.with_context(|| format!("no answer from the guest in {REPLY_TIMEOUT:?}"))
    }

    /// Waits until a process has ended; `None` if it has not after this time.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn wait(&self, process: u32, timeout: Option<Duration>) -> Result<Option<ExitStatus>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        self.shared.wait(deadline, |news| news.exits.get(&process).copied())
    }

    /// Waits for the next exit of any process, in the order in which they arrived; `None` after this time.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn next_exit(&self, timeout: Option<Duration>) -> Result<Option<(u32, ExitStatus)>> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        self.shared.wait(deadline, |news| news.unseen.pop_front())
    }

    /// As [`Connector::attach`].
    ///
    /// # Errors
    /// As there.
    pub fn attach(&self, process: u32, stream: Stream) -> Result<Result<UnixStream, Refused>> {
        self.connector.attach(process, stream)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sending.get_mut().unwrap_or_else(PoisonError::into_inner).connection.close();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Takes in one frame, whose every byte may be hostile.
fn take(shared: &Shared, body: &[u8]) -> Result<()> {
    match frame::decode(body).map_err(|_| anyhow!("a malformed frame from the guest"))? {
        FromGuest::Hello { .. } => bail!("a second Hello from the guest"),
        FromGuest::Exited { process, status } => {
            let mut news = shared.lock();
            ensure!(news.exits.insert(process, status).is_none(), "process {process} exited twice");
            news.order.push_back(process);
            news.unseen.push_back((process, status));
            if news.order.len() > MAX_EXITS
                && let Some(oldest) = news.order.pop_front()
            {
                news.exits.remove(&oldest);
            }
            if news.unseen.len() > MAX_EXITS {
                news.unseen.pop_front();
            }
        }
        FromGuest::Reply { sequence, result } => {
            let outcome = owned(result)?;
            let mut news = shared.lock();
            match news.expected.take() {
                Some(expected) if expected == sequence => news.reply = Some(outcome),
                // The guest could not read the request, and says so.
                Some(_) if sequence == 0 && outcome.is_err() => news.reply = Some(outcome),
                _ => bail!("a reply from the guest to request {sequence}, which does not wait for one"),
            }
        }
    }
    shared.changed.notify_all();
    Ok(())
}

fn owned(result: Result<wire::Reply<'_>, Refusal>) -> Result<Outcome> {
    let reply = match result {
        Err(refusal) => return Ok(Err(Refused(refusal))),
        Ok(wire::Reply::Done) => Reply::Done,
        Ok(wire::Reply::Started { process }) => Reply::Started(process),
        Ok(wire::Reply::PolicyAccepted { report }) => {
            let report: Report = report.try_into().context("a report of the wrong length from the guest")?;
            Reply::PolicyAccepted(Box::new(report))
        }
        Ok(wire::Reply::Audit(excerpt)) => Reply::Audit(Box::new(excerpt)),
        Ok(wire::Reply::Stacks(stacks)) => {
            ensure!(
                stacks.iter().all(|doing| doing.state.is_ascii_uppercase()),
                "a malformed state from the guest"
            );
            Reply::Stacks(stacks.into_vec())
        }
        Ok(wire::Reply::Properties(properties)) => Reply::Properties(checked(&properties)?),
        Ok(wire::Reply::Usage(usage)) => Reply::Usage(usage),
        Ok(wire::Reply::Channel { channel, key, report, audit }) => {
            let key: [u8; KEY] = key.try_into().context("a key of the wrong length from the guest")?;
            let report: Report = report.try_into().context("a report of the wrong length from the guest")?;
            Reply::Channel(channel, Box::new(Opened { key, report, audit }))
        }
        Ok(wire::Reply::Sealed { message }) => Reply::Sealed(message.to_vec()),
    };
    Ok(Ok(reply))
}

/// The same with every name in the form that it must have.
fn checked(properties: &wire::Properties<'_>) -> Result<Properties> {
    let container =
        |id| ContainerId::parse(id).map_err(|_| anyhow!("a malformed container id from the guest"));
    let device = |name| Serial::parse(name).map_err(|_| anyhow!("a malformed device name from the guest"));
    Ok(Properties {
        devices: properties.devices.iter().map(|name| device(name)).collect::<Result<_>>()?,
        containers: properties.containers.iter().map(|id| container(id)).collect::<Result<_>>()?,
        processes: properties
            .processes
            .iter()
            .map(|state| {
                let wire::ProcessProperties { process, init, exited, .. } = *state;
                Ok(ProcessState { process, container: container(state.container)?, init, exited })
            })
            .collect::<Result<_>>()?,
        scratch: properties
            .scratch
            .iter()
            .map(|space| Ok((container(space.scratch)?, space.kind)))
            .collect::<Result<_>>()?,
        volumes: properties.volumes.to_vec(),
        ready: properties.ready,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use parma_guest::wire::{Culprit, List, Reason};

    /// A session whose guest answers each frame with what `guest` gives for it.
    fn session(guest: impl Fn(u32) -> Vec<Vec<u8>> + Send + 'static) -> Session {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let mut theirs = Connection::new(theirs);
            while let Ok(Some(body)) = theirs.receive() {
                let sequence = frame::decode::<ToGuest>(&body).unwrap().sequence;
                for bytes in guest(sequence) {
                    if theirs.send_bytes(&bytes).is_err() {
                        return;
                    }
                }
            }
        });
        let nowhere = Connector::Unix("/nonexistent".into());
        Session::start(Connection::new(ours), Phase::Running, nowhere).unwrap()
    }

    fn message(message: FromGuest<'_>) -> Vec<u8> {
        frame::encode(&message).unwrap()
    }

    fn done(sequence: u32) -> Vec<u8> {
        message(FromGuest::Reply { sequence, result: Ok(wire::Reply::Done) })
    }

    #[test]
    fn requests_are_numbered_and_replies_belong_to_them() {
        let session = session(|sequence| vec![done(sequence)]);
        for _ in 0..3 {
            assert_eq!(session.request(Request::GetProperties).unwrap(), Ok(Reply::Done));
        }
    }

    #[test]
    fn a_refusal_is_an_answer_and_the_session_goes_on() {
        let session = session(|sequence| {
            let refusal = Refusal { culprit: Culprit::Host, reason: Reason::NotHostData };
            vec![message(FromGuest::Reply { sequence, result: Err(refusal) })]
        });
        for _ in 0..2 {
            let refused = session.request(Request::PowerOff).unwrap().unwrap_err();
            assert_eq!(refused.0.reason, Reason::NotHostData);
        }
    }

    #[test]
    fn an_exit_that_comes_before_the_reply_is_kept() {
        let session = session(|sequence| {
            let exit = FromGuest::Exited { process: 7, status: ExitStatus::Code(3) };
            vec![
                message(exit),
                message(FromGuest::Reply { sequence, result: Ok(wire::Reply::Started { process: 7 }) }),
            ]
        });
        assert_eq!(session.request(Request::GetProperties).unwrap(), Ok(Reply::Started(7)));
        assert_eq!(session.wait(7, None).unwrap(), Some(ExitStatus::Code(3)));
        assert_eq!(session.next_exit(None).unwrap(), Some((7, ExitStatus::Code(3))));
        assert_eq!(session.wait(8, Some(Duration::from_millis(1))).unwrap(), None);
    }

    #[test]
    fn t07_what_the_protocol_does_not_allow_ends_the_session_and_says_why() {
        let properties = |name: &'static str| {
            let devices = List::from_vec(vec![name]).unwrap();
            wire::Properties {
                devices,
                containers: List::new(),
                processes: List::new(),
                scratch: List::new(),
                volumes: List::new(),
                ready: true,
            }
        };
        let reply = |sequence, result| message(FromGuest::Reply { sequence, result });
        let hello = message(FromGuest::Hello { protocol: 1, phase: Phase::Running });
        let exit = message(FromGuest::Exited { process: 1, status: ExitStatus::Code(0) });
        let cases: [(&str, Vec<Vec<u8>>); 8] = [
            ("request 2", vec![done(2)]),
            ("request 0", vec![done(0)]),
            ("malformed frame", vec![vec![1, 0, 0, 0, 0xff]]),
            ("too long", vec![vec![0xff; 4]]),
            ("second Hello", vec![hello]),
            ("exited twice", vec![exit.clone(), exit]),
            ("wrong length", vec![reply(1, Ok(wire::Reply::PolicyAccepted { report: b"short" }))]),
            ("malformed device", vec![reply(1, Ok(wire::Reply::Properties(properties("../\x1b[2J"))))]),
        ];
        for (why, answer) in cases {
            let session = session(move |_| answer.clone());
            let error = session.request(Request::GetProperties).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
            let error = session.wait(9, None).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    /// Nor does it end the session, which is how the containers of a pod are reached.
    #[test]
    fn t06_exits_without_end_fill_no_memory() {
        const MORE: u32 = MAX_EXITS as u32 + 10;
        let session = session(|sequence| {
            let exit = |process| message(FromGuest::Exited { process, status: ExitStatus::Code(1) });
            (1..=MORE).map(exit).chain([done(sequence)]).collect()
        });
        assert_eq!(session.request(Request::GetProperties).unwrap(), Ok(Reply::Done));
        {
            let news = session.shared.lock();
            assert_eq!([news.exits.len(), news.order.len(), news.unseen.len()], [MAX_EXITS; 3]);
        }
        assert_eq!(session.wait(MORE, None).unwrap(), Some(ExitStatus::Code(1)));
        assert_eq!(session.wait(1, Some(Duration::ZERO)).unwrap(), None);
        assert_eq!(session.next_exit(None).unwrap(), Some((11, ExitStatus::Code(1))));
    }

    #[test]
    fn t07_a_reply_that_nobody_waits_for_ends_the_session() {
        let session = session(|sequence| vec![done(sequence), done(sequence + 1)]);
        assert_eq!(session.request(Request::GetProperties).unwrap(), Ok(Reply::Done));
        assert!(session.wait(1, None).is_err());
    }
}
