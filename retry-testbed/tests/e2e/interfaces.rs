//! More than one interface: repairs leave by every egress interface, answers by the one that the NACK came in by.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::net::netns::Netns;
use retry_testbed::net::packet::multicast_mac;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, datagrams_from, flags, frame, is_root, two_hosts};

const KEY: FrameKey = FrameKey::new(0xe9e5, 1);
/// The endpoint's address and MAC on its second interface.
const SECOND: Ipv6Addr = Ipv6Addr::new(0xfd11, 0, 0, 0, 0, 0, 0, 1);
const SECOND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// Gives the endpoint a second interface `eth1` with a host at its other end.
fn second_link(endpoint: &Netns) -> Netns {
    let far = Netns::new("second").expect("a namespace");
    endpoint
        .run(&["ip", "link", "add", "eth1", "type", "veth", "peer", "name", INTERFACE, "netns", far.name()])
        .expect("a veth pair");
    for (ns, name, mac, address) in
        [(endpoint, "eth1", "02:00:00:00:01:01", "fd11::1/64"), (&far, INTERFACE, "02:00:00:00:01:02", "fd11::2/64")]
    {
        ns.quiet_ipv6(name).expect("quiet");
        ns.run(&["ip", "link", "set", name, "address", mac]).expect("a MAC");
        ns.run(&["ip", "-6", "addr", "add", address, "dev", name, "nodad"]).expect("an address");
        ns.run(&["ip", "link", "set", name, "up"]).expect("up");
        ns.run(&["ethtool", "-K", name, "tx", "off", "gro", "on"]).expect("offloads");
    }
    // The kernel tells of a carrier a moment after it is there.
    std::thread::sleep(Duration::from_millis(1200));
    far
}

fn repairs_leave_by(egress: &str, xdp: &str, here: bool) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let far = second_link(&endpoint.ns);
    let flags = flags(xdp, &["-egress-iface", egress, "-nack-addr", "fd10::1", "-beacon-enabled=false"]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let bytes = frame(KEY, 701, 5);
    publish.send(group(0), &bytes).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);

    let near = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let beyond = Capture::start(&far, INTERFACE).expect("a capture");
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(KEY), 1);
    assert_eq!(Answer::parse(&answers[0], 1), Ok(Answer::Ack { multicast: true, unicast: false }));
    std::thread::sleep(Duration::from_millis(200));

    let repairs = |capture: &Capture, source: Ipv6Addr, mac: [u8; 6]| {
        let repairs: Vec<_> = datagrams_from(&capture.take(), source)
            .into_iter()
            .filter(|packet| packet.dst.ip().is_multicast() && packet.dst.port() == 9001)
            .collect();
        for packet in &repairs {
            assert_eq!((packet.src_mac, packet.dst_mac), (mac, multicast_mac(group(0))));
            assert_eq!((packet.src.port(), packet.hop_limit), (9300, 1));
            assert!(packet.payload == bytes, "the frame, byte for byte");
        }
        repairs.len()
    };
    assert_eq!(repairs(&near, endpoint.addr, endpoint.mac), usize::from(here));
    assert_eq!(repairs(&beyond, SECOND, SECOND_MAC), 1);
    let metrics = daemon.metrics().expect("a scrape");
    let path = if xdp == "off" { "user" } else { "xdp" };
    assert_eq!(metrics.count("bre_retransmits_total", &[("path", path)]), 1, "once, however many interfaces");
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "ack"), ("path", path)]), 1);
}

macro_rules! interfaces {
    ($($name:ident: $egress:literal $xdp:literal $here:literal;)*) => { $(
        #[test]
        fn $name() {
            if is_root(stringify!($name)) {
                repairs_leave_by($egress, $xdp, $here);
            }
        }
    )* };
}

interfaces! {
    two_egress_interfaces_native: "eth0,eth1" "native" true;
    two_egress_interfaces_off: "eth0,eth1" "off" true;
    another_egress_interface_native: "eth1" "native" false;
    another_egress_interface_off: "eth1" "off" false;
}

/// Repairs that the stack loops back are heard again: known by their source, and not stored.
#[test]
fn own_repairs_are_not_stored() {
    if !is_root("own_repairs_are_not_stored") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    for xdp in ["off", "native"] {
        let flags = flags(xdp, &["-egress-multicast-loop"]);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
        await_count(&daemon, "bre_frames_cached_total", &[], 1);
        let answers = ask(&asker(client), endpoint.nack_address(), &nack(KEY), 1);
        assert_eq!(Answer::parse(&answers[0], 1), Ok(Answer::Ack { multicast: true, unicast: false }));
        let metrics = await_count(&daemon, "bre_frames_dropped_total", &[("reason", "own_repair")], 1);
        assert_eq!(metrics.count("bre_frames_dropped_total", &[("reason", "own_repair")]), 1, "{xdp}");
        assert_eq!(metrics.count("bre_frames_cached_total", &[]), 1);
        assert_eq!(metrics.count("bre_cache_duplicates_total", &[]), 0);
        // Counted after it was sent, and so perhaps after it came back.
        let metrics = await_count(&daemon, "bre_retransmits_total", &[], 1);
        assert_eq!(metrics.count("bre_retransmits_total", &[("path", "user")]), 1, "such repairs are the daemon's");
    }
}
