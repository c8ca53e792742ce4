//! Frames that the program stores, and those that it leaves to the daemon.

use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use retry_common::{
    abi::{
        KERNEL_FRAME_MAX, KERNEL_STORE_MAX, RECORD_HEADER_LEN, SEGMENT_LEN, SEGMENT_LONG_TAIL, SLOT_LEN, Settings,
        setting_flag,
    },
    acl::Prefix,
    checksum,
    counter::Counter,
    group::{self, BeefBits, ShardBits, Sharding},
    index::{self, BUCKET_ENTRIES},
    key::FrameKey,
    wire::frame::Frame,
};
use retry_testbed::{
    net::packet::{Checksum, ETHERTYPE_VLAN, Extension, PacketBuilder},
    peers::{
        answer::nack,
        frames::{Flow, Kind},
    },
    xdp::{
        fixture::{FRAME_PORT, JOINED, LIFE_MS, Loaded, NACK_ADDRESS, Ran, monotonic_ns, slow_machine},
        testrun::Action,
    },
};
use retry_userspace::parts::acl::Rules;
use retry_userspace::parts::framelog::{self, Log, NewFrame, Pages, Put, Removed, Sizes, Writer};

use crate::verdicts::with_program;

const SOURCE: Ipv6Addr = Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, 0x77);

fn to_group(index: u16, frame: &[u8]) -> PacketBuilder {
    let group = Ipv6Addr::from(group::address(0xFF05, 0x000B, index));
    let at = |ip, port| SocketAddrV6::new(ip, port, 0, 0);
    PacketBuilder::udp(at(SOURCE, 50_000), at(group, FRAME_PORT), frame)
}

/// The next frame of a flow of 2 shard bits, in its packet.
fn next(flow: &mut Flow) -> (FrameKey, PacketBuilder) {
    let (key, group) = (flow.next_key(), flow.group_index());
    (key, to_group(group, &flow.next_frame()))
}

/// One right checksum in 65,536 is what stands where a device is to finish it.
fn seems_unfinished(packet: &PacketBuilder) -> bool {
    let (source, destination) = (packet.src.ip().octets(), packet.dst.ip().octets());
    right_checksum(packet) == checksum::udp_ipv6_unfinished(&source, &destination, length(packet))
}

fn right_checksum(packet: &PacketBuilder) -> u16 {
    let (source, destination) = (packet.src.ip().octets(), packet.dst.ip().octets());
    let sum = checksum::partial(&packet.payload);
    checksum::udp_ipv6(&source, &destination, packet.src.port(), packet.dst.port(), length(packet), sum)
}

fn length(packet: &PacketBuilder) -> u16 {
    u16::try_from(packet.payload.len()).expect("short")
}

fn tx() -> Flow {
    Flow::new(Kind::Tx, 2, 2, 20..=1_300)
}

/// A packet with a new frame that the program stores.
pub(crate) fn plain_frame() -> Vec<u8> {
    next(&mut tx()).1.build()
}

/// Passed on as it came, and not stored.
fn left(loaded: &mut Loaded, name: &str, packet: &PacketBuilder) {
    left_and_counted(loaded, name, packet, &[]);
}

fn left_and_counted(loaded: &mut Loaded, name: &str, packet: &PacketBuilder, counted: &[(Counter, u64)]) {
    let bytes = packet.build();
    let ran = loaded.run(&bytes).expect("a legal length");
    assert_eq!((ran.action, ran.packet, &*ran.counted), (Action::Pass, bytes, counted), "{name}");
    assert_eq!(loaded.follow(), [], "{name}");
}

fn stored(loaded: &mut Loaded, name: &str, packet: &PacketBuilder) {
    let ran = loaded.run(&packet.build()).expect("a legal length");
    assert_eq!((ran.action, ran.counted), (Action::Drop, vec![]), "{name}");
}

fn class(kind: Kind) -> usize {
    match kind {
        Kind::Block | Kind::Coinbase | Kind::BlockFragment => 1,
        Kind::SubtreeData | Kind::SubtreeFragment => 2,
        Kind::Anchor => 3,
        Kind::Beef | Kind::BeefFragment => 4,
        _ => 0,
    }
}

