//! The truth table, step by step: what a NACK gets, what it charges, what it counts, in which order.
//!
//! Longer than most files: the single cases and the table that any case is held against share one endpoint that remembers.

use proptest::prelude::*;
use retry_common::abi::setting_flag as set;
use retry_common::counter::Counter;
use retry_common::decide::{
    CachedFrame, Endpoint, Multicast, Policy, Repair, Verdict, decide, found, missed, relieve, repair, throttle_bucket,
};
use retry_common::key::FrameKey;
use retry_common::limits::bytes::{Afforded, Leaving};
use retry_common::wire::nack::Nack;

/// What the endpoint was asked, in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Address,
    SequenceCheck,
    SequenceCharge,
    Known,
    Chain,
    LookUp,
    Group(u16),
    CanSend,
    Claim,
    Peek,
    /// Bytes to the source, and to all.
    Afford(u32, u32),
    Count(Counter),
}
use Step::{Address, Afford, CanSend, Chain, Claim, Count, Group, Known, LookUp, Peek, SequenceCharge, SequenceCheck};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Frame(u16);

impl CachedFrame for Frame {
    fn group(&self) -> u16 {
        self.0
    }
}

/// An endpoint whose answers are given, and which remembers the questions.
#[derive(Clone, Debug)]
struct World {
    address: bool,
    sequence_over: bool,
    /// Others have taken the last of the window since it was looked at.
    sequence_taken: bool,
    /// The source is a known listener.
    known: bool,
    chain: bool,
    frame: Option<Frame>,
    group: bool,
    can_send: bool,
    multicast: Multicast,
    /// What [`Endpoint::can_send`] was asked for: with multicast or not.
    wanted: Option<bool>,
    /// What [`Endpoint::afford`] says, in order.
    afforded: [Afforded; 2],
    steps: Vec<Step>,
}

const HIT: World = World {
    address: true,
    sequence_over: false,
    sequence_taken: false,
    known: false,
    chain: true,
    frame: Some(Frame(7)),
    group: true,
    can_send: true,
    multicast: Multicast::Claimed,
    wanted: None,
    afforded: [Afforded::Yes; 2],
    steps: Vec::new(),
};

impl Endpoint for World {
    type Frame = Frame;

    fn take_address(&mut self) -> bool {
        self.steps.push(Address);
        self.address
    }
    fn sequence_is_over(&mut self) -> bool {
        self.steps.push(SequenceCheck);
        self.sequence_over
    }
    fn take_sequence(&mut self) -> bool {
        self.steps.push(SequenceCharge);
        !self.sequence_taken
    }
    fn is_known(&mut self) -> bool {
        self.steps.push(Known);
        self.known
    }
    fn take_chain(&mut self) -> bool {
        self.steps.push(Chain);
        self.chain
    }
    fn look_up(&mut self) -> Option<Frame> {
        self.steps.push(LookUp);
        self.frame
    }
    fn take_group(&mut self, group: u16) -> bool {
        self.steps.push(Group(group));
        self.group
    }
    fn can_send(&mut self, _frame: &Frame, multicast: bool, _ack: bool) -> bool {
        self.wanted = Some(multicast);
        self.steps.push(CanSend);
        self.can_send
    }
    fn claim_multicast(&mut self) -> Multicast {
        self.steps.push(Claim);
        self.multicast
    }
    fn peek_multicast(&mut self) -> Multicast {
        self.steps.push(Peek);
        self.multicast
    }
    fn packet_bytes(&self, _frame: &Frame) -> u32 {
        1_000
    }
    fn egress_interfaces(&self) -> u32 {
        3
    }
    fn afford(&mut self, leaving: &Leaving) -> Afforded {
        self.steps.push(Afford(leaving.to_source, leaving.all));
        self.afforded.rotate_left(1);
        self.afforded[1]
    }
    fn count(&mut self, counter: Counter) {
        self.steps.push(Count(counter));
    }
}

fn nack(flags: u8, hash_key: u64) -> Nack {
    Nack { flags, key: FrameKey::new(hash_key, 5), subtree_id: [0; 32] }
}

fn run(mut world: World, flags: u32, nack: &Nack) -> (Verdict<Frame>, Vec<Step>) {
    let verdict = decide(nack, Policy::new(flags), &mut world);
    (verdict, world.steps)
}

