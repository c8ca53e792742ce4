//! What a host that can multicast, or that speaks as an endpoint does, can make the cache hold, evict or refuse.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_common::wire::advert::{ADVERT_LEN, Advert, BeaconScope, FLAG_MULTICAST};
use retry_testbed::both_paths;
use retry_testbed::daemon::{Daemon, http};
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, group, group_in};
use retry_testbed::peers::announce::{BEACON_INDEX, BEACON_PORT, ManifestSender, Named};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, binary, counted, flags, frame, two_hosts};

const FLOW: u64 = 0x9015;
/// An address of the client that no setting names.
const STRANGER: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x66);
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

const fn key(seq_num: u64) -> FrameKey {
    FrameKey::new(FLOW, seq_num)
}

/// A fabric whose client has one more address.
fn fabric() -> Fabric {
    let fabric = Fabric::flat(1500).expect("a fabric");
    two_hosts(&fabric).1.add_address(STRANGER).expect("an address");
    fabric
}

fn start<'a>(endpoint: &'a Host, xdp: &str, more: &[&str]) -> Daemon<'a> {
    let all = [&UNICAST[..], more].concat();
    Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &all)).expect("a daemon")
}

fn publisher(host: &Host, from: Ipv6Addr) -> Publisher {
    Publisher::open_from(&host.ns, from, Arc::new(Journal::new())).expect("a publisher")
}

fn duplicates(daemon: &Daemon<'_>, kind: &str, count: u64) {
    let metrics = counted(daemon, "bre_cache_duplicates_total", &[("kind", kind)], count);
    assert_eq!(metrics.count("bre_cache_duplicates_total", &[("kind", kind)]), count, "{kind}");
}

/// The frame of this key that the endpoint has.
fn held(socket: &UdpSocket, endpoint: &Host, key: FrameKey) -> Option<Vec<u8>> {
    let answers = ask(socket, endpoint.nack_address(), &nack(key), 1);
    let first = answers.first().expect("an answer");
    if Answer::parse(first, key.seq_num()) == Ok(Answer::Miss) {
        return None;
    }
    let mut other = vec![0; 2_048];
    let length = socket.recv(&mut other).expect("frame and ACK");
    other.truncate(length);
    [first, &other].into_iter().find(|bytes| bytes.len() != 16).cloned()
}

