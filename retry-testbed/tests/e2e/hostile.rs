//! Datagrams that no honest host sends, on every port that the daemon listens on: real ones with bytes changed, cut, grown or put
//! together of two, and headers that lie. Every one is counted once, none ends the daemon, and no memory is lost.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use retry_common::key::FrameKey;
use retry_testbed::both_paths;
use retry_testbed::daemon::{Daemon, Metrics};
use retry_testbed::net::batch::{BATCH, BatchSender};
use retry_testbed::net::fabric::{DATA_PORT, Fabric, Host, INTERFACE, group};
use retry_testbed::net::packet::{Checksum, Extension, PacketBuilder};
use retry_testbed::peers::answer::nack;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{ask, asker, binary, eventually, flags, frame, read_answers, two_hosts};

/// Datagrams of one run. `RETRY_HOSTILE_DATAGRAMS` asks for more: 10 million take ten minutes per path.
const DATAGRAMS: u64 = 60_000;
/// So many per second: what either path takes in without loss on a busy machine.
const RATE: u64 = 20_000;
/// The longest that an interface of MTU 1500 takes.
const LONGEST: usize = 1452;
/// By so much the daemon may grow while it meets the later three quarters, however many they are: the pages of its tables come
/// as they are first written.
const GROWTH_KIB: u64 = 16 << 10;
/// Addresses that the datagrams come from.
const SOURCES: u16 = 64;
const BEACON: u16 = 0xfffd;
const BEACON_PORT: u16 = 9300;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Port {
    Nack,
    Data,
    Beacon,
}

/// How many were sent whose headers are right.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    nack: u64,
    data: u64,
    beacon: u64,
}

/// Real datagrams, as captured.
fn golden() -> Vec<Vec<u8>> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../retry-common/tests/golden");
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "hex"));
    paths.sort();
    let digits = |path: &PathBuf| std::fs::read_to_string(path).expect("a file");
    let bytes = |text: String| -> Vec<u8> {
        let text: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
        text.chunks(2).map(byte).collect()
    };
    let all: Vec<Vec<u8>> = paths.iter().map(digits).map(bytes).filter(|bytes| bytes.len() <= LONGEST).collect();
    assert!(all.len() > 30, "{} datagrams", all.len());
    all
}

/// Hostile packets, the same for the same seed.
struct Hostile<'a> {
    random: SmallRng,
    golden: Vec<Vec<u8>>,
    from: &'a Host,
    to: &'a Host,
}

