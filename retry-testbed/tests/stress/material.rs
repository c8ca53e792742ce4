//! Frames whose bytes follow from key and generation alone, made by one copy: their payloads are parts of one block.

use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use retry_common::abi::{RecordHeader, record_flag};
use retry_common::checksum;
use retry_common::key::FrameKey;

/// Bytes of the block.
const BLOCK: usize = 1 << 18;
/// Where parts may begin: so many steps, and the longest part behind the last.
const PARTS: usize = BLOCK - (1 << 13);
/// Records stand in steps of so many bytes.
const SLOT: usize = 64;
/// A payload begins so many bytes into a slot: 48 bytes of record header and 92 of frame header come before it.
const INTO_SLOT: usize = (48 + 92) % SLOT;

/// What a flow carries; the lowest byte of its HashKey.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A transaction, which the kernel stores.
    Tx = 1,
    /// A bundle of one transaction: the daemon stores it.
    Bundle = 2,
    /// A transaction above the MTU: the daemon stores it, and it alone can send it.
    Large = 3,
    /// A block: another lane.
    Block = 4,
}

impl Kind {
    /// The HashKey of a flow.
    pub(crate) const fn flow(self, number: u64) -> u64 {
        number << 8 | self as u64
    }

    fn of(key: FrameKey) -> Self {
        match key.hash_key() & 0xff {
            2 => Self::Bundle,
            3 => Self::Large,
            4 => Self::Block,
            _ => Self::Tx,
        }
    }

    const fn header_len(self) -> usize {
        match self {
            // Its own, and that of its only member.
            Self::Bundle => 66 + 34,
            Self::Tx | Self::Large | Self::Block => 92,
        }
    }
}

/// The bytes of all payloads.
pub(crate) struct Material {
    block: Vec<u8>,
    /// Sums of the 16-bit words before each even offset.
    sums: Vec<u64>,
    /// Distance of the offsets at which parts begin.
    step: usize,
    /// Payload lengths of frames below the MTU.
    lengths: std::ops::RangeInclusive<usize>,
}

impl Material {
    /// Random bytes.
    pub(crate) fn random(lengths: std::ops::RangeInclusive<usize>) -> Self {
        let mut block = vec![0; BLOCK];
        SmallRng::seed_from_u64(1).fill_bytes(&mut block);
        Self::new(block, 2, lengths)
    }

    /// Bytes that look like a record header wherever a slot begins, each with the key of another frame of `flow`.
    pub(crate) fn of_headers(flow: u64, seq_nums: u64, lengths: std::ops::RangeInclusive<usize>) -> Self {
        let mut random = SmallRng::seed_from_u64(2);
        let mut block = Vec::with_capacity(BLOCK);
        while block.len() < BLOCK {
            let version = match random.random_range(0..4u8) {
                // Never over, the first of all, and something in between.
                0 => u64::MAX - 1,
                1 => 2,
                _ => random.random::<u64>() & !1,
            };
            let length = [0, 100, 1_400, 1 << 24, u32::MAX][random.random_range(0..5usize)];
            let flags = [0, record_flag::KERNEL, record_flag::FILLER, record_flag::KERNEL | record_flag::FILLER];
            let key = FrameKey::new(flow, 1 + random.random_range(0..seq_nums));
            let header = RecordHeader {
                version,
                expires_ns: random.random::<u64>() | 1 << 63,
                key,
                length,
                life_ms: random.random(),
                partial: random.random(),
                group: random.random_range(0..4),
                class: random.random_range(0..5),
                flags: flags[random.random_range(0..flags.len())],
                reserved: [0; 2],
            };
            block.extend(header_bytes(&header));
            block.extend(random.random::<[u8; SLOT - 48]>());
        }
        Self::new(block, SLOT, lengths)
    }