/// Frames of a source that no list names are counted and not stored, until the list names it.
fn no_publisher(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("retry.toml");
    let name = |source| fs::write(&file, format!("publishers = \"fd11::/16,{source}/128\"\n")).expect("a file");
    name(client.addr);
    let mut daemon = start(endpoint, xdp, &["-config", file.to_str().expect("a name")]);
    let (stranger, named) = (publisher(client, STRANGER), publisher(client, client.addr));
    for seq_num in 1..=20 {
        stranger.send(group(0), &frame(key(seq_num), 300, 1)).expect("a frame leaves");
    }
    named.send(group(0), &frame(key(21), 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    let metrics = counted(&daemon, "bre_frames_dropped_total", &[("reason", "no_publisher")], 20);
    assert_eq!(metrics.count("bre_frames_received_total", &[]), 21);
    assert_eq!(metrics.count("bre_fill_kernel_frames_total", &[]), u64::from(xdp != "off"));
    let socket = asker(client);
    assert_eq!(held(&socket, endpoint, key(1)), None, "of a stranger");
    assert_eq!(held(&socket, endpoint, key(21)), Some(frame(key(21), 300, 1)));

    // The list is live.
    name(STRANGER);
    daemon.child().signal(Signal::SIGHUP).expect("it is told");
    counted(&daemon, "bre_config_reloads_total", &[("result", "ok")], 1);
    stranger.send(group(0), &frame(key(22), 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], 2);
    named.send(group(0), &frame(key(23), 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_dropped_total", &[("reason", "no_publisher")], 21);
    assert_eq!(held(&socket, endpoint, key(23)), None, "named no more");
    assert_eq!(held(&socket, endpoint, key(22)), Some(frame(key(22), 300, 1)));
}

/// Other bytes under a key that is held change nothing, whichever number they have, while the flow goes on.
fn conflict(xdp: &str) {
    const FRAMES: u64 = 200;
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = start(endpoint, xdp, &["-replace-after", "1h"]);
    let (forger, honest) = (publisher(client, STRANGER), publisher(client, client.addr));
    for seq_num in 1..=FRAMES {
        honest.send(group(0), &frame(key(seq_num), 300, 1)).expect("a frame leaves");
    }
    counted(&daemon, "bre_frames_cached_total", &[], FRAMES);
    let forge = || {
        for seq_num in 1..=FRAMES {
            forger.send(group(0), &frame(key(seq_num), 300, 2)).expect("a frame leaves");
        }
    };
    forge();
    duplicates(&daemon, "conflict", FRAMES);
    honest.send(group(0), &frame(key(FRAMES + 1_000), 300, 1)).expect("a frame leaves");
    counted(&daemon, "bre_frames_cached_total", &[], FRAMES + 1);
    // The forger's numbers would be those of a publisher that was started again, had the flow not gone on.
    thread::sleep(Duration::from_millis(1_100));
    forge();
    duplicates(&daemon, "conflict", 2 * FRAMES);
    duplicates(&daemon, "replaced", 0);
    let socket = asker(client);
    for seq_num in [1, 100, FRAMES, FRAMES + 1_000] {
        assert_eq!(held(&socket, endpoint, key(seq_num)), Some(frame(key(seq_num), 300, 1)), "{seq_num}");
    }
}

/// A publisher that is started again replaces what it sent before, but for the frames of its first second.
fn restarted(xdp: &str) {
    const FRAMES: u64 = 200;
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = start(endpoint, xdp, &["-replace-after", "1h"]);
    let publish = publisher(client, client.addr);
    let all = |numbers: std::ops::RangeInclusive<u64>, bytes: u8| {
        for seq_num in numbers {
            publish.send(group(0), &frame(key(seq_num), 300, bytes)).expect("a frame leaves");
        }
    };
    all(1..=FRAMES, 1);
    counted(&daemon, "bre_frames_cached_total", &[], FRAMES);
    all(1..=50, 2);
    duplicates(&daemon, "conflict", 50);
    thread::sleep(Duration::from_millis(1_100));
    all(51..=FRAMES, 2);
    duplicates(&daemon, "replaced", FRAMES - 50);
    let socket = asker(client);
    for (seq_num, bytes) in [(50, 1), (51, 2), (FRAMES, 2)] {
        assert_eq!(held(&socket, endpoint, key(seq_num)), Some(frame(key(seq_num), 300, bytes)), "{seq_num}");
    }
}

/// `-replace-after` is over: the newest bytes win.
fn replaced_after(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = start(endpoint, xdp, &["-replace-after", "1s"]);
    let publish = publisher(client, client.addr);
    let send = |bytes| publish.send(group(0), &frame(key(1_000), 300, bytes)).expect("a frame leaves");
    send(1);
    counted(&daemon, "bre_frames_cached_total", &[], 1);
    send(2);
    duplicates(&daemon, "conflict", 1);
    thread::sleep(Duration::from_millis(1_100));
    send(3);
    duplicates(&daemon, "replaced", 1);
    assert_eq!(held(&asker(client), endpoint, key(1_000)), Some(frame(key(1_000), 300, 3)));
}

both_paths! {
    no_publisher: no_publisher_native, no_publisher_off;
    conflict: conflict_native, conflict_off;
    restarted: restarted_native, restarted_off;
    replaced_after: replaced_after_native, replaced_after_off;
}

/// Addresses of the client that forged ADVERTs come from.
const FORGERS: u16 = 80;
/// ADVERTs of each.
const OF_EACH: u32 = 16;

fn advert(nack: Ipv6Addr, instance_id: u32, interval_s: u16) -> [u8; ADVERT_LEN] {
    let scope = BeaconScope::Site.byte();
    let (nack_addr, flags) = (nack.octets(), FLAG_MULTICAST);
    let advert = Advert { scope, nack_addr, nack_port: 9300, tier: 0, preference: 255, interval_s, flags, instance_id };
    advert.to_bytes()
}

/// Sends to the beacon group from an address of the host.
fn announcer(host: &Host, from: Ipv6Addr) -> UdpSocket {
    let index = host.ns.interface_index(INTERFACE).expect("an interface");
    let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(from, 0, 0, 0))).expect("a socket");
    socket2::SockRef::from(&socket).set_multicast_if_v6(index).expect("an option");
    socket.connect(SocketAddrV6::new(group(BEACON_INDEX), BEACON_PORT, 0, 0)).expect("a group");
    socket
}

/// The instance ids of the endpoints that this one tells of.
fn members(endpoint: &Host) -> Vec<u64> {
    let admin = "[::1]:9401".parse().expect("an address");
    let answer = http::exchange(&endpoint.ns, admin, "GET", "/v1/cluster/members", None, b"").expect("an answer");
    let told: serde_json::Value = serde_json::from_slice(&answer.1).expect("JSON");
    let all = told["endpoints"].as_array().expect("a list");
    let id = |one: &serde_json::Value| one["instance_id"].as_str()?.strip_prefix("0x").map(str::to_owned);
    all.iter().filter_map(|one| u64::from_str_radix(&id(one)?, 16).ok()).collect()
}

/// A thousand forged ADVERTs push out no endpoint that is known, and lock out none that comes.
fn advert_flood(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let forgers: Vec<Ipv6Addr> = (1..=FORGERS).map(|last| Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0xf0f0, last)).collect();
    fabric.add_addresses("client", &forgers).expect("addresses");
    let daemon = start(endpoint, xdp, &["-admin-addr", "[::1]:9401"]);
    let honest = announcer(client, client.addr);
    // Heard twice, half an interval apart.
    honest.send(&advert(client.addr, 1, 1)).expect("it leaves");
    thread::sleep(Duration::from_millis(600));
    honest.send(&advert(client.addr, 1, 3_600)).expect("it leaves");
    counted(&daemon, "bre_beacon_adverts_received_total", &[], 2);
    let mut heard = 2;
    for (forger, first) in forgers.iter().zip((100..).step_by(OF_EACH as usize)) {
        let socket = announcer(client, *forger);
        for id in first..first + OF_EACH {
            socket.send(&advert(*forger, id, u16::MAX)).expect("it leaves");
        }
        heard += u64::from(OF_EACH);
        counted(&daemon, "bre_beacon_adverts_received_total", &[], heard);
    }
    // In the name of the one that is known.
    announcer(client, forgers[0]).send(&advert(forgers[0], 1, 1)).expect("it leaves");
    counted(&daemon, "bre_beacon_dropped_total", &[("reason", "contested")], 1);
    assert!(members(endpoint).contains(&1), "the one that is known stays");
    honest.send(&advert(client.addr, 2, 60)).expect("it leaves");
    counted(&daemon, "bre_beacon_adverts_received_total", &[], heard + 1);
    let known = members(endpoint);
    assert!(known.contains(&1) && known.contains(&2), "a newcomer is heard\n{}", daemon.log());
    assert_eq!(known.len(), 1_024);
    let displaced = daemon.metrics().expect("a scrape").count("bre_beacon_dropped_total", &[("reason", "table_full")]);
    assert_eq!(displaced, u64::from(u32::from(FORGERS) * OF_EACH) + 2 - 1_024);
}

/// An ADVERT that names another host's address as upstream makes the endpoint ask neither of the two.
fn forged_upstream(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = start(endpoint, xdp, &["-proxy-enabled", "-proxy-discover", "-proxy-timeout", "100ms"]);
    let upstream = |address| {
        let socket = client.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(address, 9300, 0, 0))).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        socket
    };
    let [victim, forger] = [client.addr, STRANGER].map(upstream);
    let is_asked = |socket: &UdpSocket| socket.recv(&mut [0; 128]).is_ok();
    let announce = announcer(client, STRANGER);
    announce.send(&advert(client.addr, 7, 60)).expect("it leaves");
    counted(&daemon, "bre_beacon_elsewhere_total", &[], 1);
    // Upstreams are looked for once a second.
    thread::sleep(Duration::from_millis(1_500));
    let asks = asker(client);
    assert_eq!(held(&asks, endpoint, key(1)), None);
    counted(&daemon, "bre_proxy_failed_total", &[("reason", "no_upstream")], 1);
    assert!(!is_asked(&victim) && !is_asked(&forger), "asked on the word of another");
    // At its own address it is an upstream like others.
    announce.send(&advert(STRANGER, 7, 60)).expect("it leaves");
    counted(&daemon, "bre_upstream_up", &[], 1);
    assert_eq!(held(&asks, endpoint, key(2)), None);
    assert!(is_asked(&forger) && !is_asked(&victim), "{}", daemon.log());
}

