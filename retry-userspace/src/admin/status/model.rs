//! What the page shows, as JSON: numbers in the units that their names say, and words.

use std::collections::BTreeMap;
use std::time::Duration;

use retry_common::counter::Counter;
use retry_common::latency::Histogram;
use retry_common::wire::frame::Class;
use serde::Serialize;

use super::attention::{Attention, attention};
use super::history::Growth;
use super::{Details, Peer};
use crate::metrics::{COMMIT, RINGS, Snapshot};
use crate::talkers::{Refusal, Talker, Top};

/// The daemon at one time.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    pub(super) instance: String,
    pub(super) host: String,
    pub(super) kernel: String,
    pub(super) version: &'static str,
    pub(super) commit: &'static str,
    /// `ready`, `degraded`, `not_ready`, `starting` or `draining`.
    pub(super) status: &'static str,
    pub(super) reasons: Vec<String>,
    pub(super) workers_ready: usize,
    pub(super) workers_total: usize,
    pub(super) uptime_seconds: f64,
    pub(super) xdp: Xdp,
    pub(super) interfaces: Vec<Interface>,
    /// Every NACK that came, and what was found.
    pub(super) nacks: Vec<Counted>,
    /// What left, and what was left out.
    pub(super) answers: Vec<Counted>,
    pub(super) limits: Vec<Limit>,
    /// How long the kernel program takes per NACK; absent where that is not measured.
    pub(super) latency: Option<Latency>,
    /// Who asks most; absent with `-top-talkers 0`.
    pub(super) talkers: Option<Talkers>,
    /// Frames that can be found.
    pub(super) frames: u64,
    pub(super) classes: Vec<OfClass>,
    pub(super) rings: Vec<Ring>,
    /// Absent without a shared store.
    pub(super) redis: Option<Redis>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) peers: Vec<OfPeer>,
    pub(super) handover: Handover,
    pub(super) privileges: Privileges,
    pub(super) attention: Vec<Attention>,
}

