//! How long the program takes, by what it did.

use retry_common::abi::setting_flag as flag;
use retry_common::latency::Measured;
use retry_testbed::xdp::fixture::{Loaded, monotonic_ns};

use crate::fill::plain_frame;
use crate::table::{Ask, Case, Scene, Step};
use crate::verdicts::{BASE, with_program};
use retry_testbed::xdp::expect::Out;

/// How many of each were measured, and nanoseconds of all.
fn measured(loaded: &Loaded) -> Vec<(Measured, u64, u64)> {
    let all = loaded.latency().expect("the map is there");
    all.into_iter().map(|(one, histogram)| (one, histogram.count(), histogram.sum_ns)).collect()
}

/// Sends one NACK and returns what was measured of it.
fn ask(scene: &mut Scene<'_>, ask: Ask, from: u8) -> Vec<Measured> {
    let nack = scene.nack(&Step { ask, flags: 0, from, out: Out::Miss, counted: &[] }).build();
    let (before, began_ns) = (measured(scene.loaded()), monotonic_ns());
    scene.loaded().run(&nack).expect("a packet of a legal length");
    let (after, longest_ns) = (measured(scene.loaded()), monotonic_ns() - began_ns);
    let mut found = Vec::new();
    for ((one, count, sum), (_, count_before, sum_before)) in after.into_iter().zip(before) {
        found.extend(vec![one; usize::try_from(count - count_before).expect("few")]);
        assert!((count == count_before) == (sum == sum_before), "{one:?}");
        assert!(sum - sum_before < longest_ns, "{one:?} took {} ns of {longest_ns}", sum - sum_before);
    }
    found
}

#[test]
fn every_verdict_has_its_histogram() {
    with_program("every_verdict_has_its_histogram", |loaded| {
        let base = loaded.settings();
        let off = [0; 4];
        let table: &[(u32, [u32; 4], Ask, Measured)] = &[
            (flag::UNICAST | flag::SUPPRESS_ACK, off, Ask::Have(0), Measured::InPlace),
            (flag::UNICAST, off, Ask::Have(0), Measured::Clones),
            (0, off, Ask::Have(0), Measured::Ack),
            (flag::UNICAST, off, Ask::Lack, Measured::Miss),
            (flag::UNICAST | flag::SUPPRESS_MISS, off, Ask::Lack, Measured::Silence),
            (flag::UNICAST, off, Ask::Oversize, Measured::HandedOver),
            (flag::UNICAST | flag::STORE, off, Ask::Lack, Measured::HandedOver),
            (flag::UNICAST | flag::RECOVERY | flag::SUPPRESS_MISS, off, Ask::Lack, Measured::HandedOver),
        ];
        for (number, (flags, limits, wanted, expected)) in (900..).zip(table) {
            let case = Case { flags: flags | flag::LATENCY, limits: *limits, ..BASE };
            loaded.set(case.settings(base));
            assert_eq!(ask(&mut Scene::new(loaded, number), *wanted, 0), [*expected], "{flags:#x} {wanted:?}");
            loaded.set(Case { flags: *flags, ..case }.settings(base));
            assert_eq!(ask(&mut Scene::new(loaded, number + 50), *wanted, 0), [], "{flags:#x}, switched off");
        }
        let limited =
            Case { flags: flag::UNICAST | flag::THROTTLE_RESPONSE | flag::LATENCY, limits: [2, 0, 1, 0], ..BASE };
        loaded.set(limited.settings(base));
        let mut scene = Scene::new(loaded, 990);
        let seen: Vec<_> = (0..3).flat_map(|_| ask(&mut scene, Ask::Have(0), 0)).collect();
        assert_eq!(seen, [Measured::Clones, Measured::Throttled, Measured::Silence]);
        loaded.take_events();
    });
}

#[test]
fn frames_that_the_kernel_stores_have_theirs() {
    with_program("frames_that_the_kernel_stores_have_theirs", |loaded| {
        let base = loaded.settings();
        for (flags, expected) in [(flag::LATENCY, 1), (0, 0)] {
            loaded.set(retry_common::abi::Settings { flags: base.flags | flags, ..base });
            let before = measured(loaded)[Measured::Stored as usize].1;
            loaded.run(&plain_frame()).expect("a packet of a legal length");
            assert_eq!(loaded.follow().len(), 1, "stored");
            assert_eq!(measured(loaded)[Measured::Stored as usize].1 - before, expected);
        }
    });
}
