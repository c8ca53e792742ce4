//! The daemon's writer: `retry_common::framelog`'s steps over the pages of the log.

use std::cell::RefCell;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use retry_common::abi::{Lane, RECORD_HEADER_LEN, RecordHeader};
use retry_common::counter::{Counter, Counters};
use retry_common::framelog::{
    Adopted, Bucket, DaemonWriter, Dropped, Followed, IndexCount, Memory, NewFrame, Put, Shown, Unusable, Word,
};
use retry_common::index;
use retry_common::position;
use retry_common::replace::FirstWins;

use super::Pages;
use super::ahead::RoomAhead;
use super::reader::{bucket_offset, overflow_offset, slot_offset};

/// How often a kernel writer in the way is only spun for, and how often it is slept for after that: 5 ms in all.
const SPINS: u32 = 256;
const SLEEPS: u32 = 64;
const SLEEP: Duration = Duration::from_micros(20);

/// The most threads that read the index at once, and the least buckets that are worth one.
const SCAN_THREADS: usize = 4;
const SCAN_SHARE: u32 = 1 << 16;

/// Appends frames, follows what the kernel appends, and drops old ones.
#[derive(Debug)]
pub struct Writer {
    log: DaemonWriter<Held>,
    room: RoomAhead,
    first: FirstWins,
}

/// The pages that the writer holds.
#[derive(Debug)]
pub struct Held(Arc<Pages>);

