//! Two and three packets for one: live NACKs over a veth pair, and every byte of what comes back, on both interfaces.
//! Long because the rig, the plans and the three ways in belong to one table.

use std::{
    io::IoSlice,
    net::{SocketAddrV6, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn6, sendmsg},
};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use retry_common::{
    abi::{EventKind, Settings, setting_flag as flag},
    counter::{Counter, Counters},
    holddown::HoldDown,
    key::FrameKey,
};
use retry_testbed::{
    net::{
        capture::{Capture, Captured, RawSender, is_udp},
        fabric::{DATA_PORT, Fabric, Host, INTERFACE, group},
        netns::host_command,
        packet::{Packet, PacketBuilder},
    },
    peers::answer::nack_with_flags,
    scene::is_root,
    xdp::{
        expect::{back, hex, once, role},
        fixture::{EGRESS_ADDRESS, Interface, Loaded, MULTICAST_HOPS, NACK_ADDRESS, difference, slow_machine},
    },
};

use crate::table::HOLD_NS;

/// The second interface of both hosts, which only multicast repairs leave by.
const OTHER: &str = "eth1";
const MTU: u16 = 9_000;
const WAIT: Duration = Duration::from_secs(3);
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 0xE], [2, 0, 0, 0, 0, 0xF]];
const GROUP: u16 = 3;
const PORT: u16 = 40_000;
const LIFE: Duration = Duration::from_secs(3_600);
const ACK_MULTICAST: u8 = 0x01;
const ACK_UNICAST: u8 = 0x02;

/// The program on one of two hosts, and captures on the other.
struct Rig {
    loaded: Loaded,
    plain: Settings,
    sender: RawSender,
    near: Capture,
    far: Capture,
    fabric: Fabric,
    egress_here: bool,
    next: u64,
}

impl Rig {
    fn new(egress_here: bool) -> Self {
        Self::on(Fabric::flat(MTU).expect("root and the tools"), egress_here).expect("the kernel takes the program")
    }

    fn on(fabric: Fabric, egress_here: bool) -> anyhow::Result<Self> {
        let (endpoint, client) = (&fabric.hosts()[0], &fabric.hosts()[1]);
        second_link(endpoint, client);
        let loaded = endpoint.ns.enter(|| {
            let here = Interface::named(INTERFACE, MACS[0]).expect("it is there");
            let other = Interface::named(OTHER, MACS[1]).expect("it is there");
            Loaded::open(&here, &[other], egress_here)
        })?;
        let sender = RawSender::open(&client.ns, INTERFACE).expect("root");
        let near = Capture::start(&client.ns, INTERFACE).expect("root");
        let far = Capture::start(&client.ns, OTHER).expect("root");
        Ok(Self { plain: loaded.settings(), loaded, sender, near, far, fabric, egress_here, next: 0 })
    }

    fn client(&self) -> &Host {
        &self.fabric.hosts()[1]
    }

    /// A fresh frame of this length in the log.
    fn frame(&mut self, length: usize) -> (FrameKey, Vec<u8>) {
        self.next += 1;
        let key = FrameKey::new(0xC10E, self.next);
        let mut bytes = vec![0; length];
        SmallRng::seed_from_u64(self.next).fill_bytes(&mut bytes);
        self.loaded.put(key, GROUP, &bytes, LIFE, false);
        (key, bytes)
    }

    fn set(&mut self, flags: u32) {
        let here = if self.egress_here { flag::EGRESS_HERE } else { 0 };
        let hold_down = HoldDown { ours_ns: HOLD_NS, others_ns: 0 };
        self.loaded.set(Settings { flags: flags | here, hold_down, ..self.plain });
    }

    fn nack(&self, key: FrameKey, flags: u8) -> PacketBuilder {
        let source = SocketAddrV6::new(self.client().addr, PORT, 0, 0);
        let mut nack = PacketBuilder::udp(source, NACK_ADDRESS, &nack_with_flags(key, flags));
        nack.src_mac = self.client().mac;
        nack.flow_label = 0x1_2345;
        nack
    }

    /// What arrives by both interfaces: so many UDP packets, and none after them.
    fn arrived(&self, near: usize, far: usize) -> [Vec<Vec<u8>>; 2] {
        let udp = |packet: &Captured| is_udp(&packet.bytes);
        [(&self.near, near), (&self.far, far)].map(|(capture, count)| {
            let mut packets = capture.wait(count, WAIT, udp);
            packets.extend(capture.take());
            packets.into_iter().filter(udp).map(|packet| packet.bytes).collect()
        })
    }
}

