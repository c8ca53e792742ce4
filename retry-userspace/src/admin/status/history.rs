//! What was counted in the last minutes, so that a rate can be told without Prometheus.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use retry_common::counter::{Counter, Counters};
use retry_common::latency::{Histogram, Measured};

use super::StatusSource;
use crate::metrics::Snapshot;

/// Between two samples.
const EVERY: Duration = Duration::from_secs(10);
/// How far back growth is told: the window of the alerts in docs/operations.md.
const WINDOW: Duration = Duration::from_secs(300);

/// The counters of one time.
#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    kernel: Counters,
    user: Counters,
    /// Packets of the kernel program that no driver took.
    lost: u64,
    /// How long the kernel program took per NACK; where that is measured.
    took: Option<Box<Histogram>>,
}

impl Sample {
    fn of(snapshot: &Snapshot, at: Instant) -> Self {
        let lost = snapshot.delivered.iter().map(|(_, sent)| sent.drops).sum();
        let took = snapshot.latency.as_ref().filter(|latency| !latency.kernel.is_empty()).map(|latency| {
            let of_nacks = Measured::ALL.iter().zip(&latency.kernel).filter(|(one, _)| **one != Measured::Stored);
            Box::new(of_nacks.fold(Histogram::default(), |sum, (_, one)| sum.plus(one)))
        });
        Self { at, kernel: snapshot.kernel, user: snapshot.user, lost, took }
    }
}

/// Samples of the last five minutes: 31 at most.
#[derive(Debug, Default)]
pub(in crate::admin) struct History(Mutex<VecDeque<Sample>>);

impl History {
    fn keep(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = sample.at;
        samples.push_back(sample);
        while samples.front().is_some_and(|oldest| since.saturating_duration_since(oldest.at) > WINDOW) {
            samples.pop_front();
        }
    }

    /// What `snapshot` has counted since the oldest sample; nothing while there is none.
    pub(super) fn growth(&self, snapshot: &Snapshot) -> Growth {
        let now = Sample::of(snapshot, Instant::now());
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let then = samples.front().cloned().unwrap_or_else(|| now.clone());
        Growth { then, now }
    }
}

/// What was counted between two times.
#[derive(Clone, Debug)]
pub(super) struct Growth {
    then: Sample,
    now: Sample,
}

impl Growth {
    /// How much a counter grew on both paths.
    pub(super) fn of(&self, counter: Counter) -> u64 {
        let sum = |sample: &Sample| sample.kernel.get(counter).saturating_add(sample.user.get(counter));
        sum(&self.now).saturating_sub(sum(&self.then))
    }

    /// Packets of the kernel program that were lost at an interface.
    pub(super) const fn lost(&self) -> u64 {
        self.now.lost.saturating_sub(self.then.lost)
    }

    /// How long the kernel program took per NACK between the two times; `None` where that is not measured.
    pub(super) fn took(&self) -> Option<Histogram> {
        let (now, then) = (self.now.took.as_deref()?, self.then.took.as_deref());
        let mut grown = *now;
        for (count, before) in grown.counts.iter_mut().zip(then.unwrap_or(&Histogram::default()).counts) {
            *count = count.saturating_sub(before);
        }
        Some(grown)
    }

    /// Between the two times.
    pub(super) fn window(&self) -> Duration {
        self.now.at.saturating_duration_since(self.then.at)
    }
}

/// Takes a sample every ten seconds, for good.
pub(in crate::admin) async fn keep(history: Arc<History>, source: Arc<dyn StatusSource>) {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        history.keep(Sample::of(&source.snapshot(), Instant::now()));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// As much as `now` has counted more than `then`, within a minute.
    pub(in crate::admin::status) fn between(then: &Snapshot, now: &Snapshot) -> Growth {
        let at = Instant::now();
        Growth { then: Sample::of(then, at), now: Sample::of(now, at + Duration::from_secs(60)) }
    }

    #[test]
    fn five_minutes_are_kept_and_growth_is_since_the_oldest() {
        let history = History::default();
        let counted =
            |hits| Snapshot { user: Counters { cache_hits: hits, ..Counters::default() }, ..Snapshot::default() };
        assert_eq!(history.growth(&counted(7)).of(Counter::CacheHits), 0, "nothing is known of before");
        let start = Instant::now();
        for step in 0..=40_u32 {
            history.keep(Sample::of(&counted(u64::from(step)), start + EVERY * step));
        }
        assert_eq!(history.0.lock().expect("no panic").len(), 31);
        assert_eq!(history.growth(&counted(100)).of(Counter::CacheHits), 90, "since the sample of 300 s ago");
    }
}
