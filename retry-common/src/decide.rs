//! The one truth table: what a NACK gets. docs/nack-decision.md numbers its steps.
//!
//! [`decide`] runs the checks in their order and says what to send. It reads no clock and keeps no state: what it looks
//! at and what it charges stands behind [`Endpoint`], which the kernel implements over BPF maps and the daemon over its
//! own tables. Neither of them decides anything.

use crate::abi::setting_flag;
use crate::counter::Counter;
use crate::limits::bytes::{ANSWER_BYTES, Afforded, Leaving};
use crate::wire::answer::AckFlags;
use crate::wire::nack::Nack;

/// Backoff bucket of a THROTTLED: the listener holds for 125 ms << bucket.
pub mod throttle_bucket {
    /// Over the limit of the frame.
    pub const SEQUENCE: u8 = 2;
    /// Over the limit of the address and flow.
    pub const CHAIN: u8 = 3;
    /// Over the limit of the address and group.
    pub const GROUP: u8 = 4;
    /// More than a source gets that has not shown that it hears us: who asks again after it is known.
    pub const UNPROVEN: u8 = 3;
}

/// No [`setting_flag`]: the window of the frame does not hold for this NACK.
const RELIEVED: u32 = 1 << 31;

/// The operator's choices that shape an answer, as [`setting_flag`] bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Policy(u32);

impl Policy {
    /// The policy of a set of [`setting_flag`] bits.
    #[inline(always)]
    pub const fn new(flags: u32) -> Self {
        Self(flags)
    }

    /// The same, for a NACK that the window of its frame does not hold for.
    #[inline(always)]
    const fn relieved(self) -> Self {
        Self(self.0 | RELIEVED)
    }

    #[inline(always)]
    const fn is_relieved(self) -> bool {
        self.has(RELIEVED)
    }

    #[inline(always)]
    const fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }

    /// True when repairs are multicast.
    #[inline(always)]
    pub const fn multicasts(self) -> bool {
        self.has(setting_flag::MULTICAST)
    }

    /// True when every listener that asks gets a copy.
    #[inline(always)]
    pub const fn unicasts(self) -> bool {
        self.has(setting_flag::UNICAST)
    }

    /// True when a hit may be answered with an ACK.
    #[inline(always)]
    pub const fn acks(self) -> bool {
        !self.has(setting_flag::SUPPRESS_ACK)
    }
}

/// What the table knows of a frame that was found.
pub trait CachedFrame: Copy {
    /// Index of the group that a multicast repair goes to.
    fn group(&self) -> u16;
}

/// Who multicast the frame lately.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Multicast {
    /// No instance: the claim is ours, send.
    Claimed,
    /// We did.
    HeldByUs,
    /// Another instance did.
    HeldByAnother,
}

/// What a decision looks at and charges, for one NACK at one time. A limit that is off admits.
pub trait Endpoint {
    /// A frame of the log.
    type Frame: CachedFrame;

    /// Takes a token of the source address.
    fn take_address(&mut self) -> bool;
    /// True when the frame was asked for too often in its window. Charges nothing.
    fn sequence_is_over(&mut self) -> bool;
    /// Charges the window of the frame; false when it is full, because others charged it since it was looked at.
    fn take_sequence(&mut self) -> bool;
    /// True when the source is a known listener. Asked only when the window of the frame is full.
    fn is_known(&mut self) -> bool;
    /// Charges the window of (source, HashKey); false when it is full.
    fn take_chain(&mut self) -> bool;
    /// The frame, if the log has it.
    fn look_up(&mut self) -> Option<Self::Frame>;
    /// Takes a token of (source, group).
    fn take_group(&mut self, group: u16) -> bool;
    /// True when this path can send the frame itself; `multicast` when that is among the ways, `ack` when an ACK goes with it.
    fn can_send(&mut self, frame: &Self::Frame, multicast: bool, ack: bool) -> bool;
    /// Claims the multicast of the frame.
    fn claim_multicast(&mut self) -> Multicast;
    /// What a claim would say, without making it: [`Multicast::Claimed`] when no instance holds the frame.
    fn peek_multicast(&mut self) -> Multicast;
    /// Bytes of the packets that carry the frame by one interface ([`crate::limits::bytes::packet`]).
    fn packet_bytes(&self, frame: &Self::Frame) -> u32;
    /// How many interfaces a multicast repair leaves by.
    fn egress_interfaces(&self) -> u32;
    /// Whether so much may leave ([`crate::limits::bytes::afford`]). Asked only where a budget in bytes is on.
    fn afford(&mut self, leaving: &Leaving) -> Afforded;
    /// Counts one.
    fn count(&mut self, counter: Counter);
}

