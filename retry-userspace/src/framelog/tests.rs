//! The log against a plain model: never a wrong byte, and nothing lost that is not counted.
//!
//! Longer than most files: writer and reader are only right together, so they are tested over one set of pages.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use retry_common::abi::{
    Lane, RECORD_HEADER_LEN, RecordHeader, SEGMENT_LEN, SEGMENT_SLOTS, SEGMENT_TAIL, SLOT_LEN, record_flag,
};
use retry_common::counter::{Counter, Counters};
use retry_common::decide::Multicast;
use retry_common::framelog::HOLE_PATIENCE_NS;
use retry_common::holddown::HoldDown;
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::position;
use retry_common::wire::frame::Class;

use super::reader::bucket_offset;
use super::{Adopted, Followed, Log, NewFrame, Pages, Put, Removed, Sizes, Unusable, Writer, adopt, copy_into, open};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;
const LIFE_MS: u32 = 60_000;
const SEED: u64 = 0x5eed;

/// One segment a lane.
fn small(max_keys: u64) -> (Writer, Log) {
    let (_, writer, log) = over(Sizes::new(1, 1), max_keys);
    (writer, log)
}

/// A log, and the pages that it stands in.
fn over(sizes: Sizes, max_keys: u64) -> (Arc<Pages>, Writer, Log) {
    let pages = Arc::new(Pages::plain(sizes).expect("memory"));
    let (writer, log) = open(Arc::clone(&pages), 0x5eed, max_keys);
    (pages, writer, log)
}

/// The key of a lane's oldest record.
fn oldest(pages: &Pages, lane: usize) -> Option<FrameKey> {
    let lane: Lane = pages.lanes.read(lane * size_of::<Lane>());
    let header: RecordHeader = pages.ring.read((lane.first_slot + position::slot(lane.tail)) as usize * SLOT_LEN);
    (lane.records > 0 && header.flags & record_flag::FILLER == 0).then_some(header.key)
}

/// Walks a lane from its oldest record to its newest as the layout has it, and returns how many slots that is.
fn walk(pages: &Pages, lane: usize) -> u32 {
    let lane: Lane = pages.lanes.read(lane * size_of::<Lane>());
    let (mut at, mut walked) = (lane.tail, 0);
    for _ in 0..lane.records {
        let slot = position::slot(at);
        let start = (lane.first_slot + slot) as usize * SLOT_LEN;
        let header: RecordHeader = pages.ring.read(start);
        let len = RECORD_HEADER_LEN + header.length as usize;
        let into_segment = start % SEGMENT_LEN;
        assert!(into_segment + len <= SEGMENT_LEN, "the record at slot {slot} straddles two segments");
        if header.flags & record_flag::FILLER == 0 {
            assert!(into_segment <= SEGMENT_LEN - SEGMENT_TAIL, "slot {slot} is in the last page of its segment");
        }
        assert_eq!(header.version, position::version(at), "slot {slot}");
        let slots = u32::try_from(len.div_ceil(SLOT_LEN)).expect("small");
        walked += slots;
        assert!(slot + slots <= lane.slots, "a record leaves its lane");
        at = position::after(at, slots, lane.slots);
    }
    assert_eq!((at, lane.followed), (lane.head, lane.head), "the records end at the head");
    assert_eq!(lane.limit, position::lap_later(lane.tail), "what is free may be taken");
    walked
}

/// Appends, where no kernel writes.
fn put(writer: &mut Writer, frame: &NewFrame<'_>, now: u64) -> Put {
    writer.put(frame, now, |followed| panic!("no kernel wrote {followed:?}"))
}

/// Takes out, where no kernel writes.
fn remove(writer: &mut Writer, key: &FrameKey) -> bool {
    match writer.remove(key, START, |followed| panic!("no kernel wrote {followed:?}")) {
        Removed::Yes => true,
        Removed::NotThere => false,
        Removed::Busy => panic!("no kernel is in the way"),
    }
}

/// What was dropped since the last call, one counter each.
fn evictions(writer: &mut Writer) -> Vec<Counter> {
    let mut tally = Counters::default();
    writer.count_dropped(&mut tally);
    let count = |counter: &Counter| usize::try_from(tally.get(*counter)).expect("few");
    Counter::ALL.iter().flat_map(|counter| std::iter::repeat_n(*counter, count(counter))).collect()
}

fn frame<'a>(key: FrameKey, class: Class, bytes: &'a [u8]) -> NewFrame<'a> {
    NewFrame { key, class, group: 3, life_ms: LIFE_MS, daemon_only: false, bytes }
}

fn read(log: &Log, key: &FrameKey, now: u64) -> Option<Vec<u8>> {
    let record = log.look_up(key, now)?;
    let mut bytes = Vec::new();
    log.copy(&record, &mut bytes).then_some(bytes)
}

