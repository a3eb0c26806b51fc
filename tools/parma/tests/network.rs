//! The network that a policy lets containers have: what they see of it, and what a host cannot do with it (B11).

mod support;

use parma::pod::network_request;
use parma_guest::wire::{
    self, Address, Denied, ExitStatus, Field, List, Network as SetUp, Point, Prefix, Reason, Request, Route,
    Rule, Stdio, Step, Stream,
};
use parma_policy::generate::GenerateOptions;
use parma_vmm::Network;
use std::net::IpAddr;
use support::{OUTPUT, fetch, forwarding, id, list, read_all, read_until, stage};

fn address(text: &str) -> Address {
    match text.parse().unwrap() {
        IpAddr::V4(address) => Address::v4(address.octets()),
        IpAddr::V6(address) => Address(address.octets()),
    }
}

fn networked() -> GenerateOptions {
    GenerateOptions { network: true, ..GenerateOptions::default() }
}

#[test]
fn a_server_in_a_container_is_reached_through_a_forwarded_port() {
    let Some(stage) = stage() else { return };
    let command = ["nginx", "-e", "stderr", "-g", "daemon off;"];
    let workload = stage.workload("nginx", &command, networked());
    let (network, address) = forwarding(8080);
    let guest = stage.start_with_network(&workload, network.clone());
    guest.done(Request::SetUpNetwork(network_request(&network)));
    let server = guest.run(&workload, &id('1'), OUTPUT);
    let mut log = guest.attach(server, Stream::Stdout);
    let page = fetch(address);
    assert!(page.contains("200 OK") && page.contains("It works."), "{page}");
    assert!(read_until(&mut log, "\n").starts_with("10.0.2.2 "), "the server sees where it came from");
}

/// What a container sees of its network.
const LOOK: &str = "busybox ip -o addr; busybox ip route; cat /etc/resolv.conf /etc/hosts; hostname; \
    for of in all eth0; do for name in accept_redirects secure_redirects send_redirects accept_source_route; do \
    echo $name $(cat /proc/sys/net/ipv4/conf/$of/$name); done; done; \
    for name in accept_ra autoconf accept_redirects disable_ipv6; do \
    echo 6 $name $(cat /proc/sys/net/ipv6/conf/eth0/$name); done; cat /proc/sys/net/ipv4/conf/all/rp_filter; \
    busybox ip link set eth0 down 2>&1; echo x >/proc/sys/net/ipv4/ip_forward";

#[test]
fn b11_a_container_has_the_network_that_was_decided_on_and_cannot_change_it() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["sh", "-c", LOOK], networked());
    let guest = stage.start_with_network(&workload, Network { outbound: true, forwards: Vec::new() });
    let mut set_up = network_request(&Network { outbound: true, forwards: Vec::new() });
    set_up.search.push("example.com").unwrap();
    set_up.search.push("svc").unwrap();
    guest.done(Request::SetUpNetwork(set_up.clone()));
    let process = guest.run(&workload, &id('1'), OUTPUT);
    let (seen, _) = guest.finish(process);
    for expected in [
        "inet 127.0.0.1/8",
        "inet 10.0.2.15/24",
        "default via 10.0.2.2 dev eth0",
        "nameserver 10.0.2.3\nsearch example.com svc\n",
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.2.15\t111111111111\n",
        "6 accept_ra 0\n6 autoconf 0\n6 accept_redirects 0\n6 disable_ipv6 1\n1\n",
        "Operation not permitted",
        "Read-only file system",
    ] {
        assert!(seen.contains(expected), "{expected:?} in\n{seen}");
    }
    for name in ["accept_redirects", "secure_redirects", "send_redirects", "accept_source_route"] {
        assert_eq!(seen.matches(&format!("\n{name} 0\n")).count(), 2, "{name}: {seen}");
    }
    assert!(!seen.contains("inet6 fe80"), "{seen}");
    // Once.
    assert_eq!(guest.refused(Request::SetUpNetwork(set_up)), Reason::InUse { field: Field::Network });
}

#[test]
fn b11_containers_that_were_given_no_network_have_loopback_alone() {
    let Some(stage) = stage() else { return };
    let workload =
        stage.workload("busybox", &["sh", "-c", "cat /proc/net/dev; ip route; sleep 600"], networked());
    let guest = stage.start_with_network(&workload, Network::default());
    guest.mount_layers(&workload);
    for container in ['1', '2'] {
        guest.mount_overlay(&workload, &id(container));
        let process = guest.create(&workload, &id(container), OUTPUT);
        let mut output = guest.attach(process, Stream::Stdout);
        let seen = read_until(&mut output, "lo:");
        assert!(!seen.contains("eth0"), "{seen}");
    }
}

