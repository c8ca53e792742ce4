//! What asks too much, and what does not fit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, ask, asker, binary, counted, eventually, flags, frame, two_hosts};

use crate::document::{Section, sections};

const FLOW: u64 = 0x10b;

sections! {
    "A limit is too tight" => limit: a_limit_is_too_tight;
    "The cache is shorter than the TTL" => lap: the_cache_is_shorter_than_the_ttl;
    "The receive buffer overflows" => overflow: the_receive_buffer_overflows;
    "The event ring is full" => ring: the_event_ring_is_full;
}

/// One address asks for more than `-rl-ip-rate`, another does not.
fn limit(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let limits = ["-rl-ip-rate", "1", "-rl-ip-burst", "3", "-fill", "kernel"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &limits)).expect("a daemon");
    let socket = asker(client);
    for seq_num in 1..=8 {
        socket.send_to(&nack(FrameKey::new(FLOW, seq_num)), endpoint.nack_address()).expect("a NACK leaves");
    }
    counted(&daemon, "bre_rate_limit_drops_total", &[("level", "ip")], 4);
    let table = section.run(&endpoint.ns, "ADDRESS_LIMIT");
    let lines: Vec<serde_json::Value> =
        table.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 1, "one address asks: {lines:?}");
    let last = lines[0]["address"].as_array().and_then(|bytes| bytes.last()).map(ToString::to_string);
    let wanted = client.addr.octets()[15].to_string();
    assert!(last.as_ref().is_some_and(|last| last.trim_matches('"').trim_start_matches("0x") == wanted), "{last:?}");
    let ask = || drop(socket.send_to(&nack(FrameKey::new(FLOW, 9)), endpoint.nack_address()));
    let seen = section.run_while(&endpoint.ns, "watch", ask);
    assert_eq!(seen.out.lines().count(), 20, "{}", seen.out);
    seen.shows(&[&client.addr.to_string(), "flow=000000000000010b number=9 verdict=silence limit=ip"]);
    let shown = section.run(&endpoint.ns, "bre_rate_limit_drops_total");
    shown.shows(&[r#"level="ip""#, r#"path="xdp""#]);
    assert!(!shown.out.contains("sequence"), "no other limit: {}", shown.out);
}

/// More than the short ring holds comes within the TTL.
fn lap(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-admin-addr", "[::1]:9401", "-fill", "kernel"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let lapped = || daemon.metrics().expect("a scrape").count("bre_cache_evicted_total", &[("reason", "lap")]) > 0;
    let deadline = Instant::now() + PATIENCE;
    let mut seq_num = 0;
    while !lapped() {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        for _ in 0..100 {
            seq_num += 1;
            publish.send(group(0), &frame(FrameKey::new(FLOW, seq_num), 30_000, 1)).expect("a frame leaves");
        }
    }
    section.run(&endpoint.ns, "free").shows(&["Mem:"]);
    section.run(&endpoint.ns, ".rings").shows(&["used_bytes", "size_bytes"]);
    let shown = section.run(&endpoint.ns, "bre_cache_(evicted_total");
    shown.shows(&[r#"bre_cache_oldest_age_seconds{ring="short"}"#, r#"bre_cache_ring_size_bytes{ring="short"}"#]);
    let is_lap = |line: &&str| line.contains("_evicted_total") && line.contains(r#"reason="lap""#);
    assert!(shown.out.lines().filter(is_lap).any(|line| !line.ends_with(" 0")), "{}", shown.out);
}

/// The daemon gets no CPU, and more comes than a socket's buffer holds: frames above the MTU, which are the socket's.
fn overflow(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-fill", "kernel", "-ingress-workers", "1"];
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let lost = |shown: &str| {
        let line = shown.lines().skip_while(|line| !line.contains(":9001")).find(|line| line.contains("skmem:"));
        let memory = line.and_then(|line| line.split_once("skmem:(")).expect("skmem").1;
        memory.split(')').next().expect("an end").rsplit_once(",d").expect("losses").1.parse::<u64>().expect("a number")
    };
    let before = section.run(&endpoint.ns, "ss -6uamnp");
    before.shows(&["rb33554432", "rb8388608", "retry-endpoint"]);
    assert_eq!(lost(&before.out), 0, "{}", before.out);
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    let mut flow = Flow::new(Kind::Anchor, 0, 2, 60_000..=60_001);
    for _ in 0..900 {
        publish.publish(&mut flow).expect("a frame leaves");
    }
    let during = section.run(&endpoint.ns, "ss -6uamnp");
    daemon.child().signal(Signal::SIGCONT).expect("it goes on");
    assert!(lost(&during.out) > 0, "{}", during.out);
    section.run(&endpoint.ns, "top -b").shows(&["ingress-"]);
    section.run(&endpoint.ns, "ethtool -S").shows(&["rx_queue_0_drops: 0"]);
    // The count comes with the next frame.
    eventually("the losses are counted", || {
        publish.publish(&mut flow).expect("a frame leaves");
        let metrics = daemon.metrics().expect("a scrape");
        metrics.count("bre_frames_dropped_total", &[("reason", "socket_overflow")]) > 0
    });
}

/// The thread that takes events gets no CPU, and more is missed than the ring holds; then a frame that the daemon alone can
/// send is asked for.
fn ring(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let upstream = client.nack_address().to_string();
    let mut more =
        vec!["-proxy-enabled", "-upstream-retry-endpoints", &upstream, "-bpf-lease", "1m", "-fill", "kernel"];
    more.extend(["-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let large = FrameKey::new(FLOW, 100_000);
    publish.send(group(0), &frame(large, 5_000, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    let socket = asker(client);
    for seq_num in 1..=9_000 {
        socket.send_to(&nack(FrameKey::new(FLOW, seq_num)), endpoint.nack_address()).expect("a NACK leaves");
        if seq_num % 100 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for _ in 0..20 {
        socket.send_to(&nack(large), endpoint.nack_address()).expect("a NACK leaves");
    }
    std::thread::sleep(Duration::from_millis(50));
    let shown = section.run(&endpoint.ns, "COUNTERS");
    daemon.child().signal(Signal::SIGCONT).expect("it goes on");
    let sum = |field: &str| -> u64 {
        let value = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line[field].as_u64().expect("a counter of this name")
        };
        shown.out.lines().map(value).sum()
    };
    assert_eq!((sum("cache_misses"), sum("passed_events_full")), (9_000, 20), "{}", shown.out);
    let handed_over = sum("handed_over");
    assert!((4_000..7_000).contains(&handed_over), "about as many as the ring holds: {handed_over}");
    // It goes on by itself.
    drop(ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, 1)), 1));
}
