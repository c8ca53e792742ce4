//! `bench handover`: restarts, kills and upgrades of the daemon under traffic. Not a case among others: it takes five
//! minutes, and its result is that nothing was lost.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use retry_testbed::{
    net::fabric::Fabric,
    scene::{
        relay::{End, Relay},
        steady::{Account, Rates, Repairs, Steady},
    },
};
use serde::Serialize;

use super::{
    WRONG,
    options::Settings,
    rig::{Ask, Order, Rig, Stretch},
    say,
    subject::{self, MULTICAST, UNICAST},
};
use crate::table;

/// Environment variable with the path of the kernel object without `xdp.frags`.
const LINEAR_VARIABLE: &str = "RETRY_EBPF_LINEAR";
/// The name of the case.
pub(super) const NAME: &str = "handover";

/// NACKs per second, all the time.
const NACKS: u32 = 20_000;
/// The same from the kernel's generator, during upgrades.
const FLOOD: f64 = 500e3;
/// A log of which 4 GiB can be full: the rest is kept free for what the kernel stores while no daemon runs.
const LARGE: &str = "4800m";
/// Frames of 400 bytes, 448 with their headers: 4 GiB.
const LARGE_FRAMES: u32 = 9_500_000;
/// Frames per second.
const LARGE_RATE: f64 = 400e3;
/// Starts of each kind.
const LARGE_STARTS: usize = 5;
/// What the endpoint counts of them.
const REQUESTS: &str = "bre_nack_requests_total";
/// Packets that the driver did not take.
const NOT_TAKEN: &str = "bre_xdp_xmit_drops_total";
/// Upgrades during it.
const FLOOD_UPGRADES: usize = 3;
/// How long it asks where there is none: about as long as an upgrade takes.
const FLOOD_PAUSE: Duration = Duration::from_millis(500);
/// Frames that the flood asks for.
const FLOOD_FRAMES: u64 = 10_000;
const HOLD_DOWN: Duration = Duration::from_millis(500);
/// Between two hand-overs.
const PAUSE: Duration = Duration::from_millis(1_100);
/// What becomes of the daemon in each round; the last of them is an upgrade.
const ROUND: [End; 13] = {
    let mut round = [End::Told; 13];
    round[4] = End::Killed;
    round[9] = End::Killed;
    round
};

/// One kind of traffic.
struct Stage {
    name: &'static str,
    frames: u32,
    held: u64,
    repairs: Repairs,
    most: u64,
    memory: &'static str,
    rounds: usize,
}

const EVERY: Stage = Stage {
    name: "no hand-over",
    frames: 5_000,
    held: 20_000,
    repairs: Repairs::Unicast,
    most: u64::MAX,
    memory: "256m",
    rounds: 0,
};

const STAGES: [Stage; 4] = [
    EVERY,
    Stage { name: "unicast", rounds: 4, ..EVERY },
    Stage { name: "multicast", held: 20, most: 20, repairs: Repairs::Multicast(HOLD_DOWN), rounds: 3, ..EVERY },
    Stage { name: "100 k frames/s", frames: 100_000, held: 200_000, memory: "1g", rounds: 3, ..EVERY },
];

/// What one stage found.
#[derive(Debug, Default, Serialize)]
struct Row {
    stage: &'static str,
    restarts: usize,
    kills: usize,
    upgrades: usize,
    /// Frames that were published.
    frames: u64,
    /// Of these, what did not come to the endpoint: the queue of its link was full. NACKs for them are MISSes.
    frames_lost: u64,
    nacks: u64,
    /// Of these, what the interface's queue had no room for; of a flood alone.
    not_admitted: u64,
    /// Packets of answers for which the listener's queue had no room, as the endpoint's driver told it; of a flood alone.
    queue_full: u64,
    /// Of the NACKs admitted, those that got no answer, but for what the listener's queue had no room for.
    unanswered: u64,
    missed: u64,
    wrong: u64,
    without_copy: u64,
    repeated: u64,
    longest_wait_ms: f64,
}

impl Row {
    const fn is_gapless(&self) -> bool {
        self.unanswered + self.missed + self.wrong + self.without_copy + self.repeated == 0
    }
}

/// Runs it. Exit code 3 when a NACK for a held frame was not answered, bytes were wrong, a counter fell, or a repair came twice.
pub(super) fn run(settings: &Settings, json: bool) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for stage in &STAGES {
        rows.push(steady(settings, stage)?);
        eprintln!("bench: handover, {}: {:?}", stage.name, rows.last());
    }
    let starts = starts(settings)?;
    eprintln!("bench: handover, starts: {starts:?}");
    rows.extend(flood(settings)?);
    say(&if json {
        serde_json::to_string(&serde_json::json!({ "stages": rows, "starts": starts }))?
    } else {
        format!("{}\n\n{}", shown(&rows), shown_starts(&starts))
    });
    Ok(if rows.iter().all(Row::is_gapless) { ExitCode::SUCCESS } else { ExitCode::from(WRONG) })
}

