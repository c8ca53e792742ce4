//! A daemon's writer that ends at any of its stores, and the next one that takes its log over.
//!
//! A script of operations runs once to its end, and then once for each store that the daemon makes in it: the writer ends
//! before that store. What the next writer holds is what was held before or after the operation that was cut short, the
//! log is right in itself, and it goes on.
//!
//! Longer than most files: the memory that ends a writer is private to the scripts that run over it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::LazyLock;

use proptest::prelude::*;
use retry_common::abi::{RECORD_HEADER_LEN, RecordHeader, SEGMENT_SLOTS, SLOT_LEN, record_flag};
use retry_common::checksum;
use retry_common::framelog::{
    Adopted, Append, Appended, Bucket, DaemonWriter, Followed, HOLE_PATIENCE_NS, IndexCount, Memory, NewFrame, Put,
    Shown, Unusable, Word, append, commit, find_either, still_leads,
};
use retry_common::index::{self, BUCKET_ENTRIES};
use retry_common::key::FrameKey;
use retry_common::position;
use retry_common::wire::frame::Class;

const SEED: u64 = 7;
/// One segment per lane.
const LANE: u32 = SEGMENT_SLOTS;
const LANES: [(u32, u32); 2] = [(0, LANE), (LANE, LANE)];
/// Few enough that some are full.
const BUCKETS: u64 = 48;
const ENTRIES: usize = 48 * BUCKET_ENTRIES;
/// The bucket for entries whose own is full: one is enough here.
const OVERFLOW: u64 = BUCKETS;
const NS_PER_MS: u64 = 1_000_000;
const START: u64 = 1_000_000_000_000;
/// When the first frames' life is over.
const NOW: u64 = START + BRIEF_MS as u64 * NS_PER_MS;
/// Life of the first frames, and of all others, milliseconds.
const BRIEF_MS: u32 = 100;
const LIFE_MS: u32 = 60_000;
/// The longest frame: 257 of them are a lap.
const LONG: usize = 65_000;

/// Frames are one byte again and again.
static FRAMES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (0..64).map(|byte| vec![byte; LONG]).collect());

fn first() -> u64 {
    position::at(5, 0)
}

fn key(number: u64) -> FrameKey {
    FrameKey::new(0xfeed, number)
}

fn hash(key: &FrameKey) -> u64 {
    index::hash(key, SEED)
}

/// What a writer that ends unwinds with.
struct Killed;

/// The shared memory.
#[derive(Clone, Default)]
struct State {
    heads: [u64; 2],
    limits: [u64; 2],
    shown: [Shown; 2],
    /// The first word of each slot.
    words: Vec<u64>,
    headers: HashMap<u32, RecordHeader>,
    /// The byte of the frame that begins there.
    bytes: HashMap<u32, u8>,
    index: Vec<u64>,
}

#[derive(Default)]
struct Inner {
    state: RefCell<State>,
    /// Stores that the daemon may still make; `None` is any number.
    left: Cell<Option<u64>>,
    /// Stores that it has made.
    made: Cell<u64>,
    /// What a kernel writer does while the daemon waits for the `n`th time.
    #[expect(clippy::type_complexity, reason = "a hook of the tests")]
    paused: RefCell<Option<(u32, Box<dyn FnOnce(&Shared)>)>>,
    pauses: Cell<u32>,
}

#[derive(Clone, Default)]
struct Shared(Rc<Inner>);

impl Shared {
    fn over(state: State) -> Self {
        Self(Rc::new(Inner { state: RefCell::new(state), ..Inner::default() }))
    }

    fn empty() -> Self {
        Self::over(State {
            heads: [first(); 2],
            limits: [position::lap_later(first()); 2],
            shown: [Shown { tail: first(), followed: first(), ..Shown::default() }; 2],
            words: vec![0; 2 * LANE as usize],
            index: vec![0; ENTRIES + BUCKET_ENTRIES],
            ..State::default()
        })
    }

    /// The daemon's next store: it ends here when it has no more left.
    fn step(&self) {
        if let Some(left) = self.0.left.get() {
            if left == 0 {
                self.0.left.set(None);
                resume_unwind(Box::new(Killed));
            }
            self.0.left.set(Some(left - 1));
        }
        self.0.made.set(self.0.made.get() + 1);
    }

    /// What a listener that asks for `key` gets.
    fn read(&self, key: &FrameKey) -> Option<(u8, u32)> {
        let entries = Entries { shared: self, bucket: number(hash(key)), steps: false };
        let overflow = || Some(Entries { bucket: OVERFLOW, ..entries });
        let (entries, i, entry) = find_either(entries, overflow, index::tag(hash(key)))?;
        let slot = index::slot(entry);
        let state = self.0.state.borrow();
        let version = state.words[slot as usize];
        if version == 0 || version & 1 != 0 {
            return None;
        }
        let header = *state.headers.get(&slot)?;
        let byte = *state.bytes.get(&slot)?;
        drop(state);
        let is_it = still_leads(&entries, i, entry) && header.key == *key && NOW < header.expires_ns;
        is_it.then_some((byte, header.length))
    }
}

