//! Gaps as listeners meet them: a run of frames lost under the limit of an address, a frame that was never sent, and
//! many listeners that ask for this and that at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::net::loss::LossRule;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, Verdict, key_of};
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, ask_each, binary, counted, datagrams_from, flags, is_repair, path, two_hosts};

const LOST: u64 = 50;

/// The field's default limits let ten NACKs through at once: the others meet silence, and every frame comes all the same.
fn burst_gap(xdp: &str) {
    let fabric = Fabric::bridged(&["endpoint", "client", "publisher"], 1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let publisher = fabric.host("publisher").expect("a publisher");
    let limits = [
        ["-rl-ip-rate", "100", "-rl-ip-burst", "10"],
        ["-rl-chain-rate", "500", "-rl-sequence-max", "100"],
        ["-rl-group-rate", "200", "-rl-group-burst", "50"],
    ];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits.concat())).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let mut settings = ListenerSettings::new(vec![group(1)], endpoint.nack_address());
    settings.attempts = 20;
    let listener = Listener::start(&client.ns, settings, Arc::clone(&journal)).expect("a listener");
    for host in ["endpoint", "client"] {
        fabric.await_members(host, &[group(1)]).expect("members");
    }
    let mut flow = Flow::new(Kind::Tx, 1, 2, 200..=1300);
    let rule = LossRule::frames(flow.hash_key(), (11..11 + LOST).collect()).from(publisher.addr);
    let loss = fabric.lose("client", &rule).expect("a loss");
    let publish = Publisher::open(&publisher.ns, Arc::clone(&journal)).expect("a publisher");
    for _ in 0..100 {
        publish.publish(&mut flow).expect("a frame leaves");
    }
    counted(&daemon, "bre_frames_cached_total", &[], 100);
    listener.expect(journal.keys());
    assert!(listener.settle(Duration::from_secs(14)), "open gaps: {:?}\n{}", listener.stats(), daemon.log());
    assert_eq!(loss.dropped().expect("a count"), LOST);
    let stats = listener.stop().expect("a listener's counts");
    assert_eq!((stats.lost, stats.recovered(), stats.unrecovered), (LOST, LOST, 0), "{stats:?}");
    assert_eq!((stats.wrong_bytes, stats.complaints), (0, Vec::new()));

    let metrics = counted(&daemon, "bre_nack_requests_total", &[], stats.nacks);
    let count = |metric, labels: &[_]| metrics.count(metric, labels);
    let limited = count("bre_rate_limit_drops_total", &[("level", "ip"), ("path", path(xdp))]);
    assert!(limited > 0, "the limit was to be met");
    assert_eq!(count("bre_nack_requests_total", &[]), stats.nacks);
    assert_eq!(count("bre_cache_hits_total", &[]) + limited, stats.nacks);
    assert_eq!(count("bre_responses_sent_total", &[("type", "ack")]), count("bre_cache_hits_total", &[]));
    let multicasts = count("bre_retransmits_total", &[]) + count("bre_retransmit_holddown_total", &[]);
    assert_eq!(multicasts, count("bre_cache_hits_total", &[]));
    assert!(count("bre_retransmits_total", &[]) >= LOST);
    assert_eq!(stats.received, 100 - LOST + count("bre_retransmits_total", &[]));
}

/// A publisher skips a SeqNum: the endpoint says MISS, once, and the listener knows that there is nothing to wait for.
fn permanent_gap(xdp: &str) {
    let fabric = Fabric::bridged(&["endpoint", "client", "publisher"], 1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let publisher = fabric.host("publisher").expect("a publisher");
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[])).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let settings = ListenerSettings::new(vec![group(3)], endpoint.nack_address());
    let listener = Listener::start(&client.ns, settings, Arc::clone(&journal)).expect("a listener");
    for host in ["endpoint", "client"] {
        fabric.await_members(host, &[group(3)]).expect("members");
    }
    let publish = Publisher::open(&publisher.ns, Arc::clone(&journal)).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 3, 2, 64..=64);
    publish.publish(&mut flow).expect("a frame leaves");
    let missing = flow.next_key();
    let mut flow = flow.starting_at(3);
    publish.publish(&mut flow).expect("a frame leaves");
    counted(&daemon, "bre_responses_sent_total", &[("type", "miss")], 1);
    assert!(listener.settle(PATIENCE));
    let stats = listener.stop().expect("a listener's counts");
    assert_eq!((stats.nacks, stats.misses, stats.missed, stats.unrecovered), (1, 1, 1, 1), "{stats:?}");
    assert_eq!(stats.unrecovered_keys, [FrameKey::new(flow.hash_key(), 2)]);
    assert_eq!(missing, stats.unrecovered_keys[0]);
    let metrics = daemon.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_cache_misses_total", &[("path", path(xdp))]), 1);
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "ack")]), 0);
}

