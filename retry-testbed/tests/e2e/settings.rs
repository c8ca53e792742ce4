//! Settings that change what is on the wire, each by what it changes.

use std::net::{SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::http;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, key_of};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, datagrams_from, flags, frame, is_root, two_hosts};

const KEY: FrameKey = FrameKey::new(0x5e77, 1);
const BY_MULTICAST: Answer = Answer::Ack { multicast: true, unicast: false };

/// Asks for a frame and returns destination of each multicast repair of it; their bytes are `bytes`.
fn repaired(endpoint: &Host, client: &Host, key: FrameKey, bytes: &[u8]) -> Vec<SocketAddrV6> {
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
    assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, key.seq_num())), Some(Ok(BY_MULTICAST)));
    std::thread::sleep(Duration::from_millis(200));
    let mut repairs = datagrams_from(&capture.take(), endpoint.addr);
    repairs.retain(|packet| packet.dst.ip().is_multicast() && key_of(&packet.payload) == Some(key));
    assert!(repairs.iter().all(|packet| packet.payload == bytes), "byte for byte");
    repairs.iter().map(|packet| packet.dst).collect()
}

/// `-listen-port`, `-egress-port`: frames are heard on one, and leave for the other.
fn ports(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags(xdp, &["-listen-port", "9101", "-egress-port", "9202"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let bytes = frame(KEY, 300, 1);
    let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(client.addr, 0, 0, 0))).expect("a socket");
    socket
        .send_to(&frame(FrameKey::new(0x5e77, 2), 300, 1), SocketAddrV6::new(group(0), 9001, 0, client.ifindex))
        .expect("it leaves");
    socket.send_to(&bytes, SocketAddrV6::new(group(0), 9101, 0, client.ifindex)).expect("it leaves");
    let metrics = await_count(&daemon, "bre_frames_cached_total", &[], 1);
    assert_eq!(metrics.count("bre_frames_received_total", &[]), 1, "what is sent elsewhere is not heard");
    assert_eq!(repaired(endpoint, client, KEY, &bytes), [SocketAddrV6::new(group(0), 9202, 0, 0)]);
}

/// `-shard-bits`, `-beef-shard-bits`: which groups are joined, and where a repair goes.
fn shards(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags(xdp, &["-shard-bits", "5", "-beef-shard-bits", "3"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut flows = [
        Flow::new(Kind::Tx, 29, 5, 300..=301),
        Flow::new(Kind::Bundle, 17, 5, 300..=301),
        Flow::new(Kind::Beef, 6, 3, 300..=301).beef_shard_bits(3),
    ];
    for (place, flow) in (1..).zip(&mut flows) {
        let (to, key, bytes) = (group(flow.group_index()), flow.next_key(), flow.next_frame());
        publish.send(to, &bytes).expect("a frame leaves");
        await_count(&daemon, "bre_frames_cached_total", &[], place);
        assert_eq!(repaired(endpoint, client, key, &bytes), [SocketAddrV6::new(to, 9001, 0, 0)], "{:?}", flow.kind());
    }
}

/// `-cache-max-keys`: the newest are kept.
fn most_keys(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-cache-max-keys", "3"])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    for seq_num in 1..=10 {
        publish.send(group(0), &frame(FrameKey::new(0x5e77, seq_num), 300, 1)).expect("a frame leaves");
    }
    let metrics = await_count(&daemon, "bre_cache_evicted_total", &[("reason", "max_keys")], 7);
    assert_eq!(metrics.count("bre_cache_evicted_total", &[]), 7);
    assert_eq!(metrics.count("bre_cache_size", &[]), 3);
    let socket = asker(client);
    for (seq_num, expected) in [(7, Answer::Miss), (8, BY_MULTICAST), (10, BY_MULTICAST)] {
        let answers = ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(0x5e77, seq_num)), 1);
        assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, seq_num)), Some(Ok(expected)), "{seq_num}");
    }
}

/// Without `-subtree-data-enabled` and `-beef-enabled` their groups are not joined.
fn planes(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let kinds = [Kind::SubtreeData, Kind::Beef, Kind::Tx];
    for (subtree, beef, heard) in [(false, false, 1), (true, false, 2), (true, true, 3)] {
        let planes = [format!("-subtree-data-enabled={subtree}"), format!("-beef-enabled={beef}")];
        let flags = flags(xdp, &[&planes[0], &planes[1]]);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        for kind in kinds {
            publish.publish(&mut Flow::new(kind, 0, 2, 300..=301)).expect("a frame leaves");
        }
        // The transaction, which is always heard, comes last.
        let metrics = await_count(&daemon, "bre_frames_cached_total", &[], heard);
        assert_eq!(metrics.count("bre_frames_received_total", &[]), heard, "{planes:?}");
    }
}

