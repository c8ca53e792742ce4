//! The frame log: one ring that holds frames back to back, and the index to find them.
//!
//! The layout is `retry_common::abi`'s and the protocol `retry_common::framelog`'s; the kernel reads and writes the same
//! pages. One [`Writer`] appends (the oldest end is overwritten: eviction is a lap), any number of [`Log`] handles read.
//! Frames whose class lives longer (block, subtree, anchor) have a lane of their own, so that a burst of transactions
//! cannot push them out.

mod ahead;
mod memory;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use retry_common::abi::{Bucket, Lane, SEGMENT_LEN, SEGMENT_SLOTS};
use retry_common::index;
use retry_common::wire::frame::Class;

use crate::settings::{Cache, Settings};

pub use memory::Memory;
pub use reader::{Log, Record};
pub(crate) use retry_common::framelog::{Adopted, Unusable};
pub(crate) use retry_common::framelog::{Followed, LaneUse};
pub use retry_common::framelog::{NewFrame, Put, Removed};
pub use writer::Writer;

/// Words of the hold-down table: 2 MiB, 26 s of distinct repairs at 10,000 a second.
const HOLD_DOWN_WORDS: u32 = 1 << 18;
/// Ring bytes for each index bucket: two entries a bucket when frames are 200 bytes long, one when 450.
const RING_BYTES_PER_BUCKET: u64 = 512;

/// How large the parts of the log are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sizes {
    /// Segments of the lane of transactions and BEEF objects.
    pub short_segments: u32,
    /// Segments of the lane of blocks, subtrees and anchors.
    pub long_segments: u32,
    /// Buckets of the index, a power of two; the overflow buckets aside.
    pub buckets: u32,
    /// Words of the hold-down table, a power of two.
    pub hold_down_words: u32,
}

impl From<&Settings> for Sizes {
    fn from(settings: &Settings) -> Self {
        Self::new(settings.cache.memory, settings.cache.memory_long)
    }
}

/// Life of each class in milliseconds, in the order of [`Class::ALL`].
#[must_use]
pub(crate) fn lives_ms(cache: &Cache) -> [u32; Class::ALL.len()] {
    Class::ALL.map(|class| u32::try_from(cache.ttl(class).as_millis()).unwrap_or(u32::MAX))
}

/// How long frames are kept that are stored from now on, by class: it changes while the daemon runs.
#[derive(Debug)]
pub(crate) struct Lives([AtomicU32; Class::ALL.len()]);

impl Lives {
    /// These lives in milliseconds, in the order of [`Class::ALL`].
    pub(crate) fn new(lives_ms: [u32; Class::ALL.len()]) -> Self {
        Self(lives_ms.map(AtomicU32::new))
    }

    /// Life of a class in milliseconds.
    pub(crate) fn of_ms(&self, class: Class) -> u32 {
        class.of(&self.0.each_ref()).load(Ordering::Relaxed)
    }

    /// Changes them.
    pub(crate) fn set(&self, lives_ms: [u32; Class::ALL.len()]) {
        for (life, new_ms) in self.0.iter().zip(lives_ms) {
            life.store(new_ms, Ordering::Relaxed);
        }
    }
}

impl Sizes {
    /// Sizes for two lanes of at least `short` and `long` bytes, in whole segments of 16 MiB.
    pub fn new(short: u64, long: u64) -> Self {
        let segments = |bytes: u64| u32::try_from(bytes.div_ceil(SEGMENT_LEN as u64).max(1)).unwrap_or(u32::MAX);
        let (short_segments, long_segments) = (segments(short), segments(long));
        let total = (u64::from(short_segments) + u64::from(long_segments)) * SEGMENT_LEN as u64;
        let buckets = (total / RING_BYTES_PER_BUCKET).next_power_of_two();
        // Down, not up: beyond two thirds of the next power the index would cost more than it saves.
        let buckets = if buckets * 3 > total / RING_BYTES_PER_BUCKET * 4 { buckets / 2 } else { buckets };
        Self {
            short_segments,
            long_segments,
            buckets: u32::try_from(buckets).unwrap_or(1 << 31),
            hold_down_words: HOLD_DOWN_WORDS,
        }
    }