/// Hits, frames held down and MISSes from several hosts at once, so that the kernel sends some of them in one bulk: each
/// NACK gets its own answer, and each frame its repair.
fn all_at_once(xdp: &str) {
    // With fewer than 64 in a row no two share a word of the hold-down table.
    const FRAMES: u64 = 63;
    const ASKERS: [&str; 3] = ["one", "two", "three"];
    let fabric = Fabric::bridged(&["endpoint", "publisher", ASKERS[0], ASKERS[1], ASKERS[2]], 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let endpoint = host("endpoint");
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-repair-holddown", "1h"])).expect("a daemon");
    fabric.await_members("endpoint", &[group(0)]).expect("members");
    let capture = Capture::start(fabric.bridge().expect("a bridge"), "p1").expect("a capture");
    let journal = Arc::new(Journal::new());
    let publish = Publisher::open(&host("publisher").ns, Arc::clone(&journal)).expect("a publisher");
    let mut sent = 0;
    for round in 1..=4 {
        let mut flow = Flow::new(Kind::Tx, 0, 2, 100..=900);
        for _ in 0..FRAMES {
            publish.publish(&mut flow).expect("a frame leaves");
        }
        counted(&daemon, "bre_frames_cached_total", &[], round * FRAMES);
        let ours = flow.hash_key();
        let keys: Vec<_> = (1..=FRAMES).flat_map(|number| [(ours, number), (!ours, number), (ours, number)]).collect();
        let nacks: Vec<_> = keys.iter().map(|(flow, number)| nack(FrameKey::new(*flow, *number)).to_vec()).collect();
        let all: Vec<_> = std::thread::scope(|scope| {
            let ask = |name| ask_each(host(name), endpoint.nack_address(), &nacks);
            let askers = ASKERS.map(|name| scope.spawn(move || ask(name)));
            askers.into_iter().flat_map(|asker| asker.join().expect("an asker")).collect()
        });
        let ack = Ok(Answer::Ack { multicast: true, unicast: false });
        let wrong: Vec<_> = all
            .iter()
            .zip(keys.iter().cycle())
            .filter(|(answers, (flow, number))| {
                let read: Vec<_> = answers.iter().map(|bytes| Answer::parse(bytes, *number)).collect();
                read != [if *flow == ours { ack.clone() } else { Ok(Answer::Miss) }]
            })
            .collect();
        assert!(wrong.is_empty(), "{} of {} NACKs, the first: {:?}", wrong.len(), all.len(), wrong.first());
        let seen = datagrams_from(&capture.take(), endpoint.addr);
        let repaired: Vec<_> = seen.iter().filter(|packet| is_repair(packet)).collect();
        let mut copies: HashMap<FrameKey, u64> = HashMap::new();
        for packet in &repaired {
            let key = key_of(&packet.payload).expect("a frame");
            assert_eq!(journal.compare(key, &packet.payload), Verdict::Same);
            *copies.entry(key).or_default() += 1;
        }
        assert_eq!(u64::try_from(copies.len()).expect("few"), FRAMES);
        assert!(copies.values().all(|copies| *copies == 1), "{copies:?}");
        sent += FRAMES;
        let metrics = daemon.metrics().expect("a scrape");
        assert_eq!(metrics.count("bre_retransmits_total", &[]), sent);
        assert_eq!(metrics.count("bre_retransmit_errors_total", &[]), 0);
    }
}

both_paths! {
    all_at_once: all_at_once_native, all_at_once_off;
    burst_gap: burst_gap_native, burst_gap_off;
    permanent_gap: permanent_gap_native, permanent_gap_off;
}
