//! Makes one event of the records of a NACK. No I/O: records go in, events come out.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv6Addr, SocketAddrV6};

use retry_common::abi::{Watched, ticket_role};
use retry_common::counter::Counter;
use retry_common::key::FrameKey;
use retry_common::latency::Measured;
use retry_common::wire::nack::{NACK_LEN, Nack};

/// NACKs whose verdict has not come, and events whose clones may come, at most. More are forgotten.
const MOST: usize = 65_536;
/// Packets of the daemon that wait for the event that they belong to, at most. More are forgotten.
const MOST_PACKETS: usize = 1_024;
/// Where the IPv6 header of an untagged packet starts.
const IP: usize = 14;
/// Where the UDP header starts.
const UDP: usize = IP + 40;
/// Where the payload starts.
const PAYLOAD: usize = UDP + 8;

/// A packet, or its first bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Packet {
    /// When its NACK was looked at, nanoseconds of the monotonic clock.
    pub(super) at_ns: u64,
    /// How many bytes it has.
    pub(super) length: u16,
    /// The first of them.
    pub(super) bytes: Vec<u8>,
}

/// A NACK and what was decided on it, or a packet that is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Event {
    /// When it was looked at, nanoseconds of the monotonic clock.
    pub(super) at_ns: u64,
    /// CPU, or [`Watched::DAEMON`].
    pub(super) cpu: u32,
    /// Interface that it came by; 0: not known.
    pub(super) ifindex: u32,
    /// Where it came from.
    pub(super) source: Option<SocketAddrV6>,
    /// What it asks for.
    pub(super) key: Option<FrameKey>,
    /// What was decided.
    pub(super) verdict: &'static str,
    /// Why.
    pub(super) reason: Option<Counter>,
    /// What left, as [`ticket_role`] bits.
    pub(super) sent: u8,
    /// Which answer left, if one did: `ack`, `miss` or `throttled`.
    pub(super) answer: Option<&'static str>,
    /// Time until the verdict was carried out, nanoseconds.
    pub(super) took_ns: u32,
    /// The packet that came, and the answer that was made of it.
    pub(super) packets: Vec<Packet>,
}

/// What a record makes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Joined {
    /// Nothing yet.
    Nothing,
    /// An event.
    Event(Box<Event>),
    /// A packet that left for an event that was shown.
    Left(Packet),
}

/// CPU and time: the name of a NACK.
type Name = (u32, u64);

/// Records that wait for others.
#[derive(Debug)]
pub(super) struct Join {
    began_ns: u64,
    asked: HashMap<Name, (Watched, Vec<u8>)>,
    shown: HashSet<Name>,
    /// What the daemon took and sent for NACKs that it has not told of yet.
    packets: HashMap<Name, Vec<Packet>>,
}

impl Join {
    /// Nothing waits. What was told before `began_ns` was meant for another watcher.
    pub(super) fn new(began_ns: u64) -> Self {
        Self { began_ns, asked: HashMap::new(), shown: HashSet::new(), packets: HashMap::new() }
    }

    /// Takes the next record, and the bytes of the packet that came with it.
    pub(super) fn take(&mut self, record: &Watched, packet: &[u8]) -> Joined {
        let name = (record.cpu, record.at_ns);
        if record.at_ns < self.began_ns && record.cpu != Watched::DAEMON {
            return Joined::Nothing;
        }
        let this = || Packet { at_ns: record.at_ns, length: record.length, bytes: packet.to_vec() };
        match record.kind {
            Watched::ASKED | Watched::LEFT if record.cpu == Watched::DAEMON => {
                let packet = Packet { at_ns: record.at_ns + u64::from(record.took_ns), ..this() };
                let is_late = self.shown.contains(&name);
                match (is_late, record.kind) {
                    (true, Watched::LEFT) => return Joined::Left(packet),
                    // Told a second time: it waited for a backend.
                    (true, _) => {}
                    (false, _) => self.keep(name, packet),
                }
                Joined::Nothing
            }
            Watched::ASKED => {
                if self.asked.len() >= MOST {
                    self.asked.clear();
                }
                self.asked.insert(name, (*record, packet.to_vec()));
                Joined::Nothing
            }
            Watched::DECIDED if record.cpu != Watched::DAEMON => {
                // Without the first record, which found no room, there is nothing to show.
                let Some((asked, nack)) = self.asked.remove(&name) else { return Joined::Nothing };
                let mut event = from_packet(&asked, &nack);
                (event.verdict, event.answer) = verdict(record.verdict);
                event.sent = record.sent | sent_in_place(record.verdict);
                event.reason = reason(record.reason);
                event.took_ns = record.took_ns;
                event.packets = vec![Packet { at_ns: asked.at_ns, length: asked.length, bytes: nack }];
                event.packets.extend((record.captured > 0).then(this));
                Joined::Event(Box::new(event))
            }
            Watched::LEFT if self.shown.contains(&name) => Joined::Left(this()),
            Watched::REFUSED | Watched::PASSED => {
                let mut event = from_packet(record, packet);
                event.verdict = if record.kind == Watched::REFUSED { "refused" } else { "passed" };
                event.reason = reason(record.reason);
                event.packets = vec![this()];
                Joined::Event(Box::new(event))
            }
            Watched::DECIDED | Watched::WAITS | Watched::FETCHED => {
                let mut event = from_daemon(record);
                event.packets = self.packets.remove(&name).unwrap_or_default();
                // The answers leave before the daemon tells of their NACK.
                event.packets.sort_by_key(|packet| packet.at_ns);
                Joined::Event(Box::new(event))
            }
            _ => Joined::Nothing,
        }
    }

