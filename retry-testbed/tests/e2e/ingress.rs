//! The groups spread over several receiving threads: the same frames, whole, and the same counts.

use std::sync::Arc;

use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::Fabric;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::{Journal, Verdict};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, flags, frame, is_root, two_hosts};

/// Frames of each flow.
const EACH: usize = 20;

/// What one run counts, by series.
type Counts = Vec<(&'static str, u64)>;

/// Frames of every kind to all of their groups, some twice, each asked for afterwards.
fn counted_with(workers: &str, xdp: &str) -> Counts {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-ingress-workers", workers, "-beacon-flags-multicast=false", "-beacon-flags-unicast"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &more)).expect("a daemon");
    assert_eq!(threads(&daemon), workers.parse::<usize>().expect("a number"));
    let journal = Arc::new(Journal::new());
    let publish = Publisher::open(&client.ns, Arc::clone(&journal)).expect("a publisher");
    // Every kind, and with the shards every group: as many flows as both.
    let mut flows: Vec<_> =
        (0..4).flat_map(|shard| Kind::CACHED.map(|kind| Flow::new(kind, shard, 2, 90..=1201))).collect();
    for _ in 0..EACH {
        for flow in &mut flows {
            publish.publish(flow).expect("a frame leaves");
        }
    }
    let stored = u64::try_from(journal.len()).expect("few");
    assert_eq!(journal.len(), flows.len() * EACH);
    await_count(&daemon, "bre_frames_cached_total", &[], stored);
    for flow in &flows[..2] {
        // The first frame once more, and what is no frame.
        let mut again = Flow::new(flow.kind(), 0, 2, 90..=1201).with_hash_key(flow.hash_key());
        publish.publish(&mut again).expect("a frame leaves");
        let group = retry_testbed::net::fabric::group(flow.group_index());
        publish.send(group, &frame(flow.next_key(), 100, 1)[..60]).expect("a datagram leaves");
    }
    await_count(&daemon, "bre_frames_received_total", &[], stored + 4);

    let socket = asker(client);
    for key in journal.keys() {
        let answers = ask(&socket, endpoint.nack_address(), &nack(key), 2);
        let whole = answers.iter().any(|bytes| journal.compare(key, bytes) == Verdict::Same);
        let acked = answers
            .iter()
            .any(|bytes| Answer::parse(bytes, key.seq_num()) == Ok(Answer::Ack { multicast: false, unicast: true }));
        assert!(whole && acked, "{key:?}: {answers:?}");
    }
    let metrics = daemon.metrics().expect("a scrape");
    [
        "bre_frames_received_total",
        "bre_frames_cached_total",
        "bre_frames_dropped_total",
        "bre_cache_duplicates_total",
        "bre_cache_stored_by_total",
        "bre_cache_evicted_total",
        "bre_cache_hits_total",
        "bre_cache_misses_total",
    ]
    .map(|series| (series, metrics.count(series, &[])))
    .to_vec()
}

/// The daemon's receiving threads.
fn threads(daemon: &Daemon<'_>) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
    let names = tasks.map(|task| std::fs::read_to_string(task.expect("a thread").path().join("comm")));
    // A thread may end while the directory is read.
    names.filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("ingress-"))).count()
}

fn three_threads(xdp: &str) {
    let one = counted_with("1", xdp);
    let flows = Kind::CACHED.len() * 4;
    let stored = u64::try_from(flows * EACH).expect("few");
    assert_eq!(one[..3], [(one[0].0, stored + 4), (one[1].0, stored), (one[2].0, 2)]);
    assert_eq!(counted_with("3", xdp), one);
}

#[test]
fn three_threads_native() {
    if is_root("three_threads_native") {
        three_threads("native");
    }
}

#[test]
fn three_threads_off() {
    if is_root("three_threads_off") {
        three_threads("off");
    }
}
