//! Frames stored by source: a table of fixed size that the kernel program counts in on each CPU, and the daemon reads.
//!
//! A source takes an entry of its bucket with its first frame and keeps it. Sources whose bucket is full are counted
//! together, so that the table does not grow with what strangers send.

use crate::abi::{SOURCE_ENTRIES, SourceCount, SourceTable};

/// Entries of a bucket.
pub const SOURCE_WAYS: usize = 4;
/// Odd multiplier of Fibonacci hashing: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
/// Bits of the number of a bucket.
const BUCKET_BITS: u32 = (SOURCE_ENTRIES / SOURCE_WAYS).trailing_zeros();

const _: () = assert!(SOURCE_WAYS << BUCKET_BITS == SOURCE_ENTRIES);

impl SourceTable {
    /// A table without sources.
    pub const EMPTY: Self = Self { entries: [SourceCount { address: [0; 16], frames: 0 }; SOURCE_ENTRIES], other: 0 };

    /// Counts one frame of the source with this address. `seed` is unknown to senders, so that they cannot fill a bucket.
    #[inline(always)]
    pub fn count(&mut self, address: [u8; 16], seed: u64) {
        let number = u128::from_ne_bytes(address);
        let first = bucket(number, seed) * SOURCE_WAYS;
        for way in 0..SOURCE_WAYS {
            let Some(entry) = self.entries.get_mut(first + way) else { break };
            if entry.frames == 0 {
                entry.address = address;
                entry.frames = 1;
                return;
            }
            if u128::from_ne_bytes(entry.address) == number {
                entry.frames += 1;
                return;
            }
        }
        self.other += 1;
    }

    /// The sources that have entries.
    pub fn sources(&self) -> impl Iterator<Item = &SourceCount> {
        // An entry that another CPU fills in at this moment may show its number before its address.
        self.entries.iter().filter(|entry| entry.frames > 0 && entry.address != [0; 16])
    }
}

/// Number of the bucket of an address.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of the address; a number of BUCKET_BITS bits")]
fn bucket(address: u128, seed: u64) -> usize {
    let (low, high) = (address as u64, (address >> 64) as u64);
    let mixed = (low ^ seed).wrapping_mul(GOLDEN) ^ high.rotate_left(32);
    (mixed.wrapping_mul(GOLDEN) >> (64 - BUCKET_BITS)) as usize
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeMap;

    use super::*;

    fn address(number: u32) -> [u8; 16] {
        (0xfd10_u128 << 112 | u128::from(number)).to_be_bytes()
    }

    #[test]
    fn each_source_has_its_number() {
        let mut table = SourceTable::EMPTY;
        for round in 0..3 {
            for source in 0..64 {
                table.count(address(source), 0x5eed);
                assert!(round > 0 || table.other == 0, "64 sources have entries of their own");
            }
        }
        let seen: BTreeMap<_, _> = table.sources().map(|one| (one.address, one.frames)).collect();
        assert_eq!(seen.len(), 64);
        assert!(seen.values().all(|frames| *frames == 3));
    }

    /// Any number of sources: nothing is lost, and those that came first keep their entries.
    #[test]
    fn more_sources_than_entries_are_counted_together() {
        let mut table = SourceTable::EMPTY;
        table.count(address(0), 7);
        for source in 0..100_000 {
            table.count(address(source), 7);
        }
        assert_eq!(table.sources().map(|one| one.frames).sum::<u64>() + table.other, 100_001);
        assert!(table.other > 90_000, "{}", table.other);
        assert_eq!(table.sources().find(|one| one.address == address(0)).map(|one| one.frames), Some(2));
    }
}
