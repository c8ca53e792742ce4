//! Rate limits as integer arithmetic: a state word and a time in, a verdict and a state word out.
//!
//! Both limits keep their whole state in one `u64`, so that a single compare-exchange updates it, in the kernel and in
//! userspace alike. A state of 0 is a limit that has not been used yet. Times are nanoseconds of the monotonic clock.

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

/// How often a token comes back: a rate of a [`TokenBucket`], also one of less than a token per second.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rate {
    /// Nanoseconds that one token takes to come back; 0 = no limit.
    interval_ns: u64,
}

impl Rate {
    /// No limit.
    pub const OFF: Self = Self { interval_ns: 0 };

    /// One token per this time, in nanoseconds; 0 is no limit.
    pub const fn every(interval_ns: u64) -> Self {
        Self { interval_ns }
    }

    /// True when there is no limit.
    pub const fn is_off(self) -> bool {
        self.interval_ns == 0
    }

    /// The largest burst that a bucket of this rate holds: it fills within [`TokenBucket::LONGEST_FILL_NS`].
    pub const fn largest_burst(self) -> u64 {
        match TokenBucket::LONGEST_FILL_NS.checked_div(self.interval_ns) {
            Some(tokens) => tokens + 1,
            None => u64::MAX,
        }
    }
}

impl From<u32> for Rate {
    /// So many tokens per second; 0 is no limit, and so is more than a token per nanosecond.
    fn from(per_second: u32) -> Self {
        Self::every(SECOND_NS.checked_div(u64::from(per_second)).unwrap_or(0))
    }
}

/// A token bucket as GCRA (ITU-T I.371): the state is the theoretical arrival time of the next packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TokenBucket {
    /// Nanoseconds that one token takes to come back; 0 = the limit is off.
    interval_ns: u64,
    /// How far the theoretical arrival time may run ahead of the clock: `interval × (burst − 1)`.
    depth_ns: u64,
}

impl TokenBucket {
    /// The longest time in which a bucket fills, in nanoseconds: 36 years. An arrival time and the clock stay below 2^61.
    pub const LONGEST_FILL_NS: u64 = 1 << 60;

    /// A bucket of this rate (a number is tokens per second) and at most `burst` tokens at once: 0 counts as 1, and more than
    /// [`Rate::largest_burst`] as that. [`Rate::OFF`] switches the limit off.
    pub fn new(rate: impl Into<Rate>, burst: u32) -> Self {
        let Rate { interval_ns } = rate.into();
        let depth_ns = interval_ns.saturating_mul(u64::from(burst.saturating_sub(1)));
        Self { interval_ns, depth_ns: depth_ns.min(Self::LONGEST_FILL_NS) }
    }

    /// Its words in memory, in their order: each is changed by one store while programs run.
    pub const fn words(&self) -> [u64; 2] {
        [self.interval_ns, self.depth_ns]
    }

    /// The bucket of these words ([`TokenBucket::words`]).
    #[inline(always)]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let [interval_ns, depth_ns] = words;
        Self { interval_ns, depth_ns }
    }

    /// True when the limit is off.
    #[inline(always)]
    pub const fn is_off(&self) -> bool {
        self.interval_ns == 0
    }

    /// The new state when a token is left at `now_ns`, `None` when there is none.
    #[inline(always)]
    pub const fn take(&self, state: u64, now_ns: u64) -> Option<u64> {
        let arrival = if state > now_ns { state } else { now_ns };
        if arrival - now_ns > self.depth_ns {
            return None;
        }
        Some(arrival.wrapping_add(self.interval_ns))
    }

    /// What would be forgotten with `state`, to be compared: when all tokens are back. Below 2^61 for 70 years of the clock.
    #[inline(always)]
    pub const fn weight(&self, state: u64) -> u64 {
        state & ((1 << 61) - 1)
    }
}

/// At most `max` events in any window, whenever it begins.
///
/// Time is cut into periods, a fraction of the window long. The state holds the number of the present period
/// (24 bits) and, below it, one count for each of the last periods, the present one lowest. There is one more of
/// them than the periods of a window, so that every event is counted until a whole window has passed since, and for at
/// most one period longer: the limit is never exceeded, and a sender at an even pace gets `n / (n + 1)` of it at least, for
/// `n` periods in a window. The smaller `max` is, the more counts fit into the state: 9 periods for a `max` up to 15, 4 up
/// to 255, 3 up to 1,023, 2 up to 8,191, else 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// Length of a period in nanoseconds, never 0.
    period_ns: u64,
    /// Events allowed in a window; 0 = the limit is off.
    max: u64,
    /// The lowest bit of every count.
    ones: u64,
    /// Bits of a count.
    bits: u32,
    /// Periods of a window: one less than there are counts.
    periods: u32,
}

