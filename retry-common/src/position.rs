//! Positions in a lane of the frame log, and how a writer reserves the next one.
//!
//! A position is the lap (upper 32 bits) and the slot in the lane (lower 32 bits) as one number that only grows. The kernel
//! program and the daemon append to the same lanes: the writer that changes the lane's head by compare-exchange owns what
//! lies between the old head and the new one. A record's version follows from its position, so no version comes twice at a
//! slot, and the daemon knows which version the next record will have.

use crate::abi::{
    KERNEL_FRAME_MAX, RECORD_HEADER_LEN, SEGMENT_LEN, SEGMENT_LONG_TAIL, SEGMENT_SLOTS, SEGMENT_TAIL, SLOT_LEN,
};

/// Slots from the start of a segment in which a record may begin.
#[expect(clippy::cast_possible_truncation, reason = "2^18 at most")]
const START_SLOTS: u32 = ((SEGMENT_LEN - SEGMENT_TAIL) / SLOT_LEN) as u32;

/// The same for a record of more than [`SHORT_SLOTS`].
#[expect(clippy::cast_possible_truncation, reason = "2^18 at most")]
const LONG_START_SLOTS: u32 = ((SEGMENT_LEN - SEGMENT_LONG_TAIL) / SLOT_LEN) as u32;

/// Slots that hold no frame above [`KERNEL_FRAME_MAX`].
#[expect(clippy::cast_possible_truncation, reason = "53")]
const SHORT_SLOTS: u32 = ((RECORD_HEADER_LEN + KERNEL_FRAME_MAX) / SLOT_LEN) as u32;

/// Laps that a lane may start with: the first is drawn at random, so that no sender knows what a version will be.
pub const FIRST_LAPS: u32 = 1 << 28;

/// The position of `slot` (counted from the lane's first) in `lap`.
#[inline(always)]
pub const fn at(lap: u32, slot: u32) -> u64 {
    (lap as u64) << 32 | slot as u64
}

/// The slot of a position, counted from the lane's first.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the slot")]
pub const fn slot(position: u64) -> u32 {
    position as u32
}

/// The version of the record that stands there: even, and never 0.
#[inline(always)]
pub const fn version(position: u64) -> u64 {
    position * 2 + 2
}

/// The same slot one lap later.
#[inline(always)]
pub const fn lap_later(position: u64) -> u64 {
    position + (1 << 32)
}

/// The position `slots` further on, in a lane of `lane_slots`. No record goes beyond the end of its lane.
#[inline(always)]
pub const fn after(position: u64, slots: u32, lane_slots: u32) -> u64 {
    if slot(position) + slots >= lane_slots { at((position >> 32) as u32 + 1, 0) } else { position + slots as u64 }
}

/// Slots from `from` to `to`, which is less than a lap and one slot later.
pub const fn distance(from: u64, to: u64, lane_slots: u32) -> u32 {
    let laps = (to >> 32).wrapping_sub(from >> 32) as u32;
    laps * lane_slots + slot(to) - slot(from)
}

/// What a writer takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reservation {
    /// Slots of a filler at the old head, the rest of a segment that the record does not fit in; 0 is none.
    pub filler: u32,
    /// The record's position.
    pub start: u64,
    /// The new head.
    pub end: u64,
}

/// The next `slots` slots behind `head`, in a lane of `lane_slots`; `None` when that would go beyond `limit`, up to which
/// room has been made. No record straddles two segments, and none begins in the last page of one, a long one in the last four.
#[inline(always)]
pub const fn reserve(head: u64, limit: u64, slots: u32, lane_slots: u32) -> Option<Reservation> {
    let into_segment = slot(head) % SEGMENT_SLOTS;
    let left = SEGMENT_SLOTS - into_segment;
    let last_start = if slots > SHORT_SLOTS { LONG_START_SLOTS } else { START_SLOTS };
    let filler = if into_segment > last_start || slots > left { left } else { 0 };
    let start = if filler == 0 { head } else { after(head, filler, lane_slots) };
    let end = after(start, slots, lane_slots);
    if end > limit { None } else { Some(Reservation { filler, start, end }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LANE: u32 = 2 * SEGMENT_SLOTS;

    #[test]
    fn a_record_that_does_not_fit_its_segment_starts_the_next() {
        let head = at(5, SEGMENT_SLOTS - 10);
        let far = lap_later(lap_later(head));
        // The last page is no position to begin in, even for what would fit.
        let taken = Reservation { filler: 10, start: at(5, SEGMENT_SLOTS), end: at(5, SEGMENT_SLOTS + 7) };
        assert_eq!(reserve(head, far, 7, LANE), Some(taken));
        let last = at(5, START_SLOTS);
        let whole = Reservation { filler: 0, start: last, end: at(5, START_SLOTS + SHORT_SLOTS) };
        assert_eq!(reserve(last, far, SHORT_SLOTS, LANE), Some(whole));
        let wraps = Reservation { filler: 64, start: at(6, 0), end: at(6, 65) };
        assert_eq!(reserve(last + u64::from(SEGMENT_SLOTS), far, 65, LANE), Some(wraps));
    }

    #[test]
    fn a_long_record_starts_further_from_the_end() {
        let last = at(5, LONG_START_SLOTS);
        let far = lap_later(lap_later(last));
        let slots = SEGMENT_SLOTS - LONG_START_SLOTS;
        let whole = Reservation { filler: 0, start: last, end: at(5, SEGMENT_SLOTS) };
        assert_eq!(reserve(last, far, slots, LANE), Some(whole));
        // It would fit, and a reader of bounded length would leave the segment.
        let next =
            Reservation { filler: slots - 1, start: at(5, SEGMENT_SLOTS), end: at(5, SEGMENT_SLOTS + SHORT_SLOTS + 1) };
        assert_eq!(reserve(last + 1, far, SHORT_SLOTS + 1, LANE), Some(next));
        let short = Reservation { filler: 0, start: last + 1, end: last + 1 + u64::from(SHORT_SLOTS) };
        assert_eq!(reserve(last + 1, far, SHORT_SLOTS, LANE), Some(short));
    }

    #[test]
    fn a_full_lane_refuses() {
        let (tail, head) = (at(3, 100), at(4, 90));
        assert!(reserve(head, lap_later(tail), 10, LANE).is_some());
        assert_eq!(reserve(head, lap_later(tail), 11, LANE), None);
        assert_eq!(distance(tail, head, LANE), LANE - 10);
        assert_eq!(distance(tail, lap_later(tail), LANE), LANE);
    }

    #[test]
    fn versions_are_even_and_never_zero() {
        assert_eq!(version(0), 2);
        assert_eq!(version(at(FIRST_LAPS, 7)) % 2, 0);
    }

    proptest! {
        #[test]
        fn places_only_grow(lap in 0..FIRST_LAPS, from in 0..LANE, slots in 1..1_100u32) {
            let head = at(lap, from);
            let taken = reserve(head, u64::MAX, slots, LANE).expect("room");
            prop_assert!(taken.start >= head && taken.end > taken.start);
            prop_assert_eq!(distance(head, taken.start, LANE), taken.filler);
            prop_assert_eq!(distance(taken.start, taken.end, LANE), slots);
            let first = slot(taken.start);
            prop_assert_eq!(first / SEGMENT_SLOTS, (first + slots - 1) / SEGMENT_SLOTS);
            let last_start = if slots > SHORT_SLOTS { LONG_START_SLOTS } else { START_SLOTS };
            prop_assert!(first % SEGMENT_SLOTS <= last_start);
        }
    }
}
