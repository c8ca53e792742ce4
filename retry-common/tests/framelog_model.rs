//! The frame log's protocol under every order of its atomic steps (loom), up to a number of preemptions: kernel writers, the
//! daemon's writer and readers over a lane of a few slots and one bucket of a few entries.
//!
//! The steps are those that run in the kernel program (`framelog::append`) and in the daemon (`framelog::DaemonWriter`); only
//! the memory is a model. Headers are moved in one step here, so what the model proves is the order of the steps; frame
//! bytes and versions are loom's, so that a reader's fences are checked too.
//!
//! Each test has been seen to fail with the step left out that it is about; the step is named beside it.
//!
//! Longer than most files: the memory that stands in for the real one is private to the models that run over it.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, PoisonError};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;
use retry_common::abi::{RecordHeader, record_flag};
use retry_common::checksum;
use retry_common::framelog::{
    Append, Appended, Bucket, DaemonWriter, Followed, HOLE_PATIENCE_NS, IndexCount, Left, Memory, NewFrame, Put,
    Removed, Shown, Word, append, find_either, still_leads,
};
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::position;
use retry_common::wire::frame::Class;

/// Slots of the lane under test; the other lane has one.
const SLOTS: u32 = 4;
/// Entries of the bucket.
const ENTRIES: usize = 3;
const SEED: u64 = 7;
const LIFE_MS: u32 = 1;
const LIFE_NS: u64 = 1_000_000;

fn first() -> u64 {
    position::at(5, 0)
}

fn key(number: u64) -> FrameKey {
    FrameKey::new(0xfeed, number)
}

fn hash(key: &FrameKey) -> u64 {
    index::hash(key, SEED)
}

/// Frames are told apart by their first byte; a frame of key `n` begins with `10 n` or `10 n + 1`.
#[expect(clippy::cast_possible_truncation, reason = "below 64")]
static FRAMES: [[u8; 80]; 64] = {
    let mut frames = [[0; 80]; 64];
    let mut i = 0;
    while i < 64 {
        frames[i] = [i as u8; 80];
        i += 1;
    }
    frames
};
/// One slot.
const SHORT: usize = 8;
/// Two slots.
const LONG: usize = 80;
/// What no reader may ever get: bytes behind a header that is a frame's payload.
const FORGED: u64 = 63;

/// The shared memory.
struct Model {
    heads: [AtomicU64; 2],
    limits: [AtomicU64; 2],
    versions: Vec<AtomicU64>,
    headers: Mutex<Vec<RecordHeader>>,
    shown: Mutex<[Shown; 2]>,
    /// The daemon's patience ends without any other thread having run; not one of loom's words.
    is_impatient: std::sync::atomic::AtomicBool,
    bytes: Vec<AtomicU64>,
    entries: [AtomicU64; ENTRIES],
    overflow: [AtomicU64; ENTRIES],
}

#[derive(Clone)]
struct Shared(Arc<Model>);

impl Shared {
    fn new() -> Self {
        let slots = (SLOTS + 1) as usize;
        Self(Arc::new(Model {
            heads: [first(), first()].map(AtomicU64::new),
            limits: [position::lap_later(first()), position::lap_later(first())].map(AtomicU64::new),
            versions: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            headers: Mutex::new(vec![RecordHeader::default(); slots]),
            shown: Mutex::new([Shown { tail: first(), followed: first(), records: 0, live: 0 }; 2]),
            is_impatient: std::sync::atomic::AtomicBool::new(false),
            bytes: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            entries: [0; ENTRIES].map(AtomicU64::new),
            overflow: [0; ENTRIES].map(AtomicU64::new),
        }))
    }

    fn write_bytes(&self, slot: u32, bytes: &[u8], forged: FrameKey) {
        let slot = slot as usize;
        self.0.bytes[slot].store(u64::from(bytes[0]), Ordering::Relaxed);
        if bytes.len() > SHORT {
            // The payload looks like a record of another key, whole and alive. Its version is of another lap: which lap the log
            // is in no sender knows.
            let version = position::version(position::at(4, u32::try_from(slot).expect("small") + 1));
            let header =
                RecordHeader { version, expires_ns: u64::MAX, key: forged, length: 8, ..RecordHeader::default() };
            self.0.headers.lock().unwrap_or_else(PoisonError::into_inner)[slot + 1] = header;
            self.0.bytes[slot + 1].store(FORGED, Ordering::Relaxed);
            self.0.versions[slot + 1].store(version, Ordering::Relaxed);
        }
    }

