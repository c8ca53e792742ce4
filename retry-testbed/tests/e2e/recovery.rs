//! Recovery from upstream, across domains: MISS at once, one NACK upstream that says Proxied, and the frame in our domain.

use std::net::{SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::net::capture::{Capture, datagrams};
use retry_testbed::net::fabric::{INTERFACE, NACK_PORT, group};
use retry_testbed::net::packet::ParsedPacket;
use retry_testbed::peers::answer::{Answer, nack, nack_with_flags};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::scene::{PATIENCE, ask, asker, counted, datagrams_from, eventually, is_repair, path, repairs};

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
    assert_eq!(count("bre_cache_stored_by_total", &[("via", "proxy")]), 1);
    assert_eq!((count("bre_cache_misses_total", &[]), count("bre_cache_hits_total", &[])), (1, 0));

    exchange_upstream(&domains, &uplink, key, &bytes);
    let metrics = up.metrics().expect("a scrape");
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
    let here = SocketAddrV6::new(between.addr, 0, 0, 0);
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
    let metrics = empty.metrics().expect("a scrape");
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
    assert_eq!(up.metrics().expect("a scrape").count("bre_unicast_retransmits_total", &[]), 1);
}

both_paths! {
    across_domains: across_domains_native, across_domains_off;
    every_kind: every_kind_native, every_kind_off;
    proxied_goes_nowhere: proxied_goes_nowhere_native, proxied_goes_nowhere_off;
    the_next_upstream: the_next_upstream_native, the_next_upstream_off;
    failures_have_reasons: failures_have_reasons_native, failures_have_reasons_off;
    one_request_for_many: one_request_for_many_native, one_request_for_many_off;
}
