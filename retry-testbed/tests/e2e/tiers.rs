//! Two endpoints heard by their beacons: the lower tier is asked first, its MISS leads to the next at once, and within a
//! tier the preference decides.

use std::sync::Arc;

use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, INTERFACE, group};
use retry_testbed::net::loss::LossRule;
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::listener::{Listener, ListenerSettings, Stats};
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, await_advert, binary, counted, flags};

/// What each endpoint was asked and how it answered.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    nacks: u64,
    hits: u64,
    misses: u64,
}

/// Publishes 12 frames of which the client loses 2 to 5, to endpoints with these flags; the first loses `first_lost` too.
fn asks(xdp: &str, first: &[&str], second: &[&str], first_lost: &[u64]) -> (Stats, Asked, Asked) {
    let fabric = Fabric::bridged(&["first", "second", "client", "publisher"], 1500).expect("a fabric");
    let host = |name| fabric.host(name).expect("a host");
    let (publisher, group) = (host("publisher").addr, group(2));
    let beacons = vec![retry_testbed::net::fabric::group(0xFFFD)];
    let journal = Arc::new(Journal::new());
    let settings = ListenerSettings::discovering(vec![group], beacons.clone());
    let listener = Listener::start(&host("client").ns, settings, Arc::clone(&journal)).expect("a listener");
    fabric.await_members("client", &[group, beacons[0]]).expect("members");
    let capture = Capture::start(&host("client").ns, INTERFACE).expect("a capture");

    let flow = Flow::new(Kind::Tx, 2, 2, 300..=900);
    let lose = |name, seq_nums: &[u64]| {
        let rule = LossRule::frames(flow.hash_key(), seq_nums.to_vec()).from(publisher);
        fabric.lose(name, &rule).expect("a loss")
    };
    let _client = lose("client", &[2, 3, 4, 5]);
    let _first = (!first_lost.is_empty()).then(|| lose("first", first_lost));
    let start = |name, more: &[&str]| {
        let mut flags = flags(xdp, &["-beacon-interval", "1s", "-instance", name]);
        flags.extend(more);
        let daemon = Daemon::start(&binary(), &host(name).ns, &flags).expect("a daemon");
        fabric.await_members(name, &[group]).expect("members");
        await_advert(&capture, |advert| *advert.nack_address.ip() == host(name).addr);
        daemon
    };
    let (first, second) = (start("first", first), start("second", second));

    let publish = Publisher::open(&host("publisher").ns, Arc::clone(&journal)).expect("a publisher");
    let mut flow = flow;
    // The sixth shows the client its gap: by then both have what they are asked for.
    for (published, until) in [(0, 5), (5, 12)] {
        for _ in published..until {
            publish.publish(&mut flow).expect("a frame leaves");
        }
        counted(&first, "bre_frames_cached_total", &[], until - u64::try_from(first_lost.len()).expect("few"));
        counted(&second, "bre_frames_cached_total", &[], until);
    }
    listener.expect(journal.keys());
    assert!(listener.settle(PATIENCE), "{:?}\n{}\n{}", listener.stats(), first.log(), second.log());
    let stats = listener.stop().expect("a listener's counts");
    assert_eq!((stats.recovered(), stats.unrecovered), (4, 0), "{stats:?}");
    assert_eq!((stats.wrong_bytes, stats.bad_answers), (0, 0), "{:?}", stats.complaints);
    let asked = |daemon: &Daemon<'_>| {
        let metrics = daemon.metrics().expect("a scrape");
        let count = |metric| metrics.count(metric, &[]);
        Asked {
            nacks: count("bre_nack_requests_total"),
            hits: count("bre_cache_hits_total"),
            misses: count("bre_cache_misses_total"),
        }
    };
    (stats, asked(&first), asked(&second))
}

/// Two of the four are missing at the first endpoint.
fn tier_after_tier(xdp: &str) {
    let (stats, first, second) = asks(xdp, &["-beacon-tier", "0"], &["-beacon-tier", "1"], &[3, 4]);
    assert_eq!(first, Asked { nacks: 4, hits: 2, misses: 2 });
    assert_eq!(second, Asked { nacks: 2, hits: 2, misses: 0 });
    assert_eq!((stats.escalations, stats.misses, stats.acks), (2, 2, 4), "{stats:?}");
}

fn preference_within_a_tier(xdp: &str) {
    let (stats, first, second) = asks(xdp, &["-beacon-preference", "127"], &[], &[]);
    assert_eq!(first, Asked { nacks: 0, hits: 0, misses: 0 });
    assert_eq!(second, Asked { nacks: 4, hits: 4, misses: 0 });
    assert_eq!(stats.escalations, 0);
}

both_paths! {
    tier_after_tier: tier_after_tier_native, tier_after_tier_off;
    preference_within_a_tier: preference_within_a_tier_native, preference_within_a_tier_off;
}