#[test]
fn what_is_put_is_found_until_its_life_is_over() {
    let (mut writer, log) = small(0);
    let key = FrameKey::new(1, 1);
    let bytes = vec![7; 400];
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, &bytes), START), Put::Stored);
    let header = *log.look_up(&key, START).expect("found").header();
    assert_eq!((header.length, header.group, header.flags), (400, 3, 0));
    assert_eq!(header.partial, retry_common::checksum::partial(&bytes));
    let end = START + u64::from(LIFE_MS) * 1_000_000;
    assert_eq!(read(&log, &key, end - 1), Some(bytes));
    assert_eq!(read(&log, &key, end), None);
    assert_eq!(read(&log, &FrameKey::new(1, 2), START), None);
    assert_eq!(read(&log, &FrameKey::new(2, 1), START), None);
}

#[test]
fn the_same_bytes_again_keep_the_first_life() {
    let (mut writer, log) = small(0);
    let key = FrameKey::new(1, 1);
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, b"one"), START), Put::Stored);
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, b"one"), START + SECOND), Put::Duplicate);
    assert_eq!(log.look_up(&key, START).expect("found").header().expires_ns, START + 60 * SECOND);
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, b"two"), START + SECOND), Put::Replaced);
    assert_eq!(read(&log, &key, START + SECOND), Some(b"two".to_vec()));
    assert_eq!(writer.live(), 1);
    // Of a life that is over the same bytes are a new frame.
    let later = START + 100 * SECOND;
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, b"two"), later), Put::Stored);
    assert_eq!(read(&log, &key, later), Some(b"two".to_vec()));
    assert_eq!(evictions(&mut writer), [Counter::EvictedExpired]);
}

#[test]
fn what_no_datagram_can_be_is_refused() {
    let (mut writer, log) = small(0);
    let key = FrameKey::new(1, 1);
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, &[]), START), Put::TooLarge);
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, &vec![0; 65_536]), START), Put::TooLarge);
    let longest = vec![9; 65_535];
    assert_eq!(put(&mut writer, &frame(key, Class::Anchor, &longest), START), Put::Stored);
    assert_eq!(read(&log, &key, START), Some(longest));
}

/// What [`laps_lose_the_oldest_and_never_mix_anything_up`] put under a key, made anew from this.
#[derive(Clone, Copy, Eq, PartialEq)]
struct Made {
    word: u64,
    length: usize,
}

impl Made {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.word.to_le_bytes().repeat(self.length.div_ceil(8));
        bytes.truncate(self.length);
        bytes
    }
}

/// 200,000 puts of any size, many laps of both lanes, against a map.
#[test]
fn laps_lose_the_oldest_and_never_mix_anything_up() {
    const PUTS: u64 = 200_000;
    let (pages, mut writer, log) = over(Sizes::new(SEGMENT_LEN as u64 * 2, 1), 0);
    let mut random = SmallRng::seed_from_u64(42);
    let mut model: HashMap<FrameKey, Made> = HashMap::new();
    let mut evicted = 0;
    let (mut stored, mut replaced, mut duplicates) = (0u64, 0u64, 0u64);
    for number in 1..=PUTS {
        let class = if random.random_bool(0.2) { Class::Block } else { Class::Tx };
        // Now and then a key comes back: one of any age, or one that is about to be overwritten.
        let seq_num = match random.random_range(0..20) {
            0 => random.random_range(1..=number),
            1 => oldest(&pages, class.lane()).map_or(number, |key| key.seq_num()),
            _ => number,
        };
        let key = FrameKey::new(class as u64, seq_num);
        let length = if random.random_bool(0.01) { 60_000 } else { random.random_range(92..4_000) };
        let mut made = Made { word: random.random(), length };
        // With the same bytes as before, or with others.
        if let Some(before) = model.get(&key).filter(|_| random.random_bool(0.3)) {
            made = *before;
        }
        let now = START + number;
        match put(&mut writer, &frame(key, class, &made.bytes()), now) {
            Put::Stored => stored += 1,
            Put::Replaced => replaced += 1,
            Put::Duplicate => {
                assert!(model.get(&key) == Some(&made), "{key} was not the same");
                duplicates += 1;
            }
            Put::Conflict | Put::TooLarge | Put::Busy => panic!("{length} bytes"),
        }
        model.insert(key, made);
        assert!(read(&log, &key, now) == Some(made.bytes()), "{key} was just put");
        evicted += u64::try_from(evictions(&mut writer).len()).expect("few");
        // A replaced frame is neither gone nor new.
        assert_eq!(stored - evicted, writer.live(), "put {number}, {replaced} replaced");
        if number % 10_000 == 0 {
            let found = model.iter().filter(|(key, made)| match read(&log, key, now) {
                Some(bytes) => {
                    assert!(bytes == made.bytes(), "{key} has other bytes");
                    true
                }
                None => false,
            });
            assert_eq!(u64::try_from(found.count()).expect("few"), writer.live());
            for (lane, lane_use) in writer.lane_use(now).iter().enumerate() {
                assert_eq!(u64::from(walk(&pages, lane)) * SLOT_LEN as u64, lane_use.used_bytes, "lane {lane}");
            }
        }
    }
    assert!(evicted > PUTS / 2 && replaced > 1_000 && duplicates > 500, "{evicted}, {replaced}, {duplicates}");
}

