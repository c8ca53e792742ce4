//! What the program tells of the NACKs that it draws for the top talkers.

use retry_common::abi::{setting_flag as flag, ticket_role as role};
use retry_common::counter::Counter;
use retry_common::latency::Measured;
use retry_common::talkers::{Drawn, INTERVAL_NS, ONE_IN, WHOLE};
use retry_testbed::net::packet::PacketBuilder;
use retry_testbed::xdp::expect::Out;
use retry_testbed::xdp::fixture::{Loaded, NACK_ADDRESS, monotonic_ns, slow_machine};

use crate::table::{Ask, Case, Scene, Step};
use crate::verdicts::{BASE, with_program};

/// Flags of every case here.
const ON: u32 = flag::UNICAST | flag::TALKERS;
/// Of a NACK that is only looked at and dropped as it is.
const QUIET: u32 = ON | flag::SUPPRESS_MISS;

fn packet(scene: &mut Scene<'_>, ask: Ask, from: u8) -> Vec<u8> {
    scene.nack(&Step { ask, flags: 0, from, out: Out::Miss, counted: &[] }).build()
}

/// Once an interval has begun anew: what came before counts no more.
fn await_interval() {
    let now = monotonic_ns() / INTERVAL_NS;
    while monotonic_ns() / INTERVAL_NS == now {
        std::hint::spin_loop();
    }
}

fn tell(loaded: &mut Loaded, number: u16, case: &Case, wanted: Ask) -> (Vec<u8>, Vec<Drawn>) {
    loaded.set(case.settings(loaded.settings()));
    let packet = packet(&mut Scene::new(loaded, number), wanted, 0);
    await_interval();
    loaded.run(&packet).expect("a packet of a legal length");
    (packet, loaded.take_drawn())
}

#[test]
fn every_verdict_is_told_with_its_source_and_flow() {
    with_program("every_verdict_is_told_with_its_source_and_flow", |loaded| {
        let copy = role::UNICAST | role::ACK;
        let table: &[(u32, Ask, Measured, u8, bool)] = &[
            (ON | flag::SUPPRESS_ACK, Ask::Have(0), Measured::InPlace, 0, true),
            (ON, Ask::Have(0), Measured::Clones, copy, true),
            (flag::TALKERS, Ask::Have(0), Measured::Ack, 0, false),
            (ON, Ask::Lack, Measured::Miss, 0, false),
            (QUIET, Ask::Lack, Measured::Silence, 0, false),
            (ON, Ask::Oversize, Measured::HandedOver, 0, false),
        ];
        for (number, (flags, wanted, verdict, sent, has_frame)) in (700..).zip(table) {
            let case = Case { flags: *flags, ..BASE };
            let (packet, drawn) = tell(loaded, number, &case, *wanted);
            let [drawn] = drawn[..] else { unreachable!("one of {wanted:?}: {drawn:?}") };
            assert_eq!((drawn.verdict, drawn.sent, drawn.weight), (*verdict as u8, *sent, 1), "{wanted:?}");
            assert_eq!((&drawn.source[..], &drawn.flow.to_be_bytes()[..]), (&packet[22..38], &packet[70..78]));
            assert_eq!(drawn.length != 0, *has_frame, "{wanted:?}: {drawn:?}");
            let off = Case { flags: flags & !flag::TALKERS, ..case };
            assert_eq!(tell(loaded, number + 50, &off, *wanted).1, [], "switched off");
        }
        let limited = Case { flags: ON | flag::THROTTLE_RESPONSE, limits: [1, 0, 0, 0], ..BASE };
        loaded.set(limited.settings(loaded.settings()));
        let packet = packet(&mut Scene::new(loaded, 790), Ask::Have(0), 0);
        await_interval();
        for _ in 0..2 {
            loaded.run(&packet).expect("a packet of a legal length");
        }
        let reasons: Vec<_> = loaded.take_drawn().iter().map(|drawn| (drawn.verdict, drawn.reason)).collect();
        let over = Counter::LimitedAddress as u16 + 1;
        assert_eq!(reasons.last(), Some(&(Measured::Silence as u8, over)), "{reasons:?}");

        // No NACK: the magic is another.
        let bad = PacketBuilder::udp("[fd10::7]:40000".parse().expect("an address"), NACK_ADDRESS, &[1; 64]).build();
        await_interval();
        loaded.run(&bad).expect("a packet of a legal length");
        let drawn = loaded.take_drawn();
        let [refused] = drawn[..] else { unreachable!("one: {drawn:?}") };
        let magic = Counter::NackWrongMagic as u16 + 1;
        assert_eq!((refused.verdict, refused.reason, refused.flow), (Drawn::REFUSED, magic, 0));
        assert_eq!(refused.source[..], bad[22..38]);
    });
}

/// Of many NACKs few are told of, and they stand for the others. Without a daemon none is.
#[test]
fn what_is_told_has_a_bound_and_stands_for_all() {
    with_program("what_is_told_has_a_bound_and_stands_for_all", |loaded| {
        let many = if slow_machine() { 50_000 } else { 500_000 };
        let settings = Case { flags: QUIET, ..BASE }.settings(loaded.settings());
        loaded.set(settings);
        let packet = packet(&mut Scene::new(loaded, 800), Ask::Lack, 0);
        await_interval();
        let began_ns = monotonic_ns();
        loaded.run_many(&packet, many).expect("it runs");
        let intervals = (monotonic_ns() - began_ns) / INTERVAL_NS + 2;
        let drawn = loaded.take_drawn();
        let sum: u64 = drawn.iter().map(|one| u64::from(one.weight)).sum();
        // Four standard deviations.
        let bound = 4.0 * (f64::from(many) * f64::from(ONE_IN)).sqrt();
        assert!((sum as f64 - f64::from(many)).abs() < bound, "{sum} for {many}, {} were told of", drawn.len());
        let most = intervals * WHOLE + u64::from(2 * many / ONE_IN);
        assert!(u64::try_from(drawn.len()).expect("few") < most, "{} in {intervals} intervals", drawn.len());

        loaded.set(retry_common::abi::Settings { daemon_until_ns: 0, ..settings });
        loaded.run_many(&packet, 1_000).expect("it runs");
        assert_eq!(loaded.take_drawn(), [], "no daemon reads");
    });
}

/// A ring that no process reads takes what it can hold, and what it cannot is counted.
#[test]
fn what_the_ring_has_no_room_for_is_counted() {
    with_program("what_the_ring_has_no_room_for_is_counted", |loaded| {
        let settings = Case { flags: QUIET, ..BASE }.settings(loaded.settings());
        loaded.set(settings);
        let packet = packet(&mut Scene::new(loaded, 801), Ask::Lack, 0);
        let before = loaded.counters().expect("counters").talkers_dropped;
        let mut rounds = 0;
        while loaded.counters().expect("counters").talkers_dropped == before {
            assert!(rounds < 200, "a full ring is counted");
            loaded.run_many(&packet, 100_000).expect("it runs");
            rounds += 1;
        }
        let held = loaded.take_drawn().len();
        assert!((15_000..30_000).contains(&held), "{held} in a ring of 1 MiB");
    });
}
