//! One path of a fabric: frames at a rate or at full speed, in batches.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use retry_common::checksum;
use retry_common::key::FrameKey;
use retry_testbed::net::batch::{BATCH, BatchSender};
use retry_testbed::net::fabric::{DATA_PORT, Host, INTERFACE, group};
use retry_testbed::net::packet::{PacketBuilder, multicast_mac};
use retry_testbed::peers::frames::BLOCK_GROUP;

use super::material::{Kind, Material};

/// Ethernet, IPv6 and UDP.
const HEADERS: usize = 14 + 40 + 8;
/// Bytes of an IPv6 fragment's part.
const FRAGMENT: u16 = 1_400;

/// Which frame comes as the n-th: key and generation.
pub(crate) type Order<'a> = &'a (dyn Fn(u64) -> (FrameKey, u8) + Sync);

/// A publisher's way to the endpoint.
pub(crate) struct Path<'a> {
    material: &'a Material,
    sender: BatchSender,
    source: Ipv6Addr,
    mac: [u8; 6],
    port: u16,
}

impl<'a> Path<'a> {
    /// From a host, with a source port of its own: a flow of its own for the queues.
    pub(crate) fn open(host: &Host, port: u16, material: &'a Material) -> Self {
        let sender = BatchSender::open(&host.ns, INTERFACE).expect("a packet socket");
        Self { material, sender, source: host.addr, mac: host.mac, port }
    }

    /// Sends frames in this order from one CPU, `rate` a second or as many as go (0), until `time` is over or `stop` is set.
    /// Returns how many.
    pub(crate) fn run(&self, cpu: usize, order: Order<'_>, rate: u32, time: Duration, stop: &AtomicBool) -> u64 {
        stay_on(cpu);
        let start = Instant::now();
        let (mut number, mut frame) = (0, Vec::new());
        let mut packets = vec![Vec::new(); BATCH];
        while start.elapsed() < time && !stop.load(Ordering::Relaxed) {
            let due = start.elapsed().as_secs_f64() * f64::from(rate);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            if rate != 0 && number as f64 > due {
                thread::sleep(Duration::from_micros(500));
                continue;
            }
            for packet in &mut packets {
                let (key, generation) = order(number);
                self.packet(key, generation, &mut frame, packet);
                number += 1;
            }
            self.sender.send(&packets).expect("packets leave");
        }
        number
    }

    /// Sends one frame of any length.
    pub(crate) fn send(&self, key: FrameKey, generation: u8) {
        let mut frame = Vec::new();
        if key.hash_key() & 0xff == Kind::Large as u64 {
            self.material.frame(key, generation, &mut frame);
            let (from, to) = (SocketAddrV6::new(self.source, self.port, 0, 0), group(group_of(key)));
            let mut packet = PacketBuilder::udp(from, SocketAddrV6::new(to, DATA_PORT, 0, 0), &frame);
            packet.src_mac = self.mac;
            let id = u32::try_from(key.seq_num() << 4 & 0xffff_ffff).unwrap_or(0) | u32::from(generation);
            for fragment in packet.fragments(FRAGMENT, id) {
                self.sender.send(&[fragment]).expect("a fragment leaves, or finds a full queue");
            }
        } else {
            let mut packet = Vec::new();
            self.packet(key, generation, &mut frame, &mut packet);
            self.sender.send(&[packet]).expect("a packet leaves");
        }
    }

    fn packet(&self, key: FrameKey, generation: u8, frame: &mut Vec<u8>, out: &mut Vec<u8>) {
        let sum = self.material.frame(key, generation, frame);
        let to = group(group_of(key));
        let length = u16::try_from(frame.len()).expect("below the MTU");
        let udp_length = (length + 8).to_be_bytes();
        out.clear();
        out.resize(HEADERS, 0);
        out[..6].copy_from_slice(&multicast_mac(to));
        out[6..12].copy_from_slice(&self.mac);
        out[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        out[18..20].copy_from_slice(&udp_length);
        out[20..22].copy_from_slice(&[17, 1]);
        out[22..38].copy_from_slice(&self.source.octets());
        out[38..54].copy_from_slice(&to.octets());
        out[54..56].copy_from_slice(&self.port.to_be_bytes());
        out[56..58].copy_from_slice(&DATA_PORT.to_be_bytes());
        out[58..60].copy_from_slice(&udp_length);
        let checksum =
            checksum::udp_ipv6(&self.source.octets(), &to.octets(), self.port, DATA_PORT, length, sum).to_be_bytes();
        out[60..62].copy_from_slice(&checksum);
        out.extend_from_slice(frame);
    }
}

/// Keeps this thread on one CPU: what it sends is received there too. Where there is none of that number it goes anywhere.
fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

fn group_of(key: FrameKey) -> u16 {
    if key.hash_key() & 0xff == Kind::Block as u64 { BLOCK_GROUP } else { u16::from(Material::group(key)) }
}