fn second_link(endpoint: &Host, client: &Host) {
    let add = ["ip", "link", "add", OTHER, "type", "veth", "peer", "name", OTHER, "netns", client.ns.name()];
    endpoint.ns.run(&add).expect("a second link");
    let mtu = MTU.to_string();
    for host in [endpoint, client] {
        host.ns.quiet_ipv6(OTHER).expect("it is there");
        host.ns.run(&["ip", "link", "set", OTHER, "mtu", &mtu, "up"]).expect("ip works");
        // Only on an interface that is up does GRO make its peer a target of redirects.
        host.ns.run(&["ethtool", "-K", OTHER, "tx", "off", "gro", "on"]).expect("ethtool works");
    }
}

/// What leaves for one NACK.
#[derive(Clone, Copy, Debug)]
struct Plan {
    name: &'static str,
    flags: u32,
    proxied: bool,
    roles: u8,
}

const fn plan(name: &'static str, flags: u32, roles: u8) -> Plan {
    Plan { name, flags, proxied: false, roles }
}

/// All that a broadcast can be. Multicast stands for both interfaces.
const PLANS: [Plan; 6] = [
    plan("ACK and unicast", flag::UNICAST, role::ACK | role::UNI),
    plan("ACK and multicast", flag::MULTICAST, role::ACK | role::MULTI),
    plan("ACK, unicast and multicast", flag::UNICAST | flag::MULTICAST, role::ACK | role::UNI | role::MULTI),
    plan("multicast alone", flag::MULTICAST | flag::SUPPRESS_ACK, role::MULTI),
    plan("both without ACK", flag::UNICAST | flag::MULTICAST | flag::SUPPRESS_ACK, role::UNI | role::MULTI),
    Plan { proxied: true, ..plan("for another endpoint", flag::MULTICAST, role::ACK | role::UNI | role::MULTI) },
];

impl Plan {
    const fn has(self, role: u8) -> bool {
        self.roles & role != 0
    }

    fn counted(self) -> Vec<(Counter, u64)> {
        let all = [
            (Counter::NackRequests, true),
            (Counter::CacheHits, true),
            (Counter::Retransmits, self.has(role::MULTI)),
            (Counter::UnicastRetransmits, self.has(role::UNI)),
            (Counter::AcksSent, self.has(role::ACK)),
        ];
        all.into_iter().filter(|(_, wanted)| *wanted).map(|(counter, _)| (counter, 1)).collect()
    }

    /// The packets that must come back: by the NACK's interface with the ACK first, and by the other.
    fn packets(self, nack: &PacketBuilder, key: FrameKey, frame: &[u8], egress_here: bool) -> [Vec<Vec<u8>>; 2] {
        let (mut near, mut far) = (Vec::new(), Vec::new());
        if self.has(role::ACK) {
            let unicast = if self.has(role::UNI) { ACK_UNICAST } else { 0 };
            let multicast = if self.has(role::MULTI) { ACK_MULTICAST } else { 0 };
            let head = [0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 0x12, unicast | multicast];
            near.push(back(nack, &[&head[..], &key.seq_num().to_be_bytes()].concat()));
        }
        if self.has(role::UNI) {
            near.push(back(nack, frame));
        }
        if self.has(role::MULTI) {
            let [here, other] = MACS.map(|mac| multicast(mac, frame));
            if egress_here {
                near.push(here);
            }
            far.push(other);
        }
        [near, far]
    }
}

fn multicast(mac: [u8; 6], frame: &[u8]) -> Vec<u8> {
    let source = SocketAddrV6::new(EGRESS_ADDRESS, NACK_ADDRESS.port(), 0, 0);
    let mut packet = PacketBuilder::udp(source, SocketAddrV6::new(group(GROUP), DATA_PORT, 0, 0), frame);
    packet.src_mac = mac;
    packet.hop_limit = MULTICAST_HOPS;
    packet.build()
}

fn listed(packets: &[Vec<u8>]) -> String {
    packets.iter().map(|packet| format!("{} bytes\n{}\n", packet.len(), hex(packet))).collect()
}

/// Live traffic needs more than the tables do.
fn skipped(test: &str) -> bool {
    for tool in [["ip", "netns", "list"], ["ethtool", "--version", ""]] {
        let argv: Vec<&str> = tool.into_iter().filter(|word| !word.is_empty()).collect();
        if let Err(why) = host_command(&argv) {
            println!("SKIP {test}: {why:#}");
            return true;
        }
    }
    !is_root(test)
}

