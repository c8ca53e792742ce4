//! The key of a frame: HashKey ∥ SeqNum, 16 bytes as they stand on the wire.

use core::fmt;

/// Names one frame: the flow it belongs to and its number there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct FrameKey {
    hash_key: [u8; 8],
    seq_num: [u8; 8],
}

impl FrameKey {
    /// The key of frame `seq_num` of flow `hash_key`.
    #[inline(always)]
    pub const fn new(hash_key: u64, seq_num: u64) -> Self {
        Self { hash_key: hash_key.to_be_bytes(), seq_num: seq_num.to_be_bytes() }
    }

    /// The flow.
    #[inline(always)]
    pub const fn hash_key(&self) -> u64 {
        u64::from_be_bytes(self.hash_key)
    }

    /// The frame's number in its flow; 0 is "not stamped" and never cached.
    #[inline(always)]
    pub const fn seq_num(&self) -> u64 {
        u64::from_be_bytes(self.seq_num)
    }

    /// HashKey ∥ SeqNum, big-endian.
    #[inline(always)]
    pub const fn to_bytes(&self) -> [u8; 16] {
        ((self.hash_key() as u128) << 64 | self.seq_num() as u128).to_be_bytes()
    }

    /// The key of these bytes.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart")]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_be_bytes(bytes);
        Self::new((both >> 64) as u64, both as u64)
    }
}

impl fmt::Display for FrameKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}:{}", self.hash_key(), self.seq_num())
    }
}