    fn header_at(&self, slot: u32) -> RecordHeader {
        self.0.headers.lock().unwrap_or_else(PoisonError::into_inner)[slot as usize]
    }

    /// What a listener that asks for `key` gets: the first byte of the frame.
    fn read(&self, key: &FrameKey) -> Option<u64> {
        let overflow = || Some(Entries(&self.0.overflow));
        let (bucket, i, entry) = find_either(Entries(&self.0.entries), overflow, index::tag(hash(key)))?;
        let slot = index::slot(entry);
        let version = self.0.versions[slot as usize].load(Ordering::Acquire);
        if version == 0 || version & 1 != 0 {
            return None;
        }
        let header = self.header_at(slot);
        fence(Ordering::Acquire);
        if self.0.versions[slot as usize].load(Ordering::Relaxed) != version
            || !still_leads(&bucket, i, entry)
            || header.key != *key
        {
            return None;
        }
        let bytes = self.0.bytes[slot as usize].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (self.0.versions[slot as usize].load(Ordering::Relaxed) == version).then_some(bytes)
    }
}

#[derive(Clone, Copy)]
struct Atomic<'a>(&'a AtomicU64);

impl Word for Atomic<'_> {
    fn load(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.0.store(value, Ordering::Release);
    }

    fn replace(&self, old: u64, new: u64) -> bool {
        let done = self.0.compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire).is_ok();
        // A full barrier in the kernel and in the daemon.
        fence(Ordering::AcqRel);
        done
    }

    fn fence(&self) {
        fence(Ordering::AcqRel);
    }
}

#[derive(Clone, Copy)]
struct Entries<'a>(&'a [AtomicU64; ENTRIES]);

impl<'a> Bucket for Entries<'a> {
    type Word = Atomic<'a>;
    const ENTRIES: usize = ENTRIES;

    fn entry(&self, i: usize) -> Atomic<'a> {
        Atomic(&self.0[i])
    }
}

impl Memory for Shared {
    type Word<'a> = Atomic<'a>;
    type Bucket<'a> = Entries<'a>;

    fn head(&self, lane: usize) -> Atomic<'_> {
        Atomic(&self.0.heads[lane])
    }

    fn limit(&self, lane: usize) -> Atomic<'_> {
        Atomic(&self.0.limits[lane])
    }

    fn show(&self, lane: usize, shown: &Shown) {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)[lane] = *shown;
    }

    fn shown(&self, lane: usize) -> Shown {
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)[lane]
    }

    fn version(&self, slot: u32) -> Atomic<'_> {
        Atomic(&self.0.versions[slot as usize])
    }

    fn header(&self, slot: u32) -> RecordHeader {
        self.header_at(slot)
    }

    fn set_header(&self, slot: u32, header: &RecordHeader) {
        self.0.headers.lock().unwrap_or_else(PoisonError::into_inner)[slot as usize] = *header;
    }

    fn set_flags(&self, slot: u32, flags: u8) {
        self.0.headers.lock().unwrap_or_else(PoisonError::into_inner)[slot as usize].flags = flags;
    }

    fn write_frame(&self, slot: u32, bytes: &[u8]) {
        self.write_bytes(slot, bytes, key(1));
    }

    fn frame(&self, slot: u32, len: usize) -> &[u8] {
        let number = self.0.bytes[slot as usize].load(Ordering::Relaxed);
        &FRAMES[usize::try_from(number).expect("small")][..len]
    }

    fn bucket(&self, _: u64) -> Entries<'_> {
        Entries(&self.0.entries)
    }

    fn overflow(&self, _: u64) -> Entries<'_> {
        Entries(&self.0.overflow)
    }

    fn bucket_number(&self, _: u64) -> u32 {
        0
    }

    fn clear_entries(&self, is_void: &mut dyn FnMut(u64) -> bool) {
        for word in self.0.entries.iter().chain(&self.0.overflow) {
            let entry = word.load(Ordering::Acquire);
            if entry != 0 && is_void(entry) {
                let _ = word.compare_exchange(entry, 0, Ordering::AcqRel, Ordering::Acquire);
            }
        }
    }

    fn each_bucket(&self, look: &(dyn Fn(&Self, u64) -> IndexCount + Sync)) -> IndexCount {
        look(self, 0)
    }

    fn fetch(&self, _: u32) {}

    fn pause(&self, attempt: u32) -> bool {
        if self.0.is_impatient.load(SeqCst) {
            return false;
        }
        thread::yield_now();
        attempt < 1
    }
}

