//! A Redis that hangs, dies, or refuses us: NACKs are answered all the same, and it is taken back when it is back.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::group;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::scene::{PATIENCE, asker, counted, eventually, frame, is_root, path};

use super::site::{BY_MULTICAST, LISTENERS_PATIENCE, Site, answer, told};

use super::redis_server::RedisServer;

const FLOW: u64 = 0x000b_a6e5;
const SHARED: [&str; 2] = ["-cache-backend", "redis"];

/// Redis hangs under traffic: hits and misses are answered in a listener's patience, nothing that comes in is lost, and
/// what Redis has not taken it takes afterwards.
fn hangs(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let one = site.endpoint("one", xdp, &redis.address(), &SHARED);
    let known = FrameKey::new(FLOW, 1);
    let publisher = site.publisher();
    publisher.send(group(0), &frame(known, 600, 1)).expect("a frame leaves");
    counted(&one, "bre_store_frames_written_total", &[], 1);
    let (host, to) = (site.host("client"), site.host("one").nack_address());
    let stop = AtomicBool::new(false);
    let mut flows = [Flow::new(Kind::Tx, 0, 2, 200..=900)];
    let published = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| publisher.run(&mut flows, 1_000, Duration::from_secs(3), &stop, |_| 0));
        redis.pause();
        // The first that ask wait for Redis, no longer than a listener does.
        let sockets: Vec<_> = (0..3).map(|_| asker(host)).collect();
        let asked = Instant::now();
        for (seq_num, socket) in (901..).zip(&sockets) {
            socket.send_to(&nack(FrameKey::new(FLOW, seq_num)), to).expect("a NACK leaves");
        }
        let mut buffer = [0; 64];
        let mut late = Vec::new();
        for socket in &sockets {
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let length = socket.recv(&mut buffer).expect("an answer");
            assert_eq!(Answer::parse(&buffer[..length], 0), Ok(Answer::Miss));
            late.push(asked.elapsed());
        }
        assert!(late.iter().min() < Some(&LISTENERS_PATIENCE), "MISSes after {late:?}");
        let socket = asker(host);
        for _ in 0..200 {
            assert_eq!(answer(&socket, to, known), Some(BY_MULTICAST));
        }
        let metrics = counted(&one, "bre_cache_hits_total", &[("path", path(xdp))], 200);
        assert_eq!(metrics.count("bre_cache_hits_total", &[]), 200);
        assert!(metrics.count("bre_store_lookups_total", &[("outcome", "late")]) >= 3);
        counted(&one, "bre_cache_errors_total", &[], 1);
        traffic.join().expect("it ends").expect("frames leave")
    });
    let all = published + 1;
    let metrics = counted(&one, "bre_frames_cached_total", &[], all);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), all, "the fill lost nothing");
    assert_eq!(metrics.count("bre_frames_dropped_total", &[]), 0);
    assert!(metrics.count("bre_store_frames_written_total", &[]) < all, "Redis took what it was given while it hung");
    eventually("what waits is shown", || metric(&one, "bre_store_queue_frames") > 0);
    eventually("that it hangs is shown", || metric(&one, "bre_store_up") == 0);

    redis.go_on();
    eventually("all frames in Redis", || {
        let metrics = one.metrics().expect("a scrape");
        metrics.count("bre_store_frames_written_total", &[]) + metrics.count("bre_store_frames_lost_total", &[]) == all
    });
    let metrics = one.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_store_frames_lost_total", &[]), 0, "{}", one.log());
    eventually("nothing waits any more", || metric(&one, "bre_store_queue_frames") == 0);
    eventually("it is up", || metric(&one, "bre_store_up") == 1);
    let last = FrameKey::new(flows[0].hash_key(), flows[0].next_key().seq_num() - 1);
    eventually("the last frame in Redis", || redis.frame(last).is_some());
    asks_redis_again(&site, &one, "one");
}

