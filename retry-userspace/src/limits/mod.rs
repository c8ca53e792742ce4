//! The daemon's limits: of the socket path, in four tables of the same kind as the kernel's ([`LimitTables`]), and of
//! (source, group) in the kernel's own table, which the daemon charges too ([`GroupTable`]).
//!
//! What a limit means is [`retry_common::limits`]; the kernel program charges its tables in `retry-ebpf/src/admit.rs`.

mod bytes;
mod known;
mod table;

use std::io;

use retry_common::abi::{AddressKey, ChainKey, Limits};
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::limits::table::{address_hash, join};
use retry_common::limits::{ByteLimits, TokenBucket, Window};

pub use bytes::ByteTables;
pub(crate) use bytes::{ByteCase, mask as byte_mask};
pub(crate) use known::{AddressTable, Change, KnownListeners, OnChange, Review};
pub(crate) use table::GroupTable;
pub(crate) use table::LimitTable;

/// Which limits have changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changed {
    /// That of the source address.
    pub address: bool,
    /// That of the frame.
    pub sequence: bool,
    /// That of the source address and flow.
    pub chain: bool,
    /// That of the source address and group.
    pub group: bool,
    /// The budget in bytes of a source.
    pub source_bytes: bool,
    /// The budget in bytes of all.
    pub total_bytes: bool,
}

impl Changed {
    /// What differs.
    pub(crate) fn between((old, old_bytes): (&Limits, &ByteLimits), (new, new_bytes): (&Limits, &ByteLimits)) -> Self {
        Self {
            source_bytes: old_bytes.source != new_bytes.source,
            total_bytes: old_bytes.total != new_bytes.total,
            address: old.address != new.address,
            sequence: old.sequence != new.sequence,
            chain: old.chain != new.chain,
            group: old.group != new.group,
        }
    }

    /// True when any has.
    pub(crate) const fn any(self) -> bool {
        self.address || self.sequence || self.chain || self.group || self.source_bytes || self.total_bytes
    }
}

/// The four tables of the socket path.
#[derive(Debug)]
pub(crate) struct LimitTables {
    seed: u64,
    address: AddressTable,
    sequence: LimitTable<FrameKey>,
    chain: LimitTable<ChainKey>,
    group: GroupTable,
}

impl LimitTables {
    /// Tables for `entries` keys each, whose hashes begin with `seed`.
    ///
    /// # Errors
    /// What mapping their memory returns.
    pub(crate) fn new(entries: u32, seed: u64) -> io::Result<Self> {
        Ok(Self {
            seed,
            address: AddressTable::new(LimitTable::plain(entries)?, seed),
            sequence: LimitTable::plain(entries)?,
            chain: LimitTable::plain(entries)?,
            group: GroupTable::new(LimitTable::plain(entries)?, seed),
        })
    }

    /// The table of addresses, for who looks who has asked.
    pub(crate) fn addresses(&self) -> AddressTable {
        self.address.clone()
    }

    /// Lets every key of these limits begin anew.
    pub(crate) fn forget(&self, limits: Changed) {
        let Changed { address, sequence, chain, group, .. } = limits;
        if address {
            self.address.table.forget();
        }
        if sequence {
            self.sequence.forget();
        }
        if chain {
            self.chain.forget();
        }
        if group {
            self.group.forget();
        }
    }

    /// Takes a token of the source address; true when there was one.
    pub(crate) fn take_address(&self, address: [u8; 16], bucket: &TokenBucket, now_ns: u64) -> bool {
        let hash = address_hash(&address, self.seed);
        self.address.table.take_token(AddressKey { address }, hash, bucket, now_ns)
    }

