//! The two tables: their memory, and how a list is written to one of them.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use retry_common::abi;
use retry_common::acl::{
    self, AclBucket, Head, Key, LENGTHS, Length, MOST_PREFIXES, Prefix, Table, WAYS, bucket, entry_flag, halves,
};

use super::rules::{Rules, RulesError};
use crate::framelog::Memory;
use crate::settings::Settings;

/// Prefixes that there is room for at least.
const LEAST: u32 = 4_096;
/// Seeds that are tried. At the most prefixes one in 34 leaves more in a bucket than it holds.
const SEEDS: u64 = 64;

/// How many prefixes a table has room for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size {
    /// A power of two.
    prefixes: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self { prefixes: LEAST }
    }
}

impl From<&Settings> for Size {
    /// For all that may be read from a file; without one for twice what the settings name.
    fn from(settings: &Settings) -> Self {
        let acl = &settings.acl;
        if acl.file.is_some() {
            return Self::most();
        }
        let named = acl.allow.len() + acl.deny.len() + acl.proxied_from.len() + acl.publishers.len();
        let wanted = named.saturating_mul(2).clamp(LEAST as usize, MOST_PREFIXES);
        Self { prefixes: u32::try_from(wanted.next_power_of_two()).unwrap_or(LEAST) }
    }
}

impl Size {
    /// For as many prefixes as there can be.
    #[must_use]
    pub const fn most() -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "2^18")]
        Self { prefixes: MOST_PREFIXES as u32 }
    }

    /// Buckets of one table, a power of two.
    const fn buckets(self) -> u32 {
        self.prefixes
    }

    /// Entries of the maps of buckets and of keys, for both tables.
    #[must_use]
    pub const fn entries(self) -> (u32, u32) {
        (self.buckets() * 2, self.prefixes * 2)
    }

    /// Bytes of heads, buckets and keys, for both tables.
    #[must_use]
    pub fn bytes(self) -> [usize; 3] {
        let (buckets, keys) = self.entries();
        let of = |count: u32, each: usize| usize::try_from(count).unwrap_or(0) * each;
        [2 * size_of::<Head>(), of(buckets, size_of::<AclBucket>()), of(keys, size_of::<Key>())]
    }
}

/// The memory of both tables, and the word that says which is in force.
#[derive(Debug)]
pub struct Tables {
    heads: Memory,
    buckets: Memory,
    keys: Memory,
    settings: Memory,
    size: Size,
}

impl Tables {
    /// Over the kernel's maps: heads, buckets, keys and settings.
    #[must_use]
    pub fn new(size: Size, [heads, buckets, keys, settings]: [Memory; 4]) -> Self {
        Self { heads, buckets, keys, settings, size }
    }

    /// In plain memory.
    ///
    /// # Errors
    /// There is not enough.
    pub fn plain(size: Size) -> io::Result<Self> {
        let [heads, buckets, keys] = size.bytes();
        let memory = [heads, buckets, keys, size_of::<abi::Settings>()].map(Memory::plain);
        let [heads, buckets, keys, settings] = memory;
        Ok(Self::new(size, [heads?, buckets?, keys?, settings?]))
    }

    /// The table in force, its number plus one; 0: none is.
    pub(super) fn word(&self) -> &AtomicU64 {
        self.settings.word(offset_of!(abi::Settings, acl))
    }

    /// The table that the word names.
    pub(super) fn in_force(&self, word: u64) -> Option<InForce<'_>> {
        let number = usize::try_from(word.checked_sub(1)?).ok().filter(|number| *number < 2)?;
        Some(InForce { tables: self, head: self.heads.read(number * size_of::<Head>()) })
    }

    /// Says how the table of this number is read.
    pub(super) fn put_head(&self, number: u32, head: &Head) {
        self.heads.write(usize::try_from(number).unwrap_or(0) * size_of::<Head>(), *head);
    }

    /// Writes lists to the table of this number, which is not in force.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn write(&self, number: u32, rules: &Rules) -> Result<Head, RulesError> {
        let prefixes = rules.prefixes();
        let room = usize::try_from(self.size.prefixes).unwrap_or(0);
        if prefixes.len() > room {
            return Err(RulesError::Room { count: prefixes.len(), room });
        }
        let occurring: BTreeSet<u8> = prefixes.iter().map(Prefix::length).collect();
        if occurring.len() > LENGTHS {
            return Err(RulesError::Lengths { count: occurring.len() });
        }
        let mut head = Head {
            count: u32::try_from(occurring.len()).unwrap_or(0),
            first_bucket: number * self.size.buckets(),
            first_key: number * self.size.prefixes,
            otherwise: verdict(rules, None, None),
            publishers: u32::from(rules.publishers.is_some()),
            ..Head::default()
        };
        for (place, length) in head.lengths.iter_mut().zip(occurring.iter().rev()) {
            *place = Length::new(*length);
        }
        let wanted = u32::try_from((prefixes.len() * 2).next_power_of_two()).unwrap_or(u32::MAX);
        let count = wanted.min(self.size.buckets());
        head.bucket_mask = count - 1;
        let resolved = resolve(rules, &prefixes);
        for seed in 0..SEEDS {
            head.seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let Some(buckets) = spread(&resolved, &head) else { continue };
            for (place, bucket) in (0..).zip(buckets) {
                let offset = usize::try_from(head.first_bucket).unwrap_or(0) + place;
                self.buckets.write(offset * size_of::<AclBucket>(), bucket);
            }
            for (place, (prefix, _)) in (0..).zip(&resolved) {
                let offset = usize::try_from(head.first_key).unwrap_or(0) + place;
                self.keys.write(offset * size_of::<Key>(), halves(prefix.bits()));
            }
            return Ok(head);
        }
        Err(RulesError::Unspread)
    }
}