/// Each source has a number of its own, and what is left to the daemon is in none.
#[test]
fn stored_frames_are_counted_by_their_source() {
    with_program("stored_frames_are_counted_by_their_source", |loaded| {
        let mut flow = tx();
        let from = |number: u16| Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 1, number);
        for round in 0..3_u16 {
            for number in 0..=round * 10 {
                let (_, packet) = next(&mut flow);
                let source = SocketAddrV6::new(from(number), 50_000, 0, 0);
                let packet = PacketBuilder::udp(source, packet.dst, &packet.payload);
                stored(loaded, "new", &packet);
                let again = loaded.run(&packet.build()).expect("a legal length");
                assert_eq!(again.action, Action::Pass, "the daemon judges it");
            }
        }
        let kept = u64::try_from(loaded.follow().len()).expect("few");
        let stored = loaded.stored_by_source().expect("the table");
        assert_eq!(stored.sources.values().sum::<u64>() + stored.other, kept);
        assert_eq!((stored.sources.len(), stored.other), (21, 0), "{stored:?}");
        assert_eq!((stored.sources.get(&from(0)), stored.sources.get(&from(20))), (Some(&3), Some(&1)), "{stored:?}");
    });
}

/// Frames of sources that no list of publishers names are the daemon's to count; who may ask says nothing of frames.
#[test]
fn frames_of_publishers_alone() {
    with_program("frames_of_publishers_alone", |loaded| {
        let set = |texts: &[(Ipv6Addr, u8)]| -> BTreeSet<Prefix> {
            texts.iter().map(|(address, length)| Prefix::of(*address, *length)).collect()
        };
        let named = |texts| Rules { publishers: Some(set(texts)), ..Rules::default() };
        let mut flow = tx();
        let other = Ipv6Addr::new(0xFD20, 0, 0, 0, 0, 0, 0, 1);
        for (name, rules, is_stored) in [
            ("itself", named(&[(SOURCE, 128)]), true),
            ("its prefix", named(&[(other, 128), (SOURCE, 64)]), true),
            ("another", named(&[(other, 16)]), false),
            ("its neighbour", named(&[(Ipv6Addr::from_bits(SOURCE.to_bits() ^ 1), 128)]), false),
            ("all", named(&[(other, 0)]), true),
            ("may not ask", Rules { deny: set(&[(SOURCE, 128)]), ..Rules::default() }, true),
            ("may not ask, and publishes", Rules { deny: set(&[(SOURCE, 128)]), ..named(&[(SOURCE, 64)]) }, true),
            ("may ask", Rules { allow: set(&[(SOURCE, 128)]), ..named(&[(other, 64)]) }, false),
            ("no list", Rules::default(), true),
        ] {
            loaded.set_acl(&rules).expect("room");
            let (_, packet) = next(&mut flow);
            if is_stored {
                stored(loaded, name, &packet);
                assert_eq!(loaded.follow().len(), 1, "{name}");
            } else {
                left(loaded, name, &packet);
            }
        }
    });
}

#[test]
fn frames_of_every_kind_and_length() {
    with_program("frames_of_every_kind_and_length", |loaded| {
        loaded.soil();
        for kind in Kind::CACHED.into_iter().filter(|kind| *kind != Kind::Bundle) {
            let longest = KERNEL_STORE_MAX - kind.header_length();
            let around = KERNEL_FRAME_MAX - kind.header_length();
            let long = [around - 1, around, around + 1, 4_096, 4_611, 8_192, longest - 1, longest];
            for length in (12..=40).chain([100, 300, 511, 512, 513, 924, 1_000, 1_360, 1_500, 2_045]).chain(long) {
                let mut flow = Flow::new(kind, 2, 2, length..=length);
                if !JOINED.contains(&flow.group_index()) {
                    flow = Flow::new(kind, 0, 2, length..=length);
                }
                let (key, packet) = next(&mut flow);
                let name = format!("{kind:?}, {length} bytes");
                stored(loaded, &name, &packet);
                // CachedFrame before the daemon has followed, and whole.
                let record = loaded.log().look_up(&key, monotonic_ns()).expect("found");
                let mut bytes = Vec::new();
                assert!(loaded.log().copy(&record, &mut bytes), "{name}");
                assert_eq!(bytes, packet.payload, "{name}");
                let header = record.header();
                let life = LIFE_MS[class(kind)];
                assert_eq!((header.group, header.life_ms), (flow.group_index(), life), "{name}");
                assert_eq!(header.partial, checksum::partial(&packet.payload), "{name}");
                assert_eq!(usize::from(header.class), class(kind), "{name}");
                assert_eq!(loaded.follow(), [(key, life, packet.payload.clone(), true)], "{name}");
            }
        }
        assert_eq!(loaded.writer().live(), 10 * 47);
    });
}

