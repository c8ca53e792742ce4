//! Logs as the writer makes them, broken in one place: each kind of damage has its name, and what passes is none.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use retry_common::abi::{Bucket, Lane, RecordHeader, SLOT_LEN, record_flag};
use retry_common::index::{self, BUCKET_ENTRIES};
use retry_common::key::FrameKey;
use retry_common::position;
use retry_common::wire::frame::Class;

use super::{Kind, LogView, Report, command, directories};
use crate::datapath::pinned::Words;
use crate::framelog::{self, Memory, NewFrame, Pages, Sizes, Writer};

const SEED: u64 = 0x5eed_0000_0000_5eed;
const NOW: u64 = 1_000_000_000_000;
const FRAMES: u64 = 200;

/// Pages of a log in plain memory.
struct Plain<'a>(&'a Memory, usize);

impl Words for Plain<'_> {
    fn len(&self) -> usize {
        self.1
    }

    fn word(&self, offset: usize) -> u64 {
        self.0.word(offset).load(Ordering::Acquire)
    }

    fn copy(&self, offset: usize, out: &mut [u8]) {
        for (at, byte) in out.iter_mut().enumerate() {
            *byte = self.0.read(offset + at);
        }
    }
}

/// A log with [`FRAMES`] frames in each lane.
struct Scene {
    pages: Arc<Pages>,
    writer: Writer,
}

impl Scene {
    fn new() -> Self {
        let pages = Arc::new(Pages::plain(Sizes::new(1, 1)).expect("memory"));
        let (writer, _) = framelog::open(Arc::clone(&pages), SEED, 0);
        let mut scene = Self { pages, writer };
        for seq_num in 1..=FRAMES {
            scene.put(FrameKey::new(1, seq_num), Class::Tx, 1);
            scene.put(FrameKey::new(2, seq_num), Class::Block, 2);
        }
        scene
    }

    fn put(&mut self, key: FrameKey, class: Class, salt: u8) {
        let length = 140 + usize::try_from(key.seq_num() * 7 % 900).expect("small");
        let bytes: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0] ^ salt).collect();
        let frame = NewFrame { key, class, group: 0, life_ms: 60_000, daemon_only: false, bytes: &bytes };
        self.writer.put(&frame, NOW, |_| ());
    }

    fn check(&self) -> Report {
        let sizes = self.pages.sizes;
        let ring = Plain(&self.pages.ring, sizes.ring_len());
        let index = Plain(&self.pages.index, sizes.index_len());
        let lanes = Plain(&self.pages.lanes, sizes.lanes_len());
        let view = LogView { ring: &ring, index: &index, lanes: &lanes, hash_seed: SEED, buckets: sizes.buckets };
        view.check(true)
    }

    fn hash(key: FrameKey) -> u64 {
        index::hash(&key, SEED)
    }

    /// Where in the index the entry of a key stands.
    fn entry_at(&self, key: FrameKey) -> usize {
        let hash = Self::hash(key);
        let bucket = index::bucket(hash, self.pages.sizes.buckets - 1) as usize * size_of::<Bucket>();
        let has_tag = |at: &usize| index::has_tag(self.pages.index.word(*at).load(Ordering::Relaxed), index::tag(hash));
        (0..BUCKET_ENTRIES).map(|i| bucket + i * 8).find(has_tag).expect("an entry")
    }

    fn slot_of(&self, key: FrameKey) -> u32 {
        index::slot(self.pages.index.word(self.entry_at(key)).load(Ordering::Relaxed))
    }

    /// An empty entry in the bucket of a key.
    fn empty_beside(&self, key: FrameKey) -> usize {
        let bucket = self.entry_at(key) / size_of::<Bucket>() * size_of::<Bucket>();
        let is_empty = |at: &usize| self.pages.index.word(*at).load(Ordering::Relaxed) == 0;
        (0..BUCKET_ENTRIES).map(|i| bucket + i * 8).find(is_empty).expect("an empty entry")
    }

    fn set_index(&self, at: usize, entry: u64) {
        self.pages.index.word(at).store(entry, Ordering::Release);
    }

    fn version(&self, slot: u32) -> &std::sync::atomic::AtomicU64 {
        self.pages.ring.word(slot as usize * SLOT_LEN)
    }

    fn lane_word(&self, field: usize) -> &std::sync::atomic::AtomicU64 {
        self.pages.lanes.word(field)
    }
}

fn key(seq_num: u64) -> FrameKey {
    FrameKey::new(1, seq_num)
}

