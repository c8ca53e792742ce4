//! Records for `retry-endpoint watch`: written while a watcher renews its lease in the settings, and at no other time.
//!
//! A NACK gets two: one as it came ([`asked`]), one as it was decided ([`decided`]). Both have its time and its CPU, by which the
//! watcher joins them, so that nothing has to be kept on the stack of the program in between. Clones leave later: the ticket
//! carries the time to [`left`]. Records are written in the memory of the ring.

use core::hint::black_box;

use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{Settings, WATCH_LONG, WATCH_SHORT, Watched, WatchedPacket, watch_flag};
use retry_common::counter::Counter;
use retry_common::latency;

use crate::{count, log, packet};

/// Bytes of the ring: some 5,000 records without long packets.
const RING: usize = 1 << 20;

#[btf_map]
static WATCH: RingBuf<Watched, RING> = RingBuf::new();

/// True when the NACK that was looked at at this time is watched. The same for all programs that see it.
#[inline(always)]
pub(crate) fn is_watched(settings: &Settings, at_ns: u64) -> bool {
    at_ns < log::watch_until_ns(settings) && latency::is_drawn(at_ns, log::watch(settings).0)
}

/// Tells of a NACK as it came.
#[inline(always)]
pub(crate) fn asked(ctx: &XdpContext, settings: &Settings, at_ns: u64) {
    if is_watched(settings, at_ns) {
        write::<WATCH_SHORT>(ctx, &Watched { kind: Watched::ASKED, at_ns, ..Watched::NONE }, true);
    }
}

/// Tells what was decided on it.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "no program runs for four seconds")]
pub(crate) fn decided(ctx: &XdpContext, settings: &Settings, record: &Watched, is_in_place: bool) {
    if !is_watched(settings, record.at_ns) {
        return;
    }
    // SAFETY: the helper takes nothing and always succeeds.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let took_ns = now_ns.wrapping_sub(record.at_ns) as u32;
    let is_full = is_in_place && log::watch(settings).1 & watch_flag::PACKETS != 0;
    whole(ctx, &Watched { took_ns, ..*record }, is_full);
}

/// Tells of a packet that leaves as the role program made it, for a NACK of this time; 0: of none.
#[inline(always)]
pub(crate) fn left(ctx: &XdpContext, at_ns: u64) {
    let Some(settings) = log::settings() else { return };
    if at_ns != 0 && is_watched(settings, at_ns) && log::watch(settings).1 & watch_flag::PACKETS != 0 {
        // SAFETY: the kernel fills the field for programs of devmap entries.
        let ifindex = unsafe { (*ctx.ctx).egress_ifindex };
        whole(ctx, &Watched { kind: Watched::LEFT, at_ns, ifindex, ..Watched::NONE }, true);
    }
}

/// Tells of a packet that gets no answer here, and why.
#[inline(always)]
pub(crate) fn refused(ctx: &XdpContext, kind: u8, counter: Counter) {
    let Some(settings) = log::settings() else { return };
    if log::watch_until_ns(settings) == 0 {
        return;
    }
    // SAFETY: the helper takes nothing and always succeeds.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    if is_watched(settings, at_ns) {
        let reason = counter as u16 + 1;
        write::<WATCH_SHORT>(ctx, &Watched { kind, at_ns, reason, ..Watched::NONE }, true);
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "128")]
fn whole(ctx: &XdpContext, record: &Watched, has_packet: bool) {
    if has_packet && packet::length(ctx) > WATCH_SHORT as i32 {
        write::<WATCH_LONG>(ctx, record, true);
    } else {
        write::<WATCH_SHORT>(ctx, record, has_packet);
    }
}

/// Writes a record, with the first `N` bytes of the packet if it is to have any.
#[inline(always)]
#[expect(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "a packet is shorter than 2 GiB")]
fn write<const N: usize>(ctx: &XdpContext, record: &Watched, has_packet: bool) {
    let Some(mut place) = WATCH.reserve_untyped::<WatchedPacket<N>>(0) else {
        count::one(Counter::WatchDropped);
        return;
    };
    let to = place.as_mut_ptr();
    let length = packet::length(ctx) as u64;
    // SAFETY: the reserved record; every field of it is written here or below.
    let fields = unsafe { &mut (*to).record };
    fields.at_ns = record.at_ns;
    fields.took_ns = record.took_ns;
    fields.ifindex = if record.ifindex == 0 { ctx.ingress_ifindex() as u32 } else { record.ifindex };
    // SAFETY: the helper takes nothing and always succeeds.
    fields.cpu = unsafe { bpf_get_smp_processor_id() };
    fields.reason = record.reason;
    fields.kind = record.kind;
    fields.verdict = record.verdict;
    fields.sent = record.sent;
    fields.length = length as u16;
    let part = if length < N as u64 { length } else { N as u64 };
    // SAFETY: the bytes of the reserved record.
    let bytes = unsafe { (&raw mut (*to).bytes).cast::<u8>() };
    fields.captured = if has_packet && copy::<N>(ctx, bytes, part) { part as u16 } else { 0 };
    place.submit(0);
}

/// Copies the first `part` bytes of the packet to an array of `N`.
#[inline(always)]
fn copy<const N: usize>(ctx: &XdpContext, to: *mut u8, part: u64) -> bool {
    // As in `log::copy_in`: LLVM would make one compare of the two checks, and the verifier wants to see both bounds.
    let part = black_box(part & 0xfff);
    if part > N as u64 {
        return false;
    }
    let part = black_box(part);
    // Not `== 0`, of which the verifier of Linux 6.1 learns nothing. No packet is shorter than its Ethernet header.
    if part < packet::ETHERNET_LEN as u64 {
        return false;
    }
    let part = black_box(part);
    // SAFETY: `part` bytes of an array of `N`.
    unsafe { packet::load(ctx, 0, to, part) }
}