/// Records of 64 slots in a segment: none of that length begins in the last 16 KiB, but where these begin.
const RECORDS_OF_64_SLOTS: u64 = SEGMENT_SLOTS as u64 / 64 - 3;

/// When the frame that is overwritten is the one that makes way, it is a lap that the new one follows.
#[test]
fn a_frame_that_makes_way_for_its_own_successor_is_counted_once() {
    let (mut writer, log) = small(0);
    let length = 64 * SLOT_LEN - RECORD_HEADER_LEN;
    let records = RECORDS_OF_64_SLOTS;
    for seq_num in 1..=records {
        assert_eq!(
            put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &vec![1; length]), START),
            Put::Stored
        );
    }
    assert_eq!((writer.live(), evictions(&mut writer).len()), (records, 0));
    let oldest = FrameKey::new(1, 1);
    assert_eq!(put(&mut writer, &frame(oldest, Class::Tx, &vec![2; length]), START), Put::Stored);
    assert_eq!(evictions(&mut writer), [Counter::EvictedLapShort]);
    assert_eq!(writer.live(), records);
    assert_eq!(read(&log, &oldest, START), Some(vec![2; length]));
    assert!(read(&log, &FrameKey::new(1, 2), START).is_some());
}

#[test]
fn each_lane_counts_its_own_laps() {
    let (mut writer, _) = small(0);
    let length = 64 * SLOT_LEN - RECORD_HEADER_LEN;
    let records = RECORDS_OF_64_SLOTS;
    for (class, more, counter) in [(Class::Tx, 3, Counter::EvictedLapShort), (Class::Block, 5, Counter::EvictedLapLong)]
    {
        for seq_num in 1..=records + more {
            let key = FrameKey::new(class as u64, seq_num);
            assert_eq!(put(&mut writer, &frame(key, class, &vec![1; length]), START), Put::Stored);
        }
        let lapped = usize::try_from(more).expect("few");
        assert_eq!(evictions(&mut writer), vec![counter; lapped]);
    }
}

/// Sums of 16-bit words do not see their order, nor zeros at the end.
#[test]
fn other_bytes_with_the_same_sum_are_no_duplicate() {
    let (mut writer, log) = small(0);
    let key = FrameKey::new(1, 1);
    assert_eq!(put(&mut writer, &frame(key, Class::Tx, &[1, 2, 3, 4]), START), Put::Stored);
    for bytes in [&[3, 4, 1, 2][..], &[3, 4, 1, 2, 0, 0], &[3, 4, 1, 2]] {
        assert_eq!(put(&mut writer, &frame(key, Class::Tx, bytes), START), Put::Replaced);
        assert_eq!(read(&log, &key, START).as_deref(), Some(bytes));
    }
}

#[test]
fn a_replaced_frame_outlives_its_first_record() {
    let (mut writer, log) = small(0);
    let replaced = FrameKey::new(1, 1);
    let store =
        |writer: &mut Writer, seq_num| put(writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 4_000]), START);
    for seq_num in 1..=2_000 {
        store(&mut writer, seq_num);
    }
    assert_eq!(put(&mut writer, &frame(replaced, Class::Tx, &[2; 4_000]), START), Put::Replaced);
    // The ring comes round, past the first record and not as far as the second.
    for seq_num in 2_001..=5_000 {
        store(&mut writer, seq_num);
    }
    assert_eq!(read(&log, &FrameKey::new(1, 2), START), None);
    assert_eq!(read(&log, &replaced, START), Some(vec![2; 4_000]));
}

/// The index tells keys apart by 31 bits of their hash; the record's own key decides.
#[test]
fn keys_with_one_tag_are_not_taken_for_each_other() {
    let mut seen = HashMap::new();
    let (first, second) = (1..1_000_000)
        .map(|seq_num| FrameKey::new(1, seq_num))
        .find_map(|key| Some((seen.insert(index::tag(index::hash(&key, SEED)), key)?, key)))
        .expect("a million keys have tags in common");
    let (_, mut writer, log) = over(Sizes { buckets: 1, ..Sizes::new(1, 1) }, 0);
    put(&mut writer, &frame(first, Class::Tx, b"first"), START);
    assert_eq!(read(&log, &second, START), None);
    assert!(!remove(&mut writer, &second));
    // A reader looks at one entry with the tag, so the older frame goes, and is counted.
    assert_eq!(put(&mut writer, &frame(second, Class::Tx, b"second"), START), Put::Stored);
    assert_eq!(evictions(&mut writer), [Counter::EvictedBucket]);
    assert_eq!((read(&log, &first, START), read(&log, &second, START)), (None, Some(b"second".to_vec())));
    assert_eq!(writer.live(), 1);
}

