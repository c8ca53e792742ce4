//! How the kernel program stores one frame: the steps of [`super::shared`] in their order.

use super::shared::{self, Refused, Vacancy};
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
    /// The bucket for its entry where its own is full ([`index::overflow`]).
    fn overflow(&self) -> Option<Self::Bucket>;
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
    /// It is not stored: the daemon's socket gets it.
    Left(Left),
    /// It turned out to be wrong while it was copied.
    Wrong,
    /// This writer was stopped for so long that the daemon has given its position up.
    TooLate,
}

/// Why a frame was not stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Left {
    /// The log has a frame with its tag.
    Known,
    /// Its bucket is full, and the one for such entries too.
    BucketFull,
    /// The daemon has made no room in its lane, or the memory is not there.
    NoRoom,
    /// Other CPUs moved the lane's head each time.
    Contended,
}

/// Stores one frame.
#[inline(always)]
pub fn append<A: Append>(frame: &A) -> Appended {
    match steps(frame) {
        Some(appended) => appended,
        None => Appended::Left(Left::NoRoom),
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "48 and 64")]
fn steps<A: Append>(frame: &A) -> Option<Appended> {
    const HEADER: u32 = RECORD_HEADER_LEN as u32;
    const SLOT: u32 = SLOT_LEN as u32;
    let hash = frame.hash();
    let mut bucket = frame.bucket()?;
    let mut vacancy = shared::vacancy(&bucket, index::tag(hash));
    if vacancy == Vacancy::Full {
        bucket = frame.overflow()?;
        vacancy = shared::vacancy(&bucket, index::tag(hash));
    }
    let vacant = match vacancy {
        Vacancy::At(vacant) => vacant,
        Vacancy::Known => return Some(Appended::Left(Left::Known)),
        Vacancy::Full => return Some(Appended::Left(Left::BucketFull)),
    };
    let (head, limit) = (frame.head()?, frame.limit()?);
    let (first_slot, lane_slots) = frame.lane()?;
    let slots = (HEADER + frame.length()).div_ceil(SLOT);
    let (from, taken) = match shared::reserve(&head, || limit.load(), slots, lane_slots, ATTEMPTS) {
        Ok(taken) => taken,
        Err(Refused::Full) => return Some(Appended::Left(Left::NoRoom)),
        Err(Refused::Contended) => return Some(Appended::Left(Left::Contended)),
    };
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

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    /// A word, and how many exchanges other CPUs win.
    #[derive(Clone, Copy)]
    struct Raced<'a>(&'a Cell<u64>, &'a Cell<u32>);

    impl Word for Raced<'_> {
        fn load(&self) -> u64 {
            self.0.get()
        }

        fn store(&self, value: u64) {
            self.0.set(value);
        }

        fn replace(&self, old: u64, new: u64) -> bool {
            if self.1.get() > 0 {
                self.1.set(self.1.get() - 1);
                // What the other CPU has taken.
                self.0.set(self.0.get() + 1);
                return false;
            }
            let is_old = self.0.get() == old;
            if is_old {
                self.0.set(new);
            }
            is_old
        }

        fn fence(&self) {}
    }

    #[derive(Default)]
    struct Scene {
        entries: [Cell<u64>; 2],
        head: Cell<u64>,
        limit: Cell<u64>,
        version: Cell<u64>,
        never: Cell<u32>,
        races: Cell<u32>,
    }

    struct One<'a>(&'a Scene, usize);

    impl<'a> Bucket for One<'a> {
        type Word = Raced<'a>;
        const ENTRIES: usize = 1;

        fn entry(&self, _: usize) -> Raced<'a> {
            Raced(&self.0.entries[self.1], &self.0.never)
        }
    }

    impl<'a> Append for &'a Scene {
        type Word = Raced<'a>;
        type Bucket = One<'a>;

        fn length(&self) -> u32 {
            8
        }

        fn hash(&self) -> u64 {
            7 << 40
        }

        fn bucket(&self) -> Option<One<'a>> {
            Some(One(self, 0))
        }

        fn overflow(&self) -> Option<One<'a>> {
            Some(One(self, 1))
        }

        fn head(&self) -> Option<Raced<'a>> {
            Some(Raced(&self.head, &self.races))
        }

        fn limit(&self) -> Option<Raced<'a>> {
            Some(Raced(&self.limit, &self.never))
        }

        fn lane(&self) -> Option<(u32, u32)> {
            Some((0, 1_000))
        }

        fn version(&self, _: u32) -> Option<Raced<'a>> {
            Some(Raced(&self.version, &self.never))
        }

        fn fill_in(&self, _: u32, _: u64) -> bool {
            true
        }

        fn write_filler(&self, _: u32, _: u64, _: u64, _: u32) {}
    }

    #[test]
    fn why_a_frame_is_left() {
        let scene = Scene::default();
        assert_eq!(append(&&scene), Appended::Left(Left::NoRoom));
        scene.limit.set(100);
        scene.races.set(ATTEMPTS);
        assert_eq!(append(&&scene), Appended::Left(Left::Contended));
        scene.races.set(ATTEMPTS - 1);
        assert_eq!(append(&&scene), Appended::Stored);
        assert_eq!(append(&&scene), Appended::Left(Left::Known));
        // Another frame's entry: the next place is the overflow bucket's, and then there is none.
        scene.entries[0].set(1 << 63);
        assert_eq!(append(&&scene), Appended::Stored);
        scene.entries[1].set(1 << 63);
        assert_eq!(append(&&scene), Appended::Left(Left::BucketFull));
    }
}
