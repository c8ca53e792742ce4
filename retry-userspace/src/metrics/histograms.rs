//! The histograms that are shown, with their names, labels and bounds.

use retry_common::latency::{Histogram, Measured, middle_ns};

use super::snapshot::Latency;
use crate::latency::Wait;

/// Powers of two, nanoseconds, that bound the classic buckets of what the kernel program takes: 128 ns to 17 ms.
const KERNEL: std::ops::RangeInclusive<u32> = 7..=24;
/// The same for what the daemon does: 1 µs to 17 s.
const USER: std::ops::RangeInclusive<u32> = 10..=34;

/// Native buckets per power of two, as a power of two: 16. The least that keeps all buckets of a [`Histogram`] apart, of which the
/// narrowest is 6.7 % wide: a native one is 4.4 % wide.
pub(crate) const SCHEMA: i32 = 4;

/// Series of one name.
#[derive(Debug)]
pub(crate) struct Family {
    /// The metric's name.
    pub name: &'static str,
    /// The metric's help line.
    pub help: &'static str,
    /// The series.
    pub series: Vec<Series>,
}

/// One histogram.
#[derive(Debug)]
pub(crate) struct Series {
    /// Names and values of its labels.
    pub labels: Vec<(&'static str, &'static str)>,
    /// The numbers.
    pub histogram: Histogram,
    /// Powers of two that bound its classic buckets.
    powers: std::ops::RangeInclusive<u32>,
}

impl Series {
    /// Seconds of all values.
    #[expect(clippy::cast_precision_loss, reason = "exact up to 104 days of measured time")]
    pub(crate) fn sum(&self) -> f64 {
        self.histogram.sum_ns as f64 / 1e9
    }

    /// The classic buckets: bound in seconds, and how many values it has that the bound before has not. The last has no bound.
    #[expect(clippy::cast_precision_loss, reason = "powers of two")]
    pub(crate) fn buckets(&self) -> Vec<(f64, u64)> {
        let mut before = 0;
        let mut next = |up_to: u64| up_to - std::mem::replace(&mut before, up_to);
        let bounded = self.powers.clone().map(|power| {
            let ns = 1u64 << power;
            (ns as f64 / 1e9, next(self.histogram.up_to(ns)))
        });
        let mut buckets: Vec<(f64, u64)> = bounded.collect();
        buckets.push((f64::INFINITY, next(self.histogram.count())));
        buckets
    }

    /// See [`native`].
    pub(crate) fn native(&self) -> Vec<(i32, u64)> {
        native(&self.histogram)
    }
}

/// The native buckets that have values: number and count, in order. Bucket `n` has the times above 2^((n-1)/16) s, up to 2^(n/16) s.
/// All values of a bucket of the histogram are in the native bucket of its middle.
pub(crate) fn native(histogram: &Histogram) -> Vec<(i32, u64)> {
    let filled = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0);
    filled.map(|(bucket, count)| (native_bucket(middle_ns(bucket)), *count)).collect()
}

/// Number of the native bucket of a time.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "1 ns to 17 s: -479 to 66")]
fn native_bucket(ns: u64) -> i32 {
    ((ns as f64 / 1e9).log2() * f64::from(1 << SCHEMA)).ceil() as i32
}

/// All histograms, those of one name together.
pub(crate) fn families(latency: &Latency) -> Vec<Family> {
    let kernel = |one: &Measured| latency.kernel.get(*one as usize).copied().unwrap_or_default();
    let user =
        |what: Wait| latency.user.iter().find(|(one, _)| *one == what).map_or_else(Histogram::default, |(_, h)| *h);
    let series = |labels: &[(&'static str, &'static str)], path, histogram, powers| {
        let labels = labels.iter().copied().chain(path).collect();
        Series { labels, histogram, powers }
    };
    let (in_xdp, by_user) = (Some(("path", "xdp")), Some(("path", "user")));
    let of_nacks = Measured::ALL.iter().filter(|one| **one != Measured::Stored);
    vec![
        Family {
            name: "bre_nack_duration_seconds",
            help: "Time from the look at a NACK in the kernel program until its verdict was carried out there, by verdict and by what \
                   was sent.",
            series: of_nacks.map(|one| series(one.series().1, in_xdp, kernel(one), KERNEL)).collect(),
        },
        Family {
            name: "bre_fill_duration_seconds",
            help: "Time from the arrival of a frame until it was in the frame log.",
            series: vec![
                series(&[], in_xdp, kernel(&Measured::Stored), KERNEL),
                series(&[], by_user, user(Wait::Stored), USER),
            ],
        },
        Family {
            name: "bre_backend_duration_seconds",
            help: "Time that a miss waited for a backend: for the answer of the shared store, or for the frame of an upstream endpoint; \
                   waits that ended without one included.",
            series: vec![
                series(&[("backend", "redis")], None, user(Wait::StoreAsked), USER),
                series(&[("backend", "upstream")], None, user(Wait::Recovered), USER),
            ],
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_buckets_hold_every_value_once() {
        let mut histogram = Histogram::default();
        for ns in [1, 128, 129, 1 << 24, (1 << 24) + 1, u64::MAX / 2] {
            histogram.add(ns, 1);
        }
        let buckets = Series { labels: Vec::new(), histogram, powers: KERNEL }.buckets();
        let filled: Vec<_> = buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(filled, [(1.28e-7, 2), (2.56e-7, 1), (0.016_777_216, 1), (f64::INFINITY, 2)]);
    }
}