fn kinds(report: &Report) -> Vec<(Kind, u64)> {
    report.findings.iter().map(|(kind, count)| (*kind, *count)).collect()
}

/// A daemon ends in the middle of a frame, and while it drops others: it is the next daemon that the check finds right.
#[test]
fn a_log_that_was_taken_over_has_no_findings() {
    let Scene { pages, writer } = Scene::new();
    drop(writer);
    let lane: Lane = pages.lanes.read(0);
    pages.lanes.word(offset_of!(Lane, head)).store(position::after(lane.head, 3, lane.slots), Ordering::SeqCst);
    let version = |slot: u32| pages.ring.word(slot as usize * SLOT_LEN);
    version(position::slot(lane.head)).store(position::version(lane.head) | 1, Ordering::SeqCst);
    // The oldest record's entry is gone, and its version; the limit is not moved.
    let oldest: RecordHeader = pages.ring.read(position::slot(lane.tail) as usize * SLOT_LEN);
    let bucket = index::bucket(Scene::hash(oldest.key), pages.sizes.buckets - 1) as usize * size_of::<Bucket>();
    let entry = index::entry(Scene::hash(oldest.key), position::slot(lane.tail));
    let words = (0..BUCKET_ENTRIES).map(|i| pages.index.word(bucket + i * 8));
    words.filter(|word| word.load(Ordering::SeqCst) == entry).for_each(|word| word.store(0, Ordering::SeqCst));
    version(position::slot(lane.tail)).store(0, Ordering::SeqCst);

    let (mut writer, _, adopted) = framelog::adopt(Arc::clone(&pages), SEED, 0).expect("a log");
    assert_eq!((adopted.frames, adopted.holes, adopted.dropped), (2 * FRAMES - 1, 1, 1));
    assert!(writer.follow(NOW, usize::MAX, |followed| panic!("no kernel wrote {followed:?}")));
    let mut scene = Scene { pages, writer };
    let report = scene.check();
    assert!(report.is_clean(), "{report}");
    scene.put(FrameKey::new(3, 1), Class::Tx, 1);
    let report = scene.check();
    assert!(report.is_clean(), "{report}");
}

#[test]
fn a_log_that_is_right_has_no_findings() {
    let mut scene = Scene::new();
    // Replaced, and laps over many segments' worth.
    scene.put(key(3), Class::Tx, 9);
    let report = scene.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.entries, 2 * FRAMES);
    assert!(report.live_compared);
    assert_eq!(report.lanes.map(|lane| lane.frames), [FRAMES; 2]);
    assert_eq!(report.lanes.map(|lane| lane.records), [FRAMES + 1, FRAMES]);
    assert!(report.lanes.iter().all(|lane| lane.records_compared && lane.sums == lane.records));
    for seq_num in 1_000..60_000 {
        scene.put(key(seq_num), Class::Tx, 1);
    }
    let report = scene.check();
    assert!(report.is_clean(), "{report}");
    assert!(report.lanes[0].fillers > 0, "{report}");
    assert_eq!(report.entries, scene.writer.live());
}