/// What leaves for a hit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Repair {
    /// The frame to its group, by every egress interface.
    pub multicast: bool,
    /// The frame to the NACK's sender.
    pub unicast: bool,
    /// True when the multicast was left out because it had just left: the ACK may still say so.
    pub held: bool,
    /// True when an ACK is wanted, if its flags have a ground.
    pub ack: bool,
    /// True when neither multicast nor unicast is wanted: the ACK then says that the frame is here, with flags 0.
    pub bare: bool,
}

impl Repair {
    /// The flags of the ACK, given what really left; `None` when there is nothing to say or no ACK is wanted.
    #[inline(always)]
    pub const fn ack_flags(&self, multicast_left: bool, unicast_left: bool) -> Option<u8> {
        let mut flags = 0;
        if multicast_left || self.held {
            flags |= AckFlags::MULTICAST.bits();
        }
        if unicast_left {
            flags |= AckFlags::UNICAST.bits();
        }
        if self.ack && (flags != 0 || self.bare) { Some(flags) } else { None }
    }
}

/// What a NACK gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict<F> {
    /// Nothing.
    Silence,
    /// A THROTTLED with this backoff bucket.
    Throttled(u8),
    /// A MISS; no backend is asked.
    Miss,
    /// A MISS if `say`, and a job for recovery.
    Recover {
        /// False with `suppress-miss`.
        say: bool,
    },
    /// The shared store is asked before anything is said.
    AskStore,
    /// The frame.
    Repair(F, Repair),
    /// The frame, which this path cannot send.
    HandOver(F),
    /// The window of its frame is full, and its source is known: [`relieve`] goes on. The kernel program leaves that to the
    /// daemon, for it is rare.
    Relieve,
}

/// Decides on a NACK: steps 2 to 11 of docs/nack-decision.md.
#[inline(always)]
pub fn decide<E: Endpoint>(nack: &Nack, policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    // Step 2: never an answer, or a spoofed flood would be reflected.
    if !endpoint.take_address() {
        endpoint.count(Counter::LimitedAddress);
        return Verdict::Silence;
    }
    // Step 3. The window is shared by all who ask, so strangers could use it up for those who are known.
    if endpoint.sequence_is_over() {
        return if endpoint.is_known() { Verdict::Relieve } else { over_sequence(policy, endpoint) };
    }
    within(nack, policy, endpoint)
}

/// Decides on a NACK of [`Verdict::Relieve`]: steps 4 to 11, without the window of its frame.
pub fn relieve<E: Endpoint>(nack: &Nack, policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    endpoint.count(Counter::Relieved);
    within(nack, policy.relieved(), endpoint)
}

/// Decides on a NACK that waited for the shared store, which has answered: steps 6 to 11.
pub fn answered<E: Endpoint>(nack: &Nack, policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    match endpoint.look_up() {
        Some(frame) => found(nack, policy, frame, endpoint),
        None => missed(nack, policy, endpoint),
    }
}

/// Decides on a NACK of [`Verdict::HandOver`]: steps 8 to 11, or 6 and 11 where the frame has gone meanwhile.
pub fn handed_over<E: Endpoint>(nack: &Nack, policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    match endpoint.look_up() {
        Some(frame) => repair(nack, policy, frame, endpoint),
        None => missed(nack, policy, endpoint),
    }
}

