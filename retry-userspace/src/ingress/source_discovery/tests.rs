use std::net::UdpSocket;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use retry_common::wire::manifest::FLAG_SHUTDOWN;
use tokio::runtime::Runtime;

use super::*;
use crate::ingress::sources::MOST_SOURCES;
use crate::ingress::testing::{Dns, IMPATIENT, count, manifest, with_dns};
use crate::net::testing::SOON;

fn ip(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last)
}

fn set(last: &[u16]) -> BTreeSet<Ipv6Addr> {
    last.iter().map(|last| ip(*last)).collect()
}

fn name(name: &str) -> Host {
    Host::Name(name.to_owned())
}

fn config() -> Config {
    Config {
        ssm: Ssm {
            manifests: vec![Host::Address(ip(50)), name("manifests.test")],
            beacons: vec![Host::Address(ip(60)), Host::Address(ip(99))],
            subtree_announcers: vec![name("subtrees.test")],
            publishers: vec![Host::Address(ip(1)), name("publisher.test")],
            refresh: Duration::from_millis(100),
        },
        own: Some(ip(99)),
        shard_bits: 2,
        is_ssm: true,
    }
}

/// Waits until the newest set told is `expected`. No set before it may lack one of `always`, whose frames would be lost.
fn told(
    runtime: &Runtime,
    to: &Receiver<BTreeSet<Ipv6Addr>>,
    expected: &BTreeSet<Ipv6Addr>,
    always: &BTreeSet<Ipv6Addr>,
) {
    let start = Instant::now();
    let mut last = None;
    while last.as_ref() != Some(expected) {
        assert!(start.elapsed() < SOON, "{last:?} is not {expected:?}");
        runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
        for set in to.try_iter() {
            assert!(always.is_subset(&set), "{set:?} lacks one of {always:?}");
            last = Some(set);
        }
    }
}

#[test]
fn names_and_manifests_reach_the_sockets_live() {
    with_dns("names_and_manifests_reach_the_sockets_live", IMPATIENT, |_, runtime| {
        let counters = Arc::new(UserCounters::default());
        let control = Arc::new(Control::new(config(), Arc::clone(&counters)));
        assert_eq!(control.wanted(), set(&[1]), "addresses need no DNS");
        let dns = runtime.block_on(Dns::start(&[
            ("publisher.test", &[ip(2), ip(6), ip(99)]),
            ("manifests.test", &[ip(51)]),
            ("subtrees.test", &[ip(70)]),
        ]));
        let ((data, to_data), (beacons, to_beacons)) = (channel(), channel());
        let cancel = CancellationToken::new();
        let kept = runtime.spawn(Arc::clone(&control).keep(data, beacons, cancel.clone()));
        told(runtime, &to_data, &set(&[1, 2, 6]), &set(&[1]));
        told(runtime, &to_beacons, &set(&[50, 51, 60, 70]), &set(&[50, 60]));
        // The other name's sender is heard now, a stranger is not.
        let (three, four) = ([ip(3).octets()], [ip(4).octets()]);
        control.hear(&manifest(&three, 10, 0), ip(51), monotonic_ns());
        control.hear(&manifest(&four, 10, 0), ip(52), monotonic_ns());
        control.hear(&manifest(&four, 9, 0), ip(51), monotonic_ns());
        told(runtime, &to_data, &set(&[1, 2, 3, 6]), &set(&[1, 2, 6]));
        assert_eq!(count(&counters, Counter::ManifestsForeign), 1);
        assert_eq!(count(&counters, Counter::ManifestsStale), 1);
        // No server answers for a while: all of them are kept.
        runtime.block_on(dns.stop());
        let errors = count(&counters, Counter::ResolveErrors);
        while count(&counters, Counter::ResolveErrors) == errors {
            told(runtime, &to_data, &set(&[1, 2, 3, 6]), &set(&[1, 2, 3, 6]));
        }
        // Then one publisher has moved, and one has not.
        let dns = runtime.block_on(Dns::start(&[("publisher.test", &[ip(5), ip(6)])]));
        told(runtime, &to_data, &set(&[1, 3, 5, 6]), &set(&[1, 3, 6]));
        control.hear(&manifest(&[], 11, FLAG_SHUTDOWN), ip(51), monotonic_ns());
        told(runtime, &to_data, &set(&[1, 5, 6]), &set(&[1, 5, 6]));
        // Told anew after each refresh, so that what could not be joined is tried again.
        told(runtime, &to_data, &set(&[1, 5, 6]), &set(&[1, 5, 6]));
        cancel.cancel();
        runtime.block_on(async { tokio::time::timeout(SOON, kept).await }).expect("soon").expect("no panic");
        runtime.block_on(dns.stop());
    });
}