    /// Segments of both lanes.
    pub const fn segments(&self) -> u32 {
        self.short_segments + self.long_segments
    }

    /// Bytes of the ring.
    pub const fn ring_len(&self) -> usize {
        self.segments() as usize * SEGMENT_LEN
    }

    /// Buckets of the index, the overflow buckets included.
    pub const fn all_buckets(&self) -> u32 {
        self.buckets + index::OVERFLOW_BUCKETS
    }

    /// Bytes of the index.
    pub const fn index_len(&self) -> usize {
        self.all_buckets() as usize * size_of::<Bucket>()
    }

    /// Bytes of the hold-down table.
    pub const fn hold_down_len(&self) -> usize {
        self.hold_down_words as usize * 8
    }

    /// Bytes of the lane table.
    pub const fn lanes_len(&self) -> usize {
        2 * size_of::<Lane>()
    }

    pub(crate) const fn lanes(&self) -> [(u32, u32); 2] {
        [
            (0, self.short_segments * SEGMENT_SLOTS),
            (self.short_segments * SEGMENT_SLOTS, self.long_segments * SEGMENT_SLOTS),
        ]
    }
}

/// The pages of the log.
#[derive(Debug)]
pub struct Pages {
    /// The segments.
    pub ring: Memory,
    /// The buckets.
    pub index: Memory,
    /// The hold-down table.
    pub hold_down: Memory,
    /// The lane table.
    pub lanes: Memory,
    /// How large they are.
    pub sizes: Sizes,
}

impl Pages {
    /// Plain memory, for when there is no BPF.
    pub fn plain(sizes: Sizes) -> io::Result<Self> {
        Ok(Self {
            ring: Memory::plain(sizes.ring_len())?,
            index: Memory::plain(sizes.index_len())?,
            hold_down: Memory::plain(sizes.hold_down_len())?,
            lanes: Memory::plain(sizes.lanes_len())?,
            sizes,
        })
    }
}

/// Opens a log over `pages`, which are all zero: its writer, and a handle for readers.
pub fn open(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> (Writer, Log) {
    (Writer::new(Arc::clone(&pages), hash_seed, max_keys), Log::new(pages, hash_seed))
}

/// As [`open`], where another log with this seed may be in use at the same time: its versions are not those of this one.
pub(crate) fn open_anywhere(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> (Writer, Log) {
    (Writer::beginning_at(Arc::clone(&pages), rand::random(), hash_seed, max_keys), Log::new(pages, hash_seed))
}

/// Takes over the log in `pages`, which the writer of another process left at whatever instruction it ended; the kernel
/// program may be appending to it. What is torn is repaired. Frames that the kernel program has stored and that were not
/// followed yet are for the first [`Writer::follow`](retry_common::framelog::DaemonWriter::follow), as any others.
///
/// # Errors
/// [`Unusable`] when `pages` hold no log of these sizes.
pub fn adopt(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> Result<(Writer, Log, Adopted), Unusable> {
    let (writer, adopted) = Writer::adopt(Arc::clone(&pages), hash_seed, max_keys)?;
    Ok((writer, Log::new(pages, hash_seed), adopted))
}

/// Copies the frames that `old` holds into `new`, which has other sizes, the oldest first: each with its group, class, flags
/// and what is left of its life. Of a lane that is larger than the new one, the newest frames that fit. Returns how many.
///
/// `from` is where each lane is begun, and then where it ends; 0 begins with the oldest. The kernel program may be storing
/// frames in `old` still: once they were followed there, another call copies them. `tell` is told of what it stores in `new`
/// meanwhile. One call looks at `most` records of each lane.
pub(crate) fn copy_into(
    old: &Writer,
    new: &mut Writer,
    from: &mut [u64; 2],
    most: usize,
    now_ns: u64,
    tell: impl FnMut(Followed<'_>),
) -> u64 {
    new.copy_from(old, from, most, now_ns, tell)
}