    fn keep(&mut self, name: Name, packet: Packet) {
        if self.packets.values().map(Vec::len).sum::<usize>() >= MOST_PACKETS {
            self.packets.clear();
        }
        self.packets.entry(name).or_default().push(packet);
    }

    /// This event was shown: packets that leave for it are, too.
    pub(super) fn shown(&mut self, event: &Event) {
        if self.shown.len() >= MOST {
            self.shown.clear();
        }
        self.shown.insert((event.cpu, event.at_ns));
    }
}

/// The counter of a record's number.
fn reason(number: u16) -> Option<Counter> {
    Counter::ALL.get(usize::from(number).checked_sub(1)?).copied()
}

/// Verdict and answer of a number of [`Measured`].
fn verdict(number: u8) -> (&'static str, Option<&'static str>) {
    let measured = Measured::ALL.get(usize::from(number));
    let word = measured.and_then(|one| one.series().1.first()).map_or("unknown", |(_, word)| word);
    let answer = match measured {
        Some(Measured::Ack) => Some("ack"),
        Some(Measured::Miss) => Some("miss"),
        Some(Measured::Throttled) => Some("throttled"),
        _ => None,
    };
    (word, answer)
}

/// What leaves in the place of the NACK.
fn sent_in_place(number: u8) -> u8 {
    match Measured::ALL.get(usize::from(number)) {
        Some(Measured::InPlace) => ticket_role::UNICAST,
        _ => 0,
    }
}

/// Source and key of a packet, as far as it has them.
fn from_packet(record: &Watched, packet: &[u8]) -> Event {
    let is_udp = packet.get(12..14) == Some(&[0x86, 0xdd]) && packet.get(IP + 6) == Some(&17);
    let source = packet.get(IP + 8..).and_then(|rest| rest.first_chunk::<16>()).filter(|_| is_udp);
    let port = packet.get(UDP..).and_then(|rest| rest.first_chunk::<2>());
    let nack = packet.get(PAYLOAD..PAYLOAD + NACK_LEN).and_then(|bytes| Nack::parse(bytes).ok());
    Event {
        at_ns: record.at_ns,
        cpu: record.cpu,
        ifindex: record.ifindex,
        source: source
            .zip(port)
            .map(|(source, port)| SocketAddrV6::new(Ipv6Addr::from(*source), u16::from_be_bytes(*port), 0, 0)),
        key: nack.filter(|_| is_udp).map(|nack| nack.key),
        verdict: "unknown",
        reason: None,
        sent: 0,
        answer: None,
        took_ns: record.took_ns,
        packets: Vec::new(),
    }
}

