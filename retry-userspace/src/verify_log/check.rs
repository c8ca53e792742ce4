//! The check of a frame log: each lane from its oldest record on, then each index entry against the record that it leads
//! to.
//!
//! The daemon and the kernel go on writing meanwhile. So what looks wrong is only suspected at first, and looked at again,
//! some milliseconds apart: it is found when it stays. A frame that is being written stays out of this for a second.
//!
//! Longer than most files: what is right for an entry rests on the same words of the lanes as what is right for a record.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use retry_common::abi::{Bucket, Lane, RECORD_HEADER_LEN, RecordHeader, SEGMENT_SLOTS, SLOT_LEN, record_flag};
use retry_common::index::{self, BUCKET_ENTRIES};
use retry_common::key::FrameKey;
use retry_common::{checksum, position};

use super::report::{Kind, Report};
use crate::datapath::pinned::Words;

/// How often an oddity is looked at before it is found.
const LOOKS: u32 = 6;
/// The pause after the first look; each further one is twice as long: a quarter of a second in all.
const PAUSE: Duration = Duration::from_millis(4);
/// How long a frame may take to be written.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(128);
/// When suspects that keep changing are let go.
const LIMIT: Duration = Duration::from_secs(4);
/// How often a lane is walked for the sake of its count, while the daemon moves on.
const WALKS: u32 = 4;
/// How often a header that changes is read again at once.
const READS: u32 = 4;

/// Where an entry stands: its bucket, and its number there.
type At = (u32, usize);

/// A frame log whose pages others write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogView<'a, W> {
    /// The segments.
    pub ring: &'a W,
    /// The buckets.
    pub index: &'a W,
    /// The lane table.
    pub lanes: &'a W,
    /// Seed of the hashes.
    pub hash_seed: u64,
    /// Buckets of the index, a power of two.
    pub buckets: u32,
}

/// The words of a lane, the one that moves first read first: none of them goes back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct LaneWords {
    tail: u64,
    followed: u64,
    head: u64,
    records: u32,
    live: u32,
    first_slot: u32,
    slots: u32,
}

/// What has been walked of a lane.
#[derive(Debug, Default)]
struct Walked {
    from: u64,
    to: u64,
    /// One bit for each slot at which a record starts.
    starts: Vec<u64>,
}

impl Walked {
    fn mark(&mut self, place: u64) {
        let slot = position::slot(place);
        if let Some(word) = self.starts.get_mut((slot / 64) as usize) {
            *word |= 1 << (slot % 64);
        }
    }

    /// Whether a record starts there; `None` for a place that was not walked by.
    fn has(&self, place: u64) -> Option<bool> {
        let slot = position::slot(place);
        let word = self.starts.get((slot / 64) as usize)?;
        (self.from..self.to).contains(&place).then_some(word >> (slot % 64) & 1 != 0)
    }
}

/// What an entry looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Look {
    /// As it should be: the lane and the place of its record.
    Right(usize, u64),
    /// A frame that is being written there.
    InFlight,
    Odd(Kind),
}

/// An entry that did not look right.
#[derive(Clone, Copy, Debug)]
struct Suspect {
    at: At,
    entry: u64,
    look: Look,
    /// How often it looked odd.
    looks: u32,
    since: Instant,
}

/// Two entries of a bucket with one tag.
#[derive(Clone, Copy, Debug)]
struct Twins {
    bucket: u32,
    entries: [(usize, u64); 2],
    looks: u32,
}

