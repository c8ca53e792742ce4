//! Appending to the log. One writer; the kernel and other threads only read.
//!
//! Longer than most files: whatever changes ring, index and the count of live frames stands here and nowhere else.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use retry_common::abi::{
    Lane, RECORD_HEADER_LEN, RecordHeader, SEGMENT_LEN, SEGMENT_SLOTS, SEGMENT_TAIL, SLOT_LEN, record_flag,
};
use retry_common::checksum;
use retry_common::counter::Counter;
use retry_common::index;
use retry_common::key::FrameKey;
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

/// The writer's place in one lane.
#[derive(Debug)]
struct Cursor {
    lane: Lane,
    used_slots: u32,
}

/// Appends frames and drops old ones.
#[derive(Debug)]
pub struct Writer {
    pages: Arc<Pages>,
    cursors: [Cursor; 2],
    hash_seed: u64,
    next_version: u64,
    max_keys: u64,
    live: u64,
    evictions: Vec<Counter>,
}

const NS_PER_MS: u64 = 1_000_000;

impl Writer {
    pub(super) fn new(pages: Arc<Pages>, hash_seed: u64, max_keys: u64) -> Self {
        let cursors = pages.sizes.lanes().map(|(first_slot, slots)| Cursor {
            lane: Lane { first_slot, slots, head: first_slot, tail: first_slot, next_version: 2, records: 0 },
            used_slots: 0,
        });
        let writer = Self { pages, cursors, hash_seed, next_version: 2, max_keys, live: 0, evictions: Vec::new() };
        writer.publish(0);
        writer.publish(1);
        writer
    }

    /// Frames that can be found.
    pub const fn live(&self) -> u64 {
        self.live
    }