/// `-metrics-addr [::1]:9400`: there, and nowhere else.
#[test]
fn metrics_are_where_they_were_asked_for() {
    if !is_root("metrics_are_where_they_were_asked_for") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    assert_eq!(daemon.get("/healthz").expect("an answer").0, 200);
    let elsewhere = SocketAddrV6::new(endpoint.addr, 9400, 0, 0);
    assert!(http::get(&client.ns, elsewhere.into(), "/healthz").is_err(), "it listens on every address");
}

/// What is shown of the rings, the sockets and the host.
#[test]
fn gauges_show_what_is_there() {
    if !is_root("gauges_show_what_is_there") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-cache-memory", "48m", "-cache-memory-long", "32m", "-instance", "gauged", "-cache-ttl-beef", "7s"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    let metrics = daemon.metrics().expect("a scrape");
    let of = |ring| [("ring", ring)];
    assert_eq!(metrics.count("bre_cache_ring_size_bytes", &of("short")), 48 << 20);
    assert_eq!(metrics.count("bre_cache_ring_size_bytes", &of("long")), 32 << 20);
    assert_eq!(metrics.count("bre_cache_ring_used_bytes", &[]), 0);
    assert_eq!(metrics.count("bre_ssm_sources", &[]), 0, "any source");
    assert!(metrics.count("bre_ingress_sockets", &[]) >= 1);
    assert_eq!(metrics.state("bre_host_info", "instance").as_deref(), Some("gauged"));
    assert_eq!(metrics.state("bre_host_info", "arch").as_deref(), Some(std::env::consts::ARCH));

    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);
    std::thread::sleep(Duration::from_millis(1100));
    let metrics = daemon.metrics().expect("a scrape");
    assert!((392..1024).contains(&metrics.count("bre_cache_ring_used_bytes", &of("short"))));
    assert_eq!(metrics.count("bre_cache_ring_used_bytes", &of("long")), 0);
    assert!(metrics.sum("bre_cache_oldest_age_seconds", &of("short")) >= 1.1);
    assert!(metrics.sum("bre_cache_oldest_age_seconds", &of("long")) < 0.1);
    let class = |name: &str, class| metrics.sum(name, &[("class", class)]);
    let age = class("bre_cache_class_oldest_age_seconds", "tx");
    assert!((1.0..5.0).contains(&age), "{age}");
    assert!(
        ["block", "subtree", "anchor", "beef"].map(|other| class("bre_cache_class_oldest_age_seconds", other))
            == [0.0; 4]
    );
    let lives = ["tx", "block", "subtree", "anchor", "beef"]
        .map(|one| metrics.count("bre_cache_ttl_seconds", &[("class", one)]));
    assert_eq!(lives, [60, 600, 300, 120, 7]);
}

/// `-beacon-flags-multicast=false` without unicast: a hit gets an ACK with flags 0, and no frame.
fn neither_multicast_nor_unicast(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let neither = ["-beacon-flags-multicast=false", "-beacon-flags-unicast=false"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &neither)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let mut bare = vec![0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 0x12, 0];
    bare.extend(KEY.seq_num().to_be_bytes());
    assert_eq!(ask(&asker(client), endpoint.nack_address(), &nack(KEY), 2), [bare]);
    let miss = ask(&asker(client), endpoint.nack_address(), &nack(FrameKey::new(0x5e77, 2)), 1);
    assert_eq!(miss.first().map(|bytes| Answer::parse(bytes, 2)), Some(Ok(Answer::Miss)));
    std::thread::sleep(Duration::from_millis(200));
    let frames = datagrams_from(&capture.take(), endpoint.addr);
    assert!(frames.iter().all(|packet| packet.payload.len() == 16), "no frame leaves");
    let metrics = daemon.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "ack")]), 1);
    assert_eq!(metrics.count("bre_retransmits_total", &[]) + metrics.count("bre_unicast_retransmits_total", &[]), 0);
}

macro_rules! settings {
    ($($body:ident: $native:ident, $off:ident;)*) => { $(
        #[test]
        fn $native() {
            if is_root(stringify!($native)) {
                $body("native");
            }
        }

        #[test]
        fn $off() {
            if is_root(stringify!($off)) {
                $body("off");
            }
        }
    )* };
}

settings! {
    ports: ports_native, ports_off;
    shards: shards_native, shards_off;
    most_keys: most_keys_native, most_keys_off;
    planes: planes_native, planes_off;
    neither_multicast_nor_unicast: neither_multicast_nor_unicast_native, neither_multicast_nor_unicast_off;
}
