//! The daemon's steps: it stores frames, follows what the kernel program has stored, and alone drops.
//!
//! Longer than most files: whatever changes ring, index and the count of live frames on the daemon's side stands here.

use super::shared::{self, Refused};
use super::{Bucket, Memory, Shown, Word, position_of};
use crate::abi::{RECORD_HEADER_LEN, RecordHeader, SEGMENT_SLOTS, SLOT_LEN, record_flag};
use crate::checksum;
use crate::index;
use crate::key::FrameKey;
use crate::position;
use crate::wire::frame::Class;

/// How long a reserved position may stay uncommitted before it becomes a filler, nanoseconds. The kernel program needs
/// less than a microsecond; a virtual CPU that the host does not run needs longer.
pub const HOLE_PATIENCE_NS: u64 = 500_000_000;

const NS_PER_MS: u64 = 1_000_000;
/// The share of a lane that may be kept free.
const AHEAD_SHARE: u32 = 4;
/// Records that are dropped before the limit is moved.
const DROPPED_AT_ONCE: u32 = 64;
/// How many records ahead the header is asked for.
const FETCH_AHEAD: u32 = 8;
/// Positions that are given up before they are followed: two that a dead daemon has reserved, and those of as many CPUs. Any
/// further ones are given up when they are followed.
const HOLES: usize = 6;
/// How often a head that the kernel keeps moving is tried in one attempt.
const HEAD_ATTEMPTS: u32 = 64;

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
    /// The log has another with its key, which stays.
    Conflict,
    /// No record can hold it.
    TooLarge,
    /// A kernel writer was in the way for longer than [`Memory::pause`] allows: the frame is not stored.
    Busy,
}

impl Put {
    /// True when the frame is in the log by this.
    #[must_use]
    pub const fn is_stored(self) -> bool {
        matches!(self, Self::Stored | Self::Replaced)
    }
}

/// What became of a frame that was to be removed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Removed {
    /// No look-up finds it any more.
    Yes,
    /// There was none.
    NotThere,
    /// As [`Put::Busy`]: it may still be there.
    Busy,
}

/// What the kernel program has stored, as [`DaemonWriter::follow`] finds it.
#[derive(Clone, Copy, Debug)]
pub struct Followed<'a> {
    /// Its key.
    pub key: FrameKey,
    /// Its life, milliseconds.
    pub life_ms: u32,
    /// Its class; `None` if no class has the number of the record.
    pub class: Option<Class>,
    /// The frame.
    pub bytes: &'a [u8],
    /// False when the log had it already: two writers stored it at once.
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

/// What was dropped or mended since the last [`DaemonWriter::take_dropped`], in entries, records and frames.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Dropped {
    /// Live frames overwritten because the ring came round, per lane.
    pub lap: [u64; 2],
    /// Frames at the end of their life.
    pub expired: u64,
    /// Live frames dropped for `cache-max-keys`.
    pub max_keys: u64,
    /// Live frames dropped because their index bucket was full, or for another key with their tag.
    pub bucket: u64,
    /// Index entries removed because the record was not what they said.
    pub stale_entries: u64,
    /// Positions that no writer committed, made fillers.
    pub holes: u64,
    /// Places where the chain of records was broken and taken up again at the next whole record.
    pub broken_chains: u64,
}

/// Why a live frame goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reason {
    Lap,
    Expired,
    MaxKeys,
    Bucket,
}

/// A kernel writer is in the way: what it has stored has to be followed first.
#[derive(Debug)]
struct KernelAhead;

/// What an index entry leads to.
pub(super) enum Entry {
    /// A record that this writer has counted.
    Counted(RecordHeader),
    /// A record of the kernel's that is being written, or is not followed yet.
    Pending,
    /// Nothing that belongs to the entry.
    Stale,
}

/// The part of a lane that this writer alone changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor {
    pub(super) first_slot: u32,
    pub(super) slots: u32,
    pub(super) tail: u64,
    pub(super) followed: u64,
    pub(super) records: u32,
    /// Index entries that lead to counted records of this lane.
    pub(super) live: u32,
    /// What the lane table says; `None` when that is not known.
    pub(super) shown: Option<Shown>,
    /// Where the walk stands still.
    pub(super) stalled: Option<Stalled>,
    /// Positions that were given up and are still to be followed, and their slots: a writer that comes too late may write over
    /// a filler's header. Those with no slots are none.
    pub(super) holes: [(u64, u32); HOLES],
}

impl Cursor {
    /// The position of `slot` of the ring, which is less than a lap beyond the tail.
    pub(super) const fn position_at(&self, slot: u32) -> u64 {
        let (its, tail) = (slot.wrapping_sub(self.first_slot), position::slot(self.tail));
        let lap = self.tail - tail as u64 + its as u64;
        if its < tail { position::lap_later(lap) } else { lap }
    }

    const fn standing(&self) -> Shown {
        Shown { tail: self.tail, followed: self.followed, records: self.records, live: self.live }
    }
}

