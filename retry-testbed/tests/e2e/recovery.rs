//! Recovery from upstream, across domains: MISS at once, one NACK upstream that says Proxied, and the frame in our domain.

use std::collections::HashMap;
use std::net::{SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::net::capture::{Capture, datagrams};
use retry_testbed::net::fabric::{INTERFACE, NACK_PORT, SECOND_INTERFACE, group};
use retry_testbed::net::packet::ParsedPacket;
use retry_testbed::peers::answer::{Answer, nack, nack_with_flags};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{
    PATIENCE, ask, asker, counted, datagrams_from, eventually, frame, is_repair, path, read_answers, repairs,
};

use super::domains::{BETWEEN, Domains, failed};

const PROXIED: u8 = 0x01;

fn missed(answers: &[Vec<u8>], seq_num: u64) {
    let read: Vec<_> = answers.iter().map(|bytes| Answer::parse(bytes, seq_num)).collect();
    assert_eq!(read, [Ok(Answer::Miss)]);
}

/// The field's scenario from end to end.
fn across_domains(xdp: &str) {
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &[]);
    let mut flow = Flow::new(Kind::Tx, 0, 2, 700..=701);
    let (key, bytes) = domains.publish(&mut flow, &[&up]);
    let uplink = Capture::start_with(&domains.host("between").ns, INTERFACE, true).expect("a capture");
    let far = domains.far_capture();

    let socket = asker(&domains.far);
    missed(&ask(&socket, BETWEEN, &nack(key), 1), key.seq_num());
    let repaired = far.wait(1, PATIENCE, |packet| repairs(packet, key));
    let found: Vec<_> = datagrams_from(&repaired, *BETWEEN.ip()).into_iter().filter(is_repair).collect();
    assert_eq!(found.len(), 1, "one repair\n{}", between.log());
    let repair = &found[0];
    assert!(repair.payload == bytes, "the frame, byte for byte");
    assert_eq!((*repair.dst.ip(), repair.hop_limit), (group(0), 1));

    let metrics = counted(&between, "bre_retransmits_total", &[], 1);
    let count = |metric, labels: &[_]| metrics.count(metric, labels);
    assert_eq!((count("bre_proxy_requests_total", &[]), count("bre_proxy_recovered_total", &[])), (1, 1));
    assert_eq!(count("bre_proxy_failed_total", &[]), 0);
    assert_eq!(count("bre_backend_duration_seconds_count", &[("backend", "upstream")]), 1);
    assert_eq!(count("bre_cache_stored_by_total", &[("via", "proxy")]), 1);
    assert_eq!((count("bre_cache_misses_total", &[]), count("bre_cache_hits_total", &[])), (1, 0));

    exchange_upstream(&domains, &uplink, key, &bytes);
    // Here and below: a daemon counts what it has sent after it was sent, which may be after it was heard.
    let metrics = counted(&up, "bre_unicast_retransmits_total", &[], 1);
    assert_eq!(metrics.count("bre_unicast_retransmits_total", &[("path", path(xdp))]), 1, "a copy in multicast mode");
    assert_eq!(metrics.count("bre_retransmits_total", &[("path", path(xdp))]), 1);

    // From now on it is the endpoint's own frame.
    let answers = ask(&socket, BETWEEN, &nack(key), 1);
    assert_eq!(Answer::parse(&answers[0], key.seq_num()), Ok(Answer::Ack { multicast: true, unicast: false }));
    let repaired = far.wait(1, PATIENCE, |packet| repairs(packet, key));
    let repair = datagrams_from(&repaired, *BETWEEN.ip()).into_iter().find(is_repair).expect("a second repair");
    assert!(repair.payload == bytes, "the frame, byte for byte");
    let metrics = counted(&between, "bre_retransmits_total", &[], 2);
    assert_eq!(metrics.count("bre_cache_hits_total", &[("path", path(xdp))]), 1);
    assert_eq!(metrics.count("bre_proxy_requests_total", &[]), 1, "no endpoint was asked again");
    assert_eq!(up.metrics().expect("a scrape").count("bre_nack_requests_total", &[]), 1);
}

