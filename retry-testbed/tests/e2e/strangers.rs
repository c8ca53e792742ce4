//! NACKs from on-link addresses that no host has: answers to them wait for a neighbour that never resolves, and must take
//! nothing from listeners that exist, whichever path sends.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::Metrics;
use retry_testbed::net::capture::{Capture, RawSender};
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, NACK_PORT, SECOND_MAC, group};
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, ask, asker, binary, counted, flags, frame, is_root, repairs, two_hosts};

use super::domains::{BETWEEN, Domains};

const KEY: FrameKey = FrameKey::new(0x57a6, 1);
/// Spoofed NACKs per second.
const RATE: u32 = 300;
/// NACKs of a listener that exists.
const HONEST: usize = 100;
/// How long the flood goes on before the first of them: Linux gives a neighbour up after three seconds.
const WARM_UP: Duration = Duration::from_secs(4);
/// Both answers and copies by unicast: that is what waits for a neighbour.
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

/// An address that no host of the fabric has.
fn unused(number: u32) -> Ipv6Addr {
    let [a, b, c, d] = number.to_be_bytes();
    Ipv6Addr::new(0xFD10, 0, 0, 0, 0xDEAD, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// NACKs for frames, from whatever sources.
struct Flood<'a> {
    from: &'a Host,
    to: SocketAddrV6,
    to_mac: [u8; 6],
    /// Per second.
    rate: u32,
}

/// Sends NACKs until `stop`, and returns how many; `one` says the source and the frame of each.
fn flood(flood: &Flood<'_>, one: impl Fn(u32) -> (Ipv6Addr, FrameKey), stop: &AtomicBool) -> u32 {
    let Flood { from, to, to_mac, rate } = *flood;
    let sender = RawSender::open(&from.ns, INTERFACE).expect("root");
    let (start, mut sent) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let (source, key) = one(sent);
        let packet = PacketBuilder::udp(SocketAddrV6::new(source, 40_000, 0, 0), to, &nack(key));
        sender.send(&PacketBuilder { dst_mac: to_mac, src_mac: from.mac, ..packet }.build()).expect("it leaves");
        sent += 1;
        // By the clock, so that a machine that was busy catches up.
        let due = Duration::from_secs(1) * sent / rate;
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
    sent
}

/// How many of [`HONEST`] NACKs, one after the other, got the frame and its ACK.
fn honest(socket: &UdpSocket, to: SocketAddrV6, bytes: &[u8]) -> usize {
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    (0..HONEST)
        .filter(|_| {
            // What came late for the one before is not taken for this one's.
            socket.set_nonblocking(true).expect("an option");
            while socket.recv(&mut [0; 65_536]).is_ok() {}
            socket.set_nonblocking(false).expect("an option");
            let answers = ask(socket, to, &nack(KEY), 2);
            let acked = answers.iter().any(|one| {
                one.len() == 16 && Answer::parse(one, 1) == Ok(Answer::Ack { multicast: false, unicast: true })
            });
            std::thread::sleep(Duration::from_millis(5));
            acked && answers.iter().any(|one| one == bytes)
        })
        .count()
}

/// A listener that exists is served as if there were no others, and the end is not held up.
fn strangers(xdp: &str, payload: usize) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &UNICAST)).expect("a daemon");
    let bytes = frame(KEY, payload, 3);
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &bytes).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);

    let stop = AtomicBool::new(false);
    let (served, status, took) = std::thread::scope(|scope| {
        let strangers = scope.spawn(|| {
            let to = Flood { from: client, to: endpoint.nack_address(), to_mac: endpoint.mac, rate: RATE };
            flood(&to, |number| (unused(number), KEY), &stop)
        });
        std::thread::sleep(WARM_UP);
        let served = honest(&asker(client), endpoint.nack_address(), &bytes);
        // A listener that the endpoint does not know yet: it has to be resolved among all the others.
        let stranger = Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, 0x99);
        client.add_address(stranger).expect("an address");
        let socket = client.ns.enter(|| UdpSocket::bind((stranger, 0))).expect("a socket");
        let unknown = honest(&socket, endpoint.nack_address(), &bytes);
        let metrics = daemon.metrics().expect("a scrape");
        assert!(metrics.count("bre_sends_held_total", &[]) > u64::from(RATE), "the strangers' answers waited");
        assert!(metrics.count("bre_sends_dropped_total", &[("reason", "unresolved")]) > u64::from(RATE));
        assert_eq!(metrics.count("bre_sends_dropped_total", &[("reason", "buffer_full")]), 0);
        let start = Instant::now();
        let status = daemon.end().expect("it ends");
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        assert!(strangers.join().expect("a flood") > RATE, "there was a flood");
        ((served, unknown), status, took)
    });
    let least = HONEST * 99 / 100;
    println!("served {served:?} of {HONEST}, ended after {took:?}");
    assert!(served.0 >= least, "{served:?} of {HONEST} NACKs of a known listener were served\n{}", daemon.log());
    assert!(served.1 >= least, "{served:?} of {HONEST} NACKs of a new listener were served\n{}", daemon.log());
    assert!(status.success() && took < Duration::from_secs(3), "{status} after {took:?}");
}

