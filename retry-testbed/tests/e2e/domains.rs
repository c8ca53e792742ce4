//! Two domains that no multicast crosses: endpoints and a publisher in the first; in the second a listener, and between
//! them the endpoint under test, which hears nothing of the first domain and asks its endpoints.

use std::net::SocketAddrV6;
use std::sync::Arc;

use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::daemon::Metrics;
use retry_testbed::net::capture::Capture;
use retry_testbed::net::fabric::{Fabric, Host, INTERFACE, NACK_PORT, SECOND_ADDRESS, SECOND_INTERFACE, group};
use retry_testbed::peers::frames::Flow;
use retry_testbed::peers::journal::Journal;
use retry_testbed::peers::publish::Publisher;
use retry_testbed::scene::{binary, counted, flags};

/// Where the endpoint under test answers NACKs of the second domain.
pub(crate) const BETWEEN: SocketAddrV6 = SocketAddrV6::new(SECOND_ADDRESS, NACK_PORT, 0, 0);

/// The hosts. In the first domain: `up`, `spare`, `publisher` and `between`, which has a second interface to `far`.
pub(crate) struct Domains {
    pub(crate) fabric: Fabric,
    pub(crate) far: Host,
    pub(crate) journal: Arc<Journal>,
}

impl Domains {
    pub(crate) fn new() -> Self {
        let fabric = Fabric::bridged(&["up", "spare", "publisher", "between"], 1500).expect("a fabric");
        let between = fabric.host("between").expect("a host");
        let far = between.second_link("far", 1500).expect("a second domain");
        // NACKs to upstream endpoints come from the NACK address, and are answered there.
        let (second, via) = (format!("{SECOND_ADDRESS}/128"), between.addr.to_string());
        for name in ["up", "spare"] {
            let host = fabric.host(name).expect("a host");
            host.ns.run(&["ip", "-6", "route", "add", &second, "via", &via, "dev", INTERFACE]).expect("a route");
        }
        Self { fabric, far, journal: Arc::new(Journal::new()) }
    }

    pub(crate) fn host(&self, name: &str) -> &Host {
        self.fabric.host(name).expect("a host")
    }

    /// An endpoint of the first domain.
    pub(crate) fn upstream(&self, name: &str, xdp: &str, more: &[&str]) -> Daemon<'_> {
        let daemon = Daemon::start(&binary(), &self.host(name).ns, &flags(xdp, more)).expect("an upstream endpoint");
        self.fabric.await_members(name, &[group(0), group(0xFFFE)]).expect("members");
        daemon
    }

    /// The endpoint under test, with these upstream endpoints.
    pub(crate) fn between(&self, xdp: &str, upstreams: &[&str], more: &[&str]) -> Daemon<'_> {
        let list: Vec<_> = upstreams.iter().map(|name| self.host(name).nack_address().to_string()).collect();
        let (list, address) = (list.join(","), SECOND_ADDRESS.to_string());
        let mut all = flags(xdp, &["-mc-iface", SECOND_INTERFACE, "-egress-iface", SECOND_INTERFACE]);
        all.extend(["-nack-addr", &address, "-proxy-enabled", "-upstream-retry-endpoints", &list]);
        all.extend(["-repair-holddown", "0", "-proxy-timeout", "1s"]);
        all.extend(more);
        Daemon::start(&binary(), &self.host("between").ns, &all).expect("the endpoint between the domains")
    }

    /// Publishes the next frame of a flow in the first domain, and waits until these endpoints hold it.
    pub(crate) fn publish(&self, flow: &mut Flow, holders: &[&Daemon<'_>]) -> (FrameKey, Vec<u8>) {
        let before: Vec<_> = holders.iter().map(|daemon| cached(&daemon.metrics().expect("a scrape"))).collect();
        let publish = Publisher::open(&self.host("publisher").ns, Arc::clone(&self.journal)).expect("a publisher");
        let (to, bytes) = (group(flow.group_index()), flow.next_frame());
        let key = publish.send(to, &bytes).expect("a frame leaves").expect("a key");
        for (daemon, before) in holders.iter().zip(before) {
            counted(daemon, "bre_frames_cached_total", &[], before + 1);
        }
        (key, bytes)
    }

    /// What the second domain hears.
    pub(crate) fn far_capture(&self) -> Capture {
        Capture::start(&self.far.ns, INTERFACE).expect("a capture")
    }
}

fn cached(metrics: &Metrics) -> u64 {
    metrics.count("bre_frames_cached_total", &[])
}

/// The outcomes of recoveries, as counted.
pub(crate) fn failed(metrics: &Metrics, last: &str) -> u64 {
    metrics.count("bre_proxy_failed_total", &[("last", last)])
}
