//! The servers that these tests stand on are what they say.

use retry_common::key::FrameKey;
use retry_testbed::peers::redis::{Cluster, PORT, Server, name};
use retry_testbed::scene::is_root;

use super::scene::{fabric, host};

const KEY: FrameKey = FrameKey::new(0xfeed, 7);

#[test]
fn one_that_cannot_start_says_why() {
    if !is_root("one_that_cannot_start_says_why") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let place = host(&fabric, "redis");
    let why = |more: &[&str]| format!("{:#}", Server::start_with(place, PORT, None, more).expect_err("no server"));
    let error = why(&["--maxmemory", "much"]);
    assert!(error.contains("maxmemory"), "{error}");
    // Another server answers at its address: that is not it.
    let _first = Server::start(place).expect("Redis");
    let error = why(&[]);
    assert!(error.contains("Address already in use"), "{error}");
}

#[test]
fn a_stopped_one_ends_with_its_value() {
    if !is_root("a_stopped_one_ends_with_its_value") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    server.pause().expect("stopped");
    let process = format!("/proc/{}", server.pid());
    drop(server);
    assert!(!std::path::Path::new(&process).exists());
}

#[test]
fn a_replica_has_what_its_master_had_and_the_master_comes_back_behind_it() {
    if !is_root("a_replica_has_what_its_master_had_and_the_master_comes_back_behind_it") {
        return;
    }
    let names = ["r1", "r2", "r3", "r4", "r5", "r6"];
    let fabric = fabric(&names);
    let mut cluster = Cluster::start(names.map(|name| host(&fabric, name))).expect("a cluster");
    assert_eq!(cluster.masters().expect("three"), [0, 1, 2]);
    let old = cluster.master_of(KEY).expect("served");
    let set = redis::cmd("SET").arg(name("bre:frame:", KEY)).arg("before").clone();
    let () = cluster.nodes()[old].run(&set).expect("stored");
    cluster.await_replicated().expect("replicas that have it");
    cluster.kill(old).expect("killed");
    let new = cluster.await_failover(KEY, old).expect("a failover");
    assert_eq!(new, old + 3, "its own replica");
    assert_eq!(cluster.nodes()[new].frame(KEY).expect("an answer").as_deref(), Some(&b"before"[..]));
    cluster.restart(old).expect("it comes back");
    cluster.await_ok().expect("whole");
    assert_eq!(cluster.master_of(KEY).expect("served"), new, "as a replica");
}
