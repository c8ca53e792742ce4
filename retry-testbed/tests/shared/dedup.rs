//! Dedup between instances: one repair for listeners that ask different endpoints, and another for those that lost it too.

use std::net::SocketAddrV6;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::group;
use retry_testbed::peers::answer::Answer;
use retry_testbed::scene::{PATIENCE, asker, counted, eventually, frame, path};

use super::site::{BY_MULTICAST, Site, answer};

const FLOW: u64 = 0xdedb;
const KEY: FrameKey = FrameKey::new(FLOW, 1);

/// Publishes frames that both instances hear.
fn publish(site: &Site, instances: [&Daemon<'_>; 2], keys: &[FrameKey]) -> Vec<Vec<u8>> {
    let publisher = site.publisher();
    let frames: Vec<_> = (0..).zip(keys).map(|(salt, key)| frame(*key, 500, salt)).collect();
    for frame in &frames {
        publisher.send(group(0), frame).expect("a frame leaves");
    }
    for daemon in instances {
        counted(daemon, "bre_frames_cached_total", &[], keys.len().try_into().expect("few"));
    }
    frames
}

/// One after the other: the second endpoint has heard of the first's repair, until it is asked so late that the repair was lost.
fn told_of_repairs(xdp: &str) {
    const AGAIN: Duration = Duration::from_secs(4);
    let site = Site::new();
    let redis = site.redis();
    let one = site.endpoint("one", xdp, &redis.address(), &["-dedup-repeat-after", "4s"]);
    let two = site.endpoint("two", xdp, &redis.address(), &["-dedup-repeat-after", "4s"]);
    let watch = site.watch(&[group(0)]);
    let bytes = publish(&site, [&one, &two], &[KEY]).remove(0);

    let repaired = Instant::now();
    assert_eq!(answer(&asker(site.host("client")), site.host("one").nack_address(), KEY), Some(BY_MULTICAST));
    counted(&one, "bre_dedup_repairs_total", &[("event", "announced")], 1);
    counted(&two, "bre_dedup_repairs_total", &[("event", "heard")], 1);
    let other = asker(site.host("other"));
    assert_eq!(answer(&other, site.host("two").nack_address(), KEY), Some(BY_MULTICAST), "it has left");
    assert!(repaired.elapsed() < AGAIN, "this machine is too slow for {AGAIN:?}");
    let metrics = counted(&two, "bre_retransmit_dedup_total", &[], 1);
    assert_eq!(metrics.count("bre_retransmit_dedup_total", &[("path", path(xdp))]), 1);
    assert_eq!(metrics.count("bre_retransmits_total", &[]), 0);
    let repairs = watch.repairs(KEY, 1);
    assert_eq!(repairs.len(), 1, "one copy for both");
    assert!(repairs[0].payload == bytes && *repairs[0].src.ip() == site.host("one").addr);

    // A listener that asks again has lost that repair too.
    std::thread::sleep((AGAIN + Duration::from_millis(200)).saturating_sub(repaired.elapsed()));
    assert_eq!(answer(&other, site.host("two").nack_address(), KEY), Some(BY_MULTICAST));
    let repairs = watch.repairs(KEY, 2);
    assert_eq!(repairs.len(), 2);
    assert!(repairs[1].payload == bytes && *repairs[1].src.ip() == site.host("two").addr);
    let metrics = counted(&two, "bre_retransmits_total", &[], 1);
    assert_eq!(
        metrics.count("bre_retransmits_total", &[("path", path(xdp))]),
        1,
        "eventual dedup leaves repairs to XDP"
    );
    assert_eq!(metrics.count("bre_dedup_errors_total", &[]), 0);
    assert_eq!(redis.keys("bre:frame:"), 0);
    watch.end();
}

/// Asks two endpoints for a frame at the same time.
fn ask_both(site: &Site, key: FrameKey) -> [Option<Answer>; 2] {
    let barrier = Barrier::new(2);
    let asks = |host: &'static str, to: SocketAddrV6| {
        let (socket, barrier) = (asker(site.host(host)), &barrier);
        move || {
            barrier.wait();
            answer(&socket, to, key)
        }
    };
    let first = asks("client", site.host("one").nack_address());
    let second = asks("other", site.host("two").nack_address());
    std::thread::scope(|scope| {
        let first = scope.spawn(first);
        let second = second();
        [first.join().expect("an answer"), second]
    })
}

