//! What a listener counts.

use std::fmt;

use hdrhistogram::Histogram;
use retry_common::key::FrameKey;

/// Complaints and identities that are kept in full; further ones are only counted.
const KEPT: usize = 50;

/// Times in microseconds, 1 to 60 million, to three digits.
#[derive(Clone)]
pub struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, 60_000_000, 3);
        Self(histogram.expect("bounds and digits are in the histogram's range"))
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99, max) = (self.quantile(0.5), self.quantile(0.99), self.max());
        write!(f, "{} times, p50 {p50}, p99 {p99}, max {max} µs", self.len())
    }
}

impl Latency {
    /// Adds a time; one out of range counts as the nearest in range.
    pub fn record(&mut self, microseconds: u64) {
        self.0.saturating_record(microseconds);
    }

    /// Adds another's times.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// The time that this share (0 to 1) of all times does not exceed; 0 when there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    /// The longest time; 0 when there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.0.max()
    }

    /// How many times.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Counts of one listener, or of several after [`Stats::add`].
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Datagrams with a frame that came by multicast, repairs and repetitions included.
    pub received: u64,
    /// Frames that had been received before.
    pub duplicates: u64,
    /// Gaps that did not fill by themselves: each is one frame that this listener lost.
    pub lost: u64,
    /// Gaps that filled by themselves, before or after a NACK was sent.
    pub late: u64,
    /// Gaps that are being worked on now.
    pub open: u64,
    /// NACKs sent.
    pub nacks: u64,
    /// ACKs received.
    pub acks: u64,
    /// MISSes received.
    pub misses: u64,
    /// NACKs sent to the next endpoint because of a MISS.
    pub escalations: u64,
    /// THROTTLEDs received.
    pub throttled: u64,
    /// NACKs that nothing came back for in time.
    pub silent: u64,
    /// ACKs whose frame did not come in time.
    pub broken_promises: u64,
    /// Lost frames that came back by unicast first.
    pub recovered_unicast: u64,
    /// Lost frames that came back by multicast first.
    pub recovered_multicast: u64,
    /// Lost frames that were given up.
    pub unrecovered: u64,
    /// Of these, frames that the endpoint said it does not have.
    pub missed: u64,
    /// Frames with other bytes than were published, or that never were.
    pub wrong_bytes: u64,
    /// Datagrams to a NACK's socket that are neither its frame nor a valid answer to it.
    pub bad_answers: u64,
    /// From a lost frame's first NACK to the frame, in microseconds; frames that another listener's NACK brought are not in it.
    pub latency: Latency,
    /// The first frames that were given up.
    pub unrecovered_keys: Vec<FrameKey>,
    /// The first wrong frames and bad answers, in words.
    pub complaints: Vec<String>,
}

impl Stats {
    /// Lost frames that came back.
    #[must_use]
    pub const fn recovered(&self) -> u64 {
        self.recovered_unicast + self.recovered_multicast
    }

    /// Adds another listener's counts.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.received, other.received),
            (&mut self.duplicates, other.duplicates),
            (&mut self.lost, other.lost),
            (&mut self.late, other.late),
            (&mut self.open, other.open),
            (&mut self.nacks, other.nacks),
            (&mut self.acks, other.acks),
            (&mut self.misses, other.misses),
            (&mut self.escalations, other.escalations),
            (&mut self.throttled, other.throttled),
            (&mut self.silent, other.silent),
            (&mut self.broken_promises, other.broken_promises),
            (&mut self.recovered_unicast, other.recovered_unicast),
            (&mut self.recovered_multicast, other.recovered_multicast),
            (&mut self.unrecovered, other.unrecovered),
            (&mut self.missed, other.missed),
            (&mut self.wrong_bytes, other.wrong_bytes),
            (&mut self.bad_answers, other.bad_answers),
        ] {
            *sum += more;
        }
        self.latency.add(&other.latency);
        for key in &other.unrecovered_keys {
            self.give_up(*key);
        }
        for complaint in &other.complaints {
            self.complain(complaint.clone());
        }
    }

    pub(super) fn give_up(&mut self, key: FrameKey) {
        if self.unrecovered_keys.len() < KEPT {
            self.unrecovered_keys.push(key);
        }
    }

    pub(super) fn complain(&mut self, words: String) {
        if self.complaints.len() < KEPT {
            self.complaints.push(words);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stats;

    #[test]
    fn two_listeners_add_up() {
        let mut one = Stats { lost: 2, recovered_unicast: 1, ..Stats::default() };
        let mut other = Stats { lost: 3, recovered_multicast: 2, ..Stats::default() };
        one.latency.record(100);
        other.latency.record(300);
        other.complain("x".to_owned());
        one.add(&other);
        assert_eq!((one.lost, one.recovered(), one.latency.len()), (5, 3, 2));
        assert_eq!(one.complaints, ["x"]);
    }
}
