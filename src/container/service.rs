//! The attestation directories of containers, and the socket in each (`crate::attest::service`).
//!
//! A container that the policy gives a directory has one of its own: a tmpfs that it sees read-only, made when it is created and
//! gone with it. Whatever it does at its socket is its own loss: it has [`MAX_CONNECTIONS`] places, of which a further connection
//! takes the oldest, a connection holds one question, and one event of the loop serves one connection.

use crate::attest::service::{CERTIFICATES, ENDORSEMENT, POLICY, QUESTION, SECRETS, SOCKET, report_data};
use crate::gate::action::{DeliverSecret, Endorse};
use crate::gate::fields::ContainerId;
use crate::linux::Errno;
use alloc::ffi::CString;
use alloc::vec::Vec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, fchmod, mkdirat, openat, unlinkat};
use rustix::io::write;
use rustix::mount::{MountFlags, mount};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, socket_with,
};

/// How a report of this guest with this REPORT_DATA is made.
pub type Source = fn(&[u8; 64]) -> Option<[u8; 1184]>;

/// Connections of one container at a time.
const MAX_CONNECTIONS: usize = 4;
/// Connections of one container that the kernel keeps waiting.
const BACKLOG: i32 = 4;
/// What one directory may take of the guest's memory: a policy of the greatest size, and secrets.
const OPTIONS: &core::ffi::CStr = c"mode=0755,size=8m";

/// What belongs to a directory, for an epoll token: bits 63 and 62 are set; 39–8: the container's number; 7–0: the connection's
/// place, or the listener.
pub const TOKEN_BIT: u64 = 1 << 62;
const LISTENER: u8 = u8::MAX;

fn token(number: u32, place: u8) -> EventData {
    EventData::new_u64(super::TOKEN_BIT | TOKEN_BIT | u64::from(number) << 8 | u64::from(place))
}

/// All directories.
#[derive(Debug)]
pub struct Services {
    epoll: OwnedFd,
    /// Where they are, each under its container's id.
    place: &'static str,
    source: Source,
    /// What the host said, in base64.
    endorsed: [Vec<u8>; 2],
    services: Vec<Service>,
}

/// One socket.
#[derive(Debug)]
struct Service {
    container: ContainerId,
    /// The number of the container's first process.
    number: u32,
    listener: OwnedFd,
    connections: [Option<Connection>; MAX_CONNECTIONS],
    /// Connections so far.
    accepted: u64,
}

/// A connection that has not sent all of its question.
#[derive(Debug)]
struct Connection {
    age: u64,
    socket: OwnedFd,
    question: [u8; QUESTION],
    received: usize,
}

impl Services {
    /// None yet.
    pub fn new(epoll: OwnedFd, place: &'static str, source: Source) -> Self {
        Self { epoll, place, source, endorsed: Default::default(), services: Vec::new() }
    }

    /// Keeps what the host says for directories that are made from now on.
    pub fn endorse(&mut self, endorse: Endorse<'_>) -> Result<(), Errno> {
        self.endorsed = [base64(endorse.certificates)?, base64(endorse.endorsement)?];
        Ok(())
    }

    /// Where a container's directory is.
    pub fn path(&self, container: &ContainerId) -> Result<CString, Errno> {
        super::path::c_string(&[self.place, "/", container.as_str()])
    }

    /// Makes a container's directory, or nothing. `number` is that of its first process.
    pub fn make(&mut self, container: &ContainerId, number: u32, policy: &[u8]) -> Result<(), Errno> {
        self.services.try_reserve(1).map_err(|_| Errno::NOMEM)?;
        let path = self.path(container)?;
        mkdirat(CWD, &*path, Mode::RWXU)?;
        let mounted = mount(
            "tmpfs",
            &*path,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            OPTIONS,
        );
        let made = mounted.and_then(|()| self.furnish(&path, number, policy));
        match made {
            Ok(listener) => {
                let (container, connections) = (*container, Default::default());
                self.services.push(Service { container, number, listener, connections, accepted: 0 });
                Ok(())
            }
            Err(errno) => {
                self.remove(container)?;
                Err(errno)
            }
        }
    }

