//! Budgets in bytes: what leaves is charged to its source and to all, and a source that has not shown that it hears us gets no more
//! than a multiple of its NACK.

use std::net::Ipv6Addr;

use retry_common::{
    abi::{Settings, setting_flag as flag},
    counter::Counter::{
        self, AcksSent, CacheHits, CacheMisses, DaemonAbsent, LimitedSequence, LimitedSourceBytes, LimitedTotalBytes,
        LimitedUnproven, MissesSent, NackRequests, RetransmitHeldDown, Retransmits, ThrottledSent, UnicastRetransmits,
    },
    holddown::HoldDown,
    limits::{ByteBudget, ByteLimits, Window},
};
use retry_testbed::xdp::{
    expect::{
        Out,
        role::{ACK, LEADS, MULTI, UNI},
    },
    fixture::Loaded,
};
use retry_userspace::parts::acl::Rules;

use crate::{
    table::{Ask, HOLD_NS, Scene, Step, asks},
    verdicts::with_program,
};

const COPIED: &[Counter] = &[NackRequests, CacheHits, UnicastRetransmits, AcksSent];
const COPY: Out = Out::Clones(0x02, ACK | UNI | LEADS);
const MISSED: &[Counter] = &[NackRequests, CacheMisses, MissesSent];
/// A frame of 400 bytes and its ACK.
const SERVED: u32 = 400 + 48 + 64;

/// So many bytes at once, and none comes back while a test runs.
const fn at_once(bytes: u32) -> ByteBudget {
    ByteBudget::from_words([1 << 42, bytes as u64 * ((1 << 30) + 1)])
}

const OFF: ByteLimits =
    ByteLimits { source: ByteBudget::from_words([0; 2]), total: ByteBudget::from_words([0; 2]), unproven_factor: 0 };

/// Plays the steps in a scene of this number, under these budgets and flags.
fn play(loaded: &mut Loaded, number: u16, name: &str, flags: u32, bytes: ByteLimits, steps: &[Step]) {
    loaded.bytes().forget_sources();
    loaded.bytes().forget_total();
    let base = loaded.settings();
    loaded.set(Settings { flags: flags | flag::BYTE_BUDGETS, bytes, ..base });
    let mut scene = Scene::new(loaded, number);
    for step in steps {
        scene.play(name, step);
    }
    loaded.set(base);
}

#[test]
fn a_source_gets_its_budget() {
    const OVER: &[Counter] = &[NackRequests, CacheHits, LimitedSourceBytes];
    with_program("a_source_gets_its_budget", |loaded| {
        let limits = ByteLimits { source: at_once(2 * SERVED + 64), ..OFF };
        let steps = [
            asks(Ask::Have(0), COPY, COPIED),
            asks(Ask::Have(0), COPY, COPIED),
            asks(Ask::Have(0), Out::Silence, OVER),
            // There is room for an answer, for one.
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Lack, Out::Silence, &[NackRequests, CacheMisses, LimitedSourceBytes]),
            asks(Ask::Have(0), COPY, COPIED).from(1),
        ];
        play(loaded, 0x180, "the budget of a source", flag::UNICAST, limits, &steps);
        // What goes to the group is not the source's, but its ACK is.
        let limits = ByteLimits { source: at_once(2 * 64), ..OFF };
        let multi = Out::Clones(0x01, ACK | MULTI | LEADS);
        let counted: &[Counter] = &[NackRequests, CacheHits, Retransmits, AcksSent];
        let steps = [
            asks(Ask::Have(3), multi, counted),
            asks(Ask::Have(3), multi, counted),
            asks(Ask::Have(3), Out::Silence, OVER),
        ];
        play(loaded, 0x181, "multicast", flag::MULTICAST | flag::EGRESS_HERE, limits, &steps);
        // A Proxied NACK's copy is its source's.
        let limits = ByteLimits { source: at_once(SERVED), ..OFF };
        let both = Out::Clones(0x03, ACK | UNI | MULTI | LEADS);
        let counted: &[Counter] = &[NackRequests, CacheHits, UnicastRetransmits, Retransmits, AcksSent];
        let steps = [asks(Ask::Have(0), both, counted).flags(0x01), asks(Ask::Have(0), Out::Silence, OVER).flags(0x01)];
        play(loaded, 0x182, "Proxied", flag::MULTICAST | flag::EGRESS_HERE, limits, &steps);
    });
}