fn number(hash: u64) -> u64 {
    hash % BUCKETS
}

#[derive(Clone, Copy)]
enum At {
    Head(usize),
    Limit(usize),
    Slot(u32),
    Entry(u64, usize),
}

/// One word; a store of the daemon's is a step.
#[derive(Clone, Copy)]
struct One<'a> {
    shared: &'a Shared,
    at: At,
    steps: bool,
}

impl One<'_> {
    fn with<T>(&self, act: impl FnOnce(&mut u64) -> T) -> T {
        let mut state = self.shared.0.state.borrow_mut();
        act(match self.at {
            At::Head(lane) => &mut state.heads[lane],
            At::Limit(lane) => &mut state.limits[lane],
            At::Slot(slot) => &mut state.words[slot as usize],
            At::Entry(bucket, i) => &mut state.index[usize::try_from(bucket).expect("few") * BUCKET_ENTRIES + i],
        })
    }

    fn step(&self) {
        if self.steps {
            self.shared.step();
        }
    }
}

impl Word for One<'_> {
    fn load(&self) -> u64 {
        self.with(|word| *word)
    }

    fn store(&self, value: u64) {
        self.step();
        self.with(|word| *word = value);
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        self.step();
        self.with(|word| {
            let is_old = *word == old;
            if is_old {
                *word = new;
            }
            is_old
        })
    }

    fn fence(&self) {}
}

#[derive(Clone, Copy)]
struct Entries<'a> {
    shared: &'a Shared,
    bucket: u64,
    steps: bool,
}

impl<'a> Bucket for Entries<'a> {
    type Word = One<'a>;

    fn entry(&self, i: usize) -> One<'a> {
        One { shared: self.shared, at: At::Entry(self.bucket, i), steps: self.steps }
    }
}

impl Memory for Shared {
    type Word<'a> = One<'a>;
    type Bucket<'a> = Entries<'a>;

    fn head(&self, lane: usize) -> One<'_> {
        One { shared: self, at: At::Head(lane), steps: true }
    }

    fn limit(&self, lane: usize) -> One<'_> {
        One { shared: self, at: At::Limit(lane), steps: true }
    }

    fn show(&self, lane: usize, shown: &Shown) {
        let store = |change: &dyn Fn(&mut Shown)| {
            self.step();
            change(&mut self.0.state.borrow_mut().shown[lane]);
        };
        store(&|there| (there.records, there.live) = (Shown::UNKNOWN_RECORDS, shown.live));
        store(&|there| there.tail = shown.tail);
        store(&|there| there.followed = shown.followed);
        store(&|there| there.records = shown.records);
    }

    fn shown(&self, lane: usize) -> Shown {
        self.0.state.borrow().shown[lane]
    }

    fn version(&self, slot: u32) -> One<'_> {
        One { shared: self, at: At::Slot(slot), steps: true }
    }

    fn header(&self, slot: u32) -> RecordHeader {
        self.0.state.borrow().headers.get(&slot).copied().unwrap_or_default()
    }

    fn set_header(&self, slot: u32, header: &RecordHeader) {
        // In two halves.
        self.step();
        let half = RecordHeader { expires_ns: header.expires_ns, key: header.key, ..self.header(slot) };
        self.0.state.borrow_mut().headers.insert(slot, half);
        self.step();
        self.0.state.borrow_mut().headers.insert(slot, *header);
    }

    fn set_flags(&self, slot: u32, flags: u8) {
        self.step();
        self.0.state.borrow_mut().headers.entry(slot).or_default().flags = flags;
    }

    fn write_frame(&self, slot: u32, bytes: &[u8]) {
        self.step();
        self.0.state.borrow_mut().bytes.insert(slot, 63);
        self.step();
        write_bytes(&mut self.0.state.borrow_mut(), slot, bytes);
    }

    fn frame(&self, slot: u32, len: usize) -> &[u8] {
        &FRAMES[usize::from(self.0.state.borrow().bytes[&slot])][..len]
    }

    fn bucket(&self, hash: u64) -> Entries<'_> {
        Entries { shared: self, bucket: number(hash), steps: true }
    }

    fn overflow(&self, _: u64) -> Entries<'_> {
        Entries { shared: self, bucket: OVERFLOW, steps: true }
    }

    fn bucket_number(&self, hash: u64) -> u32 {
        u32::try_from(number(hash)).expect("few")
    }

    fn clear_entries(&self, is_void: &mut dyn FnMut(u64) -> bool) {
        for bucket in 0..=OVERFLOW {
            for i in 0..BUCKET_ENTRIES {
                let word = self.bucket(bucket).entry(i);
                let entry = word.load();
                if entry != 0 && is_void(entry) {
                    word.replace(entry, 0);
                }
            }
        }
    }

    fn each_bucket(&self, look: &(dyn Fn(&Self, u64) -> IndexCount + Sync)) -> IndexCount {
        (0..BUCKETS).fold(IndexCount::default(), |mut sum, bucket| {
            sum += look(self, bucket);
            sum
        })
    }

    fn fetch(&self, _: u32) {}

    fn pause(&self, attempt: u32) -> bool {
        self.0.pauses.set(self.0.pauses.get() + 1);
        let hook = self.0.paused.borrow_mut().take_if(|(at, _)| *at == self.0.pauses.get());
        if let Some((_, act)) = hook {
            act(self);
        }
        attempt < 2
    }
}

