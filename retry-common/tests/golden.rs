//! Every golden datagram parses to its decoded fields and is written back byte for byte.
//!
//! Longer than most files: one reader a kind of datagram, so that each field of `index.json` is compared somewhere.
#![expect(clippy::panic, reason = "a panic is the message of a failed check")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};

use pcap_file::pcap::PcapReader;
use retry_common::checksum;
use retry_common::group::{self, BEACON, BeefBits, Scope, ShardBits, Sharding, SourceMode};
use retry_common::wire::advert::Advert;
use retry_common::wire::answer::Answer;
use retry_common::wire::frame::{Class, Frame, Version};
use retry_common::wire::nack::Nack;
use retry_common::wire::{DATA_PORT, NACK_PORT};
use serde_json::{Map, Value, json};
use support::{datagram, names, path};

/// Group id of the capture: the default.
const GROUP_ID: u16 = 0x000B;
/// Kinds of datagrams and how many of each there are.
const KINDS: [(&str, usize); 22] = [
    ("ack", 5),
    ("advert", 1),
    ("miss", 1),
    ("nack", 8),
    ("v1", 2),
    ("v2", 3),
    ("v2-extended", 2),
    ("v3-fragment-of-v0", 2),
    ("v3-fragment-of-v0-last", 2),
    ("v3-fragment-of-v4", 2),
    ("v3-fragment-of-v4-last", 2),
    ("v3-fragment-of-v5", 2),
    ("v3-fragment-of-v5-last", 2),
    ("v3-fragment-of-v9", 2),
    ("v3-fragment-of-v9-last", 1),
    ("v4-block-type1", 3),
    ("v4-block-type2", 3),
    ("v5-subtree-data-type1", 3),
    ("v5-subtree-data-type2", 3),
    ("v6-anchor", 3),
    ("v8-bundle", 2),
    ("v9-beef", 2),
];
/// Packets in the captures of exchanges: eight NACKs and answers, seven repairs.
const EXCHANGED: usize = 23;

/// Shard and BEEF bits of the capture.
fn sharding() -> Sharding {
    Sharding { shard: ShardBits::new(2).expect("in range"), beef: BeefBits::new(0).expect("in range") }
}

fn index() -> Vec<Value> {
    let text = fs::read_to_string(path("index.json")).expect("the index");
    let index: Value = serde_json::from_str(&text).expect("JSON");
    index["files"].as_array().expect("a list of files").clone()
}

fn text<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry[key].as_str().unwrap_or_else(|| panic!("{key} of {entry}"))
}