/// A kernel program with one frame.
struct Kernel<'a> {
    shared: &'a Shared,
    key: FrameKey,
    byte: u8,
    len: usize,
    /// False: the checksum turns out to be wrong.
    right: bool,
    /// The program ends, as no program does, after it has reserved its room.
    dies: bool,
    /// Told when the record is begun.
    begun: Option<&'a AtomicBool>,
    /// Looked at before the header is written, which is no step of loom's: what stores it comes before that or after.
    passed: Option<&'a AtomicBool>,
}

impl<'a> Kernel<'a> {
    fn new(shared: &'a Shared, number: u64, byte: u8) -> Self {
        Self { shared, key: key(number), byte, len: SHORT, right: true, dies: false, begun: None, passed: None }
    }
}

impl<'a> Append for Kernel<'a> {
    type Word = Atomic<'a>;
    type Bucket = Entries<'a>;

    fn length(&self) -> u32 {
        u32::try_from(self.len).expect("small")
    }

    fn hash(&self) -> u64 {
        hash(&self.key)
    }

    fn bucket(&self) -> Option<Entries<'a>> {
        Some(Entries(&self.shared.0.entries))
    }

    fn overflow(&self) -> Option<Entries<'a>> {
        Some(Entries(&self.shared.0.overflow))
    }

    fn head(&self) -> Option<Atomic<'a>> {
        Some(Atomic(&self.shared.0.heads[0]))
    }

    fn limit(&self) -> Option<Atomic<'a>> {
        Some(Atomic(&self.shared.0.limits[0]))
    }

    fn lane(&self) -> Option<(u32, u32)> {
        Some((0, SLOTS))
    }

    fn version(&self, slot: u32) -> Option<Atomic<'a>> {
        (!self.dies).then(|| Atomic(&self.shared.0.versions[slot as usize]))
    }

    fn fill_in(&self, slot: u32, version: u64) -> bool {
        if let Some(begun) = self.begun {
            begun.store(true, Ordering::Release);
        }
        if let Some(passed) = self.passed {
            passed.load(Ordering::Acquire);
        }
        let bytes = &FRAMES[usize::from(self.byte)][..self.len];
        self.shared.write_bytes(slot, bytes, key(1));
        let header = RecordHeader {
            version,
            expires_ns: LIFE_NS,
            key: self.key,
            length: self.length(),
            life_ms: LIFE_MS,
            partial: checksum::partial(bytes),
            flags: record_flag::KERNEL,
            ..RecordHeader::default()
        };
        if self.right {
            self.shared.set_header(slot, &header);
        }
        self.right
    }

    fn write_filler(&self, slot: u32, position: u64, version: u64, length: u32) {
        let flags = record_flag::FILLER;
        self.shared.set_header(slot, &RecordHeader { version, length, flags, ..RecordHeader::default() });
        let word = &self.shared.0.versions[slot as usize];
        let _ = word.compare_exchange(version, position::version(position), Ordering::AcqRel, Ordering::Acquire);
    }
}

type Writer = DaemonWriter<Shared>;

fn writer(shared: &Shared, max_keys: u64) -> Writer {
    DaemonWriter::new(shared.clone(), [(0, SLOTS), (SLOTS, 1)], first(), SEED, max_keys)
}

fn frame(number: u64, byte: u8, len: usize) -> NewFrame<'static> {
    let bytes = &FRAMES[usize::from(byte)][..len];
    NewFrame { key: key(number), class: Class::Tx, group: 0, life_ms: LIFE_MS, daemon_only: false, bytes }
}

/// How many frames the daemon was told of as new.
#[derive(Default)]
struct Told {
    new: u64,
    again: u64,
}

impl Told {
    fn take(&mut self, followed: Followed<'_>) {
        assert!(u64::from(followed.bytes[0]) / 10 == followed.key.seq_num(), "bytes of another frame");
        if followed.is_new {
            self.new += 1;
        } else {
            self.again += 1;
        }
    }
}

