//! The limits, in tables of bounded size ([`retry_common::limits::table`]): a spoofed flood pushes out what means least and grows
//! nothing. The only file with map-value pointers into them.
//!
//! Longer than most files, because it is the only one: four limits over one kind of bucket, whose bounds the verifier has to see.

use core::hint::black_box;

use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use retry_common::abi::{AddressKey, ChainKey, GroupKey, KNOWN_LISTENERS, LimitBucket, Settings};
use retry_common::index;
use retry_common::key::FrameKey;
use retry_common::limits::table::{self, WAYS};
use retry_common::limits::{ByteBudget, TokenBucket, Window};

use crate::atomic::compare_exchange;
use crate::log;

/// `BPF_F_MMAPABLE` (linux/bpf.h): the daemon charges the table of groups too.
const MMAPABLE: usize = 1024;

/// A limit table; the daemon sets how many buckets, a power of two.
type Table<K> = Array<LimitBucket<K>, 1, MMAPABLE>;

#[btf_map]
static ADDRESS_LIMIT: Table<AddressKey> = Table::new();
#[btf_map]
static SEQUENCE_LIMIT: Table<FrameKey> = Table::new();
#[btf_map]
static CHAIN_LIMIT: Table<ChainKey> = Table::new();
#[btf_map]
static GROUP_LIMIT: Table<GroupKey> = Table::new();
/// States of the budgets of sources; one bucket where there is no such budget.
#[btf_map]
static SOURCE_BYTES: Table<AddressKey> = Table::new();

/// Allocated as the daemon inserts (`BPF_F_NO_PREALLOC`, linux/bpf.h).
const NO_PREALLOC: usize = 1;

/// The known listeners. The daemon decides who is known, from the table of addresses.
#[btf_map]
static KNOWN: HashMap<[u8; 16], u8, { KNOWN_LISTENERS }, NO_PREALLOC> = HashMap::new();

/// Who asks, in hashes.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The address.
    pub(crate) address: &'a [u8; 16],
    /// Its hash ([`table::address_hash`]).
    pub(crate) hash: u64,
    /// The settings.
    pub(crate) settings: &'a Settings,
    /// When, nanoseconds of the monotonic clock.
    pub(crate) now_ns: u64,
}

/// Fetches the cache lines of the frame's window.
#[inline(always)]
pub(crate) fn touch(hash: u64, settings: &Settings) {
    if let Some(bucket) = SEQUENCE_LIMIT.get_ptr(index::bucket(hash, settings.limit_mask)) {
        // SAFETY: the first tag; volatile, or nothing would be loaded.
        unsafe { bucket.cast::<u64>().read_volatile() };
        touch_keys(bucket);
    }
}

/// Fetches the line of a bucket's keys. It is written where a way is taken, and whatever is atomic after that waits for it.
#[inline(always)]
fn touch_keys<K>(bucket: *const LimitBucket<K>) {
    // SAFETY: inside the bucket, behind its ways.
    let keys = unsafe { bucket.cast::<u64>().add(WAYS * 2) };
    // SAFETY: as above; volatile, or nothing would be loaded.
    unsafe { keys.read_volatile() };
}

/// Takes a token of the source address; true when there was one.
#[inline(always)]
pub(crate) fn take_address(source: &Source<'_>) -> bool {
    let key = AddressKey { address: *source.address };
    take_token(&ADDRESS_LIMIT, key, source.hash, &source.settings.limits.address, source)
}

/// Takes a token of the source address and group; true when there was one.
#[inline(always)]
pub(crate) fn take_group(source: &Source<'_>, group: u16) -> bool {
    let key = GroupKey { address: *source.address, group: group.to_be_bytes(), reserved: [0; 2] };
    let hash = table::join(source.hash, u64::from(group));
    take_token(&GROUP_LIMIT, key, hash, &source.settings.limits.group, source)
}

#[inline(always)]
fn take_token<K: Copy>(map: &'static Table<K>, key: K, hash: u64, bucket: &TokenBucket, source: &Source<'_>) -> bool {
    let (now_ns, read) = (source.now_ns, || log::token_bucket(bucket));
    read().is_off()
        || take(map, key, hash, source.settings, |state| read().weight(state), |state| read().take(state, now_ns))
}

/// Counts in the window of the source address and flow; true when there was room.
#[inline(always)]
pub(crate) fn take_chain(source: &Source<'_>, hash_key: u64) -> bool {
    let (window, now_ns) = (&source.settings.limits.chain, source.now_ns);
    let key = ChainKey { address: *source.address, hash_key: hash_key.to_be_bytes() };
    let hash = table::join(source.hash, hash_key);
    take_window(&CHAIN_LIMIT, key, hash, window, source.settings, now_ns)
}