/// More keys than the index has places: each that a full bucket gives up is counted, the others stay.
#[test]
fn a_full_bucket_gives_up_its_oldest() {
    let (_, mut writer, log) = over(Sizes { buckets: 1, ..Sizes::new(1, 1) }, 0);
    for seq_num in 1..=8 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 100]), START);
    }
    assert_eq!((writer.live(), evictions(&mut writer).len()), (8, 0));
    // What is renewed is young again.
    assert_eq!(put(&mut writer, &frame(FrameKey::new(1, 1), Class::Tx, &[2; 100]), START), Put::Replaced);
    assert_eq!(put(&mut writer, &frame(FrameKey::new(1, 9), Class::Tx, &[1; 100]), START), Put::Stored);
    assert_eq!(evictions(&mut writer), [Counter::EvictedBucket]);
    let found: Vec<_> = (1..=9).filter(|seq_num| read(&log, &FrameKey::new(1, *seq_num), START).is_some()).collect();
    assert_eq!(found, [1, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(writer.live(), 8);
}

#[test]
fn a_record_says_what_the_daemon_alone_can_send() {
    let (mut writer, log) = small(0);
    let key = FrameKey::new(1, 1);
    put(&mut writer, &NewFrame { daemon_only: true, ..frame(key, Class::Anchor, &[1; 9_000]) }, START);
    let header = *log.look_up(&key, START).expect("found").header();
    assert_eq!((header.flags, header.class, header.life_ms), (record_flag::DAEMON_ONLY, Class::Anchor as u8, LIFE_MS));
}

#[test]
fn a_burst_of_transactions_leaves_blocks_alone() {
    let (mut writer, log) = small(0);
    let block = FrameKey::new(9, 1);
    put(&mut writer, &frame(block, Class::Block, &[1; 1_000]), START);
    for seq_num in 1..40_000 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[2; 1_000]), START);
    }
    assert!(read(&log, &block, START).is_some());
    assert!(read(&log, &FrameKey::new(1, 1), START).is_none());
    let [short, long] = writer.lane_use(START + 5 * SECOND);
    assert!(short.used_bytes > short.size_bytes * 9 / 10);
    assert_eq!((long.used_bytes, long.oldest_age_ms), (1_088, 5_000));
}

#[test]
fn the_oldest_go_at_the_end_of_their_life_or_when_there_are_too_many() {
    let (mut writer, log) = small(3);
    for seq_num in 1..=5 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 100]), START + seq_num);
    }
    assert_eq!(writer.live(), 3);
    assert_eq!(evictions(&mut writer), [Counter::EvictedMaxKeys; 2]);
    assert!(read(&log, &FrameKey::new(1, 2), START).is_none() && read(&log, &FrameKey::new(1, 3), START).is_some());
    writer.expire(START + 61 * SECOND, 100);
    assert_eq!((writer.live(), writer.lane_use(START)[0].used_bytes), (0, 0));
    assert_eq!(evictions(&mut writer), [Counter::EvictedExpired; 3]);
}

/// The kernel writes where the lane's limit says that there is room, so that has to follow what is dropped.
#[test]
fn room_that_is_made_ahead_is_given() {
    const ROOM: u32 = 1_000;
    let (pages, mut writer, _) = over(Sizes::new(1, 1), 0);
    let bytes = [7; 1_000];
    let full = |writer: &mut Writer| !evictions(writer).is_empty();
    for seq in 1.. {
        put(&mut writer, &frame(FrameKey::new(1, seq), Class::Tx, &bytes), START);
        if full(&mut writer) {
            break;
        }
    }
    let lane = || -> Lane { pages.lanes.read(0) };
    let free = |lane: Lane| lane.slots - position::distance(lane.tail, lane.head, lane.slots);
    assert!(free(lane()) < ROOM);
    assert!(writer.make_ahead([ROOM; 2], u32::MAX, START));
    let after = lane();
    assert!((ROOM..ROOM + 100).contains(&free(after)), "{}", free(after));
    assert_eq!(after.limit, position::lap_later(after.tail));
    assert!(full(&mut writer), "what made way is counted");
}

#[test]
fn what_is_removed_is_gone_at_once_and_counted_once() {
    let (pages, mut writer, log) = over(Sizes::new(1, 1), 0);
    let store = |writer: &mut Writer, seq_num, byte| {
        put(writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[byte; 100]), START)
    };
    for seq_num in 1..=3 {
        store(&mut writer, seq_num, 1);
    }
    let removed = FrameKey::new(1, 1);
    assert!(remove(&mut writer, &removed));
    assert!(!remove(&mut writer, &removed) && !remove(&mut writer, &FrameKey::new(1, 9)));
    assert_eq!((read(&log, &removed, START), writer.live()), (None, 2));
    assert!(read(&log, &FrameKey::new(1, 2), START).is_some());
    // Its record stays for the ring's walkers, and its key is free again.
    assert_eq!(oldest(&pages, 0), Some(removed));
    walk(&pages, 0);
    assert_eq!(store(&mut writer, 1, 1), Put::Stored);
    assert_eq!((read(&log, &removed, START), writer.live()), (Some(vec![1; 100]), 3));
    // What was removed ends unseen: neither the sweep nor the lap counts it, or takes the new record with it.
    assert!(remove(&mut writer, &FrameKey::new(1, 2)));
    writer.expire(START, 2);
    assert_eq!((oldest(&pages, 0), writer.live()), (Some(FrameKey::new(1, 3)), 2));
    assert_eq!(evictions(&mut writer).len(), 0);
    writer.expire(START + 61 * SECOND, 100);
    assert_eq!((writer.live(), writer.lane_use(START)[0].used_bytes), (0, 0));
    assert_eq!(evictions(&mut writer), [Counter::EvictedExpired; 2]);
}

