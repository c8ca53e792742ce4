//! What is known of the tails of flows, so that tail probes cost upstream endpoints next to nothing. Time is handed in.
//!
//! A listener that hears nothing more of a flow asks for the number after the last, up to three times: the last frame may have
//! been lost (a tail probe). Mostly no publisher has sent that frame, and no upstream endpoint has it. So:
//!
//! * A number up to the highest stored of its flow is asked for upstream whenever a listener misses it.
//! * Of the higher numbers of a flow, or of one of which nothing was stored, one is asked for per 30 s, whatever numbers listeners
//!   probe: its frame may have been lost on its way to this endpoint too. When an upstream endpoint has it, the next one may be
//!   asked for.
//! * The highest number of a flow stands for as long as its frame lives. After that a lower number takes its place: a publisher
//!   that restarts numbers its frames from 1 again.
//!
//! Both tables have a fixed size. A flow that has lost its entry to others counts as one of which nothing was stored: it costs
//! upstream endpoints one NACK per interval more, and no frame.

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use retry_common::index;
use retry_common::key::FrameKey;

/// Between two recoveries of numbers ahead of the same flow: half the default life of a transaction. Longer than a
/// listener goes on probing, and short enough that a frame that an upstream endpoint has got meanwhile is still there.
const INTERVAL_NS: u64 = 30_000_000_000;
/// Flows whose highest number is kept; 2 MiB.
const HEARD_FLOWS: usize = 1 << 17;
/// Flows of which it is kept when a number ahead was asked for; 3 MiB.
const ASKED_FLOWS: usize = 1 << 17;
/// Entries that a flow may have its place among: one cache line.
const HEARD_WAYS: usize = 4;
/// As [`HEARD_WAYS`]; 10,000 flows find a place each.
const ASKED_WAYS: usize = 8;
/// The highest number that an entry tells; higher ones count as this.
const MOST: u64 = (1 << 40) - 1;
/// Bits of an entry's time, in units of [`UNIT_NS`]: 8 years.
const TIME_BITS: u32 = 24;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;
const UNIT_NS: u64 = 16_000_000_000;

/// The tables.
pub(crate) struct Tails {
    seed: u64,
    heard: Box<[Bucket]>,
    asked: Mutex<Box<[[Asked; ASKED_WAYS]]>>,
}

#[derive(Default)]
#[repr(align(64))]
struct Bucket([Heard; HEARD_WAYS]);

/// A flow of which frames were stored. A flow of 0 is no flow: the entry is empty.
#[derive(Default)]
struct Heard {
    flow: AtomicU64,
    /// The highest number, and above [`TIME_BITS`] the end of its frame's life.
    highest: AtomicU64,
}

/// A flow of which a number ahead was asked for. A flow of 0 is no flow: the entry is empty.
#[derive(Clone, Copy, Default)]
struct Asked {
    flow: u64,
    number: u64,
    at_ns: u64,
}