    fn new(block: Vec<u8>, step: usize, lengths: std::ops::RangeInclusive<usize>) -> Self {
        let mut sums = vec![0];
        let mut sum = 0;
        for pair in block.chunks_exact(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], pair[1]]));
            sums.push(sum);
        }
        Self { block, sums, step, lengths }
    }

    /// Where the payload of a frame begins in the block, and its length.
    fn part(&self, key: FrameKey, generation: u8) -> (usize, usize) {
        let r = mix(key.hash_key().rotate_left(32) ^ key.seq_num() << 8 ^ u64::from(generation));
        let (first, last) = (*self.lengths.start(), *self.lengths.end());
        let length = match Kind::of(key) {
            Kind::Large => 2_000 + below(r >> 32, 1_000),
            Kind::Tx | Kind::Bundle | Kind::Block => first + below(r >> 32, last - first + 1),
        };
        let start = below(r & 0xffff_ffff, PARTS / self.step) * self.step;
        (if self.step == SLOT { start + INTO_SLOT } else { start }, length)
    }

    /// Writes the frame of `key` in a generation over `out`, and returns the sum of its bytes.
    pub(crate) fn frame(&self, key: FrameKey, generation: u8, out: &mut Vec<u8>) -> u16 {
        let kind = Kind::of(key);
        let (start, length) = self.part(key, generation);
        out.clear();
        out.resize(kind.header_len(), 0);
        out[..8].copy_from_slice(&[0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 2, 0]);
        // The topmost bits are the shard's.
        out[8..16].copy_from_slice(&mix(key.seq_num() ^ 0x1d).to_be_bytes());
        out[40..56].copy_from_slice(&key.to_bytes());
        let declared = u32::try_from(length).unwrap_or(0);
        match kind {
            Kind::Bundle => {
                out[6..8].copy_from_slice(&[8, 1]);
                out[56..58].copy_from_slice(&u16::from(Self::group(key)).to_be_bytes());
                out[58] = 2;
                out[60..62].copy_from_slice(&1u16.to_be_bytes());
                out[62..66].copy_from_slice(&(declared + 34).to_be_bytes());
                out[66..68].copy_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
            }
            Kind::Tx | Kind::Large | Kind::Block => {
                if kind == Kind::Block {
                    out[6..8].copy_from_slice(&[4, 1]);
                }
                if self.step == SLOT {
                    // The slot that begins before the payload.
                    out[80..88].copy_from_slice(&self.block[start - INTO_SLOT..start - INTO_SLOT + 8]);
                }
                out[88..92].copy_from_slice(&declared.to_be_bytes());
            }
        }
        let head = checksum::partial(out);
        let end = start + length;
        out.extend_from_slice(&self.block[start..end]);
        let odd = if length % 2 == 0 { 0 } else { u64::from(self.block[end - 1]) << 8 };
        checksum::add(head, checksum::fold(self.sums[end / 2] - self.sums[start / 2] + odd))
    }

    /// Index of the group that a transaction goes to, with two shard bits.
    pub(crate) fn group(key: FrameKey) -> u8 {
        mix(key.seq_num() ^ 0x1d).to_be_bytes()[0] >> 6
    }

    /// The generation whose frame these bytes are, if they are one.
    pub(crate) fn generation(&self, key: FrameKey, generations: u8, bytes: &[u8], room: &mut Vec<u8>) -> Option<u8> {
        (0..generations).find(|generation| {
            self.frame(key, *generation, room);
            room == bytes
        })
    }
}

fn below(number: u64, bound: usize) -> usize {
    usize::try_from(number % u64::try_from(bound).unwrap_or(1)).unwrap_or(0)
}

/// The finaliser of MurmurHash3.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

fn header_bytes(header: &RecordHeader) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    bytes.extend(header.version.to_ne_bytes());
    bytes.extend(header.expires_ns.to_ne_bytes());
    bytes.extend(header.key.to_bytes());
    bytes.extend(header.length.to_ne_bytes());
    bytes.extend(header.life_ms.to_ne_bytes());
    bytes.extend(header.partial.to_ne_bytes());
    bytes.extend(header.group.to_ne_bytes());
    bytes.extend([header.class, header.flags, 0, 0]);
    bytes
}

#[test]
fn frames_have_the_sum_that_is_told_and_the_parser_reads_them() {
    let random = Material::random(48..=1_300);
    let crafted = Material::of_headers(Kind::Tx.flow(7), 100, 400..=1_300);
    let mut frame = Vec::new();
    for material in [random, crafted] {
        for kind in [Kind::Tx, Kind::Bundle, Kind::Large, Kind::Block] {
            for seq_num in 1..200 {
                let key = FrameKey::new(kind.flow(7), seq_num);
                let sum = material.frame(key, 1, &mut frame);
                assert_eq!(sum, checksum::partial(&frame), "{kind:?} {seq_num}");
                let parsed = retry_common::wire::frame::Frame::parse(&frame).expect("a whole frame");
                assert_eq!(parsed.head().cache_key(), Some(key));
                assert_eq!(material.generation(key, 3, &frame, &mut Vec::new()), Some(1));
            }
        }
    }
}

#[test]
fn payloads_look_like_records_where_a_slot_begins() {
    let flow = Kind::Tx.flow(7);
    let material = Material::of_headers(flow, 100, 400..=1_300);
    let mut frame = Vec::new();
    material.frame(FrameKey::new(flow, 5), 0, &mut frame);
    // In the ring the frame begins 48 bytes into a slot.
    for at in (16 + SLOT..frame.len() - 48).step_by(SLOT) {
        let version = u64::from_ne_bytes(frame[at..at + 8].try_into().expect("eight bytes"));
        assert!(version != 0 && version % 2 == 0, "offset {at}: {version:#x}");
        if at > 92 {
            assert_eq!(frame[at + 16..at + 24], flow.to_be_bytes(), "offset {at}");
        }
    }
}
