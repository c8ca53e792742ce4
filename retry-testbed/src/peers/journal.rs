//! What was published, shared between the publisher and the listeners of one process: a repair is compared with it byte by byte.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher},
    sync::{Mutex, MutexGuard, PoisonError},
};

use retry_common::{key::FrameKey, wire::MAGIC};

/// The key of a frame that an endpoint caches: at least 64 bytes, the magic, not of version 1, SeqNum not 0.
#[must_use]
pub fn key_of(frame: &[u8]) -> Option<FrameKey> {
    let long = frame.len() >= 64 && frame.starts_with(&MAGIC.to_be_bytes());
    if !long || frame.get(6) == Some(&1) {
        return None;
    }
    let key = FrameKey::from_bytes(frame.get(40..56)?.try_into().ok()?);
    (key.seq_num() != 0).then_some(key)
}

/// How received bytes compare with what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same bytes.
    Same,
    /// A frame of this key was published with other bytes.
    Different,
    /// Nothing of this key was published.
    Unknown,
}

/// Every frame that was published: key, length and a 64-bit hash of its bytes. The newest bytes of a key count.
#[derive(Debug, Default)]
pub struct Journal {
    frames: Mutex<HashMap<FrameKey, (usize, u64)>>,
}

impl Journal {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a frame that is about to be sent; frames that are never cached are not noted.
    pub fn record(&self, frame: &[u8]) -> Option<FrameKey> {
        let key = key_of(frame)?;
        self.lock().insert(key, (frame.len(), digest(frame)));
        Some(key)
    }

    /// Compares received bytes with what was published.
    #[must_use]
    pub fn compare(&self, key: FrameKey, frame: &[u8]) -> Verdict {
        match self.lock().get(&key) {
            None => Verdict::Unknown,
            Some(&known) if known == (frame.len(), digest(frame)) => Verdict::Same,
            Some(_) => Verdict::Different,
        }
    }

    /// The keys of all frames, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<FrameKey> {
        let mut keys: Vec<FrameKey> = self.lock().keys().copied().collect();
        keys.sort_unstable_by_key(FrameKey::to_bytes);
        keys
    }

    /// How many different frames were published.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing was published.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FrameKey, (usize, u64)>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use retry_common::key::FrameKey;

    use super::{Journal, Verdict, key_of};

    fn frame(seq_num: u64) -> Vec<u8> {
        let mut bytes = vec![0; 100];
        bytes[..4].copy_from_slice(&0xE3E1_F3E8u32.to_be_bytes());
        bytes[6] = 2;
        bytes[40..48].copy_from_slice(&9u64.to_be_bytes());
        bytes[48..56].copy_from_slice(&seq_num.to_be_bytes());
        bytes
    }

    #[test]
    fn one_changed_byte_is_different() {
        let journal = Journal::new();
        let key = journal.record(&frame(1)).expect("cacheable");
        assert_eq!(key, FrameKey::new(9, 1));
        assert_eq!(journal.compare(key, &frame(1)), Verdict::Same);
        let mut other = frame(1);
        other[99] = 1;
        assert_eq!(journal.compare(key, &other), Verdict::Different);
        other.truncate(99);
        assert_eq!(journal.compare(key, &other), Verdict::Different);
        let unknown = FrameKey::new(9, 2);
        assert_eq!(journal.compare(unknown, &frame(2)), Verdict::Unknown);
    }

    #[test]
    fn what_is_never_cached_has_no_key() {
        assert_eq!(key_of(&frame(0)), None);
        assert_eq!(key_of(&frame(1)[..63]), None);
        let mut legacy = frame(1);
        legacy[6] = 1;
        assert_eq!(key_of(&legacy), None);
        let mut foreign = frame(1);
        foreign[0] = 0;
        assert_eq!(key_of(&foreign), None);
    }
}
