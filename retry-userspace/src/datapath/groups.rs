//! The kernel's table of the limit of (source, group), which the daemon charges too.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use retry_common::abi::{GroupKey, LimitBucket, LimitWay};
use retry_common::limit::TokenBucket;
use retry_common::{index, table};

use crate::framelog::Memory;

type Entry = LimitBucket<GroupKey>;

/// The kernel's table of the limit of (source, group).
#[derive(Debug)]
pub struct KernelGroups {
    memory: Memory,
    /// Number of buckets less one.
    mask: u32,
    seed: u64,
}

impl KernelGroups {
    /// The table in `memory`, of `mask` + 1 buckets; its hashes begin with `seed`.
    pub(super) const fn new(memory: Memory, mask: u32, seed: u64) -> Self {
        Self { memory, mask, seed }
    }

    /// Bytes of a table.
    pub(super) const fn len(mask: u32) -> usize {
        (mask as usize + 1) * size_of::<Entry>()
    }

    /// Takes a token of (source, group); true when there was one.
    pub fn take(&self, source: [u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool {
        if bucket.is_off() {
            return true;
        }
        let hash = table::join(table::address_hash(&source, self.seed), u64::from(group));
        let offset = index::bucket(hash, self.mask) as usize * size_of::<Entry>();
        let key = GroupKey { address: source, group: group.to_be_bytes(), reserved: [0; 2] };
        let mut there = There { memory: &self.memory, offset, key };
        table::take(&mut there, hash, |state| bucket.weight(state), |state| bucket.take(state, now_ns))
    }
}

struct There<'a> {
    memory: &'a Memory,
    /// Where the bucket stands.
    offset: usize,
    key: GroupKey,
}

impl There<'_> {
    fn word(&self, way: usize, field: usize) -> &AtomicU64 {
        self.memory.word(self.offset + offset_of!(Entry, ways) + way * size_of::<LimitWay>() + field)
    }

    fn tag_word(&self, way: usize) -> &AtomicU64 {
        self.word(way, offset_of!(LimitWay, tag))
    }

    fn state_word(&self, way: usize) -> &AtomicU64 {
        self.word(way, offset_of!(LimitWay, state))
    }
}

impl table::Bucket for There<'_> {
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

    fn begin(&mut self, way: usize, state: u64) {
        self.state_word(way).store(state, Ordering::SeqCst);
        self.memory.write(self.offset + offset_of!(Entry, keys) + way * size_of::<GroupKey>(), self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: u32 = 15;

    fn groups() -> KernelGroups {
        KernelGroups::new(Memory::plain(KernelGroups::len(MASK)).expect("memory"), MASK, 42)
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
        // Never more than there are; a word that was contended too long refuses.
        assert!((9_000..10_000).contains(&taken), "{taken}");
    }

    #[test]
    fn who_reads_the_table_finds_the_key() {
        let groups = groups();
        assert!(groups.take([7; 16], 0x102, &TokenBucket::new(1, 1), 5));
        let found = (0..=MASK as usize)
            .map(|place| groups.memory.read::<Entry>(place * size_of::<Entry>()))
            .find(|entry| entry.ways[0].tag != 0)
            .expect("one bucket is taken");
        assert_eq!(found.keys[0], GroupKey { address: [7; 16], group: [1, 2], reserved: [0; 2] });
        assert_eq!(found.ways[0].state, 1_000_000_005);
    }
}
