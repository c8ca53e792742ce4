//! NACKs drawn for the top talkers: told of over a BPF ring buffer, which the daemon reads, and counts by source and flow.
//!
//! What is drawn has a bound per CPU, whatever comes ([`retry_common::talkers`]). No process is woken: the daemon comes by itself.

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use retry_common::abi::{Settings, setting_flag};
use retry_common::counter::Counter;
use retry_common::talkers::{self, Drawn};

use crate::classify::Request;
use crate::reply::Done;
use crate::{count, log, packet};

/// Bytes of the ring: some 20,000 NACKs.
const RING: usize = 1 << 20;
/// Where a source address stands in an IPv6 packet (RFC 8200 section 3).
const SOURCE: usize = packet::IP + 8;

#[btf_map]
static TALKERS: RingBuf<Drawn, RING> = RingBuf::new();
/// The draw on this CPU.
#[btf_map]
static DRAW: PerCpuArray<Draw, 1> = PerCpuArray::new();

/// The state of the draw, and the NACK that is being looked at.
#[repr(C)]
struct Draw {
    state: u64,
    /// Its weight is 0 when it is not drawn.
    nack: Drawn,
}

/// Notes a NACK as it came, if it is drawn. On the stack of the program it would have no place until there is a verdict.
#[inline(always)]
pub(crate) fn asked(request: &Request) {
    if request.settings.flags & setting_flag::TALKERS == 0 {
        return;
    }
    let Some(draw) = draw() else { return };
    let weight = drawn(draw, request.settings, request.now_ns);
    draw.nack.weight = weight;
    if weight != 0 {
        draw.nack.source = request.headers.source;
        draw.nack.flow = request.nack.key.hash_key();
    }
}

/// Tells what the NACK got that was noted last, if it was drawn.
#[inline(always)]
pub(crate) fn decided(settings: &Settings, done: &Done) {
    if settings.flags & setting_flag::TALKERS == 0 {
        return;
    }
    let Some(draw) = draw() else { return };
    if draw.nack.weight != 0 {
        draw.nack.reason = done.reason;
        draw.nack.length = done.length;
        draw.nack.verdict = done.measured as u8;
        draw.nack.sent = done.sent;
        write(&draw.nack);
    }
}

/// Tells of a packet to the NACK port that gets no answer, if it is drawn.
#[inline(always)]
pub(crate) fn refused(ctx: &XdpContext, counter: Counter) {
    let Some(settings) = log::settings() else { return };
    if settings.flags & setting_flag::TALKERS == 0 {
        return;
    }
    let Some(draw) = draw() else { return };
    // SAFETY: the helper takes nothing and always succeeds.
    let weight = drawn(draw, settings, unsafe { bpf_ktime_get_ns() });
    if weight == 0 {
        return;
    }
    if let Some(source) = packet::read(ctx, SOURCE) {
        let reason = counter as u16 + 1;
        draw.nack.source = source;
        draw.nack.flow = 0;
        draw.nack.weight = weight;
        draw.nack.reason = reason;
        draw.nack.length = 0;
        draw.nack.verdict = Drawn::REFUSED;
        draw.nack.sent = 0;
        write(&draw.nack);
    }
}

#[inline(always)]
fn draw() -> Option<&'static mut Draw> {
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other there.
    DRAW.get_ptr_mut(0).map(|draw| unsafe { &mut *draw })
}

/// How many NACKs one of this time stands for; 0: it is not drawn.
#[inline(always)]
fn drawn(draw: &mut Draw, settings: &Settings, now_ns: u64) -> u32 {
    let (next, weight) = talkers::draw(draw.state, now_ns);
    if weight == 1 {
        draw.state = next;
    }
    // Without a daemon no process reads the ring.
    if weight != 0 && now_ns >= log::daemon_until_ns(settings) { 0 } else { weight }
}

#[inline(always)]
fn write(record: &Drawn) {
    match TALKERS.reserve_untyped::<Drawn>(0) {
        Some(mut place) => {
            place.write(*record);
            place.submit(u64::from(BPF_RB_NO_WAKEUP));
        }
        None => count::one(Counter::TalkersDropped),
    }
}
