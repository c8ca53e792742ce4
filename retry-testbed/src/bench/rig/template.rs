//! What the generators send: packets with holes for what changes, and the checksum of the packet with zeros there.

use std::net::SocketAddrV6;

use anyhow::{Result, ensure};
use aya::Pod;
use retry_common::{checksum, key::FrameKey};
use retry_testbed::{
    net::{
        fabric::{DATA_PORT, Host, group},
        packet::PacketBuilder,
    },
    peers::{
        answer,
        frames::{Flow, Kind},
    },
};

/// The flow of SeqNums whose lowest bits are 0; the others have the HashKeys that follow.
pub(crate) const FLOW: u64 = 0xbe4c_0000_0000_0001;
/// Draws of sources by weight that the generator has.
const DRAWS: usize = 16_384;
/// Source port of the NACKs of the load; the counting program knows answers by it.
pub(crate) const LOAD_PORT: u16 = 40_000;
/// Ethernet, IPv6 and UDP headers.
pub(crate) const HEADERS: usize = 62;
const NACK_PACKET: usize = HEADERS + 64;
const WORDS: usize = NACK_PACKET.div_ceil(8);
const LONGEST: usize = 2048;
const PLACES: usize = 4;
/// Shorter frames have no room for the SeqNum at all its places.
const SHORTEST: usize = 256;
const CHECKSUM: usize = 60;
/// The last four bytes of the source address.
const SOURCE: usize = 14 + 8 + 12;
/// The last two bytes of a NACK's HashKey, and of a frame's.
const NACK_FLOW: usize = HEADERS + 14;
const FRAME_FLOW: usize = HEADERS + 46;

/// As the generator of NACKs reads it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct NackTemplate {
    words: [u64; WORDS],
    first: u64,
    count: u64,
    stride: u64,
    flow_mask: u64,
    source: u64,
    sources: u64,
    interval: u64,
    draws: [u16; DRAWS],
}
// SAFETY: words without padding; the draws fill whole words.
unsafe impl Pod for NackTemplate {}

/// As the generator of frames reads it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FrameTemplate {
    bytes: [u8; LONGEST],
    length: u64,
    places: [u32; PLACES],
    sum: u64,
    first: u64,
    flow_mask: u64,
    interval: u64,
}
// SAFETY: bytes and words without padding.
unsafe impl Pod for FrameTemplate {}

/// Which frames are asked for, and who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The first SeqNum.
    pub(crate) first: u64,
    /// How many there are; then the first again.
    pub(crate) count: u64,
    /// The order.
    pub(crate) order: Order,
    /// Flows that the SeqNums belong to; a power of two, at most 256.
    pub(crate) flows: u64,
    /// Who asks.
    pub(crate) sources: Sources,
}

/// In which order frames are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// So many SeqNums on each time. A step that has no factor in common with the count scatters them, and each comes once
    /// before any comes again.
    Step(u64),
    /// Each is drawn at random.
    Random,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sources {
    /// The client's own address.
    Own,
    /// So many addresses, one after the other.
    InTurn(u64),
    /// So many addresses, the n-th with a weight of 1/n (Zipf), as listeners of unequal loss have it; 1,000 at most.
    Weighted(u16),
}

impl Sources {
    /// How many addresses ask.
    pub(crate) const fn count(self) -> u64 {
        match self {
            Self::Own => 1,
            Self::InTurn(count) => count,
            Self::Weighted(count) => count as u64,
        }
    }

    /// What the generator draws from when the addresses have weights: each comes once at least.
    fn draws(self) -> [u16; DRAWS] {
        let mut draws = [0; DRAWS];
        let Self::Weighted(count) = self else { return draws };
        let whole: f64 = (1..=count).map(|rank| 1.0 / f64::from(rank)).sum();
        let mut next = 0;
        for rank in 0..count {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            let exact = DRAWS as f64 / (whole * f64::from(rank + 1));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below DRAWS, and positive")]
            let share = (exact.round() as usize).max(1);
            let end = (next + share).min(DRAWS);
            draws[next..end].fill(rank);
            next = end;
        }
        // The rounding's rest is the first's. Shuffled by Fisher and Yates with a fixed seed: every run draws the same.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        for last in (1..DRAWS).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            #[expect(clippy::cast_possible_truncation, reason = "below DRAWS")]
            let other = (state % (last as u64 + 1)) as usize;
            draws.swap(last, other);
        }
        draws
    }
}

impl Ask {
    /// Frames 1 to `count` one after the other, from the client's address.
    pub(crate) const fn frames(count: u64) -> Self {
        Self { first: 1, count, order: Order::Step(1), flows: 1, sources: Sources::Own }
    }
}