impl<W: Words> LogView<'_, W> {
    /// Checks everything; the bytes of the records only with `sums`.
    pub(crate) fn check(&self, sums: bool) -> Report {
        let start = Instant::now();
        let mut report = Report { buckets: self.buckets, ..Report::default() };
        let walked = [0, 1].map(|lane| self.walk(lane, sums, &mut report));
        self.check_index(&walked, &mut report);
        self.check_live(&mut report);
        report.took(start.elapsed());
        report
    }

    // --- the lanes ---

    /// Walks a lane from tail to followed, more than once while the daemon moves on.
    fn walk(&self, lane: usize, sums: bool, report: &mut Report) -> Walked {
        if let Some(detail) = self.contradiction(lane) {
            report.find(Kind::LaneWords, detail);
            return Walked::default();
        }
        let mut pause = PAUSE;
        for attempt in 1..=WALKS {
            let before = self.lane(lane);
            let mut walk = Walk::new(before);
            let broken = self.walk_once(lane, sums && attempt == 1, &mut walk);
            let after = self.lane(lane);
            let is_quiet =
                (before.tail, before.followed, before.records) == (after.tail, after.followed, after.records);
            let found = &mut report.lanes[lane];
            (found.records, found.fillers) = (walk.records, walk.fillers);
            found.sums += walk.sums;
            for detail in walk.torn {
                report.find(Kind::Torn, detail);
            }
            if let Some((kind, detail)) = broken {
                report.find(kind, detail);
                return walk.walked;
            }
            if is_quiet && !walk.jumped {
                report.lanes[lane].records_compared = true;
                if walk.records != u64::from(before.records) {
                    let detail = format!("lane {lane}: {} counted, {} there", before.records, walk.records);
                    report.find(Kind::Records, detail);
                }
                return walk.walked;
            }
            if attempt == WALKS {
                return walk.walked;
            }
            thread::sleep(pause);
            pause *= 2;
        }
        Walked::default()
    }

    /// Walks a lane once; what breaks the walk, if something does.
    fn walk_once(&self, lane: usize, sums: bool, walk: &mut Walk) -> Option<(Kind, String)> {
        let LaneWords { followed, slots: lane_slots, first_slot, .. } = walk.words;
        let mut at = walk.words.tail;
        let mut bytes = Vec::new();
        while at < followed {
            let slot = first_slot + position::slot(at);
            let header = match self.stand(lane, slot, at) {
                Stand::There(header) => header,
                Stand::Dropped(tail) => {
                    // The daemon was quicker. It goes on from there, and so do we; what was marked before is not in use.
                    walk.jump(tail);
                    at = tail;
                    continue;
                }
                Stand::Broken(version) => {
                    let wanted = position::version(at);
                    return Some((
                        Kind::Chain,
                        format!("lane {lane}, slot {slot}: version {version:#x} where {wanted:#x} comes next"),
                    ));
                }
            };
            let Some(slots) = fits(slot, header.length) else {
                return Some((Kind::Straddling, format!("lane {lane}, slot {slot}: {} bytes", header.length)));
            };
            walk.records += 1;
            walk.walked.mark(at);
            if header.flags & record_flag::FILLER != 0 {
                walk.fillers += 1;
            } else if sums {
                walk.sums += 1;
                if let Some(detail) = self.torn(slot, at, &header, &mut bytes) {
                    walk.torn.push(detail);
                }
            }
            at = position::after(at, slots, lane_slots);
        }
        walk.walked.to = at;
        (at != followed).then(|| {
            let (at, followed) = (position::slot(at), position::slot(followed));
            (Kind::Chain, format!("lane {lane}: the last record ends at slot {at}, followed is up to {followed}"))
        })
    }

    /// The record at `place`, which is between tail and followed.
    fn stand(&self, lane: usize, slot: u32, place: u64) -> Stand {
        let wanted = position::version(place);
        let mut pause = PAUSE;
        let mut looks = 0;
        loop {
            let version = match self.header(slot) {
                Read::Whole(header) if header.version == wanted => return Stand::There(header),
                Read::Whole(header) => header.version,
                Read::Changing(version) => version,
            };
            looks += 1;
            let tail = self.lane(lane).tail;
            if tail > place {
                return Stand::Dropped(tail);
            }
            if looks == LOOKS {
                return Stand::Broken(version);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// What is wrong with the bytes of a record, if its sum is and the record stays.
    fn torn(&self, slot: u32, place: u64, header: &RecordHeader, bytes: &mut Vec<u8>) -> Option<String> {
        let mut pause = PAUSE;
        let mut sum = 0;
        for _ in 0..LOOKS {
            bytes.resize(usize::try_from(header.length).ok()?, 0);
            self.ring.copy(slot_offset(slot) + RECORD_HEADER_LEN, bytes);
            sum = checksum::partial(bytes);
            // Zero has two forms.
            if sum == header.partial || sum.min(!sum) == 0 && header.partial.min(!header.partial) == 0 {
                return None;
            }
            fence(Ordering::Acquire);
            if self.ring.word(slot_offset(slot)) != position::version(place) {
                return None;
            }
            thread::sleep(pause);
            pause *= 2;
        }
        let (key, length) = (header.key, header.length);
        Some(format!(
            "slot {slot}, key {key}: {length} bytes have the sum {sum:#06x}, the header says {:#06x}",
            header.partial
        ))
    }

    /// What is wrong with the words of a lane, if it stays.
    fn contradiction(&self, lane: usize) -> Option<String> {
        let mut pause = PAUSE;
        let mut what = None;
        for _ in 0..LOOKS {
            let LaneWords { tail, followed, head, first_slot, slots, .. } = self.lane(lane);
            let ring_slots = u64::try_from(self.ring.len() / SLOT_LEN).unwrap_or(u64::MAX);
            let inside = slots != 0 && u64::from(first_slot) + u64::from(slots) <= ring_slots;
            let in_order = tail <= followed && followed <= head && head <= position::lap_later(tail);
            let in_lane = [tail, followed, head].iter().all(|at| position::slot(*at) < slots);
            if inside && in_order && in_lane {
                return None;
            }
            what = Some(format!(
                "lane {lane}: tail {tail:#x}, followed {followed:#x}, head {head:#x}, slots {first_slot} to {}",
                u64::from(first_slot) + u64::from(slots)
            ));
            thread::sleep(pause);
            pause *= 2;
        }
        what
    }

    fn lane(&self, lane: usize) -> LaneWords {
        let word = |field| self.lanes.word(lane * size_of::<Lane>() + field);
        let half = |field: usize| {
            let bytes = word(field & !7).to_ne_bytes();
            let (first, second) = bytes.split_at(4);
            let half = if field & 7 == 0 { first } else { second };
            u32::from_ne_bytes(half.try_into().unwrap_or_default())
        };
        LaneWords {
            tail: word(offset_of!(Lane, tail)),
            followed: word(offset_of!(Lane, followed)),
            records: half(offset_of!(Lane, records)),
            live: half(offset_of!(Lane, live)),
            head: word(offset_of!(Lane, head)),
            first_slot: half(offset_of!(Lane, first_slot)),
            slots: half(offset_of!(Lane, slots)),
        }
    }

    // --- the index ---

    fn check_index(&self, walked: &[Walked; 2], report: &mut Report) {
        let mut state = Sweep {
            words: [self.lane(0), self.lane(1)],
            walked,
            taken: vec![0; self.ring.len() / SLOT_LEN / 64 + 1],
            suspects: Vec::new(),
            twins: Vec::new(),
            doubled: HashSet::new(),
        };
        for bucket in 0..self.buckets + index::OVERFLOW_BUCKETS {
            let mut there = [0; BUCKET_ENTRIES];
            for (number, entry) in there.iter_mut().enumerate() {
                *entry = self.entry((bucket, number));
                if *entry != 0 {
                    self.first_look(&mut state, (bucket, number), *entry, report);
                }
            }
            for (i, first) in there.iter().enumerate().filter(|(_, entry)| **entry != 0) {
                for (j, second) in there.iter().enumerate().skip(i + 1) {
                    if *second != 0 && index::has_tag(*second, *first) {
                        state.twins.push(Twins { bucket, entries: [(i, *first), (j, *second)], looks: 0 });
                    }
                }
            }
        }
        self.look_again(&mut state, report);
        self.look_at_doubled(&state.doubled, report);
    }

    /// Compares the daemon's count of live entries with those that are there, once nothing is in flight.
    ///
    /// The daemon empties entries before it shows that it has: a difference counts if it is the same in [`LOOKS`] looks
    /// between which nothing has moved.
    fn check_live(&self, report: &mut Report) {
        let mut pause = PAUSE;
        let mut wrong: Option<([LaneWords; 2], u64, u32)> = None;
        for _ in 0..2 * LOOKS {
            let before = [self.lane(0), self.lane(1)];
            let mut there = 0u64;
            for bucket in 0..self.buckets {
                there += (0..BUCKET_ENTRIES).map(|number| u64::from(self.entry((bucket, number)) != 0)).sum::<u64>();
            }
            let is_quiet = before.iter().all(|words| words.followed == words.head);
            if is_quiet && before == [self.lane(0), self.lane(1)] {
                let counted: u64 = before.iter().map(|words| u64::from(words.live)).sum();
                report.live_compared = true;
                if counted == there {
                    return;
                }
                let looks = match &wrong {
                    Some((words, entries, looks)) if *words == before && *entries == there => looks + 1,
                    _ => 1,
                };
                if looks == LOOKS {
                    report.find(Kind::Live, format!("the daemon counts {counted} entries, {there} are there"));
                    return;
                }
                wrong = Some((before, there, looks));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn first_look(&self, state: &mut Sweep<'_>, at: At, entry: u64, report: &mut Report) {
        report.entries += 1;
        let look = self.judge(state, at.0, entry);
        if let Look::Right(lane, _) = look {
            report.lanes[lane].frames += 1;
            let slot = index::slot(entry);
            if let Some(word) = state.taken.get_mut((slot / 64) as usize) {
                if *word >> (slot % 64) & 1 != 0 {
                    state.doubled.insert(slot);
                }
                *word |= 1 << (slot % 64);
            }
        } else {
            let looks = u32::from(matches!(look, Look::Odd(_)));
            state.suspects.push(Suspect { at, entry, look, looks, since: Instant::now() });
        }
    }

    /// Looks at what is suspected until it looks right, or stays wrong.
    fn look_again(&self, state: &mut Sweep<'_>, report: &mut Report) {
        let start = Instant::now();
        let mut pause = PAUSE;
        while !(state.suspects.iter().all(Suspect::is_ripe) && state.twins.iter().all(|twins| twins.looks >= LOOKS))
            && start.elapsed() < LIMIT
        {
            thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            let suspects = std::mem::take(&mut state.suspects);
            let left: Vec<_> = suspects.into_iter().filter_map(|suspect| self.second_look(state, suspect)).collect();
            state.suspects = left;
            let twins = std::mem::take(&mut state.twins);
            let left: Vec<_> = twins.into_iter().filter_map(|twins| self.look_at_twins(state, twins)).collect();
            state.twins = left;
        }
        for suspect in &state.suspects {
            match suspect.look {
                Look::Odd(kind) if suspect.is_ripe() => report.find(kind, self.tell(suspect)),
                Look::InFlight if suspect.is_ripe() => report.find(Kind::Unfinished, self.tell(suspect)),
                Look::InFlight => report.in_flight += 1,
                // It became another one at each look.
                Look::Odd(_) | Look::Right(..) => {}
            }
        }
        for twins in state.twins.iter().filter(|twins| twins.looks >= LOOKS) {
            let [(_, first), (_, second)] = twins.entries;
            report.find(Kind::DoubledTag, format!("bucket {}: entries {first:#018x} and {second:#018x}", twins.bucket));
        }
    }

    fn second_look(&self, state: &mut Sweep<'_>, suspect: Suspect) -> Option<Suspect> {
        let entry = self.entry(suspect.at);
        if entry == 0 {
            return None;
        }
        let look = self.judge(state, suspect.at.0, entry);
        let is_odd = match look {
            Look::Right(..) => return None,
            Look::InFlight => 0,
            Look::Odd(_) => 1,
        };
        if entry != suspect.entry {
            return Some(Suspect { at: suspect.at, entry, look, looks: is_odd, since: Instant::now() });
        }
        // Where a stale entry leads others write: what it looks like may change, and it stays wrong.
        let look = if matches!(suspect.look, Look::Odd(_)) && is_odd == 0 { suspect.look } else { look };
        Some(Suspect { look, looks: suspect.looks + is_odd, ..suspect })
    }

    fn look_at_twins(&self, state: &mut Sweep<'_>, twins: Twins) -> Option<Twins> {
        if twins.entries.iter().any(|(number, entry)| self.entry((twins.bucket, *number)) != *entry) {
            return None;
        }
        let are_followed = twins.entries.iter().all(|(_, entry)| match self.judge(state, twins.bucket, *entry) {
            Look::Right(lane, place) => place < self.lane(lane).followed,
            Look::InFlight => false,
            // It is found for itself, and not followed any more.
            Look::Odd(_) => true,
        });
        if !are_followed && twins.looks + 1 >= LOOKS {
            // The daemon has stopped, or is far behind: it has yet to see them.
            return None;
        }
        Some(Twins { looks: twins.looks + u32::from(are_followed), ..twins })
    }

    /// Whether slots that were met twice still stand in two entries.
    fn look_at_doubled(&self, doubled: &HashSet<u32>, report: &mut Report) {
        if doubled.is_empty() {
            return;
        }
        let mut places: HashMap<u32, Vec<(At, u64)>> = HashMap::new();
        for bucket in 0..self.buckets + index::OVERFLOW_BUCKETS {
            for number in 0..BUCKET_ENTRIES {
                let entry = self.entry((bucket, number));
                if entry != 0 && doubled.contains(&index::slot(entry)) {
                    places.entry(index::slot(entry)).or_default().push(((bucket, number), entry));
                }
            }
        }
        let mut pause = PAUSE;
        for _ in 0..LOOKS {
            places.retain(|_, there| {
                there.retain(|(at, entry)| self.entry(*at) == *entry);
                there.len() > 1
            });
            if places.is_empty() {
                return;
            }
            thread::sleep(pause);
            pause *= 2;
        }
        for (slot, there) in places {
            let buckets: Vec<_> = there.iter().map(|((bucket, _), _)| bucket).collect();
            report.find(Kind::DoubledSlot, format!("slot {slot}: entries in the buckets {buckets:?}"));
        }
    }

    /// What an entry of a bucket looks like now.
    fn judge(&self, state: &mut Sweep<'_>, bucket: u32, entry: u64) -> Look {
        let slot = index::slot(entry);
        let Some(lane) = state.lane_of(slot) else {
            return Look::Odd(Kind::Outside);
        };
        let header = match self.header(slot) {
            Read::Whole(header) => header,
            Read::Changing(0) => return Look::Odd(Kind::Dropped),
            Read::Changing(version) if version & 1 != 0 => {
                let at = place_of(version & !1);
                let words = self.lane(lane);
                state.words[lane] = words;
                let is_next = words.followed <= at && at < words.head && words.leads(at, slot);
                return if is_next { Look::InFlight } else { Look::Odd(Kind::Unfinished) };
            }
            // It is written over and over: looked at again.
            Read::Changing(_) => return Look::Odd(Kind::Unfinished),
        };
        let at = place_of(header.version);
        if !state.words[lane].uses(at) {
            state.words[lane] = self.lane(lane);
        }
        if !state.words[lane].uses(at) || !state.words[lane].leads(at, slot) {
            return Look::Odd(Kind::Outside);
        }
        if state.walked[lane].has(at) == Some(false) {
            return Look::Odd(Kind::OffChain);
        }
        if fits(slot, header.length).is_none() {
            return Look::Odd(Kind::Straddling);
        }
        let hash = index::hash(&header.key, self.hash_seed);
        let is_filler = header.flags & record_flag::FILLER != 0;
        let mask = self.buckets - 1;
        // The daemon takes an entry out of an overflow bucket when it follows the record.
        let is_pending = || at >= self.lane(lane).followed;
        let is_at_home = index::bucket(hash, mask) == bucket || index::overflow(hash, mask) == bucket && is_pending();
        if is_filler || !is_at_home || !index::has_tag(entry, index::tag(hash)) {
            return Look::Odd(Kind::Misplaced);
        }
        Look::Right(lane, at)
    }

    fn tell(&self, suspect: &Suspect) -> String {
        let (bucket, slot) = (suspect.at.0, index::slot(suspect.entry));
        let mut text = format!("bucket {bucket}, entry {:#018x}, slot {slot}", suspect.entry);
        if (slot as usize + 1) * SLOT_LEN <= self.ring.len() {
            let RecordHeader { version, key, length, flags, .. } = self.raw_header(slot);
            text += &format!(": version {version:#x}, key {key}, {length} bytes, flags {flags:#04x}");
        }
        text
    }

    fn entry(&self, (bucket, number): At) -> u64 {
        self.index.word(bucket as usize * size_of::<Bucket>() + number * 8)
    }

    /// The header at `slot`, which lies inside the ring.
    fn header(&self, slot: u32) -> Read {
        let start = slot_offset(slot);
        let mut version = 0;
        for _ in 0..READS {
            version = self.ring.word(start);
            if version == 0 || version & 1 != 0 {
                return Read::Changing(version);
            }
            let header = self.raw_header(slot);
            fence(Ordering::Acquire);
            if self.ring.word(start) == version {
                return Read::Whole(RecordHeader { version, ..header });
            }
        }
        Read::Changing(version)
    }

    fn raw_header(&self, slot: u32) -> RecordHeader {
        let start = slot_offset(slot);
        let word = |at: usize| self.ring.word(start + at);
        let bytes = |at: usize| word(at).to_ne_bytes();
        let [l0, l1, l2, l3, m0, m1, m2, m3] = bytes(offset_of!(RecordHeader, length));
        let [p0, p1, g0, g1, class, flags, r0, r1] = bytes(offset_of!(RecordHeader, partial));
        let key_at = offset_of!(RecordHeader, key);
        RecordHeader {
            version: word(0),
            expires_ns: word(offset_of!(RecordHeader, expires_ns)),
            key: FrameKey::new(u64::from_be_bytes(bytes(key_at)), u64::from_be_bytes(bytes(key_at + 8))),
            length: u32::from_ne_bytes([l0, l1, l2, l3]),
            life_ms: u32::from_ne_bytes([m0, m1, m2, m3]),
            partial: u16::from_ne_bytes([p0, p1]),
            group: u16::from_ne_bytes([g0, g1]),
            class,
            flags,
            reserved: [r0, r1],
        }
    }
}

/// One walk over a lane.
#[derive(Debug)]
struct Walk {
    words: LaneWords,
    walked: Walked,
    records: u64,
    fillers: u64,
    sums: u64,
    torn: Vec<String>,
    /// The daemon dropped records that were still to be walked by.
    jumped: bool,
}

impl Walk {
    fn new(words: LaneWords) -> Self {
        let starts = vec![0; words.slots as usize / 64 + 1];
        let walked = Walked { from: words.tail, to: words.tail, starts };
        Self { words, walked, records: 0, fillers: 0, sums: 0, torn: Vec::new(), jumped: false }
    }

    fn jump(&mut self, tail: u64) {
        self.jumped = true;
        self.walked.from = tail;
        self.walked.starts.fill(0);
        (self.records, self.fillers) = (0, 0);
    }
}

/// What stands where a record is to be.
enum Stand {
    There(RecordHeader),
    /// It was dropped meanwhile: the lane begins there now.
    Dropped(u64),
    /// Another version, which stays.
    Broken(u64),
}

/// A header as it was read.
enum Read {
    Whole(RecordHeader),
    /// Not whole; its version.
    Changing(u64),
}

/// The state of the walk over the index.
struct Sweep<'a> {
    words: [LaneWords; 2],
    walked: &'a [Walked; 2],
    /// One bit for each slot that an entry leads to.
    taken: Vec<u64>,
    suspects: Vec<Suspect>,
    twins: Vec<Twins>,
    doubled: HashSet<u32>,
}

impl Sweep<'_> {
    fn lane_of(&self, slot: u32) -> Option<usize> {
        self.words.iter().position(|words| words.first_slot <= slot && slot - words.first_slot < words.slots)
    }
}

impl Suspect {
    fn is_ripe(&self) -> bool {
        match self.look {
            Look::InFlight => self.since.elapsed() >= PATIENCE,
            Look::Odd(_) | Look::Right(..) => self.looks >= LOOKS,
        }
    }
}

impl LaneWords {
    const fn uses(&self, place: u64) -> bool {
        self.tail <= place && place < self.head
    }

    const fn leads(&self, place: u64, slot: u32) -> bool {
        position::slot(place) == slot - self.first_slot
    }
}

/// The place of an even version, see [`position::version`].
const fn place_of(version: u64) -> u64 {
    version.wrapping_sub(2) / 2
}

/// Slots of a record with `length` bytes at `slot`, if it ends inside its segment.
fn fits(slot: u32, length: u32) -> Option<u32> {
    let bytes = length.checked_add(u32::try_from(RECORD_HEADER_LEN).ok()?)?;
    let slots = bytes.div_ceil(u32::try_from(SLOT_LEN).ok()?);
    (slots <= SEGMENT_SLOTS - slot % SEGMENT_SLOTS).then_some(slots)
}

const fn slot_offset(slot: u32) -> usize {
    slot as usize * SLOT_LEN
}
