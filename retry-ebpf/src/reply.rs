//! Carries out a verdict: one answer in place, or clones of the NACK through a devmap, each rewritten by its role.
//!
//! XDP is one packet in, one out, except for a devmap broadcast, which clones the packet to every entry. All entries of
//! one device must name one role program (the device's bulk queue keeps only one), and it runs when the queue is
//! flushed, after later NACKs. So all that a role needs travels in the packet, in the NACK's SubtreeID: the [`Ticket`].
//! Which turn it is, it learns by counting how often it has seen the ticket's nonce on this CPU.

use aya_ebpf::bindings::BPF_F_BROADCAST;
use aya_ebpf::btf_maps::{DevMap, HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{Egress, Event, EventKind, RoleState, Ticket, setting_flag, ticket_role};
use retry_common::checksum;
use retry_common::counter::Counter;
use retry_common::decide::{Endpoint, Multicast, Policy, Repair, Verdict, decide};
use retry_common::group;
use retry_common::holddown::Claim;
use retry_common::index;
use retry_common::wire::answer::{ANSWER_LEN, AckFlags, Answer};

use crate::classify::Request;
use crate::log::{self, Record};
use crate::packet::{self, ETHERNET_LEN, IP_UDP_LEN, IpUdp};
use crate::{admit, count, sample};

/// The most entries of a devmap: interfaces for multicast, and the NACK's twice.
const ENTRIES: usize = 18;

/// The NACK's interface, without a role: for answers made in place.
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
/// Addresses of multicast repairs by egress interface.
#[btf_map]
static EGRESS: HashMap<u32, Egress, 16> = HashMap::new();
#[btf_map]
static ROLE_STATE: PerCpuArray<RoleState, 1> = PerCpuArray::new();

/// Where the ticket stands: over the NACK's SubtreeID, behind what the answer still needs.
const TICKET: usize = IP_UDP_LEN + 32;
/// Where the NACK's StartSeq stands.
const START_SEQ: usize = IP_UDP_LEN + 16;

/// What becomes of the packet.
pub(crate) enum Way {
    /// To the stack.
    Pass,
    /// Nowhere.
    Drop,
    /// Back to the fabric.
    Redirected,
    /// A redirect that the kernel refused.
    Failed,
}

/// One NACK, as the truth table sees it from here.
struct Kernel<'a> {
    ctx: &'a XdpContext,
    request: &'a Request,
    hash: u64,
    policy: Policy,
    /// The packet's own buffer has room for the frame.
    has_room: bool,
}

impl Endpoint for Kernel<'_> {
    type Frame = Record;

    #[inline(always)]
    fn take_address(&mut self) -> bool {
        let Request { headers, settings, now_ns, .. } = self.request;
        admit::take_address(&headers.source, &settings.limits.address, *now_ns)
    }

    #[inline(always)]
    fn sequence_is_over(&mut self) -> bool {
        let Request { nack, settings, now_ns, .. } = self.request;
        admit::sequence_is_over(&nack.key, &settings.limits.sequence, *now_ns)
    }

    #[inline(always)]
    fn charge_sequence(&mut self) {
        let Request { nack, settings, now_ns, .. } = self.request;
        admit::charge_sequence(&nack.key, &settings.limits.sequence, *now_ns);
    }

    #[inline(always)]
    fn take_chain(&mut self) -> bool {
        let Request { nack, headers, settings, now_ns, .. } = self.request;
        admit::take_chain(&headers.source, nack.key.hash_key(), &settings.limits.chain, *now_ns)
    }

    #[inline(always)]
    fn look_up(&mut self) -> Option<Record> {
        let Request { nack, settings, now_ns, .. } = self.request;
        log::look_up(&nack.key, self.hash, settings, *now_ns)
    }

    #[inline(always)]
    fn take_group(&mut self, group: u16) -> bool {
        let Request { headers, settings, now_ns, .. } = self.request;
        admit::take_group(&headers.source, group, &settings.limits.group, *now_ns)
    }

    /// Proves the room by taking it: an ACK must never lead a frame that cannot follow. Packets that a local stack sent
    /// over veth have none; then the clones, which always have, carry the frames and the original becomes the ACK.
    #[inline(always)]
    fn can_send(&mut self, record: &Record, multicast: bool, _unicast: bool) -> bool {
        let settings = self.request.settings;
        if !record.fits(settings.max_frame)
            || settings.flags & setting_flag::DAEMON_FRAMES != 0
            || (multicast && settings.flags & setting_flag::DAEMON_MULTICAST != 0)
        {
            return false;
        }
        let before = packet::length(self.ctx);
        self.has_room = packet::resize(self.ctx, packet_len(self.request.ip_offset, record.length));
        if !self.has_room {
            return self.policy.acks();
        }
        // A frame alone is written in place, so it keeps its room.
        !(multicast || self.policy.acks()) || packet::resize(self.ctx, before)
    }

    #[inline(always)]
    fn claim_multicast(&mut self) -> Multicast {
        let Request { settings, now_ns, .. } = self.request;
        if settings.hold_down.is_off() {
            return Multicast::Claimed;
        }
        match log::claim(self.hash, settings, *now_ns) {
            Claim::Free(_) => Multicast::Claimed,
            Claim::Ours => Multicast::HeldByUs,
            Claim::Others => Multicast::HeldByAnother,
        }
    }

    #[inline(always)]
    fn count(&mut self, counter: Counter) {
        count::one(counter);
    }
}

