//! What an operator has to look at: what `/readyz` knows, and what the alerts of docs/operations.md would tell, each with
//! its section there.

use std::time::Duration;

use retry_common::counter::Counter;
use serde::Serialize;

use super::Details;
use super::history::Growth;
use crate::metrics::{Snapshot, XdpReason};

/// Where docs/operations.md can be read.
const RUNBOOK: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/operations.md");
/// For how long a start without the frames of an earlier daemon is told: as long as the alert's window.
const START_TOLD: Duration = Duration::from_secs(600);
/// More frames than these wait for the shared store: it is slow.
const QUEUE_LONG: usize = 1_000;

/// A section of docs/operations.md.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Section(&'static str);

impl Section {
    const REDIS_DEAD: Self = Self("Redis is dead or refuses us");
    const REDIS_SPLIT: Self = Self("The Redis Cluster is split");
    const REDIS_SLOW: Self = Self("Redis is slow");
    const CACHE_SHORT: Self = Self("The cache is shorter than the TTL");
    const LIMIT: Self = Self("A limit is too tight");
    const UPSTREAM: Self = Self("An upstream is lost");
    const BEACON: Self = Self("A beacon is not heard");
    const NOT_READY: Self = Self("The daemon is not ready");
    const LOST: Self = Self("Answers are lost at an interface");
    const FELL_BACK: Self = Self("XDP fell back");
    const OVERFLOW: Self = Self("The receive buffer overflows");
    const REFUSED: Self = Self("Frames are refused");
    const PORT: Self = Self("Another program has the NACK port");
    const NOT_SENT: Self = Self("Answers do not leave");
    const EVENTS: Self = Self("The event ring is full");
    const NO_ANSWER: Self = Self("A listener gets no answer");
    const DAMAGED: Self = Self("The frame log is damaged");
    const RESTART: Self = Self("Restart and upgrade");

    /// Its heading.
    pub(super) const fn title(self) -> &'static str {
        self.0
    }

    /// Its link: the heading in small letters, a hyphen for each space.
    fn link(self) -> String {
        format!("{RUNBOOK}#{}", self.0.to_lowercase().replace(' ', "-"))
    }
}

/// One thing to look at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub(super) struct Attention {
    /// What is wrong, in one line.
    pub(super) what: String,
    /// Heading of the section of docs/operations.md.
    pub(super) section: &'static str,
    /// Where the section can be read.
    pub(super) link: String,
}

/// Counters that are to stand still, the section for when they do not, and what to say before their number.
const GROWING: &[(&[Counter], Section, &str)] = &[
    (&[Counter::EvictedLapShort, Counter::EvictedLapLong], Section::CACHE_SHORT, "live frames were overwritten"),
    (&[Counter::LimitedAddress], Section::LIMIT, "NACKs were over the limit of their address"),
    (&[Counter::LimitedChain], Section::LIMIT, "NACKs were over the limit of their address and flow"),
    (&[Counter::LimitedSequence], Section::LIMIT, "NACKs were over the limit of their frame"),
    (&[Counter::LimitedGroup], Section::LIMIT, "NACKs were over the limit of their address and group"),
    (
        &[
            Counter::ProxyFailedTimeout,
            Counter::ProxyFailedThrottled,
            Counter::ProxyFailedUnreachable,
            Counter::ProxyFailedNone,
        ],
        Section::UPSTREAM,
        "recoveries from upstream failed",
    ),
    (&[Counter::PassedLease], Section::FELL_BACK, "NACKs were passed on because the lease was over"),
    (&[Counter::FrameSocketOverflow], Section::OVERFLOW, "frames were lost because a receive buffer was full"),
    (
        &[Counter::FrameNotJoined, Counter::FrameOtherGroup],
        Section::REFUSED,
        "datagrams on the data port were refused: unicast, or a group that is no shard",
    ),
    (
        &[Counter::NackPortContended],
        Section::PORT,
        "looks, one per second, found another program's socket at the NACK address and port",
    ),
    (
        &[Counter::SendsBufferFull, Counter::SendsUnresolved, Counter::SendsCrowded],
        Section::NOT_SENT,
        "answers and repairs did not leave",
    ),
    (&[Counter::PassedEventsFull], Section::EVENTS, "NACKs were passed on because the event ring was full"),
    (
        &[Counter::NackWrongChecksum, Counter::PassedMac, Counter::PassedVlan],
        Section::NO_ANSWER,
        "NACKs had a wrong checksum, another host's MAC, or a VLAN tag",
    ),
    (&[Counter::LogStaleEntries], Section::DAMAGED, "index entries of the frame log were removed as damaged"),
];

