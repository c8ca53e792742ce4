//! From what is wanted, what stands and what was seen: what has to be done, and what keeps the daemon from serving.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use crate::fabric::{Fabric, Names};
use crate::net::interface::{AddressState, Interface};

/// The smallest MTU of IPv6 (RFC 8200, section 5): below it Linux takes IPv6 off the interface.
const SMALLEST_MTU: u32 = 1280;

/// What the settings ask for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    /// The names; the NACK address is the one that was found at the start, whether or not it was named.
    pub names: Names,
    /// Id of the kernel program that is to be on the interfaces; `None` while there is to be none.
    pub program: Option<u32>,
    /// Groups to be joined on the ingress interface.
    pub groups: BTreeSet<Ipv6Addr>,
}

/// What the kernel shows.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Seen {
    /// All interfaces of the network namespace, in the kernel's order.
    pub interfaces: Vec<Interface>,
    /// Ids of XDP programs by the index of their interface.
    pub programs: BTreeMap<u32, u32>,
    /// Groups that the ingress interface has joined.
    pub joined: BTreeSet<Ipv6Addr>,
}

/// What has to be done.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Plan {
    /// What keeps the daemon from serving, each in one line.
    pub problems: Vec<String>,
    /// The fabric as it is now; `None` when it is not whole, and the kernel has to be kept from answering.
    pub fabric: Option<Fabric>,
    /// Index of the interface to join the groups on anew.
    pub rejoin: Option<u32>,
    /// Interfaces that the kernel program is missing on: name and index.
    pub attach: Vec<(String, u32)>,
}

/// What has to be done so that the daemon serves by `wanted`, when the sockets are joined on the interface of index
/// `joined_on`.
#[must_use]
pub(crate) fn plan(wanted: &Wanted, joined_on: u32, seen: &Seen) -> Plan {
    let mut plan = Plan { problems: problems(&wanted.names, &seen.interfaces), ..Plan::default() };
    let fabric = match Fabric::among(&seen.interfaces, &wanted.names) {
        Ok(fabric) => fabric,
        Err(error) => {
            plan.problems.insert(0, error.to_string());
            return plan;
        }
    };
    if state(&fabric.nack, fabric.nack_addr) == Some(AddressState::Unusable) {
        plan.problems.push(format!(
            "-nack-addr {}: duplicate address detection on {} has not ended, or has found a duplicate",
            fabric.nack_addr, fabric.nack.name
        ));
    }
    if fabric.ingress.index != joined_on || !wanted.groups.is_subset(&seen.joined) {
        plan.rejoin = Some(fabric.ingress.index);
    }
    if let Some(program) = wanted.program {
        plan.attach = fabric.attach_to();
        plan.attach.retain(|(_, index)| seen.programs.get(index) != Some(&program));
    }
    plan.fabric = Some(fabric);
    plan
}

/// What is wrong with the interfaces that the settings name, as far as they are there.
pub(crate) fn problems(names: &Names, all: &[Interface]) -> Vec<String> {
    let mut found = Vec::new();
    let holds_nack = |interface: &Interface| names.nack_addr.is_some_and(|address| state(interface, address).is_some());
    for interface in all {
        let name = &interface.name;
        if *name != names.ingress && !names.egress.contains(name) && !holds_nack(interface) {
            continue;
        }
        if !interface.up {
            found.push(format!("interface {name} is down: `ip link set dev {name} up`"));
        } else if !interface.carrier {
            found.push(format!("interface {name} has no carrier: look at its cable, or at the peer of a veth pair"));
        }
        if interface.mtu < SMALLEST_MTU {
            found.push(format!(
                "interface {name} has an MTU of {}: IPv6 needs {SMALLEST_MTU} bytes, and Linux has taken it off the interface",
                interface.mtu
            ));
        }
    }
    found
}