fn flags<'a>(more: &[&'a [&'a str]], object: Option<&'a str>) -> Vec<&'a str> {
    let limits: &[&str] =
        &["-rl-ip-rate", "0", "-rl-chain-rate", "0", "-rl-sequence-max", "0", "-rl-group-rate", "0", "-fill", "kernel"];
    let mut all = subject::flags(&[&[subject::IN_XDP, limits], more].concat());
    all.extend(object.iter().flat_map(|object| ["-bpf-object", object]));
    all
}

/// The other build of the kernel programs, which upgrades change to and from.
fn linear_object() -> Result<String> {
    std::env::var(LINEAR_VARIABLE).with_context(|| format!("{LINEAR_VARIABLE} does not name the other kernel object"))
}

/// Hand-overs beside steady traffic.
fn steady(settings: &Settings, stage: &Stage) -> Result<Row> {
    let fabric = Fabric::flat(1500)?;
    let (endpoint, client) = (fabric.host("endpoint")?, fabric.host("client")?);
    let hold_down = format!("{}ms", HOLD_DOWN.as_millis());
    let ways: &[&str] = if matches!(stage.repairs, Repairs::Unicast) { UNICAST } else { MULTICAST };
    let more = ["-cache-memory", stage.memory, "-repair-holddown", &hold_down];
    let object = linear_object()?;
    let flags = |linear: bool| flags(&[&more, ways], linear.then_some(object.as_str()));
    let mut relay = Relay::start(&settings.binary, endpoint, &flags(false))?;
    let Stage { frames, held, repairs, most, .. } = *stage;
    let traffic = Steady::start(client, endpoint.nack_address(), Rates { nacks: NACKS, frames, held, repairs, most });
    std::thread::sleep(PAUSE);
    let rounds = if settings.quick { stage.rounds.min(1) } else { stage.rounds };
    let (mut linear, mut counts) = (false, [0; 3]);
    for turn in 0..rounds * ROUND.len() {
        let end = ROUND[turn % ROUND.len()];
        let is_upgrade = turn % ROUND.len() == ROUND.len() - 1;
        linear ^= is_upgrade;
        relay.hand_over(end, &flags(linear))?;
        counts[if is_upgrade { 2 } else { usize::from(end == End::Killed) }] += 1;
        std::thread::sleep(PAUSE);
    }
    if rounds == 0 {
        std::thread::sleep(Duration::from_secs(15));
    }
    let published = traffic.published();
    let account = traffic.stop();
    // What the link lost was never held.
    let received = relay.daemon().metrics()?.count("bre_frames_received_total", &[]);
    relay.end()?;
    let [restarts, kills, upgrades] = counts;
    let row = row(stage.name, &account, restarts, kills, upgrades);
    Ok(Row { frames: published, frames_lost: published.saturating_sub(received), ..row })
}

fn row(stage: &'static str, account: &Account, restarts: usize, kills: usize, upgrades: usize) -> Row {
    Row {
        stage,
        restarts,
        kills,
        upgrades,
        nacks: account.asked,
        frames: 0,
        frames_lost: 0,
        not_admitted: 0,
        queue_full: 0,
        unanswered: account.unanswered,
        missed: account.missed + account.throttled,
        wrong: account.wrong,
        without_copy: account.without_copy,
        repeated: account.repeated,
        longest_wait_ms: account.longest_wait.as_secs_f64() * 1e3,
    }
}

/// Three upgrades while the kernel's generator asks, and as long without any.
///
/// What the queues do not admit is told apart: NACKs that the endpoint's program has not counted, and packets of answers
/// that its driver could not give to the listener's side. The counters go on over an upgrade.
fn flood(settings: &Settings) -> Result<[Row; 2]> {
    let mut rig = Rig::new(1500)?;
    let fabric = rig.fabric();
    let endpoint = fabric.host("endpoint")?;
    let object = linear_object()?;
    let flags = |linear: bool| flags(&[UNICAST, &["-cache-memory", "64m"]], linear.then_some(object.as_str()));
    let mut relay = Relay::start(&settings.binary, endpoint, &flags(false))?;
    subject::fill(&mut rig, relay.daemon(), FLOOD_FRAMES, 400)?;
    let ask = Ask { order: Order::Step(7), ..Ask::frames(FLOOD_FRAMES) };
    let stretch = Stretch { ask, rate: Some(FLOOD), time: Duration::from_millis(500), length: 400, ack_leads: true };
    let mut of = |stage, upgrades: usize| -> Result<Row> {
        let mut found = Row { stage, upgrades, ..Row::default() };
        let counted = |relay: &mut Relay<'_>| {
            let metrics = relay.daemon().metrics()?;
            Ok::<_, anyhow::Error>((metrics.count(REQUESTS, &[]), metrics.count(NOT_TAKEN, &[])))
        };
        let before = counted(&mut relay)?;
        let (mut acks, mut copies) = (0, 0);
        for turn in 0..FLOOD_UPGRADES {
            let (load, ()) = rig.load_while(&stretch, || {
                if upgrades == 0 {
                    std::thread::sleep(FLOOD_PAUSE);
                    return Ok(());
                }
                relay.hand_over(End::Told, &flags(turn % 2 == 0)).map(drop)
            })?;
            found.nacks += load.sent;
            found.missed += load.answers.misses + load.answers.throttled;
            found.wrong += load.answers.other;
            (acks, copies) = (acks + load.answers.acks, copies + load.answers.unicast_frames);
        }
        let after = counted(&mut relay)?;
        let received = after.0 - before.0;
        found.not_admitted = found.nacks.saturating_sub(received);
        found.queue_full = after.1 - before.1;
        // A hit leaves as an ACK and a copy. More than were asked for would be wrong as well.
        let missing = (2 * received.saturating_sub(found.missed)).abs_diff(acks + copies + found.queue_full);
        found.unanswered = missing.div_ceil(2);
        Ok(found)
    };
    let rows = [of("500 k NACK/s, no hand-over", 0)?, of("500 k NACK/s", FLOOD_UPGRADES)?];
    relay.end()?;
    Ok(rows)
}