/// Whether a frame fits the interfaces that it leaves by is asked when it leaves: stored by the program, it is the daemon's to
/// send.
#[test]
fn a_frame_that_only_the_daemon_sends_is_stored_too() {
    with_program("a_frame_that_only_the_daemon_sends_is_stored_too", |loaded| {
        for (max_frame, length) in [(KERNEL_FRAME_MAX, 5_000), (KERNEL_FRAME_MAX, 3_400), (300, 300)] {
            let max_frame = u32::try_from(max_frame).expect("short");
            loaded.set(Settings { max_frame, ..loaded.settings() });
            let (key, packet) = next(&mut Flow::new(Kind::Tx, 2, 2, length..=length));
            stored(loaded, "new", &packet);
            assert_eq!(loaded.follow(), [(key, LIFE_MS[0], packet.payload.clone(), true)]);
            let listener = SocketAddrV6::new(SOURCE, 40_000, 0, 0);
            let ran = loaded.run(&PacketBuilder::udp(listener, NACK_ADDRESS, &nack(key)).build());
            let counted = ran.expect("a legal length").counted;
            assert!(counted.contains(&(Counter::HandedOver, 1)), "{length} bytes: {counted:?}");
        }
    });
}

/// A long frame that would fit the end of a segment goes on behind it, for the program does not look at records that begin there.
#[test]
fn no_long_frame_begins_at_the_end_of_a_segment() {
    with_program("no_long_frame_begins_at_the_end_of_a_segment", |loaded| {
        let life = Duration::from_secs(60);
        // The lane is one segment.
        let bytes = vec![1; 60_000];
        for number in 1..=278 {
            assert_eq!(loaded.put(FrameKey::new(0xE0, number), 2, &bytes, life, true), Put::Stored);
        }
        let header = Kind::Tx.header_length();
        let of = |length| next(&mut Flow::new(Kind::Tx, 2, 2, length - header..=length - header));
        let mut left_bytes = SEGMENT_LEN - 278 * record_len(60_000);
        for length in [1_000, 8_900, 8_900, 8_900, 8_900, 8_900, 8_900] {
            let (key, packet) = of(length);
            stored(loaded, &format!("{left_bytes} bytes before the end"), &packet);
            assert_eq!(loaded.follow(), [(key, LIFE_MS[0], packet.payload.clone(), true)]);
            left_bytes -= record_len(length);
        }
        assert!((record_len(8_900)..SEGMENT_LONG_TAIL).contains(&left_bytes), "{left_bytes}");
        // No room behind the segment: the daemon has made none.
        left_and_counted(loaded, "long", &of(8_900).1, &[(Counter::FillLeftRoom, 1)]);
        stored(loaded, "short", &of(3_300).1);
    });
}

/// Bytes of a record in the ring.
const fn record_len(frame: usize) -> usize {
    (RECORD_HEADER_LEN + frame).next_multiple_of(SLOT_LEN)
}

