//! The load: NACKs, each with a SeqNum, its flow and a source address.

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::bpf_xdp_adjust_tail;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

use crate::pace;

/// Ethernet, IPv6 and UDP headers and a NACK.
pub(crate) const PACKET_LEN: usize = 126;
/// A page that comes back keeps the length that the far end has given it, for all that the kernel looks at, unless the
/// program changes it: so packets come this much short and grow.
const GROWTH: i32 = 2;
/// The template in whole words.
const WORDS: usize = PACKET_LEN.div_ceil(8);
/// The last four bytes of the source address.
const SOURCE: usize = 14 + 8 + 12;
const CHECKSUM: usize = 14 + 40 + 6;
const START_SEQ: usize = 14 + 48 + 16;
/// The last two bytes of the HashKey.
const FLOW: usize = 14 + 48 + 14;
/// Draws of sources by weight; a power of two, for a mask.
const DRAWS: usize = 16_384;

/// What the generator sends.
#[repr(C)]
#[derive(Clone, Copy)]
struct NackTemplate {
    /// The packet with StartSeq, EndSeq, the last two bytes of the HashKey and the last four of its source zero, and the
    /// checksum of that.
    words: [u64; WORDS],
    /// The first SeqNum.
    first: u64,
    /// How many there are; then the first again.
    count: u64,
    /// Steps from one to the next; 0: each is drawn at random.
    stride: u64,
    /// How many flows there are, less one: a SeqNum's flow is its lowest bits.
    flow_mask: u64,
    /// The last four bytes of the first source.
    source: u64,
    /// How many sources there are; then the first again. 0: they follow `draws`.
    sources: u64,
    /// Time between two packets in 1/1024 ns, 0: none.
    interval: u64,
    /// Sources by weight, in a random order, as steps from the first.
    draws: [u16; DRAWS],
}

#[btf_map]
static NACKS: Array<NackTemplate, 1> = Array::new();

/// Run on live frames: makes each the next NACK and sends it out of the interface in the context. The whole packet is
/// written, for its page still holds what the far end made of it.
#[xdp(frags)]
fn bench_nacks(ctx: XdpContext) -> u32 {
    generate(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

#[expect(clippy::cast_possible_truncation, reason = "words are taken apart, sums folded")]
fn generate(ctx: &XdpContext) -> Option<()> {
    let template = NACKS.get(0)?;
    let number = pace::next(template.interval)?;
    let place = if template.stride == 0 { scatter(number) } else { number.wrapping_mul(template.stride) };
    let seq = template.first + place.checked_rem(template.count)?;
    let flow = (seq & template.flow_mask) + 1;
    let from = match template.sources {
        0 => u64::from(template.draws[number as usize % DRAWS]),
        sources => number % sources,
    };
    let source = template.source + from;
    // SAFETY: the context is the one that the kernel gave.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, GROWTH) } != 0 {
        return None;
    }
    let start = ctx.data();
    if start + PACKET_LEN > ctx.data_end() {
        return None;
    }
    for i in 0..WORDS - 1 {
        // SAFETY: whole words inside the packet, as just checked.
        unsafe { ((start + i * 8) as *mut u64).write_unaligned(template.words[i]) };
    }
    let tail = (template.words[WORDS - 1] & 0xffff_ffff, (template.words[WORDS - 1] >> 32) as u16);
    // SAFETY: six bytes up to the packet's end.
    unsafe { ((start + (WORDS - 1) * 8) as *mut u32).write_unaligned(tail.0 as u32) };
    // SAFETY: as above.
    unsafe { ((start + (WORDS - 1) * 8 + 4) as *mut u16).write_unaligned(tail.1) };
    // SAFETY: inside the packet.
    unsafe { ((start + SOURCE) as *mut u32).write_unaligned((source as u32).to_be()) };
    for offset in [START_SEQ, START_SEQ + 8] {
        // SAFETY: inside the packet.
        unsafe { ((start + offset) as *mut u64).write_unaligned(seq.to_be()) };
    }
    // SAFETY: inside the packet.
    unsafe { ((start + FLOW) as *mut u16).write_unaligned((flow as u16).to_be()) };
    let place = (start + CHECKSUM) as *mut u16;
    // SAFETY: inside the packet.
    let without = !u16::from_be(unsafe { place.read_unaligned() });
    let mut sum = (seq >> 48) + ((seq >> 32) & 0xffff) + ((seq >> 16) & 0xffff) + (seq & 0xffff);
    sum = 2 * sum + ((source >> 16) & 0xffff) + (source & 0xffff) + (flow & 0xffff) + u64::from(without);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // 0 would say that there is no checksum.
    let checksum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
    // SAFETY: inside the packet.
    unsafe { place.write_unaligned(checksum.to_be()) };
    Some(())
}

/// A number without a visible pattern for each number (SplitMix64's output function).
#[inline(always)]
const fn scatter(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