    fn furnish(&self, path: &CString, number: u32, policy: &[u8]) -> Result<OwnedFd, Errno> {
        let directory = openat(
            CWD,
            &**path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let [certificates, endorsement] = &self.endorsed;
        let policy = base64(policy)?;
        for (name, content) in [(POLICY, &policy), (CERTIFICATES, certificates), (ENDORSEMENT, endorsement)] {
            if !content.is_empty() {
                write_new(&directory, name, content)?;
            }
        }
        mkdirat(&directory, SECRETS, Mode::RWXU)?;
        // The init's own mask would take the others' access away.
        chmodat(&directory, SECRETS, Mode::from_raw_mode(0o755), AtFlags::empty())?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let socket = super::path::c_string(&[path.to_str().map_err(|_| Errno::INVAL)?, "/", SOCKET])?;
        bind(&listener, &SocketAddrUnix::new(&*socket)?)?;
        chmodat(&directory, SOCKET, Mode::from_raw_mode(0o666), AtFlags::empty())?;
        listen(&listener, BACKLOG)?;
        epoll::add(&self.epoll, &listener, token(number, LISTENER), EventFlags::IN)?;
        Ok(listener)
    }

    /// Removes a container's directory, if it has one. What it still has open goes when it is closed.
    pub fn remove(&mut self, container: &ContainerId) -> Result<(), Errno> {
        self.services.retain(|service| service.container != *container);
        let path = self.path(container)?;
        super::rootfs::remove_mount_point(&path)
    }

    /// Makes a secret's file.
    pub fn deliver(&self, secret: &DeliverSecret<'_>) -> Result<(), Errno> {
        if self.services.iter().all(|service| service.container != secret.container) {
            return Err(Errno::NOENT);
        }
        let path = self.path(&secret.container)?;
        let path = super::path::c_string(&[path.to_str().map_err(|_| Errno::INVAL)?, "/", SECRETS])?;
        // The container cannot change what is on this way: it has the directory read-only.
        let directory =
            openat(CWD, &*path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        write_new(&directory, secret.name.as_str(), secret.content)
    }

    /// Goes on with what an event is about: a listener or a connection.
    pub fn on_event(&mut self, token: u64) {
        // What is cut off are the bits that made it ours.
        let (number, place) = ((token >> 8) as u32, token as u8);
        let Some(service) = self.services.iter_mut().find(|service| service.number == number) else {
            return;
        };
        if place == LISTENER {
            // A connection that fails is closed, which is all that can be done about it.
            let _ = service.accept(&self.epoll);
        } else if let Some(place) = service.connections.get_mut(usize::from(place))
            && place.as_mut().is_some_and(|connection| connection.advance(self.source))
        {
            *place = None;
        }
    }
}

impl Service {
    fn accept(&mut self, epoll: &OwnedFd) -> Result<(), Errno> {
        let socket = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // A free place is older than any connection.
        let age = |place: &Option<Connection>| place.as_ref().map(|connection| connection.age);
        let oldest = (0u8..).zip(&mut self.connections).min_by_key(|(_, place)| age(place));
        let Some((number, place)) = oldest else { return Ok(()) };
        epoll::add(epoll, &socket, token(self.number, number), EventFlags::IN)?;
        self.accepted += 1;
        *place = Some(Connection { age: self.accepted, socket, question: [0; QUESTION], received: 0 });
        Ok(())
    }
}

impl Connection {
    /// Reads what is there of the question, and answers it when it is whole. Whether the connection is over.
    fn advance(&mut self, source: Source) -> bool {
        while let Some(room) = self.question.get_mut(self.received..).filter(|room| !room.is_empty()) {
            match recv(&self.socket, room, RecvFlags::empty()) {
                Ok((0, _)) => return true,
                Ok((more, _)) => self.received += more,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => return true,
            }
        }
        if let Some(report) = source(&report_data(&self.question)) {
            // It is the first thing on its connection, so there is room for it, unless nobody is there any more.
            let _ = send(&self.socket, &report, SendFlags::NOSIGNAL);
        }
        true
    }
}

/// Makes a file that everybody may read.
fn write_new(directory: impl AsFd, name: &str, mut content: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&directory, name, flags, Mode::RUSR)?;
    while !content.is_empty() {
        match write(&file, content) {
            Ok(written) => content = content.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => {
                unlinkat(&directory, name, AtFlags::empty())?;
                return Err(errno);
            }
        }
    }
    // Only now is it there for others: whoever can open it has all of it.
    fchmod(&file, Mode::from_raw_mode(0o444))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> Result<Vec<u8>, Errno> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = super::launch::room(bytes.len().div_ceil(3) * 4)?;
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place > group.len() { b'=' } else { digit });
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        // Section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()).unwrap(), text.as_bytes());
        }
    }
}