/// `-dedup-mode strict`: exactly one copy on the wire, however close the NACKs are, and an ACK to both.
fn claimed_before_sent(xdp: &str) {
    const FRAMES: u64 = 20;
    let site = Site::new();
    let redis = site.redis();
    let flags = ["-dedup-mode", "strict", "-dedup-repeat-after", "30s"];
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let watch = site.watch(&[group(0)]);
    let keys: Vec<_> = (1..=FRAMES).map(|seq_num| FrameKey::new(FLOW, seq_num)).collect();
    let frames = publish(&site, [&one, &two], &keys);
    for key in &keys {
        assert_eq!(ask_both(&site, *key), [Some(BY_MULTICAST); 2], "{key:?}\n{}\n{}", one.log(), two.log());
    }
    watch.repairs(keys[keys.len() - 1], 1);
    for (key, bytes) in keys.iter().zip(&frames) {
        let repairs = watch.seen(*key);
        assert_eq!(repairs.len(), 1, "copies of {key:?}");
        assert!(&repairs[0].payload == bytes, "byte for byte");
    }
    let both = [&one, &two].map(|daemon| daemon.metrics().expect("a scrape"));
    let sum = |metric| both.iter().map(|metrics| metrics.count(metric, &[])).sum::<u64>();
    assert_eq!((sum("bre_retransmits_total"), sum("bre_retransmit_dedup_total")), (FRAMES, FRAMES));
    assert_eq!((sum("bre_cache_hits_total"), sum("bre_dedup_errors_total")), (2 * FRAMES, 0));
    assert_eq!(redis.keys("bre:dedup:"), keys.len());
    watch.end();
}

/// A claim of another instance silences for `-dedup-repeat-after`, no longer; then the asked one takes it over.
fn taken_over(xdp: &str) {
    const AGAIN: Duration = Duration::from_secs(3);
    let site = Site::new();
    let redis = site.redis();
    let flags = ["-dedup-mode", "strict", "-dedup-repeat-after", "3s", "-dedup-window", "1m"];
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let watch = site.watch(&[group(0)]);
    publish(&site, [&one, &two], &[KEY]);
    let socket = asker(site.host("client"));
    let [first, second] = ["one", "two"].map(|name| site.host(name));
    let repaired = Instant::now();
    assert_eq!(answer(&socket, first.nack_address(), KEY), Some(BY_MULTICAST));
    assert_eq!(answer(&socket, second.nack_address(), KEY), Some(BY_MULTICAST));
    assert!(repaired.elapsed() < AGAIN, "this machine is too slow for {AGAIN:?}");
    assert_eq!(watch.repairs(KEY, 1).len(), 1);
    let left = redis.claim_life("bre:dedup:", KEY).expect("a claim");
    assert!(left <= Duration::from_secs(60) && left > Duration::from_secs(40), "it stays for the window: {left:?}");

    std::thread::sleep((AGAIN + Duration::from_millis(200)).saturating_sub(repaired.elapsed()));
    assert_eq!(answer(&socket, second.nack_address(), KEY), Some(BY_MULTICAST));
    let repairs = watch.repairs(KEY, 2);
    let sources: Vec<_> = repairs.iter().map(|repair| *repair.src.ip()).collect();
    assert_eq!(sources, [first.addr, second.addr]);
    watch.end();
}

/// Two flows that count alike are two frames: a repair of one says nothing of the other.
fn same_number_other_flow(xdp: &str, mode: &str) {
    let site = Site::new();
    let redis = site.redis();
    let flags = ["-dedup-mode", mode, "-dedup-repeat-after", "30s"];
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let watch = site.watch(&[group(0)]);
    let keys = [FrameKey::new(FLOW, 7), FrameKey::new(FLOW + 1, 7)];
    let frames = publish(&site, [&one, &two], &keys);
    let socket = asker(site.host("client"));
    assert_eq!(answer(&socket, site.host("one").nack_address(), keys[0]), Some(BY_MULTICAST));
    eventually("the claim of the first flow", || redis.keys("bre:dedup:") == 1);
    if mode == "eventual" {
        counted(&two, "bre_dedup_repairs_total", &[("event", "heard")], 1);
    }
    assert_eq!(answer(&socket, site.host("two").nack_address(), keys[1]), Some(BY_MULTICAST));
    for (key, bytes) in keys.iter().zip(&frames) {
        let repairs = watch.repairs(*key, 1);
        assert_eq!(repairs.len(), 1, "{key:?}");
        assert!(&repairs[0].payload == bytes, "byte for byte");
    }
    let metrics = two.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_retransmit_dedup_total", &[]), 0);
    eventually("a claim for each flow", || redis.keys("bre:dedup:") == 2);
    watch.end();
}