impl Hostile<'_> {
    /// A payload: one in sixteen is as it was captured.
    fn payload(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let one = self.golden[random.random_range(0..self.golden.len())].clone();
        let mut bytes = match random.random_range(0..16u8) {
            0 => return one,
            1 => {
                let mut noise = vec![0; random.random_range(0..=LONGEST)];
                random.fill_bytes(&mut noise);
                return noise;
            }
            2 => {
                let other = &self.golden[random.random_range(0..self.golden.len())];
                let cut = random.random_range(0..=one.len().min(other.len()));
                [&one[..cut], &other[cut..]].concat()
            }
            _ => one,
        };
        for _ in 0..random.random_range(1..=4u8) {
            let at = random.random_range(0..bytes.len().max(1));
            match random.random_range(0..6u8) {
                0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8u8),
                1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
                // Whole length fields.
                2 if at + 4 <= bytes.len() => {
                    let value = [0, 1, 0xffff, 0x7fff_ffff, u32::MAX][random.random_range(0..5)];
                    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
                }
                3 => bytes.truncate(at),
                4 => bytes.resize(random.random_range(0..=LONGEST), 0xa5),
                _ if at < bytes.len() => bytes[at] = random.random(),
                _ => {}
            }
        }
        bytes.truncate(LONGEST);
        bytes
    }

    /// A packet with right headers, and where it goes.
    fn packet(&mut self) -> (PacketBuilder, Port) {
        let payload = self.payload();
        let random = &mut self.random;
        let (port, to) = match random.random_range(0..5u8) {
            0 | 1 => (Port::Nack, self.to.nack_address()),
            2 | 3 => (Port::Data, SocketAddrV6::new(group(random.random_range(0..4)), DATA_PORT, 0, 0)),
            _ => (Port::Beacon, SocketAddrV6::new(group(BEACON), BEACON_PORT, 0, 0)),
        };
        let last = 0x100 + random.random_range(0..SOURCES);
        let source = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last);
        let from = SocketAddrV6::new(source, random.random_range(1024..=u16::MAX), 0, 0);
        let mut packet = PacketBuilder::udp(from, to, &payload);
        packet.src_mac = self.from.mac;
        if port == Port::Nack {
            packet.dst_mac = self.to.mac;
        }
        (packet, port)
    }

    /// A packet with a header that is not what it should be.
    fn lie(&mut self) -> PacketBuilder {
        let (mut packet, _) = self.packet();
        // Room for what is added.
        packet.payload.truncate(LONGEST - 64);
        let random = &mut self.random;
        for _ in 0..random.random_range(1..=2u8) {
            match random.random_range(0..12u8) {
                0 => packet.udp_length = Some(random.random()),
                1 => packet.ip_length = Some(random.random()),
                2 => packet.checksum = Checksum::Value(random.random_range(0..2u16)),
                3 => packet.checksum = Checksum::Partial,
                4 => packet.hop_limit = random.random_range(0..2),
                5 => packet.extensions.push(Extension::HopByHop),
                6 => packet.extensions.push(Extension::Jumbo(random.random())),
                7 => {
                    let offset = random.random_range(0..2000u16) & !7;
                    packet.extensions.push(Extension::Fragment { offset, more: random.random(), id: random.random() });
                }
                8 => packet = packet.vlan(random.random_range(0..4095)),
                9 => {
                    let odd = [Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST, group(0), self.to.addr];
                    packet.src.set_ip(odd[random.random_range(0..odd.len())]);
                }
                10 => packet.src.set_port(0),
                _ => {
                    packet.trailer = vec![0; random.random_range(1..16)];
                    packet.ip_version = random.random_range(0..16);
                }
            }
        }
        packet
    }
}

