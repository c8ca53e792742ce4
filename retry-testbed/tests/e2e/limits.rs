//! Who asks too much gets silence, or THROTTLED with the hold of the limit that it met, and each limit has its counter.

use std::net::Ipv6Addr;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::Metrics;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, ask_each, asker, binary, counted, flags, frame, path, read_answers, two_hosts};

const FLOW: u64 = 0x71;
/// Frames that the endpoint holds.
const FRAMES: u64 = 15;
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];
const ACK: Answer = Answer::Ack { multicast: false, unicast: true };

/// What became of each NACK: its answer if there was one. A hit's frame came with it, byte for byte.
struct Outcome {
    answers: Vec<Option<Answer>>,
    metrics: Metrics,
}

impl Outcome {
    fn count(&self, wanted: Option<Answer>) -> u64 {
        u64::try_from(self.answers.iter().filter(|answer| **answer == wanted).count()).expect("few")
    }

    /// How many of the NACKs in this range got which of these answers. Two threads that serve one socket overtake each
    /// other: how many are admitted is certain, and which is not.
    fn of<const N: usize>(&self, range: Range<usize>, wanted: [Option<Answer>; N]) -> [usize; N] {
        wanted.map(|wanted| self.answers[range.clone()].iter().filter(|answer| **answer == wanted).count())
    }

    fn limited(&self, level: &str, xdp: &str) -> u64 {
        self.metrics.count("bre_rate_limit_drops_total", &[("level", level), ("path", path(xdp))])
    }
}

fn bytes_of(seq_num: u64) -> Vec<u8> {
    frame(FrameKey::new(FLOW, seq_num), 300, u8::try_from(seq_num).expect("few"))
}

/// Asks an endpoint with these limits for these frames, from sockets of one address.
fn outcome(xdp: &str, limits: &[&str], keys: &[FrameKey]) -> Outcome {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, limits)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    for seq_num in 1..=FRAMES {
        publish.send(group(0), &bytes_of(seq_num)).expect("a frame leaves");
    }
    counted(&daemon, "bre_frames_cached_total", &[], FRAMES);
    let nacks: Vec<_> = keys.iter().map(|key| nack(*key).to_vec()).collect();
    let answers = ask_each(client, endpoint.nack_address(), &nacks)
        .iter()
        .zip(keys)
        .map(|(answers, key)| {
            let (answers, came) = read_answers(answers, key.seq_num(), &bytes_of(key.seq_num()));
            assert!(answers.len() <= 1, "{answers:?}");
            let unicast = answers.first() == Some(&ACK);
            assert_eq!(came, unicast, "an ACK and its frame, or neither");
            answers.first().copied()
        })
        .collect();
    let metrics = counted(&daemon, "bre_nack_requests_total", &[], u64::try_from(keys.len()).expect("few"));
    Outcome { answers, metrics }
}

fn with<'a>(limits: &[&'a str], throttle: bool) -> Vec<&'a str> {
    let mut all = UNICAST.to_vec();
    all.extend(limits);
    if throttle {
        all.push("-rl-throttle-response");
    }
    all
}

const fn throttled(bucket: u8) -> Option<Answer> {
    Some(Answer::Throttled { hold: Duration::from_millis(125 << bucket) })
}

/// Flooding addresses hear nothing, whatever they send, also where others would hear THROTTLED.
fn address_limit(xdp: &str) {
    let keys: Vec<_> = (1..=12).map(|seq_num| FrameKey::new(FLOW, seq_num)).collect();
    let got = outcome(xdp, &with(&["-rl-ip-rate", "1", "-rl-ip-burst", "4"], true), &keys);
    assert!(got.count(Some(ACK)) >= 4, "{:?}", got.answers);
    // A token comes back each second.
    assert!(got.count(None) >= 4, "{:?}", got.answers);
    assert_eq!(got.count(Some(ACK)) + got.count(None), 12);
    assert_eq!(got.limited("ip", xdp), got.count(None));
}

/// `-rl-sequence-max` repairs of a frame, then bucket 2; other frames are not touched.
fn sequence_limit(xdp: &str) {
    for (throttle, over) in [(true, throttled(2)), (false, None)] {
        let mut keys = vec![FrameKey::new(FLOW, 1); 9];
        keys.push(FrameKey::new(FLOW, 2));
        keys.extend([FrameKey::new(FLOW, 99); 7]);
        let limits = with(&["-rl-sequence-max", "5", "-rl-sequence-window", "1h"], throttle);
        let got = outcome(xdp, &limits, &keys);
        let (hit, miss) = (Some(ACK), Some(Answer::Miss));
        assert_eq!((got.of(0..9, [hit, over]), got.answers[9]), ([5, 4], hit));
        assert_eq!(got.of(10..17, [miss, over]), [5, 2]);
        assert_eq!(got.limited("sequence", xdp), 6);
    }
}

