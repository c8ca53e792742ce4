//! `-cache-backend redis`: what one instance heard, all can send.

use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::group;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::scene::{PATIENCE, ask, asker, await_count, counted, eventually, frame, path};

use super::site::{BY_MULTICAST, LISTENERS_PATIENCE, Site, answer, api};

use super::redis_server::RedisServer;

const KEY: FrameKey = FrameKey::new(0x5a4ed, 1);
const SHARED: [&str; 2] = ["-cache-backend", "redis"];

/// A frame that the second instance never heard leaves it byte for byte, and from then on is its own.
fn heard_by_the_other(xdp: &str) {
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let one = site.endpoint("one", xdp, &redis.address(), &SHARED);
    let two = site.endpoint("two", xdp, &redis.address(), &SHARED);
    let watch = site.watch(&[group(0)]);
    let bytes = frame(KEY, 701, 5);
    site.publisher().send(group(0), &bytes).expect("a frame leaves");
    counted(&one, "bre_store_frames_written_total", &[], 1);
    assert!(redis.frame(KEY).expect("the frame in Redis") == bytes, "byte for byte");

    let socket = asker(site.host("client"));
    let to = site.host("two").nack_address();
    assert_eq!(answer(&socket, to, KEY), Some(BY_MULTICAST), "{}", two.log());
    let repairs = watch.repairs(KEY, 1);
    assert_eq!(repairs.len(), 1);
    assert_eq!((*repairs[0].src.ip(), *repairs[0].dst.ip()), (site.host("two").addr, group(0)));
    assert!(repairs[0].payload == bytes, "byte for byte");
    let metrics = counted(&two, "bre_responses_sent_total", &[("type", "ack")], 1);
    let count = |metric, labels: &[_]| metrics.count(metric, labels);
    assert_eq!(count("bre_store_lookups_total", &[("outcome", "asked")]), 1);
    assert_eq!(count("bre_store_lookups_total", &[("outcome", "late")]), 0);
    assert_eq!(count("bre_backend_duration_seconds_count", &[("backend", "redis")]), 1);
    assert_eq!(count("bre_cache_stored_by_total", &[("via", "redis")]), 1);
    assert_eq!(count("bre_cache_stored_by_total", &[("via", "multicast")]), 0, "it never heard the frame");
    assert_eq!((count("bre_cache_hits_total", &[]), count("bre_cache_misses_total", &[])), (1, 0));
    assert_eq!((count("bre_nack_requests_total", &[]), count("bre_retransmits_total", &[])), (1, 1));
    assert_eq!(count("bre_store_frames_written_total", &[]), 0, "what comes from Redis does not go back");

    // Held down by its first repair or not: the frame is in its log.
    assert_eq!(answer(&socket, to, KEY), Some(BY_MULTICAST));
    let metrics = counted(&two, "bre_cache_hits_total", &[], 2);
    assert_eq!(metrics.count("bre_cache_hits_total", &[("path", path(xdp))]), if xdp == "off" { 2 } else { 1 });
    assert_eq!(metrics.count("bre_store_lookups_total", &[("outcome", "asked")]), 1, "no endpoint is asked again");
    watch.end();
}

