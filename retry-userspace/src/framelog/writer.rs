//! Appending to the log, dropping from it, and following what the kernel appends. The kernel may take places at the head
//! and fill empty index entries; everything else is the one writer's. Other threads only read.
//!
//! Longer than most files: whatever changes ring, index and the count of live frames stands here and nowhere else.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use retry_common::abi::{Lane, RECORD_HEADER_LEN, RecordHeader, SLOT_LEN, record_flag};
use retry_common::checksum;
use retry_common::counter::Counter;
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::place::{self, Reservation};
use retry_common::wire::frame::Class;

use super::reader::{bucket_offset, slot_offset};
use super::{Pages, lane_of};

/// A frame to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewFrame<'a> {
    /// Its key.
    pub key: FrameKey,
    /// Its class.
    pub class: Class,
    /// Index of the group that it came by.
    pub group: u16,
    /// Its life from now, milliseconds.
    pub life_ms: u32,
    /// True when the kernel cannot send it.
    pub daemon_only: bool,
    /// The datagram.
    pub bytes: &'a [u8],
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Put {
    /// It is in the log.
    Stored,
    /// The log has it already, byte for byte: the first record and its life stay.
    Duplicate,
    /// It is in the log in the place of another with its key (a restarted publisher): the newest wins.
    Replaced,
    /// No record can hold it.
    TooLarge,
}

/// What the kernel has just written is in the way, and has to be followed first.
#[derive(Debug)]
struct Behind;

/// What the kernel has stored, as [`Writer::follow`] finds it.
#[derive(Clone, Copy, Debug)]
pub struct Followed<'a> {
    /// Its key.
    pub key: FrameKey,
    /// Its life, milliseconds.
    pub life_ms: u32,
    /// The frame.
    pub bytes: &'a [u8],
    /// False when it was there already: two CPUs had it at once.
    pub is_new: bool,
}

/// How full a lane is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LaneUse {
    /// Bytes from the oldest record to the newest.
    pub used_bytes: u64,
    /// Bytes of the lane.
    pub size_bytes: u64,
    /// Age of the oldest record that can still be found, milliseconds; 0 when there is none.
    pub oldest_age_ms: u64,
}

/// Appends frames and drops old ones.
#[derive(Debug)]
pub struct Writer {
    pages: Arc<Pages>,
    lanes: [Cursor; 2],
    hash_seed: u64,
    max_keys: u64,
    live: u64,
    evictions: Vec<Counter>,
}

/// What does not change of a lane, and what the writer alone changes. The head is in the shared memory.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    first_slot: u32,
    slots: u32,
    tail: u64,
    followed: u64,
    records: u64,
}

const NS_PER_MS: u64 = 1_000_000;
/// The part of a lane that may be kept free.
const AHEAD_SHARE: u32 = 16;
/// Records that are dropped before the kernel is told of the room.
const GIVEN_AT_ONCE: u32 = 64;
/// How many records ahead the header is asked for.
const FETCH_AHEAD: u32 = 8;

impl Writer {
    pub(super) fn new(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> Self {
        // Nobody outside knows the seed, nor what it gives here.
        let first = place::at(u32::try_from(hash_seed >> 32).unwrap_or(0) % place::FIRST_LAPS, 0);
        let lanes = pages.sizes.lanes().map(|(first_slot, slots)| Cursor {
            first_slot,
            slots,
            tail: first,
            followed: first,
            records: 0,
        });
        for (number, cursor) in lanes.iter().enumerate() {
            let limit = place::lap_later(first);
            let lane = Lane {
                head: first,
                limit,
                tail: first,
                followed: first,
                records: 0,
                first_slot: cursor.first_slot,
                slots: cursor.slots,
            };
            pages.lanes.write(number * size_of::<Lane>(), lane);
        }
        Self { pages, lanes, hash_seed, max_keys, live: 0, evictions: Vec::new() }
    }

    /// Frames that can be found.
    pub const fn live(&self) -> u64 {
        self.live
    }

    /// What was dropped since the last call, one counter each.
    pub fn drain_evictions(&mut self) -> std::vec::Drain<'_, Counter> {
        self.evictions.drain(..)
    }

