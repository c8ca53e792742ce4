//! Reading the log from the daemon, by the same seqlock as the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use retry_common::abi::{Bucket, RECORD_HEADER_LEN, RecordHeader, SLOT_LEN};
use retry_common::decide::{CachedFrame, Multicast};
use retry_common::framelog;
use retry_common::holddown::{Claim, HoldDown};
use retry_common::index;
use retry_common::key::FrameKey;

use super::Pages;

/// A record that was valid when it was looked up.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    slot: u32,
    header: RecordHeader,
}

impl Record {
    /// Its header.
    pub const fn header(&self) -> &RecordHeader {
        &self.header
    }
}

impl CachedFrame for Record {
    fn group(&self) -> u16 {
        self.header.group
    }
}

/// A handle for readers.
#[derive(Clone, Debug)]
pub struct Log {
    pages: Arc<Pages>,
    hash_seed: u64,
}

impl Log {
    pub(super) const fn new(pages: Arc<Pages>, hash_seed: u64) -> Self {
        Self { pages, hash_seed }
    }

    /// The record of `key`, if the log holds it and its life is not over.
    pub fn look_up(&self, key: &FrameKey, now_ns: u64) -> Option<Record> {
        let hash = index::hash(key, self.hash_seed);
        let overflow = || Some(self.pages.overflow(hash));
        let (bucket, i, entry) = framelog::find_either(self.pages.entries(hash), overflow, index::tag(hash))?;
        let slot = index::slot(entry);
        let header = read_header(&self.pages, slot)?;
        // Only then is the header that of a record: the entry goes before its record's room is used again.
        (framelog::still_leads(&bucket, i, entry) && header.key == *key && now_ns < header.expires_ns)
            .then_some(Record { slot, header })
    }

    /// Appends the frame of `record` to `out`; false, and `out` as before, when the record was overwritten meanwhile.
    pub fn copy(&self, record: &Record, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        let start = slot_offset(record.slot);
        let Ok(len) = usize::try_from(record.header.length) else {
            return false;
        };
        self.pages.ring.copy_out(start + RECORD_HEADER_LEN, len, out);
        fence(Ordering::Acquire);
        let whole = self.pages.ring.word(start).load(Ordering::Relaxed) == record.header.version;
        if !whole {
            out.truncate(before);
        }
        whole
    }

    /// Claims the multicast of `key` in the table that the kernel shares.
    pub fn claim(&self, key: &FrameKey, hold_down: &HoldDown, now_ns: u64) -> Multicast {
        if hold_down.is_off() {
            return Multicast::Claimed;
        }
        let hash = index::hash(key, self.hash_seed);
        let word = self.hold_down_word(hash);
        let mut old = word.load(Ordering::Relaxed);
        loop {
            match hold_down.claim(old, hash, now_ns) {
                Claim::Ours => return Multicast::HeldByUs,
                Claim::Others => return Multicast::HeldByAnother,
                Claim::Free(new) => match word.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed) {
                    Ok(_) => return Multicast::Claimed,
                    Err(now_there) => old = now_there,
                },
            }
        }
    }

    /// What a claim would say, without making it.
    pub fn peek(&self, key: &FrameKey, hold_down: &HoldDown, now_ns: u64) -> Multicast {
        let hash = index::hash(key, self.hash_seed);
        match hold_down.claim(self.hold_down_word(hash).load(Ordering::Relaxed), hash, now_ns) {
            Claim::Ours => Multicast::HeldByUs,
            Claim::Others => Multicast::HeldByAnother,
            Claim::Free(_) => Multicast::Claimed,
        }
    }

    /// Marks `key` as multicast by another instance at `at_ns`, for the kernel too.
    pub fn repaired_by_another(&self, key: &FrameKey, at_ns: u64) {
        let hash = index::hash(key, self.hash_seed);
        self.hold_down_word(hash).store(HoldDown::others_word(hash, at_ns), Ordering::Release);
    }

    /// Gives a claim back after a multicast that did not leave, so that the next NACK tries again.
    pub fn release(&self, key: &FrameKey) {
        let hash = index::hash(key, self.hash_seed);
        self.hold_down_word(hash).store(0, Ordering::Release);
    }

    fn hold_down_word(&self, hash: u64) -> &AtomicU64 {
        let place = index::bucket(hash, self.pages.sizes.hold_down_words - 1);
        self.pages.hold_down.word(place as usize * 8)
    }
}

/// Where the hash's bucket starts, bytes.
pub(super) fn bucket_offset(pages: &Pages, hash: u64) -> usize {
    index::bucket(hash, pages.sizes.buckets - 1) as usize * size_of::<Bucket>()
}

/// Where the hash's overflow bucket starts, bytes.
pub(super) fn overflow_offset(pages: &Pages, hash: u64) -> usize {
    index::overflow(hash, pages.sizes.buckets - 1) as usize * size_of::<Bucket>()
}

/// Where a slot starts, bytes.
pub(super) const fn slot_offset(slot: u32) -> usize {
    slot as usize * SLOT_LEN
}

/// The header at `slot`, unless it is being written.
fn read_header(pages: &Pages, slot: u32) -> Option<RecordHeader> {
    let start = slot_offset(slot);
    let version = pages.ring.word(start);
    let before = version.load(Ordering::Acquire);
    if before == 0 || before & 1 != 0 {
        return None;
    }
    let header: RecordHeader = pages.ring.read(start);
    fence(Ordering::Acquire);
    (version.load(Ordering::Relaxed) == before).then_some(RecordHeader { version: before, ..header })
}
