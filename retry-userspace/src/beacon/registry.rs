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
    /// There is no room for one more endpoint.
    Full,
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
    heard_ns: u64,
    expires_ns: u64,
}

/// The endpoints heard. Times are nanoseconds of one monotonic clock.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    own_id: u32,
    most: usize,
    entries: HashMap<u32, Entry>,
}

impl Registry {
    /// An empty table of at most `most` endpoints; ADVERTs of `own_id` ([`advert::instance_id`]) are ours.
    #[must_use]
    pub(crate) fn new(own_id: u32, most: usize) -> Self {
        Self { own_id, most, entries: HashMap::new() }
    }

    /// Takes in a datagram that `from` sent to a beacon group. The newest ADVERT of an instance id is the one that holds.
    ///
    /// A full table takes no newcomer, however soon another endpoint expires: who floods it cannot push out those that
    /// are there.
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
        if !self.entries.contains_key(&id) && self.entries.len() >= self.most {
            self.entries.retain(|_, entry| now_ns < entry.expires_ns);
            if self.entries.len() >= self.most {
                return Outcome::Full;
            }
        }
        // An interval of 0 would be forgotten before anyone could ask; a second is the shortest that BRC-126 knows.
        let life_ns = INTERVALS * u64::from(advert.interval_s.max(1)) * NS_PER_S;
        let entry = Entry {
            nack,
            heard_from: from,
            tier: advert.tier,
            preference: advert.preference,
            flags: advert.flags,
            heard_ns: now_ns,
            expires_ns: now_ns.saturating_add(life_ns),
        };
        match self.entries.insert(id, entry).filter(|before| now_ns < before.expires_ns) {
            None => Outcome::New,
            Some(before) if before.nack == nack => Outcome::Refreshed,
            Some(_) => Outcome::Moved,
        }
    }

    /// The endpoints that are not forgotten, in the order in which listeners ask them: tier ascending, preference
    /// descending, then instance id. Those that drain are among them, marked.
    #[must_use]
    pub(crate) fn endpoints(&self, now_ns: u64) -> Vec<Endpoint> {
        let mut endpoints: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| now_ns < entry.expires_ns)
            .map(|(id, entry)| Endpoint {
                nack: entry.nack,
                tier: entry.tier,
                preference: entry.preference,
                flags: entry.flags,
                instance_id: *id,
                heard_from: entry.heard_from,
                age: Duration::from_nanos(now_ns.saturating_sub(entry.heard_ns)),
                expires_in: Duration::from_nanos(entry.expires_ns - now_ns),
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
    /// id, which a link-local NACK address needs.
    pub(crate) fn hear(&self, datagram: &[u8], from: SocketAddrV6) {
        let outcome = self.registry().handle_advert(datagram, from, monotonic_ns());
        match outcome {
            Outcome::New | Outcome::Refreshed | Outcome::Moved => self.counters.one(Counter::AdvertsHeard),
            Outcome::Own => {}
            Outcome::Refused(_) => self.counters.one(Counter::AdvertsRefused),
            Outcome::Unusable(_) => self.counters.one(Counter::AdvertsUnusable),
            Outcome::Full => self.counters.one(Counter::AdvertsOverflow),
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
