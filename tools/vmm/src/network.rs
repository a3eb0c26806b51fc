//! The guest's network: QEMU's own (`-netdev user`), or a tap device that somebody made.
//!
//! In its own, which needs no rights on the host, QEMU makes and ends every connection itself. The guest sees one neighbour;
//! connections to forwarded ports come from it.

use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// The guest's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Bits of the address that are the network's.
pub const PREFIX: u8 = 24;
/// The neighbour: the way to everywhere, where there is one.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server, where there is a way to one.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The interface's hardware address.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Longest packet, in bytes.
pub const MTU: u16 = 1500;
/// Most forwarded ports.
pub const MAX_FORWARDS: usize = 32;

/// A network interface for the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Whether the guest can open connections to the world, and to the host.
    pub outbound: bool,
    /// Ports of the host that lead to ports of the guest.
    pub forwards: Vec<Forward>,
}

/// A port of the host that leads to one of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The host's address on which it is; by default the one that only the host itself can reach.
    pub address: IpAddr,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// Whether it is for datagrams.
    pub udp: bool,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    /// Reads `[ADDRESS:]HOST:GUEST[/tcp|/udp]`; an IPv6 address stands in brackets.
    fn from_str(text: &str) -> Result<Self> {
        let (ports, udp) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.strip_suffix("/tcp").unwrap_or(text), false),
            Some((ports, "udp")) => (ports, true),
            Some((_, other)) => bail!("{other:?} is no protocol: tcp or udp"),
        };
        let form = || format!("{text:?}: write [ADDRESS:]HOST:GUEST[/udp], for example 8080:80");
        let (rest, guest) = ports.rsplit_once(':').with_context(form)?;
        let (address, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((address, host)) => {
                let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
                (bare.unwrap_or(address).parse().with_context(form)?, host)
            }
        };
        let port = |text: &str| -> Result<u16> {
            let port = text.parse().with_context(form)?;
            ensure!(port != 0, "{}", form());
            Ok(port)
        };
        Ok(Self { address, host: port(host)?, guest: port(guest)?, udp })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = match self.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let udp = if self.udp { "/udp" } else { "" };
        write!(f, "{address}:{}:{}{udp}", self.host, self.guest)
    }
}

impl Network {
    /// QEMU's arguments.
    ///
    /// # Errors
    /// More ports than QEMU is to open, or one twice.
    pub fn arguments(&self) -> Result<Vec<OsString>> {
        ensure!(self.forwards.len() <= MAX_FORWARDS, "more than {MAX_FORWARDS} forwarded ports");
        let restrict = if self.outbound { "off" } else { "on" };
        let mut user = format!("user,id=network,ipv6=off,restrict={restrict},net=10.0.2.0/{PREFIX}");
        for (at, forward) in self.forwards.iter().enumerate() {
            let same = |other: &&Forward| (other.host, other.udp) == (forward.host, forward.udp);
            ensure!(
                !self.forwards.iter().take(at).any(|other| same(&other)),
                "port {} of the host is forwarded twice",
                forward.host
            );
            let IpAddr::V4(address) = forward.address else {
                bail!("{forward}: QEMU forwards from IPv4 addresses only");
            };
            let kind = if forward.udp { "udp" } else { "tcp" };
            user += &format!(",hostfwd={kind}:{address}:{}-{ADDRESS}:{}", forward.host, forward.guest);
        }
        Ok(["-netdev", &user, "-device", &device(MAC)].map(OsString::from).into())
    }
}

/// A tap device in a network namespace, as the guest's interface. QEMU runs in that namespace, so it has no other network
/// than the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// A file of the namespace, as in `/proc/PID/ns/net`.
    pub namespace: PathBuf,
    /// The device, of at most 15 letters, digits, `-`, `.` and `_`.
    pub name: String,
    /// The hardware address of the guest's end.
    pub mac: [u8; 6],
}

impl Tap {
    /// QEMU's arguments; as [`Network::arguments`].
    ///
    /// # Errors
    /// The name is none of a device.
    pub fn arguments(&self) -> Result<Vec<OsString>> {
        // Of these letters none means something to QEMU.
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        ensure!(
            (1..=15).contains(&self.name.len()) && self.name.bytes().all(is_letter),
            "{:?} is no name of a network device",
            self.name
        );
        let netdev = format!("tap,id=network,ifname={},script=no,downscript=no", self.name);
        Ok(["-netdev".into(), netdev.into(), "-device".into(), device(self.mac).into()].into())
    }
}

/// What runs `program` in a network namespace. nsenter(1) becomes the program: the process is the same.
#[must_use]
pub fn in_namespace(namespace: &Path, program: &str) -> Command {
    let mut net = OsString::from("--net=");
    net.push(namespace);
    let mut command = Command::new("nsenter");
    command.arg(net).args(["--", program]);
    command
}

/// The device, beside the vsock device.
fn device(mac: [u8; 6]) -> String {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    format!("virtio-net-pci,netdev=network,disable-legacy=on,addr=1.1,romfile=,mac={mac}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwarded_ports_are_written_as_people_write_them() {
        for (text, whole) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("0.0.0.0:53:53/udp", "0.0.0.0:53:53/udp"),
            ("8080:80/tcp", "127.0.0.1:8080:80"),
            ("[::1]:1:2", "[::1]:1:2"),
        ] {
            let forward: Forward = text.parse().unwrap();
            assert_eq!(forward.to_string(), whole);
            assert_eq!(whole.parse::<Forward>().unwrap(), forward);
        }
        for text in
            ["", "80", "0:80", "80:0", "80:65536", "a:80", "1.2.3:1:2", "80:80/sctp", "80:80,id=x", ":80"]
        {
            assert!(text.parse::<Forward>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_network_is_closed_unless_it_is_opened() {
        let line = |network: &Network| format!("{:?}", network.arguments().unwrap());
        assert!(line(&Network::default()).contains("restrict=on"));
        let open = Network { outbound: true, forwards: vec!["8080:80".parse().unwrap()] };
        assert!(line(&open).contains("restrict=off"));
        assert!(line(&open).contains("hostfwd=tcp:127.0.0.1:8080-10.0.2.15:80"));
        let twice = Network { forwards: vec![open.forwards[0]; 2], ..open };
        assert!(twice.arguments().is_err());
    }

    #[test]
    fn a_taps_name_is_nothing_but_a_name_to_qemu() {
        let tap = |name: &str| Tap { namespace: "/n".into(), name: name.into(), mac: [2, 0, 0, 0, 0, 0xab] };
        let line = format!("{:?}", tap("parma0").arguments().unwrap());
        assert!(
            line.contains("ifname=parma0,script=no,") && line.contains("mac=02:00:00:00:00:ab"),
            "{line}"
        );
        for name in ["", "a,script=/bin/sh", "a b", "sixteen-letters-", "a\0"] {
            assert!(tap(name).arguments().is_err(), "{name:?}");
        }
    }
}
