//! The kernel's limit tables: from a key to a state word of [`crate::limit`], as arithmetic on one cache line.
//!
//! A bucket has four ways, each the hash of a key beside its state. Ways are taken in order and never given back. Where all
//! are taken a new key takes the way whose state weighs least: that of somebody who has all tokens back, if there is one. So
//! a flood of keys that come once pushes out keys that came once; who is over a limit is remembered longest.

/// Ways of a bucket: one cache line.
pub const WAYS: usize = 4;

/// How often a word that other CPUs keep changing is tried again.
const ATTEMPTS: usize = 4;

/// Buckets of a table for `entries` keys: twice as many ways, because keys spread unevenly. A power of two.
pub const fn buckets(entries: u32) -> u32 {
    let half = entries.div_ceil(2);
    if half > 1 << 31 { 1 << 31 } else { half.next_power_of_two() }
}

/// The hash of an address.
#[inline(always)]
pub const fn address_hash(address: &[u8; 16], seed: u64) -> u64 {
    let address = u128::from_be_bytes(*address);
    #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
    let (upper, lower) = ((address >> 64) as u64, address as u64);
    join(join(seed, upper), lower)
}

/// The hash of what `hash` stands for together with `word`.
#[inline(always)]
pub const fn join(hash: u64, word: u64) -> u64 {
    // Two rounds of the finaliser of MurmurHash3, as in `index::hash`.
    let mut h = (hash ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

/// What tells keys of one bucket apart: all of the hash. Never 0, which is a way that nobody has taken.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    hash | (1 << 63)
}

/// The ways of one bucket, which other CPUs and the daemon change at the same time.
pub trait Bucket {
    /// The tag of a way below [`WAYS`].
    fn tag(&self, way: usize) -> u64;
    /// Its state.
    fn state(&self, way: usize) -> u64;
    /// Replaces the tag if it is `old`; false when it is not.
    fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool;
    /// Replaces the state if it is `old`; false when it is not.
    fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool;
    /// Gives a way that was just taken its first state, and writes the key beside it for who reads the table.
    fn begin(&mut self, way: usize, state: u64);
}

/// The way of a tag.
enum Found {
    /// It has this one.
    Has(usize),
    /// It may take this one, whose tag is this.
    MayTake(usize, u64),
}

/// The state of the key with this `hash`; `None` when the table does not know it.
#[inline(always)]
pub fn state<B: Bucket>(bucket: &B, hash: u64) -> Option<u64> {
    let mut way = 0;
    while way < WAYS {
        if bucket.tag(way) == tag(hash) {
            return Some(bucket.state(way));
        }
        way += 1;
    }
    None
}

/// Replaces the state of the key with this `hash` by what `step` makes of it; false when `step` refuses. A key that the table
/// does not know begins with 0, in the place of whose state `weigh` makes least.
///
/// Where two CPUs take one way at once a charge is lost, or falls on another key.
#[inline(always)]
pub fn take<B: Bucket>(
    bucket: &mut B,
    hash: u64,
    weigh: impl Fn(u64) -> u64,
    step: impl Fn(u64) -> Option<u64>,
) -> bool {
    match find(bucket, tag(hash), weigh) {
        Found::Has(way) => {
            for _ in 0..ATTEMPTS {
                let old = bucket.state(way);
                let Some(new) = step(old) else { return false };
                if bucket.replace_state(way, old, new) {
                    return true;
                }
            }
            // So contended that the limit is all but reached.
            false
        }
        Found::MayTake(way, old) => {
            if let Some(state) = step(0)
                && bucket.replace_tag(way, old, tag(hash))
            {
                bucket.begin(way, state);
            }
            // When somebody else was quicker, admitting is the safer side.
            true
        }
    }
}

#[inline(always)]
fn find<B: Bucket>(bucket: &B, tag: u64, weigh: impl Fn(u64) -> u64) -> Found {
    let (mut lightest, mut its_tag, mut its_weight) = (0, 0, u64::MAX);
    let mut way = 0;
    while way < WAYS {
        let there = bucket.tag(way);
        if there == tag {
            return Found::Has(way);
        }
        if there == 0 {
            // Nobody stands behind an empty way.
            return Found::MayTake(way, 0);
        }
        let weight = weigh(bucket.state(way));
        if weight < its_weight {
            (lightest, its_tag, its_weight) = (way, there, weight);
        }
        way += 1;
    }
    Found::MayTake(lightest, its_tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{TokenBucket, Window};
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::vec::Vec;

    const SECOND_NS: u64 = 1_000_000_000;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Plain([(u64, u64); WAYS]);

    impl Bucket for Plain {
        fn tag(&self, way: usize) -> u64 {
            self.0[way].0
        }
        fn state(&self, way: usize) -> u64 {
            self.0[way].1
        }
        fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
            let is = self.0[way].0 == old;
            if is {
                self.0[way].0 = new;
            }
            is
        }
        fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool {
            let is = self.0[way].1 == old;
            if is {
                self.0[way].1 = new;
            }
            is
        }
        fn begin(&mut self, way: usize, state: u64) {
            self.0[way].1 = state;
        }
    }

    fn take_token(plain: &mut Plain, hash: u64, bucket: &TokenBucket, now_ns: u64) -> bool {
        take(plain, hash, |state| bucket.weight(state, now_ns), |state| bucket.take(state, now_ns))
    }

    #[test]
    fn twice_the_ways() {
        assert_eq!(buckets(1024) as usize * WAYS, 2048);
        assert_eq!(buckets(65_536) as usize * WAYS, 131_072);
        assert_eq!(buckets(65_537), 65_536);
        assert_eq!(buckets(1 << 24), 1 << 23);
        assert!(buckets(u32::MAX).is_power_of_two());
        assert_eq!(buckets(0), 1);
    }

    #[test]
    fn every_bit_of_an_address_reaches_the_hash() {
        let base = address_hash(&[0; 16], 7);
        for bit in 0..128 {
            let other = address_hash(&(1u128 << bit).to_be_bytes(), 7);
            let differ = (base ^ other).count_ones();
            assert!((12..=52).contains(&differ), "bit {bit}: {differ} bits differ");
        }
        assert_ne!(base, address_hash(&[0; 16], 8));
    }

    #[test]
    fn who_is_over_the_limit_is_remembered_longest() {
        let bucket = TokenBucket::new(1, 2);
        let mut plain = Plain::default();
        let now = 5 * SECOND_NS;
        for _ in 0..2 {
            assert!(take_token(&mut plain, 1, &bucket, now));
        }
        assert!(!take_token(&mut plain, 1, &bucket, now));
        for stranger in 2..2_000 {
            assert!(take_token(&mut plain, stranger, &bucket, now));
        }
        assert!(!take_token(&mut plain, 1, &bucket, now));
    }

    #[test]
    fn who_has_all_tokens_back_makes_room() {
        let bucket = TokenBucket::new(1, 1);
        let mut plain = Plain::default();
        for hash in 1..=4 {
            assert!(take_token(&mut plain, hash, &bucket, hash * SECOND_NS));
        }
        // Keys 1 to 3 have their token back, key 4 has not.
        assert!(take_token(&mut plain, 5, &bucket, 4 * SECOND_NS + 1));
        assert!(!take_token(&mut plain, 4, &bucket, 4 * SECOND_NS + 2));
        assert!(!take_token(&mut plain, 5, &bucket, 4 * SECOND_NS + 2));
        assert_eq!(plain.0.map(|(tag, _)| tag ^ (1 << 63)), [5, 2, 3, 4]);
    }

    #[test]
    fn a_state_is_read_without_being_made() {
        let mut plain = Plain::default();
        assert_eq!(state(&plain, 9), None);
        assert_eq!(plain, Plain::default());
        assert!(take(&mut plain, 9, |_| 0, |state| Some(state + 3)));
        assert!(take(&mut plain, 9, |_| 0, |state| Some(state + 4)));
        assert_eq!(state(&plain, 9), Some(7));
        assert!(!take(&mut plain, 9, |_| 0, |_| None));
        assert_eq!(state(&plain, 9), Some(7));
    }

    proptest! {
        /// As long as a bucket has a way for each of its keys it is a map.
        #[test]
        fn four_keys_are_told_apart(steps in prop::collection::vec((1u64..5, 1u64..1000), 1..300)) {
            let window = Window::new(9, SECOND_NS);
            let mut plain = Plain::default();
            let mut states: HashMap<u64, u64> = HashMap::new();
            let mut now = 3 * SECOND_NS;
            for (hash, gap) in steps {
                now += gap * 1_000_000;
                let step = |state| (!window.is_over(state, now)).then(|| window.charge(state, now));
                let state = states.entry(hash).or_default();
                let expected = step(*state);
                *state = expected.unwrap_or(*state);
                let got = take(&mut plain, hash, |state| window.weight(state, now), step);
                prop_assert_eq!(got, expected.is_some());
                let held: Vec<u64> = plain.0.iter().filter(|(tag, _)| *tag == super::tag(hash)).map(|(_, s)| *s).collect();
                prop_assert_eq!(held, [*state]);
            }
        }
    }
}