/// True when this kernel is at least that.
fn linux(major: u32, minor: u32) -> bool {
    let release = nix::sys::utsname::uname().expect("a kernel");
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// How a NACK comes to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Straight into the program, in a page of its own as NICs give it: room for any frame.
    Page,
    /// As bytes over the veth pair: in a buffer just large enough.
    Raw,
    /// From a listener's socket: in such a buffer too.
    Socket,
}

/// How the answers to one NACK came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The ACK first, or no ACK wanted.
    AckFirst,
    /// Frames in clones, and the ACK last: the NACK's buffer had no room.
    AckLast,
    /// To the daemon, because there was no room and no ACK to make of the original.
    HandedOver,
}

/// Sends one NACK and compares every packet that comes back.
fn ask(rig: &mut Rig, plan: Plan, from: From, length: usize) -> Way {
    let name = format!("{}, {from:?}, {length} bytes, egress here {}", plan.name, rig.egress_here);
    let (key, frame) = rig.frame(length);
    let mut nack = rig.nack(key, u8::from(plan.proxied));
    let before = rig.loaded.counters().expect("readable");
    match from {
        From::Raw => rig.sender.send(&nack.build()).expect("sent"),
        From::Page => {
            let ns = &rig.fabric.hosts()[0].ns;
            ns.enter(|| rig.loaded.run_live(&nack.build())).expect("the kernel runs it");
        }
        From::Socket => {
            nack.flow_label = 0;
            let socket = rig.client().ns.enter(|| UdpSocket::bind(("::", PORT))).expect("a socket");
            socket.send_to(&nack.payload, NACK_ADDRESS).expect("sent");
        }
    }
    let [near, far] = plan.packets(&nack, key, &frame, rig.egress_here);
    // What is handed over, which only a NACK without ACK may be, is known before anything could arrive.
    let event = rig.loaded.take_events().pop();
    if let Some(event) = event {
        assert!(from != From::Page && !plan.has(role::ACK), "{name}: handed over");
        assert_eq!((event.key, event.kind), (key, EventKind::Send as u8), "{name}");
        let wanted = [Counter::NackRequests, Counter::CacheHits, Counter::HandedOver];
        assert_eq!(counted(rig, &before), once(&wanted), "{name}");
        return Way::HandedOver;
    }
    let [got_near, got_far] = rig.arrived(near.len(), far.len());
    for packet in got_near.iter().chain(&got_far) {
        let checked = Packet::check(packet);
        assert!(checked.is_ok(), "{name}: {checked:?}");
    }
    assert_eq!(listed(&got_far), listed(&far), "{name}: the other interface");
    assert_eq!(counted(rig, &before), plan.counted(), "{name}");
    let mut last = near.clone();
    if plan.has(role::ACK) {
        last.rotate_left(1);
    }
    if from != From::Page && got_near == last && got_near != near {
        return Way::AckLast;
    }
    assert_eq!(listed(&got_near), listed(&near), "{name}");
    Way::AckFirst
}

fn counted(rig: &Rig, before: &Counters) -> Vec<(Counter, u64)> {
    difference(before, &rig.loaded.counters().expect("readable"))
}

#[test]
fn every_plan_byte_for_byte() {
    if skipped("every_plan_byte_for_byte") {
        return;
    }
    let lengths = [66, 67, 399, 400, 1_401, 1_452, 2_999, 3_299, 3_300];
    let lengths = if slow_machine() { &[399, 3_200][..] } else { &lengths[..] };
    for egress_here in [true, false] {
        let mut rig = Rig::new(egress_here);
        // Before 6.3 a clone of such a packet holds the wrong bytes; then veth copies every packet into a page instead.
        let from = if linux(6, 3) { From::Page } else { From::Raw };
        for plan in PLANS {
            rig.set(plan.flags);
            for &length in lengths {
                assert_eq!(ask(&mut rig, plan, from, length), Way::AckFirst);
            }
        }
    }
}

#[test]
fn a_packet_without_room_carries_the_ack_and_its_clones_the_frames() {
    if skipped("a_packet_without_room_carries_the_ack_and_its_clones_the_frames") {
        return;
    }
    let mut seen = Vec::new();
    for egress_here in [true, false] {
        let mut rig = Rig::new(egress_here);
        for plan in PLANS {
            rig.set(plan.flags);
            for length in [66, 400, 1_401, 3_391, 3_392] {
                seen.push(ask(&mut rig, plan, From::Socket, length));
                seen.push(ask(&mut rig, plan, From::Raw, length));
            }
        }
    }
    // Linux 6.1 copies every packet that a veth takes in to a page, where there is room.
    let ways: &[Way] = if linux(6, 3) { &[Way::AckFirst, Way::AckLast, Way::HandedOver] } else { &[Way::AckFirst] };
    for way in ways {
        let count = seen.iter().filter(|seen| *seen == way).count();
        assert!(count > 10, "{way:?} {count} times of {}", seen.len());
    }
}