/// Once no writer is at work: follows to the end, and holds the log against what it should be.
fn check(shared: &Shared, writer: &mut Writer, now_ns: u64, told: &mut Told) {
    assert!(writer.follow(now_ns, usize::MAX, |followed| told.take(followed)), "all is followed");
    let (mut tags, mut slots, mut live) = (Vec::new(), Vec::new(), 0);
    for word in &shared.0.entries {
        let entry = word.load(SeqCst);
        if entry == 0 {
            continue;
        }
        live += 1;
        let slot = index::slot(entry);
        let version = shared.0.versions[slot as usize].load(SeqCst);
        let header = shared.header_at(slot);
        assert!(version != 0 && version & 1 == 0, "the entry of a record that is not whole");
        let position = version / 2 - 1;
        assert_eq!(position::slot(position), slot, "the entry of a record that stands elsewhere");
        assert!(position < shared.0.heads[0].load(SeqCst), "the entry of a record beyond the head");
        assert!(position::lap_later(position) >= shared.0.limits[0].load(SeqCst), "the entry of a dropped record");
        assert_eq!(header.flags & record_flag::FILLER, 0, "the entry of a filler");
        assert_eq!(index::entry(hash(&header.key), slot), entry, "the entry of another key");
        assert_eq!(shared.0.bytes[slot as usize].load(SeqCst) / 10, header.key.seq_num(), "other bytes");
        tags.push(entry >> 32);
        slots.push(slot);
    }
    for mut numbers in [tags, slots.iter().map(|slot| u64::from(*slot)).collect()] {
        numbers.sort_unstable();
        let before = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), before, "two entries for one tag or slot");
    }
    let left = shared.0.overflow.iter().filter(|word| word.load(SeqCst) != 0).count();
    assert_eq!(left, 0, "entries of followed records in the overflow bucket");
    assert_eq!(writer.live(), live, "the count of live frames");
    let dropped = writer.take_dropped();
    assert_eq!((dropped.stale_entries, dropped.broken_chains), (0, 0), "nothing had to be mended");
}

fn model(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(test);
}

/// Two paths deliver one frame to two CPUs and to the daemon's socket at once. The step: the kernel enters before it
/// commits (the other way round the daemon enters a record that the kernel enters too).
#[test]
fn one_frame_at_two_cpus_and_the_daemon() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        let kernels: Vec<_> = (0..2)
            .map(|_| {
                let shared = shared.clone();
                thread::spawn(move || append(&Kernel::new(&shared, 1, 10)))
            })
            .collect();
        let mut told = Told::default();
        let put = writer.put(&frame(1, 10, SHORT), 0, |followed| told.take(followed));
        let appended: Vec<_> = kernels.into_iter().map(|kernel| kernel.join().expect("no panic")).collect();
        check(&shared, &mut writer, 0, &mut told);
        let by_kernel = appended.iter().filter(|appended| **appended == Appended::Stored).count() as u64;
        assert_eq!(told.new + told.again, by_kernel, "each record of the kernel's is followed once");
        assert_eq!(writer.live(), 1);
        assert_eq!(told.new + u64::from(put == Put::Stored), 1, "{put:?}: the frame is new once");
        assert_eq!(shared.read(&key(1)), Some(10));
    });
}

/// A publisher restarts: the daemon replaces the frame while two CPUs store it again. The step: `insert` takes every entry
/// with the tag.
#[test]
fn a_replaced_frame_that_the_kernel_stores_too() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        let mut told = Told::default();
        assert_eq!(writer.put(&frame(1, 10, SHORT), 0, |_| {}), Put::Stored);
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 1, 11)))
        };
        // The daemon forgets the frame, and another path brings it again.
        let removed = writer.remove(&key(1), 0, |followed| told.take(followed));
        assert_ne!(removed, Removed::NotThere);
        let put = writer.put(&frame(1, 11, SHORT), 0, |followed| told.take(followed));
        kernel.join().expect("no panic");
        check(&shared, &mut writer, 0, &mut told);
        if put != Put::Busy {
            assert_eq!(writer.live(), 1);
            assert_eq!(shared.read(&key(1)), Some(11));
        }
    });
}

/// The lane is full: the daemon drops for its own frame and for the kernel's, and both go on over the dropped records while
/// a reader reads one of them. The steps: the entry goes before the version, and both before the limit.
#[test]
fn a_lap_under_a_reader() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        for number in 1..=3 {
            let byte = u8::try_from(number * 10).expect("small");
            assert_eq!(writer.put(&frame(number, byte, SHORT), 0, |_| {}), Put::Stored);
        }
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || shared.read(&key(1)))
        };
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 4, 40)))
        };
        let mut told = Told::default();
        // Frame 1 is dropped, and after it what the kernel could not have had otherwise.
        let put = writer.put(&frame(5, 50, LONG), 0, |followed| told.take(followed));
        assert!(matches!(reader.join().expect("no panic"), None | Some(10)));
        kernel.join().expect("no panic");
        check(&shared, &mut writer, 0, &mut told);
        if put != Put::Busy {
            assert_eq!(shared.read(&key(5)), Some(50));
        }
    });
}

