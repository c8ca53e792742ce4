//! What waits for a neighbour. Pure: time is handed in.
//!
//! First in, first out, and bounded: when there is no room the oldest makes way, because an address that exists is resolved
//! within milliseconds, and what has waited longest is what has the least chance.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::table::Hop;
use crate::clock::nanoseconds;

/// Items that wait at most.
pub(super) const MOST: usize = 4_096;
/// Of them for one neighbour; a gateway has many listeners behind it.
pub(super) const MOST_OF_ONE: usize = 256;
/// How long an item waits: longer than a resolution on a busy link takes, not longer than a listener's patience.
pub(super) const PATIENCE: Duration = Duration::from_millis(500);

/// The queue.
#[derive(Debug)]
pub(super) struct Held<T> {
    hops: HashMap<Hop, Waiting<T>>,
    /// Neighbours in the order of their first item.
    order: VecDeque<Hop>,
    /// Neighbours that the kernel was not asked to resolve yet.
    unasked: VecDeque<Hop>,
    items: usize,
}

#[derive(Debug)]
struct Waiting<T> {
    since_ns: u64,
    items: Vec<T>,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { hops: HashMap::new(), order: VecDeque::new(), unasked: VecDeque::new(), items: 0 }
    }
}

impl<T> Held<T> {
    /// Lets an item wait for `hop`. Returns what made way: the item itself, or all that waited for the oldest neighbour.
    #[must_use]
    pub(super) fn push(&mut self, hop: Hop, item: T, now_ns: u64) -> Vec<T> {
        if let Some(waiting) = self.hops.get_mut(&hop) {
            if waiting.items.len() >= MOST_OF_ONE {
                return vec![item];
            }
            waiting.items.push(item);
        } else {
            self.hops.insert(hop, Waiting { since_ns: now_ns, items: vec![item] });
            self.order.push_back(hop);
            self.unasked.push_back(hop);
        }
        self.items += 1;
        if self.items > MOST
            && let Some(oldest) = self.order.front().copied()
        {
            self.take(&oldest)
        } else {
            Vec::new()
        }
    }

    /// All that waited for `hop`.
    #[must_use]
    pub(super) fn take(&mut self, hop: &Hop) -> Vec<T> {
        let Some(waiting) = self.hops.remove(hop) else {
            return Vec::new();
        };
        // The oldest mostly, so that the walk is short.
        if let Some(at) = self.order.iter().position(|one| one == hop) {
            self.order.remove(at);
        }
        self.unasked.retain(|one| one != hop);
        self.items -= waiting.items.len();
        waiting.items
    }

    /// All that waited for too long.
    #[must_use]
    pub(super) fn expired(&mut self, now_ns: u64) -> Vec<T> {
        let mut gone = Vec::new();
        while let Some(oldest) = self.order.front().copied() {
            let since_ns = self.hops.get(&oldest).map_or(0, |waiting| waiting.since_ns);
            if now_ns.saturating_sub(since_ns) < nanoseconds(PATIENCE) {
                break;
            }
            gone.extend(self.take(&oldest));
        }
        gone
    }

    /// Everything.
    #[must_use]
    pub(super) fn take_all(&mut self) -> Vec<T> {
        let Self { hops, .. } = std::mem::take(self);
        hops.into_values().flat_map(|waiting| waiting.items).collect()
    }

    /// The next neighbour that the kernel is to be asked for.
    pub(super) fn next_unasked(&mut self) -> Option<Hop> {
        self.unasked.pop_front()
    }

    /// Nothing waits.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.items == 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn hop(number: usize) -> Hop {
        Hop { interface: 2, address: Ipv6Addr::from_bits(number as u128) }
    }

    #[test]
    fn what_waits_for_a_neighbour_comes_in_its_order() {
        let mut held = Held::default();
        for item in 0..4 {
            assert!(held.push(hop(item % 2), item, 0).is_empty());
        }
        assert_eq!((held.next_unasked(), held.next_unasked(), held.next_unasked()), (Some(hop(0)), Some(hop(1)), None));
        assert_eq!(held.take(&hop(1)), [1, 3]);
        assert!(held.take(&hop(1)).is_empty() && !held.is_empty());
        assert_eq!(held.take_all(), [0, 2]);
        assert!(held.is_empty());
    }

    #[test]
    fn the_oldest_makes_way() {
        let mut held = Held::default();
        assert!((0..MOST).all(|item| held.push(hop(item), item, 0).is_empty()));
        assert_eq!(held.push(hop(MOST), MOST, 0), [0]);
        assert_eq!(held.next_unasked(), Some(hop(1)), "a hop that nothing waits for is not asked for");
        assert_eq!(held.items, MOST);
    }

    #[test]
    fn one_neighbour_has_its_share_only() {
        let mut held = Held::default();
        assert!((0..MOST_OF_ONE).all(|item| held.push(hop(0), item, 0).is_empty()));
        assert_eq!(held.push(hop(0), 9_999, 0), [9_999]);
    }

    #[test]
    fn patience_ends() {
        let mut held = Held::default();
        let patience_ns = nanoseconds(PATIENCE);
        assert!(held.push(hop(0), 0, 0).is_empty());
        assert!(held.push(hop(1), 1, 10).is_empty());
        assert!(held.expired(patience_ns - 1).is_empty());
        assert_eq!(held.expired(patience_ns), [0]);
        assert_eq!(held.expired(patience_ns + 10), [1]);
        assert!(held.is_empty());
    }
}