/// What went over the link between the domains: one NACK of 64 bytes that says Proxied, the frame, and its ACK.
fn exchange_upstream(domains: &Domains, uplink: &Capture, key: FrameKey, bytes: &[u8]) {
    let (up, between) = (domains.host("up"), domains.host("between"));
    let all = datagrams(&uplink.take()).expect("right packets");
    let of = |from: SocketAddrV6, to: SocketAddrV6| -> Vec<&ParsedPacket> {
        let either = |a: SocketAddrV6, b: SocketAddrV6| a.ip() == b.ip() && (b.port() == 0 || a.port() == b.port());
        all.iter().filter(|packet| either(packet.src, from) && either(packet.dst, to)).collect()
    };
    // The NACK address, not that of the interface by which it left.
    assert_eq!(of(SocketAddrV6::new(between.addr, 0, 0, 0), up.nack_address()).len(), 0);
    let here = SocketAddrV6::new(*BETWEEN.ip(), 0, 0, 0);
    let asked = of(here, up.nack_address());
    assert_eq!(asked.len(), 1, "one NACK upstream");
    assert_eq!(asked[0].payload[..32], nack_with_flags(key, PROXIED)[..32]);
    assert_eq!(asked[0].payload.len(), 64);
    let answers = of(up.nack_address(), here);
    assert!(answers.iter().all(|packet| packet.dst.port() == asked[0].src.port()));
    let (frames, said): (Vec<_>, Vec<_>) = answers.into_iter().partition(|packet| packet.payload.len() != 16);
    assert!(frames.len() == 1 && frames[0].payload == bytes, "one unicast copy, byte for byte");
    let said: Vec<_> = said.iter().map(|packet| Answer::parse(&packet.payload, key.seq_num())).collect();
    assert_eq!(said, [Ok(Answer::Ack { multicast: true, unicast: true })]);
}

/// A listener in the second domain loses frames of every kind, one larger than the MTU among them.
fn every_kind(xdp: &str) {
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &[]);
    let mut flows: Vec<_> = Kind::CACHED.map(|kind| Flow::new(kind, 1, 2, 100..=1200)).into();
    flows.push(Flow::new(Kind::Anchor, 0, 2, 5_000..=5_000));
    let mut groups: Vec<_> = flows.iter().map(|flow| group(flow.group_index())).collect();
    groups.sort();
    groups.dedup();
    domains.fabric.await_members("up", &groups).expect("members");
    for flow in &mut flows {
        for _ in 0..3 {
            domains.publish(flow, &[&up]);
        }
    }
    let mut settings = ListenerSettings::new(groups, BETWEEN);
    settings.miss_attempts = 6;
    settings.attempts = 12;
    let listener = Listener::start(&domains.far.ns, settings, Arc::clone(&domains.journal)).expect("a listener");
    listener.expect(domains.journal.keys());
    assert!(listener.settle(PATIENCE), "open gaps: {:?}\n{}", listener.stats(), between.log());
    let stats = listener.stop().expect("a listener's counts");
    let wanted = u64::try_from(domains.journal.len()).expect("few");
    assert_eq!((stats.recovered_multicast, stats.unrecovered), (wanted, 0), "{stats:?}\n{}", between.log());
    assert_eq!((stats.wrong_bytes, stats.bad_answers), (0, 0), "{:?}", stats.complaints);
    let metrics = between.metrics().expect("a scrape");
    let recovered = metrics.count("bre_proxy_recovered_total", &[]);
    assert_eq!((recovered, metrics.count("bre_cache_stored_by_total", &[("via", "proxy")])), (wanted, wanted));
    assert_eq!(metrics.count("bre_proxy_failed_total", &[]), 0);
}

