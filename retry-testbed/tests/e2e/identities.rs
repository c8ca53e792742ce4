//! Mixed traffic, and then the books: every frame and every NACK stands in exactly one place, and what the counters say
//! is what was on the wire.

use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::Metrics;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::loss::LossRule;
use retry_testbed::peers::answer::{Answer, nack, nack_with_flags};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, Verdict, key_of};
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{asker, binary, counted, datagrams_from, flags, is_repair};

/// Frames of each kind, and the listeners that lose some.
const EACH: usize = 30;
const LISTENERS: [&str; 2] = ["one", "two"];

/// What a stranger sends, in datagrams of 64 bytes and of other sizes: what is no NACK, NACKs for what there never was,
/// and more than its share of NACKs for what there is.
fn noise(host: &Host, endpoint: &Host, flow: u64) -> (u64, u64) {
    let socket = asker(host);
    let mut sent = (0, 0);
    let mut send = |bytes: &[u8]| {
        socket.send_to(bytes, endpoint.nack_address()).expect("it leaves");
        *(if bytes.len() == 64 { &mut sent.0 } else { &mut sent.1 }) += 1;
    };
    for number in 1..=10 {
        let good = nack(FrameKey::new(0xbad, number));
        for at in [0, 6, 31] {
            let mut changed = good;
            changed[at] ^= 0xff;
            send(&changed);
        }
        for length in [0, 63, 65] {
            let mut bytes = good.to_vec();
            bytes.resize(length, 0);
            send(&bytes);
        }
        send(&nack_with_flags(FrameKey::new(0, number), 1));
        std::thread::sleep(Duration::from_millis(20));
    }
    // Above the limit of a frame, of a flow, of a group, each for itself.
    for _ in 0..8 {
        send(&nack(FrameKey::new(flow, 1)));
        std::thread::sleep(Duration::from_millis(30));
    }
    for number in 1..=30 {
        send(&nack(FrameKey::new(0xbad, number)));
    }
    std::thread::sleep(Duration::from_millis(500));
    for number in 2..=16 {
        send(&nack(FrameKey::new(flow, number)));
    }
    sent
}

/// What left the endpoint's NACK port, as captured at one host.
#[derive(Debug, Default)]
struct Seen {
    acks: u64,
    misses: u64,
    throttled: u64,
    unicasts: u64,
    repairs: u64,
}

fn seen(capture: &Capture, endpoint: &Host, journal: &Journal) -> Seen {
    let mut seen = Seen::default();
    for packet in datagrams_from(&capture.take(), endpoint.addr) {
        if packet.dst.port() == 9300 {
            continue;
        }
        if let Some(key) = key_of(&packet.payload) {
            assert_eq!(journal.compare(key, &packet.payload), Verdict::Same);
            *(if is_repair(&packet) { &mut seen.repairs } else { &mut seen.unicasts }) += 1;
        } else {
            let seq_num = packet.payload.last_chunk().map(|bytes| u64::from_be_bytes(*bytes)).expect("16 bytes");
            match Answer::parse(&packet.payload, seq_num).expect("an answer") {
                Answer::Miss => seen.misses += 1,
                Answer::Ack { .. } => seen.acks += 1,
                Answer::Throttled { .. } => seen.throttled += 1,
            }
        }
    }
    seen
}

