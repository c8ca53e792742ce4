//! The fill: frames by multicast, each with the next SeqNum in its header and at places of its payload.

use core::hint::black_box;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::bpf_xdp_store_bytes;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::pace;

/// The longest packet; a power of two, for masks.
const LONGEST: usize = 2048;
/// Places of the SeqNum in a packet, each at an even offset.
const PLACES: usize = 4;
const CHECKSUM: u32 = 14 + 40 + 6;
/// The last two bytes of the HashKey.
const FLOW: u32 = 14 + 48 + 46;

/// What the generator sends.
#[repr(C)]
#[derive(Clone, Copy)]
struct FrameTemplate {
    /// The packet with zeros at `places`, and in the last two bytes of the HashKey.
    bytes: [u8; LONGEST],
    /// Its length.
    length: u64,
    /// Offsets of the SeqNum, eight bytes each.
    places: [u32; PLACES],
    /// Sum of the packet with zeros, as the UDP checksum takes it: not inverted.
    sum: u64,
    /// The first SeqNum.
    first: u64,
    /// How many flows there are, less one: a SeqNum's flow is its lowest bits.
    flow_mask: u64,
    /// Time between two packets in 1/1024 ns, 0: none.
    interval: u64,
}

#[btf_map]
static FRAMES: Array<FrameTemplate, 1> = Array::new();

/// Run on live frames: makes each the next frame and sends it out of the interface in the context.
#[xdp(frags)]
fn bench_frames(ctx: XdpContext) -> u32 {
    generate(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

#[expect(clippy::cast_possible_truncation, reason = "lengths are masked, sums folded")]
fn generate(ctx: &XdpContext) -> Option<()> {
    let template = FRAMES.get(0)?;
    let seq = template.first.wrapping_add(pace::next(template.interval)?);
    // The verifier wants both bounds on the register that the helper gets.
    let length = black_box(template.length & (LONGEST as u64 - 1));
    if length < 64 {
        return None;
    }
    // SAFETY: a template has `LONGEST` bytes, and `length` is below that.
    unsafe { store(ctx, 0, template.bytes.as_ptr(), length as u32) }?;
    let bytes = seq.to_be_bytes();
    for place in template.places {
        // SAFETY: eight bytes.
        unsafe { store(ctx, place, bytes.as_ptr(), 8) }?;
    }
    let flow = ((seq & template.flow_mask) + 1) as u16;
    // SAFETY: two bytes.
    unsafe { store(ctx, FLOW, flow.to_be_bytes().as_ptr(), 2) }?;
    let mut sum = (seq >> 48) + ((seq >> 32) & 0xffff) + ((seq >> 16) & 0xffff) + (seq & 0xffff);
    sum = PLACES as u64 * sum + template.sum + u64::from(flow);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // 0 would say that there is no checksum.
    let checksum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
    let bytes = checksum.to_be_bytes();
    // SAFETY: two bytes.
    unsafe { store(ctx, CHECKSUM, bytes.as_ptr(), 2) }
}

/// Copies `length` bytes into the packet.
///
/// # Safety
/// `from` points to `length` readable bytes.
#[inline(always)]
unsafe fn store(ctx: &XdpContext, offset: u32, from: *const u8, length: u32) -> Option<()> {
    // SAFETY: the caller's promise; the helper checks the packet's bounds.
    let stored = unsafe { bpf_xdp_store_bytes(ctx.ctx, offset, from.cast_mut().cast(), length) };
    (stored == 0).then_some(())
}
