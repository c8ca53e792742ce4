//! Every alert fires when its fault is there, and ends when the fault has ended.
//!
//! The scenes run side by side, each with a daemon of its own: so the test takes as long as the slowest alert. Times of the
//! rules are a sixtieth ([`SHORTENED`](super::prometheus::SHORTENED)), and so is the daemons' beacon interval; expressions and
//! thresholds are those of the file.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, Map, MapData};
use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::{
    daemon::Daemon,
    net::{
        capture::RawSender,
        fabric::{DATA_PORT, Fabric, Host, INTERFACE, NACK_PORT, group, group_in},
        packet::{Checksum, PacketBuilder},
    },
    peers::{
        announce::{ManifestSender, Named},
        answer::nack,
        frames::{Flow, Kind},
        journal::Journal,
        publish::Publisher,
        redis::Server,
    },
    scene::{asker, binary, eventually, flags, frame, is_root, two_hosts},
};
use retry_userspace::parts::datapath::pinned::{PinnedLog, Words as _};
use socket2::{Domain, Socket, Type};

use super::{
    files::{alerts, panels},
    prometheus::{Prometheus, Watch},
};

/// How long alerts may take to fire, and to end. A busy machine needs it.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long nothing may fire while nothing is wrong: longer than the longest `for` and range, shortened.
const QUIET: Duration = Duration::from_secs(12);
const FLOW: u64 = 0xa1e7;
const SITE: u16 = 0xFF35;
const SECOND: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0x12);
const MANIFESTS: Ipv6Addr = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, 0xb0);
const UNICAST: [&str; 2] = ["-beacon-flags-unicast", "-beacon-flags-multicast=false"];

/// What a scene is given.
struct Stage<'a> {
    prometheus: &'a Prometheus<'a>,
    /// Scenes that stand.
    ready: &'a AtomicUsize,
    /// Scenes whose alerts have ended.
    done: &'a AtomicUsize,
    count: usize,
    gate: &'a AtomicU8,
}

const CLOSED: u8 = 0;
const OPEN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Lets all scenes end when one has failed, or the test itself.
struct GiveUp<'a>(&'a AtomicU8);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(GIVEN_UP, Ordering::SeqCst);
        }
    }
}

impl Stage<'_> {
    /// The scene stands; its traffic goes on until faults are asked for.
    fn begin(&self, mut traffic: impl FnMut(u64)) {
        self.ready.fetch_add(1, Ordering::SeqCst);
        let mut round = 0;
        while self.gate.load(Ordering::SeqCst) == CLOSED {
            round += 1;
            traffic(round);
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(self.gate.load(Ordering::SeqCst), OPEN, "another scene has failed");
    }

    /// Repeats the fault, ten times a second, until all of these alerts fire.
    fn fires(&self, alerts: &[(&str, &str)], fault: impl FnMut(u64)) {
        self.comes(alerts, fault, "does not fire", |firing| alerts.iter().all(|one| firing.contains(&owned(*one))));
    }

    /// Waits, with the traffic that it takes, until none of these alerts fires; then until all scenes have come so far: a
    /// daemon that ends is one that Prometheus misses.
    fn ends(&self, alerts: &[(&str, &str)], traffic: impl FnMut(u64)) {
        self.comes(alerts, traffic, "does not end", |firing| !alerts.iter().any(|one| firing.contains(&owned(*one))));
        self.done.fetch_add(1, Ordering::SeqCst);
        while self.done.load(Ordering::SeqCst) < self.count && self.gate.load(Ordering::SeqCst) == OPEN {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[expect(clippy::print_stdout, reason = "what to read when the test has failed, and how long each alert took")]
    fn comes(
        &self,
        alerts: &[(&str, &str)],
        mut each: impl FnMut(u64),
        otherwise: &str,
        so: impl Fn(&BTreeSet<(String, String)>) -> bool,
    ) {
        let begin = Instant::now();
        let mut round = 0;
        loop {
            round += 1;
            each(round);
            std::thread::sleep(Duration::from_millis(100));
            if round % 5 != 0 {
                continue;
            }
            let firing = self.prometheus.firing();
            if so(&firing) {
                println!("{alerts:?}: \"{otherwise}\" is over after {:?}", begin.elapsed());
                return;
            }
            assert!(self.gate.load(Ordering::SeqCst) == OPEN, "another scene has failed");
            assert!(begin.elapsed() < PATIENCE, "one of {alerts:?} {otherwise}; firing: {firing:?}");
        }
    }
}

fn owned((alert, instance): (&str, &str)) -> (String, String) {
    (format!("RetryEndpoint{alert}"), instance.to_owned())
}

/// A daemon that Prometheus reaches.
fn start<'a>(host: &'a Host, xdp: &str, more: &[&str]) -> Daemon<'a> {
    let common = ["-metrics-addr", ":9400", "-beacon-interval", "1s", "-limit-table-entries", "1024"];
    let all = [&common[..], more].concat();
    let all = flags(xdp, &all);
    Daemon::start(&binary(), &host.ns, &all).expect("a daemon")
}