/// True when the window of the frame with this `hash` ([`index::hash`]) is full.
#[inline(always)]
pub(crate) fn sequence_is_over(hash: u64, settings: &Settings, now_ns: u64) -> bool {
    let window = || log::window(&settings.limits.sequence);
    if window().is_off() {
        return false;
    }
    let Some(bucket) = SEQUENCE_LIMIT.get_ptr_mut(index::bucket(hash, settings.limit_mask)) else {
        return false;
    };
    let there = BucketRef { bucket, key: FrameKey::new(0, 0) };
    match table::state(&there, hash) {
        Some(state) => window().is_over(state, now_ns),
        None => false,
    }
}

/// True when the source is a known listener.
#[inline(always)]
pub(crate) fn is_known(address: &[u8; 16]) -> bool {
    // SAFETY: the value is not looked at; an entry that goes meanwhile has just been known.
    unsafe { KNOWN.get(address) }.is_some()
}

/// Counts in the frame's window; true when there was room.
#[inline(always)]
pub(crate) fn take_sequence(key: FrameKey, hash: u64, settings: &Settings, now_ns: u64) -> bool {
    take_window(&SEQUENCE_LIMIT, key, hash, &settings.limits.sequence, settings, now_ns)
}

/// How often the state of a budget is tried when others keep changing it.
pub(crate) const BYTES_ATTEMPTS: u32 = 4;

/// What a source is charged, in a map: on the stack it would have no place.
#[repr(C)]
pub(crate) struct Charge {
    /// The source.
    pub(crate) key: AddressKey,
    /// Its hash.
    pub(crate) hash: u64,
    /// When, nanoseconds of the monotonic clock.
    pub(crate) now_ns: u64,
    /// Its budget.
    pub(crate) budget: ByteBudget,
    /// How much.
    pub(crate) bytes: u64,
}

impl Charge {
    /// The state of the budget after `old`.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "below 2^21")]
    fn step(&self, old: u64) -> Option<u64> {
        // Read where it is used: kept, it would need its place on the stack.
        let budget = log::byte_budget(&self.budget);
        // SAFETY: a field of a live value.
        let bytes = unsafe { (&raw const self.bytes).read_volatile() };
        // SAFETY: as above.
        let now_ns = unsafe { (&raw const self.now_ns).read_volatile() };
        budget.take(old, bytes as u32, now_ns)
    }
}

/// The bucket of a source in the table of budgets, which has `mask` + 1 of them.
#[inline(always)]
fn source_bytes(charge: &'static Charge, mask: u32) -> Option<KeyedRef<AddressKey>> {
    let bucket = SOURCE_BYTES.get_ptr_mut(index::bucket(charge.hash, mask))?;
    Some(KeyedRef { bucket: BucketRef { bucket, key: () }, key: &charge.key })
}

/// The way of a source in the table of budgets; `None` when it has none.
#[inline(always)]
pub(crate) fn find_source(charge: &'static Charge, mask: u32) -> Option<usize> {
    table::find_way(&source_bytes(charge, mask)?, charge.hash)
}

/// The way in the table of budgets that a source without one may take, and its tag; `None` when there is no room for it.
#[inline(always)]
pub(crate) fn lightest_source(charge: &'static Charge, mask: u32) -> Option<(usize, u64)> {
    table::lightest_way(&source_bytes(charge, mask)?, ByteBudget::weight, |state| charge.step(state))
}

/// Gives a source this way in the table of budgets, which has the tag `old`; its way.
#[inline(always)]
pub(crate) fn claim_source(charge: &'static Charge, mask: u32, way: usize, old: u64) -> Option<usize> {
    Some(table::claim_way(&mut source_bytes(charge, mask)?, charge.hash, way, old))
}

/// Charges the budget of a source, which has this way; false when it is used up.
#[inline(always)]
pub(crate) fn charge_source(charge: &'static Charge, mask: u32, way: usize) -> bool {
    let Some(mut bucket) = source_bytes(charge, mask) else { return false };
    table::charge_strictly(&mut bucket, charge.hash, way, |state| charge.step(state))
}

#[inline(always)]
fn take_window<K: Copy>(
    map: &'static Table<K>,
    key: K,
    hash: u64,
    window: &Window,
    settings: &Settings,
    now_ns: u64,
) -> bool {
    // Read where it is used: kept, it would need its place on the stack.
    let read = || log::window(window);
    read().is_off()
        || take(map, key, hash, settings, |state| read().weight(state, now_ns), |state| read().take(state, now_ns))
}