/// No window has more answers than its limit, wherever it begins: asked all the time, the fourth answer comes a whole window
/// after the first.
fn any_window(xdp: &str) {
    const WINDOW: Duration = Duration::from_millis(800);
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let limits = with(&["-rl-sequence-max", "3", "-rl-sequence-window", "800ms"], true);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &bytes_of(1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let socket = asker(client);
    // When the NACK left, and when its answer was there: it was charged in between.
    let mut served = Vec::new();
    let end = Instant::now() + 6 * WINDOW;
    while Instant::now() < end {
        let asked = Instant::now();
        let answer = ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, 1)), 1);
        if Answer::parse(answer.first().expect("an answer"), 1) != Ok(throttled(2).expect("bucket 2")) {
            served.push((asked, Instant::now()));
            // Frame and ACK both come; the next NACK has an answer of its own.
            drop(ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(0, 99)), 2));
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(served.len() >= 9, "{} served in six windows", served.len());
    for four in served.windows(4) {
        let apart = four[3].1 - four[0].0;
        assert!(apart >= WINDOW, "four answers within {apart:?}");
    }
}

/// An ACK for a repair that had just left costs nothing: a hundred listeners that miss one frame use one repair up.
fn held_down_is_free(xdp: &str) {
    // Two workers that plan the repair at the same time are both charged, and one of them sends it.
    let limits = ["-nack-workers", "2", "-repair-holddown", "1h", "-rl-sequence-max", "3", "-rl-sequence-window", "1h"];
    let got = outcome(xdp, &limits, &[FrameKey::new(FLOW, 1); 20]);
    assert_eq!(got.count(Some(Answer::Ack { multicast: true, unicast: false })), 20, "{:?}", got.answers);
    assert_eq!(got.metrics.count("bre_retransmits_total", &[("path", path(xdp))]), 1);
    assert_eq!(got.metrics.count("bre_retransmit_holddown_total", &[("path", path(xdp))]), 19);
    assert_eq!(got.limited("sequence", xdp), 0);
}

/// `-rl-chain-rate` NACKs of an address for a flow, then bucket 3; HashKey 0 and other flows are not touched.
fn chain_limit(xdp: &str) {
    for (throttle, over) in [(true, throttled(3)), (false, None)] {
        let mut keys: Vec<_> = (1..=12).map(|seq_num| FrameKey::new(FLOW, seq_num)).collect();
        keys.push(FrameKey::new(FLOW + 1, 1));
        keys.extend((1..=12).map(|seq_num| FrameKey::new(0, seq_num)));
        let limits = with(&["-rl-chain-rate", "8", "-rl-chain-window", "1h"], throttle);
        let got = outcome(xdp, &limits, &keys);
        assert_eq!(got.of(0..12, [Some(ACK), over]), [8, 4]);
        assert_eq!(got.of(12..25, [Some(Answer::Miss)]), [13]);
        assert_eq!(got.limited("chain", xdp), 4);
    }
}

/// Hits above `-rl-group-rate` get bucket 4 and never an ACK; MISSes are not charged.
fn group_limit(xdp: &str) {
    for (throttle, over) in [(true, throttled(4)), (false, None)] {
        let mut keys: Vec<_> = (50..60).map(|seq_num| FrameKey::new(FLOW, seq_num)).collect();
        keys.extend((1..=12).map(|seq_num| FrameKey::new(FLOW, seq_num)));
        let got = outcome(xdp, &with(&["-rl-group-rate", "1", "-rl-group-burst", "4"], throttle), &keys);
        assert_eq!(got.count(Some(Answer::Miss)), 10, "{:?}", got.answers);
        assert!(got.count(Some(ACK)) >= 4, "{:?}", got.answers);
        assert!(got.count(over) >= 4, "{:?}", got.answers);
        assert_eq!(got.count(Some(ACK)) + got.count(over), 12);
        assert_eq!(got.limited("group", xdp), got.count(over));
        assert_eq!(got.metrics.count("bre_cache_hits_total", &[]), 12, "the look-up comes first");
    }
}

