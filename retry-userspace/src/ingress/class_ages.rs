//! How old the oldest frame of each class is.
//!
//! A lane of the frame log holds several classes, and looking for the oldest record of one would mean to read the others.
//! So the fill notes from time to time that a frame of a class is stored. A lane drops its records in their order: what was
//! stored after the lane's oldest record is still there, unless its life is over.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use retry_common::wire::frame::Class;

/// Marks of one life. Ages are told to within a life divided by this.
const MARKS_PER_LIFE: u64 = 128;
/// Marks kept of a class: lives that are given with a frame may differ from the class's.
const MOST_MARKS: usize = 1_024;

/// When frames of each class were stored.
#[derive(Debug, Default)]
pub(crate) struct ClassAges {
    /// The next mark of each class, nanoseconds of the monotonic clock: before it nothing is noted.
    next_ns: [AtomicU64; Class::ALL.len()],
    marks: Mutex<[VecDeque<Mark>; Class::ALL.len()]>,
}

/// A frame that was stored. Those of the class that followed until the next mark may be younger by `spacing_ns`.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at_ns: u64,
    life_ns: u64,
    spacing_ns: u64,
}

impl ClassAges {
    /// A frame of `class` is stored for `life_ms`.
    pub(crate) fn note(&self, class: Class, life_ms: u32, now_ns: u64) {
        let next = class as usize;
        if now_ns < self.next_ns[next].load(Ordering::Relaxed) {
            return;
        }
        let life_ns = u64::from(life_ms) * 1_000_000;
        let spacing_ns = life_ns / MARKS_PER_LIFE;
        self.next_ns[next].store(now_ns.saturating_add(spacing_ns), Ordering::Relaxed);
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = &mut marks[next];
        marks.push_back(Mark { at_ns: now_ns, life_ns, spacing_ns });
        if marks.len() > MOST_MARKS {
            marks.pop_front();
        }
    }

    /// Age of the oldest frame of `class`, where the oldest of its lane has `lane_age`.
    pub(crate) fn oldest(&self, class: Class, lane_age: Duration, now_ns: u64) -> Duration {
        let lane_ns = crate::clock::nanoseconds(lane_age);
        // Empty, or looked at in the millisecond in which its first frame came: its mark stays.
        if lane_ns == 0 {
            return Duration::ZERO;
        }
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = &mut marks[class as usize];
        // A mark stands for the frames until the next one: it goes when none of them is left.
        while let Some(first) = marks.front() {
            let last_ns = marks.get(1).map_or(first.at_ns.saturating_add(first.spacing_ns), |next| next.at_ns);
            let youngest_ns = now_ns.saturating_sub(last_ns);
            if youngest_ns <= lane_ns && youngest_ns < first.life_ns {
                let oldest_ns = now_ns.saturating_sub(first.at_ns).min(lane_ns).min(first.life_ns);
                return Duration::from_nanos(oldest_ns);
            }
            marks.pop_front();
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn seconds(duration: Duration) -> f64 {
        duration.as_secs_f64()
    }

    #[test]
    fn each_class_has_an_age_of_its_own() {
        let ages = ClassAges::default();
        // Blocks for 20 s, then anchors only, in one lane.
        for at in 0..40 {
            let class = if at < 20 { Class::Block } else { Class::Anchor };
            ages.note(class, 600_000, at * SECOND);
        }
        let now = 40 * SECOND;
        let lane = Duration::from_secs(40);
        let of = |class, lane| seconds(ages.oldest(class, lane, now));
        assert!((of(Class::Block, lane) - 40.0).abs() < 5.0);
        assert!((of(Class::Anchor, lane) - 20.0).abs() < 5.0);
        assert_eq!(ages.oldest(Class::Tx, lane, now), Duration::ZERO);
        // The ring came round: what it holds is 30 s old, and then 10 s.
        assert!((of(Class::Block, Duration::from_secs(30)) - 30.0).abs() < 5.0);
        assert_eq!(ages.oldest(Class::Block, Duration::from_secs(10), now), Duration::ZERO);
        assert!((of(Class::Anchor, Duration::from_secs(10)) - 10.0).abs() < 5.0);
        assert_eq!(ages.oldest(Class::Anchor, Duration::ZERO, now), Duration::ZERO, "an empty lane");
    }

    #[test]
    fn a_look_at_the_first_moment_loses_no_mark() {
        let ages = ClassAges::default();
        ages.note(Class::Tx, 60_000, SECOND);
        assert_eq!(ages.oldest(Class::Tx, Duration::ZERO, SECOND), Duration::ZERO);
        assert_eq!(ages.oldest(Class::Tx, Duration::from_secs(1), 2 * SECOND), Duration::from_secs(1));
    }

    #[test]
    fn no_frame_is_older_than_its_life() {
        let ages = ClassAges::default();
        for at in 0..120 {
            ages.note(Class::Tx, 60_000, at * SECOND);
        }
        // BEEF objects that live longer hold the lane's old end.
        let lane = Duration::from_secs(300);
        let age = seconds(ages.oldest(Class::Tx, lane, 120 * SECOND));
        assert!((58.0..=60.0).contains(&age), "{age}");
        assert_eq!(ages.oldest(Class::Tx, lane, 200 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_flood_leaves_few_marks() {
        let ages = ClassAges::default();
        for at in 0..100_000 {
            ages.note(Class::Tx, 60_000, at * SECOND / 1_000);
        }
        assert!(ages.marks.lock().expect("no panic")[0].len() <= 256);
        for at in 100_000..200_000 {
            ages.note(Class::Tx, 1, at * SECOND);
        }
        assert!(ages.marks.lock().expect("no panic")[0].len() <= MOST_MARKS);
    }
}
