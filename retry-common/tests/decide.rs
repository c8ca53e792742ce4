//! The truth table, step by step: what a NACK gets, what it charges, what it counts, in which order.

use proptest::prelude::*;
use retry_common::abi::setting_flag as set;
use retry_common::counter::Counter;
use retry_common::decide::{Endpoint, Found, Multicast, Policy, Repair, Verdict, decide, missed, repair};
use retry_common::key::FrameKey;
use retry_common::wire::nack::Nack;

/// What the endpoint was asked, in order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Address,
    SequenceCheck,
    SequenceCharge,
    Chain,
    LookUp,
    Group(u16),
    CanSend,
    Claim,
    Count(Counter),
}
use Step::{Address, CanSend, Chain, Claim, Count, Group, LookUp, SequenceCharge, SequenceCheck};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Frame(u16);

impl Found for Frame {
    fn group(&self) -> u16 {
        self.0
    }
}

/// An endpoint whose answers are given, and which remembers the questions.
#[derive(Clone, Debug)]
struct World {
    address: bool,
    sequence_over: bool,
    chain: bool,
    frame: Option<Frame>,
    group: bool,
    can_send: bool,
    multicast: Multicast,
    steps: Vec<Step>,
}

const HIT: World = World {
    address: true,
    sequence_over: false,
    chain: true,
    frame: Some(Frame(7)),
    group: true,
    can_send: true,
    multicast: Multicast::Claimed,
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
    fn charge_sequence(&mut self) {
        self.steps.push(SequenceCharge);
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
    fn can_send(&mut self, _frame: &Frame, _multicast: bool, _unicast: bool) -> bool {
        self.steps.push(CanSend);
        self.can_send
    }
    fn claim_multicast(&mut self) -> Multicast {
        self.steps.push(Claim);
        self.multicast
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
        (World { sequence_over: true, ..HIT }, 2, vec![Address, SequenceCheck, Count(Counter::LimitedSequence)]),
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
    let proxied = nack(1, 1);
    let plain = nack(0xfe, 1);
    for (flags, nack, verdict, steps) in [
        (BOTH, &plain, Verdict::Miss, &said),
        (BOTH | set::SUPPRESS_MISS, &plain, Verdict::Silence, &unsaid),
        (BOTH | set::RECOVERY, &plain, Verdict::Recover { say: true }, &said),
        (BOTH | set::RECOVERY | set::SUPPRESS_MISS, &plain, Verdict::Recover { say: false }, &unsaid),
        // Served from our own cache only.
        (BOTH | set::RECOVERY, &proxied, Verdict::Miss, &said),
        (BOTH | set::STORE, &plain, Verdict::AskStore, &ADMITTED.to_vec()),
        (BOTH | set::STORE | set::RECOVERY, &proxied, Verdict::AskStore, &ADMITTED.to_vec()),
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

#[test]
fn a_hit_by_mode() {
    let none = Repair { multicast: false, unicast: false, held: false, ack: true };
    let head = [Count(Counter::CacheHits), Group(7), CanSend];
    for (flags, proxied, plan, tail) in [
        (set::MULTICAST, 0, Repair { multicast: true, ..none }, vec![Claim, SequenceCharge]),
        (set::UNICAST, 0, Repair { unicast: true, ..none }, vec![SequenceCharge]),
        (BOTH, 0, Repair { multicast: true, unicast: true, ..none }, vec![Claim, SequenceCharge]),
        // Another endpoint gets its copy whatever the mode.
        (set::MULTICAST, 1, Repair { multicast: true, unicast: true, ..none }, vec![Claim, SequenceCharge]),
        (
            BOTH | set::SUPPRESS_ACK,
            0,
            Repair { multicast: true, unicast: true, held: false, ack: false },
            vec![Claim, SequenceCharge],
        ),
    ] {
        let (verdict, steps) = run(HIT, flags, &nack(proxied, 1));
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[&head[..], &tail].concat()));
    }
}

#[test]
fn a_multicast_that_just_left_is_held_down() {
    let head = [Count(Counter::CacheHits), Group(7), CanSend, Claim];
    for (multicast, counter) in
        [(Multicast::HeldByUs, Counter::RetransmitHeldDown), (Multicast::HeldByAnother, Counter::RetransmitDedup)]
    {
        let held = World { multicast, ..HIT };
        // The ACK alone costs the frame nothing.
        let (verdict, steps) = run(held.clone(), set::MULTICAST, &nack(0, 1));
        let plan = Repair { multicast: false, unicast: false, held: true, ack: true };
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[&head[..], &[Count(counter)]].concat()));
        assert_eq!(plan.ack_flags(false, false), Some(1));
        // A unicast copy is never held down.
        let (verdict, steps) = run(held, BOTH, &nack(0, 1));
        let plan = Repair { multicast: false, unicast: true, held: true, ack: true };
        assert_eq!(verdict, Verdict::Repair(Frame(7), plan));
        assert_eq!(steps, after(&[&head[..], &[Count(counter), SequenceCharge]].concat()));
        assert_eq!(plan.ack_flags(false, true), Some(3));
    }
}

