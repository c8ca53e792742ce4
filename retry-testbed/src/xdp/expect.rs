//! What becomes of a NACK in the XDP program, in words of a test, and the comparison with what really became of it.

use retry_common::{
    abi::{Event, EventKind},
    counter::Counter,
    key::FrameKey,
};

use crate::{
    net::packet::{Packet, PacketBuilder},
    xdp::{
        fixture::{Loaded, Ran, UNICAST_HOPS, monotonic_ns},
        testrun::Action,
    },
};

/// Where the ticket stands: behind the IPv6 and UDP headers and the NACK's first 32 bytes.
const TICKET: usize = 48 + 32;

/// Bits of a ticket's roles, as abi.rs tells them.
pub mod role {
    /// An ACK leaves.
    pub const ACK: u8 = 0x01;
    /// A unicast copy leaves.
    pub const UNI: u8 = 0x02;
    /// A multicast leaves by the NACK's interface.
    pub const MULTI: u8 = 0x04;
    /// The packet has room for the frame.
    pub const LEADS: u8 = 0x08;
}

/// What comes of it.
#[derive(Clone, Copy, Debug)]
pub enum Out {
    /// Dropped as it is.
    Silence,
    /// Passed on as it is.
    Pass,
    /// The MISS in the NACK's place.
    Miss,
    /// The ACK with these flags in the NACK's place.
    Ack(u8),
    /// The THROTTLED of this bucket in the NACK's place.
    Throttled(u8),
    /// The frame in the NACK's place.
    Frame,
    /// A ticket in the NACK: the packet is broadcast. Flags of the ACK, [`role`] bits.
    Clones(u8, u8),
    /// The same, and an event that the frame was multicast.
    ClonesAndEvent(u8, u8),
    /// An event for the daemon, and nothing else.
    HandOver(EventKind),
    /// An event for the daemon and the MISS.
    MissAndHandOver,
}

/// Compares what one NACK got with what it should have got.
///
/// `key` and `frame` are what it asks for; the frame may be empty when it is not there.
///
/// # Panics
/// They differ; the message starts with `name`.
pub fn compare(
    loaded: &Loaded,
    name: &str,
    nack: &PacketBuilder,
    (key, frame): (FrameKey, &[u8]),
    out: Out,
    ran: &Ran,
    events: &[Event],
) {
    let bytes = nack.build();
    let answer = |kind: u8, flags: u8, seq_num: u64| {
        let mut bytes = vec![0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, kind, flags];
        bytes.extend(seq_num.to_be_bytes());
        bytes
    };
    let mut event = None;
    let (action, wanted) = match out {
        Out::Silence => (Action::Drop, bytes.clone()),
        Out::Pass => (Action::Pass, bytes.clone()),
        Out::Miss => (Action::Redirect, back(nack, &answer(0x11, 0, 0))),
        Out::Ack(flags) => (Action::Redirect, back(nack, &answer(0x12, flags, key.seq_num()))),
        Out::Throttled(bucket) => (Action::Redirect, back(nack, &answer(0x13, bucket, key.seq_num()))),
        Out::Frame => (Action::Redirect, back(nack, frame)),
        Out::Clones(ack_flags, roles) | Out::ClonesAndEvent(ack_flags, roles) => {
            if matches!(out, Out::ClonesAndEvent(..)) {
                event = Some(EventKind::Repaired);
            }
            let ip = bytes.len() - 112;
            let ticket = &ran.packet[ip + TICKET..];
            assert_eq!(ticket.len(), 32, "{name}: length of the packet");
            let number = |at: usize| u64::from_ne_bytes(ticket[at..at + 8].try_into().expect("eight"));
            let slot = u32::from_ne_bytes(ticket[16..20].try_into().expect("four"));
            assert_ne!(number(0), 0, "{name}: nonce");
            assert!(loaded.holds(slot, number(8), key), "{name}: the ticket names another record");
            assert_eq!(ticket[20..22], [roles, ack_flags], "{name}: roles and flags");
            assert_eq!(ticket[22..24], [0; 2], "{name}: zeros");
            let age_ns = monotonic_ns().checked_sub(number(24));
            assert!(age_ns.is_some_and(|age_ns| age_ns < 10_000_000_000), "{name}: {age_ns:?} ns since the look");
            (Action::Redirect, [&bytes[..ip + TICKET], ticket].concat())
        }
        Out::HandOver(kind) => {
            event = Some(kind);
            (Action::Drop, bytes.clone())
        }
        Out::MissAndHandOver => {
            event = Some(EventKind::Recover);
            (Action::Redirect, back(nack, &answer(0x11, 0, 0)))
        }
    };
    // What is dropped may have been grown on the way; no host sees it.
    let packet = if action == Action::Drop { ran.packet.get(..wanted.len()) } else { Some(&ran.packet[..]) };
    assert_eq!((ran.action, hex(packet.unwrap_or(&ran.packet))), (action, hex(&wanted)), "{name}");
    let answered = matches!(out, Out::Miss | Out::Ack(_) | Out::Throttled(_) | Out::Frame);
    if answered {
        let parsed = Packet::check(&ran.packet).map(|parsed| (parsed.hop_limit, parsed.trailer, parsed.flow_label));
        assert_eq!(parsed, Ok((UNICAST_HOPS, 0, 0)), "{name}");
    }
    let ifindex = loaded.settings().nack_ifindex;
    let wanted_events: Vec<Event> = event
        .map(|kind| Event {
            key,
            source: nack.src.ip().octets(),
            source_port: nack.src.port().to_be_bytes(),
            kind: kind as u8,
            // The highest bit is not of the wire.
            nack_flags: nack.payload[7] & 0x7F,
            ifindex,
            at_ns: 0,
        })
        .into_iter()
        .collect();
    assert_eq!(events, wanted_events, "{name}: events");
}

/// Each of these counters once, in the order of the map.
pub fn once(counted: &[Counter]) -> Vec<(Counter, u64)> {
    Counter::ALL.iter().filter(|counter| counted.contains(counter)).map(|counter| (*counter, 1)).collect()
}

/// The answer to a NACK with this payload: built here from the wire tables, field by field.
pub fn back(nack: &PacketBuilder, payload: &[u8]) -> Vec<u8> {
    let mut answer = PacketBuilder::udp(nack.dst, nack.src, payload);
    answer.dst_mac = nack.src_mac;
    answer.src_mac = nack.dst_mac;
    answer.vlans.clone_from(&nack.vlans);
    answer.hop_limit = UNICAST_HOPS;
    answer.build()
}

/// Bytes in lines of sixteen, so that a difference is found by eye.
pub fn hex(bytes: &[u8]) -> String {
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    lines.join("\n")
}
