//! What a daemon leaves to the next one.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use retry_testbed::daemon::{Daemon, Metrics};
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::scene::relay::{End, Relay};
use retry_testbed::scene::steady::{Account, Rates, Repairs, Steady};
use retry_testbed::scene::{await_detached, binary, counted, flags, is_root, two_hosts};

const RATES: Rates = Rates { nacks: 5_000, frames: 2_000, held: 8_000, repairs: Repairs::Unicast, most: u64::MAX };
/// Between two hand-overs.
const PAUSE: Duration = Duration::from_millis(500);
const UNICAST: [&str; 6] =
    ["-beacon-flags-unicast", "-beacon-flags-multicast=false", "-cache-memory", "64m", "-fill", "kernel"];

fn start<'a>(host: &'a Host, more: &[&str]) -> Daemon<'a> {
    let mut all = UNICAST.to_vec();
    all.extend(more);
    let mut daemon = Daemon::start(&binary(), &host.ns, &flags("native", &all)).expect("a daemon");
    daemon.leave();
    daemon
}

fn mode(metrics: &Metrics, mode: &str) -> bool {
    metrics.state("bre_start_mode", "mode").as_deref() == Some(mode)
}

/// Detaches what the last daemon left.
fn detach(mut daemon: Daemon<'_>) {
    daemon.child().kill();
    let output = daemon.run("detach", &[]).expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!daemon.pins().exists(), "nothing is left");
}

fn gapless(account: &Account) {
    println!("{account:?}");
    assert!(account.is_gapless() && account.asked > 0, "{account:?}");
    assert_eq!((account.acked, account.copies), (account.asked, account.asked), "{account:?}");
}

/// Restarts and a kill under traffic: every NACK for a held frame gets its ACK and its copy, and no counter goes backwards.
#[test]
fn frames_and_counters_survive() {
    if !is_root("frames_and_counters_survive") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("native", &UNICAST);
    let mut relay = Relay::start(&binary(), endpoint, &flags).expect("a daemon");
    let traffic = Steady::start(client, endpoint.nack_address(), RATES);
    for end in [End::Told, End::Killed, End::Told] {
        std::thread::sleep(PAUSE);
        relay.hand_over(end, &flags).expect("the next one goes on");
    }
    std::thread::sleep(PAUSE);
    let published = traffic.published();
    gapless(&traffic.stop());
    // What the kernel stored while no daemon ran was followed: it is counted, once.
    counted(relay.daemon(), "bre_frames_cached_total", &[], published);
    std::thread::sleep(PAUSE);
    let metrics = relay.daemon().metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), metrics.count("bre_frames_received_total", &[]));
    relay.end().expect("nothing is left");
}

/// Multicast repairs under the hold-down: none comes twice within it, whichever program sends it.
#[test]
fn no_repair_comes_twice() {
    if !is_root("no_repair_comes_twice") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-beacon-flags-unicast=false", "-beacon-flags-multicast", "-repair-holddown", "1s"];
    let all = [&UNICAST[..], &more].concat();
    let flags = flags("native", &all);
    let mut relay = Relay::start(&binary(), endpoint, &flags).expect("a daemon");
    let rates = Rates { repairs: Repairs::Multicast(Duration::from_secs(1)), held: 20, most: 20, ..RATES };
    let traffic = Steady::start(client, endpoint.nack_address(), rates);
    for end in [End::Told, End::Killed] {
        std::thread::sleep(PAUSE);
        relay.hand_over(end, &flags).expect("the next one goes on");
    }
    std::thread::sleep(PAUSE);
    let account = traffic.stop();
    println!("{account:?}");
    assert!(account.is_gapless() && account.acked == account.asked && account.copies > 0, "{account:?}");
    assert!(account.copies < account.asked, "the hold-down holds: {account:?}");
    relay.end().expect("nothing is left");
}

