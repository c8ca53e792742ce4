//! The load: NACKs, each the next SeqNum and the next source address.

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

/// What the generator sends.
#[repr(C)]
#[derive(Clone, Copy)]
struct NackTemplate {
    /// The packet with StartSeq, EndSeq and the last four bytes of its source zero, and the checksum of that.
    words: [u64; WORDS],
    /// The first SeqNum.
    first: u64,
    /// How many there are; then the first again.
    count: u64,
    /// Steps from one to the next.
    stride: u64,
    /// The last four bytes of the first source.
    source: u64,
    /// How many sources there are; then the first again.
    sources: u64,
    /// Time between two packets in 1/1024 ns, 0: none.
    interval: u64,
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
    let seq = template.first + number.wrapping_mul(template.stride).checked_rem(template.count)?;
    let source = template.source + number.checked_rem(template.sources)?;
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
    let place = (start + CHECKSUM) as *mut u16;
    // SAFETY: inside the packet.
    let without = !u16::from_be(unsafe { place.read_unaligned() });
    let mut sum = (seq >> 48) + ((seq >> 32) & 0xffff) + ((seq >> 16) & 0xffff) + (seq & 0xffff);
    sum = 2 * sum + ((source >> 16) & 0xffff) + (source & 0xffff) + u64::from(without);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // 0 would say that there is no checksum.
    let checksum = if sum == 0xffff { 0xffff } else { !(sum as u16) };
    // SAFETY: inside the packet.
    unsafe { place.write_unaligned(checksum.to_be()) };
    Some(())
}