/// What says Proxied has been asked for by an endpoint: it gets a MISS, and no endpoint is asked in turn.
fn proxied_goes_nowhere(xdp: &str) {
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &[]);
    let mut flow = Flow::new(Kind::Tx, 0, 2, 100..=100);
    let (key, _) = domains.publish(&mut flow, &[&up]);
    let far = domains.far_capture();
    let socket = asker(&domains.far);
    missed(&ask(&socket, BETWEEN, &nack_with_flags(key, PROXIED), 1), key.seq_num());
    // A job that must not be has time to show itself while one that must be is done.
    let (other, _) = domains.publish(&mut flow, &[&up]);
    missed(&ask(&socket, BETWEEN, &nack(other), 1), other.seq_num());
    let seen = far.wait(1, PATIENCE, |packet| repairs(packet, other));
    assert!(!seen.iter().any(|packet| repairs(packet, key)));
    let metrics = counted(&between, "bre_proxy_recovered_total", &[], 1);
    assert_eq!(metrics.count("bre_proxy_requests_total", &[]), 1);
    assert_eq!(up.metrics().expect("a scrape").count("bre_nack_requests_total", &[]), 1);
    missed(&ask(&socket, BETWEEN, &nack_with_flags(key, PROXIED), 1), key.seq_num());
}

/// The first upstream endpoint has it not, and says so; the second one has it.
fn the_next_upstream(xdp: &str) {
    let domains = Domains::new();
    // It joins nothing, so that it has nothing.
    let deaf = ["-mc-join-enabled=false", "-tee-listen", "[::1]:9002"];
    let mut all = retry_testbed::scene::flags(xdp, &deaf);
    all.push("-beacon-enabled=false");
    let empty = retry_testbed::daemon::Daemon::start(&retry_testbed::scene::binary(), &domains.host("spare").ns, &all)
        .expect("an endpoint without frames");
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["spare", "up"], &[]);
    let (key, _) = domains.publish(&mut Flow::new(Kind::Block, 0, 2, 200..=200), &[&up]);
    let far = domains.far_capture();
    missed(&ask(&asker(&domains.far), BETWEEN, &nack(key), 1), key.seq_num());
    let seen = far.wait(1, PATIENCE, |packet| repairs(packet, key));
    assert!(seen.iter().any(|packet| repairs(packet, key)), "{}", between.log());
    let metrics = counted(&between, "bre_proxy_recovered_total", &[], 1);
    assert_eq!(metrics.count("bre_proxy_requests_total", &[]), 1, "one job");
    assert_eq!(metrics.count("bre_proxy_nacks_total", &[]), 2, "two upstream endpoints asked");
    assert_eq!(metrics.count("bre_proxy_failed_total", &[]), 0);
    let metrics = counted(&empty, "bre_responses_sent_total", &[("type", "miss")], 1);
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "miss")]), 1);
}

/// Upstream endpoints that say nothing, and then one that has it not: each failure has its reason.
fn failures_have_reasons(xdp: &str) {
    let domains = Domains::new();
    let listen = |name: &str| {
        let host = domains.host(name);
        host.ns.enter(|| UdpSocket::bind((host.addr, NACK_PORT))).expect("a socket")
    };
    let silent = listen("spare");
    let once = ["-proxy-timeout", "200ms", "-proxy-retry-policy", "none"];
    let socket = asker(&domains.far);
    {
        let between = domains.between(xdp, &["spare"], &once);
        missed(&ask(&socket, BETWEEN, &nack(FrameKey::new(5, 6)), 1), 6);
        let metrics = counted(&between, "bre_proxy_failed_total", &[("reason", "exhausted"), ("last", "timeout")], 1);
        assert_eq!(failed(&metrics, "timeout"), 1);
        assert_eq!(metrics.count("bre_proxy_failed_total", &[]), 1);
        assert_eq!(metrics.count("bre_proxy_requests_total", &[]), 1, "as many as failed: none succeeded");
        let mut bytes = [0; 128];
        silent.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
        let (length, _) = silent.recv_from(&mut bytes).expect("the NACK came");
        assert_eq!((length, bytes[7]), (64, PROXIED));
    }
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &once);
    missed(&ask(&socket, BETWEEN, &nack(FrameKey::new(5, 7)), 1), 7);
    let metrics = counted(&between, "bre_proxy_failed_total", &[("reason", "exhausted"), ("last", "miss")], 1);
    assert_eq!(metrics.count("bre_proxy_failed_total", &[]), 1);
    assert_eq!(metrics.count("bre_proxy_recovered_total", &[]), 0);
    assert_eq!(up.metrics().expect("a scrape").count("bre_cache_misses_total", &[]), 1);
}

