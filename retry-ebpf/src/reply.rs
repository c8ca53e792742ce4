//! Carries out a verdict: one answer in place, or clones of the NACK through a devmap, each rewritten by its role.
//!
//! XDP is one packet in, one out, except for a devmap broadcast, which clones the packet to every entry. The main program
//! leaves a [`Ticket`] in the packet and broadcasts; [`crate::role`] does the rest.
//!
//! Longer than most files: every verdict is carried out here and counted where it has been, and the devmaps that it chooses
//! among stand beside the choice.

use core::hint::black_box;

use aya_ebpf::bindings::BPF_F_BROADCAST;
use aya_ebpf::btf_maps::DevMap;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{Event, EventKind, Ticket, Watched, setting_flag, ticket_role};
use retry_common::counter::{self, Counter};
use retry_common::decide::{Policy, Repair, Verdict, affords_answer, decide};
use retry_common::index;
use retry_common::latency::Measured;
use retry_common::wire::answer::{AckFlags, Answer};

use crate::classify::Request;
use crate::endpoint::Kernel;
use crate::log::{self, Record};
use crate::rewrite::{Ends, packet_len, swap_macs, write_answer, write_frame};
use crate::role::{TICKET, next_nonce};
use crate::{admit, bytes, count, packet, sample, watch};

/// The most entries of a devmap: interfaces for multicast, and the NACK's twice.
const ENTRIES: usize = 18;

/// The NACK's interface, for answers made in place: the role program lets them through.
#[btf_map]
static BACK: DevMap<1> = DevMap::new();
#[btf_map]
static ACK_UNICAST: DevMap<ENTRIES> = DevMap::new();
#[btf_map]
static ACK_MULTI: DevMap<ENTRIES> = DevMap::new();
#[btf_map]
static ACK_UNI_MULTI: DevMap<ENTRIES> = DevMap::new();
#[btf_map]
static MULTICAST: DevMap<ENTRIES> = DevMap::new();
#[btf_map]
static UNI_MULTI: DevMap<ENTRIES> = DevMap::new();

/// What the daemon alone asks.
const BACKENDS: u32 = setting_flag::STORE | setting_flag::RECOVERY;

/// What becomes of the packet.
pub(crate) enum Outcome {
    /// To the stack.
    Pass,
    /// Nowhere.
    Drop,
    /// Back to the fabric.
    Redirected,
    /// Nowhere, because the kernel refused to make room or to redirect; what to count.
    Failed(Counter),
}

/// What became of a NACK.
pub(crate) struct Done {
    /// Of its packet.
    pub(crate) outcome: Outcome,
    /// Where its time is counted.
    pub(crate) measured: Measured,
    /// What left, as [`ticket_role`] bits.
    pub(crate) sent: u8,
    /// Number of the counter that says why, plus one.
    pub(crate) reason: u16,
    /// Bytes of the frame that left.
    pub(crate) length: u16,
}

impl Done {
    #[inline(always)]
    const fn new(outcome: Outcome, measured: Measured) -> Self {
        Self { outcome, measured, sent: 0, reason: 0, length: 0 }
    }

    #[inline(always)]
    const fn because(self, reason: u16) -> Self {
        if self.reason == 0 { Self { reason, ..self } } else { self }
    }

    #[inline(always)]
    const fn silence() -> Self {
        Self::new(Outcome::Drop, Measured::Silence)
    }

    #[inline(always)]
    const fn failed(counter: Counter) -> Self {
        Self { reason: counter as u16 + 1, ..Self::new(Outcome::Failed(counter), Measured::Failed) }
    }
}

/// Tells a watcher, if there is one.
#[inline(always)]
pub(crate) fn tell(ctx: &XdpContext, request: &Request, done: &Done) {
    let Done { measured, sent, reason, .. } = *done;
    let record = Watched {
        kind: Watched::DECIDED,
        at_ns: request.now_ns,
        verdict: measured as u8,
        reason,
        sent,
        ..Watched::NONE
    };
    let is_in_place = matches!(measured, Measured::InPlace | Measured::Ack | Measured::Miss | Measured::Throttled);
    watch::decided(ctx, request.settings, &record, is_in_place);
}

