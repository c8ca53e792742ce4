//! The end that is announced: an ADVERT that says Draining, `/readyz` 503, NACKs answered until the last moment, and
//! nothing left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::{Capture, is_udp};
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::net::loss::LossRule;
use retry_testbed::peers::announce::Advert;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::listener::{Listener, ListenerSettings};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{
    PATIENCE, Pins, adverts, asker, await_advert, await_detached, binary, counted, eventually, flags, frame, two_hosts,
};

const KEY: FrameKey = FrameKey::new(0xd1a1, 1);
const DRAIN: Duration = Duration::from_secs(2);

/// One NACK: when it left, and what it got.
type Asked = (Instant, Option<Result<Answer, String>>);

fn drains(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let directory = Pins::new("drain");
    let pins = directory.name();
    let more = [
        "-drain-timeout",
        "2s",
        "-bpffs",
        pins,
        "-beacon-interval",
        "30s",
        "-repair-holddown",
        "0",
        "-bpf-handover=false",
    ];
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");

    let stop = AtomicBool::new(false);
    let (asked, signalled, ended) = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut asked: Vec<Asked> = Vec::new();
            let socket = asker(client);
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                let now = Instant::now();
                // The daemon is gone: the kernel says so by ICMP on some of the next calls.
                let left = socket.send_to(&nack(KEY), endpoint.nack_address()).is_ok();
                let answer = socket.recv(&mut buffer).ok().filter(|_| left);
                asked.push((now, answer.map(|length| Answer::parse(&buffer[..length], 1))));
                std::thread::sleep(Duration::from_millis(3));
            }
            asked
        });
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(daemon.get("/readyz").expect("an answer").0, 200);
        let signalled = (Instant::now(), SystemTime::now());
        daemon.child().signal(Signal::SIGTERM).expect("it is told");
        eventually("/readyz says draining", || {
            let (status, body) = daemon.get("/readyz").expect("it still answers");
            status == 503 && body.contains("draining")
        });
        assert_eq!(daemon.get("/healthz").expect("it still answers").0, 200);
        assert!(daemon.child().try_wait().expect("a status").is_none());
        let mut status = None;
        eventually("the daemon ends", || {
            status = daemon.child().try_wait().expect("a status");
            status.is_some()
        });
        let ended = Instant::now();
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", daemon.log());
        stop.store(true, Ordering::Relaxed);
        (traffic.join().expect("the traffic"), signalled, ended)
    });
    assert!(ended - signalled.0 >= DRAIN, "it ended {:?} after the signal", ended - signalled.0);
    let ack = Answer::Ack { multicast: true, unicast: false };
    let due: Vec<_> = asked.iter().filter(|(at, _)| *at < signalled.0 + DRAIN).collect();
    assert!(due.iter().filter(|(at, _)| *at > signalled.0).count() > 20, "{} NACKs", due.len());
    for (at, answer) in due {
        assert_eq!(*answer, Some(Ok(ack)), "{:?} before the end of the drain", signalled.0 + DRAIN - *at);
    }

    let packets = capture.take();
    let heard = adverts(&packets);
    let (_, last) = heard.last().expect("an ADVERT");
    assert!(last.draining() && !heard.is_empty());
    let first = packets.iter().find(|packet| {
        is_udp(&packet.bytes) && adverts(std::slice::from_ref(packet)).iter().any(|(_, advert)| advert.draining())
    });
    let after = first.expect("one that says Draining").time.duration_since(signalled.1).expect("after the signal");
    assert!(after < DRAIN / 2, "announced {after:?} after the signal");
    assert_eq!(std::fs::read_dir(pins).map_or(0, Iterator::count), 0, "pins are left");
    await_detached(endpoint);
}

/// A listener asks another endpoint as soon as its first one says Draining.
fn listeners_turn_away(xdp: &str) {
    let fabric = Fabric::bridged(&["first", "second", "client", "publisher"], 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let (data, beacon) = (group(0), group(0xFFFD));
    let journal = Arc::new(Journal::new());
    let settings = ListenerSettings::discovering(vec![data], vec![beacon]);
    let listener = Listener::start(&host("client").ns, settings, Arc::clone(&journal)).expect("a listener");
    fabric.await_members("client", &[data, beacon]).expect("members");
    let capture = Capture::start(&host("client").ns, INTERFACE).expect("a capture");
    let start = |name, tier| {
        let more = ["-beacon-interval", "1s", "-instance", name, "-beacon-tier", tier, "-drain-timeout", "5s"];
        let daemon = Daemon::start(&binary(), &host(name).ns, &flags(xdp, &more)).expect("a daemon");
        fabric.await_members(name, &[data]).expect("members");
        await_advert(&capture, |advert| *advert.nack_address.ip() == host(name).addr);
        daemon
    };
    let (mut first, second) = (start("first", "0"), start("second", "1"));
    let mut flow = Flow::new(Kind::Tx, 0, 2, 300..=300);
    let rule = LossRule::frames(flow.hash_key(), vec![2, 4]).from(host("publisher").addr);
    let _loss = fabric.lose("client", &rule).expect("a loss");
    let publish = Publisher::open(&host("publisher").ns, Arc::clone(&journal)).expect("a publisher");
    let mut three = |cached| {
        for _ in 0..2 {
            publish.publish(&mut flow).expect("a frame leaves");
        }
        counted(&second, "bre_frames_cached_total", &[], cached);
        listener.expect(journal.keys());
        assert!(listener.settle(PATIENCE), "{:?}", listener.stats());
    };
    three(2);
    let nacks = |daemon: &Daemon<'_>| daemon.metrics().expect("a scrape").count("bre_nack_requests_total", &[]);
    assert_eq!((nacks(&first), nacks(&second)), (1, 0));
    first.child().signal(Signal::SIGTERM).expect("it is told");
    await_advert(&capture, Advert::draining);
    three(4);
    assert_eq!((nacks(&first), nacks(&second)), (1, 1));
    assert_eq!(listener.stop().expect("a listener's counts").recovered(), 2);
    first.child().signal(Signal::SIGKILL).expect("it ends");
}

both_paths! {
    drains: drains_native, drains_off;
    listeners_turn_away: listeners_turn_away_native, listeners_turn_away_off;
}
