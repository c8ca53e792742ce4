//! Every frame version, lost on the way to a listener, asked for and recovered: by unicast, multicast and both, through
//! XDP and through the socket, on a flat link and through a bridge.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::net::loss::{LossPoint, LossRule};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, Verdict};
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, datagrams_from, flags, is_root, two_hosts};

/// Frames of each kind.
const EACH: usize = 4;
/// Hop limit of a multicast repair, by default.
const REPAIR_HOPS: u8 = 1;
/// The system's hop limit.
const ANSWER_HOPS: u8 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Flat,
    Bridged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Repair {
    multicast: bool,
    unicast: bool,
}

const UNICAST: Repair = Repair { multicast: false, unicast: true };
const MULTICAST: Repair = Repair { multicast: true, unicast: false };
const BOTH: Repair = Repair { multicast: true, unicast: true };

/// A link and what goes over it.
#[derive(Clone, Debug)]
struct Link {
    shape: Shape,
    mtu: u16,
    /// Of the frames' payloads, bytes.
    lengths: RangeInclusive<usize>,
    /// The client leaves checksums to its device: the NACKs, and on a flat link the frames, arrive with unfinished ones.
    is_offloaded: bool,
}

impl Link {
    const fn of(shape: Shape) -> Self {
        Self { shape, mtu: 1500, lengths: 90..=1201, is_offloaded: false }
    }

    fn flows(&self) -> Vec<Flow> {
        // Fragments by the three, everything else spread over the four shards; odd lengths too.
        (0u16..).zip(Kind::CACHED).map(|(shard, kind)| Flow::new(kind, shard, 2, self.lengths.clone())).collect()
    }
}

