//! Who may ask, and whose frames are stored: prefixes of IPv6 addresses, looked up in a table that the kernel program and the daemon
//! read.
//!
//! The longest prefix that holds the source decides; where a prefix is both allowed and denied, it is denied. A source that no
//! prefix holds may ask, unless there is an allow list. Who writes a table works out what each prefix comes to, its shorter
//! prefixes included, so the first entry that is found is the answer.
//!
//! A table hashes each of the at most [`LENGTHS`] prefix lengths that occur, longest first: a longest-prefix-match trie of the
//! kernel takes 103 ns at 1,000 prefixes. A bucket is one cache line of eight words, and the prefix itself is compared as well.

use core::fmt;
use core::net::Ipv6Addr;

use crate::counter::Counter;

/// Different lengths that the prefixes of one table may have.
pub const LENGTHS: usize = 16;
/// Words of a bucket.
pub const WAYS: usize = 8;
/// Prefixes that a table holds at most.
pub const MOST_PREFIXES: usize = 1 << INDEX_BITS;

/// Bits of the number of a prefix in an entry.
const INDEX_BITS: u32 = 18;
/// Bits of an [`entry_flag`].
const FLAG_BITS: u32 = 4;
/// Bits of a prefix length in an entry.
const LENGTH_BITS: u32 = 8;
/// Bits of an entry below those that tell prefixes apart.
const TAG_SHIFT: u32 = INDEX_BITS + FLAG_BITS;

/// Bits of what an entry says.
pub mod entry_flag {
    /// The source may ask.
    pub const ALLOWED: u32 = 1;
    /// A deny list names it.
    pub const DENIED: u32 = 2;
    /// An allow list does not name it.
    pub const NOT_LISTED: u32 = 3;
    /// The three above.
    pub const VERDICT: u32 = 3;
    /// The source is served as a peer: with a copy, when it says that it is an endpoint.
    pub const PEER: u32 = 4;
    /// Frames of the source are stored.
    pub const PUBLISHER: u32 = 8;
}

/// A prefix of IPv6 addresses.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Prefix {
    length: u8,
    bits: u128,
}

impl Prefix {
    /// All addresses.
    pub const ALL: Self = Self { length: 0, bits: 0 };

    /// The prefix of this length, 0 to 128; `None` beyond that, or where bits behind it are set.
    pub const fn new(address: Ipv6Addr, length: u8) -> Option<Self> {
        let bits = address.to_bits();
        if length > 128 || bits & !mask(length) != 0 { None } else { Some(Self { length, bits }) }
    }

    /// The prefix of this length that holds an address; a length beyond 128 counts as 128.
    #[must_use]
    pub const fn of(address: Ipv6Addr, length: u8) -> Self {
        let length = if length > 128 { 128 } else { length };
        Self { length, bits: address.to_bits() & mask(length) }
    }

    /// Its length, bits.
    pub const fn length(&self) -> u8 {
        self.length
    }

    /// Its bits; those behind its length are 0.
    pub const fn bits(&self) -> u128 {
        self.bits
    }

    /// The prefix of this length that holds this one; itself where it is not longer.
    #[must_use]
    pub const fn shortened(&self, length: u8) -> Self {
        if length >= self.length { *self } else { Self { length, bits: self.bits & mask(length) } }
    }

    /// True when every address of `other` is one of this prefix.
    pub const fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && other.bits & mask(self.length) == self.bits
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from_bits(self.bits), self.length)
    }
}

/// The bits of a prefix of this length, at most 128.
const fn mask(length: u8) -> u128 {
    if length == 0 { 0 } else { u128::MAX << (128 - length as u32) }
}

/// One prefix length of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Length {
    /// The bits that count, upper half and lower half of an address.
    pub mask: [u64; 2],
    /// The length where a tag has it.
    pub tag: u64,
}

impl Length {
    /// The length `bits`, at most 128.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "halves of 128 bits")]
    pub const fn new(bits: u8) -> Self {
        let mask = mask(bits);
        Self { mask: [(mask >> 64) as u64, mask as u64], tag: (bits as u64) << TAG_SHIFT }
    }
}

