//! Rate limits as integer arithmetic: a state word and a time in, a verdict and a state word out.
//!
//! Both limits keep their whole state in one `u64`, so that a single compare-exchange updates it, in the kernel and in
//! userspace alike. A state of 0 is a limit that has not been used yet. Times are nanoseconds of the monotonic clock.

/// Nanoseconds in a second.
const SECOND_NS: u64 = 1_000_000_000;

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
    /// `rate` tokens a second, at most `burst` at once (0 counts as 1). A rate of 0 switches the limit off.
    pub const fn new(rate: u32, burst: u32) -> Self {
        if rate == 0 {
            return Self { interval_ns: 0, depth_ns: 0 };
        }
        let interval_ns = SECOND_NS / rate as u64;
        Self { interval_ns, depth_ns: interval_ns.saturating_mul(burst.saturating_sub(1) as u64) }
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

/// At most `max` events in any window, estimated from the counts of the present and the previous period.
///
/// The state packs the period's number (24 bits) and the counts of the previous and the present period (20 bits each),
/// so `max` is at most [`Window::MAX`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Window {
    /// Length of a period in nanoseconds, never 0.
    window_ns: u64,
    /// Events allowed in a window; 0 = the limit is off.
    max: u64,
}

const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const PERIOD_MASK: u64 = (1 << 24) - 1;

impl Window {
    /// The largest count that a state can hold.
    pub const MAX: u32 = 1_000_000;

    /// `max` events (at most [`Window::MAX`]) a window. A `max` of 0 switches the limit off.
    pub const fn new(max: u32, window_ns: u64) -> Self {
        let max = if max > Self::MAX { Self::MAX } else { max };
        Self { window_ns: if window_ns == 0 { 1 } else { window_ns }, max: max as u64 }
    }

    /// True when the limit is off.
    #[inline(always)]
    pub const fn is_off(&self) -> bool {
        self.max == 0
    }

    /// True when one more event at `now_ns` would be too many.
    #[inline(always)]
    pub const fn is_over(&self, state: u64, now_ns: u64) -> bool {
        self.is_full(&self.roll(state, now_ns))
    }

    /// The new state after one more event at `now_ns`, `None` when it would be one too many.
    #[inline(always)]
    pub const fn take(&self, state: u64, now_ns: u64) -> Option<u64> {
        let rolled = self.roll(state, now_ns);
        if self.is_full(&rolled) {
            return None;
        }
        let (period, previous, present, _) = rolled;
        Some((period << (2 * COUNT_BITS)) | (previous << COUNT_BITS) | (present + 1))
    }

    /// `rolled` is what [`Window::roll`] returns. A full window has no room for one more, so a count never passes
    /// [`Window::MAX`].
    #[inline(always)]
    const fn is_full(&self, rolled: &(u64, u64, u64, u64)) -> bool {
        let (_, previous, present, elapsed_ns) = *rolled;
        // The share of the previous period that is still in the window, and the present count, reach `max`: both sides times
        // the length, because a division takes longer. Below 2^20 × 2^42: a window is at most an hour.
        previous * self.window_ns.saturating_sub(elapsed_ns) >= self.max.saturating_sub(present) * self.window_ns
    }

    /// What would be forgotten with `state`, to be compared: the events that may still count at `now_ns`. Below 2^21.
    ///
    /// Without a branch, for [`crate::table`].
    #[inline(always)]
    pub const fn weight(&self, state: u64, now_ns: u64) -> u64 {
        let period = match now_ns.checked_div(self.window_ns) {
            Some(number) => number & PERIOD_MASK,
            None => 0,
        };
        // 0 to 2 are the next period, of a CPU whose clock is ahead, the present and the previous one.
        let age = (period + 1).wrapping_sub(state >> (2 * COUNT_BITS)) & PERIOD_MASK;
        let counts = age.wrapping_sub(3) >> 63;
        ((state & COUNT_MASK) + ((state >> COUNT_BITS) & COUNT_MASK)) * counts
    }

    /// (period, previous count, present count, nanoseconds into the period) at `now_ns`.
    #[inline(always)]
    const fn roll(&self, state: u64, now_ns: u64) -> (u64, u64, u64, u64) {
        let number = match now_ns.checked_div(self.window_ns) {
            Some(number) => number,
            None => 0,
        };
        let elapsed_ns = now_ns - number * self.window_ns;
        let period = number & PERIOD_MASK;
        let last = state >> (2 * COUNT_BITS);
        let present = state & COUNT_MASK;
        if last == period {
            (period, (state >> COUNT_BITS) & COUNT_MASK, present, elapsed_ns)
        } else if (last + 1) & PERIOD_MASK == period {
            (period, present, 0, elapsed_ns)
        } else if (period + 1) & PERIOD_MASK == last && state != 0 {
            // Another CPU looked at the clock a moment after we did, in the next period, and has counted there.
            (last, (state >> COUNT_BITS) & COUNT_MASK, present, 0)
        } else {
            (period, 0, 0, elapsed_ns)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
        let window = Window::new(4, 100 * MS);
        let start = 7_700 * MS;
        let state = window.take(0, start).and_then(|state| window.take(state, start)).expect("room");
        assert_eq!(window.weight(state, start), 2);
        assert_eq!(window.weight(state, start - 1), 2);
        assert_eq!(window.weight(state, start + 199 * MS), 2);
        assert_eq!(window.weight(state, start + 200 * MS), 0);
        assert_eq!(window.weight(0, start), 0);
    }

    #[test]
    fn window_allows_max_and_slides() {
        let window = Window::new(4, 100 * MS);
        let start = 1_000 * MS;
        let mut state = 0;
        for _ in 0..4 {
            assert!(!window.is_over(state, start));
            state = window.take(state, start).expect("room");
        }
        assert!(window.is_over(state, start));
        // Halfway through the next period half of the old ones still count.
        assert!(window.is_over(state, start + 100 * MS));
        assert!(!window.is_over(state, start + 150 * MS));
        state = window.take(state, start + 150 * MS).expect("room");
        state = window.take(state, start + 150 * MS).expect("room");
        assert!(window.is_over(state, start + 150 * MS));
        assert!(!window.is_over(state, start + 400 * MS));
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

        /// No period ever sees more than `max` events, whatever the arrival times.
        #[test]
        fn window_never_exceeds_max_in_a_period(max in 1u32..40, gaps in prop::collection::vec(0u64..30_000_000, 1..400)) {
            let length = 100 * MS;
            let window = Window::new(max, length);
            let (mut state, mut now) = (0u64, 7 * SECOND_NS);
            let (mut period, mut taken) = (0, 0);
            for gap in gaps {
                now += gap;
                if now / length != period { period = now / length; taken = 0; }
                let new = window.take(state, now);
                prop_assert_eq!(new.is_none(), window.is_over(state, now));
                if let Some(new) = new {
                    state = new;
                    taken += 1;
                }
                prop_assert!(taken <= max);
            }
        }

        #[test]
        fn any_state_is_survived(state: u64, now: u64, max: u32, window_ns: u64, rate: u32, burst: u32) {
            let window = Window::new(max, window_ns % (3600 * SECOND_NS));
            let _ = window.is_over(state, now);
            let _ = window.take(state, now);
            let _ = TokenBucket::new(rate, burst).take(state, now);
        }
    }
}
