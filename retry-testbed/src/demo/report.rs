//! The numbers of a run: sampled, compared, told.

use std::{io::Write as _, time::Instant};

use anyhow::Result;
use retry_testbed::{
    daemon::{CpuTime, Daemon},
    peers::listener::{Listener, Stats},
};
use serde::Serialize;

use super::{Options, view::time};

/// Everything that is counted, at one moment.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) published: u64,
    pub(crate) listeners: Vec<Stats>,
    pub(crate) together: Stats,
    pub(crate) answered_xdp: u64,
    pub(crate) answered_user: u64,
    nacks_seen: u64,
    cached: u64,
    cpu: CpuTime,
}

impl Sample {
    pub(crate) fn take(daemon: &Daemon<'_>, listeners: &[Listener], published: u64) -> Result<Self> {
        let metrics = daemon.metrics()?;
        let listeners: Vec<Stats> = listeners.iter().map(Listener::stats).collect();
        let mut together = Stats::default();
        for stats in &listeners {
            together.add(stats);
        }
        let hits = |path| metrics.count("bre_cache_hits_total", &[("path", path)]);
        // Looked up in the kernel, sent by the daemon: frames above the MTU.
        let handed_over = metrics.count("bre_xdp_handed_over_total", &[]);
        Ok(Self {
            at: Instant::now(),
            published,
            listeners,
            together,
            answered_xdp: hits("xdp").saturating_sub(handed_over),
            answered_user: hits("user") + handed_over,
            nacks_seen: metrics.count("bre_nack_requests_total", &[]),
            cached: metrics.count("bre_frames_cached_total", &[]),
            cpu: daemon.cpu_time()?,
        })
    }

    /// The same without the hits that were counted `before`.
    pub(crate) const fn without(mut self, before: &Self) -> Self {
        self.answered_xdp = self.answered_xdp.saturating_sub(before.answered_xdp);
        self.answered_user = self.answered_user.saturating_sub(before.answered_user);
        self
    }

    /// Microseconds of processor time for one NACK since `before`, when nothing else came: of the XDP programs where they
    /// answered, else of the daemon. `None` unless every NACK was a hit.
    pub(crate) fn cpu_us_per_nack(&self, before: &Self) -> Option<f64> {
        let nacks = self.nacks_seen - before.nacks_seen;
        let by_xdp = self.answered_xdp - before.answered_xdp;
        let hits = by_xdp + self.answered_user - before.answered_user;
        let time = if by_xdp > hits / 2 {
            (self.cpu.runs > before.cpu.runs).then(|| self.cpu.programs.saturating_sub(before.cpu.programs))?
        } else {
            self.cpu.process.saturating_sub(before.cpu.process)
        };
        (nacks > 0 && hits == nacks).then(|| time.as_secs_f64() * 1e6 / float(nacks))
    }

    /// Share of one processor that the daemon's process took since `start`, in percent.
    pub(crate) fn daemon_percent(&self, start: &Self) -> f64 {
        let time = self.at.duration_since(start.at).as_secs_f64();
        let used = self.cpu.process.saturating_sub(start.cpu.process);
        100.0 * used.as_secs_f64() / time.max(1e-3)
    }
}

/// Latency in microseconds.
#[derive(Debug, Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    max: u64,
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    published: u64,
    lost: u64,
    nacks: u64,
    answered_xdp: u64,
    answered_user: u64,
    recovered: u64,
    unrecovered: u64,
    latency_us: Latency,
    xdp_mode: String,
    xdp_reason: String,
    cpu_us_per_nack: Option<f64>,
    daemon_cpu_percent: f64,
    /// Packets that the links dropped: frames, and repairs that were sent to a group.
    dropped_on_links: u64,
    /// Frames with wrong bytes, and answers that no endpoint may give.
    wrong: u64,
    /// Of the unrecovered, those that the endpoint itself had not received.
    not_held: u64,
    #[serde(skip)]
    complaints: Vec<String>,
}