/// Every kind of frame, and one above the MTU, by unicast and multicast.
fn every_kind(xdp: &str) {
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let flags = [&SHARED[..], &["-beacon-flags-unicast"]].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let mut flows: Vec<Flow> =
        (0u16..).zip(Kind::CACHED).map(|(shard, kind)| Flow::new(kind, shard, 2, 90..=1201)).collect();
    flows.push(Flow::new(Kind::Anchor, 0, 2, 4000..=4001));
    let mut groups: Vec<_> = flows.iter().map(|flow| group(flow.group_index())).collect();
    groups.sort();
    groups.dedup();
    site.fabric.await_members("one", &groups).expect("a member");
    let watch = site.watch(&groups);
    let publisher = site.publisher();
    let mut published = Vec::new();
    for flow in &mut flows {
        let (key, to) = (flow.next_key(), group(flow.group_index()));
        let bytes = flow.next_frame();
        publisher.send(to, &bytes).expect("a frame leaves");
        published.push((flow.kind(), key, bytes));
    }
    counted(&one, "bre_store_frames_written_total", &[], published.len().try_into().expect("few"));

    let both = Answer::Ack { multicast: true, unicast: true };
    for (kind, key, bytes) in &published {
        let socket = asker(site.host("client"));
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut answers = ask(&socket, site.host("two").nack_address(), &nack(*key), 2);
        answers.sort_by_key(Vec::len);
        assert_eq!(answers.len(), 2, "{kind:?}: frame and ACK\n{}", two.log());
        assert_eq!(Answer::parse(&answers[0], key.seq_num()), Ok(both), "{kind:?}");
        assert!(&answers[1] == bytes, "{kind:?}: byte for byte");
        if bytes.len() < 1400 {
            assert_eq!(watch.repairs(*key, 1).len(), 1, "{kind:?}");
        }
    }
    let metrics = counted(&two, "bre_retransmits_total", &[], published.len().try_into().expect("few"));
    assert_eq!(
        metrics.count("bre_cache_stored_by_total", &[("via", "redis")]),
        metrics.count("bre_retransmits_total", &[])
    );
    // The listener compares each repair with what was published, those above the MTU as well.
    watch.end();
}

/// A frame that is fetched late in its life gets what is left of it, and no new one.
fn no_new_life(xdp: &str) {
    const LIFE: Duration = Duration::from_secs(4);
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let flags = [&SHARED[..], &["-cache-ttl-tx", "4s"]].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    // Its own idea of a frame's life is not asked for.
    let two = site.endpoint("two", xdp, &redis.address(), &SHARED);
    site.publisher().send(group(0), &frame(KEY, 300, 5)).expect("a frame leaves");
    let published = Instant::now();
    counted(&one, "bre_store_frames_written_total", &[], 1);
    assert!(redis.frame_life(KEY).expect("it is there") <= LIFE);

    std::thread::sleep(Duration::from_millis(2500));
    let socket = asker(site.host("client"));
    let to = site.host("two").nack_address();
    assert_eq!(answer(&socket, to, KEY), Some(BY_MULTICAST), "{}", two.log());
    assert!(published.elapsed() < LIFE, "this machine is too slow for a life of {LIFE:?}");
    // A second NACK is answered from the log as long as the frame lives.
    std::thread::sleep((LIFE + Duration::from_millis(300)).saturating_sub(published.elapsed()));
    assert_eq!(answer(&socket, to, KEY), Some(Answer::Miss), "it lives on\n{}", two.log());
    assert_eq!(redis.frame_life(KEY), None);
}

/// A frame that is in no instance's log and not in Redis is a MISS, in time, and once.
fn no_instance_has_it(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let two = site.endpoint("two", xdp, &redis.address(), &SHARED);
    let mut shortest = PATIENCE;
    for seq_num in 1..=5 {
        let socket = asker(site.host("client"));
        let asked = Instant::now();
        let key = FrameKey::new(KEY.hash_key(), seq_num);
        assert_eq!(answer(&socket, site.host("two").nack_address(), key), Some(Answer::Miss));
        shortest = shortest.min(asked.elapsed());
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        assert!(socket.recv(&mut [0; 64]).is_err(), "a second answer");
    }
    assert!(shortest < LISTENERS_PATIENCE, "the quickest MISS of five took {shortest:?}");
    let metrics = counted(&two, "bre_responses_sent_total", &[("type", "miss")], 5);
    assert_eq!(metrics.count("bre_cache_misses_total", &[]), 5);
    assert_eq!(metrics.count("bre_store_lookups_total", &[("outcome", "asked")]), 5);
    assert_eq!(metrics.count("bre_store_lookups_total", &[("outcome", "late")]), 0);
    assert_eq!(metrics.count("bre_cache_errors_total", &[]), 0);
}