/// Decides on a NACK and rewrites the packet.
#[inline(always)]
pub(crate) fn answer(ctx: &XdpContext, request: &Request) -> Way {
    let policy = Policy::new(request.settings.flags);
    let hash = index::hash(&request.nack.key, request.settings.hash_seed);
    let mut kernel = Kernel { ctx, request, hash, policy, has_room: false };
    match decide(&request.nack, policy, &mut kernel) {
        Verdict::Silence => Way::Drop,
        Verdict::Throttled(bucket) => {
            sample::refused(ctx, Counter::ThrottledSent);
            let answer = Answer::Throttled { bucket, seq_num: request.nack.key.seq_num() };
            back(ctx, request, &answer, Counter::ThrottledSent)
        }
        Verdict::Miss => back(ctx, request, &Answer::Miss, Counter::MissesSent),
        Verdict::Recover { say } => {
            // The MISS is said either way; a job that finds no room is one that the listener's next NACK brings back.
            hand_over(ctx, request, EventKind::Recover);
            if say { back(ctx, request, &Answer::Miss, Counter::MissesSent) } else { Way::Drop }
        }
        Verdict::AskStore => hand_over(ctx, request, EventKind::Store),
        Verdict::HandOver(_) => hand_over(ctx, request, EventKind::Send),
        Verdict::Repair(record, plan) => {
            let has_room = kernel.has_room;
            repair(ctx, request, &record, plan, has_room)
        }
    }
}

#[inline(always)]
fn hand_over(ctx: &XdpContext, request: &Request, kind: EventKind) -> Way {
    let event = Event {
        key: request.nack.key,
        source: request.headers.source,
        source_port: request.headers.source_port,
        kind: kind as u8,
        nack_flags: request.nack.flags,
        ifindex: u32::try_from(ctx.ingress_ifindex()).unwrap_or(0),
    };
    if log::hand_over(&event) {
        count::one(Counter::HandedOver);
        Way::Drop
    } else {
        count::one(Counter::PassedEventsFull);
        Way::Pass
    }
}

#[inline(always)]
fn repair(ctx: &XdpContext, request: &Request, record: &Record, plan: Repair, has_room: bool) -> Way {
    let ack = plan.ack_flags(plan.multicast, plan.unicast);
    let devmap = match (ack, plan.unicast, plan.multicast) {
        (None, false, false) => return Way::Drop,
        (Some(flags), false, false) => {
            let answer = Answer::Ack { flags: AckFlags::from_bits(flags), seq_num: request.nack.key.seq_num() };
            return back(ctx, request, &answer, Counter::AcksSent);
        }
        (None, true, false) => return unicast_in_place(ctx, request, record),
        (Some(_), true, false) => &ACK_UNICAST,
        (Some(_), false, true) => &ACK_MULTI,
        (Some(_), true, true) => &ACK_UNI_MULTI,
        (None, false, true) => &MULTICAST,
        (None, true, true) => &UNI_MULTI,
    };
    let here = request.settings.flags & setting_flag::EGRESS_HERE != 0;
    let ticket = Ticket {
        nonce: next_nonce(),
        version: record.version,
        slot: record.slot,
        roles: bit(ack.is_some(), ticket_role::ACK)
            | bit(plan.unicast, ticket_role::UNICAST)
            | bit(plan.multicast && here, ticket_role::MULTICAST_HERE)
            | bit(has_room, ticket_role::ACK_LEADS),
        ack_flags: ack.unwrap_or(0),
        reserved: [0; 10],
    };
    if packet::write(ctx, request.ip_offset + TICKET, ticket).is_none() {
        return Way::Failed;
    }
    if devmap.redirect(0, u64::from(BPF_F_BROADCAST)).is_err() {
        return Way::Failed;
    }
    if ack.is_some() {
        count::one(Counter::AcksSent);
    }
    if plan.unicast {
        count::one(Counter::UnicastRetransmits);
    }
    if plan.multicast {
        count::one(Counter::Retransmits);
    }
    Way::Redirected
}