impl Writer {
    pub(super) fn new(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> Self {
        // No sender can know the seed, nor the first lap that follows from it.
        let lap = u32::try_from(hash_seed >> 32).unwrap_or(0);
        Self::beginning_at(pages, lap, hash_seed, max_keys)
    }

    /// Its lanes begin at a lap that follows from the number `lap`.
    pub(super) fn beginning_at(pages: Arc<Pages>, lap: u32, hash_seed: u64, max_keys: u64) -> Self {
        let first = position::at(lap % position::FIRST_LAPS, 0);
        let lanes = pages.sizes.lanes();
        for (number, (first_slot, slots)) in lanes.into_iter().enumerate() {
            let limit = position::lap_later(first);
            let lane =
                Lane { head: first, limit, tail: first, followed: first, records: 0, live: 0, first_slot, slots };
            pages.lanes.write(number * size_of::<Lane>(), lane);
        }
        Self::of(DaemonWriter::new(Held(pages), lanes, first, hash_seed, max_keys))
    }

    pub(super) fn adopt(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> Result<(Self, Adopted), Unusable> {
        let lanes = pages.sizes.lanes();
        for (lane, wanted) in lanes.into_iter().enumerate() {
            let there: Lane = pages.lanes.read(lane * size_of::<Lane>());
            if (there.first_slot, there.slots) != wanted {
                return Err(Unusable::OtherLanes { lane });
            }
        }
        DaemonWriter::adopt(Held(pages), lanes, hash_seed, max_keys)
            .map(|(writer, adopted)| (Self::of(writer), adopted))
    }

    const fn of(log: DaemonWriter<Held>) -> Self {
        Self { log, room: RoomAhead::new(), first: FirstWins::new(0) }
    }

    /// The first frame of a key stays for this long, nanoseconds, from now on; 0: the newest wins.
    pub(crate) const fn keep_first(&mut self, for_ns: u64) {
        self.first = FirstWins::new(for_ns);
    }

    /// As [`DaemonWriter::put`], unless the log has another frame with its key that stays.
    pub(crate) fn put_first(&mut self, frame: &NewFrame<'_>, now_ns: u64, mut tell: impl FnMut(Followed<'_>)) -> Put {
        let first = RefCell::new(&mut self.first);
        let keeps = |since_ns| first.borrow_mut().keeps(&frame.key, since_ns, now_ns);
        let put = self.log.put_unless(frame, now_ns, keeps, |followed| {
            if followed.is_new {
                first.borrow_mut().is_new(&followed.key);
            }
            tell(followed);
        });
        if put == Put::Stored {
            self.first.is_new(&frame.key);
        }
        put
    }

    /// As [`DaemonWriter::follow`].
    pub fn follow(&mut self, now_ns: u64, most: usize, mut tell: impl FnMut(Followed<'_>)) -> bool {
        let first = &mut self.first;
        self.log.follow(now_ns, most, |followed| {
            if followed.is_new {
                first.is_new(&followed.key);
            }
            tell(followed);
        })
    }

    /// Keeps room free ahead of the kernel program for as long as this daemon may be away unforeseen, by the rate at which
    /// frames came of late. Drops about `most` records per lane at once.
    pub(crate) fn make_room(&mut self, most: u32, now_ns: u64) {
        self.room.measure(self.log.followed(), self.log.lane_slots(), now_ns);
        let wanted = self.room.wanted(self.log.lane_slots());
        self.log.make_ahead(wanted, most, now_ns);
    }

    /// The same for the time between this daemon's end and the next one's start; true when there is no more to do.
    pub(crate) fn make_room_for_absence(&mut self, most: u32, now_ns: u64) -> bool {
        let wanted = self.room.wanted_for_absence(self.log.lane_slots());
        self.log.make_ahead(wanted, most, now_ns)
    }

    /// Adds what was dropped and mended since the last call to `tally`.
    pub fn count_dropped(&mut self, tally: &mut Counters) {
        let Dropped { lap, expired, max_keys, bucket, stale_entries, holes, broken_chains } = self.log.take_dropped();
        for (counter, number) in [
            (Counter::EvictedLapShort, lap[0]),
            (Counter::EvictedLapLong, lap[1]),
            (Counter::EvictedExpired, expired),
            (Counter::EvictedMaxKeys, max_keys),
            (Counter::EvictedBucket, bucket),
            (Counter::LogStaleEntries, stale_entries),
            (Counter::LogHoles, holes),
            (Counter::LogBrokenChains, broken_chains),
        ] {
            *tally.get_mut(counter) += number;
        }
    }
}

impl Deref for Writer {
    type Target = DaemonWriter<Held>;

    fn deref(&self) -> &Self::Target {
        &self.log
    }
}

impl DerefMut for Writer {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.log
    }
}

// One word holds both counts, so that they change in one step.
const _: () =
    assert!(offset_of!(Lane, records).is_multiple_of(8) && offset_of!(Lane, live) == offset_of!(Lane, records) + 4);

/// The word in which these two stand one behind the other.
fn both(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// A word of the pages.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a>(&'a AtomicU64);

impl Word for Shared<'_> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        self.0.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// A bucket of the index.
#[derive(Clone, Copy, Debug)]
pub struct Entries<'a>(&'a [AtomicU64; index::BUCKET_ENTRIES]);

impl<'a> Bucket for Entries<'a> {
    type Word = Shared<'a>;

    fn entry(&self, i: usize) -> Shared<'a> {
        Shared(&self.0[i])
    }
}

impl Pages {
    /// The bucket of a hash.
    pub(super) fn entries(&self, hash: u64) -> Entries<'_> {
        Entries(self.index.words(bucket_offset(self, hash)))
    }

    /// The overflow bucket of a hash.
    pub(super) fn overflow(&self, hash: u64) -> Entries<'_> {
        Entries(self.index.words(overflow_offset(self, hash)))
    }

    fn lane_word(&self, lane: usize, field: usize) -> &AtomicU64 {
        self.lanes.word(lane * size_of::<Lane>() + field)
    }
}

impl Memory for Held {
    type Word<'a> = Shared<'a>;
    type Bucket<'a> = Entries<'a>;

