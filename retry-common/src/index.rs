//! The index of the frame log: from a key to a slot, as arithmetic on one cache line.
//!
//! A bucket is eight 64-bit entries, each a tag of the key's hash (32 bits) beside a slot number (32 bits, in steps of
//! [`SLOT_LEN`](crate::abi::SLOT_LEN)); 0 is an empty entry. The writer keeps at most one entry with a tag in a bucket,
//! so a reader that finds the tag need not look further: the record's own key decides.
//!
//! Behind the buckets stand [`OVERFLOW_BUCKETS`] more. Only the kernel program enters there, when it finds the bucket of a
//! frame full; readers look there for what its own bucket has not. The daemon moves such an entry to its bucket.

use crate::key::FrameKey;

/// Entries of a bucket: one cache line.
pub const BUCKET_ENTRIES: usize = 8;

/// Frames of a flow whose buckets stand side by side, in the order of their numbers: a page of memory.
const NEIGHBOURS: u64 = 64;
/// A bit from which on all that is cut from a hash as a tag has it.
const TAG_BITS_FROM: u32 = 40;

/// The hash that index, hold-down table, windows and tags are cut from. `seed` is drawn at start, so that no sender can
/// choose keys which fall into one bucket.
///
/// 64 frames in a row share all but few bits, the lowest of which count on: a writer that stores a flow, or a listener that asks for a
/// burst of it walks through memory, and does not jump.
#[inline(always)]
pub const fn hash(key: &FrameKey, seed: u64) -> u64 {
    // The finaliser of MurmurHash3 around each half: every input bit reaches every output bit.
    let mut flow = (key.hash_key() ^ seed).wrapping_mul(0xff51_afd7_ed55_8ccd);
    flow ^= flow >> 33;
    let mut h = (flow ^ (key.seq_num() / NEIGHBOURS)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    // The tags of neighbours differ too, for where there are fewer buckets.
    h ^= (key.seq_num() % NEIGHBOURS) << TAG_BITS_FROM;
    // Each flow begins elsewhere, or numbers chosen 64 apart would all fall into one part of the buckets.
    (h & !(NEIGHBOURS - 1)) | (flow.wrapping_add(key.seq_num()) % NEIGHBOURS)
}

/// The bucket of a hash; `mask` is the number of buckets less one, a power of two less one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the mask has 32 bits")]
pub const fn bucket(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

/// Buckets behind those of the hashes, for frames that the kernel program stores while their bucket is full: an entry stands
/// there until the daemon has followed its record.
pub const OVERFLOW_BUCKETS: u32 = 64;

/// The bucket where the entry of a hash stands whose own bucket is full; `mask` as for [`bucket`].
///
/// Frames of a flow stand side by side, so buckets are full side by side: each of 64 has an overflow bucket of its own.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "below 64")]
pub const fn overflow(hash: u64, mask: u32) -> u32 {
    mask + 1 + (hash as u32 & (OVERFLOW_BUCKETS - 1))
}

/// The entry that stands for `slot`.
#[inline(always)]
pub const fn entry(hash: u64, slot: u32) -> u64 {
    tag(hash) | slot as u64
}

/// The tag of a hash in the place where an entry has it. Never 0, so no entry is.
#[inline(always)]
pub const fn tag(hash: u64) -> u64 {
    // The upper half, of which the bucket number used nothing.
    (hash & !0xffff_ffff) | (1 << 63)
}

/// The slot of an entry.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the lower half is the slot")]
pub const fn slot(entry: u64) -> u32 {
    entry as u32
}

/// True when `entry` carries `tag`.
#[inline(always)]
pub const fn has_tag(entry: u64, tag: u64) -> bool {
    (entry ^ tag) >> 32 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_gives_back_its_slot_and_tag() {
        let h = hash(&FrameKey::new(1, 2), 3);
        let e = entry(h, 0xffff_fffe);
        assert_eq!(slot(e), 0xffff_fffe);
        assert!(has_tag(e, tag(h)));
        assert!(!has_tag(0, tag(0)));
        assert!(!has_tag(e, tag(h ^ (1 << 40))));
    }

    #[test]
    fn sequence_numbers_of_one_flow_spread() {
        let mut load = [0u32; 1024];
        for seq in 0..2048 {
            let b = bucket(hash(&FrameKey::new(0xfeed, seq), 42), 1023);
            load[usize::try_from(b).expect("small")] += 1;
        }
        // Two a bucket on average; a Poisson tail beyond 10 is one in 10^5.
        assert!(load.iter().max() <= Some(&10), "{load:?}");
        assert!(load.iter().filter(|n| **n == 0).count() < 200);
    }

    #[test]
    fn neighbours_stand_side_by_side() {
        for flow in 0..100 {
            let places: std::vec::Vec<u32> =
                (64..128).map(|seq| bucket(hash(&FrameKey::new(flow, seq), 9), 4095)).collect();
            let page = places[0] / 64;
            assert!(places.iter().all(|place| place / 64 == page));
            assert!(places.windows(2).all(|pair| pair[1] == pair[0] + 1 || (pair[0] % 64, pair[1] % 64) == (63, 0)));
        }
        let starts: std::collections::HashSet<u32> =
            (0..100).map(|flow| bucket(hash(&FrameKey::new(flow, 64), 9), 4095) % 64).collect();
        assert!(starts.len() > 32, "{starts:?}");
    }

    #[test]
    fn hashes_of_many_frames_differ() {
        let mut seen = std::collections::HashSet::new();
        for flow in 0..40 {
            assert!((0..5_000).all(|seq| seen.insert(hash(&FrameKey::new(flow, seq), 1))));
        }
    }

    #[test]
    fn buckets_that_stand_side_by_side_overflow_to_different_ones() {
        let hashes: std::vec::Vec<u64> = (64..128).map(|seq| hash(&FrameKey::new(3, seq), 9)).collect();
        let overflows: std::collections::HashSet<u32> = hashes.iter().map(|hash| overflow(*hash, 4095)).collect();
        assert_eq!(overflows.len(), 64);
        assert!(overflows.iter().all(|bucket| (4096..4096 + OVERFLOW_BUCKETS).contains(bucket)));
    }

    #[test]
    fn the_seed_moves_keys() {
        let key = FrameKey::new(7, 7);
        assert_ne!(hash(&key, 1), hash(&key, 2));
    }
}
