//! Frames of senders that may not fill the cache: by unicast, from sources that are not joined, and bundles that name a group
//! which is not theirs to name.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{DATA_PORT, Fabric, Host, group_in};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::peers::tee::TeeSender;
use retry_testbed::scene::{ask, asker, await_count, binary, flags, frame, is_root, two_hosts};

const FLOW: u64 = 0x5747;
const ASM: u16 = 0xFF05;
const SSM: u16 = 0xFF35;
/// A source that no setting names.
const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x66);

const fn key(seq_num: u64) -> FrameKey {
    FrameKey::new(FLOW, seq_num)
}

/// True when the endpoint has the frame of this key.
fn is_held(client: &Host, endpoint: &Host, key: FrameKey) -> bool {
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
    let answer = answers.first().map(|bytes| Answer::parse(bytes, key.seq_num()));
    let held = matches!(answer, Some(Ok(Answer::Ack { .. })));
    assert!(held || answer == Some(Ok(Answer::Miss)), "{key}: {answer:?}");
    held
}

/// Sends frames by unicast to the data port, one alone and some that the endpoint's socket may get as one.
fn send_by_unicast(client: &Host, endpoint: &Host, keys: std::ops::Range<u64>) {
    let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(client.addr, 0, 0, 0))).expect("a socket");
    let to = SocketAddrV6::new(endpoint.addr, DATA_PORT, 0, 0);
    let mut frames = keys.map(|seq_num| frame(key(seq_num), 300, 1));
    socket.send_to(&frames.next().expect("at least one"), to).expect("it leaves");
    let train: Vec<u8> = frames.flatten().collect();
    setsockopt(&socket, sockopt::UdpGsoSegment, &392).expect("an option");
    socket.send_to(&train, to).expect("it leaves");
}

/// Neither fill stores what comes by unicast, whether sources are named or not.
fn unicast(xdp: &str, fill: &str, prefix: u16) {
    const UNICAST: u64 = 11;
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let named = client.addr.to_string();
    let mut more = vec!["-fill", fill];
    if prefix == SSM {
        more.extend(["-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", &named]);
    }
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    send_by_unicast(client, endpoint, 1..1 + UNICAST);
    let publish = Publisher::open_from(&client.ns, client.addr, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group_in(prefix, 0), &frame(key(100), 300, 1)).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);
    let metrics = await_count(&daemon, "bre_frames_received_total", &[], UNICAST + 1);
    assert!(is_held(client, endpoint, key(100)), "what came by multicast");
    for seq_num in 1..1 + UNICAST {
        assert!(!is_held(client, endpoint, key(seq_num)), "{} came by unicast", key(seq_num));
    }
    assert_eq!(metrics.count("bre_frames_received_total", &[]), UNICAST + 1);
    assert_eq!(metrics.count("bre_frames_dropped_total", &[("reason", "not_joined")]), UNICAST);
    assert_eq!(daemon.metrics().expect("a scrape").count("bre_frames_cached_total", &[]), 1);
}

/// With sources named, the daemon's sockets drop what another source sends to a joined group, on a link where no switch does.
fn unjoined_source(xdp: &str, fill: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    client.add_address(STRANGER).expect("an address");
    let named = client.addr.to_string();
    let more = ["-fill", fill, "-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", &named];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    let open = |from| Publisher::open_from(&client.ns, from, Arc::new(Journal::new())).expect("a publisher");
    let (stranger, joined) = (open(STRANGER), open(client.addr));
    for seq_num in 1..=20 {
        stranger.send(group_in(SSM, 0), &frame(key(seq_num), 300, 1)).expect("a frame leaves");
    }
    // To a group of the any-source range, and to one that is not joined: from the joined source.
    joined.send(group_in(ASM, 0), &frame(key(21), 300, 1)).expect("a frame leaves");
    joined.send(group_in(SSM, 9), &frame(key(22), 300, 1)).expect("a frame leaves");
    joined.send(group_in(SSM, 0), &frame(key(23), 300, 1)).expect("a frame leaves");
    let metrics = await_count(&daemon, "bre_frames_cached_total", &[], 1);
    assert!(is_held(client, endpoint, key(23)));
    for seq_num in [1, 20, 21, 22] {
        assert!(!is_held(client, endpoint, key(seq_num)), "{}", key(seq_num));
    }
    assert_eq!(metrics.count("bre_frames_received_total", &[]), 1, "the kernel drops the others");
}

/// A bundle says itself to which group its repair goes: to one of the joined shards, or it is not stored. By multicast and by the
/// tee.
fn bundle_of_another_group(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-tee-listen", "[::1]:9002"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let publish = Publisher::open(&client.ns, Arc::clone(&journal)).expect("a publisher");
    let tee = TeeSender::open(&endpoint.ns, "[::1]:9002".parse().expect("an address"), &journal).expect("a sender");
    // Shards are 0 to 3 here. Blocks, the plane of BEEF objects and beacons have groups too, none of which carries bundles.
    let strange = [4_u16, 0x0FFF, 0x1000, 0xFFFB, 0xFFFD, 0xFFFE, 0xFFFF];
    let mut flow = Flow::new(Kind::Bundle, 3, 2, 200..=300).with_hash_key(FLOW);
    for index in strange {
        for send in [&|frame: &[u8]| publish.send(group_in(ASM, 3), frame).expect("it leaves"), &|frame: &[u8]| {
            tee.raw(frame).expect("it leaves")
        }] as [&dyn Fn(&[u8]) -> Option<FrameKey>; 2]
        {
            let mut frame = flow.next_frame();
            frame[56..58].copy_from_slice(&index.to_be_bytes());
            send(&frame);
        }
    }
    let refused = 2 * u64::try_from(strange.len()).expect("few");
    let good = flow.next_key();
    publish.send(group_in(ASM, 3), &flow.next_frame()).expect("it leaves");
    let metrics = await_count(&daemon, "bre_frames_received_total", &[], refused + 1);
    assert_eq!(metrics.count("bre_frames_received_total", &[]), refused + 1);
    for seq_num in 1..=refused {
        assert!(!is_held(client, endpoint, key(seq_num)), "{}", key(seq_num));
    }
    assert!(is_held(client, endpoint, good));
    let metrics = await_count(&daemon, "bre_frames_dropped_total", &[("reason", "group_index")], refused);
    assert_eq!(metrics.count("bre_frames_dropped_total", &[("reason", "group_index")]), refused);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 1);
}

macro_rules! cases {
    ($($name:ident: $call:expr;)*) => { $(
        #[test]
        fn $name() {
            if is_root(stringify!($name)) {
                $call;
            }
        }
    )* };
}

cases! {
    unicast_kernel_fill: unicast("native", "auto", ASM);
    unicast_daemon_fill: unicast("native", "daemon", ASM);
    unicast_off: unicast("off", "auto", ASM);
    unicast_named_sources_kernel_fill: unicast("native", "auto", SSM);
    unicast_named_sources_daemon_fill: unicast("native", "daemon", SSM);
    unicast_named_sources_off: unicast("off", "auto", SSM);
    unjoined_source_kernel_fill: unjoined_source("native", "auto");
    unjoined_source_daemon_fill: unjoined_source("native", "daemon");
    unjoined_source_off: unjoined_source("off", "auto");
    bundle_of_another_group_native: bundle_of_another_group("native");
    bundle_of_another_group_off: bundle_of_another_group("off");
}
