//! What each clone becomes: the program of devmap entries.
//!
//! All entries of one device must name one program (the device's bulk queue keeps only one), and it runs when the queue
//! is flushed, after the main program has looked at later NACKs. So all that it needs travels in the packet, in the
//! [`Ticket`]. Answers made in place name it too, and go through unchanged. Which turn it is, it learns by counting how often it has seen the ticket's nonce on this CPU.

use aya_ebpf::btf_maps::{HashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{Egress, RoleState, Ticket, ticket_role};
use retry_common::counter::Counter;
use retry_common::group;
use retry_common::wire::answer::{AckFlags, Answer};

use crate::packet::{self, IP_UDP_LEN, IpUdp};
use crate::rewrite::{Ends, packet_len, swap_macs, write_answer, write_frame};
use crate::{log, sent};

/// Addresses of multicast repairs by egress interface.
#[btf_map]
static EGRESS: HashMap<u32, Egress, 16> = HashMap::new();
#[btf_map]
static ROLE_STATE: PerCpuArray<RoleState, 1> = PerCpuArray::new();

/// Where the ticket stands: over the NACK's SubtreeID, behind what the answer still needs.
pub(crate) const TICKET: usize = IP_UDP_LEN + 32;
/// Where the NACK's StartSeq stands.
const START_SEQ: usize = IP_UDP_LEN + 16;

/// Makes a clone what its turn says, and returns when its NACK was looked at (0: it has none); the counter to charge when it
/// cannot be.
#[inline(always)]
pub(crate) fn play(ctx: &XdpContext) -> Result<u64, Counter> {
    let settings = log::settings().ok_or(Counter::RetransmitErrors)?;
    let Some(headers): Option<IpUdp> = packet::read(ctx, packet::IP) else {
        // Shorter than any answer.
        return if sent::is_probe(ctx) { Ok(0) } else { Err(Counter::RetransmitErrors) };
    };
    if headers.destination_port != settings.nack_port || headers.destination != settings.nack_addr {
        // An answer made in place, which left in one bulk with clones: only these still go to us.
        return Ok(0);
    }
    let ticket: Ticket = packet::read(ctx, packet::IP + TICKET).ok_or(Counter::RetransmitErrors)?;
    // SAFETY: the kernel fills the field for programs of devmap entries.
    let egress_ifindex = unsafe { (*ctx.ctx).egress_ifindex };
    let role = if egress_ifindex == log::nack_ifindex(settings) { turn(&ticket) } else { ticket_role::MULTICAST_HERE };
    if role == ticket_role::ACK {
        let seq_num: [u8; 8] = packet::read(ctx, packet::IP + START_SEQ).ok_or(Counter::RetransmitErrors)?;
        let answer = Answer::Ack { flags: AckFlags::from_bits(ticket.ack_flags), seq_num: u64::from_be_bytes(seq_num) };
        return match write_answer(ctx, &Ends::back(&headers), settings.unicast_hop_limit, &answer) {
            Some(()) => Ok(ticket.at_ns),
            None => Err(Counter::AckErrors),
        };
    }
    let (record, ..) = log::read(ticket.slot).ok_or(Counter::RepairTorn)?;
    if record.version != ticket.version {
        return Err(Counter::RepairTorn);
    }
    if role == ticket_role::UNICAST {
        if !packet::resize(ctx, packet_len(record.length)) {
            return Err(Counter::RetransmitErrors);
        }
        swap_macs(ctx).ok_or(Counter::RetransmitErrors)?;
        return match write_frame(ctx, &Ends::back(&headers), settings.unicast_hop_limit, &record) {
            Some(()) => Ok(ticket.at_ns),
            None => Err(Counter::RepairTorn),
        };
    }
    if role != ticket_role::MULTICAST_HERE {
        return Err(Counter::RetransmitErrors);
    }
    // SAFETY: the map is filled before the program is attached; an entry goes after its interface, and with it every packet.
    let egress = unsafe { EGRESS.get(egress_ifindex) }.ok_or(Counter::RetransmitErrors)?;
    if !packet::resize(ctx, packet_len(record.length)) {
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
    match write_frame(ctx, &ends, settings.multicast_hop_limit, &record) {
        Some(()) => Ok(ticket.at_ns),
        None => Err(Counter::RepairTorn),
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

/// A name for the next NACK on this CPU.
#[inline(always)]
pub(crate) fn next_nonce() -> u64 {
    let Some(state) = ROLE_STATE.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own value.
    let state = unsafe { &mut *state };
    state.last_nonce += 1;
    state.last_nonce
}