#[test]
fn each_kind_of_damage_has_its_name() {
    type Damage = fn(&Scene);
    type Case = (&'static str, Damage, &'static [(Kind, u64)]);
    let cases: [Case; 13] = [
        // The second copy of an entry, whose record goes: what issue reports call stale.
        (
            "an entry outlives its record",
            |scene| {
                let tail = scene.slot_of(key(1));
                scene.version(tail).store(0, Ordering::Release);
                scene.lane_word(offset_of!(Lane, tail)).store(
                    scene.lane_word(offset_of!(Lane, tail)).load(Ordering::Relaxed)
                        + u64::from(scene.slot_of(key(2)) - tail),
                    Ordering::Release,
                );
                scene.lane_word(offset_of!(Lane, records)).fetch_sub(1, Ordering::Release);
            },
            &[(Kind::Dropped, 1)],
        ),
        (
            "one key has two entries",
            |scene| {
                let entry = scene.pages.index.word(scene.entry_at(key(5))).load(Ordering::Relaxed);
                scene.set_index(scene.empty_beside(key(5)), entry);
            },
            &[(Kind::DoubledSlot, 1), (Kind::DoubledTag, 1), (Kind::Live, 1)],
        ),
        (
            "an entry leads outside the ring",
            |scene| scene.set_index(scene.empty_beside(key(5)), index::entry(Scene::hash(key(999)), u32::MAX)),
            &[(Kind::Outside, 1), (Kind::Live, 1)],
        ),
        (
            "an entry leads to room that was never written",
            |scene| scene.set_index(scene.empty_beside(key(5)), index::entry(Scene::hash(key(999)), 200_000)),
            &[(Kind::Dropped, 1), (Kind::Live, 1)],
        ),
        (
            "an entry leads to bytes that look like another slot's record",
            |scene| {
                let (from, to) = (scene.slot_of(key(5)), scene.slot_of(key(6)) + 1);
                let header: RecordHeader = scene.pages.ring.read(from as usize * SLOT_LEN);
                scene.pages.ring.write(to as usize * SLOT_LEN, header);
                scene.set_index(scene.empty_beside(key(5)), index::entry(Scene::hash(key(5)), to));
            },
            &[(Kind::Outside, 1), (Kind::DoubledTag, 1), (Kind::Live, 1), (Kind::Torn, 1)],
        ),
        (
            "an entry leads into a record, to bytes that look like a header of their own",
            |scene| {
                let lane_place = scene.lane_word(offset_of!(Lane, tail)).load(Ordering::Relaxed);
                let inside = scene.slot_of(key(6)) + 1;
                let version = position::version(position::at(u32::try_from(lane_place >> 32).expect("a lap"), inside));
                let header = RecordHeader { version, key: key(999), length: 100, ..RecordHeader::default() };
                scene.pages.ring.write(inside as usize * SLOT_LEN, header);
                scene.set_index(scene.empty_beside(key(5)), index::entry(Scene::hash(key(999)), inside));
            },
            &[(Kind::OffChain, 1), (Kind::Live, 1), (Kind::Torn, 1)],
        ),
        (
            "an entry stands in another bucket",
            |scene| {
                let at = scene.entry_at(key(5));
                let entry = scene.pages.index.word(at).load(Ordering::Relaxed);
                scene.set_index(at, 0);
                scene.set_index(scene.empty_beside(key(6)), entry);
            },
            &[(Kind::Misplaced, 1)],
        ),
        (
            "an entry has another tag",
            |scene| {
                let at = scene.entry_at(key(5));
                scene.set_index(at, scene.pages.index.word(at).load(Ordering::Relaxed) ^ 1 << 40);
            },
            &[(Kind::Misplaced, 1)],
        ),
        (
            "a byte of a record changed",
            |scene| {
                let at = scene.slot_of(key(5)) as usize * SLOT_LEN + size_of::<RecordHeader>() + 16;
                scene.pages.ring.word(at).fetch_xor(0x100, Ordering::Relaxed);
            },
            &[(Kind::Torn, 1)],
        ),
        (
            "the count of records is another",
            |scene| {
                scene.lane_word(offset_of!(Lane, records)).fetch_add(1, Ordering::Relaxed);
            },
            &[(Kind::Records, 1)],
        ),
        (
            "the count of entries is another",
            |scene| {
                scene.lane_word(offset_of!(Lane, records)).fetch_add(1 << 32, Ordering::Relaxed);
            },
            &[(Kind::Live, 1)],
        ),
        (
            "a length that leads nowhere",
            |scene| {
                let at = scene.slot_of(key(FRAMES)) as usize * SLOT_LEN + offset_of!(RecordHeader, length);
                scene.pages.ring.write(at, 3_000_000_000u32);
            },
            &[(Kind::Straddling, 2)],
        ),
        (
            "the daemon has followed further than there is",
            |scene| {
                let followed = scene.lane_word(offset_of!(Lane, followed));
                followed.store(followed.load(Ordering::Relaxed) + 64, Ordering::Relaxed);
            },
            &[(Kind::LaneWords, 1)],
        ),
    ];
    for (name, damage, wanted) in cases {
        let scene = Scene::new();
        damage(&scene);
        let report = scene.check();
        assert_eq!(kinds(&report), wanted, "{name}: {report}");
        assert_eq!(u64::try_from(report.examples.len()), Ok(report.findings.values().sum()), "{name}");
    }
}