/// The emulated cards of the guests are on one link. Since Linux 6.3 their driver takes packets of several buffers; before, it
/// takes the program at a lower MTU only, and the refusal says so.
#[test]
fn emulated_cards_answer_at_any_mtu_that_they_take() {
    if std::env::var_os("RETRY_CARDS").is_none() {
        println!("SKIP emulated_cards_answer_at_any_mtu_that_they_take: it needs the cards of the suite `kernels`");
        return;
    }
    let fabric = Fabric::of_cards(["eth0", "eth1"], MTU).expect("two cards");
    let mut rig = if linux(6, 3) {
        Rig::on(fabric, true).expect("the driver takes the program")
    } else {
        let error = fabric.hosts()[0].ns.enter(|| {
            let here = Interface::named(INTERFACE, MACS[0]).expect("it is there");
            Loaded::open(&here, &[], true)
        });
        let error = format!("{:#}", error.expect_err("too large an MTU"));
        assert!(error.contains("the MTU 9000 is too large for native XDP by this driver, virtio_net"), "{error}");
        for host in fabric.hosts() {
            host.ns.run(&["ip", "link", "set", INTERFACE, "mtu", "1500"]).expect("ip works");
        }
        Rig::on(fabric, true).expect("the driver takes the program")
    };
    let lengths = if linux(6, 3) { &[66, 400, 3_200][..] } else { &[66, 400, 1_452][..] };
    for plan in PLANS {
        rig.set(plan.flags);
        for &length in lengths {
            for from in [From::Raw, From::Socket] {
                assert_eq!(ask(&mut rig, plan, from, length), Way::AckFirst);
            }
        }
    }
}

#[test]
fn sixty_four_nacks_at_once_are_not_mixed_up() {
    if skipped("sixty_four_nacks_at_once_are_not_mixed_up") {
        return;
    }
    const NACKS: usize = 64;
    for plan in PLANS.into_iter().filter(|plan| plan.has(role::ACK)) {
        let mut rig = Rig::new(true);
        rig.set(plan.flags);
        let lengths = [66, 67, 80, 400, 1_452, 3_392];
        let frames: Vec<_> = (0..NACKS).map(|number| rig.frame(lengths[number % lengths.len()])).collect();
        let nacks: Vec<PacketBuilder> = frames.iter().map(|(key, _)| rig.nack(*key, u8::from(plan.proxied))).collect();
        let before = rig.loaded.counters().expect("readable");
        burst(&rig, &nacks);
        let (mut near, mut far) = (Vec::new(), Vec::new());
        for (nack, (key, frame)) in nacks.iter().zip(&frames) {
            let nack = PacketBuilder { flow_label: 0, ..nack.clone() };
            let [here, other] = plan.packets(&nack, *key, frame, true);
            near.extend(here);
            far.extend(other);
        }
        let [mut got_near, mut got_far] = rig.arrived(near.len(), far.len());
        // Each NACK's own packets keep their order, as the tests above show; those of a burst need not.
        for packets in [&mut near, &mut far, &mut got_near, &mut got_far] {
            packets.sort();
        }
        let name = plan.name;
        assert_eq!((got_near.len(), got_far.len()), (near.len(), far.len()), "{name}");
        assert!(got_near == near && got_far == far, "{name}: other packets than wanted");
        let many = u64::try_from(NACKS).expect("small");
        let wanted: Vec<_> = plan.counted().into_iter().map(|(counter, _)| (counter, many)).collect();
        assert_eq!(counted(&rig, &before), wanted, "{name}");
    }
}

/// Many NACKs in one system call, cut apart by the stack: the driver gets them in one batch.
fn burst(rig: &Rig, nacks: &[PacketBuilder]) {
    let payload: Vec<u8> = nacks.iter().flat_map(|nack| nack.payload.clone()).collect();
    let socket = rig.client().ns.enter(|| UdpSocket::bind(("::", PORT))).expect("a socket");
    let to = SockaddrIn6::from(NACK_ADDRESS);
    let control = [ControlMessage::UdpGsoSegments(&64)];
    match sendmsg(socket.as_raw_fd(), &[IoSlice::new(&payload)], &control, MsgFlags::empty(), Some(&to)) {
        // Older kernels cut only where the device sums.
        Err(Errno::EIO) if !linux(6, 11) => {
            for nack in nacks {
                socket.send_to(&nack.payload, NACK_ADDRESS).expect("sent");
            }
        }
        sent => assert_eq!(sent, Ok(payload.len())),
    }
}