fn slots_of(len: usize) -> u32 {
    u32::try_from((RECORD_HEADER_LEN + len).div_ceil(SLOT_LEN)).expect("small")
}

/// The bytes go over whatever stood in the record's other slots.
fn write_bytes(state: &mut State, slot: u32, bytes: &[u8]) {
    state.bytes.insert(slot, bytes[0]);
    for behind in slot + 1..slot + slots_of(bytes.len()) {
        state.words[behind as usize] = u64::from_ne_bytes([bytes[0]; 8]);
        state.headers.remove(&behind);
        state.bytes.remove(&behind);
    }
}

/// How far a kernel program comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// To its end.
    Done,
    /// It has reserved its room.
    Reserved,
    /// It has entered its record and not committed it.
    Entered,
}

/// A kernel program with one frame.
struct Kernel<'a> {
    shared: &'a Shared,
    key: FrameKey,
    byte: u8,
    len: usize,
    end: End,
}

impl<'a> Append for Kernel<'a> {
    type Word = One<'a>;
    type Bucket = Entries<'a>;

    fn length(&self) -> u32 {
        u32::try_from(self.len).expect("small")
    }

    fn hash(&self) -> u64 {
        hash(&self.key)
    }

    fn bucket(&self) -> Option<Entries<'a>> {
        Some(Entries { shared: self.shared, bucket: number(hash(&self.key)), steps: false })
    }

    fn overflow(&self) -> Option<Entries<'a>> {
        Some(Entries { shared: self.shared, bucket: OVERFLOW, steps: false })
    }

    fn head(&self) -> Option<One<'a>> {
        Some(One { shared: self.shared, at: At::Head(0), steps: false })
    }

    fn limit(&self) -> Option<One<'a>> {
        Some(One { shared: self.shared, at: At::Limit(0), steps: false })
    }

    fn lane(&self) -> Option<(u32, u32)> {
        Some(LANES[0])
    }

    fn version(&self, slot: u32) -> Option<One<'a>> {
        (self.end != End::Reserved).then_some(One { shared: self.shared, at: At::Slot(slot), steps: false })
    }

    fn fill_in(&self, slot: u32, version: u64) -> bool {
        let bytes = &FRAMES[usize::from(self.byte)][..self.len];
        let mut state = self.shared.0.state.borrow_mut();
        write_bytes(&mut state, slot, bytes);
        let header = RecordHeader {
            version,
            expires_ns: START + u64::from(LIFE_MS) * NS_PER_MS,
            key: self.key,
            length: self.length(),
            life_ms: LIFE_MS,
            partial: checksum::partial(bytes),
            flags: record_flag::KERNEL,
            ..RecordHeader::default()
        };
        state.headers.insert(slot, header);
        if self.end == End::Entered {
            // The commit fails, and the program withdraws its entry; the test puts both back.
            state.words[slot as usize] = version | 1 << 62;
        }
        true
    }

    fn write_filler(&self, slot: u32, position: u64, version: u64, length: u32) {
        let mut state = self.shared.0.state.borrow_mut();
        let flags = record_flag::FILLER;
        state.headers.insert(slot, RecordHeader { version, length, flags, ..RecordHeader::default() });
        state.words[slot as usize] = position::version(position);
    }
}

/// A frame that a kernel program has entered and not committed.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    position: u64,
    slot: u32,
    key: FrameKey,
}

/// A kernel program that is stopped before its commit; `None` if it left the frame.
fn start(shared: &Shared, number: u64, byte: u8, len: usize) -> Option<InFlight> {
    let before = shared.0.state.borrow().index.clone();
    let kernel = Kernel { shared, key: key(number), byte, len, end: End::Entered };
    if append(&kernel) != Appended::TooLate {
        return None;
    }
    let mut state = shared.0.state.borrow_mut();
    let slot = u32::try_from(state.words.iter().position(|word| word >> 62 == 1).expect("begun")).expect("small");
    state.words[slot as usize] &= !(1 << 62);
    let position = state.words[slot as usize] / 2 - 1;
    let bucket = usize::try_from(self::number(hash(&key(number)))).expect("few") * BUCKET_ENTRIES;
    let vacant = (bucket..bucket + BUCKET_ENTRIES).chain(ENTRIES..).find(|i| before[*i] == 0);
    let vacant = vacant.expect("the program found it vacant");
    state.index[vacant] = index::entry(hash(&key(number)), slot);
    Some(InFlight { position, slot, key: key(number) })
}

