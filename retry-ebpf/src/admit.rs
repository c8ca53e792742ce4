//! The limits, in LRU maps of bounded size: a spoofed flood pushes out old entries and grows nothing.

use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::btf_map;
use retry_common::abi::{AddressKey, ChainKey, GroupKey, LimitState};
use retry_common::key::FrameKey;
use retry_common::limit::{TokenBucket, Window};

use crate::atomic::compare_exchange;

/// Entries unless the daemon asks for another number at load.
const ENTRIES: usize = 65_536;

#[btf_map]
static ADDRESS_LIMIT: LruHashMap<AddressKey, LimitState, ENTRIES> = LruHashMap::new();
#[btf_map]
static SEQUENCE_LIMIT: LruHashMap<FrameKey, LimitState, ENTRIES> = LruHashMap::new();
#[btf_map]
static CHAIN_LIMIT: LruHashMap<ChainKey, LimitState, ENTRIES> = LruHashMap::new();
#[btf_map]
static GROUP_LIMIT: LruHashMap<GroupKey, LimitState, ENTRIES> = LruHashMap::new();

/// How often a word that other CPUs keep changing is tried again.
const ATTEMPTS: usize = 4;

/// Takes a token of the source address; true when there was one.
#[inline(always)]
pub(crate) fn take_address(source: &[u8; 16], bucket: &TokenBucket, now_ns: u64) -> bool {
    bucket.is_off() || take(&ADDRESS_LIMIT, &AddressKey { address: *source }, |state| bucket.take(state, now_ns))
}

/// Takes a token of the source address and group; true when there was one.
#[inline(always)]
pub(crate) fn take_group(source: &[u8; 16], group: u16, bucket: &TokenBucket, now_ns: u64) -> bool {
    bucket.is_off()
        || take(&GROUP_LIMIT, &GroupKey { address: *source, group: group.to_be_bytes(), reserved: [0; 2] }, |state| {
            bucket.take(state, now_ns)
        })
}

/// Counts in the window of the source address and flow; true when there was room.
#[inline(always)]
pub(crate) fn take_chain(source: &[u8; 16], hash_key: u64, window: &Window, now_ns: u64) -> bool {
    window.is_off()
        || take(&CHAIN_LIMIT, &ChainKey { address: *source, hash_key: hash_key.to_be_bytes() }, |state| {
            if window.is_over(state, now_ns) { None } else { Some(window.charge(state, now_ns)) }
        })
}

/// True when the frame's window is full.
#[inline(always)]
pub(crate) fn sequence_is_over(key: &FrameKey, window: &Window, now_ns: u64) -> bool {
    if window.is_off() {
        return false;
    }
    match SEQUENCE_LIMIT.get_ptr(key) {
        // SAFETY: the pointer is to a live map value; the LRU may reuse it for another key, which misjudges one NACK.
        Some(place) => window.is_over(unsafe { place.cast::<u64>().read_volatile() }, now_ns),
        None => false,
    }
}

/// Counts in the frame's window.
#[inline(always)]
pub(crate) fn charge_sequence(key: &FrameKey, window: &Window, now_ns: u64) {
    if !window.is_off() {
        take(&SEQUENCE_LIMIT, key, |state| Some(window.charge(state, now_ns)));
    }
}

/// Replaces the state of `key` by what `step` makes of it; false when `step` refuses.
#[inline(always)]
fn take<K>(map: &LruHashMap<K, LimitState, ENTRIES>, key: &K, step: impl Fn(u64) -> Option<u64>) -> bool {
    let Some(place) = map.get_ptr_mut(key) else {
        if let Some(state) = step(0) {
            // When two CPUs insert at once one charge is lost; when the map refuses, admitting is the safer side.
            let _ = map.insert(key, LimitState { state }, 0);
        }
        return true;
    };
    let place = place.cast::<u64>();
    for _ in 0..ATTEMPTS {
        // SAFETY: a live map value of eight aligned bytes.
        let old = unsafe { place.read_volatile() };
        let Some(new) = step(old) else { return false };
        // SAFETY: as above.
        if unsafe { compare_exchange(place, old, new) } {
            return true;
        }
    }
    // So contended that the limit is all but reached.
    false
}