fn state(interface: &Interface, address: Ipv6Addr) -> Option<AddressState> {
    interface.addresses.iter().find(|one| one.ip == address).map(|one| one.state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interface::Address;

    const PROGRAM: u32 = 77;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn interface(name: &str, index: u32, address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            index,
            mac: Some([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            peer_mtu: None,
            up: true,
            carrier: true,
            loopback: false,
            multicast: true,
            addresses: vec![Address { ip: ip(address), state: AddressState::Stable }],
        }
    }

    fn wanted() -> Wanted {
        Wanted {
            names: Names {
                tee_only: false,
                ingress: "eth0".to_owned(),
                egress: vec!["eth0".to_owned(), "eth1".to_owned()],
                nack_addr: Some(ip("fd10::1")),
                bind_source: None,
            },
            program: Some(PROGRAM),
            groups: BTreeSet::from([ip("ff05::b:0")]),
        }
    }

    fn seen() -> Seen {
        Seen {
            interfaces: vec![interface("eth0", 2, "fd10::1"), interface("eth1", 3, "fd11::1")],
            programs: BTreeMap::from([(2, PROGRAM), (3, PROGRAM)]),
            joined: BTreeSet::from([ip("ff02::1"), ip("ff05::b:0")]),
        }
    }

    #[test]
    fn nothing_is_to_be_done_while_all_is_as_wanted() {
        let plan = plan(&wanted(), 2, &seen());
        assert_eq!((plan.problems.len(), plan.rejoin, plan.attach.len()), (0, None, 0));
        assert_eq!(plan.fabric.expect("it is whole").max_frame(), 1_452);
    }

    #[test]
    fn an_interface_that_is_gone_is_named_and_nothing_is_done() {
        for (gone, words) in [(0, "-mc-iface eth0"), (1, "-egress-iface eth1")] {
            let mut seen = seen();
            seen.interfaces.remove(gone);
            let plan = plan(&wanted(), 2, &seen);
            assert!(plan.problems[0].starts_with(words), "{:?}", plan.problems);
            assert_eq!((plan.fabric, plan.rejoin, plan.attach.len()), (None, None, 0));
        }
    }

    /// Where frames come from a tee alone, nothing is joined on the fabric's interface.
    #[test]
    fn with_a_tee_alone_the_fabrics_interface_may_be_absent() {
        let mut wanted = wanted();
        wanted.names.ingress = "absent0".to_owned();
        assert!(plan(&wanted, 2, &seen()).problems[0].starts_with("-mc-iface absent0"));
        wanted.names.tee_only = true;
        let found = plan(&wanted, 2, &seen());
        assert_eq!(found.fabric.expect("it is whole").ingress.name, "eth0");
        let mut gone = seen();
        gone.interfaces.remove(0);
        assert!(plan(&wanted, 2, &gone).problems[0].starts_with("-egress-iface eth0"));
    }

    #[test]
    fn an_interface_under_another_index_is_joined_and_attached() {
        let mut seen = seen();
        seen.interfaces[0].index = 9;
        seen.programs.remove(&2);
        seen.joined.clear();
        let plan = plan(&wanted(), 2, &seen);
        assert_eq!((plan.problems.len(), plan.rejoin), (0, Some(9)));
        assert_eq!(plan.attach, [("eth0".to_owned(), 9)]);
        let fabric = plan.fabric.expect("it is whole");
        assert_eq!((fabric.ingress.index, fabric.nack.index, fabric.egress[0].interface.index), (9, 9, 9));
    }

    #[test]
    fn lost_memberships_are_joined_again() {
        let mut seen = seen();
        seen.joined.remove(&ip("ff05::b:0"));
        assert_eq!(plan(&wanted(), 2, &seen).rejoin, Some(2));
    }

    #[test]
    fn a_program_that_is_gone_or_not_ours_is_missing() {
        for there in [None, Some(78)] {
            let mut seen = seen();
            seen.programs.remove(&3);
            seen.programs.extend(there.map(|program| (3, program)));
            assert_eq!(plan(&wanted(), 2, &seen).attach, [("eth1".to_owned(), 3)]);
            let without = Wanted { program: None, ..wanted() };
            assert_eq!(plan(&without, 2, &seen).attach, []);
        }
    }

    #[test]
    fn a_lost_nack_address_is_named() {
        let mut seen = seen();
        seen.interfaces[0].addresses.clear();
        let lost = plan(&wanted(), 2, &seen);
        assert_eq!(lost.problems, ["-nack-addr fd10::1: no interface of this host has this address"]);
        assert_eq!(lost.fabric, None);
        // On another interface it is as good.
        seen.interfaces[1].addresses.push(Address { ip: ip("fd10::1"), state: AddressState::Stable });
        seen.interfaces[0].addresses.push(Address { ip: ip("fd10::2"), state: AddressState::Stable });
        let moved = plan(&wanted(), 2, &seen);
        assert_eq!(moved.problems.len(), 0);
        assert_eq!(moved.fabric.expect("it is whole").nack.index, 3);
        seen.interfaces[1].addresses[1].state = AddressState::Unusable;
        assert!(plan(&wanted(), 2, &seen).problems[0].contains("duplicate address detection"));
    }

    /// A veth pair whose other end takes 1400 bytes: what fits there leaves in one packet, what this end fragments leaves in
    /// pieces that fit, and what lies between is lost.
    #[test]
    fn a_narrow_veth_pair_loses_what_lies_between() {
        let mut seen = seen();
        let fabric = plan(&wanted(), 2, &seen).fabric.expect("it is whole");
        assert_eq!((fabric.lost_lengths(), fabric.packet_limit(), fabric.narrow().count()), (0..0, None, 0));
        seen.interfaces[1].peer_mtu = Some(1_400);
        let fabric = plan(&wanted(), 2, &seen).fabric.expect("it is whole");
        assert_eq!((fabric.max_frame(), fabric.packet_limit()), (1_352, Some(1_400)));
        assert_eq!(fabric.lost_lengths(), 1_353..1_453);
        assert_eq!(fabric.narrow().map(|interface| interface.name.as_str()).collect::<Vec<_>>(), ["eth1"]);
        // A larger one at the other end changes nothing.
        seen.interfaces[1].peer_mtu = Some(9_000);
        assert_eq!(plan(&wanted(), 2, &seen).fabric.expect("it is whole").lost_lengths(), 0..0);
    }

    #[test]
    fn links_that_carry_nothing_are_problems_and_strangers_are_not() {
        let mut seen = seen();
        seen.interfaces.push(Interface { up: false, mtu: 100, ..interface("eth9", 9, "fd19::1") });
        assert_eq!(plan(&wanted(), 2, &seen).problems, [] as [String; 0]);
        seen.interfaces[1].up = false;
        seen.interfaces[0].carrier = false;
        seen.interfaces[0].mtu = 1_279;
        let problems = plan(&wanted(), 2, &seen).problems;
        let words = ["eth0 has no carrier", "1279", "eth1 is down"];
        assert_eq!(problems.len(), words.len(), "{problems:?}");
        for (problem, word) in problems.iter().zip(words) {
            assert!(problem.contains(word), "{problem}");
        }
    }
}