/// The program goes on: true when its frame is stored.
fn finish(shared: &Shared, there: InFlight) -> bool {
    let whole = commit(&One { shared, at: At::Slot(there.slot), steps: false }, there.position);
    if !whole {
        for bucket in [number(hash(&there.key)), OVERFLOW] {
            let entries = Entries { shared, bucket, steps: false };
            for i in 0..BUCKET_ENTRIES {
                entries.entry(i).replace(index::entry(hash(&there.key), there.slot), 0);
            }
        }
    }
    whole
}

type Writer = DaemonWriter<Shared>;

fn frame(number: u64, byte: u8, len: usize, class: Class, life_ms: u32) -> NewFrame<'static> {
    NewFrame {
        key: key(number),
        class,
        group: 0,
        life_ms,
        daemon_only: false,
        bytes: &FRAMES[usize::from(byte)][..len],
    }
}

/// A lane that is about to come round: short frames, long ones, and short ones up to near its end.
static FULL: LazyLock<SyncState> = LazyLock::new(|| {
    let shared = Shared::empty();
    let mut writer = Writer::new(shared.clone(), LANES, first(), SEED, 0);
    let mut put = |number, len, class, life_ms| {
        let frame = frame(number, 1, len, class, life_ms);
        assert_eq!(writer.put(&frame, START, |_| {}), Put::Stored);
        position::slot(shared.0.state.borrow().heads[0])
    };
    for number in 0..40 {
        let life_ms = if number < 20 { BRIEF_MS } else { LIFE_MS };
        put(number, 8 + 60 * (usize::try_from(number).expect("few") % 4), Class::Tx, life_ms);
    }
    let mut number = 40;
    while put(number, LONG, Class::Tx, LIFE_MS) < LANE - 1_100 {
        number += 1;
    }
    while put(1_000 + number, 20 * SLOT_LEN, Class::Tx, LIFE_MS) < LANE - 110 {
        number += 1;
    }
    for number in 2_000..2_010 {
        put(number, 300, Class::Block, LIFE_MS);
    }
    drop(writer);
    SyncState(shared.0.state.take())
});

struct SyncState(State);

fn known() -> impl Iterator<Item = u64> {
    (0..400).chain(1_000..1_400).chain(2_000..2_010).chain(3_000..3_400)
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Put {
        number: u64,
        byte: u8,
        len: usize,
        class: Class,
    },
    Remove(u64),
    Expire(usize),
    Ahead(u32),
    Follow,
    Kernel {
        number: u64,
        byte: u8,
        len: usize,
    },
    /// A kernel program that ends, as no program does, after it has reserved its room.
    Reserves {
        number: u64,
        len: usize,
    },
    /// One that ends before its commit.
    Enters {
        number: u64,
        len: usize,
    },
    /// The daemon follows as long as it takes to give a position up.
    Outwaits,
}

/// What the daemons told.
#[derive(Default)]
struct World {
    /// How long they have waited for kernel programs, nanoseconds.
    waited: Cell<u64>,
    told: RefCell<Vec<FrameKey>>,
    new: RefCell<Vec<FrameKey>>,
}

impl World {
    fn tell(&self, followed: &Followed<'_>) {
        self.told.borrow_mut().push(followed.key);
        if followed.is_new {
            self.new.borrow_mut().push(followed.key);
        }
    }
}

fn run(writer: &mut Writer, shared: &Shared, op: Op, world: &World, kernel_stored: &mut u64) {
    let now = NOW;
    let tell = |followed: Followed<'_>| world.tell(&followed);
    match op {
        Op::Put { number, byte, len, class } => {
            // Busy where a kernel program in the middle of its frame is in the way.
            writer.put(&frame(number, byte, len, class, LIFE_MS), now, tell);
        }
        Op::Remove(number) => {
            writer.remove(&key(number), now, tell);
        }
        Op::Expire(most) => writer.expire(now, most),
        Op::Ahead(slots) => {
            writer.make_ahead([slots; 2], u32::MAX, now);
        }
        Op::Follow => {
            writer.follow(now, usize::MAX, tell);
        }
        Op::Kernel { number, byte, len } => {
            let kernel = Kernel { shared, key: key(number), byte, len, end: End::Done };
            *kernel_stored += u64::from(append(&kernel) == Appended::Stored);
        }
        Op::Reserves { number, len } => {
            append(&Kernel { shared, key: key(number), byte: 9, len, end: End::Reserved });
        }
        Op::Enters { number, len } => {
            start(shared, number, 9, len);
        }
        Op::Outwaits => {
            let waited = world.waited.replace(world.waited.get() + HOLE_PATIENCE_NS);
            writer.follow(now + waited, usize::MAX, tell);
            writer.follow(now + waited + HOLE_PATIENCE_NS, usize::MAX, tell);
        }
    }
}

