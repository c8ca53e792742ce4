//! Records for `retry-endpoint watch`: none while it does not ask, and what they say when it does.

use retry_common::abi::{Settings, Watched, setting_flag as flag, watch_flag};
use retry_common::counter::Counter;
use retry_common::latency::Measured;
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::xdp::expect::Out;
use retry_testbed::xdp::fixture::{Loaded, NACK_ADDRESS, monotonic_ns, slow_machine};
use retry_userspace::parts::datapath::watch::PinnedWatch;

use crate::table::{Ask, Case, Scene, Step};
use crate::verdicts::{BASE, with_program};

const HOUR_NS: u64 = 3_600_000_000_000;

/// Flags, limits, NACKs before, what is asked for; then verdict, reason, and length of the answer in place.
type Row = (u32, [u32; 4], u32, Ask, Measured, Option<Counter>, usize);

fn open(loaded: &Loaded) -> PinnedWatch {
    PinnedWatch::open(loaded.pins()).expect("the pins are this build's")
}

fn take(watch: &mut PinnedWatch) -> Vec<(Watched, Vec<u8>)> {
    std::iter::from_fn(|| watch.take()).collect()
}

fn nack(scene: &Scene<'_>, ask: Ask) -> Vec<u8> {
    scene.nack(&Step { ask, flags: 0, from: 0, out: Out::Miss, counted: &[] }).build()
}

#[test]
fn what_is_watched_says_what_was_decided() {
    with_program("what_is_watched_says_what_was_decided", |loaded| {
        let base = loaded.settings();
        let limited = [0, 0, 1, 0];
        let table: &[Row] = &[
            (
                flag::UNICAST | flag::SUPPRESS_ACK,
                [0; 4],
                0,
                Ask::Have(0),
                Measured::InPlace,
                Some(Counter::CacheHits),
                462,
            ),
            (flag::UNICAST, [0; 4], 0, Ask::Have(0), Measured::Clones, Some(Counter::CacheHits), 0),
            (flag::UNICAST, [0; 4], 0, Ask::Lack, Measured::Miss, Some(Counter::CacheMisses), 78),
            (flag::UNICAST, limited, 1, Ask::Have(0), Measured::Silence, Some(Counter::LimitedSequence), 0),
            (
                flag::UNICAST | flag::THROTTLE_RESPONSE,
                limited,
                1,
                Ask::Have(0),
                Measured::Throttled,
                Some(Counter::LimitedSequence),
                78,
            ),
        ];
        let mut watch = open(loaded);
        for (number, (flags, limits, before, ask, verdict, reason, answer)) in (800..).zip(table) {
            loaded.set(Case { flags: *flags, limits: *limits, ..BASE }.settings(base));
            let mut scene = Scene::new(loaded, number);
            let packet = nack(&scene, *ask);
            for _ in 0..*before {
                scene.loaded().run(&packet).expect("a legal length");
            }
            assert_eq!(take(&mut watch), [], "nothing is written while no process asks");
            for (flags, captured) in [(0, 0), (watch_flag::PACKETS, *answer)] {
                if *before == 0 || flags == 0 {
                    watch.renew(monotonic_ns() + HOUR_NS, 1, flags);
                }
                let ran = scene.loaded().run(&packet).expect("a legal length");
                let records = take(&mut watch);
                let [(asked, came), (decided, left)] = records.as_slice() else { panic!("{records:?}") };
                assert_eq!((asked.kind, decided.kind), (Watched::ASKED, Watched::DECIDED));
                assert_eq!((asked.at_ns, asked.cpu), (decided.at_ns, decided.cpu), "{verdict:?}");
                assert!(came == &packet && usize::from(asked.length) == packet.len(), "{verdict:?}");
                assert_eq!(asked.ifindex, base.nack_ifindex);
                assert_eq!(decided.verdict, *verdict as u8);
                assert_eq!(decided.reason, reason.map_or(0, |reason| reason as u16 + 1), "{verdict:?}");
                assert!(decided.took_ns > 0);
                if *before == 0 || flags == 0 {
                    assert_eq!(left.len(), captured, "{verdict:?}");
                    assert!(left.is_empty() || left == &ran.packet, "{verdict:?}");
                }
            }
        }
    });
}

#[test]
fn what_is_no_nack_is_told_with_its_reason_and_bytes() {
    with_program("what_is_no_nack_is_told_with_its_reason_and_bytes", |loaded| {
        let mut watch = open(loaded);
        watch.renew(monotonic_ns() + HOUR_NS, 1, 0);
        let from = std::net::SocketAddrV6::new("fd10::99".parse().expect("an address"), 40_000, 0, 0);
        let short = PacketBuilder::udp(from, NACK_ADDRESS, &[7; 20]).build();
        loaded.run(&short).expect("a legal length");
        loaded.set(Settings { lease_until_ns: 0, watch_until_ns: u64::MAX, ..loaded.settings() });
        loaded.run(&short).expect("a legal length");
        let records = take(&mut watch);
        let said: Vec<_> = records.iter().map(|(record, _)| (record.kind, record.reason)).collect();
        let number = |counter: Counter| counter as u16 + 1;
        assert_eq!(
            said,
            [(Watched::REFUSED, number(Counter::NackWrongSize)), (Watched::PASSED, number(Counter::PassedLease))]
        );
        assert!(records.iter().all(|(_, bytes)| bytes == &short));
        // It gives the words back.
        drop(watch);
        loaded.run(&short).expect("a legal length");
        assert_eq!(take(&mut open(loaded)), []);
    });
}

#[test]
fn a_slow_watcher_misses_records_and_one_in_some_is_drawn() {
    with_program("a_slow_watcher_misses_records_and_one_in_some_is_drawn", |loaded| {
        let runs = if slow_machine() { 6_000 } else { 12_000 };
        let mut watch = open(loaded);
        let mut scene = Scene::new(loaded, 870);
        let packet = nack(&scene, Ask::Lack);
        let dropped = |scene: &mut Scene<'_>| scene.loaded().counters().expect("counters").get(Counter::WatchDropped);
        let before = dropped(&mut scene);
        watch.renew(monotonic_ns() + HOUR_NS, 1, 0);
        for _ in 0..runs {
            scene.loaded().run(&packet).expect("a legal length");
        }
        let kept = u64::try_from(take(&mut watch).len()).expect("few");
        assert!(kept > 1_000, "{kept}");
        assert_eq!(dropped(&mut scene) - before, 2 * runs - kept);

        watch.renew(monotonic_ns() + HOUR_NS, 8, 0);
        for _ in 0..2_000 {
            scene.loaded().run(&packet).expect("a legal length");
        }
        let drawn = take(&mut watch).len();
        // Both records of a NACK, or neither.
        assert!(drawn.is_multiple_of(2) && (300..750).contains(&drawn), "{drawn} records of 2000 NACKs, one in 8");
    });
}