fn metric(daemon: &Daemon<'_>, name: &str) -> u64 {
    daemon.metrics().expect("a scrape").count(name, &[])
}

/// Waits until an endpoint asks Redis for what it has not, and gets an answer.
fn asks_redis_again(site: &Site, daemon: &Daemon<'_>, name: &str) {
    let socket = asker(site.host("client"));
    let mut seq_num = 5_000;
    eventually("an answer of Redis", || {
        let late =
            |metrics: &retry_testbed::daemon::Metrics| metrics.count("bre_store_lookups_total", &[("outcome", "late")]);
        let before = late(&daemon.metrics().expect("a scrape"));
        seq_num += 1;
        let missed = answer(&socket, site.host(name).nack_address(), FrameKey::new(FLOW, seq_num));
        assert_eq!(missed, Some(Answer::Miss));
        late(&daemon.metrics().expect("a scrape")) == before
    });
}

/// `-cache-op-timeout`: a NACK waits no longer for a Redis that hangs.
fn short_of_patience(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let flags = [&SHARED[..], &["-cache-op-timeout", "20ms", "-redis-retry-breaker", "0"]].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    redis.pause();
    let shortest = (1..=5).map(|seq_num| {
        let (socket, asked) = (asker(site.host("client")), Instant::now());
        let missed = answer(&socket, site.host("one").nack_address(), FrameKey::new(FLOW, seq_num));
        assert_eq!(missed, Some(Answer::Miss));
        asked.elapsed()
    });
    let shortest = shortest.min().expect("five of them");
    assert!((Duration::from_millis(20)..Duration::from_millis(200)).contains(&shortest), "{shortest:?}");
    counted(&one, "bre_store_lookups_total", &[("outcome", "late")], 5);
}

/// `-redis-retry-breaker`: after so many failures no NACK waits for Redis any more, until the breaker lets one through.
#[test]
fn left_alone() {
    if !is_root("left_alone") {
        return;
    }
    let site = Site::new();
    let redis = site.redis();
    let flags = [&SHARED[..], &["-cache-op-timeout", "100ms", "-redis-retry-breaker", "2"]].concat();
    let _one =
        site.endpoint("one", "native", &redis.address(), &[&flags[..], &["-redis-retry-breaker-open", "1m"]].concat());
    redis.pause();
    let mut times = (1..=6).map(|seq_num| {
        let (socket, asked) = (asker(site.host("client")), Instant::now());
        let missed = answer(&socket, site.host("one").nack_address(), FrameKey::new(FLOW, seq_num));
        assert_eq!(missed, Some(Answer::Miss));
        asked.elapsed()
    });
    assert!(times.next().expect("a time") >= Duration::from_millis(100), "the first waits");
    let shortest = times.min().expect("five of them");
    assert!(shortest < Duration::from_millis(80), "no NACK waits while it is open: {shortest:?}");
    redis.go_on();
    // Longer than by default, and than it takes to see that it answers again.
    std::thread::sleep(Duration::from_millis(7_500));
    let before = redis.calls("get");
    assert_eq!(
        answer(&asker(site.host("client")), site.host("one").nack_address(), FrameKey::new(FLOW, 7)),
        Some(Answer::Miss)
    );
    assert_eq!(redis.calls("get"), before, "Redis is left alone for a minute");
}

/// `-cache-dial-timeout`: a Redis that takes the connection and says nothing is given up after it, and not before.
fn a_silent_redis_is_given_up(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    redis.pause();
    let started = Instant::now();
    let one = site.unconnected("one", xdp, &redis.address(), &[&SHARED[..], &["-cache-dial-timeout", "4s"]].concat());
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(told(&one, "the shared store is lost"), 0, "after {:?}\n{}", started.elapsed(), one.log());
    eventually("the end of its patience", || told(&one, "the shared store is lost") == 1);
    redis.go_on();
    eventually("a connection", || told(&one, "connected to the shared store") == 1);
}