    /// Appends `frame`, after following what the kernel has written so far; `tell` is told of that as by
    /// [`Writer::follow`].
    pub fn put(&mut self, frame: &NewFrame<'_>, now_ns: u64, mut tell: impl FnMut(Followed<'_>)) -> Put {
        loop {
            self.follow(now_ns, usize::MAX, &mut tell);
            match self.try_put(frame, now_ns) {
                Ok(outcome) => return outcome,
                // The kernel is writing right now, for a few hundred nanoseconds.
                Err(Behind) => std::hint::spin_loop(),
            }
        }
    }

    fn try_put(&mut self, frame: &NewFrame<'_>, now_ns: u64) -> Result<Put, Behind> {
        let slots = match slots_of(frame.bytes.len()) {
            Some(slots) if !frame.bytes.is_empty() => slots,
            _ => return Ok(Put::TooLarge),
        };
        let hash = index::hash(&frame.key, self.hash_seed);
        let partial = checksum::partial(frame.bytes);
        let mut outcome = Put::Stored;
        if let Some((place, slot)) = self.entry_of(hash) {
            let there = self.header(slot);
            if !self.is_followed(slot, &there) {
                return Err(Behind);
            }
            if there.key != frame.key {
                // Another key with this tag in this bucket: readers expect one at most.
                self.forget(place, Counter::EvictedBucket);
            } else if now_ns >= there.expires_ns {
                self.forget(place, Counter::EvictedExpired);
            } else if there.partial == partial && self.has_bytes(slot, &there, frame.bytes) {
                return Ok(Put::Duplicate);
            } else {
                // Readers find the old record until the new one stands: the entry is overwritten below.
                outcome = Put::Replaced;
            }
        }
        let lane = lane_of(frame.class);
        if self.max_keys != 0 && outcome == Put::Stored {
            while self.live >= self.max_keys && self.evict_any(lane, now_ns) {}
        }
        let Some(place) = self.reserve(lane, slots, now_ns) else {
            return Err(Behind);
        };
        if outcome == Put::Replaced && self.entry_of(hash).is_none() {
            // The old record was the one that made way, and is counted as such.
            outcome = Put::Stored;
        }
        let version = place::version(place);
        let expires_ns = now_ns.saturating_add(u64::from(frame.life_ms) * NS_PER_MS);
        let header = RecordHeader {
            version: version | 1,
            expires_ns,
            key: frame.key,
            length: u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX),
            life_ms: frame.life_ms,
            partial,
            group: frame.group,
            class: frame.class as u8,
            flags: if frame.daemon_only { record_flag::DAEMON_ONLY } else { 0 },
            reserved: [0; 2],
        };
        let slot = self.slot(lane, place);
        let start = slot_offset(slot);
        self.pages.ring.write(start, header);
        self.pages.ring.copy_in(start + RECORD_HEADER_LEN, frame.bytes);
        self.pages.ring.word(start).store(version, Ordering::Release);
        self.insert(hash, slot);
        self.walk_own(lane);
        Ok(outcome)
    }

    /// Reads on over what the kernel has written, up to `most` records: counts it, indexes what the kernel could not, and
    /// tells `tell` of each frame. True when nothing is left to follow.
    ///
    /// A record that is being written ends the walk; its CPU is a few hundred nanoseconds away from the end of it.
    pub fn follow(&mut self, now_ns: u64, most: usize, mut tell: impl FnMut(Followed<'_>)) -> bool {
        let mut whole = true;
        for lane in 0..self.lanes.len() {
            // Looked at once: each look takes its line from the CPU that stores.
            let head = self.head(lane).load(Ordering::Acquire);
            if self.lanes[lane].followed == head {
                continue;
            }
            for _ in 0..most {
                let Some((slot, header)) = self.next_followed(lane, head) else { break };
                if header.flags & (record_flag::KERNEL | record_flag::FILLER) == record_flag::KERNEL {
                    let is_new = self.adopt(slot, &header);
                    let (key, life_ms) = (header.key, header.life_ms);
                    let len = usize::try_from(header.length).unwrap_or(0);
                    // SAFETY: a whole record, and nobody writes here before this writer has dropped it.
                    let bytes = unsafe { self.pages.ring.bytes(slot_offset(slot) + RECORD_HEADER_LEN, len) };
                    tell(Followed { key, life_ms, bytes, is_new });
                }
                self.pass(lane, &header);
            }
            whole &= self.lanes[lane].followed == self.head(lane).load(Ordering::Acquire);
            self.publish(lane);
        }
        if self.max_keys != 0 {
            while self.live > self.max_keys && self.evict_any(0, now_ns) {}
        }
        whole
    }

    /// Drops old records until `slots` slots of each lane are free for the kernel to write to, at most a sixteenth of it.
    pub fn make_ahead(&mut self, slots: u32, now_ns: u64) {
        for lane in 0..self.lanes.len() {
            let wanted = slots.min(self.lanes[lane].slots / AHEAD_SHARE);
            // The head is looked at now and then only: each look takes its line from the CPU that stores.
            loop {
                let free = self.free(lane);
                let Cursor { tail, followed, slots: lane_slots, .. } = self.lanes[lane];
                if free >= wanted || tail == followed {
                    break;
                }
                for _ in 0..GIVEN_AT_ONCE {
                    let dropped = place::distance(tail, self.lanes[lane].tail, lane_slots);
                    if free + dropped >= wanted || self.lanes[lane].tail == followed {
                        break;
                    }
                    self.drop_oldest(lane, now_ns, Counter::EvictedLap);
                }
                self.give_room(lane);
            }
            self.publish(lane);
        }
    }

    /// Counts in a record of the kernel's; true when it is new.
    fn adopt(&mut self, slot: u32, header: &RecordHeader) -> bool {
        let hash = index::hash(&header.key, self.hash_seed);
        match self.entry_of(hash) {
            Some((_, there)) if there == slot => {
                self.live += 1;
                true
            }
            // Another CPU was quicker with the same frame. The kernel does not replace: only this writer does, and never
            // what it has not followed.
            Some(_) => {
                if let Some(place) = self.place_of(hash, slot) {
                    self.pages.index.word(place).store(0, Ordering::Release);
                }
                false
            }
            // Somebody else had taken the place in the bucket.
            None => {
                self.insert(hash, slot);
                true
            }
        }
    }

    /// The next record of the lane before `head` that is not followed yet, once it is whole.
    fn next_followed(&self, lane: usize, head: u64) -> Option<(u32, RecordHeader)> {
        let followed = self.lanes[lane].followed;
        if followed == head {
            return None;
        }
        let slot = self.slot(lane, followed);
        let is_whole = self.pages.ring.word(slot_offset(slot)).load(Ordering::Acquire) == place::version(followed);
        is_whole.then(|| (slot, self.header(slot)))
    }

    /// Goes on over this writer's own records, if nothing else is in between.
    fn walk_own(&mut self, lane: usize) {
        while let Some((_, header)) = self.next_followed(lane, self.head(lane).load(Ordering::Acquire)) {
            if header.flags & record_flag::KERNEL != 0 {
                break;
            }
            self.pass(lane, &header);
        }
        self.publish(lane);
    }

    fn pass(&mut self, lane: usize, header: &RecordHeader) {
        let slots = record_slots(header);
        let cursor = &mut self.lanes[lane];
        cursor.followed = place::after(cursor.followed, slots, cursor.slots);
        cursor.records += 1;
        self.fetch_beyond(lane, self.lanes[lane].followed, slots);
    }

    /// True when this writer has counted the record in.
    fn is_followed(&self, slot: u32, header: &RecordHeader) -> bool {
        if header.flags & record_flag::KERNEL == 0 {
            return true;
        }
        let lane = usize::from(slot >= self.lanes[1].first_slot);
        header.version < place::version(self.lanes[lane].followed)
    }

    /// Takes the frame of `key` out, after following what the kernel has written, and returns whether there was one; one whose life is over counts, until it is swept.
    ///
    /// From here on no look-up finds it; a reader that found it before may still finish its copy. The record itself stays
    /// in the ring until the ring comes round: the index alone says what is there.
    pub fn remove(&mut self, key: &FrameKey, now_ns: u64, mut tell: impl FnMut(Followed<'_>)) -> bool {
        let (place, header) = loop {
            self.follow(now_ns, usize::MAX, &mut tell);
            let Some((place, slot)) = self.entry_of(index::hash(key, self.hash_seed)) else {
                return false;
            };
            let header = self.header(slot);
            if self.is_followed(slot, &header) {
                break (place, header);
            }
            std::hint::spin_loop();
        };
        // The entry has the key's tag; the record tells whether it is the key's.
        if header.key != *key {
            return false;
        }
        self.pages.index.word(place).store(0, Ordering::Release);
        self.live = self.live.saturating_sub(1);
        true
    }

    /// Drops records from the old end whose life is over, at most `most` of them.
    pub fn expire(&mut self, now_ns: u64, most: usize) {
        for lane in 0..self.lanes.len() {
            for _ in 0..most {
                let cursor = &self.lanes[lane];
                if cursor.tail == cursor.followed {
                    break;
                }
                let slot = self.slot(lane, cursor.tail);
                let header = self.header(slot);
                let over = header.flags & record_flag::FILLER != 0 || now_ns >= header.expires_ns;
                if !over && self.is_findable(slot, &header) {
                    break;
                }
                self.evict(lane, now_ns, Counter::EvictedLap);
            }
            self.publish(lane);
        }
    }

    /// How full the lanes are: short-lived classes, long-lived classes.
    pub fn lane_use(&self, now_ns: u64) -> [LaneUse; 2] {
        [0, 1].map(|lane| LaneUse {
            used_bytes: u64::from(self.used(lane)) * SLOT_LEN as u64,
            size_bytes: u64::from(self.lanes[lane].slots) * SLOT_LEN as u64,
            oldest_age_ms: self.oldest_age_ms(lane, now_ns),
        })
    }

    fn oldest_age_ms(&self, lane: usize, now_ns: u64) -> u64 {
        let cursor = &self.lanes[lane];
        let mut place = cursor.tail;
        while place != cursor.followed {
            let slot = self.slot(lane, place);
            let header = self.header(slot);
            if header.flags & record_flag::FILLER == 0 && self.is_findable(slot, &header) {
                return now_ns.saturating_sub(stored_ns(&header)) / NS_PER_MS;
            }
            place = place::after(place, record_slots(&header), cursor.slots);
        }
        0
    }

    /// Takes `slots` slots at the head of the lane, with room made by dropping the oldest records; `None` when the oldest
    /// have yet to be followed.
    fn reserve(&mut self, lane: usize, slots: u32, now_ns: u64) -> Option<u64> {
        let lane_slots = self.lanes[lane].slots;
        loop {
            let head = self.head(lane).load(Ordering::Acquire);
            let limit = place::lap_later(self.lanes[lane].tail);
            let Some(Reservation { filler, start, end }) = place::reserve(head, limit, slots, lane_slots) else {
                if self.lanes[lane].tail == self.lanes[lane].followed {
                    return None;
                }
                self.evict(lane, now_ns, Counter::EvictedLap);
                continue;
            };
            // Nobody may still read as a record what is written over next.
            fence(Ordering::SeqCst);
            if self.head(lane).compare_exchange(head, end, Ordering::AcqRel, Ordering::Acquire).is_err() {
                continue;
            }
            if filler != 0 {
                let place = slot_offset(self.slot(lane, head));
                let rest = filler as usize * SLOT_LEN - RECORD_HEADER_LEN;
                let header = RecordHeader {
                    version: place::version(head) | 1,
                    length: u32::try_from(rest).unwrap_or(0),
                    flags: record_flag::FILLER,
                    ..RecordHeader::default()
                };
                self.pages.ring.write(place, header);
                self.pages.ring.word(place).store(place::version(head), Ordering::Release);
            }
            return Some(start);
        }
    }

    /// Drops one findable record for `cache-max-keys`, of `lane` if it has any.
    fn evict_any(&mut self, lane: usize, now_ns: u64) -> bool {
        for lane in [lane, 1 - lane] {
            while self.lanes[lane].tail != self.lanes[lane].followed {
                if self.evict(lane, now_ns, Counter::EvictedMaxKeys) {
                    self.publish(lane);
                    return true;
                }
            }
        }
        false
    }

    /// Drops the oldest record of the lane, which has been followed; true when it could still be found.
    fn evict(&mut self, lane: usize, now_ns: u64, reason: Counter) -> bool {
        let was_live = self.drop_oldest(lane, now_ns, reason);
        self.give_room(lane);
        was_live
    }

    /// Lets others write where records were dropped.
    fn give_room(&self, lane: usize) {
        let limit = place::lap_later(self.lanes[lane].tail);
        // Nobody may still read as a record what the kernel writes over next.
        fence(Ordering::SeqCst);
        self.word(lane, offset_of!(Lane, limit)).store(limit, Ordering::Release);
    }

    /// Drops the oldest record of a lane; true when it was findable. Its room is not given to others yet.
    fn drop_oldest(&mut self, lane: usize, now_ns: u64, reason: Counter) -> bool {
        let slot = self.slot(lane, self.lanes[lane].tail);
        let header = self.header(slot);
        let mut was_live = false;
        if header.flags & record_flag::FILLER == 0 {
            let hash = index::hash(&header.key, self.hash_seed);
            if let Some(place) = self.place_of(hash, slot) {
                self.forget(place, if now_ns >= header.expires_ns { Counter::EvictedExpired } else { reason });
                was_live = true;
            }
        }
        self.pages.ring.word(slot_offset(slot)).store(0, Ordering::Release);
        let slots = record_slots(&header);
        let cursor = &mut self.lanes[lane];
        cursor.tail = place::after(cursor.tail, slots, cursor.slots);
        cursor.records = cursor.records.saturating_sub(1);
        self.fetch_beyond(lane, self.lanes[lane].tail, slots);
        was_live
    }

    /// Asks for the header of the record some places beyond `place`, if those between are as long as the last one, of `slots`.
    ///
    /// The chain of headers is read from one to the next, and each was last touched by another CPU or long ago: waited for
    /// one by one, they cost more than all the rest.
    fn fetch_beyond(&self, lane: usize, place: u64, slots: u32) {
        let beyond = place::slot(place).saturating_add(slots * FETCH_AHEAD);
        if beyond < self.lanes[lane].slots {
            self.pages.ring.fetch(slot_offset(self.lanes[lane].first_slot + beyond));
        }
    }

    /// Puts `slot` into the hash's bucket: over the entry with its tag, else in an empty place, else in the oldest's.
    fn insert(&mut self, hash: u64, slot: u32) {
        let start = bucket_offset(&self.pages, hash);
        let entry = index::entry(hash, slot);
        let places = || (0..index::BUCKET_ENTRIES).map(|i| start + i * 8);
        for place in places() {
            if index::has_tag(self.pages.index.word(place).load(Ordering::Relaxed), index::tag(hash)) {
                self.pages.index.word(place).store(entry, Ordering::Release);
                return;
            }
        }
        // The kernel fills empty places too.
        let empty = |place: &usize| {
            self.pages.index.word(*place).compare_exchange(0, entry, Ordering::Release, Ordering::Relaxed).is_ok()
        };
        if places().find(empty).is_none() {
            let age = |place: &usize| {
                let header = self.header(index::slot(self.pages.index.word(*place).load(Ordering::Relaxed)));
                (stored_ns(&header), header.version)
            };
            let oldest = places().min_by_key(age).unwrap_or(start);
            self.forget(oldest, Counter::EvictedBucket);
            self.pages.index.word(oldest).store(entry, Ordering::Release);
        }
        self.live += 1;
    }

    /// Empties an index entry.
    fn forget(&mut self, place: usize, reason: Counter) {
        self.pages.index.word(place).store(0, Ordering::Release);
        self.live = self.live.saturating_sub(1);
        self.evictions.push(reason);
    }

    /// The place and the slot of the entry with the hash's tag.
    fn entry_of(&self, hash: u64) -> Option<(usize, u32)> {
        let start = bucket_offset(&self.pages, hash);
        (0..index::BUCKET_ENTRIES).map(|i| start + i * 8).find_map(|place| {
            let entry = self.pages.index.word(place).load(Ordering::Relaxed);
            index::has_tag(entry, index::tag(hash)).then(|| (place, index::slot(entry)))
        })
    }

    fn is_findable(&self, slot: u32, header: &RecordHeader) -> bool {
        self.entry_of(index::hash(&header.key, self.hash_seed)).is_some_and(|(_, there)| there == slot)
    }

    fn header(&self, slot: u32) -> RecordHeader {
        self.pages.ring.read(slot_offset(slot))
    }

    fn has_bytes(&self, slot: u32, header: &RecordHeader, bytes: &[u8]) -> bool {
        if usize::try_from(header.length) != Ok(bytes.len()) {
            return false;
        }
        // SAFETY: as in `follow`: the header is one that the index leads to.
        let there = unsafe { self.pages.ring.bytes(slot_offset(slot) + RECORD_HEADER_LEN, bytes.len()) };
        there == bytes
    }

    /// The place in the index of the entry for exactly this slot.
    fn place_of(&self, hash: u64, slot: u32) -> Option<usize> {
        let start = bucket_offset(&self.pages, hash);
        let wanted = index::entry(hash, slot);
        (0..index::BUCKET_ENTRIES)
            .map(|i| start + i * 8)
            .find(|place| self.pages.index.word(*place).load(Ordering::Relaxed) == wanted)
    }

    fn slot(&self, lane: usize, place: u64) -> u32 {
        self.lanes[lane].first_slot + place::slot(place)
    }

    fn used(&self, lane: usize) -> u32 {
        let cursor = &self.lanes[lane];
        place::distance(cursor.tail, self.head(lane).load(Ordering::Acquire), cursor.slots)
    }

    fn free(&self, lane: usize) -> u32 {
        self.lanes[lane].slots.saturating_sub(self.used(lane))
    }

    fn head(&self, lane: usize) -> &AtomicU64 {
        self.word(lane, offset_of!(Lane, head))
    }

    fn word(&self, lane: usize, field: usize) -> &AtomicU64 {
        self.pages.lanes.word(lane * size_of::<Lane>() + field)
    }

    /// Shows where the writer stands.
    fn publish(&self, lane: usize) {
        let Cursor { tail, followed, records, .. } = self.lanes[lane];
        self.word(lane, offset_of!(Lane, tail)).store(tail, Ordering::Relaxed);
        self.word(lane, offset_of!(Lane, followed)).store(followed, Ordering::Relaxed);
        self.word(lane, offset_of!(Lane, records)).store(records, Ordering::Relaxed);
    }
}

/// When a record was stored, nanoseconds of the monotonic clock.
fn stored_ns(header: &RecordHeader) -> u64 {
    header.expires_ns.saturating_sub(u64::from(header.life_ms) * NS_PER_MS)
}

/// Slots of a record with a frame of `len` bytes; `None` when no UDP datagram is that long.
fn slots_of(len: usize) -> Option<u32> {
    u16::try_from(len).ok()?;
    u32::try_from((RECORD_HEADER_LEN + len).div_ceil(SLOT_LEN)).ok()
}

fn record_slots(header: &RecordHeader) -> u32 {
    (u32::try_from(RECORD_HEADER_LEN).unwrap_or(0) + header.length).div_ceil(u32::try_from(SLOT_LEN).unwrap_or(1))
}
