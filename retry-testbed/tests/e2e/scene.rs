//! What the tests have in common: hosts, the daemon's flags, raw NACKs and what came back.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::http::Metrics;
use retry_testbed::net::capture::{Captured, is_udp};
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::net::packet::{Packet, ParsedPacket};

/// True when this test may run; says so when it may not.
pub(crate) fn is_root(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {name}: needs root");
    }
    root
}

/// The daemon's binary.
pub(crate) fn binary() -> PathBuf {
    Daemon::binary().expect("xtask names the daemon's binary")
}

/// Small rings, all planes, no limits; what comes later wins.
pub(crate) fn flags<'a>(xdp: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec![
        "-xdp",
        xdp,
        "-cache-memory",
        "16m",
        "-cache-memory-long",
        "16m",
        "-subtree-data-enabled",
        "-beef-enabled",
        "-rl-ip-rate",
        "0",
        "-rl-chain-rate",
        "0",
        "-rl-sequence-max",
        "0",
        "-rl-group-rate",
        "0",
    ];
    flags.extend(more);
    flags
}

/// Waits until a counter of the daemon has this value, or five seconds; returns the last scrape.
pub(crate) fn await_count(daemon: &Daemon<'_>, metric: &str, labels: &[(&str, &str)], value: u64) -> Metrics {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let metrics = daemon.metrics().expect("a scrape");
        if metrics.count(metric, labels) >= value || Instant::now() > deadline {
            return metrics;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A socket of a listener that asks.
pub(crate) fn asker(host: &Host) -> UdpSocket {
    let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(host.addr, 0, 0, 0))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    socket
}

/// Asks for a frame and returns every datagram that comes back to the socket until `wanted` are there or a listener's patience is over.
pub(crate) fn ask(socket: &UdpSocket, to: SocketAddrV6, nack: &[u8], wanted: usize) -> Vec<Vec<u8>> {
    socket.send_to(nack, to).expect("a NACK leaves");
    let mut answers = Vec::new();
    let mut buffer = vec![0; 65_536];
    while answers.len() < wanted {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                assert_eq!(from, to.into(), "an answer from elsewhere");
                answers.push(buffer[..length].to_vec());
            }
            Err(_) => break,
        }
    }
    answers
}

/// A transaction frame of `payload` bytes, in shard 0.
pub(crate) fn frame(key: FrameKey, payload: usize, salt: u8) -> Vec<u8> {
    let mut frame = vec![0; 92];
    frame[..8].copy_from_slice(&[0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 2, 0]);
    frame[8..40].fill(0x11);
    frame[40..56].copy_from_slice(&key.to_bytes());
    frame[88..92].copy_from_slice(&u32::try_from(payload).expect("short").to_be_bytes());
    frame.extend((0..payload).map(|at| u8::try_from((at + usize::from(salt)) % 251).expect("below 251")));
    frame
}

/// The UDP datagrams among `packets` that `source` sent, each with right lengths and checksum.
pub(crate) fn datagrams_from(packets: &[Captured], source: Ipv6Addr) -> Vec<ParsedPacket> {
    packets
        .iter()
        .filter(|packet| is_udp(&packet.bytes))
        .map(|packet| Packet::check(&packet.bytes))
        .filter(|packet| packet.as_ref().map_or(true, |packet| *packet.src.ip() == source))
        .map(|packet| packet.expect("a right packet"))
        .collect()
}

/// The two hosts of a flat fabric: endpoint and client.
pub(crate) fn two_hosts(fabric: &Fabric) -> (&Host, &Host) {
    (fabric.host("endpoint").expect("an endpoint"), fabric.host("client").expect("a client"))
}
