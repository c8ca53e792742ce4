//! The log against a plain model: never a wrong byte, and nothing lost that is not counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use retry_common::counter::Counter;
use retry_common::decide::Multicast;
use retry_common::holddown::HoldDown;
use retry_common::key::FrameKey;
use retry_common::wire::frame::Class;

use super::{Log, NewFrame, Pages, Put, Sizes, Writer, open};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;
const LIFE_MS: u32 = 60_000;

/// One segment a lane.
fn small(max_keys: u64) -> (Writer, Log) {
    let pages = Pages::plain(Sizes::new(1, 1)).expect("memory");
    open(Arc::new(pages), 0x5eed, max_keys)
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
    assert_eq!(writer.put(&frame(key, Class::Tx, &bytes), START), Put::Stored);
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
    assert_eq!(writer.put(&frame(key, Class::Tx, b"one"), START), Put::Stored);
    assert_eq!(writer.put(&frame(key, Class::Tx, b"one"), START + SECOND), Put::Duplicate);
    assert_eq!(log.look_up(&key, START).expect("found").header().expires_ns, START + 60 * SECOND);
    assert_eq!(writer.put(&frame(key, Class::Tx, b"two"), START + SECOND), Put::Replaced);
    assert_eq!(read(&log, &key, START + SECOND), Some(b"two".to_vec()));
    assert_eq!(writer.live(), 1);
    // Of a life that is over the same bytes are a new frame.
    let later = START + 100 * SECOND;
    assert_eq!(writer.put(&frame(key, Class::Tx, b"two"), later), Put::Stored);
    assert_eq!(read(&log, &key, later), Some(b"two".to_vec()));
    assert_eq!(writer.drain_evictions().collect::<Vec<_>>(), [Counter::EvictedExpired]);
}

#[test]
fn what_no_datagram_can_be_is_refused() {
    let (mut writer, log) = small(0);
    let key = FrameKey::new(1, 1);
    assert_eq!(writer.put(&frame(key, Class::Tx, &[]), START), Put::TooLarge);
    assert_eq!(writer.put(&frame(key, Class::Tx, &vec![0; 65_536]), START), Put::TooLarge);
    let longest = vec![9; 65_535];
    assert_eq!(writer.put(&frame(key, Class::Anchor, &longest), START), Put::Stored);
    assert_eq!(read(&log, &key, START), Some(longest));
}

/// 60,000 puts of any size, several laps of both lanes, against a map.
#[test]
fn laps_lose_the_oldest_and_never_mix_anything_up() {
    let (mut writer, log) = small(0);
    let mut random = SmallRng::seed_from_u64(42);
    let mut model: HashMap<FrameKey, (Class, Vec<u8>)> = HashMap::new();
    let mut evicted = 0;
    let (mut stored, mut replaced) = (0u64, 0u64);
    for number in 0..60_000u64 {
        let class = if random.random_bool(0.2) { Class::Block } else { Class::Tx };
        // Now and then a key comes back with other bytes, or with the same.
        let seq_num = if random.random_bool(0.05) { random.random_range(1..=number + 1) } else { number + 1 };
        let key = FrameKey::new(class as u64, seq_num);
        let length = if random.random_bool(0.01) { 20_000 } else { random.random_range(66..4_000) };
        let salt: u8 = random.random();
        let bytes: Vec<u8> =
            (0..length).map(|at: usize| (at as u64).wrapping_mul(seq_num + u64::from(salt)).to_le_bytes()[0]).collect();
        match writer.put(&frame(key, class, &bytes), START + number) {
            Put::Stored => stored += 1,
            Put::Replaced => replaced += 1,
            Put::Duplicate => assert_eq!(model.get(&key).map(|(_, old)| old), Some(&bytes)),
            Put::TooLarge => panic!("{length} bytes"),
        }
        model.insert(key, (class, bytes));
        evicted += u64::try_from(writer.drain_evictions().count()).expect("few");
        if number % 5_000 == 0 {
            let found = model.iter().filter(|(key, (_, bytes))| match read(&log, key, START + number) {
                Some(read) => {
                    assert!(read == *bytes, "{key} has other bytes");
                    true
                }
                None => false,
            });
            assert_eq!(u64::try_from(found.count()).expect("few"), writer.live());
            // A replaced frame is neither gone nor new.
            assert_eq!(stored - evicted, writer.live(), "{stored} stored, {replaced} replaced, {evicted} evicted");
        }
    }
    assert!(evicted > 30_000 && replaced > 100, "{evicted} evicted, {replaced} replaced");
}

#[test]
fn a_burst_of_transactions_leaves_blocks_alone() {
    let (mut writer, log) = small(0);
    let block = FrameKey::new(9, 1);
    writer.put(&frame(block, Class::Block, &[1; 1_000]), START);
    for seq_num in 1..40_000 {
        writer.put(&frame(FrameKey::new(1, seq_num), Class::Tx, &[2; 1_000]), START);
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
        writer.put(&frame(FrameKey::new(1, seq_num), Class::Tx, &[1; 100]), START + seq_num);
    }
    assert_eq!(writer.live(), 3);
    assert_eq!(writer.drain_evictions().collect::<Vec<_>>(), [Counter::EvictedMaxKeys; 2]);
    assert!(read(&log, &FrameKey::new(1, 2), START).is_none() && read(&log, &FrameKey::new(1, 3), START).is_some());
    writer.expire(START + 61 * SECOND, 100);
    assert_eq!((writer.live(), writer.lane_use(START)[0].used_bytes), (0, 0));
    assert_eq!(writer.drain_evictions().collect::<Vec<_>>(), [Counter::EvictedExpired; 3]);
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
            writer.put(&frame(FrameKey::new(5, seq_num), Class::Tx, &bytes_of(seq_num)), START);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (whole, none) = reader.join().expect("no torn frame");
    assert!(whole > 1_000 && none > 1_000, "{whole} whole, {none} none");
}
