//! Every verdict of the truth table, by `BPF_PROG_TEST_RUN`.
//! Long because it is one table.

use retry_common::{
    abi::{EventKind, Settings, setting_flag as flag},
    counter::Counter::{
        self, AcksSent, CacheHits, CacheMisses, DaemonAbsent, HandedOver, LimitedAddress, LimitedChain, LimitedGroup,
        LimitedSequence, MissesSent, NackRequests, PassedEventsFull, PassedInterface, PassedLease, PassedNoSettings,
        RetransmitDedup, RetransmitHeldDown, Retransmits, ThrottledSent, UnicastRetransmits,
    },
    holddown::HoldDown,
    key::FrameKey,
};
use retry_testbed::scene::is_root;
use retry_testbed::xdp::{
    expect::{
        Out, once,
        role::{ACK, LEADS, MULTI, UNI},
    },
    fixture::{Interface, Loaded, in_new_namespace, monotonic_ns},
    testrun::Action,
};

use crate::table::{Ask, Case, HOLD_NS, Scene, asks};

const PROXIED: u8 = 0x01;
const HERE: u32 = flag::MULTICAST | flag::EGRESS_HERE;
const QUIET: u32 = flag::SUPPRESS_ACK;

const MISSED: &[Counter] = &[NackRequests, CacheMisses, MissesSent];
const UNICAST: &[Counter] = &[NackRequests, CacheHits, UnicastRetransmits, AcksSent];
const MULTICAST: &[Counter] = &[NackRequests, CacheHits, Retransmits, AcksSent];
const BOTH: &[Counter] = &[NackRequests, CacheHits, Retransmits, UnicastRetransmits, AcksSent];

pub(crate) const BASE: Case = Case { name: "", flags: flag::UNICAST, limits: [0; 4], hold_down: false, steps: &[] };