fn address(entry: &Value, key: &str) -> SocketAddrV6 {
    text(entry, key).parse().expect("an address and a port")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The address of a group of the capture.
fn site_group(index: u16) -> Ipv6Addr {
    let prefix = group::prefix(Scope::Site, SourceMode::Asm).expect("any scope has an ASM form");
    group::address(prefix, GROUP_ID, index).into()
}

/// `found` says of each field of the index what our parser makes of it; a field that it does not know is an error.
fn compare(entry: &Value, found: &Value) {
    let fields: &Map<String, Value> = entry["fields"].as_object().expect("fields");
    assert!(!fields.is_empty());
    for (name, expected) in fields {
        // Prose about how the sender made the HashKey; and the payload's format, which no code here looks into.
        if matches!(name.as_str(), "hash_of" | "extended") {
            continue;
        }
        assert_eq!(found.get(name), Some(expected), "{name} of {entry}");
    }
}

fn check_frame(entry: &Value, bytes: &[u8]) {
    let kind = text(entry, "kind");
    let frame = Frame::parse(bytes).unwrap_or_else(|error| panic!("{error}: {entry}"));
    let head = frame.head();
    let mut found = json!({
        "proto": format!("{:04x}", head.proto),
        "byte7": head.byte7,
        "bytes": frame.bytes().len(),
        "ident": hex(&head.ident),
        "hash_key": format!("{:016x}", head.key.hash_key()),
        "seq_num": head.key.seq_num(),
        "scope": hex(&head.scope),
        "payload_bytes": frame.payload().len(),
        "header_bytes": head.header_len,
        "group_index": head.group_index(&sharding()),
    });
    if let Some(fragment) = &head.fragment {
        found["orig_bytes"] = json!(fragment.original_len);
        found["frag_index"] = json!(fragment.index);
        found["frag_total"] = json!(fragment.total);
        found["orig_version"] = json!(fragment.original_version);
        found["bytes101_103"] = json!(hex(&bytes[101..104]));
    }
    if let Some(bundle) = &head.bundle {
        found["shard_bits"] = json!(bundle.shard_bits);
        found["tx_count"] = json!(bundle.tx_count);
        found["byte59"] = json!(bytes[59]);
        assert_eq!(frame.members().count(), usize::from(bundle.tx_count));
    }
    compare(entry, &found);

    let (version, class) = match kind.trim_end_matches("-last") {
        "v1" => (Version::Legacy, None),
        "v2" | "v2-extended" => (Version::Transaction, Some(Class::Tx)),
        "v3-fragment-of-v0" => (Version::Fragment, Some(Class::Tx)),
        "v3-fragment-of-v4" => (Version::Fragment, Some(Class::Block)),
        "v3-fragment-of-v5" => (Version::Fragment, Some(Class::Subtree)),
        "v3-fragment-of-v9" => (Version::Fragment, Some(Class::Beef)),
        "v4-block-type1" | "v4-block-type2" => (Version::Block, Some(Class::Block)),
        "v5-subtree-data-type1" | "v5-subtree-data-type2" => (Version::SubtreeData, Some(Class::Subtree)),
        "v6-anchor" => (Version::Anchor, Some(Class::Anchor)),
        "v8-bundle" => (Version::Bundle, Some(Class::Tx)),
        "v9-beef" => (Version::Beef, Some(Class::Beef)),
        other => panic!("no such kind: {other}"),
    };
    assert_eq!((head.version, head.class()), (version, class), "{entry}");
    assert_eq!(head.cache_key().is_some(), class.is_some(), "only legacy frames are not cached: {entry}");

    // Where it was sent is where a repair would go.
    let sent_to = address(entry, "destination");
    assert_eq!(sent_to.port(), DATA_PORT, "{entry}");
    if let Some(index) = head.group_index(&sharding()) {
        assert_eq!(*sent_to.ip(), site_group(index), "{entry}");
    }

    let mut written = vec![0xaa; bytes.len()];
    assert_eq!(head.write_frame(frame.payload(), &mut written), Some(bytes.len()), "{entry}");
    assert_eq!(written, bytes, "{entry}");
    if head.bundle.is_some() {
        let mut payload = vec![0xaa; frame.payload().len()];
        let mut at = 0;
        for member in frame.members() {
            at += member.write(&mut payload[at..]).expect("room for the members");
        }
        assert_eq!(payload, frame.payload(), "{entry}");
    }
}

fn check_nack(entry: &Value, bytes: &[u8]) {
    let nack = Nack::parse(bytes).expect("a NACK");
    assert_eq!(Nack::from_array(bytes.try_into().expect("64 bytes")), Ok(nack));
    compare(
        entry,
        &json!({
            "flags": nack.flags,
            "hash_key": format!("{:016x}", nack.key.hash_key()),
            "start_seq": nack.key.seq_num(),
            "end_seq": nack.key.seq_num(),
            "subtree_id": hex(&nack.subtree_id),
        }),
    );
    assert!(!nack.proxied());
    assert_eq!(nack.to_bytes(), bytes);
    assert_eq!(address(entry, "destination").port(), NACK_PORT);

    let answer = Answer::parse(&datagram(text(entry, "answer"))).expect("its answer");
    match entry.get("frame") {
        Some(name) => {
            let frame = datagram(name.as_str().expect("a name"));
            let frame = Frame::parse(&frame).expect("the frame that it asks for");
            assert_eq!(frame.head().cache_key(), Some(nack.key), "{entry}");
            let repair_to = address(entry, "repair_to");
            let index = frame.head().group_index(&sharding()).expect("a cached frame has a group");
            assert_eq!((*repair_to.ip(), repair_to.port()), (site_group(index), DATA_PORT), "{entry}");
            let Answer::Ack { seq_num, .. } = answer else { panic!("{answer:?} for {entry}") };
            assert_eq!(seq_num, nack.key.seq_num(), "{entry}");
        }
        None => assert_eq!(answer, Answer::Miss, "{entry}"),
    }
}

fn check_answer(entry: &Value, bytes: &[u8]) {
    let answer = Answer::parse(bytes).expect("an answer");
    let (kind, flags, seq_num) = match answer {
        Answer::Ack { flags, seq_num } => ("ack", flags.bits(), seq_num),
        Answer::Miss => ("miss", 0, 0),
        Answer::Throttled { bucket, seq_num } => ("throttled", bucket, seq_num),
    };
    assert_eq!(kind, text(entry, "kind"));
    compare(entry, &json!({ "flags": flags, "seq_num": seq_num }));
    assert_eq!(answer.to_bytes(), bytes);
    assert_eq!(address(entry, "source").port(), NACK_PORT);
}

fn check_advert(entry: &Value, bytes: &[u8]) {
    let advert = Advert::parse(bytes).expect("an ADVERT");
    compare(
        entry,
        &json!({
            "scope": advert.scope,
            "nack_addr": Ipv6Addr::from(advert.nack_addr).to_string(),
            "nack_port": advert.nack_port,
            "tier": advert.tier,
            "preference": advert.preference,
            "interval_s": advert.interval_s,
            "flags": format!("0x{:04x}", advert.flags),
            "instance_id": format!("{:08x}", advert.instance_id),
            "reserved": hex(&bytes[36..]),
        }),
    );
    assert_eq!(advert.to_bytes(), bytes);
    let sent_to = address(entry, "destination");
    assert_eq!((*sent_to.ip(), sent_to.port()), (site_group(BEACON), NACK_PORT));
}

#[test]
fn every_datagram_parses_to_its_fields_and_is_written_back() {
    let mut seen = BTreeSet::new();
    let mut counts: BTreeMap<String, usize> = KINDS.iter().map(|(kind, _)| ((*kind).to_owned(), 0)).collect();
    for entry in index() {
        let (name, kind) = (text(&entry, "file"), text(&entry, "kind"));
        let bytes = datagram(name);
        assert_eq!(entry["bytes"], json!(bytes.len()), "{entry}");
        if let Some(index) = entry["group"].as_u64() {
            let index = u16::try_from(index).expect("16 bits");
            assert_eq!(*address(&entry, "destination").ip(), site_group(index), "{entry}");
        }
        match kind {
            "nack" => check_nack(&entry, &bytes),
            "ack" | "miss" => check_answer(&entry, &bytes),
            "advert" => check_advert(&entry, &bytes),
            _ => check_frame(&entry, &bytes),
        }
        assert!(seen.insert(name.to_owned()), "{name} twice");
        *counts.get_mut(kind).unwrap_or_else(|| panic!("a new kind: {kind}")) += 1;
    }
    assert_eq!(counts, KINDS.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect());
    let files: BTreeSet<_> = names().into_iter().filter(|name| name.ends_with(".hex")).collect();
    assert_eq!(seen, files, "the index and the directory");
    assert_eq!(seen.len(), 56);
}

/// A UDP datagram over IPv6, its checksum judged.
struct Packet {
    destination_mac: [u8; 6],
    source: SocketAddrV6,
    destination: SocketAddrV6,
    payload: Vec<u8>,
}

/// Ethernet frames of a capture.
fn captured(name: &str) -> Vec<Vec<u8>> {
    let file = fs::File::open(path(name)).expect("a capture");
    let mut reader = PcapReader::new(file).expect("a pcap file");
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        packets.push(packet.expect("a whole packet").data.into_owned());
    }
    packets
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes[offset..offset + N].try_into().expect("inside the packet")
}

