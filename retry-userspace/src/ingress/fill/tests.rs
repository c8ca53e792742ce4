use retry_common::acl::Prefix;

use super::*;
use crate::acl::Rules;
use crate::counters::StoredBySource;
use crate::framelog::{self, Log, Pages, Sizes};
use crate::ingress::testing::{count, fill, frame};

type Told = Arc<Mutex<Vec<(FrameKey, u32, Vec<u8>)>>>;

/// A fill, a reader of its log, and what it told.
fn scene() -> (Fill, Log, Told) {
    let pages = Arc::new(Pages::plain(Sizes::new(16 << 20, 16 << 20)).expect("memory"));
    let (writer, log) = framelog::open(pages, 1, 1 << 20);
    let told = Told::default();
    let telling = Arc::clone(&told);
    let on_stored: OnStored = Box::new(move |key, life_ms, bytes| {
        telling.lock().expect("no panic").push((key, life_ms, bytes.to_vec()));
    });
    let fill = Fill::new(fill().config.clone(), writer, Arc::default(), Some(on_stored));
    (fill, log, told)
}

/// The daemon ends: as much room as the next one may need is free, and what made way for it is counted.
#[test]
fn room_is_made_for_the_time_without_a_daemon() {
    let (fill, ..) = scene();
    let free = || {
        let [short, _] = LogUse::of(&fill.writer.lock().expect("no panic"), monotonic_ns()).lanes;
        short.size_bytes - short.used_bytes
    };
    let bytes = frame(1, 1).len().next_multiple_of(64) as u64;
    // Far more than the lane holds, in far less than ten seconds.
    for number in 1..=(16 << 20) / bytes * 2 {
        put(&fill, &frame(1, number), None, StoredFrom::Api).expect("stored");
        if number % 1_000 == 0 {
            fill.follow();
        }
    }
    assert!(free() < 4 << 20, "{} bytes are free", free());
    let before = count(&fill.counters, Counter::EvictedLapShort);
    std::thread::sleep(Duration::from_millis(110));
    fill.follow();
    fill.make_room_for_absence();
    assert!((4 << 20..5 << 20).contains(&free()), "{} bytes are free", free());
    assert!(count(&fill.counters, Counter::EvictedLapShort) > before);
}

/// Numbers are told of from wherever a frame comes, the shared store included, and once.
#[test]
fn numbers_of_new_frames_are_told() {
    let (fill, ..) = scene();
    let told = Arc::new(Mutex::new(Vec::new()));
    let telling = Arc::clone(&told);
    let fill = fill.telling_numbers(Some(Box::new(move |key, life_ms, _now_ns| {
        telling.lock().expect("no panic").push((*key, life_ms));
    })));
    let mut expected = Vec::new();
    for (flow, from) in (1..).zip([StoredFrom::Store, StoredFrom::Upstream, StoredFrom::Api]) {
        let bytes = frame(flow, 1);
        for _ in 0..2 {
            fill.put_for(&key_of(&bytes), &bytes, Some(700), from).expect("stored");
        }
        expected.push((key_of(&bytes), 700));
    }
    let bytes = frame(9, 1);
    let source = "[fd01::1]:7".parse().expect("an address");
    fill.store_now(&bytes, source, None, StoredFrom::Multicast, monotonic_ns());
    expected.push((key_of(&bytes), fill.config.life_ms[0]));
    assert_eq!(*told.lock().expect("no panic"), expected);
}

fn key_of(bytes: &[u8]) -> FrameKey {
    Frame::parse(bytes).expect("a frame").head().cache_key().expect("a key")
}

/// Stores a frame, whichever it is.
fn put(fill: &Fill, bytes: &[u8], life_ms: Option<u32>, from: StoredFrom) -> Result<Put, Refused> {
    fill.put_locked(None, bytes, life_ms, from)
}

#[test]
fn what_comes_by_another_way_is_stored_as_from_the_fabric() {
    let (fill, log, told) = scene();
    let ways = [
        (StoredFrom::Store, Counter::StoredStore),
        (StoredFrom::Upstream, Counter::StoredUpstream),
        (StoredFrom::Api, Counter::StoredApi),
    ];
    for (flow, (from, counter)) in (1..).zip(ways) {
        let bytes = frame(flow, 1);
        assert_eq!(fill.put_for(&key_of(&bytes), &bytes, None, from), Ok(Put::Stored));
        assert_eq!(put(&fill, &bytes, None, from), Ok(Put::Duplicate));
        assert_eq!(count(&fill.counters, counter), 1);
        let mut stored = Vec::new();
        let record = log.look_up(&key_of(&bytes), monotonic_ns()).expect("stored");
        assert!(log.copy(&record, &mut stored));
        assert_eq!(stored, bytes);
    }
    assert_eq!((count(&fill.counters, Counter::FramesCached), count(&fill.counters, Counter::FrameDuplicate)), (3, 3));
    // None of them was received here, and what came from the shared store does not go back there.
    assert_eq!(count(&fill.counters, Counter::FramesReceived), 0);
    let flows = |told: &Told| told.lock().expect("no panic").iter().map(|one| one.2.clone()).collect::<Vec<_>>();
    assert_eq!(flows(&told), [frame(2, 1), frame(3, 1)]);
}

