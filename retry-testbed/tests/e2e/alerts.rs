//! What alerts and dashboards read: names, and what the labels of each name mean.

use std::net::SocketAddrV6;
use std::sync::Arc;

use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, group};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::peers::tee::TeeSender;
use retry_testbed::scene::{binary, counted, flags, is_root, two_hosts};

/// Frames stored are counted by the source that sent them, and by how they came, whichever path stored them.
fn stored_by_source(xdp: &str) {
    let fabric = Fabric::bridged(&["endpoint", "client", "publisher"], 1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let publisher = fabric.host("publisher").expect("a host");
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &["-tee-listen", "[::1]:9002"])).expect("a daemon");
    fabric.await_members("endpoint", &[group(0)]).expect("members");
    let journal = Arc::new(Journal::new());
    for (host, count) in [(publisher, 7), (client, 3)] {
        let publish = Publisher::open(&host.ns, Arc::clone(&journal)).expect("a publisher");
        let mut flow = Flow::new(Kind::Tx, 0, 2, 200..=400);
        for _ in 0..count {
            publish.send(group(0), &flow.next_frame()).expect("a frame leaves");
        }
    }
    let tee = TeeSender::open(&endpoint.ns, "[::1]:9002".parse().expect("an address"), &journal).expect("a sender");
    let mut flow = Flow::new(Kind::Block, 0, 2, 200..=400);
    let far = "fd77::5".parse().expect("an address");
    tee.encapsulated(SocketAddrV6::new(far, 40_000, 0, 0), &flow.next_frame()).expect("it leaves");
    tee.raw(&flow.next_frame()).expect("it leaves");

    let metrics = counted(&daemon, "bre_frames_cached_total", &[], 12);
    let by = |label: &str, value: &str| metrics.count("bre_cache_stored_total", &[(label, value)]);
    assert_eq!(by("source", &publisher.addr.to_string()), 7, "{}", daemon.log());
    assert_eq!(by("source", &client.addr.to_string()), 3);
    assert_eq!(by("source", "fd77::5"), 1, "the source that the envelope names");
    assert_eq!(by("source", "other"), 1, "no envelope, no source");
    assert_eq!(metrics.count("bre_cache_stored_total", &[]), 12);
    let via = |value: &str| metrics.count("bre_cache_stored_by_total", &[("via", value)]);
    assert_eq!(["multicast", "tee", "redis", "proxy", "api"].map(via), [10, 2, 0, 0, 0]);
}

/// A source that is joined has its series from the start, so that an alert on its silence sees it.
fn joined_sources_stand_at_zero(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let named = ["-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", "fd10::aa,fd10::bb"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &named)).expect("a daemon");
    let metrics = daemon.metrics().expect("a scrape");
    for source in ["fd10::aa", "fd10::bb"] {
        assert_eq!(metrics.get(&format!("bre_cache_stored_total{{source=\"{source}\"}}")), Some(0.0), "{source}");
    }
}

both_paths! {
    stored_by_source: stored_by_source_native, stored_by_source_off;
    joined_sources_stand_at_zero: joined_sources_stand_at_zero_native, joined_sources_stand_at_zero_off;
}

/// The address that repairs leave from, what was built, and what the process takes.
#[test]
fn the_process_and_the_build_are_shown() {
    if !is_root("the_process_and_the_build_are_shown") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    let metrics = daemon.metrics().expect("a scrape");
    let own = endpoint.addr.to_string();
    assert_eq!(metrics.count("bre_own_source_info", &[("source", &own)]), 1);
    assert!(metrics.state("bre_build_info", "version").is_some_and(|version| !version.is_empty()));
    assert!(metrics.state("bre_build_info", "commit").is_some_and(|commit| !commit.is_empty()));
    let value = |name: &str| metrics.get(name).unwrap_or_else(|| panic!("{name}"));
    assert!(value("process_cpu_seconds_total") > 0.0);
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_virtual_memory_bytes") >= value("process_resident_memory_bytes"));
    assert!(value("process_open_fds") > 3.0 && value("process_max_fds") >= value("process_open_fds"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let age = now - value("process_start_time_seconds");
    assert!((-2.0..60.0).contains(&age), "{age}");
}
