//! The strict check of a received packet.

use std::net::SocketAddrV6;

use etherparse::{EtherType, Ethernet2HeaderSlice, Ipv6HeaderSlice, SingleVlanHeaderSlice, UdpHeaderSlice};

use super::UDP;

/// A whole, correct UDP datagram over IPv6 without extension headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedPacket {
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
    /// Hop limit.
    pub hop_limit: u8,
    /// Flow label.
    pub flow_label: u32,
    /// Source address and port.
    pub src: SocketAddrV6,
    /// Destination address and port.
    pub dst: SocketAddrV6,
    /// The datagram.
    pub payload: Vec<u8>,
    /// Bytes after the IPv6 packet.
    pub trailer: usize,
}

/// Checks of received packets.
#[derive(Debug)]
pub struct Packet;

impl Packet {
    /// Reads a packet and verifies version, IPv6 payload length, UDP length and UDP checksum.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn check(bytes: &[u8]) -> Result<ParsedPacket, String> {
        let ethernet = Ethernet2HeaderSlice::from_slice(bytes).map_err(|error| error.to_string())?;
        let mut rest = &bytes[ethernet.slice().len()..];
        let mut ethertype = ethernet.ether_type();
        let mut vlans = Vec::new();
        while matches!(
            ethertype,
            EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING | EtherType::VLAN_DOUBLE_TAGGED_FRAME
        ) {
            let tag = SingleVlanHeaderSlice::from_slice(rest).map_err(|error| error.to_string())?;
            vlans.push(tag.vlan_identifier().value());
            ethertype = tag.ether_type();
            rest = &rest[tag.slice().len()..];
        }
        if ethertype != EtherType::IPV6 {
            return Err(format!("not IPv6 but {ethertype:?}"));
        }
        let ip = Ipv6HeaderSlice::from_slice(rest).map_err(|error| error.to_string())?;
        let after = &rest[ip.slice().len()..];
        let length = usize::from(ip.payload_length());
        let Some(body) = after.get(..length) else {
            return Err(format!("IPv6 payload length {length}, but {} bytes follow", after.len()));
        };
        if ip.next_header().0 != UDP {
            return Err(format!("next header {} and not UDP", ip.next_header().0));
        }
        let udp = UdpHeaderSlice::from_slice(body).map_err(|error| error.to_string())?;
        if usize::from(udp.length()) != length {
            return Err(format!("UDP length {}, IPv6 payload length {length}", udp.length()));
        }
        let payload = &body[8..];
        let right = udp
            .to_header()
            .calc_checksum_ipv6_raw(ip.source(), ip.destination(), payload)
            .map_err(|error| error.to_string())?;
        if udp.checksum() != right {
            return Err(format!("UDP checksum {:#06x}, right is {right:#06x}", udp.checksum()));
        }
        Ok(ParsedPacket {
            dst_mac: ethernet.destination(),
            src_mac: ethernet.source(),
            vlans,
            hop_limit: ip.hop_limit(),
            flow_label: ip.flow_label().value(),
            src: SocketAddrV6::new(ip.source_addr(), udp.source_port(), 0, 0),
            dst: SocketAddrV6::new(ip.destination_addr(), udp.destination_port(), 0, 0),
            payload: payload.to_vec(),
            trailer: after.len() - length,
        })
    }
}