const CASES: &[Case] = &[
    Case {
        name: "a frame that is not there, or not any more, is a MISS",
        steps: &[
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Lack, Out::Miss, MISSED).flags(PROXIED),
            asks(Ask::Expired, Out::Miss, MISSED),
            asks(Ask::LackOfFlowZero, Out::Miss, MISSED),
        ],
        ..BASE
    },
    Case {
        name: "an unwanted MISS is silence",
        flags: flag::UNICAST | flag::SUPPRESS_MISS,
        steps: &[
            asks(Ask::Lack, Out::Silence, &[NackRequests, CacheMisses]),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
        ],
        ..BASE
    },
    Case {
        name: "unicast: the copy and its ACK",
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(2), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).flags(PROXIED),
            asks(Ask::Have(5), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).flags(0xFE),
            asks(Ask::HaveOfFlowZero, Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
        ],
        ..BASE
    },
    Case {
        name: "unicast without ACK: the frame in the NACK's place, of any length",
        flags: flag::UNICAST | QUIET,
        steps: &[
            asks(Ask::Have(0), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits]),
            asks(Ask::Have(1), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits]),
            asks(Ask::Have(2), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits]),
            asks(Ask::Have(3), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits]),
            asks(Ask::Have(4), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits]),
            asks(Ask::Have(5), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits]),
        ],
        ..BASE
    },
    Case {
        name: "multicast, by the NACK's interface too: held down afterwards, then the ACK says so",
        flags: HERE,
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x01, ACK | MULTI | LEADS), MULTICAST),
            asks(Ask::Have(0), Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitHeldDown, AcksSent]),
            asks(Ask::Have(0), Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitHeldDown, AcksSent]).from(1),
            asks(Ask::Have(1), Out::Clones(0x01, ACK | MULTI | LEADS), MULTICAST),
        ],
        ..BASE
    },
    Case {
        name: "multicast by other interfaces only",
        flags: flag::MULTICAST,
        steps: &[asks(Ask::Have(0), Out::Clones(0x01, ACK | LEADS), MULTICAST)],
        ..BASE
    },
    Case {
        name: "without hold-down every NACK is a multicast",
        flags: HERE,
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x01, ACK | MULTI | LEADS), MULTICAST),
            asks(Ask::Have(0), Out::Clones(0x01, ACK | MULTI | LEADS), MULTICAST),
        ],
        ..BASE
    },
    Case {
        name: "neither: the ACK alone, with flags 0, but for another endpoint",
        flags: 0,
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::Ack(0), &[NackRequests, CacheHits, AcksSent]),
            asks(Ask::Have(0), Out::Ack(0), &[NackRequests, CacheHits, AcksSent]),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).flags(PROXIED),
            asks(Ask::Lack, Out::Miss, MISSED),
        ],
        ..BASE
    },
    Case {
        name: "neither, and no ACK: silence",
        flags: QUIET,
        steps: &[asks(Ask::Have(0), Out::Silence, &[NackRequests, CacheHits])],
        ..BASE
    },
    Case {
        name: "both: the hold-down leaves the unicast copy",
        flags: HERE | flag::UNICAST,
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x03, ACK | UNI | MULTI | LEADS), BOTH),
            asks(
                Ask::Have(0),
                Out::Clones(0x03, ACK | UNI | LEADS),
                &[NackRequests, CacheHits, UnicastRetransmits, RetransmitHeldDown, AcksSent],
            ),
        ],
        ..BASE
    },
    Case {
        name: "another endpoint that asks gets a copy whatever the mode",
        flags: HERE,
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x03, ACK | UNI | MULTI | LEADS), BOTH).flags(PROXIED),
            asks(
                Ask::Have(0),
                Out::Clones(0x03, ACK | UNI | LEADS),
                &[NackRequests, CacheHits, UnicastRetransmits, RetransmitHeldDown, AcksSent],
            )
            .flags(PROXIED),
        ],
        ..BASE
    },
    Case {
        name: "multicast without ACK: nothing is said in the hold-down",
        flags: HERE | QUIET,
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::Clones(0, MULTI | LEADS), &[NackRequests, CacheHits, Retransmits]),
            asks(Ask::Have(0), Out::Silence, &[NackRequests, CacheHits, RetransmitHeldDown]),
            asks(Ask::Have(0), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits, RetransmitHeldDown])
                .flags(PROXIED),
        ],
        ..BASE
    },
    Case {
        name: "both without ACK: the copy alone in the hold-down",
        flags: HERE | flag::UNICAST | QUIET,
        hold_down: true,
        steps: &[
            asks(
                Ask::Have(0),
                Out::Clones(0, UNI | MULTI | LEADS),
                &[NackRequests, CacheHits, Retransmits, UnicastRetransmits],
            ),
            asks(Ask::Have(0), Out::Frame, &[NackRequests, CacheHits, UnicastRetransmits, RetransmitHeldDown]),
        ],
        ..BASE
    },
    Case {
        name: "over the limit of the address: silence, whatever is set",
        flags: flag::UNICAST | flag::THROTTLE_RESPONSE,
        limits: [2, 0, 0, 0],
        steps: &[
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Silence, &[NackRequests, LimitedAddress]),
            asks(Ask::Lack, Out::Silence, &[NackRequests, LimitedAddress]).flags(PROXIED),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).from(1),
        ],
        ..BASE
    },
    Case {
        name: "over the limit of the frame, for every listener",
        flags: flag::UNICAST | flag::THROTTLE_RESPONSE,
        limits: [0, 0, 2, 0],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).from(1),
            asks(Ask::Have(0), Out::Throttled(2), &[NackRequests, ThrottledSent, LimitedSequence]).from(2),
            asks(Ask::Have(1), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Lack, Out::Throttled(2), &[NackRequests, ThrottledSent, LimitedSequence]),
        ],
        ..BASE
    },
    Case {
        name: "over the limit of the frame, silently",
        limits: [0, 0, 1, 0],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Silence, &[NackRequests, LimitedSequence]),
        ],
        ..BASE
    },
    Case {
        name: "an ACK in the hold-down costs nothing, nor does a MISS that is not said",
        flags: HERE | flag::SUPPRESS_MISS,
        limits: [0, 0, 2, 0],
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x01, ACK | MULTI | LEADS), MULTICAST),
            asks(Ask::Have(0), Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitHeldDown, AcksSent]),
            asks(Ask::Have(0), Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitHeldDown, AcksSent]),
            asks(Ask::Have(0), Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitHeldDown, AcksSent]),
            asks(Ask::Lack, Out::Silence, &[NackRequests, CacheMisses]),
            asks(Ask::Lack, Out::Silence, &[NackRequests, CacheMisses]),
            asks(Ask::Lack, Out::Silence, &[NackRequests, CacheMisses]),
        ],
    },
    Case {
        name: "over the limit of the address and flow; flow 0 is exempt",
        flags: flag::UNICAST | flag::THROTTLE_RESPONSE,
        limits: [0, 0, 0, 2],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Have(1), Out::Throttled(3), &[NackRequests, ThrottledSent, LimitedChain]),
            asks(Ask::Have(1), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).from(1),
            asks(Ask::HaveOfFlowZero, Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::HaveOfFlowZero, Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::LackOfFlowZero, Out::Miss, MISSED),
        ],
        ..BASE
    },
    Case {
        name: "over the limit of the address and flow, silently",
        limits: [0, 0, 0, 1],
        steps: &[asks(Ask::Lack, Out::Miss, MISSED), asks(Ask::Have(1), Out::Silence, &[NackRequests, LimitedChain])],
        ..BASE
    },
    Case {
        name: "over the limit of the address and group: never an ACK, and a MISS is still said",
        flags: flag::UNICAST | flag::THROTTLE_RESPONSE,
        limits: [0, 2, 0, 0],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(1), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(1), Out::Throttled(4), &[NackRequests, CacheHits, ThrottledSent, LimitedGroup]),
            asks(Ask::Have(3), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST).from(1),
            asks(Ask::Lack, Out::Miss, MISSED),
        ],
        ..BASE
    },
    Case {
        name: "over the limit of the address and group, silently",
        limits: [0, 1, 0, 0],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Silence, &[NackRequests, CacheHits, LimitedGroup]),
        ],
        ..BASE
    },
    Case {
        name: "the frame's limit comes before the flow's, and what it refuses is not charged there",
        flags: flag::UNICAST | flag::THROTTLE_RESPONSE,
        limits: [0, 0, 1, 2],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Throttled(2), &[NackRequests, ThrottledSent, LimitedSequence]),
            asks(Ask::Have(1), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(1), Out::Throttled(2), &[NackRequests, ThrottledSent, LimitedSequence]),
            asks(Ask::Have(2), Out::Throttled(3), &[NackRequests, ThrottledSent, LimitedChain]),
        ],
        ..BASE
    },
    Case {
        name: "the address's limit comes first and is charged by what later ones refuse",
        flags: flag::UNICAST | flag::THROTTLE_RESPONSE,
        limits: [3, 1, 0, 0],
        steps: &[
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
            asks(Ask::Have(0), Out::Throttled(4), &[NackRequests, CacheHits, ThrottledSent, LimitedGroup]),
            asks(Ask::Have(0), Out::Throttled(4), &[NackRequests, CacheHits, ThrottledSent, LimitedGroup]),
            asks(Ask::Have(0), Out::Silence, &[NackRequests, LimitedAddress]),
        ],
        ..BASE
    },
    Case {
        name: "a frame for the daemon is handed over, all limits charged and nothing claimed",
        flags: HERE,
        limits: [0, 0, 2, 0],
        hold_down: true,
        steps: &[
            asks(Ask::Oversize, Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver]),
            asks(Ask::Oversize, Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver]).flags(PROXIED),
            asks(Ask::Oversize, Out::Silence, &[NackRequests, LimitedSequence]),
        ],
    },
    Case {
        name: "multicast that must loop back is the daemon's, unicast is not",
        flags: HERE | flag::DAEMON_MULTICAST,
        steps: &[asks(Ask::Have(0), Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver])],
        ..BASE
    },
    Case {
        name: "unicast stays here where multicast is the daemon's",
        flags: flag::UNICAST | flag::DAEMON_MULTICAST,
        steps: &[asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST)],
        ..BASE
    },
    Case {
        name: "all frames are the daemon's where packets cannot grow",
        flags: flag::UNICAST | flag::DAEMON_FRAMES,
        steps: &[
            asks(Ask::Have(0), Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver]),
            asks(Ask::Lack, Out::Miss, MISSED),
        ],
        ..BASE
    },
    Case {
        name: "the shared store is asked before a MISS is said",
        flags: flag::UNICAST | flag::STORE | flag::RECOVERY,
        steps: &[
            asks(Ask::Lack, Out::HandOver(EventKind::Store), &[NackRequests, HandedOver]),
            asks(Ask::Lack, Out::HandOver(EventKind::Store), &[NackRequests, HandedOver]).flags(PROXIED | 0x80),
            asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST),
        ],
        ..BASE
    },
    Case {
        name: "asking the shared store is charged to the frame's window",
        flags: flag::UNICAST | flag::STORE,
        limits: [0, 0, 1, 0],
        steps: &[
            asks(Ask::Lack, Out::HandOver(EventKind::Store), &[NackRequests, HandedOver]),
            asks(Ask::Lack, Out::Silence, &[NackRequests, LimitedSequence]),
        ],
        ..BASE
    },
    Case {
        name: "the daemon is told of each multicast, and of nothing else",
        flags: HERE | flag::UNICAST | flag::ANNOUNCE,
        hold_down: true,
        steps: &[
            asks(Ask::Have(0), Out::ClonesAndEvent(0x03, ACK | UNI | MULTI | LEADS), BOTH),
            asks(
                Ask::Have(0),
                Out::Clones(0x03, ACK | UNI | LEADS),
                &[NackRequests, CacheHits, RetransmitHeldDown, UnicastRetransmits, AcksSent],
            ),
            asks(Ask::Lack, Out::Miss, MISSED),
        ],
        ..BASE
    },
    Case {
        name: "recovery: a MISS at once and a job, but not for another endpoint",
        flags: flag::UNICAST | flag::RECOVERY,
        steps: &[
            asks(Ask::Lack, Out::MissAndHandOver, &[NackRequests, CacheMisses, MissesSent, HandedOver]),
            asks(Ask::Lack, Out::Miss, MISSED).flags(PROXIED),
        ],
        ..BASE
    },
    Case {
        name: "recovery without MISS: the job alone",
        flags: flag::UNICAST | flag::RECOVERY | flag::SUPPRESS_MISS,
        steps: &[asks(Ask::Lack, Out::HandOver(EventKind::Recover), &[NackRequests, CacheMisses, HandedOver])],
        ..BASE
    },
];

