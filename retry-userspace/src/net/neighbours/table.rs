//! Routes and neighbours of this network namespace, and what they say of a destination. Pure.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddrV6};

/// Routes by gateway that are kept. A host with more is judged by its default route.
const MOST_ROUTES: usize = 4_096;
/// Resolved neighbours that are kept; datagrams to further ones wait for the kernel's word each time.
const MOST_NEIGHBOURS: usize = 65_536;

/// The neighbour that a datagram is handed to first: the destination itself, or a gateway.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Hop {
    /// Index of the interface.
    pub interface: u32,
    /// The neighbour's address.
    pub address: Ipv6Addr,
}

/// A route as the kernel tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Route {
    /// Destinations.
    pub(super) prefix: Ipv6Addr,
    /// Length of the prefix.
    pub(super) length: u8,
    /// The lowest is taken.
    pub(super) metric: u32,
    /// Where they are.
    pub(super) target: Target,
}

/// Where the destinations of a route are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// No neighbour is waited for: this host, a refusal, or several next hops of which the kernel chooses.
    Here,
    /// On the link of this interface.
    Link(u32),
    /// Behind this gateway.
    Gateway(Hop),
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// By length of the prefix, longest first.
    routes: Vec<(u8, HashMap<u128, Route>)>,
    resolved: HashSet<Hop>,
    /// Interfaces that resolve no addresses (IFF_NOARP, IFF_LOOPBACK).
    plain: HashSet<u32>,
}

const fn masked(address: Ipv6Addr, length: u8) -> u128 {
    let bits = address.to_bits();
    match 128_u32.checked_sub(length as u32) {
        None | Some(0) => bits,
        Some(128) => 0,
        Some(low) => bits >> low << low,
    }
}

impl Table {
    /// The neighbour that a datagram to `to` would wait for in the kernel; `None` when it would leave at once.
    #[must_use]
    pub(super) fn waits_for(&self, to: SocketAddrV6) -> Option<Hop> {
        let hop = self.hop(to)?;
        (!self.is_resolved(&hop)).then_some(hop)
    }

    /// True when the kernel knows the neighbour's link-layer address, or needs none.
    #[must_use]
    pub(super) fn is_resolved(&self, hop: &Hop) -> bool {
        self.plain.contains(&hop.interface) || self.resolved.contains(hop)
    }

    fn hop(&self, to: SocketAddrV6) -> Option<Hop> {
        let address = *to.ip();
        if address.is_unicast_link_local() && to.scope_id() != 0 {
            return Some(Hop { interface: to.scope_id(), address });
        }
        let route = self.routes.iter().find_map(|(length, routes)| routes.get(&masked(address, *length)))?;
        match route.target {
            Target::Here => None,
            Target::Link(interface) => Some(Hop { interface, address }),
            Target::Gateway(hop) => Some(hop),
        }
    }

    /// The routes from now on.
    pub(super) fn set_routes(&mut self, all: &[Route], plain: HashSet<u32>) {
        let by_gateway = |route: &&Route| matches!(route.target, Target::Gateway(_));
        let too_many = all.iter().filter(by_gateway).count() > MOST_ROUTES;
        let mut lengths: HashMap<u8, HashMap<u128, Route>> = HashMap::new();
        for route in all.iter().filter(|route| !too_many || route.length == 0 || !by_gateway(route)) {
            let routes = lengths.entry(route.length).or_default();
            let known = routes.entry(masked(route.prefix, route.length)).or_insert(*route);
            // Of equals the kernel takes the first, too.
            if route.metric < known.metric {
                *known = *route;
            }
        }
        self.routes = lengths.into_iter().collect();
        self.routes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        self.plain = plain;
    }

    /// The resolved neighbours from now on.
    pub(super) fn set_neighbours(&mut self, all: impl IntoIterator<Item = Hop>) {
        self.resolved = all.into_iter().take(MOST_NEIGHBOURS).collect();
    }

    /// Takes the routes of a table that was made aside, and gives it the old ones: nothing is built while others wait.
    pub(super) fn swap_routes(&mut self, fresh: &mut Self) {
        std::mem::swap(&mut self.routes, &mut fresh.routes);
        std::mem::swap(&mut self.plain, &mut fresh.plain);
    }

