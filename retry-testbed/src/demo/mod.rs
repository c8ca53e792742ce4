//! The demo: a private fabric, lossy links, the real daemon, and a count of what came back.

mod report;
mod traffic;
mod view;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use retry_testbed::{
    daemon::{self, Daemon},
    net::{
        fabric::{Fabric, INTERFACE},
        forward,
        loss::{Loss, LossRule},
        netns::TOOLS,
    },
    peers::{
        journal::Journal,
        listener::{Listener, ListenerSettings},
        publish::Publisher,
    },
};

use self::{
    report::{Report, Sample},
    traffic::Traffic,
    view::View,
};
use crate::session::{Bpffs, check, look_for, stop_on_signals};

const ENDPOINT: &str = "endpoint";
const PUBLISHER: &str = "publisher";
const MTU: u16 = 1500;

/// How repairs travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Repair {
    /// To the listener that asked.
    Unicast,
    /// To the frame's group.
    Multicast,
    /// Both ways.
    Both,
}

/// What the demo runs.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The daemon's binary.
    #[arg(long, env = daemon::BINARY_VARIABLE)]
    daemon: PathBuf,
    /// How long frames are published, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Frames published a second.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    rate: u32,
    /// Share of the datagrams to the data port that each listener's link loses, in percent, to a tenth.
    #[arg(long, default_value_t = 2.0, value_parser = percent)]
    loss: f64,
    /// Listeners.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    listeners: u8,
    /// How repairs travel.
    #[arg(long, value_enum, default_value_t = Repair::Unicast)]
    repair: Repair,
    /// Prints the result as one JSON object on stdout.
    #[arg(long)]
    json: bool,
    /// The programs for the kernel, as an object file; without it those inside the daemon.
    #[arg(long, env = "RETRY_EBPF_OBJECT", value_name = "FILE.o")]
    object: Option<PathBuf>,
    /// Shows the endpoint's HTTP server at an address of this host, and keeps the endpoint at work after the traffic, until
    /// Ctrl-C.
    #[arg(long)]
    page: bool,
    /// Publishes the multicast datagrams to port 9001 of this pcap file, once, instead of made frames.
    #[arg(long, value_name = "FILE.pcap")]
    replay: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("accepted are 0 to 100".to_owned()),
    }
}

impl Options {
    fn per_mille(&self) -> u16 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "percent() admits 0 to 100")]
        let share = (self.loss * 10.0).round() as u16;
        share
    }

    fn listener_names(&self) -> Vec<String> {
        (1..=self.listeners).map(|number| format!("listener{number}")).collect()
    }

    /// The daemon's limits: far above what this run can ask for, so that the numbers are the endpoint's and not a limit's.
    fn limits(&self) -> Vec<String> {
        let rate = self.rate * 4 + 1_000;
        // A window's count ends here.
        let per_minute = (u64::from(rate) * 60).min(1_000_000);
        [
            format!("-rl-ip-rate={rate}"),
            format!("-rl-ip-burst={rate}"),
            format!("-rl-group-rate={rate}"),
            format!("-rl-group-burst={rate}"),
            format!("-rl-chain-rate={per_minute}"),
            "-rl-sequence-max=10000".to_owned(),
        ]
        .into()
    }
}