fn publisher(host: &Host) -> Publisher {
    Publisher::open(&host.ns, Arc::new(Journal::new())).expect("a publisher")
}

fn no_traffic(_: u64) {}

/// What asks too much, comes wrong, or comes from where there is no host; and another program on the port.
fn requests(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let limits = ["-rl-ip-rate", "1", "-rl-ip-burst", "3", "-nack-port-shared"];
    let _daemon = start(endpoint, "native", &[&UNICAST[..], &limits].concat());
    // Above the MTU: the daemon sends it, and has to know the neighbour.
    let long = FrameKey::new(FLOW, 1);
    publisher(client).send(group(0), &frame(long, 5_000, 1)).expect("a frame leaves");
    let socket = asker(client);
    let by_unicast = client.ns.enter(|| UdpSocket::bind((client.addr, 0))).expect("a socket");
    let raw = RawSender::open(&client.ns, INTERFACE).expect("root");
    let from = |from: Ipv6Addr| {
        let packet = PacketBuilder::udp(SocketAddrV6::new(from, 40_000, 0, 0), endpoint.nack_address(), &nack(long));
        PacketBuilder { dst_mac: endpoint.mac, src_mac: client.mac, ..packet }
    };
    stage.begin(no_traffic);
    let other = endpoint.ns.enter(|| {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&SocketAddrV6::new(endpoint.addr, NACK_PORT, 0, 0).into()).map(|()| socket)
    });
    let other = other.expect("the port is shared");
    let all = ["Limited", "FramesRefused", "NacksUnanswerable", "AnswersNotSent", "NackPortContended"];
    let all = all.map(|alert| (alert, "requests"));
    stage.fires(&all, |round| {
        for seq_num in 0..5 {
            socket.send_to(&nack(FrameKey::new(FLOW, 100 + seq_num)), endpoint.nack_address()).expect("a NACK leaves");
        }
        let to = SocketAddrV6::new(endpoint.addr, DATA_PORT, 0, 0);
        by_unicast.send_to(&frame(FrameKey::new(FLOW, 9), 300, 1), to).expect("it leaves");
        let wrong = PacketBuilder { checksum: Checksum::Value(0x1234), ..from(client.addr) };
        raw.send(&wrong.build()).expect("it leaves");
        if round % 10 == 0 {
            let stranger = Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 7, u16::try_from(round % 60_000).expect("small"));
            raw.send(&from(stranger).build()).expect("it leaves");
        }
    });
    drop(other);
    // It still asks, and rarely enough.
    stage.ends(&all, |round| {
        if round % 20 == 0 {
            socket.send_to(&nack(FrameKey::new(FLOW, 100)), endpoint.nack_address()).expect("a NACK leaves");
        }
    });
}