#[test]
fn a_removed_frame_makes_room_for_another_key() {
    let (mut writer, log) = small(2);
    for seq_num in 1..=2 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 100]), START);
    }
    assert!(remove(&mut writer, &FrameKey::new(1, 2)));
    put(&mut writer, &frame(FrameKey::new(1, 3), Class::Tx, &[1; 100]), START);
    assert_eq!((writer.live(), evictions(&mut writer).len()), (2, 0));
    // The removed one does not stand for the live one that has to go.
    assert!(remove(&mut writer, &FrameKey::new(1, 1)));
    for seq_num in 4..=5 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 100]), START);
    }
    assert_eq!(evictions(&mut writer), [Counter::EvictedMaxKeys]);
    let found: Vec<_> = (1..=5).filter(|seq_num| read(&log, &FrameKey::new(1, *seq_num), START).is_some()).collect();
    assert_eq!((found, writer.live()), (vec![4, 5], 2));
}

#[test]
fn a_removed_frame_is_lapped_without_a_count() {
    let (mut writer, log) = small(0);
    let mut removed = 0;
    // Three laps of about 4,000 frames; half of them go by hand before the ring comes round to them.
    for seq_num in 1..=12_000u64 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 4_000]), START);
        if seq_num > 3_000 && seq_num % 2 == 0 {
            assert!(remove(&mut writer, &FrameKey::new(1, seq_num - 3_000)), "frame {}", seq_num - 3_000);
            removed += 1;
        }
        if seq_num > 4_500 {
            assert!(!remove(&mut writer, &FrameKey::new(1, seq_num - 4_500)), "frame {} was lapped", seq_num - 4_500);
        }
    }
    let lapped = evictions(&mut writer).len();
    let found = (1..=12_000).filter(|seq_num| read(&log, &FrameKey::new(1, *seq_num), START).is_some()).count();
    assert_eq!((writer.live(), 12_000), (u64::try_from(found).expect("small"), found + lapped + removed));
}

#[test]
fn a_claim_is_held_and_can_be_given_back() {
    let (_, log) = small(0);
    let hold = HoldDown { ours_ns: 10_000_000, others_ns: 0 };
    let key = FrameKey::new(1, 1);
    assert_eq!(log.claim(&key, &hold, START), Multicast::Claimed);
    assert_eq!(log.claim(&key, &hold, START + 1_000_000), Multicast::HeldByUs);
    assert_eq!(log.claim(&FrameKey::new(1, 2), &hold, START), Multicast::Claimed);
    log.release(&key);
    assert_eq!(log.claim(&key, &hold, START + 2_000_000), Multicast::Claimed);
    assert_eq!(log.claim(&key, &hold, START + 13_000_000), Multicast::Claimed);
    assert_eq!(log.claim(&key, &HoldDown::default(), START + 13_000_000), Multicast::Claimed);
}