fn from_daemon(record: &Watched) -> Event {
    let source = SocketAddrV6::new(record.source.into(), u16::from_be_bytes(record.source_port), 0, 0);
    let (decided, answer) = verdict(record.verdict);
    Event {
        at_ns: record.at_ns,
        cpu: record.cpu,
        ifindex: record.ifindex,
        source: (!source.ip().is_unspecified()).then_some(source),
        key: Some(record.key),
        verdict: match record.kind {
            Watched::WAITS => "waits",
            Watched::FETCHED => "fetched",
            _ => decided,
        },
        reason: reason(record.reason),
        sent: record.sent,
        answer: answer.filter(|_| record.kind == Watched::DECIDED),
        took_ns: record.took_ns,
        packets: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Watched =
        Watched { at_ns: 50, cpu: 1, kind: Watched::ASKED, ifindex: 3, length: 126, ..Watched::NONE };

    fn packet(key: FrameKey) -> Vec<u8> {
        let mut packet = vec![0; PAYLOAD];
        packet[12..14].copy_from_slice(&[0x86, 0xdd]);
        packet[IP + 6] = 17;
        packet[IP + 23] = 9;
        packet[UDP..UDP + 2].copy_from_slice(&[0x9c, 0x40]);
        packet.extend(Nack { flags: 0, key, subtree_id: [0; 32] }.to_bytes());
        packet
    }

    #[test]
    fn the_records_of_a_nack_become_one_event() {
        let mut join = Join::new(50);
        let key = FrameKey::new(7, 8);
        let nack = packet(key);
        assert_eq!(join.take(&Watched { at_ns: 49, ..ASKED }, &nack), Joined::Nothing);
        assert_eq!(join.take(&ASKED, &nack), Joined::Nothing);
        // Of another NACK at the same time.
        let decided = Watched {
            kind: Watched::DECIDED,
            verdict: Measured::Miss as u8,
            reason: Counter::CacheMisses as u16 + 1,
            took_ns: 600,
            length: 78,
            captured: 78,
            ..ASKED
        };
        assert_eq!(join.take(&Watched { cpu: 2, ..decided }, &[1; 78]), Joined::Nothing);
        let Joined::Event(event) = join.take(&decided, &[1; 78]) else { panic!("an event") };
        assert_eq!(
            (event.source.map(|source| source.to_string()).as_deref(), event.key),
            (Some("[::9]:40000"), Some(key))
        );
        assert_eq!((event.verdict, event.answer, event.took_ns), ("miss", Some("miss"), 600));
        let bytes: Vec<_> = event.packets.iter().map(|packet| packet.bytes.len()).collect();
        assert_eq!(bytes, [126, 78]);
        // Once.
        assert_eq!(join.take(&decided, &[]), Joined::Nothing);
        let left = Watched { kind: Watched::LEFT, ..ASKED };
        assert_eq!(join.take(&left, &[2; 100]), Joined::Nothing, "not shown");
        join.shown(&event);
        assert!(matches!(join.take(&left, &[2; 100]), Joined::Left(packet) if packet.bytes == [2; 100]));
    }

    /// What the daemon sent comes before its event, or after it; with the NACK first in any case.
    #[test]
    fn the_daemons_packets_belong_to_their_event() {
        let mut join = Join::new(0);
        let daemon = Watched { cpu: Watched::DAEMON, ..ASKED };
        let left = Watched { kind: Watched::LEFT, took_ns: 7, ..daemon };
        let decided = Watched { kind: Watched::DECIDED, verdict: Measured::Clones as u8, ..daemon };
        for record in [left, Watched { at_ns: 51, ..left }, daemon] {
            assert_eq!(join.take(&record, &[record.kind]), Joined::Nothing);
        }
        let Joined::Event(event) = join.take(&decided, &[]) else { panic!("an event") };
        let packets: Vec<_> = event.packets.iter().map(|packet| (packet.at_ns, packet.bytes[0])).collect();
        assert_eq!(packets, [(50, Watched::ASKED), (57, Watched::LEFT)]);
        // One that is not shown leaves nothing behind.
        assert_eq!(join.take(&left, &[1]), Joined::Nothing);
        join.shown(&event);
        assert!(matches!(join.take(&left, &[2]), Joined::Left(packet) if packet.bytes == [2]));
        assert_eq!(join.take(&daemon, &[3]), Joined::Nothing, "its NACK once");
        for at_ns in 100..100 + 2 * MOST_PACKETS as u64 {
            join.take(&Watched { at_ns, ..left }, &[0]);
        }
        assert!(join.packets.len() <= MOST_PACKETS);
    }

    #[test]
    fn any_bytes_are_an_event() {
        let mut join = Join::new(0);
        for length in 0..130 {
            let refused = Watched { kind: Watched::REFUSED, reason: Counter::NackWrongSize as u16 + 1, ..ASKED };
            let Joined::Event(event) = join.take(&refused, &vec![0xff; length]) else { panic!("an event") };
            assert_eq!((event.source, event.key, event.reason), (None, None, Some(Counter::NackWrongSize)));
        }
        for kind in 0..=u8::MAX {
            join.take(&Watched { kind, verdict: u8::MAX, reason: u16::MAX, ..ASKED }, &[]);
        }
    }
}