/// Redis that answers late, and refuses what the daemon writes.
fn store(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let server = Server::start(fabric.host("redis").expect("a host")).expect("Redis");
    let redis = server.address().to_string();
    // Its failures are not to count as an outage.
    let _daemon =
        start(endpoint, "native", &["-redis-addr", &redis, "-cache-backend", "redis", "-redis-retry-breaker", "0"]);
    let (publish, socket) = (publisher(client), asker(client));
    let traffic = |round: u64| {
        publish.send(group(0), &frame(FrameKey::new(FLOW, round), 300, 1)).expect("a frame leaves");
        socket.send_to(&nack(FrameKey::new(FLOW + 1, round)), endpoint.nack_address()).expect("a NACK leaves");
    };
    let allow = |word: &str| {
        let command = redis::cmd("ACL").arg("SETUSER").arg("default").arg(word).clone();
        let _: redis::Value = server.run(&command).expect("Redis takes it");
    };
    stage.begin(traffic);
    allow("-set");
    let all = [("StoreErrors", "store"), ("StoreSlow", "store")];
    stage.fires(&all, |round| {
        match round % 6 {
            0 => server.pause().expect("it stops"),
            4 => server.go_on().expect("it goes on"),
            _ => {}
        }
        traffic(round);
    });
    server.go_on().expect("it goes on");
    allow("+set");
    stage.ends(&all, traffic);
}

/// Redis that is dead.
fn outage(stage: &Stage<'_>, fabric: &Fabric) {
    let mut server = Server::start(fabric.host("redis").expect("a host")).expect("Redis");
    let redis = server.address().to_string();
    let _daemon = start(fabric.host("endpoint").expect("a host"), "off", &["-redis-addr", &redis]);
    stage.begin(no_traffic);
    server.kill().expect("it dies");
    let all = [("StoreDown", "outage")];
    stage.fires(&all, no_traffic);
    server.start_again().expect("it is back");
    stage.ends(&all, no_traffic);
}

/// The upstream endpoint is dead, while frames are missed.
fn upstream(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let there = client.nack_address().to_string();
    let asked = ["-proxy-enabled", "-upstream-retry-endpoints", &there, "-proxy-timeout", "100ms"];
    let other = start(client, "off", &["-metrics-addr", "[::1]:9400"]);
    let _daemon = start(endpoint, "native", &[&asked[..], &["-proxy-retry-policy", "none"]].concat());
    let socket = asker(client);
    let mut flow = FLOW;
    let mut traffic = |_| {
        // Of as many flows: the numbers ahead of one are asked for one at a time.
        flow += 1;
        socket.send_to(&nack(FrameKey::new(flow, 1)), endpoint.nack_address()).expect("a NACK leaves");
    };
    stage.begin(&mut traffic);
    drop(other);
    let all = [("UpstreamDown", "upstream"), ("RecoveryFails", "upstream")];
    stage.fires(&all, &mut traffic);
    let _other = start(client, "off", &["-metrics-addr", "[::1]:9400"]);
    stage.ends(&all, &mut traffic);
}

/// One of two endpoints is dead.
fn peers(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let other = ["-instance", "dies"];
    let _stays = start(endpoint, "off", &["-instance", "stays"]);
    let mut dies = start(client, "off", &other);
    stage.begin(no_traffic);
    dies.child().kill();
    let all = [("Down", "dies"), ("ReplicaLost", ""), ("BeaconNotHeard", "stays")];
    stage.fires(&all, no_traffic);
    drop(dies);
    let _again = start(client, "off", &other);
    stage.ends(&all, no_traffic);
}