    /// As [`Table::swap_routes`], for the neighbours.
    pub(super) fn swap_neighbours(&mut self, fresh: &mut Self) {
        std::mem::swap(&mut self.resolved, &mut fresh.resolved);
    }

    /// What the kernel says of a neighbour.
    pub(super) fn set_neighbour(&mut self, hop: Hop, is_resolved: bool) {
        if !is_resolved {
            self.resolved.remove(&hop);
        } else if self.resolved.len() < MOST_NEIGHBOURS {
            self.resolved.insert(hop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn to(text: &str, scope: u32) -> SocketAddrV6 {
        SocketAddrV6::new(address(text), 9, 0, scope)
    }

    fn hop(interface: u32, text: &str) -> Hop {
        Hop { interface, address: address(text) }
    }

    fn route(prefix: &str, length: u8, metric: u32, target: Target) -> Route {
        Route { prefix: address(prefix), length, metric, target }
    }

    fn table() -> Table {
        let mut table = Table::default();
        let routes = [
            route("::", 0, 1024, Target::Gateway(hop(2, "fe80::1"))),
            route("fd10::", 64, 256, Target::Link(2)),
            route("fd10::", 64, 300, Target::Link(3)),
            route("fd10::1", 128, 0, Target::Here),
            route("fd10::77", 128, 1024, Target::Gateway(hop(2, "fd10::5"))),
            route("fd20::", 64, 256, Target::Link(4)),
        ];
        table.set_routes(&routes, HashSet::from([4]));
        table
    }

    #[test]
    fn a_destination_waits_for_the_neighbour_that_its_route_leads_to() {
        let table = table();
        let cases = [
            ("fd10::2", 0, Some(hop(2, "fd10::2"))),
            ("fd10::77", 0, Some(hop(2, "fd10::5"))),
            ("2001:db8::1", 0, Some(hop(2, "fe80::1"))),
            ("fe80::9", 3, Some(hop(3, "fe80::9"))),
            ("fd10::1", 0, None),
            ("fd20::9", 0, None),
        ];
        for (destination, scope, expected) in cases {
            assert_eq!(table.waits_for(to(destination, scope)), expected, "{destination}");
        }
        // The kernel refuses at once what it has no route for.
        assert_eq!(Table::default().waits_for(to("fd10::2", 0)), None);
    }

    #[test]
    fn a_resolved_neighbour_is_not_waited_for_until_it_is_gone() {
        let mut table = table();
        table.set_neighbours([hop(2, "fe80::1"), hop(3, "fd10::2")]);
        assert_eq!(table.waits_for(to("2001:db8::1", 0)), None);
        assert_eq!(table.waits_for(to("fd10::2", 0)), Some(hop(2, "fd10::2")), "resolved on another interface");
        table.set_neighbour(hop(2, "fd10::2"), true);
        assert_eq!(table.waits_for(to("fd10::2", 0)), None);
        table.set_neighbour(hop(2, "fd10::2"), false);
        assert_eq!(table.waits_for(to("fd10::2", 0)), Some(hop(2, "fd10::2")));
    }

    #[test]
    fn it_does_not_grow_with_what_strangers_or_routers_send() {
        let mut table = table();
        for number in 0..70_000_u128 {
            table.set_neighbour(Hop { interface: 2, address: Ipv6Addr::from_bits(number) }, true);
        }
        assert_eq!(table.resolved.len(), MOST_NEIGHBOURS);
        let mut routes =
            vec![route("::", 0, 1, Target::Gateway(hop(2, "fe80::1"))), route("fd10::", 64, 1, Target::Link(2))];
        routes.extend((0..5_000_u16).map(|number| Route {
            prefix: Ipv6Addr::new(0x2001, number, 0, 0, 0, 0, 0, 0),
            length: 32,
            metric: 1,
            target: Target::Gateway(hop(2, "fe80::2")),
        }));
        table.set_routes(&routes, HashSet::new());
        assert_eq!(table.routes.iter().map(|(_, routes)| routes.len()).sum::<usize>(), 2);
    }
}
