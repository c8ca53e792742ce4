//! Instances that come, go and die, and the servers of Redis behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, group};
use retry_testbed::net::loss::LossRule;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::peers::redis::{PORT, Server};
use retry_testbed::scene::{ask, asker, binary, counted, eventually, flags, frame, two_hosts};

use crate::document::{Section, sections};

const FLOW: u64 = 0x125;

sections! {
    "Rebalance under load" => rebalance: rebalance_under_load;
    "Loss of a replica" => replica: loss_of_a_replica;
}

/// Two endpoints, a publisher, listeners, and two hosts for Redis.
fn site() -> Fabric {
    Fabric::bridged(&["endpoint", "second", "client", "publisher", "redis", "spare"], 1500).expect("a fabric")
}

/// An instance with its frames in this Redis, named as its host.
fn start<'a>(fabric: &'a Fabric, name: &str, redis: &str) -> Daemon<'a> {
    let host = fabric.host(name).expect("a host");
    let shared = ["-redis-addr", redis, "-cache-backend", "redis", "-fill", "kernel", "-instance", name];
    let told = ["-admin-addr", "[::1]:9401", "-beacon-interval", "1s", "-drain-timeout", "4s", "-bpf-lease", "1s"];
    let all = flags("native", &[&shared[..], &told].concat());
    let daemon = Daemon::start(&binary(), &host.ns, &all).expect("a daemon");
    fabric.await_members(name, &[group(0), group(0xFFFD)]).expect("a member");
    eventually("a connection", || daemon.metrics().expect("a scrape").count("bre_store_up", &[]) == 1);
    daemon
}

/// Whether an endpoint repairs this frame.
fn repairs(client: &Host, endpoint: &Host, seq_num: u64) -> bool {
    let socket = asker(client);
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let answers = ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(FLOW, seq_num)), 1);
    let answer = answers.first().map(|bytes| Answer::parse(bytes, seq_num).expect("an answer"));
    matches!(answer, Some(Answer::Ack { .. }))
}

/// Frames come all the time; a second instance is added, then the first is taken out, and no listener is left without.
fn rebalance(section: &Section) {
    let fabric = site();
    let ((endpoint, client), second) = (two_hosts(&fabric), fabric.host("second").expect("a host"));
    let server = Server::start(fabric.host("redis").expect("a host")).expect("Redis");
    let redis = server.address().to_string();
    let first = start(&fabric, "endpoint", &redis);
    let publisher = Publisher::open(&fabric.host("publisher").expect("a host").ns, Arc::new(Journal::new()));
    let publisher = publisher.expect("a publisher");
    let (stop, sent, serving) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let seq_num = sent.load(Ordering::Relaxed) + 1;
                publisher.send(group(0), &frame(FrameKey::new(FLOW, seq_num), 300, 1)).expect("a frame leaves");
                sent.store(seq_num, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(3));
            }
        });
        counted(&first, "bre_store_frames_written_total", &[], 50);
        // A listener that asks who serves, all the time, for a frame of before.
        let asked = scope.spawn(|| {
            let (mut asked, mut served) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let endpoint = if serving.load(Ordering::Relaxed) == 0 { endpoint } else { second };
                asked += 1;
                served += u64::from(repairs(client, endpoint, 1 + asked % 50));
                std::thread::sleep(Duration::from_millis(5));
            }
            (asked, served)
        });
        let new = start(&fabric, "second", &redis);
        section.run(&second.ns, "readyz").shows(&["ready"]);
        section.run(&second.ns, "bre_(store_up").shows(&["bre_store_up 1\n", "bre_cache_size"]);
        let there = second.nack_address().to_string();
        let members = |ns| section.run(ns, "members").out;
        eventually("the first hears of the second", || members(&endpoint.ns).contains(&there));
        assert!(repairs(client, second, 3), "what it did not hear itself\n{}", new.log());
        // The listener turns to the second, and the first goes.
        section.run(&endpoint.ns, "v1/drain").shows(&["draining"]);
        let here = format!("{}\ttrue", endpoint.nack_address());
        eventually("the second hears that it drains", || members(&second.ns).contains(&here));
        serving.store(1, Ordering::Relaxed);
        // It ends by itself.
        let mut first = first;
        assert!(first.wait().expect("it ends").success());
        let last = sent.load(Ordering::Relaxed);
        eventually("what came after the end", || sent.load(Ordering::Relaxed) > last + 50);
        assert!(repairs(client, second, last + 20), "{}", new.log());
        eventually("it is forgotten", || !members(&second.ns).contains(&endpoint.nack_address().to_string()));
        stop.store(true, Ordering::Relaxed);
        let (asked, served) = asked.join().expect("the listener");
        assert_eq!(served, asked, "every NACK was answered with a repair");
        assert!(asked > 100, "{asked}");
    });
}

