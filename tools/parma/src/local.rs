//! How `parma exec`, `ps`, `logs`, `kill`, `stop`, `connect` and `audit` reach a `parma run` in another terminal.
//!
//! The guest has one control connection, and `parma run` holds it. So each run serves a Unix socket
//! `$XDG_RUNTIME_DIR/parma/NAME/control` (or `/tmp/parma-UID/NAME/control`) in directories that only the user can enter.
//! One line of JSON is a [`Question`], one line the [`Answer`]; a connection may carry many.
//!
//! `exec` does not send standard streams through here: its answer says how to reach the guest, and the asker attaches by itself.
//! `connect` may be on another machine, where somebody has carried this socket to (`ssh -L`), so everything of it passes here. To
//! it this side is the host, which it does not believe.

use crate::group::Group;
use crate::pod::process;
use crate::release::{Answered, Carrier, Shown};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_guest::attest::audit;
use parma_guest::attest::channel::KEY;
use parma_guest::gate::action::User;
use parma_guest::gate::fields::UserSpec;
use parma_guest::wire::{ExitStatus, Request, Stdio, Stream, WindowSize, frame};
use parma_kms::history::{Line, Log};
use parma_policy::generate::Accounts;
use parma_vmm::{Connector, Opened, escape};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest line, in bytes: as many arguments as a request to the guest can carry, and a log of which each byte is escaped
/// twice.
const MAX_LINE: u64 = 4 << 20;
/// Bytes of the log in one answer, about: a line has at most a request of 1 MiB.
const PAGE: usize = 1 << 20;
/// Longest name of a run, in bytes. With the directories it must fit into the path of a Unix socket.
const MAX_NAME: usize = 48;
const SOCKET: &str = "control";

/// What can be asked of a run. A container is named where there are several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// Start a process in a container.
    Exec {
        /// The container.
        container: Option<String>,
        /// Its arguments.
        args: Vec<String>,
        /// What is connected to the host.
        stdio: Stdio,
    },
    /// Say how large a process's terminal is.
    Resize {
        /// The container.
        container: Option<String>,
        /// The process.
        process: u32,
        /// The size.
        size: WindowSize,
    },
    /// Wait for the end of a process.
    Wait {
        /// Which.
        process: u32,
    },
    /// Send a signal.
    Signal {
        /// The container.
        container: Option<String>,
        /// To which process of it; `None`: its first.
        process: Option<u32>,
        /// Its number.
        signal: u8,
    },
    /// Ask all containers to stop; kill what does not in its time.
    Stop {
        /// The time in seconds, in place of the run's own.
        seconds: Option<u64>,
    },
    /// Give the end of what a container wrote.
    Logs {
        /// The container.
        container: Option<String>,
    },
    /// Describe the run.
    List,
    /// Carry an offer to the guest.
    OpenChannel {
        /// The nonce.
        nonce: Bytes,
        /// The ephemeral key.
        key: Bytes,
    },
    /// Carry a sealed message to the guest.
    Carry {
        /// The channel.
        channel: u32,
        /// The message.
        message: Bytes,
    },
    /// Say how a container is known to the guest.
    Identify {
        /// The container.
        container: Option<String>,
    },
    /// Write the request that starts a process in a container, without making it.
    Draft {
        /// The container.
        container: Option<String>,
        /// Its arguments.
        args: Vec<String>,
        /// What is connected.
        stdio: Stdio,
    },
    /// Attach to a stream of a process: after the answer the connection carries its bytes.
    Attach {
        /// The process.
        process: u32,
        /// The stream.
        stream: Stream,
    },
    /// Give the guest's log, and what it is about.
    Audit {
        /// From this entry on, as much as fits an answer.
        first: u64,
    },
}

/// Bytes, in base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bytes(pub Vec<u8>);

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        STANDARD.encode(bytes.0)
    }
}

impl TryFrom<String> for Bytes {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        STANDARD.decode(text).map(Self)
    }
}

impl Bytes {
    fn array<const N: usize>(self, what: &str) -> Result<[u8; N]> {
        self.0.try_into().map_err(|_| anyhow!("{what} has not {N} bytes"))
    }
}