fn recovers(name: &str, link: &Link, xdp: &str, repair: Repair) {
    if !is_root(name) {
        return;
    }
    let shape = link.shape;
    let fabric = match shape {
        Shape::Flat => Fabric::flat(link.mtu),
        Shape::Bridged => Fabric::bridged(&["endpoint", "client", "publisher"], link.mtu),
    }
    .expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    if link.is_offloaded {
        client.ns.run(&["ethtool", "-K", INTERFACE, "tx", "on"]).expect("it is taken");
    }
    let publisher = if shape == Shape::Flat { client } else { fabric.host("publisher").expect("a publisher") };
    let mode =
        [format!("-beacon-flags-multicast={}", repair.multicast), format!("-beacon-flags-unicast={}", repair.unicast)];
    let flags = flags(xdp, &[&mode[0], &mode[1]]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");

    let journal = Arc::new(Journal::new());
    let mut flows = link.flows();
    let mut groups: Vec<_> = flows.iter().map(|flow| group(flow.group_index())).collect();
    groups.sort();
    groups.dedup();
    let listener = Listener::start(
        &client.ns,
        ListenerSettings::new(groups.clone(), endpoint.nack_address()),
        Arc::clone(&journal),
    )
    .expect("a listener");
    for host in ["endpoint", "client"] {
        fabric.await_members(host, &groups).expect("members");
    }
    // All of the publisher's frames, and none of the repairs.
    let place = if shape == Shape::Flat { LossPoint::Arrival } else { LossPoint::Link };
    let loss = fabric.lose("client", &LossRule::random(1000).from(publisher.addr).at(place)).expect("a loss");
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");

    let publish = Publisher::open(&publisher.ns, Arc::clone(&journal)).expect("a publisher");
    for flow in &mut flows {
        for _ in 0..EACH {
            publish.publish(flow).expect("a frame leaves");
        }
    }
    let wanted = u64::try_from(journal.len()).expect("few");
    assert_eq!(journal.len(), Kind::CACHED.len() * EACH);
    await_count(&daemon, "bre_frames_cached_total", &[], wanted);
    assert!(loss.dropped().expect("a count") >= wanted, "the listener was to lose every frame");

    listener.expect(journal.keys());
    assert!(listener.settle(Duration::from_secs(10)), "open gaps: {:?}\n{}", listener.stats(), daemon.log());
    // What drains behind the frames: ACKs.
    std::thread::sleep(Duration::from_millis(150));
    let stats = listener.stop().expect("a listener's counts");
    assert_eq!(stats.complaints, Vec::<String>::new());
    assert_eq!((stats.recovered(), stats.unrecovered, stats.wrong_bytes), (wanted, 0, 0), "{stats:?}");
    assert_eq!((stats.misses, stats.throttled, stats.bad_answers), (0, 0, 0), "{stats:?}");
    if repair != BOTH {
        let (by_unicast, by_multicast) = if repair.unicast { (wanted, 0) } else { (0, wanted) };
        assert_eq!((stats.recovered_unicast, stats.recovered_multicast), (by_unicast, by_multicast));
    }

    let (mut acks, mut unicasts, mut multicasts) = (0, 0, 0);
    for packet in datagrams_from(&capture.take(), endpoint.addr) {
        if packet.src.port() != 9300 || packet.dst.port() == 9300 {
            continue;
        }
        assert_eq!(packet.src_mac, endpoint.mac);
        assert_eq!(packet.trailer, 0);
        if packet.dst.ip().is_multicast() {
            assert_eq!((packet.hop_limit, packet.dst.port()), (REPAIR_HOPS, 9001));
            assert_eq!(packet.dst_mac, retry_testbed::net::packet::multicast_mac(*packet.dst.ip()));
            let key = retry_testbed::peers::journal::key_of(&packet.payload).expect("a frame");
            assert_eq!(journal.compare(key, &packet.payload), Verdict::Same);
            multicasts += 1;
        } else {
            assert_eq!((packet.hop_limit, packet.dst_mac), (ANSWER_HOPS, client.mac));
            if packet.payload.len() == 16 {
                let seq_num = u64::from_be_bytes(packet.payload[8..].try_into().expect("eight bytes"));
                let ack = Answer::parse(&packet.payload, seq_num).expect("an answer");
                assert_eq!(ack, Answer::Ack { multicast: repair.multicast, unicast: repair.unicast });
                acks += 1;
            } else {
                let key = retry_testbed::peers::journal::key_of(&packet.payload).expect("a frame");
                assert_eq!(journal.compare(key, &packet.payload), Verdict::Same);
                unicasts += 1;
            }
        }
    }
    // A NACK that is sent twice because its answer was late is answered twice.
    let nacks = stats.nacks;
    assert_eq!(acks, nacks);
    assert_eq!(unicasts, if repair.unicast { nacks } else { 0 });
    let repairs = if repair.multicast { wanted..=nacks } else { 0..=0 };
    assert!(repairs.contains(&multicasts), "{multicasts} multicast repairs for {nacks} NACKs");

    let (path, other) = if xdp == "off" { ("user", "xdp") } else { ("xdp", "user") };
    // The daemon counts an answer after it was sent, which may be after it was heard.
    let metrics = await_count(&daemon, "bre_responses_sent_total", &[("type", "ack"), ("path", path)], acks);
    assert_eq!(metrics.count("bre_cache_hits_total", &[("path", path)]), nacks);
    assert_eq!(metrics.count("bre_nack_requests_total", &[("path", path)]), nacks);
    assert_eq!(metrics.count("bre_nack_requests_total", &[("path", other)]), 0);
    assert_eq!(metrics.count("bre_xdp_handed_over_total", &[]), 0);
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "ack"), ("path", path)]), acks);
    assert_eq!(metrics.count("bre_retransmits_total", &[("path", path)]), multicasts);
    assert_eq!(metrics.count("bre_unicast_retransmits_total", &[("path", path)]), unicasts);
    assert_eq!(metrics.count("bre_repair_torn_total", &[]), 0);
    assert_eq!(metrics.count("bre_retransmit_errors_total", &[]), 0);
}

macro_rules! recovery {
    ($($name:ident: $shape:ident $xdp:literal $repair:ident;)*) => { $(
        #[test]
        fn $name() {
            recovers(stringify!($name), &Link::of(Shape::$shape), $xdp, $repair);
        }
    )* };
}

