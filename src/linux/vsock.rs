//! vsock stream sockets (vsock(7)).
#![allow(unsafe_code)]

use super::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, connect, listen, socket_with, sockopt,
};

/// Context id of the host (`VMADDR_CID_HOST`).
pub const HOST: u32 = 2;
/// Any context id of this machine (`VMADDR_CID_ANY`).
const ANY: u32 = u32::MAX;
/// Connections the kernel keeps waiting before they are accepted.
const BACKLOG: i32 = 16;

/// Most bytes to hand to a vsock in one call. Linux makes one packet of them; where they and what belongs to a packet are more than
/// 32 KiB it spreads that over several buffers, and `vhost-device-vsock` drops such a packet.
pub const MAX_SEND: usize = 31 << 10;

/// `struct sockaddr_vm`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, zero: [0; 4] }
    }
}

// SAFETY: `with_sockaddr` passes the address and size of a whole `struct sockaddr_vm` that outlives the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const *self).cast(), size_of::<Self>() as SocketAddrLen)
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// A non-blocking socket that listens on `port`.
pub fn listener(port: u32) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    bind(&socket, &Address::new(ANY, port))?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next waiting connection, non-blocking, and the context id of its peer; `None` if there is none.
pub fn accept(listener: impl AsFd) -> Result<Option<(OwnedFd, u32)>, Errno> {
    let (connection, address) = match acceptfrom_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
    {
        Ok(accepted) => accepted,
        // The peer was gone before it was accepted, or nobody is there.
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::CONNRESET) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let address = address.ok_or(Errno::AFNOSUPPORT)?;
    if address.address_family() != AddressFamily::VSOCK
        || (address.addr_len() as usize) < size_of::<Address>()
    {
        return Err(Errno::AFNOSUPPORT);
    }
    // SAFETY: the kernel wrote at least size_of::<Address>() bytes there, checked above; any bytes are a valid Address.
    let peer = unsafe { address.as_ptr().cast::<Address>().read_unaligned() };
    Ok(Some((connection, peer.cid)))
}

/// A non-blocking connection to the host's `port`, or an error after `timeout`.
pub fn connect_to_host(port: u32, timeout: Timespec) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    match connect(&socket, &Address::new(HOST, port)) {
        Ok(()) => return Ok(socket),
        Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    wait(&socket, PollFlags::OUT, timeout)?;
    sockopt::socket_error(&socket)??;
    Ok(socket)
}

/// Waits until `fd` is ready for one of `flags` or has failed.
pub fn wait(fd: impl AsFd, flags: PollFlags, timeout: Timespec) -> Result<(), Errno> {
    loop {
        match poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)) {
            Ok(0) => return Err(Errno::TIMEDOUT),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