const BOTH: u32 = set::MULTICAST | set::UNICAST;
const ADMITTED: [Step; 4] = [Address, SequenceCheck, Chain, LookUp];

fn after(steps: &[Step]) -> Vec<Step> {
    [&ADMITTED, steps].concat()
}

#[test]
fn over_the_address_limit_is_silence_always() {
    for flags in [BOTH, BOTH | set::THROTTLE_RESPONSE] {
        let (verdict, steps) = run(World { address: false, ..HIT }, flags, &nack(0, 1));
        assert_eq!(verdict, Verdict::Silence);
        assert_eq!(steps, [Address, Count(Counter::LimitedAddress)]);
    }
}

#[test]
fn over_the_other_limits_is_silence_or_throttled() {
    let cases: [(World, u8, Vec<Step>); 3] = [
        (World { sequence_over: true, ..HIT }, 2, vec![Address, SequenceCheck, Known, Count(Counter::LimitedSequence)]),
        (World { chain: false, ..HIT }, 3, vec![Address, SequenceCheck, Chain, Count(Counter::LimitedChain)]),
        (World { group: false, ..HIT }, 4, after(&[Count(Counter::CacheHits), Group(7), Count(Counter::LimitedGroup)])),
    ];
    for (world, bucket, expected) in cases {
        let (verdict, steps) = run(world.clone(), BOTH, &nack(0, 1));
        assert_eq!((verdict, &steps), (Verdict::Silence, &expected));
        let (verdict, steps) = run(world, BOTH | set::THROTTLE_RESPONSE, &nack(0, 1));
        assert_eq!((verdict, &steps), (Verdict::Throttled(bucket), &expected));
    }
}

/// Several look at the window before one of them takes the last of it.
#[test]
fn who_comes_too_late_for_the_window_is_over_it() {
    let taken = World { sequence_taken: true, ..HIT };
    let missing = World { frame: None, ..taken.clone() };
    let limited = [SequenceCharge, Count(Counter::LimitedSequence)];
    let cases = [
        (&taken, set::UNICAST, vec![Count(Counter::CacheHits), Group(7)]),
        (&taken, set::MULTICAST, vec![Count(Counter::CacheHits), Group(7), Peek]),
        (&missing, BOTH, vec![Count(Counter::CacheMisses)]),
        (&missing, BOTH | set::RECOVERY, vec![Count(Counter::CacheMisses)]),
        (&missing, BOTH | set::STORE, vec![]),
    ];
    for (world, flags, before) in cases {
        let expected = after(&[&before[..], &limited].concat());
        assert_eq!(run(world.clone(), flags, &nack(0, 1)), (Verdict::Silence, expected.clone()));
        let said = Verdict::Throttled(throttle_bucket::SEQUENCE);
        assert_eq!(run(world.clone(), flags | set::THROTTLE_RESPONSE, &nack(0, 1)), (said, expected));
    }
}

/// Strangers have used up the frame's window: who is known is served all the same, by its own limits, and never by one more
/// multicast for all.
#[test]
fn a_known_listener_is_served_although_the_window_is_used_up() {
    let full = World { sequence_over: true, sequence_taken: true, known: true, ..HIT };
    assert_eq!(run(full.clone(), BOTH, &nack(0, 1)), (Verdict::Relieve, vec![Address, SequenceCheck, Known]));
    let got = |world: &World, flags: u32| {
        let mut world = world.clone();
        let verdict = relieve(&nack(0, 1), Policy::new(flags), &mut world);
        assert!(world.steps.starts_with(&[Count(Counter::Relieved), Chain]), "{:?}", world.steps);
        let charged = [SequenceCheck, SequenceCharge, Claim];
        assert!(!world.steps.iter().any(|step| charged.contains(step)), "{:?}", world.steps);
        verdict
    };
    let plan = |unicast: bool, held: bool| Repair { multicast: false, unicast, held, ack: true, bare: false };
    for flags in [set::MULTICAST, set::UNICAST, BOTH] {
        assert_eq!(got(&full, flags), Verdict::Repair(Frame(7), plan(true, false)), "{flags:#x}");
    }
    // It has just left by multicast.
    let held = World { multicast: Multicast::HeldByUs, ..full.clone() };
    assert_eq!(got(&held, set::MULTICAST), Verdict::Repair(Frame(7), plan(false, true)));
    assert_eq!(got(&held, BOTH), Verdict::Repair(Frame(7), plan(true, true)));
    let missing = World { frame: None, ..full.clone() };
    assert_eq!(got(&missing, BOTH), Verdict::Miss);
    assert_eq!(got(&missing, BOTH | set::STORE), Verdict::AskStore);
    assert_eq!(got(&missing, BOTH | set::RECOVERY), Verdict::Recover { say: true });
    // Its own limits hold.
    assert_eq!(got(&World { chain: false, ..full.clone() }, BOTH), Verdict::Silence);
    assert_eq!(got(&World { group: false, ..full.clone() }, BOTH), Verdict::Silence);
    assert_eq!(run(World { address: false, ..full }, BOTH, &nack(0, 1)).0, Verdict::Silence);
}

