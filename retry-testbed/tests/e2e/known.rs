//! Strangers use up the window of a frame that listeners who are known need: those are served all the same.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::relay::{End, Relay};
use retry_testbed::scene::{
    ask, asker, await_count, binary, counted, eventually, flags, frame, is_root, read_answers, two_hosts,
};

const FLOW: u64 = 0x0c4a;
/// What the window of a frame has room for.
const MOST: u64 = 3;
const LIMITS: [&str; 6] = ["-rl-ip-rate", "50", "-rl-sequence-max", "3", "-rl-sequence-window", "1h"];

fn key(seq_num: u64) -> FrameKey {
    FrameKey::new(FLOW, seq_num)
}

/// The addresses of strangers, on the client's host.
fn strangers(fabric: &Fabric) -> Vec<Ipv6Addr> {
    let addresses: Vec<Ipv6Addr> = (1..=8).map(|number| Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0x57, number)).collect();
    fabric.add_addresses("client", &addresses).expect("addresses");
    addresses
}

/// How many of them are answered, each from a socket that has got nothing before.
fn answered(addresses: &[Ipv6Addr], host: &Host, to: SocketAddrV6, seq_num: u64) -> u64 {
    let socket = |address| {
        let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(address, 0, 0, 0))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        socket
    };
    let served = addresses.iter().filter(|address| !ask(&socket(**address), to, &nack(key(seq_num)), 1).is_empty());
    u64::try_from(served.count()).expect("few")
}

fn publish(daemon: &Daemon<'_>, client: &Host, frames: u64) {
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    for seq_num in 1..=frames {
        publish.send(group(0), &frame(key(seq_num), 300, 1)).expect("a frame leaves");
    }
    counted(daemon, "bre_frames_cached_total", &[], frames);
}

/// Asks for one frame again and again, in different seconds.
fn becomes_known(daemon: &Daemon<'_>, socket: &UdpSocket, to: SocketAddrV6) {
    let mut seq_num = 0;
    eventually("a known listener", || {
        seq_num += 1;
        assert!(!ask(socket, to, &nack(key(seq_num)), 1).is_empty(), "it is served");
        std::thread::sleep(Duration::from_millis(500));
        daemon.metrics().expect("a scrape").count("bre_known_listeners", &[]) == 1
    });
}

both_paths! {
    /// With copies for all: the known listener has one more. Where repairs are multicast: one of its own.
    known_listeners_are_served: known_listeners_are_served_native, known_listeners_are_served_off;
}

fn known_listeners_are_served(xdp: &str) {
    for ways in [&["-beacon-flags-unicast", "-beacon-flags-multicast=false"][..], &["-repair-holddown", "0"]] {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &[&LIMITS, ways].concat())).expect("a daemon");
        publish(&daemon, client, 60);
        let (listener, to) = (asker(client), endpoint.nack_address());
        becomes_known(&daemon, &asker(client), to);

        let strangers = strangers(&fabric);
        // A frame that is there, and one that is not.
        for (seq_num, is_held) in [(50, true), (90, false)] {
            let served = answered(&strangers, client, to, seq_num);
            assert_eq!(served, MOST, "strangers have the window and no more");
            let answers = ask(&listener, to, &nack(key(seq_num)), if is_held { 2 } else { 1 });
            let (answers, came) = read_answers(&answers, seq_num, &frame(key(seq_num), 300, 1));
            let answer = if is_held { Answer::Ack { multicast: false, unicast: true } } else { Answer::Miss };
            assert_eq!((answers, came), (vec![answer], is_held), "{ways:?}, {seq_num}");
        }
        await_count(&daemon, "bre_rate_limit_relieved_total", &[], 2);
        // Its own limit holds.
        let sent: Vec<_> = (0..200).map(|_| listener.send_to(&nack(key(50)), to).expect("a NACK leaves")).collect();
        await_count(&daemon, "bre_nack_requests_total", &[], u64::try_from(sent.len()).expect("few"));
        let dropped = || daemon.metrics().expect("a scrape").count("bre_rate_limit_drops_total", &[("level", "ip")]);
        eventually("its own limit", || dropped() > 100);
    }
}

/// Who was known before a restart still is, and with `-known-listeners 0` no listener is.
#[test]
fn who_is_known_outlives_the_daemon() {
    if !is_root("who_is_known_outlives_the_daemon") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = |known: &'static str| [&LIMITS[..], &["-beacon-flags-unicast", "-known-listeners", known]].concat();
    let mut relay = Relay::start(&binary(), endpoint, &flags("native", &more("10"))).expect("a daemon");
    publish(relay.daemon(), client, 60);
    let to = endpoint.nack_address();
    becomes_known(relay.daemon(), &asker(client), to);
    assert_eq!(answered(&strangers(&fabric), client, to, 50), MOST);
    for (known, is_served) in [("10", true), ("0", false)] {
        let metrics = relay.hand_over(End::Told, &flags("native", &more(known))).expect("another daemon");
        assert_eq!(metrics.count("bre_known_listeners", &[]), u64::from(is_served));
        let answers = ask(&asker(client), to, &nack(key(50)), 2);
        assert_eq!(answers.is_empty(), !is_served, "-known-listeners {known}: {answers:02x?}");
    }
    relay.end().expect("it ends");
}