/// Redis dies and comes back empty: told once each time, and frames are shared again without an operator's help.
fn dies_and_comes_back(xdp: &str) {
    let site = Site::new();
    let (mut redis, _loss) = (site.redis(), site.deafen("two"));
    let one = site.endpoint("one", xdp, &redis.address(), &SHARED);
    let two = site.endpoint("two", xdp, &redis.address(), &SHARED);
    let publisher = site.publisher();
    let socket = asker(site.host("client"));
    let (first, second) = (site.host("one").nack_address(), site.host("two").nack_address());
    let share = |seq_num| {
        let key = FrameKey::new(FLOW, seq_num);
        publisher.send(group(0), &frame(key, 600, 1)).expect("a frame leaves");
        eventually("the frame in Redis", || redis.frame(key).is_some());
        assert_eq!(answer(&socket, second, key), Some(BY_MULTICAST), "{}", two.log());
    };
    share(1);
    redis.kill();
    let lost = FrameKey::new(FLOW, 2);
    publisher.send(group(0), &frame(lost, 600, 1)).expect("a frame leaves");
    counted(&one, "bre_frames_cached_total", &[], 2);
    // Each serves what it has; a frame of the other's is a MISS.
    assert_eq!(answer(&socket, first, lost), Some(BY_MULTICAST));
    assert_eq!(answer(&socket, second, FrameKey::new(FLOW, 77)), Some(Answer::Miss));
    counted(&two, "bre_store_lookups_total", &[("outcome", "late")], 1);
    for daemon in [&one, &two] {
        eventually("the loss in the log", || told(daemon, "the shared store is lost") > 0);
    }

    redis.start_again();
    // Another repair of frame 2 reached it by multicast, so that only a new frame shows that Redis is asked.
    let share = |seq_num| {
        let key = FrameKey::new(FLOW, seq_num);
        publisher.send(group(0), &frame(key, 600, 1)).expect("a frame leaves");
        eventually("the frame in Redis", || redis.frame(key).is_some());
        asks_redis_again(&site, &two, "two");
        assert_eq!(answer(&socket, second, key), Some(BY_MULTICAST), "{}", two.log());
    };
    share(3);
    for daemon in [&one, &two] {
        assert_eq!(told(daemon, "the shared store is lost"), 1, "once\n{}", daemon.log());
        assert_eq!(told(daemon, "connected to the shared store"), 2, "{}", daemon.log());
    }
    assert_eq!(two.metrics().expect("a scrape").count("bre_cache_stored_by_total", &[("via", "redis")]), 2);
}

/// Frames whose life ends before Redis is back are lost to it, and counted; what lives on is written.
fn outlived(xdp: &str) {
    const FRAMES: u64 = 10;
    let site = Site::new();
    let mut redis = site.redis();
    let flags = [&SHARED[..], &["-cache-ttl-tx", "1s", "-cache-ttl-block", "1m"]].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let publisher = site.publisher();
    publisher.send(group(0), &frame(FrameKey::new(FLOW, 900), 600, 1)).expect("a frame leaves");
    counted(&one, "bre_store_frames_written_total", &[], 1);
    redis.kill();
    for seq_num in 1..=FRAMES {
        publisher.send(group(0), &frame(FrameKey::new(FLOW, seq_num), 600, 1)).expect("a frame leaves");
    }
    let mut block = Flow::new(Kind::Block, 0, 2, 300..=301);
    let (key, to) = (block.next_key(), group(block.group_index()));
    site.fabric.await_members("one", &[to]).expect("a member");
    publisher.send(to, &block.next_frame()).expect("a frame leaves");
    counted(&one, "bre_store_frames_lost_total", &[("reason", "error")], FRAMES);
    redis.start_again();
    eventually("the block in Redis", || redis.frame(key).is_some());
    let metrics = counted(&one, "bre_store_frames_written_total", &[], 2);
    assert_eq!(metrics.count("bre_store_frames_lost_total", &[]), FRAMES);
    assert_eq!(metrics.count("bre_store_frames_written_total", &[]), 2);
    assert_eq!(redis.keys("bre:frame:"), 1);
}

