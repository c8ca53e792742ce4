//! Names that change, asked of a real DNS server in a namespace with a resolv.conf of its own.

use std::net::Ipv6Addr;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use hickory_server::Server;
use hickory_server::net::runtime::TokioRuntimeProvider;
use hickory_server::proto::rr::rdata::{AAAA, SOA};
use hickory_server::proto::rr::{LowerName, Name, RData, Record};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneType};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use retry_common::wire::manifest::Groups;

use super::*;
use crate::net::testing::ip;

const NAME: &str = "publishers.fabric.example.";
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `test` in a namespace whose only name server is the loopback.
fn with_own_resolver<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {name}: needs root");
        return;
    }
    let outcome = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may");
        ip("link set lo up");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "nameserver ::1\noptions timeout:1 attempts:1\n").expect("written");
        mount(Some(file.path()), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).expect("an own resolv.conf");
        // One thread: others would not be in this namespace.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// A server that has these addresses for the name.
async fn serve(addresses: &[Ipv6Addr]) -> Server<Catalog> {
    let origin: Name = "fabric.example.".parse().expect("a name");
    let mut zone =
        InMemoryZoneHandler::<TokioRuntimeProvider>::empty(origin.clone(), ZoneType::Primary, AxfrPolicy::Deny);
    let soa = SOA::new(origin.clone(), origin.clone(), 1, 60, 60, 60, 1);
    zone.upsert_mut(Record::from_rdata(origin.clone(), 1, RData::SOA(soa)), 1);
    for address in addresses {
        let name: Name = NAME.parse().expect("a name");
        zone.upsert_mut(Record::from_rdata(name, 1, RData::AAAA(AAAA(*address))), 1);
    }
    let mut catalog = Catalog::new();
    catalog.upsert(LowerName::from(origin), vec![Arc::new(zone)]);
    let mut server = Server::new(catalog);
    // The last one may take a moment to go.
    let deadline = Instant::now() + PATIENCE;
    let socket = loop {
        match tokio::net::UdpSocket::bind("[::1]:53").await {
            Ok(socket) => break socket,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    server.register_socket(socket);
    server
}

async fn end(mut server: Server<Catalog>) {
    server.shutdown_gracefully().await.expect("it ends");
}

/// Waits for this set, and for none in between that lacks one of `always`.
async fn await_set(sets: &Receiver<BTreeSet<Ipv6Addr>>, wanted: &[Ipv6Addr], always: &[Ipv6Addr]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(set) = sets.try_recv() {
            assert!(always.iter().all(|source| set.contains(source)), "{set:?} lacks one of {always:?}");
            if set.iter().eq(wanted) {
                return;
            }
        }
        assert!(Instant::now() < deadline, "not told: {wanted:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn address(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last)
}

#[test]
fn a_changed_answer_reaches_the_joins() {
    with_own_resolver("a_changed_answer_reaches_the_joins", || async {
        let counters = Arc::new(UserCounters::default());
        let ((data, sets), (ear, _ear)) = (channel(), channel());
        let (manifests, heard) = mpsc::unbounded_channel();
        let config = Config {
            ssm: Ssm {
                manifests: vec![Host::Address(address(50))],
                beacons: Vec::new(),
                subtree_announcers: Vec::new(),
                publishers: vec![Host::Address(address(1)), Host::Name(NAME.to_owned())],
                refresh: Duration::from_millis(200),
            },
            own: Some(address(99)),
            shard_bits: 2,
            is_ssm: true,
        };
        let cancel = CancellationToken::new();
        let server = serve(&[address(2), address(3), address(99)]).await;
        tokio::spawn(keep(config, heard, data, ear, Arc::clone(&counters), cancel.clone()));
        await_set(&sets, &[address(1), address(2), address(3)], &[address(1)]).await;

        // One leaves, one comes, one stays all the time.
        end(server).await;
        let server = serve(&[address(3), address(4)]).await;
        await_set(&sets, &[address(1), address(3), address(4)], &[address(1), address(3)]).await;

        // No answer: the last one stands.
        end(server).await;
        let errors = || counters.snapshot().get(Counter::ResolveErrors);
        let deadline = Instant::now() + PATIENCE;
        while errors() == 0 {
            assert!(Instant::now() < deadline, "no error was counted");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(sets.try_recv().is_err(), "nothing has changed");

        // A manifest beside it, and its end.
        let more = [address(5).octets()];
        let manifest = |flags| {
            let manifest = Manifest {
                flags,
                source: [0; 16],
                instance_id: 1,
                epoch_s: 9,
                ttl_s: 60,
                interval_s: 1,
                shard_bits: 2,
                role: 1,
                generation_id: [0; 16],
                groups: Groups::None,
                sources: &more,
                successor: None,
                rest: &[],
            };
            let mut bytes = vec![0; 256];
            let length = manifest.write(&mut bytes).expect("room");
            bytes.truncate(length);
            bytes
        };
        manifests.send((manifest(0), address(50))).expect("heard");
        let all = [address(1), address(3), address(4), address(5)];
        await_set(&sets, &all, &all[..3]).await;
        manifests.send((manifest(0), address(51))).expect("heard");
        manifests.send((manifest(0x04), address(50))).expect("heard");
        await_set(&sets, &all[..3], &all[..3]).await;
        assert_eq!(counters.snapshot().get(Counter::ManifestsForeign), 1);
        cancel.cancel();
    });
}
