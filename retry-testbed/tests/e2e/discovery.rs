//! Upstream endpoints that no flag names: heard by their beacons, asked like the others, remembered over a restart.

use std::sync::Arc;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::loss::LossRule;
use retry_testbed::net::packet::Packet;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, Verdict};
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, ask, asker, await_advert, binary, counted, eventually, flags, repairs};

/// Repairs by unicast alone, so that what comes by multicast is the other endpoint's.
const UNICAST: [&str; 2] = ["-beacon-flags-multicast=false", "-beacon-flags-unicast"];
const DISCOVER: [&str; 2] = ["-proxy-enabled", "-proxy-discover"];
const BEACON: u16 = 0xFFFD;

/// `one` has the frames; `other`, on the same fabric, loses them and looks for an endpoint that has them.
struct Pair {
    fabric: Fabric,
    journal: Arc<Journal>,
}

impl Pair {
    fn new() -> Self {
        let fabric = Fabric::bridged(&["one", "other", "client", "publisher"], 1500).expect("a fabric");
        Self { fabric, journal: Arc::new(Journal::new()) }
    }

    fn host(&self, name: &str) -> &Host {
        self.fabric.host(name).expect("a host")
    }

    fn start(&self, name: &str, xdp: &str, more: &[&str]) -> Daemon<'_> {
        let mut flags = flags(xdp, &["-beacon-interval", "1s", "-instance", name, "-proxy-timeout", "1s"]);
        flags.extend(more);
        let daemon = Daemon::start(&binary(), &self.host(name).ns, &flags).expect("a daemon");
        self.fabric.await_members(name, &[group(0)]).expect("members");
        daemon
    }

    /// Publishes a frame that `other` loses, asks it for the frame, and sees the frame come by multicast from it.
    fn recovers(&self, one: &Daemon<'_>, other: &Daemon<'_>) {
        let client = self.host("client");
        let mut flow = Flow::new(Kind::SubtreeData, 0, 2, 500..=500);
        let to = group(flow.group_index());
        let settings = ListenerSettings { ask: false, ..ListenerSettings::discovering(vec![to], vec![group(BEACON)]) };
        let _member = Listener::start(&client.ns, settings, Arc::clone(&self.journal)).expect("a member");
        self.fabric.await_members("client", &[to, group(BEACON)]).expect("members");
        let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
        let rule = LossRule::frames(flow.hash_key(), vec![1]).from(self.host("publisher").addr);
        let loss = self.fabric.lose("other", &rule).expect("a loss");
        let publish = Publisher::open(&self.host("publisher").ns, Arc::clone(&self.journal)).expect("a publisher");
        let key = publish.publish(&mut flow).expect("a frame leaves").expect("a key");
        counted(one, "bre_frames_cached_total", &[], 1);
        assert_eq!(loss.dropped().expect("a count"), 1);

        let answers = ask(&asker(client), self.host("other").nack_address(), &nack(key), 1);
        assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, 1)), Some(Ok(Answer::Miss)));
        let seen = capture.wait(1, PATIENCE, |packet| repairs(packet, key));
        let found: Vec<_> = seen.iter().filter(|packet| repairs(packet, key)).collect();
        assert_eq!(found.len(), 1, "one repair\n{}", other.log());
        let repair = Packet::check(&found[0].bytes).expect("a right packet");
        assert_eq!(*repair.src.ip(), self.host("other").addr);
        assert_eq!(self.journal.compare(key, &repair.payload), Verdict::Same);
        let metrics = counted(other, "bre_proxy_recovered_total", &[], 1);
        assert_eq!(metrics.count("bre_proxy_requests_total", &[]), 1);
        let metrics = counted(one, "bre_unicast_retransmits_total", &[], 1);
        assert_eq!(metrics.count("bre_unicast_retransmits_total", &[]), 1);
    }
}

/// An endpoint that lost the frame asks the one whose beacon it heard, and says in its own that it has a parent.
fn heard_by_beacon(xdp: &str) {
    let pair = Pair::new();
    let one = pair.start("one", xdp, &UNICAST);
    let other = pair.start("other", xdp, &DISCOVER);
    pair.fabric.await_members("other", &[group(BEACON)]).expect("it listens for beacons");
    let metrics = counted(&other, "bre_beacon_adverts_received_total", &[], 1);
    assert_eq!(metrics.count("bre_beacon_dropped_total", &[]), 0);
    counted(&other, "bre_upstream_up", &[], 1);
    pair.recovers(&one, &other);
    let other = pair.host("other").addr;
    let capture = Capture::start(&pair.host("one").ns, INTERFACE).expect("a capture");
    let adverts = await_advert(&capture, |advert| *advert.nack_address.ip() == other);
    let (_, advert) = adverts.iter().find(|(_, advert)| *advert.nack_address.ip() == other).expect("it is there");
    assert_eq!(advert.flags, 0x0012, "multicast, and it has a parent");
}

/// No endpoint has been heard: that is a reason of its own. What was heard before a restart is asked after it.
fn remembered(xdp: &str) {
    let pair = Pair::new();
    let state = tempfile::tempdir().expect("a directory");
    let state = state.path().to_str().expect("a name");
    let more = [DISCOVER[0], DISCOVER[1], "-state-dir", state];
    {
        let mut other = pair.start("other", xdp, &more);
        let key = FrameKey::new(8, 9);
        let answers = ask(&asker(pair.host("client")), pair.host("other").nack_address(), &nack(key), 1);
        assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, 9)), Some(Ok(Answer::Miss)));
        counted(&other, "bre_proxy_failed_total", &[("reason", "no_upstream")], 1);
        let _one = pair.start("one", xdp, &UNICAST);
        counted(&other, "bre_upstream_up", &[], 1);
        eventually("it is saved", || std::fs::read_dir(state).expect("a directory").next().is_some());
        assert!(other.end().expect("it ends").success());
    }
    let one = pair.start("one", xdp, &[UNICAST[0], UNICAST[1], "-beacon-enabled=false"]);
    let other = pair.start("other", xdp, &more);
    counted(&other, "bre_upstream_up", &[], 1);
    pair.recovers(&one, &other);
    assert_eq!(other.metrics().expect("a scrape").count("bre_beacon_adverts_received_total", &[]), 0);
}

both_paths! {
    heard_by_beacon: heard_by_beacon_native, heard_by_beacon_off;
    remembered: remembered_native, remembered_off;
}
