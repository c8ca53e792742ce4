//! Servers that fall silent with their connections open, as a host does that loses its power: nothing breaks, so no side
//! is told. A process that is stopped is just that.

use std::collections::{BTreeSet, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::peers::redis::{Cluster, PORT, Server};
use retry_testbed::scene::is_root;
use retry_userspace::parts::settings::Redis;

use super::scene::{PATIENCE, Started, config, connected, fabric, host, keeps, on, redis, start_with, until};

const KEY: FrameKey = FrameKey::new(0xfeed, 7);
const NODES: [&str; 6] = ["r1", "r2", "r3", "r4", "r5", "r6"];

/// A master, its replica, and three sentinels, told the store by their URL.
struct Watched<'a> {
    master: Server<'a>,
    replica: Server<'a>,
    sentinels: Vec<Server<'a>>,
    _files: tempfile::TempDir,
}

impl<'a> Watched<'a> {
    fn start(fabric: &'a Fabric) -> Self {
        let (first, second, watch) = (host(fabric, "first"), host(fabric, "second"), host(fabric, "watch"));
        let master = Server::start(first).expect("a master");
        let follow = ["--replicaof", &first.addr.to_string(), "6379", "--repl-diskless-sync-delay", "0"];
        let replica = Server::start_with(second, PORT, None, &follow).expect("a replica");
        let files = tempfile::tempdir().expect("a directory");
        let sentinel = |number: u16| {
            let file = files.path().join(format!("sentinel{number}.conf"));
            let text = format!(
                "sentinel monitor frames {} 6379 2\nsentinel down-after-milliseconds frames 500\n\
                 sentinel failover-timeout frames 3000\n",
                first.addr
            );
            std::fs::write(&file, text).expect("written");
            let file = file.to_str().expect("UTF-8").to_owned();
            Server::start_with(watch, 26_379 + number, None, &[&file, "--sentinel"]).expect("a sentinel")
        };
        let sentinels = (0..3).map(sentinel).collect();
        let watched = Self { master, replica, sentinels, _files: files };
        watched.await_agreement();
        watched
    }

