//! `-xdp off` and `-xdp native` give the same answers to the same traffic, byte for byte.

use std::net::Ipv6Addr;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::net::packet::ParsedPacket;
use retry_testbed::peers::answer::{nack, nack_with_flags};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{asker, await_count, binary, datagrams_from, flags, frame, is_root, two_hosts};

const FLOW: u64 = 0x5a5a;

/// A datagram that came back: to the asker or to a group, and its bytes.
type Answer = (Option<Ipv6Addr>, Vec<u8>);

/// What each step sends: datagrams from one socket, one after the other.
fn script() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let good = |seq_num| nack(FrameKey::new(FLOW, seq_num)).to_vec();
    let broken = |change: fn(&mut Vec<u8>)| {
        let mut bytes = good(1);
        change(&mut bytes);
        vec![bytes]
    };
    let mut steps = vec![
        ("a hit", vec![good(1)]),
        ("again within the hold-down", vec![good(1)]),
        ("the shortest frame", vec![good(2)]),
        ("an odd length", vec![good(3)]),
        ("the longest", vec![good(4)]),
        ("a miss", vec![good(77)]),
        ("another flow", vec![nack(FrameKey::new(FLOW + 1, 1)).to_vec()]),
        ("SeqNum 0", vec![good(0)]),
        ("HashKey 0", vec![nack(FrameKey::new(0, 5)).to_vec()]),
        ("Proxied, held down", vec![nack_with_flags(FrameKey::new(FLOW, 1), 1).to_vec()]),
        ("unknown flags", vec![nack_with_flags(FrameKey::new(FLOW, 6), 0xfe).to_vec()]),
        ("a SubtreeID", broken(|bytes| bytes[32..].fill(0xab))),
        ("another protocol version", broken(|bytes| bytes[4] = 9)),
        ("wrong magic", broken(|bytes| bytes[0] = 0)),
        ("wrong type", broken(|bytes| bytes[6] = 0x11)),
        ("a range", broken(|bytes| bytes[31] = 2)),
        ("one frame too often", (0..8).map(|_| good(7)).collect()),
        ("misses too often", (0..8).map(|_| good(88)).collect()),
    ];
    for length in [0, 1, 15, 16, 63, 65, 128, 1400] {
        let mut bytes = good(1);
        bytes.resize(length, 0);
        steps.push(("another size", vec![bytes]));
    }
    steps.push(("the chain too often", (0..40).map(|number| good(100 + number)).collect()));
    steps
}

fn answers(xdp: &str, mode: &[&str]) -> Vec<(&'static str, Vec<Answer>)> {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut more = vec![
        "-repair-holddown",
        "1h",
        "-rl-sequence-max",
        "5",
        "-rl-sequence-window",
        "1h",
        "-rl-chain-rate",
        "40",
        "-rl-chain-window",
        "1h",
    ];
    more.extend(mode);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, std::sync::Arc::new(Journal::new())).expect("a publisher");
    let lengths = [(1, 308), (2, 0), (3, 777), (4, 1360), (6, 64), (7, 300)];
    for (seq_num, payload) in lengths {
        publish.send(group(0), &frame(FrameKey::new(FLOW, seq_num), payload, 3)).expect("a frame leaves");
    }
    publish.send(group(0), &frame(FrameKey::new(0, 5), 100, 4)).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 7);

    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let mut sockets = Vec::new();
    for (name, datagrams) in script() {
        let socket = asker(client);
        for datagram in &datagrams {
            socket.send_to(datagram, endpoint.nack_address()).expect("it leaves");
            // One after the other, so that what each charges is the same on both paths.
            std::thread::sleep(Duration::from_millis(3));
        }
        std::thread::sleep(Duration::from_millis(20));
        sockets.push((name, socket));
    }
    // Answers are told apart by the port that they come to, so that a slow machine mixes nothing up.
    std::thread::sleep(Duration::from_millis(500));
    let mut came = datagrams_from(&capture.take(), endpoint.addr);
    came.retain(|packet| packet.dst.port() != 9300);
    let mut all: Vec<_> = sockets
        .iter()
        .map(|(name, socket)| {
            let port = socket.local_addr().expect("an address").port();
            let to_it = came.iter().filter(|packet| packet.dst.port() == port && packet.dst.ip() == &client.addr);
            (*name, payloads(to_it))
        })
        .collect();
    all.push(("repairs by multicast", payloads(came.iter().filter(|packet| packet.dst.ip().is_multicast()))));
    let counted = all.iter().map(|(_, answers)| answers.len()).sum::<usize>();
    assert_eq!(counted, came.len(), "every answer has an asker");
    all
}

fn payloads<'a>(packets: impl Iterator<Item = &'a ParsedPacket>) -> Vec<Answer> {
    let mut payloads: Vec<Answer> = packets
        .map(|packet| {
            assert_eq!(packet.src.port(), 9300);
            (packet.dst.ip().is_multicast().then(|| *packet.dst.ip()), packet.payload.clone())
        })
        .collect();
    payloads.sort();
    payloads
}

/// Destination, length and type of each answer.
fn kinds(answers: &[Answer]) -> Vec<(Option<Ipv6Addr>, usize, u8)> {
    answers.iter().map(|(to, bytes)| (*to, bytes.len(), bytes[6])).collect()
}

fn same(name: &str, mode: &[&str]) {
    if !is_root(name) {
        return;
    }
    let (native, off) = (answers("native", mode), answers("off", mode));
    for ((step, native), (_, off)) in native.iter().zip(&off) {
        // Kinds first: a whole frame in an assertion is more than anyone reads.
        assert_eq!(kinds(native), kinds(off), "{step}: native, off");
        assert!(native == off, "{step}: the same kinds with other bytes");
    }
    let count = native.iter().map(|(_, answers)| answers.len()).sum::<usize>();
    assert!(count > 20, "only {count} answers in all");
}

#[test]
fn multicast_is_the_same_on_both_paths() {
    same("multicast_is_the_same_on_both_paths", &[]);
}

#[test]
fn both_is_the_same_on_both_paths() {
    same("both_is_the_same_on_both_paths", &["-beacon-flags-unicast", "-rl-throttle-response"]);
}

#[test]
fn unicast_is_the_same_on_both_paths() {
    same("unicast_is_the_same_on_both_paths", &["-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
}

#[test]
fn suppressed_answers_are_the_same_on_both_paths() {
    same(
        "suppressed_answers_are_the_same_on_both_paths",
        &["-beacon-flags-unicast", "-suppress-ack", "-suppress-miss", "-rl-throttle-response"],
    );
}
