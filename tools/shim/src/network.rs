//! A pod's network: what CNI made in the pod's network namespace becomes the guest's interface.
//!
//! CNI leaves an interface there, one end of a veth pair say, with addresses and routes. Beside it this module makes a tap
//! device, whose other side is QEMU's device with the interface's own hardware address, and has the kernel hand each
//! frame that comes in on one of the two out on the other (tc-mirred(8)). The namespace's kernel sees none of them, so the
//! guest is the only one there with these addresses. Addresses, routes and name servers go to the guest as typed values,
//! which it checks again, and on which its policy decides.
//!
//! `ip`, `tc` (iproute2) and `nsenter` (util-linux) do the work. Their output and `resolv.conf` are the node's, not the guest's.

use anyhow::{Context as _, Result, bail, ensure};
use parma_guest::wire::{self, Address, List, Prefix, Route};
use parma_vmm::Tap;
use parma_vmm::network::in_namespace;
use serde::Deserialize;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

/// The tap device's name.
const TAP: &str = "parma0";
/// Longest `resolv.conf`, in bytes.
const MAX_RESOLV_CONF: u64 = 64 << 10;
/// Name servers that a resolver asks (resolv.conf(5)); it reads no further ones either.
const NAME_SERVERS: usize = wire::MAX_NAME_SERVERS;

/// The network that a pod's guest gets. Dropping it unties the interface.
pub struct Network {
    /// What QEMU is given.
    pub tap: Tap,
    interface: String,
    facts: Facts,
    resolver: Resolver,
}

/// What the namespace's kernel says of its one interface.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    interface: String,
    mac: [u8; 6],
    mtu: u16,
    addresses: Vec<Prefix>,
    routes: Vec<Route>,
}

/// What `resolv.conf` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resolver {
    name_servers: Vec<Address>,
    search: Vec<String>,
}

impl Network {
    /// Ties the interface of this namespace to a new tap device; `None`: there is nothing but the loopback interface.
    ///
    /// # Errors
    /// There is more than one interface, something that the guest cannot have, or a program or the kernel lacks a part.
    pub fn tie(namespace: &Path, resolv_conf: Option<&Path>) -> Result<Option<Self>> {
        let inside = Namespace(namespace);
        let Some(facts) = inside.facts()? else { return Ok(None) };
        let resolver = resolv_conf.map(Resolver::read).transpose()?.unwrap_or_default();
        let tap = Tap { namespace: namespace.to_owned(), name: TAP.to_owned(), mac: facts.mac };
        inside.run(&format!("ip tuntap add dev {TAP} mode tap"))?;
        // From here on dropping it unties what was tied.
        let network = Self { tap, interface: facts.interface.clone(), facts, resolver };
        let (mtu, interface) = (network.facts.mtu, &network.interface);
        // Without an address of the kernel's own, which would greet the guest from it.
        inside.run(&format!("ip link set dev {TAP} mtu {mtu} addrgenmode none up"))?;
        for (from, to) in [(interface.as_str(), TAP), (TAP, interface)] {
            inside.run(&format!("tc qdisc add dev {from} ingress"))?;
            inside.run(&format!(
                "tc filter add dev {from} parent ffff: protocol all u32 match u8 0 0 action mirred egress redirect dev {to}"
            ))?;
        }
        Ok(Some(network))
    }

    /// What the guest is told.
    ///
    /// # Errors
    /// There is more of something than it takes.
    pub fn request(&self) -> Result<wire::Network<'_>> {
        Ok(wire::Network {
            addresses: List::from_vec(self.facts.addresses.clone())
                .with_context(|| format!("more than {} addresses", wire::MAX_ADDRESSES))?,
            routes: List::from_vec(self.facts.routes.clone())
                .with_context(|| format!("more than {} routes", wire::MAX_ROUTES))?,
            name_servers: List::from_vec(self.resolver.name_servers.clone())
                .with_context(|| format!("more than {NAME_SERVERS} name servers"))?,
            search: List::from_vec(self.resolver.search.iter().map(String::as_str).collect())
                .with_context(|| format!("more than {} search domains", wire::MAX_SEARCH))?,
            mtu: self.facts.mtu,
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Both fail where the namespace is gone, and all with it.
        let inside = Namespace(&self.tap.namespace);
        let _ = inside.run(&format!("tc qdisc del dev {} ingress", self.interface));
        let _ = inside.run(&format!("ip link del dev {TAP}"));
    }
}

/// An interface, as `ip -json address` shows it.
#[derive(Deserialize)]
struct Link {
    ifname: String,
    link_type: String,
    mtu: u32,
    #[serde(default)]
    address: String,
    #[serde(default)]
    addr_info: Vec<Assigned>,
}

#[derive(Deserialize)]
struct Assigned {
    local: IpAddr,
    prefixlen: u8,
    scope: String,
}

/// A route, as `ip -json route` shows it.
#[derive(Deserialize)]
struct Entry {
    dst: String,
    gateway: Option<IpAddr>,
    dev: Option<String>,
}

struct Namespace<'a>(&'a Path);