/// Ends the threads, also when an assertion has failed.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One of two endpoints dies with frames that it alone heard; then Redis' replica, then its master.
fn replica(section: &Section) {
    let fabric = site();
    let ((endpoint, client), second) = (two_hosts(&fabric), fabric.host("second").expect("a host"));
    let (on, spare) = (fabric.host("redis").expect("a host"), fabric.host("spare").expect("a host"));
    let mut master = Server::start(on).expect("Redis");
    let following = ["--replicaof", &on.addr.to_string(), &PORT.to_string()];
    let mut follower = Server::start_with(spare, PORT, None, &following).expect("a replica");
    let redis = master.address().to_string();
    let publisher = fabric.host("publisher").expect("a host");
    let _deaf = fabric.lose("endpoint", &LossRule::random(1000).from(publisher.addr)).expect("a loss");
    let stays = start(&fabric, "endpoint", &redis);
    let mut dies = start(&fabric, "second", &redis);
    let publish = Publisher::open(&publisher.ns, Arc::new(Journal::new())).expect("a publisher");
    for seq_num in 1..=20 {
        publish.send(group(0), &frame(FrameKey::new(FLOW, seq_num), 300, 1)).expect("a frame leaves");
    }
    counted(&dies, "bre_store_frames_written_total", &[], 20);
    let there = second.nack_address().to_string();
    let members = || section.run(&endpoint.ns, "members").out;
    eventually("the one hears of the other", || members().contains(&there));
    dies.child().signal(Signal::SIGKILL).expect("it dies");
    dies.wait().expect("it ends");
    let address = second.addr.to_string();
    let probe = || section.run_with(&client.ns, "probe", &[("fd10::20", &address)]);
    eventually("its kernel program stops answering", || probe().code != Some(0));
    eventually("it is forgotten", || !members().contains(&there));
    for seq_num in 1..=5 {
        assert!(repairs(client, endpoint, seq_num), "a frame that the dead one heard\n{}", stays.log());
    }
    // Redis: its replica dies, and the endpoint is as it was.
    let at = on.addr.to_string();
    let replication = || section.run_with(&endpoint.ns, "info replication", &[("redis.example", &at)]).out;
    eventually("a replica", || replication().contains("slave0:"));
    assert!(replication().contains("connected_slaves:1") && replication().contains("role:master"));
    follower.kill().expect("it dies");
    eventually("no replica", || replication().contains("connected_slaves:0"));
    let up = || section.run(&endpoint.ns, "bre_(store_up").out;
    assert!(up().contains("bre_store_up 1\n"), "{}", up());
    assert!(repairs(client, endpoint, 6), "{}", stays.log());
    // Then its master: the endpoint's own frames are answered all the same, and the replica is promoted.
    follower.start_again().expect("a replica");
    eventually("a replica", || replication().contains("state=online"));
    master.kill().expect("it dies");
    eventually("it is told", || up().contains("bre_store_up 0\n"));
    assert!(repairs(client, endpoint, 6), "{}", stays.log());
    let beside = spare.addr.to_string();
    section.run_with(&endpoint.ns, "replicaof", &[("REPLICA", &beside)]).shows(&["OK"]);
    let promoted = section.run_with(&endpoint.ns, "info replication", &[("redis.example", &beside)]);
    promoted.shows(&["role:master"]);
    // The dead endpoint comes back under its own name.
    drop(master);
    let back = Server::start(on).expect("Redis");
    let _again = start(&fabric, "second", &back.address().to_string());
    assert_eq!(probe().code, Some(0));
    eventually("it is back", || members().contains(&there) && up().contains("bre_store_up 1\n"));
}