impl Tails {
    /// Empty tables. `seed` is drawn at start, so that no sender can choose flows that share one place.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        let heard = std::iter::repeat_with(Bucket::default).take(HEARD_FLOWS / HEARD_WAYS);
        let asked = vec![[Asked::default(); ASKED_WAYS]; ASKED_FLOWS / ASKED_WAYS];
        Self { seed, heard: heard.collect(), asked: Mutex::new(asked.into_boxed_slice()) }
    }

    /// A frame was stored that lives for `life_ms`.
    ///
    /// The caller holds the frame log's lock: one thread writes at a time. Readers wait for nothing.
    pub(crate) fn stored(&self, key: &FrameKey, life_ms: u32, now_ns: u64) {
        let flow = key.hash_key();
        if flow == 0 {
            return;
        }
        let Bucket(entries) = &self.heard[place(flow, self.seed, self.heard.len())];
        let number = key.seq_num().min(MOST);
        let ends = now_ns.saturating_add(u64::from(life_ms) * 1_000_000);
        let word = number << TIME_BITS | (ends.div_ceil(UNIT_NS) & TIME_MASK);
        if let Some(entry) = entries.iter().find(|entry| entry.flow.load(Ordering::Relaxed) == flow) {
            let before = entry.highest.load(Ordering::Relaxed);
            if number >= before >> TIME_BITS || left(before, now_ns) == 0 {
                entry.highest.store(word, Ordering::Release);
            }
            return;
        }
        let oldest = entries.iter().min_by_key(|entry| match entry.flow.load(Ordering::Relaxed) {
            0 => (false, 0),
            _ => (true, left(entry.highest.load(Ordering::Relaxed), now_ns)),
        });
        if let Some(entry) = oldest {
            // A reader that sees the new number finds no flow, or the new one.
            entry.flow.store(0, Ordering::Relaxed);
            entry.highest.store(word, Ordering::Release);
            entry.flow.store(flow, Ordering::Release);
        }
    }

    /// True when an upstream endpoint may be asked for the frame now. For the numbers ahead of a flow together this is the one
    /// time in the interval.
    pub(crate) fn take(&self, key: &FrameKey, now_ns: u64) -> bool {
        let (flow, number) = (key.hash_key(), key.seq_num());
        // HashKey 0 is no flow: its numbers follow no order.
        if flow == 0 || self.highest(flow).is_some_and(|highest| number.min(MOST) <= highest) {
            return true;
        }
        let mut asked = self.asked();
        let entries = &mut asked[place(flow, self.seed, ASKED_FLOWS / ASKED_WAYS)];
        let known = entries.iter().position(|entry| entry.flow == flow);
        if let Some(entry) = known.map(|at| &entries[at])
            && now_ns.saturating_sub(entry.at_ns) < INTERVAL_NS
        {
            return false;
        }
        let oldest = || (0..ASKED_WAYS).min_by_key(|at| entries[*at].at_ns);
        if let Some(at) = known.or_else(oldest) {
            entries[at] = Asked { flow, number, at_ns: now_ns };
        }
        true
    }

    /// This frame, or another ahead of the same flow, may be asked for at once: an upstream endpoint has it, or none has said
    /// that it has not.
    pub(crate) fn give_back(&self, key: &FrameKey) {
        let mut asked = self.asked();
        let entries = &mut asked[place(key.hash_key(), self.seed, ASKED_FLOWS / ASKED_WAYS)];
        let is_it = |entry: &&mut Asked| entry.flow == key.hash_key() && entry.number == key.seq_num();
        if let Some(entry) = entries.iter_mut().find(is_it) {
            *entry = Asked::default();
        }
    }

    fn highest(&self, flow: u64) -> Option<u64> {
        let Bucket(entries) = &self.heard[place(flow, self.seed, self.heard.len())];
        let entry = entries.iter().find(|entry| entry.flow.load(Ordering::Acquire) == flow)?;
        let highest = entry.highest.load(Ordering::Acquire) >> TIME_BITS;
        // Else another flow has just taken the entry.
        (entry.flow.load(Ordering::Relaxed) == flow).then_some(highest)
    }

    fn asked(&self) -> MutexGuard<'_, Box<[[Asked; ASKED_WAYS]]>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Units of time until the end of the life that a word tells; 0 when it is over.
const fn left(word: u64, now_ns: u64) -> u64 {
    let left = (word & TIME_MASK).wrapping_sub(now_ns / UNIT_NS) & TIME_MASK;
    // What seems to be in the second half of all time is past.
    if left > TIME_MASK / 2 { 0 } else { left }
}

/// The bucket of a flow; `buckets` is a power of two.
const fn place(flow: u64, seed: u64, buckets: usize) -> usize {
    // The lower bits of the hash are for neighbours of one flow.
    (index::hash(&FrameKey::new(flow, 0), seed) >> 32) as usize & (buckets - 1)
}
