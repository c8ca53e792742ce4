//! The steps that the kernel program and the daemon both take, and those of every reader.

use super::{Bucket, Word};
use crate::index;
use crate::position::{self, Reservation};

/// Why [`reserve`] took nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// There is no room up to the limit.
    Full,
    /// Other writers moved the head each time.
    Contended,
}

/// Where an entry for a tag could go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Vacancy {
    /// This entry is empty, and no entry has the tag.
    At(usize),
    /// An entry has the tag.
    Known,
    /// No entry has the tag, and none is empty.
    Full,
}

/// Takes the next `slots` slots of a lane of `lane_slots`, up to `limit`. A head that other writers keep moving is tried
/// `attempts` times. What lies before [`Reservation::start`] is to be committed as a filler.
#[inline(always)]
pub(super) fn reserve<W: Word>(
    head: &W,
    limit: impl Fn() -> u64,
    slots: u32,
    lane_slots: u32,
    attempts: u32,
) -> Result<(u64, Reservation), Refused> {
    let mut attempt = 0;
    while attempt < attempts {
        // The limit first: it only grows, so it holds for any head that is read later.
        let limit = limit();
        let from = head.load();
        let Some(taken) = position::reserve(from, limit, slots, lane_slots) else {
            return Err(Refused::Full);
        };
        if head.replace(from, taken.end) {
            return Ok((from, taken));
        }
        attempt += 1;
    }
    Err(Refused::Contended)
}

/// Gives back the room of the record of `taken`, which was not committed; false when another writer has reserved behind
/// it, so that the room has to become a filler.
#[inline(always)]
pub(super) fn give_back<W: Word>(head: &W, taken: &Reservation) -> bool {
    head.replace(taken.end, taken.start)
}

/// Marks the record at `position` as being written.
#[inline(always)]
pub(super) fn begin<W: Word>(version: &W, position: u64) {
    version.store(position::version(position) | 1);
}

/// Makes the record at `position` whole; false when the daemon has given it up as a hole.
#[inline(always)]
pub fn commit<W: Word>(version: &W, position: u64) -> bool {
    let whole = position::version(position);
    version.replace(whole | 1, whole)
}

/// The position whose record has this version, even or odd; `None` for 0, which is no record's.
#[inline(always)]
pub const fn position_of(version: u64) -> Option<u64> {
    match version.checked_sub(2) {
        Some(twice) => Some(twice / 2),
        None => None,
    }
}

/// Where a new entry with this `tag` ([`index::tag`]) could go.
#[inline(always)]
pub(super) fn vacancy<B: Bucket>(bucket: &B, tag: u64) -> Vacancy {
    let mut empty = B::ENTRIES;
    let mut i = 0;
    while i < B::ENTRIES {
        let entry = bucket.entry(i).load();
        if entry == 0 {
            if empty == B::ENTRIES {
                empty = i;
            }
        } else if index::has_tag(entry, tag) {
            return Vacancy::Known;
        }
        i += 1;
    }
    if empty == B::ENTRIES { Vacancy::Full } else { Vacancy::At(empty) }
}

/// Puts `entry` at the vacant place `i`; false when another writer has taken it.
#[inline(always)]
pub(super) fn enter<B: Bucket>(bucket: &B, i: usize, entry: u64) -> bool {
    bucket.entry(i).replace(0, entry)
}

/// Takes `entry` out of the place `i` again, if it still stands there.
#[inline(always)]
pub(super) fn withdraw<B: Bucket>(bucket: &B, i: usize, entry: u64) -> bool {
    bucket.entry(i).replace(entry, 0)
}

/// The first entry with this `tag`, and its place.
#[inline(always)]
pub(super) fn find<B: Bucket>(bucket: &B, tag: u64) -> Option<(usize, u64)> {
    let mut i = 0;
    while i < B::ENTRIES {
        let entry = bucket.entry(i).load();
        if index::has_tag(entry, tag) {
            return Some((i, entry));
        }
        i += 1;
    }
    None
}

/// The first entry with this `tag` in its bucket, or else in the bucket that `overflow` tells; with the bucket and its place.
#[inline(always)]
pub fn find_either<B: Bucket + Copy>(
    bucket: B,
    overflow: impl FnOnce() -> Option<B>,
    tag: u64,
) -> Option<(B, usize, u64)> {
    if let Some((i, entry)) = find(&bucket, tag) {
        return Some((bucket, i, entry));
    }
    let overflow = overflow()?;
    let (i, entry) = find(&overflow, tag)?;
    Some((overflow, i, entry))
}

/// True when the place `i` still holds `entry`: the header that was read in between was that of a record, and no bytes of
/// a later frame.
#[inline(always)]
pub fn still_leads<B: Bucket>(bucket: &B, i: usize, entry: u64) -> bool {
    let word = bucket.entry(i);
    word.fence();
    word.load() == entry
}
