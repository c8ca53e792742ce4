//! What an answer costs as the tables grow: frames in the cache, and addresses that ask.
//!
//! The cost is the CPU time of a whole hit, frame only. All sizes are measured in turns in one daemon: for frames, it is
//! filled to the largest size first and asked for the first so many of them, scattered.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use retry_testbed::daemon::Daemon;

use crate::bench::{
    contenders::Contenders,
    model::{Curve, Measurement, Row, Target},
    options::Settings,
    rig::{Ask, Awake, Order, Rig, Sources, Stretch},
    stats::Spread,
    subject::{self, IN_XDP, LIMITS_OUT_OF_REACH, UNICAST},
};

const LENGTH: usize = 400;
/// Frames in the cache; `--quick` leaves the last out.
const FRAMES: [u64; 4] = [10_000, 100_000, 1_000_000, 4_000_000];
/// Addresses that ask.
const SOURCES: [u64; 4] = [1, 1_000, 65_536, 1_000_000];
/// Frames that the addresses ask for.
const FEW: u64 = 4096;
/// Flows of the frames.
const FLOWS: u64 = 256;
/// Frames sent before it is seen whether all have arrived.
const CHUNK: u64 = 100_000;
/// Time for the fill; what does not fit is left out and said.
const PATIENCE: Duration = Duration::from_secs(32);

/// The frames from 1 to `count` at random, asked for by 1,000 listeners of unequal weight.
const fn scattered(count: u64) -> Ask {
    Ask { first: 1, count, order: Order::Random, flows: FLOWS, sources: Sources::Weighted(1000) }
}

/// Look-up among ever more frames.
pub(super) fn frames(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let sizes = if settings.quick { &FRAMES[..3] } else { &FRAMES[..] };
    let memory = if settings.quick { "512m" } else { "2g" };
    let fabric = rigs.subject.fabric();
    let flags: &[&[&str]] = &[UNICAST, LIMITS_OUT_OF_REACH, &["-suppress-ack", "-cache-memory", memory], IN_XDP];
    let daemon = subject::start(&settings.binary, &fabric, flags)?;
    let mut found = Measurement::default();
    // As in the case of the fill: a frame that is lost has to be sent again with its whole chunk.
    rigs.subject.napi_first(true)?;
    let awake = Awake::new()?;
    let held = fill(&mut rigs.subject, &daemon, sizes, settings);
    drop(awake);
    rigs.subject.napi_first(false)?;
    let held = held?;
    let fitting: Vec<u64> = sizes.iter().copied().filter(|size| *size <= held).collect();
    for size in sizes.iter().filter(|size| **size > held) {
        found.notes.push(format!("{size} frames are left out: the fill reached {held} in {} s", PATIENCE.as_secs()));
    }
    if settings.quick {
        found.notes.push(format!("{} frames are left out by --quick", FRAMES[3]));
    }
    let asks = fitting.iter().map(|count| scattered(*count));
    let targets = [(10_000, 1_000_000, 1.8), (10_000, 4_000_000, 2.5)];
    let sizes = Sizes { across: "frames", of: |ask| ask.count, targets: &targets };
    curve(&mut found, name, &asks.collect::<Vec<_>>(), &sizes, settings, &mut rigs.subject)?;
    Ok(found)
}

/// Limits of ever more addresses.
pub(super) fn sources(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabric = rigs.subject.fabric();
    let flags: &[&[&str]] = &[UNICAST, LIMITS_OUT_OF_REACH, &["-suppress-ack"], IN_XDP];
    let daemon = subject::start(&settings.binary, &fabric, flags)?;
    subject::fill(&mut rigs.subject, &daemon, FEW, LENGTH)?;
    let asks = SOURCES.map(|sources| Ask { sources: Sources::InTurn(sources), ..Ask::frames(FEW) });
    let mut found = Measurement::default();
    let sizes = Sizes { across: "sources", of: |ask| ask.sources.count(), targets: &[(1, 1_000_000, 4.0)] };
    curve(&mut found, name, &asks, &sizes, settings, &mut rigs.subject)?;
    found.notes.push(
        "limit tables of 65536 entries, the default: 1 M sources come round before they are remembered".to_owned(),
    );
    Ok(found)
}

/// What grows along a curve.
struct Sizes<'a> {
    /// What it is called.
    across: &'static str,
    /// How much of it there is.
    of: fn(&Ask) -> u64,
    /// From one size to another the CPU time grows by this factor at most.
    targets: &'a [(u64, u64, f64)],
}

/// Measures every size in turns, and holds them against each other.
fn curve(
    found: &mut Measurement,
    name: &str,
    asks: &[Ask],
    Sizes { across, of: size, targets }: &Sizes<'_>,
    settings: &Settings,
    rig: &mut Rig,
) -> Result<()> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); asks.len()];
    for _ in 0..settings.rounds {
        for (ask, times) in asks.iter().zip(&mut times) {
            let stretch = Stretch { ask: *ask, rate: None, time: settings.stretch, length: LENGTH, ack_leads: true };
            let load = rig.load(&stretch)?;
            let hits = load.answers.unicast_frames;
            ensure!(load.answers.misses * 1000 <= hits, "MISSes for frames that are in the cache: {:?}", load.answers);
            times.push(load.nanoseconds(hits));
        }
    }
    for (ask, times) in asks.iter().zip(&times) {
        found.rows.push(Row::alone(format!("{name}: a hit at {} {across}", size(ask)), "ns", times, Target::None));
    }
    for (from, to, most) in *targets {
        let at = |wanted: u64| asks.iter().zip(&times).find(|(ask, _)| size(ask) == wanted).map(|(_, times)| times);
        if let (Some(first), Some(last)) = (at(*from), at(*to)) {
            let (case, reference) = (format!("{name}: at {to} {across}"), format!("{from} {across}"));
            found.rows.push(Row::beside(case, "ns", last, (&reference, first), Target::RatioAtMost(*most)));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "sizes are below 2^53")]
    let points =
        asks.iter().zip(&times).map(|(ask, times)| (size(ask) as f64, Spread::of(times.iter().copied()).median));
    found.curves.push(Curve {
        title: format!("CPU time of a hit by number of {across}"),
        across,
        unit: "ns",
        series: vec![("hit, frame only, 400 B".to_owned(), points.collect())],
    });
    Ok(())
}

/// Fills up to the largest size, chunk by chunk, as fast as nothing is lost. Returns how many frames there are.
fn fill(rig: &mut Rig, daemon: &Daemon<'_>, sizes: &[u64], settings: &Settings) -> Result<u64> {
    let start = Instant::now();
    let most = sizes.last().copied().unwrap_or(0);
    let patience = if settings.quick { PATIENCE / 4 } else { PATIENCE };
    let (mut held, mut rate) = (0, 1e6);
    while held < most && start.elapsed() < patience {
        let chunk = CHUNK.min(most - held);
        let chunk = if held == 0 { sizes.first().copied().unwrap_or(chunk) } else { chunk };
        rig.send_frames_of(FLOWS, held + 1, u32::try_from(chunk)?, LENGTH, Some(rate))?;
        std::thread::sleep(Duration::from_millis(30));
        if daemon.metrics()?.count("bre_cache_size", &[]) >= held + chunk {
            held += chunk;
        } else {
            // The same frames again: what is there already costs little, and what is missing differs each time.
            rate = (rate * 0.85).max(60e3);
        }
    }
    ensure!(held > 0, "no frame was stored");
    Ok(held)
}
