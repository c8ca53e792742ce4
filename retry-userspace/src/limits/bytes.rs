//! The states of the budgets in bytes: the kernel's maps, which the daemon charges too, or memory of the daemon's own. One budget
//! holds for both paths together.

use std::io;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use retry_common::abi::{AddressKey, TotalBytes};
use retry_common::limits::bytes::{self, Afforded, Leaving, Ledger, Steps};
use retry_common::limits::table::{address_hash, buckets};
use retry_common::limits::{ByteBudget, ByteLimits};

use super::table::LimitTable;
use crate::framelog::Memory;

/// The states. Clones share them.
#[derive(Clone, Debug)]
pub struct ByteTables {
    sources: Arc<LimitTable<AddressKey>>,
    total: Arc<Memory>,
    seed: u64,
}

/// One NACK, or one copy, as the budgets see it.
pub(crate) struct ByteCase<'a, P> {
    pub(crate) tables: &'a ByteTables,
    pub(crate) limits: &'a ByteLimits,
    pub(crate) source: [u8; 16],
    /// Says whether the source has shown that it hears us.
    pub(crate) is_proven: P,
    pub(crate) leaving: Leaving,
    pub(crate) now_ns: u64,
}

/// Number of buckets of the table of sources less one: one bucket where there is no budget at the start.
pub(crate) const fn mask(limits: &ByteLimits, entries: u32) -> u32 {
    if limits.source.is_off() { 0 } else { buckets(entries) - 1 }
}

impl ByteTables {
    /// Over a table of `mask` + 1 buckets, whose hashes begin with `seed`, and the word of the total.
    pub(crate) fn new(sources: Memory, mask: u32, total: Memory, seed: u64) -> Self {
        Self { sources: Arc::new(LimitTable::new(sources, mask)), total: Arc::new(total), seed }
    }

    /// In memory of its own, for `entries` sources where they have a budget.
    ///
    /// # Errors
    /// What mapping the memory returns.
    pub(crate) fn plain(limits: &ByteLimits, entries: u32, seed: u64) -> io::Result<Self> {
        let mask = mask(limits, entries);
        let sources = Memory::plain(LimitTable::<AddressKey>::len(mask))?;
        Ok(Self::new(sources, mask, Memory::plain(size_of::<TotalBytes>())?, seed))
    }

    /// Lets every source begin anew.
    pub fn forget_sources(&self) {
        self.sources.forget();
    }

    /// Lets the total begin anew.
    pub fn forget_total(&self) {
        self.word().store(0, Ordering::Relaxed);
    }

    fn word(&self) -> &AtomicU64 {
        self.total.word(offset_of!(TotalBytes, state))
    }
}

impl<P: Fn() -> bool> ByteCase<'_, P> {
    /// Whether so much may leave; what may is charged.
    pub(crate) fn afford(&mut self) -> Afforded {
        bytes::afford(self)
    }
}

impl<P: Fn() -> bool> Steps for ByteCase<'_, P> {
    fn may_leave(&mut self) -> Afforded {
        let (leaving, now_ns) = (self.leaving, self.now_ns);
        bytes::may_leave(self, &leaving, now_ns)
    }

    fn take_source(&mut self) -> bool {
        let Self { tables, limits: ByteLimits { source: budget, .. }, source: address, leaving, now_ns, .. } = *self;
        if budget.is_off() || leaving.to_source == 0 {
            return true;
        }
        let hash = address_hash(&address, tables.seed);
        let step = |state| budget.take(state, leaving.to_source, now_ns);
        tables.sources.take_strictly(AddressKey { address }, hash, ByteBudget::weight, step)
    }

    fn take_total(&mut self) -> bool {
        let (all, now_ns) = (self.leaving.all, self.now_ns);
        bytes::take_total(self, all, now_ns)
    }
}

impl<P: Fn() -> bool> Ledger for ByteCase<'_, P> {
    /// Who fails has seen another thread succeed.
    const ATTEMPTS: u32 = u32::MAX;

    fn total_budget(&self) -> ByteBudget {
        self.limits.total
    }

    fn unproven_factor(&self) -> u64 {
        self.limits.unproven_factor
    }

    fn is_proven(&mut self) -> bool {
        (self.is_proven)()
    }

    fn total(&self) -> u64 {
        self.tables.word().load(Ordering::SeqCst)
    }

    fn replace_total(&mut self, old: u64, new: u64) -> bool {
        self.tables.word().compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 5_000_000_000;

    fn afford(tables: &ByteTables, limits: &ByteLimits, source: u8, bytes: u32) -> Afforded {
        let leaving = Leaving { to_source: bytes, all: bytes, before: 0 };
        ByteCase { tables, limits, source: [source; 16], is_proven: || false, leaving, now_ns: NOW }.afford()
    }

    #[test]
    fn each_source_has_its_budget_and_all_have_one() {
        let limits = ByteLimits { source: ByteBudget::new(10_000), total: ByteBudget::new(40_000), unproven_factor: 0 };
        let tables = ByteTables::plain(&limits, 1_024, 7).expect("memory");
        let admitted = |source| (0..100).filter(|_| afford(&tables, &limits, source, 1_000) == Afforded::Yes).count();
        // Half of each budget at once, and strangers have half of the total's.
        assert_eq!([1, 2, 3].map(admitted), [4, 4, 1]);
        tables.forget_total();
        assert_eq!([1, 2, 3].map(admitted), [0, 0, 3]);
        tables.forget_sources();
        tables.forget_total();
        assert_eq!(admitted(1), 4);
    }

    #[test]
    fn without_a_budget_the_table_of_sources_is_one_bucket() {
        let off = ByteLimits { total: ByteBudget::new(1_000_000), ..ByteLimits::default() };
        assert_eq!((mask(&off, 65_536), mask(&ByteLimits { source: off.total, ..off }, 65_536)), (0, 32_767));
        let tables = ByteTables::plain(&off, 65_536, 7).expect("memory");
        assert_eq!((0..50).filter(|source| afford(&tables, &off, *source, 1_000) == Afforded::Yes).count(), 50);
    }

    #[test]
    fn threads_that_charge_at_once_never_come_to_more() {
        let limits =
            ByteLimits { source: ByteBudget::new(400_000), total: ByteBudget::new(1_000_000), unproven_factor: 0 };
        let tables = ByteTables::plain(&limits, 2, 7).expect("memory");
        let work = |first: u8| {
            let admitted =
                |source| (0..4_000).filter(|_| afford(&tables, &limits, source, 100) == Afforded::Yes).count();
            (first..first + 6).map(admitted).collect::<Vec<_>>()
        };
        let (one, other) = std::thread::scope(|scope| {
            let thread = scope.spawn(|| work(0));
            (work(0), thread.join().expect("no panic"))
        });
        let each: Vec<usize> = one.iter().zip(&other).map(|(one, other)| (one + other) * 100).collect();
        assert!(each.iter().all(|bytes| *bytes <= 131_072), "{each:?}");
        assert!(each.iter().sum::<usize>() <= 65_536, "{each:?}");
    }
}
