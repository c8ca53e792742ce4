//! How much of each lane is kept free ahead of the kernel program, which stores frames while no daemon follows it: the
//! daemon was restarted, has crashed, or is held up. Once the room is used, frames go to no cache.
//!
//! What is kept free is memory that holds no frame, so it follows the rate at which frames come: 120,000 frames of 400 bytes per
//! second are 54 MB per second.

use retry_common::position;

/// Slots that are kept free at any rate: 8 MiB, or a sixteenth of a small lane. 8 MiB are 12 ms of frames of 400 bytes at 1.5
/// million per second: the follower's longest pause is 8 ms.
const LEAST_SLOTS: u32 = (8 << 20) / 64;
const LEAST_SHARE: u32 = 16;
/// An end that was not foreseen: a new process serves after about a second.
const UNFORESEEN_S: u64 = 2;
const UNFORESEEN_SHARE: u32 = 8;
/// An end that was: the next process may be another version, or be started by hand.
const FORESEEN_S: u64 = 10;
const FORESEEN_SHARE: u32 = 4;
/// Between two measurements of the rate, and over how long it is smoothed, nanoseconds.
const SAMPLE_NS: u64 = 100_000_000;
const SMOOTHED_NS: u64 = 2 * SECOND_NS;
/// A pause counts for this long at most, nanoseconds.
const LONGEST_NS: u64 = 10 * SECOND_NS;
const SECOND_NS: u64 = 1_000_000_000;

/// The rate at which each lane fills, and the room that it asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoomAhead {
    /// When the lanes were last looked at, and where they stood.
    last: Option<(u64, [u64; 2])>,
    /// Slots per second.
    rates: [u64; 2],
    /// There was a measurement.
    is_measured: bool,
}

impl RoomAhead {
    pub(super) const fn new() -> Self {
        Self { last: None, rates: [0; 2], is_measured: false }
    }

    /// Takes in where the lanes of `lane_slots` slots stand at `now_ns`.
    pub(super) fn measure(&mut self, positions: [u64; 2], lane_slots: [u32; 2], now_ns: u64) {
        let Some((since_ns, before)) = self.last else {
            self.last = Some((now_ns, positions));
            return;
        };
        let passed_ns = now_ns.saturating_sub(since_ns);
        if passed_ns < SAMPLE_NS {
            return;
        }
        for (lane, rate) in self.rates.iter_mut().enumerate() {
            let slots = slots_between(before[lane], positions[lane], lane_slots[lane]);
            let sample = slots.saturating_mul(SECOND_NS) / passed_ns;
            let weight = passed_ns.min(LONGEST_NS);
            let sum = rate.saturating_mul(SMOOTHED_NS).saturating_add(sample.saturating_mul(weight));
            *rate = if self.is_measured { sum / (SMOOTHED_NS + weight) } else { sample };
        }
        (self.last, self.is_measured) = (Some((now_ns, positions)), true);
    }

    /// Slots to be free in each lane at any time.
    pub(super) fn wanted(&self, lane_slots: [u32; 2]) -> [u32; 2] {
        let least = lane_slots.map(|slots| LEAST_SLOTS.min(slots / LEAST_SHARE));
        self.at_least(least, UNFORESEEN_S, UNFORESEEN_SHARE, lane_slots)
    }

    /// Slots to be free in each lane when the daemon ends and another one is to follow.
    pub(super) fn wanted_for_absence(&self, lane_slots: [u32; 2]) -> [u32; 2] {
        self.at_least(self.wanted(lane_slots), FORESEEN_S, FORESEEN_SHARE, lane_slots)
    }

    fn at_least(&self, least: [u32; 2], seconds: u64, share: u32, lane_slots: [u32; 2]) -> [u32; 2] {
        [0, 1].map(|lane| {
            let asked = u32::try_from(self.rates[lane].saturating_mul(seconds)).unwrap_or(u32::MAX);
            asked.min(lane_slots[lane] / share).max(least[lane])
        })
    }
}

