//! How long the kernel program takes for a hit, by its own histograms: p50, p99 and p99.9 at 10 k and 1 M NACK/s, from the look at
//! the NACK to its redirect. And what the histograms cost: CPU time of a hit with them beside one without, in turns.

use anyhow::{Context as _, Result, ensure};
use retry_common::latency::{Histogram, Measured};
use retry_testbed::daemon::Daemon;
use retry_userspace::parts::datapath::pinned;

use crate::bench::{
    contenders::Contenders,
    model::{Measurement, Row, Target},
    options::Settings,
    rig::{Ask, Rig, Stretch},
    subject::{self, IN_XDP, LIMITS_OUT_OF_REACH, UNICAST},
};

const LENGTH: usize = 400;
const FRAMES: u64 = 4096;
/// NACKs a second, and what they are called.
const RATES: [(f64, &str); 2] = [(10e3, "10 k"), (1e6, "1 M")];
/// Quantiles and their names.
const QUANTILES: [(f64, &str); 3] = [(0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")];
/// Flags of the daemon, what is counted, and what it is called.
const WAYS: [(&[&str], Measured, &str); 2] = [
    (&["-suppress-ack"], Measured::InPlace, "unicast frame in place"),
    (&[], Measured::Clones, "unicast frame and ACK"),
];
/// What the histograms may cost.
const MOST: f64 = 1.02;

pub(super) fn measure(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabrics = (rigs.subject.fabric(), rigs.socket.fabric());
    let mut found = Measurement::default();
    for (flags, measured, called) in WAYS {
        let groups = [UNICAST, LIMITS_OUT_OF_REACH, IN_XDP, flags];
        let on = subject::start(&settings.binary, &fabrics.0, &groups)?;
        let without = [&groups[..], &[&["-latency-histograms=false"]]].concat();
        let off = subject::start(&settings.binary, &fabrics.1, &without)?;
        subject::fill(&mut rigs.subject, &on, FRAMES, LENGTH)?;
        subject::fill(&mut rigs.socket, &off, FRAMES, LENGTH)?;
        let full =
            Stretch { ask: Ask::frames(FRAMES), rate: None, time: settings.stretch, length: LENGTH, ack_leads: true };
        for (rate, per_second) in RATES {
            let mut rounds: Vec<[f64; QUANTILES.len()]> = Vec::new();
            for _ in 0..settings.rounds {
                let before = histogram(&on, measured)?;
                rigs.subject.load(&Stretch { rate: Some(rate), ..full }).context("the daemon")?;
                let took = difference(&histogram(&on, measured)?, &before);
                ensure!(took.count() > 0, "nothing was measured");
                rounds.push(QUANTILES.map(|(share, _)| nanoseconds(&took, share)));
            }
            for (place, (_, kind)) in QUANTILES.into_iter().enumerate() {
                let values: Vec<f64> = rounds.iter().map(|round| round[place]).collect();
                let case = format!("{name}: {called} at {per_second} NACK/s, {kind}");
                found.rows.push(Row::alone(case, "ns", &values, Target::None));
            }
        }
        let (mut with, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..settings.rounds {
            with.push(cpu_time(&mut rigs.subject, &on, &full)?);
            bare.push(cpu_time(&mut rigs.socket, &off, &full)?);
        }
        let case = format!("{name}: {called}, CPU time with histograms");
        found.rows.push(Row::beside(case, "ns", &with, ("without", &bare), Target::RatioAtMost(MOST)));
    }
    found
        .notes
        .push("a histogram tells a time to within 6.25 %; where NACKs come densely one in 16 is measured".to_owned());
    Ok(found)
}

/// CPU time of a copy at full rate, nanoseconds.
fn cpu_time(rig: &mut Rig, daemon: &Daemon<'_>, full: &Stretch) -> Result<f64> {
    let copies =
        || Ok::<u64, anyhow::Error>(daemon.metrics()?.count("bre_unicast_retransmits_total", &[("path", "xdp")]));
    let before = copies()?;
    let load = rig.load(full)?;
    Ok(load.nanoseconds(copies()? - before))
}

fn histogram(daemon: &Daemon<'_>, measured: Measured) -> Result<Histogram> {
    let all = pinned::latency(daemon.pins())?;
    all.get(measured as usize).copied().context("no such histogram")
}

fn difference(after: &Histogram, before: &Histogram) -> Histogram {
    let mut difference = *after;
    for (count, before) in difference.counts.iter_mut().zip(&before.counts) {
        *count -= before;
    }
    difference.sum_ns -= before.sum_ns;
    difference
}

#[expect(clippy::cast_precision_loss, reason = "below 2^53 ns")]
fn nanoseconds(histogram: &Histogram, share: f64) -> f64 {
    histogram.quantile_ns(share).unwrap_or(0) as f64
}