/// `-cache-backend memory` with a Redis: repairs are told, frames are neither written nor fetched.
fn memory_shares_no_frames(xdp: &str) {
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let one = site.endpoint("one", xdp, &redis.address(), &[]);
    let two = site.endpoint("two", xdp, &redis.address(), &[]);
    site.publisher().send(group(0), &frame(KEY, 300, 5)).expect("a frame leaves");
    counted(&one, "bre_frames_cached_total", &[], 1);
    let socket = asker(site.host("client"));
    assert_eq!(answer(&socket, site.host("two").nack_address(), KEY), Some(Answer::Miss), "{}", two.log());
    assert_eq!(answer(&socket, site.host("one").nack_address(), KEY), Some(BY_MULTICAST));
    eventually("the claim of the repair", || redis.keys("bre:dedup:") == 1);
    assert_eq!((redis.keys("bre:frame:"), redis.calls("get")), (0, 0));
    for daemon in [&one, &two] {
        let metrics = daemon.metrics().expect("a scrape");
        assert_eq!(metrics.count("bre_store_lookups_total", &[]), 0);
        assert_eq!(metrics.count("bre_store_frames_written_total", &[]), 0);
    }
}

/// Listeners that miss one frame together: Redis is asked once, and each gets its answer.
fn one_question_for_a_burst(xdp: &str) {
    const ASKERS: u64 = 200;
    let site = Site::new();
    let (redis, _loss) = (site.redis(), site.deafen("two"));
    let flags = [&SHARED[..], &["-repair-holddown", "1h"]].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let watch = site.watch(&[group(0)]);
    site.publisher().send(group(0), &frame(KEY, 700, 5)).expect("a frame leaves");
    counted(&one, "bre_store_frames_written_total", &[], 1);
    let before = redis.calls("get");
    // Redis thinks for a moment, so that all ask before it answers.
    let () = redis.run(redis::cmd("CLIENT").arg("PAUSE").arg(60));
    let sockets: Vec<_> = (0..ASKERS).map(|_| asker(site.host("client"))).collect();
    for socket in &sockets {
        socket.send_to(&nack(KEY), site.host("two").nack_address()).expect("a NACK leaves");
    }
    for socket in &sockets {
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).expect("an answer");
        assert_eq!(Answer::parse(&buffer[..length], 1), Ok(BY_MULTICAST));
    }
    assert_eq!(watch.repairs(KEY, 1).len(), 1, "one repair for all");
    assert_eq!(redis.calls("get") - before, 1, "{}", two.log());
    let metrics = await_count(&two, "bre_cache_hits_total", &[], ASKERS);
    assert_eq!(metrics.count("bre_cache_hits_total", &[]), ASKERS);
    assert_eq!(metrics.count("bre_responses_sent_total", &[("type", "ack")]), ASKERS);
    assert_eq!(metrics.count("bre_retransmit_holddown_total", &[]), ASKERS - 1);
    watch.end();
}

/// Each class lives in Redis as long as its setting says; `-cache-ttl` stands for those without one, BEEF apart.
fn each_class_has_its_life(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let flags = ["-cache-ttl", "1000s", "-cache-ttl-block", "2000s", "-cache-ttl-anchor", "3000s"];
    let one = site.endpoint("one", xdp, &redis.address(), &[&SHARED[..], &flags].concat());
    let lives = [
        (Kind::Tx, 1000),
        (Kind::Bundle, 1000),
        (Kind::Block, 2000),
        (Kind::SubtreeData, 1000),
        (Kind::Anchor, 3000),
        (Kind::Beef, 60),
    ];
    stored_with(&site, &one, &redis, &lives);
    drop(one);
    let flags = ["-cache-ttl-tx", "400s", "-cache-ttl-subtree", "500s", "-cache-ttl-beef", "700s"];
    let one = site.endpoint("one", xdp, &redis.address(), &[&SHARED[..], &flags].concat());
    let lives = [(Kind::Tx, 400), (Kind::Block, 600), (Kind::SubtreeData, 500), (Kind::Anchor, 120), (Kind::Beef, 700)];
    stored_with(&site, &one, &redis, &lives);
}