/// A manifest from a named sender's address that says that it was made in 2106 takes nothing over.
fn forged_manifest(xdp: &str) {
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let sender = client.addr.to_string();
    let more = ["-source-mode", "ssm", "-scope", "site", "-ssm-bootstrap-manifest", &sender];
    let daemon = start(endpoint, xdp, &more);
    let manifests = ManifestSender::open(&client.ns, client.addr).expect("a sender");
    let now = u32::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("soon");
    let send = |epoch_seconds, publisher| {
        let publishers = &[publisher];
        let named = Named { epoch_seconds, ttl_seconds: u16::MAX, publishers, shutdown: false };
        manifests.send(group(BEACON_INDEX), named).expect("it leaves");
    };
    send(now, client.addr);
    counted(&daemon, "bre_ssm_sources", &[], 1);
    send(u32::MAX, STRANGER);
    counted(&daemon, "bre_manifests_dropped_total", &[("reason", "ahead")], 1);
    let (forger, honest) = (publisher(client, STRANGER), publisher(client, client.addr));
    forger.send(group_in(0xff35, 0), &frame(key(1), 300, 2)).expect("a frame leaves");
    // The sender's next word is believed.
    send(now + 1, client.addr);
    counted(&daemon, "bre_manifests_received_total", &[], 3);
    honest.send(group_in(0xff35, 0), &frame(key(2), 300, 1)).expect("a frame leaves");
    let metrics = counted(&daemon, "bre_frames_cached_total", &[], 1);
    assert_eq!(metrics.count("bre_manifests_dropped_total", &[("reason", "stale")]), 0);
    let asks = asker(client);
    assert_eq!(held(&asks, endpoint, key(1)), None, "of a source that the forged one named");
    assert_eq!(held(&asks, endpoint, key(2)), Some(frame(key(2), 300, 1)));
}

both_paths! {
    advert_flood: advert_flood_native, advert_flood_off;
    forged_upstream: forged_upstream_native, forged_upstream_off;
    forged_manifest: forged_manifest_native, forged_manifest_off;
}