#[test]
fn all_together_get_the_total() {
    const OVER: &[Counter] = &[NackRequests, CacheHits, LimitedTotalBytes];
    with_program("all_together_get_the_total", |loaded| {
        // Strangers have half of it.
        let limits = ByteLimits { total: at_once(4 * SERVED), ..OFF };
        let steps = [
            asks(Ask::Have(0), COPY, COPIED),
            asks(Ask::Have(0), COPY, COPIED).from(1),
            asks(Ask::Have(0), Out::Silence, OVER).from(2),
        ];
        play(loaded, 0x190, "the total", flag::UNICAST, limits, &steps);
        loaded.know(Ipv6Addr::new(0xFD10, 0, 0, 1, 0, 0, 0x191, 0x13)).expect("room");
        let proven = [
            asks(Ask::Have(0), COPY, COPIED).from(3),
            asks(Ask::Have(0), COPY, COPIED).from(3),
            asks(Ask::Have(0), Out::Silence, OVER).from(3),
        ];
        play(
            loaded,
            0x191,
            "the other half is a known listener's",
            flag::UNICAST,
            limits,
            &[&steps[..], &proven].concat(),
        );
        // A refused repair claims no hold-down: a smaller one is sent.
        let base = loaded.settings();
        loaded.set(Settings { hold_down: HoldDown { ours_ns: HOLD_NS, others_ns: 0 }, ..base });
        let limits = ByteLimits { total: at_once(2 * (66 + 48 + 64)), ..OFF };
        let steps = [
            asks(Ask::Have(0), Out::Silence, OVER),
            asks(Ask::Have(0), Out::Silence, OVER),
            asks(
                Ask::Have(2),
                Out::Clones(0x01, ACK | MULTI | LEADS),
                &[NackRequests, CacheHits, Retransmits, AcksSent],
            ),
            // Its ACK has no room any more.
            asks(Ask::Have(2), Out::Silence, OVER),
        ];
        play(loaded, 0x192, "multicast", flag::MULTICAST | flag::EGRESS_HERE, limits, &steps);
        loaded.set(Settings { egress_interfaces: 16, hold_down: HoldDown::default(), ..base });
        let limits = ByteLimits { total: at_once(2 * (16 * 448 + 64)), ..OFF };
        let steps = [
            asks(
                Ask::Have(0),
                Out::Clones(0x01, ACK | MULTI | LEADS),
                &[NackRequests, CacheHits, Retransmits, AcksSent],
            ),
            asks(Ask::Lack, Out::Silence, &[NackRequests, CacheMisses, LimitedTotalBytes]),
        ];
        play(loaded, 0x193, "by 16 interfaces", flag::MULTICAST | flag::EGRESS_HERE, limits, &steps);
        loaded.set(base);
    });
}