fn books(xdp: &str, unicast: bool) {
    let names = ["endpoint", "publisher", "stranger", LISTENERS[0], LISTENERS[1]];
    let fabric = Fabric::bridged(&names, 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let endpoint = host("endpoint");
    let limits = [
        ["-rl-ip-rate", "400", "-rl-ip-burst", "40"],
        ["-rl-sequence-max", "4", "-rl-sequence-window", "1h"],
        ["-rl-chain-rate", "25", "-rl-chain-window", "2s"],
        ["-rl-group-rate", "50", "-rl-group-burst", "8"],
    ];
    let mut more = limits.concat();
    let mode = format!("-beacon-flags-unicast={unicast}");
    more.extend(["-rl-throttle-response", &mode]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");

    let journal = Arc::new(Journal::new());
    let mut flows: Vec<_> = (0u16..).zip(Kind::CACHED).map(|(at, kind)| Flow::new(kind, at, 2, 100..=1200)).collect();
    let mut groups: Vec<_> = flows.iter().map(|flow| group(flow.group_index())).collect();
    groups.sort();
    groups.dedup();
    fabric.await_members("endpoint", &groups).expect("members");
    let publisher = host("publisher").addr;
    let mut settings = ListenerSettings::new(groups.clone(), endpoint.nack_address());
    settings.attempts = 4;
    let listeners = LISTENERS.map(|name| {
        let listener = Listener::start(&host(name).ns, settings.clone(), Arc::clone(&journal)).expect("a listener");
        fabric.await_members(name, &groups).expect("members");
        listener
    });
    let captures = LISTENERS.map(|name| Capture::start(&host(name).ns, INTERFACE).expect("a capture"));
    let strange = Capture::start(&host("stranger").ns, INTERFACE).expect("a capture");
    let losses = LISTENERS.map(|name| fabric.lose(name, &LossRule::random(150).from(publisher)).expect("a loss"));

    let publish = Publisher::open(&host("publisher").ns, Arc::clone(&journal)).expect("a publisher");
    for _ in 0..EACH {
        for flow in &mut flows {
            publish.publish(flow).expect("a frame leaves");
        }
        std::thread::sleep(Duration::from_millis(3));
    }
    // Some that are received and never cached.
    for frame in [Flow::new(Kind::Legacy, 0, 2, 80..=80), Flow::new(Kind::Tx, 0, 2, 80..=80).starting_at(0)] {
        publish.publish(&mut { frame }).expect("a frame leaves");
    }
    let published = publish.sent();
    let cached = u64::try_from(journal.len()).expect("few");
    counted(&daemon, "bre_frames_cached_total", &[], cached);
    let strange_nacks = noise(host("stranger"), endpoint, flows[0].hash_key());
    for listener in &listeners {
        listener.expect(journal.keys());
        assert!(listener.settle(Duration::from_secs(12)), "open gaps: {:?}\n{}", listener.stats(), daemon.log());
    }
    // What drains behind the last frames: ACKs.
    std::thread::sleep(Duration::from_millis(300));
    let metrics = daemon.metrics().expect("a scrape");
    let stats = listeners.map(|listener| listener.stop().expect("a listener's counts"));

    let asked: u64 = stats.iter().map(|stats| stats.nacks).sum();
    let mut wire = seen(&strange, endpoint, &journal);
    for ((capture, loss), stats) in captures.iter().zip(&losses).zip(&stats) {
        let seen = seen(capture, endpoint, &journal);
        let lost = loss.dropped().expect("a count");
        assert!(lost > 0 && stats.recovered() > 0, "{stats:?}");
        assert_eq!(stats.received, published - lost + seen.repairs, "published − lost = received");
        assert_eq!(stats.lost, stats.recovered() + stats.unrecovered, "{stats:?}");
        assert_eq!((stats.wrong_bytes, stats.bad_answers), (0, 0), "{:?}", stats.complaints);
        assert_eq!(seen.repairs, metrics.count("bre_retransmits_total", &[]), "each listener hears each repair");
        wire.acks += seen.acks;
        wire.misses += seen.misses;
        wire.throttled += seen.throttled;
        wire.unicasts += seen.unicasts;
    }
    add_up(&metrics, (published, cached), (asked + strange_nacks.0, strange_nacks.1), unicast);
    let said = |kind| metrics.count("bre_responses_sent_total", &[("type", kind)]);
    assert_eq!((wire.acks, wire.misses, wire.throttled), (said("ack"), said("miss"), said("throttled")));
    assert_eq!(wire.unicasts, metrics.count("bre_unicast_retransmits_total", &[]));
}

/// The identities that the truth table implies, for a run without shared store and without a send that failed.
fn add_up(metrics: &Metrics, (published, cached): (u64, u64), (whole, odd): (u64, u64), unicast: bool) {
    let count = |metric: &str, labels: &[(&str, &str)]| metrics.count(&format!("bre_{metric}_total"), labels);
    let limited = |level| count("rate_limit_drops", &[("level", level)]);
    let said = |kind| count("responses_sent", &[("type", kind)]);
    let dropped: u64 =
        ["magic", "type", "range", "length"].iter().map(|reason| count("nack_dropped", &[("reason", reason)])).sum();

    assert_eq!(count("frames_received", &[]), published);
    assert_eq!(count("frames_cached", &[]), cached);
    let refused: u64 = ["decode_error", "own_repair", "too_large"]
        .map(|reason| count("frames_dropped", &[("reason", reason)]))
        .iter()
        .sum();
    assert_eq!(refused, 0);
    assert_eq!(count("frames_dropped", &[("reason", "no_sequence")]), published - cached);

    assert_eq!(count("nack_requests", &[]), whole, "64 bytes each");
    assert_eq!(count("nack_dropped", &[("reason", "size")]), odd);
    let (hits, misses) = (count("cache_hits", &[]), count("cache_misses", &[]));
    assert_eq!(whole, hits + misses + limited("ip") + limited("sequence") + limited("chain") + dropped);
    assert_eq!(misses, said("miss"));
    let served = hits - limited("group");
    assert_eq!(served, said("ack"));
    assert_eq!(served, count("retransmits", &[]) + count("retransmit_holddown", &[]) + count("retransmit_dedup", &[]));
    assert_eq!(count("unicast_retransmits", &[]), if unicast { served } else { 0 });
    assert_eq!(said("throttled"), limited("sequence") + limited("chain") + limited("group"));
    for never in ["retransmit_errors", "response_send_errors", "repair_torn", "retransmit_dedup"] {
        assert_eq!(count(never, &[]), 0, "{never}");
    }
    let places = [hits, misses, dropped, limited("sequence"), limited("chain"), limited("group")];
    assert!(places.iter().all(|place| *place > 0), "the traffic was to be mixed: {places:?}");
}

fn multicast_books(xdp: &str) {
    books(xdp, false);
}

fn unicast_books(xdp: &str) {
    books(xdp, true);
}

both_paths! {
    multicast_books: multicast_books_native, multicast_books_off;
    unicast_books: unicast_books_native, unicast_books_off;
}