/// What a run answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It was done.
    Done,
    /// A process runs.
    Started {
        /// Its number.
        process: u32,
        /// How to attach to its streams.
        connector: Connector,
    },
    /// A process has ended.
    Exited {
        /// As a shell would give it: the code, or 128 and the signal.
        code: u8,
    },
    /// The run.
    Listed(Run),
    /// What a container wrote, with what could steer a terminal escaped.
    Logs {
        /// The text.
        text: String,
    },
    /// A channel is open.
    Channel {
        /// Its number.
        channel: u32,
        /// The guest's ephemeral key.
        key: Bytes,
        /// Its report.
        report: Bytes,
        /// The head of its log.
        audit: Bytes,
        /// Certificates of the key that signed the report, in DER.
        certificates: Vec<Bytes>,
    },
    /// What the guest answered to a sealed message.
    Carried {
        /// It, sealed.
        message: Bytes,
    },
    /// A container's id.
    Identified {
        /// It.
        id: String,
    },
    /// A request that was not made.
    Draft {
        /// In the encoding of the wire protocol.
        request: Bytes,
    },
    /// What follows are the stream's bytes.
    Attached,
    /// A part of the log.
    Log {
        /// Entries; none after the last.
        lines: Vec<Line>,
    },
    /// It was not done.
    Failed {
        /// Why.
        error: String,
    },
}

/// A run, for `parma ps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// Its containers, initial ones first.
    pub containers: Vec<ListedContainer>,
    /// Why the guest lists no processes, where the policy does not allow that.
    pub unlisted: Option<String>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedContainer {
    /// Its name in the run.
    pub name: String,
    /// Its id, once it was started.
    pub id: Option<String>,
    /// The image it was started from, as the user named it.
    pub image: String,
    /// Whether the others wait until it has ended well.
    pub initial: bool,
    /// Whether it is to be asked for something.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: u32,
    /// As a shell would give it; `None`: it runs, or has not started.
    pub exit_code: Option<u8>,
    /// Whether it ended for want of memory.
    pub out_of_memory: bool,
    /// Its processes.
    pub processes: Vec<Listed>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its number.
    pub process: u32,
    /// Whether it is the container's first.
    pub init: bool,
    /// As a shell would give it; `None`: it runs.
    pub exit_code: Option<u8>,
}

/// The directory of this user's runs, made if it is not there.
///
/// # Errors
/// It belongs to somebody else, or others can enter it.
pub fn runs_dir() -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let dir = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir()) {
        Some(base) => base.join("parma"),
        None => PathBuf::from(format!("/tmp/parma-{uid}")),
    };
    private(&dir, uid)?;
    Ok(dir)
}

fn private(dir: &Path, uid: u32) -> Result<()> {
    let remedy =
        || format!("cannot use {} for running containers: remove it, or set XDG_RUNTIME_DIR", dir.display());
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(remedy),
    }
    // SECURITY: in /tmp, another user may have made it first, or a link of that name.
    let meta = fs::symlink_metadata(dir).with_context(remedy)?;
    ensure!(meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0, remedy());
    Ok(())
}

/// A name of a run: what may be part of a path without changing its meaning.
///
/// # Errors
/// Other characters than letters, digits, `-`, `_` and `.`, a leading `.`, or too long.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    ensure!(
        !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.bytes().all(plain),
        "{name:?} is no name: 1 to {MAX_NAME} of A-Z a-z 0-9 - _ . without a leading dot"
    );
    Ok(())
}

/// What a run serves.
pub struct Served {
    /// Its containers.
    pub group: Arc<Group>,
    /// Its name.
    pub name: String,
    /// Certificates of the key that signs its guest's reports, in DER.
    pub certificates: Vec<Vec<u8>>,
}

/// A name that is taken for as long as this lives, and the socket behind it.
pub struct Reserved {
    dir: PathBuf,
    listener: UnixListener,
}

