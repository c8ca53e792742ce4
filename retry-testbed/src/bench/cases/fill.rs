//! Fill: the highest rate of frames that is stored without losing one, beside the plain server's receive-and-store.
//!
//! Searched by halving; a rate counts when one of four trials has all its frames stored by the time that the generator's
//! call returns, about 30 ms after the last of them. What holds up the server's core for longer than a queue of 256 packets
//! lasts ends a trial, so this is a figure of the machine as much as of the program: NAPI runs before the threads meanwhile,
//! as the softirq does in whose place it stands, and the core is kept from going to sleep. All that the server does, NAPI
//! and threads, is on one core.
//!
//! Besides: what is stored, and what CPU time each frame takes, when the generator offers all that it can; what the server
//! does not take in is lost in the queue.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bench::{
    contenders::Contenders,
    model::{Measurement, Row, Target},
    options::Settings,
    plain::Plain,
    rig::{Awake, Rig, on_core, thread_of},
    subject::{self, IN_XDP, UNICAST},
};

const LENGTH: usize = 400;
/// Ways to fill with their flags; the first stands beside plain, those after it beside the first.
const WAYS: &[(&str, &[&str])] = &[("daemon", &["-fill", "daemon"]), ("kernel", &["-fill", "kernel"])];
/// The daemon's fill beside plain's.
const DAEMON: Target = Target::Ratio(1.0);
/// The kernel's fill beside the daemon's.
const KERNEL: Target = Target::Ratio(4.0);
/// What the kernel stores without loss, frames a second.
const LOSSLESS: Target = Target::AtLeast(1.5e6);
/// Where the search begins and ends, frames a second.
const RANGE: (f64, f64) = (5e3, 4e6);
/// How often a rate that loses is tried: at a million a second a queue of 256 packets overflows when anything holds up the
/// core for a quarter of a millisecond.
const ATTEMPTS: u32 = 4;
/// The same with `--quick`.
const QUICK_ATTEMPTS: u32 = 2;
/// How long a trial is.
const TRIAL: Duration = Duration::from_millis(150);
/// Time for one search.
const PATIENCE: Duration = Duration::from_millis(1_200);
/// Frames that the plain server keeps.
const KEPT: usize = 500_000;

pub(super) fn measure(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    for rig in [&rigs.subject, &rigs.plain] {
        rig.napi_first(true)?;
    }
    let awake = Awake::new()?;
    let found = compare(name, settings, rigs);
    drop(awake);
    for rig in [&rigs.subject, &rigs.plain] {
        rig.napi_first(false)?;
    }
    found
}

fn compare(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabrics = (rigs.subject.fabric(), rigs.plain.fabric());
    let mut found = Measurement::default();
    let mut by_daemon: Option<Vec<f64>> = None;
    for (way, flags) in WAYS {
        let mut daemon = subject::start(&settings.binary, &fabrics.0, &[UNICAST, IN_XDP, flags])?;
        let follower = thread_of(daemon.child().id(), "follow")?;
        let plain = Plain::filling(&fabrics.1, KEPT, LENGTH)?;
        let stored = || Ok(daemon.metrics()?.count("bre_frames_cached_total", &[]));
        let (mut next, mut plain_next) = (1, 1);
        let (mut rates, mut references) = (Vec::new(), Vec::new());
        let (mut last, mut plain_last) = (None, None);
        let (mut flooded, mut times, mut follows) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..settings.rounds {
            let rate = highest(&mut rigs.subject, settings, &mut next, last, &stored)?;
            last = Some(rate);
            rates.push(rate);
            let rate = highest(&mut rigs.plain, settings, &mut plain_next, plain_last, &|| Ok(plain.stored()))?;
            plain_last = Some(rate);
            references.push(rate);
            let followed = follower.map(on_core).transpose()?;
            // A NAPI that never ends would leave nothing of the core to the threads.
            rigs.subject.napi_first(false)?;
            let flood = flood(&mut rigs.subject, settings, &mut next, &stored);
            rigs.subject.napi_first(true)?;
            let (rate, kept, nanoseconds) = flood?;
            flooded.push(rate);
            times.push(nanoseconds);
            if let (Some(thread), Some(before)) = (follower, followed) {
                follows.push((on_core(thread)? - before).as_secs_f64() * 1e9 / as_f64(kept));
            }
        }
        let case = format!("{name}: {way}");
        if let Some(by_daemon) = &by_daemon {
            found.rows.push(Row::beside(&*case, "frames/s", &rates, ("the daemon's fill", by_daemon), KERNEL));
            found.rows.push(Row::alone(&*case, "frames/s", &rates, LOSSLESS));
            found.rows.push(Row::alone(format!("{case}, flooded"), "frames/s", &flooded, Target::None));
        } else {
            found.rows.push(Row::beside(&*case, "frames/s", &rates, ("plain", &references), DAEMON));
            found.rows.push(Row::alone(format!("{case}, flooded"), "frames/s", &flooded, Target::None));
            found.rows.push(Row::alone(format!("{name}: plain"), "frames/s", &references, Target::None));
            by_daemon = Some(rates);
        }
        found.rows.push(Row::alone(format!("{case}, flooded: NAPI's CPU time"), "ns", &times, Target::None));
        if follower.is_some() {
            let case = format!("{case}, flooded: CPU time of the thread that follows");
            found.rows.push(Row::alone(case, "ns", &follows, Target::None));
        }
    }
    Ok(found)
}

