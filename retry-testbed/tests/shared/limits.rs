//! The limits over frames of the shared store: one budget, whichever path serves.

use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::group;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::scene::{asker, counted, frame};

use super::site::{BY_MULTICAST, Site, answer};

use super::redis_server::RedisServer;

const FLOW: u64 = 0x11d17;

/// Two instances; frames 1 to `frames` of the flow are in Redis and in the log of the first alone.
fn shared<'a>(
    site: &'a Site,
    redis: &RedisServer<'_>,
    xdp: &str,
    frames: u64,
    more: &[&str],
) -> (Daemon<'a>, Daemon<'a>) {
    let flags = [&["-cache-backend", "redis", "-rl-throttle-response"], more].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let publisher = site.publisher();
    for seq_num in 1..=frames {
        publisher.send(group(0), &frame(FrameKey::new(FLOW, seq_num), 300, 5)).expect("a frame leaves");
    }
    counted(&one, "bre_store_frames_written_total", &[], frames);
    (one, two)
}

/// (address, group): hits on frames from Redis and hits in the kernel take from the same bucket.
fn one_group_budget(xdp: &str) {
    const BURST: u64 = 20;
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let (_one, two) = shared(&site, &redis, xdp, BURST / 2, &["-rl-group-rate", "1", "-rl-group-burst", "20"]);
    let socket = asker(site.host("client"));
    let to = site.host("two").nack_address();
    let began = Instant::now();
    // Half of the burst from Redis, the other half from the log, and then as much again.
    let mut answers = Vec::new();
    for seq_num in (1..=BURST / 2).cycle().take(40) {
        answers.push(answer(&socket, to, FrameKey::new(FLOW, seq_num)).expect("an answer"));
    }
    let hits = u64::try_from(answers.iter().filter(|answer| **answer == BY_MULTICAST).count()).expect("few");
    let refilled = began.elapsed().as_secs() + 1;
    assert!((BURST..=BURST + refilled).contains(&hits), "{hits} hits, {refilled} tokens more at most: {answers:?}");
    let group_hold = Answer::Throttled { hold: Duration::from_secs(2) };
    assert!(answers.iter().all(|answer| [BY_MULTICAST, group_hold].contains(answer)), "{answers:?}");
    let metrics = counted(&two, "bre_rate_limit_drops_total", &[("level", "group")], 40 - hits);
    assert_eq!(metrics.count("bre_rate_limit_drops_total", &[]), 40 - hits);
    assert_eq!(metrics.count("bre_store_lookups_total", &[("outcome", "asked")]), BURST / 2);
}

/// The frame's window is charged once by a NACK that had to wait for Redis.
fn one_sequence_charge(xdp: &str) {
    const MOST: u64 = 4;
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let more = ["-rl-sequence-max", "4", "-rl-sequence-window", "1h", "-repair-holddown", "0"];
    let (_one, two) = shared(&site, &redis, xdp, 1, &more);
    let socket = asker(site.host("client"));
    let to = site.host("two").nack_address();
    let sequence_hold = Answer::Throttled { hold: Duration::from_millis(500) };
    // A frame of Redis: the first NACK waits for it, the others find it in the log.
    let key = FrameKey::new(FLOW, 1);
    let answers: Vec<_> = (0..MOST + 2).map(|_| answer(&socket, to, key).expect("an answer")).collect();
    let (served, refused) = answers.split_at(4);
    assert!(served.iter().all(|answer| *answer == BY_MULTICAST), "{answers:?}");
    assert!(refused.iter().all(|answer| *answer == sequence_hold), "{answers:?}");
    // A frame that no instance has: each NACK asks Redis, and each MISS is charged once.
    let key = FrameKey::new(FLOW, 2);
    let answers: Vec<_> = (0..MOST + 2).map(|_| answer(&socket, to, key).expect("an answer")).collect();
    let (missed, refused) = answers.split_at(4);
    assert!(missed.iter().all(|answer| *answer == Answer::Miss), "{answers:?}");
    assert!(refused.iter().all(|answer| *answer == sequence_hold), "{answers:?}");
    let metrics = counted(&two, "bre_rate_limit_drops_total", &[("level", "sequence")], 4);
    assert_eq!(metrics.count("bre_rate_limit_drops_total", &[]), 4);
    assert_eq!(metrics.count("bre_store_lookups_total", &[("outcome", "asked")]), 1 + MOST);
}

/// (address, flow) and the address are charged before Redis is asked: what they refuse costs it nothing.
fn refused_before_redis(xdp: &str) {
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let (_one, two) = shared(&site, &redis, xdp, 1, &["-rl-chain-rate", "3", "-rl-chain-window", "1h"]);
    let socket = asker(site.host("client"));
    let to = site.host("two").nack_address();
    let answers: Vec<_> =
        (101..=106).map(|seq_num| answer(&socket, to, FrameKey::new(FLOW, seq_num)).expect("an answer")).collect();
    let chain_hold = Answer::Throttled { hold: Duration::from_secs(1) };
    assert_eq!(answers, [[Answer::Miss; 3], [chain_hold; 3]].concat());
    let metrics = counted(&two, "bre_rate_limit_drops_total", &[("level", "chain")], 3);
    assert_eq!(metrics.count("bre_store_lookups_total", &[("outcome", "asked")]), 3);

    drop(two);
    let flags = ["-cache-backend", "redis", "-rl-ip-rate", "1", "-rl-ip-burst", "2", "-rl-throttle-response"];
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let before = redis.calls("get");
    for seq_num in 201..=230 {
        socket.send_to(&nack(FrameKey::new(FLOW, seq_num)), to).expect("a NACK leaves");
    }
    let metrics = counted(&two, "bre_nack_requests_total", &[], 30);
    let dropped = metrics.count("bre_rate_limit_drops_total", &[("level", "ip")]);
    assert!((20..=28).contains(&dropped), "{dropped} of 30 in a moment, with a burst of 2");
    let metrics = counted(&two, "bre_responses_sent_total", &[("type", "miss")], 30 - dropped);
    assert_eq!(metrics.count("bre_responses_sent_total", &[]), 30 - dropped, "silence for the others");
    assert_eq!(redis.calls("get") - before, 30 - dropped);
}

both_paths! {
    one_group_budget: one_group_budget_native, one_group_budget_off;
    one_sequence_charge: one_sequence_charge_native, one_sequence_charge_off;
    refused_before_redis: refused_before_redis_native, refused_before_redis_off;
}
