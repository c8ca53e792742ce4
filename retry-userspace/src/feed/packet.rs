//! A datagram of a socket as a packet: with the headers that it has on the wire, as far as a socket knows them.

use std::net::SocketAddrV6;

use retry_common::checksum;

/// EtherType of IPv6.
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Next header of UDP.
const UDP: u8 = 17;
/// Hop limit of a new packet on Linux: the one of its route is not known.
const HOP_LIMIT: u8 = 64;
/// Length of a UDP header.
const UDP_LEN: usize = 8;

/// Ethernet, IPv6 and UDP around a payload. MAC addresses are zero, but for that of a multicast group. One packet, also of a
/// datagram that leaves as fragments. Headers are those of a datagram above 65,527 bytes cut to this length.
pub(super) fn ethernet(source: SocketAddrV6, destination: SocketAddrV6, payload: &[u8]) -> Vec<u8> {
    let most = usize::from(u16::MAX) - UDP_LEN;
    let payload = payload.get(..most).unwrap_or(payload);
    let length = u16::try_from(payload.len() + UDP_LEN).unwrap_or(u16::MAX);
    let (from, to) = (source.ip().octets(), destination.ip().octets());
    let mac = match to {
        // RFC 2464, section 7.
        [0xff, .., a, b, c, d] => [0x33, 0x33, a, b, c, d],
        _ => [0; 6],
    };
    let payload_length = length.saturating_sub(8);
    let partial = checksum::partial(payload);
    let sum = checksum::udp_ipv6(&from, &to, source.port(), destination.port(), payload_length, partial);
    [
        &mac[..],
        &[0; 6],
        &IPV6,
        &[0x60, 0, 0, 0],
        &length.to_be_bytes(),
        &[UDP, HOP_LIMIT],
        &from,
        &to,
        &source.port().to_be_bytes(),
        &destination.port().to_be_bytes(),
        &length.to_be_bytes(),
        &sum.to_be_bytes(),
        payload,
    ]
    .concat()
}
