//! The limit tables of the socket path: bounded, least recently used out first. The kernel's are those of
//! [`retry_common::table`].

use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;
use retry_common::abi::{AddressKey, ChainKey, GroupKey};
use retry_common::key::FrameKey;
use retry_common::limit::{TokenBucket, Window};

/// Keys to the state words of `retry_common::limit`.
#[derive(Debug)]
struct Table<K: Hash + Eq>(Mutex<LruCache<K, u64>>);

impl<K: Hash + Eq> Table<K> {
    fn new(entries: NonZeroUsize) -> Self {
        Self(Mutex::new(LruCache::new(entries)))
    }

    /// Replaces the state of `key` by what `step` makes of it; false, and nothing changed, when `step` refuses.
    fn take(&self, key: K, step: impl FnOnce(u64) -> Option<u64>) -> bool {
        // A panic elsewhere leaves whole words behind.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = table.get_or_insert_mut(key, || 0);
        match step(*state) {
            Some(new) => {
                *state = new;
                true
            }
            None => false,
        }
    }

    fn peek(&self, key: &K) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(0)
    }
}

/// The four tables.
#[derive(Debug)]
pub(super) struct Tables {
    address: Table<AddressKey>,
    sequence: Table<FrameKey>,
    chain: Table<ChainKey>,
    group: Table<GroupKey>,
}

impl Tables {
    pub(super) fn new(entries: u32) -> Self {
        let entries = usize::try_from(entries).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN);
        Self {
            address: Table::new(entries),
            sequence: Table::new(entries),
            chain: Table::new(entries),
            group: Table::new(entries),
        }
    }

    pub(super) fn take_address(&self, address: [u8; 16], bucket: &TokenBucket, now_ns: u64) -> bool {
        bucket.is_off() || self.address.take(AddressKey { address }, |state| bucket.take(state, now_ns))
    }

    pub(super) fn take_group(&self, address: [u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool {
        let key = GroupKey { address, group: group.to_be_bytes(), reserved: [0; 2] };
        bucket.is_off() || self.group.take(key, |state| bucket.take(state, now_ns))
    }

    pub(super) fn take_chain(&self, address: [u8; 16], hash_key: u64, window: &Window, now_ns: u64) -> bool {
        let key = ChainKey { address, hash_key: hash_key.to_be_bytes() };
        window.is_off()
            || self.chain.take(key, |state| (!window.is_over(state, now_ns)).then(|| window.charge(state, now_ns)))
    }

    pub(super) fn sequence_is_over(&self, key: FrameKey, window: &Window, now_ns: u64) -> bool {
        !window.is_off() && window.is_over(self.sequence.peek(&key), now_ns)
    }

    pub(super) fn charge_sequence(&self, key: FrameKey, window: &Window, now_ns: u64) {
        if !window.is_off() {
            self.sequence.take(key, |state| Some(window.charge(state, now_ns)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_forgets_the_least_recently_used() {
        let tables = Tables::new(2);
        let bucket = TokenBucket::new(1, 1);
        let now = 5_000_000_000;
        let address = |n: u8| [n; 16];
        assert!(tables.take_address(address(1), &bucket, now));
        assert!(!tables.take_address(address(1), &bucket, now));
        assert!(tables.take_address(address(2), &bucket, now));
        assert!(!tables.take_address(address(1), &bucket, now));
        // 2 is the oldest now and makes room.
        assert!(tables.take_address(address(3), &bucket, now));
        assert!(tables.take_address(address(2), &bucket, now));
    }
}