/// Time between packets, as the generators take it, in 1/1024 ns.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, and below 2^53")]
pub(crate) fn interval(rate: Option<f64>) -> u64 {
    rate.map_or(0, |rate| (1024e9 / rate).max(1.0) as u64)
}

/// The NACKs of `ask` from one host to another, `rate` a second or as fast as it goes.
pub(crate) fn nacks(from: &Host, to: &Host, ask: &Ask, rate: Option<f64>) -> Result<(Vec<u8>, NackTemplate)> {
    let mut packet = datagram(from, to.mac, to.nack_address(), LOAD_PORT, 64, &answer::nack(FrameKey::new(FLOW, 0)));
    ensure!(packet.len() == NACK_PACKET, "a NACK packet of {} bytes", packet.len());
    let own = take(&mut packet, SOURCE, 4);
    take(&mut packet, NACK_FLOW, 2);
    rewrite_checksum(&mut packet);
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(packet.chunks(8)) {
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        *word = u64::from_ne_bytes(whole);
    }
    let Ask { first, count, order, flows, sources } = *ask;
    let stride = match order {
        Order::Step(step) => step,
        Order::Random => 0,
    };
    // What is spoofed lies far from the addresses of hosts.
    let (source, in_turn) = match sources {
        Sources::Own => (own, 1),
        Sources::InTurn(count) => (0x1000_0000, count),
        Sources::Weighted(_) => (0x1000_0000, 0),
    };
    let template = NackTemplate {
        words,
        first,
        count,
        stride,
        flow_mask: flow_mask(flows)?,
        source,
        sources: in_turn,
        interval: interval(rate),
        draws: sources.draws(),
    };
    Ok((packet, template))
}

/// Frames of `length` bytes and of so many flows from a host to their group, `rate` a second; the generator numbers them
/// from `first` on.
pub(crate) fn frames(
    from: &Host,
    (length, flows): (usize, u64),
    first: u64,
    rate: Option<f64>,
) -> Result<(Vec<u8>, FrameTemplate)> {
    let to = SocketAddrV6::new(group(0), DATA_PORT, 0, 0);
    let mut packet = datagram(from, [0; 6], to, LOAD_PORT, 1, &frame(0, length, flows));
    take(&mut packet, FRAME_FLOW, 2);
    ensure!(packet.len() < LONGEST && length >= SHORTEST, "the generator makes no frame of {length} bytes");
    let sum = rewrite_checksum(&mut packet);
    let mut places = [0; PLACES];
    for (place, offset) in places.iter_mut().zip(seq_places(length)) {
        *place = u32::try_from(HEADERS + offset)?;
    }
    let mut bytes = [0; LONGEST];
    bytes[..packet.len()].copy_from_slice(&packet);
    let template = FrameTemplate {
        bytes,
        length: u64::try_from(packet.len())?,
        places,
        sum: u64::from(sum),
        first,
        flow_mask: flow_mask(flows)?,
        interval: interval(rate),
    };
    Ok((packet, template))
}

fn flow_mask(flows: u64) -> Result<u64> {
    ensure!(flows.is_power_of_two() && flows <= 256, "{flows} flows: a power of two up to 256 is");
    Ok(flows - 1)
}

/// The frame of a SeqNum as the generator makes it: its payload repeats the SeqNum, so that bytes of two frames in one are seen.
pub(crate) fn frame(seq_num: u64, length: usize, flows: u64) -> Vec<u8> {
    let payload = length.saturating_sub(Kind::Tx.header_length());
    let mut frame = Flow::new(Kind::Tx, 0, 2, payload..=payload).with_hash_key(FLOW).next_frame();
    frame[FRAME_FLOW - HEADERS..FRAME_FLOW - HEADERS + 2].copy_from_slice(&flow_tail(seq_num, flows).to_be_bytes());
    for place in seq_places(length) {
        frame[place..place + 8].copy_from_slice(&seq_num.to_be_bytes());
    }
    frame
}

/// The last two bytes of the HashKey that a SeqNum belongs to.
#[expect(clippy::cast_possible_truncation, reason = "at most 256")]
const fn flow_tail(seq_num: u64, flows: u64) -> u16 {
    (FLOW + (seq_num & (flows - 1))) as u16
}

/// Where a frame carries its SeqNum: in the header, and at even places of the payload.
const fn seq_places(length: usize) -> [usize; PLACES] {
    [48, 96, (length / 2) & !7, (length - 8) & !1]
}

fn datagram(from: &Host, mac: [u8; 6], to: SocketAddrV6, port: u16, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = PacketBuilder::udp(SocketAddrV6::new(from.addr, port, 0, 0), to, payload);
    packet.src_mac = from.mac;
    if !to.ip().is_multicast() {
        packet.dst_mac = mac;
    }
    packet.hop_limit = hops;
    packet.build()
}

