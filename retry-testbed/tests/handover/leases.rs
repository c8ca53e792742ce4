//! What the kernel does alone, and for how long.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, binary, counted, eventually, flags, frame, is_root, read_answers, two_hosts};

const KEY: FrameKey = FrameKey::new(0x1ea5e, 1);
/// Of a frame that is longer than the kernel sends.
const LONG: FrameKey = FrameKey::new(0x1ea5e, 2);
const LACK: FrameKey = FrameKey::new(0x1ea5e, 3);

const UNICAST: [&str; 4] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false", "-daemon-lease", "500ms"];

fn start<'a>(host: &'a Host, more: &[&str]) -> Daemon<'a> {
    let mut all = UNICAST.to_vec();
    all.extend(more);
    Daemon::start(&binary(), &host.ns, &flags("native", &all)).expect("a daemon")
}

fn publish(daemon: &Daemon<'_>, from: &Host) {
    let publisher = Publisher::open(&from.ns, Arc::new(Journal::new())).expect("a publisher");
    publisher.send(group(0), &frame(KEY, 300, 0)).expect("a frame leaves");
    publisher.send(group(0), &frame(LONG, 3_000, 0)).expect("a frame leaves");
    counted(daemon, "bre_frames_cached_total", &[], 2);
}

/// A daemon that the processor does not run cannot answer. The kernel answers hits, says MISS at once to what waits for the
/// daemon, and leaves both to it again when it goes on.
#[test]
fn a_hung_daemon_is_a_dead_one() {
    if !is_root("a_hung_daemon_is_a_dead_one") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    // An upstream that is not there: a MISS is then the daemon's matter too.
    let mut daemon = start(endpoint, &["-proxy-enabled", "-upstream-retry-endpoints", "[fd00::99]:9300"]);
    publish(&daemon, client);
    let socket = asker(client);
    let asked = |key: FrameKey, wanted| {
        let answers = ask(&socket, endpoint.nack_address(), &nack(key), wanted);
        let bytes = if key == LONG { frame(LONG, 3_000, 0) } else { frame(KEY, 300, 0) };
        read_answers(&answers, key.seq_num(), &bytes)
    };
    let hit = (vec![Answer::Ack { multicast: false, unicast: true }], true);
    assert_eq!((asked(KEY, 2), asked(LONG, 2)), (hit.clone(), hit.clone()));
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    // Its events wait for it until its lease is over.
    std::thread::sleep(Duration::from_millis(700));
    let miss = (vec![Answer::Miss], false);
    assert_eq!((asked(KEY, 2), asked(LONG, 1), asked(LACK, 1)), (hit.clone(), miss.clone(), miss));
    daemon.child().signal(Signal::SIGCONT).expect("it goes on");
    eventually("the daemon sends again", || asked(LONG, 2) == hit);
    counted(&daemon, "bre_xdp_daemon_absent_total", &[], 2);
}

/// What the kernel gave to a daemon that did not come to it is old when the next one finds it: its listener has asked again.
#[test]
fn stale_events_are_dropped() {
    if !is_root("stale_events_are_dropped") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let lease = ["-daemon-lease", "10s"];
    let mut daemon = start(endpoint, &lease);
    daemon.leave();
    publish(&daemon, client);
    let socket = asker(client);
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    for _ in 0..5 {
        assert_eq!(ask(&socket, endpoint.nack_address(), &nack(LONG), 1).len(), 0, "it waits for the daemon");
    }
    daemon.child().kill();
    std::thread::sleep(Duration::from_millis(1_100));
    let next = start(endpoint, &lease);
    counted(&next, "bre_xdp_events_stale_total", &[], 5);
    assert_eq!(socket.recv(&mut [0; 4096]).ok(), None, "none of them is answered");
    assert_eq!(ask(&socket, endpoint.nack_address(), &nack(LONG), 2).len(), 2);
}