/// A reader has found an entry, then its record is dropped, and a later frame whose payload looks like a record of the same key is
/// written there. The step: `still_leads`.
#[test]
fn a_payload_that_looks_like_a_record_is_not_believed() {
    model(3, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        // Slot 0: frame 2. Slot 1: frame 1, which the reader asks for. Then the lane's end.
        for (number, byte, len) in [(2, 20, SHORT), (1, 10, SHORT), (3, 30, LONG)] {
            assert_eq!(writer.put(&frame(number, byte, len), 0, |_| {}), Put::Stored);
        }
        let reader = {
            let shared = shared.clone();
            thread::spawn(move || shared.read(&key(1)))
        };
        // Two slots from slot 0 on: slot 1 is payload now.
        assert_eq!(writer.put(&frame(4, 40, LONG), 0, |_| {}), Put::Stored);
        assert!(matches!(reader.join().expect("no panic"), None | Some(10)));
        check(&shared, &mut writer, 0, &mut Told::default());
        assert_eq!(shared.read(&key(1)), None);
    });
}

/// The kernel finds room only where the daemon expires; both lives end.
#[test]
fn expiry_beside_two_cpus() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        for number in 1..=3 {
            let byte = u8::try_from(number * 10).expect("small");
            assert_eq!(writer.put(&frame(number, byte, SHORT), 0, |_| {}), Put::Stored);
        }
        let kernels = [(1, 11), (4, 40)].map(|(number, byte)| {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, number, byte)))
        });
        let mut told = Told::default();
        writer.expire(LIFE_NS, 2);
        writer.follow(LIFE_NS, usize::MAX, |followed| told.take(followed));
        for kernel in kernels {
            kernel.join().expect("no panic");
        }
        check(&shared, &mut writer, LIFE_NS, &mut told);
        writer.expire(LIFE_NS, 10);
        assert_eq!(writer.live(), 0);
        check(&shared, &mut writer, LIFE_NS, &mut told);
    });
}

/// A frame turns out to be wrong: its room is given back, or becomes a filler where the other CPU is behind it already.
#[test]
fn wrong_frames_give_their_room_back() {
    model(3, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        let wrong = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel { right: false, ..Kernel::new(&shared, 1, 10) }))
        };
        let right = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 2, 20)))
        };
        let mut told = Told::default();
        writer.follow(0, usize::MAX, |followed| told.take(followed));
        assert_eq!(wrong.join().expect("no panic"), Appended::Wrong);
        assert_eq!(right.join().expect("no panic"), Appended::Stored);
        check(&shared, &mut writer, 0, &mut told);
        assert_eq!((told.new, told.again, shared.read(&key(1)), shared.read(&key(2))), (1, 0, None, Some(20)));
    });
}

/// The kernel looks for a vacant place; the daemon fills and frees places before that one and stores the same frame there,
/// twice; then the kernel enters. The steps: `count_in` resolves what was entered twice, `insert` takes every entry with the tag.
#[test]
fn one_frame_at_two_places_of_its_bucket() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 1, 10)))
        };
        let mut told = Told::default();
        assert_eq!(writer.put(&frame(2, 20, SHORT), 0, |followed| told.take(followed)), Put::Stored);
        let first = writer.put(&frame(1, 10, SHORT), 0, |followed| told.take(followed));
        assert_eq!(writer.remove(&key(2), 0, |followed| told.take(followed)), Removed::Yes);
        let second = writer.put(&frame(1, 11, SHORT), 0, |followed| told.take(followed));
        kernel.join().expect("no panic");
        check(&shared, &mut writer, 0, &mut told);
        if first != Put::Busy && second != Put::Busy {
            assert_eq!((writer.live(), shared.read(&key(1))), (1, Some(11)));
        }
    });
}