/// Runs the demo; the exit code is 1 when a frame that the endpoint had did not come back, 130 after Ctrl-C.
///
/// # Errors
/// The fabric cannot be made or the daemon does not start.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    look_for(&TOOLS)?;
    ensure!(options.daemon.is_file(), "--daemon: no file {}", options.daemon.display());
    let traffic = Traffic::new(options.replay.as_deref())?;
    let stop = stop_on_signals()?;
    let _bpffs = Bpffs::mount()?;
    let report = on_fabric(options, traffic, &stop)?;
    view::say(&report.words(options));
    if options.json {
        report.print_json()?;
    }
    Ok(match (stop.load(Ordering::Relaxed), report.recovered_all()) {
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

fn on_fabric(options: &Options, mut traffic: Traffic, stop: &AtomicBool) -> Result<Report> {
    let names = options.listener_names();
    let mut hosts = vec![PUBLISHER, ENDPOINT];
    hosts.extend(names.iter().map(String::as_str));
    view::say(&format!(
        "Building a private fabric: a bridge with MLD snooping, one publisher, one endpoint, {} listeners.",
        names.len()
    ));
    let fabric = Fabric::bridged(&hosts, MTU)?;
    let endpoint = fabric.host(ENDPOINT)?;
    let limits = options.limits();
    let mut flags = limits.clone();
    flags.extend(traffic.flags());
    flags.extend([
        format!("-mc-iface={INTERFACE}"),
        format!("-egress-iface={INTERFACE}"),
        format!("-nack-addr={}", endpoint.addr),
        format!("-beacon-flags-unicast={}", options.repair != Repair::Multicast),
        format!("-beacon-flags-multicast={}", options.repair != Repair::Unicast),
        format!("-bpffs={}", Bpffs::pins()),
        "-xdp=auto".to_owned(),
        "-instance=demo".to_owned(),
    ]);
    flags.extend(options.object.iter().map(|object| format!("-bpf-object={}", object.display())));
    check(stop)?;
    let program_time = daemon::count_program_time();
    let mut daemon = Daemon::start(&options.daemon, &endpoint.ns, &flags)?;
    let metrics = daemon.metrics()?;
    let mode = metrics.state("bre_xdp_mode", "mode");
    let reason = metrics.state("bre_xdp_mode", "reason").unwrap_or_default();
    view::say(&format!(
        "The endpoint runs, XDP {}{}. Its limits are set for this load: {}.",
        mode.as_deref().unwrap_or("unknown"),
        if reason.is_empty() { String::new() } else { format!(" ({reason})") },
        limits.join(" ")
    ));

    let page = options.page.then(|| forward::to_namespace(&endpoint.ns, daemon::METRICS.parse()?)).transpose()?;
    if let Some(address) = page {
        view::say(&format!("The endpoint's page: http://{address}/"));
    }
    if cfg!(debug_assertions) {
        view::say("The programs are built without optimisation: the daemon's own times are shorter with --release.");
    }

    let journal = Arc::new(Journal::new());
    let groups = traffic.groups();
    let mut listeners = Vec::new();
    for name in &names {
        let settings = ListenerSettings {
            attempts: 12,
            // On a busy machine a NACK may overtake the frame on its way into the endpoint.
            miss_attempts: 4,
            from_one: options.replay.is_none(),
            ..ListenerSettings::new(groups.clone(), endpoint.nack_address())
        };
        let ns = &fabric.host(name)?.ns;
        listeners.push(Listener::start(ns, settings, Arc::clone(&journal))?);
        check(stop)?;
    }
    for name in &names {
        fabric.await_members(name, &groups)?;
    }
    fabric.await_members(ENDPOINT, &groups)?;
    let publisher = Publisher::open(&fabric.host(PUBLISHER)?.ns, Arc::clone(&journal))?;

    let sample = || Sample::take(&daemon, &listeners, publisher.sent());
    let start = sample()?;
    let warm_up = Duration::from_millis(500).min(Duration::from_secs(options.seconds.into()) / 10);
    traffic.warm_up(&publisher, options.rate, warm_up, stop)?;
    thread::sleep(Duration::from_millis(50));
    let warm = sample()?;
    // Frames cost more than NACKs together, and never twice the same: a NACK's cost is seen while nothing else comes.
    traffic::ask(
        &fabric.host(names.first().context("a listener")?)?.ns,
        endpoint.nack_address(),
        &journal.keys(),
        options.rate,
    )?;
    thread::sleep(Duration::from_millis(50));
    let asked = sample()?;
    let sample = || sample().map(|now| now.without(&asked));
    let losses = names
        .iter()
        .map(|name| fabric.lose(name, &LossRule::random(options.per_mille())))
        .collect::<Result<Vec<Loss<'_>>>>()?;
    let cost = asked.cpu_us_per_nack(&warm);
    let view = View::new(options.seconds, mode.as_deref(), cost)?;
    let length = Duration::from_secs(options.seconds.into()).saturating_sub(warm_up);
    thread::scope(|scope| -> Result<()> {
        let work = scope.spawn(|| traffic.publish(&publisher, options.rate, length, stop));
        let mut next = Instant::now();
        while !work.is_finished() {
            thread::sleep(Duration::from_millis(50));
            if Instant::now() >= next {
                next += view.interval();
                // A scrape that is late once is not the end of the demo.
                if let Ok(now) = sample() {
                    view.show(&now, &start);
                }
            }
        }
        match work.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    let dropped = losses.iter().map(Loss::dropped).sum::<Result<u64>>()?;
    drop(losses);

    traffic.trail(&publisher)?;
    thread::sleep(Duration::from_millis(100));
    let patience = if stop.load(Ordering::Relaxed) { 1 } else { 15 };
    let deadline = Instant::now() + Duration::from_secs(patience);
    for listener in &listeners {
        if !stop.load(Ordering::Relaxed) {
            listener.expect(journal.keys());
        }
    }
    for listener in &listeners {
        // What is still open at the end counts as not recovered.
        let _ = listener.settle(deadline.saturating_duration_since(Instant::now()));
    }
    // Answers to the last NACKs may still be on their way, and the endpoint's counters are read once more.
    thread::sleep(Duration::from_millis(200));
    let end = sample()?;
    view.show(&end, &start);
    view.end();
    drop(program_time);
    let report = Report::new(&start, cost, &end, mode, reason, dropped, journal.len());
    if !report.recovered_all() {
        view::say(&format!("The end of the endpoint's log:\n{}", tail(&daemon.log())));
    }
    if let Some(address) = page
        && !stop.load(Ordering::Relaxed)
    {
        view::say(&format!("The traffic has ended. The endpoint's page stays at http://{address}/ until Ctrl-C."));
        while !stop.load(Ordering::Relaxed) {
            ensure!(daemon.child().try_wait()?.is_none(), "the daemon ended:\n{}", tail(&daemon.log()));
            thread::sleep(Duration::from_millis(100));
        }
        // That is how it ends, and says nothing about the traffic.
        stop.store(false, Ordering::Relaxed);
    }
    daemon.end().context("end the daemon")?;
    Ok(report)
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