/// What each prefix comes to, with those that are shorter and hold it.
fn resolve(rules: &Rules, prefixes: &BTreeSet<Prefix>) -> Vec<(Prefix, u32)> {
    let mut known: HashMap<Prefix, u32> = HashMap::with_capacity(prefixes.len());
    let mut lengths: Vec<u8> = Vec::new();
    let mut resolved = Vec::with_capacity(prefixes.len());
    // In the order of their lengths: those that hold a prefix come before it.
    for prefix in prefixes {
        let shorter = lengths.iter().rev().filter(|length| **length < prefix.length());
        let above = shorter.map(|length| prefix.shortened(*length)).find_map(|shorter| known.get(&shorter).copied());
        let flags = verdict(rules, Some(prefix), above);
        if lengths.last() != Some(&prefix.length()) {
            lengths.push(prefix.length());
        }
        known.insert(*prefix, flags);
        resolved.push((*prefix, flags));
    }
    resolved
}

/// What holds for the addresses of a prefix below which there is none, as `entry_flag` bits; of no prefix: for all others.
fn verdict(rules: &Rules, prefix: Option<&Prefix>, above: Option<u32>) -> u32 {
    let names = |list: &BTreeSet<Prefix>| prefix.is_some_and(|prefix| list.contains(prefix));
    let unnamed = if rules.allow.is_empty() { entry_flag::ALLOWED } else { entry_flag::NOT_LISTED };
    let verdict = if names(&rules.deny) {
        entry_flag::DENIED
    } else if names(&rules.allow) {
        entry_flag::ALLOWED
    } else {
        above.map_or(unnamed, |above| above & entry_flag::VERDICT)
    };
    // What holds for a prefix holds for those within it.
    let also = |list: &Option<BTreeSet<Prefix>>, flag: u32| {
        let is_named = list.as_ref().is_none_or(names) || above.is_some_and(|above| above & flag != 0);
        if is_named { flag } else { 0 }
    };
    verdict | also(&rules.peers, entry_flag::PEER) | also(&rules.publishers, entry_flag::PUBLISHER)
}

/// The buckets of a table; `None` when a bucket would have more than it holds, or two that it cannot tell apart.
fn spread(resolved: &[(Prefix, u32)], head: &Head) -> Option<Vec<AclBucket>> {
    let count = usize::try_from(head.bucket_mask).ok()? + 1;
    let mut buckets = vec![AclBucket::default(); count];
    for (index, (prefix, flags)) in (0..).zip(resolved) {
        let (key, length) = (halves(prefix.bits()), Length::new(prefix.length()));
        let hash = acl::hash(key, &length, head.seed);
        let tag = acl::tag(hash, &length);
        let bucket = buckets.get_mut(usize::try_from(bucket(hash, head.bucket_mask)).ok()?)?;
        let taken = bucket.entries.iter().take_while(|entry| **entry != 0).count();
        if taken == WAYS || bucket.entries[..taken].iter().any(|entry| acl::has_tag(*entry, tag) != 0) {
            return None;
        }
        bucket.entries[taken] = acl::entry(tag, index, *flags);
    }
    Some(buckets)
}

/// A table as the daemon reads it.
pub(super) struct InForce<'a> {
    tables: &'a Tables,
    head: Head,
}

impl Table for InForce<'_> {
    type Bucket = usize;

    fn head(&self) -> &Head {
        &self.head
    }

    fn bucket(&self, number: u32) -> Option<usize> {
        let (buckets, _) = self.tables.size.entries();
        (number < buckets).then(|| usize::try_from(number).ok()).flatten()
    }

    fn entry(&self, bucket: &usize, way: usize) -> u64 {
        self.tables.buckets.word(bucket * size_of::<AclBucket>() + way * 8).load(Ordering::Relaxed)
    }

    fn key(&self, number: u32) -> Option<Key> {
        let (_, keys) = self.tables.size.entries();
        let place = (number < keys).then(|| usize::try_from(number).ok()).flatten()?;
        Some(self.tables.keys.read(place * size_of::<Key>()))
    }
}