type Held = BTreeMap<u64, (u8, u32)>;

fn held(shared: &Shared) -> Held {
    known().filter_map(|number| Some((number, shared.read(&key(number))?))).collect()
}

/// Holds the log against itself, once all is followed.
fn check(shared: &Shared, writer: &Writer, context: &str) {
    let state = shared.0.state.borrow();
    let mut starts = HashMap::new();
    for (lane, (first_slot, slots)) in LANES.into_iter().enumerate() {
        let shown = state.shown[lane];
        let (mut at, mut records) = (shown.tail, 0);
        assert_eq!(shown.followed, state.heads[lane], "{context}: all is followed in lane {lane}");
        assert_eq!(state.limits[lane], position::lap_later(shown.tail), "{context}: the limit of lane {lane}");
        while at < shown.followed {
            let slot = first_slot + position::slot(at);
            assert_eq!(state.words[slot as usize], position::version(at), "{context}: the record at {at:#x}");
            let header = state.headers[&slot];
            let its = slots_of(usize::try_from(header.length).expect("small"));
            assert!(its <= SEGMENT_SLOTS - position::slot(at) % SEGMENT_SLOTS, "{context}: straddles");
            if header.flags & record_flag::FILLER == 0 {
                starts.insert(slot, header);
            }
            records += 1;
            at = position::after(at, its, slots);
        }
        assert_eq!(at, shown.followed, "{context}: the last record of lane {lane} ends at the head");
        assert_eq!(records, shown.records, "{context}: records of lane {lane}");
    }
    let (mut tags, mut slots) = (HashSet::new(), HashSet::new());
    for (i, entry) in state.index.iter().enumerate().filter(|(_, entry)| **entry != 0) {
        let slot = index::slot(*entry);
        assert!(starts.contains_key(&slot), "{context}: an entry leads to no record: slot {slot}");
        let header = starts[&slot];
        assert_eq!(index::entry(hash(&header.key), slot), *entry, "{context}: the entry of another key");
        assert_eq!(usize::try_from(number(hash(&header.key))).expect("few"), i / BUCKET_ENTRIES, "{context}: bucket");
        assert!(tags.insert((i / BUCKET_ENTRIES, entry >> 32)), "{context}: two entries with one tag");
        assert!(slots.insert(slot), "{context}: two entries for one record");
    }
    assert_eq!(writer.live(), slots.len() as u64, "{context}: the count of live frames");
    let live: u32 = state.shown.iter().map(|shown| shown.live).sum();
    assert_eq!(u64::from(live), writer.live(), "{context}: the count that is shown");
}

/// True when the bucket of frame `number` has no vacant place.
fn is_full(index: &[u64], number: u64) -> bool {
    let start = usize::try_from(self::number(hash(&key(number)))).expect("few") * BUCKET_ENTRIES;
    index[start..start + BUCKET_ENTRIES].iter().all(|entry| *entry != 0)
}

fn taken_over(shared: &Shared, max_keys: u64) -> (Writer, Adopted) {
    Writer::adopt(shared.clone(), LANES, SEED, max_keys).expect("a log")
}