/// Whether a budget is on is one bit; what leaves is asked for once, and a refusal claims no multicast.
#[test]
fn what_leaves_is_charged_to_the_budgets() {
    let (hit, miss) = (Count(Counter::CacheHits), Count(Counter::CacheMisses));
    let over = |world: &World, first, second| World { afforded: [first, second], ..world.clone() };
    let asked = |world: World, flags| run(world, flags | set::BYTE_BUDGETS, &nack(0, 1));
    let planned = |steps: &[Step]| after(&[&[hit, Group(7)], steps].concat());
    for (flags, before, bytes, claim) in [
        (set::UNICAST, &[][..], Afford(1_064, 1_064), false),
        (set::UNICAST | set::SUPPRESS_ACK, &[], Afford(1_000, 1_000), false),
        (set::MULTICAST, &[Peek], Afford(64, 3_064), true),
        (BOTH, &[Peek], Afford(1_064, 4_064), true),
        (BOTH | set::SUPPRESS_ACK, &[Peek], Afford(1_000, 4_000), true),
    ] {
        let before = planned(&[before, &[SequenceCharge, CanSend, bytes]].concat());
        let (_, steps) = asked(HIT, flags);
        assert_eq!(steps, [&before[..], if claim { &[Claim] } else { &[] }].concat(), "{flags:#x}");
        for (refused, counter) in
            [(Afforded::OverSource, Counter::LimitedSourceBytes), (Afforded::OverTotal, Counter::LimitedTotalBytes)]
        {
            let got = asked(over(&HIT, refused, Afforded::Yes), flags | set::THROTTLE_RESPONSE);
            assert_eq!(got, (Verdict::Silence, [&before[..], &[Count(counter)]].concat()), "{flags:#x}");
        }
        assert!(!run(HIT, flags, &nack(0, 1)).1.contains(&bytes), "no budget is on");
    }
    let held = World { multicast: Multicast::HeldByUs, ..HIT };
    let steps = planned(&[Peek, Afford(64, 64), Count(Counter::RetransmitHeldDown)]);
    assert_eq!(asked(held, set::MULTICAST).1, steps);
    let missing = World { frame: None, ..HIT };
    let steps = after(&[miss, SequenceCharge, Afford(64, 64)]);
    assert_eq!(asked(missing.clone(), BOTH), (Verdict::Miss, steps.clone()));
    let refused = over(&missing, Afforded::OverTotal, Afforded::Yes);
    let counted = [&steps[..], &[Count(Counter::LimitedTotalBytes)]].concat();
    assert_eq!(asked(refused.clone(), BOTH), (Verdict::Silence, counted.clone()));
    assert_eq!(asked(refused, BOTH | set::RECOVERY), (Verdict::Silence, counted));
    // What asks a backend or another path leaves nothing yet.
    for (world, flags, verdict) in [
        (&missing, BOTH | set::STORE, Verdict::AskStore),
        (&missing, BOTH | set::RECOVERY | set::SUPPRESS_MISS, Verdict::Recover { say: false }),
        (&World { can_send: false, ..HIT }, BOTH, Verdict::HandOver(Frame(7))),
    ] {
        let (got, steps) = asked(over(world, Afforded::OverTotal, Afforded::OverTotal), flags);
        assert!(got == verdict && !steps.iter().any(|step| matches!(step, Afford(..))), "{got:?} {steps:?}");
    }
    let full = World { sequence_over: true, ..HIT };
    let steps = [Address, SequenceCheck, Known, Count(Counter::LimitedSequence), Afford(64, 64)];
    assert_eq!(asked(full.clone(), BOTH | set::THROTTLE_RESPONSE), (Verdict::Throttled(2), steps.to_vec()));
    assert_eq!(asked(full, BOTH).1, steps[..4], "nothing is said");
}

