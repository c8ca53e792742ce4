//! Which packets are ours: a NACK to our address and port that the stack would give to the daemon's socket. Everything else is
//! passed on untouched.

use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::Settings;
use retry_common::checksum;
use retry_common::counter::Counter;
use retry_common::limits::table::{self, OWN_BITS};
use retry_common::wire::nack::{NACK_LEN, Nack, NackError};

use crate::packet::{self, IP_UDP_LEN, IpUdp};
use crate::{acl, count, log};

/// Every address of this host that a NACK by the NACK interface could claim as its source.
#[btf_map]
static OWN: HashMap<[u8; 16], u8, 1024> = HashMap::new();
/// A bit for each of them ([`table::own_bit`]): a look at one word in place of a look-up, which costs 28 ns.
#[btf_map]
static OWN_FILTER: Array<u64, { OWN_BITS / 64 }> = Array::new();

/// UDP (IANA protocol numbers).
const UDP: u8 = 17;
/// Length of a UDP header.
const UDP_LEN: u16 = 8;
/// Where the IPv6 header ends.
const IP_HEADER_END: i32 = 54;
const _: () = assert!(IP_HEADER_END as usize == packet::IP + 40);

/// A NACK and what stands around it.
pub(crate) struct Request {
    /// The NACK.
    pub(crate) nack: Nack,
    /// The headers that it came with.
    pub(crate) headers: IpUdp,
    /// When it is looked at, nanoseconds of the monotonic clock.
    pub(crate) now_ns: u64,
    /// Hash of its source address.
    pub(crate) source_hash: u64,
    /// The settings.
    pub(crate) settings: &'static Settings,
}

/// Why a packet gets no answer here.
pub(crate) enum NotOurs {
    /// Other people's traffic.
    Unknown,
    /// Ours, but for the stack and the daemon's socket, which counts it.
    PassedOn(Counter),
    /// To our port: no NACK, or one that is not looked at because of who sent it.
    Refused(Counter),
}

/// Finds the NACK in a packet.
///
/// What the stack would not give to the daemon's socket gets no answer here either. What only the stack can judge is
/// passed on to it.
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
    let (to, from) = packet::macs(ctx).ok_or(NotOurs::Unknown)?;
    // A group address on the link although ours above it: an answer would carry a group address as its source.
    if is_group(to) {
        return Err(NotOurs::Unknown);
    }
    if u32::try_from(ctx.ingress_ifindex()) != Ok(log::nack_ifindex(settings)) {
        return Err(NotOurs::PassedOn(Counter::PassedInterface));
    }
    // A VLAN is another interface. VLAN 0 is this one to the stack, which answers without a tag.
    if ip_offset != packet::IP {
        return Err(NotOurs::PassedOn(Counter::PassedVlan));
    }
    let own = mac_number(&settings.nack_mac);
    if own != 0 && (to != own || from == own || from == 0 || is_group(from)) {
        return Err(NotOurs::PassedOn(Counter::PassedMac));
    }
    // SAFETY: the helper takes nothing and always succeeds.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    if now_ns >= log::lease_until_ns(settings) {
        return Err(NotOurs::PassedOn(Counter::PassedLease));
    }
    // Before anything of the datagram is looked at, and in the order in which the daemon's socket asks.
    let is_peer = acl::admit(&headers, settings).map_err(NotOurs::Refused)?;
    let source_hash = table::address_hash(&headers.source, settings.hash_seed);
    if !can_be_answered(&headers, source_hash) {
        return Err(NotOurs::PassedOn(Counter::PassedSource));
    }
    let mut nack = nack(ctx, &headers)?;
    if nack.proxied() && !is_peer {
        count::one(Counter::NackNoPeer);
        nack = nack.of_no_peer();
    }
    Ok(Request { nack, headers, now_ns, source_hash, settings })
}

/// True for a source that is another host's: the stack drops `::1` and groups (RFC 4291 2.5.3, 2.7), answers `::` and our own
/// addresses by the loopback interface, and has IPv4 sockets for IPv4 in IPv6. Port 0 cannot be answered (RFC 768).
#[inline(always)]
fn can_be_answered(headers: &IpUdp, source_hash: u64) -> bool {
    // As one number, for the verifier, see `packet::macs`.
    let source = u128::from_be_bytes(headers.source);
    if source >> 120 == 0xff || source >> 48 == 0 || headers.source_port == [0; 2] {
        return false;
    }
    let bit = table::own_bit(source_hash);
    if OWN_FILTER.get(bit >> 6).is_none_or(|word| word >> (bit & 63) & 1 == 0) {
        return true;
    }
    // SAFETY: the value is not looked at; an entry that goes meanwhile has just been taken off this host.
    unsafe { OWN.get(headers.source) }.is_none()
}

/// Lengths, checksum and fields of what stands behind these headers.
#[inline(always)]
fn nack(ctx: &XdpContext, headers: &IpUdp) -> Result<Nack, NotOurs> {
    let ip_length = u16::from_be_bytes(headers.payload_length);
    let udp_length = u16::from_be_bytes(headers.udp_length);
    if packet::length(ctx) < i32::from(ip_length) + IP_HEADER_END
        || udp_length > ip_length
        || ip_length < UDP_LEN
        || (udp_length != 0 && udp_length < UDP_LEN)
    {
        return Err(NotOurs::Refused(Counter::NackWrongLength));
    }
    // The stack cuts off what lies behind the datagram, and takes the length 0 for the packet's.
    if udp_length != ip_length {
        return Err(NotOurs::PassedOn(Counter::PassedLength));
    }
    if usize::from(udp_length) != NACK_LEN + 8 {
        return Err(NotOurs::Refused(Counter::NackWrongSize));
    }
    let bytes: [u8; NACK_LEN] =
        packet::read(ctx, packet::IP + IP_UDP_LEN).ok_or(NotOurs::Refused(Counter::NackWrongLength))?;
    if !has_right_checksum(headers, &bytes) {
        return Err(NotOurs::Refused(Counter::NackWrongChecksum));
    }
    count::one(Counter::NackRequests);
    let nack = Nack::from_array(&bytes).map_err(|error| {
        NotOurs::Refused(match error {
            NackError::Size => Counter::NackWrongSize,
            NackError::Magic => Counter::NackWrongMagic,
            NackError::Type => Counter::NackWrongType,
            NackError::Range => Counter::NackRange,
        })
    })?;
    // No step reads the SubtreeID: left in the packet it costs no copy.
    Ok(Nack { subtree_id: [0; 32], ..nack })
}

/// True for the right UDP checksum (RFC 8200 section 8.1: never zero), and for what a sender on this machine left for a device
/// to finish: the stack knows such a packet by a mark that XDP does not see.
#[inline(always)]
fn has_right_checksum(headers: &IpUdp, bytes: &[u8; NACK_LEN]) -> bool {
    const LEN: u16 = 64;
    const _: () = assert!(LEN as usize == NACK_LEN);
    let IpUdp { source, destination, .. } = headers;
    let (source_port, port) = (u16::from_be_bytes(headers.source_port), u16::from_be_bytes(headers.destination_port));
    let right = checksum::udp_ipv6(source, destination, source_port, port, LEN, checksum::partial_64(bytes));
    let field = u16::from_be_bytes(headers.checksum);
    field == right || field == checksum::udp_ipv6_unfinished(source, destination, LEN)
}

#[inline(always)]
const fn is_group(mac: u64) -> bool {
    mac >> 40 & 1 != 0
}

#[inline(always)]
const fn mac_number(mac: &[u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = *mac;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}
