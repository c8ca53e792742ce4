//! Each kind of Redis, by the URL that an operator writes.

use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::peers::redis::{Cluster, PORT, Server};
use retry_testbed::scene::is_root;

use super::certificates::Files;
use super::scene::{claims, config, connected, fabric, host, keeps, on, redis, start_with, until};

const KEY: FrameKey = FrameKey::new(0xfeed, 7);

#[test]
fn one_server() {
    if !is_root("one_server") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    let address = server.address();
    // As a bare address and as a URL with a database.
    for url in [format!("redis://{address}"), format!("redis://{address}/3")] {
        on(host(&fabric, "store"), async {
            let started = connected(config(redis(&[&url]), "a")).await;
            keeps(&started, KEY).await;
            let nodes = started.store.nodes().await.expect("a server");
            assert_eq!(nodes.len(), 1);
            assert_eq!((nodes[0].role.as_str(), nodes[0].link.as_str()), ("master", "connected"));
            assert!(started.store.delete(&KEY).await.expect("deleted"));
            assert!(!started.store.delete(&KEY).await.expect("gone"));
            assert_eq!(started.store.fetch(&KEY).await, Ok(None));
            claims(redis(&[&url]), KEY).await;
        });
    }
}

#[test]
fn a_password_and_a_user() {
    if !is_root("a_password_and_a_user") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let acl = ["--user", "frames", "on", ">pass%word", "~bre:*", "&bre:*", "+@all", "-@dangerous", "+info", "+role"];
    let server = Server::start_with(host(&fabric, "redis"), PORT, Some("secret"), &acl).expect("Redis");
    let address = server.address();
    on(host(&fabric, "store"), async {
        for url in [format!("redis://:secret@{address}"), format!("redis://frames:pass%25word@{address}")] {
            let started = connected(config(redis(&[&url]), "a")).await;
            keeps(&started, KEY).await;
        }
        for url in [format!("redis://{address}"), format!("redis://:wrong@{address}")] {
            let refused = start_with(config(redis(&[&url]), "a"), |_, _| {});
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(refused.store.fetch(&KEY).await.is_err(), "{url}");
            assert!(!refused.store.status().connected || refused.store.status().breaker_open, "{url}");
        }
    });
}

#[test]
fn tls_with_our_authority_and_our_certificate() {
    if !is_root("tls_with_our_authority_and_our_certificate") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let place = host(&fabric, "redis");
    let files = Files::new(place.addr.into());
    for asks_clients in [false, true] {
        let server = files.server(place, asks_clients);
        let url = format!("rediss://{}", server.address());
        on(host(&fabric, "store"), async {
            let with_ca = || {
                let mut redis = redis(&[&url]);
                redis.tls_ca = Some(files.path("ca.pem"));
                redis
            };
            let with_client = || {
                let mut redis = with_ca();
                redis.tls_client = Some((files.path("client.pem"), files.path("client.key")));
                redis
            };
            let started = connected(config(if asks_clients { with_client() } else { with_ca() }, "a")).await;
            keeps(&started, KEY).await;
            // Without our authority, without TLS, and without a certificate where one is asked for.
            let plain = url.replace("rediss", "redis");
            let mut refused = vec![redis(&[&url]), redis(&[&plain])];
            if asks_clients {
                refused.push(with_ca());
            }
            for settings in refused {
                let refused = start_with(config(settings.clone(), "b"), |_, _| {});
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert!(refused.store.fetch(&KEY).await.is_err(), "{settings:?}");
            }
        });
    }
}

