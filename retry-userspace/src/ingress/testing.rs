//! Publishers, frames and a log for the tests of the ingress.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_server::proto::rr::{Name, RData, Record};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use retry_common::counter::Counter;
use retry_common::group::{BeefBits, ShardBits, Sharding};
use retry_common::wire::MAGIC;
use retry_common::wire::manifest::{Groups, Manifest};
use socket2::Socket;
use tokio::runtime::Runtime;

use super::fill::{self, Fill};
use crate::counters::UserCounters;
use crate::framelog::{self, Log, Pages, Sizes};
use crate::net::batch::{Batch, Datagram};
use crate::net::multicast::{self, Egress};
use crate::net::options;
use crate::net::readiness::Readiness;
use crate::net::testing::{Pair, QUIET, SOON, in_namespace, ip};

pub(super) const PORT: u16 = 9001;
/// Source port of our own repairs.
pub(super) const OWN_PORT: u16 = 9_900;

/// A source-specific group of the site.
pub(super) fn group(index: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xff35, 0, 0, 0, 0, 0, 0x000b, index)
}

/// An address for a publisher; 1 and 2 are there, others are to be added.
pub(super) fn source(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, last)
}

/// Gives the near end the publishers' addresses up to `last`.
pub(super) fn add_sources(last: u16) {
    for address in 3..=last {
        ip(&format!("addr add {}/64 dev near nodad", source(address)));
    }
}

/// Sends from any address of the near end.
pub(super) struct Publisher {
    socket: Socket,
    interface: u32,
    port: u16,
}

impl Publisher {
    pub(super) fn new(pair: &Pair, port: u16) -> Self {
        Self { socket: options::udp_socket().expect("a socket"), interface: pair.near.index, port }
    }

    pub(super) fn send(&self, from: Ipv6Addr, to: Ipv6Addr, bytes: &[u8]) {
        let egress = Egress { interface: self.interface, source: from, port: self.port, hop_limit: 1 };
        multicast::send(&self.socket, &egress, to, bytes).expect("sent");
    }

    /// Sends datagrams of `each` bytes, which a socket that takes them so gets as one.
    pub(super) fn send_train(&self, from: Ipv6Addr, to: Ipv6Addr, bytes: &[u8], each: i32) {
        options::send_segments(&self.socket, each).expect("an option");
        self.send(from, to, bytes);
        options::send_segments(&self.socket, 0).expect("an option");
    }
}

/// Takes everything that arrives until nothing does for a while, with the place of its socket among `fds`.
pub(super) fn take_all<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>, mut take: impl FnMut(usize, Datagram<'_>)) {
    let fds: Vec<_> = fds.into_iter().collect();
    let mut readiness = Readiness::new(fds.iter().copied());
    let mut batch = Batch::new(64, 2048);
    while readiness.wait(QUIET).expect("no error") > 0 {
        for at in readiness.ready() {
            batch.recv_now(&fds[at].as_fd()).expect("received");
            batch.datagrams().for_each(|one| take(at, one));
        }
    }
}

/// Everything that arrives until nothing does for a while: (source, destination).
pub(super) fn drain<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Vec<(Ipv6Addr, Ipv6Addr)> {
    let mut all = Vec::new();
    take_all(fds, |_, one| all.push((*one.source.ip(), one.destination.expect("asked for"))));
    all
}

/// A manifest that names these sources, good for ten minutes.
pub(super) const fn manifest(sources: &[[u8; 16]], epoch_s: u32, flags: u8) -> Manifest<'_> {
    Manifest {
        flags,
        source: [0; 16],
        instance_id: 7,
        epoch_s,
        ttl_s: 600,
        interval_s: 3,
        shard_bits: 2,
        role: 1,
        generation_id: [1; 16],
        groups: Groups::None,
        sources,
        successor: None,
        rest: &[],
    }
}

