//! Frames stored, by the source that sent them: one table per CPU.

use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use retry_common::abi::SourceTable;

/// `BPF_F_MMAPABLE` (linux/bpf.h): the daemon counts in its pages.
const MMAPABLE: usize = 1024;

#[btf_map]
static STORED: PerCpuArray<SourceTable, 1> = PerCpuArray::new();

/// Frames that the daemon stored. No program looks at it: it is here so that it outlives the daemon.
#[btf_map]
static USER_STORED: Array<SourceTable, 1, MMAPABLE> = Array::new();

/// Counts one frame of a source.
#[inline(always)]
pub(crate) fn of(source: [u8; 16], seed: u64) {
    if let Some(table) = STORED.get_ptr_mut(0) {
        // SAFETY: the table is this CPU's own, and XDP programs do not interrupt each other there.
        unsafe { &mut *table }.count(source, seed);
    }
}
