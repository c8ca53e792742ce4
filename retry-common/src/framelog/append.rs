//! How the kernel program stores one frame: the steps of [`super::shared`] in their order.

use super::shared::{self, Vacancy};
use super::{Bucket, Word};
use crate::abi::{RECORD_HEADER_LEN, SLOT_LEN};
use crate::index;
use crate::position;

/// How often a head that other writers keep moving is tried.
const ATTEMPTS: u32 = 4;

/// One frame that the kernel program is to store, and the memory that it goes to.
///
/// `None` stands for memory that is not there; the verifier wants to see it handled.
pub trait Append {
    /// A shared word.
    type Word: Word;
    /// A bucket of the index.
    type Bucket: Bucket;

    /// Bytes of the frame.
    fn length(&self) -> u32;
    /// The hash of its key ([`index::hash`]).
    fn hash(&self) -> u64;
    /// Its bucket.
    fn bucket(&self) -> Option<Self::Bucket>;
    /// [`crate::abi::Lane::head`] of its lane.
    fn head(&self) -> Option<Self::Word>;
    /// [`crate::abi::Lane::limit`] of its lane.
    fn limit(&self) -> Option<Self::Word>;
    /// First slot of its lane, and the number of its slots.
    fn lane(&self) -> Option<(u32, u32)>;
    /// The version of the record at `slot`.
    fn version(&self, slot: u32) -> Option<Self::Word>;
    /// Fills in the record at `slot`: bytes, and header with this version. False when the frame turns out to be wrong.
    fn fill_in(&self, slot: u32, version: u64) -> bool;
    /// Writes the header of a filler at `slot`, with this version and `length` bytes behind it, and commits it at `position`.
    fn write_filler(&self, slot: u32, position: u64, version: u64, length: u32);
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Appended {
    /// It is in the log.
    Stored,
    /// The log has a frame with its tag, its bucket is full, or its lane has no room: the daemon's socket gets it.
    Left,
    /// It turned out to be wrong while it was copied.
    Wrong,
    /// This writer was stopped for so long that the daemon has given its position up.
    TooLate,
}

/// Stores one frame.
#[inline(always)]
pub fn append<A: Append>(frame: &A) -> Appended {
    match steps(frame) {
        Some(appended) => appended,
        None => Appended::Left,
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "48 and 64")]
fn steps<A: Append>(frame: &A) -> Option<Appended> {
    const HEADER: u32 = RECORD_HEADER_LEN as u32;
    const SLOT: u32 = SLOT_LEN as u32;
    let hash = frame.hash();
    let bucket = frame.bucket()?;
    let Vacancy::At(vacant) = shared::vacancy(&bucket, index::tag(hash)) else {
        return None;
    };
    let (head, limit) = (frame.head()?, frame.limit()?);
    let (first_slot, lane_slots) = frame.lane()?;
    let slots = (HEADER + frame.length()).div_ceil(SLOT);
    let (from, taken) = shared::reserve(&head, || limit.load(), slots, lane_slots, ATTEMPTS).ok()?;
    // From here on the room is this writer's to fill in or to give back, whatever comes.
    if taken.filler != 0 {
        let length = taken.filler * SLOT - HEADER;
        frame.write_filler(first_slot + position::slot(from), from, position::version(from) | 1, length);
    }
    let slot = first_slot + position::slot(taken.start);
    let version = frame.version(slot)?;
    shared::begin(&version, taken.start);
    if !frame.fill_in(slot, position::version(taken.start) | 1) {
        if !shared::give_back(&head, &taken) {
            frame.write_filler(slot, taken.start, position::version(taken.start) | 1, frame.length());
        }
        return Some(Appended::Wrong);
    }
    // Before the commit: nothing is entered for a record that the daemon sees whole. If another writer has taken the vacant
    // place, the daemon finds this record without an entry, and makes one unless it has the frame already.
    let entry = index::entry(hash, slot);
    let entered = shared::enter(&bucket, vacant, entry);
    if shared::commit(&version, taken.start) {
        return Some(Appended::Stored);
    }
    if entered {
        shared::withdraw(&bucket, vacant, entry);
    }
    Some(Appended::TooLate)
}
