//! A switch that has forgotten what the endpoint joined is told again, and no frame is lost or comes twice by it.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, group, group_in};
use retry_testbed::net::netns::Netns;
use retry_testbed::peers::announce::{BEACON_INDEX, ManifestSender, Named};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{binary, counted, eventually, flags, is_root};

/// Site scope, sources named.
const SITE_SSM: u16 = 0xFF35;
/// Between two frames.
const PACE: Duration = Duration::from_millis(20);

/// The endpoint's groups that the bridge knows of.
fn known(bridge: &Netns, wanted: &[Ipv6Addr]) -> usize {
    let text = bridge.run(&["bridge", "mdb", "show"]).expect("a table");
    let is_known = |group: &&Ipv6Addr| text.lines().any(|line| line.contains(&format!("port p1 grp {group} ")));
    wanted.iter().filter(is_known).count()
}

/// Makes the bridge forget what the endpoint joined, and asks for nothing.
fn forget(bridge: &Netns, wanted: &[Ipv6Addr]) {
    // It may be told again while it forgets.
    eventually("it has forgotten", || {
        delete_all(bridge);
        known(bridge, wanted) == 0
    });
}

fn delete_all(bridge: &Netns) {
    let text = bridge.run(&["bridge", "mdb", "show"]).expect("a table");
    for line in text.lines().filter(|line| line.contains("port p1 grp ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |name| words.iter().position(|word| *word == name).and_then(|at| words.get(at + 1)).copied();
        let mut command =
            vec!["bridge", "mdb", "del", "dev", "br0", "port", "p1", "grp", after("grp").expect("a group")];
        if let Some(source) = after("src") {
            command.extend(["src", source]);
        }
        // What stands for a source goes with its group.
        let _ = bridge.run(&command);
    }
}

fn told_again(version: u8, mode: &str) {
    let fabric = Fabric::bridged(&["endpoint", "publisher"], 1500).expect("a fabric");
    let (endpoint, from) = (fabric.host("endpoint").expect("a host"), fabric.host("publisher").expect("a host"));
    let bridge = fabric.bridge().expect("a bridge");
    endpoint.ns.sysctl("net/ipv6/conf/eth0/force_mld_version", &version.to_string()).expect("a sysctl");
    let source = from.addr.to_string();
    let mut more = vec!["-mc-rejoin-interval", "1s"];
    let (data, beacons) = match mode {
        "ssm" => {
            more.extend(["-source-mode", "ssm", "-scope", "site"]);
            more.extend(["-ssm-publishers-static", &source, "-ssm-bootstrap-manifest", &source]);
            (group_in(SITE_SSM, 1), group_in(SITE_SSM, BEACON_INDEX))
        }
        _ => (group(1), group(BEACON_INDEX)),
    };
    // With sources named, the any-source beacon groups are joined as well.
    let wanted: BTreeSet<Ipv6Addr> = [data, beacons, group(BEACON_INDEX)].into();
    let wanted: Vec<Ipv6Addr> = wanted.into_iter().collect();
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &more)).expect("a daemon");
    fabric.await_members("endpoint", &wanted).expect("members");
    // The bridge asks no more: the query that is due already comes within six seconds.
    bridge.run(&["ip", "link", "set", "br0", "type", "bridge", "mcast_query_interval", "60000"]).expect("set");
    std::thread::sleep(Duration::from_secs(6));

    let publish = Publisher::open(&from.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 1, 2, 300..=300);
    let mut sent = 0;
    let mut send_for = |time: Duration| {
        let (until, before) = (Instant::now() + time, sent);
        while Instant::now() < until {
            publish.send(data, &flow.next_frame()).expect("a frame leaves");
            sent += 1;
            std::thread::sleep(PACE);
        }
        sent - before
    };
    let manifests = ManifestSender::open(&from.ns, from.addr).expect("a sender");
    let heard = |number: u32| {
        let names = Named { epoch_seconds: number, ttl_seconds: 600, publishers: &[from.addr], shutdown: false };
        manifests.send(beacons, names).expect("it leaves");
        let metrics = counted(&daemon, "bre_manifests_received_total", &[], number.into());
        assert_eq!(metrics.count("bre_manifests_received_total", &[]), u64::from(number));
    };
    heard(1);
    let cached = || daemon.metrics().expect("a scrape").count("bre_frames_cached_total", &[]);
    // While nothing is forgotten nothing is lost.
    let first = send_for(Duration::from_secs(4));
    counted(&daemon, "bre_frames_cached_total", &[], first);

    forget(bridge, &wanted);
    let forgotten = send_for(Duration::from_secs(2));
    assert_eq!(known(bridge, &wanted), wanted.len(), "{version}, {mode}: it was told again\n{}", daemon.log());
    heard(2);
    let between = cached() - first;
    assert!(between > 0 && between <= forgotten, "{between} of {forgotten}");
    let last = send_for(Duration::from_secs(3));
    counted(&daemon, "bre_frames_cached_total", &[], first + between + last);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(cached(), first + between + last, "each frame once");
    assert_eq!(daemon.metrics().expect("a scrape").count("bre_cache_duplicates_total", &[]), 0);
}

#[test]
fn a_bridge_that_forgot_any_source_groups_is_told_again() {
    if is_root("a_bridge_that_forgot_any_source_groups_is_told_again") {
        told_again(2, "asm");
    }
}

#[test]
fn a_bridge_that_forgot_named_sources_is_told_again() {
    if is_root("a_bridge_that_forgot_named_sources_is_told_again") {
        told_again(2, "ssm");
    }
}

#[test]
fn a_bridge_that_forgot_is_told_again_in_version_1() {
    if is_root("a_bridge_that_forgot_is_told_again_in_version_1") {
        told_again(1, "asm");
    }
}

/// A router of version 1 knows no sources: it is told the groups.
#[test]
fn a_bridge_that_forgot_named_sources_is_told_again_in_version_1() {
    if is_root("a_bridge_that_forgot_named_sources_is_told_again_in_version_1") {
        told_again(1, "ssm");
    }
}

/// With 0 the daemon does not tell the switch: the frames stay away until the switch asks.
#[test]
fn without_an_interval_nothing_is_said_again() {
    if !is_root("without_an_interval_nothing_is_said_again") {
        return;
    }
    let fabric = Fabric::bridged(&["endpoint", "publisher"], 1500).expect("a fabric");
    let endpoint = fabric.host("endpoint").expect("a host");
    let bridge = fabric.bridge().expect("a bridge");
    let _daemon =
        Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-mc-rejoin-interval", "0"])).expect("a daemon");
    let wanted = [group(1)];
    fabric.await_members("endpoint", &wanted).expect("members");
    bridge.run(&["ip", "link", "set", "br0", "type", "bridge", "mcast_query_interval", "60000"]).expect("set");
    std::thread::sleep(Duration::from_secs(6));
    forget(bridge, &wanted);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(known(bridge, &wanted), 0);
}
