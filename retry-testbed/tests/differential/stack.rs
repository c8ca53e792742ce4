//! The kernel path and the socket path get the same raw frames: one endpoint with `-xdp native`, one with `-xdp off` on the
//! real stack, each on a veth in namespaces of its own. Whatever the headers say, both give the same answer or the same
//! silence. Needs root.
//!
//! Long because every class of header that a stranger can write stands here once.

use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddrV6},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use retry_common::{checksum, key::FrameKey};
use retry_testbed::{
    daemon::Daemon,
    net::{
        capture::{Capture, RawSender, is_udp},
        fabric::{Fabric, Host, INTERFACE, group},
        packet::{
            Checksum, ETHERTYPE_QINQ, ETHERTYPE_VLAN, Extension, Packet, PacketBuilder, ParsedPacket, multicast_mac,
        },
    },
    peers::{answer::nack, journal::Journal, publish::Publisher},
    scene::is_root,
};

const FLOW: u64 = 0xD1FF;
/// Frames that both endpoints hold.
const HELD: u64 = 3;
/// Cases drawn at random, after each class by itself.
const RANDOM: usize = 4_000;
/// Frames that are sent before both endpoints have to catch up.
const BURST: usize = 48;
/// How long answers that one endpoint gave may be missing from the other. Only a failure takes it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long answers may come that one endpoint should not have given.
const SETTLE: Duration = Duration::from_millis(300);

/// Of the endpoint, on the NACK interface beside the NACK address.
const SECOND: Ipv6Addr = Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, 0x99);
/// Of the endpoint, on another interface.
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0xFD77, 0, 0, 0, 0, 0, 0, 1);
/// What the endpoint's MAC makes of fe80::/64.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0xFF, 0xFE00, 1);
const ENDPOINT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A raw packet, and how it is sent.
#[derive(Clone)]
struct Case {
    packet: PacketBuilder,
    /// Sent as by a local stack that leaves the checksum to the device.
    offloaded: bool,
    /// As IPv6 fragments.
    fragmented: bool,
}

/// A class of one dimension: its name and what it makes of a good NACK.
struct Twist {
    name: String,
    apply: Apply,
}

type Apply = Box<dyn Fn(&mut Case, &mut SmallRng)>;

fn twist(name: impl Into<String>, apply: impl Fn(&mut Case, &mut SmallRng) + 'static) -> Twist {
    Twist { name: name.into(), apply: Box::new(apply) }
}

fn ethernet() -> Vec<Twist> {
    let to = |name: &str, mac: [u8; 6]| twist(name, move |case, _| case.packet.dst_mac = mac);
    let from = |name: &str, mac: [u8; 6]| twist(name, move |case, _| case.packet.src_mac = mac);
    vec![
        to("another host's MAC", [2, 0, 0, 0, 0, 0x77]),
        to("a MAC that differs in its first byte", [6, 0, 0, 0, 0, 1]),
        to("a MAC that differs in its last byte", [2, 0, 0, 0, 0, 3]),
        to("no MAC", [0; 6]),
        to("a group's MAC", multicast_mac(group(0))),
        to("all nodes' MAC", [0x33, 0x33, 0, 0, 0, 1]),
        to("the broadcast MAC", [0xFF; 6]),
        from("from another MAC", [2, 0, 0, 0, 0, 0x55]),
        from("from our own MAC", ENDPOINT_MAC),
        from("from a group's MAC", [0x33, 0x33, 0, 0, 0, 1]),
        from("from the broadcast MAC", [0xFF; 6]),
        from("from no MAC", [0; 6]),
        twist("EtherType of IPv4", |case, _| case.packet.ethertype = 0x0800),
        twist("a length for an EtherType", |case, _| case.packet.ethertype = 0x0070),
    ]
}

fn vlan() -> Vec<Twist> {
    const Q: u16 = ETHERTYPE_VLAN;
    const AD: u16 = ETHERTYPE_QINQ;
    const TAGS: [&[(u16, u16)]; 21] = [
        &[(Q, 0)],
        &[(Q, 0xA000)],
        &[(Q, 0x1000)],
        &[(Q, 1)],
        &[(Q, 100)],
        &[(Q, 0xA064)],
        &[(Q, 4095)],
        &[(AD, 0)],
        &[(AD, 0xA000)],
        &[(AD, 100)],
        &[(Q, 0), (Q, 0)],
        &[(AD, 0), (Q, 0)],
        &[(Q, 0), (AD, 0)],
        &[(AD, 0), (Q, 100)],
        &[(AD, 100), (Q, 0)],
        &[(AD, 100), (Q, 200)],
        &[(Q, 100), (Q, 200)],
        &[(0x9100, 0)],
        &[(0x9100, 100)],
        &[(Q, 0), (Q, 0), (Q, 0)],
        &[(Q, 0), (Q, 0), (Q, 7)],
    ];
    TAGS.into_iter()
        .map(|tags| twist(format!("tags {tags:x?}"), move |case, _| case.packet.vlans = tags.to_vec()))
        .collect()
}

