//! Packets as bytes: a builder that can also build broken ones, and a strict check of what came out.
//!
//! The builder writes its own bytes: most of its packets are of a kind that a well-behaved library refuses to write. The
//! check reads with etherparse, so that builder and check cannot agree on the same mistake.

mod check;

use std::net::{Ipv6Addr, SocketAddrV6};

pub use self::check::{Packet, ParsedPacket};

/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86DD;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad (outer) tag.
pub const ETHERTYPE_QINQ: u16 = 0x88A8;

const UDP: u8 = 17;

/// What stands in the UDP checksum field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// The right one.
    #[default]
    Right,
    /// The sum of the pseudo-header alone, as a local stack leaves it for a device to finish.
    Partial,
    /// This value, right or not.
    Value(u16),
}

/// An IPv6 extension header of eight bytes (RFC 8200, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options, padding only.
    HopByHop,
    /// Destination options, padding only.
    DestinationOptions,
    /// Hop-by-hop options with a jumbo payload length (RFC 2675).
    Jumbo(u32),
    /// A routing header of type 0 with no segments left.
    Routing,
    /// A fragment header.
    Fragment {
        /// Offset in bytes, a multiple of eight.
        offset: u16,
        /// More fragments follow.
        more: bool,
        /// Identification.
        id: u32,
    },
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop | Self::Jumbo(_) => 0,
            Self::Routing => 43,
            Self::Fragment { .. } => 44,
            Self::DestinationOptions => 60,
        }
    }

    fn bytes(self, next: u8) -> [u8; 8] {
        match self {
            // PadN of four bytes fills the header.
            Self::HopByHop | Self::DestinationOptions => [next, 0, 1, 4, 0, 0, 0, 0],
            Self::Jumbo(length) => {
                let [a, b, c, d] = length.to_be_bytes();
                [next, 0, 0xC2, 4, a, b, c, d]
            }
            Self::Routing => [next, 0, 0, 0, 0, 0, 0, 0],
            Self::Fragment { offset, more, id } => {
                let [hi, lo] = ((offset & 0xFFF8) | u16::from(more)).to_be_bytes();
                let [a, b, c, d] = id.to_be_bytes();
                [next, 0, hi, lo, a, b, c, d]
            }
        }
    }
}

/// A UDP datagram over IPv6 over Ethernet. Every length and checksum is right unless it is overridden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketBuilder {
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// VLAN tags, outermost first: EtherType of the tag and tag control information.
    pub vlans: Vec<(u16, u16)>,
    /// EtherType after the tags.
    pub ethertype: u16,
    /// The IP version field.
    pub ip_version: u8,
    /// Traffic class.
    pub traffic_class: u8,
    /// Flow label, 20 bits.
    pub flow_label: u32,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address and port.
    pub src: SocketAddrV6,
    /// Destination address and port.
    pub dst: SocketAddrV6,
    /// Extension headers in order.
    pub extensions: Vec<Extension>,
    /// Next header of the last header before UDP.
    pub protocol: u8,
    /// The UDP checksum field.
    pub checksum: Checksum,
    /// The UDP length field, instead of the right one.
    pub udp_length: Option<u16>,
    /// The IPv6 payload length field, instead of the right one.
    pub ip_length: Option<u16>,
    /// The datagram.
    pub payload: Vec<u8>,
    /// Bytes after the IPv6 packet, as a NIC pads short frames.
    pub trailer: Vec<u8>,
}

impl PacketBuilder {
    /// A datagram with hop limit 64 and locally administered MAC addresses.
    #[must_use]
    pub fn udp(src: SocketAddrV6, dst: SocketAddrV6, payload: &[u8]) -> Self {
        let dst_mac = if dst.ip().is_multicast() { multicast_mac(*dst.ip()) } else { [2, 0, 0, 0, 0, 1] };
        Self {
            dst_mac,
            src_mac: [2, 0, 0, 0, 0, 2],
            vlans: Vec::new(),
            ethertype: ETHERTYPE_IPV6,
            ip_version: 6,
            traffic_class: 0,
            flow_label: 0,
            hop_limit: 64,
            src,
            dst,
            extensions: Vec::new(),
            protocol: UDP,
            checksum: Checksum::Right,
            udp_length: None,
            ip_length: None,
            payload: payload.to_vec(),
            trailer: Vec::new(),
        }
    }

