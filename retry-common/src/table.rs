//! The kernel's limit tables: from a key to a state word of [`crate::limit`], as arithmetic on one cache line.
//!
//! A bucket has four ways, each the hash of a key beside its state. Ways are taken in order and never given back. Where all
//! are taken a new key takes the way whose state weighs least: that of somebody who has all tokens back, if there is one. So
//! a flood of keys that come once pushes out keys that came once; who is over a limit is remembered longest.

use core::hint::black_box;

/// Ways of a bucket: one cache line.
pub const WAYS: usize = 4;
/// Bits of the number of a way.
const WAY_BITS: u32 = WAYS.trailing_zeros();

/// How often a word that other CPUs keep changing is tried again.
const ATTEMPTS: usize = 2;

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

/// The state of the key with this `hash`; `None` when the table does not know it.
#[inline(always)]
pub fn state<B: Bucket>(bucket: &B, hash: u64) -> Option<u64> {
    find(bucket, tag(hash)).map(|way| bucket.state(way))
}

/// Replaces the state of the key with this `hash` by what `step` makes of it; false when `step` refuses. A key that the table
/// does not know begins with 0, in the place of the state that `weigh` makes lightest. Weights are below 2^61.
///
/// Where two CPUs take one way at once a charge is lost, or falls on another key.
#[inline(always)]
pub fn take<B: Bucket>(
    bucket: &mut B,
    hash: u64,
    weigh: impl Fn(u64) -> u64,
    step: impl Fn(u64) -> Option<u64>,
) -> bool {
    if let Some(way) = find(bucket, tag(hash)) {
        for _ in 0..ATTEMPTS {
            let old = bucket.state(way);
            let Some(new) = step(old) else { return false };
            if bucket.replace_state(way, old, new) {
                return true;
            }
        }
        // So contended that the limit is all but reached.
        return false;
    }
    let way = lightest(bucket, weigh);
    let old = bucket.tag(way);
    if let Some(state) = step(0)
        && bucket.replace_tag(way, old, tag(hash))
    {
        bucket.begin(way, state);
    }
    // When somebody else was quicker, admitting is the safer side.
    true
}

/// The way that has this tag.
///
/// Without a branch for each way: the kernel's verifier would follow all that comes after it once for each of them.
#[inline(always)]
fn find<B: Bucket>(bucket: &B, tag: u64) -> Option<usize> {
    let (mut has, mut found) = (0, 0);
    let mut way = 0;
    while way < WAYS {
        let is = is_zero(bucket.tag(way) ^ tag);
        has |= is;
        found |= is * way;
        way += 1;
    }
    if has == 0 { None } else { Some(found) }
}

/// 1 for 0, and 0 for all else.
#[inline(always)]
fn is_zero(word: u64) -> usize {
    // Boxed, or the compiler would see what this is, and make the branch that BPF has for it.
    let either_sign = word | black_box(word.wrapping_neg());
    (either_sign >> 63) as usize ^ 1
}

/// The way whose state weighs least, the first of several; an empty one weighs nothing.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lowest two bits")]
fn lightest<B: Bucket>(bucket: &B, weigh: impl Fn(u64) -> u64) -> usize {
    let mut least = weigh(bucket.state(0)) << WAY_BITS;
    let mut way = 1;
    while way < WAYS {
        let other = (weigh(bucket.state(way)) << WAY_BITS) | way as u64;
        // The lesser of both, as in `find`: the difference if it is below 0, else nothing.
        let difference = other.wrapping_sub(least);
        least = least.wrapping_add(difference & black_box(difference >> 63).wrapping_neg());
        way += 1;
    }
    least as usize & (WAYS - 1)
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
        take(plain, hash, |state| bucket.weight(state), |state| bucket.take(state, now_ns))
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
    fn the_lightest_is_the_first_of_the_least() {
        let of = |states: [u64; WAYS]| lightest(&Plain(states.map(|state| (1, state))), |state| state);
        assert_eq!(of([5, 4, 3, 2]), 3);
        assert_eq!(of([2, 3, 4, 5]), 0);
        assert_eq!(of([7, 1, 1, 7]), 1);
        assert_eq!(of([0; WAYS]), 0);
        assert_eq!(of([(1 << 61) - 1, (1 << 61) - 1, (1 << 61) - 2, 1 << 60]), 3);
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