fn checksums() -> Vec<Twist> {
    let right = |case: &Case| {
        let packet =
            PacketBuilder { vlans: vec![], extensions: vec![], checksum: Checksum::Right, ..case.packet.clone() };
        let bytes = packet.build();
        u16::from_be_bytes([bytes[60], bytes[61]])
    };
    vec![
        twist("a wrong checksum", move |case, random| {
            let wrong = right(case) ^ random.random_range(1..=u16::MAX);
            case.packet.checksum = Checksum::Value(wrong);
        }),
        twist("a checksum with its bytes swapped", move |case, _| {
            case.packet.checksum = Checksum::Value(right(case).swap_bytes());
        }),
        twist("a checksum that is not inverted", move |case, _| case.packet.checksum = Checksum::Value(!right(case))),
        twist("no checksum", |case, _| case.packet.checksum = Checksum::Value(0)),
        twist("ones for a checksum", |case, _| case.packet.checksum = Checksum::Value(0xFFFF)),
        twist("a checksum that the device is to finish", |case, _| {
            case.packet.checksum = Checksum::Partial;
            case.offloaded = true;
        }),
        twist("a sum of zero, sent as ones", |case, _| zero_sum(&mut case.packet, 0xFFFF)),
        twist("a sum of zero, sent as zero", |case, _| zero_sum(&mut case.packet, 0)),
    ]
}

/// Bends the informational bytes so that the right checksum would be zero, and sends this for it.
fn zero_sum(packet: &mut PacketBuilder, sent: u16) {
    if packet.payload.len() < 64 {
        return;
    }
    packet.checksum = Checksum::Right;
    packet.payload[62..64].fill(0);
    let bare = PacketBuilder { vlans: vec![], extensions: vec![], trailer: vec![], ..packet.clone() }.build();
    // The field is the complement of the sum: added to it, the sum is all ones, and its complement zero.
    packet.payload[62..64].copy_from_slice(&bare[60..62]);
    packet.checksum = Checksum::Value(sent);
}

fn sources() -> Vec<Twist> {
    let all = [
        "::",
        "::1",
        "::2",
        "::10.0.0.1",
        "::127.0.0.1",
        "::ffff:0.0.0.0",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:0:10.0.0.1",
        "64:ff9b::a00:1",
        "100::1",
        "2001:db8::5",
        "2002:a00:1::1",
        "fd10::3",
        "fd10::9300",
        "fec0::5",
        "fe80::2",
        "febf::2",
        "ff00::",
        "ff01::1",
        "ff02::1",
        "ff05::b:0",
        "ff3e::b:0",
        "ff0e::1",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    ];
    let own = [Ipv6Addr::new(0xFD10, 0, 0, 0, 0, 0, 0, 1), SECOND, ELSEWHERE, LINK_LOCAL];
    let mut twists: Vec<Twist> = all
        .into_iter()
        .map(|text| text.parse().expect("an address"))
        .chain(own)
        .map(|address: Ipv6Addr| twist(format!("from {address}"), move |case, _| case.packet.src.set_ip(address)))
        .collect();
    twists.push(twist("from our own socket", |case, _| case.packet.src = case.packet.dst));
    twists.push(twist("from port 0", |case, _| case.packet.src.set_port(0)));
    twists.push(twist("from the NACK port", |case, _| case.packet.src.set_port(9300)));
    twists
}

/// Addresses above that the endpoint would ask its link for.
const NEIGHBOURS: [&str; 4] = ["fd10::3", "fd10::9300", "fe80::2", "febf::2"];