/// Bits of the number of a period. It comes again after 2^24 periods, which is half an hour and more.
const PERIOD_BITS: u32 = 24;
/// Bits of all counts.
const COUNTS_BITS: u32 = u64::BITS - PERIOD_BITS;
const COUNTS_MASK: u64 = (1 << COUNTS_BITS) - 1;
const PERIOD_MASK: u64 = (1 << PERIOD_BITS) - 1;

impl Window {
    /// The largest `max`.
    pub const MAX: u32 = 1_000_000;

    /// `max` events (at most [`Window::MAX`]) a window. A `max` of 0 switches the limit off.
    pub const fn new(max: u32, window_ns: u64) -> Self {
        let max = if max > Self::MAX { Self::MAX } else { max };
        // A count never passes `max`, nor does the sum of all. More than ten counts would tell little more.
        let needed = u32::BITS - max.leading_zeros();
        let bits = if needed < 4 { 4 } else { needed };
        let periods = COUNTS_BITS / bits - 1;
        let (mut ones, mut at) = (0, 0);
        while at <= periods * bits {
            ones |= 1 << at;
            at += bits;
        }
        let period_ns = window_ns.div_ceil(periods as u64);
        Self { period_ns: if period_ns == 0 { 1 } else { period_ns }, max: max as u64, ones, bits, periods }
    }

    /// Its words in memory, in their order: each is changed by one store while programs run.
    pub const fn words(&self) -> [u64; 4] {
        let [a, b, c, d] = self.bits.to_ne_bytes();
        let [e, f, g, h] = self.periods.to_ne_bytes();
        [self.period_ns, self.max, self.ones, u64::from_ne_bytes([a, b, c, d, e, f, g, h])]
    }

    /// The window of these words ([`Window::words`]).
    #[inline(always)]
    pub const fn from_words(words: [u64; 4]) -> Self {
        let [period_ns, max, ones, last] = words;
        let [a, b, c, d, e, f, g, h] = last.to_ne_bytes();
        let (bits, periods) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
        Self { period_ns, max, ones, bits, periods }
    }

    /// True when the limit is off.
    #[inline(always)]
    pub const fn is_off(&self) -> bool {
        self.max == 0
    }

    /// True when one more event at `now_ns` would be too many.
    #[inline(always)]
    pub const fn is_over(&self, state: u64, now_ns: u64) -> bool {
        let (_, counts) = self.roll(state, now_ns);
        self.sum(counts) >= self.max
    }

    /// The new state after one more event at `now_ns`, `None` when it would be one too many.
    #[inline(always)]
    pub const fn take(&self, state: u64, now_ns: u64) -> Option<u64> {
        let (period, counts) = self.roll(state, now_ns);
        if self.sum(counts) >= self.max {
            return None;
        }
        Some((period << COUNTS_BITS) | counts.wrapping_add(1))
    }

    /// What would be forgotten with `state`, to be compared: the events that count at `now_ns`. Below 2^20.
    #[inline(always)]
    pub const fn weight(&self, state: u64, now_ns: u64) -> u64 {
        let (_, counts) = self.roll(state, now_ns);
        self.sum(counts)
    }

    /// The sum of all counts: it comes to stand in the highest of `counts × ones`. No sum of some of them passes `max`, so
    /// none carries into the next.
    #[inline(always)]
    const fn sum(&self, counts: u64) -> u64 {
        (counts.wrapping_mul(self.ones) >> ((self.bits * self.periods) & 63)) & self.count_mask()
    }

    /// The lowest count.
    #[inline(always)]
    const fn count_mask(&self) -> u64 {
        (1 << (self.bits & 63)) - 1
    }