/// Ethernet and IPv6: next header, and what follows.
fn ipv6(packet: &[u8]) -> (u8, &[u8]) {
    assert_eq!((array(packet, 12), packet[14] >> 4), ([0x86, 0xdd], 6), "IPv6");
    let length = usize::from(u16::from_be_bytes(array(packet, 18)));
    assert_eq!(packet.len(), 54 + length);
    (packet[20], &packet[54..])
}

/// Judges the UDP datagram `udp` that came in `packet`.
fn udp(packet: &[u8], udp: &[u8]) -> Packet {
    let (source, destination): ([u8; 16], [u8; 16]) = (array(packet, 22), array(packet, 38));
    let (source_port, destination_port) = (u16::from_be_bytes(array(udp, 0)), u16::from_be_bytes(array(udp, 2)));
    let payload = udp[8..].to_vec();
    assert_eq!(usize::from(u16::from_be_bytes(array(udp, 4))), udp.len());
    let length = u16::try_from(payload.len()).expect("a datagram");
    let partial = checksum::partial(&payload);
    let expected = checksum::udp_ipv6(&source, &destination, source_port, destination_port, length, partial);
    assert_eq!(u16::from_be_bytes(array(udp, 6)), expected, "UDP checksum of {}", hex(packet));
    Packet {
        destination_mac: array(packet, 0),
        source: SocketAddrV6::new(source.into(), source_port, 0, 0),
        destination: SocketAddrV6::new(destination.into(), destination_port, 0, 0),
        payload,
    }
}