/// Waits until `happened`, as long as a busy machine may take.
pub(super) fn eventually(what: &str, happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A transaction of group 0.
pub(super) fn frame(flow: u64, seq: u64) -> Vec<u8> {
    let mut bytes = vec![0; 100];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[6] = 0x02;
    bytes[40..48].copy_from_slice(&flow.to_be_bytes());
    bytes[48..56].copy_from_slice(&seq.to_be_bytes());
    bytes[88..92].copy_from_slice(&8_u32.to_be_bytes());
    bytes
}

/// A fill into plain memory; `fd02::1` is our own source.
pub(super) fn fill() -> Arc<Fill> {
    fill_and_log().0
}

/// As [`fill`], with a reader of its log.
pub(super) fn fill_and_log() -> (Arc<Fill>, Log) {
    let pages = Arc::new(Pages::plain(Sizes::new(16 << 20, 16 << 20)).expect("memory"));
    let (writer, log) = framelog::open(pages, 1, 1 << 20);
    let config = fill::Config {
        sharding: Sharding { shard: ShardBits::new(2).expect("2 bits"), beef: BeefBits::default() },
        life_ms: [60_000; 5],
        kernel_max: 1_400,
        own_sources: HashSet::from(["fd02::1".parse().expect("an address")]),
        own_port: OWN_PORT,
        replace_after: Duration::ZERO,
    };
    let fill = Arc::new(Fill::new(config, writer, Arc::default(), None));
    (fill, log)
}

pub(super) fn count(counters: &UserCounters, counter: Counter) -> u64 {
    counters.snapshot().get(counter)
}

/// A name server at `[::1]:53` that knows some names: those without an IPv6 address have an IPv4 one.
pub(super) struct Dns(hickory_server::Server<Catalog>);

impl Dns {
    pub(super) async fn start(names: &[(&str, &[Ipv6Addr])]) -> Self {
        let origin = Name::from_ascii("test.").expect("a name");
        let mut zone: InMemoryZoneHandler =
            InMemoryZoneHandler::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
        for (name, addresses) in names {
            let name = Name::from_ascii(format!("{name}.")).expect("a name");
            for address in *addresses {
                zone.upsert_mut(Record::from_rdata(name.clone(), 3_600, RData::AAAA((*address).into())), 1);
            }
            if addresses.is_empty() {
                zone.upsert_mut(Record::from_rdata(name, 3_600, RData::A(Ipv4Addr::new(192, 0, 2, 1).into())), 1);
            }
        }
        let mut catalog = Catalog::new();
        catalog.upsert((&origin).into(), vec![Arc::new(zone)]);
        let mut server = hickory_server::Server::new(catalog);
        // The one before may take a moment to close its socket.
        let start = Instant::now();
        let socket = loop {
            match tokio::net::UdpSocket::bind("[::1]:53").await {
                Ok(socket) => break socket,
                Err(error) => assert!(start.elapsed() < SOON, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        server.register_socket(socket);
        Self(server)
    }

    pub(super) async fn stop(mut self) {
        self.0.shutdown_gracefully().await.expect("it ends");
    }
}

/// For [`with_dns`]: a question that a stopping server takes with it is asked again at once.
pub(super) const IMPATIENT: &str = "options timeout:1 attempts:2\n";

/// Runs `test` where resolv.conf names `[::1]` alone, in a mount namespace of the test's thread.
pub(super) fn with_dns(name: &'static str, options: &'static str, test: impl FnOnce(Pair, &Runtime) + Send + 'static) {
    in_namespace(name, move |pair| {
        unshare(CloneFlags::CLONE_NEWNS).expect("root may make a mount namespace");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts of our own");
        let file = std::env::temp_dir().join(format!("resolv-{}-{name}", std::process::id()));
        std::fs::write(&file, format!("nameserver ::1\n{options}")).expect("written");
        mount(Some(&file), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).expect("mounted");
        std::fs::remove_file(&file).expect("removed");
        // On this thread alone: others are in the namespaces of the process.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        test(pair, &runtime);
    });
}
