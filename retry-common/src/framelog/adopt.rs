//! How the daemon takes over a log that the writer of another process left, at whatever instruction that ended.
//!
//! The kernel program may go on appending meanwhile. `docs/decisions/0015-a-log-that-is-taken-over.md` says which instruction
//! leaves what, and which of the steps here repairs it.

use core::fmt;

use super::daemon::{self, Cursor, DaemonWriter, Dropped, Entry, record_slots};
use super::{Bucket, IndexCount, Memory, Shown, Word};
use crate::abi::{RecordHeader, SEGMENT_SLOTS, record_flag};
use crate::index::{self, BUCKET_ENTRIES};
use crate::position;

/// How often [`Memory::pause`] runs out before a position that no writer commits is given up: 20 ms in the daemon. A dead
/// daemon's position cannot be told from one of a CPU that is about to commit it.
const PAUSES: u32 = 4;

/// What was found in a log that was taken over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Adopted {
    /// Frames that can be found, those aside that the kernel program has stored and that are not followed yet.
    pub frames: u64,
    /// Records of the kernel program's that are not followed yet: [`DaemonWriter::follow`] tells of them.
    pub unfollowed: u64,
    /// Positions that no writer committed, made fillers.
    pub holes: u64,
    /// Whole records without an entry, entered.
    pub entered: u64,
    /// Records that were dropped and whose room was not given yet.
    pub dropped: u64,
    /// Index entries that led nowhere, removed.
    pub stale_entries: u64,
    /// Index entries of a key that had a newer one, removed.
    pub doubled_entries: u64,
    /// Lanes of which every record had to be read to count them.
    pub walked_lanes: u64,
}

/// Why a log cannot be taken over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unusable {
    /// A lane has another first slot or other slots than the caller wants.
    OtherLanes {
        /// Its number.
        lane: usize,
    },
    /// The words of a lane contradict each other.
    Contradiction {
        /// Its number.
        lane: usize,
    },
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherLanes { lane } => write!(f, "lane {lane} has another size"),
            Self::Contradiction { lane } => write!(f, "the words of lane {lane} contradict each other"),
        }
    }
}

impl core::error::Error for Unusable {}

impl<M: Memory> DaemonWriter<M> {
    /// The writer of a log that the writer of another process left. That process has ended; the kernel program may be
    /// appending. `lanes`, `hash_seed` and `max_keys` as in [`DaemonWriter::new`]: lanes and seed have to be those of the log.
    ///
    /// Frames that the kernel program stored and that were not followed yet are left to [`DaemonWriter::follow`], which tells of
    /// each of them once.
    ///
    /// # Errors
    /// [`Unusable::Contradiction`] when this is no log. Nothing was written then.
    pub fn adopt(
        memory: M,
        lanes: [(u32, u32); 2],
        hash_seed: u64,
        max_keys: u64,
    ) -> Result<(Self, Adopted), Unusable> {
        let mut adopted = Adopted::default();
        let cursors = [left_behind(&memory, 0, lanes[0])?, left_behind(&memory, 1, lanes[1])?];
        let mut writer = Self { memory, lanes: cursors, hash_seed, max_keys, dropped: Dropped::default() };
        for lane in 0..writer.lanes.len() {
            writer.finish_drops(lane, &mut adopted);
            writer.repair_unfollowed(lane, &mut adopted);
        }
        writer.count_index(&mut adopted);
        for lane in 0..writer.lanes.len() {
            writer.move_limit(lane);
        }
        // What a daemon that ends leaves is no sign of damage: it is told here, and not counted with what is mended later.
        adopted.holes = core::mem::take(&mut writer.dropped.holes);
        adopted.frames = writer.live();
        Ok((writer, adopted))
    }

    /// Moves the tail beyond the records that were dropped since it was last shown, and counts those that are left.
    fn finish_drops(&mut self, lane: usize, adopted: &mut Adopted) {
        let Cursor { tail, followed, slots: lane_slots, records, shown, .. } = self.lanes[lane];
        // Neither the kernel program nor the daemon has written there since: the limit was not moved.
        let (mut at, mut dropped, mut is_exact) = (tail, 0, shown.is_some());
        while at < followed {
            let slot = self.slot(lane, at);
            let version = self.memory.version(slot).load();
            if version == position::version(at) {
                break;
            }
            let slots = record_slots(&self.memory.header(slot));
            let fits = slots <= SEGMENT_SLOTS - position::slot(at) % SEGMENT_SLOTS;
            let next = position::after(at, slots, lane_slots);
            if version == 0 && fits && next <= followed {
                at = next;
                dropped += 1;
            } else {
                at = position::after(at, 1, lane_slots);
                is_exact = false;
            }
        }
        self.lanes[lane].tail = at;
        adopted.dropped += u64::from(dropped);
        match records.checked_sub(dropped) {
            Some(records) if is_exact => self.lanes[lane].records = records,
            _ => {
                self.lanes[lane].records = self.count_records(lane);
                adopted.walked_lanes += 1;
            }
        }
        self.lanes[lane].shown = None;
    }

