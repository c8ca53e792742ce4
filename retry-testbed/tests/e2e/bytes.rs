//! Budgets in bytes, measured where they arrive: what one source gets in any second, what all get together, and what an address gets
//! that has not shown that it hears.

use std::io::IoSliceMut;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt::ReceiveTimestampns};
use nix::sys::time::TimeSpec;
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::{Daemon, Metrics};
use retry_testbed::net::capture::RawSender;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{
    ask, asker, await_count, binary, counted, eventually, flags, frame, read_answers, two_hosts,
};

const KEY: FrameKey = FrameKey::new(0xB17E, 1);
const FRAME: usize = 400;
const SECOND: Duration = Duration::from_secs(1);
/// How long a flood goes on.
const FLOOD: Duration = Duration::from_secs(3);
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

fn bytes() -> Vec<u8> {
    frame(KEY, FRAME, 1)
}

fn start<'a>(xdp: &str, (endpoint, client): (&'a Host, &Host), more: &[&str]) -> Daemon<'a> {
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[&UNICAST, more].concat())).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &bytes()).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    daemon
}

fn over(metrics: &Metrics, level: &str) -> u64 {
    metrics.count("bre_rate_limit_drops_total", &[("level", level)])
}

/// Receives until `stop`: when the client's kernel got each datagram, and its bytes as an IPv6 packet.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Vec<(Duration, u64)> {
    setsockopt(socket, ReceiveTimestampns, &true).expect("an option");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let (mut buffer, mut control, mut got) = (vec![0; 65_536], cmsg_space!(TimeSpec), Vec::new());
    loop {
        // Asked before the look, so that what has come is counted.
        let last = stop.load(Ordering::Relaxed);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) {
            Ok(message) => {
                let at = message.cmsgs().expect("room").find_map(|one| match one {
                    ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
                    _ => None,
                });
                got.push((at.expect("the kernel stamps it"), message.bytes as u64 + 48));
            }
            Err(_) if last => return got,
            Err(_) => {}
        }
    }
}

/// The most bytes that any second has.
fn most_in_a_second(got: &[(Duration, u64)]) -> u64 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for (at, bytes) in got {
        sum += bytes;
        while got[first].0 + SECOND <= *at {
            sum -= got[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

/// NACKs from the addresses in turns, so many per second, for [`FLOOD`]; returns how many, and what came to `socket`.
fn flood(
    (endpoint, client): (&Host, &Host),
    from: &[Ipv6Addr],
    socket: &UdpSocket,
    rate: u32,
) -> (u32, Vec<(Duration, u64)>) {
    let port = socket.local_addr().expect("bound").port();
    let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
    let packets: Vec<Vec<u8>> = from
        .iter()
        .map(|source| {
            let source = SocketAddrV6::new(*source, port, 0, 0);
            let packet = PacketBuilder::udp(source, endpoint.nack_address(), &nack(KEY));
            PacketBuilder { dst_mac: endpoint.mac, src_mac: client.mac, ..packet }.build()
        })
        .collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(socket, &stop));
        let (start, mut sent) = (Instant::now(), 0_u32);
        for packet in packets.iter().cycle() {
            if start.elapsed() >= FLOOD {
                break;
            }
            sender.send(packet).expect("it leaves");
            sent += 1;
            thread::sleep((SECOND * sent / rate).saturating_sub(start.elapsed()));
        }
        thread::sleep(Duration::from_millis(200));
        stop.store(true, Ordering::Relaxed);
        let mut got = receiver.join().expect("no panic");
        got.sort_unstable();
        (sent, got)
    })
}

fn any_address(client: &Host) -> UdpSocket {
    client.ns.enter(|| UdpSocket::bind("[::]:0")).expect("a socket")
}

both_paths! {
    /// A source that asks for five times its budget gets its budget in no second more, and another source is served.
    no_second_has_more_than_a_sources_budget: no_second_has_more_than_a_sources_budget_native, no_second_has_more_than_a_sources_budget_off;
    /// Forged sources get no more than the total together.
    no_second_has_more_than_the_total: no_second_has_more_than_the_total_native, no_second_has_more_than_the_total_off;
    /// What an address gets for a NACK is no longer than the factor says, until it has shown that it hears.
    an_unproven_address_gets_the_factor: an_unproven_address_gets_the_factor_native, an_unproven_address_gets_the_factor_off;
}

