//! One limit table in memory that threads share, and the kernel with them where it is a map's:
//! [`retry_common::limits::table`] over atomic words.

use std::io;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use retry_common::abi::{GroupKey, LimitBucket, LimitWay};
use retry_common::index;
use retry_common::limits::table;
use retry_common::limits::{TokenBucket, Window};

use crate::framelog::Memory;

/// A limit table with keys of type `K`.
#[derive(Debug)]
pub(crate) struct LimitTable<K> {
    memory: Memory,
    /// Number of buckets less one.
    mask: u32,
    key: PhantomData<fn() -> K>,
}

impl<K: Copy> LimitTable<K> {
    /// The table in `memory`, of `mask` + 1 buckets.
    pub(crate) const fn new(memory: Memory, mask: u32) -> Self {
        Self { memory, mask, key: PhantomData }
    }

    /// A table for `entries` keys, in memory of its own, which it takes as it is used.
    ///
    /// # Errors
    /// What mapping the memory returns.
    pub(crate) fn plain(entries: u32) -> io::Result<Self> {
        let mask = table::buckets(entries) - 1;
        Ok(Self::new(Memory::plain(Self::len(mask))?, mask))
    }

    /// Bytes of a table.
    pub(crate) const fn len(mask: u32) -> usize {
        (mask as usize + 1) * size_of::<LimitBucket<K>>()
    }

    /// As [`table::take`], for `key`, whose hash is `hash`.
    fn take(&self, key: K, hash: u64, weigh: impl Fn(u64) -> u64, step: impl Fn(u64) -> Option<u64>) -> bool {
        table::take(&mut self.there(key, hash), hash, weigh, step)
    }

    /// As [`table::take_strictly`], for `key`, whose hash is `hash`.
    pub(super) fn take_strictly(
        &self,
        key: K,
        hash: u64,
        weigh: impl Fn(u64) -> u64,
        step: impl Fn(u64) -> Option<u64>,
    ) -> bool {
        table::take_strictly(&mut self.there(key, hash), hash, weigh, step)
    }

    /// Takes a token of `key`; true when there was one.
    pub(crate) fn take_token(&self, key: K, hash: u64, bucket: &TokenBucket, now_ns: u64) -> bool {
        bucket.is_off() || self.take(key, hash, |state| bucket.weight(state), |state| bucket.take(state, now_ns))
    }

    /// Charges the window of `key`; true when there was room.
    pub(crate) fn take_window(&self, key: K, hash: u64, window: &Window, now_ns: u64) -> bool {
        window.is_off()
            || self.take(key, hash, |state| window.weight(state, now_ns), |state| window.take(state, now_ns))
    }

    /// The state of `key`, whose hash is `hash`; `None` when the table does not know it.
    pub(crate) fn state(&self, key: K, hash: u64) -> Option<u64> {
        table::state(&self.there(key, hash), hash)
    }

    /// How many buckets there are.
    pub(crate) const fn buckets(&self) -> usize {
        self.mask as usize + 1
    }

    /// A way of a bucket, and whose it is. Others write it at the same time: the key is the tag's only if its hash is.
    pub(crate) fn way(&self, bucket: usize, way: usize) -> (LimitWay, K) {
        let there = BucketRef { memory: &self.memory, offset: bucket * size_of::<LimitBucket<K>>(), key: () };
        let key = offset_of!(LimitBucket<K>, keys) + way * size_of::<K>();
        let tag = there.tag_word(way).load(Ordering::SeqCst);
        let state = there.state_word(way).load(Ordering::SeqCst);
        (LimitWay { tag, state }, self.memory.read(there.offset + key))
    }

