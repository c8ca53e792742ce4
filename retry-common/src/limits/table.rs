//! Limit tables, the kernel's and the daemon's: from a key to the state word of a limit, as arithmetic on one cache line.
//!
//! A bucket has four ways, each the hash of a key beside its state. Ways are taken in order and never given back. Where all
//! are taken a new key takes the way whose state weighs least: that of a key that has all its tokens back, if there is one. So
//! a flood of keys that come once pushes out keys that came once, and with a burst above 1 who is over a limit outlasts them.
//!
//! Longer than most files: the buckets that stand in for the real one, where another CPU comes between two steps, are private to
//! the tests of those steps, which are more than half of it.

use core::hint::black_box;

/// Ways of a bucket: one cache line.
pub const WAYS: usize = 4;
/// Bits of the number of a way.
const WAY_BITS: u32 = WAYS.trailing_zeros();

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

/// Bits of the filter over this host's own addresses.
pub const OWN_BITS: usize = 1_024;

/// The bit of an address, by its [`address_hash`], in the filter over this host's own addresses. Where it is 0 the address is
/// another host's; where it is 1 the table has to be asked.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lowest bits are the number")]
pub const fn own_bit(hash: u64) -> u32 {
    (hash & (OWN_BITS as u64 - 1)) as u32
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

/// What tells keys of one bucket apart: all of the hash. Never 0, which is a free way.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    hash | (1 << 63)
}

/// The ways of one bucket, which other CPUs and the daemon change at the same time.
pub trait Bucket {
    /// How often a charge is tried when others keep changing the word.
    const ATTEMPTS: u32;
    /// The tag of a way below [`WAYS`].
    fn tag(&self, way: usize) -> u64;
    /// Its state.
    fn state(&self, way: usize) -> u64;
    /// Replaces the tag if it is `old`; false when it is not.
    fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool;
    /// Replaces the state if it is `old`; false when it is not.
    fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool;
    /// Writes the key of a way that was just taken, for who reads the table.
    fn write_key(&mut self, way: usize);
}

/// The state of the key with this `hash`; `None` when the table does not know it.
#[inline(always)]
pub fn state<B: Bucket>(bucket: &B, hash: u64) -> Option<u64> {
    find(bucket, tag(hash)).map(|way| bucket.state(way))
}

/// Replaces the state of the key with this `hash` by what `step` makes of it; false when `step` refuses. A key that the table
/// does not know begins with 0, in the place of the state that `weigh` makes lightest. Weights are below 2^61.
///
/// CPUs that charge one key at once share its tokens, its first charge included. Admitted without being charged is who loses
/// a way to another key, or the word [`Bucket::ATTEMPTS`] times: there was room each time.
#[inline(always)]
pub fn take<B: Bucket>(
    bucket: &mut B,
    hash: u64,
    weigh: impl Fn(u64) -> u64,
    step: impl Fn(u64) -> Option<u64>,
) -> bool {
    let way = match find(bucket, tag(hash)) {
        Some(way) => way,
        None => {
            let Some(first) = step(0) else { return false };
            match enter(bucket, tag(hash), weigh, first) {
                Some(way) => way,
                None => return true,
            }
        }
    };
    let mut attempt = 0;
    while attempt < B::ATTEMPTS {
        let old = bucket.state(way);
        let Some(new) = step(old) else { return false };
        if bucket.replace_state(way, old, new) {
            return true;
        }
        attempt += 1;
    }
    true
}

/// As [`take`], for a limit that must never admit too much. A key that the table does not know goes on from the lightest state of
/// its bucket, whose place it takes: states only grow, so a key that was forgotten comes back with no less than it had. A charge
/// that others get ahead of [`Bucket::ATTEMPTS`] times is refused, and so is one whose way was taken meanwhile.
///
/// Two CPUs that meet a new key in the same nanoseconds as a third charges its bucket may give it two ways; one charge is then lost.
#[inline(always)]
pub fn take_strictly<B: Bucket>(
    bucket: &mut B,
    hash: u64,
    weigh: impl Fn(u64) -> u64,
    step: impl Fn(u64) -> Option<u64>,
) -> bool {
    let way = match find_way(bucket, hash) {
        Some(way) => way,
        None => match lightest_way(bucket, weigh, &step) {
            // Again, now that the way is chosen, as in `enter`.
            Some((chosen, old)) => match find_way(bucket, hash) {
                Some(way) => way,
                None => claim_way(bucket, hash, chosen, old),
            },
            None => return false,
        },
    };
    charge_strictly(bucket, hash, way, step)
}

