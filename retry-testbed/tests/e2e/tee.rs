//! A program on the endpoint's own host hands it frames, and nothing is joined on the fabric.

use std::net::SocketAddrV6;
use std::sync::Arc;

use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, Verdict};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::peers::tee::TeeSender;
use retry_testbed::scene::{
    PATIENCE, ask, asker, binary, counted, datagrams_from, flags, is_repair, repairs, two_hosts,
};

fn tee_alone(xdp: &str) {
    let fabric = Fabric::bridged(&["endpoint", "client", "publisher"], 1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-mc-join-enabled=false", "-tee-listen", "[::1]:9002", "-beacon-flags-unicast"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let tee = TeeSender::open(&endpoint.ns, "[::1]:9002".parse().expect("an address"), &journal).expect("a sender");
    let from = SocketAddrV6::new(fabric.host("publisher").expect("a host").addr, 40_000, 0, 0);
    let mut keys = Vec::new();
    for (at, kind) in (0u16..).zip(Kind::CACHED) {
        let mut flow = Flow::new(kind, at, 2, 100..=1300);
        let index = flow.group_index();
        keys.push((tee.raw(&flow.next_frame()).expect("it leaves").expect("a key"), index));
        keys.push((tee.encapsulated(from, &flow.next_frame()).expect("it leaves").expect("a key"), index));
    }
    let half = u64::try_from(Kind::CACHED.len()).expect("few");
    let metrics = counted(&daemon, "bre_cache_stored_by_total", &[("via", "tee")], 2 * half);
    assert_eq!(metrics.count("bre_tee_datagrams_total", &[("form", "raw")]), half);
    assert_eq!(metrics.count("bre_tee_datagrams_total", &[("form", "encap")]), half);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 2 * half);

    // Our own repairs come back by the tee as well, and are known by the source that the envelope tells.
    let mut own = Flow::new(Kind::Tx, 0, 2, 100..=100);
    let ours = tee.encapsulated(endpoint.nack_address(), &own.next_frame()).expect("it leaves").expect("a key");
    let metrics = counted(&daemon, "bre_frames_dropped_total", &[("reason", "own_repair")], 1);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 2 * half);
    tee.raw(&[0x55; 200]).expect("it leaves");
    counted(&daemon, "bre_frames_dropped_total", &[("reason", "decode_error")], 1);

    // Frames on the fabric are not for it.
    let publish =
        Publisher::open(&fabric.host("publisher").expect("a host").ns, Arc::clone(&journal)).expect("a publisher");
    let strange = publish.send(group(0), &own.next_frame()).expect("a frame leaves").expect("a key");

    let capture = Capture::start(fabric.bridge().expect("a bridge"), "p1").expect("a capture");
    let socket = asker(client);
    for (key, index) in &keys {
        let answers = ask(&socket, endpoint.nack_address(), &nack(*key), 2);
        assert!(answers.iter().any(|bytes| journal.compare(*key, bytes) == Verdict::Same), "{key}");
        let ack = answers.iter().find(|bytes| bytes.len() == 16).expect("an answer");
        assert_eq!(Answer::parse(ack, key.seq_num()), Ok(Answer::Ack { multicast: true, unicast: true }));
        let seen = capture.wait(1, PATIENCE, |packet| repairs(packet, *key));
        let repair = datagrams_from(&seen, endpoint.addr).into_iter().find(is_repair).expect("a repair");
        assert_eq!(*repair.dst.ip(), group(*index));
        assert_eq!(journal.compare(*key, &repair.payload), Verdict::Same);
    }
    for key in [ours, strange] {
        let answers = ask(&socket, endpoint.nack_address(), &nack(key), 1);
        assert_eq!(Answer::parse(&answers[0], key.seq_num()), Ok(Answer::Miss));
    }
    let metrics = daemon.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_cache_stored_by_total", &[("via", "multicast")]), 0);
    let mdb = fabric.bridge().expect("a bridge").run(&["bridge", "mdb", "show"]).expect("a list");
    assert!(!mdb.contains("port p1 grp ff05::b:0 "), "joined all the same: {mdb}");
}

/// The tee beside the fabric: the same frame by both ways is one frame.
fn tee_and_fabric(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-tee-listen", "[::1]:9002"])).expect("a daemon");
    let journal = Arc::new(Journal::new());
    let tee = TeeSender::open(&endpoint.ns, "[::1]:9002".parse().expect("an address"), &journal).expect("a sender");
    let publish = Publisher::open(&client.ns, Arc::clone(&journal)).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 0, 2, 500..=500);
    let both = flow.next_frame();
    publish.send(group(0), &both).expect("a frame leaves");
    counted(&daemon, "bre_cache_stored_by_total", &[("via", "multicast")], 1);
    tee.encapsulated(SocketAddrV6::new(client.addr, 4, 0, 0), &both).expect("it leaves");
    counted(&daemon, "bre_cache_duplicates_total", &[("kind", "same")], 1);
    tee.raw(&flow.next_frame()).expect("it leaves");
    let metrics = counted(&daemon, "bre_cache_stored_by_total", &[("via", "tee")], 1);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 2);
    assert_eq!(metrics.count("bre_cache_size", &[]), 2);
}

both_paths! {
    tee_alone: tee_alone_native, tee_alone_off;
    tee_and_fabric: tee_and_fabric_native, tee_and_fabric_off;
}