    /// Lets every key begin anew. What is not in use stays untouched: memory of the daemon's own is taken as it is used.
    pub(crate) fn forget(&self) {
        for bucket in 0..=self.mask as usize {
            let ways = bucket * size_of::<LimitBucket<K>>() + offset_of!(LimitBucket<K>, ways);
            for way in 0..table::WAYS {
                let state = self.memory.word(ways + way * size_of::<LimitWay>() + offset_of!(LimitWay, state));
                if state.load(Ordering::Relaxed) != 0 {
                    state.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    fn there(&self, key: K, hash: u64) -> BucketRef<'_, K> {
        let offset = index::bucket(hash, self.mask) as usize * size_of::<LimitBucket<K>>();
        BucketRef { memory: &self.memory, offset, key }
    }
}

/// The limit of (source, group): the daemon's own, or the kernel's, which the daemon charges too.
#[derive(Debug)]
pub struct GroupTable {
    table: LimitTable<GroupKey>,
    seed: u64,
}

impl GroupTable {
    /// Over `table`, whose hashes begin with `seed`.
    pub(crate) const fn new(table: LimitTable<GroupKey>, seed: u64) -> Self {
        Self { table, seed }
    }

    /// As [`LimitTable::forget`].
    pub(crate) fn forget(&self) {
        self.table.forget();
    }

    /// Takes a token of (source, group); true when there was one.
    pub fn take(&self, source: [u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool {
        let hash = table::join(table::address_hash(&source, self.seed), u64::from(group));
        let key = GroupKey { address: source, group: group.to_be_bytes(), reserved: [0; 2] };
        self.table.take_token(key, hash, bucket, now_ns)
    }
}

/// A bucket of a table.
struct BucketRef<'a, K> {
    memory: &'a Memory,
    /// Where it stands.
    offset: usize,
    /// Written where a way is taken.
    key: K,
}

impl<K> BucketRef<'_, K> {
    fn word(&self, way: usize, field: usize) -> &AtomicU64 {
        self.memory.word(self.offset + offset_of!(LimitBucket<K>, ways) + way * size_of::<LimitWay>() + field)
    }

    fn tag_word(&self, way: usize) -> &AtomicU64 {
        self.word(way, offset_of!(LimitWay, tag))
    }

    fn state_word(&self, way: usize) -> &AtomicU64 {
        self.word(way, offset_of!(LimitWay, state))
    }
}

impl<K: Copy> table::Bucket for BucketRef<'_, K> {
    /// Who fails has seen another thread succeed.
    const ATTEMPTS: u32 = u32::MAX;

    fn tag(&self, way: usize) -> u64 {
        self.tag_word(way).load(Ordering::SeqCst)
    }

    fn state(&self, way: usize) -> u64 {
        self.state_word(way).load(Ordering::SeqCst)
    }

    fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
        self.tag_word(way).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool {
        self.state_word(way).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    fn write_key(&mut self, way: usize) {
        self.memory.write(self.offset + offset_of!(LimitBucket<K>, keys) + way * size_of::<K>(), self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u32 = 32;

    fn groups() -> GroupTable {
        GroupTable::new(LimitTable::plain(ENTRIES).expect("memory"), 42)
    }

    #[test]
    fn a_token_for_each_source_and_group() {
        let (groups, bucket) = (groups(), TokenBucket::new(1, 2));
        let now = 9_000_000_000;
        for (source, group) in [([1; 16], 1), ([1; 16], 2), ([2; 16], 1)] {
            assert!(groups.take(source, group, &bucket, now));
            assert!(groups.take(source, group, &bucket, now));
            assert!(!groups.take(source, group, &bucket, now), "{source:?} {group}");
            assert!(groups.take(source, group, &bucket, now + 1_000_000_000));
        }
        assert!(groups.take([1; 16], 1, &TokenBucket::new(0, 0), now));
    }

    #[test]
    fn two_threads_share_the_tokens() {
        let (groups, bucket) = (groups(), TokenBucket::new(1, 10_000));
        assert!(groups.take([1; 16], 1, &bucket, 1));
        let taken = std::thread::scope(|scope| {
            let work = || (0..20_000).filter(|_| groups.take([1; 16], 1, &bucket, 1)).count();
            let threads = [scope.spawn(work), scope.spawn(work)];
            threads.map(|thread| thread.join().expect("no panic")).iter().sum::<usize>()
        });
        assert_eq!(taken, 9_999);
    }

    #[test]
    fn who_reads_the_table_finds_the_key() {
        let groups = groups();
        assert!(groups.take([7; 16], 0x102, &TokenBucket::new(1, 1), 5));
        let found = (0..=groups.table.mask as usize)
            .map(|place| groups.table.memory.read::<LimitBucket<GroupKey>>(place * size_of::<LimitBucket<GroupKey>>()))
            .find(|entry| entry.ways[0].tag != 0)
            .expect("one bucket is taken");
        assert_eq!(found.keys[0], GroupKey { address: [7; 16], group: [1, 2], reserved: [0; 2] });
        assert_eq!(found.ways[0].state, 1_000_000_005);
    }
}
