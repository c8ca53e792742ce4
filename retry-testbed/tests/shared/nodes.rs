//! A server of the store dies under traffic and comes back: the log tells each once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::peers::redis::{Cluster, Server};
use retry_testbed::scene::{ask, asker, binary, eventually, flags, is_root};

use super::site::told;

const FLOW: u64 = 0x0051_e27e;
/// How long the log is read on after the last line that is wanted: a line per pulse or attempt would show.
const LONGER: Duration = Duration::from_secs(8);

/// A daemon whose frames are shared by this store.
fn endpoint<'a>(host: &'a Host, store: &str) -> Daemon<'a> {
    let more = ["-instance", "one", "-beacon-enabled=false", "-cache-backend", "redis", "-redis-addr", store];
    let daemon = Daemon::start(&binary(), &host.ns, &flags("native", &more)).expect("a daemon");
    eventually("a connection", || told(&daemon, "connected to the shared store") == 1);
    // The last line of a start, which comes after the connection where the machine is busy.
    eventually("a start", || told(&daemon, "serving nack=") == 1);
    daemon
}

/// Frames that are written to the store and NACKs that ask it, until the work is done.
fn under_traffic<T>(fabric: &Fabric, work: impl FnOnce() -> T) -> T {
    let host = |name| fabric.host(name).expect("a host");
    let publisher = Publisher::open(&host("publisher").ns, Arc::new(Journal::new())).expect("a publisher");
    let (stop, to) = (AtomicBool::new(false), host("one").nack_address());
    let socket = asker(host("client"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut flows = [Flow::new(Kind::Tx, 0, 2, 200..=900)];
            publisher.run(&mut flows, 200, Duration::from_secs(120), &stop, |_| 0).expect("frames leave");
        });
        scope.spawn(|| {
            for seq_num in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Of each flow, so that each slot of a cluster is asked for.
                ask(&socket, to, &nack(FrameKey::new(FLOW + seq_num, 1)), 1);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let _end = SetOnDrop(&stop);
        work()
    })
}

/// Ends the traffic also when the work panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for a line with these words, and returns it with whatever the log has said since `from` lines.
fn said(daemon: &Daemon<'_>, from: usize, words: &str) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let new = || daemon.log().lines().skip(from).map(str::to_owned).collect::<Vec<_>>();
    while !new().iter().any(|line| line.contains(words)) {
        assert!(Instant::now() < deadline, "never told: {words}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    std::thread::sleep(LONGER);
    new()
}

/// The log so far has this many lines.
fn length(daemon: &Daemon<'_>) -> usize {
    daemon.log().lines().count()
}

fn is_one_line(lines: &[String], address: &str, words: &str) {
    assert!(matches!(lines, [line] if line.contains(address) && line.contains(words)), "{}", lines.join("\n"));
}

/// The traffic asked for what died: else nothing could have been told of it.
fn is_missed(daemon: &Daemon<'_>) {
    let metrics = daemon.metrics().expect("a scrape");
    assert!(metrics.count("bre_cache_errors_total", &[]) > 10, "{}", daemon.log());
}

/// A master, whose slots no node serves until its replica takes over, and then a replica.
#[test]
fn a_node_of_a_cluster_that_dies_is_one_line() {
    if !is_root("a_node_of_a_cluster_that_dies_is_one_line") {
        return;
    }
    let names = ["a", "b", "c", "d", "e", "f"];
    let fabric =
        Fabric::bridged(&["one", "publisher", "client", "a", "b", "c", "d", "e", "f"], 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let mut cluster = Cluster::start(names.map(host)).expect("a cluster");
    let daemon = endpoint(host("one"), &cluster.addresses());
    under_traffic(&fabric, || {
        for place in [0, 4] {
            let address = cluster.nodes()[place].address().to_string();
            let before = length(&daemon);
            cluster.kill(place).expect("it dies");
            is_one_line(&said(&daemon, before, "given a node up"), &address, "given a node up");
            let before = length(&daemon);
            cluster.restart(place).expect("it comes back");
            is_one_line(&said(&daemon, before, "is back"), &address, "is back");
        }
    });
    is_missed(&daemon);
}

#[test]
fn the_one_server_that_dies_is_one_line() {
    if !is_root("the_one_server_that_dies_is_one_line") {
        return;
    }
    let fabric = Fabric::bridged(&["one", "publisher", "client", "redis"], 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let mut server = Server::start(host("redis")).expect("Redis");
    let daemon = endpoint(host("one"), &server.address().to_string());
    under_traffic(&fabric, || {
        let before = length(&daemon);
        server.kill().expect("it dies");
        is_one_line(&said(&daemon, before, "the shared store is lost"), "-redis-addr", "the shared store is lost");
        let before = length(&daemon);
        server.start_again().expect("it comes back");
        is_one_line(&said(&daemon, before, "connected to the shared store"), "-redis-addr", "connected");
    });
    is_missed(&daemon);
}