#[test]
fn what_a_socket_would_not_receive_is_left() {
    with_program("what_a_socket_would_not_receive_is_left", |loaded| {
        let mut flow = tx();
        let mut left_with = |name: &str, change: &dyn Fn(&mut PacketBuilder)| {
            let (_, mut packet) = next(&mut flow);
            change(&mut packet);
            left(loaded, name, &packet);
        };
        left_with("another port", &|packet| packet.dst.set_port(9_002));
        left_with("no checksum", &|packet| packet.checksum = Checksum::Value(0));
        left_with("a checksum that a device was to finish", &|packet| packet.checksum = Checksum::Partial);
        left_with("a tag", &|packet| packet.vlans.push((ETHERTYPE_VLAN, 7)));
        left_with("an extension header", &|packet| packet.extensions.push(Extension::HopByHop));
        left_with("another MAC", &|packet| packet.dst_mac = [0x33, 0x33, 0, 0, 0, 1]);
        left_with("a unicast MAC", &|packet| packet.dst_mac = [2, 0, 0, 0, 0, 1]);
        left_with("a group that is not joined", &|packet| {
            packet.dst.set_ip(Ipv6Addr::from(group::address(0xFF05, 0x000B, 1)));
            packet.dst_mac = group::multicast_mac(&packet.dst.ip().octets());
        });
        left_with("another scope", &|packet| {
            packet.dst.set_ip(Ipv6Addr::from(group::address(0xFF0E, 0x000B, 2)));
        });
        left_with("another fabric", &|packet| {
            packet.dst.set_ip(Ipv6Addr::from(group::address(0xFF05, 0x000C, 2)));
        });
        left_with("from a group", &|packet| packet.src.set_ip("ff02::1".parse().expect("an address")));
        left_with("from the unspecified address", &|packet| packet.src.set_ip(Ipv6Addr::UNSPECIFIED));
        left_with("a repair", &|packet| packet.src.set_port(NACK_ADDRESS.port()));
        left_with("lengths that disagree", &|packet| packet.udp_length = Some(100));
        left_with("longer than it is", &|packet| {
            let more = u16::try_from(packet.payload.len()).expect("short") + 20;
            (packet.udp_length, packet.ip_length) = (Some(more), Some(more));
        });
        left_with("IPv4", &|packet| packet.ethertype = 0x0800);
    });
}

/// Known only when the frame has been copied into the ring, whose room is given back then. One that a device was to finish is
/// not wrong: the daemon gets the frame, and nothing is counted.
#[test]
fn a_wrong_checksum_is_counted_and_takes_no_room() {
    with_program("a_wrong_checksum_is_counted_and_takes_no_room", |loaded| {
        let mut flow = tx();
        let used = |loaded: &mut Loaded| loaded.writer().lane_use(monotonic_ns()).map(|lane| lane.used_bytes);
        for bit in [1, 0x8000] {
            let (_, mut packet) = next(&mut flow);
            packet.checksum = Checksum::Value(right_checksum(&packet) ^ bit);
            left_and_counted(loaded, &format!("{bit:#x}"), &packet, &[(Counter::FillRefused, 1)]);
        }
        let (_, mut packet) = next(&mut flow);
        packet.checksum = Checksum::Partial;
        left(loaded, "unfinished", &packet);
        assert_eq!(used(loaded), [0, 0]);
        let (key, packet) = next(&mut flow);
        stored(loaded, "after them", &packet);
        assert_eq!(loaded.follow(), [(key, LIFE_MS[0], packet.payload, true)]);
    });
}

#[test]
fn what_the_daemon_judges_is_left() {
    with_program("what_the_daemon_judges_is_left", |loaded| {
        let mut flow = tx();
        let mut left_with = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let (_, mut packet) = next(&mut flow);
            packet.payload.resize(400, 1);
            packet.payload[88..92].copy_from_slice(&308u32.to_be_bytes());
            change(&mut packet.payload);
            left(loaded, name, &packet);
        };
        left_with("short", &|frame| frame.truncate(91));
        left_with("another magic", &|frame| frame[0] ^= 1);
        left_with("an unknown version", &|frame| frame[6] = 7);
        left_with("no number", &|frame| frame[48..56].fill(0));
        left_with("more payload than there is", &|frame| frame[88..92].copy_from_slice(&309u32.to_be_bytes()));
        left_with("an unknown message type", &|frame| (frame[6], frame[7]) = (4, 3));
        left_with("a fragment beyond its total", &|frame| {
            frame[6] = 3;
            frame[88..92].copy_from_slice(&296u32.to_be_bytes());
            frame[92..101].copy_from_slice(&[0, 0, 9, 9, 0, 3, 0, 3, 2]);
        });
        let (_, bundle) = next(&mut Flow::new(Kind::Bundle, 2, 2, 200..=300));
        left(loaded, "a bundle", &bundle);
        let legacy = Flow::new(Kind::Legacy, 2, 2, 200..=300).next_frame();
        left(loaded, "a legacy frame", &to_group(2, &legacy));
        let longest = KERNEL_STORE_MAX - Kind::Tx.header_length();
        left(loaded, "longer than a packet", &next(&mut Flow::new(Kind::Tx, 2, 2, longest + 1..=longest + 1)).1);
        loaded.set(Settings { lease_until_ns: 0, ..loaded.settings() });
        left(loaded, "no lease", &next(&mut tx()).1);
    });
}

