//! What is no NACK for us: passed on or dropped as it came, under the counter that names it, and never answered.

use std::net::Ipv6Addr;

use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::SmallRng};
use retry_common::counter::Counter::{
    self, CacheHits, MissesSent, NackRange, NackRequests, NackWrongLength, NackWrongMagic, NackWrongSize,
    NackWrongType, PassedInterface, PassedSource,
};
use retry_testbed::{
    loaded::{Loaded, NACK_ADDRESS, Ran, slow_machine},
    outcome::{Out, hex, once},
    packet::{Checksum, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Extension, PacketBuilder, multicast_mac},
    testrun::Action,
};

use crate::{
    table::{Ask, Scene, asks},
    verdicts::with_program,
};

/// A good NACK for a frame that is there: what is wrong with a stranger is then the only reason for no answer.
fn nack(loaded: &mut Loaded, number: u16, tags: u16) -> PacketBuilder {
    Scene::new(loaded, number, tags).nack(&asks(Ask::Have(0), Out::Pass, &[]))
}

fn unanswered(loaded: &mut Loaded, name: &str, packet: &[u8], action: Action, counted: &[Counter]) {
    let ran = loaded.run(packet).expect("a legal length");
    left_alone(loaded, name, packet, &ran, action, counted);
}

fn left_alone(loaded: &mut Loaded, name: &str, packet: &[u8], ran: &Ran, action: Action, counted: &[Counter]) {
    assert_eq!(ran.counted, once(counted), "{name}: counters\n{}", hex(packet));
    assert_eq!((ran.action, hex(&ran.packet)), (action, hex(packet)), "{name}");
    assert_eq!(loaded.take_events(), [], "{name}: events");
}

#[test]
fn datagrams_of_another_size() {
    with_program("datagrams_of_another_size", |loaded| {
        for tags in 0..=2 {
            let good = nack(loaded, 1_000 + tags, tags);
            for size in (0..=200).filter(|size| *size != 64).chain([1_000, 1_452, 3_300]) {
                let mut bytes = good.payload.clone();
                bytes.resize(size, 0);
                let packet = PacketBuilder { payload: bytes, ..good.clone() };
                let name = format!("{size} bytes, {tags} tags");
                unanswered(loaded, &name, &packet.build(), Action::Drop, &[NackWrongSize]);
            }
        }
    });
}

#[test]
fn datagrams_that_are_no_nack() {
    with_program("datagrams_that_are_no_nack", |loaded| {
        let good = nack(loaded, 1_100, 1);
        let mut with = |at: usize, value: u8, counter| {
            let mut packet = good.clone();
            packet.payload[at] = value;
            let name = format!("byte {at} is {value}");
            unanswered(loaded, &name, &packet.build(), Action::Drop, &[NackRequests, counter]);
        };
        for at in 0..4 {
            for bit in 0..8 {
                with(at, good.payload[at] ^ (1 << bit), NackWrongMagic);
            }
        }
        for kind in (0..=255).filter(|kind| *kind != 0x10) {
            with(6, kind, NackWrongType);
        }
        // Either half of the range: StartSeq alone, then EndSeq alone.
        for at in 16..32 {
            with(at, good.payload[at] ^ 0x40, NackRange);
        }
    });
}

#[test]
fn lengths_that_disagree() {
    with_program("lengths_that_disagree", |loaded| {
        for tags in 0..=2 {
            let good = nack(loaded, 1_200 + tags, tags);
            let udp = |length| PacketBuilder { udp_length: Some(length), ..good.clone() };
            let ip = |length| PacketBuilder { ip_length: Some(length), ..good.clone() };
            let both = |length| PacketBuilder { ip_length: Some(length), ..udp(length) };
            let mut wrong = vec![ip(0), udp(0)];
            wrong.extend((0..=200).filter(|length| *length != 72).flat_map(|length| [udp(length), ip(length)]));
            // Shorter than a UDP header, or longer than what is there.
            wrong.extend((0..8).chain(73..=200).chain([0xFFFF]).map(both));
            for packet in wrong {
                let name = format!("UDP {:?}, IPv6 {:?}, {tags} tags", packet.udp_length, packet.ip_length);
                unanswered(loaded, &name, &packet.build(), Action::Drop, &[NackWrongLength]);
            }
            // They agree on less than is there: a datagram of another size in a padded packet.
            for length in 8..72 {
                let name = format!("{length} of 72 bytes, {tags} tags");
                unanswered(loaded, &name, &both(length).build(), Action::Drop, &[NackWrongSize]);
            }
        }
    });
}

#[test]
fn packets_cut_off_at_every_byte() {
    with_program("packets_cut_off_at_every_byte", |loaded| {
        for tags in 0..=2 {
            let whole = nack(loaded, 1_300 + tags, tags).build();
            let headers = whole.len() - 64;
            for length in 14..whole.len() {
                let name = format!("{length} of {} bytes, {tags} tags", whole.len());
                let (action, counted): (_, &[Counter]) =
                    if length < headers { (Action::Pass, &[]) } else { (Action::Drop, &[NackWrongLength]) };
                unanswered(loaded, &name, &whole[..length], action, counted);
            }
        }
    });
}

