//! The jobs that wait for their turn: askers take turns, so that one who asks for much does not keep the others waiting.
//! Pure.
//!
//! Networks (/64) take turns, and within one its addresses: a host may have as many addresses as it likes.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::Ipv6Addr;

/// Networks that are looked at for the one that waits for most, when there is no room.
const LOOKED_AT: usize = 16;

/// Queues by key that take turns.
#[derive(Debug)]
struct Turns<K, Q> {
    order: VecDeque<K>,
    queues: HashMap<K, Q>,
}

impl<K: Copy + Eq + Hash, Q: Default> Turns<K, Q> {
    fn new() -> Self {
        Self { order: VecDeque::new(), queues: HashMap::new() }
    }

    fn of(&mut self, key: K) -> &mut Q {
        match self.queues.entry(key) {
            Entry::Occupied(queue) => queue.into_mut(),
            Entry::Vacant(place) => {
                self.order.push_back(key);
                place.insert(Q::default())
            }
        }
    }

    /// Takes from the queue whose turn it is, and forgets it when it is empty then.
    fn next<T>(&mut self, take: impl FnOnce(&mut Q) -> Option<T>, is_empty: impl FnOnce(&Q) -> bool) -> Option<T> {
        let key = self.order.pop_front()?;
        let queue = self.queues.get_mut(&key)?;
        let item = take(queue);
        if is_empty(queue) {
            self.queues.remove(&key);
        } else {
            self.order.push_back(key);
        }
        item
    }

    fn forget(&mut self, key: K) {
        self.queues.remove(&key);
        self.order.retain(|one| *one != key);
    }
}

/// What a network waits for.
#[derive(Debug)]
struct Network<T> {
    addresses: Turns<u128, VecDeque<T>>,
    waiting: usize,
}

impl<T> Default for Network<T> {
    fn default() -> Self {
        Self { addresses: Turns::new(), waiting: 0 }
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue<T> {
    networks: Turns<u64, Network<T>>,
    waiting: usize,
    most: usize,
}

impl<T> Queue<T> {
    /// An empty one for `most` jobs.
    pub(super) fn new(most: usize) -> Self {
        Self { networks: Turns::new(), waiting: 0, most }
    }

    /// Adds a job of `asker`; returns the one that has no room: the newest of those who wait for most.
    pub(super) fn push(&mut self, asker: Ipv6Addr, job: T) -> Option<T> {
        let (network, address) = (network(asker), asker.to_bits());
        let dropped = if self.waiting < self.most { None } else { self.make_room(network) };
        if self.waiting >= self.most {
            return Some(job);
        }
        let network = self.networks.of(network);
        network.addresses.of(address).push_back(job);
        network.waiting += 1;
        self.waiting += 1;
        dropped
    }

    /// The next job.
    pub(super) fn pop(&mut self) -> Option<T> {
        let take = |network: &mut Network<T>| {
            network.waiting -= 1;
            network.addresses.next(VecDeque::pop_front, VecDeque::is_empty)
        };
        let job = self.networks.next(take, |network| network.waiting == 0)?;
        self.waiting -= 1;
        Some(job)
    }

    /// Takes out the newest job of a network that waits for more than `asking` does, if there is one.
    fn make_room(&mut self, asking: u64) -> Option<T> {
        let waits = |key: &u64| self.networks.queues.get(key).map_or(0, |network| network.waiting);
        let own = waits(&asking);
        let longest = self.networks.order.iter().take(LOOKED_AT).copied().max_by_key(waits)?;
        if waits(&longest) <= own.max(1) {
            return None;
        }
        let network = self.networks.queues.get_mut(&longest)?;
        let addresses = &mut network.addresses;
        let address = addresses
            .order
            .iter()
            .take(LOOKED_AT)
            .copied()
            .max_by_key(|address| addresses.queues.get(address).map_or(0, VecDeque::len))?;
        let queue = addresses.queues.get_mut(&address)?;
        let job = queue.pop_back()?;
        if queue.is_empty() {
            addresses.forget(address);
        }
        network.waiting -= 1;
        self.waiting -= 1;
        Some(job)
    }
}

const fn network(address: Ipv6Addr) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = address.octets();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(network: u16, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0, 0, network, 0, 0, 0, host)
    }

    fn drained(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn networks_take_turns_and_so_do_their_addresses() {
        let mut queue = Queue::new(100);
        for job in 0..3 {
            assert_eq!(queue.push(asker(1, 1), job), None);
        }
        assert_eq!(queue.push(asker(1, 2), 10), None);
        assert_eq!(queue.push(asker(2, 1), 20), None);
        assert_eq!(drained(&mut queue), [0, 20, 10, 1, 2]);
        assert_eq!((queue.waiting, queue.networks.queues.len()), (0, 0), "nothing is kept of who is done");
    }

    #[test]
    fn who_waits_for_most_makes_room() {
        let mut queue = Queue::new(4);
        for job in 0..4 {
            assert_eq!(queue.push(asker(1, 1), job), None);
        }
        assert_eq!(queue.push(asker(1, 1), 4), Some(4), "no asker waits for more");
        assert_eq!(queue.push(asker(2, 1), 20), Some(3));
        assert_eq!(queue.push(asker(2, 1), 21), Some(2));
        assert_eq!(queue.push(asker(2, 1), 22), Some(22), "as many as the other");
        assert_eq!(drained(&mut queue), [0, 20, 1, 21]);
    }

    #[test]
    fn a_flood_of_addresses_of_one_network_counts_as_one() {
        let mut queue = Queue::new(64);
        let dropped = (0..1_000).filter(|job| queue.push(asker(1, *job), u32::from(*job)).is_some()).count();
        assert_eq!(dropped, 1_000 - 64);
        assert!((0..20).all(|job| queue.push(asker(2, 1), 2_000 + job).is_some_and(|gone| gone < 2_000)));
        let first: Vec<u32> = (0..40).filter_map(|_| queue.pop()).collect();
        assert_eq!(first.iter().filter(|job| **job >= 2_000).count(), 20, "every second turn is theirs");
    }
}