/// Half a token a second: the burst, then one answer every two seconds.
fn half_a_token(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let limits = ["-rl-ip-rate", "0.5", "-rl-ip-burst", "2", "-rl-chain-rate", "0"];
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
    let socket = asker(client);
    let is_answered = |seq_num| {
        let answers = ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, seq_num)), 1);
        !answers.is_empty()
    };
    let begin = Instant::now();
    assert_eq!([is_answered(1), is_answered(2), is_answered(3)], [true, true, false]);
    thread::sleep(Duration::from_millis(1_300).saturating_sub(begin.elapsed()));
    assert!(!is_answered(4), "no token after 1.6 s");
    thread::sleep(Duration::from_millis(2_200).saturating_sub(begin.elapsed()));
    assert_eq!([is_answered(5), is_answered(6)], [true, false], "one after 2 s");
}

/// Half a NACK per second for one flow is one per two seconds.
fn half_a_nack(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let limits = ["-rl-chain-rate", "0.5", "-rl-chain-window", "1s"];
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
    let socket = asker(client);
    let is_answered = |seq_num| {
        let answers = ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, seq_num)), 1);
        !answers.is_empty()
    };
    let begin = Instant::now();
    assert_eq!([is_answered(1), is_answered(2)], [true, false]);
    thread::sleep(Duration::from_millis(1_500).saturating_sub(begin.elapsed()));
    assert!(!is_answered(3), "the window is two seconds");
    thread::sleep(Duration::from_millis(2_500).saturating_sub(begin.elapsed()));
    assert!(is_answered(4));
}

both_paths! {
    half_a_token: half_a_token_native, half_a_token_off;
    half_a_nack: half_a_nack_native, half_a_nack_off;
    address_limit: address_limit_native, address_limit_off;
    sequence_limit: sequence_limit_native, sequence_limit_off;
    any_window: any_window_native, any_window_off;
    held_down_is_free: held_down_is_free_native, held_down_is_free_off;
    chain_limit: chain_limit_native, chain_limit_off;
    group_limit: group_limit_native, group_limit_off;
}

/// Budgets of addresses and flows are an address's own: what one has used up is there for the other.
fn another_address(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let other = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x22);
    client.add_address(other).expect("an address");
    let limits = ["-rl-chain-rate", "2", "-rl-chain-window", "1h", "-rl-ip-rate", "1", "-rl-ip-burst", "5"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
    let answers = |from: Ipv6Addr| {
        let socket = client.ns.enter(|| std::net::UdpSocket::bind((from, 0))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        (1..=3)
            .filter(|seq_num| {
                let nack = nack(FrameKey::new(FLOW, *seq_num));
                !ask(&socket, endpoint.nack_address(), &nack, 1).is_empty()
            })
            .count()
    };
    let got = (answers(client.addr), answers(client.addr), answers(other));
    let metrics = daemon.metrics().expect("a scrape");
    let counted: Vec<_> = metrics.iter().filter(|(_, value)| *value > 0.0).collect();
    assert_eq!(got, (2, 0, 2), "{counted:?}");
    assert_eq!(metrics.count("bre_rate_limit_drops_total", &[("level", "chain")]), 5);
}

both_paths! {
    another_address: another_address_native, another_address_off;
    table_entries: table_entries_native, table_entries_off;
}

/// `-limit-table-entries`: frames whose limit is used up are remembered as long as there is room.
fn table_entries(xdp: &str) {
    const ASKED: u64 = 6_000;
    let refused = |entries: &str| {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let limits = ["-rl-sequence-max", "1", "-rl-sequence-window", "1h", "-limit-table-entries", entries];
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
        let socket = asker(client);
        for round in 1..=2 {
            for seq_num in 1..=ASKED {
                let nack = nack(FrameKey::new(FLOW, seq_num));
                socket.send_to(&nack, endpoint.nack_address()).expect("a NACK leaves");
                if seq_num % 50 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
            }
            counted(&daemon, "bre_nack_requests_total", &[], round * ASKED);
        }
        let metrics = daemon.metrics().expect("a scrape");
        metrics.count("bre_rate_limit_drops_total", &[("level", "sequence"), ("path", path(xdp))])
    };
    let (few, all) = (refused("1024"), refused("65536"));
    assert!(few < ASKED / 2, "as many as there is room for, and not all: {few} of {ASKED}");
    assert!(all >= ASKED - 20, "{all} of {ASKED}");
}