/// Many listeners miss one frame: it is asked for upstream once, and all of them get it by one repair.
fn one_request_for_many(xdp: &str) {
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &["-repair-holddown", "1h"]);
    let (key, _) = domains.publish(&mut Flow::new(Kind::Tx, 0, 2, 400..=400), &[&up]);
    let far = domains.far_capture();
    // The upstream's answers wait until all have asked: the job is in flight for each of them.
    let hold =
        retry_testbed::net::loss::LossRule { port: NACK_PORT, ..retry_testbed::net::loss::LossRule::random(1000) };
    let held = domains.fabric.lose("up", &hold).expect("a loss");
    for _ in 0..20 {
        missed(&ask(&asker(&domains.far), BETWEEN, &nack(key), 1), key.seq_num());
    }
    counted(&between, "bre_proxy_inflight_dedup_total", &[], 19);
    drop(held);
    let seen = far.wait(1, PATIENCE, |packet| repairs(packet, key));
    assert_eq!(seen.iter().filter(|packet| repairs(packet, key)).count(), 1, "{}", between.log());
    eventually("the frame's recovery is counted", || {
        between.metrics().expect("a scrape").count("bre_proxy_recovered_total", &[]) == 1
    });
    let metrics = counted(&up, "bre_unicast_retransmits_total", &[], 1);
    assert_eq!(metrics.count("bre_unicast_retransmits_total", &[]), 1);
}

/// With both ways of repair on, a recovered frame goes both ways: to its group, and to the listener that asked.
fn both_ways(xdp: &str) {
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &["-beacon-flags-unicast"]);
    let (key, bytes) = domains.publish(&mut Flow::new(Kind::Tx, 0, 2, 300..=300), &[&up]);
    let far = domains.far_capture();
    let answers = ask(&asker(&domains.far), BETWEEN, &nack(key), 2);
    assert_eq!(read_answers(&answers, key.seq_num(), &bytes), (vec![Answer::Miss], true), "{}", between.log());
    let repaired = far.wait(1, PATIENCE, |packet| repairs(packet, key));
    let found: Vec<_> = datagrams_from(&repaired, *BETWEEN.ip()).into_iter().filter(is_repair).collect();
    assert!(found.len() == 1 && found[0].payload == bytes, "one repair, byte for byte");
    let metrics = counted(&between, "bre_unicast_retransmits_total", &[], 1);
    assert_eq!(metrics.count("bre_retransmits_total", &[]), 1);
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "ack")]), 0, "the MISS was said");
}

