//! The only file with packet pointers.

use aya_ebpf::helpers::generated::{
    bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;

/// Length of an Ethernet header without tags.
pub(crate) const ETHERNET_LEN: usize = 14;
/// Where the IPv6 header of every NACK that is answered here starts: tagged ones are the stack's.
pub(crate) const IP: usize = ETHERNET_LEN;
/// Length of one VLAN tag.
const VLAN_LEN: usize = 4;
/// Length of an IPv6 header and a UDP header.
pub(crate) const IP_UDP_LEN: usize = 48;

/// An IPv6 header without extension and the UDP header behind it, as on the wire (RFC 8200, RFC 768).
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct IpUdp {
    /// Version, traffic class, flow label.
    pub(crate) version: [u8; 4],
    /// Bytes after the IPv6 header.
    pub(crate) payload_length: [u8; 2],
    /// 17 is UDP.
    pub(crate) next_header: u8,
    /// Hop limit.
    pub(crate) hop_limit: u8,
    /// Source address.
    pub(crate) source: [u8; 16],
    /// Destination address.
    pub(crate) destination: [u8; 16],
    /// Source port.
    pub(crate) source_port: [u8; 2],
    /// Destination port.
    pub(crate) destination_port: [u8; 2],
    /// UDP header and payload.
    pub(crate) udp_length: [u8; 2],
    /// UDP checksum.
    pub(crate) checksum: [u8; 2],
}

const _: () = assert!(size_of::<IpUdp>() == IP_UDP_LEN);

/// Reads a `T` at `offset` from the start of the packet; `None` beyond its end.
#[inline(always)]
pub(crate) fn read<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie inside the packet, and every `T` that is read here is integers and byte arrays without
    // padding, for which any bytes are a value.
    Some(unsafe { (start as *const T).read_unaligned() })
}

/// Writes a `T` at `offset` from the start of the packet; `None` beyond its end.
#[inline(always)]
pub(crate) fn write<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let start = ctx.data() + offset;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie inside the packet.
    unsafe { (start as *mut T).write_unaligned(value) };
    Some(())
}

/// Bytes of the packet, fragments of the buffer included.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a packet is shorter than 2 GiB")]
pub(crate) fn length(ctx: &XdpContext) -> i32 {
    // SAFETY: the context is the one that the kernel gave.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as i32 }
}

/// Moves the end of the packet so that it is `length` bytes long; false when the buffer has no room.
#[inline(always)]
pub(crate) fn resize(ctx: &XdpContext, length: i32) -> bool {
    let by = length - self::length(ctx);
    // SAFETY: the context is the one that the kernel gave; packet pointers are made anew after this.
    by == 0 || unsafe { bpf_xdp_adjust_tail(ctx.ctx, by) } == 0
}

/// Copies `length` bytes of map memory into the packet at `offset`.
///
/// # Safety
/// `from` points to `length` readable bytes of a map value.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets are below 100, lengths below 4096")]
pub(crate) unsafe fn store(ctx: &XdpContext, offset: usize, from: *const u8, length: u64) -> bool {
    // SAFETY: the caller's promise; the helper checks the packet's bounds.
    unsafe { bpf_xdp_store_bytes(ctx.ctx, offset as u32, from.cast_mut().cast(), length as u32) == 0 }
}

/// Copies `length` bytes of the packet at `offset`, fragments of the buffer included, into map memory.
///
/// # Safety
/// `to` points to `length` writable bytes of a map value.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets are below 100, lengths below 16384")]
pub(crate) unsafe fn load(ctx: &XdpContext, offset: usize, to: *mut u8, length: u64) -> bool {
    // SAFETY: the caller's promise; the helper checks the packet's bounds.
    unsafe { bpf_xdp_load_bytes(ctx.ctx, offset as u32, to.cast(), length as u32) == 0 }
}

/// Destination and source MAC as numbers of 48 bits.
#[inline(always)]
pub(crate) fn macs(ctx: &XdpContext) -> Option<(u64, u64)> {
    // Two words that overlap: of a compare byte by byte LLVM makes loads that the verifier calls misaligned.
    let (first, second): (u64, u64) = (read(ctx, 0)?, read(ctx, 4)?);
    Some((u64::from_be(first) >> 16, u64::from_be(second) & 0xffff_ffff_ffff))
}

/// Length of the Ethernet header with its tags (0 to 2, 802.1Q and 802.1ad) if an IPv6 packet follows.
#[inline(always)]
pub(crate) fn ipv6_offset(ctx: &XdpContext) -> Option<usize> {
    const IPV6: [u8; 2] = [0x86, 0xdd];
    let mut offset = ETHERNET_LEN;
    let mut ethertype: [u8; 2] = read(ctx, offset - 2)?;
    if is_vlan(ethertype) {
        offset += VLAN_LEN;
        ethertype = read(ctx, ETHERNET_LEN + VLAN_LEN - 2)?;
        if is_vlan(ethertype) {
            offset += VLAN_LEN;
            ethertype = read(ctx, ETHERNET_LEN + 2 * VLAN_LEN - 2)?;
        }
    }
    if ethertype == IPV6 { Some(offset) } else { None }
}

#[inline(always)]
const fn is_vlan(ethertype: [u8; 2]) -> bool {
    matches!(ethertype, [0x81, 0x00] | [0x88, 0xa8])
}