/// The bucket is full: what the kernel stores is found by way of the overflow bucket, and once it is followed in the place of the
/// oldest entry. The steps: `leave_overflow`, and `find_either` looks in both buckets.
#[test]
fn a_full_bucket() {
    model(3, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        for number in 1..=3 {
            let byte = u8::try_from(number * 10).expect("small");
            assert_eq!(writer.put(&frame(number, byte, SHORT), 0, |_| {}), Put::Stored);
        }
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || {
                let appended = append(&Kernel::new(&shared, 4, 40));
                // The daemon follows meanwhile: it is not looked at what is found in the step between the two buckets.
                (appended, shared.read(&key(1)))
            })
        };
        let mut told = Told::default();
        writer.follow(0, usize::MAX, |followed| told.take(followed));
        let (appended, oldest) = kernel.join().expect("no panic");
        assert_eq!(appended, Appended::Stored);
        assert!(matches!(oldest, None | Some(10)), "{oldest:?}");
        assert_eq!(shared.read(&key(4)), Some(40));
        check(&shared, &mut writer, 0, &mut told);
        assert_eq!((told.new, writer.live()), (1, 3));
        assert_eq!([1, 2, 3, 4].map(|number| shared.read(&key(number))), [None, Some(20), Some(30), Some(40)]);
    });
}

/// The bucket is full, and the daemon makes a place in it for the same frame while the kernel enters it in the overflow bucket.
/// The step: an entry of the overflow bucket is not counted.
#[test]
fn a_full_bucket_and_the_daemon_has_the_frame_too() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        for number in 1..=3 {
            let byte = u8::try_from(number * 10).expect("small");
            assert_eq!(writer.put(&frame(number, byte, SHORT), 0, |_| {}), Put::Stored);
        }
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 4, 40)))
        };
        let mut told = Told::default();
        let removed = writer.remove(&key(2), 0, |followed| told.take(followed));
        let put = writer.put(&frame(4, 40, SHORT), 0, |followed| told.take(followed));
        let appended = kernel.join().expect("no panic");
        check(&shared, &mut writer, 0, &mut told);
        assert_ne!(removed, Removed::Busy);
        let is_new = told.new + u64::from(put == Put::Stored);
        assert_eq!(is_new, 1, "{put:?} {appended:?}: the frame is new once");
        assert_eq!(shared.read(&key(4)), Some(40));
    });
}

/// A CPU is stopped for longer than the daemon's patience, and goes on after its position has been given up. The step: the
/// commit is a compare-exchange, and one that fails withdraws its entry.
#[test]
fn a_cpu_that_comes_too_late() {
    static TOO_LATE: AtomicU32 = AtomicU32::new(0);
    model(3, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        let begun = Arc::new(AtomicBool::new(false));
        let late = {
            let (shared, begun) = (shared.clone(), Arc::clone(&begun));
            thread::spawn(move || append(&Kernel { begun: Some(&begun), ..Kernel::new(&shared, 1, 10) }))
        };
        let mut told = Told::default();
        // A program that has reserved and not begun makes its version odd after the daemon has given it up, and commits: it
        // would have to be stopped for half a second between two instructions. The order after that is what is proved.
        while !begun.load(Ordering::Acquire) {
            thread::yield_now();
        }
        writer.follow(0, usize::MAX, |followed| told.take(followed));
        writer.follow(HOLE_PATIENCE_NS, usize::MAX, |followed| told.take(followed));
        let appended = late.join().expect("no panic");
        let holes = writer.take_dropped().holes;
        match appended {
            Appended::Stored => assert_eq!((holes, shared.read(&key(1))), (0, Some(10))),
            Appended::TooLate => {
                TOO_LATE.fetch_add(1, SeqCst);
                assert_eq!((holes, shared.read(&key(1)), told.new), (1, None, 0));
            }
            Appended::Left(_) | Appended::Wrong => panic!("{appended:?}"),
        }
        check(&shared, &mut writer, HOLE_PATIENCE_NS, &mut told);
        for number in 2..=6 {
            let byte = u8::try_from(number * 10).expect("small");
            assert_eq!(writer.put(&frame(number, byte, SHORT), HOLE_PATIENCE_NS, |_| {}), Put::Stored);
        }
        check(&shared, &mut writer, HOLE_PATIENCE_NS, &mut told);
    });
    assert_ne!(TOO_LATE.load(SeqCst), 0, "no order was tried in which the CPU is late");
}

