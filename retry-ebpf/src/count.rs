//! The counters: one block of named words for each CPU.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use retry_common::counter::{Counter, Counters};

/// `BPF_F_MMAPABLE` (linux/bpf.h): the daemon counts in its pages.
const MMAPABLE: usize = 1024;

#[btf_map]
static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

/// The daemon's own counters. No program looks at them: they are here so that they outlive the daemon.
#[btf_map]
static USER_COUNTERS: Array<Counters, 1, MMAPABLE> = Array::new();

/// Counts one.
#[inline(always)]
pub(crate) fn one(counter: Counter) {
    if let Some(block) = COUNTERS.get_ptr_mut(0) {
        // The fields stand in the order of the enum (tested in retry-common), and a field match with a number that is
        // not constant would become a jump table, which BPF has not.
        // SAFETY: the enum has as many variants as the block has words.
        let place = unsafe { block.cast::<u64>().add(counter as usize) };
        // SAFETY: the block is this CPU's own, and XDP programs do not interrupt each other there.
        unsafe { *place += 1 };
    }
}
