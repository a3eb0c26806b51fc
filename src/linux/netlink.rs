//! Network interfaces, addresses and routes (rtnetlink(7)).
//!
//! One question at a time, and the kernel's answer to it. A message is a header of 16 bytes, a structure, and attributes,
//! each at a multiple of four bytes; numbers are in the machine's order.

use super::Errno;
use crate::wire::{Address, Prefix, Route};
use heapless::Vec;
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE_EXCLUSIVELY: u16 = 0x600;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const IFF_UP: u32 = 1;
/// The address is used at once, not after asking whether somebody else has it: a host could say yes for ever.
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

const INET: u8 = 2;
const INET6: u8 = 10;

const HEADER: usize = 16;
/// Room for every message that is sent: a header, at most 16 bytes of structure and three attributes of at most 20.
const MESSAGE: usize = 128;

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// A connection to the kernel about one network namespace: the one in which it was made, for as long as it lives.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// About the calling thread's own namespace. (`NETLINK_ROUTE` is 0, the default.)
    pub fn new() -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        // SECURITY: answers are taken from the kernel only.
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// The index of the interface with this name, which ends with a NUL.
    pub fn index(&self, name: &[u8]) -> Result<u32, Errno> {
        self.ask(RTM_GETLINK, REQUEST, &link(0, 0), &[(IFLA_IFNAME, name)])
    }

    /// Moves an interface to another network namespace. It loses its addresses.
    pub fn move_to(&self, index: u32, namespace: BorrowedFd<'_>) -> Result<(), Errno> {
        let fd = namespace.as_raw_fd().to_ne_bytes();
        self.change(RTM_SETLINK, 0, &link(index, 0), &[(IFLA_NET_NS_FD, &fd)])
    }

    /// Lets an interface carry packets of at most so many bytes.
    pub fn up(&self, index: u32, mtu: u16) -> Result<(), Errno> {
        self.change(RTM_SETLINK, 0, &link(index, IFF_UP), &[(IFLA_MTU, &u32::from(mtu).to_ne_bytes())])
    }

    /// Gives an interface an address.
    pub fn add_address(&self, index: u32, prefix: &Prefix) -> Result<(), Errno> {
        let (family, octets) = octets(&prefix.address);
        let [a, b, c, d] = index.to_ne_bytes();
        let structure = [family, prefix.length, IFA_F_NODAD, 0, a, b, c, d];
        self.change(
            RTM_NEWADDR,
            CREATE_EXCLUSIVELY,
            &structure,
            &[(IFA_LOCAL, octets), (IFA_ADDRESS, octets)],
        )
    }

    /// Adds a route through an interface.
    pub fn add_route(&self, index: u32, Route { destination, gateway }: &Route) -> Result<(), Errno> {
        let ((family, octets), (_, gateway)) = (octets(&destination.address), self::octets(gateway));
        let structure =
            [family, destination.length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
        let attributes: [(u16, &[u8]); 3] =
            [(RTA_DST, octets), (RTA_GATEWAY, gateway), (RTA_OIF, &index.to_ne_bytes())];
        self.change(RTM_NEWROUTE, CREATE_EXCLUSIVELY, &structure, &attributes)
    }

    fn change(
        &self,
        kind: u16,
        flags: u16,
        structure: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> Result<(), Errno> {
        self.ask(kind, REQUEST | ACKNOWLEDGE | flags, structure, attributes).map(drop)
    }

    /// Sends a message. Gives the index in the answer, where that is an interface.
    fn ask(
        &self,
        kind: u16,
        flags: u16,
        structure: &[u8],
        attributes: &[(u16, &[u8])],
    ) -> Result<u32, Errno> {
        let message = message(kind, flags, structure, attributes).ok_or(Errno::MSGSIZE)?;
        send(&self.0, &message, SendFlags::empty())?;
        // Of an interface, the first bytes say enough.
        let mut answer = [0; HEADER + 8];
        loop {
            match recv(&self.0, &mut answer, RecvFlags::empty()) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let [_, _, _, _, low, high, ..] = answer;
        let [.., e0, e1, e2, e3, i0, i1, i2, i3] = answer;
        match u16::from_ne_bytes([low, high]) {
            NLMSG_ERROR => match i32::from_ne_bytes([e0, e1, e2, e3]) {
                0 => Ok(0),
                errno => Err(Errno::from_raw_os_error(errno.wrapping_neg())),
            },
            RTM_NEWLINK => Ok(u32::from_ne_bytes([i0, i1, i2, i3])),
            _ => Err(Errno::PROTO),
        }
    }
}

/// Brings `lo` of the calling thread's network namespace up.
pub fn loopback_up() -> Result<(), Errno> {
    Netlink::new()?.change(RTM_SETLINK, 0, &link(LOOPBACK, IFF_UP), &[])
}

/// `struct ifinfomsg`: of the flags, those given are to be set and the others stay.
fn link(index: u32, flags: u32) -> [u8; 16] {
    let [[a, b, c, d], [e, f, g, h]] = [index, flags].map(u32::to_ne_bytes);
    [0, 0, 0, 0, a, b, c, d, e, f, g, h, e, f, g, h]
}

/// An address's family and bytes.
fn octets(address: &Address) -> (u8, &[u8]) {
    match address.to_v4() {
        Some(_) => (INET, &address.0[12..]),
        None => (INET6, &address.0),
    }
}

/// A message, or `None` if it is longer than any that is sent here.
fn message(kind: u16, flags: u16, structure: &[u8], attributes: &[(u16, &[u8])]) -> Option<Vec<u8, MESSAGE>> {
    let mut message = Vec::new();
    message.resize(HEADER, 0).ok()?;
    message.extend_from_slice(structure).ok()?;
    for (kind, value) in attributes {
        let length = u16::try_from(4 + value.len()).ok()?;
        message.extend_from_slice(&length.to_ne_bytes()).ok()?;
        message.extend_from_slice(&kind.to_ne_bytes()).ok()?;
        message.extend_from_slice(value).ok()?;
        message.resize(message.len().next_multiple_of(4), 0).ok()?;
    }
    let length = u32::try_from(message.len()).ok()?;
    message.get_mut(..4)?.copy_from_slice(&length.to_ne_bytes());
    message.get_mut(4..6)?.copy_from_slice(&kind.to_ne_bytes());
    message.get_mut(6..8)?.copy_from_slice(&flags.to_ne_bytes());
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::process::{NewNamespaces, unshare};
    use std::{fs, println, thread};

    #[test]
    fn every_message_has_room() {
        let octets = [0; 16];
        let longest: [(u16, &[u8]); 3] = [(1, &octets), (2, &octets), (3, &octets[..4])];
        assert!(message(RTM_NEWROUTE, 0, &[0; 16], &longest).is_some());
        assert!(message(RTM_NEWROUTE, 0, &[0; 16], &[(1, &[0; 128])]).is_none());
    }

    #[test]
    fn addresses_and_routes_are_what_the_kernel_then_says() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: it needs root");
            return;
        }
        // A network namespace is a thread's.
        thread::spawn(|| {
            unshare(NewNamespaces::POD).unwrap();
            let netlink = Netlink::new().unwrap();
            assert_eq!(netlink.index(b"lo\0"), Ok(LOOPBACK));
            assert_eq!(netlink.index(b"eth0\0"), Err(Errno::NODEV));
            let address = Prefix { address: Address::v4([192, 0, 2, 1]), length: 24 };
            let destination = Prefix { address: Address::v4([198, 51, 100, 0]), length: 24 };
            let route = Route { destination, gateway: Address::v4([192, 0, 2, 9]) };
            assert!(netlink.add_route(LOOPBACK, &route).is_err(), "its gateway is nobody's neighbour");
            netlink.up(LOOPBACK, 4000).unwrap();
            netlink.add_address(LOOPBACK, &address).unwrap();
            assert_eq!(netlink.add_address(LOOPBACK, &address), Err(Errno::EXIST));
            netlink.add_route(LOOPBACK, &route).unwrap();
            let read = |name: &str| fs::read_to_string(std::format!("/proc/thread-self/net/{name}")).unwrap();
            assert!(read("fib_trie").contains("192.0.2.1"));
            // Destination and gateway, as numbers in the network's order.
            assert!(read("route").contains("lo\t006433C6\t090200C0"), "{}", read("route"));
        })
        .join()
        .unwrap();
    }
}
