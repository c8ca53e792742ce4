//! The endpoints heard by ADVERT, as listeners keep them (BRC-126): by instance id, until three intervals of silence.
//!
//! [`Registry`] is pure: time is handed in. [`SharedRegistry`] is what the receiving socket and those who ask share; it
//! counts what was heard.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::wire::advert::{self, Advert, AdvertError};

use crate::clock::monotonic_ns;
use crate::counters::UserCounters;

/// Most endpoints kept. ADVERTs carry no proof of who sent them, so the table is bounded.
pub(crate) const MOST_ENDPOINTS: usize = 1_024;

/// Most endpoints that one address may announce.
const MOST_OF_ONE: usize = 16;
/// The longest interval for which an endpoint's silence does not count.
const LONGEST_INTERVAL_NS: u64 = 120 * NS_PER_S;
/// How long one that was heard once is told of, whatever it says itself.
const UNCONFIRMED_NS: u64 = 15 * 60 * NS_PER_S;
/// Intervals of silence after which an endpoint is forgotten (BRC-126).
const INTERVALS: u64 = 3;
const NS_PER_S: u64 = 1_000_000_000;

/// An endpoint as its last ADVERT told it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// Where it takes NACKs; a link-local address has the interface that the ADVERT came by.
    pub nack: SocketAddrV6,
    /// 0 to 254, lower is asked first; 255, which no endpoint announces, comes last.
    pub tier: u8,
    /// Higher is asked first within a tier.
    pub preference: u8,
    /// `FLAG_` bits of [`advert`].
    pub flags: u16,
    /// CRC32c of its instance name, never 0.
    pub instance_id: u32,
    /// Who sent the ADVERT.
    pub heard_from: SocketAddrV6,
    /// Time since the last ADVERT.
    pub age: Duration,
    /// Time until it is forgotten, should nothing more be heard.
    pub expires_in: Duration,
}

impl Endpoint {
    /// True when it takes its NACKs at the address that it announces itself from.
    #[must_use]
    pub fn is_at_its_source(&self) -> bool {
        self.nack.ip() == self.heard_from.ip()
    }

    /// True when it is about to go: others are asked first.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.flags & advert::FLAG_DRAINING != 0
    }
}

/// What became of an ADVERT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// An endpoint that was not known.
    New,
    /// A known one, heard again where it was.
    Refreshed,
    /// A known one that takes its NACKs elsewhere now: it was restarted, or two endpoints have one instance name.
    Moved,
    /// Our own.
    Own,
    /// No ADVERT.
    Refused(AdvertError),
    /// No listener can send NACKs there.
    Unusable(Unusable),
    /// Of a known one, from another address while the known one is heard: it is not believed.
    Contested,
}

/// Why no listener can send NACKs to an announced address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum Unusable {
    /// `::`.
    #[error("the NACK address is unspecified")]
    Unspecified,
    /// A group.
    #[error("the NACK address is a multicast group")]
    Multicast,
    /// `::1`: the sender's own host.
    #[error("the NACK address is a loopback address")]
    Loopback,
    /// `::ffff:a.b.c.d`: NACKs are IPv6 datagrams.
    #[error("the NACK address is an IPv4-mapped one")]
    Mapped,
    /// A link-local address, and the interface that it belongs to is not known.
    #[error("the NACK address is link-local, and the ADVERT's interface is not known")]
    NoInterface,
    /// Port 0.
    #[error("the NACK port is 0")]
    NoPort,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    nack: SocketAddrV6,
    heard_from: SocketAddrV6,
    tier: u8,
    preference: u8,
    flags: u16,
    first_ns: u64,
    heard_ns: u64,
    interval_ns: u64,
    expires_ns: u64,
    /// It was heard again from the same address, after half an interval at least.
    confirmed: bool,
}

impl Entry {
    /// Until when it is told of.
    fn told_until_ns(&self) -> u64 {
        if self.confirmed { self.expires_ns } else { self.expires_ns.min(self.heard_ns.saturating_add(UNCONFIRMED_NS)) }
    }

    /// True while it stands against ADVERTs of its instance id from other addresses: it was heard more than once, does not drain,
    /// and its next ADVERT is not overdue.
    fn is_heard(&self, now_ns: u64) -> bool {
        let patience_ns = self.interval_ns.min(LONGEST_INTERVAL_NS) / 2 * 3;
        self.confirmed && self.flags & advert::FLAG_DRAINING == 0 && now_ns < self.heard_ns.saturating_add(patience_ns)
    }
}