#[test]
fn what_cannot_be_sent_here_is_handed_over_unclaimed_and_charged() {
    let (verdict, steps) = run(World { can_send: false, ..HIT }, BOTH, &nack(0, 1));
    assert_eq!(verdict, Verdict::HandOver(Frame(7)));
    assert_eq!(steps, after(&[Count(Counter::CacheHits), Group(7), CanSend, SequenceCharge]));
}

#[test]
fn an_ack_says_what_left_and_nothing_else() {
    let plan = Repair { multicast: true, unicast: true, held: false, ack: true };
    assert_eq!(plan.ack_flags(true, true), Some(3));
    assert_eq!(plan.ack_flags(true, false), Some(1));
    assert_eq!(plan.ack_flags(false, true), Some(2));
    assert_eq!(plan.ack_flags(false, false), None);
    assert_eq!(Repair { ack: false, ..plan }.ack_flags(true, true), None);
}

/// The admitted NACK of an event goes on behind the limits.
#[test]
fn an_admitted_nack_is_not_asked_for_its_limits_again() {
    let mut world = World { address: false, sequence_over: true, chain: false, group: false, ..HIT };
    let verdict = repair(&nack(0, 1), Policy::new(set::UNICAST), Frame(7), &mut world);
    assert!(matches!(verdict, Verdict::Repair(..)));
    assert_eq!(world.steps, [CanSend, SequenceCharge]);
}

fn any_multicast() -> impl Strategy<Value = Multicast> {
    prop_oneof![Just(Multicast::Claimed), Just(Multicast::HeldByUs), Just(Multicast::HeldByAnother)]
}

proptest! {
    /// Written again, as a list of what must hold.
    #[test]
    fn whatever_the_world_is(
        limits: [bool; 4], frame: bool, can_send: bool, multicast in any_multicast(), flags in 0u32..0x400, nack_flags: u8, hash_key in 0u64..2,
    ) {
        let [address, sequence_over, chain, group] = limits;
        let world = World {
            address, sequence_over, chain, group, can_send, multicast, frame: frame.then_some(Frame(7)), steps: Vec::new(),
        };
        let (verdict, steps) = run(world, flags, &nack(nack_flags, hash_key));
        let has = |step: Step| steps.contains(&step);
        let counted = |counter: Counter| steps.iter().filter(|step| **step == Count(counter)).count();
        let wants = |flag: u32| flags & flag != 0;

        let admitted = address && !sequence_over && (chain || hash_key == 0);
        prop_assert_eq!(has(LookUp), admitted);
        prop_assert_eq!(counted(Counter::CacheHits), usize::from(admitted && frame));
        let over = [Counter::LimitedAddress, Counter::LimitedSequence, Counter::LimitedChain, Counter::LimitedGroup];
        let refused = over.into_iter().map(counted).sum::<usize>();
        prop_assert_eq!(refused, usize::from(!admitted || (frame && !group)));
        match verdict {
            Verdict::Throttled(bucket) => {
                prop_assert!(refused == 1 && wants(set::THROTTLE_RESPONSE) && address);
                prop_assert!((2..=4).contains(&bucket));
            }
            Verdict::Silence => prop_assert!(refused == 1 || (!frame && wants(set::SUPPRESS_MISS))),
            Verdict::Miss => prop_assert!(!frame && !wants(set::SUPPRESS_MISS) && !wants(set::STORE)),
            Verdict::Recover { say } => {
                prop_assert!(!frame && wants(set::RECOVERY) && nack_flags & 1 == 0 && !wants(set::STORE));
                prop_assert_eq!(say, !wants(set::SUPPRESS_MISS));
            }
            Verdict::AskStore => prop_assert!(!frame && wants(set::STORE)),
            Verdict::HandOver(_) => prop_assert!(frame && !can_send && !has(Claim)),
            Verdict::Repair(_, plan) => {
                prop_assert!(frame && can_send && group);
                prop_assert_eq!(plan.unicast, wants(set::UNICAST) || nack_flags & 1 == 1);
                prop_assert_eq!(has(Claim), wants(set::MULTICAST));
                prop_assert_eq!(plan.multicast, wants(set::MULTICAST) && multicast == Multicast::Claimed);
                prop_assert_eq!(plan.held, wants(set::MULTICAST) && multicast != Multicast::Claimed);
                prop_assert_eq!(plan.ack, !wants(set::SUPPRESS_ACK));
                prop_assert_eq!(has(SequenceCharge), plan.multicast || plan.unicast);
            }
        }
    }
}
