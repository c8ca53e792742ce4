//! More than one machine: a Redis Cluster of six and five endpoints, each on a host of its own. `--smoke` walks through what
//! must work, a master's death included.

mod smoke;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Result;
use nix::sys::signal::{self, SigHandler, Signal};
use retry_testbed::{
    daemon::Daemon,
    fabric::{Fabric, Host, group},
    redis::Cluster,
};

/// Endpoints.
const ENDPOINTS: [&str; 5] = ["endpoint1", "endpoint2", "endpoint3", "endpoint4", "endpoint5"];
/// Hosts of Redis.
const STORES: [&str; 6] = ["redis1", "redis2", "redis3", "redis4", "redis5", "redis6"];
/// Where each endpoint's management API listens, in its namespace.
const ADMIN: &str = "[::1]:9401";

/// Options of `cluster`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Walk through the scenarios and end; the exit code says whether all of them worked.
    #[arg(long)]
    smoke: bool,
    /// The daemon's binary; by default what RETRY_ENDPOINT_BIN names.
    #[arg(long)]
    daemon: Option<PathBuf>,
}

/// Set by SIGINT and SIGTERM.
static ENDED: AtomicBool = AtomicBool::new(false);

extern "C" fn end(_: std::ffi::c_int) {
    ENDED.store(true, Ordering::Relaxed);
}

/// Starts everything; waits for Ctrl-C, or walks through the scenarios.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let binary = options.daemon.clone().map_or_else(Daemon::binary, Ok)?;
    let names: Vec<&str> = ENDPOINTS.iter().chain(&STORES).copied().chain(["publisher", "client"]).collect();
    let fabric = Fabric::bridged(&names, 1500)?;
    let host = |name: &str| fabric.host(name);
    let [a, b, c, d, e, f] = STORES.map(host);
    let mut redis = Cluster::start([a?, b?, c?, d?, e?, f?])?;
    say(format_args!("Redis Cluster of three masters and three replicas is up"));

    let addresses = redis.addresses();
    let mut endpoints = Vec::new();
    for name in ENDPOINTS {
        let flags = flags(name, &addresses);
        endpoints.push(Daemon::start(&binary, &host(name)?.ns, &flags)?);
        fabric.await_members(name, &[group(0)])?;
    }
    table(&fabric, &redis)?;
    if options.smoke {
        let good = smoke::run(&fabric, &mut redis, &endpoints)?;
        return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    // SAFETY: the handler only stores to an atomic, which is allowed in one.
    unsafe { signal::signal(Signal::SIGINT, SigHandler::Handler(end)) }?;
    // SAFETY: as above.
    unsafe { signal::signal(Signal::SIGTERM, SigHandler::Handler(end)) }?;
    say(format_args!("Ctrl-C ends it"));
    while !ENDED.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(ExitCode::SUCCESS)
}

fn flags<'a>(name: &'a str, redis: &'a str) -> Vec<&'a str> {
    vec![
        "-instance",
        name,
        "-cache-backend",
        "redis",
        "-redis-addr",
        redis,
        "-admin-addr",
        ADMIN,
        // What a NACK brings comes to the client's socket too.
        "-beacon-flags-unicast",
        "-beacon-interval",
        "1s",
        "-cache-memory",
        "16m",
        "-cache-memory-long",
        "16m",
        "-cache-ttl",
        "5m",
    ]
}

/// Who is where.
fn table(fabric: &Fabric, redis: &Cluster<'_>) -> Result<()> {
    for name in ENDPOINTS {
        let host: &Host = fabric.host(name)?;
        say(format_args!(
            "{name}  namespace {}  NACKs {}  metrics [{}]:9400  management {ADMIN} inside",
            host.ns.name(),
            host.nack_address(),
            host.addr
        ));
    }
    for (name, node) in STORES.iter().zip(redis.nodes()) {
        say(format_args!("{name}     namespace {}  {}", node.host().ns.name(), node.address()));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what it does is this program's output")]
fn say(line: std::fmt::Arguments<'_>) {
    println!("{line}");
}
