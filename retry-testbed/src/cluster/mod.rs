//! More than one machine: a Redis Cluster of six and five endpoints, each on a host of its own. `--smoke` walks through what
//! must work, a master's death included.

mod smoke;
mod table;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use retry_testbed::{
    daemon::{self, Daemon},
    net::{
        fabric::{Fabric, group},
        netns::TOOLS,
    },
    peers::redis::{self, Cluster},
};

use self::{smoke::Step, table::Table};
use crate::session::{Bpffs, check, look_for, stop_on_signals};

/// Endpoints.
const ENDPOINTS: [&str; 5] = ["endpoint1", "endpoint2", "endpoint3", "endpoint4", "endpoint5"];
/// Hosts of Redis.
const STORES: [&str; 6] = ["redis1", "redis2", "redis3", "redis4", "redis5", "redis6"];
const PUBLISHER: &str = "publisher";
const CLIENT: &str = "client";
/// Where each endpoint's management API listens, in its namespace.
const ADMIN: &str = "[::1]:9401";

/// What the cluster is to do.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Walk through the scenarios and end; the exit code says whether all of them worked.
    #[arg(long)]
    smoke: bool,
    /// Prints addresses, and with --smoke the outcome, as one JSON object on stdout; the words go to stderr.
    #[arg(long)]
    json: bool,
    /// The daemon's binary.
    #[arg(long, env = daemon::BINARY_VARIABLE)]
    daemon: PathBuf,
}

/// The fabric and what runs on it.
struct Site<'a> {
    fabric: &'a Fabric,
    redis: Cluster<'a>,
    endpoints: Vec<Daemon<'a>>,
}

/// Prints for people: to stdout, or to stderr where stdout is for a program.
#[derive(Clone, Copy)]
struct Voice {
    json: bool,
}

impl Voice {
    #[expect(clippy::print_stdout, reason = "what it does is this program's output")]
    fn say(self, line: &str) {
        if self.json {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
}

/// Starts everything; waits for Ctrl-C, or walks through the scenarios. The exit code is 1 when one of these did not work,
/// 130 when it was stopped before its end.
///
/// # Errors
/// The fabric cannot be made, Redis or a daemon does not start or, without `--smoke`, a daemon ends.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    look_for(&TOOLS)?;
    look_for(&redis::TOOLS)?;
    ensure!(options.daemon.is_file(), "--daemon: no file {}", options.daemon.display());
    let voice = Voice { json: options.json };
    let stop = stop_on_signals()?;
    let _bpffs = Bpffs::mount()?;
    let names: Vec<&str> = ENDPOINTS.into_iter().chain(STORES).chain([PUBLISHER, CLIENT]).collect();
    voice.say("Building a private fabric: five endpoints, six hosts of Redis, a publisher, a client.");
    let fabric = Fabric::bridged(&names, 1500)?;
    let mut site = start(&fabric, options, voice, &stop)?;
    let table = Table::new(&site)?;
    voice.say(&table.words());
    let steps = if options.smoke {
        smoke::run(&mut site, voice, &stop)?
    } else {
        if options.json {
            table.print_json(&[])?;
        }
        voice.say("Ctrl-C ends it.");
        wait(&mut site, &stop)?;
        return Ok(ExitCode::SUCCESS);
    };
    let good = steps.iter().all(Step::is_good);
    voice.say(if good { "All of it works." } else { "Something does not work." });
    if options.json {
        table.print_json(&steps)?;
    }
    Ok(match (stop.load(Ordering::Relaxed), good) {
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

fn start<'a>(fabric: &'a Fabric, options: &Options, voice: Voice, stop: &AtomicBool) -> Result<Site<'a>> {
    let began = Instant::now();
    let host = |name| fabric.host(name);
    let [a, b, c, d, e, f] = STORES.map(host);
    let redis = Cluster::start([a?, b?, c?, d?, e?, f?])?;
    let seconds = began.elapsed().as_secs_f64();
    voice.say(&format!("A Redis Cluster of three masters and three replicas is up after {seconds:.1} s."));
    let addresses = redis.addresses();
    let mut endpoints = Vec::new();
    for name in ENDPOINTS {
        check(stop)?;
        endpoints.push(Daemon::start(&options.daemon, &host(name)?.ns, &flags(name, &addresses))?);
        fabric.await_members(name, &[group(0)])?;
    }
    Ok(Site { fabric, redis, endpoints })
}

fn flags(name: &str, redis: &str) -> Vec<String> {
    [
        "-cache-backend=redis",
        // What a NACK brings comes to the client's own socket too.
        "-beacon-flags-unicast",
        // They hear of each other soon.
        "-beacon-interval=1s",
        "-cache-memory=16m",
        "-cache-memory-long=16m",
        "-cache-ttl=5m",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([
        format!("-instance={name}"),
        format!("-redis-addr={redis}"),
        format!("-admin-addr={ADMIN}"),
        format!("-bpffs={}", Bpffs::pins()),
    ])
    .collect()
}

/// Waits for a signal. What people do to Redis meanwhile is their business; an endpoint that ends is not.
fn wait(site: &mut Site<'_>, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        for (name, daemon) in ENDPOINTS.iter().zip(&mut site.endpoints) {
            let ended = daemon.child().try_wait()?;
            ensure!(ended.is_none(), "{name} has ended: {ended:?}\n{}", daemon.log());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