/// Listeners that ask while the frame is being recovered each get a copy where nothing is multicast.
fn a_copy_for_each(xdp: &str) {
    const LISTENERS: u64 = 20;
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &["-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
    let (key, bytes) = domains.publish(&mut Flow::new(Kind::Tx, 0, 2, 400..=400), &[&up]);
    let hold =
        retry_testbed::net::loss::LossRule { port: NACK_PORT, ..retry_testbed::net::loss::LossRule::random(1000) };
    let held = domains.fabric.lose("up", &hold).expect("a loss");
    let listeners: Vec<_> = (0..LISTENERS).map(|_| asker(&domains.far)).collect();
    for socket in &listeners {
        missed(&ask(socket, BETWEEN, &nack(key), 1), key.seq_num());
    }
    counted(&between, "bre_proxy_inflight_dedup_total", &[], LISTENERS - 1);
    drop(held);
    for socket in &listeners {
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut got = [0; 2048];
        let length = socket.recv(&mut got).expect("a copy");
        assert!(got[..length] == bytes, "byte for byte");
    }
    let metrics = counted(&between, "bre_unicast_retransmits_total", &[], LISTENERS);
    assert_eq!(metrics.count("bre_unicast_retransmits_total", &[]), LISTENERS);
    assert_eq!(metrics.count("bre_retransmits_total", &[]), 0);
    let metrics = counted(&up, "bre_unicast_retransmits_total", &[], 1);
    assert_eq!(metrics.count("bre_unicast_retransmits_total", &[]), 1, "asked for once");
}

/// An upstream endpoint that tells us to hold is waited for, and asked again: one attempt is enough.
fn throttled_is_waited_for(xdp: &str) {
    let domains = Domains::new();
    let once_per_second = ["-rl-throttle-response", "-rl-sequence-max", "1", "-rl-sequence-window", "1s"];
    let up = domains.upstream("up", xdp, &once_per_second);
    let between = domains.between(xdp, &["up"], &["-proxy-retry-policy", "none"]);
    let (key, bytes) = domains.publish(&mut Flow::new(Kind::Tx, 0, 2, 300..=300), &[&up]);
    let far = domains.far_capture();
    // A listener of the first domain has had what the limit allows.
    let answers = ask(&asker(domains.host("publisher")), domains.host("up").nack_address(), &nack(key), 1);
    assert_eq!(Answer::parse(&answers[0], key.seq_num()), Ok(Answer::Ack { multicast: true, unicast: false }));
    missed(&ask(&asker(&domains.far), BETWEEN, &nack(key), 1), key.seq_num());
    let seen = far.wait(1, PATIENCE, |packet| repairs(packet, key));
    let found: Vec<_> = datagrams_from(&seen, *BETWEEN.ip()).into_iter().filter(is_repair).collect();
    assert!(found.len() == 1 && found[0].payload == bytes, "one repair, byte for byte\n{}", between.log());
    let throttled = up.metrics().expect("a scrape").count("bre_responses_sent_total", &[("type", "throttled")]);
    assert!((1..=3).contains(&throttled), "told to hold {throttled} times");
    let metrics = counted(&between, "bre_proxy_recovered_total", &[], 1);
    assert_eq!(metrics.count("bre_proxy_nacks_total", &[]), throttled + 1);
    assert_eq!(metrics.count("bre_proxy_failed_total", &[]), 0);
}

/// The NACK address goes away and comes back: NACKs to upstream endpoints leave from it as before.
fn the_nack_address_comes_back(xdp: &str) {
    let domains = Domains::new();
    let up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &[]);
    let host = domains.host("between");
    let uplink = Capture::start_with(&host.ns, INTERFACE, true).expect("a capture");
    let mut flow = Flow::new(Kind::Tx, 0, 2, 300..=300);
    let address = format!("{}/64", BETWEEN.ip());
    for round in 1..=2 {
        let (key, _) = domains.publish(&mut flow, &[&up]);
        let socket = asker(&domains.far);
        eventually("an answer", || !ask(&socket, BETWEEN, &nack(key), 1).is_empty());
        counted(&between, "bre_proxy_recovered_total", &[], round);
        if round == 1 {
            host.ns.run(&["ip", "-6", "addr", "del", &address, "dev", SECOND_INTERFACE]).expect("it goes");
            eventually("not ready", || between.get("/readyz").is_ok_and(|(status, _)| status == 503));
            host.ns.run(&["ip", "-6", "addr", "add", &address, "dev", SECOND_INTERFACE, "nodad"]).expect("it comes");
            eventually("ready", || between.get("/readyz").is_ok_and(|(status, _)| status == 200));
        }
    }
    let to_upstream = domains.host("up").nack_address();
    let asked: Vec<_> = datagrams(&uplink.take()).expect("right packets");
    let asked: Vec<_> = asked.iter().filter(|packet| packet.dst == to_upstream).collect();
    assert!(asked.len() >= 2, "two NACKs upstream");
    assert!(asked.iter().all(|packet| packet.src.ip() == BETWEEN.ip()), "{asked:?}");
}