/// Decides on a NACK and rewrites the packet.
#[inline(always)]
pub(crate) fn answer(ctx: &XdpContext, request: &Request) -> Done {
    let flags = log::flags(request.settings);
    // Without a daemon the log is all there is: what would wait for it is a MISS, and listeners ask the next endpoint.
    // Without a branch: the verifier would follow all that comes once more.
    let absent = ones_when_over(log::daemon_until_ns(request.settings), request.now_ns);
    let policy = Policy::new(flags & !(BACKENDS & absent));
    let hash = index::hash(&request.nack.key, request.settings.hash_seed);
    // These lines are most often cold. Loaded here they come at the same time; later, each would wait for the atomic step of
    // the limit before it.
    log::touch(hash, request.settings, policy.multicasts());
    admit::touch(hash, request.settings);
    bytes::asked(request);
    let mut kernel = Kernel { ctx, request, hash, reason: 0 };
    let verdict = decide(&request.nack, policy, &mut kernel);
    let done = match verdict {
        Verdict::Silence => Done::silence(),
        Verdict::Throttled(bucket) => {
            sample::refused(ctx, Counter::ThrottledSent);
            let answer = Answer::Throttled { bucket, seq_num: request.nack.key.seq_num() };
            back(ctx, request, &answer, Measured::Throttled)
        }
        Verdict::Miss => {
            if flags & BACKENDS & absent != 0 {
                count::one(Counter::DaemonAbsent);
            }
            back(ctx, request, &Answer::Miss, Measured::Miss)
        }
        Verdict::HandOver(_) if absent != 0 => {
            count::one(Counter::DaemonAbsent);
            if flags & setting_flag::SUPPRESS_MISS != 0 || !affords_answer(policy, &mut kernel) {
                Done::silence()
            } else {
                back(ctx, request, &Answer::Miss, Measured::Miss)
            }
        }
        Verdict::Recover { say } => {
            // A job that finds no room is one that the listener's next NACK brings back; the MISS does not wait for it.
            if log::hand_over(event(ctx, request, EventKind::Recover)) {
                count::one(Counter::HandedOver);
            }
            if say {
                back(ctx, request, &Answer::Miss, Measured::Miss)
            } else {
                Done::new(Outcome::Drop, Measured::HandedOver)
            }
        }
        Verdict::AskStore => hand_over(ctx, request, EventKind::Store),
        Verdict::HandOver(_) => hand_over(ctx, request, EventKind::Send),
        Verdict::Relieve => hand_over(ctx, request, EventKind::Known),
        Verdict::Repair(record, plan) => repair(ctx, request, &record, plan),
    };
    done.because(kernel.reason)
}

#[inline(always)]
fn event(ctx: &XdpContext, request: &Request, kind: EventKind) -> Event {
    Event {
        key: request.nack.key,
        source: request.headers.source,
        source_port: request.headers.source_port,
        kind: kind as u8,
        nack_flags: request.nack.flags,
        ifindex: u32::try_from(ctx.ingress_ifindex()).unwrap_or(0),
        at_ns: request.now_ns,
    }
}

#[inline(always)]
fn hand_over(ctx: &XdpContext, request: &Request, kind: EventKind) -> Done {
    if log::hand_over(event(ctx, request, kind)) {
        count::one(Counter::HandedOver);
        Done::new(Outcome::Drop, Measured::HandedOver)
    } else {
        count::one(Counter::PassedEventsFull);
        Done { reason: Counter::PassedEventsFull as u16 + 1, ..Done::new(Outcome::Pass, Measured::PassedOn) }
    }
}