    /// Records from the tail to what was followed.
    fn count_records(&self, lane: usize) -> u32 {
        let Cursor { tail, followed, slots: lane_slots, .. } = self.lanes[lane];
        let (mut at, mut records) = (tail, 0);
        while at < followed {
            let slot = self.slot(lane, at);
            if self.memory.version(slot).load() == position::version(at) {
                let slots = record_slots(&self.memory.header(slot));
                at = position::after(at, slots, lane_slots);
                self.fetch_beyond(lane, at, slots);
                records += 1;
            } else {
                // The chain is broken here: it is taken up again when the tail comes by.
                at = position::after(at, 1, lane_slots);
            }
        }
        records
    }

    /// Makes the chain of records whole from what was followed to where the head is now, and enters the daemon's record that
    /// was committed and not entered.
    fn repair_unfollowed(&mut self, lane: usize, adopted: &mut Adopted) {
        let head = self.memory.head(lane).load();
        let lane_slots = self.lanes[lane].slots;
        let mut at = self.lanes[lane].followed;
        while at < head {
            let Some((slot, header)) = self.settled(lane, at, head) else { break };
            if header.flags & record_flag::FILLER == 0 {
                if header.flags & record_flag::KERNEL != 0 {
                    adopted.unfollowed += 1;
                } else if !self.is_findable(slot, &header) {
                    // What left its entry before it was followed is a filler: this one never had any. It is the newest of its key,
                    // as it was for the daemon that wrote it.
                    self.insert(index::hash(&header.key, self.hash_seed), slot);
                    adopted.entered += 1;
                }
            }
            at = position::after(at, record_slots(&header), lane_slots);
        }
    }

    /// The record at the reserved position `at`, once it is whole, or a filler if no writer commits it; `None` when its room
    /// was given back, or there are too many such fillers.
    fn settled(&mut self, lane: usize, at: u64, head: u64) -> Option<(u32, RecordHeader)> {
        let slot = self.slot(lane, at);
        let (mut attempt, mut pauses) = (0, 0);
        loop {
            if self.memory.version(slot).load() == position::version(at) {
                return Some((slot, self.memory.header(slot)));
            }
            if self.memory.head(lane).load() <= at {
                return None;
            }
            if self.memory.pause(attempt) {
                attempt += 1;
            } else if pauses < PAUSES {
                (attempt, pauses) = (0, pauses + 1);
            } else if self.make_hole(lane, at, head) {
                // What was reserved since the wait began is not part of the hole. Its header may be written over.
                let hole = self.lanes[lane].holes.iter().find(|(position, slots)| *position == at && *slots != 0);
                let header = hole.map_or_else(|| self.memory.header(slot), |(_, slots)| daemon::hole_header(*slots));
                return Some((slot, header));
            } else if self.lanes[lane].holes.iter().all(|(_, slots)| *slots != 0) {
                return None;
            }
        }
    }

    /// Counts the entries of the index, and removes those that lead nowhere and those of a key that has a newer one.
    fn count_index(&mut self, adopted: &mut Adopted) {
        let (lanes, hash_seed) = (self.lanes, self.hash_seed);
        let counted = self.memory.each_bucket(&|memory, bucket| count_bucket(memory, &lanes, hash_seed, bucket));
        for (cursor, live) in self.lanes.iter_mut().zip(counted.live) {
            cursor.live = live;
        }
        (adopted.stale_entries, adopted.doubled_entries) = (counted.stale, counted.doubled);
    }
}