/// Slots from one position to a later one, also laps later.
fn slots_between(from: u64, to: u64, lane_slots: u32) -> u64 {
    let laps = (to >> 32).saturating_sub(from >> 32);
    let ends = laps.saturating_mul(u64::from(lane_slots)).saturating_add(u64::from(position::slot(to)));
    ends.saturating_sub(u64::from(position::slot(from)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS_NS: u64 = 1_000_000;
    /// A lane of 16 MiB, and one of 256.
    const SMALL: u32 = (16 << 20) / 64;
    const LARGE: u32 = (256 << 20) / 64;
    /// Slots of a frame of 400 bytes.
    const FRAME: u64 = 7;

    /// Follows for `ms` at `rate` frames per second.
    fn follow(room: &mut RoomAhead, at: &mut (u64, u64), lane_slots: u32, rate: u64, ms: u64) {
        for _ in 0..ms {
            let slots = u32::try_from(rate * FRAME / 1_000).expect("small");
            *at = (at.0 + MS_NS, position::after(at.1, slots, lane_slots));
            room.measure([at.1, position::at(7, 0)], [lane_slots, SMALL], at.0);
        }
    }

    fn of_rate(lane_slots: u32, rate: u64) -> (RoomAhead, (u64, u64)) {
        let (mut room, mut at) = (RoomAhead::new(), (SECOND_NS, position::at(7, 0)));
        follow(&mut room, &mut at, lane_slots, rate, 20_000);
        (room, at)
    }

    #[test]
    fn the_room_is_two_seconds_of_the_rate_within_an_eighth() {
        for (lane, rate, wanted, for_absence) in [
            (SMALL, 0, SMALL / 16, SMALL / 16),
            // 2 s are 4.5 MB, more than the lane's eighth; 10 s more than its quarter.
            (SMALL, 5_000, SMALL / 8, SMALL / 4),
            (SMALL, 120_000, SMALL / 8, SMALL / 4),
            (LARGE, 0, LEAST_SLOTS, LEAST_SLOTS),
            // 2 s are less than is free at any rate; 10 s are 22 MB.
            (LARGE, 5_000, LEAST_SLOTS, 10 * 5_000 * 7),
            (LARGE, 30_000, 2 * 30_000 * 7, LARGE / 4),
            (LARGE, 120_000, LARGE / 8, LARGE / 4),
        ] {
            let (room, _) = of_rate(lane, rate);
            let near = |is: u32, should: u32| is.abs_diff(should) <= should / 100;
            let is = (room.wanted([lane, SMALL]), room.wanted_for_absence([lane, SMALL]));
            assert!(near(is.0[0], wanted) && near(is.1[0], for_absence), "{lane} slots at {rate}: {is:?}");
            // The other lane is idle.
            assert_eq!((is.0[1], is.1[1]), (SMALL / 16, SMALL / 16));
        }
    }

    #[test]
    fn the_room_follows_the_rate_within_seconds() {
        let (mut room, mut at) = of_rate(LARGE, 30_000);
        // A burst of a tenth of a second does not double it.
        follow(&mut room, &mut at, LARGE, 300_000, 100);
        assert!(room.wanted([LARGE, SMALL])[0] < 2 * 2 * 30_000 * 7, "{room:?}");
        follow(&mut room, &mut at, LARGE, 0, 20_000);
        assert_eq!(room.wanted([LARGE, SMALL])[0], LEAST_SLOTS);
        follow(&mut room, &mut at, LARGE, 30_000, 4_000);
        assert!(room.wanted([LARGE, SMALL])[0] > 2 * 30_000 * 7 * 8 / 10, "{room:?}");
    }

    #[test]
    fn laps_are_counted_as_slots() {
        let (from, to) = (position::at(7, SMALL - 10), position::at(9, 30));
        assert_eq!(slots_between(from, to, SMALL), u64::from(SMALL) + 40);
        assert_eq!(slots_between(to, to, SMALL), 0);
    }
}