#[test]
fn other_peoples_traffic() {
    with_program("other_peoples_traffic", |loaded| {
        let good = nack(loaded, 1_400, 0);
        let three = good.clone().vlan(1).vlan(2).vlan(3);
        let tagged = |tpid| PacketBuilder { vlans: vec![(tpid, 7)], ..good.clone() };
        let extended = |extensions| PacketBuilder { extensions, ..good.clone() };
        let fragment = |offset, more| extended(vec![Extension::Fragment { offset, more, id: 9 }]);
        let to = |address: Ipv6Addr, port: u16| {
            let mut packet = good.clone();
            (packet.dst_mac, packet.dst) = match address.is_multicast() {
                true => (multicast_mac(address), packet.dst),
                false => (packet.dst_mac, packet.dst),
            };
            packet.dst.set_ip(address);
            packet.dst.set_port(port);
            packet
        };
        let to_mac = |dst_mac| PacketBuilder { dst_mac, ..good.clone() };
        let (ours, port) = (*NACK_ADDRESS.ip(), NACK_ADDRESS.port());
        let near = |bit: u32| Ipv6Addr::from(u128::from(ours) ^ (1 << bit));
        let mut strangers = vec![
            ("three tags", three.clone()),
            ("four tags", three.vlan(4)),
            ("a tag of an old kind", tagged(0x9100)),
            ("hop-by-hop options", extended(vec![Extension::HopByHop])),
            ("destination options", extended(vec![Extension::DestinationOptions])),
            ("a routing header", extended(vec![Extension::Routing])),
            ("options before options", extended(vec![Extension::HopByHop, Extension::DestinationOptions])),
            ("a whole datagram in a fragment", fragment(0, false)),
            ("the first fragment", fragment(0, true)),
            ("a later fragment", fragment(64, false)),
            ("IPv4", PacketBuilder { ethertype: 0x0800, ..good.clone() }),
            ("IPv4 behind a tag", PacketBuilder { ethertype: 0x0800, ..tagged(ETHERTYPE_VLAN) }),
            ("ARP", PacketBuilder { ethertype: 0x0806, ..good.clone() }),
            ("a length for an EtherType", PacketBuilder { ethertype: 0x0070, ..good.clone() }),
            ("version 4 under IPv6's EtherType", PacketBuilder { ip_version: 4, ..good.clone() }),
            ("version 0", PacketBuilder { ip_version: 0, ..good.clone() }),
            ("TCP", PacketBuilder { protocol: 6, ..good.clone() }),
            ("ICMPv6", PacketBuilder { protocol: 58, ..good.clone() }),
            ("UDP-Lite", PacketBuilder { protocol: 136, ..good.clone() }),
            ("another port", to(ours, port + 1)),
            ("our port with its bytes swapped", to(ours, port.swap_bytes())),
            ("port 0", to(ours, 0)),
            ("the data port", to(ours, 9001)),
            ("all nodes", to("ff02::1".parse().expect("an address"), port)),
            ("a group of the fabric", to("ff05::b:3".parse().expect("an address"), port)),
            ("the unspecified address", to(Ipv6Addr::UNSPECIFIED, port)),
            ("a group's MAC over our address", to_mac([0x33, 0x33, 0, 0, 0, 1])),
            ("the broadcast MAC over our address", to_mac([0xFF; 6])),
        ];
        strangers.extend((0..128).map(|bit| ("an address that differs in a bit", to(near(bit), port))));
        for (name, packet) in strangers {
            unanswered(loaded, name, &packet.build(), Action::Pass, &[]);
        }
    });
}

#[test]
fn sources_that_cannot_be_answered() {
    with_program("sources_that_cannot_be_answered", |loaded| {
        let good = nack(loaded, 1_500, 0);
        for source in ["::", "ff02::1", "ff05::b:fffe", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            let mut packet = good.clone();
            packet.src.set_ip(source.parse().expect("an address"));
            unanswered(loaded, source, &packet.build(), Action::Pass, &[PassedSource]);
        }
        let mut packet = good;
        packet.src.set_port(0);
        unanswered(loaded, "port 0", &packet.build(), Action::Pass, &[PassedSource]);
    });
}

#[test]
fn nacks_by_another_interface_are_the_sockets() {
    with_program("nacks_by_another_interface_are_the_sockets", |loaded| {
        let packet = nack(loaded, 1_600, 0).build();
        let other = nix::net::if_::if_nametoindex("rt0p").expect("the other end");
        let ran = loaded.run_from(other, &packet).expect("a legal length");
        left_alone(loaded, "the other end", &packet, &ran, Action::Pass, &[PassedInterface]);
    });
}