#[test]
fn a_cluster_and_the_death_of_a_master() {
    if !is_root("a_cluster_and_the_death_of_a_master") {
        return;
    }
    let names = ["r1", "r2", "r3", "r4", "r5", "r6"];
    let fabric = fabric(&names);
    let mut cluster = Cluster::start(names.map(|name| host(&fabric, name))).expect("a cluster");
    let all = cluster.addresses().split(',').map(|address| format!("redis://{address}")).collect::<Vec<_>>();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    // Keys of all three masters.
    let keys: Vec<FrameKey> = (1..=30).map(|seq| FrameKey::new(0xc1, seq)).collect();
    let masters: std::collections::BTreeSet<usize> =
        keys.iter().map(|key| cluster.master_of(*key).expect("served")).collect();
    assert_eq!(masters.len(), 3);
    let place = host(&fabric, "store");
    on(place, async {
        // All nodes, and one that tells of the others.
        for urls in [&all[..], &all[1..2]] {
            let started = connected(config(redis(urls), "a")).await;
            for key in &keys {
                keeps(&started, *key).await;
            }
            let nodes = started.store.nodes().await.expect("nodes");
            assert_eq!(
                nodes.iter().filter(|node| node.role == "master" && !node.slots.is_empty()).count(),
                3,
                "{nodes:?}"
            );
            assert_eq!(
                nodes.iter().filter(|node| node.role == "replica" && node.master.is_some()).count(),
                3,
                "{nodes:?}"
            );
        }
        // Of all three masters.
        for key in &keys[..6] {
            claims(redis(&all), *key).await;
        }
    });
    let runtime = place.ns.enter(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build());
    let runtime = runtime.expect("a runtime");
    let started = runtime.block_on(connected(config(redis(&all), "b")));
    let first = keys[0];
    let before = cluster.master_of(first).expect("served");
    let late = (1..1_000)
        .map(|seq| FrameKey::new(0xc2, seq))
        .find(|key| cluster.master_of(*key).is_ok_and(|at| at == before))
        .expect("a key of that master");
    cluster.await_replicated().expect("replicas that have what is written");
    cluster.kill(before).expect("killed");
    // Written while no node serves the slot: it waits, and arrives.
    runtime.block_on(async {
        started.store.write(late, super::scene::MINUTE, &super::scene::bytes(late));
    });
    cluster.await_failover(first, before).expect("a failover");
    runtime.block_on(async {
        keeps(&started, first).await;
        keeps(&started, late).await;
        until("nothing waits", || started.store.status().queued == 0).await;
    });
    runtime.shutdown_background();
}

#[test]
fn a_master_behind_sentinels() {
    if !is_root("a_master_behind_sentinels") {
        return;
    }
    let fabric = fabric(&["first", "second", "watch"]);
    let (first, second, watch) = (host(&fabric, "first"), host(&fabric, "second"), host(&fabric, "watch"));
    let mut master = Server::start(first).expect("a master");
    let follow = ["--replicaof", &first.addr.to_string(), "6379", "--repl-diskless-sync-delay", "0"];
    let replica = Server::start_with(second, PORT, None, &follow).expect("a replica");
    let files = tempfile::tempdir().expect("a directory");
    let sentinels: Vec<Server<'_>> = (0..3)
        .map(|number| {
            let file = files.path().join(format!("sentinel{number}.conf"));
            let text = format!(
                "sentinel monitor frames {} 6379 2\nsentinel down-after-milliseconds frames 500\nsentinel failover-timeout frames 3000\n",
                first.addr
            );
            std::fs::write(&file, text).expect("written");
            let file = file.to_str().expect("UTF-8").to_owned();
            Server::start_with(watch, 26_379 + number, None, &[&file, "--sentinel"]).expect("a sentinel")
        })
        .collect();
    let hosts: Vec<String> = sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
    let url = format!("redis+sentinel://{}/frames", hosts.join(","));
    let runtime = host(&fabric, "store")
        .ns
        .enter(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())
        .expect("a runtime");
    let started = runtime.block_on(connected(config(redis(&[&url]), "a")));
    runtime.block_on(keeps(&started, KEY));
    let nodes = runtime.block_on(started.store.nodes()).expect("the master's ROLE");
    let addresses: Vec<&str> = nodes.iter().map(|node| node.address.as_str()).collect();
    assert_eq!(addresses, [format!("[{}]:6379", first.addr)], "the master that the Sentinels name");
    runtime.block_on(claims(redis(&[&url]), KEY));
    runtime.block_on(until("the replica has it", || replica.frame(KEY).is_ok_and(|frame| frame.is_some())));
    master.kill().expect("killed");
    runtime.block_on(async {
        // What was stored before is there, and what is written now is kept: by the replica, which is the master now.
        keeps(&started, KEY).await;
        let new = FrameKey::new(0xfeed, 8);
        keeps(&started, new).await;
        assert_eq!(replica.frame(new).expect("an answer"), Some(super::scene::bytes(new)));
    });
    runtime.shutdown_background();
}
