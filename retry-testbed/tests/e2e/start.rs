//! The daemon's first moments: told to end, it leaves nothing; ready, it is.

use std::time::Duration;

use nix::sys::signal::Signal;
use retry_common::key::FrameKey;
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::Fabric;
use retry_testbed::peers::answer::{Answer, nack};
use retry_testbed::scene::{Pins, ask, asker, await_detached, binary, eventually, flags, is_root, two_hosts};

/// A supervisor may change its mind while the daemon starts: whenever it says so, nothing is left behind.
#[test]
fn an_end_while_it_starts_leaves_nothing() {
    if !is_root("an_end_while_it_starts_leaves_nothing") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = Pins::new("start");
    let pins = directory.name();
    // With hand-over, one that has served leaves its program to the next.
    let flags = flags("native", &["-bpffs", pins, "-bpf-handover=false"]);
    for step in 1..=30 {
        let mut daemon = Daemon::launch(&binary(), &endpoint.ns, &flags).expect("a process");
        let delay = Duration::from_millis(step * 10);
        std::thread::sleep(delay);
        daemon.child().signal(Signal::SIGTERM).expect("it is told");
        let mut status = None;
        eventually("the daemon ends", || {
            status = daemon.child().try_wait().expect("a status");
            status.is_some()
        });
        let left = std::fs::read_dir(pins).map_or(0, Iterator::count);
        assert_eq!(left, 0, "pins {delay:?} after its start: {status:?}\n{}", daemon.log());
        await_detached(endpoint);
    }
}

/// A listener that has seen `/readyz` say 200 is answered by the kernel: the budgets of its limits are not there twice.
#[test]
fn ready_means_that_the_kernel_answers() {
    if !is_root("ready_means_that_the_kernel_answers") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    for start in 1..=12 {
        let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("native", &[])).expect("a daemon");
        let answers = ask(&asker(client), endpoint.nack_address(), &nack(FrameKey::new(1, 1)), 1);
        assert_eq!(answers.first().map(|bytes| Answer::parse(bytes, 1)), Some(Ok(Answer::Miss)));
        let metrics = daemon.metrics().expect("a scrape");
        assert_eq!(metrics.count("bre_xdp_passed_total", &[]), 0, "start {start}");
        assert_eq!(metrics.count("bre_cache_misses_total", &[("path", "xdp")]), 1, "start {start}");
    }
}