/// Offers frames as fast as the generator goes. Returns what is stored a second, and in all, and the CPU time of the server's NAPI for each.
fn flood(
    rig: &mut Rig,
    settings: &Settings,
    next: &mut u64,
    stored: &dyn Fn() -> Result<u64>,
) -> Result<(f64, u64, f64)> {
    let count: u32 = if settings.quick { 500_000 } else { 1_000_000 };
    let (before, napi) = (settled(stored)?, rig.server_napi_time()?);
    let active = rig.send_frames(*next, count, LENGTH, None)?;
    let napi = rig.server_napi_time()?.saturating_sub(napi);
    let kept = settled(stored)? - before;
    *next += u64::from(count);
    ensure!((1..=u64::from(count)).contains(&kept), "{kept} frames stored of {count} sent");
    Ok((as_f64(kept) / active.as_secs_f64(), kept, napi.as_secs_f64() * 1e9 / as_f64(kept)))
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The highest rate without loss, near the one found before if there is one.
fn highest(
    rig: &mut Rig,
    settings: &Settings,
    next: &mut u64,
    before: Option<f64>,
    stored: &dyn Fn() -> Result<u64>,
) -> Result<f64> {
    let start = Instant::now();
    let (patience, most) = if settings.quick { (PATIENCE / 2, QUICK_ATTEMPTS) } else { (PATIENCE, ATTEMPTS) };
    let mut best = 0.0f64;
    // What was offered without loss, and what was not; what is reached may be less, where the generator was held up.
    let (mut kept, mut lost): (Option<f64>, Option<f64>) = (None, None);
    let mut rate = before.unwrap_or(RANGE.1 / 16.0);
    // The first trials find one that loses nothing, whatever they take.
    while kept.is_none() || start.elapsed() < patience {
        match attempts(rig, next, rate, most, stored)? {
            Some(reached) => {
                best = best.max(reached);
                kept = Some(rate);
            }
            None => lost = Some(rate),
        }
        rate = match (kept, lost) {
            (Some(kept), Some(lost)) if lost / kept < 1.05 => break,
            (Some(kept), Some(lost)) => f64::midpoint(kept, lost),
            (Some(kept), None) => kept * 1.4,
            (None, _) => rate / 1.5,
        };
        ensure!(rate >= RANGE.0, "frames are lost at {rate:.0} a second");
        if rate > RANGE.1 {
            break;
        }
    }
    Ok(best)
}

/// Offers frames at a rate, `most` times at most. Returns the rate reached when one of these lost none.
fn attempts(
    rig: &mut Rig,
    next: &mut u64,
    rate: f64,
    most: u32,
    stored: &dyn Fn() -> Result<u64>,
) -> Result<Option<f64>> {
    for _ in 0..most {
        if let Some(reached) = trial(rig, next, rate, stored)? {
            return Ok(Some(reached));
        }
    }
    Ok(None)
}

/// What is stored, once nothing more of an earlier load comes.
fn settled(stored: &dyn Fn() -> Result<u64>) -> Result<u64> {
    let mut before = stored()?;
    loop {
        std::thread::sleep(Duration::from_millis(20));
        match stored()? {
            now if now == before => return Ok(now),
            now => before = now,
        }
    }
}

/// Offers frames at a rate. Returns the rate reached when none was lost.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the end of the range")]
fn trial(rig: &mut Rig, next: &mut u64, rate: f64, stored: &dyn Fn() -> Result<u64>) -> Result<Option<f64>> {
    let count = (rate * TRIAL.as_secs_f64()) as u32;
    let before = settled(stored)?;
    let active = rig.send_frames(*next, count, LENGTH, Some(rate))?;
    let kept = stored()? - before;
    *next += u64::from(count);
    // What is still queued has to be out of the way of the next trial.
    if kept < u64::from(count) {
        std::thread::sleep(Duration::from_millis(150));
        return Ok(None);
    }
    ensure!(kept == u64::from(count), "{kept} frames stored of {count} sent");
    Ok(Some(f64::from(count) / active.as_secs_f64()))
}