/// Everything to look at: what keeps the daemon from serving first.
pub(super) fn attention(snapshot: &Snapshot, details: &Details, growth: &Growth, uptime: Duration) -> Vec<Attention> {
    let mut all = Vec::new();
    let mut tell = |section: Section, what: String| {
        all.push(Attention { what, section: section.title(), link: section.link() });
    };
    for problem in &snapshot.problems {
        let section = match problem.starts_with("-xdp ") {
            true if problem.contains("takes no packet") => Section::LOST,
            true => Section::FELL_BACK,
            false => Section::NOT_READY,
        };
        tell(section, problem.clone());
    }
    for warning in &snapshot.warnings {
        tell(Section::LOST, warning.clone());
    }
    // A missing interface or address is among the problems.
    let fell_back = !matches!(snapshot.xdp_reason, XdpReason::Asked | XdpReason::Interface);
    if snapshot.xdp_mode == "off" && fell_back {
        let section = if snapshot.xdp_reason == XdpReason::Delivery { Section::LOST } else { Section::FELL_BACK };
        tell(section, format!("the daemon's socket answers all NACKs, not the kernel: {}", snapshot.xdp_why));
    }
    if let Some(store) = &snapshot.store {
        let why = details.store_why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        if !store.up {
            tell(Section::REDIS_DEAD, format!("Redis is not connected, or its breaker is open{why}"));
        } else {
            let errors = growth.of(Counter::CacheErrors);
            if errors > 0 {
                tell(Section::REDIS_SPLIT, since(errors, "operations of Redis failed while it is connected", growth));
            }
            let late = growth.of(Counter::StoreLate);
            if late > 0 {
                tell(Section::REDIS_SLOW, since(late, "look-ups in Redis were late while it is connected", growth));
            }
            if store.queued > QUEUE_LONG {
                tell(Section::REDIS_SLOW, format!("{} frames wait to be written to Redis", store.queued));
            }
        }
    }
    for upstream in snapshot.upstreams.iter().filter(|upstream| !upstream.up) {
        tell(Section::UPSTREAM, format!("the upstream endpoint {} does not answer, and is asked last", upstream.name));
    }
    // Alone on a fabric nothing is wrong.
    if details.peers.is_empty() && snapshot.user.get(Counter::AdvertsHeard) > 0 {
        tell(Section::BEACON, "other endpoints were heard by beacon, and none is any more".to_owned());
    }
    if snapshot.start_mode == "unfit" && uptime < START_TOLD {
        tell(Section::RESTART, "the start could not take over the frames of an earlier daemon".to_owned());
    }
    if growth.lost() > 0 {
        let lost = since(growth.lost(), "packets of the kernel program were lost at an interface", growth);
        tell(Section::LOST, lost);
    }
    for (counters, section, what) in GROWING {
        let grown = counters.iter().map(|counter| growth.of(*counter)).fold(0, u64::saturating_add);
        if grown > 0 {
            tell(*section, since(grown, what, growth));
        }
    }
    all
}

fn since(count: u64, what: &str, growth: &Growth) -> String {
    format!("{what}: {count} in the last {} s", growth.window().as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::history::tests::between;

    /// Every counter of the list, and those of Redis and the drivers, is told once it grows, with a section of the runbook.
    #[test]
    fn what_grows_is_told_with_its_section() {
        let runbook = include_str!("../../../../docs/operations.md");
        let quiet = Snapshot { xdp_mode: "native", store: Some(up()), ..Snapshot::default() };
        let told = |then: &Snapshot, now: &Snapshot| {
            attention(now, &Details::default(), &between(then, now), Duration::from_secs(3_600))
        };
        assert_eq!(told(&quiet, &quiet), []);
        let redis = [(Counter::CacheErrors, Section::REDIS_SPLIT), (Counter::StoreLate, Section::REDIS_SLOW)];
        let listed = GROWING.iter().flat_map(|(counters, section, _)| counters.iter().map(|one| (*one, *section)));
        for (counter, section) in listed.chain(redis) {
            let mut now = quiet.clone();
            *now.user.get_mut(counter) += 7;
            let all = told(&quiet, &now);
            assert_eq!(all.len(), 1, "{counter:?}: {all:?}");
            assert_eq!(all[0].section, section.title(), "{counter:?}");
            assert!(all[0].what.ends_with(": 7 in the last 60 s"), "{}", all[0].what);
            assert!(runbook.contains(&format!("\n## {}\n", section.title())), "no section {}", section.title());
            // What was counted before, and stands still, is over.
            assert_eq!(told(&now, &now), [], "{counter:?}");
        }
        let sent = |drops| retry_common::abi::Sent { drops, ..Default::default() };
        let now = Snapshot { delivered: vec![("eth0".into(), sent(3))], ..quiet.clone() };
        assert_eq!(told(&quiet, &now)[0].section, Section::LOST.title());
    }

    #[test]
    fn a_long_queue_is_a_slow_redis() {
        let with = |queued| {
            let store = Some(crate::metrics::StoreUse { queued, ..up() });
            let now = Snapshot { xdp_mode: "native", store, ..Snapshot::default() };
            attention(&now, &Details::default(), &between(&now, &now), Duration::ZERO)
        };
        assert_eq!(with(QUEUE_LONG), []);
        assert_eq!(with(QUEUE_LONG + 1)[0].section, Section::REDIS_SLOW.title());
    }

    const fn up() -> crate::metrics::StoreUse {
        crate::metrics::StoreUse { up: true, queued: 0 }
    }
}
