//! What a host that can multicast, or that speaks as an endpoint does, can make the cache hold, evict or refuse.

use std::fs;
use std::net::{Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host, group};
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
    let daemon = start(endpoint, xdp, &[]);
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

/// A publisher that is started again replaces what it sent before, within a second.
fn restarted(xdp: &str) {
    const FRAMES: u64 = 200;
    let fabric = fabric();
    let (endpoint, client) = two_hosts(&fabric);
    let daemon = start(endpoint, xdp, &[]);
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
