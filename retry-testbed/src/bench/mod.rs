//! The bench: how fast NACKs are answered, beside the limit of the machine and beside the daemon's own socket, in one
//! run. Rates on shared machines swing; only ratios of one run count.

mod rig;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use serde::Serialize;

use self::rig::{Load, Rig};
use retry_testbed::daemon::Daemon;

/// Frames in the cache; asked for round and round.
const FRAMES: u64 = 4096;
/// Bytes of each.
const FRAME_LEN: usize = 400;
/// NACKs in one go at full rate.
const FLOOD: u32 = 1 << 20;
/// NACKs in one go for a server on a socket, which a flood would only starve: the best of these counts.
const BURSTS: [u32; 5] = [1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14];

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The quick measurement, in about twenty seconds.
    #[arg(long)]
    quick: bool,
    /// The daemon's binary; by default what RETRY_ENDPOINT_BIN names.
    #[arg(long)]
    daemon: Option<PathBuf>,
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Case {
    case: &'static str,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    reference: &'static str,
    ratio: f64,
    target: String,
    met: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: String,
    cases: Vec<Case>,
}

/// Runs it and prints one JSON line; exit code 1 when a target is missed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure!(options.quick, "only `bench --quick` exists so far");
    let binary = options.daemon.clone().map_or_else(Daemon::binary, Ok)?;
    let mut rig = Rig::new()?;

    let reflector = {
        let _attached = rig.reflector()?;
        rig.counting(|rig| repeat(3, || rig.load(FRAMES, FLOOD, Duration::from_secs(2))))?
    };
    let reflected = Rates::of(&reflector, |load| load.answers.reflected);

    let xdp = serve(&mut rig, &binary, "native", |rig| repeat(3, || rig.load(FRAMES, FLOOD, Duration::from_secs(2))))?;
    let hits = Rates::of(&xdp.loads, pairs);

    let user = serve(&mut rig, &binary, "off", |rig| {
        BURSTS.iter().map(|burst| rig.load(FRAMES, *burst, Duration::from_secs(1))).collect()
    })?;
    let best = Rates::of(&user.loads, pairs);

    let report = Report {
        machine: machine(),
        cases: vec![
            Case {
                case: "reflector",
                unit: "packets/s",
                median: reflected.median,
                min: reflected.min,
                max: reflected.max,
                reference: "reflector",
                ratio: 1.0,
                target: "the limit of this machine".to_owned(),
                met: true,
            },
            hits.case("hit 400 B, frame + ACK, XDP", "reflector", reflected.median, 0.25),
            hits.case("hit 400 B, frame + ACK, XDP", "-xdp off at its best rate", best.max, 5.0),
            nanoseconds("CPU time of a reflected packet", &reflector, |load| load.answers.reflected),
            nanoseconds("CPU time of a hit, frame + ACK", &xdp.loads, pairs),
            Case {
                case: "daemon's CPU at that rate, above idle",
                unit: "share of a core",
                median: xdp.busy,
                min: xdp.busy,
                max: xdp.busy,
                reference: "one core",
                ratio: xdp.busy,
                target: "< 0.01".to_owned(),
                met: xdp.busy < 0.01,
            },
        ],
    };
    let line = serde_json::to_string(&report)?;
    #[expect(clippy::print_stdout, reason = "the report is this program's output")]
    {
        println!("{line}");
    }
    Ok(if report.cases.iter().all(|case| case.met) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Time of the server's NAPI thread for each thing counted.
fn nanoseconds(case: &'static str, loads: &[Load], count: impl Fn(&Load) -> u64) -> Case {
    let mut times: Vec<f64> =
        loads.iter().map(|load| 1e9 * load.napi.as_secs_f64() / count_as_f64(count(load))).collect();
    times.sort_by(f64::total_cmp);
    let at = |place: usize| times.get(place).copied().unwrap_or(0.0);
    let (median, min, max) = (at(times.len() / 2), at(0), at(times.len().saturating_sub(1)));
    Case {
        case,
        unit: "ns",
        median,
        min,
        max,
        reference: "",
        ratio: 1.0,
        target: "for reference".to_owned(),
        met: true,
    }
}

/// Answered in full: a frame and an ACK.
fn pairs(load: &Load) -> u64 {
    load.answers.acks.min(load.answers.unicast_frames)
}

/// What a daemon did under load.
struct Served {
    loads: Vec<Load>,
    /// Its processes' share of a core above idle.
    busy: f64,
}

/// Starts the daemon, fills it, checks that its answers are right, and loads it.
fn serve(
    rig: &mut Rig,
    binary: &std::path::Path,
    xdp: &str,
    work: impl FnOnce(&mut Rig) -> Result<Vec<Load>>,
) -> Result<Served> {
    // The limits are on, so that what they cost is measured, and out of reach.
    let flags = [
        "-mc-iface",
        "eth0",
        "-egress-iface",
        "eth0",
        "-beacon-enabled=false",
        "-beacon-flags-multicast=false",
        "-beacon-flags-unicast",
        "-rl-ip-rate",
        "1000000000",
        "-rl-ip-burst",
        "1000000",
        "-rl-group-rate",
        "1000000000",
        "-rl-group-burst",
        "1000000",
        "-rl-sequence-max",
        "1000000",
        "-rl-chain-rate",
        "1000000",
        "-rl-chain-window",
        "1ms",
        "-xdp",
        xdp,
    ];
    let fabric = rig.fabric();
    let mut daemon = Daemon::start(binary, &fabric.host("endpoint")?.ns, &flags)?;
    rig::on_server_core(daemon.child().id())?;
    let journal = rig.publish(FRAMES, FRAME_LEN)?;
    std::thread::sleep(Duration::from_millis(300));
    rig.check(&journal, FRAMES)?;

    let stretch = Duration::from_secs(2);
    let before = daemon.cpu_time()?.process;
    std::thread::sleep(stretch);
    let idle = (daemon.cpu_time()?.process - before).as_secs_f64() / stretch.as_secs_f64();
    let before = daemon.cpu_time()?.process;
    let loads = rig.counting(work)?;
    let loaded = (daemon.cpu_time()?.process - before).as_secs_f64();
    let time: f64 = loads.iter().map(|load| load.time.as_secs_f64()).sum();
    for load in &loads {
        let Load { answers, .. } = load;
        let wrong = answers.misses + answers.throttled + answers.multicast_frames + answers.reflected + answers.other;
        // A router solicitation or a query now and then is nobody's answer.
        ensure!(wrong <= 100, "answers that nobody should have got: {answers:?}");
    }
    Ok(Served { loads, busy: (loaded / time - idle).max(0.0) })
}

fn repeat(times: usize, mut work: impl FnMut() -> Result<Load>) -> Result<Vec<Load>> {
    (0..times).map(|_| work()).collect()
}

struct Rates {
    median: f64,
    min: f64,
    max: f64,
}

impl Rates {
    fn of(loads: &[Load], count: impl Fn(&Load) -> u64) -> Self {
        let mut rates: Vec<f64> = loads.iter().map(|load| load.rate(count(load))).collect();
        rates.sort_by(f64::total_cmp);
        let at = |place: usize| rates.get(place).copied().unwrap_or(0.0);
        Self { median: at(rates.len() / 2), min: at(0), max: at(rates.len().saturating_sub(1)) }
    }

    fn case(&self, case: &'static str, reference: &'static str, of: f64, target: f64) -> Case {
        let ratio = self.median / of;
        Case {
            case,
            unit: "hits/s",
            median: self.median,
            min: self.min,
            max: self.max,
            reference,
            ratio,
            target: format!(">= {target}"),
            met: ratio >= target,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
fn count_as_f64(count: u64) -> f64 {
    count.max(1) as f64
}

fn machine() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([' ', '\t', ':']);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} x {model}, Linux {}", read("/proc/sys/kernel/osrelease").trim())
}