recovery! {
    flat_native_unicast: Flat "native" UNICAST;
    flat_native_multicast: Flat "native" MULTICAST;
    flat_native_both: Flat "native" BOTH;
    flat_off_unicast: Flat "off" UNICAST;
    flat_off_multicast: Flat "off" MULTICAST;
    flat_off_both: Flat "off" BOTH;
    bridged_native_unicast: Bridged "native" UNICAST;
    bridged_native_multicast: Bridged "native" MULTICAST;
    bridged_native_both: Bridged "native" BOTH;
    bridged_off_unicast: Bridged "off" UNICAST;
    bridged_off_multicast: Bridged "off" MULTICAST;
    bridged_off_both: Bridged "off" BOTH;
}

/// Packets of several buffers, which XDP takes in native mode: of frames that the kernel sends, and NACKs with checksums
/// that a device was to finish.
#[test]
fn jumbo_native_both() {
    let link = Link { mtu: 9000, lengths: 90..=3201, ..Link::of(Shape::Flat) };
    recovers("jumbo_native_both", &link, "native", BOTH);
}

#[test]
fn jumbo_native_offloaded() {
    let link = Link { mtu: 9000, lengths: 90..=3201, is_offloaded: true, ..Link::of(Shape::Flat) };
    recovers("jumbo_native_offloaded", &link, "native", BOTH);
}

/// In generic mode packets hardly grow: MISSes come from the kernel, frames from the daemon by event.
#[test]
fn skb_mode_hands_frames_to_the_daemon() {
    if !is_root("skb_mode_hands_frames_to_the_daemon") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("skb", &["-beacon-flags-unicast"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let publish = Publisher::open(&client.ns, Arc::clone(&journal)).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 0, 2, 1300..=1300);
    let key = publish.publish(&mut flow).expect("a frame leaves").expect("a key");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);
    let socket = asker(client);
    let answers = ask(&socket, endpoint.nack_address(), &nack(key), 2);
    assert_eq!(answers.len(), 2, "{}", daemon.log());
    assert!(answers.iter().any(|bytes| journal.compare(key, bytes) == Verdict::Same));
    let missing = FrameKey::new(key.hash_key(), 99);
    let answers = ask(&socket, endpoint.nack_address(), &nack(missing), 1);
    assert_eq!(Answer::parse(&answers[0], 99), Ok(Answer::Miss));
    let metrics = daemon.metrics().expect("a scrape");
    assert_eq!(metrics.state("bre_xdp_mode", "mode").as_deref(), Some("skb"));
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "miss"), ("path", "xdp")]), 1);
}