    /// They can only replace a master whose replica, and each other, they know.
    fn await_agreement(&self) {
        let deadline = Instant::now() + PATIENCE;
        let agree = || {
            self.sentinels.iter().all(|sentinel| {
                let info: Result<String, _> = sentinel.run(redis::cmd("INFO").arg("sentinel"));
                info.is_ok_and(|text| text.contains("slaves=1,sentinels=3"))
            })
        };
        while !agree() {
            assert!(Instant::now() < deadline, "the sentinels do not find each other");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis+sentinel://{}/frames", hosts.join(","))
    }
}

/// As an operator has it who sets nothing: one second to connect.
fn with_defaults(urls: &[&str]) -> Redis {
    let second = Duration::from_secs(1);
    Redis { dial_timeout: second, op_timeout: second, ..redis(urls) }
}

/// The keys of repairs that a store heard of.
type Heard = Arc<Mutex<HashSet<FrameKey>>>;

fn start_hearing(redis: Redis) -> (Started, Heard) {
    let heard = Heard::default();
    let hears = Arc::clone(&heard);
    let store = start_with(config(redis, "hearing"), move |key, _| {
        hears.lock().expect("no panic").insert(key);
    });
    (store, heard)
}

/// Announces until it is heard: who listens again after a failure has missed what was said meanwhile.
async fn is_heard(from: &Started, heard: &Heard, flow: u64) {
    let deadline = Instant::now() + PATIENCE;
    let mut keys = (1..).map(|seq| FrameKey::new(flow, seq));
    while !heard.lock().expect("no panic").iter().any(|key| key.hash_key() == flow) {
        assert!(Instant::now() < deadline, "no repair is heard: {:?}", from.store.status());
        from.store.announce(keys.next().expect("without end"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn in_time(host: &Host, work: impl Future<Output = ()> + Send) {
    on(host, async { tokio::time::timeout(3 * PATIENCE, work).await.expect("in time") });
}

#[test]
fn a_silent_master_is_left_for_the_one_that_sentinels_name() {
    if !is_root("a_silent_master_is_left_for_the_one_that_sentinels_name") {
        return;
    }
    let fabric = fabric(&["first", "second", "watch"]);
    let watched = Watched::start(&fabric);
    in_time(host(&fabric, "store"), async {
        let url = watched.url();
        let started = connected(config(with_defaults(&[&url]), "telling")).await;
        let (hearing, heard) = start_hearing(with_defaults(&[&url]));
        until("connected", || hearing.store.status().connected).await;
        keeps(&started, KEY).await;
        is_heard(&started, &heard, 1).await;
        watched.master.pause().expect("stopped");
        let new = FrameKey::new(0xfeed, 8);
        keeps(&started, new).await;
        assert!(watched.replica.frame(new).expect("an answer").is_some(), "the replica is the master now");
        is_heard(&started, &heard, 2).await;
    });
}

#[test]
fn a_silent_sentinel_is_passed_over() {
    if !is_root("a_silent_sentinel_is_passed_over") {
        return;
    }
    let fabric = fabric(&["first", "second", "watch"]);
    let watched = Watched::start(&fabric);
    // The first one named is asked first.
    watched.sentinels[0].pause().expect("stopped");
    in_time(host(&fabric, "store"), async {
        let url = watched.url();
        let started = connected(config(with_defaults(&[&url]), "telling")).await;
        keeps(&started, KEY).await;
        let (_hearing, heard) = start_hearing(with_defaults(&[&url]));
        is_heard(&started, &heard, 1).await;
    });
}

#[test]
fn a_cluster_with_a_silent_node_is_connected_to() {
    if !is_root("a_cluster_with_a_silent_node_is_connected_to") {
        return;
    }
    let fabric = fabric(&NODES);
    let cluster = Cluster::start(NODES.map(|name| host(&fabric, name))).expect("a cluster");
    let masters: BTreeSet<usize> =
        (1..=30).map(|seq| cluster.master_of(FrameKey::new(1, seq)).expect("served")).collect();
    let replica = (0..NODES.len()).rfind(|place| !masters.contains(place)).expect("a replica");
    // The cluster is whole without it, and does not need to notice.
    cluster.nodes()[replica].pause().expect("stopped");
    let urls: Vec<String> = cluster.addresses().split(',').map(|address| format!("redis://{address}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    in_time(host(&fabric, "store"), async {
        let started = connected(config(with_defaults(&urls), "telling")).await;
        for seq in 1..=30 {
            keeps(&started, FrameKey::new(1, seq)).await;
        }
    });
}

#[test]
fn a_silent_master_of_a_cluster_is_left_for_its_replica() {
    if !is_root("a_silent_master_of_a_cluster_is_left_for_its_replica") {
        return;
    }
    let fabric = fabric(&NODES);
    let cluster = Cluster::start(NODES.map(|name| host(&fabric, name))).expect("a cluster");
    // Not the first node, which is asked who serves what.
    let served_by = |place: usize| {
        (1..).map(|seq| FrameKey::new(1, seq)).find(|key| cluster.master_of(*key).is_ok_and(|at| at == place))
    };
    let key = served_by(1).expect("a key of the second node");
    let mut urls: Vec<String> = cluster.addresses().split(',').map(|address| format!("redis://{address}")).collect();
    // The one that is listened at first.
    urls.swap(0, 1);
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    in_time(host(&fabric, "store"), async {
        let started = connected(config(with_defaults(&urls), "telling")).await;
        let (_hearing, heard) = start_hearing(with_defaults(&urls));
        keeps(&started, key).await;
        is_heard(&started, &heard, 1).await;
        cluster.nodes()[1].pause().expect("stopped");
        until("a replica takes over", || cluster.master_of(key).is_ok_and(|at| at != 1)).await;
        let next = (key.seq_num() + 1..)
            .map(|seq| FrameKey::new(1, seq))
            .find(|other| cluster.master_of(*other).ok() == cluster.master_of(key).ok());
        keeps(&started, next.expect("a key of the same node")).await;
        is_heard(&started, &heard, 2).await;
    });
}

/// What is told to operators does not depend on the breaker, which they may have set off.
#[test]
fn a_silent_server_counts_as_lost_without_a_breaker_too() {
    if !is_root("a_silent_server_counts_as_lost_without_a_breaker_too") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    in_time(host(&fabric, "store"), async {
        let url = format!("redis://{}", server.address());
        let mut settings = with_defaults(&[&url]);
        settings.retry.breaker = 0;
        let started = connected(config(settings, "alone")).await;
        keeps(&started, KEY).await;
        server.pause().expect("stopped");
        until("lost", || !started.store.status().connected).await;
        // A frame that cannot be asked for is known to be so at once.
        let start = Instant::now();
        assert!(started.store.fetch(&KEY).await.is_err());
        assert!(start.elapsed() < Duration::from_millis(200), "{:?}", start.elapsed());
        server.go_on().expect("it goes on");
        keeps(&started, KEY).await;
    });
}
