//! Which of two frames with one key is kept: the first, until its time is over or its flow has begun anew.
//!
//! A publisher numbers its frames, so a key comes with other bytes only when another host uses it, or when the publisher was started
//! again and counts from the beginning. Such a restart is told apart by three things together: a low number of the flow comes with
//! other bytes; from then on the flow's numbers go up from there, in steps of at most [`STEP`]; and for [`QUIET_NS`] no new number
//! comes from farther ahead, which the publisher would go on with that has not been started again.

use crate::key::FrameKey;

/// The highest number that a flow begins with, and the most numbers that are lost in a row while it goes up.
pub const STEP: u64 = 64;
/// How long a flow has to be silent where it was, nanoseconds.
pub const QUIET_NS: u64 = 1_000_000_000;
/// Flows that may begin anew at the same time; the oldest beginning makes way.
const FLOWS: usize = 64;

/// A flow of which a low number came with other bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Beginning {
    /// The flow; what a place holds whose `since_ns` is 0 is none.
    flow: u64,
    /// Since when, nanoseconds of the monotonic clock.
    since_ns: u64,
    /// Its highest number since then.
    reached: u64,
}

impl Beginning {
    const fn is_next(&self, number: u64) -> bool {
        number <= self.reached.saturating_add(STEP)
    }
}

/// Keeps the first frame of a key.
#[derive(Clone, Debug)]
pub struct FirstWins {
    /// For how long, nanoseconds; 0: the newest frame wins.
    for_ns: u64,
    beginnings: [Beginning; FLOWS],
    /// How many of them there are.
    count: usize,
}

impl FirstWins {
    /// Keeps it for this long, nanoseconds; 0: the newest wins.
    #[must_use]
    pub const fn new(for_ns: u64) -> Self {
        Self { for_ns, beginnings: [Beginning { flow: 0, since_ns: 0, reached: 0 }; FLOWS], count: 0 }
    }

    /// A frame came whose key is new.
    #[inline]
    pub fn is_new(&mut self, key: &FrameKey) {
        if self.count == 0 {
            return;
        }
        let Some(at) = self.find(key.hash_key()) else { return };
        let one = &mut self.beginnings[at];
        if one.is_next(key.seq_num()) {
            one.reached = one.reached.max(key.seq_num());
        } else {
            // The flow goes on where it was: another host sent the low number.
            *one = Beginning::default();
            self.count -= 1;
        }
    }

    /// Whether the frame of this key stays that is held since `since_ns`, when another with other bytes comes.
    pub fn keeps(&mut self, key: &FrameKey, since_ns: u64, now_ns: u64) -> bool {
        // HashKey 0 is no flow: senders that leave it out share their keys.
        if key.hash_key() == 0 || now_ns.saturating_sub(since_ns) >= self.for_ns {
            return false;
        }
        let (flow, number) = (key.hash_key(), key.seq_num());
        match self.find(flow) {
            // It begins once more: what is held came after it began.
            Some(at) if number <= STEP && since_ns >= self.beginnings[at].since_ns => {
                self.beginnings[at] = Beginning { flow, since_ns: now_ns.max(1), reached: number };
                true
            }
            Some(at) => {
                let one = &mut self.beginnings[at];
                let is_next = one.is_next(number);
                if is_next {
                    one.reached = one.reached.max(number);
                }
                !(is_next && since_ns < one.since_ns && now_ns.saturating_sub(one.since_ns) >= QUIET_NS)
            }
            None => {
                if number <= STEP {
                    self.begin(Beginning { flow, since_ns: now_ns.max(1), reached: number });
                }
                true
            }
        }
    }

    fn find(&self, flow: u64) -> Option<usize> {
        self.beginnings.iter().position(|one| one.since_ns != 0 && one.flow == flow)
    }

