//! QEMU's monitor: commands, events, and files that travel with them.

use anyhow::{Context as _, Result, anyhow};
use qapi::qmp::{Event, add_fd, blockdev_del, remove_fd};
use qapi::{Command, Qmp, Stream};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{self, BufRead as _, BufReader};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long QEMU may take for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The connection to it.
pub struct Monitor {
    qmp: Qmp<Stream<BufReader<UnixStream>, UnixStream>>,
    /// Events that came while a command was executed, oldest first.
    events: VecDeque<Event>,
}

/// A command whose arguments are those of the command line's option of that name.
macro_rules! command {
    ($type:ident $name:literal) => {
        struct $type(Value);

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)
            }
        }

        impl Command for $type {
            type Ok = qapi::Empty;
            const NAME: &'static str = $name;
            const ALLOW_OOB: bool = false;
        }
    };
}

command!(BlockdevAdd "blockdev-add");
command!(DeviceAdd "device_add");

impl Monitor {
    /// The monitor at the other end of this socket.
    pub fn new(socket: UnixStream) -> Result<Self> {
        let reader = BufReader::new(socket.try_clone().context("dup")?);
        Ok(Self { qmp: Qmp::new(Stream::new(reader, socket)), events: VecDeque::new() })
    }

    fn set_timeout(&self, timeout: Duration) -> Result<()> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        self.qmp.inner().get_ref_write().set_read_timeout(timeout).context("a socket's timeout")
    }

    /// Waits for the first byte; false if there is an end instead.
    pub fn speaks(&mut self, timeout: Duration) -> Result<bool> {
        self.set_timeout(timeout)?;
        Ok(self.qmp.inner_mut().fill_buf().is_ok_and(|bytes| !bytes.is_empty()))
    }

    /// Exchanges greetings.
    pub fn handshake(&mut self) -> Result<()> {
        self.set_timeout(ANSWER_TIMEOUT)?;
        self.qmp.handshake().map(drop).map_err(|error| anyhow!("QEMU's monitor: {error}"))
    }

    /// Executes a command.
    pub fn execute<C: Command>(&mut self, command: &C) -> Result<C::Ok> {
        self.set_timeout(ANSWER_TIMEOUT)?;
        let done = self.qmp.execute(command);
        self.events.extend(self.qmp.events());
        done.map_err(|error| anyhow!("QEMU's monitor, {}: {error}", C::NAME))
    }

    /// The next event, waiting so long for it; `None` where QEMU has ended.
    pub fn event(&mut self, timeout: Duration) -> Result<Option<Event>> {
        if let Some(event) = self.events.pop_front() {
            return Ok(Some(event));
        }
        self.set_timeout(timeout)?;
        loop {
            let mut line = String::new();
            if self.qmp.inner_mut().read_line(&mut line).context("QEMU's monitor")? == 0 {
                return Ok(None);
            }
            // What is of another version of QEMU is nothing that is waited for.
            if let Ok(event) = serde_json::from_str(&line) {
                return Ok(Some(event));
            }
        }
    }

    /// Hands a file over; gives the number of the set that holds it.
    pub fn add_fd(&mut self, fd: &OwnedFd) -> Result<i64> {
        // QEMU gives a command the descriptors that came with the bytes before it, here a blank.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let socket = self.qmp.inner().get_ref_write();
        sendmsg(socket, &[io::IoSlice::new(b" ")], &mut control, SendFlags::NOSIGNAL)
            .context("QEMU's monitor takes no file")?;
        Ok(self.execute(&add_fd { fdset_id: None, opaque: None })?.fdset_id)
    }

    /// Takes it back, once nothing uses it.
    pub fn remove_fd(&mut self, fdset: i64) -> Result<()> {
        self.execute(&remove_fd { fd: None, fdset_id: fdset }).map(drop)
    }

    /// Makes a block node.
    pub fn blockdev_add(&mut self, arguments: Value) -> Result<()> {
        self.execute(&BlockdevAdd(arguments)).map(drop)
    }

    /// Removes it, once nothing uses it.
    pub fn blockdev_del(&mut self, node: &str) -> Result<()> {
        self.execute(&blockdev_del { node_name: node.to_owned() }).map(drop)
    }

    /// Plugs a device in.
    pub fn device_add(&mut self, arguments: Value) -> Result<()> {
        self.execute(&DeviceAdd(arguments)).map(drop)
    }
}