    /// Takes a token of the source address and group; true when there was one.
    pub(crate) fn take_group(&self, address: [u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool {
        self.group.take(address, group, bucket, now_ns)
    }

    /// Counts in the window of the source address and flow; true when there was room.
    pub(crate) fn take_chain(&self, address: [u8; 16], hash_key: u64, window: &Window, now_ns: u64) -> bool {
        let hash = join(address_hash(&address, self.seed), hash_key);
        let key = ChainKey { address, hash_key: hash_key.to_be_bytes() };
        self.chain.take_window(key, hash, window, now_ns)
    }

    /// True when the frame's window is full.
    pub(crate) fn sequence_is_over(&self, key: FrameKey, window: &Window, now_ns: u64) -> bool {
        let state = || self.sequence.state(key, index::hash(&key, self.seed));
        !window.is_off() && state().is_some_and(|state| window.is_over(state, now_ns))
    }

    /// Counts in the frame's window; true when there was room.
    pub(crate) fn take_sequence(&self, key: FrameKey, window: &Window, now_ns: u64) -> bool {
        self.sequence.take_window(key, index::hash(&key, self.seed), window, now_ns)
    }
}

#[cfg(test)]
mod tests {
    use retry_common::limits::Rate;

    use super::*;

    const NOW: u64 = 5_000_000_000;

    fn tables() -> LimitTables {
        LimitTables::new(1_024, 7).expect("memory")
    }

    #[test]
    fn each_limit_is_counted_by_its_own_key() {
        let (tables, bucket, window) = (tables(), TokenBucket::new(1, 1), Window::new(1, 1_000_000_000));
        let (one, other) = ([1; 16], [2; 16]);
        assert!(tables.take_address(one, &bucket, NOW) && !tables.take_address(one, &bucket, NOW));
        assert!(tables.take_address(other, &bucket, NOW));
        assert!(tables.take_group(one, 1, &bucket, NOW) && !tables.take_group(one, 1, &bucket, NOW));
        assert!(tables.take_group(one, 2, &bucket, NOW) && tables.take_group(other, 1, &bucket, NOW));
        assert!(tables.take_chain(one, 1, &window, NOW) && !tables.take_chain(one, 1, &window, NOW));
        assert!(tables.take_chain(one, 2, &window, NOW) && tables.take_chain(other, 1, &window, NOW));
        let (key, next) = (FrameKey::new(1, 1), FrameKey::new(1, 2));
        assert!(!tables.sequence_is_over(key, &window, NOW));
        assert!(tables.take_sequence(key, &window, NOW) && !tables.take_sequence(key, &window, NOW));
        assert!(tables.sequence_is_over(key, &window, NOW) && !tables.sequence_is_over(next, &window, NOW));
        // A window later all is as before.
        assert!(!tables.sequence_is_over(key, &window, NOW + 2_000_000_000));
        assert!(tables.take_chain(one, 1, &window, NOW + 2_000_000_000));
    }

    /// Both look before either charges, and a frame's first charge is the one that makes its entry.
    #[test]
    fn threads_that_ask_for_one_frame_share_its_window() {
        const FRAMES: u64 = 2_000;
        let (tables, window) = (LimitTables::new(16_384, 7).expect("memory"), Window::new(5, 3_600_000_000_000));
        let together = std::sync::Barrier::new(2);
        let ask = || {
            let asked = (0..FRAMES).map(|seq_num| {
                let key = FrameKey::new(1, seq_num);
                together.wait();
                (0..4)
                    .filter(|_| !tables.sequence_is_over(key, &window, NOW) && tables.take_sequence(key, &window, NOW))
                    .count()
            });
            asked.collect::<Vec<_>>()
        };
        let (one, other) = std::thread::scope(|scope| {
            let thread = scope.spawn(ask);
            (ask(), thread.join().expect("no panic"))
        });
        let sent: Vec<_> = one.iter().zip(other).map(|(one, other)| one + other).collect();
        assert!(sent.iter().all(|sent| *sent == 5), "{:?} to {:?}", sent.iter().min(), sent.iter().max());
    }

    /// A bucket that fills in days, and a window whose counts have other places: no new limit may go by what they counted.
    #[test]
    fn every_key_of_a_changed_limit_begins_anew() {
        let tables = tables();
        let (slow, quick) = (TokenBucket::new(Rate::every(1 << 50), 1), TokenBucket::new(100, 1));
        let (narrow, wide) = (Window::new(100, 1_000_000_000), Window::new(200, 1_000_000_000));
        let (one, key) = ([1; 16], FrameKey::new(1, 1));
        assert!(tables.take_address(one, &slow, NOW) && tables.take_group(one, 1, &slow, NOW));
        while tables.take_chain(one, 1, &narrow, NOW) && tables.take_sequence(key, &narrow, NOW) {}
        let old = Limits { address: slow, group: slow, sequence: narrow, chain: narrow };
        let new = Limits { address: quick, sequence: wide, ..old };
        let off = ByteLimits::default();
        let changed = Changed::between((&old, &off), (&new, &off));
        assert_eq!(changed, Changed { address: true, sequence: true, ..Changed::default() });
        tables.forget(changed);
        assert!(tables.take_address(one, &quick, NOW));
        assert_eq!((0..300).filter(|_| tables.take_sequence(key, &wide, NOW)).count(), 200);
        assert!(!tables.take_group(one, 1, &slow, NOW) && !tables.take_chain(one, 1, &narrow, NOW), "they stay");
    }

    #[test]
    fn who_is_over_a_limit_is_remembered_longest() {
        // One bucket.
        let tables = LimitTables::new(2, 7).expect("memory");
        let bucket = TokenBucket::new(1, 10);
        let (over, once) = ([0xff; 16], [0xfe; 16]);
        while tables.take_address(over, &bucket, NOW) {}
        assert!(tables.take_address(once, &bucket, NOW));
        for flood in 0..1_000_u128 {
            assert!(tables.take_address(flood.to_be_bytes(), &bucket, NOW));
        }
        assert!(!tables.take_address(over, &bucket, NOW));
        // Who asked once has made room, and begins anew.
        assert_eq!((0..20).filter(|_| tables.take_address(once, &bucket, NOW)).count(), 10);
    }

    #[test]
    fn a_limit_that_is_off_counts_nothing() {
        let (tables, bucket, window) = (tables(), TokenBucket::default(), Window::default());
        let key = FrameKey::new(1, 1);
        for _ in 0..1_000 {
            assert!(tables.take_sequence(key, &window, NOW));
            assert!(tables.take_address([1; 16], &bucket, NOW) && tables.take_group([1; 16], 1, &bucket, NOW));
            assert!(tables.take_chain([1; 16], 1, &window, NOW) && !tables.sequence_is_over(key, &window, NOW));
        }
    }
}
