//! `-redis-retry-…`: when a write that Redis refuses for the moment is tried again, each setting by what it changes.

use std::time::{Duration, Instant};

use retry_common::key::FrameKey;
use retry_testbed::net::fabric::group;
use retry_testbed::scene::{frame, is_root};

use super::site::Site;

const KEY: FrameKey = FrameKey::new(0x7e8, 1);
/// What a busy machine may be late.
const SLACK: Duration = Duration::from_millis(90);
/// After the last attempt of a write the writer waits so long, and begins anew.
const ANEW: Duration = Duration::from_millis(100);

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// The waits between two attempts to write one frame, as many as came within `length`: Redis says NOREPLICAS to each.
fn waits(settings: &[&str], length: Duration) -> Vec<Duration> {
    let site = Site::new();
    let redis = site.redis();
    let plain = ["-cache-backend", "redis", "-redis-retry-breaker", "0", "-redis-retry-factor", "1"];
    let all = [&plain[..], &["-redis-retry-jitter=false"], settings].concat();
    let one = site.endpoint("one", "native", &redis.address(), &all);
    let () = redis.run(redis::cmd("CONFIG").arg("SET").arg("min-replicas-to-write").arg(1));
    site.publisher().send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    let (mut times, mut seen) = (Vec::new(), 0);
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        let errors = one.metrics().expect("a scrape").count("bre_cache_errors_total", &[]);
        if errors > seen {
            times.extend((seen..errors).map(|_| Instant::now()));
            seen = errors;
            end.get_or_insert_with(|| Instant::now() + length);
        }
        std::thread::sleep(ms(3));
    }
    times.windows(2).map(|two| two[1] - two[0]).collect()
}

/// The first of these waits, each as long as said or a little longer.
#[track_caller]
fn begin(waits: &[Duration], wanted: &[Duration]) {
    let fit = |(wait, wanted): (&Duration, &Duration)| *wait + SLACK >= *wanted && *wait < *wanted + SLACK;
    assert!(waits.len() >= wanted.len() && waits.iter().zip(wanted).all(fit), "{waits:?}, not {wanted:?}");
}

/// `-redis-retry-policy`, `-redis-retry-attempts`: how often it is tried before the writer begins anew.
#[test]
fn how_often_a_write_is_tried() {
    if !is_root("how_often_a_write_is_tried") {
        return;
    }
    let delay = ["-redis-retry-delay", "400ms"];
    let with = |settings: &[&str], length| waits(&[&delay[..], settings].concat(), length);
    begin(&with(&["-redis-retry-policy", "none"], ms(500)), &[ANEW, ANEW]);
    begin(&with(&["-redis-retry-policy", "exponential"], ms(1300)), &[ms(400), ms(400), ANEW]);
    begin(&with(&["-redis-retry-attempts", "2"], ms(1300)), &[ms(400), ANEW, ms(400)]);
}

/// `-redis-retry-delay`, `-redis-retry-factor`, `-redis-retry-max-delay`: how long between.
#[test]
fn how_long_between_two_writes() {
    if !is_root("how_long_between_two_writes") {
        return;
    }
    begin(&waits(&["-redis-retry-delay", "300ms"], ms(800)), &[ms(300), ms(300)]);
    begin(&waits(&["-redis-retry-delay", "700ms"], ms(1700)), &[ms(700), ms(700)]);
    let tripled = ["-redis-retry-delay", "300ms", "-redis-retry-factor", "3"];
    begin(&waits(&tripled, ms(1500)), &[ms(300), ms(900)]);
    let capped = [&tripled[..], &["-redis-retry-max-delay", "500ms"]].concat();
    begin(&waits(&capped, ms(1200)), &[ms(300), ms(500)]);
}

/// `-redis-retry-jitter`: waits are spread, or all the same.
#[test]
fn whether_writes_are_spread() {
    if !is_root("whether_writes_are_spread") {
        return;
    }
    let longer = |jitter: &str| {
        let settings = ["-redis-retry-delay", "200ms", "-redis-retry-attempts", "100", jitter];
        let mut waits = waits(&settings, ms(4_500));
        waits.truncate(10);
        assert_eq!(waits.len(), 10, "{waits:?}");
        waits.iter().filter(|wait| **wait > ms(200) + ms(50)).count()
    };
    let (together, apart) = (longer("-redis-retry-jitter=false"), longer("-redis-retry-jitter=true"));
    // Three waits in four are longer by a quarter of the delay when they are spread over twice the delay.
    assert!(together <= 3 && apart >= 4, "{together}, {apart}");
}

/// `-redis-retry-breaker`, `-redis-retry-breaker-open`: after how many failures Redis is left alone, and how long.
#[test]
fn when_redis_is_left_alone() {
    if !is_root("when_redis_is_left_alone") {
        return;
    }
    let once = ["-redis-retry-policy", "none"];
    let attempts = |settings: &[&str]| waits(&[&once[..], settings].concat(), ms(2_000)).len() + 1;
    assert!(attempts(&["-redis-retry-breaker", "0"]) > 8);
    assert_eq!(attempts(&["-redis-retry-breaker", "3", "-redis-retry-breaker-open", "1m"]), 3);
    assert_eq!(attempts(&["-redis-retry-breaker", "2", "-redis-retry-breaker-open", "1m"]), 2);
    let again = attempts(&["-redis-retry-breaker", "2", "-redis-retry-breaker-open", "700ms"]);
    assert!((3..=5).contains(&again), "{again}");
}
