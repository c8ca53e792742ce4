//! How long things took, in histograms of fixed size that the kernel program and the daemon count in.
//!
//! Buckets are log-linear: [`SUB_BUCKETS`] of equal width per power of two. A value differs from the middle of its bucket by at
//! most a sixteenth of itself (6.25 %).

/// Buckets per power of two.
pub const SUB_BUCKETS: u64 = 8;
/// Buckets of a histogram.
pub const BUCKETS: usize = 256;
/// The longest time that is told from longer ones, nanoseconds: 17 s.
pub const LONGEST_NS: u64 = 1 << 34;
/// A NACK that comes sooner than this after the one before on its CPU is measured once in [`ONE_IN`], nanoseconds.
pub const BUSY_NS: u64 = 1 << 16;
/// See [`BUSY_NS`].
pub const ONE_IN: u32 = 16;

/// Odd multiplier of Fibonacci hashing: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const _: () = assert!(bucket(LONGEST_NS) == BUCKETS - 1 && bucket(u64::MAX) == BUCKETS - 1 && ONE_IN.is_power_of_two());

/// One histogram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Histogram {
    /// How many values fell into each bucket.
    pub counts: [u64; BUCKETS],
    /// Sum of the values, nanoseconds.
    pub sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum_ns: 0 }
    }
}

/// The bucket of a time.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "below 256")]
pub const fn bucket(ns: u64) -> usize {
    // Bounds belong to the bucket below them, as those of Prometheus do.
    let value = ns.saturating_sub(1);
    let value = if value < LONGEST_NS { value } else { LONGEST_NS - 1 };
    let shift = 60 - (value | SUB_BUCKETS).leading_zeros();
    (((shift as u64) << 3) + (value >> shift)) as usize
}

/// The longest time of a bucket, nanoseconds; that of the last one is [`LONGEST_NS`], and longer ones are in it too.
pub const fn upper_ns(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * SUB_BUCKETS {
        return bucket + 1;
    }
    let shift = bucket / SUB_BUCKETS - 1;
    (bucket - SUB_BUCKETS * shift + 1) << shift
}

/// The middle of a bucket, nanoseconds.
pub const fn middle_ns(bucket: usize) -> u64 {
    let upper = upper_ns(bucket);
    if bucket == 0 { upper } else { upper_ns(bucket - 1) + (upper - upper_ns(bucket - 1)).div_ceil(2) }
}

impl Histogram {
    /// Counts a time `weight` times.
    #[inline(always)]
    pub fn add(&mut self, ns: u64, weight: u64) {
        if let Some(count) = self.counts.get_mut(bucket(ns)) {
            *count += weight;
        }
        self.sum_ns += ns * weight;
    }

    /// The sum of two histograms, as of two CPUs.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = mine.wrapping_add(*theirs);
        }
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        self
    }

    /// How many values it has.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many values are at most `ns`, a bound of a bucket.
    pub fn up_to(&self, ns: u64) -> u64 {
        self.counts.iter().take(bucket(ns) + 1).sum()
    }

    /// The middle of the bucket that holds this share of the values, counted from the shortest: 0.99 is the 99th percentile.
    /// `None` without values.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        let wanted = self.count() as f64 * share;
        let mut seen = 0;
        let holds = |count: &u64| {
            seen += count;
            seen > 0 && seen as f64 >= wanted
        };
        self.counts.iter().position(holds).map(middle_ns)
    }
}

/// True for one time in `one_in`, by its hash; always for 0 and 1.
#[inline(always)]
pub const fn is_drawn(ns: u64, one_in: u32) -> bool {
    (ns.wrapping_mul(GOLDEN) >> 32) * one_in as u64 <= u32::MAX as u64
}

/// How often something that began at `now_ns` counts, when the one before began at `last_ns`: 0 when it is not measured.
///
/// To read the clock once more takes some percent of a hit. So where NACKs come densely, one in [`ONE_IN`] is measured, and
/// counts that often; which one, follows from a hash of the time, which no sender can aim at. Others are all measured. The
/// share that is measured is known before it is measured, so the sums are right on average.
#[inline(always)]
pub const fn weight(now_ns: u64, last_ns: u64) -> u64 {
    if now_ns.wrapping_sub(last_ns) >= BUSY_NS {
        1
    } else if is_drawn(now_ns, ONE_IN) {
        ONE_IN as u64
    } else {
        0
    }
}