#[test]
fn a_name_server_that_is_silent_holds_up_no_manifest() {
    with_dns("a_name_server_that_is_silent_holds_up_no_manifest", "", |_, runtime| {
        let silent = UdpSocket::bind("[::1]:53").expect("a port");
        let control = Arc::new(Control::new(config(), Arc::default()));
        let ((data, to_data), (beacons, to_beacons)) = (channel(), channel());
        let cancel = CancellationToken::new();
        let kept = runtime.spawn(Arc::clone(&control).keep(data, beacons, cancel.clone()));
        told(runtime, &to_beacons, &set(&[50, 60]), &set(&[50, 60]));
        let three = [ip(3).octets()];
        control.hear(&manifest(&three, 10, 0), ip(50), monotonic_ns());
        let start = Instant::now();
        told(runtime, &to_data, &set(&[1, 3]), &set(&[1]));
        // The resolver gives up after 5 s at the earliest.
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        cancel.cancel();
        runtime.block_on(async { tokio::time::timeout(SOON, kept).await }).expect("soon").expect("no panic");
        drop(silent);
    });
}

#[test]
fn with_any_source_manifests_change_nothing() {
    let counters = Arc::new(UserCounters::default());
    let control = Control::new(Config { is_ssm: false, ..config() }, Arc::clone(&counters));
    let three = [ip(3).octets()];
    control.hear(&manifest(&three, 1, 0), ip(50), 0);
    assert_eq!(control.wanted(), BTreeSet::new());
    assert_eq!(count(&counters, Counter::ManifestsForeign), 1);
}

#[test]
fn a_manifest_that_names_too_many_sources_is_counted() {
    let counters = Arc::new(UserCounters::default());
    let control = Control::new(config(), Arc::clone(&counters));
    // Our own address among them is none of these.
    let many: Vec<_> = (1..=u16::try_from(MOST_SOURCES).expect("small") + 2).map(|last| ip(last).octets()).collect();
    for _ in 0..2 {
        control.hear(&manifest(&many, 1, 0), ip(50), monotonic_ns());
    }
    assert_eq!(count(&counters, Counter::ManifestsFull), 2);
    control.hear(&manifest(&many[1..], 1, 0), ip(50), monotonic_ns());
    assert_eq!(count(&counters, Counter::ManifestsFull), 2);
    assert!(control.wanted().contains(&ip(2)));
}

/// One that says that it was made in 2106 would make all that follows stale.
#[test]
fn a_manifest_of_the_future_is_counted_and_changes_nothing() {
    let counters = Arc::new(UserCounters::default());
    let control = Control::new(config(), Arc::clone(&counters));
    let (two, three) = ([ip(2).octets()], [ip(3).octets()]);
    control.hear(&manifest(&two, 1, 0), ip(50), monotonic_ns());
    control.hear(&manifest(&three, u32::MAX, 0), ip(50), monotonic_ns());
    assert_eq!((count(&counters, Counter::ManifestsAhead), count(&counters, Counter::ManifestsStale)), (1, 0));
    assert_eq!(control.wanted(), set(&[1, 2]));
    control.hear(&manifest(&three, 2, 0), ip(50), monotonic_ns());
    assert_eq!(control.wanted(), set(&[1, 3]));
}