/// An anchor above the MTU comes in as IPv6 fragments and leaves the same way, by the daemon's hand.
#[test]
fn oversize_frames_are_handed_over() {
    if !is_root("oversize_frames_are_handed_over") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("native", &["-beacon-flags-unicast"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let publish = Publisher::open(&client.ns, Arc::clone(&journal)).expect("a publisher");
    for length in [1_361, 5_000, 60_000] {
        let mut flow = Flow::new(Kind::Anchor, 0, 2, length..=length);
        let listener_groups = vec![group(flow.group_index())];
        let before = daemon.metrics().expect("a scrape");
        let key = publish.publish(&mut flow).expect("a frame leaves").expect("a key");
        await_count(&daemon, "bre_frames_cached_total", &[], before.count("bre_frames_cached_total", &[]) + 1);
        let mut settings = ListenerSettings::new(listener_groups, endpoint.nack_address());
        settings.ask = true;
        let listener = Listener::start(&client.ns, settings, Arc::clone(&journal)).expect("a listener");
        listener.expect([key]);
        assert!(listener.settle(Duration::from_secs(5)), "{length}: {:?}\n{}", listener.stats(), daemon.log());
        std::thread::sleep(Duration::from_millis(100));
        let stats = listener.stop().expect("counts");
        assert_eq!((stats.recovered(), stats.wrong_bytes, stats.acks), (1, 0, 1), "{length}: {stats:?}");
        let after = daemon.metrics().expect("a scrape");
        let moved = |name: &str, labels: &[(&str, &str)]| after.count(name, labels) - before.count(name, labels);
        assert_eq!(moved("bre_xdp_handed_over_total", &[]), 1, "{length}");
        assert_eq!(moved("bre_retransmits_total", &[("path", "user")]), 1, "{length}");
        assert_eq!(moved("bre_unicast_retransmits_total", &[("path", "user")]), 1, "{length}");
    }
}

/// Version 1 and SeqNum 0 are received and never cached; what is no frame is counted.
#[test]
fn what_is_not_cached_is_missed() {
    if !is_root("what_is_not_cached_is_missed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut legacy = Flow::new(Kind::Legacy, 0, 2, 256..=256);
    let mut unstamped = Flow::new(Kind::Tx, 0, 2, 256..=256).starting_at(0);
    publish.publish(&mut legacy).expect("a frame leaves");
    publish.publish(&mut unstamped).expect("a frame leaves");
    publish.send(group(0), b"no frame at all").expect("it leaves");
    let metrics = await_count(&daemon, "bre_frames_received_total", &[], 3);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 0);
    assert_eq!(metrics.count("bre_frames_dropped_total", &[("reason", "no_sequence")]), 2);
    assert_eq!(metrics.count("bre_frames_dropped_total", &[("reason", "decode_error")]), 1);
    let key = FrameKey::new(unstamped.hash_key(), 0);
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
    assert_eq!(Answer::parse(&answers[0], 0), Ok(Answer::Miss));
}

/// The newest bytes of a key win: a publisher that starts anew numbers from 1 again.
#[test]
fn a_restarted_publishers_frames_replace_the_old() {
    if !is_root("a_restarted_publishers_frames_replace_the_old") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("native", &["-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let key = FrameKey::new(0x77, 1);
    let (old, new) = (retry_testbed::scene::frame(key, 300, 1), retry_testbed::scene::frame(key, 700, 2));
    for (bytes, cached, replaced, same) in [(&old, 1, 0, 0), (&old, 1, 0, 1), (&new, 2, 1, 1)] {
        publish.send(group(0), bytes).expect("a frame leaves");
        let sum = cached + same;
        await_count(&daemon, "bre_frames_received_total", &[], sum);
        let metrics = await_count(&daemon, "bre_frames_cached_total", &[], cached);
        assert_eq!(metrics.count("bre_cache_duplicates_total", &[("kind", "replaced")]), replaced);
        assert_eq!(metrics.count("bre_cache_duplicates_total", &[("kind", "same")]), same);
        let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 2);
        assert!(answers.contains(bytes), "the newest bytes");
    }
}

/// A ring shorter than the TTL: the oldest frames go first, are missed, and an operator can see it.
#[test]
fn a_short_ring_forgets_the_oldest_first() {
    if !is_root("a_short_ring_forgets_the_oldest_first") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("native", &["-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let publish = Publisher::open(&client.ns, Arc::clone(&journal)).expect("a publisher");
    // 16 MiB hold 11,000 records of 1,472 bytes.
    let mut flow = Flow::new(Kind::Tx, 0, 2, 1300..=1300);
    for number in 0..14_000 {
        publish.publish(&mut flow).expect("a frame leaves");
        if number % 100 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let metrics = await_count(&daemon, "bre_frames_cached_total", &[], 14_000);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 14_000);
    let evicted = metrics.count("bre_cache_evicted_total", &[("reason", "lap")]);
    assert!((2_000..4_500).contains(&evicted), "{evicted} laps");
    assert_eq!(metrics.count("bre_cache_size", &[]) + evicted, 14_000);
    assert!(metrics.sum("bre_cache_oldest_age_seconds", &[("ring", "short")]) > 0.0);
    let socket = asker(client);
    let missed = ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(flow.hash_key(), 1)), 1);
    assert_eq!(Answer::parse(&missed[0], 1), Ok(Answer::Miss));
    let newest = FrameKey::new(flow.hash_key(), 14_000);
    let answers = ask(&socket, endpoint.nack_address(), &nack(newest), 2);
    assert!(answers.iter().any(|bytes| journal.compare(newest, bytes) == Verdict::Same));
}
