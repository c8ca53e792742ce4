//! What a capture has seen, read as datagrams, repairs and ADVERTs.

use std::net::Ipv6Addr;

use retry_common::key::FrameKey;

use super::eventually;
use crate::{
    net::{
        capture::{Capture, Captured, is_udp},
        packet::{Packet, ParsedPacket},
    },
    peers::{
        announce::{Advert, BEACON_PORT},
        journal::key_of,
    },
};

/// The UDP datagrams among `packets` that `source` sent, each with right lengths and checksum.
///
/// # Panics
/// A length or checksum is wrong.
#[must_use]
pub fn datagrams_from(packets: &[Captured], source: Ipv6Addr) -> Vec<ParsedPacket> {
    packets
        .iter()
        .filter(|packet| is_udp(&packet.bytes))
        .map(|packet| Packet::check(&packet.bytes))
        .filter(|packet| packet.as_ref().map_or(true, |packet| *packet.src.ip() == source))
        .map(|packet| packet.expect("a right packet"))
        .collect()
}

/// Whether a packet is a multicast to the data port from this host's NACK port: a repair.
#[must_use]
pub fn is_repair(packet: &ParsedPacket) -> bool {
    packet.dst.ip().is_multicast() && packet.dst.port() == 9001 && packet.src.port() == 9300
}

/// Whether a packet is a multicast repair of this frame.
#[must_use]
pub fn repairs(packet: &Captured, key: FrameKey) -> bool {
    is_udp(&packet.bytes)
        && Packet::check(&packet.bytes).is_ok_and(|packet| is_repair(&packet) && key_of(&packet.payload) == Some(key))
}

/// The ADVERTs among captured packets, each with its packet.
///
/// # Panics
/// An ADVERT is wrong.
#[must_use]
pub fn adverts(packets: &[Captured]) -> Vec<(ParsedPacket, Advert)> {
    packets
        .iter()
        .filter(|packet| is_udp(&packet.bytes))
        .filter_map(|packet| Packet::check(&packet.bytes).ok())
        .filter(|packet| packet.dst.port() == BEACON_PORT && packet.dst.ip().is_multicast())
        .filter(|packet| packet.payload.get(6) == Some(&0x20))
        .map(|packet| {
            let advert = Advert::parse(&packet.payload).expect("a right ADVERT");
            (packet, advert)
        })
        .collect()
}

/// Waits until a capture has seen an ADVERT that is wanted, and returns all so far.
///
/// # Panics
/// None is wanted within [`super::PATIENCE`].
pub fn await_advert(capture: &Capture, wanted: impl Fn(&Advert) -> bool) -> Vec<(ParsedPacket, Advert)> {
    let mut seen = Vec::new();
    eventually("an ADVERT that is wanted", || {
        seen = adverts(&capture.seen());
        seen.iter().any(|(_, advert)| wanted(advert))
    });
    seen
}