/// Writes the first half of a frame as the kernel does: the place is taken, the version odd, the entry there.
fn begin(scene: &Scene, key: FrameKey) -> (u32, u64) {
    let head = scene.lane_word(offset_of!(Lane, head));
    let at = head.load(Ordering::Relaxed);
    let slot = position::slot(at);
    let header = RecordHeader {
        version: position::version(at) | 1,
        key,
        length: 150,
        flags: record_flag::KERNEL,
        ..RecordHeader::default()
    };
    head.store(at + 4, Ordering::Release);
    scene.pages.ring.write(slot as usize * SLOT_LEN, header);
    let hash = Scene::hash(key);
    let bucket = index::bucket(hash, scene.pages.sizes.buckets - 1) as usize * size_of::<Bucket>();
    let entries = (0..BUCKET_ENTRIES).map(|i| scene.pages.index.word(bucket + i * 8));
    let empty = entries.into_iter().find(|word| word.load(Ordering::Relaxed) == 0).expect("an empty entry");
    empty.store(index::entry(hash, slot), Ordering::Release);
    (slot, at)
}

#[test]
fn a_frame_that_is_being_written_is_waited_for() {
    let scene = Scene::new();
    let (slot, at) = begin(&scene, key(777));
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(60));
            scene.version(slot).store(position::version(at), Ordering::Release);
        });
        scene.check()
    });
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.entries, report.in_flight), (2 * FRAMES + 1, 0), "{report}");
}

#[test]
fn a_frame_that_is_never_written_is_found() {
    let scene = Scene::new();
    begin(&scene, key(777));
    let start = Instant::now();
    let report = scene.check();
    assert_eq!(kinds(&report), [(Kind::Unfinished, 1)], "{report}");
    assert!(start.elapsed() >= Duration::from_secs(1), "it was given a second");
}

/// Two CPUs had one frame at once: both entries stand until the daemon has followed.
#[test]
fn twins_are_right_until_they_are_followed() {
    let scene = Scene::new();
    for _ in 0..2 {
        let (slot, at) = begin(&scene, key(777));
        scene.version(slot).store(position::version(at), Ordering::Release);
    }
    let report = scene.check();
    assert!(report.is_clean(), "{report}");
    let head = scene.lane_word(offset_of!(Lane, head)).load(Ordering::Relaxed);
    scene.lane_word(offset_of!(Lane, followed)).store(head, Ordering::Relaxed);
    scene.lane_word(offset_of!(Lane, records)).fetch_add(2, Ordering::Relaxed);
    let report = scene.check();
    assert_eq!(report.findings.get(&Kind::DoubledTag), Some(&1), "{report}");
}

#[test]
fn what_passes_is_no_finding() {
    let scene = Scene::new();
    let at = scene.entry_at(key(5));
    let entry = scene.pages.index.word(at).load(Ordering::Relaxed);
    let slot = scene.slot_of(key(9));
    let version = scene.version(slot).swap(0, Ordering::Relaxed);
    scene.set_index(scene.empty_beside(key(5)), entry);
    let doubled = (0..BUCKET_ENTRIES).map(|i| at / size_of::<Bucket>() * size_of::<Bucket>() + i * 8);
    let report = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(40));
            scene.version(slot).store(version, Ordering::Release);
            for other in doubled.filter(|other| *other != at) {
                if scene.pages.index.word(other).load(Ordering::Relaxed) == entry {
                    scene.set_index(other, 0);
                }
            }
        });
        scene.check()
    });
    assert!(report.is_clean(), "{report}");
}

#[test]
fn only_the_first_findings_are_told() {
    let scene = Scene::new();
    for seq_num in 1..=50 {
        let at = scene.entry_at(key(seq_num));
        scene.set_index(at, scene.pages.index.word(at).load(Ordering::Relaxed) ^ 1 << 40);
    }
    let report = scene.check();
    assert_eq!((kinds(&report), report.examples.len()), (vec![(Kind::Misplaced, 50)], 10));
}

#[test]
fn the_command_line_names_interfaces_and_directories() {
    let of = |args: &[&str]| {
        let matches = command().try_get_matches_from([&["verify-log"], args].concat()).expect("a command line");
        directories(&matches).map_err(|error| error.to_string())
    };
    assert_eq!(of(&["/some/where"]), Ok(vec!["/some/where".into()]));
    let named = of(&["--bpffs", "/nowhere", "eth7"]).expect("a name");
    assert!(named[0].to_string_lossy().starts_with("/nowhere/eth7-"), "{named:?}");
    let named = of(&["--bpffs", "/nowhere", "eth0.100"]).expect("a name");
    assert!(named[0].to_string_lossy().starts_with("/nowhere/eth0%2E100-"), "as the daemon names it: {named:?}");
    let error = of(&["--bpffs", "/nowhere"]).expect_err("nothing is there");
    assert!(error.contains("no pins of this network namespace below /nowhere"), "{error}");
}