    fn head(&self, lane: usize) -> Shared<'_> {
        Shared(self.0.lane_word(lane, offset_of!(Lane, head)))
    }

    fn limit(&self, lane: usize) -> Shared<'_> {
        Shared(self.0.lane_word(lane, offset_of!(Lane, limit)))
    }

    fn show(&self, lane: usize, shown: &Shown) {
        let counts = self.0.lane_word(lane, offset_of!(Lane, records));
        counts.store(both(Shown::UNKNOWN_RECORDS, shown.live), Ordering::Release);
        self.0.lane_word(lane, offset_of!(Lane, tail)).store(shown.tail, Ordering::Release);
        self.0.lane_word(lane, offset_of!(Lane, followed)).store(shown.followed, Ordering::Release);
        counts.store(both(shown.records, shown.live), Ordering::Release);
    }

    fn shown(&self, lane: usize) -> Shown {
        let Lane { tail, followed, records, live, .. } = self.0.lanes.read(lane * size_of::<Lane>());
        Shown { tail, followed, records, live }
    }

    fn version(&self, slot: u32) -> Shared<'_> {
        Shared(self.0.ring.word(slot_offset(slot)))
    }

    fn header(&self, slot: u32) -> RecordHeader {
        self.0.ring.read(slot_offset(slot))
    }

    fn set_header(&self, slot: u32, header: &RecordHeader) {
        const BEHIND_VERSION: usize = offset_of!(RecordHeader, expires_ns);
        // SAFETY: a header is integers and byte arrays without padding: all of its bytes are set.
        let bytes: [u8; RECORD_HEADER_LEN] = unsafe { std::mem::transmute(*header) };
        self.0.ring.copy_in(slot_offset(slot) + BEHIND_VERSION, &bytes[BEHIND_VERSION..]);
    }

    fn set_flags(&self, slot: u32, flags: u8) {
        self.0.ring.write(slot_offset(slot) + offset_of!(RecordHeader, flags), flags);
    }

    fn write_frame(&self, slot: u32, bytes: &[u8]) {
        self.0.ring.copy_in(slot_offset(slot) + RECORD_HEADER_LEN, bytes);
    }

    fn frame(&self, slot: u32, len: usize) -> &[u8] {
        // SAFETY: the caller says that the record is whole and not dropped: no writer writes there.
        unsafe { self.0.ring.bytes(slot_offset(slot) + RECORD_HEADER_LEN, len) }
    }

    fn bucket(&self, hash: u64) -> Entries<'_> {
        self.0.entries(hash)
    }

    fn overflow(&self, hash: u64) -> Entries<'_> {
        self.0.overflow(hash)
    }

    fn bucket_number(&self, hash: u64) -> u32 {
        index::bucket(hash, self.0.sizes.buckets - 1)
    }

    fn clear_entries(&self, is_void: &mut dyn FnMut(u64) -> bool) {
        for offset in (0..self.0.sizes.index_len()).step_by(8) {
            let word = self.0.index.word(offset);
            let entry = word.load(Ordering::Acquire);
            if entry != 0 && is_void(entry) {
                // Else its writer has withdrawn it meanwhile.
                let _ = word.compare_exchange(entry, 0, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
    }

    fn each_bucket(&self, look: &(dyn Fn(&Self, u64) -> IndexCount + Sync)) -> IndexCount {
        let buckets = self.0.sizes.buckets;
        let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, SCAN_THREADS);
        let share = buckets.div_ceil(u32::try_from(threads).unwrap_or(1)).max(SCAN_SHARE);
        let count = |from: u32| {
            let mut sum = IndexCount::default();
            for bucket in from..from.saturating_add(share).min(buckets) {
                sum += look(self, u64::from(bucket));
            }
            sum
        };
        let starts = (0..buckets).step_by(usize::try_from(share).unwrap_or(usize::MAX));
        std::thread::scope(|scope| {
            let threads: Vec<_> = starts.map(|from| scope.spawn(move || count(from))).collect();
            threads.into_iter().fold(IndexCount::default(), |mut sum, thread| {
                sum += thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                sum
            })
        })
    }

    fn fetch(&self, slot: u32) {
        self.0.ring.fetch(slot_offset(slot));
    }

    fn pause(&self, attempt: u32) -> bool {
        if attempt < SPINS {
            for _ in 0..32 {
                std::hint::spin_loop();
            }
        } else if attempt < SPINS + SLEEPS {
            std::thread::sleep(SLEEP);
        } else {
            return false;
        }
        true
    }
}