pub(crate) fn with_program(name: &str, work: impl FnOnce(&mut Loaded) + Send) {
    if !is_root(name) {
        return;
    }
    in_new_namespace(|| {
        let here = Interface::veth("rt0").expect("ip link works");
        let mut loaded = Loaded::open(&here, &[], true).expect("the kernel takes the program");
        work(&mut loaded);
    });
}

#[test]
fn every_verdict() {
    with_program("every_verdict", |loaded| {
        let base = loaded.settings();
        let mut number = 0;
        for case in CASES {
            number += 1;
            loaded.set(case.settings(base));
            let mut scene = Scene::new(loaded, number);
            for step in case.steps {
                scene.play(case.name, step);
            }
        }
    });
}

#[test]
fn another_instances_repair_silences_ours() {
    with_program("another_instances_repair_silences_ours", |loaded| {
        let case = Case { flags: HERE, hold_down: true, ..BASE };
        let mut settings = case.settings(loaded.settings());
        settings.hold_down = HoldDown { ours_ns: HOLD_NS, others_ns: HOLD_NS };
        loaded.set(settings);
        let mut scene = Scene::new(loaded, 500);
        let (first, second) = (scene.key(0), scene.key(1));
        scene.loaded().repaired_by_another(first);
        scene.loaded().repaired_by_another(second);
        let held = asks(Ask::Have(0), Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitDedup, AcksSent]);
        scene.play("another's claim", &held);
        scene.play("another's claim", &held);
        settings.hold_down.others_ns = 0;
        scene.loaded().set(settings);
        let sent = asks(Ask::Have(1), Out::Clones(0x01, ACK | MULTI | LEADS), MULTICAST);
        scene.play("another's claim that does not count", &sent);
    });
}