/// Without hand-over the end of the daemon is the end of its program, its maps and its frames.
#[test]
fn without_hand_over_nothing_stays() {
    if !is_root("without_hand_over_nothing_stays") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = start(endpoint, &["-bpf-handover=false"]);
    assert!(daemon.end().expect("it ends").success());
    assert!(!daemon.pins().exists());
    // What an earlier daemon with hand-over left is not gone on with.
    let mut left = start(endpoint, &[]);
    assert!(left.end().expect("it ends").success());
    assert!(left.pins().join("RING").exists());
    let daemon = start(endpoint, &["-bpf-handover=false"]);
    assert!(mode(&daemon.metrics().expect("a scrape"), "fresh"));
    drop(daemon);
    assert!(!left.pins().exists());
}

/// Two builds of the kernel programs in turns: with `xdp.frags` and, as in earlier versions, without, which program arrays and devmaps remember.
#[test]
fn upgrade_to_another_program() {
    if !is_root("upgrade_to_another_program") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut daemon = start(endpoint, &[]);
    let tag = |daemon: &Daemon<'_>| {
        let path = daemon.pins().join("retry_nack");
        let program = aya::programs::Xdp::from_pin(path, aya_obj::programs::XdpAttachType::Interface);
        program.expect("a program").info().expect("told").tag()
    };
    let linear = std::env::var("RETRY_EBPF_LINEAR").expect("xtask names it");
    let traffic = Steady::start(client, endpoint.nack_address(), RATES);
    let mut tags = vec![tag(&daemon)];
    for more in [&["-bpf-object", &linear][..], &[], &["-bpf-object", &linear]] {
        assert!(daemon.end().expect("it ends").success(), "{}", daemon.log());
        daemon = start(endpoint, more);
        assert!(mode(&daemon.metrics().expect("a scrape"), "adopted"), "{}", daemon.log());
        tags.push(tag(&daemon));
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(tags[0] == tags[2] && tags[1] == tags[3], "{tags:?}");
    gapless(&traffic.stop());
    detach(daemon);
}

/// A larger cache, and then a smaller one, under traffic: the frames are read over, and what the kernel stores meanwhile too.
#[test]
fn another_size_is_read_over() {
    if !is_root("another_size_is_read_over") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut daemon = start(endpoint, &["-cache-memory", "128m"]);
    let traffic = Steady::start(client, endpoint.nack_address(), RATES);
    for (turn, memory) in (1..).zip(["256m", "96m"]) {
        std::thread::sleep(PAUSE);
        let before = daemon.metrics().expect("a scrape");
        assert!(daemon.end().expect("it ends").success(), "{}", daemon.log());
        daemon = start(endpoint, &["-cache-memory", memory, "-limit-table-entries", "4096"]);
        let after = daemon.metrics().expect("a scrape");
        assert!(mode(&after, "read_over"), "{}", daemon.log());
        assert_eq!(after.count("bre_handovers_total", &[("result", "read_over")]), turn);
        let frames = |metrics: &Metrics| metrics.count("bre_frames_cached_total", &[]);
        assert!(frames(&after) >= frames(&before), "{} then {}", frames(&before), frames(&after));
    }
    std::thread::sleep(PAUSE);
    let published = traffic.published();
    gapless(&traffic.stop());
    let metrics = counted(&daemon, "bre_frames_cached_total", &[], published);
    assert_eq!(metrics.count("bre_frames_dropped_total", &[]), 0);
    detach(daemon);
}

/// The frames of an earlier daemon that another shape of maps cannot hold are given up, and a line says why.
#[test]
fn what_does_not_fit_is_left_behind() {
    if !is_root("what_does_not_fit_is_left_behind") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut daemon = start(endpoint, &[]);
    assert!(daemon.end().expect("it ends").success());
    let daemon = start(endpoint, &["-shard-bits", "4"]);
    let metrics = daemon.metrics().expect("a scrape");
    assert!(mode(&metrics, "unfit"), "{}", daemon.log());
    assert_eq!(metrics.count("bre_handovers_total", &[("result", "unfit")]), 1);
    assert!(daemon.log().contains("shard bits"), "{}", daemon.log());
    detach(daemon);
}

