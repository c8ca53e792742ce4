//! A minute of talkers, in slots of ten seconds. Each slot has a Space-Saving sketch of sources and one of flows.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::net::Ipv6Addr;
use std::time::Duration;

use super::{Outcome, REFUSALS, Talker, Told, Top};

/// A slot, nanoseconds.
const SLOT_NS: u64 = 10_000_000_000;
/// Slots that are shown.
const SLOTS: u64 = 6;
/// Keys that a sketch counts.
pub(super) const KEYS: usize = 512;

/// What was counted of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    asked: u64,
    answered: u64,
    missed: u64,
    refused: [u64; REFUSALS],
    bytes: u64,
    /// What the key weighs: what it had, and what it inherited.
    weight: u64,
    /// The variance of `asked`, for some NACKs stand for others.
    variance: u64,
    /// NACKs that may have come before the sketch began to count the key, at most.
    before: u64,
}

impl Counts {
    fn add(&mut self, told: &Told) {
        let Told { weight, .. } = *told;
        if told.is_asked {
            self.asked += weight;
            self.variance += weight * (weight - 1);
        }
        match told.outcome {
            Outcome::None => {}
            Outcome::Answered => self.answered += weight,
            Outcome::Missed => self.missed += weight,
            Outcome::Refused(why) => {
                if let Some(place) = self.refused.get_mut(why as usize) {
                    *place += weight;
                }
            }
        }
        self.bytes += told.bytes * weight;
    }

    fn plus(mut self, other: &Self) -> Self {
        self.asked += other.asked;
        self.answered += other.answered;
        self.missed += other.missed;
        for (mine, theirs) in self.refused.iter_mut().zip(other.refused) {
            *mine += theirs;
        }
        self.bytes += other.bytes;
        self.variance += other.variance;
        self.before += other.before;
        self
    }

    fn talker(&self, name: String) -> Talker {
        // Two standard deviations: 95 of 100 cases.
        let margin = 2 * self.variance.isqrt();
        Talker {
            name,
            asked: self.asked,
            answered: self.answered,
            missed: self.missed,
            refused: self.refused,
            bytes_out: self.bytes,
            error: margin + self.before,
        }
    }
}

/// Space-Saving (Metwally, Agrawal and El Abbadi, 2005) with weights: a key that is not counted takes the place of the one that
/// weighs least, and inherits its weight as what it may have had before.
///
/// So a key with more than one in [`KEYS`] of all weight is always counted, and what came of it before it was counted is at most
/// as much.
#[derive(Debug)]
struct Sketch<K> {
    /// Every key behind its weight: the lightest first.
    by_weight: BTreeSet<(u64, K)>,
    counts: HashMap<K, Counts>,
}

impl<K: Hash + Eq + Copy + Ord> Sketch<K> {
    fn new() -> Self {
        Self { by_weight: BTreeSet::new(), counts: HashMap::with_capacity(KEYS) }
    }

    fn count(&mut self, key: K, told: &Told) {
        let before = match self.counts.get(&key) {
            Some(counts) => {
                self.by_weight.remove(&(counts.weight, key));
                None
            }
            None if self.counts.len() < KEYS => Some(0),
            None => self.by_weight.pop_first().map(|(weight, lightest)| {
                self.counts.remove(&lightest);
                weight
            }),
        };
        let counts = self.counts.entry(key).or_default();
        if let Some(before) = before {
            (counts.before, counts.weight) = (before, before);
        }
        counts.weight += told.weight;
        counts.add(told);
        self.by_weight.insert((counts.weight, key));
    }
}

/// Ten seconds.
#[derive(Debug)]
struct Slot {
    number: u64,
    sources: Sketch<Ipv6Addr>,
    flows: Sketch<u64>,
}

/// The last minute.
#[derive(Debug)]
pub(super) struct Window {
    began_ns: u64,
    slots: VecDeque<Slot>,
}

impl Window {
    pub(super) fn new(now_ns: u64) -> Self {
        Self { began_ns: now_ns, slots: VecDeque::new() }
    }

    pub(super) fn count(&mut self, told: &Told, now_ns: u64) {
        let number = now_ns / SLOT_NS;
        if self.slots.back().is_none_or(|slot| slot.number < number) {
            self.slots.push_back(Slot { number, sources: Sketch::new(), flows: Sketch::new() });
            while self.slots.front().is_some_and(|slot| slot.number + SLOTS <= number) {
                self.slots.pop_front();
            }
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.sources.count(told.source, told);
            if told.flow != 0 {
                slot.flows.count(told.flow, told);
            }
        }
    }