#[test]
fn an_unproven_source_gets_a_multiple_of_its_nack() {
    const LEFT_OUT: &[Counter] = &[NackRequests, CacheHits, LimitedUnproven];
    let factor = |unproven_factor| ByteLimits { unproven_factor, ..OFF };
    with_program("an_unproven_source_gets_a_multiple_of_its_nack", |loaded| {
        // 112 bytes three times are 336: a frame of 66 bytes and its ACK are 178, one of 400 are 512.
        let steps = [
            asks(Ask::Have(2), COPY, COPIED),
            asks(Ask::Have(0), Out::Silence, LEFT_OUT),
            asks(Ask::Lack, Out::Miss, MISSED),
        ];
        play(loaded, 0x1A0, "three times its NACK", flag::UNICAST, factor(3), &steps);
        play(loaded, 0x1A1, "five times", flag::UNICAST, factor(5), &[asks(Ask::Have(0), COPY, COPIED)]);
        let throttled: &[Counter] = &[NackRequests, CacheHits, LimitedUnproven, ThrottledSent];
        let flags = flag::UNICAST | flag::THROTTLE_RESPONSE;
        play(loaded, 0x1A2, "THROTTLED", flags, factor(3), &[asks(Ask::Have(0), Out::Throttled(3), throttled)]);
        // Not even that has room.
        let limits = ByteLimits { total: at_once(2 * 64 - 2), ..factor(3) };
        let over: &[Counter] = &[NackRequests, CacheHits, LimitedUnproven, LimitedTotalBytes];
        play(loaded, 0x1A3, "silence", flags, limits, &[asks(Ask::Have(0), Out::Silence, over)]);
        // The group gets what the source does not.
        let counted: &[Counter] = &[NackRequests, CacheHits, LimitedUnproven, Retransmits, AcksSent];
        let both = flag::UNICAST | flag::MULTICAST | flag::EGRESS_HERE;
        let steps = [asks(Ask::Have(0), Out::Clones(0x01, ACK | MULTI | LEADS), counted)];
        play(loaded, 0x1A4, "multicast", both, factor(3), &steps);
        let base = loaded.settings();
        loaded.set(Settings { hold_down: HoldDown { ours_ns: HOLD_NS, others_ns: 0 }, ..base });
        let held: &[Counter] = &[NackRequests, CacheHits, LimitedUnproven, RetransmitHeldDown, AcksSent];
        let steps = [steps[0], asks(Ask::Have(0), Out::Ack(0x01), held).from(1)];
        play(loaded, 0x1A5, "held down", both, factor(3), &steps);
        loaded.set(base);
        loaded.know(Ipv6Addr::new(0xFD10, 0, 0, 1, 0, 0, 0x1A6, 0x10)).expect("room");
        let steps = [asks(Ask::Have(5), COPY, COPIED), asks(Ask::Have(5), Out::Silence, LEFT_OUT).from(1)];
        play(loaded, 0x1A6, "a known listener", flag::UNICAST, factor(3), &steps);
        let all = "fd10:0:0:1::".parse().ok().and_then(|address| retry_common::acl::Prefix::new(address, 64));
        let allow = Rules { allow: all.into_iter().collect(), ..Rules::default() };
        loaded.set_acl(&allow).expect("room");
        play(loaded, 0x1A7, "on the allow list", flag::UNICAST, factor(3), &[asks(Ask::Have(5), COPY, COPIED)]);
        let deny = Rules { deny: all.into_iter().collect(), ..Rules::default() };
        loaded
            .set_acl(&Rules {
                deny: std::iter::once(retry_common::acl::Prefix::of(Ipv6Addr::LOCALHOST, 128)).collect(),
                ..deny
            })
            .expect("room");
        play(
            loaded,
            0x1A8,
            "a deny list alone",
            flag::UNICAST,
            factor(3),
            &[asks(Ask::Have(5), Out::Silence, LEFT_OUT)],
        );
        loaded.set_acl(&Rules::default()).expect("room");
    });
}

#[test]
fn every_answer_is_charged() {
    with_program("every_answer_is_charged", |loaded| {
        let limits = ByteLimits { source: at_once(64), ..OFF };
        let base = loaded.settings();
        loaded.set(Settings {
            limits: retry_common::abi::Limits { sequence: Window::new(1, 1 << 58), ..base.limits },
            ..base
        });
        let flags = flag::UNICAST | flag::THROTTLE_RESPONSE;
        let throttled: &[Counter] = &[NackRequests, LimitedSequence, ThrottledSent];
        let steps = [
            asks(Ask::Lack, Out::Miss, MISSED),
            asks(Ask::Lack, Out::Throttled(2), throttled).from(1),
            asks(Ask::Lack, Out::Silence, &[NackRequests, LimitedSequence, LimitedSourceBytes]).from(1),
        ];
        play(loaded, 0x1B0, "THROTTLED", flags, limits, &steps);
        loaded.set(Settings { daemon_until_ns: 1, ..base });
        let absent: &[Counter] = &[NackRequests, CacheHits, DaemonAbsent, MissesSent];
        let over: &[Counter] = &[NackRequests, CacheHits, DaemonAbsent, LimitedSourceBytes];
        let steps = [asks(Ask::Oversize, Out::Miss, absent), asks(Ask::Oversize, Out::Silence, over)];
        play(loaded, 0x1B1, "no daemon", flag::UNICAST, limits, &steps);
        loaded.set(base);
    });
}