/// The interface is down.
fn link(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, _) = two_hosts(fabric);
    let _daemon = start(endpoint, "native", &[]);
    stage.begin(no_traffic);
    endpoint.ns.run(&["ip", "link", "set", INTERFACE, "down"]).expect("it goes down");
    let all = [("NotReady", "link"), ("BeaconNotSent", "link")];
    stage.fires(&all, no_traffic);
    endpoint.ns.run(&["ip", "link", "set", INTERFACE, "up"]).expect("it goes up");
    endpoint.add_address(endpoint.addr).expect("its address");
    stage.ends(&all, no_traffic);
}

/// The other end of the veth pair takes no redirected packets: with `-xdp native` answers are lost, with `auto` the daemon
/// answers after a while.
fn driver(stage: &Stage<'_>, fabric: &Fabric, xdp: &str, alert: (&str, &str)) {
    let (endpoint, client) = two_hosts(fabric);
    let _daemon = start(endpoint, xdp, &UNICAST);
    let key = FrameKey::new(FLOW, 1);
    let publish = publisher(client);
    publish.send(group(0), &frame(key, 700, 1)).expect("a frame leaves");
    let socket = asker(client);
    let traffic = |_| {
        socket.send_to(&nack(key), endpoint.nack_address()).expect("a NACK leaves");
    };
    let gro = |word: &str| client.ns.run(&["ethtool", "-K", INTERFACE, "gro", word]).expect("an offload");
    stage.begin(traffic);
    gro("off");
    stage.fires(&[alert], traffic);
    gro("on");
    stage.ends(&[alert], traffic);
}

/// The daemon gets no CPU for seconds, again and again, while more comes than ring and buffer hold.
fn starved(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let there = client.nack_address().to_string();
    let more = ["-proxy-enabled", "-upstream-retry-endpoints", &there, "-bpf-lease", "1500ms", "-ingress-workers", "1"];
    let mut daemon = start(endpoint, "native", &[&UNICAST[..], &more].concat());
    let (publish, socket) = (publisher(client), asker(client));
    let long = FrameKey::new(FLOW, 100_000);
    publish.send(group(0), &frame(long, 5_000, 1)).expect("a frame leaves");
    let mut flow = Flow::new(Kind::Anchor, 0, 2, 60_000..=60_001);
    stage.begin(no_traffic);
    let all = ["EventRingFull", "LeaseOver", "ReceiveBufferOverflows"].map(|alert| (alert, "starved"));
    stage.fires(&all, |round| {
        daemon.child().signal(Signal::SIGSTOP).expect("it stops");
        for seq_num in 1..=7_000 {
            let key = FrameKey::new(FLOW + round, seq_num);
            socket.send_to(&nack(key), endpoint.nack_address()).expect("a NACK leaves");
            if seq_num % 200 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for _ in 0..20 {
            socket.send_to(&nack(long), endpoint.nack_address()).expect("a NACK leaves");
        }
        for _ in 0..700 {
            publish.publish(&mut flow).expect("a frame leaves");
        }
        std::thread::sleep(Duration::from_millis(1_600));
        socket.send_to(&nack(long), endpoint.nack_address()).expect("a NACK leaves");
        daemon.child().signal(Signal::SIGCONT).expect("it goes on");
        std::thread::sleep(Duration::from_millis(700));
        publish.publish(&mut flow).expect("a frame leaves");
        std::thread::sleep(Duration::from_millis(700));
    });
    stage.ends(&all, no_traffic);
}

/// More comes than the short ring holds within the life of a frame.
fn cache(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let _daemon = start(endpoint, "native", &[]);
    let publish = publisher(client);
    stage.begin(no_traffic);
    let all = [("CacheTooSmall", "cache")];
    stage.fires(&all, |round| {
        for seq_num in 0..60 {
            let key = FrameKey::new(FLOW, round * 60 + seq_num);
            publish.send(group(0), &frame(key, 30_000, 1)).expect("a frame leaves");
        }
    });
    stage.ends(&all, no_traffic);
}

/// A manifest names fewer publishers than the one before, and then as many again.
fn sources(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    for address in [SECOND, MANIFESTS] {
        client.add_address(address).expect("an address");
    }
    let sender = MANIFESTS.to_string();
    let named = ["-source-mode", "ssm", "-scope", "site", "-ssm-bootstrap-manifest", &sender];
    let daemon = start(endpoint, "native", &named);
    let manifest = ManifestSender::open(&client.ns, MANIFESTS).expect("a sender");
    let says = |publishers: &[Ipv6Addr]| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let epoch_seconds = u32::try_from(now).expect("soon");
        let named = Named { epoch_seconds, ttl_seconds: 600, publishers, shutdown: false };
        manifest.send(group_in(SITE, 0xFFFD), named).expect("it leaves");
    };
    let both = [client.addr, SECOND];
    eventually("two sources", || {
        says(&both);
        daemon.metrics().expect("a scrape").count("bre_ssm_sources", &[]) == 2
    });
    stage.begin(|_| says(&both));
    let all = [("SourceLost", "sources")];
    stage.fires(&all, |_| says(&both[..1]));
    stage.ends(&all, |_| says(&both));
}

