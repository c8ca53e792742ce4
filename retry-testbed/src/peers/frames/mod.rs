//! Frames of every version, numbered per flow, with random content.
//!
//! The bytes are written here, offset by offset, and not by retry-common: what the endpoint reads is then checked against
//! a second reading of the BRCs and not against itself.

mod kind;

use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng};
use retry_common::{key::FrameKey, wire::MAGIC};

pub use self::kind::Kind;

/// Written into every frame (informational).
const PROTO_VER: u16 = 0x02BF;
/// Group index of blocks and anchors.
pub const BLOCK_GROUP: u16 = 0xFFFE;
/// Group index of subtree data.
pub const SUBTREE_GROUP: u16 = 0xFFFB;
/// First group index of the BEEF plane.
pub const BEEF_GROUP: u16 = 0x1000;

/// A numbered stream of frames of one kind.
#[derive(Debug)]
pub struct Flow {
    kind: Kind,
    shard: u16,
    shard_bits: u8,
    beef_shard_bits: u8,
    hash_key: u64,
    next: u64,
    payload: std::ops::RangeInclusive<usize>,
    random: SmallRng,
}

impl Flow {
    /// A flow of its own HashKey that starts at SeqNum 1. `shard` chooses the group of transactions and BEEF objects.
    ///
    /// `payload` is the range of payload lengths; the frames' lengths are [`Kind::header_length`] more.
    #[must_use]
    pub fn new(kind: Kind, shard: u16, shard_bits: u8, payload: std::ops::RangeInclusive<usize>) -> Self {
        let hash_key = rand::random::<u64>() | 1;
        Self {
            kind,
            shard: shard & ((1 << shard_bits) - 1),
            shard_bits,
            beef_shard_bits: 0,
            hash_key,
            next: 1,
            payload,
            random: SmallRng::seed_from_u64(hash_key),
        }
    }

    /// With this HashKey instead of a random one; the content follows from it.
    #[must_use]
    pub fn with_hash_key(mut self, hash_key: u64) -> Self {
        self.hash_key = hash_key;
        self.random = SmallRng::seed_from_u64(hash_key);
        self
    }

    /// Starting at this SeqNum.
    #[must_use]
    pub const fn starting_at(mut self, seq_num: u64) -> Self {
        self.next = seq_num;
        self
    }

    /// Spread over a BEEF plane of this many bits.
    #[must_use]
    pub const fn beef_shard_bits(mut self, bits: u8) -> Self {
        self.beef_shard_bits = bits;
        self
    }

    /// What it carries.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its HashKey.
    #[must_use]
    pub const fn hash_key(&self) -> u64 {
        self.hash_key
    }

    /// The key of the frame that comes next.
    #[must_use]
    pub const fn next_key(&self) -> FrameKey {
        FrameKey::new(self.hash_key, self.next)
    }

    /// The group index that its frames go to.
    #[must_use]
    pub fn group_index(&self) -> u16 {
        match self.kind {
            Kind::Legacy | Kind::Tx | Kind::TxFragment | Kind::Bundle => self.shard,
            Kind::Block | Kind::Coinbase | Kind::Anchor | Kind::BlockFragment => BLOCK_GROUP,
            Kind::SubtreeData | Kind::SubtreeFragment => SUBTREE_GROUP,
            Kind::Beef | Kind::BeefFragment => BEEF_GROUP | (self.shard & ((1 << self.beef_shard_bits) - 1)),
        }
    }

    /// The next frame.
    pub fn next_frame(&mut self) -> Vec<u8> {
        let seq_num = self.next;
        self.next += 1;
        let length = self.random.random_range(self.payload.clone());
        if self.kind == Kind::Bundle {
            return self.bundle(seq_num, length);
        }
        let header = self.kind.header_length();
        let mut frame = vec![0; header + length];
        self.random.fill_bytes(&mut frame[header..]);
        put(&mut frame, 0, &MAGIC.to_be_bytes());
        put(&mut frame, 4, &PROTO_VER.to_be_bytes());
        put(&mut frame, 6, &[self.kind.frame_version(), self.kind.byte7()]);
        let declared = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        // All fragments of one original carry its identity.
        let object = if self.kind.is_fragment() { (seq_num - 1) / 3 } else { seq_num };
        let ident = self.ident(object, self.shard, self.shard_bits);
        put(&mut frame, 8, &ident);
        if self.kind == Kind::Legacy {
            put(&mut frame, 40, &declared);
            return frame;
        }
        put(&mut frame, 40, &self.hash_key.to_be_bytes());
        put(&mut frame, 48, &seq_num.to_be_bytes());
        let scope = match self.kind {
            Kind::Tx | Kind::TxFragment => self.ident(0, 0, 0),
            Kind::Beef | Kind::BeefFragment => self.ident(0, self.shard, self.beef_shard_bits),
            _ => [0; 32],
        };
        put(&mut frame, 56, &scope);
        put(&mut frame, 88, &declared);
        if self.kind.is_fragment() {
            let original = u32::try_from(length * 3).unwrap_or(u32::MAX);
            put(&mut frame, 92, &original.to_be_bytes());
            let index = u16::try_from((seq_num - 1) % 3).unwrap_or(0);
            put(&mut frame, 96, &index.to_be_bytes());
            put(&mut frame, 98, &3u16.to_be_bytes());
            put(&mut frame, 100, &[self.kind.original_version()]);
        }
        frame
    }

