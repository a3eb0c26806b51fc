//! What the set-up of the network must be before anything looks at it (attack B11).
//!
//! A host sees and makes every packet anyway, so nothing here makes the network trustworthy. It keeps the host from
//! redirecting what never was its own: loopback traffic, and addresses that belong to nobody.

use super::fields::{Invalid, invalid};
use crate::wire::{self, Address, Field, Prefix, Route, Rule};

/// Shortest of the longest packets: every IPv6 link must carry so many bytes (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;
/// The usual jumbo frame.
pub const MAX_MTU: u16 = 9000;
/// Longest domain in bytes (RFC 1035, section 2.3.4, without the root's dot).
const MAX_DOMAIN: usize = 253;
/// Longest label of a domain in bytes.
const MAX_LABEL: usize = 63;

/// A set-up of the network in which every address is one that a network interface can have, or can reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network<'a>(&'a wire::Network<'a>);

impl<'a> Network<'a> {
    /// This set-up.
    pub fn parse(network: &'a wire::Network<'_>) -> Result<Self, Invalid<'a>> {
        let wire::Network { addresses, routes, name_servers, search, mtu } = network;
        let wrong = |rule| invalid(Field::Network, rule, "");
        if !(MIN_MTU..=MAX_MTU).contains(mtu) {
            return wrong(Rule::Range);
        }
        if addresses.is_empty() {
            return wrong(Rule::NotEmpty);
        }
        for (at, prefix) in addresses.iter().enumerate() {
            if !is_host(prefix) {
                return wrong(Rule::Address);
            }
            if addresses.iter().take(at).any(|other| other.address == prefix.address) {
                return wrong(Rule::NoDuplicates);
            }
        }
        for Route { destination, gateway } in routes.iter() {
            let reachable = addresses.iter().any(|own| own.address != *gateway && within(own, *gateway));
            let kind = destination.address.to_v4().is_some() == gateway.to_v4().is_some();
            if !is_network(destination) || !is_unicast(*gateway) || !kind || !reachable {
                return wrong(Rule::Address);
            }
        }
        if !name_servers.iter().all(|&server| is_unicast(server)) {
            return wrong(Rule::Address);
        }
        match search.iter().find(|domain| !is_domain(domain)) {
            Some(domain) => invalid(Field::Network, Rule::Domain, domain),
            None => Ok(Self(network)),
        }
    }

    /// Addresses of the interface; at least one.
    pub fn addresses(&self) -> &'a [Prefix] {
        &self.0.addresses
    }

    /// Routes through it.
    pub fn routes(&self) -> &'a [Route] {
        &self.0.routes
    }

    /// Name servers.
    pub fn name_servers(&self) -> &'a [Address] {
        &self.0.name_servers
    }

    /// Domains in which names are looked up.
    pub fn search(&self) -> &'a [&'a str] {
        &self.0.search
    }

    /// Longest packet, in bytes.
    pub fn mtu(&self) -> u16 {
        self.0.mtu
    }
}

/// An address as one number.
fn number(Address(bytes): Address) -> u128 {
    u128::from_be_bytes(bytes)
}

/// How many of the sixteen bytes' bits are the network's: an IPv4 address begins with 96 that all of them have. `None` if
/// there are not so many.
fn network_bits(Prefix { address, length }: &Prefix) -> Option<u32> {
    let common = if address.to_v4().is_some() { 96 } else { 0 };
    Some(common + u32::from(*length)).filter(|bits| (common..=u128::BITS).contains(bits))
}

/// The bits behind the network's.
fn host_mask(network_bits: u32) -> u128 {
    u128::MAX.checked_shr(network_bits).unwrap_or(0)
}

/// SECURITY (B11): not loopback, not multicast, not "this network", not reserved.
fn is_unicast(address: Address) -> bool {
    match (address.to_v4(), address.0) {
        (Some([first, ..]), _) => matches!(first, 1..=126 | 128..=223),
        // Nothing in `::/80` is anybody's; in it are all IPv4 addresses in other clothes.
        (None, [first, ..]) => first != 0xff && number(address) >> 48 != 0,
    }
}

/// Whether an interface can have it: in an IPv4 network, neither its first nor its last address.
fn is_host(prefix: &Prefix) -> bool {
    let Some(bits) = network_bits(prefix) else { return false };
    let mask = host_mask(bits);
    let host = number(prefix.address) & mask;
    let special = prefix.address.to_v4().is_some() && bits < 127 && (host == 0 || host == mask);
    prefix.length > 0 && is_unicast(prefix.address) && !special
}

/// Whether it can be a route's destination: everything, or the first address of a network of others.
fn is_network(prefix: &Prefix) -> bool {
    let Some(bits) = network_bits(prefix) else { return false };
    let first = number(prefix.address) & host_mask(bits) == 0;
    let everything = prefix.length == 0;
    first && (everything || is_unicast(prefix.address))
}

fn within(network: &Prefix, address: Address) -> bool {
    let mask = network_bits(network).map_or(0, host_mask);
    network.address.to_v4().is_some() == address.to_v4().is_some()
        && (number(network.address) ^ number(address)) & !mask == 0
}

