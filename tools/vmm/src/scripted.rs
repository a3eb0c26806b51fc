//! A disk that lies: its content and its behaviour are what a test says, while the guest runs.
//!
//! QEMU reads and writes it over NBD on a Unix socket, with no cache in between, so that each access of the guest's device
//! is a request here. A request that no rule matches is served honestly. Rules are asked in the order in which they were
//! made, and the first that matches decides.
//!
//! Nothing sleeps: a test waits for an access ([`ScriptedDisk::wait_for`]), or has a request held until it has done what
//! it wanted to do in between ([`ScriptedDisk::hold`]).

use crate::nbd::{self, Request};
use anyhow::{Context as _, Result};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::net::{Shutdown, shutdown};
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub use crate::nbd::Operation;

/// Bytes that are copied at a time.
const COPY: usize = 1 << 20;

/// One request that reached the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// What was asked for.
    pub operation: Operation,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; 0 for a flush.
    pub length: u32,
}

impl Access {
    /// Whether it touches one of these bytes. A flush touches all.
    #[must_use]
    pub fn touches(&self, bytes: &Range<u64>) -> bool {
        let end = self.offset + u64::from(self.length);
        self.operation == Operation::Flush || (self.offset < bytes.end && bytes.start < end)
    }
}

/// Which requests a rule is about. [`When::any`] and its kin say which operation; the rest narrows it down.
#[derive(Debug, Clone)]
pub struct When {
    operation: Option<Operation>,
    bytes: Range<u64>,
    skip: u64,
    times: u64,
}

impl When {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self { operation: None, bytes: 0..u64::MAX, skip: 0, times: u64::MAX }
    }

    /// Every request for this operation.
    #[must_use]
    pub fn is(operation: Operation) -> Self {
        Self { operation: Some(operation), ..Self::any() }
    }

    /// Only those that touch one of these bytes of the disk.
    #[must_use]
    pub fn at(self, bytes: Range<u64>) -> Self {
        Self { bytes, ..self }
    }

    /// Not the first `count` of them.
    #[must_use]
    pub fn after(self, count: u64) -> Self {
        Self { skip: count, ..self }
    }

    /// At most `count` of them.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { times: count, ..self }
    }

    /// Whether this request is one of them; counts it.
    fn takes(&mut self, access: &Access) -> bool {
        if self.operation.is_some_and(|operation| operation != access.operation)
            || !access.touches(&self.bytes)
            || self.times == 0
        {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// How a request fails. QEMU passes each on to the guest as an I/O error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// An I/O error.
    Io,
    /// No space left.
    NoSpace,
}

impl Failure {
    fn number(self) -> u32 {
        match self {
            Self::Io => 5,
            Self::NoSpace => 28,
        }
    }
}

/// What a disk held at some time.
#[derive(Debug, Clone)]
pub struct Snapshot {
    content: Arc<File>,
    size: u64,
}

enum Action {
    Fail(Failure),
    /// Flip these bits of the byte at this place on its way.
    Flip(u64, u8),
    /// Say that it was done.
    Ignore,
    /// Read from there.
    Serve(Snapshot),
    Hold(Arc<Latch>),
}

/// What a held request and its test tell each other.
#[derive(Default)]
struct Latch {
    state: Mutex<(Option<Access>, bool)>,
    changed: Condvar,
}

/// A rule that holds requests.
pub struct Held {
    latch: Arc<Latch>,
}

impl Held {
    /// Waits until a request is held; `None` if there is none after this time.
    #[must_use]
    pub fn caught(&self, timeout: Duration) -> Option<Access> {
        wait(&self.latch.state, &self.latch.changed, timeout, |state| state.0)
    }

    /// Lets go of what is held, and holds nothing more. Dropping it does the same.
    pub fn release(self) {}
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.latch.state).1 = true;
        self.latch.changed.notify_all();
    }
}

/// A disk whose content and behaviour a test decides. Clones are the same disk.
#[derive(Clone)]
pub struct ScriptedDisk {
    server: Arc<Server>,
}

/// The listening thread; it ends when the last clone of the disk is dropped.
struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    _dir: TempDir,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    content: Option<File>,
    size: u64,
    rules: Vec<(When, Action)>,
    accesses: Vec<Access>,
    connections: Vec<UnixStream>,
    gone: bool,
}

