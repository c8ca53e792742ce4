//! Two instances that recover from one upstream: a frame is asked for there once.

use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::Metrics;
use retry_testbed::net::fabric::group;
use retry_testbed::net::loss::{Loss, LossRule};
use retry_testbed::peers::answer::Answer;
use retry_testbed::scene::{PATIENCE, asker, counted, eventually, frame, path};

use super::site::{BY_MULTICAST, Site, answer};

use super::redis_server::RedisServer;

const KEY: FrameKey = FrameKey::new(0x4ec0, 1);

struct Instances<'a> {
    one: Daemon<'a>,
    two: Daemon<'a>,
    up: Daemon<'a>,
    bytes: Vec<u8>,
    _losses: [Loss<'a>; 2],
}

/// An upstream that heard a frame, and two instances that heard nothing and hear no repair either.
fn instances<'a>(site: &'a Site, redis: &RedisServer<'_>, xdp: &str, backend: &str, more: &[&str]) -> Instances<'a> {
    let losses = ["one", "two"].map(|name| site.fabric.lose(name, &LossRule::random(1000)).expect("a loss"));
    let upstream = site.host("up").nack_address().to_string();
    let mut flags = vec![
        "-cache-backend",
        backend,
        "-proxy-enabled",
        "-upstream-retry-endpoints",
        &upstream,
        "-proxy-dedup-window",
        "45s",
    ];
    flags.extend(more);
    // On this fabric its own multicast would repair the frame for every listener.
    let alone = ["-beacon-enabled=false", "-beacon-flags-multicast=false", "-beacon-flags-unicast"];
    let up = site.daemon("up", xdp, &alone);
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let bytes = frame(KEY, 640, 9);
    site.publisher().send(group(0), &bytes).expect("a frame leaves");
    counted(&up, "bre_frames_cached_total", &[], 1);
    Instances { one, two, up, bytes, _losses: losses }
}

/// One after the other, with nothing but claims in Redis: the second leaves the recovery to the first.
fn one_claim(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let site_of = instances(&site, &redis, xdp, "memory", &[]);
    let Instances { one, two, up, bytes, .. } = &site_of;
    let watch = site.watch(&[group(0)]);
    let socket = asker(site.host("client"));
    assert_eq!(answer(&socket, site.host("one").nack_address(), KEY), Some(Answer::Miss));
    counted(one, "bre_proxy_recovered_total", &[], 1);
    let upstream = [("upstream", site.host("up").nack_address().to_string())];
    let upstream = upstream.each_ref().map(|(label, value)| (*label, value.as_str()));
    let metrics = one.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_upstream_up", &upstream), 1);
    let round_trip = metrics.sum("bre_upstream_rtt_seconds", &upstream);
    assert!(round_trip > 0.0 && round_trip < 1.0, "{round_trip} s");
    let repairs = watch.repairs(KEY, 1);
    assert_eq!(repairs.len(), 1, "{}", one.log());
    assert!(&repairs[0].payload == bytes && *repairs[0].src.ip() == site.host("one").addr);
    let claim = redis.claim_life("bre:proxy:", KEY).expect("a claim for all instances");
    assert!(claim <= Duration::from_secs(45) && claim > Duration::from_secs(30), "it stays for {claim:?}");

    assert_eq!(answer(&socket, site.host("two").nack_address(), KEY), Some(Answer::Miss));
    let metrics = counted(two, "bre_proxy_inflight_dedup_total", &[], 1);
    let of =
        |metrics: &Metrics| ["bre_proxy_requests_total", "bre_proxy_nacks_total"].map(|name| metrics.count(name, &[]));
    assert_eq!(of(&metrics), [1, 0], "its job ended with the claim of the other");
    assert_eq!(of(&one.metrics().expect("a scrape")), [1, 1]);
    assert_eq!(up.metrics().expect("a scrape").count("bre_nack_requests_total", &[]), 1);
    assert_eq!(watch.seen(KEY).len(), 1);
    watch.end();
}