/// A reader beside the writer gets whole frames or none: each frame's bytes follow from its key.
#[test]
fn a_reader_never_sees_a_torn_frame() {
    let (mut writer, log) = small(0);
    let stop = Arc::new(AtomicBool::new(false));
    let bytes_of = |seq_num: u64| {
        vec![u8::try_from(seq_num % 251).expect("small"); 700 + usize::try_from(seq_num % 97).expect("small")]
    };
    let reader = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut random = SmallRng::seed_from_u64(7);
            let (mut whole, mut none) = (0u64, 0u64);
            while !stop.load(Ordering::Relaxed) {
                let seq_num = random.random_range(1..60_000);
                match read(&log, &FrameKey::new(5, seq_num), START) {
                    Some(bytes) => {
                        assert!(bytes == bytes_of(seq_num), "frame {seq_num} is torn");
                        whole += 1;
                    }
                    None => none += 1,
                }
            }
            (whole, none)
        }
    });
    // The ring holds a third of these, so the reader often looks where the writer writes.
    for _ in 0..4 {
        for seq_num in 1..60_000 {
            put(&mut writer, &frame(FrameKey::new(5, seq_num), Class::Tx, &bytes_of(seq_num)), START);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (whole, none) = reader.join().expect("no torn frame");
    assert!(whole > 1_000 && none > 1_000, "{whole} whole, {none} none");
}

/// A frame of the kernel's that it goes on writing for ever: reserved, begun and entered.
fn never_committed(pages: &Pages, key: &FrameKey) {
    let lane: Lane = pages.lanes.read(0);
    pages.lanes.word(offset_of!(Lane, head)).store(position::after(lane.head, 1, lane.slots), Ordering::SeqCst);
    let slot = lane.first_slot + position::slot(lane.head);
    pages.ring.word(slot as usize * SLOT_LEN).store(position::version(lane.head) | 1, Ordering::SeqCst);
    let hash = index::hash(key, SEED);
    pages.index.word(bucket_offset(pages, hash) + 7 * 8).store(index::entry(hash, slot), Ordering::SeqCst);
}

#[test]
fn a_kernel_writer_in_the_way_ends_the_wait() {
    let (pages, mut writer, log) = over(Sizes::new(1, 1), 0);
    let (busy, other) = (FrameKey::new(1, 1), FrameKey::new(1, 2));
    never_committed(&pages, &busy);
    let start = Instant::now();
    assert_eq!(put(&mut writer, &frame(busy, Class::Tx, b"busy"), START), Put::Busy);
    assert_eq!(writer.remove(&busy, START, |_| {}), Removed::Busy);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(put(&mut writer, &frame(other, Class::Tx, b"other"), START), Put::Stored);
    assert_eq!((read(&log, &busy, START), read(&log, &other, START)), (None, Some(b"other".to_vec())));
}

#[test]
fn a_position_that_no_writer_commits_is_given_up() {
    let (pages, mut writer, log) = over(Sizes::new(1, 1), 0);
    let (lost, behind) = (FrameKey::new(1, 1), FrameKey::new(1, 2));
    never_committed(&pages, &lost);
    assert_eq!(put(&mut writer, &frame(behind, Class::Tx, b"behind"), START), Put::Stored);
    let later = START + HOLE_PATIENCE_NS;
    assert!(!writer.follow(later - 1, usize::MAX, |_| {}));
    assert_eq!(evictions(&mut writer), []);
    assert!(writer.follow(later, usize::MAX, |followed| panic!("{followed:?} was never whole")));
    assert_eq!(evictions(&mut writer), [Counter::LogHoles]);
    // Its key is free again; the entry that its writer had made leads nowhere.
    assert_eq!(put(&mut writer, &frame(lost, Class::Tx, b"again"), later), Put::Stored);
    assert_eq!(evictions(&mut writer), [Counter::LogStaleEntries]);
    assert_eq!(
        (read(&log, &lost, later), read(&log, &behind, later)),
        (Some(b"again".to_vec()), Some(b"behind".to_vec()))
    );
    assert_eq!(writer.live(), 2);
    walk(&pages, 0);
}

/// An entry is believed only if its record is what it says.
#[test]
fn an_entry_that_leads_elsewhere_is_removed() {
    let (pages, mut writer, log) = over(Sizes::new(1, 1), 0);
    let (there, asked) = (FrameKey::new(1, 1), FrameKey::new(1, 2));
    let length = 4 * SLOT_LEN;
    assert_eq!(put(&mut writer, &frame(there, Class::Tx, &vec![2; length]), START), Put::Stored);
    let hash = index::hash(&asked, SEED);
    let start = bucket_offset(&pages, hash);
    // Another key's record; payload, whose words are even and not 0; never written; beyond the lane.
    for (place, slot) in [0, 2, 100, u32::MAX >> 8].into_iter().enumerate() {
        if (slot as usize) < pages.sizes.segments() as usize * SEGMENT_SLOTS as usize {
            pages.index.word(start + place * 8).store(index::entry(hash, slot), Ordering::SeqCst);
        }
    }
    assert_eq!(read(&log, &asked, START), None);
    assert_eq!(put(&mut writer, &frame(asked, Class::Tx, b"asked"), START), Put::Stored);
    assert_eq!(evictions(&mut writer), [Counter::LogStaleEntries; 3]);
    assert_eq!(
        (read(&log, &asked, START), read(&log, &there, START)),
        (Some(b"asked".to_vec()), Some(vec![2; length]))
    );
    assert_eq!(writer.live(), 2);
}

#[test]
fn a_broken_chain_is_taken_up_again() {
    let (pages, mut writer, log) = over(Sizes::new(1, 1), 0);
    for seq_num in 1..=3 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 200]), START + seq_num);
    }
    // The first record's version, as damaged memory would have it.
    pages.ring.word(0).store(0x1234, Ordering::SeqCst);
    writer.expire(START + 61 * SECOND, 1);
    assert_eq!(evictions(&mut writer), [Counter::LogStaleEntries, Counter::LogBrokenChains]);
    assert_eq!((oldest(&pages, 0), writer.live()), (Some(FrameKey::new(1, 2)), 2));
    assert_eq!(read(&log, &FrameKey::new(1, 2), START), Some(vec![1; 200]));
    walk(&pages, 0);
}