/// Steps 4 to 11.
#[inline(always)]
fn within<E: Endpoint>(nack: &Nack, policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    // Step 4.
    if nack.key.hash_key() != 0 && !endpoint.take_chain() {
        endpoint.count(Counter::LimitedChain);
        return throttled(policy, throttle_bucket::CHAIN, endpoint);
    }
    // Step 5.
    match endpoint.look_up() {
        Some(frame) => found(nack, policy, frame, endpoint),
        None if policy.has(setting_flag::STORE) => {
            // The backend's answer comes without a window to charge, so it is charged now.
            if charge(policy, endpoint) { Verdict::AskStore } else { over_sequence(policy, endpoint) }
        }
        None => missed(nack, policy, endpoint),
    }
}

/// Steps 6 and 11 for a NACK that neither the log nor, where there is one, the shared store can serve.
#[inline(always)]
pub fn missed<E: Endpoint>(nack: &Nack, policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    endpoint.count(Counter::CacheMisses);
    let say = !policy.has(setting_flag::SUPPRESS_MISS);
    if say && !charge(policy, endpoint) {
        return over_sequence(policy, endpoint);
    }
    if say && !affords_answer(policy, endpoint) {
        return Verdict::Silence;
    }
    if policy.has(setting_flag::RECOVERY) && !nack.proxied() {
        Verdict::Recover { say }
    } else if say {
        Verdict::Miss
    } else {
        Verdict::Silence
    }
}

/// Steps 7 to 11 for a NACK whose frame was found.
#[inline(always)]
pub fn found<E: Endpoint>(nack: &Nack, policy: Policy, frame: E::Frame, endpoint: &mut E) -> Verdict<E::Frame> {
    endpoint.count(Counter::CacheHits);
    if !endpoint.take_group(frame.group()) {
        endpoint.count(Counter::LimitedGroup);
        return throttled(policy, throttle_bucket::GROUP, endpoint);
    }
    repair(nack, policy, frame, endpoint)
}

/// Steps 8 to 11 for a NACK that every limit admitted.
#[inline(always)]
pub fn repair<E: Endpoint>(nack: &Nack, policy: Policy, frame: E::Frame, endpoint: &mut E) -> Verdict<E::Frame> {
    let multicast = policy.has(setting_flag::MULTICAST);
    let holder = if multicast { Some(endpoint.peek_multicast()) } else { None };
    let is_due = matches!(holder, Some(Multicast::Claimed));
    // What is held down needs no frame and costs nothing: the path that looks at it answers.
    let repairs = is_due && !policy.is_relieved();
    // Who is relieved has a copy in the place of a multicast: one more of these would be everyone's.
    let unicast = policy.unicasts() || nack.is_peers() || (policy.is_relieved() && is_due);
    if repairs || unicast {
        // Also when the frame is handed over: the daemon does not charge this window again. And before the packet is
        // grown: an atomic step waits until all that was written before has reached the cache.
        if !charge(policy, endpoint) {
            return over_sequence(policy, endpoint);
        }
        if !endpoint.can_send(&frame, repairs, policy.acks()) {
            return Verdict::HandOver(frame);
        }
    }
    let bare = !multicast && !unicast;
    let unicast = if policy.has(setting_flag::BYTE_BUDGETS) {
        let plan = Repair { multicast: repairs, unicast, held: multicast && !is_due, ack: policy.acks(), bare };
        match within_budgets(&frame, plan, endpoint) {
            Ok(unicast) => unicast,
            Err(bucket) => return throttled(policy, bucket, endpoint),
        }
    } else {
        unicast
    };
    let mut plan = Repair { multicast: false, unicast, held: false, ack: policy.acks(), bare };
    // Who hands over, or sends nothing, must not claim what another path sends, so this comes last.
    let claim = if repairs { Some(endpoint.claim_multicast()) } else { holder };
    match claim {
        None => {}
        Some(Multicast::Claimed) => plan.multicast = repairs,
        Some(Multicast::HeldByUs) => {
            plan.held = true;
            endpoint.count(Counter::RetransmitHeldDown);
        }
        Some(Multicast::HeldByAnother) => {
            plan.held = true;
            endpoint.count(Counter::RetransmitDedup);
        }
    }
    Verdict::Repair(frame, plan)
}

