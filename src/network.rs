//! The network of the containers.
//!
//! The init itself has none. Where the policy allows one, the machine's one interface is moved to the namespace that all
//! containers share and set up there from checked values. What the kernel would take
//! from the wire to change it (router advertisements, redirects, source routes) is turned off first (attack B11).

use crate::boot::set;
use crate::gate::action::{ActError, Permit, SetUpNetwork};
use crate::gate::network::Network;
use crate::linux::Errno;
use crate::linux::netlink::Netlink;
use crate::wire::{Address, Step};
use alloc::string::String;
use core::fmt::Write;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The name of the machine's first network interface.
const INTERFACE: &[u8] = b"eth0\0";

/// Settings that are 0, before the interface is up.
const SETTINGS: &[&str] = &[
    "/proc/sys/net/ipv4/conf/all/accept_redirects",
    "/proc/sys/net/ipv4/conf/eth0/accept_redirects",
    "/proc/sys/net/ipv4/conf/all/secure_redirects",
    "/proc/sys/net/ipv4/conf/eth0/secure_redirects",
    "/proc/sys/net/ipv4/conf/all/send_redirects",
    "/proc/sys/net/ipv4/conf/eth0/send_redirects",
    "/proc/sys/net/ipv4/conf/eth0/accept_source_route",
    "/proc/sys/net/ipv6/conf/eth0/accept_ra",
    "/proc/sys/net/ipv6/conf/eth0/autoconf",
    "/proc/sys/net/ipv6/conf/eth0/accept_redirects",
];
const REVERSE_PATH_FILTER: &str = "/proc/sys/net/ipv4/conf/all/rp_filter";
const WITHOUT_IPV6: &str = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";

/// Most bytes of resolv.conf: three servers and six domains.
const RESOLV_CONF: usize = 2048;

/// What the containers' files in `/etc` say about the network.
#[derive(Debug)]
pub struct Names {
    resolv_conf: String,
    address: Address,
}

impl Names {
    /// `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> &str {
        &self.resolv_conf
    }

    /// `/etc/hosts`, where the host has this name of at most 63 bytes.
    pub fn hosts(&self, hostname: &str) -> heapless::String<192> {
        let mut hosts = heapless::String::new();
        // 67 bytes, an address of 39, the name and two around it fit.
        let _ = write!(
            hosts,
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{}\t{hostname}\n",
            self.address
        );
        hosts
    }
}

fn failed(step: Step, errno: Errno, undone: bool) -> ActError {
    ActError { step, errno: u16::try_from(errno.raw_os_error()).unwrap_or(0), undone }
}

/// Moves the machine's interface into `namespace` and sets it up there. See
/// [`crate::gate::action::Actor::set_up_network`].
pub fn set_up(permit: Permit<SetUpNetwork<'_>>, namespace: BorrowedFd<'_>) -> Result<Names, ActError> {
    let SetUpNetwork { network } = permit.into_action();
    let prepare = || Ok((resolv_conf(&network)?, own_namespace()?, Netlink::new()?));
    let (resolv_conf, own, outside) = prepare().map_err(|errno: Errno| failed(Step::Network, errno, true))?;
    let address = network.addresses().first().ok_or(failed(Step::Network, Errno::INVAL, true))?.address;
    let index = outside.index(INTERFACE).map_err(|errno| failed(Step::FindInterface, errno, true))?;
    outside.move_to(index, namespace).map_err(|errno| failed(Step::Network, errno, true))?;
    // An interface that is not where it belongs is not one that the next attempt finds.
    enter(namespace).map_err(|errno| failed(Step::Network, errno, false))?;
    let configured = configure(&network, own.as_fd());
    // If there is no way back, the init is in the containers' network.
    let back = enter(own.as_fd());
    match (configured, back) {
        (Ok(()), Ok(())) => Ok(Names { resolv_conf, address }),
        (Ok(()), Err(errno)) => Err(failed(Step::Network, errno, false)),
        (Err((errno, undone)), back) => Err(failed(Step::Network, errno, undone && back.is_ok())),
    }
}

/// Sets up the interface in the namespace that the calling thread is in. After an error it is moved back, and the error says
/// whether that could be done.
fn configure(network: &Network<'_>, own: BorrowedFd<'_>) -> Result<(), (Errno, bool)> {
    let inside = Netlink::new().map_err(|errno| (errno, false))?;
    let index = inside.index(INTERFACE).map_err(|errno| (errno, false))?;
    let set_up = || {
        for setting in SETTINGS {
            set(setting, "0")?;
        }
        set(REVERSE_PATH_FILTER, "1")?;
        if network.addresses().iter().all(|prefix| prefix.address.to_v4().is_some()) {
            set(WITHOUT_IPV6, "1")?;
        }
        inside.up(index, network.mtu())?;
        network.addresses().iter().try_for_each(|prefix| inside.add_address(index, prefix))?;
        network.routes().iter().try_for_each(|route| inside.add_route(index, route))
    };
    set_up().map_err(|errno| (errno, inside.move_to(index, own).is_ok()))
}

fn enter(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

fn own_namespace() -> Result<OwnedFd, Errno> {
    openat(CWD, c"/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

fn resolv_conf(network: &Network<'_>) -> Result<String, Errno> {
    let mut text = String::new();
    text.try_reserve_exact(RESOLV_CONF).map_err(|_| Errno::NOMEM)?;
    for server in network.name_servers() {
        // A string with room takes everything.
        let _ = writeln!(text, "nameserver {server}");
    }
    for (at, domain) in network.search().iter().enumerate() {
        text.push_str(if at == 0 { "search " } else { " " });
        text.push_str(domain);
    }
    text.push('\n');
    Ok(text)
}