impl ScriptedDisk {
    /// A disk of this many bytes, all zero. It takes no room until it is written.
    ///
    /// # Errors
    /// A temporary file or a socket cannot be made.
    pub fn zeroed(bytes: u64) -> Result<Self> {
        let content = tempfile::tempfile().context("a temporary file")?;
        content.set_len(bytes).context("a temporary file")?;
        Self::start(content, bytes)
    }

    /// A disk with the content of this file, which itself is left alone.
    ///
    /// # Errors
    /// It cannot be read; or as [`Self::zeroed`].
    pub fn copy_of(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let size = file.metadata().with_context(|| path.display().to_string())?.len();
        Self::start(copy(&file, size).with_context(|| path.display().to_string())?, size)
    }

    fn start(content: File, size: u64) -> Result<Self> {
        let dir =
            tempfile::Builder::new().prefix("parma-disk-").tempdir().context("a temporary directory")?;
        let socket = dir.path().join("nbd");
        let listener = UnixListener::bind(&socket).context("a socket for a disk")?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { content: Some(content), size, ..State::default() }),
            changed: Condvar::new(),
        });
        let (theirs, accepting) = (shared.clone(), listener.try_clone().context("dup")?);
        let thread = std::thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                let shared = theirs.clone();
                // A connection that ends, ends; QEMU tells the guest.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        let server = Server { shared, listener, thread: Some(thread), socket, _dir: dir };
        Ok(Self { server: Arc::new(server) })
    }

    /// Where QEMU finds it.
    pub(crate) fn socket(&self) -> &Path {
        &self.server.socket
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.server.shared.state)
    }

    /// What the disk holds here, as the host sees it. Not an [`Access`].
    ///
    /// # Errors
    /// It ends before.
    pub fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.state().content()?.read_exact_at(&mut bytes, offset).context("a scripted disk")?;
        Ok(bytes)
    }

    /// Changes what the disk holds, under the guest's feet. Not an [`Access`].
    ///
    /// # Errors
    /// The temporary file cannot be written.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.state().content()?.write_all_at(bytes, offset).context("a scripted disk")
    }

    /// A copy of all that the disk holds now.
    ///
    /// # Errors
    /// A temporary file cannot be written.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let state = self.state();
        let size = state.content()?.metadata()?.len();
        Ok(Snapshot { content: Arc::new(copy(state.content()?, size).context("a snapshot")?), size })
    }

    /// Puts that content, of this disk or of another, in the place of what the disk holds. QEMU keeps to the size that
    /// the disk had when it was attached; what is no longer there is an I/O error.
    ///
    /// # Errors
    /// A temporary file cannot be written.
    pub fn restore(&self, snapshot: &Snapshot) -> Result<()> {
        let content = copy(&snapshot.content, snapshot.size).context("a snapshot")?;
        let mut state = self.state();
        (state.content, state.size) = (Some(content), snapshot.size);
        Ok(())
    }

    /// From now on every request beyond this many bytes fails. The guest is not told.
    pub fn shrink(&self, bytes: u64) {
        let mut state = self.state();
        state.size = state.size.min(bytes);
    }

    /// These requests fail.
    pub fn fail(&self, when: When, failure: Failure) {
        self.rule(when, Action::Fail(failure));
    }

    /// Where these reads or writes carry the byte at `at`, these bits of it are flipped on the way.
    pub fn flip(&self, when: When, at: u64, bits: u8) {
        self.rule(when.at(at..at + 1), Action::Flip(at, bits));
    }

    /// These requests are said to be done, and are not: writes and flushes are lost, reads give zeros.
    pub fn ignore(&self, when: When) {
        self.rule(when, Action::Ignore);
    }

    /// These reads give what was there at that time.
    pub fn serve(&self, when: When, snapshot: &Snapshot) {
        self.rule(when, Action::Serve(snapshot.clone()));
    }

    /// These requests wait, then are served. Others overtake them.
    #[must_use = "what is held is let go when this is dropped"]
    pub fn hold(&self, when: When) -> Held {
        let latch = Arc::new(Latch::default());
        self.rule(when, Action::Hold(latch.clone()));
        Held { latch }
    }

    fn rule(&self, when: When, action: Action) {
        self.state().rules.push((when, action));
    }

    /// Forgets all rules: an honest disk, with the content that it has come to.
    pub fn behave(&self) {
        self.state().rules.clear();
    }

    /// The disk is gone: what is asked of it now and later fails.
    pub fn disconnect(&self) {
        let mut state = self.state();
        state.gone = true;
        for connection in state.connections.drain(..) {
            // One that QEMU closed already is gone too.
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }

    /// All requests so far, in their order.
    #[must_use]
    pub fn accesses(&self) -> Vec<Access> {
        self.state().accesses.clone()
    }

    /// Forgets the requests so far.
    pub fn forget_accesses(&self) {
        self.state().accesses.clear();
    }

    /// Waits for a request that `wanted` accepts, one that came before included; `None` if there is none after this time.
    #[must_use]
    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&Access) -> bool) -> Option<Access> {
        let shared = &self.server.shared;
        wait(&shared.state, &shared.changed, timeout, |state| state.accesses.iter().copied().find(&wanted))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both wake their threads up; where they cannot, the threads end with this process.
        let _ = shutdown(&self.listener, Shutdown::Both);
        for connection in lock(&self.shared.state).connections.drain(..) {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn content(&self) -> io::Result<&File> {
        self.content.as_ref().ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// What a disk does with a request when nobody tells it otherwise.
    fn honestly(&self, request: &Request) -> Result<Vec<u8>, u32> {
        self.perform(request).map_err(|_| Failure::Io.number())
    }

    fn perform(&self, request: &Request) -> io::Result<Vec<u8>> {
        let Request { operation, offset, length, ref data, .. } = *request;
        if operation != Operation::Flush && offset + u64::from(length) > self.size {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let content = self.content()?;
        match operation {
            Operation::Read => {
                let mut bytes = vec![0; length as usize];
                content.read_exact_at(&mut bytes, offset)?;
                return Ok(bytes);
            }
            Operation::Write => content.write_all_at(data, offset)?,
            // What is trimmed may be anything; zeros are what most disks give.
            Operation::Trim | Operation::WriteZeroes => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(content, flags, offset, length.into())?;
            }
            // Nothing of a test's disk outlives the test.
            Operation::Flush => {}
        }
        Ok(Vec::new())
    }
}

impl Shared {
    fn serve(self: Arc<Self>, mut stream: UnixStream) -> io::Result<()> {
        let size = {
            let mut state = lock(&self.state);
            if state.gone {
                return Ok(());
            }
            state.connections.push(stream.try_clone()?);
            state.size
        };
        if !nbd::handshake(&mut stream, size)? {
            return Ok(());
        }
        let replies = Arc::new(Mutex::new(stream.try_clone()?));
        while let Some(request) = nbd::request(&mut stream)? {
            match self.decide(&request) {
                Ok(result) => nbd::reply(&mut *lock(&replies), request.cookie, result)?,
                Err(latch) => {
                    let (shared, replies) = (self.clone(), replies.clone());
                    std::thread::spawn(move || {
                        latch.pass();
                        let result = lock(&shared.state).honestly(&request);
                        // The connection may be gone by now.
                        let _ = nbd::reply(&mut *lock(&replies), request.cookie, result);
                    });
                }
            }
        }
        Ok(())
    }

    /// Records a request and does with it what the rules say; gives the latch that it waits behind, if there is one.
    fn decide(&self, request: &Request) -> Result<Result<Vec<u8>, u32>, Arc<Latch>> {
        let access = Access { operation: request.operation, offset: request.offset, length: request.length };
        let mut state = lock(&self.state);
        state.accesses.push(access);
        self.changed.notify_all();
        let Some(rule) = state.rules.iter_mut().position(|(when, _)| when.takes(&access)) else {
            return Ok(state.honestly(request));
        };
        match &state.rules[rule].1 {
            Action::Fail(failure) => Ok(Err(failure.number())),
            Action::Ignore if request.operation == Operation::Read => {
                Ok(Ok(vec![0; request.length as usize]))
            }
            Action::Ignore => Ok(Ok(Vec::new())),
            Action::Serve(snapshot) if request.operation == Operation::Read => {
                let mut bytes = vec![0; request.length as usize];
                let read = snapshot.content.read_exact_at(&mut bytes, request.offset);
                Ok(read.map(|()| bytes).map_err(|_| Failure::Io.number()))
            }
            Action::Serve(_) => Ok(state.honestly(request)),
            &Action::Flip(at, bits) => {
                let place = (at - request.offset) as usize;
                let flip = |mut bytes: Vec<u8>| {
                    if let Some(byte) = bytes.get_mut(place) {
                        *byte ^= bits;
                    }
                    bytes
                };
                Ok(match request.operation {
                    Operation::Write => {
                        state.honestly(&Request { data: flip(request.data.clone()), ..*request })
                    }
                    _ => state.honestly(request).map(flip),
                })
            }
            Action::Hold(latch) => {
                let latch = latch.clone();
                drop(state);
                if latch.catch(access) { Err(latch) } else { Ok(lock(&self.state).honestly(request)) }
            }
        }
    }
}

impl Latch {
    /// Says that a request is held; false if nothing is held any more.
    fn catch(&self, access: Access) -> bool {
        let mut state = lock(&self.state);
        state.0.get_or_insert(access);
        self.changed.notify_all();
        !state.1
    }

    /// Waits until the request may go on.
    fn pass(&self) {
        let mut state = lock(&self.state);
        while !state.1 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is complete when the lock is released, even by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `ready` gives something, or the time is over.
fn wait<S, T>(
    state: &Mutex<S>,
    changed: &Condvar,
    timeout: Duration,
    ready: impl Fn(&S) -> Option<T>,
) -> Option<T> {
    let deadline = Instant::now() + timeout;
    let mut state = lock(state);
    loop {
        if let Some(value) = ready(&state) {
            return Some(value);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// An unnamed copy of a file; its holes stay holes.
fn copy(file: &File, size: u64) -> io::Result<File> {
    let copy = tempfile::tempfile()?;
    copy.set_len(size)?;
    let mut buffer = vec![0; COPY];
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break, // holes only
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
        at = start;
        while at < end {
            let now = buffer.len().min((end - at) as usize);
            file.read_exact_at(&mut buffer[..now], at)?;
            copy.write_all_at(&buffer[..now], at)?;
            at += now as u64;
        }
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};

    const LONG: Duration = Duration::from_secs(60);
    const SIZE: u64 = 64 << 10;

    /// A client of as much of NBD as the tests need.
    struct Client(UnixStream);

    impl Client {
        fn new(disk: &ScriptedDisk) -> Self {
            let mut stream = UnixStream::connect(disk.socket()).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            let mut greeting = [0; 18];
            stream.read_exact(&mut greeting).unwrap();
            assert_eq!(&greeting[..8], b"NBDMAGIC");
            let mut hello = 3u32.to_be_bytes().to_vec();
            hello.extend(b"IHAVEOPT");
            hello.extend([0, 0, 0, 7, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0]); // go, the unnamed export
            stream.write_all(&hello).unwrap();
            let mut answer = [0; 20 + 12 + 20 + 14 + 20];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[22..30], SIZE.to_be_bytes());
            Self(stream)
        }

        fn send(&mut self, kind: u8, cookie: u64, offset: u64, length: u32, data: &[u8]) {
            let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
            request.extend([0, 0, 0, kind]);
            request.extend(cookie.to_be_bytes());
            request.extend(offset.to_be_bytes());
            request.extend(length.to_be_bytes());
            request.extend(data);
            self.0.write_all(&request).unwrap();
        }

        /// Cookie and error of the next reply.
        fn reply(&mut self) -> (u64, u32) {
            let mut reply = [0; 16];
            self.0.read_exact(&mut reply).unwrap();
            let word = |range: Range<usize>| u32::from_be_bytes(reply[range].try_into().unwrap());
            assert_eq!(word(0..4), 0x6744_6698);
            (u64::from_be_bytes(reply[8..].try_into().unwrap()), word(4..8))
        }

        fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>, u32> {
            self.send(0, 7, offset, length, &[]);
            match self.reply() {
                (7, 0) => {
                    let mut data = vec![0; length as usize];
                    self.0.read_exact(&mut data).unwrap();
                    Ok(data)
                }
                (7, error) => Err(error),
                other => panic!("{other:?}"),
            }
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
            self.send(1, 8, offset, data.len() as u32, data);
            self.reply().1
        }

        fn flush(&mut self) -> u32 {
            self.send(3, 9, 0, 0, &[]);
            self.reply().1
        }
    }

    fn disk() -> (ScriptedDisk, Client) {
        let disk = ScriptedDisk::zeroed(SIZE).unwrap();
        let client = Client::new(&disk);
        (disk, client)
    }

    #[test]
    fn without_rules_it_is_an_honest_disk_that_records() {
        let (disk, mut client) = disk();
        assert_eq!(client.write(4096, &[7; 512]), 0);
        assert_eq!(client.read(4096, 512), Ok(vec![7; 512]));
        assert_eq!(client.flush(), 0);
        assert_eq!(client.read(SIZE, 512), Err(5));
        let operations: Vec<_> = disk.accesses().iter().map(|access| access.operation).collect();
        assert_eq!(operations, [Operation::Write, Operation::Read, Operation::Flush, Operation::Read]);
        assert_eq!(disk.read(4096, 2).unwrap(), [7, 7]);
        assert!(disk.wait_for(LONG, |access| access.operation == Operation::Flush).is_some());
        assert!(disk.wait_for(Duration::ZERO, |access| access.operation == Operation::Trim).is_none());
    }

    #[test]
    fn rules_narrow_by_operation_place_order_and_count() {
        let (disk, mut client) = disk();
        disk.fail(When::is(Operation::Read).at(4096..8192).after(1).times(1), Failure::Io);
        disk.fail(When::is(Operation::Write).at(0..1), Failure::NoSpace);
        assert!(client.read(0, 4096).is_ok());
        assert!(client.read(4096, 512).is_ok());
        assert_eq!(client.read(0, 8192), Err(5));
        assert!(client.read(4096, 512).is_ok());
        assert_eq!((client.write(0, &[1; 512]), client.write(512, &[1; 512])), (28, 0));
        assert_eq!(disk.read(0, 1).unwrap(), [0]);
        disk.behave();
        assert_eq!(client.write(0, &[1; 512]), 0);
    }

    #[test]
    fn it_corrupts_loses_and_rolls_back() {
        let (disk, mut client) = disk();
        client.write(0, &[1; 1024]);
        let old = disk.snapshot().unwrap();
        client.write(0, &[2; 1024]);
        disk.flip(When::is(Operation::Read).times(1), 600, 0x80);
        assert_eq!(client.read(0, 1024).unwrap()[600], 2 | 0x80);
        disk.ignore(When::is(Operation::Write).times(1));
        client.write(0, &[3; 1024]);
        disk.serve(When::is(Operation::Read).times(1), &old);
        assert_eq!(client.read(0, 1024), Ok(vec![1; 1024]));
        assert_eq!(
            client.read(0, 1024),
            Ok(vec![2; 1024]),
            "the write was lost, the old content was served once"
        );
        disk.restore(&old).unwrap();
        assert_eq!(client.read(0, 1024), Ok(vec![1; 1024]));
        disk.write(1, &[9]).unwrap();
        assert_eq!(client.read(0, 512).unwrap()[..3], [1, 9, 1]);
    }

    #[test]
    fn a_held_request_is_overtaken_and_sees_what_changed_meanwhile() {
        let (disk, mut client) = disk();
        let held = disk.hold(When::is(Operation::Read).at(0..512));
        client.send(0, 1, 0, 512, &[]);
        assert_eq!(held.caught(LONG).unwrap().offset, 0);
        assert_eq!(client.read(512, 512), Ok(vec![0; 512]));
        disk.write(0, &[5; 512]).unwrap();
        held.release();
        assert_eq!(client.reply(), (1, 0));
        let mut data = [0; 512];
        client.0.read_exact(&mut data).unwrap();
        assert_eq!(data, [5; 512]);
    }

    #[test]
    fn it_shrinks_and_vanishes() {
        let (disk, mut client) = disk();
        disk.shrink(4096);
        assert!(client.read(0, 4096).is_ok());
        assert_eq!((client.read(4096, 512), client.write(8192, &[1; 512])), (Err(5), 5));
        disk.disconnect();
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
        let again = UnixStream::connect(disk.socket()).unwrap().read(&mut [0]);
        assert_eq!(again.unwrap_or(0), 0);
    }
}
