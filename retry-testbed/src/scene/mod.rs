//! Scenes: a daemon with its peers on a fabric, as more than one suite or the bench sets them up.
//!
//! Every function here fails the test that calls it: it panics with a message instead of returning an error.
//!
//! [`relay`] has daemons that follow one another, [`steady`] traffic that goes on while daemons come and go. [`suppression`] lets hundreds of listeners miss the same frames and counts the copies of their repairs.

mod exchange;
pub mod relay;
mod seen;
pub mod steady;
pub mod suppression;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use self::{
    exchange::{ask, ask_each, asker, frame, read_answers},
    seen::{adverts, await_advert, datagrams_from, is_repair, repairs},
};
use crate::{
    daemon::{BPFFS, Daemon, Metrics},
    net::fabric::{Fabric, Host, INTERFACE},
};

/// How long a test waits for what must come. A busy machine needs it; nothing waits so long when it works.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Defines two tests per function: one with XDP in the driver (`-xdp native`), one with the daemon's socket alone (`off`).
#[macro_export]
macro_rules! both_paths {
    ($($(#[$doc:meta])* $body:ident: $native:ident, $off:ident;)*) => { $(
        $(#[$doc])*
        #[test]
        fn $native() {
            if $crate::scene::is_root(stringify!($native)) {
                $body("native");
            }
        }

        $(#[$doc])*
        #[test]
        fn $off() {
            if $crate::scene::is_root(stringify!($off)) {
                $body("off");
            }
        }
    )* };
}

/// True when the test of this name may run. Without root it may not, and the line that the test runner counts as a skip
/// is printed.
#[must_use]
#[expect(clippy::print_stdout, reason = "the test runner reads skips there")]
pub fn is_root(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIP {name}: needs root");
    }
    root
}

/// The daemon's binary.
///
/// # Panics
/// `RETRY_ENDPOINT_BIN` names none.
#[must_use]
pub fn binary() -> PathBuf {
    Daemon::binary().expect("xtask names the daemon's binary")
}

/// Flags of the daemon: small rings, all planes, no limits. A flag of `more` wins over one of the same name here.
#[must_use]
pub fn flags<'a>(xdp: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut flags = vec![
        "-xdp",
        xdp,
        "-cache-memory",
        "16m",
        "-cache-memory-long",
        "16m",
        "-subtree-data-enabled",
        "-beef-enabled",
        "-rl-ip-rate",
        "0",
        "-rl-chain-rate",
        "0",
        "-rl-sequence-max",
        "0",
        "-rl-group-rate",
        "0",
    ];
    flags.extend(more);
    flags
}

/// The label `path` of what this `-xdp` mode serves.
#[must_use]
pub fn path(xdp: &str) -> &'static str {
    if xdp == "off" { "user" } else { "xdp" }
}

/// The two hosts of a flat fabric: endpoint and client.
///
/// # Panics
/// The fabric has hosts of other names.
#[must_use]
pub fn two_hosts(fabric: &Fabric) -> (&Host, &Host) {
    (fabric.host("endpoint").expect("an endpoint"), fabric.host("client").expect("a client"))
}

/// Waits until something is so.
///
/// # Panics
/// It is not so within [`PATIENCE`]; the message says `what`.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the host's [`INTERFACE`] has no XDP program: once the last holder of its link is gone, the kernel detaches it in
/// a work queue, and that is a moment later.
///
/// # Panics
/// It still has one after [`PATIENCE`].
pub fn await_detached(host: &Host) {
    eventually("no program is attached", || {
        !host.ns.run(&["ip", "link", "show", INTERFACE]).expect("a link").contains("xdp")
    });
}

/// Waits until a counter of the daemon has this value, or five seconds; returns the last scrape.
///
/// # Panics
/// The daemon does not answer a scrape.
pub fn await_count(daemon: &Daemon<'_>, metric: &str, labels: &[(&str, &str)], value: u64) -> Metrics {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let metrics = daemon.metrics().expect("a scrape");
        if metrics.count(metric, labels) >= value || Instant::now() > deadline {
            return metrics;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// As [`await_count`], where the counter must come to this value.
///
/// # Panics
/// It does not; the message holds the daemon's log.
pub fn counted(daemon: &Daemon<'_>, metric: &str, labels: &[(&str, &str)], value: u64) -> Metrics {
    let metrics = await_count(daemon, metric, labels, value);
    let found = metrics.count(metric, labels);
    assert!(found >= value, "{metric}{labels:?} is {found}, not {value}\n{}", daemon.log());
    metrics
}

/// A directory for the pins of one test. What a daemon leaves there is removed with the value.
#[derive(Debug)]
pub struct Pins(PathBuf);

impl Pins {
    /// Names the directory after the test and this process; the daemon makes it.
    #[must_use]
    pub fn new(label: &str) -> Self {
        Self(Path::new(BPFFS).join(format!("retry-test-{label}-{}", std::process::id())))
    }

    /// Its path.
    ///
    /// # Panics
    /// It is no UTF-8: never.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.to_str().expect("a name")
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // It is not there when no daemon pinned anything.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