fn stored_with(site: &Site, one: &Daemon<'_>, redis: &RedisServer<'_>, lives: &[(Kind, u64)]) {
    let () = redis.run(&redis::cmd("FLUSHALL"));
    let publisher = site.publisher();
    let mut keys = Vec::new();
    for (kind, seconds) in lives {
        let mut flow = Flow::new(*kind, 0, 2, 300..=301);
        site.fabric.await_members("one", &[group(flow.group_index())]).expect("a member");
        let key = publisher.publish(&mut flow).expect("a frame leaves").expect("one with a key");
        keys.push((kind, key, Duration::from_secs(*seconds)));
    }
    counted(one, "bre_store_frames_written_total", &[], lives.len().try_into().expect("few"));
    for (kind, key, life) in keys {
        let left = redis.frame_life(key).expect("it is there");
        assert!(left <= life && left > life - PATIENCE, "{kind:?}: {left:?} of {life:?}");
    }
}

/// `PUT` on one instance, `GET` on another, and a NACK there; `DELETE` takes it from Redis.
fn put_here_read_there(xdp: &str) {
    let site = Site::new();
    let redis = site.redis();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "let-me-in").expect("written");
    let token = file.path().to_string_lossy();
    let flags = [&SHARED[..], &["-admin-addr", "[::1]:9401", "-admin-token-file", &token]].concat();
    let one = site.endpoint("one", xdp, &redis.address(), &flags);
    let two = site.endpoint("two", xdp, &redis.address(), &flags);
    let (first, second) = (site.host("one"), site.host("two"));
    let bytes = frame(KEY, 800, 3);
    let path = format!("/v1/frames/{:016x}/{}", KEY.hash_key(), KEY.seq_num());

    assert_eq!(api(first, "PUT", &path, "let-us-in", &bytes).0, 401);
    assert_eq!(api(first, "PUT", &format!("{path}?ttl=90"), "let-me-in", &bytes).0, 201);
    counted(&one, "bre_store_frames_written_total", &[], 1);
    assert_eq!(one.metrics().expect("a scrape").count("bre_cache_stored_by_total", &[("via", "api")]), 1);
    let left = redis.frame_life(KEY).expect("it is there");
    assert!(left <= Duration::from_secs(90) && left > Duration::from_secs(80), "{left:?}");
    let (status, read) = api(second, "GET", &path, "let-me-in", &[]);
    assert!(status == 200 && read == bytes, "byte for byte: {status}");
    assert_eq!(answer(&asker(site.host("client")), second.nack_address(), KEY), Some(BY_MULTICAST), "{}", two.log());
    // The first instance hears that multicast as well. Heard after the DELETE, it would be a new frame.
    counted(&one, "bre_cache_duplicates_total", &[("kind", "same")], 1);

    assert_eq!(api(first, "DELETE", &path, "let-me-in", &[]).0 / 100, 2);
    assert_eq!(redis.frame(KEY), None);
    assert_eq!(api(first, "GET", &path, "let-me-in", &[]).0, 404);
}

both_paths! {
    heard_by_the_other: heard_by_the_other_native, heard_by_the_other_off;
    every_kind: every_kind_native, every_kind_off;
    no_new_life: no_new_life_native, no_new_life_off;
    no_instance_has_it: no_instance_has_it_native, no_instance_has_it_off;
    memory_shares_no_frames: memory_shares_no_frames_native, memory_shares_no_frames_off;
    each_class_has_its_life: each_class_has_its_life_native, each_class_has_its_life_off;
    put_here_read_there: put_here_read_there_native, put_here_read_there_off;
    one_question_for_a_burst: one_question_for_a_burst_native, one_question_for_a_burst_off;
}
