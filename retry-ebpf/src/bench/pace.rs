//! When a generator sends, and how much it has sent.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;

/// Looks at the clock while a packet is not due: about 20 ns each, so that a rate down to 20,000 a second is kept.
const MOST_LOOKS: u32 = 4096;
/// How far a generator may fall behind before what it owes is forgotten: a pause is not made up for by a burst.
const PATIENCE_NS: u64 = 50_000;
/// Packets between two stamps of the time at full rate.
const STAMP_EVERY: u64 = 256;

/// What a generator has done, one for each CPU; userspace clears all but `sent` before a stretch of load.
#[repr(C)]
#[derive(Clone, Copy)]
struct Progress {
    /// Packets since the object was loaded.
    sent: u64,
    /// Packets in this stretch.
    stretch: u64,
    /// Time of the first packet of the stretch.
    first_ns: u64,
    /// Time of one of its last [`STAMP_EVERY`].
    last_ns: u64,
    /// Time from which the pace is counted.
    origin_ns: u64,
    /// Packets since that.
    since_origin: u64,
}

#[btf_map]
static PROGRESS: PerCpuArray<Progress, 1> = PerCpuArray::new();

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing and always succeeds.
    unsafe { bpf_ktime_get_ns() }
}

/// The number of the next packet, when it is due. `interval` is in 1/1024 ns; 0 is as fast as it goes.
#[inline(always)]
pub(crate) fn next(interval: u64) -> Option<u64> {
    let progress = PROGRESS.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value.
    let progress = unsafe { &mut *progress };
    let number = progress.sent;
    if progress.stretch == 0 {
        progress.first_ns = now();
        progress.origin_ns = progress.first_ns;
        progress.since_origin = 0;
    }
    if interval != 0 {
        let due = progress.origin_ns + ((progress.since_origin * interval) >> 10);
        let mut time = now();
        if time > due + PATIENCE_NS {
            progress.origin_ns = time;
            progress.since_origin = 0;
        } else {
            let mut looks = 0;
            while time < due && looks < MOST_LOOKS {
                time = now();
                looks += 1;
            }
        }
        progress.since_origin += 1;
        progress.last_ns = time;
    } else if progress.stretch % STAMP_EVERY == STAMP_EVERY - 1 {
        progress.last_ns = now();
    }
    progress.stretch += 1;
    progress.sent = number.wrapping_add(1);
    Some(number)
}
