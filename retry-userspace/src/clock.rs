//! The clock that kernel and daemon share.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of the monotonic clock, as `bpf_ktime_get_ns` gives them.
pub(crate) fn monotonic_ns() -> u64 {
    // The clock always exists; 0 would only make frames expire late.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

/// A duration as kernel and daemon count it; the longest one when it is longer.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