/// A writer that ends after it has reserved leaves a hole; frames before and behind it are found.
#[test]
fn a_hole_is_given_up() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 0);
        assert_eq!(
            append(&Kernel { dies: true, len: LONG, ..Kernel::new(&shared, 1, 10) }),
            Appended::Left(Left::NoRoom)
        );
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 2, 20)))
        };
        let mut told = Told::default();
        assert!(!writer.follow(0, usize::MAX, |followed| told.take(followed)));
        assert_eq!(kernel.join().expect("no panic"), Appended::Stored);
        assert!(!writer.follow(HOLE_PATIENCE_NS - 1, usize::MAX, |followed| told.take(followed)));
        check(&shared, &mut writer, HOLE_PATIENCE_NS, &mut told);
        assert_eq!((told.new, shared.read(&key(2))), (1, Some(20)));
        // The lane goes round over it.
        for number in 3..=6 {
            let byte = u8::try_from(number * 10).expect("small");
            assert_eq!(writer.put(&frame(number, byte, SHORT), HOLE_PATIENCE_NS, |_| {}), Put::Stored);
        }
        check(&shared, &mut writer, HOLE_PATIENCE_NS, &mut told);
    });
}

/// `cache-max-keys` 1: one frame is left, whichever writer stores the last one.
#[test]
fn one_key_at_most() {
    model(2, || {
        let shared = Shared::new();
        let mut writer = writer(&shared, 1);
        let kernel = {
            let shared = shared.clone();
            thread::spawn(move || append(&Kernel::new(&shared, 1, 10)))
        };
        let mut told = Told::default();
        writer.put(&frame(2, 20, SHORT), 0, |followed| told.take(followed));
        kernel.join().expect("no panic");
        check(&shared, &mut writer, 0, &mut told);
        assert_eq!(writer.live(), 1);
    });
}

/// The daemon ended after it had made its version odd, and the next one takes the log over while a kernel program stores a
/// frame behind that. The steps: a hole is given up by compare-exchange, and what is followed of it is not what a late writer
/// has written over it.
#[test]
fn taken_over_beside_a_kernel_writer() {
    static STORED: AtomicU32 = AtomicU32::new(0);
    static TOO_LATE: AtomicU32 = AtomicU32::new(0);
    model(3, || {
        let shared = Shared::new();
        let mut dead = writer(&shared, 0);
        assert_eq!(dead.put(&frame(3, 30, SHORT), 0, |_| {}), Put::Stored);
        drop(dead);
        let position = position::at(5, 1);
        assert_eq!(shared.0.heads[0].load(Ordering::Relaxed), position);
        shared.0.heads[0].store(position + 1, Ordering::Relaxed);
        shared.0.versions[1].store(position::version(position) | 1, Ordering::Relaxed);
        let (begun, passed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let kernel = {
            let (shared, begun, passed) = (shared.clone(), Arc::clone(&begun), Arc::clone(&passed));
            thread::spawn(move || {
                append(&Kernel { begun: Some(&begun), passed: Some(&passed), ..Kernel::new(&shared, 1, 10) })
            })
        };
        // As in `a_cpu_that_comes_too_late`: not between the exchange of the head and the next instruction.
        while !begun.load(Ordering::Acquire) {
            thread::yield_now();
        }
        shared.0.is_impatient.store(true, SeqCst);
        let (mut writer, adopted) = Writer::adopt(shared.clone(), [(0, SLOTS), (SLOTS, 1)], SEED, 0).expect("a log");
        passed.store(true, Ordering::Release);
        shared.0.is_impatient.store(false, SeqCst);
        let mut told = Told::default();
        assert_eq!(writer.put(&frame(2, 20, SHORT), 0, |followed| told.take(followed)), Put::Stored);
        let appended = kernel.join().expect("no panic");
        check(&shared, &mut writer, 0, &mut told);
        let is_late = appended == Appended::TooLate;
        assert_eq!(adopted.holes, 1 + u64::from(is_late), "{appended:?}");
        assert_eq!(told.new, u64::from(!is_late), "{appended:?}");
        let read = [1, 2, 3].map(|number| shared.read(&key(number)));
        assert_eq!(read, [(!is_late).then_some(10), Some(20), Some(30)]);
        if is_late { &TOO_LATE } else { &STORED }.fetch_add(1, SeqCst);
    });
    assert_ne!(STORED.load(SeqCst), 0, "no order was tried in which the CPU is in time");
    assert_ne!(TOO_LATE.load(SeqCst), 0, "no order was tried in which the CPU is late");
}