/// A daemon whose shard bits are others finds a log that does not fit.
fn unfit(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, _) = two_hosts(fabric);
    let mut daemon = start(endpoint, "native", &[]);
    stage.begin(no_traffic);
    daemon.leave();
    assert!(daemon.end().expect("it ends").success());
    let _next = start(endpoint, "native", &["-shard-bits", "3"]);
    let all = [("HandoverUnfit", "unfit")];
    stage.fires(&all, no_traffic);
    stage.ends(&all, no_traffic);
}

/// Memory is damaged: a record has two entries, and the daemon meets the second one when the frame's life is over.
fn damaged(stage: &Stage<'_>, fabric: &Fabric) {
    let (endpoint, client) = two_hosts(fabric);
    let daemon = start(endpoint, "native", &["-cache-ttl-tx", "3s"]);
    let publish = publisher(client);
    stage.begin(no_traffic);
    publish.send(group(0), &frame(FrameKey::new(FLOW, 1), 300, 1)).expect("a frame leaves");
    eventually("a frame", || daemon.metrics().expect("a scrape").count("bre_cache_size", &[]) == 1);
    let log = PinnedLog::open(daemon.pins()).expect("pins");
    let at = (0..log.index.len()).step_by(8).find(|at| log.index.word(*at) != 0).expect("an entry");
    let map = MapData::from_pin(daemon.pins().join("INDEX")).expect("a pin");
    let mut index: Array<_, [u64; 8]> = Map::Array(map).try_into().expect("an array");
    let bucket = u32::try_from(at / 64).expect("small");
    let mut entries = index.get(&bucket, 0).expect("a bucket");
    let free = entries.iter().position(|entry| *entry == 0).expect("a vacant entry");
    entries[free] = log.index.word(at);
    index.set(bucket, entries, 0).expect("the kernel takes it");
    let all = [("LogDamaged", "damaged")];
    stage.fires(&all, no_traffic);
    stage.ends(&all, no_traffic);
}

/// A scene, with the fabric that it plays on.
type Scene<'a> = Box<dyn FnOnce(&Stage<'_>) + Send + 'a>;