/// The cursor of a lane as its words have it, before anything is repaired.
fn left_behind<M: Memory>(memory: &M, lane: usize, (first_slot, slots): (u32, u32)) -> Result<Cursor, Unusable> {
    let shown = memory.shown(lane);
    let limit = memory.limit(lane).load();
    let head = memory.head(lane).load();
    let a_lap = position::lap_later(0);
    // The tail is shown before the limit follows it, and before the head goes beyond the limit.
    let tail = shown.tail.max(limit.saturating_sub(a_lap));
    let followed = shown.followed.max(tail);
    let in_lane = [tail, followed, head, limit].iter().all(|position| position::slot(*position) < slots);
    if !in_lane || limit < a_lap || followed > head || head > position::lap_later(tail) {
        return Err(Unusable::Contradiction { lane });
    }
    let is_exact = tail == shown.tail && followed == shown.followed && shown.records != Shown::UNKNOWN_RECORDS;
    let shown_exactly = is_exact.then_some(shown);
    Ok(Cursor {
        first_slot,
        slots,
        tail,
        followed,
        records: shown.records,
        live: 0,
        shown: shown_exactly,
        stalled: None,
        holes: Default::default(),
    })
}

/// Counts the entries of the bucket of `hash`; only those that need it are held against their records.
fn count_bucket<M: Memory>(memory: &M, lanes: &[Cursor; 2], hash_seed: u64, hash: u64) -> IndexCount {
    let bucket = memory.bucket(hash);
    let (mut live, mut is_plain) = ([0; 2], true);
    let (mut there, mut seen) = ([0; BUCKET_ENTRIES], [0; BUCKET_ENTRIES]);
    let mut entries = 0;
    for (i, entry) in there.iter_mut().enumerate().take(<M::Bucket<'_> as Bucket>::ENTRIES) {
        *entry = bucket.entry(i).load();
        if *entry == 0 {
            continue;
        }
        let lane = daemon::lane_of(lanes, index::slot(*entry));
        live[lane] += 1;
        is_plain &=
            is_followed(&lanes[lane], *entry) && !seen[..entries].iter().any(|other| index::has_tag(*entry, *other));
        seen[entries] = *entry;
        entries += 1;
    }
    if is_plain {
        return IndexCount { live, ..IndexCount::default() };
    }
    let mut count = IndexCount::default();
    remove_doubled(memory, lanes, hash_seed, hash, &mut there, &mut count);
    for (i, entry) in there.into_iter().enumerate().filter(|(_, entry)| *entry != 0) {
        let lane = daemon::lane_of(lanes, index::slot(entry));
        if is_followed(&lanes[lane], entry) {
            count.live[lane] += 1;
            continue;
        }
        // The kernel program's are counted when they are followed; beyond the head are none.
        match daemon::judge(memory, lanes, hash_seed, hash, entry) {
            Entry::Counted(_) => count.live[lane] += 1,
            Entry::Pending => {}
            // If the exchange fails, the entry's own writer has withdrawn it.
            Entry::Stale => count.stale += u64::from(bucket.entry(i).replace(entry, 0)),
        }
    }
    count
}

/// True when `entry` leads to the slots between the lane's tail and what was followed.
const fn is_followed(cursor: &Cursor, entry: u64) -> bool {
    let slot = index::slot(entry);
    slot.wrapping_sub(cursor.first_slot) < cursor.slots && cursor.position_at(slot) < cursor.followed
}

/// Leaves one entry per tag among those that lead to counted records: a replacement was cut short.
fn remove_doubled<M: Memory>(
    memory: &M,
    lanes: &[Cursor; 2],
    hash_seed: u64,
    hash: u64,
    there: &mut [u64; BUCKET_ENTRIES],
    count: &mut IndexCount,
) {
    for later in 1..there.len() {
        for earlier in 0..later {
            let (first, second) = (there[earlier], there[later]);
            if first == 0 || second == 0 || !index::has_tag(first, second) {
                continue;
            }
            let judged = [first, second].map(|entry| daemon::judge(memory, lanes, hash_seed, hash, entry));
            let goes =
                match &judged {
                    [Entry::Stale, _] => earlier,
                    [_, Entry::Stale] => later,
                    [Entry::Counted(one), Entry::Counted(other)] => {
                        if age(lanes, one, first) < age(lanes, other, second) { earlier } else { later }
                    }
                    // The kernel program has entered it: that is resolved when its record is followed.
                    [Entry::Pending, _] | [_, Entry::Pending] => continue,
                };
            count.doubled += u64::from(memory.bucket(hash).entry(goes).replace(there[goes], 0));
            there[goes] = 0;
        }
    }
}

/// When the record of `header` to which `entry` leads was stored, and in which place of its lane.
fn age(lanes: &[Cursor; 2], header: &RecordHeader, entry: u64) -> (u64, u64) {
    let slot = index::slot(entry);
    (daemon::stored_ns(header), lanes[daemon::lane_of(lanes, slot)].position_at(slot))
}
