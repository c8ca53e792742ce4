//! Answers per second at full rate, and the CPU time of each.
//!
//! Two kinds of case: *scattered* ones, as a fabric would see it (many frames of many flows in random order, many
//! listeners of unequal weight, the kernel's settings as they come), and *hot* ones, which show the program alone (4,096
//! frames of one flow in order, one listener). CPU time beside the reflector's is the figure of each: the rate of either is
//! bounded by the generator when it is as fast as that, and such a rate stands beside no other.
//!
//! The generator's stretches take turns: reflector, daemon, plain server, daemon by its socket, and again. What the kernel
//! sends is counted where it is sent, in the reflector and in the daemon's counters, so that what a queue loses on the way
//! back costs the figure nothing; the share that the client's end counted is in the notes. That end compares the first four of every 4096 that it gets
//! with what they have to be, and counts what the servers on sockets answer.

use anyhow::{Context as _, Result, ensure};
use retry_testbed::daemon::Daemon;

use crate::bench::{
    contenders::{Contenders, best_offer},
    model::{Measurement, Row, Target},
    options::Settings,
    plain::{Answering, Plain},
    profile,
    rig::{Ask, Load, Order, Rig, ShortLists, Sources, Stretch},
    stats::Spread,
    subject::{self, BOTH, BY_SOCKET, IN_XDP, LIMITS_OUT_OF_REACH, MULTICAST, UNICAST},
};