fn lengths() -> Vec<Twist> {
    let mut twists = Vec::new();
    for length in [0, 7, 8, 9, 63, 64, 71, 73, 80, 136, 0xFFFF] {
        twists.push(twist(format!("UDP length {length}"), move |case, _| case.packet.udp_length = Some(length)));
        twists.push(twist(format!("IPv6 length {length}"), move |case, _| case.packet.ip_length = Some(length)));
        twists.push(twist(format!("both lengths {length}"), move |case, _| {
            (case.packet.udp_length, case.packet.ip_length) = (Some(length), Some(length));
        }));
    }
    for length in [1, 6, 30, 200] {
        twists.push(twist(format!("{length} bytes of padding"), move |case, random| {
            case.packet.trailer = (0..length).map(|_| random.random()).collect();
        }));
        twists.push(twist(format!("{length} bytes between datagram and end"), move |case, random| {
            let udp = 8 + case.packet.payload.len();
            case.packet.trailer = (0..length).map(|_| random.random()).collect();
            case.packet.ip_length = u16::try_from(udp + length).ok();
        }));
        twists.push(twist(format!("{length} bytes after a packet that is one shorter"), move |case, random| {
            let udp = 8 + case.packet.payload.len();
            case.packet.trailer = (0..length).map(|_| random.random()).collect();
            case.packet.ip_length = u16::try_from(udp + length + 1).ok();
        }));
    }
    for length in [0, 1, 16, 56, 63, 65, 128, 1_000] {
        twists.push(twist(format!("{length} bytes of payload"), move |case, _| case.packet.payload.resize(length, 0)));
    }
    twists.push(twist("UDP length 0 under the checksum of the packet's length", |case, _| {
        let bare = PacketBuilder { vlans: vec![], extensions: vec![], trailer: vec![], ..case.packet.clone() };
        let bytes = PacketBuilder { checksum: Checksum::Right, udp_length: None, ..bare }.build();
        let (length, right) = ([bytes[58], bytes[59]], [bytes[60], bytes[61]]);
        let value = checksum::update(u16::from_be_bytes(right), u16::from_be_bytes(length), 0);
        (case.packet.udp_length, case.packet.checksum) = (Some(0), Checksum::Value(value));
    }));
    twists.push(twist("a shorter datagram in a NACK's length", |case, _| {
        case.packet.payload.truncate(56);
        (case.packet.ip_length, case.packet.trailer) = (Some(72), vec![0; 8]);
    }));
    twists
}

fn extensions() -> Vec<Twist> {
    use Extension::{DestinationOptions, Fragment, HopByHop, Jumbo, Routing};
    let fragment = |offset, more| Fragment { offset, more, id: 0 };
    let all: [(&str, Vec<Extension>); 13] = [
        ("hop-by-hop options", vec![HopByHop]),
        ("destination options", vec![DestinationOptions]),
        ("both options", vec![HopByHop, DestinationOptions]),
        ("options in the wrong order", vec![DestinationOptions, HopByHop]),
        ("a routing header", vec![Routing]),
        ("options and routing", vec![HopByHop, Routing]),
        ("a jumbo length", vec![Jumbo(80)]),
        ("a jumbo length above 65,535", vec![Jumbo(65_536)]),
        ("a fragment that is the whole", vec![fragment(0, false)]),
        ("the first fragment alone", vec![fragment(0, true)]),
        ("the last fragment alone", vec![fragment(64, false)]),
        ("options before a fragment", vec![HopByHop, fragment(0, false)]),
        ("options in a fragment", vec![fragment(0, false), DestinationOptions]),
    ];
    let mut twists: Vec<Twist> = all
        .into_iter()
        .map(|(name, extensions)| {
            twist(name, move |case, random| {
                case.packet.extensions.clone_from(&extensions);
                for extension in &mut case.packet.extensions {
                    if let Fragment { id, .. } = extension {
                        *id = random.random();
                    }
                    if matches!(extension, Jumbo(_)) {
                        case.packet.ip_length = Some(0);
                    }
                }
            })
        })
        .collect();
    twists.push(twist("two fragments", |case, _| case.fragmented = true));
    for protocol in [0, 6, 43, 44, 51, 58, 59, 60, 136, 140] {
        twists.push(twist(format!("next header {protocol}"), move |case, _| case.packet.protocol = protocol));
    }
    twists
}

