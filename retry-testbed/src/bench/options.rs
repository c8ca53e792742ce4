//! The command line of `bench`, and what follows from it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use retry_testbed::daemon::Daemon;

/// Environment variable with the directory of the reports.
const DIRECTORY_VARIABLE: &str = "RETRY_BENCH_DIRECTORY";

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Cases, or the beginnings of their names; none: all. `--list` tells them. `handover` alone: five minutes of restarts,
    /// kills and upgrades under traffic.
    #[arg(value_name = "CASE")]
    pub(super) cases: Vec<String>,
    /// Three rounds instead of five, shorter, with fewer points: all cases in about two minutes.
    #[arg(long)]
    pub(super) quick: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub(super) json: bool,
    /// Write a profile of the server's core beside the report for each case (needs `perf`).
    #[arg(long)]
    pub(super) profile: bool,
    /// Name the cases and end.
    #[arg(long)]
    pub(super) list: bool,
    /// End with exit code 1 when a target is missed. A wrong answer ends with 3 in any case.
    #[arg(long)]
    pub(super) strict: bool,
    /// MTU of the links, bytes.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1500..=9216))]
    pub(super) mtu: u16,
    /// The daemon's binary; by default what RETRY_ENDPOINT_BIN names.
    #[arg(long)]
    pub(super) daemon: Option<PathBuf>,
    /// Directory of report.json and report.html; by default what RETRY_BENCH_DIRECTORY names.
    #[arg(long)]
    pub(super) directory: Option<PathBuf>,
}

/// How long and how often things are measured.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Rounds of everything that is compared.
    pub(crate) rounds: usize,
    /// Length of one measurement at full rate.
    pub(crate) stretch: Duration,
    /// Fewer points and shorter waits.
    pub(crate) quick: bool,
    /// The daemon's binary.
    pub(crate) binary: PathBuf,
    /// Where the reports go.
    pub(crate) directory: PathBuf,
    /// Whether each case is profiled too.
    pub(crate) profile: bool,
}

impl Settings {
    /// What these options ask for.
    ///
    /// # Errors
    /// No daemon or no directory is named.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let quick = options.quick;
        let directory = options.directory.clone().or_else(|| std::env::var_os(DIRECTORY_VARIABLE).map(PathBuf::from));
        Ok(Self {
            rounds: if quick { 3 } else { 5 },
            stretch: Duration::from_millis(if quick { 200 } else { 400 }),
            quick,
            binary: options.daemon.clone().map_or_else(Daemon::binary, Ok)?,
            directory: directory.with_context(|| format!("{DIRECTORY_VARIABLE} does not name a directory"))?,
            profile: options.profile,
        })
    }
}
