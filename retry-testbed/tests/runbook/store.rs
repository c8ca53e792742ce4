//! Redis that is dead, refuses us, is split or slow.

use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host};

use retry_testbed::peers::redis::{Cluster, PORT, Server};
use retry_testbed::scene::{binary, eventually, flags};

use crate::document::{Section, sections};

sections! {
    "Redis is dead or refuses us" => dead: redis_is_dead_or_refuses_us;
    "The Redis Cluster is split" => split: the_redis_cluster_is_split;
    "Redis is slow" => slow: redis_is_slow;
}

fn host<'a>(fabric: &'a Fabric, name: &str) -> &'a Host {
    fabric.host(name).expect("a host")
}

/// An instance that keeps its frames in this Redis.
fn start<'a>(host: &'a Host, redis: &str) -> Daemon<'a> {
    let more = ["-redis-addr", redis, "-cache-backend", "redis", "-admin-addr", "[::1]:9401", "-fill", "kernel"];
    Daemon::start(&binary(), &host.ns, &flags("native", &more)).expect("a daemon")
}

/// A user that Redis does not know, one that may do nothing, and no Redis at all.
fn dead(section: &Section) {
    let fabric = Fabric::bridged(&["endpoint", "redis"], 1500).expect("a fabric");
    let (endpoint, on) = (host(&fabric, "endpoint"), host(&fabric, "redis"));
    let acl = ["--user", "retry", "on", ">secret", "~bre:*", "+get"];
    let mut redis = Server::start_with(on, PORT, Some("other"), &acl).expect("Redis");
    let address = on.addr.to_string();
    let ping = |password: &str| {
        let quoted = format!("REDISCLI_AUTH={password} redis-cli");
        let examples = [("redis-cli", quoted.as_str()), ("redis.example", address.as_str())];
        section.run_with(&endpoint.ns, "redis-cli", &[examples[0], examples[1], ("ping ", "ping 2>&1 ")]).out
    };
    let _daemon = start(endpoint, &format!("redis://retry:wrong@[{address}]:{PORT}"));
    eventually("the members tell", || section.run(&endpoint.ns, "jq .redis").out.contains("\"state\""));
    assert!(ping("wrong").contains("WRONGPASS"));
    assert!(ping("secret").contains("NOPERM"));
    redis.kill().expect("it dies");
    assert!(ping("secret").contains("Connection refused"));
}

/// A master is dead, and its slots are served by no node until its replica is promoted.
fn split(section: &Section) {
    let names = ["endpoint", "a", "b", "c", "d", "e", "f"];
    let fabric = Fabric::bridged(&names, 1500).expect("a fabric");
    let endpoint = host(&fabric, "endpoint");
    let mut cluster =
        Cluster::start(["a", "b", "c", "d", "e", "f"].map(|name| host(&fabric, name))).expect("a cluster");
    let daemon = start(endpoint, &cluster.addresses());
    let key = FrameKey::new(1, 1);
    let master = cluster.master_of(key).expect("a master");
    let (other, third) = ((master + 1) % 3, (master + 2) % 3);
    let living = cluster.nodes()[third].address().ip().to_string();
    let members = || section.run(&endpoint.ns, "redis.nodes").out;
    eventually("three masters", || members().matches("master").count() >= 3);
    let info = || section.run_with(&endpoint.ns, "cluster info", &[("redis.example", &living)]).out;
    assert!(info().contains("cluster_state:ok"));
    let bracketed = format!("{living}:{PORT}");
    let check = || section.run_with(&endpoint.ns, "--cluster check", &[("redis.example:6379", &bracketed)]);
    check().shows(&["All 16384 slots covered"]);
    // A master dies whose replica takes over when it is told to, and not before.
    let replica = &cluster.nodes()[other + 3];
    let by_hand = redis::cmd("CONFIG").arg("SET").arg("cluster-replica-no-failover").arg("yes").clone();
    let _: redis::Value = replica.run(&by_hand).expect("an answer");
    let replica = replica.address().ip().to_string();
    cluster.kill(other).expect("it dies");
    eventually("it is told", || info().contains("cluster_state:fail"));
    section.run_with(&endpoint.ns, "failover force", &[("REPLICA", &replica)]).shows(&["OK"]);
    eventually("all slots are served", || info().contains("cluster_state:ok"));
    // A master and its replica die: no node serves these slots any more.
    cluster.kill(master).expect("it dies");
    cluster.kill(master + 3).expect("it dies");
    eventually("it is told", || info().contains("cluster_state:fail"));
    eventually("the members tell", || members().contains("disconnected") || members().contains("failed"));
    drop(daemon);
}

/// Redis answers late: a script of another client keeps it busy.
fn slow(section: &Section) {
    let fabric = Fabric::bridged(&["endpoint", "redis"], 1500).expect("a fabric");
    let (endpoint, on) = (host(&fabric, "endpoint"), host(&fabric, "redis"));
    let redis = Server::start(on).expect("Redis");
    let address = on.addr.to_string();
    let _daemon = start(endpoint, &format!("[{address}]:{PORT}"));
    let examples = [("redis.example", address.as_str())];
    let busy = |times: u32| {
        for _ in 0..times {
            let script = redis::cmd("EVAL").arg("local n = 0 for i = 1, 1e7 do n = n + i end return 1").arg(0).clone();
            let _: i64 = redis.run(&script).expect("it ends");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let latency = std::thread::scope(|scope| {
        scope.spawn(|| busy(8));
        section.run_with(&endpoint.ns, "--latency", &examples)
    });
    let worst: Option<u64> = latency.out.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    assert!(worst.is_some_and(|worst| worst > 20), "{}", latency.out);
    section.run_with(&endpoint.ns, "slowlog", &examples).shows(&["EVAL"]);
    section.run_with(&endpoint.ns, "info memory", &examples).shows(&["used_memory_human", "maxmemory_human"]);
    section.run_with(&endpoint.ns, "info persistence", &examples).shows(&["rdb_bgsave_in_progress:0"]);
}