/// Runs `script` with the writer ending before its store number `kill`; false when it makes fewer.
fn run_killed(script: &[Op], living: &[Held], max_keys: u64, kill: u64, puts_after: u64, may_make_way: bool) -> bool {
    let shared = Shared::over(FULL.0.clone());
    let world = World::default();
    let (mut writer, _) = taken_over(&shared, max_keys);
    let mut stored = 0;
    let (mut before, mut is_killed, mut at) = (held(&shared), false, 0);
    shared.0.left.set(Some(kill));
    for (number, op) in script.iter().enumerate() {
        at = number;
        let result = catch_unwind(AssertUnwindSafe(|| run(&mut writer, &shared, *op, &world, &mut stored)));
        match result {
            Ok(()) => before = held(&shared),
            Err(payload) if payload.is::<Killed>() => {
                is_killed = true;
                break;
            }
            Err(payload) => resume_unwind(payload),
        }
    }
    shared.0.left.set(None);
    if !is_killed {
        return false;
    }
    std::mem::forget(writer);
    let context = format!("killed at store {kill}, in {:?}", script[at]);
    let after = &living[at];
    let told_by_dead = world.told.borrow().len() as u64;

    let (mut writer, _) = taken_over(&shared, max_keys);
    let now = NOW;
    assert!(writer.follow(now, usize::MAX, |followed| world.tell(&followed)), "{context}: all is followed");
    let told = world.told.borrow().len() as u64;
    assert!(
        (stored..=stored + 1).contains(&told),
        "{context}: {told} told of {stored}, {told_by_dead} by the dead one"
    );
    check(&shared, &writer, &context);
    let now_held = held(&shared);
    for number in known() {
        let (was, is, would_be) = (before.get(&number), now_held.get(&number), after.get(&number));
        let is_evicted = max_keys != 0 && writer.live() == max_keys;
        // The frame that makes way for its own successor goes before that is held.
        let is_in_hand = matches!(script[at], Op::Put { number: its, .. } if its == number);
        // So does the oldest of a full bucket, when what the dead writer could not follow for a hole is followed now.
        let is_crowded = is_full(&shared.0.state.borrow().index, number);
        let makes_way = is.is_none() && (is_evicted || (is_in_hand || is_crowded) && may_make_way);
        assert!(
            is == was || is == would_be || makes_way,
            "{context}: frame {number} was {was:?}, is {is:?}, would be {would_be:?}"
        );
    }
    if max_keys != 0 {
        assert!(writer.live() <= max_keys, "{context}");
    }
    writer.take_dropped();
    for number in 0..puts_after {
        let len = if number % 3 == 0 { LONG } else { 8 + usize::try_from(number % 200).expect("small") };
        let byte = 8 + u8::try_from(number / 400).expect("few");
        let put = writer.put(&frame(3_000 + number % 400, byte, len, Class::Tx, LIFE_MS), now, |_| {});
        assert!(matches!(put, Put::Stored | Put::Replaced), "{context}: {put:?}, put {number} after it");
    }
    check(&shared, &writer, &context);
    // The chain holds to its end.
    writer.expire(u64::MAX, usize::MAX);
    check(&shared, &writer, &context);
    let dropped = writer.take_dropped();
    assert_eq!((dropped.stale_entries, dropped.broken_chains, dropped.holes), (0, 0, 0), "{context}");
    assert_eq!((writer.live(), writer.lane_use(now).map(|lane| lane.used_bytes)), (0, [0, 0]), "{context}");
    true
}

/// What is held after the operation `at` of a writer that does not end.
fn if_it_had_lived(script: &[Op], max_keys: u64, at: usize) -> Held {
    let shared = Shared::over(FULL.0.clone());
    let (mut writer, _) = taken_over(&shared, max_keys);
    let (world, mut stored) = (World::default(), 0);
    for op in &script[..=at] {
        run(&mut writer, &shared, *op, &world, &mut stored);
    }
    writer.follow(NOW, usize::MAX, |_| {});
    held(&shared)
}

fn tx(number: u64, byte: u8, len: usize) -> Op {
    Op::Put { number, byte, len, class: Class::Tx }
}

fn every_step(script: &[Op], max_keys: u64) -> u64 {
    let living: Vec<_> = (0..script.len()).map(|at| if_it_had_lived(script, max_keys, at)).collect();
    let mut kill = 0;
    while run_killed(script, &living, max_keys, kill, if kill % 40 == 0 { 1_000 } else { 8 }, false) {
        kill += 1;
    }
    kill
}

/// Puts, a duplicate, replacements, the end of the segment with its filler, and laps.
#[test]
fn in_the_middle_of_a_put() {
    let steps = every_step(
        &[
            tx(3_000, 2, 100),
            tx(3_000, 2, 100),
            tx(3_000, 3, 200),
            Op::Put { number: 2_003, byte: 4, len: 600, class: Class::Block },
            tx(3_001, 2, 60 * SLOT_LEN),
            tx(3_002, 2, 60 * SLOT_LEN),
            tx(3_003, 2, 500),
            tx(3, 5, 3 * SLOT_LEN),
            tx(3_004, 2, LONG),
        ],
        0,
    );
    assert!(steps > 200, "{steps}");
}

/// Frames that the kernel program stores in between, some of them twice; what is removed, expired and made room of.
#[test]
fn in_the_middle_of_a_walk() {
    let kernel = |number, byte, len| Op::Kernel { number, byte, len };
    let steps = every_step(
        &[
            kernel(3_000, 2, 100),
            kernel(3_001, 2, 100),
            Op::Follow,
            kernel(3_002, 2, 300),
            tx(3_003, 2, 100),
            Op::Remove(3_000),
            kernel(3_004, 2, 8),
            Op::Remove(3_003),
            tx(3_003, 3, 60 * SLOT_LEN),
            Op::Expire(7),
            Op::Ahead(2_000),
            kernel(3_005, 2, 60 * SLOT_LEN),
            kernel(3_006, 2, 60 * SLOT_LEN),
            Op::Expire(usize::MAX),
            Op::Follow,
            tx(41, 6, 100),
            Op::Ahead(16_000),
            kernel(42, 6, 100),
            kernel(43, 6, 100),
            tx(43, 7, 100),
            Op::Remove(43),
        ],
        0,
    );
    assert!(steps > 200, "{steps}");
}