#[test]
fn containers_share_the_network_whenever_they_were_created() {
    let Some(stage) = stage() else { return };
    let script = "readlink /proc/self/ns/net; read line; ip -o addr; wc -l </etc/resolv.conf";
    let workload = stage.workload("busybox", &["sh", "-c", script], networked());
    let guest = stage.start_with_network(&workload, Network::default());
    guest.mount_layers(&workload);
    let stdio = Stdio { stdin: true, ..OUTPUT };
    let mut namespaces = Vec::new();
    let mut containers = Vec::new();
    for container in ['1', '2'] {
        guest.mount_overlay(&workload, &id(container));
        let process = guest.create(&workload, &id(container), stdio);
        let mut output = guest.attach(process, Stream::Stdout);
        namespaces.push(read_until(&mut output, "\n"));
        containers.push((process, output));
        if container == '1' {
            guest.done(Request::SetUpNetwork(network_request(&Network::default())));
        }
    }
    assert_eq!(namespaces[0], namespaces[1]);
    for (process, output) in containers {
        drop(guest.attach(process, Stream::Stdin));
        let seen = read_all(output);
        assert!(seen.contains("inet 10.0.2.15/24"), "{seen}");
    }
}

#[test]
fn b11_addresses_routes_and_sizes_that_mislead_are_refused_before_anything_happens() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload("busybox", &["true"], networked());
    let guest = stage.start_with_network(&workload, Network::default());
    let prefix = |text: &str, length| Prefix { address: address(text), length };
    let honest = network_request(&Network { outbound: true, forwards: Vec::new() });
    let with = |edit: &dyn Fn(&mut SetUp<'static>)| {
        let mut set_up = honest.clone();
        edit(&mut set_up);
        match guest.refused(Request::SetUpNetwork(set_up)) {
            Reason::Invalid { field: Field::Network, rule, .. } => rule,
            other => panic!("{other:?}"),
        }
    };
    let one = |prefix| List::from_vec(vec![prefix]).unwrap();
    for (address, length) in
        [("127.0.0.1", 8), ("224.0.0.1", 24), ("0.0.0.0", 0), ("::1", 128), ("ff02::1", 64)]
    {
        assert_eq!(
            with(&|set_up| set_up.addresses = one(prefix(address, length))),
            Rule::Address,
            "{address}"
        );
    }
    let loopback = Route { destination: prefix("127.0.0.0", 8), gateway: address("10.0.2.2") };
    assert_eq!(with(&|set_up| set_up.routes = List::from_vec(vec![loopback]).unwrap()), Rule::Address);
    let far = Route { destination: prefix("0.0.0.0", 0), gateway: address("192.0.2.1") };
    assert_eq!(with(&|set_up| set_up.routes = List::from_vec(vec![far]).unwrap()), Rule::Address);
    let local = address("127.0.0.53");
    assert_eq!(with(&|set_up| set_up.name_servers = List::from_vec(vec![local]).unwrap()), Rule::Address);
    assert_eq!(with(&|set_up| set_up.search = list(["x\nnameserver 6.6.6.6"])), Rule::Domain);
    assert_eq!(with(&|set_up| set_up.mtu = 68), Rule::Range);
    // The twin, on the same machine.
    guest.done(Request::SetUpNetwork(honest.clone()));
}

#[test]
fn b11_a_policy_that_does_not_ask_for_a_network_has_none_and_a_machine_without_one_says_so() {
    let Some(stage) = stage() else { return };
    let set_up = network_request(&Network::default());
    let workload = stage.workload("busybox", &["true"], GenerateOptions::default());
    let guest = stage.start_with_network(&workload, Network::default());
    let reason = guest.refused(Request::SetUpNetwork(set_up.clone()));
    assert!(
        matches!(reason, Reason::Denied { point: Point::HostNetwork, how: Denied::No, .. }),
        "{reason:?}"
    );
    drop(guest);
    let workload = stage.workload("busybox", &["true"], networked());
    let guest = stage.start(&workload);
    for _ in 0..2 {
        let reason = guest.refused(Request::SetUpNetwork(set_up.clone()));
        assert_eq!(reason, Reason::Failed { step: Step::FindInterface, errno: 19 });
    }
    let process = guest.run(&workload, &id('1'), OUTPUT);
    assert_eq!(guest.wait(process), ExitStatus::Code(0));
}

/// A policy can look at what the host asks for.
#[test]
fn b11_a_policy_can_say_which_addresses_and_name_servers_it_takes() {
    let Some(stage) = stage() else { return };
    let workload = stage.workload_with("busybox", &["true"], networked(), |policy| {
        policy.replace(
            "host_network := data.framework.host_network\n",
            "default host_network := {\"allowed\": false}\n\
             host_network := {\"allowed\": true} if {\n\
             \tinput.addresses == [\"10.0.2.15/24\"]\n\
             \tinput.routes == [\"0.0.0.0/0 via 10.0.2.2\"]\n\
             \tinput.nameServers == [\"10.0.2.3\"]\n\tinput.search == []\n\tinput.mtu == 1500\n}\n",
        )
    });
    let guest = stage.start_with_network(&workload, Network::default());
    let honest = network_request(&Network { outbound: true, forwards: Vec::new() });
    let other = wire::Network { name_servers: List::new(), ..honest.clone() };
    assert!(matches!(guest.refused(Request::SetUpNetwork(other)), Reason::Denied { how: Denied::No, .. }));
    guest.done(Request::SetUpNetwork(honest));
}
