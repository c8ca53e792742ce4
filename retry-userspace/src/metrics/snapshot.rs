//! All numbers at one time, and the parts that they are made of.

use std::net::Ipv6Addr;
use std::time::Duration;

use retry_common::abi::Sent;
use retry_common::counter::Counters;
use retry_common::latency::Histogram;
use retry_common::wire::frame::Class;

use super::host::Host;
use super::process::Process;
use super::xdp::XdpReason;
use crate::counters::StoredBySource;
use crate::framelog::LaneUse;
use crate::latency::Wait;
use crate::talkers::{Talker, Top};

/// All numbers that anyone shows, at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counters of the kernel's path.
    pub kernel: Counters,
    /// Counters of the daemon's path.
    pub user: Counters,
    /// Frames stored, by their source.
    pub stored: StoredBySource,
    /// How long things took; `None` with `-latency-histograms=false`.
    pub latency: Option<Latency>,
    /// Sources and flows that ask most; `None` with `-top-talkers 0`.
    pub talkers: Option<Top>,
    /// Frames that can be found.
    pub frames: u64,
    /// The lanes of the frame log: short-lived classes, long-lived classes.
    pub lanes: [LaneUse; 2],
    /// The classes, in the order of [`Class::ALL`].
    pub classes: [ClassUse; Class::ALL.len()],
    /// `native`, `skb` or `off`.
    pub xdp_mode: &'static str,
    /// Why that mode.
    pub xdp_reason: XdpReason,
    /// The same in full.
    pub xdp_why: String,
    /// Addresses that repairs leave from.
    pub own_sources: Vec<Ipv6Addr>,
    /// What keeps the daemon from serving, each in one line.
    pub problems: Vec<String>,
    /// What keeps it from serving well, likewise.
    pub warnings: Vec<String>,
    /// What became of packets that the kernel program redirected, by interface.
    pub delivered: Vec<(String, Sent)>,
    /// Workers that serve.
    pub workers_ready: usize,
    /// Workers that should.
    pub workers_total: usize,
    /// The shared store, when there is one.
    pub store: Option<StoreUse>,
    /// The upstream endpoints.
    pub upstreams: Vec<Upstream>,
    /// Sources that the data groups are joined from; 0 with any source.
    pub ssm_sources: usize,
    /// Known listeners.
    pub known_listeners: usize,
    /// Sockets that frames are received on.
    pub ingress_sockets: usize,
    /// The host.
    pub host: Host,
    /// What the process takes, where /proc tells.
    pub process: Option<Process>,
    /// True from the signal to the end.
    pub draining: bool,
    /// What the frame log held at the start: `fresh`, `unfit`, `adopted` or `read_over`.
    pub start_mode: &'static str,
    /// When settings were last read and could stand, seconds of Unix time.
    pub settings_read_s: u64,
}

impl Snapshot {
    /// True when NACKs are answered, well or not.
    pub fn is_ready(&self) -> bool {
        matches!(self.status(), "ready" | "degraded")
    }

    /// `ready`, or what the daemon is instead.
    pub fn status(&self) -> &'static str {
        if self.draining {
            "draining"
        } else if self.workers_ready < self.workers_total {
            "starting"
        } else if !self.problems.is_empty() {
            "not_ready"
        } else if self.warnings.is_empty() {
            "ready"
        } else {
            "degraded"
        }
    }

    /// One in which every metric stands, also of parts that may have nothing to show.
    pub fn complete() -> Self {
        Self {
            store: Some(StoreUse::default()),
            stored: StoredBySource { sources: [(Ipv6Addr::UNSPECIFIED, 0)].into(), other: 0 },
            own_sources: vec![Ipv6Addr::UNSPECIFIED],
            latency: Some(Latency::default()),
            talkers: Some(Top { sources: vec![Talker::default()], flows: vec![Talker::default()], ..Top::default() }),
            process: Some(Process::default()),
            delivered: vec![(String::new(), Sent::default())],
            upstreams: vec![Upstream { rtt: Some(Duration::ZERO), ..Upstream::default() }],
            ..Self::default()
        }
    }
}

/// How long things took.
#[derive(Clone, Debug)]
pub struct Latency {
    /// In the kernel program, in the order of [`retry_common::latency::Measured::ALL`]; empty where it has none.
    pub kernel: Vec<Histogram>,
    /// In the daemon.
    pub user: [(Wait, Histogram); Wait::ALL.len()],
}

impl Default for Latency {
    fn default() -> Self {
        Self { kernel: Vec::new(), user: Wait::ALL.map(|what| (what, Histogram::default())) }
    }
}

/// How the frames of one class do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClassUse {
    /// Their life.
    pub life: Duration,
    /// Age of the oldest that is held, to within a hundredth of the life; zero without any.
    pub oldest_age: Duration,
}

/// How the shared store does.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreUse {
    /// It is connected and answers.
    pub up: bool,
    /// Frames that wait to be written.
    pub queued: usize,
}

/// How an upstream endpoint does.
#[derive(Clone, Debug, Default)]
pub struct Upstream {
    /// Host and port.
    pub name: String,
    /// It is asked with the others.
    pub up: bool,
    /// Smoothed round-trip time, once measured.
    pub rtt: Option<Duration>,
}

/// Where the numbers come from.
pub trait Source: Send + Sync {
    /// The numbers now.
    fn snapshot(&self) -> Snapshot;
}