/// `cache-max-keys`, from more frames than it allows on.
#[test]
fn with_too_many_keys() {
    let kernel = |number, byte, len| Op::Kernel { number, byte, len };
    every_step(
        &[Op::Follow, tx(3_000, 2, 100), kernel(3_001, 2, 100), kernel(3_002, 2, 100), tx(3_003, 2, 8), Op::Follow],
        280,
    );
}

/// Frames that the kernel program stores while their bucket is full: their entries stand in the overflow bucket until they are
/// followed, and then in the place of the oldest.
#[test]
fn in_the_middle_of_an_overflow() {
    let full: Vec<u64> = { (3_000..3_400).filter(|number| is_full(&FULL.0.index, *number)).take(4).collect() };
    assert_eq!(full.len(), 4, "some buckets are full");
    let shared = Shared::over(FULL.0.clone());
    let kernel = |number, byte, len| Op::Kernel { number, byte, len };
    run(&mut taken_over(&shared, 0).0, &shared, kernel(full[0], 2, 100), &World::default(), &mut 0);
    assert_eq!(shared.read(&key(full[0])), Some((2, 100)), "found before it is followed");
    assert_eq!(shared.0.state.borrow().index[ENTRIES..].iter().filter(|entry| **entry != 0).count(), 1);
    let steps = every_step(
        &[
            kernel(full[0], 2, 100),
            kernel(full[1], 2, 100),
            Op::Follow,
            kernel(full[2], 2, 100),
            Op::Remove(full[2]),
            kernel(full[2], 3, 100),
            tx(full[2], 4, 100),
            kernel(full[3], 2, 100),
            Op::Enters { number: full[3] + 400, len: 500 },
            Op::Ahead(2_000),
            Op::Outwaits,
        ],
        0,
    );
    assert!(steps > 60, "{steps}");
}

/// The frame in hand is held from the store on that commits it.
#[test]
fn a_frame_that_was_committed_is_held() {
    let (mut entered, mut was_held) = (0, false);
    for kill in 0.. {
        let shared = Shared::over(FULL.0.clone());
        let (mut writer, _) = taken_over(&shared, 0);
        shared.0.left.set(Some(kill));
        let put = || writer.put(&frame(3_000, 2, 100, Class::Tx, LIFE_MS), NOW, |_| {});
        let is_killed = catch_unwind(AssertUnwindSafe(put)).is_err();
        shared.0.left.set(None);
        let (mut writer, adopted) = taken_over(&shared, 0);
        assert!(writer.follow(NOW, usize::MAX, |_| {}));
        check(&shared, &writer, "a put");
        let is_held = shared.read(&key(3_000)).is_some();
        assert!(is_held || !was_held && adopted.entered == 0, "killed at store {kill}");
        entered += adopted.entered;
        was_held = is_held;
        if !is_killed {
            break;
        }
    }
    assert_eq!((entered, was_held), (1, true), "between the commit and the entry lies one store");
}

/// Kernel programs that end in the middle, before the daemon does.
#[test]
fn behind_holes_of_the_kernels() {
    let steps = every_step(
        &[
            Op::Reserves { number: 3_000, len: 500 },
            Op::Kernel { number: 3_001, byte: 2, len: 100 },
            Op::Enters { number: 3_002, len: 500 },
            tx(3_003, 2, 100),
            tx(3_003, 3, 100),
            Op::Remove(3_003),
            tx(3_004, 2, 100),
            Op::Follow,
            Op::Outwaits,
            Op::Outwaits,
            tx(3_002, 2, 60 * SLOT_LEN),
            Op::Reserves { number: 3_005, len: 60 * SLOT_LEN },
            tx(3_006, 2, 100),
            Op::Outwaits,
            Op::Ahead(3_000),
        ],
        0,
    );
    assert!(steps > 150, "{steps}");
}

