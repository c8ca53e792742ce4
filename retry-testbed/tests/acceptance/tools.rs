//! What these tests have in common beside the scene: waiting, many NACKs at once, and a test a path.

use std::net::{SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::http::Metrics;
use retry_testbed::daemon::{BPFFS, Daemon};
use retry_testbed::net::capture::{Capture, Captured, is_udp};
use retry_testbed::net::fabric::Host;
use retry_testbed::net::packet::{Packet, ParsedPacket};
use retry_testbed::peers::announce::{Advert, BEACON_PORT};
use retry_testbed::peers::answer::Answer;
use retry_testbed::peers::journal::key_of;

use super::scene::{asker, await_count};

/// Long enough for a busy machine; nothing waits so long when it works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// One test with XDP in the driver, one with the daemon's socket alone.
macro_rules! both_paths {
    ($($(#[$doc:meta])* $body:ident: $native:ident, $off:ident;)*) => { $(
        $(#[$doc])*
        #[test]
        fn $native() {
            if $crate::scene::is_root(stringify!($native)) {
                $body("native");
            }
        }

        $(#[$doc])*
        #[test]
        fn $off() {
            if $crate::scene::is_root(stringify!($off)) {
                $body("off");
            }
        }
    )* };
}
pub(crate) use both_paths;

/// A directory for pins of one test; what a daemon leaves there goes with it.
pub(crate) struct Pins(PathBuf);

impl Pins {
    pub(crate) fn new(label: &str) -> Self {
        Self(Path::new(BPFFS).join(format!("retry-acceptance-{label}-{}", std::process::id())))
    }

    pub(crate) fn name(&self) -> &str {
        self.0.to_str().expect("a name")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // It is not there when no daemon pinned anything.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The label `path` of what this `-xdp` mode serves.
pub(crate) fn path(xdp: &str) -> &'static str {
    if xdp == "off" { "user" } else { "xdp" }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until a counter has at least this value and returns the scrape; shows the daemon's log when it never has.
pub(crate) fn counted(daemon: &Daemon<'_>, metric: &str, labels: &[(&str, &str)], value: u64) -> Metrics {
    let metrics = await_count(daemon, metric, labels, value);
    let found = metrics.count(metric, labels);
    assert!(found >= value, "{metric}{labels:?} is {found}, not {value}\n{}", daemon.log());
    metrics
}

/// Sends each datagram from a socket of its own, one after the other, and returns what came back to each.
///
/// Reading ends when nothing has come for half a second.
pub(crate) fn ask_each(host: &Host, to: SocketAddrV6, datagrams: &[Vec<u8>]) -> Vec<Vec<Vec<u8>>> {
    let sockets: Vec<UdpSocket> = datagrams.iter().map(|_| asker(host)).collect();
    for (socket, datagram) in sockets.iter().zip(datagrams) {
        socket.set_nonblocking(true).expect("not blocking");
        socket.send_to(datagram, to).expect("it leaves");
    }
    let mut answers = vec![Vec::new(); sockets.len()];
    let mut buffer = vec![0; 65_536];
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(500) {
        for (socket, answers) in sockets.iter().zip(&mut answers) {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                assert_eq!(from, to.into(), "an answer from elsewhere");
                answers.push(buffer[..length].to_vec());
                last = Instant::now();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    answers
}

/// What NACKs for these frames got, each: the answers in words, and whether the frame came, byte for byte.
pub(crate) fn read_answers(answers: &[Vec<u8>], seq_num: u64, frame: &[u8]) -> (Vec<Answer>, bool) {
    let (frames, answers): (Vec<_>, Vec<_>) = answers.iter().partition(|bytes| bytes.len() != 16);
    assert!(frames.len() <= 1 && frames.iter().all(|bytes| bytes.as_slice() == frame), "other bytes than published");
    let answers = answers.iter().map(|bytes| Answer::parse(bytes, seq_num).expect("an answer")).collect();
    (answers, !frames.is_empty())
}

/// Whether a packet is a multicast to the data port from this host's NACK port: a repair.
pub(crate) fn is_repair(packet: &ParsedPacket) -> bool {
    packet.dst.ip().is_multicast() && packet.dst.port() == 9001 && packet.src.port() == 9300
}

/// Whether a packet is a multicast repair of this frame.
pub(crate) fn repairs(packet: &Captured, key: FrameKey) -> bool {
    is_udp(&packet.bytes)
        && Packet::check(&packet.bytes).is_ok_and(|packet| is_repair(&packet) && key_of(&packet.payload) == Some(key))
}

/// The ADVERTs among captured packets, each with its packet.
pub(crate) fn adverts(packets: &[Captured]) -> Vec<(ParsedPacket, Advert)> {
    packets
        .iter()
        .filter(|packet| is_udp(&packet.bytes))
        .filter_map(|packet| Packet::check(&packet.bytes).ok())
        .filter(|packet| packet.dst.port() == BEACON_PORT && packet.dst.ip().is_multicast())
        .filter(|packet| packet.payload.get(6) == Some(&0x20))
        .map(|packet| {
            let advert = Advert::parse(&packet.payload).expect("a right ADVERT");
            (packet, advert)
        })
        .collect()
}

/// Waits until a capture has seen an ADVERT that is wanted, and returns all so far.
pub(crate) fn await_advert(capture: &Capture, wanted: impl Fn(&Advert) -> bool) -> Vec<(ParsedPacket, Advert)> {
    let mut seen = Vec::new();
    eventually("an ADVERT that is wanted", || {
        seen = adverts(&capture.seen());
        seen.iter().any(|(_, advert)| wanted(advert))
    });
    seen
}