/// The endpoints heard. Times are nanoseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    own_id: u32,
    most: usize,
    entries: HashMap<u32, Entry>,
    /// Newcomers that gave way to others.
    displaced: u64,
}

impl Registry {
    /// An empty table of at most `most` endpoints; ADVERTs of `own_id` ([`advert::instance_id`]) are ours.
    #[must_use]
    pub(crate) fn new(own_id: u32, most: usize) -> Self {
        Self { own_id, most, entries: HashMap::new(), displaced: 0 }
    }

    /// Takes in a datagram that `from` sent to a beacon group. The newest ADVERT of an instance id is the one that holds.
    ///
    /// In a full table the newcomer that was heard longest ago gives way; endpoints that were heard again from their address keep
    /// their places, up to three quarters of them. While an endpoint that was heard more than once is heard, and does not drain,
    /// ADVERTs of its instance id from another address are not believed.
    pub(crate) fn handle_advert(&mut self, datagram: &[u8], from: SocketAddrV6, now_ns: u64) -> Outcome {
        let advert = match Advert::parse(datagram) {
            Ok(advert) => advert,
            Err(error) => return Outcome::Refused(error),
        };
        // A sender that does not keep 0 free (BRC-126: it becomes 1) is still one and the same.
        let id = advert.instance_id.max(1);
        if id == self.own_id {
            return Outcome::Own;
        }
        let nack = match nack_address(&advert, from) {
            Ok(nack) => nack,
            Err(why) => return Outcome::Unusable(why),
        };
        let before = self.entries.get(&id).copied().filter(|before| now_ns < before.expires_ns);
        let is_same_host = before.is_some_and(|before| before.heard_from.ip() == from.ip());
        if before.is_some_and(|before| !is_same_host && before.is_heard(now_ns)) {
            return Outcome::Contested;
        }
        if before.is_none() {
            self.make_room(from, now_ns);
        }
        // An interval of 0 would be forgotten before anyone could ask; a second is the shortest that BRC-126 knows.
        let interval_ns = u64::from(advert.interval_s.max(1)) * NS_PER_S;
        let life_ns = INTERVALS * interval_ns;
        let known = before.filter(|before| is_same_host && before.nack == nack);
        let confirmed = known.is_some_and(|known| {
            known.confirmed || (now_ns.saturating_sub(known.first_ns) >= known.interval_ns / 2 && self.may_confirm())
        });
        let entry = Entry {
            nack,
            heard_from: from,
            tier: advert.tier,
            preference: advert.preference,
            flags: advert.flags,
            first_ns: known.map_or(now_ns, |known| known.first_ns),
            heard_ns: now_ns,
            interval_ns,
            expires_ns: now_ns.saturating_add(life_ns),
            confirmed,
        };
        self.entries.insert(id, entry);
        match before {
            None => Outcome::New,
            Some(before) if before.nack == nack => Outcome::Refreshed,
            Some(_) => Outcome::Moved,
        }
    }

    /// Makes room for a newcomer that `from` announces.
    fn make_room(&mut self, from: SocketAddrV6, now_ns: u64) {
        let is_of_one = |entry: &Entry| entry.heard_from.ip() == from.ip();
        let of_one = self.entries.values().filter(|entry| is_of_one(entry)).count();
        if of_one < MOST_OF_ONE && self.entries.len() < self.most {
            return;
        }
        self.entries.retain(|_, entry| now_ns < entry.expires_ns);
        let of_one = self.entries.values().filter(|entry| is_of_one(entry)).count();
        if of_one < MOST_OF_ONE && self.entries.len() < self.most {
            return;
        }
        // An address that has its share gives way to itself.
        let may_go = |entry: &Entry| if of_one < MOST_OF_ONE { !entry.confirmed } else { is_of_one(entry) };
        let last = |entry: &Entry| (entry.confirmed, entry.heard_ns);
        let oldest = self.entries.iter().filter(|(_, entry)| may_go(entry)).min_by_key(|(_, entry)| last(entry));
        if let Some(oldest) = oldest.map(|(id, _)| *id) {
            self.entries.remove(&oldest);
            self.displaced += 1;
        }
    }

