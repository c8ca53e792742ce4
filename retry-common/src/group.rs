//! From a TxID or TopicID to a group index to an IPv6 group address (RFC 4291 2.7, RFC 4607; BRC-124, 131, 132, 149).

use core::fmt;

/// First index of the BEEF plane.
pub const BEEF_BASE: u16 = 0x1000;
/// Header egress.
pub const HEADER_EGRESS: u16 = 0xFFFA;
/// Subtree data.
pub const SUBTREE_DATA: u16 = 0xFFFB;
/// Subtree groups.
pub const SUBTREE_GROUPS: u16 = 0xFFFC;
/// Beacons: ADVERTs and shard manifests.
pub const BEACON: u16 = 0xFFFD;
/// Blocks, and anchors too.
pub const BLOCK: u16 = 0xFFFE;
/// Flow index of anchors: part of their HashKey, never of an address.
pub const ANCHOR_FLOW: u16 = 0xFFF9;
/// Flow index of V4 frames with MsgType 2: part of their HashKey, never of an address.
pub const COINBASE_FLOW: u16 = 0xFFF8;

/// How far a group reaches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// The link.
    Link,
    /// The site.
    Site,
    /// The organisation.
    Org,
    /// The world.
    Global,
}

/// Whether receivers name the sources.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SourceMode {
    /// Any source (RFC 1112).
    Asm,
    /// Named sources (RFC 4607).
    Ssm,
}

/// The first two bytes of a group address; `None` when the scope has no such form.
pub const fn prefix(scope: Scope, mode: SourceMode) -> Option<u16> {
    match (mode, scope) {
        (SourceMode::Asm, Scope::Link) => Some(0xFF02),
        (SourceMode::Asm, Scope::Site) => Some(0xFF05),
        (SourceMode::Asm, Scope::Org) => Some(0xFF08),
        (SourceMode::Asm, Scope::Global) => Some(0xFF0E),
        (SourceMode::Ssm, Scope::Site) => Some(0xFF35),
        (SourceMode::Ssm, Scope::Global) => Some(0xFF3E),
        (SourceMode::Ssm, Scope::Link | Scope::Org) => None,
    }
}

/// How many leading bits of a TxID choose its group: 1 to 12.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct ShardBits(u8);

impl ShardBits {
    /// `None` outside 1..=12.
    pub const fn new(bits: u8) -> Option<Self> {
        if bits >= 1 && bits <= 12 { Some(Self(bits)) } else { None }
    }

    /// The number of bits.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The group index of a transaction.
    pub const fn index(self, tx_id: &[u8; 32]) -> u16 {
        top_bits(tx_id, self.0)
    }
}

impl fmt::Debug for ShardBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// How many leading bits of a TopicID choose its group: 0 (one group) to 12.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct BeefBits(u8);

impl BeefBits {
    /// `None` above 12.
    pub const fn new(bits: u8) -> Option<Self> {
        if bits <= 12 { Some(Self(bits)) } else { None }
    }

    /// The number of bits.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// The group index of a BEEF object.
    pub const fn index(self, topic_id: &[u8; 32]) -> u16 {
        BEEF_BASE + top_bits(topic_id, self.0)
    }
}

impl fmt::Debug for BeefBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// How the planes of a fabric are cut into groups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sharding {
    /// Transactions.
    pub shard: ShardBits,
    /// BEEF objects.
    pub beef: BeefBits,
}

impl Sharding {
    /// True for the group index of a shard: those are joined by every endpoint.
    pub const fn has_shard(&self, index: u16) -> bool {
        index >> self.shard.0 == 0
    }
}

/// The address of a group: prefix, ten zero bytes, group id, index.
#[inline(always)]
pub const fn address(prefix: u16, group_id: u16, index: u16) -> [u8; 16] {
    ((prefix as u128) << 112 | (group_id as u128) << 16 | index as u128).to_be_bytes()
}

/// The Ethernet address of a group (RFC 2464 section 7).
#[inline(always)]
pub const fn multicast_mac(group: &[u8; 16]) -> [u8; 6] {
    let [.., a, b, c, d] = *group;
    [0x33, 0x33, a, b, c, d]
}

/// The indices that an endpoint joins: every shard group, blocks, and as configured subtree data and the BEEF band.
pub fn joined(shard: ShardBits, subtree_data: bool, beef: Option<BeefBits>) -> impl Iterator<Item = u16> + Clone {
    let beef = beef.into_iter().flat_map(|bits| BEEF_BASE..BEEF_BASE + (1 << bits.0));
    (0..1u16 << shard.0).chain([BLOCK]).chain(subtree_data.then_some(SUBTREE_DATA)).chain(beef)
}

#[expect(clippy::cast_possible_truncation, reason = "at most 12 bits are left")]
const fn top_bits(id: &[u8; 32], bits: u8) -> u16 {
    let [a, b, ..] = *id;
    let word = u16::from_be_bytes([a, b]) as u32;
    (word >> (16 - bits as u32)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_endpoint_joins_what_the_settings_imply() {
        let two = ShardBits::new(2).unwrap();
        assert!(joined(two, false, None).eq([0, 1, 2, 3, 0xFFFE]));
        assert!(joined(two, true, BeefBits::new(0)).eq([0, 1, 2, 3, 0xFFFE, 0xFFFB, 0x1000]));
        assert_eq!(joined(ShardBits::new(12).unwrap(), true, BeefBits::new(12)).count(), 4096 + 1 + 1 + 4096);
    }

    #[test]
    fn bits_outside_their_range_are_refused() {
        assert_eq!(ShardBits::new(0), None);
        assert_eq!(ShardBits::new(13), None);
        assert_eq!(BeefBits::new(13), None);
    }

    #[test]
    fn an_address_is_prefix_id_index() {
        let group = address(0xFF05, 0x000B, 0xFFFE);
        assert_eq!(group, [0xFF, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0B, 0xFF, 0xFE]);
        assert_eq!(multicast_mac(&group), [0x33, 0x33, 0, 0x0B, 0xFF, 0xFE]);
    }

    #[test]
    fn shards_are_the_indices_below_two_to_the_bits() {
        for bits in 1..=12 {
            let sharding = Sharding { shard: ShardBits::new(bits).unwrap(), beef: BeefBits::default() };
            for index in [0, (1 << bits) - 1] {
                assert!(sharding.has_shard(index), "{bits} bits, {index}");
            }
            for index in [1 << bits, BEEF_BASE, SUBTREE_DATA, BEACON, BLOCK, u16::MAX] {
                assert!(!sharding.has_shard(index), "{bits} bits, {index}");
            }
        }
    }

    proptest! {
        #[test]
        fn indices_are_the_top_bits_of_the_first_word(id: [u8; 32], bits in 1u8..=12) {
            let word = u32::from_be_bytes([id[0], id[1], id[2], id[3]]);
            let expected = u16::try_from(word >> (32 - u32::from(bits))).unwrap();
            prop_assert_eq!(ShardBits::new(bits).unwrap().index(&id), expected);
            prop_assert_eq!(BeefBits::new(bits).unwrap().index(&id), 0x1000 + expected);
            prop_assert_eq!(BeefBits::default().index(&id), 0x1000);
        }
    }
}