/// At the same time, with frames in Redis too: one request upstream in all, and both have the frame.
fn together(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let site_of = instances(&site, &redis, xdp, "redis", &[]);
    let Instances { one, two, up, bytes, .. } = &site_of;
    let watch = site.watch(&[group(0)]);
    let sockets = [asker(site.host("client")), asker(site.host("other"))];
    for (socket, name) in sockets.iter().zip(["one", "two"]) {
        socket
            .send_to(&retry_testbed::peers::answer::nack(KEY), site.host(name).nack_address())
            .expect("a NACK leaves");
    }
    let recovered = || {
        let both = [one, two].map(|daemon| daemon.metrics().expect("a scrape"));
        both.iter().map(|metrics| metrics.count("bre_proxy_recovered_total", &[])).sum::<u64>()
    };
    eventually("a recovery", || recovered() >= 1);
    eventually("the frame in Redis", || redis.frame(KEY).is_some());
    assert!(&redis.frame(KEY).expect("it is there") == bytes, "byte for byte");
    assert_eq!(watch.repairs(KEY, 1).len(), 1);
    assert_eq!(up.metrics().expect("a scrape").count("bre_nack_requests_total", &[]), 1, "one request upstream");
    // The endpoint that left it to the other gets it from Redis; the hold-down is over.
    std::thread::sleep(Duration::from_millis(50));
    for name in ["one", "two"] {
        let socket = asker(site.host("client"));
        assert_eq!(answer(&socket, site.host(name).nack_address(), KEY), Some(BY_MULTICAST), "{name}");
    }
    assert_eq!((recovered(), up.metrics().expect("a scrape").count("bre_nack_requests_total", &[])), (1, 1));
    let unicast = counted(up, "bre_unicast_retransmits_total", &[("path", path(xdp))], 1);
    assert_eq!(unicast.count("bre_unicast_retransmits_total", &[]), 1);
    watch.end();
}

/// A recovery that came to nothing gives its claim back: when the upstream has the frame, any instance may ask again.
fn given_back(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let site_of = instances(&site, &redis, xdp, "memory", &[]);
    let Instances { one, two, up, .. } = &site_of;
    let watch = site.watch(&[group(0)]);
    let key = FrameKey::new(KEY.hash_key(), 2);
    let socket = asker(site.host("client"));
    assert_eq!(answer(&socket, site.host("one").nack_address(), key), Some(Answer::Miss));
    counted(one, "bre_proxy_failed_total", &[("last", "miss")], 1);
    eventually("the claim given back", || redis.keys("bre:proxy:") == 0);
    let bytes = frame(key, 300, 4);
    site.publisher().send(group(0), &bytes).expect("a frame leaves");
    counted(up, "bre_frames_cached_total", &[], 2);
    assert_eq!(answer(&socket, site.host("two").nack_address(), key), Some(Answer::Miss));
    counted(two, "bre_proxy_recovered_total", &[], 1);
    let repairs = watch.repairs(key, 1);
    assert_eq!(repairs.len(), 1, "{}", two.log());
    assert!(repairs[0].payload == bytes, "byte for byte");
    watch.end();
}

/// Where nothing is multicast, what one instance recovers does not reach the listeners of the other: a claim is for one listener.
fn a_claim_per_listener(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let unicast = ["-beacon-flags-multicast=false", "-beacon-flags-unicast"];
    let site_of = instances(&site, &redis, xdp, "memory", &unicast);
    let Instances { one, two, up, bytes, .. } = &site_of;
    let sockets = [asker(site.host("client")), asker(site.host("other"))];
    for (socket, name) in sockets.iter().zip(["one", "two"]) {
        assert_eq!(answer(socket, site.host(name).nack_address(), KEY), Some(Answer::Miss), "{name}");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut got = [0; 2048];
        let length = socket.recv(&mut got).expect("a copy");
        assert!(&got[..length] == bytes, "byte for byte");
    }
    for daemon in [one, two] {
        counted(daemon, "bre_proxy_recovered_total", &[], 1);
    }
    assert_eq!(redis.keys("bre:proxy:"), 2);
    assert_eq!(up.metrics().expect("a scrape").count("bre_nack_requests_total", &[]), 2);
    // What a listener has asked one instance for, the other does not recover for it again.
    let key = FrameKey::new(KEY.hash_key(), 2);
    site.publisher().send(group(0), &frame(key, 300, 4)).expect("a frame leaves");
    counted(up, "bre_frames_cached_total", &[], 2);
    assert_eq!(answer(&asker(site.host("client")), site.host("one").nack_address(), key), Some(Answer::Miss));
    counted(one, "bre_proxy_recovered_total", &[], 2);
    assert_eq!(answer(&asker(site.host("client")), site.host("two").nack_address(), key), Some(Answer::Miss));
    counted(two, "bre_proxy_inflight_dedup_total", &[], 1);
    assert_eq!(up.metrics().expect("a scrape").count("bre_nack_requests_total", &[]), 3);
}

both_paths! {
    a_claim_per_listener: a_claim_per_listener_native, a_claim_per_listener_off;
    one_claim: one_claim_native, one_claim_off;
    together: together_native, together_off;
    given_back: given_back_native, given_back_off;
}