impl Reserved {
    /// Takes a name.
    ///
    /// # Errors
    /// A run of this name is there.
    pub fn new(name: &str) -> Result<Self> {
        check_name(name)?;
        let dir = runs_dir()?.join(name);
        let socket = dir.join(SOCKET);
        if dir.exists() {
            if UnixStream::connect(&socket).is_ok() {
                bail!("{name} runs already: choose another --name, or `parma stop {name}`");
            }
            fs::remove_dir_all(&dir)
                .with_context(|| format!("cannot remove what {name} left: {}", dir.display()))?;
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("cannot make {}", socket.display()))?;
        Ok(Self { dir, listener })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> String {
        self.dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Answers from now on, in threads of its own.
    ///
    /// # Errors
    /// There are no file descriptors left.
    pub fn serve(&self, served: Served) -> Result<()> {
        let listener = self.listener.try_clone().context("dup")?;
        let served = Arc::new(served);
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let served = served.clone();
                // A client that breaks off needs no answer.
                std::thread::spawn(move || drop(served.answer_all(connection)));
            }
        });
        Ok(())
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // What stays is removed by whoever takes the name or lists the runs next.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Served {
    fn answer_all(&self, connection: UnixStream) -> Result<()> {
        let mut writer = connection.try_clone()?;
        let mut reader = BufReader::new(connection);
        while let Some(question) = read_line(&mut reader)? {
            if let Question::Attach { process, stream } = question {
                return self.attach(process, stream, reader, writer);
            }
            let answer =
                self.answer(question).unwrap_or_else(|error| Answer::Failed { error: format!("{error:#}") });
            write_line(&mut writer, &answer)?;
        }
        Ok(())
    }

    fn answer(&self, question: Question) -> Result<Answer> {
        let group = &self.group;
        match question {
            Question::Exec { container, args, stdio } => {
                let index = group.find(container.as_deref())?;
                let (id, _) = group.running(index)?;
                let process =
                    group.guest.exec(&id, &group.members[index].workload.container, &args, stdio)?;
                Ok(Answer::Started { process, connector: group.guest.session.connector().clone() })
            }
            Question::Wait { process } => {
                let status = group.guest.session.wait(process, None)?.context("it has not ended")?;
                Ok(Answer::Exited { code: status.shell_code() })
            }
            Question::Signal { container, process, signal } => {
                let (id, init) = group.running(group.find(container.as_deref())?)?;
                group.guest.signal(&id, process.unwrap_or(init), signal)?;
                Ok(Answer::Done)
            }
            Question::Resize { container, process, size } => {
                let (id, _) = group.running(group.find(container.as_deref())?)?;
                group.guest.resize(&id, process, size)?;
                Ok(Answer::Done)
            }
            Question::Stop { seconds } => {
                group.stop(seconds.map(Duration::from_secs));
                Ok(Answer::Done)
            }
            Question::Logs { container } => {
                let log = group.log(group.find(container.as_deref())?);
                Ok(Answer::Logs { text: escape(&log) })
            }
            Question::List => Ok(Answer::Listed(self.list())),
            Question::OpenChannel { nonce, key } => {
                let (channel, opened) = group.guest.open_channel(nonce.array("a nonce")?, &key.0)?;
                Ok(Answer::Channel {
                    channel,
                    key: Bytes(opened.key.to_vec()),
                    report: Bytes(opened.report.to_vec()),
                    audit: Bytes(opened.audit.to_vec()),
                    certificates: self.certificates.iter().cloned().map(Bytes).collect(),
                })
            }
            Question::Carry { channel, message } => {
                let answer = group.guest.carry(channel, &message.0)?;
                group.something_came_sealed();
                Ok(Answer::Carried { message: Bytes(answer) })
            }
            Question::Identify { container } => {
                let (id, _) = group.running(group.find(container.as_deref())?)?;
                Ok(Answer::Identified { id: id.as_str().to_owned() })
            }
            Question::Draft { container, args, stdio } => {
                let index = group.find(container.as_deref())?;
                let (id, _) = group.running(index)?;
                let process = process(&group.members[index].workload.container, &args, stdio)?;
                let request = Request::ExecInContainer { container: id.as_str(), process };
                let request = frame::encode(&request).ok().context("too many or too long arguments")?;
                Ok(Answer::Draft { request: Bytes(request[frame::HEADER..].to_vec()) })
            }
            Question::Audit { first } => self.log(first),
            Question::Attach { .. } => bail!("the connection carries something else now"),
        }
    }