fn no_second_has_more_than_a_sources_budget(xdp: &str) {
    const BUDGET: u64 = 200_000;
    let fabric = Fabric::flat(1500).expect("a fabric");
    let hosts = two_hosts(&fabric);
    let daemon = start(xdp, hosts, &["-rl-source-bytes", "200000"]);
    let (sent, got) = flood(hosts, &[hosts.1.addr], &any_address(hosts.1), 2_000);
    let (most, all) = (most_in_a_second(&got), got.iter().map(|(_, bytes)| bytes).sum::<u64>());
    println!("{sent} NACKs: {all} bytes, at most {most} in a second");
    assert!(most <= BUDGET, "{most} bytes in a second");
    // Half of it at once, and then half of it per second.
    assert!(all > 3 * BUDGET / 2, "{all} bytes");
    let other = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0x57, 1);
    fabric.add_addresses("client", &[other]).expect("an address");
    let socket = hosts.1.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(other, 0, 0, 0))).expect("a socket");
    socket.set_read_timeout(Some(SECOND)).expect("a timeout");
    assert_eq!(ask(&socket, hosts.0.nack_address(), &nack(KEY), 2).len(), 2, "another source has a budget of its own");
    let metrics = daemon.metrics().expect("a scrape");
    assert!(over(&metrics, "source_bytes") > u64::from(sent) / 2, "{} of {sent}", over(&metrics, "source_bytes"));
    assert_eq!(over(&metrics, "total_bytes") + over(&metrics, "unproven"), 0);
}

fn no_second_has_more_than_the_total(xdp: &str) {
    const BUDGET: u64 = 400_000;
    let fabric = Fabric::flat(1500).expect("a fabric");
    let hosts = two_hosts(&fabric);
    let daemon = start(xdp, hosts, &["-rl-total-bytes", "400000"]);
    let forged: Vec<_> = (1..=100).map(|number| Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0x57, number)).collect();
    fabric.add_addresses("client", &forged).expect("addresses");
    let (sent, got) = flood(hosts, &forged, &any_address(hosts.1), 2_000);
    let (most, all) = (most_in_a_second(&got), got.iter().map(|(_, bytes)| bytes).sum::<u64>());
    println!("{sent} NACKs: {all} bytes, at most {most} in a second");
    assert!(most <= BUDGET, "{most} bytes in a second");
    assert!(all > 3 * BUDGET / 2, "{all} bytes");
    let metrics = daemon.metrics().expect("a scrape");
    assert!(over(&metrics, "total_bytes") > u64::from(sent) / 3, "{} of {sent}", over(&metrics, "total_bytes"));
}

fn an_unproven_address_gets_the_factor(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let hosts = two_hosts(&fabric);
    let limits = ["-unproven-factor", "3", "-rl-throttle-response", "-rl-ip-rate", "100000", "-rl-ip-burst", "1000"];
    let to = hosts.0.nack_address();
    {
        let daemon = start(xdp, hosts, &limits);
        // Each address asks in one second only.
        let strangers: Vec<_> = (1..=100).map(|number| Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0x57, number)).collect();
        fabric.add_addresses("client", &strangers).expect("addresses");
        let mut heard = 0;
        for stranger in &strangers {
            let socket = hosts.1.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(*stranger, 0, 0, 0))).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
            for answer in ask(&socket, to, &nack(KEY), 2) {
                assert!(answer.len() + 48 <= 3 * 112, "{} bytes for a NACK", answer.len() + 48);
                assert_eq!(Answer::parse(&answer, 1), Ok(Answer::Throttled { hold: SECOND }));
                heard += 1;
            }
        }
        assert!(heard > 90, "{heard} of 100 heard a THROTTLED");
        await_count(&daemon, "bre_rate_limit_drops_total", &[("level", "unproven")], 100);
        // One that asks again and again is known, and is served in full.
        let listener = asker(hosts.1);
        eventually("a known listener", || {
            drop(ask(&listener, to, &nack(KEY), 1));
            thread::sleep(Duration::from_millis(500));
            daemon.metrics().expect("a scrape").count("bre_known_listeners", &[]) > 0
        });
        let before = over(&daemon.metrics().expect("a scrape"), "unproven");
        // A socket that nothing of before still comes to.
        let listener = asker(hosts.1);
        for _ in 0..50 {
            let (answers, came) = read_answers(&ask(&listener, to, &nack(KEY), 2), 1, &bytes());
            assert_eq!((answers, came), (vec![Answer::Ack { multicast: false, unicast: true }], true));
        }
        assert_eq!(over(&daemon.metrics().expect("a scrape"), "unproven"), before);
    }
    // Who stands on the allow list need not show it.
    let _daemon = start(xdp, hosts, &[&limits[..], &["-acl-allow", "fd10::/16"]].concat());
    let (answers, came) = read_answers(&ask(&asker(hosts.1), to, &nack(KEY), 2), 1, &bytes());
    assert_eq!((answers, came), (vec![Answer::Ack { multicast: false, unicast: true }], true));
}