#[test]
fn what_is_held_down_is_answered_here_whoever_sends_the_frame() {
    with_program("what_is_held_down_is_answered_here_whoever_sends_the_frame", |loaded| {
        let base = loaded.settings();
        let strict = HERE | flag::DAEMON_MULTICAST;
        for (number, flags, ask) in [(510, HERE, Ask::Oversize), (511, strict, Ask::Have(0))] {
            let case = Case { flags, limits: [0, 0, 2, 0], hold_down: true, ..BASE };
            let mut settings = case.settings(base);
            settings.hold_down = HoldDown { ours_ns: HOLD_NS, others_ns: HOLD_NS };
            loaded.set(settings);
            let mut scene = Scene::new(loaded, number);
            let handed_over = asks(ask, Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver]);
            scene.play("not held", &handed_over);
            let nack = scene.nack(&handed_over).build();
            let key = FrameKey::from_bytes(nack[nack.len() - 56..nack.len() - 40].try_into().expect("sixteen"));
            scene.loaded().repaired_by_another(key);
            let held = asks(ask, Out::Ack(0x01), &[NackRequests, CacheHits, RetransmitDedup, AcksSent]);
            // More often than the window has room for: an ACK alone costs nothing.
            for _ in 0..4 {
                scene.play("held", &held);
            }
            // The copy is ours where only the multicast would have been the daemon's.
            let copied = &[NackRequests, CacheHits, UnicastRetransmits, RetransmitDedup, AcksSent];
            let copy =
                if flags == strict { asks(ask, Out::Clones(0x03, ACK | UNI | LEADS), copied) } else { handed_over };
            scene.play("held, and a copy wanted", &copy.flags(PROXIED));
        }
    });
}

