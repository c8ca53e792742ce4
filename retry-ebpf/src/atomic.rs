//! Atomic changes of map memory.

/// Replaces `*place` by `new` if it holds `old`; true when it did.
///
/// # Safety
/// `place` points to eight aligned bytes of a map value.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(place: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        use core::intrinsics::AtomicOrdering::SeqCst;
        use core::intrinsics::atomic_cxchg;
        // SAFETY: the caller's promise.
        let (_, done) = unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, old, new) };
        done
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        let place = unsafe { AtomicU64::from_ptr(place) };
        place.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}