/// Sends packets at [`RATE`]. A batch that the queue takes in part goes on where it ended.
fn send(sender: &BatchSender, count: u64, mut next: impl FnMut() -> Vec<u8>) {
    let began = Instant::now();
    let mut sent = 0;
    while sent < count {
        let batch = usize::try_from(count - sent).map_or(BATCH, |left| left.min(BATCH));
        let packets: Vec<Vec<u8>> = (0..batch).map(|_| next()).collect();
        let mut done = 0;
        while done < packets.len() {
            done += sender.send(&packets[done..]).expect("they leave");
        }
        sent += u64::try_from(batch).expect("few");
        let due = Duration::from_micros(sent * 1_000_000 / RATE);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

/// Sum of some series of a counter, over both paths.
fn sum(metrics: &Metrics, name: &str, reasons: &[&str]) -> u64 {
    reasons.iter().map(|reason| metrics.count(name, &[("reason", reason)])).sum()
}

/// Where each datagram with right headers is counted: `(counted, sent)` of every port, by name.
fn accounts(metrics: &Metrics, sent: Sent) -> [(&'static str, u64, u64); 4] {
    let all = |name| metrics.count(name, &[]);
    let asked = all("bre_nack_requests_total");
    let nacks = asked + sum(metrics, "bre_nack_dropped_total", &["size", "socket_overflow"]);
    let decided = sum(metrics, "bre_nack_dropped_total", &["magic", "type", "range"])
        + all("bre_cache_hits_total")
        + all("bre_cache_misses_total")
        + all("bre_rate_limit_drops_total");
    let stored = ["decode_error", "no_sequence", "group_index", "too_large", "log_busy"];
    let data = all("bre_frames_cached_total")
        + metrics.count("bre_cache_duplicates_total", &[("kind", "same")])
        + sum(metrics, "bre_frames_dropped_total", &stored);
    let beacons = all("bre_beacon_adverts_received_total")
        + all("bre_beacon_dropped_total")
        + all("bre_manifests_received_total")
        + all("bre_manifests_dropped_total");
    [
        ("to the NACK port", nacks, sent.nack),
        ("NACKs and what became of them", decided, asked),
        ("frames and what became of them", data, sent.data),
        ("to the group of beacons", beacons, sent.beacon),
    ]
}

/// Resident memory of a process, KiB, without its largest mapping: that is the frame log, whose pages come as it is filled.
fn resident(pid: u32) -> u64 {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it runs");
    let of = |name| {
        let lines = maps.lines().filter_map(move |line| line.strip_prefix(name));
        lines.map(|line| line.trim().trim_end_matches(" kB").parse::<u64>().expect("KiB"))
    };
    let (_, log) = of("Size:").zip(of("Rss:")).max().expect("a mapping");
    of("Rss:").sum::<u64>() - log
}

fn datagrams() -> u64 {
    std::env::var("RETRY_HOSTILE_DATAGRAMS").ok().and_then(|text| text.parse().ok()).unwrap_or(DATAGRAMS)
}

fn hostile(xdp: &str) {
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let limits = ["-rl-ip-rate", "100", "-rl-sequence-max", "100", "-rl-chain-rate", "100", "-rl-group-rate", "100"];
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags(xdp, &limits)).expect("a daemon");
    let pid = daemon.pid();
    let sender = BatchSender::open(&client.ns, INTERFACE).expect("a sender");
    let seed = rand::random();
    println!("seed {seed}");
    let mut hostile = Hostile { random: SmallRng::seed_from_u64(seed), golden: golden(), from: client, to: endpoint };

    // Right headers: each is counted once.
    let mut sent = Sent::default();
    let mut next = |hostile: &mut Hostile<'_>| {
        let (packet, port) = hostile.packet();
        match port {
            Port::Nack => sent.nack += 1,
            Port::Data => sent.data += 1,
            Port::Beacon => sent.beacon += 1,
        }
        packet.build()
    };
    let clean = datagrams() * 2 / 3;
    send(&sender, clean / 4, || next(&mut hostile));
    let before = resident(pid);
    send(&sender, clean - clean / 4, || next(&mut hostile));
    let mut found = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(5);
    while found.is_empty() || (found.iter().any(|(_, counted, sent)| counted != sent) && Instant::now() < deadline) {
        std::thread::sleep(Duration::from_millis(100));
        found = accounts(&daemon.metrics().expect("a scrape"), sent).to_vec();
    }
    for (what, counted, sent) in found {
        assert_eq!(counted, sent, "{what}: counted, sent; seed {seed}");
    }

    // Headers that lie: no datagram of these is counted twice, and honest hosts are served as before.
    let counted = |metrics: &Metrics| -> u64 {
        accounts(metrics, sent).iter().filter(|(what, ..)| what.starts_with("to ")).map(|(_, counted, _)| counted).sum()
    };
    let (first, lies) = (counted(&daemon.metrics().expect("a scrape")), datagrams() - clean);
    send(&sender, lies, || hostile.lie().build());
    let key = FrameKey::new(0x0005_7a9e, 1);
    let bytes = frame(key, 300, 7);
    let publish = Publisher::open_from(&client.ns, client.addr, Arc::new(Journal::new())).expect("a publisher");
    publish.send(group(0), &bytes).expect("a frame leaves");
    let socket = asker(client);
    eventually("an honest listener gets its frame's ACK", || {
        let answers = ask(&socket, endpoint.nack_address(), &nack(key), 1);
        let (answers, _) = read_answers(&answers, key.seq_num(), &bytes);
        answers.iter().any(|answer| matches!(answer, retry_testbed::peers::answer::Answer::Ack { .. }))
    });
    let metrics = daemon.metrics().expect("a scrape");
    assert!(counted(&metrics) - first <= lies + 100, "seed {seed}: {} of {lies}", counted(&metrics) - first);
    let grown = resident(pid).saturating_sub(before);
    assert!(grown <= GROWTH_KIB, "seed {seed}: {grown} KiB more");
    assert!(!daemon.log().contains("panicked"), "seed {seed}: {}", daemon.log());
    let lines = daemon.log().lines().count();
    assert!(lines < 200, "seed {seed}: {lines} log lines");
}

both_paths! {
    hostile: hostile_native, hostile_off;
}