/// A metric of the daemon, with a label besides the path.
type Series = (&'static str, Option<(&'static str, &'static str)>);

const ACKS: Series = ("bre_responses_sent_total", Some(("type", "ack")));
const MISSES: Series = ("bre_responses_sent_total", Some(("type", "miss")));
const COPIES: Series = ("bre_unicast_retransmits_total", None);
const REPAIRS: Series = ("bre_retransmits_total", None);
const DROPPED: Series = ("bre_rate_limit_drops_total", Some(("level", "ip")));

/// One case of this kind.
#[derive(Debug)]
pub(crate) struct Rate {
    /// What is counted.
    unit: &'static str,
    /// Groups of the daemon's flags, without where it answers.
    flags: &'static [&'static [&'static str]],
    /// Frames in the cache.
    frames: u64,
    /// Bytes of each.
    length: usize,
    /// What is asked for.
    ask: Ask,
    /// How much of what came back is one answer in full.
    count: fn(&Load) -> u64,
    /// The daemon's counters of its parts: the least of them counts.
    sent: &'static [Series],
    /// True when nothing comes back.
    silent: bool,
    /// All frames are asked for once before the measurement.
    primed: bool,
    /// What the plain server does, if it is a reference.
    plain: Option<Answering>,
    /// Whether the daemon by its socket is a reference.
    by_socket: bool,
    /// Most CPU time of an answer, as a multiple of the reflector's.
    target: Option<f64>,
    /// Whether the kernel's lists of free pages are short, which is a setting that a host can have (`vm.percpu_pagelist_high_fraction`).
    tuned: bool,
    /// Whether the daemon's own CPU time is told.
    daemon: bool,
}

/// What most cases have.
const USUAL: Rate = Rate {
    unit: "hits/s",
    flags: &[],
    frames: 4096,
    length: 400,
    ask: Ask::frames(4096),
    count: |load| load.answers.unicast_frames,
    sent: &[COPIES],
    silent: false,
    primed: false,
    plain: None,
    by_socket: false,
    target: None,
    tuned: false,
    daemon: false,
};

const ONLY_FRAME: Answering = Answering { ack: false, unicast: true, multicast: false };

pub(crate) static HOT_FRAME_400: Rate = Rate {
    flags: &[UNICAST, LIMITS_OUT_OF_REACH, &["-suppress-ack"]],
    plain: Some(ONLY_FRAME),
    target: Some(1.9),
    ..USUAL
};

pub(crate) static HOT_FRAME_1400: Rate =
    Rate { flags: &[UNICAST, LIMITS_OUT_OF_REACH, &["-suppress-ack"]], length: 1400, plain: Some(ONLY_FRAME), ..USUAL };

pub(crate) static HOT_FRAME_ACK: Rate = Rate {
    flags: &[UNICAST, LIMITS_OUT_OF_REACH],
    count: |load| load.answers.acks.min(load.answers.unicast_frames),
    plain: Some(Answering { ack: true, unicast: true, multicast: false }),
    by_socket: true,
    target: Some(3.5),
    daemon: true,
    sent: &[ACKS, COPIES],
    ..USUAL
};

/// More frames than can be asked for within the hold-down of 10 ms, so that it holds none back.
const MANY: u64 = 131_072;

pub(crate) static HOT_MULTICAST_ACK: Rate = Rate {
    flags: &[MULTICAST, LIMITS_OUT_OF_REACH],
    frames: MANY,
    ask: Ask::frames(MANY),
    count: |load| load.answers.acks.min(load.answers.multicast_frames),
    plain: Some(Answering { ack: true, unicast: false, multicast: true }),
    target: Some(4.0),
    sent: &[ACKS, REPAIRS],
    ..USUAL
};

pub(crate) static HOT_BOTH_ACK: Rate = Rate {
    flags: &[BOTH, LIMITS_OUT_OF_REACH],
    frames: MANY,
    ask: Ask::frames(MANY),
    count: |load| load.answers.acks.min(load.answers.unicast_frames).min(load.answers.multicast_frames),
    plain: Some(Answering { ack: true, unicast: true, multicast: true }),
    sent: &[ACKS, COPIES, REPAIRS],
    ..USUAL
};

pub(crate) static HOT_HELD: Rate = Rate {
    flags: &[MULTICAST, LIMITS_OUT_OF_REACH, &["-repair-holddown", "1h"]],
    count: |load| load.answers.acks,
    primed: true,
    plain: Some(Answering { ack: true, unicast: false, multicast: false }),
    sent: &[ACKS],
    ..USUAL
};

pub(crate) static HOT_MISS: Rate = Rate {
    unit: "MISSes/s",
    flags: &[UNICAST, LIMITS_OUT_OF_REACH],
    ask: Ask { first: 1 << 40, ..Ask::frames(4096) },
    count: |load| load.answers.misses,
    plain: Some(ONLY_FRAME),
    target: Some(1.5),
    sent: &[MISSES],
    ..USUAL
};

pub(crate) static LIMITED: Rate = Rate {
    unit: "drops/s",
    flags: &[UNICAST, LIMITS_OUT_OF_REACH, &["-rl-ip-rate", "1", "-rl-ip-burst", "1"]],
    count: |_| 0,
    sent: &[DROPPED],
    silent: true,
    ..USUAL
};

/// Frames of the scattered cases, and of the large ones.
const SPREAD: u64 = 50_000;
const LARGE: u64 = 1_000_000;

/// `count` frames of 256 flows at random, asked for by 1,000 listeners of unequal weight.
const fn scattered(count: u64) -> Ask {
    Ask { first: 1, count, order: Order::Random, flows: 256, sources: Sources::Weighted(1000) }
}

pub(crate) static SCATTERED_FRAME: Rate = Rate {
    flags: &[UNICAST, LIMITS_OUT_OF_REACH, &["-suppress-ack"]],
    frames: SPREAD,
    ask: scattered(SPREAD),
    target: Some(4.0),
    ..USUAL
};

pub(crate) static SCATTERED_FRAME_ACK: Rate = Rate {
    flags: &[UNICAST, LIMITS_OUT_OF_REACH],
    frames: SPREAD,
    ask: scattered(SPREAD),
    count: |load| load.answers.acks.min(load.answers.unicast_frames),
    sent: &[ACKS, COPIES],
    target: Some(6.0),
    ..USUAL
};

pub(crate) static SCATTERED_FRAME_ACK_TUNED: Rate = Rate { tuned: true, target: None, ..SCATTERED_FRAME_ACK };

pub(crate) static SCATTERED_FRAME_ACK_LARGE: Rate = Rate {
    flags: &[UNICAST, LIMITS_OUT_OF_REACH, &["-cache-memory", "768m"]],
    frames: LARGE,
    ask: scattered(LARGE),
    target: None,
    ..SCATTERED_FRAME_ACK
};

/// Each frame once before any comes again: the hold-down holds none back.
pub(crate) static SCATTERED_MULTICAST_ACK: Rate = Rate {
    flags: &[MULTICAST, LIMITS_OUT_OF_REACH],
    frames: SPREAD,
    ask: Ask { order: Order::Step(STEP), ..scattered(SPREAD) },
    count: |load| load.answers.acks.min(load.answers.multicast_frames),
    sent: &[ACKS, REPAIRS],
    target: Some(7.0),
    ..USUAL
};

/// A prime far from any count.
const STEP: u64 = 2_654_435_761;

pub(crate) static SCATTERED_MISS: Rate = Rate {
    unit: "MISSes/s",
    flags: &[UNICAST, LIMITS_OUT_OF_REACH],
    frames: SPREAD,
    ask: Ask { first: 1 << 40, ..scattered(SPREAD) },
    count: |load| load.answers.misses,
    sent: &[MISSES],
    target: Some(3.0),
    ..USUAL
};

/// What one round of one contender gave.
#[derive(Clone, Copy, Debug)]
struct Round {
    rate: f64,
    nanoseconds: f64,
    /// Of what was offered.
    share: f64,
}

/// Who answers as large a share of what the generator offers is bounded by the generator.
const BOUNDED: f64 = 0.97;

/// Runs one case.
pub(crate) fn measure(name: &str, case: &Rate, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabrics = (rigs.subject.fabric(), rigs.plain.fabric(), rigs.socket.fabric());
    let flags = |place: &'static [&'static str]| [case.flags, &[place]].concat();
    let daemon = subject::start(&settings.binary, &fabrics.0, &flags(IN_XDP))?;
    subject::fill_flows(&mut rigs.subject, &daemon, case.ask.flows, case.frames, case.length)?;
    let plain = case.plain.map(|answering| Plain::answering(&fabrics.1, case.frames, case.length, answering));
    let plain = plain.transpose()?;
    let by_socket = case.by_socket.then(|| subject::start(&settings.binary, &fabrics.2, &flags(BY_SOCKET)));
    let by_socket = by_socket.transpose()?;
    if let Some(daemon) = &by_socket {
        subject::fill(&mut rigs.socket, daemon, case.frames, case.length)?;
    }
    let _lists = case.tuned.then(ShortLists::new).transpose()?;

    let full = Stretch { ask: case.ask, rate: None, time: settings.stretch, length: case.length, ack_leads: true };
    if case.primed {
        let each = Stretch { rate: Some(50e3), time: std::time::Duration::from_millis(200), ..full };
        rigs.subject.load(&each)?;
    }
    let mut offers = (0.0, 0.0);
    if plain.is_some() {
        offers.0 = best_offer(&mut rigs.plain, &full, case.count).context("plain")?;
    }
    if by_socket.is_some() {
        offers.1 =
            best_offer(&mut rigs.socket, &Stretch { ack_leads: false, ..full }, case.count).context("-xdp off")?;
    }

    let idle = if case.daemon { idle_share(&daemon)? } else { 0.0 };
    let (mut reflected, mut answered, mut plainly, mut socketed) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut plain_times = Vec::new();
    let (mut busy, mut packets, mut pairs) = (Vec::new(), 0, 0);
    let (mut back, mut sent) = (0, 0);
    for _ in 0..settings.rounds {
        let (load, count) = rigs.reflect(&full).context("the reflector")?;
        ensure!(count > 0, "the reflector sent nothing back");
        reflected.push(round(&load, count));
        let before = daemon.cpu_time()?.process;
        let (load, count) = answers(case, &mut rigs.subject, &daemon, &full).context("the daemon")?;
        busy.push(((daemon.cpu_time()?.process - before).as_secs_f64() / load.whole.as_secs_f64() - idle).max(0.0));
        answered.push(round(&load, count));
        back += (case.count)(&load);
        sent += count;
        packets += load.checked.packets;
        pairs += load.checked.pairs;
        if let Some(plain) = &plain {
            let before = plain.time()?;
            let load = rigs.plain.load(&Stretch { rate: Some(offers.0), ..full }).context("plain")?;
            let count = (case.count)(&load);
            plainly.push(load.rate_by_socket(count));
            let took = load.napi + plain.time()?.saturating_sub(before);
            plain_times.push(Load { napi: took, ..load }.nanoseconds(count));
        }
        if by_socket.is_some() {
            let load =
                rigs.socket.load(&Stretch { rate: Some(offers.1), ack_leads: false, ..full }).context("-xdp off")?;
            socketed.push(load.rate_by_socket((case.count)(&load)));
        }
    }
    if settings.profile {
        let time = settings.stretch.max(std::time::Duration::from_secs(1));
        let load = Stretch { time: time * 2, ..full };
        rigs.subject.load_while(&load, || profile::record(&settings.directory, name, time))?;
    }

    let rates = |rounds: &[Round]| rounds.iter().map(|round| round.rate).collect::<Vec<_>>();
    let times = |rounds: &[Round]| rounds.iter().map(|round| round.nanoseconds).collect::<Vec<_>>();
    let bounded = |rounds: &[Round]| Spread::of(rounds.iter().map(|round| round.share)).median >= BOUNDED;
    let mut found = Measurement::default();
    let reflector = rates(&reflected);
    let (rate, took) = (rates(&answered), times(&answered));
    let most = case.target.map_or(Target::None, Target::RatioAtMost);
    let time = format!("{name}: CPU time");
    found.rows.push(Row::beside(time.as_str(), "ns", &took, ("reflector", &times(&reflected)), most));
    if plain.is_some() {
        found.rows.push(Row::beside(time, "ns", &took, ("plain, NAPI and thread", &plain_times), Target::None));
    }
    if bounded(&answered) {
        found.rows.push(Row::alone(format!("{name}: rate"), case.unit, &rate, Target::None));
        found.notes.push("all that the generator offered was answered: the rate is the generator's".to_owned());
    } else if bounded(&reflected) {
        found.rows.push(Row::alone(format!("{name}: rate"), case.unit, &rate, Target::None));
    } else {
        let row = Row::beside(format!("{name}: rate"), case.unit, &rate, ("reflector", &reflector), Target::None);
        found.rows.push(row);
    }
    if bounded(&reflected) {
        found.notes.push(
            "the reflector sent back all that the generator offered: its rate is the generator's, and no ratio to it is given"
                .to_owned(),
        );
    }
    if case.daemon {
        found.rows.push(Row::alone(
            format!("{name}: daemon's CPU above idle"),
            "of a core",
            &busy,
            Target::AtMost(0.01),
        ));
    }
    found.rows.push(Row::alone(format!("{name}: reflector"), "packets/s", &reflector, Target::None));
    if plain.is_some() {
        found.rows.push(Row::alone(format!("{name}: plain"), case.unit, &plainly, Target::None));
    }
    if by_socket.is_some() {
        found.rows.push(Row::alone(format!("{name}: -xdp off"), case.unit, &socketed, Target::None));
    }
    if !case.silent {
        ensure!(packets > 0, "no answer was sampled");
        found.notes.push(format!(
            "{packets} answers compared byte by byte during the run, {pairs} pairs in order; {:.0} % of what was sent was counted at the client too",
            100.0 * share(back, sent)
        ));
    }
    Ok(found)
}

/// Loads the daemon, and counts what it did.
fn answers(case: &Rate, rig: &mut Rig, daemon: &Daemon<'_>, full: &Stretch) -> Result<(Load, u64)> {
    let counted = || -> Result<Vec<u64>> {
        let metrics = daemon.metrics()?;
        let of = |(name, label): &Series| {
            let labels: Vec<_> = label.iter().copied().chain([("path", "xdp")]).collect();
            metrics.count(name, &labels)
        };
        Ok(case.sent.iter().map(of).collect())
    };
    let before = counted()?;
    let load = rig.load(full)?;
    let count = counted()?.iter().zip(&before).map(|(after, before)| after - before).min().unwrap_or(0);
    ensure!(count <= load.sent, "{count} answered of {} sent", load.sent);
    Ok((load, count))
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn round(load: &Load, count: u64) -> Round {
    Round { rate: load.rate(count), nanoseconds: load.nanoseconds(count), share: share(count, load.sent) }
}

/// Share of a core that the daemon takes when no NACK comes.
fn idle_share(daemon: &Daemon<'_>) -> Result<f64> {
    let time = std::time::Duration::from_millis(500);
    let before = daemon.cpu_time()?.process;
    std::thread::sleep(time);
    Ok((daemon.cpu_time()?.process - before).as_secs_f64() / time.as_secs_f64())
}
