//! What arrives, and what is joined.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{DATA_PORT, Fabric, Host, group, group_in};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{binary, counted, eventually, flags, frame, two_hosts};

use crate::document::{Said, Section, sections};

const FLOW: u64 = 0x50c;
const SITE: u16 = 0xFF35;
/// A source that no setting names.
const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x66);

sections! {
    "A source is not heard" => source: a_source_is_not_heard;
    "Frames are refused" => refused: frames_are_refused;
    "A beacon is not heard" => beacon: a_beacon_is_not_heard;
}

/// Runs a command while frames come from these publishers to these groups, ten times a second each.
pub(crate) fn while_sending(flows: &[(&Publisher, Ipv6Addr)], work: impl FnOnce() -> Said) -> Said {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for seq_num in 1.. {
                for (publish, to) in flows {
                    publish.send(*to, &frame(FrameKey::new(FLOW, seq_num), 300, 1)).expect("a frame leaves");
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        said.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn publisher(host: &Host, from: Ipv6Addr) -> Publisher {
    Publisher::open_from(&host.ns, from, Arc::new(Journal::new())).expect("a publisher")
}

/// One source is named and heard, and one is not named.
fn source(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    client.add_address(STRANGER).expect("an address");
    let named = client.addr.to_string();
    let ssm = ["-source-mode", "ssm", "-scope", "site", "-ssm-publishers-static", &named, "-fill", "kernel"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &ssm)).expect("a daemon");
    let (one, other) = (publisher(client, client.addr), publisher(client, STRANGER));
    let seen = while_sending(&[(&one, group_in(SITE, 0)), (&other, group_in(SITE, 0))], || {
        counted(&daemon, "bre_fill_kernel_frames_total", &[], 3);
        section.run_with(&endpoint.ns, "seen", &[("seen 10", "seen 1")])
    });
    seen.shows(&["fd10::66\tff35::b:0\t9001"]);
    assert!(!seen.out.contains("fd10::2\tff35::b:0"), "XDP takes what is joined: {}", seen.out);
    assert_eq!(section.run(&endpoint.ns, "SOURCES").out.trim(), "fd10:0000:0000:0000:0000:0000:0000:0002");
    section.run(&endpoint.ns, "maddr").shows(&["ff35::b:0"]);
    let shown = section.run(&endpoint.ns, "bre_(ssm_sources");
    shown.shows(&["bre_ssm_sources 1\n", "bre_manifests_received_total 0\n"]);
    assert!(!shown.out.contains("bre_fill_kernel_frames_total 0\n"), "{}", shown.out);
    let resolved = section.run_with(&endpoint.ns, "getent", &[("publisher.example", "::1")]);
    resolved.shows(&["::1"]);
    section.run(&endpoint.ns, "force_mld_version").shows(&["net.ipv6.conf.eth0.force_mld_version = 0"]);
    // Why the document does not ask there: the daemon's beacon groups come last, and have no source.
    let filters = endpoint.ns.run(&["cat", "/proc/net/mcfilter6"]).expect("readable");
    assert!(!filters.contains(" ff35"), "{filters}");
}

/// A publisher sends by unicast; frames of the group are taken by XDP meanwhile.
fn refused(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &["-fill", "kernel"])).expect("a daemon");
    let right = publisher(client, client.addr);
    client.add_address(STRANGER).expect("an address");
    let wrong = client.ns.enter(|| UdpSocket::bind((STRANGER, 0))).expect("a socket");
    let to = SocketAddrV6::new(endpoint.addr, DATA_PORT, 0, 0);
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                wrong.send_to(&frame(FrameKey::new(FLOW, 9), 300, 1), to).expect("it leaves");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let said = while_sending(&[(&right, group(0))], || {
            section.run_with(&endpoint.ns, "seen 10", &[("seen 10", "seen 1")])
        });
        stop.store(true, Ordering::Relaxed);
        said
    });
    seen.shows(&["fd10::66\tfd10::1\t9001"]);
    assert_eq!(seen.out.lines().count(), 1, "nothing else: {}", seen.out);
    counted(&daemon, "bre_frames_dropped_total", &[("reason", "not_joined")], 3);
    section.run(&endpoint.ns, "bre_frames_dropped_total").shows(&[r#"reason="not_joined""#]);
}

/// Two endpoints with other group ids: beacons arrive, and no socket has joined.
fn beacon(section: &Section) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let common = ["-beacon-interval", "1s", "-fill", "kernel", "-admin-addr", "[::1]:9401"];
    let here = [&common[..], &["-instance", "here"]].concat();
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &here)).expect("a daemon");
    let mut there = [&common[..], &["-instance", "there", "-mc-group-id", "0x000C"]].concat();
    let other = Daemon::start(&binary(), &client.ns, &flags("native", &there)).expect("a daemon");
    counted(&other, "bre_beacon_adverts_sent_total", &[], 2);
    let seen = section.run_with(&endpoint.ns, "seen", &[("seen 130", "seen 2")]);
    seen.shows(&["fd10::2\tff05::c:fffd\t9300"]);
    section.run(&endpoint.ns, "bre_beacon_").shows(&["bre_beacon_adverts_received_total 0\n"]);
    let joined = section.run(&endpoint.ns, "maddr");
    joined.shows(&["ff05::b:fffd"]);
    assert!(!joined.out.contains("c:fffd"), "{}", joined.out);
    let members = section.run(&endpoint.ns, "members");
    members.shows(&["\"here\""]);
    let nack = client.nack_address().to_string();
    assert!(!members.out.contains(&nack), "{}", members.out);
    // With the same group id it is over.
    drop(other);
    there.extend(["-mc-group-id", "0x000B"]);
    let _other = Daemon::start(&binary(), &client.ns, &flags("native", &there)).expect("a daemon");
    eventually("the other is a member", || section.run(&endpoint.ns, "members").out.contains(&nack));
    drop(daemon);
}
