//! The endpoints that a listener knows, in the order in which it asks them.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{Ipv6Addr, SocketAddrV6},
    time::{Duration, Instant},
};

use crate::peers::announce::Advert;

/// What an endpoint said of itself, and how long that holds.
#[derive(Debug)]
struct Heard {
    address: SocketAddrV6,
    /// Lower first: not draining, then the tier, then the preference downwards.
    order: (bool, u8, Reverse<u8>),
    until: Instant,
}

/// Endpoints by instance id, and seeds: those have the tier 255, which no ADVERT can have.
#[derive(Debug)]
pub(super) struct Endpoints {
    seeds: Vec<SocketAddrV6>,
    heard: HashMap<u32, Heard>,
}

impl Endpoints {
    pub(super) fn new(seeds: Vec<SocketAddrV6>) -> Self {
        Self { seeds, heard: HashMap::new() }
    }

    /// Takes in an ADVERT. Three intervals of silence end what it says.
    pub(super) fn hear(&mut self, advert: &Advert, now: Instant) {
        let heard = Heard {
            address: advert.nack_address,
            order: (advert.draining(), advert.tier, Reverse(advert.preference)),
            until: now + Duration::from_secs(3 * u64::from(advert.interval_seconds)),
        };
        self.heard.insert(advert.instance_id, heard);
    }

    /// Whom to ask, the first first.
    pub(super) fn order(&self, now: Instant) -> Vec<SocketAddrV6> {
        let mut alive: Vec<&Heard> = self.heard.values().filter(|heard| heard.until > now).collect();
        alive.sort_by_key(|heard| (heard.order, heard.address));
        alive.into_iter().map(|heard| heard.address).chain(self.seeds.iter().copied()).collect()
    }

    /// Whether an endpoint has this address, be it silent by now.
    pub(super) fn contains(&self, address: Ipv6Addr) -> bool {
        let heard = self.heard.values().map(|heard| &heard.address);
        heard.chain(&self.seeds).any(|known| *known.ip() == address)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv6Addr, SocketAddrV6},
        time::{Duration, Instant},
    };

    use super::Endpoints;
    use crate::peers::announce::Advert;

    fn endpoint(number: u16) -> SocketAddrV6 {
        SocketAddrV6::new(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, number), 9300, 0, 0)
    }

    fn advert(number: u16, tier: u8, preference: u8, flags: u16) -> Advert {
        Advert {
            scope: 5,
            nack_address: endpoint(number),
            tier,
            preference,
            interval_seconds: 2,
            flags,
            instance_id: number.into(),
        }
    }

    #[test]
    fn tier_then_preference_then_seeds_and_draining_ones_late() {
        let now = Instant::now();
        let mut known = Endpoints::new(vec![endpoint(9)]);
        for advert in [advert(1, 1, 128, 0x10), advert(2, 0, 1, 0x10), advert(3, 0, 200, 0x10), advert(4, 0, 255, 0x14)]
        {
            known.hear(&advert, now);
        }
        assert_eq!(known.order(now), [3, 2, 1, 4, 9].map(endpoint));
        known.hear(&advert(4, 0, 255, 0x10), now);
        assert_eq!(known.order(now).first(), Some(&endpoint(4)));
        assert_eq!(known.order(now + Duration::from_secs(6)), [endpoint(9)]);
        assert!(known.contains(*endpoint(4).ip()) && !known.contains(*endpoint(5).ip()));
    }
}