    /// Adds a tag of the given VLAN id: 802.1ad for an outer one, 802.1Q for the innermost.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        if let Some(outer) = self.vlans.last_mut() {
            outer.0 = ETHERTYPE_QINQ;
        }
        self.vlans.push((ETHERTYPE_VLAN, id));
        self
    }

    /// The packet's bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut rest: Vec<u8> = Vec::new();
        for (at, extension) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(at + 1).map_or(self.protocol, |next| next.number());
            rest.extend(extension.bytes(next));
        }
        rest.extend(self.udp_bytes());
        self.wrap(&rest, self.extensions.first().map(|first| first.number()))
    }

    /// The packet as IPv6 fragments that carry at most `size` bytes of it each (rounded down to a multiple of eight).
    #[must_use]
    pub fn fragments(&self, size: u16, id: u32) -> Vec<Vec<u8>> {
        let datagram = self.udp_bytes();
        let step = usize::from((size & 0xFFF8).max(8));
        let mut offset = 0u16;
        let mut packets = Vec::new();
        for piece in datagram.chunks(step) {
            let end = usize::from(offset) + piece.len();
            let header = Extension::Fragment { offset, more: end < datagram.len(), id };
            let rest = [&header.bytes(self.protocol)[..], piece].concat();
            packets.push(self.wrap(&rest, Some(header.number())));
            offset = offset.saturating_add(clip(piece.len()));
        }
        packets
    }

    fn udp_bytes(&self) -> Vec<u8> {
        let right = clip(8 + self.payload.len());
        let length = self.udp_length.unwrap_or(right);
        let mut udp = Vec::with_capacity(8 + self.payload.len());
        udp.extend(self.src.port().to_be_bytes());
        udp.extend(self.dst.port().to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        let checksum = match self.checksum {
            Checksum::Right => match !self.sum(&udp, length) {
                // RFC 8200, section 8.1: a computed zero is sent as ones.
                0 => 0xFFFF,
                other => other,
            },
            Checksum::Partial => self.sum(&[], length),
            Checksum::Value(value) => value,
        };
        udp.splice(6..8, checksum.to_be_bytes());
        udp
    }

    fn sum(&self, udp: &[u8], length: u16) -> u16 {
        let mut pseudo = Vec::with_capacity(40 + udp.len());
        pseudo.extend(self.src.ip().octets());
        pseudo.extend(self.dst.ip().octets());
        pseudo.extend(u32::from(length).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol]);
        pseudo.extend(udp);
        ones_complement(&pseudo)
    }

    fn wrap(&self, rest: &[u8], first: Option<u8>) -> Vec<u8> {
        let mut packet = Vec::with_capacity(66 + rest.len());
        packet.extend(self.dst_mac);
        packet.extend(self.src_mac);
        for (tag, tci) in &self.vlans {
            packet.extend(tag.to_be_bytes());
            packet.extend(tci.to_be_bytes());
        }
        packet.extend(self.ethertype.to_be_bytes());
        let word =
            (u32::from(self.ip_version) << 28) | (u32::from(self.traffic_class) << 20) | (self.flow_label & 0xF_FFFF);
        packet.extend(word.to_be_bytes());
        packet.extend(self.ip_length.unwrap_or_else(|| clip(rest.len())).to_be_bytes());
        packet.push(first.unwrap_or(self.protocol));
        packet.push(self.hop_limit);
        packet.extend(self.src.ip().octets());
        packet.extend(self.dst.ip().octets());
        packet.extend(rest);
        packet.extend(&self.trailer);
        packet
    }
}

/// The MAC address of an IPv6 group (RFC 2464, section 7).
#[must_use]
pub const fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

fn clip(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

/// The plain algorithm of RFC 1071, over bytes in network order.
fn ones_complement(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u64::from(u16::from_be_bytes([pair[0], low]));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    clip(usize::try_from(sum).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Checksum, Extension, Packet, PacketBuilder, multicast_mac};

    fn builder(payload: &[u8]) -> PacketBuilder {
        PacketBuilder::udp(
            "[fd10::2]:40000".parse().expect("an address"),
            "[fd10::1]:9300".parse().expect("an address"),
            payload,
        )
    }

    proptest! {
        #[test]
        fn what_is_built_right_checks(payload in proptest::collection::vec(any::<u8>(), 0..1500), tags in 0u16..=3, label in 0u32..1 << 20) {
            let mut wanted = builder(&payload);
            for tag in 0..tags {
                wanted = wanted.vlan(100 + tag);
            }
            wanted.flow_label = label;
            let parsed = Packet::check(&wanted.build());
            let parsed = parsed.expect("built right");
            prop_assert_eq!(parsed.payload, payload);
            prop_assert_eq!(parsed.vlans, (100..100 + tags).collect::<Vec<_>>());
            prop_assert_eq!(parsed.src, wanted.src);
            prop_assert_eq!(parsed.dst, wanted.dst);
            prop_assert_eq!(parsed.flow_label, label);
            prop_assert_eq!(parsed.trailer, 0);
        }

        #[test]
        fn a_changed_byte_is_seen(payload in proptest::collection::vec(any::<u8>(), 1..200), at in any::<proptest::sample::Index>()) {
            let mut bytes = builder(&payload).build();
            // Addresses, ports, length, checksum, payload: all under the checksum.
            let covered = bytes.len() - 22;
            let at = 22 + at.index(covered);
            bytes[at] ^= 0x10;
            prop_assert!(Packet::check(&bytes).is_err());
        }
    }

    #[test]
    fn each_break_has_its_name() {
        let good = builder(b"frame");
        let cases = [
            (PacketBuilder { udp_length: Some(12), ..good.clone() }, "UDP length 12"),
            (PacketBuilder { ip_length: Some(400), ..good.clone() }, "IPv6 payload length 400"),
            (PacketBuilder { checksum: Checksum::Value(0), ..good.clone() }, "UDP checksum 0x0000"),
            (PacketBuilder { checksum: Checksum::Partial, ..good.clone() }, "UDP checksum"),
            (PacketBuilder { ip_version: 4, ..good.clone() }, "version"),
            (PacketBuilder { protocol: 6, ..good.clone() }, "next header 6"),
            (PacketBuilder { ethertype: 0x0800, ..good.clone() }, "not IPv6"),
            (PacketBuilder { extensions: vec![Extension::HopByHop], ..good.clone() }, "next header 0"),
        ];
        for (broken, word) in cases {
            let error = Packet::check(&broken.build()).expect_err(word);
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    #[test]
    fn groups_have_their_mac() {
        let group = "ff05::b:fffe".parse().expect("an address");
        assert_eq!(multicast_mac(group), [0x33, 0x33, 0, 0x0B, 0xFF, 0xFE]);
    }
}