#[test]
fn a_life_that_is_given_holds_else_that_of_the_class() {
    let (fill, log, told) = scene();
    let (short, long) = (frame(1, 1), frame(1, 2));
    let before_ns = monotonic_ns();
    put(&fill, &short, Some(5_000), StoredFrom::Api).expect("stored");
    put(&fill, &long, None, StoredFrom::Api).expect("stored");
    let at = |seconds: u64| before_ns + seconds * 1_000_000_000;
    assert!(log.look_up(&key_of(&short), at(4)).is_some() && log.look_up(&key_of(&long), at(59)).is_some());
    let later_ns = monotonic_ns() - before_ns;
    assert!(log.look_up(&key_of(&short), at(6) + later_ns).is_none());
    assert!(log.look_up(&key_of(&long), at(61) + later_ns).is_none());
    let lives: Vec<u32> = told.lock().expect("no panic").iter().map(|one| one.1).collect();
    assert_eq!(lives, [5_000, 60_000]);
}

#[test]
fn what_is_refused_is_not_stored() {
    let (fill, log, told) = scene();
    let bytes = frame(1, 1);
    let other = key_of(&frame(1, 2));
    assert_eq!(fill.put_for(&other, &bytes, None, StoredFrom::Upstream), Err(Refused::OtherKey));
    assert_eq!(put(&fill, &frame(1, 0), None, StoredFrom::Api), Err(Refused::Unnumbered));
    assert_eq!(put(&fill, &bytes[..91], None, StoredFrom::Api), Err(Refused::Undecodable));
    assert!(log.look_up(&other, monotonic_ns()).is_none() && log.look_up(&key_of(&bytes), monotonic_ns()).is_none());
    assert!(told.lock().expect("no panic").is_empty());
    assert_eq!(count(&fill.counters, Counter::FramesCached), 0);
}

/// A bundle of one member of 8 bytes that names this group.
fn bundle(seq: u64, group_index: u16, shard_bits: u8) -> Vec<u8> {
    let mut bytes = frame(9, seq);
    bytes.truncate(76);
    bytes[6] = 0x08;
    bytes[56..58].copy_from_slice(&group_index.to_be_bytes());
    bytes[58..60].copy_from_slice(&[shard_bits, 0]);
    bytes[60..62].copy_from_slice(&1_u16.to_be_bytes());
    bytes[62..66].copy_from_slice(&10_u32.to_be_bytes());
    bytes[66..68].copy_from_slice(&8_u16.to_be_bytes());
    bytes
}

#[test]
fn a_bundle_is_stored_when_its_group_is_one_of_our_shards() {
    let (fill, log, told) = scene();
    // Two shard bits; what the sender says of its own is not judged.
    for (seq, (group, bits)) in (1..).zip([(0, 2), (3, 2), (3, 0), (1, 12)]) {
        let bytes = bundle(seq, group, bits);
        assert_eq!(put(&fill, &bytes, None, StoredFrom::Tee), Ok(Put::Stored), "{group}");
        let record = log.look_up(&key_of(&bytes), monotonic_ns()).expect("stored");
        assert_eq!(record.header().group, group);
    }
    told.lock().expect("no panic").clear();
    for (seq, group) in (100..).zip([4, 0x0FFF, 0x1000, 0xFFFB, 0xFFFD, 0xFFFE, 0xFFFF]) {
        let bytes = bundle(seq, group, 2);
        for from in [StoredFrom::Store, StoredFrom::Upstream, StoredFrom::Api] {
            assert_eq!(put(&fill, &bytes, None, from), Err(Refused::OtherGroup), "{group:#x}");
        }
        fill.store_now(&bytes, "[fd01::1]:9000".parse().expect("an address"), None, StoredFrom::Tee, monotonic_ns());
        assert!(log.look_up(&key_of(&bytes), monotonic_ns()).is_none());
    }
    assert!(told.lock().expect("no panic").is_empty());
    assert_eq!(count(&fill.counters, Counter::FrameOtherGroup), 7);
}