    /// A stream's bytes, from then on.
    fn attach(
        &self,
        process: u32,
        stream: Stream,
        mut reader: BufReader<UnixStream>,
        mut writer: UnixStream,
    ) -> Result<()> {
        let attached = self.group.guest.session.attach(process, stream);
        let mut guest = match attached.and_then(|attached| Ok(attached?)) {
            Ok(guest) => guest,
            Err(error) => return write_line(&mut writer, &Answer::Failed { error: format!("{error:#}") }),
        };
        write_line(&mut writer, &Answer::Attached)?;
        let mut input = guest.try_clone()?;
        // An end on either side is the end on the other; what is wrong with it is seen by whoever can open it.
        let carrier = std::thread::spawn(move || {
            let _ = io::copy(&mut reader, &mut input);
            let _ = input.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut guest, &mut writer);
        let _ = writer.shutdown(Shutdown::Both);
        let _ = guest.shutdown(Shutdown::Both);
        let _ = carrier.join();
        Ok(())
    }

    /// The users of this run's processes, as the containers' own files have them, by what the log says of them.
    fn users(&self) -> HashMap<[u8; 32], User> {
        let users = self.group.members.iter().filter_map(|member| {
            let spec = UserSpec::parse(&member.workload.container.user).ok()?;
            let user = Accounts::read(&member.workload.image).ok()?.user(spec).ok()?;
            Some((audit::user_digest(&user)?, user))
        });
        users.collect()
    }

    fn log(&self, first: u64) -> Result<Answer> {
        let users = self.users();
        let (mut lines, mut bytes) = (Vec::new(), 0);
        let mut failed = None;
        self.group.guest.recorded(first, |entry, request| {
            match Line::new(entry, request, users.get(&entry.user)) {
                Ok(line) => lines.push(line),
                Err(error) => failed = Some(error),
            }
            bytes += 1024 + request.len();
            bytes < PAGE && failed.is_none()
        })?;
        failed.map_or(Ok(Answer::Log { lines }), Err)
    }

    fn list(&self) -> Run {
        let (processes, unlisted) = match self.group.guest.properties() {
            Ok(properties) => (properties.processes, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        let both = self.group.members.iter().zip(self.group.statuses());
        let containers = both.map(|(member, status)| ListedContainer {
            name: member.name.clone(),
            id: status.id.map(|id| id.as_str().to_owned()),
            image: member.image.clone(),
            initial: member.initial,
            ready: status.ready,
            restarts: status.restarts,
            exit_code: status.exit.map(ExitStatus::shell_code),
            out_of_memory: status.exit == Some(ExitStatus::OutOfMemory),
            processes: processes
                .iter()
                .filter(|state| Some(state.container) == status.id)
                .map(|state| Listed {
                    process: state.process,
                    init: state.init,
                    exit_code: state.exited.map(ExitStatus::shell_code),
                })
                .collect(),
        });
        Run { name: self.name.clone(), containers: containers.collect(), unlisted }
    }
}

/// Most entries of a log that are taken from a host.
const MAX_ENTRIES: u64 = 1 << 20;

/// A connection to a run.
pub struct Client {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Client {
    /// Connects to the run of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(name: &str) -> Result<Self> {
        check_name(name)?;
        let socket = runs_dir()?.join(name).join(SOCKET);
        Self::at(&socket)
            .with_context(|| format!("nothing runs under the name {name}: `parma ps` lists what does"))
    }

    /// As [`Client::connect`]; but what has a slash in it is the path of a socket that somebody has carried here.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn reach(run: &str) -> Result<Self> {
        if run.contains('/') {
            return Self::at(Path::new(run)).with_context(|| format!("no run answers at {run}"));
        }
        Self::connect(run)
    }

    fn at(socket: &Path) -> Result<Self> {
        let writer = UnixStream::connect(socket)?;
        Ok(Self { reader: BufReader::new(writer.try_clone()?), writer })
    }

    /// Attaches to a stream of a process; gives both directions.
    ///
    /// # Errors
    /// The guest refuses, or the run is gone.
    pub fn attach(mut self, process: u32, stream: Stream) -> Result<(impl Read + Send, UnixStream)> {
        match self.ask(&Question::Attach { process, stream })? {
            Answer::Attached => Ok((self.reader, self.writer)),
            _ => bail!("an unexpected answer"),
        }
    }

    /// The whole log up to the head that a guest has shown, as the host tells it. Of what it says nothing is checked but that it
    /// leads there from the HOST_DATA of the guest's report.
    ///
    /// # Errors
    /// It does not, or the host keeps no record.
    pub fn log(&mut self, shown: &Shown) -> Result<Log> {
        let mut log = shown.log();
        let mut head: [u8; 32] = shown.opened.report[parma_psp::layout::HOST_DATA].try_into()?;
        let mut next = 1;
        while head != shown.opened.audit {
            let Answer::Log { lines } = self.ask(&Question::Audit { first: next })? else {
                bail!("an unexpected answer")
            };
            ensure!(
                !lines.is_empty() && next < MAX_ENTRIES,
                "the log does not lead to the head that the guest has shown"
            );
            for line in lines {
                let entry = line.entry()?;
                head = audit::follow(head, next, &[entry]).context("the log is not one chain")?;
                next += 1;
                log.entries.push(line);
                if head == shown.opened.audit {
                    break;
                }
            }
        }
        Ok(log)
    }

    /// Asks, and waits for the answer. [`Answer::Failed`] is an error.
    ///
    /// # Errors
    /// It was not done, or the run is gone.
    pub fn ask(&mut self, question: &Question) -> Result<Answer> {
        write_line(&mut self.writer, question).context("the run is gone")?;
        match read_line(&mut self.reader)?.context("the run is gone")? {
            Answer::Failed { error } => bail!(error),
            answer => Ok(answer),
        }
    }
}

impl Carrier for Client {
    fn open_channel(&mut self, nonce: [u8; 32], key: &[u8; KEY]) -> Result<Answered> {
        let question = Question::OpenChannel { nonce: Bytes(nonce.to_vec()), key: Bytes(key.to_vec()) };
        let Answer::Channel { channel, key, report, audit, certificates } = self.ask(&question)? else {
            bail!("an unexpected answer")
        };
        let opened = Opened {
            key: key.array("the guest's key")?,
            report: report.array("the guest's report")?,
            audit: audit.array("the head of the guest's log")?,
        };
        let certificates = certificates.into_iter().map(|der| der.0).collect();
        Ok(Answered { channel, opened: Box::new(opened), certificates })
    }

    fn carry(&mut self, channel: u32, message: &[u8]) -> Result<Vec<u8>> {
        match self.ask(&Question::Carry { channel, message: Bytes(message.to_vec()) })? {
            Answer::Carried { message } => Ok(message.0),
            _ => bail!("an unexpected answer"),
        }
    }
}

/// All runs of this user, by name. What killed ones left is removed.
///
/// # Errors
/// The directory cannot be read.
pub fn runs() -> Result<Vec<Run>> {
    let dir = runs_dir()?;
    let mut runs = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) else { continue };
        match UnixStream::connect(entry.path().join(SOCKET)) {
            Ok(_) => {
                if let Answer::Listed(run) = Client::connect(name)?.ask(&Question::List)? {
                    runs.push(run);
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                let _ = fs::remove_dir_all(entry.path());
            }
            // It is just being made.
            Err(_) => {}
        }
    }
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(runs)
}

fn write_line<T: Serialize>(writer: &mut UnixStream, value: &T) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)?;
    Ok(())
}