/// Checks one exchange against the index's word on its NACK; returns how many packets it has.
fn check_exchange(entry: &Value) -> usize {
    let packets: Vec<Packet> = captured(text(entry, "exchange"))
        .iter()
        .map(|packet| match ipv6(packet) {
            (17, datagram) => udp(packet, datagram),
            (other, _) => panic!("next header {other}"),
        })
        .collect();
    let (listener, endpoint) = (address(entry, "source"), address(entry, "destination"));
    let mut kinds = Vec::new();
    for packet in &packets {
        if packet.destination.port() == DATA_PORT {
            kinds.push("repair");
            assert_eq!(packet.payload, datagram(text(entry, "frame")), "{entry}");
            assert!(Frame::parse(&packet.payload).is_ok());
            assert_eq!((*packet.source.ip(), packet.destination), (*endpoint.ip(), address(entry, "repair_to")));
            assert_eq!(packet.destination_mac, group::multicast_mac(&packet.destination.ip().octets()));
        } else if packet.destination == endpoint {
            kinds.push("nack");
            assert_eq!(packet.payload, datagram(text(entry, "file")), "{entry}");
            assert!(Nack::parse(&packet.payload).is_ok());
            assert_eq!(packet.source, listener);
        } else {
            kinds.push("answer");
            assert_eq!(packet.payload, datagram(text(entry, "answer")), "{entry}");
            assert!(Answer::parse(&packet.payload).is_ok());
            assert_eq!((packet.source, packet.destination), (endpoint, listener));
        }
    }
    let expected: &[&str] =
        if entry.get("frame").is_some() { &["nack", "repair", "answer"] } else { &["nack", "answer"] };
    assert_eq!(kinds, expected, "{entry}");
    packets.len()
}

#[test]
fn every_exchange_holds_the_golden_datagrams_with_right_checksums() {
    let nacks: Vec<_> = index().into_iter().filter(|entry| entry["kind"] == "nack").collect();
    let packets: usize = nacks.iter().map(check_exchange).sum();
    assert_eq!(packets, EXCHANGED);
    let seen: BTreeSet<_> = nacks.iter().map(|entry| text(entry, "exchange").to_owned()).collect();
    let files: BTreeSet<_> = names().into_iter().filter(|name| name.starts_with("exchange-")).collect();
    assert_eq!(seen, files);
    assert_eq!(seen.len(), 8);
}

#[test]
fn an_anchor_above_the_mtu_is_one_frame_in_three_ip_fragments() {
    let packets = captured("v6-anchor-in-ipv6-fragments.pcap");
    let mut datagram = Vec::new();
    for (number, packet) in packets.iter().enumerate() {
        // RFC 8200 section 4.5: next header, reserved, offset in bytes with the flag "more", identification.
        let (next, fragment) = ipv6(packet);
        assert_eq!((next, fragment[0]), (44, 17));
        let place = u16::from_be_bytes(array(fragment, 2));
        assert_eq!(usize::from(place & !7), datagram.len());
        assert_eq!(place & 1 != 0, number + 1 < packets.len());
        datagram.extend_from_slice(&fragment[8..]);
    }
    let packet = udp(&packets[0], &datagram);
    let frame = Frame::parse(&packet.payload).expect("a frame");
    assert_eq!((frame.head().version, frame.head().class()), (Version::Anchor, Some(Class::Anchor)));
    assert_eq!(packet.payload.len(), frame.head().header_len + frame.payload().len());
    assert_eq!(frame.head().group_index(&sharding()).map(site_group), Some(*packet.destination.ip()));
    assert_eq!(packet.destination_mac, group::multicast_mac(&packet.destination.ip().octets()));
    let mut written = vec![0xaa; packet.payload.len()];
    assert_eq!(frame.head().write_frame(frame.payload(), &mut written), Some(written.len()));
    assert_eq!(written, packet.payload);
    assert_eq!(packets.len(), 3);
}

#[test]
fn nothing_in_the_directory_is_left_unchecked() {
    let mut names = names();
    names.retain(|name| !name.ends_with(".hex") && !name.starts_with("exchange-"));
    assert_eq!(names, ["index.json", "v6-anchor-in-ipv6-fragments.pcap"]);
}