/// A daemon ends without a word, and the next one goes on with what it left.
#[test]
fn a_log_that_is_taken_over_holds_what_it_held() {
    let (pages, mut writer, _) = over(Sizes::new(1, 1), 0);
    for seq_num in 1..=30_000 {
        put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[7; 700]), START + seq_num);
    }
    assert!(remove(&mut writer, &FrameKey::new(1, 29_000)));
    let live = writer.live();
    drop(writer);
    let (mut writer, log, adopted) = adopt(Arc::clone(&pages), SEED, 0).expect("a log");
    assert_eq!(adopted, Adopted { frames: live, ..Adopted::default() });
    let held = (1..=30_000).filter(|seq_num| read(&log, &FrameKey::new(1, *seq_num), START).is_some()).count();
    assert_eq!(u64::try_from(held).expect("few"), live);
    assert_eq!(walk(&pages, 0), u32::try_from(writer.lane_use(START)[0].used_bytes / 64).expect("small"));
    for seq_num in 30_001..=60_000 {
        assert_eq!(put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &[8; 700]), START), Put::Stored);
    }
    assert!(evictions(&mut writer).iter().all(|counter| *counter == Counter::EvictedLapShort));
    walk(&pages, 0);
    // Pages that hold no log, and a log of another size.
    assert_eq!(
        adopt(Arc::new(Pages::plain(Sizes::new(1, 1)).expect("memory")), SEED, 0).err(),
        Some(Unusable::OtherLanes { lane: 0 })
    );
}

/// A frame that the kernel program stores.
fn kernel_stores(pages: &Pages, key: FrameKey, bytes: &[u8]) {
    let lane: Lane = pages.lanes.read(0);
    let slots = u32::try_from((RECORD_HEADER_LEN + bytes.len()).div_ceil(SLOT_LEN)).expect("small");
    let slot = lane.first_slot + position::slot(lane.head);
    let start = slot as usize * SLOT_LEN;
    let header = RecordHeader {
        version: position::version(lane.head),
        expires_ns: START + 5 * SECOND,
        key,
        length: u32::try_from(bytes.len()).expect("small"),
        life_ms: 7_000,
        partial: retry_common::checksum::partial(bytes),
        group: 5,
        class: Class::Tx as u8,
        flags: record_flag::KERNEL,
        ..RecordHeader::default()
    };
    pages.ring.write(start, header);
    pages.ring.copy_in(start + RECORD_HEADER_LEN, bytes);
    pages.lanes.word(offset_of!(Lane, head)).store(position::after(lane.head, slots, lane.slots), Ordering::SeqCst);
    let bucket = bucket_offset(pages, index::hash(&key, SEED));
    let vacant = (0..8).map(|i| pages.index.word(bucket + i * 8)).find(|word| word.load(Ordering::SeqCst) == 0);
    let entry = index::entry(index::hash(&key, SEED), slot);
    vacant.expect("a vacant place").store(entry, Ordering::SeqCst);
}

/// For where the kernel program stores nothing.
fn untold(followed: Followed<'_>) {
    panic!("{followed:?} was told of");
}

/// The next daemon has other sizes: larger, and smaller.
#[test]
fn a_log_is_copied_into_one_of_another_size() {
    const OTHER_SEED: u64 = 0xabcd;
    for (short, all_fit) in [(3 * SEGMENT_LEN as u64, true), (1, false)] {
        let (pages, mut old, old_log) = over(Sizes::new(2 * SEGMENT_LEN as u64, 1), 0);
        let bytes_of = |seq_num: u64| vec![u8::try_from(seq_num % 251).expect("small"); 900];
        for seq_num in 1..=50_000 {
            let now = START + seq_num;
            put(&mut old, &frame(FrameKey::new(1, seq_num), Class::Tx, &bytes_of(seq_num)), now);
        }
        let (anchor, brief) = (FrameKey::new(2, 1), FrameKey::new(2, 2));
        put(&mut old, &NewFrame { daemon_only: true, group: 9, ..frame(anchor, Class::Anchor, &[3; 9_000]) }, START);
        put(&mut old, &NewFrame { life_ms: 1_000, ..frame(brief, Class::Block, &[4; 90]) }, START);
        put(&mut old, &frame(FrameKey::new(1, 49_999), Class::Tx, b"newer"), START);
        assert!(remove(&mut old, &FrameKey::new(1, 49_998)));

        let new_pages = Arc::new(Pages::plain(Sizes::new(short, 1)).expect("memory"));
        let (mut new, new_log) = open(Arc::clone(&new_pages), OTHER_SEED, 0);
        let (mut from, now) = ([0; 2], START + 2 * SECOND);
        let copied = copy_into(&old, &mut new, &mut from, usize::MAX, now, untold);
        assert_eq!((copied, from), (new.live(), old.followed()));
        assert_eq!(copy_into(&old, &mut new, &mut from, usize::MAX, now, untold), 0);
        let mut held = 0;
        for key in (1..=50_000).map(|seq_num| FrameKey::new(1, seq_num)).chain([anchor, brief]) {
            let (there, copy) = (read(&old_log, &key, now), read(&new_log, &key, now));
            held += u64::from(there.is_some());
            assert!(copy.is_none() && !all_fit || copy == there, "{key}");
        }
        assert_eq!(copied == held, all_fit, "{copied} of {held}");
        let oldest_copied = (1..50_000).find(|seq_num| read(&new_log, &FrameKey::new(1, *seq_num), now).is_some());
        let newest = |seq_num| read(&new_log, &FrameKey::new(1, seq_num), now).is_some() || seq_num == 49_998;
        assert!((oldest_copied.expect("some")..=50_000).all(newest), "the newest are copied");
        assert!(all_fit || copied > 14_000, "{copied}");
        assert_eq!(evictions(&mut new), [], "nothing was copied in vain");
        for key in [anchor, FrameKey::new(1, 50_000)] {
            let version = |header: &RecordHeader| RecordHeader { version: 0, ..*header };
            let headers = [&old_log, &new_log].map(|log| *log.look_up(&key, now).expect("held").header());
            assert_eq!(version(&headers[0]), version(&headers[1]));
        }
        // What the kernel stores in the old log meanwhile: told of there, and copied.
        let late = FrameKey::new(3, 1);
        kernel_stores(&pages, late, &[5; 500]);
        let mut told = Vec::new();
        assert!(old.follow(now, usize::MAX, |followed| told.push((followed.key, followed.is_new))));
        assert_eq!(told, [(late, true)]);
        assert_eq!(copy_into(&old, &mut new, &mut from, usize::MAX, now, untold), 1);
        assert!(new.follow(now, usize::MAX, |followed| panic!("{followed:?} was told of")));
        let header = *new_log.look_up(&late, now).expect("copied").header();
        assert_eq!((header.expires_ns, header.life_ms, header.group, header.flags), (START + 5 * SECOND, 7_000, 5, 0));
        assert_eq!(read(&new_log, &late, now), Some(vec![5; 500]));
        // What it stores in the new log while the rest is copied is told of there.
        let (last, first) = (FrameKey::new(3, 2), FrameKey::new(4, 1));
        kernel_stores(&pages, last, &[6; 500]);
        assert!(old.follow(now, usize::MAX, |_| {}));
        kernel_stores(&new_pages, first, &[7; 500]);
        let mut told = Vec::new();
        assert_eq!(copy_into(&old, &mut new, &mut from, usize::MAX, now, |followed| told.push(followed.key)), 1);
        assert_eq!(told, [first]);
    }
}