/// The first part of [`take_strictly`]: the way of the key.
#[inline(always)]
pub fn find_way<B: Bucket>(bucket: &B, hash: u64) -> Option<usize> {
    find(bucket, tag(hash))
}

/// The second part, for a key without a way: the lightest one, and the tag that it has; `None` when there is no room for a key
/// there.
#[inline(always)]
pub fn lightest_way<B: Bucket>(
    bucket: &B,
    weigh: impl Fn(u64) -> u64,
    step: impl Fn(u64) -> Option<u64>,
) -> Option<(usize, u64)> {
    let way = lightest(bucket, weigh);
    step(bucket.state(way))?;
    Some((way, bucket.tag(way)))
}

/// The third part, for a key that still has no way: gives it the one with the tag `old`; its way.
#[inline(always)]
pub fn claim_way<B: Bucket>(bucket: &mut B, hash: u64, way: usize, old: u64) -> usize {
    if bucket.replace_tag(way, old, tag(hash)) {
        bucket.write_key(way);
    }
    way
}

/// The last part: charges the key, if the way is still its own.
#[inline(always)]
pub fn charge_strictly<B: Bucket>(bucket: &mut B, hash: u64, way: usize, step: impl Fn(u64) -> Option<u64>) -> bool {
    let tag = tag(hash);
    let mut attempt = 0;
    while attempt < B::ATTEMPTS {
        if bucket.tag(way) != tag {
            return false;
        }
        let old = bucket.state(way);
        let Some(new) = step(old) else { return false };
        if bucket.replace_state(way, old, new) {
            // Otherwise another key was charged.
            return bucket.tag(way) == tag;
        }
        attempt += 1;
    }
    false
}

/// Gives the key with this `tag` a way and its `first` state. The way, still to be charged, where another CPU had the same key.
#[inline(always)]
fn enter<B: Bucket>(bucket: &mut B, tag: u64, weigh: impl Fn(u64) -> u64, first: u64) -> Option<usize> {
    let way = lightest(bucket, weigh);
    let (old, forgotten) = (bucket.tag(way), bucket.state(way));
    // Again, now that the way is chosen: a CPU that looks after this sees the same weights, chooses the same way, and one of
    // us fails to take it. Otherwise a key could have two.
    if let Some(way) = find(bucket, tag) {
        return Some(way);
    }
    // The state goes first, or another CPU with our key could be charged for what the key before it has used.
    if forgotten != 0 && !bucket.replace_state(way, forgotten, 0) {
        return None;
    }
    if !bucket.replace_tag(way, old, tag) {
        return if bucket.tag(way) == tag { Some(way) } else { None };
    }
    let is_charged = bucket.replace_state(way, 0, first);
    // The last thing: it stands on a line of its own, and an atomic step waits until that has come.
    bucket.write_key(way);
    if is_charged { None } else { Some(way) }
}

