//! The command line of `bench`.

use std::path::PathBuf;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Cases, or the beginnings of their names; none: all. `--list` tells them.
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
    /// The daemon's binary; by default what RETRY_ENDPOINT_BIN names.
    #[arg(long)]
    pub(super) daemon: Option<PathBuf>,
    /// Directory of report.json and report.html; by default what RETRY_BENCH_DIRECTORY names.
    #[arg(long)]
    pub(super) directory: Option<PathBuf>,
}