fn header() -> Vec<Twist> {
    let mut twists = Vec::new();
    for version in [0, 4, 5, 7, 15] {
        twists.push(twist(format!("version {version}"), move |case, _| case.packet.ip_version = version));
    }
    for hops in [0, 1, 2, 255] {
        twists.push(twist(format!("hop limit {hops}"), move |case, _| case.packet.hop_limit = hops));
    }
    for class in [1, 2, 3, 0xB8, 0xFF] {
        twists.push(twist(format!("traffic class {class}"), move |case, _| case.packet.traffic_class = class));
    }
    twists.push(twist("a flow label", |case, random| case.packet.flow_label = random.random()));
    for address in ["fd10::99", "fe80::ff:fe00:1", "fd77::1", "::1", "::", "ff02::1", "ff05::b:0", "fd10::2"] {
        let to: Ipv6Addr = address.parse().expect("an address");
        twists.push(twist(format!("to {address}"), move |case, _| {
            case.packet.dst.set_ip(to);
            if to.is_multicast() {
                case.packet.dst_mac = multicast_mac(to);
            }
        }));
    }
    for port in [0, 9001, 9301] {
        twists.push(twist(format!("to port {port}"), move |case, _| case.packet.dst.set_port(port)));
    }
    twists
}

fn payload() -> Vec<Twist> {
    let byte = |name: &str, at: usize, value: u8| {
        twist(name, move |case, _| {
            if let Some(byte) = case.packet.payload.get_mut(at) {
                *byte = value;
            }
        })
    };
    let ask = |name: &str, seq_num: u64| {
        twist(name, move |case, _| case.packet.payload = nack(FrameKey::new(FLOW, seq_num)).to_vec())
    };
    vec![
        ask("another frame", 2),
        ask("an odd frame", 3),
        ask("a miss", 77),
        byte("wrong magic", 0, 0),
        byte("wrong type", 6, 0x11),
        byte("a range", 31, 9),
        byte("a flag", 7, 0x80),
        byte("a SubtreeID", 40, 0xAB),
    ]
}

/// Every dimension, and how many cases of the random sample in a hundred are twisted in it.
fn dimensions() -> Vec<(u32, Vec<Twist>)> {
    vec![
        (15, ethernet()),
        (15, vlan()),
        (20, checksums()),
        (30, sources()),
        (15, lengths()),
        (10, extensions()),
        (15, header()),
        (40, payload()),
    ]
}

fn plain(client: Ipv6Addr, endpoint: Ipv6Addr, port: u16) -> Case {
    let (from, to) = (SocketAddrV6::new(client, port, 0, 0), SocketAddrV6::new(endpoint, 9300, 0, 0));
    Case { packet: PacketBuilder::udp(from, to, &nack(FrameKey::new(FLOW, 1))), offloaded: false, fragmented: false }
}

/// One endpoint, the link to it and what it said.
struct Side<'a> {
    name: &'static str,
    _daemon: Daemon<'a>,
    sender: RawSender,
    unfinished: RawSender,
    capture: Capture,
    answers: Answers,
}

/// What went to an address and port: source, VLAN ids, hop limit and payload of each datagram.
type Answers = BTreeMap<(Ipv6Addr, u16), Vec<(SocketAddrV6, Vec<u16>, u8, Vec<u8>)>>;