/// What a source may not have that has not shown that it hears: the group has it where repairs are multicast.
#[test]
fn an_unproven_source_gets_something_smaller() {
    let unproven = |second| World { afforded: [Afforded::Unproven, second], ..HIT };
    let asked = |world: World, flags| {
        let (verdict, mut steps) = run(world, flags | set::BYTE_BUDGETS, &nack(0, 1));
        let first = steps.iter().position(|step| matches!(step, Afford(..))).expect("asked");
        (verdict, steps.split_off(first + 1))
    };
    let counted = Count(Counter::LimitedUnproven);
    let plan = Repair { multicast: true, unicast: false, held: false, ack: true, bare: false };
    assert_eq!(asked(unproven(Afforded::Yes), set::UNICAST), (Verdict::Silence, vec![counted]));
    let throttles = set::UNICAST | set::THROTTLE_RESPONSE;
    let said = vec![counted, Afford(64, 64)];
    assert_eq!(
        asked(unproven(Afforded::Yes), throttles),
        (Verdict::Throttled(throttle_bucket::UNPROVEN), said.clone())
    );
    let over = [&said[..], &[Count(Counter::LimitedTotalBytes)]].concat();
    assert_eq!(asked(unproven(Afforded::OverTotal), throttles), (Verdict::Silence, over));
    let multicast = vec![counted, Afford(64, 3_064), Claim];
    assert_eq!(asked(unproven(Afforded::Yes), BOTH), (Verdict::Repair(Frame(7), plan), multicast));
    let over = vec![counted, Afford(64, 3_064), Count(Counter::LimitedSourceBytes)];
    assert_eq!(asked(unproven(Afforded::OverSource), BOTH), (Verdict::Silence, over));
    let held = World { multicast: Multicast::HeldByAnother, ..unproven(Afforded::Yes) };
    let steps = vec![counted, Afford(64, 64), Count(Counter::RetransmitDedup)];
    let plan = Repair { multicast: false, held: true, ..plan };
    assert_eq!(asked(held, BOTH), (Verdict::Repair(Frame(7), plan), steps));
}

#[test]
fn hash_key_0_is_exempt_from_the_chain_limit() {
    let (verdict, steps) = run(World { chain: false, ..HIT }, set::UNICAST, &nack(0, 0));
    assert!(matches!(verdict, Verdict::Repair(..)));
    assert!(!steps.contains(&Chain));
}

#[test]
fn a_miss() {
    let miss = World { frame: None, ..HIT };
    let said = after(&[Count(Counter::CacheMisses), SequenceCharge]);
    let unsaid = after(&[Count(Counter::CacheMisses)]);
    let asked = after(&[SequenceCharge]);
    let proxied = nack(1, 1);
    let plain = nack(0xfe, 1);
    for (flags, nack, verdict, steps) in [
        (BOTH, &plain, Verdict::Miss, &said),
        (BOTH | set::SUPPRESS_MISS, &plain, Verdict::Silence, &unsaid),
        (BOTH | set::RECOVERY, &plain, Verdict::Recover { say: true }, &said),
        (BOTH | set::RECOVERY | set::SUPPRESS_MISS, &plain, Verdict::Recover { say: false }, &unsaid),
        // Served from our own cache only.
        (BOTH | set::RECOVERY, &proxied, Verdict::Miss, &said),
        (BOTH | set::STORE, &plain, Verdict::AskStore, &asked),
        (BOTH | set::STORE | set::RECOVERY, &proxied, Verdict::AskStore, &asked),
    ] {
        assert_eq!(run(miss.clone(), flags, nack), (verdict, steps.clone()), "{flags:#x}");
    }
}

