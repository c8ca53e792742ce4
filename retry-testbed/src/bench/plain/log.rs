//! The plain server's memory: a ring of bytes, and an open-addressed index of what stands in it.

use retry_common::key::FrameKey;

/// Slots that a key may stand in, side by side.
const PROBES: usize = 8;

/// Bytes before the head that count as written over: longer than any frame.
const MARGIN: usize = 2048;

/// Where a frame stands, counted from the first byte ever written; 0 is nowhere.
#[derive(Clone, Copy, Default)]
struct Entry {
    key: [u64; 2],
    position: u64,
    length: u32,
}

/// Frames, the newest of them.
pub(super) struct Log {
    ring: Vec<u8>,
    index: Vec<Entry>,
    windows: Vec<u64>,
    mask: usize,
    head: u64,
    stored: u64,
}

impl Log {
    /// Room for `frames` frames of `length` bytes.
    pub(super) fn new(frames: usize, length: usize) -> Self {
        let slots = (frames * 2).next_power_of_two().max(PROBES);
        // Touched now: the first measurement pays no page faults.
        let ring = vec![1; frames * length.next_multiple_of(64) + 2 * MARGIN];
        Self {
            ring,
            index: vec![Entry::default(); slots],
            windows: vec![0; slots],
            mask: slots - 1,
            // So that no position is 0.
            head: 64,
            stored: 0,
        }
    }

    /// Frames written so far.
    pub(super) const fn stored(&self) -> u64 {
        self.stored
    }

    /// Writes a frame over the oldest ones. What is longer than the ring is left out.
    pub(super) fn put(&mut self, key: FrameKey, frame: &[u8]) {
        let size = self.ring.len();
        if frame.len() > size {
            return;
        }
        let mut start = Self::place(self.head, size);
        if start + frame.len() > size {
            self.head += Self::wide(size - start);
            start = 0;
        }
        self.ring[start..start + frame.len()].copy_from_slice(frame);
        let key = words(key);
        let slot = self.free_slot(key);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        self.index[slot] = Entry { key, position: self.head, length };
        self.windows[slot] = 0;
        self.head += Self::wide(frame.len().next_multiple_of(64));
        self.stored += 1;
    }

    /// The bytes of a frame and the word of its window.
    pub(super) fn get(&mut self, key: FrameKey) -> Option<(&[u8], &mut u64)> {
        let key = words(key);
        let first = hash(key);
        let slot = (0..PROBES).map(|probe| Self::slot(first, probe, self.mask)).find(|slot| {
            let entry = &self.index[*slot];
            entry.key == key && self.stands(entry)
        })?;
        let entry = self.index[slot];
        let start = Self::place(entry.position, self.ring.len());
        let frame = self.ring.get(start..start + usize::try_from(entry.length).ok()?)?;
        Some((frame, &mut self.windows[slot]))
    }

    /// The key's own slot, else one that holds nothing any more, else that of the oldest.
    fn free_slot(&self, key: [u64; 2]) -> usize {
        let first = hash(key);
        let mut best = Self::slot(first, 0, self.mask);
        let mut oldest = u64::MAX;
        for probe in 0..PROBES {
            let slot = Self::slot(first, probe, self.mask);
            let entry = &self.index[slot];
            if entry.key == key {
                return slot;
            }
            let age = if self.stands(entry) { entry.position } else { 0 };
            if age < oldest {
                (best, oldest) = (slot, age);
            }
        }
        best
    }

    /// Whether the bytes of an entry have not been written over.
    fn stands(&self, entry: &Entry) -> bool {
        entry.position != 0 && entry.position + Self::wide(self.ring.len()) >= self.head + Self::wide(MARGIN)
    }

    #[expect(clippy::cast_possible_truncation, reason = "below the ring's length")]
    const fn place(position: u64, size: usize) -> usize {
        (position % size as u64) as usize
    }

    const fn wide(bytes: usize) -> u64 {
        bytes as u64
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low bits of a hash")]
    const fn slot(hash: u64, probe: usize, mask: usize) -> usize {
        (hash as usize).wrapping_add(probe) & mask
    }
}

fn words(key: FrameKey) -> [u64; 2] {
    [key.hash_key(), key.seq_num()]
}

fn hash(key: [u64; 2]) -> u64 {
    let mixed = (key[0] ^ key[1].rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use retry_common::key::FrameKey;

    use super::Log;

    #[test]
    fn the_newest_frames_are_found_and_the_oldest_are_gone() {
        let mut log = Log::new(1000, 400);
        for seq in 1..=5000u64 {
            log.put(FrameKey::new(7, seq), &[u8::try_from(seq % 251).unwrap(); 400]);
        }
        assert_eq!(log.stored(), 5000);
        for seq in 4200..=5000u64 {
            let (frame, _) = log.get(FrameKey::new(7, seq)).expect("a new one");
            assert_eq!(frame, [u8::try_from(seq % 251).unwrap(); 400]);
        }
        assert!(log.get(FrameKey::new(7, 3900)).is_none());
        assert!(log.get(FrameKey::new(8, 5000)).is_none());
    }
}
