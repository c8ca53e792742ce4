//! Redis that is dead, stopped, or has become a replica; and two instances that share one.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_testbed::peers::redis::Server;
use retry_testbed::scene::is_root;
use retry_userspace::parts::store::{Claim, Unavailable};

use super::scene::{MINUTE, OP_TIMEOUT, bytes, config, connected, fabric, host, keeps, on, redis, start_with, until};

const KEY: FrameKey = FrameKey::new(0xfeed, 7);

fn url(server: &Server<'_>) -> String {
    format!("redis://{}", server.address())
}

/// A stopped Redis delays no caller for longer than it is of use, and comes back by itself.
#[test]
fn a_stopped_one_delays_no_caller() {
    if !is_root("a_stopped_one_delays_no_caller") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    on(host(&fabric, "store"), async {
        let started = connected(config(redis(&[&url(&server)]), "a")).await;
        keeps(&started, KEY).await;
        server.pause().expect("stopped");
        let start = Instant::now();
        assert!(started.store.fetch(&KEY).await.is_err());
        assert!(start.elapsed() < OP_TIMEOUT + Duration::from_secs(1), "{:?}", start.elapsed());
        // Writes never wait, however many.
        let start = Instant::now();
        for seq in 0..10_000 {
            started.store.write(FrameKey::new(1, seq), MINUTE, &[0; 400]);
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        // After some failures it is left alone: an answer at once.
        until("the breaker opens", || started.store.status().breaker_open).await;
        let start = Instant::now();
        let answer = started.store.fetch(&KEY).await;
        assert!(matches!(answer, Err(Unavailable::BreakerOpen) | Err(Unavailable::Late)), "{answer:?}");
        assert!(start.elapsed() < OP_TIMEOUT + Duration::from_secs(1));
        assert!(started.counters.snapshot().get(Counter::CacheErrors) > 0);

        server.go_on().expect("it goes on");
        keeps(&started, KEY).await;
        // Nothing was lost: what waited is written.
        until("all is written", || started.store.status().queued == 0).await;
        assert_eq!(started.store.fetch(&FrameKey::new(1, 9_999)).await.map(|found| found.is_some()), Ok(true));
        assert_eq!(started.counters.snapshot().get(Counter::StoreQueueFull), 0);
    });
}

#[test]
fn a_dead_one_is_found_again_and_what_is_lost_is_counted() {
    if !is_root("a_dead_one_is_found_again_and_what_is_lost_is_counted") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let mut server = Server::start(host(&fabric, "redis")).expect("Redis");
    let url = url(&server);
    let runtime = host(&fabric, "store")
        .ns
        .enter(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build())
        .expect("a runtime");
    let started = runtime.block_on(connected(config(redis(&[&url]), "a")));
    server.kill().expect("killed");
    runtime.block_on(async {
        until("the loss is seen", || !started.store.status().connected).await;
        assert!(started.store.fetch(&KEY).await.is_err());
        // Frames that outlive the outage nowhere: counted, each.
        for seq in 0..100 {
            started.store.write(FrameKey::new(2, seq), Duration::from_millis(50), &bytes(KEY));
        }
        // More than there is room for: counted at once.
        let big = vec![0; 60_000];
        for seq in 0..2_000 {
            started.store.write(FrameKey::new(3, seq), MINUTE, &big);
        }
        assert!(started.counters.snapshot().get(Counter::StoreQueueFull) > 800);
    });
    server.start_again().expect("Redis");
    runtime.block_on(async {
        keeps(&started, KEY).await;
        until("nothing waits", || started.store.status().queued == 0).await;
        let counted = started.counters.snapshot();
        assert_eq!(
            counted.get(Counter::StoreWritten)
                + counted.get(Counter::StoreWriteFailed)
                + counted.get(Counter::StoreQueueFull),
            2_101,
            "every frame is counted once"
        );
        assert!(counted.get(Counter::StoreWriteFailed) >= 100);
    });
    runtime.shutdown_background();
}

/// A failover that this instance was not told of: its server refuses writes (READONLY) until it is found out.
#[test]
fn a_server_that_has_become_a_replica_is_left() {
    if !is_root("a_server_that_has_become_a_replica_is_left") {
        return;
    }
    let fabric = fabric(&["redis", "other"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    let other = Server::start(host(&fabric, "other")).expect("Redis");
    on(host(&fabric, "store"), async {
        let started = connected(config(redis(&[&url(&server)]), "a")).await;
        keeps(&started, KEY).await;
        let address = other.address();
        let replica = redis::cmd("REPLICAOF").arg(address.ip().to_string()).arg(address.port()).clone();
        let _: redis::Value = server.run(&replica).expect("an answer");
        let late = FrameKey::new(0xfeed, 9);
        started.store.write(late, MINUTE, &bytes(late));
        until("the write fails", || started.counters.snapshot().get(Counter::CacheErrors) > 0).await;
        let master = redis::cmd("REPLICAOF").arg("NO").arg("ONE").clone();
        let _: redis::Value = server.run(&master).expect("an answer");
        until("it is written in the end", || started.store.status().queued == 0).await;
        keeps(&started, late).await;
        assert_eq!(started.counters.snapshot().get(Counter::StoreWriteFailed), 0);
    });
}

#[test]
fn two_instances_hear_of_each_others_repairs() {
    if !is_root("two_instances_hear_of_each_others_repairs") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    on(host(&fabric, "store"), async {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&heard);
        let a = connected(config(redis(&[&url(&server)]), "a")).await;
        let b = start_with(config(redis(&[&url(&server)]), "b"), move |key, age| {
            hears.lock().expect("no panic").push((key, age))
        });
        until("both listen", || {
            let text: Vec<redis::Value> =
                server.run(redis::cmd("PUBSUB").arg("NUMSUB").arg("bre:repairs")).expect("an answer");
            text.get(1) == Some(&redis::Value::Int(2))
        })
        .await;
        let keys: Vec<FrameKey> = (1..=500).map(|seq| FrameKey::new(5, seq)).collect();
        for key in &keys {
            a.store.announce(*key);
        }
        until("all are heard", || heard.lock().expect("no panic").len() == keys.len()).await;
        let heard = heard.lock().expect("no panic").clone();
        assert_eq!(heard.iter().map(|(key, _)| *key).collect::<Vec<_>>(), keys);
        assert!(heard.iter().all(|(_, age)| *age < Duration::from_secs(2)));
        // No instance hears its own.
        assert_eq!(a.counters.snapshot().get(Counter::DedupHeard), 0);
        until("told", || a.counters.snapshot().get(Counter::DedupAnnounced) == 500).await;
        assert_eq!(b.counters.snapshot().get(Counter::DedupHeard), 500);
        assert_eq!(server.keys("bre:dedup:").expect("an answer"), 500);
    });
}

#[test]
fn a_claim_silences_others_until_it_is_old() {
    if !is_root("a_claim_silences_others_until_it_is_old") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    on(host(&fabric, "store"), async {
        let a = connected(config(redis(&[&url(&server)]), "a")).await;
        let b = connected(config(redis(&[&url(&server)]), "b")).await;
        let (one, same_number) = (FrameKey::new(1, 5), FrameKey::new(2, 5));
        assert_eq!(a.store.claim_repair(&one).await, Ok(Claim::Ours));
        // One round trip when there is no claim yet.
        let calls = ["set", "get", "pttl"].map(|command| server.calls(command).expect("an answer"));
        assert_eq!(calls, [1, 0, 0]);
        assert!(matches!(b.store.claim_repair(&one).await, Ok(Claim::Others { .. })));
        // Ours stays ours; another flow's frame of the same number is unclaimed.
        assert_eq!(a.store.claim_repair(&one).await, Ok(Claim::Ours));
        assert_eq!(b.store.claim_repair(&same_number).await, Ok(Claim::Ours));
        // `dedup-repeat-after` is two seconds here.
        tokio::time::sleep(Duration::from_millis(2_200)).await;
        assert_eq!(b.store.claim_repair(&one).await, Ok(Claim::Ours));
        assert!(matches!(a.store.claim_repair(&one).await, Ok(Claim::Others { .. })));

        assert_eq!(a.store.claim_recovery(&one, None).await, Ok(true));
        assert_eq!(b.store.claim_recovery(&one, None).await, Ok(false));
        a.store.release_recovery(&one, None).await;
        assert_eq!(b.store.claim_recovery(&one, None).await, Ok(true));
    });
}

/// Without `-cache-backend redis` no frame goes there, and none is asked for.
#[test]
fn dedup_alone_keeps_no_frames() {
    if !is_root("dedup_alone_keeps_no_frames") {
        return;
    }
    let fabric = fabric(&["redis"]);
    let server = Server::start(host(&fabric, "redis")).expect("Redis");
    on(host(&fabric, "store"), async {
        let mut config = config(redis(&[&url(&server)]), "a");
        config.keep_frames = false;
        let started = connected(config).await;
        started.store.write(KEY, MINUTE, &bytes(KEY));
        assert_eq!(started.store.fetch(&KEY).await, Ok(None));
        assert_eq!(started.store.claim_repair(&KEY).await, Ok(Claim::Ours));
        assert_eq!(server.keys("bre:frame:").expect("an answer"), 0);
        assert_eq!(server.calls("get").expect("an answer"), 0);
    });
}