/// More frames than may wait for a Redis that hangs: those are lost to it, counted, and served from memory all the same.
#[test]
fn more_than_may_wait() {
    if !is_root("more_than_may_wait") {
        return;
    }
    let site = Site::new();
    let redis = site.redis();
    let one = site.endpoint("one", "off", &redis.address(), &[&SHARED[..], &["-cache-memory-long", "256m"]].concat());
    redis.pause();
    // The longest frames there are: it takes about a thousand.
    let publisher = site.publisher();
    let mut flow = Flow::new(Kind::Anchor, 0, 2, 60_000..=60_001);
    site.fabric.await_members("one", &[group(flow.group_index())]).expect("a member");
    let lost = || one.metrics().expect("a scrape").count("bre_store_frames_lost_total", &[("reason", "queue_full")]);
    while lost() == 0 {
        for _ in 0..20 {
            publisher.publish(&mut flow).expect("a frame leaves");
        }
        assert!(publisher.sent() < 4_000, "{}", one.log());
    }
    // Without waiting, some of the fragments may have been lost on the way: the last that came is asked for.
    let (key, to) = (flow.next_key(), group(flow.group_index()));
    let bytes = flow.next_frame();
    publisher.send(to, &bytes).expect("a frame leaves");
    let socket = asker(site.host("client"));
    eventually("the frame", || answer(&socket, site.host("one").nack_address(), key) == Some(BY_MULTICAST));
    redis.go_on();
    eventually("nothing waits any more", || metric(&one, "bre_store_queue_frames") == 0);
}

/// A password that is wrong: said once, and served from memory.
fn refuses_us(xdp: &str) {
    let site = Site::new();
    let redis = RedisServer::with_password(site.host("redis"), "right");
    let address = format!("redis://:wrong@{}", redis.address());
    let one = site.unconnected("one", xdp, &address, &[&SHARED[..], &["-redis-retry-max-delay", "100ms"]].concat());
    let key = FrameKey::new(FLOW, 1);
    site.publisher().send(group(0), &frame(key, 600, 1)).expect("a frame leaves");
    counted(&one, "bre_frames_cached_total", &[], 1);
    let socket = asker(site.host("client"));
    let to = site.host("one").nack_address();
    eventually("the refusal in the log", || told(&one, "the shared store is lost") > 0);
    assert_eq!(answer(&socket, to, key), Some(BY_MULTICAST));
    assert_eq!(answer(&socket, to, FrameKey::new(FLOW, 2)), Some(Answer::Miss));
    counted(&one, "bre_store_lookups_total", &[("outcome", "late")], 1);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(told(&one, "the shared store is lost"), 1, "once\n{}", one.log());
    let log = one.log();
    assert!(log.contains("-redis-addr") && log.contains("authentication failed"), "{log}");
    assert!(!log.contains("wrong@") && !log.contains(":wrong"), "a password in the log\n{log}");
    assert_eq!(redis.keys("bre:"), 0);
    drop(one);

    let address = format!("redis://:right@{}", redis.address());
    let one = site.endpoint("one", xdp, &address, &SHARED);
    site.publisher().send(group(0), &frame(key, 600, 1)).expect("a frame leaves");
    counted(&one, "bre_store_frames_written_total", &[], 1);
}

both_paths! {
    hangs: hangs_native, hangs_off;
    dies_and_comes_back: dies_and_comes_back_native, dies_and_comes_back_off;
    short_of_patience: short_of_patience_native, short_of_patience_off;
    a_silent_redis_is_given_up: a_silent_redis_is_given_up_native, a_silent_redis_is_given_up_off;
    outlived: outlived_native, outlived_off;
    refuses_us: refuses_us_native, refuses_us_off;
}