/// The way that has this tag, the first of several.
///
/// Without a branch for each way: the kernel's verifier would follow all that comes after it once for each of them.
#[inline(always)]
fn find<B: Bucket>(bucket: &B, tag: u64) -> Option<usize> {
    let (mut has, mut found) = (0, 0);
    let mut way = 0;
    while way < WAYS {
        let is = is_zero(bucket.tag(way) ^ tag) & (has ^ 1);
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
    use crate::limits::{TokenBucket, Window};
    use proptest::prelude::*;
    use std::cell::{Cell, RefCell};
    use std::collections::HashMap;
    use std::vec::Vec;

    const SECOND_NS: u64 = 1_000_000_000;

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Plain([(u64, u64); WAYS]);

    impl Bucket for Plain {
        const ATTEMPTS: u32 = 2;

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
        fn write_key(&mut self, _: usize) {}
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

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Moment {
        /// Between the look at the tags and that at the weights.
        Looked,
        /// Before the way is taken.
        Chosen,
        /// After it.
        Taken,
    }

    /// A bucket where another CPU takes for `other` at one moment of ours.
    struct Raced {
        plain: RefCell<Plain>,
        other: Cell<Option<u64>>,
        at: Moment,
    }

    impl Raced {
        fn new(other: u64, at: Moment) -> Self {
            Self { plain: RefCell::default(), other: Cell::new(Some(other)), at }
        }

        fn reach(&self, moment: Moment) {
            if moment == self.at
                && let Some(other) = self.other.take()
            {
                assert!(charge(&mut *self.plain.borrow_mut(), other));
            }
        }
    }

    impl Bucket for Raced {
        const ATTEMPTS: u32 = 2;

        fn tag(&self, way: usize) -> u64 {
            self.plain.borrow().tag(way)
        }
        fn state(&self, way: usize) -> u64 {
            self.reach(Moment::Looked);
            self.plain.borrow().state(way)
        }
        fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
            self.reach(Moment::Chosen);
            let is_ours = self.plain.borrow_mut().replace_tag(way, old, new);
            self.reach(Moment::Taken);
            is_ours
        }
        fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool {
            self.plain.borrow_mut().replace_state(way, old, new)
        }
        fn write_key(&mut self, _: usize) {}
    }

    /// Adds one to the state, up to 5.
    fn charge<B: Bucket>(bucket: &mut B, hash: u64) -> bool {
        take(bucket, hash, |state| state, |state| (state < 5).then(|| state + 1))
    }

    #[test]
    fn two_cpus_that_charge_a_new_key_at_once_both_count() {
        for moment in [Moment::Looked, Moment::Chosen, Moment::Taken] {
            let mut raced = Raced::new(9, moment);
            assert!(charge(&mut raced, 9));
            assert_eq!(raced.plain.borrow().0, [(tag(9), 2), (0, 0), (0, 0), (0, 0)], "{moment:?}");
            assert_eq!((0..5).filter(|_| charge(&mut raced, 9)).count(), 3);
        }
    }

    #[test]
    fn the_key_that_made_room_is_not_charged() {
        for moment in [Moment::Looked, Moment::Chosen, Moment::Taken] {
            let mut raced = Raced::new(9, moment);
            raced.plain.replace(Plain([1, 2, 3, 4].map(|hash| (tag(hash), 4))));
            assert!(charge(&mut raced, 9));
            let others = [2, 3, 4].map(|hash| (tag(hash), 4));
            assert_eq!(raced.plain.borrow().0, [(tag(9), 2), others[0], others[1], others[2]], "{moment:?}");
        }
    }

    /// A bucket that another CPU changes before each of our attempts, in the way that we charge.
    struct Contended(Plain, fn(&mut (u64, u64)));

    impl Bucket for Contended {
        const ATTEMPTS: u32 = 2;

        fn tag(&self, way: usize) -> u64 {
            self.0.tag(way)
        }
        fn state(&self, way: usize) -> u64 {
            self.0.state(way)
        }
        fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
            self.0.replace_tag(way, old, new)
        }
        fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool {
            self.1(&mut self.0.0[way]);
            self.0.replace_state(way, old, new)
        }
        fn write_key(&mut self, _: usize) {}
    }

    #[test]
    fn who_never_gets_the_word_is_admitted_as_long_as_there_is_room() {
        let mut contended = Contended(Plain([(tag(9), 0), (0, 0), (0, 0), (0, 0)]), |(_, state)| *state += 1);
        assert!(charge(&mut contended, 9));
        assert!(charge(&mut contended, 9));
        assert_eq!(contended.0.0[0].1, 4);
        assert!(!charge(&mut contended, 9), "the other took the last");
        assert_eq!(contended.0.0[0].1, 5);
    }

    #[test]
    fn of_two_ways_of_one_key_the_first_counts() {
        let plain = Plain([(tag(8), 1), (tag(9), 2), (tag(9), 3), (0, 0)]);
        assert_eq!(state(&plain, 9), Some(2));
    }

    #[test]
    fn who_comes_second_to_a_way_is_admitted_and_not_remembered() {
        let mut raced = Raced::new(8, Moment::Chosen);
        assert!(charge(&mut raced, 9));
        assert_eq!(raced.plain.borrow().0, [(tag(8), 1), (0, 0), (0, 0), (0, 0)]);
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

    fn charge_one<B: Bucket>(bucket: &mut B, hash: u64) -> bool {
        take_strictly(bucket, hash, |state| state, |state| (state < 5).then(|| state + 1))
    }

    #[test]
    fn who_is_forgotten_comes_back_with_no_less_than_it_had() {
        let mut plain = Plain::default();
        for hash in 1..=4 {
            for _ in 0..hash {
                assert!(charge_one(&mut plain, hash));
            }
        }
        // Key 1 gives way with its one charge, and key 5 begins with that.
        assert!(charge_one(&mut plain, 5));
        assert_eq!(plain.0, [(tag(5), 2), (tag(2), 2), (tag(3), 3), (tag(4), 4)]);
        assert!(charge_one(&mut plain, 1));
        assert_eq!(plain.0[0], (tag(1), 3));
        // Strangers never get more than there is.
        let admitted = (10..1_000).filter(|hash| charge_one(&mut plain, *hash)).count();
        assert_eq!((admitted, plain.0.map(|(_, state)| state)), (20 - 3 - 2 - 3 - 4, [5; 4]));
    }

    #[test]
    fn cpus_that_charge_a_new_key_strictly_at_once_both_count() {
        for moment in [Moment::Looked, Moment::Chosen, Moment::Taken] {
            let mut raced = Raced::new(9, moment);
            assert!(charge_one(&mut raced, 9));
            assert_eq!(raced.plain.borrow().0, [(tag(9), 2), (0, 0), (0, 0), (0, 0)], "{moment:?}");
        }
    }

    #[test]
    fn who_never_gets_the_word_is_refused_where_it_is_strict() {
        let mut contended = Contended(Plain([(tag(9), 0), (0, 0), (0, 0), (0, 0)]), |(_, state)| *state += 1);
        assert!(!charge_one(&mut contended, 9));
        assert_eq!(contended.0.0[0].1, 2, "the other's two charges");
    }

    #[test]
    fn who_loses_its_way_in_the_moment_of_the_charge_is_refused() {
        let mut robbed = Contended(Plain([(tag(9), 0), (0, 0), (0, 0), (0, 0)]), |(held, _)| *held = tag(8));
        assert!(!charge_one(&mut robbed, 9));
        assert_eq!(robbed.0.0[0], (tag(8), 1), "the other key goes on from there");
    }

    proptest! {
        /// Whatever keys come in whatever order, each has at most what the limit allows.
        #[test]
        fn strictly_no_key_gets_too_much(keys in prop::collection::vec(1u64..12, 1..400)) {
            let mut plain = Plain::default();
            let mut admitted: HashMap<u64, u64> = HashMap::new();
            for hash in keys {
                if charge_one(&mut plain, hash) {
                    *admitted.entry(hash).or_default() += 1;
                }
            }
            prop_assert!(admitted.values().all(|charges| *charges <= 5), "{admitted:?}");
        }

        /// As long as a bucket has a way for each of its keys it is a map.
        #[test]
        fn four_keys_are_told_apart(steps in prop::collection::vec((1u64..5, 1u64..1000), 1..300)) {
            let window = Window::new(9, SECOND_NS);
            let mut plain = Plain::default();
            let mut states: HashMap<u64, u64> = HashMap::new();
            let mut now = 3 * SECOND_NS;
            for (hash, gap) in steps {
                now += gap * 1_000_000;
                let state = states.entry(hash).or_default();
                let expected = window.take(*state, now);
                *state = expected.unwrap_or(*state);
                let got = take(&mut plain, hash, |state| window.weight(state, now), |state| window.take(state, now));
                prop_assert_eq!(got, expected.is_some());
                let held: Vec<u64> = plain.0.iter().filter(|(tag, _)| *tag == super::tag(hash)).map(|(_, s)| *s).collect();
                prop_assert_eq!(held, [*state]);
            }
        }
    }
}
