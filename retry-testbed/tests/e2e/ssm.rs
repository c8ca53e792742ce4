//! Source-specific multicast: frames of named publishers alone, named for good or by a manifest that comes,
//! changes and ends, and not a frame lost of those who stay.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, Host, group_in};
use retry_testbed::peers::announce::{ManifestSender, Named};
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::peers::frames::{Flow, Kind};
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{PATIENCE, ask, asker, binary, counted, eventually, flags, repairs, two_hosts};

const SITE: u16 = 0xFF35;
const FIRST: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 2);
const SECOND: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x12);
const THIRD: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x13);
const MANIFESTS: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0xb0);

fn ssm<'a>(xdp: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = flags(xdp, &["-source-mode", "ssm", "-scope", "site"]);
    all.extend(more);
    all
}

/// A publisher of one flow of transactions in shard 1.
struct Source {
    publish: Publisher,
    flow: Flow,
}

impl Source {
    fn new(host: &Host, address: Ipv6Addr) -> Self {
        let journal = Arc::new(Journal::new());
        let publish = Publisher::open_from(&host.ns, address, journal).expect("a publisher");
        Self { publish, flow: Flow::new(Kind::Tx, 1, 2, 100..=400) }
    }

    fn send(&mut self) -> (FrameKey, Vec<u8>) {
        let frame = self.flow.next_frame();
        let key = self.publish.send(group_in(SITE, 1), &frame).expect("a frame leaves").expect("a key");
        (key, frame)
    }

    /// Whether the endpoint takes in the frame that is sent now.
    fn is_heard(&mut self, client: &Host, endpoint: &Host) -> bool {
        let (key, _) = self.send();
        // What is received at all is received long before its NACK is.
        std::thread::sleep(Duration::from_millis(100));
        let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
        let answer = answers.first().map(|bytes| Answer::parse(bytes, key.seq_num()));
        let heard = matches!(answer, Some(Ok(Answer::Ack { .. })));
        assert!(heard || answer == Some(Ok(Answer::Miss)), "{answer:?}");
        heard
    }
}

/// Through a bridge that forwards a group's frames only to those who asked for their source.
fn named_publisher(xdp: &str) {
    let fabric = Fabric::bridged(&["endpoint", "client", "named", "stranger"], 1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let host = |name| fabric.host(name).expect("a host");
    let named = host("named").addr.to_string();
    let daemon =
        Daemon::start(&binary(), &endpoint.ns, &ssm(xdp, &["-ssm-publishers-static", &named])).expect("a daemon");
    fabric.await_members("endpoint", &[group_in(SITE, 1)]).expect("members");
    let (mut one, mut other) =
        (Source::new(host("named"), host("named").addr), Source::new(host("stranger"), host("stranger").addr));
    let mut keys = Vec::new();
    for _ in 0..50 {
        keys.push(one.send());
        other.send();
    }
    counted(&daemon, "bre_frames_cached_total", &[], 50);
    assert!(!other.is_heard(client, endpoint));
    let metrics = daemon.metrics().expect("a scrape");
    assert_eq!(metrics.count("bre_frames_received_total", &[]), 50, "the stranger's frames do not come up at all");
    assert_eq!(metrics.count("bre_frames_cached_total", &[]), 50);

    // Repairs go to the source-specific group, with the endpoint as their source.
    let (key, bytes) = keys.swap_remove(7);
    let port = Capture::start(fabric.bridge().expect("a bridge"), "p1").expect("a capture");
    let answers = ask(&asker(client), endpoint.nack_address(), &nack(key), 1);
    assert_eq!(
        Answer::parse(&answers[0], key.seq_num()),
        Ok(Answer::Ack { multicast: true, unicast: false }),
        "{}",
        daemon.log()
    );
    let seen = port.wait(1, PATIENCE, |packet| repairs(packet, key));
    let repair = seen.iter().find(|packet| repairs(packet, key)).expect("a repair");
    let repair = retry_testbed::net::packet::Packet::check(&repair.bytes).expect("a right packet");
    assert_eq!((*repair.src.ip(), *repair.dst.ip()), (endpoint.addr, group_in(SITE, 1)));
    assert!(repair.payload == bytes, "the frame, byte for byte");
}

/// How a manifest that named the second publisher ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A later one names others.
    Replaced,
    /// Its sender says that it goes.
    Shutdown,
    /// Nothing more is heard of it.
    Silence,
}