    fn begin(&mut self, new: Beginning) {
        // A free place has the lowest time.
        if let Some(place) = self.beginnings.iter_mut().min_by_key(|one| one.since_ns) {
            self.count += usize::from(place.since_ns == 0);
            *place = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const LIFE: u64 = 60 * SECOND;

    fn key(number: u64) -> FrameKey {
        FrameKey::new(7, number)
    }

    #[test]
    fn the_first_wins_for_its_time() {
        let mut first = FirstWins::new(10 * SECOND);
        assert!(first.keeps(&key(5_000), 0, 10 * SECOND - 1));
        assert!(!first.keeps(&key(5_000), 0, 10 * SECOND));
        assert!(!FirstWins::new(0).keeps(&key(5_000), SECOND, SECOND), "the newest wins");
        assert!(!first.keeps(&FrameKey::new(0, 5_000), 0, 1), "senders without a HashKey share their keys");
    }

    /// The publisher had come to 500 when it was started again.
    #[test]
    fn a_publisher_that_begins_anew_wins_after_a_second() {
        let mut first = FirstWins::new(LIFE);
        let begun = 5 * SECOND;
        for number in 1..=200 {
            assert!(first.keeps(&key(number), SECOND, begun + number), "{number} within the second");
        }
        // Lost on their way: 201 to 240.
        assert!(!first.keeps(&key(241), SECOND, begun + QUIET_NS + 1));
        // What it has sent since then stays.
        assert!(first.keeps(&key(241), begun + QUIET_NS + 1, begun + QUIET_NS + 2));
        for number in 242..=500 {
            assert!(!first.keeps(&key(number), SECOND, begun + 2 * SECOND), "{number}");
        }
        // Beyond where it had been.
        for number in 501..=600 {
            first.is_new(&key(number));
        }
        assert!(!first.keeps(&key(1), SECOND, begun + 3 * SECOND), "held from before it began");
    }

    #[test]
    fn a_forger_does_not_begin_a_flow_that_goes_on() {
        let mut first = FirstWins::new(LIFE);
        for number in 1..=900 {
            assert!(first.keeps(&key(number), SECOND, 2 * SECOND + number));
        }
        // The publisher's next ones.
        first.is_new(&key(5_000));
        for number in 1..=900 {
            assert!(first.keeps(&key(number), SECOND, 4 * SECOND + number), "{number}");
        }
        // Another flow says nothing of it.
        first.is_new(&FrameKey::new(8, 5_000));
        assert!(!first.keeps(&key(900), SECOND, 6 * SECOND), "silent since then");
    }

    #[test]
    fn numbers_that_are_not_reached_stay() {
        let mut first = FirstWins::new(LIFE);
        assert!(first.keeps(&key(STEP), 1, 2));
        assert!(first.keeps(&key(10_000), 1, 3 * SECOND), "no step of a flow that has begun");
        assert!(!first.keeps(&key(2 * STEP), 1, 3 * SECOND));
        // A number in the middle begins nothing.
        let mut first = FirstWins::new(LIFE);
        assert!(first.keeps(&key(STEP + 1), 1, 2));
        assert!(first.keeps(&key(STEP + 1), 1, 3 * SECOND));
    }

    #[test]
    fn it_begins_once_more() {
        let mut first = FirstWins::new(LIFE);
        assert!(first.keeps(&key(1), 1, SECOND));
        assert!(!first.keeps(&key(1), 1, 2 * SECOND));
        assert!(first.keeps(&key(1), 2 * SECOND, 3 * SECOND));
        assert!(!first.keeps(&key(1), 2 * SECOND, 4 * SECOND));
    }

    #[test]
    fn a_flood_of_beginnings_takes_no_more_room() {
        let mut first = FirstWins::new(LIFE);
        for flow in 1..=1_000 {
            assert!(first.keeps(&FrameKey::new(flow, 1), 1, flow));
        }
        assert_eq!(first.count, FLOWS);
        assert!(first.keeps(&FrameKey::new(1, 1), 1, 10 * SECOND), "forgotten");
        assert!(!first.keeps(&FrameKey::new(1_000, 1), 1, 10 * SECOND));
    }
}
