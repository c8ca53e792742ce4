//! Frames stored, by the source that sent them: one table per CPU.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use retry_common::abi::SourceTable;

#[btf_map]
static STORED: PerCpuArray<SourceTable, 1> = PerCpuArray::new();

/// Counts one frame of a source.
#[inline(always)]
pub(crate) fn of(source: [u8; 16], seed: u64) {
    if let Some(table) = STORED.get_ptr_mut(0) {
        // SAFETY: the table is this CPU's own, and XDP programs do not interrupt each other there.
        unsafe { &mut *table }.count(source, seed);
    }
}