    /// True when one more endpoint may have a place of its own.
    fn may_confirm(&self) -> bool {
        let confirmed = self.entries.values().filter(|entry| entry.confirmed).count();
        confirmed < self.most / 4 * 3
    }

    /// The endpoints that are not forgotten, in the order in which listeners ask them: tier ascending, preference
    /// descending, then instance id. Those that drain are among them, marked.
    #[must_use]
    pub(crate) fn endpoints(&self, now_ns: u64) -> Vec<Endpoint> {
        let mut endpoints: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| now_ns < entry.told_until_ns())
            .map(|(id, entry)| Endpoint {
                nack: entry.nack,
                tier: entry.tier,
                preference: entry.preference,
                flags: entry.flags,
                instance_id: *id,
                heard_from: entry.heard_from,
                age: Duration::from_nanos(now_ns.saturating_sub(entry.heard_ns)),
                expires_in: Duration::from_nanos(entry.told_until_ns() - now_ns),
            })
            .collect();
        endpoints.sort_unstable_by_key(|endpoint| {
            (endpoint.tier, std::cmp::Reverse(endpoint.preference), endpoint.instance_id)
        });
        endpoints
    }
}

/// Where NACKs reach the sender of an ADVERT.
fn nack_address(advert: &Advert, from: SocketAddrV6) -> Result<SocketAddrV6, Unusable> {
    let address = Ipv6Addr::from(advert.nack_addr);
    if address.is_unspecified() {
        return Err(Unusable::Unspecified);
    }
    if address.is_multicast() {
        return Err(Unusable::Multicast);
    }
    if address.is_loopback() {
        return Err(Unusable::Loopback);
    }
    if address.to_ipv4_mapped().is_some() {
        return Err(Unusable::Mapped);
    }
    if advert.nack_port == 0 {
        return Err(Unusable::NoPort);
    }
    let interface = match (address.is_unicast_link_local(), from.scope_id()) {
        (false, _) => 0,
        (true, 0) => return Err(Unusable::NoInterface),
        (true, interface) => interface,
    };
    Ok(SocketAddrV6::new(address, advert.nack_port, 0, interface))
}

/// The registry as threads and tasks share it: the beacon listener feeds it, recovery and the management API ask it.
#[derive(Debug)]
pub(crate) struct SharedRegistry {
    registry: Mutex<Registry>,
    counters: Arc<UserCounters>,
}

impl SharedRegistry {
    /// An empty table for the instance of this name.
    #[must_use]
    pub(crate) fn new(instance: &str, counters: Arc<UserCounters>) -> Self {
        let registry = Registry::new(advert::instance_id(instance), MOST_ENDPOINTS);
        Self { registry: Mutex::new(registry), counters }
    }

    /// For the socket of the beacon groups: takes in what is no shard manifest. `from` tells the interface by its scope
    /// id, which a link-local NACK address needs. `names` says which addresses the operator's lists name.
    pub(crate) fn hear(&self, datagram: &[u8], from: SocketAddrV6, names: impl Fn(Ipv6Addr) -> bool) {
        let (outcome, displaced) = {
            let mut registry = self.registry();
            let outcome = registry.handle_advert(datagram, from, monotonic_ns());
            (outcome, std::mem::take(&mut registry.displaced))
        };
        self.counters.add(Counter::AdvertsOverflow, displaced);
        match outcome {
            Outcome::New | Outcome::Refreshed | Outcome::Moved => {
                self.counters.one(Counter::AdvertsHeard);
                let announced = Advert::parse(datagram).map(|advert| Ipv6Addr::from(advert.nack_addr));
                if announced.is_ok_and(|announced| announced != *from.ip() && !names(announced)) {
                    self.counters.one(Counter::AdvertsElsewhere);
                }
            }
            Outcome::Own => {}
            Outcome::Refused(_) => self.counters.one(Counter::AdvertsRefused),
            Outcome::Unusable(_) => self.counters.one(Counter::AdvertsUnusable),
            Outcome::Contested => self.counters.one(Counter::AdvertsContested),
        }
        tracing::trace!(%from, ?outcome, "an ADVERT was heard");
    }

    /// The endpoints that are heard now, in the order of [`Registry::endpoints`].
    #[must_use]
    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.registry().endpoints(monotonic_ns())
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
