//! A daemon is killed and replaced: Redis is told of each frame once, also of those that the kernel stored meanwhile.

use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::net::fabric::group;
use retry_testbed::scene::{counted, frame, is_root};

use super::site::Site;

const FLOW: u64 = 0x4a4d;

#[test]
fn what_the_kernel_stored_alone_is_written_once() {
    if !is_root("what_the_kernel_stored_alone_is_written_once") {
        return;
    }
    let site = Site::new();
    let redis = site.redis();
    let flags = ["-cache-backend", "redis", "-fill", "kernel"];
    let mut first = site.endpoint("one", "native", &redis.address(), &flags);
    first.leave();
    let publisher = site.publisher();
    let send = |numbers: std::ops::RangeInclusive<u64>| {
        for number in numbers {
            publisher.send(group(0), &frame(FrameKey::new(FLOW, number), 300, 9)).expect("a frame leaves");
        }
    };
    send(1..=50);
    counted(&first, "bre_store_frames_written_total", &[], 50);
    first.child().signal(Signal::SIGKILL).expect("it dies");
    first.wait().expect("it has ended");
    send(51..=120);
    let next = site.endpoint("one", "native", &redis.address(), &flags);
    counted(&next, "bre_store_frames_written_total", &[], 120);
    // The counter goes on from the first daemon's; what was written twice would be counted twice.
    std::thread::sleep(Duration::from_millis(500));
    let metrics = next.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_store_frames_written_total", &[]), 120, "{}", next.log());
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 120);
    for number in 1..=120 {
        let key = FrameKey::new(FLOW, number);
        assert!(redis.frame(key).is_some_and(|there| there == frame(key, 300, 9)), "frame {number}");
    }
}