#[test]
fn what_the_store_has_not_is_a_miss() {
    let mut world = World { frame: None, ..HIT };
    assert_eq!(missed(&nack(0, 1), Policy::new(BOTH | set::STORE), &mut world), Verdict::Miss);
    assert_eq!(world.steps, [Count(Counter::CacheMisses), SequenceCharge]);
}

/// The limits in front of the look-up were asked when the NACK came; the group's could not be.
#[test]
fn what_the_store_has_goes_on_at_the_groups_limit() {
    let mut world = World { address: false, sequence_over: true, chain: false, ..HIT };
    let policy = Policy::new(set::UNICAST | set::STORE);
    assert!(matches!(found(&nack(0, 1), policy, Frame(7), &mut world), Verdict::Repair(Frame(7), _)));
    assert_eq!(world.steps, [Count(Counter::CacheHits), Group(7), SequenceCharge, CanSend]);
    let mut world = World { group: false, ..HIT };
    assert_eq!(found(&nack(0, 1), policy, Frame(7), &mut world), Verdict::Silence);
    assert_eq!(world.steps, [Count(Counter::CacheHits), Group(7), Count(Counter::LimitedGroup)]);
}

#[test]
fn a_hit_by_mode() {
    let none = Repair { multicast: false, unicast: false, held: false, ack: true, bare: false };
    let head = [Count(Counter::CacheHits), Group(7)];
    let with_multicast = [Peek, SequenceCharge, CanSend, Claim];
    for (flags, proxied, plan, tail) in [
        (set::MULTICAST, 0, Repair { multicast: true, ..none }, &with_multicast[..]),
        (set::UNICAST, 0, Repair { unicast: true, ..none }, &[SequenceCharge, CanSend]),
        (BOTH, 0, Repair { multicast: true, unicast: true, ..none }, &with_multicast[..]),
        // Neither: the ACK alone says that the frame is here, and costs the frame nothing.
        (0, 0, Repair { bare: true, ..none }, &[]),
        (0, 1, Repair { unicast: true, ..none }, &[SequenceCharge, CanSend]),
        // Another endpoint gets its copy whatever the mode.
        (set::MULTICAST, 1, Repair { multicast: true, unicast: true, ..none }, &with_multicast[..]),
        (
            BOTH | set::SUPPRESS_ACK,
            0,
            Repair { multicast: true, unicast: true, held: false, ack: false, bare: false },
            &with_multicast[..],
        ),
    ] {
        let (verdict, steps) = run(HIT, flags, &nack(proxied, 1));
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[&head[..], tail].concat()));
    }
}

#[test]
fn a_multicast_that_just_left_is_held_down() {
    let head = [Count(Counter::CacheHits), Group(7), Peek];
    for (multicast, counter) in
        [(Multicast::HeldByUs, Counter::RetransmitHeldDown), (Multicast::HeldByAnother, Counter::RetransmitDedup)]
    {
        let held = World { multicast, ..HIT };
        // The ACK alone costs the frame nothing.
        let (verdict, steps) = run(held.clone(), set::MULTICAST, &nack(0, 1));
        let plan = Repair { multicast: false, unicast: false, held: true, ack: true, bare: false };
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[&head[..], &[Count(counter)]].concat()));
        assert_eq!(plan.ack_flags(false, false), Some(1));
        // A unicast copy is never held down.
        let (verdict, steps) = run(held, BOTH, &nack(0, 1));
        let plan = Repair { multicast: false, unicast: true, held: true, ack: true, bare: false };
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[&head[..], &[SequenceCharge, CanSend, Count(counter)]].concat()));
        assert_eq!(plan.ack_flags(false, true), Some(3));
    }
}

#[test]
fn what_cannot_be_sent_here_is_handed_over_unclaimed_and_charged() {
    let (verdict, steps) = run(World { can_send: false, ..HIT }, BOTH, &nack(0, 1));
    assert_eq!(verdict, Verdict::HandOver(Frame(7)));
    assert_eq!(steps, after(&[Count(Counter::CacheHits), Group(7), Peek, SequenceCharge, CanSend]));
    let (verdict, steps) = run(World { can_send: false, ..HIT }, set::UNICAST, &nack(0, 1));
    assert_eq!(verdict, Verdict::HandOver(Frame(7)));
    assert_eq!(steps, after(&[Count(Counter::CacheHits), Group(7), SequenceCharge, CanSend]));
}