/// Listeners probe the tails of idle flows: each asks for a number after the last, three times, and not for the same number each
/// time. Each probe gets its MISS, and an upstream endpoint hears of each flow once.
fn tail_probes(xdp: &str) {
    const FLOWS: u64 = 10_000;
    const LAST: u64 = 7;
    let domains = Domains::new();
    let _up = domains.upstream("up", xdp, &[]);
    let between = domains.between(xdp, &["up"], &["-proxy-queue", "20000"]);
    let publisher = Publisher::open(&domains.far.ns, Arc::clone(&domains.journal)).expect("a publisher");
    let flow = |number: u64| 0x1d1e_0000 + number;
    for number in 0..FLOWS {
        publisher.send(group(0), &frame(FrameKey::new(flow(number), LAST), 40, 1)).expect("a frame leaves");
        if number % 100 == 99 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    counted(&between, "bre_frames_cached_total", &[], FLOWS);
    let uplink = Capture::start_with(&domains.host("between").ns, INTERFACE, true).expect("a capture");
    let socket = asker(&domains.far);
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut misses = 0;
    for ahead in [2, 3, 1] {
        for number in 0..FLOWS {
            socket.send_to(&nack(FrameKey::new(flow(number), LAST + ahead)), BETWEEN).expect("a NACK leaves");
            if number % 50 == 49 {
                for _ in 0..50 {
                    let mut answer = [0; 64];
                    let length = socket.recv(&mut answer).expect("an answer to each");
                    assert_eq!(Answer::parse(&answer[..length], LAST + ahead), Ok(Answer::Miss));
                    misses += 1;
                }
            }
        }
        // The jobs of this round are over before the next: none is left out because it is under way.
        let over = || {
            let metrics = between.metrics().expect("a scrape");
            let missed = failed(&metrics, "miss");
            std::thread::sleep(Duration::from_millis(500));
            failed(&between.metrics().expect("a scrape"), "miss") == missed
        };
        eventually("no job is under way", over);
    }
    assert_eq!(misses, 3 * FLOWS);
    let mut asked = HashMap::new();
    for packet in datagrams(&uplink.take()).expect("right packets") {
        if packet.dst == domains.host("up").nack_address() {
            *asked.entry(packet.payload[8..16].to_vec()).or_insert(0) += 1;
        }
    }
    let metrics = between.metrics().expect("a scrape");
    println!("{} flows asked for upstream, {} NACKs", asked.len(), metrics.count("bre_proxy_requests_total", &[]));
    // The tail may have been lost on its way here.
    assert_eq!((asked.len(), asked.values().max()), (10_000, Some(&1)), "flows asked for, and NACKs for one of them");
    assert_eq!(metrics.count("bre_proxy_skipped_total", &[("reason", "ahead")]), 2 * FLOWS);
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "miss"), ("path", path(xdp))]), 3 * FLOWS);
}

both_paths! {
    both_ways: both_ways_native, both_ways_off;
    a_copy_for_each: a_copy_for_each_native, a_copy_for_each_off;
    throttled_is_waited_for: throttled_is_waited_for_native, throttled_is_waited_for_off;
    the_nack_address_comes_back: the_nack_address_comes_back_native, the_nack_address_comes_back_off;
    tail_probes: tail_probes_native, tail_probes_off;
    across_domains: across_domains_native, across_domains_off;
    every_kind: every_kind_native, every_kind_off;
    proxied_goes_nowhere: proxied_goes_nowhere_native, proxied_goes_nowhere_off;
    the_next_upstream: the_next_upstream_native, the_next_upstream_off;
    failures_have_reasons: failures_have_reasons_native, failures_have_reasons_off;
    one_request_for_many: one_request_for_many_native, one_request_for_many_off;
}
