//! The counters of the daemon's own path.

use std::sync::atomic::{AtomicU64, Ordering};

use retry_common::counter::{Counter, Counters};

/// One word for each [`Counter`].
#[derive(Debug)]
pub struct UserCounters(Vec<AtomicU64>);

impl Default for UserCounters {
    fn default() -> Self {
        Self(Counter::ALL.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

impl UserCounters {
    /// Counts one.
    pub fn one(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Counts `many`.
    pub fn add(&self, counter: Counter, many: u64) {
        if let Some(place) = self.0.get(counter as usize) {
            place.fetch_add(many, Ordering::Relaxed);
        }
    }

    /// Adds what one thread has counted by itself: one atomic step for many.
    pub fn add_all(&self, tally: &Counters) {
        for (counter, place) in Counter::ALL.iter().zip(&self.0) {
            match tally.get(*counter) {
                0 => {}
                many => _ = place.fetch_add(many, Ordering::Relaxed),
            }
        }
    }

    /// All of them at one time, or nearly.
    pub fn snapshot(&self) -> Counters {
        let mut block = Counters::default();
        for (counter, place) in Counter::ALL.iter().zip(&self.0) {
            *block.get_mut(*counter) = place.load(Ordering::Relaxed);
        }
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_counter_has_its_own_word() {
        let counters = UserCounters::default();
        for (i, counter) in (1u64..).zip(Counter::ALL) {
            counters.add(*counter, i);
        }
        let block = counters.snapshot();
        for (i, counter) in (1u64..).zip(Counter::ALL) {
            assert_eq!(block.get(*counter), i);
        }
    }
}