/// Step 11 for a hit: whether its unicast copy, if one is planned, may leave with the rest of the plan; the bucket of the
/// THROTTLED when nothing of it may, 0 for silence.
#[inline(always)]
fn within_budgets<E: Endpoint>(frame: &E::Frame, plan: Repair, endpoint: &mut E) -> Result<bool, u8> {
    let refused = match endpoint.afford(&leaving(frame, &plan, endpoint)) {
        Afforded::Yes => return Ok(plan.unicast),
        refused => refused,
    };
    count_refused(refused, endpoint);
    if refused != Afforded::Unproven {
        return Err(0);
    }
    // The group has the frame, or has just had it.
    if !plan.multicast && !plan.held {
        return Err(throttle_bucket::UNPROVEN);
    }
    let refused = endpoint.afford(&leaving(frame, &Repair { unicast: false, ..plan }, endpoint));
    count_refused(refused, endpoint);
    if refused == Afforded::Yes { Ok(false) } else { Err(0) }
}

/// Step 11 for one answer; false when it may not leave.
#[inline(always)]
pub fn affords_answer<E: Endpoint>(policy: Policy, endpoint: &mut E) -> bool {
    if !policy.has(setting_flag::BYTE_BUDGETS) {
        return true;
    }
    let afforded = endpoint.afford(&Leaving::ANSWER);
    count_refused(afforded, endpoint);
    afforded == Afforded::Yes
}

#[inline(always)]
fn count_refused<E: Endpoint>(afforded: Afforded, endpoint: &mut E) {
    if let Some(counter) = refused(afforded) {
        endpoint.count(counter);
    }
}

/// What is counted for what may not leave.
#[inline(always)]
pub const fn refused(afforded: Afforded) -> Option<Counter> {
    match afforded {
        Afforded::Yes => None,
        Afforded::Unproven => Some(Counter::LimitedUnproven),
        Afforded::OverSource => Some(Counter::LimitedSourceBytes),
        Afforded::OverTotal => Some(Counter::LimitedTotalBytes),
    }
}

/// What leaves for a plan.
#[inline(always)]
fn leaving<E: Endpoint>(frame: &E::Frame, plan: &Repair, endpoint: &E) -> Leaving {
    let packet = endpoint.packet_bytes(frame);
    let ack = if plan.ack_flags(plan.multicast, plan.unicast).is_some() { ANSWER_BYTES } else { 0 };
    let to_source = if plan.unicast { packet } else { 0 } + ack;
    let multicast = if plan.multicast { packet * endpoint.egress_interfaces() } else { 0 };
    Leaving { to_source, all: to_source + multicast, before: 0 }
}

/// Charges the window of the frame, of who is not relieved of it; false when it is full.
#[inline(always)]
fn charge<E: Endpoint>(policy: Policy, endpoint: &mut E) -> bool {
    policy.is_relieved() || endpoint.take_sequence()
}

#[inline(always)]
fn over_sequence<E: Endpoint>(policy: Policy, endpoint: &mut E) -> Verdict<E::Frame> {
    endpoint.count(Counter::LimitedSequence);
    throttled(policy, throttle_bucket::SEQUENCE, endpoint)
}

/// A THROTTLED, if it is said and step 11 admits it.
#[inline(always)]
fn throttled<E: Endpoint>(policy: Policy, bucket: u8, endpoint: &mut E) -> Verdict<E::Frame> {
    if policy.has(setting_flag::THROTTLE_RESPONSE) && bucket != 0 && affords_answer(policy, endpoint) {
        Verdict::Throttled(bucket)
    } else {
        Verdict::Silence
    }
}