    /// Three members that share out the length, each with its TxID.
    fn bundle(&mut self, seq_num: u64, length: usize) -> Vec<u8> {
        let mut members = Vec::new();
        let each = (length / 3).saturating_sub(34);
        for member in 0..3 {
            let size = u16::try_from(each).unwrap_or(0);
            members.extend(size.to_be_bytes());
            members.extend(self.ident(seq_num * 3 + member, self.shard, self.shard_bits));
            let start = members.len();
            members.resize(start + usize::from(size), 0);
            self.random.fill_bytes(&mut members[start..]);
        }
        let mut frame = vec![0; 66];
        put(&mut frame, 0, &MAGIC.to_be_bytes());
        put(&mut frame, 4, &PROTO_VER.to_be_bytes());
        put(&mut frame, 6, &[8, Kind::Bundle.byte7()]);
        let subtree = self.ident(0, 0, 0);
        put(&mut frame, 8, &subtree);
        put(&mut frame, 40, &self.hash_key.to_be_bytes());
        put(&mut frame, 48, &seq_num.to_be_bytes());
        put(&mut frame, 56, &self.shard.to_be_bytes());
        put(&mut frame, 58, &[self.shard_bits]);
        put(&mut frame, 60, &3u16.to_be_bytes());
        let total = u32::try_from(members.len()).unwrap_or(u32::MAX);
        put(&mut frame, 62, &total.to_be_bytes());
        frame.extend(members);
        frame
    }

    /// 32 bytes that follow from the flow and a number, with `shard` in their topmost `bits`.
    fn ident(&self, number: u64, shard: u16, bits: u8) -> [u8; 32] {
        let mut bytes = [0; 32];
        SmallRng::seed_from_u64(self.hash_key.rotate_left(17) ^ number).fill_bytes(&mut bytes);
        if bits > 0 {
            let [a, b, c, d, ..] = bytes;
            let low = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> bits);
            let high = u32::from(shard) << (32 - u32::from(bits));
            put(&mut bytes, 0, &(high | low).to_be_bytes());
        }
        bytes
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use retry_common::{
        group::{BeefBits, ShardBits, Sharding},
        key::FrameKey,
        wire::frame::Frame,
    };

    use super::{Flow, Kind};
    use crate::peers::journal::key_of;

    #[test]
    fn frames_are_numbered_from_one() {
        for kind in Kind::CACHED {
            let mut flow = Flow::new(kind, 3, 2, 200..=400).with_hash_key(77);
            for seq_num in 1..=7 {
                let frame = flow.next_frame();
                let wanted = FrameKey::new(77, seq_num);
                assert_eq!(key_of(&frame), Some(wanted), "{kind:?}");
            }
        }
        let legacy = Flow::new(Kind::Legacy, 0, 2, 200..=200).next_frame();
        assert_eq!(key_of(&legacy), None);
        assert_eq!(legacy.len(), 244);
    }

    #[test]
    fn the_endpoints_parser_reads_every_kind() {
        for bits in [1, 4, 12] {
            let sharding = Sharding {
                shard: ShardBits::new(bits).expect("in range"),
                beef: BeefBits::new(bits).expect("in range"),
            };
            for kind in Kind::CACHED {
                let mut flow = Flow::new(kind, 9, bits, 300..=400).beef_shard_bits(bits);
                for _ in 0..4 {
                    let wanted = flow.next_key();
                    let bytes = flow.next_frame();
                    let frame = Frame::parse(&bytes).expect("a whole frame");
                    let head = frame.head();
                    assert_eq!(head.cache_key(), Some(wanted), "{kind:?}");
                    assert_eq!(head.header_len, kind.header_length(), "{kind:?}");
                    assert_eq!(head.group_index(&sharding), Some(flow.group_index()), "{kind:?}");
                    assert!(head.class().is_some(), "{kind:?}");
                }
            }
        }
    }

    #[test]
    fn a_transaction_lies_in_its_shard() {
        for shard in 0..16 {
            let mut flow = Flow::new(Kind::Tx, shard, 4, 10..=10);
            for _ in 0..20 {
                assert_eq!(u16::from(flow.next_frame()[8] >> 4), shard);
            }
            assert_eq!(flow.group_index(), shard);
        }
    }

    #[test]
    fn three_fragments_share_an_identity() {
        let mut flow = Flow::new(Kind::TxFragment, 1, 2, 300..=300);
        let frames: Vec<Vec<u8>> = (0..4).map(|_| flow.next_frame()).collect();
        assert_eq!(frames[0][8..40], frames[2][8..40]);
        assert_ne!(frames[2][8..40], frames[3][8..40]);
        let index: Vec<u8> = frames.iter().map(|frame| frame[97]).collect();
        assert_eq!(index, [0, 1, 2, 0]);
    }

    #[test]
    fn the_same_hash_key_gives_the_same_bytes() {
        let make = || Flow::new(Kind::Tx, 1, 2, 100..=900).with_hash_key(5).next_frame();
        assert_eq!(make(), make());
    }
}