/// SECURITY (C13): nothing that ends a line or a word of resolv.conf.
fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && (1..=MAX_LABEL).contains(&label.len()) && !label.starts_with('-')
    };
    domain.len() <= MAX_DOMAIN && domain.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::List;
    use alloc::vec::Vec;
    use core::net::IpAddr;
    use std::string::{String, ToString};

    fn parsed(text: &str) -> Address {
        match text.parse().unwrap() {
            IpAddr::V4(address) => Address::v4(address.octets()),
            IpAddr::V6(address) => Address(address.octets()),
        }
    }

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix { address: parsed(address), length: length.parse().unwrap() }
    }

    fn rule(
        addresses: &[&str],
        routes: &[(&str, &str)],
        servers: &[&str],
        search: &[&str],
        mtu: u16,
    ) -> Option<Rule> {
        let addresses: Vec<_> = addresses.iter().map(|text| prefix(text)).collect();
        let route = |&(destination, gateway): &(&str, &str)| Route {
            destination: prefix(destination),
            gateway: parsed(gateway),
        };
        let network = wire::Network {
            addresses: List::from_vec(addresses).unwrap(),
            routes: List::from_vec(routes.iter().map(route).collect()).unwrap(),
            name_servers: List::from_vec(servers.iter().map(|text| parsed(text)).collect()).unwrap(),
            search: List::from_vec(search.to_vec()).unwrap(),
            mtu,
        };
        Network::parse(&network).err().map(|invalid| invalid.rule)
    }

    fn address(text: &str) -> Option<Rule> {
        rule(&[text], &[], &[], &[], 1500)
    }

    #[test]
    fn ordinary_networks_are_valid() {
        let addresses = ["10.0.2.15/24", "fd00::15/64", "192.0.2.1/32", "198.51.100.0/31"];
        let routes = [
            ("0.0.0.0/0", "10.0.2.2"),
            ("::/0", "fd00::2"),
            ("172.16.0.0/12", "10.0.2.3"),
            ("fd01::/32", "fd00::3"),
        ];
        assert_eq!(
            rule(&addresses, &routes, &["10.0.2.3", "2001:db8::1"], &["example.com", "svc"], 1500),
            None
        );
        assert_eq!(prefix("fd00::15/64").to_string(), "fd00:0:0:0:0:0:0:15/64");
        assert_eq!(prefix("10.0.2.15/24").to_string(), "10.0.2.15/24");
    }

    #[test]
    fn b11_no_loopback_multicast_or_reserved_address_is_set() {
        for text in [
            "127.0.0.1/8",
            "127.255.0.1/32",
            "0.0.0.0/8",
            "0.1.2.3/24",
            "224.0.0.1/24",
            "239.1.1.1/32",
            "240.0.0.1/8",
            "255.255.255.255/32",
            "::/64",
            "::1/128",
            "::7f00:1/96",
            "::ffff:127.0.0.1/96",
            "::ffff:10.0.0.1/96",
            "ff02::1/64",
            "10.0.0.1/0",
            "10.0.0.1/33",
            "fd00::1/129",
            "fd00::1/0",
            "10.0.2.0/24",
            "10.0.2.255/24",
        ] {
            assert_eq!(address(text), Some(Rule::Address), "{text}");
        }
        assert_eq!(rule(&["10.0.0.1/24", "10.0.0.1/16"], &[], &[], &[], 1500), Some(Rule::NoDuplicates));
        assert_eq!(rule(&[], &[], &[], &[], 1500), Some(Rule::NotEmpty));
    }

    #[test]
    fn b11_a_route_leads_to_a_network_by_way_of_a_neighbour() {
        let own = ["10.0.2.15/24", "fd00::15/64"];
        for route in [
            ("127.0.0.0/8", "10.0.2.2"),
            ("224.0.0.0/4", "10.0.2.2"),
            ("0.0.0.0/1", "10.0.2.2"),
            ("::1/128", "fd00::2"),
            ("::/1", "fd00::2"),
            ("ff00::/8", "fd00::2"),
            ("10.1.0.1/16", "10.0.2.2"),
            ("0.0.0.0/0", "10.0.3.2"),
            ("0.0.0.0/0", "127.0.0.1"),
            ("0.0.0.0/0", "10.0.2.15"),
            ("0.0.0.0/0", "fd00::2"),
            ("::/0", "10.0.2.2"),
            ("10.0.0.0/33", "10.0.2.2"),
        ] {
            assert_eq!(rule(&own, &[route], &[], &[], 1500), Some(Rule::Address), "{route:?}");
        }
    }

    #[test]
    fn b11_packets_have_a_sensible_longest_size() {
        for mtu in [0, 68, MIN_MTU - 1, MAX_MTU + 1, u16::MAX] {
            assert_eq!(rule(&["10.0.2.15/24"], &[], &[], &[], mtu), Some(Rule::Range), "{mtu}");
        }
    }

    #[test]
    fn c13_name_servers_are_addresses_and_domains_are_words() {
        for server in ["127.0.0.53", "::1", "255.255.255.255", "ff02::fb"] {
            assert_eq!(rule(&["10.0.2.15/24"], &[], &[server], &[], 1500), Some(Rule::Address), "{server}");
        }
        let long = ["a"; 127].join(".");
        let label = "a".repeat(64);
        for domain in
            ["", ".", "a..b", "a b", "a\nnameserver 6.6.6.6", "-a", "ü", "a.", "a\0", &(long + ".a"), &label]
        {
            let rule = rule(&["10.0.2.15/24"], &[], &[], &[domain], 1500);
            assert_eq!(rule, Some(Rule::Domain), "{:?}", String::from(domain));
        }
    }
}