#[test]
fn a_right_checksum_that_seems_unfinished_is_stored() {
    with_program("a_right_checksum_that_seems_unfinished_is_stored", |loaded| {
        let (key, mut packet) = next(&mut tx());
        packet.payload.truncate(packet.payload.len() & !1);
        let length = u32::try_from(packet.payload.len() - 92).expect("short");
        packet.payload[88..92].copy_from_slice(&length.to_be_bytes());
        // The last two bytes make it so.
        let last = packet.payload.len() - 2;
        let found = (0..=u16::MAX).any(|word| {
            packet.payload[last..].copy_from_slice(&word.to_be_bytes());
            seems_unfinished(&packet)
        });
        assert!(found, "each checksum has its word");
        stored(loaded, "it seems unfinished", &packet);
        assert_eq!(loaded.follow(), [(key, LIFE_MS[0], packet.payload, true)]);
    });
}

#[test]
fn frames_that_are_there_are_the_daemons() {
    with_program("frames_that_are_there_are_the_daemons", |loaded| {
        let (key, packet) = next(&mut tx());
        stored(loaded, "new", &packet);
        let again = packet.build();
        // Before and after the daemon knows of it.
        assert_eq!(loaded.run(&again).expect("legal").action, Action::Pass);
        assert_eq!(loaded.follow().len(), 1);
        left_known(loaded, &packet);
        assert_eq!(loaded.follow(), []);
        let life = Duration::from_secs(60);
        assert_eq!(loaded.put(key, 2, &packet.payload, life, false), Put::Duplicate);
        assert_eq!(loaded.put(key, 2, &[1; 100], life, false), Put::Replaced);
        assert_eq!(loaded.writer().live(), 1);
        assert_eq!(loaded.writer().remove(&key, monotonic_ns(), |_| {}), Removed::Yes);
        stored(loaded, "new again", &packet);
        assert_eq!(loaded.follow(), [(key, LIFE_MS[0], packet.payload.clone(), true)]);
        assert_eq!(loaded.writer().live(), 1);
    });
}

/// The program answers for a frame that it has stored although its bucket was full; once the daemon has followed, the frame stands
/// in the bucket and the oldest there has made way. When the overflow bucket is full too, the frame is the daemon's.
#[test]
fn frames_whose_bucket_is_full() {
    with_program("frames_whose_bucket_is_full", |loaded| {
        let Settings { hash_seed, bucket_mask, .. } = loaded.settings();
        let place = |key: &FrameKey| index::bucket(index::hash(key, hash_seed), bucket_mask);
        let mut others = (0..).map(|number| FrameKey::new(0xF0, number));
        let mut fill_up = |loaded: &mut Loaded, key: &FrameKey| {
            let full: Vec<FrameKey> =
                others.by_ref().filter(|other| place(other) == place(key)).take(BUCKET_ENTRIES).collect();
            for other in &full {
                assert_eq!(loaded.put(*other, 2, &[1; 100], Duration::from_secs(60), false), Put::Stored);
            }
            full
        };
        let mut flow = tx();
        let (key, packet) = next(&mut flow);
        let full = fill_up(loaded, &key);
        stored(loaded, "its bucket is full", &packet);
        let listener = SocketAddrV6::new(SOURCE, 40_000, 0, 0);
        let nack = PacketBuilder::udp(listener, NACK_ADDRESS, &nack(key)).build();
        let counts = |ran: &Ran, counter| ran.counted.contains(&(counter, 1));
        let ran = loaded.run(&nack).expect("a legal length");
        assert!(counts(&ran, Counter::CacheHits) && !counts(&ran, Counter::CacheMisses), "{:?}", ran.counted);
        left_known(loaded, &packet);
        assert_eq!(loaded.follow(), [(key, LIFE_MS[0], packet.payload.clone(), true)]);
        assert_eq!(loaded.writer().live(), 8);
        let held = |loaded: &Loaded, key: &FrameKey| loaded.log().look_up(key, monotonic_ns()).is_some();
        assert_eq!((held(loaded, &full[0]), held(loaded, &full[1]), held(loaded, &key)), (false, true, true));
        assert!(counts(&loaded.run(&nack).expect("a legal length"), Counter::CacheHits));

        // What is put is followed first, so the buckets are filled before.
        let overflow = |key: &FrameKey| index::overflow(index::hash(key, hash_seed), bucket_mask);
        let mut crowd = Vec::new();
        while crowd.len() < BUCKET_ENTRIES + 2 {
            let (next_key, packet) = next(&mut flow);
            if overflow(&next_key) == overflow(&key) {
                fill_up(loaded, &next_key);
                crowd.push(packet);
            }
        }
        let last = crowd.pop().expect("more than one");
        let one_too_many = crowd.pop().expect("more than one");
        for packet in &crowd {
            stored(loaded, "there is a place in the overflow bucket", packet);
        }
        let ran = loaded.run(&one_too_many.build()).expect("a legal length");
        assert_eq!((ran.action, &*ran.counted), (Action::Pass, &[(Counter::FillLeftBucket, 1)][..]));
        assert_eq!(loaded.follow().len(), BUCKET_ENTRIES);
        stored(loaded, "the daemon has emptied the overflow bucket", &last);
    });
}