/// A 16-byte answer in the NACK's place, back by the way it came.
#[inline(always)]
fn back(ctx: &XdpContext, request: &Request, answer: &Answer, counter: Counter) -> Way {
    let ports = Ends::back(&request.headers);
    if write_answer(ctx, request.ip_offset, &ports, request.settings.unicast_hop_limit, answer).is_none()
        || BACK.redirect(0, 0).is_err()
    {
        return Way::Failed;
    }
    count::one(counter);
    Way::Redirected
}

/// The frame in the NACK's place, whose room has been made.
#[inline(always)]
fn unicast_in_place(ctx: &XdpContext, request: &Request, record: &Record) -> Way {
    let ends = Ends::back(&request.headers);
    // The room was proved, and given back if a multicast was planned that the hold-down then left out.
    if !packet::resize(ctx, packet_len(request.ip_offset, record.length)) {
        return Way::Failed;
    }
    if swap_macs(ctx).is_none()
        || write_frame(ctx, request.ip_offset, &ends, request.settings.unicast_hop_limit, record).is_none()
    {
        count::one(Counter::RepairTorn);
        return Way::Drop;
    }
    if BACK.redirect(0, 0).is_err() {
        return Way::Failed;
    }
    count::one(Counter::UnicastRetransmits);
    Way::Redirected
}

/// Makes a clone what its turn says; the counter to charge when it cannot be.
#[inline(always)]
pub(crate) fn play_role(ctx: &XdpContext) -> Result<(), Counter> {
    let settings = log::settings().ok_or(Counter::RetransmitErrors)?;
    let ip_offset = packet::ipv6_offset(ctx).ok_or(Counter::RetransmitErrors)?;
    let ticket: Ticket = packet::read(ctx, ip_offset + TICKET).ok_or(Counter::RetransmitErrors)?;
    // SAFETY: the kernel fills the field for programs of devmap entries.
    let egress_ifindex = unsafe { (*ctx.ctx).egress_ifindex };
    let role = if egress_ifindex == settings.nack_ifindex { turn(&ticket) } else { ticket_role::MULTICAST_HERE };
    let headers: IpUdp = packet::read(ctx, ip_offset).ok_or(Counter::RetransmitErrors)?;
    if role == ticket_role::ACK {
        let seq_num: [u8; 8] = packet::read(ctx, ip_offset + START_SEQ).ok_or(Counter::RetransmitErrors)?;
        let answer = Answer::Ack { flags: AckFlags::from_bits(ticket.ack_flags), seq_num: u64::from_be_bytes(seq_num) };
        return write_answer(ctx, ip_offset, &Ends::back(&headers), settings.unicast_hop_limit, &answer)
            .ok_or(Counter::AckErrors);
    }
    let (record, ..) = log::read(ticket.slot).ok_or(Counter::RepairTorn)?;
    if record.version != ticket.version {
        return Err(Counter::RepairTorn);
    }
    if role == ticket_role::UNICAST {
        if !packet::resize(ctx, packet_len(ip_offset, record.length)) {
            return Err(Counter::RetransmitErrors);
        }
        swap_macs(ctx).ok_or(Counter::RetransmitErrors)?;
        return write_frame(ctx, ip_offset, &Ends::back(&headers), settings.unicast_hop_limit, &record)
            .ok_or(Counter::RepairTorn);
    }
    if role != ticket_role::MULTICAST_HERE {
        return Err(Counter::RetransmitErrors);
    }
    // SAFETY: the map is filled before the program is attached and entries are never removed.
    let egress = unsafe { EGRESS.get(&egress_ifindex) }.ok_or(Counter::RetransmitErrors)?;
    // Untagged on the egress interface: what the NACK's tags mean there nobody knows.
    let tags = if ip_offset == ETHERNET_LEN + 8 {
        8
    } else if ip_offset == ETHERNET_LEN + 4 {
        4
    } else {
        0
    };
    if tags != 0 && !packet::cut_head(ctx, tags) {
        return Err(Counter::RetransmitErrors);
    }
    if !packet::resize(ctx, packet_len(ETHERNET_LEN, record.length)) {
        return Err(Counter::RetransmitErrors);
    }
    let group =
        group::address(u16::from_be_bytes(settings.group_prefix), u16::from_be_bytes(settings.group_id), record.group);
    let ends = Ends {
        source: egress.source,
        destination: group,
        source_port: settings.nack_port,
        destination_port: settings.egress_port,
    };
    packet::write(ctx, 0, group::multicast_mac(&group)).ok_or(Counter::RetransmitErrors)?;
    packet::write(ctx, 6, egress.mac).ok_or(Counter::RetransmitErrors)?;
    packet::write(ctx, 12, [0x86u8, 0xdd]).ok_or(Counter::RetransmitErrors)?;
    write_frame(ctx, ETHERNET_LEN, &ends, settings.multicast_hop_limit, &record).ok_or(Counter::RepairTorn)
}