#[inline(always)]
fn take<K: Copy>(
    map: &'static Table<K>,
    key: K,
    hash: u64,
    settings: &Settings,
    weigh: impl Fn(u64) -> u64,
    step: impl Fn(u64) -> Option<u64>,
) -> bool {
    match map.get_ptr_mut(index::bucket(hash, settings.limit_mask)) {
        Some(bucket) => {
            touch_keys(bucket);
            table::take(&mut BucketRef { bucket, key }, hash, weigh, step)
        }
        None => true,
    }
}

/// A way, for the verifier to see that it is one. Boxed, or LLVM, which knows it, would leave the mask away; Linux 6.1 forgets
/// the bounds of what was put together by OR.
#[inline(always)]
fn masked(way: usize) -> usize {
    black_box(way) & (WAYS - 1)
}

/// A bucket of a table, with a key that stands in a map: on the stack it would have no place.
struct KeyedRef<K: 'static> {
    bucket: BucketRef<K, ()>,
    key: &'static K,
}

impl<K: Copy> table::Bucket for KeyedRef<K> {
    const ATTEMPTS: u32 = BYTES_ATTEMPTS;

    #[inline(always)]
    fn tag(&self, way: usize) -> u64 {
        self.bucket.read_tag(way)
    }

    #[inline(always)]
    fn state(&self, way: usize) -> u64 {
        self.bucket.read_state(way)
    }

    #[inline(always)]
    fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
        self.bucket.change_tag(way, old, new)
    }

    #[inline(always)]
    fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool {
        self.bucket.change_state(way, old, new)
    }

    #[inline(always)]
    fn write_key(&mut self, way: usize) {
        self.bucket.write(way, *self.key);
    }
}

/// A bucket of a table.
struct BucketRef<K, H = K> {
    bucket: *mut LimitBucket<K>,
    /// Written where a way is taken.
    key: H,
}

impl<K, H> BucketRef<K, H> {
    #[inline(always)]
    fn tag_at(&self, way: usize) -> *mut u64 {
        // SAFETY: inside the bucket.
        unsafe { self.bucket.cast::<u64>().add(masked(way) * 2) }
    }

    #[inline(always)]
    fn state_at(&self, way: usize) -> *mut u64 {
        // SAFETY: as above.
        unsafe { self.tag_at(way).add(1) }
    }

    #[inline(always)]
    fn read_tag(&self, way: usize) -> u64 {
        // SAFETY: eight aligned bytes of a live map value; volatile because others write them.
        unsafe { self.tag_at(way).read_volatile() }
    }

    #[inline(always)]
    fn read_state(&self, way: usize) -> u64 {
        // SAFETY: as above.
        unsafe { self.state_at(way).read_volatile() }
    }

    #[inline(always)]
    fn change_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe { compare_exchange(self.tag_at(way), old, new) }
    }

    #[inline(always)]
    fn change_state(&mut self, way: usize, old: u64, new: u64) -> bool {
        // SAFETY: as above.
        unsafe { compare_exchange(self.state_at(way), old, new) }
    }

    #[inline(always)]
    fn write(&mut self, way: usize, new: K) {
        // SAFETY: as above.
        let keys = unsafe { (&raw mut (*self.bucket).keys).cast::<K>() };
        // SAFETY: inside the bucket, as the mask says.
        let key = unsafe { keys.add(masked(way)) };
        // SAFETY: as above. Another CPU may write here too: then what is read is neither's, and nothing depends on it.
        unsafe { key.write(new) };
    }
}

impl<K: Copy> table::Bucket for BucketRef<K> {
    /// The verifier follows each.
    const ATTEMPTS: u32 = 2;

    #[inline(always)]
    fn tag(&self, way: usize) -> u64 {
        self.read_tag(way)
    }

    #[inline(always)]
    fn state(&self, way: usize) -> u64 {
        self.read_state(way)
    }

    #[inline(always)]
    fn replace_tag(&mut self, way: usize, old: u64, new: u64) -> bool {
        self.change_tag(way, old, new)
    }

    #[inline(always)]
    fn replace_state(&mut self, way: usize, old: u64, new: u64) -> bool {
        self.change_state(way, old, new)
    }

    #[inline(always)]
    fn write_key(&mut self, way: usize) {
        self.write(way, self.key);
    }
}
