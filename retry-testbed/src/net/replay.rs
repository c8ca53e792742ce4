//! The multicast datagrams of a capture, IPv6 fragments joined.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    net::{Ipv6Addr, SocketAddrV6},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use pcap_file::{DataLink, pcap::PcapReader};

use crate::net::{capture::without_tags, fabric::DATA_PORT};

/// One UDP datagram of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where it came from.
    pub src: SocketAddrV6,
    /// Where it went.
    pub dst: SocketAddrV6,
    /// The hop limit that it was seen with.
    pub hop_limit: u8,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Reads the datagrams to a group and port 9001 of a pcap file with Ethernet frames, in order.
///
/// # Errors
/// The file cannot be read, is of another kind, or holds none of these.
pub fn frames(path: &Path) -> Result<Vec<Datagram>> {
    let mut all = datagrams(path)?;
    all.retain(|datagram| datagram.dst.ip().is_multicast() && datagram.dst.port() == DATA_PORT);
    ensure!(!all.is_empty(), "{}: no multicast datagram to port {DATA_PORT}", path.display());
    Ok(all)
}

/// Reads all UDP datagrams over IPv6 of a pcap file with Ethernet frames; other packets are left out.
///
/// # Errors
/// The file cannot be read or is of another kind.
pub fn datagrams(path: &Path) -> Result<Vec<Datagram>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let what = || format!("{}: not a pcap file (pcapng is not read)", path.display());
    let mut reader = PcapReader::new(BufReader::new(file)).with_context(what)?;
    if reader.header().datalink != DataLink::ETHERNET {
        bail!("{}: link type {:?}, accepted is Ethernet", path.display(), reader.header().datalink);
    }
    let mut joiner = Joiner::default();
    let mut found = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.with_context(|| format!("{}: cut short", path.display()))?;
        found.extend(joiner.take(&packet.data));
    }
    Ok(found)
}

/// Joins IPv6 fragments. Written here because etherparse 0.19 reads offset and more-flag of the fragment header from the wrong bits.
#[derive(Debug, Default)]
pub struct Joiner {
    partial: BTreeMap<(Ipv6Addr, Ipv6Addr, u32), Partial>,
}

#[derive(Debug, Default)]
struct Partial {
    pieces: BTreeMap<usize, Vec<u8>>,
    end: Option<usize>,
}

impl Partial {
    fn whole(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for (offset, piece) in &self.pieces {
            if *offset != bytes.len() {
                return None;
            }
            bytes.extend(piece);
        }
        (self.end == Some(bytes.len())).then_some(bytes)
    }
}

impl Joiner {
    /// Takes an Ethernet frame; returns a datagram when one is whole.
    pub fn take(&mut self, frame: &[u8]) -> Option<Datagram> {
        let packet = without_tags(frame)?;
        let hop_limit = *packet.get(7)?;
        let length = usize::from(word(packet, 4)?);
        let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
        let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
        let (source, destination) = (Ipv6Addr::from(source), Ipv6Addr::from(destination));
        let body = packet.get(40..40 + length)?;
        let udp = match packet.get(6)? {
            17 => body.to_vec(),
            44 if body.first() == Some(&17) => self.join(source, destination, body)?,
            _ => return None,
        };
        let length = usize::from(word(&udp, 4)?);
        Some(Datagram {
            src: SocketAddrV6::new(source, word(&udp, 0)?, 0, 0),
            dst: SocketAddrV6::new(destination, word(&udp, 2)?, 0, 0),
            hop_limit,
            payload: udp.get(8..length)?.to_vec(),
        })
    }

    fn join(&mut self, source: Ipv6Addr, destination: Ipv6Addr, body: &[u8]) -> Option<Vec<u8>> {
        let field = word(body, 2)?;
        let offset = usize::from(field & 0xFFF8);
        let id = u32::from_be_bytes(body.get(4..8)?.try_into().ok()?);
        let piece = body.get(8..)?.to_vec();
        let key = (source, destination, id);
        let partial = self.partial.entry(key).or_default();
        if field & 1 == 0 {
            partial.end = Some(offset + piece.len());
        }
        partial.pieces.insert(offset, piece);
        let whole = partial.whole()?;
        self.partial.remove(&key);
        Some(whole)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Joiner, datagrams, frames};
    use crate::net::packet::PacketBuilder;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../retry-common/tests/golden").join(name)
    }

    #[test]
    fn an_exchange_holds_one_frame_and_three_datagrams() {
        let path = golden("exchange-ack-v2.pcap");
        let found = frames(&path).expect("readable");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].dst.to_string(), "[ff05::b:0]:9001");
        assert_eq!((found[0].payload.len(), found[0].hop_limit), (348, 1));
        assert_eq!(datagrams(&path).expect("readable").len(), 3);
    }

    #[test]
    fn captured_fragments_join() {
        let found = frames(&golden("v6-anchor-in-ipv6-fragments.pcap")).expect("readable");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].payload.len(), 3092);
        assert_eq!(found[0].payload[6], 6);
    }

    #[test]
    fn built_fragments_join_in_any_order() {
        let payload: Vec<u8> = (0..3000u32).map(|at| at.to_be_bytes()[3]).collect();
        let whole = PacketBuilder::udp(
            "[fd10::2]:40000".parse().expect("an address"),
            "[ff05::b:1]:9001".parse().expect("an address"),
            &payload,
        )
        .vlan(4);
        let mut fragments = whole.fragments(1448, 9);
        assert_eq!(fragments.len(), 3);
        fragments.rotate_left(1);
        let mut joiner = Joiner::default();
        let found: Vec<_> = fragments.iter().filter_map(|one| joiner.take(one)).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].payload, payload);
        assert!(joiner.partial.is_empty());
        assert!(joiner.take(&fragments[1]).is_none());
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let error = frames(&golden("index.json")).expect_err("JSON");
        assert!(error.to_string().contains("index.json"), "{error:#}");
        let nothing = frames(&golden("exchange-miss-nothing.pcap")).expect_err("no frame in it");
        assert!(nothing.to_string().contains("no multicast datagram"));
    }
}