#[test]
fn a_publisher_that_started_again_replaces_its_frame_and_is_told() {
    let (fill, _, told) = scene();
    let (old, mut new) = (frame(1, 1), frame(1, 1));
    new[99] = 1;
    let from: SocketAddrV6 = "[fd01::1]:9000".parse().expect("an address");
    for bytes in [&old, &new, &new] {
        fill.store_now(bytes, from, Some(*from.ip()), StoredFrom::Tee, monotonic_ns());
    }
    let counted = [Counter::StoredTee, Counter::FrameReplaced, Counter::FrameDuplicate, Counter::FramesReceived];
    assert_eq!(counted.map(|counter| count(&fill.counters, counter)), [2, 1, 1, 3]);
    assert_eq!(told.lock().expect("no panic").len(), 2);
    let stored = fill.sources.with_kernel(&StoredBySource::default());
    assert_eq!((stored.sources, stored.other), ([(*from.ip(), 2)].into(), 0), "the duplicate is not stored");
    // What came by another way than the network has no source that is known.
    let bytes = frame(1, 2);
    fill.put_for(&key_of(&bytes), &bytes, None, StoredFrom::Upstream).expect("stored");
    assert_eq!(fill.sources.with_kernel(&StoredBySource::default()).other, 1);
}

/// A backend's word makes no life longer; an operator's may.
#[test]
fn a_frame_of_a_backend_lives_no_longer_than_its_class() {
    let (fill, log, _) = scene();
    for (number, from, wanted_ms) in
        [(1, StoredFrom::Store, 60_000), (2, StoredFrom::Upstream, 60_000), (3, StoredFrom::Api, 3_600_000)]
    {
        let bytes = frame(5, number);
        fill.put_for(&key_of(&bytes), &bytes, Some(3_600_000), from).expect("stored");
        let record = log.look_up(&key_of(&bytes), monotonic_ns()).expect("stored");
        assert_eq!(record.header().life_ms, wanted_ms, "{from:?}");
    }
}

/// Neither the network nor a backend changes a frame that is held; an operator does.
#[test]
fn the_first_frame_of_a_key_stays() {
    let pages = Arc::new(Pages::plain(Sizes::new(16 << 20, 16 << 20)).expect("memory"));
    let (writer, log) = framelog::open(pages, 1, 1 << 20);
    let config = Config { replace_after: Duration::from_secs(60), ..fill().config.clone() };
    let fill = Fill::new(config, writer, Arc::default(), None);
    let (first, mut other) = (frame(5, 1_000), frame(5, 1_000));
    other[99] = 1;
    let key = key_of(&first);
    let from: SocketAddrV6 = "[fd01::1]:9000".parse().expect("an address");
    let held = || {
        let mut bytes = Vec::new();
        let record = log.look_up(&key, monotonic_ns()).expect("held");
        assert!(log.copy(&record, &mut bytes));
        bytes
    };
    for bytes in [&first, &other, &first] {
        fill.store_now(bytes, from, Some(*from.ip()), StoredFrom::Tee, monotonic_ns());
    }
    for from in [StoredFrom::Store, StoredFrom::Upstream] {
        assert_eq!(fill.put_for(&key, &other, None, from), Ok(Put::Conflict), "{from:?}");
    }
    assert_eq!(held(), first);
    let counted = [Counter::StoredTee, Counter::FrameConflict, Counter::FrameDuplicate, Counter::FrameReplaced];
    assert_eq!(counted.map(|counter| count(&fill.counters, counter)), [1, 3, 1, 0]);
    assert_eq!(fill.put_for(&key, &other, None, StoredFrom::Api), Ok(Put::Replaced));
    assert_eq!(held(), other);
}

#[test]
fn frames_of_a_source_that_is_no_publisher_are_counted() {
    let (fill, _) = crate::ingress::testing::fill_and_log();
    let acl = crate::acl::testing::all_admitted();
    let publishers = [Prefix::of("fd01::1".parse().expect("an address"), 128)].into();
    acl.replace(&Rules { publishers: Some(publishers), ..Rules::default() }).expect("room");
    let fill = Arc::into_inner(fill).expect("no other").admitting(acl);
    for (number, source, origin) in [
        (1, "[fd01::1]:9000", Some("fd01::1")),
        (2, "[fd01::2]:9000", Some("fd01::2")),
        // Of this host, which tells no source.
        (3, "[::1]:9000", None),
    ] {
        let origin = origin.map(|origin| origin.parse().expect("an address"));
        let source = source.parse().expect("an address");
        fill.store_now(&frame(1, number), source, origin, StoredFrom::Tee, monotonic_ns());
    }
    let counted = [Counter::FramesReceived, Counter::FramesCached, Counter::FrameNoPublisher];
    assert_eq!(counted.map(|counter| count(&fill.counters, counter)), [3, 2, 1]);
}