/// A position that is reserved and not committed, and at which the walk waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stalled {
    position: u64,
    /// Since when, nanoseconds of the monotonic clock.
    since_ns: u64,
    /// The lane's head then: what was reserved later lies behind it.
    head: u64,
}

/// The daemon's writer of one frame log. There is one at a time.
#[derive(Debug)]
pub struct DaemonWriter<M> {
    pub(super) memory: M,
    pub(super) lanes: [Cursor; 2],
    pub(super) hash_seed: u64,
    pub(super) max_keys: u64,
    pub(super) dropped: Dropped,
}

impl<M: Memory> DaemonWriter<M> {
    /// The writer of an empty log, whose lanes begin at position `first` and have this first slot and these slots each.
    /// The caller has written the same into the lane table. `max_keys` 0 is no bound.
    pub fn new(memory: M, lanes: [(u32, u32); 2], first: u64, hash_seed: u64, max_keys: u64) -> Self {
        let lanes = lanes.map(|(first_slot, slots)| Cursor {
            first_slot,
            slots,
            tail: first,
            followed: first,
            records: 0,
            live: 0,
            shown: None,
            stalled: None,
            holes: [(0, 0); HOLES],
        });
        Self { memory, lanes, hash_seed, max_keys, dropped: Dropped::default() }
    }

    /// Frames that can be found.
    pub fn live(&self) -> u64 {
        u64::from(self.lanes[0].live) + u64::from(self.lanes[1].live)
    }

    /// The memory that it writes to.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// What was dropped and mended since the last call.
    pub fn take_dropped(&mut self) -> Dropped {
        core::mem::take(&mut self.dropped)
    }

