//! What is counted as sent was sent: an interface that does not take what the kernel program redirects to it shows, and
//! listeners get their answers by another way where there is one.

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE};
use retry_testbed::peers::answer::nack;
use retry_testbed::scene::{ask, asker, binary, flags, frame, is_root, two_hosts};

use super::changes::{await_ready, await_refusal, eventually, is_answered, publish, readiness, run, served};

const KEY: FrameKey = FrameKey::new(0xde11, 1);
/// Unicast repairs: what comes back can be counted at the asker's socket.
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

/// The peer of a veth pair takes redirected packets while it has GRO on (or an XDP program), and none without.
fn gro(peer: &Host, state: &str) {
    run(peer, &format!("ethtool -K {INTERFACE} gro {state}"));
}

fn drops(daemon: &Daemon<'_>) -> u64 {
    daemon.metrics().expect("a scrape").count("bre_xdp_xmit_drops_total", &[("interface", INTERFACE)])
}

/// `auto`: the daemon's socket answers, from the start, until the peer takes packets.
#[test]
fn a_peer_without_gro_is_answered_by_the_socket() {
    if !is_root("a_peer_without_gro_is_answered_by_the_socket") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    gro(client, "off");
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &UNICAST)).expect("a daemon");
    let (_, body) = readiness(&daemon);
    assert_eq!(body["xdp"]["mode"], "off", "{body}");
    let reason = body["xdp"]["reason"].to_string();
    assert!(reason.contains(INTERFACE) && reason.contains("GRO"), "{reason}");
    let held = frame(KEY, 700, 0);
    publish(&daemon, client, &held, 1);
    assert!(is_answered(&asker(client), endpoint, KEY, &held), "{}", daemon.log());
    assert_eq!(served(&daemon, "user"), 1);
    let told = daemon.log().lines().filter(|line| line.contains("GRO")).count();
    assert_eq!(told, 1, "{}", daemon.log());
    gro(client, "on");
    await_ready(&daemon, "native");
    assert!(is_answered(&asker(client), endpoint, KEY, &held), "{}", daemon.log());
    assert_eq!(served(&daemon, "xdp"), 1);
}

/// `auto`: when the peer takes no more at run time, the drops show it, and the socket goes on with the same frames.
#[test]
fn a_peer_that_takes_no_more_is_noticed() {
    if !is_root("a_peer_that_takes_no_more_is_noticed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("auto", &UNICAST)).expect("a daemon");
    assert_eq!(readiness(&daemon).1["xdp"]["mode"], "native");
    let held = frame(KEY, 700, 0);
    publish(&daemon, client, &held, 1);
    let socket = asker(client);
    assert!(is_answered(&socket, endpoint, KEY, &held));
    assert_eq!(drops(&daemon), 0);
    gro(client, "off");
    eventually(&daemon, "an answer", || is_answered(&socket, endpoint, KEY, &held).then_some(()));
    assert_eq!(readiness(&daemon).1["xdp"]["mode"], "off");
    assert!(drops(&daemon) >= 4, "{}", drops(&daemon));
    assert_eq!(served(&daemon, "user"), 1);
}

/// `native` was asked for: it stays, and is not ready.
#[test]
fn native_stays_and_says_what_is_lost() {
    if !is_root("native_stays_and_says_what_is_lost") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &UNICAST)).expect("a daemon");
    let held = frame(KEY, 700, 0);
    publish(&daemon, client, &held, 1);
    let socket = asker(client);
    gro(client, "off");
    for _ in 0..3 {
        assert!(!is_answered(&socket, endpoint, KEY, &held));
    }
    eventually(&daemon, "six drops", || (drops(&daemon) >= 6).then_some(()));
    assert_eq!(drops(&daemon), 6, "a frame and an ACK each");
    let body = await_refusal(&daemon, &[INTERFACE, "GRO"]);
    assert_eq!(body["xdp"]["mode"], "native");
    gro(client, "on");
    await_ready(&daemon, "native");
    assert!(is_answered(&socket, endpoint, KEY, &held), "{}", daemon.log());
}

/// A veth pair drops what is longer than the MTU of either end, in silence, in both directions. What would be lost is not
/// sent, not counted as sent, and not ACKed; what is long enough to be fragmented leaves in pieces that fit.
#[test]
fn nothing_is_sent_that_a_peer_with_a_smaller_mtu_drops() {
    if !is_root("nothing_is_sent_that_a_peer_with_a_smaller_mtu_drops") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    for (mode, shown) in [("auto", "native"), ("off", "off")] {
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(mode, &UNICAST)).expect("a daemon");
        let frames = [700, 1_350, 3_000].map(|payload| {
            let key = FrameKey::new(0xde12, u64::try_from(payload).expect("small"));
            (key, frame(key, payload, 0))
        });
        for ((_, bytes), number) in frames.iter().zip(1..) {
            publish(&daemon, client, bytes, number);
        }
        let socket = asker(client);
        let answers =
            || frames.iter().map(|(key, bytes)| is_answered(&socket, endpoint, *key, bytes)).collect::<Vec<_>>();
        let sent = || served(&daemon, "xdp") + served(&daemon, "user");
        assert_eq!(answers(), [true; 3]);
        run(client, "ip link set dev eth0 mtu 1400");
        eventually(&daemon, "degraded", || {
            let (status, body) = readiness(&daemon);
            let reasons = body["reasons"].to_string();
            let degraded = status == 200 && body["status"] == "degraded" && body["xdp"]["mode"] == shown;
            (degraded && reasons.contains("1500") && reasons.contains("1400")).then_some(())
        });
        let before = sent();
        assert_eq!(answers(), [true, false, true], "{mode}: {}", daemon.log());
        assert_eq!(sent(), before + 2, "{mode}");
        // Not even an ACK, which would say that the frame was sent.
        let (key, _) = &frames[1];
        assert_eq!(ask(&socket, endpoint.nack_address(), &nack(*key), 1).len(), 0, "{mode}");
        assert_eq!(drops(&daemon), 0);
        run(client, "ip link set dev eth0 mtu 1500");
        await_ready(&daemon, shown);
        eventually(&daemon, "all answers", || (answers() == [true; 3]).then_some(()));
    }
}