impl<'a> Side<'a> {
    fn start(name: &'static str, endpoint: &'a Host, client: &Host) -> Self {
        let gateway = client.addr.to_string();
        let lo = format!("{ELSEWHERE}/128");
        endpoint.add_address(SECOND).expect("a second address");
        endpoint.ns.run(&["ip", "-6", "addr", "add", &lo, "dev", "lo"]).expect("an address on lo");
        endpoint.ns.run(&["ip", "-6", "route", "add", "default", "via", &gateway]).expect("a route");
        for neighbour in NEIGHBOURS {
            let mac = "02:00:00:00:00:02";
            let argv = ["ip", "-6", "neigh", "replace", neighbour, "lladdr", mac, "dev", INTERFACE, "nud", "permanent"];
            endpoint.ns.run(&argv).expect("a neighbour");
        }
        // So that what the client leaves to the device stays unfinished on the way.
        client.ns.run(&["ethtool", "-K", INTERFACE, "tx", "on"]).expect("offload");
        let binary = Daemon::binary().expect("xtask names the daemon's binary");
        let address = endpoint.addr.to_string();
        let mut flags = vec!["-xdp", name, "-cache-memory", "16m", "-cache-memory-long", "16m", "-nack-workers", "1"];
        flags.extend(["-nack-addr", &address]);
        flags.extend(["-beacon-flags-unicast", "-beacon-flags-multicast=false", "-mc-iface", INTERFACE]);
        // Sources of all kinds, and fewer hops than the least: neither path looks at what they send.
        flags.extend(["-acl-deny", "fd10::3,2001:db8::/32,febf::/16,::ffff:0:0/96", "-hop-limit-min", "2"]);
        for limit in ["-rl-ip-rate", "-rl-chain-rate", "-rl-sequence-max", "-rl-group-rate"] {
            flags.extend([limit, "0"]);
        }
        let daemon = Daemon::start(&binary, &endpoint.ns, &flags).expect("a daemon");
        let publish = Publisher::open(&client.ns, Arc::new(Journal::new())).expect("a publisher");
        for (seq_num, length) in (1..=HELD).zip([308, 0, 777]) {
            publish.send(group(0), &frame(seq_num, length)).expect("a frame leaves");
        }
        let deadline = Instant::now() + PATIENCE;
        while daemon.metrics().expect("a scrape").count("bre_frames_cached_total", &[]) < HELD {
            assert!(Instant::now() < deadline, "{name}: the frames do not arrive\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            name,
            _daemon: daemon,
            sender: RawSender::open(&client.ns, INTERFACE).expect("a raw socket"),
            unfinished: RawSender::open_unfinished(&client.ns, INTERFACE).expect("a raw socket"),
            capture: Capture::start(&client.ns, INTERFACE).expect("a capture"),
            answers: Answers::new(),
        }
    }

    fn send(&self, case: &Case) {
        let packet = &case.packet;
        let sent = if case.fragmented {
            let id = u32::from(packet.src.port());
            packet.fragments(40, id).iter().try_for_each(|piece| self.sender.send(piece))
        } else if case.offloaded {
            let udp = 54 + 4 * packet.vlans.len() + 8 * packet.extensions.len();
            self.unfinished.send_unfinished(&packet.build(), u16::try_from(udp).expect("short"))
        } else {
            self.sender.send(&packet.build())
        };
        sent.expect("a raw frame leaves");
    }

    /// Waits until the NACKs from these ports, which nothing is wrong with, have their answers.
    fn catch_up(&mut self, ports: &[u16]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.collect();
            let has = |port: &u16| self.answers.keys().any(|(_, to)| to == port);
            if ports.iter().all(has) {
                return;
            }
            assert!(Instant::now() < deadline, "-xdp {}: no answer to a plain NACK", self.name);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn collect(&mut self) {
        for packet in self.capture.take().iter().filter(|packet| is_udp(&packet.bytes)) {
            let checked = Packet::check(&packet.bytes).map_err(|error| format!("-xdp {}: {error}", self.name));
            let ParsedPacket { src, dst, vlans, hop_limit, payload, .. } = checked.expect("answers are right packets");
            // Beacons are no answers.
            if !dst.ip().is_multicast() {
                let answers = self.answers.entry((*dst.ip(), dst.port())).or_default();
                answers.push((src, vlans, hop_limit, payload));
                answers.sort();
            }
        }
    }
}

fn frame(seq_num: u64, payload: u32) -> Vec<u8> {
    let mut frame = vec![0; 92];
    frame[..8].copy_from_slice(&[0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 2, 0]);
    frame[8..40].fill(0x11);
    frame[40..56].copy_from_slice(&FrameKey::new(FLOW, seq_num).to_bytes());
    frame[88..92].copy_from_slice(&payload.to_be_bytes());
    frame.extend((0..payload).map(|at| u8::try_from(at % 251).expect("below 251")));
    frame
}

/// Lengths and types of the answers to one address and port.
fn kinds(answers: &Answers, to: (Ipv6Addr, u16)) -> Vec<(usize, u8, Vec<u16>)> {
    let kind = |(_, vlans, _, payload): &(SocketAddrV6, Vec<u16>, u8, Vec<u8>)| {
        (payload.len(), payload.get(6).copied().unwrap_or_default(), vlans.clone())
    };
    answers.get(&to).map(|answers| answers.iter().map(kind).collect()).unwrap_or_default()
}

/// Every class by itself, then the sample.
fn draw(client: Ipv6Addr, endpoint: Ipv6Addr, random: &mut SmallRng) -> Vec<(String, Case)> {
    let dimensions = dimensions();
    let mut ports = 1_024..;
    let mut good = || plain(client, endpoint, ports.find(|port| ![9_001, 9_300].contains(port)).expect("few cases"));
    let mut cases = vec![("nothing".to_owned(), good())];
    for twist in dimensions.iter().flat_map(|(_, twists)| twists) {
        let mut case = good();
        (twist.apply)(&mut case, random);
        cases.push((twist.name.clone(), case));
    }
    while cases.len() < RANDOM {
        let (mut case, mut names) = (good(), Vec::new());
        for (share, twists) in &dimensions {
            if random.random_ratio(*share, 100) {
                let twist = twists.choose(random).expect("one at least");
                (twist.apply)(&mut case, random);
                names.push(twist.name.as_str());
            }
        }
        // Only a whole datagram without extensions is left to a device by the stacks that we know.
        if case.offloaded && (case.fragmented || names.len() > 2) {
            continue;
        }
        cases.push((names.join(" + "), case));
    }
    cases
}

#[test]
fn both_paths_answer_the_same_packets() {
    const NAME: &str = "both_paths_answer_the_same_packets";
    if !is_root(NAME) {
        return;
    }
    let seed = std::env::var("RETRY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_129);
    println!("RETRY_SEED={seed}");
    let fabrics = ["native", "off"].map(|_| Fabric::flat(1_500).expect("a fabric"));
    let hosts = |at: usize| {
        let host = |name| fabrics[at].host(name).expect("two hosts");
        (host("endpoint"), host("client"))
    };
    let ((native_end, native_client), (off_end, off_client)) = (hosts(0), hosts(1));
    let mut sides = [Side::start("native", native_end, native_client), Side::start("off", off_end, off_client)];
    let (client, endpoint) = (native_client.addr, native_end.addr);

    let cases = draw(client, endpoint, &mut SmallRng::seed_from_u64(seed));
    let mut sentinels = 40_000u16..;
    for burst in cases.chunks(BURST) {
        // One that the program answers, and one that is the stack's on both sides.
        let mut last = [0; 2].map(|_| plain(client, endpoint, sentinels.next().expect("few bursts")));
        last[1].packet.extensions = vec![Extension::HopByHop];
        let ports = last.each_ref().map(|case| case.packet.src.port());
        for side in &mut sides {
            burst.iter().map(|(_, case)| case).chain(&last).for_each(|case| side.send(case));
        }
        sides.iter_mut().for_each(|side| side.catch_up(&ports));
    }
    // The one difference: what a device was to finish is known to the stack by a mark, and to XDP by its value alone.
    let forged = Case {
        packet: PacketBuilder { checksum: Checksum::Partial, ..plain(client, endpoint, 65_000).packet },
        ..plain(client, endpoint, 65_000)
    };
    let last = plain(client, endpoint, 65_001);
    for side in &mut sides {
        side.send(&forged);
        side.send(&last);
        side.catch_up(&[65_001]);
    }
    let deadline = Instant::now() + PATIENCE;
    while sides[0].answers.remove(&(client, 65_000)).is_none() {
        assert!(Instant::now() < deadline, "native does not answer an unfinished checksum");
        sides[0].collect();
    }

    let deadline = Instant::now() + PATIENCE;
    loop {
        sides.iter_mut().for_each(Side::collect);
        sides[0].answers.remove(&(client, 65_000));
        if sides[0].answers == sides[1].answers || Instant::now() > deadline {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(SETTLE);
    sides.iter_mut().for_each(Side::collect);
    sides[0].answers.remove(&(client, 65_000));

    let [native, off] = sides.each_ref().map(|side| &side.answers);
    let mut differences = Vec::new();
    let (mut answered, mut silent) = (0, 0);
    for (name, case) in &cases {
        let to = (*case.packet.src.ip(), case.packet.src.port());
        if native.get(&to) != off.get(&to) {
            let (native, off) = (kinds(native, to), kinds(off, to));
            // Those to one port cannot be told apart, and are many.
            let text = format!("{name}: native {native:x?}, off {off:x?}");
            differences.push(text.chars().take(200).collect::<String>());
        }
        *(if off.contains_key(&to) { &mut answered } else { &mut silent }) += 1;
    }
    println!("{} packets, {answered} answered, {silent} not", cases.len());
    assert!(
        differences.is_empty(),
        "RETRY_SEED={seed}: {} of {} packets differ, length, type and VLANs of the answers:\n{}",
        differences.len(),
        cases.len(),
        differences.iter().take(200).cloned().collect::<Vec<_>>().join("\n")
    );
    assert!(native == off, "answers to no NACK");
    assert!(answered > RANDOM / 8 && silent > RANDOM / 4, "{answered} answered, {silent} not");
}