    /// Appends `frame`, after following what the kernel has written so far; `tell` is told of that as by
    /// [`DaemonWriter::follow`].
    pub fn put(&mut self, frame: &NewFrame<'_>, now_ns: u64, tell: impl FnMut(Followed<'_>)) -> Put {
        self.put_unless(frame, now_ns, |_| false, tell)
    }

    /// As [`DaemonWriter::put`]; where the log has the key with other bytes, `keeps` says whether that frame stays, by the time
    /// since which it is held, nanoseconds of the monotonic clock.
    pub fn put_unless(
        &mut self,
        frame: &NewFrame<'_>,
        now_ns: u64,
        keeps: impl FnMut(u64) -> bool,
        tell: impl FnMut(Followed<'_>),
    ) -> Put {
        let header = RecordHeader {
            version: 0,
            expires_ns: now_ns.saturating_add(u64::from(frame.life_ms) * NS_PER_MS),
            key: frame.key,
            length: u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX),
            life_ms: frame.life_ms,
            partial: checksum::partial(frame.bytes),
            group: frame.group,
            class: frame.class as u8,
            flags: if frame.daemon_only { record_flag::DAEMON_ONLY } else { 0 },
            reserved: [0; 2],
        };
        self.put_record(frame.class.lane(), &header, frame.bytes, now_ns, keeps, tell)
    }

    /// Appends what `old` holds from the positions `from` on, the oldest first, with what is left of each frame's life, and
    /// moves `from` behind it; how many frames that were. 0 begins with the oldest.
    ///
    /// The caller has followed in `old`. Where a lane of this log is smaller, the newest frames that fit it are copied. A
    /// second call copies what the kernel program has stored in `old` since the first. `tell` is told of what it stores in this
    /// log meanwhile. At most `most` records of each lane are looked at.
    pub fn copy_from<N: Memory>(
        &mut self,
        old: &DaemonWriter<N>,
        from: &mut [u64; 2],
        most: usize,
        now_ns: u64,
        mut tell: impl FnMut(Followed<'_>),
    ) -> u64 {
        let mut copied = 0;
        for (lane, from) in from.iter_mut().enumerate() {
            let Cursor { tail, followed, slots: lane_slots, .. } = old.lanes[lane];
            // Segments end elsewhere in the other lane: some of it becomes fillers.
            let room = self.lanes[lane].slots / 8 * 7;
            let mut at = tail.max(*from);
            let mut left = most;
            while at < followed && left > 0 {
                left -= 1;
                let slot = old.slot(lane, at);
                if old.memory.version(slot).load() != position::version(at) {
                    at = position::after(at, 1, lane_slots);
                    continue;
                }
                let header = old.memory.header(slot);
                let is_frame = header.flags & record_flag::FILLER == 0 && now_ns < header.expires_ns;
                if is_frame && position::distance(at, followed, lane_slots) <= room && old.is_findable(slot, &header) {
                    let bytes = old.memory.frame(slot, usize::try_from(header.length).unwrap_or(0));
                    let flags = header.flags & record_flag::DAEMON_ONLY;
                    let put =
                        self.put_record(lane, &RecordHeader { flags, ..header }, bytes, now_ns, |_| false, &mut tell);
                    copied += u64::from(put.is_stored());
                }
                at = position::after(at, record_slots(&header), lane_slots);
                old.fetch_beyond(lane, at, record_slots(&header));
            }
            *from = at;
        }
        copied
    }

    /// Appends the frame `bytes` that `header` says all of, its version aside.
    fn put_record(
        &mut self,
        lane: usize,
        header: &RecordHeader,
        bytes: &[u8],
        now_ns: u64,
        mut keeps: impl FnMut(u64) -> bool,
        mut tell: impl FnMut(Followed<'_>),
    ) -> Put {
        let Some(slots) = slots_of(bytes.len()) else {
            return Put::TooLarge;
        };
        let mut attempt = 0;
        loop {
            self.follow(now_ns, usize::MAX, &mut tell);
            match self.try_put(lane, header, bytes, slots, now_ns, &mut keeps) {
                Ok(outcome) => return outcome,
                Err(KernelAhead) if self.memory.pause(attempt) => attempt += 1,
                Err(KernelAhead) => return Put::Busy,
            }
        }
    }

    fn try_put(
        &mut self,
        lane: usize,
        header: &RecordHeader,
        bytes: &[u8],
        slots: u32,
        now_ns: u64,
        mut keeps: impl FnMut(u64) -> bool,
    ) -> Result<Put, KernelAhead> {
        let hash = index::hash(&header.key, self.hash_seed);
        let mut outcome = Put::Stored;
        for i in 0..<M::Bucket<'_> as Bucket>::ENTRIES {
            let entry = self.entry(hash, i);
            if !index::has_tag(entry, index::tag(hash)) {
                continue;
            }
            match self.judge(hash, entry) {
                Entry::Pending => return Err(KernelAhead),
                Entry::Stale => self.remove_stale(hash, i),
                // Another key with this tag in this bucket: a reader expects one at most.
                Entry::Counted(there) if there.key != header.key => self.forget(hash, i, entry, Reason::Bucket),
                Entry::Counted(there) if now_ns >= there.expires_ns => self.forget(hash, i, entry, Reason::Expired),
                Entry::Counted(there) => {
                    if there.partial == header.partial && self.has_bytes(index::slot(entry), &there, bytes) {
                        return Ok(Put::Duplicate);
                    }
                    if keeps(stored_ns(&there)) {
                        return Ok(Put::Conflict);
                    }
                    // A reader finds the old record until the new one stands: `insert` overwrites the entry.
                    outcome = Put::Replaced;
                }
            }
        }
        if self.max_keys != 0 && outcome == Put::Stored {
            while self.live() >= self.max_keys && self.evict_any(lane, now_ns) {}
        }
        let position = self.reserve(lane, slots, now_ns)?;
        let slot = self.slot(lane, position);
        self.memory.set_header(slot, header);
        self.memory.write_frame(slot, bytes);
        // Nothing else commits or gives up a record of this writer.
        shared::commit(&self.memory.version(slot), position);
        if !self.insert(hash, slot) && outcome == Put::Replaced {
            // The old record was the one that made way, and is counted as such.
            outcome = Put::Stored;
        }
        self.walk_own(lane, now_ns);
        self.show(1 - lane);
        Ok(outcome)
    }

    /// Reads on over what the kernel has written, up to `most` records per lane: counts it, resolves what was entered
    /// twice, and tells `tell` of each frame. True when nothing is left to follow.
    ///
    /// A record that is being written ends the walk; one that stays so for [`HOLE_PATIENCE_NS`] becomes a filler.
    pub fn follow(&mut self, now_ns: u64, most: usize, mut tell: impl FnMut(Followed<'_>)) -> bool {
        let mut whole = true;
        for lane in 0..self.lanes.len() {
            // Looked at once: each look takes its line from the CPU that stores.
            let head = self.memory.head(lane).load();
            if self.lanes[lane].followed == head {
                continue;
            }
            for _ in 0..most {
                if self.lanes[lane].followed >= head {
                    break;
                }
                let Some((slot, header)) = self.next_followed(lane, now_ns) else { break };
                if header.flags & (record_flag::KERNEL | record_flag::FILLER) == record_flag::KERNEL {
                    let is_new = self.count_in(slot, &header);
                    // After its bucket has the entry, so that readers find it in one of both; before the record counts as followed, so
                    // that a writer that goes on in the place of this one does it again.
                    self.leave_overflow(slot, &header);
                    let len = usize::try_from(header.length).unwrap_or(0);
                    let bytes = self.memory.frame(slot, len);
                    let class = Class::from_u8(header.class);
                    tell(Followed { key: header.key, life_ms: header.life_ms, class, bytes, is_new });
                    // A daemon that goes on in the place of this one tells of it no more. A duplicate is no frame from here on.
                    let told = header.flags & !record_flag::KERNEL;
                    self.memory.set_flags(slot, if is_new { told } else { told | record_flag::FILLER });
                }
                self.pass(lane, &header);
            }
            whole &= self.lanes[lane].followed == self.memory.head(lane).load();
        }
        // Both: a frame that made way for one of this lane may have been the other's.
        for lane in 0..self.lanes.len() {
            self.show(lane);
        }
        if self.max_keys != 0 {
            while self.live() > self.max_keys && self.evict_any(0, now_ns) {}
        }
        whole
    }

    /// Drops old records until this many slots of each lane are free for the kernel program to write to, at most a quarter
    /// of it, and at most about `most` records per lane. True when there is no more to do.
    pub fn make_ahead(&mut self, slots: [u32; 2], most: u32, now_ns: u64) -> bool {
        let mut is_done = true;
        for (lane, slots) in slots.into_iter().enumerate() {
            let wanted = slots.min(self.lanes[lane].slots / AHEAD_SHARE);
            let mut left = most;
            // The head is looked at now and then only: each look takes its line from the CPU that stores.
            loop {
                let free = self.free(lane);
                let Cursor { tail, followed, slots: lane_slots, .. } = self.lanes[lane];
                if free >= wanted || tail == followed {
                    break;
                }
                if left == 0 {
                    is_done = false;
                    break;
                }
                left = left.saturating_sub(DROPPED_AT_ONCE);
                for _ in 0..DROPPED_AT_ONCE {
                    let dropped = position::distance(tail, self.lanes[lane].tail, lane_slots);
                    if free + dropped >= wanted || self.lanes[lane].tail == followed {
                        break;
                    }
                    self.drop_oldest(lane, now_ns, Reason::Lap);
                }
                self.move_limit(lane);
            }
        }
        is_done
    }

    /// Up to where each lane was followed.
    pub fn followed(&self) -> [u64; 2] {
        self.lanes.map(|cursor| cursor.followed)
    }

    /// Slots of each lane.
    pub fn lane_slots(&self) -> [u32; 2] {
        self.lanes.map(|cursor| cursor.slots)
    }

    /// Takes the frame of `key` out, after following what the kernel has written; one whose life is over counts until it is
    /// swept.
    ///
    /// From here on no look-up finds it; a reader that found it before may still finish its copy. The record itself stays
    /// in the ring until the ring comes round: the index alone says what is there.
    pub fn remove(&mut self, key: &FrameKey, now_ns: u64, mut tell: impl FnMut(Followed<'_>)) -> Removed {
        let hash = index::hash(key, self.hash_seed);
        let mut attempt = 0;
        'again: loop {
            self.follow(now_ns, usize::MAX, &mut tell);
            let mut removed = Removed::NotThere;
            for i in 0..<M::Bucket<'_> as Bucket>::ENTRIES {
                let entry = self.entry(hash, i);
                if !index::has_tag(entry, index::tag(hash)) {
                    continue;
                }
                match self.judge(hash, entry) {
                    Entry::Counted(header) if header.key == *key => {
                        self.clear(hash, i);
                        self.uncount(entry);
                        removed = Removed::Yes;
                    }
                    Entry::Counted(_) => {}
                    Entry::Stale => self.remove_stale(hash, i),
                    Entry::Pending if self.memory.pause(attempt) => {
                        attempt += 1;
                        continue 'again;
                    }
                    Entry::Pending => return Removed::Busy,
                }
            }
            for lane in 0..self.lanes.len() {
                self.show(lane);
            }
            return removed;
        }
    }

    /// Drops records from the old end whose life is over, at most `most` of them per lane.
    pub fn expire(&mut self, now_ns: u64, most: usize) {
        for lane in 0..self.lanes.len() {
            for _ in 0..most {
                let Cursor { tail, followed, .. } = self.lanes[lane];
                if tail == followed {
                    break;
                }
                let slot = self.slot(lane, tail);
                let header = self.memory.header(slot);
                let over = header.flags & record_flag::FILLER != 0 || now_ns >= header.expires_ns;
                if !over && self.is_findable(slot, &header) {
                    break;
                }
                self.drop_oldest(lane, now_ns, Reason::Lap);
            }
            self.move_limit(lane);
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
        let mut position = cursor.tail;
        while position < cursor.followed {
            let slot = self.slot(lane, position);
            let header = self.memory.header(slot);
            if header.flags & record_flag::FILLER == 0 && self.is_findable(slot, &header) {
                return now_ns.saturating_sub(stored_ns(&header)) / NS_PER_MS;
            }
            position = position::after(position, record_slots(&header), cursor.slots);
        }
        0
    }

    /// Counts in a record of the kernel's, the next to be followed; true when it is new.
    fn count_in(&mut self, slot: u32, header: &RecordHeader) -> bool {
        let hash = index::hash(&header.key, self.hash_seed);
        let own = index::entry(hash, slot);
        let (mut entered, mut known, mut pending) = (None, false, false);
        for i in 0..<M::Bucket<'_> as Bucket>::ENTRIES {
            let entry = self.entry(hash, i);
            if !index::has_tag(entry, index::tag(hash)) {
                continue;
            }
            if entry == own {
                if entered.is_none() {
                    entered = Some(i);
                } else {
                    self.remove_stale(hash, i);
                }
                continue;
            }
            match self.judge(hash, entry) {
                // The log has it. The kernel does not replace: only this writer does, and never what it has not followed.
                Entry::Counted(there) if there.key == header.key => known = true,
                Entry::Counted(_) => self.forget(hash, i, entry, Reason::Bucket),
                // Another CPU has stored it too, later in the lane: that record is new if this one is not.
                Entry::Pending => pending = true,
                Entry::Stale => self.remove_stale(hash, i),
            }
        }
        match (entered, known) {
            (Some(i), true) => {
                self.clear(hash, i);
                false
            }
            (Some(_), false) => {
                self.count(own);
                true
            }
            (None, known) if known || pending => false,
            // Another writer had taken the vacant place in the bucket.
            (None, _) => {
                self.insert(hash, slot);
                true
            }
        }
    }

    /// Takes the entry of the record at `slot` out of the overflow bucket, if it stands there.
    fn leave_overflow(&self, slot: u32, header: &RecordHeader) {
        let hash = index::hash(&header.key, self.hash_seed);
        withdraw_all(&self.memory.overflow(hash), index::entry(hash, slot));
    }

    /// The next record of the lane that is not followed yet, once it is whole. The caller knows that the head is beyond it.
    fn next_followed(&mut self, lane: usize, now_ns: u64) -> Option<(u32, RecordHeader)> {
        let position = self.lanes[lane].followed;
        let slot = self.slot(lane, position);
        if self.memory.version(slot).load() != position::version(position) && !self.give_up(lane, position, now_ns) {
            return None;
        }
        let cursor = &mut self.lanes[lane];
        cursor.stalled = None;
        let hole = cursor.holes.iter_mut().find(|(at, slots)| *at == position && *slots != 0);
        let header = match hole {
            Some((_, slots)) => hole_header(core::mem::take(slots)),
            None => self.memory.header(slot),
        };
        Some((slot, header))
    }

    /// Makes the position where the walk stands a filler, if no writer has committed it for [`HOLE_PATIENCE_NS`].
    fn give_up(&mut self, lane: usize, position: u64, now_ns: u64) -> bool {
        // A writer may have given its room back since the head was read.
        let head = self.memory.head(lane).load();
        let stalled = match self.lanes[lane].stalled {
            Some(stalled) if stalled.position == position && position < head => stalled,
            _ => {
                self.lanes[lane].stalled = (position < head).then_some(Stalled { position, since_ns: now_ns, head });
                return false;
            }
        };
        // What was reserved since then is not part of the hole, begun or not.
        now_ns.saturating_sub(stalled.since_ns) >= HOLE_PATIENCE_NS
            && self.make_hole(lane, position, stalled.head.min(head))
    }

    /// Makes the reserved `position` a filler that ends at `end` at the latest, unless its writer commits it first; true when
    /// the record there is whole, in one way or the other. False also when too many holes are still to be followed.
    pub(super) fn make_hole(&mut self, lane: usize, position: u64, end: u64) -> bool {
        let slot = self.slot(lane, position);
        let whole = position::version(position);
        let there = self.memory.version(slot).load();
        let Some(free) = self.lanes[lane].holes.iter().position(|(_, slots)| *slots == 0) else { return false };
        // From here on the writer's commit fails; if it came first, the record is whole after all.
        if there == whole || !self.memory.version(slot).replace(there, 0) {
            return self.memory.version(slot).load() == whole;
        }
        self.withdraw_for(slot);
        let slots = self.hole_slots(lane, position, end);
        self.memory.set_header(slot, &hole_header(slots));
        self.memory.version(slot).store(whole);
        self.lanes[lane].holes[free] = (position, slots);
        self.dropped.holes += 1;
        true
    }

    /// Takes out the entry that a writer made for the record at `slot`, which it has not committed and no longer can: the kernel
    /// program enters a record when its header is complete.
    fn withdraw_for(&self, slot: u32) {
        let hash = index::hash(&self.memory.header(slot).key, self.hash_seed);
        let entry = index::entry(hash, slot);
        withdraw_all(&self.memory.bucket(hash), entry);
        withdraw_all(&self.memory.overflow(hash), entry);
    }

    /// Slots from `position` to the next record that is whole or being written, the end of the segment, or `end`.
    fn hole_slots(&self, lane: usize, position: u64, end: u64) -> u32 {
        let lane_slots = self.lanes[lane].slots;
        let first = position::slot(position);
        let segment_end = (first / SEGMENT_SLOTS + 1) * SEGMENT_SLOTS;
        let mut slots = 1;
        while first + slots < segment_end.min(lane_slots) {
            let next = position + u64::from(slots);
            if next >= end {
                break;
            }
            let version = self.memory.version(self.slot(lane, next)).load();
            if version | 1 == position::version(next) | 1 {
                break;
            }
            slots += 1;
        }
        slots
    }

    /// Goes on over this writer's own records, if none of the kernel's is in between.
    fn walk_own(&mut self, lane: usize, now_ns: u64) {
        let head = self.memory.head(lane).load();
        while self.lanes[lane].followed < head {
            let Some((_, header)) = self.next_followed(lane, now_ns) else { break };
            if header.flags & record_flag::KERNEL != 0 {
                break;
            }
            self.pass(lane, &header);
        }
        self.show(lane);
    }

    fn pass(&mut self, lane: usize, header: &RecordHeader) {
        let slots = record_slots(header);
        let cursor = &mut self.lanes[lane];
        cursor.followed = position::after(cursor.followed, slots, cursor.slots);
        cursor.records += 1;
        self.fetch_beyond(lane, self.lanes[lane].followed, slots);
    }

    /// Takes `slots` slots at the head of the lane, with room made by dropping the oldest records, and begins the record
    /// there.
    fn reserve(&mut self, lane: usize, slots: u32, now_ns: u64) -> Result<u64, KernelAhead> {
        let lane_slots = self.lanes[lane].slots;
        let taken = loop {
            // This writer's own limit: it is shown to the kernel afterwards, or the kernel would take what was just made.
            let limit = position::lap_later(self.lanes[lane].tail);
            // Before this writer's record overwrites those that were dropped for it.
            self.show(lane);
            let taken = shared::reserve(&self.memory.head(lane), || limit, slots, lane_slots, HEAD_ATTEMPTS);
            match taken {
                Ok(taken) => break Ok(taken),
                Err(Refused::Full) if self.lanes[lane].tail != self.lanes[lane].followed => {
                    self.drop_oldest(lane, now_ns, Reason::Lap);
                }
                Err(Refused::Full | Refused::Contended) => break Err(KernelAhead),
            }
        };
        if let Ok((from, taken)) = &taken {
            if taken.filler != 0 {
                let slot = self.slot(lane, *from);
                let length = taken.filler * slot_len() - header_len();
                shared::begin(&self.memory.version(slot), *from);
                let flags = record_flag::FILLER;
                self.memory.set_header(slot, &RecordHeader { length, flags, ..RecordHeader::default() });
                shared::commit(&self.memory.version(slot), *from);
            }
            let version = self.memory.version(self.slot(lane, taken.start));
            shared::begin(&version, taken.start);
            // A reader that sees bytes of the new record sees that the old one is void.
            version.fence();
        }
        self.move_limit(lane);
        taken.map(|(_, taken)| taken.start)
    }

    /// Drops one findable record for `cache-max-keys`, of `lane` if it has any.
    fn evict_any(&mut self, lane: usize, now_ns: u64) -> bool {
        for lane in [lane, 1 - lane] {
            let mut was_live = false;
            while !was_live && self.lanes[lane].tail != self.lanes[lane].followed {
                was_live = self.drop_oldest(lane, now_ns, Reason::MaxKeys);
            }
            self.move_limit(lane);
            if was_live {
                return true;
            }
        }
        false
    }

    /// Lets other writers reserve where records were dropped, once the lane table says that they were.
    pub(super) fn move_limit(&mut self, lane: usize) {
        self.show(lane);
        let limit = self.memory.limit(lane);
        let new = position::lap_later(self.lanes[lane].tail);
        if limit.load() != new {
            // No reader may take for a record what the kernel writes next.
            limit.fence();
            limit.store(new);
        }
    }

    /// Drops the oldest record of a lane; true when it was findable. Its room is not given to other writers yet.
    fn drop_oldest(&mut self, lane: usize, now_ns: u64, reason: Reason) -> bool {
        let Cursor { tail, followed, slots: lane_slots, .. } = self.lanes[lane];
        let slot = self.slot(lane, tail);
        if self.memory.version(slot).load() != position::version(tail) {
            self.take_up_chain(lane, tail, followed);
            return false;
        }
        let header = self.memory.header(slot);
        let next = position::after(tail, record_slots(&header), lane_slots);
        if next > followed {
            self.take_up_chain(lane, tail, followed);
            return false;
        }
        let mut was_live = false;
        if header.flags & record_flag::HOLE != 0 {
            self.forget_range(lane, tail, next, false);
        } else if header.flags & record_flag::FILLER == 0 {
            let hash = index::hash(&header.key, self.hash_seed);
            let entry = index::entry(hash, slot);
            for i in 0..<M::Bucket<'_> as Bucket>::ENTRIES {
                if self.entry(hash, i) != entry {
                    continue;
                }
                if was_live {
                    self.remove_stale(hash, i);
                } else {
                    let reason = if now_ns >= header.expires_ns { Reason::Expired } else { reason };
                    self.forget(hash, i, entry, reason);
                    was_live = true;
                }
            }
        }
        self.memory.version(slot).store(0);
        let cursor = &mut self.lanes[lane];
        cursor.tail = next;
        cursor.records = cursor.records.saturating_sub(1);
        self.fetch_beyond(lane, next, record_slots(&header));
        was_live
    }

    /// Takes the chain of records up again behind a record that is not what its position says.
    fn take_up_chain(&mut self, lane: usize, tail: u64, followed: u64) {
        self.dropped.broken_chains += 1;
        let lane_slots = self.lanes[lane].slots;
        let mut next = position::after(tail, 1, lane_slots);
        while next < followed && self.memory.version(self.slot(lane, next)).load() != position::version(next) {
            next = position::after(next, 1, lane_slots);
        }
        self.forget_range(lane, tail, next, true);
        let cursor = &mut self.lanes[lane];
        cursor.tail = next;
        cursor.records = cursor.records.saturating_sub(1);
    }

    /// Removes every entry that leads to a slot from `from` to `to`. KernelAhead a hole these were never counted: its writer has
    /// entered its record late.
    fn forget_range(&mut self, lane: usize, from: u64, to: u64, counted: bool) {
        let (first, slots) = (position::slot(from), position::distance(from, to, self.lanes[lane].slots));
        let Cursor { first_slot, slots: lane_slots, .. } = self.lanes[lane];
        let mut removed = 0;
        self.memory.clear_entries(&mut |entry| {
            let Some(its) = index::slot(entry).checked_sub(first_slot).filter(|its| *its < lane_slots) else {
                return false;
            };
            let behind = if its >= first { its - first } else { its + lane_slots - first };
            let is_void = behind < slots;
            removed += u32::from(is_void);
            is_void
        });
        if counted {
            self.lanes[lane].live = self.lanes[lane].live.saturating_sub(removed);
        }
        self.dropped.stale_entries += u64::from(removed);
    }

    /// Asks for the header of the record some places beyond `position`, if those between are as long as the last one, of
    /// `slots`.
    ///
    /// The chain of headers is read from one to the next, and each was last touched by another CPU or long ago: waited for
    /// one by one, they cost more than all the rest.
    pub(super) fn fetch_beyond(&self, lane: usize, position: u64, slots: u32) {
        let beyond = position::slot(position).saturating_add(slots * FETCH_AHEAD);
        if beyond < self.lanes[lane].slots {
            self.memory.fetch(self.lanes[lane].first_slot + beyond);
        }
    }

    /// Puts a whole record into the hash's bucket: over the entries with its tag, else at a vacant place, else over the
    /// oldest entry. True when it took the place of a counted entry with its tag.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) -> bool {
        let new = index::entry(hash, slot);
        let tag = index::tag(hash);
        // Each turn loses a vacant place to the kernel, so there are no more turns than places.
        for _ in 0..=<M::Bucket<'_> as Bucket>::ENTRIES {
            let vacancy = shared::vacancy(&self.memory.bucket(hash), tag);
            match vacancy {
                shared::Vacancy::Known => {
                    let (mut stands, mut replaced) = (false, false);
                    for i in 0..<M::Bucket<'_> as Bucket>::ENTRIES {
                        let old = self.entry(hash, i);
                        if !index::has_tag(old, tag) {
                            continue;
                        }
                        // One that the kernel has entered just now goes too: once followed, its record is a duplicate.
                        let was_counted = matches!(self.judge(hash, old), Entry::Counted(_));
                        self.memory.bucket(hash).entry(i).store(if stands { 0 } else { new });
                        stands = true;
                        if was_counted {
                            self.uncount(old);
                            replaced = true;
                        }
                    }
                    if stands {
                        self.count(new);
                        return replaced;
                    }
                }
                shared::Vacancy::At(i) => {
                    let entered = shared::enter(&self.memory.bucket(hash), i, new);
                    if entered {
                        self.count(new);
                        return false;
                    }
                }
                shared::Vacancy::Full => break,
            }
        }
        let age = |i: &usize| {
            let slot = index::slot(self.entry(hash, *i));
            (stored_ns(&self.memory.header(slot)), self.memory.version(slot).load())
        };
        let oldest = (0..<M::Bucket<'_> as Bucket>::ENTRIES).min_by_key(age).unwrap_or(0);
        let old = self.entry(hash, oldest);
        let was_counted = matches!(self.judge(hash, old), Entry::Counted(_));
        self.memory.bucket(hash).entry(oldest).store(new);
        if was_counted {
            self.uncount(old);
            self.dropped.bucket += 1;
        }
        self.count(new);
        false
    }

    fn judge(&self, hash: u64, entry: u64) -> Entry {
        judge(&self.memory, &self.lanes, self.hash_seed, hash, entry)
    }

    /// Empties an entry that leads to a counted record.
    fn forget(&mut self, hash: u64, i: usize, entry: u64, reason: Reason) {
        self.clear(hash, i);
        self.uncount(entry);
        let lane = self.lane_of(index::slot(entry));
        let dropped = &mut self.dropped;
        *match reason {
            Reason::Lap => &mut dropped.lap[lane],
            Reason::Expired => &mut dropped.expired,
            Reason::MaxKeys => &mut dropped.max_keys,
            Reason::Bucket => &mut dropped.bucket,
        } += 1;
    }

    fn remove_stale(&mut self, hash: u64, i: usize) {
        self.clear(hash, i);
        self.dropped.stale_entries += 1;
    }

    fn clear(&self, hash: u64, i: usize) {
        self.memory.bucket(hash).entry(i).store(0);
    }

    fn count(&mut self, entry: u64) {
        let lane = self.lane_of(index::slot(entry));
        self.lanes[lane].live += 1;
    }

    /// Counts a record out to which no entry leads any more.
    fn uncount(&mut self, entry: u64) {
        let slot = index::slot(entry);
        let cursor = &mut self.lanes[lane_of(&self.lanes, slot)];
        cursor.live = cursor.live.saturating_sub(1);
        if cursor.position_at(slot) >= cursor.followed {
            // A daemon that goes on in the place of this one would take it for a record that is still to be entered.
            let flags = self.memory.header(slot).flags;
            self.memory.set_flags(slot, flags | record_flag::FILLER);
        }
    }

    fn entry(&self, hash: u64, i: usize) -> u64 {
        self.memory.bucket(hash).entry(i).load()
    }

    pub(super) fn is_findable(&self, slot: u32, header: &RecordHeader) -> bool {
        let hash = index::hash(&header.key, self.hash_seed);
        let entry = index::entry(hash, slot);
        (0..<M::Bucket<'_> as Bucket>::ENTRIES).any(|i| self.entry(hash, i) == entry)
    }

    fn has_bytes(&self, slot: u32, header: &RecordHeader, bytes: &[u8]) -> bool {
        usize::try_from(header.length) == Ok(bytes.len()) && self.memory.frame(slot, bytes.len()) == bytes
    }

    fn lane_of(&self, slot: u32) -> usize {
        lane_of(&self.lanes, slot)
    }

    pub(super) fn slot(&self, lane: usize, position: u64) -> u32 {
        self.lanes[lane].first_slot + position::slot(position)
    }

    fn used(&self, lane: usize) -> u32 {
        let cursor = &self.lanes[lane];
        position::distance(cursor.tail, self.memory.head(lane).load(), cursor.slots)
    }

    fn free(&self, lane: usize) -> u32 {
        self.lanes[lane].slots.saturating_sub(self.used(lane))
    }

    /// Shows where this writer stands, if that has changed.
    pub(super) fn show(&mut self, lane: usize) {
        let standing = self.lanes[lane].standing();
        if self.lanes[lane].shown != Some(standing) {
            self.memory.show(lane, &standing);
            self.lanes[lane].shown = Some(standing);
        }
    }
}