/// How long starts took that took over a log of one size.
#[derive(Debug, Serialize)]
struct Starts {
    log: &'static str,
    frames: u64,
    /// From the command to ready, milliseconds; the quickest, and the slowest.
    quickest_ms: f64,
    slowest_ms: f64,
}

/// Starts that take over a log of [`LARGE`] bytes while it is empty, and when it is full.
fn starts(settings: &Settings) -> Result<[Starts; 2]> {
    let mut rig = Rig::new(1500)?;
    let fabric = rig.fabric();
    let flags = flags(&[UNICAST, &["-cache-memory", LARGE, "-cache-ttl-tx", "1h"]], None);
    let mut relay = Relay::start(&settings.binary, fabric.host("endpoint")?, &flags)?;
    let of = |relay: &mut Relay<'_>, log| -> Result<Starts> {
        let mut taken = Vec::new();
        for _ in 0..LARGE_STARTS {
            let (_, took) = relay.hand_over_timed(End::Told, &flags)?;
            taken.push(took.as_secs_f64() * 1e3);
        }
        taken.sort_by(f64::total_cmp);
        let frames = relay.daemon().metrics()?.count("bre_cache_size", &[]);
        Ok(Starts { log, frames, quickest_ms: taken[0], slowest_ms: taken[LARGE_STARTS - 1] })
    };
    let empty = of(&mut relay, "empty")?;
    let frames = if settings.quick { LARGE_FRAMES / 10 } else { LARGE_FRAMES };
    rig.send_frames(1, frames, 400, Some(LARGE_RATE))?;
    std::thread::sleep(PAUSE);
    let full = of(&mut relay, "full")?;
    relay.end()?;
    Ok([empty, full])
}

fn shown_starts(starts: &[Starts]) -> String {
    let columns = [
        table::words("log that is taken over", 0),
        table::figures("frames", 0),
        table::figures("quickest start, ms", 0),
        table::figures("slowest start, ms", 0),
    ];
    let cells = |one: &Starts| {
        vec![
            format!("{LARGE}, {}", one.log),
            one.frames.to_string(),
            format!("{:.0}", one.quickest_ms),
            format!("{:.0}", one.slowest_ms),
        ]
    };
    table::lines(&columns, starts.iter().map(cells)).join("\n")
}

fn shown(rows: &[Row]) -> String {
    let columns = [
        table::words("stage", 0),
        table::figures("restarts", 0),
        table::figures("kill -9", 0),
        table::figures("upgrades", 0),
        table::figures("frames", 0),
        table::figures("lost by the link", 0),
        table::figures("NACKs", 0),
        table::figures("not admitted", 0),
        table::figures("listener's queue full", 0),
        table::figures("unanswered", 0),
        table::figures("MISS", 0),
        table::figures("wrong", 0),
        table::figures("no copy", 0),
        table::figures("twice", 0),
        table::figures("longest wait, ms", 0),
    ];
    let cells = |row: &Row| {
        vec![
            row.stage.to_owned(),
            row.restarts.to_string(),
            row.kills.to_string(),
            row.upgrades.to_string(),
            row.frames.to_string(),
            row.frames_lost.to_string(),
            row.nacks.to_string(),
            row.not_admitted.to_string(),
            row.queue_full.to_string(),
            row.unanswered.to_string(),
            row.missed.to_string(),
            row.wrong.to_string(),
            row.without_copy.to_string(),
            row.repeated.to_string(),
            format!("{:.1}", row.longest_wait_ms),
        ]
    };
    table::lines(&columns, rows.iter().map(cells)).join("\n")
}
