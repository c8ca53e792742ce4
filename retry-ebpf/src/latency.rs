//! How long NACKs and frames took: one histogram per outcome and CPU.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use retry_common::abi::{Settings, UserHistograms, setting_flag};
use retry_common::latency::{self, Histogram, Measured};

use crate::log;

/// `BPF_F_MMAPABLE` (linux/bpf.h): the daemon counts in its pages.
const MMAPABLE: usize = 1024;
/// Entries of the map.
const ENTRIES: usize = Measured::ALL.len();

#[btf_map]
static LATENCY: PerCpuArray<Histogram, ENTRIES> = PerCpuArray::new();
/// When the NACK before and the frame before began on this CPU, nanoseconds of the monotonic clock.
#[btf_map]
static BEGAN: PerCpuArray<u64, 2> = PerCpuArray::new();

/// The daemon's own histograms. No program looks at them: they are here so that they outlive the daemon.
#[btf_map]
static USER_LATENCY: Array<UserHistograms, 1, MMAPABLE> = Array::new();

/// Counts how long something took that began at `began_ns`, if it is one of those that are measured.
#[inline(always)]
pub(crate) fn took(measured: Measured, settings: &Settings, began_ns: u64) {
    if log::flags(settings) & setting_flag::LATENCY == 0 {
        return;
    }
    let Some(last) = BEGAN.get_ptr_mut(u32::from(matches!(measured, Measured::Stored))) else {
        return;
    };
    // SAFETY: this CPU's own value; XDP programs do not interrupt each other there.
    let last = unsafe { &mut *last };
    let weight = latency::weight(began_ns, *last);
    *last = began_ns;
    if weight == 0 {
        return;
    }
    let Some(histogram) = LATENCY.get_ptr_mut(measured as u32) else {
        return;
    };
    // SAFETY: the helper takes nothing and always succeeds.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    unsafe { &mut *histogram }.add(now_ns.wrapping_sub(began_ns), weight);
}