/// How a table is read. There are two tables, of which one is in force.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// The lengths that occur, longest first.
    pub lengths: [Length; LENGTHS],
    /// What the hash begins with.
    pub seed: u64,
    /// How many lengths occur.
    pub count: u32,
    /// Number of buckets less one, a power of two less one.
    pub bucket_mask: u32,
    /// The first bucket.
    pub first_bucket: u32,
    /// The first key.
    pub first_key: u32,
    /// What holds for a source that no prefix holds, as [`entry_flag`] bits.
    pub otherwise: u32,
    /// 1: there is a list of publishers; 0: frames of every source are stored, and none is looked up for it.
    pub publishers: u32,
}

/// Where the entries of a table stand. A way that is free is 0, and ways are taken in order.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AclBucket {
    /// The entries.
    pub entries: [u64; WAYS],
}

/// A prefix as a table holds it: upper half and lower half.
pub type Key = [u64; 2];

/// The halves of an address or prefix.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of 128 bits")]
pub const fn halves(bits: u128) -> Key {
    [(bits >> 64) as u64, bits as u64]
}

/// The hash of a prefix. Buckets are filled by the operator's lists alone, so it has to spread and not to resist.
#[inline(always)]
pub const fn hash(key: Key, length: &Length, seed: u64) -> u64 {
    let mut h = (key[0] ^ seed ^ length.tag).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ key[1];
    // Prefixes often differ in the highest bits of a half alone, which a product leaves there.
    h = (h ^ (h >> 32)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 32)
}

/// The bucket of a hash, counted from the first of its table.
#[inline(always)]
pub const fn bucket(hash: u64, bucket_mask: u32) -> u32 {
    (hash >> 40) as u32 & bucket_mask
}

/// What tells the prefixes of one bucket apart, in the place where an entry has it.
#[inline(always)]
pub const fn tag(hash: u64, length: &Length) -> u64 {
    (hash << (TAG_SHIFT + LENGTH_BITS)) | length.tag
}

/// An entry for the prefix with this number, which says `flags`. Never 0, for it says something.
pub const fn entry(tag: u64, index: u32, flags: u32) -> u64 {
    tag | (index as u64) << FLAG_BITS | flags as u64
}

/// The number of an entry's prefix.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "18 bits")]
pub const fn index(entry: u64) -> u32 {
    (entry >> FLAG_BITS) as u32 & (MOST_PREFIXES as u32 - 1)
}

/// All ones when `entry` has this tag, else 0. Without a branch: the kernel's verifier would follow each.
#[inline(always)]
#[expect(clippy::cast_possible_wrap, clippy::cast_sign_loss, reason = "the sign is what is wanted")]
pub const fn has_tag(entry: u64, tag: u64) -> u64 {
    ((((entry ^ tag) >> TAG_SHIFT).wrapping_sub(1)) as i64 >> 63) as u64
}

/// The memory of the table in force.
pub trait Table {
    /// A bucket.
    type Bucket;
    /// How it is read.
    fn head(&self) -> &Head;
    /// The bucket of this number.
    fn bucket(&self, number: u32) -> Option<Self::Bucket>;
    /// An entry of a bucket.
    fn entry(&self, bucket: &Self::Bucket, way: usize) -> u64;
    /// The key of this number.
    fn key(&self, number: u32) -> Option<Key>;
}

/// What the table says of a source, as [`entry_flag`] bits.
#[inline(always)]
pub fn look_up<T: Table>(table: &T, source: u128) -> u32 {
    const FLAGS: u64 = (1 << FLAG_BITS) - 1;
    let (head, [upper, lower]) = (table.head(), halves(source));
    let mut at = 0;
    while at < LENGTHS {
        if at >= head.count as usize {
            break;
        }
        let Some(length) = head.lengths.get(at) else { break };
        let key = [upper & length.mask[0], lower & length.mask[1]];
        let hash = hash(key, length, head.seed);
        let number = head.first_bucket.wrapping_add(bucket(hash, head.bucket_mask));
        if let Some(bucket) = table.bucket(number) {
            let found = find(table, &bucket, tag(hash, length));
            if found != 0 && table.key(head.first_key.wrapping_add(index(found))) == Some(key) {
                return (found & FLAGS) as u32;
            }
        }
        at += 1;
    }
    head.otherwise
}