    /// The number of the present period, and the counts of the last ones, at `now_ns`.
    ///
    /// Without a branch: the kernel's verifier would follow all that comes after it once for each.
    #[inline(always)]
    const fn roll(&self, state: u64, now_ns: u64) -> (u64, u64) {
        let number = match now_ns.checked_div(self.period_ns) {
            Some(number) => number,
            None => 0,
        };
        // 1 if another CPU looked at the clock a moment after us and has counted in the next period: that is the present one
        // then.
        let ahead = (number.wrapping_add(1).wrapping_sub(state >> COUNTS_BITS) & PERIOD_MASK).wrapping_sub(1) >> 63;
        let period = number.wrapping_add(ahead) & PERIOD_MASK;
        let age = period.wrapping_sub(state >> COUNTS_BITS) & PERIOD_MASK;
        let is_counted = age.wrapping_sub(self.periods as u64 + 1) >> 63;
        let counts = (state & COUNTS_MASK & is_counted.wrapping_neg()) << (age.wrapping_mul(self.bits as u64) & 63);
        (period, counts & self.ones.wrapping_mul(self.count_mask()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const MS: u64 = 1_000_000;

    #[test]
    fn bucket_gives_its_burst_then_its_rate() {
        let bucket = TokenBucket::new(100, 10);
        let (mut state, start) = (0, 5 * SECOND_NS);
        for _ in 0..10 {
            state = bucket.take(state, start).expect("the burst");
        }
        assert_eq!(bucket.take(state, start), None);
        assert_eq!(bucket.take(state, start + 10 * MS - 1), None);
        state = bucket.take(state, start + 10 * MS).expect("one token came back");
        assert_eq!(bucket.take(state, start + 10 * MS), None);
    }

    /// Every two seconds a token, and a burst of three before.
    #[test]
    fn a_rate_of_less_than_one_a_second() {
        let bucket = TokenBucket::new(Rate::every(2 * SECOND_NS), 3);
        let (mut state, start) = (0, 5 * SECOND_NS);
        for _ in 0..3 {
            state = bucket.take(state, start).expect("the burst");
        }
        assert_eq!(bucket.take(state, start + 2 * SECOND_NS - 1), None);
        state = bucket.take(state, start + 2 * SECOND_NS).expect("one token came back");
        assert_eq!(bucket.take(state, start + 4 * SECOND_NS - 1), None);
        assert!(bucket.take(state, start + 4 * SECOND_NS).is_some());
    }

    #[test]
    fn a_deep_bucket_is_full_after_36_years_at_most() {
        let (daily, now) = (Rate::every(86_400 * SECOND_NS), 5 * SECOND_NS);
        assert_eq!(daily.largest_burst(), 13_344);
        let bucket = TokenBucket::new(daily, u32::MAX);
        let (mut state, mut taken) = (0, 0u64);
        while let Some(next) = bucket.take(state, now) {
            (state, taken) = (next, taken + 1);
        }
        assert_eq!(taken, daily.largest_burst());
        assert_eq!(bucket.weight(state), state, "an arrival time is below 2^61");
        assert_eq!(Rate::OFF.largest_burst(), u64::MAX);
        assert!(Rate::from(1_000).largest_burst() > u64::from(u32::MAX));
    }

    #[test]
    fn off_is_off() {
        assert!(TokenBucket::new(0, 10).is_off());
        assert!(!TokenBucket::new(1, 1).is_off());
        assert!(Window::new(0, MS).is_off());
        assert!(!Window::new(1, MS).is_off());
    }

    #[test]
    fn a_clock_a_moment_behind_forgets_nothing() {
        let window = Window::new(4, 100 * MS);
        let boundary = 7_700 * MS;
        let mut state = 0;
        for _ in 0..3 {
            state = window.take(state, boundary).expect("room");
        }
        assert_eq!(window.take(state, boundary - 1), window.take(state, boundary));
        state = window.take(state, boundary).expect("room");
        assert!(window.is_over(state, boundary - 1));
        assert_eq!(window.take(state, boundary - 1), None);
    }

    #[test]
    fn what_is_past_weighs_nothing() {
        let window = Window::new(4, 90 * MS);
        let start = 7_200 * MS;
        let state = window.take(0, start).and_then(|state| window.take(state, start)).expect("room");
        assert_eq!(window.weight(state, start), 2);
        assert_eq!(window.weight(state, start - 1), 2);
        assert_eq!(window.weight(state, start + 100 * MS - 1), 2);
        assert_eq!(window.weight(state, start + 100 * MS), 0);
        assert_eq!(window.weight(0, start), 0);
    }

    /// Where the estimate that stood here before let a fourth repair pass.
    #[test]
    fn a_fourth_in_two_seconds_is_one_too_many() {
        let window = Window::new(3, 2 * SECOND_NS);
        let mut state = 0;
        for at in [1_700, 1_800, 1_900] {
            state = window.take(state, at * MS).expect("room");
        }
        for at in [2_000, 2_200, 3_000, 3_600, 3_699] {
            assert!(window.is_over(state, at * MS), "at {at} ms");
        }
        // A ninth of the window later than the first of them could.
        assert!(window.take(state, 4_000 * MS).is_some());
    }

    #[test]
    fn a_window_of_a_year() {
        const DAY: u64 = 86_400 * SECOND_NS;
        let window = Window::new(2, 365 * DAY);
        let mut state = 0;
        for at in [DAY, 300 * DAY] {
            state = window.take(state, at).expect("room");
        }
        assert!(window.is_over(state, 300 * DAY) && window.is_over(state, 365 * DAY));
        // A ninth of the window later than the first of them could.
        assert!(!window.is_over(state, 409 * DAY) && !window.is_over(state, 664 * DAY));
        assert_eq!(window.weight(state, 409 * DAY), 1);
    }

    #[test]
    fn the_largest_limit_is_counted_in_full() {
        let window = Window::new(u32::MAX, 100 * MS);
        let mut state = 0;
        for _ in 0..Window::MAX {
            state = window.take(state, SECOND_NS).expect("room");
        }
        assert!(window.is_over(state, SECOND_NS));
        assert_eq!(window.weight(state, SECOND_NS), u64::from(Window::MAX));
        assert!(window.is_over(state, SECOND_NS + 199 * MS));
        assert!(!window.is_over(state, SECOND_NS + 200 * MS));
    }

    proptest! {
        /// GCRA is the token bucket of the text books, which this counts in exact fractions.
        #[test]
        fn bucket_equals_counting_tokens(rate in 1u32..2000, burst in 1u32..50, gaps in prop::collection::vec(0u64..50_000_000, 1..200)) {
            let bucket = TokenBucket::new(rate, burst);
            let interval = SECOND_NS / u64::from(rate);
            let full = interval * u64::from(burst);
            let (mut level, mut state, mut now) = (full, 0u64, 10 * SECOND_NS);
            for gap in gaps {
                now += gap;
                level = (level + gap).min(full);
                let expected = level >= interval;
                if expected { level -= interval; }
                let got = bucket.take(state, now);
                prop_assert_eq!(got.is_some(), expected);
                state = got.unwrap_or(state);
            }
        }

        /// No window of any `max` admits more than that, wherever it begins; an event is counted for a period longer
        /// than the window at most; and a table may compare weights.
        #[test]
        fn no_window_admits_more_than_max(
            max in prop_oneof![1u32..40, 200u32..300, 1_000u32..1_100, 8_190u32..8_194],
            length in 1u64..200 * MS,
            gaps in prop::collection::vec((1usize..300, 0u64..30_000_000), 1..60),
        ) {
            let window = Window::new(max, length);
            let period = length.div_ceil(u64::from(window.periods));
            let (mut state, mut now) = (0u64, 7 * SECOND_NS);
            let mut admitted: Vec<u64> = Vec::new();
            for (events, gap) in gaps {
                now += gap;
                for _ in 0..events {
                    let since = |age: u64| admitted.len() - admitted.partition_point(|at| now - *at >= age);
                    let (in_window, counted) = (since(length), since(length + period));
                    let new = window.take(state, now);
                    prop_assert_eq!(new.is_none(), window.is_over(state, now));
                    prop_assert!(window.weight(state, now) >= in_window as u64);
                    match new {
                        Some(new) => {
                            prop_assert!(in_window < max as usize, "one more than {} in a window", max);
                            state = new;
                            admitted.push(now);
                        }
                        None => prop_assert!(counted >= max as usize, "refused with {} of {}", counted, max),
                    }
                }
            }
        }

        #[test]
        fn any_state_is_survived(state: u64, now: u64, max: u32, window_ns: u64, rate: u32, burst: u32) {
            let window = Window::new(max, window_ns);
            let _ = window.is_over(state, now);
            let _ = window.take(state, now);
            let _ = TokenBucket::new(rate, burst).take(state, now);
        }
    }
}