    /// What was dropped since the last call, one counter each.
    pub fn drain_evictions(&mut self) -> std::vec::Drain<'_, Counter> {
        self.evictions.drain(..)
    }

    /// Appends `frame`.
    pub fn put(&mut self, frame: &NewFrame<'_>, now_ns: u64) -> Put {
        let slots = match slots_of(frame.bytes.len()) {
            Some(slots) if !frame.bytes.is_empty() => slots,
            _ => return Put::TooLarge,
        };
        let hash = index::hash(&frame.key, self.hash_seed);
        let partial = checksum::partial(frame.bytes);
        let mut outcome = Put::Stored;
        if let Some((place, slot)) = self.entry_of(hash) {
            let there = self.header(slot);
            if there.key != frame.key {
                // Another key with this tag in this bucket: readers expect one at most.
                self.forget(place, Counter::EvictedBucket);
            } else if now_ns >= there.expires_ns {
                self.forget(place, Counter::EvictedExpired);
            } else if there.partial == partial && self.has_bytes(slot, &there, frame.bytes) {
                return Put::Duplicate;
            } else {
                // Readers find the old record until the new one stands: the entry is overwritten below.
                outcome = Put::Replaced;
            }
        }
        let lane = lane_of(frame.class);
        if self.max_keys != 0 && outcome == Put::Stored {
            while self.live >= self.max_keys && self.evict_any(lane, now_ns) {}
        }
        let slot = self.reserve(lane, slots, now_ns);
        if outcome == Put::Replaced && self.entry_of(hash).is_none() {
            // The old record was the one that made way, and is counted as such.
            outcome = Put::Stored;
        }
        let version = self.next_version;
        self.next_version += 2;
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
        let start = slot_offset(slot);
        self.pages.ring.write(start, header);
        self.pages.ring.copy_in(start + RECORD_HEADER_LEN, frame.bytes);
        self.pages.ring.word(start).store(version, Ordering::Release);
        self.insert(hash, slot);
        let cursor = &mut self.cursors[lane];
        cursor.lane.records += 1;
        cursor.lane.next_version = self.next_version;
        self.publish(lane);
        outcome
    }

    /// Takes the frame of `key` out and returns whether there was one; one whose life is over counts, until it is swept.
    ///
    /// From here on no look-up finds it; a reader that found it before may still finish its copy. The record itself stays
    /// in the ring until the ring comes round: the index alone says what is there.
    pub fn remove(&mut self, key: &FrameKey) -> bool {
        let Some((place, slot)) = self.entry_of(index::hash(key, self.hash_seed)) else {
            return false;
        };
        // The entry has the key's tag; the record tells whether it is the key's.
        if self.header(slot).key != *key {
            return false;
        }
        self.pages.index.word(place).store(0, Ordering::Release);
        self.live -= 1;
        true
    }

    /// Drops records from the old end whose life is over, at most `most` of them.
    pub fn expire(&mut self, now_ns: u64, most: usize) {
        for lane in 0..self.cursors.len() {
            for _ in 0..most {
                let cursor = &self.cursors[lane];
                if cursor.used_slots == 0 {
                    break;
                }
                let header = self.header(cursor.lane.tail);
                let over = header.flags & record_flag::FILLER != 0 || now_ns >= header.expires_ns;
                if !over && self.is_findable(cursor.lane.tail, &header) {
                    break;
                }
                self.evict(lane, now_ns, Counter::EvictedLap);
            }
            self.publish(lane);
        }
    }

    /// How full the lanes are: short-lived classes, long-lived classes.
    pub fn lane_use(&self, now_ns: u64) -> [LaneUse; 2] {
        [0, 1].map(|i| {
            let cursor = &self.cursors[i];
            LaneUse {
                used_bytes: u64::from(cursor.used_slots) * SLOT_LEN as u64,
                size_bytes: u64::from(cursor.lane.slots) * SLOT_LEN as u64,
                oldest_age_ms: self.oldest_age_ms(cursor, now_ns),
            }
        })
    }

    fn oldest_age_ms(&self, cursor: &Cursor, now_ns: u64) -> u64 {
        let (mut slot, mut left) = (cursor.lane.tail, cursor.used_slots);
        while left > 0 {
            let header = self.header(slot);
            if header.flags & record_flag::FILLER == 0 && self.is_findable(slot, &header) {
                let stored_ns = header.expires_ns.saturating_sub(u64::from(header.life_ms) * NS_PER_MS);
                return now_ns.saturating_sub(stored_ns) / NS_PER_MS;
            }
            let slots = record_slots(&header);
            slot = next_slot(&cursor.lane, slot, slots);
            left = left.saturating_sub(slots);
        }
        0
    }

    /// Room for `slots` slots at the head of the lane, made by dropping the oldest records.
    fn reserve(&mut self, lane: usize, slots: u32, now_ns: u64) -> u32 {
        let head = self.cursors[lane].lane.head;
        let into_segment = head % SEGMENT_SLOTS;
        let left = SEGMENT_SLOTS - into_segment;
        let too_late = into_segment as usize * SLOT_LEN > SEGMENT_LEN - SEGMENT_TAIL;
        if too_late || slots > left {
            self.make_room(lane, left, now_ns);
            let filler = RecordHeader {
                version: 0,
                length: u32::try_from(left as usize * SLOT_LEN - RECORD_HEADER_LEN).unwrap_or(0),
                flags: record_flag::FILLER,
                ..RecordHeader::default()
            };
            self.pages.ring.write(slot_offset(head), filler);
            self.take(lane, left);
            self.cursors[lane].lane.records += 1;
        }
        self.make_room(lane, slots, now_ns);
        let slot = self.cursors[lane].lane.head;
        self.take(lane, slots);
        slot
    }

    fn take(&mut self, lane: usize, slots: u32) {
        let cursor = &mut self.cursors[lane];
        cursor.lane.head = next_slot(&cursor.lane, cursor.lane.head, slots);
        cursor.used_slots += slots;
    }

    fn make_room(&mut self, lane: usize, slots: u32, now_ns: u64) {
        while self.cursors[lane].lane.slots - self.cursors[lane].used_slots < slots {
            self.evict(lane, now_ns, Counter::EvictedLap);
        }
        // Nobody may still read as a record what is written over next.
        fence(Ordering::SeqCst);
    }

    /// Drops one findable record for `cache-max-keys`, of `lane` if it has any.
    fn evict_any(&mut self, lane: usize, now_ns: u64) -> bool {
        for lane in [lane, 1 - lane] {
            while self.cursors[lane].used_slots > 0 {
                if self.evict(lane, now_ns, Counter::EvictedMaxKeys) {
                    self.publish(lane);
                    return true;
                }
            }
        }
        false
    }

    /// Drops the oldest record of the lane; true when it could still be found.
    fn evict(&mut self, lane: usize, now_ns: u64, reason: Counter) -> bool {
        let slot = self.cursors[lane].lane.tail;
        let header = self.header(slot);
        let mut was_live = false;
        if header.flags & record_flag::FILLER == 0 {
            let hash = index::hash(&header.key, self.hash_seed);
            if let Some((place, _)) = self.entry_of(hash).filter(|(_, there)| *there == slot) {
                self.forget(place, if now_ns >= header.expires_ns { Counter::EvictedExpired } else { reason });
                was_live = true;
            }
            self.pages.ring.word(slot_offset(slot)).store(0, Ordering::Release);
        }
        let slots = record_slots(&header);
        let cursor = &mut self.cursors[lane];
        cursor.lane.tail = next_slot(&cursor.lane, slot, slots);
        cursor.lane.records = cursor.lane.records.saturating_sub(1);
        cursor.used_slots -= slots;
        was_live
    }

    /// Puts `slot` into the hash's bucket: over the entry with its tag, else in an empty place, else in the oldest's.
    fn insert(&mut self, hash: u64, slot: u32) {
        let start = bucket_offset(&self.pages, hash);
        let mut target = None;
        let mut oldest = (u64::MAX, start);
        for place in (0..index::BUCKET_ENTRIES).map(|i| start + i * 8) {
            let entry = self.pages.index.word(place).load(Ordering::Relaxed);
            if index::has_tag(entry, index::tag(hash)) {
                self.pages.index.word(place).store(index::entry(hash, slot), Ordering::Release);
                return;
            }
            if entry == 0 {
                target = target.or(Some(place));
            } else {
                let version = self.header(index::slot(entry)).version;
                oldest = oldest.min((version, place));
            }
        }
        let place = target.unwrap_or_else(|| {
            self.forget(oldest.1, Counter::EvictedBucket);
            oldest.1
        });
        self.pages.index.word(place).store(index::entry(hash, slot), Ordering::Release);
        self.live += 1;
    }

    /// Empties an index entry.
    fn forget(&mut self, place: usize, reason: Counter) {
        self.pages.index.word(place).store(0, Ordering::Release);
        self.live -= 1;
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
        usize::try_from(header.length) == Ok(bytes.len())
            && self.pages.ring.equals(slot_offset(slot) + RECORD_HEADER_LEN, bytes)
    }

    fn publish(&self, lane: usize) {
        self.pages.lanes.write(lane * size_of::<Lane>(), self.cursors[lane].lane);
    }
}

/// Slots of a record with a frame of `len` bytes; `None` when no UDP datagram is that long.
fn slots_of(len: usize) -> Option<u32> {
    u16::try_from(len).ok()?;
    u32::try_from((RECORD_HEADER_LEN + len).div_ceil(SLOT_LEN)).ok()
}

fn record_slots(header: &RecordHeader) -> u32 {
    (u32::try_from(RECORD_HEADER_LEN).unwrap_or(0) + header.length).div_ceil(u32::try_from(SLOT_LEN).unwrap_or(1))
}

/// The slot after a record, around the end of the lane.
const fn next_slot(lane: &Lane, slot: u32, slots: u32) -> u32 {
    let next = slot + slots;
    if next >= lane.first_slot + lane.slots { lane.first_slot } else { next }
}