/// The entry of a bucket with this tag; 0: there is none. Most buckets are empty.
#[inline(always)]
fn find<T: Table>(table: &T, bucket: &T::Bucket, tag: u64) -> u64 {
    let first = table.entry(bucket, 0);
    if first == 0 {
        return 0;
    }
    let mut found = first & has_tag(first, tag);
    let mut way = 1;
    while way < WAYS {
        let entry = table.entry(bucket, way);
        found |= entry & has_tag(entry, tag);
        way += 1;
    }
    found
}

/// Whether a NACK is looked at, by its hop limit and its source: step 0 of docs/nack-decision.md. True when its source is served
/// as a peer; where there is no table, all are.
///
/// # Errors
/// The counter of a NACK that is dropped unread.
#[inline(always)]
pub fn admit<T: Table>(table: Option<&T>, source: u128, hop_limit: u8, least: u8) -> Result<bool, Counter> {
    if hop_limit < least {
        return Err(Counter::NackHopLimit);
    }
    let Some(table) = table else { return Ok(true) };
    let found = look_up(table, source);
    match found & entry_flag::VERDICT {
        entry_flag::DENIED => Err(Counter::NackDenied),
        entry_flag::ALLOWED => Ok(found & entry_flag::PEER != 0),
        _ => Err(Counter::NackNotListed),
    }
}

/// Whether a list names this source as one that may ask or is a peer: not because there is no such list.
pub fn names<T: Table>(table: &T, source: u128) -> bool {
    let (found, otherwise) = (look_up(table, source), table.head().otherwise);
    let is_listed =
        found & entry_flag::VERDICT == entry_flag::ALLOWED && otherwise & entry_flag::VERDICT == entry_flag::NOT_LISTED;
    is_listed || found & !otherwise & entry_flag::PEER != 0
}

/// Whether frames of this source are stored; where there is no table, those of every source are.
#[inline(always)]
pub fn publishes<T: Table>(table: Option<&T>, source: u128) -> bool {
    match table {
        Some(table) if table.head().publishers != 0 => look_up(table, source) & entry_flag::PUBLISHER != 0,
        _ => true,
    }
}

/// True when a source is refused that no list names: then each source that is looked at stands on the allow list.
#[inline(always)]
pub const fn has_allow_list(head: &Head) -> bool {
    head.otherwise & entry_flag::VERDICT != entry_flag::ALLOWED
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    fn prefix(text: &str, length: u8) -> Prefix {
        Prefix::new(text.parse().expect("an address"), length).expect("a prefix")
    }

    #[test]
    fn a_prefix_has_no_bits_behind_its_length() {
        assert_eq!(prefix("fd10::", 16).to_string(), "fd10::/16");
        assert_eq!(prefix("::", 0), Prefix::ALL);
        for (text, length) in [("fd10::1", 64), ("fd10::", 8), ("::1", 0), ("::", 129)] {
            assert_eq!(Prefix::new(text.parse().expect("an address"), length), None, "{text}/{length}");
        }
        assert_eq!(Prefix::of("fd10::1".parse().expect("an address"), 64), prefix("fd10::", 64));
    }

    #[test]
    fn a_shorter_prefix_covers() {
        let (wide, narrow) = (prefix("fd10::", 16), prefix("fd10:0:0:1::", 64));
        assert!(wide.covers(&narrow) && wide.covers(&wide) && Prefix::ALL.covers(&wide));
        assert!(!narrow.covers(&wide) && !prefix("fd11::", 16).covers(&narrow));
        assert_eq!(narrow.shortened(16), wide);
        assert_eq!(wide.shortened(64), wide);
    }

    #[test]
    fn an_entry_tells_what_it_was_made_of() {
        let length = Length::new(48);
        let tag = tag(hash(halves(7), &length, 9), &length);
        let entry = entry(tag, 262_143, entry_flag::DENIED | entry_flag::PEER);
        assert_eq!(index(entry), 262_143);
        assert_eq!((has_tag(entry, tag), has_tag(entry, tag ^ (1 << TAG_SHIFT))), (u64::MAX, 0));
        // The same hash at another length is another prefix.
        assert_eq!(has_tag(entry, super::tag(hash(halves(7), &length, 9), &Length::new(49))), 0);
        assert_eq!(has_tag(0, tag), 0);
    }
}