/// Passed on because the log has it.
fn left_known(loaded: &Loaded, packet: &PacketBuilder) {
    let ran = loaded.run(&packet.build()).expect("a legal length");
    assert_eq!((ran.action, &*ran.counted), (Action::Pass, &[(Counter::FillLeftKnown, 1)][..]));
}

#[test]
fn named_sources_alone() {
    with_program("named_sources_alone", |loaded| {
        let mut sources = loaded.take_sources().expect("not taken");
        let base = loaded.settings();
        loaded.set(Settings { flags: base.flags | setting_flag::NAMED_SOURCES, ..base });
        let mut flow = tx();
        left(loaded, "no publisher is named", &next(&mut flow).1);
        let other: Ipv6Addr = "fd10::78".parse().expect("an address");
        sources.set(&BTreeSet::from([SOURCE, other])).expect("room");
        stored(loaded, "named", &next(&mut flow).1);
        sources.set(&BTreeSet::from([other])).expect("room");
        assert_eq!(loaded.follow().len(), 1);
        left(loaded, "no longer named", &next(&mut flow).1);
    });
}

/// The ring comes round under the kernel's hand: what it stores is whole, what has no room is left, and the daemon's count
/// of frames is that of the index.
#[test]
fn around_the_ring() {
    with_program("around_the_ring", |loaded| {
        // What the ring holds more than once.
        let frames = if slow_machine() { 8_000 } else { 12_000 };
        let mut flow = Flow::new(Kind::Tx, 2, 2, 2_900..=3_200);
        let mut kept = Vec::new();
        let (mut passed, mut seen) = (0, 0);
        for number in 0..frames {
            let (key, packet) = next(&mut flow);
            match loaded.run(&packet.build()).expect("legal").action {
                Action::Drop => kept.push((key, packet.payload)),
                Action::Pass => passed += 1,
                other => panic!("{other:?}"),
            }
            if number % 200 == 199 {
                seen += loaded.follow().len();
                loaded.writer().make_ahead([1 << 14; 2], u32::MAX, monotonic_ns());
            }
        }
        assert_eq!((kept.len() + passed, seen), (frames, kept.len()));
        assert_eq!(passed, 0, "room was made in time");
        let mut found = 0;
        for (key, bytes) in &kept {
            if let Some(record) = loaded.log().look_up(key, monotonic_ns()) {
                let mut copy = Vec::new();
                assert!(loaded.log().copy(&record, &mut copy));
                assert_eq!(&copy, bytes);
                found += 1;
            }
        }
        assert_eq!(found, loaded.writer().live());
        assert!((2_000..6_000).contains(&found), "{found}");
        // Without the daemon the room ends, and the rest is left.
        let (mut taken, mut left) = (0, 0);
        for _ in 0..frames {
            let ran = loaded.run(&next(&mut flow).1.build()).expect("legal");
            if ran.action == Action::Drop {
                taken += 1;
            } else {
                assert_eq!(ran.counted, [(Counter::FillLeftRoom, 1)]);
                left += 1;
            }
        }
        assert!(taken > 100 && left > 1_000, "{taken} taken, {left} left");
        assert_eq!(loaded.follow().len(), taken);
    });
}

