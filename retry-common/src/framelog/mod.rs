//! The frame log's protocol: which writer may write which word when, and what a reader may believe.
//!
//! Two kinds of writers append to one ring and one index at the same time. The kernel program runs on any number of CPUs.
//! The daemon's writer is one thread at a time (a mutex in the daemon). Neither waits for the other on its fast path. All
//! steps stand here, over the traits [`Word`], [`Bucket`] and [`Memory`], so that the code that is model-checked is the
//! code that runs in the kernel and in the daemon. `docs/decisions/0012-the-frame-logs-protocol.md` gives the reasons.
//!
//! # Words, and who writes them
//!
//! | word | kernel program | daemon |
//! | --- | --- | --- |
//! | `Lane.head` | compare-exchange forward (`reserve`), or back over its own last reservation (`give_back`) | compare-exchange forward |
//! | `Lane.limit` | never | store, only forward, after the records before it were dropped |
//! | `Lane.tail`, `followed`, `records`, `live` | never | store |
//! | version of a record | odd in its own reservation (`begin`), then compare-exchange to even ([`commit`]) | the same; 0 when it drops the record; compare-exchange from odd to 0 when it gives up a hole |
//! | header and bytes of a record | only between `begin` and [`commit`] of its own reservation | the same; the flags of a record that it follows or takes out of the index |
//! | index entry | compare-exchange from 0 to its own record (`enter`), and back to 0 if its commit fails (`withdraw`) | any change of an entry that is not 0; compare-exchange from 0 |
//!
//! # One record's life
//!
//! 1. `reserve` takes a position by moving the lane's head, within the limit.
//! 2. `begin` makes the version odd. From here on no reader takes what stands there for a record.
//! 3. The writer fills in bytes and header. If the frame turns out to be wrong, `give_back` returns the room; if another
//!    writer has reserved behind it, the record becomes a filler.
//! 4. The kernel program calls `enter`, *then* [`commit`]. So when the daemon sees an even version, the kernel's entry
//!    stands or never will: nothing can be entered for a record that the daemon has followed, and what the daemon forgets
//!    stays forgotten. The daemon commits first and inserts then, for it follows its own records.
//!    Where the record's bucket is full, the entry stands in an overflow bucket ([`crate::index::overflow`]) until step 5.
//! 5. The daemon follows records in the order of their positions ([`DaemonWriter::follow`]): it counts each of the
//!    kernel's, and resolves what two writers entered at once: a bucket ends with one entry per tag. It
//!    takes the record's entry out of the overflow bucket, after it has entered the record in its own: a full bucket loses its
//!    oldest entry. Then it clears
//!    [`crate::abi::record_flag::KERNEL`]: no later writer of this log tells of the record again.
//! 6. The daemon alone drops ([`DaemonWriter::expire`], laps, `cache-max-keys`): it empties every entry of the record,
//!    makes the version 0, shows the lane's new tail, and then moves the limit. Only then can the room be reserved again.
//!
//! # What a reader may believe
//!
//! A reader finds an entry, copies the header between two equal even versions, and believes it only if the entry
//! still stands afterwards ([`still_leads`]): the entry goes before the room is reused, so bytes of a later frame that look
//! like a header are never believed. The frame's bytes are void unless the version is the same after the copy.
//!
//! The daemon believes an entry only if the record's version is that of a position between tail and head, at this slot, and
//! the record's key belongs to this bucket and tag. Any other entry is removed and counted.
//!
//! # A writer that ends
//!
//! The daemon's writer may end between any two of these stores. [`DaemonWriter::adopt`] goes on with what it left:
//! `docs/decisions/0015-a-log-that-is-taken-over.md` says which store leaves what.
//!
//! # Nothing waits without bound
//!
//! `reserve` is tried a fixed number of times. [`DaemonWriter::put`] and [`DaemonWriter::remove`] wait for a kernel writer
//! only as long as [`Memory::pause`] allows, then give up and count it. A record that stays uncommitted for
//! [`HOLE_PATIENCE_NS`] becomes a filler (a hole): its version goes from odd to 0 by compare-exchange, so a late commit
//! fails and its writer withdraws its entry.

mod adopt;
mod append;
mod daemon;
mod shared;

pub use adopt::{Adopted, Unusable};
pub use append::{Append, Appended, Left, append};
pub use daemon::{DaemonWriter, Dropped, Followed, HOLE_PATIENCE_NS, LaneUse, NewFrame, Put, Removed};
pub use shared::{commit, find_either, position_of, still_leads};

use crate::abi::RecordHeader;