/// What the kernel program has stored and the dead daemon has not followed is told of once, by the next one.
#[test]
fn what_was_not_followed_is_told_of_by_the_next_daemon() {
    let (pages, mut writer, _) = over(Sizes::new(1, 1), 0);
    let keys: Vec<_> = (1..=6).map(|seq_num| FrameKey::new(1, seq_num)).collect();
    for key in &keys[..3] {
        kernel_stores(&pages, *key, b"stored");
    }
    let lane: Lane = pages.lanes.read(0);
    let mut told = Vec::new();
    assert!(writer.follow(START, usize::MAX, |followed| told.push(followed.key)));
    // It ends before it says how far it has come.
    let (tail, followed, counts) = (offset_of!(Lane, tail), offset_of!(Lane, followed), offset_of!(Lane, records));
    pages.lanes.word(tail).store(lane.tail, Ordering::SeqCst);
    pages.lanes.word(followed).store(lane.followed, Ordering::SeqCst);
    pages.lanes.word(counts).store(0, Ordering::SeqCst);
    drop(writer);
    for key in &keys[3..] {
        kernel_stores(&pages, *key, b"stored");
    }
    let (mut writer, log, adopted) = adopt(Arc::clone(&pages), SEED, 0).expect("a log");
    assert_eq!(adopted, Adopted { frames: 3, unfollowed: 3, ..Adopted::default() });
    assert!(writer.follow(START, usize::MAX, |followed| told.push(followed.key)));
    assert_eq!(told, keys);
    assert!(keys.iter().all(|key| read(&log, key, START).is_some()));
    assert_eq!(writer.live(), 6);
    walk(&pages, 0);
}

/// The oldest record of a full lane is one that a kernel writer never commits: `put` fails at once, and only for as long as the
/// hole has to be waited for.
#[test]
fn a_full_lane_behind_a_hole_recovers() {
    let (pages, mut writer, log) = over(Sizes::new(1, 1), 0);
    never_committed(&pages, &FrameKey::new(1, 1));
    let bytes = vec![1; 60_000];
    let (mut stored, mut busy) = (0, 0);
    let mut now = START;
    for seq_num in 2..2_000 {
        now += 1_000_000;
        let start = Instant::now();
        match put(&mut writer, &frame(FrameKey::new(1, seq_num), Class::Tx, &bytes), now) {
            Put::Busy if stored > 0 && now < START + HOLE_PATIENCE_NS + 2_000_000 => {
                busy += 1;
                // 5 ms, and more where this machine has other work.
                assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
            }
            Put::Stored => stored += 1,
            other => panic!("{other:?} after {} ms", (now - START) / 1_000_000),
        }
        // The other lane goes on.
        if seq_num % 100 == 0 {
            assert_eq!(put(&mut writer, &frame(FrameKey::new(2, seq_num), Class::Block, b"b"), now), Put::Stored);
        }
    }
    assert!(busy > 100 && stored > 1_000, "{busy} busy, {stored} stored");
    assert!(read(&log, &FrameKey::new(1, 1_999), now).is_some());
    walk(&pages, 0);
}