#[test]
fn without_settings_or_lease_everything_is_passed_on() {
    const STEPS: [Ask; 3] = [Ask::Have(0), Ask::Lack, Ask::Oversize];
    with_program("without_settings_or_lease_everything_is_passed_on", |loaded| {
        let good = loaded.settings();
        let mut number = 600;
        for (name, bad, counter) in [
            ("generation 0", Settings { generation: 0, ..good }, PassedNoSettings),
            ("another layout", Settings { layout: good.layout + 1, ..good }, PassedNoSettings),
            ("all zero", Settings::default(), PassedNoSettings),
            ("no lease yet", Settings { lease_until_ns: 0, ..good }, PassedLease),
            ("the lease is over", Settings { lease_until_ns: monotonic_ns(), ..good }, PassedLease),
            ("another interface", Settings { nack_ifindex: good.nack_ifindex + 1, ..good }, PassedInterface),
        ] {
            let counted: &[Counter] = &[counter];
            for ask in STEPS {
                number += 1;
                loaded.set(bad);
                let scene = Scene::new(loaded, number);
                let nack = scene.nack(&asks(ask, Out::Pass, &[])).build();
                let ran = loaded.run(&nack).expect("a legal length");
                assert_eq!((ran.action, ran.counted), (Action::Pass, once(counted)), "{name}, {ask:?}");
                assert_eq!(ran.packet, nack, "{name}, {ask:?}");
                assert_eq!(loaded.take_events(), [], "{name}, {ask:?}");
            }
        }
        // And the same NACK is answered when all is well.
        loaded.set(good);
        Scene::new(loaded, 700).play("settings and lease", &asks(Ask::Lack, Out::Miss, MISSED));
    });
}

/// Hits are the kernel's. What would wait for the daemon is a MISS at once, and the ring of events stays empty.
#[test]
fn without_a_daemon_what_waits_for_it_is_a_miss() {
    const ABSENT: &[Counter] = &[NackRequests, CacheMisses, MissesSent, DaemonAbsent];
    const UNSENT: &[Counter] = &[NackRequests, CacheHits, MissesSent, DaemonAbsent];
    const ALL: u32 = flag::UNICAST | flag::STORE | flag::RECOVERY;
    with_program("without_a_daemon_what_waits_for_it_is_a_miss", |loaded| {
        let good = loaded.settings();
        for (number, flags, step) in [
            (820, ALL, asks(Ask::Have(0), Out::Clones(0x02, ACK | UNI | LEADS), UNICAST)),
            (821, ALL, asks(Ask::Lack, Out::Miss, ABSENT)),
            (822, flag::UNICAST | flag::RECOVERY, asks(Ask::Lack, Out::Miss, ABSENT)),
            (823, flag::UNICAST, asks(Ask::Lack, Out::Miss, MISSED)),
            (824, ALL, asks(Ask::Oversize, Out::Miss, UNSENT)),
            (825, flag::UNICAST, asks(Ask::Oversize, Out::Miss, UNSENT)),
            (
                826,
                flag::UNICAST | flag::SUPPRESS_MISS,
                asks(Ask::Oversize, Out::Silence, &[NackRequests, CacheHits, DaemonAbsent]),
            ),
        ] {
            loaded.set(Settings { daemon_until_ns: monotonic_ns(), flags, ..good });
            Scene::new(loaded, number).play("no daemon", &step);
        }
        // And with one they are left to it again.
        loaded.set(Settings { flags: ALL, ..good });
        let step = asks(Ask::Oversize, Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver]);
        Scene::new(loaded, 830).play("a daemon", &step);
    });
}

#[test]
fn a_full_event_ring_passes_nacks_to_the_socket() {
    with_program("a_full_event_ring_passes_nacks_to_the_socket", |loaded| {
        let mut scene = Scene::new(loaded, 800);
        let step = asks(Ask::Oversize, Out::Pass, &[]);
        let nack = scene.nack(&step).build();
        // An event takes 48 bytes of 256 KiB.
        let room = (0..7_000).find(|_| {
            let ran = scene.loaded().run(&nack).expect("a legal length");
            if ran.action == Action::Drop {
                assert_eq!(ran.counted, once(&[NackRequests, CacheHits, HandedOver]));
                return false;
            }
            assert_eq!((ran.action, ran.packet), (Action::Pass, nack.clone()));
            assert_eq!(ran.counted, once(&[NackRequests, CacheHits, PassedEventsFull]));
            true
        });
        let room = room.expect("a ring has an end");
        assert!(room > 4_000, "full after {room}");
        assert_eq!(scene.loaded().take_events().len(), room, "none is lost");
        scene.play(
            "a ring with room again",
            &asks(Ask::Oversize, Out::HandOver(EventKind::Send), &[NackRequests, CacheHits, HandedOver]),
        );
    });
}
