//! What cannot be taken in or sent: counted, and never promised.

use std::io::Write as _;
use std::net::SocketAddrV6;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, group, group_in};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, await_count, binary, flags, frame, is_root, two_hosts};

const KEY: FrameKey = FrameKey::new(0x1055, 1);

/// Refuses what a host's stack sends and this rule of nft matches: the sender is told.
fn refuse(host: &Host, rule: &str) {
    let script = format!(
        "table inet refuse {{}}\ndelete table inet refuse\ntable inet refuse {{\n \
         chain out {{\n type filter hook output priority 0;\n {rule} drop\n }}\n}}\n"
    );
    let mut nft = host.ns.command("nft").expect("a command");
    let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft (Debian package nftables)");
    nft.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("written");
    assert!(nft.wait().expect("it ends").success(), "{script}");
}

/// A frame that does not leave is not ACKed; an answer that does not leave is counted by its type.
#[test]
fn what_cannot_be_sent_is_not_promised() {
    if !is_root("what_cannot_be_sent_is_not_promised") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let more = ["-repair-holddown", "0", "-rl-sequence-max", "2", "-rl-sequence-window", "1h", "-rl-throttle-response"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &frame(KEY, 300, 1)).expect("a frame leaves");
    await_count(&daemon, "bre_frames_cached_total", &[], 1);
    let socket = asker(client);
    let answers = |key| ask(&socket, endpoint.nack_address(), &nack(key), 1);
    let counted = |metric: &str, labels: &[(&str, &str)]| {
        let metrics = await_count(&daemon, metric, labels, 1);
        assert_eq!(metrics.count(metric, labels), 1, "{metric}{labels:?}");
        metrics
    };

    // The frame is longer than an answer with its UDP header.
    refuse(endpoint, "udp sport 9300 udp length > 24");
    assert!(answers(KEY).is_empty(), "an ACK for a frame that did not leave");
    let metrics = counted("bre_retransmit_errors_total", &[("path", "user")]);
    assert_eq!(metrics.count("bre_retransmits_total", &[]), 0);
    assert_eq!(metrics.count("bre_responses_sent_total", &[]), 0);

    refuse(endpoint, "udp sport 9300 udp length 24");
    assert!(answers(KEY).is_empty());
    counted("bre_response_send_errors_total", &[("type", "ack"), ("path", "user")]);
    assert!(answers(FrameKey::new(0x1055, 2)).is_empty());
    counted("bre_response_send_errors_total", &[("type", "miss"), ("path", "user")]);
    assert!(answers(KEY).is_empty());
    let metrics = counted("bre_response_send_errors_total", &[("type", "throttled"), ("path", "user")]);
    assert_eq!(metrics.count("bre_responses_sent_total", &[]), 0);
    assert_eq!(metrics.count("bre_retransmits_total", &[]), 1);
}

/// Frames that come while the daemon takes none, and that its receive buffer has no room for.
#[test]
fn frames_that_found_no_room_are_counted() {
    if !is_root("frames_that_found_no_room_are_counted") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    // Frames that are merged before they are lost count as one.
    endpoint.ns.run(&["ethtool", "-K", "eth0", "gro", "off"]).expect("ethtool works");
    let mut daemon =
        Daemon::start(&binary(), &endpoint.ns, &flags("off", &["-cache-memory", "256m"])).expect("a daemon");
    let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
    let mut flow = Flow::new(Kind::Tx, 0, 2, 1300..=1400);
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    for _ in 0..60_000 {
        publish.publish(&mut flow).expect("a frame leaves");
    }
    daemon.child().signal(Signal::SIGCONT).expect("it goes on");
    // The kernel tells of what it lost with the next datagram that it has room for.
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let stored = loop {
        let sent = publish.sent();
        let metrics = daemon.metrics().expect("a scrape");
        let (came, lost) = (
            metrics.count("bre_frames_cached_total", &[]),
            metrics.count("bre_frames_dropped_total", &[("reason", "socket_overflow")]),
        );
        if lost > 0 && came + lost == sent {
            break came;
        }
        assert!(std::time::Instant::now() < deadline, "{sent} sent, {came} came, {lost} lost\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
        publish.publish(&mut flow).expect("a frame leaves");
    };
    let bytes = flow.next_frame();
    let key = publish.send(group(0), &bytes).expect("a frame leaves").expect("a key");
    let metrics = await_count(&daemon, "bre_frames_cached_total", &[], stored + 1);
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), stored + 1);
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
    let by_multicast = Answer::Ack { multicast: true, unicast: false };
    assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, key.seq_num())), Some(Ok(by_multicast)));
}

/// NACKs that come while the daemon takes none, and that the receive buffer of its socket has no room for.
#[test]
fn nacks_that_found_no_room_are_counted() {
    if !is_root("nacks_that_found_no_room_are_counted") {
        return;
    }
    const SENT: u64 = 60_000;
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &[])).expect("a daemon");
    let socket = asker(client);
    daemon.child().signal(Signal::SIGSTOP).expect("it stops");
    for seq_num in 1..=SENT {
        socket.send_to(&nack(FrameKey::new(0x1055, seq_num)), endpoint.nack_address()).expect("it leaves");
    }
    daemon.child().signal(Signal::SIGCONT).expect("it goes on");
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let metrics = daemon.metrics().expect("a scrape");
        let came = metrics.count("bre_nack_requests_total", &[]);
        let lost = metrics.count("bre_nack_dropped_total", &[("reason", "socket_overflow")]);
        if lost > 0 && came + lost == SENT {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{came} came, {lost} lost of {SENT}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Datagrams on a beacon group that are neither ADVERT nor manifest, and a manifest whose CRC is wrong.
#[test]
fn what_cannot_be_read_is_counted() {
    if !is_root("what_cannot_be_read_is_counted") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let sender = client.addr.to_string();
    let more = ["-source-mode", "ssm", "-ssm-bootstrap-manifest", &sender, "-ssm-bootstrap-beacon", &sender];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    let beacon = SocketAddrV6::new(group_in(0xFF35, 0xFFFD), 9300, 0, client.ifindex);
    let socket = asker(client);
    let mut manifest = nack(KEY);
    manifest[6] = 0x40;
    let mut neither = nack(KEY);
    neither[6] = 0x77;
    for datagram in [&manifest[..], &neither, b"x"] {
        socket.send_to(datagram, beacon).expect("it leaves");
    }
    let dropped = |metric: &str, count| {
        let labels = [("reason", "decode_error")];
        assert_eq!(await_count(&daemon, metric, &labels, count).count(metric, &labels), count, "{metric}");
    };
    dropped("bre_manifests_dropped_total", 1);
    dropped("bre_beacon_dropped_total", 2);
}
