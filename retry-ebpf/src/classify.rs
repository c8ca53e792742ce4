//! Which packets are ours: a NACK to our address and port. Everything else is passed on untouched.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::Settings;
use retry_common::counter::Counter;
use retry_common::wire::nack::{NACK_LEN, Nack, NackError};

use crate::packet::{self, IP_UDP_LEN, IpUdp};
use crate::{count, log};

/// UDP (IANA protocol numbers).
const UDP: u8 = 17;

/// A NACK and what stands around it.
pub(crate) struct Request {
    /// The NACK.
    pub(crate) nack: Nack,
    /// The headers that it came with.
    pub(crate) headers: IpUdp,
    /// Length of the Ethernet header with its tags.
    pub(crate) ip_offset: usize,
    /// When it is looked at, nanoseconds of the monotonic clock.
    pub(crate) now_ns: u64,
    /// The settings.
    pub(crate) settings: &'static Settings,
}

/// Why a packet gets no answer here.
pub(crate) enum NotOurs {
    /// Other people's traffic.
    Unknown,
    /// Ours, but for the stack and the daemon's socket, which counts it.
    PassedOn(Counter),
    /// To our port, and no NACK.
    Malformed(Counter),
}

/// Finds the NACK in a packet.
#[inline(always)]
pub(crate) fn classify(ctx: &XdpContext) -> Result<Request, NotOurs> {
    let ip_offset = packet::ipv6_offset(ctx).ok_or(NotOurs::Unknown)?;
    let headers: IpUdp = packet::read(ctx, ip_offset).ok_or(NotOurs::Unknown)?;
    if headers.version[0] >> 4 != 6 || headers.next_header != UDP {
        return Err(NotOurs::Unknown);
    }
    let settings = log::settings().ok_or(NotOurs::PassedOn(Counter::PassedNoSettings))?;
    if headers.destination_port != settings.nack_port || headers.destination != settings.nack_addr {
        return Err(NotOurs::Unknown);
    }
    // A group address on the link although ours above it: an answer would carry a group address as its source.
    let destination_mac: [u8; 6] = packet::read(ctx, 0).ok_or(NotOurs::Unknown)?;
    if destination_mac[0] & 1 != 0 {
        return Err(NotOurs::Unknown);
    }
    if u32::try_from(ctx.ingress_ifindex()) != Ok(settings.nack_ifindex) {
        return Err(NotOurs::PassedOn(Counter::PassedInterface));
    }
    // SAFETY: the helper takes nothing and always succeeds.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if now_ns >= log::lease_until_ns(settings) {
        return Err(NotOurs::PassedOn(Counter::PassedLease));
    }
    // Group addresses, the unspecified address and port 0 cannot be answered (RFC 4291 2.5.2, 2.7; RFC 768).
    // As one number: of a compare byte by byte LLVM makes loads that the verifier calls misaligned.
    let source = u128::from_be_bytes(headers.source);
    if source >> 120 == 0xff || source == 0 || headers.source_port == [0; 2] {
        return Err(NotOurs::PassedOn(Counter::PassedSource));
    }

    let udp_length = u16::from_be_bytes(headers.udp_length);
    let there = packet::length(ctx);
    if headers.udp_length != headers.payload_length
        || udp_length < 8
        || there < i32::from(udp_length) + ip_as_i32(ip_offset) + 40
    {
        return Err(NotOurs::Malformed(Counter::NackWrongLength));
    }
    if usize::from(udp_length) != NACK_LEN + 8 {
        return Err(NotOurs::Malformed(Counter::NackWrongSize));
    }
    count::one(Counter::NackRequests);
    let bytes: [u8; NACK_LEN] =
        packet::read(ctx, ip_offset + IP_UDP_LEN).ok_or(NotOurs::Malformed(Counter::NackWrongLength))?;
    let nack = Nack::from_array(&bytes).map_err(|error| {
        NotOurs::Malformed(match error {
            NackError::Size => Counter::NackWrongSize,
            NackError::Magic => Counter::NackWrongMagic,
            NackError::Type => Counter::NackWrongType,
            NackError::Range => Counter::NackRange,
        })
    })?;
    // Nobody here reads the SubtreeID: left in the packet it costs no copy.
    let nack = Nack { subtree_id: [0; 32], ..nack };
    Ok(Request { nack, headers, ip_offset, now_ns, settings })
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "at most 22")]
const fn ip_as_i32(ip_offset: usize) -> i32 {
    ip_offset as i32
}