    /// The `most` that asked most.
    pub(super) fn top(&self, most: usize, now_ns: u64) -> Top {
        let first = (now_ns / SLOT_NS + 1).saturating_sub(SLOTS);
        let since_ns = self.began_ns.max(first * SLOT_NS);
        let slots = || self.slots.iter().filter(move |slot| slot.number >= first);
        Top {
            window: Duration::from_nanos(now_ns.saturating_sub(since_ns)),
            sources: top(slots().map(|slot| &slot.sources), most, Ipv6Addr::to_string),
            flows: top(slots().map(|slot| &slot.flows), most, |flow| format!("{flow:016x}")),
        }
    }
}

fn top<'a, K: Hash + Eq + Copy + Ord + 'a>(
    sketches: impl Iterator<Item = &'a Sketch<K>>,
    most: usize,
    name: impl Fn(&K) -> String,
) -> Vec<Talker> {
    let mut all: BTreeMap<K, Counts> = BTreeMap::new();
    for (key, counts) in sketches.flat_map(|sketch| &sketch.counts) {
        let sum = all.entry(*key).or_default();
        *sum = sum.plus(counts);
    }
    let mut all: Vec<(K, Counts)> = all.into_iter().collect();
    // Those of equal number keep the order of their keys.
    all.sort_by_key(|(_, counts)| Reverse(counts.asked));
    all.iter().take(most).map(|(key, counts)| counts.talker(name(key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(source: u128, weight: u64) -> Told {
        Told { source: source.into(), flow: 1, weight, is_asked: true, outcome: Outcome::Missed, bytes: 64 }
    }

    #[test]
    fn those_that_ask_most_come_first_with_what_they_got() {
        let mut window = Window::new(0);
        for (source, times) in [(1, 3), (2, 7), (3, 5)] {
            (0..times).for_each(|_| window.count(&told(source, 1), 1));
        }
        let top = window.top(2, SLOT_NS / 2);
        let seen: Vec<_> =
            top.sources.iter().map(|one| (one.name.as_str(), one.asked, one.missed, one.error)).collect();
        assert_eq!(seen, [("::2", 7, 7, 0), ("::3", 5, 5, 0)]);
        assert_eq!((top.sources[0].bytes_out, top.window), (7 * 64, Duration::from_secs(5)));
        let flows: Vec<_> = top.flows.iter().map(|one| (one.name.as_str(), one.asked)).collect();
        assert_eq!(flows, [("0000000000000001", 15)]);
    }

    #[test]
    fn a_minute_is_shown_and_no_more_is_kept() {
        let mut window = Window::new(0);
        for second in 0..300 {
            window.count(&told(1, 1), second * 1_000_000_000);
        }
        let top = window.top(1, 299_000_000_000);
        assert_eq!((top.sources[0].asked, top.window), (60, Duration::from_secs(59)));
        assert_eq!(window.slots.len(), usize::try_from(SLOTS).expect("small"));
        assert_eq!(window.top(1, 400_000_000_000).sources, [], "all of it is long ago");
    }

    /// A million sources that ask once each, and one that asks for a hundredth of all.
    #[test]
    fn spoofed_sources_take_no_memory_and_hide_no_heavy_one() {
        let (mut window, honest) = (Window::new(0), 0xfd10_u128);
        let mut came = 0;
        for number in 0..1_000_000_u128 {
            window.count(&told(0x2001_u128 << 112 | number, 1), 1);
            if number % 100 == 0 {
                came += 1;
                window.count(&told(honest, 1), 1);
            }
        }
        let slot = &window.slots[0];
        assert_eq!((slot.sources.counts.len(), slot.sources.by_weight.len()), (KEYS, KEYS));
        assert!(slot.sources.counts.capacity() <= 4 * KEYS, "{}", slot.sources.counts.capacity());
        let top = window.top(1, 1);
        let first = &top.sources[0];
        assert_eq!(first.name, Ipv6Addr::from(honest).to_string());
        assert!(first.asked <= came && came <= first.asked + first.error, "{first:?} of {came}");
        assert!(first.error <= 1_010_000 / KEYS as u64, "{first:?}");
    }

    /// Counts stay within the error that is shown, for each of the sources that fit no sketch.
    #[test]
    fn the_error_is_a_bound() {
        let mut window = Window::new(0);
        let mut came: HashMap<String, u64> = HashMap::new();
        for number in 0..200_000_u64 {
            // Some sources ask often, most ask seldom.
            let hash = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            let source = u128::from((hash % 4_000).min(hash / 4_000 % 4_000));
            *came.entry(Ipv6Addr::from(source).to_string()).or_default() += 1;
            window.count(&told(source, 1), 1);
        }
        assert!(came.len() > 2 * KEYS, "{}", came.len());
        for one in window.top(KEYS, 1).sources {
            let came = came[&one.name];
            assert!(one.asked <= came && came <= one.asked + one.error, "{one:?} of {came}");
        }
    }
}