/// An ACK alone needs no frame, and costs nothing.
#[test]
fn what_is_held_down_is_answered_by_who_cannot_send() {
    for (multicast, counter) in
        [(Multicast::HeldByUs, Counter::RetransmitHeldDown), (Multicast::HeldByAnother, Counter::RetransmitDedup)]
    {
        let held = World { can_send: false, multicast, ..HIT };
        let (verdict, steps) = run(held.clone(), set::MULTICAST, &nack(0, 1));
        let plan = Repair { multicast: false, unicast: false, held: true, ack: true, bare: false };
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[Count(Counter::CacheHits), Group(7), Peek, Count(counter)]));
        // With a copy to send it is not.
        for (flags, nack) in [(BOTH, nack(0, 1)), (set::MULTICAST, nack(1, 1))] {
            assert_eq!(run(held.clone(), flags, &nack).0, Verdict::HandOver(Frame(7)));
        }
    }
}

/// Who asks the store has charged the window that is checked at the next NACK.
#[test]
fn the_store_is_asked_for_a_charge() {
    let (verdict, steps) = run(World { frame: None, ..HIT }, BOTH | set::STORE, &nack(0, 1));
    assert_eq!(verdict, Verdict::AskStore);
    assert_eq!(steps, after(&[SequenceCharge]));
}

#[test]
fn an_ack_says_what_left_and_nothing_else() {
    let plan = Repair { multicast: true, unicast: true, held: false, ack: true, bare: false };
    assert_eq!(plan.ack_flags(true, true), Some(3));
    assert_eq!(plan.ack_flags(true, false), Some(1));
    assert_eq!(plan.ack_flags(false, true), Some(2));
    assert_eq!(plan.ack_flags(false, false), None);
    assert_eq!(Repair { ack: false, ..plan }.ack_flags(true, true), None);
    let bare = Repair { bare: true, ..Repair::default() };
    assert_eq!(Repair { ack: true, ..bare }.ack_flags(false, false), Some(0));
    assert_eq!(bare.ack_flags(false, false), None);
}

/// The admitted NACK of an event goes on behind the limits.
#[test]
fn an_admitted_nack_is_not_asked_for_its_limits_again() {
    let mut world = World { address: false, sequence_over: true, chain: false, group: false, ..HIT };
    let verdict = repair(&nack(0, 1), Policy::new(set::UNICAST), Frame(7), &mut world);
    assert!(matches!(verdict, Verdict::Repair(..)));
    assert_eq!(world.steps, [SequenceCharge, CanSend]);
}

fn any_multicast() -> impl Strategy<Value = Multicast> {
    prop_oneof![Just(Multicast::Claimed), Just(Multicast::HeldByUs), Just(Multicast::HeldByAnother)]
}

