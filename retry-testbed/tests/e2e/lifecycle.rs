//! Start, lease, end: what an operator sees, and what a daemon leaves behind.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::{Capture, RawSender};
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group};
use retry_testbed::net::packet::{Checksum, PacketBuilder};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{
    ask, asker, await_count, await_detached, binary, datagrams_from, flags, frame, is_root, two_hosts,
};

const KEY: FrameKey = FrameKey::new(0x1ea5e, 1);

fn store(daemon: &Daemon<'_>, from: &Host) {
    let publish = Publisher::open(&from.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 0)).expect("a frame leaves");
    let metrics = await_count(daemon, "bre_frames_cached_total", &[], 1);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 1);
}

/// A stopped daemon's cache answers no longer than its lease; a killed one's neither, and its pins hinder no successor.
#[test]
fn a_dead_daemon_stops_answering() {
    if !is_root("a_dead_daemon_stops_answering") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let flags = flags("native", &["-bpf-lease", "1s", "-beacon-flags-unicast", "-beacon-flags-multicast=false"]);
    let socket = asker(client);
    let hit = || ask(&socket, endpoint.nack_address(), &nack(KEY), 2).len();
    {
        let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        store(&daemon, client);
        assert_eq!(hit(), 2);
        daemon.child().signal(Signal::SIGSTOP).expect("it stops");
        assert_eq!(hit(), 2, "the kernel answers alone while the lease lasts");
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(hit(), 0, "the lease is over");
        daemon.child().signal(Signal::SIGCONT).expect("it goes on");
        // What was passed on meanwhile waits in its socket and is answered now.
        std::thread::sleep(Duration::from_millis(600));
        while socket.recv(&mut [0; 2048]).is_ok() {}
        assert_eq!(hit(), 2, "it renewed its lease");
        let metrics = daemon.metrics().expect("a scrape");
        assert!(metrics.count("bre_xdp_passed_total", &[("reason", "lease")]) >= 1);
        daemon.child().signal(Signal::SIGKILL).expect("it dies");
        std::thread::sleep(Duration::from_millis(1300));
        assert_eq!(hit(), 0, "no process is left to answer");
        assert!(link(endpoint).contains("xdp"), "its program stays attached, for a successor to find");
    }
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a successor");
    let missed = ask(&socket, endpoint.nack_address(), &nack(KEY), 1);
    assert_eq!(missed.first().map(|bytes| Answer::parse(bytes, 1)), Some(Ok(Answer::Miss)), "{}", daemon.log());
    store(&daemon, client);
    assert_eq!(hit(), 2);
}

fn link(host: &Host) -> String {
    host.ns.run(&["ip", "link", "show", INTERFACE]).expect("a link")
}

#[test]
fn a_clean_end_leaves_nothing() {
    if !is_root("a_clean_end_leaves_nothing") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let pins = format!("/sys/fs/bpf/retry-e2e-{}", std::process::id());
    let flags = flags("native", &["-bpffs", &pins, "-bpf-handover=false"]);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    let directory = Path::new(&pins).join(format!("{INTERFACE}-{}", endpoint.ns.inode().expect("an inode")));
    assert!(directory.join("COUNTERS").exists() && directory.join("link-eth0").exists());
    assert!(link(endpoint).contains("xdp"));
    // Of its own ports, which would be told first.
    let others = [&flags[..], &["-metrics-addr", "[::1]:9402", "-nack-port", "9302"]].concat();
    let mut second = Daemon::launch(&binary(), &endpoint.ns, &others).expect("a second process");
    let status = second.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(second.log().contains("another daemon serves eth0"), "{}", second.log());
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let status = daemon.end().expect("it ends");
    assert!(status.success(), "{status}\n{}", daemon.log());
    assert!(!directory.exists(), "pins are left");
    await_detached(endpoint);
    let adverts: Vec<_> =
        datagrams_from(&capture.take(), endpoint.addr).into_iter().filter(|packet| packet.dst.port() == 9300).collect();
    let last = adverts.last().expect("a last ADVERT");
    assert_eq!(last.payload[31] & 0x04, 0x04, "it says Draining");
    fs::remove_dir(&pins).expect("an empty directory");
}

/// What the kernel drops within a receiving call must not keep a worker in it.
#[test]
fn wrong_checksums_do_not_hold_up_the_end() {
    // For five seconds: longer than its end is waited for.
    const PACKETS: u32 = 1_000;
    if !is_root("wrong_checksums_do_not_hold_up_the_end") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
    // Longer ones than 68 bytes are not summed when they come.
    let mut packet =
        PacketBuilder::udp(SocketAddrV6::new(client.addr, 5_000, 0, 0), endpoint.nack_address(), &[7; 100]);
    (packet.src_mac, packet.dst_mac, packet.checksum) = (client.mac, endpoint.mac, Checksum::Value(0x1234));
    let packet = packet.build();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PACKETS {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                sender.send(&packet).expect("it leaves");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        std::thread::sleep(Duration::from_millis(200));
        let status = daemon.end().expect("it ends");
        ended.store(true, Ordering::Relaxed);
        assert!(status.success(), "{status}\n{}", daemon.log());
    });
}