#[inline(always)]
fn repair(ctx: &XdpContext, request: &Request, record: &Record, plan: Repair) -> Done {
    let ack = plan.ack_flags(plan.multicast, plan.unicast);
    let devmap = match (ack, plan.unicast, plan.multicast) {
        (None, false, false) => return Done::silence(),
        (Some(flags), false, false) => {
            let answer = Answer::Ack { flags: AckFlags::from_bits(flags), seq_num: request.nack.key.seq_num() };
            return back(ctx, request, &answer, Measured::Ack);
        }
        (None, true, false) => return unicast_in_place(ctx, request, record),
        (Some(_), true, false) => &ACK_UNICAST,
        (Some(_), false, true) => &ACK_MULTI,
        (Some(_), true, true) => &ACK_UNI_MULTI,
        (None, false, true) => &MULTICAST,
        (None, true, true) => &UNI_MULTI,
    };
    let here = log::flags(request.settings) & setting_flag::EGRESS_HERE != 0;
    // An ACK must never lead a frame that cannot follow. Packets that a local stack sent over veth have no room: then the
    // clones carry the frames, and the original becomes the ACK.
    let before = packet::length(ctx);
    let has_room = packet::resize(ctx, packet_len(record.length));
    // Given back, for clones are copies: of the room they would cost more than this and taking it again.
    if has_room && !packet::resize(ctx, before) {
        return Done::failed(Counter::RetransmitErrors);
    }
    let ticket = Ticket {
        nonce: next_nonce(),
        version: record.version,
        slot: record.slot,
        roles: bit(ack.is_some(), ticket_role::ACK)
            | bit(plan.unicast, ticket_role::UNICAST)
            | bit(plan.multicast && here, ticket_role::MULTICAST_HERE)
            | bit(has_room, ticket_role::ACK_LEADS),
        ack_flags: ack.unwrap_or(0),
        reserved: [0; 2],
        at_ns: request.now_ns,
    };
    if packet::write(ctx, packet::IP + TICKET, ticket).is_none() {
        return Done::failed(Counter::RetransmitErrors);
    }
    if devmap.redirect(0, u64::from(BPF_F_BROADCAST)).is_err() {
        return Done::failed(Counter::RetransmitErrors);
    }
    if ack.is_some() {
        count::one(Counter::AcksSent);
    }
    if plan.unicast {
        count::one(Counter::UnicastRetransmits);
    }
    if plan.multicast {
        count::one(Counter::Retransmits);
        if log::flags(request.settings) & setting_flag::ANNOUNCE != 0
            && !log::hand_over(event(ctx, request, EventKind::Repaired))
        {
            count::one(Counter::DedupEventsFull);
        }
    }
    let sent = bit(ack.is_some(), ticket_role::ACK)
        | bit(plan.unicast, ticket_role::UNICAST)
        | bit(plan.multicast, ticket_role::MULTICAST_HERE);
    Done { sent, length: length_of(record), ..Done::new(Outcome::Redirected, Measured::Clones) }
}

/// A 16-byte answer in the NACK's place, back by the way it came.
#[inline(always)]
fn back(ctx: &XdpContext, request: &Request, answer: &Answer, measured: Measured) -> Done {
    let (sent, failed) = counter::of_answer(answer);
    let ports = Ends::back(&request.headers);
    if write_answer(ctx, &ports, request.settings.unicast_hop_limit, answer).is_none() || BACK.redirect(0, 0).is_err() {
        return Done::failed(failed);
    }
    count::one(sent);
    Done::new(Outcome::Redirected, measured)
}

/// The frame in the NACK's place, whose room has been made.
#[inline(always)]
fn unicast_in_place(ctx: &XdpContext, request: &Request, record: &Record) -> Done {
    let ends = Ends::back(&request.headers);
    // The room was proved, and given back if a multicast was planned that the hold-down then left out.
    if !packet::resize(ctx, packet_len(record.length)) {
        return Done::failed(Counter::RetransmitErrors);
    }
    if swap_macs(ctx).is_none() || write_frame(ctx, &ends, request.settings.unicast_hop_limit, record).is_none() {
        count::one(Counter::RepairTorn);
        return Done::new(Outcome::Drop, Measured::Failed);
    }
    if BACK.redirect(0, 0).is_err() {
        return Done::failed(Counter::RetransmitErrors);
    }
    count::one(Counter::UnicastRetransmits);
    Done { length: length_of(record), ..Done::new(Outcome::Redirected, Measured::InPlace) }
}

/// All ones when `until_ns` is not later than `now_ns`, else 0. Both are below 2^63: 292 years after the host's start.
#[inline(always)]
fn ones_when_over(until_ns: u64, now_ns: u64) -> u32 {
    // Boxed, or LLVM makes a branch of it again.
    let sign = black_box(now_ns.wrapping_sub(until_ns)) >> 63;
    sign.wrapping_sub(1) as u32
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "below 64 KiB: a NACK with it is one packet")]
const fn length_of(record: &Record) -> u16 {
    record.length as u16
}

#[inline(always)]
const fn bit(condition: bool, bit: u8) -> u8 {
    if condition { bit } else { 0 }
}