#[test]
fn strangers_leave_the_socket_path_alone() {
    if is_root("strangers_leave_the_socket_path_alone") {
        strangers("off", 300);
    }
}

#[test]
fn strangers_leave_the_generic_mode_alone() {
    if is_root("strangers_leave_the_generic_mode_alone") {
        strangers("skb", 300);
    }
}

#[test]
fn strangers_leave_frames_above_the_mtu_alone() {
    if is_root("strangers_leave_frames_above_the_mtu_alone") {
        strangers("native", 3_000);
    }
}

/// Frames that a listener misses and only an upstream endpoint has.
const RECOVERIES: usize = 20;
/// Misses per second of others, for frames that no endpoint has.
const MISSES: u32 = 1_000;

/// An upstream that says nothing is asked first, one that has the frames second; `source` says who floods.
fn recovers_among_strangers(xdp: &str, source: impl Fn(u32) -> Ipv6Addr + Send + Sync) -> Metrics {
    let domains = Domains::new();
    for number in 0..ASKERS {
        domains.far.add_address(asker_address(number)).expect("an address");
    }
    let up = domains.upstream("up", xdp, &[]);
    let silent = domains.host("spare");
    let _silent = silent.ns.enter(|| UdpSocket::bind((silent.addr, NACK_PORT))).expect("a socket");
    let between = domains.between(xdp, &["spare", "up"], &["-proxy-timeout", "300ms"]);
    // A flow per frame: of one of which nothing was heard here, frames are recovered one after the other.
    let flow = || Flow::new(Kind::Tx, 0, 2, 300..=300);
    let keys: Vec<_> = (0..RECOVERIES).map(|_| domains.publish(&mut flow(), &[&up]).0).collect();
    let far = Capture::start(&domains.far.ns, INTERFACE).expect("a capture");
    let socket = asker(&domains.far);

    let stop = AtomicBool::new(false);
    let recovered = std::thread::scope(|scope| {
        let strangers = scope.spawn(|| {
            let to = Flood { from: &domains.far, to: BETWEEN, to_mac: SECOND_MAC, rate: MISSES };
            flood(&to, |number| (source(number), FrameKey::new(0xbad, u64::from(number) + 1)), &stop)
        });
        std::thread::sleep(Duration::from_secs(2));
        for key in &keys {
            socket.send_to(&nack(*key), BETWEEN).expect("it leaves");
            std::thread::sleep(Duration::from_millis(100));
        }
        let deadline = Instant::now() + PATIENCE / 2;
        let recovered = loop {
            let seen = far.seen();
            let recovered = keys.iter().filter(|key| seen.iter().any(|packet| repairs(packet, **key))).count();
            if recovered == RECOVERIES || Instant::now() > deadline {
                break recovered;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        stop.store(true, Ordering::Relaxed);
        assert!(strangers.join().expect("a flood") > MISSES, "there was a flood");
        recovered
    });
    println!("recovered {recovered} of {RECOVERIES}");
    let metrics = between.metrics().expect("a scrape");
    let counted: Vec<_> = metrics.iter().filter(|(_, value)| *value > 0.0).collect();
    assert!(recovered >= RECOVERIES - 1, "{recovered} of {RECOVERIES} recovered, {counted:?}");
    // No amplifier: of what came by NACK no more goes upstream than one to each that answers, and a few to the other.
    let (asked, came) = (metrics.count("bre_proxy_nacks_total", &[]), metrics.count("bre_nack_requests_total", &[]));
    assert!(asked <= came * 3 / 2 + 300, "{asked} NACKs upstream for {came}");
    metrics
}

/// Addresses of one host that asks from many.
const ASKERS: u32 = 50;

const fn asker_address(number: u32) -> Ipv6Addr {
    Ipv6Addr::new(0xFD11, 0, 0, 0, 0, 0, 0xa5, (number % ASKERS) as u16)
}

#[test]
fn frames_are_recovered_among_strangers_that_exist() {
    if is_root("frames_are_recovered_among_strangers_that_exist") {
        let metrics = recovers_among_strangers("native", asker_address);
        assert_eq!(metrics.count("bre_proxy_failed_total", &[("reason", "asker")]), 0);
    }
}

#[test]
fn frames_are_recovered_among_strangers_that_do_not() {
    if is_root("frames_are_recovered_among_strangers_that_do_not") {
        let unused = |number: u32| Ipv6Addr::from_bits(unused(number).to_bits() ^ (0xFD10_u128 ^ 0xFD11) << 112);
        let metrics = recovers_among_strangers("off", unused);
        assert!(metrics.count("bre_proxy_failed_total", &[("reason", "asker")]) > u64::from(MISSES));
    }
}