impl Namespace<'_> {
    /// Runs a program of these words, none of which has a space in it, in the namespace.
    fn run(&self, words: &str) -> Result<Vec<u8>> {
        let (program, arguments) = words.split_once(' ').unwrap_or((words, ""));
        let output = in_namespace(self.0, program)
            .args(arguments.split(' '))
            .output()
            .context("cannot run nsenter: install util-linux")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{words}: {} (it needs iproute2, and a kernel with tun, cls_u32 and act_mirred)",
            said.trim()
        );
        Ok(output.stdout)
    }

    fn facts(&self) -> Result<Option<Facts>> {
        let links = self.run("ip -json address show")?;
        let routes = [self.run("ip -json -4 route show")?, self.run("ip -json -6 route show")?];
        Facts::read(&links, &routes).with_context(|| format!("the pod's network in {}", self.0.display()))
    }
}

impl Facts {
    fn read(links: &[u8], routes: &[Vec<u8>]) -> Result<Option<Self>> {
        let links: Vec<Link> = serde_json::from_slice(links).context("ip address")?;
        let global = |assigned: &&Assigned| assigned.scope == "global";
        // What a kernel puts into each namespace by itself (loopback, idle tunnels) has no such address.
        let mut with_address = links.into_iter().filter(|link| link.addr_info.iter().any(|a| global(&a)));
        let Some(link) = with_address.next() else { return Ok(None) };
        if let Some(other) = with_address.next() {
            bail!(
                "{} and {}: a guest has one interface: attach the pod to one network",
                link.ifname,
                other.ifname
            );
        }
        ensure!(link.link_type == "ether", "{}: {} is no Ethernet interface", link.ifname, link.link_type);
        let mac = mac(&link.address).with_context(|| format!("{}: no hardware address", link.ifname))?;
        let mtu =
            u16::try_from(link.mtu).with_context(|| format!("{}: an MTU of {}", link.ifname, link.mtu))?;
        let assigned = link.addr_info.iter().filter(global);
        let addresses: Vec<_> =
            assigned.map(|a| Prefix { address: address(a.local), length: a.prefixlen }).collect();
        let mut found = Vec::new();
        for routes in routes {
            for entry in serde_json::from_slice::<Vec<Entry>>(routes).context("ip route")? {
                found.extend(entry.route(&link.ifname, &addresses)?);
            }
        }
        Ok(Some(Self { interface: link.ifname, mac, mtu, addresses, routes: found }))
    }
}

impl Entry {
    /// The route, where it is one that the guest has to be told: it knows itself of its neighbours.
    fn route(&self, interface: &str, addresses: &[Prefix]) -> Result<Option<Route>> {
        let dev = self.dev.as_deref().unwrap_or_default();
        let what = || format!("route to {} by {dev}", self.dst);
        let cannot = "the guest's one interface cannot have it: use a CNI plugin whose pods have a gateway in their own network, as bridge has";
        let Some(gateway) = self.gateway else {
            let link_local = self.dst.starts_with("fe80:") || self.dst.starts_with("ff00:");
            let known = link_local || destination(&self.dst, false).is_some_and(|d| is_within(d, addresses));
            ensure!(known, "{}, without a gateway: {cannot}", what());
            return Ok(None);
        };
        let destination = destination(&self.dst, gateway.is_ipv6()).with_context(what)?;
        let gateway = address(gateway);
        let neighbour = is_within(Prefix { address: gateway, length: host_bits(gateway) }, addresses);
        let own = is_within(destination, addresses);
        ensure!(dev == interface && neighbour && !own, "{}, via {gateway}: {cannot}", what());
        Ok(Some(Route { destination, gateway }))
    }
}

impl Resolver {
    fn read(path: &Path) -> Result<Self> {
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_RESOLV_CONF).read_to_string(&mut text));
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let named = words.next().unwrap_or_default();
                    let named = named.parse().with_context(|| format!("name server {named:?}"))?;
                    resolver.name_servers.push(address(named));
                }
                // The last one counts.
                Some("search" | "domain") => resolver.search = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        resolver.name_servers.truncate(NAME_SERVERS);
        Ok(resolver)
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn address(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(address) => Address::v4(address.octets()),
        IpAddr::V6(address) => Address(address.octets()),
    }
}

fn host_bits(address: Address) -> u8 {
    if address.to_v4().is_some() { 32 } else { 128 }
}

/// What `ip` calls `default`, `10.1.0.0/16` or `10.1.2.3`.
fn destination(text: &str, ipv6: bool) -> Option<Prefix> {
    if text == "default" {
        let any = if ipv6 { Address([0; 16]) } else { Address::v4([0; 4]) };
        return Some(Prefix { address: any, length: 0 });
    }
    let (of, length) = text.split_once('/').map_or((text, None), |(of, length)| (of, Some(length)));
    let of = address(of.parse().ok()?);
    let length = length.map_or(Some(host_bits(of)), |length| length.parse().ok())?;
    (length <= host_bits(of)).then_some(Prefix { address: of, length })
}