#[test]
fn every_alert_fires_with_its_fault_and_ends_with_it() {
    if !is_root("every_alert_fires_with_its_fault_and_ends_with_it") {
        return;
    }
    let mut watch = Watch::new();
    let mut flat = |instance: &str| {
        let fabric = Fabric::flat(1500).expect("a fabric");
        watch.join(two_hosts(&fabric).0, instance);
        fabric
    };
    let names = ["requests", "upstream", "stays", "link", "driver", "fallback", "starved", "cache", "sources"];
    let [on_requests, on_upstream, on_peers, on_link, on_driver, on_fallback, on_starved, on_cache, on_sources] =
        names.map(&mut flat);
    let [on_unfit, on_damaged] = ["unfit", "damaged"].map(&mut flat);
    let mut bridged = |instance: &str| {
        let fabric = Fabric::bridged(&["endpoint", "client", "redis"], 1500).expect("a fabric");
        watch.join(two_hosts(&fabric).0, instance);
        fabric
    };
    let [on_store, on_outage] = ["store", "outage"].map(&mut bridged);
    watch.join(two_hosts(&on_peers).1, "dies");
    let scenes: Vec<Scene<'_>> = vec![
        Box::new(|stage| requests(stage, &on_requests)),
        Box::new(|stage| store(stage, &on_store)),
        Box::new(|stage| outage(stage, &on_outage)),
        Box::new(|stage| upstream(stage, &on_upstream)),
        Box::new(|stage| peers(stage, &on_peers)),
        Box::new(|stage| link(stage, &on_link)),
        Box::new(|stage| driver(stage, &on_driver, "native", ("AnswersLost", "driver"))),
        Box::new(|stage| driver(stage, &on_fallback, "auto", ("XdpOff", "fallback"))),
        Box::new(|stage| starved(stage, &on_starved)),
        Box::new(|stage| cache(stage, &on_cache)),
        Box::new(|stage| sources(stage, &on_sources)),
        Box::new(|stage| unfit(stage, &on_unfit)),
        Box::new(|stage| damaged(stage, &on_damaged)),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    let prometheus = watch.start(directory.path(), &[]);
    let (ready, done, gate) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU8::new(CLOSED));
    let count = scenes.len();
    let stage = Stage { prometheus: &prometheus, ready: &ready, done: &done, count, gate: &gate };
    let play = |scene: Scene<'_>| {
        let _give_up = GiveUp(&gate);
        scene(&stage);
    };
    std::thread::scope(|scope| {
        let _give_up = GiveUp(&gate);
        let running: Vec<_> = scenes.into_iter().map(|scene| scope.spawn(|| play(scene))).collect();
        let begin = Instant::now();
        while ready.load(Ordering::SeqCst) < count {
            assert!(begin.elapsed() < PATIENCE, "{} of {count} scenes stand", ready.load(Ordering::SeqCst));
            assert!(!running.iter().any(|one| one.is_finished()), "a scene has failed at its start");
            std::thread::sleep(Duration::from_millis(50));
        }
        println!("{count} scenes stand after {:?}", begin.elapsed());
        std::thread::sleep(QUIET);
        assert_eq!(prometheus.firing(), BTreeSet::new(), "nothing is wrong yet");
        every_panel_has_data(&prometheus);
        gate.store(OPEN, Ordering::SeqCst);
        running.into_iter().for_each(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        println!("all alerts have fired and ended after {:?}", begin.elapsed());
    });
}

/// Every expression of the dashboard, as Grafana asks for all instances, returns numbers.
fn every_panel_has_data(prometheus: &Prometheus<'_>) {
    let all = panels();
    assert!(all.len() > 40, "{all:?}");
    let mut empty = Vec::new();
    for (title, expression) in all {
        let asked = expression.replace("$instance", ".*").replace("$__rate_interval", "5s");
        assert!(!asked.contains('$'), "{title}: a variable that the test does not know: {asked}");
        let series = prometheus.query(&asked);
        if series.is_empty() || series.iter().any(|one| one["value"][1] == "NaN") {
            empty.push(format!("{title}: {expression}: {series:?}"));
        }
    }
    assert!(empty.is_empty(), "no data:\n{}", empty.join("\n"));
}

/// A scene exists for every alert of the rules.
#[test]
fn every_alert_has_a_scene() {
    let scenes = include_str!("faults.rs");
    for alert in alerts() {
        let name = alert.name.trim_start_matches("RetryEndpoint");
        assert!(scenes.contains(&format!("\"{name}\"")), "no scene in which {} fires", alert.name);
    }
}
