//! Programs of the bench, not of the product: the load, the count of what comes back, and the shortest possible
//! reflector, which is the limit of the machine.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code, reason = "the entries exist on the BPF target only"))]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// Ethernet, IPv6 and UDP headers and a NACK.
const PACKET_LEN: usize = 126;
/// The template in whole words.
const WORDS: usize = PACKET_LEN.div_ceil(8);
const CHECKSUM: usize = 14 + 40 + 6;
const START_SEQ: usize = 14 + 48 + 16;

/// What the generator sends.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    /// The packet with StartSeq and EndSeq zero and a right checksum.
    words: [u64; WORDS],
    /// The first SeqNum.
    first: u64,
    /// How many there are; then the first again.
    count: u64,
}

/// What came back.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answers {
    acks: u64,
    misses: u64,
    throttled: u64,
    unicast_frames: u64,
    multicast_frames: u64,
    reflected: u64,
    other: u64,
}

#[btf_map]
static TEMPLATE: Array<Template, 1> = Array::new();
#[btf_map]
static SENT: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map]
static ANSWERS: PerCpuArray<Answers, 1> = PerCpuArray::new();

/// Run on live frames: makes each the next NACK and sends it out of the interface in the context. The whole packet is
/// written, for its page still holds what the far end made of it.
#[xdp]
fn bench_generate(ctx: XdpContext) -> u32 {
    generate(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_TX)
}

#[expect(clippy::cast_possible_truncation, reason = "words are taken apart, sums folded")]
fn generate(ctx: &XdpContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: this CPU's own word.
    let number = unsafe { *sent };
    // SAFETY: as above.
    unsafe { *sent = number.wrapping_add(1) };
    let seq = template.first + number.checked_rem(template.count)?;
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
    for offset in [START_SEQ, START_SEQ + 8] {
        // SAFETY: inside the packet.
        unsafe { ((start + offset) as *mut u64).write_unaligned(seq.to_be()) };
    }
    let place = (start + CHECKSUM) as *mut u16;
    // SAFETY: inside the packet.
    let without = !u16::from_be(unsafe { place.read_unaligned() });
    let mut sum = (seq >> 48) + ((seq >> 32) & 0xffff) + ((seq >> 16) & 0xffff) + (seq & 0xffff);
    sum = 2 * sum + u64::from(without);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: inside the packet.
    unsafe { place.write_unaligned((!(sum as u16)).to_be()) };
    Some(())
}

/// Attached to the client's interface: counts what comes back and drops it.
#[xdp]
fn bench_count(ctx: XdpContext) -> u32 {
    let Some(answers) = ANSWERS.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's own value.
    let answers = unsafe { &mut *answers };
    let start = ctx.data();
    if start + 14 + 48 + 16 > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: inside the packet, as just checked.
    let ethertype = unsafe { ((start + 12) as *const [u8; 2]).read_unaligned() };
    // SAFETY: as above.
    let headers = unsafe { ((start + 14) as *const [u8; 48]).read_unaligned() };
    if ethertype != [0x86, 0xdd] || headers[6] != 17 {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: as above.
    let kind = unsafe { ((start + 14 + 48 + 6) as *const [u8; 2]).read_unaligned() }[0];
    // SAFETY: as above.
    let destination = unsafe { (start as *const [u8; 2]).read_unaligned() }[0];
    if headers[5] == 24 {
        match kind {
            0x12 => answers.acks += 1,
            0x11 => answers.misses += 1,
            0x13 => answers.throttled += 1,
            _ => answers.other += 1,
        }
    } else if kind == 0x10 {
        answers.reflected += 1;
    } else if destination & 1 != 0 {
        answers.multicast_frames += 1;
    } else {
        answers.unicast_frames += 1;
    }
    xdp_action::XDP_DROP
}

/// Attached to the server's interface in place of the product: swaps addresses and ports and sends back.
#[xdp]
fn bench_reflect(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + PACKET_LEN > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    let (macs, addresses, ports) =
        (start as *mut [[u8; 6]; 2], (start + 22) as *mut [u128; 2], (start + 54) as *mut [u16; 2]);
    // SAFETY: inside the packet, as just checked.
    let [destination, source] = unsafe { macs.read_unaligned() };
    // SAFETY: as above.
    unsafe { macs.write_unaligned([source, destination]) };
    // SAFETY: as above.
    let [from, to] = unsafe { addresses.read_unaligned() };
    // SAFETY: as above.
    unsafe { addresses.write_unaligned([to, from]) };
    // SAFETY: as above.
    let [from, to] = unsafe { ports.read_unaligned() };
    // SAFETY: as above.
    unsafe { ports.write_unaligned([to, from]) };
    xdp_action::XDP_TX
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers used here are offered to GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