/// Addresses and ports of a packet.
struct Ends {
    source: [u8; 16],
    destination: [u8; 16],
    source_port: [u8; 2],
    destination_port: [u8; 2],
}

impl Ends {
    /// Those of an answer to the packet with these headers.
    #[inline(always)]
    const fn back(headers: &IpUdp) -> Self {
        Self {
            source: headers.destination,
            destination: headers.source,
            source_port: headers.destination_port,
            destination_port: headers.source_port,
        }
    }
}

/// The role of this packet among those of its ticket that leave by the NACK's interface.
#[inline(always)]
fn turn(ticket: &Ticket) -> u8 {
    let Some(state) = ROLE_STATE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other there.
    let state = unsafe { &mut *state };
    if state.nonce != ticket.nonce {
        state.nonce = ticket.nonce;
        state.seen = 0;
    }
    let mut before = state.seen;
    state.seen += 1;
    let order = if ticket.roles & ticket_role::ACK_LEADS != 0 {
        [ticket_role::ACK, ticket_role::UNICAST, ticket_role::MULTICAST_HERE]
    } else {
        [ticket_role::UNICAST, ticket_role::MULTICAST_HERE, ticket_role::ACK]
    };
    for role in order {
        if ticket.roles & role != 0 {
            if before == 0 {
                return role;
            }
            before -= 1;
        }
    }
    0
}

#[inline(always)]
fn next_nonce() -> u64 {
    let Some(state) = ROLE_STATE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own value.
    let state = unsafe { &mut *state };
    state.last_nonce += 1;
    state.last_nonce
}

#[inline(always)]
const fn bit(condition: bool, bit: u8) -> u8 {
    if condition { bit } else { 0 }
}

/// Length of a packet whose UDP payload is a frame of `frame_len` bytes.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "below 4 KiB")]
fn packet_len(ip_offset: usize, frame_len: u32) -> i32 {
    (ip_offset + IP_UDP_LEN) as i32 + (frame_len & 0xfff) as i32
}

#[inline(always)]
fn swap_macs(ctx: &XdpContext) -> Option<()> {
    let destination: [u8; 6] = packet::read(ctx, 0)?;
    let source: [u8; 6] = packet::read(ctx, 6)?;
    packet::write(ctx, 0, source)?;
    packet::write(ctx, 6, destination)
}

#[inline(always)]
fn write_headers(
    ctx: &XdpContext,
    ip_offset: usize,
    ends: &Ends,
    hop_limit: u8,
    payload_len: u16,
    partial: u16,
) -> Option<()> {
    let checksum = checksum::udp_ipv6(
        &ends.source,
        &ends.destination,
        u16::from_be_bytes(ends.source_port),
        u16::from_be_bytes(ends.destination_port),
        payload_len,
        partial,
    );
    let length = (payload_len + 8).to_be_bytes();
    packet::write(
        ctx,
        ip_offset,
        IpUdp {
            version: [0x60, 0, 0, 0],
            payload_length: length,
            next_header: 17,
            hop_limit,
            source: ends.source,
            destination: ends.destination,
            source_port: ends.source_port,
            destination_port: ends.destination_port,
            udp_length: length,
            checksum: checksum.to_be_bytes(),
        },
    )
}

#[inline(always)]
fn write_answer(ctx: &XdpContext, ip_offset: usize, ends: &Ends, hop_limit: u8, answer: &Answer) -> Option<()> {
    const LEN: u16 = ANSWER_LEN as u16;
    let bytes = answer.to_bytes();
    if !packet::resize(ctx, packet_len(ip_offset, u32::from(LEN))) {
        return None;
    }
    swap_macs(ctx)?;
    write_headers(ctx, ip_offset, ends, hop_limit, LEN, checksum::partial_16(&bytes))?;
    packet::write(ctx, ip_offset + IP_UDP_LEN, bytes)
}

/// Headers and frame into a packet whose room has been made.
#[inline(always)]
fn write_frame(ctx: &XdpContext, ip_offset: usize, ends: &Ends, hop_limit: u8, record: &Record) -> Option<()> {
    let length = u16::try_from(record.length).ok()?;
    write_headers(ctx, ip_offset, ends, hop_limit, length, record.partial)?;
    log::copy_frame(ctx, record, ip_offset + IP_UDP_LEN).then_some(())
}
