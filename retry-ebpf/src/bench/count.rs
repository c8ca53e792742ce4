//! The count of what comes back, by kind, and samples of it for userspace to check.

use core::hint::black_box;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::generated::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;

/// Destination port of what answers the load.
const LOAD_PORT: [u8; 2] = 40_000u16.to_be_bytes();
/// Destination port of multicast repairs.
const DATA_PORT: [u8; 2] = 9_001u16.to_be_bytes();
/// Of as many packets the first few are kept.
const SAMPLE_EVERY: u64 = 4096;
/// How many of them: neighbours, so that their order can be told.
const SAMPLE_RUN: u64 = 4;
/// Samples that are kept; then the oldest is overwritten.
const SAMPLES_KEPT: u64 = 1024;
/// The longest sample; a power of two, for masks.
const SAMPLE_LONGEST: usize = 2048;

/// Length of a packet with an answer.
const ANSWER_PACKET: usize = 14 + 48 + 16;

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

/// One packet as it came.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sample {
    /// Its place among all that came on this CPU.
    number: u64,
    /// Its length.
    length: u64,
    bytes: [u8; SAMPLE_LONGEST],
}

#[btf_map]
static ANSWERS: PerCpuArray<Answers, 1> = PerCpuArray::new();
#[btf_map]
static SEEN: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map]
static SAMPLES: Array<Sample, 1024> = Array::new();

/// Attached to the client's interface: counts what answers the load and drops it; all else is the client's.
#[xdp(frags)]
fn bench_count(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + ANSWER_PACKET > ctx.data_end() {
        return xdp_action::XDP_PASS;
    }
    // Few reads: each line of the packet comes from the server's core, and this core has the generator's work to do.
    // SAFETY: inside the packet, as just checked.
    let port = unsafe { ((start + 14 + 42) as *const [u8; 2]).read_unaligned() };
    if port != LOAD_PORT && port != DATA_PORT {
        return xdp_action::XDP_PASS;
    }
    let Some(answers) = ANSWERS.get_ptr_mut(0) else {
        return xdp_action::XDP_ABORTED;
    };
    // SAFETY: this CPU's own value.
    let answers = unsafe { &mut *answers };
    // SAFETY: as above.
    let kind = unsafe { ((start + 14 + 48 + 6) as *const [u8; 2]).read_unaligned() }[0];
    // SAFETY: as above.
    let destination = unsafe { (start as *const [u8; 2]).read_unaligned() }[0];
    if port == DATA_PORT {
        answers.multicast_frames += u64::from(destination & 1);
        answers.other += u64::from(!destination & 1);
    } else if ctx.data_end() - start == ANSWER_PACKET {
        match kind {
            0x12 => answers.acks += 1,
            0x11 => answers.misses += 1,
            0x13 => answers.throttled += 1,
            _ => answers.other += 1,
        }
    } else if kind == 0x10 {
        answers.reflected += 1;
    } else {
        answers.unicast_frames += 1;
    }
    sample(&ctx);
    xdp_action::XDP_DROP
}

/// Keeps the packet if it is its turn.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "numbers below 2^32 by their masks")]
fn sample(ctx: &XdpContext) -> Option<()> {
    let seen = SEEN.get_ptr_mut(0)?;
    // SAFETY: this CPU's own word.
    let number = unsafe { *seen };
    // SAFETY: as above.
    unsafe { *seen = number.wrapping_add(1) };
    if number % SAMPLE_EVERY >= SAMPLE_RUN {
        return None;
    }
    let place = (number / SAMPLE_EVERY * SAMPLE_RUN + number % SAMPLE_EVERY) % SAMPLES_KEPT;
    let slot = SAMPLES.get_ptr_mut(place as u32)?;
    // SAFETY: the context is the one that the kernel gave.
    let whole = unsafe { bpf_xdp_get_buff_len(ctx.ctx) };
    // The verifier wants both bounds on the register that the helper gets.
    let length = black_box(whole & (SAMPLE_LONGEST as u64 - 1));
    if length < 14 {
        return None;
    }
    // SAFETY: a slot of the map; packets come in on one CPU, where the client's NAPI thread is pinned.
    let slot = unsafe { &mut *slot };
    slot.number = number;
    slot.length = whole;
    // SAFETY: `length` is below the buffer's length; the helper checks the packet's bounds.
    let loaded = unsafe { bpf_xdp_load_bytes(ctx.ctx, 0, slot.bytes.as_mut_ptr().cast(), length as u32) };
    (loaded == 0).then_some(())
}