/// Whether all of `inner` is in one of these networks.
fn is_within(inner: Prefix, networks: &[Prefix]) -> bool {
    networks.iter().any(|network| {
        let shift = u32::from(host_bits(network.address).saturating_sub(network.length));
        let bits = |prefix: &Prefix| u128::from_be_bytes(prefix.address.0).checked_shr(shift);
        host_bits(inner.address) == host_bits(network.address)
            && inner.length >= network.length
            && bits(&inner) == bits(network)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(edit: &str) -> String {
        format!(
            r#"[{{"ifname":"lo","link_type":"loopback","mtu":65536,"address":"00:00:00:00:00:00",
                "addr_info":[{{"local":"127.0.0.1","prefixlen":8,"scope":"host"}}]}},
               {{"ifname":"tunl0","link_type":"ipip","mtu":1480,"address":"0.0.0.0","addr_info":[]}},
               {{"ifname":"eth0","link_type":"ether","mtu":1450,"address":"02:00:00:00:00:ab","addr_info":[
                {{"local":"10.1.2.3","prefixlen":24,"scope":"global"}},
                {{"local":"fd00::3","prefixlen":64,"scope":"global"}},
                {{"local":"fe80::1","prefixlen":64,"scope":"link"}}]}}{edit}]"#
        )
    }

    fn read(links: &str, v4: &str, v6: &str) -> Result<Option<Facts>> {
        Facts::read(links.as_bytes(), &[v4.as_bytes().to_vec(), v6.as_bytes().to_vec()])
    }

    #[test]
    fn the_guest_gets_the_one_interface_as_cni_left_it() {
        let v4 = r#"[{"dst":"default","gateway":"10.1.2.1","dev":"eth0"},
            {"dst":"10.1.2.0/24","dev":"eth0","scope":"link"},{"dst":"10.96.0.0/12","gateway":"10.1.2.1","dev":"eth0"}]"#;
        let v6 = r#"[{"dst":"fe80::/64","dev":"eth0"},{"dst":"default","gateway":"fd00::1","dev":"eth0"}]"#;
        let facts = read(&links(""), v4, v6).unwrap().unwrap();
        assert_eq!((facts.interface.as_str(), facts.mtu, facts.mac), ("eth0", 1450, [2, 0, 0, 0, 0, 0xab]));
        let text = |shown: &[String]| shown.join(", ");
        let addresses: Vec<_> = facts.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(text(&addresses), "10.1.2.3/24, fd00:0:0:0:0:0:0:3/64");
        let routes: Vec<_> = facts.routes.iter().map(ToString::to_string).collect();
        assert_eq!(
            text(&routes),
            "0.0.0.0/0 via 10.1.2.1, 10.96.0.0/12 via 10.1.2.1, 0:0:0:0:0:0:0:0/0 via fd00:0:0:0:0:0:0:1"
        );
        // An empty namespace: the guest has its loopback interface alone.
        let empty = r#"[{"ifname":"lo","link_type":"loopback","mtu":65536,"addr_info":[]}]"#;
        assert_eq!(read(empty, "[]", "[]").unwrap(), None);
    }

    #[test]
    fn what_a_guest_cannot_have_is_refused_by_name() {
        let second = r#",{"ifname":"net1","link_type":"ether","mtu":1500,"address":"02:00:00:00:00:01",
            "addr_info":[{"local":"10.9.0.2","prefixlen":24,"scope":"global"}]}"#;
        let error = read(&links(second), "[]", "[]").unwrap_err().to_string();
        assert!(error.contains("eth0 and net1"), "{error}");
        for (route, named) in [
            // As calico and ptp have it.
            (r#"{"dst":"default","gateway":"169.254.1.1","dev":"eth0"}"#, "169.254.1.1"),
            (r#"{"dst":"169.254.1.1","dev":"eth0"}"#, "169.254.1.1"),
            (r#"{"dst":"10.1.2.0/24","gateway":"10.1.2.1","dev":"eth0"}"#, "10.1.2.0/24"),
            (r#"{"dst":"10.5.0.0/16","gateway":"10.1.2.1","dev":"net1"}"#, "net1"),
            (r#"{"dst":"10.5.0.0/33","gateway":"10.1.2.1","dev":"eth0"}"#, "10.5.0.0/33"),
            (r#"{"dst":"default","dev":"eth0"}"#, "default"),
        ] {
            let error = format!("{:#}", read(&links(""), &format!("[{route}]"), "[]").unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn names_are_resolved_as_resolv_conf_says() {
        let resolver =
            Resolver::parse("# x\nsearch a\nnameserver 10.96.0.10\nsearch ns.svc b\noptions ndots:5\n")
                .unwrap();
        assert_eq!(resolver.search, ["ns.svc", "b"]);
        assert_eq!(resolver.name_servers, [Address::v4([10, 96, 0, 10])]);
        let many = "nameserver 10.0.0.1\n".repeat(4);
        assert_eq!(Resolver::parse(&many).unwrap().name_servers.len(), 3);
        assert!(Resolver::parse("nameserver x").is_err());
    }
}