/// The table read the other way round: first who refuses, then what was asked until then, then what comes of it.
fn table(world: &World, flags: u32, nack: &Nack) -> (Verdict<Frame>, Vec<Step>) {
    let on = |flag: u32| flags & flag != 0;
    let has_chain = nack.key.hash_key() != 0;
    let hit = world.frame;
    let relieved = world.sequence_over && world.known;
    // Who refuses, in the order of the table: the counter, and the backoff bucket where there is one.
    let refusals = [
        (!world.address, Counter::LimitedAddress, None),
        (world.sequence_over && !world.known, Counter::LimitedSequence, Some(2)),
        (has_chain && !world.chain, Counter::LimitedChain, Some(3)),
        (hit.is_some() && !world.group, Counter::LimitedGroup, Some(4)),
    ];
    let refusal = refusals.iter().position(|(refuses, ..)| *refuses);

    let check = match (world.sequence_over, relieved) {
        (false, _) => vec![SequenceCheck],
        (true, false) => vec![SequenceCheck, Known],
        (true, true) if world.address => return (Verdict::Relieve, vec![Address, SequenceCheck, Known]),
        (true, true) => vec![SequenceCheck],
    };
    let mut asked = vec![vec![Address], check, if has_chain { vec![Chain] } else { vec![] }];
    let look_up = match hit {
        Some(Frame(group)) => vec![LookUp, Count(Counter::CacheHits), Group(group)],
        None => vec![LookUp],
    };
    asked.push(look_up);
    asked.truncate(refusal.map_or(4, |at| at + 1));
    let mut steps = asked.concat();

    if let Some((_, counter, bucket)) = refusal.map(|at| refusals[at]) {
        steps.push(Count(counter));
        let said = bucket.filter(|_| on(set::THROTTLE_RESPONSE));
        return (said.map_or(Verdict::Silence, Verdict::Throttled), steps);
    }

    let proxied = nack.flags % 2 == 1;
    let Some(frame) = hit else {
        if on(set::STORE) {
            steps.push(SequenceCharge);
            return (Verdict::AskStore, steps);
        }
        let say = !on(set::SUPPRESS_MISS);
        steps.push(Count(Counter::CacheMisses));
        steps.extend(say.then_some(SequenceCharge));
        let verdict = match (on(set::RECOVERY) && !proxied, say) {
            (true, say) => Verdict::Recover { say },
            (false, true) => Verdict::Miss,
            (false, false) => Verdict::Silence,
        };
        return (verdict, steps);
    };

    // The highest bit marks a sender that is no peer.
    let unicast = on(set::UNICAST) || (proxied && nack.flags < 0x80);
    let repairs = on(set::MULTICAST) && world.multicast == Multicast::Claimed;
    steps.extend(on(set::MULTICAST).then_some(Peek));
    if repairs || unicast {
        steps.extend([SequenceCharge, CanSend]);
        if !world.can_send {
            return (Verdict::HandOver(frame), steps);
        }
    }
    steps.extend(repairs.then_some(Claim));
    let (multicast, held_by) = match (on(set::MULTICAST), world.multicast) {
        (false, _) => (false, None),
        (true, Multicast::Claimed) => (true, None),
        (true, Multicast::HeldByUs) => (false, Some(Counter::RetransmitHeldDown)),
        (true, Multicast::HeldByAnother) => (false, Some(Counter::RetransmitDedup)),
    };
    steps.extend(held_by.map(Count));
    let bare = !on(set::MULTICAST) && !unicast;
    let plan = Repair { multicast, unicast, held: held_by.is_some(), ack: !on(set::SUPPRESS_ACK), bare };
    (Verdict::Repair(frame, plan), steps)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn every_case_goes_by_the_table(
        // A limit mostly admits, or few cases would come as far as the repair.
        limits in prop::array::uniform4(prop::bool::weighted(0.85)), frame in prop::option::weighted(0.7, any::<u16>()),
        can_send in prop::bool::weighted(0.8), multicast in any_multicast(), flags in 0u32..0x400, nack_flags: u8, hash_key in 0u64..3,
        known: bool,
    ) {
        let [address, under_sequence, chain, group] = limits;
        let frame = frame.map(Frame);
        let mut world = World { address, sequence_over: !under_sequence, chain, group, can_send, multicast, frame, known, ..HIT };
        let nack = nack(nack_flags, hash_key);
        let expected = table(&world, flags, &nack);
        let verdict = decide(&nack, Policy::new(flags), &mut world);
        prop_assert_eq!((verdict, &world.steps), (expected.0, &expected.1));
        // `can_send` is asked for what would be sent.
        let wanted = flags & set::MULTICAST != 0 && multicast == Multicast::Claimed;
        prop_assert_eq!(world.wanted, expected.1.contains(&CanSend).then_some(wanted));
    }

    #[test]
    fn an_acks_flags_have_a_ground(
        plan in any::<[bool; 5]>(), multicast_left: bool, unicast_left: bool,
    ) {
        let [multicast, unicast, held, ack, bare] = plan;
        let flags = Repair { multicast, unicast, held, ack, bare }.ack_flags(multicast_left, unicast_left);
        let said = flags.unwrap_or(0);
        prop_assert_eq!(flags.is_some(), ack && (multicast_left || held || unicast_left || bare));
        prop_assert_eq!(said & 0x01 != 0, ack && (multicast_left || held));
        prop_assert_eq!(said & 0x02 != 0, ack && unicast_left);
        prop_assert_eq!(said & !0x03, 0);
    }
}