#[test]
fn what_is_odd_but_right_is_answered() {
    with_program("what_is_odd_but_right_is_answered", |loaded| {
        let good = nack(loaded, 1_700, 2);
        let with = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet.payload[at] = value;
            packet
        };
        // Partial checksums come from senders on this machine; judging them is the NIC's and the stack's part.
        let odd = [
            ("another ProtoVer", with(4, 0x77)),
            ("flags that nobody knows", with(7, 0xF0)),
            ("a SubtreeID", with(40, 0xAA)),
            ("padding", PacketBuilder { trailer: vec![0; 30], ..good.clone() }),
            ("a partial checksum", PacketBuilder { checksum: Checksum::Partial, ..good.clone() }),
            ("no checksum", PacketBuilder { checksum: Checksum::Value(0), ..good.clone() }),
            ("tags in the other order", {
                PacketBuilder { vlans: vec![(ETHERTYPE_VLAN, 5), (ETHERTYPE_QINQ, 6)], ..good.clone() }
            }),
        ];
        for (name, packet) in odd {
            let ran = loaded.run(&packet.build()).expect("a legal length");
            assert_eq!(ran.action, Action::Redirect, "{name}");
            assert!(ran.counted.contains(&(CacheHits, 1)), "{name}: {:?}", ran.counted);
        }
        // A MISS leaves nothing of the padding behind.
        let mut lack = Scene::new(loaded, 1_701, 0).nack(&asks(Ask::Lack, Out::Pass, &[]));
        lack.trailer = vec![0xEE; 300];
        let ran = loaded.run(&lack.build()).expect("a legal length");
        assert_eq!((ran.action, ran.packet.len()), (Action::Redirect, 78));
        assert!(ran.counted.contains(&(MissesSent, 1)));
    });
}

/// Whether these bytes are a NACK for us, read from the specifications a second time.
fn is_nack(bytes: &[u8]) -> bool {
    let word = |at: usize| bytes.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let mut ip = 14;
    while ip < 22 && matches!(word(ip - 2), Some(0x8100 | 0x88A8)) {
        ip += 4;
    }
    let Some(packet) = bytes.get(ip..).filter(|_| word(ip - 2) == Some(0x86DD)) else { return false };
    if packet.len() < 48 + 64 || bytes[0] & 1 == 1 || packet[0] >> 4 != 6 || packet[6] != 17 {
        return false;
    }
    let source = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[8..24]).expect("sixteen"));
    packet[4..6] == [0, 72]
        && packet[44..46] == [0, 72]
        && packet[24..40] == NACK_ADDRESS.ip().octets()
        && packet[42..44] == NACK_ADDRESS.port().to_be_bytes()
        && packet[40..42] != [0, 0]
        && !source.is_multicast()
        && !source.is_unspecified()
        && packet[48..52] == [0xE3, 0xE1, 0xF3, 0xE8]
        && packet[54] == 0x10
        && packet[64..72] == packet[72..80]
}

#[test]
fn random_packets_are_answered_only_when_they_are_nacks() {
    with_program("random_packets_are_answered_only_when_they_are_nacks", |loaded| {
        let seed = std::env::var("RETRY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_121);
        println!("RETRY_SEED={seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let good: Vec<Vec<u8>> = (0..3).map(|tags| nack(loaded, 1_800 + tags, tags).build()).collect();
        let (mut nacks, samples) = (0, if slow_machine() { 2_000 } else { 10_000 });
        for number in 0..samples {
            let mut packet = good[random.random_range(0..good.len())].clone();
            match random.random_range(0..8) {
                0 => {
                    packet = vec![0; random.random_range(14..400)];
                    random.fill_bytes(&mut packet);
                }
                1 => packet.truncate(random.random_range(14..=packet.len())),
                2 => packet.resize(random.random_range(14..300), random.random()),
                3 => packet.swap(random.random_range(0..60), random.random_range(0..60)),
                _ => {
                    for _ in 0..random.random_range(1..4) {
                        let at = random.random_range(0..packet.len());
                        packet[at] ^= 1 << random.random_range(0..8);
                    }
                }
            }
            let name = format!("RETRY_SEED={seed}, packet {number}");
            let ran = loaded.run(&packet).expect("a legal length");
            assert_eq!(loaded.take_events(), [], "{name}");
            if is_nack(&packet) {
                nacks += 1;
                assert_eq!(ran.action, Action::Redirect, "{name}\n{}", hex(&packet));
            } else {
                assert!(matches!(ran.action, Action::Pass | Action::Drop), "{name}: {ran:?}\n{}", hex(&packet));
                assert_eq!(ran.packet, packet, "{name}");
                assert!(ran.action == Action::Pass || !ran.counted.is_empty(), "{name}: dropped without a word");
            }
        }
        assert!(nacks > samples / 20 && nacks < samples / 2, "{nacks} NACKs among {samples}");
    });
}