fn read_line<T: for<'de> Deserialize<'de>>(reader: &mut BufReader<UnixStream>) -> Result<Option<T>> {
    let mut line = Vec::new();
    reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    ensure!(line.ends_with(b"\n"), "a line is longer than {MAX_LINE} bytes, or was cut");
    Ok(Some(serde_json::from_slice(&line).context("a malformed line")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        for good in ["a", "web-1", "A_b.c", &"x".repeat(MAX_NAME)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ü", "a\0", &"x".repeat(MAX_NAME + 1)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let dir = base.path().join("runs");
        private(&dir, uid).unwrap();
        private(&dir, uid).unwrap();
        assert!(private(&dir, uid + 1).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert!(private(&link, uid).is_err());
        let open = base.path().join("open");
        fs::DirBuilder::new().mode(0o755).create(&open).unwrap();
        let error = private(&open, uid).unwrap_err().to_string();
        assert!(error.contains("open") && error.contains("XDG_RUNTIME_DIR"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_refused_at_its_limit() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            // Fails when the reader has seen enough.
            let _ = theirs.write_all(&vec![b'x'; 2 * usize::try_from(MAX_LINE).unwrap()]);
        });
        let mut reader = BufReader::new(ours);
        assert!(read_line::<Question>(&mut reader).is_err());
        drop(reader);
        writer.join().unwrap();
    }
}