/// A living kernel program commits while the daemon waits, before its patience ends or after.
#[test]
fn a_kernel_program_that_goes_on_meanwhile() {
    let now = NOW;
    for (pause, is_stored) in [(1, true), (14, true), (16, false)] {
        let shared = Shared::over(FULL.0.clone());
        let there = start(&shared, 3_000, 9, 500).expect("there is room");
        assert_eq!(
            append(&Kernel { shared: &shared, key: key(3_001), byte: 10, len: 100, end: End::Done }),
            Appended::Stored
        );
        let finished = Rc::new(Cell::new(None));
        let act = {
            let finished = Rc::clone(&finished);
            move |shared: &Shared| finished.set(Some(finish(shared, there)))
        };
        *shared.0.paused.borrow_mut() = Some((pause, Box::new(act)));
        let (mut writer, adopted) = taken_over(&shared, 0);
        if let Some((_, act)) = shared.0.paused.borrow_mut().take() {
            act(&shared);
        }
        assert_eq!(finished.get(), Some(is_stored), "pause {pause}");
        assert_eq!((adopted.holes, adopted.unfollowed), if is_stored { (0, 2) } else { (1, 1) }, "pause {pause}");
        let mut told = Vec::new();
        assert!(writer.follow(now, usize::MAX, |followed| told.push(followed.key.seq_num())));
        assert_eq!(told, if is_stored { vec![3_000, 3_001] } else { vec![3_001] }, "pause {pause}");
        check(&shared, &writer, "a program that goes on");
        assert_eq!((shared.read(&key(3_000)).is_some(), shared.read(&key(3_001))), (is_stored, Some((10, 100))));
    }
}

/// A program that turns its frame down gives its room back while the daemon waits for it.
#[test]
fn a_kernel_program_that_gives_its_room_back_meanwhile() {
    let shared = Shared::over(FULL.0.clone());
    let before = shared.0.state.borrow().heads[0];
    append(&Kernel { shared: &shared, key: key(3_000), byte: 9, len: 500, end: End::Reserved });
    *shared.0.paused.borrow_mut() = Some((2, Box::new(move |shared| shared.0.state.borrow_mut().heads[0] = before)));
    let (mut writer, adopted) = taken_over(&shared, 0);
    assert_eq!((adopted.holes, adopted.unfollowed), (0, 0));
    assert!(writer.follow(START, usize::MAX, |_| {}));
    check(&shared, &writer, "room that is given back");
}

/// What holds no log is left as it is.
#[test]
fn words_that_contradict_each_other() {
    let changes: [fn(&mut State); 6] = [
        |state| *state = Shared::empty().0.state.take(),
        |state| state.heads = [0; 2],
        |state| state.limits[1] = 0,
        |state| state.shown[0].followed = state.heads[0] + 1,
        |state| state.heads[1] += 1 << 33,
        |state| state.shown[1].tail = position::at(5, LANE),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let shared = Shared::over(FULL.0.clone());
        change(&mut shared.0.state.borrow_mut());
        let made = shared.0.made.get();
        let adopted = Writer::adopt(shared.clone(), LANES, SEED, 0).map(|(_, adopted)| adopted);
        match number {
            // Empty, and a log all the same.
            0 => assert_eq!(adopted.map(|adopted| adopted.frames), Ok(0)),
            2 => assert_eq!(adopted, Err(Unusable::Contradiction { lane: 1 })),
            4 | 5 => assert_eq!(adopted, Err(Unusable::Contradiction { lane: 1 })),
            _ => assert_eq!(adopted, Err(Unusable::Contradiction { lane: 0 })),
        }
        if number != 0 {
            assert_eq!(shared.0.made.get(), made, "change {number}: nothing is written");
        }
    }
}

fn some_op() -> impl Strategy<Value = Op> {
    let number = prop_oneof![3 => 3_000..3_012u64, 1 => 0..50u64];
    let len = prop_oneof![6 => 8..400usize, 2 => Just(60 * SLOT_LEN), 1 => Just(LONG)];
    prop_oneof![
        8 => (number.clone(), 2..6u8, len.clone(), 0..8u8).prop_map(|(number, byte, len, class)| {
            Op::Put { number, byte, len, class: if class == 0 { Class::Block } else { Class::Tx } }
        }),
        6 => (number.clone(), 2..6u8, 8..400usize).prop_map(|(number, byte, len)| Op::Kernel { number, byte, len }),
        2 => number.clone().prop_map(Op::Remove),
        1 => (1..20usize).prop_map(Op::Expire),
        1 => (0..17_000u32).prop_map(Op::Ahead),
        2 => Just(Op::Follow),
        1 => (3_100..3_200u64, len.clone()).prop_map(|(number, len)| Op::Reserves { number, len }),
        1 => (3_100..3_200u64, len).prop_map(|(number, len)| Op::Enters { number, len }),
        1 => Just(Op::Outwaits),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_the_middle_of_anything(
        script in prop::collection::vec(some_op(), 1..25),
        max_keys in prop_oneof![3 => Just(0), 1 => 250..380u64],
        share in 0..1_000u64,
    ) {
        // How many stores there are is not known before: the writer ends somewhere among the first.
        let living: Vec<_> = (0..script.len()).map(|at| if_it_had_lived(&script, max_keys, at)).collect();
        run_killed(&script, &living, max_keys, share * script.len() as u64 / 40, 8, true);
    }
}