impl Report {
    pub(crate) fn new(
        start: &Sample,
        cpu_us_per_nack: Option<f64>,
        end: &Sample,
        mode: Option<String>,
        reason: String,
        dropped_on_links: u64,
        numbered: usize,
    ) -> Self {
        let all = &end.together;
        // Nothing is lost on the endpoint's link. Only when it counts fewer frames than were published may a MISS be true.
        let numbered = u64::try_from(numbered).unwrap_or(u64::MAX);
        let not_held = if end.cached < numbered { all.missed } else { 0 };
        Self {
            published: end.published,
            lost: all.lost,
            nacks: all.nacks,
            answered_xdp: end.answered_xdp,
            answered_user: end.answered_user,
            recovered: all.recovered(),
            unrecovered: all.unrecovered + all.open,
            latency_us: Latency {
                p50: all.latency.quantile(0.5),
                p99: all.latency.quantile(0.99),
                max: all.latency.max(),
            },
            xdp_mode: mode.unwrap_or_else(|| "unknown".to_owned()),
            xdp_reason: reason,
            cpu_us_per_nack: cpu_us_per_nack.map(cents),
            daemon_cpu_percent: cents(end.daemon_percent(start)),
            dropped_on_links,
            wrong: all.wrong_bytes + all.bad_answers,
            not_held,
            complaints: all.complaints.clone(),
        }
    }

    /// Whether every lost frame that the endpoint had came back, with the right bytes.
    pub(crate) const fn recovered_all(&self) -> bool {
        self.unrecovered <= self.not_held && self.wrong == 0
    }

    /// The result in sentences.
    pub(crate) fn words(&self, options: &Options) -> String {
        let mut text = format!(
            "{} frames were published. The {} listeners lost {} and sent {} NACKs.\n",
            self.published, options.listeners, self.lost, self.nacks
        );
        let answered = self.answered_xdp + self.answered_user;
        if self.answered_xdp > 0 {
            let share = 100.0 * float(self.answered_xdp) / float(answered);
            text += &format!(
                "XDP answered {} of the hits ({share:.2} %), the daemon {}: frames above the MTU are its own.\n",
                self.answered_xdp, self.answered_user
            );
        } else if answered > 0 {
            text +=
                &format!("The daemon answered all {answered} hits: XDP is {} ({}).\n", self.xdp_mode, self.xdp_reason);
        }
        if self.recovered > 0 {
            text += &format!(
                "{} frames came back, checked byte by byte: half within {}, 99 % within {}, the slowest in {}.\n",
                self.recovered,
                time(self.latency_us.p50),
                time(self.latency_us.p99),
                time(self.latency_us.max)
            );
        }
        if let Some(cost) = self.cpu_us_per_nack {
            text += &format!(
                "A NACK cost {cost:.2} µs of processor time, measured before frames got lost; the daemon used {:.1} % of a core, most of it to take in frames.\n",
                self.daemon_cpu_percent
            );
        }
        for complaint in self.complaints.iter().take(10) {
            text += &format!("Wrong: {complaint}\n");
        }
        text += &match (self.recovered_all(), self.unrecovered) {
            (true, 0) if self.lost == 0 => "Nothing was lost.".to_owned(),
            (true, 0) => "Every lost frame was recovered.".to_owned(),
            (true, open) => {
                format!("{open} frames were not recovered: the endpoint did not have them.")
            }
            (false, open) => format!("FAILED: {open} frames were not recovered, {} packets were wrong.", self.wrong),
        };
        text
    }

    /// One object on one line of stdout.
    pub(crate) fn print_json(&self) -> Result<()> {
        let text = serde_json::to_string(self)?;
        writeln!(std::io::stdout().lock(), "{text}")?;
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^53")]
const fn float(count: u64) -> f64 {
    count as f64
}

/// To two decimals.
fn cents(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