/// One aligned 64-bit word that several writers share.
pub trait Word {
    /// Reads it; what is read after this is not older (acquire).
    fn load(&self) -> u64;
    /// Writes it; what was written before is seen by a reader that sees this (release).
    fn store(&self, value: u64);
    /// Writes `new` if the word holds `old`, in one step and as a full barrier; false when it held another value.
    fn replace(&self, old: u64, new: u64) -> bool;
    /// What was read or written before this is ordered before what is read or written after it.
    fn fence(&self);
}

/// One bucket of the index.
pub trait Bucket {
    /// Its entries.
    type Word: Word;
    /// How many entries it has: [`crate::index::BUCKET_ENTRIES`], fewer in a model.
    const ENTRIES: usize = crate::index::BUCKET_ENTRIES;
    /// The entry `i`, below [`Bucket::ENTRIES`].
    fn entry(&self, i: usize) -> Self::Word;
}

/// Where the daemon's writer stands in a lane: what it alone writes of [`crate::abi::Lane`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Shown {
    /// [`crate::abi::Lane::tail`].
    pub tail: u64,
    /// [`crate::abi::Lane::followed`].
    pub followed: u64,
    /// [`crate::abi::Lane::records`].
    pub records: u32,
    /// [`crate::abi::Lane::live`].
    pub live: u32,
}

impl Shown {
    /// Stands for the number of records while the other words are being stored.
    pub const UNKNOWN_RECORDS: u32 = u32::MAX;
}

/// What one pass over the index has counted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct IndexCount {
    /// Entries that lead to records which the daemon has counted, per lane.
    pub live: [u32; 2],
    /// Entries that led nowhere, removed.
    pub stale: u64,
    /// Entries for a key that had a newer one, removed.
    pub doubled: u64,
}

impl core::ops::AddAssign for IndexCount {
    fn add_assign(&mut self, other: Self) {
        self.live[0] += other.live[0];
        self.live[1] += other.live[1];
        self.stale += other.stale;
        self.doubled += other.doubled;
    }
}

/// The memory of a frame log as the daemon's writer sees it.
pub trait Memory {
    /// A shared word.
    type Word<'a>: Word
    where
        Self: 'a;
    /// A bucket of the index.
    type Bucket<'a>: Bucket
    where
        Self: 'a;

    /// [`crate::abi::Lane::head`] of a lane.
    fn head(&self, lane: usize) -> Self::Word<'_>;
    /// [`crate::abi::Lane::limit`] of a lane.
    fn limit(&self, lane: usize) -> Self::Word<'_>;
    /// Shows where the daemon's writer stands in a lane. A writer that ends in the middle of it leaves
    /// [`Shown::UNKNOWN_RECORDS`]: that is stored first, and the number of records last.
    fn show(&self, lane: usize, shown: &Shown);
    /// What was shown last.
    fn shown(&self, lane: usize) -> Shown;
    /// The version of the record at `slot`.
    fn version(&self, slot: u32) -> Self::Word<'_>;
    /// The header at `slot`, its version aside. It may be torn unless the caller knows that the record is whole.
    fn header(&self, slot: u32) -> RecordHeader;
    /// Writes the header at `slot`, its version aside.
    fn set_header(&self, slot: u32, header: &RecordHeader);
    /// Writes [`RecordHeader::flags`] of the record at `slot`, which readers may be reading.
    fn set_flags(&self, slot: u32, flags: u8);
    /// Writes the bytes of the record at `slot`.
    fn write_frame(&self, slot: u32, bytes: &[u8]);
    /// The `len` bytes of the record at `slot`, which is whole and which the caller has not dropped.
    fn frame(&self, slot: u32, len: usize) -> &[u8];
    /// The bucket of a hash.
    fn bucket(&self, hash: u64) -> Self::Bucket<'_>;
    /// The bucket of [`crate::index::overflow`] of a hash.
    fn overflow(&self, hash: u64) -> Self::Bucket<'_>;
    /// Number of the bucket of a hash, to compare two.
    fn bucket_number(&self, hash: u64) -> u32;
    /// Empties each entry of the whole index, overflow buckets included, that `is_void` says true of.
    fn clear_entries(&self, is_void: &mut dyn FnMut(u64) -> bool);
    /// Calls `look` for each bucket of the index, but not for overflow buckets, with a hash whose bucket it is, from several threads if that is quicker, and
    /// returns the sum of what it counts.
    fn each_bucket(&self, look: &(dyn Fn(&Self, u64) -> IndexCount + Sync)) -> IndexCount;
    /// Asks for the cache line of the header at `slot`, which is soon read.
    fn fetch(&self, slot: u32);
    /// Lets a kernel writer go on; `attempt` counts from 0. False when the caller has waited long enough.
    fn pause(&self, attempt: u32) -> bool;
}
