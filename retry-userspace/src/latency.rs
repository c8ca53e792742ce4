//! How long the daemon's own work took: histograms that outlive it, as its counters do.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use retry_common::abi::UserHistograms;
use retry_common::latency::{BUCKETS, Histogram, bucket};

use crate::framelog::Memory;

/// What the daemon measures.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum Wait {
    /// From a frame's arrival at the daemon until it is in the frame log.
    Stored = offset_of!(UserHistograms, stored),
    /// From a miss until the shared store has answered, or failed.
    StoreAsked = offset_of!(UserHistograms, store_asked),
    /// From the start of a recovery until the frame came, or the recovery was given up.
    Recovered = offset_of!(UserHistograms, recovered),
}

impl Wait {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stored, Self::StoreAsked, Self::Recovered];

    /// Number of the histogram's first word.
    const fn first_word(self) -> usize {
        self as usize / size_of::<u64>()
    }
}

/// Words of all histograms.
const WORDS: usize = size_of::<UserHistograms>() / size_of::<u64>();

/// The daemon's histograms.
#[derive(Debug)]
pub(crate) struct UserLatency {
    words: Words,
    is_on: bool,
}

/// Where the words stand.
#[derive(Debug)]
enum Words {
    /// In this process.
    Own(Vec<AtomicU64>),
    /// In a map that outlives it.
    Pinned(Memory),
}

impl Default for UserLatency {
    fn default() -> Self {
        Self { words: Words::Own((0..WORDS).map(|_| AtomicU64::new(0)).collect()), is_on: true }
    }
}

impl UserLatency {
    /// Counts on in `words`, as long as a [`UserHistograms`].
    pub(crate) const fn over(words: Memory) -> Self {
        Self { words: Words::Pinned(words), is_on: true }
    }

    /// As it is, and measures only with `is_on`.
    #[must_use]
    pub(crate) fn switched(self, is_on: bool) -> Self {
        Self { is_on, ..self }
    }

    /// True unless `-latency-histograms=false`.
    pub(crate) const fn is_on(&self) -> bool {
        self.is_on
    }

    fn word(&self, number: usize) -> Option<&AtomicU64> {
        match &self.words {
            Words::Own(words) => words.get(number),
            Words::Pinned(words) => Some(words.word(number * size_of::<u64>())),
        }
    }

    fn add(&self, number: usize, value: u64) {
        if let Some(word) = self.word(number) {
            word.fetch_add(value, Ordering::Relaxed);
        }
    }

    /// Counts a time, nanoseconds, `times` times.
    pub(crate) fn took(&self, what: Wait, ns: u64, times: u64) {
        if self.is_on && times > 0 {
            self.add(what.first_word() + bucket(ns), times);
            self.add(what.first_word() + BUCKETS, ns.saturating_mul(times));
        }
    }

    /// One of them, at one time or nearly.
    pub(crate) fn snapshot(&self, what: Wait) -> Histogram {
        let value = |number| self.word(what.first_word() + number).map_or(0, |word| word.load(Ordering::Relaxed));
        let mut histogram = Histogram { sum_ns: value(BUCKETS), ..Histogram::default() };
        for (number, count) in histogram.counts.iter_mut().enumerate() {
            *count = value(number);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_counted_by_itself_and_goes_on_in_kept_words() {
        let pages = || Memory::plain(size_of::<UserHistograms>()).expect("pages");
        let latency = UserLatency::over(pages());
        latency.took(Wait::StoreAsked, 5_000, 2);
        let Words::Pinned(kept) = latency.words else { unreachable!("pinned") };
        let next = UserLatency::over(kept);
        next.took(Wait::StoreAsked, 5_000, 1);
        next.took(Wait::Stored, 70, 1);
        let seen = |what| (next.snapshot(what).count(), next.snapshot(what).sum_ns);
        assert_eq!(Wait::ALL.map(seen), [(1, 70), (3, 15_000), (0, 0)]);
        let off = UserLatency::over(pages()).switched(false);
        off.took(Wait::Stored, 70, 1);
        assert_eq!(off.snapshot(Wait::Stored).count(), 0);
    }
}