/// Takes the last word of an address out of a packet.
fn take(packet: &mut [u8], at: usize, length: usize) -> u64 {
    let bytes = &mut packet[at..at + length];
    let value = bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte));
    bytes.fill(0);
    value
}

/// Writes the checksum of the packet as it stands. Returns its sum, not inverted.
fn rewrite_checksum(packet: &mut [u8]) -> u16 {
    packet[CHECKSUM..CHECKSUM + 2].fill(0);
    // Addresses, ports, length and payload; the pseudo-header has length and protocol once more.
    let udp = checksum::partial(&packet[22..]);
    let length = u16::from_be_bytes([packet[58], packet[59]]);
    let sum = checksum::add(checksum::add(udp, length), 17);
    packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!sum).to_be_bytes());
    sum
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, SocketAddrV6};

    use retry_common::checksum;
    use retry_testbed::{
        net::packet::{Packet, PacketBuilder},
        peers::answer,
    };

    use super::{
        CHECKSUM, FLOW, HEADERS, SHORTEST, SOURCE, Sources, frame, interval, rewrite_checksum, seq_places, take,
    };
    use retry_common::key::FrameKey;

    fn packet(payload: &[u8]) -> Vec<u8> {
        let end = |last| SocketAddrV6::new(Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last), 40_000, 0, 0);
        PacketBuilder::udp(end(2), end(1), payload).build()
    }

    /// What the generator of NACKs does to the checksum.
    fn add_words(packet: &mut [u8], value: u64, times: usize) {
        let mut sum = !u16::from_be_bytes([packet[CHECKSUM], packet[CHECKSUM + 1]]);
        for word in value.to_be_bytes().chunks(2) {
            for _ in 0..times {
                sum = checksum::add(sum, u16::from_be_bytes([word[0], word[1]]));
            }
        }
        packet[CHECKSUM..CHECKSUM + 2].copy_from_slice(&(!sum).to_be_bytes());
    }

    #[test]
    fn a_nack_with_its_holes_filled_is_right() {
        let mut bytes = packet(&answer::nack(FrameKey::new(FLOW, 0)));
        assert_eq!(take(&mut bytes, SOURCE, 4), 2);
        rewrite_checksum(&mut bytes);
        assert!(Packet::check(&bytes).is_ok(), "zeros are as right as anything");
        bytes[SOURCE..SOURCE + 4].copy_from_slice(&0x1000_0007u32.to_be_bytes());
        add_words(&mut bytes, 0x1000_0007, 1);
        let seq = 0xfedc_ba98_7654_3210u64;
        for at in [HEADERS + 16, HEADERS + 24] {
            bytes[at..at + 8].copy_from_slice(&seq.to_be_bytes());
        }
        add_words(&mut bytes, seq, 2);
        let parsed = Packet::check(&bytes).expect("a right checksum");
        assert_eq!(parsed.payload, answer::nack(FrameKey::new(FLOW, seq)));
    }

    #[test]
    fn a_frame_with_its_holes_filled_is_right() {
        for length in [SHORTEST, 400, 1400] {
            let mut bytes = packet(&frame(0, length, 1));
            rewrite_checksum(&mut bytes);
            let seq = 0x0123_4567_89ab_cdefu64;
            for place in seq_places(length) {
                let at = HEADERS + place;
                bytes[at..at + 8].copy_from_slice(&seq.to_be_bytes());
            }
            add_words(&mut bytes, seq, 4);
            let parsed = Packet::check(&bytes).expect("a right checksum");
            assert_eq!(parsed.payload, frame(seq, length, 1));
            assert_eq!(parsed.payload.len(), length);
        }
    }

    #[test]
    fn a_seq_num_tells_its_flow() {
        let key = |seq| word(&frame(seq, 400, 256)[40..48]);
        assert_eq!((key(0), key(1), key(255), key(256)), (FLOW, FLOW + 1, FLOW + 255, FLOW));
        assert_eq!(word(&frame(77, 400, 1)[40..48]), FLOW);
    }

    fn word(bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte))
    }

    #[test]
    fn weighted_sources_come_by_their_weight() {
        let draws = Sources::Weighted(1000).draws();
        let times = |rank: u16| draws.iter().filter(|draw| **draw == rank).count();
        assert!((0..1000).all(|rank| times(rank) > 0), "each asks");
        let (first, tenth) = (times(0), times(9));
        assert!(first > 2000 && (8..=12).contains(&(first / tenth)), "{first} and {tenth}");
        assert!(draws[..1000].iter().any(|draw| *draw > 500), "they are shuffled");
        assert!(Sources::InTurn(9).draws().iter().all(|draw| *draw == 0));
    }

    #[test]
    fn the_pace_is_a_time() {
        assert_eq!(interval(None), 0);
        assert_eq!(interval(Some(1e6)), 1_024_000);
    }
}