/// Takes `entry` out of a bucket, wherever it stands there.
fn withdraw_all<B: Bucket>(bucket: &B, entry: u64) {
    for i in 0..B::ENTRIES {
        if bucket.entry(i).load() == entry {
            shared::withdraw(bucket, i, entry);
        }
    }
}

/// The header of a filler of `slots` slots in the place of what was never committed.
pub(super) fn hole_header(slots: u32) -> RecordHeader {
    let flags = record_flag::FILLER | record_flag::HOLE;
    RecordHeader { length: slots * slot_len() - header_len(), flags, ..RecordHeader::default() }
}

/// What `entry`, which stands in the bucket of `hash`, leads to.
pub(super) fn judge<M: Memory>(memory: &M, lanes: &[Cursor; 2], hash_seed: u64, hash: u64, entry: u64) -> Entry {
    let slot = index::slot(entry);
    let lane = lane_of(lanes, slot);
    let cursor = &lanes[lane];
    let Some(its) = slot.checked_sub(cursor.first_slot).filter(|its| *its < cursor.slots) else { return Entry::Stale };
    let version = memory.version(slot).load();
    let Some(position) = position_of(version) else { return Entry::Stale };
    if its != position::slot(position) || position < cursor.tail {
        return Entry::Stale;
    }
    if position >= cursor.followed {
        if position >= memory.head(lane).load() {
            return Entry::Stale;
        }
        if version & 1 != 0 || memory.header(slot).flags & record_flag::KERNEL != 0 {
            return Entry::Pending;
        }
    } else if version & 1 != 0 {
        return Entry::Stale;
    }
    let header = memory.header(slot);
    let its = index::hash(&header.key, hash_seed);
    let belongs = header.flags & record_flag::FILLER == 0
        && memory.bucket_number(its) == memory.bucket_number(hash)
        && index::has_tag(entry, index::tag(its));
    if belongs { Entry::Counted(header) } else { Entry::Stale }
}

/// The lane that `slot` belongs to.
pub(super) fn lane_of(lanes: &[Cursor; 2], slot: u32) -> usize {
    usize::from(slot >= lanes[1].first_slot)
}

/// When a record was stored, nanoseconds of the monotonic clock.
pub(super) fn stored_ns(header: &RecordHeader) -> u64 {
    header.expires_ns.saturating_sub(u64::from(header.life_ms) * NS_PER_MS)
}

/// Slots of a record with a frame of `len` bytes; `None` for no bytes, and for more than a UDP datagram has.
fn slots_of(len: usize) -> Option<u32> {
    u16::try_from(len).ok().filter(|len| *len != 0)?;
    u32::try_from((RECORD_HEADER_LEN + len).div_ceil(SLOT_LEN)).ok()
}

#[expect(clippy::cast_possible_truncation, reason = "64")]
pub(super) const fn slot_len() -> u32 {
    SLOT_LEN as u32
}

#[expect(clippy::cast_possible_truncation, reason = "48")]
const fn header_len() -> u32 {
    RECORD_HEADER_LEN as u32
}

pub(super) fn record_slots(header: &RecordHeader) -> u32 {
    header.length.saturating_add(header_len()).div_ceil(slot_len())
}
