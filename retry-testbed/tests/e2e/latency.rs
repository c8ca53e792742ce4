//! Histograms of how long things took: what is scraped, what outlives a daemon, and what switches them off.

use std::sync::Arc;
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::{Daemon, Metrics};
use retry_testbed::net::fabric::{Fabric, Host, group};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::relay::{End, Relay};
use retry_testbed::scene::{ask, asker, await_count, binary, eventually, flags, frame, is_root, two_hosts};

const KEY: FrameKey = FrameKey::new(0x1a7e, 1);
const MISSES: u64 = 20;

/// Asks for frames that are not there.
fn miss(endpoint: &Host, client: &Host) {
    let socket = asker(client);
    for seq_num in 0..MISSES {
        assert_eq!(ask(&socket, endpoint.nack_address(), &nack(FrameKey::new(0xdead, seq_num)), 1).len(), 1);
        // Denser ones are not all measured.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn misses(metrics: &Metrics) -> u64 {
    metrics.count("bre_nack_duration_seconds_count", &[("verdict", "miss"), ("path", "xdp")])
}

/// Each of few NACKs is measured; the next daemon goes on counting; the buckets hold what the count says.
#[test]
fn histograms_are_scraped_and_go_on() {
    if !is_root("histograms_are_scraped_and_go_on") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let on = flags("native", &[]);
    let mut relay = Relay::start(&binary(), endpoint, &on).expect("a daemon");
    miss(endpoint, client);
    let metrics = relay.daemon().metrics().expect("a scrape");
    assert_eq!(misses(&metrics), MISSES);
    let bucket = |le| metrics.count("bre_nack_duration_seconds_bucket", &[("verdict", "miss"), ("le", le)]);
    assert_eq!((bucket("1.28e-07"), bucket("+Inf")), (0, MISSES));
    let seconds = metrics.sum("bre_nack_duration_seconds_sum", &[("verdict", "miss")]);
    assert!((1e-6..0.1).contains(&seconds), "{MISSES} took {seconds} s");

    let metrics = relay.hand_over(End::Killed, &on).expect("the next one goes on");
    assert_eq!(misses(&metrics), MISSES);
    miss(endpoint, client);
    assert_eq!(misses(&relay.daemon().metrics().expect("a scrape")), 2 * MISSES);
    relay.end().expect("nothing is left");

    let off = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-latency-histograms=false"]));
    let off = off.expect("a daemon");
    miss(endpoint, client);
    let metrics = await_count(&off, "bre_cache_misses_total", &[], MISSES);
    assert!(metrics.iter().all(|(name, _)| !name.contains("duration_seconds")), "{metrics:?}");
}

#[test]
fn the_daemons_fill_is_measured() {
    if !is_root("the_daemons_fill_is_measured") {
        return;
    }
    for (fill, path) in [("kernel", "xdp"), ("daemon", "user")] {
        let fabric = Fabric::flat(1500).expect("a fabric");
        let (endpoint, client) = two_hosts(&fabric);
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-fill", fill])).expect("a daemon");
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
        await_count(&daemon, "bre_frames_cached_total", &[], 1);
        let measured = |path| {
            let metrics = daemon.metrics().expect("a scrape");
            metrics.count("bre_fill_duration_seconds_count", &[("path", path)])
        };
        eventually("the frame is measured", || measured(path) == 1);
        assert_eq!(measured("xdp") + measured("user"), 1, "-fill {fill}");
    }
}
