//! Upstream endpoints that nobody named: heard by their beacons, asked like the others, and said to have a child.

use std::sync::Arc;

use retry_testbed::answer::{Answer, nack};
use retry_testbed::capture::Capture;
use retry_testbed::daemon::Daemon;
use retry_testbed::fabric::{Fabric, INTERFACE, group};
use retry_testbed::frames::{Flow, Kind};
use retry_testbed::journal::{Journal, Verdict};
use retry_testbed::loss::LossRule;
use retry_testbed::publish::Publisher;

use super::scene::{ask, asker, binary, flags};
use super::tools::{PATIENCE, await_advert, both_paths, counted, repairs};

/// An endpoint that lost the frame asks the one whose beacon it heard.
fn heard_by_beacon(xdp: &str) {
    let fabric = Fabric::bridged(&["one", "other", "client", "publisher"], 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let beacon = group(0xFFFD);
    let start = |name, more: &[&str]| {
        let mut flags = flags(xdp, &["-beacon-interval", "1s", "-instance", name, "-proxy-timeout", "1s"]);
        flags.extend(more);
        let daemon = Daemon::start(&binary(), &host(name).ns, &flags).expect("a daemon");
        fabric.await_members(name, &[group(0)]).expect("members");
        daemon
    };
    // By unicast, so that a multicast repair is the other one's.
    let one = start("one", &["-beacon-flags-multicast=false", "-beacon-flags-unicast"]);
    let other = start("other", &["-proxy-enabled", "-proxy-discover"]);
    fabric.await_members("other", &[beacon]).expect("it listens for beacons");
    let metrics = counted(&other, "bre_beacon_adverts_received_total", &[], 1);
    assert_eq!(metrics.count("bre_beacon_dropped_total", &[]), 0);

    let journal = Arc::new(Journal::new());
    let mut flow = Flow::new(Kind::SubtreeData, 0, 2, 500..=500);
    let groups = [group(flow.group_index()), beacon];
    let hears = host("client");
    let settings = retry_testbed::listener::ListenerSettings {
        ask: false,
        ..retry_testbed::listener::ListenerSettings::discovering(vec![groups[0]], vec![groups[1]])
    };
    let _member =
        retry_testbed::listener::Listener::start(&hears.ns, settings, Arc::clone(&journal)).expect("a member");
    fabric.await_members("client", &groups).expect("members");
    let capture = Capture::start(&hears.ns, INTERFACE).expect("a capture");
    let rule = LossRule::frames(flow.hash_key(), vec![1]).from(host("publisher").addr);
    let loss = fabric.lose("other", &rule).expect("a loss");
    let publish = Publisher::open(&host("publisher").ns, Arc::clone(&journal)).expect("a publisher");
    let key = publish.publish(&mut flow).expect("a frame leaves").expect("a key");
    counted(&one, "bre_frames_cached_total", &[], 1);
    assert_eq!(loss.dropped().expect("a count"), 1);

    let answers = ask(&asker(hears), host("other").nack_address(), &nack(key), 1);
    assert_eq!(Answer::parse(&answers[0], 1), Ok(Answer::Miss));
    let seen = capture.wait(1, PATIENCE, |packet| repairs(packet, key));
    let repair = seen.iter().find(|packet| repairs(packet, key)).expect("a repair by multicast");
    let repair = retry_testbed::packet::Packet::check(&repair.bytes).expect("a right packet");
    assert_eq!(*repair.src.ip(), host("other").addr);
    assert_eq!(journal.compare(key, &repair.payload), Verdict::Same);
    let metrics = counted(&other, "bre_proxy_recovered_total", &[], 1);
    assert_eq!(metrics.count("bre_proxy_requests_total", &[]), 1);
    assert_eq!(one.metrics().expect("a scrape").count("bre_unicast_retransmits_total", &[]), 1);
    let adverts = await_advert(&capture, |advert| *advert.nack_address.ip() == host("other").addr);
    let (_, advert) = adverts.iter().find(|(_, a)| *a.nack_address.ip() == host("other").addr).expect("it is there");
    assert_eq!(advert.flags, 0x0012, "multicast, and it has a parent");
}

both_paths! {
    heard_by_beacon: heard_by_beacon_native, heard_by_beacon_off;
}
