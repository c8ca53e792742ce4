//! Who the upstreams are: named, discovered, remembered.

use super::*;
use crate::net::testing::in_namespace;

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test);
}

fn discovering(state_dir: Option<&Path>) -> Proxy {
    Proxy { discover: true, state_dir: state_dir.map(Into::into), ..settings(&[]) }
}

fn v6(address: SocketAddr) -> SocketAddrV6 {
    match address {
        SocketAddr::V6(v6) => v6,
        SocketAddr::V4(_) => unreachable!("bound to IPv6"),
    }
}

#[test]
fn endpoints_heard_are_asked_and_a_cold_start_remembers_them() {
    in_namespace("endpoints_heard_are_asked_and_a_cold_start_remembers_them", |_| {
        run(async {
            let directory = tempfile::tempdir().expect("a directory");
            let upstream = Upstream::at("[fd01::1]:0").await;
            let heard = vec!["[::1]:9300".parse().expect("an address"), v6(upstream.address)];
            let discover: Discover = Arc::new(move || heard.clone());
            let mut rig = Rig::with(discovering(Some(directory.path())), Ledger::default(), discover);
            rig.ask(1);
            upstream.send_frame(&upstream.nack().await).await;
            assert_eq!(rig.recovered().await, 1);
            let status = rig.recovery.upstreams();
            assert_eq!((status.len(), status[0].pinned), (1, false), "our own loopback is no upstream endpoint");
            until("they are saved", || directory.path().join("upstreams.json").exists()).await;
            drop(rig);
            let mut cold = Rig::with(discovering(Some(directory.path())), Ledger::default(), Arc::new(Vec::new));
            cold.ask(2);
            upstream.send_frame(&upstream.nack().await).await;
            assert_eq!(cold.recovered().await, 2);
        });
    });
}

#[test]
fn an_endpoint_heard_later_does_not_wait_for_a_minute() {
    in_namespace("an_endpoint_heard_later_does_not_wait_for_a_minute", |_| {
        run(async {
            let upstream = Upstream::at("[fd01::1]:0").await;
            let heard = Arc::new(StdMutex::new(Vec::new()));
            let ear = Arc::clone(&heard);
            let discover: Discover = Arc::new(move || ear.lock().expect("no panic").clone());
            let mut rig = Rig::with(discovering(None), Ledger::default(), discover);
            rig.ask(1);
            rig.counts(Counter::ProxyFailedNone, 1).await;
            heard.lock().expect("no panic").push(v6(upstream.address));
            until("it is known", || rig.recovery.upstreams().len() == 1).await;
            rig.ask(1);
            upstream.send_frame(&upstream.nack().await).await;
            assert_eq!(rig.recovered().await, 1);
        });
    });
}

#[test]
fn a_name_that_does_not_resolve_stops_no_other() {
    in_namespace("a_name_that_does_not_resolve_stops_no_other", |_| {
        run(async {
            // Hosts differ in what this name is.
            let mut addresses = tokio::net::lookup_host("localhost:0").await.expect("every host has it");
            let upstream =
                Upstream::at(if addresses.any(|one| one.is_ipv6()) { "[::1]:0" } else { "127.0.0.1:0" }).await;
            let port = upstream.address.port();
            let mut proxy = settings(&[]);
            for host in ["nowhere.invalid", "localhost"] {
                proxy.upstreams.push(HostPort { host: host.to_owned(), port });
            }
            let mut rig = Rig::start(proxy);
            rig.ask(1);
            upstream.send_frame(&upstream.nack().await).await;
            assert_eq!(rig.recovered().await, 1);
            let names: Vec<String> = rig.recovery.upstreams().into_iter().map(|one| one.name).collect();
            assert_eq!(names, [format!("localhost:{port}")]);
            assert!(rig.count(Counter::ResolveErrors) >= 1);
        });
    });
}