fn same_number_eventual(xdp: &str) {
    same_number_other_flow(xdp, "eventual");
}

fn same_number_strict(xdp: &str) {
    same_number_other_flow(xdp, "strict");
}

/// `-dedup-window 0`: no instance claims a repair and none is told of it.
fn no_claims(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let one = site.endpoint("one", xdp, &redis.address(), &["-dedup-window", "0"]);
    let two = site.endpoint("two", xdp, &redis.address(), &["-dedup-window", "0"]);
    let watch = site.watch(&[group(0)]);
    publish(&site, [&one, &two], &[KEY]);
    let socket = asker(site.host("client"));
    for name in ["one", "two"] {
        assert_eq!(answer(&socket, site.host(name).nack_address(), KEY), Some(BY_MULTICAST));
    }
    assert_eq!(watch.repairs(KEY, 2).len(), 2);
    assert_eq!(redis.keys("bre:"), 0);
}

/// `-dedup-mode strict` with a Redis that is dead, and one that hangs: repairs are sent, and counted as sent without a claim.
fn fails_open(xdp: &str) {
    let site = Site::new();
    let mut redis = site.redis();
    let flags = ["-dedup-mode", "strict", "-repair-holddown", "0"];
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let watch = site.watch(&[group(0)]);
    let bytes = frame(KEY, 500, 3);
    site.publisher().send(group(0), &bytes).expect("a frame leaves");
    counted(&one, "bre_frames_cached_total", &[], 1);
    let socket = asker(site.host("client"));
    let to = site.host("one").nack_address();
    assert_eq!(answer(&socket, to, KEY), Some(BY_MULTICAST));
    let metrics = counted(&one, "bre_retransmits_total", &[("path", "user")], 1);
    assert_eq!(metrics.count("bre_dedup_errors_total", &[]), 0, "a claim that was had");

    redis.pause();
    let asked = Instant::now();
    assert_eq!(answer(&socket, to, KEY), Some(BY_MULTICAST));
    assert!(asked.elapsed() < PATIENCE / 2, "{:?}", asked.elapsed());
    counted(&one, "bre_dedup_errors_total", &[("reason", "failed_open")], 1);
    redis.kill();
    for _ in 0..3 {
        assert_eq!(answer(&socket, to, KEY), Some(BY_MULTICAST));
    }
    let metrics = counted(&one, "bre_dedup_errors_total", &[("reason", "failed_open")], 4);
    assert_eq!(metrics.count("bre_retransmits_total", &[]), 5);
    let repairs = watch.repairs(KEY, 5);
    assert_eq!(repairs.len(), 5);
    assert!(repairs.iter().all(|repair| repair.payload == bytes), "byte for byte");
    watch.end();
}

/// `-dedup-mode eventual` with a Redis that is dead: repairs are sent, and counted as not announced.
fn repairs_without_announcement(xdp: &str) {
    let site = Site::new();
    let mut redis = site.redis();
    let one = site.endpoint("one", xdp, &redis.address(), &["-repair-holddown", "0"]);
    let watch = site.watch(&[group(0)]);
    site.publisher().send(group(0), &frame(KEY, 500, 3)).expect("a frame leaves");
    counted(&one, "bre_frames_cached_total", &[], 1);
    redis.kill();
    let socket = asker(site.host("client"));
    for _ in 0..3 {
        assert_eq!(answer(&socket, site.host("one").nack_address(), KEY), Some(BY_MULTICAST));
    }
    assert_eq!(watch.repairs(KEY, 3).len(), 3);
    let metrics = counted(&one, "bre_dedup_errors_total", &[("reason", "not_announced")], 3);
    assert_eq!(metrics.count("bre_dedup_repairs_total", &[]), 0);
    assert_eq!(metrics.count("bre_retransmits_total", &[("path", path(xdp))]), 3);
    watch.end();
}

both_paths! {
    told_of_repairs: told_of_repairs_native, told_of_repairs_off;
    claimed_before_sent: claimed_before_sent_native, claimed_before_sent_off;
    taken_over: taken_over_native, taken_over_off;
    same_number_eventual: same_number_eventual_native, same_number_eventual_off;
    same_number_strict: same_number_strict_native, same_number_strict_off;
    no_claims: no_claims_native, no_claims_off;
    repairs_without_announcement: repairs_without_announcement_native, repairs_without_announcement_off;
    fails_open: fails_open_native, fails_open_off;
}