/// A publisher that manifests name is heard while they do; the one of the settings loses nothing meanwhile.
fn manifest(xdp: &str, beacon: u16, end: End) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    for address in [SECOND, THIRD, MANIFESTS] {
        client.add_address(address).expect("an address");
    }
    let (first, sender) = (FIRST.to_string(), MANIFESTS.to_string());
    let named = ssm(xdp, &["-ssm-publishers-static", &first, "-ssm-bootstrap-manifest", &sender]);
    let daemon = Daemon::start(&binary(), &endpoint.ns, &named).expect("a daemon");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stays = scope.spawn(|| {
            let mut first = Source::new(client, FIRST);
            let mut sent = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                sent.push(first.send().0);
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        let stop_at_the_end = StopOnDrop(&stop);
        let mut second = Source::new(client, SECOND);
        counted(&daemon, "bre_frames_cached_total", &[], 20);
        assert!(!second.is_heard(client, endpoint), "no manifest and no flag names it");

        // One that is not configured names it in vain.
        let foreign = ManifestSender::open(&client.ns, THIRD).expect("a sender");
        let group = group_in(beacon, 0xFFFD);
        let now =
            u32::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("soon");
        let names = Named { epoch_seconds: now, ttl_seconds: 600, publishers: &[SECOND], shutdown: false };
        foreign.send(group, names).expect("it leaves");
        assert!(!second.is_heard(client, endpoint), "a stranger's manifest counts for nothing");
        // In the source-specific group it does not come up at all.
        if beacon != SITE {
            counted(&daemon, "bre_manifests_dropped_total", &[("reason", "source")], 1);
        }
        assert_eq!(counted(&daemon, "bre_ssm_sources", &[], 1).count("bre_ssm_sources", &[]), 1);

        let sender = ManifestSender::open(&client.ns, MANIFESTS).expect("a sender");
        let ttl_seconds = if end == End::Silence { 3 } else { 600 };
        eventually("the second publisher is heard", || {
            sender.send(group, Named { ttl_seconds, ..names }).expect("it leaves");
            second.is_heard(client, endpoint)
        });
        let metrics = counted(&daemon, "bre_manifests_received_total", &[], 1);
        assert_eq!(metrics.count("bre_ssm_sources", &[]), 2, "the one of the settings, and the one of the manifest");
        let later = Named { epoch_seconds: now + 5, publishers: &[THIRD], ..names };
        eventually("the second publisher is not heard any more", || {
            match end {
                End::Replaced => sender.send(group, later).expect("it leaves"),
                End::Shutdown => sender.send(group, Named { shutdown: true, ..later }).expect("it leaves"),
                End::Silence => {}
            }
            !second.is_heard(client, endpoint)
        });
        // What an older manifest says does not come back.
        if end != End::Silence {
            sender.send(group, names).expect("it leaves");
            assert!(!second.is_heard(client, endpoint), "an older manifest counts for nothing");
        }
        if end == End::Replaced {
            counted(&daemon, "bre_manifests_dropped_total", &[("reason", "stale")], 1);
        }
        let mut third = Source::new(client, THIRD);
        if end == End::Replaced {
            eventually("the third publisher is heard", || third.is_heard(client, endpoint));
        } else {
            assert!(!third.is_heard(client, endpoint), "only the publisher that left had named it");
        }

        drop(stop_at_the_end);
        let sent = stays.join().expect("the first publisher");
        let socket = asker(client);
        let held = |key: FrameKey| {
            let answers = ask(&socket, endpoint.nack_address(), &nack(key), 1);
            answers.first().map(|bytes| Answer::parse(bytes, key.seq_num()))
        };
        let ack = Some(Ok(Answer::Ack { multicast: true, unicast: false }));
        let last = *sent.last().expect("many frames");
        eventually("the last frame is there", || held(last) == ack);
        let lost: Vec<_> = sent.iter().filter(|key| held(**key) != ack).collect();
        assert!(lost.is_empty(), "lost {lost:?} of {}", sent.len());
    });
}

/// Ends the thread that publishes, also when an assertion has failed.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn manifest_replaced(xdp: &str) {
    manifest(xdp, SITE, End::Replaced);
}

fn manifest_shut_down(xdp: &str) {
    manifest(xdp, SITE, End::Shutdown);
}

/// Senders of manifests that are older than source-specific beacon groups use the any-source one.
fn manifest_runs_out(xdp: &str) {
    manifest(xdp, 0xFF05, End::Silence);
}

both_paths! {
    named_publisher: named_publisher_native, named_publisher_off;
    manifest_replaced: manifest_replaced_native, manifest_replaced_off;
    manifest_shut_down: manifest_shut_down_native, manifest_shut_down_off;
    manifest_runs_out: manifest_runs_out_native, manifest_runs_out_off;
}
