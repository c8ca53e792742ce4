//! What is said on the beacon groups: ADVERTs as a listener reads them, strictly, and shard manifests as their senders write them.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};

use anyhow::{Context, Result};
use retry_common::wire::{
    MAGIC,
    advert::instance_id,
    manifest::{FLAG_AUTHORITATIVE, FLAG_SHUTDOWN, FLAG_SSM, Groups, Manifest},
};
use socket2::{Domain, Socket, Type};

use crate::net::{fabric::INTERFACE, netns::Netns};

/// UDP port of the beacon groups.
pub const BEACON_PORT: u16 = 9300;
/// Group index of the beacon groups.
pub const BEACON_INDEX: u16 = 0xFFFD;

/// What an endpoint says of itself (BRC-126), read by the wire table and not by retry-common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advert {
    /// 0x05, 0x08, 0x0E, or 0xFF for all three.
    pub scope: u8,
    /// Where NACKs go.
    pub nack_address: SocketAddrV6,
    /// Lower is asked first.
    pub tier: u8,
    /// Higher is asked first within a tier.
    pub preference: u8,
    /// Seconds between two ADVERTs.
    pub interval_seconds: u16,
    /// 0x0002 HasParent, 0x0004 Draining, 0x0008 unicast, 0x0010 multicast.
    pub flags: u16,
    /// Who it is.
    pub instance_id: u32,
}

impl Advert {
    /// Reads an ADVERT; reserved bytes must be zero.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Ok(bytes) = <[u8; 56]>::try_from(bytes) else {
            return Err(format!("{} bytes and not 56", bytes.len()));
        };
        let [a, b, c, d, 0x02, 0xBF, 0x20, scope, rest @ ..] = bytes else {
            return Err(format!("not an ADVERT of this protocol: {bytes:02x?}"));
        };
        let address: [u8; 16] = std::array::from_fn(|at| rest[at]);
        let [p, q, tier, preference, i, j, f, g, w, x, y, z, reserved @ ..]: [u8; 32] =
            std::array::from_fn(|at| rest[16 + at]);
        if u32::from_be_bytes([a, b, c, d]) != MAGIC || tier == 0xFF || reserved != [0; 20] {
            return Err(format!("wrong magic, tier or reserved bytes: {bytes:02x?}"));
        }
        Ok(Self {
            scope,
            nack_address: SocketAddrV6::new(address.into(), u16::from_be_bytes([p, q]), 0, 0),
            tier,
            preference,
            interval_seconds: u16::from_be_bytes([i, j]),
            flags: u16::from_be_bytes([f, g]),
            instance_id: u32::from_be_bytes([w, x, y, z]),
        })
    }

    /// Whether the endpoint is about to go.
    #[must_use]
    pub const fn draining(&self) -> bool {
        self.flags & 0x0004 != 0
    }
}

/// One who sends shard manifests (BRC-139) that name the publishers of an SSM fabric.
#[derive(Debug)]
pub struct ManifestSender {
    socket: UdpSocket,
    source: Ipv6Addr,
}

/// What a manifest says beside its sender.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// When it was made: a later one of the same sender replaces an earlier one.
    pub epoch_seconds: u32,
    /// How long it holds.
    pub ttl_seconds: u16,
    /// The publishers.
    pub publishers: &'a [Ipv6Addr],
    /// The sender is about to go.
    pub shutdown: bool,
}

impl ManifestSender {
    /// A sender on `eth0` of a namespace, with one of the host's addresses as its source.
    ///
    /// # Errors
    /// No such interface or address.
    pub fn open(ns: &Netns, source: Ipv6Addr) -> Result<Self> {
        let index = ns.interface_index(INTERFACE)?;
        let socket = ns.enter(|| -> Result<UdpSocket> {
            let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_hops_v6(1)?;
            socket.bind(&SocketAddrV6::new(source, 0, 0, 0).into())?;
            Ok(socket.into())
        })?;
        Ok(Self { socket, source })
    }

    /// Sends one manifest to a beacon group.
    ///
    /// # Errors
    /// The interface is down, or there are more publishers than a datagram holds.
    pub fn send(&self, group: Ipv6Addr, named: Named<'_>) -> Result<()> {
        let sources: Vec<[u8; 16]> = named.publishers.iter().map(Ipv6Addr::octets).collect();
        let manifest = Manifest {
            flags: FLAG_SSM | FLAG_AUTHORITATIVE | if named.shutdown { FLAG_SHUTDOWN } else { 0 },
            source: self.source.octets(),
            instance_id: instance_id("manifest"),
            epoch_s: named.epoch_seconds,
            ttl_s: named.ttl_seconds,
            interval_s: 1,
            shard_bits: 2,
            role: 5,
            generation_id: [7; 16],
            groups: Groups::List(&[[0, 0], [0, 1], [0, 2], [0, 3]]),
            sources: &sources,
            successor: None,
            rest: &[],
        };
        let mut bytes = vec![0; 1232];
        let length = manifest.write(&mut bytes).context("the manifest is too long for a packet")?;
        self.socket.send_to(&bytes[..length], SocketAddrV6::new(group, BEACON_PORT, 0, 0))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Advert;

    /// The field's, as it was recorded.
    const GOLDEN: &str = include_str!("../../../retry-common/tests/golden/advert-1.hex");

    fn golden() -> Vec<u8> {
        let text: String = GOLDEN.split_whitespace().collect();
        (0..text.len() / 2).map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).expect("hex")).collect()
    }

    #[test]
    fn the_fields_advert_is_read() {
        let advert = Advert::parse(&golden()).expect("an ADVERT");
        let ours = retry_common::wire::advert::Advert::parse(&golden()).expect("an ADVERT");
        assert_eq!((advert.tier, advert.preference, advert.scope), (ours.tier, ours.preference, ours.scope));
        assert_eq!(advert.nack_address.ip().octets(), ours.nack_addr);
        assert_eq!(
            (advert.nack_address.port(), advert.interval_seconds, advert.flags, advert.instance_id),
            (ours.nack_port, ours.interval_s, ours.flags, ours.instance_id)
        );
    }

    #[test]
    fn a_changed_one_is_refused() {
        for at in [0, 6, 55] {
            let mut bytes = golden();
            bytes[at] ^= 1;
            assert!(Advert::parse(&bytes).is_err(), "byte {at}");
        }
        assert!(Advert::parse(&golden()[..55]).is_err());
    }
}