#[test]
fn the_beacon_tells_where_and_how() {
    if !is_root("the_beacon_tells_where_and_how") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let capture = Capture::start(&client.ns, INTERFACE).expect("a capture");
    let flags = flags(
        "off",
        &[
            "-beacon-interval",
            "1s",
            "-beacon-tier",
            "3",
            "-beacon-preference",
            "200",
            "-beacon-flags-unicast",
            "-instance",
            "a",
        ],
    );
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
    std::thread::sleep(Duration::from_millis(1500));
    let adverts: Vec<_> =
        datagrams_from(&capture.take(), endpoint.addr).into_iter().filter(|packet| packet.dst.port() == 9300).collect();
    assert!((2..=3).contains(&adverts.len()), "{} ADVERTs in 1.5 s", adverts.len());
    let advert = &adverts[0];
    let beacon: Ipv6Addr = "ff05::b:fffd".parse().expect("an address");
    assert_eq!((*advert.dst.ip(), advert.hop_limit, advert.payload.len()), (beacon, 1, 56));
    let mut expected = vec![0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 0x20, 0x05];
    expected.extend(endpoint.addr.octets());
    expected.extend([0x24, 0x54, 3, 200, 0, 1, 0, 0x18]);
    // CRC32c of "a" (RFC 3720's polynomial).
    expected.extend(0xC1D0_4330_u32.to_be_bytes());
    expected.extend([0; 20]);
    assert_eq!(advert.payload, expected);
    assert!(daemon.metrics().expect("a scrape").count("bre_beacon_adverts_sent_total", &[]) >= 2);
}

#[test]
fn health_readiness_and_log_level() {
    if !is_root("health_readiness_and_log_level") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-nack-workers", "2"])).expect("a daemon");
    let (status, body) = daemon.get("/healthz").expect("an answer");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &body["status"]), (200, &"ok".into()));
    assert!(body["uptime_seconds"].as_f64().is_some());
    let (status, body) = daemon.get("/readyz").expect("an answer");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    // Two for the socket; one each for frames, those that the kernel stored, manifests and beacons, the kernel's events,
    // what waits for an answer, what waits for a neighbour, what has expired, other programs' ports, and who is known.
    assert_eq!(
        (status, &body["status"], &body["workers_ready"], &body["workers_total"]),
        (200, &"ready".into(), &11.into(), &11.into())
    );
    assert_eq!(body["xdp"]["mode"], "native");
    assert_eq!(daemon.post("/loglevel?level=debug").expect("an answer").0, 200);
    assert_eq!(daemon.post("/loglevel?level=loud").expect("an answer").0, 400);
    assert_eq!(daemon.get("/nothing").expect("an answer").0, 404);
}

/// The thread of the kernel's log lines is not waited for, and does not count as a worker.
#[test]
fn no_more_workers_are_ready_than_there_are() {
    if !is_root("no_more_workers_are_ready_than_there_are") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-debug"])).expect("a daemon");
    std::thread::sleep(Duration::from_millis(500));
    let (status, body) = daemon.get("/readyz").expect("an answer");
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &body["workers_ready"]), (200, &body["workers_total"]));
}

/// An MTU that the driver does not take (here, for a program that handles packets of one buffer only): `auto` says why it
/// serves by socket, `native` ends with the advice.
#[test]
fn too_large_an_mtu_is_told() {
    if !is_root("too_large_an_mtu_is_told") {
        return;
    }
    let object = std::env::var("RETRY_EBPF_LINEAR").expect("xtask names it");
    let one_buffer = ["-bpf-object", object.as_str()];
    let fabric = Fabric::flat(9000).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    {
        let flags =
            flags("auto", &[&one_buffer[..], &["-beacon-flags-unicast", "-beacon-flags-multicast=false"]].concat());
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags).expect("a daemon");
        let metrics = daemon.metrics().expect("a scrape");
        assert_eq!(metrics.state("bre_xdp_mode", "mode").as_deref(), Some("off"));
        assert_eq!(
            metrics.state("bre_xdp_mode", "reason").as_deref(),
            Some("attach"),
            "few values, whatever the driver says"
        );
        assert!(daemon.get("/readyz").expect("an answer").1.contains("MTU"));
        let told = daemon.log().lines().filter(|line| line.contains("MTU")).count();
        assert_eq!(told, 1, "{}", daemon.log());
        store(&daemon, client);
        assert_eq!(ask(&asker(client), endpoint.nack_address(), &nack(KEY), 2).len(), 2);
    }
    let error =
        Daemon::start(&binary(), &endpoint.ns, &flags("native", &one_buffer)).expect_err("no native XDP").to_string();
    assert!(error.contains("exit status: 1"), "{error}");
    let lines: Vec<&str> = error.lines().filter(|line| line.contains("-xdp native")).collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(lines[0].contains("the MTU 9000 is too large") && lines[0].contains("-xdp off"), "{error}");
}