/// The path that answers NACKs, and why.
#[derive(Debug, Serialize)]
pub(super) struct Xdp {
    pub(super) mode: &'static str,
    pub(super) reason: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Interface {
    pub(super) name: String,
    pub(super) roles: Vec<&'static str>,
    pub(super) mode: &'static str,
    pub(super) reason: String,
    /// Packets of the kernel program that the driver took; absent where none is counted.
    pub(super) sent: Option<u64>,
    pub(super) lost: Option<u64>,
}

/// A number of each path.
#[derive(Debug, Serialize)]
pub(super) struct Counted {
    pub(super) name: &'static str,
    pub(super) kernel: u64,
    pub(super) daemon: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Limit {
    pub(super) level: &'static str,
    /// The settings in force, as on a command line.
    pub(super) settings: String,
    /// NACKs over it.
    pub(super) kernel: u64,
    pub(super) daemon: u64,
}

/// Of the NACKs of the last minutes. Both quantiles are absent without any.
#[derive(Debug, Serialize)]
pub(super) struct Latency {
    pub(super) window_seconds: f64,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct Talkers {
    pub(super) window_seconds: f64,
    pub(super) sources: Vec<OfTalker>,
    pub(super) flows: Vec<OfTalker>,
}

#[derive(Debug, Serialize)]
pub(super) struct OfTalker {
    pub(super) name: String,
    pub(super) asked: u64,
    /// `asked` differs from what was asked by at most this much, in 95 of 100 cases.
    pub(super) error: u64,
    pub(super) answered: u64,
    pub(super) missed: u64,
    /// By reason; a reason of which there is none is absent.
    pub(super) refused: BTreeMap<&'static str, u64>,
    pub(super) bytes_out: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct OfClass {
    pub(super) class: &'static str,
    pub(super) ring: &'static str,
    pub(super) ttl_seconds: f64,
    /// 0 without any.
    pub(super) oldest_age_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Ring {
    pub(super) ring: &'static str,
    pub(super) used_bytes: u64,
    pub(super) size_bytes: u64,
    pub(super) oldest_age_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct Redis {
    pub(super) up: bool,
    pub(super) reason: Option<String>,
    pub(super) queued_frames: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) up: bool,
    pub(super) rtt_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct OfPeer {
    pub(super) nack: String,
    pub(super) tier: u8,
    pub(super) preference: u8,
    pub(super) draining: bool,
    pub(super) age_seconds: f64,
    pub(super) expires_in_seconds: f64,
}

/// What the process may do.
#[derive(Debug, Serialize)]
pub(super) struct Privileges {
    pub(super) capabilities: Vec<String>,
    pub(super) no_new_privileges: bool,
    /// `on`, `log` or `off`.
    pub(super) seccomp: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Handover {
    pub(super) start_mode: &'static str,
    pub(super) on: bool,
    pub(super) bpf_lease_seconds: f64,
    pub(super) daemon_lease_seconds: f64,
    /// Starts that went on with an earlier daemon's frames.
    pub(super) adopted: u64,
}

/// Names of `nacks`, and the counters of each.
const NACKS: [(&str, &[Counter]); 5] = [
    ("asked", &[Counter::NackRequests]),
    ("hit", &[Counter::CacheHits]),
    ("miss", &[Counter::CacheMisses]),
    ("over_limit", &[Counter::LimitedAddress, Counter::LimitedChain, Counter::LimitedSequence, Counter::LimitedGroup]),
    (
        "dropped",
        &[
            Counter::NackWrongSize,
            Counter::NackWrongMagic,
            Counter::NackWrongType,
            Counter::NackRange,
            Counter::NackWrongLength,
            Counter::NackWrongChecksum,
            Counter::NackUnanswerable,
            Counter::NackStale,
            Counter::NackSocketOverflow,
        ],
    ),
];

/// Names of `answers`, and the counters of each.
const ANSWERS: [(&str, &[Counter]); 8] = [
    ("ack", &[Counter::AcksSent]),
    ("miss", &[Counter::MissesSent]),
    ("throttled", &[Counter::ThrottledSent]),
    ("multicast", &[Counter::Retransmits]),
    ("unicast", &[Counter::UnicastRetransmits]),
    ("held_down", &[Counter::RetransmitHeldDown]),
    ("other_instance", &[Counter::RetransmitDedup]),
    ("failed", &[Counter::RetransmitErrors, Counter::AckErrors, Counter::MissErrors, Counter::ThrottledErrors]),
];

/// Levels of limits, the settings of each, and its counter.
const LIMITS: [(&str, &[&str], Counter); 4] = [
    ("ip", &["rl-ip-rate", "rl-ip-burst"], Counter::LimitedAddress),
    ("chain", &["rl-chain-rate", "rl-chain-window"], Counter::LimitedChain),
    ("sequence", &["rl-sequence-max", "rl-sequence-window"], Counter::LimitedSequence),
    ("group", &["rl-group-rate", "rl-group-burst"], Counter::LimitedGroup),
];

impl Status {
    pub(super) fn of(snapshot: &Snapshot, details: &Details, growth: &Growth, uptime: Duration) -> Self {
        let counted = |(name, counters): &(&'static str, &[Counter])| {
            let sum = |of: &dyn Fn(Counter) -> u64| counters.iter().map(|one| of(*one)).fold(0, u64::saturating_add);
            Counted { name, kernel: sum(&|one| snapshot.kernel.get(one)), daemon: sum(&|one| snapshot.user.get(one)) }
        };
        let value = |flag: &str| details.limits.iter().find(|(name, _)| *name == flag).map(|(_, value)| value.as_str());
        let limit = |(level, flags, counter): &(&'static str, &[&str], Counter)| Limit {
            level,
            settings: flags
                .iter()
                .filter_map(|flag| Some(format!("-{flag} {}", value(flag)?)))
                .collect::<Vec<_>>()
                .join(" "),
            kernel: snapshot.kernel.get(*counter),
            daemon: snapshot.user.get(*counter),
        };
        let interfaces = details.interfaces.iter().map(|one| {
            let sent = snapshot.delivered.iter().find(|(name, _)| *name == one.name).map(|(_, sent)| sent);
            Interface {
                name: one.name.clone(),
                roles: one.roles.clone(),
                mode: snapshot.xdp_mode,
                reason: snapshot.xdp_why.clone(),
                sent: sent.map(|sent| sent.packets),
                lost: sent.map(|sent| sent.drops),
            }
        });
        let classes = Class::ALL.iter().zip(&snapshot.classes).map(|(class, seen)| OfClass {
            class: class.name(),
            ring: RINGS[class.lane()],
            ttl_seconds: seen.life.as_secs_f64(),
            oldest_age_seconds: seen.oldest_age.as_secs_f64(),
        });
        let rings = RINGS.iter().zip(&snapshot.lanes).map(|(ring, lane)| Ring {
            ring,
            used_bytes: lane.used_bytes,
            size_bytes: lane.size_bytes,
            oldest_age_seconds: Duration::from_millis(lane.oldest_age_ms).as_secs_f64(),
        });
        let upstreams = snapshot.upstreams.iter().map(|one| Upstream {
            name: one.name.clone(),
            up: one.up,
            rtt_seconds: one.rtt.map(|rtt| rtt.as_secs_f64()),
        });
        Self {
            instance: snapshot.host.instance.clone(),
            host: snapshot.host.name.clone(),
            kernel: snapshot.host.kernel.clone(),
            version: env!("CARGO_PKG_VERSION"),
            commit: COMMIT,
            status: snapshot.status(),
            reasons: snapshot.problems.iter().chain(&snapshot.warnings).cloned().collect(),
            workers_ready: snapshot.workers_ready,
            workers_total: snapshot.workers_total,
            uptime_seconds: uptime.as_secs_f64(),
            xdp: Xdp { mode: snapshot.xdp_mode, reason: snapshot.xdp_why.clone() },
            interfaces: interfaces.collect(),
            nacks: NACKS.iter().map(counted).collect(),
            answers: ANSWERS.iter().map(counted).collect(),
            limits: LIMITS.iter().map(limit).collect(),
            latency: growth.took().map(|took| latency(&took, growth.window())),
            talkers: snapshot.talkers.as_ref().map(talkers),
            frames: snapshot.frames,
            classes: classes.collect(),
            rings: rings.collect(),
            redis: snapshot.store.as_ref().map(|store| Redis {
                up: store.up,
                reason: details.store_why.clone(),
                queued_frames: store.queued,
            }),
            upstreams: upstreams.collect(),
            peers: details.peers.iter().map(peer).collect(),
            handover: Handover {
                start_mode: snapshot.start_mode,
                on: details.handover.on,
                bpf_lease_seconds: details.handover.bpf_lease.as_secs_f64(),
                daemon_lease_seconds: details.handover.daemon_lease.as_secs_f64(),
                adopted: snapshot.user.get(Counter::HandoversAdopted),
            },
            privileges: Privileges {
                capabilities: details.rights.capabilities.clone(),
                no_new_privileges: details.rights.no_new_privileges,
                seccomp: details.rights.seccomp,
            },
            attention: attention(snapshot, details, growth, uptime),
        }
    }
}

fn latency(took: &Histogram, window: Duration) -> Latency {
    let quantile = |share| took.quantile_ns(share).map(|ns| Duration::from_nanos(ns).as_secs_f64());
    Latency { window_seconds: window.as_secs_f64(), p50_seconds: quantile(0.5), p99_seconds: quantile(0.99) }
}

fn talkers(top: &Top) -> Talkers {
    Talkers {
        window_seconds: top.window.as_secs_f64(),
        sources: top.sources.iter().map(talker).collect(),
        flows: top.flows.iter().map(talker).collect(),
    }
}

fn talker(talker: &Talker) -> OfTalker {
    let Talker { asked, answered, missed, bytes_out, error, .. } = *talker;
    let refused = Refusal::ALL.iter().zip(talker.refused).filter(|(_, times)| *times > 0);
    let refused = refused.map(|(reason, times)| (reason.name(), times)).collect();
    OfTalker { name: talker.name.clone(), asked, error, answered, missed, refused, bytes_out }
}

fn peer(peer: &Peer) -> OfPeer {
    OfPeer {
        nack: peer.nack.to_string(),
        tier: peer.tier,
        preference: peer.preference,
        draining: peer.draining,
        age_seconds: peer.age.as_secs_f64(),
        expires_in_seconds: peer.expires_in.as_secs_f64(),
    }
}