/// Kernel and daemon together against the daemon alone: random datagrams, many of them bent, again, or replaced. Each log
/// then has the same frames, by the same keys, for the same groups and lives.
#[test]
fn kernel_and_daemon_store_what_the_daemon_alone_stores() {
    with_program("kernel_and_daemon_store_what_the_daemon_alone_stores", |loaded| {
        let mut random = SmallRng::seed_from_u64(0xF111);
        let sharding = Sharding { shard: ShardBits::new(2).expect("in range"), beef: BeefBits::default() };
        let mut alone = Alone::new();
        let mut flows: Vec<Flow> = Kind::CACHED
            .into_iter()
            .chain([Kind::Legacy])
            .flat_map(|kind| [0, 2].map(|shard| Flow::new(kind, shard, 2, 0..=1_200)))
            .collect();
        let (mut by_kernel, mut keys, mut last) = (0, Vec::new(), Vec::new());
        let rounds = if slow_machine() { 2_000 } else { 20_000 };
        for _ in 0..rounds {
            let flow = random.random_range(0..flows.len());
            let flow = &mut flows[flow];
            let (key, group) = (flow.next_key(), flow.group_index());
            let mut frame = flow.next_frame();
            match random.random_range(0..10) {
                // Bent in the header.
                0 | 1 => {
                    let at = random.random_range(0..frame.len().min(104));
                    frame[at] ^= 1 << random.random_range(0..8);
                }
                2 => frame.truncate(random.random_range(1..=frame.len())),
                // Again, or other bytes by the same key.
                3 if !last.is_empty() => frame.clone_from(&last),
                4 if last.len() > 110 => {
                    frame.clone_from(&last);
                    let end = frame.len() - 1;
                    frame[end] ^= 1;
                }
                _ => {}
            }
            keys.push(key);
            last.clone_from(&frame);
            let taken = loaded.run(&to_group(group, &frame).build()).expect("legal").action == Action::Drop;
            by_kernel += u32::from(taken);
            if let Some(new) = judge(&frame, &sharding) {
                keys.push(new.key);
                alone.writer.put(&new, monotonic_ns(), |_| {});
                if !taken {
                    loaded.writer().put(&new, monotonic_ns(), |_| {});
                }
            } else {
                assert!(!taken, "stored what is no frame: {frame:02x?}");
            }
        }
        loaded.follow();
        assert!(by_kernel > rounds / 4, "{by_kernel} of {rounds} by the kernel");
        assert_eq!(loaded.writer().live(), alone.writer.live());
        for key in keys {
            assert_eq!(record(loaded.log(), &key), record(&alone.log, &key), "{key}");
        }
    });
}

/// A log that no kernel writes.
struct Alone {
    writer: Writer,
    log: Log,
}

impl Alone {
    fn new() -> Self {
        let pages = Arc::new(Pages::plain(Sizes::new(16 << 20, 16 << 20)).expect("memory"));
        let (writer, log) = framelog::open(pages, 1, 0);
        Self { writer, log }
    }
}

/// The daemon's judgement.
fn judge<'a>(bytes: &'a [u8], sharding: &Sharding) -> Option<NewFrame<'a>> {
    let frame = Frame::parse(bytes).ok()?;
    let (key, class) = (frame.head().cache_key()?, frame.head().class()?);
    let group = frame.head().group_index(sharding)?;
    Some(NewFrame { key, class, group, life_ms: LIFE_MS[class as usize], daemon_only: false, bytes })
}

/// What matters of a record: group, class, life, sum and bytes.
fn record(log: &Log, key: &FrameKey) -> Option<(u16, u8, u32, u16, Vec<u8>)> {
    let record = log.look_up(key, monotonic_ns())?;
    let mut bytes = Vec::new();
    assert!(log.copy(&record, &mut bytes), "no writer is at work");
    let header = record.header();
    Some((header.group, header.class, header.life_ms, header.partial, bytes))
}