macro_rules! measured {
    ($($variant:ident = $metric:literal [$($label:ident = $value:literal),*];)*) => {
        /// What the kernel program measures: an entry of its map of histograms.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[repr(u32)]
        pub enum Measured { $(#[doc = concat!($metric, " ", $(stringify!($label), "=", $value, " "),*)] $variant,)* }

        impl Measured {
            /// All of them, in the order of the map.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name of the metric and the labels of the series, without `path`.
            pub const fn series(self) -> (&'static str, &'static [(&'static str, &'static str)]) {
                match self { $(Self::$variant => ($metric, &[$((stringify!($label), $value),)*]),)* }
            }
        }
    };
}

measured! {
    InPlace = "bre_nack_duration_seconds" [verdict = "hit", sent = "in_place"];
    Clones = "bre_nack_duration_seconds" [verdict = "hit", sent = "clones"];
    Ack = "bre_nack_duration_seconds" [verdict = "hit", sent = "ack"];
    Miss = "bre_nack_duration_seconds" [verdict = "miss", sent = "answer"];
    Throttled = "bre_nack_duration_seconds" [verdict = "throttled", sent = "answer"];
    Silence = "bre_nack_duration_seconds" [verdict = "silence", sent = "nothing"];
    HandedOver = "bre_nack_duration_seconds" [verdict = "handed_over", sent = "event"];
    PassedOn = "bre_nack_duration_seconds" [verdict = "handed_over", sent = "packet"];
    Failed = "bre_nack_duration_seconds" [verdict = "failed", sent = "nothing"];
    Stored = "bre_fill_duration_seconds" [];
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_time_is_within_a_sixteenth_of_the_middle_of_its_bucket() {
        let mut ns = 1u64;
        while ns < LONGEST_NS {
            let middle = middle_ns(bucket(ns));
            assert!(middle.abs_diff(ns) * 16 <= ns.max(16), "{ns} ns in a bucket around {middle} ns");
            ns += ns / 97 + 1;
        }
    }

    #[test]
    fn a_bound_is_the_last_time_of_its_bucket() {
        for i in 0..BUCKETS {
            let upper = upper_ns(i);
            assert_eq!((bucket(upper), bucket(upper + 1)), (i, (i + 1).min(BUCKETS - 1)), "{upper}");
        }
        assert_eq!(bucket(0), 0);
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ns(0.5), None);
        for ns in 1..=1000 {
            histogram.add(ns, 3);
        }
        assert_eq!((histogram.count(), histogram.sum_ns, histogram.up_to(512)), (3000, 3 * 500_500, 3 * 512));
        for (share, right) in [(0.0, 1), (0.5, 500), (0.99, 990), (1.0, 1000)] {
            let seen = histogram.quantile_ns(share).expect("values");
            assert!(seen.abs_diff(right) * 16 <= right.max(16), "{share}: {seen} ns for {right} ns");
        }
        assert_eq!(histogram.plus(&histogram).count(), 6000);
    }

    /// Dense ones count as often as they are, within the noise of drawing lots.
    #[test]
    fn what_is_left_out_is_counted_for() {
        for gap in [300u64, 777, 1_000, 4_096] {
            let (mut last, mut now, mut sum) = (0u64, 1_000_000_007u64, 0);
            for i in 0..100_000u64 {
                sum += weight(now, last);
                last = now;
                now += gap + i % 13;
            }
            assert!((95_000..105_000).contains(&sum), "{sum} of 100000, {gap} ns apart");
        }
        assert_eq!(weight(BUSY_NS, 0), 1);
    }

    #[test]
    fn each_is_a_series_of_its_own() {
        let all: Vec<_> = Measured::ALL.iter().map(|one| one.series()).collect();
        for (i, one) in all.iter().enumerate() {
            assert!(all.iter().skip(i + 1).all(|other| other != one), "{one:?} twice");
            assert_eq!(Measured::ALL.get(i).map(|one| *one as usize), Some(i));
        }
    }
}