/// A start that comes to nothing after it has taken maps of its own: the one before it is gone on with as if it had not been.
#[test]
fn a_start_that_fails_changes_nothing() {
    if !is_root("a_start_that_fails_changes_nothing") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut daemon = start(endpoint, &[]);
    let traffic = Steady::start(client, endpoint.nack_address(), RATES);
    std::thread::sleep(PAUSE);
    assert!(daemon.end().expect("it ends").success(), "{}", daemon.log());
    // The store's certificates are read after the maps are made.
    let wrong = ["-cache-memory", "96m", "-redis-addr", "[::1]:1", "-redis-tls-ca", "/nowhere"];
    let all = [&UNICAST[..], &wrong].concat();
    let mut failing = Daemon::launch(&binary(), &endpoint.ns, &flags("native", &all)).expect("a process");
    failing.leave();
    assert!(!failing.wait().expect("it ends").success(), "{}", failing.log());
    let names: Vec<String> = std::fs::read_dir(daemon.pins())
        .expect("pins")
        .map(|entry| entry.expect("a pin").file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!names.iter().any(|name| name.ends_with("_NEXT")), "{names:?}\n{}", failing.log());
    let next = start(endpoint, &[]);
    assert!(mode(&next.metrics().expect("a scrape"), "adopted"), "{}", next.log());
    std::thread::sleep(PAUSE);
    gapless(&traffic.stop());
    detach(next);
}

/// Another fabric interface than before, on a host whose interfaces an earlier daemon served: its program makes way.
#[test]
fn another_fabric_interface_takes_the_interface_over() {
    if !is_root("another_fabric_interface_takes_the_interface_over") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    for argv in [
        &["ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1p"][..],
        &["ip", "link", "set", "eth1", "up"],
        &["ip", "link", "set", "eth1p", "up"],
        &["ip", "-6", "addr", "add", "fd11::1/64", "dev", "eth1", "nodad"],
        &["ethtool", "-K", "eth1p", "gro", "on"],
    ] {
        endpoint.ns.run(argv).expect("it is done");
    }
    let nack = endpoint.addr.to_string();
    let other = ["-mc-iface", "eth1", "-egress-iface", "eth0", "-nack-addr", &nack];
    let mut before = start(endpoint, &other);
    assert!(before.end().expect("it ends").success(), "{}", before.log());
    assert!(before.pins().exists());
    let daemon = start(endpoint, &[]);
    assert!(daemon.log().contains("are given up"), "{}", daemon.log());
    assert!(!before.pins().exists());
    assert_eq!(daemon.metrics().expect("a scrape").state("bre_xdp_mode", "mode").as_deref(), Some("native"));
    detach(daemon);
}

/// The daemon's socket answers from then on: no program of an earlier daemon answers beside it.
#[test]
fn xdp_off_ends_what_is_left() {
    if !is_root("xdp_off_ends_what_is_left") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let mut left = start(endpoint, &[]);
    assert!(left.end().expect("it ends").success());
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    assert!(!left.pins().exists());
    await_detached(endpoint);
    assert!(daemon.log().contains("are given up"), "{}", daemon.log());
}

/// A daemon that ends stays the owner of what it leaves until its process has ended: the last export takes its time, and a thread
/// that did not end could still write to the log. One that is started meanwhile waits for that.
#[test]
fn the_next_one_waits_for_the_end_of_the_process() {
    if !is_root("the_next_one_waits_for_the_end_of_the_process") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    // It takes what comes and answers nothing.
    let collector = endpoint.ns.enter(|| std::net::TcpListener::bind("[::1]:0")).expect("a listener");
    let to = format!("[::1]:{}", collector.local_addr().expect("bound").port());
    let mut first = start(endpoint, &["-otlp-endpoint", &to]);
    first.child().signal(Signal::SIGTERM).expect("it runs");
    let began = Instant::now();
    while !first.log().contains("the drain has ended") {
        assert!(began.elapsed() < Duration::from_secs(3), "{}", first.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(first.child().try_wait().expect("a child").is_none(), "its last export takes longer\n{}", first.log());
    let second = start(endpoint, &[]);
    assert!(first.child().try_wait().expect("a child").is_some(), "it had not ended\n{}", second.log());
    assert!(mode(&second.metrics().expect("a scrape"), "adopted"), "{}", second.log());
    drop(collector);
    detach(second);
}
